//! What each host holds at the moment of scheduling, counted from the store's tasks.
//!
//! Built once a pass, and only when something waits for a place; `add` keeps it true while tasks are placed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::allocator::own_ports;
use crate::model::{Node, NodeId, PortProtocol, ServiceId, Task, TaskState, Timestamp};
use crate::store::Store;

/// A failure counts against its host for this long.
const FAILURE_MEMORY: Duration = Duration::from_secs(5 * 60);

/// A host with fewer recent failures of a service than this is as good as any. Docker's number.
const FAILURES_TOLERATED: usize = 5;

/// One host and what it holds.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) node: Arc<Node>,
    /// Billionths of a CPU that tasks reserved.
    pub(super) nano_cpus: u64,
    /// Bytes that tasks reserved.
    pub(super) memory_bytes: u64,
    /// Tasks that are wanted here.
    pub(super) tasks: usize,
    by_service: BTreeMap<ServiceId, usize>,
    failures: BTreeMap<(ServiceId, u64), usize>,
    ports: BTreeSet<(PortProtocol, u32)>,
}

impl Host {
    /// Wanted tasks of the service here.
    pub(super) fn tasks_of(&self, service: &ServiceId) -> usize {
        self.by_service.get(service).copied().unwrap_or(0)
    }

    /// Recent failures of the task's service and version here; 0 while they are tolerable.
    pub(super) fn failures_of(&self, task: &Task) -> usize {
        let count = self.failures.get(&(task.service_id.clone(), task.spec_version)).copied().unwrap_or(0);
        if count < FAILURES_TOLERATED { 0 } else { count }
    }

    /// Whether a port that the task wants on its host is taken here.
    pub(super) fn has_port_conflict(&self, task: &Task) -> bool {
        task.host_ports().any(|port| self.ports.contains(&(port.protocol(), port.published)))
    }

    /// Counts a task that is here and has not ended.
    pub(super) fn add(&mut self, task: &Task) {
        let reserved = &task.spec.resources.reservations;
        self.nano_cpus = self.nano_cpus.saturating_add(reserved.nano_cpus);
        self.memory_bytes = self.memory_bytes.saturating_add(reserved.memory_bytes);
        self.ports.extend(task.host_ports().map(|port| (port.protocol(), port.published)));
        if task.is_wanted() {
            self.tasks += 1;
            *self.by_service.entry(task.service_id.clone()).or_default() += 1;
        }
    }
}

/// All hosts, in the order of their ids.
pub(super) fn survey(store: &Store, now: Timestamp) -> Vec<Host> {
    store.nodes().map(|node| survey_one(store, node, now)).collect()
}

/// One host.
pub(super) fn survey_one(store: &Store, node: &Arc<Node>, now: Timestamp) -> Host {
    let mut host = Host {
        node: node.clone(),
        nano_cpus: 0,
        memory_bytes: 0,
        tasks: 0,
        by_service: BTreeMap::new(),
        failures: BTreeMap::new(),
        // What its daemon listens at is in use as well.
        ports: own_ports(node).map(|(protocol, port, _)| (protocol, port)).collect(),
    };
    for task in store.tasks_on_node(&node.id).filter(|t| t.is_placed()) {
        let failed = matches!(task.state(), TaskState::Failed | TaskState::Rejected);
        if !task.has_ended() {
            host.add(task);
        } else if failed && now.since(task.status.at) < FAILURE_MEMORY {
            *host.failures.entry((task.service_id.clone(), task.spec_version)).or_default() += 1;
        }
    }
    host
}

/// Index of a host by its id.
pub(super) fn find(hosts: &[Host], id: &NodeId) -> Option<usize> {
    hosts.binary_search_by(|h| h.node.id.cmp(id)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OwnPort, PortConfig, PublishMode};

    #[test]
    fn a_hosts_own_port_is_in_use_there() {
        let own = OwnPort { protocol: PortProtocol::Tcp as i32, port: 9323, purpose: "metrics port".into() };
        let mut node = Node { id: NodeId::from(1), ..Node::default() };
        node.description.own_ports.push(own);
        let host = survey_one(&Store::default(), &Arc::new(node), Timestamp::default());
        let mut task = Task::default();
        task.ports.push(PortConfig {
            target: 80,
            published: 9323,
            mode: PublishMode::Host as i32,
            ..Default::default()
        });
        assert!(host.has_port_conflict(&task));
        task.ports[0].set_protocol(PortProtocol::Udp);
        assert!(!host.has_port_conflict(&task));
    }
}
