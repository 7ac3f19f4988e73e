//! Images from registries and to them: registry protocol v2, which OCI calls its distribution spec.
//!
//! `node` makes one [`Registries`] of the daemon's settings and asks it to pull, push, log in and look.
//! Nothing that comes in is trusted: documents and layers are bounded, digests and lengths are
//! verified as the bytes stream by, and nothing of an image shows in the store before all of it is
//! there. What a registry offers may come from somewhere else as well: see [`BlobSource`].
//!
//! * `settings`, `url`, `tls`: which hosts are spoken to, and how
//! * `http`: connections; `auth`: challenges and tokens; `session`: requests with both, redirects
//! * `backoff`, `error`: what is tried again, and what is said in the end
//! * `document`: manifests and indexes, and which of them runs here
//! * `blobs`: a blob as a stream, from whoever has it, resumed where it was cut
//! * `pull`, `layer`, `flights`: from a name to an image; `push`: the way back

mod auth;
mod backoff;
mod blobs;
mod document;
mod error;
mod flights;
#[cfg(test)]
mod fuzz;
mod http;
mod layer;
mod progress;
mod pull;
mod push;
mod session;
mod settings;
mod source;
mod tls;
mod url;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::digest::Digest;
pub use super::platform::ImagePlatform;
use super::reference::Reference;
use super::store::ImageStore;
use document::{Document, Resolved};
use flights::Flights;
use http::Http;
use session::Session;

pub use auth::{CredentialSource, Credentials, Secret};
pub use error::{RegistryError, RegistryErrorKind};
pub use progress::{LayerStep, Progress};
pub use pull::Pulled;
pub use push::Pushed;
pub use settings::{Mirror, RegistrySettings, SettingError, Timeouts, registry_name};
pub use source::{BlobSource, BlobStream};

/// Layers that one host fetches or sends at a time, as many as Docker does.
const PARALLEL_LAYERS: usize = 3;

/// The way to all registries, for one image store. A clone is a handle to the same.
#[derive(Clone, Debug)]
pub struct Registries {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: ImageStore,
    settings: RegistrySettings,
    http: Http,
    flights: Flights,
    slots: Semaphore,
    /// Pulls for tasks that are under way: the same image is pulled once.
    ensuring: Mutex<BTreeMap<Reference, Arc<tokio::sync::Mutex<()>>>>,
    sources: Mutex<Vec<Arc<dyn BlobSource>>>,
}

/// What a registry knows of a name.
#[derive(Debug, Clone)]
pub struct Distribution {
    /// Media type of the manifest or index that the name leads to.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Platforms that there are images for.
    pub platforms: Vec<ImagePlatform>,
}

impl Registries {
    /// # Errors
    /// When a mirror, a registry's name or a certificate of the settings cannot be used.
    pub fn new(store: ImageStore, settings: RegistrySettings) -> Result<Registries, SettingError> {
        settings.check()?;
        let http = Http::new(&settings)?;
        Ok(Registries {
            inner: Arc::new(Inner {
                store,
                settings,
                http,
                flights: Flights::default(),
                slots: Semaphore::new(PARALLEL_LAYERS),
                ensuring: Mutex::default(),
                sources: Mutex::default(),
            }),
        })
    }

    /// The images that are pulled into.
    #[must_use]
    pub fn store(&self) -> &ImageStore {
        &self.inner.store
    }

    /// Registries that are spoken to without a verified certificate, for `info`.
    #[must_use]
    pub fn settings(&self) -> &RegistrySettings {
        &self.inner.settings
    }

    /// Has `sources` asked for content before any registry is, in their order, and those that were there
    /// before no more. Pulls that are under way keep theirs.
    pub fn set_sources(&self, sources: Vec<Arc<dyn BlobSource>>) {
        *self.inner.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// Whether a registry takes these credentials. `registry` is a host, as `docker login` is given
    /// one; empty means Docker's own.
    pub async fn login(&self, registry: &str, credentials: &dyn CredentialSource) -> Result<(), RegistryError> {
        let host = settings::login_host(registry)?;
        Session::new(&self.inner.http, &host, credentials).login().await
    }

    /// What the registry of `reference` knows of it. Tried once: whoever asks waits for the answer.
    pub async fn inspect(
        &self,
        reference: &Reference,
        credentials: &dyn CredentialSource,
    ) -> Result<Distribution, RegistryError> {
        let host = settings::registry_host(reference);
        let session = Session::new(&self.inner.http, &host, credentials);
        let limits = self.inner.store.limits();
        let Resolved { document, bytes, digest } = document::fetch(&session, reference, limits).await?;
        let platforms = match &document {
            Document::Index(index) => document::platforms(index),
            Document::Manifest { manifest, .. } => {
                let config = document::small_blob(&session, reference.path(), &manifest.config, limits).await?;
                document::platform_of_config(&config, limits)
            }
        };
        Ok(Distribution { media_type: document.media_type(), digest, size: bytes.len() as u64, platforms })
    }
}
