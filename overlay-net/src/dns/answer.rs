//! What goes to an upstream and comes back: the question in a form of our own, and answers as bytes of which only the
//! lengths, codes and lifetimes are read.
//!
//! An upstream may be anybody, and anybody may pretend to be it: reading is bounded by the packet's length, and what does
//! not make sense is passed on at the most, never kept.

use super::wire::{HEADER, OPT, Query, opt, u16_at};

/// An answer without records, or about a name that is not there, is kept so long at the most.
const NEGATIVE_MAX_S: u32 = 5;
/// Any other is.
const POSITIVE_MAX_S: u32 = 300;
/// Start of authority; its last field is how long nothing is kept.
const SOA: u16 = 6;
/// A record behind its name: type, class, lifetime, length.
const RECORD: usize = 10;

/// The packet that asks an upstream: the client's question, without anything else of the client's but what it wants of
/// the answer. So whoever asks the same gets the same.
pub(crate) fn ask(query: &Query<'_>, id: u16) -> Vec<u8> {
    let [high, low] = wishes(query);
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend_from_slice(&[high, low, 0, 1, 0, 0, 0, 0, 0, u8::from(query.extended)]);
    packet.extend_from_slice(query.question());
    if query.extended {
        packet.extend_from_slice(&opt(query.dnssec));
    }
    packet
}

/// Recursion, and what is to be said of signatures.
fn wishes(query: &Query<'_>) -> [u8; 2] {
    let [high, low] = query.flags();
    [high & 0x01, low & 0x30]
}

/// What makes two questions the same, for the same upstreams.
pub(crate) fn key(query: &Query<'_>) -> Vec<u8> {
    let mut key = wishes(query).to_vec();
    key.extend([u8::from(query.extended), u8::from(query.dnssec)]);
    let (name, rest) = split(query.question());
    key.extend(name.iter().map(u8::to_ascii_lowercase));
    key.extend_from_slice(rest);
    key
}

/// A question's name, in which the case of letters does not matter, and its type and class, in which it would.
fn split(question: &[u8]) -> (&[u8], &[u8]) {
    question.split_at(question.len().saturating_sub(4))
}

/// A packet that answers a question of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    packet: Vec<u8>,
    question_end: usize,
}

impl Answer {
    /// Takes a packet that came from an upstream, if it is one that answers `asked` (a packet of [`ask`]): a response
    /// with the same id and question.
    pub(crate) fn read(asked: &[u8], packet: &[u8]) -> Option<Answer> {
        let question_end = asked.len() - if asked[11] == 0 { 0 } else { opt(false).len() };
        let is_one = packet.len() >= HEADER
            && packet[..2] == asked[..2]
            && packet[2] & 0xf8 == 0x80
            && u16_at(packet, 4) == Some(1)
            && {
                let (name, rest) = split(packet.get(HEADER..question_end)?);
                let (asked_name, asked_rest) = split(&asked[HEADER..question_end]);
                name.eq_ignore_ascii_case(asked_name) && rest == asked_rest
            };
        is_one.then(|| Answer { packet: packet.to_vec(), question_end })
    }

    /// The response code, without its extension.
    pub(crate) fn code(&self) -> u8 {
        self.packet[3] & 0x0f
    }

    /// Whether the upstream knows: there are records, or no such name or record.
    pub(crate) fn is_definite(&self) -> bool {
        matches!(self.code(), 0 | 3)
    }

    /// Whether it has records that answer, and not only says that there are none.
    pub(crate) fn has_records(&self) -> bool {
        u16_at(&self.packet, 6).is_some_and(|count| count > 0)
    }

    /// Whether something was left out.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.packet[2] & 0x02 != 0
    }

    /// The packet's length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.packet.len()
    }

    /// How long it may be kept, in seconds, and where its lifetimes stand; nothing if it is not to be kept.
    pub(crate) fn lifetime(&self) -> Option<(u32, Vec<usize>)> {
        if !self.is_definite() || self.is_cut_short() {
            return None;
        }
        let count = |at| u16_at(&self.packet, at).map_or(0, usize::from);
        let (answers, authorities, additional) = (count(6), count(8), count(10));
        let (mut shortest, mut places, mut nothing) = (POSITIVE_MAX_S, Vec::new(), None);
        let mut at = self.question_end;
        for number in 0..answers + authorities + additional {
            at = skip_name(&self.packet, at)?;
            let (kind, length) = (u16_at(&self.packet, at)?, usize::from(u16_at(&self.packet, at + 8)?));
            let data = self.packet.get(at + RECORD..at + RECORD + length)?;
            if kind != OPT {
                let seconds = seconds_at(&self.packet, at + 4)?;
                shortest = shortest.min(seconds);
                places.push(at + 4);
                if kind == SOA && (answers..answers + authorities).contains(&number) {
                    let minimum = data.len().checked_sub(4).and_then(|last| seconds_at(data, last))?;
                    nothing = Some(minimum.min(seconds).min(NEGATIVE_MAX_S));
                }
            }
            at += RECORD + length;
        }
        if self.code() != 0 || answers == 0 {
            // Without a start of authority, nobody has said for how long there is nothing.
            shortest = shortest.min(nothing?);
        }
        (shortest > 0 && at == self.packet.len()).then_some((shortest, places))
    }

    /// Takes seconds off the lifetimes that stand at these places.
    pub(crate) fn age(&mut self, seconds: u32, places: &[usize]) {
        for at in places {
            if let (Some(left), Some(field)) = (seconds_at(&self.packet, *at), self.packet.get_mut(*at..at + 4)) {
                field.copy_from_slice(&left.saturating_sub(seconds).to_be_bytes());
            }
        }
    }

    /// The packet for a client that has asked the same, in at most `limit` bytes: what is longer is left out as a whole, so
    /// that the client asks again over TCP.
    pub(crate) fn deliver(mut self, query: &Query<'_>, limit: usize) -> Vec<u8> {
        let fits = self.packet.len() <= limit;
        if !fits {
            self.packet.truncate(self.question_end);
            self.packet[2] |= 0x02;
            self.packet[6..12].copy_from_slice(&[0, 0, 0, 0, 0, u8::from(query.extended)]);
            if query.extended {
                self.packet.extend_from_slice(&opt(query.dnssec));
            }
        }
        // The client's own id, wish for recursion and way of writing the name; and there is recursion.
        self.packet[..2].copy_from_slice(&query.id());
        self.packet[2] = (self.packet[2] & !0x01) | (query.flags()[0] & 0x01);
        self.packet[3] |= 0x80;
        self.packet[HEADER..self.question_end].copy_from_slice(query.question());
        self.packet
    }
}

/// A lifetime; one with the highest bit set is none (RFC 2181).
fn seconds_at(bytes: &[u8], at: usize) -> Option<u32> {
    let seconds = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    Some(if seconds >> 31 == 1 { 0 } else { seconds })
}

/// The place behind a name, which may end in a pointer.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return packet.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}
