//! From a name to an image in the store.
//!
//! The manifest, the configuration and the layers are fetched, as far as they are not here. Layers are
//! unpacked while they come, several at a time; each goes into its place once it is verified and the
//! layers below it are there. The image shows when `index.json` names it, at the very end.

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::{mpsc, oneshot};

use super::super::catalog::{Origin, layer_path};
use super::super::config::StoredConfig;
use super::super::digest::{Digest, chain_id};
use super::super::error::ImageError;
use super::super::ingest::{Ingest, KnownLayers, Layer, PreparedImage};
use super::super::limits::{Budget, Limits};
use super::super::oci::{Descriptor, Manifest};
use super::super::pins::Pins;
use super::super::platform::ImagePlatform;
use super::super::reference::Reference;
use super::super::store::{Image, ImageId, names};
use super::auth::CredentialSource;
use super::backoff::Backoff;
use super::blobs::{Origins, PIECES_AHEAD, PieceReader, Wanted};
use super::document::{self, Document, Resolved, check_digest, check_layer, check_size, choose, parse_config};
use super::error::{RegistryError, RegistryErrorKind};
use super::flights::Claim;
use super::layer::{LayerJob, TakenLayer, Workspace};
use super::progress::{LayerStep, LayerTeller, Progress, Teller};
use super::session::Session;
use super::settings::registry_host;
use super::{Inner, Registries};
use crate::remove::Scratch;

/// What a pull has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image.
    pub id: ImageId,
    /// Digest of the manifest or index that the name leads to.
    pub digest: Digest,
    /// Whether the name led here to another image before, or to none.
    pub changed: bool,
}

impl Registries {
    /// Pulls an image and gives it its name, if that is a tag. `platform` is this host's unless one is
    /// given. Dropping the future gives up; nothing of the image stays then.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<ImagePlatform>,
        credentials: &dyn CredentialSource,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Pulled, RegistryError> {
        self.pull_for(Origin::User, reference, platform, credentials, progress).await
    }

    async fn pull_for(
        &self,
        origin: Origin,
        reference: &Reference,
        platform: Option<ImagePlatform>,
        credentials: &dyn CredentialSource,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Pulled, RegistryError> {
        let inner = &*self.inner;
        let mut sessions: Vec<Session<'_>> = inner
            .settings
            .mirrors_of(reference)
            .map(|mirror| Session::at(&inner.http, mirror.origin.clone()))
            .collect();
        sessions.push(Session::new(&inner.http, &registry_host(reference), credentials));
        let sources = inner.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let workspace = Held::new(inner).await?;
        let pull = Pull {
            inner,
            origin,
            reference,
            platform: platform.unwrap_or_else(ImagePlatform::host),
            origins: Origins { sources, sessions },
            teller: Teller::new(progress),
            workspace: workspace.get(),
        };
        let outcome = pull.run().await;
        workspace.close().await;
        if let Ok(pulled) = &outcome {
            let catalog = inner.store.inner.catalog();
            let labels = catalog.images.get(&pulled.id.0).map(|image| image.config.labels.clone()).unwrap_or_default();
            inner.store.inner.tell("pull", reference.to_string(), reference.familiar_name(), &labels);
        }
        outcome
    }

    /// The image of this name, pulled if it is not here. Callers that want the same image at the same
    /// time share one pull.
    pub async fn ensure(
        &self,
        reference: &Reference,
        credentials: &dyn CredentialSource,
    ) -> Result<Image, RegistryError> {
        let inner = &*self.inner;
        let turn = {
            let mut ensuring = inner.ensuring.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for any more.
            ensuring.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(ensuring.entry(reference.clone()).or_default())
        };
        let _turn = turn.lock().await;
        match self.resolve(reference.canonical()).await {
            Err(error) if error.kind() == RegistryErrorKind::NotFound => {}
            found => return found,
        }
        let pulled = self.pull_for(Origin::Task, reference, None, credentials, None).await?;
        self.resolve(pulled.id.to_string()).await
    }

    async fn resolve(&self, name: String) -> Result<Image, RegistryError> {
        let store = self.inner.store.clone();
        blocking(move || store.resolve(&name)).await
    }
}

/// Runs something where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(RegistryError::Thread)?;
    done.map_err(RegistryError::Image)
}

/// A workspace that goes where it may block, whenever the pull ends or is given up.
struct Held(Option<Arc<Workspace>>);

impl Held {
    async fn new(inner: &Inner) -> Result<Held, RegistryError> {
        let store = inner.store.clone();
        let workspace = blocking(move || {
            let tmp = store.inner.tmp();
            let dir = Scratch::new(&tmp, "pull-").map_err(ImageError::io("create a directory in", &tmp))?;
            let budget = Budget::new(store.inner.limits.clone());
            Ok(Workspace { dir, pins: Pins::new(&store.inner), budget })
        });
        Ok(Held(Some(Arc::new(workspace.await?))))
    }

    fn get(&self) -> Arc<Workspace> {
        match &self.0 {
            Some(workspace) => Arc::clone(workspace),
            None => unreachable!("it is taken only when it is dropped"),
        }
    }
}

impl Held {
    /// Returns when it is gone, unless a thread of a pull that failed has not noticed yet.
    async fn close(mut self) {
        let workspace = self.0.take();
        // What is not done of it, the next opening of the store does.
        let _ = tokio::task::spawn_blocking(move || drop(workspace)).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(workspace), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            // The pull was given up: nobody waits for it.
            drop(runtime.spawn_blocking(move || drop(workspace)));
        }
    }
}

/// One layer of the image that is pulled.
#[derive(Debug)]
struct PlannedLayer {
    digest: Digest,
    size: u64,
    diff: Digest,
    chain: Digest,
}

/// What of the image is known before its layers come.
struct Plan {
    /// What the name leads to.
    top: Digest,
    index: Option<Bytes>,
    manifest: Bytes,
    config: Bytes,
    config_digest: Digest,
    stored: StoredConfig,
    layers: Vec<PlannedLayer>,
}

struct Pull<'a> {
    inner: &'a Inner,
    /// Why it is pulled.
    origin: Origin,
    reference: &'a Reference,
    platform: ImagePlatform,
    origins: Origins<'a>,
    teller: Teller,
    workspace: Arc<Workspace>,
}

impl Pull<'_> {
    async fn run(mut self) -> Result<Pulled, RegistryError> {
        let plan = self.plan().await?;
        let id = ImageId(plan.config_digest);
        if self.is_here(&plan) {
            if self.origin == Origin::User {
                // It may have come for a task: from now on it stays until somebody removes it.
                let store = self.inner.store.clone();
                blocking(move || store.keep_for_user(&id)).await?;
            }
            return Ok(Pulled { id, digest: plan.top, changed: false });
        }
        self.stage(&plan).await?;
        let mut before = None;
        let mut layers = Vec::new();
        for (nth, layer) in plan.layers.iter().enumerate() {
            let tell = self.teller.layer(&layer.digest, layer.size);
            tell.step(LayerStep::Waiting);
            let (done, next) = oneshot::channel();
            let turn = Turn { before: before.replace(next), done };
            layers.push(self.layer(&plan, nth, turn, tell));
        }
        let layers = try_join_all(layers).await?;
        let digest = plan.top;
        self.commit(plan, layers).await?;
        Ok(Pulled { id, digest, changed: true })
    }

    /// Whether there is nothing to do at all.
    fn is_here(&self, plan: &Plan) -> bool {
        let catalog = self.inner.store.inner.catalog();
        let Some(record) = catalog.images.get(&plan.config_digest) else { return false };
        let manifest = Digest::of(&plan.manifest);
        record.manifests.iter().any(|known| known.digest == manifest)
            && (plan.index.is_none() || record.indexes.contains(&plan.top))
            && (self.reference.digest().is_some() || record.references.contains(self.reference))
    }

    fn limits(&self) -> &Limits {
        &self.workspace.budget.limits
    }

    /// Fetches the documents and sees what they ask for.
    async fn plan(&mut self) -> Result<Plan, RegistryError> {
        let first = self.resolve().await?;
        self.teller.tell(Progress::Resolved(first.digest));
        let top = first.digest;
        let (index, resolved) = match &first.document {
            Document::Manifest { .. } => (None, first),
            Document::Index(index) => {
                let entry = choose(index, &self.platform)?;
                let resolved = self.entry(entry).await?;
                (Some(first.bytes), resolved)
            }
        };
        let Document::Manifest { manifest, .. } = resolved.document else {
            return Err(RegistryError::MediaType {
                what: format!("manifest {}", resolved.digest),
                media_type: resolved.document.media_type(),
                reason: "an index in an index is not supported",
            });
        };
        for layer in &manifest.layers {
            check_layer(layer, self.limits())?;
        }
        let config = self.config(&manifest).await?;
        let stored = parse_config(&manifest, &config, self.limits())?;
        let config_digest = manifest.config.parse_digest("the manifest")?;
        let diffs = stored.diff_ids(&format!("configuration {config_digest}"))?;
        let mut layers: Vec<PlannedLayer> = Vec::new();
        for (layer, diff) in manifest.layers.iter().zip(diffs) {
            let digest = layer.parse_digest("the manifest")?;
            let chain = chain_id(layers.last().map(|layer| &layer.chain), &diff);
            layers.push(PlannedLayer { digest, size: layer.size, diff, chain });
        }
        Ok(Plan { top, index, manifest: resolved.bytes, config, config_digest, stored, layers })
    }

    /// Lets other hosts have the documents, so that they can take each layer as soon as it is here.
    async fn stage(&self, plan: &Plan) -> Result<(), RegistryError> {
        let workspace = Arc::clone(&self.workspace);
        let documents: Vec<Bytes> =
            [Some(&plan.manifest), Some(&plan.config), plan.index.as_ref()].into_iter().flatten().cloned().collect();
        blocking(move || {
            documents.iter().enumerate().try_for_each(|(nth, document)| {
                let path = workspace.dir.path().join(format!("document-{nth}"));
                std::fs::write(&path, document).map_err(ImageError::io("write", &path))?;
                workspace.pins.stage_document(&path, Digest::of(document))
            })
        })
        .await
    }

    /// What the name leads to: a digest is looked for everywhere, a tag only at registries.
    async fn resolve(&mut self) -> Result<Resolved, RegistryError> {
        let wanted = self.reference.digest().and_then(|digest| digest.parse::<Digest>().ok());
        if let Some(digest) = wanted
            && let Some(resolved) = self.document_nearby(digest, None).await?
        {
            return Ok(resolved);
        }
        let mut rounds = Rounds::default();
        loop {
            let session = rounds.session(&self.origins);
            match document::fetch(session, self.reference, self.limits()).await {
                Ok(resolved) => {
                    rounds.prefer(&mut self.origins);
                    return Ok(resolved);
                }
                Err(error) => rounds.failed(&self.origins, error).await?,
            }
        }
    }

    async fn entry(&self, entry: &Descriptor) -> Result<Resolved, RegistryError> {
        let digest = entry.parse_digest("the index")?;
        if let Some(resolved) = self.document_nearby(digest, Some(entry.size)).await? {
            return Ok(resolved);
        }
        let mut rounds = Rounds::default();
        loop {
            let session = rounds.session(&self.origins);
            match document::fetch_entry(session, self.reference.path(), entry, self.limits()).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => rounds.failed(&self.origins, error).await?,
            }
        }
    }

    async fn config(&self, manifest: &Manifest) -> Result<Bytes, RegistryError> {
        let descriptor = &manifest.config;
        let digest = descriptor.parse_digest("the manifest")?;
        if descriptor.size > self.limits().max_metadata_bytes {
            return Err(RegistryError::Image(ImageError::LimitExceeded {
                what: format!("configuration {digest}"),
                limit: format!("{} bytes", self.limits().max_metadata_bytes),
            }));
        }
        if let Some(bytes) = self.nearby(digest, Some(descriptor.size)).await? {
            return Ok(bytes);
        }
        let mut rounds = Rounds::default();
        loop {
            let session = rounds.session(&self.origins);
            match document::small_blob(session, self.reference.path(), descriptor, self.limits()).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => rounds.failed(&self.origins, error).await?,
            }
        }
    }

    /// A document that this host or a source has.
    async fn document_nearby(&self, digest: Digest, size: Option<u64>) -> Result<Option<Resolved>, RegistryError> {
        let Some(bytes) = self.nearby(digest, size).await? else { return Ok(None) };
        let document = Document::parse(&bytes, "", &format!("manifest {digest}"), self.limits())?;
        Ok(Some(Resolved { document, bytes, digest }))
    }

    /// Small content that this host or a source has.
    async fn nearby(&self, digest: Digest, size: Option<u64>) -> Result<Option<Bytes>, RegistryError> {
        let (store, most) = (self.inner.store.clone(), self.limits().max_metadata_bytes);
        let here = blocking(move || {
            let Some((file, bytes)) = store.open_blob(&digest)? else { return Ok(None) };
            let mut content = Vec::new();
            if bytes <= most {
                let what = format!("blob {digest}");
                file.take(most).read_to_end(&mut content).map_err(|error| ImageError::reading(&what, error))?;
            }
            Ok(Some(content).filter(|content| Digest::of(content) == digest))
        });
        let found = match here.await? {
            Some(content) => Some(Bytes::from(content)),
            None => self.origins.small_from_sources(&digest, size, most).await,
        };
        if let (Some(found), Some(size)) = (&found, size) {
            check_size(&format!("blob {digest}"), size, found.len() as u64)?;
        }
        Ok(found)
    }

    /// Brings one layer into its place, behind those below it.
    async fn layer(&self, plan: &Plan, nth: usize, turn: Turn, mut tell: LayerTeller) -> Result<Layer, RegistryError> {
        let layer = &plan.layers[nth];
        let here = |bytes| Layer { chain: layer.chain, bytes };
        let flight = loop {
            if let Some(bytes) = self.known(layer).await? {
                tell.step(LayerStep::Exists);
                turn.done();
                return Ok(here(bytes));
            }
            match self.inner.flights.claim(layer.chain) {
                Claim::Ours(flight) => break flight,
                // It fails when the other pull has ended with this layer, well or not.
                Claim::Theirs(mut other) => drop(other.changed().await),
            }
        };
        // Between the look and the claim, another pull may have brought it.
        if let Some(bytes) = self.known(layer).await? {
            tell.step(LayerStep::Exists);
            turn.done();
            return Ok(here(bytes));
        }
        let workspace = Arc::clone(&self.workspace);
        let (chain, digest, diff) = (layer.chain, layer.digest, layer.diff);
        let there = blocking(move || Ok(workspace.pins.layer(&chain).map(|(_, bytes)| bytes))).await?;
        let name = format!("layer {digest}");
        let taken = {
            let _slot = self.inner.slots.acquire().await.map_err(|_| closing(&name))?;
            self.take(layer, nth, there.is_none(), &mut tell).await?
        };
        tell.step(LayerStep::Verified);
        let done = turn.wait(&name).await?;
        let lowers = self.lowers(plan, nth);
        let workspace = Arc::clone(&self.workspace);
        let bytes = blocking(move || {
            let mut settled = None;
            if let Some((path, bytes, unsettled)) = taken.layer {
                unsettled.settle(&path, &name, &lowers)?;
                settled = Some((path, bytes));
            }
            let blob = taken.blob.as_ref().map(|path| (path.as_path(), digest, diff));
            let layer = settled.as_ref().map(|(path, bytes)| (path.as_path(), *bytes));
            workspace.pins.stage(&chain, layer, blob)?;
            Ok(settled.map(|(_, bytes)| bytes))
        });
        let bytes = bytes.await?.or(there).unwrap_or_default();
        drop(flight);
        tell.step(LayerStep::Done);
        done.done();
        Ok(here(bytes))
    }

    /// The size of a layer whose directory and blob are here, both of which then stay.
    async fn known(&self, layer: &PlannedLayer) -> Result<Option<u64>, RegistryError> {
        let workspace = Arc::clone(&self.workspace);
        let (chain, digest, diff) = (layer.chain, layer.digest, layer.diff);
        blocking(move || {
            let Some(Some(unpacked)) = workspace.pins.blob(&digest) else { return Ok(None) };
            check_digest(&format!("layer {digest} (unpacked)"), &diff, &unpacked)?;
            Ok(workspace.pins.layer(&chain).map(|(_, bytes)| bytes))
        })
        .await
    }

    /// Where the layers below are, once their turn is over.
    fn lowers(&self, plan: &Plan, nth: usize) -> Vec<PathBuf> {
        plan.layers[..nth].iter().map(|layer| layer_path(&self.inner.store.inner.dir, &layer.chain)).collect()
    }

    /// Reads a layer through, out of the store's own blob where there is one.
    async fn take(
        &self,
        layer: &PlannedLayer,
        nth: usize,
        unpack: bool,
        tell: &mut LayerTeller,
    ) -> Result<TakenLayer, RegistryError> {
        let job = |keep_blob, nth| LayerJob {
            workspace: Arc::clone(&self.workspace),
            name: format!("layer {}", layer.digest),
            digest: layer.digest,
            size: layer.size,
            diff: layer.diff,
            keep_blob,
            unpack,
            nth,
        };
        let (workspace, digest, store) = (Arc::clone(&self.workspace), layer.digest, self.inner.store.clone());
        let own = blocking(move || match workspace.pins.blob(&digest) {
            Some(_) => Ok(store.open_blob(&digest)?.map(|(file, _)| file)),
            None => Ok(None),
        });
        if let Some(file) = own.await? {
            let job = job(false, nth);
            return blocking(move || job.run(file)).await;
        }
        let wanted = Wanted {
            repository: self.reference.path(),
            digest: layer.digest,
            size: layer.size,
            what: format!("layer {}", layer.digest),
        };
        // The second try, after a source that lied, has files of its own.
        let count = self.inner.store.inner.limits.max_layers;
        for (with_sources, nth) in [(true, nth), (false, nth + count)] {
            let (to, pieces) = mpsc::channel(PIECES_AHEAD);
            let job = job(true, nth);
            let unpacking = blocking(move || job.run(PieceReader::new(pieces)));
            let (fetched, unpacked) = tokio::join!(self.origins.stream(&wanted, with_sources, to, tell), unpacking);
            match (fetched, unpacked) {
                (Ok(_), Ok(taken)) => return Ok(taken),
                (Ok(true), Err(error))
                    if with_sources && !matches!(error, RegistryError::Image(ImageError::Io { .. })) =>
                {
                    tracing::warn!(digest = %layer.digest, %error, "a layer that other hosts sent is fetched again");
                }
                (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
            }
        }
        unreachable!("without sources, the first failure is the last")
    }

    /// Makes the image show.
    async fn commit(self, plan: Plan, layers: Vec<Layer>) -> Result<(), RegistryError> {
        let store = self.inner.store.clone();
        let (workspace, origin) = (Arc::clone(&self.workspace), self.origin);
        let references: Vec<Reference> = match self.reference.digest() {
            // Content has its digest anyway; in the store, only tags are names.
            Some(_) => Vec::new(),
            None => vec![self.reference.clone()],
        };
        blocking(move || {
            let mut ingest = Ingest::new(&store.inner.tmp(), store.inner.limits.clone(), &workspace.pins)?;
            ingest.write_blob(&plan.config)?;
            let manifest = ingest.write_blob(&plan.manifest)?;
            let mut indexes = Vec::new();
            if let Some(index) = &plan.index {
                indexes.push(ingest.write_blob(index)?.0);
            }
            let image = PreparedImage {
                id: plan.config_digest,
                stored: plan.stored,
                manifest,
                layer_blobs: plan.layers.iter().map(|layer| layer.digest).collect(),
                layers,
                references,
                indexes,
                source_stamp: None,
                origin,
            };
            store.inner.commit(&ingest, std::slice::from_ref(&image))?;
            tracing::info!(image.id = %image.id, names = %names(&image.references), "image pulled");
            Ok(())
        })
        .await
    }
}

/// One registry after the other: each mirror once, the registry itself until it makes no sense any more.
#[derive(Default)]
struct Rounds {
    nth: usize,
    backoff: Option<Backoff>,
}

impl Rounds {
    fn session<'o, 'a>(&self, origins: &'o Origins<'a>) -> &'o Session<'a> {
        &origins.sessions[self.nth]
    }

    /// Goes to the next registry, or waits for another try of the last.
    async fn failed(&mut self, origins: &Origins<'_>, error: RegistryError) -> Result<(), RegistryError> {
        let session = self.session(origins);
        if self.nth + 1 < origins.sessions.len() {
            tracing::info!(registry = session.host(), %error, "a mirror does not help; asking the next registry");
            self.nth += 1;
            return Ok(());
        }
        self.backoff.get_or_insert_with(|| session.backoff()).again(error).await
    }

    /// Whoever knows the name has the content too, most likely.
    fn prefer(self, origins: &mut Origins<'_>) {
        if self.nth + 1 == origins.sessions.len() {
            // No mirror knows the name: they are not asked for its content either.
            origins.sessions.drain(..self.nth);
        } else {
            origins.sessions[..=self.nth].rotate_right(1);
        }
    }
}

fn closing(name: &str) -> RegistryError {
    RegistryError::Image(ImageError::malformed(name, "the pull was given up"))
}

/// A layer's place in the order: the ones below first.
struct Turn {
    before: Option<oneshot::Receiver<()>>,
    done: oneshot::Sender<()>,
}

impl Turn {
    /// Returns once the layers below are in their places.
    async fn wait(self, name: &str) -> Result<Turn, RegistryError> {
        if let Some(before) = self.before {
            // The layer that failed tells why itself.
            before.await.map_err(|_| closing(name))?;
        }
        Ok(Turn { before: None, done: self.done })
    }

    /// The layer is in its place.
    fn done(self) {
        // Nobody waits behind the topmost.
        let _ = self.done.send(());
    }
}
