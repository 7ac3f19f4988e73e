//! Which packets were seen before: a window of counters for each sender.

use std::collections::BTreeMap;

/// Words of a window; one of them is being refilled, so a packet may be late by 15 * 64 others of its sender.
const WORDS: u64 = 16;
const WINDOW: u64 = (WORDS - 1) * 64;
/// Senders remembered. Only who has a key gets in here.
const MAX_SENDERS: usize = 16 * 1024;

/// The counters seen of each node in its latest boot generation.
///
/// A sender's counter starts at its wall clock in microseconds and grows by one a packet, so that it also grows when
/// a process starts again within one generation; across generations the clock does not matter. What this cannot
/// see is an old packet of a node that this process has not heard yet: it gets to know it at the next live one.
#[derive(Debug, Default)]
pub(crate) struct ReplayFilter {
    senders: BTreeMap<String, Window>,
    uses: u64,
}

#[derive(Debug)]
struct Window {
    generation: u64,
    top: u64,
    /// Bit `c % 64` of word `c / 64 % WORDS` says that `c` was seen, for the counters within `WINDOW` of `top`.
    seen: [u64; WORDS as usize],
    last_use: u64,
}

impl ReplayFilter {
    /// Whether this packet is new; from then on it is not.
    pub(crate) fn accept(&mut self, node_id: &str, generation: u64, counter: u64) -> bool {
        self.uses += 1;
        match self.senders.get_mut(node_id) {
            Some(window) => {
                window.last_use = self.uses;
                if generation < window.generation {
                    return false;
                }
                if generation > window.generation {
                    *window = Window::starting(generation, counter, self.uses);
                    return true;
                }
                window.accept(counter)
            }
            None => {
                self.make_room();
                self.senders.insert(node_id.to_owned(), Window::starting(generation, counter, self.uses));
                true
            }
        }
    }

    fn make_room(&mut self) {
        if self.senders.len() < MAX_SENDERS {
            return;
        }
        let oldest = self.senders.iter().min_by_key(|(_, window)| window.last_use).map(|(id, _)| id.clone());
        if let Some(id) = oldest {
            self.senders.remove(&id);
        }
    }
}

impl Window {
    fn starting(generation: u64, counter: u64, last_use: u64) -> Self {
        let mut window = Self { generation, top: counter, seen: [0; WORDS as usize], last_use };
        window.accept(counter);
        window
    }

    fn accept(&mut self, counter: u64) -> bool {
        if counter > self.top {
            let (old, new) = (self.top / 64, counter / 64);
            for word in 1..=(new - old).min(WORDS) {
                self.seen[((old + word) % WORDS) as usize] = 0;
            }
            self.top = counter;
        } else if self.top - counter >= WINDOW {
            return false;
        }
        let word = &mut self.seen[(counter / 64 % WORDS) as usize];
        let bit = 1 << (counter % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_older_generation_is_old_whatever_its_counter() {
        let mut filter = ReplayFilter::default();
        assert!(filter.accept("n1", 1, 1_000_000));
        assert!(filter.accept("n1", 2, 5), "a new boot starts anywhere");
        assert!(!filter.accept("n1", 1, 2_000_000));
        assert!(!filter.accept("n1", 2, 5));
        assert!(filter.accept("n2", 1, 1_000_000), "each node has its own window");
    }

    #[test]
    fn senders_are_bounded() {
        let mut filter = ReplayFilter::default();
        for at in 0..MAX_SENDERS + 10 {
            assert!(filter.accept(&format!("n{at}"), 1, 1));
        }
        assert_eq!(filter.senders.len(), MAX_SENDERS);
        assert!(!filter.accept(&format!("n{}", MAX_SENDERS + 9), 1, 1), "the latest are kept");
    }

    proptest! {
        // The window agrees with a plain set, but for the packets that are too late to be known.
        #[test]
        fn like_a_set(start in 0_u64..u64::MAX / 2, steps in proptest::collection::vec(0_u64..3_000, 1..200)) {
            let mut filter = ReplayFilter::default();
            let mut seen = BTreeSet::new();
            let mut top = 0;
            for step in steps {
                let counter = start + step;
                let accepted = filter.accept("n", 1, counter);
                let too_late = counter < top && top - counter >= WINDOW;
                prop_assert_eq!(accepted, !too_late && !seen.contains(&counter));
                seen.insert(counter);
                top = top.max(counter);
            }
        }
    }
}
