//! What a manager that does not run has on its disk, and the log of one that begins anew.

use deploy::store::Store;
use raft::Found;

use super::machine::Machine;
use super::{Config, ManagerError};

/// What a stopped manager has.
pub(crate) struct Survivor {
    /// Its store, with everything that is in its log applied.
    pub(crate) store: Store,
    /// Where that log ends, and who was in the manager set.
    pub(crate) found: Found,
}

/// Reads the log of a manager that does not run.
pub(crate) async fn read_survivor(config: &Config) -> Result<Survivor, ManagerError> {
    let (mut machine, published) = Machine::new();
    let found = raft::survey(&config.raft(), &mut machine).await?;
    let store = published.borrow().store.clone();
    Ok(Survivor { store, found })
}

/// Makes the log of a manager that is alone in its cluster and has this store. The directory must not be there.
pub(crate) async fn begin_anew(config: &Config, store: &Store, found: &Found) -> Result<(), ManagerError> {
    let me = raft::Peer { id: config.raft_id, node_id: config.node_id.to_string(), addr: config.addr.clone() };
    Ok(raft::begin_anew(&config.raft(), &me, found, store.encode_snapshot()).await?)
}
