//! What becomes of connections when those at their other end are gone: nobody waits for nobody, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "helpers of tests are test code")]

mod world;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use overlay_net::kernel::{Connections, Links, NetNs};
use overlay_net::{Desired, Protocol};
use world::*;

const PLACES: [(&str, u8, u8); 3] = [("app.1", 21, 1), ("web.1", 11, 1), ("web.2", 12, 2)];
/// A reset comes at once; this is for a machine that is busy.
const SOON: Duration = Duration::from_secs(1);

struct Scene {
    world: World,
    app: Task,
    webs: [Task; 2],
}

impl Scene {
    fn new() -> Option<Scene> {
        if !possible() {
            return None;
        }
        let world = World::new(2);
        world.set_desired_everywhere(&served_by(1, &[1, 2], &PLACES));
        let [app, one, two] = PLACES.map(|(name, last, host)| {
            let task = Task::new(name, last, name.starts_with("web"));
            world.attach(host, &task, None);
            task
        });
        Some(Scene { world, app, webs: [one, two] })
    }

    /// Where clients are, and the address that each asks.
    fn doors(&self) -> [(&NetNs, SocketAddr); 4] {
        let own = &self.world.host(1).namespace;
        [
            (&self.app.namespace, (web(2), 80).into()),
            (&self.world.client, (host_address(1), 8080).into()),
            (own, (Ipv4Addr::LOCALHOST, 8080).into()),
            (own, (host_address(1), 8080).into()),
        ]
    }

    fn listen(&self, number: usize) -> TcpListener {
        self.webs[number - 1].namespace.visit(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))).unwrap()
    }

    /// One connection from each client to this task alone; both its ends.
    fn connect(&self, revision: u64, number: usize, listener: &TcpListener) -> Vec<(TcpStream, TcpStream)> {
        self.world.set_desired_everywhere(&served_by(revision, &[number], &PLACES));
        let all = self.doors().map(|(from, to)| {
            let mut near = from.visit(|| TcpStream::connect_timeout(&to, SOON)).unwrap();
            let mut far = listener.accept().unwrap().0;
            near.set_read_timeout(Some(PATIENCE)).unwrap();
            far.set_read_timeout(Some(PATIENCE)).unwrap();
            talk(&mut near, &mut far);
            (near, far)
        });
        all.into()
    }

    /// Host 2 loses its power, as far as others see.
    fn cut(&self) {
        let mut wire = Links::open(&self.world.wire).unwrap();
        wire.delete("h2").unwrap();
    }

    fn leave_out(&self, numbers: &[u8]) {
        let hosts = numbers.iter().map(|number| host_address(*number)).collect();
        self.world.runtime.block_on(self.world.host(1).overlay.leave_out(hosts)).unwrap();
    }
}

fn talk(one: &mut TcpStream, other: &mut TcpStream) {
    for _ in 0..2 {
        one.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        other.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        std::mem::swap(one, other);
    }
}

/// The usual state, in which only these of the tasks `web.1` and `web.2` are led to; those that are not in `places` are
/// gone.
fn served_by(revision: u64, numbers: &[usize], places: &[(&str, u8, u8)]) -> Desired {
    let mut all = desired(revision, places, 2);
    let serves = |last: u8| numbers.iter().any(|number| usize::from(last) == 10 + number);
    service_of(&mut all).endpoints.iter_mut().for_each(|e| e.serving = serves(e.address.octets()[3]));
    all.ports[0].backends.retain(|address| serves(address.octets()[3]));
    let mut datagrams = all.ports[0].clone();
    datagrams.protocol = Protocol::Udp;
    all.ports.push(datagrams);
    all
}

/// Waits for bytes that never come.
fn outcome(stream: &mut TcpStream) -> ErrorKind {
    match stream.read(&mut [0; 8]) {
        Ok(count) => panic!("{count} bytes"),
        Err(error) => error.kind(),
    }
}

/// Connects from this port, which another connection may have, or from one that is free (0).
fn connect_from(from: &NetNs, port: u16, to: SocketAddrV4) -> std::io::Result<TcpStream> {
    from.visit(|| {
        let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&stream, sockopt::ReuseAddr, &true)?;
        setsockopt(&stream, sockopt::SendTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
        bind(stream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
        connect(stream.as_raw_fd(), &SockaddrIn::from(to))?;
        Ok(TcpStream::from(stream))
    })
}

#[test]
fn a_dead_hosts_connections_are_reset_also_for_those_that_only_wait() {
    let Some(scene) = Scene::new() else { return };
    let (first, second) = (scene.listen(1), scene.listen(2));
    let mut staying = scene.connect(2, 1, &first);
    let mut ending = scene.connect(3, 2, &second);
    scene.world.set_desired_everywhere(&served_by(4, &[1, 2], &PLACES));
    scene.cut();
    let start = Instant::now();
    scene.leave_out(&[2]);
    for (near, _) in &mut ending {
        assert_eq!(outcome(near), ErrorKind::ConnectionReset);
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    staying.iter_mut().for_each(|(near, far)| talk(near, far));
}

#[test]
fn the_last_endpoints_connections_end_with_the_verdict_and_not_with_the_suspicion() {
    let Some(scene) = Scene::new() else { return };
    let second = scene.listen(2);
    let mut ending = scene.connect(2, 2, &second);
    scene.leave_out(&[2]);
    // The host was only slow.
    scene.leave_out(&[]);
    ending.iter_mut().for_each(|(near, far)| talk(near, far));
    scene.leave_out(&[2]);
    scene.cut();
    scene.world.set_desired(1, &for_host(&served_by(3, &[], &PLACES), 1));
    let start = Instant::now();
    for (near, _) in &mut ending {
        assert_eq!(outcome(near), ErrorKind::ConnectionReset);
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[test]
fn a_removed_services_clients_do_not_wait_for_a_host_that_is_dead() {
    let Some(scene) = Scene::new() else { return };
    let second = scene.listen(2);
    let mut ending = scene.connect(2, 2, &second);
    scene.cut();
    // It is the only one that serves, so that the suspicion ends nothing.
    scene.leave_out(&[2]);
    ending[0].0.write_all(b"are you there?").unwrap();
    let mut removed = served_by(3, &[], &PLACES);
    for network in &mut removed.networks {
        std::sync::Arc::make_mut(network).services.clear();
    }
    removed.ports.clear();
    scene.world.set_desired(1, &for_host(&removed, 1));
    let start = Instant::now();
    for (near, _) in &mut ending {
        assert_eq!(outcome(near), ErrorKind::ConnectionReset);
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    for (from, to) in scene.doors() {
        let error = from.visit(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
}

#[test]
fn who_go_one_after_the_other_are_all_looked_for_soon() {
    let Some(scene) = Scene::new() else { return };
    let (first, second) = (scene.listen(1), scene.listen(2));
    let mut one = scene.connect(2, 1, &first);
    let mut other = scene.connect(3, 2, &second);
    scene.cut();
    // The second goes while the first is looked for.
    let gone = |revision, places: &[(&str, u8, u8)]| {
        scene.world.set_desired(1, &for_host(&served_by(revision, &[], places), 1));
    };
    gone(4, &PLACES[..2]);
    for (near, _) in &mut other {
        assert_eq!(outcome(near), ErrorKind::ConnectionReset);
    }
    scene.world.runtime.block_on(scene.world.host(1).overlay.detach("web.1")).unwrap();
    gone(5, &PLACES[..1]);
    let start = Instant::now();
    for (near, _) in &mut one {
        assert_eq!(outcome(near), ErrorKind::ConnectionReset);
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[test]
fn who_connects_to_a_host_that_dies_gets_another() {
    let Some(scene) = Scene::new() else { return };
    let first = scene.listen(1);
    scene.world.set_desired_everywhere(&served_by(2, &[2], &PLACES));
    scene.cut();
    // A first try is answered by nobody.
    let clients = scene.doors().map(|(from, to)| {
        let from = from.try_clone().unwrap();
        std::thread::spawn(move || from.visit(|| TcpStream::connect_timeout(&to, PATIENCE)).map(drop))
    });
    let asking = |(from, _): (&NetNs, SocketAddr)| {
        let mut connections = Connections::open(from).unwrap();
        connections.list(|flow| flow.answers.to_string().ends_with(".12")).unwrap().len()
    };
    eventually(|| {
        let [app, _, host, _] = scene.doors().map(asking);
        // Three of the clients ask through the host's own namespace.
        if (app, host) == (1, 3) { Ok(()) } else { Err((app, host)) }
    });
    scene.world.set_desired(1, &for_host(&served_by(3, &[1, 2], &PLACES), 1));
    scene.leave_out(&[2]);
    for client in clients {
        client.join().unwrap().unwrap();
        first.accept().unwrap();
    }
}

#[test]
fn connections_of_one_that_vanished_while_no_daemon_looked_are_reset() {
    let Some(mut scene) = Scene::new() else { return };
    let second = scene.listen(2);
    let attached = scene.world.attach(1, &scene.app, None);
    let mut ending = scene.connect(2, 2, &second);
    scene.world.restart(1);
    scene.cut();
    scene.world.set_desired(1, &for_host(&served_by(3, &[1], &PLACES[..2]), 1));
    scene.world.attach(1, &scene.app, Some(attached.sockets));
    for (near, _) in &mut ending {
        assert_eq!(outcome(near), ErrorKind::ConnectionReset);
    }
}

/// Says who it is to each datagram, for as long as its thread is wanted.
fn name_server(task: &Task, name: &'static str) {
    let socket = task.namespace.visit(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 80))).unwrap();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
            socket.send_to(name.as_bytes(), from).ok();
        }
    });
}

#[test]
fn datagrams_go_to_another_once_theirs_is_gone() {
    let Some(scene) = Scene::new() else { return };
    name_server(&scene.webs[0], "web.1");
    name_server(&scene.webs[1], "web.2");
    scene.world.set_desired_everywhere(&served_by(2, &[2], &PLACES));
    let sockets = scene.doors().map(|(from, to)| {
        let socket = from.visit(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        // Nothing but what comes from there is taken.
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket
    });
    let ask = |socket: &UdpSocket| {
        socket.send(b"?")?;
        let mut said = [0; 16];
        let length = socket.recv(&mut said)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&said[..length]).into_owned())
    };
    for socket in &sockets {
        assert_eq!(eventually(|| ask(socket)), "web.2");
    }
    // It drains: what it has is its own.
    scene.world.set_desired_everywhere(&served_by(3, &[1], &PLACES));
    for socket in &sockets {
        assert_eq!(ask(socket).unwrap(), "web.2");
    }
    scene.world.set_desired_everywhere(&served_by(4, &[1], &PLACES[..2]));
    scene.world.runtime.block_on(scene.world.host(2).overlay.detach("web.2")).unwrap();
    let start = Instant::now();
    for socket in &sockets {
        assert_eq!(eventually(|| ask(socket)), "web.1");
    }
    assert!(start.elapsed() < 2 * SOON, "{:?}", start.elapsed());
}

#[test]
fn datagrams_from_one_port_are_answered_through_the_host_that_was_asked() {
    let Some(scene) = Scene::new() else { return };
    scene.world.set_desired_everywhere(&served_by(2, &[2], &PLACES));
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 80));
    let server = scene.webs[1].namespace.visit(bind).unwrap();
    let client = scene.world.client.visit(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut seen = [0; 8];
    let ports = [1, 2, 1].map(|number| {
        client.send_to(b"?", (host_address(number), 8080)).unwrap();
        let (_, from) = server.recv_from(&mut seen).unwrap();
        assert_eq!(from.ip(), CLIENT);
        server.send_to(b"!", from).unwrap();
        assert_eq!(client.recv_from(&mut seen).unwrap().1, (host_address(number), 8080).into());
        from.port()
    });
    assert_eq!(ports[0], ports[2]);
    assert_ne!(ports[0], ports[1], "two flows");
}

#[test]
fn a_client_may_ask_two_hosts_from_the_same_port() {
    let Some(scene) = Scene::new() else { return };
    let listener = scene.listen(2);
    scene.world.set_desired_everywhere(&served_by(2, &[2], &PLACES));
    let door = |number| SocketAddrV4::new(host_address(number), 8080);
    let accept = || {
        let (far, client) = listener.accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.ip(), CLIENT);
        (far, client.port())
    };
    let mut first = connect_from(&scene.world.client, 0, door(1)).unwrap();
    let port = first.local_addr().unwrap().port();
    let (mut served, seen) = accept();
    assert_eq!(seen, port, "nobody else has it");
    // As often as servers close connections first, which are remembered for a while then.
    for _ in 0..3 {
        let mut second = connect_from(&scene.world.client, port, door(2)).unwrap();
        let (mut also_served, seen) = accept();
        assert_ne!(seen, port);
        talk(&mut second, &mut also_served);
        talk(&mut first, &mut served);
        drop(also_served);
        assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);
    }
    talk(&mut first, &mut served);
}

#[test]
fn idle_connections_live_as_long_as_the_kernel_says() {
    let Some(scene) = Scene::new() else { return };
    let second = scene.listen(2);
    let mut pairs = scene.connect(2, 2, &second);
    // Nothing that changes in the cluster has to do with them.
    scene.world.set_desired_everywhere(&served_by(3, &[1, 2], &PLACES));
    scene.leave_out(&[1]);
    scene.leave_out(&[]);
    for (from, count) in [(&scene.app.namespace, 1), (&scene.world.host(1).namespace, 3)] {
        let mut connections = Connections::open(from).unwrap();
        let tcp = connections.list(|flow| flow.protocol == Protocol::Tcp.number()).unwrap();
        assert_eq!(tcp.len(), count, "{tcp:?}");
        let days = |flow: &overlay_net::kernel::Flow| flow.idle_s / 86_400;
        assert!(tcp.iter().all(|flow| days(flow) >= 4), "five days are usual: {tcp:?}");
    }
    pairs.iter_mut().for_each(|(near, far)| talk(near, far));
}
