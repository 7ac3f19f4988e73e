//! What a pull or a push tells while it goes on.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::super::digest::Digest;

/// Counts are told this often at the most, for each layer.
const EVERY: Duration = Duration::from_millis(100);

/// Something that happened. Counts of bytes are left out where the listener is slow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Which manifest or index the name leads to.
    Resolved(Digest),
    /// One layer came further.
    Layer {
        /// The first 12 hexadecimal digits of its blob's digest.
        id: String,
        /// How far.
        step: LayerStep,
    },
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerStep {
    /// It will be fetched or sent.
    Waiting,
    /// It is there already.
    Exists,
    /// Another repository of the registry has it, which now is enough.
    Mounted(String),
    /// So many of so many bytes came, and were unpacked, or were sent.
    Moving {
        /// Bytes so far.
        current: u64,
        /// Bytes of all of it.
        total: u64,
    },
    /// All bytes came and are what they should be.
    Verified,
    /// It is done.
    Done,
}

/// The teller's end.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    to: Option<mpsc::Sender<Progress>>,
}

impl Teller {
    pub(super) fn new(to: Option<mpsc::Sender<Progress>>) -> Teller {
        Teller { to }
    }

    pub(super) fn tell(&self, progress: Progress) {
        if let Some(to) = &self.to {
            // Nothing waits for a listener that is slow.
            let _ = to.try_send(progress);
        }
    }

    pub(super) fn layer(&self, blob: &Digest, total: u64) -> LayerTeller {
        let mut id = blob.hex();
        id.truncate(12);
        LayerTeller { teller: self.clone(), id, total, told: None }
    }
}

/// Tells of one layer.
#[derive(Debug)]
pub(super) struct LayerTeller {
    teller: Teller,
    id: String,
    total: u64,
    told: Option<Instant>,
}

impl LayerTeller {
    pub(super) fn step(&self, step: LayerStep) {
        self.teller.tell(Progress::Layer { id: self.id.clone(), step });
    }

    /// So many bytes have moved by now.
    pub(super) fn moved(&mut self, current: u64) {
        let now = Instant::now();
        let due = self.told.is_none_or(|told| now.duration_since(told) >= EVERY);
        if due || current == self.total {
            self.told = Some(now);
            self.step(LayerStep::Moving { current, total: self.total });
        }
    }
}
