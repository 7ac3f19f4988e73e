//! When this member last took a leader's word. Followers of openraft do not publish it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::RaftId;

/// Written by the receiving side, read by whoever wants to know.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    last: Mutex<Option<(RaftId, Instant)>>,
}

impl Contact {
    /// A leader's entries or heartbeat were taken.
    pub(crate) fn note(&self, leader: RaftId) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((leader, Instant::now()));
    }

    pub(crate) fn last(&self) -> Option<(RaftId, Instant)> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
