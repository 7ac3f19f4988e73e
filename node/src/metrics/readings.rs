//! What one scrape takes from each owner: handles and values, as they are at that moment.

use std::sync::Arc;

use deploy::store::Store;
use gossip::{Members, Stats};

use crate::{agent, docker_api, manager};

/// Everything that a page is made of. What this node is not (a member, a manager) is missing.
#[derive(Default)]
pub(crate) struct Readings {
    /// The API server's.
    pub(crate) api: Arc<docker_api::Counters>,
    /// When this node's certificate runs out, Unix time in seconds.
    pub(crate) certificate_expiry: Option<i64>,
    /// The gossip's counters, and whom it knows.
    pub(crate) gossip: Option<(Stats, Arc<Members>)>,
    /// The agent's.
    pub(crate) agent: Option<AgentReadings>,
    /// The manager's.
    pub(crate) manager: Option<ManagerReadings>,
}

/// What the agent tells.
pub(crate) struct AgentReadings {
    /// Its counters.
    pub(crate) counters: Arc<agent::Counters>,
}

/// What a manager tells.
pub(crate) struct ManagerReadings {
    /// Raft as it stands.
    pub(crate) status: raft::Status,
    /// What Raft has counted.
    pub(crate) raft: raft::Counters,
    /// The manager's own counters.
    pub(crate) counters: Arc<manager::Counters>,
    /// Requests that wait for the leader's turn.
    pub(crate) queued: u64,
    /// The applied store.
    pub(crate) store: Store,
}
