//! What goes beyond Docker: `/shoal/v1/...`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use deploy::model::{DesiredState, TaskState};
use deploy::scheduler::explain;
use hyper::header::CONTENT_TYPE;
use serde::Serialize;

use super::App;
use super::convert::task_state_name;
use super::error::ApiError;
use super::extract::{JsonBody, Params};
use super::services;
use super::wire;
use crate::backup::BackupError;
use crate::engine::{Consistency, Engine, Membership, RecoverRequest, Recovered, RestoreRequest};

/// This node, which was a manager, becomes the only one.
pub(super) async fn recover<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::Recover>,
) -> Result<Json<Recovered>, ApiError> {
    let request = RecoverRequest {
        listen_addr: w.listen_addr.unwrap_or_default(),
        advertise_addr: w.advertise_addr.unwrap_or_default(),
        data_path_addr: w.data_path_addr.unwrap_or_default(),
        force: w.force.unwrap_or_default(),
    };
    Ok(Json(app.engine.recover(request).await?))
}

/// Everything that the cluster knows, as a file; read through the leader, so that nothing acknowledged is missing.
pub(super) async fn backup<E: Engine>(State(app): State<App<E>>) -> Result<Response, ApiError> {
    let applied = app.engine.applied(Consistency::Linearizable).await?;
    let node_id = match app.engine.membership() {
        Membership::Active(member) => member.node_id.to_string(),
        _ => String::new(),
    };
    let made = tokio::task::spawn_blocking(move || crate::backup::encode(&node_id, &applied)).await;
    let bytes =
        made.map_err(|e| ApiError::internal(format!("the backup could not be made: {e}")))?.map_err(|e| match e {
            BackupError::TooLarge(_) => ApiError::too_large(format!("the cluster is too large for a backup: {e}")),
            other => ApiError::internal(other.to_string()),
        })?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// Has the cluster begin anew from a backup, or makes one out of it.
pub(super) async fn restore<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
    body: Body,
) -> Result<Json<Recovered>, ApiError> {
    let backup = axum::body::to_bytes(body, crate::backup::MAX_BYTES)
        .await
        .map_err(|e| ApiError::invalid(format!("the backup did not arrive: {}", crate::chain(&e))))?;
    let text = |key| params.get(key).unwrap_or_default().to_owned();
    let request = RestoreRequest {
        backup,
        listen_addr: text("listenAddr"),
        advertise_addr: text("advertiseAddr"),
        data_path_addr: text("dataPathAddr"),
    };
    Ok(Json(app.engine.restore(request).await?))
}

/// Why the tasks of a service are where they are, and what each host says to one more.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Why {
    service_id: String,
    service: String,
    /// Why the service as a whole cannot be carried out; empty otherwise.
    message: String,
    hosts: Vec<HostAnswer>,
    tasks: Vec<WantedTask>,
}

/// What a host says to one more task of the service.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostAnswer {
    node_id: String,
    hostname: String,
    /// Wanted tasks of the service that it has.
    tasks: usize,
    /// Whether it could take one more.
    fits: bool,
    /// What speaks against it.
    reasons: Vec<String>,
}

/// A task that is wanted, and how far it is.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WantedTask {
    id: String,
    slot: u64,
    node_id: String,
    state: &'static str,
    message: String,
    err: String,
}

pub(super) async fn why<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Why>, ApiError> {
    let store = app.store(&params).await?;
    let service = services::find(&store, &id)?;
    let hosts = explain(&store, &service.id)
        .into_iter()
        .map(|verdict| HostAnswer {
            node_id: verdict.node.to_string(),
            hostname: verdict.hostname,
            tasks: verdict.tasks,
            fits: verdict.reasons.is_empty(),
            reasons: verdict.reasons.into_iter().map(|(_, detail)| detail).collect(),
        })
        .collect();
    let mut tasks: Vec<WantedTask> = store
        .tasks_of_service(&service.id)
        .filter(|t| t.desired() <= DesiredState::Completed && t.status.state() <= TaskState::Running)
        .map(|t| WantedTask {
            id: t.id.to_string(),
            slot: t.slot,
            node_id: t.node_id.to_string(),
            state: task_state_name(t.status.state()),
            message: t.status.message.clone(),
            err: t.status.err.clone(),
        })
        .collect();
    tasks.sort_by(|a, b| (a.slot, &a.id).cmp(&(b.slot, &b.id)));
    Ok(Json(Why {
        service_id: service.id.to_string(),
        service: service.spec.name.clone(),
        message: service.message.clone(),
        hosts,
        tasks,
    }))
}
