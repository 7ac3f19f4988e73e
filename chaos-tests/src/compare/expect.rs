//! What the managers' store means for the kernel and the names of each host. Computed here from the objects alone: not by
//! what hosts are told, nor by what their daemons make of it, which could be wrong in the same way.
//!
//! For a cluster at rest: every task either runs and is to run, or has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use deploy::model::{
    DesiredState, EndpointMode, Network, NetworkId, Node, NodeId, NodeState, PublishMode, Service, Task, TaskState,
    UpdateState,
};
use deploy::store::Store;

/// What must be on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Host {
    /// By VNI.
    pub(super) networks: BTreeMap<u32, Carried>,
    /// By task id.
    pub(super) tasks: BTreeMap<String, Inside>,
    /// Published in the mesh: protocol and port, to the port in the tasks and their addresses.
    pub(super) ports: BTreeMap<(String, u16), (u16, BTreeSet<Ipv4Addr>)>,
}

/// A network on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Where the addresses of other hosts are.
    pub(super) remote: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// The host's own address on it.
    pub(super) own: Option<Ipv4Addr>,
}

/// The inside of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Inside {
    /// Its process.
    pub(super) pid: u64,
    /// Its addresses on networks of the cluster.
    pub(super) addresses: BTreeSet<Ipv4Addr>,
    /// Where virtual addresses lead; to nobody where nobody serves.
    pub(super) vips: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>>,
    /// Names, each with its network's behind it.
    pub(super) names: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// Why a cluster is not at rest; nothing if it is.
pub(super) fn unrest(store: &Store, hosts: usize) -> Option<String> {
    let ready = store.nodes().filter(|node| node.status.state() == NodeState::Ready).count();
    if ready != hosts || store.nodes().count() != hosts {
        return Some(format!("{ready} of {} nodes are ready", store.nodes().count()));
    }
    for service in store.services() {
        let running = store.tasks_of_service(&service.id).filter(|task| runs(task)).count();
        let wanted = service.spec.replicas().map_or(hosts, |replicas| usize::try_from(replicas).unwrap_or(usize::MAX));
        if running != wanted {
            return Some(format!("{running} of {wanted} tasks of {} run", service.spec.name));
        }
        let under_way = [UpdateState::Updating, UpdateState::RollbackStarted];
        if service.update_status.as_ref().is_some_and(|status| under_way.contains(&status.state())) {
            return Some(format!("{} is being updated", service.spec.name));
        }
    }
    let moving = store.tasks().find(|task| !runs(task) && !ended(task))?;
    Some(format!("task {} is {:?} and to be {:?}", moving.id, moving.status.state(), moving.desired()))
}

fn runs(task: &Task) -> bool {
    task.status.state() == TaskState::Running && task.desired() == DesiredState::Running
}

fn ended(task: &Task) -> bool {
    task.status.state() > TaskState::Running
}

fn address(text: &str) -> Option<Ipv4Addr> {
    text.split('/').next()?.parse().ok()
}

/// The task's address on a network.
fn on(task: &Task, network: &NetworkId) -> Option<Ipv4Addr> {
    address(&task.attachments.iter().find(|attachment| attachment.network == *network)?.address)
}

fn data_path(store: &Store, node: &NodeId) -> Option<Ipv4Addr> {
    store.node(node)?.description.data_path_addr.parse().ok()
}

/// What must be on a host.
pub(super) fn host(store: &Store, node: &Node) -> Host {
    let mut host = Host::default();
    let own: Vec<&Task> =
        store.tasks().filter(|task| runs(task) && task.node_id == node.id).map(|task| &**task).collect();
    let carries = |network: &Network| network.spec.ingress || own.iter().any(|task| on(task, &network.id).is_some());
    for network in store.networks().filter(|network| carries(network)) {
        let Some(allocation) = &network.allocation else { continue };
        host.networks.insert(allocation.vni, carried(store, node, network));
    }
    for task in own {
        host.tasks.insert(task.id.to_string(), inside(store, task));
    }
    if let Some(ingress) = store.networks().find(|network| network.spec.ingress) {
        for service in store.services() {
            let serving: BTreeSet<Ipv4Addr> = tasks(store, service).filter_map(|task| on(task, &ingress.id)).collect();
            for port in service.endpoint.ports.iter().filter(|port| port.mode() == PublishMode::Ingress) {
                let protocol = format!("{:?}", port.protocol()).to_ascii_lowercase();
                let (Ok(published), Ok(target)) = (u16::try_from(port.published), u16::try_from(port.target)) else {
                    continue;
                };
                if !serving.is_empty() {
                    host.ports.insert((protocol, published), (target, serving.clone()));
                }
            }
        }
    }
    host
}

/// The tasks of a service that run.
fn tasks<'a>(store: &'a Store, service: &Service) -> impl Iterator<Item = &'a Task> {
    let id = service.id.clone();
    store.tasks().filter(move |task| task.service_id == id && runs(task)).map(|task| &**task)
}

fn carried(store: &Store, node: &Node, network: &Network) -> Carried {
    let mut carried = Carried::default();
    for task in store.tasks().filter(|task| runs(task) && task.node_id != node.id) {
        if let (Some(address), Some(host)) = (on(task, &network.id), data_path(store, &task.node_id)) {
            carried.remote.insert(address, host);
        }
    }
    for other in store.nodes() {
        for attachment in other.attachments.iter().filter(|attachment| attachment.network == network.id) {
            let Some(address) = address(&attachment.address) else { continue };
            if other.id == node.id {
                carried.own = Some(address);
            } else if let Some(host) = data_path(store, &other.id) {
                carried.remote.insert(address, host);
            }
        }
    }
    carried
}

fn inside(store: &Store, task: &Task) -> Inside {
    let pid = task.status.container.as_ref().map_or(0, |container| container.pid);
    let mut inside = Inside { pid: u64::from(pid), ..Inside::default() };
    for attachment in &task.attachments {
        inside.addresses.extend(address(&attachment.address));
        let Some(network) = store.network(&attachment.network) else { continue };
        for service in store.services() {
            let on_it: Vec<&Task> = tasks(store, service).filter(|task| on(task, &network.id).is_some()).collect();
            let serving: BTreeSet<Ipv4Addr> = on_it.iter().filter_map(|task| on(task, &network.id)).collect();
            let by_vip = service.spec.endpoint_spec().mode() == EndpointMode::Vip;
            let vip = service.endpoint.virtual_ips.iter().find(|vip| by_vip && vip.network == network.id);
            let vip = vip.and_then(|vip| address(&vip.address));
            if let Some(vip) = vip {
                inside.vips.insert(vip, serving.clone());
            }
            let wants = service.spec.task.networks.iter().any(|wish| wish.target == network.id.as_str());
            if network.spec.ingress || !wants {
                continue;
            }
            let all: BTreeSet<IpAddr> = serving.iter().copied().map(IpAddr::from).collect();
            let (name, below) = (&service.spec.name, &network.spec.name);
            let whole = vip.map_or_else(|| all.clone(), |vip| [IpAddr::from(vip)].into());
            inside.names.insert(format!("{name}.{below}"), whole);
            inside.names.insert(format!("tasks.{name}.{below}"), all);
            for other in on_it {
                let own = on(other, &network.id).into_iter().map(IpAddr::from).collect();
                let slot = if other.slot > 0 { other.slot.to_string() } else { other.node_id.to_string() };
                inside.names.insert(format!("{name}.{slot}.{}.{below}", other.id), own);
            }
        }
    }
    inside
}

/// Who has the same address of a network as somebody else, by all objects that can hold one. Also for a cluster that is
/// not at rest: a task holds its addresses until it has ended.
pub(super) fn held_twice(store: &Store) -> Vec<String> {
    let mut holders: BTreeMap<(String, Ipv4Addr), Vec<String>> = BTreeMap::new();
    let mut hold = |network: &NetworkId, text: &str, who: String| {
        if let Some(address) = address(text) {
            holders.entry((network.to_string(), address)).or_default().push(who);
        }
    };
    for network in store.networks() {
        if let Some(allocation) = &network.allocation {
            hold(&network.id, &allocation.gateway, "the gateway".into());
        }
    }
    for service in store.services() {
        for vip in &service.endpoint.virtual_ips {
            hold(&vip.network, &vip.address, format!("service {}", service.spec.name));
        }
    }
    for node in store.nodes() {
        for attachment in &node.attachments {
            hold(&attachment.network, &attachment.address, format!("node {}", node.id));
        }
    }
    for task in store.tasks().filter(|task| !ended(task)) {
        for attachment in &task.attachments {
            hold(&attachment.network, &attachment.address, format!("task {} ({:?})", task.id, task.status.state()));
        }
    }
    let twice = holders.into_iter().filter(|(_, holders)| holders.len() > 1);
    twice
        .map(|((network, address), holders)| format!("{address} of {network} is held by {}", holders.join(" and ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use deploy::model::{NetworkAllocation, NetworkAttachment};

    use super::*;
    use crate::check::testing::{changed, node, service, task};

    fn on_network(id: &str, node: &str, address: &str, state: TaskState) -> Task {
        let mut task = task(id, "web", node);
        task.status.set_state(state);
        let network = NetworkId::new("n");
        task.attachments = vec![NetworkAttachment { network, address: address.to_owned(), ..Default::default() }];
        task
    }

    /// Service web on network back, with a task on each of two hosts, and one that has ended.
    fn store() -> Store {
        changed(&Store::default(), |txn| {
            for (id, last) in [("a", 1), ("b", 2)] {
                let mut host = node(id);
                host.description.data_path_addr = format!("192.168.0.{last}");
                txn.put_node(host);
            }
            let allocation = NetworkAllocation { vni: 7, gateway: "10.0.0.1".into(), ..Default::default() };
            let mut network = Network { id: NetworkId::new("n"), allocation: Some(allocation), ..Network::default() };
            network.spec.name = "back".into();
            txn.put_network(network);
            let mut web = service("web");
            web.spec.task.networks =
                vec![deploy::model::NetworkAttachmentConfig { target: "n".into(), ..Default::default() }];
            web.endpoint.virtual_ips = vec![deploy::model::VirtualIp {
                network: NetworkId::new("n"),
                address: "10.0.0.2/24".into(),
                ..Default::default()
            }];
            txn.put_service(web);
            txn.put_task(on_network("t1", "a", "10.0.0.3/24", TaskState::Running));
            txn.put_task(on_network("t2", "b", "10.0.0.4/24", TaskState::Running));
            txn.put_task(on_network("t3", "b", "10.0.0.4/24", TaskState::Shutdown));
        })
    }

    #[test]
    fn the_store_means_links_entries_addresses_and_names() {
        let store = store();
        let (three, four) = (Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 4));
        let host = host(&store, store.node(&NodeId::new("a")).unwrap());
        assert_eq!(host.networks[&7].remote, [(four, Ipv4Addr::new(192, 168, 0, 2))].into());
        assert_eq!(host.tasks.keys().collect::<Vec<_>>(), ["t1"]);
        let inside = &host.tasks["t1"];
        assert_eq!(inside.addresses, [three].into());
        assert_eq!(inside.vips, [(Ipv4Addr::new(10, 0, 0, 2), [three, four].into())].into());
        assert_eq!(inside.names["web.back"], [IpAddr::from([10, 0, 0, 2])].into());
        assert_eq!(inside.names["tasks.web.back"], [three.into(), four.into()].into());
        assert_eq!(held_twice(&store), Vec::<String>::new(), "who has ended holds nothing");
        let twice = changed(&store, |txn| txn.put_task(on_network("t4", "a", "10.0.0.4/24", TaskState::Preparing)));
        assert_eq!(held_twice(&twice).len(), 1);
    }
}
