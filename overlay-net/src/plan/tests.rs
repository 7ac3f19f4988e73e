//! The planner against a fake kernel (`Picture::apply`), and the tables as text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use proptest::prelude::*;

use super::attachment::{Unfit, choose_address, choose_egress, gateway, has_way_out, interfaces};
use super::balance::{Balance, HostSide, Return, Target};
use super::names;
use super::picture::{Facts, HostPort, Operation, Picture, Port, Switch, Tunnel};
use super::ruleset::{Action, Match, Rule, Set};
use crate::config::{
    Attachment, Desired, Endpoint, EndpointConfig, Network, PortMode, Protocol, PublishedPort, Service, Station,
};
use crate::kernel::mac_of;

const ME: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
const THIRD: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 3);
const FACTS: Facts = Facts { data_path_addr: ME, data_path_port: 4789, underlay: 1500, seals: true };

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 9, last)
}

fn network(id: &str, vni: u32) -> Network {
    Network {
        id: id.into(),
        name: id.into(),
        vni,
        subnet: "10.0.9.0/24".parse().unwrap(),
        subnet6: None,
        encrypted: false,
        gateway: address(1),
        internal: false,
        ingress: false,
        local: false,
        mtu: None,
        host_address: None,
        stations: vec![],
        services: vec![],
    }
}

fn service(vip: Option<Ipv4Addr>, endpoints: &[(u8, bool)]) -> Arc<Service> {
    let endpoint = |(last, serving): &(u8, bool)| Endpoint {
        task: format!("t{last}"),
        name: format!("web.{last}"),
        address: address(*last),
        names: vec![],
        serving: *serving,
    };
    let endpoints = endpoints.iter().map(endpoint).collect();
    Arc::new(Service { name: "web".into(), aliases: vec![], vip, endpoints, ports: vec![] })
}

fn desired(networks: Vec<Network>) -> Desired {
    Desired {
        revision: 1,
        networks: networks.into_iter().map(Arc::new).collect(),
        ports: vec![],
        sealing: None,
        taken: Vec::new(),
    }
}

fn port(task: &str, network: &str, vni: u32) -> Port {
    Port { task: task.into(), network: network.into(), address: address(9), bridge: names::bridge(vni), up: true }
}

/// Plans and applies on the fake kernel; checks that the result is what was wanted and that nothing is left to do.
#[track_caller]
fn converge(observed: &Picture, wanted: &Picture) -> Vec<Operation> {
    let operations = observed.operations_to(wanted);
    let mut after = observed.clone();
    for operation in &operations {
        after.apply(operation);
    }
    assert_eq!(&after, wanted, "after {operations:#?}");
    assert_eq!(after.operations_to(wanted), [], "a second plan is empty");
    operations
}

#[test]
fn stations_of_other_hosts_are_wired_and_our_own_are_not() {
    let mut net = network("net", 5);
    net.stations = vec![
        Station { address: address(2), host: ME },
        Station { address: address(3), host: PEER },
        Station { address: address(4), host: THIRD },
    ];
    let wanted = Picture::wanted(&desired(vec![net]), &FACTS, &Picture::default());
    let switch = &wanted.switches[&5];
    assert_eq!(switch.hosts, BTreeMap::from([(mac_of(address(3)), PEER), (mac_of(address(4)), THIRD)]));
    assert_eq!(switch.neighbours.len(), 2);
    converge(&Picture::default(), &wanted);
}

#[test]
fn a_network_that_contains_hosts_gets_no_place_for_this_one() {
    let mut net = network("net", 5);
    (net.ingress, net.host_address) = (true, Some(address(200)));
    net.stations = vec![Station { address: address(3), host: PEER }];
    let place = |net: &Network| Picture::wanted(&desired(vec![net.clone()]), &FACTS, &Picture::default()).host;
    assert_eq!(place(&net).map(|host| host.vni), Some(5));
    net.stations.push(Station { address: address(4), host: address(9) });
    assert_eq!(net.swallows(), Some(address(9)));
    assert_eq!(place(&net), None);
}

#[test]
fn a_station_that_moves_is_one_operation() {
    let mut net = network("net", 5);
    net.stations = vec![Station { address: address(3), host: PEER }];
    let before = Picture::wanted(&desired(vec![net.clone()]), &FACTS, &Picture::default());
    net.stations[0].host = THIRD;
    let after = Picture::wanted(&desired(vec![net]), &FACTS, &before);
    let moved = Operation::SetHost { vni: 5, mac: mac_of(address(3)), host: THIRD };
    assert_eq!(converge(&before, &after), [moved]);
}

#[test]
fn a_network_that_is_no_longer_desired_stays_while_a_task_is_linked() {
    let mut observed = Picture::wanted(&desired(vec![network("net", 5)]), &FACTS, &Picture::default());
    observed.ports.insert("p1".into(), port("t1", "net", 5));
    let wanted = Picture::wanted(&desired(vec![]), &FACTS, &observed);
    assert_eq!(observed.operations_to(&wanted), []);
    observed.ports.clear();
    let wanted = Picture::wanted(&desired(vec![]), &FACTS, &observed);
    assert_eq!(converge(&observed, &wanted), [Operation::DeleteTunnel(5), Operation::DeleteSwitch(5)]);
}

#[test]
fn a_vni_given_to_another_network_takes_nothing_along() {
    let mut observed = Picture::wanted(&desired(vec![network("old", 5)]), &FACTS, &Picture::default());
    observed.ports.insert("p1".into(), port("t1", "old", 5));
    let wanted = Picture::wanted(&desired(vec![network("new", 5)]), &FACTS, &observed);
    let operations = converge(&observed, &wanted);
    assert!(operations.contains(&Operation::DeletePort("p1".into())), "{operations:?}");
}

#[test]
fn a_smaller_underlay_makes_the_tunnel_anew_with_its_entries() {
    let mut net = network("net", 5);
    net.stations = vec![Station { address: address(3), host: PEER }];
    let all = desired(vec![net]);
    let before = Picture::wanted(&all, &FACTS, &Picture::default());
    let after = Picture::wanted(&all, &Facts { underlay: 1400, ..FACTS }, &before);
    let operations = converge(&before, &after);
    assert_eq!(operations[0], Operation::DeleteTunnel(5));
    assert!(operations.contains(&Operation::SetHost { vni: 5, mac: mac_of(address(3)), host: PEER }));
    assert!(!operations.iter().any(|o| matches!(o, Operation::CreateSwitch { .. } | Operation::SetNeighbour { .. })));
}

#[test]
fn a_network_that_ends_at_each_host_has_no_tunnel_and_nobody_elsewhere() {
    let mut net = network("net", 5);
    net.local = true;
    net.stations = vec![Station { address: address(3), host: PEER }, Station { address: address(4), host: ME }];
    let endpoint = |task: &str, last| Endpoint {
        task: task.into(),
        name: task.into(),
        address: address(last),
        names: Vec::new(),
        serving: true,
    };
    let endpoints = vec![endpoint("there", 3), endpoint("here", 4)];
    let vip = Some(address(2));
    net.services =
        vec![Arc::new(Service { name: "web".into(), aliases: Vec::new(), vip, endpoints, ports: Vec::new() })];
    let mut beside = network("other", 6);
    beside.stations.clone_from(&net.stations);
    let all = desired(vec![net, beside]).localized(ME);
    let of = |id: &str| all.network(id).unwrap();
    assert_eq!(of("net").stations, [Station { address: address(4), host: ME }]);
    assert_eq!(of("net").services[0].endpoints, [endpoint("here", 4)]);
    assert_eq!(of("other").stations.len(), 2);
    let picture = Picture::wanted(&all, &FACTS, &Picture::default());
    assert_eq!(picture.switches[&5], Switch { network: "net".into(), up: true, ..Switch::default() });
    assert!(picture.switches[&6].tunnel.is_some());
    let made = converge(&Picture::default(), &picture);
    assert!(!made.iter().any(|operation| matches!(operation, Operation::CreateTunnel { vni: 5, .. })), "{made:?}");
    assert_eq!(of("net").room().mtu(1500), 1500);
    // A service whose tasks are all elsewhere has none here.
    assert_eq!(desired(vec![of("net").clone()]).localized(PEER).networks[0].services[0].endpoints, []);
}

#[test]
fn a_network_uses_no_more_of_the_underlay_than_it_is_made_for() {
    let mut net = network("net", 5);
    (net.ingress, net.host_address) = (true, Some(address(9)));
    for (asked, underlay, expected, lacks) in [
        (None, 1500, 1450, None),
        (Some(1400), 1500, 1350, None),
        (Some(1500), 1500, 1450, None),
        (Some(9000), 1500, 1450, Some(9000)),
        (Some(40), 1500, 0, None),
    ] {
        net.mtu = asked;
        let picture = Picture::wanted(&desired(vec![net.clone()]), &Facts { underlay, ..FACTS }, &Picture::default());
        let tunnel = picture.switches[&5].tunnel.unwrap().mtu;
        assert_eq!((tunnel, picture.host.unwrap().mtu), (expected, expected), "{asked:?}");
        assert_eq!(net.room().lacks(underlay), lacks, "{asked:?}");
    }
    assert_eq!(crate::config::Room::WHOLE.mtu(1500), 1500);
}

fn switch_strategy() -> impl Strategy<Value = Switch> {
    let tunnel = proptest::option::weighted(
        0.9,
        (0u8..2, 1400u32..1402, any::<bool>()).prop_map(|(port, mtu, sealed)| Tunnel {
            local: ME,
            port: 4789 + u16::from(port),
            mtu,
            sealed,
        }),
    );
    let stations = proptest::collection::btree_map(1u8..6, (0u8..2, any::<[bool; 3]>()), 0..5);
    ("[ab]", any::<bool>(), tunnel, stations).prop_map(|(network, up, tunnel, stations)| {
        let mut switch = Switch { network, up, tunnel, ..Switch::default() };
        for (last, (host, [in_hosts, in_forwards, in_neighbours])) in stations {
            let mac = mac_of(address(last));
            // Both tables about a device go with it.
            if in_hosts && tunnel.is_some() {
                switch.hosts.insert(mac, if host == 0 { PEER } else { THIRD });
            }
            if in_forwards && tunnel.is_some() {
                switch.forwards.insert(mac);
            }
            if in_neighbours {
                switch.neighbours.insert(address(last).into(), mac);
            }
        }
        switch
    })
}

fn picture_strategy() -> impl Strategy<Value = Picture> {
    let switches = proptest::collection::btree_map(1u32..4, switch_strategy(), 0..3);
    let ports = proptest::collection::btree_map("p[1-4]", ("[ab]", 0u32..4, any::<bool>()), 0..4);
    let host = proptest::option::of((0usize..3, 0u8..2));
    (switches, ports, host).prop_map(|(switches, ports, host)| {
        let connected = |vni: u32| if switches.contains_key(&vni) { names::bridge(vni) } else { String::new() };
        let ports = ports
            .into_iter()
            .map(|(name, (network, vni, up))| {
                let port = Port { task: "t".into(), network, address: address(9), bridge: connected(vni), up };
                (name, port)
            })
            .collect();
        let host = host.and_then(|(place, last)| {
            let vni = *switches.keys().nth(place)?;
            Some(HostPort { vni, address: Ipv4Net::new(address(last), 24).unwrap(), address6: None, mtu: 1450 })
        });
        Picture { switches, ports, host }
    })
}

fn desired_strategy() -> impl Strategy<Value = Desired> {
    let stations = proptest::collection::vec((1u8..6, 0u8..3), 0..6);
    proptest::collection::btree_map(1u32..4, ("[ab]", stations, any::<bool>()), 0..3).prop_map(|networks| {
        let mut seen = BTreeSet::new();
        let networks = networks.into_iter().filter(|(_, (id, ..))| seen.insert(id.clone())).enumerate();
        desired(
            networks
                .map(|(number, (vni, (id, stations, ingress)))| {
                    let mut net = network(&id, vni);
                    net.ingress = ingress && number == 0;
                    net.host_address = net.ingress.then(|| address(200));
                    let host = |number| [ME, PEER, THIRD][usize::from(number)];
                    let mut used = BTreeSet::new();
                    net.stations = stations
                        .into_iter()
                        .filter(|(last, _)| used.insert(*last))
                        .map(|(last, at)| Station { address: address(last), host: host(at) })
                        .collect();
                    net
                })
                .collect(),
        )
    })
}

proptest! {
    #[test]
    fn a_plan_leads_from_anything_to_what_is_desired(observed in picture_strategy(), desired in desired_strategy()) {
        let wanted = Picture::wanted(&desired, &FACTS, &observed);
        converge(&observed, &wanted);
        // What is wanted does not depend on how often one asks.
        prop_assert_eq!(Picture::wanted(&desired, &FACTS, &wanted), wanted);
    }

    #[test]
    fn every_name_of_ours_fits_and_is_known_again(task in "[!-~]{1,64}", id in "[!-~]{1,64}", vni in 1u32..1 << 24) {
        for name in [names::port(&task, &id), names::bridge(vni), names::tunnel(vni)] {
            prop_assert!(name.len() <= 15, "{}", name);
        }
        prop_assert_eq!(names::vni_of(&names::bridge(vni)), Some(vni));
        let alias = names::port_alias(&task, &id, PEER);
        prop_assert!(alias.len() <= 255);
        prop_assert_eq!(names::port_of(&alias), Some((task.as_str(), id.as_str(), PEER)));
    }

    #[test]
    fn suspicion_never_empties_a_service(
        endpoints in proptest::collection::btree_map(2u8..30, (0u8..3, any::<bool>()), 0..8),
        suspects in proptest::collection::btree_set(0u8..3, 0..4),
    ) {
        let host = |number: u8| [ME, PEER, THIRD][usize::from(number)];
        let mut net = network("net", 5);
        net.stations =
            endpoints.iter().map(|(last, (at, _))| Station { address: address(*last), host: host(*at) }).collect();
        let all: Vec<(u8, bool)> = endpoints.iter().map(|(last, (_, serving))| (*last, *serving)).collect();
        net.services = vec![service(Some(address(200)), &all)];
        let suspects = suspects.into_iter().map(host).collect();
        let balance = Balance::new(&desired(vec![net]), &suspects);
        let chosen = &balance.vips["net"][&address(200)];
        let serving: Vec<Ipv4Addr> = all.iter().filter(|e| e.1).map(|e| address(e.0)).collect();
        prop_assert_eq!(chosen.is_empty(), serving.is_empty());
        prop_assert!(chosen.iter().all(|address| serving.contains(address)));
        let trusted = |a: &Ipv4Addr| !suspects.contains(&host(endpoints[&a.octets()[3]].0));
        prop_assert!(!serving.iter().any(&trusted) || chosen.iter().all(trusted));
    }
}

#[test]
fn one_of_many_services_changes_by_elements_alone() {
    let rules = |endpoints: &[(u8, bool)], others: u8| {
        let mut net = network("net", 5);
        net.services = (100..100 + others).map(|vip| service(Some(address(vip)), &[(2, true), (3, true)])).collect();
        net.services.push(service(Some(address(250)), endpoints));
        let balance = Balance::new(&desired(vec![net]), &BTreeSet::new());
        let table = balance.task_table(&["net".into()], None);
        (table.chains, table.sets.into_keys().collect::<Vec<_>>())
    };
    let usual = [(2, true), (3, true)];
    let changed: [&[(u8, bool)]; 3] = [&[(2, true)], &[(2, true), (3, true), (4, true)], &[(2, false)]];
    for endpoints in changed {
        assert_eq!(rules(endpoints, 100), rules(&usual, 100));
        // A few rules are walked in no time, and need not be there.
        assert_ne!(rules(endpoints, 10), rules(&usual, 10));
    }
}

#[test]
fn the_table_of_a_task_has_its_own_networks_only() {
    let mut one = network("one", 5);
    one.services = vec![service(Some(address(200)), &[(2, true), (3, true), (4, false)])];
    let mut two = network("two", 6);
    two.services = vec![service(Some(address(201)), &[(5, false)])];
    let balance = Balance::new(&desired(vec![one, two]), &BTreeSet::new());

    let table = balance.task_table(&["one".into()], None);
    let backends = [(address(200), vec![address(2), address(3)])];
    assert_eq!(table.sets["backends-of-2"], Set::BackendsOf(backends.into()));
    assert!(!table.chains.contains_key("refuse"), "{table}");
    assert_eq!(table.chains["translate"].rules.len(), 1);

    let table = balance.task_table(&["two".into()], None);
    assert_eq!(table.sets["unserved"], Set::Addresses(vec![address(201)]));
    assert_eq!(table.sets.keys().collect::<Vec<_>>(), ["unserved"], "{table}");
}

#[test]
fn published_ports_are_in_the_host_table_once_there_is_somewhere_to_go() {
    let ingress = |published, backends| PublishedPort {
        published,
        target: 80,
        protocol: Protocol::Tcp,
        mode: PortMode::Ingress,
        backends,
        task: None,
    };
    let own = PublishedPort {
        mode: PortMode::Host,
        protocol: Protocol::Udp,
        task: Some("t9".into()),
        ..ingress(5353, vec![])
    };
    let all = Desired {
        ports: vec![ingress(8080, vec![address(2), address(3)]), ingress(8081, vec![]), own],
        ..desired(vec![])
    };
    let balance = Balance::new(&all, &BTreeSet::new());
    let target = Target { port: 80, backends: vec![address(2), address(3)] };
    assert_eq!(balance.ports, BTreeMap::from([((Protocol::Tcp, 8080), target)]));

    assert_eq!(balance.host_table("n1", &HostSide::default()), None);
    let egress = Some(("she-n1".to_owned(), "172.30.0.0/16".parse().unwrap()));
    let ingress = Some(("shi-n1".to_owned(), "10.0.9.0/24".parse().unwrap()));
    let side = HostSide { ingress, egress, ..HostSide::default() };
    let table = balance.host_table("n1", &side).unwrap();
    assert!(table.sets.contains_key("tcp-ports") && !table.sets.contains_key("udp-ports"), "{table}");

    let tasks = BTreeMap::from([("t9".to_owned(), Ipv4Addr::new(172, 30, 0, 5))]);
    let table = balance.host_table("n1", &HostSide { tasks, ..side }).unwrap();
    let rule = &table.chains["udp-5353"].rules[0];
    assert_eq!(rule.matches, [Match::Protocol(Protocol::Udp)]);
    assert_eq!(rule.action, Action::Translate { address: Ipv4Addr::new(172, 30, 0, 5), port: Some(80) });
}

#[test]
fn who_keeps_the_own_address_into_the_mesh() {
    let side = |replies| HostSide {
        ingress: Some(("shi-n1".to_owned(), "10.0.9.0/24".parse().unwrap())),
        egress: Some(("she-n1".to_owned(), "172.30.0.0/16".parse().unwrap())),
        replies,
        tunnel: Some(4789),
        ..HostSide::default()
    };
    let hidden = |replies| {
        let table = Balance::default().host_table("n1", &side(replies)).unwrap();
        let into_mesh = |rule: &&Rule| rule.matches[0] == Match::To("shi-n1".into());
        let rules: Vec<_> = table.chains["source"].rules.iter().filter(into_mesh).cloned().collect();
        rules.into_iter().map(|rule| rule.matches[2..].to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(hidden(Return::Masquerade), [[]], "everybody");
    let source = |net: &str| vec![Match::Source(net.parse().unwrap())];
    let protocol = |protocol| vec![Match::Protocol(protocol)];
    assert_eq!(
        hidden(Return::Remember),
        [source("127.0.0.0/8"), source("172.30.0.0/16"), source("10.0.9.0/24"), protocol(Protocol::Sctp)]
    );
}

#[test]
fn what_a_crash_left_half_made_is_removed() {
    let nobody = Port { task: String::new(), network: String::new(), address: ME, bridge: String::new(), up: true };
    let observed = Picture { ports: BTreeMap::from([("p1".into(), nobody)]), ..Picture::default() };
    let wanted = Picture::wanted(&desired(vec![]), &FACTS, &observed);
    assert_eq!(converge(&observed, &wanted), [Operation::DeletePort("p1".into())]);
}

fn attachment(network: &str, last: u8) -> Attachment {
    Attachment { network: network.into(), address: address(last), aliases: vec![] }
}

fn config(attachments: Vec<Attachment>) -> EndpointConfig {
    EndpointConfig { task: "t1".into(), hostname: "h".into(), attachments, dns_search: vec![], dns_servers: vec![] }
}

#[test]
fn interfaces_come_in_order_and_the_way_out_is_last() {
    let all = desired(vec![network("one", 5), network("two", 6)]);
    let task = config(vec![attachment("two", 7), attachment("one", 8)]);
    let way_out = "172.30.0.7/16".parse().unwrap();
    let found = interfaces(&all, &task, Some(way_out)).unwrap();
    let summary: Vec<_> = found.iter().map(|i| (i.name.as_str(), i.bridge.as_str(), i.address.to_string())).collect();
    assert_eq!(
        summary,
        [
            ("eth0", "br-6", "10.0.9.7/24".to_owned()),
            ("eth1", "br-5", "10.0.9.8/24".to_owned()),
            ("eth2", "egress", "172.30.0.7/16".to_owned())
        ]
    );
    assert_eq!(found[0].mac, [2, 0x42, 10, 0, 9, 7]);
    let unknown = interfaces(&all, &config(vec![attachment("three", 7)]), None);
    assert_eq!(unknown, Err(Unfit::Unknown("three".into())));
    let mut far = attachment("one", 7);
    far.address = PEER;
    assert!(matches!(interfaces(&all, &config(vec![far]), None), Err(Unfit::Outside(..))));
}

#[test]
fn only_tasks_on_internal_networks_alone_have_no_way_out() {
    let (mut internal, mut ingress) = (network("internal", 6), network("ingress", 7));
    (internal.internal, ingress.ingress) = (true, true);
    let all = desired(vec![network("open", 5), internal, ingress]);
    for (networks, expected) in [
        (&[][..], true),
        (&["open"], true),
        (&["ingress"], true),
        (&["internal"], false),
        (&["internal", "ingress"], false),
        (&["internal", "open"], true),
    ] {
        let attachments = networks.iter().map(|id| attachment(id, 7)).collect();
        assert_eq!(has_way_out(&all, &config(attachments)), expected, "{networks:?}");
    }
}

#[test]
fn the_way_out_avoids_what_is_taken() {
    let nets = |all: &[&str]| all.iter().map(|net| net.parse().unwrap()).collect::<Vec<Ipv4Net>>();
    assert_eq!(choose_egress(&[]), Some("172.30.0.0/16".parse().unwrap()));
    let taken = nets(&["172.30.5.0/24", "172.29.0.0/16", "172.16.0.0/12"]);
    assert_eq!(choose_egress(&taken), Some("10.200.0.0/16".parse().unwrap()));
    assert_eq!(choose_egress(&nets(&["0.0.0.0/0"])), None);
    // Nor what networks will have that nobody is on at this moment.
    let idle = Desired { taken: nets(&["172.30.0.0/24", "172.29.7.0/24"]), ..desired(vec![]) };
    assert_eq!(choose_egress(&idle.subnets()), Some("172.28.0.0/16".parse().unwrap()));
    let subnet = nets(&["172.30.0.0/29"])[0];
    assert_eq!(gateway(subnet), Ipv4Addr::new(172, 30, 0, 1));
    let given = |last: Option<u8>| {
        let taken = [Ipv4Addr::new(172, 30, 0, 2)].into_iter();
        choose_address(subnet, taken, last.map(|last| Ipv4Addr::new(172, 30, 0, last))).unwrap().to_string()
    };
    assert_eq!(given(None), "172.30.0.3/29");
    // Not again what was given a moment ago, as long as there are others.
    assert_eq!(given(Some(3)), "172.30.0.4/29");
    assert_eq!(given(Some(6)), "172.30.0.3/29");
    assert_eq!(choose_address(subnet, subnet.hosts(), None), None);
}

#[test]
fn what_cannot_be_put_in_force_is_left_out_alone() {
    let sound = || {
        let (mut one, mut two) = (network("net", 5), network("other", 6));
        one.stations = vec![Station { address: address(3), host: PEER }];
        one.services = vec![service(Some(address(200)), &[(3, true)])];
        two.ingress = true;
        two.host_address = Some(address(4));
        let port = PublishedPort {
            published: 80,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PortMode::Ingress,
            backends: vec![address(3)],
            task: None,
        };
        Desired { ports: vec![port], ..desired(vec![one, two]) }
    };
    let port = |published, target, mode, task: Option<&str>| PublishedPort {
        published,
        target,
        protocol: Protocol::Udp,
        mode,
        backends: vec![],
        task: task.map(str::to_owned),
    };
    assert_eq!(sound().sift(), (sound(), vec![]));
    // What is added is left out again, and named; nothing else changes.
    type Spoil<'a> = &'a dyn Fn(&mut Desired);
    let added: [(&str, Spoil<'_>); 10] = [
        ("\"bad\": VNI 0", &|d| d.networks.insert(0, network("bad", 0).into())),
        ("\"bad\": VNI 16777216", &|d| d.networks.push(network("bad", 1 << 24).into())),
        ("\"net2\" has an id or a VNI", &|d| d.networks.push(network("net2", 5).into())),
        ("\"net\" has an id or a VNI", &|d| d.networks.push(network("net", 7).into())),
        ("visible ASCII", &|d| d.networks.push(network("a b", 7).into())),
        ("address 192.168.0.2 is not in 10.0.9.0/24", &|d| {
            Arc::make_mut(&mut d.networks[0]).stations.insert(0, Station { address: PEER, host: PEER });
        }),
        ("\"net\": address 192.168.0.3", &|d| {
            let mut bad = d.networks[0].services[0].endpoints[0].clone();
            bad.address = THIRD;
            let network = Arc::make_mut(&mut d.networks[0]);
            Arc::make_mut(&mut network.services[0]).endpoints.insert(0, bad);
        }),
        ("\"other\": address 192.168.0.3", &|d| {
            Arc::make_mut(&mut d.networks[1]).services.push(service(Some(THIRD), &[(5, true)]));
        }),
        ("port 0 to port 90/udp of task t7", &|d| d.ports.insert(0, port(0, 90, PortMode::Host, Some("t7")))),
        ("port 81 to port 90/udp of a service", &|d| d.ports.push(port(81, 90, PortMode::Host, None))),
    ];
    for (words, spoil) in added {
        let mut all = sound();
        spoil(&mut all);
        let (left, refused) = all.sift();
        assert_eq!(left, sound(), "{words}");
        let [error] = &refused[..] else { panic!("{refused:?}") };
        assert!(error.to_string().contains(words), "{error}");
    }
    let mut all = sound();
    Arc::make_mut(&mut all.networks[1]).host_address = Some(PEER);
    let (left, refused) = all.sift();
    assert_eq!((left.networks[1].host_address, refused.len()), (None, 1));
}

proptest! {
    /// Where the difference of two states is enough, it leads to where looking would lead.
    #[test]
    fn steps_lead_where_a_look_would(
        before in proptest::collection::btree_map(2u8..40, 1u8..4, 0..30),
        changes in proptest::collection::btree_map(2u8..40, proptest::option::of(1u8..4), 0..8),
        own in proptest::option::of(2u8..40),
    ) {
        let state = |stations: &BTreeMap<u8, u8>| {
            let mut net = network("net", 5);
            net.host_address = own.map(address);
            let host = |last: &u8| [ME, PEER, THIRD][usize::from(*last) - 1];
            net.stations = stations.iter().map(|(last, at)| Station { address: address(*last), host: host(at) }).collect();
            desired(vec![net])
        };
        let mut after = before.clone();
        for (last, at) in changes {
            match at {
                Some(at) => after.insert(last, at),
                None => after.remove(&last),
            };
        }
        let (before, after) = (state(&before), state(&after));
        let mut kernel = Picture::wanted(&before, &FACTS, &Picture::default());
        let wanted = Picture::wanted(&after, &FACTS, &kernel);
        let operations = Picture::steps(&before, &after, ME, true).expect("only stations differ, and few of them");
        operations.iter().for_each(|operation| kernel.apply(operation));
        prop_assert_eq!(kernel, wanted);
    }
}

#[test]
fn what_is_more_than_a_few_stations_is_looked_at() {
    let base = || {
        let mut net = network("net", 5);
        net.stations = vec![Station { address: address(2), host: PEER }];
        net
    };
    let check = |change: &dyn Fn(&mut Network), expected: bool| {
        let mut net = base();
        change(&mut net);
        let steps = Picture::steps(&desired(vec![base()]), &desired(vec![net]), ME, true);
        assert_eq!(steps.is_some(), expected);
    };
    check(&|_| {}, true);
    check(&|net| net.stations.push(Station { address: address(3), host: PEER }), true);
    check(&|net| net.stations.push(Station { address: address(2), host: THIRD }), false);
    check(&|net| net.vni = 6, false);
    check(&|net| net.host_address = Some(address(9)), false);
    let many = |net: &mut Network| {
        let add = |n: u32| Station { address: Ipv4Addr::from(u32::from(address(0)) + n), host: PEER };
        net.stations.extend((10..300).map(add));
    };
    check(&many, false);
    assert_eq!(Picture::steps(&desired(vec![]), &desired(vec![base()]), ME, true), None);
}

#[test]
fn a_node_knows_its_own_keys_again_and_no_others() {
    let alias = names::seal_alias("n1", 7);
    assert_eq!((names::epoch_of(&alias, "n1"), names::epoch_of(&alias, "n2")), (Some(7), None));
    assert_eq!((names::epoch_of("shoal epoch 7", "n1"), names::epoch_of("", "n1")), (None, None));
}

/// A tunnel of an encrypted network is one that leads nowhere but into WireGuard, or there is none; the entries of one that
/// is not there are not there either.
#[test]
fn encrypted_networks_have_sealed_tunnels_or_none() {
    let quiet = |stations: &[Station]| {
        let mut net = network("net", 5);
        (net.encrypted, net.stations) = (true, stations.to_vec());
        desired(vec![net])
    };
    let there = [Station { address: address(7), host: PEER }];
    let all = quiet(&there);
    let wanted = Picture::wanted(&all, &FACTS, &Picture::default());
    let tunnel = wanted.switches[&5].tunnel.expect("a tunnel");
    assert_eq!((tunnel.sealed, tunnel.mtu, wanted.switches[&5].hosts.len()), (true, 1390, 1));
    let without = Facts { seals: false, ..FACTS };
    let none = Picture::wanted(&all, &without, &wanted);
    assert_eq!((none.switches[&5].tunnel, none.switches[&5].hosts.len()), (None, 0));
    let operations = wanted.operations_to(&none);
    assert!(operations.contains(&Operation::DeleteTunnel(5)), "{operations:?}");
    // One whose socket is where anybody leads is made anew.
    let mut plain = wanted.clone();
    plain.switches.get_mut(&5).expect("it is there").tunnel = Some(Tunnel { sealed: false, ..tunnel });
    let operations = plain.operations_to(&wanted);
    assert!(operations.contains(&Operation::DeleteTunnel(5)), "{operations:?}");
    assert!(operations.contains(&Operation::CreateTunnel { vni: 5, tunnel }), "{operations:?}");
    let steps = |seals| Picture::steps(&quiet(&[]), &all, ME, seals).expect("only stations differ").len();
    assert_eq!((steps(true), steps(false)), (3, 0));
}
