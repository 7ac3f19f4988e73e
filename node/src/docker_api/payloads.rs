//! `/secrets` and `/configs`: the same, but that a secret's bytes never come back.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use deploy::control::{CreateConfig, CreateSecret, Op, RemoveConfig, RemoveSecret, UpdateConfigLabels, UpdateSecret};
use deploy::model::{Config, Labels, Meta, PayloadSpec, Secret};
use deploy::store::Store;
use hyper::StatusCode;

use super::App;
use super::convert::{refuse_set, time_to_wire, version};
use super::error::ApiError;
use super::extract::{JsonBody, Params};
use super::filters::Filters;
use super::resolve::resolve;
use super::wire;
use crate::engine::Engine;

const FILTERS: [&str; 4] = ["id", "label", "name", "names"];

fn from_wire(w: wire::PayloadSpec) -> Result<PayloadSpec, ApiError> {
    refuse_set("Driver", &w.driver)?;
    refuse_set("Templating", &w.templating)?;
    let data = w.data.unwrap_or_default();
    Ok(PayloadSpec {
        name: w.name.unwrap_or_default(),
        labels: w.labels.unwrap_or_default(),
        // Go's clients write the standard alphabet with padding, some tools the one for URLs.
        data: BASE64
            .decode(&data)
            .or_else(|_| base64::engine::general_purpose::URL_SAFE.decode(&data))
            .map_err(|e| ApiError::invalid(format!("Data is not base64: {e}")))?,
    })
}

fn to_wire(id: &str, meta: &Meta, spec: &PayloadSpec, with_data: bool) -> wire::Payload {
    wire::Payload {
        id: Some(id.to_owned()),
        version: version(meta),
        created_at: Some(time_to_wire(meta.created_at)),
        updated_at: Some(time_to_wire(meta.updated_at)),
        spec: Some(wire::PayloadSpec {
            name: Some(spec.name.clone()),
            labels: Some(spec.labels.clone()),
            data: with_data.then(|| BASE64.encode(&spec.data)),
            driver: None,
            templating: None,
        }),
    }
}

fn secret_to_wire(m: &Secret) -> wire::Payload {
    to_wire(m.id.as_str(), &m.meta, &m.spec, false)
}

fn config_to_wire(m: &Config) -> wire::Payload {
    to_wire(m.id.as_str(), &m.meta, &m.spec, true)
}

fn wanted(filters: &Filters, id: &str, name: &str, labels: &Labels) -> bool {
    filters.prefix("id", id)
        && filters.prefix("name", name)
        && filters.exact("names", name)
        && filters.labels("label", labels)
}

fn created(id: String) -> (StatusCode, Json<wire::IdResponse>) {
    (StatusCode::CREATED, Json(wire::IdResponse { id: Some(id), ..Default::default() }))
}

fn find_secret<'a>(store: &'a Store, wanted: &str) -> Result<&'a Arc<Secret>, ApiError> {
    let secrets: Vec<&Arc<Secret>> = store.secrets().collect();
    resolve("secret", wanted, secrets.iter().copied(), |s| s.id.as_str(), |s| &s.spec.name)
}

fn find_config<'a>(store: &'a Store, wanted: &str) -> Result<&'a Arc<Config>, ApiError> {
    let configs: Vec<&Arc<Config>> = store.configs().collect();
    resolve("config", wanted, configs.iter().copied(), |c| c.id.as_str(), |c| &c.spec.name)
}

pub(super) async fn list_secrets<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<wire::Payload>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let store = app.store(&params).await?;
    let fits = |s: &&Arc<Secret>| wanted(&filters, s.id.as_str(), &s.spec.name, &s.spec.labels);
    Ok(Json(store.secrets().filter(fits).map(|s| secret_to_wire(s)).collect()))
}

pub(super) async fn list_configs<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<wire::Payload>>, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let store = app.store(&params).await?;
    let fits = |c: &&Arc<Config>| wanted(&filters, c.id.as_str(), &c.spec.name, &c.spec.labels);
    Ok(Json(store.configs().filter(fits).map(|c| config_to_wire(c)).collect()))
}

pub(super) async fn inspect_secret<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<wire::Payload>, ApiError> {
    let store = app.store(&params).await?;
    Ok(Json(secret_to_wire(find_secret(&store, &id)?)))
}

pub(super) async fn inspect_config<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<wire::Payload>, ApiError> {
    let store = app.store(&params).await?;
    Ok(Json(config_to_wire(find_config(&store, &id)?)))
}

pub(super) async fn create_secret<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::PayloadSpec>,
) -> Result<(StatusCode, Json<wire::IdResponse>), ApiError> {
    let reply = app.control(Op::CreateSecret(CreateSecret { spec: from_wire(w)? })).await?;
    Ok(created(reply.id))
}

pub(super) async fn create_config<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::PayloadSpec>,
) -> Result<(StatusCode, Json<wire::IdResponse>), ApiError> {
    let reply = app.control(Op::CreateConfig(CreateConfig { spec: from_wire(w)? })).await?;
    Ok(created(reply.id))
}

pub(super) async fn update_secret<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(w): JsonBody<wire::PayloadSpec>,
) -> Result<(), ApiError> {
    let version = params.version("secret")?;
    let spec = from_wire(w)?;
    let store = app.store(&params).await?;
    let id = find_secret(&store, &id)?.id.clone();
    app.control(Op::UpdateSecret(UpdateSecret { id, version, spec })).await?;
    Ok(())
}

pub(super) async fn update_config<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(w): JsonBody<wire::PayloadSpec>,
) -> Result<(), ApiError> {
    let version = params.version("config")?;
    let spec = from_wire(w)?;
    let store = app.store(&params).await?;
    let id = find_config(&store, &id)?.id.clone();
    app.control(Op::UpdateConfig(UpdateConfigLabels { id, version, spec })).await?;
    Ok(())
}

pub(super) async fn remove_secret<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let store = app.store(&params).await?;
    let id = find_secret(&store, &id)?.id.clone();
    app.control(Op::RemoveSecret(RemoveSecret { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn remove_config<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let store = app.store(&params).await?;
    let id = find_config(&store, &id)?.id.clone();
    app.control(Op::RemoveConfig(RemoveConfig { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}
