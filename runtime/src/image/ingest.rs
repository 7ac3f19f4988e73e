//! One load or import on its way into the store: everything lies in a directory of its own below
//! `tmp/` until the store takes it over, and vanishes with it if that never happens.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::archive::{Capped, SpooledFile, drain};
use super::catalog::Origin;
use super::compression::{Compression, Decoder};
use super::config::StoredConfig;
use super::digest::{Digest, HashReader, chain_id};
use super::error::ImageError;
use super::limits::{Budget, Limits};
use super::oci::{self, Descriptor, Manifest};
use super::reference::Reference;
use super::tarball::{EndMarker, TarReader};
use super::unpack::LayerWriter;
use crate::remove::Scratch;

/// A layer that is in the store, or will be with the ingest that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) chain: Digest,
    /// Sum of its files' sizes.
    pub(crate) bytes: u64,
}

/// An image whose content is all there.
#[derive(Debug)]
pub(crate) struct PreparedImage {
    pub(crate) id: Digest,
    pub(crate) stored: StoredConfig,
    pub(crate) manifest: (Digest, u64),
    pub(crate) layer_blobs: Vec<Digest>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) references: Vec<Reference>,
    /// Multi-platform indexes that led to it.
    pub(crate) indexes: Vec<Digest>,
    pub(crate) source_stamp: Option<String>,
    pub(crate) origin: Origin,
}

/// What of a layer the store has already, asked while the ingest keeps it from being collected.
pub(crate) trait KnownLayers {
    /// The layer's directory and the sum of its files' sizes.
    fn layer(&self, chain: &Digest) -> Option<(PathBuf, u64)>;
}

/// Content that is not in the store yet.
pub(crate) struct Ingest<'a> {
    dir: Scratch,
    known: &'a dyn KnownLayers,
    pub(crate) budget: Budget,
    /// Layers in this ingest's directory.
    pub(crate) layers: BTreeMap<Digest, (PathBuf, u64)>,
    /// Blobs in this ingest's directory.
    pub(crate) blobs: BTreeMap<Digest, PathBuf>,
    /// The uncompressed digests of blobs that were read through already.
    verified: BTreeMap<Digest, Digest>,
    names: u64,
}

impl<'a> Ingest<'a> {
    pub(crate) fn new(tmp: &Path, limits: Limits, known: &'a dyn KnownLayers) -> Result<Ingest<'a>, ImageError> {
        let dir = Scratch::new(tmp, "ingest-").map_err(ImageError::io("create a directory in", tmp))?;
        Ok(Ingest {
            dir,
            known,
            budget: Budget::new(limits),
            layers: BTreeMap::new(),
            blobs: BTreeMap::new(),
            verified: BTreeMap::new(),
            names: 0,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A name in the ingest's directory that nothing has yet.
    pub(crate) fn fresh_path(&mut self, kind: &str) -> PathBuf {
        self.names += 1;
        self.dir.path().join(format!("{kind}-{}", self.names))
    }

    /// Takes a file of this ingest's directory as a blob.
    pub(crate) fn add_blob(&mut self, file: &SpooledFile) {
        self.blobs.insert(file.digest, file.path.clone());
    }

    /// Writes a blob; returns its digest and length.
    pub(crate) fn write_blob(&mut self, bytes: &[u8]) -> Result<(Digest, u64), ImageError> {
        let path = self.fresh_path("blob");
        std::fs::write(&path, bytes).map_err(ImageError::io("write", &path))?;
        let digest = Digest::of(bytes);
        self.blobs.insert(digest, path);
        Ok((digest, bytes.len() as u64))
    }

    /// Unpacks all layers of one image, lowest first, each verified against its uncompressed
    /// digest. Layers that are known are only verified.
    pub(crate) fn add_layers(
        &mut self,
        layers: &[(String, SpooledFile)],
        diff_ids: &[Digest],
    ) -> Result<(Vec<Layer>, Vec<Descriptor>), ImageError> {
        let mut done: Vec<Layer> = Vec::new();
        let mut descriptors = Vec::new();
        let mut lowers: Vec<PathBuf> = Vec::new();
        for ((name, file), diff) in layers.iter().zip(diff_ids) {
            let blob = File::open(&file.path).map_err(ImageError::io("open", &file.path))?;
            let decoder = Decoder::new(blob, name)?;
            let media_type = oci::layer_type(decoder.compression());
            let chain = chain_id(done.last().map(|layer| &layer.chain), diff);
            let (path, bytes) = self.add_layer(decoder, name, &file.digest, diff, chain, &lowers)?;
            self.add_blob(file);
            descriptors.push(Descriptor::new(media_type, &file.digest, file.size));
            done.push(Layer { chain, bytes });
            lowers.push(path);
        }
        Ok((done, descriptors))
    }

    /// The layer's directory, unpacked if it is not there yet, and the sum of its files' sizes. The
    /// blob is read unless it was read before and the layer is there.
    fn add_layer(
        &mut self,
        decoder: Decoder<File>,
        name: &str,
        blob: &Digest,
        diff: &Digest,
        chain: Digest,
        lowers: &[PathBuf],
    ) -> Result<(PathBuf, u64), ImageError> {
        if decoder.compression() == Compression::None {
            // What was hashed on its way here is the layer's tar itself.
            self.verified.insert(*blob, *blob);
        }
        let verified = self.verified.get(blob).copied();
        if let Some(actual) = verified {
            check_diff(name, diff, &actual)?;
        }
        let there = self.layers.get(&chain).cloned().or_else(|| self.known.layer(&chain));
        match (there, verified) {
            (Some(there), Some(_)) => Ok(there),
            (Some(there), None) => {
                let mut content = HashReader::new(self.capped(decoder));
                drain(&mut content, name)?;
                self.verify(name, blob, diff, content.finish().1)?;
                Ok(there)
            }
            (None, Some(_)) => {
                let unpacked = self.unpack(decoder, name, EndMarker::Optional, lowers)?;
                self.layers.insert(chain, unpacked.clone());
                Ok(unpacked)
            }
            (None, None) => {
                let mut content = HashReader::new(decoder);
                let unpacked = self.unpack(&mut content, name, EndMarker::Optional, lowers)?;
                self.verify(name, blob, diff, content.finish().1)?;
                self.layers.insert(chain, unpacked.clone());
                Ok(unpacked)
            }
        }
    }

    fn verify(&mut self, name: &str, blob: &Digest, diff: &Digest, actual: Digest) -> Result<(), ImageError> {
        check_diff(name, diff, &actual)?;
        self.verified.insert(*blob, actual);
        Ok(())
    }

    /// Bounds a layer's stream, also where it is not unpacked.
    fn capped<R: Read>(&self, content: R) -> Capped<R> {
        Capped::new(content, "the uncompressed layer", self.budget.max_stream_bytes())
    }

    /// Unpacks one layer into a new directory; returns it with the sum of its files' sizes. The
    /// stream is read to its end.
    pub(crate) fn unpack(
        &mut self,
        content: impl Read,
        name: &str,
        end_marker: EndMarker,
        lowers: &[PathBuf],
    ) -> Result<(PathBuf, u64), ImageError> {
        let path = self.fresh_path("layer");
        std::fs::create_dir(&path).map_err(ImageError::io("create", &path))?;
        // What the archive does not say about its root is what Docker's root has.
        set_mode(&path, 0o755)?;
        let mut content = self.capped(content);
        let mut tar = TarReader::new(&mut content, name, &self.budget.limits, end_marker);
        let (bytes, unsettled) = LayerWriter::new(&path, name, &self.budget)?.unpack(&mut tar)?;
        drain(content, name)?;
        unsettled.settle(&path, name, lowers)?;
        Ok((path, bytes))
    }

    /// Makes the directory's content survive a power failure.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        let dir = File::open(self.dir.path()).map_err(ImageError::io("open", self.dir.path()))?;
        rustix::fs::syncfs(&dir).map_err(|errno| ImageError::io("sync", self.dir.path())(errno.into()))
    }

    /// Builds the manifest of an image that came without one.
    pub(crate) fn write_manifest(
        &mut self,
        config: &Digest,
        config_bytes: u64,
        layers: Vec<Descriptor>,
    ) -> Result<(Digest, u64), ImageError> {
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(oci::MANIFEST.to_owned()),
            config: Descriptor::new(oci::CONFIG, config, config_bytes),
            layers,
            manifests: None,
        };
        self.write_blob(&to_json(&manifest)?)
    }

    /// Makes an image of one layer that is in this ingest already: writes its configuration and
    /// manifest.
    pub(crate) fn single_layer_image(
        &mut self,
        stored: StoredConfig,
        layer: Layer,
        blob: &SpooledFile,
        compression: Compression,
    ) -> Result<PreparedImage, ImageError> {
        let (id, config_bytes) = self.write_blob(&to_json(&stored)?)?;
        let descriptor = Descriptor::new(oci::layer_type(compression), &blob.digest, blob.size);
        let manifest = self.write_manifest(&id, config_bytes, vec![descriptor])?;
        self.add_blob(blob);
        Ok(PreparedImage {
            id,
            stored,
            manifest,
            layer_blobs: vec![blob.digest],
            layers: vec![layer],
            references: Vec::new(),
            indexes: Vec::new(),
            source_stamp: None,
            origin: Origin::User,
        })
    }
}

fn check_diff(name: &str, expected: &Digest, actual: &Digest) -> Result<(), ImageError> {
    if expected == actual {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what: name.to_owned(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(ImageError::io("set the mode of", path))
}

/// Documents of ours always serialize; the error is for the type's sake.
pub(crate) fn to_json(document: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(document)
        .map_err(|source| ImageError::BadJson { what: "a document of the store".to_owned(), source })
}

/// The blobs and chains that some images need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    pub(crate) blobs: BTreeSet<Digest>,
    pub(crate) chains: BTreeSet<Digest>,
}
