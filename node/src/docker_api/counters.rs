//! What the API server counts of its own work, for whoever watches it.

use std::sync::Arc;

use hyper::StatusCode;

use crate::metrics::{Counter, Gauge};

/// Written by the API's listeners, read at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections that are open.
    pub(super) connections: Arc<Gauge>,
    /// Connections that were turned away because there are too many.
    pub(super) refused: Counter,
    /// Answers by the first digit of their status, from 1xx on.
    answers: [Counter; 5],
}

impl Counters {
    pub(super) fn answered(&self, status: StatusCode) {
        if let Some(counter) = self.answers.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            counter.add_one();
        }
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.get()
    }

    /// Connections that were turned away.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Answers by class.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(self.answers.iter().map(Counter::get))
    }
}
