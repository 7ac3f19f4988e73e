use std::net::Ipv4Addr;
use std::sync::Arc;

use deploy::model::{IpamConfig, PortConfig, TaskSpec};

use super::super::record::{NetworkOf, Restart};
use super::*;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

fn named(name: &str) -> NetworkSpec {
    NetworkSpec { name: name.into(), driver: "bridge".into(), ..NetworkSpec::default() }
}

fn asking(name: &str, subnet: &str) -> NetworkSpec {
    let ipam = IpamConfig { subnet: subnet.into(), ..IpamConfig::default() };
    NetworkSpec { ipam: vec![ipam], ..named(name) }
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// Networks with these specs; the first one's id is all `1`, the second one's all `2` …
fn networks(specs: &[NetworkSpec]) -> LocalNetworks {
    let mut networks = LocalNetworks::new(HOST);
    for (spec, digit) in specs.iter().zip('1'..) {
        let planned = networks.plan(spec.clone(), &Around::default(), id(digit), Timestamp::default());
        networks.add(planned.unwrap().0).unwrap();
    }
    networks
}

fn container(digit: char, name: &str, network: &str) -> Record {
    let wish = NetworkAttachmentConfig {
        target: network.into(),
        aliases: vec!["db".into(), name.into()],
        ..NetworkAttachmentConfig::default()
    };
    Record {
        id: id(digit),
        name: name.into(),
        spec: TaskSpec { networks: vec![wish], ..TaskSpec::default() },
        ..Record::default()
    }
}

fn join(networks: &mut LocalNetworks, container: &mut Record) -> Result<String, LocalError> {
    let wish = container.spec.networks[0].clone();
    let attachment = networks.join(&wish, container, std::iter::empty()).unwrap()?;
    let address = attachment.address.clone();
    container.attachments = vec![attachment];
    Ok(address)
}

fn remove(networks: &mut LocalNetworks, digit: char) -> Result<Known, LocalError> {
    networks.remove(&id(digit), std::iter::empty())
}

#[test]
fn a_network_stays_for_those_that_are_started_again() {
    let mut all = networks(&[asking("net", "172.20.0.0/24")]);
    let mut waits = Record { wanted: true, ..container('a', "waits", "net") };
    waits.set_restart(Restart::Always);
    let of_cluster = {
        let mut record = waits.clone();
        record.set_network_of(NetworkOf::Cluster);
        record
    };
    let elsewhere = Record { spec: container('b', "b", "other").spec, ..waits.clone() };
    let stopped = Record { stopped: true, ..waits.clone() };
    for target in ["net", &id('1')] {
        let one = Record { spec: container('a', "a", target).spec, ..waits.clone() };
        let refused = all.remove(&id('1'), [&stopped, &one].into_iter()).unwrap_err().to_string();
        assert!(refused.contains("active endpoints (name:\"waits\" id:\"aaaaaaaaaaaa\")"), "{refused}");
    }
    // What is counted twice is one.
    join(&mut all, &mut waits).unwrap();
    let Err(LocalError::InUse { users, .. }) = all.remove(&id('1'), [&waits].into_iter()) else { panic!("{all:?}") };
    assert_eq!(users.len(), 1);
    all.leave(&waits.id);
    assert!(all.remove(&id('1'), [&of_cluster, &elsewhere, &stopped].into_iter()).is_ok());
}

#[test]
fn an_address_waits_for_who_asks_for_it() {
    let mut all = networks(&[asking("net", "172.20.0.0/29")]);
    let asks = |digit, address: &str, network: &str| Record {
        addresses: [(network.to_owned(), address.to_owned())].into(),
        ..container(digit, "c", network)
    };
    let others = [asks('d', "172.20.0.2", "net"), asks('e', "172.20.0.3", "other"), asks('f', "172.20.0.4", "net")];
    let mut joins = |record: &Record| {
        let wish = record.spec.networks[0].clone();
        all.join(&wish, record, others.iter()).unwrap().map(|joined| joined.address)
    };
    assert_eq!(joins(&container('a', "a", "net")).unwrap(), "172.20.0.3/29");
    assert_eq!(joins(&others[2]).unwrap(), "172.20.0.4/29");
    assert_eq!(joins(&others[0]).unwrap(), "172.20.0.2/29");
}

#[test]
fn a_lost_network_is_known_by_its_id() {
    let mut all = networks(&[asking("net", "172.20.0.0/29")]);
    let mut web = container('a', "web", "net");
    assert!(!all.has_lost_one_of(&web));
    join(&mut all, &mut web).unwrap();
    assert!(!all.has_lost_one_of(&web));
    all.lose(id('1'));
    assert!(all.has_lost_one_of(&web));
    assert_eq!(all.subnets(), ["172.20.0.0/29".parse().unwrap()]);
}

#[test]
fn containers_come_and_go() {
    let mut all = networks(&[asking("net", "172.20.0.0/29"), named("other")]);
    assert_eq!(all.networks(), [], "nobody is on one");
    let mut web = container('a', "web", "net");
    web.spec.container.hostname = "front".into();
    assert_eq!(join(&mut all, &mut web).unwrap(), "172.20.0.2/29");
    let [net] = &all.networks()[..] else { panic!("{all:?}") };
    assert_eq!((net.name.as_str(), net.vni, net.local, net.internal, net.ingress), ("net", 1, true, false, false));
    assert_eq!(net.stations, [Station { address: Ipv4Addr::new(172, 20, 0, 2), host: HOST }]);
    let [service] = &net.services[..] else { panic!("{net:?}") };
    assert_eq!(service.name, "aaaaaaaaaaaa");
    assert_eq!(service.aliases, ["web", "db", "front"]);
    let [endpoint] = &service.endpoints[..] else { panic!("{service:?}") };
    assert_eq!((endpoint.task.as_str(), endpoint.name.as_str(), endpoint.serving), (&*id('a'), "web", true));

    let net = Arc::clone(net);
    let mut box_ = container('b', "box", "other");
    join(&mut all, &mut box_).unwrap();
    assert!(Arc::ptr_eq(&net, &all.networks()[0]), "one network's change is not another's");
    let mut more: Vec<Record> = "cdef".chars().zip(["c", "d", "e", "f"]).map(|(d, n)| container(d, n, "net")).collect();
    let addresses: Vec<String> = more.iter_mut().map(|record| join(&mut all, record).unwrap()).collect();
    assert_eq!(addresses, [3, 4, 5, 6].map(|last| format!("172.20.0.{last}/29")));
    let dry = join(&mut all, &mut container('9', "late", "net")).unwrap_err().to_string();
    assert_eq!(dry, format!("no available IPv4 addresses on this network's address pools: net ({})", id('1')));
    all.leave(&more[1].id);
    assert_eq!(join(&mut all, &mut container('9', "late", "net")).unwrap(), "172.20.0.4/29");

    let refused = remove(&mut all, '2').unwrap_err().to_string();
    assert!(refused.contains("network other has active endpoints (name:\"box\" id:\"bbbbbbbbbbbb\")"), "{refused}");
    all.leave(&box_.id);
    all.leave(&box_.id);
    assert_eq!(all.networks().len(), 1);
    let other = remove(&mut all, '2').unwrap();
    let joined = all.join(&box_.spec.networks[0], &box_, std::iter::empty());
    assert!(joined.is_none() && remove(&mut all, '2').is_err());
    all.put_back(other);
    assert!(join(&mut all, &mut box_).is_ok());
}

#[test]
fn what_ran_before_has_what_it_had() {
    let specs = [asking("net", "172.20.0.0/24")];
    let mut before = networks(&specs);
    let (mut web, mut db) = (container('a', "web", "net"), container('b', "db", "net"));
    join(&mut before, &mut web).unwrap();
    join(&mut before, &mut db).unwrap();
    let mut after = networks(&specs);
    after.rejoin(&db);
    after.rejoin(&web);
    assert_eq!(after.networks(), before.networks());
    // Two records with one address: whoever comes first has it.
    let mut thief = container('c', "thief", "net");
    thief.attachments.clone_from(&db.attachments);
    after.rejoin(&thief);
    assert_eq!(after.networks(), before.networks());
    let mut lost = container('d', "lost", "net");
    lost.attachments = vec![NetworkAttachment { network: NetworkId::new("gone"), ..NetworkAttachment::default() }];
    after.rejoin(&lost);
    assert_eq!(join(&mut after, &mut container('e', "new", "net")).unwrap(), "172.20.0.4/24");
}

#[test]
fn addresses_that_are_asked_for() {
    let mut all = networks(&[asking("net", "172.20.0.0/24"), named("chosen")]);
    let mut asks = |network: &str, digit, address: &str| {
        let addresses = [(network.to_owned(), address.to_owned())].into();
        let mut record = Record { addresses, ..container(digit, "c", network) };
        let before = all.check(&record.spec.networks[0], &record).unwrap();
        (before.map_err(|e| e.to_string()), join(&mut all, &mut record).map_err(|e| e.to_string()))
    };
    assert_eq!(asks("net", 'a', "172.20.0.77"), (Ok(()), Ok("172.20.0.77/24".into())));
    let (before, then) = asks("net", 'b', "172.20.0.77");
    assert_eq!(before, Ok(()), "it may be free by the time of its start");
    assert!(then.unwrap_err().contains("Address already in use"));
    for (network, address, word) in [
        ("net", "172.20.1.7", "not in subnet 172.20.0.0/24"),
        ("net", "172.20.0.1", "set aside"),
        ("chosen", "172.23.0.7", "user configured subnets"),
    ] {
        let (before, then) = asks(network, 'c', address);
        assert!(before.unwrap_err().contains(word) && then.unwrap_err().contains(word), "{address}");
    }
}

#[test]
fn names_ids_and_their_beginnings() {
    let all = networks(&[named("net"), named("2".repeat(12).as_str())]);
    let found = |wanted: &str| all.find(wanted).map(|record| record.id.clone());
    assert_eq!([found("net"), found(&id('1')), found(&"1".repeat(12))], [const { Some('1') }; 3].map(|d| d.map(id)));
    assert_eq!([found("ne"), found(""), found(&"1".repeat(11)), found("3333333333333")], [const { None::<String> }; 4]);
    assert_eq!(found(&"2".repeat(12)), Some(id('2')));
}

#[test]
fn what_cannot_be_is_refused() {
    let all = networks(&[asking("net", "172.20.0.0/24")]);
    let plan = |spec: NetworkSpec| {
        let planned = all.plan(spec, &Around::default(), id('9'), Timestamp::default());
        planned.map(|(record, _)| record).map_err(|error| error.to_string())
    };
    let with = |name: &str, value: &str| NetworkSpec {
        driver_options: [(name.to_owned(), value.to_owned())].into(),
        ..named("new")
    };
    for (spec, word) in [
        (named("net"), "network with name net already exists"),
        (named(""), "name must be provided"),
        (named("host"), "predefined host network"),
        (named("default"), "predefined default network"),
        (named(&id('a')), "looks like an id"),
        (asking("new", "172.20.0.128/25"), "Pool overlaps"),
        (asking("new", "172.20.0.1/24"), "invalid subnet"),
        (with("com.docker.network.bridge.name", "br0"), "com.docker.network.bridge.name"),
        (with("com.docker.network.bridge.enable_icc", "false"), "enable_icc"),
        (with("encrypted", ""), "cannot be encrypted"),
        (with("com.docker.network.driver.mtu", "7"), "invalid com.docker.network.driver.mtu"),
    ] {
        let refused = plan(spec).unwrap_err();
        assert!(refused.contains(word), "{refused} has no {word}");
    }
    let fine = plan(with("com.docker.network.bridge.enable_icc", "true")).unwrap();
    assert_eq!((fine.number, fine.subnet.as_str(), fine.gateway.as_str()), (2, "172.23.0.0/20", "172.23.0.1"));
    let mtu = plan(with("com.docker.network.driver.mtu", "1400")).unwrap();
    assert_eq!(overlays(&mtu, mtu.frame().unwrap(), HOST, &BTreeMap::new()).unwrap().mtu, Some(1400));
    let mut internal = networks(&[NetworkSpec { internal: true, ..named("inner") }]);
    let port = PortConfig { target: 80, ..PortConfig::default() };
    let mut published = Record { ports: vec![port], ..container('a', "web", "inner") };
    let refused = join(&mut internal, &mut published).unwrap_err().to_string();
    assert!(refused.contains("internal"), "{refused}");
}

#[test]
fn records_that_make_no_sense_are_none() {
    let mut all = networks(&[asking("net", "172.20.0.0/24")]);
    let good = all.plan(named("new"), &Around::default(), id('9'), Timestamp::default()).unwrap().0;
    for bad in [
        NetworkRecord { id: "9".into(), ..good.clone() },
        NetworkRecord { number: 0, ..good.clone() },
        NetworkRecord { number: NUMBERS_END, ..good.clone() },
        NetworkRecord { number: 1, ..good.clone() },
        NetworkRecord { subnet: "172.20.0.0/28".into(), gateway: "172.20.0.1".into(), ..good.clone() },
        NetworkRecord { subnet: "nonsense".into(), ..good.clone() },
        NetworkRecord { gateway: "10.0.0.1".into(), ..good.clone() },
        NetworkRecord { spec: named("net"), ..good.clone() },
        NetworkRecord { spec: named(""), ..good.clone() },
    ] {
        assert!(all.add(bad.clone()).is_err(), "{bad:?}");
    }
    assert_eq!(all.add(good), Ok(()));
}
