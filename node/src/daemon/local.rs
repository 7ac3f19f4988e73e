//! The engine of this host, in a cluster or not: what the API server talks to.
//!
//! Joining and leaving go one at a time. The membership is on disk before its success is reported, and gone from disk
//! before a departure is: what was cut in between is finished or rolled back at the next start.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deploy::control::{Reply, Request};
use deploy::model::{
    Cluster, ClusterId, ClusterStatus, GossipKey, ManagerStatus, Meta, Node, NodeDescription, NodeId, NodeRole,
    NodeSpec, NodeStatus, RootCa, TaskId, format_id,
};
use deploy::store::Store;
use prost::Message;
use runtime::Runtime;
use runtime::image::ImageStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::mpsc;

use super::active::{Active, Birth};
use super::address;
use super::config::Config;
use super::{describe, raft_entry};
use crate::ca::{Issuer, JoinToken, KeyAndCsr, Role, new_root, root_digest};
use crate::datadir::{DataDir, EngineIdentity, ManagerRecord, MembershipRecord};
use crate::engine::{
    Consistency, Engine, EngineError, InitRequest, JoinRequest, LogRecord, LogRequest, ManagerView, Membership,
};
use crate::manager::Manager;
use crate::rpc::{channel_without_certificate, pb, unverified_channel};

/// Docker's answer after 20 s: the join goes on, but the user is told.
const JOIN: Duration = Duration::from_secs(60);
/// Pause before another try to take up a membership.
const RESUME_RETRY: Duration = Duration::from_secs(2);
/// First raft id of a cluster.
const FIRST_RAFT_ID: u64 = 1;
/// Feature level that this release writes.
pub(super) const FEATURE_LEVEL: u32 = 1;
/// Life of the first manager's certificate; later ones follow the cluster's setting.
const FIRST_CERT_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

// Docker's texts, which its users and tools know; Shoal's own command line says "shoal node" where they say "docker swarm".
const ALREADY: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join \
                       another one.";
const NOT_IN_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to \
                            connect this node to swarm and try again.";
const WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. \
                      Please run this command on a manager node or promote the current node to a manager.";
const PENDING: &str = "This node is taking its place in the cluster; try again in a moment.";
const REMOVED: &str = "This node was removed from its cluster; \"docker swarm leave --force\" frees it for another one.";
const MANAGER_LEAVES: &str = "You are attempting to leave the swarm on a node that is participating as a manager.";

/// The engine of this host. A clone is a handle to the same one.
#[derive(Clone)]
pub struct LocalEngine {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    data: DataDir,
    identity: EngineIdentity,
    runtime: Runtime,
    images: ImageStore,
    state: Mutex<State>,
    /// Held through an init, a join or a leave.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
enum State {
    Inactive,
    Pending,
    Active(Arc<Active>),
    Error(String),
}

impl LocalEngine {
    /// The engine over an open data directory, not yet in any cluster.
    pub fn new(config: Config, data: DataDir, identity: EngineIdentity, runtime: Runtime, images: ImageStore) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                data,
                identity,
                runtime,
                images,
                state: Mutex::new(State::Inactive),
                changing: tokio::sync::Mutex::new(()),
            }),
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(super) fn data(&self) -> &DataDir {
        &self.inner.data
    }

    pub(super) fn identity(&self) -> &EngineIdentity {
        &self.inner.identity
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    pub(super) fn images_store(&self) -> &ImageStore {
        &self.inner.images
    }

    fn state(&self) -> State {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_state(&self, state: State) {
        *self.inner.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn active(&self) -> Result<Arc<Active>, EngineError> {
        match self.state() {
            State::Active(active) => Ok(active),
            State::Inactive => Err(EngineError::NotManager(NOT_IN_SWARM.into())),
            State::Pending => Err(EngineError::NotManager(PENDING.into())),
            State::Error(reason) => Err(EngineError::NotManager(reason)),
        }
    }

    fn manager(&self) -> Result<Arc<Manager>, EngineError> {
        self.active()?.manager().ok_or_else(|| EngineError::NotManager(WORKER.into()))
    }

    /// Takes up the membership that the data directory holds, or cleans up after one that was not finished. What stands
    /// in the way (a port that is still taken, a disk that is full) may pass: it is tried again until it works, or the
    /// node has left.
    pub async fn resume(&self) {
        loop {
            let changing = self.inner.changing.lock().await;
            match self.try_resume().await {
                Ok(state) => return self.set_state(state),
                Err(error) => {
                    tracing::error!(%error, "the node cannot take its place in the cluster; trying again");
                    self.set_state(State::Error(error.to_string()));
                }
            }
            drop(changing);
            tokio::time::sleep(RESUME_RETRY).await;
            if !matches!(self.state(), State::Error(_)) {
                return;
            }
        }
    }

    async fn try_resume(&self) -> Result<State, EngineError> {
        let Some(record) = self.data().membership().map_err(|e| EngineError::Internal(crate::chain(&e)))? else {
            // A join or a leave that was cut left no membership: nothing of it may stay.
            self.data().forget_membership().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
            self.inner.runtime.destroy().await.map_err(|e| EngineError::Internal(crate::chain(&e)))?;
            return Ok(State::Inactive);
        };
        self.set_state(State::Pending);
        let description = describe(self, &record.advertise_addr, &record.data_path_addr);
        Active::start(self.clone(), record, description, None).await.map(State::Active)
    }

    /// Stops everything but the tasks.
    pub async fn shutdown(&self) {
        if let State::Active(active) = self.state() {
            active.shutdown().await;
        }
    }

    async fn make_cluster(&self, request: InitRequest) -> Result<(Arc<Active>, NodeId), EngineError> {
        let invalid = |e: address::AddressError| EngineError::Invalid(e.to_string());
        let host = address::host_addresses();
        let listen = address::listen(&request.listen_addr, &host).map_err(invalid)?;
        let advertise = address::advertise(&request.advertise_addr, listen, &host).map_err(invalid)?;
        let data_path = address::data_path(&request.data_path_addr, advertise, &host).map_err(invalid)?;
        let data_path_port = if request.data_path_port == 0 { 4789 } else { request.data_path_port };
        let availability = crate::manager::availability(&request.availability)
            .map_err(|status| EngineError::Invalid(status.message().to_owned()))?;

        let internal = |e: crate::ca::CaError| EngineError::Internal(crate::chain(&e));
        let node_id = NodeId::from(rand::random::<u128>());
        let cluster_id = ClusterId::from(rand::random::<u128>());
        let (cert_pem, key_pem) = new_root().map_err(internal)?;
        let own = KeyAndCsr::generate().map_err(internal)?;
        let certificate = Issuer::new(&cert_pem, &key_pem)
            .and_then(|issuer| {
                issuer.issue(&own.csr_pem, node_id.as_str(), cluster_id.as_str(), Role::Manager, FIRST_CERT_LIFE)
            })
            .map_err(internal)?;
        let gossip_keys = vec![GossipKey { id: 1, bytes: rand::random::<[u8; 32]>().to_vec() }];
        let record = MembershipRecord {
            node_id: node_id.to_string(),
            cluster_id: cluster_id.to_string(),
            manager: true,
            raft_id: FIRST_RAFT_ID,
            listen_addr: listen.to_string(),
            advertise_addr: advertise.to_string(),
            data_path_addr: data_path.to_string(),
            data_path_port,
            root_pem: cert_pem.clone(),
            cert_pem: certificate,
            key_pem: own.key_pem,
            gossip_keys: gossip_keys.clone(),
            managers: vec![ManagerRecord { node_id: node_id.to_string(), addr: advertise.to_string() }],
        };
        let mut spec = request.spec;
        if spec.name.is_empty() {
            spec.name = "default".into();
        }
        spec.default_addr_pool = if request.default_addr_pool.is_empty() {
            vec!["10.0.0.0/8".into()]
        } else {
            request.default_addr_pool
        };
        spec.subnet_size = if request.subnet_size == 0 { 24 } else { request.subnet_size };
        spec.data_path_port = data_path_port;
        let description = describe(self, &record.advertise_addr, &record.data_path_addr);
        let birth = Birth {
            cluster: Cluster {
                id: cluster_id,
                meta: Meta::default(),
                spec,
                status: ClusterStatus {
                    root_ca: RootCa { cert_pem, key_pem },
                    worker_token: format_id(rand::random()),
                    manager_token: format_id(rand::random()),
                    gossip_keys,
                    next_raft_id: FIRST_RAFT_ID + 1,
                    incarnation: rand::random(),
                    feature_level: FEATURE_LEVEL,
                    removed_nodes: Vec::new(),
                },
            },
            node: first_node(&node_id, &advertise.to_string(), availability as i32, description.clone()),
        };
        let active = Active::start(self.clone(), record.clone(), description, Some(birth)).await?;
        if let Err(error) = self.data().save_membership(&record) {
            active.shutdown().await;
            return Err(EngineError::Internal(crate::chain(&error)));
        }
        Ok((active, node_id))
    }

    async fn enter_cluster(&self, request: JoinRequest) -> Result<Arc<Active>, EngineError> {
        let invalid = |e: address::AddressError| EngineError::Invalid(e.to_string());
        let token = JoinToken::parse(&request.token).map_err(|e| EngineError::Invalid(e.to_string()))?;
        let remote = request
            .remote_addrs
            .first()
            .filter(|addr| !addr.is_empty())
            .ok_or_else(|| EngineError::Invalid("the address of a manager is needed (HOST:2377)".into()))?;
        let remote = with_default_port(remote);
        let host = address::host_addresses();
        let listen = address::listen(&request.listen_addr, &host).map_err(invalid)?;
        let advertise = match address::advertise(&request.advertise_addr, listen, &host) {
            // Of several addresses, the one that reaches the manager.
            Err(address::AddressError::Ambiguous(_)) => address_towards(&remote, listen.port()).await?,
            other => other.map_err(invalid)?,
        };
        let data_path = address::data_path(&request.data_path_addr, advertise, &host).map_err(invalid)?;
        let description = describe(self, &advertise.to_string(), &data_path.to_string());

        let root_pem = fetch_root(&remote, &token).await?;
        let own = KeyAndCsr::generate().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        let reply = pb::ca_client::CaClient::new(channel_without_certificate(&root_pem, &remote))
            .join(pb::JoinRequest {
                secret: token.secret.clone(),
                csr_pem: own.csr_pem,
                description: description.encode_to_vec(),
                availability: request.availability.clone(),
            })
            .await
            .map_err(|status| refused(&remote, &status))?
            .into_inner();
        let mut managers: Vec<ManagerRecord> =
            reply.managers.into_iter().map(|m| ManagerRecord { node_id: m.node_id, addr: m.addr }).collect();
        managers.sort();
        let record = MembershipRecord {
            node_id: reply.node_id,
            cluster_id: reply.cluster_id,
            manager: reply.manager,
            raft_id: 0,
            listen_addr: listen.to_string(),
            advertise_addr: advertise.to_string(),
            data_path_addr: data_path.to_string(),
            data_path_port: reply.data_path_port,
            root_pem,
            cert_pem: reply.cert_pem,
            key_pem: own.key_pem,
            gossip_keys: reply.gossip_keys.into_iter().map(|k| GossipKey { id: k.id, bytes: k.key }).collect(),
            managers,
        };
        // From here on the cluster knows this node: a join that is cut is finished at the next start.
        self.data().save_membership(&record).map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        let manager = record.manager;
        let active = match Active::start(self.clone(), record.clone(), description, None).await {
            Ok(active) => active,
            Err(error) => {
                // A port that is taken, for one: the membership is of no use, and the cluster is told.
                self.data().forget_membership().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
                return Err(error);
            }
        };
        active.wait_until_in(manager).await?;
        Ok(active)
    }
}

/// The node that a new cluster begins with.
fn first_node(id: &NodeId, addr: &str, availability: i32, description: NodeDescription) -> Node {
    Node {
        id: id.clone(),
        spec: NodeSpec { role: NodeRole::Manager as i32, availability, ..NodeSpec::default() },
        status: NodeStatus {
            addr: addr.rsplit_once(':').map(|(ip, _)| ip.to_owned()).unwrap_or_default(),
            ..NodeStatus::default()
        },
        description,
        manager: Some(ManagerStatus { raft_id: FIRST_RAFT_ID, addr: addr.to_owned() }),
        ..Node::default()
    }
}

fn with_default_port(addr: &str) -> String {
    match addr.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => addr.to_owned(),
        _ => format!("{addr}:{}", address::DEFAULT_PORT),
    }
}

/// This host's address on the way to `remote`. Nothing is sent.
async fn address_towards(remote: &str, port: u16) -> Result<std::net::SocketAddr, EngineError> {
    let unreachable = |e: std::io::Error| EngineError::Invalid(format!("cannot reach {remote}: {e}"));
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.map_err(unreachable)?;
    socket.connect(remote).await.map_err(unreachable)?;
    let ip = socket.local_addr().map_err(unreachable)?.ip();
    Ok(std::net::SocketAddr::new(ip, port))
}

/// Fetches the root certificate and checks it against the token.
async fn fetch_root(remote: &str, token: &JoinToken) -> Result<String, EngineError> {
    let reply = pb::ca_client::CaClient::new(unverified_channel(remote))
        .get_root(pb::GetRootRequest {})
        .await
        .map_err(|status| refused(remote, &status))?
        .into_inner();
    let der = CertificateDer::from_pem_slice(reply.root_pem.as_bytes())
        .map_err(|_| EngineError::Invalid(format!("{remote} did not answer with a certificate")))?;
    if root_digest(&der) != token.root_digest {
        return Err(EngineError::Invalid(format!(
            "remote CA does not match fingerprint: {remote} belongs to another cluster than the join token, or \
             somebody answers in its place"
        )));
    }
    Ok(reply.root_pem)
}

fn refused(remote: &str, status: &tonic::Status) -> EngineError {
    let error = crate::rpc::Refused { addr: remote.to_owned(), status: Box::new(status.clone()) };
    match status.code() {
        tonic::Code::PermissionDenied | tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => {
            EngineError::Invalid(status.message().to_owned())
        }
        _ => EngineError::Internal(error.to_string()),
    }
}

impl Engine for LocalEngine {
    fn membership(&self) -> Membership {
        match self.state() {
            State::Inactive => Membership::Inactive,
            State::Pending => Membership::Pending,
            State::Active(active) if active.was_removed() => Membership::Error(REMOVED.into()),
            State::Active(active) => Membership::Active(active.member()),
            State::Error(reason) => Membership::Error(reason),
        }
    }

    fn engine_id(&self) -> String {
        self.identity().engine_id.clone()
    }

    fn data_dir(&self) -> PathBuf {
        self.config().data_dir.clone()
    }

    fn labels(&self) -> Vec<String> {
        self.config().labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    fn manager_view(&self) -> ManagerView {
        self.manager().map(|manager| manager.view()).unwrap_or_default()
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, EngineError> {
        let _changing = self.inner.changing.lock().await;
        if !matches!(self.state(), State::Inactive) {
            return Err(EngineError::WrongMembership(ALREADY.into()));
        }
        self.set_state(State::Pending);
        match self.make_cluster(request).await {
            Ok((active, node_id)) => {
                self.set_state(State::Active(active));
                Ok(node_id)
            }
            Err(error) => {
                self.set_state(State::Inactive);
                self.data().forget_membership().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
                Err(error)
            }
        }
    }

    async fn join(&self, request: JoinRequest) -> Result<(), EngineError> {
        let changing = self.inner.changing.lock().await;
        if !matches!(self.state(), State::Inactive) {
            return Err(EngineError::WrongMembership(ALREADY.into()));
        }
        self.set_state(State::Pending);
        let joined = tokio::time::timeout(JOIN, self.enter_cluster(request)).await;
        let result = joined.unwrap_or_else(|_| {
            Err(EngineError::Internal("the node did not get into the cluster within 60 s".into()))
        });
        match result {
            Ok(active) => {
                self.set_state(State::Active(active));
                Ok(())
            }
            Err(error) => {
                drop(changing);
                self.set_state(State::Inactive);
                Err(error)
            }
        }
    }

    async fn leave(&self, force: bool) -> Result<(), EngineError> {
        let _changing = self.inner.changing.lock().await;
        let active = match self.state() {
            State::Active(active) => Some(active),
            State::Error(_) if force => None,
            State::Error(reason) => return Err(EngineError::WrongMembership(reason)),
            State::Inactive | State::Pending => {
                return Err(EngineError::WrongMembership("This node is not part of a swarm".into()));
            }
        };
        if let Some(active) = active {
            let manager = active.manager();
            if manager.is_some() && !force && !active.was_removed() {
                return Err(EngineError::WrongMembership(MANAGER_LEAVES.into()));
            }
            if !active.was_removed() {
                active.say_goodbye(manager.as_deref()).await?;
            }
            active.dismantle().await?;
        }
        self.inner.runtime.destroy().await.map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        self.data().forget_membership().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        self.set_state(State::Inactive);
        Ok(())
    }

    async fn store(&self, consistency: Consistency) -> Result<Store, EngineError> {
        self.manager()?.store(consistency).await
    }

    async fn control(&self, request: Request) -> Result<Reply, EngineError> {
        self.manager()?.control(request).await
    }

    fn images(&self) -> ImageStore {
        self.inner.images.clone()
    }

    async fn images_in_use(&self) -> Vec<String> {
        let containers = self.inner.runtime.list().await;
        containers.into_iter().filter_map(|c| c.labels.get(crate::agent::IMAGE_LABEL).cloned()).collect()
    }

    async fn logs(
        &self,
        tasks: Vec<TaskId>,
        request: LogRequest,
    ) -> Result<mpsc::Receiver<Result<LogRecord, EngineError>>, EngineError> {
        let active = self.active()?;
        let store = self.manager()?.store(Consistency::Local).await?;
        crate::agent::gather_logs(active.channels(), &store, tasks, request).await
    }
}

impl Active {
    /// Tells the cluster that this node goes. A manager first stops voting; the last manager takes the cluster along.
    async fn say_goodbye(&self, manager: Option<&Manager>) -> Result<(), EngineError> {
        let record = self.record();
        let others: Vec<ManagerRecord> =
            self.member().managers.into_iter().map(|(id, addr)| ManagerRecord { node_id: id.to_string(), addr })
                .filter(|m| m.node_id != record.node_id)
                .collect();
        if others.is_empty() {
            return Ok(());
        }
        if manager.is_some() {
            raft_entry::leave_raft(self.channels(), &others, record.raft_id).await?;
        }
        raft_entry::leave(self.channels(), &others).await
    }
}
