//! What a caller must say to start: where the data is, who this is, and how patient to be.

use std::path::PathBuf;
use std::time::Duration;

use crate::Keyring;

/// The identity of a manager in the log. Fresh at every promotion, never used again.
pub type RaftId = u64;

/// A member of the manager set: who it is and where its gRPC server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The id in the log.
    pub id: RaftId,
    /// The id of the node, as in its certificate.
    pub node_id: String,
    /// `host:port` of its gRPC server.
    pub addr: String,
}

/// What [`Raft::start`](crate::Raft::start) needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory of the log and the snapshots; made when absent. One process at a time.
    pub dir: PathBuf,
    /// The id of this member. Data that another id has written is refused.
    pub id: RaftId,
    /// The cluster, at most 255 bytes. Messages and data of another cluster are refused.
    pub cluster_id: String,
    /// Heartbeats and elections.
    pub timing: Timing,
    /// Applied entries between two snapshots, at least 1. A log of more than 64 MiB in memory is
    /// compacted earlier.
    pub snapshot_every: u64,
    /// The keys of the files.
    pub keys: Keyring,
    /// Whether this id has taken part before. Then an empty directory is damage, not a new member: it would vote again
    /// where it has voted, and count without what it has acknowledged.
    pub had_log: bool,
}

/// How often a leader is heard, and how long a follower waits before it stands for election.
///
/// A follower stands when it has heard nothing for the leader's lease (`election_max`) plus a random
/// time between `election_min` and `election_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of the leader. Three quarters of it are the time for a peer's answer.
    pub heartbeat: Duration,
    /// The least random part of an election timeout; more than `heartbeat`.
    pub election_min: Duration,
    /// The largest random part of an election timeout, and the leader's lease.
    pub election_max: Duration,
}

impl Timing {
    /// For managers in one data centre: a dead leader is replaced within 0.6 to 1 s.
    ///
    /// A heartbeat has three quarters of its interval to be answered, and three of them fit into a lease. One
    /// follower that hears nothing changes no leader: another one must have heard nothing for a lease as well. A
    /// shorter interval would take a busy host for a dead one; three quarters of `election_min` are also the time
    /// for a vote, with the disk's part in it.
    pub fn lan() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(250),
            election_max: Duration::from_millis(500),
        }
    }

    /// For managers up to 150 ms apart (round trips of 300 ms): a dead leader is replaced within 4.5 to 6 s.
    pub fn wan() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            election_min: Duration::from_millis(1500),
            election_max: Duration::from_millis(3000),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::lan()
    }
}
