//! What a node holds and acts on, for checks from the outside: `GET /shoal/v1/store` and `GET /shoal/v1/agent`.
//!
//! Both answer from memory; the first costs one pass over all objects, to be asked a few times a second at the most.
//! No secret is in the answers: tokens, keys and the bytes of secrets are left out of the objects and count only in
//! the digest.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::App;
use super::convert::task_state_name;
use super::error::ApiError;
use super::extract::Params;
use crate::engine::Engine;

/// The store of a manager: equal on every manager at the same index.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StoreAnswer {
    /// Index of the newest log entry that is in it.
    index: u64,
    /// Term of that entry.
    term: u64,
    /// The lowest level among the managers; what is above it is not written.
    feature_level: u32,
    /// How many entries changed it; `Version.Index` of objects is this count.
    revision: u64,
    /// SHA-256 of everything in it, secrets as well; hexadecimal.
    digest: String,
    /// With `objects=1` in the query: the objects without secrets, as `deploy::store` writes snapshots; base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<String>,
}

/// The store as this manager has it: linearizable, or with `consistency=local` whatever it has applied.
pub(super) async fn store<E: Engine>(State(app): State<App<E>>, params: Params) -> Result<Json<StoreAnswer>, ApiError> {
    let applied = app.engine.applied(super::consistency(&params)?).await?;
    let objects = params.flag("objects").then(|| STANDARD.encode(applied.store.without_secrets().encode_snapshot()));
    Ok(Json(StoreAnswer {
        index: applied.index,
        term: applied.term,
        feature_level: applied.store.cluster().map_or(0, |cluster| cluster.status.feature_level),
        revision: applied.store.revision(),
        digest: hex(&Sha256::digest(applied.store.encode_snapshot())),
        objects,
    }))
}

/// What the agent of a host acts on.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AgentAnswer {
    #[serde(rename = "NodeID")]
    node_id: String,
    /// Whether a manager serves it now.
    connected: bool,
    /// Boot generation of the daemon; within one, the stamp never goes back.
    generation: u64,
    /// Stamp of its assignment set: incarnation of the cluster, term and revision of the store.
    incarnation: u64,
    term: u64,
    revision: u64,
    /// SHA-256 of the set, as `deploy::dispatcher` sends it whole with an empty stamp; hexadecimal.
    digest: String,
    /// Tasks that the set names.
    assigned: Vec<String>,
    /// Tasks that it keeps, also those that ended and were not taken away yet.
    tasks: Vec<AgentTask>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AgentTask {
    #[serde(rename = "ID")]
    id: String,
    state: &'static str,
}

pub(super) async fn agent<E: Engine>(State(app): State<App<E>>) -> Result<Json<AgentAnswer>, ApiError> {
    let agent = app.engine.agent().await?;
    let tasks = agent.tasks.iter();
    let tasks = tasks.map(|(id, state)| AgentTask { id: id.to_string(), state: task_state_name(*state) });
    Ok(Json(AgentAnswer {
        node_id: agent.node_id.to_string(),
        connected: agent.connected,
        generation: agent.generation,
        incarnation: agent.stamp.incarnation,
        term: agent.stamp.term,
        revision: agent.stamp.revision,
        digest: hex(&Sha256::digest(agent.set.to_update(Default::default()).to_bytes())),
        assigned: agent.set.tasks().map(|a| a.task.id.to_string()).collect(),
        tasks: tasks.collect(),
    }))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
