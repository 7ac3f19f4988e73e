//! What an agent is told, in items that can be compared, replaced and taken away one by one.

use crate::model::{
    GOSSIP_BLOCKED, NetworkId, NodeId, NodeRole, NodeState, PortProtocol, RegistryAuth, RegistryId, SealingKey,
    ServiceId, Task, TaskId, Timestamp,
};

/// Names an item among all items of a host. The text fields' meaning depends on the kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct ItemKey {
    /// Kind of the item.
    #[prost(enumeration = "ItemKind", tag = "1")]
    pub kind: i32,
    /// First part: the object's id, or the network's.
    #[prost(string, tag = "2")]
    pub first: String,
    /// Second part: what is told apart on a network; empty otherwise.
    #[prost(string, tag = "3")]
    pub second: String,
}

/// Kind of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ItemKind {
    /// Never sent; what an absent field reads as.
    None = 0,
    /// `Assignment`.
    Task = 1,
    /// `NetworkInfo`.
    Network = 2,
    /// `Station`.
    Station = 3,
    /// `ServiceInfo`.
    Service = 4,
    /// `EndpointInfo`.
    Endpoint = 5,
    /// `PublishedPort`.
    Port = 6,
    /// `Peer`.
    Peer = 7,
    /// `RemovedPeer`.
    Removed = 8,
    /// `PayloadInfo` of a secret.
    Secret = 9,
    /// `PayloadInfo` of a config.
    Config = 10,
    /// `RegistryInfo`.
    Registry = 11,
    /// `SealingInfo`.
    Sealing = 12,
}

/// One item.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Item {
    /// What it is; absent when it comes from a newer release, and then ignored.
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub body: Option<Body>,
}

/// What an item says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// A task of this host.
    #[prost(message, boxed, tag = "1")]
    Task(Box<Assignment>),
    /// A network that this host takes part in.
    #[prost(message, tag = "2")]
    Network(NetworkInfo),
    /// Behind which host an address of such a network is.
    #[prost(message, tag = "3")]
    Station(Station),
    /// A service on such a network.
    #[prost(message, tag = "4")]
    Service(ServiceInfo),
    /// A task, anywhere, on such a network.
    #[prost(message, tag = "5")]
    Endpoint(EndpointInfo),
    /// A port that every host listens on.
    #[prost(message, tag = "6")]
    Port(PublishedPort),
    /// A host of the cluster.
    #[prost(message, tag = "7")]
    Peer(Peer),
    /// A host that was removed and whose certificate must not be trusted.
    #[prost(message, tag = "8")]
    Removed(RemovedPeer),
    /// A secret of a task of the host. Never written to its disk.
    #[prost(message, tag = "9")]
    Secret(PayloadInfo),
    /// A config of a task of the host.
    #[prost(message, tag = "10")]
    Config(PayloadInfo),
    /// Credentials for the registry of a task of the host. Never written to its disk.
    #[prost(message, tag = "11")]
    Registry(RegistryInfo),
    /// What encrypted networks are encrypted with; there is one at the most.
    #[prost(message, tag = "12")]
    Sealing(SealingInfo),
}

/// A task of the host that is told.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Assignment {
    /// The task. Its status and version are left out: the agent knows them better.
    #[prost(message, required, tag = "1")]
    pub task: Task,
    /// How far the cluster knows that it got; it never starts twice.
    #[prost(enumeration = "Progress", tag = "2")]
    pub progress: i32,
}

/// How far a task got, as coarsely as an agent that lost its memory needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Progress {
    /// It was not seen to start.
    NotStarted = 0,
    /// It may have been started; without a container it has failed.
    MayHaveStarted = 1,
    /// It ended. The container, if it is still there, is kept for its logs.
    Ended = 2,
}

/// A network that the host takes part in.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NetworkInfo {
    /// Its id.
    #[prost(message, required, tag = "1")]
    pub id: NetworkId,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// VXLAN id.
    #[prost(uint32, tag = "3")]
    pub vni: u32,
    /// IPv4 subnet, CIDR.
    #[prost(string, tag = "4")]
    pub subnet: String,
    /// Gateway address.
    #[prost(string, tag = "5")]
    pub gateway: String,
    /// No way out of it.
    #[prost(bool, tag = "6")]
    pub internal: bool,
    /// The one that carries published ports.
    #[prost(bool, tag = "7")]
    pub ingress: bool,
    /// The host's own address on it, with prefix length; empty when it has none.
    #[prost(string, tag = "8")]
    pub own_address: String,
    /// IPv6 subnet, CIDR; empty without IPv6. Who has the nth address of `subnet` has the nth of this one too: all
    /// IPv6 addresses of stations, services and endpoints follow from that.
    #[prost(string, tag = "9")]
    pub subnet6: String,
    /// The MTU of the underlay that it is made for, in bytes; 0 where that is simply the underlay's own.
    #[prost(uint32, tag = "10")]
    pub mtu: u32,
    /// The IPv4 subnet of an encrypted network, which has none in `subnet`: an older release, which would carry it as if it
    /// were not encrypted, does not find any there. Empty for one that is not encrypted.
    #[prost(string, tag = "13")]
    pub sealed_subnet: String,
    /// It ends at each host.
    #[prost(bool, tag = "12")]
    pub local: bool,
}

/// Behind which host an address is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Station {
    /// The network.
    #[prost(message, required, tag = "1")]
    pub network: NetworkId,
    /// Address with prefix length.
    #[prost(string, tag = "2")]
    pub address: String,
    /// The host.
    #[prost(message, required, tag = "3")]
    pub node: NodeId,
    /// Where VXLAN packets to that host are sent.
    #[prost(string, tag = "4")]
    pub data_path_addr: String,
}

/// A service on a network.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServiceInfo {
    /// The network.
    #[prost(message, required, tag = "1")]
    pub network: NetworkId,
    /// The service.
    #[prost(message, required, tag = "2")]
    pub id: ServiceId,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// More names of it on this network.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
    /// Virtual address with prefix length; empty when the name resolves to the tasks' own addresses.
    #[prost(string, tag = "5")]
    pub vip: String,
    /// The ports that it publishes.
    #[prost(message, repeated, tag = "6")]
    pub ports: Vec<ServicePort>,
}

/// A port of a service, as its tasks have it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServicePort {
    /// Its name, as sent; most have none.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Protocol.
    #[prost(enumeration = "PortProtocol", tag = "2")]
    pub protocol: i32,
    /// Port inside of the tasks.
    #[prost(uint32, tag = "3")]
    pub target: u32,
}

/// A task on a network.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EndpointInfo {
    /// The network.
    #[prost(message, required, tag = "1")]
    pub network: NetworkId,
    /// The task.
    #[prost(message, required, tag = "2")]
    pub task: TaskId,
    /// Its service.
    #[prost(message, required, tag = "3")]
    pub service: ServiceId,
    /// Its host.
    #[prost(message, required, tag = "4")]
    pub node: NodeId,
    /// Address with prefix length.
    #[prost(string, tag = "5")]
    pub address: String,
    /// Names of the task itself: its container's name, its hostname, the short form of its container's id.
    #[prost(string, repeated, tag = "6")]
    pub names: Vec<String>,
    /// It runs and is wanted: names and virtual addresses may lead to it.
    #[prost(bool, tag = "7")]
    pub serving: bool,
}

/// A port that every host listens on. Its backends are the service's endpoints on the ingress network.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PublishedPort {
    /// Protocol.
    #[prost(enumeration = "PortProtocol", tag = "1")]
    pub protocol: i32,
    /// Port on the hosts.
    #[prost(uint32, tag = "2")]
    pub published: u32,
    /// Port inside of the tasks.
    #[prost(uint32, tag = "3")]
    pub target: u32,
    /// The service.
    #[prost(message, required, tag = "4")]
    pub service: ServiceId,
    /// Each host leads to its own tasks alone.
    #[prost(bool, tag = "5")]
    pub local: bool,
}

/// A host of the cluster.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Peer {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub id: NodeId,
    /// Its hostname.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// `ip:port` of its control port.
    #[prost(string, tag = "3")]
    pub control_addr: String,
    /// Where VXLAN packets to it are sent.
    #[prost(string, tag = "4")]
    pub data_path_addr: String,
    /// Role.
    #[prost(enumeration = "NodeRole", tag = "5")]
    pub role: i32,
    /// Whether it takes part in Raft.
    #[prost(bool, tag = "6")]
    pub manager: bool,
    /// Whether it is there.
    #[prost(enumeration = "NodeState", tag = "7")]
    pub state: i32,
    /// Why, for people ([`GOSSIP_BLOCKED`]).
    #[prost(string, tag = "8")]
    pub message: String,
    /// Its public keys for encrypted networks.
    #[prost(message, repeated, tag = "9")]
    pub sealing_keys: Vec<SealingKey>,
}

impl Peer {
    /// Whether the managers hear from the host though gossip calls it dead.
    #[must_use]
    pub fn is_gossip_blocked(&self) -> bool {
        // Other remarks may follow.
        self.state() == NodeState::Ready && self.message.starts_with(GOSSIP_BLOCKED)
    }
}

/// A host that was removed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RemovedPeer {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub id: NodeId,
    /// When its certificate runs out.
    #[prost(message, required, tag = "2")]
    pub until: Timestamp,
}

/// The bytes of a secret or a config.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct PayloadInfo {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

impl core::fmt::Debug for PayloadInfo {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // A secret's bytes must not reach a log through somebody's `{:?}`.
        f.debug_struct("PayloadInfo").field("id", &self.id).field("len", &self.data.len()).finish_non_exhaustive()
    }
}

/// The cluster's credentials for a registry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegistryInfo {
    /// The registry.
    #[prost(message, required, tag = "1")]
    pub id: RegistryId,
    /// The credentials; they print nothing.
    #[prost(message, required, tag = "2")]
    pub auth: RegistryAuth,
}

/// What encrypted networks are encrypted with.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SealingInfo {
    /// The rotation of the hosts' keys that is to be in use, not 0.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
}

impl Item {
    /// The item's name; `None` for one that this release does not know.
    pub fn key(&self) -> Option<ItemKey> {
        let key = |kind: ItemKind, first: &str, second: String| {
            Some(ItemKey { kind: kind as i32, first: first.to_owned(), second })
        };
        match self.body.as_ref()? {
            Body::Task(t) => key(ItemKind::Task, t.task.id.as_str(), String::new()),
            Body::Network(n) => key(ItemKind::Network, n.id.as_str(), String::new()),
            Body::Station(s) => key(ItemKind::Station, s.network.as_str(), s.address.clone()),
            Body::Service(s) => key(ItemKind::Service, s.network.as_str(), s.id.to_string()),
            Body::Endpoint(e) => key(ItemKind::Endpoint, e.network.as_str(), e.task.to_string()),
            Body::Port(p) => key(ItemKind::Port, &format!("{}/{}", p.published, p.protocol), String::new()),
            Body::Peer(p) => key(ItemKind::Peer, p.id.as_str(), String::new()),
            Body::Removed(p) => key(ItemKind::Removed, p.id.as_str(), String::new()),
            Body::Secret(p) => key(ItemKind::Secret, &p.id, String::new()),
            Body::Config(p) => key(ItemKind::Config, &p.id, String::new()),
            Body::Registry(r) => key(ItemKind::Registry, r.id.as_str(), String::new()),
            Body::Sealing(_) => key(ItemKind::Sealing, "", String::new()),
        }
    }
}

impl From<Body> for Item {
    fn from(body: Body) -> Self {
        Item { body: Some(body) }
    }
}
