//! Other hosts as a source of content for pulls from registries: what they have, a registry is not asked for.
//!
//! A pull does not wait for them: whoever is busy, away or slow to begin is passed over, and the registry gives what is
//! missing. Digests are verified where the content is unpacked.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use rand::seq::SliceRandom;
use runtime::image::Digest;
use runtime::image::registry::{BlobSource, BlobStream};
use tokio::time::{Instant, timeout};

use super::fetch::Source;

/// Hosts that are asked for one blob.
const TRIES: usize = 3;
/// A host begins to give within this time, or another one is asked.
const BEGINS: Duration = Duration::from_secs(2);
/// Whoever is asked who has something answers within this time.
const FOUND: Duration = Duration::from_secs(3);
/// Where that took longer than this and helped nothing, nobody is asked for a while.
const SLOW: Duration = Duration::from_millis(500);
/// For so long.
const QUIET: Duration = Duration::from_secs(30);

/// The other hosts, as far as they help a pull at once.
pub(crate) struct Nearby<P> {
    peers: Arc<P>,
    quiet_until: Mutex<Option<Instant>>,
}

impl<P> fmt::Debug for Nearby<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("other hosts of the cluster")
    }
}

impl<P: Source> Nearby<P> {
    pub(crate) fn new(peers: Arc<P>) -> Self {
        Self { peers, quiet_until: Mutex::default() }
    }

    fn quiet_until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.quiet_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, blob: Digest, offset: u64) -> Option<BlobStream> {
        let began = Instant::now();
        if self.quiet_until().is_some_and(|until| began < until) {
            return None;
        }
        let mut found = timeout(FOUND, self.peers.find(blob)).await.unwrap_or_default();
        found.shuffle(&mut rand::rng());
        for peer in found.iter().take(TRIES) {
            match timeout(BEGINS, self.peers.open(peer, blob, offset)).await {
                Ok(Ok(pieces)) => {
                    tracing::debug!(node.id = peer.node_id, %blob, offset, "another host gives what is pulled");
                    return Some(pieces.map_err(io::Error::other).boxed());
                }
                Ok(Err(why)) => tracing::debug!(node.id = peer.node_id, %blob, %why, "a host does not give a blob"),
                Err(_) => tracing::debug!(node.id = peer.node_id, %blob, "a host does not begin to give a blob"),
            }
        }
        // Managers that are away would otherwise cost each layer of each pull their time.
        if began.elapsed() > SLOW {
            *self.quiet_until() = Some(Instant::now() + QUIET);
        }
        None
    }
}

impl<P: Source> BlobSource for Nearby<P> {
    fn open<'a>(&'a self, digest: &'a Digest, _: Option<u64>, offset: u64) -> BoxFuture<'a, Option<BlobStream>> {
        self.ask(*digest, offset).boxed()
    }
}
