//! What there is to know about names: one immutable value for the whole host, and what each task may see of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::tlds;
use crate::config::{Desired, EndpointConfig, Network, Protocol, Service, ServicePort};
use crate::plan::balance::trusted;

/// All names of all networks that this host has to do with. Built from the desired state and swapped whole.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Zone {
    networks: BTreeMap<String, Names>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    name: String,
    /// Others use names that end like this as well.
    shared: bool,
    subnet: IpNet,
    forward: BTreeMap<String, Vec<IpAddr>>,
    /// By name and alias.
    services: BTreeMap<String, Arc<Places>>,
    reverse: BTreeMap<IpAddr, String>,
}

/// Where a service is.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    ports: Vec<ServicePort>,
    /// The name and address that stand for all of it; nothing where its tasks do.
    whole: Option<(String, IpAddr)>,
    /// Its tasks that serve.
    tasks: Vec<(String, IpAddr)>,
}

/// Where foreign names are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Upstream {
    /// Nowhere: the task has no way out.
    #[default]
    Nowhere,
    /// Where the host asks.
    Host,
    /// At the task's own servers.
    Own(Vec<IpAddr>),
}

/// What one task sees: its networks in order, and its own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Ids of its networks.
    pub networks: Vec<String>,
    /// Names by which it knows itself, where nobody else has them.
    pub own: BTreeMap<String, Vec<IpAddr>>,
    /// Where foreign names are asked for.
    pub upstream: Upstream,
}

/// What is known about a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// It has these addresses; possibly none at the moment.
    Name(&'a [IpAddr]),
    /// A port of a service, at these names and addresses; possibly nowhere at the moment.
    Places(u16, &'a [(String, IpAddr)]),
    /// It would be ours, and there is no such name.
    Missing,
    /// It is nobody's here.
    Foreign,
}

/// What is known about an address.
#[derive(Debug, PartialEq, Eq)]
pub enum Reverse<'a> {
    /// Its name.
    Name(&'a str),
    /// It is ours, and nobody has it.
    Unused,
    /// It is not ours.
    Foreign,
}

/// What `localhost` is, for programs that do not read `/etc/hosts`.
const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl Zone {
    /// The names of a desired state. Services' names leave out the tasks on suspected hosts (by data path address), as
    /// balancing does: never all of them.
    #[must_use]
    pub fn new(desired: &Desired, suspects: &BTreeSet<Ipv4Addr>) -> Zone {
        let names = |network: &Arc<Network>| (network.id.clone(), Names::new(network, suspects));
        Zone { networks: desired.networks.iter().map(names).collect() }
    }

    /// Looks a name up: in the task's networks in order, then `name.network`, then the task's own names. What is not
    /// found there is foreign only if it could be anybody's: not without a dot, not below a network's name, not below
    /// `_tcp` or `_udp` of a name of ours.
    #[must_use]
    pub fn look_up<'a>(&'a self, view: &'a View, name: &str) -> Known<'a> {
        if let Some(addresses) = self.addresses(view, name) {
            return Known::Name(addresses);
        }
        if name == "localhost" {
            return Known::Name(&LOCALHOST);
        }
        let (labels, base) = underscored(name);
        if let [port, transport] = labels.as_slice()
            && let Some(found) = self.places(view, port, transport, base)
        {
            return found;
        }
        // Between a name and its ports: there is nothing, but something below.
        if matches!(labels.as_slice(), ["_tcp" | "_udp"]) && self.service(view, base).is_some() {
            return Known::Name(&[]);
        }
        if !labels.is_empty() && self.addresses(view, base).is_some() {
            return Known::Missing;
        }
        let ours = self.of(view).any(|network| !network.shared && below(base, &network.name).is_some());
        let of_a_service = base.strip_prefix("tasks.").is_some_and(|rest| !rest.contains('.') && !tlds::is_one(rest));
        match base {
            "" if labels.is_empty() => Known::Foreign,
            _ if ours || of_a_service || !base.contains('.') => Known::Missing,
            _ => Known::Foreign,
        }
    }

    /// Looks the name of an address up.
    #[must_use]
    pub fn reverse(&self, view: &View, address: IpAddr) -> Reverse<'_> {
        let mut ours = false;
        for network in self.of(view) {
            if let Some(name) = network.reverse.get(&address) {
                return Reverse::Name(name);
            }
            ours |= network.subnet.contains(&address);
        }
        if ours { Reverse::Unused } else { Reverse::Foreign }
    }

    fn of(&self, view: &View) -> impl Iterator<Item = &Names> {
        view.networks.iter().filter_map(|id| self.networks.get(id))
    }

    fn addresses<'a>(&'a self, view: &'a View, name: &str) -> Option<&'a [IpAddr]> {
        let qualified = |network: &'a Names| network.forward.get(below(name, &network.name)?);
        self.of(view)
            .find_map(|network| network.forward.get(name))
            .or_else(|| self.of(view).find_map(qualified))
            .or_else(|| view.own.get(name))
            .map(Vec::as_slice)
    }

    /// A service, and whether its tasks are meant.
    fn service(&self, view: &View, name: &str) -> Option<(&Places, bool)> {
        self.of(view)
            .find_map(|network| network.service(name))
            .or_else(|| self.of(view).find_map(|network| network.service(below(name, &network.name)?)))
    }

    /// What `_port._tcp.name` is, if the name is a service's.
    fn places(&self, view: &View, port: &str, transport: &str, name: &str) -> Option<Known<'_>> {
        let (places, tasks) = self.service(view, name)?;
        let protocol = match transport {
            "_tcp" => Protocol::Tcp,
            "_udp" => Protocol::Udp,
            _ => return Some(Known::Missing),
        };
        let Some(port) = places.port(port.trim_start_matches('_'), protocol) else { return Some(Known::Missing) };
        let at = match &places.whole {
            Some(whole) if !tasks => std::slice::from_ref(whole),
            _ => places.tasks.as_slice(),
        };
        Some(Known::Places(port, at))
    }
}

/// The labels in front that begin with an underscore, and the rest.
fn underscored(name: &str) -> (Vec<&str>, &str) {
    let (mut labels, mut rest) = (Vec::new(), name);
    while rest.starts_with('_') {
        let (label, after) = rest.split_once('.').unwrap_or((rest, ""));
        labels.push(label);
        rest = after;
    }
    (labels, rest)
}

/// What stands in front of a domain, in a name that is below it.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    name.strip_suffix(domain)?.strip_suffix('.')
}

impl Places {
    /// The port that is meant by a name: that of a published port, a number, or the usual name of a published port that
    /// has no name of its own.
    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let ports = || self.ports.iter().filter(|port| port.protocol == protocol);
        ports()
            .find(|port| !port.name.is_empty() && port.name.eq_ignore_ascii_case(name))
            .map(|port| port.target)
            .or_else(|| name.parse().ok().filter(|port| *port != 0))
            .or_else(|| {
                let (_, usual) = USUAL.iter().find(|(usual, _)| *usual == name)?;
                ports().find(|port| port.name.is_empty() && port.target == *usual).map(|port| port.target)
            })
    }
}

/// Names that ports go by although nobody has said so: Docker's command line cannot name a port.
const USUAL: [(&str, u16); 16] = [
    ("amqp", 5672),
    ("domain", 53),
    ("http", 80),
    ("http-alt", 8080),
    ("https", 443),
    ("imap", 143),
    ("ldap", 389),
    ("mongodb", 27017),
    ("mqtt", 1883),
    ("mysql", 3306),
    ("ntp", 123),
    ("postgresql", 5432),
    ("redis", 6379),
    ("sip", 5060),
    ("smtp", 25),
    ("ssh", 22),
];

impl Names {
    fn new(network: &Network, suspects: &BTreeSet<Ipv4Addr>) -> Names {
        let name = network.name.to_ascii_lowercase();
        let mut names = Names {
            shared: tlds::is_one(&name),
            subnet: network.subnet.into(),
            forward: BTreeMap::new(),
            services: BTreeMap::new(),
            reverse: BTreeMap::new(),
            name,
        };
        let hosts = if suspects.is_empty() { BTreeMap::new() } else { network.hosts() };
        // The ingress network is the way in and joins services that have nothing to do with each other; as with Docker,
        // nobody is found by name there.
        let services = if network.ingress { &[] } else { network.services.as_slice() };
        for service in services {
            let serving = service.endpoints.iter().filter(|endpoint| endpoint.serving).map(|endpoint| endpoint.address);
            names.add_service(service, &trusted(serving, &hosts, suspects));
        }
        names
    }

    fn add_service(&mut self, service: &Service, serving: &[Ipv4Addr]) {
        let full = |name: &str| format!("{}.{}", name.to_ascii_lowercase(), self.name);
        let whole = service.vip.map(|vip| (full(&service.name), vip.into()));
        let named: BTreeMap<Ipv4Addr, &str> =
            service.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.name.as_str())).collect();
        let tasks: Vec<(String, IpAddr)> =
            serving.iter().map(|address| (full(named[address]), IpAddr::V4(*address))).collect();
        let addresses: Vec<IpAddr> = tasks.iter().map(|(_, address)| *address).collect();
        let answer = whole.as_ref().map_or(addresses.clone(), |(_, vip)| vec![*vip]);
        if let Some((name, vip)) = &whole {
            self.reverse.insert(*vip, name.clone());
        }
        let places = Arc::new(Places { ports: service.ports.clone(), whole, tasks });
        for alias in std::iter::once(&service.name).chain(&service.aliases) {
            let alias = alias.to_ascii_lowercase();
            self.add(format!("tasks.{alias}"), &addresses);
            self.add(alias.clone(), &answer);
            // Of services that share an alias, one has the ports; the addresses are all of theirs.
            self.services.entry(alias).or_insert_with(|| Arc::clone(&places));
        }
        // A task can find itself and its peers while they start: clustered databases need that to form.
        for endpoint in &service.endpoints {
            let address = IpAddr::V4(endpoint.address);
            for own in std::iter::once(&endpoint.name).chain(&endpoint.names) {
                self.add(own.to_ascii_lowercase(), &[address]);
            }
            let name = format!("{}.{}", endpoint.name.to_ascii_lowercase(), self.name);
            self.reverse.insert(address, name);
        }
    }

    fn add(&mut self, name: String, addresses: &[IpAddr]) {
        let known = self.forward.entry(name).or_default();
        if known.is_empty() {
            return known.extend_from_slice(addresses);
        }
        for address in addresses {
            if !known.contains(address) {
                known.push(*address);
            }
        }
    }

    fn service(&self, name: &str) -> Option<(&Places, bool)> {
        match self.services.get(name) {
            Some(places) => Some((places, false)),
            None => self.services.get(name.strip_prefix("tasks.")?).map(|places| (&**places, true)),
        }
    }
}

impl View {
    /// What a task sees. `way_out` tells whether it may ask for foreign names.
    #[must_use]
    pub fn new(config: &EndpointConfig, way_out: bool) -> View {
        let mut own: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for attachment in &config.attachments {
            for name in std::iter::once(&config.hostname).chain(&attachment.aliases) {
                if !name.is_empty() {
                    own.entry(name.to_ascii_lowercase()).or_default().push(attachment.address.into());
                }
            }
        }
        let upstream = match (way_out, config.dns_servers.is_empty()) {
            (false, _) => Upstream::Nowhere,
            (true, true) => Upstream::Host,
            (true, false) => Upstream::Own(config.dns_servers.clone()),
        };
        View { networks: config.attachments.iter().map(|a| a.network.clone()).collect(), own, upstream }
    }
}
