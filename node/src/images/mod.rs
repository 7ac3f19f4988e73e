//! Image content between hosts: a layer that one host has, any host can get, and no registry is needed.
//!
//! `serve` gives blobs by digest to whoever is in the cluster · `announce` says through the agent's session what this
//! host has · `peers` finds and asks those who have something · `fetch` brings one blob here, whoever lies, stalls or
//! dies meanwhile, as `course` decides · [`Images`] brings a whole image here, once at a time · `nearby` gives
//! what others have to pulls from a registry · `gc` removes what only tasks needed.
//!
//! Who has what is never in the replicated store: managers remember what their agents' sessions say
//! (`manager::holdings`), and forget it with the session. Every byte is checked against the digest that was asked for,
//! so that a host needs no trust, only a certificate of the cluster.

mod announce;
mod course;
#[cfg(test)]
mod crowd;
mod fetch;
pub(crate) mod gc;
mod nearby;
mod peers;
mod serve;
mod upstream;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::{StreamExt, TryStreamExt, stream};
use runtime::image::{Digest, Image, ImageError, ImageErrorKind, ImageStore, Lease, Origin, Reference};
use tonic::Status;

pub(crate) use announce::Announcer;
pub(crate) use fetch::{Errand, FetchError, Pace, Size, Source, Upstream};
pub(crate) use nearby::Nearby;
pub(crate) use peers::ClusterPeers;
pub(crate) use serve::{Rate, Serving};
pub(crate) use upstream::FromRegistry;

/// Digests that one call may ask for.
pub(crate) const MAX_ASKED: usize = 1000;
/// Blobs of one image that come at the same time, each from another host where there are several.
const AT_ONCE: usize = 3;
/// Most bytes of a manifest, and of an index of manifests.
const MAX_MANIFEST: u64 = 8 << 20;

/// A digest as messages carry it.
pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| Status::invalid_argument("a digest has 32 bytes"))?;
    Ok(Digest::from_bytes(bytes))
}

/// Why an image could not be brought here. Nothing of it stays; a retry helps when somebody has it by then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvideError {
    /// The store's own trouble, or what came makes no sense.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// It is not here and nobody was asked: only a digest says what is meant on another host.
    #[error("No such image: {0}")]
    Unpinned(String),
    /// It has no digest, and its registry does not give it.
    #[error("No such image: {name}: {reason}")]
    Registry {
        /// The image.
        name: String,
        /// What the registry, or the way to it, said.
        reason: String,
    },
    /// A part of it could not be had.
    #[error("No such image: {name}")]
    Fetch {
        /// The image.
        name: String,
        /// What was missing.
        #[source]
        source: FetchError,
    },
}

/// An image that cannot be removed or collected while this lives.
pub(crate) struct HeldImage {
    pub(crate) image: Image,
    _lease: Holding,
}

/// A lease that ends where ending may block. Whoever else has a part of it is on such a thread already.
struct Holding(Option<Arc<Lease>>);

impl Holding {
    fn new(lease: Lease) -> Self {
        Self(Some(Arc::new(lease)))
    }

    fn lease(&self) -> &Arc<Lease> {
        self.0.as_ref().unwrap_or_else(|| unreachable!("it is taken only at the end"))
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let lease = self.0.take();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(lease))),
            Err(_) => drop(lease),
        }
    }
}

/// Brings images to this host.
pub(crate) struct Images<P> {
    store: ImageStore,
    peers: Arc<P>,
    pace: Pace,
    /// One fetch of a manifest at a time: who comes second finds the image, or helps himself.
    under_way: Arc<Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>>,
}

impl<P: Source> Images<P> {
    pub(crate) fn new(store: ImageStore, peers: Arc<P>) -> Self {
        Self { store, peers, pace: Pace::default(), under_way: Arc::default() }
    }

    /// The image of that name, ready to be run and held; brought here from other hosts, or from `upstream` what none of
    /// them has, if the name has a digest.
    pub(crate) async fn provide(
        &self,
        name: &str,
        upstream: Option<Arc<dyn Upstream>>,
    ) -> Result<HeldImage, ProvideError> {
        if let Some(held) = self.here(name).await? {
            return Ok(held);
        }
        let pinned = Reference::parse(name).ok().and_then(|name| name.digest()?.parse::<Digest>().ok());
        let Some(manifest) = pinned else { return self.unpinned(name, upstream).await };
        let turn = self.turn(manifest);
        let _turn = turn.lock().await;
        if let Some(held) = self.here(name).await? {
            return Ok(held);
        }
        tracing::info!(image = name, "the image is fetched");
        let began = std::time::Instant::now();
        let held = self.fetch(name, manifest, upstream).await?;
        tracing::info!(image = name, seconds = began.elapsed().as_secs_f64(), "the image is here");
        Ok(held)
    }

    async fn here(&self, name: &str) -> Result<Option<HeldImage>, ProvideError> {
        let held = Holding::new(self.store.lease());
        let (lease, wanted) = (Arc::clone(held.lease()), name.to_owned());
        match blocking(move || lease.image(&wanted)).await {
            Ok(image) => Ok(Some(HeldImage { image, _lease: held })),
            Err(error) if error.kind() == ImageErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Only the registry can say what a name stands for.
    async fn unpinned(&self, name: &str, upstream: Option<Arc<dyn Upstream>>) -> Result<HeldImage, ProvideError> {
        let unknown = || ProvideError::Unpinned(name.to_owned());
        let upstream = upstream.ok_or_else(unknown)?;
        upstream.bring().await.map_err(|reason| ProvideError::Registry { name: name.to_owned(), reason })?;
        self.here(name).await?.ok_or_else(unknown)
    }

    fn turn(&self, manifest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, turn| turn.strong_count() > 0);
        let known = under_way.get(&manifest).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let turn = Arc::default();
            under_way.insert(manifest, Arc::downgrade(&turn));
            turn
        })
    }

    async fn fetch(
        &self,
        name: &str,
        pinned: Digest,
        upstream: Option<Arc<dyn Upstream>>,
    ) -> Result<HeldImage, ProvideError> {
        let held = Holding::new(self.store.lease());
        let lease = held.lease();
        let failed = |source| ProvideError::Fetch { name: name.to_owned(), source };
        let errand =
            Errand { peers: &*self.peers, upstream: upstream.as_deref(), image: pinned, lease, pace: &self.pace };
        let one = |blob, size| fetch::blob(&errand, blob, size);
        one(pinned, Size::AtMost(MAX_MANIFEST)).await.map_err(failed)?;
        // A registry brings all of it, and may lead a host to another of an index's manifests than we would choose.
        if let Some(held) = self.here(name).await? {
            return Ok(held);
        }
        let entry = {
            let lease = Arc::clone(lease);
            blocking(move || lease.entry(&pinned)).await?
        };
        // An index of images for several platforms leads to the manifest of the one that runs here.
        let (manifest, index) = match entry {
            Some((manifest, size)) => {
                if size > MAX_MANIFEST {
                    return Err(failed(FetchError::Failed { blob: manifest, reason: format!("it has {size} bytes") }));
                }
                one(manifest, Size::Exactly(size)).await.map_err(failed)?;
                (manifest, Some(pinned))
            }
            None => (pinned, None),
        };
        let wanted = {
            let lease = Arc::clone(lease);
            blocking(move || lease.wanted_by(&manifest)).await?
        };
        stream::iter(wanted.into_iter().map(|(blob, size)| one(blob, Size::Exactly(size))))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await
            .map_err(failed)?;
        // A registry brings all of it.
        if let Some(held) = self.here(name).await? {
            return Ok(held);
        }
        let lease = Arc::clone(lease);
        let image = blocking(move || lease.assemble(&manifest, index, Origin::Task)).await?;
        self.store.tell_pulled(name, &image);
        Ok(HeldImage { image, _lease: held })
    }
}

/// Does something with the store where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the process ends; nobody waits for it then.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests;
