//! No host is given more than it has: what its tasks reserved fits into it.

use std::collections::BTreeSet;

use deploy::model::NodeId;
use deploy::store::Key;

use super::{Fact, Property};

/// See the file's first line.
pub struct Capacity;

impl Property for Capacity {
    fn name(&self) -> &'static str {
        "no host is given more than it has"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(applied) = fact.first_applied() else { return Ok(()) };
        let store = applied.after;
        let placed = |key: &Key| match key {
            Key::Task(id) => store.task(id).filter(|t| t.is_placed() && !t.has_ended()).map(|t| t.node_id.clone()),
            _ => None,
        };
        let hosts: BTreeSet<NodeId> = applied.keys.iter().filter_map(placed).collect();
        for node in hosts.iter().filter_map(|id| store.node(id)) {
            let (mut cpus, mut memory) = (0, 0);
            for task in store.tasks_on_node(&node.id).filter(|t| t.is_placed() && !t.has_ended()) {
                cpus += task.spec.resources.reservations.nano_cpus;
                memory += task.spec.resources.reservations.memory_bytes;
            }
            let has = &node.description.resources;
            if cpus > has.nano_cpus || memory > has.memory_bytes {
                return Err(format!("node {} has {has:?}, but its tasks reserved {cpus} and {memory}", node.id));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, node, show, task};
    use super::*;
    use deploy::store::Store;

    fn with_tasks(count: usize) -> Result<(), String> {
        let store = changed(&Store::default(), |txn| {
            txn.put_node(node("a"));
            for number in 0..count {
                let mut task = task(&format!("t{number}"), "web", "a");
                task.spec.resources.reservations.memory_bytes = 400 << 20;
                txn.put_task(task);
            }
        });
        show(&mut Capacity, &Store::default(), &store)
    }

    #[test]
    fn too_much_is_found() {
        with_tasks(2).unwrap();
        assert!(with_tasks(3).is_err());
    }
}
