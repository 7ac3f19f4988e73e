use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use overlay_net::{AuditRecord, Endpoint, FirewallObstacle, Network, Service, Station};

use super::super::observed::{NetworkSeen, Observed, PeerSeen, Standing, WayOut, expected_names};
use super::*;

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn host(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 0, last)
}

/// Service web with a task on host 1, which is this one, and one on host 2; alone with none.
fn network() -> Network {
    let endpoint = |task: &str, last| Endpoint {
        task: task.into(),
        name: format!("web.{task}"),
        address: at(last),
        names: Vec::new(),
        serving: true,
    };
    let service = |name: &str, vip, endpoints| {
        Arc::new(Service { name: name.into(), aliases: Vec::new(), vip: Some(at(vip)), endpoints, ports: Vec::new() })
    };
    Network {
        id: "n1".into(),
        name: "Back".into(),
        vni: 7,
        subnet: "10.0.1.0/24".parse().unwrap(),
        subnet6: None,
        encrypted: false,
        gateway: at(1),
        internal: false,
        ingress: false,
        local: false,
        mtu: None,
        host_address: None,
        stations: vec![Station { address: at(11), host: host(1) }, Station { address: at(12), host: host(2) }],
        services: vec![service("web", 2, vec![endpoint("t1", 11), endpoint("t2", 12)]), service("alone", 3, vec![])],
    }
}

fn web(network: &mut Network) -> &mut Service {
    Arc::make_mut(&mut network.services[0])
}

/// Everything works.
fn healthy() -> Observed {
    let network = network();
    let names = expected_names(&network, &BTreeSet::new());
    let seen = NetworkSeen {
        left_out: BTreeSet::new(),
        without_key: BTreeSet::new(),
        from: Some("t1".into()),
        names: Some(names.into_iter().map(|(name, found)| (name, Answer::Addresses(found))).collect()),
        vips: Some(vec![("web".into(), at(2).into(), Reached::Yes)]),
        paths: Some([(host(2), vec![(at(12).into(), Reached::Yes, Reached::Yes)])].into()),
        mtu: 1450,
        network: Arc::new(network),
    };
    let peer = PeerSeen {
        hostname: "host-2".into(),
        control: "192.168.0.2:2377".into(),
        opens: Some(true),
        data_path: Some(host(2)),
        underlay: Some((Reached::Yes, Reached::Yes)),
        ..PeerSeen::default()
    };
    Observed {
        standing: Standing { connected: true, told: (40, 2), applied: 40, as_the_store: Some(true) },
        kernel: ["links", "host", "task t1"].map(|place| (place.to_owned(), Ok(Vec::new()))).into(),
        audit: Some(AuditRecord { ago: Duration::from_millis(1200), ..AuditRecord::default() }),
        refused: Vec::new(),
        firewalls: Ok(Vec::new()),
        way_out: Some(WayOut { task: "t1".into(), to: host(2), reached: Reached::Yes }),
        peers: vec![peer],
        underlay_mtu: 1500,
        data_path_port: 4789,
        sealing_obstacle: None,
        data_path_addr: Some(host(1)),
        held: vec![("n1".into(), at(11), "t1".into())],
        networks: vec![seen],
        not_carried: None,
    }
}

#[test]
fn a_healthy_host_has_nothing_to_complain_of() {
    let lines = evaluate(&healthy());
    let checks: Vec<&str> = lines.iter().map(|line| line.check.as_str()).collect();
    assert_eq!(checks, ["revision", "kernel", "firewall", "way out", "peer", "addresses", "names", "vip", "path"]);
    assert!(lines.iter().all(|line| line.result == Verdict::Ok && line.advice.is_empty()), "{lines:#?}");
    assert!(lines[6].detail.starts_with("4 names"), "{lines:#?}");
}

/// One thing is wrong, and exactly one line says so, with these words and what to do.
#[track_caller]
fn check(check: &str, words: &[&str], spoil: impl FnOnce(&mut Observed)) {
    let mut seen = healthy();
    spoil(&mut seen);
    let lines = evaluate(&seen);
    let bad: Vec<&Line> = lines.iter().filter(|line| line.result == Verdict::Wrong).collect();
    let [one] = bad[..] else { panic!("{check}: {lines:#?}") };
    assert_eq!(one.check, check, "{one:?}");
    let text = format!("{} {} {}", one.subject, one.detail, one.advice);
    assert!(words.iter().all(|word| text.contains(word)) && !one.advice.is_empty(), "{words:?}: {text}");
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    check("revision", &["no manager", "40"], |seen| seen.standing.connected = false);
    check("revision", &["40", "only 38"], |seen| seen.standing.applied = 38);
    check("revision", &["store"], |seen| seen.standing.as_the_store = Some(false));
    check("kernel", &["host: table shoal is missing"], |seen| {
        seen.kernel.insert("host".into(), Ok(vec!["table shoal is missing".into()]));
    });
    check("kernel", &["links cannot be read"], |seen| {
        seen.kernel.insert("links".into(), Err("no".into()));
    });
    check("kernel", &["somebody changes", "flushed"], |seen| {
        seen.audit.as_mut().unwrap().repaired.push("flushed".into());
    });
    check("kernel", &["cannot be repaired: x"], |seen| seen.audit.as_mut().unwrap().wrong.push("x".into()));
    check("refused", &["VNI"], |seen| seen.refused.push("VNI 0".into()));
    let chain = || "filter FORWARD".to_owned();
    for (obstacle, told) in [
        (FirewallObstacle::DropsOurs { chain: chain(), link: "she-n1".to_owned() }, "drops packets of she-n1"),
        (FirewallObstacle::PolicyDrops { chain: chain() }, "our rules are not in it"),
        (FirewallObstacle::Unreadable, "older iptables"),
    ] {
        // Also beside one that is none, since packets pass.
        let rest = FirewallObstacle::DropsRest { chain: chain() };
        check("firewall", &[told], |seen| seen.firewalls = Ok(vec![rest, obstacle]));
    }
    check("way out", &["192.168.0.2", "firewall"], |seen| seen.way_out.as_mut().unwrap().reached = Reached::Silence);
    check("peer", &["host-2", "192.168.0.2:2377", "2377"], |seen| seen.peers[0].opens = Some(false));
    check("peer", &["neither", "ping 192.168.0.2"], |seen| {
        seen.peers[0].opens = Some(false);
        seen.peers[0].underlay = Some((Reached::Silence, Reached::Silence));
    });
    check("peer", &["1500 bytes", "only 1400 bytes", "192.168.0.1"], |seen| {
        (seen.peers[0].underlay, seen.peers[0].fits) = (Some((Reached::Yes, Reached::Silence)), Some(1400));
    });
    check("peer", &["only 1420 bytes"], |seen| {
        seen.peers[0].underlay = Some((Reached::Yes, Reached::TooLong(Some(1420))));
    });
    check("names", &["tasks.web.back", "lacks [10.0.1.12]", "has also [10.0.1.99]"], |seen| {
        let found = [at(11), at(99)].map(IpAddr::from).into();
        for (name, answer) in seen.networks[0].names.iter_mut().flatten().filter(|(name, _)| name == "tasks.web.back") {
            assert!(!name.is_empty());
            *answer = Answer::Addresses(BTreeSet::clone(&found));
        }
    });
    check("names", &["web.back is not answered"], |seen| {
        seen.networks[0].names = Some(vec![("web.back".into(), Answer::Silence)]);
    });
    check("vip", &["10.0.1.2 of web"], |seen| {
        seen.networks[0].vips = Some(vec![("web".into(), at(2).into(), Reached::Silence)]);
    });
    check("path", &["Back to host-2", "10.0.1.12", "4789"], |seen| {
        seen.networks[0].paths = Some([(host(2), vec![(at(12).into(), Reached::Silence, Reached::Silence)])].into());
    });
    check("path", &["1450 bytes", "narrower"], |seen| {
        seen.networks[0].paths = Some([(host(2), vec![(at(12).into(), Reached::Yes, Reached::Silence)])].into());
    });
    check("mtu", &["Back", "MTU of 9000", "192.168.0.1 has 1500", "links have 1450"], |seen| {
        Arc::make_mut(&mut seen.networks[0].network).mtu = Some(9000);
    });
    check("addresses", &["10.0.1.12", "task t1", "task t2"], |seen| {
        web(Arc::make_mut(&mut seen.networks[0].network)).endpoints[0].address = at(12);
        seen.held.clear();
        seen.networks[0].names = None;
    });
    check("addresses", &["10.0.1.12", "on a link here", "192.168.0.2"], |seen| {
        seen.held = vec![("n1".into(), at(12), "t2".into())];
    });
    check("addresses", &["10.0.1.2 is of service web and task t9"], |seen| {
        seen.held = vec![("n1".into(), at(2), "t9".into())];
    });
    check("addresses", &["behind two hosts"], |seen| {
        Arc::make_mut(&mut seen.networks[0].network).stations.push(Station { address: at(12), host: host(3) });
    });
}

#[test]
fn what_is_wrong_with_an_encrypted_network_is_named() {
    let encrypted = |seen: &mut Observed| Arc::make_mut(&mut seen.networks[0].network).encrypted = true;
    let mut seen = healthy();
    encrypted(&mut seen);
    let lines = evaluate(&seen);
    assert!(lines.iter().all(|line| line.result == Verdict::Ok), "{lines:#?}");
    assert!(lines.iter().any(|line| line.check == "encryption" && line.detail.contains("1 other host")), "{lines:#?}");
    check("encryption", &["Back to host-2", "no key from host-2"], |seen| {
        encrypted(seen);
        seen.networks[0].without_key = [host(1), host(2)].into();
        seen.networks[0].paths = Some([(host(2), vec![(at(12).into(), Reached::Silence, Reached::Silence)])].into());
    });
    check("encryption", &["Back", "this host cannot carry it: UDP port 4790", "encryption.md"], |seen| {
        encrypted(seen);
        seen.sealing_obstacle = Some("UDP port 4790 is in use".into());
        seen.networks[0].paths = Some([(host(2), vec![(at(12).into(), Reached::Silence, Reached::Silence)])].into());
    });
    check("path", &["Back to host-2", "no answer over WireGuard", "port 4790 and port 4791"], |seen| {
        encrypted(seen);
        seen.networks[0].paths = Some([(host(2), vec![(at(12).into(), Reached::Silence, Reached::Silence)])].into());
    });
}

#[test]
fn both_families_of_a_network_are_judged() {
    let six = |last: u8| IpAddr::from([0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let seen = |six_path, six_vip| {
        let mut seen = healthy();
        let of = &mut seen.networks[0];
        Arc::make_mut(&mut of.network).subnet6 = Some("fd00:9::/64".parse().unwrap());
        let names = expected_names(&of.network, &BTreeSet::new());
        of.names = Some(names.into_iter().map(|(name, found)| (name, Answer::Addresses(found))).collect());
        of.vips.as_mut().unwrap().push(("web".into(), six(2), six_vip));
        of.paths.as_mut().unwrap().get_mut(&host(2)).unwrap().push((six(12), six_path, six_path));
        seen
    };
    let lines = evaluate(&seen(Reached::Yes, Reached::Yes));
    assert!(lines.iter().all(|line| line.result == Verdict::Ok), "{lines:#?}");
    assert!(lines.iter().any(|line| line.check == "path" && line.detail.contains("fd00:9::c")), "{lines:#?}");
    let wrong = |seen: Observed| {
        let lines = evaluate(&seen).into_iter().filter(|line| line.result == Verdict::Wrong);
        lines.map(|line| format!("{} {} {}", line.check, line.subject, line.detail)).collect::<Vec<_>>()
    };
    let path = wrong(seen(Reached::Silence, Reached::Yes));
    assert_eq!(path, ["path Back to host-2 no answer over VXLAN from fd00:9::c"]);
    let vip = wrong(seen(Reached::Yes, Reached::NotSent));
    assert_eq!(vip, ["vip Back from task t1, echoes are not answered by fd00:9::2 of web"]);
    // A name without its IPv6 address is not answered right.
    let mut without = seen(Reached::Yes, Reached::Yes);
    let found = [IpAddr::from(at(2))].into();
    without.networks[0].names = Some(vec![("web.back".into(), Answer::Addresses(found))]);
    assert_eq!(wrong(without), ["names Back from task t1: web.back lacks [fd00:9::2], has also []"]);
}

#[test]
fn what_could_not_be_tried_is_not_wrong() {
    let mut seen = healthy();
    Arc::make_mut(&mut seen.networks[0].network).name = "back".into();
    (seen.networks[0].from, seen.networks[0].names) = (None, None);
    (seen.networks[0].vips, seen.networks[0].paths, seen.way_out) = (None, None, None);
    seen.peers[0].down = true;
    seen.peers[0].opens = None;
    seen.not_carried = Some("not here".into());
    let lines = evaluate(&seen);
    let skipped = lines.iter().filter(|line| line.result == Verdict::Skipped).map(|line| line.check.as_str());
    assert_eq!(skipped.collect::<Vec<_>>(), ["way out", "peer", "network", "names", "vip", "path"]);
    assert!(lines.iter().all(|line| line.result != Verdict::Wrong), "{lines:#?}");
    // A rule that drops the rest is no obstacle to what passes.
    let mut seen = healthy();
    seen.firewalls = Ok(vec![FirewallObstacle::DropsRest { chain: "filter FORWARD".to_owned() }]);
    assert!(evaluate(&seen).iter().all(|line| line.result == Verdict::Ok));
    seen.way_out = None;
    assert!(evaluate(&seen).iter().any(|line| line.result == Verdict::Wrong));
}

#[test]
fn names_stand_for_those_who_serve_and_are_not_doubted() {
    let expected = |network: &Network, left_out: &[Ipv4Addr]| {
        let names = expected_names(network, &left_out.iter().copied().collect());
        names
            .into_iter()
            .map(|(name, found)| (name, found.into_iter().map(|a| a.to_string()).collect::<Vec<_>>()))
            .collect::<BTreeMap<_, _>>()
    };
    let mut network = network();
    web(&mut network).aliases = vec!["alone".into()];
    let names = expected(&network, &[]);
    assert_eq!(names["web.back"], ["10.0.1.2"]);
    assert_eq!(names["alone.back"], ["10.0.1.2", "10.0.1.3"], "an alias that is another's name is both");
    assert_eq!(names["tasks.web.back"], ["10.0.1.11", "10.0.1.12"]);
    assert_eq!(expected(&network, &[host(2)])["tasks.web.back"], ["10.0.1.11"]);
    assert_eq!(expected(&network, &[host(1), host(2)])["tasks.web.back"].len(), 2, "never all of them");
    web(&mut network).endpoints[0].serving = false;
    assert_eq!(expected(&network, &[host(2)])["tasks.web.back"], ["10.0.1.12"]);
    web(&mut network).vip = None;
    assert_eq!(expected(&network, &[])["web.back"], ["10.0.1.12"]);
    network.ingress = true;
    assert!(expected(&network, &[]).is_empty());
}
