//! What a host cannot do for the cluster's networks, in words for its status. Computed when somebody looks, so that it is
//! never out of date.

use std::sync::Arc;

use super::address::dry;
use super::reserved::own_ports;
use super::subnet::{overlap, overlap6};
use crate::model::{Network, Node, Subnet, Subnet6, parse_ipv4};
use crate::store::Store;

/// Why a host cannot have a place on the ingress network, if a network of its own is in the way.
pub(crate) fn ingress_obstacle(node: &Node, ingress: &Network) -> Option<String> {
    let allocation = ingress.allocation.as_ref()?;
    let in_the_way = |subnet: String, own: String| {
        format!("network {} ({subnet}) has addresses of this host's own network {own}", ingress.spec.name)
    };
    let four = Subnet::parse(&allocation.subnet);
    let four = four.and_then(|subnet| Some(in_the_way(subnet.to_string(), overlap(node, subnet)?.to_string())));
    let six = || {
        let subnet = Subnet6::parse(&allocation.subnet6)?;
        Some(in_the_way(subnet.to_string(), overlap6(node, subnet)?.to_string()))
    };
    four.or_else(six)
}

/// Why no host at all can have a place on the ingress network: it holds the address of one, whom the others would lose.
pub(super) fn swallowed_host(store: &Store, ingress: &Network) -> Option<String> {
    let subnet = Subnet::parse(&ingress.allocation.as_ref()?.subnet)?;
    host_inside(store, &ingress.spec.name, subnet)
}

/// See [`swallowed_host`]; of a network that may not be there yet.
pub(crate) fn host_inside(store: &Store, network: &str, subnet: Subnet) -> Option<String> {
    let inside = |node: &&Arc<Node>| {
        parse_ipv4(&node.description.data_path_addr).is_some_and(|address| subnet.contains(address))
    };
    let node = &store.nodes().find(inside)?.description;
    let addr = &node.data_path_addr;
    Some(format!("network {network} ({subnet}) has the address {addr} of node '{}'", node.hostname))
}

/// Looks at one state of the cluster.
#[derive(Clone, Debug)]
pub struct Troubles<'a> {
    store: &'a Store,
    subnets: Vec<(&'a str, Subnet)>,
    swallowed: Option<String>,
}

impl<'a> Troubles<'a> {
    /// Looks at this state. Costs a walk over all networks and hosts.
    pub fn new(store: &'a Store) -> Self {
        let subnet = |network: &'a Network| Subnet::parse(&network.allocation.as_ref()?.subnet);
        let subnets = store.networks().filter_map(|network| Some((network.spec.name.as_str(), subnet(network)?)));
        let swallowed = store.ingress_network().and_then(|ingress| swallowed_host(store, ingress));
        Self { store, subnets: subnets.collect(), swallowed }
    }

    /// What the host cannot do, a sentence each; empty if all is well.
    pub fn of(&self, node: &Node) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(ingress) = self.store.ingress_network().filter(|ingress| ingress.allocation.is_some()) {
            let is_without = !node.attachments.iter().any(|attachment| attachment.network == ingress.id);
            let obstacle = || ingress_obstacle(node, ingress).unwrap_or_else(|| dry(&ingress.spec.name));
            let why = self.swallowed.clone().or_else(|| is_without.then(obstacle));
            found.extend(why.map(|why| format!("published ports are not served on this host: {why}")));
        }
        for (protocol, port, purpose) in own_ports(node) {
            if let Some(service) = self.store.published_port_owner(protocol, port) {
                let (name, id) = (&service.spec.name, &service.id);
                let text =
                    format!("port '{port}' of service '{name}' ({id}) is not served on this host: it is its {purpose}");
                if !found.contains(&text) {
                    found.push(text);
                }
            }
        }
        if let Some(way_out) = Subnet::parse(&node.description.way_out) {
            for (name, subnet) in self.subnets.iter().filter(|(_, subnet)| subnet.overlaps(way_out)) {
                found.push(format!(
                    "tasks on network {name} ({subnet}) may not reach other networks from this host: it has addresses of \
                     {way_out}, through which they would"
                ));
            }
        }
        found
    }
}
