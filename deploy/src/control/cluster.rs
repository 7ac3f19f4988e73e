//! The cluster itself: made once, its settings, tokens and gossip keys.

use super::validate::{self, MAX_TEXT};
use super::{
    ControlError, InitCluster, Reply, UpdateCluster, invalid, named, not_found, out_of_sequence, precondition,
};
use crate::cx::Cx;
use crate::model::{
    Cluster, ClusterSpec, GossipKey, Network, NetworkId, NetworkSpec, NodeRole, RootRotation, Subnet, UnlockKey,
    format_id, is_id,
};
use crate::store::Txn;

/// Docker's default address pool.
const DEFAULT_POOL: &str = "10.0.0.0/8";
/// Docker's default size of a network.
const DEFAULT_SUBNET_SIZE: u32 = 24;
/// IANA's port of VXLAN, and Docker's default.
const DEFAULT_DATA_PATH_PORT: u32 = 4789;
/// Docker bounds the life of certificates from below at an hour.
const MIN_CERT_EXPIRY_NS: u64 = 60 * 60 * 1_000_000_000;
/// Raft ids only grow, by one at each promotion; from here they never reach the end of their range.
const MAX_RAFT_ID: u64 = 1 << 62;
/// Longest PEM of a root or its key, in bytes; a certificate with a large RSA key has about 3 KiB.
const MAX_PEM: usize = 64 << 10;
/// Bytes of a key that seals gossip packets.
const GOSSIP_KEY_BYTES: usize = 32;

pub(super) fn init(cx: &mut Cx<'_>, txn: &mut Txn, op: &InitCluster) -> Result<Reply, ControlError> {
    if txn.cluster().is_some() {
        return Err(precondition("the cluster is already initialised"));
    }
    let mut cluster = op.cluster.clone();
    let mut node = op.node.clone();
    if !is_id(cluster.id.as_str()) || !is_id(node.id.as_str()) {
        return Err(invalid("the cluster and its first node need ids"));
    }
    if node.spec.role() != NodeRole::Manager || node.manager.is_none() {
        return Err(invalid("the first node must be a manager"));
    }
    let raft_id = node.manager.as_ref().map_or(0, |manager| manager.raft_id);
    let next_raft_id = cluster.status.next_raft_id.max(raft_id.saturating_add(1));
    if raft_id == 0 || next_raft_id > MAX_RAFT_ID {
        return Err(invalid("the first node's raft id must be small, and not 0"));
    }
    cluster.status.next_raft_id = next_raft_id;
    fill_defaults(&mut cluster);
    check_spec(&cluster.spec)?;
    check_gossip_keys(&cluster.status.gossip_keys)?;
    if cluster.status.worker_token.is_empty() || cluster.status.manager_token.is_empty() {
        return Err(invalid("the cluster needs join tokens"));
    }
    validate::node_spec(&node.spec)?;
    validate::node_description(&node.description)?;
    let id = cluster.id.clone();
    node.status.since = txn.now();
    // What the cluster gives is not the node's to bring.
    node.attachments.clear();
    cluster.status.removed_nodes.clear();
    cluster.status.unlock_key = None;
    follow_autolock(cx, &mut cluster, false);
    cluster.status.root_rotation = None;
    cluster.status.retired_roots.clear();
    txn.put_cluster(cluster);
    txn.put_node(node);
    txn.put_network(Network {
        id: cx.id::<NetworkId>(),
        spec: NetworkSpec {
            name: "ingress".to_owned(),
            driver: "overlay".to_owned(),
            ingress: true,
            ..NetworkSpec::default()
        },
        ..Network::default()
    });
    Ok(named(id))
}

pub(super) fn update(cx: &mut Cx<'_>, txn: &mut Txn, op: &UpdateCluster) -> Result<Reply, ControlError> {
    let mut cluster = current(txn)?;
    if cluster.meta.version != op.version {
        return Err(out_of_sequence());
    }
    let mut spec = op.spec.clone();
    // Docker's update does not carry what was decided for good when the cluster was made.
    spec.default_addr_pool.clone_from(&cluster.spec.default_addr_pool);
    spec.subnet_size = cluster.spec.subnet_size;
    spec.data_path_port = cluster.spec.data_path_port;
    if spec.name.is_empty() {
        spec.name.clone_from(&cluster.spec.name);
    }
    check_spec(&spec)?;
    let life = u64::try_from(cluster.spec.node_cert_life().as_nanos()).unwrap_or(u64::MAX);
    cluster.status.longest_cert_life_ns = cluster.status.longest_cert_life_ns.max(life);
    if let Some(rotation) = &op.rotation {
        begin_rotation(txn, &mut cluster, rotation)?;
    }
    cluster.spec = spec;
    if op.rotate_worker_token {
        cluster.status.worker_token = format_id((cx.ids)());
    }
    if op.rotate_manager_token {
        cluster.status.manager_token = format_id((cx.ids)());
    }
    follow_autolock(cx, &mut cluster, op.rotate_unlock_key);
    let id = cluster.id.clone();
    txn.put_cluster(cluster);
    Ok(named(id))
}

fn begin_rotation(txn: &Txn, cluster: &mut Cluster, rotation: &RootRotation) -> Result<(), ControlError> {
    if cluster.status.root_rotation.is_some() {
        return Err(precondition(
            "a rotation of the root is in progress: it ends when every node that is not down has a certificate of the \
             new root, \"shoal node ca\" shows which have",
        ));
    }
    let complete = [&rotation.next.cert_pem, &rotation.next.key_pem, &rotation.next_digest, &rotation.cross_signed_pem]
        .iter()
        .all(|part| !part.is_empty() && part.len() <= MAX_PEM);
    if !complete || rotation.digest == rotation.next_digest {
        return Err(invalid("the new root needs a certificate, a key, and the old root's signature"));
    }
    cluster.status.root_rotation = Some(RootRotation { began: txn.now(), ..rotation.clone() });
    Ok(())
}

/// A key when autolock is turned on, another one when it is rotated, none when autolock is turned off.
fn follow_autolock(cx: &mut Cx<'_>, cluster: &mut Cluster, rotate: bool) {
    let before = cluster.status.unlock_key.clone().unwrap_or_default();
    let has_key = !before.bytes.is_empty();
    let rotates = rotate && cluster.spec.autolock;
    if cluster.spec.autolock == has_key && !rotates {
        return;
    }
    let bytes = match cluster.spec.autolock {
        true => [(cx.ids)().to_be_bytes(), (cx.ids)().to_be_bytes()].concat(),
        false => Vec::new(),
    };
    cluster.status.unlock_key = Some(UnlockKey { version: before.version + 1, bytes });
}

/// The cluster, to be changed.
pub(super) fn current(txn: &Txn) -> Result<Cluster, ControlError> {
    txn.cluster().map(|cluster| (**cluster).clone()).ok_or_else(|| not_found("cluster", "default"))
}

fn fill_defaults(cluster: &mut Cluster) {
    let spec = &mut cluster.spec;
    if spec.name.is_empty() {
        spec.name = "default".to_owned();
    }
    if spec.default_addr_pool.is_empty() {
        spec.default_addr_pool = vec![DEFAULT_POOL.to_owned()];
    }
    if spec.subnet_size == 0 {
        spec.subnet_size = DEFAULT_SUBNET_SIZE;
    }
    if spec.data_path_port == 0 {
        spec.data_path_port = DEFAULT_DATA_PATH_PORT;
    }
    cluster.status.feature_level = cluster.status.feature_level.max(1);
}

fn check_spec(spec: &ClusterSpec) -> Result<(), ControlError> {
    if spec.name != "default" {
        return Err(invalid("swarm spec name must be \"default\""));
    }
    validate::labels("Labels", &spec.labels)?;
    if spec.node_cert_expiry_ns.is_some_and(|expiry| expiry < MIN_CERT_EXPIRY_NS) {
        return Err(invalid("minimum certificate expiry time is: 1h0m0s"));
    }
    if spec.default_addr_pool.len() > 64 {
        return Err(invalid("DefaultAddrPool: at most 64 pools"));
    }
    let mut pools: Vec<Subnet> = Vec::new();
    for text in &spec.default_addr_pool {
        let pool = (text.len() < MAX_TEXT).then(|| Subnet::parse(text)).flatten();
        let Some(pool) = pool else {
            return Err(invalid(format!("invalid address pool {text:?}: an IPv4 subnet like 10.0.0.0/8 is needed")));
        };
        if u32::from(pool.prefix()) > spec.subnet_size {
            return Err(invalid(format!("subnet size {} is too large for the address pool {pool}", spec.subnet_size)));
        }
        if let Some(other) = pools.iter().find(|other| other.overlaps(pool)) {
            return Err(invalid(format!("address pools {other} and {pool} overlap")));
        }
        pools.push(pool);
    }
    if !(1..=29).contains(&spec.subnet_size) {
        return Err(invalid(format!("invalid subnet size {}: must be between 1 and 29", spec.subnet_size)));
    }
    if !(1024..=49151).contains(&spec.data_path_port) {
        return Err(invalid(format!("invalid data path port {}: must be between 1024 and 49151", spec.data_path_port)));
    }
    Ok(())
}

fn check_gossip_keys(keys: &[GossipKey]) -> Result<(), ControlError> {
    if keys.is_empty() || keys.len() > 3 {
        return Err(invalid(format!("between 1 and 3 gossip keys are needed, not {}", keys.len())));
    }
    if let Some(key) = keys.iter().find(|key| key.bytes.len() != GOSSIP_KEY_BYTES) {
        return Err(invalid(format!("gossip key {} has {} bytes, not {GOSSIP_KEY_BYTES}", key.id, key.bytes.len())));
    }
    let mut ids: Vec<u32> = keys.iter().map(|key| key.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != keys.len() {
        return Err(invalid("two gossip keys have the same id"));
    }
    Ok(())
}
