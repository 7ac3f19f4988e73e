//! What must not vanish although no image names it, or somebody removes the image that does: the
//! content of a starting task, of an image on its way in or out, of a transfer to another host.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use super::archive::{SpooledFile, check_types};
use super::catalog::{Origin, Record, blob_path, read_blob};
use super::config::StoredConfig;
use super::digest::{Digest, HashWriter};
use super::error::ImageError;
use super::ingest::{Ingest, Live, PreparedImage};
use super::oci::{Index, Manifest};
use super::pins::Pins;
use super::platform::{self, ImagePlatform};
use super::reference::Reference;
use super::store::{Image, ImageStore, Inner};

/// Counts of what is held, by digest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    images: BTreeMap<Digest, usize>,
    blobs: BTreeMap<Digest, usize>,
    chains: BTreeMap<Digest, usize>,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.images.is_empty() && self.blobs.is_empty() && self.chains.is_empty()
    }

    pub(crate) fn add_chain(&mut self, chain: Digest) {
        *self.chains.entry(chain).or_default() += 1;
    }

    pub(crate) fn add_blob(&mut self, blob: Digest) {
        *self.blobs.entry(blob).or_default() += 1;
    }

    fn add_image(&mut self, image: &Record) {
        *self.images.entry(image.id).or_default() += 1;
        self.add_blob(image.id);
        for manifest in &image.manifests {
            self.add_blob(manifest.digest);
            manifest.layer_blobs.iter().for_each(|blob| self.add_blob(*blob));
        }
        image.layers.iter().for_each(|layer| self.add_chain(layer.chain));
    }

    pub(crate) fn has_image(&self, id: &Digest) -> bool {
        self.images.contains_key(id)
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.blobs.keys()
    }

    pub(crate) fn chains(&self) -> impl Iterator<Item = &Digest> {
        self.chains.keys()
    }

    pub(crate) fn keep(&self, live: &mut Live) {
        live.blobs.extend(self.blobs.keys());
        live.chains.extend(self.chains.keys());
    }

    pub(crate) fn subtract(&mut self, other: &Held) {
        let pairs =
            [(&mut self.images, &other.images), (&mut self.blobs, &other.blobs), (&mut self.chains, &other.chains)];
        for (held, gone) in pairs {
            for (digest, times) in gone {
                if let Some(count) = held.get_mut(digest) {
                    *count = count.saturating_sub(*times);
                    if *count == 0 {
                        held.remove(digest);
                    }
                }
            }
        }
    }
}

impl ImageStore {
    /// A lease on nothing yet.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease { inner: Arc::clone(&self.inner), held: Mutex::default() }
    }

    /// All blobs that this host can give to others: those of its images, and those that are complete
    /// of images on their way in.
    #[must_use]
    pub fn blobs(&self) -> std::collections::BTreeSet<Digest> {
        let mut live = self.inner.catalog().live();
        self.inner.pins().extend(&mut live);
        self.inner.held().keep(&mut live);
        live.blobs
    }

    /// Names of this host's images, each with the digest of the manifest that it stands for.
    #[must_use]
    pub fn named(&self) -> BTreeMap<Reference, Digest> {
        let catalog = self.inner.catalog();
        let mut named = BTreeMap::new();
        for image in catalog.images.values() {
            if let Some(manifest) = image.manifests.first() {
                named.extend(image.references.iter().map(|name| (name.clone(), manifest.digest)));
            }
        }
        named
    }

    /// A number that grows whenever [`ImageStore::blobs`] or [`ImageStore::named`] may have changed.
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.changes()
    }
}

/// Keeps content in the store until it is dropped. What nothing else keeps is removed then.
#[derive(Debug)]
pub struct Lease {
    inner: Arc<Inner>,
    held: Mutex<Held>,
}

impl Lease {
    /// Finds an image as [`ImageStore::resolve`] does, and holds it: it can neither be removed nor
    /// collected. Its time of last use is now.
    ///
    /// # Errors
    /// As [`ImageStore::resolve`].
    pub fn image(&self, name: &str) -> Result<Image, ImageError> {
        // Under the writer's lock: between the look and the hold nothing is removed.
        let _writer = self.inner.lock();
        let catalog = self.inner.catalog();
        let (record, _) = catalog.find(name)?;
        self.hold(|held| held.add_image(record));
        self.inner.touch(&record.id);
        Ok(self.inner.image(record))
    }

    /// Holds a blob, if this host has all of it.
    #[must_use]
    pub fn hold_blob(&self, digest: &Digest) -> bool {
        let _writer = self.inner.lock();
        let there = blob_path(&self.inner.dir, digest).exists();
        if there {
            self.hold(|held| held.add_blob(*digest));
        }
        there
    }

    fn hold(&self, add: impl Fn(&mut Held)) {
        add(&mut self.inner.held());
        add(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Begins a blob that the store does not have. `limit` is the most bytes that it may have.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn writer(&self, digest: Digest, limit: u64) -> Result<BlobWriter, ImageError> {
        let tmp = self.inner.tmp();
        let file = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(&tmp)
            .map_err(ImageError::io("create a file in", &tmp))?;
        let (file, path) = file.into_parts();
        Ok(BlobWriter { digest, limit, path, hash: HashWriter::new(file), written: 0 })
    }

    /// Takes a written blob into the store, where the lease holds it and other hosts can have it.
    ///
    /// # Errors
    /// [`ImageError::DigestMismatch`]; [`ImageError::Io`]. Nothing of the blob is left then.
    ///
    /// A power failure may leave it damaged: nothing names it yet, so the next opening removes it. Before an image
    /// does, all is synced.
    pub fn keep(&self, writer: BlobWriter) -> Result<(), ImageError> {
        let BlobWriter { digest, path, hash, .. } = writer;
        let (_, actual, _) = hash.finish();
        if actual != digest {
            return Err(ImageError::DigestMismatch {
                what: format!("blob {digest}"),
                expected: digest.to_string(),
                actual: actual.to_string(),
            });
        }
        let to = blob_path(&self.inner.dir, &digest);
        let _writer = self.inner.lock();
        if !to.exists() {
            path.persist(&to).map_err(|error| ImageError::io("rename", &to)(error.error))?;
        }
        self.hold(|held| held.add_blob(digest));
        self.inner.changed();
        Ok(())
    }

    /// The blobs that an image needs beside its manifest, which the store has: configuration first,
    /// then layers, lowest first, each with its stated length.
    ///
    /// # Errors
    /// When there is no such manifest here, it makes no sense, or what it names is too large or no layer.
    pub fn wanted_by(&self, manifest: &Digest) -> Result<Vec<(Digest, u64)>, ImageError> {
        let what = format!("manifest {manifest}");
        let document = self.manifest(manifest)?;
        check_types(&document, &what)?;
        let limits = &self.inner.limits;
        let sized = document.layers.iter().map(|layer| (layer, limits.max_archive_bytes));
        for (part, most) in sized.chain([(&document.config, limits.max_metadata_bytes)]) {
            if part.size > most {
                return Err(ImageError::LimitExceeded {
                    what: format!("a part of {what}, of {} bytes,", part.size),
                    limit: format!("{most} bytes"),
                });
            }
        }
        let all = std::iter::once(&document.config).chain(&document.layers);
        all.map(|descriptor| Ok((descriptor.parse_digest(&what)?, descriptor.size))).collect()
    }

    /// Where an index, which the store has, leads to on this host: a manifest's digest and stated
    /// length. `None` where it is a manifest itself.
    ///
    /// # Errors
    /// When there is no such document here, it makes no sense, or none of what it lists runs here.
    pub fn entry(&self, digest: &Digest) -> Result<Option<(Digest, u64)>, ImageError> {
        // A manifest has no list of manifests.
        let index: Index = read_blob(&self.inner.dir, digest, &self.inner.limits)?;
        if index.manifests.is_empty() {
            return Ok(None);
        }
        let here = ImagePlatform::host();
        match platform::choose(&index, &here) {
            Some(entry) => Ok(Some((entry.parse_digest(&format!("index {digest}"))?, entry.size))),
            None => {
                let found = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
                let found: Vec<String> = found.map(|p| format!("{}/{}", p.os, p.architecture)).take(50).collect();
                Err(ImageError::NoPlatform { wanted: here.to_string(), found: found.join(", ") })
            }
        }
    }

    fn manifest(&self, digest: &Digest) -> Result<Manifest, ImageError> {
        let limits = &self.inner.limits;
        let manifest: Manifest = read_blob(&self.inner.dir, digest, limits)?;
        if manifest.layers.len() > limits.max_layers {
            return Err(ImageError::LimitExceeded {
                what: format!("the number of layers of manifest {digest}"),
                limit: format!("{} layers", limits.max_layers),
            });
        }
        Ok(manifest)
    }

    /// Makes an image of a manifest and the blobs that it wants, all of which this lease holds;
    /// unpacks the layers that are not there yet, and holds the image. It is found by the digest of the
    /// `index` that led to it as well.
    ///
    /// # Errors
    /// When something is missing, or not what the manifest and the configuration say. The blobs stay
    /// as long as the lease.
    pub fn assemble(&self, digest: &Digest, index: Option<Digest>, origin: Origin) -> Result<Image, ImageError> {
        let inner = &*self.inner;
        let what = format!("manifest {digest}");
        let manifest = self.manifest(digest)?;
        let blob = |descriptor: &super::oci::Descriptor| -> Result<SpooledFile, ImageError> {
            let digest = descriptor.parse_digest(&what)?;
            let path = blob_path(&inner.dir, &digest);
            let Ok(found) = path.metadata() else {
                return Err(ImageError::Missing { what: format!("blob {digest}"), needed_by: what.clone() });
            };
            if found.len() != descriptor.size {
                return Err(ImageError::SizeMismatch {
                    what: format!("blob {digest}"),
                    expected: descriptor.size,
                    actual: found.len(),
                });
            }
            Ok(SpooledFile { path, digest, size: descriptor.size })
        };
        let config = blob(&manifest.config)?;
        if config.size > inner.limits.max_metadata_bytes {
            return Err(ImageError::LimitExceeded {
                what: format!("configuration {}, a metadata file of {} bytes,", config.digest, config.size),
                limit: format!("{} bytes", inner.limits.max_metadata_bytes),
            });
        }
        let stored: StoredConfig = read_blob(&inner.dir, &config.digest, &inner.limits)?;
        stored.check(&format!("configuration {}", config.digest))?;
        let diff_ids = stored.diff_ids(&format!("configuration {}", config.digest))?;
        if diff_ids.len() != manifest.layers.len() {
            let reason = format!("it states {} layers, the manifest {}", diff_ids.len(), manifest.layers.len());
            return Err(ImageError::malformed(format!("configuration {}", config.digest), reason));
        }
        let layers: Vec<(String, SpooledFile)> = manifest
            .layers
            .iter()
            .map(|layer| blob(layer).map(|file| (format!("layer {}", file.digest), file)))
            .collect::<Result<_, _>>()?;
        let pins = Pins::new(&self.inner);
        let mut ingest = Ingest::new(&inner.tmp(), inner.limits.clone(), &pins)?;
        let (unpacked, _) = ingest.add_layers(&layers, &diff_ids)?;
        let manifest_path = blob_path(&inner.dir, digest);
        let manifest_size = manifest_path.metadata().map_err(ImageError::io("read", &manifest_path))?.len();
        let image = PreparedImage {
            id: config.digest,
            stored,
            manifest: (*digest, manifest_size),
            layer_blobs: layers.iter().map(|(_, file)| file.digest).collect(),
            layers: unpacked,
            references: Vec::new(),
            indexes: index.into_iter().collect(),
            source_stamp: None,
            origin,
        };
        inner.commit(&ingest, std::slice::from_ref(&image))?;
        tracing::info!(image.id = %image.id, "image assembled");
        self.image(&image.id.to_string())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let held = std::mem::take(self.held.get_mut().unwrap_or_else(PoisonError::into_inner));
        for image in held.images.keys() {
            self.inner.touch(image);
        }
        self.inner.let_go(&held);
    }
}

impl Inner {
    /// Lets go of what was held. What only that kept goes too.
    fn let_go(&self, held: &Held) {
        if held.is_empty() {
            return;
        }
        let writer = self.lock();
        self.held().subtract(held);
        let live = self.catalog().live();
        if held.blobs().all(|blob| live.blobs.contains(blob)) && held.chains().all(|c| live.chains.contains(c)) {
            return;
        }
        match self.collect(&writer) {
            Ok(garbage) => {
                drop(writer);
                self.changed();
                garbage.remove();
            }
            Err(error) => tracing::warn!(%error, "unused image content stays until the next removal"),
        }
    }
}

/// A blob that is being written. Dropped, nothing of it is left; a crash leaves it in `tmp/`, which
/// the next opening of the store empties.
pub struct BlobWriter {
    digest: Digest,
    limit: u64,
    path: tempfile::TempPath,
    hash: HashWriter<File>,
    written: u64,
}

impl std::fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlobWriter({}, {} bytes)", self.digest, self.written)
    }
}

impl BlobWriter {
    /// How many bytes were written, which is where the next piece belongs.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// [`ImageError::LimitExceeded`] when the blob has more bytes than it may; [`ImageError::Io`].
    /// Nothing more can be written then.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), ImageError> {
        let written = self.written.saturating_add(piece.len() as u64);
        if written > self.limit {
            return Err(ImageError::LimitExceeded {
                what: format!("blob {}", self.digest),
                limit: format!("{} bytes", self.limit),
            });
        }
        self.hash.write_all(piece).map_err(ImageError::io("write", &self.path))?;
        self.written = written;
        Ok(())
    }
}
