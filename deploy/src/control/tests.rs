//! Requests and what comes of them, in Docker's words.

mod attachments;
mod nodes;
mod specs;
mod wire;

use std::time::Duration;

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
fn set_registry(registry: &str, header: &str) -> Op {
    let auth = RegistryAuth { header: header.into() };
    Op::SetRegistry(SetRegistry { id: RegistryId::new(registry), auth })
}

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
    check(|spec| spec.ipv6 = true, ErrorKind::FailedPrecondition, "feature level 1");
    check(|spec| spec.driver = LOCAL_DRIVER.into(), ErrorKind::FailedPrecondition, "end at each host need level 3");
    check(
        |spec| drop(spec.driver_options.insert(MTU_OPTION.into(), "1400".into())),
        ErrorKind::FailedPrecondition,
        "an MTU of their own need level 3",
    );
    let six = |subnet: &'static str, gateway: &'static str| {
        move |spec: &mut NetworkSpec| {
            spec.ipv6 = true;
            let (subnet, gateway) = (subnet.into(), gateway.into());
            spec.ipam.push(IpamConfig { subnet, gateway, ..IpamConfig::default() });
        }
    };
    check(six("fd00::1/64", ""), ErrorKind::Invalid, "invalid subnet");
    check(six("fd00::/121", ""), ErrorKind::Invalid, "between 16 and 120 bits");
    check(six("fe80:1::/64", ""), ErrorKind::Invalid, "another meaning");
    check(six("::ffff:0:0/96", ""), ErrorKind::Invalid, "another meaning");
    check(six("fd00::/64", "fd01::1"), ErrorKind::Invalid, "not in subnet");
    check(six("fd00::/64", "10.0.0.1"), ErrorKind::Invalid, "not in subnet");
    check(|spec| spec.ipam = vec![ipam("fd00::/64", "")], ErrorKind::Invalid, "needs EnableIPv6");
    check(
        |spec| [six("fd00::/64", ""), six("fd01::/64", "")].into_iter().for_each(|add| add(spec)),
        ErrorKind::Unimplemented,
        "several subnets of a family",
    );
    let option = |name: &'static str, value: &'static str| {
        move |spec: &mut NetworkSpec| drop(spec.driver_options.insert(name.into(), value.into()))
    };
    check(option("encrypted", ""), ErrorKind::FailedPrecondition, "level 4 is needed");
    check(option("encrypted", "false"), ErrorKind::Invalid, "neither nothing nor");
    check(option("colour", "blue"), ErrorKind::Unimplemented, "colour");
    check(
        |spec| {
            spec.ingress = true;
            option("encrypted", "true")(spec);
        },
        ErrorKind::Invalid,
        "ingress network cannot be encrypted",
    );
    let option = |key: &'static str, value: &'static str| {
        move |spec: &mut NetworkSpec| drop(spec.driver_options.insert(key.into(), value.into()))
    };
    check(
        |spec| (spec.driver, spec.ingress) = (LOCAL_DRIVER.into(), true),
        ErrorKind::Invalid,
        "ingress network spans the cluster",
    );
    check(
        |spec| {
            spec.driver = LOCAL_DRIVER.into();
            option(MTU_OPTION, "67")(spec);
        },
        ErrorKind::Invalid,
        "between 68 and 65535",
    );
    check(option("com.docker.network.driver.mtus", "1400"), ErrorKind::Unimplemented, "driver.mtus");
    for bad in ["", "big", "117", "65536", "-1", "1400.5", "4294967297"] {
        check(option(MTU_OPTION, bad), ErrorKind::Invalid, "between 118 and 65535");
    }
    check(
        |spec| {
            spec.ipv6 = true;
            option(MTU_OPTION, "1329")(spec);
        },
        ErrorKind::Invalid,
        "between 1330 and 65535 for a network with IPv6",
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
