//! `/swarm`: the cluster itself, and this node's membership.

use axum::Json;
use axum::extract::State;
use deploy::control::{Op, UpdateCluster};
use deploy::model::{Cluster, ClusterSpec, RootCa, RootRotation};

use super::App;
use super::convert::{cluster_spec_from_wire, cluster_to_wire};
use super::error::ApiError;
use super::extract::{JsonBody, Params};
use super::wire;
use crate::engine::{Engine, EngineError, InitRequest, JoinRequest, Membership, RecoverRequest};
use crate::manager;
use crate::vault::UnlockKey;

/// What Docker's CLI sends when the user says nothing.
const DEFAULT_LISTEN: &str = "0.0.0.0:2377";

pub(super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<wire::Swarm>, ApiError> {
    let store = app.store(&params).await?;
    let cluster = store.cluster().ok_or_else(|| ApiError::internal("this manager has no cluster object yet"))?;
    Ok(Json(cluster_to_wire(cluster, true)))
}

pub(super) async fn init<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::SwarmInit>,
) -> Result<Json<String>, ApiError> {
    // As in Docker, on a node that is in no cluster there is nothing to force.
    if w.force_new_cluster.unwrap_or_default() && app.engine.membership() != Membership::Inactive {
        let request = RecoverRequest {
            // The CLI always sends its default, which is not a wish for another address.
            listen_addr: w.listen_addr.filter(|addr| addr != DEFAULT_LISTEN).unwrap_or_default(),
            advertise_addr: w.advertise_addr.unwrap_or_default(),
            data_path_addr: w.data_path_addr.unwrap_or_default(),
            force: true,
        };
        return Ok(Json(app.engine.recover(request).await?.node_id));
    }
    if w.spec.as_ref().and_then(|spec| spec.ca_config.as_ref()).is_some_and(names_a_root) {
        return Err(ApiError::not_supported(
            "CAConfig.SigningCACert, SigningCAKey and ForceRotate are for an update: a new cluster makes its own root",
        ));
    }
    let mut spec = cluster_spec_from_wire(w.spec.unwrap_or_default(), &ClusterSpec::default())?;
    spec.autolock |= w.auto_lock_managers.unwrap_or_default();
    let request = InitRequest {
        listen_addr: w.listen_addr.unwrap_or_default(),
        advertise_addr: w.advertise_addr.unwrap_or_default(),
        data_path_addr: w.data_path_addr.unwrap_or_default(),
        data_path_port: w.data_path_port.unwrap_or_default(),
        default_addr_pool: w.default_addr_pool.unwrap_or_default(),
        subnet_size: w.subnet_size.unwrap_or_default(),
        availability: availability(w.availability)?,
        spec,
    };
    Ok(Json(app.engine.init(request).await?.to_string()))
}

pub(super) async fn join<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::SwarmJoin>,
) -> Result<(), ApiError> {
    let request = JoinRequest {
        listen_addr: w.listen_addr.unwrap_or_default(),
        advertise_addr: w.advertise_addr.unwrap_or_default(),
        data_path_addr: w.data_path_addr.unwrap_or_default(),
        remote_addrs: w.remote_addrs.unwrap_or_default(),
        token: w.join_token.unwrap_or_default(),
        availability: availability(w.availability)?,
    };
    if request.remote_addrs.is_empty() {
        return Err(ApiError::invalid("at least one RemoteAddrs is required to join"));
    }
    Ok(app.engine.join(request).await?)
}

/// "active", "pause", "drain", or empty for the default.
fn availability(given: Option<String>) -> Result<String, ApiError> {
    let given = given.unwrap_or_default();
    match given.as_str() {
        "" | "active" | "pause" | "drain" => Ok(given),
        _ => Err(ApiError::invalid(format!("invalid Availability: {given:?}"))),
    }
}

pub(super) async fn leave<E: Engine>(State(app): State<App<E>>, params: Params) -> Result<(), ApiError> {
    Ok(app.engine.leave(params.flag("force")).await?)
}

pub(super) async fn update<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
    JsonBody(w): JsonBody<wire::SwarmSpec>,
) -> Result<(), ApiError> {
    let version = params.version("swarm")?;
    let store = app.store(&params).await?;
    let cluster = store.cluster().ok_or_else(|| ApiError::internal("this manager has no cluster object yet"))?;
    let ca = w.ca_config.clone().unwrap_or_default();
    let spec = cluster_spec_from_wire(w, &cluster.spec)?;
    let rotation = rotation(&ca, cluster, &spec)?;
    app.control(Op::UpdateCluster(Box::new(UpdateCluster {
        version,
        spec,
        rotate_worker_token: params.flag("rotateWorkerToken"),
        rotate_manager_token: params.flag("rotateManagerToken"),
        rotate_unlock_key: params.flag("rotateManagerUnlockKey"),
        rotation,
    })))
    .await?;
    Ok(())
}

fn names_a_root(ca: &wire::CaConfig) -> bool {
    let given = |pem: &Option<String>| pem.as_ref().is_some_and(|pem| !pem.is_empty());
    given(&ca.signing_ca_cert) || given(&ca.signing_ca_key) || ca.force_rotate.is_some_and(|count| count > 0)
}

/// The root that is to take the place of the present one; `None` if that stays. Made here and not by the leader, which
/// decides without randomness and clocks; the version in the update makes sure that both mean the same present one.
fn rotation(ca: &wire::CaConfig, cluster: &Cluster, spec: &ClusterSpec) -> Result<Option<RootRotation>, ApiError> {
    let given = |pem: &Option<String>| pem.clone().filter(|pem| !pem.trim().is_empty());
    let root = match (given(&ca.signing_ca_cert), given(&ca.signing_ca_key)) {
        (Some(cert_pem), Some(key_pem)) => Some(RootCa { cert_pem, key_pem }),
        (Some(_), None) => {
            return Err(ApiError::invalid("CAConfig.SigningCAKey: the key of the certificate is needed"));
        }
        (None, Some(_)) => {
            return Err(ApiError::invalid("CAConfig.SigningCACert: the certificate of the key is needed"));
        }
        (None, None) if spec.force_rotate > cluster.spec.force_rotate => None,
        (None, None) => return Ok(None),
    };
    let rotation = manager::rotation(cluster, root).map_err(|e| ApiError::invalid(crate::chain(&e)))?;
    // The root that it has already: whoever sends it again asks for nothing.
    Ok(Some(rotation).filter(|rotation| rotation.digest != rotation.next_digest))
}

/// The key is empty, as in Docker, while autolock is off.
pub(super) async fn unlock_key<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<wire::UnlockKey>, ApiError> {
    let store = app.store(&params).await?;
    let key = store.cluster().and_then(|cluster| cluster.status.unlock_key.as_ref());
    let key = key.and_then(|key| UnlockKey::from_bytes(&key.bytes));
    Ok(Json(wire::UnlockKey { unlock_key: Some(key.map(|key| key.print()).unwrap_or_default()) }))
}

pub(super) async fn unlock<E: Engine>(
    State(app): State<App<E>>,
    JsonBody(w): JsonBody<wire::UnlockKey>,
) -> Result<(), ApiError> {
    match app.engine.membership() {
        crate::engine::Membership::Inactive => {
            Err(EngineError::WrongMembership("This node is not part of a swarm".to_owned()).into())
        }
        crate::engine::Membership::Locked => Ok(app.engine.unlock(w.unlock_key.unwrap_or_default()).await?),
        _ => Err(ApiError::conflict("swarm is not locked")),
    }
}
