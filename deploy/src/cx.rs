//! What a decision may know besides the store: the time, fresh ids, and bounds. Everything else is the store's.

use crate::model::Timestamp;

/// The inputs of a pass or of a request that are not in the store.
pub struct Cx<'a> {
    /// Now, on the cluster's clock: never before the `now` of the last entry.
    pub now: Timestamp,
    /// Fresh random 128 bits. They become object ids and the secrets of join tokens, so outside of simulations they
    /// come from a cryptographic source.
    pub ids: &'a mut dyn FnMut() -> u128,
    /// Bounds on the work of one pass.
    pub limits: Limits,
}

impl Cx<'_> {
    /// A fresh id of the wanted kind.
    pub fn id<I: From<u128>>(&mut self) -> I {
        I::from((self.ids)())
    }
}

/// Bounds on the work of one pass. What does not fit is left for the next pass, which then comes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tasks that one pass may make, place or give addresses to. Bounds the size of an entry: a task is about 1 KiB.
    pub tasks_per_pass: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // 4096 tasks of a large spec (2 KiB) are 8 MiB, a quarter of what an entry may weigh.
        Self { tasks_per_pass: 4096 }
    }
}
