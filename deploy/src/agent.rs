//! The agent's decisions on all tasks of its host: which ones it has, what is to be done for them next, what the cluster
//! must be told. The loop around it (`node::agent`, or a simulation of it) carries out and feeds back.

mod places;

use std::collections::{BTreeMap, BTreeSet};

use prost::encoding::message;

use crate::control::TaskReport;
use crate::dispatcher::{AssignmentSet, Body, Item, Progress, Stamp, Update};
use crate::lifecycle::{Action, Event, Found, Lifecycle};
use crate::model::{DesiredState, Task, TaskId, TaskState, TaskStatus, Timestamp};

pub use places::{Given, GivenPlace, LOST, Place, Places, Settled};

/// Something that the loop must do for a task.
pub type Step = (TaskId, Action);

/// What outlives the daemon, in its stored form: the last assignment set, and what was observed of its tasks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Memory {
    /// Stamp of the set.
    #[prost(message, required, tag = "1")]
    pub stamp: Stamp,
    /// The set.
    #[prost(message, repeated, tag = "2")]
    pub items: Vec<Item>,
    /// The tasks of this host, as far as they are not gone.
    #[prost(message, repeated, tag = "3")]
    pub tasks: Vec<RememberedTask>,
}

/// What is to be remembered at one moment. Cheap to make and to compare: the set is shared, not copied.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    stamp: Stamp,
    set: AssignmentSet,
    tasks: Vec<RememberedTask>,
}

impl Snapshot {
    /// Whether both would be remembered as the same.
    pub fn is(&self, other: &Snapshot) -> bool {
        self.stamp == other.stamp && self.set.is(&other.set) && self.tasks == other.tasks
    }

    fn items(&self) -> impl Iterator<Item = &Item> {
        self.set.items().filter(|item| !is_payload(item))
    }

    /// The bytes of [`Memory`], without a copy of every item.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        message::encode(1, &self.stamp, &mut bytes);
        self.items().for_each(|item| message::encode(2, item, &mut bytes));
        self.tasks.iter().for_each(|task| message::encode(3, task, &mut bytes));
        bytes
    }
}

impl From<Memory> for Snapshot {
    fn from(Memory { stamp, items, tasks }: Memory) -> Self {
        Snapshot { stamp, set: AssignmentSet::new(items), tasks }
    }
}

/// A task and what was observed of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RememberedTask {
    /// The task.
    #[prost(message, required, tag = "1")]
    task: Task,
    /// Its status.
    #[prost(message, required, tag = "2")]
    status: TaskStatus,
}

/// Whether it is something secret, which is not remembered where the rest is.
pub fn is_payload(item: &Item) -> bool {
    matches!(item.body, Some(Body::Secret(_) | Body::Config(_) | Body::Registry(_)))
}

/// What an update leads to.
#[derive(Debug, Default, PartialEq)]
pub struct Taken {
    /// Containers that run, that the memory did not know, and whose tasks are known now: they are to be looked after.
    /// Before the steps, which may be about them.
    pub adopted: Vec<(Task, String)>,
    /// What is to be done.
    pub steps: Vec<Step>,
}

/// Why an update was not taken over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateRefused {
    /// It is older than what was seen. The manager lags; another one may not.
    #[error("the assignments are older than those that this node has seen")]
    Older,
    /// It is a difference to something that this agent does not have. A new session begins with the whole set.
    #[error("the assignments do not follow from those that this node has")]
    Gap,
}

/// The agent's state.
pub struct Core {
    stamp: Stamp,
    set: AssignmentSet,
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
    pub fn start(memory: Memory, mut found: BTreeMap<TaskId, Found>, now: Timestamp) -> (Self, Vec<Step>) {
        let mut core = Self {
            stamp: memory.stamp,
            set: AssignmentSet::new(memory.items),
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
    pub fn snapshot(&self) -> Snapshot {
        let tasks = self.tasks.values().filter(|life| !life.is_gone());
        let remembered = |life: &Lifecycle| RememberedTask { task: life.task().clone(), status: life.status().clone() };
        Snapshot { stamp: self.stamp, set: self.set.clone(), tasks: tasks.map(remembered).collect() }
    }

    /// The assignment set.
    pub fn set(&self) -> &AssignmentSet {
        &self.set
    }

    /// Its stamp.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Places of this host's plain containers on networks.
    pub fn places(&self) -> Given {
        let places = self.set.tasks().map(|assignment| &assignment.task).filter(|task| task.is_attachment());
        let place =
            |task: &Task| GivenPlace { container: task.container.clone(), attachments: task.attachments.clone() };
        let places = places.map(|task| (task.id.clone(), place(task))).collect();
        Given { told: self.told, places }
    }

    /// A task of this host, as the cluster last described it.
    pub fn task(&self, id: &TaskId) -> Option<&Task> {
        self.tasks.get(id).map(Lifecycle::task)
    }

    /// All tasks of this host and what was observed of them.
    pub fn states(&self) -> Vec<(TaskId, TaskState)> {
        self.tasks.iter().map(|(id, life)| (id.clone(), life.status().state())).collect()
    }

    /// The state of each task of this host.
    pub fn task_states(&self) -> impl Iterator<Item = TaskState> {
        self.tasks.values().map(|life| life.status().state())
    }

    /// Tasks of this host that others may be led to: they run, are healthy, and are not to stop.
    pub fn serving(&self) -> BTreeSet<TaskId> {
        let wanted = |id: &TaskId| self.tasks.get(id).is_some_and(|life| life.task().is_wanted());
        self.tasks.keys().filter(|id| self.is_healthy(id) && wanted(id)).cloned().collect()
    }

    /// Whether a task runs for the cluster, and was not found unhealthy.
    pub fn is_healthy(&self, id: &TaskId) -> bool {
        let healthy = |life: &Lifecycle| life.status().state() == TaskState::Running && !life.status().unhealthy;
        self.tasks.get(id).is_some_and(healthy)
    }

    /// Whether nothing is left of any task.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.nobodys.is_empty()
    }

    /// Takes over what a manager sent.
    pub fn update(&mut self, update: Update, now: Timestamp) -> Result<Taken, UpdateRefused> {
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
        let mut assigned: Vec<_> = self.set.tasks().cloned().collect();
        // The place of a plain container on a network is nothing to run.
        assigned.retain(|assignment| !assignment.task.is_attachment());
        let here: BTreeSet<TaskId> = assigned.iter().map(|assignment| assignment.task.id.clone()).collect();
        // What is to stop comes first: others may have to wait for it.
        let withdrawn: Vec<TaskId> = self.tasks.keys().filter(|id| !here.contains(*id)).cloned().collect();
        for id in withdrawn {
            self.handle(&id, Event::Withdrawn, now, &mut steps);
        }
        assigned.sort_by_key(|assignment| assignment.task.is_wanted());
        for assignment in assigned {
            let id = assignment.task.id.clone();
            if let Some(life) = self.tasks.get(&id) {
                if *life.task() != assignment.task {
                    self.handle(&id, Event::Updated(Box::new(assignment.task)), now, &mut steps);
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
        // Whatever else was found is nobody's.
        for id in std::mem::take(&mut self.found).into_keys() {
            steps.push((id.clone(), Action::Remove));
            self.nobodys.insert(id);
        }
        Taken { adopted, steps }
    }

    /// Hosts have let go of these tasks, but for those that were late.
    pub fn drained(&mut self, tasks: Vec<TaskId>, late: &[String], now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        for id in tasks {
            self.handle(&id, Event::Drained { late: late.to_vec() }, now, &mut steps);
        }
        steps
    }

    /// The manager that is attached to will not say when tasks have drained, being of an older release: they stop at
    /// once, as in that release.
    pub fn nobody_drains(&mut self, now: Timestamp) -> Vec<Step> {
        self.drained(self.tasks.keys().cloned().collect(), &[], now)
    }

    /// Takes every task away: the node leaves.
    pub fn withdraw_all(&mut self, now: Timestamp) -> Vec<Step> {
        self.set = AssignmentSet::default();
        self.reconcile(now).steps
    }

    /// Something happened to a task.
    pub fn event(&mut self, id: &TaskId, event: Event, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        self.handle(id, event, now, &mut steps);
        steps
    }

    /// A manager can be reached, or cannot any more.
    pub fn connected(&mut self, connected: bool, now: Timestamp) -> Vec<Step> {
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
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Fires the timers that are due.
    pub fn fire_timers(&mut self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some((at, id)) = self.timers.first().cloned().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id.clone()));
            self.handle(&id, Event::Timer, now, &mut steps);
        }
        steps
    }

    /// The next batch of reports, of that many `at_most`, if a manager can be reached and the last batch was acknowledged.
    pub fn next_reports(&mut self, at_most: usize) -> Option<(u64, Vec<TaskReport>)> {
        if !self.connected || self.in_flight.is_some() || self.unreported.is_empty() {
            return None;
        }
        let mut batch = BTreeMap::new();
        while batch.len() < at_most
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
    pub fn reports_committed(&mut self, sequence: u64) {
        if self.in_flight.as_ref().is_some_and(|(sent, _)| *sent == sequence) {
            self.in_flight = None;
        }
    }

    fn handle(&mut self, id: &TaskId, event: Event, now: Timestamp, steps: &mut Vec<Step>) {
        if event == Event::Removed {
            self.nobodys.remove(id);
        }
        let held = self.is_held(id);
        let Some(life) = self.tasks.get_mut(id) else { return };
        let left = life.is_leaving();
        life.hold(held);
        let actions = life.handle(now, event);
        let freed = (left && !life.is_leaving()).then(|| life.task().clone());
        self.take(id, actions, steps);
        if self.tasks.get(id).is_some_and(Lifecycle::is_gone) {
            self.tasks.remove(id);
            self.unreported.remove(id);
        }
        if let Some(freed) = freed {
            let waits = |life: &Lifecycle| life.can_be_held() && shares_slot(life.task(), &freed);
            let waiting = self.tasks.iter().filter(|(_, life)| waits(life)).map(|(id, _)| id.clone());
            for id in waiting.collect::<Vec<_>>() {
                self.handle(&id, Event::SlotFree, now, steps);
            }
        }
    }

    /// Whether a task must not start yet: what was in its slot before it has not ended here.
    fn is_held(&self, id: &TaskId) -> bool {
        let Some(life) = self.tasks.get(id).filter(|life| life.can_be_held()) else { return false };
        let task = life.task();
        self.tasks.values().any(|other| other.is_leaving() && shares_slot(other.task(), task))
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

/// Whether two tasks of this host have one slot. (A global service has one on each host.)
fn shares_slot(one: &Task, other: &Task) -> bool {
    one.id != other.id && !one.service_id.is_none() && one.service_id == other.service_id && one.slot == other.slot
}

#[cfg(test)]
mod tests;
