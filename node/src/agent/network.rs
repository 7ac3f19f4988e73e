//! What the cluster says of networks, as `overlay_net` takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use deploy::dispatcher::{self, AssignmentSet, Body, EndpointInfo, NetworkInfo};
use deploy::model::{NetworkId, NodeId, PortProtocol, SealingKey, ServiceId, Task, TaskId};
use overlay_net::kernel::{Links, NetNs};
use overlay_net::{
    Attachment, Desired, Endpoint, EndpointConfig, Network, PortMode, Protocol, PublishedPort, Sealing, Service,
    ServicePort, Station,
};

/// The networks of this host, made of its assignment set and kept up to date by what changes of it: what is not touched
/// stays the same value in memory. What does not parse is left out: the store's allocator wrote it, and one bad object
/// must not take the others down.
#[derive(Default)]
pub struct Networks {
    /// What they are made of.
    set: AssignmentSet,
    known: BTreeMap<NetworkId, OnNetwork>,
}

/// What is told of a network.
#[derive(Default)]
struct OnNetwork {
    /// Without stations and services; nothing before it is told.
    frame: Option<Network>,
    /// In order.
    stations: Vec<Station>,
    services: BTreeMap<ServiceId, OfService>,
    built: Option<Arc<Network>>,
}

/// A service, and its endpoints in the order of their tasks.
struct OfService {
    /// It is told of itself, and not only its endpoints.
    told: bool,
    service: Arc<Service>,
}

impl Networks {
    /// Everything that this host must know of networks. `serving_here` are the local tasks that others may be led to.
    pub fn desired(&mut self, set: &AssignmentSet, revision: u64, serving_here: &BTreeSet<TaskId>) -> Desired {
        let before = std::mem::replace(&mut self.set, set.clone());
        for (old, new) in before.changes(set) {
            if let Some(body) = old.and_then(|item| item.body.as_ref()) {
                self.forget(body);
            }
            if let Some(body) = new.and_then(|item| item.body.as_ref()) {
                self.take(body);
            }
        }
        self.known.retain(|_, network| !network.is_empty());
        let networks = self.known.values_mut().filter_map(OnNetwork::network).collect();
        let mut ports = self.ingress_ports(set);
        ports.extend(host_ports(set, serving_here));
        let sealing = self.sealing(set);
        Desired { revision, networks, ports, sealing, taken: Vec::new() }
    }

    /// What encrypted networks are encrypted with: the keys of the hosts that have somebody on one of them, and of no
    /// other ones. A host says itself where it is reached; what it says leads nowhere unless it has been given a task there.
    fn sealing(&self, set: &AssignmentSet) -> Option<Sealing> {
        let is_encrypted = |known: &OnNetwork| known.frame.as_ref().is_some_and(|frame| frame.encrypted);
        let encrypted = self.known.iter().filter(|(_, known)| is_encrypted(known)).map(|(id, _)| id);
        let encrypted: BTreeSet<&NetworkId> = encrypted.collect();
        if encrypted.is_empty() {
            return None;
        }
        // Nobody can seal anything without it, and nothing leaves unsealed.
        let epoch = set.sealing().next().map_or(0, |sealing| sealing.epoch);
        let on_them = set.stations().filter(|station| encrypted.contains(&station.network));
        let hosts: BTreeSet<(&NodeId, &str)> = on_them.map(|s| (&s.node, s.data_path_addr.as_str())).collect();
        let key = |key: &SealingKey| {
            let bytes = key.key.as_slice().try_into().ok()?;
            Some(overlay_net::SealingKey { epoch: key.epoch, key: bytes })
        };
        let mut peers: BTreeMap<Ipv4Addr, Vec<overlay_net::SealingKey>> = BTreeMap::new();
        let mut unclear = BTreeSet::new();
        for peer in set.peers().filter(|peer| hosts.contains(&(&peer.id, peer.data_path_addr.as_str()))) {
            let Ok(address) = peer.data_path_addr.parse() else { continue };
            // Who of two hosts with one address is meant cannot be known.
            if peers.insert(address, peer.sealing_keys.iter().filter_map(key).collect()).is_some() {
                unclear.insert(address);
            }
        }
        peers.retain(|address, _| !unclear.contains(address));
        Some(Sealing { epoch, peers })
    }

    fn changed(&mut self, network: &NetworkId) -> &mut OnNetwork {
        let known = self.known.entry(network.clone()).or_default();
        known.built = None;
        known
    }

    fn forget(&mut self, body: &Body) {
        match body {
            Body::Network(info) => self.changed(&info.id).frame = None,
            Body::Station(info) => {
                let stations = &mut self.changed(&info.network).stations;
                if let Some(place) = station(info).and_then(|station| stations.binary_search(&station).ok()) {
                    stations.remove(place);
                }
            }
            Body::Service(info) => self.changed(&info.network).service(&info.id).told = false,
            Body::Endpoint(info) => {
                let service = self.changed(&info.network).service(&service_of(info));
                if let Ok(place) = service.place(&info.task) {
                    Arc::make_mut(&mut service.service).endpoints.remove(place);
                }
                if info.service.is_none() {
                    service.told = false;
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, body: &Body) {
        match body {
            Body::Network(info) => {
                self.changed(&info.id).frame = frame(info);
            }
            Body::Station(info) => {
                if let Some(station) = station(info) {
                    let stations = &mut self.changed(&info.network).stations;
                    let place = stations.partition_point(|other| *other < station);
                    stations.insert(place, station);
                }
            }
            Body::Service(info) => {
                let known = self.changed(&info.network).service(&info.id);
                known.told = true;
                let service = Arc::make_mut(&mut known.service);
                service.name.clone_from(&info.name);
                service.aliases.clone_from(&info.aliases);
                service.vip = address(&info.vip);
                service.ports = info.ports.iter().filter_map(service_port).collect();
            }
            Body::Endpoint(info) => {
                let known = self.changed(&info.network).service(&service_of(info));
                if info.service.is_none() {
                    // What it is called are a container's names, which come behind those of services.
                    known.told = true;
                    let short_id = info.names.last().cloned().unwrap_or_default();
                    Arc::make_mut(&mut known.service).name = short_id;
                }
                if let (Some(endpoint), Err(place)) = (endpoint(info), known.place(&info.task)) {
                    Arc::make_mut(&mut known.service).endpoints.insert(place, endpoint);
                }
            }
            _ => {}
        }
    }

    fn ingress_ports(&self, set: &AssignmentSet) -> Vec<PublishedPort> {
        let is_ingress = |known: &&OnNetwork| known.frame.as_ref().is_some_and(|frame| frame.ingress);
        let ingress = self.known.values().find(is_ingress);
        let own: BTreeSet<&str> = set.tasks().map(|assignment| assignment.task.id.as_str()).collect();
        let backends = |service: &ServiceId, local: bool| {
            let known = ingress.and_then(|network| network.services.get(service));
            let endpoints = known.into_iter().flat_map(|known| &known.service.endpoints);
            let leads = |e: &&Endpoint| e.serving && (!local || own.contains(e.task.as_str()));
            endpoints.filter(leads).map(|endpoint| endpoint.address).collect()
        };
        set.ports()
            .filter_map(|port| {
                Some(PublishedPort {
                    published: u16::try_from(port.published).ok()?,
                    target: u16::try_from(port.target).ok()?,
                    protocol: protocol(port.protocol()),
                    mode: PortMode::Ingress,
                    backends: backends(&port.service, port.local),
                    task: None,
                })
            })
            .collect()
    }
}

impl OnNetwork {
    fn service(&mut self, id: &ServiceId) -> &mut OfService {
        self.services.entry(id.clone()).or_insert_with(|| {
            let nothing = (String::new(), Vec::new(), Vec::new(), Vec::new());
            let (name, aliases, endpoints, ports) = nothing;
            OfService { told: false, service: Arc::new(Service { name, aliases, vip: None, endpoints, ports }) }
        })
    }

    /// As the overlay takes it.
    fn network(&mut self) -> Option<Arc<Network>> {
        if self.built.is_none() {
            self.services.retain(|_, known| known.told || !known.service.endpoints.is_empty());
            let mut network = self.frame.clone()?;
            network.stations.clone_from(&self.stations);
            let told = self.services.values().filter(|known| known.told);
            network.services = told.map(|known| Arc::clone(&known.service)).collect();
            self.built = Some(Arc::new(network));
        }
        self.built.clone()
    }

    /// Nothing of it is told any more.
    fn is_empty(&self) -> bool {
        let nothing = |known: &OfService| !known.told && known.service.endpoints.is_empty();
        self.frame.is_none() && self.stations.is_empty() && self.services.values().all(nothing)
    }
}

impl OfService {
    /// Where the endpoint of a task is, or would be.
    fn place(&self, task: &TaskId) -> Result<usize, usize> {
        self.service.endpoints.binary_search_by(|endpoint| endpoint.task.as_str().cmp(task.as_str()))
    }
}

/// A plain container has no service, and is one of its own.
fn service_of(info: &EndpointInfo) -> ServiceId {
    if info.service.is_none() { ServiceId::new(info.task.to_string()) } else { info.service.clone() }
}

/// A network without stations and services.
fn frame(info: &NetworkInfo) -> Option<Network> {
    let encrypted = !info.sealed_subnet.is_empty();
    Some(Network {
        id: info.id.to_string(),
        name: info.name.clone(),
        vni: info.vni,
        subnet: if encrypted { &info.sealed_subnet } else { &info.subnet }.parse().ok()?,
        subnet6: info.subnet6.parse().ok(),
        gateway: info.gateway.parse().ok()?,
        internal: info.internal,
        ingress: info.ingress,
        local: info.local,
        mtu: Some(info.mtu).filter(|mtu| *mtu > 0),
        encrypted,
        host_address: address(&info.own_address),
        stations: Vec::new(),
        services: Vec::new(),
    })
}

fn station(info: &dispatcher::Station) -> Option<Station> {
    Some(Station { address: address(&info.address)?, host: info.data_path_addr.parse().ok()? })
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

fn host_ports(set: &AssignmentSet, serving_here: &BTreeSet<TaskId>) -> Vec<PublishedPort> {
    let tasks = set.tasks().map(|assignment| &assignment.task).filter(|task| serving_here.contains(&task.id));
    tasks.flat_map(ports_of).collect()
}

/// The ports on its host that a task has.
pub(super) fn ports_of(task: &Task) -> impl Iterator<Item = PublishedPort> {
    task.host_ports().filter_map(|port| {
        Some(PublishedPort {
            published: u16::try_from(port.published).ok()?,
            target: u16::try_from(port.target).ok()?,
            protocol: protocol(port.protocol()),
            mode: PortMode::Host,
            backends: Vec::new(),
            task: Some(task.id.to_string()),
        })
    })
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
    use deploy::dispatcher::{Delta, Item, PublishedPort as Port, SealingInfo, ServiceInfo};
    use deploy::model::NodeId;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_local_port_leads_to_the_tasks_of_this_host_alone() {
        let (id, service) = (NetworkId::new("mesh"), ServiceId::new("web"));
        let (subnet, gateway) = ("10.0.0.0/24".to_owned(), "10.0.0.1".to_owned());
        let network = NetworkInfo { id: id.clone(), subnet, gateway, ingress: true, ..NetworkInfo::default() };
        let endpoint = |task: &str, last: u8| EndpointInfo {
            network: id.clone(),
            task: TaskId::new(task),
            service: service.clone(),
            address: format!("10.0.0.{last}/24"),
            serving: true,
            ..EndpointInfo::default()
        };
        let port = |published, local| {
            let service = service.clone();
            Body::Port(dispatcher::PublishedPort { protocol: 0, published, target: 80, service, local })
        };
        let own = Task { id: TaskId::new("own"), ..Task::default() };
        let put = [
            Body::Network(network),
            Body::Endpoint(endpoint("own", 5)),
            Body::Endpoint(endpoint("other", 6)),
            port(8080, false),
            port(8081, true),
            Body::Task(Box::new(dispatcher::Assignment { task: own, ..dispatcher::Assignment::default() })),
        ];
        let mut set = AssignmentSet::default();
        set.apply(Delta { put: put.map(Into::into).to_vec(), remove: Vec::new() });
        let backends: BTreeMap<u16, Vec<u8>> = Networks::default()
            .desired(&set, 7, &BTreeSet::new())
            .ports
            .iter()
            .map(|port| (port.published, port.backends.iter().map(|address| address.octets()[3]).collect()))
            .collect();
        assert_eq!(backends, BTreeMap::from([(8080, vec![6, 5]), (8081, vec![5])]));
    }

    #[test]
    fn a_network_is_made_for_an_mtu_only_if_somebody_said_so() {
        let mut info = NetworkInfo { subnet: "10.0.1.0/24".into(), gateway: "10.0.1.1".into(), ..Default::default() };
        assert_eq!(frame(&info).unwrap().mtu, None);
        info.mtu = 1400;
        assert_eq!(frame(&info).unwrap().mtu, Some(1400));
    }

    #[test]
    fn hosts_on_encrypted_networks_are_known_by_their_keys() {
        let network = |id: &str, encrypted: bool| {
            let (id, gateway) = (NetworkId::new(id), "10.0.1.1".to_owned());
            let (mut subnet, mut sealed_subnet) = ("10.0.1.0/24".to_owned(), String::new());
            if encrypted {
                std::mem::swap(&mut subnet, &mut sealed_subnet);
            }
            Body::Network(NetworkInfo { id, subnet, sealed_subnet, gateway, ..NetworkInfo::default() })
        };
        let station = |id: &str, last: u8, node: &str, host: &str| {
            let (network, address, node) = (NetworkId::new(id), format!("10.0.1.{last}/24"), NodeId::new(node));
            Body::Station(dispatcher::Station { network, address, node, data_path_addr: host.to_owned() })
        };
        let peer = |id: &str, host: &str, byte: u8| {
            let sealing_keys =
                vec![SealingKey { epoch: 7, key: vec![byte; 32] }, SealingKey { epoch: 8, key: vec![byte] }];
            let (id, data_path_addr) = (NodeId::new(id), host.to_owned());
            Body::Peer(dispatcher::Peer { id, data_path_addr, sealing_keys, ..dispatcher::Peer::default() })
        };
        let known = |more: &[Body]| {
            let put = [
                Body::Sealing(SealingInfo { epoch: 7 }),
                network("quiet", true),
                network("plain", false),
                station("quiet", 5, "a", "192.0.2.1"),
                station("plain", 5, "b", "192.0.2.2"),
                peer("a", "192.0.2.1", 1),
                peer("b", "192.0.2.2", 2),
            ];
            let mut set = AssignmentSet::default();
            let put = put.iter().chain(more).cloned().map(Into::into).collect();
            set.apply(Delta { put, remove: Vec::new() });
            let desired = Networks::default().desired(&set, 7, &BTreeSet::new());
            assert!(desired.network("quiet").unwrap().encrypted && !desired.network("plain").unwrap().encrypted);
            desired.sealing.unwrap()
        };
        let keys = vec![overlay_net::SealingKey { epoch: 7, key: [1; 32] }];
        let first = Sealing { epoch: 7, peers: BTreeMap::from([(Ipv4Addr::new(192, 0, 2, 1), keys)]) };
        assert_eq!(known(&[]), first);
        // Another host says that it is there, too. Without a task on the network it is nobody.
        assert_eq!(known(&[peer("z", "192.0.2.1", 9)]), first);
        assert_eq!(known(&[peer("z", "192.0.2.1", 9), station("plain", 9, "z", "192.0.2.1")]), first);
        // With one, nobody is sure to be the right one.
        let both = known(&[peer("z", "192.0.2.1", 9), station("quiet", 9, "z", "192.0.2.1")]);
        assert_eq!(both, Sealing { epoch: 7, peers: BTreeMap::new() });
    }

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
        let desired = Networks::default().desired(&set, 7, &BTreeSet::new());
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

    #[test]
    fn a_plain_container_is_a_service_of_its_own() {
        let id = NetworkId::new("net");
        let (subnet, gateway) = ("10.0.1.0/24".to_owned(), "10.0.1.1".to_owned());
        let network = NetworkInfo { id: id.clone(), subnet, gateway, ..NetworkInfo::default() };
        let endpoint = EndpointInfo {
            network: id,
            task: TaskId::new("place"),
            address: "10.0.1.5/24".into(),
            names: ["box", "db", "0123456789ab"].map(str::to_owned).to_vec(),
            serving: true,
            ..EndpointInfo::default()
        };
        let mut set = AssignmentSet::default();
        let put = vec![Body::Network(network).into(), Body::Endpoint(endpoint).into()];
        set.apply(Delta { put, remove: Vec::new() });
        let desired = Networks::default().desired(&set, 7, &BTreeSet::new());
        let [service] = &desired.networks[0].services[..] else { panic!("{desired:?}") };
        assert_eq!(
            (service.name.as_str(), &service.aliases[..]),
            ("0123456789ab", &[][..]),
            "names come behind services'"
        );
        let [endpoint] = &service.endpoints[..] else { panic!("{service:?}") };
        let names = ["db", "0123456789ab"].map(str::to_owned);
        assert_eq!((endpoint.task.as_str(), endpoint.name.as_str(), &endpoint.names[..]), ("place", "box", &names[..]));
    }

    /// One of the items that could be told: of two networks, one of them the ingress network, with few ids.
    fn item() -> impl Strategy<Value = Item> {
        let network = |n: u8| NetworkId::new(format!("net{n}"));
        let service = |s: u8| ServiceId::new(format!("s{s}"));
        let at = |net: u8, last: u8| format!("10.0.{net}.{last}/24");
        (0u8..7, 0u8..2, 0u8..4, 2u8..12, any::<bool>()).prop_map(move |(kind, net, of, last, flag)| match kind {
            0 => Body::Network(NetworkInfo {
                id: network(net),
                subnet: if flag || of > 0 { format!("10.0.{net}.0/24") } else { "nonsense".into() },
                gateway: at(net, 1).replace("/24", ""),
                ingress: net == 0,
                vni: 5 + u32::from(net),
                ..NetworkInfo::default()
            })
            .into(),
            1 => Body::Station(dispatcher::Station {
                network: network(net),
                address: at(net, last),
                node: NodeId::new("node"),
                data_path_addr: if flag { format!("192.168.0.{of}") } else { String::new() },
            })
            .into(),
            2 => Body::Service(ServiceInfo {
                network: network(net),
                id: service(of),
                name: format!("name{of}{flag}"),
                vip: at(net, 200 + of),
                ..ServiceInfo::default()
            })
            .into(),
            3 => Body::Port(Port { published: u32::from(last), target: 80, service: service(of), ..Port::default() })
                .into(),
            6 => Body::Endpoint(EndpointInfo {
                network: network(net),
                task: TaskId::new(format!("t{last}")),
                address: at(net, last + of),
                names: vec![format!("name{of}"), format!("{last}")],
                serving: flag,
                ..EndpointInfo::default()
            })
            .into(),
            _ => Body::Endpoint(EndpointInfo {
                network: network(net),
                task: TaskId::new(format!("t{last}")),
                service: service(of),
                address: if last == 11 { "nowhere".into() } else { at(net, last + of) },
                serving: flag,
                ..EndpointInfo::default()
            })
            .into(),
        })
    }

    proptest! {
        #[test]
        fn changes_lead_where_a_new_beginning_would(
            steps in proptest::collection::vec(
                (proptest::collection::vec(item(), 0..12), proptest::collection::vec(item(), 0..8), 0u8..8), 1..8,
            ),
        ) {
            let (mut set, mut networks) = (AssignmentSet::default(), Networks::default());
            for (put, remove, whole) in steps {
                if whole == 0 {
                    set = AssignmentSet::default();
                }
                set.apply(Delta { put, remove: remove.iter().filter_map(Item::key).collect() });
                let desired = networks.desired(&set, 7, &BTreeSet::new());
                prop_assert_eq!(&desired, &Networks::default().desired(&set, 7, &BTreeSet::new()));
                let again = networks.desired(&set, 7, &BTreeSet::new());
                prop_assert!(desired.networks.iter().zip(&again.networks).all(|(one, other)| Arc::ptr_eq(one, other)));
            }
        }
    }
}
