//! What a manager that does not run has on its disk, and the log of one that begins anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use deploy::store::Store;
use raft::{Found, Role};
use tokio::time::Instant;

use super::machine::{Machine, understood};
use super::{Config, Manager, ManagerError};
use crate::engine::EngineError;

/// The other managers give up their votes within this time.
const ALONE: Duration = Duration::from_secs(30);
/// Pause before the next look.
const LOOK: Duration = Duration::from_millis(50);

/// What a stopped manager has.
pub(crate) struct Survivor {
    /// Its store, with everything that is in its log applied.
    pub(crate) store: Store,
    /// Where that log ends, and who was in the manager set.
    pub(crate) found: Found,
}

/// Reads the log of a manager that does not run. A state that this release does not understand as a whole is refused: to
/// write it anew would drop what it does not know.
pub(crate) async fn read_survivor(config: &Config) -> Result<Survivor, ManagerError> {
    let (mut machine, published, beyond) = Machine::new();
    let found = raft::survey(&config.raft(), &mut machine).await?;
    understood(&beyond)?;
    let store = published.borrow().store.clone();
    Ok(Survivor { store, found })
}

/// Makes the log of a manager that is alone in its cluster and has this store. The directory must not be there.
pub(crate) async fn begin_anew(config: &Config, store: &Store, found: &Found) -> Result<(), ManagerError> {
    let me = raft::Peer { id: config.raft_id, node_id: config.node_id.to_string(), addr: config.addr.clone() };
    let store = store.clone();
    let encoded = tokio::task::spawn_blocking(move || store.encode_snapshot()).await;
    let state = encoded.map_err(|e| ManagerError::Raft(format!("the state could not be encoded: {e}")))?;
    Ok(raft::begin_anew(&config.raft(), &me, found, state).await?)
}

impl Manager {
    /// Makes this manager the only voter, and lets no other in. The others lose their votes through Raft itself, one
    /// after the other, so that whatever they do afterwards they are no majority of anything.
    pub(crate) async fn stand_alone(&self) -> Result<(), EngineError> {
        self.inner.closed.store(true, Ordering::Release);
        let alone = self.lose_the_others().await;
        if alone.is_err() {
            self.inner.closed.store(false, Ordering::Release);
        }
        alone
    }

    async fn lose_the_others(&self) -> Result<(), EngineError> {
        let deadline = Instant::now() + ALONE;
        loop {
            let status = self.status();
            let leader = status.leader.as_ref().map(|peer| peer.id);
            let others = || status.voters.iter().chain(&status.learners).filter(|peer| peer.id != status.id);
            // The leader comes last: it hands over then.
            let next = others().find(|peer| Some(peer.id) != leader).or_else(|| others().next());
            let tried = match next {
                Some(peer) => self.remove_voter(peer.id).await,
                None if status.role == Role::Leader && status.unsettled.is_empty() => {
                    let confirmed = self.inner.raft.linearizable().await;
                    return confirmed.map(drop).map_err(|e| EngineError::Internal(e.to_string()));
                }
                None => Ok(()),
            };
            if Instant::now() > deadline {
                tried?;
                return Err(EngineError::NoLeader);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where the log of this manager, which stands alone, ends.
    pub(crate) fn end_of_log(&self) -> Found {
        let status = self.status();
        Found {
            term: status.term,
            last_index: status.last_log,
            last_term: status.term,
            committed: status.committed,
            members: status.voters,
        }
    }
}
