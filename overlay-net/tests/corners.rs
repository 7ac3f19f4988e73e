//! What two hosts must also do: upstream names, UDP, ports of one host, internal networks, big transfers, tasks that
//! move, connections that outlive a restart.

#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

mod world;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use overlay_net::kernel::{Links, NetNs, Tables};
use overlay_net::{OverlayError, PortMode, Protocol, PublishedPort};
use world::*;

/// A UDP server in a namespace that answers each datagram with what `reply` makes of it, until it is dropped.
struct Responder {
    socket: UdpSocket,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Responder {
    fn start(
        namespace: &NetNs,
        address: Ipv4Addr,
        port: u16,
        reply: impl Fn(&[u8], SocketAddr) -> Vec<u8> + Send + 'static,
    ) -> Responder {
        let socket = namespace.visit(|| UdpSocket::bind((address, port))).unwrap();
        let server = socket.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                match server.recv_from(&mut buffer) {
                    // An empty datagram from ourselves ends the thread.
                    Ok((0, _)) => return,
                    Ok((length, from)) => drop(server.send_to(&reply(&buffer[..length], from), from)),
                    Err(_) => {}
                }
            }
        });
        Responder { socket, thread: Some(thread) }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let own = self.socket.local_addr().unwrap();
        self.socket.send_to(&[], own).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn udp_exchange(from: &NetNs, to: (Ipv4Addr, u16), packet: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = from.visit(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send(packet)?;
    let mut buffer = vec![0; 2048];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Sends an ICMP echo request and waits for its reply.
fn ping(from: &NetNs, asked: Ipv4Addr) -> std::io::Result<()> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sockopt};
    let socket = from.visit(|| {
        Ok(nix::sys::socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?)
    })?;
    nix::sys::socket::setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(3, 0))?;
    // Type 8, checksum, id 0x5348, sequence 1; the checksum is the complement of the sum of the other words.
    let checksum = !(0x0800u16 + 0x5348 + 1);
    let [high, low] = checksum.to_be_bytes();
    let packet = [8, 0, high, low, 0x53, 0x48, 0, 1];
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(asked, 0));
    nix::sys::socket::sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    let mut buffer = [0; 256];
    loop {
        let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let reply = &buffer[..length];
        if reply.get(20) == Some(&0) && reply.get(24..26) == Some(&[0x53, 0x48]) {
            assert_eq!(reply.get(12..16), Some(&asked.octets()[..]), "who was asked answers");
            return Ok(());
        }
    }
}

fn pair() -> (World, Task, Task) {
    let world = World::new(2);
    world.set_desired_everywhere(&desired(1, &PLACES, 2));
    let (app, web) = (Task::new("app.1", 21, false), Task::new("web.2", 12, true));
    world.attach(1, &app, None);
    world.attach(2, &web, None);
    (world, app, web)
}

const PLACES: [(&str, u8, u8); 2] = [("app.1", 21, 1), ("web.2", 12, 2)];

#[test]
fn pings_cross_hosts_also_to_a_virtual_address() {
    if !possible() {
        return;
    }
    let (world, app, web_task) = pair();
    ping(&app.namespace, web(12)).unwrap();
    ping(&web_task.namespace, web(21)).unwrap();
    ping(&app.namespace, web(2)).unwrap();
    ping(&app.namespace, CLIENT).unwrap();
    ping(&world.host(1).namespace, Ipv4Addr::new(10, 0, 0, 12)).unwrap();
    // A task can be its own server.
    ping(&web_task.namespace, web(2)).unwrap();
}

#[test]
fn big_transfers_fit_through_the_tunnel() {
    if !possible() {
        return;
    }
    let (_world, app, web_task) = pair();
    for task in [&app, &web_task] {
        let links = Links::open(&task.namespace).unwrap().list().unwrap();
        let mtu = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.mtu);
        assert_eq!(mtu("eth0"), Some(1450), "room for the tunnel's 50 bytes");
    }
    let listener = web_task.namespace.visit(|| TcpListener::bind((web(12), 0))).unwrap();
    let to = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    let data: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut stream = app.namespace.visit(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    stream.write_all(&data).unwrap();
    drop(stream);
    assert!(receiver.join().unwrap() == data, "what arrives is what was sent");
}

#[test]
fn foreign_names_are_asked_from_the_host() {
    if !possible() {
        return;
    }
    let (world, app, _web) = pair();
    let expected = host_address(1);
    let _upstream = Responder::start(&world.client, CLIENT, 53, move |query, from| {
        let mut reply = query.to_vec();
        // An answer without records from the host; a failure if somebody else asks.
        reply[2] |= 0x80;
        reply[3] = if from.ip() == expected { 0x80 } else { 0x85 };
        reply
    });
    assert_eq!(look_up(&app.namespace, "example.com").unwrap(), (0, vec![]));
    // What nobody answers is answered by us before the client gives up.
    drop(_upstream);
    let packet = query("example.com", 1);
    let reply = exchange(&app.namespace, &packet).unwrap();
    assert_eq!(reply[3] & 15, 2, "server failure");
}

#[test]
fn names_resolve_over_streams_too() {
    if !possible() {
        return;
    }
    let (_world, app, _web) = pair();
    let packet = query("web", 1);
    let mut stream = app.namespace.visit(|| TcpStream::connect((overlay_net::dns::ADDRESS, 53))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..2 {
        stream.write_all(&u16::try_from(packet.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&packet).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(answer(&reply, packet.len()), (0, vec![web(2)]));
    }
}

#[test]
fn udp_ports_and_ports_of_one_host() {
    if !possible() {
        return;
    }
    let (world, app, web_task) = pair();
    let mut more = desired(2, &PLACES, 2);
    more.ports[0].protocol = Protocol::Udp;
    more.ports.push(PublishedPort {
        published: 9000,
        target: 90,
        protocol: Protocol::Udp,
        mode: PortMode::Host,
        backends: vec![],
        task: Some("web.2".into()),
    });
    world.set_desired_everywhere(&more);
    let seen = |_: &[u8], from: SocketAddr| from.ip().to_string().into_bytes();
    // From a socket without an address, which is the harder case: the kernel chooses one for what it sends.
    let _mesh = Responder::start(&web_task.namespace, Ipv4Addr::UNSPECIFIED, 80, seen);
    let _own = Responder::start(&web_task.namespace, Ipv4Addr::UNSPECIFIED, 90, seen);
    for number in [1, 2] {
        let asked = |from: &NetNs, address: Ipv4Addr| {
            // Longer than one packet.
            let reply = udp_exchange(from, (address, 8080), &[7; 2000]).unwrap();
            String::from_utf8(reply).unwrap()
        };
        assert_eq!(asked(&world.client, host_address(number)), CLIENT.to_string());
        for other in [1, 2] {
            let seen = asked(&world.host(other).namespace, host_address(number));
            assert_eq!(seen, host_address(other).to_string(), "host {other} through host {number}");
        }
        let own = asked(&world.host(number).namespace, Ipv4Addr::LOCALHOST);
        assert_eq!(own, ingress_address(number).to_string(), "as its host");
        for (task, host) in [(&app, 1), (&web_task, 2)] {
            let expected = if host == number { ingress_address(host) } else { host_address(host) };
            assert_eq!(asked(&task.namespace, host_address(number)), expected.to_string(), "as its host");
        }
    }
    // To a port that nobody has open, the answer finds the way as well.
    more.ports[0].target = 81;
    more.revision += 1;
    world.set_desired_everywhere(&more);
    let closed = udp_exchange(&world.client, (host_address(1), 8080), b"?").unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused);
    let reply = udp_exchange(&world.client, (host_address(2), 9000), b"?").unwrap();
    assert_eq!(String::from_utf8(reply).unwrap(), CLIENT.to_string(), "the client's own address");
    udp_exchange(&world.host(2).namespace, (Ipv4Addr::LOCALHOST, 9000), b"?").unwrap();
    udp_exchange(&world.host(2).namespace, (host_address(2), 9000), b"?").unwrap();
    udp_exchange(&web_task.namespace, (host_address(2), 9000), b"?").unwrap();
    udp_exchange(&app.namespace, (host_address(2), 9000), b"?").unwrap();
    let elsewhere = udp_exchange(&world.client, (host_address(1), 9000), b"?").unwrap_err();
    assert_eq!(elsewhere.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_internal_network_leads_nowhere() {
    if !possible() {
        return;
    }
    let world = World::new(1);
    let mut inside = desired(1, &[("app.1", 21, 1)], 1);
    Arc::make_mut(&mut inside.networks[0]).internal = true;
    world.set_desired_everywhere(&inside);
    let app = Task::new("app.1", 21, false);
    let attached = world.attach(1, &app, None);
    assert_eq!(attached.gateway_address, None);
    assert_eq!(link_names(&app.namespace), ["eth0"]);
    let refused = greet(&app.namespace, CLIENT, 7000).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::NetworkUnreachable);
    assert_eq!(look_up(&app.namespace, "example.com").unwrap().0, 3);
}

#[test]
fn what_is_on_an_internal_network_is_reached_by_its_published_ports_and_reaches_nobody() {
    if !possible() {
        return;
    }
    let world = World::new(2);
    let mut inside = desired(1, &PLACES, 2);
    Arc::make_mut(&mut inside.networks[0]).internal = true;
    let mut datagrams = inside.ports[0].clone();
    datagrams.protocol = Protocol::Udp;
    inside.ports.push(datagrams);
    world.set_desired_everywhere(&inside);
    let web_task = Task::new("web.2", 12, true);
    let attached = world.attach(2, &web_task, None);
    assert_eq!(attached.gateway_address, None);
    let _greeter = Greeter::start(&web_task.namespace, 80, "web.2");
    let seen = |_: &[u8], from: SocketAddr| from.ip().to_string().into_bytes();
    let _responder = Responder::start(&web_task.namespace, Ipv4Addr::UNSPECIFIED, 80, seen);
    for number in [1, 2] {
        assert_eq!(greet(&world.client, host_address(number), 8080).unwrap(), format!("web.2 {CLIENT}"));
        let reply = udp_exchange(&world.client, (host_address(number), 8080), b"?").unwrap();
        assert_eq!(String::from_utf8(reply).unwrap(), CLIENT.to_string());
    }
    let _outside = Greeter::start(&world.client, 7000, "outside");
    for address in [CLIENT, host_address(2)] {
        let refused = greet(&web_task.namespace, address, 7000).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::NetworkUnreachable, "{address}");
        udp_exchange(&web_task.namespace, (address, 7000), b"?").unwrap_err();
    }
    assert_eq!(look_up(&web_task.namespace, "example.com").unwrap().0, 3);
}

#[test]
fn virtual_addresses_take_datagrams_and_answer_as_themselves() {
    if !possible() {
        return;
    }
    let (world, app, web_task) = pair();
    let seen = |_: &[u8], from: SocketAddr| from.ip().to_string().into_bytes();
    let _responder = Responder::start(&web_task.namespace, Ipv4Addr::UNSPECIFIED, 80, seen);
    // The socket takes what comes from the virtual address and nothing else.
    for from in [&app.namespace, &web_task.namespace] {
        let reply = udp_exchange(from, (web(2), 80), &[7; 2000]).unwrap();
        let own = if std::ptr::eq(from, &app.namespace) { app.address } else { web_task.address };
        assert_eq!(String::from_utf8(reply).unwrap(), own.to_string());
    }
    let closed = udp_exchange(&app.namespace, (web(2), 81), b"?").unwrap_err();
    assert_eq!(closed.kind(), std::io::ErrorKind::ConnectionRefused);
    ping(&app.namespace, web(2)).unwrap();
    let mut none = desired(2, &PLACES, 2);
    service_of(&mut none).endpoints[0].serving = false;
    world.set_desired_everywhere(&none);
    // What a rule refuses is told to whoever sends it.
    let unserved = udp_exchange(&web_task.namespace, (web(2), 81), b"?").unwrap_err();
    assert_eq!(unserved.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn an_ingress_network_never_takes_the_hosts_own_addresses() {
    if !possible() {
        return;
    }
    let world = World::new(1);
    let namespace = &world.host(1).namespace;
    Links::open(namespace).unwrap().add_address("u0", "10.0.0.77/28".parse().unwrap()).unwrap();
    let all = for_host(&desired(1, &PLACES, 1), 1);
    let overlay = &world.host(1).overlay;
    let error = world.runtime.block_on(overlay.set_desired(all.clone())).unwrap_err();
    let OverlayError::Partial(errors) = error else { panic!("{error:?}") };
    assert!(errors[0].to_string().contains("this host's own network 10.0.0.64/28"), "{}", errors[0]);
    // The mesh is not there, and nobody is led by anything older: nobody has to wait for this host.
    assert_eq!(*overlay.applied_revision().borrow(), 1);
    assert_eq!(link_names(namespace), ["u0"]);
    // Once the obstacle is gone, the same state can be put in force.
    Links::open(namespace).unwrap().delete_address("u0", "10.0.0.77/28".parse().unwrap()).unwrap();
    world.set_desired(1, &all);
}

#[test]
fn a_task_that_cannot_be_connected_has_nothing_of_it() {
    if !possible() {
        return;
    }
    let (world, ..) = pair();
    let mut task = Task::new("app.9", 99, false);
    task.config.attachments[0].network = "nosuch".into();
    let overlay = &world.host(1).overlay;
    let error = world.runtime.block_on(overlay.attach(task.fd(), task.config.clone(), None)).unwrap_err();
    assert!(matches!(error, OverlayError::UnknownNetwork { .. }), "{error:?}");
    // Somebody has taken the name already.
    let task = Task::new("app.9", 99, false);
    Links::open(&task.namespace).unwrap().create_bridge("eth1").unwrap();
    let error = world.runtime.block_on(overlay.attach(task.fd(), task.config.clone(), None)).unwrap_err();
    assert!(matches!(error, OverlayError::Attach { .. }), "{error:?}");
    assert_eq!(link_names(&task.namespace), ["eth1"]);
    assert_eq!(Tables::open(&task.namespace).unwrap().list().unwrap(), Vec::<String>::new());
    let not_one = std::fs::File::open("/dev/null").unwrap();
    let error = world.runtime.block_on(overlay.attach(not_one.into(), task.config.clone(), None)).unwrap_err();
    assert!(matches!(error, OverlayError::Attach { .. }), "{error:?}");
}

#[test]
fn an_address_that_moves_to_another_host_is_found_there() {
    if !possible() {
        return;
    }
    let (world, app, web_task) = pair();
    let _old = Greeter::start(&web_task.namespace, 80, "old");
    assert!(greet(&app.namespace, web(12), 80).unwrap().starts_with("old"));
    world.runtime.block_on(world.host(2).overlay.detach("web.2")).unwrap();
    world.set_desired_everywhere(&desired(2, &[("app.1", 21, 1), ("web.2", 12, 1)], 2));
    let moved = Task::new("web.2", 12, true);
    world.attach(1, &moved, None);
    let _new = Greeter::start(&moved.namespace, 80, "new");
    assert!(greet(&app.namespace, web(12), 80).unwrap().starts_with("new"));
    for host in [1, 2] {
        assert!(greet(&world.client, host_address(host), 8080).unwrap().starts_with("new"));
    }
}

#[test]
fn connections_outlive_a_restart_and_changes_of_the_tables() {
    if !possible() {
        return;
    }
    let (mut world, app, web_task) = pair();
    let listener = web_task.namespace.visit(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))).unwrap();
    let mut streams = [
        app.namespace.visit(|| TcpStream::connect((web(2), 80))).unwrap(),
        world.client.visit(|| TcpStream::connect((host_address(1), 8080))).unwrap(),
    ];
    let mut accepted = [listener.accept().unwrap().0, listener.accept().unwrap().0];
    world.restart(1);
    let mut changed = desired(2, &PLACES, 2);
    // The last endpoint drains: what it has goes on.
    service_of(&mut changed).endpoints[0].serving = false;
    changed.ports[0].backends.clear();
    world.set_desired_everywhere(&changed);
    world.attach(1, &app, None);
    for stream in streams.iter_mut().chain(&mut accepted) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"still here").unwrap();
    }
    for stream in streams.iter_mut().chain(&mut accepted) {
        let mut said = [0; 10];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"still here");
    }
}
