//! Keeps this node's files under the keys that the cluster wants: wrapped with the unlock key on managers of a cluster
//! with autolock, and nowhere else; sealed with the newest key; without keys that nothing names any more.
//!
//! Each look compares what is on disk with what should be there, so that what a kill has cut in the middle is done by
//! the next one, after a start too.

use std::sync::Arc;
use std::time::Duration;

use super::active::{Active, internal};
use crate::engine::EngineError;
use crate::manager::Manager;
use crate::vault::{UnlockKey, Wanted};

/// How often it looks when nothing changes: segments and snapshots go as the log is compacted.
const LOOK: Duration = Duration::from_secs(30);
/// Whether the node has become a manager, or is none any more, is looked at this often.
const ROLE: Duration = Duration::from_secs(1);

impl Active {
    /// Runs until the node stops.
    pub(super) async fn keep_keys(self: Arc<Self>) {
        let mut sealed_with = None;
        loop {
            let manager = self.manager();
            if let Err(error) = self.settle_keys(manager.as_deref(), &mut sealed_with).await {
                tracing::warn!(%error, "the keys of this node's files are not as they should be yet");
            }
            tokio::select! {
                biased;
                () = self.following.cancelled() => return,
                () = self.keys_may_change(manager.as_deref()) => {}
            }
        }
    }

    /// Until there may be something to do.
    async fn keys_may_change(&self, manager: Option<&Manager>) {
        let Some(manager) = manager else { return tokio::time::sleep(ROLE).await };
        let now = wanted(manager);
        let mut published = manager.watch();
        let changed = async {
            while published.changed().await.is_ok() {
                if wanted(manager) != now {
                    return;
                }
            }
            // The manager has stopped: this node may be a worker by now.
            tokio::time::sleep(ROLE).await;
        };
        let _ = tokio::time::timeout(LOOK, changed).await;
    }

    async fn settle_keys(&self, manager: Option<&Manager>, sealed_with: &mut Option<u32>) -> Result<(), EngineError> {
        let data = self.engine.data();
        let failed = internal("the keys of this node's files");
        let wanted = match manager {
            Some(manager) => wanted(manager),
            // One that is to be a manager again in a moment stays locked.
            None if self.record().manager => None,
            None => {
                data.vault().forget_version().map_err(|e| failed(&e))?;
                Some(Wanted { lock: None, version: 0 })
            }
        };
        if let Some(wanted) = wanted
            && data.vault().follow(&wanted).map_err(|e| failed(&e))?
        {
            tracing::info!(locked = wanted.lock.is_some(), "the keys of this node's files were wrapped anew");
        }
        if !data.membership_is_sealed().map_err(|e| failed(&e))? {
            self.save_record()?;
        }
        let key = *data.vault().current().borrow();
        let in_use = data.keys_in_use().map_err(|e| failed(&e))?;
        if *sealed_with == Some(key) {
            // Whoever was about to write with the key before has done so since the last look.
            return data.vault().retire(&in_use).map_err(|e| failed(&e));
        }
        if let Some(manager) = manager
            && in_use.iter().any(|other| *other != key)
        {
            manager.rekey().await.map_err(|e| failed(&e))?;
        }
        *sealed_with = Some(key);
        Ok(())
    }
}

/// What the cluster wants; `None` while this manager does not know.
fn wanted(manager: &Manager) -> Option<Wanted> {
    let published = manager.watch();
    let published = published.borrow();
    let cluster = published.store.cluster()?;
    let key = cluster.status.unlock_key.as_ref();
    let lock = key.and_then(|key| UnlockKey::from_bytes(&key.bytes)).filter(|_| cluster.spec.autolock);
    Some(Wanted { lock, version: key.map_or(0, |key| key.version) })
}
