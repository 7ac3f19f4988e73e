//! What there is to know about names: one immutable value for the whole host, and what each task may see of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::names::{Names, Places};
use super::tlds;
use crate::config::{Desired, EndpointConfig, Network, Protocol};

/// All names of all networks that this host has to do with. Built from the desired state and swapped whole.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Zone {
    networks: BTreeMap<String, OnNetwork>,
    /// The hosts that it leaves out.
    suspects: BTreeSet<Ipv4Addr>,
}

/// A network, and the names on it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OnNetwork {
    network: Arc<Network>,
    names: Arc<Names>,
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
        Zone::default().following(desired, suspects)
    }

    /// The same as a new one, made of this one: it costs what the services that differ have.
    #[must_use]
    pub fn following(&self, desired: &Desired, suspects: &BTreeSet<Ipv4Addr>) -> Zone {
        let on_network = |network: &Arc<Network>| {
            let before = self.networks.get(&network.id);
            let names = match before {
                Some(known) if Arc::ptr_eq(&known.network, network) && self.suspects == *suspects => {
                    Arc::clone(&known.names)
                }
                _ => Arc::new(Names::following(before.map(|known| &*known.names), network, suspects)),
            };
            (network.id.clone(), OnNetwork { network: Arc::clone(network), names })
        };
        Zone { networks: desired.networks.iter().map(on_network).collect(), suspects: suspects.clone() }
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
        // Of a task that is gone. No top-level domain is that long.
        let of_a_task = base.rsplit_once('.').is_some_and(|(_, last)| is_task_id(last));
        let of_a_service = base.strip_prefix("tasks.").is_some_and(|rest| !rest.contains('.') && !tlds::is_one(rest));
        match base {
            "" if labels.is_empty() => Known::Foreign,
            _ if ours || of_a_service || of_a_task || !base.contains('.') => Known::Missing,
            _ => Known::Foreign,
        }
    }

    /// Looks the name of an address up.
    #[must_use]
    pub fn reverse(&self, view: &View, address: IpAddr) -> Reverse<'_> {
        let mut ours = false;
        for network in self.of(view) {
            if let Some(name) = network.reverse(address) {
                return Reverse::Name(name);
            }
            ours |= network.contains(address);
        }
        if ours { Reverse::Unused } else { Reverse::Foreign }
    }

    fn of(&self, view: &View) -> impl Iterator<Item = &Names> {
        view.networks.iter().filter_map(|id| self.networks.get(id)).map(|known| &*known.names)
    }

    fn addresses<'a>(&'a self, view: &'a View, name: &str) -> Option<&'a [IpAddr]> {
        let qualified = |network: &'a Names| network.addresses(below(name, &network.name)?);
        self.of(view)
            .find_map(|network| network.addresses(name))
            .or_else(|| self.of(view).find_map(qualified))
            .or_else(|| view.own.get(name).map(Vec::as_slice))
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

/// Whether a label has the form of a task's id, as in `web.1.ID`.
fn is_task_id(label: &str) -> bool {
    label.len() == 25 && label.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
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

    /// The same with the IPv6 addresses beside its own.
    #[must_use]
    pub fn with_ipv6(mut self, config: &EndpointConfig, desired: &Desired) -> View {
        for attachment in &config.attachments {
            let beside = desired.network(&attachment.network).and_then(Network::beside);
            let Some(six) = beside.and_then(|beside| beside.address(attachment.address)) else { continue };
            for addresses in self.own.values_mut().filter(|all| all.contains(&attachment.address.into())) {
                addresses.push(six.into());
            }
        }
        self
    }
}
