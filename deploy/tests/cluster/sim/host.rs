//! A host: its agent follows `lifecycle`; its containers do what their arguments say.
//!
//! Arguments: `crash=2s` ends with 1 after that time, `exit=2s` with 0, `pull=5s` takes that long to prepare, `stop=3s`
//! to stop, `reject` cannot be prepared, `nostart` cannot be started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deploy::control::{NodeDown, NodeSession, Op, RegisterNode, ReportStatuses, TaskReport};
use deploy::dispatcher::drain::Cover;
use deploy::dispatcher::{AssignmentSet, Stamp};
use deploy::lifecycle::{Action, Event, Found, Lifecycle};
use deploy::model::{NodeDescription, NodeId, NodeRole, Task, TaskId, TaskStatus};

use super::{STEP, Sim, node_id};

/// One host.
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) description: NodeDescription,
    pub(crate) generation: u64,
    pub(crate) connected: bool,
    /// Whether the machine runs at all.
    pub(crate) alive: bool,
    /// Counts lives of the machine: what was to happen in an earlier one does not.
    pub(crate) life: u64,
    pub(crate) set: AssignmentSet,
    pub(crate) stamp: Option<Stamp>,
    /// How far it is, as its session knows.
    pub(crate) cover: Cover,
    /// It takes what it is told, and does not say that it has carried it out.
    pub(crate) deaf: bool,
    /// Its tasks that its session knows to drain.
    pub(crate) draining: BTreeSet<TaskId>,
    pub(crate) tasks: BTreeMap<TaskId, Lifecycle>,
    /// Containers that run.
    pub(crate) running: BTreeSet<TaskId>,
    /// What the agent keeps on disk.
    saved: BTreeMap<TaskId, (Task, TaskStatus)>,
    reports: BTreeMap<TaskId, TaskStatus>,
}

/// What a host of that name says of itself.
pub(crate) fn describe(name: &str, number: usize) -> NodeDescription {
    let mut description = NodeDescription {
        hostname: name.to_owned(),
        architecture: "x86_64".into(),
        os: "linux".into(),
        engine_version: "0.1.0".into(),
        data_path_addr: format!("10.9.0.{number}"),
        control_addr: format!("10.9.0.{number}:2377"),
        engine_id: format!("engine-{name}"),
        feature_level: 1,
        ..NodeDescription::default()
    };
    description.resources.nano_cpus = 4_000_000_000;
    description.resources.memory_bytes = 4 << 30;
    description
}

/// The value of a container's argument.
fn argument(task: &Task, name: &str) -> Option<Duration> {
    let args = &task.spec.container.args;
    let value = args.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('='))?;
    Some(super::script::duration(value))
}

fn flag(task: &Task, name: &str) -> bool {
    task.spec.container.args.iter().any(|a| a == name)
}

impl Sim {
    /// A host joins and its agent's session begins.
    pub(crate) fn add_host(&mut self, name: &str, role: NodeRole, change: impl Fn(&mut NodeDescription)) {
        let mut description = describe(name, self.hosts.len() + 2);
        change(&mut description);
        let id = node_id(name);
        let addr = description.data_path_addr.clone();
        self.request(Op::RegisterNode(Box::new(RegisterNode {
            node_id: id.clone(),
            role: role as i32,
            description: description.clone(),
            addr,
            ..RegisterNode::default()
        })))
        .expect("register");
        let host = Host {
            id,
            description,
            generation: 0,
            connected: false,
            alive: true,
            life: 0,
            set: AssignmentSet::default(),
            stamp: None,
            cover: Cover::default(),
            deaf: false,
            draining: BTreeSet::new(),
            tasks: BTreeMap::new(),
            running: BTreeSet::new(),
            saved: BTreeMap::new(),
            reports: BTreeMap::new(),
        };
        self.hosts.insert(name.to_owned(), host);
        self.connect(name);
    }

    /// The host's network is cut: its agent goes on alone, and the cluster finds it Down.
    pub(crate) fn cut(&mut self, name: &str) {
        self.disconnect(name);
        self.lose(name);
    }

    /// The host loses power, and the cluster finds it Down.
    pub(crate) fn kill(&mut self, name: &str) {
        self.disconnect(name);
        let host = self.hosts.get_mut(name).expect("host");
        host.alive = false;
        host.life += 1;
        host.running.clear();
        host.saved = host.tasks.iter().map(|(id, l)| (id.clone(), (l.task().clone(), l.status().clone()))).collect();
        host.tasks.clear();
        host.set = AssignmentSet::default();
        self.lose(name);
    }

    /// The daemon is killed and starts again at once; containers go on, and steps that were under way are forgotten.
    pub(crate) fn restart_daemon(&mut self, name: &str) {
        self.disconnect(name);
        let host = self.hosts.get_mut(name).expect("host");
        host.alive = false;
        host.life += 1;
        host.saved = host.tasks.iter().map(|(id, l)| (id.clone(), (l.task().clone(), l.status().clone()))).collect();
        host.tasks.clear();
        host.set = AssignmentSet::default();
        self.connect(name);
    }

    fn lose(&mut self, name: &str) {
        let host = &self.hosts[name];
        let op = NodeDown { node_id: host.id.clone(), generation: host.generation, reason: "silent".into() };
        self.request(Op::NodeDown(op)).expect("down");
    }

    fn disconnect(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).expect("host");
        host.connected = false;
        host.stamp = None;
        host.cover = Cover::default();
        host.draining.clear();
        host.reports.clear();
        for task in host.tasks.keys().cloned().collect::<Vec<_>>() {
            self.tell(name, &task, Event::Connected(false));
        }
    }

    /// The host is back: a machine that was off starts, and the session begins.
    pub(crate) fn connect(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).expect("host");
        let booted = !host.alive;
        if booted || host.generation == 0 {
            host.generation += 1;
            host.alive = true;
        }
        let op = NodeSession {
            node_id: host.id.clone(),
            generation: host.generation,
            description: host.description.clone(),
            addr: host.description.data_path_addr.clone(),
            ..NodeSession::default()
        };
        let saved = std::mem::take(&mut host.saved);
        for (id, (task, status)) in saved {
            let found = match self.hosts[name].running.contains(&id) {
                true => Found::Running { container: "c0".repeat(32), pid: 4242 },
                false => Found::Nothing,
            };
            let (life, actions) = Lifecycle::resumed(task, status, found, false, self.now);
            let host = self.hosts.get_mut(name).expect("host");
            host.tasks.insert(id.clone(), life);
            self.act(name, &id, actions);
            if self.hosts[name].running.contains(&id) {
                self.later(STEP, name, &id, Event::Started { container: "c0".repeat(32), pid: 4242 });
            }
        }
        if let Err(error) = self.request(Op::NodeSession(Box::new(op))) {
            self.log.push(format!("session of {name}: {error}"));
            return;
        }
        self.hosts.get_mut(name).expect("host").connected = true;
        for task in self.hosts[name].tasks.keys().cloned().collect::<Vec<_>>() {
            self.tell(name, &task, Event::Connected(true));
        }
        let stamp = Stamp { incarnation: 1, term: self.term, revision: self.store.revision() };
        let set = deploy::dispatcher::assignment(&self.store, &node_id(name));
        self.send(name, &set, stamp);
        self.drain();
        self.flush_reports();
    }

    /// The agent makes its tasks those of its assignment set.
    pub(crate) fn obey(&mut self, name: &str) {
        let host = &self.hosts[name];
        let wanted: Vec<_> = host.set.tasks().cloned().collect();
        let ids: BTreeSet<TaskId> = wanted.iter().map(|a| a.task.id.clone()).collect();
        let withdrawn: Vec<TaskId> = host.tasks.keys().filter(|id| !ids.contains(*id)).cloned().collect();
        for assignment in wanted {
            let id = assignment.task.id.clone();
            match self.hosts[name].tasks.get(&id).map(|l| *l.task() != assignment.task) {
                Some(true) => self.tell(name, &id, Event::Updated(Box::new(assignment.task))),
                Some(false) => {}
                None => {
                    let (life, actions) = Lifecycle::assigned(assignment, true, self.now);
                    self.hosts.get_mut(name).expect("host").tasks.insert(id.clone(), life);
                    self.act(name, &id, actions);
                }
            }
        }
        for id in withdrawn {
            self.tell(name, &id, Event::Withdrawn);
        }
    }

    /// The host stops saying what it has carried out, or says it again.
    pub(crate) fn deafen(&mut self, name: &str, deaf: bool) {
        let host = self.hosts.get_mut(name).expect("host");
        host.deaf = deaf;
        if let Some(stamp) = host.stamp.filter(|_| !deaf) {
            host.cover.acknowledged(stamp.revision);
        }
        self.drain();
    }

    /// Something that was to happen on a host happens, unless the machine was switched off meanwhile.
    pub(crate) fn agent_event(&mut self, name: &str, life: u64, task: &TaskId, event: Event) {
        let host = self.hosts.get_mut(name).expect("host");
        let goes = match event {
            // A container ends whether the daemon was started again or not; one that is gone does not end again.
            Event::Exited { .. } => host.running.remove(task),
            _ => host.life == life,
        };
        if !goes {
            return;
        }
        self.tell(name, task, event);
    }

    fn tell(&mut self, name: &str, task: &TaskId, event: Event) {
        let now = self.now;
        let Some(life) = self.hosts.get_mut(name).and_then(|h| h.tasks.get_mut(task)) else { return };
        let actions = life.handle(now, event);
        if life.is_gone() {
            self.hosts.get_mut(name).expect("host").tasks.remove(task);
        }
        self.act(name, task, actions);
    }

    fn act(&mut self, name: &str, id: &TaskId, actions: Vec<Action>) {
        let Some(task) = self.hosts[name].tasks.get(id).map(|l| l.task().clone()) else { return };
        for action in actions {
            match action {
                Action::Prepare if flag(&task, "reject") => {
                    self.later(STEP, name, id, Event::PrepareFailed { error: "No such image: nosuch".into() });
                }
                Action::Prepare => {
                    self.later(argument(&task, "pull").unwrap_or(STEP), name, id, Event::Prepared);
                }
                Action::CancelPrepare => {
                    self.later(STEP, name, id, Event::PrepareFailed { error: "cancelled".into() });
                }
                Action::Start { .. } if flag(&task, "nostart") => {
                    self.later(STEP, name, id, Event::StartFailed { error: "exec: no such file".into() });
                }
                Action::Start { .. } => {
                    self.start_container(name, id, &task);
                }
                Action::Stop { .. } => {
                    let event = Event::Exited { exit_code: Some(143), oom_killed: false };
                    self.later(argument(&task, "stop").unwrap_or(STEP), name, id, event);
                }
                Action::Remove => {
                    assert!(!self.hosts[name].running.contains(id), "a running container is removed");
                    self.later(STEP, name, id, Event::Removed);
                }
                // Its session sees that by itself.
                Action::Drain => {}
                Action::WakeAt(at) => self.later(at.since(self.now), name, id, Event::Timer),
                Action::Report(status) => {
                    let host = self.hosts.get_mut(name).expect("host");
                    if host.connected {
                        host.reports.insert(id.clone(), status);
                    }
                }
            }
        }
    }

    fn start_container(&mut self, name: &str, id: &TaskId, task: &Task) {
        let first = self.hosts.get_mut(name).expect("host").running.insert(id.clone());
        assert!(first, "a task started while it ran");
        self.check_one_container_a_slot(task);
        self.later(STEP, name, id, Event::Started { container: "c0".repeat(32), pid: 4242 });
        for (argument_name, code) in [("crash", 1), ("exit", 0)] {
            if let Some(after) = argument(task, argument_name) {
                self.later(STEP + after, name, id, Event::Exited { exit_code: Some(code), oom_killed: false });
            }
        }
    }

    /// Agents tell the cluster what they saw. One batch a host, as often as there is something new.
    pub(crate) fn flush_reports(&mut self) {
        loop {
            let next = self.hosts.iter_mut().find(|(_, h)| h.connected && !h.reports.is_empty());
            let Some((_, host)) = next else { return };
            let reports = std::mem::take(&mut host.reports).into_iter();
            let reports = reports.map(|(task_id, status)| TaskReport { task_id, status }).collect();
            let op = ReportStatuses { node_id: host.id.clone(), generation: host.generation, reports };
            if let Err(error) = self.request(Op::ReportStatuses(op)) {
                self.log.push(format!("report: {error}"));
            }
        }
    }
}
