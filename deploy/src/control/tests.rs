//! Requests and what comes of them, in Docker's words.

use std::time::Duration;

use proptest::prelude::*;
use prost::Message;

use super::fixture::{World, init, on_network, publish, web};
use super::*;
use crate::model::*;

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, ControlError>, kind: ErrorKind, words: &str) {
    let error = result.expect_err(words);
    assert!(error.kind() == kind && error.message.contains(words), "{:?} {}", error.kind(), error.message);
}

fn update(world: &mut World, id: &ServiceId, spec: ServiceSpec) -> Result<Reply, ControlError> {
    let version = world.service(id).meta.version;
    world.run(Op::UpdateService(Box::new(UpdateService { id: id.clone(), version, spec, rollback: false })))
}

fn rollback(world: &mut World, id: &ServiceId) -> Result<Reply, ControlError> {
    let version = world.service(id).meta.version;
    let op = UpdateService { id: id.clone(), version, rollback: true, ..UpdateService::default() };
    world.run(Op::UpdateService(Box::new(op)))
}

fn state(world: &World, id: &ServiceId) -> Option<UpdateState> {
    world.service(id).update_status.as_ref().map(UpdateStatus::state)
}

/// Creates a service with one thing changed; nothing of it may stay when it is refused.
#[track_caller]
fn check_spec(change: impl FnOnce(&mut ServiceSpec), expected: Result<(), (ErrorKind, &str)>) {
    let mut world = World::new();
    let mut spec = web("web");
    change(&mut spec);
    let result = world.create(spec);
    match expected {
        Ok(()) => drop(result.expect("accepted")),
        Err((kind, words)) => {
            refused(result, kind, words);
            assert_eq!(world.store.services().count(), 0);
        }
    }
}

#[test]
fn a_cluster_is_made_once() {
    let mut world = World::empty();
    refused(world.try_join(1), ErrorKind::FailedPrecondition, "not initialised yet");
    let mut world = World::new();
    let cluster = world.store.cluster().expect("the cluster").clone();
    assert_eq!(cluster.spec.default_addr_pool, ["10.0.0.0/8"]);
    assert_eq!((cluster.spec.subnet_size, cluster.spec.data_path_port, cluster.status.next_raft_id), (24, 4789, 2));
    assert_eq!(world.store.ingress_network().expect("ingress").spec.name, "ingress");
    refused(world.run(init()), ErrorKind::FailedPrecondition, "already initialised");
}

#[test]
fn tokens_are_rotated_and_settings_kept() {
    let mut world = World::new();
    let before = world.store.cluster().expect("the cluster").clone();
    let spec = ClusterSpec { task_history_limit: Some(2), ..ClusterSpec::default() };
    let op =
        UpdateCluster { version: before.meta.version, spec, rotate_worker_token: true, ..UpdateCluster::default() };
    world.run(Op::UpdateCluster(Box::new(op.clone()))).expect("updated");
    let after = world.store.cluster().expect("the cluster").clone();
    assert_ne!(after.status.worker_token, before.status.worker_token);
    assert_eq!(after.status.worker_token.len(), 25);
    assert_eq!(after.status.manager_token, before.status.manager_token);
    assert_eq!((after.spec.history_limit(), after.spec.subnet_size), (2, 24));
    refused(world.run(Op::UpdateCluster(Box::new(op))), ErrorKind::OutOfSequence, "update out of sequence");
}

#[test]
fn the_unlock_key_comes_with_autolock_changes_when_rotated_and_goes_with_it() {
    let mut world = World::new();
    let mut keys = vec![(0, Vec::new())];
    for (autolock, rotate_unlock_key, changes) in [
        (false, true, false),
        (true, false, true),
        (true, false, false),
        (true, true, true),
        (false, true, true),
        (true, true, true),
    ] {
        let cluster = world.store.cluster().expect("the cluster").clone();
        let op = UpdateCluster {
            version: cluster.meta.version,
            spec: ClusterSpec { autolock, ..cluster.spec.clone() },
            rotate_unlock_key,
            ..UpdateCluster::default()
        };
        world.run(Op::UpdateCluster(Box::new(op))).expect("updated");
        let key = world.store.cluster().expect("the cluster").status.unlock_key.clone().unwrap_or_default();
        assert!(!format!("{key:?}").contains("bytes"), "the key is printed");
        assert_eq!(key.bytes.len(), if autolock { 32 } else { 0 });
        let last = keys.last().expect("there is one");
        assert_eq!((key.version > last.0, key.bytes != last.1), (changes, changes));
        keys.push((key.version, key.bytes));
    }
}

#[test]
fn services_are_named_once_and_removed_with_their_tasks() {
    let mut world = World::new();
    let node = world.join(1);
    let id = world.create(web("web")).expect("made");
    refused(world.create(web("web")), ErrorKind::AlreadyExists, "name conflicts with an existing object");
    let task = world.place(&id, &node);
    world.run(Op::RemoveService(RemoveService { id: id.clone() })).expect("removed");
    assert_eq!(world.store.task(&task).expect("the task").desired(), DesiredState::Remove);
    let again = world.run(Op::RemoveService(RemoveService { id: id.clone() }));
    refused(again, ErrorKind::NotFound, &format!("service {id} not found"));
    world.create(web("web")).expect("the name is free again");
}

#[test]
fn a_changed_template_starts_an_update_and_scaling_does_not() {
    let mut world = World::new();
    let id = world.create(web("web")).expect("made");
    refused(rollback(&mut world, &id), ErrorKind::FailedPrecondition, "does not have a previous spec");
    let mut scaled = web("web");
    scaled.mode = Some(ServiceMode::Replicated(Replicated { replicas: Some(5) }));
    update(&mut world, &id, scaled.clone()).expect("scaled");
    assert_eq!((world.service(&id).spec_version, state(&world, &id)), (1, None));
    let mut second = scaled.clone();
    second.task.container.image = "nginx:2".into();
    update(&mut world, &id, second.clone()).expect("updated");
    assert_eq!((world.service(&id).spec_version, state(&world, &id)), (2, Some(UpdateState::Updating)));
    assert_eq!(world.service(&id).previous_spec.as_ref(), Some(&scaled));
    // Scaling in the middle of an update leaves the update alone.
    second.mode = Some(ServiceMode::Replicated(Replicated { replicas: Some(6) }));
    update(&mut world, &id, second.clone()).expect("scaled");
    assert_eq!((world.service(&id).spec_version, state(&world, &id)), (2, Some(UpdateState::Updating)));
    second.task.force_update = 1;
    update(&mut world, &id, second).expect("forced");
    assert_eq!(world.service(&id).spec_version, 3);
}

#[test]
fn a_rollback_brings_spec_and_version_back() {
    let mut world = World::new();
    let id = world.create(web("web")).expect("made");
    let mut second = web("web");
    second.task.container.image = "nginx:2".into();
    update(&mut world, &id, second.clone()).expect("updated");
    rollback(&mut world, &id).expect("rolled back");
    let service = world.service(&id);
    assert_eq!((service.spec_version, service.spec, service.previous_spec), (1, web("web"), Some(second.clone())));
    assert_eq!(state(&world, &id), Some(UpdateState::RollbackStarted));
    // The next update has a version that no task was ever made of.
    second.task.container.image = "nginx:3".into();
    update(&mut world, &id, second).expect("updated");
    assert_eq!(world.service(&id).spec_version, 3);
}

#[test]
fn updates_keep_name_and_mode_and_need_the_current_version() {
    let mut world = World::new();
    let id = world.create(web("web")).expect("made");
    refused(update(&mut world, &id, web("other")), ErrorKind::Unimplemented, "renaming services is not supported");
    let mut global = web("web");
    global.mode = Some(ServiceMode::Global(Global {}));
    refused(update(&mut world, &id, global), ErrorKind::Unimplemented, "service mode change is not allowed");
    let stale = UpdateService { id: id.clone(), version: 1, spec: web("web"), rollback: false };
    refused(world.run(Op::UpdateService(Box::new(stale))), ErrorKind::OutOfSequence, "update out of sequence");
    let gone = UpdateService { id: ServiceId::new("nosuch"), ..UpdateService::default() };
    refused(world.run(Op::UpdateService(Box::new(gone))), ErrorKind::NotFound, "service nosuch not found");
}

#[test]
fn published_ports_have_one_owner() {
    let mut world = World::new();
    let web1 = world.create(publish(web("web"), 8088, PublishMode::Ingress)).expect("made");
    let text = format!("port '8088' is already in use by service 'web' ({web1}) as an ingress port");
    refused(world.create(publish(web("a"), 8088, PublishMode::Ingress)), ErrorKind::Invalid, &text);
    refused(world.create(publish(web("a"), 8088, PublishMode::Host)), ErrorKind::Invalid, "as an ingress port");
    world.create(publish(web("h1"), 9000, PublishMode::Host)).expect("made");
    world.create(publish(web("h2"), 9000, PublishMode::Host)).expect("host mode only keeps tasks apart");
    let taken = world.create(publish(web("a"), 9000, PublishMode::Ingress));
    refused(taken, ErrorKind::Invalid, "as a host-published port");
    // A rollback cannot take back a port that is another's by now.
    update(&mut world, &web1, web("web")).expect("updated");
    world.create(publish(web("b"), 8088, PublishMode::Ingress)).expect("made");
    refused(rollback(&mut world, &web1), ErrorKind::Invalid, "port '8088' is already in use by service 'b'");
}

#[test]
fn networks_are_resolved_and_kept_while_in_use() {
    let mut world = World::new();
    let spec = NetworkSpec { name: "back".into(), ..NetworkSpec::default() };
    let create = Op::CreateNetwork(Box::new(CreateNetwork { spec }));
    let network = NetworkId::new(world.run(create.clone()).expect("made").id);
    refused(world.run(create), ErrorKind::AlreadyExists, "network with name back already exists");
    refused(world.create(on_network(web("web"), "nosuch")), ErrorKind::NotFound, "network nosuch not found");
    let ingress = world.create(on_network(web("web"), "ingress"));
    refused(ingress, ErrorKind::Invalid, "cannot be explicitly attached to the ingress network");
    let id = world.create(on_network(web("web"), "back")).expect("made");
    assert_eq!(world.service(&id).spec.task.networks[0].target, network.as_str());
    let remove = Op::RemoveNetwork(RemoveNetwork { id: network.clone() });
    let text = format!("network {network} is in use by service {id}");
    refused(world.run(remove.clone()), ErrorKind::FailedPrecondition, &text);
    let node = world.join(1);
    let task = world.place(&id, &node);
    world.run(Op::RemoveService(RemoveService { id })).expect("removed");
    refused(world.run(remove.clone()), ErrorKind::FailedPrecondition, &format!("in use by task {task}"));
    let status = TaskStatus { state: TaskState::Shutdown as i32, ..TaskStatus::default() };
    let reports = vec![TaskReport { task_id: task, status }];
    world.run(Op::ReportStatuses(ReportStatuses { node_id: node, generation: 1, reports })).expect("reported");
    world.run(remove).expect("removed");
}

#[test]
fn networks_that_cannot_be_are_refused() {
    #[track_caller]
    fn check(change: impl FnOnce(&mut NetworkSpec), kind: ErrorKind, words: &str) {
        let mut spec = NetworkSpec { name: "back".into(), ..NetworkSpec::default() };
        change(&mut spec);
        refused(World::new().run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))), kind, words);
    }
    let ipam = |subnet: &str, gateway: &str| IpamConfig {
        subnet: subnet.into(),
        gateway: gateway.into(),
        ..IpamConfig::default()
    };
    check(|spec| spec.name = "".into(), ErrorKind::Invalid, "name must be provided");
    check(|spec| spec.name = "a b".into(), ErrorKind::Invalid, "invalid network name");
    check(|spec| spec.name = "host".into(), ErrorKind::Invalid, "predefined host network");
    check(|spec| spec.driver = "macvlan".into(), ErrorKind::Invalid, "macvlan");
    check(|spec| spec.ipv6 = true, ErrorKind::Unimplemented, "EnableIPv6");
    check(
        |spec| drop(spec.driver_options.insert("encrypted".into(), "".into())),
        ErrorKind::Unimplemented,
        "encrypted",
    );
    check(|spec| spec.ipam = vec![ipam("10.0.0.1/24", "")], ErrorKind::Invalid, "invalid subnet");
    check(|spec| spec.ipam = vec![ipam("10.1.0.0/31", "")], ErrorKind::Invalid, "between 8 and 29 bits");
    check(|spec| spec.ipam = vec![ipam("10.1.0.0/24", "10.2.0.1")], ErrorKind::Invalid, "not in subnet");
    check(|spec| spec.ipam = vec![ipam("10.0.0.0/16", "")], ErrorKind::Invalid, "Pool overlaps");
}

#[test]
fn secrets_and_configs_change_only_their_labels() {
    let mut world = World::new();
    let spec = PayloadSpec { name: "key".into(), data: b"hush".to_vec(), ..PayloadSpec::default() };
    let create = Op::CreateSecret(CreateSecret { spec: spec.clone() });
    let id = SecretId::new(world.run(create.clone()).expect("made").id);
    refused(world.run(create), ErrorKind::AlreadyExists, "secret key already exists");
    let version = world.store.secret(&id).expect("the secret").meta.version;
    let mut labelled = PayloadSpec { data: Vec::new(), ..spec.clone() };
    labelled.labels.insert("a".into(), "b".into());
    let update = UpdateSecret { id: id.clone(), version, spec: labelled };
    world.run(Op::UpdateSecret(update)).expect("updated");
    let secret = world.store.secret(&id).expect("the secret").clone();
    assert_eq!((secret.spec.data.as_slice(), secret.spec.labels.len()), (b"hush".as_slice(), 1));
    let other = PayloadSpec { data: b"loud".to_vec(), ..spec.clone() };
    let update = UpdateSecret { id: id.clone(), version: secret.meta.version, spec: other };
    refused(world.run(Op::UpdateSecret(update)), ErrorKind::Invalid, "only updates to Labels are allowed");
    let empty = PayloadSpec { name: "empty".into(), ..PayloadSpec::default() };
    let create = Op::CreateConfig(CreateConfig { spec: empty });
    refused(world.run(create), ErrorKind::Invalid, "config data must be larger than 0 and less than 1024000 bytes");
    world.run(Op::RemoveSecret(RemoveSecret { id: id.clone() })).expect("removed");
    refused(world.run(Op::RemoveSecret(RemoveSecret { id })), ErrorKind::NotFound, "not found");
}

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

#[test]
fn a_request_of_a_newer_release_is_refused() {
    let mut world = World::new();
    world.change(|cx, txn| {
        refused(execute(cx, txn, &Request { op: None }), ErrorKind::Unimplemented, "release does not know");
    });
}

#[test]
fn service_specs_follow_dockers_rules() {
    let bad = |words| Err((ErrorKind::Invalid, words));
    for name in ["", "-web", "web-", "a.b", "a b", "wéb"] {
        let words =
            if name.is_empty() { "name must be provided" } else { "name must be valid as a DNS name component" };
        check_spec(|spec| spec.name = name.into(), bad(words));
    }
    check_spec(|spec| spec.name = "a".repeat(64), bad("63 characters or fewer"));
    check_spec(|spec| spec.name = "my_web-2".into(), Ok(()));
    check_spec(|spec| spec.task.container.image = "".into(), bad("ContainerSpec: image reference must be provided"));
    for image in ["Nginx", "nginx:", "a//b", "nginx@sha256:12", "ng inx", ":tag", "/a"] {
        check_spec(|spec| spec.task.container.image = image.into(), bad("is not a valid repository/tag"));
    }
    let digest = format!("localhost:5000/a/b_c:1.2@sha256:{}", "ab".repeat(32));
    for image in ["nginx", "docker.io/library/nginx:alpine", "h.example:5000/x", digest.as_str()] {
        check_spec(|spec| spec.task.container.image = image.into(), Ok(()));
    }
    check_spec(
        |spec| spec.task.resources.limits.memory_bytes = 1000,
        bad("invalid memory value 1000: Must be at least 4MiB"),
    );
    check_spec(|spec| spec.task.resources.reservations.nano_cpus = 10, bad("Must be at least 0.001"));
    check_spec(|spec| spec.task.placement.constraints = vec!["node.role".into()], bad("one operator"));
    check_spec(|spec| spec.task.placement.constraints = vec!["node.zone==a".into()], bad("invalid constraint"));
    check_spec(|spec| spec.task.placement.constraints = vec!["node.labels.zone != a".into()], Ok(()));
    check_spec(|spec| spec.task.placement.spread_over = vec!["zone".into()], bad("placement preference"));
    check_spec(|spec| spec.task.container.env = vec!["=x".into()], bad("invalid environment variable"));
    check_spec(|spec| spec.task.container.dir = "relative".into(), bad("not an absolute path"));
    check_spec(|spec| spec.task.container.stop_signal = "SIGNONE".into(), bad("invalid stop signal"));
    check_spec(|spec| spec.task.container.stop_signal = "SIGRTMIN+3".into(), Ok(()));
    check_spec(|spec| spec.task.container.oom_score_adj = 2000, bad("oom score adj"));
    check_spec(|spec| spec.update.get_or_insert_default().max_failure_ppm = 2_000_000, bad("MaxFailureRatio"));
    let replicas = ServiceMode::Replicated(Replicated { replicas: Some(u64::MAX) });
    check_spec(|spec| spec.mode = Some(replicas), bad("Mode.Replicated.Replicas"));
    check_spec(
        |spec| {
            *spec = publish(spec.clone(), 80, PublishMode::Ingress);
            spec.endpoint.get_or_insert_default().set_mode(EndpointMode::Dnsrr);
        },
        bad("port published with ingress mode can't be used with dnsrr mode"),
    );
    let twice = |spec: &mut ServiceSpec| {
        *spec = publish(publish(spec.clone(), 80, PublishMode::Ingress), 80, PublishMode::Host);
    };
    check_spec(twice, bad("duplicate published ports provided"));
    check_spec(|spec| *spec = publish(spec.clone(), 70000, PublishMode::Ingress), bad("out of range"));
}

#[test]
fn mounts_follow_dockers_rules() {
    fn with(kind: MountKind, source: &str, target: &str) -> impl FnOnce(&mut ServiceSpec) {
        let mount = Mount { kind: kind as i32, source: source.into(), target: target.into(), ..Mount::default() };
        move |spec| spec.task.container.mounts.push(mount)
    }
    let bad = |words| Err((ErrorKind::Invalid, words));
    check_spec(with(MountKind::Bind, "/srv", "/data"), Ok(()));
    check_spec(with(MountKind::Tmpfs, "", "/tmp"), Ok(()));
    check_spec(with(MountKind::Bind, "srv", "/data"), bad("must be an absolute path"));
    check_spec(with(MountKind::Bind, "/srv", ""), bad("mount target must not be empty"));
    check_spec(with(MountKind::Bind, "/srv", "/"), bad("destination can't be '/'"));
    check_spec(with(MountKind::Bind, "/srv", "/a/../../b"), bad("must not contain .."));
    check_spec(with(MountKind::Tmpfs, "/x", "/tmp"), bad("source must be empty"));
    check_spec(
        |spec| {
            with(MountKind::Tmpfs, "", "/tmp")(spec);
            with(MountKind::Bind, "/srv", "/tmp/")(spec);
        },
        bad("duplicate mount point"),
    );
    let change = |name: &str, change: fn(&mut Mount)| {
        let kind = if name.starts_with('/') { MountKind::Bind } else { MountKind::Volume };
        let mut mount = Mount { kind: kind as i32, source: name.into(), target: "/data".into(), ..Mount::default() };
        change(&mut mount);
        move |spec: &mut ServiceSpec| spec.task.container.mounts.push(mount)
    };
    for name in ["", "data", "a.b-c_d"] {
        check_spec(with(MountKind::Volume, name, "/data"), Ok(()));
    }
    for name in ["a", "a/b", ".a", "a b", &"a".repeat(201)] {
        check_spec(with(MountKind::Volume, name, "/data"), bad("for a local volume name"));
    }
    check_spec(
        change("data", |m| m.volume_driver = "rexray".into()),
        Err((ErrorKind::Unimplemented, "DriverConfig.Name \"rexray\" is not supported yet")),
    );
    check_spec(change("data", |m| m.volume_driver = "local".into()), Ok(()));
    check_spec(
        change("data", |m| m.volume_options = [("bad".to_owned(), "1".to_owned())].into()),
        bad("invalid option: \"bad\""),
    );
    check_spec(change("data", |m| m.subpath = "a/b".into()), Ok(()));
    for subpath in ["/a", "..", "a/../.."] {
        let mut mount = Mount { source: "data".into(), target: "/data".into(), ..Mount::default() };
        mount.set_kind(MountKind::Volume);
        mount.subpath = subpath.into();
        check_spec(|spec| spec.task.container.mounts.push(mount), bad("relative path within the volume"));
    }
    check_spec(change("", |m| m.subpath = "a".into()), bad("must not set Subpath when using anonymous volumes"));
    check_spec(change("data", |m| m.propagation = "rslave".into()), bad("neither bind nor tmpfs options"));
    check_spec(change("/srv", |m| m.propagation = "rshared".into()), Ok(()));
    check_spec(change("/srv", |m| m.propagation = "odd".into()), bad("invalid propagation mode"));
    check_spec(change("/srv", |m| m.create_mountpoint = true), Ok(()));
    check_spec(change("/srv", |m| m.read_only_force_recursive = true), bad("need ReadOnly"));
}

#[test]
fn health_checks_follow_dockers_rules() {
    fn test(words: &str) -> impl FnOnce(&mut ServiceSpec) {
        let test: Vec<String> = words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        move |spec| spec.task.container.healthcheck.get_or_insert_default().test = test
    }
    let bad = |words| Err((ErrorKind::Invalid, words));
    for good in ["", "NONE", "CMD true", "CMD curl -f x", "CMD-SHELL exit"] {
        check_spec(test(good), Ok(()));
    }
    check_spec(test("true"), bad("Unknown healthcheck type 'true' (expected 'CMD')"));
    check_spec(test("CMD"), bad("has no command"));
    check_spec(test("CMD-SHELL a b"), bad("too many arguments"));
    check_spec(
        |spec| spec.task.container.healthcheck.get_or_insert_default().interval_ns = 999_999,
        bad("Interval in Healthcheck cannot be less than 1ms"),
    );
    check_spec(|spec| spec.task.container.healthcheck.get_or_insert_default().start_interval_ns = 1_000_000, Ok(()));
}

fn set_registry(registry: &str, header: &str) -> Op {
    let auth = RegistryAuth { header: header.into() };
    Op::SetRegistry(SetRegistry { id: RegistryId::new(registry), auth })
}

#[test]
fn credentials_go_to_the_hosts_of_tasks_that_need_them() {
    use crate::dispatcher::{affects, assignment};
    use crate::store::Store;
    let mut world = World::new();
    let hosts = [1, 2, 3].map(|number| world.join(number));
    let image = |image: &str| {
        let mut spec = web(&image.replace(['/', '.', ':'], "-"));
        spec.task.container.image = image.into();
        spec
    };
    for (host, name) in hosts.iter().zip(["r.example:5000/a:1", "R.example:5000/b", "r.example/c"]) {
        let service = world.create(image(name)).expect("a service");
        world.place(&service, host);
    }
    let headers = |world: &World| -> [Vec<String>; 3] {
        let of = |host| assignment(&world.store, host).registries().map(|r| r.auth.header.clone()).collect();
        hosts.each_ref().map(of)
    };
    for header in ["b25l", "dHdv"] {
        let before = world.store.clone();
        world.run(set_registry("r.example:5000", header)).expect("kept");
        // An update reaches the hosts, and those alone; no task is another one.
        assert_eq!(headers(&world), [vec![header.to_owned()], vec![header.to_owned()], vec![]]);
        let changed = before.changed(&world.store);
        let told = hosts.each_ref().map(|host| affects(&before, &world.store, &changed, host));
        assert_eq!((told, changed.len()), ([true, true, false], 1));
    }
    assert_eq!(world.store.registries().count(), 1);
    let hidden = world.store.without_secrets();
    assert_eq!(hidden.registries().map(|r| r.auth.header.as_str()).collect::<String>(), "");
    let bytes = world.store.encode_snapshot();
    assert_eq!(Store::decode_snapshot(&bytes).expect("a snapshot"), world.store);
    assert!(!format!("{:?} {:?}", world.store, set_registry("r.example", "dHdv")).contains("dHdv"));

    let remove = |registry: &str| Op::RemoveRegistry(RemoveRegistry { id: RegistryId::new(registry) });
    refused(world.run(remove("r.example")), ErrorKind::NotFound, "credentials for registry r.example not found");
    world.run(remove("r.example:5000")).expect("removed");
    assert_eq!(headers(&world), [const { Vec::<String>::new() }; 3]);
}

#[test]
fn credentials_for_registries_are_checked() {
    let mut world = World::new();
    let long = format!("{}.example", "a".repeat(255));
    // No image's name would lead there.
    for name in ["", "web", "R.example", "r.example/x", "index.docker.io", long.as_str()] {
        refused(world.run(set_registry(name, "e30=")), ErrorKind::Invalid, "it must look like host:port");
    }
    refused(world.run(set_registry("r.example", "")), ErrorKind::Invalid, "empty");
    refused(world.run(set_registry("r.example", &"x".repeat(65 << 10))), ErrorKind::Invalid, "X-Registry-Auth");
    for number in 0..1000 {
        world.run(set_registry(&format!("r{number}.example"), "e30=")).expect("kept");
    }
    refused(world.run(set_registry("r.example", "e30=")), ErrorKind::Exhausted, "1000 registries");
    world.run(set_registry("r7.example", "e31=")).expect("others in their place");
}

#[test]
fn secrets_and_configs_of_services_are_checked() {
    let mut world = World::new();
    let payload = |name: &str| PayloadSpec { name: name.into(), data: vec![1], ..PayloadSpec::default() };
    let secret = world.run(Op::CreateSecret(CreateSecret { spec: payload("key") })).expect("a secret").id;
    let config = world.run(Op::CreateConfig(CreateConfig { spec: payload("conf") })).expect("a config").id;
    let reference = |id: &str, name: &str, file: &str| PayloadReference {
        id: id.into(),
        name: name.into(),
        file: file.into(),
        uid: "0".into(),
        gid: "7".into(),
        mode: 0o440,
        runtime_target: false,
    };
    let mut create = |secrets: Vec<PayloadReference>, configs: Vec<PayloadReference>| {
        let mut spec = web("web");
        spec.task.container.secrets = secrets;
        spec.task.container.configs = configs;
        world.create(spec).map_err(|error| error.message)
    };
    let mut refused = |secret: PayloadReference, words: &str| {
        let message = create(vec![secret], Vec::new()).expect_err("refused");
        assert!(message.contains(words), "{message}");
    };
    refused(reference("", "key", "key"), "malformed secret reference");
    refused(reference(&secret, "", "key"), "malformed secret reference");
    refused(reference("nosuch", "key", "key"), "secret key not found");
    refused(reference(&secret, "other", "key"), "secret other not found");
    refused(reference(&config, "conf", "key"), "secret conf not found");
    for file in ["", ".", "/", "../x", "/run/../x", "a/"] {
        refused(reference(&secret, "key", file), "invalid target file");
    }
    refused(PayloadReference { uid: "web".into(), ..reference(&secret, "key", "key") }, "uid \"web\" is not a number");
    refused(PayloadReference { mode: 0o10000, ..reference(&secret, "key", "key") }, "mode 10000");
    let twice = vec![reference(&secret, "key", "key"), reference(&secret, "key", "/run/secrets//./key")];
    let message = create(twice, Vec::new()).expect_err("refused");
    assert_eq!(message, "secret references 'key' and 'key' have a conflicting target: '/run/secrets//./key'");
    let runtime = PayloadReference { runtime_target: true, ..reference(&config, "conf", "x") };
    assert!(create(Vec::new(), vec![runtime]).expect_err("refused").contains("Configs.Runtime"));
    let good = reference(&secret, "key", "deep/key");
    assert_eq!(good.secret_path().as_deref(), Some("/run/secrets/deep/key"));
    assert_eq!(good.config_path().as_deref(), Some("/deep/key"));
    create(vec![good], vec![reference(&config, "conf", "/etc/app.conf")]).expect("made");
}

#[test]
fn privileges_and_read_only_binds() {
    let bad = |words| Err((ErrorKind::Invalid, words));
    let privileges = |change: fn(&mut Privileges)| {
        move |spec: &mut ServiceSpec| change(spec.task.container.privileges.get_or_insert_default())
    };
    check_spec(privileges(|p| p.no_new_privileges = true), Ok(()));
    check_spec(privileges(|p| p.seccomp_mode = "unconfined".into()), Ok(()));
    check_spec(privileges(|p| p.seccomp_mode = "none".into()), bad("unknown mode \"none\""));
    check_spec(privileges(|p| p.seccomp_mode = "custom".into()), bad("a profile goes with mode"));
    check_spec(privileges(|p| p.seccomp_profile = b"{}".to_vec()), bad("a profile goes with mode"));
    let custom = |size: usize| {
        move |spec: &mut ServiceSpec| {
            let privileges = spec.task.container.privileges.get_or_insert_default();
            (privileges.seccomp_mode, privileges.seccomp_profile) = ("custom".into(), vec![b' '; size]);
        }
    };
    check_spec(custom(100), Ok(()));
    check_spec(custom((64 << 10) + 1), bad("longer than"));
    check_spec(privileges(|p| p.apparmor_mode = "disabled".into()), Ok(()));
    check_spec(privileges(|p| p.apparmor_mode = "mine".into()), bad("AppArmor.Mode"));
    check_spec(privileges(|p| p.selinux_disabled = true), Ok(()));
    let label = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    check_spec(privileges(|p| p.selinux_label = vec![String::new(); 3]), bad("SELinuxContext"));
    let labelled = label(&["", "", "web_t", "s0:c1,c2"]);
    let set = |list: Vec<String>, disabled: bool| {
        move |spec: &mut ServiceSpec| {
            let privileges = spec.task.container.privileges.get_or_insert_default();
            (privileges.selinux_label, privileges.selinux_disabled) = (list, disabled);
        }
    };
    check_spec(set(labelled.clone(), false), Ok(()));
    check_spec(set(labelled, true), bad("disabled, and with a label"));
    check_spec(set(label(&["", "", "a b", ""]), false), bad("SELinuxContext"));
    let bind = |change: fn(&mut Mount)| {
        move |spec: &mut ServiceSpec| {
            let mut mount = Mount { source: "/srv".into(), target: "/srv".into(), ..Mount::default() };
            mount.set_kind(MountKind::Bind);
            change(&mut mount);
            spec.task.container.mounts.push(mount);
        }
    };
    check_spec(bind(|m| (m.read_only, m.read_only_force_recursive) = (true, true)), Ok(()));
    check_spec(bind(|m| (m.read_only, m.read_only_non_recursive) = (true, true)), Ok(()));
    check_spec(bind(|m| m.read_only_force_recursive = true), bad("need ReadOnly"));
    let all = |m: &mut Mount| {
        (m.read_only, m.read_only_force_recursive, m.read_only_non_recursive) = (true, true, true);
    };
    check_spec(bind(all), bad("neither NonRecursive nor"));
    let slave = |m: &mut Mount| {
        (m.read_only, m.read_only_force_recursive, m.propagation) = (true, true, "rslave".into());
    };
    check_spec(bind(slave), bad("needs Propagation rprivate"));
}

#[test]
fn fields_without_effect_are_refused_by_name() {
    let no = |words| Err((ErrorKind::Unimplemented, words));
    check_spec(|spec| spec.task.container.init = Some(true), Ok(()));
    check_spec(|spec| spec.task.container.init = Some(false), Ok(()));
    check_spec(|spec| spec.task.container.env = vec!["A={{.Node.ID}}".into()], no("Env with a template"));
    check_spec(|spec| spec.task.container.hostname = "{{.Node.ID}}".into(), no("Hostname with a template"));
    check_spec(|spec| spec.task.log_driver.get_or_insert_default().name = "gelf".into(), no("LogDriver \"gelf\""));
    check_spec(|spec| spec.task.log_driver.get_or_insert_default().name = "syslog".into(), Ok(()));
    check_spec(
        |spec| {
            let driver = spec.task.log_driver.get_or_insert_default();
            driver.name = "json-file".into();
            driver.options = [("max-size".into(), "10m".into()), ("max-file".into(), "3".into())].into();
        },
        Ok(()),
    );
    check_spec(|spec| spec.mode = Some(ServiceMode::GlobalJob(Global {})), no("Mode.GlobalJob"));
    check_spec(|spec| spec.mode = Some(ServiceMode::Global(Global {})), Ok(()));
    let sctp = |spec: &mut ServiceSpec| {
        *spec = publish(spec.clone(), 80, PublishMode::Ingress);
        spec.endpoint.get_or_insert_default().ports[0].set_protocol(PortProtocol::Sctp);
    };
    check_spec(sctp, no("sctp"));
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
