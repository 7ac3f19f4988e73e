//! From an image in the store to a registry: layers that it does not have, the configuration, and then
//! the manifest, byte for byte as they came. What was pulled has the same digests when it is pushed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use hyper::header::{CONTENT_TYPE, LOCATION};
use hyper::{Method, StatusCode};
use tokio::sync::mpsc;

use super::super::catalog::Match;
use super::super::digest::Digest;
use super::super::error::ImageError;
use super::super::oci::{self, Manifest};
use super::super::reference::Reference;
use super::Registries;
use super::auth::CredentialSource;
use super::document::check_digest;
use super::error::RegistryError;
use super::http::{Answer, Payload};
use super::progress::{LayerStep, LayerTeller, Progress, Teller};
use super::pull::blocking;
use super::session::{Ask, Session};
use super::settings::registry_host;
use super::url::Url;

/// Other repositories of the registry that are offered as a place where it has a layer already.
const MAX_MOUNTS: usize = 3;

/// What a push has left at the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// An image on its way out.
struct Push<'a> {
    registries: &'a Registries,
    session: Session<'a>,
    repository: &'a str,
    /// Other repositories of the same registry that may have the same layers.
    siblings: Vec<String>,
    /// What a token must be good for: this repository, and reading the siblings.
    scope: String,
    teller: Teller,
}

impl Registries {
    /// Pushes the image of this name to the registry that the name says.
    pub async fn push(
        &self,
        reference: &Reference,
        credentials: &dyn CredentialSource,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Pushed, RegistryError> {
        let Some(tag) = reference.tag().filter(|_| reference.digest().is_none()) else {
            return Err(RegistryError::BadName { name: reference.to_string() });
        };
        let (store, name) = (self.inner.store.clone(), reference.clone());
        let (digest, siblings) = blocking(move || {
            let catalog = store.inner.catalog();
            let (record, found) = catalog.find(&name.canonical())?;
            if found == Match::Id {
                // A name that happens to begin an id is no name of that image.
                return Err(ImageError::NotFound { name: name.to_string() });
            }
            let manifest = record.manifests.first();
            let digest = manifest.map(|manifest| manifest.digest).ok_or_else(|| missing("its manifest"))?;
            let layers: BTreeSet<Digest> =
                record.manifests.iter().flat_map(|manifest| manifest.layer_blobs.iter().copied()).collect();
            let related = catalog.images.values().filter(|image| {
                image.manifests.iter().any(|manifest| manifest.layer_blobs.iter().any(|blob| layers.contains(blob)))
            });
            let siblings: BTreeSet<String> = related
                .flat_map(|image| &image.references)
                .filter(|other| other.domain() == name.domain() && other.path() != name.path())
                .map(|other| other.path().to_owned())
                .collect();
            Ok((digest, siblings.into_iter().take(MAX_MOUNTS).collect::<Vec<_>>()))
        })
        .await?;
        let mut scope = format!("repository:{}:pull,push", reference.path());
        for sibling in &siblings {
            scope.push_str(&format!(" repository:{sibling}:pull"));
        }
        let push = Push {
            registries: self,
            session: Session::new(&self.inner.http, &registry_host(reference), credentials),
            repository: reference.path(),
            siblings,
            scope,
            teller: Teller::new(progress),
        };
        let pushed = push.run(digest, tag).await?;
        let store = &self.inner.store;
        store.inner.tell("push", reference.to_string(), reference.familiar_name(), &BTreeMap::new());
        Ok(pushed)
    }
}

fn missing(what: &str) -> ImageError {
    ImageError::Missing { what: what.to_owned(), needed_by: "the image in this host's store".to_owned() }
}

impl Push<'_> {
    async fn run(&self, digest: Digest, tag: &str) -> Result<Pushed, RegistryError> {
        let bytes = self.document(digest).await?;
        let limits = self.registries.inner.store.limits();
        let manifest: Manifest = oci::parse(&bytes, &format!("manifest {digest}"), limits)?;
        self.teller.tell(Progress::Resolved(digest));
        let mut layers = Vec::new();
        let mut seen = BTreeSet::new();
        for layer in &manifest.layers {
            let digest = layer.parse_digest("the manifest")?;
            // An image may have the same layer twice.
            if seen.insert(digest) {
                let tell = self.teller.layer(&digest, layer.size);
                tell.step(LayerStep::Waiting);
                layers.push(self.layer(digest, tell));
            }
        }
        try_join_all(layers).await?;
        let config = manifest.config.parse_digest("the manifest")?;
        let tell = Teller::new(None).layer(&config, manifest.config.size);
        self.blob(config, tell).await?;
        self.manifest(&manifest, bytes.clone(), digest, tag).await?;
        Ok(Pushed { digest, size: bytes.len() as u64 })
    }

    async fn document(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        let store = self.registries.inner.store.clone();
        blocking(move || {
            let (file, _) = store.open_blob(&digest)?.ok_or_else(|| missing(&format!("manifest {digest}")))?;
            let most = store.limits().max_metadata_bytes;
            let mut content = Vec::new();
            file.take(most).read_to_end(&mut content).map_err(|error| ImageError::reading("the manifest", error))?;
            check_digest("the manifest", &digest, &Digest::of(&content))?;
            Ok(Bytes::from(content))
        })
        .await
    }

    async fn layer(&self, digest: Digest, tell: LayerTeller) -> Result<(), RegistryError> {
        let slot = self.registries.inner.slots.acquire().await;
        let _slot = slot.map_err(|_| RegistryError::Image(missing("the way to registries")))?;
        self.blob(digest, tell).await
    }

    /// Sends a blob, unless the registry has it.
    async fn blob(&self, digest: Digest, tell: LayerTeller) -> Result<(), RegistryError> {
        let what = format!("layer {digest}");
        let head = Ask::new(Method::HEAD, &what, &self.scope);
        match self.session.ask(&format!("/v2/{}/blobs/{digest}", self.repository), &head).await {
            Ok(_) => {
                tell.step(LayerStep::Exists);
                return Ok(());
            }
            Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        for sibling in &self.siblings {
            if self.mount(digest, sibling, &what).await? {
                tell.step(LayerStep::Mounted(sibling.clone()));
                return Ok(());
            }
        }
        let store = self.registries.inner.store.clone();
        let opened = blocking(move || store.open_blob(&digest)?.ok_or_else(|| missing(&format!("blob {digest}"))));
        let (file, size) = opened.await?;
        let file = Arc::new(file);
        let mut backoff = self.session.backoff();
        loop {
            match self.upload(digest, &file, size, &what, &tell).await {
                Ok(()) => break,
                // What a broken upload has left there, the registry removes.
                Err(error) => backoff.again(error).await?,
            }
        }
        tell.step(LayerStep::Done);
        Ok(())
    }

    /// Whether the registry takes the blob from another repository of its own.
    async fn mount(&self, digest: Digest, from: &str, what: &str) -> Result<bool, RegistryError> {
        let path = format!("/v2/{}/blobs/uploads/?mount={digest}&from={from}", self.repository);
        match self.session.once(&path, &Ask::new(Method::POST, what, &self.scope)).await {
            Ok(answer) if answer.status == StatusCode::CREATED => Ok(true),
            Ok(answer) => {
                // It began an upload instead; one without an offer follows.
                if let Some(url) = self.location(&answer, &path) {
                    let _ = self.session.at_url(url, &Ask::new(Method::DELETE, what, &self.scope)).await;
                }
                Ok(false)
            }
            Err(error @ RegistryError::Unauthorized { .. }) => Err(error),
            // The offer may be refused, or break, where an upload is not and does not.
            Err(error) => {
                tracing::debug!(%error, what, from, "a registry does not take a blob from another repository");
                Ok(false)
            }
        }
    }

    async fn upload(
        &self,
        digest: Digest,
        file: &Arc<File>,
        size: u64,
        what: &str,
        tell: &LayerTeller,
    ) -> Result<(), RegistryError> {
        let path = format!("/v2/{}/blobs/uploads/", self.repository);
        let begun = self.session.once(&path, &Ask::new(Method::POST, what, &self.scope)).await?;
        let url = self
            .location(&begun, &path)
            .ok_or_else(|| RegistryError::protocol(self.session.host(), "it does not say where to upload to"))?;
        let url = url.with_query("digest", &digest.to_string());
        tell.step(LayerStep::Moving { current: 0, total: size });
        let ask = Ask::new(Method::PUT, what, &self.scope)
            .header(CONTENT_TYPE, "application/octet-stream")
            .payload(Payload::File(Arc::clone(file), size));
        self.session.at_url(url, &ask).await?;
        tell.step(LayerStep::Moving { current: size, total: size });
        Ok(())
    }

    fn location(&self, answer: &Answer, path: &str) -> Option<Url> {
        let url = Url { origin: answer.origin.clone(), path: path.to_owned() };
        url.join(answer.header(LOCATION)?)
    }

    async fn manifest(
        &self,
        manifest: &Manifest,
        bytes: Bytes,
        digest: Digest,
        tag: &str,
    ) -> Result<(), RegistryError> {
        let what = format!("manifest {digest}");
        let media_type = manifest.media_type.as_deref().unwrap_or(oci::MANIFEST);
        let ask =
            Ask::new(Method::PUT, &what, &self.scope).header(CONTENT_TYPE, media_type).payload(Payload::Bytes(bytes));
        let answer = self.session.ask(&format!("/v2/{}/manifests/{tag}", self.repository), &ask).await?;
        let found = answer.header("docker-content-digest").and_then(|text| text.trim().parse::<Digest>().ok());
        if let Some(found) = found {
            check_digest("the manifest that the registry has taken", &digest, &found)?;
        }
        Ok(())
    }
}
