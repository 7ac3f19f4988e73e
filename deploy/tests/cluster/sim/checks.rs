//! What must hold after every transaction; each is one thing that managers promise.

use std::collections::{BTreeMap, BTreeSet};

use deploy::brain;
use deploy::cx::{Cx, Limits};
use deploy::model::{NodeAvailability, NodeState, ServiceId, Task, TaskState, UpdateOrder};
use deploy::scheduler::Constraint;
use deploy::store::{Store, Txn};

use super::{Rng, Sim};

/// What is checked beside what is always checked.
pub(crate) struct Checks {
    /// A pass over what was touched equals a pass over everything.
    pub(crate) incremental: bool,
    /// At most this many slots of a service may be without a running task, by service name.
    pub(crate) most_down: BTreeMap<String, usize>,
    /// Services whose updates start first, or did so once: what such an update began may still be there.
    start_first: BTreeSet<ServiceId>,
}

impl Default for Checks {
    fn default() -> Self {
        Self { incremental: true, most_down: BTreeMap::new(), start_first: BTreeSet::new() }
    }
}

impl Sim {
    pub(crate) fn compare_with_full_pass(&self, before: &Store, requested: Txn, found: &Txn, mut rng: Rng) {
        // The request itself drew ids; what the pass draws must come out the same, so it starts where that ended.
        let drawn = self.ids_drawn_by_request(before, &requested);
        for _ in 0..drawn {
            rng.id();
        }
        let mut full = requested;
        let mut ids = || rng.id();
        brain::pass(&mut Cx { now: self.now, ids: &mut ids, limits: Limits::default() }, &mut full);
        let same = found.finish(self.term) == full.finish(self.term);
        let (found, full) = (self.describe(found), self.describe(&full));
        assert!(same, "a pass over what was touched gives\n{found}a full one gives\n{full}");
    }

    /// What a transaction changes, in short.
    fn describe(&self, txn: &Txn) -> String {
        let mut out = String::new();
        for key in txn.touched() {
            match key {
                deploy::store::Key::Task(id) => {
                    for (when, task) in [("was", txn.base().task(id)), ("is", txn.task(id))] {
                        let Some(t) = task else { continue };
                        let (state, desired, err) = (t.state(), t.desired(), &t.status.err);
                        let name = format!("{}.{}#{}", t.service_name, t.slot, t.ordinal);
                        out += &format!("{name} {when} {state:?} {desired:?} {} {err}\n", self.hostname(&t.node_id));
                    }
                }
                deploy::store::Key::Service(id) => {
                    let status = txn.service(id).map(|s| s.update_status.clone());
                    out += &format!("{key}: {status:?}\n");
                }
                key => out += &format!("{key}\n"),
            }
        }
        out
    }

    /// Objects that the request made.
    fn ids_drawn_by_request(&self, before: &Store, requested: &Txn) -> usize {
        use deploy::store::Key;
        let new = |key: &&Key| {
            matches!(key, Key::Service(_) | Key::Network(_) | Key::Secret(_) | Key::Config(_) | Key::Registry(_))
                && before.version_of(key) == 0
        };
        requested.touched().iter().filter(new).count()
    }

    pub(crate) fn check_second_pass(&self) {
        let mut txn = Txn::new(&self.store, self.now);
        let mut rng = Rng::new(99);
        let mut ids = || rng.id();
        brain::pass(&mut Cx { now: self.now, ids: &mut ids, limits: Limits::default() }, &mut txn);
        assert!(txn.touched().is_empty(), "a second pass changes something: {}", self.describe(&txn));
    }

    pub(crate) fn check_transition(&mut self, before: &Store) {
        self.note_start_first();
        assert_eq!(self.store.invariants(), Vec::<String>::new());
        for task in self.store.tasks() {
            let Some(old) = before.task(&task.id) else { continue };
            assert!(task.state() >= old.state(), "observed state went back: {old:?} {task:?}");
            assert!(task.desired() >= old.desired(), "desired state went back: {old:?} {task:?}");
            let moved = !old.node_id.is_none() && old.node_id != task.node_id;
            assert!(!moved, "a task moved: {old:?} {task:?}");
        }
        self.check_placement(before);
        self.check_capacity();
        self.check_slots();
    }

    fn check_placement(&self, before: &Store) {
        let placed = |t: &&std::sync::Arc<Task>| {
            t.state() == TaskState::Assigned && before.task(&t.id).is_none_or(|old| !old.is_placed())
        };
        for task in self.store.tasks().filter(placed) {
            let node = self.store.node(&task.node_id).expect("the task's node");
            assert_eq!(node.status.state(), NodeState::Ready);
            assert_eq!(node.spec.availability(), NodeAvailability::Active);
            for text in &task.spec.placement.constraints {
                assert!(Constraint::parse(text).expect("valid").matches(node), "{text} on {}", node.id);
            }
        }
    }

    fn check_capacity(&self) {
        for node in self.store.nodes() {
            let tasks = || self.store.tasks_on_node(&node.id).filter(|t| t.is_placed() && !t.has_ended());
            let memory: u64 = tasks().map(|t| t.spec.resources.reservations.memory_bytes).sum();
            assert!(memory <= node.description.resources.memory_bytes, "{} is over-committed", node.id);
        }
    }

    fn check_slots(&self) {
        let mut wanted: BTreeMap<(ServiceId, String), Vec<&Task>> = BTreeMap::new();
        for task in self.store.tasks().filter(|t| t.is_wanted()) {
            let slot = match task.slot {
                0 => task.node_id.to_string(),
                n => n.to_string(),
            };
            wanted.entry((task.service_id.clone(), slot)).or_default().push(task);
        }
        for ((service, slot), tasks) in &wanted {
            let Some(service) = self.store.service(service) else { panic!("a removed service wants {tasks:?}") };
            let most = if self.may_overlap(&service.id) { 2 } else { 1 };
            assert!(tasks.len() <= most, "{} has {} wanted tasks in slot {slot}", service.spec.name, tasks.len());
        }
        for (name, most) in &self.checks.most_down {
            let service = self.service(name);
            let wanted = wanted.iter().filter(|((id, _), _)| *id == service.id);
            let down = wanted.filter(|(_, tasks)| !tasks.iter().any(|t| t.state() == TaskState::Running)).count();
            assert!(down <= *most, "{down} slots of {name} are down at once");
        }
    }

    /// Whether an update of the service lets, or once let, two tasks of a slot run at once.
    fn may_overlap(&self, service: &ServiceId) -> bool {
        self.checks.start_first.contains(service)
    }

    fn note_start_first(&mut self) {
        let start_first = |s: &&std::sync::Arc<deploy::model::Service>| {
            let configs = [&s.spec.update, &s.spec.rollback];
            configs.into_iter().flatten().any(|c| c.order() == UpdateOrder::StartFirst)
        };
        self.checks.start_first.extend(self.store.services().filter(start_first).map(|s| s.id.clone()));
    }

    /// The container of `task` just started: no other of its slot may run on a host that the cluster has in sight.
    pub(crate) fn check_one_container_a_slot(&self, task: &Task) {
        if self.may_overlap(&task.service_id) {
            return;
        }
        let in_sight = |host: &&super::Host| {
            self.store.node(&host.id).is_some_and(|n| n.status.state() == NodeState::Ready) && host.connected
        };
        let others = self.hosts.values().filter(in_sight).flat_map(|h| h.running.iter().map(move |id| &h.tasks[id]));
        for other in others.map(|l| l.task()).filter(|t| t.id != task.id && t.service_id == task.service_id) {
            let same_slot = task.slot > 0 && other.slot == task.slot || task.slot == 0 && other.node_id == task.node_id;
            // A host that came back may still be stopping what was replaced while it was away.
            let replaced_while_away =
                self.store.task(&other.id).is_none_or(|t| t.ordinal > task.ordinal) || self.away_since_replaced(other);
            assert!(!same_slot || replaced_while_away, "{} and {} run in one slot", task.id, other.id);
        }
    }

    /// Whether the host of `task` was Down after the task was taken back.
    fn away_since_replaced(&self, task: &Task) -> bool {
        self.store.node(&task.node_id).is_some_and(|n| n.status.since >= self.store_time_of(task))
    }

    fn store_time_of(&self, task: &Task) -> deploy::model::Timestamp {
        self.store.task(&task.id).map(|t| t.meta.updated_at).unwrap_or_default()
    }
}
