//! The image store of one host.
//!
//! ```text
//! index.json            names → manifests (an OCI index); what it does not list does not exist
//! blobs/sha256/<hex>    manifests, configurations, layers as they came; a configuration's
//!                       modification time says when a task last used the image
//! layers/<chain id>/    unpacked layers, shared between images, lower directories for overlayfs
//! empty/                stands in for the layers of an image that has none
//! tmp/                  content on its way in or out; emptied when the store is opened
//! ```
//!
//! A change is: new content is synced and renamed into place, `index.json` is replaced, what nothing
//! names any more is removed. A crash in between leaves content that nothing names, and the next
//! open removes it. What is in use without being named, or must not vanish meanwhile, is held by a
//! [`Lease`](super::lease::Lease).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use super::archive::Archive;
use super::catalog::{Catalog, MAX_INDEX_BYTES, Match, Origin, Record, blob_path, layer_path};
use super::config::{History, ImageConfig};
use super::digest::Digest;
use super::error::ImageError;
use super::ingest::{Ingest, PreparedImage, to_json};
use super::lease::Held;
use super::limits::Limits;
use super::pins::{PinTable, Pins};
use super::reference::Reference;
use super::unpack::is_opaque_root;
use crate::events::{EventKind, Events};
use crate::remove::{Scratch, remove_tree};

/// A directory with nothing in it.
const EMPTY: &str = "empty";

/// The id of an image: the digest of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub(crate) Digest);

impl ImageId {
    /// The first 12 hexadecimal digits, as Docker shows them.
    #[must_use]
    pub fn short(&self) -> String {
        let mut hex = self.0.hex();
        hex.truncate(12);
        hex
    }

    /// The 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.hex()
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for ImageId {
    type Err = super::digest::DigestError;

    fn from_str(text: &str) -> Result<ImageId, Self::Err> {
        text.parse().map(ImageId)
    }
}

/// An image, ready to be run.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its configuration.
    pub id: ImageId,
    /// Digest of its manifest, `sha256:<hex>`. The same on each host that loaded the same archive.
    pub manifest_digest: Option<String>,
    /// Its names.
    pub references: Vec<Reference>,
    /// Unpacked layers, lowest first: overlayfs's `lowerdir` in reverse. There is at least one: an
    /// image without layers has an empty directory.
    pub layers: Vec<PathBuf>,
    /// Bytes of the files in each of `layers`.
    pub layer_bytes: Vec<u64>,
    /// Digests of the layers' uncompressed tars, `sha256:<hex>`, lowest first.
    pub diff_ids: Vec<String>,
    /// How its containers start.
    pub config: ImageConfig,
    /// Sum of the sizes of all files in all layers, in bytes.
    pub size: u64,
    /// How it was made.
    pub history: Vec<History>,
}

/// A line of `docker images`.
#[derive(Debug, Clone)]
pub struct ImageSummary {
    /// Digest of its configuration.
    pub id: ImageId,
    /// Its names; none for an image whose name was given to another one.
    pub references: Vec<Reference>,
    /// Digest of its manifest, `sha256:<hex>`.
    pub manifest_digest: Option<String>,
    /// When it was made, in Unix seconds; 0 where it does not say.
    pub created: i64,
    /// Sum of the sizes of all files in all layers, in bytes. Layers that images share count for
    /// each; see [`ImageStore::layers_size`].
    pub size: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Why it is here.
    pub origin: Origin,
}

/// An image that [`ImageStore::load`] brought in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The names that the archive gave to it; they now name this image.
    pub references: Vec<Reference>,
    /// Its id.
    pub id: ImageId,
}

/// One effect of [`ImageStore::remove`], in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name is gone; its familiar form.
    Untagged(String),
    /// An image is gone; its id.
    Deleted(String),
}

/// The images of this host. A cheap handle; all calls block on the disk.
///
/// Nothing else may write to its directory; the daemon's lock on the data directory sees to that.
#[derive(Debug, Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) limits: Limits,
    /// What readers see: swapped whole once `index.json` is on disk.
    catalog: RwLock<Arc<Catalog>>,
    /// Held by whoever changes the store.
    writer: Mutex<()>,
    /// What running ingests and pulls count on.
    pub(super) pins: Mutex<PinTable>,
    /// What is held by leases.
    held: Mutex<Held>,
    /// Counts the changes of what this host can give to others: complete blobs, and names.
    changes: tokio::sync::watch::Sender<u64>,
    /// Where it is told what happens, once somebody wants to know.
    events: OnceLock<Events>,
}

impl ImageStore {
    /// Opens the store in `dir`, which is made if it is missing, and removes what a crash left.
    pub fn open(dir: impl Into<PathBuf>, limits: Limits) -> Result<ImageStore, ImageError> {
        let dir = dir.into();
        for sub in ["blobs/sha256", "layers", EMPTY] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(ImageError::io("create", &path))?;
        }
        private(&dir)?;
        let tmp = dir.join("tmp");
        match remove_tree(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::io("empty", &tmp)(error));
            }
            _ => {}
        }
        fs::create_dir(&tmp).map_err(ImageError::io("create", &tmp))?;
        let catalog = Catalog::read(&dir, &limits)?;
        let store = ImageStore {
            inner: Arc::new(Inner {
                dir,
                limits,
                catalog: RwLock::new(Arc::new(catalog)),
                writer: Mutex::new(()),
                pins: Mutex::default(),
                held: Mutex::default(),
                changes: tokio::sync::watch::Sender::new(0),
                events: OnceLock::new(),
            }),
        };
        let writer = store.inner.lock();
        let garbage = store.inner.collect(&writer)?;
        drop(writer);
        garbage.remove();
        Ok(store)
    }

    /// From now on (and for ever) it is told there what happens to images.
    pub fn tell_to(&self, events: Events) {
        let _ = self.inner.events.set(events);
    }

    /// Tells that an image has come here, piece by piece and not through [`Registries`](super::registry::Registries).
    pub fn tell_pulled(&self, name: &str, image: &Image) {
        self.inner.tell("pull", name, name, &image.config.labels);
    }

    /// What an archive or a registry may ask of this host.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Brings in all images of a `docker save` or OCI layout archive, which may be compressed with
    /// gzip or zstd as a whole. All of them or, on an error, none.
    pub fn load(&self, reader: impl Read) -> Result<Vec<Loaded>, ImageError> {
        let pins = Pins::new(&self.inner);
        let mut ingest = Ingest::new(&self.inner.tmp(), self.inner.limits.clone(), &pins)?;
        let limits = self.inner.limits.clone();
        let archive = Archive::spool(reader, ingest.dir(), &limits)?;
        let mut prepared = Vec::new();
        for image in archive.images()? {
            let what = format!("configuration {}", image.config.digest);
            let diff_ids = image.stored.diff_ids(&what)?;
            let (layers, descriptors) = ingest.add_layers(&image.layers, &diff_ids)?;
            ingest.add_blob(&image.config);
            let id = image.config.digest;
            let manifest = match &image.manifest {
                Some(file) => {
                    ingest.add_blob(file);
                    (file.digest, file.size)
                }
                None => ingest.write_manifest(&id, image.config.size, descriptors)?,
            };
            prepared.push(PreparedImage {
                id,
                stored: image.stored,
                manifest,
                layer_blobs: image.layers.iter().map(|(_, file)| file.digest).collect(),
                layers,
                // Content has its digest anyway; in the store, only tags are names.
                references: image.references.into_iter().filter(|name| name.digest().is_none()).collect(),
                indexes: Vec::new(),
                source_stamp: None,
                origin: Origin::User,
            });
        }
        self.inner.commit(&ingest, &prepared)?;
        Ok(prepared
            .into_iter()
            .map(|image| {
                tracing::info!(image.id = %image.id, names = %names(&image.references), "image loaded");
                let name = image.references.first().map_or_else(|| image.id.to_string(), Reference::to_string);
                self.inner.tell("load", image.id.to_string(), name, &image.stored.to_config().labels);
                Loaded { references: image.references, id: ImageId(image.id) }
            })
            .collect())
    }

    /// All images, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<ImageSummary> {
        let catalog = self.inner.catalog();
        let mut list: Vec<ImageSummary> = catalog.images.values().map(summary).collect();
        list.sort_by_key(|image| (std::cmp::Reverse(image.created), image.id));
        list
    }

    /// Bytes of all unpacked layers, each counted once however many images share it.
    #[must_use]
    pub fn layers_size(&self) -> u64 {
        self.inner.catalog().layers_size()
    }

    /// Of each image, the bytes in layers that another image of this host has as well.
    #[must_use]
    pub fn shared_sizes(&self) -> BTreeMap<ImageId, u64> {
        self.inner.catalog().shared_sizes().into_iter().map(|(id, bytes)| (ImageId(id), bytes)).collect()
    }

    /// Finds an image by name, `name:tag`, `name@digest`, digest, id, or the beginning of its id.
    /// A digest is that of the manifest or the id.
    pub fn resolve(&self, name: &str) -> Result<Image, ImageError> {
        let catalog = self.inner.catalog();
        let (record, _) = catalog.find(name)?;
        Ok(self.inner.image(record))
    }

    /// Whether this host has a manifest, configuration, or layer as it came, by its digest.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        blob_path(&self.inner.dir, digest).exists()
    }

    /// Opens a manifest, configuration, or layer as it came, with its length in bytes. What is in the
    /// store was verified when it came in. It can be read to its end also when its image is removed
    /// meanwhile. `None` where this host does not have it.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, ImageError> {
        let path = blob_path(&self.inner.dir, digest);
        match File::open(&path) {
            Ok(file) => {
                let bytes = file.metadata().map_err(ImageError::io("read", &path))?.len();
                Ok(Some((file, bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("open", &path)(error)),
        }
    }

    /// Gives another name to an image. An image that had the name loses it.
    pub fn tag(&self, source: &str, target: &Reference) -> Result<ImageId, ImageError> {
        target.require_no_digest()?;
        let writer = self.inner.lock();
        let mut catalog = (*self.inner.catalog()).clone();
        let record = catalog.find(source)?.0;
        let (id, labels) = (record.id, record.config.labels.clone());
        catalog.name(&id, target);
        // Who names an image wants to keep it.
        if let Some(record) = catalog.images.get_mut(&id) {
            record.origin = Origin::User;
        }
        self.inner.replace(&writer, catalog)?;
        self.inner.tell("tag", id.to_string(), target.to_string(), &labels);
        Ok(ImageId(id))
    }

    /// Keeps an image until somebody removes it, also if it came for a task.
    pub(crate) fn keep_for_user(&self, id: &ImageId) -> Result<(), ImageError> {
        let writer = self.inner.lock();
        let mut catalog = (*self.inner.catalog()).clone();
        match catalog.images.get_mut(&id.0) {
            Some(record) if record.origin == Origin::Task => record.origin = Origin::User,
            _ => return Ok(()),
        }
        self.inner.replace(&writer, catalog)
    }

    /// Takes a name from an image, and removes the image with its last one; or, given an id, removes
    /// the image with all of its names. Layers go with the last image that uses them.
    ///
    /// An image for which `in_use` holds is never removed. Its last name is taken only with `force`.
    /// Removal by id of an image with several repositories' names needs `force` too.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<Vec<Removed>, ImageError> {
        let writer = self.inner.lock();
        let mut catalog = (*self.inner.catalog()).clone();
        let (record, matched) = match catalog.find(name) {
            Ok(found) => found,
            Err(error) => {
                let unread = catalog.unread(name);
                if unread.is_empty() {
                    return Err(error);
                }
                // Which containers run on an image is only known by its id.
                if !force && unread.iter().any(|id| id.is_none_or(|id| in_use(&ImageId(id)))) {
                    return Err(ImageError::InUse { name: name.to_owned(), forceable: true });
                }
                catalog.forget_unread(name);
                self.inner.replace(&writer, catalog)?;
                let garbage = self.inner.collect(&writer)?;
                drop(writer);
                garbage.remove();
                tracing::info!(name, "an image that could not be read was removed");
                return Ok(vec![Removed::Deleted(name.to_owned())]);
            }
        };
        let (id, labels) = (record.id, record.config.labels.clone());
        // In this order: a lease that is let go of in between has left a container behind.
        let used = self.inner.held().has_image(&id) || in_use(&ImageId(id));
        let untagged: Vec<Reference> = match matched {
            Match::Reference(reference) => vec![reference],
            Match::Id => record.references.iter().cloned().collect(),
        };
        let last = untagged.len() == record.references.len();
        let by_name = untagged.len() == 1 && name.parse::<Reference>().as_ref() == Ok(&untagged[0]);
        if last && used && !(by_name && force) {
            return Err(ImageError::InUse { name: name.to_owned(), forceable: by_name });
        }
        if !by_name && !force && several_repositories(&untagged) {
            return Err(ImageError::ManyReferences { name: name.to_owned(), references: names(&untagged) });
        }
        let mut removed: Vec<Removed> =
            untagged.iter().map(|reference| Removed::Untagged(reference.to_string())).collect();
        if last && !used {
            catalog.images.remove(&id);
            removed.push(Removed::Deleted(id.to_string()));
        } else if let Some(record) = catalog.images.get_mut(&id) {
            record.references.retain(|reference| !untagged.contains(reference));
        }
        self.inner.replace(&writer, catalog)?;
        let garbage = self.inner.collect(&writer)?;
        drop(writer);
        garbage.remove();
        tracing::info!(image.id = %id, ?removed, "image removed");
        self.inner.tell_removed(&id.to_string(), &removed, &labels);
        Ok(removed)
    }
}

/// Names for a log line.
pub(crate) fn names(references: &[Reference]) -> String {
    references.iter().map(Reference::to_string).collect::<Vec<_>>().join(", ")
}

pub(crate) fn summary(image: &Record) -> ImageSummary {
    ImageSummary {
        id: ImageId(image.id),
        references: image.references.iter().cloned().collect(),
        manifest_digest: manifest_digest(image),
        created: image.config.created_unix(),
        size: image.size(),
        labels: image.config.labels.clone(),
        origin: image.origin,
    }
}

fn several_repositories(references: &[Reference]) -> bool {
    references.windows(2).any(|pair| !pair[0].same_repository(&pair[1]))
}

fn manifest_digest(record: &Record) -> Option<String> {
    record.manifests.first().map(|manifest| manifest.digest.to_string())
}

impl Inner {
    pub(crate) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// While this is held nothing enters the store, leaves it or gets another name.
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pins(&self) -> MutexGuard<'_, PinTable> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what has happened to an image, in Docker's words.
    pub(crate) fn tell(
        &self,
        action: &str,
        id: impl Into<String>,
        name: impl Into<String>,
        labels: &BTreeMap<String, String>,
    ) {
        if let Some(events) = self.events.get() {
            events.tell(EventKind::Image, action, id, &Arc::new(labels.clone()), vec![("name", name.into())]);
        }
    }

    pub(super) fn tell_removed(&self, id: &str, removed: &[Removed], labels: &BTreeMap<String, String>) {
        for one in removed {
            let action = match one {
                Removed::Untagged(_) => "untag",
                Removed::Deleted(_) => "delete",
            };
            self.tell(action, id, id, labels);
        }
    }

    /// What this host can give to others has changed.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn image(&self, record: &Record) -> Image {
        let mut layers: Vec<(PathBuf, u64)> = Vec::new();
        for layer in &record.layers {
            let path = layer_path(&self.dir, &layer.chain);
            if is_opaque_root(&path) {
                layers.clear();
            }
            layers.push((path, layer.bytes));
        }
        if layers.is_empty() {
            layers.push((self.dir.join(EMPTY), 0));
        }
        let (layers, layer_bytes) = layers.into_iter().unzip();
        Image {
            id: ImageId(record.id),
            manifest_digest: manifest_digest(record),
            references: record.references.iter().cloned().collect(),
            layers,
            layer_bytes,
            diff_ids: record.diff_ids.iter().map(Digest::to_string).collect(),
            config: record.config.clone(),
            size: record.size(),
            history: record.history.clone(),
        }
    }

    /// Takes over what the ingest holds for `images`.
    pub(crate) fn commit(&self, ingest: &Ingest<'_>, images: &[PreparedImage]) -> Result<(), ImageError> {
        // The whole file system, and with it what was put in place before the images that name it.
        ingest.sync()?;
        let writer = self.lock();
        let mut catalog = (*self.catalog()).clone();
        for image in images {
            catalog.insert(image)?;
        }
        let live = catalog.live();
        for (chain, (from, _)) in &ingest.layers {
            let to = layer_path(&self.dir, chain);
            if live.chains.contains(chain) && !to.exists() {
                fs::rename(from, &to).map_err(ImageError::io("rename", from))?;
            }
        }
        for (digest, from) in &ingest.blobs {
            let to = blob_path(&self.dir, digest);
            if live.blobs.contains(digest) && !to.exists() {
                fs::rename(from, &to).map_err(ImageError::io("rename", from))?;
            }
        }
        sync_dir(&self.dir.join("layers"))?;
        sync_dir(&self.dir.join("blobs/sha256"))?;
        let replaced = self.replace(&writer, catalog);
        if replaced.is_err() {
            // Nothing names what was just renamed into place.
            if let Ok(garbage) = self.collect(&writer) {
                garbage.remove();
            }
        }
        replaced
    }

    /// Makes `catalog` the truth, on disk first.
    pub(crate) fn replace(&self, _writer: &MutexGuard<'_, ()>, catalog: Catalog) -> Result<(), ImageError> {
        let path = self.dir.join("index.json");
        let new = self.tmp().join("index.json");
        let index = to_json(&catalog.to_index())?;
        if index.len() as u64 > MAX_INDEX_BYTES {
            return Err(ImageError::LimitExceeded {
                what: "the store's list of images and their names".to_owned(),
                limit: format!("{MAX_INDEX_BYTES} bytes"),
            });
        }
        let mut file = File::create(&new).map_err(ImageError::io("create", &new))?;
        file.write_all(&index).and_then(|()| file.sync_all()).map_err(ImageError::io("write", &new))?;
        fs::rename(&new, &path).map_err(ImageError::io("replace", &path))?;
        // The file is what counts from here on, also if the disk fails to promise that it stays.
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        self.changed();
        sync_dir(&self.dir)
    }

    /// Moves everything that no image names and nobody counts on out of sight.
    pub(super) fn collect(&self, _writer: &MutexGuard<'_, ()>) -> Result<Garbage, ImageError> {
        let catalog = self.catalog();
        let mut live = catalog.live();
        catalog.keep_unread(&mut live);
        self.pins().extend(&mut live);
        self.held().keep(&mut live);
        let tmp = self.tmp();
        let dir = Scratch::new(&tmp, "garbage-").map_err(ImageError::io("create a directory in", &tmp))?;
        for (sub, live) in [("blobs/sha256", &live.blobs), ("layers", &live.chains)] {
            let from = self.dir.join(sub);
            for entry in fs::read_dir(&from).map_err(ImageError::io("list", &from))? {
                let entry = entry.map_err(ImageError::io("list", &from))?;
                let digest = entry.file_name().to_str().and_then(Digest::from_hex);
                if digest.is_some_and(|digest| live.contains(&digest)) {
                    continue;
                }
                let to = dir.path().join(format!("{}-{}", sub.len(), entry.file_name().display()));
                fs::rename(entry.path(), &to).map_err(ImageError::io("remove", &entry.path()))?;
                tracing::debug!(path = %entry.path().display(), "unused image content removed");
            }
        }
        Ok(Garbage { dir })
    }
}

/// Content that is out of sight and takes time to remove.
#[must_use]
pub(super) struct Garbage {
    dir: Scratch,
}

impl Garbage {
    pub(super) fn remove(self) {
        // What stays is removed when the store is opened again.
        if let Err(error) = self.dir.close() {
            tracing::warn!(%error, "unused image content could not be removed");
        }
    }
}

/// Layers hold other systems' set-user-id programs; only root may look.
fn private(dir: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(ImageError::io("set the mode of", dir))
}

fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(ImageError::io("sync", path))
}
