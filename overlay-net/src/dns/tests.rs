//! The resolver as a table, and what it does with packets that are none.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::resolver::failure;
use super::{Decision, Transport, View, Zone, resolve};
use crate::config::{Attachment, Desired, Endpoint, EndpointConfig, Network, Service};

const A: u16 = 1;
const AAAA: u16 = 28;
const PTR: u16 = 12;

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 9, last)
}

fn service(name: &str, vip: Option<u8>, endpoints: &[(u8, bool)]) -> Service {
    let endpoint = |(last, serving): &(u8, bool)| Endpoint {
        task: format!("t{last}"),
        name: format!("{name}.{last}"),
        address: address(*last),
        names: vec![format!("box{last}")],
        serving: *serving,
    };
    Service {
        name: name.into(),
        aliases: vec![format!("{name}-Alias")],
        vip: vip.map(address),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn network(id: &str, services: Vec<Service>) -> Network {
    Network {
        id: id.into(),
        name: format!("{id}-net"),
        vni: 5,
        subnet: "10.0.9.0/24".parse().unwrap(),
        gateway: address(1),
        internal: false,
        ingress: false,
        host_address: None,
        stations: vec![],
        services,
    }
}

fn zone() -> Zone {
    let one = vec![
        service("web", Some(200), &[(2, true), (3, true), (4, false)]),
        service("db", None, &[(5, true), (6, true), (7, false)]),
        service("idle", None, &[(8, false)]),
    ];
    let two = vec![service("web", Some(201), &[]), service("other", Some(202), &[])];
    Zone::new(&Desired { revision: 1, networks: vec![network("one", one), network("two", two)], ports: vec![] }, &[].into())
}

#[test]
fn nobody_is_found_by_name_over_the_ingress_network() {
    let mut ingress = network("in", vec![service("web", Some(200), &[(2, true)])]);
    ingress.ingress = true;
    let zone = Zone::new(&Desired { revision: 1, networks: vec![ingress], ports: vec![] }, &[].into());
    for name in ["web", "tasks.web", "web.in-net", "web.2"] {
        let view = View { networks: vec!["in".into()], ..View::default() };
        assert_eq!(zone.look_up(&view, name), super::zone::Known::Nothing, "{name}");
    }
}

fn view(networks: &[&str]) -> View {
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
    View::new(&config, true, &[IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9))])
}

fn query(name: &str, kind: u16) -> Vec<u8> {
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

/// What is answered, as text: addresses, `name`, `nothing`, `nxdomain` or `forward`.
fn ask(view: &View, name: &str, kind: u16) -> String {
    let packet = query(name, kind);
    match resolve(&zone(), view, &packet, Transport::Udp, 0) {
        Decision::Forward => "forward".into(),
        Decision::Ignore => "ignore".into(),
        Decision::Reply(reply) => {
            assert_eq!(reply[..2], packet[..2], "the same id");
            assert_eq!(reply[12..packet.len()], packet[12..], "the same question");
            let (code, count) = (reply[3] & 15, reply[7]);
            let records = &reply[packet.len()..];
            match (code, count, kind) {
                (3, 0, _) => "nxdomain".into(),
                (0, 0, _) => "nothing".into(),
                (0, 1, PTR) => {
                    let mut labels = Vec::new();
                    let mut rest = &records[12..];
                    while rest[0] > 0 {
                        let (label, tail) = rest[1..].split_at(usize::from(rest[0]));
                        labels.push(String::from_utf8(label.to_vec()).unwrap());
                        rest = tail;
                    }
                    labels.join(".")
                }
                (0, ..) => {
                    let ttl = |r: &[u8]| u32::from_be_bytes([r[6], r[7], r[8], r[9]]);
                    assert!(records.chunks_exact(16).all(|r| ttl(r) <= 5));
                    let all = records.chunks_exact(16).take(usize::from(count)).map(|r| r[15].to_string());
                    all.collect::<Vec<_>>().join(" ")
                }
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
        ("web.example.com", A, "forward"),
        ("example.com", 16, "forward"),
        ("", 2, "forward"),
        ("200.9.0.10.in-addr.arpa", PTR, "web.one-net"),
        ("2.9.0.10.in-addr.arpa", PTR, "web.2.one-net"),
        ("2.9.0.10.in-addr.arpa", A, "nothing"),
        ("77.9.0.10.in-addr.arpa", PTR, "nxdomain"),
        ("8.8.8.8.in-addr.arpa", PTR, "forward"),
        ("300.9.0.10.in-addr.arpa", PTR, "forward"),
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

#[test]
fn a_task_without_a_way_out_gets_no_foreign_names() {
    let inside = View { upstreams: vec![], ..view(&["one"]) };
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
    let zone = Zone::new(&Desired { revision: 1, networks, ports: vec![] }, &[].into());
    let plain = query("big", A);
    let mut extended = plain.clone();
    extended[11] = 1;
    extended.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
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

proptest! {
    #[test]
    fn no_packet_upsets_the_resolver(packet in proptest::collection::vec(any::<u8>(), 0..600), turn in any::<usize>()) {
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Decision::Reply(reply) = resolve(&zone(), &view(&["one", "two"]), &packet, transport, turn) {
                prop_assert!(reply.len() >= 12 && reply[2] & 0x80 != 0);
                prop_assert_eq!(&reply[..2], &packet[..2]);
            }
        }
        drop(failure(&packet));
    }

    #[test]
    fn a_damaged_query_does_no_harm(at in 0usize..40, value in any::<u8>(), cut in 0usize..40) {
        let mut packet = query("tasks.web.one-net", A);
        let place = at % packet.len();
        packet[place] = value;
        packet.truncate(cut.max(1));
        drop(resolve(&zone(), &view(&["one"]), &packet, Transport::Udp, 0));
    }

    #[test]
    fn only_an_answer_to_the_question_is_taken(noise in proptest::collection::vec(any::<u8>(), 0..64)) {
        let packet = query("example.com", A);
        let parsed = super::wire::Query::parse(&packet).unwrap();
        prop_assert!(!parsed.is_answered_by(&packet), "a query is no answer");
        let mut reply = packet.clone();
        reply[2] |= 0x80;
        prop_assert!(parsed.is_answered_by(&reply));
        reply[0] ^= 1;
        prop_assert!(!parsed.is_answered_by(&reply));
        prop_assert!(!parsed.is_answered_by(&noise));
    }
}
