//! A host of the cluster.

use super::{ENCRYPTION_LEVEL, Labels, Meta, NetworkAttachment, NodeId, PortProtocol, Timestamp};

/// A host that joined.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// Made at join, in the certificate; a new one after `leave`.
    #[prost(message, required, tag = "1")]
    pub id: NodeId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// What a user wants of the host.
    #[prost(message, required, tag = "3")]
    pub spec: NodeSpec,
    /// What the host says of itself.
    #[prost(message, required, tag = "4")]
    pub description: NodeDescription,
    /// What the cluster observed.
    #[prost(message, required, tag = "5")]
    pub status: NodeStatus,
    /// Present while the host takes part in Raft.
    #[prost(message, optional, tag = "6")]
    pub manager: Option<ManagerStatus>,
    /// The node's own address on networks that every host is on (ingress).
    #[prost(message, repeated, tag = "7")]
    pub attachments: Vec<NetworkAttachment>,
    /// The certificate that the host showed last.
    #[prost(message, optional, tag = "30")]
    pub certificate: Option<NodeCertificate>,
    /// One that was issued after that and not seen in use: the answer may have been lost on its way.
    #[prost(message, optional, tag = "31")]
    pub next_certificate: Option<NodeCertificate>,
    /// What the host said last of its part in encrypted networks.
    #[prost(message, optional, tag = "54")]
    pub sealing: Option<NodeSealing>,
}

impl Node {
    /// Why the host cannot carry encrypted networks, for people; nothing if it can.
    pub fn sealing_obstacle(&self) -> Option<String> {
        let level = self.description.feature_level;
        if level < ENCRYPTION_LEVEL {
            return Some(format!("its release is too old: feature level {level}, {ENCRYPTION_LEVEL} is needed"));
        }
        match &self.sealing {
            Some(sealing) if sealing.obstacle.is_empty() => None,
            Some(sealing) => Some(sealing.obstacle.clone()),
            None => Some("it has not said yet whether it can".to_owned()),
        }
    }

    /// Its public keys for encrypted networks.
    pub fn sealing_keys(&self) -> &[SealingKey] {
        self.sealing.as_ref().map_or(&[], |sealing| &sealing.keys)
    }
}

/// What is kept of a certificate of a host: enough to know its key again when the certificate has run out.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeCertificate {
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`).
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Digest of the root that issued it, as join tokens have it; empty if that is no root that the cluster knows.
    #[prost(string, tag = "2")]
    pub root: String,
    /// When it runs out.
    #[prost(message, required, tag = "3")]
    pub expires: Timestamp,
}

/// What a user wants of a host.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeSpec {
    /// A name given by the user; usually empty, the hostname then serves.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Labels for placement.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// Wanted role.
    #[prost(enumeration = "NodeRole", tag = "3")]
    pub role: i32,
    /// Whether tasks may be placed here.
    #[prost(enumeration = "NodeAvailability", tag = "4")]
    pub availability: i32,
}

/// What a host does for the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NodeRole {
    /// Runs tasks.
    Worker = 0,
    /// Runs tasks and takes part in Raft.
    Manager = 1,
}

/// Whether tasks may be placed on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NodeAvailability {
    /// New tasks may come.
    Active = 0,
    /// No new tasks; those that run stay.
    Pause = 1,
    /// No new tasks; those that run are moved away.
    Drain = 2,
}

/// Whether a host is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NodeState {
    /// Joined, but its agent has not had a session yet.
    Unknown = 0,
    /// Silent to gossip and to its session; its tasks are replaced.
    Down = 1,
    /// Its agent has a session.
    Ready = 2,
    /// Its agent said goodbye; it is not expected to run anything.
    Disconnected = 3,
}

/// The message of a host that gossip calls dead while its session is heard.
pub const GOSSIP_BLOCKED: &str = "gossip blocked";

/// What the cluster observed of a host.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeStatus {
    /// Whether the host is there.
    #[prost(enumeration = "NodeState", tag = "1")]
    pub state: i32,
    /// Why, in a sentence ("agent silent", [`GOSSIP_BLOCKED`]).
    #[prost(string, tag = "2")]
    pub message: String,
    /// Address of the host as the cluster sees it (no port).
    #[prost(string, tag = "3")]
    pub addr: String,
    /// Boot generation of the session that last set the state; an older one changes nothing.
    #[prost(uint64, tag = "4")]
    pub generation: u64,
    /// When the state last changed.
    #[prost(message, required, tag = "5")]
    pub since: Timestamp,
    /// Drawn by the daemon whose session set the state, when it started; 0 if its release draws none.
    #[prost(uint64, tag = "30")]
    pub boot: u64,
}

/// What a host says of itself when its session starts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeDescription {
    /// Its hostname; not unique.
    #[prost(string, tag = "1")]
    pub hostname: String,
    /// CPU architecture in Docker's words ("x86_64").
    #[prost(string, tag = "2")]
    pub architecture: String,
    /// "linux".
    #[prost(string, tag = "3")]
    pub os: String,
    /// What its tasks may use.
    #[prost(message, required, tag = "4")]
    pub resources: NodeResources,
    /// Shoal's version on the host.
    #[prost(string, tag = "5")]
    pub engine_version: String,
    /// Labels from `shoal daemon --label`.
    #[prost(btree_map = "string, string", tag = "6")]
    pub engine_labels: Labels,
    /// Address that VXLAN packets to this host are sent to.
    #[prost(string, tag = "7")]
    pub data_path_addr: String,
    /// Address of its port 2377 (`host:port`), for gossip, logs and images.
    #[prost(string, tag = "8")]
    pub control_addr: String,
    /// Id of the engine (made before any cluster).
    #[prost(string, tag = "9")]
    pub engine_id: String,
    /// Highest feature level that the host's release understands.
    #[prost(uint32, tag = "10")]
    pub feature_level: u32,
    /// Ports that its daemon listens at. Nothing may be published there; at most [`MAX_OWN_PORTS`].
    #[prost(message, repeated, tag = "50")]
    pub own_ports: Vec<OwnPort>,
    /// IPv4 subnets that it has an address in, CIDR; at most [`MAX_OWN_SUBNETS`]. The links that the node itself made for
    /// tasks are left out.
    #[prost(string, repeated, tag = "51")]
    pub own_subnets: Vec<String>,
    /// Other IPv4 subnets that it has a route to, without the default route; as many at the most.
    #[prost(string, repeated, tag = "53")]
    pub routes: Vec<String>,
    /// IPv4 subnet through which its tasks reach other networks, CIDR: the one that is there, or would be made; empty
    /// if the host does not say.
    #[prost(string, tag = "52")]
    pub way_out: String,
    /// IPv6 subnets that it has an address in, CIDR, without those of a single link; as many at the most.
    #[prost(string, repeated, tag = "60")]
    pub own_subnets6: Vec<String>,
    /// Other IPv6 subnets that it has a route to, without the default route; as many at the most.
    #[prost(string, repeated, tag = "61")]
    pub routes6: Vec<String>,
}

/// Public keys that a host has at the same time: those of two rotations.
pub const MAX_SEALING_KEYS: usize = 2;

/// What a host says of its part in encrypted networks, while its session goes on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NodeSealing {
    /// Why it cannot carry any, for people; empty if it can, which was tried.
    #[prost(string, tag = "1")]
    pub obstacle: String,
    /// Its public keys; none before it carries one, at most [`MAX_SEALING_KEYS`].
    #[prost(message, repeated, tag = "2")]
    pub keys: Vec<SealingKey>,
}

/// A host's public key for encrypted networks. The private one is in the host's kernel alone.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SealingKey {
    /// The rotation that it is of (`ClusterStatus::sealing_epoch`); not 0.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// 32 bytes, a point of Curve25519.
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
}

/// Ports of its daemon that a host names.
pub const MAX_OWN_PORTS: usize = 64;

/// Subnets of its own, and routes, that a host names of each.
pub const MAX_OWN_SUBNETS: usize = 128;

/// A port that a host's daemon listens at.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OwnPort {
    /// Protocol.
    #[prost(enumeration = "PortProtocol", tag = "1")]
    pub protocol: i32,
    /// Number, from 1 to 65535.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// What it is for, in a word or two, for people ("control port", "API port").
    #[prost(string, tag = "3")]
    pub purpose: String,
}

/// What a host's tasks may use.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct NodeResources {
    /// Billionths of a CPU.
    #[prost(uint64, tag = "1")]
    pub nano_cpus: u64,
    /// Bytes of memory.
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
}

/// A host's part in Raft.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ManagerStatus {
    /// Raft id: fresh at every promotion, never used again.
    #[prost(uint64, tag = "1")]
    pub raft_id: u64,
    /// `ip:port` that the other managers reach it at.
    #[prost(string, tag = "2")]
    pub addr: String,
}
