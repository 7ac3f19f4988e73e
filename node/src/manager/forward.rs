//! Finds the leader and has it do what only a leader may do.

use std::time::Duration;

use deploy::control::{ControlError, ErrorKind, Op, Reply, Request};
use deploy::model::NodeRole;
use prost::Message;
use raft::{Dial, MembershipError, Peer, Role};
use tonic::Code;
use tonic::transport::Channel;

use super::leader::NotDone;
use super::services::to_status;
use super::{Manager, skew};
use crate::clock;
use crate::engine::EngineError;
use crate::rpc::{Channels, Lane, MAX_MESSAGE, pb};

/// So long a request waits to be committed before its outcome is called unknown.
const COMMIT: Duration = Duration::from_secs(30);
/// Docker's words.
const LOSS_OF_QUORUM: &str = "can't remove member from the raft: this would result in a loss of quorum";
/// The same.
const LAST_MANAGER: &str = "attempting to demote the last manager of the swarm";
/// Pause before the next look.
const RETRY: Duration = Duration::from_millis(25);

/// Raft's connections to its peers.
pub(super) struct PeerChannels(pub(super) Channels);

impl Dial for PeerChannels {
    fn channel(&self, peer: &Peer) -> Channel {
        self.0.lane(Lane::Raft).to(&peer.addr, &peer.node_id)
    }
}

/// Why a voter must not be demoted, given how many others there are and how many of them answer.
fn why_not(left: usize, answering: usize) -> Option<&'static str> {
    match left {
        // Whom the store takes for another manager may not be a voter yet, and may never become one.
        0 => Some(LAST_MANAGER),
        _ => (answering * 2 <= left).then_some(LOSS_OF_QUORUM),
    }
}

impl Manager {
    /// Carries out a request through the leader; answers with the index of the entry. A request that may have been
    /// carried out is never sent again.
    pub(super) async fn execute(&self, request: Request) -> Result<(Reply, u64), EngineError> {
        let deadline = tokio::time::Instant::now() + self.inner.timing.find_leader();
        loop {
            let outcome = match self.leader() {
                Some(peer) if peer.node_id == self.inner.node_id.as_str() => {
                    let done = tokio::time::timeout(COMMIT, self.execute_here(request.clone())).await;
                    done.unwrap_or_else(|_| Err(NotDone::Unknown("no quorum confirmed it within 30 s".into())))
                }
                Some(peer) if !self.is_quiet(&peer) => self.execute_at(&peer, &request).await,
                Some(_) | None => Err(NotDone::NotLeader),
            };
            match outcome {
                Ok(done) => return Ok(done),
                Err(NotDone::Refused(error)) => return Err(EngineError::Refused(error)),
                Err(NotDone::Unknown(reason)) => return Err(EngineError::OutcomeUnknown(reason)),
                Err(NotDone::NotLeader) if tokio::time::Instant::now() >= deadline => {
                    return Err(EngineError::NoLeader);
                }
                Err(NotDone::NotLeader) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Carries out a request if this manager leads.
    pub(super) async fn execute_here(&self, request: Request) -> super::leader::Outcome {
        if let Some(refused) = self.would_lose_quorum(&request) {
            return Err(NotDone::Refused(refused));
        }
        self.inner.leader.execute(request).await
    }

    /// Why a demotion must not be: of the managers that would be left, too few answer. The store cannot know that.
    fn would_lose_quorum(&self, request: &Request) -> Option<ControlError> {
        let Some(Op::UpdateNode(update)) = &request.op else { return None };
        if update.spec.role() != NodeRole::Worker {
            return None;
        }
        let raft_id = self.inner.published.borrow().store.node(&update.id)?.manager.as_ref()?.raft_id;
        let status = self.status();
        if status.role != Role::Leader || !status.is_voter(raft_id) {
            return None;
        }
        let lately = self.inner.timing.answers();
        let left = || status.voters.iter().filter(|peer| peer.id != raft_id);
        let answers =
            |peer: &&Peer| peer.id == status.id || status.heard.get(&peer.id).is_some_and(|at| at.elapsed() < lately);
        let (left, answering) = (left().count(), left().filter(answers).count());
        why_not(left, answering).map(precondition)
    }

    fn leader(&self) -> Option<Peer> {
        self.inner.raft.status().leader
    }

    async fn execute_at(&self, leader: &Peer, request: &Request) -> Result<(Reply, u64), NotDone> {
        let message = pb::ExecuteRequest { request: request.encode_to_vec() };
        let mut client = self.client(leader);
        let answer = tokio::select! {
            biased;
            answer = client.execute(message) => answer,
            () = self.replaced(leader) => {
                return Err(NotDone::Unknown("the leader was replaced before it answered".into()));
            }
        };
        let reply = match answer {
            Ok(reply) => reply.into_inner(),
            // Refused before anything was done.
            Err(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
                return Err(NotDone::NotLeader);
            }
            Err(status) if never_sent(&status) => return Err(NotDone::NotLeader),
            Err(status) => return Err(NotDone::Unknown(format!("the leader did not answer: {}", status.message()))),
        };
        let damaged = |_| NotDone::Unknown("the leader's answer could not be read".into());
        match reply.outcome {
            Some(pb::execute_reply::Outcome::Reply(bytes)) => {
                Ok((Reply::decode(bytes.as_slice()).map_err(damaged)?, reply.index))
            }
            Some(pb::execute_reply::Outcome::Refused(bytes)) => {
                Err(NotDone::Refused(ControlError::decode(bytes.as_slice()).map_err(damaged)?))
            }
            Some(pb::execute_reply::Outcome::NotLeader(_)) => Err(NotDone::NotLeader),
            Some(pb::execute_reply::Outcome::Unknown(reason)) => Err(NotDone::Unknown(reason)),
            None => Err(NotDone::Unknown("the leader's answer could not be read".into())),
        }
    }

    /// Whether this follower has not heard from its leader lately. A leader that it has never heard is not quiet: it was
    /// elected this moment.
    fn is_quiet(&self, leader: &Peer) -> bool {
        let last = self.inner.raft.last_leader();
        last.is_some_and(|(id, at)| id == leader.id && at.elapsed() > self.inner.timing.quiet())
    }

    /// Waits until another member leads, and a moment longer.
    async fn replaced(&self, leader: &Peer) {
        let mut status = self.inner.raft.watch();
        let other = status.wait_for(|now| now.leader.as_ref().is_some_and(|other| other.id != leader.id)).await.is_ok();
        match other {
            true => tokio::time::sleep(self.inner.timing.last_word()).await,
            false => std::future::pending().await,
        }
    }

    pub(super) fn client(&self, peer: &Peer) -> pb::managers_client::ManagersClient<Channel> {
        pb::managers_client::ManagersClient::new(self.inner.channels.to(&peer.addr, &peer.node_id))
            .max_decoding_message_size(MAX_MESSAGE)
    }

    /// An index that a linearizable read must have applied.
    pub(super) async fn read_index(&self) -> Result<u64, EngineError> {
        loop {
            match self.leader() {
                Some(peer) if peer.node_id == self.inner.node_id.as_str() => {
                    if let Ok(index) = self.inner.raft.linearizable().await {
                        return Ok(index);
                    }
                }
                Some(peer) if !self.is_quiet(&peer) => {
                    let mut client = self.client(&peer);
                    let asked = tokio::select! {
                        biased;
                        asked = client.read_index(pb::ReadIndexRequest {}) => asked.ok(),
                        () = self.replaced(&peer) => None,
                    };
                    if let Some(reply) = asked {
                        return Ok(reply.into_inner().index);
                    }
                }
                Some(_) | None => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Tells the leader how long ago this manager heard from its agents. Answers the last entry that the leader has
    /// applied; nothing if the callee does not lead.
    pub(super) async fn send_heard(&self, leader: &Peer, agents: Vec<pb::HeardAgent>) -> Option<u64> {
        let mut request = tonic::Request::new(pb::HeardRequest { agents });
        request.set_timeout(Duration::from_secs(1));
        let asked = tokio::time::Instant::now();
        let Ok(reply) = self.client(leader).heard(request).await.map(tonic::Response::into_inner) else { return None };
        if let Some(ahead) = skew::ahead_ms(reply.clock_ns, clock::unix_nanos(), asked.elapsed()) {
            // What was measured is how far the leader's clock is ahead of this one.
            self.inner.heard.note_leader(leader.id, -ahead);
        }
        reply.leads.then_some(reply.index)
    }

    /// Makes a manager that serves Raft a voter, through the leader.
    /// `FailedPrecondition` says that it must not be one under that raft id; whatever may pass is `Unavailable`.
    pub(super) async fn add_voter(&self, request: pb::JoinRaftRequest) -> Result<(), tonic::Status> {
        let leader = self.leader().ok_or_else(|| to_status(&EngineError::NoLeader))?;
        if leader.node_id != self.inner.node_id.as_str() {
            return self.client(&leader).join_raft(request).await.map(drop);
        }
        let peer = Peer { id: request.raft_id, node_id: request.node_id, addr: request.addr };
        let id = peer.id;
        self.inner.raft.add_learner(peer).await.map_err(not_joined)?;
        self.inner.raft.promote(id).await.map_err(not_joined)
    }

    /// Removes a voter, through the leader; a leader that removes itself hands over first and asks its successor.
    pub(super) async fn remove_voter(&self, raft_id: raft::RaftId) -> Result<(), EngineError> {
        let leader = self.leader().ok_or(EngineError::NoLeader)?;
        if leader.node_id != self.inner.node_id.as_str() {
            return passed_on(self.client(&leader).leave_raft(pb::LeaveRaftRequest { raft_id }).await);
        }
        let status = self.inner.raft.status();
        if !status.voters.iter().chain(&status.learners).any(|peer| peer.id == raft_id) {
            return Ok(());
        }
        if raft_id == status.id {
            self.hand_over().await?;
            return Err(EngineError::NoLeader);
        }
        self.inner.raft.remove(raft_id).await.map_err(not_changed)
    }

    /// Tells the others where a manager is now.
    pub(super) async fn move_voter(&self, peer: Peer) -> Result<(), EngineError> {
        self.inner.raft.set_peer(peer).await.map_err(not_changed)
    }

    /// Gives leadership to another voter that was heard from.
    pub(super) async fn hand_over(&self) -> Result<(), EngineError> {
        let status = self.inner.raft.status();
        let alive = self.view().reachable;
        let successor = status
            .voters
            .iter()
            .find(|peer| peer.id != status.id && alive.iter().any(|node| node.as_str() == peer.node_id))
            .ok_or_else(|| EngineError::Internal("no other manager can be reached to take over leadership".into()))?;
        self.inner.raft.transfer_leadership(successor.id).await.map_err(|e| EngineError::Internal(e.to_string()))
    }
}

fn passed_on<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<(), EngineError> {
    match answer {
        Ok(_) => Ok(()),
        Err(status) => Err(reason_of(&status)),
    }
}

/// What another manager's refusal means; the other way of `services::to_status`.
fn reason_of(status: &tonic::Status) -> EngineError {
    let text = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition => EngineError::Refused(precondition(text)),
        Code::PermissionDenied => EngineError::Refused(precondition(text)),
        Code::InvalidArgument => EngineError::Invalid(text),
        Code::Unavailable => EngineError::NoLeader,
        _ if never_sent(status) => EngineError::NoLeader,
        // The other side may go on with what the caller no longer waits for.
        Code::Unknown | Code::DeadlineExceeded | Code::Cancelled => EngineError::OutcomeUnknown(text),
        _ => EngineError::Internal(text),
    }
}

/// Why the manager set was not changed, or not known to be.
fn not_changed(error: MembershipError) -> EngineError {
    match error {
        MembershipError::NotLeader { .. } | MembershipError::Stopped | MembershipError::NotCaughtUp { .. } => {
            EngineError::NoLeader
        }
        MembershipError::QuorumAtRisk { .. } => EngineError::Refused(precondition(LOSS_OF_QUORUM)),
        MembershipError::UnknownMember(_) | MembershipError::IdTaken { .. } | MembershipError::LastVoter(_) => {
            EngineError::Refused(precondition(error.to_string()))
        }
        MembershipError::OutcomeUnknown(reason) => EngineError::OutcomeUnknown(reason),
    }
}

/// Why a manager has no vote. On `FailedPrecondition` it throws its log away and asks for another raft id, so only an id
/// that is another node's earns that; a quorum at risk, or a member that was removed meanwhile, is asked about again.
fn not_joined(error: MembershipError) -> tonic::Status {
    let passes = matches!(error, MembershipError::QuorumAtRisk { .. } | MembershipError::UnknownMember(_));
    let text = error.to_string();
    if passes { tonic::Status::unavailable(text) } else { to_status(&not_changed(error)) }
}

fn precondition(text: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::FailedPrecondition, text)
}

/// Whether a call surely never reached the other side: the connection could not be made.
fn never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<crate::ca::TlsError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager that is told to wait keeps its log; one whose raft id is another's does not.
    #[test]
    fn a_joining_manager_begins_anew_only_when_its_raft_id_is_not_its_own() {
        let at_risk = MembershipError::QuorumAtRisk { voters: 2, reachable: 1, needed: 2 };
        for passes in [at_risk, MembershipError::UnknownMember(7), MembershipError::NotCaughtUp { id: 7, behind: 9 }] {
            assert_eq!(not_joined(passes).code(), Code::Unavailable);
        }
        let taken = MembershipError::IdTaken { id: 7, node_id: "other".into() };
        assert_eq!(not_joined(taken).code(), Code::FailedPrecondition);
    }

    #[test]
    fn a_demotion_leaves_a_majority_that_answers_and_at_least_one_voter() {
        let check = |left, answering, expected| assert_eq!(why_not(left, answering), expected, "{answering} of {left}");
        check(0, 0, Some(LAST_MANAGER));
        check(1, 0, Some(LOSS_OF_QUORUM));
        check(1, 1, None);
        check(2, 1, Some(LOSS_OF_QUORUM));
        check(4, 3, None);
    }

    /// What a leader says reaches who asked through a follower as the same kind of thing.
    #[test]
    fn refusals_and_unknown_outcomes_survive_being_passed_on() {
        let through = |error: EngineError| reason_of(&to_status(&error));
        let refused = through(not_changed(MembershipError::QuorumAtRisk { voters: 2, reachable: 1, needed: 2 }));
        assert!(matches!(&refused, EngineError::Refused(e) if e.message == LOSS_OF_QUORUM), "{refused:?}");
        let unknown = through(not_changed(MembershipError::OutcomeUnknown("late".into())));
        assert!(matches!(&unknown, EngineError::OutcomeUnknown(_)), "{unknown:?}");
        let later = through(not_changed(MembershipError::NotCaughtUp { id: 1, behind: 9 }));
        assert!(matches!(later, EngineError::NoLeader), "{later:?}");
        assert!(matches!(through(EngineError::Invalid("x".into())), EngineError::Invalid(_)));
        assert!(matches!(through(EngineError::Internal("x".into())), EngineError::Internal(_)));
    }
}
