//! At most one task of a slot is wanted, and at most one container of it runs, on hosts that are not Down; two while a
//! start-first update goes on.
//!
//! A container on a host that was Down since it started is excused before those on other hosts: it may run until its host is
//! back. So is a new attempt that a host without a manager makes by itself, because it does not know whether anybody heard of
//! the end of the one before: the leader that did has given the slot to another task by then. On one host nothing is
//! excused: what is to stop there has ended before anything else of its slot starts.

use std::collections::{BTreeMap, BTreeSet};

use deploy::model::{NodeId, Service, ServiceId, Task, TaskId, UpdateOrder};
use deploy::store::{Key, Store};

use super::{Fact, Property, is_lost, slot_of};

/// See the file's first lines.
#[derive(Default)]
pub struct OnePerSlot {
    latest: Store,
    /// Services whose updates start first, or once did: what such an update began may still be there.
    start_first: BTreeSet<ServiceId>,
    /// Hosts that were lost at some time.
    once_lost: BTreeSet<NodeId>,
    running: BTreeMap<TaskId, Container>,
}

struct Container {
    host: NodeId,
    service: ServiceId,
    slot: String,
    attempt: u32,
    excused: bool,
}

impl Property for OnePerSlot {
    fn name(&self) -> &'static str {
        "at most one task of a slot is wanted and runs"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        if let Some(applied) = fact.first_applied() {
            self.latest = applied.after.clone();
            return applied.keys.iter().try_for_each(|key| self.changed(applied.before, key));
        }
        match fact {
            Fact::Started { host, task, attempt } => self.started(host, task, *attempt),
            Fact::Ended { task } => {
                self.running.remove(task);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl OnePerSlot {
    fn changed(&mut self, before: &Store, key: &Key) -> Result<(), String> {
        match key {
            Key::Service(id) => {
                let services = [before.service(id), self.latest.service(id)];
                if services.into_iter().flatten().any(|service| starts_first(service)) {
                    self.start_first.insert(id.clone());
                }
            }
            Key::Node(id) if is_lost(&self.latest, id) => {
                self.once_lost.insert(id.clone());
                self.running.values_mut().filter(|c| c.host == *id).for_each(|c| c.excused = true);
            }
            Key::Task(id) => {
                // The word of the attempt before: it was heard after all.
                if self.latest.task(id).is_none_or(|task| task.has_ended())
                    && let Some(container) = self.running.get_mut(id)
                {
                    container.excused |= container.attempt > 0;
                }
                if let Some(task) = self.latest.task(id).filter(|t| t.is_wanted() && !t.is_attachment()) {
                    return self.check_wanted(task);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check_wanted(&self, task: &Task) -> Result<(), String> {
        let slot = slot_of(task);
        let there = |t: &&std::sync::Arc<Task>| {
            t.is_wanted() && slot_of(t) == slot && (t.node_id.is_none() || !is_lost(&self.latest, &t.node_id))
        };
        let wanted: Vec<&TaskId> =
            self.latest.tasks_of_service(&task.service_id).filter(there).map(|t| &t.id).collect();
        if wanted.len() > self.most(&task.service_id) {
            return Err(format!("slot {slot} of service {} has the wanted tasks {wanted:?}", task.service_name));
        }
        Ok(())
    }

    fn started(&mut self, host: &NodeId, task: &Task, attempt: u32) -> Result<(), String> {
        let taken_back = self.latest.task(&task.id).is_none_or(|t| !t.is_wanted());
        let unheard = attempt > 0 || self.once_lost.contains(host);
        let excused = is_lost(&self.latest, host) || taken_back && unheard;
        let slot = slot_of(task);
        let of_slot =
            |(id, c): &(&TaskId, &Container)| **id != task.id && c.service == task.service_id && c.slot == slot;
        let counts = |(_, c): &(&TaskId, &Container)| c.host == *host || !c.excused && !excused;
        let others = self.running.iter().filter(of_slot).filter(counts);
        let others: Vec<String> = others.map(|(id, c)| format!("{id} on {}", c.host)).collect();
        if others.len() + 1 > self.most(&task.service_id) {
            return Err(format!(
                "{} started on {host} in slot {slot} of service {}, where {others:?} run",
                task.id, task.service_name
            ));
        }
        let container = Container { host: host.clone(), service: task.service_id.clone(), slot, attempt, excused };
        self.running.insert(task.id.clone(), container);
        Ok(())
    }

    fn most(&self, service: &ServiceId) -> usize {
        if self.start_first.contains(service) { 2 } else { 1 }
    }
}

fn starts_first(service: &Service) -> bool {
    let specs = [Some(&service.spec), service.previous_spec.as_ref()];
    let mut configs = specs.into_iter().flatten().flat_map(|s| [&s.update, &s.rollback]).flatten();
    configs.any(|c| c.order() == UpdateOrder::StartFirst)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, node, service, show, task};
    use super::*;
    use deploy::model::{DesiredState, NodeState, TaskState, UpdateConfig};

    fn cluster(start_first: bool) -> Store {
        changed(&Store::default(), |txn| {
            let mut web = service("web");
            if start_first {
                let mut update = UpdateConfig::default();
                update.set_order(UpdateOrder::StartFirst);
                web.spec.update = Some(update);
            }
            txn.put_service(web);
            txn.put_node(node("a"));
            txn.put_node(node("b"));
        })
    }

    fn two_wanted(start_first: bool) -> Result<(), String> {
        let mut property = OnePerSlot::default();
        let before = cluster(start_first);
        show(&mut property, &Store::default(), &before)?;
        let after = changed(&before, |txn| {
            txn.put_task(task("t1", "web", "a"));
            txn.put_task(task("t2", "web", "b"));
        });
        show(&mut property, &before, &after)
    }

    #[test]
    fn two_wanted_tasks_are_found() {
        assert!(two_wanted(false).is_err());
        assert!(two_wanted(true).is_ok(), "start-first");
    }

    fn two_containers(lost: bool) -> Result<(), String> {
        let mut property = OnePerSlot::default();
        let before = cluster(false);
        show(&mut property, &Store::default(), &before)?;
        let (first, second) = (task("t1", "web", "a"), task("t2", "web", "b"));
        property.observe(&Fact::Started { host: &first.node_id, task: &first, attempt: 0 })?;
        if lost {
            let mut down = node("a");
            down.status.set_state(NodeState::Down);
            let after = changed(&before, |txn| txn.put_node(down));
            show(&mut property, &before, &after)?;
        }
        property.observe(&Fact::Started { host: &second.node_id, task: &second, attempt: 0 })
    }

    /// The store says that the first one has ended, and one of its attempts runs all the same when the second one starts.
    fn replaced(attempt: u32, heard_late: bool, on: &str) -> Result<(), String> {
        let mut property = OnePerSlot::default();
        let before = cluster(false);
        show(&mut property, &Store::default(), &before)?;
        let (first, second) = (task("t1", "web", "a"), task("t2", "web", on));
        let after = changed(&before, |txn| {
            let mut ended = first.clone();
            ended.status.set_state(TaskState::Failed);
            ended.set_desired(DesiredState::Shutdown);
            txn.put_task(ended);
        });
        let started = Fact::Started { host: &first.node_id, task: &first, attempt };
        if heard_late {
            let known = changed(&before, |txn| txn.put_task(first.clone()));
            show(&mut property, &before, &known)?;
            property.observe(&started)?;
            show(&mut property, &known, &after)?;
        } else {
            show(&mut property, &before, &after)?;
            property.observe(&started)?;
        }
        property.observe(&Fact::Started { host: &second.node_id, task: &second, attempt: 0 })
    }

    #[test]
    fn only_an_attempt_that_a_host_made_by_itself_is_excused_when_its_task_was_replaced() {
        for heard_late in [false, true] {
            assert!(replaced(0, heard_late, "b").is_err());
            assert!(replaced(1, heard_late, "b").is_ok());
            assert!(replaced(1, heard_late, "a").is_err(), "it knows of both");
        }
    }

    #[test]
    fn two_containers_are_found() {
        assert!(two_containers(false).is_err());
        assert!(two_containers(true).is_ok(), "the first is on a lost host");
    }
}
