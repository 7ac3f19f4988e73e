//! `/tasks`.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use deploy::model::{NodeId, ServiceId, Task};
use deploy::store::Store;

use super::App;
use super::convert::{desired_state_name, task_to_wire};
use super::error::ApiError;
use super::extract::Params;
use super::resolve::resolve;
use super::wire;
use super::{nodes, services};
use crate::engine::Engine;

/// The task that a user means by an id or the beginning of one; tasks have no names to look for.
pub(super) fn find<'a>(store: &'a Store, wanted: &str) -> Result<&'a Arc<Task>, ApiError> {
    if let Some(task) = store.task(&deploy::model::TaskId::new(wanted)) {
        return Ok(task);
    }
    let tasks: Vec<&Arc<Task>> = store.tasks().collect();
    resolve("task", wanted, tasks.iter().copied(), |t| t.id.as_str(), |_| "")
}

/// States that Docker lets a client filter by.
const STATES: [&str; 14] = [
    "new",
    "pending",
    "assigned",
    "accepted",
    "preparing",
    "ready",
    "starting",
    "running",
    "complete",
    "shutdown",
    "failed",
    "rejected",
    "remove",
    "orphaned",
];

pub(super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<wire::Task>>, ApiError> {
    let filters =
        params.filters(&["id", "name", "service", "node", "label", "desired-state", "_up-to-date", "runtime"])?;
    if let Some(bad) = filters.values("desired-state").into_iter().flatten().find(|s| !STATES.contains(&s.as_str())) {
        return Err(ApiError::invalid(format!("invalid task state {bad}")));
    }
    let store = app.store(&params).await?;
    // Names become ids; a service or node that does not exist is an error, as in Docker.
    let of_services: Option<BTreeSet<ServiceId>> = filters
        .values("service")
        .map(|names| names.iter().map(|n| services::find(&store, n).map(|s| s.id.clone())).collect())
        .transpose()?;
    let on_nodes: Option<BTreeSet<NodeId>> = filters
        .values("node")
        .map(|names| names.iter().map(|n| nodes::find(&store, n).map(|n| n.id.clone())).collect())
        .transpose()?;
    let up_to_date = filters.flag("_up-to-date")?;
    let current = |t: &Task| store.service(&t.service_id).is_some_and(|s| s.spec_version == t.spec_version);
    let wanted = |t: &&Arc<Task>| {
        // Plain containers on networks, which Docker does not list either.
        !t.is_attachment()
            && of_services.as_ref().is_none_or(|ids| ids.contains(&t.service_id))
            && on_nodes.as_ref().is_none_or(|ids| ids.contains(&t.node_id))
            && filters.prefix("id", t.id.as_str())
            && filters.prefix("name", &t.name())
            && filters.exact("desired-state", desired_state_name(t.desired()))
            && filters.exact("runtime", "container")
            // Labels of a task: there are none.
            && filters.any("label", |_| false)
            && up_to_date.is_none_or(|yes| !yes || current(t))
    };
    let tasks: Vec<wire::Task> = match &of_services {
        Some(ids) => ids
            .iter()
            .flat_map(|id| store.tasks_of_service(id))
            .filter(wanted)
            .map(|t| task_to_wire(t, &store))
            .collect(),
        None => store.tasks().filter(wanted).map(|t| task_to_wire(t, &store)).collect(),
    };
    Ok(Json(tasks))
}

pub(super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<wire::Task>, ApiError> {
    let store = app.store(&params).await?;
    Ok(Json(task_to_wire(find(&store, &id)?, &store)))
}
