//! Who is fetching which layer now: another pull of the same layer waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::super::digest::Digest;

/// Layers under way, by chain id.
#[derive(Debug, Default)]
pub(super) struct Flights {
    under_way: Arc<Mutex<BTreeMap<Digest, watch::Sender<()>>>>,
}

/// What one has to do with a layer.
#[derive(Debug)]
pub(super) enum Claim {
    /// Nobody fetches it; whoever claimed it does, until the claim is dropped.
    Ours(Flight),
    /// Someone does; the receiver fails when that has ended, well or not.
    Theirs(watch::Receiver<()>),
}

/// A layer that one fetches.
#[derive(Debug)]
pub(super) struct Flight {
    under_way: Arc<Mutex<BTreeMap<Digest, watch::Sender<()>>>>,
    chain: Digest,
}

impl Flights {
    pub(super) fn claim(&self, chain: Digest) -> Claim {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(theirs) = under_way.get(&chain) {
            return Claim::Theirs(theirs.subscribe());
        }
        under_way.insert(chain, watch::Sender::new(()));
        Claim::Ours(Flight { under_way: Arc::clone(&self.under_way), chain })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.chain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_until_the_first_has_ended() {
        let flights = Flights::default();
        let chain = Digest::of(b"a layer");
        let Claim::Ours(flight) = flights.claim(chain) else { panic!("nobody else has it") };
        let Claim::Theirs(mut ended) = flights.claim(chain) else { panic!("it is under way") };
        assert!(!ended.has_changed().unwrap());
        drop(flight);
        assert!(ended.changed().await.is_err());
        assert!(matches!(flights.claim(chain), Claim::Ours(_)));
    }
}
