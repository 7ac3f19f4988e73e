//! A slot: one replica's place, and the tasks that have been in it, oldest first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cx::Cx;
use crate::model::{DesiredState, NodeId, NodeState, Service, ServiceId, Task, TaskState};
use crate::store::{Store, Txn};

/// Which replica of its service a task is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SlotKey {
    /// The n-th of a replicated service, from 1.
    Number(u64),
    /// The one on this host, of a global service.
    Node(NodeId),
}

impl SlotKey {
    /// The slot of `task`.
    pub(crate) fn of(task: &Task) -> Self {
        if task.slot > 0 { SlotKey::Number(task.slot) } else { SlotKey::Node(task.node_id.clone()) }
    }
}

/// The slots of a service that any task is left of.
pub(crate) type Slots = BTreeMap<SlotKey, Slot>;

/// The tasks of one slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    /// By `ordinal`, oldest first.
    tasks: Vec<Arc<Task>>,
}

impl Slot {
    /// All slots of a service.
    pub(crate) fn all(store: &Store, service: &ServiceId) -> Slots {
        let mut slots = Slots::new();
        for task in store.tasks_of_service(service) {
            slots.entry(SlotKey::of(task)).or_default().tasks.push(task.clone());
        }
        for slot in slots.values_mut() {
            slot.tasks.sort_by(|a, b| (a.ordinal, &a.id).cmp(&(b.ordinal, &b.id)));
        }
        slots
    }

    /// Its tasks, oldest first.
    pub(crate) fn tasks(&self) -> &[Arc<Task>] {
        &self.tasks
    }

    /// Its newest task that is not about to be forgotten.
    pub(crate) fn newest(&self) -> Option<&Arc<Task>> {
        self.tasks.iter().rev().find(|t| t.desired() < DesiredState::Remove)
    }

    /// Whether the slot exists: it holds a task, wanted or past, that is not about to be forgotten.
    pub(crate) fn is_live(&self) -> bool {
        self.newest().is_some()
    }

    /// The tasks that the leader wants, oldest first.
    pub(crate) fn wanted(&self) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        self.tasks.iter().filter(|t| t.is_wanted())
    }

    /// The newest task that the leader wants.
    pub(crate) fn newest_wanted(&self) -> Option<&Arc<Task>> {
        self.wanted().next_back()
    }

    /// Whether a wanted task of it runs.
    pub(crate) fn is_running(&self) -> bool {
        self.wanted().any(|t| t.state() == TaskState::Running)
    }

    /// Changes those of its tasks that `which` picks, here and in the transaction.
    pub(crate) fn amend(&mut self, txn: &mut Txn, which: impl Fn(&Task) -> bool, change: impl Fn(&mut Task)) {
        for slot_task in self.tasks.iter_mut().filter(|t| which(t)) {
            let task = Arc::make_mut(slot_task);
            change(task);
            txn.put_task(task.clone());
        }
    }

    /// Adds a task made of the service's present spec. It waits as Ready until `release` lets it start.
    pub(crate) fn add_new(&mut self, cx: &mut Cx<'_>, txn: &mut Txn, service: &Service, key: &SlotKey) -> Arc<Task> {
        let mut task = Task {
            id: (cx.ids)().into(),
            spec: service.spec.task.clone(),
            spec_version: service.spec_version,
            service_id: service.id.clone(),
            service_name: service.spec.name.clone(),
            ports: service.spec.endpoint_spec().ports,
            ..Task::default()
        };
        match key {
            SlotKey::Number(number) => task.slot = *number,
            SlotKey::Node(node) => task.node_id = node.clone(),
        }
        self.add(cx, txn, task)
    }

    /// Adds a task like `old`, of the same version: only a rollout changes what a slot runs.
    pub(crate) fn add_successor(&mut self, cx: &mut Cx<'_>, txn: &mut Txn, old: &Task) -> Arc<Task> {
        let task = Task {
            id: (cx.ids)().into(),
            spec: old.spec.clone(),
            spec_version: old.spec_version,
            service_id: old.service_id.clone(),
            service_name: old.service_name.clone(),
            slot: old.slot,
            node_id: if old.slot > 0 { NodeId::default() } else { old.node_id.clone() },
            ports: old.ports.clone(),
            not_before: old.not_before,
            restarts: old.restarts.clone(),
            ..Task::default()
        };
        self.add(cx, txn, task)
    }

    fn add(&mut self, cx: &Cx<'_>, txn: &mut Txn, mut task: Task) -> Arc<Task> {
        task.ordinal = self.tasks.last().map_or(0, |t| t.ordinal) + 1;
        task.set_desired(DesiredState::Ready);
        task.status.set_state(TaskState::New);
        task.status.at = cx.now;
        task.status.message = "created".to_owned();
        txn.put_task(task.clone());
        let task = Arc::new(task);
        self.tasks.push(task.clone());
        task
    }
}

/// Whether the host is out of the game: its tasks are replaced, and do not hold up their successors.
pub(crate) fn host_is_lost(store: &Store, node: &NodeId) -> bool {
    store.node(node).is_none_or(|n| matches!(n.status.state(), NodeState::Down | NodeState::Disconnected))
}

/// Whether `task` may still run somewhere that can be waited for.
pub(crate) fn may_run(store: &Store, task: &Task) -> bool {
    task.is_placed() && !task.has_ended() && !host_is_lost(store, &task.node_id)
}

/// Whether `task` differs from what its service now wants a task to be.
///
/// An equal version settles it; otherwise the specs are compared, so that an update which changes nothing, or a
/// rollback to what still runs, restarts nothing (Docker's rule).
pub(crate) fn is_outdated(service: &Service, task: &Task) -> bool {
    use crate::model::PublishMode;
    if task.spec_version == service.spec_version {
        return false;
    }
    // Whoever has the image needs no other credentials for it: they are for the next task that pulls.
    let mut wanted = service.spec.task.clone();
    wanted.container.registry_auth.clone_from(&task.spec.container.registry_auth);
    if task.spec != wanted {
        return true;
    }
    let ports = service.spec.endpoint_spec().ports;
    let host = |p: &&crate::model::PortConfig| p.mode() == PublishMode::Host;
    let needs_ingress = ports.iter().any(|p| p.mode() == PublishMode::Ingress);
    let has_ingress = task.ports.iter().any(|p| p.mode() == PublishMode::Ingress);
    // A task without an address on the ingress network cannot serve a port that is published later.
    needs_ingress && !has_ingress || !ports.iter().filter(host).eq(task.ports.iter().filter(host))
}

/// Whether a slot still has to change: neither its newest task nor the newest one that is wanted is up to date.
/// (They differ when a start-first update failed: the old task stays, and the newest one is past.)
pub(crate) fn slot_is_outdated(service: &Service, slot: &Slot) -> bool {
    let outdated = |t: Option<&Arc<Task>>| t.is_none_or(|t| is_outdated(service, t));
    slot.is_live() && outdated(slot.newest()) && outdated(slot.newest_wanted())
}
