//! What a member knows of itself and the others, published on every change.

use std::collections::BTreeMap;
use std::time::Instant;

use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::InstantOf;
use openraft::{RaftMetrics, ServerState};

use crate::types::{self, Member, Types};
use crate::{Peer, RaftId};

/// What a member does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Accepts proposals: elected, and everything of the terms before is applied here.
    Leader,
    /// Votes and follows.
    Follower,
    /// Stands for election, or is elected and does not accept proposals yet.
    Candidate,
    /// Follows without a vote; also a member that has stopped or was never added.
    Learner,
}

/// One member's view. Indexes are 0 while there is nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// This member.
    pub id: RaftId,
    /// The term that it is in.
    pub term: u64,
    /// What it does.
    pub role: Role,
    /// Who leads, when known.
    pub leader: Option<Peer>,
    /// The index of the last entry in the log.
    pub last_log: u64,
    /// The index up to which the machine has applied.
    pub applied: u64,
    /// The index up to which entries are committed, as far as known here.
    pub committed: u64,
    /// The members with a vote, by id. During a change these are the voters of both sets.
    pub voters: Vec<Peer>,
    /// Those of them that a change under way adds or removes: they count only once it is done.
    pub unsettled: Vec<RaftId>,
    /// The members without, by id.
    pub learners: Vec<Peer>,
    /// On the leader: when it last heard from each other member that it ever heard.
    pub heard: BTreeMap<RaftId, Instant>,
    /// The log or the machine failed, or the member was shut down; it takes part no more.
    pub stopped: bool,
}

impl Status {
    /// A member that has not started.
    pub(crate) fn initial(id: RaftId) -> Self {
        Self {
            id,
            term: 0,
            role: Role::Learner,
            leader: None,
            last_log: 0,
            applied: 0,
            committed: 0,
            voters: Vec::new(),
            unsettled: Vec::new(),
            learners: Vec::new(),
            heard: BTreeMap::new(),
            stopped: false,
        }
    }

    pub(crate) fn from_metrics(metrics: &RaftMetrics<Types>, clocks: &Clocks) -> Self {
        let membership = metrics.membership_config.membership();
        let voter_ids: Vec<RaftId> = membership.voter_ids().collect();
        let (voters, learners): (Vec<Peer>, Vec<Peer>) =
            membership.nodes().map(|(id, member)| peer(*id, member)).partition(|peer| voter_ids.contains(&peer.id));
        let sets = membership.get_joint_config();
        let unsettled = voter_ids.iter().copied().filter(|id| !sets.iter().all(|set| set.contains(id))).collect();
        let leader = metrics.current_leader;
        // Until its first entry is applied a leader has neither a lease nor all that was acknowledged.
        let ready = metrics.last_applied.is_some_and(|id| types::term_of(&id) == metrics.current_term);
        let heard = metrics.heartbeat.iter().flatten();
        Self {
            id: metrics.id,
            term: metrics.current_term,
            role: match metrics.state {
                ServerState::Leader if ready => Role::Leader,
                ServerState::Leader | ServerState::Candidate => Role::Candidate,
                ServerState::Follower => Role::Follower,
                ServerState::Learner | ServerState::Shutdown => Role::Learner,
            },
            leader: leader.and_then(|id| membership.get_node(&id).map(|member| peer(id, member))),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            committed: metrics.local_committed.map_or(0, |id| id.index),
            voters,
            unsettled,
            learners,
            heard: heard
                .filter(|(id, _)| **id != metrics.id)
                .filter_map(|(id, when)| Some((*id, clocks.ours(when.as_ref()?.into_inner()))))
                .collect(),
            stopped: metrics.running_state.is_err() || metrics.state == ServerState::Shutdown,
        }
    }

    /// The member takes part no more.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.role = Role::Learner;
        self.leader = None;
        self.heard.clear();
    }

    /// The member with this id.
    pub fn member(&self, id: RaftId) -> Option<&Peer> {
        self.voters.iter().chain(&self.learners).find(|peer| peer.id == id)
    }

    /// Entries that are committed, as far as known here, and not applied yet.
    pub fn apply_lag(&self) -> u64 {
        self.committed.saturating_sub(self.applied)
    }

    /// Whether the id has a vote.
    pub fn is_voter(&self, id: RaftId) -> bool {
        self.voters.iter().any(|peer| peer.id == id)
    }
}

/// openraft's instants do not say what they are, so they are measured from one moment that both know.
pub(crate) struct Clocks {
    openraft: InstantOf<Types>,
    std: Instant,
}

impl Clocks {
    pub(crate) fn now() -> Self {
        Self { openraft: Types::now(), std: Instant::now() }
    }

    fn ours(&self, when: InstantOf<Types>) -> Instant {
        match when >= self.openraft {
            true => self.std + (when - self.openraft),
            false => self.std,
        }
    }
}

pub(crate) fn peer(id: RaftId, member: &Member) -> Peer {
    Peer { id, node_id: member.node_id.clone(), addr: member.addr.clone() }
}

pub(crate) fn member(peer: &Peer) -> Member {
    Member { node_id: peer.node_id.clone(), addr: peer.addr.clone() }
}
