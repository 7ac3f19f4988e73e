//! The cluster's credentials for registries, `/shoal/v1/registries`, and who uses them.
//!
//! Whoever asks a manager for something at a registry and sends no credentials has the cluster's; what users send comes
//! before them. They never come back: a list shows registries and the names of users.

use axum::Json;
use axum::extract::{Path, State};
use deploy::control::{Op, RemoveRegistry, SetRegistry};
use deploy::model::{Registry, RegistryAuth, RegistryId};
use hyper::StatusCode;
use runtime::image::Reference;
use runtime::image::registry::{Credentials, registry_name};
use serde_json::{Value, json};

use super::App;
use super::convert::time_to_wire;
use super::error::ApiError;
use super::extract::{JsonBody, Params};
use super::registry;
use super::wire::RegistryLogin;
use crate::engine::{Consistency, Engine};

pub(super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<RegistryLogin>>, ApiError> {
    let store = app.store(&params).await?;
    Ok(Json(store.registries().map(|registry| to_wire(registry)).collect()))
}

fn to_wire(m: &Registry) -> RegistryLogin {
    let (username, kind) = match Credentials::from_header(&m.auth.header) {
        Ok(Credentials::Basic { username, .. }) => (username, "password"),
        Ok(Credentials::Identity(_)) => (String::new(), "identity token"),
        Ok(Credentials::Bearer(_)) => (String::new(), "token"),
        Ok(Credentials::Anonymous) | Err(_) => (String::new(), "unknown"),
    };
    RegistryLogin {
        registry: Some(m.id.to_string()),
        username: Some(username),
        kind: Some(kind.to_owned()),
        created_at: Some(time_to_wire(m.meta.created_at)),
        updated_at: Some(time_to_wire(m.meta.updated_at)),
    }
}

/// Keeps the credentials in the body, an `AuthConfig` as `/auth` takes it, if its registry takes them.
pub(super) async fn login<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(body): JsonBody<Value>,
) -> Result<Json<Value>, ApiError> {
    let invalid = |e: &dyn std::fmt::Display| ApiError::invalid(e.to_string());
    let credentials = Credentials::from_json(body.to_string().as_bytes()).map_err(|e| invalid(&e))?;
    if credentials == Credentials::Anonymous {
        return Err(ApiError::invalid("there are no credentials in the request"));
    }
    let name = name(registry::server_address(&body))?;
    // Who is no manager says so before a registry is asked.
    app.engine.store(Consistency::Local).await?;
    app.engine.registries().login(&name, &credentials).await.map_err(|e| registry::error(&e))?;
    let auth = RegistryAuth { header: credentials.to_header() };
    app.control(Op::SetRegistry(SetRegistry { id: RegistryId::new(&name), auth })).await?;
    tracing::info!(registry = name, "the cluster has new credentials for a registry");
    Ok(Json(json!({"Registry": name, "Status": "Login Succeeded"})))
}

pub(super) async fn logout<E: Engine>(
    State(app): State<App<E>>,
    Path(registry): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.control(Op::RemoveRegistry(RemoveRegistry { id: RegistryId::new(name(&registry)?) })).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn name(registry: &str) -> Result<String, ApiError> {
    registry_name(registry).map_err(|e| ApiError::invalid(e.to_string()))
}

/// Those to ask the registry of an image with: what a user sent, else the cluster's.
pub(super) async fn credentials<E: Engine>(app: &App<E>, image: &Reference, sent: Credentials) -> Credentials {
    match sent {
        Credentials::Anonymous => of_cluster(app, image).await.unwrap_or_default(),
        sent => sent,
    }
}

/// The cluster's credentials for the registry of an image, as far as this host has them: all of them on a manager, those
/// for images of its tasks elsewhere.
pub(super) async fn of_cluster<E: Engine>(app: &App<E>, image: &Reference) -> Option<Credentials> {
    let id = RegistryId::of_image(&image.canonical());
    let auth = match app.engine.store(Consistency::Local).await {
        Ok(store) => store.registry(&id)?.auth.clone(),
        Err(_) => {
            let agent = app.engine.agent().await.ok()?;
            agent.set.registries().find(|registry| registry.id == id)?.auth.clone()
        }
    };
    Credentials::from_header(&auth.header).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The brain and the runtime, which do not know each other, must read names alike.
    #[test]
    fn a_registry_is_called_the_same_everywhere() {
        for image in ["web", "a/web:1", "docker.io/a/web", "index.docker.io/a/web", "r.example/a", "R.example:5/a/b:1"]
        {
            let Ok(reference) = Reference::parse(image) else { panic!("{image}") };
            let id = RegistryId::of_image(image);
            assert_eq!(id, RegistryId::of_image(&reference.canonical()), "{image}");
            assert_eq!(id.as_str(), registry_name(reference.domain()).unwrap(), "{image}");
        }
        assert_eq!(RegistryId::of_image("localhost:5000/a").as_str(), registry_name("localhost:5000").unwrap());
    }
}
