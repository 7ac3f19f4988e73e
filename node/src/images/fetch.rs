//! One blob from whoever has it to this host's store: another host first, the registry for what none has.
//!
//! A transfer that breaks is taken up where it broke, from another host. Whoever is alone to blame for bytes that do not
//! have the digest is not asked for that blob again. `course` decides; this carries it out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use runtime::image::{BlobWriter, Digest, ImageError, Lease, StallDetector};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::blocking;
use super::course::{Course, Next, Patience};

/// Pieces that wait for the disk.
const AHEAD: usize = 4;

/// Transfers to this host at a time, of all images.
const TRANSFERS: usize = 6;

/// How many transfers there are at a time, and how long they wait for what.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) transfers: Arc<Semaphore>,
    /// A transfer in which nothing came for so long has broken.
    pub(crate) idle: Duration,
    /// Pauses between two rounds grow from the first to the second, each by a random half shorter.
    pub(crate) pauses: (Duration, Duration),
    /// So long others may ask the registry for a blob before this host helps itself, whatever a manager says.
    pub(crate) help_yourself: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            transfers: Arc::new(Semaphore::new(TRANSFERS)),
            idle: Duration::from_secs(15),
            pauses: (Duration::from_millis(200), Duration::from_secs(2)),
            help_yourself: Duration::from_secs(3600),
        }
    }
}

/// A host that may have something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Peer {
    pub(crate) node_id: String,
    /// `ip:port`
    pub(crate) addr: String,
}

/// Why somebody does not give a blob.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Enough others are being given to.
    #[error("it is busy")]
    Busy,
    /// It has it not.
    #[error("it has it not")]
    Missing,
    /// Anything else; the text says what.
    #[error("{0}")]
    Failed(String),
}

/// A blob on its way, from the offset that was asked for.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, Refusal>>;

/// Whether this host may ask the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is the one, and says so again after this time.
    Granted(Duration),
    /// Another one asks.
    Taken,
    /// There is nobody to say.
    Unknown,
}

/// The other hosts of the cluster.
pub(crate) trait Source: Send + Sync + 'static {
    /// Those that have a blob, or may have it.
    fn find(&self, blob: Digest) -> impl Future<Output = Vec<Peer>> + Send;
    /// Asks one of them.
    fn open(&self, peer: &Peer, blob: Digest, offset: u64) -> impl Future<Output = Result<Pieces, Refusal>> + Send;
    /// Asks for the right to be the one that asks the registry for an image, for the first time or again.
    fn claim(&self, image: Digest) -> impl Future<Output = Claim> + Send;
    /// Gives it up.
    fn release(&self, image: Digest) -> impl Future<Output = ()> + Send;
}

/// Where content comes from that no host has: a registry, for one image.
pub(crate) trait Upstream: Send + Sync {
    /// Brings the image into the store, as far as it is not there; the text says why not.
    fn bring(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// What is fetched, and with what.
pub(crate) struct Errand<'a, P> {
    pub(crate) peers: &'a P,
    pub(crate) upstream: Option<&'a dyn Upstream>,
    /// The image that blobs belong to: one host at a time asks a registry for it.
    pub(crate) image: Digest,
    pub(crate) lease: &'a Arc<Lease>,
    pub(crate) pace: &'a Pace,
}

/// What is known of a blob's length beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// In bytes.
    Exactly(u64),
    /// In bytes.
    AtMost(u64),
}

/// Why a blob could not be had. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// Nobody has it.
    #[error("no host of the cluster has {blob}")]
    Nowhere {
        /// The blob.
        blob: Digest,
    },
    /// Who has it does not give it, or gives something else.
    #[error("{blob} could not be had: {reason}")]
    Failed {
        /// The blob.
        blob: Digest,
        /// What went wrong last.
        reason: String,
    },
    /// This host's own trouble.
    #[error(transparent)]
    Store(#[from] ImageError),
}

/// Bytes of a blob, and whose they are.
struct Partial {
    writer: BlobWriter,
    from: BTreeSet<String>,
}

/// A fetch that is under way.
struct Fetch<'a> {
    pace: &'a Pace,
    lease: &'a Arc<Lease>,
    blob: Digest,
    size: Size,
    partial: Option<Partial>,
    /// Bytes of several were wrong together, so that none could be blamed: from now on each has to give all of it.
    apart: bool,
    /// What went wrong last.
    reason: String,
}

/// What came of asking somebody.
enum Poured {
    Done,
    /// It broke off, or never began.
    Broken(String),
    /// The bytes are not those of the blob.
    Wrong {
        /// Who alone is to blame, if anybody.
        liar: Option<String>,
    },
}

/// Brings a blob into the store, held by the lease.
pub(crate) async fn blob<P: Source>(errand: &Errand<'_, P>, blob: Digest, size: Size) -> Result<(), FetchError> {
    let Errand { peers, upstream, lease, pace, .. } = *errand;
    let patience = Patience { pauses: pace.pauses, help_yourself: pace.help_yourself };
    let mut course = Course::new(patience, upstream.is_some());
    let mut fetch = Fetch { pace, lease, blob, size, partial: None, apart: false, reason: String::new() };
    let began = Instant::now();
    loop {
        if fetch.is_here().await {
            return Ok(());
        }
        let found = course.choose(peers.find(blob).await, &mut rand::rng());
        let Some(busy) = fetch.round(peers, &found, &mut course).await? else { return Ok(()) };
        let mut next = course.after_round(found.len(), busy, &mut rand::rng());
        let mut claim = Claim::Unknown;
        if next == Next::Claim {
            if !course.helps_itself(began.elapsed()) {
                claim = peers.claim(errand.image).await;
            }
            next = course.claimed(claim, began.elapsed(), &mut rand::rng());
        }
        // What is found now is asked in the next round, which comes at once.
        if next == Next::LookThenRegistry && course.choose(peers.find(blob).await, &mut rand::rng()).is_empty() {
            next = Next::Registry;
        }
        match (next, upstream) {
            (Next::Look(pause), _) => tokio::time::sleep(pause).await,
            (Next::Registry, Some(upstream)) => {
                // It tries as often as makes sense by itself.
                return match bring(errand, upstream, claim).await {
                    Ok(()) if fetch.is_here().await => Ok(()),
                    Ok(()) => Err(FetchError::Nowhere { blob }),
                    Err(reason) => Err(FetchError::Failed { blob, reason }),
                };
            }
            (Next::GiveUp | Next::Registry, _) => {
                return Err(match fetch.reason.is_empty() {
                    true => FetchError::Nowhere { blob },
                    false => FetchError::Failed { blob, reason: fetch.reason },
                });
            }
            (Next::LookThenRegistry | Next::Claim, _) => {}
        }
    }
}

impl Fetch<'_> {
    /// Asks those hosts one after the other. `None` when one gave it; else whether any was busy.
    async fn round<P: Source>(
        &mut self,
        peers: &P,
        asked: &[Peer],
        course: &mut Course,
    ) -> Result<Option<bool>, FetchError> {
        let mut busy = false;
        for peer in asked {
            // Closed by nobody.
            let _transfer = self.pace.transfers.acquire().await;
            let poured = match peers.open(peer, self.blob, self.written()).await {
                Ok(pieces) => self.pour(&peer.node_id, pieces).await?,
                Err(Refusal::Busy) => {
                    busy = true;
                    continue;
                }
                Err(refusal) => Poured::Broken(refusal.to_string()),
            };
            match poured {
                Poured::Done => return Ok(None),
                Poured::Wrong { liar } => {
                    tracing::warn!(
                        node.id = peer.node_id, blob = %self.blob, "a host gave other bytes than were asked for"
                    );
                    self.reason = format!("what node {} gave does not have the digest", peer.node_id);
                    liar.iter().for_each(|liar| course.lied(liar));
                }
                Poured::Broken(why) => {
                    tracing::debug!(node.id = peer.node_id, blob = %self.blob, why, "a host did not give a blob");
                    self.reason = format!("node {}: {why}", peer.node_id);
                }
            }
        }
        Ok(Some(busy))
    }

    async fn is_here(&self) -> bool {
        let (lease, blob) = (Arc::clone(self.lease), self.blob);
        blocking(move || lease.hold_blob(&blob)).await
    }

    fn written(&self) -> u64 {
        self.partial.as_ref().map_or(0, |partial| partial.writer.written())
    }

    /// Takes what somebody gives, from where the last one stopped.
    async fn pour(&mut self, from: &str, mut pieces: Pieces) -> Result<Poured, FetchError> {
        let limit = match self.size {
            Size::Exactly(size) | Size::AtMost(size) => size,
        };
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => Partial { writer: self.lease.writer(self.blob, limit)?, from: BTreeSet::new() },
        };
        partial.from.insert(from.to_owned());
        let Partial { mut writer, from } = partial;
        let (sender, mut queue) = mpsc::channel::<Bytes>(AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(piece) = queue.blocking_recv() {
                if let Err(error) = writer.write(&piece) {
                    return (writer, Err(error));
                }
            }
            (writer, Ok(()))
        });
        let mut stall = StallDetector::new(self.pace.idle);
        let end = loop {
            let length = |piece: &Option<Result<Bytes, Refusal>>| Some(piece.as_ref()?.as_ref().ok()?.len());
            match stall.wait(pieces.next(), length).await {
                Ok(Some(Ok(piece))) => {
                    if sender.send(piece).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(Some(Err(refusal))) => break Err(refusal.to_string()),
                Ok(None) => break Ok(()),
                Err(stalled) => break Err(stalled.to_string()),
            }
        };
        drop((sender, pieces));
        let (writer, wrote) = writing.await.map_err(|error| FetchError::Failed {
            blob: self.blob,
            reason: format!("the writing thread failed: {error}"),
        })?;
        match wrote {
            Err(ImageError::LimitExceeded { .. }) => return Ok(self.blame(&from)),
            wrote => wrote?,
        }
        if let Err(why) = end {
            if !self.apart {
                self.partial = Some(Partial { writer, from });
            }
            return Ok(Poured::Broken(why));
        }
        if matches!(self.size, Size::Exactly(size) if writer.written() < size) {
            return Ok(self.blame(&from));
        }
        let lease = Arc::clone(self.lease);
        match blocking(move || lease.keep(writer)).await {
            Ok(()) => Ok(Poured::Done),
            Err(ImageError::DigestMismatch { .. }) => Ok(self.blame(&from)),
            Err(error) => Err(error.into()),
        }
    }

    /// The bytes are wrong, and so everything begins anew.
    fn blame(&mut self, from: &BTreeSet<String>) -> Poured {
        let liar = from.first().filter(|_| from.len() == 1).cloned();
        self.apart |= liar.is_none();
        Poured::Wrong { liar }
    }
}

/// Has the registry asked, and says meanwhile that this host does it. When all of it is here the claim is not given up
/// but runs out: until then, the others hear who has it.
async fn bring<P: Source>(errand: &Errand<'_, P>, upstream: &dyn Upstream, claim: Claim) -> Result<(), String> {
    let Claim::Granted(again) = claim else { return upstream.bring().await };
    let renewing = async {
        loop {
            tokio::time::sleep(again).await;
            errand.peers.claim(errand.image).await;
        }
    };
    let brought = tokio::select! {
        biased;
        brought = upstream.bring() => brought,
        _ = renewing => unreachable!("it goes on for ever"),
    };
    if brought.is_err() {
        errand.peers.release(errand.image).await;
    }
    brought
}
