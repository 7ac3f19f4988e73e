//! What the Docker API needs of the node it runs in. The daemon implements it; tests of the API use a fake.

use std::future::Future;

use deploy::control::{ControlError, Reply, Request};
use deploy::dispatcher::{AssignmentSet, Stamp};
use deploy::model::{ClusterId, NodeId, TaskId, TaskState};
use deploy::store::Store;
use overlay_net::Overlay;
use runtime::Volumes;
use runtime::image::registry::{Credentials, Registries};
use runtime::image::{ImageStore, Reference};
use tokio::sync::mpsc;

use crate::agent::Plain;
use crate::containers::Containers;

/// Where this node stands in a cluster; Docker's `LocalNodeState` and what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Membership {
    /// In no cluster.
    Inactive,
    /// A join is under way.
    Pending,
    /// A manager whose files need the unlock key.
    Locked,
    /// A member.
    Active(Member),
    /// The node cannot take part; the text says why and what to do.
    Error(String),
}

/// A membership in a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// This node.
    pub node_id: NodeId,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Whether this node takes part in Raft now.
    pub manager: bool,
    /// The address that this node advertises, without port.
    pub addr: String,
    /// Managers known to this node: id and `ip:port`.
    pub managers: Vec<(NodeId, String)>,
}

/// What a node knows about Raft, for `node ls` and `info`; only managers have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ManagerView {
    /// The leader, if there is one.
    pub leader: Option<NodeId>,
    /// Managers that the leader has heard from lately, as far as this manager knows.
    pub reachable: Vec<NodeId>,
}

/// `node init`: Docker's `POST /swarm/init`. Empty strings mean "choose".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InitRequest {
    /// Address and port to listen at, `0.0.0.0:2377` by default.
    pub listen_addr: String,
    /// Address (with or without port) or interface name that others reach this node at.
    pub advertise_addr: String,
    /// Address or interface for VXLAN; the advertised one by default.
    pub data_path_addr: String,
    /// UDP port of VXLAN; 0 means 4789.
    pub data_path_port: u32,
    /// Pools for networks, CIDR; empty means 10.0.0.0/8.
    pub default_addr_pool: Vec<String>,
    /// Prefix length of networks; 0 means 24.
    pub subnet_size: u32,
    /// "active", "pause" or "drain".
    pub availability: String,
    /// Cluster settings, where given.
    pub spec: deploy::model::ClusterSpec,
}

/// `node join`: Docker's `POST /swarm/join`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JoinRequest {
    /// As in [`InitRequest`].
    pub listen_addr: String,
    /// As in [`InitRequest`].
    pub advertise_addr: String,
    /// As in [`InitRequest`].
    pub data_path_addr: String,
    /// Managers to ask, `host:port`.
    pub remote_addrs: Vec<String>,
    /// `SWMTKN-1-<digest>-<secret>`.
    pub token: String,
    /// "active", "pause" or "drain".
    pub availability: String,
}

/// The cluster's objects, and the entry of the log that they are the result of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppliedStore {
    /// The objects.
    pub store: Store,
    /// Index of the entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// What the agent of this host acts on.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentState {
    /// This node.
    pub node_id: NodeId,
    /// Whether a manager serves it now.
    pub connected: bool,
    /// Boot generation of the daemon.
    pub generation: u64,
    /// Which assignment set it has.
    pub stamp: Stamp,
    /// The set.
    pub set: AssignmentSet,
    /// Tasks that it keeps, also those that ended and are not yet taken away.
    pub tasks: Vec<(TaskId, TaskState)>,
}

/// `node recover`: this node becomes the only manager, from what it has. Empty strings mean "as before".
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecoverRequest {
    /// As in [`InitRequest`].
    pub listen_addr: String,
    /// As in [`InitRequest`].
    pub advertise_addr: String,
    /// As in [`InitRequest`].
    pub data_path_addr: String,
    /// Also while the cluster has a leader.
    pub force: bool,
}

/// `system restore`. The addresses are for a node that is in no cluster, as in [`InitRequest`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestoreRequest {
    /// The file.
    pub backup: bytes::Bytes,
    /// As in [`InitRequest`].
    pub listen_addr: String,
    /// As in [`InitRequest`].
    pub advertise_addr: String,
    /// As in [`InitRequest`].
    pub data_path_addr: String,
}

/// What a recovery or a restore has come to.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Recovered {
    /// The only manager.
    pub node_id: String,
    /// Its advertised `ip:port`.
    pub addr: String,
    /// Index of the last log entry that was found; what came after it is lost.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// How many of the last entries were not known as committed on this node; they are kept.
    pub uncommitted: u64,
    /// The revision that the store begins anew with.
    pub revision: u64,
    /// Node ids of those that were managers too.
    pub former_managers: Vec<String>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever this manager has applied; at the least, that it was made a manager.
    Local,
    /// At least everything acknowledged before the call.
    Linearizable,
}

/// Which log lines are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogRequest {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Go on as lines come.
    pub follow: bool,
    /// Only the last so many lines of each task.
    pub tail: Option<u64>,
    /// Not before this Unix time in nanoseconds; 0 means from the start.
    pub since_ns: u64,
    /// Not after this Unix time in nanoseconds; 0 means no end.
    pub until_ns: u64,
}

/// A piece of a task's output.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// The task.
    pub task_id: TaskId,
    /// The host that it ran on.
    pub node_id: NodeId,
    /// Unix time in nanoseconds.
    pub at_ns: u64,
    /// Standard error rather than standard output.
    pub stderr: bool,
    /// The bytes, with the newline if there was one.
    pub data: bytes::Bytes,
}

/// Why the node could not do what was asked. Nothing changed unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The request was refused by the cluster's rules.
    #[error("{0}")]
    Refused(ControlError),
    /// Not a manager (Docker's text; status 503).
    #[error("{0}")]
    NotManager(String),
    /// The node is already, or not, in a cluster, or may not leave it so (Docker's texts; status 503).
    #[error("{0}")]
    WrongMembership(String),
    /// The node is a member, and its cluster does not see it so yet (Docker's text; status 503).
    #[error(
        "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \
         \"docker info\" command to see the current swarm status of your node."
    )]
    JoinGoesOn,
    /// Wrong input (status 400).
    #[error("{0}")]
    Invalid(String),
    /// There is no leader; a retry may help.
    #[error("The swarm does not have a leader. It's possible that too few managers are online.")]
    NoLeader,
    /// This manager has begun and not heard yet that it is one: its objects are of before, or none. A retry helps.
    #[error("This manager does not have the cluster's state yet. Try again in a moment, or ask another manager.")]
    Behind,
    /// This manager's files need the unlock key (Docker's text; status 503).
    #[error(
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it."
    )]
    Locked,
    /// The write was sent but its outcome is unknown: it may or may not have been carried out.
    #[error("the outcome of the write is unknown: {0}")]
    OutcomeUnknown(String),
    /// No host has the image, nor its registry (Docker's text, and more; status 404).
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// Something failed that is not the user's fault.
    #[error("{0}")]
    Internal(String),
}

/// The node, as the API server sees it. A clone is a handle to the same node.
pub trait Engine: Clone + Send + Sync + 'static {
    /// Where this node stands.
    fn membership(&self) -> Membership;
    /// Id of the engine (not of the membership).
    fn engine_id(&self) -> String;
    /// The daemon's data directory, for `info`.
    fn data_dir(&self) -> std::path::PathBuf;
    /// How patient this node is with the others.
    fn timing(&self) -> crate::timing::Timing;
    /// Whether containers have users of their own.
    fn remaps_users(&self) -> bool;
    /// Labels given to the daemon.
    fn labels(&self) -> Vec<String>;
    /// Raft as this manager sees it.
    fn manager_view(&self) -> ManagerView;
    /// Makes a cluster of this one node; answers the node's id.
    fn init(&self, request: InitRequest) -> impl Future<Output = Result<NodeId, EngineError>> + Send;
    /// Joins a cluster; returns when joined.
    fn join(&self, request: JoinRequest) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Opens the files of a locked manager; returns when it takes part again, or goes on trying to.
    fn unlock(&self, key: String) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Leaves the cluster and stops its tasks here.
    fn leave(&self, force: bool) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Makes this node, which was a manager, the only one. Tasks go on.
    fn recover(&self, request: RecoverRequest) -> impl Future<Output = Result<Recovered, EngineError>> + Send;
    /// Has the cluster begin anew from a backup, or makes a cluster out of one. Tasks that it still wants go on.
    fn restore(&self, request: RestoreRequest) -> impl Future<Output = Result<Recovered, EngineError>> + Send;
    /// The cluster's objects as a value; fails where there is no manager here.
    fn store(&self, consistency: Consistency) -> impl Future<Output = Result<Store, EngineError>> + Send;
    /// As [`Engine::store`], with the entry that the objects are the result of.
    fn applied(&self, consistency: Consistency) -> impl Future<Output = Result<AppliedStore, EngineError>> + Send;
    /// What the agent acts on; fails where there is none.
    fn agent(&self) -> impl Future<Output = Result<AgentState, EngineError>> + Send;
    /// The overlay of this host; fails where there is none.
    fn overlay(&self) -> Result<Overlay, EngineError>;
    /// Carries out a request through the leader; answered when it is committed.
    fn control(&self, request: Request) -> impl Future<Output = Result<Reply, EngineError>> + Send;
    /// Containers of this host; `None` where there are none to drive.
    fn containers(&self) -> Option<Containers>;
    /// Containers of this host that belong to no service; fails where there are none.
    fn plain(&self) -> Result<Plain, EngineError>;
    /// Images of this host.
    fn images(&self) -> ImageStore;
    /// The way to registries, into the same images.
    fn registries(&self) -> Registries;
    /// The digest that an image's name stands for: in this host's store, else on the other hosts, as the managers know
    /// them, else at its registry, with these credentials in turn; [`EngineError::NoSuchImage`] if it is nowhere.
    fn resolve_image(
        &self,
        name: Reference,
        credentials: Vec<Credentials>,
    ) -> impl Future<Output = Result<String, EngineError>> + Send;
    /// Volumes of this host.
    fn volumes(&self) -> Volumes;
    /// Ids of images that containers of this host use.
    fn images_in_use(&self) -> impl Future<Output = Vec<String>> + Send;
    /// Output of tasks, wherever they ran, in the order of arrival; the channel closes at the end.
    fn logs(
        &self,
        tasks: Vec<TaskId>,
        request: LogRequest,
    ) -> impl Future<Output = Result<mpsc::Receiver<Result<LogRecord, EngineError>>, EngineError>> + Send;
}
