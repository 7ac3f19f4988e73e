//! Connecting tasks: their links, their way out, their resolver, their rules.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::oneshot;

use super::sealing::Obstacle;
use super::sweep::Connections;
use super::{Owner, Task, apply_task_tables};
use crate::config::EndpointConfig;
use crate::dns::{DnsSockets, View};
use crate::error::OverlayError;
use crate::kernel::{LINKS, Links, NEIGHBOURS, NetNs, ROUTES, Rules, Transitions, Watch, is_too_much};
use crate::overlay::{Attached, AttachedInterface};
use crate::plan::attachment::{Interface, Unfit, WAY_OUT_PREFIX, choose_address, gateway, has_way_out, interfaces};
use crate::plan::balance::{Balance, IngressSide, Return};
use crate::plan::inside::{DefaultRoute, Inside};
use crate::plan::names;
use crate::plan::picture::{Operation, Port};

/// How long new links may take until they carry packets; a millisecond is usual.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often they are looked at until then.
pub(super) const GLANCE: Duration = Duration::from_millis(1);

/// A task that is connected but for links that do not carry packets yet.
pub(super) struct Waiting {
    task: String,
    /// It had been connected before.
    known: bool,
    attached: Attached,
    deadline: Instant,
    reply: oneshot::Sender<Result<Attached, OverlayError>>,
}

/// The host's address on the way out that a task has this address on.
pub(super) fn host_side_of(task: Ipv4Addr) -> Option<Ipv4Net> {
    let subnet = Ipv4Net::new(task, WAY_OUT_PREFIX).ok()?.trunc();
    Ipv4Net::new(gateway(subnet), WAY_OUT_PREFIX).ok()
}

impl Owner {
    /// Connects a task. The answer waits until its links carry packets, and nothing else does.
    pub(super) fn attach(
        &mut self,
        namespace: NetNs,
        config: EndpointConfig,
        sockets: Option<DnsSockets>,
        reply: oneshot::Sender<Result<Attached, OverlayError>>,
    ) {
        let id = config.task.clone();
        let known = self.tasks.contains_key(&id);
        let adopted = !known && sockets.is_some();
        let deadline = Instant::now() + PATIENCE;
        match self.connect(namespace, config, sockets) {
            Ok(attached) => {
                self.flows.stir();
                if adopted {
                    self.flows.adopted(&id);
                }
                self.waiting.push(Waiting { task: id, known, attached, deadline, reply });
            }
            Err(error) => self.give_up(&id, known, error, reply),
        }
    }

    fn give_up(
        &mut self,
        id: &str,
        known: bool,
        error: OverlayError,
        reply: oneshot::Sender<Result<Attached, OverlayError>>,
    ) {
        if !known {
            // Half a task is nobody's; the error that matters is the first one.
            self.detach(id).ok();
        }
        drop(reply.send(Err(error)));
    }

    /// Answers for the tasks whose links carry packets by now, and for those that have taken too long.
    pub(super) fn answer_waiting(&mut self, now: Instant) {
        for one in std::mem::take(&mut self.waiting) {
            let failed = |source| {
                let step = "wait for its links to carry packets".to_owned();
                OverlayError::Attach { task: one.task.clone(), step, source }
            };
            let Some(task) = self.tasks.get_mut(&one.task) else {
                drop(one.reply.send(Err(failed(io::Error::other("it was disconnected meanwhile")))));
                continue;
            };
            let mut carry = Ok(true);
            for interface in &task.inside.interfaces {
                if matches!(carry, Ok(true)) {
                    carry = self.stage.carries(&mut task.links, interface);
                }
            }
            match carry {
                Ok(true) => {
                    tracing::info!(task.id = %one.task, interfaces = one.attached.interfaces.len(), "task connected");
                    drop(one.reply.send(Ok(one.attached)));
                }
                Ok(false) if now < one.deadline => self.waiting.push(one),
                late => {
                    let error = failed(late.err().unwrap_or_else(|| io::ErrorKind::TimedOut.into()));
                    self.give_up(&one.task, one.known, error, one.reply);
                }
            }
        }
    }

    fn connect(
        &mut self,
        namespace: NetNs,
        config: EndpointConfig,
        sockets: Option<DnsSockets>,
    ) -> Result<Attached, OverlayError> {
        config.validate()?;
        let id = config.task.clone();
        let failed = |step: &str| {
            let (task, step) = (id.clone(), step.to_owned());
            move |source| OverlayError::Attach { task, step, source }
        };
        let encrypted = |id: &String| self.desired.network(id).is_some_and(|network| network.encrypted);
        let mut networks = config.attachments.iter().map(|attachment| &attachment.network);
        if let Some(network) = networks.find(|id| encrypted(id)).filter(|_| !self.sealing.ready) {
            let Obstacle { reason, lasting } = self.sealing.obstacle();
            return Err(OverlayError::NoSeal { task: id, network: network.clone(), reason, lasting });
        }
        let underlay = self.underlay_mtu()?;
        let ports = self.observe_ports()?;
        let egress =
            if has_way_out(&self.desired, &config) { Some(self.egress_address(&id, underlay, &ports)?) } else { None };
        let interfaces = interfaces(&self.desired, &config, egress).map_err(|unfit| match unfit {
            Unfit::Unknown(network) => self.unknown_network(&id, network),
            Unfit::Outside(network, address, subnet) => {
                OverlayError::Outside { task: id.clone(), network, address, subnet }
            }
        })?;

        // Links of this task that it no longer has.
        for (name, port) in &ports {
            if port.task == id && !interfaces.iter().any(|interface| interface.port == *name) {
                self.stage.apply(&Operation::DeletePort(name.clone())).map_err(failed("remove an old interface"))?;
            }
        }
        let ingress = match self.replies {
            Return::Masquerade => None,
            Return::Remember => self.ingress_side(&interfaces),
        };
        let inside = Inside { interfaces, way_out: egress.and(self.egress), ingress };
        let watch = namespace.visit(|| Watch::open(LINKS | NEIGHBOURS | ROUTES));
        let watch = watch.map_err(failed("enter the task's network namespace"))?;
        let mut links = Links::open(&namespace).map_err(failed("enter the task's network namespace"))?;
        let adopted = sockets.is_some();
        let route = match (&sockets, links.inside(&namespace)) {
            // It has just been made.
            (None, _) => DefaultRoute::Lost,
            // It has run for a while, and what it did to its routes meanwhile is its own business.
            (Some(_), Ok(found)) => DefaultRoute::Held.after(found.default_route, inside.holds_route(&found)),
            (Some(_), Err(_)) => DefaultRoute::Held,
        };
        let routed = route == DefaultRoute::Lost;
        self.wire(&id, &namespace, &mut links, &inside, routed).map_err(|(step, source)| OverlayError::Attach {
            task: id.clone(),
            step,
            source,
        })?;
        let route = if routed { DefaultRoute::Held } else { route };

        let sockets = match sockets {
            Some(sockets) => sockets,
            None => DnsSockets::open(&namespace).map_err(failed("open the resolver's sockets"))?,
        };
        let answers = sockets.ports().map_err(failed("use the resolver's sockets"))?;
        let own = Balance::own_table(answers, inside.ingress.as_ref(), egress.map(|net| net.addr()));
        let own6 = inside.ingress.as_ref().and_then(|side| self.balance.own_table6(side));
        let own = [own].into_iter().chain(own6).map(Arc::new).collect();
        let view = View::new(&config, egress.is_some()).with_ipv6(&config, &self.desired);
        let shared = sockets.try_clone().map_err(failed("share the resolver's sockets"))?;
        self.dns.serve(&id, shared, view).map_err(failed("serve the resolver's sockets"))?;

        let attached = Attached {
            sockets,
            interfaces: inside
                .interfaces
                .iter()
                .map(|i| AttachedInterface { name: i.name.clone(), network: i.network.clone(), address: i.address })
                .collect(),
            gateway_address: egress.map(|net| net.addr()),
        };
        let rules = Rules::open_in_task(&namespace).map_err(failed("open the task's nf_tables"))?;
        let (lacking, overfull) = (Vec::new(), false);
        let connections = Connections::default();
        let mut task = Task {
            config,
            namespace,
            links,
            watch,
            inside,
            lacking,
            route,
            overfull,
            underlay,
            rules,
            connections,
            own,
        };
        let wanted = self.tables.of(&self.balance, &task);
        match apply_task_tables(wanted, &id, &mut task, &mut Transitions::default(), &mut self.audit) {
            // It has run for a while, and has filled its namespace. What it has of ours it keeps.
            Err(error) if adopted && is_too_much(&error) => {}
            applied => applied.map_err(failed("set the task's virtual addresses"))?,
        }
        self.tasks.insert(id.clone(), task);
        self.adopted(&id);
        match egress {
            Some(address) => self.way_out.insert(id.clone(), address.addr()),
            None => self.way_out.remove(&id),
        };
        self.presence_changes();
        self.apply_host_table().map_err(failed("set the host's published ports"))?;
        // A firewall that cannot be opened is no reason to have no task; the next round says so.
        drop(self.open_firewalls());
        Ok(attached)
    }

    /// Does a task's wiring; what is as it should be is not touched. `routed` says whether its default route is set as
    /// well. The error says what could not be done.
    pub(super) fn wire(
        &mut self,
        id: &str,
        namespace: &NetNs,
        links: &mut Links,
        inside: &Inside,
        routed: bool,
    ) -> Result<(), (String, io::Error)> {
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source| (step, source)
        };
        links.set_up("lo").map_err(failed("set lo up"))?;
        for interface in &inside.interfaces {
            self.stage
                .connect(id, namespace, links, interface, interface.room.mtu(self.underlay))
                .map_err(failed(&format!("connect {} to {}", interface.name, interface.bridge)))?;
        }
        match inside.default_route().filter(|_| routed) {
            None => {}
            Some((gateway, interface)) if inside.way_out.is_none() => {
                links.route_of_replies(gateway, interface).map_err(failed("set the route of replies"))?;
            }
            Some((gateway, interface)) => {
                let everything = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0).expect("a prefix below 32");
                links.add_route(everything, Some(gateway), interface).map_err(failed("set the default route"))?;
            }
        }
        if let Some(side) = &inside.ingress {
            links
                .remember_stations(namespace, side, inside.has_ingress6())
                .map_err(failed("prepare the way back to clients"))?;
        }
        Ok(())
    }

    /// A network that the desired state has not, or that was left out of it.
    fn unknown_network(&self, task: &str, network: String) -> OverlayError {
        match self.refused.iter().find(|error| error.network() == Some(&network)) {
            Some(error) => OverlayError::Config(error.clone()),
            None => OverlayError::UnknownNetwork { task: task.to_owned(), network },
        }
    }

    fn ingress_side(&self, interfaces: &[Interface]) -> Option<IngressSide> {
        let network = self.desired.networks.iter().find(|network| network.ingress)?;
        let interface = interfaces.iter().find(|interface| interface.network == network.id)?;
        Some(IngressSide { interface: interface.name.clone(), subnet: network.subnet.trunc() })
    }

    /// The task's address on the way out: the one that it has, or a free one.
    fn egress_address(
        &mut self,
        task: &str,
        mtu: u32,
        ports: &BTreeMap<String, Port>,
    ) -> Result<Ipv4Net, OverlayError> {
        let failed = |source| OverlayError::Attach { task: task.to_owned(), step: "make the way out".into(), source };
        let host = match self.egress {
            Some(host) => host,
            None => {
                let host = self.stage.create_egress(mtu, &self.desired.subnets()).map_err(failed)?;
                self.egress = Some(host);
                host
            }
        };
        let subnet = host.trunc();
        let linked = || ports.values().filter(|port| port.network == names::EGRESS);
        if let Some(own) = linked().find(|port| port.task == task && subnet.contains(&port.address)) {
            return Ok(Ipv4Net::new(own.address, subnet.prefix_len()).expect("a subnet's own prefix"));
        }
        // Also that of a task whose link somebody has just taken away: it gets the same one back.
        let linked = linked().map(|port| port.address);
        let held = self.tasks.values().flat_map(|task| &task.inside.interfaces);
        let held = held.filter(|interface| interface.network == names::EGRESS).map(|i| i.address.addr());
        let given = choose_address(subnet, linked.chain(held), self.last_way_out)
            .ok_or_else(|| failed(io::Error::new(io::ErrorKind::AddrNotAvailable, "all addresses are taken")))?;
        self.last_way_out = Some(given.addr());
        Ok(given)
    }
}
