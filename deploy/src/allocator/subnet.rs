//! Subnets and VXLAN ids of networks.

use crate::model::{Network, NetworkAllocation, Subnet, format_ipv4, parse_ipv4};
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
    let asked = network.spec.ipam.first().filter(|ipam| !ipam.subnet.is_empty());
    let subnet = match asked {
        Some(ipam) => {
            let Some(subnet) = Subnet::parse(&ipam.subnet) else {
                return Err(format!("invalid subnet {:?}", ipam.subnet));
            };
            if taken.iter().any(|other| other.overlaps(subnet)) {
                return Err("invalid pool request: Pool overlaps with other one on this address space".to_owned());
            }
            subnet
        }
        None => free_subnet(store, &taken)
            .ok_or_else(|| "could not find an available, non-overlapping IPv4 address pool".to_owned())?,
    };
    let gateway = asked.and_then(|ipam| parse_ipv4(&ipam.gateway)).unwrap_or(subnet.first() + 1);
    let vni = (FIRST_VNI..=LAST_VNI)
        .find(|vni| store.vni_owner(*vni).is_none())
        .ok_or_else(|| "no VXLAN id is free".to_owned())?;
    Ok(NetworkAllocation { vni, subnet: subnet.to_string(), gateway: format_ipv4(gateway) })
}

/// Subnets that other networks have, or that users asked for, in order.
fn taken_subnets(store: &Store, network: &Network) -> Vec<Subnet> {
    let others = store.networks().filter(|other| other.id != network.id);
    let mut taken: Vec<Subnet> = others
        .filter_map(|other| match &other.allocation {
            Some(allocation) => Subnet::parse(&allocation.subnet),
            None => other.spec.ipam.first().and_then(|ipam| Subnet::parse(&ipam.subnet)),
        })
        .collect();
    taken.sort_unstable();
    taken
}

/// The lowest free subnet of the first pool that has one.
fn free_subnet(store: &Store, taken: &[Subnet]) -> Option<Subnet> {
    let spec = &store.cluster()?.spec;
    let prefix = u8::try_from(spec.subnet_size).ok()?;
    let size = 1_u64.checked_shl(32_u32.checked_sub(spec.subnet_size)?)?;
    spec.default_addr_pool.iter().filter_map(|text| Subnet::parse(text)).find_map(|pool| {
        let mut first = u64::from(pool.first());
        while first + size - 1 <= u64::from(pool.last()) {
            let candidate = Subnet::containing(u32::try_from(first).ok()?, prefix)?;
            match taken.iter().find(|other| other.overlaps(candidate)) {
                None => return Some(candidate),
                // Go on behind the one that is in the way, which may be larger or smaller than the candidate.
                Some(other) => {
                    first = (u64::from(other.last()).max(u64::from(candidate.last())) + 1).next_multiple_of(size)
                }
            }
        }
        None
    })
}
