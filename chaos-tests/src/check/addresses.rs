//! No two that run are connected with one address of one network at a time, and the place of a plain container that runs is
//! not given to anybody else.
//!
//! Excused is who the cluster has given up: on a host that it has removed, or that was away for a day; and a task's attempt that
//! its host made by itself when the leader knew that the task had ended, which has given back its address.

use std::collections::{BTreeMap, BTreeSet};

use deploy::model::{NetworkAttachment, NetworkId, NodeId, TaskId, TaskState};
use deploy::store::{Key, Store};

use super::{Applied, Fact, Property, is_lost};

/// See the file's first lines.
#[derive(Default)]
pub struct Addresses {
    connected: BTreeMap<TaskId, Connected>,
    /// Who was given up.
    given_up: BTreeSet<TaskId>,
    latest: Store,
}

struct Connected {
    host: NodeId,
    plain: bool,
    places: Vec<(NetworkId, String)>,
}

impl Property for Addresses {
    fn name(&self) -> &'static str {
        "an address has one user, who holds it"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        if let Some(applied) = fact.first_applied() {
            self.latest = applied.after.clone();
            return applied.keys.iter().try_for_each(|key| self.changed(applied, key));
        }
        match fact {
            Fact::Started { host, task, .. } => self.connect(host, &task.id, &task.attachments, false),
            Fact::Joined { host, place, attachments } => self.connect(host, place, attachments, true),
            Fact::Ended { task: id } | Fact::Left { place: id } => {
                self.connected.remove(*id);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Addresses {
    fn changed(&mut self, applied: &Applied<'_>, key: &Key) -> Result<(), String> {
        let Key::Task(id) = key else { return Ok(()) };
        let (before, after) = (applied.before.task(id), applied.after.task(id));
        let Some(before) = before.filter(|_| after.is_none_or(|task| task.has_ended())) else { return Ok(()) };
        // The place of a plain container is forgotten in the entry that gives it up.
        let orphaned = after.is_some_and(|task| task.state() == TaskState::Orphaned);
        if orphaned || before.is_attachment() && is_lost(&self.latest, &before.node_id) {
            self.given_up.insert(id.clone());
        }
        match self.connected.get(id).filter(|connected| connected.plain && !self.given_up.contains(id)) {
            Some(connected) => Err(format!("{id} on {} is connected, and its place is gone", connected.host)),
            None => Ok(()),
        }
    }

    fn connect(
        &mut self,
        host: &NodeId,
        id: &TaskId,
        attachments: &[NetworkAttachment],
        plain: bool,
    ) -> Result<(), String> {
        let places = attachments.iter().map(|at| (at.network.clone(), at.address.clone())).collect();
        let connected = Connected { host: host.clone(), plain, places };
        let twice = self.connected.iter().find(|(other, known)| {
            *other != id
                && known.places.iter().any(|place| connected.places.contains(place))
                && !self.is_excused(other, known)
        });
        if let Some((other, known)) = twice
            && !self.is_excused(id, &connected)
        {
            return Err(format!("{id} on {host} has an address of {other} on {}: {:?}", known.host, connected.places));
        }
        self.connected.insert(id.clone(), connected);
        Ok(())
    }

    fn is_excused(&self, id: &TaskId, connected: &Connected) -> bool {
        let ended = || self.latest.task(id).is_none_or(|task| task.has_ended());
        self.given_up.contains(id) || self.latest.node(&connected.host).is_none() || !connected.plain && ended()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, node, show, task};
    use super::*;
    use deploy::model::Task;

    fn attached(id: &str, host: &str) -> Task {
        let attachment =
            NetworkAttachment { network: NetworkId::new("n"), address: "10.0.0.5/24".into(), ..Default::default() };
        Task { attachments: vec![attachment], ..task(id, "web", host) }
    }

    /// Two tasks with one address, of which the first has become something else when the second joins.
    fn two(change: impl FnOnce(&mut Task)) -> Result<(), String> {
        let (first, second) = (attached("t1", "a"), attached("t2", "b"));
        let mut property = Addresses::default();
        let before = changed(&Store::default(), |txn| {
            txn.put_node(node("a"));
            txn.put_node(node("b"));
            txn.put_task(first.clone());
            txn.put_task(second.clone());
        });
        show(&mut property, &Store::default(), &before)?;
        property.observe(&Fact::Joined { host: &first.node_id, place: &first.id, attachments: &first.attachments })?;
        let mut changed_task = first.clone();
        change(&mut changed_task);
        let after = changed(&before, |txn| txn.put_task(changed_task));
        show(&mut property, &before, &after)?;
        let joined = Fact::Joined { host: &second.node_id, place: &second.id, attachments: &second.attachments };
        property.observe(&joined)?;
        property.observe(&Fact::Left { place: &first.id })
    }

    #[test]
    fn one_address_in_two_places_is_found_unless_one_was_given_up() {
        assert!(two(|_| ()).is_err());
        assert!(two(|task| task.status.set_state(TaskState::Orphaned)).is_ok());
    }

    #[test]
    fn a_place_that_goes_while_it_is_used_is_found() {
        let error = two(|task| task.status.set_state(TaskState::Shutdown)).unwrap_err();
        assert!(error.contains("its place is gone"), "{error}");
    }
}
