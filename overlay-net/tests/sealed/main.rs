//! Encrypted networks between hosts. Where the kernel has no WireGuard, that is what is tested: such a host carries none.
//! `.ci/machine sealed` runs the same binary on one that has it.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub)]

mod wire;
#[path = "../world/mod.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use overlay_net::kernel::{Links, NetNs};
use overlay_net::{Desired, Overlay, OverlayError, Place, Sealing, SealingKey};

use wire::{Seen, Tap, forge};
use world::*;

const TEXT: &[u8] = b"nobody else is to read this";
const PORT: u16 = 7777;
const HOSTS: u8 = 3;
/// Some rounds of the audit, and a handshake that has to be tried again.
const LONG: Duration = Duration::from_secs(40);

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&str> = args.iter().filter(|arg| !arg.starts_with('-')).map(String::as_str).collect();
    if !possible() {
        return ExitCode::SUCCESS;
    }
    if run(&filters) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether this is the machine that `.ci/machine` boots.
fn in_machine() -> bool {
    std::env::var_os("SHOAL_TEST_MACHINE").is_some()
}

fn run(filters: &[&str]) -> i32 {
    const WITH: &[Test] = &[
        ("what_is_on_the_wire", what_is_on_the_wire),
        ("forged_packets_are_dropped", forged_packets_are_dropped),
        ("a_host_without_a_peers_key_sends_nothing", a_host_without_a_peers_key_sends_nothing),
        ("rotations_and_a_restart_lose_nothing", rotations_and_a_restart_lose_nothing),
        ("what_others_change_is_repaired", what_others_change_is_repaired),
        ("nothing_remains", nothing_remains),
        ("a_port_that_somebody_has_is_waited_for", a_port_that_somebody_has_is_waited_for),
        ("throughput", throughput),
    ];
    const WITHOUT: &[Test] = &[("a_host_without_wireguard_carries_none", a_host_without_wireguard_carries_none)];
    let has = Overlay::try_sealing();
    if let Err(error) = &has {
        // The machine that is booted for this has it, or lacks a module.
        if in_machine() {
            println!("{error}");
            return 1;
        }
        println!("{error}: only that is tested; .ci/machine has one");
    }
    let tests = if has.is_ok() { WITH } else { WITHOUT };
    let chosen = tests.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|part| name.contains(part)));
    let chosen: Vec<&Test> = chosen.collect();
    if in_machine() && chosen.is_empty() {
        println!("there are no such tests");
        return 1;
    }
    let mut failed = 0;
    for (name, test) in chosen {
        println!("test {name}");
        let begin = Instant::now();
        let outcome = std::panic::catch_unwind(test);
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({:.1} s)", begin.elapsed().as_secs_f32());
        failed += i32::from(outcome.is_err());
    }
    failed.min(1)
}

/// Network `web` is encrypted, `ingress` is not, and both have the same three tasks.
fn encrypted(revision: u64) -> Desired {
    let mut desired = desired(revision, &[("web.1", 11, 1), ("web.2", 12, 2), ("web.3", 13, 3)], HOSTS);
    Arc::make_mut(&mut desired.networks[0]).encrypted = true;
    desired
}

/// The keys that each host says it has, as all of them are told.
fn all_keys(world: &World, epoch: u64) -> Sealing {
    let keys = |host: &Host| -> Vec<SealingKey> { host.overlay.sealing().borrow().keys.clone() };
    Sealing { epoch, peers: world.hosts.iter().map(|host| (host_address(host.number), keys(host))).collect() }
}

/// Tells every host what there is until all of them know all keys of an epoch.
fn tell_all(world: &World, wanted: &Desired, epoch: u64) {
    for _ in 0..2 {
        for number in 1..=HOSTS {
            let sealing = Some(all_keys(world, epoch));
            world.set_desired(number, &for_host(&Desired { sealing, ..wanted.clone() }, number));
        }
    }
    let known = all_keys(world, epoch);
    assert!(known.peers.values().all(|keys| keys.iter().any(|key| key.epoch == epoch)), "{known:?}");
}

fn sealed_namespace(world: &World, number: u8) -> NetNs {
    NetNs::open(&world.pin(number).with_file_name("sealed")).unwrap()
}

/// The device that leads to each other host.
fn ways(world: &World, number: u8) -> BTreeMap<Ipv4Addr, String> {
    let mut links = Links::open(&sealed_namespace(world, number)).unwrap();
    let routes = links.routes().unwrap();
    let names: BTreeMap<u32, String> = links.list().unwrap().into_iter().map(|link| (link.index, link.name)).collect();
    routes.into_iter().map(|(net, index)| (net.addr(), names[&index].clone())).collect()
}

/// Three hosts, a task on each.
fn usual() -> (World, BTreeMap<u8, Task>) {
    let world = World::new(HOSTS);
    tell_all(&world, &encrypted(1), 1);
    let tasks: BTreeMap<u8, Task> = (1..=HOSTS).map(|n| (n, Task::new(&format!("web.{n}"), 10 + n, true))).collect();
    for (number, task) in &tasks {
        world.attach(*number, task, None);
    }
    (world, tasks)
}

fn socket(task: &Task) -> UdpSocket {
    let socket = task.namespace.visit(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // What a machine without a processor to spare is late to read is not lost.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20)).unwrap();
    socket
}

/// Sends until something comes.
fn say(from: &UdpSocket, to: &UdpSocket, address: Ipv4Addr, text: &[u8]) {
    to.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 2048];
    eventually(|| {
        from.send_to(text, (address, PORT)).map_err(|error| error.to_string())?;
        let (length, _) = to.recv_from(&mut buffer).map_err(|error| error.to_string())?;
        if &buffer[..length] == text { Ok(()) } else { Err("something else came".to_owned()) }
    });
    to.set_read_timeout(Some(PATIENCE)).unwrap();
}

fn ingress(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn what_is_on_the_wire() {
    let (world, tasks) = usual();
    let (one, two) = (socket(&tasks[&1]), socket(&tasks[&2]));
    // What is not encrypted can be read, which shows that there is a wire to look at.
    let tap = Tap::start(&world.wire, TEXT, INGRESS_VNI);
    say(&one, &two, ingress(12), TEXT);
    let seen = tap.stop();
    assert!(seen.readable > 0 && seen.tunnelled > 0 && seen.sealed == [0, 0], "{seen:?}");
    let tap = Tap::start(&world.wire, TEXT, WEB_VNI);
    let long: Vec<u8> = TEXT.iter().copied().cycle().take(1200).collect();
    for _ in 0..20 {
        say(&one, &two, web(12), &long);
        say(&two, &one, web(11), TEXT);
    }
    let _greeter = Greeter::start(&tasks[&3].namespace, 80, "nobody else is to read this");
    let said = eventually(|| greet(&tasks[&1].namespace, web(13), 80));
    assert!(said.starts_with("nobody else"), "{said}");
    let seen = tap.stop();
    assert!(seen.readable == 0 && seen.tunnelled == 0 && seen.sealed[1] > 40, "{seen:?}");
    // What WireGuard needs is left to it.
    let mtu = |interface: &str| Links::open(&tasks[&1].namespace).unwrap().find(interface).unwrap().unwrap().mtu;
    assert_eq!((mtu("eth0"), mtu("eth1"), mtu("eth2")), (1390, 1450, 1500));
    // A frame of full length is one packet on the wire, and no longer than that may be.
    let full: Vec<u8> = TEXT.iter().copied().cycle().take(1390 - 28).collect();
    say(&one, &two, web(12), &full);
}

fn forged_packets_are_dropped() {
    let (world, tasks) = usual();
    let (one, two) = (socket(&tasks[&1]), socket(&tasks[&2]));
    let mut buffer = [0; 2048];
    say(&one, &two, web(12), b"first");
    // On a network that is not encrypted such a packet comes to the task, so it is well formed.
    two.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    eventually(|| {
        forge(&world.client, host_address(2), INGRESS_VNI, ingress(12), PORT, b"forged");
        two.recv_from(&mut buffer)
    });
    assert_eq!(&buffer[..6], b"forged");
    while two.recv_from(&mut buffer).is_ok() {}
    for from in [&world.client, &world.host(3).namespace, &tasks[&2].namespace] {
        forge(from, host_address(2), WEB_VNI, web(12), PORT, b"forged");
    }
    // Behind what was forged comes what is true, and nothing before it.
    say(&one, &two, web(12), b"true");
    for _ in 0..5 {
        forge(&world.client, host_address(2), WEB_VNI, web(12), PORT, b"forged");
        one.send_to(b"true", (web(12), PORT)).unwrap();
        let (length, _) = two.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"true");
    }
}

fn a_host_without_a_peers_key_sends_nothing() {
    let (world, tasks) = usual();
    let (one, two) = (socket(&tasks[&1]), socket(&tasks[&2]));
    say(&one, &two, web(12), TEXT);
    let wanted = encrypted(2);
    let mut sealing = all_keys(&world, 1);
    sealing.peers.remove(&host_address(2));
    world.set_desired(1, &for_host(&Desired { sealing: Some(sealing), ..wanted.clone() }, 1));
    let tap = Tap::start(&world.wire, TEXT, WEB_VNI);
    for _ in 0..20 {
        // The kernel may say that there is no way.
        one.send_to(TEXT, (web(12), PORT)).ok();
    }
    two.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(two.recv_from(&mut [0; 100]).is_err());
    let Seen { readable, tunnelled, .. } = tap.stop();
    assert_eq!((readable, tunnelled), (0, 0));
    tell_all(&world, &encrypted(3), 1);
    say(&one, &two, web(12), TEXT);
}

/// Datagrams with numbers that are answered by the other side: some hundred a second, as many as an emulated processor
/// has time for.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    send: std::thread::JoinHandle<usize>,
    receive: std::thread::JoinHandle<BTreeSet<usize>>,
    echo: std::thread::JoinHandle<()>,
}

impl Stream {
    fn start(from: UdpSocket, to: UdpSocket, address: Ipv4Addr) -> Stream {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        to.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        from.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let stopped = Arc::clone(&stop);
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            loop {
                match to.recv_from(&mut buffer) {
                    Ok((length, peer)) => drop(to.send_to(&buffer[..length], peer)),
                    Err(_) if stopped.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        });
        let sender = from.try_clone().unwrap();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let send = std::thread::spawn(move || {
            let mut number = 0usize;
            while !stopped.load(Ordering::Relaxed) {
                sender.send_to(&number.to_be_bytes(), (address, PORT)).unwrap();
                number += 1;
                count.store(number, Ordering::Relaxed);
                // The rate is what is wanted here; nothing waits for this.
                std::thread::sleep(Duration::from_micros(500));
            }
            number
        });
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let receive = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let mut numbers = BTreeSet::new();
            loop {
                match from.recv_from(&mut buffer) {
                    Ok((8, _)) => drop(numbers.insert(usize::from_be_bytes(buffer[..8].try_into().unwrap()))),
                    Ok(_) => panic!("nobody sends that"),
                    Err(_) if stopped.load(Ordering::Relaxed) => return numbers,
                    Err(_) => {}
                }
                if stopped.load(Ordering::Relaxed) && numbers.len() == count.load(Ordering::Relaxed) {
                    return numbers;
                }
            }
        });
        Stream { stop, sent, send, receive, echo }
    }

    /// How many were sent, and which did not come back.
    fn stop(self) -> (usize, Vec<usize>) {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.send.join().unwrap();
        let came = self.receive.join().unwrap();
        self.echo.join().unwrap();
        (sent, (0..sent).filter(|number| !came.contains(number)).collect())
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Looks until it is so, for at most [`LONG`]. Each look asks the kernel, so there is a pause in between.
#[track_caller]
fn until<E: std::fmt::Debug>(mut look: impl FnMut() -> Result<(), E>) {
    let deadline = Instant::now() + LONG;
    while let Err(error) = look() {
        assert!(Instant::now() < deadline, "{error:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Until every host sends to every other one through this device.
#[track_caller]
fn until_moved(world: &World, device: &str) {
    until(|| {
        let all: Vec<_> = (1..=HOSTS).map(|number| ways(world, number)).collect();
        let moved = |ways: &BTreeMap<Ipv4Addr, String>| {
            ways.len() == usize::from(HOSTS) - 1 && ways.values().all(|name| name == device)
        };
        if all.iter().all(moved) { Ok(()) } else { Err(format!("not all ways lead through {device}: {all:?}")) }
    });
}

fn rotations_and_a_restart_lose_nothing() {
    let (mut world, tasks) = usual();
    let (one, two) = (socket(&tasks[&1]), socket(&tasks[&2]));
    say(&one, &two, web(12), b"12345678");
    let stream = Stream::start(one, two, web(12));
    let first = world.host(1).overlay.sealing().borrow().keys.clone();
    // The hosts learn of the new keys one by one.
    let mut steps = vec![stream.sent()];
    tell_all(&world, &encrypted(2), 2);
    steps.push(stream.sent());
    until_moved(&world, "shw-0");
    steps.push(stream.sent());
    let second = world.host(1).overlay.sealing().borrow().keys.clone();
    assert_eq!((first.len(), second.len(), first[0]), (1, 2, second[0]), "the old key is kept while it may be used");
    world.restart(1);
    tell_all(&world, &encrypted(3), 2);
    assert_eq!(world.host(1).overlay.sealing().borrow().keys, second, "the kernel has kept the keys");
    world.attach(1, &tasks[&1], None);
    steps.push(stream.sent());
    tell_all(&world, &encrypted(4), 3);
    steps.push(stream.sent());
    until_moved(&world, "shw-1");
    let third = world.host(1).overlay.sealing().borrow().keys.clone();
    assert_eq!((third[0], third[1].epoch), (second[1], 3));
    let last = stream.sent();
    let (sent, lost) = stream.stop();
    println!("two rotations and a restart: {} of {sent} datagrams were lost; steps ended at {steps:?}", lost.len());
    assert_eq!(lost, Vec::<usize>::new());
    assert!(last > 500, "there was too little traffic to tell: {last}");
}

fn what_others_change_is_repaired() {
    let (world, tasks) = usual();
    let (one, two) = (socket(&tasks[&1]), socket(&tasks[&2]));
    say(&one, &two, web(12), TEXT);
    let namespace = sealed_namespace(&world, 1);
    let mut links = Links::open(&namespace).unwrap();
    links.set_down("shw-1").unwrap();
    until(|| {
        let up = links.find("shw-1").unwrap().is_some_and(|link| link.up);
        if up && ways(&world, 1).len() == 2 { Ok(()) } else { Err("it stays down") }
    });
    say(&one, &two, web(12), TEXT);
    let overlay = world.host(1).overlay.clone();
    let lacks = world.runtime.block_on(overlay.examine(Place::Links)).unwrap();
    assert_eq!(lacks, Vec::<String>::new());
    // A device that is gone takes its key with it; the others are told the new one.
    let mut keys = world.host(1).overlay.sealing();
    let before = keys.borrow_and_update().clone();
    links.delete("shw-1").unwrap();
    world.runtime.block_on(async { tokio::time::timeout(LONG, keys.changed()).await }).unwrap().unwrap();
    assert_ne!(*keys.borrow(), before);
    tell_all(&world, &encrypted(2), 1);
    say(&one, &two, web(12), TEXT);
    // One whose socket is where anybody could reach it is not taken for ours.
    let inner = NetNs::open(&world.pin(1)).unwrap();
    let name = format!("vx-{WEB_VNI:x}");
    let vxlan = overlay_net::kernel::Vxlan { vni: WEB_VNI, local: host_address(1), port: 4789, mtu: 1390 };
    let (mut inside, mut outside) = (Links::open(&inner).unwrap(), Links::open(&world.host(1).namespace).unwrap());
    let tap = Tap::start(&world.wire, TEXT, WEB_VNI);
    // Ours may be back first.
    eventually(|| {
        inside.delete(&name).ok();
        outside.create_vxlan_into(&inner, &name, &vxlan)
    });
    let foreign = inside.find(&name).unwrap().unwrap().index;
    until(|| {
        one.send_to(TEXT, (web(12), PORT)).ok();
        let ours = inside.find(&name).unwrap().is_some_and(|link| link.index != foreign);
        if ours { Ok(()) } else { Err("it is taken for ours") }
    });
    say(&one, &two, web(12), TEXT);
    let seen = tap.stop();
    assert_eq!((seen.readable, seen.tunnelled), (0, 0));
}

fn nothing_remains() {
    let (world, tasks) = usual();
    // Keys go with the last encrypted network, and not while somebody is linked to it.
    let mut plain = desired(2, &[], HOSTS);
    plain.networks.remove(0);
    let mut keys = world.host(2).overlay.sealing();
    world.set_desired(2, &for_host(&plain, 2));
    assert_eq!(keys.borrow_and_update().keys.len(), 1);
    world.runtime.block_on(world.host(2).overlay.detach(&tasks[&2].config.task)).unwrap();
    plain.revision = 3;
    world.set_desired(2, &for_host(&plain, 2));
    world.runtime.block_on(async { tokio::time::timeout(LONG, keys.changed()).await }).unwrap().unwrap();
    assert_eq!(keys.borrow().keys.len(), 0);
    let mut links = Links::open(&sealed_namespace(&world, 2)).unwrap();
    assert!(links.list().unwrap().iter().all(|link| link.kind != "wireguard"));
    let pin = world.pin(1).with_file_name("sealed");
    assert!(pin.exists());
    let overlay = world.host(1).overlay.clone();
    world.runtime.block_on(overlay.destroy()).unwrap();
    assert!(!pin.exists());
    assert_eq!(link_names(&world.host(1).namespace), ["u0"]);
    // The ports are free at once.
    let bind = |port| world.host(1).namespace.visit(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
    wire::SEALED.iter().for_each(|port| drop(bind(*port).unwrap()));
}

fn a_port_that_somebody_has_is_waited_for() {
    let world = World::new(HOSTS);
    let host = world.host(1);
    let sealing = || Sealing { epoch: 1, peers: BTreeMap::new() };
    let wanted = |revision| for_host(&Desired { sealing: Some(sealing()), ..encrypted(revision) }, 1);
    assert_eq!(host.overlay.sealing().borrow().obstacle, None);
    let other = host.namespace.visit(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, wire::SEALED[1]))).unwrap();
    world.runtime.block_on(host.overlay.set_desired(wanted(1))).expect_err("it has no port");
    let obstacle = host.overlay.sealing().borrow().obstacle.clone().unwrap();
    assert!(obstacle.contains("4791 of this host is in use"), "{obstacle}");
    let task = Task::new("web.1", 11, true);
    let attached = world.runtime.block_on(host.overlay.attach(task.fd(), task.config.clone(), None));
    let error = attached.expect_err("nobody is attached to it");
    assert!(error.retry_helps() && matches!(error, OverlayError::NoSeal { .. }), "{error:?}");
    // Its tasks go elsewhere; that it can again is found out without any.
    world.set_desired(1, &for_host(&desired(2, &[], HOSTS), 1));
    assert!(host.overlay.sealing().borrow().obstacle.is_some());
    drop(other);
    let mut report = host.overlay.sealing();
    let able = world
        .runtime
        .block_on(async { tokio::time::timeout(LONG, report.wait_for(|report| report.obstacle.is_none())).await });
    able.unwrap().unwrap();
    world.set_desired(1, &wanted(3));
    world.attach(1, &task, None);
}

/// Bytes per second of one TCP stream.
fn rate(from: &Task, to: &Task, address: Ipv4Addr, span: Duration) -> f64 {
    let listener = to.namespace.visit(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5001))).unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 18];
        let (begin, mut total) = (Instant::now(), 0);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            total += length;
        }
        total as f64 / begin.elapsed().as_secs_f64()
    });
    let mut stream = eventually(|| from.namespace.visit(|| TcpStream::connect((address, 5001))));
    let (begin, buffer) = (Instant::now(), vec![7; 1 << 16]);
    while begin.elapsed() < span {
        stream.write_all(&buffer).unwrap();
    }
    drop(stream);
    reader.join().unwrap()
}

fn throughput() {
    let (_world, tasks) = usual();
    let (mut plain, mut sealed) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        plain.push(rate(&tasks[&1], &tasks[&2], ingress(12), Duration::from_millis(1500)));
        sealed.push(rate(&tasks[&1], &tasks[&2], web(12), Duration::from_millis(1500)));
    }
    plain.sort_by(f64::total_cmp);
    sealed.sort_by(f64::total_cmp);
    let (plain, sealed) = (plain[1], sealed[1]);
    println!(
        "one TCP stream, median of 3: {:.0} Mbit/s plain, {:.0} Mbit/s encrypted, {:.2} of it",
        plain * 8e-6,
        sealed * 8e-6,
        sealed / plain
    );
    assert!(sealed > 0.0);
}

fn a_host_without_wireguard_carries_none() {
    let world = World::new(2);
    let mut wanted = desired(1, &[("web.1", 11, 1), ("web.2", 12, 2)], 2);
    Arc::make_mut(&mut wanted.networks[0]).encrypted = true;
    wanted.sealing = Some(Sealing { epoch: 1, peers: BTreeMap::new() });
    let overlay = &world.host(1).overlay;
    let set = world.runtime.block_on(overlay.set_desired(for_host(&wanted, 1)));
    let error = set.expect_err("it cannot be carried");
    let OverlayError::Partial(objects) = &error else { panic!("{error:?}") };
    assert!(objects.iter().any(|object| object.to_string().contains("has no WireGuard")), "{objects:?}");
    let task = Task::new("web.1", 11, true);
    let attached = world.runtime.block_on(overlay.attach(task.fd(), task.config.clone(), None));
    let error = attached.expect_err("nobody is attached to it");
    assert!(!error.retry_helps(), "{error:?}");
    let text = "task \"web.1\": network \"webnet\" is encrypted, and the kernel of this host has no WireGuard";
    assert_eq!(error.to_string(), text);
    let report = overlay.sealing().borrow().clone();
    assert_eq!(report.obstacle.as_deref(), Some("the kernel of this host has no WireGuard"));
    assert!(report.keys.is_empty());
    assert!(!world.pin(1).with_file_name("sealed").exists());
    // No device of the network is there, and the other network has one.
    let inner = NetNs::open(&world.pin(1)).unwrap();
    let tunnel = |vni: u32| Links::open(&inner).unwrap().find(&format!("vx-{vni:x}")).unwrap().is_some();
    assert_eq!((tunnel(WEB_VNI), tunnel(INGRESS_VNI)), (false, true));
}
