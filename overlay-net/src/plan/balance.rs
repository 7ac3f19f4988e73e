//! Virtual addresses and published ports as nf_tables tables.
//!
//! One decision is made here beside the translation: hosts that gossip suspects are left out of balancing, but never
//! all endpoints of a virtual address or port. A suspicion is not a verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::names;
use super::ruleset::{Action, Family, Kind, Match, Point, Rule, Set, Table};
use crate::config::{Beside, Desired, PortMode, Protocol};
use crate::dns;

/// nf_tables priorities: destination translation, and our filters after connection tracking and before it.
const PRIORITY_TRANSLATE: i32 = -100;
const PRIORITY_FILTER: i32 = -150;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_SOURCE: i32 = 100;
/// From so many virtual addresses on, a task's table is large: there, a change of rules costs a task a tenth of a
/// millisecond and more.
const MANY: usize = 100;
/// Numbers of endpoints that are usual for a service: those from 1 to this. A service that has more, as no other has,
/// changes rules.
const USUAL: u32 = 16;
/// The comment of tables in tasks' namespaces.
const COMMENT: &str = "made by shoal for this task";

/// Where connections to virtual addresses and published ports go at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Balance {
    /// By network id: virtual address to endpoints; an empty list is to be refused.
    pub vips: BTreeMap<String, BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>>,
    /// By network id: addresses that were virtual ones until a while ago; to be refused as well.
    pub former: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Ports on every host; without the ones that nobody serves.
    pub ports: BTreeMap<(Protocol, u16), Target>,
    /// Ports of this host's own tasks: the port in the task, and the task.
    pub host_ports: BTreeMap<(Protocol, u16), (u16, String)>,
    /// By network id: the IPv6 addresses beside its others, where it has any.
    pub beside: BTreeMap<String, Beside>,
}

/// Where a published port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The port in the task.
    pub port: u16,
    /// The tasks' addresses.
    pub backends: Vec<Ipv4Addr>,
}

/// How replies to clients of published ports find their way back through the host that they came by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Return {
    /// By address: the host puts its own in place of the client's. Works everywhere, and hides the client.
    #[default]
    Masquerade,
    /// By hardware address, which the task's namespace remembers. The task sees the client's own address.
    Remember,
}

/// A task's place on the ingress network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressSide {
    /// The interface in the task's namespace.
    pub interface: String,
    /// The network's addresses.
    pub subnet: Ipv4Net,
}

/// What the host's own table depends on, beside the balance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSide {
    /// The link of this host's place on the ingress network and that network's addresses, if it has one.
    pub ingress: Option<(String, Ipv4Net)>,
    /// The link of the way out, and its addresses, if there is one.
    pub egress: Option<(String, Ipv4Net)>,
    /// The addresses of this host's tasks on the way out.
    pub tasks: BTreeMap<String, Ipv4Addr>,
    /// How replies find their way back.
    pub replies: Return,
    /// The UDP port that hosts exchange the tasks' frames at, unless it is not known.
    pub tunnel: Option<u16>,
    /// The UDP ports of WireGuard, while there are encrypted networks.
    pub seals: Vec<u16>,
    /// The links between which this host did not forward before it had to for the overlay.
    pub apart: Vec<String>,
    /// The same for IPv6.
    pub apart6: Vec<String>,
}

impl Balance {
    /// The balance of a desired state, with these hosts under suspicion.
    #[must_use]
    pub fn new(desired: &Desired, suspects: &BTreeSet<Ipv4Addr>) -> Balance {
        let mut balance = Balance::default();
        let mut ingress = BTreeMap::new();
        for network in &desired.networks {
            // Nobody is looked for where nobody is suspected.
            let hosts = if suspects.is_empty() { BTreeMap::new() } else { network.hosts() };
            balance.beside.extend(network.beside().map(|beside| (network.id.clone(), beside)));
            let vips = balance.vips.entry(network.id.clone()).or_default();
            for service in &network.services {
                if let Some(vip) = service.vip {
                    let serving = service.endpoints.iter().filter(|endpoint| endpoint.serving);
                    vips.insert(vip, trusted(serving.map(|endpoint| endpoint.address), &hosts, suspects));
                }
            }
            if network.ingress {
                ingress.extend(hosts);
            }
        }
        for port in &desired.ports {
            let key = (port.protocol, port.published);
            match (port.mode, &port.task) {
                (PortMode::Ingress, _) => {
                    let backends = trusted(port.backends.iter().copied(), &ingress, suspects);
                    if !backends.is_empty() {
                        balance.ports.insert(key, Target { port: port.target, backends });
                    }
                }
                (PortMode::Host, Some(task)) => {
                    balance.host_ports.insert(key, (port.target, task.clone()));
                }
                (PortMode::Host, None) => {}
            }
        }
        balance
    }

    /// The table of the namespaces of all tasks on these networks: the virtual addresses there, and the memory of where
    /// clients of published ports came from.
    #[must_use]
    pub fn task_table(&self, networks: &[String], ingress: Option<&IngressSide>) -> Table {
        let mut table = Table::new(Family::Ip, names::TABLE, COMMENT.into());
        // Whenever a rule changes, the kernel walks all that any rule leads to: in each task, for a millisecond with a
        // thousand services. A change of elements is not looked at like that. So where there are many, what is usual has
        // its rules also while they lead nobody.
        let many = self.vips_on(networks) >= MANY;
        let usual = if many { USUAL } else { 0 };
        // A rule must say how many there are to choose from. There is one for each number of endpoints that a service has,
        // and not for each service. And each has a map of its own, since the kernel walks that whenever the rule comes or
        // goes.
        let mut sizes: BTreeMap<u32, BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>> =
            (1..=usual).map(|count| (count, BTreeMap::new())).collect();
        let mut refused = Vec::new();
        for (vip, endpoints) in networks.iter().filter_map(|id| self.vips.get(id)).flatten() {
            if endpoints.is_empty() {
                refused.push(*vip);
            } else {
                let count = u32::try_from(endpoints.len()).expect("endpoints are bounded far below 2^32");
                sizes.entry(count).or_default().insert(*vip, endpoints.clone());
            }
        }
        let mut translate = Vec::new();
        for (count, backends) in sizes {
            let map = format!("backends-of-{count}");
            table.sets.insert(map.clone(), Set::BackendsOf(backends));
            translate.push(Rule::new(Vec::new(), Action::BalanceOf { map, count }));
        }
        // The kernel takes its time to attach a chain to a hook and to detach it, so this one stays.
        table.hook("translate", Kind::Nat, Point::Output, PRIORITY_TRANSLATE, translate);
        let former = networks.iter().filter_map(|id| self.former.get(id)).flatten().copied().collect();
        let mut rules = Vec::new();
        for (name, addresses) in [("unserved", refused), ("former", former)] {
            if many || !addresses.is_empty() {
                // Only new connections: those that a draining task still has may end in peace.
                let refused = || vec![Match::New, Match::DestinationIn(name.into())];
                let tcp = [refused(), vec![Match::Protocol(Protocol::Tcp)]].concat();
                rules.extend([Rule::new(tcp, Action::RejectTcp), Rule::new(refused(), Action::RejectPort)]);
                table.sets.insert(name.into(), Set::Addresses(addresses));
            }
        }
        if !rules.is_empty() {
            table.hook("refuse", Kind::Filter, Point::Output, PRIORITY_FILTER, rules);
        }
        if let Some(IngressSide { interface, subnet }) = ingress {
            // A client may ask two hosts from the same port, and both may lead here: these are two connections. Their
            // answers would look the same, so that the second gets another port: the kernel sees to that wherever a chain
            // translates, and this table has one. (For datagrams, some kernels between 6.12 and 6.15 do not, and drop what
            // comes by the second host until the first is forgotten: `nf_nat_used_tuple_new`.)
            let from = || vec![Match::From(interface.clone()), Match::FromStation];
            let tracked = vec![Rule::new(from(), Action::TrackByStation)];
            table.hook("by-station", Kind::Filter, Point::Prerouting, PRIORITY_RAW, tracked);
            let begins = [from(), vec![Match::New]].concat();
            let remember = vec![Rule::new(begins, Action::RememberStation)];
            table.hook("remember", Kind::Filter, Point::Prerouting, PRIORITY_FILTER, remember);
            let leaves = [Match::Reply, Match::ConnectionMarked(*subnet)];
            let recall = vec![Rule::new(leaves, Action::RecallStation)];
            table.hook("recall", Kind::Route, Point::Output, PRIORITY_FILTER, recall);
        }
        table
    }

    fn vips_on(&self, networks: &[String]) -> usize {
        networks.iter().filter_map(|id| self.vips.get(id)).map(BTreeMap::len).sum()
    }

    /// The table of one task's namespace that is no other's: it leads to its resolver's ports (UDP, TCP), and sees to it
    /// that clients of published ports are answered where the task's address on the way out would be in the way, or is
    /// missing.
    #[must_use]
    pub fn own_table(dns_ports: (u16, u16), ingress: Option<&IngressSide>, way_out: Option<Ipv4Addr>) -> Table {
        let mut table = Table::new(Family::Ip, names::OWN_TABLE, COMMENT.into());
        let translate = [(Protocol::Udp, dns_ports.0), (Protocol::Tcp, dns_ports.1)].map(|(protocol, port)| {
            let resolver = Match::Destination(Ipv4Net::from(dns::ADDRESS));
            let matches = [resolver, Match::Protocol(protocol), Match::Port(53)];
            Rule::new(matches, Action::Translate { address: dns::ADDRESS, port: Some(port) })
        });
        table.hook("resolver", Kind::Nat, Point::Output, PRIORITY_TRANSLATE, translate.into());
        let Some(IngressSide { interface, subnet }) = ingress else { return table };
        let (from, to) = (Match::From(interface.clone()), Match::To(interface.clone()));
        match way_out {
            // A server that answers datagrams from a socket without an address answers from the address that its route
            // to the client has. So that is the address that they arrive at.
            Some(own) => {
                let known = [from.clone(), Match::Source(*subnet)];
                let datagrams = [from, Match::FromStation, Match::Protocol(Protocol::Udp)];
                let answerable = Action::Translate { address: own, port: None };
                let rules = vec![Rule::new(known, Action::Accept), Rule::new(datagrams, answerable)];
                table.hook("datagrams", Kind::Nat, Point::Prerouting, PRIORITY_TRANSLATE, rules);
            }
            // The route of replies is the only one that leads to clients, and it is there for replies alone.
            None => {
                let known = [to.clone(), Match::Destination(*subnet)];
                let rules = vec![Rule::new(known, Action::Accept), Rule::new([to, Match::New], Action::RejectNetwork)];
                table.hook("no-way-out", Kind::Filter, Point::Output, PRIORITY_FILTER, rules);
            }
        }
        table
    }

    /// The same for IPv6, where the ingress network has it: there is a route to clients for those who answer datagrams
    /// from a socket without an address, and it leads nobody else out. Programs go on with IPv4 at once.
    #[must_use]
    pub fn own_table6(&self, ingress: &IngressSide) -> Option<Table> {
        let beside = self.beside.values().find(|beside| beside.is_of(ingress.subnet))?;
        let to = || Match::To(ingress.interface.clone());
        let known = Rule::new([to(), Match::Destination(ingress.subnet)], Action::Accept);
        let tcp = Rule::new([to(), Match::New, Match::Protocol(Protocol::Tcp)], Action::RejectTcp);
        let other = Rule::new([to(), Match::New], Action::RejectNetwork);
        let mut table = Table::new(Family::Ip, names::OWN_TABLE, COMMENT.into());
        table.hook("no-way-out", Kind::Filter, Point::Output, PRIORITY_FILTER, vec![known, tcp, other]);
        Some(table.six(vec![*beside]))
    }

    /// A further table of a task's namespace, for frames: what goes back to a client of a published port goes to the
    /// host that it came by, whatever its address is.
    #[must_use]
    pub fn frame_table(ingress: &IngressSide) -> Table {
        let mut table = Table::new(Family::Netdev, names::TABLE, COMMENT.into());
        let rule = Rule::new([Match::Marked(ingress.subnet)], Action::ToStation);
        table.hook("return", Kind::Filter, Point::Egress(ingress.interface.clone()), 0, vec![rule]);
        table
    }

    /// The table of the host's namespace, or nothing when the host needs none.
    #[must_use]
    pub fn host_table(&self, node: &str, side: &HostSide) -> Option<Table> {
        if side.ingress.is_none() && side.egress.is_none() {
            return None;
        }
        let mut table = Table::new(Family::Ip, names::TABLE, format!("made by shoal, node {node}"));
        let mut chains: BTreeMap<Protocol, BTreeMap<u16, String>> = BTreeMap::new();
        let mut open = |table: &mut Table, (protocol, published): (Protocol, u16), backends: &[Ipv4Addr], port| {
            let chain = format!("{}-{published}", protocol.name());
            table.balance(&chain, backends, Some(protocol), Some(port));
            chains.entry(protocol).or_default().insert(published, chain);
        };
        if side.ingress.is_some() {
            for (key, target) in &self.ports {
                open(&mut table, *key, &target.backends, target.port);
            }
        }
        for (key, (port, task)) in &self.host_ports {
            if let Some(address) = side.tasks.get(task) {
                open(&mut table, *key, &[*address], *port);
            }
        }
        let mut translate = Vec::new();
        for (protocol, ports) in chains {
            let map = format!("{}-ports", protocol.name());
            table.sets.insert(map.clone(), Set::PortChains(ports));
            let matches = [Match::Protocol(protocol), Match::DestinationIsLocal];
            translate.push(Rule::new(matches, Action::ChainOfPort(map)));
        }
        table.hook("from-outside", Kind::Nat, Point::Prerouting, PRIORITY_TRANSLATE, translate.clone());
        table.hook("from-here", Kind::Nat, Point::Output, PRIORITY_TRANSLATE, translate);
        table.hook("source", Kind::Nat, Point::Postrouting, PRIORITY_SOURCE, source_rules(side));
        // The links of ours let packets to 127.0.0.0/8 pass, for published ports on localhost. Nobody may come in
        // that way: what arrives there for such an address from outside is dropped before anything looks at it.
        let loopback = Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("a prefix below 32");
        let guards = side.ingress.iter().chain(&side.egress).map(|(link, _)| link);
        let rules = guards
            .map(|link| Rule::new([Match::From(link.clone()), Match::Destination(loopback)], Action::Drop))
            .collect();
        table.hook("guard", Kind::Filter, Point::Prerouting, PRIORITY_RAW, rules);
        // Each connection between tasks is a flow of datagrams between hosts as well, and another one back. Their hosts have
        // no use for following these: it would cost two entries on each host beside the connection's own.
        if side.tunnel.is_some() || !side.seals.is_empty() {
            let rule = |port| Rule::new([Match::Protocol(Protocol::Udp), Match::Port(port)], Action::Untracked);
            let rules = || side.tunnel.iter().chain(&side.seals).map(|port| rule(*port)).collect();
            table.hook("tunnel-in", Kind::Filter, Point::Prerouting, PRIORITY_RAW, rules());
            table.hook("tunnel-out", Kind::Filter, Point::Output, PRIORITY_RAW, rules());
        }
        // Tasks are reached by what they publish alone: what others send to their addresses through this host, whose
        // forwarding we have turned on and whose firewall lets our links' packets pass, goes nowhere.
        let guards = side.ingress.iter().chain(&side.egress).map(|(link, _)| link);
        let rules = guards
            .map(|link| Rule::new([Match::To(link.clone()), Match::New, Match::Untranslated], Action::Drop))
            .collect();
        table.hook("unpublished", Kind::Filter, Point::Forward, PRIORITY_FILTER, rules);
        // What this host did not forward before it had to for us, it does not forward now. Links that came later are
        // not ours to judge: who made them knows that the host forwards, and may count on it.
        if !side.apart.is_empty() {
            table.sets.insert("apart".into(), Set::Links(side.apart.clone()));
            let between = |link: &String| {
                let matches = [Match::From(link.clone()), Match::NotTo(link.clone()), Match::ToIn("apart".into())];
                Rule::new(matches, Action::Drop)
            };
            let rules = side.apart.iter().map(between).collect();
            table.hook("apart", Kind::Filter, Point::Forward, PRIORITY_FILTER, rules);
        }
        Some(table)
    }

    /// The table of a task's namespace for IPv6, where any of its networks has it.
    #[must_use]
    pub fn task_table6(&self, networks: &[String], ingress: Option<&IngressSide>) -> Option<Table> {
        let with = |id: &String| Some((id.clone(), *self.beside.get(id)?));
        let (networks, beside): (Vec<String>, Vec<Beside>) = networks.iter().filter_map(with).unzip();
        let ingress = ingress.filter(|side| beside.iter().any(|beside| beside.is_of(side.subnet)));
        (!networks.is_empty()).then(|| self.task_table(&networks, ingress).six(beside))
    }

    /// The same for IPv6 clients, where the ingress network has IPv6; nothing otherwise. The way out, and with it the
    /// ports of single hosts, is of IPv4 alone.
    #[must_use]
    pub fn host_table6(&self, node: &str, side: &HostSide, beside: Beside) -> Option<Table> {
        side.ingress.as_ref()?;
        let side = HostSide { egress: None, tasks: BTreeMap::new(), apart: side.apart6.clone(), ..side.clone() };
        let mut table = self.host_table(node, &side)?;
        // The kernel lets nothing from `::1` leave by any link, so that such connections would hang. Refused at once,
        // they are tried at 127.0.0.1.
        let itself = Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("a prefix below 32");
        if let Some(chain) = table.chains.get_mut("from-here") {
            chain.rules.insert(0, Rule::new([Match::Destination(itself)], Action::Accept));
        }
        Some(table.six(vec![beside]))
    }
}

/// Who gets another source address. A reply has to come back through this host, since only here is the translation
/// known; tasks find the way back to any client by themselves when they remember stations, except to those that they
/// would look for elsewhere.
fn source_rules(side: &HostSide) -> Vec<Rule> {
    let mut rules = Vec::new();
    let loopback = Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).expect("a prefix below 32");
    let egress = side.egress.as_ref().map(|(_, subnet)| *subnet);
    if let Some((link, subnet)) = &side.ingress {
        let hides = |also: Option<Match>| {
            let mut matches = vec![Match::To(link.clone()), Match::Translated];
            matches.extend(also);
            Rule::new(matches, Action::Masquerade)
        };
        match side.replies {
            Return::Masquerade => rules.push(hides(None)),
            Return::Remember => {
                let own = [Some(loopback), egress, Some(*subnet)].into_iter().flatten();
                rules.extend(own.map(|net| hides(Some(Match::Source(net)))));
                // Which of its addresses a server of this protocol answers from is its own choice.
                rules.push(hides(Some(Match::Protocol(Protocol::Sctp))));
            }
        }
    }
    if let Some((link, subnet)) = &side.egress {
        for source in [loopback, *subnet] {
            let matches = [Match::To(link.clone()), Match::Translated, Match::Source(source)];
            rules.push(Rule::new(matches, Action::Masquerade));
        }
        rules.push(Rule::new([Match::NotTo(link.clone()), Match::Source(*subnet)], Action::Masquerade));
    }
    rules
}

/// Leaves out the endpoints on suspected hosts, unless that would leave none.
pub(crate) fn trusted(
    endpoints: impl Iterator<Item = Ipv4Addr>,
    hosts: &BTreeMap<Ipv4Addr, Ipv4Addr>,
    suspects: &BTreeSet<Ipv4Addr>,
) -> Vec<Ipv4Addr> {
    let all: Vec<Ipv4Addr> = endpoints.collect();
    let suspected = |address: &Ipv4Addr| hosts.get(address).is_some_and(|host| suspects.contains(host));
    if all.iter().all(&suspected) {
        return all;
    }
    all.into_iter().filter(|address| !suspected(address)).collect()
}
