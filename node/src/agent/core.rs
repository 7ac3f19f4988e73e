//! The agent's decisions, pure: which tasks this host has, what is to be done for them next, what the cluster must be
//! told. The loop around it carries out and feeds back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use deploy::control::TaskReport;
use deploy::dispatcher::{AssignmentSet, Item, Progress, Stamp, Update};
use deploy::lifecycle::{Action, Event, Found, Lifecycle};
use deploy::model::{DesiredState, Task, TaskId, TaskState, TaskStatus, Timestamp};
use overlay_net::Desired;
use prost::encoding::message;

use super::network::Networks;
use super::payloads::is_payload;
use super::plain::Given;
use crate::datadir::ManagerRecord;

/// Reports in one batch; more wait for the next.
const BATCH: usize = 256;

/// Something that the loop must do for a task.
pub(super) type Step = (TaskId, Action);

/// What outlives the daemon: the last assignment set, and what was observed of its tasks.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Memory {
    /// Stamp of the set.
    #[prost(message, required, tag = "1")]
    pub(super) stamp: Stamp,
    /// The set.
    #[prost(message, repeated, tag = "2")]
    pub(super) items: Vec<Item>,
    /// The tasks of this host, as far as they are not gone.
    #[prost(message, repeated, tag = "3")]
    pub(super) tasks: Vec<RememberedTask>,
}

/// What is to be remembered at one moment. Cheap to make and to compare: the set is shared, not copied.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    stamp: Stamp,
    set: AssignmentSet,
    tasks: Vec<RememberedTask>,
}

impl Snapshot {
    /// Whether both would be remembered as the same.
    pub(super) fn is(&self, other: &Snapshot) -> bool {
        self.stamp == other.stamp && self.set.is(&other.set) && self.tasks == other.tasks
    }

    fn items(&self) -> impl Iterator<Item = &Item> {
        self.set.items().filter(|item| !is_payload(item))
    }

    /// The bytes of [`Memory`], without a copy of every item.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        message::encode(1, &self.stamp, &mut bytes);
        self.items().for_each(|item| message::encode(2, item, &mut bytes));
        self.tasks.iter().for_each(|task| message::encode(3, task, &mut bytes));
        bytes
    }
}

#[cfg(test)]
impl From<Memory> for Snapshot {
    fn from(Memory { stamp, items, tasks }: Memory) -> Self {
        Snapshot { stamp, set: AssignmentSet::new(items), tasks }
    }
}

/// A task and what was observed of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RememberedTask {
    /// The task.
    #[prost(message, required, tag = "1")]
    task: Task,
    /// Its status.
    #[prost(message, required, tag = "2")]
    status: TaskStatus,
}

/// What an update leads to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Taken {
    /// Containers that run, that the memory did not know, and whose tasks are known now: they are to be looked after.
    /// Before the steps, which may be about them.
    pub(super) adopted: Vec<(Task, String)>,
    /// What is to be done.
    pub(super) steps: Vec<Step>,
}

/// Why an update was not taken over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UpdateRefused {
    /// It is older than what was seen. The manager lags; another one may not.
    #[error("the assignments are older than those that this node has seen")]
    Older,
    /// It is a difference to something that this agent does not have. A new session begins with the whole set.
    #[error("the assignments do not follow from those that this node has")]
    Gap,
}

/// The agent's state.
pub(super) struct Core {
    stamp: Stamp,
    set: AssignmentSet,
    networks: Networks,
    tasks: BTreeMap<TaskId, Lifecycle>,
    /// Containers of tasks that the memory did not know; the first full set says whose they are.
    found: BTreeMap<TaskId, Found>,
    /// Tasks that are not this host's, and of which something is being removed.
    nobodys: BTreeSet<TaskId>,
    connected: bool,
    /// The set is what a manager has said, and not only what was remembered.
    told: bool,
    unreported: BTreeSet<TaskId>,
    in_flight: Option<(u64, BTreeMap<TaskId, TaskStatus>)>,
    next_batch: u64,
    timers: BTreeSet<(Timestamp, TaskId)>,
}

impl Core {
    /// Begins with what was remembered and what containers were found.
    pub(super) fn start(memory: Memory, mut found: BTreeMap<TaskId, Found>, now: Timestamp) -> (Self, Vec<Step>) {
        let mut core = Self {
            stamp: memory.stamp,
            set: AssignmentSet::new(memory.items),
            networks: Networks::default(),
            tasks: BTreeMap::new(),
            found: BTreeMap::new(),
            nobodys: BTreeSet::new(),
            connected: false,
            told: false,
            unreported: BTreeSet::new(),
            in_flight: None,
            next_batch: 1,
            timers: BTreeSet::new(),
        };
        let mut steps = Vec::new();
        let assigned: BTreeSet<TaskId> = core.set.tasks().map(|assignment| assignment.task.id.clone()).collect();
        for RememberedTask { mut task, status } in memory.tasks {
            let id = task.id.clone();
            // One that the set does not name any more was being stopped and removed; that goes on.
            let withdrawn = !assigned.contains(&id);
            if withdrawn {
                task.set_desired(DesiredState::Remove);
            }
            let found = found.remove(&id).unwrap_or(Found::Nothing);
            let (life, actions) = Lifecycle::resumed(task, status, found, false, now);
            core.tasks.insert(id.clone(), life);
            core.take(&id, actions, &mut steps);
            if withdrawn {
                core.handle(&id, Event::Withdrawn, now, &mut steps);
            }
        }
        core.found = found;
        (core, steps)
    }

    /// What is to be remembered.
    pub(super) fn snapshot(&self) -> Snapshot {
        let tasks = self.tasks.values().filter(|life| !life.is_gone());
        let remembered = |life: &Lifecycle| RememberedTask { task: life.task().clone(), status: life.status().clone() };
        Snapshot { stamp: self.stamp, set: self.set.clone(), tasks: tasks.map(remembered).collect() }
    }

    /// The assignment set.
    pub(super) fn set(&self) -> &AssignmentSet {
        &self.set
    }

    /// Its stamp.
    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Places of this host's plain containers on networks.
    pub(super) fn places(&self) -> Given {
        let places = self.set.tasks().map(|assignment| &assignment.task).filter(|task| task.is_attachment());
        let places = places.map(|task| (task.id.clone(), task.attachments.clone())).collect();
        Given { told: self.told, places }
    }

    /// A task of this host, as the cluster last described it.
    pub(super) fn task(&self, id: &TaskId) -> Option<&Task> {
        self.tasks.get(id).map(Lifecycle::task)
    }

    /// All tasks of this host and what was observed of them.
    pub(super) fn states(&self) -> Vec<(TaskId, TaskState)> {
        self.tasks.iter().map(|(id, life)| (id.clone(), life.status().state())).collect()
    }

    /// The state of each task of this host.
    pub(super) fn task_states(&self) -> impl Iterator<Item = TaskState> {
        self.tasks.values().map(|life| life.status().state())
    }

    /// Tasks of this host that others may be led to: they run, are healthy, and are not to stop.
    pub(super) fn serving(&self) -> BTreeSet<TaskId> {
        let wanted = |id: &TaskId| self.tasks.get(id).is_some_and(|life| life.task().is_wanted());
        self.tasks.keys().filter(|id| self.is_healthy(id) && wanted(id)).cloned().collect()
    }

    /// Whether a task runs for the cluster, and was not found unhealthy.
    pub(super) fn is_healthy(&self, id: &TaskId) -> bool {
        let healthy = |life: &Lifecycle| life.status().state() == TaskState::Running && !life.status().unhealthy;
        self.tasks.get(id).is_some_and(healthy)
    }

    /// Whether nothing is left of any task.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.nobodys.is_empty()
    }

    /// The cluster's managers.
    pub(super) fn managers(&self) -> Vec<ManagerRecord> {
        let managers = self.set.peers().filter(|peer| peer.manager && !peer.control_addr.is_empty());
        managers.map(|peer| ManagerRecord { node_id: peer.id.to_string(), addr: peer.control_addr.clone() }).collect()
    }

    /// Where each host is reached.
    pub(super) fn hosts(&self) -> BTreeMap<String, String> {
        let reached = self.set.peers().filter(|peer| !peer.control_addr.is_empty());
        reached.map(|peer| (peer.id.to_string(), peer.control_addr.clone())).collect()
    }

    /// Hosts that were removed and whose certificates have not run out.
    pub(super) fn removed_nodes(&self) -> Vec<String> {
        self.set.removed().map(|removed| removed.id.to_string()).collect()
    }

    /// Where VXLAN packets to each host go.
    pub(super) fn data_paths(&self) -> BTreeMap<String, Ipv4Addr> {
        self.set.peers().filter_map(|peer| Some((peer.id.to_string(), peer.data_path_addr.parse().ok()?))).collect()
    }

    /// Hosts that managers hear from though gossip calls them dead.
    pub(super) fn gossip_blocked(&self) -> BTreeSet<String> {
        self.set.peers().filter(|peer| peer.is_gossip_blocked()).map(|peer| peer.id.to_string()).collect()
    }

    /// The networks that the set tells of.
    pub(super) fn networks(&mut self) -> Desired {
        let serving = self.serving();
        self.networks.desired(&self.set, self.stamp.revision, &serving)
    }

    /// Takes over what a manager sent.
    pub(super) fn update(&mut self, update: Update, now: Timestamp) -> Result<Taken, UpdateRefused> {
        if update.stamp.is_older_than(&self.stamp) {
            return Err(UpdateRefused::Older);
        }
        match update.base {
            None => self.set = AssignmentSet::new(update.delta.put),
            Some(base) if base == self.stamp => self.set.apply(update.delta),
            Some(_) => return Err(UpdateRefused::Gap),
        }
        self.stamp = update.stamp;
        self.told = true;
        Ok(self.reconcile(now))
    }

    fn reconcile(&mut self, now: Timestamp) -> Taken {
        let (mut adopted, mut steps) = (Vec::new(), Vec::new());
        let assigned: Vec<_> = self.set.tasks().cloned().collect();
        let mut wanted = BTreeSet::new();
        // The place of a plain container on a network is nothing to run.
        for assignment in assigned.into_iter().filter(|assignment| !assignment.task.is_attachment()) {
            let id = assignment.task.id.clone();
            wanted.insert(id.clone());
            if let Some(life) = self.tasks.get_mut(&id) {
                if *life.task() != assignment.task {
                    let actions = life.handle(now, Event::Updated(Box::new(assignment.task)));
                    self.take(&id, actions, &mut steps);
                }
                continue;
            }
            let found = self.found.remove(&id);
            if let Some(Found::Running { container, .. }) = &found {
                adopted.push((assignment.task.clone(), container.clone()));
            }
            let (life, actions) = match found {
                // What was only prepared says nothing of an earlier attempt; the cluster may know of one.
                Some(Found::Nothing) | None if assignment.progress() != Progress::NotStarted => {
                    Lifecycle::assigned(assignment, self.connected, now)
                }
                None => Lifecycle::assigned(assignment, self.connected, now),
                Some(found) => Lifecycle::resumed(assignment.task, TaskStatus::default(), found, self.connected, now),
            };
            self.tasks.insert(id.clone(), life);
            self.take(&id, actions, &mut steps);
        }
        let withdrawn: Vec<TaskId> = self.tasks.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
        for id in withdrawn {
            self.handle(&id, Event::Withdrawn, now, &mut steps);
        }
        // Whatever else was found is nobody's.
        for id in std::mem::take(&mut self.found).into_keys() {
            steps.push((id.clone(), Action::Remove));
            self.nobodys.insert(id);
        }
        Taken { adopted, steps }
    }

    /// Hosts have let go of these tasks, but for those that were late.
    pub(super) fn drained(&mut self, tasks: Vec<TaskId>, late: &[String], now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        for id in tasks {
            self.handle(&id, Event::Drained { late: late.to_vec() }, now, &mut steps);
        }
        steps
    }

    /// The manager that is attached to will not say when tasks have drained, being of an older release: they stop at
    /// once, as in that release.
    pub(super) fn nobody_drains(&mut self, now: Timestamp) -> Vec<Step> {
        self.drained(self.tasks.keys().cloned().collect(), &[], now)
    }

    /// Takes every task away: the node leaves.
    pub(super) fn withdraw_all(&mut self, now: Timestamp) -> Vec<Step> {
        self.set = AssignmentSet::default();
        self.reconcile(now).steps
    }

    /// Something happened to a task.
    pub(super) fn event(&mut self, id: &TaskId, event: Event, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        self.handle(id, event, now, &mut steps);
        steps
    }

    /// A manager can be reached, or cannot any more.
    pub(super) fn connected(&mut self, connected: bool, now: Timestamp) -> Vec<Step> {
        self.connected = connected;
        if let Some((_, unacknowledged)) = self.in_flight.take() {
            self.unreported.extend(unacknowledged.into_keys());
        }
        let unheard = if connected { BTreeSet::new() } else { self.unreported.clone() };
        let mut steps = Vec::new();
        let ids: Vec<TaskId> = self.tasks.keys().cloned().collect();
        for id in ids {
            self.handle(&id, Event::Connected(connected), now, &mut steps);
        }
        for id in unheard {
            self.handle(&id, Event::Unheard, now, &mut steps);
        }
        steps
    }

    /// When a timer is due next.
    pub(super) fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Fires the timers that are due.
    pub(super) fn fire_timers(&mut self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some((at, id)) = self.timers.first().cloned().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id.clone()));
            self.handle(&id, Event::Timer, now, &mut steps);
        }
        steps
    }

    /// The next batch of reports, if a manager can be reached and the last batch was acknowledged.
    pub(super) fn next_reports(&mut self) -> Option<(u64, Vec<TaskReport>)> {
        if !self.connected || self.in_flight.is_some() || self.unreported.is_empty() {
            return None;
        }
        let mut batch = BTreeMap::new();
        while batch.len() < BATCH
            && let Some(id) = self.unreported.pop_first()
        {
            if let Some(life) = self.tasks.get(&id) {
                batch.insert(id, life.status().clone());
            }
        }
        if batch.is_empty() {
            return None;
        }
        let reports =
            batch.iter().map(|(id, status)| TaskReport { task_id: id.clone(), status: status.clone() }).collect();
        let sequence = self.next_batch;
        self.next_batch += 1;
        self.in_flight = Some((sequence, batch));
        Some((sequence, reports))
    }

    /// A batch was committed.
    pub(super) fn reports_committed(&mut self, sequence: u64) {
        if self.in_flight.as_ref().is_some_and(|(sent, _)| *sent == sequence) {
            self.in_flight = None;
        }
    }

    fn handle(&mut self, id: &TaskId, event: Event, now: Timestamp, steps: &mut Vec<Step>) {
        if event == Event::Removed {
            self.nobodys.remove(id);
        }
        let Some(life) = self.tasks.get_mut(id) else { return };
        let actions = life.handle(now, event);
        self.take(id, actions, steps);
        if self.tasks.get(id).is_some_and(Lifecycle::is_gone) {
            self.tasks.remove(id);
            self.unreported.remove(id);
        }
    }

    /// Keeps what concerns the core itself, passes on the rest. (That a task drains, its manager sees by itself.)
    fn take(&mut self, id: &TaskId, actions: Vec<Action>, steps: &mut Vec<Step>) {
        for action in actions {
            match action {
                Action::Report(_) => {
                    self.unreported.insert(id.clone());
                }
                Action::WakeAt(at) => {
                    self.timers.insert((at, id.clone()));
                }
                Action::Drain => {}
                other => steps.push((id.clone(), other)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deploy::dispatcher::{Assignment, Body, Delta};
    use deploy::model::DesiredState;

    const NOW: Timestamp = Timestamp::from_millis(1000);

    /// What is read of what was written.
    fn memory(core: &Core) -> Memory {
        prost::Message::decode(core.snapshot().to_bytes().as_slice()).unwrap()
    }

    fn stamp(revision: u64) -> Stamp {
        Stamp { incarnation: 1, term: 1, revision }
    }

    fn task(id: &str) -> Item {
        let mut task = Task { id: TaskId::new(id), ..Task::default() };
        task.set_desired(DesiredState::Running);
        Body::Task(Box::new(Assignment { task, progress: 0 })).into()
    }

    fn full(revision: u64, tasks: &[&str]) -> Update {
        let put = tasks.iter().map(|id| task(id)).collect();
        Update { stamp: stamp(revision), base: None, delta: Delta { put, remove: Vec::new() } }
    }

    fn core() -> Core {
        Core::start(Memory::default(), BTreeMap::new(), NOW).0
    }

    #[test]
    fn an_older_set_is_refused() {
        let mut core = core();
        core.update(full(5, &["a"]), NOW).unwrap();
        assert_eq!(core.update(full(4, &[]), NOW).unwrap_err(), UpdateRefused::Older);
        assert!(core.task(&TaskId::new("a")).is_some());
    }

    #[test]
    fn a_new_incarnation_is_followed_and_nothing_starts_anew() {
        let mut core = core();
        core.update(full(5, &["a"]), NOW).unwrap();
        core.event(&TaskId::new("a"), Event::Prepared, NOW);
        core.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
        let anew = |revision| Update { stamp: Stamp { incarnation: 2, term: 1, revision }, ..full(revision, &["a"]) };
        assert_eq!(core.update(anew(4), NOW).unwrap_err(), UpdateRefused::Older, "a life that began before");
        assert_eq!(core.update(anew(1 << 20), NOW).unwrap().steps, []);
        assert_eq!(core.update(full(9, &[]), NOW).unwrap_err(), UpdateRefused::Older, "the life that is over");
        assert_eq!(core.serving(), BTreeSet::from([TaskId::new("a")]));
    }

    #[test]
    fn the_place_of_a_plain_container_is_nothing_to_run() {
        let mut core = core();
        assert_eq!(core.places(), Given::default());
        let mut place = Task { id: TaskId::new("p"), container: "c".repeat(64), ..Task::default() };
        place.set_desired(DesiredState::Running);
        let put = vec![Body::Task(Box::new(Assignment { task: place, progress: 0 })).into()];
        let update = Update { stamp: stamp(1), base: None, delta: Delta { put, remove: Vec::new() } };
        assert_eq!(core.update(update, NOW).unwrap(), Taken::default());
        assert!(core.is_empty() && core.places().told);
        assert_eq!(core.places().places.keys().collect::<Vec<_>>(), [&TaskId::new("p")]);
        let again = Core::start(memory(&core), BTreeMap::new(), NOW).0;
        assert_eq!(again.places(), Given { told: false, ..core.places() });
    }

    #[test]
    fn a_difference_to_something_else_is_refused() {
        let mut core = core();
        core.update(full(5, &["a"]), NOW).unwrap();
        let update = Update { stamp: stamp(7), base: Some(stamp(6)), delta: Delta::default() };
        assert_eq!(core.update(update, NOW).unwrap_err(), UpdateRefused::Gap);
    }

    #[test]
    fn a_batch_that_was_not_acknowledged_is_sent_again() {
        let mut core = core();
        core.update(full(1, &["a"]), NOW).unwrap();
        assert!(core.next_reports().is_none(), "reported without a manager");
        core.connected(true, NOW);
        let (first, reports) = core.next_reports().unwrap();
        assert_eq!(reports.len(), 1);
        assert!(core.next_reports().is_none(), "two batches at once");
        core.connected(false, NOW);
        core.connected(true, NOW);
        let (second, reports) = core.next_reports().unwrap();
        assert!(second > first && reports.len() == 1);
        core.reports_committed(second);
        assert!(core.next_reports().is_none());
    }

    #[test]
    fn an_end_that_was_not_acknowledged_is_followed_by_an_attempt() {
        let after_the_loss = |acknowledged: bool| {
            let (mut core, a) = (core(), TaskId::new("a"));
            core.connected(true, NOW);
            core.update(full(1, &["a"]), NOW).unwrap();
            core.event(&a, Event::Prepared, NOW);
            core.event(&a, Event::Started { container: "c".into(), pid: 1 }, NOW);
            core.event(&a, Event::Exited { exit_code: Some(1), oom_killed: false }, NOW);
            let (sequence, reports) = core.next_reports().unwrap();
            assert_eq!(reports[0].status.state(), TaskState::Failed);
            if acknowledged {
                core.reports_committed(sequence);
            }
            core.connected(false, NOW);
            core.fire_timers(Timestamp::from_millis(100_000))
        };
        assert_eq!(after_the_loss(true), [], "the leader knows, and decides");
        assert_eq!(after_the_loss(false), [(TaskId::new("a"), Action::Start { attempt: 1 })]);
    }

    #[test]
    fn what_was_prepared_in_vain_is_taken_back() {
        let mut core = core();
        core.update(full(1, &["a"]), NOW).unwrap();
        let mut ready = Task { id: TaskId::new("a"), ..Task::default() };
        ready.set_desired(DesiredState::Shutdown);
        let put = vec![Body::Task(Box::new(Assignment { task: ready, progress: 0 })).into()];
        let update = Update { stamp: stamp(2), base: Some(stamp(1)), delta: Delta { put, remove: Vec::new() } };
        let taken = core.update(update, NOW).unwrap();
        assert_eq!(taken.steps, [(TaskId::new("a"), Action::CancelPrepare)]);
        assert_eq!(core.event(&TaskId::new("a"), Event::Prepared, NOW), []);
        assert_eq!(memory(&core).tasks[0].status.state(), TaskState::Preparing, "its address is still on the wire");
        core.event(&TaskId::new("a"), Event::PrepareFailed { error: "cancelled".into() }, NOW);
        assert_eq!(memory(&core).tasks[0].status.state(), TaskState::Shutdown);
        assert!(core.task(&TaskId::new("a")).is_some(), "the cluster has not withdrawn it yet");
    }

    #[test]
    fn a_container_that_nobody_remembers_is_its_tasks_or_nobodys() {
        let found = |pid| Found::Running { container: "c".into(), pid };
        let containers = BTreeMap::from([(TaskId::new("a"), found(1)), (TaskId::new("b"), found(2))]);
        let (mut core, _) = Core::start(Memory::default(), containers, NOW);
        let taken = core.update(full(1, &["a"]), NOW).unwrap();
        let adopted: Vec<(&str, &str)> = taken.adopted.iter().map(|(task, c)| (task.id.as_str(), c.as_str())).collect();
        assert_eq!(adopted, [("a", "c")], "nobody would see it end");
        assert_eq!(taken.steps, [(TaskId::new("b"), Action::Remove)]);
        assert_eq!(core.serving(), BTreeSet::new(), "who looks after it says whether it is healthy");
        core.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
        assert_eq!(core.serving(), BTreeSet::from([TaskId::new("a")]));
    }

    /// A task that runs, and then the order to stop it, which others have to follow as well.
    fn draining() -> (Core, Taken) {
        let (mut core, a) = (core(), TaskId::new("a"));
        core.connected(true, NOW);
        core.update(full(1, &["a", "b"]), NOW).unwrap();
        for id in ["a", "b"] {
            core.event(&TaskId::new(id), Event::Prepared, NOW);
            core.event(&TaskId::new(id), Event::Started { container: "c".into(), pid: 1 }, NOW);
        }
        let mut stopping = Task { id: a, draining_since: NOW, ..Task::default() };
        stopping.set_desired(DesiredState::Shutdown);
        let put = vec![Body::Task(Box::new(Assignment { task: stopping, progress: 0 })).into()];
        let update = Update { stamp: stamp(2), base: Some(stamp(1)), delta: Delta { put, remove: Vec::new() } };
        let taken = core.update(update, NOW).unwrap();
        (core, taken)
    }

    #[test]
    fn a_task_that_drains_is_let_go_of_by_its_own_host_too() {
        let (mut core, taken) = draining();
        assert_eq!(taken.steps, []);
        assert_eq!(core.serving(), BTreeSet::from([TaskId::new("b")]), "a port of the host leads to it");
        let (a, b) = (TaskId::new("a"), TaskId::new("b"));
        let steps = core.drained(vec![b, TaskId::new("nobody"), a.clone()], &["h".to_owned()], NOW);
        assert!(matches!(&steps[..], [(id, Action::Stop { .. })] if *id == a), "{steps:?}");
        assert_eq!(core.drained(vec![a], &[], NOW), []);
    }

    #[test]
    fn draining_has_an_end_and_an_older_manager_none_to_wait_for() {
        let (mut core, _) = draining();
        assert_eq!(core.next_timer(), Some(Timestamp::from_millis(3000)));
        core.connected(false, NOW);
        let steps = core.fire_timers(Timestamp::from_millis(3000));
        assert!(matches!(&steps[..], [(_, Action::Stop { .. })]), "{steps:?}");
        let (mut core, _) = draining();
        let steps = core.nobody_drains(NOW);
        assert!(matches!(&steps[..], [(_, Action::Stop { .. })]), "{steps:?}");
    }

    #[test]
    fn secrets_and_configs_are_not_remembered() {
        let mut core = core();
        let payload = deploy::dispatcher::PayloadInfo { id: "s".into(), data: b"secret".to_vec() };
        let put = vec![task("a"), Body::Secret(payload.clone()).into(), Body::Config(payload).into()];
        core.update(Update { stamp: stamp(1), base: None, delta: Delta { put, remove: Vec::new() } }, NOW).unwrap();
        assert_eq!((core.set().secrets().count(), core.set().configs().count()), (1, 1));
        let bytes = core.snapshot().to_bytes();
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        assert_eq!(memory(&core).items.len(), 1);
    }

    #[test]
    fn a_node_that_leaves_leaves_nothing_that_it_found() {
        let found = BTreeMap::from([(TaskId::new("b"), Found::Running { container: "c".into(), pid: 1 })]);
        let (mut core, _) = Core::start(Memory::default(), found, NOW);
        assert_eq!(core.withdraw_all(NOW), [(TaskId::new("b"), Action::Remove)]);
        assert!(!core.is_empty());
        assert_eq!(core.event(&TaskId::new("b"), Event::Removed, NOW), []);
        assert!(core.is_empty());
    }

    #[test]
    fn what_was_being_removed_is_removed_by_the_next_daemon() {
        let mut before = core();
        before.update(full(3, &["a", "b"]), NOW).unwrap();
        before.event(&TaskId::new("a"), Event::Prepared, NOW);
        before.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
        before.withdraw_all(NOW);
        let found = BTreeMap::from([(TaskId::new("a"), Found::Running { container: "c".into(), pid: 1 })]);
        let (mut after, steps) = Core::start(memory(&before), found, NOW);
        let (a, b) = (TaskId::new("a"), TaskId::new("b"));
        assert!(matches!(&steps[..], [(x, Action::Stop { .. }), (y, Action::CancelPrepare)] if *x == a && *y == b));
        let ended = after.event(&a, Event::Exited { exit_code: Some(143), oom_killed: false }, NOW);
        assert_eq!(ended, [(a.clone(), Action::Remove)]);
        let ended = after.event(&b, Event::PrepareFailed { error: "cancelled".into() }, NOW);
        assert_eq!(ended, [(b.clone(), Action::Remove)]);
        after.event(&a, Event::Removed, NOW);
        after.event(&b, Event::Removed, NOW);
        assert!(after.is_empty());
    }

    #[test]
    fn what_was_remembered_goes_on() {
        let mut before = core();
        before.update(full(3, &["a"]), NOW).unwrap();
        before.event(&TaskId::new("a"), Event::Prepared, NOW);
        before.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
        let found = BTreeMap::from([(TaskId::new("a"), Found::Running { container: "c".into(), pid: 1 })]);
        let (mut after, steps) = Core::start(memory(&before), found, NOW);
        assert_eq!(steps, []);
        assert_eq!(after.serving(), BTreeSet::from([TaskId::new("a")]));
        assert_eq!(after.update(full(2, &[]), NOW).unwrap_err(), UpdateRefused::Older);
    }
}
