//! Which hosts must be told something new after a change, without computing everybody's set.

use std::collections::BTreeSet;

use super::assignment::{networks_of_host, peer, sealing_epoch, short_id};
use crate::model::{NetworkId, NodeId, PayloadReference, RegistryId, Task};
use crate::store::{Key, Store};

/// Hosts whose assignment set may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affected {
    /// Every host.
    All,
    /// These.
    Nodes(BTreeSet<NodeId>),
}

impl Affected {
    /// Whether the host's set may differ.
    pub fn includes(&self, node: &NodeId) -> bool {
        match self {
            Affected::All => true,
            Affected::Nodes(nodes) => nodes.contains(node),
        }
    }
}

/// How far changes reach: to these hosts, and to those that take part in these networks.
struct Reach {
    nodes: BTreeSet<NodeId>,
    networks: BTreeSet<NetworkId>,
}

impl Reach {
    /// Whether a host takes part in one of the networks, before or after.
    fn includes(&self, before: &Store, after: &Store, node: &NodeId) -> bool {
        let takes_part = |s: &Store| !networks_of_host(s, node).is_disjoint(&self.networks);
        self.nodes.contains(node) || !self.networks.is_empty() && (takes_part(before) || takes_part(after))
    }
}

/// Hosts that the changes of `keys` between two states of the store may concern. It may name too many, never too few.
/// Looks at every host; [`affects`] asks for one.
pub fn affected<'a>(before: &Store, after: &Store, keys: impl IntoIterator<Item = &'a Key>) -> Affected {
    let Some(reach) = reach(before, after, keys) else { return Affected::All };
    let hosts = after.nodes().map(|n| &n.id).filter(|id| reach.includes(before, after, id));
    let mut nodes: BTreeSet<NodeId> = hosts.cloned().collect();
    nodes.extend(reach.nodes);
    nodes.remove(&NodeId::default());
    Affected::Nodes(nodes)
}

/// Whether the changes of `keys` between two states of the store may concern one host.
pub fn affects<'a>(before: &Store, after: &Store, keys: impl IntoIterator<Item = &'a Key>, node: &NodeId) -> bool {
    reach(before, after, keys).is_none_or(|reach| reach.includes(before, after, node))
}

/// `None`: to every host.
fn reach<'a>(before: &Store, after: &Store, keys: impl IntoIterator<Item = &'a Key>) -> Option<Reach> {
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    let mut networks: BTreeSet<NetworkId> = BTreeSet::new();
    for key in keys {
        match key {
            Key::Cluster => {
                let removed = |s: &Store| s.cluster().map(|c| c.status.removed_nodes.clone()).unwrap_or_default();
                if removed(before) != removed(after) || sealing_epoch(before) != sealing_epoch(after) {
                    return None;
                }
            }
            Key::Node(id) => {
                let seen = |s: &Store| s.node(id).map(|n| (peer(n), n.attachments.clone()));
                if seen(before) != seen(after) {
                    return None;
                }
            }
            Key::Service(id) => {
                let (old, new) = (before.service(id), after.service(id));
                let ports = |s: Option<&std::sync::Arc<crate::model::Service>>| s.map(|s| s.endpoint.ports.clone());
                if ports(old) != ports(new) {
                    return None;
                }
                for service in [old, new].into_iter().flatten() {
                    networks.extend(service.spec.task.cluster_networks().map(|n| NetworkId::new(&n.target)));
                    networks.extend(service.endpoint.virtual_ips.iter().map(|v| v.network.clone()));
                }
            }
            Key::Task(id) => {
                let (old, new) = (before.task(id), after.task(id));
                nodes.extend([old, new].into_iter().flatten().map(|t| t.node_id.clone()));
                let face = |t: &std::sync::Arc<Task>| Face::of(t);
                if old.map(face) != new.map(face) {
                    let attachments = [old, new].into_iter().flatten().flat_map(|t| &t.attachments);
                    networks.extend(attachments.map(|a| a.network.clone()));
                }
            }
            Key::Network(id) => {
                networks.insert(id.clone());
            }
            // Only what is gone concerns a host: what is new has no task yet, and the bytes never change.
            Key::Secret(id) if after.secret(id).is_none() => {
                nodes.extend(nodes_with(after, id.as_str(), |task| &task.spec.container.secrets));
            }
            Key::Config(id) if after.config(id).is_none() => {
                nodes.extend(nodes_with(after, id.as_str(), |task| &task.spec.container.configs));
            }
            Key::Secret(_) | Key::Config(_) => {}
            Key::Registry(id) => {
                let uses = |task: &&std::sync::Arc<Task>| RegistryId::of_image(&task.spec.container.image) == *id;
                nodes.extend(after.tasks().filter(uses).map(|task| task.node_id.clone()));
            }
        }
    }
    let ingress = [before, after].map(|s| s.ingress_network().map(|n| n.id.clone()));
    if networks.iter().any(|n| ingress.iter().flatten().any(|i| i == n)) {
        return None;
    }
    Some(Reach { nodes, networks })
}

/// Hosts of tasks that name a secret or a config.
fn nodes_with(
    store: &Store,
    id: &str,
    references: impl Fn(&Task) -> &Vec<PayloadReference>,
) -> impl Iterator<Item = NodeId> {
    store.tasks().filter(move |task| references(task).iter().any(|used| used.id == id)).map(|task| task.node_id.clone())
}

/// What other hosts see of a task.
#[derive(PartialEq)]
struct Face {
    present: bool,
    serving: bool,
    node: NodeId,
    attachments: Vec<crate::model::NetworkAttachment>,
    short_id: Option<String>,
}

impl Face {
    fn of(task: &Task) -> Self {
        Self {
            present: task.is_placed() && !task.has_ended(),
            serving: task.is_serving(),
            node: task.node_id.clone(),
            attachments: task.attachments.clone(),
            short_id: short_id(task).map(str::to_owned),
        }
    }
}
