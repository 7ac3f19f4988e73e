//! Published ports.
//!
//! Numbers that a user left open come from one range, for the mesh and for host mode: below the kernel's own range for
//! outgoing connections (32768 and up), so that none is in use by a connection of the host, and known to the leader, so
//! that two tasks, or a task and the mesh, never get the same one. (Docker's engines choose host-mode ports of their own
//! from the kernel's range, and can only find out afterwards.)

use std::collections::BTreeSet;

use super::reserved::reserved_ports;
use crate::model::{NodeId, PortConfig, PortProtocol, PublishMode, Service, ServiceId, Task};
use crate::store::{Store, port_satisfies};

/// Where ports come from when the user left the number open; Docker's range for the mesh.
const FIRST_PORT: u32 = 30000;
const LAST_PORT: u32 = 32767;

/// The ports of a service with their numbers, as far as they can be given, and why the rest cannot.
pub(super) fn given(store: &Store, service: &Service) -> (Vec<PortConfig>, Option<String>) {
    let wanted = service.spec.endpoint_spec().ports;
    let mut has = service.endpoint.ports.clone();
    let mut ports: Vec<PortConfig> = Vec::with_capacity(wanted.len());
    let mut problem = None;
    // Numbers that users named are settled first, so that a free choice does not take one of them.
    let named: Vec<(PortProtocol, u32)> = wanted.iter().map(|port| (port.protocol(), port.published)).collect();
    for port in wanted {
        // A number that was chosen before stays.
        if let Some(at) = has.iter().position(|old| port_satisfies(&port, old)) {
            let old = has.swap_remove(at);
            if !port.is_ingress() || is_free(store, &service.id, old.protocol(), old.published) {
                ports.push(old);
                continue;
            }
        }
        if !port.is_ingress() {
            // In host mode an open number is chosen for each task, on its host.
            ports.push(port);
        } else if port.published != 0 {
            match holder(store, service, &port) {
                None => ports.push(port),
                Some(holder) => problem = Some(format!("port '{}' is already in use by {holder}", port.published)),
            }
        } else {
            let protocol = port.protocol();
            let reserved = reserved_ports(store);
            let free = |number: &u32| {
                let here = |other: &PortConfig| other.protocol() == protocol && other.published == *number;
                !ports.iter().any(here)
                    && !named.contains(&(protocol, *number))
                    && is_free(store, &service.id, protocol, *number)
                    && !host_mode_uses(store, protocol, *number)
                    && store.chosen_port_holder(protocol, *number).is_none()
                    && !reserved.contains(&(protocol, *number))
            };
            match (FIRST_PORT..=LAST_PORT).find(free) {
                Some(published) => ports.push(PortConfig { published, ..port }),
                None => problem = Some(format!("no port is free between {FIRST_PORT} and {LAST_PORT}")),
            }
        }
    }
    (ports, problem)
}

/// Who has the number that a service wants for the mesh. What a user asks for was checked before; what an update that
/// failed goes back to may have been given to others meanwhile.
fn holder(store: &Store, service: &Service, port: &PortConfig) -> Option<String> {
    let (protocol, number) = (port.protocol(), port.published);
    if let Some(owner) = store.published_port_owner(protocol, number) {
        let other = owner.id != service.id;
        return other.then(|| format!("service '{}' ({}) as an ingress port", owner.spec.name, owner.id));
    }
    if store.chosen_port_holder(protocol, number).is_some() || host_mode_uses(store, protocol, number) {
        return Some("another service as a host-mode port".to_owned());
    }
    reserved_ports(store).contains(&(protocol, number)).then(|| "hosts of the cluster themselves".to_owned())
}

fn is_free(store: &Store, service: &ServiceId, protocol: PortProtocol, port: u32) -> bool {
    store.published_port_owner(protocol, port).is_none_or(|owner| owner.id == *service)
}

/// Whether a service publishes the port on the hosts of its tasks.
fn host_mode_uses(store: &Store, protocol: PortProtocol, port: u32) -> bool {
    let same = |other: &PortConfig| {
        other.mode() == PublishMode::Host && other.protocol() == protocol && other.published == port
    };
    store.services().any(|service| service.spec.endpoint.as_ref().is_some_and(|e| e.ports.iter().any(same)))
}

/// Numbers for host-mode ports that one pass gives out.
#[derive(Default)]
pub(super) struct HostPorts {
    /// What is in use on all hosts, or may come to be on any; computed when it is first needed.
    everywhere: Option<BTreeSet<(PortProtocol, u32)>>,
}

impl HostPorts {
    /// The numbers for all open ports of a task, those that it has already included.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn choose(&mut self, store: &Store, task: &Task) -> Result<Vec<u32>, String> {
        let mut numbers = task.chosen_ports.clone();
        let open: Vec<PortProtocol> = task.open_ports().skip(numbers.len()).map(PortConfig::protocol).collect();
        if open.is_empty() {
            return Ok(numbers);
        }
        let everywhere = self.everywhere.get_or_insert_with(|| in_use_everywhere(store));
        let mut here = in_use_on(store, &task.node_id);
        for protocol in open {
            let free = |number: &u32| {
                let port = (protocol, *number);
                !everywhere.contains(&port) && !here.contains(&port)
            };
            let Some(number) = (FIRST_PORT..=LAST_PORT).find(free) else {
                let node = store.node(&task.node_id).map(|node| node.description.hostname.clone()).unwrap_or_default();
                return Err(format!(
                    "no port is free between {FIRST_PORT} and {LAST_PORT} on node '{node}' ({})",
                    task.node_id
                ));
            };
            here.insert((protocol, number));
            numbers.push(number);
        }
        Ok(numbers)
    }
}

/// The mesh's ports, the hosts' own, and those that users have named in host mode: a task that needs one of these has
/// no other.
fn in_use_everywhere(store: &Store) -> BTreeSet<(PortProtocol, u32)> {
    let mut ports = reserved_ports(store);
    for service in store.services() {
        let asked = service.spec.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
        ports.extend(asked.chain(&service.endpoint.ports).map(|port| (port.protocol(), port.published)));
    }
    ports
}

/// Ports of the tasks on a host that may still run.
fn in_use_on(store: &Store, node: &NodeId) -> BTreeSet<(PortProtocol, u32)> {
    let tasks = store.tasks_on_node(node).filter(|task| task.holds_addresses());
    tasks.flat_map(|task| task.host_ports().map(|port| (port.protocol(), port.published)).collect::<Vec<_>>()).collect()
}
