//! A manager: the replicated store and the Raft under it, the leader's turn, and what other nodes ask of a manager.
//!
//! `machine` applies the log · `leader` decides while this manager leads · `forward` finds the leader for the others ·
//! `sessions` serves agents · `liveness` turns silence into Down · `members` keeps Raft's voters as the store wants
//! them · `services` answers managers and nodes that join · `certificates` issues · `drain` collects who has let go of
//! tasks that stop · `skew` compares clocks · `holdings` and `whereabouts` tell who has image content.

mod certificates;
mod confirm;
mod counters;
mod drain;
mod forward;
pub(crate) mod holdings;
mod leader;
mod liveness;
mod machine;
mod members;
mod recover;
mod services;
mod sessions;
mod skew;
pub mod verdict;
mod whereabouts;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use deploy::control::{Reply, Request};
use deploy::dispatcher::Parts;
use deploy::model::NodeId;
use deploy::store::Store;
use gossip::Gossip;
use raft::{Raft, RaftId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

pub(crate) use certificates::{Issued, issue, issuing_root, rotation, trust};
pub(crate) use counters::Counters;
pub use machine::Published;
pub(crate) use recover::{Survivor, begin_anew, read_survivor};
pub(crate) use services::availability;

use crate::engine::{Consistency, EngineError, ManagerView};
use crate::metrics::ManagerReadings;
use crate::rpc::Channels;
use crate::timing::Timing;

/// A manager that is told to stop takes so long at the most to hand leadership over.
const STEP_DOWN: std::time::Duration = std::time::Duration::from_secs(2);
/// Log entries between snapshots.
const SNAPSHOT_EVERY: u64 = 10_000;

/// What a manager needs to know of itself.
pub struct Config {
    /// This node.
    pub node_id: NodeId,
    /// The cluster's id.
    pub cluster_id: String,
    /// Its raft id.
    pub raft_id: RaftId,
    /// `ip:port` that the other managers reach it at.
    pub addr: String,
    /// Where the log is.
    pub raft_dir: PathBuf,
    /// The keys of what is there.
    pub keys: raft::Keyring,
    /// Whether this raft id has had a log before.
    pub had_log: bool,
    /// How patient it is with the others.
    pub timing: Timing,
}

impl Config {
    fn raft(&self) -> raft::Config {
        raft::Config {
            dir: self.raft_dir.clone(),
            id: self.raft_id,
            cluster_id: self.cluster_id.clone(),
            timing: self.timing.raft(),
            snapshot_every: SNAPSHOT_EVERY,
            keys: self.keys.clone(),
            had_log: self.had_log,
        }
    }
}

/// Ends the process when Raft has stopped by itself: a disk that breaks, a log that does not fit. Going on without it
/// would answer from a store that no longer grows; the supervisor starts the daemon again, and tasks go on meanwhile.
async fn end_with_raft(mut status: watch::Receiver<raft::Status>) {
    if status.wait_for(|status| status.stopped).await.is_ok() {
        tracing::error!("raft has stopped; the daemon ends");
        std::process::exit(70);
    }
}

/// Ends the process when an entry that came after the start says that the cluster is beyond this release: at the next
/// start, the check there holds it back.
async fn end_beyond(mut beyond: machine::Beyond) {
    if beyond.wait_for(|needs| *needs > 0).await.is_ok() {
        if let Err(error) = machine::understood(&beyond) {
            tracing::error!(%error, "this manager does not understand the cluster; the daemon ends");
        }
        std::process::exit(70);
    }
}

/// Why a manager could not start or change its place.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Raft did not start, most often because of what is on its disk.
    #[error("the replicated log could not be opened")]
    Start(#[from] raft::StartError),
    /// A log could not be read or made.
    #[error(transparent)]
    Recover(#[from] raft::RecoverError),
    /// This release does not understand all that the cluster has written. Nothing was changed.
    #[error(
        "the cluster is at feature level {needs}, but this release knows only {has}: start a newer release on this \
         host; its tasks go on"
    )]
    Release {
        /// The cluster's level.
        needs: u32,
        /// This release's.
        has: u32,
    },
    /// Raft refused.
    #[error("{0}")]
    Raft(String),
}

/// A running manager. A clone is a handle to the same one.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

struct Inner {
    node_id: NodeId,
    addr: String,
    raft: Raft,
    published: watch::Receiver<Published>,
    leader: leader::Handle,
    counters: Arc<Counters>,
    channels: Channels,
    heard: liveness::Heard,
    contact: liveness::Contact,
    holdings: holdings::Holdings,
    drains: drain::Drains,
    /// What sessions tell their hosts, as far as they share it.
    parts: Mutex<Parts>,
    timing: Timing,
    gossip: Gossip,
    /// Nobody becomes a voter any more: this manager is about to begin anew.
    closed: AtomicBool,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Manager {
    /// Opens the log and takes part. A manager without any membership in its log waits to be added by a leader, or for
    /// [`Manager::bootstrap`].
    pub async fn start(config: Config, channels: Channels, gossip: Gossip) -> Result<Self, ManagerError> {
        let (machine, published, beyond) = machine::Machine::new();
        let raft = Raft::start(config.raft(), machine, forward::PeerChannels(channels.clone())).await?;
        // Nobody reaches it yet: it has a vote to give, or to ask for, only later.
        if let Err(error) = machine::understood(&beyond) {
            raft.shutdown().await;
            return Err(error);
        }
        let counters = Arc::new(Counters::default());
        let (drains, asked) = drain::Drains::new();
        let (handle, leader_task) = leader::new(raft.clone(), published.clone(), counters.clone());
        let manager = Self {
            inner: Arc::new(Inner {
                node_id: config.node_id,
                addr: config.addr,
                raft,
                published,
                leader: handle,
                counters,
                channels,
                heard: liveness::Heard::default(),
                contact: liveness::Contact::new(config.timing.out_of_touch()),
                holdings: holdings::Holdings::default(),
                drains,
                parts: Mutex::default(),
                timing: config.timing,
                gossip,
                closed: AtomicBool::new(false),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        };
        manager.spawn_critical("the leader's turn", leader_task);
        manager.spawn(liveness::run(manager.clone()));
        manager.spawn(liveness::report(manager.clone()));
        manager.spawn(members::run(manager.clone()));
        manager.spawn(drain::collect(manager.clone(), asked));
        manager.spawn(end_with_raft(manager.inner.raft.watch()));
        manager.spawn(end_beyond(beyond));
        Ok(manager)
    }

    /// Makes this manager the first and only voter of a new cluster.
    pub async fn bootstrap(&self) -> Result<(), ManagerError> {
        self.inner.raft.bootstrap(self.me()).await.map_err(|e| ManagerError::Raft(e.to_string()))
    }

    fn me(&self) -> raft::Peer {
        raft::Peer {
            id: self.inner.raft.status().id,
            node_id: self.inner.node_id.to_string(),
            addr: self.inner.addr.clone(),
        }
    }

    /// Whether this manager is a voter, as far as it knows: for good, not in the middle of a change.
    pub fn is_voter(&self) -> bool {
        let status = self.inner.raft.status();
        status.is_voter(status.id) && !status.unsettled.contains(&status.id)
    }

    /// Whether this manager was in touch with a leader that has a majority, itself included, in the last seconds.
    pub fn in_touch(&self) -> bool {
        self.inner.contact.holds()
    }

    /// The life of the cluster that this manager's store is of, once it has one.
    pub fn incarnation(&self) -> Option<u64> {
        self.inner.published.borrow().store.cluster().map(|cluster| cluster.status.incarnation)
    }

    /// What Raft says of itself.
    pub fn status(&self) -> raft::Status {
        self.inner.raft.status()
    }

    /// The store, each time that it changes.
    pub fn watch(&self) -> watch::Receiver<Published> {
        self.inner.published.clone()
    }

    /// The store as a value.
    pub async fn store(&self, consistency: Consistency) -> Result<Store, EngineError> {
        Ok(self.published(consistency).await?.store)
    }

    /// The store as a value, and the entry that it is the result of.
    pub async fn published(&self, consistency: Consistency) -> Result<Published, EngineError> {
        if consistency == Consistency::Linearizable {
            let index = tokio::time::timeout(self.inner.timing.find_leader(), self.read_index())
                .await
                .map_err(|_| EngineError::NoLeader)??;
            self.applied(index).await?;
        }
        let published = self.inner.published.borrow().clone();
        if consistency == Consistency::Local && !self.is_known_in(&published.store) {
            return Err(EngineError::Behind);
        }
        Ok(published)
    }

    /// Whether that store is as new as this manager, at the least. One that begins applies the log from its first entry
    /// on, or starts with nothing until it gets a snapshot: all of that is of before.
    fn is_known_in(&self, store: &Store) -> bool {
        let own = store.node(&self.inner.node_id).and_then(|node| node.manager.as_ref());
        own.is_some_and(|manager| manager.raft_id == self.inner.raft.status().id)
    }

    /// Waits until this manager has applied that entry.
    async fn applied(&self, index: u64) -> Result<(), EngineError> {
        let mut published = self.inner.published.clone();
        let applied =
            tokio::time::timeout(self.inner.timing.find_leader(), published.wait_for(|p| p.index >= index)).await;
        match applied {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(EngineError::Internal("the manager stopped".into())),
            Err(_) => Err(EngineError::NoLeader),
        }
    }

    /// Carries out a request, wherever the leader is; answered when it is committed and applied here.
    pub async fn control(&self, request: Request) -> Result<Reply, EngineError> {
        let (reply, index) = self.execute(request).await?;
        // The write is committed; a manager that lags must not turn that into an error.
        let _ = self.applied(index).await;
        Ok(reply)
    }

    /// Raft as this manager sees it, for people.
    pub fn view(&self) -> ManagerView {
        let status = self.inner.raft.status();
        let leader = status.leader.as_ref().map(|peer| NodeId::new(peer.node_id.clone()));
        let members = self.inner.gossip.members();
        let reachable = status
            .voters
            .iter()
            // One that is being added does not hold anything up yet, nor does it help.
            .filter(|peer| !status.unsettled.contains(&peer.id))
            .filter(|peer| peer.id == status.id || members.get(&peer.node_id).is_some_and(|m| m.alive))
            .map(|peer| NodeId::new(peer.node_id.clone()))
            .collect();
        ManagerView { leader, reachable }
    }

    /// What this manager tells whoever watches it.
    pub(crate) fn readings(&self) -> ManagerReadings {
        ManagerReadings {
            status: self.inner.raft.status(),
            raft: self.inner.raft.counters(),
            counters: self.inner.counters.clone(),
            queued: self.inner.leader.queued(),
            store: self.inner.published.borrow().store.clone(),
        }
    }

    /// A certificate for this manager itself, by the root in its own store. For one whose certificate is good for
    /// nothing any more and that reaches no other manager: without this, a cluster that was off for too long as a whole
    /// could not begin again. `None` while the store has no root.
    pub(crate) fn certify_itself(&self, csr_pem: &str) -> Option<Result<(Issued, String), crate::ca::CaError>> {
        let published = self.inner.published.borrow();
        let cluster = published.store.cluster()?;
        let issued = certificates::issue(cluster, csr_pem, &self.inner.node_id, crate::ca::Role::Manager);
        Some(issued.map(|issued| (issued, certificates::trust(cluster))))
    }

    /// What this manager answers on port 2377.
    pub fn routes(&self) -> Routes {
        services::routes(self.clone())
    }

    /// Runs until the manager stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Runs until the manager stops; its death before that is the death of the process, because Raft would go on
    /// leading with nobody who decides.
    fn spawn_critical(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            let mut running = tokio::spawn(task);
            tokio::select! {
                biased;
                () = stop.cancelled() => running.abort(),
                ended = &mut running => {
                    tracing::error!(what, panicked = ended.is_err(), "ended by itself; the daemon ends");
                    std::process::exit(70);
                }
            }
        });
    }

    /// Has the log and a new snapshot sealed with the newest key.
    pub async fn rekey(&self) -> std::io::Result<()> {
        self.inner.raft.rekey().await
    }

    /// If this manager leads, has another one lead, so that nobody has to find out by waiting. Takes a moment at the
    /// most, whether it works or not.
    pub async fn step_down(&self) {
        let status = self.status();
        if status.role != raft::Role::Leader || status.voters.len() < 2 {
            return;
        }
        match tokio::time::timeout(STEP_DOWN, self.hand_over()).await {
            Ok(Ok(())) => tracing::info!("another manager leads now"),
            Ok(Err(error)) => tracing::warn!(%error, "leadership was not handed over"),
            Err(_) => tracing::warn!("leadership was not handed over in time"),
        }
    }

    /// Stops taking part. Nothing on disk changes.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.raft.clone().shutdown().await;
    }
}
