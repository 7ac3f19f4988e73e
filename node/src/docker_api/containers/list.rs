//! `GET /containers/json`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use runtime::{ContainerDetail, ContainerState, ExitStatus, Runtime, Status};
use serde_json::{Value, json};

use super::super::App;
use super::super::error::ApiError;
use super::super::extract::Params;
use super::super::filters::Filters;
use super::inspect::{Names, mounts, network_mode, networks};
use super::{find, health, plain};
use crate::agent::IMAGE_LABEL;
use crate::agent::health::{Health, HealthView};
use crate::agent::plain::View;
use crate::clock;
use crate::engine::Engine;

const FILTERS: [&str; 14] = [
    "ancestor", "before", "exited", "health", "id", "is-task", "label", "name", "network", "publish", "expose",
    "since", "status", "volume",
];
const HEALTHS: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];
const STATES: [&str; 7] = ["created", "restarting", "running", "removing", "paused", "exited", "dead"];

pub(in super::super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    if let Some(bad) = filters.values("status").into_iter().flatten().find(|s| !STATES.contains(&s.as_str())) {
        return Err(ApiError::invalid(format!("invalid filter 'status={bad}'")));
    }
    if let Some(bad) = filters.values("health").into_iter().flatten().find(|h| !HEALTHS.contains(&h.as_str())) {
        return Err(ApiError::invalid(format!("unrecognized filter value for health: {bad}")));
    }
    let sizes = if params.flag("size") { Some(Sizes::read(&app).await) } else { None };
    let limit = match params.get("limit").map(str::parse::<i64>) {
        None => None,
        Some(Ok(number)) => usize::try_from(number).ok().filter(|number| *number > 0),
        Some(Err(_)) => return Err(ApiError::invalid("invalid value for limit")),
    };
    let Some(containers) = app.engine.containers() else { return Ok(Json(Vec::new())) };
    let mut all = containers.runtime.list().await;
    // The newest first, as everywhere in Docker.
    all.sort_by_key(|state| std::cmp::Reverse((state.created_at, state.id.clone())));
    // A status that is asked for is shown though it is not running.
    let every = params.flag("all")
        || limit.is_some()
        || filters.values("status").is_some()
        || filters.values("exited").is_some();
    let wanted = Wanted::new(&filters, &all)?;
    let (images, mut shown) = (Names::read(&app).await, Vec::new());
    for state in &all {
        let view = plain::view(&app, state);
        let waits = view.as_ref().is_some_and(|view| view.waits);
        if !(every || waits || find::is_running(state)) || !wanted.has(state, waits) {
            continue;
        }
        if limit.is_some_and(|limit| shown.len() >= limit) {
            break;
        }
        // One that is removed in this moment is not listed.
        let Ok(detail) = containers.runtime.inspect(&state.id).await else { continue };
        let health = health::of(&containers.runtime, &detail.state).await;
        if !filters.exact("health", health::word(health.as_ref())) {
            continue;
        }
        let task = find::task(&app, state).await;
        let mut summary = summary(&detail, &images, task.as_ref(), health.as_ref());
        if let Some(view) = &view {
            put(view, &mut summary);
        }
        if let Some(sizes) = &sizes {
            sizes.put(&containers.runtime, state, &mut summary).await;
        }
        let networks = summary["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
        let on_network = |wanted: &str| {
            networks.iter().any(|(name, network)| name == wanted || network["NetworkID"].as_str() == Some(wanted))
        };
        let image = summary["Image"].as_str().unwrap_or_default();
        let id = summary["ImageID"].as_str().unwrap_or_default();
        let of_image = |wanted: &str| is_of_image(wanted, image, id);
        let volumes = detail.config.mounts.iter().map(|mount| mount.target.display().to_string()).collect::<Vec<_>>();
        if filters.any("network", on_network)
            && filters.any("ancestor", of_image)
            && filters.any("volume", |wanted| volumes.iter().any(|volume| volume == wanted))
            && filters.any("publish", |wanted| publishes(&summary, wanted))
            && filters.any("expose", |_| false)
        {
            shown.push(summary);
        }
    }
    Ok(Json(shown))
}

/// What the containers of this host take of its disk, as Docker shows it.
pub(in super::super) async fn all_with_sizes<E: Engine>(app: &App<E>) -> Vec<Value> {
    let Some(containers) = app.engine.containers() else { return Vec::new() };
    let (images, sizes) = (Names::read(app).await, Sizes::read(app).await);
    let mut shown = Vec::new();
    for state in containers.runtime.list().await {
        let Ok(detail) = containers.runtime.inspect(&state.id).await else { continue };
        let (task, health) = (find::task(app, &state).await, health::of(&containers.runtime, &state).await);
        let mut summary = summary(&detail, &images, task.as_ref(), health.as_ref());
        sizes.put(&containers.runtime, &state, &mut summary).await;
        shown.push(summary);
    }
    shown
}

/// How large the images of this host are.
pub(super) struct Sizes(BTreeMap<String, u64>);

impl Sizes {
    pub(super) async fn read<E: Engine>(app: &App<E>) -> Self {
        let images = app.engine.images();
        let listed = tokio::task::spawn_blocking(move || images.list()).await.unwrap_or_default();
        Self(listed.into_iter().map(|image| (image.id.to_string(), image.size)).collect())
    }

    /// Adds `SizeRw`, what the container has written, and `SizeRootFs`, the same with its image.
    pub(super) async fn put(&self, runtime: &Runtime, state: &ContainerState, object: &mut Value) {
        let written = runtime.written(&state.id).await.unwrap_or_default();
        let image = state.labels.get(IMAGE_LABEL).and_then(|id| self.0.get(id)).copied().unwrap_or_default();
        object["SizeRw"] = written.into();
        object["SizeRootFs"] = (image + written).into();
    }
}

fn is_of_image(wanted: &str, name: &str, id: &str) -> bool {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    wanted == name
        || wanted == id
        || format!("{wanted}:latest") == name
        || (wanted.len() >= 6 && hex.starts_with(wanted))
}

/// Filters that need nothing but the container's state.
struct Wanted<'a> {
    filters: &'a Filters,
    before: Option<SystemTime>,
    since: Option<SystemTime>,
    exited: Option<BTreeSet<i32>>,
    is_task: Option<bool>,
}

impl<'a> Wanted<'a> {
    fn new(filters: &'a Filters, all: &[ContainerState]) -> Result<Self, ApiError> {
        let created = |key: &str| -> Result<Option<SystemTime>, ApiError> {
            let Some(wanted) = filters.values(key).and_then(|values| values.first()) else { return Ok(None) };
            let plain = wanted.trim_start_matches('/');
            let found = all.iter().find(|c| c.id.starts_with(plain) || find::name(c) == plain);
            found.map(|state| Some(state.created_at)).ok_or_else(|| find::no_such(wanted))
        };
        let exited = filters
            .values("exited")
            .map(|codes| {
                let parse = |code: &String| {
                    code.parse().map_err(|_| ApiError::invalid(format!("invalid filter 'exited={code}'")))
                };
                codes.iter().map(parse).collect::<Result<_, _>>()
            })
            .transpose()?;
        Ok(Self {
            filters,
            before: created("before")?,
            since: created("since")?,
            exited,
            is_task: filters.flag("is-task")?,
        })
    }

    /// `waits`: it has ended and is about to be started again, which counts as running.
    fn has(&self, state: &ContainerState, waits: bool) -> bool {
        let named = |wanted: &str| find::name(state).contains(wanted.trim_start_matches('/'));
        let code = match &state.status {
            Status::Exited(exit) if !waits => Some(exit.code),
            _ => None,
        };
        self.filters.prefix("id", &state.id)
            && self.filters.any("name", named)
            && self.filters.labels("label", &state.labels)
            && self.filters.exact("status", if waits { "restarting" } else { word(state) })
            && self.before.is_none_or(|before| state.created_at < before)
            && self.since.is_none_or(|since| state.created_at > since)
            && self.exited.as_ref().is_none_or(|codes| code.is_some_and(|code| codes.contains(&code)))
            && self.is_task.is_none_or(|yes| yes == state.labels.contains_key(crate::agent::TASK_LABEL))
    }
}

/// Docker's word for where a container stands.
pub(super) fn word(state: &ContainerState) -> &'static str {
    match state.status {
        Status::Created => "created",
        Status::Running if state.paused => "paused",
        Status::Running => "running",
        Status::Exited(_) => "exited",
    }
}

fn summary(
    detail: &ContainerDetail,
    images: &Names,
    task: Option<&deploy::model::Task>,
    health: Option<&HealthView>,
) -> Value {
    let (state, config) = (&detail.state, &detail.config);
    let (image, image_id) = images.of(state, task);
    json!({
        "Id": state.id,
        "Names": [format!("/{}", find::name(state))],
        "Image": image,
        "ImageID": image_id,
        "Command": config.args.join(" "),
        "Created": seconds(state.created_at),
        "Ports": [],
        "Labels": state.labels,
        "State": word(state),
        "Status": status_text(state, health, SystemTime::now()),
        "HostConfig": {"NetworkMode": network_mode(config, task)},
        "NetworkSettings": {"Networks": networks(images, task)},
        "Mounts": mounts(config),
    })
}

/// What only containers outside of services have.
fn put(view: &View, summary: &mut Value) {
    summary["Ports"] = plain::ports(view).into();
    summary["HostConfig"]["NetworkMode"] = plain::mode(view).into();
    summary["NetworkSettings"]["Networks"] = Value::Object(plain::networks(view));
    if view.waits {
        summary["State"] = "restarting".into();
        if let Some(rest) = summary["Status"].as_str().and_then(|text| text.strip_prefix("Exited")) {
            summary["Status"] = format!("Restarting{rest}").into();
        }
    }
}

/// Whether a container publishes a port: `8080`, `8080/tcp`.
fn publishes(summary: &Value, wanted: &str) -> bool {
    let (number, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
    let ports = summary["Ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Ok(number) = number.parse::<u64>() else { return false };
    ports.iter().any(|port| port["PublicPort"] == number && port["Type"] == protocol)
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `Up 3 minutes`, `Up 3 minutes (healthy)`, `Exited (0) 2 seconds ago`, ...
fn status_text(state: &ContainerState, health: Option<&HealthView>, now: SystemTime) -> String {
    let since = |at: SystemTime| clock::in_words(now.duration_since(at).unwrap_or_default());
    match &state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => {
            let up = since(state.started_at.unwrap_or(state.created_at));
            match health.map(|view| view.health) {
                _ if state.paused => format!("Up {up} (Paused)"),
                None => format!("Up {up}"),
                Some(Health::Starting) => format!("Up {up} (health: starting)"),
                Some(_) => format!("Up {up} ({})", health::word(health)),
            }
        }
        Status::Exited(ExitStatus { code, finished_at, .. }) => format!("Exited ({code}) {} ago", since(*finished_at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_meant_by_name_or_id() {
        let id = "sha256:0123456789abcdef";
        for wanted in ["web:1", id, "012345"] {
            assert!(is_of_image(wanted, "web:1", id), "{wanted}");
        }
        assert!(is_of_image("web", "web:latest", id));
        for wanted in ["web", "0123", "sha256:0123", ""] {
            assert!(!is_of_image(wanted, "web:1", id), "{wanted}");
        }
    }
}
