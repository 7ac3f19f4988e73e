//! Draining by acknowledgement: who must have let go of a task before it may stop, and who has.
//!
//! The entry of the log that takes back the wish for a task also takes its endpoints out of what hosts are told. So a
//! host has let go of it once it has carried out that revision of its assignments, or a later one. Three parts, all of
//! them pure and in the memory of managers only:
//!
//! * [`drains`]: the tasks of a host that drain, and the hosts that somebody may be led to them from. Computed by the
//!   manager that the task's own host is attached to, again for each session: nothing has to be handed over.
//! * [`Cover`]: up to which revision one attached host is, by what its session was told and what it acknowledged.
//! * [`Collection`]: who of a number of hosts is still missing.
//!
//! Hosts acknowledge stamps of *their* assignments, and are told only of what concerns them. That is why `Cover`
//! translates: a host that has nothing to carry out up to a revision covers it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::lifecycle;
use crate::model::{NetworkId, Node, NodeId, NodeState, TaskId};
use crate::store::{Holder, Store};

/// Hosts are waited for so long. A little less than the agent itself waits, so that it still hears who was late.
pub const COLLECT: Duration = lifecycle::DRAIN.saturating_sub(Duration::from_millis(100));

/// Stamps that a host has not acknowledged, at the most. With more, it is taken to be further behind than it is.
const UNACKNOWLEDGED: usize = 64;

/// Tasks of one host that drain and that the same hosts lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The tasks.
    pub tasks: Vec<TaskId>,
    /// Hosts that have to let go of them, their own included.
    pub hosts: BTreeSet<NodeId>,
}

/// The tasks of `node` that drain, but for those that `known` names already, which become those that do now.
pub fn drains(store: &Store, node: &NodeId, known: &mut BTreeSet<TaskId>) -> Vec<Drain> {
    let mut by_networks: BTreeMap<BTreeSet<NetworkId>, Vec<TaskId>> = BTreeMap::new();
    let mut draining = BTreeSet::new();
    for task in store.tasks_on_node(node).filter(|task| task.is_draining()) {
        if !known.contains(&task.id) {
            let networks = task.attachments.iter().map(|attachment| attachment.network.clone()).collect();
            by_networks.entry(networks).or_default().push(task.id.clone());
        }
        draining.insert(task.id.clone());
    }
    *known = draining;
    by_networks.into_iter().map(|(networks, tasks)| Drain { tasks, hosts: audience(store, node, &networks) }).collect()
}

/// Hosts that take part in one of the networks, and `own`; without those that are not there.
fn audience(store: &Store, own: &NodeId, networks: &BTreeSet<NetworkId>) -> BTreeSet<NodeId> {
    let ingress = store.ingress_network().is_some_and(|ingress| networks.contains(&ingress.id));
    let mut hosts = BTreeSet::from([own.clone()]);
    if ingress {
        // Every host takes part in it.
        hosts.extend(store.nodes().map(|node| node.id.clone()));
    } else {
        for (_, holder) in networks.iter().flat_map(|network| store.addresses_on_network(network)) {
            match holder {
                Holder::Task(id) => hosts.extend(store.task(id).map(|task| task.node_id.clone())),
                Holder::Node(id) => hosts.extend([id.clone()]),
                Holder::Service(_) => {}
            }
        }
    }
    hosts.retain(|host| is_there(store, host));
    hosts
}

/// Whether a host can be waited for. One that is down leads nobody anywhere that would arrive.
fn is_there(store: &Store, host: &NodeId) -> bool {
    store.node(host).is_some_and(|node| node.status.state() == NodeState::Ready)
}

/// Up to which revision of the store one host has carried out everything that concerns it, as its session knows.
#[derive(Clone, Debug, Default)]
pub struct Cover {
    /// What it was told and has not acknowledged yet, behind the last that it has: the revision of the stamp, and the
    /// last one up to which there was nothing more to tell.
    told: VecDeque<(u64, u64)>,
    acknowledged: u64,
    covered: u64,
}

impl Cover {
    /// It was sent what it must know of that revision.
    pub fn told(&mut self, revision: u64) {
        self.told.push_back((revision, revision));
        if self.told.len() > UNACKNOWLEDGED {
            // Who acknowledges what is left out here counts as one that has not: late rather than wrong.
            self.told.remove(UNACKNOWLEDGED - 1);
        }
        self.settle();
    }

    /// Between what it was told last and that revision, nothing concerns it.
    pub fn nothing_until(&mut self, revision: u64) {
        if let Some((_, until)) = self.told.back_mut() {
            *until = revision.max(*until);
        }
        self.settle();
    }

    /// It has carried out all that it was told up to that revision.
    pub fn acknowledged(&mut self, revision: u64) {
        self.acknowledged = self.acknowledged.max(revision);
        self.settle();
    }

    /// The revision; 0 before the host has carried out anything in this session.
    pub fn revision(&self) -> u64 {
        self.covered
    }

    fn settle(&mut self) {
        while self.told.get(1).is_some_and(|(stamp, _)| *stamp <= self.acknowledged) {
            self.told.pop_front();
        }
        if let Some((_, until)) = self.told.front().filter(|(stamp, _)| *stamp <= self.acknowledged) {
            self.covered = self.covered.max(*until);
        }
    }
}

/// Hosts that several who ask wait for.
#[derive(Clone, Debug)]
pub struct Collection<K> {
    waiting: Vec<(K, BTreeSet<NodeId>)>,
}

impl<K> Collection<K> {
    /// Of those who ask, and the hosts that each needs.
    pub fn new(asking: impl IntoIterator<Item = (K, BTreeSet<NodeId>)>) -> Self {
        Self { waiting: asking.into_iter().collect() }
    }

    /// Hosts that are missing.
    pub fn missing(&self) -> BTreeSet<NodeId> {
        self.waiting.iter().flat_map(|(_, hosts)| hosts).cloned().collect()
    }

    /// A host has let go. Answers those who have waited for no other one.
    pub fn covered(&mut self, host: &NodeId) -> Vec<K> {
        self.without(|other| other != host)
    }

    /// Answers those whose missing hosts are all down, or no hosts any more.
    pub fn look(&mut self, store: &Store) -> Vec<K> {
        self.without(|host| is_there(store, host))
    }

    /// Answers those who wait for nobody.
    pub fn complete(&mut self) -> Vec<K> {
        self.without(|_| true)
    }

    /// Whether everybody was answered.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Answers everybody who is left, with the hosts that are missing for each.
    pub fn give_up(&mut self) -> Vec<(K, BTreeSet<NodeId>)> {
        std::mem::take(&mut self.waiting)
    }

    fn without(&mut self, mut missing: impl FnMut(&NodeId) -> bool) -> Vec<K> {
        self.waiting.iter_mut().for_each(|(_, hosts)| hosts.retain(&mut missing));
        let (left, done): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(_, hosts)| !hosts.is_empty());
        self.waiting = left;
        done.into_iter().map(|(key, _)| key).collect()
    }
}

/// What people know a host by.
pub fn name_of(store: &Store, host: &NodeId) -> String {
    let hostname = |node: &std::sync::Arc<Node>| node.description.hostname.clone();
    store.node(host).map(hostname).filter(|name| !name.is_empty()).unwrap_or_else(|| host.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::*;
    use crate::store::Txn;

    fn cover(steps: &[(&str, u64)]) -> Vec<u64> {
        let mut cover = Cover::default();
        let step = |(what, revision): &(&str, u64)| {
            match *what {
                "told" => cover.told(*revision),
                "nothing" => cover.nothing_until(*revision),
                "ack" => cover.acknowledged(*revision),
                other => panic!("{other}"),
            }
            cover.revision()
        };
        steps.iter().map(step).collect()
    }

    #[test]
    fn a_host_covers_what_it_has_carried_out_and_what_does_not_concern_it() {
        let none: [u64; 2] = [0, 0];
        assert_eq!(cover(&[("nothing", 5), ("ack", 9)]), none, "a session that has told nothing");
        assert_eq!(cover(&[("told", 5), ("ack", 4), ("ack", 5)]), [0, 0, 5]);
        assert_eq!(cover(&[("told", 5), ("ack", 5), ("nothing", 6), ("nothing", 9)]), [0, 5, 6, 9]);
        // What came in between without concerning it is covered with what it was told before.
        assert_eq!(cover(&[("told", 5), ("nothing", 7), ("told", 8), ("ack", 5), ("ack", 8)]), [0, 0, 0, 7, 8]);
        // It skips what was overtaken.
        assert_eq!(cover(&[("told", 5), ("told", 6), ("nothing", 7), ("ack", 6)]), [0, 0, 0, 7]);
        // An agent that had carried out more than this manager tells it at first.
        assert_eq!(cover(&[("ack", 9), ("told", 9), ("told", 10), ("nothing", 11), ("ack", 10)]), [0, 9, 9, 9, 11]);
    }

    #[test]
    fn a_host_that_acknowledges_nothing_costs_little_and_covers_nothing() {
        let mut cover = Cover::default();
        (1..=1000).for_each(|revision| cover.told(revision));
        assert!(cover.told.len() <= UNACKNOWLEDGED);
        cover.acknowledged(0);
        assert_eq!(cover.revision(), 0);
        cover.acknowledged(10);
        assert_eq!(cover.revision(), 10, "the oldest ones are remembered");
        cover.acknowledged(500);
        assert!(cover.revision() <= 500, "{}", cover.revision());
        cover.acknowledged(1000);
        assert_eq!(cover.revision(), 1000);
    }

    fn node(id: &str, state: NodeState) -> Node {
        let mut node = Node { id: NodeId::new(id), ..Node::default() };
        node.status.state = state as i32;
        node.description.hostname = format!("host-{id}");
        node
    }

    #[test]
    fn everybody_is_answered_once_and_knows_who_is_missing() {
        let hosts = |ids: &str| ids.chars().map(|id| NodeId::new(id.to_string())).collect::<BTreeSet<_>>();
        let mut collection = Collection::new([("x", hosts("ab")), ("y", hosts("bc")), ("z", hosts(""))]);
        assert_eq!(collection.complete(), ["z"]);
        assert_eq!(collection.missing(), hosts("abc"));
        assert!(collection.covered(&NodeId::new("a")).is_empty());
        assert_eq!(collection.covered(&NodeId::new("b")), ["x"]);
        assert!(collection.covered(&NodeId::new("a")).is_empty());
        let mut txn = Txn::new(&Store::default(), Timestamp::from_millis(1));
        txn.put_node(node("c", NodeState::Ready));
        assert!(collection.look(&txn).is_empty());
        let mut down = collection.clone();
        txn.put_node(node("c", NodeState::Down));
        assert_eq!(down.look(&txn), ["y"]);
        assert!(down.is_empty());
        assert_eq!(collection.give_up(), [("y", hosts("c"))]);
        assert!(collection.is_empty());
        assert_eq!(name_of(&txn, &NodeId::new("c")), "host-c");
        assert_eq!(name_of(&txn, &NodeId::new("gone")), "gone");
    }

    /// Hosts a to d, of which c is down; e is in the cluster and has nothing.
    fn store(tasks: &[Task]) -> Store {
        let mut txn = Txn::new(&Store::default(), Timestamp::from_millis(1));
        for (id, state) in [("a", NodeState::Ready), ("b", NodeState::Ready), ("c", NodeState::Down)] {
            txn.put_node(node(id, state));
        }
        txn.put_node(node("d", NodeState::Ready));
        txn.put_node(node("e", NodeState::Unknown));
        let mut ingress = Network { id: NetworkId::new("mesh"), ..Network::default() };
        ingress.spec.name = "mesh".into();
        ingress.spec.ingress = true;
        txn.put_network(ingress);
        tasks.iter().for_each(|task| txn.put_task(task.clone()));
        txn.into_store()
    }

    /// A task that runs on a host, with an address on each of these networks.
    fn task(id: &str, node: &str, addresses: &[(&str, &str)]) -> Task {
        let mut task = Task { id: TaskId::new(id), node_id: NodeId::new(node), ..Task::default() };
        task.set_desired(DesiredState::Running);
        task.status.set_state(TaskState::Running);
        let attachment = |(network, address): &(&str, &str)| NetworkAttachment {
            network: NetworkId::new(*network),
            address: (*address).to_owned(),
            ..NetworkAttachment::default()
        };
        task.attachments = addresses.iter().map(attachment).collect();
        task
    }

    fn stopping(mut task: Task) -> Task {
        task.stop(DesiredState::Shutdown, Timestamp::from_millis(9));
        task
    }

    #[track_caller]
    fn check(tasks: &[Task], expected: &[(&str, &str)]) {
        let found = drains(&store(tasks), &NodeId::new("a"), &mut BTreeSet::new());
        let ids = |ids: Vec<&str>| ids.join(" ");
        let found: Vec<_> = found
            .iter()
            .map(|drain| {
                let tasks = ids(drain.tasks.iter().map(TaskId::as_str).collect());
                (tasks, ids(drain.hosts.iter().map(NodeId::as_str).collect()))
            })
            .collect();
        let found: Vec<_> = found.iter().map(|(tasks, hosts)| (tasks.as_str(), hosts.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn those_who_lead_to_a_task_are_asked() {
        let others = [
            task("b1", "b", &[("net", "10.0.1.3/24")]),
            task("c1", "c", &[("net", "10.0.1.4/24")]),
            task("d1", "d", &[("other", "10.0.2.3/24")]),
        ];
        let with = |task: Task| [others.to_vec(), vec![task]].concat();
        let t = |addresses: &[(&str, &str)]| task("t", "a", addresses);
        check(&with(t(&[("net", "10.0.1.9/24")])), &[]);
        // Who is down is not waited for; who is on another network is not asked.
        check(&with(stopping(t(&[("net", "10.0.1.9/24")]))), &[("t", "a b")]);
        // The mesh is everywhere that an agent is.
        check(&with(stopping(t(&[("mesh", "10.0.0.9/24")]))), &[("t", "a b d")]);
        check(&with(stopping(t(&[("net", "10.0.1.9/24"), ("other", "10.0.2.9/24")]))), &[("t", "a b d")]);
        // A port of its host alone concerns nobody else.
        let mut port = t(&[]);
        port.ports.push(PortConfig { mode: PublishMode::Host as i32, ..PortConfig::default() });
        check(&with(stopping(port)), &[("t", "a")]);
        check(&with(stopping(t(&[]))), &[]);
        let mut ended = stopping(t(&[("net", "10.0.1.9/24")]));
        ended.status.set_state(TaskState::Shutdown);
        check(&with(ended), &[]);
    }

    #[test]
    fn tasks_of_the_same_networks_are_asked_for_together_and_once() {
        let tasks = [
            stopping(task("x", "a", &[("net", "10.0.1.3/24")])),
            stopping(task("y", "a", &[("net", "10.0.1.4/24")])),
            stopping(task("z", "a", &[("mesh", "10.0.0.4/24")])),
        ];
        check(&tasks, &[("z", "a b d"), ("x y", "a")]);
        let mut known = BTreeSet::new();
        assert_eq!(drains(&store(&tasks[..1]), &NodeId::new("a"), &mut known).len(), 1);
        let more = drains(&store(&tasks), &NodeId::new("a"), &mut known);
        assert_eq!(more.iter().map(|drain| drain.tasks.len()).sum::<usize>(), 2, "{more:?}");
        assert_eq!(drains(&store(&tasks), &NodeId::new("a"), &mut known), []);
        assert_eq!(drains(&store(&[]), &NodeId::new("a"), &mut known), []);
        assert!(known.is_empty());
    }
}
