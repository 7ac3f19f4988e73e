//! Cluster-wide networks.

use std::fmt::Display;

use super::{ControlError, CreateNetwork, ErrorKind, RemoveNetwork, Reply, named, not_found, precondition, validate};
use crate::allocator;
use crate::cx::Cx;
use crate::model::{
    IPV6_LEVEL, MTU_OPTION, Network, NetworkId, OPTIONS_LEVEL, PortConfig, PortProtocol, Service, Subnet, Subnet6,
};
use crate::sealing;
use crate::store::Txn;

pub(super) fn create(cx: &mut Cx<'_>, txn: &mut Txn, op: &CreateNetwork) -> Result<Reply, ControlError> {
    let mut spec = op.spec.clone();
    if spec.driver.is_empty() {
        "overlay".clone_into(&mut spec.driver);
    }
    validate::check_network(&spec)?;
    if spec.ipv6 {
        refuse_old_managers(txn, "EnableIPv6", "networks with IPv6", IPV6_LEVEL)?;
    }
    if spec.driver_options.contains_key(MTU_OPTION) {
        refuse_old_managers(txn, MTU_OPTION, "networks with an MTU of their own", OPTIONS_LEVEL)?;
    }
    if spec.is_local() {
        refuse_old_managers(txn, &spec.driver, "networks that end at each host", OPTIONS_LEVEL)?;
    }
    if spec.is_encrypted() {
        super::sealing::refuse_old_managers(txn, "encrypted")?;
        refuse_published_ports(txn)?;
    }
    if spec.attachable {
        super::attachment::refuse_old_managers(txn)?;
    }
    if txn.network_by_name(&spec.name).is_some() {
        let text = format!("network with name {} already exists", spec.name);
        return Err(ControlError::new(ErrorKind::AlreadyExists, text));
    }
    if spec.ingress
        && let Some(other) = txn.ingress_network()
    {
        let text = format!("ingress network ({}) is already present", other.spec.name);
        return Err(ControlError::new(ErrorKind::AlreadyExists, text));
    }
    let network = Network { id: cx.id::<NetworkId>(), spec, ..Network::default() };
    // What is asked for is refused at once when it cannot be had; the brain's pass then gives it.
    if let Err(dry) = allocator::plan_network(txn, &network) {
        let kind = if network.spec.ipam.is_empty() { ErrorKind::Exhausted } else { ErrorKind::Invalid };
        return Err(ControlError::new(kind, dry));
    }
    if network.spec.ingress
        && let Some(subnet) = network.spec.ipam4().and_then(|ipam| Subnet::parse(&ipam.subnet))
        && let Some(why) = allocator::host_inside(txn, &network.spec.name, subnet)
    {
        return Err(ControlError::new(ErrorKind::Invalid, format!("{why}: hosts would lose the way to each other")));
    }
    let warnings = overlap_warnings(txn, &network);
    if network.spec.is_encrypted() {
        sealing::begin(txn);
    }
    let id = network.id.clone();
    txn.put_network(network);
    Ok(Reply { warnings, ..named(id) })
}

/// What an older manager would not keep is not written.
fn refuse_old_managers(txn: &Txn, wish: &str, what: &str, needed: u32) -> Result<(), ControlError> {
    let level = txn.cluster().map_or(0, |cluster| cluster.status.feature_level);
    if level >= needed {
        return Ok(());
    }
    Err(precondition(format!(
        "{wish}: the managers of this cluster are at feature level {level}, and {what} need level {needed}: install the \
         newer release on all managers first"
    )))
}

/// What hosts exchange of encrypted networks comes to ports of its own, which a published port would take.
fn refuse_published_ports(txn: &Txn) -> Result<(), ControlError> {
    match allocator::sealing_ports(txn).find_map(|port| port_user(txn, port).map(|user| (port, user))) {
        Some((port, user)) => Err(precondition(format!(
            "encrypted: port '{port}', which hosts need for encrypted networks, is already in use by {user}"
        ))),
        None => Ok(()),
    }
}

/// Who has a UDP port on some host, or has asked for it.
fn port_user(txn: &Txn, number: u32) -> Option<String> {
    let is_it = |port: &PortConfig| port.protocol() == PortProtocol::Udp && port.published == number;
    let asks = |service: &Service| {
        let wanted = service.spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        wanted.chain(&service.endpoint.ports).any(is_it)
    };
    if let Some(service) = txn.services().find(|service| asks(service)) {
        return Some(format!("service '{}' ({})", service.spec.name, service.id));
    }
    if let Some(task) = txn.chosen_port_holder(PortProtocol::Udp, number) {
        return Some(format!("task {}", task.id));
    }
    txn.nodes().find_map(|node| {
        let own = |(protocol, port, _): &(PortProtocol, u32, &str)| (*protocol, *port) == (PortProtocol::Udp, number);
        let (_, _, purpose) = allocator::own_ports(node).find(own)?;
        Some(format!("node '{}' ({}) as its {purpose}", node.description.hostname, node.id))
    })
}

/// What becomes of the subnets that a user asked for and that hosts have too.
fn overlap_warnings(txn: &Txn, network: &Network) -> Vec<String> {
    let four = network.spec.ipam4().and_then(|ipam| Subnet::parse(&ipam.subnet));
    let six = network.spec.ipam6().and_then(|ipam| Subnet6::parse(&ipam.subnet));
    let four = four.and_then(|subnet| overlap_warning(network, subnet, allocator::overlapping_hosts(txn, subnet)));
    let six = six.and_then(|subnet| overlap_warning(network, subnet, allocator::overlapping_hosts6(txn, subnet)));
    four.into_iter().chain(six).collect()
}

fn overlap_warning<'a, S: Display>(
    network: &Network,
    subnet: S,
    mut hosts: impl Iterator<Item = (&'a str, S)>,
) -> Option<String> {
    let (name, own) = hosts.next()?;
    let others = match hosts.count() {
        0 => String::new(),
        n => format!(", and {n} more nodes have such networks"),
    };
    let so = match network.spec.ingress {
        true => "these nodes will not serve published ports",
        false => "tasks on this network will not reach those",
    };
    Some(format!("{subnet} has addresses of the network {own} of node '{name}'{others}: {so}"))
}

pub(super) fn remove(cx: &Cx<'_>, txn: &mut Txn, op: &RemoveNetwork) -> Result<Reply, ControlError> {
    let Some(network) = txn.network(&op.id) else { return Err(not_found("network", &op.id)) };
    let is_ingress = network.spec.ingress;
    if let Some(service) = txn.services_on_network(&op.id).next() {
        return Err(precondition(match is_ingress {
            true => format!("ingress network cannot be removed because service {} depends on it", service.id),
            false => format!("network {} is in use by service {}", op.id, service.id),
        }));
    }
    // A task whose service is gone may still run there; its address must not be given out with another subnet.
    let user = txn.addresses_on_network(&op.id).find_map(|(_, holder)| match holder.key() {
        crate::store::Key::Node(_) => None,
        key => Some(key),
    });
    if let Some(key) = user {
        return Err(precondition(format!("network {} is in use by {key}", op.id)));
    }
    txn.remove_network(&op.id);
    // The hosts' places go with it; a new ingress network gives them new ones.
    allocator::detach_nodes(cx, txn);
    Ok(named(&op.id))
}
