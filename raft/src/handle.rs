//! The handle that callers hold: start, propose, read, change members, stop.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::{ReadPolicy, SnapshotPolicy};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::counters::{Counters, Meter};
use crate::disk::{Disk, HostDisk};
use crate::error::{BootstrapError, MembershipError, ProposeError, ReadError, StartError, TransferError};
use crate::log::{Log, Owner, SEGMENT_SIZE};
use crate::machine::{Driver, StateMachine};
use crate::members::{self, Change, Members};
use crate::net::{AddressBook, Contact, Desk, Dial, Dialer, Gate, Proposals, Service, Transport};
use crate::snapshot::{SnapshotError, SnapshotStore};
use crate::status::{self, Clocks, Role, Status};
use crate::types::{self, LogId, Payload, Types};
use crate::{Config, Keyring, MAX_PAYLOAD, Peer, RaftId};

pub(crate) type Core = openraft::Raft<Types, Driver>;

/// More bytes than this of entries in memory are compacted without waiting for their number.
const COMPACT_BYTES: usize = 64 << 20;

/// Indexes and the times of answers, which change several times a proposal, are published as often as this: waking
/// everyone who looks costs more than most proposals. Roles, leaders and members are published at once.
const PACE: Duration = Duration::from_millis(5);

/// The longest wait for a membership change to be committed.
const CHANGE_PATIENCE: Duration = Duration::from_secs(30);

/// A committed entry, as the machine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed<'a> {
    /// Its place in the log; grows by at least 1 from entry to entry.
    pub index: u64,
    /// The term of the leader that accepted it.
    pub term: u64,
    /// What was proposed.
    pub payload: &'a [u8],
}

/// A proposal that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its place in the log.
    pub index: u64,
    /// The term of the leader that accepted it.
    pub term: u64,
    /// What the machine answered.
    pub response: Vec<u8>,
}

/// A proposal on its way.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<ClientWriteResult<Types>>,
    submitted: Instant,
    meter: Arc<Meter>,
}

impl Pending {
    /// Waits until the proposal is applied on this member, for as long as it takes: a leader that has lost its
    /// quorum keeps what it accepted until it hears of a new one. Dropping this does not take the proposal back.
    pub async fn wait(mut self) -> Result<Proposed, ProposeError> {
        poll_fn(|context| self.poll_wait(context)).await
    }

    /// The same, for whoever waits for many at once. Not to be polled again after it was ready.
    pub(crate) fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<Result<Proposed, ProposeError>> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        match &answer {
            Ok(Ok(_)) => self.meter.commit.record(self.submitted.elapsed()),
            _ => self.meter.not_committed.one(),
        }
        Poll::Ready(match answer {
            Ok(Ok(written)) => Ok(Proposed {
                index: written.log_id.index,
                term: types::term_of(&written.log_id),
                response: written.data,
            }),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: leader_of(forward) })
            }
            // Discarded on a change of leader, or raft has stopped with the proposal in its hands.
            Ok(Err(_)) | Err(_) => Err(ProposeError::OutcomeUnknown),
        })
    }
}

/// A member of the manager set. Clones are handles to the same member; it stops when [`Raft::shutdown`] is
/// called on one of them.
#[derive(Clone)]
pub struct Raft {
    inner: Arc<Inner>,
}

struct Inner {
    core: Core,
    log: Log,
    dir: std::path::PathBuf,
    snapshots: Arc<SnapshotStore>,
    /// Whose turn it is to send a snapshot, for all services of this member together.
    receiving: Arc<tokio::sync::Mutex<()>>,
    meter: Arc<Meter>,
    contact: Arc<Contact>,
    cluster_id: Arc<str>,
    id: RaftId,
    election_max: Duration,
    book: Arc<AddressBook>,
    urgent: watch::Sender<u64>,
    status: watch::Receiver<Status>,
    publish: Arc<watch::Sender<Status>>,
    members: Members,
    tasks: Mutex<JoinSet<()>>,
}

impl Raft {
    /// Opens the log and starts to take part. Returns when the state that was known as committed is
    /// restored in the machine. A member without data waits to be [bootstrapped](Self::bootstrap) or added.
    pub async fn start<S: StateMachine>(config: Config, machine: S, dial: impl Dial) -> Result<Self, StartError> {
        let settings = Arc::new(settings(&config)?);
        let Config { dir, id, cluster_id, timing, keys, had_log, .. } = config;
        let cluster_id: Arc<str> = cluster_id.into();
        let meter = Arc::new(Meter::default());
        let (log, snapshots) = open(dir.clone(), id, cluster_id.clone(), keys, had_log, meter.clone()).await?;

        let book = Arc::new(AddressBook::new(dial));
        let (urgent, hurry) = watch::channel(0);
        let dialer = Dialer {
            book: book.clone(),
            cluster_id: cluster_id.clone(),
            me: id,
            store_patience: timing.election_max,
            meter: meter.clone(),
            urgent: hurry,
        };
        let driver = Driver::new(Box::new(machine), snapshots.clone(), meter.clone());
        let core = Core::new(id, settings, dialer, log.clone(), driver)
            .await
            .map_err(|error| StartError::Recover(error.to_string()))?;

        let (publish, status) = watch::channel(Status::initial(id));
        let publish = Arc::new(publish);
        let mut tasks = JoinSet::new();
        let watcher = Watcher {
            core: core.clone(),
            log: log.clone(),
            book: book.clone(),
            clocks: Clocks::now(),
            publish: publish.clone(),
            meter: meter.clone(),
        };
        watcher.publish();
        tasks.spawn(watcher.run());
        let reach = timing.election_max * 2;
        let (members, changes) = members::start(core.clone(), status.clone(), reach, CHANGE_PATIENCE);
        tasks.spawn(changes);
        let inner = Inner {
            core,
            log,
            dir,
            snapshots,
            receiving: Arc::default(),
            meter,
            contact: Arc::default(),
            cluster_id,
            id,
            election_max: timing.election_max,
            book,
            urgent,
            status,
            publish,
            members,
            tasks: Mutex::new(tasks),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes a new cluster of this one member, and waits until it leads and has applied its first entries.
    pub async fn bootstrap(&self, me: Peer) -> Result<(), BootstrapError> {
        let id = self.inner.id;
        if me.id != id {
            return Err(BootstrapError::NotMe { given: me.id, id });
        }
        let members = BTreeMap::from([(id, status::member(&me))]);
        self.inner.core.initialize(members).await.map_err(|error| match error {
            RaftError::APIError(_) => BootstrapError::AlreadyMember,
            RaftError::Fatal(_) => BootstrapError::Stopped,
        })?;
        let mut status = self.watch();
        let leads = status.wait_for(|status| status.role == Role::Leader && status.applied > 0);
        match timeout(self.inner.election_max * 10, leads).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(BootstrapError::Stopped),
            Err(_) => Err(BootstrapError::TimedOut),
        }
    }

    /// Queues a proposal. Proposals that one task submits one after the other stand in the log in that
    /// order, as far as they are accepted.
    pub async fn submit(&self, payload: Vec<u8>) -> Result<Pending, ProposeError> {
        self.submit_bytes(payload.into()).await
    }

    pub(crate) async fn submit_bytes(&self, payload: Bytes) -> Result<Pending, ProposeError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(ProposeError::TooLarge { size: payload.len(), limit: MAX_PAYLOAD });
        }
        if self.inner.log.disk_short() {
            return Err(ProposeError::StorageFull { dir: self.inner.dir.display().to_string() });
        }
        let submitted = Instant::now();
        let (responder, answer) = ProgressResponder::complete_only();
        self.inner.core.client_write_ff(Payload(payload), Some(responder)).await.map_err(|_| ProposeError::Stopped)?;
        Ok(Pending { answer, submitted, meter: self.inner.meter.clone() })
    }

    /// Proposes, and waits until it is applied on this member.
    pub async fn propose(&self, payload: Vec<u8>) -> Result<Proposed, ProposeError> {
        self.submit(payload).await?.wait().await
    }

    /// On the leader: makes sure that it still leads, and waits until everything that was acknowledged
    /// before the call is applied here. Returns the index up to which that is.
    pub async fn linearizable(&self) -> Result<u64, ReadError> {
        self.confirmed().await.map(|read| read.index)
    }

    /// On the leader: makes sure that it still leads, and answers in which term.
    pub async fn leads_in(&self) -> Result<u64, ReadError> {
        self.confirmed().await.map(|read| types::term_of(&read))
    }

    /// The last entry that was committed when a majority confirmed that this member leads; it is of the leader's term.
    async fn confirmed(&self) -> Result<LogId, ReadError> {
        let confirmed = self.inner.core.ensure_linearizable(ReadPolicy::ReadIndex);
        match timeout(self.inner.election_max * 5, confirmed).await {
            Ok(Ok(read)) => Ok(*read.log_id()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(ReadError::NotLeader { leader: leader_of(forward) })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ReadError::NoQuorum)
            }
            Ok(Err(RaftError::Fatal(_))) => Err(ReadError::Stopped),
        }
    }

    /// On the leader: has the followers know at once that everything up to `index` is committed, once it is. Else they
    /// learn it with the next entries, or some two milliseconds later. For those who wait at a follower.
    pub fn hurry(&self, index: u64) {
        self.inner.urgent.send_if_modified(|urgent| {
            let more = index > *urgent;
            *urgent = index.max(*urgent);
            more
        });
    }

    /// Adds a member without a vote, to which the log is copied. It need not be reachable yet. Adding a
    /// member of the same id and node again changes its address.
    pub async fn add_learner(&self, peer: Peer) -> Result<(), MembershipError> {
        self.inner.members.change(Change::AddLearner(peer)).await
    }

    /// Gives a learner a vote, once it has the log; waits up to 10 s for that.
    pub async fn promote(&self, id: RaftId) -> Result<(), MembershipError> {
        self.inner.members.change(Change::Promote(id)).await
    }

    /// Removes a member, voter or learner. A leader that removes itself hands over and stops leading.
    pub async fn remove(&self, id: RaftId) -> Result<(), MembershipError> {
        self.inner.members.change(Change::Remove(id)).await
    }

    /// Changes the address of a member. Its id and its node stay.
    pub async fn set_peer(&self, peer: Peer) -> Result<(), MembershipError> {
        self.inner.members.change(Change::SetPeer(peer)).await
    }

    /// On the leader: hands over to a voter that was heard lately, and waits until that leads. No proposal
    /// is accepted meanwhile.
    pub async fn transfer_leadership(&self, to: RaftId) -> Result<(), TransferError> {
        let before = self.status();
        if before.stopped {
            return Err(TransferError::Stopped);
        }
        if before.role != Role::Leader {
            return Err(TransferError::NotLeader { leader: before.leader });
        }
        if to == before.id {
            return Ok(());
        }
        if !before.is_voter(to) {
            return Err(TransferError::NotVoter(to));
        }
        let lately = self.inner.election_max * 2;
        if before.heard.get(&to).is_none_or(|when| when.elapsed() > lately) {
            return Err(TransferError::Unreachable(to));
        }
        self.inner.core.trigger().transfer_leader(to).await.map_err(|_| TransferError::Stopped)?;
        let mut status = self.watch();
        let moved = status.wait_for(|now| now.leader.as_ref().is_some_and(|leader| leader.id != before.id));
        match timeout(self.inner.election_max * 5, moved).await {
            Ok(Ok(now)) => match now.leader.as_ref().map(|leader| leader.id) {
                Some(id) if id != to => Err(TransferError::WentTo(id)),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(TransferError::Stopped),
            Err(_) => Err(TransferError::TimedOut),
        }
    }

    /// What this member knows now.
    pub fn status(&self) -> Status {
        self.inner.status.borrow().clone()
    }

    /// The same, as it changes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.inner.status.clone()
    }

    /// The leader whose entries or heartbeat this member took last, and when. A leader that has fallen silent stays
    /// here until there is another.
    pub fn last_leader(&self) -> Option<(RaftId, std::time::Instant)> {
        self.inner.contact.last()
    }

    /// What this member has counted since it started. Lags behind are in the [`Status`].
    pub fn counters(&self) -> Counters {
        self.inner.meter.read()
    }

    /// The gRPC service for the other members. It stays usable until the member stops; mount it behind a
    /// check of the caller's certificate.
    pub fn service(&self) -> Service {
        self.transport().into_service()
    }

    /// The gRPC service that takes proposals at any member and carries them to the leader. Mount it on all members,
    /// behind a check of who may change the state; or on none, where changes come in another way.
    pub fn proposals(&self) -> Proposals {
        Desk::new(self.clone(), self.gate(), self.inner.book.clone()).into_service()
    }

    pub(crate) fn election_max(&self) -> Duration {
        self.inner.election_max
    }

    pub(crate) fn borrow_status(&self) -> watch::Ref<'_, Status> {
        self.inner.status.borrow()
    }

    fn gate(&self) -> Gate {
        Gate {
            log: self.inner.log.clone(),
            meter: self.inner.meter.clone(),
            contact: self.inner.contact.clone(),
            cluster_id: self.inner.cluster_id.clone(),
            me: self.inner.id,
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        Transport {
            core: self.inner.core.clone(),
            snapshots: self.inner.snapshots.clone(),
            gate: self.gate(),
            receiving: self.inner.receiving.clone(),
        }
    }

    /// Has everything that is written from now on, and a new snapshot, sealed with the first key of the ring. What was
    /// sealed with older keys goes as the log is compacted; see [`keys_in_use`](crate::keys_in_use).
    pub async fn rekey(&self) -> std::io::Result<()> {
        self.inner.log.rekey().await?;
        self.inner.core.trigger().snapshot().await.map_err(std::io::Error::other)
    }

    /// Stops taking part, writes what is queued and closes the files. The other handles answer `Stopped`
    /// from now on. Does not hand over leadership; see [`Raft::transfer_leadership`].
    pub async fn shutdown(self) {
        if let Err(error) = self.inner.core.shutdown().await {
            tracing::error!(%error, "raft did not end well");
        }
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.inner.publish.send_modify(Status::stop);
        let log = self.inner.log.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || log.close()).await {
            tracing::error!(%error, "the raft log was not closed");
        }
    }
}

impl std::fmt::Debug for Raft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raft").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

fn settings(config: &Config) -> Result<openraft::Config, StartError> {
    if config.snapshot_every == 0 {
        return Err(StartError::Config("snapshot_every must be at least 1".into()));
    }
    if config.cluster_id.len() > 255 {
        return Err(StartError::Config("the cluster id is longer than 255 bytes".into()));
    }
    if config.timing.heartbeat < Duration::from_millis(1) {
        return Err(StartError::Config("the heartbeat must be at least 1 ms".into()));
    }
    let millis = |duration: Duration| duration.as_millis() as u64;
    openraft::Config {
        cluster_name: config.cluster_id.clone(),
        heartbeat_interval: millis(config.timing.heartbeat),
        election_timeout_min: millis(config.timing.election_min),
        election_timeout_max: millis(config.timing.election_max),
        // For the transfer and the storing of a small snapshot; the client adds time for large ones.
        install_snapshot_timeout: 30_000,
        // Requests are bounded by bytes when they are read from the log.
        max_payload_entries: 4096,
        max_append_entries: Some(4096),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        // A follower that was away for a moment catches up from the log.
        max_in_snapshot_log_to_keep: config.snapshot_every.min(1000),
        replication_lag_threshold: config.snapshot_every.saturating_mul(2),
        api_channel_size: Some(4096),
        // A peer that is back is found within half a second.
        backoff: "50ms 100ms 200ms ..500ms".into(),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|error| StartError::Config(error.to_string()))
}

/// Opens log and snapshots of a member that does not run.
pub(crate) async fn open_for(config: &Config) -> Result<(Log, Arc<SnapshotStore>), StartError> {
    let Config { dir, id, cluster_id, keys, had_log, .. } = config.clone();
    open(dir, id, cluster_id.into(), keys, had_log, Arc::default()).await
}

async fn open(
    dir: std::path::PathBuf,
    id: RaftId,
    cluster_id: Arc<str>,
    keys: Keyring,
    had_log: bool,
    meter: Arc<Meter>,
) -> Result<(Log, Arc<SnapshotStore>), StartError> {
    let opened = tokio::task::spawn_blocking(move || {
        let disk =
            HostDisk::open(&dir).map_err(|source| StartError::Directory { dir: dir.display().to_string(), source })?;
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let snapshots = SnapshotStore::new(disk.clone(), id, cluster_id.to_string(), keys.clone());
        snapshots.tidy()?;
        // openraft loads it; here it is only for the better error.
        let snapshot = snapshots.load()?.and_then(|(meta, _)| meta.last_log_id);
        let log = Log::open(disk, Owner::new(id, &cluster_id), keys, had_log, SEGMENT_SIZE, meter)?;
        if let Some(purged) = log.purged().filter(|purged| snapshot.is_none_or(|last| last.index < purged.index)) {
            return Err(SnapshotError::Missing { index: purged.index }.into());
        }
        Ok((log, Arc::new(snapshots)))
    });
    opened.await.map_err(|error| StartError::Recover(error.to_string()))?
}

fn leader_of(forward: ForwardToLeader<Types>) -> Option<Peer> {
    Some(status::peer(forward.leader_id?, &forward.leader_node?))
}

/// Turns openraft's metrics into what the rest needs: the status, the address book, compaction by size.
struct Watcher {
    core: Core,
    log: Log,
    book: Arc<AddressBook>,
    clocks: Clocks,
    publish: Arc<watch::Sender<Status>>,
    meter: Arc<Meter>,
}

impl Watcher {
    /// Publishes the status. Answers whether only numbers in it change until openraft's server metrics do, which an
    /// elected leader's role does not wait for.
    fn publish(&self) -> bool {
        // Cloned at once: the guard holds up raft itself.
        let metrics = self.core.metrics().borrow_watched().clone();
        self.book.update(metrics.membership_config.nodes().map(|(id, member)| (*id, member)));
        let status = Status::from_metrics(&metrics, &self.clocks);
        let standing = metrics.state == openraft::ServerState::Candidate;
        let settled = metrics.state != openraft::ServerState::Leader || status.role == Role::Leader;
        self.meter.observe(status.id, standing, status.leader.as_ref().map(|leader| (status.term, leader.id)));
        self.publish.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
        settled
    }

    async fn run(self) {
        let mut metrics = self.core.metrics();
        let mut server = self.core.server_metrics();
        let mut compacted = Instant::now();
        while metrics.changed().await.is_ok() {
            let settled = self.publish();
            if self.log.bytes() > COMPACT_BYTES && compacted.elapsed() > Duration::from_secs(1) {
                compacted = Instant::now();
                self.compact().await;
            }
            if settled {
                // Of these openraft tells first, so the metrics have changed by the next round or do so presently.
                let _ = timeout(PACE, server.changed()).await;
            }
        }
        self.publish.send_modify(Status::stop);
    }

    /// Large entries fill the memory long before their number asks for a snapshot.
    async fn compact(&self) {
        let metrics = self.core.metrics().borrow_watched().clone();
        let trigger = self.core.trigger();
        let asked = match metrics.snapshot {
            Some(snapshot) if metrics.purged < Some(snapshot) => trigger.purge_log(snapshot.index).await,
            snapshot if snapshot < metrics.last_applied => trigger.snapshot().await,
            _ => Ok(()),
        };
        if let Err(error) = asked {
            tracing::debug!(%error, "raft stops; the log is not compacted");
        }
    }
}
