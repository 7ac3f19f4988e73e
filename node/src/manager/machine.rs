//! The store as Raft's state machine: decodes entries, applies them, publishes each result as an immutable value.

use deploy::store::{Entry, Store};
use raft::{Committed, RestoreError, StateMachine};
use tokio::sync::watch;

use super::ManagerError;
use crate::release::Release;

/// The store after some entry of the log.
#[derive(Clone, Default)]
pub struct Published {
    /// The objects.
    pub store: Store,
    /// Index of the entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// What `apply` answers to the proposer: nothing when it applied, else why it did not, as text.
pub(super) fn conflict_of(response: &[u8]) -> Option<String> {
    (!response.is_empty()).then(|| String::from_utf8_lossy(response).into_owned())
}

/// The feature level of a cluster that writes what this release does not know; 0 as long as it does not.
pub(super) type Beyond = watch::Receiver<u32>;

/// Whether this release understands all that the machine has met.
pub(super) fn understood(beyond: &Beyond) -> Result<(), ManagerError> {
    match *beyond.borrow() {
        0 => Ok(()),
        needs => Err(ManagerError::Release { needs, has: Release::current().feature_level }),
    }
}

/// The state machine. It decides nothing: see `Store::apply`.
///
/// From an entry on that raises the cluster's feature level above this release's it publishes nothing more: whoever
/// decided from a store without what it could not read would write that loss back.
pub(super) struct Machine {
    store: Store,
    published: watch::Sender<Published>,
    beyond: watch::Sender<u32>,
}

impl Machine {
    pub(super) fn new() -> (Self, watch::Receiver<Published>, Beyond) {
        let (published, receiver) = watch::channel(Published::default());
        let (beyond, needs) = watch::channel(0);
        (Self { store: Store::default(), published, beyond }, receiver, needs)
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, entry: Committed<'_>) -> Vec<u8> {
        let outcome = match Entry::from_bytes(entry.payload) {
            Ok(decoded) => self.store.apply(entry.term, &decoded).map_err(|conflict| conflict.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(_) => Vec::new(),
            Err(reason) => {
                tracing::info!(raft.index = entry.index, reason, "an entry was refused and changed nothing");
                reason.into_bytes()
            }
        }
    }

    fn applied(&mut self, index: u64, term: u64) {
        let needs = self.store.cluster().map_or(0, |cluster| cluster.status.feature_level);
        if needs > Release::current().feature_level {
            self.beyond.send_replace(needs);
            return;
        }
        self.published.send_replace(Published { store: self.store.clone(), index, term });
    }

    fn view(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let store = self.store.clone();
        Box::new(move || store.encode_snapshot())
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), RestoreError> {
        self.store = Store::decode_snapshot(snapshot).map_err(|e| RestoreError(e.to_string()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::{applied, first_entry};

    /// What a manager meets that was down, with a newer release, when the cluster's level was raised.
    #[test]
    fn nothing_is_decided_from_a_store_that_is_not_understood() {
        let has = Release::current().feature_level;
        let met = |entry: Option<u32>, snapshot: Option<u32>| {
            let (mut machine, published, beyond) = Machine::new();
            if let Some(level) = entry {
                let payload = first_entry(level).to_bytes();
                assert!(machine.apply(Committed { index: 1, term: 1, payload: &payload }).is_empty());
            }
            if let Some(level) = snapshot {
                machine.restore(&applied(level).store.encode_snapshot()).unwrap();
            }
            machine.applied(1, 1);
            let cluster = published.borrow().store.cluster().is_some();
            (cluster, understood(&beyond).map_err(|error| error.to_string()))
        };
        for known in [met(Some(has), None), met(None, Some(has))] {
            assert_eq!(known, (true, Ok(())));
        }
        for (published, answer) in [met(Some(has + 1), None), met(None, Some(has + 1))] {
            assert!(!published, "the leader's turn would begin with it");
            assert!(answer.unwrap_err().contains(&format!("feature level {}", has + 1)));
        }
    }
}
