//! What is done to the cluster in each round: made of a seed, before anything runs.

use std::time::Duration;

use crate::hosts::Fault;
use crate::sim::Rng;

/// What a user does. Which service is meant is drawn from those that are there by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Makes a service.
    Create {
        /// How many tasks.
        replicas: u64,
        /// Which networks: a bit each.
        networks: u64,
        /// Its name stands for its tasks, not for a virtual address.
        by_tasks: bool,
        /// It publishes a port.
        publishes: bool,
    },
    /// Sets the number of tasks of one.
    Scale {
        /// Which one.
        pick: u64,
        /// To so many.
        replicas: u64,
    },
    /// Replaces all tasks of one.
    Update {
        /// Which one.
        pick: u64,
        /// New tasks first.
        start_first: bool,
    },
    /// Removes one.
    Remove {
        /// Which one.
        pick: u64,
    },
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing.
    None,
    /// Something that is mended again.
    Fault(Fault),
    /// A host leaves the cluster and joins it again.
    Leave(usize),
}

/// One round. After it comes a quiet time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) trouble: Trouble,
    /// How long it lasts.
    pub(super) length: Duration,
    /// What users do meanwhile and afterwards, each so long after the one before.
    pub(super) acts: Vec<(Duration, Act)>,
}

/// The next round.
pub(super) fn round(rng: &mut Rng, managers: usize, workers: usize) -> Round {
    let hosts = managers + workers;
    let host = usize::try_from(rng.range(0, hosts as u64)).unwrap_or(0);
    let worker = managers + usize::try_from(rng.range(0, workers as u64)).unwrap_or(0);
    let fault = |fault| Trouble::Fault(fault);
    let trouble = match rng.range(0, 100) {
        0..14 => Trouble::None,
        14..28 => fault(Fault::KillDaemon(host)),
        28..42 => fault(Fault::PowerOff(host)),
        42..52 => fault(Fault::KillAll(host)),
        52..60 => fault(Fault::Pause(host)),
        60..66 => fault(Fault::Freeze(host)),
        66..76 => fault(Fault::Cut(host)),
        76..88 => {
            // One other host goes with it; a majority of the managers stays together unless both are managers.
            let beside = (host + 1 + usize::try_from(rng.range(0, hosts as u64 - 1)).unwrap_or(0)) % hosts;
            let first = (0..hosts).filter(|other| ![host, beside].contains(other)).collect();
            fault(Fault::Partition(vec![first, vec![host, beside]]))
        }
        _ => Trouble::Leave(worker),
    };
    let length = Duration::from_millis(rng.range(500, 6_000));
    let count = rng.range(2, 6);
    let acts = (0..count).map(|_| (Duration::from_millis(rng.range(50, 1_200)), act(rng))).collect();
    Round { trouble, length, acts }
}

fn act(rng: &mut Rng) -> Act {
    match rng.range(0, 100) {
        0..25 => Act::Create {
            replicas: rng.range(1, 6),
            networks: rng.range(1, 1 << super::NETWORKS.len()),
            by_tasks: rng.percent(25),
            publishes: rng.percent(50),
        },
        25..60 => Act::Scale { pick: rng.next(), replicas: rng.range(0, 8) },
        60..80 => Act::Update { pick: rng.next(), start_first: rng.percent(50) },
        _ => Act::Remove { pick: rng.next() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_of_their_seed_and_have_everything_in_them() {
        let rounds = |seed| {
            let mut rng = Rng::new(seed);
            (0..200).map(|_| round(&mut rng, 3, 2)).collect::<Vec<_>>()
        };
        assert_eq!(rounds(1), rounds(1));
        assert_ne!(rounds(1), rounds(2));
        let all = rounds(3);
        let troubles: std::collections::BTreeSet<String> = all
            .iter()
            .map(|round| format!("{:?}", round.trouble).split(|c: char| c.is_ascii_digit()).next().unwrap().to_owned())
            .collect();
        assert!(troubles.len() >= 9, "{troubles:?}");
        for round in &all {
            if let Trouble::Leave(host) = round.trouble {
                assert!((3..5).contains(&host));
            }
            if let Trouble::Fault(Fault::Partition(groups)) = &round.trouble {
                assert_eq!((groups[0].len(), groups[1].len()), (3, 2), "{groups:?}");
            }
        }
    }
}
