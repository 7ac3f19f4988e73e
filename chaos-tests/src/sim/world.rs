//! Everything that there is, and the loop that lets one thing after another happen.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use deploy::control::{ControlError, Op, Reply, Request};
use deploy::dispatcher::Update;
use deploy::lifecycle;
use deploy::model::{NodeId, TaskId, Timestamp};

use super::drain::Collecting;
use super::host::Host;
use super::log::Log;
use super::manager::Manager;
use super::plain::Start;
use super::queue::Queue;
use super::rng::Rng;
use super::session::Session;
use super::user::User;
use super::{Scenario, Summary};
use crate::check::{Checker, Fact, Violation};

/// Where the clock starts: any time that is not zero, which means never.
const START: Timestamp = Timestamp::from_millis(1_000_000_000);

/// Events that are shown when something is wrong.
const TRACE: usize = 60;

/// Something that is going to happen.
pub(super) enum Event {
    /// A proposal is on a quorum.
    Commit {
        proposal: u64,
    },
    /// A manager applies its next entry.
    Apply {
        manager: usize,
    },
    /// A request reaches the leader.
    Arrive(Box<Command>),
    /// Its answer reaches the one who asked.
    Answered {
        waiter: Waiter,
        outcome: Outcome,
    },
    /// The brain asked to be woken.
    Wake {
        manager: usize,
        token: u64,
    },
    /// A manager learns that it does not lead any more.
    StepDown {
        manager: usize,
        term: u64,
    },
    Elect {
        round: u64,
    },
    ManagerReturns {
        manager: usize,
    },
    /// An agent looks for a manager.
    Connect {
        host: NodeId,
        boot: u64,
    },
    /// One side of a session stops waiting for the other.
    Silence {
        session: u64,
    },
    /// A manager looks what an agent must be told.
    Flush {
        session: u64,
    },
    /// It tells what it saw, after others may have seen more.
    Tell {
        session: u64,
    },
    ToAgent {
        session: u64,
        host: NodeId,
        boot: u64,
        message: Down,
    },
    ToManager {
        session: u64,
        message: Up,
    },
    /// A step of a task came to something.
    Task {
        host: NodeId,
        boot: u64,
        task: TaskId,
        event: lifecycle::Event,
    },
    /// A container begins to run.
    Begin {
        host: NodeId,
        boot: u64,
        task: TaskId,
        attempt: u32,
    },
    /// A container ends.
    End {
        host: NodeId,
        task: TaskId,
        epoch: u64,
        code: i32,
    },
    /// What a task left is removed.
    Remove {
        host: NodeId,
        boot: u64,
        task: TaskId,
    },
    Timers {
        host: NodeId,
        boot: u64,
    },
    /// A place for a plain container is asked for, again.
    AskForPlace(Start),
    /// It should have come.
    PlaceLate(Start),
    /// A plain container is started again.
    PlainStarts {
        host: NodeId,
        boot: u64,
        container: String,
    },
    /// One ends.
    PlainEnds {
        host: NodeId,
        container: String,
        start: u64,
    },
    /// A host looks at its places again.
    SettlePlain {
        host: NodeId,
        boot: u64,
    },
    /// Managers hear from each other which hosts have let go of tasks that drain.
    Drains,
    /// The leader looks who is silent.
    Look,
    UserActs,
    FaultStrikes,
    /// A cut host can be reached again.
    Heal {
        host: NodeId,
    },
    /// A host, or its daemon, starts again.
    Return {
        host: NodeId,
    },
}

/// What a manager sends to an agent.
pub(super) enum Down {
    Opened,
    Refused,
    Removed,
    Assignments(Update),
    Committed(u64),
    Drained { tasks: Vec<TaskId>, late: Vec<String> },
}

/// What an agent sends to a manager.
pub(super) enum Up {
    Statuses {
        sequence: u64,
        reports: Vec<deploy::control::TaskReport>,
    },
    /// The assignments of that revision are carried out.
    Applied(u64),
}

/// A request on its way to the leader.
pub(super) struct Command {
    pub(super) request: Request,
    pub(super) waiter: Waiter,
    /// It looks for a leader until then.
    pub(super) deadline: Timestamp,
}

/// Who waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    User(u64),
    /// The session begins with it.
    Open(u64),
    Statuses {
        session: u64,
        sequence: u64,
    },
    /// A plain container starts with it.
    Place(Start),
    /// A host has given a place back.
    GivenBack {
        host: NodeId,
        boot: u64,
        place: TaskId,
    },
    /// It does not matter.
    Nobody,
}

/// What the leader decided on a request.
pub(super) type Decided = Result<Reply, ControlError>;

/// What a request came to.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Done(Reply, u64),
    Refused(ControlError),
    NoLeader,
    Unknown,
}

pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) rng: Rng,
    pub(super) log: Log,
    pub(super) managers: Vec<Manager>,
    pub(super) hosts: BTreeMap<NodeId, Host>,
    pub(super) sessions: BTreeMap<u64, Session>,
    pub(super) collecting: Vec<Collecting>,
    /// A look at them is due.
    pub(super) drains_due: bool,
    pub(super) user: User,
    pub(super) scenario: Scenario,
    /// Faults strike, and containers and steps fail.
    pub(super) stormy: bool,
    pub(super) summary: Summary,
    /// Highest index that any manager applied.
    pub(super) applied: u64,
    pub(super) next_session: u64,
    pub(super) heard: BTreeMap<NodeId, Timestamp>,
    pub(super) violation: Option<Violation>,
    pub(super) trace: VecDeque<String>,
    queue: Queue<Event>,
    checker: Checker,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let managers = (0..3).map(|_| Manager::new(&mut rng)).collect();
        let mut world = Self {
            now: START,
            rng,
            log: Log::new(),
            managers,
            hosts: BTreeMap::new(),
            sessions: BTreeMap::new(),
            collecting: Vec::new(),
            drains_due: false,
            user: User::default(),
            scenario,
            stormy: true,
            summary: Summary::default(),
            applied: 0,
            next_session: 0,
            heard: BTreeMap::new(),
            violation: None,
            trace: VecDeque::new(),
            queue: Queue::new(),
            checker: Checker::default(),
        };
        world.elect(0);
        world.begin_cluster();
        world.after_ms(50, Event::Look);
        world.after_ms(500, Event::UserActs);
        world.after_ms(3000, Event::FaultStrikes);
        world
    }

    /// Lets the next thing happen. False when something is wrong, or nothing is left to happen.
    pub(super) fn step(&mut self) -> bool {
        if self.violation.is_some() {
            return false;
        }
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        self.summary.steps += 1;
        self.happen(event);
        self.violation.is_none()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Commit { proposal } => self.commit(proposal),
            Event::Apply { manager } => self.apply(manager),
            Event::Arrive(command) => self.arrive(*command),
            Event::Answered { waiter, outcome } => self.answered(waiter, outcome),
            Event::Wake { manager, token } => self.wake(manager, token),
            Event::StepDown { manager, term } => self.step_down(manager, term),
            Event::Elect { round } if round == self.log.round => {
                let standing: Vec<usize> = (0..self.managers.len()).filter(|m| self.managers[*m].up).collect();
                if let Some(manager) = self.rng.pick(&standing).copied() {
                    self.elect(manager);
                }
            }
            Event::Elect { .. } => {}
            Event::ManagerReturns { manager } => self.manager_returns(manager),
            Event::Connect { host, boot } => self.connect(&host, boot),
            Event::Silence { session } => self.close(session),
            Event::Flush { session } => self.flush(session),
            Event::Tell { session } => self.tell(session),
            Event::ToAgent { session, host, boot, message } => self.agent_hears(session, &host, boot, message),
            Event::ToManager { session, message } => self.manager_hears(session, message),
            Event::Task { host, boot, task, event } => self.task_event(&host, boot, &task, event),
            Event::Begin { host, boot, task, attempt } => self.container_begins(&host, boot, &task, attempt),
            Event::End { host, task, epoch, code } => self.container_ends(&host, &task, epoch, code),
            Event::Remove { host, boot, task } => self.container_removed(&host, boot, &task),
            Event::Timers { host, boot } => self.timers(&host, boot),
            Event::AskForPlace(start) => self.ask_for_place(start),
            Event::PlaceLate(start) => self.place_late(&start),
            Event::PlainStarts { host, boot, container } => {
                let known = self.hosts.get(&host).filter(|known| known.boot == boot);
                if known.and_then(|known| known.plain.get(&container)).is_some_and(|plain| plain.again) {
                    self.start_plain(&host, &container);
                }
            }
            Event::PlainEnds { host, container, start } => self.plain_ends(&host, &container, start),
            Event::SettlePlain { host, boot } => self.settle_again(&host, boot),
            Event::Drains => self.look_at_drains(),
            Event::Look => self.look(),
            Event::UserActs => self.user_acts(),
            Event::FaultStrikes => self.fault_strikes(),
            Event::Heal { host } => self.heal(&host),
            Event::Return { host } => self.host_returns(&host),
        }
    }

    /// Shows a fact to the properties.
    pub(super) fn fact(&mut self, fact: &Fact<'_>) {
        if self.violation.is_none()
            && let Err(violation) = self.checker.observe(fact)
        {
            self.violation = Some(violation);
        }
    }

    /// A line for those who will read why the run failed.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        let ms = self.now.since(START).as_millis();
        self.trace.push_back(format!("{:>4}.{:03} {}", ms / 1000, ms % 1000, line()));
    }

    pub(super) fn at(&mut self, at: Timestamp, event: Event) {
        self.queue.push(at.max(self.now), event);
    }

    pub(super) fn after_ms(&mut self, ms: u64, event: Event) {
        self.at(self.now.plus(Duration::from_millis(ms)), event);
    }

    /// Sends a request to whoever leads.
    pub(super) fn request(&mut self, op: Op, waiter: Waiter) {
        let deadline = self.now.plus(Duration::from_secs(10));
        let command = Command { request: Request::from(op), waiter, deadline };
        let delay = self.rng.range(1, 20);
        self.after_ms(delay, Event::Arrive(Box::new(command)));
    }

    pub(super) fn answered(&mut self, waiter: Waiter, outcome: Outcome) {
        match waiter {
            Waiter::User(number) => self.user_answered(number, outcome),
            Waiter::Open(session) => self.session_registered(session, outcome),
            Waiter::Statuses { session, sequence } => self.statuses_answered(session, sequence, outcome),
            Waiter::Place(start) => self.place_answered(start, outcome),
            Waiter::GivenBack { host, boot, place } => self.given_back(&host, boot, &place, &outcome),
            Waiter::Nobody => {}
        }
    }
}

/// The end of an id, which is what tells those of a run apart.
pub(super) fn short(id: &impl std::fmt::Display) -> String {
    let id = id.to_string();
    let start = id.len().saturating_sub(6);
    id.get(start..).unwrap_or_default().to_owned()
}
