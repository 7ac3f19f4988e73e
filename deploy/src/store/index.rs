//! What is looked up by something else than an id. Derived from the objects alone, so it is never stored.
//!
//! A unique key (a name, a port, a VNI, an address) is a set of `(key, holder)`: a transaction may hand one over in
//! any order, and two holders at its end are a conflict that `apply` can name, not a holder that was overwritten.

use core::ops::Bound;

use imbl::OrdSet;

use super::{Held, Key};
use crate::model::{
    ConfigId, EndpointMode, Network, NetworkId, Node, NodeId, PortProtocol, SecretId, Service, ServiceId, Task, TaskId,
    parse_cidr,
};

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A task.
    Task(TaskId),
    /// A host.
    Node(NodeId),
    /// A service, as its virtual IP.
    Service(ServiceId),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    /// By hostname, and by the name that a user gave.
    pub(super) node_names: OrdSet<(String, NodeId)>,
    pub(super) service_names: OrdSet<(String, ServiceId)>,
    pub(super) network_names: OrdSet<(String, NetworkId)>,
    pub(super) secret_names: OrdSet<(String, SecretId)>,
    pub(super) config_names: OrdSet<(String, ConfigId)>,
    pub(super) tasks_by_service: OrdSet<(ServiceId, TaskId)>,
    /// Tasks without a place are under the id of nothing.
    pub(super) tasks_by_node: OrdSet<(NodeId, TaskId)>,
    /// Services that name the network in their spec.
    pub(super) services_by_network: OrdSet<(NetworkId, ServiceId)>,
    /// Services that want a port on every host.
    pub(super) publishing: OrdSet<ServiceId>,
    pub(super) ports: OrdSet<(PortProtocol, u32, ServiceId)>,
    /// Numbers that were chosen for host-mode ports of tasks that may still use them.
    pub(super) chosen_ports: OrdSet<(PortProtocol, u32, TaskId)>,
    pub(super) vnis: OrdSet<(u32, NetworkId)>,
    pub(super) addresses: OrdSet<(NetworkId, u32, Holder)>,
    pub(super) ingress: OrdSet<NetworkId>,
    /// Objects that the allocator has work for.
    pub(super) unallocated: OrdSet<Key>,
}

/// A unique key that two objects hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) what: String,
    pub(super) by: Key,
}

fn set<T: Ord + Clone>(set: &mut OrdSet<T>, item: T, present: bool) {
    if present {
        set.insert(item);
    } else {
        set.remove(&item);
    }
}

impl Index {
    pub(super) fn add(&mut self, object: &Held) {
        self.note(object, true);
    }

    pub(super) fn remove(&mut self, object: &Held) {
        self.note(object, false);
    }

    fn note(&mut self, object: &Held, on: bool) {
        match object {
            Held::Cluster(_) | Held::Registry(_) => {}
            Held::Node(node) => self.note_node(node, on),
            Held::Service(service) => self.note_service(service, on),
            Held::Task(task) => self.note_task(task, on),
            Held::Network(network) => self.note_network(network, on),
            Held::Secret(secret) => set(&mut self.secret_names, (secret.spec.name.clone(), secret.id.clone()), on),
            Held::Config(config) => set(&mut self.config_names, (config.spec.name.clone(), config.id.clone()), on),
        }
    }

    fn note_node(&mut self, node: &Node, on: bool) {
        for name in [&node.spec.name, &node.description.hostname] {
            if !name.is_empty() {
                set(&mut self.node_names, (name.clone(), node.id.clone()), on);
            }
        }
        for attachment in &node.attachments {
            if let Some((address, _)) = parse_cidr(&attachment.address) {
                let holder = Holder::Node(node.id.clone());
                set(&mut self.addresses, (attachment.network.clone(), address, holder), on);
            }
        }
        if node.attachments.is_empty() {
            set(&mut self.unallocated, Key::Node(node.id.clone()), on);
        }
    }

    fn note_service(&mut self, service: &Service, on: bool) {
        set(&mut self.service_names, (service.spec.name.clone(), service.id.clone()), on);
        for network in service.spec.task.cluster_networks() {
            let network = NetworkId::new(&network.target);
            set(&mut self.services_by_network, (network, service.id.clone()), on);
        }
        if service.publishes_ingress() {
            set(&mut self.publishing, service.id.clone(), on);
        }
        for port in service.endpoint.ports.iter().filter(|port| port.is_ingress() && port.published != 0) {
            set(&mut self.ports, (port.protocol(), port.published, service.id.clone()), on);
        }
        for vip in &service.endpoint.virtual_ips {
            if let Some((address, _)) = parse_cidr(&vip.address) {
                let holder = Holder::Service(service.id.clone());
                set(&mut self.addresses, (vip.network.clone(), address, holder), on);
            }
        }
        if service_wants_allocation(service) {
            set(&mut self.unallocated, Key::Service(service.id.clone()), on);
        }
    }

    fn note_task(&mut self, task: &Task, on: bool) {
        set(&mut self.tasks_by_service, (task.service_id.clone(), task.id.clone()), on);
        set(&mut self.tasks_by_node, (task.node_id.clone(), task.id.clone()), on);
        if task.holds_addresses() {
            for (protocol, port) in task.chosen() {
                set(&mut self.chosen_ports, (protocol, port, task.id.clone()), on);
            }
            for attachment in &task.attachments {
                if let Some((address, _)) = parse_cidr(&attachment.address) {
                    let holder = Holder::Task(task.id.clone());
                    set(&mut self.addresses, (attachment.network.clone(), address, holder), on);
                }
            }
        }
        if task.lacks_addresses() {
            set(&mut self.unallocated, Key::Task(task.id.clone()), on);
        }
    }

    fn note_network(&mut self, network: &Network, on: bool) {
        set(&mut self.network_names, (network.spec.name.clone(), network.id.clone()), on);
        if network.spec.ingress {
            set(&mut self.ingress, network.id.clone(), on);
        }
        match &network.allocation {
            Some(allocation) => set(&mut self.vnis, (allocation.vni, network.id.clone()), on),
            None => set(&mut self.unallocated, Key::Network(network.id.clone()), on),
        }
    }

    /// A unique key of `object` that another object holds too.
    pub(super) fn taken(&self, object: &Held) -> Option<Taken> {
        match object {
            Held::Cluster(_) | Held::Node(_) | Held::Task(_) | Held::Registry(_) => {}
            Held::Service(service) => {
                if let Some(other) = other(&self.service_names, &service.spec.name, &service.id) {
                    return Some(taken(format!("service name {}", service.spec.name), Key::Service(other)));
                }
                for port in service.endpoint.ports.iter().filter(|port| port.is_ingress() && port.published != 0) {
                    let key = (port.protocol(), port.published);
                    if let Some(other) = self.port_owners(key.0, key.1).find(|owner| **owner != service.id) {
                        let what = format!("published port {}/{:?}", key.1, key.0);
                        return Some(taken(what, Key::Service(other.clone())));
                    }
                }
            }
            Held::Network(network) => {
                if let Some(other) = other(&self.network_names, &network.spec.name, &network.id) {
                    return Some(taken(format!("network name {}", network.spec.name), Key::Network(other)));
                }
                if let Some(other) = self.ingress.iter().find(|id| network.spec.ingress && **id != network.id) {
                    return Some(taken("the ingress network".to_owned(), Key::Network(other.clone())));
                }
                if let Some(allocation) = &network.allocation
                    && let Some(other) = other(&self.vnis, &allocation.vni, &network.id)
                {
                    return Some(taken(format!("VNI {:#x}", allocation.vni), Key::Network(other)));
                }
            }
            Held::Secret(secret) => {
                if let Some(other) = other(&self.secret_names, &secret.spec.name, &secret.id) {
                    return Some(taken(format!("secret name {}", secret.spec.name), Key::Secret(other)));
                }
            }
            Held::Config(config) => {
                if let Some(other) = other(&self.config_names, &config.spec.name, &config.id) {
                    return Some(taken(format!("config name {}", config.spec.name), Key::Config(other)));
                }
            }
        }
        self.taken_address(object)
    }

    fn taken_address(&self, object: &Held) -> Option<Taken> {
        let (me, addresses) = addresses_of(object)?;
        addresses.into_iter().find_map(|(network, text)| {
            let (address, _) = parse_cidr(text)?;
            let other = self.holders(network, address).find(|holder| **holder != me)?;
            Some(taken(format!("address {text} on network {network}"), other.key()))
        })
    }

    pub(super) fn port_owners(&self, protocol: PortProtocol, port: u32) -> impl Iterator<Item = &ServiceId> {
        self.ports
            .range((protocol, port, ServiceId::default())..)
            .take_while(move |(p, n, _)| (*p, *n) == (protocol, port))
            .map(|(_, _, id)| id)
    }

    pub(super) fn holders(&self, network: &NetworkId, address: u32) -> impl Iterator<Item = &Holder> {
        self.held_from(network, address).take_while(move |(a, _)| *a == address).map(|(_, holder)| holder)
    }

    /// Addresses that are held on a network, upwards from `address`.
    pub(super) fn held_from(&self, network: &NetworkId, address: u32) -> impl Iterator<Item = (u32, &Holder)> {
        let least = Holder::Task(TaskId::default());
        let network = network.clone();
        self.addresses
            .range((network.clone(), address, least)..)
            .take_while(move |(n, _, _)| *n == network)
            .map(|(_, address, holder)| (*address, holder))
    }

    /// The first network after `previous` that addresses are held on. (Nobody has the highest address there is.)
    pub(super) fn network_with_addresses(&self, previous: Option<NetworkId>) -> Option<NetworkId> {
        let from = previous.map_or((NetworkId::default(), 0), |network| (network, u32::MAX));
        let from = (from.0, from.1, Holder::Task(TaskId::default()));
        self.addresses.range(from..).next().map(|(network, _, _)| network.clone())
    }

    /// Highest address below `limit` that is held on a network.
    pub(super) fn highest_held(&self, network: &NetworkId, limit: u32) -> Option<u32> {
        let from = (network.clone(), 0, Holder::Task(TaskId::default()));
        let to = (network.clone(), limit, Holder::Task(TaskId::default()));
        self.addresses.range((Bound::Included(from), Bound::Excluded(to))).next_back().map(|(_, address, _)| *address)
    }
}

/// The addresses that an object holds, each with its network.
pub(super) fn addresses_of(object: &Held) -> Option<(Holder, Vec<(&NetworkId, &str)>)> {
    match object {
        Held::Task(task) if task.holds_addresses() => {
            let list = task.attachments.iter().map(|a| (&a.network, a.address.as_str()));
            Some((Holder::Task(task.id.clone()), list.collect()))
        }
        Held::Node(node) => {
            let list = node.attachments.iter().map(|a| (&a.network, a.address.as_str()));
            Some((Holder::Node(node.id.clone()), list.collect()))
        }
        Held::Service(service) => {
            let list = service.endpoint.virtual_ips.iter().map(|v| (&v.network, v.address.as_str()));
            Some((Holder::Service(service.id.clone()), list.collect()))
        }
        _ => None,
    }
}

impl Holder {
    /// The object.
    pub fn key(&self) -> Key {
        match self {
            Holder::Task(id) => Key::Task(id.clone()),
            Holder::Node(id) => Key::Node(id.clone()),
            Holder::Service(id) => Key::Service(id.clone()),
        }
    }
}

fn taken(what: String, by: Key) -> Taken {
    Taken { what, by }
}

/// The holder of `key` that is not `me`.
fn other<K: Ord + Clone, I: Ord + Clone + Default>(set: &OrdSet<(K, I)>, key: &K, me: &I) -> Option<I> {
    under(set, key).find(|id| *id != me).cloned()
}

/// All that a set holds under `key`.
pub(super) fn under<'a, K: Ord + Clone, I: Ord + Clone + Default>(
    set: &'a OrdSet<(K, I)>,
    key: &K,
) -> impl Iterator<Item = &'a I> + use<'a, K, I> {
    let key = key.clone();
    set.range((key.clone(), I::default())..).take_while(move |(k, _)| *k == key).map(|(_, id)| id)
}

/// Whether ports or virtual IPs of a service are not what its spec asks for.
fn service_wants_allocation(service: &Service) -> bool {
    let spec = service.spec.endpoint_spec();
    let ports_differ = spec.ports.len() != service.endpoint.ports.len()
        || spec.ports.iter().zip(&service.endpoint.ports).any(|(wanted, given)| !port_satisfies(wanted, given));
    let publishes = service.publishes_ingress();
    let vips = match spec.mode() {
        EndpointMode::Vip => service.spec.task.cluster_networks().count() + usize::from(publishes),
        EndpointMode::Dnsrr => 0,
    };
    let named = |vip: &crate::model::VirtualIp| {
        service.spec.task.networks.iter().any(|network| network.target == vip.network.as_str())
    };
    // One virtual IP may be on a network that the spec does not name: ingress, when a port is published there.
    let unnamed = service.endpoint.virtual_ips.iter().filter(|vip| !named(vip)).count();
    ports_differ || service.endpoint.virtual_ips.len() != vips || unnamed > usize::from(publishes)
}

/// Whether `given` is `wanted` with the number chosen where the user left that open.
pub(crate) fn port_satisfies(wanted: &crate::model::PortConfig, given: &crate::model::PortConfig) -> bool {
    let open = wanted.published == 0 && (given.published != 0 || !wanted.is_ingress());
    let published = if open { given.published } else { wanted.published };
    let mut expected = wanted.clone();
    expected.published = published;
    expected == *given && (published != 0 || !wanted.is_ingress())
}
