//! `/nodes`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use deploy::allocator::Troubles;
use deploy::control::{Op, RemoveNode, UpdateNode};
use deploy::model::Node;
use deploy::store::Store;

use super::App;
use super::convert::{node_spec_from_wire, node_tls_info, node_to_wire, role_name};
use super::error::ApiError;
use super::extract::{JsonBody, Params};
use super::resolve::resolve;
use super::wire;
use crate::engine::Engine;

/// The node that a user means by an id, a hostname or the beginning of an id.
pub(super) fn find<'a>(store: &'a Store, wanted: &str) -> Result<&'a Arc<Node>, ApiError> {
    // Hostnames are not unique, and a name given by a user is one more.
    if store.node(&deploy::model::NodeId::new(wanted)).is_none()
        && let [one] = store.nodes_by_name(wanted)[..]
    {
        return Ok(one);
    }
    let nodes: Vec<&Arc<Node>> = store.nodes().collect();
    resolve("node", wanted, nodes.iter().copied(), |n| n.id.as_str(), |n| &n.description.hostname)
}

pub(super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<wire::Node>>, ApiError> {
    let filters = params.filters(&["id", "label", "membership", "name", "node.label", "role"])?;
    if !filters.any("role", |r| matches!(r, "worker" | "manager")) {
        return Err(ApiError::invalid("Invalid role filter: must be worker or manager"));
    }
    if !filters.any("membership", |m| matches!(m, "accepted" | "pending")) {
        return Err(ApiError::invalid("Invalid membership filter: must be accepted or pending"));
    }
    let store = app.store(&params).await?;
    let view = app.engine.manager_view();
    let tls = |node: &Node| store.cluster().map(|cluster| node_tls_info(cluster, node));
    let wanted = |n: &&Arc<Node>| {
        filters.prefix("id", n.id.as_str())
            && filters.any("name", |name| n.description.hostname.starts_with(name) || n.spec.name.starts_with(name))
            && filters.exact("role", role_name(n.spec.role()))
            && filters.labels("label", &n.description.engine_labels)
            && filters.labels("node.label", &n.spec.labels)
            // Every node that is in the store was accepted; those that were not are nowhere.
            && filters.exact("membership", "accepted")
    };
    let troubles = Troubles::new(&store);
    let shown = |n: &Node| with_troubles(node_to_wire(n, &view, tls(n)), &troubles.of(n));
    Ok(Json(store.nodes().filter(wanted).map(|n| shown(n)).collect()))
}

/// What the host cannot do stands in its status, behind what was observed of it.
fn with_troubles(mut node: wire::Node, troubles: &[String]) -> wire::Node {
    if let Some(status) = node.status.as_mut().filter(|_| !troubles.is_empty()) {
        let observed = status.message.take();
        status.message = Some(observed.iter().chain(troubles).cloned().collect::<Vec<_>>().join("; "));
    }
    node
}

pub(super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<wire::Node>, ApiError> {
    let store = app.store(&params).await?;
    let node = find(&store, &id)?;
    let tls = store.cluster().map(|cluster| node_tls_info(cluster, node));
    let troubles = Troubles::new(&store).of(node);
    Ok(Json(with_troubles(node_to_wire(node, &app.engine.manager_view(), tls), &troubles)))
}

pub(super) async fn update<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(w): JsonBody<wire::NodeSpec>,
) -> Result<(), ApiError> {
    let version = params.version("node")?;
    let spec = node_spec_from_wire(w)?;
    let store = app.store(&params).await?;
    let id = find(&store, &id)?.id.clone();
    app.control(Op::UpdateNode(UpdateNode { id, version, spec })).await?;
    Ok(())
}

pub(super) async fn remove<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<(), ApiError> {
    let store = app.store(&params).await?;
    let id = find(&store, &id)?.id.clone();
    app.control(Op::RemoveNode(RemoveNode { id, force: params.flag("force") })).await?;
    Ok(())
}
