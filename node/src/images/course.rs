//! The decisions of one blob's way here, pure: whom to ask next, when to ask a registry, when to give up.
//!
//! `fetch` carries them out; `crowd` plays them for a hundred hosts at once. Who asks a registry is said by a manager
//! (`manager::holdings`): one host at a time for an image, as long as it gets on.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use super::fetch::{Claim, Peer};

/// Hosts that are asked before a pause; those that have it may be many and busy.
const TRIES: usize = 4;
/// Rounds in which nobody has it: what a host has got reaches the managers a moment later, and agents that change
/// their manager tell it again.
const NOBODY: u32 = 8;
/// Rounds in which somebody has it and gives it to nobody, without being busy.
const FAILED: u32 = 20;
/// Rounds in which somebody only says that it is busy, at one second each at least: an hour, longer than the largest layer
/// takes hundreds of hosts. Whoever says so still does not get on, and counts like one that fails.
const BUSY: u32 = 3600;
/// After so many that failed a registry is asked nevertheless.
const HOPELESS: u32 = 5;

/// How patient a fetch is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Pauses between two rounds grow from the first to the second, each by a random half shorter.
    pub(super) pauses: (Duration, Duration),
    /// So long others may ask the registry before this host does, whatever a manager says.
    pub(super) help_yourself: Duration,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Look after this time who has it.
    Look(Duration),
    /// Ask a manager whether this host may ask the registry.
    Claim,
    /// Look once more who has it; if anybody, go on with those, else ask the registry: the claim is granted, and whoever
    /// had it before may have got what is wanted.
    LookThenRegistry,
    /// Ask the registry.
    Registry,
    /// Nobody will give it.
    GiveUp,
}

/// One blob on its way.
#[derive(Debug)]
pub(super) struct Course {
    patience: Patience,
    /// Whether there is a registry to ask.
    registry: bool,
    /// Who gave wrong bytes, by node id.
    liars: BTreeSet<String>,
    nobody: u32,
    failed: u32,
    busy: u32,
    pause: Duration,
    /// Since when another host asks the registry.
    waiting: Option<Duration>,
}

impl Course {
    pub(super) fn new(patience: Patience, registry: bool) -> Self {
        let pause = patience.pauses.0;
        Self { patience, registry, liars: BTreeSet::new(), nobody: 0, failed: 0, busy: 0, pause, waiting: None }
    }

    /// Those to ask in this round, in this order, of all that have it. Their order is random, so that a hundred hosts
    /// that start one image spread over those that have it already.
    pub(super) fn choose(&self, mut found: Vec<Peer>, rng: &mut impl Rng) -> Vec<Peer> {
        found.retain(|peer| !self.liars.contains(&peer.node_id));
        found.shuffle(rng);
        found.truncate(TRIES);
        found
    }

    /// A host is alone to blame for wrong bytes. It is not asked again.
    pub(super) fn lied(&mut self, node_id: &str) {
        self.liars.insert(node_id.to_owned());
    }

    /// A round has ended in which so many hosts were asked in vain, some of which were busy.
    pub(super) fn after_round(&mut self, asked: usize, busy: bool, rng: &mut impl Rng) -> Next {
        if self.registry && (asked == 0 || self.failed >= HOPELESS) {
            return Next::Claim;
        }
        if asked == 0 {
            self.nobody += 1;
        } else if busy && self.busy < BUSY {
            // Whoever is busy gives it later.
            self.busy += 1;
        } else {
            self.failed += 1;
        }
        if self.nobody >= NOBODY || self.failed >= FAILED {
            return Next::GiveUp;
        }
        self.look(rng)
    }

    /// Whether it has waited for another host long enough, and does not ask a manager any more.
    pub(super) fn helps_itself(&self, now: Duration) -> bool {
        self.waiting.is_some_and(|since| now.saturating_sub(since) > self.patience.help_yourself)
    }

    /// A manager, or nobody, has answered at that time.
    pub(super) fn claimed(&mut self, claim: Claim, now: Duration, rng: &mut impl Rng) -> Next {
        match claim {
            Claim::Taken => {
                self.waiting.get_or_insert(now);
                self.look(rng)
            }
            Claim::Granted(_) if self.waiting.is_some() && self.failed < HOPELESS => Next::LookThenRegistry,
            Claim::Granted(_) | Claim::Unknown => Next::Registry,
        }
    }

    fn look(&mut self, rng: &mut impl Rng) -> Next {
        let pause = self.pause.mul_f64(rng.random_range(0.5..=1.0));
        self.pause = (self.pause * 3 / 2).min(self.patience.pauses.1);
        Next::Look(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_waited_for_without_end() {
        let patience =
            Patience { pauses: (Duration::from_millis(1), Duration::from_secs(1)), help_yourself: Duration::MAX };
        let rounds = |registry, asked, busy| {
            let mut course = Course::new(patience, registry);
            let looks = |_: &u32| matches!(course.after_round(asked, busy, &mut rand::rng()), Next::Look(_));
            (0..10_000).take_while(looks).count() as u32
        };
        assert_eq!(rounds(false, 0, false), NOBODY - 1);
        assert_eq!(rounds(false, 1, false), FAILED - 1);
        assert_eq!(rounds(false, 1, true), BUSY + FAILED - 1);
        assert_eq!(rounds(true, 0, false), 0, "the registry is asked for what nobody has");
        assert_eq!(rounds(true, 1, true), BUSY + HOPELESS);
    }
}
