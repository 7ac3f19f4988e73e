//! The store as Raft's state machine: decodes entries, applies them, publishes each result as an immutable value.

use deploy::store::{Entry, Store};
use raft::{Committed, RestoreError, StateMachine};
use tokio::sync::watch;

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

/// The state machine. It decides nothing: see `Store::apply`.
pub(super) struct Machine {
    store: Store,
    published: watch::Sender<Published>,
}

impl Machine {
    pub(super) fn new() -> (Self, watch::Receiver<Published>) {
        let (published, receiver) = watch::channel(Published::default());
        (Self { store: Store::default(), published }, receiver)
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
