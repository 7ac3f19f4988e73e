//! Answers `service why`: what each host says to one more task of a service.

use super::filter::{Demand, Filter};
use super::hosts;
use crate::model::{NodeId, ServiceId, Task};
use crate::store::Store;

/// One host's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostVerdict {
    /// The host.
    pub node: NodeId,
    /// Its hostname.
    pub hostname: String,
    /// Wanted tasks of the service that it holds.
    pub tasks: usize,
    /// What speaks against one more, each with its details; empty when the host could take one.
    pub reasons: Vec<(Filter, String)>,
}

/// What every host says to one more task of the service, in the order of their ids; empty for an unknown service.
/// Unlike the sentence in a task's status, which counts each host once, this names all reasons of each.
pub fn explain(store: &Store, service: &ServiceId) -> Vec<HostVerdict> {
    let Some(service) = store.service(service) else { return Vec::new() };
    let task = Task {
        spec: service.spec.task.clone(),
        spec_version: service.spec_version,
        service_id: service.id.clone(),
        ports: service.spec.endpoint_spec().ports,
        ..Task::default()
    };
    let demand = Demand::new(store, &task);
    let verdict = |host: &hosts::Host| HostVerdict {
        node: host.node.id.clone(),
        hostname: host.node.description.hostname.clone(),
        tasks: host.tasks_of(&service.id),
        reasons: Filter::ALL
            .into_iter()
            .filter(|filter| !demand.passes(*filter, host))
            .map(|filter| (filter, demand.detail(filter, host)))
            .collect(),
    };
    hosts::survey(store, store.now()).iter().map(verdict).collect()
}
