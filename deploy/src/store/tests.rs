//! Random transactions, and the few cases that deserve a name.

use proptest::prelude::*;

use super::{Conflict, Entry, Held, Key, Store, Txn};
use crate::model::*;

const TERM: u64 = 7;

/// One write of a transaction: which object, and what it looks like.
#[derive(Clone, Copy, Debug)]
struct Write {
    kind: u8,
    id: u8,
    look: u8,
    remove: bool,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (0..6_u8, 0..5_u8, any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(kind, id, look, remove)| Write {
        kind,
        id,
        look,
        remove,
    });
    prop::collection::vec(write, 0..8)
}

fn address(look: u8) -> String {
    format!("10.0.0.{}/24", look % 6 + 2)
}

/// Objects whose names, ports and addresses often collide.
fn node(id: u8, look: u8) -> Node {
    let mut node = Node { id: NodeId::new(format!("node{id}")), ..Node::default() };
    node.description.hostname = format!("host{}", look % 3);
    node.spec.name = format!("host{}", look % 2);
    if look.is_multiple_of(4) {
        node.attachments.push(NetworkAttachment {
            network: NetworkId::new("net0"),
            address: address(look),
            ..NetworkAttachment::default()
        });
    }
    node
}

fn service(id: u8, look: u8) -> Service {
    let mut service = Service { id: ServiceId::new(format!("svc{id}")), ..Service::default() };
    service.spec.name = format!("web{}", look % 20);
    let port = PortConfig { target: 80, published: 30000 + u32::from(look % 9), ..PortConfig::default() };
    if look.is_multiple_of(2) {
        service.spec.endpoint = Some(EndpointSpec { ports: vec![port.clone()], ..EndpointSpec::default() });
    }
    if look.is_multiple_of(3) {
        service.endpoint.ports = vec![port];
    }
    if look.is_multiple_of(5) {
        let network = NetworkId::new(format!("net{}", look % 2));
        service.spec.task.networks =
            vec![NetworkAttachmentConfig { target: network.to_string(), ..NetworkAttachmentConfig::default() }];
        service.endpoint.virtual_ips = vec![VirtualIp { network, address: address(look / 5), address6: String::new() }];
    }
    service
}

fn task(id: u8, look: u8) -> Task {
    let mut task = Task { id: TaskId::new(format!("task{id}")), ..Task::default() };
    task.service_id = ServiceId::new(format!("svc{}", look % 3));
    if !look.is_multiple_of(4) {
        task.node_id = NodeId::new(format!("node{}", look % 4));
        task.status.set_state(if look.is_multiple_of(5) { TaskState::Failed } else { TaskState::Running });
        task.attachments.push(NetworkAttachment {
            network: NetworkId::new("net0"),
            address: address(look / 4),
            ..NetworkAttachment::default()
        });
    }
    task.spec.networks.push(NetworkAttachmentConfig { target: "net0".into(), ..NetworkAttachmentConfig::default() });
    task
}

fn network(id: u8, look: u8) -> Network {
    let mut network = Network { id: NetworkId::new(format!("net{id}")), ..Network::default() };
    network.spec.name = format!("back{}", look % 12);
    network.spec.ingress = look.is_multiple_of(16);
    network.allocation = look.is_multiple_of(2).then(|| NetworkAllocation {
        vni: 0x10_0000 + u32::from(look % 10),
        subnet: format!("10.0.{id}.0/24"),
        gateway: format!("10.0.{id}.1"),
        ..NetworkAllocation::default()
    });
    network
}

fn payload(look: u8) -> PayloadSpec {
    PayloadSpec { name: format!("pay{}", look % 9), data: vec![look], ..PayloadSpec::default() }
}

fn write(txn: &mut Txn, write: Write) {
    let Write { kind, id, look, remove } = write;
    match (kind, remove) {
        (0, false) => txn.put_node(node(id, look)),
        (1, false) => txn.put_service(service(id, look)),
        (2, false) => txn.put_task(task(id, look)),
        (3, false) => txn.put_network(network(id, look)),
        (4, false) => {
            txn.put_secret(Secret { id: SecretId::new(format!("sec{id}")), spec: payload(look), ..Secret::default() });
        }
        (5, false) => {
            let auth = RegistryAuth { header: format!("h{look}") };
            txn.put_registry(Registry { id: RegistryId::new(format!("reg{id}")), auth, ..Registry::default() });
        }
        (_, false) => {
            txn.put_config(Config { id: ConfigId::new(format!("cfg{id}")), spec: payload(look), ..Config::default() });
        }
        (0, true) => txn.remove_node(&NodeId::new(format!("node{id}"))),
        (1, true) => txn.remove_service(&ServiceId::new(format!("svc{id}"))),
        (2, true) => txn.remove_task(&TaskId::new(format!("task{id}"))),
        (3, true) => txn.remove_network(&NetworkId::new(format!("net{id}"))),
        (4, true) => txn.remove_secret(&SecretId::new(format!("sec{id}"))),
        (5, true) => txn.remove_registry(&RegistryId::new(format!("reg{id}"))),
        (_, true) => txn.remove_config(&ConfigId::new(format!("cfg{id}"))),
    }
}

fn transaction(base: &Store, writes: &[Write], millis: u64) -> Txn {
    let mut txn = Txn::new(base, Timestamp::from_millis(millis));
    for one in writes {
        write(&mut txn, *one);
    }
    txn
}

#[track_caller]
fn assert_sound(store: &Store) {
    let mut wrong = Vec::new();
    store.check_index(&mut wrong);
    store.check_unique(&mut wrong);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the leader computed on is what every manager has after the entry; an entry that takes what belongs to
    /// another object changes nothing; indexes always equal a rebuild; entries and snapshots survive the wire.
    #[test]
    fn random_transactions(rounds in prop::collection::vec(writes(), 1..30)) {
        let mut store = Store::default();
        for (at, writes) in rounds.iter().enumerate() {
            let txn = transaction(&store, writes, at as u64);
            let Some(entry) = txn.finish(TERM) else {
                prop_assert_eq!(txn.into_store(), store.clone());
                continue;
            };
            prop_assert!(entry.to_bytes().len() <= txn.weight() && txn.weight() < 64 + 512 * entry.changes.len());
            prop_assert_eq!(&Entry::from_bytes(&entry.to_bytes()).expect("an entry"), &entry);
            let before = store.clone();
            match store.apply(TERM, &entry) {
                Ok(applied) => {
                    prop_assert_eq!(&txn.touched().iter().cloned().collect::<Vec<Key>>(), &applied.keys);
                    prop_assert_eq!(&txn.into_store(), &store);
                    prop_assert_eq!(store.revision(), before.revision() + 1);
                }
                Err(conflict) => {
                    prop_assert!(matches!(conflict, Conflict::Taken { .. }), "{}", conflict);
                    prop_assert_eq!(&before, &store);
                }
            }
            assert_sound(&store);
        }
        let bytes = store.encode_snapshot();
        let copy = Store::decode_snapshot(&bytes).expect("a snapshot");
        prop_assert_eq!(&copy, &store);
        prop_assert_eq!(copy.encode_snapshot(), bytes);
    }

    /// Many transactions are computed before the first is applied. Applied in order, each gives the store that it was
    /// computed to give; one that went missing stops all that follow, without a trace.
    #[test]
    fn pipelined_transactions(rounds in prop::collection::vec(writes(), 1..12), lost in 0..12_usize) {
        let mut speculative = Store::default();
        let mut pipeline = Vec::new();
        for (at, writes) in rounds.iter().enumerate() {
            let txn = transaction(&speculative, writes, at as u64);
            let Some(entry) = txn.finish(TERM) else { continue };
            // The leader's own reconcilers never take what is another's; leave such rounds out.
            if speculative.clone().apply(TERM, &entry).is_err() {
                continue;
            }
            speculative = txn.into_store();
            pipeline.push((entry, speculative.clone()));
        }
        let mut store = Store::default();
        for (entry, after) in &pipeline {
            store.apply(TERM, entry).expect("computed on what is applied");
            prop_assert_eq!(&store, after);
        }
        let mut store = Store::default();
        for (at, (entry, after)) in pipeline.iter().enumerate() {
            let before = store.clone();
            match at.cmp(&lost) {
                std::cmp::Ordering::Less => {
                    store.apply(TERM, entry).expect("computed on what is applied");
                    prop_assert_eq!(&store, after);
                }
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => {
                    prop_assert!(store.apply(TERM, entry).is_err());
                    prop_assert_eq!(&store, &before);
                }
            }
        }
    }

    /// Bytes that come from the network are an entry, a snapshot or an error; never a panic.
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(entry) = Entry::from_bytes(&bytes) {
            let mut store = Store::default();
            let _ = store.apply(entry.term, &entry);
            assert_sound(&store);
        }
        if let Ok(store) = Store::decode_snapshot(&bytes) {
            assert_sound(&store);
        }
    }
}

fn applied(store: &mut Store, change: impl FnOnce(&mut Txn)) -> Entry {
    let mut txn = Txn::new(store, Timestamp::from_millis(1));
    change(&mut txn);
    let entry = txn.finish(TERM).expect("a change");
    store.apply(TERM, &entry).expect("no conflict");
    entry
}

#[test]
fn entries_of_another_term_or_revision_are_refused() {
    let mut store = Store::default();
    let first = applied(&mut store, |txn| txn.put_node(node(1, 1)));
    let before = store.clone();
    assert_eq!(store.apply(TERM, &first), Err(Conflict::Revision { entry: 1, store: 1 }));
    let mut txn = Txn::new(&store, Timestamp::from_millis(1));
    txn.put_node(node(2, 1));
    let entry = txn.finish(TERM).expect("a change");
    assert_eq!(store.apply(TERM + 1, &entry), Err(Conflict::Term { computed: TERM, log: TERM + 1 }));
    assert_eq!(store, before);
}

#[test]
fn an_object_that_changed_since_it_was_read_is_a_conflict() {
    let mut store = Store::default();
    applied(&mut store, |txn| txn.put_node(node(1, 1)));
    let mut stale = Txn::new(&store, Timestamp::from_millis(1));
    stale.put_node(node(1, 2));
    let mut entry = stale.finish(TERM).expect("a change");
    applied(&mut store, |txn| txn.put_node(node(1, 5)));
    entry.revision = store.revision() + 1;
    let key = Key::Node(NodeId::new("node1"));
    assert_eq!(store.apply(TERM, &entry), Err(Conflict::Version { key, read: 1, found: 2 }));
}

#[test]
fn a_name_may_move_within_one_entry_in_any_order() {
    let mut store = Store::default();
    applied(&mut store, |txn| {
        txn.put_service(service(1, 1));
        txn.put_service(service(2, 7));
    });
    let entry = applied(&mut store, |txn| {
        txn.put_service(service(1, 7));
        txn.put_service(service(2, 1));
    });
    assert_eq!(entry.changes.len(), 2);
    assert_eq!(store.service_by_name("web7").map(|s| s.id.as_str()), Some("svc1"));
    assert_sound(&store);
}

#[test]
fn puts_that_change_nothing_leave_no_trace() {
    let mut store = Store::default();
    applied(&mut store, |txn| txn.put_node(node(1, 1)));
    let mut txn = Txn::new(&store, Timestamp::from_millis(9));
    txn.put_node(node(1, 1));
    assert!(txn.touched().is_empty());
    txn.put_node(node(1, 2));
    assert_eq!(txn.version_of(&Key::Node(NodeId::new("node1"))), 2);
    txn.put_node(node(1, 1));
    txn.put_node(node(2, 2));
    txn.remove_node(&NodeId::new("node2"));
    assert!(txn.touched().is_empty(), "{:?}", txn.touched());
    assert_eq!(txn.finish(TERM), None);
    assert_eq!(txn.into_store(), store);
}

#[test]
fn meta_is_the_transactions_own_business() {
    let mut store = Store::default();
    applied(&mut store, |txn| {
        let meta = Meta { version: 99, created_at: Timestamp::from_millis(5), ..Meta::default() };
        txn.put_node(Node { meta, ..node(1, 1) });
    });
    let mut txn = Txn::new(&store, Timestamp::from_millis(20));
    txn.put_node(node(1, 2));
    let store = txn.into_store();
    let meta = store.node(&NodeId::new("node1")).expect("the node").meta;
    assert_eq!(
        (meta.version, meta.created_at, meta.updated_at),
        (2, Timestamp::from_millis(1), Timestamp::from_millis(20))
    );
    // The cluster's clock does not go back.
    assert_eq!(Txn::new(&store, Timestamp::from_millis(3)).now(), Timestamp::from_millis(20));
}

#[test]
fn malformed_changes_are_refused() {
    let mut store = Store::default();
    let mut txn = Txn::new(&store, Timestamp::from_millis(1));
    txn.put_node(node(1, 1));
    let good = txn.finish(TERM).expect("a change");
    for at in 0..3 {
        let mut bad = good.clone();
        match at {
            0 => bad.changes[0].kind = 99,
            1 => bad.changes[0].id = "other".into(),
            _ => {
                let twice = bad.changes[0].clone();
                bad.changes.push(twice);
            }
        }
        assert!(matches!(store.apply(TERM, &bad), Err(Conflict::Malformed { .. })), "{at}");
        assert_eq!(store, Store::default());
    }
    store.apply(TERM, &good).expect("the entry itself is good");
    assert!(matches!(store.held(&Key::Node(NodeId::new("node1"))), Some(Held::Node(_))));
}

#[test]
fn a_task_that_ended_gives_its_address_back() {
    let mut store = Store::default();
    applied(&mut store, |txn| txn.put_task(task(1, 1)));
    let network = NetworkId::new("net0");
    let held: Vec<u32> = store.addresses_on_network(&network).map(|(address, _)| address).collect();
    assert_eq!(held, [parse_ipv4("10.0.0.2").expect("an address")]);
    applied(&mut store, |txn| {
        let mut ended = task(1, 1);
        ended.status.set_state(TaskState::Complete);
        txn.put_task(ended);
    });
    assert_eq!(store.addresses_on_network(&network).count(), 0);
    assert_eq!(store.tasks_on_node(&NodeId::new("node1")).count(), 1);
}

#[test]
fn a_full_transaction_still_fits_into_an_entry() {
    let mut txn = Txn::new(&Store::default(), Timestamp::from_millis(1));
    let large = |id: u8, name: String| {
        let mut service = service(id, 1);
        service.spec.name = name;
        service.spec.labels.insert("weight".into(), "x".repeat(96 << 10));
        service.previous_spec = Some(service.spec.clone());
        service
    };
    let mut id = 0;
    while !txn.is_full() {
        txn.put_service(large(id, format!("service-{id}")));
        id += 1;
    }
    // The decision that was being made when it became full may still finish.
    txn.put_service(large(id, "last".to_owned()));
    let entry = txn.finish(TERM).expect("a change").to_bytes();
    assert!(entry.len() <= super::MAX_ENTRY_BYTES, "{}", entry.len());
    // What is taken back weighs nothing.
    for id in 0..=id {
        txn.remove_service(&ServiceId::new(format!("svc{id}")));
    }
    assert_eq!((txn.weight(), txn.finish(TERM)), (0, None));
}
