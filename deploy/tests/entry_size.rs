//! However much there is to decide at once, each entry stays below what Raft takes, and in the end all is decided.

use deploy::brain;
use deploy::control::{
    CreateService, InitCluster, NodeDown, NodeSession, Op, RegisterNode, RemoveService, Request, execute,
};
use deploy::cx::{Cx, Limits};
use deploy::model::*;
use deploy::store::{MAX_ENTRY_BYTES, Store, Txn};

struct Leader {
    store: Store,
    next_id: u128,
    now: Timestamp,
}

impl Leader {
    /// Runs a request and passes until none asks for another at once; says how many entries it took.
    fn turn(&mut self, op: Op) -> usize {
        let mut request = Some(Request::from(op));
        for entries in 0..1000 {
            let next_id = &mut self.next_id;
            let mut ids = || {
                *next_id += 1;
                next_id.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            };
            let mut cx = Cx { now: self.now, ids: &mut ids, limits: Limits { tasks_per_pass: 256 } };
            let mut txn = Txn::new(&self.store, self.now);
            if let Some(request) = request.take() {
                execute(&mut cx, &mut txn, &request).expect("carried out");
            }
            brain::pass(&mut cx, &mut txn);
            let again = txn.next_wake().is_some_and(|at| at <= self.now);
            let Some(entry) = txn.finish(1) else {
                assert!(!again, "a pass that changed nothing asks for another at once");
                return entries;
            };
            let bytes = entry.to_bytes().len();
            assert!(bytes <= MAX_ENTRY_BYTES, "an entry of {bytes} bytes");
            self.store.apply(1, &entry).expect("no conflict");
            if !again {
                assert_eq!(self.store.invariants(), Vec::<String>::new());
                return entries + 1;
            }
        }
        panic!("it never ends");
    }

    fn join(&mut self, number: u128) -> NodeId {
        let node_id = NodeId::from(number);
        let mut description = NodeDescription { hostname: format!("host-{number}"), ..NodeDescription::default() };
        description.os = "linux".into();
        description.resources = NodeResources { nano_cpus: 64_000_000_000, memory_bytes: 1 << 40 };
        let register =
            RegisterNode { node_id: node_id.clone(), description: description.clone(), ..RegisterNode::default() };
        self.turn(Op::RegisterNode(Box::new(register)));
        let session = NodeSession { node_id: node_id.clone(), generation: 1, description, ..NodeSession::default() };
        self.turn(Op::NodeSession(Box::new(session)));
        node_id
    }

    fn wanted(&self, id: &ServiceId) -> usize {
        let placed = |t: &&std::sync::Arc<Task>| t.is_wanted() && t.is_placed() && !t.lacks_addresses();
        self.store.tasks_of_service(id).filter(placed).count()
    }
}

fn spec(name: &str, replicas: u64, bytes: usize) -> ServiceSpec {
    let mut spec = ServiceSpec { name: name.into(), ..ServiceSpec::default() };
    spec.mode = Some(ServiceMode::Replicated(Replicated { replicas: Some(replicas) }));
    spec.task.container.image = "nginx:1".into();
    spec.task.container.env = vec![format!("HEAVY={}", "x".repeat(bytes))];
    spec
}

#[test]
fn no_pass_outgrows_an_entry() {
    let mut leader = Leader { store: Store::default(), next_id: 1 << 80, now: Timestamp::from_millis(1_000_000) };
    let mut cluster = Cluster { id: ClusterId::from(1), ..Cluster::default() };
    cluster.status.worker_token = "worker".into();
    cluster.status.manager_token = "manager".into();
    cluster.status.gossip_keys = vec![GossipKey { id: 1, bytes: vec![1; 32] }];
    let mut node = Node { id: NodeId::from(1), ..Node::default() };
    node.spec.set_role(NodeRole::Manager);
    node.spec.set_availability(NodeAvailability::Drain);
    node.manager = Some(ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".into() });
    leader.turn(Op::InitCluster(Box::new(InitCluster { cluster, node })));
    let hosts = [leader.join(2), leader.join(3)];
    let create = |spec: ServiceSpec| Op::CreateService(Box::new(CreateService { spec }));
    // Services that can never run must neither hold the others up nor keep the leader busy.
    let mut hopeless = spec("hopeless", 600, 10);
    hopeless.task.placement.constraints.push("node.labels.none==such".into());
    leader.turn(create(hopeless));
    assert!(leader.turn(create(spec("heavy", 40, 90_000))) > 3);
    assert!(leader.turn(create(spec("many", 5_000, 10))) > 1);
    let id = |name: &str| leader.store.service_by_name(name).expect("the service").id.clone();
    let (heavy, many) = (id("heavy"), id("many"));
    assert_eq!((leader.wanted(&heavy), leader.wanted(&many)), (40, 5_000));
    let down = NodeDown { node_id: hosts[0].clone(), generation: 1, reason: "gone".into() };
    assert!(leader.turn(Op::NodeDown(down)) > 3);
    assert_eq!((leader.wanted(&heavy), leader.wanted(&many)), (40, 5_000));
    assert!(leader.turn(Op::RemoveService(RemoveService { id: many.clone() })) > 1);
    let kept = leader.store.tasks_of_service(&many).filter(|t| t.desired() != DesiredState::Remove).count();
    assert_eq!(kept, 0);
}
