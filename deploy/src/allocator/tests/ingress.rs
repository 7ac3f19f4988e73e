//! The ingress network goes and another comes.

use super::{ended, subnet};
use crate::allocator::reconcile;
use crate::control::fixture::{World, publish, web};
use crate::control::{
    ControlError, CreateNetwork, ErrorKind, Op, RemoveNetwork, RemoveService, Request, UpdateService, execute,
};
use crate::cx::{Cx, Limits};
use crate::dispatcher::{Affected, affected, assignment};
use crate::model::*;
use crate::store::{Key, MAX_ENTRY_BYTES, Store, Txn};

fn remove(world: &mut World, id: &NetworkId) -> Result<(), ControlError> {
    world.run(Op::RemoveNetwork(RemoveNetwork { id: id.clone() })).map(drop)
}

fn make(world: &mut World, name: &str, cidr: &str) -> Result<NetworkId, ControlError> {
    let spec = NetworkSpec {
        name: name.into(),
        ingress: true,
        ipam: subnet(cidr).into_iter().collect(),
        ..NetworkSpec::default()
    };
    world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).map(|reply| NetworkId::new(reply.id))
}

fn ingress(world: &World) -> NetworkId {
    world.store.ingress_network().expect("ingress").id.clone()
}

fn place(world: &World, node: &NodeId) -> Vec<String> {
    world.store.node(node).expect("the node").attachments.iter().map(|a| a.address.clone()).collect()
}

#[test]
fn a_new_ingress_network_takes_the_place_of_the_old_one() {
    let mut world = World::new();
    let node = world.join(1);
    let old = ingress(&world);
    let before = world.store.clone();
    remove(&mut world, &old).expect("removed");
    assert!(place(&world, &node).is_empty() && place(&world, &NodeId::from(0)).is_empty());
    assert_eq!(affected(&before, &world.store, [&Key::Network(old.clone())]), Affected::All);
    assert_eq!(assignment(&world.store, &node).networks().count(), 0);
    // A host that comes meanwhile gets its place with the others.
    let later = world.join(2);
    assert_eq!(place(&world, &later), [""; 0]);
    let new = make(&mut world, "mesh", "10.11.0.0/16").expect("made");
    assert_ne!(new, old);
    let mut places: Vec<String> =
        [&NodeId::from(0), &node, &later].iter().flat_map(|node| place(&world, node)).collect();
    places.sort();
    assert_eq!(places, ["10.11.0.2/16", "10.11.0.3/16", "10.11.0.4/16"]);
    let told = assignment(&world.store, &node);
    let info = told.networks().next().expect("the network");
    assert!(info.ingress && place(&world, &node) == [info.own_address.clone()], "{info:?}");
    // It works as the old one did.
    let service = world.create(publish(web("web"), 8080, PublishMode::Ingress)).expect("made");
    let task = world.place(&service, &node);
    assert_eq!(world.service(&service).endpoint.virtual_ips[0].network, new);
    assert!(world.addresses(&task)[0].starts_with("10.11.0."));
}

#[test]
fn who_publishes_keeps_the_ingress_network() {
    let mut world = World::new();
    let node = world.join(1);
    let id = ingress(&world);
    let service = world.create(publish(web("web"), 8080, PublishMode::Ingress)).expect("made");
    let task = world.place(&service, &node);
    let error = remove(&mut world, &id).expect_err("in use");
    let text = format!("ingress network cannot be removed because service {service} depends on it");
    assert_eq!((error.kind(), error.message), (ErrorKind::FailedPrecondition, text));
    world.run(Op::RemoveService(RemoveService { id: service })).expect("removed");
    // Its task still runs.
    let error = remove(&mut world, &id).expect_err("in use");
    assert!(error.message.contains(task.as_str()), "{}", error.message);
    ended(&mut world, &node, &task);
    remove(&mut world, &id).expect("removed");
}

#[test]
fn without_an_ingress_network_nothing_is_published_there() {
    let mut world = World::new();
    let service = world.create(web("web")).expect("made");
    let old = ingress(&world);
    remove(&mut world, &old).expect("removed");
    let refused = |error: ControlError| {
        let text = "service needs ingress network, but no ingress network is present";
        assert_eq!((error.kind(), error.message.as_str()), (ErrorKind::FailedPrecondition, text));
    };
    refused(world.create(publish(web("a"), 8080, PublishMode::Ingress)).expect_err("refused"));
    let current = world.service(&service);
    let spec = publish(current.spec.clone(), 8080, PublishMode::Ingress);
    let update = UpdateService { id: service, version: current.meta.version, spec, rollback: false };
    refused(world.run(Op::UpdateService(Box::new(update))).expect_err("refused"));
    world.create(publish(web("b"), 8080, PublishMode::Host)).expect("needs none");
}

#[test]
fn a_task_that_went_back_to_published_ports_waits_for_an_ingress_network() {
    let mut world = World::new();
    let node = world.join(1);
    let old = ingress(&world);
    remove(&mut world, &old).expect("removed");
    let service = world.create(web("web")).expect("made");
    world.change(|_, txn| {
        let mut service = Service::clone(txn.service(&service).expect("the service"));
        service.spec = publish(service.spec, 8080, PublishMode::Ingress);
        txn.put_service(service);
    });
    let task = world.place(&service, &node);
    let message = &world.store.task(&task).expect("the task").status.message;
    assert!(message.contains("no ingress network is present"), "{message}");
    make(&mut world, "ingress", "10.11.0.0/24").expect("made");
    assert_eq!(world.addresses(&task).len(), 1);
}

#[test]
fn there_is_one_and_it_leads_out() {
    let mut world = World::new();
    let error = make(&mut world, "second", "10.11.0.0/24").expect_err("one is enough");
    assert_eq!(
        (error.kind(), error.message.as_str()),
        (ErrorKind::AlreadyExists, "ingress network (ingress) is already present")
    );
    let spec = NetworkSpec { name: "odd".into(), ingress: true, internal: true, ..NetworkSpec::default() };
    let error = world.run(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).expect_err("refused");
    assert_eq!(error.message, "ingress network cannot be internal");
}

/// Passes until nothing is left to do; how many there were.
fn settle(store: &mut Store) -> usize {
    let mut ids = || -> u128 { unreachable!("the allocator makes no ids") };
    let mut passes = 0;
    loop {
        let now = Timestamp::from_millis(2_000);
        let mut cx = Cx { now, ids: &mut ids, limits: Limits::default() };
        let mut txn = Txn::new(store, now);
        reconcile(&mut cx, &mut txn);
        if txn.touched().is_empty() {
            return passes;
        }
        assert!(txn.weight() < MAX_ENTRY_BYTES, "{} bytes", txn.weight());
        *store = txn.into_store();
        passes += 1;
    }
}

#[test]
fn more_hosts_than_one_entry_holds_take_more_passes() {
    let mut world = World::new();
    let old = ingress(&world);
    remove(&mut world, &old).expect("removed");
    let wide = make(&mut world, "wide", "10.16.0.0/12").expect("made");
    // Hosts that say much of themselves.
    let own_subnets: Vec<String> = (0..MAX_OWN_SUBNETS).map(|n| format!("192.168.{n}.0/24")).collect();
    let mut txn = Txn::new(&world.store, world.now);
    for number in 1..1000 {
        let description = NodeDescription { own_subnets: own_subnets.clone(), ..NodeDescription::default() };
        txn.put_node(Node { id: NodeId::from(number), description, ..Node::default() });
    }
    let mut store = txn.into_store();
    let with_a_place = |store: &Store| store.nodes().filter(|node| !node.attachments.is_empty()).count();
    assert!(settle(&mut store) > 1);
    assert_eq!(with_a_place(&store), 1000);
    let mut ids = || -> u128 { unreachable!("nothing is made") };
    let mut cx = Cx { now: world.now, ids: &mut ids, limits: Limits::default() };
    let mut txn = Txn::new(&store, world.now);
    execute(&mut cx, &mut txn, &Request::from(Op::RemoveNetwork(RemoveNetwork { id: wide }))).expect("removed");
    assert!(txn.weight() < MAX_ENTRY_BYTES, "{} bytes", txn.weight());
    store = txn.into_store();
    assert!(with_a_place(&store) > 0, "it was too little to be split");
    assert!(settle(&mut store) > 0);
    assert_eq!((with_a_place(&store), store.invariants()), (0, Vec::new()));
}
