//! The building blocks alone: namespaces, links and tables of the real kernel.

mod world;

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use overlay_net::config::Protocol;
use overlay_net::kernel::{Links, NetNs, Peer, Tables, enter};
use overlay_net::plan::ruleset::{Action, Family, Kind, Match, Point, Rule, Set, Table};
use world::{link_names, possible};

#[test]
fn a_namespace_is_pinned_found_again_and_removed() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("one");
    assert_eq!(NetNs::open(&path).unwrap_err().kind(), ErrorKind::NotFound);
    let made = NetNs::create(&path).unwrap();
    assert_eq!(NetNs::create(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    Links::open(&made).unwrap().create_bridge("mark").unwrap();
    drop(made);
    assert_eq!(link_names(&NetNs::open(&path).unwrap()), ["mark"]);
    // Entering for good is for a thread that ends with its work.
    let target = path.clone();
    let entered = std::thread::spawn(move || {
        enter(&target).unwrap();
        Links::current().unwrap().find("mark").unwrap().is_some()
    });
    assert!(entered.join().unwrap());
    NetNs::delete(&path).unwrap();
    assert!(!path.exists());
    NetNs::delete(&path).unwrap();
    // What a crash between making the file and mounting on it leaves.
    std::fs::write(&path, "").unwrap();
    assert_eq!(NetNs::open(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    NetNs::delete(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn links_addresses_and_routes_are_made_listed_and_removed() {
    if !possible() {
        return;
    }
    let (here, there) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
    let (mut ours, mut theirs) = (Links::open(&here).unwrap(), Links::open(&there).unwrap());
    let mac = [2, 0, 0, 0, 0, 9];
    ours.create_veth_into("a", None, 1400, &Peer { namespace: &there, name: "b", mac: Some(mac) }).unwrap();
    let again = ours.create_veth_into("a", None, 1400, &Peer { namespace: &there, name: "c", mac: None }).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let far = theirs.find("b").unwrap().unwrap();
    assert_eq!((far.kind.as_str(), far.mtu, far.up, &far.address[..]), ("veth", 1400, false, &mac[..]));
    ours.create_bridge("br").unwrap();
    ours.set_controller("a", Some("br")).unwrap();
    ours.set_alias("a", "whose it is").unwrap();
    ours.set_up("a").unwrap();
    let near = ours.find("a").unwrap().unwrap();
    assert_eq!((near.controller, near.alias.as_str(), near.up), (ours.index("br").unwrap(), "whose it is", true));
    ours.set_down("a").unwrap();
    ours.set_controller("a", None).unwrap();
    assert_eq!(ours.find("a").unwrap().unwrap().controller, 0);

    let address = "10.9.8.7/24".parse().unwrap();
    theirs.add_address("b", address).unwrap();
    theirs.add_address("b", address).unwrap();
    theirs.set_up("b").unwrap();
    ours.set_up("a").unwrap();
    assert_eq!(theirs.addresses().unwrap(), [(far.index, address)]);
    let default = "0.0.0.0/0".parse().unwrap();
    theirs.add_route(default, Some(Ipv4Addr::new(10, 9, 8, 1)), "b").unwrap();
    let mut routes: Vec<String> = theirs.routes().unwrap().iter().map(|(net, _)| net.to_string()).collect();
    routes.sort();
    assert_eq!(routes, ["0.0.0.0/0", "10.9.8.0/24"]);
    theirs.delete_route(default, Some(Ipv4Addr::new(10, 9, 8, 1)), "b").unwrap();
    theirs.delete_address("b", address).unwrap();
    assert_eq!(theirs.routes().unwrap(), []);

    assert_eq!(ours.set_up("nosuch").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(ours.create_bridge("a name with spaces").unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(ours.find("sixteen-letters-").unwrap_err().kind(), ErrorKind::InvalidInput);
    ours.delete_all(["a", "nosuch", "br"]).unwrap();
    assert_eq!((link_names(&here), link_names(&there)), (vec![], vec![]));
    ours.delete("a").unwrap();
}

#[test]
fn a_table_is_replaced_whole_or_not_at_all() {
    if !possible() {
        return;
    }
    let namespace = NetNs::anonymous().unwrap();
    let mut tables = Tables::open(&namespace).unwrap();
    let mut table = Table::new(Family::Ip, "test", "a comment".into());
    let many: Vec<Ipv4Addr> = (0..1000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n)).collect();
    table.balance("some", &many, Some(Protocol::Tcp), Some(80));
    table.sets.insert("addresses".into(), Set::Addresses(many));
    table.sets.insert("ports".into(), Set::Ports(vec![80, 443]));
    let every = vec![
        Match::New,
        Match::DestinationIn("addresses".into()),
        Match::Protocol(Protocol::Tcp),
        Match::PortIn("ports".into()),
        Match::Source("10.0.0.0/8".parse().unwrap()),
        Match::DestinationIsLocal,
    ];
    table.hook("in", Kind::Filter, Point::Prerouting, 0, vec![Rule::new(every, Action::Drop)]);
    tables.replace(&table).unwrap();
    assert_eq!(tables.list().unwrap(), ["test"]);

    let mut broken = table.clone();
    broken.hook("in", Kind::Filter, Point::Prerouting, 0, vec![Rule::new([], Action::ChainOfPort("nosuch".into()))]);
    let error = tables.replace(&broken).unwrap_err().to_string();
    assert!(error.contains("nosuch"), "{error}");
    assert_eq!(tables.list().unwrap(), ["test"], "the old one stays");
    tables.replace(&table).unwrap();
    tables.delete(&["test"]).unwrap();
    tables.delete(&["test"]).unwrap();
    assert_eq!(tables.list().unwrap(), Vec::<String>::new());
}
