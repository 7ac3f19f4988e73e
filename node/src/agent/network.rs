//! What the cluster says of networks, as `overlay_net` takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use deploy::dispatcher::{self, AssignmentSet, EndpointInfo, NetworkInfo};
use deploy::model::{PortProtocol, ServiceId, Task, TaskId};
use overlay_net::kernel::{Links, NetNs};
use overlay_net::{
    Attachment, Desired, Endpoint, EndpointConfig, Network, PortMode, Protocol, PublishedPort, Service, ServicePort,
    Station,
};

/// Everything that this host must know of networks. What does not parse is left out: the store's allocator wrote it,
/// and one bad object must not take the others down. `serving_here` are the local tasks that others may be led to.
pub(super) fn desired(set: &AssignmentSet, revision: u64, serving_here: &BTreeSet<TaskId>) -> Desired {
    let networks = set.networks().filter_map(|info| network(set, info)).map(Arc::new).collect();
    let mut ports = ingress_ports(set);
    ports.extend(host_ports(set, serving_here));
    Desired { revision, networks, ports }
}

fn network(set: &AssignmentSet, info: &NetworkInfo) -> Option<Network> {
    let stations = set
        .stations()
        .filter(|station| station.network == info.id)
        .filter_map(|s| Some(Station { address: address(&s.address)?, host: s.data_path_addr.parse().ok()? }))
        .collect();
    let mut endpoints: BTreeMap<&ServiceId, Vec<Endpoint>> = BTreeMap::new();
    for info in set.endpoints().filter(|endpoint| endpoint.network == info.id) {
        if let Some(endpoint) = endpoint(info) {
            endpoints.entry(&info.service).or_default().push(endpoint);
        }
    }
    let services = set
        .services()
        .filter(|service| service.network == info.id)
        .map(|service| {
            Arc::new(Service {
                name: service.name.clone(),
                aliases: service.aliases.clone(),
                vip: address(&service.vip),
                endpoints: endpoints.remove(&service.id).unwrap_or_default(),
                ports: service.ports.iter().filter_map(service_port).collect(),
            })
        })
        .collect();
    Some(Network {
        id: info.id.to_string(),
        name: info.name.clone(),
        vni: info.vni,
        subnet: info.subnet.parse().ok()?,
        subnet6: info.subnet6.parse().ok(),
        gateway: info.gateway.parse().ok()?,
        internal: info.internal,
        ingress: info.ingress,
        host_address: address(&info.own_address),
        stations,
        services,
    })
}

fn endpoint(info: &EndpointInfo) -> Option<Endpoint> {
    Some(Endpoint {
        task: info.task.to_string(),
        name: info.names.first().cloned().unwrap_or_default(),
        address: address(&info.address)?,
        names: info.names.iter().skip(1).cloned().collect(),
        serving: info.serving,
    })
}

fn service_port(port: &dispatcher::ServicePort) -> Option<ServicePort> {
    let (protocol, target) = (protocol(port.protocol()), u16::try_from(port.target).ok()?);
    Some(ServicePort { name: port.name.clone(), protocol, target })
}

fn ingress_ports(set: &AssignmentSet) -> Vec<PublishedPort> {
    let ingress = set.networks().find(|network| network.ingress).map(|network| &network.id);
    let mut backends: BTreeMap<&ServiceId, Vec<Ipv4Addr>> = BTreeMap::new();
    for info in set.endpoints().filter(|e| e.serving && Some(&e.network) == ingress) {
        backends.entry(&info.service).or_default().extend(address(&info.address));
    }
    set.ports()
        .filter_map(|port| {
            Some(PublishedPort {
                published: u16::try_from(port.published).ok()?,
                target: u16::try_from(port.target).ok()?,
                protocol: protocol(port.protocol()),
                mode: PortMode::Ingress,
                backends: backends.get(&port.service).cloned().unwrap_or_default(),
                task: None,
            })
        })
        .collect()
}

fn host_ports(set: &AssignmentSet, serving_here: &BTreeSet<TaskId>) -> Vec<PublishedPort> {
    let tasks = set.tasks().map(|assignment| &assignment.task).filter(|task| serving_here.contains(&task.id));
    tasks
        .flat_map(|task| task.host_ports().map(move |port| (task, port)))
        .filter_map(|(task, port)| {
            Some(PublishedPort {
                published: u16::try_from(port.published).ok()?,
                target: u16::try_from(port.target).ok()?,
                protocol: protocol(port.protocol()),
                mode: PortMode::Host,
                backends: Vec::new(),
                task: Some(task.id.to_string()),
            })
        })
        .collect()
}

/// Whether one of these addresses is another task's by now.
pub(super) fn is_given(desired: Option<&Desired>, task: &str, attachments: &[Attachment]) -> bool {
    let networks = desired.into_iter().flat_map(|desired| &desired.networks);
    networks.flat_map(|network| network.services.iter().map(move |service| (network, service))).any(
        |(network, service)| {
            let held = |endpoint: &Endpoint| {
                attachments.iter().any(|a| a.network == network.id && a.address == endpoint.address)
                    && endpoint.task != task
            };
            service.endpoints.iter().any(held)
        },
    )
}

/// How a task is to be connected.
pub(super) fn endpoint_config(task: &Task, hostname: &str) -> EndpointConfig {
    let attachments = task
        .attachments
        .iter()
        .filter_map(|attachment| {
            Some(Attachment {
                network: attachment.network.to_string(),
                address: address(&attachment.address)?,
                aliases: attachment.aliases.clone(),
            })
        })
        .collect();
    let dns = task.spec.container.dns.clone().unwrap_or_default();
    EndpointConfig {
        task: task.id.to_string(),
        hostname: hostname.to_owned(),
        attachments,
        dns_search: dns.search,
        dns_servers: dns.nameservers.iter().filter_map(|server| server.parse().ok()).collect(),
    }
}

/// Sets up the loopback of a task that is on no network.
pub(super) async fn loopback_alone(netns: OwnedFd) -> Result<(), String> {
    let set_up = || Links::open(&NetNs::from_fd(netns)?)?.set_up("lo");
    let done = tokio::task::spawn_blocking(set_up).await.map_err(|e| e.to_string())?;
    done.map_err(|error| format!("set up the task's loopback: {error}"))
}

/// The address of `10.0.3.3/24`.
fn address(cidr: &str) -> Option<Ipv4Addr> {
    cidr.split('/').next()?.parse().ok()
}

fn protocol(protocol: PortProtocol) -> Protocol {
    match protocol {
        PortProtocol::Tcp => Protocol::Tcp,
        PortProtocol::Udp => Protocol::Udp,
        PortProtocol::Sctp => Protocol::Sctp,
    }
}

#[cfg(test)]
mod tests {
    use deploy::dispatcher::{Body, Delta, ServiceInfo};
    use deploy::model::NetworkId;

    use super::*;

    #[test]
    fn an_address_is_given_when_another_task_has_it() {
        let id = NetworkId::new("net");
        let (subnet, gateway) = ("10.0.1.0/24".to_owned(), "10.0.1.1".to_owned());
        let network = NetworkInfo { id: id.clone(), subnet, gateway, ..NetworkInfo::default() };
        let service = ServiceInfo { network: id.clone(), id: ServiceId::new("web"), ..ServiceInfo::default() };
        let endpoint = |task: &str, address: &str| EndpointInfo {
            network: id.clone(),
            task: TaskId::new(task),
            service: ServiceId::new("web"),
            address: address.to_owned(),
            ..EndpointInfo::default()
        };
        let put = [
            Body::Network(network),
            Body::Service(service),
            Body::Endpoint(endpoint("a", "10.0.1.5/24")),
            Body::Endpoint(endpoint("b", "10.0.1.6/24")),
        ];
        let mut set = AssignmentSet::default();
        set.apply(Delta { put: put.map(Into::into).to_vec(), remove: Vec::new() });
        let desired = desired(&set, 7, &BTreeSet::new());
        let check = |network: &str, last: u8, expected| {
            let at =
                Attachment { network: network.into(), address: Ipv4Addr::new(10, 0, 1, last), aliases: Vec::new() };
            assert_eq!(is_given(Some(&desired), "a", &[at]), expected, "{network} {last}");
        };
        check("net", 5, false);
        check("net", 6, true);
        check("net", 7, false);
        check("other", 6, false);
        assert!(!is_given(None, "a", &[]));
    }
}
