//! What a member has counted since it started, for metrics. Counting is a relaxed atomic addition, reading takes
//! no lock; nothing in here decides anything.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets of a [`Histogram`], in microseconds; the last bucket has none. Near powers of two
/// from the sync of a fast disk to the patience of a caller.
pub const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 125_000, 250_000, 500_000, 1_000_000, 4_000_000,
    16_000_000,
];

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many fell into each bucket: above the bound before ([`BOUNDS_US`]), up to and with its own. Not cumulative.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What a member has counted since it started. All of them only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Own proposals that were applied here, by the time from their submission: commit latency, as its proposer sees
    /// it. Only on a leader.
    pub commit: Histogram,
    /// Own proposals that were refused or whose outcome is unknown.
    pub not_committed: u64,
    /// Entries that the machine has applied, own and others', with payload.
    pub applied: u64,
    /// Syncs of the log, by how long they took.
    pub sync: Histogram,
    /// Bytes written to the log, with headers and padding.
    pub log_bytes: u64,
    /// Append requests that carried entries to other members.
    pub appends_sent: u64,
    /// Entries in them. What is sent again counts again.
    pub entries_sent: u64,
    /// Payload bytes in them.
    pub bytes_sent: u64,
    /// Append requests with entries that came from leaders and were understood.
    pub appends_received: u64,
    /// Entries in them.
    pub entries_received: u64,
    /// Payload bytes in them.
    pub bytes_received: u64,
    /// Calls to other members that failed or were not answered in time.
    pub calls_failed: u64,
    /// Times that this member was seen to stand for election.
    pub elections: u64,
    /// Times that a leader was seen that was not the one before, oneself included.
    pub leader_changes: u64,
    /// Questions for a vote that this member refused before any term changed.
    pub pre_votes_refused: u64,
    /// Votes that this member refused.
    pub votes_refused: u64,
    /// Snapshots that were received whole and put in place.
    pub snapshots_received: u64,
    /// Snapshots that another member took.
    pub snapshots_sent: u64,
}

/// A counter that several tasks share.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A histogram that several tasks share.
#[derive(Debug, Default)]
pub(crate) struct Timed {
    buckets: [Count; BOUNDS_US.len() + 1],
    sum_ns: Count,
}

impl Timed {
    pub(crate) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < micros)].one();
        // 584 years of waiting do not happen.
        self.sum_ns.add(u64::try_from(took.as_nanos()).unwrap_or(0));
    }

    fn get(&self) -> Histogram {
        Histogram {
            buckets: std::array::from_fn(|at| self.buckets[at].get()),
            sum: Duration::from_nanos(self.sum_ns.get()),
        }
    }
}

/// Where the parts of a member count.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) commit: Timed,
    pub(crate) not_committed: Count,
    pub(crate) applied: Count,
    pub(crate) sync: Timed,
    pub(crate) log_bytes: Count,
    pub(crate) appends_sent: Count,
    pub(crate) entries_sent: Count,
    pub(crate) bytes_sent: Count,
    pub(crate) appends_received: Count,
    pub(crate) entries_received: Count,
    pub(crate) bytes_received: Count,
    pub(crate) calls_failed: Count,
    pub(crate) elections: Count,
    pub(crate) leader_changes: Count,
    pub(crate) pre_votes_refused: Count,
    pub(crate) votes_refused: Count,
    pub(crate) snapshots_received: Count,
    pub(crate) snapshots_sent: Count,
    seen: Mutex<Seen>,
}

/// What the last status said.
#[derive(Debug, Default)]
struct Seen {
    /// Stood for election, and no leader was seen since.
    standing: bool,
    /// Term and id.
    leader: Option<(u64, u64)>,
}

impl Meter {
    /// Counts what has changed since the last call.
    pub(crate) fn observe(&self, me: u64, standing: bool, leader: Option<(u64, u64)>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // That nobody leads is no change yet: the one before may go on.
        let changed = leader.is_some() && leader != seen.leader;
        // An election can be over before anyone looks.
        let won = changed && leader.is_some_and(|(_, id)| id == me);
        if (standing || won) && !seen.standing {
            self.elections.one();
        }
        seen.standing = standing;
        if changed {
            self.leader_changes.one();
            seen.leader = leader;
        }
    }

    pub(crate) fn read(&self) -> Counters {
        Counters {
            commit: self.commit.get(),
            not_committed: self.not_committed.get(),
            applied: self.applied.get(),
            sync: self.sync.get(),
            log_bytes: self.log_bytes.get(),
            appends_sent: self.appends_sent.get(),
            entries_sent: self.entries_sent.get(),
            bytes_sent: self.bytes_sent.get(),
            appends_received: self.appends_received.get(),
            entries_received: self.entries_received.get(),
            bytes_received: self.bytes_received.get(),
            calls_failed: self.calls_failed.get(),
            elections: self.elections.get(),
            leader_changes: self.leader_changes.get(),
            pre_votes_refused: self.pre_votes_refused.get(),
            votes_refused: self.votes_refused.get(),
            snapshots_received: self.snapshots_received.get(),
            snapshots_sent: self.snapshots_sent.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let timed = Timed::default();
        for micros in [0, 100, 101, 250, 16_000_000, 16_000_001] {
            timed.record(Duration::from_micros(micros));
        }
        let histogram = timed.get();
        assert_eq!(histogram.buckets[..3], [2, 2, 0]);
        assert_eq!(histogram.buckets[BOUNDS_US.len() - 1..], [1, 1]);
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.sum, Duration::from_micros(32_000_452));
    }

    #[test]
    fn leaders_are_counted_when_they_change() {
        let meter = Meter::default();
        for (standing, leader) in [
            (false, None),
            (true, None),
            (true, None),
            (false, Some((2, 1))),
            (false, None),
            (false, Some((2, 1))),
            (true, None),
            (false, Some((3, 2))),
            (false, Some((4, 1))),
        ] {
            meter.observe(1, standing, leader);
        }
        assert_eq!((meter.read().elections, meter.read().leader_changes), (3, 3));
    }
}
