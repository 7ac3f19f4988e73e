//! Plain containers on networks.

use crate::brain;
use crate::control::fixture::World;
use crate::control::*;
use crate::dispatcher::{self, Body};
use crate::model::*;

fn network(world: &mut World, name: &str, subnet: &str, attachable: bool) -> Result<Reply, ControlError> {
    let ipam = vec![IpamConfig { subnet: subnet.into(), ..IpamConfig::default() }];
    let spec = NetworkSpec { name: name.into(), ipam, attachable, ..NetworkSpec::default() };
    world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec })))
}

fn container(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

fn attach(world: &mut World, node: &NodeId, number: u8, network: &str) -> Result<Reply, ControlError> {
    attach_anew(world, node, number, network, 1)
}

fn attach_anew(world: &mut World, node: &NodeId, number: u8, network: &str, start: u64) -> Result<Reply, ControlError> {
    let (name, aliases) = (format!("plain{number}"), vec!["other".to_owned()]);
    let op = AttachContainer {
        node_id: node.clone(),
        container: container(number),
        name,
        network: network.into(),
        aliases,
        start,
        generation: 1,
        boot: 0,
    };
    world.run(Op::AttachContainer(op))
}

fn of(node: &NodeId, id: &TaskId) -> DetachContainer {
    DetachContainer { node_id: node.clone(), id: id.clone(), generation: 1, boot: 0 }
}

fn detach(world: &mut World, node: &NodeId, id: &TaskId) {
    world.run(Op::DetachContainer(of(node, id))).unwrap();
}

#[test]
fn a_container_has_a_place_until_it_gives_it_back() {
    let mut world = World::new();
    let (one, two) = (world.join(1), world.join(2));
    world.set_level(ATTACH_LEVEL - 1);
    let old = network(&mut world, "back", "10.9.0.0/29", true).unwrap_err();
    assert!(old.message.contains("feature level"), "{old}");
    world.set_level(ATTACH_LEVEL);
    network(&mut world, "back", "10.9.0.0/29", true).unwrap();
    network(&mut world, "closed", "10.9.1.0/29", false).unwrap();
    let refused = attach(&mut world, &one, 1, "closed").unwrap_err();
    assert_eq!(
        (refused.kind(), refused.message.as_str()),
        (ErrorKind::Forbidden, "network closed not manually attachable")
    );
    assert_eq!(attach(&mut world, &one, 1, "nothing").unwrap_err().kind(), ErrorKind::NotFound);
    let first = attach(&mut world, &one, 1, "back").unwrap();
    assert_eq!(attach(&mut world, &one, 1, "back").unwrap(), first, "asked for again");
    let task = TaskId::new(first.id.clone());
    let address = world.addresses(&task)[0].clone();
    attach(&mut world, &two, 2, "back").unwrap();
    // Its host is told that it has it, and what is on the network; others its names.
    let told = dispatcher::assignment(&world.store, &one);
    let own = told.tasks().find(|assigned| assigned.task.id == task).expect("its own");
    assert_eq!(own.task.container, container(1));
    let names = told.items().find_map(|item| match item.body.as_ref() {
        Some(Body::Endpoint(endpoint)) if endpoint.task != task => Some(endpoint.names.clone()),
        _ => None,
    });
    assert_eq!(names.unwrap(), ["plain2".to_owned(), "other".into(), container(2)[..12].into()]);
    // Nobody takes it away: not the brain, and not who drains its host.
    let mut drained = NodeSpec { name: "node".into(), ..NodeSpec::default() };
    drained.set_availability(NodeAvailability::Drain);
    let version = world.store.node(&one).unwrap().meta.version;
    world.run(Op::UpdateNode(UpdateNode { id: one.clone(), version, spec: drained })).unwrap();
    world.change(brain::pass);
    assert_eq!(world.addresses(&task), [address.as_str()]);
    let network = world.store.network_by_name("back").unwrap().id.clone();
    world.run(Op::RemoveNetwork(RemoveNetwork { id: network.clone() })).unwrap_err();
    // Six addresses, one of them the gateway's.
    for number in 3..=5 {
        attach(&mut world, &one, number, "back").unwrap();
    }
    let dry = attach(&mut world, &one, 6, "back").unwrap_err();
    assert_eq!(
        (dry.kind(), dry.message.as_str()),
        (ErrorKind::Exhausted, "could not find an available IP address on network back")
    );
    detach(&mut world, &two, &task);
    assert!(world.store.task(&task).is_some(), "another host's container");
    detach(&mut world, &one, &task);
    detach(&mut world, &one, &task);
    assert!(world.store.task(&task).is_none());
    attach(&mut world, &one, 6, "back").unwrap_err();
    world.now = world.now.plus(std::time::Duration::from_secs(10));
    let again = attach(&mut world, &one, 6, "back").unwrap();
    assert_eq!(world.addresses(&TaskId::new(again.id.clone())), [address], "after it has rested");
    // Another start of it, of which the one before was not given back.
    world.run(Op::DetachContainer(of(&two, &TaskId::new("none")))).unwrap();
    let third = world.store.tasks_on_node(&one).find(|task| task.container == container(3)).unwrap().id.clone();
    detach(&mut world, &one, &third);
    world.now = world.now.plus(std::time::Duration::from_secs(10));
    let anew = attach_anew(&mut world, &one, 6, "back", 2).unwrap();
    assert_ne!(anew.id, again.id);
    detach(&mut world, &one, &TaskId::new(again.id));
    assert_eq!(world.addresses(&TaskId::new(anew.id)).len(), 1, "what was given back late is not this one's");
    // A host that is gone for good takes its containers along.
    world.run(Op::NodeLeft(NodeLeft { node_id: two.clone() })).unwrap();
    world.change(brain::pass);
    assert!(world.store.tasks_on_node(&two).next().is_none());
    let left: Vec<TaskId> = world.store.tasks_on_node(&one).map(|task| task.id.clone()).collect();
    assert_eq!(left.len(), 3);
    left.iter().for_each(|id| detach(&mut world, &one, id));
    world.run(Op::RemoveNetwork(RemoveNetwork { id: network })).unwrap();
}

#[test]
fn only_the_daemon_with_the_session_speaks_for_its_containers() {
    let mut world = World::new();
    let one = world.join(1);
    world.set_level(ATTACH_LEVEL);
    network(&mut world, "back", "10.9.0.0/24", true).unwrap();
    let place = TaskId::new(attach(&mut world, &one, 1, "back").unwrap().id);
    for (generation, boot) in [(0, 0), (2, 0), (1, 7)] {
        let detach = DetachContainer { generation, boot, ..of(&one, &place) };
        let refused = world.run(Op::DetachContainer(detach)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{generation} {boot}");
        let container = container(2);
        let (node_id, network) = (one.clone(), "back".to_owned());
        let attach = AttachContainer { node_id, container, network, generation, boot, ..AttachContainer::default() };
        assert_eq!(world.run(Op::AttachContainer(attach)).unwrap_err().kind(), ErrorKind::Busy);
    }
    assert!(world.store.task(&place).is_some());
}

#[test]
fn a_host_that_is_away_keeps_the_places_of_its_containers_for_a_day() {
    let mut world = World::new();
    let (one, two) = (world.join(1), world.join(2));
    world.set_level(ATTACH_LEVEL);
    network(&mut world, "back", "10.9.0.0/24", true).unwrap();
    let lost = TaskId::new(attach(&mut world, &one, 1, "back").unwrap().id);
    let stays = TaskId::new(attach(&mut world, &two, 2, "back").unwrap().id);
    assert_eq!(world.store.task(&lost).unwrap().service(), None);
    world.run(Op::NodeDown(NodeDown { node_id: one, generation: 1, reason: "agent silent".to_owned() })).unwrap();
    for (passed_s, has) in [(24 * 60 * 60 - 1, true), (1, false)] {
        world.now = world.now.plus(std::time::Duration::from_secs(passed_s));
        world.change(brain::pass);
        assert_eq!((world.store.task(&lost).is_some(), world.store.task(&stays).is_some()), (has, true));
    }
}

#[test]
fn a_request_that_comes_late_takes_no_place_away() {
    let mut world = World::new();
    let one = world.join(1);
    world.set_level(ATTACH_LEVEL);
    network(&mut world, "back", "10.9.0.0/24", true).unwrap();
    let later = attach_anew(&mut world, &one, 1, "back", 2).unwrap();
    let late = attach_anew(&mut world, &one, 1, "back", 1).unwrap();
    assert_eq!(attach_anew(&mut world, &one, 1, "back", 2).unwrap(), later);
    assert_eq!(world.addresses(&TaskId::new(later.id)).len(), 1);
    detach(&mut world, &one, &TaskId::new(late.id));
}

#[test]
fn names_of_containers_are_names() {
    let mut world = World::new();
    let one = world.join(1);
    world.set_level(ATTACH_LEVEL);
    network(&mut world, "back", "10.9.0.0/24", true).unwrap();
    let mut named = |name: &str, aliases: Vec<String>| {
        let (node_id, network) = (one.clone(), "back".to_owned());
        let (name, container, generation) = (name.to_owned(), container(1), 1);
        let op =
            AttachContainer { node_id, container, name, network, aliases, generation, ..AttachContainer::default() };
        world.run(Op::AttachContainer(op)).map(drop).map_err(|error| error.kind())
    };
    let long = "a".repeat(64);
    for wrong in ["", ".", "a..b", "tasks.web", "Tasks.web", long.as_str(), "a\nb"] {
        assert_eq!(named("db", vec![wrong.to_owned()]), Err(ErrorKind::Invalid), "{wrong:?}");
        assert_eq!(named(wrong, Vec::new()), Err(ErrorKind::Invalid), "{wrong:?}");
    }
    assert_eq!(
        named("db", (0..40).map(|n| format!("{n:060}")).collect()),
        Err(ErrorKind::Invalid),
        "too much together"
    );
    assert_eq!(named("db_1", vec!["db.example".to_owned(), "db-1".into()]), Ok(()));
}
