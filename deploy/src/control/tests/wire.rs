//! Requests on the wire: kept whole, damaged, of other releases.

use proptest::prelude::*;
use prost::Message;

use super::*;

#[test]
fn a_request_of_a_newer_release_is_refused() {
    let mut world = World::new();
    world.change(|cx, txn| {
        refused(execute(cx, txn, &Request { op: None }), ErrorKind::Unimplemented, "release does not know");
    });
}

/// Requests of all kinds that make sense in the cluster below.
fn sensible(world: &World, node: &NodeId, service: &ServiceId, task: &TaskId) -> Vec<Request> {
    let network = NetworkSpec {
        name: "more".into(),
        ipam: vec![IpamConfig {
            subnet: "10.77.0.0/24".into(),
            ip_range: "10.77.0.128/25".into(),
            gateway: "10.77.0.1".into(),
            auxiliary: [("a".to_owned(), "10.77.0.9".to_owned())].into(),
        }],
        ..NetworkSpec::default()
    };
    let version = world.service(service).meta.version;
    let mut spec = publish(on_network(web("next"), "back"), 0, PublishMode::Ingress);
    spec.task.placement.constraints.push("node.role==worker".into());
    spec.task.container.env.push("A=b".into());
    let payload = PayloadSpec { name: "pay".into(), data: vec![1], ..PayloadSpec::default() };
    let cluster = world.store.cluster().expect("the cluster");
    let status = TaskStatus { state: TaskState::Running as i32, ..TaskStatus::default() };
    let reports = vec![TaskReport { task_id: task.clone(), status }];
    let description = NodeDescription { hostname: "h".into(), ..NodeDescription::default() };
    let node_id = node.clone();
    [
        init(),
        Op::CreateService(Box::new(CreateService { spec: spec.clone() })),
        Op::UpdateService(Box::new(UpdateService {
            id: service.clone(),
            version,
            spec: publish(web("web"), 8080, PublishMode::Ingress),
            rollback: false,
        })),
        Op::RemoveService(RemoveService { id: service.clone() }),
        Op::CreateNetwork(Box::new(CreateNetwork { spec: network })),
        Op::CreateSecret(CreateSecret { spec: payload.clone() }),
        Op::CreateConfig(CreateConfig { spec: payload }),
        set_registry("docker.io", "e30="),
        Op::RemoveRegistry(RemoveRegistry { id: RegistryId::new("docker.io") }),
        Op::UpdateCluster(Box::new(UpdateCluster {
            version: cluster.meta.version,
            spec: cluster.spec.clone(),
            rotate_worker_token: true,
            rotate_manager_token: true,
            rotate_unlock_key: true,
            ..UpdateCluster::default()
        })),
        Op::RegisterNode(Box::new(RegisterNode { node_id: NodeId::from(99), ..RegisterNode::default() })),
        Op::NodeSession(Box::new(NodeSession {
            node_id: node_id.clone(),
            generation: 2,
            description,
            addr: "192.0.2.7".into(),
            ..NodeSession::default()
        })),
        Op::NodeDown(NodeDown { node_id: node_id.clone(), generation: 2, reason: "gone".into() }),
        Op::ReportStatuses(ReportStatuses { node_id: node_id.clone(), generation: 2, reports }),
        Op::AllocateRaftId(AllocateRaftId { node_id: NodeId::from(0), addr: "192.0.2.9:2377".into() }),
        Op::NodeLeft(NodeLeft { node_id: node_id.clone() }),
        Op::RemoveNode(RemoveNode { id: node_id, force: true }),
    ]
    .map(Request::from)
    .into()
}

fn busy() -> (World, Vec<Request>) {
    let mut world = World::new();
    let node = world.join(1);
    let spec = NetworkSpec { name: "back".into(), ..NetworkSpec::default() };
    world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect("a network");
    let service = world.create(publish(on_network(web("web"), "back"), 80, PublishMode::Ingress)).expect("made");
    let task = world.place(&service, &node);
    let requests = sensible(&world, &node, &service, &task);
    (world, requests)
}

#[test]
fn requests_replies_and_errors_survive_the_wire() {
    let (mut world, requests) = busy();
    for request in requests {
        assert_eq!(Request::decode(request.encode_to_vec().as_slice()).expect("a request"), request);
        match world.request(&request) {
            Ok(reply) => assert_eq!(Reply::decode(reply.encode_to_vec().as_slice()).expect("a reply"), reply),
            Err(error) => {
                assert_eq!(ControlError::decode(error.encode_to_vec().as_slice()).expect("an error"), error);
            }
        }
    }
}

fn apply_damage(bytes: &mut Vec<u8>, at: u16, value: u8) {
    let at = usize::from(at) % bytes.len().max(1);
    match value % 4 {
        _ if bytes.is_empty() => {}
        0 => bytes[at] = value,
        1 => bytes[at] ^= 1 << (value >> 5),
        2 => bytes.truncate(at),
        // A varint of ten bytes: the largest numbers there are.
        _ => drop(bytes.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same for the request that makes the cluster, whose objects come whole from a node.
    #[test]
    fn a_damaged_init_does_no_harm(damage in prop::collection::vec((any::<u16>(), any::<u8>()), 1..4)) {
        let mut bytes = Request::from(init()).encode_to_vec();
        for (at, value) in damage {
            apply_damage(&mut bytes, at, value);
        }
        if let Ok(request) = Request::decode(bytes.as_slice()) {
            let mut world = World::empty();
            let _ = world.request(&request);
            let first = world.store.nodes().next().map(|node| node.id.clone());
            if let Some(node) = first {
                let op = AllocateRaftId { node_id: node, addr: "192.0.2.9:2377".into() };
                let _ = world.run(Op::AllocateRaftId(op));
            }
        }
    }

    /// Damaged requests are carried out or refused: no panic, nothing half done, and the store stays sound (the world
    /// checks all of it after each request).
    #[test]
    fn damaged_requests_do_no_harm(damage in prop::collection::vec((any::<u16>(), any::<u16>(), any::<u8>()), 1..40)) {
        let (mut world, requests) = busy();
        let bytes: Vec<Vec<u8>> = requests.iter().map(Message::encode_to_vec).collect();
        for (which, at, value) in damage {
            let mut bytes = bytes[usize::from(which) % bytes.len()].clone();
            apply_damage(&mut bytes, at, value);
            if let Ok(request) = Request::decode(bytes.as_slice()) {
                let _ = world.request(&request);
            }
        }
    }
}
