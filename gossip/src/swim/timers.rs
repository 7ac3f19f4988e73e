//! The one timer queue: what is to be done, in the order in which it is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use foca::Timer;

use crate::identity::PeerId;

/// Something to do later.
#[derive(Debug)]
pub(super) enum Task {
    /// foca's own.
    Foca(Timer<PeerId>),
    /// Announce this node to seeds. Only the newest of these is not stale.
    Announce { epoch: u64 },
    /// Ask a member whether it knows the same others. Only the newest of these is not stale.
    Ask { epoch: u64 },
    /// Ask a suspect who it is, or declare it dead in the end.
    Doubt { suspect: PeerId, incarnation: u16, again: u8 },
    /// Repeat a ping that was not answered.
    Ping { number: u8, again: u8 },
    /// Tell a suspect of the suspicion once more.
    Warn { suspect: PeerId, incarnation: u16, again: u8 },
    /// Say goodbye once more.
    Leave { again: u8 },
}

impl Task {
    /// foca wants its timers of one instant in this order: an unanswered probe goes on by way of others before
    /// the next one starts.
    fn rank(&self) -> u8 {
        match self {
            Task::Foca(Timer::SendIndirectProbe { .. }) => 0,
            Task::Foca(Timer::ProbeRandomMember(_)) => 1,
            Task::Foca(Timer::ChangeSuspectToDown { .. }) => 2,
            Task::Doubt { .. } => 2,
            Task::Ping { .. } | Task::Warn { .. } | Task::Announce { .. } | Task::Ask { .. } | Task::Leave { .. } => 3,
            Task::Foca(Timer::PeriodicAnnounce(_)) => 4,
            Task::Foca(Timer::PeriodicGossip(_)) => 5,
            Task::Foca(Timer::PeriodicAnnounceDown(_) | Timer::RemoveDown(_)) => 6,
        }
    }
}

#[derive(Debug)]
struct Entry {
    at: Duration,
    rank: u8,
    number: u64,
    task: Task,
}

impl Entry {
    fn key(&self) -> (Duration, u8, u64) {
        (self.at, self.rank, self.number)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// Tasks by deadline, as time since the start of the protocol.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    pushed: u64,
}

impl Timers {
    pub(super) fn push(&mut self, at: Duration, task: Task) {
        self.pushed += 1;
        self.heap.push(Reverse(Entry { at, rank: task.rank(), number: self.pushed, task }));
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    pub(super) fn pop_due(&mut self, now: Duration) -> Option<Task> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_deadline_then_by_focas_order_then_by_age() {
        let mut timers = Timers::default();
        let at = Duration::from_secs(1);
        timers.push(at, Task::Announce { epoch: 1 });
        timers.push(at, Task::Announce { epoch: 2 });
        timers.push(at, Task::Foca(Timer::ProbeRandomMember(0)));
        timers.push(at / 2, Task::Foca(Timer::PeriodicGossip(0)));
        timers.push(at * 2, Task::Leave { again: 0 });
        let mut order = Vec::new();
        while let Some(task) = timers.pop_due(at) {
            order.push(format!("{task:?}"));
        }
        assert_eq!(
            order,
            ["Foca(PeriodicGossip(0))", "Foca(ProbeRandomMember(0))", "Announce { epoch: 1 }", "Announce { epoch: 2 }"]
        );
        assert_eq!(timers.next(), Some(at * 2));
    }
}
