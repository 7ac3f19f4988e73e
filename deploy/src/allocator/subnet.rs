//! Subnets and VXLAN ids of networks.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    Network, NetworkAllocation, Node, Subnet, Subnet6, format_ipv4, format_ipv6, parse_ipv4, parse_ipv6,
};
use crate::store::Store;

/// Lowest VXLAN id: a Docker Swarm on the same hosts counts from 4096 and does not get here.
const FIRST_VNI: u32 = 0x10_0000;
/// VXLAN ids have 24 bits.
const LAST_VNI: u32 = 0xff_ffff;

/// What a network that has nothing yet would be given.
///
/// # Errors
/// Why nothing can be given, for people.
pub(crate) fn plan_network(store: &Store, network: &Network) -> Result<NetworkAllocation, String> {
    let taken = taken_subnets(store, network);
    let hosts = HostSubnets::of(store);
    let asked = network.spec.ipam4().filter(|ipam| !ipam.subnet.is_empty());
    let subnet = match asked {
        Some(ipam) => {
            let Some(subnet) = Subnet::parse(&ipam.subnet) else {
                return Err(format!("invalid subnet {:?}", ipam.subnet));
            };
            if taken.iter().any(|other| other.overlaps(subnet)) {
                return Err("invalid pool request: Pool overlaps with other one on this address space".to_owned());
            }
            if let Some((way_out, node)) = hosts.way_outs.iter().find(|(way_out, _)| way_out.overlaps(subnet)) {
                return Err(format!(
                    "invalid pool request: {subnet} overlaps {way_out}, through which tasks on node '{node}' reach \
                     other networks"
                ));
            }
            subnet
        }
        None => free_subnet(store, &taken, &hosts)
            .ok_or_else(|| "could not find an available, non-overlapping IPv4 address pool".to_owned())?,
    };
    let gateway = asked.and_then(|ipam| parse_ipv4(&ipam.gateway)).unwrap_or(subnet.first() + 1);
    let vni = (FIRST_VNI..=LAST_VNI)
        .find(|vni| store.vni_owner(*vni).is_none())
        .ok_or_else(|| "no VXLAN id is free".to_owned())?;
    let (subnet6, gateway6) = match network.spec.ipv6 {
        true => plan_ipv6(store, network, subnet, gateway)?,
        false => Default::default(),
    };
    Ok(NetworkAllocation { vni, subnet: subnet.to_string(), gateway: format_ipv4(gateway), subnet6, gateway6 })
}

/// The IPv6 subnet that goes with an IPv4 one, and its gateway.
fn plan_ipv6(store: &Store, network: &Network, four: Subnet, gateway: u32) -> Result<(String, String), String> {
    let taken = taken_subnets6(store, network);
    let asked = network.spec.ipam6();
    let six = match asked {
        Some(ipam) => {
            let Some(six) = Subnet6::parse(&ipam.subnet) else {
                return Err(format!("invalid subnet {:?}", ipam.subnet));
            };
            if taken.iter().any(|other| other.overlaps(six)) {
                return Err("invalid pool request: Pool overlaps with other one on this address space".to_owned());
            }
            six
        }
        None => free_subnet6(store, &taken)
            .ok_or_else(|| "could not find an available, non-overlapping IPv6 address pool".to_owned())?,
    };
    let beside = six
        .beside(four, gateway)
        .ok_or_else(|| format!("invalid subnet {six}: too small, each address of {four} has one of it beside it"))?;
    let gateway6 = asked.and_then(|ipam| parse_ipv6(&ipam.gateway)).unwrap_or(beside);
    Ok((six.to_string(), format_ipv6(gateway6)))
}

/// IPv6 subnets that other networks have, or that users asked for.
fn taken_subnets6(store: &Store, network: &Network) -> BTreeSet<Subnet6> {
    let others = store.networks().filter(|other| other.id != network.id);
    others
        .filter_map(|other| match &other.allocation {
            Some(allocation) => Subnet6::parse(&allocation.subnet6),
            None => other.spec.ipam6().and_then(|ipam| Subnet6::parse(&ipam.subnet)),
        })
        .collect()
}

/// The lowest free /64 of the cluster's own /48 among the unique local addresses (RFC 4193): `fd`, and 40 bits that
/// follow from the cluster's id, so that two clusters rarely have the same. What hosts have there is left out as well, but
/// for a network that holds all of it: that could not be avoided.
fn free_subnet6(store: &Store, taken: &BTreeSet<Subnet6>) -> Option<Subnet6> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in store.cluster()?.id.as_str().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let pool = 0xfd_u128 << 120 | u128::from(hash >> 24) << 80;
    let candidate = |number: u128| Subnet6::containing(pool | number << 64, 64);
    let whole = Subnet6::containing(pool, 48)?;
    let in_the_way = |own: &Subnet6| own.overlaps(whole) && own.prefix() > whole.prefix();
    let descriptions = store.nodes().map(|node| &node.description);
    let own = descriptions.flat_map(|description| description.own_subnets6.iter().chain(&description.routes6));
    let hosts: BTreeSet<Subnet6> = own.filter_map(|text| Subnet6::parse(text)).filter(in_the_way).collect();
    let free = |subnet: &Subnet6| !taken.iter().chain(&hosts).any(|other| other.overlaps(*subnet));
    (0..1 << 16).filter_map(candidate).find(free)
}

/// Subnets that other networks have, or that users asked for, in order.
fn taken_subnets(store: &Store, network: &Network) -> Vec<Subnet> {
    let others = store.networks().filter(|other| other.id != network.id);
    let mut taken: Vec<Subnet> = others
        .filter_map(|other| match &other.allocation {
            Some(allocation) => Subnet::parse(&allocation.subnet),
            None => other.spec.ipam4().and_then(|ipam| Subnet::parse(&ipam.subnet)),
        })
        .collect();
    taken.sort_unstable();
    taken
}

/// Subnets that hosts have of their own.
struct HostSubnets {
    /// Their networks, and what they have routes to.
    own: BTreeSet<Subnet>,
    /// What their tasks reach other networks through, and the name of one such host.
    way_outs: BTreeMap<Subnet, String>,
}

impl HostSubnets {
    fn of(store: &Store) -> Self {
        let descriptions = || store.nodes().map(|node| &node.description);
        let own = descriptions().flat_map(|d| d.own_subnets.iter().chain(&d.routes));
        let way_outs = descriptions().filter_map(|d| Some((Subnet::parse(&d.way_out)?, d.hostname.clone())));
        Self { own: own.filter_map(|text| Subnet::parse(text)).collect(), way_outs: way_outs.collect() }
    }
}

/// The lowest free subnet of the first pool that has one. Networks of hosts are left out as well, but for one that a
/// whole pool lies in: that could not be avoided.
fn free_subnet(store: &Store, taken: &[Subnet], hosts: &HostSubnets) -> Option<Subnet> {
    let spec = &store.cluster()?.spec;
    let prefix = u8::try_from(spec.subnet_size).ok()?;
    let size = 1_u64.checked_shl(32_u32.checked_sub(spec.subnet_size)?)?;
    spec.default_addr_pool.iter().filter_map(|text| Subnet::parse(text)).find_map(|pool| {
        let swallows = |subnet: &Subnet| subnet.prefix() <= pool.prefix() && subnet.contains(pool.first());
        let hosts = hosts.own.iter().chain(hosts.way_outs.keys()).filter(|subnet| !swallows(subnet));
        let in_the_way = merged(taken.iter().chain(hosts).copied().collect());
        let mut first = u64::from(pool.first());
        while first + size - 1 <= u64::from(pool.last()) {
            let candidate = Subnet::containing(u32::try_from(first).ok()?, prefix)?;
            let at = in_the_way.partition_point(|(_, last)| *last < candidate.first());
            match in_the_way.get(at).filter(|(start, _)| *start <= candidate.last()) {
                None => return Some(candidate),
                // Go on behind what is in the way, which may be larger or smaller than the candidate.
                Some((_, last)) => {
                    first = (u64::from(*last).max(u64::from(candidate.last())) + 1).next_multiple_of(size);
                }
            }
        }
        None
    })
}

/// First and last addresses of what the subnets cover, in order and apart from each other.
fn merged(subnets: BTreeSet<Subnet>) -> Vec<(u32, u32)> {
    let mut covered: Vec<(u32, u32)> = Vec::new();
    // In order of their first addresses. Of two subnets that meet, one lies in the other.
    for subnet in subnets {
        match covered.last_mut() {
            Some((_, last)) if subnet.first() <= *last => *last = (*last).max(subnet.last()),
            _ => covered.push((subnet.first(), subnet.last())),
        }
    }
    covered
}

/// Hosts of which a network of their own has addresses of `subnet`: their names, and that network.
pub(crate) fn overlapping_hosts(store: &Store, subnet: Subnet) -> impl Iterator<Item = (&str, Subnet)> {
    store.nodes().filter_map(move |node| Some((node.description.hostname.as_str(), overlap(node, subnet)?)))
}

/// The network of a host that keeps it from having a place on a network with that subnet: one that it has an address in,
/// or a route to a part of that subnet. A route to a wider network is none, since the more exact one counts.
pub(super) fn overlap(node: &Node, subnet: Subnet) -> Option<Subnet> {
    let (own, routes) = (&node.description.own_subnets, &node.description.routes);
    let own = own.iter().filter_map(|text| Subnet::parse(text)).find(|own| own.overlaps(subnet));
    let inside = |route: &Subnet| subnet.prefix() <= route.prefix() && subnet.contains(route.first());
    own.or_else(|| routes.iter().filter_map(|text| Subnet::parse(text)).find(inside))
}

/// The same for IPv6.
pub(crate) fn overlapping_hosts6(store: &Store, subnet: Subnet6) -> impl Iterator<Item = (&str, Subnet6)> {
    store.nodes().filter_map(move |node| Some((node.description.hostname.as_str(), overlap6(node, subnet)?)))
}

/// See [`overlap`].
pub(super) fn overlap6(node: &Node, subnet: Subnet6) -> Option<Subnet6> {
    let (own, routes) = (&node.description.own_subnets6, &node.description.routes6);
    let own = own.iter().filter_map(|text| Subnet6::parse(text)).find(|own| own.overlaps(subnet));
    let inside = |route: &Subnet6| subnet.prefix() <= route.prefix() && subnet.contains(route.first());
    own.or_else(|| routes.iter().filter_map(|text| Subnet6::parse(text)).find(inside))
}
