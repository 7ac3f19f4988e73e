//! Keeps what running ingests and pulls count on from being collected.
//!
//! A pull puts each layer into its place as soon as it is verified, before an image names it; only its
//! pin keeps the layer there. After a crash, nothing names it, and the next open removes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::catalog::{blob_path, layer_path};
use super::digest::Digest;
use super::error::ImageError;
use super::ingest::{KnownLayers, Live};
use super::store::Inner;

/// Everything that is pinned, with the number of those who do.
#[derive(Debug, Default)]
pub(super) struct PinTable {
    layers: BTreeMap<Digest, (usize, u64)>,
    blobs: BTreeMap<Digest, (usize, Option<Digest>)>,
}

impl PinTable {
    /// Adds what is pinned to what images need.
    pub(super) fn extend(&self, live: &mut Live) {
        live.chains.extend(self.layers.keys());
        live.blobs.extend(self.blobs.keys());
    }
}

/// The pins of one ingest or pull; they end with it.
#[derive(Debug)]
pub(crate) struct Pins {
    inner: Arc<Inner>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    layers: Vec<Digest>,
    blobs: Vec<Digest>,
}

impl Pins {
    pub(crate) fn new(inner: &Arc<Inner>) -> Pins {
        Pins { inner: Arc::clone(inner), held: Mutex::default() }
    }

    /// Pins a layer's blob that is in the store. `Some(None)` where it is not known what it unpacks to.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Option<Digest>> {
        let _writer = self.inner.lock();
        let mut pins = self.inner.pins();
        let diff = match pins.blobs.get(digest) {
            Some((_, diff)) => *diff,
            None => {
                let catalog = self.inner.catalog();
                let diff = catalog.unpacked_digest(digest);
                if !blob_path(&self.inner.dir, digest).exists() {
                    return None;
                }
                diff
            }
        };
        pins.blobs.entry(*digest).or_insert((0, diff)).0 += 1;
        self.held().blobs.push(*digest);
        Some(diff)
    }

    /// Puts what was verified into its place: a settled layer (its directory, and the sum of its files'
    /// sizes), the blob that it came as (its file, digest, and what it unpacks to), or both.
    pub(crate) fn stage(
        &self,
        chain: &Digest,
        layer: Option<(&Path, u64)>,
        blob: Option<(&Path, Digest, Digest)>,
    ) -> Result<(), ImageError> {
        let _writer = self.inner.lock();
        if let Some((from, bytes)) = layer {
            put(from, &layer_path(&self.inner.dir, chain))?;
            self.inner.pins().layers.entry(*chain).or_insert((0, bytes)).0 += 1;
            self.held().layers.push(*chain);
        }
        if let Some((from, digest, diff)) = blob {
            put(from, &blob_path(&self.inner.dir, &digest))?;
            self.inner.pins().blobs.entry(digest).or_insert((0, Some(diff))).0 += 1;
            self.held().blobs.push(digest);
            // Other hosts may have it from here on.
            self.inner.changed();
        }
        Ok(())
    }

    /// Puts a document (a manifest, an index, a configuration) into its place: its file and its digest. Whoever is
    /// told that the blob is here finds out of it what else belongs to the image, which is still on its way.
    pub(crate) fn stage_document(&self, from: &Path, digest: Digest) -> Result<(), ImageError> {
        let _writer = self.inner.lock();
        put(from, &blob_path(&self.inner.dir, &digest))?;
        self.inner.pins().blobs.entry(digest).or_insert((0, None)).0 += 1;
        self.held().blobs.push(digest);
        self.inner.changed();
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownLayers for Pins {
    fn layer(&self, chain: &Digest) -> Option<(PathBuf, u64)> {
        // Under the writer's lock: between the look and the pin nothing is collected.
        let _writer = self.inner.lock();
        let mut pins = self.inner.pins();
        let bytes = match pins.layers.get(chain) {
            Some((_, bytes)) => *bytes,
            None => {
                let catalog = self.inner.catalog();
                let mut layers = catalog.images.values().flat_map(|image| &image.layers);
                layers.find(|layer| layer.chain == *chain)?.bytes
            }
        };
        pins.layers.entry(*chain).or_insert((0, bytes)).0 += 1;
        self.held().layers.push(*chain);
        Some((layer_path(&self.inner.dir, chain), bytes))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let held = std::mem::take(&mut *self.held());
        if held.layers.is_empty() && held.blobs.is_empty() {
            return;
        }
        let writer = self.inner.lock();
        {
            let mut pins = self.inner.pins();
            for chain in &held.layers {
                release(&mut pins.layers, chain);
            }
            for blob in &held.blobs {
                release(&mut pins.blobs, blob);
            }
        }
        // What was staged for an image that never came, or pinned of one that was removed meanwhile.
        let live = self.inner.catalog().live();
        if held.layers.iter().all(|chain| live.chains.contains(chain))
            && held.blobs.iter().all(|blob| live.blobs.contains(blob))
        {
            return;
        }
        match self.inner.collect(&writer) {
            Ok(garbage) => {
                drop(writer);
                self.inner.changed();
                garbage.remove();
            }
            Err(error) => tracing::warn!(%error, "unused layers stay until the next removal"),
        }
    }
}

fn put(from: &Path, to: &Path) -> Result<(), ImageError> {
    if to.exists() {
        return Ok(());
    }
    std::fs::rename(from, to).map_err(ImageError::io("rename", from))
}

fn release<T>(pins: &mut BTreeMap<Digest, (usize, T)>, digest: &Digest) {
    if let Some((holders, _)) = pins.get_mut(digest) {
        *holders -= 1;
        if *holders == 0 {
            pins.remove(digest);
        }
    }
}
