//! `GET /system/df`: what images, containers and volumes take of this host's disk.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::containers::list::all_with_sizes;
use super::error::ApiError;
use super::extract::{ApiVersion, Params};
use super::images::{blocking, summary};
use super::volumes;
use crate::agent::IMAGE_LABEL;
use crate::engine::Engine;

/// What may be asked for; all of it where nothing is said.
const TYPES: [&str; 4] = ["container", "image", "volume", "build-cache"];

pub(super) async fn disk_usage<E: Engine>(
    State(app): State<App<E>>,
    version: ApiVersion,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    if let Some(unknown) = params.all("type").find(|wanted| !TYPES.contains(wanted)) {
        return Err(ApiError::invalid(format!("unknown object type: {unknown}")));
    }
    let wanted = |kind: &str| params.all("type").next().is_none() || params.all("type").any(|wanted| wanted == kind);
    let mut usage = json!({});
    if wanted("image") {
        let users = users_of_images(&app).await;
        let (images, shared, layers) =
            blocking(app.engine.images(), |images| Ok((images.list(), images.shared_sizes(), images.layers_size())))
                .await?;
        let of = |image| {
            let mut object = summary(image, version);
            object["SharedSize"] = shared.get(&image.id).copied().unwrap_or_default().into();
            object["Containers"] = users.get(&image.id.to_string()).copied().unwrap_or_default().into();
            object
        };
        usage["LayersSize"] = layers.into();
        usage["Images"] = images.iter().map(of).collect();
    }
    if wanted("container") {
        usage["Containers"] = all_with_sizes(&app).await.into();
    }
    if wanted("volume") {
        usage["Volumes"] = volumes::all_with_sizes(&app).await?.into();
    }
    if wanted("build-cache") {
        usage["BuildCache"] = json!([]);
    }
    Ok(Json(usage))
}

/// How many containers there are of each image.
async fn users_of_images<E: Engine>(app: &App<E>) -> BTreeMap<String, u64> {
    let mut users = BTreeMap::new();
    let Some(containers) = app.engine.containers() else { return users };
    for state in containers.runtime.list().await {
        if let Some(image) = state.labels.get(IMAGE_LABEL) {
            *users.entry(image.clone()).or_default() += 1;
        }
    }
    users
}
