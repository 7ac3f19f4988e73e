//! Filters: each says whether a host can take a task, and how to tell people that it cannot.
//!
//! Order and words are Docker's: `no suitable node (insufficient resources on 2 nodes; ...)`.

use super::constraint::{Constraint, architecture};
use super::hosts::Host;
use crate::model::{NetworkAttachmentConfig, NetworkId, Node, NodeAvailability, NodeState, Placement, Platform, Task};
use crate::store::Store;

/// Why a host does not take a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// The host is not ready, or takes no new tasks.
    Ready,
    /// Less is free than the task reserves.
    Resources,
    /// A placement constraint does not hold.
    Constraints,
    /// The image does not run on the host's platform.
    Platform,
    /// The host's release does not know a network of the task.
    Release,
    /// The host cannot carry an encrypted network of the task.
    Encryption,
    /// A port that is published on the host itself is taken.
    HostPorts,
    /// The host already has as many tasks of the service as the placement allows.
    MaxReplicas,
}

impl Filter {
    /// All filters, in the order in which they are asked.
    pub(super) const ALL: [Filter; 8] = [
        Filter::Ready,
        Filter::Resources,
        Filter::Constraints,
        Filter::Platform,
        Filter::Release,
        Filter::Encryption,
        Filter::HostPorts,
        Filter::MaxReplicas,
    ];

    /// The reason, for `nodes` hosts.
    pub(super) fn explain(self, nodes: usize) -> String {
        let hosts = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        match self {
            Filter::Ready => format!("{hosts} not available for new tasks"),
            Filter::Resources => format!("insufficient resources on {hosts}"),
            Filter::Constraints => format!("scheduling constraints not satisfied on {hosts}"),
            Filter::Platform => format!("unsupported platform on {hosts}"),
            Filter::Release => format!("release too old for networks of the task on {hosts}"),
            Filter::Encryption => format!("encrypted networks not possible on {hosts}"),
            Filter::HostPorts => format!("host-mode port already in use on {hosts}"),
            Filter::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}

/// What a group of equal tasks asks of a host, with its constraints parsed once.
pub(super) struct Demand<'a> {
    task: &'a Task,
    constraints: Vec<Option<Constraint>>,
    /// The feature level that its networks need.
    level: u32,
    /// A network of it is encrypted.
    encrypted: bool,
}

impl<'a> Demand<'a> {
    pub(super) fn new(store: &Store, task: &'a Task) -> Self {
        let constraints = task.spec.placement.constraints.iter().map(|c| Constraint::parse(c).ok()).collect();
        let network = |wanted: &NetworkAttachmentConfig| store.network(&NetworkId::new(&wanted.target));
        let levels = task.spec.cluster_networks().filter_map(network).map(|network| network.spec.level());
        Self { task, constraints, level: levels.max().unwrap_or_default(), encrypted: is_on_encrypted(store, task) }
    }

    /// Whether the host passes the filter.
    pub(super) fn passes(&self, filter: Filter, host: &Host) -> bool {
        match filter {
            Filter::Ready => takes_new_tasks(&host.node),
            Filter::Resources => self.shortages(host).is_empty(),
            // An expression that this release cannot read is satisfied by no host.
            Filter::Constraints => self.constraints.iter().all(|c| c.as_ref().is_some_and(|c| c.matches(&host.node))),
            Filter::Platform => runs_on(&self.task.spec.placement.platforms, &host.node),
            Filter::Release => host.node.description.feature_level >= self.level,
            Filter::Encryption => !self.encrypted || host.node.sealing_obstacle().is_none(),
            Filter::HostPorts => !host.has_port_conflict(self.task),
            Filter::MaxReplicas => {
                let most = self.task.spec.placement.max_replicas;
                most == 0 || (host.tasks_of(&self.task.service_id) as u64) < most
            }
        }
    }

    /// The first filter that the host does not pass.
    pub(super) fn obstacle(&self, host: &Host) -> Option<Filter> {
        Filter::ALL.into_iter().find(|filter| !self.passes(*filter, host))
    }

    /// What the host has too little of, for people.
    pub(super) fn shortages(&self, host: &Host) -> Vec<String> {
        let wanted = &self.task.spec.resources.reservations;
        let has = &host.node.description.resources;
        let mut found = Vec::new();
        let cpus = has.nano_cpus.saturating_sub(host.nano_cpus);
        if wanted.nano_cpus > cpus {
            let billion = 1e9;
            found.push(format!("{} CPUs reserved, {} free", wanted.nano_cpus as f64 / billion, cpus as f64 / billion));
        }
        let memory = has.memory_bytes.saturating_sub(host.memory_bytes);
        if wanted.memory_bytes > memory {
            let mib = 1 << 20;
            found.push(format!("{} MiB of memory reserved, {} MiB free", wanted.memory_bytes / mib, memory / mib));
        }
        found
    }

    /// The reason that the host does not pass, with what is particular to it.
    pub(super) fn detail(&self, filter: Filter, host: &Host) -> String {
        match filter {
            Filter::Ready => match (host.node.status.state(), host.node.spec.availability()) {
                (NodeState::Ready, NodeAvailability::Drain) => "drained".to_owned(),
                (NodeState::Ready, _) => "paused".to_owned(),
                (NodeState::Down, _) => "down".to_owned(),
                (NodeState::Disconnected, _) => "disconnected".to_owned(),
                (NodeState::Unknown, _) => "not ready yet".to_owned(),
            },
            Filter::Resources => format!("insufficient resources: {}", self.shortages(host).join(", ")),
            Filter::Constraints => {
                let failed = self.task.spec.placement.constraints.iter().zip(&self.constraints);
                let failed: Vec<&str> = failed
                    .filter(|(_, c)| !c.as_ref().is_some_and(|c| c.matches(&host.node)))
                    .map(|(text, _)| text.as_str())
                    .collect();
                format!("constraint not satisfied: {}", failed.join(", "))
            }
            Filter::Platform => {
                let host = &host.node.description;
                format!("unsupported platform: the image does not run on {}/{}", host.os, host.architecture)
            }
            Filter::Release => {
                let (level, needed) = (host.node.description.feature_level, self.level);
                format!("release too old for networks of the task: feature level {level}, {needed} is needed")
            }
            Filter::Encryption => {
                format!("encrypted networks not possible: {}", host.node.sealing_obstacle().unwrap_or_default())
            }
            Filter::HostPorts => "host-mode port already in use".to_owned(),
            Filter::MaxReplicas => {
                format!("already has {} tasks of the service, the most allowed", host.tasks_of(&self.task.service_id))
            }
        }
    }
}

/// Whether a network of the task is encrypted.
pub(crate) fn is_on_encrypted(store: &Store, task: &Task) -> bool {
    let network = |wanted: &NetworkAttachmentConfig| store.network(&NetworkId::new(&wanted.target));
    task.spec.cluster_networks().filter_map(network).any(|network| network.spec.is_encrypted())
}

/// Whether new tasks may be placed on the host.
pub(crate) fn takes_new_tasks(node: &Node) -> bool {
    node.status.state() == NodeState::Ready && node.spec.availability() == NodeAvailability::Active
}

/// Whether the host satisfies all constraints of the placement.
pub(crate) fn satisfies_constraints(placement: &Placement, node: &Node) -> bool {
    placement.constraints.iter().all(|text| Constraint::parse(text).is_ok_and(|c| c.matches(node)))
}

/// Whether the placement's constraints and platforms allow the host.
pub(crate) fn matches_placement(placement: &Placement, node: &Node) -> bool {
    satisfies_constraints(placement, node) && runs_on(&placement.platforms, node)
}

fn runs_on(platforms: &[Platform], node: &Node) -> bool {
    let fits =
        |wanted: &str, has: &str| wanted.is_empty() || architecture(wanted).eq_ignore_ascii_case(architecture(has));
    let host = &node.description;
    platforms.is_empty() || platforms.iter().any(|p| fits(&p.os, &host.os) && fits(&p.architecture, &host.architecture))
}
