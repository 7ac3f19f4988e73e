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

/// What a task says that waits for another one of its slot.
const HELD: &str = "prepared; waits until the task before it in its slot has ended on this host";

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
    /// The task before it in its slot has ended on this host ([`Lifecycle::hold`]).
    SlotFree,
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
    /// Another task of its slot runs here that is to stop.
    held: bool,
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
        Self { task, status, phase, connected, withdrawn, told_end: None, undrained: None, held: false, let_go: None }
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

    /// Whether its container may run although it is to stop.
    pub fn is_leaving(&self) -> bool {
        let may_run = matches!(
            self.phase,
            Phase::Starting
                | Phase::Checking
                | Phase::Running
                | Phase::Draining { .. }
                | Phase::Stopping
                | Phase::Failing
        );
        may_run && self.must_stop()
    }

    /// Whether it has not begun to start, so that it can be held.
    pub fn can_be_held(&self) -> bool {
        matches!(self.phase, Phase::Preparing | Phase::Ready)
    }

    /// Says whether it has to wait before it starts: another task of its slot is on this host and has not ended. The leader
    /// lets no task start before those ahead of it in its slot have ended, as far as it knows. It does not know of an attempt
    /// that this host made by itself, nor of what still runs on a host that it had given up.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
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
            Phase::Ready if self.task.desired() >= DesiredState::Running && !self.held => {
                self.phase = Phase::Starting;
                self.note(now, TaskState::Starting, "starting", actions);
                actions.push(Action::Start { attempt: self.attempt() });
            }
            Phase::Ready if self.task.desired() >= DesiredState::Running && self.status.message != HELD => {
                self.note(now, TaskState::Ready, HELD, actions);
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
mod tests;
