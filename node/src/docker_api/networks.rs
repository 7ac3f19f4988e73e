//! `/networks`: ingress, the overlays, the networks that every host has of its own, and those that users made on this one.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use deploy::control::{CreateNetwork, ErrorKind, Op, RemoveNetwork, Request};
use deploy::model::{Labels, Network, NetworkId, NodeState, Task};
use deploy::store::Store;
use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::convert::{driver_of, is_of_one_host, network_spec_from_wire, network_to_wire};
use super::error::ApiError;
use super::extract::{JsonBody, Params};
use super::filters::Filters;
use super::host_networks::Here;
use super::image_prune;
use super::local_networks;
use super::predefined;
use super::resolve::resolve;
use super::wire;
use super::{App, consistency};
use crate::agent::plain::LocalView;
use crate::engine::{Consistency, Engine, EngineError, Membership};

/// The network that a user means by an id, a name or the beginning of an id.
pub(super) fn find<'a>(store: &'a Store, wanted: &str) -> Result<&'a Arc<Network>, ApiError> {
    let networks: Vec<&Arc<Network>> = store.networks().collect();
    resolve("network", wanted, networks.iter().copied(), |n| n.id.as_str(), |n| &n.spec.name)
}

/// The store, or none on a node that is no manager: it has no networks to show, and that is no failure.
async fn store_if_manager<E: Engine>(app: &App<E>, params: &Params) -> Result<Option<Store>, ApiError> {
    match app.engine.store(Consistency::Local).await {
        Err(EngineError::NotManager(_)) => Ok(None),
        _ => app.store(params).await.map(Some),
    }
}

/// The same for a list: what this manager has heard last where none leads, unless the client wants it fresh. This host's
/// own networks are shown all the same, and clients look whether one is there before they make it.
async fn store_for_list<E: Engine>(app: &App<E>, params: &Params) -> Result<Option<Store>, ApiError> {
    let known = match app.engine.store(Consistency::Local).await {
        Err(EngineError::NotManager(_)) => return Ok(None),
        known => known.ok().filter(|_| params.get("consistency").is_none()),
    };
    match (app.engine.store(consistency(params)?).await, known) {
        (Err(EngineError::NoLeader), Some(known)) => Ok(Some(known)),
        (fresh, _) => Ok(Some(fresh?)),
    }
}

pub(super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<wire::Network>>, ApiError> {
    let filters = params.filters(&["driver", "id", "label", "name", "scope", "type", "dangling"])?;
    if !filters.any("type", |t| matches!(t, "custom" | "builtin")) {
        return Err(ApiError::invalid("invalid filter: 'type' must be custom or builtin"));
    }
    let dangling = filters.flag("dangling")?;
    // Whoever asks for this host's alone waits for no leader.
    let store = if filters.exact("scope", "swarm") { store_for_list(&app, &params).await? } else { None };
    let own = predefined::ALL.iter().filter(|(name, driver)| {
        filters.prefix("id", &predefined::id(name))
            && filters.any("name", |wanted| name.contains(wanted))
            && filters.exact("driver", driver)
            && filters.exact("scope", "local")
            && filters.labels("label", &Labels::new())
            && filters.exact("type", "builtin")
            && dangling != Some(true)
    });
    let shown = |name: &str| predefined::to_wire(name, "local", std::iter::empty());
    let own = own.map(|(name, _)| wire::Network { containers: None, ..shown(name) });
    let wanted = |n: &&Arc<Network>| {
        filters.prefix("id", n.id.as_str())
            && filters.any("name", |name| n.spec.name.contains(name))
            && filters.exact("driver", &driver_of(n))
            && filters.exact("scope", "swarm")
            && filters.labels("label", &n.spec.labels)
            && filters.exact("type", if n.spec.ingress { "builtin" } else { "custom" })
            && dangling.is_none_or(|yes| {
                let used = |store: &Store| store.services_on_network(&n.id).next().is_some();
                yes == (!n.spec.ingress && !store.as_ref().is_some_and(used))
            })
    };
    let of_cluster = store.iter().flat_map(Store::networks).filter(wanted).map(|n| network_to_wire(n));
    let local = local_networks::all(&app);
    let local = local.iter().filter(|view| local_networks::passes(view, &filters, dangling));
    Ok(Json(own.chain(local.map(local_networks::to_wire)).chain(of_cluster).collect()))
}

/// This host's tasks, as far as it knows them: a node that is no manager does not.
fn tasks_here(membership: Membership, store: Option<&Store>) -> impl Iterator<Item = &Task> {
    let node = match membership {
        Membership::Active(member) => Some(member.node_id.clone()),
        _ => None,
    };
    store.zip(node).into_iter().flat_map(|(store, node)| store.tasks_on_node(&node)).map(|task| &**task)
}

pub(super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<wire::Network>, ApiError> {
    let missing = || ApiError::not_found(format!("network {id} not found"));
    let verbose = params.flag("verbose");
    if let Some(view) = local(&app, &id, params.get("scope").unwrap_or_default()).await? {
        let mut w = local_networks::to_wire(&view);
        w.containers = Some(local_networks::containers(&view));
        if verbose && let Some(here) = Here::read(&app).await {
            let carried = here.find(&view.record.id)?;
            w.services = carried.map(|network| here.services(network));
            w.host = Some(here.standing(carried, carried.and_then(|network| here.narrower(network))));
        }
        return Ok(Json(w));
    }
    if predefined::find(&id).is_none() && !matches!(params.get("scope"), None | Some("" | "swarm" | "global")) {
        return Err(missing());
    }
    let store = if verbose {
        // What this host has it can say without managers, and at once; where it is one, it adds what it knows.
        app.engine.store(Consistency::Local).await.ok()
    } else {
        store_if_manager(&app, &params).await?
    };
    if let Some(name) = predefined::find(&id) {
        // Whoever asks for a network to give it to a service asks for one of the cluster.
        let scope = match params.get("scope") {
            None | Some("" | "local") => "local",
            Some("swarm") => "swarm",
            Some(_) => return Err(missing()),
        };
        return Ok(Json(predefined::to_wire(name, scope, tasks_here(app.engine.membership(), store.as_ref()))));
    }
    let here = if verbose || store.is_none() { Here::read(&app).await } else { None };
    let mut w = match (&store, &here) {
        (Some(store), _) => {
            let network = find(store, &id)?;
            let mut w = network_to_wire(network);
            w.containers = Some(containers_here(&app.engine.membership(), store, network));
            w.peers = Some(peers(store, network));
            w
        }
        // A node that is no manager knows what it carries.
        (None, Some(here)) => match here.find(&id)? {
            Some(network) => {
                let mut w = here.base(network);
                w.containers = Some(here.containers(network));
                w.peers = Some(here.peers(network));
                w
            }
            None => return Err(ApiError::not_found(format!("network {id} not found: {}", here.not_carried(&id)))),
        },
        (None, None) => return Err(missing()),
    };
    if verbose {
        as_seen_here(&mut w, here.as_ref())?;
    }
    Ok(Json(w))
}

/// The network of this host alone that is meant. Whoever asks for networks of the cluster alone (to give them to a
/// service) is told why he does not get it.
async fn local<E: Engine>(app: &App<E>, wanted: &str, scope: &str) -> Result<Option<LocalView>, ApiError> {
    let own = local_networks::all(app);
    if own.is_empty() {
        return Ok(None);
    }
    // As it was heard of last: this host's networks are at hand also while no manager leads.
    let store = app.engine.store(Consistency::Local).await.ok();
    let here = if store.is_none() && scope != "local" { Here::read(app).await } else { None };
    let carried = here.iter().flat_map(Here::of_cluster);
    let others = local_networks::of_cluster(store.as_ref().filter(|_| scope != "local")).chain(carried);
    match scope {
        "" | "local" => Ok(local_networks::find(&own, others, wanted)?.cloned()),
        _ => match local_networks::find(&own, others, wanted) {
            Ok(Some(view)) if predefined::find(wanted).is_none() => Err(ApiError::not_found(format!(
                "network {wanted} not found: {} is a network of this host alone, and services can only be on those of \
                 the cluster",
                view.record.spec.name
            ))),
            _ => Ok(None),
        },
    }
}

/// What `verbose` shows is what this host has, whatever the managers say.
fn as_seen_here(w: &mut wire::Network, here: Option<&Here>) -> Result<(), ApiError> {
    (w.services, w.peers, w.containers) = (Some(json!({})), Some(Vec::new()), Some(json!({})));
    let Some(here) = here else {
        w.host = Some(json!({"Carried": false, "Message": "no overlay network runs on this host"}));
        return Ok(());
    };
    let network = here.find(w.id.as_deref().unwrap_or_default())?;
    if let Some(network) = network {
        w.services = Some(here.services(network));
        w.peers = Some(here.peers(network));
        w.containers = Some(here.containers(network));
    }
    let message = match network {
        Some(network) => here.unsealed(network).or_else(|| here.narrower(network)),
        None => Some(here.not_carried(w.name.as_deref().unwrap_or_default())),
    };
    w.host = Some(here.standing(network, message));
    Ok(())
}

/// Hosts that a network reaches, as the managers know them.
fn peers(store: &Store, network: &Network) -> Vec<wire::Peer> {
    store
        .nodes()
        .filter(|n| n.status.state() == NodeState::Ready && !n.description.data_path_addr.is_empty())
        .filter(|n| network.spec.ingress || store.tasks_on_node(&n.id).any(|t| attached(t, network)))
        .map(|n| wire::Peer {
            name: Some(n.id.as_str().chars().take(12).collect()),
            ip: Some(n.description.data_path_addr.clone()),
        })
        .collect()
}

fn attached(task: &deploy::model::Task, network: &Network) -> bool {
    !task.status.state().is_terminal() && task.attachments.iter().any(|a| a.network == network.id)
}

/// Endpoints of this host's tasks, by container.
fn containers_here(membership: &Membership, store: &Store, network: &Network) -> Value {
    let mut containers = Map::new();
    let Membership::Active(member) = membership else { return Value::Object(containers) };
    for task in store.tasks_on_node(&member.node_id).filter(|t| attached(t, network)) {
        let (Some(container), Some(attachment)) =
            (&task.status.container, task.attachments.iter().find(|a| a.network == network.id))
        else {
            continue;
        };
        let endpoint = json!({
            "Name": task.name(),
            "EndpointID": task.id.as_str(),
            "MacAddress": "",
            "IPv4Address": attachment.address,
            "IPv6Address": attachment.address6,
        });
        containers.insert(container.id.clone(), endpoint);
    }
    Value::Object(containers)
}

pub(super) async fn create<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::NetworkCreate>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let of_one_host = is_of_one_host(&w);
    let spec = network_spec_from_wire(w)?;
    if of_one_host {
        let (id, warning) = local_networks::create(&app, spec).await?;
        return Ok((StatusCode::CREATED, Json(json!({"Id": id, "Warning": warning}))));
    }
    // Of the other hosts' own ones nobody knows.
    if local_networks::all(&app).iter().any(|view| view.record.spec.name == spec.name) {
        let text = format!("network with name {} already exists: it is one of this host alone", spec.name);
        return Err(ApiError::conflict(text));
    }
    let reply = app.control(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).await?;
    Ok((StatusCode::CREATED, Json(json!({"Id": reply.id, "Warning": reply.warnings.join("\n")}))))
}

pub(super) async fn remove<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    if let Some(name) = predefined::find(&id) {
        return Err(ApiError::forbidden(format!("{name} is a pre-defined network and cannot be removed")));
    }
    if let Some(view) = local(&app, &id, "").await? {
        local_networks::remove(&app, &view).await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    let store = app.store(&params).await?;
    let id = find(&store, &id)?.id.clone();
    app.control(Op::RemoveNetwork(RemoveNetwork { id })).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes the networks that nothing uses: those of this host alone and, as Docker does on a manager, the cluster's.
pub(super) async fn prune<E: Engine>(State(app): State<App<E>>, params: Params) -> Result<Json<Value>, ApiError> {
    let filters = params.filters(&["until", "label", "label!"])?;
    let until = image_prune::until(&filters)?;
    let store = store_if_manager(&app, &params).await?;
    let unused = |store: &Store| -> Vec<(NetworkId, String)> {
        let unused = store.networks().filter(|network| prunes(store, network, until, &filters));
        unused.map(|network| (network.id.clone(), network.spec.name.clone())).collect()
    };
    let mut removed: Vec<String> = local_networks::prune(&app, until, &filters).await;
    for (id, name) in store.as_ref().map(unused).unwrap_or_default() {
        let op = Op::RemoveNetwork(RemoveNetwork { id });
        match app.engine.control(Request { op: Some(op) }).await {
            Ok(_) => removed.push(name),
            // Somebody began to use it a moment ago, or has removed it.
            Err(EngineError::Refused(error))
                if matches!(error.kind(), ErrorKind::FailedPrecondition | ErrorKind::NotFound) => {}
            Err(error) => {
                let mut error = ApiError::from(error);
                if !removed.is_empty() {
                    error.message = format!("{}; removed before that: {}", error.message, removed.join(", "));
                }
                return Err(error);
            }
        }
    }
    Ok(Json(json!({ "NetworksDeleted": (!removed.is_empty()).then_some(removed) })))
}

/// Whether a prune takes a network: nothing has a place on it, and it is not the one that carries published ports.
fn prunes(store: &Store, network: &Network, until: Option<i64>, filters: &Filters) -> bool {
    let made = network.meta.created_at.nanos / 1_000_000_000;
    let used = || {
        store.services_on_network(&network.id).next().is_some()
            || store.addresses_on_network(&network.id).next().is_some()
    };
    let labels = &network.spec.labels;
    !network.spec.ingress
        && until.is_none_or(|until| i64::try_from(made).is_ok_and(|made| made < until))
        && image_prune::all_labels(filters.values("label"), labels, true)
        && image_prune::all_labels(filters.values("label!"), labels, false)
        && !used()
}

/// A container has the network that it was made with.
pub(super) async fn connect() -> ApiError {
    ApiError::not_supported(
        "Shoal does not connect containers to further networks, or disconnect them, yet: name the network when the container \
         is made",
    )
}
