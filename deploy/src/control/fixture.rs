//! A small cluster for tests: requests run through control and the allocator and are applied like log entries.

use super::{ControlError, CreateService, InitCluster, NodeSession, Op, RegisterNode, Reply, Request, execute};
use crate::allocator;
use crate::cx::{Cx, Limits};
use crate::model::*;
use crate::store::{Store, Txn};

const TERM: u64 = 3;

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) now: Timestamp,
    next_id: u128,
}

impl World {
    /// A cluster of one manager, "node 0".
    pub(crate) fn new() -> Self {
        let mut world = Self::empty();
        world.run(init()).expect("the cluster is made");
        world
    }

    pub(crate) fn empty() -> Self {
        Self { store: Store::default(), now: Timestamp::from_millis(1_000), next_id: 1 << 70 }
    }

    /// The cluster's managers are of the release with this feature level from now on.
    pub(crate) fn set_level(&mut self, level: u32) {
        self.change(|_, txn| {
            let mut cluster = Cluster::clone(txn.cluster().expect("a cluster"));
            cluster.status.feature_level = level;
            txn.put_cluster(cluster);
        });
    }

    /// Runs a request, lets the allocator follow, and applies what comes out.
    pub(crate) fn run(&mut self, op: impl Into<Op>) -> Result<Reply, ControlError> {
        self.request(&Request::from(op.into()))
    }

    pub(crate) fn request(&mut self, request: &Request) -> Result<Reply, ControlError> {
        let mut reply = None;
        self.change(|cx, txn| {
            let before = txn.touched().clone();
            let answer = execute(cx, txn, request);
            if answer.is_err() {
                assert_eq!(&before, txn.touched(), "a refused request changed something");
            }
            reply = Some(answer);
        });
        reply.expect("an answer")
    }

    /// Runs any change, lets the allocator follow, and applies what comes out. A second run of the allocator must
    /// have nothing to do.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Cx<'_>, &mut Txn)) {
        let next_id = &mut self.next_id;
        let mut ids = || {
            // Spread like random ids: an odd multiplier visits all values.
            *next_id += 1;
            next_id.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        };
        let mut cx = Cx { now: self.now, ids: &mut ids, limits: Limits::default() };
        let mut txn = Txn::new(&self.store, self.now);
        change(&mut cx, &mut txn);
        allocator::reconcile(&mut cx, &mut txn);
        let mut again = Txn::new(&txn.clone().into_store(), self.now);
        allocator::reconcile(&mut cx, &mut again);
        assert!(again.touched().is_empty(), "the allocator is not idempotent: {:?}", again.touched());
        if let Some(entry) = txn.finish(TERM) {
            self.store.apply(TERM, &entry).expect("no conflict");
        }
        assert_eq!(txn.into_store(), self.store);
        let wrong = self.store.invariants();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// Joins a worker whose agent has a session.
    pub(crate) fn join(&mut self, number: u128) -> NodeId {
        self.try_join(number).expect("joined")
    }

    pub(crate) fn try_join(&mut self, number: u128) -> Result<NodeId, ControlError> {
        let node_id = NodeId::from(number);
        let description = NodeDescription { hostname: format!("host-{number}"), ..NodeDescription::default() };
        let register = RegisterNode {
            node_id: node_id.clone(),
            role: NodeRole::Worker as i32,
            description: description.clone(),
            ..RegisterNode::default()
        };
        self.run(Op::RegisterNode(Box::new(register)))?;
        let session = NodeSession {
            node_id: node_id.clone(),
            generation: 1,
            description,
            addr: "192.0.2.1".to_owned(),
            ..NodeSession::default()
        };
        self.run(Op::NodeSession(Box::new(session)))?;
        Ok(node_id)
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        self.run(Op::CreateService(Box::new(CreateService { spec }))).map(|reply| ServiceId::new(reply.id))
    }

    pub(crate) fn service(&self, id: &ServiceId) -> Service {
        (**self.store.service(id).expect("the service")).clone()
    }

    /// A task of the service, running on the host.
    pub(crate) fn place(&mut self, service: &ServiceId, node: &NodeId) -> TaskId {
        let service = self.service(service);
        let node = node.clone();
        let mut made = None;
        self.change(|cx, txn| {
            let id: TaskId = cx.id();
            let mut task = Task {
                id: id.clone(),
                spec: service.spec.task.clone(),
                service_id: service.id.clone(),
                ports: service.spec.endpoint_spec().ports,
                node_id: node,
                slot: 1,
                ..Task::default()
            };
            task.set_desired(DesiredState::Running);
            task.status.set_state(TaskState::Assigned);
            txn.put_task(task);
            made = Some(id);
        });
        made.expect("a task")
    }

    pub(crate) fn addresses(&self, task: &TaskId) -> Vec<String> {
        self.store.task(task).expect("the task").attachments.iter().map(|a| a.address.clone()).collect()
    }
}

pub(crate) fn init() -> Op {
    let mut cluster = Cluster { id: ClusterId::from(77), ..Cluster::default() };
    cluster.status.worker_token = "worker".into();
    cluster.status.manager_token = "manager".into();
    cluster.status.gossip_keys = vec![GossipKey { id: 1, bytes: vec![1; 32] }];
    let mut node = Node { id: NodeId::from(0), ..Node::default() };
    node.spec.set_role(NodeRole::Manager);
    node.description.hostname = "host-0".into();
    node.manager = Some(ManagerStatus { raft_id: 1, addr: "192.0.2.9:2377".into() });
    Op::InitCluster(Box::new(InitCluster { cluster, node }))
}

pub(crate) fn web(name: &str) -> ServiceSpec {
    let mut spec = ServiceSpec { name: name.to_owned(), ..ServiceSpec::default() };
    spec.task.container.image = "nginx:1".into();
    spec
}

pub(crate) fn publish(mut spec: ServiceSpec, published: u32, mode: PublishMode) -> ServiceSpec {
    let port = PortConfig { target: 80, published, mode: mode as i32, ..PortConfig::default() };
    spec.endpoint.get_or_insert_default().ports.push(port);
    spec
}

pub(crate) fn on_network(mut spec: ServiceSpec, network: &str) -> ServiceSpec {
    spec.task
        .networks
        .push(NetworkAttachmentConfig { target: network.to_owned(), ..NetworkAttachmentConfig::default() });
    spec
}
