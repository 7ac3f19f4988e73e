//! What hosts are told, in parts that many of them share.
//!
//! Nearly all of what one host is told others are told as well: the networks with everything on them, the published ports,
//! the other hosts. A manager keeps each such part once for all of its sessions, follows the store by what changes of it,
//! and works the difference between two states of a part out once. What is a host's own is little: its tasks with what
//! belongs to them, and its place on its networks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::assignment::{
    assignment, cluster_items, network_items, networks_of_host, own_items, peer, ports, reserved_ports, service_items,
    task_items,
};
use super::item::{Body, Item, ItemKey, ItemKind};
use super::set::{AssignmentSet, Delta, Stamp, Update};
use crate::model::{NetworkId, NodeId, Service, Task};
use crate::orchestrator::host_is_lost;
use crate::store::{Key, Store};

/// Differences that are kept: sessions that are about as far as each other ask for the same ones.
const DELTAS: usize = 64;

/// A part that hosts share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The hosts of the cluster, those that are not trusted any more, and the rotation of keys.
    Hosts,
    /// Published ports.
    Ports,
    /// All that is on a network.
    Network(NetworkId),
}

/// The shared parts of what one host is told.
#[derive(Clone, Debug, Default)]
pub struct Shared(BTreeMap<Part, AssignmentSet>);

/// Everything that one host is told: the same as [`super::assignment`] says, without a copy of what others are told too.
#[derive(Clone, Debug, Default)]
pub struct HostSet {
    own: AssignmentSet,
    shared: Shared,
}

/// The parts of one manager, as of one state of its store.
#[derive(Default)]
pub struct Parts {
    store: Store,
    hosts: AssignmentSet,
    ports: AssignmentSet,
    /// Those that somebody has asked for.
    networks: BTreeMap<NetworkId, AssignmentSet>,
    deltas: VecDeque<(AssignmentSet, AssignmentSet, Arc<Delta>)>,
}

impl Parts {
    /// The shared parts of a host. Nothing when `store` is older than what was asked for before; who asks then has to
    /// look at a newer one, or do without ([`HostSet::alone`]).
    ///
    /// Cost: what has changed since the last call, and once for each network all that is on it.
    pub fn shared(&mut self, store: &Store, node: &NodeId) -> Option<Shared> {
        if store.revision() < self.store.revision() {
            return None;
        }
        self.follow(store);
        let mut shared = BTreeMap::from([(Part::Hosts, self.hosts.clone())]);
        let node = store.node(node)?;
        if reserved_ports(node).all(|key| self.ports.get(&key).is_none()) {
            shared.insert(Part::Ports, self.ports.clone());
        }
        for id in networks_of_host(store, &node.id) {
            let Some(network) = store.network(&id) else { continue };
            let part =
                self.networks.entry(id.clone()).or_insert_with(|| AssignmentSet::new(network_items(store, network)));
            shared.insert(Part::Network(id), part.clone());
        }
        Some(Shared(shared))
    }

    /// What turns one set into another.
    pub fn difference(&mut self, old: &HostSet, new: &HostSet) -> Delta {
        let mut delta = old.own.diff(&new.own);
        let mut add = |part: &Delta| {
            delta.put.extend_from_slice(&part.put);
            delta.remove.extend_from_slice(&part.remove);
        };
        let nothing = AssignmentSet::default();
        for (part, old) in &old.shared.0 {
            let new = new.shared.0.get(part).unwrap_or(&nothing);
            if !old.is(new) {
                add(&self.delta(old, new));
            }
        }
        for (_, new) in new.shared.0.iter().filter(|(part, _)| !old.shared.0.contains_key(*part)) {
            add(&self.delta(&nothing, new));
        }
        // What has only moved from one part to another is put, and is not gone.
        let put: BTreeSet<ItemKey> = delta.put.iter().filter_map(Item::key).collect();
        delta.remove.retain(|key| !put.contains(key));
        delta
    }

    fn delta(&mut self, old: &AssignmentSet, new: &AssignmentSet) -> Arc<Delta> {
        if let Some((_, _, delta)) = self.deltas.iter().rev().find(|(from, to, _)| from.is(old) && to.is(new)) {
            return Arc::clone(delta);
        }
        let delta = Arc::new(old.diff(new));
        // What a host is told at first is long, and seldom asked for twice in the same state.
        if old.items().next().is_some() && new.items().next().is_some() {
            if self.deltas.len() >= DELTAS {
                self.deltas.pop_front();
            }
            self.deltas.push_back((old.clone(), new.clone(), Arc::clone(&delta)));
        }
        delta
    }

    fn follow(&mut self, store: &Store) {
        let before = std::mem::replace(&mut self.store, store.clone());
        let changed = before.changed(store);
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        let mut services: BTreeSet<NetworkId> = BTreeSet::new();
        for key in &changed {
            match key {
                Key::Task(id) => {
                    let (old, new) = (on_networks(&before, before.task(id)), on_networks(store, store.task(id)));
                    if old != new {
                        gone.extend(old);
                        come.extend(new);
                    }
                }
                Key::Service(id) => {
                    let both = [before.service(id), store.service(id)];
                    services.extend(both.into_iter().flatten().flat_map(|service| networks_of(service)));
                    let ingress = [&before, store].into_iter().filter_map(Store::ingress_network);
                    services.extend(ingress.map(|network| network.id.clone()));
                    let old = before.service(id).into_iter().flat_map(|service| ports(service));
                    old.filter_map(|item| item.key()).for_each(|key| self.ports.remove(&key));
                }
                Key::Network(id) => drop(self.networks.remove(id)),
                Key::Node(id) => {
                    self.follow_node(&before, id);
                    if host_is_lost(&before, id) != host_is_lost(store, id) {
                        // Its plain containers are told of only while it is there.
                        for task in store.tasks_on_node(id).filter(|task| task.is_attachment()) {
                            gone.extend(on_networks(&before, before.task(&task.id)));
                            come.extend(on_networks(store, Some(task)));
                        }
                    }
                }
                Key::Cluster => {
                    let old = cluster_items(&before).filter_map(|item| item.key());
                    old.for_each(|key| self.hosts.remove(&key));
                    cluster_items(&self.store).for_each(|item| self.hosts.put(item));
                }
                Key::Secret(_) | Key::Config(_) | Key::Registry(_) => {}
            }
        }
        // What is gone goes before what comes: one may have the place of the other.
        for (network, item) in gone {
            if let (Some(part), Some(key)) = (self.networks.get_mut(&network), item.key()) {
                part.remove(&key);
            }
        }
        for (network, item) in come {
            if let Some(part) = self.networks.get_mut(&network) {
                part.put(item);
            }
        }
        let new = changed.iter().filter_map(|key| if let Key::Service(id) = key { store.service(id) } else { None });
        new.flat_map(|service| ports(service)).for_each(|item| self.ports.put(item));
        // The services on a network change seldom.
        for id in services {
            let (Some(part), Some(network)) = (self.networks.get_mut(&id), store.network(&id)) else { continue };
            let known =
                part.services().map(|info| Item::from(Body::Service(info.clone()))).filter_map(|item| item.key());
            let known: Vec<ItemKey> = known.collect();
            let now = AssignmentSet::new(network.allocation.iter().flat_map(|_| service_items(store, network)));
            known.iter().filter(|key| now.get(key).is_none()).for_each(|key| part.remove(key));
            now.items().for_each(|item| part.put(item.clone()));
        }
    }

    fn follow_node(&mut self, before: &Store, id: &NodeId) {
        let place =
            |store: &Store| store.node(id).map(|n| (n.description.data_path_addr.clone(), n.attachments.clone()));
        if place(before) != place(&self.store) {
            // Stations of any network may be there. It happens when hosts come and go.
            self.networks.clear();
        }
        match self.store.node(id) {
            Some(node) => self.hosts.put(Body::Peer(peer(node)).into()),
            None => self.hosts.remove(&ItemKey {
                kind: ItemKind::Peer as i32,
                first: id.to_string(),
                second: String::new(),
            }),
        }
    }
}

impl HostSet {
    /// A host's set. What it was before saves computing what has not changed since.
    pub fn new(store: &Store, node: &NodeId, shared: Shared, before: Option<(&Store, &HostSet)>) -> HostSet {
        let own = match before {
            // A set that shared nothing has all of it for its own.
            Some((then, set)) if !set.is_alone() && is_own_the_same(then, store, node) => set.own.clone(),
            _ => AssignmentSet::new(store.node(node).into_iter().flat_map(|node| own_items(store, node))),
        };
        HostSet { own, shared }
    }

    /// One that shares nothing.
    pub fn alone(store: &Store, node: &NodeId) -> HostSet {
        HostSet { own: assignment(store, node), shared: Shared::default() }
    }

    /// Every other one shares the hosts of the cluster.
    fn is_alone(&self) -> bool {
        self.shared.0.is_empty()
    }

    /// The whole set as a message.
    pub fn to_update(&self, stamp: Stamp) -> Update {
        let put = self.items().cloned().collect();
        Update { stamp, base: None, delta: Delta { put, remove: Vec::new() } }
    }

    /// All of it.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.own.items().chain(self.shared.0.values().flat_map(AssignmentSet::items))
    }
}

/// Whether a host's own part cannot have changed between two states.
fn is_own_the_same(then: &Store, now: &Store, node: &NodeId) -> bool {
    let on_node = |store: &Store, id| store.task(id).is_some_and(|task| task.node_id == *node);
    then.changed(now).iter().all(|key| match key {
        Key::Task(id) => !on_node(then, id) && !on_node(now, id),
        Key::Node(id) => id != node,
        Key::Service(_) | Key::Cluster => true,
        Key::Network(_) | Key::Secret(_) | Key::Config(_) | Key::Registry(_) => false,
    })
}

/// What a task is on each of its networks.
fn on_networks(store: &Store, task: Option<&Arc<Task>>) -> Vec<(NetworkId, Item)> {
    let Some(task) = task else { return Vec::new() };
    let networks: BTreeSet<&NetworkId> = task.attachments.iter().map(|attachment| &attachment.network).collect();
    let items = |network: &NetworkId| {
        let allocated = store.network(network).is_some_and(|network| network.allocation.is_some());
        if allocated { task_items(store, network, task) } else { Vec::new() }
    };
    networks.into_iter().flat_map(|network| items(network).into_iter().map(|item| (network.clone(), item))).collect()
}

/// The networks that a service may be on, but for ingress.
fn networks_of(service: &Service) -> BTreeSet<NetworkId> {
    let wished = service.spec.task.cluster_networks().map(|network| NetworkId::new(&network.target));
    wished.chain(service.endpoint.virtual_ips.iter().map(|vip| vip.network.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixture::{World, publish, web};
    use crate::control::{AttachContainer, CreateNetwork, DetachContainer, NodeDown, NodeSession, Op};
    use crate::model::{ATTACH_LEVEL, NetworkSpec, PublishMode, TaskId};

    /// A manager's session with a host, and what the host is told.
    struct Session {
        node: NodeId,
        parts: Parts,
        told: AssignmentSet,
        sent: Option<(Store, HostSet)>,
    }

    impl Session {
        fn of(node: &NodeId) -> Self {
            Self { node: node.clone(), parts: Parts::default(), told: AssignmentSet::default(), sent: None }
        }

        /// Tells it what is new, which leads to what it would be told at first.
        fn tell(&mut self, store: &Store, alone: bool) {
            let set = if alone {
                HostSet::alone(store, &self.node)
            } else {
                let shared = self.parts.shared(store, &self.node).expect("new enough");
                HostSet::new(store, &self.node, shared, self.sent.as_ref().map(|(store, set)| (store, set)))
            };
            let before = self.sent.take().map(|(_, set)| set).unwrap_or_default();
            self.told.apply(self.parts.difference(&before, &set));
            assert!(self.told.items().eq(assignment(store, &self.node).items()));
            self.sent = Some((store.clone(), set));
        }

        /// Tells it, and returns by what names it knows the tasks on its networks.
        fn names(&mut self, store: &Store) -> Vec<String> {
            self.tell(store, false);
            self.told.endpoints().filter_map(|endpoint| endpoint.names.first().cloned()).collect()
        }
    }

    /// A session that was overtaken by another one in between, and is even again: what it had for its own then is not
    /// its own any more.
    #[test]
    fn who_shared_nothing_for_a_while_loses_nothing_afterwards() {
        let mut world = World::new();
        let (node, other) = (world.join(1), world.join(2));
        let service = world.create(publish(web("web"), 8080, PublishMode::Ingress)).expect("made");
        let mut session = Session::of(&node);
        session.tell(&world.store, false);
        session.tell(&world.store, true);
        // Something that is not the host's own, and then something that is.
        world.place(&service, &other);
        session.tell(&world.store, false);
        world.place(&service, &node);
        session.tell(&world.store, false);
    }

    fn attach(world: &mut World, node: &NodeId, generation: u64, name: &str) -> TaskId {
        let op = AttachContainer {
            node_id: node.clone(),
            container: format!("{:0<64}", name.trim_start_matches('c')),
            name: name.into(),
            network: "back".into(),
            generation,
            ..AttachContainer::default()
        };
        TaskId::new(world.run(Op::AttachContainer(op)).expect("a place").id)
    }

    fn down(world: &mut World, node: &NodeId) {
        let op = NodeDown { node_id: node.clone(), generation: 99, ..NodeDown::default() };
        world.run(Op::NodeDown(op)).expect("down");
    }

    fn up(world: &mut World, node: &NodeId, generation: u64) {
        let description = world.store.node(node).expect("the node").description.clone();
        let op = NodeSession { node_id: node.clone(), generation, description, ..NodeSession::default() };
        world.run(Op::NodeSession(Box::new(op))).expect("a session");
    }

    #[test]
    fn a_plain_container_is_told_of_while_its_host_is_there() {
        let mut world = World::new();
        let (one, two) = (world.join(1), world.join(2));
        world.set_level(ATTACH_LEVEL);
        let spec = NetworkSpec { name: "back".into(), attachable: true, ..NetworkSpec::default() };
        world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect("made");
        let first = attach(&mut world, &one, 1, "c1");
        attach(&mut world, &two, 1, "c2");
        let held = world.addresses(&first);
        let (mut session, mut seldom) = (Session::of(&two), Session::of(&two));
        let names = |session: &mut Session, store: &Store| {
            let mut names = session.names(store);
            names.sort();
            names
        };
        assert_eq!(names(&mut session, &world.store), ["c1", "c2"]);
        seldom.tell(&world.store, false);
        down(&mut world, &one);
        assert_eq!(names(&mut session, &world.store), ["c2"]);
        // Its address is still its own, and leads to its host.
        assert_eq!(world.addresses(&first), held);
        assert!(session.told.stations().any(|station| station.node == one && station.address == held[0]));
        let third = attach(&mut world, &two, 1, "c3");
        assert_ne!(world.addresses(&third), held);
        up(&mut world, &one, 2);
        assert_eq!(names(&mut session, &world.store), ["c1", "c2", "c3"]);
        // Away, one given back and another one asked for: what is told seldom is told all of it at once.
        down(&mut world, &one);
        assert_eq!(names(&mut session, &world.store), ["c2", "c3"]);
        let back = DetachContainer { node_id: one.clone(), id: first, generation: 2, boot: 0 };
        world.run(Op::DetachContainer(back)).expect("given back");
        let fourth = attach(&mut world, &one, 2, "c4");
        assert_eq!(names(&mut session, &world.store), ["c2", "c3"]);
        assert_eq!(names(&mut seldom, &world.store), ["c2", "c3"]);
        up(&mut world, &one, 3);
        let back = DetachContainer { node_id: one.clone(), id: fourth, generation: 3, boot: 0 };
        attach(&mut world, &one, 3, "c5");
        world.run(Op::DetachContainer(back)).expect("given back");
        assert_eq!(names(&mut session, &world.store), ["c2", "c3", "c5"]);
        assert_eq!(names(&mut seldom, &world.store), ["c2", "c3", "c5"]);
    }
}
