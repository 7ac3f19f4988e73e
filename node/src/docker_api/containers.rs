//! Containers of this host, one file an action; and what of Docker's API is not here yet, said clearly.
//!
//! Lists that would hide something are refused; lists that are truly empty are empty. Inspecting a single object is a
//! proper 404, because `docker inspect NAME` asks one kind after another and goes on after a 404 only.

pub(super) mod actions;
pub(super) mod archive;
pub(super) mod attach;
mod detach;
pub(super) mod exec;
pub(super) mod find;
mod health;
mod hijack;
pub(super) mod inspect;
pub(super) mod list;
pub(super) mod logs;
pub(super) mod plain;
mod pump;
pub(super) mod stats;
pub(super) mod top;

use axum::Json;
use axum::extract::Path;
use hyper::Method;
use serde_json::{Value, json};

use super::error::ApiError;

/// First parts of paths that Docker serves and Shoal does not.
const DOCKERS: [&str; 7] = ["build", "commit", "containers", "exec", "grpc", "session", "system"];

/// Whether Docker has something at this path.
pub(super) fn is_dockers(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|first| DOCKERS.contains(&first))
}

/// The refusal of something that Docker has and Shoal does not.
pub(super) fn not_built(method: &Method, path: &str) -> ApiError {
    ApiError::not_supported(format!("Shoal does not support {method} {path} yet"))
}

/// `docker system prune` asks for it. Shoal builds nothing, and so nothing is kept of builds.
pub(super) async fn prune_builds() -> Json<Value> {
    Json(json!({"CachesDeleted": [], "SpaceReclaimed": 0}))
}

pub(super) async fn plugins() -> Json<Value> {
    Json(json!([]))
}

pub(super) async fn plugin(Path(rest): Path<String>) -> ApiError {
    let name = rest.strip_suffix("/json").unwrap_or(&rest);
    ApiError::not_found(format!("plugin {name:?} not found"))
}
