//! Addresses of tasks, hosts and virtual IPs on a network.

use std::collections::BTreeMap;

use crate::model::{NetworkId, Subnet, Subnet6, Timestamp, parse_cidr, parse_ipv4, parse_ipv6};
use crate::store::{Store, Txn};

/// Addresses that one pass gives out. It remembers the last one of each network, so that a pass that gives out
/// thousands does not search for each from the start.
#[derive(Default)]
pub(super) struct Addresses {
    plans: BTreeMap<NetworkId, Plan>,
}

/// Where addresses of a network may come from.
struct Plan {
    /// The network's, for people.
    name: String,
    subnet: Subnet,
    /// Its addresses are given along with the others.
    six: Option<Subnet6>,
    first: u32,
    last: u32,
    /// Gateway and auxiliary addresses, in order.
    reserved: Vec<u32>,
    /// Next address to try.
    next: u32,
}

/// What somebody gets on a network, with prefix lengths.
pub(super) struct Given {
    pub(super) address: String,
    /// Empty on a network without IPv6.
    pub(super) address6: String,
}

impl Addresses {
    /// An address that is free and has rested, with its prefix length: the one after the highest that is in use, so that
    /// an address is given out again as late as can be (name caches may still know it); at the end of the range, the
    /// lowest free one. Where all that are free still rest, the transaction asks for another pass.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn next(&mut self, txn: &mut Txn, network: &NetworkId) -> Result<Given, String> {
        if !self.plans.contains_key(network) {
            let plan = Plan::new(txn, network)?;
            self.plans.insert(network.clone(), plan);
        }
        let Some(plan) = self.plans.get_mut(network) else { return Err(dry(network.as_str())) };
        let mut rested = None;
        let address = plan
            .first_free(txn, network, plan.next, plan.last, &mut rested)
            .or_else(|| plan.first_free(txn, network, plan.first, plan.next.saturating_sub(1), &mut rested));
        let Some(address) = address else {
            rested.into_iter().for_each(|end| txn.wake_at(end));
            return Err(dry(&plan.name));
        };
        plan.next = address.saturating_add(1);
        let six = plan.six.and_then(|six| Some(six.with_prefix(six.beside(plan.subnet, address)?)));
        Ok(Given { address: plan.subnet.with_prefix(address), address6: six.unwrap_or_default() })
    }
}

/// What is said when a network has no address left.
pub(super) fn dry(network: &str) -> String {
    format!("could not find an available IP address on network {network}")
}

impl Plan {
    fn new(store: &Store, network: &NetworkId) -> Result<Self, String> {
        let Some(network) = store.network(network) else { return Err(format!("network {network} not found")) };
        let Some(allocation) = &network.allocation else {
            return Err(format!("network {} has no subnet yet", network.spec.name));
        };
        let Some(subnet) = Subnet::parse(&allocation.subnet) else {
            return Err(format!("network {} has the subnet {:?}", network.spec.name, allocation.subnet));
        };
        let ipam = network.spec.ipam4();
        let range = ipam
            .and_then(|ipam| parse_cidr(&ipam.ip_range))
            .and_then(|(address, prefix)| Subnet::containing(address, prefix));
        let (mut first, mut last) = (subnet.first().saturating_add(1), subnet.last().saturating_sub(1));
        if let Some(range) = range {
            first = first.max(range.first());
            last = last.min(range.last());
        }
        let auxiliary = ipam.into_iter().flat_map(|ipam| ipam.auxiliary.values());
        let mut reserved: Vec<u32> =
            auxiliary.chain([&allocation.gateway]).filter_map(|text| parse_ipv4(text)).collect();
        let six = Subnet6::parse(&allocation.subnet6);
        if let Some(six) = six {
            // Whoever had this one would have that one too.
            let auxiliary = network.spec.ipam6().into_iter().flat_map(|ipam| ipam.auxiliary.values());
            let taken = auxiliary.chain([&allocation.gateway6]).filter_map(|text| parse_ipv6(text));
            reserved.extend(taken.filter_map(|address| six.opposite(subnet, address)));
        }
        reserved.sort_unstable();
        let highest = store.highest_address(&network.id, last.saturating_add(1)).unwrap_or(first);
        let next = highest.saturating_add(u32::from(highest > first)).max(first);
        let name = network.spec.name.clone();
        Ok(Self { name, subnet, six, first, last, reserved, next })
    }

    /// The lowest free address from `from` to `to`; when the first of those that were passed over has rested goes to
    /// `rested`.
    fn first_free(
        &self,
        txn: &Txn,
        network: &NetworkId,
        from: u32,
        to: u32,
        rested: &mut Option<Timestamp>,
    ) -> Option<u32> {
        let mut candidate = from;
        let mut held = txn.addresses_from(network, from).peekable();
        while candidate <= to {
            while held.peek().is_some_and(|address| *address < candidate) {
                held.next();
            }
            if held.peek() != Some(&candidate) && self.reserved.binary_search(&candidate).is_err() {
                match txn.rests_until(network, candidate) {
                    None => return Some(candidate),
                    Some(end) => *rested = Some(rested.map_or(end, |earlier| earlier.min(end))),
                }
            }
            candidate = candidate.checked_add(1)?;
        }
        None
    }
}
