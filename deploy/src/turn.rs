//! The leader's turn: one request, if there is one, and the brain's pass after it, on one transaction.
//!
//! Who leads (`node::manager::leader`, or a simulation of it) keeps [`Passes`] for as long as it leads, and wakes up at
//! [`Passes::due`] at the latest.

use std::time::Duration;

use crate::brain;
use crate::control::{self, ControlError, Reply, Request};
use crate::cx::{Cx, Limits};
use crate::model::Timestamp;
use crate::store::{Store, Txn};

/// An entry stays below what Raft takes (1.5 MiB): 256 tasks of 4 KiB are 1 MiB.
const LIMITS: Limits = Limits { tasks_per_pass: 256 };
/// The brain looks at everything at least this often while its manager leads, should a wake-up ever be lost.
const FULL_PASS: Duration = Duration::from_secs(30);

/// How much a pass looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    Full,
    /// What the request touched: the store under it has nothing left to do at this time.
    Touched,
}

/// When the brain has to look at everything again, on the cluster's clock: at first at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    due: Timestamp,
}

impl Passes {
    /// The next time that a pass asked to be woken at, or that a look is due anyway.
    pub fn due(self) -> Timestamp {
        self.due
    }

    /// What the next turn has to look at.
    pub fn scope(self, now: Timestamp, request: bool) -> Scope {
        if request && now < self.due { Scope::Touched } else { Scope::Full }
    }

    /// What is due after a pass that asked for `wake`, once its entry is on its way or there was nothing to change. One
    /// that looked at a part leaves in force what others asked for.
    #[must_use]
    pub fn after(self, now: Timestamp, scope: Scope, wake: Option<Timestamp>) -> Self {
        let before = match scope {
            Scope::Full => now.plus(FULL_PASS),
            Scope::Touched => self.due,
        };
        Self { due: wake.map_or(before, |wake| wake.min(before)) }
    }
}

/// One turn on a speculative store: what the request came to (refused, it left no trace), and the brain's pass after it.
/// The same time as in the call of [`Passes::scope`].
pub fn decide(
    store: &Store,
    now: Timestamp,
    ids: &mut dyn FnMut() -> u128,
    request: Option<&Request>,
    scope: Scope,
) -> (Txn, Result<Reply, ControlError>) {
    let mut cx = Cx { now, ids, limits: LIMITS };
    let mut txn = Txn::new(store, now);
    let decided = match request {
        Some(request) => control::execute(&mut cx, &mut txn, request),
        None => Ok(Reply::default()),
    };
    match scope {
        Scope::Full => brain::pass(&mut cx, &mut txn),
        Scope::Touched => brain::pass_touched(&mut cx, &mut txn),
    }
    (txn, decided)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_millis(second * 1000)
    }

    #[test]
    fn a_pass_looks_at_everything_first_when_it_is_due_and_now_and_then() {
        let fresh = Passes::default();
        assert_eq!(fresh.scope(at(100), true), Scope::Full);
        let passes = fresh.after(at(100), Scope::Full, None);
        assert_eq!(passes.scope(at(129), true), Scope::Touched);
        assert_eq!(passes.scope(at(129), false), Scope::Full, "who wakes up by itself looks at everything");
        assert_eq!(passes.scope(at(130), true), Scope::Full);
    }

    #[test]
    fn what_one_request_leaves_for_later_is_not_forgotten_by_the_next() {
        let passes = Passes::default().after(at(100), Scope::Full, Some(at(110)));
        let passes = passes.after(at(101), Scope::Touched, Some(at(105)));
        let passes = passes.after(at(102), Scope::Touched, None);
        let passes = passes.after(at(103), Scope::Touched, Some(at(120)));
        assert_eq!(passes.due(), at(105));
        assert_eq!(passes.scope(at(105), true), Scope::Full);
        // More than one entry takes: the rest comes at once.
        assert_eq!(passes.after(at(104), Scope::Touched, Some(at(104))).scope(at(104), true), Scope::Full);
    }
}
