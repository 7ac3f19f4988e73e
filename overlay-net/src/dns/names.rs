//! The names of one network: what each of its services adds to them.
//!
//! A value is never changed in place: the next one shares with the one before what the changed services do not touch. So a
//! change costs what the services that changed have, however many others there are.
//!
//! What a service is called stands for nothing else: a task or a plain container that is called the same is not among the
//! answers, and is found by its other names. Containers that share a name share its answer, and so do services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::tlds;
use crate::config::{Beside, Network, Service, ServicePort};
use crate::plan::balance::trusted;

/// What a service adds to a name: its own name, and that.
type Part<T> = (Arc<str>, Arc<T>);

/// Whose name something is. The first that there is answers for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A service's: its name, its aliases, all of its tasks.
    Service,
    /// One task's or plain container's.
    Container,
}

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The network's own name.
    pub(super) name: String,
    /// Others use names that end like this as well.
    pub(super) shared: bool,
    /// The network's addresses.
    pub(super) subnet: IpNet,
    /// Its IPv6 addresses, each beside one of the others.
    beside: Option<Beside>,
    forward: OrdMap<Arc<str>, Name>,
    /// By name and alias; of services that share one, the first has the ports.
    services: OrdMap<Arc<str>, Vec<Part<Places>>>,
    /// By address; more than one only while a mistake lasts.
    reverse: OrdMap<IpAddr, Vec<Arc<str>>>,
    /// What was taken in, in the order of the services' names.
    known: Vec<Known>,
}

/// Where a service is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) ports: Vec<ServicePort>,
    /// The name and address that stand for all of it; nothing where its tasks do.
    pub(super) whole: Option<(String, IpAddr)>,
    /// Its tasks that serve.
    pub(super) tasks: Vec<(String, IpAddr)>,
}

/// One name: what each service that has it adds, as itself or for its tasks, in the order of ranks and of the services'
/// names; and all that is of the first rank.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Name {
    parts: Vec<(Rank, Part<[IpAddr]>)>,
    all: Arc<[IpAddr]>,
}

/// A service, and the addresses of its tasks that names lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    service: Arc<Service>,
    serving: Arc<[Ipv4Addr]>,
}

/// What a service adds.
struct Parts {
    service: Arc<str>,
    forward: BTreeMap<(String, Rank), Vec<IpAddr>>,
    aliases: BTreeSet<String>,
    places: Arc<Places>,
    reverse: BTreeSet<(IpAddr, String)>,
}

impl Names {
    /// A network's names, made of those that it had if it had any.
    pub(super) fn following(before: Option<&Names>, network: &Network, suspects: &BTreeSet<Ipv4Addr>) -> Names {
        let name = network.name.to_ascii_lowercase();
        let beside = network.beside();
        let mut names = match before.filter(|before| before.name == name && before.beside == beside) {
            Some(before) => before.clone(),
            None => Names {
                shared: tlds::is_one(&name),
                subnet: network.subnet.into(),
                beside,
                forward: OrdMap::new(),
                services: OrdMap::new(),
                reverse: OrdMap::new(),
                known: Vec::new(),
                name,
            },
        };
        names.subnet = network.subnet.into();
        let hosts = if suspects.is_empty() { BTreeMap::new() } else { network.hosts() };
        let serving = |service: &Service| {
            let all = service.endpoints.iter().filter(|endpoint| endpoint.serving).map(|endpoint| endpoint.address);
            trusted(all, &hosts, suspects)
        };
        // The ingress network is the way in and joins services that have nothing to do with each other; as with Docker,
        // nobody is found by name there.
        let services = if network.ingress { &[] } else { network.services.as_slice() };
        let mut services: Vec<&Arc<Service>> = services.iter().collect();
        services.sort_by(|one, other| one.name.cmp(&other.name));
        let mut known = std::mem::take(&mut names.known).into_iter().peekable();
        for service in services {
            while let Some(gone) = known.next_if(|known| known.service.name < service.name) {
                names.remove(&gone);
            }
            let serving = serving(service);
            let old = known.next_if(|known| known.service.name == service.name);
            let now = match old {
                Some(old) if same(&old.service, service) && *old.serving == *serving => old,
                old => {
                    if let Some(old) = old {
                        names.remove(&old);
                    }
                    let now = Known { service: Arc::clone(service), serving: serving.into() };
                    names.add(&now);
                    now
                }
            };
            names.known.push(now);
        }
        known.for_each(|gone| names.remove(&gone));
        names
    }

    /// The addresses of a name.
    pub(super) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        self.forward.get(name).map(|name| &*name.all)
    }

    /// A service, and whether its tasks are meant.
    pub(super) fn service(&self, name: &str) -> Option<(&Places, bool)> {
        let first = |name: &str| Some(&*self.services.get(name)?.first()?.1);
        match first(name) {
            Some(places) => Some((places, false)),
            None => first(name.strip_prefix("tasks.")?).map(|places| (places, true)),
        }
    }

    /// Whether an address is one of the network's.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address) || self.beside.is_some_and(|six| IpNet::V6(six.subnet()).contains(&address))
    }

    /// The name of an address.
    pub(super) fn reverse(&self, address: IpAddr) -> Option<&str> {
        self.reverse.get(&address)?.last().map(|name| &**name)
    }

    fn add(&mut self, known: &Known) {
        let parts = Parts::of(known, &self.name, self.beside);
        for ((name, rank), addresses) in parts.forward {
            let entry = self.forward.entry(name.into()).or_default();
            let before = |(other, (service, _)): &(Rank, Part<[IpAddr]>)| (*other, service) <= (rank, &parts.service);
            let at = entry.parts.partition_point(before);
            entry.parts.insert(at, (rank, (Arc::clone(&parts.service), addresses.into())));
            entry.merge();
        }
        for alias in parts.aliases {
            let all = self.services.entry(alias.into()).or_default();
            let at = all.partition_point(|(service, _)| *service <= parts.service);
            all.insert(at, (Arc::clone(&parts.service), Arc::clone(&parts.places)));
        }
        for (address, name) in parts.reverse {
            let all = self.reverse.entry(address).or_default();
            let at = all.partition_point(|other| **other <= *name);
            all.insert(at, name.into());
        }
    }

    fn remove(&mut self, known: &Known) {
        let parts = Parts::of(known, &self.name, self.beside);
        for ((name, rank), addresses) in &parts.forward {
            let Some(entry) = self.forward.get_mut(name.as_str()) else { continue };
            let ours = |(other, (service, part)): &(Rank, Part<[IpAddr]>)| {
                other == rank && *service == parts.service && **part == **addresses
            };
            take(&mut entry.parts, ours);
            if entry.parts.is_empty() {
                self.forward.remove(name.as_str());
            } else {
                entry.merge();
            }
        }
        for alias in &parts.aliases {
            let Some(all) = self.services.get_mut(alias.as_str()) else { continue };
            take(all, |(service, places)| *service == parts.service && *places == parts.places);
            if all.is_empty() {
                self.services.remove(alias.as_str());
            }
        }
        for (address, name) in &parts.reverse {
            let Some(all) = self.reverse.get_mut(address) else { continue };
            take(all, |other| **other == **name);
            if all.is_empty() {
                self.reverse.remove(address);
            }
        }
    }
}

/// Whether two are the same, which they usually are as one value in memory.
fn same(one: &Arc<Service>, other: &Arc<Service>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// Takes out the first one that fits.
fn take<T>(all: &mut Vec<T>, fits: impl FnMut(&T) -> bool) {
    if let Some(at) = all.iter().position(fits) {
        all.remove(at);
    }
}

impl Name {
    fn merge(&mut self) {
        let first = self.parts.first().map(|(rank, _)| *rank);
        let counts = self.parts.partition_point(|(rank, _)| Some(*rank) == first);
        self.all = match &self.parts[..counts] {
            [(_, (_, only))] => Arc::clone(only),
            parts => {
                let mut all = Vec::new();
                for address in parts.iter().flat_map(|(_, (_, part))| &**part) {
                    if !all.contains(address) {
                        all.push(*address);
                    }
                }
                all.into()
            }
        };
    }
}

impl Parts {
    fn of(Known { service, serving }: &Known, network: &str, beside: Option<Beside>) -> Parts {
        let full = |name: &str| format!("{}.{network}", name.to_ascii_lowercase());
        let whole = service.vip.map(|vip| (full(&service.name), IpAddr::from(vip)));
        let named: BTreeMap<Ipv4Addr, &str> =
            service.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.name.as_str())).collect();
        let tasks: Vec<(String, IpAddr)> =
            serving.iter().map(|address| (full(named[address]), IpAddr::V4(*address))).collect();
        let addresses: Vec<IpAddr> = tasks.iter().map(|(_, address)| *address).collect();
        let answer = whole.as_ref().map_or(addresses.clone(), |(_, vip)| vec![*vip]);
        let mut reverse: BTreeSet<(IpAddr, String)> = whole.iter().map(|(name, vip)| (*vip, name.clone())).collect();
        let mut forward: BTreeMap<(String, Rank), Vec<IpAddr>> = BTreeMap::new();
        let mut add = |name: String, rank: Rank, addresses: &[IpAddr]| {
            let known = forward.entry((name, rank)).or_default();
            for address in addresses {
                if !known.contains(address) {
                    known.push(*address);
                }
            }
        };
        let names = std::iter::once(&service.name).chain(&service.aliases).map(|name| name.to_ascii_lowercase());
        let aliases: BTreeSet<String> = names.collect();
        for alias in &aliases {
            add(format!("tasks.{alias}"), Rank::Service, &addresses);
            add(alias.clone(), Rank::Service, &answer);
        }
        // A task can find itself and its peers while they start: clustered databases need that to form.
        for endpoint in &service.endpoints {
            let address = IpAddr::V4(endpoint.address);
            for own in std::iter::once(&endpoint.name).chain(&endpoint.names) {
                add(own.to_ascii_lowercase(), Rank::Container, &[address]);
            }
            reverse.insert((address, full(&endpoint.name)));
        }
        let places = Arc::new(Places { ports: service.ports.clone(), whole, tasks });
        if let Some(beside) = beside {
            let six = |address: &IpAddr| match address {
                IpAddr::V4(four) => beside.address(*four).map(IpAddr::V6),
                IpAddr::V6(_) => None,
            };
            for addresses in forward.values_mut() {
                let more: Vec<IpAddr> = addresses.iter().filter_map(six).collect();
                addresses.extend(more);
            }
            let more: Vec<(IpAddr, String)> =
                reverse.iter().filter_map(|(address, name)| Some((six(address)?, name.clone()))).collect();
            reverse.extend(more);
        }
        Parts { service: service.name.as_str().into(), forward, aliases, places, reverse }
    }
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Endpoint, Station};

    fn network(services: &[(u8, Vec<(u8, bool)>)]) -> Network {
        let subnet: Ipv4Net = "10.0.9.0/24".parse().unwrap();
        let address = |last: u8| Ipv4Addr::new(10, 0, 9, last);
        let stations =
            (1..40).map(|last| Station { address: address(last), host: Ipv4Addr::new(192, 168, 0, last % 3) });
        let services = services.iter().map(|(number, endpoints)| {
            let endpoint = |(last, serving): &(u8, bool)| Endpoint {
                task: format!("t{last}"),
                name: format!("s{number}.{last}"),
                address: address(*last),
                names: vec![format!("box{}", last % 8)],
                serving: *serving,
            };
            Arc::new(Service {
                name: format!("s{number}"),
                aliases: vec![format!("Alias{}", number % 3), format!("s{number}")],
                vip: (number % 2 == 0).then(|| address(200 + number)),
                endpoints: endpoints.iter().map(endpoint).collect(),
                ports: vec![],
            })
        });
        Network {
            id: "net".into(),
            name: "Net".into(),
            vni: 5,
            subnet,
            subnet6: None,
            encrypted: false,
            gateway: address(1),
            internal: false,
            ingress: false,
            local: false,
            mtu: None,
            host_address: None,
            stations: stations.collect(),
            services: services.collect(),
        }
    }

    proptest! {
        #[test]
        fn differences_lead_where_a_new_beginning_would(
            steps in proptest::collection::vec(
                (
                    proptest::collection::btree_map(0u8..6, proptest::collection::vec((1u8..40, any::<bool>()), 0..5), 0..6),
                    proptest::option::of(0u8..3),
                ),
                1..8,
            ),
        ) {
            let mut names: Option<Names> = None;
            for (services, suspect) in steps {
                let network = network(&services.into_iter().collect::<Vec<_>>());
                let suspects: BTreeSet<Ipv4Addr> = suspect.map(|last| Ipv4Addr::new(192, 168, 0, last)).into_iter().collect();
                let next = Names::following(names.as_ref(), &network, &suspects);
                prop_assert_eq!(&next, &Names::following(None, &network, &suspects));
                names = Some(next);
            }
        }
    }
}
