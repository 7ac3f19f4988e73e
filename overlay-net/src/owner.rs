//! The one thread that owns the overlay's state: desired state in, reconcile, report.
//!
//! Netlink blocks for microseconds and namespaces belong to threads, so this is a plain thread and no task of a
//! runtime. It reads the kernel before it changes it, also every half minute unasked, and keeps in memory only what
//! cannot be read back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::{oneshot, watch};

use crate::config::{Config, Desired, EndpointConfig, Network};
use crate::dns::{DnsSockets, Server, View, Zone};
use crate::error::{ObjectError, OverlayError};
use crate::kernel::{Links, NetNs, Stage, Tables, mac_of};
use crate::overlay::{Attached, AttachedInterface};
use crate::plan::attachment::{Interface, Unfit, choose_address, gateway, has_way_out, interfaces};
use crate::plan::balance::{Balance, HostSide, IngressSide, Return};
use crate::plan::names;
use crate::plan::picture::{Facts, Picture};
use crate::plan::ruleset::Table;

/// How often the kernel is compared with the desired state although nobody asked.
const DRIFT_PERIOD: Duration = Duration::from_secs(30);
/// The bytes that VXLAN adds to a frame over IPv4.
const VXLAN_BYTES: u32 = 50;
/// Errors that one answer carries; the rest are as likely to be the same.
const ERRORS_MAX: usize = 32;

/// One request; the answer goes back through its channel.
pub(crate) enum Request {
    SetDesired(Box<Desired>, oneshot::Sender<Result<(), OverlayError>>),
    Attach(NetNs, Box<EndpointConfig>, Option<DnsSockets>, oneshot::Sender<Result<Attached, OverlayError>>),
    Detach(String, oneshot::Sender<Result<(), OverlayError>>),
    Retain(BTreeSet<String>, oneshot::Sender<Result<(), OverlayError>>),
    LeaveOut(BTreeSet<Ipv4Addr>, oneshot::Sender<Result<(), OverlayError>>),
    Destroy(oneshot::Sender<Result<(), OverlayError>>),
}

/// A connected task.
struct Task {
    config: EndpointConfig,
    /// Its namespace's tables. The handle is kept: closing one waits until the kernel has freed what was replaced.
    kernel: Tables,
    dns_ports: (u16, u16),
    /// Its place on the ingress network, where it has to find the way back to clients.
    ingress: Option<IngressSide>,
    /// The tables that are in force in its namespace, as far as we know.
    tables: Vec<Table>,
}

/// The state of the overlay.
pub(crate) struct Owner {
    config: Config,
    pin: PathBuf,
    stage: Stage,
    host_tables: Tables,
    dns: Server,
    applied: watch::Sender<u64>,
    /// How replies to clients of published ports go back; what this kernel can do.
    replies: Return,
    desired: Desired,
    /// Data path addresses of the hosts that are left out.
    suspects: BTreeSet<Ipv4Addr>,
    balance: Balance,
    tasks: BTreeMap<String, Task>,
    /// The host's address on the way out, with its prefix; nothing while no task needs one.
    egress: Option<Ipv4Net>,
    /// The tasks' addresses on the way out, also of those that are not adopted yet.
    way_out: BTreeMap<String, Ipv4Addr>,
    /// The table that is in force in the host's namespace; the outer nothing means unknown.
    host_table: Option<Option<Table>>,
}

impl Owner {
    /// Opens what is there, in the namespace of the calling thread.
    pub(crate) fn start(config: Config, applied: watch::Sender<u64>) -> Result<Owner, OverlayError> {
        let failed = |step| move |source| OverlayError::Start { step, source };
        let pin = config.namespace_path();
        let mut stage = Stage::open(&config.node, &pin).map_err(failed("open the overlay's namespace"))?;
        let host_tables = Tables::open(stage.host()).map_err(failed("open nf_tables"))?;
        let egress = stage.egress().map_err(failed("read the host's interfaces"))?;
        let dns = Server::start(config.resolvers.clone()).map_err(failed("start the resolver"))?;
        let replies = replies().map_err(failed("try nf_tables"))?;
        Ok(Owner {
            config,
            pin,
            stage,
            host_tables,
            dns,
            applied,
            replies,
            desired: Desired::default(),
            suspects: BTreeSet::new(),
            balance: Balance::default(),
            tasks: BTreeMap::new(),
            egress,
            way_out: BTreeMap::new(),
            host_table: None,
        })
    }

    /// Serves requests until the last handle is gone or the overlay is destroyed.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            // A caller that no longer waits for its answer is no reason to stop.
            match requests.recv_timeout(DRIFT_PERIOD) {
                Ok(Request::SetDesired(desired, reply)) => drop(reply.send(self.set_desired(*desired))),
                Ok(Request::Attach(namespace, config, sockets, reply)) => {
                    drop(reply.send(self.attach(namespace, *config, sockets)));
                }
                Ok(Request::Detach(task, reply)) => drop(reply.send(self.detach(&task))),
                Ok(Request::Retain(tasks, reply)) => drop(reply.send(self.retain(&tasks))),
                Ok(Request::LeaveOut(hosts, reply)) => drop(reply.send(self.leave_out(hosts))),
                Ok(Request::Destroy(reply)) => {
                    drop(reply.send(self.destroy()));
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {
                    if self.desired.revision > 0
                        && let Err(error) = self.put_in_force()
                    {
                        tracing::warn!(%error, "the overlay is not as desired");
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn set_desired(&mut self, desired: Desired) -> Result<(), OverlayError> {
        desired.validate()?;
        tracing::debug!(revision = desired.revision, networks = desired.networks.len(), "desired state");
        self.desired = desired;
        self.balance = Balance::new(&self.desired, &self.suspects);
        self.put_in_force()
    }

    /// Brings everything to the desired state: wires first, then balancing, then names, so that nothing is offered
    /// before it can be reached.
    fn put_in_force(&mut self) -> Result<(), OverlayError> {
        let mut errors = self.reconcile()?;
        errors.extend(self.apply_tables());
        self.dns.set_zone(Zone::new(&self.desired, &self.suspects));
        self.outcome(errors)
    }

    fn outcome(&self, mut errors: Vec<ObjectError>) -> Result<(), OverlayError> {
        if errors.is_empty() {
            let revision = self.desired.revision;
            self.applied.send_if_modified(|applied| std::mem::replace(applied, revision) != revision);
            return Ok(());
        }
        errors.truncate(ERRORS_MAX);
        Err(OverlayError::Partial(errors))
    }

    fn underlay_mtu(&mut self) -> Result<u32, OverlayError> {
        let address = self.config.data_path_addr;
        let failed = |source| OverlayError::Start { step: "read the host's interfaces", source };
        self.stage.underlay_mtu(address).map_err(failed)?.ok_or(OverlayError::NoUnderlay(address))
    }

    fn observe(&mut self) -> Result<Picture, OverlayError> {
        let failed = |source| OverlayError::Start { step: "read the overlay's links", source };
        let picture = self.stage.observe().map_err(failed)?;
        let way_out = picture.ports.values().filter(|port| port.network == names::EGRESS);
        self.way_out = way_out.map(|port| (port.task.clone(), port.address)).collect();
        Ok(picture)
    }

    fn reconcile(&mut self) -> Result<Vec<ObjectError>, OverlayError> {
        // Without networks there is nothing that the underlay would be needed for.
        let mtu = if self.desired.networks.is_empty() { 0 } else { self.underlay_mtu()?.saturating_sub(VXLAN_BYTES) };
        let facts =
            Facts { data_path_addr: self.config.data_path_addr, data_path_port: self.config.data_path_port, mtu };
        let observed = self.observe()?;
        let wanted = Picture::wanted(&self.desired, &facts, &observed);
        let mut errors = Vec::new();
        for network in self.desired.networks.iter().filter(|network| network.ingress) {
            if let Some(host) = network.swallows() {
                let object =
                    format!("published ports: the ingress network {} contains the host {host}", network.subnet);
                errors.push(ObjectError { object, source: io::ErrorKind::AddrInUse.into() });
            }
        }
        for operation in observed.operations_to(&wanted) {
            tracing::debug!(?operation, "overlay");
            if let Err(source) = self.stage.apply(&operation) {
                errors.push(ObjectError { object: format!("{operation:?}"), source });
            }
        }
        Ok(errors)
    }

    /// Replaces the tables that are not as they should be.
    fn apply_tables(&mut self) -> Vec<ObjectError> {
        let mut errors = Vec::new();
        for (id, task) in &mut self.tasks {
            if let Err(source) = apply_task_tables(&self.balance, task) {
                errors.push(ObjectError { object: format!("table of task {id}"), source });
            }
        }
        if let Err(source) = self.apply_host_table() {
            errors.push(ObjectError { object: "table of the host".into(), source });
        }
        errors
    }

    fn apply_host_table(&mut self) -> io::Result<()> {
        let has_place = |n: &&Network| n.ingress && n.host_address.is_some() && n.swallows().is_none();
        let ingress = self.desired.networks.iter().find(has_place);
        let side = HostSide {
            ingress: ingress.map(|network| (names::ingress_link(&self.config.node), network.subnet.trunc())),
            egress: self.egress.map(|net| (names::egress_link(&self.config.node), net.trunc())),
            tasks: self.way_out.clone(),
            replies: self.replies,
        };
        let table = self.balance.host_table(&self.config.node, &side);
        if self.host_table.as_ref() == Some(&table) {
            return Ok(());
        }
        // Unknown until the kernel has said yes.
        self.host_table = None;
        match &table {
            Some(table) => self.host_tables.replace(table)?,
            None => self.host_tables.delete(names::TABLE)?,
        }
        self.host_table = Some(table);
        Ok(())
    }

    fn attach(
        &mut self,
        namespace: NetNs,
        config: EndpointConfig,
        sockets: Option<DnsSockets>,
    ) -> Result<Attached, OverlayError> {
        config.validate()?;
        let id = config.task.clone();
        let known = self.tasks.contains_key(&id);
        let result = self.connect(namespace, config, sockets);
        if result.is_err() && !known {
            // Half a task is nobody's; the error that matters is the first one.
            self.detach(&id).ok();
        }
        result
    }

    fn connect(
        &mut self,
        namespace: NetNs,
        config: EndpointConfig,
        sockets: Option<DnsSockets>,
    ) -> Result<Attached, OverlayError> {
        let id = config.task.clone();
        let failed = |step: &str| {
            let (task, step) = (id.clone(), step.to_owned());
            move |source| OverlayError::Attach { task, step, source }
        };
        let underlay = self.underlay_mtu()?;
        let observed = self.observe()?;
        let egress = if has_way_out(&self.desired, &config) {
            Some(self.egress_address(&id, underlay, &observed)?)
        } else {
            None
        };
        let interfaces = interfaces(&self.desired, &config, egress).map_err(|unfit| match unfit {
            Unfit::Unknown(network) => OverlayError::UnknownNetwork { task: id.clone(), network },
            Unfit::Outside(network, address, subnet) => {
                OverlayError::Outside { task: id.clone(), network, address, subnet }
            }
        })?;

        // Links of this task that it no longer has.
        for (name, port) in &observed.ports {
            if port.task == id && !interfaces.iter().any(|interface| interface.port == *name) {
                let gone = crate::plan::picture::Operation::DeletePort(name.clone());
                self.stage.apply(&gone).map_err(failed("remove an old interface"))?;
            }
        }
        let mut links = Links::open(&namespace).map_err(failed("enter the task's network namespace"))?;
        links.set_up("lo").map_err(failed("set lo up"))?;
        for interface in &interfaces {
            let mtu = if interface.network == names::EGRESS { underlay } else { underlay.saturating_sub(VXLAN_BYTES) };
            self.stage
                .connect(&id, &namespace, &mut links, interface, mtu)
                .map_err(failed(&format!("connect {} to {}", interface.name, interface.bridge)))?;
        }
        if let (Some(egress), Some(interface)) = (egress, interfaces.last()) {
            let everything = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).expect("a prefix below 32");
            links
                .add_route(everything, Some(gateway(egress)), &interface.name)
                .map_err(failed("set the default route"))?;
        }

        let ingress = match self.replies {
            Return::Masquerade => None,
            Return::Remember => self.ingress_side(&interfaces),
        };
        if let Some(side) = &ingress {
            remember_stations(&namespace, &mut links, side).map_err(failed("prepare the way back to clients"))?;
        }

        let sockets = match sockets {
            Some(sockets) => sockets,
            None => DnsSockets::open(&namespace).map_err(failed("open the resolver's sockets"))?,
        };
        let dns_ports = sockets.ports().map_err(failed("use the resolver's sockets"))?;
        let view = View::new(&config, egress.is_some());
        let shared = sockets.try_clone().map_err(failed("share the resolver's sockets"))?;
        self.dns.serve(&id, shared, view).map_err(failed("serve the resolver's sockets"))?;

        let attached = Attached {
            sockets,
            interfaces: interfaces
                .iter()
                .map(|i| AttachedInterface { name: i.name.clone(), network: i.network.clone(), address: i.address })
                .collect(),
            gateway_address: egress.map(|net| net.addr()),
        };
        let kernel = Tables::open(&namespace).map_err(failed("open the task's nf_tables"))?;
        let mut task = Task { config, kernel, dns_ports, ingress, tables: Vec::new() };
        apply_task_tables(&self.balance, &mut task).map_err(failed("set the task's virtual addresses"))?;
        self.tasks.insert(id.clone(), task);
        match egress {
            Some(address) => self.way_out.insert(id.clone(), address.addr()),
            None => self.way_out.remove(&id),
        };
        self.apply_host_table().map_err(failed("set the host's published ports"))?;
        tracing::info!(task.id = %id, interfaces = attached.interfaces.len(), "task connected");
        Ok(attached)
    }

    fn ingress_side(&self, interfaces: &[Interface]) -> Option<IngressSide> {
        let network = self.desired.networks.iter().find(|network| network.ingress)?;
        let interface = interfaces.iter().find(|interface| interface.network == network.id)?;
        Some(IngressSide { interface: interface.name.clone(), subnet: network.subnet.trunc() })
    }

    /// The task's address on the way out: the one that it has, or a free one.
    fn egress_address(&mut self, task: &str, mtu: u32, observed: &Picture) -> Result<Ipv4Net, OverlayError> {
        let failed = |source| OverlayError::Attach { task: task.to_owned(), step: "make the way out".into(), source };
        let host = match self.egress {
            Some(host) => host,
            None => {
                let subnets: Vec<Ipv4Net> = self.desired.networks.iter().map(|network| network.subnet).collect();
                let host = self.stage.create_egress(mtu, &subnets).map_err(failed)?;
                self.egress = Some(host);
                host
            }
        };
        let subnet = host.trunc();
        let mut ports = observed.ports.values().filter(|port| port.network == names::EGRESS);
        if let Some(own) = ports.clone().find(|port| port.task == task && subnet.contains(&port.address)) {
            return Ok(Ipv4Net::new(own.address, subnet.prefix_len()).expect("a subnet's own prefix"));
        }
        let taken = ports.by_ref().map(|port| port.address);
        choose_address(subnet, taken)
            .ok_or_else(|| failed(io::Error::new(io::ErrorKind::AddrNotAvailable, "all addresses are taken")))
    }

    fn detach(&mut self, id: &str) -> Result<(), OverlayError> {
        let mut errors = Vec::new();
        self.dns.drop_task(id);
        if let Some(mut task) = self.tasks.remove(id) {
            tracing::info!(task.id = %id, networks = task.config.attachments.len(), "task disconnected");
            if let Err(source) = task.kernel.delete(names::TABLE) {
                errors.push(ObjectError { object: format!("table of task {id}"), source });
            }
        }
        let ports = self.observe()?.ports;
        let own = ports.iter().filter(|(_, port)| port.task == id).map(|(name, _)| name.as_str());
        if let Err(source) = self.stage.disconnect(own) {
            errors.push(ObjectError { object: format!("links of task {id}"), source });
        }
        self.way_out.remove(id);
        if let Err(source) = self.apply_host_table() {
            errors.push(ObjectError { object: "table of the host".into(), source });
        }
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }

    fn retain(&mut self, tasks: &BTreeSet<String>) -> Result<(), OverlayError> {
        let linked = self.observe()?.ports.into_values().map(|port| port.task);
        let known: BTreeSet<String> = linked.chain(self.tasks.keys().cloned()).collect();
        let mut errors = Vec::new();
        for task in known.difference(tasks) {
            match self.detach(task) {
                Ok(()) => {}
                Err(OverlayError::Partial(more)) => errors.extend(more),
                Err(error) => return Err(error),
            }
        }
        if self.desired.revision > 0 {
            errors.extend(self.reconcile()?);
        }
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }

    fn leave_out(&mut self, hosts: BTreeSet<Ipv4Addr>) -> Result<(), OverlayError> {
        if hosts == self.suspects {
            return Ok(());
        }
        self.suspects = hosts;
        self.balance = Balance::new(&self.desired, &self.suspects);
        self.dns.set_zone(Zone::new(&self.desired, &self.suspects));
        let errors = self.apply_tables();
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }

    fn destroy(mut self) -> Result<(), OverlayError> {
        let mut errors = Vec::new();
        for (id, mut task) in std::mem::take(&mut self.tasks) {
            self.dns.drop_task(&id);
            if let Err(source) = task.kernel.delete(names::TABLE) {
                errors.push(ObjectError { object: format!("table of task {id}"), source });
            }
        }
        if let Err(source) = self.host_tables.delete(names::TABLE) {
            errors.push(ObjectError { object: "table of the host".into(), source });
        }
        let left = self.stage.tear_down(&self.pin);
        errors.extend(left.into_iter().map(|(object, source)| ObjectError { object, source }));
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }
}

/// Lets a task answer clients through the host that they came by: replies that carry a mark leave by the ingress
/// interface, to a gateway that stands for all hosts.
fn remember_stations(namespace: &NetNs, links: &mut Links, side: &IngressSide) -> io::Result<()> {
    // A client's packets come in where no route to the client leads out.
    for scope in ["all", side.interface.as_str()] {
        namespace.set_sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    let index = links.index(&side.interface)?;
    links.set_neighbour(index, names::RETURN_GATEWAY, mac_of(Ipv4Addr::UNSPECIFIED))?;
    links.route_marked(side.subnet, names::RETURN_TABLE, names::RETURN_GATEWAY, &side.interface)
}

/// Finds out whether this kernel can remember stations (`NETFILTER_EGRESS`, since 5.16), by trying in a namespace of
/// its own. All hosts of a cluster should agree: a task on a host that cannot does not find the way back to a client
/// whose address another host has kept.
fn replies() -> io::Result<Return> {
    let side = IngressSide { interface: "lo".into(), subnet: Ipv4Net::from(Ipv4Addr::LOCALHOST) };
    let probe = NetNs::anonymous()?;
    let mut tables = Tables::open(&probe)?;
    let both = [Balance::default().task_table(&[], (53, 53), Some(&side)), Balance::frame_table(&side)];
    for table in &both {
        if let Err(error) = tables.replace(table) {
            tracing::warn!(%error, "published ports will not show clients' addresses: the kernel lacks a feature");
            return Ok(Return::Masquerade);
        }
    }
    Ok(Return::Remember)
}

fn apply_task_tables(balance: &Balance, task: &mut Task) -> io::Result<()> {
    let networks: Vec<String> = task.config.attachments.iter().map(|a| a.network.clone()).collect();
    let ingress = task.ingress.as_ref();
    let mut tables: Vec<Table> = ingress.map(Balance::frame_table).into_iter().collect();
    tables.push(balance.task_table(&networks, task.dns_ports, ingress));
    if task.tables == tables {
        return Ok(());
    }
    // Unknown until the kernel has said yes to all of them.
    let old = std::mem::take(&mut task.tables);
    for table in tables.iter().filter(|table| !old.contains(table)) {
        task.kernel.replace(table)?;
    }
    task.tables = tables;
    Ok(())
}
