//! Which connections lead nowhere any more: those whose endpoint is not on its network, or on a host that is left out.
//!
//! An endpoint that drains is still there, and its connections go on. One on a host under suspicion counts as gone when
//! others are served from; a suspicion alone never ends the connections to the last one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use ipnet::Ipv4Net;

use super::balance::Balance;
use super::names;
use crate::config::Network;

/// The addresses of one network that somebody answers at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// The network's addresses.
    pub subnet: Ipv4Net,
    /// Those that somebody has.
    pub addresses: BTreeSet<Ipv4Addr>,
}

impl Present {
    /// Whether a connection to somebody at this address leads nowhere: it is one of the network's, and nobody has it.
    #[must_use]
    pub fn lacks(&self, address: Ipv4Addr) -> bool {
        self.subnet.contains(&address) && !self.addresses.contains(&address)
    }

    /// Whether anybody was there and is not any more.
    #[must_use]
    pub fn lost_any(&self, now: &Present) -> bool {
        self.subnet == now.subnet && self.addresses.difference(&now.addresses).next().is_some()
    }
}

/// Who is there at one moment, by network. It is found out when somebody asks for the first time, which takes a
/// millisecond for thousands of endpoints.
#[derive(Debug, Default)]
pub struct Census {
    networks: Vec<Arc<Network>>,
    balance: Arc<Balance>,
    suspects: BTreeSet<Ipv4Addr>,
    own: Vec<(String, Ipv4Addr)>,
    way_out: Option<Present>,
    found: OnceLock<BTreeMap<String, Present>>,
}

impl Census {
    /// Of these networks, where these are led to and these hosts are left out. This host's own tasks (network and address)
    /// are there whether it was told of them or not. The way out is known as [`names::EGRESS`].
    #[must_use]
    pub fn new(
        networks: Vec<Arc<Network>>,
        balance: Arc<Balance>,
        suspects: BTreeSet<Ipv4Addr>,
        own: Vec<(String, Ipv4Addr)>,
        way_out: Option<Present>,
    ) -> Census {
        Census { networks, balance, suspects, own, way_out, found: OnceLock::new() }
    }

    /// Who is on a network.
    #[must_use]
    pub fn get(&self, network: &str) -> Option<&Present> {
        self.found.get_or_init(|| self.find()).get(network)
    }

    fn find(&self) -> BTreeMap<String, Present> {
        let mut all = present(&self.networks, &self.balance, &self.suspects);
        for (network, address) in &self.own {
            if let Some(network) = all.get_mut(network) {
                network.addresses.insert(*address);
            }
        }
        all.extend(self.way_out.iter().map(|present| (names::EGRESS.to_owned(), present.clone())));
        all
    }
}

fn present(networks: &[Arc<Network>], balance: &Balance, suspects: &BTreeSet<Ipv4Addr>) -> BTreeMap<String, Present> {
    let published: BTreeSet<Ipv4Addr> = balance.ports.values().flat_map(|target| target.backends.clone()).collect();
    let networks = networks.iter().map(|network| {
        let hosts = network.hosts();
        let suspected = |address: &Ipv4Addr| hosts.get(address).is_some_and(|host| suspects.contains(host));
        let stations = network.stations.iter().map(|station| station.address);
        let endpoints = network.services.iter().flat_map(|service| &service.endpoints).map(|endpoint| endpoint.address);
        let mut addresses: BTreeSet<Ipv4Addr> =
            stations.chain(endpoints).filter(|address| !suspected(address)).collect();
        addresses.extend(network.host_address);
        let balanced = balance.vips.get(&network.id).into_iter().flat_map(BTreeMap::values).flatten();
        addresses.extend(balanced.filter(|address| network.subnet.contains(*address)));
        if network.ingress {
            addresses.extend(published.iter().filter(|address| network.subnet.contains(*address)));
        }
        (network.id.clone(), Present { subnet: network.subnet.trunc(), addresses })
    });
    networks.collect()
}
