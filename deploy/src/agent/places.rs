//! Places of a host's plain containers on networks: what the host was given and nobody there uses, and who uses what it was
//! not given.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{NetworkAttachment, TaskId};

/// A place that is used and was not given is lost after this time: the manager that says so may lag.
pub const LOST: Duration = Duration::from_secs(10);

/// Places on networks that the plain containers of this host were given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// A manager has said so to this daemon; otherwise it is what was remembered, which may lack the newest.
    pub told: bool,
    /// By what holds them.
    pub places: BTreeMap<TaskId, GivenPlace>,
}

/// A place of a plain container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GivenPlace {
    /// The container's id.
    pub container: String,
    /// On which networks, with which addresses.
    pub attachments: Vec<NetworkAttachment>,
}

/// Whether a container uses a place on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// None.
    #[default]
    Unused,
    /// It was asked for, and is not given yet: which one it will be is not known.
    Asked,
    /// This one.
    Used(TaskId),
    /// It does not run, and this one is its own when it is started again, unless it is lost by then.
    Kept(TaskId),
}

/// Compares the two, again and again.
#[derive(Debug, Default)]
pub struct Places {
    /// Since when places that are used were not given, in the time that `settle` is told.
    missing: BTreeMap<TaskId, Duration>,
    /// Those whose users were named already.
    displaced: BTreeSet<TaskId>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled<C> {
    /// Places that are to be given back: nobody uses them, and nobody will.
    pub unused: Vec<TaskId>,
    /// Containers that are to lose what they have: their addresses may be others' by now. Each is named once.
    pub displaced: Vec<C>,
    /// Some may be so soon: `settle` has to be called again though nothing changes.
    pub again: bool,
}

impl Places {
    /// Compares what was given with what is used, by containers' ids. `now` is what has passed since one moment, the same for all calls.
    pub fn settle<'a, C: AsRef<str>>(
        &mut self,
        given: &Given,
        used: impl IntoIterator<Item = (C, &'a Place)>,
        now: Duration,
    ) -> Settled<C> {
        let (mut asking, mut kept, mut users) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        for (container, place) in used {
            match place {
                Place::Unused => {}
                Place::Asked => drop(asking.insert(container.as_ref().to_owned())),
                Place::Used(id) => drop(users.insert(id, container)),
                Place::Kept(id) => drop(kept.insert(id)),
            }
        }
        // Which one was asked for is known only when that is answered; it is one of its own container.
        let is_in_use =
            |id: &TaskId, container: &str| asking.contains(container) || kept.contains(id) || users.contains_key(id);
        let unused = given.places.iter().filter(|(id, place)| !is_in_use(id, &place.container));
        let unused = unused.map(|(id, _)| id.clone()).collect();
        users.retain(|id, _| given.told && !given.places.contains_key(*id));
        self.missing.retain(|id, _| users.contains_key(id));
        self.displaced.retain(|id| users.contains_key(id));
        let mut displaced = Vec::new();
        for (id, container) in users {
            let since = *self.missing.entry(id.clone()).or_insert(now);
            if now.saturating_sub(since) >= LOST && self.displaced.insert(id.clone()) {
                displaced.push(container);
            }
        }
        Settled { unused, displaced, again: !self.missing.is_empty() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn given(told: bool, places: &[&str]) -> Given {
        let place =
            |id: &&str| (TaskId::new(*id), GivenPlace { container: format!("of {id}"), ..GivenPlace::default() });
        Given { told, places: places.iter().map(place).collect() }
    }

    fn ids(ids: &[&str]) -> Vec<TaskId> {
        ids.iter().map(|id| TaskId::new(*id)).collect()
    }

    #[test]
    fn what_nobody_uses_is_given_back_unless_somebody_asks() {
        let (mut places, used) = (Places::default(), Place::Used(TaskId::new("a")));
        let mut unused =
            |of: &[(&str, &Place)]| places.settle(&given(false, &["a", "b"]), of.iter().copied(), SECOND).unused;
        assert_eq!(unused(&[("of a", &used), ("of b", &Place::Unused)]), ids(&["b"]));
        assert_eq!(
            unused(&[("of a", &used), ("of b", &Place::Asked)]),
            ids(&[]),
            "it may be the one that was asked for"
        );
        assert_eq!(unused(&[("of a", &used), ("other", &Place::Asked)]), ids(&["b"]), "that would be another one");
        assert_eq!(unused(&[]), ids(&["a", "b"]));
        assert_eq!(unused(&[("of b", &Place::Kept(TaskId::new("b")))]), ids(&["a"]));
    }

    #[test]
    fn who_uses_what_was_not_given_loses_it_after_a_while_and_once() {
        let (mut places, used) = (Places::default(), Place::Used(TaskId::new("a")));
        let mut settle = |given: &Given, now: Duration| {
            let settled = places.settle(given, [("box", &used)], now);
            (settled.displaced, settled.again)
        };
        assert_eq!(settle(&given(false, &[]), SECOND), (vec![], false), "nobody has said so");
        assert_eq!(settle(&given(true, &[]), SECOND * 20), (vec![], true));
        assert_eq!(settle(&given(true, &[]), SECOND * 29), (vec![], true));
        assert_eq!(settle(&given(true, &["a"]), SECOND * 29), (vec![], false), "the manager lagged");
        assert_eq!(settle(&given(true, &[]), SECOND * 31), (vec![], true));
        assert_eq!(settle(&given(true, &[]), SECOND * 41), (vec!["box"], true));
        assert_eq!(settle(&given(true, &[]), SECOND * 42), (vec![], true));
        let (mut places, kept) = (Places::default(), Place::Kept(TaskId::new("a")));
        assert!(!places.settle(&given(true, &[]), [("box", &kept)], SECOND).again, "it does not run");
    }
}
