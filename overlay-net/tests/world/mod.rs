//! A little world for the tests: hosts and an outside client on one wire, tasks on the hosts. All of it is network
//! namespaces of this test alone, which vanish with their last handle.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of the world")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is test code throughout")]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use overlay_net::kernel::{Links, NetNs, Peer};
use overlay_net::{
    Attached, Attachment, Config, Desired, DnsSockets, Endpoint, EndpointConfig, Network, Overlay, PortMode, Protocol,
    PublishedPort, Resolvers, Service, ServicePort, Station,
};

pub const PATIENCE: Duration = Duration::from_secs(10);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);
pub const INGRESS_VNI: u32 = 0x10_0000;
pub const WEB_VNI: u32 = 0x10_0001;

/// Time that this process was given, from some moment on. What a machine that is busy with others takes from it does not
/// count, so that a target is held or not whatever else goes on.
pub fn given() -> Duration {
    const TICK: Duration = Duration::from_millis(5);
    static TICKS: AtomicU32 = AtomicU32::new(0);
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(TICK);
                TICKS.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    TICK * TICKS.load(Ordering::Relaxed)
}

/// Whether this machine lets us make network namespaces; says why not.
pub fn possible() -> bool {
    if let Err(error) = NetNs::anonymous() {
        println!("skipped: cannot make a network namespace ({error}); root is needed");
        return false;
    }
    true
}

pub fn host_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

pub fn ingress_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

pub struct World {
    pub wire: NetNs,
    pub client: NetNs,
    pub hosts: Vec<Host>,
    pub runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
}

pub struct Host {
    pub number: u8,
    pub namespace: NetNs,
    pub overlay: Overlay,
    pub config: Config,
    /// It has tasks that it may not have adopted yet.
    pub restarted: bool,
}

fn plug(wire: &NetNs, namespace: &NetNs, port: &str, address: Ipv4Addr) {
    let mut bridge = Links::open(wire).unwrap();
    let mut links = Links::open(namespace).unwrap();
    bridge.create_veth_into(port, None, 1500, &Peer { namespace, name: "u0", mac: None }).unwrap();
    bridge.set_controller(port, Some("wire")).unwrap();
    bridge.set_up(port).unwrap();
    links.set_up("lo").unwrap();
    links.add_address("u0", format!("{address}/24").parse().unwrap()).unwrap();
    links.set_up("u0").unwrap();
    links.wait_running("u0", PATIENCE).unwrap();
    bridge.wait_running(port, PATIENCE).unwrap();
}

impl World {
    pub fn new(hosts: u8) -> World {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let wire = NetNs::anonymous().unwrap();
        let mut bridge = Links::open(&wire).unwrap();
        bridge.create_bridge("wire").unwrap();
        bridge.set_up("wire").unwrap();
        let client = NetNs::anonymous().unwrap();
        plug(&wire, &client, "client", CLIENT);
        let hosts = (1..=hosts)
            .map(|number| {
                let namespace = NetNs::anonymous().unwrap();
                plug(&wire, &namespace, &format!("h{number}"), host_address(number));
                let config = Config {
                    run_dir: directory.path().join(format!("h{number}")),
                    node: format!("n{number}"),
                    data_path_addr: host_address(number),
                    data_path_port: 4789,
                    resolvers: Resolvers::Fixed(vec![CLIENT.into()]),
                };
                let overlay = start(&namespace, &config);
                Host { number, namespace, overlay, config, restarted: false }
            })
            .collect();
        World { wire, client, hosts, runtime, directory }
    }

    pub fn host(&self, number: u8) -> &Host {
        &self.hosts[usize::from(number - 1)]
    }

    pub fn set_desired(&self, number: u8, desired: &Desired) {
        let host = self.host(number);
        self.runtime.block_on(host.overlay.set_desired(desired.clone())).unwrap();
        assert!(host.restarted || *host.overlay.applied_revision().borrow() == desired.revision);
    }

    pub fn set_desired_everywhere(&self, desired: &Desired) {
        for host in &self.hosts {
            self.set_desired(host.number, &for_host(desired, host.number));
        }
    }

    pub fn attach(&self, number: u8, task: &Task, sockets: Option<DnsSockets>) -> Attached {
        let overlay = &self.host(number).overlay;
        self.runtime.block_on(overlay.attach(task.fd(), task.config.clone(), sockets)).unwrap()
    }

    /// Drops a host's overlay without a word and starts a new one, as a daemon's crash and restart would.
    pub fn restart(&mut self, number: u8) {
        let host = &mut self.hosts[usize::from(number - 1)];
        host.overlay = start(&host.namespace, &host.config);
        host.restarted = true;
    }

    pub fn pin(&self, number: u8) -> PathBuf {
        self.host(number).config.namespace_path()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for host in self.hosts.drain(..) {
            let pin = host.config.namespace_path();
            self.runtime.block_on(host.overlay.destroy()).ok();
            NetNs::delete(&pin).ok();
        }
    }
}

pub fn start(namespace: &NetNs, config: &Config) -> Overlay {
    let started = namespace.visit(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Overlay::start(config.clone())).map_err(|error| io::Error::other(format!("{error:?}")))
    });
    started.unwrap()
}

/// The desired state as one host is told it: with its own ingress address.
pub fn for_host(desired: &Desired, number: u8) -> Desired {
    let mut desired = desired.clone();
    for network in desired.networks.iter_mut().filter(|network| network.ingress) {
        Arc::make_mut(network).host_address = Some(ingress_address(number));
    }
    desired
}

pub struct Task {
    pub namespace: NetNs,
    pub config: EndpointConfig,
    pub address: Ipv4Addr,
}

impl Task {
    /// A task on the network `web`, and with `ingress` on that one too (at the same last byte).
    pub fn new(name: &str, last: u8, ingress: bool) -> Task {
        let mut attachments =
            vec![Attachment { network: "webnet".into(), address: web(last), aliases: vec!["self-alias".into()] }];
        if ingress {
            let address = Ipv4Addr::new(10, 0, 0, last);
            attachments.push(Attachment { network: "ingressnet".into(), address, aliases: vec![] });
        }
        Task {
            namespace: NetNs::anonymous().unwrap(),
            config: EndpointConfig {
                task: name.into(),
                hostname: format!("{name}-host"),
                attachments,
                dns_search: vec![],
                dns_servers: vec![],
            },
            address: web(last),
        }
    }

    pub fn fd(&self) -> OwnedFd {
        self.namespace.fd().try_clone_to_owned().unwrap()
    }
}

pub fn web(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

pub fn endpoint(name: &str, last: u8) -> Endpoint {
    Endpoint { task: name.into(), name: name.into(), address: web(last), names: vec![], serving: true }
}

/// Networks `web` (service `web` with a virtual address at .2, endpoints as given: name, last byte, host) and
/// `ingress` (port 8080 to port 80 of the same tasks).
pub fn desired(revision: u64, endpoints: &[(&str, u8, u8)], hosts: u8) -> Desired {
    let stations = |net: u8| {
        endpoints.iter().map(move |(_, last, host)| Station {
            address: Ipv4Addr::new(10, 0, net, *last),
            host: host_address(*host),
        })
    };
    let service = Service {
        name: "web".into(),
        aliases: vec!["www".into()],
        vip: Some(web(2)),
        endpoints: endpoints.iter().filter(|e| e.0.starts_with("web")).map(|e| endpoint(e.0, e.1)).collect(),
        ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, target: 80 }],
    };
    let network = |id: &str, name: &str, vni, net: u8| Network {
        id: id.into(),
        name: name.into(),
        vni,
        subnet: format!("10.0.{net}.0/24").parse().unwrap(),
        subnet6: None,
        encrypted: false,
        gateway: Ipv4Addr::new(10, 0, net, 1),
        internal: false,
        ingress: net == 0,
        local: false,
        mtu: None,
        host_address: None,
        stations: stations(net).collect(),
        services: vec![],
    };
    let mut web_network = network("webnet", "web-network", WEB_VNI, 1);
    web_network.services = vec![service.into()];
    let mut ingress = network("ingressnet", "ingress", INGRESS_VNI, 0);
    ingress
        .stations
        .extend((1..=hosts).map(|number| Station { address: ingress_address(number), host: host_address(number) }));
    let port = PublishedPort {
        published: 8080,
        target: 80,
        protocol: Protocol::Tcp,
        mode: PortMode::Ingress,
        backends: endpoints.iter().filter(|e| e.0.starts_with("web")).map(|e| Ipv4Addr::new(10, 0, 0, e.1)).collect(),
        task: None,
    };
    Desired {
        revision,
        networks: vec![web_network.into(), ingress.into()],
        ports: vec![port],
        sealing: None,
        taken: Vec::new(),
    }
}

/// The one service of [`desired`], to be changed.
pub fn service_of(desired: &mut Desired) -> &mut Service {
    let network = Arc::make_mut(&mut desired.networks[0]);
    Arc::make_mut(&mut network.services[0])
}

/// A TCP server in a namespace that says `name client-address` to each client and hangs up.
pub struct Greeter {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Greeter {
    pub fn start(namespace: &NetNs, port: u16, name: &str) -> Greeter {
        Greeter::at(namespace, Ipv4Addr::UNSPECIFIED.into(), port, name)
    }

    pub fn at(namespace: &NetNs, address: IpAddr, port: u16, name: &str) -> Greeter {
        let listener = namespace.visit(|| TcpListener::bind((address, port))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), name.to_owned());
        let thread = std::thread::spawn(move || {
            let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&listener), nix::poll::PollFlags::POLLIN)];
            while !stopped.load(Ordering::Relaxed) {
                nix::poll::poll(&mut poll, 50u16).unwrap();
                while let Ok((mut stream, peer)) = listener.accept() {
                    stream.write_all(format!("{name} {}", peer.ip()).as_bytes()).ok();
                }
            }
        });
        Greeter { stop, thread: Some(thread) }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Connects from a namespace and gives what the greeter said.
pub fn greet(from: &NetNs, address: impl Into<IpAddr>, port: u16) -> io::Result<String> {
    greet_within(from, address, port, Duration::from_secs(3))
}

pub fn greet_within(from: &NetNs, address: impl Into<IpAddr>, port: u16, patience: Duration) -> io::Result<String> {
    let to = SocketAddr::new(address.into(), port);
    from.visit(|| {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })
}

/// Tries until it works, or the patience is at its end.
#[track_caller]
pub fn eventually<T, E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("still failing: {error:?}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

pub fn query(name: &str, kind: u16) -> Vec<u8> {
    static ID: AtomicU16 = AtomicU16::new(1);
    let mut packet = ID.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec();
    packet.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(label.len() as u8);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet
}

/// Response code and addresses of an answer to `query` without other records.
pub fn answer(reply: &[u8], question: usize) -> (u8, Vec<Ipv4Addr>) {
    let count = usize::from(u16::from_be_bytes([reply[6], reply[7]]));
    let records = reply[question..].chunks_exact(16).take(count);
    (reply[3] & 15, records.map(|r| Ipv4Addr::new(r[12], r[13], r[14], r[15])).collect())
}

/// Asks 127.0.0.11:53 from a namespace, by UDP.
pub fn look_up(from: &NetNs, name: &str) -> io::Result<(u8, Vec<Ipv4Addr>)> {
    look_up_within(from, name, Duration::from_secs(3))
}

pub fn look_up_within(from: &NetNs, name: &str, patience: Duration) -> io::Result<(u8, Vec<Ipv4Addr>)> {
    let packet = query(name, 1);
    let reply = exchange_within(from, &packet, patience)?;
    Ok(answer(&reply, packet.len()))
}

pub fn exchange(from: &NetNs, packet: &[u8]) -> io::Result<Vec<u8>> {
    exchange_within(from, packet, Duration::from_secs(3))
}

pub fn exchange_within(from: &NetNs, packet: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let socket = from.visit(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((overlay_net::dns::ADDRESS, 53))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(packet)?;
    let mut reply = vec![0; 4096];
    let length = socket.recv(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

/// Names of all links in a namespace, without `lo` and the tunnel devices that some kernels put everywhere.
pub fn link_names(namespace: &NetNs) -> Vec<String> {
    let links = Links::open(namespace).unwrap().list().unwrap();
    let mut names: Vec<String> = links
        .into_iter()
        .filter(|l| l.kind == "veth" || l.kind == "bridge" || l.kind == "vxlan")
        .map(|l| l.name)
        .collect();
    names.sort();
    names
}

/// The texts of all warnings of this process.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Warnings;

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{field}={value:?} "));
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        WARNINGS.lock().unwrap().push(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Keeps the warnings of this process from now on.
pub fn listen_to_warnings() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Warnings).unwrap());
}

pub fn warnings() -> Vec<String> {
    WARNINGS.lock().unwrap().clone()
}
