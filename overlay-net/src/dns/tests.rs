//! The resolver as a table, and what it does with packets that are none.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::resolver::failure;
use super::wire::HEADER;
use super::{Decision, Transport, Upstream, View, Zone, resolve};
use crate::config::{Attachment, Desired, Endpoint, EndpointConfig, Network, Protocol, Service, ServicePort, Station};

const A: u16 = 1;
const AAAA: u16 = 28;
const PTR: u16 = 12;
const SRV: u16 = 33;
const ANY: u16 = 255;

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 9, last)
}

fn service(name: &str, vip: Option<u8>, endpoints: &[(u8, bool)]) -> Arc<Service> {
    let endpoint = |(last, serving): &(u8, bool)| Endpoint {
        task: format!("t{last}"),
        name: format!("{name}.{last}"),
        address: address(*last),
        names: vec![format!("box{last}")],
        serving: *serving,
    };
    Arc::new(Service {
        name: name.into(),
        aliases: vec![format!("{name}-Alias")],
        vip: vip.map(address),
        endpoints: endpoints.iter().map(endpoint).collect(),
        ports: [("", Protocol::Tcp, 80), ("metrics", Protocol::Tcp, 9100), ("", Protocol::Udp, 53)]
            .map(|(name, protocol, target)| ServicePort { name: name.into(), protocol, target })
            .into(),
    })
}

fn network(id: &str, services: Vec<Arc<Service>>) -> Network {
    Network {
        id: id.into(),
        name: format!("{id}-net"),
        vni: 5,
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
        services,
    }
}

pub(super) fn zone() -> Zone {
    let one = vec![
        service("web", Some(200), &[(2, true), (3, true), (4, false)]),
        service("db", None, &[(5, true), (6, true), (7, false)]),
        service("idle", None, &[(8, false)]),
    ];
    let two = vec![service("web", Some(201), &[]), service("other", Some(202), &[])];
    Zone::new(
        &Desired {
            revision: 1,
            networks: vec![network("one", one).into(), network("two", two).into()],
            ports: vec![],
            sealing: None,
            taken: Vec::new(),
        },
        &[].into(),
    )
}

#[test]
fn nobody_is_found_by_name_over_the_ingress_network() {
    let mut ingress = network("in", vec![service("web", Some(200), &[(2, true)])]);
    ingress.ingress = true;
    let zone = Zone::new(
        &Desired { revision: 1, networks: vec![ingress.into()], ports: vec![], sealing: None, taken: Vec::new() },
        &[].into(),
    );
    for name in ["web", "tasks.web", "web.in-net", "web.2"] {
        let view = View { networks: vec!["in".into()], ..View::default() };
        let found = zone.look_up(&view, name);
        assert!(matches!(found, super::Known::Missing | super::Known::Foreign), "{name}: {found:?}");
    }
}

pub(super) fn view(networks: &[&str]) -> View {
    let attachments = networks
        .iter()
        .map(|id| Attachment {
            network: (*id).into(),
            address: address(99),
            aliases: vec!["me-too".into(), "web".into()],
        })
        .collect();
    let config = EndpointConfig {
        task: "t".into(),
        hostname: "Me".into(),
        attachments,
        dns_search: vec![],
        dns_servers: vec![],
    };
    View::new(&config, true)
}

pub(super) fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

/// The same, from a client that says how much it can take.
pub(super) fn extended(name: &str, kind: u16, limit: u16) -> Vec<u8> {
    let mut packet = query(name, kind);
    packet[11] = 1;
    packet.extend_from_slice(&[0, 0, 41]);
    packet.extend_from_slice(&limit.to_be_bytes());
    packet.extend_from_slice(&[0; 6]);
    packet
}

/// What an upstream says to a packet without OPT: one address that may be kept for so long.
pub(super) fn response(asked: &[u8], seconds: u32) -> Vec<u8> {
    let mut packet = asked.to_vec();
    (packet[2], packet[3], packet[7]) = (0x81, 0x80, 1);
    packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
    packet.extend_from_slice(&seconds.to_be_bytes());
    packet.extend_from_slice(&[0, 4, 192, 0, 2, 1]);
    packet
}

/// A name in a packet, and where it ends.
fn name(packet: &[u8], mut at: usize) -> (String, usize) {
    let mut labels = Vec::new();
    while packet[at] > 0 {
        if packet[at] >= 0xc0 {
            labels.push(name(packet, usize::from(packet[at + 1])).0);
            return (labels.join("."), at + 2);
        }
        let end = at + 1 + usize::from(packet[at]);
        labels.push(String::from_utf8(packet[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    (labels.join("."), at + 1)
}

/// The records of a packet as text: answers, then additions with their names.
fn records(packet: &[u8], question_end: usize) -> Vec<String> {
    let mut at = question_end;
    let mut all = Vec::new();
    let (answers, additional) = (usize::from(packet[7]), usize::from(packet[11]));
    for number in 0..answers + additional {
        let (owner, end) = name(packet, at);
        let kind = u16::from_be_bytes([packet[end], packet[end + 1]]);
        let length = usize::from(u16::from_be_bytes([packet[end + 8], packet[end + 9]]));
        let data = &packet[end + 10..end + 10 + length];
        let text = match kind {
            A => data[3].to_string(),
            AAAA => IpAddr::from(<[u8; 16]>::try_from(data).unwrap()).to_string(),
            PTR => name(packet, end + 10).0,
            SRV => format!("{} {}", u16::from_be_bytes([data[4], data[5]]), name(packet, end + 16).0),
            other => format!("type {other}"),
        };
        let seconds = u32::from_be_bytes(packet[end + 4..end + 8].try_into().unwrap());
        assert!(kind == 41 || seconds == 5, "an answer may be kept for {seconds} s");
        all.push(if number < answers { text } else { format!("{owner}={text}") });
        at = end + 10 + length;
    }
    assert_eq!(at, packet.len());
    all
}

/// What is answered, as text: records, `nothing`, `nxdomain` or `forward`.
fn ask(view: &View, name: &str, kind: u16) -> String {
    let packet = query(name, kind);
    match resolve(&zone(), view, &packet, Transport::Udp, 0) {
        Decision::Forward => "forward".into(),
        Decision::Ignore => "ignore".into(),
        Decision::Reply(reply) => {
            assert_eq!(reply[..2], packet[..2], "the same id");
            assert_eq!(reply[HEADER..packet.len()], packet[HEADER..], "the same question");
            match (reply[3] & 15, records(&reply, packet.len())) {
                (3, records) if records.is_empty() => "nxdomain".into(),
                (0, records) if records.is_empty() => "nothing".into(),
                (0, records) => records.join(" "),
                other => format!("{other:?}"),
            }
        }
    }
}

#[test]
fn names_resolve_as_docker_users_expect() {
    let one = view(&["one"]);
    for (name, kind, expected) in [
        ("web", A, "200"),
        ("WeB", A, "200"),
        ("web.", A, "200"),
        ("web", 255, "200"),
        ("web", AAAA, "nothing"),
        ("web", 16, "nothing"),
        ("web-alias", A, "200"),
        ("web.one-net", A, "200"),
        ("tasks.web", A, "2 3"),
        ("tasks.web-alias", A, "2 3"),
        ("tasks.web.one-net", A, "2 3"),
        ("db", A, "5 6"),
        ("idle", A, "nothing"),
        ("tasks.idle", A, "nothing"),
        ("web.4", A, "4"),
        ("box4", A, "4"),
        ("me", A, "99"),
        ("me-too", A, "99"),
        ("other", A, "nxdomain"),
        ("other.two-net", A, "forward"),
        ("nosuch", A, "nxdomain"),
        ("nosuch", AAAA, "nxdomain"),
        ("tasks.nosuch", A, "nxdomain"),
        ("tasks.com", A, "forward"),
        ("nosuch.one-net", A, "nxdomain"),
        ("a.nosuch.ONE-net", AAAA, "nxdomain"),
        ("one-net", A, "nxdomain"),
        ("below.web", A, "forward"),
        ("localhost", A, "1"),
        ("localhost", AAAA, "::1"),
        ("web", SRV, "nothing"),
        ("_http._tcp.web", SRV, "80 web.one-net web.one-net=200"),
        ("_HTTP._tcp.Web-Alias.one-net", SRV, "80 web.one-net web.one-net=200"),
        ("_metrics._tcp.web", SRV, "9100 web.one-net web.one-net=200"),
        ("_8443._tcp.web", SRV, "8443 web.one-net web.one-net=200"),
        ("_domain._udp.web", ANY, "53 web.one-net web.one-net=200"),
        ("_http._tcp.tasks.web", SRV, "80 web.2.one-net 80 web.3.one-net web.2.one-net=2 web.3.one-net=3"),
        ("_80._tcp.db", SRV, "80 db.5.one-net 80 db.6.one-net db.5.one-net=5 db.6.one-net=6"),
        ("_80._tcp.idle", SRV, "nothing"),
        ("_80._tcp.tasks.idle", SRV, "nothing"),
        ("_http._tcp.web", A, "nothing"),
        ("_tcp.web", SRV, "nothing"),
        ("_ftp._tcp.web", SRV, "nxdomain"),
        ("_domain._tcp.web", SRV, "nxdomain"),
        ("_0._tcp.web", SRV, "nxdomain"),
        ("_http._sctp.web", SRV, "nxdomain"),
        ("_http._tcp.web.2", SRV, "nxdomain"),
        ("_http._tcp.nosuch", SRV, "nxdomain"),
        ("_http._tcp.nosuch.one-net", SRV, "nxdomain"),
        ("_http._tcp", SRV, "nxdomain"),
        ("_x", A, "nxdomain"),
        ("_ldap._tcp.example.com", SRV, "forward"),
        ("web.example.com", A, "forward"),
        ("example.com", 16, "forward"),
        ("", 2, "forward"),
        ("200.9.0.10.in-addr.arpa", PTR, "web.one-net"),
        ("2.9.0.10.in-addr.arpa", PTR, "web.2.one-net"),
        ("2.9.0.10.in-addr.arpa", A, "nothing"),
        ("77.9.0.10.in-addr.arpa", PTR, "nxdomain"),
        ("8.8.8.8.in-addr.arpa", PTR, "forward"),
        ("300.9.0.10.in-addr.arpa", PTR, "forward"),
        ("9.0.10.in-addr.arpa", PTR, "forward"),
        (&ip6("fd00::1"), PTR, "forward"),
        ("1.0.ip6.arpa", PTR, "forward"),
    ] {
        assert_eq!(ask(&one, name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn the_first_network_that_knows_a_name_answers() {
    assert_eq!(ask(&view(&["one", "two"]), "web", A), "200");
    assert_eq!(ask(&view(&["two", "one"]), "web", A), "201");
    assert_eq!(ask(&view(&["two", "one"]), "web.one-net", A), "200");
    assert_eq!(ask(&view(&["two", "one"]), "other", A), "202");
    assert_eq!(ask(&view(&[]), "web", A), "nxdomain");
}

/// The name that an IPv6 address is looked up by.
fn ip6(address: &str) -> String {
    let address: std::net::Ipv6Addr = address.parse().unwrap();
    let digits = format!("{:032x}", address.to_bits());
    digits.chars().rev().map(|digit| format!("{digit}.")).collect::<String>() + "ip6.arpa"
}

#[test]
fn reverse_names_are_read_as_addresses() {
    use super::resolver::reverse_address;
    let v6 = "2001:db8::a1";
    assert_eq!(reverse_address(&ip6(v6)), Some(v6.parse().unwrap()));
    assert_eq!(reverse_address("1.2.3.4.in-addr.arpa"), Some(IpAddr::from([4, 3, 2, 1])));
    for strange in
        ["", "ip6.arpa", "in-addr.arpa", "1.2.3.in-addr.arpa", "0.1.2.3.4.in-addr.arpa", "+1.2.3.4.in-addr.arpa"]
    {
        assert_eq!(reverse_address(strange), None, "{strange}");
    }
    assert_eq!(reverse_address(&ip6(v6).replacen("1.", "1f.", 1)), None);
    assert_eq!(reverse_address(&format!("0.{}", ip6(v6))), None);
}

/// Plain containers, and tasks with hostnames, that are called as services are.
#[test]
fn what_a_service_is_called_is_nobody_elses() {
    let plain = |id: &str, last: u8, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).chain([id.to_owned()]).collect();
        let endpoint = Endpoint {
            task: format!("p{last}"),
            name: names[0].clone(),
            address: address(last),
            names: names[1..].to_vec(),
            serving: true,
        };
        Arc::new(Service { name: id.into(), aliases: vec![], vip: None, endpoints: vec![endpoint], ports: vec![] })
    };
    let mut host = service("host", Some(202), &[(4, true)]);
    Arc::make_mut(&mut host).endpoints[0].names.push("host".into());
    let containers = [
        plain("0aaaaaaaaaaa", 20, &["Web", "box"]),
        plain("0bbbbbbbbbbb", 21, &["db-alias", "tasks.web", "box"]),
        plain("zccccccccccc", 22, &["lone", "web-alias", "idle"]),
    ];
    let services =
        [service("web", Some(200), &[(2, true)]), service("db", None, &[(3, true)]), service("idle", None, &[])];
    let all = |parts: &[&[Arc<Service>]]| {
        let services = parts.iter().flat_map(|part| part.to_vec()).collect();
        Desired {
            revision: 1,
            networks: vec![network("one", services).into()],
            ports: vec![],
            sealing: None,
            taken: Vec::new(),
        }
    };
    let view = view(&["one"]);
    let look = |zone: &Zone, name: &str| match zone.look_up(&view, name) {
        super::Known::Name(addresses) => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        super::Known::Places(port, places) => {
            format!("{port} {}", places.iter().map(|(name, _)| &**name).collect::<String>())
        }
        super::Known::Missing => "missing".to_owned(),
        super::Known::Foreign => "foreign".to_owned(),
    };
    let check = |zone: &Zone, expected: &[(&str, &str)]| {
        for (name, expected) in expected {
            let expected = expected.split(' ').map(|last| format!("10.0.9.{last}"));
            let expected = expected.collect::<Vec<_>>().join(" ").replace("10.0.9.-", "");
            assert_eq!(look(zone, name), expected, "{name}");
        }
    };
    let without = Zone::new(&all(&[&containers]), &[].into());
    check(&without, &[("web", "20"), ("db-alias", "21"), ("web-alias", "22"), ("box", "20 21"), ("idle", "22")]);
    // Services come, and go.
    let with = without.following(&all(&[&containers, &services, &[host]]), &[].into());
    check(&with, &[("web", "200"), ("web.one-net", "200"), ("tasks.web", "2"), ("db-alias", "3")]);
    check(&with, &[("web-alias", "200"), ("host", "202"), ("box", "20 21"), ("lone", "22"), ("zccccccccccc", "22")]);
    check(&with, &[("idle", "-"), ("0aaaaaaaaaaa", "20")]);
    assert_eq!(look(&with, "_http._tcp.web"), "80 web.one-net");
    assert_eq!(look(&with, "_http._tcp.web-alias"), "80 web.one-net");
    assert_eq!(look(&with, "_http._tcp.lone"), "missing");
    let address = |last: u8| IpAddr::from(address(last));
    assert_eq!(with.reverse(&view, address(20)), super::Reverse::Name("web.one-net"), "its own name, which is shared");
    let gone = with.following(&all(&[&containers]), &[].into());
    check(&gone, &[("web", "20"), ("db-alias", "21"), ("web-alias", "22"), ("box", "20 21"), ("idle", "22")]);
}

#[test]
fn networks_that_are_called_like_a_domain_share_it() {
    let shared = Network { name: "dev".into(), ..network("one", vec![service("web", Some(200), &[])]) };
    let zone = Zone::new(
        &Desired { revision: 1, networks: vec![shared.into()], ports: vec![], sealing: None, taken: Vec::new() },
        &[].into(),
    );
    let view = view(&["one"]);
    let look = |name| zone.look_up(&view, name);
    assert_eq!(look("web.dev"), super::Known::Name(&[address(200).into()]));
    assert_eq!(look("rust.dev"), super::Known::Foreign);
}

#[test]
fn services_names_leave_out_suspected_hosts_but_never_everybody() {
    let (here, there) = (Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(192, 168, 0, 2));
    let mut net =
        network("one", vec![service("web", Some(200), &[(2, true), (3, true)]), service("db", None, &[(5, true)])]);
    net.stations =
        [(2, here), (3, there), (5, there)].map(|(last, host)| Station { address: address(last), host }).into();
    let desired = Desired { revision: 1, networks: vec![net.into()], ports: vec![], sealing: None, taken: Vec::new() };
    let found = |suspects: &[Ipv4Addr], name| {
        let zone = Zone::new(&desired, &suspects.iter().copied().collect::<BTreeSet<_>>());
        match zone.look_up(&view(&["one"]), name) {
            super::Known::Name(addresses) => addresses.to_vec(),
            super::Known::Places(_, places) => places.iter().map(|(_, address)| *address).collect(),
            other => panic!("{other:?}"),
        }
    };
    let all = |lasts: &[u8]| lasts.iter().map(|last| IpAddr::V4(address(*last))).collect::<Vec<_>>();
    assert_eq!(found(&[], "tasks.web"), all(&[2, 3]));
    assert_eq!(found(&[there], "tasks.web"), all(&[2]));
    assert_eq!(found(&[there], "_80._tcp.tasks.web"), all(&[2]));
    assert_eq!(found(&[there], "db"), all(&[5]), "the last one stays");
    assert_eq!(found(&[here, there], "tasks.web"), all(&[2, 3]));
    assert_eq!(found(&[there], "web.3"), all(&[3]), "a task by its own name");
}

#[test]
fn a_task_without_a_way_out_gets_no_foreign_names() {
    let inside = View { upstream: Upstream::Nowhere, ..view(&["one"]) };
    assert_eq!(ask(&inside, "example.com", A), "nxdomain");
    assert_eq!(ask(&inside, "web", A), "200");
}

#[test]
fn addresses_take_turns() {
    let firsts: Vec<u8> = (0..4)
        .map(|turn| {
            let packet = query("db", A);
            match resolve(&zone(), &view(&["one"]), &packet, Transport::Udp, turn) {
                Decision::Reply(reply) => reply[packet.len() + 15],
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(firsts, [5, 6, 5, 6]);
}

#[test]
fn what_does_not_fit_a_datagram_is_marked_and_fits_a_stream() {
    let many: Vec<(u8, bool)> = (2..=150).map(|last| (last, true)).collect();
    let networks = vec![network("one", vec![service("big", None, &many)])];
    let zone = Zone::new(
        &Desired {
            revision: 1,
            networks: networks.into_iter().map(Arc::new).collect(),
            ports: vec![],
            sealing: None,
            taken: Vec::new(),
        },
        &[].into(),
    );
    let (plain, extended) = (query("big", A), extended("big", A, 4096));
    for (packet, transport, limit, truncated) in [
        (&plain, Transport::Udp, 512, true),
        (&extended, Transport::Udp, 1232, true),
        (&plain, Transport::Tcp, 65535, false),
    ] {
        let Decision::Reply(reply) = resolve(&zone, &view(&["one"]), packet, transport, 3) else { panic!() };
        assert!(reply.len() <= limit, "{} bytes", reply.len());
        assert_eq!(reply[2] & 2 != 0, truncated);
        assert_eq!(reply[7] == 149, !truncated, "{} records", reply[7]);
    }
    // Places have longer names: all of them, or what fits and a word that there are more.
    let packet = query("_80._tcp.tasks.big", SRV);
    for (transport, limit, truncated) in [(Transport::Udp, 512, true), (Transport::Tcp, 65535, false)] {
        let Decision::Reply(reply) = resolve(&zone, &view(&["one"]), &packet, transport, 3) else { panic!() };
        assert!(reply.len() <= limit, "{} bytes", reply.len());
        assert_eq!(reply[2] & 2 != 0, truncated);
        let found = records(&reply, packet.len()).len();
        assert_eq!(found == 2 * 149, !truncated, "{found} records");
        assert!(found > 10);
    }
}

#[test]
fn strange_packets_get_an_error_or_silence() {
    let good = query("web", A);
    let change = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    let code = |packet: &[u8]| match resolve(&zone(), &view(&["one"]), packet, Transport::Udp, 0) {
        Decision::Reply(reply) => Some(reply[3] & 15),
        Decision::Ignore => None,
        Decision::Forward => Some(255),
    };
    assert_eq!(code(&[]), None, "empty");
    assert_eq!(code(&good[..11]), None, "no whole header");
    assert_eq!(code(&change(2, 0x81)), None, "a response");
    assert_eq!(code(&change(2, 0x29)), Some(4), "an update");
    assert_eq!(code(&change(5, 2)), Some(1), "two questions");
    assert_eq!(code(&change(5, 0)), Some(1), "no question");
    assert_eq!(code(&change(12, 0xc0)), Some(1), "a pointer in the question");
    assert_eq!(code(&change(12, 63)), Some(1), "a label past the end");
    assert_eq!(code(&good[..good.len() - 1]), Some(1), "no whole question");
    let long = query(&["a"; 130].join("."), A);
    assert_eq!(code(&long), Some(1), "a name of more than 255 bytes");
    let mut chaos = good.clone();
    *chaos.last_mut().unwrap() = 3;
    assert_eq!(code(&chaos), Some(255), "another class is for the upstreams");
    assert_eq!(failure(&good).unwrap()[3] & 15, 2);
}
