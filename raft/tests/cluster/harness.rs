//! Members in one process: each with a runtime of its own, so that killing one takes all of it away at
//! once, talking over loopback TCP.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use raft::{
    Committed, Config, Dial, Found, Keyring, MembershipError, Peer, ProposeError, Raft, RaftId, RestoreError, Role,
    StartError, StateMachine, Status, Timing,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::{Channel, Endpoint};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The state: all payloads in order.
pub(crate) type Applied = Arc<Mutex<Vec<Vec<u8>>>>;

struct Journal {
    state: Vec<Vec<u8>>,
    published: Applied,
}

impl StateMachine for Journal {
    fn apply(&mut self, entry: Committed<'_>) -> Vec<u8> {
        self.state.push(entry.payload.to_vec());
        (self.state.len() as u64).to_le_bytes().to_vec()
    }

    fn applied(&mut self, _index: u64, _term: u64) {
        *self.published.lock().unwrap() = self.state.clone();
    }

    fn view(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let state = self.state.clone();
        Box::new(move || {
            let mut out = Vec::new();
            for item in state {
                out.extend_from_slice(&(item.len() as u32).to_le_bytes());
                out.extend_from_slice(&item);
            }
            out
        })
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> Result<(), RestoreError> {
        let broken = || RestoreError("cut short".into());
        self.state.clear();
        while let Some((len, rest)) = snapshot.split_first_chunk::<4>() {
            let (item, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(broken)?;
            self.state.push(item.to_vec());
            snapshot = rest;
        }
        Ok(())
    }
}

/// Members whose calls fail, in and out.
type CutOff = Arc<Mutex<BTreeSet<RaftId>>>;

/// Says who calls, so that the other side can be deaf to it.
struct Plain(RaftId);

impl Dial for Plain {
    fn channel(&self, peer: &Peer) -> Channel {
        Endpoint::from_shared(format!("http://{}", peer.addr))
            .unwrap()
            .user_agent(format!("member-{}", self.0))
            .unwrap()
            .connect_timeout(Duration::from_millis(500))
            .tcp_nodelay(true)
            .connect_lazy()
    }
}

struct Running {
    raft: Raft,
    applied: Applied,
    runtime: Runtime,
}

struct Slot {
    dir: PathBuf,
    // Held while the member is down, so that the port stays its own.
    listener: TcpListener,
    keys: Keyring,
    running: Option<Running>,
}

/// Some members, dead or alive.
pub(crate) struct Cluster {
    root: TempDir,
    slots: BTreeMap<RaftId, Slot>,
    pub(crate) snapshot_every: u64,
    pub(crate) cluster_id: String,
    /// Members started from now on know no append streams, like those of an early release.
    pub(crate) without_streams: bool,
    /// Members started from now on are that patient.
    pub(crate) timing: Timing,
    cut_off: CutOff,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self {
            root: TempDir::new().unwrap(),
            slots: BTreeMap::new(),
            snapshot_every: 10_000,
            cluster_id: "cluster-1".into(),
            without_streams: false,
            timing: Timing::lan(),
            cut_off: CutOff::default(),
        }
    }

    /// A cluster of `count` voters, led by someone.
    pub(crate) async fn with_voters(count: u64) -> Self {
        let mut cluster = Self::new();
        cluster.form(count).await;
        cluster
    }

    /// Starts members 1 to `count` and makes them voters.
    pub(crate) async fn form(&mut self, count: u64) {
        let cluster = self;
        cluster.start(1).await;
        cluster.raft(1).bootstrap(cluster.peer(1)).await.unwrap();
        for id in 2..=count {
            cluster.start(id).await;
            cluster.join(id).await;
        }
    }

    /// Adds and promotes a started member. On a machine that has other work, megabytes take longer than a promotion waits,
    /// and a leader may lose its place meanwhile: both are asked for again.
    pub(crate) async fn join(&self, id: RaftId) {
        let mut outcome = Ok(());
        for _ in 0..10 {
            let raft = self.raft(self.leader().await);
            outcome = match raft.add_learner(self.peer(id)).await {
                Ok(()) => raft.promote(id).await,
                refused => refused,
            };
            if !matches!(outcome, Err(MembershipError::NotCaughtUp { .. } | MembershipError::NotLeader { .. })) {
                break;
            }
        }
        outcome.unwrap();
    }

    pub(crate) fn addr(&self, id: RaftId) -> SocketAddr {
        self.slots[&id].listener.local_addr().unwrap()
    }

    pub(crate) fn peer(&self, id: RaftId) -> Peer {
        Peer { id, node_id: format!("node-{id}"), addr: self.addr(id).to_string() }
    }

    pub(crate) fn raft(&self, id: RaftId) -> Raft {
        self.slots[&id].running.as_ref().expect("the member runs").raft.clone()
    }

    pub(crate) fn status(&self, id: RaftId) -> Status {
        self.raft(id).status()
    }

    pub(crate) fn applied(&self, id: RaftId) -> Vec<Vec<u8>> {
        let running = self.slots[&id].running.as_ref().expect("the member runs");
        let applied = running.applied.lock().unwrap();
        applied.clone()
    }

    pub(crate) fn dir(&self, id: RaftId) -> PathBuf {
        self.slots[&id].dir.clone()
    }

    fn alive(&self) -> Vec<RaftId> {
        self.slots.iter().filter(|(_, slot)| slot.running.is_some()).map(|(id, _)| *id).collect()
    }

    /// Where a member's files are, or will be.
    pub(crate) fn place(&self, id: RaftId) -> PathBuf {
        self.root.path().join(format!("m{id}"))
    }

    /// The keys of a member that was started.
    pub(crate) fn keys(&self, id: RaftId) -> Keyring {
        self.slots[&id].keys.clone()
    }

    /// Starts a new member, or one that was killed.
    pub(crate) async fn start(&mut self, id: RaftId) {
        self.try_start(id, false).await.unwrap();
    }

    /// Starts a member which may be refused; `had_log` as in [`Config`].
    pub(crate) async fn try_start(&mut self, id: RaftId, had_log: bool) -> Result<(), StartError> {
        let dir = self.place(id);
        let slot = self.slots.entry(id).or_insert_with(|| Slot {
            dir,
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            // Some are sealed and some are not: nobody sees that from outside.
            keys: if id == 1 { Keyring::clear() } else { Keyring::new(&[(1, [id as u8; 32])]) },
            running: None,
        });
        assert!(slot.running.is_none(), "member {id} runs already");
        let config = Config {
            dir: slot.dir.clone(),
            id,
            cluster_id: self.cluster_id.clone(),
            timing: self.timing,
            snapshot_every: self.snapshot_every,
            keys: slot.keys.clone(),
            had_log,
        };
        slot.running = Some(launch(slot, config, self.without_streams, self.cut_off.clone()).await?);
        Ok(())
    }

    /// Has all calls from and to a member fail, from the next one on: streams that are open go on, so start members
    /// `without_streams`.
    pub(crate) fn cut_off(&self, id: RaftId) {
        self.cut_off.lock().unwrap().insert(id);
    }

    /// Ends that.
    pub(crate) fn reconnect(&self, id: RaftId) {
        self.cut_off.lock().unwrap().remove(&id);
    }

    /// Takes a member away, like a kill of its process.
    pub(crate) async fn kill(&mut self, id: RaftId) {
        let Running { raft, applied, runtime } = self.slots.get_mut(&id).unwrap().running.take().unwrap();
        let gone = tokio::task::spawn_blocking(move || {
            runtime.shutdown_timeout(Duration::from_secs(10));
            drop((raft, applied));
        });
        gone.await.unwrap();
    }

    /// Makes a member stand still, like a host that swaps: it reads nothing and answers nothing until the guard is
    /// dropped. What it was sent waits in its sockets.
    pub(crate) async fn pause(&self, id: RaftId) -> Paused {
        let running = self.slots[&id].running.as_ref().expect("the member runs");
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (stands, standing) = tokio::sync::oneshot::channel();
        // The runtime has one thread, and this holds it.
        running.runtime.spawn(async move {
            stands.send(()).unwrap();
            let _ = wait.recv();
        });
        standing.await.unwrap();
        Paused { _release: release }
    }

    /// Moves a dead member to another port.
    pub(crate) fn change_port(&mut self, id: RaftId) {
        self.slots.get_mut(&id).unwrap().listener = TcpListener::bind("127.0.0.1:0").unwrap();
    }

    /// The member that leads by its own account and that of a majority of the living.
    pub(crate) async fn leader(&self) -> RaftId {
        until("a leader", || {
            let alive = self.alive();
            alive.iter().copied().find(|id| {
                let status = self.status(*id);
                let voters: Vec<_> = alive.iter().filter(|other| status.is_voter(**other)).collect();
                let agrees = |other: RaftId| self.status(other).leader.is_some_and(|leader| leader.id == *id);
                status.role == Role::Leader && voters.iter().filter(|id| agrees(***id)).count() * 2 > voters.len()
            })
        })
        .await
    }

    /// Proposes to whoever leads until it is accepted and known to be applied.
    pub(crate) async fn write(&self, payload: &str) -> RaftId {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await;
            match self.raft(leader).propose(payload.as_bytes().to_vec()).await {
                Ok(_) => return leader,
                Err(ProposeError::NotLeader { .. }) => {}
                Err(error) => panic!("write {payload}: {error}"),
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody accepts {payload}");
        }
    }

    /// Waits until a member has applied exactly this.
    pub(crate) async fn has(&self, id: RaftId, expected: &[String]) {
        let expected: Vec<Vec<u8>> = expected.iter().map(|item| item.clone().into_bytes()).collect();
        until(&format!("member {id} to have {} entries", expected.len()), || {
            (self.applied(id) == expected).then_some(())
        })
        .await;
    }
}

/// A member that stands still.
pub(crate) struct Paused {
    _release: std::sync::mpsc::Sender<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.slots.values_mut().filter_map(|slot| slot.running.take()) {
            // A runtime must not be waited for here, inside of another.
            running.runtime.shutdown_background();
        }
    }
}

/// What [`Cluster::recover`] has the new member begin with.
pub(crate) struct Recovered {
    pub(crate) found: Found,
    pub(crate) state: Vec<Vec<u8>>,
}

impl Cluster {
    /// Makes a dead member the beginning of a cluster of one, with another id; it is not started.
    pub(crate) async fn recover(&mut self, old: RaftId, new: RaftId) -> Recovered {
        let slot = self.slots.remove(&old).unwrap();
        assert!(slot.running.is_none(), "member {old} runs");
        let published = Applied::default();
        let mut machine = Journal { state: Vec::new(), published: published.clone() };
        let config = Config {
            dir: slot.dir.clone(),
            id: old,
            cluster_id: self.cluster_id.clone(),
            timing: Timing::lan(),
            snapshot_every: self.snapshot_every,
            keys: slot.keys.clone(),
            had_log: true,
        };
        let found = raft::survey(&config, &mut machine).await.unwrap();
        let dir = self.root.path().join(format!("m{new}"));
        let addr = slot.listener.local_addr().unwrap().to_string();
        let me = Peer { id: new, node_id: format!("node-{old}"), addr };
        let config = Config { dir: dir.clone(), id: new, ..config };
        raft::begin_anew(&config, &me, &found, machine.view()()).await.unwrap();
        self.slots.insert(new, Slot { dir, ..slot });
        let state = published.lock().unwrap().clone();
        Recovered { found, state }
    }
}

async fn launch(slot: &Slot, config: Config, without_streams: bool, cut_off: CutOff) -> Result<Running, StartError> {
    let id = config.id;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let applied = Applied::default();
    let machine = Journal { state: Vec::new(), published: applied.clone() };
    let raft = match runtime.spawn(Raft::start(config, machine, Plain(id))).await.unwrap() {
        Ok(raft) => raft,
        Err(error) => {
            runtime.shutdown_background();
            return Err(error);
        }
    };
    let listener = slot.listener.try_clone().unwrap();
    let service = Transport { inner: raft.service(), without_streams, id, cut_off };
    let proposals = raft.proposals();
    runtime.spawn(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        // Without it each answer waits for the delayed acknowledgement of the one before, 40 ms.
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        tonic::transport::Server::builder()
            .add_service(service)
            .add_service(proposals)
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    });
    Ok(Running { raft, applied, runtime })
}

/// The service between members, of this release or of one before append streams.
#[derive(Clone)]
struct Transport {
    inner: raft::Service,
    without_streams: bool,
    id: RaftId,
    cut_off: CutOff,
}

impl Transport {
    fn is_deaf_to(&self, request: &http::Request<Body>) -> bool {
        let cut_off = self.cut_off.lock().unwrap();
        let caller = request.headers().get("user-agent").and_then(|name| name.to_str().ok()).unwrap_or_default();
        let called = |id: &RaftId| caller.split(' ').next() == Some(&format!("member-{id}"));
        cut_off.iter().any(|id| *id == self.id || called(id))
    }
}

impl tonic::server::NamedService for Transport {
    const NAME: &'static str = <raft::Service as tonic::server::NamedService>::NAME;
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if self.is_deaf_to(&request) {
            return Box::pin(async { Ok(tonic::Status::unavailable("cut off").into_http()) });
        }
        if self.without_streams && request.uri().path().ends_with("/AppendStream") {
            return Box::pin(async { Ok(tonic::Status::unimplemented("").into_http()) });
        }
        self.inner.call(request)
    }
}

/// Looks every few milliseconds until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
