//! Records reach the disk a moment after they are written, and off everybody's path.
//!
//! What a record must survive at once is the death of a daemon or of a shim, and for that it need not be synced. A sync
//! takes longer than all else in a container's life together, and one that is put off is spared for containers that are
//! gone by then, and shared by those that come together. What a power cut within that moment takes: of a container that
//! had just been made, its existence; of one that had just ended, how (it then counts as lost).

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::Inner;
use crate::stored::{self, names};

/// How long a record waits for its sync.
const PAUSE: Duration = Duration::from_millis(100);

impl Inner {
    /// Syncs a container's records soon. Must be called within the async runtime.
    pub(super) fn make_durable(self: &Arc<Self>, id: &str) {
        let mut waiting = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        let first = waiting.is_empty();
        waiting.insert(id.to_owned());
        drop(waiting);
        if !first {
            return;
        }
        let inner = Arc::downgrade(self);
        let mut monitors = self.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        monitors.spawn(async move {
            tokio::time::sleep(PAUSE).await;
            let Some(inner) = inner.upgrade() else { return };
            // Those that come from here on find the set empty, and begin the next round.
            let ids = std::mem::take(&mut *inner.unsynced.lock().unwrap_or_else(PoisonError::into_inner));
            let synced = tokio::task::spawn_blocking(move || {
                for id in ids {
                    if let Err(error) = stored::sync(&inner.container_dir(&id), &[names::CONTAINER, names::EXIT]) {
                        warn!(container.id = id, %error, "a power cut could take its records");
                    }
                }
            });
            let _ = synced.await;
        });
    }
}
