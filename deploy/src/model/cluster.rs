//! The cluster itself: its settings, its root of trust, its counters.

use std::time::Duration;

use super::{ClusterId, Labels, Meta, NodeId, Timestamp};

/// Feature level from which on networks may have IPv6: an older manager would forget their subnets, and an older host
/// would not carry them.
pub const IPV6_LEVEL: u32 = 2;
/// Feature level from which on plain containers may have places on networks: an older manager would take them for tasks of
/// a service that is gone.
pub const ATTACH_LEVEL: u32 = 3;
/// Feature level from which on networks may be made for an MTU, or end at each host: an older host does not know that of them
/// and would carry them like all others, with packets that are too long, or to other hosts.
pub const OPTIONS_LEVEL: u32 = 3;
/// Feature level from which on networks may be encrypted: an older manager would forget the hosts' keys, and an older host
/// would carry such a network as if it were not encrypted.
pub const ENCRYPTION_LEVEL: u32 = 4;

/// There is exactly one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Cluster {
    /// Its id; the `O` of every certificate.
    #[prost(message, required, tag = "1")]
    pub id: ClusterId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// Settings.
    #[prost(message, required, tag = "3")]
    pub spec: ClusterSpec,
    /// State that the cluster keeps of itself.
    #[prost(message, required, tag = "4")]
    pub status: ClusterStatus,
}

/// Settings, as Docker's swarm spec has them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterSpec {
    /// "default".
    #[prost(string, tag = "1")]
    pub name: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// Finished tasks kept a slot; Docker's default is 5.
    #[prost(uint32, optional, tag = "3")]
    pub task_history_limit: Option<u32>,
    /// Life of a node's certificate; nanoseconds; Docker's default is 90 days.
    #[prost(uint64, optional, tag = "4")]
    pub node_cert_expiry_ns: Option<u64>,
    /// Agent heartbeat period in nanoseconds, as sent; only kept.
    #[prost(uint64, optional, tag = "5")]
    pub heartbeat_period_ns: Option<u64>,
    /// Managers need a key to start.
    #[prost(bool, tag = "6")]
    pub autolock: bool,
    /// Subnets that networks are cut from; CIDR.
    #[prost(string, repeated, tag = "7")]
    pub default_addr_pool: Vec<String>,
    /// Prefix length of the networks cut from the pools.
    #[prost(uint32, tag = "8")]
    pub subnet_size: u32,
    /// UDP port of VXLAN.
    #[prost(uint32, tag = "9")]
    pub data_path_port: u32,
    /// Docker's counter: a higher one asks for a new root.
    #[prost(uint64, tag = "30")]
    pub force_rotate: u64,
}

impl ClusterSpec {
    /// Life of a node's certificate.
    pub fn node_cert_life(&self) -> Duration {
        self.node_cert_expiry_ns.map_or(Duration::from_secs(90 * 24 * 3600), Duration::from_nanos)
    }

    /// Finished tasks kept a slot.
    pub fn history_limit(&self) -> usize {
        self.task_history_limit.unwrap_or(5) as usize
    }
}

/// State that the cluster keeps of itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClusterStatus {
    /// Root of trust; the key is here because any manager may issue certificates.
    #[prost(message, required, tag = "1")]
    pub root_ca: RootCa,
    /// Secret part of the worker token.
    #[prost(string, tag = "2")]
    pub worker_token: String,
    /// Secret part of the manager token.
    #[prost(string, tag = "3")]
    pub manager_token: String,
    /// Keys of the gossip, primary first.
    #[prost(message, repeated, tag = "4")]
    pub gossip_keys: Vec<GossipKey>,
    /// Next raft id to hand out; only grows.
    #[prost(uint64, tag = "5")]
    pub next_raft_id: u64,
    /// Random; new at each `recover` or `restore`.
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
    /// Lowest feature level among the managers.
    #[prost(uint32, tag = "7")]
    pub feature_level: u32,
    /// Nodes that were removed and whose certificates have not run out.
    #[prost(message, repeated, tag = "8")]
    pub removed_nodes: Vec<RemovedNode>,
    /// When the rotation of the gossip keys took its last step.
    #[prost(message, required, tag = "9")]
    pub gossip_step_at: Timestamp,
    /// The newest removal of a node that the present keys, or the rotation under way, answer.
    #[prost(message, required, tag = "10")]
    pub gossip_keys_cover: Timestamp,
    /// Longest life in nanoseconds that an earlier setting gave to certificates: some may still be valid for that long.
    #[prost(uint64, tag = "11")]
    pub longest_cert_life_ns: u64,
    /// The key that managers need to start, while autolock is on. Absent in clusters that never had it on.
    #[prost(message, optional, tag = "40")]
    pub unlock_key: Option<UnlockKey>,
    /// Digest of the root certificate, as join tokens have it; empty until a rotation of it began.
    #[prost(string, tag = "30")]
    pub root_digest: String,
    /// A rotation of the root that is under way.
    #[prost(message, optional, tag = "31")]
    pub root_rotation: Option<RootRotation>,
    /// Roots of before, the newest first: nodes that were away trust no later one.
    #[prost(message, repeated, tag = "32")]
    pub retired_roots: Vec<RetiredRoot>,
    /// The keys of encrypted networks that are to be in use: grows by one with each rotation; 0 before there was one.
    #[prost(uint64, tag = "50")]
    pub sealing_epoch: u64,
    /// When it grew last.
    #[prost(message, required, tag = "51")]
    pub sealing_epoch_at: Timestamp,
}

/// A new root on its way to take the place of the present one.
///
/// Certificates are issued by `next` from the beginning on, and are shown together with `cross_signed_pem`: who trusts
/// only the old root can follow that to it. All nodes trust both until the end.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RootRotation {
    /// The new root.
    #[prost(message, required, tag = "1")]
    pub next: RootCa,
    /// Its digest, as join tokens have it.
    #[prost(string, tag = "2")]
    pub next_digest: String,
    /// The new root's name and key, signed by the old root; PEM.
    #[prost(string, tag = "3")]
    pub cross_signed_pem: String,
    /// When it began.
    #[prost(message, required, tag = "4")]
    pub began: Timestamp,
    /// Digest of the root that it replaces.
    #[prost(string, tag = "5")]
    pub digest: String,
}

/// A root that certificates are issued by no more. Its key is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RetiredRoot {
    /// Certificate, PEM.
    #[prost(string, tag = "1")]
    pub cert_pem: String,
    /// Its digest.
    #[prost(string, tag = "2")]
    pub digest: String,
    /// Its successor's name and key, signed by it; PEM.
    #[prost(string, tag = "3")]
    pub successor_pem: String,
    /// Until then a node that knows only this root may come back.
    #[prost(message, required, tag = "4")]
    pub until: Timestamp,
}

/// The cluster's own certificate authority.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct RootCa {
    /// Certificate, PEM.
    #[prost(string, tag = "1")]
    pub cert_pem: String,
    /// Key, PKCS#8 PEM.
    #[prost(string, tag = "2")]
    pub key_pem: String,
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootCa { .. }")
    }
}

/// A key that seals gossip packets.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct GossipKey {
    /// Names the key in a packet's header.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GossipKey {{ id: {} }}", self.id)
    }
}

/// What managers' keys are wrapped with while autolock is on.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct UnlockKey {
    /// Grows at each change: managers that were away see by it that they have another one.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// 32 bytes; empty while autolock is off.
    #[prost(bytes = "vec", tag = "2")]
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnlockKey {{ version: {} }}", self.version)
    }
}

/// A node whose certificate opens nothing any more.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemovedNode {
    /// The node.
    #[prost(message, required, tag = "1")]
    pub id: NodeId,
    /// When its certificate runs out and the entry may go.
    #[prost(message, required, tag = "2")]
    pub until: Timestamp,
    /// When it was removed.
    #[prost(message, required, tag = "3")]
    pub at: Timestamp,
}
