//! Encrypted networks: who may have them, where their tasks go, and who is told which keys.

use super::*;
use crate::control::{AttachContainer, ControlError, ErrorKind, NodeDown, NodeLeft, NodeSealed, NodeSession};
use crate::dispatcher::{AssignmentSet, assignment};
use crate::scheduler::{Filter, explain};

fn encrypted(world: &mut World, name: &str) -> Result<(), ControlError> {
    let driver_options = [(ENCRYPTED_OPTION.to_owned(), String::new())].into();
    let spec = NetworkSpec { name: name.into(), driver_options, ..NetworkSpec::default() };
    world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).map(drop)
}

fn key(epoch: u64, byte: u8) -> SealingKey {
    SealingKey { epoch, key: vec![byte; 32] }
}

/// A session of a release that knows of encrypted networks, at an address.
fn session_at(world: &mut World, node: &NodeId, address: &str) -> Result<(), ControlError> {
    let mut description = world.store.node(node).expect("the host").description.clone();
    (description.feature_level, description.data_path_addr) = (ENCRYPTION_LEVEL, address.to_owned());
    let session = NodeSession { node_id: node.clone(), generation: 1, description, ..NodeSession::default() };
    world.run(Op::NodeSession(Box::new(session))).map(drop)
}

fn say(world: &mut World, node: &NodeId, obstacle: &str, keys: &[SealingKey]) -> Result<(), ControlError> {
    let sealing = NodeSealing { obstacle: obstacle.to_owned(), keys: keys.to_vec() };
    world.run(Op::NodeSealed(NodeSealed { node_id: node.clone(), generation: 1, boot: 0, sealing })).map(drop)
}

/// A host that can.
fn able(world: &mut World, number: u8) -> NodeId {
    let node = world.join(number.into());
    session_at(world, &node, &format!("192.0.2.{number}")).expect("a session");
    say(world, &node, "", &[]).expect("said");
    node
}

fn keys_of(set: &AssignmentSet, node: &NodeId) -> Vec<SealingKey> {
    set.peers().find(|peer| peer.id == *node).expect("told").sealing_keys.clone()
}

#[test]
fn only_hosts_that_can_get_tasks_on_encrypted_networks() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    let node = world.join(1);
    encrypted(&mut world, "quiet").expect("made");
    let service = world.create(on_network(web("web"), "quiet")).expect("made");
    let reason = |world: &World| {
        let verdicts = explain(&world.store, &service);
        let on = verdicts.into_iter().find(|verdict| verdict.node == node).expect("the host");
        on.reasons.into_iter().find(|(filter, _)| *filter == Filter::Encryption).map(|(_, text)| text)
    };
    assert!(reason(&world).expect("a reason").contains("release is too old"));
    world.change(crate::brain::pass);
    let task = world.store.tasks_of_service(&service).next().expect("a task").clone();
    assert!(!task.is_placed());
    assert!(task.status.err.contains("encrypted networks not possible on"), "{}", task.status.err);
    session_at(&mut world, &node, "192.0.2.1").expect("a session");
    assert!(reason(&world).expect("a reason").contains("has not said yet"));
    say(&mut world, &node, "its kernel has no WireGuard", &[]).expect("said");
    assert!(reason(&world).expect("a reason").ends_with("not possible: its kernel has no WireGuard"));
    say(&mut world, &node, "", &[]).expect("said");
    assert_eq!(reason(&world), None);
    world.change(crate::brain::pass);
    let wanted = |world: &World| {
        world.store.tasks_of_service(&service).filter(|task| task.node_id == node && task.is_wanted()).count()
    };
    assert_eq!(wanted(&world), 1, "it goes to the one host that can");
    // One that cannot any more keeps none.
    say(&mut world, &node, "UDP port 4790 is in use", &[]).expect("said");
    world.change(crate::brain::pass);
    assert_eq!(wanted(&world), 0);
}

/// From what two hosts say to what a third one is told.
#[test]
fn hosts_are_told_each_others_keys_by_who_has_said_them() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    let (one, two, three) = (able(&mut world, 1), able(&mut world, 2), able(&mut world, 3));
    network(&mut world, "plain", None).expect("made");
    let epoch = |world: &World| assignment(&world.store, &one).sealing().next().map(|sealing| sealing.epoch);
    assert_eq!(epoch(&world), None, "nothing is encrypted");
    encrypted(&mut world, "quiet").expect("made");
    assert_eq!(epoch(&world), Some(1));
    world.change(|_, txn| {
        let mut cluster = Cluster::clone(txn.cluster().expect("a cluster"));
        cluster.status.sealing_epoch = 2;
        txn.put_cluster(cluster);
    });
    assert_eq!(epoch(&world), Some(2));
    let quiet = world.create(on_network(web("web"), "quiet")).expect("made");
    world.place(&quiet, &one);
    let plain = world.create(on_network(web("plain"), "plain")).expect("made");
    world.place(&plain, &one);
    let set = assignment(&world.store, &one);
    let subnets = |name: &str| {
        let info = set.networks().find(|info| info.name == name).expect("told");
        (info.subnet.is_empty(), info.sealed_subnet.is_empty())
    };
    // An older release finds no subnet of what it would carry as if it were not encrypted.
    assert_eq!((subnets("quiet"), subnets("plain")), ((true, false), (false, true)));
    say(&mut world, &two, "", &[key(1, 2)]).expect("said");
    say(&mut world, &three, "", &[key(1, 3), key(2, 4)]).expect("said");
    let set = assignment(&world.store, &one);
    assert_eq!(keys_of(&set, &one), []);
    assert_eq!(keys_of(&set, &two), [key(1, 2)]);
    assert_eq!(keys_of(&set, &three), [key(1, 3), key(2, 4)]);
    // Keys outlive a session, and go with the host.
    session_at(&mut world, &two, "192.0.2.2").expect("a session");
    assert_eq!(keys_of(&assignment(&world.store, &one), &two), [key(1, 2)]);
    world.run(Op::NodeLeft(NodeLeft { node_id: two.clone() })).expect("left");
    assert_eq!(keys_of(&assignment(&world.store, &one), &two), []);
}

#[test]
fn a_host_with_an_older_release_is_told_of_no_encrypted_network() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    let node = able(&mut world, 1);
    encrypted(&mut world, "quiet").expect("made");
    let service = world.create(on_network(web("web"), "quiet")).expect("made");
    world.place(&service, &node);
    say(&mut world, &node, "", &[key(1, 1)]).expect("said");
    let told = |world: &World| assignment(&world.store, &node).networks().any(|info| info.name == "quiet");
    assert!(told(&world));
    let mut description = world.store.node(&node).expect("the host").description.clone();
    description.feature_level = ENCRYPTION_LEVEL - 1;
    let older = NodeSession { node_id: node.clone(), generation: 2, description, ..NodeSession::default() };
    world.run(Op::NodeSession(Box::new(older))).expect("a session");
    assert!(!told(&world));
    assert_eq!(world.store.node(&node).expect("the host").sealing, None, "its keys are of no use any more");
    world.change(crate::brain::pass);
    assert!(world.store.tasks_on_node(&node).all(|task| !task.is_wanted()), "and it keeps no task there");
}

#[test]
fn nobody_has_the_keys_of_another_host() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    encrypted(&mut world, "quiet").expect("made");
    let (one, two) = (able(&mut world, 1), able(&mut world, 2));
    say(&mut world, &two, "", &[key(1, 7)]).expect("said");
    let left_out = |world: &mut World| {
        let sealing = NodeSealing { keys: vec![key(1, 7)], ..NodeSealing::default() };
        let said = NodeSealed { node_id: one.clone(), generation: 1, boot: 0, sealing };
        let reply = world.run(Op::NodeSealed(said)).expect("said");
        assert!(reply.warnings[0].contains("is one of node 'host-2'"), "{reply:?}");
        assert_eq!(world.store.node(&one).expect("the host").sealing_keys(), []);
    };
    left_out(&mut world);
    // Nor while that one is away, wherever the liar says that it is.
    let down = NodeDown { node_id: two.clone(), generation: 1, reason: "gone".into() };
    world.run(Op::NodeDown(down)).expect("down");
    left_out(&mut world);
    session_at(&mut world, &one, "192.0.2.2").expect("a session");
    left_out(&mut world);
    // Nobody loses anything else by that.
    session_at(&mut world, &two, "192.0.2.2").expect("a session");
    assert_eq!(world.store.node(&two).expect("the host").sealing_keys(), [key(1, 7)]);
}

/// What a host says beside a key that it cannot have is written all the same.
#[test]
fn a_key_that_is_in_dispute_or_too_early_is_left_out_alone() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    let (one, two) = (able(&mut world, 1), able(&mut world, 2));
    say(&mut world, &one, "", &[key(1, 1)]).expect("said");
    assert_eq!(world.store.node(&one).expect("the host").sealing_keys(), [], "nothing is encrypted yet");
    encrypted(&mut world, "quiet").expect("made");
    world.change(|_, txn| {
        let mut cluster = Cluster::clone(txn.cluster().expect("a cluster"));
        cluster.status.sealing_epoch = 2;
        txn.put_cluster(cluster);
    });
    say(&mut world, &one, "", &[key(1, 7)]).expect("said");
    say(&mut world, &two, "ports", &[key(1, 7), key(2, 8)]).expect("said");
    let two_is = world.store.node(&two).expect("the host").sealing.clone().expect("said");
    assert_eq!(two_is, NodeSealing { obstacle: "ports".into(), keys: vec![key(2, 8)] });
    // Nobody waits for others with a key of a rotation that has not begun.
    say(&mut world, &one, "", &[key(2, 9), key(3, 10)]).expect("said");
    assert_eq!(world.store.node(&one).expect("the host").sealing_keys(), [key(2, 9)]);
}

#[test]
fn what_is_no_key_is_refused() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    let node = able(&mut world, 1);
    for bad in [
        &[key(0, 1)][..],
        &[key(1, 0)],
        &[key(1, 1), key(1, 2)],
        &[key(1, 1), key(2, 1)],
        &[key(1, 1), key(2, 2), key(3, 3)],
        &[SealingKey { epoch: 1, key: vec![1; 31] }],
    ] {
        assert_eq!(say(&mut world, &node, "", bad).expect_err("refused").kind(), ErrorKind::Invalid);
    }
    say(&mut world, &node, &"x".repeat(257), &[]).expect_err("refused");
    say(&mut world, &node, "", &[key(1, 1), key(2, 2)]).expect("said");
    // Only the daemon that has the session says it.
    let sealing = NodeSealing { keys: vec![key(2, 2)], ..NodeSealing::default() };
    for (generation, boot) in [(0, 0), (2, 0), (1, 9)] {
        let said = NodeSealed { node_id: node.clone(), generation, boot, sealing: sealing.clone() };
        assert_eq!(world.run(Op::NodeSealed(said)).expect_err("refused").kind(), ErrorKind::Busy);
    }
}

#[test]
fn what_older_managers_would_lose_is_not_written() {
    let mut world = world_at(ENCRYPTION_LEVEL - 1);
    let node = world.join(1);
    session_at(&mut world, &node, "192.0.2.1").expect("a session");
    let refused = say(&mut world, &node, "", &[key(1, 7)]).expect_err("refused");
    assert!(refused.message.contains("level 4 is needed"), "{refused}");
    let refused = encrypted(&mut world, "quiet").expect_err("refused");
    assert!(refused.message.contains("level 4 is needed"), "{refused}");
}

#[test]
fn plain_containers_go_on_encrypted_networks_only_where_hosts_can() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    let (one, two) = (able(&mut world, 1), able(&mut world, 2));
    say(&mut world, &two, "its kernel has no WireGuard", &[]).expect("said");
    let driver_options = [(ENCRYPTED_OPTION.to_owned(), String::new())].into();
    let spec = NetworkSpec { name: "quiet".into(), driver_options, attachable: true, ..NetworkSpec::default() };
    world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect("made");
    let mut attach = |node: &NodeId| {
        let op = AttachContainer {
            node_id: node.clone(),
            container: "0f".repeat(32),
            name: "plain".into(),
            network: "quiet".into(),
            generation: 1,
            ..AttachContainer::default()
        };
        world.run(Op::AttachContainer(op))
    };
    attach(&one).expect("a place");
    let refused = attach(&two).expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    let why =
        format!("network quiet is encrypted, and node {two} cannot carry such a network: its kernel has no WireGuard");
    assert_eq!(refused.message, why);
}

#[test]
fn what_ends_at_each_host_is_not_encrypted() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    let driver_options = [(ENCRYPTED_OPTION.to_owned(), String::new())].into();
    let spec = NetworkSpec { name: "near".into(), driver: "bridge".into(), driver_options, ..NetworkSpec::default() };
    let refused = world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect_err("refused");
    assert!(refused.message.contains("cannot be encrypted"), "{refused}");
}

#[test]
fn the_ports_of_encrypted_networks_are_theirs_once_there_is_one() {
    let mut world = world_at(ENCRYPTION_LEVEL);
    world.join(1);
    let dns = |name: &str, port: u32| {
        let mut spec = publish(web(name), port, PublishMode::Ingress);
        if let Some(endpoint) = &mut spec.endpoint {
            endpoint.ports.iter_mut().for_each(|port| port.set_protocol(PortProtocol::Udp));
        }
        spec
    };
    for (name, port, mode) in [("first", 4790, PublishMode::Ingress), ("third", 4791, PublishMode::Host)] {
        let mut spec = dns(name, port);
        if let Some(endpoint) = &mut spec.endpoint {
            endpoint.ports.iter_mut().for_each(|port| port.mode = mode as i32);
        }
        let service = world.create(spec).expect("made");
        let refused = encrypted(&mut world, "quiet").expect_err("refused").message;
        assert!(refused.contains(&format!("port '{port}'")) && refused.contains(&format!("'{name}'")), "{refused}");
        world.run(Op::RemoveService(RemoveService { id: service })).expect("removed");
    }
    encrypted(&mut world, "quiet").expect("made");
    let refused = world.create(dns("second", 4791)).expect_err("refused");
    assert!(refused.message.contains("for encrypted networks"), "{}", refused.message);
}
