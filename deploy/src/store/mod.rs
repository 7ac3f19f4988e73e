//! The replicated state: every object of the cluster, and what it is looked up by.
//!
//! `control` and the brain write to it through a `Txn`; the manager proposes the entry that comes out; every manager
//! applies it. A clone is O(1), so readers keep a consistent view for as long as they like. Nothing here decides
//! anything: `apply` checks versions and unique keys, then puts or removes.

mod apply;
mod entry;
mod index;
mod invariants;
mod key;
mod reincarnation;
mod released;
mod restoration;
mod snapshot;
#[cfg(test)]
mod tests;
mod txn;

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

pub use apply::{Applied, Conflict};
pub use entry::{Change, DecodeEntryError, Entry, MAX_ENTRY_BYTES, Object};
pub use index::Holder;
pub use key::{Key, KeyKind};
pub use reincarnation::{Others, Reincarnation};
pub use released::ADDRESS_REST;
pub use snapshot::{DecodeSnapshotError, SNAPSHOT_FORMAT};
pub use txn::Txn;

pub(crate) use entry::Held;
pub(crate) use index::port_satisfies;

use crate::model::{
    Cluster, Config, ConfigId, Network, NetworkId, Node, NodeId, PortProtocol, Registry, RegistryId, Secret, SecretId,
    Service, ServiceId, Task, TaskId, Timestamp,
};
use index::{Index, under};

/// All objects of the cluster at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Store {
    revision: u64,
    now: Timestamp,
    cluster: Option<Arc<Cluster>>,
    nodes: OrdMap<NodeId, Arc<Node>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    tasks: OrdMap<TaskId, Arc<Task>>,
    networks: OrdMap<NetworkId, Arc<Network>>,
    secrets: OrdMap<SecretId, Arc<Secret>>,
    configs: OrdMap<ConfigId, Arc<Config>>,
    registries: OrdMap<RegistryId, Arc<Registry>>,
    index: Index,
    /// Addresses that were given back, and when.
    released: OrdMap<(NetworkId, u32), Timestamp>,
}

/// Objects by id, and all of them in the order of their ids.
impl Store {
    /// Number of entries that were applied (after a recovery it jumps ahead). Objects carry it as `meta.version`.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The cluster's clock: `now` of the last entry.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The cluster's settings and secrets; `None` before it was initialised.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// A host.
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// A service.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// A task.
    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// A network.
    pub fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// A secret.
    pub fn secret(&self, id: &SecretId) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    /// A config.
    pub fn config(&self, id: &ConfigId) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }

    /// Credentials for a registry.
    pub fn registry(&self, id: &RegistryId) -> Option<&Arc<Registry>> {
        self.registries.get(id)
    }

    /// All hosts.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// All networks.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// All secrets.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    /// All configs.
    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    /// Credentials for all registries that the cluster has any for.
    pub fn registries(&self) -> impl Iterator<Item = &Arc<Registry>> {
        self.registries.values()
    }
}

/// Objects by something else than their id.
impl Store {
    /// The service with that name.
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        under(&self.index.service_names, &name.to_owned()).next().and_then(|id| self.services.get(id))
    }

    /// The network with that name.
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        under(&self.index.network_names, &name.to_owned()).next().and_then(|id| self.networks.get(id))
    }

    /// The secret with that name.
    pub fn secret_by_name(&self, name: &str) -> Option<&Arc<Secret>> {
        under(&self.index.secret_names, &name.to_owned()).next().and_then(|id| self.secrets.get(id))
    }

    /// The config with that name.
    pub fn config_by_name(&self, name: &str) -> Option<&Arc<Config>> {
        under(&self.index.config_names, &name.to_owned()).next().and_then(|id| self.configs.get(id))
    }

    /// Hosts whose hostname, or name given by a user, is exactly that. Hostnames are not unique.
    pub fn nodes_by_name(&self, name: &str) -> Vec<&Arc<Node>> {
        under(&self.index.node_names, &name.to_owned()).filter_map(|id| self.nodes.get(id)).collect()
    }

    /// Tasks of a service, also of one that was removed, in the order of their ids.
    pub fn tasks_of_service<'a>(&'a self, id: &ServiceId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        under(&self.index.tasks_by_service, id).filter_map(|id| self.tasks.get(id))
    }

    /// Tasks that were placed on a host, also those that ended, in the order of their ids.
    pub fn tasks_on_node<'a>(&'a self, id: &NodeId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
        under(&self.index.tasks_by_node, id).filter_map(|id| self.tasks.get(id))
    }

    /// Tasks that have no place, also those that are not wanted any more.
    pub fn unplaced_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_on_node(&NodeId::default())
    }

    /// Services whose tasks are on a network: those that name it, and for ingress those that publish a port there.
    pub fn services_on_network(&self, id: &NetworkId) -> impl Iterator<Item = &Arc<Service>> {
        let publishing = self.index.ingress.contains(id).then_some(&self.index.publishing);
        under(&self.index.services_by_network, id)
            .chain(publishing.into_iter().flatten())
            .filter_map(|id| self.services.get(id))
    }

    /// The service that holds a port on every host.
    pub fn published_port_owner(&self, protocol: PortProtocol, port: u32) -> Option<&Arc<Service>> {
        self.index.port_owners(protocol, port).next().and_then(|id| self.services.get(id))
    }

    /// A task for which that number was chosen on its host.
    pub(crate) fn chosen_port_holder(&self, protocol: PortProtocol, port: u32) -> Option<&Arc<Task>> {
        let from = (protocol, port, TaskId::default());
        let (p, n, id) = self.index.chosen_ports.range(from..).next()?;
        self.tasks.get(id).filter(|_| (*p, *n) == (protocol, port))
    }

    /// Who holds an address on a network.
    pub fn address_holder(&self, network: &NetworkId, address: u32) -> Option<&Holder> {
        self.index.holders(network, address).next()
    }

    /// All addresses that are held on a network, upwards.
    pub fn addresses_on_network(&self, network: &NetworkId) -> impl Iterator<Item = (u32, &Holder)> {
        self.index.held_from(network, 0)
    }

    /// Hosts that hold an address on a network that is gone. Costs a look-up a network.
    pub(crate) fn stranded_nodes(&self) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        let mut next = self.index.network_with_addresses(None);
        while let Some(network) = next {
            if self.network(&network).is_none() {
                let holders = self.addresses_on_network(&network);
                nodes.extend(holders.filter_map(|(_, holder)| match holder {
                    Holder::Node(id) => Some(id.clone()),
                    Holder::Task(_) | Holder::Service(_) => None,
                }));
            }
            next = self.index.network_with_addresses(Some(network));
        }
        nodes
    }

    /// The network that holds a VXLAN id.
    pub fn vni_owner(&self, vni: u32) -> Option<&Arc<Network>> {
        under(&self.index.vnis, &vni).next().and_then(|id| self.networks.get(id))
    }

    /// The network that carries published ports.
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.index.ingress.iter().next().and_then(|id| self.networks.get(id))
    }

    /// Objects that the allocator has, or may have, something to give to.
    pub(crate) fn unallocated(&self) -> impl Iterator<Item = &Key> {
        self.index.unallocated.iter()
    }

    /// Addresses that are held on a network, upwards from `address`.
    pub(crate) fn addresses_from(&self, network: &NetworkId, address: u32) -> impl Iterator<Item = u32> {
        self.index.held_from(network, address).map(|(address, _)| address)
    }

    /// Highest address below `limit` that is held on a network.
    pub(crate) fn highest_address(&self, network: &NetworkId, limit: u32) -> Option<u32> {
        self.index.highest_held(network, limit)
    }
}

/// Objects of any kind.
impl Store {
    /// Version of an object; 0 if there is none.
    pub fn version_of(&self, key: &Key) -> u64 {
        self.held(key).map_or(0, |object| object.meta().version)
    }

    /// Objects that differ between this state and another one. What the two share is not looked at, so that two states
    /// of one cluster that are near each other cost what has changed between them.
    pub fn changed(&self, other: &Store) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        if self.cluster != other.cluster {
            keys.insert(Key::Cluster);
        }
        keys.extend(differing(&self.nodes, &other.nodes).map(Key::Node));
        keys.extend(differing(&self.services, &other.services).map(Key::Service));
        keys.extend(differing(&self.tasks, &other.tasks).map(Key::Task));
        keys.extend(differing(&self.networks, &other.networks).map(Key::Network));
        keys.extend(differing(&self.secrets, &other.secrets).map(Key::Secret));
        keys.extend(differing(&self.configs, &other.configs).map(Key::Config));
        keys.extend(differing(&self.registries, &other.registries).map(Key::Registry));
        keys
    }

    /// How many objects of a kind there are; O(1).
    pub fn count(&self, kind: KeyKind) -> usize {
        match kind {
            KeyKind::None => 0,
            KeyKind::Cluster => usize::from(self.cluster.is_some()),
            KeyKind::Node => self.nodes.len(),
            KeyKind::Service => self.services.len(),
            KeyKind::Task => self.tasks.len(),
            KeyKind::Network => self.networks.len(),
            KeyKind::Secret => self.secrets.len(),
            KeyKind::Config => self.configs.len(),
            KeyKind::Registry => self.registries.len(),
        }
    }

    pub(crate) fn held(&self, key: &Key) -> Option<Held> {
        match key {
            Key::Cluster => self.cluster.clone().map(Held::Cluster),
            Key::Node(id) => self.nodes.get(id).cloned().map(Held::Node),
            Key::Service(id) => self.services.get(id).cloned().map(Held::Service),
            Key::Task(id) => self.tasks.get(id).cloned().map(Held::Task),
            Key::Network(id) => self.networks.get(id).cloned().map(Held::Network),
            Key::Secret(id) => self.secrets.get(id).cloned().map(Held::Secret),
            Key::Config(id) => self.configs.get(id).cloned().map(Held::Config),
            Key::Registry(id) => self.registries.get(id).cloned().map(Held::Registry),
        }
    }

    fn put(&mut self, object: Held) {
        self.remove(&object.key());
        self.index.add(&object);
        match object {
            Held::Cluster(object) => self.cluster = Some(object),
            Held::Node(object) => drop(self.nodes.insert(object.id.clone(), object)),
            Held::Service(object) => drop(self.services.insert(object.id.clone(), object)),
            Held::Task(object) => drop(self.tasks.insert(object.id.clone(), object)),
            Held::Network(object) => drop(self.networks.insert(object.id.clone(), object)),
            Held::Secret(object) => drop(self.secrets.insert(object.id.clone(), object)),
            Held::Config(object) => drop(self.configs.insert(object.id.clone(), object)),
            Held::Registry(object) => drop(self.registries.insert(object.id.clone(), object)),
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(object) = self.held(key) else { return };
        self.index.remove(&object);
        match key {
            Key::Cluster => self.cluster = None,
            Key::Node(id) => drop(self.nodes.remove(id)),
            Key::Service(id) => drop(self.services.remove(id)),
            Key::Task(id) => drop(self.tasks.remove(id)),
            Key::Network(id) => drop(self.networks.remove(id)),
            Key::Secret(id) => drop(self.secrets.remove(id)),
            Key::Config(id) => drop(self.configs.remove(id)),
            Key::Registry(id) => drop(self.registries.remove(id)),
        }
    }
}

fn differing<I: Ord + Clone, T: PartialEq>(a: &OrdMap<I, Arc<T>>, b: &OrdMap<I, Arc<T>>) -> impl Iterator<Item = I> {
    a.diff(b).map(|item| match item {
        DiffItem::Add(id, _) | DiffItem::Remove(id, _) | DiffItem::Update { new: (id, _), .. } => id.clone(),
    })
}
