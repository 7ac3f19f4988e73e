//! The event queue: what happens next, in the order of time; what happens at once goes in the order of arrival.

use std::collections::BTreeMap;

use deploy::model::Timestamp;

#[derive(Debug)]
pub(super) struct Queue<E> {
    events: BTreeMap<(Timestamp, u64), E>,
    pushed: u64,
}

impl<E> Queue<E> {
    pub(super) fn new() -> Self {
        Self { events: BTreeMap::new(), pushed: 0 }
    }

    pub(super) fn push(&mut self, at: Timestamp, event: E) {
        self.pushed += 1;
        self.events.insert((at, self.pushed), event);
    }

    pub(super) fn pop(&mut self) -> Option<(Timestamp, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}
