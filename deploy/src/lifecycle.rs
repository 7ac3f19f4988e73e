//! The agent's side of one task: what is observed and wanted becomes the next thing to do.
//!
//! The agent's core owns one of these for each task of its assignment set, carries out the actions (through the
//! executor) and feeds back what came of them. Nothing here waits, retries or talks; time is an input. Observed state
//! only grows, and a task starts once: again only while no manager can be reached, within its restart policy, as a new
//! attempt of the same task.
//!
//! A task that others are led to drains before it is stopped: it goes on until they have let go of it (`dispatcher::drain`),
//! and no longer than [`DRAIN`]. One that fails, that the host gives up by itself, or that nobody was led to, does not.

use std::time::Duration;

use crate::dispatcher::{Assignment, Progress};
use crate::model::{ContainerStatus, DesiredState, Task, TaskState, TaskStatus, Timestamp};
use crate::restart::{self, Verdict};

/// A manager's first word on the tasks comes within this time of the connection; what was taken away meanwhile has then
/// ended as Shutdown, and did not fail.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// A task that is to stop waits so long at the most until all hosts have let go of it.
pub const DRAIN: Duration = Duration::from_secs(2);

/// What happened to the task.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The cluster changed it (what is wanted of it, mostly).
    Updated(Box<Task>),
    /// It is not in the host's set any more: it must not run, and nothing of it may stay.
    Withdrawn,
    /// A manager can be reached, or cannot any more.
    Connected(bool),
    /// The manager was lost before it acknowledged the task's last report. Comes after `Connected`.
    Unheard,
    /// Image, mounts and network are ready.
    Prepared,
    /// They could not be made ready.
    PrepareFailed {
        /// For people.
        error: String,
    },
    /// What is being prepared has to wait for something, and goes on by itself.
    Delayed {
        /// For what, for people.
        reason: String,
    },
    /// The container runs, and has a health check that it has not passed yet. `Started` or `Unhealthy` follows.
    Launched {
        /// Its id.
        container: String,
        /// Its first process.
        pid: u32,
    },
    /// The container runs (and is healthy, where there is a health check).
    Started {
        /// Its id.
        container: String,
        /// Its first process.
        pid: u32,
    },
    /// The container could not be started.
    StartFailed {
        /// For people.
        error: String,
    },
    /// The container's health check says that it does not work.
    Unhealthy,
    /// The container ended, by itself or because it was stopped.
    Exited {
        /// Its exit code; `None` when nobody saw it end.
        exit_code: Option<i32>,
        /// Whether the kernel killed it for memory.
        oom_killed: bool,
    },
    /// No host leads anybody to it any more, but for those that were late.
    Drained {
        /// Names of hosts that have not said so in time, and are not Down.
        late: Vec<String>,
    },
    /// What it left on the host was removed.
    Removed,
    /// The time that was asked for has come.
    Timer,
}

/// What the agent must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make image, mounts, namespaces and network ready; answered with `Prepared` or `PrepareFailed`. Safe to do again.
    Prepare,
    /// Give up preparing, or take back what was prepared; answered with `PrepareFailed` once nothing of it is left.
    CancelPrepare,
    /// Start a container; answered with `Started` or `StartFailed`. For an `attempt` above 0 an earlier container of
    /// the task is cleared away first.
    Start {
        /// Number of the attempt on this host, from 0.
        attempt: u32,
    },
    /// Wait until no host leads anybody to it; answered with `Drained`. Nothing is lost if it never is.
    Drain,
    /// Stop the container; answered with `Exited`.
    Stop {
        /// Signal that asks for it; empty means the image's, else SIGTERM.
        signal: String,
        /// Time until SIGKILL.
        grace: Duration,
    },
    /// Remove all that the task left on the host; answered with `Removed`.
    Remove,
    /// Send `Timer` at this time.
    WakeAt(Timestamp),
    /// Tell the cluster. Only the newest status counts; it is told again after a reconnection.
    Report(TaskStatus),
}

/// What an agent that starts again finds of a task that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The container runs and was adopted.
    Running {
        /// Its id.
        container: String,
        /// Its first process.
        pid: u32,
    },
    /// The container ended meanwhile.
    Exited {
        /// Its exit code.
        exit_code: Option<i32>,
        /// Whether the kernel killed it for memory.
        oom_killed: bool,
    },
    /// No container that was ever started.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Known, nothing begun.
    Accepted,
    Preparing,
    /// What was prepared, or is being prepared, is taken back.
    Cancelling,
    /// Prepared, waits for the order to start.
    Ready,
    Starting,
    /// Runs, and was not healthy yet.
    Checking,
    Running,
    /// Is to stop, and runs until nobody is led to it any more, or until then.
    Draining {
        until: Timestamp,
    },
    Stopping,
    /// Is being stopped because it is unhealthy.
    Failing,
    /// Ended while no manager could be reached; a new attempt starts then, unless a manager takes over before.
    Resting {
        until: Timestamp,
        /// A manager can be reached: the leader decides, and is told of the end at this time.
        tell_at: Option<Timestamp>,
        /// How it ended.
        state: TaskState,
        message: &'static str,
    },
    /// Ended for good. What is left on the host stays until the task is withdrawn (its logs are still of use).
    Ended,
    Removing,
    Gone,
}

/// One task on its host.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    task: Task,
    status: TaskStatus,
    phase: Phase,
    connected: bool,
    withdrawn: bool,
    /// It ended by itself with a manager in reach: how, and the state that it was in before.
    told_end: Option<(TaskState, &'static str, TaskState)>,
    /// Why it was stopped although somebody may still have been led to it.
    undrained: Option<String>,
    /// It was said, while it was about to run again, that nobody leads to it any more, but for these hosts that were late.
    let_go: Option<Vec<String>>,
}

impl Lifecycle {
    /// A task that this agent did not have. Returns what to do first.
    pub fn assigned(assignment: Assignment, connected: bool, now: Timestamp) -> (Self, Vec<Action>) {
        let progress = assignment.progress();
        let mut this = Self::with(assignment.task, TaskStatus::default(), connected);
        let mut actions = Vec::new();
        match progress {
            Progress::NotStarted => this.note(now, TaskState::Accepted, "accepted", &mut actions),
            // The agent lost its memory, or the host its disk: the task may not start a second time.
            Progress::MayHaveStarted => {
                this.status.set_state(TaskState::Starting);
                this.phase = Phase::Running;
                this.exited(now, None, false, &mut actions);
            }
            Progress::Ended => this.phase = Phase::Ended,
        }
        this.advance(now, &mut actions);
        (this, actions)
    }

    /// A task that this agent had before it was started again, with the status that it had then.
    pub fn resumed(
        task: Task,
        status: TaskStatus,
        found: Found,
        connected: bool,
        now: Timestamp,
    ) -> (Self, Vec<Action>) {
        let mut this = Self::with(task, status, connected);
        let mut actions = Vec::new();
        match found {
            _ if this.status.state().is_terminal() => this.phase = Phase::Ended,
            Found::Running { container, pid }
                if this.status.state() == TaskState::Running && !this.status.unhealthy =>
            {
                this.started(now, container, pid, &mut actions);
            }
            // Whether it was only not written down that it runs, or it was not healthy yet, is found out.
            Found::Running { container, pid } => this.launched(now, container, pid, &mut actions),
            Found::Exited { exit_code, oom_killed } => {
                this.phase = Phase::Running;
                this.exited(now, exit_code, oom_killed, &mut actions);
            }
            Found::Nothing if this.status.state() >= TaskState::Starting => {
                this.phase = Phase::Running;
                this.exited(now, None, false, &mut actions);
            }
            Found::Nothing => {
                if this.must_stop() {
                    // A container that waits to be started, and its network, may still be there.
                    this.phase = Phase::Ready;
                }
                this.note(now, TaskState::Accepted, "accepted", &mut actions);
            }
        }
        this.advance(now, &mut actions);
        (this, actions)
    }

    fn with(task: Task, status: TaskStatus, connected: bool) -> Self {
        let (phase, withdrawn) = (Phase::Accepted, false);
        Self { task, status, phase, connected, withdrawn, told_end: None, undrained: None, let_go: None }
    }

    /// The task as the cluster last described it.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// What was observed of it last.
    pub fn status(&self) -> &TaskStatus {
        &self.status
    }

    /// Whether nothing of it is left on the host, so that it can be dropped.
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// Takes note of an event. Returns what to do, in order. An event that answers nothing which is under way (a late
    /// timer, the answer to a cancelled step) changes nothing.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match (event, self.phase) {
            (Event::Updated(task), _) => {
                // What the leader wants only grows; an older word than one that was seen is not believed.
                let desired = self.task.desired().max(task.desired());
                self.task = *task;
                self.task.set_desired(desired);
            }
            (Event::Withdrawn, _) => self.withdrawn = true,
            (Event::Connected(connected), _) => {
                self.connected = connected;
                if let Phase::Resting { tell_at, .. } = &mut self.phase {
                    *tell_at = connected.then(|| now.plus(FIRST_WORD));
                } else if connected && self.status.state() >= TaskState::Accepted {
                    actions.push(Action::Report(self.status.clone()));
                }
            }
            // Perhaps nobody knows that it has ended; then it is as if it ended now. Where the leader knows, it takes the
            // task away and has another one already, and that is obeyed as soon as it is heard.
            (Event::Unheard, Phase::Ended) => {
                if let Some((state, message, before)) = self.told_end.take()
                    && !self.connected
                    && !self.must_stop()
                {
                    self.rest(now, state, message, before, &mut actions);
                }
            }
            (Event::Prepared, Phase::Preparing) => {
                self.phase = Phase::Ready;
                self.note(now, TaskState::Ready, "prepared", &mut actions);
            }
            (Event::PrepareFailed { .. }, Phase::Cancelling) => {
                self.end(now, TaskState::Shutdown, "shutdown", &mut actions);
            }
            (Event::PrepareFailed { error }, Phase::Preparing) => {
                self.status.err = error;
                self.end(now, TaskState::Rejected, "preparing", &mut actions);
            }
            (Event::Delayed { reason }, Phase::Preparing) => {
                self.note(now, TaskState::Preparing, &reason, &mut actions);
            }
            (Event::Launched { container, pid }, Phase::Starting) => self.launched(now, container, pid, &mut actions),
            (Event::Started { container, pid }, Phase::Starting | Phase::Checking) => {
                self.started(now, container, pid, &mut actions);
            }
            (Event::Unhealthy, Phase::Checking | Phase::Running) if !self.must_stop() => {
                self.phase = Phase::Failing;
                self.status.unhealthy = true;
                self.note(now, self.status.state(), "unhealthy container", &mut actions);
                actions.push(self.stop());
            }
            (Event::StartFailed { error }, Phase::Starting) => {
                if self.must_stop() {
                    self.end(now, TaskState::Shutdown, "shutdown", &mut actions);
                } else {
                    self.status.err = error;
                    self.ended_by_itself(now, TaskState::Failed, "starting", &mut actions);
                }
            }
            (
                Event::Exited { exit_code, oom_killed },
                Phase::Starting
                | Phase::Checking
                | Phase::Running
                | Phase::Draining { .. }
                | Phase::Stopping
                | Phase::Failing,
            ) => self.exited(now, exit_code, oom_killed, &mut actions),
            (Event::Drained { late }, Phase::Draining { .. }) => self.drained(now, &late, &mut actions),
            // It cannot be stopped before it runs, and nobody says this again.
            (Event::Drained { late }, Phase::Starting) if self.must_stop() => self.let_go = Some(late),
            (Event::Removed, Phase::Removing) => self.phase = Phase::Gone,
            _ => {}
        }
        self.advance(now, &mut actions);
        actions
    }

    /// Begins whatever comes next.
    fn advance(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Accepted | Phase::Resting { .. } if self.must_stop() => {
                self.end(now, TaskState::Shutdown, "shutdown", actions);
            }
            Phase::Accepted => {
                self.phase = Phase::Preparing;
                self.note(now, TaskState::Preparing, "preparing", actions);
                actions.push(Action::Prepare);
            }
            // Its address is on the wire: it has ended only when that is not so any more.
            Phase::Preparing | Phase::Ready if self.must_stop() => {
                self.phase = Phase::Cancelling;
                actions.push(Action::CancelPrepare);
            }
            Phase::Ready if self.task.desired() >= DesiredState::Running => {
                self.phase = Phase::Starting;
                self.note(now, TaskState::Starting, "starting", actions);
                actions.push(Action::Start { attempt: self.attempt() });
            }
            // What is not in the set any more has nobody who would say that it drained.
            Phase::Running if self.must_stop() && !self.withdrawn && !self.task.draining_since.is_never() => {
                if let Some(late) = self.let_go.take() {
                    return self.drained(now, &late, actions);
                }
                let until = now.plus(DRAIN);
                self.phase = Phase::Draining { until };
                actions.extend([Action::WakeAt(until), Action::Drain]);
            }
            Phase::Checking | Phase::Running if self.must_stop() => {
                self.phase = Phase::Stopping;
                actions.push(self.stop());
            }
            Phase::Draining { until } if self.withdrawn || now >= until => {
                if !self.withdrawn {
                    let why = "no manager said in time that all hosts had let go of it";
                    self.not_drained(now, why.to_owned(), actions);
                }
                self.phase = Phase::Stopping;
                actions.push(self.stop());
            }
            Phase::Resting { tell_at: Some(at), state, message, .. } if now >= at => {
                self.end(now, state, message, actions);
            }
            Phase::Resting { tell_at: Some(at), .. } => actions.push(Action::WakeAt(at)),
            Phase::Resting { until, .. } if now >= until => {
                self.phase = Phase::Starting;
                self.status.container.get_or_insert_default().local_restarts += 1;
                actions.push(Action::Start { attempt: self.attempt() });
            }
            Phase::Resting { until, .. } => actions.push(Action::WakeAt(until)),
            _ => {}
        }
        if self.phase == Phase::Ended && self.withdrawn {
            self.phase = Phase::Removing;
            actions.push(Action::Remove);
        }
    }

    fn must_stop(&self) -> bool {
        self.withdrawn || !self.task.is_wanted()
    }

    /// Nobody leads to it any more, but for these hosts.
    fn drained(&mut self, now: Timestamp, late: &[String], actions: &mut Vec<Action>) {
        if !late.is_empty() {
            self.not_drained(now, late_hosts(late), actions);
        }
        self.phase = Phase::Stopping;
        actions.push(self.stop());
    }

    /// It is stopped although somebody may still be led to it; that is said for as long as the task is known.
    fn not_drained(&mut self, now: Timestamp, why: String, actions: &mut Vec<Action>) {
        self.note(now, self.status.state(), &format!("stopping; {why}"), actions);
        self.undrained = Some(why);
    }

    fn stop(&self) -> Action {
        let container = &self.task.spec.container;
        Action::Stop { signal: container.stop_signal.clone(), grace: container.stop_grace() }
    }

    fn launched(&mut self, now: Timestamp, container: String, pid: u32, actions: &mut Vec<Action>) {
        self.phase = Phase::Checking;
        self.runs(container, pid);
        // A new attempt of a task that ran: it is Running for the cluster, and nobody is to be led there yet.
        self.status.unhealthy = self.status.state() == TaskState::Running;
        self.note(now, TaskState::Starting, "starting", actions);
    }

    fn started(&mut self, now: Timestamp, container: String, pid: u32, actions: &mut Vec<Action>) {
        self.phase = Phase::Running;
        self.runs(container, pid);
        self.status.unhealthy = false;
        self.note(now, TaskState::Running, "started", actions);
    }

    fn runs(&mut self, container: String, pid: u32) {
        let local_restarts = self.attempt();
        self.status.container =
            Some(ContainerStatus { id: container, pid, exit_code: None, oom_killed: false, local_restarts });
        self.status.err.clear();
    }

    fn exited(&mut self, now: Timestamp, exit_code: Option<i32>, oom_killed: bool, actions: &mut Vec<Action>) {
        let container = self.status.container.get_or_insert_default();
        container.pid = 0;
        container.exit_code = exit_code;
        container.oom_killed = oom_killed;
        if self.must_stop() {
            return self.end(now, TaskState::Shutdown, "shutdown", actions);
        }
        let (state, message, err) = match exit_code {
            // Docker's words.
            Some(code) if self.phase == Phase::Failing => {
                let exit = if code == 0 { String::new() } else { format!("task: non-zero exit ({code}): ") };
                (TaskState::Failed, "started", format!("{exit}unhealthy container"))
            }
            Some(0) => (TaskState::Complete, "finished", String::new()),
            Some(code) if oom_killed => {
                (TaskState::Failed, "started", format!("task: non-zero exit ({code}): OOM killed"))
            }
            Some(code) => (TaskState::Failed, "started", format!("task: non-zero exit ({code})")),
            None => (TaskState::Failed, "started", "the container is gone, and nobody saw it end".to_owned()),
        };
        self.status.err = err;
        self.ended_by_itself(now, state, message, actions);
    }

    /// With a manager in reach, what follows is the leader's to decide. Without one, the host acts on the policy alone.
    fn ended_by_itself(&mut self, now: Timestamp, state: TaskState, message: &'static str, actions: &mut Vec<Action>) {
        let before = self.status.state();
        if self.connected {
            self.told_end = Some((state, message, before));
        } else if self.rest(now, state, message, before, actions) {
            return;
        }
        self.end(now, state, message, actions);
    }

    /// Has the task wait for its next attempt, if its policy gives it one. It stays what it was for the cluster: the same
    /// task, about to run again.
    fn rest(
        &mut self,
        now: Timestamp,
        state: TaskState,
        message: &'static str,
        before: TaskState,
        actions: &mut Vec<Action>,
    ) -> bool {
        let mut ended = self.task.clone();
        ended.status = self.status.clone();
        ended.status.set_state(state);
        ended.status.at = now;
        let Verdict::Restart(delay) = restart::verdict(&ended) else { return false };
        self.phase = Phase::Resting { until: now.plus(delay), tell_at: None, state, message };
        self.status.set_state(before);
        self.note(now, before, "restarting without a manager", actions);
        true
    }

    fn end(&mut self, now: Timestamp, state: TaskState, message: &str, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended;
        if state == TaskState::Shutdown {
            self.status.err.clear();
        }
        match &self.undrained {
            Some(why) => {
                let message = format!("{message}; {why}");
                self.note(now, state, &message, actions);
            }
            None => self.note(now, state, message, actions),
        }
    }

    /// Attempts of this task that were made on this host before the present one.
    fn attempt(&self) -> u32 {
        self.status.container.as_ref().map_or(0, |c| c.local_restarts)
    }

    /// Writes the status, and reports it. A state below the one that was reached keeps that one.
    fn note(&mut self, now: Timestamp, state: TaskState, message: &str, actions: &mut Vec<Action>) {
        if state > self.status.state() {
            self.status.set_state(state);
            self.status.at = now;
        }
        message.clone_into(&mut self.status.message);
        actions.push(Action::Report(self.status.clone()));
    }
}

/// A few of the hosts that were late, by name.
fn late_hosts(late: &[String]) -> String {
    /// More of them would only fill the screen.
    const NAMED: usize = 5;
    let named = late.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match late.len().saturating_sub(NAMED) {
        0 => format!("late to let go of it: {named}"),
        more => format!("late to let go of it: {named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{RestartCondition, RestartPolicy};

    const NOW: Timestamp = Timestamp::from_millis(1000);

    fn task(desired: DesiredState) -> Task {
        let mut task = Task::default();
        task.set_desired(desired);
        task
    }

    fn new_task(desired: DesiredState) -> (Lifecycle, Vec<Action>) {
        Lifecycle::assigned(Assignment { task: task(desired), progress: 0 }, true, NOW)
    }

    /// Actions in short: reports as their state, everything else by name.
    fn short(actions: &[Action]) -> String {
        let one = |action: &Action| match action {
            Action::Report(status) => format!("{:?}", status.state()),
            Action::Stop { .. } => "stop".to_owned(),
            Action::Start { attempt } => format!("start#{attempt}"),
            Action::WakeAt(at) => format!("wake@{}", at.nanos / 1_000_000),
            other => format!("{other:?}").to_lowercase(),
        };
        actions.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(life: &mut Lifecycle, event: Event, expected: &str) {
        assert_eq!(short(&life.handle(NOW, event.clone())), expected, "after {event:?}");
    }

    fn want(desired: DesiredState) -> Event {
        Event::Updated(Box::new(task(desired)))
    }

    fn started() -> Event {
        Event::Started { container: "c1".into(), pid: 7 }
    }

    fn exited(code: i32) -> Event {
        Event::Exited { exit_code: Some(code), oom_killed: false }
    }

    #[test]
    fn runs_stops_and_is_removed() {
        let (mut life, first) = new_task(DesiredState::Running);
        assert_eq!(short(&first), "Accepted Preparing prepare");
        check(&mut life, Event::Prepared, "Ready Starting start#0");
        check(&mut life, started(), "Running");
        check(&mut life, want(DesiredState::Shutdown), "stop");
        check(&mut life, want(DesiredState::Remove), "");
        check(&mut life, exited(143), "Shutdown");
        check(&mut life, Event::Withdrawn, "remove");
        check(&mut life, Event::Removed, "");
        assert!(life.is_gone());
    }

    #[test]
    fn waits_as_ready_until_it_is_wanted_running() {
        let (mut life, _) = new_task(DesiredState::Ready);
        check(&mut life, Event::Prepared, "Ready");
        check(&mut life, want(DesiredState::Running), "Starting start#0");
    }

    #[test]
    fn an_error_is_rejected_before_the_start_and_failed_after_it() {
        let (mut life, _) = new_task(DesiredState::Running);
        check(&mut life, Event::PrepareFailed { error: "no such image".into() }, "Rejected");
        let (mut life, _) = new_task(DesiredState::Running);
        check(&mut life, Event::Prepared, "Ready Starting start#0");
        check(&mut life, Event::StartFailed { error: "no such file".into() }, "Failed");
        let (mut life, _) = new_task(DesiredState::Running);
        check(&mut life, Event::Prepared, "Ready Starting start#0");
        check(&mut life, started(), "Running");
        check(&mut life, exited(3), "Failed");
        assert_eq!(life.status().err, "task: non-zero exit (3)");
        check(&mut life, Event::Prepared, "");
    }

    #[test]
    fn a_stop_is_obeyed_in_every_phase() {
        let (mut life, _) = new_task(DesiredState::Running);
        check(&mut life, want(DesiredState::Shutdown), "cancelprepare");
        check(&mut life, Event::Prepared, "");
        check(&mut life, Event::PrepareFailed { error: "cancelled".into() }, "Shutdown");
        let (mut life, _) = new_task(DesiredState::Running);
        check(&mut life, Event::Withdrawn, "cancelprepare");
        check(&mut life, Event::PrepareFailed { error: "cancelled".into() }, "Shutdown remove");
        let (mut life, _) = new_task(DesiredState::Running);
        check(&mut life, Event::Prepared, "Ready Starting start#0");
        check(&mut life, want(DesiredState::Shutdown), "");
        check(&mut life, started(), "Running stop");
        let (mut life, first) = new_task(DesiredState::Shutdown);
        assert_eq!(short(&first), "Accepted Shutdown");
        check(&mut life, want(DesiredState::Running), "");
    }

    #[test]
    fn what_was_prepared_is_taken_back_before_the_task_has_ended() {
        let cancelled = || Event::PrepareFailed { error: "cancelled".into() };
        let (mut life, _) = new_task(DesiredState::Ready);
        check(&mut life, Event::Prepared, "Ready");
        check(&mut life, want(DesiredState::Shutdown), "cancelprepare");
        check(&mut life, Event::Withdrawn, "");
        check(&mut life, cancelled(), "Shutdown remove");

        // An agent that starts again does not know how far it had come.
        let mut status = TaskStatus::default();
        status.set_state(TaskState::Ready);
        let (mut life, first) = Lifecycle::resumed(task(DesiredState::Shutdown), status, Found::Nothing, true, NOW);
        assert_eq!(short(&first), "Ready cancelprepare");
        check(&mut life, cancelled(), "Shutdown");
    }

    #[test]
    fn a_task_that_ended_without_a_manager_is_the_leaders_again_once_there_is_one() {
        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, started());
        check(&mut life, Event::Connected(false), "");
        check(&mut life, exited(3), "Running wake@6000");
        check(&mut life, Event::Connected(true), "wake@2000");
        let mut taken_away = life.clone();
        check(&mut taken_away, Event::Withdrawn, "Shutdown remove");
        let second_later = Timestamp::from_millis(2000);
        assert_eq!(short(&life.handle(second_later, Event::Timer)), "Failed");
        assert_eq!(life.status().err, "task: non-zero exit (3)");
        assert_eq!(life.status().container.as_ref().map(|c| c.local_restarts), Some(0), "counted without an attempt");
        check(&mut life, Event::Timer, "");
    }

    #[test]
    fn without_a_manager_the_host_follows_the_policy() {
        let policy = RestartPolicy {
            condition: Some(RestartCondition::OnFailure as i32),
            delay_ns: Some(2_000_000_000),
            max_attempts: Some(1),
            window_ns: None,
        };
        let mut task = task(DesiredState::Running);
        task.spec.restart = Some(policy);
        let (mut life, _) = Lifecycle::assigned(Assignment { task, progress: 0 }, true, NOW);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, started());
        check(&mut life, Event::Connected(false), "");
        check(&mut life, exited(1), "Running wake@3000");
        check(&mut life, Event::Timer, "wake@3000");
        assert_eq!(short(&life.handle(Timestamp::from_millis(3000), Event::Timer)), "start#1");
        check(&mut life, started(), "Running");
        check(&mut life, Event::Connected(true), "Running");
        assert_eq!(life.status().container.as_ref().map(|c| c.local_restarts), Some(1));
        check(&mut life, Event::Connected(false), "");
        check(&mut life, exited(1), "Failed");
    }

    #[test]
    fn an_end_that_no_manager_heard_of_is_followed_by_an_attempt() {
        let ended = || {
            let (mut life, _) = new_task(DesiredState::Running);
            life.handle(NOW, Event::Prepared);
            life.handle(NOW, started());
            check(&mut life, exited(3), "Failed");
            check(&mut life, Event::Unheard, "");
            life
        };
        let mut life = ended();
        check(&mut life, Event::Connected(false), "");
        check(&mut life, Event::Unheard, "");
        assert_eq!(life.status().state(), TaskState::Failed, "the word was taken back although a manager was there");

        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, started());
        check(&mut life, exited(3), "Failed");
        check(&mut life, Event::Connected(false), "");
        check(&mut life, Event::Unheard, "Running wake@6000");
        // What the leader decided when it had heard of it after all.
        let mut replaced = life.clone();
        check(&mut replaced, Event::Connected(true), "wake@2000");
        check(&mut replaced, want(DesiredState::Shutdown), "Shutdown");
        assert_eq!(short(&life.handle(Timestamp::from_millis(6000), Event::Timer)), "start#1");
        check(&mut life, started(), "Running");
        check(&mut life, Event::Unheard, "");
    }

    fn launched() -> Event {
        Event::Launched { container: "c1".into(), pid: 7 }
    }

    #[test]
    fn a_task_with_a_health_check_is_starting_until_it_is_healthy() {
        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        check(&mut life, launched(), "Starting");
        assert_eq!(life.status().container.as_ref().map(|c| c.pid), Some(7));
        let mut stopped = life.clone();
        check(&mut stopped, want(DesiredState::Shutdown), "stop");
        check(&mut stopped, started(), "");
        check(&mut stopped, exited(143), "Shutdown");
        let mut died = life.clone();
        check(&mut died, exited(3), "Failed");
        let mut failed = life.clone();
        check(&mut failed, Event::Unhealthy, "Starting stop");
        check(&mut failed, started(), "");
        check(&mut failed, exited(137), "Failed");
        assert_eq!(failed.status().err, "task: non-zero exit (137): unhealthy container");
        check(&mut life, started(), "Running");
        assert!(!life.status().unhealthy);
    }

    #[test]
    fn an_unhealthy_task_is_stopped_and_has_failed() {
        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, launched());
        life.handle(NOW, started());
        let mut unwanted = life.clone();
        check(&mut life, Event::Unhealthy, "Running stop");
        assert!(life.status().unhealthy, "nobody is led there while it stops");
        check(&mut life, Event::Unhealthy, "");
        let mut taken_away = life.clone();
        check(&mut taken_away, want(DesiredState::Shutdown), "");
        check(&mut taken_away, exited(0), "Shutdown");
        check(&mut life, exited(0), "Failed");
        assert_eq!(life.status().err, "unhealthy container");
        check(&mut unwanted, want(DesiredState::Shutdown), "stop");
        check(&mut unwanted, Event::Unhealthy, "");
    }

    #[test]
    fn a_new_attempt_serves_nobody_before_it_is_healthy() {
        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, launched());
        life.handle(NOW, started());
        check(&mut life, Event::Connected(false), "");
        check(&mut life, Event::Unhealthy, "Running stop");
        check(&mut life, exited(137), "Running wake@6000");
        assert_eq!(short(&life.handle(Timestamp::from_millis(6000), Event::Timer)), "start#1");
        check(&mut life, launched(), "Running");
        assert!(life.status().unhealthy);
        check(&mut life, started(), "Running");
        assert!(!life.status().unhealthy);
    }

    #[test]
    fn a_restarted_agent_asks_again_what_was_not_healthy_yet() {
        let found = || Found::Running { container: "c1".into(), pid: 7 };
        for state in [TaskState::New, TaskState::Starting] {
            let mut status = TaskStatus::default();
            status.set_state(state);
            let (mut life, first) = Lifecycle::resumed(task(DesiredState::Running), status, found(), true, NOW);
            assert_eq!(short(&first), "Starting");
            let mut stopped = life.clone();
            check(&mut stopped, want(DesiredState::Shutdown), "stop");
            check(&mut life, started(), "Running");
        }
    }

    fn running() -> Lifecycle {
        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, started());
        life
    }

    fn drain(desired: DesiredState) -> Event {
        let mut task = task(desired);
        task.draining_since = Timestamp::from_millis(77);
        Event::Updated(Box::new(task))
    }

    fn drained(late: &[&str]) -> Event {
        Event::Drained { late: late.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_task_that_served_stops_when_all_have_let_go_of_it() {
        let mut life = running();
        check(&mut life, drained(&[]), "");
        check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
        // That it is to be forgotten as well, that the manager was lost or its health check fails changes nothing.
        check(&mut life, drain(DesiredState::Remove), "");
        check(&mut life, Event::Connected(false), "");
        check(&mut life, Event::Unhealthy, "");
        check(&mut life, Event::Timer, "");
        check(&mut life, Event::Connected(true), "Running");
        check(&mut life, drained(&[]), "stop");
        check(&mut life, drained(&["late"]), "");
        check(&mut life, exited(143), "Shutdown");
        assert_eq!(life.status().message, "shutdown");
    }

    /// A task that served, ended without a manager, and was about to run again when it was told to stop.
    fn starting_again() -> Lifecycle {
        let mut life = running();
        check(&mut life, Event::Connected(false), "");
        check(&mut life, exited(3), "Running wake@6000");
        assert_eq!(short(&life.handle(Timestamp::from_millis(6000), Event::Timer)), "start#1");
        // What was said before it was to stop is about something else.
        check(&mut life, drained(&[]), "");
        check(&mut life, Event::Connected(true), "Running");
        check(&mut life, drain(DesiredState::Shutdown), "");
        life
    }

    #[test]
    fn that_all_have_let_go_is_not_forgotten_while_it_starts() {
        let mut life = starting_again();
        let mut unheard = life.clone();
        check(&mut unheard, started(), "Running wake@3000 drain");
        check(&mut life, drained(&[]), "");
        let mut checking = life.clone();
        check(&mut life, started(), "Running stop");
        check(&mut life, exited(143), "Shutdown");
        assert_eq!(life.status().message, "shutdown");
        check(&mut checking, launched(), "Running stop");

        let mut life = starting_again();
        check(&mut life, drained(&["h3"]), "");
        check(&mut life, started(), "Running Running stop");
        check(&mut life, exited(143), "Shutdown");
        assert_eq!(life.status().message, "shutdown; late to let go of it: h3");
    }

    #[test]
    fn hosts_that_are_late_are_named() {
        let ended = |late: &[&str]| {
            let mut life = running();
            check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
            check(&mut life, drained(late), "Running stop");
            assert!(life.status().message.starts_with("stopping; late to"), "{}", life.status().message);
            check(&mut life, exited(0), "Shutdown");
            life.status().message.clone()
        };
        assert_eq!(ended(&["h3", "h4"]), "shutdown; late to let go of it: h3, h4");
        assert_eq!(
            ended(&["a", "b", "c", "d", "e", "f", "g"]),
            "shutdown; late to let go of it: a, b, c, d, e and 2 more"
        );
    }

    #[test]
    fn draining_ends_after_its_time_without_a_word() {
        let mut life = running();
        check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
        assert_eq!(short(&life.handle(Timestamp::from_millis(2999), Event::Timer)), "");
        assert_eq!(short(&life.handle(Timestamp::from_millis(3000), Event::Timer)), "Running stop");
        check(&mut life, drained(&[]), "");
        check(&mut life, exited(0), "Shutdown");
        assert_eq!(life.status().message, "shutdown; no manager said in time that all hosts had let go of it");
    }

    #[test]
    fn only_what_runs_and_has_a_place_in_the_cluster_drains() {
        // It ended meanwhile.
        let mut life = running();
        check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
        check(&mut life, exited(1), "Shutdown");
        check(&mut life, drained(&[]), "");
        // The host leaves, or the task was given up: at once.
        let mut life = running();
        check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
        check(&mut life, Event::Withdrawn, "stop");
        let mut life = running();
        check(&mut life, Event::Withdrawn, "stop");
        // Not healthy yet, or any more: nobody is led there.
        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, launched());
        check(&mut life, drain(DesiredState::Shutdown), "stop");
        // Already failing.
        let mut life = running();
        check(&mut life, Event::Unhealthy, "Running stop");
        check(&mut life, drain(DesiredState::Shutdown), "");
        // An order of a leader that knows nothing of draining.
        let mut life = running();
        check(&mut life, want(DesiredState::Shutdown), "stop");
    }

    #[test]
    fn a_restarted_agent_waits_again() {
        let mut status = TaskStatus::default();
        status.set_state(TaskState::Running);
        let mut known = task(DesiredState::Shutdown);
        known.draining_since = Timestamp::from_millis(77);
        let found = Found::Running { container: "c1".into(), pid: 7 };
        let (mut life, first) = Lifecycle::resumed(known, status, found, false, NOW);
        assert_eq!(short(&first), "Running wake@3000 drain");
        check(&mut life, drained(&[]), "stop");
    }

    #[test]
    fn what_waits_says_so() {
        let (mut life, _) = new_task(DesiredState::Running);
        check(&mut life, Event::Delayed { reason: "waiting for secrets".into() }, "Preparing");
        assert_eq!(life.status().message, "waiting for secrets");
        check(&mut life, Event::Prepared, "Ready Starting start#0");
        check(&mut life, Event::Delayed { reason: "late".into() }, "");
    }

    #[test]
    fn a_task_that_may_have_started_does_not_start_again() {
        let lost = Assignment { task: task(DesiredState::Running), progress: Progress::MayHaveStarted as i32 };
        let (life, first) = Lifecycle::assigned(lost, true, NOW);
        assert_eq!(short(&first), "Failed");
        assert_eq!(life.status().err, "the container is gone, and nobody saw it end");
    }

    #[test]
    fn a_restarted_agent_adopts_what_runs() {
        let mut status = TaskStatus::default();
        status.set_state(TaskState::Running);
        let found = Found::Running { container: "c1".into(), pid: 7 };
        let (mut life, first) = Lifecycle::resumed(task(DesiredState::Running), status.clone(), found, true, NOW);
        assert_eq!(short(&first), "Running");
        check(&mut life, want(DesiredState::Shutdown), "stop");
        let (_, first) = Lifecycle::resumed(task(DesiredState::Running), status, Found::Nothing, true, NOW);
        assert_eq!(short(&first), "Failed");
    }
}
