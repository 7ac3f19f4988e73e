//! What can go wrong, by operation.

use crate::{LogError, Peer, RaftId, SnapshotError};

/// Why a member could not start. Nothing that was stored has changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error("raft configuration: {0}")]
    Config(String),
    /// The directory could not be made or read.
    #[error("cannot open the raft directory {dir}")]
    Directory {
        /// The directory.
        dir: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The log could not be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The newest snapshot could not be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Log and snapshot do not fit together, or the machine could not be restored.
    #[error("cannot recover the replicated state: {0}")]
    Recover(String),
}

impl StartError {
    /// Whether what is on disk is not what was written there: bytes have changed, files are gone. This member must not
    /// take part with the rest of it, since it may have acknowledged what is lost, or voted; nor ever again under its
    /// raft id. It begins anew under another one, as the leader gives it.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Log(error) => matches!(error, LogError::Damaged { .. } | LogError::Missing { .. }),
            Self::Snapshot(error) => {
                matches!(error, SnapshotError::Damaged { .. } | SnapshotError::Missing { .. })
            }
            Self::Config(_) | Self::Directory { .. } | Self::Recover(_) => false,
        }
    }

    /// The raft id that the directory belongs to, when that is another one than was asked for.
    pub fn belongs_to(&self) -> Option<RaftId> {
        match self {
            Self::Log(LogError::Foreign { found, .. }) => Some(*found),
            Self::Snapshot(SnapshotError::Foreign { id, .. }) => Some(*id),
            _ => None,
        }
    }
}

/// The state machine cannot read a snapshot.
#[derive(Debug, thiserror::Error)]
#[error("cannot restore the state: {0}")]
pub struct RestoreError(
    /// Why, for people.
    pub String,
);

/// Why a new cluster could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// This member has a log already. Nothing has changed.
    #[error("this manager belongs to a cluster already")]
    AlreadyMember,
    /// The peer given is not this member. Nothing has changed.
    #[error("cannot bootstrap raft id {given}: this is {id}")]
    NotMe {
        /// The id asked for.
        given: RaftId,
        /// The id of this member.
        id: RaftId,
    },
    /// The first entry is written, but this member has not become leader in time; it still may.
    #[error("the first leader was not elected in time")]
    TimedOut,
    /// This member has stopped.
    #[error("raft has stopped")]
    Stopped,
}

/// Why a proposal was not applied, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was not accepted. Ask the leader, or any other manager when none is known.
    #[error("not the leader{}", known(.leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<Peer>,
    },
    /// It may be applied, now or later, or never. A retry must tolerate that.
    #[error("leadership was lost: whether the change takes effect is not known")]
    OutcomeUnknown,
    /// It was not accepted, and a retry does not help.
    #[error("a proposal of {size} bytes is larger than {limit}")]
    TooLarge {
        /// The size of the payload.
        size: usize,
        /// The largest size that is accepted.
        limit: usize,
    },
    /// It was not accepted: this member stops.
    #[error("raft has stopped")]
    Stopped,
    /// It was not accepted: the disk of the leader is full. Retry when there is room.
    #[error("the disk of the leader is full: no change is accepted until there is room in {dir}")]
    StorageFull {
        /// The leader's raft directory.
        dir: String,
    },
}

/// Why a linearizable read is not possible. Nothing has changed; a retry may help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader, or any other manager when none is known.
    #[error("not the leader{}", known(.leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<Peer>,
    },
    /// The other managers did not confirm the leadership in time.
    #[error("no quorum of managers answers")]
    NoQuorum,
    /// This member has stopped.
    #[error("raft has stopped")]
    Stopped,
}

/// Why the manager set was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Ask the leader, or any other manager when none is known. Nothing has changed.
    #[error("not the leader{}", known(.leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<Peer>,
    },
    /// There is no such member. Nothing has changed.
    #[error("raft id {0} is no member")]
    UnknownMember(RaftId),
    /// The id belongs to another node, and ids are never used again. Nothing has changed.
    #[error("raft id {id} belongs to node {node_id}")]
    IdTaken {
        /// The id.
        id: RaftId,
        /// Whose it is.
        node_id: String,
    },
    /// A cluster needs a manager. Nothing has changed.
    #[error("raft id {0} is the last voter and cannot be removed")]
    LastVoter(RaftId),
    /// Afterwards the managers that answer would be no majority, and the cluster would stand still. Nothing
    /// has changed.
    #[error("the change would lose the quorum: of {voters} voters {reachable} answer, and {needed} are needed")]
    QuorumAtRisk {
        /// The voters afterwards.
        voters: usize,
        /// How many of them were heard lately.
        reachable: usize,
        /// How many it takes.
        needed: usize,
    },
    /// The learner does not have the log yet. Nothing has changed; a retry helps.
    #[error("raft id {id} is {behind} entries behind and cannot vote yet")]
    NotCaughtUp {
        /// The learner.
        id: RaftId,
        /// How far it is behind; the whole log when it was never heard.
        behind: u64,
    },
    /// The change was begun and may still take effect. Look at the status before a retry.
    #[error("whether the change of the manager set takes effect is not known: {0}")]
    OutcomeUnknown(String),
    /// It was not tried: this member stops.
    #[error("raft has stopped")]
    Stopped,
}

/// Why leadership did not move as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can hand over. Nothing has changed.
    #[error("not the leader{}", known(.leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<Peer>,
    },
    /// The successor is no voter. Nothing has changed.
    #[error("raft id {0} is no voter")]
    NotVoter(RaftId),
    /// The successor was not heard lately. Nothing has changed.
    #[error("raft id {0} does not answer")]
    Unreachable(RaftId),
    /// Another member leads now.
    #[error("leadership went to raft id {0}")]
    WentTo(RaftId),
    /// The successor has not taken over in time.
    #[error("the successor has not taken over in time")]
    TimedOut,
    /// This member has stopped.
    #[error("raft has stopped")]
    Stopped,
}

fn known(leader: &Option<Peer>) -> String {
    leader.as_ref().map_or_else(String::new, |peer| format!("; that is {} at {}", peer.node_id, peer.addr))
}
