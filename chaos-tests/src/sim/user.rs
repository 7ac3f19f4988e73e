//! The user: changes the cluster at random while the storm lasts, keeps a book of what was promised, and afterwards
//! asks for something that can be carried out.

use std::collections::BTreeMap;

use deploy::control::{
    CreateNetwork, CreateService, InitCluster, Op, RemoveNetwork, RemoveNode, RemoveService, UpdateNode, UpdateService,
};
use deploy::model::{
    ATTACH_LEVEL, Cluster, ClusterId, EndpointSpec, FailureAction, Global, GossipKey, ManagerStatus,
    NetworkAttachmentConfig, NetworkSpec, Node, NodeAvailability, NodeDescription, NodeId, NodeRole, PortConfig,
    PublishMode, Replicated, RestartCondition, RestartPolicy, Service, ServiceMode, ServiceSpec, UpdateConfig,
    UpdateOrder,
};
use deploy::store::Store;

use super::world::{Event, Outcome, Waiter, World, short};
use crate::check::Violation;

/// Services at a time.
const SERVICES: usize = 4;
/// Hosts at a time; a removed one is followed by another.
const HOSTS: usize = 6;
/// The label of a service that was given something that can be carried out.
const CALM: &str = "calm";

/// What the user asked for and waits to hear of.
pub(super) enum Wish {
    Create(String),
    Remove(String),
    Join(NodeId),
    Other,
}

/// What the user knows of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Its creation was acknowledged, and its removal never asked for.
    Exists,
    /// Its removal was acknowledged.
    Gone,
    /// Something is under way, or its outcome is unknown.
    Open,
}

#[derive(Default)]
pub(super) struct User {
    wishes: BTreeMap<u64, Wish>,
    asked: u64,
    named: u64,
    book: BTreeMap<String, Known>,
}

impl User {
    pub(super) fn expect(&mut self, wish: Wish) -> u64 {
        self.asked += 1;
        self.wishes.insert(self.asked, wish);
        self.asked
    }
}

impl World {
    /// The first node makes the cluster; hosts join.
    pub(super) fn begin_cluster(&mut self) {
        let mut cluster = Cluster { id: ClusterId::from(self.rng.id()), ..Cluster::default() };
        cluster.status.worker_token = "w".into();
        cluster.status.manager_token = "m".into();
        cluster.status.incarnation = 1;
        cluster.status.feature_level = ATTACH_LEVEL;
        cluster.status.gossip_keys = vec![GossipKey { id: 1, bytes: vec![7; 32] }];
        cluster.spec.task_history_limit = Some(2);
        let mut node = Node { id: NodeId::from(self.rng.id()), ..Node::default() };
        node.spec.set_role(NodeRole::Manager);
        // Managers of the simulation run no tasks: what they do as hosts is what the other hosts do.
        node.spec.set_availability(NodeAvailability::Drain);
        node.manager = Some(ManagerStatus { raft_id: 1, addr: "10.8.0.1:2377".into() });
        node.description = NodeDescription { hostname: "manager".into(), ..NodeDescription::default() };
        self.request(Op::InitCluster(Box::new(InitCluster { cluster, node })), Waiter::Nobody);
        for _ in 0..self.scenario.hosts {
            self.join();
        }
    }

    fn ask(&mut self, op: Op, wish: Wish) {
        let number = self.user.expect(wish);
        self.request(op, Waiter::User(number));
    }

    pub(super) fn user_answered(&mut self, number: u64, outcome: Outcome) {
        let Some(wish) = self.user.wishes.remove(&number) else { return };
        match (&wish, &outcome) {
            (_, Outcome::Done(..)) => self.summary.acknowledged += 1,
            (_, Outcome::Unknown) => self.summary.unknown += 1,
            _ => {}
        }
        match &outcome {
            Outcome::Done(reply, index) => self.note(|| format!("user: {} is done at {index}", short(&reply.id))),
            Outcome::Refused(error) => self.note(|| format!("user: {error}")),
            Outcome::NoLeader | Outcome::Unknown => self.note(|| "user: no leader, or none that answers".to_owned()),
        }
        match (wish, outcome) {
            (Wish::Create(name), Outcome::Done(..)) => self.user.book.extend([(name, Known::Exists)]),
            (Wish::Create(name), Outcome::Refused(_) | Outcome::NoLeader) => {
                self.user.book.extend([(name, Known::Gone)])
            }
            (Wish::Remove(name), Outcome::Done(..)) => self.user.book.extend([(name, Known::Gone)]),
            (Wish::Join(id), Outcome::Done(..)) => {
                let boot = self.hosts.get(&id).map_or(0, |host| host.boot);
                self.after_ms(10, Event::Connect { host: id, boot });
            }
            (Wish::Join(id), Outcome::Refused(_)) => {
                // The cluster is not made yet; a host knocks again.
                self.knock_again(id);
            }
            (Wish::Join(id), _) => self.knock_again(id),
            _ => {}
        }
    }

    fn knock_again(&mut self, id: NodeId) {
        let Some(host) = self.hosts.get(&id) else { return };
        let description = host.description.clone();
        let addr = description.data_path_addr.clone();
        let op = Op::RegisterNode(Box::new(deploy::control::RegisterNode {
            node_id: id.clone(),
            role: NodeRole::Worker as i32,
            description,
            addr,
            ..deploy::control::RegisterNode::default()
        }));
        self.ask(op, Wish::Join(id));
    }

    pub(super) fn user_acts(&mut self) {
        let pause = if self.stormy { self.rng.range(50, 2500) } else { 1000 };
        self.after_ms(pause, Event::UserActs);
        let store = self.some_store();
        if store.cluster().is_none() {
            return;
        }
        if !self.stormy {
            return self.ask_for_calm(&store);
        }
        if self.rng.percent(30) {
            return self.somebody_runs(&store);
        }
        let services: Vec<Service> = store.services().map(|s| Service::clone(s)).collect();
        let service = self.rng.pick(&services).cloned();
        match (self.rng.range(0, 100), service) {
            (0..25, _) if services.len() < SERVICES => self.create_service(&store),
            (0..50, Some(service)) => self.update_service(&store, &service),
            (50..65, Some(service)) => self.scale(&service),
            (65..69, Some(service)) => {
                let op = UpdateService {
                    id: service.id.clone(),
                    version: service.meta.version,
                    spec: service.spec.clone(),
                    rollback: true,
                };
                self.ask(Op::UpdateService(Box::new(op)), Wish::Other);
            }
            (69..74, Some(service)) => self.remove_service(&service),
            (74..92, _) => self.change_node(&store),
            (92..96, _) => self.remove_node(&store),
            (96..100, _) if self.hosts.len() < HOSTS => drop(self.join()),
            _ => {
                let name = format!("net{}", self.rng.range(0, 2));
                if store.network_by_name(&name).is_none() {
                    let spec =
                        NetworkSpec { name, driver: "overlay".into(), attachable: true, ..NetworkSpec::default() };
                    self.ask(Op::CreateNetwork(Box::new(CreateNetwork { spec })), Wish::Other);
                }
            }
        }
    }

    fn create_service(&mut self, store: &Store) {
        self.user.named += 1;
        let name = format!("svc{}", self.user.named);
        let mut spec = ServiceSpec { name: name.clone(), ..ServiceSpec::default() };
        spec.task.container.image = "shoal/test:1".into();
        spec.mode = Some(match self.rng.percent(20) {
            true => ServiceMode::Global(Global {}),
            false => ServiceMode::Replicated(Replicated { replicas: Some(self.rng.range(0, 6)) }),
        });
        self.vary(store, &mut spec);
        self.vary(store, &mut spec);
        let mut update = UpdateConfig { parallelism: Some(self.rng.range(0, 3)), ..UpdateConfig::default() };
        update.monitor_ns = Some(self.rng.range(0, 3) * 1_000_000_000);
        update.delay_ns = Some(self.rng.range(0, 2) * 500_000_000);
        if self.rng.percent(30) {
            update.set_order(UpdateOrder::StartFirst);
        }
        let actions = [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback];
        update.set_failure_action(self.rng.pick(&actions).copied().unwrap_or(FailureAction::Pause));
        spec.rollback = Some(UpdateConfig { failure_action: FailureAction::Continue as i32, ..update.clone() });
        spec.update = Some(update);
        self.user.book.insert(name.clone(), Known::Open);
        self.note(|| format!("user creates {name}"));
        self.ask(Op::CreateService(Box::new(CreateService { spec })), Wish::Create(name));
    }

    /// Changes one thing of a spec.
    fn vary(&mut self, store: &Store, spec: &mut ServiceSpec) {
        match self.rng.range(0, 9) {
            0 => {
                let memory = self.rng.range(0, 3) * (700 << 20);
                spec.task.resources.reservations.memory_bytes = memory;
            }
            1 => spec.task.placement.constraints = vec!["node.labels.zone==a".into()],
            2 => spec.task.placement.constraints.clear(),
            3 => {
                let networks: Vec<_> = store.networks().filter(|n| !n.spec.ingress).map(|n| n.id.to_string()).collect();
                let target = self.rng.pick(&networks).cloned();
                let wish = |target| NetworkAttachmentConfig { target, ..NetworkAttachmentConfig::default() };
                spec.task.networks = target.map(wish).into_iter().collect();
            }
            4 => {
                let mode = if self.rng.percent(70) { PublishMode::Ingress } else { PublishMode::Host };
                let published = if self.rng.percent(50) { 0 } else { 8080 };
                let port = PortConfig { target: 80, published, mode: mode as i32, ..PortConfig::default() };
                spec.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
            }
            5 => spec.endpoint = None,
            6 => {
                let conditions = [RestartCondition::Any, RestartCondition::OnFailure, RestartCondition::None];
                spec.task.restart = Some(RestartPolicy {
                    condition: self.rng.pick(&conditions).map(|c| *c as i32),
                    delay_ns: Some(self.rng.range(0, 3) * 700_000_000),
                    max_attempts: Some(self.rng.range(0, 4)),
                    window_ns: None,
                });
            }
            _ => spec.task.container.args = vec![format!("v{}", self.rng.range(0, 5))],
        }
    }

    fn update(&mut self, service: &Service, spec: ServiceSpec) {
        self.note(|| format!("user updates {}", service.spec.name));
        let op = UpdateService { id: service.id.clone(), version: service.meta.version, spec, rollback: false };
        self.ask(Op::UpdateService(Box::new(op)), Wish::Other);
    }

    fn update_service(&mut self, store: &Store, service: &Service) {
        let mut spec = service.spec.clone();
        self.vary(store, &mut spec);
        self.update(service, spec);
    }

    fn scale(&mut self, service: &Service) {
        let mut spec = service.spec.clone();
        if let Some(ServiceMode::Replicated(replicated)) = &mut spec.mode {
            replicated.replicas = Some(self.rng.range(0, 7));
            self.update(service, spec);
        }
    }

    fn remove_service(&mut self, service: &Service) {
        let name = service.spec.name.clone();
        self.note(|| format!("user removes {name}"));
        self.user.book.insert(name.clone(), Known::Open);
        self.ask(Op::RemoveService(RemoveService { id: service.id.clone() }), Wish::Remove(name));
    }

    fn change_node(&mut self, store: &Store) {
        let nodes: Vec<Node> = workers(store);
        let Some(node) = self.rng.pick(&nodes).cloned() else { return };
        let mut spec = node.spec.clone();
        match self.rng.range(0, 6) {
            0 => spec.set_availability(NodeAvailability::Drain),
            1 => spec.set_availability(NodeAvailability::Pause),
            2 => drop(spec.labels.insert("zone".into(), "a".into())),
            3 => drop(spec.labels.insert("zone".into(), "b".into())),
            _ => spec.set_availability(NodeAvailability::Active),
        }
        self.update_node(&node, spec);
    }

    fn update_node(&mut self, node: &Node, spec: deploy::model::NodeSpec) {
        self.note(|| format!("user makes {} {:?} {:?}", short(&node.id), spec.availability(), spec.labels));
        let op = UpdateNode { id: node.id.clone(), version: node.meta.version, spec };
        self.ask(Op::UpdateNode(op), Wish::Other);
    }

    fn remove_node(&mut self, store: &Store) {
        let nodes = workers(store);
        if nodes.len() < 3 {
            return;
        }
        let Some(node) = self.rng.pick(&nodes).cloned() else { return };
        self.note(|| format!("user removes host {}", short(&node.id)));
        let force = self.rng.percent(50);
        self.ask(Op::RemoveNode(RemoveNode { id: node.id, force }), Wish::Other);
    }

    /// After the storm: every host takes tasks, every service has a spec that can be carried out. Asks until it is so.
    fn ask_for_calm(&mut self, store: &Store) {
        for node in workers(store) {
            let mut spec = node.spec.clone();
            spec.set_availability(NodeAvailability::Active);
            spec.labels.insert("zone".into(), "a".into());
            if spec != node.spec {
                self.update_node(&node, spec);
            }
        }
        if self.scenario.ends == super::Ends::Empty {
            return self.ask_for_nothing(store);
        }
        for service in store.services().filter(|s| !s.spec.labels.contains_key(CALM)) {
            let mut spec = service.spec.clone();
            spec.labels.insert(CALM.into(), String::new());
            spec.task.restart = Some(RestartPolicy { delay_ns: Some(500_000_000), ..RestartPolicy::default() });
            spec.task.force_update += 1;
            for config in [&mut spec.update, &mut spec.rollback] {
                let config = config.get_or_insert_default();
                config.set_failure_action(FailureAction::Continue);
                config.monitor_ns = Some(100_000_000);
            }
            self.update(service, spec);
        }
    }

    fn ask_for_nothing(&mut self, store: &Store) {
        self.remove_all_plain();
        for service in store.services() {
            self.remove_service(service);
        }
        if store.services().next().is_none() {
            for network in store.networks().filter(|n| !n.spec.ingress) {
                self.ask(Op::RemoveNetwork(RemoveNetwork { id: network.id.clone() }), Wish::Other);
            }
        }
    }

    /// Whether the cluster has what the user was promised.
    pub(super) fn check_book(&mut self) {
        let store = self.newest_store();
        let broken = self.user.book.iter().find(|(name, known)| match known {
            Known::Exists => store.service_by_name(name).is_none(),
            Known::Gone => store.service_by_name(name).is_some(),
            Known::Open => false,
        });
        if let Some((name, known)) = broken {
            let what = format!("service {name} should be {known:?}");
            self.violation = Some(Violation { property: "an acknowledged write is never lost", what });
        }
    }

    /// Whether the user has got what can be carried out.
    pub(super) fn is_calm(&self) -> bool {
        let store = self.newest_store();
        let active = workers(&store).iter().all(|n| n.spec.availability() == NodeAvailability::Active);
        match self.scenario.ends {
            super::Ends::Running => active && store.services().all(|s| s.spec.labels.contains_key(CALM)),
            super::Ends::Empty => active && store.services().next().is_none() && store.tasks().next().is_none(),
        }
    }
}

fn workers(store: &Store) -> Vec<Node> {
    store.nodes().filter(|n| n.manager.is_none()).map(|n| Node::clone(n)).collect()
}
