//! Which of the hosts that could take a task is the best: spread over what the placement names, then over hosts.

use std::collections::BTreeMap;

use super::hosts::Host;
use crate::model::{Node, Task};

/// Picks one of `candidates` (indices into `hosts`, not empty for a result).
///
/// The spread preferences form a tree: at each level the branch with the fewest tasks of the service is taken, among
/// those that hold a candidate. In the leaf it is the host with the fewest tasks of the service, then the fewest in all;
/// one on which the service keeps failing comes last.
pub(super) fn best(hosts: &[Host], mut candidates: Vec<usize>, task: &Task) -> Option<usize> {
    let mut group: Vec<usize> = (0..hosts.len()).collect();
    for descriptor in &task.spec.placement.spread_over {
        let label = |index: &usize| hosts.get(*index).map(|h| label(&h.node, descriptor)).unwrap_or_default();
        let mut branches: BTreeMap<&str, usize> = BTreeMap::new();
        for index in &group {
            // Hosts that cannot take this task count too: the branch is as full as it is.
            *branches.entry(label(index)).or_default() += hosts.get(*index).map_or(0, |h| h.tasks_of(&task.service_id));
        }
        let chosen = candidates.iter().map(label).min_by_key(|value| (branches.get(value).copied(), *value))?;
        group.retain(|index| label(index) == chosen);
        candidates.retain(|index| label(index) == chosen);
    }
    candidates.into_iter().min_by_key(|index| {
        hosts.get(*index).map(|host| (host.failures_of(task), host.tasks_of(&task.service_id), host.tasks, *index))
    })
}

/// Value of a spread descriptor (`node.labels.zone`, `engine.labels.disk`) on a host; hosts without it form a branch of
/// their own.
fn label<'a>(node: &'a Node, descriptor: &str) -> &'a str {
    let name = |prefix: &str| {
        let (start, name) = (descriptor.get(..prefix.len())?, descriptor.get(prefix.len()..)?);
        start.eq_ignore_ascii_case(prefix).then_some(name)
    };
    let value = match name("node.labels.") {
        Some(name) => node.spec.labels.get(name),
        None => name("engine.labels.").and_then(|name| node.description.engine_labels.get(name)),
    };
    value.map_or("", String::as_str)
}
