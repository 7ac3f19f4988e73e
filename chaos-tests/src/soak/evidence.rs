//! What managers hold, judged: each look at a manager is a sample (index, digest, objects), and samples become the facts
//! that `check` has its properties for.
//!
//! Samples come a few times a second, so that several entries may lie between two of them; they are shown as one, and
//! marked as merged. Nothing is assumed of the managers but what those properties demand.

use std::collections::{BTreeMap, BTreeSet};

use deploy::model::{Meta, TaskId};
use deploy::store::{Key, Store};

use crate::check::{Applied, Checker, Fact};

/// Digests that are remembered, by index.
const REMEMBERED: usize = 20_000;

/// What a manager had at some moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Which manager.
    pub(super) manager: usize,
    /// Which life of its daemon; a new one may begin with an older store.
    pub(super) life: u32,
    /// Index of the newest entry in the store.
    pub(super) index: u64,
    /// Digest of all of it.
    pub(super) digest: String,
    /// The objects, without secrets.
    pub(super) store: Store,
}

/// What all samples say together.
#[derive(Default)]
pub(super) struct Evidence {
    checker: Checker,
    latest: Store,
    index: u64,
    digests: BTreeMap<u64, (String, usize)>,
    /// The newest index that each life of a manager had.
    lives: BTreeMap<(usize, u32), u64>,
    removed: BTreeSet<TaskId>,
    /// How often two managers were seen at the same index.
    pub(super) compared: u64,
    /// How many different stores were seen.
    pub(super) stores: u64,
}

impl Evidence {
    /// Judges a sample; what is wrong, one sentence each.
    pub(super) fn take(&mut self, sample: &Sample) -> Vec<String> {
        let mut wrong = Vec::new();
        let Sample { manager, index, digest, store, .. } = sample;
        let newest = self.lives.entry((*manager, sample.life)).or_default();
        if *newest > *index {
            wrong.push(format!("manager {manager} went from index {newest} back to {index}"));
        }
        *newest = *index;
        match self.digests.get(index) {
            Some((known, other)) => {
                self.compared += u64::from(other != manager);
                if known != digest {
                    wrong.push(format!(
                        "managers {other} and {manager} have the digests {known} and {digest} at index {index}"
                    ));
                }
            }
            None => {
                self.digests.insert(*index, (digest.clone(), *manager));
                if self.digests.len() > REMEMBERED {
                    self.digests.pop_first();
                }
            }
        }
        if *index > self.index {
            wrong.extend(self.go_on(sample));
        } else {
            let restored = Fact::Restored { manager: *manager, index: *index, store };
            wrong.extend(self.checker.observe(&restored).err().map(|violation| violation.to_string()));
        }
        wrong
    }

    fn go_on(&mut self, sample: &Sample) -> Vec<String> {
        let (before, after) = (std::mem::replace(&mut self.latest, sample.store.clone()), &sample.store);
        let mut wrong: Vec<String> = after.invariants();
        if after.revision() < before.revision() {
            wrong.push(format!(
                "the store's revision went from {} at index {} to {} at index {}",
                before.revision(),
                self.index,
                after.revision(),
                sample.index
            ));
        }
        let keys = changed_keys(&before, after, &mut wrong);
        self.removed.extend(keys.iter().filter_map(|key| match key {
            Key::Task(id) if after.task(id).is_none() => Some(id.clone()),
            _ => None,
        }));
        let applied = Applied {
            manager: sample.manager,
            index: sample.index,
            entry: 0,
            accepted: true,
            first: true,
            merged: true,
            before: &before,
            after,
            keys: &keys,
        };
        // The first sample has no past.
        if self.index > 0 {
            wrong.extend(self.checker.observe(&Fact::Applied(applied)).err().map(|violation| violation.to_string()));
        }
        self.index = sample.index;
        self.stores += 1;
        wrong
    }

    /// The newest store that was seen.
    pub(super) fn latest(&self) -> &Store {
        &self.latest
    }

    /// Its index.
    pub(super) fn index(&self) -> u64 {
        self.index
    }

    /// Whether a task was in some store and is in none that is newer.
    pub(super) fn was_removed(&self, task: &TaskId) -> bool {
        self.removed.contains(task)
    }
}

/// Objects that differ, and a sentence for each whose version went back.
fn changed_keys(before: &Store, after: &Store, wrong: &mut Vec<String>) -> Vec<Key> {
    let (old, new) = (versions(before), versions(after));
    for (key, version) in &old {
        if let Some(now) = new.get(key).filter(|now| *now < version) {
            wrong.push(format!("{key} went from version {version} to {now}"));
        }
    }
    let differs = |key: &&Key| old.get(key) != new.get(key);
    let mut keys: Vec<Key> = new.keys().filter(differs).cloned().collect();
    keys.extend(old.keys().filter(|key| !new.contains_key(key)).cloned());
    keys
}

fn versions(store: &Store) -> BTreeMap<Key, u64> {
    let of = |key: Key, meta: &Meta| (key, meta.version);
    let mut all = BTreeMap::new();
    all.extend(store.cluster().map(|o| of(Key::Cluster, &o.meta)));
    all.extend(store.nodes().map(|o| of(Key::Node(o.id.clone()), &o.meta)));
    all.extend(store.services().map(|o| of(Key::Service(o.id.clone()), &o.meta)));
    all.extend(store.tasks().map(|o| of(Key::Task(o.id.clone()), &o.meta)));
    all.extend(store.networks().map(|o| of(Key::Network(o.id.clone()), &o.meta)));
    all.extend(store.secrets().map(|o| of(Key::Secret(o.id.clone()), &o.meta)));
    all.extend(store.configs().map(|o| of(Key::Config(o.id.clone()), &o.meta)));
    all.extend(store.registries().map(|o| of(Key::Registry(o.id.clone()), &o.meta)));
    all
}

/// Which assignment set each agent acts on: never an older one within a life of its daemon, and never one that is newer
/// than any manager's store.
#[derive(Debug, Default)]
pub(super) struct Agents {
    seen: BTreeMap<(String, u64), (u64, u64)>,
}

impl Agents {
    /// Judges what an agent said of itself.
    ///
    /// # Errors
    /// It has taken over an older set.
    pub(super) fn take(&mut self, node: &str, generation: u64, incarnation: u64, revision: u64) -> Result<(), String> {
        let seen = self.seen.entry((node.to_owned(), generation)).or_insert((incarnation, revision));
        if seen.0 == incarnation && seen.1 > revision {
            return Err(format!("the agent of {node} has assignments of revision {revision} after {}", seen.1));
        }
        *seen = (incarnation, revision);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::{changed, node, service, task};
    use deploy::model::TaskState;

    fn sample(manager: usize, index: u64, store: &Store) -> Sample {
        let digest = format!("{:?}", store.encode_snapshot());
        Sample { manager, life: 0, index, digest, store: store.clone() }
    }

    fn cluster() -> Store {
        changed(&Store::default(), |txn| {
            txn.put_node(node("a"));
            txn.put_service(service("web"));
            txn.put_task(task("t", "web", "a"));
        })
    }

    #[track_caller]
    fn check(samples: &[Sample], part: &str) {
        let mut evidence = Evidence::default();
        let wrong: Vec<String> = samples.iter().flat_map(|sample| evidence.take(sample)).collect();
        match part {
            "" => assert_eq!(wrong, Vec::<String>::new()),
            part => assert!(wrong.iter().any(|w| w.contains(part)), "{part:?} is not in {wrong:?}"),
        }
    }

    #[test]
    fn managers_that_differ_are_found() {
        let one = cluster();
        let other = changed(&one, |txn| txn.put_node(node("b")));
        check(&[sample(0, 5, &one), sample(1, 5, &one), sample(1, 6, &other), sample(0, 6, &other)], "");
        check(&[sample(0, 5, &one), sample(1, 5, &other)], "digests");
        // Whatever the digests say: the objects are compared, too.
        let mut lied = sample(1, 5, &other);
        lied.digest = sample(0, 5, &one).digest;
        check(&[sample(0, 4, &one), sample(0, 5, &one), lied], "another store");
        check(&[sample(0, 6, &one), sample(0, 5, &one)], "back to");
    }

    #[test]
    fn a_store_that_goes_back_is_found() {
        let one = cluster();
        let other = changed(&one, |txn| txn.put_node(node("b")));
        check(&[sample(0, 5, &other), sample(1, 6, &one)], "revision");
        let mut older = task("t", "web", "a");
        older.status.set_state(TaskState::Preparing);
        let stepped = changed(&one, |txn| txn.put_task(older));
        check(&[sample(0, 5, &one), sample(1, 6, &stepped)], "only grows");
    }

    #[test]
    fn removed_tasks_are_remembered() {
        let one = cluster();
        let without = changed(&one, |txn| txn.remove_task(&TaskId::new("t")));
        let mut evidence = Evidence::default();
        evidence.take(&sample(0, 5, &one));
        evidence.take(&sample(1, 6, &without));
        assert!(evidence.was_removed(&TaskId::new("t")) && evidence.index() == 6);
    }

    #[test]
    fn an_agent_that_goes_back_is_found() {
        let mut agents = Agents::default();
        agents.take("a", 1, 7, 5).unwrap();
        agents.take("a", 1, 7, 6).unwrap();
        agents.take("a", 2, 7, 5).unwrap();
        agents.take("a", 1, 8, 1).unwrap();
        let mut agents = Agents::default();
        agents.take("a", 1, 7, 6).unwrap();
        assert!(agents.take("a", 1, 7, 5).is_err());
    }
}
