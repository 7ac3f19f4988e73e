//! Hosts: their sessions, what they report, promotion, demotion, removal.

use super::*;

#[test]
fn sessions_are_fenced_by_their_boot_generation() {
    let mut world = World::new();
    let node = world.join(1);
    let session = |generation| {
        Op::NodeSession(Box::new(NodeSession { node_id: node.clone(), generation, ..NodeSession::default() }))
    };
    let down =
        |generation| Op::NodeDown(NodeDown { node_id: node.clone(), generation, reason: "agent silent".to_owned() });
    let now = |world: &World| world.store.node(&node).expect("the node").status.state();
    world.run(session(5)).expect("a session");
    refused(world.run(session(4)), ErrorKind::FailedPrecondition, "another host uses its identity");
    world.run(down(4)).expect("old news");
    assert_eq!(now(&world), NodeState::Ready);
    world.run(down(5)).expect("down");
    assert_eq!(now(&world), NodeState::Down);
    world.run(session(6)).expect("back");
    assert_eq!(now(&world), NodeState::Ready);
    let reports = ReportStatuses { node_id: node.clone(), generation: 5, reports: Vec::new() };
    refused(world.run(Op::ReportStatuses(reports)), ErrorKind::FailedPrecondition, "boot generation 5");
}

#[test]
fn observed_state_only_grows_and_only_its_host_reports_it() {
    let mut world = World::new();
    let (node, other) = (world.join(1), world.join(2));
    let service = world.create(publish(web("web"), 0, PublishMode::Host)).expect("made");
    let task = world.place(&service, &node);
    let mut report = |node: &NodeId, state: TaskState, err: &str| {
        let status = TaskStatus { state: state as i32, err: err.to_owned(), ..TaskStatus::default() };
        let reports = vec![TaskReport { task_id: task.clone(), status }];
        let op = ReportStatuses { node_id: node.clone(), generation: 1, reports };
        let before = world.store.revision();
        assert_eq!(world.run(Op::ReportStatuses(op)).expect("heard").number, 1);
        let news = world.store.revision() - before;
        let task = world.store.task(&task).expect("the task");
        (news, task.status.state())
    };
    assert_eq!(report(&other, TaskState::Running, ""), (0, TaskState::Assigned));
    assert_eq!(report(&node, TaskState::Running, ""), (1, TaskState::Running));
    assert_eq!(report(&node, TaskState::Running, ""), (0, TaskState::Running));
    assert_eq!(report(&node, TaskState::Preparing, ""), (0, TaskState::Running));
    assert_eq!(report(&node, TaskState::Orphaned, ""), (0, TaskState::Running));
    assert_eq!(report(&node, TaskState::Complete, ""), (1, TaskState::Complete));
    assert_eq!(report(&node, TaskState::Failed, ""), (0, TaskState::Complete));
    let long = "ä".repeat(5000);
    assert_eq!(report(&node, TaskState::Complete, &long), (1, TaskState::Complete));
    assert!(world.store.task(&task).expect("the task").status.err.len() <= 1024);
}

#[test]
fn a_release_that_fell_behind_since_the_promotion_gets_no_raft_id() {
    let mut world = World::new();
    let (manager, node) = (NodeId::from(0), world.join(1));
    let session = |world: &mut World, id: &NodeId, feature_level: u32| {
        let description = NodeDescription { hostname: "host".to_owned(), feature_level, ..NodeDescription::default() };
        let session = NodeSession { node_id: id.clone(), generation: 2, description, ..NodeSession::default() };
        world.run(Op::NodeSession(Box::new(session))).expect("a session");
    };
    session(&mut world, &node, 1);
    let current = world.store.node(&node).expect("the node").clone();
    let spec = NodeSpec { role: NodeRole::Manager as i32, ..current.spec.clone() };
    world.run(Op::UpdateNode(UpdateNode { id: node.clone(), version: current.meta.version, spec })).expect("promoted");
    // The only manager so far is upgraded, and with it the cluster.
    session(&mut world, &manager, 2);
    assert_eq!(world.store.cluster().expect("a cluster").status.feature_level, 2);
    let raft_id = Op::AllocateRaftId(AllocateRaftId { node_id: node.clone(), addr: "192.0.2.1:2377".into() });
    refused(world.run(raft_id.clone()), ErrorKind::FailedPrecondition, "install a newer release");
    session(&mut world, &node, 2);
    assert_eq!(world.run(raft_id).expect("a raft id").number, 2);
}

fn set_role(world: &mut World, id: &NodeId, role: NodeRole) -> Result<Reply, ControlError> {
    let current = world.store.node(id).expect("the node").clone();
    let spec = NodeSpec { role: role as i32, ..current.spec.clone() };
    world.run(Op::UpdateNode(UpdateNode { id: id.clone(), version: current.meta.version, spec }))
}

#[test]
fn nodes_are_promoted_demoted_and_removed_as_in_docker() {
    let mut world = World::new();
    let (manager, node) = (NodeId::from(0), world.join(1));
    let demote = set_role(&mut world, &manager, NodeRole::Worker);
    refused(demote, ErrorKind::FailedPrecondition, "attempting to demote the last manager of the swarm");
    let raft_id = Op::AllocateRaftId(AllocateRaftId { node_id: node.clone(), addr: "192.0.2.1:2377".into() });
    refused(world.run(raft_id.clone()), ErrorKind::FailedPrecondition, "not to be a manager");
    set_role(&mut world, &node, NodeRole::Manager).expect("promoted");
    assert_eq!(world.run(raft_id.clone()).expect("a raft id").number, 2);
    let remove = |force| Op::RemoveNode(RemoveNode { id: node.clone(), force });
    refused(world.run(remove(true)), ErrorKind::FailedPrecondition, "must be demoted to worker before removal");
    set_role(&mut world, &node, NodeRole::Worker).expect("demoted");
    refused(world.run(remove(true)), ErrorKind::FailedPrecondition, "must be demoted to worker before removal");
    world.run(Op::ClearManager(ClearManager { node_id: node.clone() })).expect("out of Raft");
    set_role(&mut world, &node, NodeRole::Manager).expect("promoted");
    assert_eq!(world.run(raft_id).expect("a raft id").number, 3, "a raft id is never used again");
    world.run(Op::ClearManager(ClearManager { node_id: node.clone() })).expect("out of Raft");
    set_role(&mut world, &node, NodeRole::Worker).expect("demoted");
    let text = format!("node {node} is not down and can't be removed");
    refused(world.run(remove(false)), ErrorKind::FailedPrecondition, &text);
    let down = NodeDown { node_id: node.clone(), generation: 1, reason: "agent silent".to_owned() };
    world.run(Op::NodeDown(down)).expect("gone");
    world.run(remove(false)).expect("removed");
    assert_eq!(world.store.cluster().expect("the cluster").status.removed_nodes[0].id, node);
    let again = RegisterNode { node_id: node.clone(), ..RegisterNode::default() };
    refused(world.run(Op::RegisterNode(Box::new(again))), ErrorKind::FailedPrecondition, "was removed");
}

#[test]
fn only_a_manager_that_stays_lets_another_one_be_demoted() {
    let mut world = World::new();
    let (first, second) = (NodeId::from(0), world.join(1));
    let last = |world: &mut World, why: &str| {
        let text = "attempting to demote the last manager of the swarm";
        let demoted = set_role(world, &NodeId::from(0), NodeRole::Worker);
        assert!(demoted.is_err(), "{why}");
        refused(demoted, ErrorKind::FailedPrecondition, text);
    };
    set_role(&mut world, &second, NodeRole::Manager).expect("promoted");
    last(&mut world, "the other one has not come yet");
    let raft_id = Op::AllocateRaftId(AllocateRaftId { node_id: second.clone(), addr: "192.0.2.1:2377".into() });
    world.run(raft_id).expect("a raft id");
    set_role(&mut world, &second, NodeRole::Worker).expect("demoted");
    last(&mut world, "the other one is about to go");
    set_role(&mut world, &second, NodeRole::Manager).expect("promoted");
    world.run(Op::ClearManager(ClearManager { node_id: second.clone() })).expect("out of Raft");
    world.run(Op::NodeLeft(NodeLeft { node_id: second.clone() })).expect("left");
    last(&mut world, "the other one has left");
    let remove = Op::RemoveNode(RemoveNode { id: second, force: false });
    world.run(remove).expect("who left is removed, whatever it was to be");
    last(&mut world, "there is no other one");
    assert!(world.store.node(&first).expect("the node").manager.is_some());
}

#[test]
fn a_node_that_left_is_down_for_good() {
    let mut world = World::new();
    let node = world.join(1);
    let service = world.create(web("web")).expect("made");
    let task = world.place(&service, &node);
    world.run(Op::NodeLeft(NodeLeft { node_id: node.clone() })).expect("left");
    assert_eq!(world.store.node(&node).expect("the node").status.state(), NodeState::Down);
    assert_eq!(world.store.task(&task).expect("the task").status.state(), TaskState::Orphaned);
    let session = NodeSession { node_id: node.clone(), generation: 9, ..NodeSession::default() };
    refused(world.run(Op::NodeSession(Box::new(session))), ErrorKind::FailedPrecondition, "left the cluster");
    world.run(Op::RemoveNode(RemoveNode { id: node, force: false })).expect("removed");
}

/// The first manager's certificate holds for 90 days, whatever the cluster was told when it was made.
#[test]
fn a_removed_node_is_remembered_for_as_long_as_its_certificates_hold() {
    let day = |days: u64| Timestamp::from_millis(days * 86_400_000);
    let check = |leaves: bool, uses: u64, next: u64, expected: u64| {
        let mut world = World::new();
        let cluster = world.store.cluster().expect("the cluster").clone();
        let spec = ClusterSpec { node_cert_expiry_ns: Some(day(1).nanos), ..cluster.spec.clone() };
        let node = world.join(1);
        world.change(|_, txn| {
            // As if that had been the setting from the beginning.
            txn.put_cluster(Cluster { spec, ..Cluster::clone(&cluster) });
        });
        for (key, expires, in_use) in [(1, day(uses), true), (2, day(next), false)] {
            let certificate = NodeCertificate { key: vec![key; 32], root: String::new(), expires };
            world.run(Op::NodeCertified(NodeCertified { node_id: node.clone(), certificate, in_use })).expect("noted");
        }
        if leaves {
            world.run(Op::NodeLeft(NodeLeft { node_id: node.clone() })).expect("left");
        }
        world.run(Op::RemoveNode(RemoveNode { id: node, force: true })).expect("removed");
        let listed = world.store.cluster().expect("the cluster").status.removed_nodes.clone();
        let until: Vec<_> = listed.iter().map(|removed| removed.until).collect();
        assert_eq!(until, [day(expected).max(world.now.plus(Duration::from_nanos(day(2).nanos)))], "{uses} {next}");
    };
    for leaves in [false, true] {
        check(leaves, 0, 0, 0);
        check(leaves, 90, 0, 91);
        check(leaves, 30, 60, 61);
    }
}
