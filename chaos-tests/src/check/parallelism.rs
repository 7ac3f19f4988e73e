//! An update has at most as many slots on the way from the old version to the new as its parallelism allows, also
//! across leader changes.
//!
//! A slot is on the way while its wanted task is of the service's present version, does not run yet, and follows one of
//! another version; an update that overtakes another takes over what that one left on the way. (Restarts and lost hosts
//! make successors of the *same* version and do not count; nor do global services, where a host that comes back in the
//! middle of an update is given a task of the present version, too.)

use std::collections::{BTreeMap, BTreeSet};

use deploy::model::{DesiredState, Service, ServiceId, Task, TaskState};
use deploy::store::{Key, Store};

use super::{Fact, Property, slot_of};

/// See the file's first lines.
#[derive(Default)]
pub struct Parallelism {
    /// The most that any spec of a service ever allowed: a user may lower it while more are on the way.
    most: BTreeMap<ServiceId, u64>,
}

impl Property for Parallelism {
    fn name(&self) -> &'static str {
        "update parallelism is respected"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(applied) = fact.first_applied() else { return Ok(()) };
        let mut services = BTreeSet::new();
        for key in applied.keys {
            match key {
                Key::Service(id) => {
                    if let Some(service) = applied.after.service(id) {
                        let most = self.most.entry(id.clone()).or_default();
                        *most = allowed(service).max(*most);
                    }
                    services.insert(id.clone());
                }
                Key::Task(id) => services.extend(applied.after.task(id).map(|t| t.service_id.clone())),
                _ => {}
            }
        }
        for service in services.iter().filter_map(|id| applied.after.service(id)) {
            let on_the_way = on_the_way(applied.after, service);
            let most = self.most.get(&service.id).copied().unwrap_or_else(|| allowed(service));
            if on_the_way.len() as u64 > most {
                return Err(format!(
                    "the slots {on_the_way:?} of service {} change at once, {most} may: {:?}",
                    service.spec.name, service.update_status
                ));
            }
        }
        Ok(())
    }
}

fn allowed(service: &Service) -> u64 {
    let configs = [&service.spec.update, &service.spec.rollback].map(|c| c.clone().unwrap_or_default());
    let most = configs.iter().map(|c| match c.slots_at_a_time() {
        0 => u64::MAX,
        most => most,
    });
    most.max().unwrap_or(u64::MAX)
}

fn on_the_way(store: &Store, service: &Service) -> BTreeSet<String> {
    let mut slots: BTreeMap<String, Vec<&Task>> = BTreeMap::new();
    for task in store.tasks_of_service(&service.id).filter(|t| t.slot > 0) {
        slots.entry(slot_of(task)).or_default().push(task);
    }
    let changes = |tasks: &mut Vec<&Task>| {
        tasks.sort_by_key(|t| t.ordinal);
        tasks.windows(2).any(|pair| {
            let [old, new] = pair else { return false };
            new.is_wanted()
                && new.spec_version == service.spec_version
                && new.state() < TaskState::Running
                && old.desired() < DesiredState::Remove
                && old.spec_version != new.spec_version
                // One that stood between them, and was forgotten, may have been of the new version.
                && old.ordinal + 1 == new.ordinal
        })
    };
    slots.iter_mut().filter_map(|(slot, tasks)| changes(tasks).then(|| slot.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, service, show, task};
    use super::*;

    fn changing(slots: u64) -> Result<(), String> {
        let store = changed(&Store::default(), |txn| {
            let mut web = service("web");
            web.spec_version = 2;
            txn.put_service(web);
            for slot in 1..=slots {
                let mut old = Task { slot, ..task(&format!("old{slot}"), "web", "a") };
                old.set_desired(DesiredState::Shutdown);
                let mut new = Task { slot, ordinal: 2, spec_version: 2, ..task(&format!("new{slot}"), "web", "a") };
                new.status.set_state(TaskState::Preparing);
                txn.put_task(old);
                txn.put_task(new);
            }
        });
        show(&mut Parallelism::default(), &Store::default(), &store)
    }

    #[test]
    fn too_many_at_once_are_found() {
        changing(1).unwrap();
        assert!(changing(2).is_err());
    }
}
