//! Subnets next to those that the hosts have of their own.

use super::{network, subnet, world6};
use crate::allocator::Troubles;
use crate::control::fixture::{World, init};
use crate::control::{CreateNetwork, NodeSession, Op, RegisterNode, RemoveNetwork};
use crate::model::*;

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn description(own: &[&str], routes: &[&str], way_out: &str) -> NodeDescription {
    NodeDescription {
        hostname: "host-1".into(),
        own_subnets: strings(own),
        routes: strings(routes),
        way_out: way_out.into(),
        ..NodeDescription::default()
    }
}

fn session(world: &mut World, node: &NodeId, description: NodeDescription) {
    let session = NodeSession { node_id: node.clone(), generation: 1, description, ..NodeSession::default() };
    world.run(Op::NodeSession(Box::new(session))).expect("a session");
}

fn given(world: &World, id: &NetworkId) -> String {
    world.store.network(id).and_then(|network| network.allocation.clone()).expect("a subnet").subnet
}

fn troubles(world: &World, node: &NodeId) -> Vec<String> {
    Troubles::new(&world.store).of(world.store.node(node).expect("the node"))
}

/// A cluster whose first host has this to say of itself.
fn world_of(description: NodeDescription) -> World {
    let mut world = World::empty();
    let Op::InitCluster(mut op) = init() else { unreachable!("the fixture's first request") };
    op.node.description = description;
    world.run(Op::InitCluster(op)).expect("the cluster is made");
    world
}

#[test]
fn the_first_ingress_network_keeps_off_the_first_hosts_own() {
    let world = world_of(description(&["10.0.0.0/24"], &["10.0.2.0/23"], ""));
    let ingress = world.store.ingress_network().expect("ingress");
    assert_eq!(given(&world, &ingress.id), "10.0.1.0/24");
    let first = NodeId::from(0);
    assert_eq!(world.store.node(&first).expect("the node").attachments[0].address, "10.0.1.2/24");
    assert_eq!(troubles(&world, &first), [""; 0]);
}

#[test]
fn a_choice_keeps_off_what_any_host_has() {
    let mut world = World::new();
    let node = world.join(1);
    session(&mut world, &node, description(&["10.0.1.0/25", "10.0.1.128/25"], &["10.0.2.0/23"], "10.0.4.0/22"));
    let id = network(&mut world, "free", None).expect("a network");
    assert_eq!(given(&world, &id), "10.0.8.0/24");
}

#[test]
fn a_choice_keeps_off_the_ipv6_networks_of_hosts() {
    let mut world = world6();
    let node = world.join(1);
    let make = |world: &mut World, name: &str, subnet: &str, ingress: bool| {
        let mut spec = NetworkSpec { name: name.into(), ipv6: true, ingress, ..NetworkSpec::default() };
        spec.ipam.extend((!subnet.is_empty()).then(|| IpamConfig { subnet: subnet.into(), ..IpamConfig::default() }));
        let reply = world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect("a network");
        (NetworkId::new(reply.id), reply.warnings)
    };
    let six = |world: &World, id: &NetworkId| {
        let network = world.store.network(id).expect("the network");
        Subnet6::parse(&network.allocation.as_ref().expect("subnets").subnet6).expect("a subnet")
    };
    let (id, _) = make(&mut world, "first", "", false);
    let first = six(&world, &id);
    let nth = |n: u128| Subnet6::containing(first.first() + (n << 64), 64).expect("a subnet").to_string();
    // The next one and the one behind it are a host's; a network that holds the whole pool is no obstacle.
    let own = |own: &[&str], routes: &[&str]| NodeDescription {
        own_subnets6: strings(own),
        routes6: strings(routes),
        ..description(&[], &[], "")
    };
    session(&mut world, &node, own(&[&nth(1), "fd00::/8"], &[&nth(2)]));
    let (id, warnings) = make(&mut world, "second", "", false);
    assert_eq!((six(&world, &id).to_string(), warnings), (nth(3), vec![]));
    session(&mut world, &node, own(&["2001:db8:1::/64"], &["2001:db8:2::/48", "2001:db8::/32"]));
    let (_, warnings) = make(&mut world, "asked", "2001:db8:1::/64", false);
    assert!(warnings.len() == 1 && warnings[0].contains("2001:db8:1::/64 has addresses of"), "{warnings:?}");
    assert_eq!(make(&mut world, "apart", "2001:db8:3::/64", false).1, [""; 0], "a wider route is no obstacle");
    // Nor for a place on the ingress network; one into a part of it is.
    let ingress = world.store.ingress_network().expect("ingress").id.clone();
    world.run(Op::RemoveNetwork(RemoveNetwork { id: ingress })).expect("removed");
    make(&mut world, "mesh", "2001:db8:4::/48", true);
    let place = |world: &World| world.store.node(&node).expect("the node").attachments.len();
    assert_eq!((place(&world), troubles(&world, &node)), (1, strings(&[])));
    session(&mut world, &node, own(&[], &["2001:db8:4:9::/64"]));
    assert_eq!(place(&world), 0);
    let said = troubles(&world, &node);
    assert!(said.len() == 1 && said[0].contains("mesh (2001:db8:4::/48)"), "{said:?}");
}

#[test]
fn a_network_that_holds_the_whole_pool_does_not_use_it_up() {
    let mut world = World::new();
    let node = world.join(1);
    session(&mut world, &node, description(&["10.0.1.0/24"], &["10.0.0.0/8", "0.0.0.0/1"], ""));
    let id = network(&mut world, "free", None).expect("a network");
    assert_eq!(given(&world, &id), "10.0.2.0/24");
}

#[test]
fn a_host_that_has_the_ingress_networks_addresses_takes_no_place_and_says_so() {
    let mut world = World::new();
    let node = world.join(1);
    let place = |world: &World| world.store.node(&node).expect("the node").attachments.len();
    assert_eq!((place(&world), troubles(&world, &node)), (1, strings(&[])));
    session(&mut world, &node, description(&["10.0.0.128/25"], &[], ""));
    assert_eq!(place(&world), 0);
    let said = troubles(&world, &node);
    assert!(
        said.len() == 1 && said[0].contains("network ingress (10.0.0.0/24)") && said[0].contains("10.0.0.128/25"),
        "{said:?}"
    );
    // A route into a part of it is as bad; one that leads to a wider network is not.
    session(&mut world, &node, description(&[], &["10.0.0.7/32"], ""));
    assert_eq!((place(&world), troubles(&world, &node).len()), (0, 1));
    session(&mut world, &node, description(&["192.0.2.0/24"], &["10.0.0.0/16"], ""));
    assert_eq!((place(&world), troubles(&world, &node)), (1, strings(&[])));
}

#[test]
fn nobody_has_a_place_on_an_ingress_network_that_holds_a_host() {
    let mut world = World::new();
    let node = world.join(1);
    // Nobody lets such a host in any more; earlier releases did.
    let inside = NodeDescription { data_path_addr: "10.0.0.77".into(), ..description(&[], &[], "") };
    let mut known = (**world.store.node(&node).expect("the node")).clone();
    (known.description, known.attachments) = (inside.clone(), Vec::new());
    world.change(|_, txn| txn.put_node(known));
    session(&mut world, &node, inside);
    let later = world.join(2);
    assert_eq!(world.store.node(&later).expect("the node").attachments, []);
    for id in [&node, &later] {
        let said = troubles(&world, id);
        assert!(said.len() == 1 && said[0].contains("10.0.0.77") && said[0].contains("'host-1'"), "{said:?}");
    }
}

#[test]
fn a_host_whose_address_becomes_one_of_the_ingress_networks_is_refused() {
    let mut world = World::new();
    let (node, other) = (world.join(1), world.join(2));
    let at = |address: &str| NodeDescription { data_path_addr: address.into(), ..description(&[], &[], "") };
    session(&mut world, &node, at("192.0.2.1"));
    let moved =
        NodeSession { node_id: node.clone(), generation: 2, description: at("10.0.0.77"), ..Default::default() };
    let error = world.run(Op::NodeSession(Box::new(moved))).expect_err("refused");
    assert!(error.message.contains("10.0.0.77") && error.message.contains("--data-path-addr"), "{}", error.message);
    // The others keep their places, and the mesh.
    for id in [&node, &other] {
        assert_eq!((troubles(&world, id), world.store.node(id).expect("the node").attachments.len()), (vec![], 1));
    }
    session(&mut world, &node, at("192.0.2.9"));
}

#[test]
fn neither_a_host_nor_an_ingress_network_comes_into_the_others_way() {
    let mut world = World::new();
    let description = NodeDescription { data_path_addr: "10.0.0.77".into(), ..description(&[], &[], "") };
    let register = RegisterNode { node_id: NodeId::from(5), description, ..RegisterNode::default() };
    let error = world.run(Op::RegisterNode(Box::new(register))).expect_err("refused");
    assert!(
        error.message.contains("10.0.0.77") && error.message.contains("ingress (10.0.0.0/24)"),
        "{}",
        error.message
    );
    let node = world.join(1);
    session(&mut world, &node, NodeDescription { data_path_addr: "10.7.0.1".into(), ..NodeDescription::default() });
    let old = world.store.ingress_network().expect("one").id.clone();
    world.run(Op::RemoveNetwork(RemoveNetwork { id: old })).expect("removed");
    let ingress = |world: &mut World, addresses: &str| {
        let ipam = subnet(addresses).into_iter().collect();
        let spec = NetworkSpec { name: "mesh".into(), ingress: true, ipam, ..NetworkSpec::default() };
        world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).map_err(|error| error.message)
    };
    let refused = ingress(&mut world, "10.7.0.0/16").expect_err("refused");
    assert!(refused.contains("10.7.0.1"), "{refused}");
    for special in ["127.0.0.0/16", "224.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "169.254.83.0/24"] {
        let refused = ingress(&mut world, special).expect_err("refused");
        assert!(refused.contains("another meaning"), "{special}: {refused}");
    }
    ingress(&mut world, "10.8.0.0/16").expect("made");
}

#[test]
fn a_host_for_which_no_ingress_address_is_left_says_so() {
    let mut world = World::empty();
    let Op::InitCluster(mut op) = init() else { unreachable!("the fixture's first request") };
    op.cluster.spec.default_addr_pool = strings(&["10.0.0.0/29"]);
    op.cluster.spec.subnet_size = 29;
    world.run(Op::InitCluster(op)).expect("the cluster is made");
    let nodes: Vec<NodeId> = (1..6).map(|number| world.join(number)).collect();
    assert_eq!(troubles(&world, &nodes[3]), strings(&[]));
    let said = troubles(&world, &nodes[4]);
    assert!(said[0].ends_with("could not find an available IP address on network ingress"), "{said:?}");
}

#[test]
fn what_users_ask_for_is_theirs_but_not_the_way_out() {
    let mut world = World::new();
    let node = world.join(1);
    session(&mut world, &node, description(&["10.5.0.0/24"], &[], "172.30.0.0/16"));
    let spec =
        NetworkSpec { name: "own".into(), ipam: subnet("10.5.0.0/16").into_iter().collect(), ..NetworkSpec::default() };
    let reply = world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect("made");
    assert!(reply.warnings[0].contains("10.5.0.0/24") && reply.warnings[0].contains("'host-1'"), "{reply:?}");
    let refused = network(&mut world, "out", subnet("172.30.7.0/24")).expect_err("refused");
    assert!(refused.contains("172.30.0.0/16") && refused.contains("'host-1'"), "{refused}");
    // A host that came later has it there all the same, and says so.
    network(&mut world, "odd", subnet("172.29.0.0/24")).expect("a network");
    session(&mut world, &node, description(&[], &[], "172.29.0.0/16"));
    let said = troubles(&world, &node);
    assert!(said.len() == 1 && said[0].contains("network odd (172.29.0.0/24)"), "{said:?}");
}

#[test]
fn a_description_that_makes_no_sense_is_refused() {
    let mut world = World::new();
    let node = world.join(1);
    let port = |port: u32| OwnPort { port, ..OwnPort::default() };
    for wrong in [
        description(&["10.0.0.1/24"], &[], ""),
        description(&[], &["::/0"], ""),
        description(&[], &[], "anywhere"),
        description(&vec!["10.0.0.0/24"; MAX_OWN_SUBNETS + 1], &[], ""),
        NodeDescription { own_ports: vec![port(0)], ..NodeDescription::default() },
        NodeDescription { own_ports: vec![port(65536)], ..NodeDescription::default() },
        NodeDescription { own_ports: vec![port(1); MAX_OWN_PORTS + 1], ..NodeDescription::default() },
    ] {
        let session =
            NodeSession { node_id: node.clone(), generation: 1, description: wrong, ..NodeSession::default() };
        world.run(Op::NodeSession(Box::new(session))).expect_err("refused");
    }
}
