//! One host: messages as a manager would send them, the agent's own steps to the overlay's desired state, and the real
//! overlay in network namespaces of its own.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::bench::{Report, Samples, say};
use deploy::dispatcher::{
    AssignmentSet, Body, Delta, EndpointInfo, Item, NetworkInfo, ServiceInfo, Stamp, Station, Update,
};
use deploy::model::{NetworkId, NodeId, ServiceId, TaskId};
use node::agent::Networks;
use overlay_net::kernel::{Links, NetNs, Peer};
use overlay_net::{Attachment, Config, EndpointConfig, Overlay, Resolvers};

use super::Options;

const TARGET: Duration = Duration::from_millis(10);
const TARGET_BYTES: u64 = 50 << 20;
const NETWORK: &str = "bench-network";
const VNI: u32 = 0x00ab_cdef;
const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const UP: Duration = Duration::from_secs(10);

/// What changes about the endpoints, in turn.
#[derive(Clone, Copy, Debug)]
enum Change {
    Added,
    Removed,
    Moved,
    Unhealthy,
}

/// An endpoint, by its number.
#[derive(Clone, Copy)]
struct Endpoint {
    number: usize,
    serving: bool,
}

/// The network as a manager knows it.
struct Told {
    services: usize,
    endpoints: Vec<Endpoint>,
    tasks: usize,
    next: usize,
    revision: u64,
}

/// The agent's side.
struct Agent {
    set: AssignmentSet,
    networks: Networks,
    overlay: Overlay,
}

impl Told {
    fn service(&self, endpoint: usize) -> usize {
        endpoint % self.services
    }

    fn address(&self, place: usize) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 2)) + u32::try_from(place).expect("the subnet has room"))
    }

    /// Where endpoints are: those with the lowest numbers here, the others on 250 hosts.
    fn host(&self, endpoint: usize) -> Ipv4Addr {
        if endpoint < self.tasks {
            HERE
        } else {
            Ipv4Addr::new(10, 77, 1, u8::try_from(endpoint % 250).unwrap_or(0) + 1)
        }
    }

    fn task(endpoint: usize) -> String {
        format!("task{endpoint:021}")
    }

    fn endpoint(&self, endpoint: Endpoint) -> [Item; 2] {
        let number = endpoint.number;
        let address = format!("{}/11", self.address(self.services + number));
        let node = NodeId::new(format!("node{:021}", number % 250));
        let (network, service) = (NetworkId::new(NETWORK), self.service(number));
        [
            Body::Station(Station {
                network: network.clone(),
                address: address.clone(),
                node: node.clone(),
                data_path_addr: self.host(number).to_string(),
            })
            .into(),
            Body::Endpoint(EndpointInfo {
                network,
                task: TaskId::new(Self::task(number)),
                service: ServiceId::new(format!("service{service:018}")),
                node,
                address,
                names: vec![
                    format!("web-{service}.{}.{}", number / self.services, Self::task(number)),
                    format!("{number:012x}"),
                ],
                serving: endpoint.serving,
            })
            .into(),
        ]
    }

    fn whole(&mut self) -> Vec<u8> {
        let network = NetworkInfo {
            id: NetworkId::new(NETWORK),
            name: "bench".into(),
            vni: VNI,
            subnet: "10.96.0.0/11".into(),
            gateway: "10.96.0.1".into(),
            internal: true,
            ..NetworkInfo::default()
        };
        let service = |service: usize| -> Item {
            Body::Service(ServiceInfo {
                network: NetworkId::new(NETWORK),
                id: ServiceId::new(format!("service{service:018}")),
                name: format!("web-{service}"),
                vip: format!("{}/11", self.address(service)),
                ..ServiceInfo::default()
            })
            .into()
        };
        let mut put = vec![Body::Network(network).into()];
        put.extend((0..self.services).map(service));
        put.extend(self.endpoints.iter().flat_map(|endpoint| self.endpoint(*endpoint)));
        self.message(None, Delta { put, remove: Vec::new() })
    }

    fn message(&mut self, base: Option<u64>, delta: Delta) -> Vec<u8> {
        self.revision += 1;
        let stamp = |revision| Stamp { incarnation: 1, term: 1, revision };
        Update { stamp: stamp(self.revision), base: base.map(stamp), delta }.to_bytes()
    }

    /// The message that tells of a change; the tasks of this host stay where they are.
    fn change(&mut self, change: Change) -> Vec<u8> {
        let mut delta = Delta::default();
        let place = self.tasks + (self.next * 7919) % (self.endpoints.len() - self.tasks);
        self.next += 1;
        let keys = |items: [Item; 2]| items.into_iter().filter_map(|item| item.key());
        let new = Endpoint { number: self.endpoints.iter().map(|e| e.number).max().unwrap_or(0) + 1, serving: true };
        match change {
            Change::Added => {
                delta.put.extend(self.endpoint(new));
                self.endpoints.push(new);
            }
            Change::Removed => {
                let gone = self.endpoints.remove(place);
                delta.remove.extend(keys(self.endpoint(gone)));
            }
            Change::Moved => {
                let gone = std::mem::replace(&mut self.endpoints[place], new);
                delta.remove.extend(keys(self.endpoint(gone)));
                delta.put.extend(self.endpoint(new));
            }
            Change::Unhealthy => {
                self.endpoints[place].serving ^= true;
                delta.put.extend(self.endpoint(self.endpoints[place]));
            }
        }
        self.message(Some(self.revision), delta)
    }
}

impl Agent {
    /// What the agent does with a message, up to the last operation of the overlay.
    async fn take(&mut self, message: &[u8]) -> Result<()> {
        let update = Update::from_bytes(message)?;
        let revision = update.stamp.revision;
        match update.base {
            None => self.set = AssignmentSet::new(update.delta.put),
            Some(_) => self.set.apply(update.delta),
        }
        let desired = self.networks.desired(&self.set, revision, &BTreeSet::new());
        self.overlay.set_desired(desired).await?;
        ensure!(*self.overlay.applied_revision().borrow() == revision, "revision {revision} is not in force");
        Ok(())
    }
}

pub(crate) fn measure(options: &Options) -> Result<Report> {
    ensure!(options.endpoints >= options.tasks + options.changes, "too few endpoints for so many tasks and changes");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let directory = tempfile::tempdir()?;
    let (wire, namespace) = (NetNs::anonymous().context("root is needed")?, NetNs::anonymous()?);
    plug(&wire, &namespace)?;
    let config = Config {
        run_dir: directory.path().to_owned(),
        node: "bench".into(),
        data_path_addr: HERE,
        data_path_port: 4789,
        resolvers: Resolvers::Fixed(Vec::new()),
    };
    let pin = config.namespace_path();
    // The overlay's thread begins in the namespace of the one that starts it.
    let overlay = namespace.visit(|| runtime.block_on(Overlay::start(config)).map_err(std::io::Error::other))?;
    let mut agent = Agent { set: AssignmentSet::default(), networks: Networks::default(), overlay };
    let outcome = runtime.block_on(changes(options, &mut agent));
    // Also after a failure, nothing stays; of two errors, the first is the cause.
    let destroyed = runtime.block_on(agent.overlay.clone().destroy());
    NetNs::delete(&pin).ok();
    let report = outcome?;
    destroyed?;
    Ok(report)
}

async fn changes(options: &Options, agent: &mut Agent) -> Result<Report> {
    let endpoints = (0..options.endpoints).map(|number| Endpoint { number, serving: true }).collect();
    let mut told = Told { services: options.services, endpoints, tasks: options.tasks, next: 0, revision: 0 };
    let before = private_bytes()?;
    let whole = {
        let message = told.whole();
        let began = Instant::now();
        agent.take(&message).await?;
        began.elapsed()
    };
    let mut tasks = Vec::new();
    let began = Instant::now();
    for number in 0..options.tasks {
        let task = NetNs::anonymous()?;
        let config = EndpointConfig {
            task: Told::task(number),
            hostname: format!("host-{number}"),
            attachments: vec![Attachment {
                network: NETWORK.into(),
                address: told.address(told.services + number),
                aliases: Vec::new(),
            }],
            dns_search: Vec::new(),
            dns_servers: Vec::new(),
        };
        let sockets = agent.overlay.attach(task.fd().try_clone_to_owned()?, config, None).await?.sockets;
        tasks.push((task, sockets));
    }
    let attached = began.elapsed();
    // Tasks that never asked anybody have no connections, and are not looked at when somebody goes.
    for (task, _) in &tasks {
        check_names(&told, task)?;
    }
    // One that is not measured: what the links have stirred is looked at.
    agent.take(&told.change(Change::Unhealthy)).await?;
    let kinds = [Change::Added, Change::Removed, Change::Moved, Change::Unhealthy];
    let (mut all, mut each) = (Samples::default(), [const { Vec::new() }; 4]);
    for number in 0..options.changes {
        let message = told.change(kinds[number % kinds.len()]);
        let began = Instant::now();
        agent.take(&message).await?;
        all.push(began.elapsed());
        each[number % kinds.len()].push(began.elapsed());
    }
    let after = private_bytes()?;
    for (task, _) in &tasks {
        check_names(&told, task)?;
    }
    let neighbours = std::fs::read_to_string("/proc/sys/net/ipv4/neigh/default/gc_thresh3").unwrap_or_default();
    say(format_args!("the kernel's limit of neighbours that it may forget again: {}", neighbours.trim()));
    let taken = after.saturating_sub(before);
    let what = format!("{} services, {} endpoints, {} tasks here", options.services, options.endpoints, options.tasks);
    let mut report = Report::new(format!("a change of one endpoint: {what}"));
    let p99 = all.percentile(99);
    report.target("message to last kernel operation", "≤ 10 ms", millis(&all), "-", p99 <= TARGET);
    for (kind, samples) in kinds.iter().zip(each) {
        let mut of_kind = Samples::default();
        samples.into_iter().for_each(|sample| of_kind.push(sample));
        report.note(&format!("of these, {kind:?}"), millis(&of_kind), "-");
    }
    report.target("private memory that it takes", "≤ 50 MB", megabytes(taken), "-", taken <= TARGET_BYTES);
    report.note("the whole network put in force", format!("{:.0} ms", whole.as_secs_f64() * 1e3), "-");
    report.note("its tasks attached", format!("{:.0} ms", attached.as_secs_f64() * 1e3), "-");
    Ok(report)
}

/// A service's name leads a task to the endpoints that serve.
fn check_names(told: &Told, task: &NetNs) -> Result<()> {
    for service in [0, told.services / 2, told.services - 1] {
        let of_service = told.endpoints.iter().filter(|endpoint| told.service(endpoint.number) == service);
        let serving = of_service.filter(|endpoint| endpoint.serving);
        let expected: BTreeSet<Ipv4Addr> =
            serving.map(|endpoint| told.address(told.services + endpoint.number)).collect();
        let found = look_up(task, &format!("tasks.web-{service}"))?;
        if found != expected {
            bail!("tasks.web-{service} leads to {found:?} and not to {expected:?}");
        }
    }
    Ok(())
}

/// Asks the task's resolver for addresses, in a datagram.
fn look_up(task: &NetNs, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = task.visit(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((overlay_net::dns::ADDRESS, 53))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.send(&query)?;
    let mut reply = [0; 1500];
    let length = socket.recv(&mut reply).with_context(|| format!("no answer for {name}"))?;
    // A pointer to the name, type, class, time to live, length and the address.
    let records = reply[..length].get(query.len()..).unwrap_or_default().chunks_exact(16);
    let count = usize::from(u16::from_be_bytes([reply[6], reply[7]]));
    Ok(records.take(count).map(|r| Ipv4Addr::new(r[12], r[13], r[14], r[15])).collect())
}

fn plug(wire: &NetNs, namespace: &NetNs) -> Result<()> {
    let (mut far, mut near) = (Links::open(wire)?, Links::open(namespace)?);
    far.create_veth_into("far", None, 1500, &Peer { namespace, name: "u0", mac: None })?;
    far.set_up("far")?;
    near.set_up("lo")?;
    near.add_address("u0", format!("{HERE}/16").parse()?)?;
    near.set_up("u0")?;
    near.wait_running("u0", UP)?;
    Ok(())
}

/// Memory of this process that it shares with nobody.
fn private_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").context("cannot read the memory in use")?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kib.sum::<u64>() << 10)
}

fn millis(samples: &Samples) -> String {
    let ms = |percent| samples.percentile(percent).as_secs_f64() * 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({} changes)", ms(50), ms(99), ms(100), samples.len())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1_048_576.0)
}
