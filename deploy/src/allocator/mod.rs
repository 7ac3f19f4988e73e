//! Gives subnets, VXLAN ids, addresses, virtual IPs and published ports.
//!
//! Runs as the next to last reconciler of a pass, after placement, so that only tasks with a host get addresses. What
//! is taken is read from the store's indexes; there is no second state. An address is free again once its task was
//! seen to end, or is gone, and it has rested. What cannot be given is said in the object's message and tried again in each pass.

mod address;
mod port;
mod reserved;
mod subnet;
#[cfg(test)]
mod tests;
mod trouble;

use std::sync::Arc;

use crate::cx::Cx;
use crate::model::{
    EndpointMode, Network, NetworkAttachment, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId, VirtualIp,
};
use crate::store::{Key, Txn};
use address::{Addresses, Given};
use port::HostPorts;

pub(crate) use reserved::{own_ports, reserved_port, sealing_ports};
pub(crate) use subnet::{overlapping_hosts, overlapping_hosts6, plan_network};
pub use trouble::Troubles;
pub(crate) use trouble::{host_inside, ingress_obstacle};

/// Gives what can be given to all objects that lack something. Idempotent; never fails.
pub fn reconcile(cx: &mut Cx<'_>, txn: &mut Txn) {
    // Few hosts have a place on a network that is gone: those that the entry which removed it had no room for.
    detach_nodes(cx, txn);
    let keys: Vec<Key> = txn.unallocated().cloned().collect();
    let mut addresses = Addresses::default();
    // Networks first, because all else needs their subnets; then hosts, without which ingress does not work.
    for key in &keys {
        if let Key::Network(id) = key {
            allocate_network(txn, id);
        }
    }
    let nodes = keys.iter().filter_map(|key| if let Key::Node(id) = key { Some(id) } else { None });
    attach_nodes(cx, txn, &mut addresses, nodes);
    for key in &keys {
        if let Key::Service(id) = key {
            allocate_service(txn, &mut addresses, id);
        }
    }
    let tasks = keys.iter().filter_map(|key| if let Key::Task(id) = key { Some(id) } else { None });
    let mut ports = HostPorts::default();
    let mut given = 0;
    for id in tasks {
        if given == cx.limits.tasks_per_pass || txn.is_full() {
            // The rest is the next pass's, which comes at once.
            txn.wake_at(cx.now);
            break;
        }
        given += usize::from(attach_task(txn, &mut addresses, &mut ports, id));
    }
}

/// Whether a network has an address to give at this moment.
///
/// # Errors
/// Why not, for people.
pub(crate) fn has_address(txn: &mut Txn, network: &NetworkId) -> Result<(), String> {
    Addresses::default().next(txn, network).map(drop)
}

fn allocate_network(txn: &mut Txn, id: &NetworkId) {
    let Some(network) = txn.network(id) else { return };
    let mut network = Network::clone(network);
    match plan_network(txn, &network) {
        Ok(allocation) => {
            network.allocation = Some(allocation);
            network.message.clear();
        }
        Err(why) => network.message = why,
    }
    txn.put_network(network);
}

/// Takes from hosts their places on networks that are gone.
pub(crate) fn detach_nodes(cx: &Cx<'_>, txn: &mut Txn) {
    for id in txn.stranded_nodes() {
        if txn.is_full() {
            txn.wake_at(cx.now);
            return;
        }
        let Some(node) = txn.node(&id) else { continue };
        let mut node = Node::clone(node);
        node.attachments.retain(|attachment| txn.network(&attachment.network).is_some());
        txn.put_node(node);
    }
}

/// Gives hosts their places on the ingress network. Why one has none shows in its status: see [`Troubles`].
fn attach_nodes<'a>(cx: &Cx<'_>, txn: &mut Txn, addresses: &mut Addresses, nodes: impl Iterator<Item = &'a NodeId>) {
    let Some(ingress) = txn.ingress_network().cloned() else { return };
    let mut nodes = nodes.peekable();
    if nodes.peek().is_none() || trouble::swallowed_host(txn, &ingress).is_some() {
        return;
    }
    for id in nodes {
        if txn.is_full() {
            // After a new ingress network was made there are many; the rest is the next pass's, which comes at once.
            txn.wake_at(cx.now);
            return;
        }
        let Some(node) = txn.node(id) else { continue };
        if trouble::ingress_obstacle(node, &ingress).is_some() {
            continue;
        }
        let mut node = Node::clone(node);
        let Ok(Given { address, address6 }) = addresses.next(txn, &ingress.id) else { return };
        let network = ingress.id.clone();
        node.attachments = vec![NetworkAttachment { network, address, aliases: Vec::new(), address6 }];
        txn.put_node(node);
    }
}

fn allocate_service(txn: &mut Txn, addresses: &mut Addresses, id: &ServiceId) {
    let Some(service) = txn.service(id) else { return };
    let mut service = Service::clone(service);
    let mut problems = Vec::new();
    let (ports, problem) = port::given(txn, &service);
    service.endpoint.ports = ports;
    problems.extend(problem);
    let wanted = vip_networks(txn, &service);
    service.endpoint.virtual_ips.retain(|vip| wanted.contains(&vip.network));
    for network in wanted {
        if service.endpoint.virtual_ips.iter().any(|vip| vip.network == network) {
            continue;
        }
        match addresses.next(txn, &network) {
            Ok(Given { address, address6 }) => {
                service.endpoint.virtual_ips.push(VirtualIp { network, address, address6 });
            }
            Err(why) => problems.push(why),
        }
    }
    service.message = problems.join("; ");
    txn.put_service(service);
}

/// Networks that a service has a virtual IP on: those of its spec, then ingress.
fn vip_networks(txn: &Txn, service: &Service) -> Vec<NetworkId> {
    if service.spec.endpoint_spec().mode() != EndpointMode::Vip {
        return Vec::new();
    }
    let mut networks: Vec<NetworkId> =
        service.spec.task.cluster_networks().map(|n| NetworkId::new(&n.target)).collect();
    if service.publishes_ingress() {
        networks.extend(txn.ingress_network().map(|network| network.id.clone()));
    }
    networks
}

/// Whether the task was given something.
fn attach_task(txn: &mut Txn, addresses: &mut Addresses, ports: &mut HostPorts, id: &TaskId) -> bool {
    let Some(task) = txn.task(id) else { return false };
    let task = Arc::clone(task);
    let mut next = Task::clone(&task);
    let wanted = task.spec.cluster_networks().map(|n| (NetworkId::new(&n.target), n.aliases.clone()));
    let ingress = txn.ingress_network().filter(|_| task.publishes_ingress()).map(|n| (n.id.clone(), Vec::new()));
    if task.publishes_ingress() && ingress.is_none() {
        // An update that failed went back to a version with ports, after the network was removed.
        "service needs ingress network, but no ingress network is present".clone_into(&mut next.status.message);
        txn.put_task(next);
        return false;
    }
    let wanted: Vec<(NetworkId, Vec<String>)> = wanted.chain(ingress).collect();
    let mut attachments = Vec::with_capacity(wanted.len());
    for (network, aliases) in &wanted {
        if let Some(has) = task.attachments.iter().find(|has| has.network == *network) {
            attachments.push(has.clone());
            continue;
        }
        match addresses.next(txn, network) {
            Ok(Given { address, address6 }) => {
                let (network, aliases) = (network.clone(), aliases.clone());
                attachments.push(NetworkAttachment { network, address, aliases, address6 });
            }
            Err(why) => {
                // All or nothing: a task must not start with half of its networks. What was reserved in this pass
                // is free again in the next one. Which of its networks is dry first then may be another one, which is
                // no news.
                let is_said = |(network, _): &(NetworkId, _)| {
                    txn.network(network).is_some_and(|network| task.status.message == address::dry(&network.spec.name))
                };
                if !wanted.iter().any(is_said) {
                    next.status.message = why;
                    txn.put_task(next);
                }
                return false;
            }
        }
    }
    match ports.choose(txn, &task) {
        Ok(numbers) => next.chosen_ports = numbers,
        Err(why) => {
            next.status.message = why;
            txn.put_task(next);
            return false;
        }
    }
    let changed = attachments != task.attachments || next.chosen_ports != task.chosen_ports;
    next.attachments = attachments;
    txn.put_task(next);
    changed
}
