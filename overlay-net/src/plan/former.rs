//! Virtual addresses that no service has any more.
//!
//! Whoever is connected through one is told by a reset once its endpoint is gone, and that reset is the answer to what is
//! sent to the virtual address. So that there is somebody to answer, it is refused for a while after its service was
//! removed, and not left to be looked for on the wire. It ends early where the address is given to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::balance::Balance;
use crate::config::Desired;

/// So long after a service's end connections to its virtual address are refused: long enough for all who are reset, and
/// for those who try again.
const KEPT: Duration = Duration::from_secs(60);
/// Such addresses at a time; of more, the rest goes unanswered.
const KEPT_MAX: usize = 4096;

/// The addresses, by network, and until when. Times are what has passed since one moment, the same for all calls.
#[derive(Debug, Default)]
pub struct Former {
    known: BTreeMap<(String, Ipv4Addr), Duration>,
}

impl Former {
    /// Adds to `new` the addresses that `old` had, or that had been noted before, and that nobody has any more.
    pub fn follow(&mut self, old: &Balance, new: &mut Balance, desired: &Desired, now: Duration) {
        for (network, vips) in &old.vips {
            let Some(kept) = new.vips.get(network) else { continue };
            for vip in vips.keys().filter(|vip| !kept.contains_key(*vip)) {
                if self.known.len() < KEPT_MAX {
                    self.known.insert((network.clone(), *vip), now + KEPT);
                }
            }
        }
        if self.known.is_empty() {
            return;
        }
        self.known.retain(|(network, vip), until| {
            *until > now && new.vips.get(network).is_some_and(|vips| !vips.contains_key(vip))
        });
        let mut taken = BTreeSet::new();
        for network in &desired.networks {
            let stations = network.stations.iter().map(|station| station.address);
            let endpoints = network.services.iter().flat_map(|service| &service.endpoints);
            let all = stations.chain(endpoints.map(|endpoint| endpoint.address)).chain(network.host_address);
            let all = all.map(|address| (network.id.clone(), address));
            taken.extend(all.filter(|place| self.known.contains_key(place)));
        }
        self.known.retain(|place, _| !taken.contains(place));
        for (network, vip) in self.known.keys() {
            new.former.entry(network.clone()).or_default().insert(*vip);
        }
    }

    /// Whether some have been kept for long enough.
    #[must_use]
    pub fn is_due(&self, now: Duration) -> bool {
        self.known.values().any(|until| *until <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Network, Service, Station};

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, last)
    }

    /// One network with services at these addresses, and stations at those.
    fn state(vips: &[u8], stations: &[u8]) -> Desired {
        let service = |last: &u8| {
            let vip = Some(address(*last));
            Arc::new(Service { name: format!("s{last}"), aliases: vec![], vip, endpoints: vec![], ports: vec![] })
        };
        let network = Network {
            id: "net".into(),
            name: "net".into(),
            vni: 5,
            subnet: "10.0.1.0/24".parse().unwrap(),
            subnet6: None,
            encrypted: false,
            gateway: address(1),
            internal: false,
            mtu: None,
            local: false,
            ingress: false,
            host_address: None,
            stations: stations.iter().map(|s| Station { address: address(*s), host: Ipv4Addr::LOCALHOST }).collect(),
            services: vips.iter().map(service).collect(),
        };
        Desired { revision: 1, networks: vec![network.into()], ports: vec![], sealing: None, taken: Vec::new() }
    }

    #[test]
    fn a_removed_services_address_is_refused_for_a_while() {
        let (mut former, mut last) = (Former::default(), Balance::default());
        let mut after = |seconds: u64, desired: &Desired| {
            let now = Duration::from_secs(seconds);
            let mut balance = Balance::new(desired, &BTreeSet::new());
            former.follow(&last, &mut balance, desired, now);
            last = balance;
            let kept: Vec<u8> = last.former.values().flatten().map(|address| address.octets()[3]).collect();
            (kept, former.is_due(now + Duration::from_secs(1)))
        };
        assert_eq!(after(0, &state(&[2, 3, 4], &[])), (vec![], false));
        assert_eq!(after(1, &state(&[4], &[])), (vec![2, 3], false));
        // It stays while other things change; whoever gets the address has it at once, a task as well as a service.
        assert_eq!(after(2, &state(&[4, 3], &[7])), (vec![2], false));
        assert_eq!(after(3, &state(&[3], &[2])), (vec![4], false));
        assert_eq!(after(4, &state(&[3], &[])), (vec![4], false));
        assert_eq!(after(62, &state(&[3], &[])), (vec![4], true));
        assert_eq!(after(63, &state(&[3], &[])), (vec![], false));
        // A network that is gone refuses nobody.
        assert_eq!(after(64, &state(&[], &[])), (vec![3], false));
        let nothing = Desired { networks: vec![], ..state(&[], &[]) };
        assert_eq!(after(65, &nothing), (vec![], false));
    }

    #[test]
    fn there_is_a_bound() {
        let many: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> =
            (0..2 * u32::try_from(KEPT_MAX).unwrap()).map(|n| (Ipv4Addr::from(n), vec![])).collect();
        let old = Balance { vips: [("net".to_owned(), many)].into(), ..Balance::default() };
        let desired = state(&[], &[]);
        let mut new = Balance::new(&desired, &BTreeSet::new());
        Former::default().follow(&old, &mut new, &desired, Duration::ZERO);
        assert_eq!(new.former["net"].len(), KEPT_MAX);
    }
}
