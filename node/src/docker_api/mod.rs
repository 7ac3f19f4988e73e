//! The Docker Engine API, the only public API of Shoal, and what goes beyond it under `/shoal/`.
//!
//! The daemon calls [`serve`] for each listener; everything that requests need of the node goes through
//! [`Engine`](crate::engine::Engine). Handlers read the cluster's objects from a store value, resolve what the user
//! typed, convert between Docker's JSON (`wire`) and the model (`convert`), and hand changes to the leader. They
//! decide nothing: rules live in `deploy::control`.
//!
//! Reads are linearizable: a client sees its own writes whichever manager it talks to. With `consistency=local` in
//! the query a manager answers from what it has, which also works without a leader. `/_ping`, `/version` and `/info`
//! always do.

mod body_reader;
mod containers;
pub mod convert;
mod counters;
mod disk_usage;
mod error;
mod events;
mod extract;
mod filters;
mod host_networks;
mod image_prune;
mod image_save;
mod images;
mod local_networks;
mod logs;
mod names;
mod networks;
mod nodes;
mod payloads;
mod predefined;
mod registries;
mod registry;
mod resolve;
mod server;
mod services;
mod shoal;
mod state;
mod streams;
mod swarm;
mod system;
mod tasks;
mod volumes;
pub mod wire;

pub use counters::Counters;
pub use error::{ApiError, ErrorWord};
pub use server::{Listener, serve};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use deploy::control::{Op, Reply, Request};
use deploy::store::Store;
use hyper::{Method, Uri};
use tokio_util::sync::CancellationToken;

use crate::engine::{Consistency, Engine};
use extract::Params;

/// What every handler has at hand.
#[derive(Clone)]
struct App<E> {
    engine: E,
    /// Ends streams that would otherwise go on for ever.
    shutdown: CancellationToken,
}

impl<E: Engine> App<E> {
    /// The cluster's objects, as fresh as the request wants them.
    async fn store(&self, params: &Params) -> Result<Store, ApiError> {
        Ok(self.engine.store(consistency(params)?).await?)
    }

    /// Carries out a change through the leader.
    async fn control(&self, op: Op) -> Result<Reply, ApiError> {
        Ok(self.engine.control(Request { op: Some(op) }).await?)
    }
}

/// How fresh a request wants its answer.
fn consistency(params: &Params) -> Result<Consistency, ApiError> {
    match params.get("consistency") {
        Some("local") => Ok(Consistency::Local),
        None | Some("linearizable") => Ok(Consistency::Linearizable),
        Some(other) => Err(ApiError::invalid(format!("invalid consistency {other:?}"))),
    }
}

/// Every route, for one engine.
fn router<E: Engine>(engine: E, shutdown: CancellationToken) -> Router {
    Router::new()
        .merge(cluster_routes::<E>())
        .merge(object_routes::<E>())
        .merge(image_routes::<E>())
        .merge(container_routes::<E>())
        .merge(other_routes::<E>())
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(page_not_found)
        // Bodies are bounded where they are read: JSON by `JsonBody`, archives by the image store.
        .layer(DefaultBodyLimit::disable())
        .with_state(App { engine, shutdown })
}

fn cluster_routes<E: Engine>() -> Router<App<E>> {
    Router::new()
        .route("/_ping", get(system::ping::<E>))
        .route("/version", get(system::version::<E>))
        .route("/info", get(system::info::<E>))
        .route("/swarm", get(swarm::inspect::<E>))
        .route("/swarm/init", post(swarm::init::<E>))
        .route("/swarm/join", post(swarm::join::<E>))
        .route("/swarm/leave", post(swarm::leave::<E>))
        .route("/swarm/update", post(swarm::update::<E>))
        .route("/swarm/unlockkey", get(swarm::unlock_key::<E>))
        .route("/swarm/unlock", post(swarm::unlock::<E>))
        .route("/nodes", get(nodes::list::<E>))
        .route("/nodes/{id}", get(nodes::inspect::<E>).delete(nodes::remove::<E>))
        .route("/nodes/{id}/update", post(nodes::update::<E>))
}

fn object_routes<E: Engine>() -> Router<App<E>> {
    Router::new()
        .route("/services", get(services::list::<E>))
        .route("/services/create", post(services::create::<E>))
        .route("/services/{id}", get(services::inspect::<E>).delete(services::remove::<E>))
        .route("/services/{id}/update", post(services::update::<E>))
        .route("/services/{id}/logs", get(logs::service::<E>))
        .route("/tasks", get(tasks::list::<E>))
        .route("/tasks/{id}", get(tasks::inspect::<E>))
        .route("/tasks/{id}/logs", get(logs::task::<E>))
        .route("/networks", get(networks::list::<E>))
        .route("/networks/create", post(networks::create::<E>))
        .route("/networks/prune", post(networks::prune::<E>))
        .route("/networks/{id}/connect", post(networks::connect))
        .route("/networks/{id}/disconnect", post(networks::connect))
        .route("/networks/{id}", get(networks::inspect::<E>).delete(networks::remove::<E>))
        .route("/secrets", get(payloads::list_secrets::<E>))
        .route("/secrets/create", post(payloads::create_secret::<E>))
        .route("/secrets/{id}", get(payloads::inspect_secret::<E>).delete(payloads::remove_secret::<E>))
        .route("/secrets/{id}/update", post(payloads::update_secret::<E>))
        .route("/configs", get(payloads::list_configs::<E>))
        .route("/configs/create", post(payloads::create_config::<E>))
        .route("/configs/{id}", get(payloads::inspect_config::<E>).delete(payloads::remove_config::<E>))
        .route("/configs/{id}/update", post(payloads::update_config::<E>))
        .route("/shoal/v1/services/{id}/why", get(shoal::why::<E>))
        .route("/shoal/v1/registries", get(registries::list::<E>).post(registries::login::<E>))
        .route("/shoal/v1/registries/{registry}", delete(registries::logout::<E>))
        .route("/shoal/v1/store", get(state::store::<E>))
        .route("/shoal/v1/agent", get(state::agent::<E>))
        .route("/shoal/v1/network/check", get(host_networks::check::<E>))
        .route("/shoal/v1/recover", post(shoal::recover::<E>))
        .route("/shoal/v1/backup", get(shoal::backup::<E>))
        .route("/shoal/v1/restore", post(shoal::restore::<E>))
}

fn image_routes<E: Engine>() -> Router<App<E>> {
    Router::new()
        .route("/images/json", get(images::list::<E>))
        .route("/images/load", post(images::load::<E>))
        .route("/images/create", post(images::create::<E>))
        // Names of images have slashes in them, so what is asked of an image is found at the end of the path.
        .route("/images/{*rest}", get(images::get::<E>).post(images::post::<E>).delete(images::remove::<E>))
        .route("/auth", post(registry::auth::<E>))
        .route("/distribution/{*rest}", get(registry::inspect::<E>))
}

fn container_routes<E: Engine>() -> Router<App<E>> {
    use containers::{actions, archive, attach, exec, inspect, list, logs, plain, stats, top};
    Router::new()
        .route("/containers/json", get(list::list::<E>))
        .route("/containers/create", post(plain::create::<E>))
        .route("/containers/prune", post(plain::prune::<E>))
        .route("/containers/{id}", delete(plain::remove::<E>))
        .route("/containers/{id}/json", get(inspect::inspect::<E>))
        .route("/containers/{id}/logs", get(logs::logs::<E>))
        .route("/containers/{id}/top", get(top::top::<E>))
        .route("/containers/{id}/stats", get(stats::stats::<E>))
        .route("/containers/{id}/attach", post(attach::attach::<E>))
        .route("/containers/{id}/attach/ws", get(attach::websocket))
        .route("/containers/{id}/archive", get(archive::get::<E>).head(archive::head::<E>).put(archive::put::<E>))
        .route("/containers/{id}/changes", get(archive::changes::<E>))
        .route("/containers/{id}/export", get(archive::export::<E>))
        .route("/containers/{id}/resize", post(actions::resize::<E>))
        .route("/containers/{id}/kill", post(actions::kill::<E>))
        .route("/containers/{id}/stop", post(actions::stop::<E>))
        .route("/containers/{id}/start", post(plain::start::<E>))
        .route("/containers/{id}/restart", post(plain::restart::<E>))
        .route("/containers/{id}/rename", post(plain::rename::<E>))
        .route("/containers/{id}/update", post(plain::update::<E>))
        .route("/containers/{id}/pause", post(actions::pause::<E>))
        .route("/containers/{id}/unpause", post(actions::unpause::<E>))
        .route("/containers/{id}/wait", post(actions::wait::<E>))
        .route("/containers/{id}/exec", post(exec::create::<E>))
        .route("/exec/{id}/start", post(exec::start::<E>))
        .route("/exec/{id}/resize", post(exec::resize::<E>))
        .route("/exec/{id}/json", get(exec::inspect::<E>))
}

fn other_routes<E: Engine>() -> Router<App<E>> {
    Router::new()
        .route("/system/df", get(disk_usage::disk_usage::<E>))
        .route("/events", get(events::events::<E>))
        .route("/build/prune", post(containers::prune_builds))
        .route("/volumes", get(volumes::list::<E>))
        .route("/volumes/create", post(volumes::create::<E>))
        .route("/volumes/prune", post(volumes::prune::<E>))
        .route("/volumes/{name}", get(volumes::inspect::<E>).delete(volumes::remove::<E>).put(volumes::update))
        .route("/plugins", get(containers::plugins))
        .route("/plugins/{*rest}", get(containers::plugin))
}

async fn page_not_found(method: Method, uri: Uri) -> ApiError {
    if containers::is_dockers(uri.path()) {
        return containers::not_built(&method, uri.path());
    }
    ApiError::not_found("page not found")
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    if containers::is_dockers(uri.path()) {
        return containers::not_built(&method, uri.path());
    }
    ApiError::new(hyper::StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
}
