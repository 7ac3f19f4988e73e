//! `/volumes`: those of this host, whichever service or person made them.

use axum::Json;
use axum::extract::{Path, State};
use hyper::StatusCode;
use runtime::{ANONYMOUS_LABEL, RuntimeError, Volume, VolumeError, VolumeSpec, Volumes};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::App;
use super::convert::refuse_set;
use super::error::ApiError;
use super::extract::{ApiVersion, JsonBody, Params};
use super::filters::Filters;
use super::wire;
use crate::engine::Engine;

/// The first version in which a prune spares volumes that somebody gave a name.
const SPARES_NAMED: ApiVersion = ApiVersion(1, 42);

fn error(e: &RuntimeError) -> ApiError {
    let message = crate::chain(e);
    match e {
        RuntimeError::Volume(VolumeError::NotFound(_) | VolumeError::NoDriver(_)) => ApiError::not_found(message),
        RuntimeError::Volume(VolumeError::InUse { .. } | VolumeError::MountedInside { .. }) => {
            ApiError::conflict(message)
        }
        RuntimeError::Volume(VolumeError::Invalid(_)) => ApiError::invalid(message),
        _ => ApiError::internal(message),
    }
}

/// Does something with the volumes where it may block.
async fn blocking<T: Send + 'static>(
    volumes: Volumes,
    work: impl FnOnce(&Volumes) -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(move || work(&volumes))
        .await
        .map_err(|e| ApiError::internal(format!("the thread of the volumes failed: {e}")))?
        .map_err(|e| error(&e))
}

fn to_wire(volume: Volume) -> wire::Volume {
    let created = OffsetDateTime::from(volume.created_at).replace_nanosecond(0).ok();
    wire::Volume {
        created_at: created.and_then(|at| at.format(&Rfc3339).ok()),
        driver: Some("local".to_owned()),
        labels: Some(volume.labels),
        mountpoint: Some(volume.mountpoint.display().to_string()),
        name: Some(volume.name),
        options: Some(volume.options),
        scope: Some("local".to_owned()),
    }
}

pub(super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<wire::VolumeList>, ApiError> {
    let filters = params.filters(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.flag("dangling")?;
    let wanted = |volume: &Volume| {
        filters.any("name", |name| volume.name.contains(name))
            && filters.exact("driver", "local")
            && filters.labels("label", &volume.labels)
            && dangling.is_none_or(|yes| yes == volume.containers.is_empty())
    };
    let volumes = app.engine.volumes().list().into_iter().filter(wanted).map(to_wire).collect();
    Ok(Json(wire::VolumeList { volumes: Some(volumes), warnings: Some(Vec::new()) }))
}

/// All volumes of this host with how much is in each and how many containers have it.
pub(super) async fn all_with_sizes<E: Engine>(app: &App<E>) -> Result<Vec<Value>, ApiError> {
    let of = |volumes: &Volumes, volume: Volume| {
        let usage = json!({"Size": volumes.size(&volume.name), "RefCount": volume.containers.len()});
        let mut object = serde_json::to_value(to_wire(volume)).unwrap_or_default();
        object["UsageData"] = usage;
        object
    };
    blocking(app.engine.volumes(), move |volumes| {
        Ok(volumes.list().into_iter().map(|volume| of(volumes, volume)).collect())
    })
    .await
}

pub(super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(name): Path<String>,
) -> Result<Json<wire::Volume>, ApiError> {
    Ok(Json(to_wire(app.engine.volumes().get(&name).map_err(|e| error(&e))?)))
}

pub(super) async fn create<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::VolumeCreate>,
) -> Result<(StatusCode, Json<wire::Volume>), ApiError> {
    refuse_set("ClusterVolumeSpec", &w.cluster_volume_spec)?;
    let mut spec = VolumeSpec {
        name: w.name.unwrap_or_default(),
        driver: w.driver.unwrap_or_default(),
        options: w.driver_opts.unwrap_or_default(),
        labels: w.labels.unwrap_or_default(),
    };
    if spec.name.is_empty() {
        spec.name = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        spec.labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
    }
    let volume = blocking(app.engine.volumes(), |volumes| volumes.create(spec)).await?;
    Ok((StatusCode::CREATED, Json(to_wire(volume))))
}

pub(super) async fn remove<E: Engine>(
    State(app): State<App<E>>,
    Path(name): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    match blocking(app.engine.volumes(), move |volumes| volumes.remove(&name)).await {
        // Docker's meaning of force: what is not there is removed.
        Err(e) if e.status == StatusCode::NOT_FOUND && params.flag("force") => Ok(StatusCode::NO_CONTENT),
        other => other.map(|()| StatusCode::NO_CONTENT),
    }
}

pub(super) async fn prune<E: Engine>(
    State(app): State<App<E>>,
    version: ApiVersion,
    params: Params,
) -> Result<Json<wire::VolumesPruned>, ApiError> {
    let filters = params.filters(&["all", "label", "label!"])?;
    let all = filters.flag("all")?.unwrap_or(version < SPARES_NAMED);
    let pruned =
        blocking(app.engine.volumes(), move |volumes| Ok(volumes.prune(|volume| prunes(volume, all, &filters))))
            .await?;
    Ok(Json(wire::VolumesPruned { deleted: Some(pruned.names), reclaimed: Some(pruned.bytes) }))
}

fn prunes(volume: &Volume, all: bool, filters: &Filters) -> bool {
    let spared = filters.values("label!").is_some() && filters.labels("label!", &volume.labels);
    (all || volume.is_anonymous()) && filters.labels("label", &volume.labels) && !spared
}

/// What only volumes of a cluster have, and there are none.
pub(super) async fn update(Path(name): Path<String>) -> ApiError {
    ApiError::not_supported(format!("Shoal has no cluster volumes: {name} cannot be updated"))
}
