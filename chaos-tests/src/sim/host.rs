//! Hosts: a daemon around the agent's core, whose memory outlives daemon and host, and containers, which outlive the daemon
//! alone.
//!
//! The executor is a fake: every step takes a random time, fails at times, and containers crash at times.

use std::collections::{BTreeMap, BTreeSet};

use deploy::agent::{Core, Memory, Places, Step};
use deploy::control::{NodeSession, Op, RegisterNode};
use deploy::lifecycle::{Action, Event as TaskEvent, Found};
use deploy::model::{NodeDescription, NodeId, NodeRole, TaskId, Timestamp};
use prost::Message as _;

use super::plain::Plain;
use super::session::Phase;
use super::world::{Event, Up, Waiter, World, short};
use crate::check::{Fact, Violation};

/// Reports in one batch. Less than the real one, so that batches follow each other.
const BATCH: usize = 8;

pub(super) struct Host {
    pub(super) description: NodeDescription,
    /// +1 at each start of the daemon; nothing of an earlier life happens in a later one.
    pub(super) boot: u64,
    /// The daemon runs.
    pub(super) daemon: bool,
    /// No manager can be reached.
    pub(super) cut: bool,
    /// While it is cut, the other hosts cannot reach it either.
    pub(super) gossip_cut: bool,
    /// Everything takes so many times longer.
    pub(super) slow: u64,
    pub(super) agent: Core,
    pub(super) session: Option<u64>,
    pub(super) containers: BTreeMap<TaskId, Container>,
    /// What its users run by hand, by id.
    pub(super) plain: BTreeMap<String, Plain>,
    pub(super) places: Places,
    /// A look at them is due.
    pub(super) settles: bool,
    /// Places that are being given back.
    pub(super) giving: BTreeSet<TaskId>,
    /// The cluster told it that it was removed.
    pub(super) removed: bool,
    epochs: u64,
}

pub(super) struct Container {
    pub(super) running: bool,
    /// Tells this container from others of the task.
    epoch: u64,
    code: i32,
}

impl Host {
    fn new(number: u64, now: Timestamp) -> Self {
        let mut description = NodeDescription {
            hostname: format!("host{number}"),
            architecture: "x86_64".into(),
            os: "linux".into(),
            engine_version: "0.1.0".into(),
            data_path_addr: format!("10.9.{}.{}", number / 250, number % 250 + 1),
            control_addr: format!("10.9.{}.{}:2377", number / 250, number % 250 + 1),
            engine_id: format!("engine{number}"),
            feature_level: 1,
            ..NodeDescription::default()
        };
        description.resources.nano_cpus = 4_000_000_000;
        description.resources.memory_bytes = 2 << 30;
        Self {
            description,
            boot: 1,
            daemon: true,
            cut: false,
            gossip_cut: false,
            slow: 1,
            agent: Core::start(Memory::default(), BTreeMap::new(), now).0,
            session: None,
            containers: BTreeMap::new(),
            plain: BTreeMap::new(),
            places: Places::default(),
            settles: false,
            giving: BTreeSet::new(),
            removed: false,
            epochs: 0,
        }
    }

    /// What a session of that boot begins with.
    pub(super) fn session_op(&self, generation: u64) -> Op {
        Op::NodeSession(Box::new(NodeSession {
            node_id: NodeId::new(self.description.engine_id.clone()),
            generation,
            description: self.description.clone(),
            addr: self.description.data_path_addr.clone(),
            ..NodeSession::default()
        }))
    }

    fn found(&self) -> BTreeMap<TaskId, Found> {
        let one = |container: &Container| match container.running {
            true => Found::Running { container: "c0".repeat(32), pid: 4242 },
            false => Found::Exited { exit_code: Some(container.code), oom_killed: false },
        };
        self.containers.iter().map(|(id, container)| (id.clone(), one(container))).collect()
    }
}

impl World {
    /// A new host asks to be let in.
    pub(super) fn join(&mut self) -> NodeId {
        self.summary.hosts += 1;
        let number = self.summary.hosts;
        let id = NodeId::from(self.rng.id());
        let mut host = Host::new(number, self.now);
        // The engine's id stands for the certificate: it names the host to the managers.
        host.description.engine_id = id.to_string();
        let description = host.description.clone();
        let addr = description.data_path_addr.clone();
        self.hosts.insert(id.clone(), host);
        let register = RegisterNode {
            node_id: id.clone(),
            role: NodeRole::Worker as i32,
            description,
            addr,
            ..RegisterNode::default()
        };
        let number = self.user.expect(super::user::Wish::Join(id.clone()));
        self.request(Op::RegisterNode(Box::new(register)), Waiter::User(number));
        id
    }

    /// The daemon is killed; containers go on.
    pub(super) fn kill_daemon(&mut self, id: &NodeId, down_ms: u64) {
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.daemon) else { return };
        host.daemon = false;
        host.boot += 1;
        if let Some(session) = host.session.take() {
            self.abandon(session);
        }
        self.note(|| format!("daemon of {} is killed", short(id)));
        self.after_ms(down_ms, Event::Return { host: id.clone() });
    }

    /// The host loses power.
    pub(super) fn crash_host(&mut self, id: &NodeId, down_ms: u64) {
        self.kill_daemon(id, down_ms);
        self.note(|| format!("host {} loses power", short(id)));
        let Some(host) = self.hosts.get_mut(id) else { return };
        let containers = std::mem::take(&mut host.containers);
        for (task, _) in containers.iter().filter(|(_, c)| c.running) {
            self.fact(&Fact::Ended { task });
        }
        self.end_all_plain(id);
    }

    /// The daemon starts (again).
    pub(super) fn host_returns(&mut self, id: &NodeId) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id).filter(|host| !host.daemon) else { return };
        host.daemon = true;
        host.boot += 1;
        // A daemon that starts again does not know that it was removed; the next manager tells it.
        host.removed = false;
        let found = host.found();
        let memory = Memory::decode(host.agent.snapshot().to_bytes().as_slice()).expect("a memory is readable");
        let (agent, steps) = Core::start(memory, found.clone(), now);
        host.agent = agent;
        let boot = host.boot;
        self.note(|| format!("daemon of {} starts", short(id)));
        for (task, _) in found.into_iter().filter(|(_, found)| matches!(found, Found::Running { .. })) {
            let event = TaskEvent::Started { container: "c0".repeat(32), pid: 4242 };
            self.after_ms(1, Event::Task { host: id.clone(), boot, task, event });
        }
        self.find_plain(id);
        self.carry_out(id, steps);
        self.after_ms(5, Event::Connect { host: id.clone(), boot });
    }

    pub(super) fn task_event(&mut self, id: &NodeId, boot: u64, task: &TaskId, event: TaskEvent) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.boot == boot && host.daemon) else { return };
        let steps = host.agent.event(task, event, now);
        self.carry_out(id, steps);
    }

    pub(super) fn timers(&mut self, id: &NodeId, boot: u64) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.boot == boot && host.daemon) else { return };
        let steps = host.agent.fire_timers(now);
        self.carry_out(id, steps);
    }

    /// Does what the agent's core asks for, and lets it report.
    pub(super) fn carry_out(&mut self, id: &NodeId, steps: Vec<Step>) {
        for (task, action) in steps {
            self.act(id, task, action);
        }
        let Some(host) = self.hosts.get_mut(id) else { return };
        let boot = host.boot;
        let timer = host.agent.next_timer();
        let reports = host.agent.next_reports(BATCH);
        let session = host.session;
        let gone = host.removed && host.agent.is_empty();
        if let Some((sequence, reports)) = reports
            && let Some(session) = session
        {
            self.send_up(session, Up::Statuses { sequence, reports });
        }
        if let Some(at) = timer {
            self.at(at, Event::Timers { host: id.clone(), boot });
        }
        if gone {
            self.depart(id);
        } else {
            self.settle_plain(id);
        }
    }

    /// A host that was removed has stopped everything.
    fn depart(&mut self, id: &NodeId) {
        let Some(host) = self.hosts.remove(id) else { return };
        if !host.containers.is_empty() {
            let what = format!("host {id} left the containers of {:?}", host.containers.keys());
            self.violation = Some(Violation { property: "nothing is left behind", what });
        }
        self.note(|| format!("host {} is gone for good", short(id)));
    }

    fn act(&mut self, id: &NodeId, task: TaskId, action: Action) {
        let Some(host) = self.hosts.get(id) else { return };
        let (boot, slow) = (host.boot, host.slow);
        let epoch = host.containers.get(&task).map_or(0, |c| c.epoch);
        let fails = |world: &mut Self, percent: u64| world.stormy && world.rng.percent(percent);
        let host = id.clone();
        match action {
            Action::Prepare => {
                let event = match fails(self, 4) {
                    true => TaskEvent::PrepareFailed { error: "No such image".into() },
                    false => TaskEvent::Prepared,
                };
                let delay = slow * self.rng.range(5, 400);
                self.after_ms(delay, Event::Task { host, boot, task, event });
            }
            Action::CancelPrepare => {
                let event = TaskEvent::PrepareFailed { error: "cancelled".into() };
                let delay = slow * self.rng.range(1, 50);
                self.after_ms(delay, Event::Task { host, boot, task, event });
            }
            Action::Start { .. } if fails(self, 4) => {
                let event = TaskEvent::StartFailed { error: "exec: no such file".into() };
                let delay = slow * self.rng.range(5, 100);
                self.after_ms(delay, Event::Task { host, boot, task, event });
            }
            Action::Start { attempt } => {
                let delay = slow * self.rng.range(5, 100);
                self.after_ms(delay, Event::Begin { host, boot, task, attempt });
            }
            Action::Stop { .. } => {
                let delay = slow * self.rng.range(1, 1500);
                self.after_ms(delay, Event::End { host, task, epoch, code: 143 });
            }
            Action::Remove => {
                let delay = slow * self.rng.range(1, 100);
                self.after_ms(delay, Event::Remove { host, boot, task });
            }
            // Its session sees that by itself.
            Action::Drain | Action::WakeAt(_) | Action::Report(_) => {}
        }
    }

    pub(super) fn container_begins(&mut self, id: &NodeId, boot: u64, task: &TaskId, attempt: u32) {
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.boot == boot && host.daemon) else { return };
        let Some(known) = host.agent.task(task).cloned() else { return };
        host.epochs += 1;
        let epoch = host.epochs;
        host.containers.insert(task.clone(), Container { running: true, epoch, code: 0 });
        self.summary.containers += 1;
        self.note(|| format!("{} starts on {} ({}.{})", short(task), short(id), known.service_name, known.slot));
        self.fact(&Fact::Started { host: id, task: &known, attempt });
        let event = TaskEvent::Started { container: "c0".repeat(32), pid: 4242 };
        let delay = self.rng.range(1, 20);
        self.after_ms(delay, Event::Task { host: id.clone(), boot, task: task.clone(), event });
        if self.stormy && self.rng.percent(15) {
            let (delay, code) = (self.rng.range(10, 20_000), i32::from(self.rng.percent(80)));
            self.after_ms(delay, Event::End { host: id.clone(), task: task.clone(), epoch, code });
        }
    }

    pub(super) fn container_ends(&mut self, id: &NodeId, task: &TaskId, epoch: u64, code: i32) {
        let Some(host) = self.hosts.get_mut(id) else { return };
        let Some(container) = host.containers.get_mut(task).filter(|c| c.running && c.epoch == epoch) else { return };
        (container.running, container.code) = (false, code);
        let boot = host.boot;
        self.note(|| format!("{} ends on {} with {code}", short(task), short(id)));
        self.fact(&Fact::Ended { task });
        let event = TaskEvent::Exited { exit_code: Some(code), oom_killed: false };
        let delay = self.rng.range(1, 20);
        self.after_ms(delay, Event::Task { host: id.clone(), boot, task: task.clone(), event });
    }

    pub(super) fn container_removed(&mut self, id: &NodeId, boot: u64, task: &TaskId) {
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.boot == boot && host.daemon) else { return };
        if host.containers.remove(task).is_some_and(|container| container.running) {
            let what = format!("the container of {task} was removed while it ran");
            self.violation = Some(Violation { property: "nothing is left behind", what });
        }
        self.task_event(id, boot, task, TaskEvent::Removed);
    }

    /// Whether the host's session works.
    pub(super) fn is_attached(&self, id: &NodeId) -> bool {
        let session = self.hosts.get(id).and_then(|host| host.session);
        session.and_then(|session| self.sessions.get(&session)).is_some_and(|s| s.phase == Phase::Talks && !s.severed)
    }
}
