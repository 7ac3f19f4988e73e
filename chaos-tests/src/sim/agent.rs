//! The agent's core as `node` has it, around the real `Lifecycle`: what it takes from managers, what it does for its
//! tasks, what it reports. Its memory outlives the daemon and the host.

use std::collections::{BTreeMap, BTreeSet};

use deploy::control::TaskReport;
use deploy::dispatcher::{AssignmentSet, Stamp, Update};
use deploy::lifecycle::{Action, Event, Found, Lifecycle};
use deploy::model::{TaskId, TaskStatus, Timestamp};

/// Reports in one batch. Less than the real one, so that batches follow each other.
const BATCH: usize = 8;

/// Something that the host must do for a task.
pub(super) type Step = (TaskId, Action);

/// Why an update was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpdateRefused {
    Older,
    Gap,
}

#[derive(Default)]
pub(super) struct Agent {
    pub(super) stamp: Stamp,
    pub(super) set: AssignmentSet,
    pub(super) tasks: BTreeMap<TaskId, Lifecycle>,
    connected: bool,
    unreported: BTreeSet<TaskId>,
    in_flight: Option<(u64, BTreeMap<TaskId, TaskStatus>)>,
    next_batch: u64,
    timers: BTreeSet<(Timestamp, TaskId)>,
}

impl Agent {
    /// The daemon starts again, with what it remembered and what containers it finds.
    pub(super) fn restarted(self, found: &BTreeMap<TaskId, Found>, now: Timestamp) -> (Self, Vec<Step>) {
        let mut agent = Self { stamp: self.stamp, set: self.set, ..Self::default() };
        let mut steps = Vec::new();
        for (id, life) in self.tasks {
            let found = found.get(&id).cloned().unwrap_or(Found::Nothing);
            let (life, actions) = Lifecycle::resumed(life.task().clone(), life.status().clone(), found, false, now);
            agent.tasks.insert(id.clone(), life);
            agent.take(&id, actions, &mut steps);
        }
        (agent, steps)
    }

    /// Takes over what a manager sent.
    pub(super) fn update(&mut self, update: Update, now: Timestamp) -> Result<Vec<Step>, UpdateRefused> {
        if update.stamp.is_older_than(&self.stamp) {
            return Err(UpdateRefused::Older);
        }
        match update.base {
            None => self.set = AssignmentSet::new(update.delta.put),
            Some(base) if base == self.stamp => self.set.apply(update.delta),
            Some(_) => return Err(UpdateRefused::Gap),
        }
        self.stamp = update.stamp;
        Ok(self.reconcile(now))
    }

    /// Takes every task away: the cluster has removed this host.
    pub(super) fn withdraw_all(&mut self, now: Timestamp) -> Vec<Step> {
        self.set = AssignmentSet::default();
        self.reconcile(now)
    }

    fn reconcile(&mut self, now: Timestamp) -> Vec<Step> {
        let mut steps = Vec::new();
        let assigned: Vec<_> = self.set.tasks().cloned().collect();
        let mut told = BTreeSet::new();
        for assignment in assigned {
            let id = assignment.task.id.clone();
            told.insert(id.clone());
            match self.tasks.get_mut(&id) {
                Some(life) if *life.task() != assignment.task => {
                    let actions = life.handle(now, Event::Updated(Box::new(assignment.task)));
                    self.take(&id, actions, &mut steps);
                }
                Some(_) => {}
                None => {
                    let (life, actions) = Lifecycle::assigned(assignment, self.connected, now);
                    self.tasks.insert(id.clone(), life);
                    self.take(&id, actions, &mut steps);
                }
            }
        }
        let withdrawn: Vec<TaskId> = self.tasks.keys().filter(|id| !told.contains(*id)).cloned().collect();
        for id in withdrawn {
            self.handle(&id, Event::Withdrawn, now, &mut steps);
        }
        steps
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
        for id in self.tasks.keys().cloned().collect::<Vec<_>>() {
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
        let report = |(id, status): (&TaskId, &TaskStatus)| TaskReport { task_id: id.clone(), status: status.clone() };
        let reports = batch.iter().map(report).collect();
        self.next_batch += 1;
        self.in_flight = Some((self.next_batch, batch));
        Some((self.next_batch, reports))
    }

    /// A batch was committed.
    pub(super) fn reports_committed(&mut self, sequence: u64) {
        if self.in_flight.as_ref().is_some_and(|(sent, _)| *sent == sequence) {
            self.in_flight = None;
        }
    }

    fn handle(&mut self, id: &TaskId, event: Event, now: Timestamp, steps: &mut Vec<Step>) {
        let Some(life) = self.tasks.get_mut(id) else { return };
        let actions = life.handle(now, event);
        self.take(id, actions, steps);
        if self.tasks.get(id).is_some_and(Lifecycle::is_gone) {
            self.tasks.remove(id);
            self.unreported.remove(id);
        }
    }

    fn take(&mut self, id: &TaskId, actions: Vec<Action>, steps: &mut Vec<Step>) {
        for action in actions {
            match action {
                Action::Report(_) => self.unreported.extend([id.clone()]),
                Action::WakeAt(at) => self.timers.extend([(at, id.clone())]),
                other => steps.push((id.clone(), other)),
            }
        }
    }
}
