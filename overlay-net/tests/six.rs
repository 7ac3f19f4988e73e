//! IPv6 on overlay networks, with the real kernel: addresses beside those of IPv4, virtual addresses, names, published
//! ports, repairs; and that networks without it have none.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are test code")]

mod world;

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use overlay_net::kernel::{Links, NetNs, Peer};
use overlay_net::{Desired, Protocol, PublishedPort};
use world::*;

const PLACES: [(&str, u8, u8); 4] = [("web.1", 11, 1), ("web.2", 12, 2), ("app.1", 21, 1), ("app.2", 22, 2)];

/// `fd00:1::` beside 10.0.1.0, and `fd00:0:1::` beside the ingress network's 10.0.0.0.
fn web6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into())
}

fn outside(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last.into())
}

fn six(revision: u64) -> Desired {
    let mut all = desired(revision, &PLACES, 2);
    for network in &mut all.networks {
        let subnet = if network.ingress { "fd00:0:1::/64" } else { "fd00:1::/64" };
        Arc::make_mut(network).subnet6 = Some(subnet.parse().unwrap());
    }
    all.ports.push(PublishedPort { protocol: Protocol::Udp, ..all.ports[0].clone() });
    all
}

/// The wire has IPv6 too, and tasks serve over IPv6 alone, so that nothing is answered by the other family.
fn usual() -> (World, Vec<Task>, Vec<Greeter>) {
    let world = World::new(2);
    let places = world.hosts.iter().map(|host| (&host.namespace, host.number));
    for (namespace, last) in places.chain([(&world.client, 99)]) {
        let net = ipnet::Ipv6Net::new(outside(last), 64).unwrap();
        Links::open(namespace).unwrap().add_address6("u0", net).unwrap();
    }
    world.set_desired_everywhere(&six(1));
    let (mut tasks, mut greeters) = (Vec::new(), Vec::new());
    for (name, last, host) in PLACES {
        let task = Task::new(name, last, name.starts_with("web"));
        world.attach(host, &task, None);
        greeters.push(Greeter::at(&task.namespace, Ipv6Addr::UNSPECIFIED.into(), 80, name));
        tasks.push(task);
    }
    (world, tasks, greeters)
}

fn addresses6(namespace: &NetNs, link: &str) -> Vec<Ipv6Addr> {
    let mut links = Links::open(namespace).unwrap();
    let index = links.index(link).unwrap();
    let all = links.addresses6().unwrap().into_iter();
    all.filter(|(number, _)| *number == index).map(|(_, net)| net.addr()).collect()
}

/// The addresses in an answer to a question of this type, and its code.
fn ask(from: &NetNs, name: &str, kind: u16) -> (u8, BTreeSet<Ipv6Addr>) {
    let packet = query(name, kind);
    let reply = exchange(from, &packet).unwrap();
    let count = usize::from(u16::from_be_bytes([reply[6], reply[7]]));
    // Each record: a pointer to the name, type, class, lifetime, length, sixteen bytes.
    let records = reply[packet.len()..].chunks_exact(28).take(count);
    let addresses = records.map(|record| Ipv6Addr::from(<[u8; 16]>::try_from(&record[12..]).unwrap()));
    (reply[3] & 15, addresses.collect())
}

const AAAA: u16 = 28;

fn names_of(said: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    said.into_iter().map(|said| said.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn tasks_reach_each_other_by_address_name_and_virtual_address() {
    if !possible() {
        return;
    }
    let (world, tasks, _greeters) = usual();
    for from in &tasks {
        for ((name, last, _), to) in PLACES.iter().zip(&tasks) {
            let said = greet(&from.namespace, web6(*last), 80).unwrap();
            // Whom one talks to sees one's own address, but for oneself, whom one reaches without a network.
            assert!(said.starts_with(name), "{name}: {said}");
            if to.address != from.address {
                let own = web6(from.address.octets()[3]);
                assert_eq!(said, format!("{name} {own}"));
            }
        }
    }
    let from = &tasks[2].namespace;
    assert_eq!(ask(from, "web", AAAA), (0, [web6(2)].into()));
    assert_eq!(look_up(from, "web").unwrap(), (0, vec![web(2)]));
    assert_eq!(ask(from, "tasks.web", AAAA), (0, [web6(11), web6(12)].into()));
    assert_eq!(ask(from, "app.1-host", AAAA), (0, [web6(21)].into()));
    let said = names_of((0..60).map(|_| greet(from, web6(2), 80).unwrap()));
    assert_eq!(said.len(), 2, "both tasks serve the virtual address");
    for to in [web6(2), web6(11), web6(12)] {
        let ping = from.visit(|| std::process::Command::new("ping").args(["-6nc1", "-W3", &to.to_string()]).output());
        match ping {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => println!("not asked by ICMP: {error}"),
        }
    }
    // A host that gossip suspects is left out here too; without endpoints, connections are refused at once.
    let overlay = &world.host(1).overlay;
    world.runtime.block_on(overlay.leave_out([host_address(2)].into())).unwrap();
    assert_eq!(ask(from, "tasks.web", AAAA), (0, [web6(11)].into()));
    assert_eq!(names_of((0..20).map(|_| greet(from, web6(2), 80).unwrap())), ["web.1".to_owned()].into());
    world.runtime.block_on(overlay.leave_out([].into())).unwrap();
    let mut empty = six(2);
    service_of(&mut empty).endpoints.iter_mut().for_each(|endpoint| endpoint.serving = false);
    world.set_desired_everywhere(&empty);
    let refused = greet(from, web6(2), 80).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn published_ports_answer_ipv6_clients_who_keep_their_address() {
    if !possible() {
        return;
    }
    let (world, tasks, _greeters) = usual();
    for number in [1, 2] {
        let said: BTreeSet<String> = (0..40).map(|_| greet(&world.client, outside(number), 8080).unwrap()).collect();
        let own = outside(99);
        assert_eq!(said, [format!("web.1 {own}"), format!("web.2 {own}")].into(), "through host {number}");
        for other in [1, 2] {
            let said = greet(&world.host(other).namespace, outside(number), 8080).unwrap();
            assert!(said.ends_with(&outside(other).to_string()), "host {other} through host {number}: {said}");
        }
        let own = greet(&world.host(number).namespace, Ipv6Addr::LOCALHOST, 8080);
        assert_eq!(own.unwrap_err().kind(), io::ErrorKind::ConnectionRefused, "not at [::1], and at once");
        let refused = greet(&world.client, outside(number), 8081).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
    let bind = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 80));
    let servers: Vec<UdpSocket> = tasks[..2].iter().map(|task| task.namespace.visit(bind).unwrap()).collect();
    let client = world.client.visit(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
    for socket in servers.iter().chain([&client]) {
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    }
    let mut seen = [0; 8];
    for server in &servers {
        server.set_nonblocking(true).unwrap();
    }
    // Each is answered through the host that it came by, although both lead to the same task.
    let mut one = six(2);
    one.ports.iter_mut().for_each(|port| port.backends.retain(|address| address.octets()[3] == 11));
    world.set_desired_everywhere(&one);
    for number in [1, 2] {
        client.send_to(b"?", (outside(number), 8080)).unwrap();
        let (server, from) =
            eventually(|| servers.iter().find_map(|s| Some((s, s.recv_from(&mut seen).ok()?.1))).ok_or("no datagram"));
        assert_eq!(from.ip(), IpAddr::V6(outside(99)), "the client's own");
        server.send_to(b"!", from).unwrap();
        let (_, from) = client.recv_from(&mut seen).unwrap();
        assert_eq!(from.ip(), IpAddr::V6(outside(number)));
    }
    // The way back is no way out.
    for task in [&tasks[0], &tasks[2]] {
        let error = greet_within(&task.namespace, outside(99), 80, Duration::from_millis(300)).unwrap_err();
        let at_once = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NetworkUnreachable];
        assert!(at_once.contains(&error.kind()), "{error}");
        let socket = task.namespace.visit(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
        socket.connect((outside(99), client.local_addr().unwrap().port())).ok();
        eventually(|| socket.send(b"?").map_or(Ok(()), |_| Err("it was sent")));
    }
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(client.recv_from(&mut seen).is_err(), "nothing came out");
    // Who is no task cannot be reached past the published ports.
    let links = &mut Links::open(&world.host(1).namespace).unwrap();
    assert!(!links.addresses6().unwrap().is_empty());
    let to = Ipv6Addr::new(0xfd00, 0, 1, 0, 0, 0, 0, 11);
    let route = ["-6", "route", "add", "fd00:0:1::/64", "via", &outside(1).to_string()].map(str::to_owned);
    match world.client.visit(|| std::process::Command::new("ip").args(&route).status()) {
        Ok(status) if status.success() => {
            let error = greet_within(&world.client, to, 80, Duration::from_millis(300)).unwrap_err();
            assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        }
        other => println!("not asked past the ports: {other:?}"),
    }
}

#[test]
fn connections_to_a_dead_host_are_reset() {
    if !possible() {
        return;
    }
    let world = World::new(2);
    let wire = [(&world.host(1).namespace, 1), (&world.host(2).namespace, 2), (&world.client, 99)];
    for (namespace, last) in wire {
        let net = ipnet::Ipv6Net::new(outside(last), 64).unwrap();
        Links::open(namespace).unwrap().add_address6("u0", net).unwrap();
    }
    // The one on host 2 alone serves, then both do.
    let mut one = six(1);
    service_of(&mut one).endpoints.iter_mut().for_each(|e| e.serving = e.name == "web.2");
    one.ports.iter_mut().for_each(|port| port.backends.retain(|address| address.octets()[3] == 12));
    world.set_desired_everywhere(&one);
    let tasks = PLACES.map(|(name, last, host)| {
        let task = Task::new(name, last, name.starts_with("web"));
        world.attach(host, &task, None);
        task
    });
    let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80));
    let [first, second] = [0, 1].map(|number: usize| tasks[number].namespace.visit(listen).unwrap());
    let doors = [(&tasks[2].namespace, web6(2), 80), (&world.client, outside(1), 8080)];
    let mut ends = doors.map(|(from, to, port)| {
        let near = from.visit(|| TcpStream::connect_timeout(&(to, port).into(), PATIENCE)).unwrap();
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        (near, second.accept().unwrap())
    });
    world.set_desired_everywhere(&six(2));
    Links::open(&world.wire).unwrap().delete("h2").unwrap();
    world.runtime.block_on(world.host(1).overlay.leave_out([host_address(2)].into())).unwrap();
    for (near, _) in &mut ends {
        // They only wait, and are told all the same.
        let error = near.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    drop(first);
}

#[test]
fn what_others_change_is_repaired_and_a_restart_changes_nothing() {
    if !possible() {
        return;
    }
    let (mut world, tasks, _greeters) = usual();
    let eth0 = addresses6(&tasks[2].namespace, "eth0");
    assert_eq!(eth0, [web6(21)]);
    world.restart(1);
    greet(&tasks[2].namespace, web6(2), 80).unwrap();
    world.set_desired(1, &for_host(&six(2), 1));
    for task in [&tasks[0], &tasks[2]] {
        world.attach(1, task, None);
    }
    assert_eq!(addresses6(&tasks[2].namespace, "eth0"), eth0);
    // Addresses, neighbours and the way back of marked replies.
    let mut links = Links::open(&tasks[0].namespace).unwrap();
    for link in ["eth0", "eth1"] {
        links.set_down(link).unwrap();
    }
    let pin = world.pin(1);
    let inner = NetNs::open(&pin).unwrap();
    let mut switch = Links::open(&inner).unwrap();
    let bridge = switch.index(&format!("br-{WEB_VNI:x}")).unwrap();
    switch.delete_neighbour(bridge, web6(12).into()).unwrap();
    let known = |links: &mut Links| {
        links.neighbours().unwrap().iter().any(|(link, address, _)| (*link, *address) == (bridge, web6(12).into()))
    };
    assert!(!known(&mut switch));
    eventually(|| if known(&mut switch) { Ok(()) } else { Err("the neighbour is not back") });
    eventually(|| greet(&tasks[2].namespace, web6(11), 80));
    let through = |_: u32| {
        let said = names_of(
            (0..20).filter_map(|_| greet_within(&world.client, outside(2), 8080, Duration::from_millis(200)).ok()),
        );
        if said.len() == 2 { Ok(()) } else { Err(said) }
    };
    eventually(|| through(0));
    assert_eq!(addresses6(&tasks[0].namespace, "eth0"), [web6(11)]);
}

/// A wire of its own between a host and a neighbour, who knows the way to the client of the first wire through the host.
fn neighbour(host: &NetNs, link: &str, net: u16) -> NetNs {
    let other = NetNs::anonymous().unwrap();
    let (mut near, mut far) = (Links::open(host).unwrap(), Links::open(&other).unwrap());
    near.create_veth_into(link, None, 1500, &Peer { namespace: &other, name: "n0", mac: None }).unwrap();
    for (namespace, links, name, last) in [(host, &mut near, link, 1), (&other, &mut far, "n0", 2)] {
        namespace.set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0").unwrap();
        let address = Ipv6Addr::new(0xfd88, net, 0, 0, 0, 0, 0, last);
        links.add_address6(name, ipnet::Ipv6Net::new(address, 64).unwrap()).unwrap();
        links.set_up(name).unwrap();
    }
    far.wait_running("n0", PATIENCE).unwrap();
    route6(&other, "fd77::/64", &format!("fd88:{net:x}::1"));
    other
}

fn route6(namespace: &NetNs, to: &str, via: &str) {
    let args = ["-6", "route", "add", to, "via", via];
    let done = namespace.visit(|| std::process::Command::new("ip").args(args).output()).unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_host_that_was_no_router_of_ipv6_does_not_become_one() {
    if !possible() {
        return;
    }
    if std::process::Command::new("ip").arg("-V").output().is_err() {
        return println!("skipped: the program ip is not installed");
    }
    let mut world = World::new(2);
    let switch = |host: &NetNs, to: &str| host.set_sysctl("ipv6/conf/all/forwarding", to).unwrap();
    let ends = world.hosts.iter().map(|host| (&host.namespace, host.number)).chain([(&world.client, 99)]);
    for (namespace, last) in ends {
        let net = ipnet::Ipv6Net::new(outside(last), 64).unwrap();
        namespace.set_sysctl("ipv6/conf/u0/accept_dad", "0").unwrap();
        Links::open(namespace).unwrap().add_address6("u0", net).unwrap();
    }
    // Host 1 routes IPv4 alone, host 2 IPv6 alone.
    for (number, routes) in [(1, "1"), (2, "0")] {
        world.host(number).namespace.set_sysctl("ipv4/ip_forward", routes).unwrap();
    }
    switch(&world.host(2).namespace, "1");
    let before = [1u8, 2].map(|number| {
        let net = 0x100 + u16::from(number);
        route6(&world.client, &format!("fd88:{net:x}::/64"), &outside(number).to_string());
        neighbour(&world.host(number).namespace, "lan", net)
    });
    let _outside = Greeter::at(&world.client, Ipv6Addr::UNSPECIFIED.into(), 7000, "outside");
    let passes = |from: &NetNs| greet_within(from, outside(99), 7000, Duration::from_millis(400)).is_ok();
    eventually(|| if passes(&before[1]) { Ok(()) } else { Err("host 2 does not route") });
    assert!(!passes(&before[0]));

    world.set_desired_everywhere(&six(1));
    let web = Task::new("web.1", 11, true);
    world.attach(1, &web, None);
    let _greeter = Greeter::at(&web.namespace, Ipv6Addr::UNSPECIFIED.into(), 80, "web.1");
    let mut only = six(2);
    for port in &mut only.ports {
        port.backends.truncate(1);
    }
    world.set_desired_everywhere(&only);
    let check = |world: &World| {
        eventually(|| greet(&world.client, outside(1), 8080));
        assert!(!passes(&before[0]), "it routes");
        assert!(passes(&before[1]), "it was a router, and is none any more");
        // What is published is for everybody who reaches the host.
        eventually(|| greet(&before[0], Ipv6Addr::new(0xfd88, 0x101, 0, 0, 0, 0, 0, 1), 8080));
    };
    check(&world);
    // Links of others who came later, and know that the host forwards.
    route6(&world.client, "fd88:103::/64", &outside(1).to_string());
    let later = neighbour(&world.host(1).namespace, "docker0", 0x103);
    eventually(|| if passes(&later) { Ok(()) } else { Err("what came later is shut out") });
    world.restart(1);
    world.set_desired(1, &for_host(&only, 1));
    world.attach(1, &web, None);
    check(&world);
    // Somebody turns it off.
    switch(&world.host(1).namespace, "0");
    eventually(|| greet(&world.client, outside(1), 8080));
    for number in [1, 2] {
        world.runtime.block_on(world.host(number).overlay.clone().destroy()).unwrap();
    }
    assert!(!passes(&before[0]) && passes(&before[1]), "as it was");
    let value = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap().trim().to_owned();
    assert_eq!([1, 2].map(|number| world.host(number).namespace.visit(|| Ok(value())).unwrap()), ["0", "1"]);
}

#[test]
fn networks_without_ipv6_have_none() {
    if !possible() {
        return;
    }
    let world = World::new(1);
    world.set_desired_everywhere(&desired(1, &PLACES[..1], 1));
    let task = Task::new("web.1", 11, true);
    world.attach(1, &task, None);
    let off = |link: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
        task.namespace.visit(|| std::fs::read_to_string(&path)).unwrap()
    };
    // Not even addresses of the links' own making; the loopback keeps its own.
    assert_eq!(["eth0", "eth1", "eth2", "lo"].map(|link| off(link).trim().to_owned()), ["1", "1", "1", "0"]);
    assert_eq!(ask(&task.namespace, "web", AAAA), (0, BTreeSet::new()));
    assert_eq!(look_up(&task.namespace, "web").unwrap(), (0, vec![Ipv4Addr::new(10, 0, 1, 2)]));
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding");
    assert_eq!(world.host(1).namespace.visit(forwarding).unwrap().trim(), "0");
}
