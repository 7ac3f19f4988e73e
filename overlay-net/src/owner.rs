//! The one thread that owns the overlay's state: desired state in, reconcile, report.
//!
//! Netlink blocks for microseconds and namespaces belong to threads, so this is a plain thread and no task of a
//! runtime. A new desired state is carried out by what differs from the one before. Where that does not work, and unasked
//! on a clock of its own (`audit`), the desired state is compared with what the kernel says: links and entries are
//! listed, rules where the kernel's count of their changes is not the one that our last change left. An audit goes in
//! steps, so that no request waits for more than one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use ipnet::Ipv4Net;
use tokio::sync::{oneshot, watch};

use self::attach::Waiting;
use self::audit::Audit;
use self::flows::Flows;
use self::sealing::SealingState;
use crate::config::{Config, ConfigError, Desired, EndpointConfig, Network, SealingReport};
use crate::dns::{DnsSockets, Server};
use crate::error::{ObjectError, OverlayError};
use crate::kernel::{
    Firewall, FirewallObstacle, HostAddresses, Links, NetNs, Rules, Stage, Transitions, Watch, legacy_filter,
    raise_neighbour_limits,
};
use crate::observation::{Observation, Place as Examined};
use crate::overlay::Attached;
use crate::plan::balance::{Balance, HostSide, IngressSide, Return};
use crate::plan::former::Former;
use crate::plan::inside::{DefaultRoute, Inside};
use crate::plan::names;
use crate::plan::picture::{Facts, Operation, Picture, Port};
use crate::plan::ruleset::Table;
use crate::plan::seal::ports;
use crate::trial;

mod attach;
mod audit;
mod examine;
mod flows;
mod sealing;
mod sweep;

/// Errors that one answer carries; the rest are as likely to be the same.
const ERRORS_MAX: usize = 32;
/// What an error of it is said to be about.
const HOST_TABLE: &str = "table of the host";

/// One request; the answer goes back through its channel.
pub(crate) enum Request {
    SetDesired(Box<Desired>, oneshot::Sender<Result<(), OverlayError>>),
    Attach(NetNs, Box<EndpointConfig>, Option<DnsSockets>, oneshot::Sender<Result<Attached, OverlayError>>),
    Detach(String, oneshot::Sender<Result<(), OverlayError>>),
    Retain(BTreeSet<String>, oneshot::Sender<Result<(), OverlayError>>),
    LeaveOut(BTreeSet<Ipv4Addr>, oneshot::Sender<Result<(), OverlayError>>),
    Observe(oneshot::Sender<Result<Observation, OverlayError>>),
    Examine(Examined, oneshot::Sender<Result<Vec<String>, OverlayError>>),
    ExamineFirewalls(oneshot::Sender<Result<Vec<FirewallObstacle>, OverlayError>>),
    Destroy(oneshot::Sender<Result<(), OverlayError>>),
}

/// A connected task.
struct Task {
    config: EndpointConfig,
    namespace: NetNs,
    links: Links,
    /// Notices of what happens to its links and routes.
    watch: Watch,
    inside: Inside,
    /// What was missing when it was looked at last.
    lacking: Vec<String>,
    /// Its default route when it was looked at last.
    route: DefaultRoute,
    /// It has so much in its namespace that nobody looks through it.
    overfull: bool,
    /// The underlay's MTU when its links were made or looked at last.
    underlay: u32,
    rules: Rules,
    connections: sweep::Connections,
    /// Its own tables.
    own: Vec<Arc<Table>>,
}

/// Where tasks are that have the same tables: their networks, and their place on the ingress network.
type Place = (Vec<String>, Option<IngressSide>);

/// The tables of all tasks on the same networks, as long as they are what the balance says.
#[derive(Debug, Default)]
struct TaskTables {
    known: Vec<(Place, Vec<Arc<Table>>)>,
}

/// What came of setting rules.
struct Applied {
    errors: Vec<ObjectError>,
    /// Whoever is led somewhere is led by these rules.
    leads: bool,
}

/// The state of the overlay.
pub(crate) struct Owner {
    config: Config,
    pin: PathBuf,
    stage: Stage,
    host_rules: Rules,
    firewall: Firewall,
    dns: Server,
    applied: watch::Sender<u64>,
    /// How replies to clients of published ports go back; what this kernel can do.
    replies: Return,
    desired: Desired,
    /// What was left out of it.
    refused: Vec<ConfigError>,
    /// Data path addresses of the hosts that are left out.
    suspects: BTreeSet<Ipv4Addr>,
    balance: Arc<Balance>,
    /// Virtual addresses whose services are gone.
    former: Former,
    /// When this owner began: what pure code is told of time counts from here.
    began: Instant,
    tables: TaskTables,
    tasks: BTreeMap<String, Task>,
    /// The tasks whose callers wait for an answer.
    waiting: Vec<Waiting>,
    /// The host's address on the way out, with its prefix; nothing while no task needs one.
    egress: Option<Ipv4Net>,
    /// The tasks' addresses on the way out, also of those that are not adopted yet.
    way_out: BTreeMap<String, Ipv4Addr>,
    /// The address on the way out that was given last.
    last_way_out: Option<Ipv4Addr>,
    /// The underlay's MTU when it was read last.
    underlay: u32,
    /// Networks of which it was said that the underlay has less than they are made for.
    cramped: BTreeSet<String>,
    /// All operations towards the desired state were tried once; what differs later was changed by others.
    settled: bool,
    /// What failed of it then.
    failing: BTreeSet<String>,
    /// Tasks whose links an earlier process has made, until they are connected again or gone: what leads their callers is
    /// not known before. Nothing before the first look.
    unadopted: Option<BTreeSet<String>>,
    /// Tasks whose rules could not be set at the last try.
    stubborn: BTreeSet<String>,
    /// The revision that rules and names are of, once all of them are.
    carried_out: u64,
    /// It was said that there are rules that cannot be read.
    legacy_told: bool,
    sealing: SealingState,
    audit: Audit,
    flows: Flows,
}

impl Owner {
    /// Opens what is there, in the namespace of the calling thread.
    pub(crate) fn start(
        config: Config,
        applied: watch::Sender<u64>,
        sealing: watch::Sender<SealingReport>,
    ) -> Result<Owner, OverlayError> {
        let failed = |step| move |source| OverlayError::Start { step, source };
        let pin = config.namespace_path();
        match raise_neighbour_limits() {
            Ok(raised) if raised.is_empty() => {}
            Ok(raised) => tracing::info!(?raised, "raised the kernel's limits of neighbours"),
            Err(error) => tracing::warn!(%error, "many tasks need more neighbours than the kernel keeps"),
        }
        let mut stage = Stage::open(&config.node, &pin).map_err(failed("open the overlay's namespace"))?;
        let host_rules = Rules::open(stage.host()).map_err(failed("open nf_tables"))?;
        let firewall = Firewall::open(stage.host()).map_err(failed("open nf_tables"))?;
        let egress = stage.egress().map_err(failed("read the host's interfaces"))?;
        let dns = Server::start(config.resolvers.clone()).map_err(failed("start the resolver"))?;
        let mut kernel = trial::kernel().map_err(failed("try nf_tables"))?;
        let replies = trial::returns(&mut kernel).map_or_else(
            |error| {
                tracing::warn!(%error, "published ports will not show clients' addresses: the kernel lacks a feature");
                Return::Masquerade
            },
            |()| Return::Remember,
        );
        let flows = Flows::new(Instant::now()).map_err(failed("start the thread that ends connections"))?;
        let sealing = SealingState::start(&mut stage, config.data_path_port, sealing)
            .map_err(failed("read the keys of encrypted networks"))?;
        Ok(Owner {
            config,
            pin,
            stage,
            host_rules,
            firewall,
            dns,
            applied,
            replies,
            desired: Desired::default(),
            refused: Vec::new(),
            suspects: BTreeSet::new(),
            balance: Arc::default(),
            former: Former::default(),
            began: Instant::now(),
            tables: TaskTables::default(),
            tasks: BTreeMap::new(),
            waiting: Vec::new(),
            egress,
            way_out: BTreeMap::new(),
            last_way_out: None,
            underlay: 0,
            cramped: BTreeSet::new(),
            settled: false,
            failing: BTreeSet::new(),
            unadopted: None,
            stubborn: BTreeSet::new(),
            carried_out: 0,
            legacy_told: false,
            sealing,
            audit: Audit::new(Instant::now()),
            flows,
        })
    }

    /// Serves requests until the last handle is gone or the overlay is destroyed, and looks after everything between
    /// them: also while requests come without a pause, one step after each.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let now = Instant::now();
            let due = self.flows_due().map_or(self.audit.due(), |due| due.min(self.audit.due()));
            let idle = due.saturating_duration_since(now);
            let idle = if self.waiting.is_empty() { idle } else { idle.min(attach::GLANCE) };
            match requests.recv_timeout(idle) {
                Ok(Request::Destroy(reply)) => {
                    drop(reply.send(self.destroy()));
                    return;
                }
                Ok(request) => self.serve(request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            self.answer_waiting(now);
            self.end_lost_flows(now);
            self.audit_when_due(now);
        }
    }

    fn serve(&mut self, request: Request) {
        // A caller that no longer waits for its answer is no reason to stop.
        match request {
            Request::SetDesired(desired, reply) => drop(reply.send(self.set_desired(*desired))),
            Request::Attach(namespace, config, sockets, reply) => {
                self.attach(namespace, *config, sockets, reply);
            }
            Request::Detach(task, reply) => drop(reply.send(self.detach(&task))),
            Request::Retain(tasks, reply) => drop(reply.send(self.retain(&tasks))),
            Request::LeaveOut(hosts, reply) => drop(reply.send(self.leave_out(hosts))),
            Request::Observe(reply) => drop(reply.send(self.observation(Instant::now()))),
            Request::Examine(place, reply) => drop(reply.send(self.examine(&place))),
            Request::ExamineFirewalls(reply) => drop(reply.send(self.examine_firewalls())),
            Request::Destroy(_) => unreachable!("it ends the loop"),
        }
    }

    /// Brings everything to a new desired state: wires first, then balancing, then names, so that nothing is offered
    /// before it can be reached. What cannot be done is no reason to leave the rest undone.
    fn set_desired(&mut self, desired: Desired) -> Result<(), OverlayError> {
        let (desired, refused) = desired.localized(self.config.data_path_addr).sift();
        tracing::debug!(revision = desired.revision, networks = desired.networks.len(), "desired state");
        let before = std::mem::replace(&mut self.desired, desired);
        self.refused = refused;
        self.rebalance();
        self.audit.begin();
        self.presence_changes();
        // Tunnels of encrypted networks are there only where their namespace is.
        let had_seal = self.stage.has_seal();
        let unready = self.desired.sealing.is_some() && !self.sealing.ready;
        let unsealed =
            if unready || before.sealing != self.desired.sealing { self.reconcile_seals() } else { Vec::new() };
        let wired = self.reconcile(Some(&before).filter(|_| self.stage.has_seal() == had_seal));
        let tables = self.apply_tables();
        self.dns.follow(&self.desired, &self.suspects);
        if tables.leads {
            self.carried_out = self.desired.revision;
        }
        self.acknowledge();
        let mut errors = wired?;
        errors.extend(unsealed);
        errors.extend(tables.errors);
        self.outcome(errors)
    }

    /// Says how far this host is: nobody is led by anything older than that. Links that could not be made, or a firewall
    /// that could not be opened, lead nobody anywhere, and hold nothing up.
    fn acknowledge(&self) {
        if self.unadopted.as_ref().is_some_and(BTreeSet::is_empty) && self.carried_out == self.desired.revision {
            let revision = self.carried_out;
            self.applied.send_if_modified(|applied| std::mem::replace(applied, revision) != revision);
        }
    }

    /// A task of an earlier process is connected again, or gone.
    fn adopted(&mut self, task: &str) {
        if self.unadopted.as_mut().is_some_and(|unadopted| unadopted.remove(task)) {
            self.acknowledge();
        }
    }

    /// What is refused holds nothing up: nobody can ever put it in force, and nothing leads to it.
    fn outcome(&self, mut errors: Vec<ObjectError>) -> Result<(), OverlayError> {
        let refused = || self.refused.iter().take(ERRORS_MAX).cloned();
        if errors.is_empty() {
            return if self.refused.is_empty() { Ok(()) } else { Err(OverlayError::Refused(refused().collect())) };
        }
        errors.truncate(ERRORS_MAX);
        errors.extend(refused().map(|error| ObjectError {
            object: "refused".into(),
            source: io::Error::new(io::ErrorKind::InvalidInput, error),
        }));
        Err(OverlayError::Partial(errors))
    }

    fn underlay_mtu(&mut self) -> Result<u32, OverlayError> {
        let address = self.config.data_path_addr;
        let failed = |source| OverlayError::Start { step: "read the host's interfaces", source };
        self.underlay = self.stage.underlay_mtu(address).map_err(failed)?.ok_or(OverlayError::NoUnderlay(address))?;
        Ok(self.underlay)
    }

    fn observe(&mut self) -> Result<Picture, OverlayError> {
        let failed = |source| OverlayError::Start { step: "read the overlay's links", source };
        let picture = self.stage.observe().map_err(failed)?;
        self.follow_ports(&picture.ports);
        Ok(picture)
    }

    /// Of what [`Owner::observe`] finds, the tasks' links alone: that costs the same however large their networks are.
    fn observe_ports(&mut self) -> Result<BTreeMap<String, Port>, OverlayError> {
        let failed = |source| OverlayError::Start { step: "read the overlay's links", source };
        let ports = self.stage.ports().map_err(failed)?;
        self.follow_ports(&ports);
        Ok(ports)
    }

    fn follow_ports(&mut self, ports: &BTreeMap<String, Port>) {
        if self.unadopted.is_none() {
            let found = ports.values().map(|port| &port.task).filter(|task| !self.tasks.contains_key(*task));
            self.unadopted = Some(found.cloned().collect());
        }
        let way_out = ports.values().filter(|port| port.network == names::EGRESS);
        self.way_out = way_out.map(|port| (port.task.clone(), port.address)).collect();
    }

    /// Brings the links and entries of the host's namespace and the node's own to the desired state. `before` is the
    /// desired state up to now when a new one has come: what differs from that was changed by others.
    fn reconcile(&mut self, before: Option<&Desired>) -> Result<Vec<ObjectError>, OverlayError> {
        // What others have changed meanwhile is for the audit to find, unless it is in the way.
        if let Some(before) = before.filter(|_| self.settled && self.failing.is_empty())
            && let Some(operations) =
                Picture::steps(before, &self.desired, self.config.data_path_addr, self.stage.has_seal())
        {
            let mut failed = Vec::new();
            self.put_through(&operations, &mut failed);
            if failed.is_empty() {
                return Ok(self.unusable_ingress());
            }
            self.failing.clear();
        }
        // Notices from here on are of what the lists below may lack.
        let stirred = self.stage.stirred();
        let settled = std::mem::replace(&mut self.settled, false);
        let failing = std::mem::take(&mut self.failing);
        let mut observed = self.observe()?;
        let way_out = self.egress.or_else(|| {
            let port = observed.ports.values().find(|port| port.network == names::EGRESS)?;
            attach::host_side_of(port.address)
        });
        // Without networks there is nothing that the underlay would be needed for.
        let needed = !self.desired.networks.is_empty() || way_out.is_some();
        let underlay = if needed { self.underlay_mtu()? } else { 0 };
        self.tell_cramped();
        let mut errors = self.unusable_ingress();
        if let Some(address) = way_out {
            let object = "the way out".to_owned();
            match self.repair_egress(address, underlay, settled && !failing.contains(&object)) {
                Ok(false) => {}
                Ok(true) => observed = self.observe()?,
                Err(source) => {
                    self.failing.insert(object.clone());
                    errors.push(ObjectError { object, source });
                }
            }
        }
        let facts = Facts {
            data_path_addr: self.config.data_path_addr,
            data_path_port: self.config.data_path_port,
            underlay,
            seals: self.stage.has_seal(),
        };
        let wanted = Picture::wanted(&self.desired, &facts, &observed);
        let operations = observed.operations_to(&wanted);
        if settled && (before.is_none() || stirred) {
            let ours;
            let foreign = match before {
                None => &operations,
                Some(before) => {
                    ours = observed.operations_to(&Picture::wanted(before, &facts, &observed));
                    &ours
                }
            };
            // A network that the last task has left is removed by and by; nobody else has made it.
            let left = |o: &&Operation| matches!(o, Operation::DeleteTunnel(_) | Operation::DeleteSwitch(_));
            let changed = foreign.iter().filter(|operation| !left(operation)).map(ToString::to_string);
            let new = changed.filter(|text| !failing.contains(text));
            let new: Vec<String> = new.collect();
            self.audit.report_repairs("the overlay's links", new);
        }
        self.put_through(&operations, &mut errors);
        self.settled = true;
        Ok(errors)
    }

    fn put_through(&mut self, operations: &[Operation], errors: &mut Vec<ObjectError>) {
        for operation in operations {
            tracing::debug!(?operation, "overlay");
            if let Err(source) = self.stage.apply(operation) {
                self.failing.insert(operation.to_string());
                errors.push(ObjectError { object: operation.to_string(), source });
            }
        }
    }

    /// Says once of each network that it is made for longer packets than this host's underlay carries. It gets what the
    /// underlay has: packets that nobody carries would vanish.
    fn tell_cramped(&mut self) {
        let (underlay, data_path_addr) = (self.underlay, self.config.data_path_addr);
        let networks = self.desired.networks.iter();
        let cramped = networks.filter_map(|network| Some((network, network.room().lacks(underlay)?)));
        let before = std::mem::take(&mut self.cramped);
        for (network, asked) in cramped {
            if !before.contains(&network.id) {
                let (name, mtu) = (&network.name, network.room().mtu(underlay));
                tracing::warn!(
                    network = name,
                    "the network is made for an MTU of {asked} bytes, and the interface with {data_path_addr} has \
                     {underlay}: on this host its links have {mtu}"
                );
            }
            self.cramped.insert(network.id.clone());
        }
    }

    /// Ingress networks that would cut this host off from others, and so are not there.
    fn unusable_ingress(&self) -> Vec<ObjectError> {
        let ingress = self.desired.networks.iter().filter(|network| network.ingress);
        let unusable = ingress.filter_map(|network| Some((network.subnet, network.swallows()?)));
        let error = |(subnet, host)| ObjectError {
            object: format!("published ports: the ingress network {subnet} contains the host {host}"),
            source: io::ErrorKind::AddrInUse.into(),
        };
        unusable.map(error).collect()
    }

    /// Makes what is missing of the way out; says whether anything was. It is told if it is `news`.
    fn repair_egress(&mut self, address: Ipv4Net, mtu: u32, news: bool) -> io::Result<bool> {
        let lacks = self.stage.egress_lacks(address, mtu)?;
        self.egress = Some(address);
        if lacks.is_empty() {
            return Ok(false);
        }
        if news {
            self.audit.report_repairs("the way out", lacks);
        }
        self.stage.repair_egress(address, mtu)?;
        Ok(true)
    }

    /// What the desired state and the suspicions ask for.
    fn rebalance(&mut self) {
        let mut balance = Balance::new(&self.desired, &self.suspects);
        self.former.follow(&self.balance, &mut balance, &self.desired, self.began.elapsed());
        if balance != *self.balance {
            self.balance = Arc::new(balance);
            self.tables.follow(&self.balance);
        }
    }

    /// Changes the tables that are not as they should be.
    fn apply_tables(&mut self) -> Applied {
        let (mut errors, mut leads, mut stubborn) = (Vec::new(), true, BTreeSet::new());
        let mut transitions = Transitions::default();
        for (id, task) in &mut self.tasks {
            let wanted = self.tables.of(&self.balance, task);
            if let Err(source) = apply_task_tables(wanted, id, task, &mut transitions, &mut self.audit) {
                errors.push(ObjectError { object: format!("table of task {id}"), source });
                // A task with the rights to can spoil its own rules for good, which harms itself; it is not to hold up
                // all others.
                leads &= self.stubborn.contains(id);
                stubborn.insert(id.clone());
            }
        }
        self.stubborn = stubborn;
        match self.apply_host_table() {
            Ok(()) => {}
            Err(source) => {
                leads = false;
                errors.push(ObjectError { object: HOST_TABLE.into(), source });
            }
        }
        errors.extend(self.apply_firewalls());
        Applied { errors, leads }
    }

    /// What the host's own table depends on.
    fn host_side(&self) -> HostSide {
        let has_place = |n: &&Arc<Network>| n.ingress && n.host_address.is_some() && n.swallows().is_none();
        let ingress = self.desired.networks.iter().find(has_place);
        HostSide {
            ingress: ingress.map(|network| (names::ingress_link(&self.config.node), network.subnet.trunc())),
            egress: self.egress.map(|net| (names::egress_link(&self.config.node), net.trunc())),
            tasks: self.way_out.clone(),
            replies: self.replies,
            tunnel: Some(self.config.data_path_port),
            seals: if self.desired.sealing.is_some() { ports(self.config.data_path_port).to_vec() } else { Vec::new() },
            apart: self.stage.apart().to_vec(),
            apart6: self.stage.apart6().to_vec(),
        }
    }

    fn has_ingress6(&self) -> bool {
        self.desired.networks.iter().any(|network| network.ingress && network.beside().is_some())
    }

    /// The host's links of ours, with the addresses that they have.
    fn host_addresses(&self) -> Vec<HostAddresses> {
        let node = &self.config.node;
        let out = |address| HostAddresses { link: names::egress_link(node), address, address6: None };
        let place = self.desired.networks.iter().filter(|network| network.swallows().is_none()).find_map(|network| {
            let own = network.host_address.filter(|_| network.ingress)?;
            let address = Ipv4Net::new(own, network.subnet.prefix_len()).ok()?;
            let address6 = network.beside().and_then(|beside| beside.interface(own));
            Some(HostAddresses { link: names::ingress_link(node), address, address6 })
        });
        self.egress.map(out).into_iter().chain(place).collect()
    }

    /// The tables of the host's namespace.
    fn host_tables(&self) -> Vec<Arc<Table>> {
        let (node, side) = (&self.config.node, self.host_side());
        let ingress = self.desired.networks.iter().find(|network| network.ingress);
        let beside = ingress.and_then(|network| network.beside());
        let six = beside.and_then(|beside| self.balance.host_table6(node, &side, beside));
        self.balance.host_table(node, &side).into_iter().chain(six).map(Arc::new).collect()
    }

    /// The host's own table, and forwarding, which begins only when the table says what is not to be forwarded.
    fn apply_host_table(&mut self) -> io::Result<()> {
        let side = self.host_side();
        let needed = side.ingress.is_some() || side.egress.is_some();
        let was_off = needed && self.stage.note_forwarding()?;
        let needed6 = side.ingress.is_some() && self.has_ingress6();
        let was_off6 = needed6 && self.stage.note_forwarding6()?;
        let wanted = self.host_tables();
        let foreign = self.host_rules.ensure(wanted, &mut Transitions::default())?;
        self.audit.report_repairs("the host's rules", foreign);
        if was_off && self.stage.forward()? {
            self.audit.report_repairs("the host's values", ["net/ipv4/ip_forward was off".to_owned()]);
        }
        if was_off6 && self.stage.forward6()? {
            self.audit.report_repairs("the host's values", ["net/ipv6/conf/all/forwarding was off".to_owned()]);
        }
        Ok(())
    }

    /// Sees to it that no other firewall of the host drops what our links forward.
    fn open_firewalls(&mut self) -> io::Result<()> {
        let side = self.host_side();
        let links: Vec<String> = side.ingress.into_iter().chain(side.egress).map(|(link, _)| link).collect();
        if !links.is_empty() && !self.legacy_told && legacy_filter() {
            self.legacy_told = true;
            tracing::warn!(
                "this host has rules of the older iptables, which cannot be read: if its chain FORWARD drops, published \
                 ports and the way out do not work"
            );
        }
        self.firewall.set_six(self.has_ingress6());
        self.firewall.ensure(&links)?.iter().for_each(audit::report_opened);
        Ok(())
    }

    /// All of ours in the host's nf_tables.
    fn apply_host_rules(&mut self) -> Vec<ObjectError> {
        let table = self.apply_host_table().map_err(|source| ObjectError { object: HOST_TABLE.into(), source });
        table.err().into_iter().chain(self.apply_firewalls()).collect()
    }

    fn apply_firewalls(&mut self) -> Option<ObjectError> {
        let source = self.open_firewalls().err()?;
        Some(ObjectError { object: "rules in the firewall of others".into(), source })
    }

    fn detach(&mut self, id: &str) -> Result<(), OverlayError> {
        let mut errors = Vec::new();
        self.dns.drop_task(id);
        if let Some(mut task) = self.tasks.remove(id) {
            tracing::info!(task.id = %id, networks = task.config.attachments.len(), "task disconnected");
            if let Err(source) = task.rules.remove() {
                errors.push(ObjectError { object: format!("table of task {id}"), source });
            }
        }
        let ports = self.observe_ports()?;
        let own = ports.iter().filter(|(_, port)| port.task == id).map(|(name, _)| name.as_str());
        if let Err(source) = self.stage.disconnect(own) {
            errors.push(ObjectError { object: format!("links of task {id}"), source });
        }
        self.way_out.remove(id);
        self.adopted(id);
        self.flows.stir();
        errors.extend(self.apply_host_rules());
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }

    fn retain(&mut self, tasks: &BTreeSet<String>) -> Result<(), OverlayError> {
        let linked = self.observe_ports()?.into_values().map(|port| port.task);
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
            errors.extend(self.reconcile(None)?);
        }
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }

    fn leave_out(&mut self, hosts: BTreeSet<Ipv4Addr>) -> Result<(), OverlayError> {
        if hosts == self.suspects {
            return Ok(());
        }
        self.suspects = hosts;
        self.rebalance();
        self.presence_changes();
        self.flows.stir_at_once(Instant::now());
        self.dns.follow(&self.desired, &self.suspects);
        let Applied { errors, .. } = self.apply_tables();
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }

    fn destroy(mut self) -> Result<(), OverlayError> {
        let mut errors = Vec::new();
        for (id, mut task) in std::mem::take(&mut self.tasks) {
            self.dns.drop_task(&id);
            if let Err(source) = task.rules.remove() {
                errors.push(ObjectError { object: format!("table of task {id}"), source });
            }
        }
        if let Err(source) = self.firewall.ensure(&[]) {
            errors.push(ObjectError { object: "rules in the firewall of others".into(), source });
        }
        // Who else forwards may count on it by now.
        let others = legacy_filter() || self.firewall.others_forward().unwrap_or(true);
        if !others && let Err(source) = self.stage.stop_forwarding() {
            errors.push(ObjectError { object: "forwarding of the host".into(), source });
        }
        if let Err(source) = self.host_rules.remove() {
            errors.push(ObjectError { object: "table of the host".into(), source });
        }
        let left = self.stage.tear_down(&self.pin);
        errors.extend(left.into_iter().map(|(object, source)| ObjectError { object, source }));
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Partial(errors)) }
    }
}

impl TaskTables {
    /// The tables of the networks of a task.
    fn of(&mut self, balance: &Balance, task: &Task) -> Vec<Arc<Table>> {
        let networks = || task.config.attachments.iter().map(|attachment| &attachment.network);
        let ingress = task.inside.ingress.as_ref();
        let is_it = |((known, side), _): &(Place, _)| side.as_ref() == ingress && known.iter().eq(networks());
        let place = self.known.iter().position(is_it).unwrap_or_else(|| {
            let key = (networks().cloned().collect(), ingress.cloned());
            let tables = tables_of(balance, &key).map(Arc::new).collect();
            self.known.push((key, tables));
            self.known.len() - 1
        });
        let mut tables = self.known[place].1.clone();
        tables.extend_from_slice(&task.own);
        tables
    }

    /// The balance has changed: what is the same in spite of that stays the same value in memory.
    fn follow(&mut self, balance: &Balance) {
        // What no task has any more goes.
        self.known.retain(|(_, tables)| tables.iter().any(|table| Arc::strong_count(table) > 1));
        for (key, tables) in &mut self.known {
            let before = std::mem::take(tables);
            // In the same order; the last one may come or go.
            *tables = tables_of(balance, key).map(Arc::new).collect();
            for (table, known) in tables.iter_mut().zip(before) {
                if *table == known {
                    *table = known;
                }
            }
        }
    }
}

fn tables_of<'a>(balance: &'a Balance, (networks, ingress): &'a Place) -> impl Iterator<Item = Table> + 'a {
    let ingress = ingress.as_ref();
    let frames = ingress.map(Balance::frame_table).into_iter();
    frames.chain([balance.task_table(networks, ingress)]).chain(balance.task_table6(networks, ingress))
}

fn apply_task_tables(
    wanted: Vec<Arc<Table>>,
    id: &str,
    task: &mut Task,
    transitions: &mut Transitions,
    audit: &mut Audit,
) -> io::Result<()> {
    let foreign = task.rules.ensure(wanted, transitions)?;
    audit.report_repairs(&format!("the rules of task {id}"), foreign);
    Ok(())
}
