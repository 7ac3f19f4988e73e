//! An engine without Raft, agents and containers: requests are executed on a store in memory, the brain's pass runs
//! after each, and what it orders is reported done at once.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use deploy::brain;
use deploy::control::{self, InitCluster, NodeSession, Op, RegisterNode, Reply, ReportStatuses, Request, TaskReport};
use deploy::cx::{Cx, Limits};
use deploy::model::{
    Cluster, ClusterId, ClusterSpec, ClusterStatus, ContainerStatus, DesiredState, ManagerStatus, Meta, Node,
    NodeDescription, NodeId, NodeResources, NodeRole, NodeSpec, NodeStatus, RootCa, Task, TaskId, TaskState,
    TaskStatus, Timestamp, format_id,
};
use deploy::store::{Store, Txn};
use node::agent::Plain;
use node::containers::Containers;
use node::docker_api::{Listener, serve};
use node::engine::{
    AgentState, AppliedStore, Consistency, Engine, EngineError, InitRequest, JoinRequest, LogRecord, LogRequest,
    ManagerView, Member, Membership, RecoverRequest, Recovered, RestoreRequest,
};
use runtime::Volumes;
use runtime::image::registry::{Credentials, Registries, RegistrySettings};
use runtime::image::{ImageStore, ImportChanges, Limits as ImageLimits, Reference};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const START: u64 = 1_800_000_000_000_000_000;
/// What Docker says on a node that is in no cluster.
const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to \
                             connect this node to swarm and try again.";

struct State {
    membership: Membership,
    store: Store,
    now: u64,
    last_id: u128,
    /// Keeps followed logs open.
    followers: Vec<mpsc::Sender<Result<LogRecord, EngineError>>>,
    in_use: Vec<String>,
    /// Digests of images that only other hosts have.
    elsewhere: std::collections::BTreeMap<String, String>,
    leaderless: bool,
    containers: Option<Containers>,
    plain: Option<Plain>,
    /// What the membership is again when it is unlocked.
    locked: Option<Membership>,
}

/// The engine; a clone is a handle to the same one.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    images: ImageStore,
    registries: Arc<Mutex<Registries>>,
    volumes: Volumes,
    dir: Arc<tempfile::TempDir>,
}

/// A served engine; dropping it ends the server.
pub(crate) struct Served {
    pub(crate) engine: Fake,
    pub(crate) socket: PathBuf,
    shutdown: CancellationToken,
    pub(crate) server: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

impl Served {
    /// An engine that is in no cluster.
    pub(crate) async fn inactive() -> Self {
        let engine = Fake::new();
        let socket = engine.dir.path().join("shoal.sock");
        let listener = Listener::unix(&socket).await.unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, engine.clone(), Arc::default(), shutdown.clone()));
        Self { engine, socket, shutdown, server: Some(server) }
    }

    /// An engine that leads a cluster of three hosts and has the image `web:1`.
    pub(crate) async fn cluster() -> Self {
        let served = Self::inactive().await;
        served.engine.init(InitRequest::default()).await.unwrap();
        for name in ["node-b", "node-c"] {
            served.engine.add_worker(name).await;
        }
        served.engine.import("web:1");
        served
    }

    pub(crate) fn stop(&self) {
        self.shutdown.cancel();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageStore::open(dir.path().join("images"), ImageLimits::default()).unwrap();
        let state = State {
            membership: Membership::Inactive,
            store: Store::default(),
            now: START,
            last_id: 7,
            followers: Vec::new(),
            in_use: Vec::new(),
            elsewhere: Default::default(),
            leaderless: false,
            containers: None,
            plain: None,
            locked: None,
        };
        let registries = Registries::new(images.clone(), RegistrySettings::default()).unwrap();
        let registries = Arc::new(Mutex::new(registries));
        let volumes = Volumes::open(&dir.path().join("volumes")).unwrap();
        Self { state: Arc::new(Mutex::new(state)), images, registries, volumes, dir: Arc::new(dir) }
    }

    /// As after a restart with autolock on.
    pub(crate) fn lock(&self) {
        let mut state = self.state.lock().unwrap();
        state.locked = Some(std::mem::replace(&mut state.membership, Membership::Locked));
    }

    /// As with `--insecure-registry`.
    pub(crate) fn trust_registry(&self, addr: &str) {
        let settings = RegistrySettings { insecure: vec![addr.to_owned()], ..RegistrySettings::default() };
        *self.registries.lock().unwrap() = Registries::new(self.images.clone(), settings).unwrap();
    }

    /// Puts an image with one file into the store.
    pub(crate) fn import(&self, name: &str) -> String {
        let tar = crate::images::tar(&[("hello", b"hi\n")]);
        let reference = Some(Reference::parse(name).unwrap());
        let changes = ImportChanges::parse(&["CMD [\"/hello\"]", "ENV A=b", "EXPOSE 80", "LABEL k=v"]).unwrap();
        self.images.import(&tar[..], reference, changes, "made for a test").unwrap().to_string()
    }

    pub(crate) fn set_in_use(&self, images: Vec<String>) {
        self.state.lock().unwrap().in_use = images;
    }

    pub(crate) fn set_elsewhere(&self, name: &str, digest: Option<&str>) {
        let elsewhere = &mut self.state.lock().unwrap().elsewhere;
        match digest {
            Some(digest) => elsewhere.insert(name.to_owned(), digest.to_owned()),
            None => elsewhere.remove(name),
        };
    }

    /// Lets it drive real containers.
    pub(crate) fn set_containers(&self, containers: Containers) {
        self.state.lock().unwrap().containers = Some(containers);
    }

    /// Lets it make containers of its own.
    pub(crate) fn set_plain(&self, plain: Plain) {
        self.state.lock().unwrap().plain = Some(plain);
    }

    pub(crate) fn set_leaderless(&self) {
        self.state.lock().unwrap().leaderless = true;
    }

    /// Sends a line to everybody who follows.
    pub(crate) async fn log(&self, record: LogRecord) {
        let followers = self.state.lock().unwrap().followers.clone();
        for follower in followers {
            let _ = follower.send(Ok(record.clone())).await;
        }
    }

    pub(crate) fn followers(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        state.followers.retain(|f| !f.is_closed());
        state.followers.len()
    }

    pub(crate) fn snapshot(&self) -> Store {
        self.state.lock().unwrap().store.clone()
    }

    async fn add_worker(&self, hostname: &str) {
        let id = NodeId::from(self.state.lock().unwrap().fresh_id());
        let register = RegisterNode {
            node_id: id.clone(),
            role: NodeRole::Worker.into(),
            description: description(hostname),
            addr: "10.9.0.2".to_owned(),
            ..RegisterNode::default()
        };
        self.control(Op::RegisterNode(Box::new(register)).into()).await.unwrap();
        let session = NodeSession {
            node_id: id,
            generation: 1,
            description: description(hostname),
            addr: "10.9.0.2".to_owned(),
            ..NodeSession::default()
        };
        self.control(Op::NodeSession(Box::new(session)).into()).await.unwrap();
    }
}

fn description(hostname: &str) -> NodeDescription {
    NodeDescription {
        hostname: hostname.to_owned(),
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
        resources: NodeResources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 },
        engine_version: "0.1.0".to_owned(),
        data_path_addr: "10.9.0.1".to_owned(),
        feature_level: 3,
        ..NodeDescription::default()
    }
}

impl State {
    fn fresh_id(&mut self) -> u128 {
        self.last_id = self.last_id.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).wrapping_add(1);
        self.last_id
    }

    /// One request, the pass after it, and the entry that comes of both.
    fn run(&mut self, request: Option<&Request>) -> Result<Reply, EngineError> {
        self.now += 10_000_000_000;
        let mut txn = Txn::new(&self.store, Timestamp::from_nanos(self.now));
        let now = txn.now();
        let mut last = self.last_id;
        let mut ids = || {
            last = last.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).wrapping_add(1);
            last
        };
        let mut cx = Cx { now, ids: &mut ids, limits: Limits::default() };
        let mut reply = Reply::default();
        if let Some(request) = request {
            reply = control::execute(&mut cx, &mut txn, request).map_err(EngineError::Refused)?;
        }
        brain::pass(&mut cx, &mut txn);
        self.last_id = last;
        if let Some(entry) = txn.finish(1) {
            self.store.apply(1, &entry).unwrap();
        }
        Ok(reply)
    }

    /// What agents would report until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..20 {
            let mut reports: Vec<(NodeId, TaskReport)> = Vec::new();
            for task in self.store.tasks() {
                if let Some(report) = self.carry_out(task) {
                    reports.push((task.node_id.clone(), report));
                }
            }
            if reports.is_empty() {
                return;
            }
            for (node_id, report) in reports {
                let op = ReportStatuses { node_id, generation: 1, reports: vec![report] };
                self.run(Some(&Op::ReportStatuses(op).into())).unwrap();
            }
        }
    }

    fn carry_out(&self, task: &Task) -> Option<TaskReport> {
        if task.node_id.is_none() || task.status.state().is_terminal() {
            return None;
        }
        let (state, message) = match task.desired() {
            DesiredState::Running if task.status.state() < TaskState::Running => (TaskState::Running, "started"),
            DesiredState::Shutdown | DesiredState::Remove => (TaskState::Shutdown, "shutdown"),
            _ => return None,
        };
        let mut status = TaskStatus { message: message.to_owned(), ..TaskStatus::default() };
        status.set_state(state);
        status.container =
            Some(ContainerStatus { id: "ab".repeat(32), pid: 4711, exit_code: None, ..ContainerStatus::default() });
        Some(TaskReport { task_id: task.id.clone(), status })
    }
}

impl Engine for Fake {
    fn membership(&self) -> Membership {
        self.state.lock().unwrap().membership.clone()
    }

    fn engine_id(&self) -> String {
        "engine-1".to_owned()
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn remaps_users(&self) -> bool {
        true
    }

    fn timing(&self) -> node::timing::Timing {
        node::timing::Timing::Wan
    }

    fn labels(&self) -> Vec<String> {
        vec!["zone=a".to_owned()]
    }

    fn manager_view(&self) -> ManagerView {
        match self.membership() {
            Membership::Active(member) => {
                ManagerView { leader: Some(member.node_id.clone()), reachable: vec![member.node_id] }
            }
            _ => ManagerView::default(),
        }
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, EngineError> {
        let (cert_pem, key_pem) = node::ca::new_root().unwrap();
        let mut state = self.state.lock().unwrap();
        if state.membership != Membership::Inactive {
            return Err(EngineError::WrongMembership(
                "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join \
                 another one."
                    .to_owned(),
            ));
        }
        let node_id = NodeId::from(state.fresh_id());
        let cluster_id = ClusterId::from(state.fresh_id());
        let status = ClusterStatus {
            root_ca: RootCa { cert_pem, key_pem },
            worker_token: format_id(state.fresh_id()),
            manager_token: format_id(state.fresh_id()),
            gossip_keys: vec![deploy::model::GossipKey { id: 1, bytes: vec![7; 32] }],
            next_raft_id: 2,
            incarnation: 5,
            feature_level: 3,
            ..ClusterStatus::default()
        };
        let cluster = Cluster {
            id: cluster_id.clone(),
            meta: Meta::default(),
            spec: ClusterSpec { default_addr_pool: request.default_addr_pool, ..request.spec },
            status,
        };
        let manager = ManagerStatus { raft_id: 1, addr: "10.9.0.1:2377".to_owned() };
        let mut spec = NodeSpec::default();
        spec.set_role(NodeRole::Manager);
        let node = Node {
            id: node_id.clone(),
            spec,
            description: description("node-a"),
            status: NodeStatus { addr: "10.9.0.1".to_owned(), ..NodeStatus::default() },
            manager: Some(manager),
            ..Node::default()
        };
        state.run(Some(&Op::InitCluster(Box::new(InitCluster { cluster, node })).into()))?;
        let session = NodeSession {
            node_id: node_id.clone(),
            generation: 1,
            description: description("node-a"),
            addr: "10.9.0.1".to_owned(),
            ..NodeSession::default()
        };
        state.run(Some(&Op::NodeSession(Box::new(session)).into()))?;
        state.membership = Membership::Active(Member {
            node_id: node_id.clone(),
            cluster_id,
            manager: true,
            addr: "10.9.0.1".to_owned(),
            managers: vec![(node_id.clone(), "10.9.0.1:2377".to_owned())],
        });
        Ok(node_id)
    }

    async fn recover(&self, request: RecoverRequest) -> Result<Recovered, EngineError> {
        match self.membership() {
            Membership::Active(member) if request.force => Ok(Recovered {
                node_id: member.node_id.to_string(),
                addr: request.advertise_addr,
                ..Recovered::default()
            }),
            Membership::Active(_) => Err(EngineError::WrongMembership("The swarm has a leader".to_owned())),
            _ => Err(EngineError::NotManager(NOT_A_MANAGER.to_owned())),
        }
    }

    async fn restore(&self, request: RestoreRequest) -> Result<Recovered, EngineError> {
        let read = node::backup::decode(&request.backup).map_err(|e| EngineError::Invalid(e.to_string()))?;
        Ok(Recovered { node_id: read.header.node_id, index: read.header.index, ..Recovered::default() })
    }

    async fn join(&self, request: JoinRequest) -> Result<(), EngineError> {
        node::ca::JoinToken::parse(&request.token).map_err(|e| EngineError::Invalid(e.to_string()))?;
        Err(EngineError::Internal(format!("{}: connection refused", request.remote_addrs.join(", "))))
    }

    async fn unlock(&self, key: String) -> Result<(), EngineError> {
        let mut state = self.state.lock().unwrap();
        let kept = state.store.cluster().and_then(|cluster| cluster.status.unlock_key.clone()).unwrap();
        if node::vault::UnlockKey::parse(&key) != node::vault::UnlockKey::from_bytes(&kept.bytes) {
            return Err(EngineError::Invalid("swarm could not be unlocked: invalid key provided".to_owned()));
        }
        state.membership = state.locked.take().unwrap();
        Ok(())
    }

    async fn leave(&self, force: bool) -> Result<(), EngineError> {
        let mut state = self.state.lock().unwrap();
        match &state.membership {
            Membership::Active(member) if member.manager && !force => Err(EngineError::WrongMembership(
                "You are attempting to leave the swarm on a node that is participating as a manager.".to_owned(),
            )),
            Membership::Active(_) => {
                state.membership = Membership::Inactive;
                state.store = Store::default();
                Ok(())
            }
            _ => Err(EngineError::WrongMembership("This node is not part of a swarm".to_owned())),
        }
    }

    async fn store(&self, consistency: Consistency) -> Result<Store, EngineError> {
        let state = self.state.lock().unwrap();
        match &state.membership {
            Membership::Active(_) if state.leaderless && consistency == Consistency::Linearizable => {
                Err(EngineError::NoLeader)
            }
            Membership::Active(_) => Ok(state.store.clone()),
            Membership::Locked => Err(EngineError::Locked),
            _ => Err(EngineError::NotManager(NOT_A_MANAGER.to_owned())),
        }
    }

    async fn applied(&self, consistency: Consistency) -> Result<AppliedStore, EngineError> {
        let store = self.store(consistency).await?;
        let index = store.revision();
        Ok(AppliedStore { store, index, term: 1 })
    }

    fn overlay(&self) -> Result<overlay_net::Overlay, EngineError> {
        Err(EngineError::NotManager("no overlay here".to_owned()))
    }

    async fn agent(&self) -> Result<AgentState, EngineError> {
        let store = self.store(Consistency::Local).await?;
        let Membership::Active(member) = self.membership() else { unreachable!("it has a store") };
        let set = deploy::dispatcher::assignment(&store, &member.node_id);
        let stamp = deploy::dispatcher::Stamp { incarnation: 5, term: 1, revision: store.revision() };
        let tasks = set.tasks().map(|a| (a.task.id.clone(), TaskState::Running)).collect();
        Ok(AgentState { node_id: member.node_id, connected: true, generation: 1, stamp, set, tasks })
    }

    async fn control(&self, request: Request) -> Result<Reply, EngineError> {
        let mut state = self.state.lock().unwrap();
        if state.store.cluster().is_none() {
            return Err(EngineError::NotManager(NOT_A_MANAGER.to_owned()));
        }
        let reply = state.run(Some(&request))?;
        state.settle();
        Ok(reply)
    }

    fn plain(&self) -> Result<Plain, EngineError> {
        let plain = self.state.lock().unwrap().plain.clone();
        plain.ok_or_else(|| EngineError::WrongMembership("no plain containers here".to_owned()))
    }

    fn containers(&self) -> Option<Containers> {
        self.state.lock().unwrap().containers.clone()
    }

    fn volumes(&self) -> Volumes {
        self.volumes.clone()
    }

    fn images(&self) -> ImageStore {
        self.images.clone()
    }

    fn registries(&self) -> Registries {
        self.registries.lock().unwrap().clone()
    }

    async fn resolve_image(&self, name: Reference, _: Vec<Credentials>) -> Result<String, EngineError> {
        let here = self.images.resolve(&name.to_string()).ok().and_then(|image| image.manifest_digest);
        let found = here.or_else(|| self.state.lock().unwrap().elsewhere.get(&name.to_string()).cloned());
        found.ok_or_else(|| EngineError::NoSuchImage(format!("{name}. No host of the cluster has it")))
    }

    async fn images_in_use(&self) -> Vec<String> {
        self.state.lock().unwrap().in_use.clone()
    }

    async fn logs(
        &self,
        tasks: Vec<TaskId>,
        request: LogRequest,
    ) -> Result<mpsc::Receiver<Result<LogRecord, EngineError>>, EngineError> {
        let (sender, receiver) = mpsc::channel(1024);
        let store = self.snapshot();
        for id in tasks {
            let Some(task) = store.task(&id) else { continue };
            let line = |stderr: bool, text: String| LogRecord {
                task_id: id.clone(),
                node_id: task.node_id.clone(),
                at_ns: START,
                stderr,
                data: text.into(),
            };
            if request.stdout {
                let _ = sender.try_send(Ok(line(false, format!("hello from {}\n", task.slot))));
            }
            if request.stderr {
                let _ = sender.try_send(Ok(line(true, format!("oops from {}\n", task.slot))));
            }
        }
        if request.follow {
            self.state.lock().unwrap().followers.push(sender);
        } else {
            let _ = sender.try_send(Err(EngineError::Internal("node-c cannot be reached".to_owned())));
        }
        Ok(receiver)
    }
}
