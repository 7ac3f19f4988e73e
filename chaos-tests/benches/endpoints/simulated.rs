//! A cluster in virtual time: how long the news of a task that runs takes to all hosts, and what they cost the managers.
//!
//! The store, the dispatcher and its messages are the real ones, and the time that a manager computes is measured and
//! passes in virtual time, too. Made up are the times between hosts (1 to 10 ms for each message, as in the simulation of
//! faults) and of the disk. A manager's sessions compute one after the other here, as if it had one core.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::bench::{Report, Samples};
use deploy::dispatcher::{self, AssignmentSet, HostSet, Parts, Stamp, Update};
use deploy::model::{
    DesiredState, Network, NetworkAllocation, NetworkAttachment, NetworkId, Node, NodeDescription, NodeId, NodeState,
    Service, ServiceId, Task, TaskId, TaskState, Timestamp, VirtualIp,
};
use deploy::store::{Store, Txn};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Options;

const MANAGERS: usize = 3;
/// As the sessions of a manager have it.
const GATHER: Duration = Duration::from_millis(5);
/// An entry on a disk.
const DISK: Duration = Duration::from_millis(2);
/// Between two changes, on average.
const PAUSE: Duration = Duration::from_millis(50);
const TARGET: Duration = Duration::from_secs(1);
const NETWORK: &str = "network";

/// What happens, and to whom.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// An agent reports that a task runs.
    Report(usize),
    /// The leader has the report.
    Arrives(usize),
    /// A manager has applied an entry.
    Applied { manager: usize, place: usize },
    /// A session has gathered for long enough.
    Ready(usize),
    /// A manager has computed what it was at.
    Free(usize),
}

struct Manager {
    store: Store,
    /// Entries that it has applied.
    has: usize,
    /// When it applies the last one that is on its way.
    applies: Duration,
    parts: Parts,
    ready: VecDeque<usize>,
    busy: bool,
    /// What it computed for its sessions.
    computed: Duration,
}

struct Session {
    node: NodeId,
    manager: usize,
    told: Option<(Stamp, Store, HostSet)>,
    /// Entries whose news it was told, or need not be.
    has: usize,
    /// It is going to look.
    awake: bool,
}

struct World {
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    number: u64,
    rng: StdRng,
    leader: Store,
    /// The store after each entry, and the change that it is about.
    log: Vec<(Store, usize)>,
    managers: Vec<Manager>,
    sessions: Vec<Session>,
    /// When each change was reported.
    reported: Vec<Duration>,
    leading: Duration,
    each: Vec<Duration>,
    last: Vec<Duration>,
}

fn clock(now: Duration) -> Timestamp {
    Timestamp::from_millis(1_000_000 + u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// A network with services whose tasks are spread over all hosts. Those that are going to run are starting.
fn cluster(options: &Options) -> Store {
    let mut txn = Txn::new(&Store::default(), clock(Duration::ZERO));
    txn.put_cluster(deploy::model::Cluster::default());
    let address = |place: usize| {
        let first = u32::from(Ipv4Addr::new(10, 100, 0, 2));
        format!("{}/11", Ipv4Addr::from(first + u32::try_from(place).unwrap_or(u32::MAX)))
    };
    let network = NetworkId::new(NETWORK);
    let allocation = NetworkAllocation {
        vni: 0x0010_0001,
        subnet: "10.96.0.0/11".into(),
        gateway: "10.96.0.1".into(),
        ..NetworkAllocation::default()
    };
    txn.put_network(Network { id: network.clone(), allocation: Some(allocation), ..Network::default() });
    for host in 0..options.hosts {
        let (high, low) = (host / 250, host % 250 + 1);
        let description = NodeDescription {
            hostname: format!("host-{host}"),
            data_path_addr: format!("192.168.{high}.{low}"),
            control_addr: format!("192.168.{high}.{low}:2377"),
            ..NodeDescription::default()
        };
        let mut node = Node { id: node(host), description, ..Node::default() };
        node.status.set_state(NodeState::Ready);
        txn.put_node(node);
    }
    for number in 0..options.services {
        let mut service = Service { id: service(number), ..Service::default() };
        service.spec.name = format!("web-{number}");
        service.endpoint.virtual_ips.push(VirtualIp {
            network: network.clone(),
            address: address(number),
            ..VirtualIp::default()
        });
        txn.put_service(service);
    }
    for number in 0..options.endpoints {
        let attachment = NetworkAttachment {
            network: network.clone(),
            address: address(options.services + number),
            ..NetworkAttachment::default()
        };
        let mut task = Task {
            id: task(number),
            service_id: service(number % options.services),
            service_name: format!("web-{}", number % options.services),
            slot: 1 + (number / options.services) as u64,
            node_id: node(number % options.hosts),
            attachments: vec![attachment],
            ..Task::default()
        };
        task.set_desired(DesiredState::Running);
        task.status.set_state(if number < options.changes { TaskState::Starting } else { TaskState::Running });
        txn.put_task(task);
    }
    txn.into_store()
}

fn node(number: usize) -> NodeId {
    NodeId::new(format!("node{number:021}"))
}

fn service(number: usize) -> ServiceId {
    ServiceId::new(format!("service{number:018}"))
}

fn task(number: usize) -> TaskId {
    TaskId::new(format!("task{number:021}"))
}

pub(crate) fn measure(options: &Options) -> Result<Report> {
    ensure!(
        options.endpoints >= options.changes.max(options.hosts),
        "each host needs an endpoint, each change another"
    );
    let store = cluster(options);
    let manager = |_| Manager {
        store: store.clone(),
        has: 0,
        applies: Duration::ZERO,
        parts: Parts::default(),
        ready: VecDeque::new(),
        busy: false,
        computed: Duration::ZERO,
    };
    let session = |host| Session { node: node(host), manager: host % MANAGERS, told: None, has: 0, awake: false };
    let mut world = World {
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        number: 0,
        rng: StdRng::seed_from_u64(options.seed),
        leader: store.clone(),
        log: Vec::new(),
        managers: (0..MANAGERS).map(manager).collect(),
        sessions: (0..options.hosts).map(session).collect(),
        reported: Vec::new(),
        leading: Duration::ZERO,
        each: Vec::new(),
        last: Vec::new(),
    };
    // All know everything when it begins.
    for session in 0..options.hosts {
        let manager = world.sessions[session].manager;
        world.look(manager, session).context("a host that is told nothing")?;
        world.managers[manager].computed = Duration::ZERO;
    }
    let mut at = Duration::ZERO;
    for change in 0..options.changes {
        world.reported.push(at);
        world.last.push(Duration::ZERO);
        world.at(at, Event::Report(change));
        at += PAUSE.mul_f64(world.rng.random_range(0.0..2.0));
    }
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        world.now = at;
        world.happens(event);
    }
    world.check()?;
    Ok(world.report(options))
}

impl World {
    fn at(&mut self, at: Duration, event: Event) {
        self.number += 1;
        self.events.push(Reverse((at, self.number, event)));
    }

    /// How long a message is on its way.
    fn way(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(1000..=10_000))
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Report(change) => {
                // To the manager of the session, and from there to the leader, which is the first one.
                let host = change % self.sessions.len();
                let forwarded = if self.sessions[host].manager == 0 { Duration::ZERO } else { self.way() };
                let at = self.now + self.way() + forwarded;
                self.at(at, Event::Arrives(change));
            }
            Event::Arrives(change) => self.decide(change),
            Event::Applied { manager, place } => {
                let this = &mut self.managers[manager];
                (this.has, this.store) = (place + 1, self.log[place].0.clone());
                let woken: Vec<usize> = (0..self.sessions.len())
                    .filter(|session| self.sessions[*session].manager == manager && !self.sessions[*session].awake)
                    .collect();
                for session in woken {
                    self.sessions[session].awake = true;
                    self.at(self.now + GATHER, Event::Ready(session));
                }
            }
            Event::Ready(session) => {
                let manager = self.sessions[session].manager;
                self.managers[manager].ready.push_back(session);
                self.work(manager);
            }
            Event::Free(manager) => {
                self.managers[manager].busy = false;
                self.work(manager);
            }
        }
    }

    /// The leader writes the entry down; it is committed when one more manager has it.
    fn decide(&mut self, change: usize) {
        let began = Instant::now();
        let mut txn = Txn::new(&self.leader, clock(self.now));
        if let Some(task) = txn.task(&task(change)) {
            let mut task = Task::clone(task);
            task.status.set_state(TaskState::Running);
            txn.put_task(task);
        }
        self.leader = txn.into_store();
        let took = began.elapsed();
        self.leading += took;
        let place = self.log.len();
        self.log.push((self.leader.clone(), change));
        let committed = self.now + took + self.way() + DISK + self.way();
        for manager in 0..MANAGERS {
            let learns = if manager == 0 { Duration::ZERO } else { self.way() };
            // Entries are applied in their order.
            let at = self.managers[manager].applies.max(committed + learns);
            self.managers[manager].applies = at;
            self.at(at, Event::Applied { manager, place });
        }
    }

    /// The manager looks what it must tell a host, if it is not at another one.
    fn work(&mut self, manager: usize) {
        if self.managers[manager].busy {
            return;
        }
        let Some(session) = self.managers[manager].ready.pop_front() else { return };
        let began = Instant::now();
        let told = self.look(manager, session);
        let took = began.elapsed();
        self.managers[manager].computed += took;
        self.managers[manager].busy = true;
        self.at(self.now + took, Event::Free(manager));
        let (before, has) = (self.sessions[session].has, self.managers[manager].has);
        (self.sessions[session].has, self.sessions[session].awake) = (has, false);
        if told.is_some() {
            let handed = self.now + took + self.way();
            for (_, change) in &self.log[before..has] {
                let taken = handed - self.reported[*change];
                self.each.push(taken);
                self.last[*change] = self.last[*change].max(taken);
            }
        }
    }

    /// What a session does: the message for the host, if there is something to tell.
    fn look(&mut self, manager: usize, session: usize) -> Option<Vec<u8>> {
        let (manager, session) = (&mut self.managers[manager], &mut self.sessions[session]);
        let store = manager.store.clone();
        if let Some((_, then, _)) = &mut session.told {
            let changed = then.changed(&store);
            if !dispatcher::affects(then, &store, &changed, &session.node) {
                *then = store;
                return None;
            }
        }
        let stamp = Stamp { incarnation: 1, term: 1, revision: store.revision() };
        let before = session.told.as_ref().map(|(_, store, set)| (store, set));
        let shared = manager.parts.shared(&store, &session.node)?;
        let set = HostSet::new(&store, &session.node, shared, before);
        let update = match &session.told {
            Some((base, _, sent)) => Update { stamp, base: Some(*base), delta: manager.parts.difference(sent, &set) },
            None => set.to_update(stamp),
        };
        let message = update.to_bytes();
        session.told = Some((stamp, store, set));
        Some(message)
    }

    /// Whether all hosts know all that the store says.
    fn check(&self) -> Result<()> {
        ensure!(self.each.len() == self.sessions.len() * self.reported.len(), "a host was not told of a change");
        for session in self.sessions.iter().step_by(97) {
            let (_, _, set) = session.told.as_ref().context("a host that was told nothing")?;
            let told = AssignmentSet::new(set.items().cloned());
            ensure!(told == dispatcher::assignment(&self.leader, &session.node), "a host knows something else");
        }
        Ok(())
    }

    fn report(&self, options: &Options) -> Report {
        let (each, last) = (samples(&self.each), samples(&self.last));
        let changes = u32::try_from(self.reported.len()).unwrap_or(u32::MAX);
        let managers = u32::try_from(MANAGERS).unwrap_or(u32::MAX);
        let computed: Duration = self.managers.iter().map(|manager| manager.computed).sum();
        let began = Instant::now();
        let whole = dispatcher::assignment(&self.leader, &node(0)).items().count();
        let anew = began.elapsed();
        let mut report = Report::new(format!(
            "{} hosts on one network with {} services and {} endpoints, {MANAGERS} managers, seed {}, virtual time",
            options.hosts, options.services, options.endpoints, options.seed
        ));
        let met = last.percentile(99) <= TARGET;
        report.target("task Running → the last host's agent has it", "p99 ≤ 1 s", millis(&last), "-", met);
        report.note("task Running → each host's agent has it", millis(&each), "-");
        let per_change = computed / changes / managers;
        let text = format!("{:.2} ms, {:.0} µs a host", ms(per_change), ms(computed) * 1e3 / self.each.len() as f64);
        report.note("real time that a manager computes for its sessions, a change", text, "-");
        report.note(
            "the leader's entry, without the brain's pass",
            format!("{:.3} ms", ms(self.leading / changes)),
            "-",
        );
        report.note("one host's set anew, for comparison", format!("{:.2} ms ({whole} items)", ms(anew)), "-");
        report
    }
}

/// In their order, which is the cheap one to add them in.
fn samples(all: &[Duration]) -> Samples {
    let mut all = all.to_vec();
    all.sort_unstable();
    let mut samples = Samples::default();
    all.into_iter().for_each(|one| samples.push(one));
    samples
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn millis(samples: &Samples) -> String {
    let of = |percent| ms(samples.percentile(percent));
    format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", of(50), of(99), of(100))
}
