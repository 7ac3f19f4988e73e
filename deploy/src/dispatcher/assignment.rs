//! What a host is told, computed from the store.

use std::collections::BTreeSet;

use super::item::{
    Assignment, Body, EndpointInfo, Item, ItemKey, NetworkInfo, PayloadInfo, Peer, Progress, PublishedPort,
    RegistryInfo, RemovedPeer, SealingInfo, ServiceInfo, ServicePort, Station,
};
use super::set::AssignmentSet;
use crate::allocator::own_ports;
use crate::model::{
    ConfigId, ENCRYPTION_LEVEL, EndpointMode, Meta, Network, NetworkId, Node, NodeId, PortConfig, PublishMode,
    RegistryId, SecretId, Service, Task, TaskState, TaskStatus,
};
use crate::orchestrator::host_is_lost;
use crate::store::{Holder, Store};

/// Everything that the host is told. Empty for a host that is not in the store.
///
/// Cost: the tasks of the host, and all tasks and services on the networks that they are on.
pub fn assignment(store: &Store, node: &NodeId) -> AssignmentSet {
    let Some(node) = store.node(node) else { return AssignmentSet::default() };
    let mut items: Vec<Item> = own_items(store, node);
    for network in networks_of_host(store, &node.id) {
        if let Some(network) = store.network(&network) {
            items.extend(network_items(store, network));
        }
    }
    items.extend(mesh_ports(store, node));
    items.extend(store.nodes().map(|node| Body::Peer(peer(node)).into()));
    items.extend(cluster_items(store));
    AssignmentSet::new(items)
}

/// What the host is told and no other one: its tasks with what belongs to them, and its place on its networks.
pub(super) fn own_items(store: &Store, node: &Node) -> Vec<Item> {
    let tasks = store.tasks_on_node(&node.id).filter(|t| t.is_placed() && !t.lacks_addresses());
    let mut items: Vec<Item> = tasks.map(|t| Body::Task(Box::new(assigned(t))).into()).collect();
    items.extend(payloads(store, &node.id));
    items.extend(registries(store, &node.id));
    let networks = networks_of_host(store, &node.id);
    items.extend(networks.iter().filter_map(|id| network_info(node, store.network(id)?)));
    items
}

/// What every host is told of the cluster itself: hosts that are not trusted any more, and the rotation that keys of
/// encrypted networks are to be of.
pub(super) fn cluster_items(store: &Store) -> impl Iterator<Item = Item> {
    let removed = store.cluster().into_iter().flat_map(|c| &c.status.removed_nodes);
    let removed = removed.map(|r| Body::Removed(RemovedPeer { id: r.id.clone(), until: r.until }).into());
    let epoch = Some(sealing_epoch(store)).filter(|epoch| *epoch != 0);
    removed.chain(epoch.map(|epoch| Body::Sealing(SealingInfo { epoch }).into()))
}

/// Networks that the host takes part in: those of its tasks that have not ended, and ingress.
pub(super) fn networks_of_host(store: &Store, node: &NodeId) -> BTreeSet<NetworkId> {
    let tasks = store.tasks_on_node(node).filter(|t| t.is_placed() && !t.has_ended());
    let mut networks: BTreeSet<NetworkId> =
        tasks.flat_map(|t| t.attachments.iter().map(|a| a.network.clone())).collect();
    networks.extend(store.ingress_network().map(|n| n.id.clone()));
    networks
}

/// Secrets and configs of the host's tasks, as long as those have not ended.
fn payloads(store: &Store, node: &NodeId) -> Vec<Item> {
    let tasks = || store.tasks_on_node(node).filter(|t| t.is_placed() && !t.has_ended());
    let secrets: BTreeSet<&str> = tasks().flat_map(|t| &t.spec.container.secrets).map(|s| s.id.as_str()).collect();
    let configs: BTreeSet<&str> = tasks().flat_map(|t| &t.spec.container.configs).map(|c| c.id.as_str()).collect();
    let info = |id: &str, data: &Vec<u8>| PayloadInfo { id: id.to_owned(), data: data.clone() };
    let secrets = secrets.into_iter().filter_map(|id| {
        let secret = store.secret(&SecretId::new(id))?;
        Some(Body::Secret(info(id, &secret.spec.data)).into())
    });
    let configs = configs.into_iter().filter_map(|id| {
        let config = store.config(&ConfigId::new(id))?;
        Some(Body::Config(info(id, &config.spec.data)).into())
    });
    secrets.chain(configs).collect()
}

/// Credentials for the registries of the host's tasks, as long as those have not ended.
fn registries(store: &Store, node: &NodeId) -> impl Iterator<Item = Item> {
    let tasks = store.tasks_on_node(node).filter(|t| t.is_placed() && !t.has_ended());
    let registries: BTreeSet<RegistryId> = match store.registries().next() {
        Some(_) => tasks.map(|t| RegistryId::of_image(&t.spec.container.image)).collect(),
        None => BTreeSet::new(),
    };
    registries.into_iter().filter_map(|id| {
        let auth = store.registry(&id)?.auth.clone();
        Some(Body::Registry(RegistryInfo { id, auth }).into())
    })
}

fn assigned(task: &Task) -> Assignment {
    let progress = match task.state() {
        state if state.is_terminal() => Progress::Ended,
        state if state >= TaskState::Starting => Progress::MayHaveStarted,
        _ => Progress::NotStarted,
    };
    let task = Task { status: TaskStatus::default(), meta: Meta::default(), ..task.clone() };
    Assignment { task, progress: progress as i32 }
}

fn network_info(node: &Node, network: &Network) -> Option<Item> {
    let allocation = network.allocation.as_ref()?;
    let encrypted = network.spec.is_encrypted();
    // It would carry it as if it were not encrypted.
    if encrypted && node.description.feature_level < ENCRYPTION_LEVEL {
        return None;
    }
    // What an older release remembers of it must mean nothing to it either.
    let (subnet, sealed_subnet) = match encrypted {
        true => (String::new(), allocation.subnet.clone()),
        false => (allocation.subnet.clone(), String::new()),
    };
    let own = node.attachments.iter().find(|a| a.network == network.id);
    let info = NetworkInfo {
        id: network.id.clone(),
        name: network.spec.name.clone(),
        vni: allocation.vni,
        subnet,
        sealed_subnet,
        gateway: allocation.gateway.clone(),
        internal: network.spec.internal,
        ingress: network.spec.ingress,
        own_address: own.map(|a| a.address.clone()).unwrap_or_default(),
        subnet6: allocation.subnet6.clone(),
        mtu: network.spec.mtu().unwrap_or_default(),
        local: network.spec.is_local(),
    };
    Some(Body::Network(info).into())
}

/// The rotation that keys of encrypted networks are to be of; 0 before there was one.
pub(super) fn sealing_epoch(store: &Store) -> u64 {
    store.cluster().map_or(0, |cluster| cluster.status.sealing_epoch)
}

/// All that is on a network.
pub(super) fn network_items(store: &Store, network: &Network) -> Vec<Item> {
    if network.allocation.is_none() {
        return Vec::new();
    }
    let mut items: Vec<Item> = service_items(store, network).collect();
    // The index of addresses names everyone who is on the network, without a walk over all tasks.
    for (_, holder) in store.addresses_on_network(&network.id) {
        match holder {
            Holder::Task(id) => {
                items.extend(store.task(id).into_iter().flat_map(|task| task_items(store, &network.id, task)));
            }
            Holder::Node(id) => {
                let Some(other) = store.node(id) else { continue };
                for attachment in other.attachments.iter().filter(|a| a.network == network.id) {
                    items.extend(station(store, &network.id, &attachment.address, id));
                }
            }
            Holder::Service(_) => {}
        }
    }
    items
}

/// The services on a network.
pub(super) fn service_items(store: &Store, network: &Network) -> impl Iterator<Item = Item> {
    store.services_on_network(&network.id).map(|service| {
        let wish = service.spec.task.networks.iter().find(|n| n.target == network.id.as_str());
        Body::Service(service_info(service, network, wish.map(|n| n.aliases.clone()))).into()
    })
}

/// What a task is on a network; nothing once it has ended, and no endpoint for a plain container of a host that is lost.
pub(super) fn task_items(store: &Store, network: &NetworkId, task: &Task) -> Vec<Item> {
    let mut items = Vec::new();
    if task.is_placed() && !task.has_ended() {
        for attachment in task.attachments.iter().filter(|a| a.network == *network) {
            items.extend(station(store, network, &attachment.address, &task.node_id));
            if !is_out_of_sight(store, task) {
                items.push(Body::Endpoint(endpoint(task, network, &attachment.address)).into());
            }
        }
    }
    items
}

/// Whether a task is the place of a plain container whose host is lost. Nobody stops that one and puts another in its place,
/// as happens to tasks, so its names have to go by themselves, and come back with the host. Until then its address stays
/// where it was: the container may run, and whoever is connected to it stays so.
fn is_out_of_sight(store: &Store, task: &Task) -> bool {
    task.is_attachment() && host_is_lost(store, &task.node_id)
}

fn station(store: &Store, network: &NetworkId, address: &str, node: &NodeId) -> Option<Item> {
    let data_path_addr = store.node(node)?.description.data_path_addr.clone();
    Some(
        Body::Station(Station {
            network: network.clone(),
            address: address.to_owned(),
            node: node.clone(),
            data_path_addr,
        })
        .into(),
    )
}

fn service_info(service: &Service, network: &Network, aliases: Option<Vec<String>>) -> ServiceInfo {
    let vip = service.endpoint.virtual_ips.iter().find(|v| v.network == network.id);
    let by_vip = service.spec.endpoint_spec().mode() == EndpointMode::Vip;
    ServiceInfo {
        network: network.id.clone(),
        id: service.id.clone(),
        name: service.spec.name.clone(),
        aliases: aliases.unwrap_or_default(),
        vip: vip.filter(|_| by_vip).map(|v| v.address.clone()).unwrap_or_default(),
        ports: service.endpoint.ports.iter().map(service_port).collect(),
    }
}

fn service_port(port: &PortConfig) -> ServicePort {
    ServicePort { name: port.name.clone(), protocol: port.protocol, target: port.target }
}

fn endpoint(task: &Task, network: &NetworkId, address: &str) -> EndpointInfo {
    let mut names = vec![task.name()];
    if !task.spec.container.hostname.is_empty() {
        names.push(task.spec.container.hostname.clone());
    }
    if task.is_attachment() {
        let here = task.attachments.iter().filter(|attachment| attachment.network == *network);
        names.extend(here.flat_map(|attachment| attachment.aliases.clone()));
    }
    names.extend(short_id(task).map(str::to_owned));
    EndpointInfo {
        network: network.clone(),
        task: task.id.clone(),
        service: task.service_id.clone(),
        node: task.node_id.clone(),
        address: address.to_owned(),
        names,
        serving: task.is_serving(),
    }
}

/// What a container is called by others that has no other hostname. Told with what is told anyway: once it runs, or when
/// it has to find its peers to become healthy.
pub(super) fn short_id(task: &Task) -> Option<&str> {
    let is_met = task.state() >= TaskState::Running || task.spec.container.healthcheck.is_some();
    task.status.container.as_ref().filter(|_| is_met).and_then(|container| container.id.get(..12))
}

/// Ports of the mesh, without those that the host's own daemon listens at: it must stay within reach.
fn mesh_ports(store: &Store, node: &Node) -> impl Iterator<Item = Item> {
    let own: BTreeSet<ItemKey> = reserved_ports(node).collect();
    let ports = store.services().flat_map(|service| ports(service));
    ports.filter(move |item| item.key().is_none_or(|key| !own.contains(&key)))
}

/// The items that the mesh may not have on a host.
pub(super) fn reserved_ports(node: &Node) -> impl Iterator<Item = ItemKey> {
    own_ports(node).filter_map(|(protocol, published, _)| {
        let port = PublishedPort { protocol: protocol as i32, published, ..PublishedPort::default() };
        Item::from(Body::Port(port)).key()
    })
}

pub(super) fn ports(service: &Service) -> impl Iterator<Item = Item> + use<'_> {
    let ports = service.endpoint.ports.iter().filter(|p| p.mode() == PublishMode::Ingress && p.published != 0);
    ports.map(|port| {
        Body::Port(PublishedPort {
            protocol: port.protocol,
            published: port.published,
            target: port.target,
            service: service.id.clone(),
            local: service.spec.publishes_locally(),
        })
        .into()
    })
}

pub(super) fn peer(node: &Node) -> Peer {
    Peer {
        id: node.id.clone(),
        hostname: node.description.hostname.clone(),
        control_addr: node.description.control_addr.clone(),
        data_path_addr: node.description.data_path_addr.clone(),
        role: node.spec.role,
        manager: node.manager.is_some(),
        state: node.status.state,
        message: node.status.message.clone(),
        sealing_keys: node.sealing_keys().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ContainerStatus, Healthcheck};

    #[test]
    fn a_container_has_a_short_name_once_others_meet_it() {
        let mut task = Task::default();
        task.status.state = TaskState::Running as i32;
        assert_eq!(short_id(&task), None);
        task.status.container = Some(ContainerStatus { id: "0123456789abcdef".repeat(4), ..Default::default() });
        assert_eq!(short_id(&task), Some("0123456789ab"));
        task.status.state = TaskState::Starting as i32;
        assert_eq!(short_id(&task), None);
        task.spec.container.healthcheck = Some(Healthcheck::default());
        assert_eq!(short_id(&task), Some("0123456789ab"), "a cluster that has to form to be healthy");
        task.status.container = Some(ContainerStatus { id: "0123".into(), ..Default::default() });
        assert_eq!(short_id(&task), None);
    }
}
