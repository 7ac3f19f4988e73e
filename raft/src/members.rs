//! Changes of the manager set, one at a time.
//!
//! openraft changes voters in two steps, and two changes at once can leave it between them. One task makes
//! them all, refuses what would lose the quorum, and finishes what a leader before has left half-done.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::error::MembershipError;
use crate::handle::Core;
use crate::status::{self, Role, Status};
use crate::types::{Member, Types};
use crate::{Peer, RaftId};

/// How long a promotion waits for the learner to have the log.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(10);

/// A learner this many entries behind or fewer may vote: it has them before the change is committed.
const CAUGHT_UP: u64 = 64;

/// What to change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    AddLearner(Peer),
    Promote(RaftId),
    Remove(RaftId),
    SetPeer(Peer),
}

type Reply = oneshot::Sender<Result<(), MembershipError>>;

/// The handle to the task.
#[derive(Clone)]
pub(crate) struct Members {
    changes: mpsc::Sender<(Change, Reply)>,
}

impl Members {
    pub(crate) async fn change(&self, change: Change) -> Result<(), MembershipError> {
        let (reply, done) = oneshot::channel();
        self.changes.send((change, reply)).await.map_err(|_| MembershipError::Stopped)?;
        done.await.unwrap_or(Err(MembershipError::Stopped))
    }
}

/// The handle, and the task for the caller to spawn. Who was not heard for `reach` counts as away.
pub(crate) fn start(
    core: Core,
    status: watch::Receiver<Status>,
    reach: Duration,
    patience: Duration,
) -> (Members, impl Future<Output = ()> + Send) {
    let (changes, requests) = mpsc::channel(16);
    let task = Task { core, status, reach, patience };
    (Members { changes }, task.run(requests))
}

struct Task {
    core: Core,
    status: watch::Receiver<Status>,
    reach: Duration,
    patience: Duration,
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<(Change, Reply)>) {
        let mut led = false;
        loop {
            tokio::select! {
                biased;
                changed = self.status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let leads = self.status.borrow_and_update().role == Role::Leader;
                    if leads && !led {
                        self.finish_what_was_begun().await;
                    }
                    led = leads;
                }
                request = requests.recv() => {
                    let Some((change, reply)) = request else { return };
                    let result = self.make(change.clone()).await;
                    tracing::info!(?change, ?result, "change of the manager set");
                    // Nobody may wait any more, which changes nothing.
                    drop(reply.send(result));
                }
            }
        }
    }

    fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    async fn finish_what_was_begun(&self) {
        if let Err(error) = self.settle().await {
            tracing::warn!(%error, "a change of the manager set stays half-done for now");
        }
    }

    /// Ends a change that a former leader has left between its two steps.
    async fn settle(&self) -> Result<(), MembershipError> {
        let joint = self.core.metrics().borrow_watched().membership_config.get_joint_config().len() > 1;
        if !joint {
            return Ok(());
        }
        self.commit(ChangeMembers::AddVoterIds(BTreeSet::new())).await
    }

    async fn make(&self, change: Change) -> Result<(), MembershipError> {
        let status = self.status();
        if status.stopped {
            return Err(MembershipError::Stopped);
        }
        if status.role != Role::Leader {
            return Err(MembershipError::NotLeader { leader: status.leader });
        }
        self.settle().await?;
        match change {
            Change::AddLearner(peer) => self.add_learner(&status, peer).await,
            Change::Promote(id) => self.promote(&status, id).await,
            Change::Remove(id) => self.remove(&status, id).await,
            Change::SetPeer(peer) => {
                if status.member(peer.id).is_none() {
                    return Err(MembershipError::UnknownMember(peer.id));
                }
                self.set_peer(&status, peer).await
            }
        }
    }

    async fn add_learner(&self, status: &Status, peer: Peer) -> Result<(), MembershipError> {
        if status.member(peer.id).is_some() {
            return self.set_peer(status, peer).await;
        }
        let nodes = BTreeMap::from([(peer.id, status::member(&peer))]);
        self.commit(ChangeMembers::AddNodes(nodes)).await
    }

    async fn set_peer(&self, status: &Status, peer: Peer) -> Result<(), MembershipError> {
        match status.member(peer.id) {
            Some(known) if known.node_id != peer.node_id => {
                Err(MembershipError::IdTaken { id: peer.id, node_id: known.node_id.clone() })
            }
            Some(known) if *known == peer => Ok(()),
            _ => {
                let nodes = BTreeMap::from([(peer.id, status::member(&peer))]);
                self.commit(ChangeMembers::SetNodes(nodes)).await
            }
        }
    }

    async fn promote(&self, status: &Status, id: RaftId) -> Result<(), MembershipError> {
        if status.is_voter(id) {
            return Ok(());
        }
        if status.member(id).is_none() {
            return Err(MembershipError::UnknownMember(id));
        }
        self.caught_up(id).await?;
        let mut voters: BTreeSet<RaftId> = status.voters.iter().map(|peer| peer.id).collect();
        voters.insert(id);
        self.quorum_holds(&voters).await?;
        self.commit(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
    }

    async fn remove(&self, status: &Status, id: RaftId) -> Result<(), MembershipError> {
        if status.member(id).is_none() {
            return Err(MembershipError::UnknownMember(id));
        }
        if !status.is_voter(id) {
            return self.commit(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
        }
        let voters: BTreeSet<RaftId> = status.voters.iter().map(|peer| peer.id).filter(|voter| *voter != id).collect();
        if voters.is_empty() {
            return Err(MembershipError::LastVoter(id));
        }
        self.quorum_holds(&voters).await?;
        self.commit(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
    }

    /// Makes sure that enough of the future voters answer. Waits a little, because one that was added just
    /// now may have answered nothing but its first entries.
    async fn quorum_holds(&self, voters: &BTreeSet<RaftId>) -> Result<(), MembershipError> {
        let mut status = self.status.clone();
        let needed = voters.len() / 2 + 1;
        let enough = status.wait_for(|status| self.reachable(status, voters) >= needed);
        match timeout(self.reach, enough).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(MembershipError::Stopped),
            Err(_) => {
                let reachable = self.reachable(&self.status(), voters);
                Err(MembershipError::QuorumAtRisk { voters: voters.len(), reachable, needed })
            }
        }
    }

    fn reachable(&self, status: &Status, voters: &BTreeSet<RaftId>) -> usize {
        let now = Instant::now();
        let answers = |id: &RaftId| {
            let lately = |when: &Instant| now.saturating_duration_since(*when) < self.reach;
            *id == status.id || status.heard.get(id).is_some_and(lately)
        };
        voters.iter().filter(|id| answers(id)).count()
    }

    async fn caught_up(&self, id: RaftId) -> Result<(), MembershipError> {
        let mut metrics = self.core.metrics();
        let mut behind = u64::MAX;
        let waiting = async {
            loop {
                let now = metrics.borrow_watched().clone();
                let Some(replication) = now.replication else {
                    return Err(MembershipError::NotLeader { leader: self.status().leader });
                };
                let has = replication.get(&id).copied().flatten().map_or(0, |matched| matched.index + 1);
                behind = now.last_log_index.map_or(0, |last| last + 1).saturating_sub(has);
                if has > 0 && behind <= CAUGHT_UP {
                    return Ok(());
                }
                metrics.changed().await.map_err(|_| MembershipError::Stopped)?;
            }
        };
        match timeout(CATCH_UP_PATIENCE, waiting).await {
            Ok(result) => result,
            Err(_) => Err(MembershipError::NotCaughtUp { id, behind }),
        }
    }

    /// Proposes a change, both steps of it, and waits until it is committed.
    async fn commit(&self, change: ChangeMembers<RaftId, Member>) -> Result<(), MembershipError> {
        // Voters that are removed do not stay as learners.
        let committed = timeout(self.patience, self.core.change_membership(change, false)).await;
        match committed {
            Ok(Ok(written)) => {
                // The next change is judged by the published status: it must know of this one.
                let mut status = self.status.clone();
                let _ = timeout(self.patience, status.wait_for(|now| now.last_log >= written.log_id.index)).await;
                Ok(())
            }
            Ok(Err(error)) => Err(self.refused(error)),
            Err(_) => Err(MembershipError::OutcomeUnknown(format!("not committed within {:?}", self.patience))),
        }
    }

    fn refused(&self, error: RaftError<Types, ClientWriteError<Types>>) -> MembershipError {
        let leader = || self.status().leader.filter(|leader| leader.id != self.status().id);
        match error {
            RaftError::Fatal(_) => MembershipError::Stopped,
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
                MembershipError::NotLeader { leader: leader() }
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(
                missing,
            ))) => MembershipError::UnknownMember(missing.node_id),
            RaftError::APIError(other) => MembershipError::OutcomeUnknown(other.to_string()),
        }
    }
}
