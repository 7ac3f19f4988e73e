//! From what a user typed to a container of this host, and from the runtime's failures to Docker's.

use std::collections::BTreeMap;

use deploy::model::Task;
use hyper::StatusCode;
use runtime::{ContainerDetail, ContainerState, RuntimeError, Status};

use super::super::App;
use super::super::error::ApiError;
use super::super::resolve::resolve;
use crate::agent::{PLAIN_LABEL, TASK_LABEL, is_plain};
use crate::containers::Containers;
use crate::engine::Engine;

/// Label with the name that the cluster gave to a task's container.
const NAME_LABEL: &str = "com.docker.swarm.task.name";

/// A container's name, without Docker's slash in front.
pub(super) fn name(state: &ContainerState) -> &str {
    name_of(&state.id, &state.labels)
}

/// The same, of a container that may be gone.
pub(in super::super) fn name_of<'a>(id: &'a str, labels: &'a BTreeMap<String, String>) -> &'a str {
    match labels.get(if is_plain(labels) { PLAIN_LABEL } else { NAME_LABEL }) {
        Some(name) if !name.is_empty() => name,
        _ => id.get(..12).unwrap_or(id),
    }
}

/// The containers of this host, or Docker's answer where there is none.
pub(super) fn here<E: Engine>(app: &App<E>, wanted: &str) -> Result<Containers, ApiError> {
    app.engine.containers().ok_or_else(|| no_such(wanted))
}

/// The container that a user means: by its id, its name (with or without a slash), or the beginning of its id.
pub(super) async fn find<E: Engine>(app: &App<E>, wanted: &str) -> Result<(Containers, ContainerState), ApiError> {
    let containers = here(app, wanted)?;
    let all = containers.runtime.list().await;
    let found = resolve("container", wanted.trim_start_matches('/'), all.iter(), |c| &c.id, |c| name(c));
    match found {
        Ok(state) => Ok((containers, state.clone())),
        Err(error) if error.status == StatusCode::NOT_FOUND => Err(no_such(wanted)),
        Err(error) => Err(error),
    }
}

/// The container with all that is known of it.
pub(super) async fn detail<E: Engine>(app: &App<E>, wanted: &str) -> Result<(Containers, ContainerDetail), ApiError> {
    let (containers, state) = find(app, wanted).await?;
    let detail = containers.runtime.inspect(&state.id).await.map_err(|error| failed(&error))?;
    Ok((containers, detail))
}

/// The task that a container belongs to, as this host's agent has it.
pub(super) async fn task<E: Engine>(app: &App<E>, state: &ContainerState) -> Option<Task> {
    let wanted = state.labels.get(TASK_LABEL)?;
    let agent = app.engine.agent().await.ok()?;
    agent.set.tasks().find(|assigned| assigned.task.id.as_str() == wanted).map(|assigned| assigned.task.clone())
}

pub(super) fn no_such(wanted: &str) -> ApiError {
    ApiError::not_found(format!("No such container: {wanted}"))
}

/// Whether its first process lives and was started.
pub(super) fn is_running(state: &ContainerState) -> bool {
    state.status == Status::Running
}

/// The runtime's failure as Docker says it.
pub(super) fn failed(error: &RuntimeError) -> ApiError {
    let text = || crate::chain(error);
    match error {
        RuntimeError::NotFound(id) => no_such(id),
        RuntimeError::WrongState { id, status: "paused" } => {
            ApiError::conflict(format!("Container {id} is paused, unpause the container before exec"))
        }
        RuntimeError::WrongState { id, .. } => ApiError::conflict(format!("Container {id} is not running")),
        RuntimeError::InvalidConfig(_) => ApiError::invalid(text()),
        RuntimeError::Exec { .. } => ApiError::invalid(exec_text(error)),
        _ => ApiError::internal(text()),
    }
}

/// What Docker says of a process that could not be started; clients look for parts of it.
pub(super) fn exec_text(error: &RuntimeError) -> String {
    match error {
        RuntimeError::Exec { reason, .. } => {
            format!("OCI runtime exec failed: exec failed: unable to start container process: {reason}: unknown")
        }
        other => crate::chain(other),
    }
}
