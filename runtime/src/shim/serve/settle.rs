//! What a shim does for the long life before it, in its first idle moment: none of it is worth a container's wait.

use std::time::{Duration, Instant};

use super::{RETRY, Shim};
use crate::stored::{self, names};
use crate::sys;

/// So long must nothing happen.
const IDLE: Duration = Duration::from_millis(20);
/// A container that is never quiet is interrupted for it after this.
const LATEST: Duration = Duration::from_secs(1);

/// What is still to be done.
pub(super) struct Settling {
    /// In the hierarchies of cgroup v1 still where it was started, with the daemon. Until it has moved (each move waits for
    /// the whole machine), stopping the daemon's unit with everything in it would end the shim too.
    homeless: bool,
    /// Still holds memory that only the creation, or the start, has used.
    fat: bool,
    pause: Duration,
    latest: Instant,
}

impl Settling {
    pub(super) fn new() -> Settling {
        Settling { homeless: true, fat: true, pause: IDLE, latest: Instant::now() + LATEST }
    }

    /// The start has used what was not needed before.
    pub(super) fn again(&mut self) {
        (self.fat, self.latest) = (true, Instant::now() + LATEST);
    }

    /// How long to wait for events at the most.
    pub(super) fn patience(&self) -> Option<Duration> {
        (self.homeless || self.fat).then_some(self.pause)
    }
}

impl Shim {
    /// Called after each wait.
    pub(super) fn settle(&mut self, idle: bool) {
        let due = self.settling.patience().is_some() && (idle || Instant::now() >= self.settling.latest);
        if !due || self.exit.is_some() {
            return;
        }
        if self.settling.homeless {
            // Without room the exit finds its own, or is tried again and again.
            let _ = stored::reserve(&self.made.dir, names::EXIT);
            self.settling.homeless = self.made.cgroups.move_among_shims().is_err();
            // Somebody has removed the engine's cgroups; the daemon makes them again with its next container.
            self.settling.pause = RETRY;
        }
        if self.settling.fat {
            self.settling.fat = false;
            sys::give_back_memory();
        }
        self.settling.latest = Instant::now() + LATEST;
    }
}
