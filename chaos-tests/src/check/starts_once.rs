//! A removed task never starts, and no task starts twice: a further start is a new attempt, after the last one ended.
//!
//! A host that was removed from the cluster by force and does not know it yet may still start what it had. And one that
//! lost its manager before it heard that its task's end is known makes a new attempt, whatever the leader has decided by
//! then, until a set tells it.

use std::collections::{BTreeMap, BTreeSet};

use deploy::model::{NodeId, TaskId};
use deploy::store::{Key, Store};

use super::{Fact, Property};

/// See the file's first lines.
#[derive(Default)]
pub struct StartsOnce {
    latest: Store,
    /// And the revision without them.
    removed: BTreeMap<TaskId, u64>,
    /// Revision of the set that each host has.
    told: BTreeMap<NodeId, u64>,
    attempts: BTreeMap<TaskId, u32>,
    running: BTreeSet<TaskId>,
}

impl Property for StartsOnce {
    fn name(&self) -> &'static str {
        "a removed task never starts, none starts twice"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        if let Some(applied) = fact.first_applied() {
            self.latest = applied.after.clone();
            for key in applied.keys {
                if let Key::Task(id) = key
                    && applied.after.task(id).is_none()
                {
                    self.removed.insert(id.clone(), applied.after.revision());
                }
            }
        }
        match fact {
            Fact::Started { host, task, attempt } => {
                let id = &task.id;
                let knows = |revision: &u64| *attempt == 0 || self.told.get(*host).is_some_and(|told| told >= revision);
                if self.removed.get(id).is_some_and(knows) && self.latest.node(host).is_some() {
                    return Err(format!("task {id} started on {host} after it was removed"));
                }
                if self.attempts.get(id).is_some_and(|last| last >= attempt) {
                    return Err(format!("attempt {attempt} of task {id} started a second time on {host}"));
                }
                self.attempts.insert(id.clone(), *attempt);
                if !self.running.insert(id.clone()) {
                    return Err(format!("task {id} started on {host} while it ran"));
                }
            }
            Fact::TookSet { host, stamp } => {
                self.told.insert((*host).clone(), stamp.revision);
            }
            Fact::Ended { task } => {
                self.running.remove(*task);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, node, show, task};
    use super::*;
    use deploy::dispatcher::Stamp;

    fn started(property: &mut StartsOnce, attempt: u32) -> Result<(), String> {
        let (host, task) = (NodeId::new("h"), task("t", "s", "h"));
        property.observe(&Fact::Started { host: &host, task: &task, attempt })
    }

    #[test]
    fn a_start_after_the_removal_is_found() {
        let empty = changed(&Store::default(), |txn| txn.put_node(node("h")));
        let with = changed(&empty, |txn| txn.put_task(task("t", "s", "h")));
        let without = changed(&with, |txn| txn.remove_task(&TaskId::new("t")));
        let mut property = StartsOnce::default();
        show(&mut property, &empty, &with).unwrap();
        show(&mut property, &with, &without).unwrap();
        assert!(started(&mut property, 0).is_err());
        // A new attempt is made by who cannot know.
        started(&mut property, 1).unwrap();
        property.observe(&Fact::Ended { task: &TaskId::new("t") }).unwrap();
        let stamp = Stamp { revision: without.revision(), ..Stamp::default() };
        property.observe(&Fact::TookSet { host: &NodeId::new("h"), stamp }).unwrap();
        assert!(started(&mut property, 2).is_err());
    }

    #[test]
    fn a_second_start_is_found() {
        let mut property = StartsOnce::default();
        started(&mut property, 0).unwrap();
        assert!(started(&mut property, 1).is_err(), "while it ran");
        let mut property = StartsOnce::default();
        started(&mut property, 0).unwrap();
        property.observe(&Fact::Ended { task: &TaskId::new("t") }).unwrap();
        started(&mut property, 1).unwrap();
        property.observe(&Fact::Ended { task: &TaskId::new("t") }).unwrap();
        assert!(started(&mut property, 1).is_err(), "the same attempt");
    }
}
