//! A fake cluster: the brain on a store, and agents that follow `lifecycle`, on one virtual clock.
//!
//! Every transaction is checked as it is made (see `checks`). Used by the text scenarios and by the properties.

mod checks;
mod host;
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deploy::brain;
use deploy::control::{self, ControlError, InitCluster, Op, Reply, Request};
use deploy::cx::{Cx, Limits};
use deploy::dispatcher::drain::{self, COLLECT, Collection, Drain};
use deploy::dispatcher::{self, AssignmentSet, Stamp, Update};
use deploy::lifecycle::Event;
use deploy::model::{
    Cluster, ClusterId, ManagerStatus, Node, NodeId, NodeRole, Service, ServiceId, Task, TaskId, Timestamp,
};
use deploy::store::{Entry, Store, Txn};

pub(crate) use checks::Checks;
pub(crate) use host::Host;
pub(crate) use script::run_script;

/// Where the virtual clock starts.
const START: Timestamp = Timestamp::from_millis(1_000_000_000);

/// Time of an agent's step, unless its container says otherwise.
const STEP: Duration = Duration::from_millis(50);

/// Random numbers of the whole run; the same seed gives the same run.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn id(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

/// Tasks of a host whose session waits until others have let go of them.
struct Draining {
    host: String,
    revision: u64,
    until: Timestamp,
    missing: Collection<Vec<TaskId>>,
}

/// The cluster.
pub(crate) struct Sim {
    pub(crate) store: Store,
    pub(crate) now: Timestamp,
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) checks: Checks,
    term: u64,
    rng: Rng,
    wake: Option<Timestamp>,
    /// What agents will see happen, by time; the number keeps the order of what happens at once.
    queue: BTreeMap<(Timestamp, u64), (String, u64, TaskId, Event)>,
    queued: u64,
    follower: Store,
    drains: Vec<Draining>,
    pub(crate) log: Vec<String>,
}

impl Sim {
    /// A cluster of one manager, `m1`, which is drained so that scenarios decide where tasks can go.
    pub(crate) fn new(seed: u64) -> Self {
        let mut sim = Self {
            store: Store::default(),
            now: START,
            hosts: BTreeMap::new(),
            checks: Checks::default(),
            term: 1,
            rng: Rng::new(seed),
            wake: None,
            queue: BTreeMap::new(),
            queued: 0,
            follower: Store::default(),
            drains: Vec::new(),
            log: Vec::new(),
        };
        let mut cluster = Cluster { id: ClusterId::new(format!("{:0>25}", "cluster")), ..Cluster::default() };
        cluster.status.worker_token = "w".into();
        cluster.status.manager_token = "m".into();
        cluster.status.incarnation = 1;
        cluster.status.gossip_keys = vec![deploy::model::GossipKey { id: 1, bytes: vec![7; 32] }];
        let mut node = Node { id: node_id("m1"), ..Node::default() };
        node.spec.set_role(NodeRole::Manager);
        node.spec.set_availability(deploy::model::NodeAvailability::Drain);
        node.manager = Some(ManagerStatus { raft_id: 1, addr: "10.9.0.1:2377".into() });
        node.description = host::describe("m1", 1);
        sim.request(Op::InitCluster(Box::new(InitCluster { cluster, node }))).expect("init");
        sim
    }

    /// Carries out a request, with the pass that follows it.
    pub(crate) fn request(&mut self, op: Op) -> Result<Reply, ControlError> {
        self.transact(Some(op)).map(|reply| reply.expect("a reply"))
    }

    /// A pass over everything, as after a wake-up.
    pub(crate) fn wake_up(&mut self) {
        self.transact(None).expect("a pass alone is never refused");
    }

    /// A new leader: it has the store and nothing else.
    pub(crate) fn change_leader(&mut self) {
        self.term += 1;
        self.wake = None;
        self.store = Store::decode_snapshot(&self.store.encode_snapshot()).expect("snapshot");
        self.wake_up();
    }

    fn transact(&mut self, op: Option<Op>) -> Result<Option<Reply>, ControlError> {
        let before = self.store.clone();
        let mut txn = Txn::new(&self.store, self.now);
        let mut rng = self.rng.clone();
        let mut ids = || rng.id();
        let mut cx = Cx { now: self.now, ids: &mut ids, limits: Limits::default() };
        let whole = op.is_none();
        let reply = match op {
            Some(op) => Some(control::execute(&mut cx, &mut txn, &Request { op: Some(op) })?),
            None => None,
        };
        let requested = txn.clone();
        match whole {
            true => brain::pass(&mut cx, &mut txn),
            false => brain::pass_touched(&mut cx, &mut txn),
        }
        let rng_before = std::mem::replace(&mut self.rng, rng);
        if !whole && self.checks.incremental && self.wake.is_none_or(|wake| wake > self.now) {
            self.compare_with_full_pass(&before, requested, &txn, rng_before);
        }
        self.wake = match (self.wake.filter(|_| !whole), txn.next_wake()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if let Some(entry) = txn.finish(self.term) {
            self.commit(&entry, &txn);
        }
        self.check_second_pass();
        self.check_transition(&before);
        self.dispatch(&before, &txn);
        Ok(reply)
    }

    /// The entry takes the way that it takes between managers: as bytes.
    fn commit(&mut self, entry: &Entry, txn: &Txn) {
        let entry = Entry::from_bytes(&entry.to_bytes()).expect("an entry is readable");
        self.store.apply(self.term, &entry).expect("the leader's entry applies");
        assert_eq!(self.store, txn.clone().into_store(), "the speculative store is what the entry gives");
        self.follower.apply(self.term, &entry).expect("the entry applies on a follower");
        assert_eq!(self.store.encode_snapshot(), self.follower.encode_snapshot(), "managers differ");
    }

    /// Sends each attached agent what is new for it.
    fn dispatch(&mut self, before: &Store, txn: &Txn) {
        let affected = dispatcher::affected(before, &self.store, txn.touched());
        assert_eq!(&before.changed(&self.store), txn.touched(), "two stores do not tell what was changed between them");
        let stamp = Stamp { incarnation: 1, term: self.term, revision: self.store.revision() };
        for name in self.hosts.keys().cloned().collect::<Vec<_>>() {
            let (id, connected) = (self.hosts[&name].id.clone(), self.hosts[&name].connected);
            let new = dispatcher::assignment(&self.store, &id);
            let alone = dispatcher::affects(before, &self.store, txn.touched(), &id);
            assert_eq!(alone, affected.includes(&id), "{name} alone and among all by {:?}", txn.touched());
            if !alone {
                let old = dispatcher::assignment(before, &id);
                assert_eq!(old.diff(&new), Default::default(), "{name} was affected by {:?}", txn.touched());
            }
            if connected {
                self.send(&name, &new, stamp);
            }
        }
        self.drain();
    }

    /// What the sessions of hosts with tasks that drain do: they ask for those who lead there, and say when they have
    /// let go, or who has not in time.
    pub(crate) fn drain(&mut self) {
        for (name, host) in self.hosts.iter_mut().filter(|(_, host)| host.connected) {
            for Drain { tasks, hosts } in drain::drains(&self.store, &host.id, &mut host.draining) {
                let until = self.now.plus(COLLECT);
                let missing = Collection::new([(tasks, hosts)]);
                self.drains.push(Draining { host: name.clone(), revision: self.store.revision(), until, missing });
            }
        }
        for mut draining in std::mem::take(&mut self.drains) {
            let covers =
                |id: &NodeId| self.hosts.values().any(|h| h.id == *id && h.cover.revision() >= draining.revision);
            let covered: BTreeSet<NodeId> = draining.missing.missing().into_iter().filter(covers).collect();
            let mut done: Vec<_> = covered.iter().flat_map(|host| draining.missing.covered(host)).collect();
            done.extend(draining.missing.look(&self.store));
            let late = if self.now >= draining.until { draining.missing.give_up() } else { Vec::new() };
            let answers = done.into_iter().map(|tasks| (tasks, BTreeSet::new())).chain(late);
            for (tasks, late) in answers {
                let late: Vec<String> = late.iter().map(|host| drain::name_of(&self.store, host)).collect();
                for task in tasks {
                    self.later(STEP, &draining.host, &task, Event::Drained { late: late.clone() });
                }
            }
            if !draining.missing.is_empty() {
                self.wake = Some(self.wake.map_or(draining.until, |wake| wake.min(draining.until)));
                self.drains.push(draining);
            }
        }
    }

    fn send(&mut self, name: &str, new: &AssignmentSet, stamp: Stamp) {
        let host = self.hosts.get_mut(name).expect("host");
        let update = match host.stamp {
            Some(_) => Update { stamp, base: host.stamp, delta: host.set.diff(new) },
            None => new.to_update(stamp),
        };
        let update = Update::from_bytes(&update.to_bytes()).expect("an update is readable");
        if host.stamp.is_some_and(|seen| update.stamp.is_older_than(&seen)) {
            panic!("{name} was sent something old");
        }
        if update.base.is_none() {
            host.set = AssignmentSet::default();
        }
        host.set.apply(update.delta);
        host.stamp = Some(stamp);
        host.cover.told(stamp.revision);
        if !host.deaf {
            host.cover.acknowledged(stamp.revision);
        }
        assert_eq!(&host.set, new, "a delta leads to the whole set");
        self.obey(name);
    }

    /// Lets the clock run.
    pub(crate) fn advance(&mut self, time: Duration) {
        let end = self.now.plus(time);
        self.flush_reports();
        loop {
            let next_event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let next = [next_event, self.wake].into_iter().flatten().min().filter(|at| *at <= end);
            let Some(at) = next else { break };
            self.now = self.now.max(at);
            if self.wake.is_some_and(|wake| wake <= self.now) {
                self.wake = None;
                self.wake_up();
            } else if let Some((_, (name, life, task, event))) = self.queue.pop_first() {
                self.agent_event(&name, life, &task, event);
            }
            self.flush_reports();
        }
        self.now = end;
    }

    /// Lets the clock run until nothing more is to happen within the hour; panics if that does not come within `limit`.
    pub(crate) fn settle(&mut self, limit: Duration) {
        let end = self.now.plus(limit);
        self.flush_reports();
        loop {
            let next_event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = [next_event, self.wake].into_iter().flatten().min() else { return };
            if next > self.now.plus(Duration::from_secs(3600)) {
                return;
            }
            assert!(next <= end, "no rest after {limit:?}: {:?} {:?}", self.queue, self.wake);
            self.advance(next.since(self.now));
        }
    }

    fn later(&mut self, after: Duration, host: &str, task: &TaskId, event: Event) {
        let life = self.hosts[host].life;
        self.queued += 1;
        self.queue.insert((self.now.plus(after), self.queued), (host.to_owned(), life, task.clone(), event));
    }

    pub(crate) fn service(&self, name: &str) -> Service {
        Service::clone(self.store.service_by_name(name).unwrap_or_else(|| panic!("no service {name}")))
    }

    pub(crate) fn tasks_of(&self, id: &ServiceId) -> Vec<Task> {
        self.store.tasks_of_service(id).map(|t| Task::clone(t)).collect()
    }

    pub(crate) fn hostname(&self, id: &NodeId) -> String {
        match self.store.node(id) {
            Some(node) => node.description.hostname.clone(),
            None if id.is_none() => "-".to_owned(),
            None => format!("({})", id.as_str().trim_start_matches('0')),
        }
    }
}

/// The id of the host of that name.
pub(crate) fn node_id(name: &str) -> NodeId {
    NodeId::new(format!("{name:0>25}"))
}
