//! Gives tasks a host, or says why none will do.
//!
//! The brain calls it in each pass with the tasks that have no place yet; one that finds none keeps waiting, with the
//! reason in its status, and is tried again in the next pass. Nothing here makes or stops a task.

mod constraint;
mod explain;
mod filter;
mod hosts;
mod rank;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cx::Cx;
use crate::model::{ServiceMode, Task, TaskState};
use crate::store::Txn;

pub use constraint::{Constraint, ConstraintError};
pub use explain::{HostVerdict, explain};
use filter::Demand;
pub use filter::Filter;
pub(crate) use filter::{is_on_encrypted, matches_placement, satisfies_constraints, takes_new_tasks};
use hosts::Host;

/// Places what can be placed.
pub(crate) fn reconcile(cx: &Cx<'_>, txn: &mut Txn) {
    let waiting = waiting(cx, txn);
    if waiting.is_empty() {
        return;
    }
    let mut hosts = hosts::survey(txn, cx.now);
    // Tasks of one service and version ask for the same: what only the host decides is asked once for all of them.
    let groups = || waiting.chunk_by(|a, b| a.service_id == b.service_id && a.spec_version == b.spec_version);
    let refused: Vec<Vec<Arc<Task>>> = groups().map(|group| place_group(cx, txn, &mut hosts, group)).collect();
    // The reasons are those of the hosts as they are when everything else has its place.
    for group in refused {
        let Some(demand) = group.first().map(|task| Demand::new(txn, task)) else { continue };
        for task in &group {
            if txn.is_full() {
                return;
            }
            let considered = hosts.iter().filter(|h| task.node_id.is_none() || h.node.id == task.node_id);
            refuse(cx, txn, task, no_suitable_node(&demand, considered));
        }
    }
}

/// Wanted tasks without a place, oldest first, those of one service and version together.
fn waiting(cx: &Cx<'_>, txn: &Txn) -> Vec<Arc<Task>> {
    // (The orchestrator asks to be woken when the delay of a task is over.)
    let ripe = |t: &&Arc<Task>| t.is_wanted() && !(t.placed_late && cx.now < t.not_before);
    let mut waiting: Vec<Arc<Task>> = txn.unplaced_tasks().filter(ripe).cloned().collect();
    // Tasks of global services know their host from the first moment, but have not been let in yet.
    for service in txn.services().filter(|s| matches!(s.spec.mode, Some(ServiceMode::Global(_)))) {
        waiting.extend(
            txn.tasks_of_service(&service.id)
                .filter(|t| ripe(t) && !t.node_id.is_none() && t.state() < TaskState::Assigned)
                .cloned(),
        );
    }
    let mut oldest = BTreeMap::new();
    for task in &waiting {
        let at = oldest.entry((task.service_id.clone(), task.spec_version)).or_insert(task.meta.created_at);
        *at = task.meta.created_at.min(*at);
    }
    waiting.sort_by_cached_key(|t| {
        let group = (t.service_id.clone(), t.spec_version);
        (oldest.get(&group).copied(), group, t.meta.created_at, t.slot, t.id.clone())
    });
    waiting
}

/// Places tasks that ask for the same; returns those that no host takes.
fn place_group(cx: &Cx<'_>, txn: &mut Txn, hosts: &mut [Host], group: &[Arc<Task>]) -> Vec<Arc<Task>> {
    let Some(first) = group.first() else { return Vec::new() };
    let mut refused = Vec::new();
    let demand = Demand::new(txn, first);
    let unfit = |host: &Host| {
        [Filter::Ready, Filter::Constraints, Filter::Platform, Filter::Release]
            .into_iter()
            .any(|filter| !demand.passes(filter, host))
    };
    let fit: Vec<usize> = hosts.iter().enumerate().filter(|(_, host)| !unfit(host)).map(|(i, _)| i).collect();
    for task in group {
        if txn.is_full() {
            break;
        }
        let candidates: Vec<usize> = match task.node_id.is_none() {
            true => fit.clone(),
            false => hosts::find(hosts, &task.node_id).filter(|index| fit.contains(index)).into_iter().collect(),
        };
        let able = |index: &usize| hosts.get(*index).is_some_and(|host| demand.obstacle(host).is_none());
        let candidates: Vec<usize> = candidates.into_iter().filter(able).collect();
        let place = rank::best(hosts, candidates, task).and_then(|index| hosts.get_mut(index));
        match place {
            Some(host) => assign(cx, txn, host, task),
            None => refused.push(task.clone()),
        }
    }
    refused
}

fn assign(cx: &Cx<'_>, txn: &mut Txn, host: &mut Host, task: &Task) {
    let mut task = task.clone();
    task.node_id = host.node.id.clone();
    task.status.set_state(TaskState::Assigned);
    task.status.at = cx.now;
    task.status.message = "scheduler assigned task to node".to_owned();
    task.status.err.clear();
    host.add(&task);
    txn.put_task(task);
}

fn refuse(cx: &Cx<'_>, txn: &mut Txn, task: &Task, reason: String) {
    let mut task = task.clone();
    if task.state() != TaskState::Pending {
        task.status.set_state(TaskState::Pending);
        task.status.at = cx.now;
    }
    task.status.message = "pending task scheduling".to_owned();
    task.status.err = reason;
    txn.put_task(task);
}

/// Docker's sentence: the obstacle of each host, most frequent first.
fn no_suitable_node<'a>(demand: &Demand<'_>, hosts: impl Iterator<Item = &'a Host>) -> String {
    let mut counts: BTreeMap<Filter, usize> = BTreeMap::new();
    for obstacle in hosts.filter_map(|host| demand.obstacle(host)) {
        *counts.entry(obstacle).or_default() += 1;
    }
    if counts.is_empty() {
        return "no suitable node".to_owned();
    }
    let mut counts: Vec<(Filter, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(filter, count)| (std::cmp::Reverse(*count), *filter));
    let reasons: Vec<String> = counts.into_iter().map(|(filter, count)| filter.explain(count)).collect();
    format!("no suitable node ({})", reasons.join("; "))
}
