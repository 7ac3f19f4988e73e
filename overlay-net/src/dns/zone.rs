//! What there is to know about names: one immutable value for the whole host, and what each task may see of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use crate::config::{Desired, EndpointConfig, Network};
use crate::plan::balance::trusted;

/// All names of all networks that this host has to do with. Built from the desired state and swapped whole.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Zone {
    networks: BTreeMap<String, Names>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    name: String,
    subnet: Ipv4Net,
    forward: BTreeMap<String, Vec<Ipv4Addr>>,
    reverse: BTreeMap<Ipv4Addr, String>,
}

/// What one task sees: its networks in order, and its own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Ids of its networks.
    pub networks: Vec<String>,
    /// Names by which it knows itself, where nobody else has them.
    pub own: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Where foreign names are asked for; nothing for a task that has no way out.
    pub upstreams: Vec<IpAddr>,
}

/// What is known about a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// It has these addresses; possibly none at the moment.
    Name(&'a [Ipv4Addr]),
    /// Nothing.
    Nothing,
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

impl Zone {
    /// The names of a desired state. Services' names leave out the tasks on suspected hosts (by data path address), as
    /// balancing does: never all of them.
    #[must_use]
    pub fn new(desired: &Desired, suspects: &BTreeSet<Ipv4Addr>) -> Zone {
        let names = |network: &Network| (network.id.clone(), Names::new(network, suspects));
        Zone { networks: desired.networks.iter().map(names).collect() }
    }

    /// Looks a name up: in the task's networks in order, then `name.network`, then the task's own names.
    #[must_use]
    pub fn look_up<'a>(&'a self, view: &'a View, name: &str) -> Known<'a> {
        let networks = || view.networks.iter().filter_map(|id| self.networks.get(id));
        let qualified = |network: &'a Names| {
            let host = name.strip_suffix(network.name.as_str())?.strip_suffix('.')?;
            network.forward.get(host)
        };
        networks()
            .find_map(|network| network.forward.get(name))
            .or_else(|| networks().find_map(qualified))
            .or_else(|| view.own.get(name))
            .map_or(Known::Nothing, |addresses| Known::Name(addresses))
    }

    /// Looks the name of an address up.
    #[must_use]
    pub fn reverse(&self, view: &View, address: Ipv4Addr) -> Reverse<'_> {
        let mut ours = false;
        for network in view.networks.iter().filter_map(|id| self.networks.get(id)) {
            if let Some(name) = network.reverse.get(&address) {
                return Reverse::Name(name);
            }
            ours |= network.subnet.contains(&address);
        }
        if ours { Reverse::Unused } else { Reverse::Foreign }
    }
}

impl Names {
    fn new(network: &Network, suspects: &BTreeSet<Ipv4Addr>) -> Names {
        let name = network.name.to_ascii_lowercase();
        let mut forward: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        let mut reverse = BTreeMap::new();
        let hosts = if suspects.is_empty() { BTreeMap::new() } else { network.hosts() };
        let mut add = |name: String, addresses: &[Ipv4Addr]| {
            let known = forward.entry(name).or_default();
            for address in addresses {
                if !known.contains(address) {
                    known.push(*address);
                }
            }
        };
        // The ingress network is the way in and joins services that have nothing to do with each other; as with Docker,
        // nobody is found by name there.
        let services = if network.ingress { &[] } else { network.services.as_slice() };
        for service in services {
            let serving = service.endpoints.iter().filter(|endpoint| endpoint.serving).map(|endpoint| endpoint.address);
            let serving = trusted(serving, &hosts, suspects);
            let virtual_address = service.vip.map(|vip| vec![vip]);
            let answer = virtual_address.as_ref().unwrap_or(&serving);
            for alias in std::iter::once(&service.name).chain(&service.aliases) {
                let alias = alias.to_ascii_lowercase();
                add(format!("tasks.{alias}"), &serving);
                add(alias, answer);
            }
            if let Some(vip) = service.vip {
                reverse.insert(vip, format!("{}.{name}", service.name.to_ascii_lowercase()));
            }
            // A task can find itself and its peers while they start: clustered databases need that to form.
            for endpoint in &service.endpoints {
                for own in std::iter::once(&endpoint.name).chain(&endpoint.names) {
                    add(own.to_ascii_lowercase(), &[endpoint.address]);
                }
                reverse.insert(endpoint.address, format!("{}.{name}", endpoint.name.to_ascii_lowercase()));
            }
        }
        Names { name, subnet: network.subnet, forward, reverse }
    }
}

impl View {
    /// What a task sees. `way_out` tells whether it may ask for foreign names; `host` are the host's upstreams.
    #[must_use]
    pub fn new(config: &EndpointConfig, way_out: bool, host: &[IpAddr]) -> View {
        let mut own: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for attachment in &config.attachments {
            for name in std::iter::once(&config.hostname).chain(&attachment.aliases) {
                if !name.is_empty() {
                    own.entry(name.to_ascii_lowercase()).or_default().push(attachment.address);
                }
            }
        }
        let upstreams = match (way_out, config.dns_servers.is_empty()) {
            (false, _) => Vec::new(),
            (true, true) => host.to_vec(),
            (true, false) => config.dns_servers.clone(),
        };
        View { networks: config.attachments.iter().map(|a| a.network.clone()).collect(), own, upstreams }
    }
}
