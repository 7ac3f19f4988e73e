//! What a manager counts of its own work, for whoever watches it.

use std::sync::Arc;

use deploy::turn::Scope;

use crate::metrics::{Counter, Gauge, Histogram};

/// Written by the tasks of the manager, each its own; read at any time.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// One turn of the leader: the request and the brain's pass, until the entry is made.
    pub(crate) turn: Histogram,
    /// Turns whose pass looked at everything.
    full_passes: Counter,
    /// Turns whose pass looked at what the request touched.
    touched_passes: Counter,
    /// Entries in flight, on the leader.
    pub(crate) in_flight: Gauge,
    /// Requests of users that were turned away because the leader's queue was full.
    pub(crate) busy: Counter,
    /// Sessions of agents that are open here.
    pub(crate) sessions: Arc<Gauge>,
    /// Sessions that were ever opened here.
    pub(crate) sessions_opened: Counter,
    /// Sessions that were turned away because there are too many.
    pub(crate) sessions_refused: Counter,
    /// Assignment sets and differences that were sent.
    pub(crate) updates: Counter,
    /// Their bytes.
    pub(crate) update_bytes: Counter,
    /// Batches of statuses that were committed.
    pub(crate) status_batches: Counter,
    /// The statuses in them.
    pub(crate) statuses: Counter,
    /// Hosts that this manager, as the leader, declared Down.
    pub(crate) downs: Counter,
    /// How long each host was silent before it was heard again, as this manager saw it while it led.
    pub(crate) silence: Histogram,
    /// The largest difference between a host's clock and this one's, in whole seconds, while this manager leads.
    pub(crate) clock_difference: Gauge,
    /// From the last sign of life of each of them until Down was committed.
    pub(crate) detection: Histogram,
}

impl Counters {
    /// Turns, by how much their pass looked at.
    pub(crate) fn passes(&self, scope: Scope) -> &Counter {
        match scope {
            Scope::Full => &self.full_passes,
            Scope::Touched => &self.touched_passes,
        }
    }
}
