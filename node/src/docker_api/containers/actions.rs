//! What is done to a container: signals, pauses, stops, and waiting for its end.
//!
//! What would restart or remove a task's container behind the cluster's back is refused, and says what to do instead.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use runtime::{ContainerState, RuntimeError, Signal, Status};
use serde_json::json;
use tokio::sync::watch;

use super::super::App;
use super::super::error::ApiError;
use super::super::extract::Params;
use super::find::{self, failed, is_running};
use super::plain;
use crate::agent::TASK_LABEL;
use crate::containers::Containers;
use crate::engine::Engine;

/// Docker's patience with a container that is asked to stop, when nobody says another.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether a container is removed.
const REMOVED_EVERY: Duration = Duration::from_millis(100);

type Done = Result<StatusCode, ApiError>;

fn not_running(state: &ContainerState) -> ApiError {
    ApiError::conflict(format!("Container {} is not running", state.id))
}

pub(super) fn signal(params: &Params) -> Result<Option<Signal>, ApiError> {
    let given = params.get("signal").filter(|given| !given.is_empty());
    given.map(|given| given.parse().map_err(|_| ApiError::invalid(format!("Invalid signal: {given}")))).transpose()
}

/// How long a container has to stop, if the client says.
pub(super) fn grace(params: &Params) -> Result<Option<Duration>, ApiError> {
    match params.get("t").filter(|given| !given.is_empty()).map(str::parse::<i64>) {
        Some(Ok(seconds)) if seconds >= 0 => Ok(Some(Duration::from_secs(seconds.unsigned_abs()))),
        // As long as it takes.
        Some(Ok(_)) => Ok(Some(Duration::from_secs(u32::MAX.into()))),
        Some(Err(_)) => Err(ApiError::invalid("invalid value for t: it must be seconds")),
        None => Ok(None),
    }
}

pub(in super::super) async fn kill<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Done {
    let signal = signal(&params)?.unwrap_or(Signal::KILL);
    let (containers, state) = find::find(&app, &id).await?;
    let refused = || ApiError::conflict(format!("cannot kill container: {id}: container {} is not running", state.id));
    let waits = plain::waits(&app, &state);
    if !is_running(&state) && !waits {
        return Err(refused());
    }
    plain::will_signal(&app, &containers, &state, signal).await?;
    match containers.runtime.signal(&state.id, signal).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        // There is nobody to hear it. If it was one that ends it, no start follows.
        Err(RuntimeError::WrongState { .. }) if waits => Ok(StatusCode::NO_CONTENT),
        Err(RuntimeError::WrongState { .. }) => Err(refused()),
        Err(error) => Err(failed(&error)),
    }
}

pub(in super::super) async fn stop<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Done {
    let signal = signal(&params)?;
    let given = grace(&params)?;
    let (containers, state) = find::find(&app, &id).await?;
    if let Some(stopped) = plain::stop(&app, &state, signal, given).await? {
        return Ok(if stopped { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED });
    }
    let grace = match given {
        Some(grace) => grace,
        None => {
            let task = find::task(&app, &state).await;
            task.and_then(|task| task.spec.container.stop_grace_ns).map_or(GRACE, Duration::from_nanos)
        }
    };
    if !is_running(&state) {
        return Ok(StatusCode::NOT_MODIFIED);
    }
    match containers.runtime.stop(&state.id, signal, grace).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(failed(&error)),
    }
}

pub(in super::super) async fn pause<E: Engine>(State(app): State<App<E>>, Path(id): Path<String>) -> Done {
    let (containers, state) = find::find(&app, &id).await?;
    match containers.runtime.pause(&state.id).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(RuntimeError::WrongState { status: "paused", .. }) => {
            Err(ApiError::conflict(format!("Container {} is already paused", state.id)))
        }
        Err(error) => Err(failed(&error)),
    }
}

pub(in super::super) async fn unpause<E: Engine>(State(app): State<App<E>>, Path(id): Path<String>) -> Done {
    let (containers, state) = find::find(&app, &id).await?;
    match containers.runtime.resume(&state.id).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(RuntimeError::WrongState { .. }) => {
            Err(ApiError::conflict(format!("Container {} is not paused", state.id)))
        }
        Err(error) => Err(failed(&error)),
    }
}

/// Rows and columns out of `h` and `w`.
pub(super) fn window(params: &Params) -> Result<(u16, u16), ApiError> {
    let number = |key: &str| {
        let given = params.get(key).unwrap_or_default();
        given.parse::<u16>().map_err(|_| ApiError::invalid(format!("invalid value for {key}: {given:?}")))
    };
    Ok((number("h")?, number("w")?))
}

pub(in super::super) async fn resize<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Done {
    let (rows, columns) = window(&params)?;
    let (containers, detail) = find::detail(&app, &id).await?;
    if !is_running(&detail.state) {
        return Err(not_running(&detail.state));
    }
    if !detail.config.tty {
        return Err(ApiError::invalid(format!("Container {} has no terminal", detail.state.id)));
    }
    containers.runtime.resize(&detail.state.id, rows, columns).await.map_err(|error| failed(&error))?;
    let size = vec![("height", rows.to_string()), ("width", columns.to_string())];
    containers.runtime.tell(&detail.state.id, "resize", size);
    Ok(StatusCode::OK)
}

/// What a client waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

/// The answer begins at once: clients wait for that before they do what they are really about.
pub(in super::super) async fn wait<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let condition = match params.get("condition").unwrap_or_default() {
        "" | "not-running" => Condition::NotRunning,
        "next-exit" => Condition::NextExit,
        "removed" => Condition::Removed,
        other => return Err(ApiError::invalid(format!("invalid condition: {other:?}"))),
    };
    let (containers, mut state) = find::find(&app, &id).await?;
    let next = plain::runs(&app, &state);
    if next.is_some() {
        // Who has ended by now has its next run told there.
        state = find::find(&app, &state.id).await?.1;
    }
    let shutdown = app.shutdown.clone();
    let shown = {
        let (app, state) = (app.clone(), state.clone());
        move || plain::view(&app, &state).is_some()
    };
    let answer = async move {
        let ended = tokio::select! {
            biased;
            () = shutdown.cancelled() => Err("the daemon stops".to_owned()),
            ended = ended(&containers, &state, condition, next, shown) => ended,
        };
        let body = match ended {
            Ok(code) => json!({"StatusCode": code, "Error": null}),
            Err(message) => json!({"StatusCode": 0, "Error": {"Message": message}}),
        };
        Ok::<_, std::io::Error>(Bytes::from(format!("{body}\n")))
    };
    let body = Body::from_stream(futures_util::stream::once(answer));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// `next` changes when a further run of one that has ended is prepared; `shown`: it still has its name.
async fn ended(
    containers: &Containers,
    state: &ContainerState,
    condition: Condition,
    next: Option<watch::Receiver<()>>,
    shown: impl Fn() -> bool,
) -> Result<i32, String> {
    let code = match (&state.status, condition) {
        // It never ran, so it does not run.
        (Status::Created, Condition::NotRunning) => 0,
        (Status::Exited(exit), Condition::NotRunning | Condition::Removed) => exit.code,
        (Status::Exited(exit), Condition::NextExit) => match next {
            Some(mut next) => match next.changed().await {
                Ok(()) => containers.runtime.wait(&state.id).await.map_err(|error| crate::chain(&error))?.code,
                // It was removed instead.
                Err(_) => exit.code,
            },
            // A task's will not run again, and so it will not end again: what there is to say is how it ended.
            None => exit.code,
        },
        _ => match containers.runtime.wait(&state.id).await {
            Ok(exit) => exit.code,
            Err(error) => return Err(crate::chain(&error)),
        },
    };
    if condition == Condition::Removed {
        while shown() || containers.runtime.list().await.iter().any(|one| one.id == state.id) {
            tokio::time::sleep(REMOVED_EVERY).await;
        }
    }
    Ok(code)
}

pub(super) fn of_task(state: &ContainerState, verb: &str, instead: &str) -> ApiError {
    let task = state.labels.get(TASK_LABEL).map_or("a task", String::as_str);
    let service = state.labels.get("com.docker.swarm.service.name").map(String::as_str).unwrap_or_default();
    ApiError::conflict(format!(
        "container {} cannot be {verb} by itself: it belongs to task {task} of service {service:?}, and the cluster \
         decides over it; {instead}",
        find::name(state)
    ))
}
