//! `Swarm` and `SwarmSpec`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use deploy::model::{Cluster, ClusterSpec, Node};
use x509_parser::pem::parse_x509_pem;

use super::{nanos_i64, refuse_set, time_to_wire, unsigned_opt, version};
use crate::ca::JoinToken;
use crate::docker_api::error::ApiError;
use crate::docker_api::wire;
use crate::manager::issuing_root;

/// Docker's default of 90 days.
const DEFAULT_CERT_EXPIRY_NS: u64 = 90 * 24 * 3600 * 1_000_000_000;
/// Docker's default of 5 s.
const DEFAULT_HEARTBEAT_NS: u64 = 5_000_000_000;

/// What the answers say of Raft. Docker's clients send the whole spec back when they change one field of it, so
/// these values are accepted, as are zeros; others would have no effect and are refused.
fn raft_settings() -> wire::RaftConfig {
    wire::RaftConfig {
        snapshot_interval: Some(10_000),
        keep_old_snapshots: Some(0),
        log_entries_for_slow_followers: Some(500),
        election_tick: Some(10),
        heartbeat_tick: Some(1),
    }
}

fn check_raft(given: &wire::RaftConfig) -> Result<(), ApiError> {
    let known = raft_settings();
    let fits = |given: Option<u64>, known: Option<u64>| given.unwrap_or(0) == 0 || given == known;
    let fits_tick = |given: Option<i64>, known: Option<i64>| given.unwrap_or(0) == 0 || given == known;
    for (field, fits) in [
        ("SnapshotInterval", fits(given.snapshot_interval, known.snapshot_interval)),
        ("KeepOldSnapshots", fits(given.keep_old_snapshots, known.keep_old_snapshots)),
        (
            "LogEntriesForSlowFollowers",
            fits(given.log_entries_for_slow_followers, known.log_entries_for_slow_followers),
        ),
        ("ElectionTick", fits_tick(given.election_tick, known.election_tick)),
        ("HeartbeatTick", fits_tick(given.heartbeat_tick, known.heartbeat_tick)),
    ] {
        if !fits {
            return Err(ApiError::not_supported(format!("Raft.{field} is not supported yet")));
        }
    }
    Ok(())
}

/// What a client sent, as the model has it. `base` gives the settings that Docker's spec does not speak of
/// (address pools, VXLAN port): they stay as they are.
///
/// # Errors
/// Names the field that the model cannot carry or that is out of range.
pub fn cluster_spec_from_wire(w: wire::SwarmSpec, base: &ClusterSpec) -> Result<ClusterSpec, ApiError> {
    check_raft(&w.raft.unwrap_or_default())?;
    let ca = w.ca_config.unwrap_or_default();
    refuse_set("CAConfig.ExternalCAs", &ca.external_cas)?;
    for (field, set) in [(
        "TaskDefaults.LogDriver",
        w.task_defaults.and_then(|t| t.log_driver).is_some_and(|d| d != wire::Driver::default()),
    )] {
        if set {
            return Err(ApiError::not_supported(format!("{field} is not supported yet")));
        }
    }
    let heartbeat = w.dispatcher.as_ref().and_then(|d| d.heartbeat_period).unwrap_or(0);
    if heartbeat != 0 && heartbeat != nanos_i64(DEFAULT_HEARTBEAT_NS) {
        return Err(ApiError::not_supported("Dispatcher.HeartbeatPeriod is not supported yet"));
    }
    let history = w.orchestration.and_then(|o| o.task_history_retention_limit);
    let name = w.name.unwrap_or_default();
    Ok(ClusterSpec {
        name: if name.is_empty() { "default".to_owned() } else { name },
        labels: w.labels.unwrap_or_default(),
        task_history_limit: history
            .map(|n| {
                u32::try_from(n).map_err(|_| {
                    ApiError::invalid(format!("Orchestration.TaskHistoryRetentionLimit is out of range: {n}"))
                })
            })
            .transpose()?,
        // Docker: 0 and absent keep the default.
        node_cert_expiry_ns: unsigned_opt("CAConfig.NodeCertExpiry", ca.node_cert_expiry)?.filter(|ns| *ns > 0),
        heartbeat_period_ns: unsigned_opt("Dispatcher.HeartbeatPeriod", w.dispatcher.and_then(|d| d.heartbeat_period))?
            .filter(|ns| *ns > 0),
        autolock: w.encryption_config.and_then(|e| e.auto_lock_managers).unwrap_or_default(),
        default_addr_pool: base.default_addr_pool.clone(),
        subnet_size: base.subnet_size,
        data_path_port: base.data_path_port,
        // It only grows: one that is left out, or of before, asks for nothing.
        force_rotate: ca.force_rotate.unwrap_or_default().max(base.force_rotate),
    })
}

/// The cluster's settings as Docker's clients read them: defaults are filled in.
pub fn cluster_spec_to_wire(m: &ClusterSpec) -> wire::SwarmSpec {
    wire::SwarmSpec {
        name: Some(if m.name.is_empty() { "default".to_owned() } else { m.name.clone() }),
        labels: Some(m.labels.clone()),
        orchestration: Some(wire::Orchestration {
            task_history_retention_limit: Some(i64::try_from(m.history_limit()).unwrap_or(i64::MAX)),
        }),
        raft: Some(raft_settings()),
        dispatcher: Some(wire::Dispatcher {
            heartbeat_period: Some(nanos_i64(m.heartbeat_period_ns.unwrap_or(DEFAULT_HEARTBEAT_NS))),
        }),
        ca_config: Some(wire::CaConfig {
            node_cert_expiry: Some(nanos_i64(m.node_cert_expiry_ns.unwrap_or(DEFAULT_CERT_EXPIRY_NS))),
            // As in Docker, absent while nobody has asked.
            force_rotate: Some(m.force_rotate).filter(|count| *count > 0),
            ..Default::default()
        }),
        task_defaults: Some(wire::TaskDefaults::default()),
        encryption_config: Some(wire::EncryptionConfig { auto_lock_managers: Some(m.autolock) }),
    }
}

/// What nodes of the cluster trust, and who issues certificates: during a rotation the old root, and the new one.
pub fn tls_info(cluster: &Cluster) -> wire::TlsInfo {
    tls_info_of(&cluster.status.root_ca.cert_pem, &issuing_root(cluster).0.cert_pem)
}

/// What a node trusts and which root its certificate is of, as far as the cluster knows.
pub fn node_tls_info(cluster: &Cluster, node: &Node) -> wire::TlsInfo {
    let status = &cluster.status;
    let root =
        node.certificate.as_ref().or(node.next_certificate.as_ref()).map(|c| c.root.as_str()).unwrap_or_default();
    let rotation = status.root_rotation.as_ref().filter(|rotation| rotation.next_digest == root);
    let retired = status.retired_roots.iter().find(|retired| retired.digest == root);
    match (rotation, retired) {
        (Some(rotation), _) => tls_info_of(&status.root_ca.cert_pem, &rotation.next.cert_pem),
        (None, Some(retired)) => tls_info_of(&retired.cert_pem, &retired.cert_pem),
        (None, None) => tls_info_of(&status.root_ca.cert_pem, &status.root_ca.cert_pem),
    }
}

/// A root that cannot be read (never written by Shoal) leaves the two parts of the certificate out.
fn tls_info_of(trust_pem: &str, issuer_pem: &str) -> wire::TlsInfo {
    let parts = parse_x509_pem(issuer_pem.as_bytes()).ok().and_then(|(_, block)| {
        let cert = block.parse_x509().ok()?;
        Some((BASE64.encode(cert.subject().as_raw()), BASE64.encode(cert.public_key().raw)))
    });
    let (subject, key) = parts.unzip();
    wire::TlsInfo { trust_root: Some(trust_pem.to_owned()), cert_issuer_subject: subject, cert_issuer_public_key: key }
}

/// The tokens that let hosts in; none where the root cannot be read.
fn join_tokens(cluster: &Cluster) -> Option<wire::JoinTokens> {
    let (_, root) = parse_x509_pem(cluster.status.root_ca.cert_pem.as_bytes()).ok()?;
    let print = |secret: &str| Some(JoinToken::print(&root.contents, secret));
    Some(wire::JoinTokens {
        worker: print(&cluster.status.worker_token),
        manager: print(&cluster.status.manager_token),
    })
}

/// The cluster as Docker's clients read it; the tokens are only in `GET /swarm`, not in `/info`.
pub fn cluster_to_wire(m: &Cluster, with_tokens: bool) -> wire::Swarm {
    let pools = &m.spec.default_addr_pool;
    wire::Swarm {
        id: Some(m.id.to_string()),
        version: version(&m.meta),
        created_at: Some(time_to_wire(m.meta.created_at)),
        updated_at: Some(time_to_wire(m.meta.updated_at)),
        spec: Some(cluster_spec_to_wire(&m.spec)),
        tls_info: Some(tls_info(m)),
        root_rotation_in_progress: Some(m.status.root_rotation.is_some()),
        default_addr_pool: Some(if pools.is_empty() { vec!["10.0.0.0/8".to_owned()] } else { pools.clone() }),
        subnet_size: Some(if m.spec.subnet_size == 0 { 24 } else { m.spec.subnet_size }),
        data_path_port: Some(if m.spec.data_path_port == 0 { 4789 } else { m.spec.data_path_port }),
        join_tokens: if with_tokens { join_tokens(m) } else { None },
    }
}
