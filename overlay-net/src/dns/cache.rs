//! Answers of upstreams, for as long as they may be kept. Bounded in number and bytes; pure but for the clock that its
//! caller reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::Answer;

/// Answers that are kept at the most,
const ENTRIES_MAX: usize = 4096;
/// and bytes in all of them and their keys.
const BYTES_MAX: usize = 4 << 20;
/// Longer answers are not kept.
const ANSWER_MAX: usize = 4096;

#[derive(Debug)]
struct Entry {
    answer: Answer,
    /// Where its lifetimes stand.
    places: Vec<usize>,
    since: Instant,
    /// When it ends, and a number that makes it one of a kind: its key in `order`.
    end: (Instant, u64),
    bytes: usize,
}

/// The answers of one host's upstreams.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// The next to end comes first.
    order: BTreeMap<(Instant, u64), Arc<[u8]>>,
    bytes: usize,
    number: u64,
}

impl Cache {
    /// An answer that may still be given, with the lifetimes that are left.
    pub(crate) fn get(&mut self, key: &[u8], now: Instant) -> Option<Answer> {
        let entry = self.entries.get(key)?;
        if entry.end.0 <= now {
            let end = entry.end;
            self.remove(end);
            return None;
        }
        let mut answer = entry.answer.clone();
        let age = now.saturating_duration_since(entry.since).as_secs();
        answer.age(u32::try_from(age).unwrap_or(u32::MAX), &entry.places);
        Some(answer)
    }

    /// Keeps an answer, if it may be kept. What ends first makes room.
    pub(crate) fn put(&mut self, key: &[u8], answer: &Answer, now: Instant) {
        if answer.len() > ANSWER_MAX {
            return;
        }
        let Some((seconds, places)) = answer.lifetime() else { return };
        if let Some(end) = self.entries.get(key).map(|entry| entry.end) {
            self.remove(end);
        }
        self.number += 1;
        let end = (now + Duration::from_secs(seconds.into()), self.number);
        let bytes = key.len() + answer.len() + places.len() * size_of::<usize>();
        let key: Arc<[u8]> = key.into();
        self.order.insert(end, Arc::clone(&key));
        self.entries.insert(key, Entry { answer: answer.clone(), places, since: now, end, bytes });
        self.bytes += bytes;
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some((end, _)) = self.order.first_key_value() else { break };
            self.remove(*end);
        }
    }

    fn remove(&mut self, end: (Instant, u64)) {
        if let Some(entry) = self.order.remove(&end).and_then(|key| self.entries.remove(&key)) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::ask;
    use super::super::tests::{query, response};
    use super::super::wire::Query;
    use super::*;

    fn answer(name: &str, seconds: u32) -> Answer {
        let packet = query(name, 1);
        let asked = ask(&Query::parse(&packet).unwrap(), 7);
        Answer::read(&asked, &response(&asked, seconds)).unwrap()
    }

    #[test]
    fn answers_age_and_end() {
        let (start, mut cache) = (Instant::now(), Cache::default());
        cache.put(b"x", &answer("x.example", 10), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.get(b"x", after(0)), Some(answer("x.example", 10)));
        assert_eq!(cache.get(b"x", after(4)), Some(answer("x.example", 6)));
        assert_eq!(cache.get(b"y", after(4)), None);
        assert_eq!(cache.get(b"x", after(10)), None);
        assert_eq!((cache.entries.len(), cache.order.len(), cache.bytes), (0, 0, 0));
    }

    #[test]
    fn what_ends_first_makes_room() {
        let (start, mut cache) = (Instant::now(), Cache::default());
        cache.put(b"soon", &answer("soon.example", 1), start);
        for number in 0..ENTRIES_MAX {
            cache.put(&number.to_be_bytes(), &answer("x.example", 10), start);
            cache.put(&number.to_be_bytes(), &answer("x.example", 10), start);
        }
        assert_eq!((cache.entries.len(), cache.order.len()), (ENTRIES_MAX, ENTRIES_MAX));
        assert_eq!(cache.get(b"soon", start), None);
        assert!(cache.bytes <= BYTES_MAX);
        let bytes: usize = cache.entries.values().map(|entry| entry.bytes).sum();
        assert_eq!(cache.bytes, bytes);
    }

    #[test]
    fn bytes_are_bounded_as_well() {
        let (start, mut cache) = (Instant::now(), Cache::default());
        let key = vec![b'k'; 64 << 10];
        for number in 0..200u8 {
            cache.put(&[key.as_slice(), &[number]].concat(), &answer("x.example", 10), start);
        }
        assert!(cache.bytes <= BYTES_MAX && cache.entries.len() < 64, "{} bytes", cache.bytes);
    }
}
