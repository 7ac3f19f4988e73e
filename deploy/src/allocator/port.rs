//! Published ports.

use crate::model::{PortConfig, PortProtocol, PublishMode, Service, ServiceId};
use crate::store::{Store, port_satisfies};

/// Where ports come from when the user left the number open; Docker's range.
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
            // In host mode an open number is the host's to choose.
            ports.push(port);
        } else if port.published != 0 {
            match store.published_port_owner(port.protocol(), port.published).filter(|owner| owner.id != service.id) {
                None => ports.push(port),
                Some(owner) => {
                    problem = Some(format!(
                        "port '{}' is already in use by service '{}' ({}) as an ingress port",
                        port.published, owner.spec.name, owner.id
                    ));
                }
            }
        } else {
            let protocol = port.protocol();
            let free = |number: &u32| {
                let here = |other: &PortConfig| other.protocol() == protocol && other.published == *number;
                !ports.iter().any(here)
                    && !named.contains(&(protocol, *number))
                    && is_free(store, &service.id, protocol, *number)
                    && !host_mode_uses(store, protocol, *number)
            };
            match (FIRST_PORT..=LAST_PORT).find(free) {
                Some(published) => ports.push(PortConfig { published, ..port }),
                None => problem = Some(format!("no port is free between {FIRST_PORT} and {LAST_PORT}")),
            }
        }
    }
    (ports, problem)
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
