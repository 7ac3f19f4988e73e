//! Which hosts must be told something new after a change, without computing everybody's set.

use std::collections::BTreeSet;

use super::assignment::{networks_of_host, peer};
use crate::model::{NetworkId, NodeId, Task, TaskState};
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

/// Hosts that the changes of `keys` between two states of the store may concern. It may name too many, never too few.
pub fn affected<'a>(before: &Store, after: &Store, keys: impl IntoIterator<Item = &'a Key>) -> Affected {
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    let mut networks: BTreeSet<NetworkId> = BTreeSet::new();
    for key in keys {
        match key {
            Key::Cluster => {
                let removed = |s: &Store| s.cluster().map(|c| c.status.removed_nodes.clone()).unwrap_or_default();
                if removed(before) != removed(after) {
                    return Affected::All;
                }
            }
            Key::Node(id) => {
                let seen = |s: &Store| s.node(id).map(|n| (peer(n), n.attachments.clone()));
                if seen(before) != seen(after) {
                    return Affected::All;
                }
            }
            Key::Service(id) => {
                let (old, new) = (before.service(id), after.service(id));
                let ports = |s: Option<&std::sync::Arc<crate::model::Service>>| s.map(|s| s.endpoint.ports.clone());
                if ports(old) != ports(new) {
                    return Affected::All;
                }
                for service in [old, new].into_iter().flatten() {
                    networks.extend(service.spec.task.networks.iter().map(|n| NetworkId::new(&n.target)));
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
            Key::Secret(_) | Key::Config(_) => {}
        }
    }
    let ingress = [before, after].map(|s| s.ingress_network().map(|n| n.id.clone()));
    if networks.iter().any(|n| ingress.iter().flatten().any(|i| i == n)) {
        return Affected::All;
    }
    if !networks.is_empty() {
        let takes_part = |s: &Store, id: &NodeId| !networks_of_host(s, id).is_disjoint(&networks);
        let hosts = after.nodes().map(|n| &n.id).filter(|id| takes_part(before, id) || takes_part(after, id));
        nodes.extend(hosts.cloned());
    }
    nodes.remove(&NodeId::default());
    Affected::Nodes(nodes)
}

/// What other hosts see of a task.
#[derive(PartialEq)]
struct Face {
    present: bool,
    serving: bool,
    node: NodeId,
    attachments: Vec<crate::model::NetworkAttachment>,
}

impl Face {
    fn of(task: &Task) -> Self {
        Self {
            present: task.is_placed() && !task.has_ended(),
            serving: task.state() == TaskState::Running && task.is_wanted() && task.draining_since.is_never(),
            node: task.node_id.clone(),
            attachments: task.attachments.clone(),
        }
    }
}
