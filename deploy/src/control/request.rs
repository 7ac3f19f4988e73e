//! Requests, replies and errors as they travel: any manager takes a request and sends it to the leader as bytes.
//!
//! Ids in requests are full ids; whoever serves names and prefixes has resolved them.

use std::fmt;

use crate::model::{
    Cluster, ClusterSpec, ConfigId, NetworkId, NetworkSpec, Node, NodeCertificate, NodeDescription, NodeId,
    NodeSealing, NodeSpec, PayloadSpec, RegistryAuth, RegistryId, RootRotation, SecretId, ServiceId, ServiceSpec,
    TaskId, TaskStatus,
};

/// One request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// What is asked for; absent if a newer release asks for something that this one does not know.
    #[prost(
        oneof = "Op",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 24, 25, 40, 50, 51, 70, 71, 80"
    )]
    pub op: Option<Op>,
}

impl From<Op> for Request {
    fn from(op: Op) -> Self {
        Self { op: Some(op) }
    }
}

/// What a request asks for. (Tags 19 and 23 were used once.)
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Op {
    /// The first node makes the cluster. Reply: the cluster's id.
    #[prost(message, boxed, tag = "1")]
    InitCluster(Box<InitCluster>),
    /// Reply: the service's id.
    #[prost(message, boxed, tag = "2")]
    CreateService(Box<CreateService>),
    /// Reply: the service's id.
    #[prost(message, boxed, tag = "3")]
    UpdateService(Box<UpdateService>),
    /// The service is gone at once, its tasks are stopped and then forgotten.
    #[prost(message, tag = "4")]
    RemoveService(RemoveService),
    /// Reply: the network's id.
    #[prost(message, boxed, tag = "5")]
    CreateNetwork(Box<CreateNetwork>),
    /// Refused while a service uses it.
    #[prost(message, tag = "6")]
    RemoveNetwork(RemoveNetwork),
    /// Reply: the secret's id.
    #[prost(message, tag = "7")]
    CreateSecret(CreateSecret),
    /// Labels only.
    #[prost(message, tag = "8")]
    UpdateSecret(UpdateSecret),
    /// Refused while a service uses it.
    #[prost(message, tag = "9")]
    RemoveSecret(RemoveSecret),
    /// Reply: the config's id.
    #[prost(message, tag = "10")]
    CreateConfig(CreateConfig),
    /// Labels only.
    #[prost(message, tag = "11")]
    UpdateConfig(UpdateConfigLabels),
    /// Refused while a service uses it.
    #[prost(message, tag = "12")]
    RemoveConfig(RemoveConfig),
    /// Name, labels, role, availability of a host.
    #[prost(message, tag = "13")]
    UpdateNode(UpdateNode),
    /// Forgets a host for good; its certificate opens nothing any more.
    #[prost(message, tag = "14")]
    RemoveNode(RemoveNode),
    /// Settings, and fresh join tokens.
    #[prost(message, boxed, tag = "15")]
    UpdateCluster(Box<UpdateCluster>),
    /// A host joined and was given a certificate.
    #[prost(message, boxed, tag = "16")]
    RegisterNode(Box<RegisterNode>),
    /// An agent's session began: the host is ready.
    #[prost(message, boxed, tag = "17")]
    NodeSession(Box<NodeSession>),
    /// Gossip and sessions agree that the host is gone.
    #[prost(message, tag = "18")]
    NodeDown(NodeDown),
    /// What an agent observed of its tasks.
    #[prost(message, tag = "20")]
    ReportStatuses(ReportStatuses),
    /// A host is to take part in Raft. Reply: `number` is its raft id, never used before.
    #[prost(message, tag = "21")]
    AllocateRaftId(AllocateRaftId),
    /// A host takes part in Raft no more.
    #[prost(message, tag = "22")]
    ClearManager(ClearManager),
    /// A host left by itself: it has stopped its tasks, and its certificate opens nothing any more.
    #[prost(message, tag = "24")]
    NodeLeft(NodeLeft),
    /// A remark on a host that stays what it is ("gossip blocked"); empty takes it back.
    #[prost(message, tag = "25")]
    NoteNode(NoteNode),
    /// A manager issued a certificate, or a node shows that it uses one.
    #[prost(message, tag = "40")]
    NodeCertified(NodeCertified),
    /// The cluster's credentials for a registry, for the first time or instead of others. Reply: the registry.
    #[prost(message, tag = "50")]
    SetRegistry(SetRegistry),
    /// The cluster has no credentials for a registry any more.
    #[prost(message, tag = "51")]
    RemoveRegistry(RemoveRegistry),
    /// A plain container takes a place on a network. Reply: the id of what holds it.
    #[prost(message, tag = "70")]
    AttachContainer(AttachContainer),
    /// A plain container gives its place back; one that it does not have any more is fine.
    #[prost(message, tag = "71")]
    DetachContainer(DetachContainer),
    /// A host says whether it can carry encrypted networks, and its keys for them.
    #[prost(message, tag = "80")]
    NodeSealed(NodeSealed),
}

/// See `Op::InitCluster`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InitCluster {
    /// Id, spec, root of trust, tokens, gossip keys, incarnation and `next_raft_id`, all made by the node. Absent
    /// settings get Docker's defaults.
    #[prost(message, required, tag = "1")]
    pub cluster: Cluster,
    /// The node itself: id, spec (manager), description, and its part in Raft.
    #[prost(message, required, tag = "2")]
    pub node: Node,
}

/// See `Op::CreateService`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateService {
    /// What the user wants.
    #[prost(message, required, tag = "1")]
    pub spec: ServiceSpec,
}

/// See `Op::UpdateService`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateService {
    /// The service.
    #[prost(message, required, tag = "1")]
    pub id: ServiceId,
    /// Version that the user read.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The whole new spec; not looked at in a rollback.
    #[prost(message, required, tag = "3")]
    pub spec: ServiceSpec,
    /// Return to the previous spec.
    #[prost(bool, tag = "4")]
    pub rollback: bool,
}

/// See `Op::RemoveService`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveService {
    /// The service.
    #[prost(message, required, tag = "1")]
    pub id: ServiceId,
}

/// See `Op::CreateNetwork`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateNetwork {
    /// What the user wants.
    #[prost(message, required, tag = "1")]
    pub spec: NetworkSpec,
}

/// See `Op::RemoveNetwork`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveNetwork {
    /// The network.
    #[prost(message, required, tag = "1")]
    pub id: NetworkId,
}

/// See `Op::CreateSecret`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSecret {
    /// Name, labels, bytes.
    #[prost(message, required, tag = "1")]
    pub spec: PayloadSpec,
}

/// See `Op::UpdateSecret`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateSecret {
    /// The secret.
    #[prost(message, required, tag = "1")]
    pub id: SecretId,
    /// Version that the user read.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The whole spec. Name and bytes, where given, must be those that it has.
    #[prost(message, required, tag = "3")]
    pub spec: PayloadSpec,
}

/// See `Op::RemoveSecret`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveSecret {
    /// The secret.
    #[prost(message, required, tag = "1")]
    pub id: SecretId,
}

/// See `Op::CreateConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateConfig {
    /// Name, labels, bytes.
    #[prost(message, required, tag = "1")]
    pub spec: PayloadSpec,
}

/// See `Op::UpdateConfig`. (`UpdateConfig` alone is how a service is updated.)
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateConfigLabels {
    /// The config.
    #[prost(message, required, tag = "1")]
    pub id: ConfigId,
    /// Version that the user read.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The whole spec. Name and bytes, where given, must be those that it has.
    #[prost(message, required, tag = "3")]
    pub spec: PayloadSpec,
}

/// See `Op::RemoveConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveConfig {
    /// The config.
    #[prost(message, required, tag = "1")]
    pub id: ConfigId,
}

/// See `Op::SetRegistry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetRegistry {
    /// The registry, as `RegistryId::of_image` finds it.
    #[prost(message, required, tag = "1")]
    pub id: RegistryId,
    /// The credentials.
    #[prost(message, required, tag = "2")]
    pub auth: RegistryAuth,
}

/// See `Op::RemoveRegistry`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveRegistry {
    /// The registry.
    #[prost(message, required, tag = "1")]
    pub id: RegistryId,
}

/// See `Op::UpdateNode`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateNode {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub id: NodeId,
    /// Version that the user read.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// The whole new spec. A new role is a wish: the leader then changes Raft's members and issues certificates.
    #[prost(message, required, tag = "3")]
    pub spec: NodeSpec,
}

/// See `Op::RemoveNode`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveNode {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub id: NodeId,
    /// Also when it is not down.
    #[prost(bool, tag = "2")]
    pub force: bool,
}

/// See `Op::UpdateCluster`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateCluster {
    /// Version that the user read.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// The whole new spec.
    #[prost(message, required, tag = "2")]
    pub spec: ClusterSpec,
    /// The worker token gets a fresh secret.
    #[prost(bool, tag = "3")]
    pub rotate_worker_token: bool,
    /// The manager token gets a fresh secret.
    #[prost(bool, tag = "4")]
    pub rotate_manager_token: bool,
    /// While autolock is on, managers need another key from now on.
    #[prost(bool, tag = "15")]
    pub rotate_unlock_key: bool,
    /// The root that is to take the place of the present one, made by the manager that was asked.
    #[prost(message, optional, tag = "30")]
    pub rotation: Option<RootRotation>,
}

/// See `Op::RegisterNode`. Asking again for the same node changes nothing.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct RegisterNode {
    /// Made by the host at join.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// Role that its token gave it (`NodeRole`).
    #[prost(enumeration = "crate::model::NodeRole", tag = "2")]
    pub role: i32,
    /// What the host says of itself.
    #[prost(message, required, tag = "3")]
    pub description: NodeDescription,
    /// Availability that it joined with (`NodeAvailability`).
    #[prost(enumeration = "crate::model::NodeAvailability", tag = "4")]
    pub availability: i32,
    /// Address of the host as the manager sees it (no port).
    #[prost(string, tag = "5")]
    pub addr: String,
    /// The certificate that the manager issued for it.
    #[prost(message, optional, tag = "30")]
    pub certificate: Option<NodeCertificate>,
    /// Secret of the token that it came with: the leader compares it with the token of now, so that one that was
    /// replaced opens nothing at a manager that lags. Empty from a manager of an older release, which compared itself.
    #[prost(string, tag = "31")]
    pub secret: String,
}

impl fmt::Debug for RegisterNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisterNode({} as {:?})", self.node_id, self.role())
    }
}

/// See `Op::NodeCertified`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeCertified {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// What was issued, or is used.
    #[prost(message, required, tag = "2")]
    pub certificate: NodeCertificate,
    /// The host proved that it uses it; otherwise it was only issued, and may be lost on its way.
    #[prost(bool, tag = "3")]
    pub in_use: bool,
}

/// See `Op::NodeSession`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeSession {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// Its boot generation; an older one than the last is refused.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// What the host says of itself.
    #[prost(message, required, tag = "3")]
    pub description: NodeDescription,
    /// Address of the host as the manager sees it (no port).
    #[prost(string, tag = "4")]
    pub addr: String,
    /// The certificate that it showed.
    #[prost(message, optional, tag = "30")]
    pub certificate: Option<NodeCertificate>,
    /// Drawn by the daemon when it started, never 0: tells two hosts with the same disk apart. 0 from an older release.
    #[prost(uint64, tag = "31")]
    pub boot: u64,
}

/// See `Op::NodeDown`. Nothing happens if a newer session of the host has begun meanwhile.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeDown {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// Boot generation that fell silent.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// Why, in a few words ("agent silent").
    #[prost(string, tag = "3")]
    pub reason: String,
}

/// See `Op::ReportStatuses`. Reports that are not news, or not of a task of that host, are passed over. Reply:
/// `number` says how many were read, from the first on; the rest did not fit into one entry and has to be sent again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReportStatuses {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// Its boot generation; an older one than that of its session is refused.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// At most one a task.
    #[prost(message, repeated, tag = "3")]
    pub reports: Vec<TaskReport>,
}

/// What an agent observed of a task. (Tag 3 was used once.)
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskReport {
    /// The task.
    #[prost(message, required, tag = "1")]
    pub task_id: TaskId,
    /// What was observed. The time in it is replaced by the cluster's.
    #[prost(message, required, tag = "2")]
    pub status: TaskStatus,
}

/// See `Op::AllocateRaftId`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AllocateRaftId {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// `ip:port` that the other managers reach it at.
    #[prost(string, tag = "2")]
    pub addr: String,
}

/// See `Op::ClearManager`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClearManager {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
}

/// See `Op::NodeLeft`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeLeft {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
}

/// See `Op::NoteNode`. Nothing happens if a newer session of the host has begun meanwhile.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NoteNode {
    /// The host.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// Boot generation that the remark is about.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The remark.
    #[prost(string, tag = "3")]
    pub message: String,
}

/// See `Op::AttachContainer`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttachContainer {
    /// The host that the container is on; the one that asks.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// Id of the container, 64 hexadecimal characters.
    #[prost(string, tag = "2")]
    pub container: String,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Name or id of the network.
    #[prost(string, tag = "4")]
    pub network: String,
    /// Other names for it on that network.
    #[prost(string, repeated, tag = "5")]
    pub aliases: Vec<String>,
    /// Random, another one each time that the container starts: who asks twice for one start gets one place, and what is
    /// given back late is not another start's.
    #[prost(uint64, tag = "6")]
    pub start: u64,
    /// Boot generation of the host that asks.
    #[prost(uint64, tag = "7")]
    pub generation: u64,
    /// What its daemon drew when it started.
    #[prost(uint64, tag = "8")]
    pub boot: u64,
}

/// See `Op::DetachContainer`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DetachContainer {
    /// The host that the container is on.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// What holds the place.
    #[prost(message, required, tag = "2")]
    pub id: TaskId,
    /// Boot generation of the host that asks.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    /// What its daemon drew when it started.
    #[prost(uint64, tag = "4")]
    pub boot: u64,
}

/// See `Op::NodeSealed`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeSealed {
    /// The host; the one that says it.
    #[prost(message, required, tag = "1")]
    pub node_id: NodeId,
    /// Its boot generation.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// What its daemon drew when it started.
    #[prost(uint64, tag = "3")]
    pub boot: u64,
    /// What it says.
    #[prost(message, required, tag = "4")]
    pub sealing: NodeSealing,
}

/// What came of a request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Reply {
    /// Id of the object that was made or changed.
    #[prost(string, tag = "1")]
    pub id: String,
    /// For people.
    #[prost(string, repeated, tag = "2")]
    pub warnings: Vec<String>,
    /// A raft id, or how many reports were read.
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

/// Why a request was refused. Nothing changed. The message is in Docker's words, which tools match.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ControlError {
    /// What kind of refusal; decides the status code that a client sees.
    #[prost(enumeration = "ErrorKind", tag = "1")]
    pub kind: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ErrorKind {
    /// A bad value; asking again does not help.
    Invalid = 0,
    /// No such object.
    NotFound = 1,
    /// The name is taken.
    AlreadyExists = 2,
    /// Not in this state; it may work later.
    FailedPrecondition = 3,
    /// The object changed since it was read; read it again.
    OutOfSequence = 4,
    /// Understood, but this release cannot do it.
    Unimplemented = 5,
    /// No more of something (addresses, ports).
    Exhausted = 6,
    /// Too much is asked for at once; nothing was changed, and later it may work.
    Busy = 7,
    /// It is not for who asks. An older manager that passes it on makes [`ErrorKind::Invalid`] of it.
    Forbidden = 8,
}

impl ControlError {
    /// A refusal of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind: kind as i32, message: message.into() }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ControlError {}

/// A refusal because of a bad value.
pub(crate) fn invalid(message: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::Invalid, message)
}

/// A refusal because there is no such object.
pub(crate) fn not_found(kind: &str, id: impl fmt::Display) -> ControlError {
    ControlError::new(ErrorKind::NotFound, format!("{kind} {id} not found"))
}

/// A refusal because of the state that something is in.
pub(crate) fn precondition(message: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::FailedPrecondition, message)
}

/// A refusal because it is not for who asks.
pub(crate) fn forbidden(message: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::Forbidden, message)
}

/// A refusal because this release cannot do it.
pub(crate) fn unimplemented(message: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::Unimplemented, message)
}

/// A refusal because the object changed since it was read.
pub(crate) fn out_of_sequence() -> ControlError {
    ControlError::new(ErrorKind::OutOfSequence, "update out of sequence")
}
