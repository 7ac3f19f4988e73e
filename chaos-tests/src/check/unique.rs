//! No two objects hold the same address, VNI or published port; nobody has an address outside of its network's subnet.
//!
//! Counted from the objects, not from the store's own index, which could be wrong in the same way.

use std::collections::BTreeMap;

use deploy::model::{NetworkAttachment, NetworkId, PublishMode, Task, parse_cidr};
use deploy::store::{Key, Store};

use super::{Fact, Property};

/// See the file's first line.
pub struct Unique;

impl Property for Unique {
    fn name(&self) -> &'static str {
        "no two hold the same address, VNI or port"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(applied) = fact.first_applied() else { return Ok(()) };
        if applied.keys.iter().any(|key| holdings_changed(applied.before, applied.after, key)) {
            check_addresses(applied.after)?;
            check_vnis(applied.after)?;
            check_ports(applied.after)?;
        }
        Ok(())
    }
}

fn holdings_changed(before: &Store, after: &Store, key: &Key) -> bool {
    match key {
        Key::Node(id) => before.node(id).map(|n| &n.attachments) != after.node(id).map(|n| &n.attachments),
        Key::Service(id) => before.service(id).map(|s| &s.endpoint) != after.service(id).map(|s| &s.endpoint),
        Key::Network(_) => true,
        Key::Task(id) => {
            let held = |t: &std::sync::Arc<Task>| (t.attachments.clone(), t.ports.clone(), t.is_placed());
            before.task(id).map(held) != after.task(id).map(held)
        }
        Key::Cluster | Key::Secret(_) | Key::Config(_) | Key::Registry(_) => false,
    }
}

fn check_addresses(store: &Store) -> Result<(), String> {
    let mut held: BTreeMap<(NetworkId, u32), String> = BTreeMap::new();
    let mut take = |network: &NetworkId, address: &str, holder: String| -> Result<(), String> {
        let Some((bits, _)) = parse_cidr(address) else { return Err(format!("{holder} has the address {address:?}")) };
        match held.insert((network.clone(), bits), holder.clone()) {
            Some(other) => Err(format!("{holder} and {other} both have {address} on network {network}")),
            None => Ok(()),
        }
    };
    for network in store.networks() {
        if let Some(given) = &network.allocation {
            take(&network.id, &format!("{}/32", given.gateway), format!("the gateway of {}", network.id))?;
        }
    }
    let of = |attachments: &[NetworkAttachment]| attachments.to_vec();
    for node in store.nodes() {
        for a in of(&node.attachments) {
            take(&a.network, &a.address, format!("node {}", node.id))?;
        }
    }
    for service in store.services() {
        for vip in &service.endpoint.virtual_ips {
            take(&vip.network, &vip.address, format!("service {}", service.id))?;
        }
    }
    for task in store.tasks().filter(|t| !t.has_ended()) {
        for a in of(&task.attachments) {
            take(&a.network, &a.address, format!("task {}", task.id))?;
        }
    }
    Ok(())
}

fn check_vnis(store: &Store) -> Result<(), String> {
    let mut held = BTreeMap::new();
    for network in store.networks() {
        let Some(given) = &network.allocation else { continue };
        if let Some(other) = held.insert(given.vni, &network.id) {
            return Err(format!("networks {} and {other} both have VNI {}", network.id, given.vni));
        }
    }
    Ok(())
}

fn check_ports(store: &Store) -> Result<(), String> {
    let mut everywhere = BTreeMap::new();
    for service in store.services() {
        for port in service.endpoint.ports.iter().filter(|p| p.is_ingress() && p.published != 0) {
            if let Some(other) = everywhere.insert((port.protocol, port.published), &service.id) {
                return Err(format!("services {} and {other} both publish port {}", service.id, port.published));
            }
        }
    }
    let mut on_host = BTreeMap::new();
    for task in store.tasks().filter(|t| t.is_placed() && !t.has_ended()) {
        for port in task.ports.iter().filter(|p| p.mode() == PublishMode::Host && p.published != 0) {
            let place = (&task.node_id, port.protocol, port.published);
            if let Some(other) = on_host.insert(place, &task.id) {
                return Err(format!(
                    "tasks {} and {other} both hold port {} of {}",
                    task.id, port.published, task.node_id
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{changed, service, show, task};
    use super::*;
    use deploy::model::{Network, NetworkAllocation, PortConfig};
    use deploy::store::Txn;

    #[track_caller]
    fn check_fires(change: impl FnOnce(&mut Txn)) {
        let after = changed(&Store::default(), change);
        assert!(show(&mut Unique, &Store::default(), &after).is_err());
    }

    fn attached(id: &str, address: &str) -> Task {
        let mut task = task(id, "web", "a");
        let network = NetworkId::new("n");
        task.attachments = vec![NetworkAttachment { network, address: address.to_owned(), ..Default::default() }];
        task
    }

    #[test]
    fn one_address_for_two_tasks_is_found() {
        check_fires(|txn| {
            txn.put_task(attached("t1", "10.0.0.5/24"));
            txn.put_task(attached("t2", "10.0.0.5/24"));
        });
        let fine = changed(&Store::default(), |txn| {
            txn.put_task(attached("t1", "10.0.0.5/24"));
            txn.put_task(attached("t2", "10.0.0.6/24"));
        });
        show(&mut Unique, &Store::default(), &fine).unwrap();
    }

    #[test]
    fn one_vni_for_two_networks_is_found() {
        check_fires(|txn| {
            for (name, gateway) in [("n1", "10.0.1.1"), ("n2", "10.0.2.1")] {
                let allocation = NetworkAllocation { vni: 7, gateway: gateway.into(), ..NetworkAllocation::default() };
                txn.put_network(Network {
                    id: NetworkId::new(name),
                    allocation: Some(allocation),
                    ..Network::default()
                });
            }
        });
    }

    #[test]
    fn one_port_for_two_is_found() {
        let port = |mode: PublishMode| PortConfig { published: 80, mode: mode as i32, ..PortConfig::default() };
        check_fires(|txn| {
            for name in ["s1", "s2"] {
                let mut service = service(name);
                service.endpoint.ports = vec![port(PublishMode::Ingress)];
                txn.put_service(service);
            }
        });
        check_fires(|txn| {
            for name in ["t1", "t2"] {
                txn.put_task(Task { ports: vec![port(PublishMode::Host)], ..task(name, "web", "a") });
            }
        });
    }
}
