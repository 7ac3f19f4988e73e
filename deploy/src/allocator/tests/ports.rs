//! Numbers of published ports: chosen on hosts, kept from the hosts' own.

use crate::control::fixture::{World, on_network, publish, web};
use crate::control::{CreateNetwork, NodeSession, Op, RegisterNode, ReportStatuses, TaskReport, UpdateService};
use crate::dispatcher::{Body, assignment};
use crate::model::*;

fn host_port(task: &Task) -> Vec<u32> {
    task.host_ports().map(|port| port.published).collect()
}

fn ports_of(world: &World, task: &TaskId) -> Vec<u32> {
    host_port(world.store.task(task).expect("the task"))
}

fn end(world: &mut World, node: &NodeId, task: &TaskId) {
    let status = TaskStatus { state: TaskState::Complete as i32, ..TaskStatus::default() };
    let reports = vec![TaskReport { task_id: task.clone(), status }];
    world.run(Op::ReportStatuses(ReportStatuses { node_id: node.clone(), generation: 1, reports })).expect("a report");
}

fn control_port(port: u32) -> Vec<OwnPort> {
    let own = |protocol: PortProtocol| OwnPort { protocol: protocol as i32, port, purpose: "control port".into() };
    vec![own(PortProtocol::Tcp), own(PortProtocol::Udp)]
}

/// A session of a host that listens there.
fn session(world: &mut World, node: &NodeId, own_ports: Vec<OwnPort>) {
    let description = NodeDescription { hostname: "host-1".into(), own_ports, ..NodeDescription::default() };
    let session = NodeSession { node_id: node.clone(), generation: 1, description, ..NodeSession::default() };
    world.run(Op::NodeSession(Box::new(session))).expect("a session");
}

#[test]
fn an_open_host_mode_port_gets_a_number_on_its_host() {
    let mut world = World::new();
    let (one, two) = (world.join(1), world.join(2));
    // Taken: 30000 by the mesh, 30001 by a wish for the host, 30003 by the host itself.
    world.create(publish(web("mesh"), 0, PublishMode::Ingress)).expect("made");
    world.create(publish(web("named"), 30001, PublishMode::Host)).expect("made");
    session(&mut world, &two, control_port(30003));
    let spec = publish(publish(web("open"), 0, PublishMode::Host), 0, PublishMode::Host);
    let service = world.create(spec).expect("made");
    let first = world.place(&service, &one);
    let second = world.place(&service, &one);
    let elsewhere = world.place(&service, &two);
    assert_eq!(ports_of(&world, &first), [30002, 30004]);
    assert_eq!(ports_of(&world, &second), [30005, 30006]);
    assert_eq!(ports_of(&world, &elsewhere), [30002, 30004]);
    // The service itself has no number: each task has its own.
    assert_eq!(world.service(&service).endpoint.ports[0].published, 0);
    // The mesh does not choose what a task has, and nobody can ask for it.
    let mesh = world.create(publish(web("mesh2"), 0, PublishMode::Ingress)).expect("made");
    assert_eq!(world.service(&mesh).endpoint.ports[0].published, 30007);
    let error = world.create(publish(web("late"), 30004, PublishMode::Ingress)).expect_err("taken");
    let name = world.store.task(&first).expect("the task").name();
    let holder = world.store.task(&elsewhere).expect("the task").name();
    assert!(error.message.contains(&name) || error.message.contains(&holder), "{}", error.message);
    // It is free again when the task was seen to end.
    end(&mut world, &one, &first);
    let third = world.place(&service, &one);
    assert_eq!(ports_of(&world, &third), [30002, 30004]);
}

#[test]
fn a_task_waits_for_its_number_and_says_so() {
    let mut world = World::new();
    let node = world.join(1);
    let mut spec = web("many");
    for _ in 0..1000 {
        spec = publish(spec, 0, PublishMode::Host);
    }
    let service = world.create(spec).expect("made");
    let tasks: Vec<TaskId> = (0..3).map(|_| world.place(&service, &node)).collect();
    assert_eq!(ports_of(&world, &tasks[1]).len(), 1000);
    let last = world.store.task(&tasks[2]).expect("the task").clone();
    assert!(last.lacks_addresses() && host_port(&last).is_empty());
    assert!(last.status.message.contains("no port is free") && last.status.message.contains("host-1"), "{last:?}");
    end(&mut world, &node, &tasks[0]);
    assert_eq!(ports_of(&world, &tasks[2]).len(), 1000);
}

#[test]
fn a_task_that_its_host_has_already_keeps_what_it_has() {
    let mut world = World::new();
    let node = world.join(1);
    let service = world.create(publish(web("old"), 0, PublishMode::Host)).expect("made");
    let task = world.place(&service, &node);
    // As a release that chose no numbers left it.
    world.change(|_, txn| {
        let mut task = Task::clone(txn.task(&task).expect("the task"));
        task.chosen_ports.clear();
        task.status.set_state(TaskState::Running);
        txn.put_task(task);
    });
    let task = world.store.task(&task).expect("the task");
    assert!(!task.lacks_addresses());
    assert_eq!(host_port(task), [0; 0]);
}

#[test]
fn nobody_publishes_a_port_of_a_host_or_of_the_cluster() {
    let mut world = World::new();
    let node = world.join(1);
    session(&mut world, &node, control_port(7000));
    let udp = |mut spec: ServiceSpec| {
        spec.endpoint.get_or_insert_default().ports[0].set_protocol(PortProtocol::Udp);
        spec
    };
    let manager = world.store.node(&NodeId::from(0)).expect("the manager").id.clone();
    let at = |node: &str, id: &NodeId| format!("is already in use by node '{node}' ({id}) as its control port");
    for mode in [PublishMode::Ingress, PublishMode::Host] {
        for (spec, why) in [
            // The manager's, which is known by its address only.
            (publish(web("a"), 2377, mode), at("host-0", &manager)),
            (udp(publish(web("a"), 2377, mode)), at("host-0", &manager)),
            (publish(web("a"), 7000, mode), at("host-1", &node)),
            (udp(publish(web("a"), 4789, mode)), "is already in use by the cluster as its data path port".to_owned()),
        ] {
            let error = world.create(spec).expect_err("refused");
            assert!(error.message.ends_with(&why), "{} instead of {why}", error.message);
        }
        world
            .create(publish(web(&format!("tcp-{}", mode as i32)), 4789 + mode as u32, mode))
            .expect("another protocol");
    }
}

#[test]
fn a_host_that_comes_later_listens_elsewhere_or_keeps_its_port_to_itself() {
    let mut world = World::new();
    let service = world.create(publish(web("web"), 8080, PublishMode::Ingress)).expect("made");
    let description = NodeDescription { own_ports: control_port(8080), ..NodeDescription::default() };
    let register = RegisterNode { node_id: NodeId::from(5), description, ..RegisterNode::default() };
    let error = world.run(Op::RegisterNode(Box::new(register))).expect_err("refused");
    assert!(error.message.contains("'8080'") && error.message.contains("'web'"), "{}", error.message);
    // It has joined before, and its daemon was told another port since.
    let (one, two) = (world.join(1), world.join(2));
    session(&mut world, &one, control_port(8080));
    let mesh = |world: &World, node: &NodeId| {
        assignment(&world.store, node).items().filter(|item| matches!(item.body, Some(Body::Port(_)))).count()
    };
    assert_eq!((mesh(&world, &one), mesh(&world, &two)), (0, 1));
    // What the service had before is still its own.
    let current = world.service(&service);
    let mut spec = current.spec.clone();
    spec.task.force_update = 1;
    let update = UpdateService { id: service, version: current.meta.version, spec, rollback: false };
    world.run(Op::UpdateService(Box::new(update))).expect("updated");
}

#[test]
fn an_update_that_is_rolled_back_takes_no_port_from_others() {
    let mut world = World::new();
    let node = world.join(1);
    let service = world.create(publish(web("web"), 30000, PublishMode::Ingress)).expect("made");
    let update = |world: &mut World, spec: ServiceSpec, rollback: bool| {
        let version = world.service(&service).meta.version;
        let update = UpdateService { id: service.clone(), version, spec, rollback };
        world.run(Op::UpdateService(Box::new(update)))
    };
    update(&mut world, web("web"), false).expect("updated");
    let other = world.create(publish(web("other"), 0, PublishMode::Host)).expect("made");
    let task = world.place(&other, &node);
    assert_eq!(ports_of(&world, &task), [30000]);
    // As an update that fails does it, whom nobody asks.
    let mut back = world.service(&service);
    assert!(back.roll_back(Timestamp::from_millis(1), "it failed"));
    let (ports, problem) = super::super::port::given(&world.store, &back);
    assert_eq!(ports, []);
    assert_eq!(problem.as_deref(), Some("port '30000' is already in use by another service as a host-mode port"));
}

#[test]
fn ports_of_hosts_are_refused_where_no_host_could_lead_to_them() {
    let mut world = World::new();
    for (name, internal) in [("inside", true), ("deep", true), ("open", false)] {
        let spec = NetworkSpec { name: name.into(), internal, ..NetworkSpec::default() };
        world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect("a network");
    }
    let hidden = |name: &str| on_network(on_network(web(name), "inside"), "deep");
    let error = world.create(publish(hidden("a"), 8080, PublishMode::Host)).expect_err("nobody gets there");
    assert!(error.message.contains("host mode cannot be reached"), "{}", error.message);
    // The mesh reaches everybody, and so does a host where there is one network that is not internal, or none.
    world.create(publish(hidden("b"), 8080, PublishMode::Ingress)).expect("made");
    world.create(publish(on_network(hidden("c"), "open"), 8081, PublishMode::Host)).expect("made");
    let service = world.create(publish(web("d"), 8082, PublishMode::Host)).expect("made");
    let version = world.service(&service).meta.version;
    let spec = publish(hidden("d"), 8082, PublishMode::Host);
    let update = UpdateService { id: service, version, spec, rollback: false };
    world.run(Op::UpdateService(Box::new(update))).expect_err("nobody would get there any more");
}

#[test]
fn a_service_says_with_a_label_that_its_ports_are_served_locally() {
    let mut world = World::new();
    let node = world.join(1);
    let labelled = |name: &str, port, how: &str| {
        let mut spec = publish(web(name), port, PublishMode::Ingress);
        spec.labels.insert(PUBLISH_LABEL.into(), how.into());
        spec
    };
    let error = world.create(labelled("a", 8080, "near")).expect_err("no such way");
    assert!(error.message.contains("local or cluster"), "{}", error.message);
    world.create(labelled("b", 8081, "local")).expect("made");
    world.create(labelled("c", 8082, "cluster")).expect("made");
    let set = assignment(&world.store, &node);
    let mut seen: Vec<(u32, bool)> = set.ports().map(|port| (port.published, port.local)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(8081, true), (8082, false)]);
}
