//! The images of a store: what `index.json` says, in memory, and the questions asked of it. Pure
//! but for reading the documents that the index names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::{History, ImageConfig, StoredConfig};
use super::digest::{Digest, chain_id};
use super::error::ImageError;
use super::ingest::{Layer, Live, PreparedImage};
use super::limits::Limits;
use super::oci::{self, Descriptor, Index, Manifest};
use super::reference::Reference;

/// Sizes of the unpacked layers, lowest first, separated by commas.
const LAYER_BYTES: &str = "shoal.image.layer-bytes";
/// State of the files that an image was made of by `install_root`.
const SOURCE_STAMP: &str = "shoal.image.source-stamp";
/// Digests of the multi-platform indexes that led to an image, separated by commas.
const INDEXES: &str = "shoal.image.indexes";
/// Present on an image that came only because a task needed it.
const FOR_TASK: &str = "shoal.image.for-task";
/// Bytes of `index.json`. What would not be read again is not written.
pub(crate) const MAX_INDEX_BYTES: u64 = 256 << 20;

/// One manifest of an image, and the layer blobs that it names.
#[derive(Debug, Clone)]
pub(crate) struct StoredManifest {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) layer_blobs: Vec<Digest>,
}

/// Why an image is here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// Somebody loaded, imported, pulled or named it: it stays until somebody removes it.
    #[default]
    User,
    /// A task needed it: it may go when none does any more.
    Task,
}

/// One image.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) history: Vec<History>,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) layers: Vec<Layer>,
    /// The first is the one that the image is known by. There are several where one image was
    /// loaded from archives that compress its layers differently.
    pub(crate) manifests: Vec<StoredManifest>,
    pub(crate) references: BTreeSet<Reference>,
    /// Multi-platform indexes that led to it; it is found by their digests too.
    pub(crate) indexes: BTreeSet<Digest>,
    pub(crate) source_stamp: Option<String>,
    pub(crate) origin: Origin,
}

impl Record {
    /// Sum of the sizes of all files in all layers.
    pub(crate) fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }
}

/// How a name was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// As this one of the image's references.
    Reference(Reference),
    /// As its id, the beginning of its id, or a digest.
    Id,
}

/// All images, by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Catalog {
    pub(crate) images: BTreeMap<Digest, Record>,
    unread: Vec<Unread>,
}

/// An entry of `index.json` whose image could not be read. It does not show, but its entry and its content stay: the
/// trouble may pass, and containers may run on its layers.
#[derive(Debug, Clone)]
struct Unread {
    descriptor: Descriptor,
    /// The image, as far as that could be read.
    id: Option<Digest>,
    /// What belongs to it, or may.
    content: Live,
}

impl Unread {
    fn is_called(&self, name: &str) -> bool {
        let reference = Reference::parse(name).ok().map(|reference| reference.canonical());
        self.descriptor.digest == name
            || reference.is_some_and(|reference| self.descriptor.annotation(oci::REF_NAME) == Some(&reference))
    }

    fn named(&self) -> Option<Reference> {
        self.descriptor.annotation(oci::REF_NAME).and_then(|name| Reference::parse(name).ok())
    }
}

impl Catalog {
    /// Finds an image as Docker does: a full id or digest, then a reference, then the beginning of
    /// an id.
    pub(crate) fn find(&self, name: &str) -> Result<(&Record, Match), ImageError> {
        let not_found = || ImageError::NotFound { name: name.chars().take(300).collect() };
        let bare = name.strip_prefix("sha256:").unwrap_or(name);
        if let Some(digest) = Digest::from_hex(bare) {
            return self.by_digest(&digest).map(|image| (image, Match::Id)).ok_or_else(not_found);
        }
        if let Ok(reference) = Reference::parse(name) {
            if let Some(digest) = reference.digest() {
                // Content is what a digest names; the repository before it says only where from.
                let digest: Digest = digest.parse().map_err(|_| not_found())?;
                return self.by_digest(&digest).map(|image| (image, Match::Id)).ok_or_else(not_found);
            }
            let named = self.images.values().find(|image| image.references.contains(&reference));
            if let Some(image) = named {
                return Ok((image, Match::Reference(reference)));
            }
        }
        self.by_prefix(bare, name)?.map(|image| (image, Match::Id)).ok_or_else(not_found)
    }

    fn by_digest(&self, digest: &Digest) -> Option<&Record> {
        self.images.get(digest).or_else(|| {
            self.images.values().find(|image| {
                image.manifests.iter().any(|manifest| manifest.digest == *digest) || image.indexes.contains(digest)
            })
        })
    }

    /// The digest of what a layer's blob unpacks to, as it was found when an image with it came in.
    pub(crate) fn unpacked_digest(&self, blob: &Digest) -> Option<Digest> {
        self.images.values().find_map(|image| {
            let manifests = image.manifests.iter();
            let mut pairs = manifests.flat_map(|manifest| manifest.layer_blobs.iter().zip(&image.diff_ids));
            pairs.find(|(known, _)| *known == blob).map(|(_, diff)| *diff)
        })
    }

    fn by_prefix(&self, hex: &str, name: &str) -> Result<Option<&Record>, ImageError> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(digits) {
            return Ok(None);
        }
        let mut matching = self.images.values().filter(|image| image.id.hex().starts_with(hex));
        let first = matching.next();
        match matching.count() {
            0 => Ok(first),
            more => Err(ImageError::Ambiguous { name: name.to_owned(), count: more + 1 }),
        }
    }

    /// Adds an image or a manifest of a known one. Its references move from where they were.
    pub(crate) fn insert(&mut self, image: &PreparedImage) -> Result<(), ImageError> {
        let manifest =
            StoredManifest { digest: image.manifest.0, size: image.manifest.1, layer_blobs: image.layer_blobs.clone() };
        if let Some(record) = self.images.get_mut(&image.id) {
            if record.manifests.iter().all(|known| known.digest != manifest.digest) {
                record.manifests.push(manifest);
            }
            if image.source_stamp.is_some() {
                record.source_stamp.clone_from(&image.source_stamp);
            }
            if image.origin == Origin::User {
                record.origin = Origin::User;
            }
        } else {
            let record = Record {
                id: image.id,
                config: image.stored.to_config(),
                history: image.stored.history.clone(),
                diff_ids: image.stored.diff_ids("configuration")?,
                layers: image.layers.clone(),
                manifests: vec![manifest],
                references: BTreeSet::new(),
                indexes: BTreeSet::new(),
                source_stamp: image.source_stamp.clone(),
                origin: image.origin,
            };
            self.images.insert(image.id, record);
        }
        if let Some(record) = self.images.get_mut(&image.id) {
            record.indexes.extend(&image.indexes);
        }
        let digest = image.manifest.0.to_string();
        let (whole, unread) = std::mem::take(&mut self.unread)
            .into_iter()
            .partition::<Vec<_>, _>(|entry| entry.descriptor.digest == digest);
        self.unread = unread;
        for reference in whole.iter().filter_map(Unread::named).collect::<Vec<_>>().iter().chain(&image.references) {
            self.name(&image.id, reference);
        }
        Ok(())
    }

    /// Gives a reference to an image, and takes it from any other.
    pub(crate) fn name(&mut self, id: &Digest, reference: &Reference) {
        for image in self.images.values_mut() {
            if image.id == *id {
                image.references.insert(reference.clone());
            } else {
                image.references.remove(reference);
            }
        }
        for entry in self.unread.iter_mut().filter(|entry| entry.named().as_ref() == Some(reference)) {
            if let Some(annotations) = &mut entry.descriptor.annotations {
                annotations.remove(oci::REF_NAME);
            }
        }
    }

    /// Whether there are images of this name or manifest digest that cannot be read; each with its id, where that is
    /// known.
    pub(crate) fn unread(&self, name: &str) -> Vec<Option<Digest>> {
        self.unread.iter().filter(|entry| entry.is_called(name)).map(|entry| entry.id).collect()
    }

    /// Lets go of the images that cannot be read and are called so.
    pub(crate) fn forget_unread(&mut self, name: &str) {
        self.unread.retain(|entry| !entry.is_called(name));
    }

    /// What stays though it is of no image that can be used.
    pub(crate) fn keep_unread(&self, live: &mut Live) {
        for entry in &self.unread {
            live.blobs.extend(&entry.content.blobs);
            live.chains.extend(&entry.content.chains);
        }
    }

    /// Bytes of all unpacked layers, each counted once.
    pub(crate) fn layers_size(&self) -> u64 {
        let layers = self.images.values().flat_map(|image| &image.layers);
        let layers: BTreeMap<Digest, u64> = layers.map(|layer| (layer.chain, layer.bytes)).collect();
        layers.values().sum()
    }

    /// Bytes of each image's layers that another image has too.
    pub(crate) fn shared_sizes(&self) -> BTreeMap<Digest, u64> {
        let chains = |image: &Record| image.layers.iter().map(|layer| layer.chain).collect::<BTreeSet<_>>();
        let mut images_with = BTreeMap::<Digest, usize>::new();
        for chain in self.images.values().flat_map(chains) {
            *images_with.entry(chain).or_default() += 1;
        }
        let is_shared = |layer: &&Layer| images_with.get(&layer.chain).is_some_and(|images| *images > 1);
        let shared = |image: &Record| image.layers.iter().filter(is_shared).map(|layer| layer.bytes).sum();
        self.images.values().map(|image| (image.id, shared(image))).collect()
    }

    /// What must not be collected.
    pub(crate) fn live(&self) -> Live {
        let mut live = Live::default();
        for image in self.images.values() {
            live.blobs.insert(image.id);
            live.blobs.extend(&image.indexes);
            for manifest in &image.manifests {
                live.blobs.insert(manifest.digest);
                live.blobs.extend(&manifest.layer_blobs);
            }
            live.chains.extend(image.layers.iter().map(|layer| layer.chain));
        }
        live
    }

    /// The store's `index.json`: a descriptor for each manifest and each of its names.
    pub(crate) fn to_index(&self) -> Index {
        let mut manifests = Vec::new();
        for image in self.images.values() {
            let sizes: Vec<String> = image.layers.iter().map(|layer| layer.bytes.to_string()).collect();
            for (nth, manifest) in image.manifests.iter().enumerate() {
                let mut annotations = BTreeMap::from([(LAYER_BYTES.to_owned(), sizes.join(","))]);
                if !image.indexes.is_empty() {
                    let indexes: Vec<String> = image.indexes.iter().map(Digest::to_string).collect();
                    annotations.insert(INDEXES.to_owned(), indexes.join(","));
                }
                if let Some(stamp) = &image.source_stamp {
                    annotations.insert(SOURCE_STAMP.to_owned(), stamp.clone());
                }
                if image.origin == Origin::Task {
                    annotations.insert(FOR_TASK.to_owned(), "1".to_owned());
                }
                // All manifests of an image have its names; writing them once is enough.
                let names: Vec<Option<&Reference>> = match nth {
                    0 if !image.references.is_empty() => image.references.iter().map(Some).collect(),
                    _ => vec![None],
                };
                for name in names {
                    let mut annotations = annotations.clone();
                    if let Some(name) = name {
                        annotations.insert(oci::REF_NAME.to_owned(), name.canonical());
                    }
                    let mut descriptor = Descriptor::new(oci::MANIFEST, &manifest.digest, manifest.size);
                    descriptor.annotations = Some(annotations);
                    manifests.push(descriptor);
                }
            }
        }
        manifests.extend(self.unread.iter().map(|entry| entry.descriptor.clone()));
        Index { schema_version: 2, media_type: Some(oci::INDEX.to_owned()), manifests }
    }

    /// Reads `index.json` and what it names. An image that cannot be read, because something is missing or damaged or
    /// for a moment's trouble, is left out with a warning, so that one bad image does not take the host's others away.
    /// Its content stays, but for documents that are certainly damaged, which could not come in again otherwise. A
    /// damaged index is an error.
    pub(crate) fn read(dir: &Path, limits: &Limits) -> Result<Catalog, ImageError> {
        let path = dir.join("index.json");
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Catalog::default()),
            Err(error) => return Err(ImageError::io("read", &path)(error)),
        };
        let damaged = |reason: String| ImageError::DamagedStore { path: path.clone(), reason };
        if length > MAX_INDEX_BYTES {
            return Err(damaged(format!("it has {length} bytes")));
        }
        let bytes = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if index.schema_version != 2 {
            return Err(damaged(format!("its schema version is {}", index.schema_version)));
        }
        let mut catalog = Catalog::default();
        let mut unread = Vec::new();
        for descriptor in index.manifests {
            let error = match read_image(dir, &descriptor, limits) {
                Ok(image) => {
                    catalog.insert(&image)?;
                    continue;
                }
                Err(error) => error,
            };
            tracing::warn!(manifest = %descriptor.digest, name = descriptor.annotation(oci::REF_NAME), %error, "image left out of the store");
            // What has no digest never was an image here.
            let Ok(digest) = descriptor.parse_digest("index.json") else { continue };
            let (id, content) = content_of(dir, &digest, limits);
            if let ImageError::DamagedStore { path, .. } = &error
                && path.is_file()
            {
                // Should it stay, the image does not come back; nothing else depends on it.
                if let Err(error) = std::fs::remove_file(path) {
                    tracing::warn!(path = %path.display(), %error, "a damaged document of an image stays");
                }
            }
            unread.push((descriptor, id, content));
        }
        if unread.is_empty() {
            return Ok(catalog);
        }
        // Where it is not known what belongs to an image, everything may that belongs to no other.
        let live = catalog.live();
        let rest = Live {
            blobs: digests_in(&dir.join("blobs/sha256"))?.difference(&live.blobs).copied().collect(),
            chains: digests_in(&dir.join("layers"))?.difference(&live.chains).copied().collect(),
        };
        let entry = |(descriptor, id, content): (_, _, Option<Live>)| Unread {
            descriptor,
            id,
            content: content.unwrap_or_else(|| rest.clone()),
        };
        catalog.unread = unread.into_iter().map(entry).collect();
        Ok(catalog)
    }
}

/// The id of a manifest's image, and everything that it is made of, as far as its documents can be read.
fn content_of(dir: &Path, digest: &Digest, limits: &Limits) -> (Option<Digest>, Option<Live>) {
    let Ok(manifest) = read_blob::<Manifest>(dir, digest, limits) else { return (None, None) };
    let Ok(id) = manifest.config.parse_digest("a manifest") else { return (None, None) };
    let content = || -> Result<Live, ImageError> {
        let stored: StoredConfig = read_blob(dir, &id, limits)?;
        let mut live = Live::default();
        live.blobs.extend([*digest, id]);
        for layer in &manifest.layers {
            live.blobs.insert(layer.parse_digest("a manifest")?);
        }
        let mut below = None;
        for diff in stored.diff_ids("a configuration")? {
            let chain = chain_id(below.as_ref(), &diff);
            live.chains.insert(chain);
            below = Some(chain);
        }
        Ok(live)
    };
    (Some(id), content().ok())
}

/// The names in a directory that are digests.
fn digests_in(dir: &Path) -> Result<BTreeSet<Digest>, ImageError> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(ImageError::io("list", dir))? {
        let entry = entry.map_err(ImageError::io("list", dir))?;
        found.extend(entry.file_name().to_str().and_then(Digest::from_hex));
    }
    Ok(found)
}

fn read_image(dir: &Path, descriptor: &Descriptor, limits: &Limits) -> Result<PreparedImage, ImageError> {
    const WHAT: &str = "index.json";
    let digest = descriptor.parse_digest(WHAT)?;
    let manifest: Manifest = read_blob(dir, &digest, limits)?;
    let id = manifest.config.parse_digest(WHAT)?;
    let stored: StoredConfig = read_blob(dir, &id, limits)?;
    let sizes = descriptor.annotation(LAYER_BYTES).unwrap_or_default();
    let sizes: Vec<u64> = sizes.split(',').filter_map(|size| size.parse().ok()).collect();
    let mut layers: Vec<Layer> = Vec::new();
    for (nth, diff) in stored.diff_ids(WHAT)?.iter().enumerate() {
        let chain = chain_id(layers.last().map(|layer| &layer.chain), diff);
        let path = layer_path(dir, &chain);
        if !path.is_dir() {
            return Err(ImageError::DamagedStore { path, reason: "the layer is missing".to_owned() });
        }
        let bytes = sizes.get(nth).copied().unwrap_or(0);
        layers.push(Layer { chain, bytes });
    }
    let references = match descriptor.annotation(oci::REF_NAME) {
        Some(name) => vec![Reference::parse(name)?],
        None => Vec::new(),
    };
    let layer_blobs = manifest.layers.iter().map(|layer| layer.parse_digest(WHAT)).collect::<Result<_, _>>()?;
    Ok(PreparedImage {
        id,
        stored,
        manifest: (digest, descriptor.size),
        layer_blobs,
        layers,
        references,
        indexes: descriptor
            .annotation(INDEXES)
            .into_iter()
            .flat_map(|indexes| indexes.split(','))
            .filter_map(|digest| digest.parse().ok())
            .collect(),
        source_stamp: descriptor.annotation(SOURCE_STAMP).map(str::to_owned),
        origin: if descriptor.annotation(FOR_TASK).is_some() { Origin::Task } else { Origin::User },
    })
}

pub(crate) fn read_blob<T: serde::de::DeserializeOwned>(
    dir: &Path,
    digest: &Digest,
    limits: &Limits,
) -> Result<T, ImageError> {
    let path = blob_path(dir, digest);
    let length = std::fs::metadata(&path).map_err(ImageError::io("read", &path))?.len();
    if length > limits.max_metadata_bytes {
        // A layer may be named where a document belongs.
        return Err(ImageError::LimitExceeded {
            what: format!("{digest}, read as metadata,"),
            limit: format!("{} bytes", limits.max_metadata_bytes),
        });
    }
    let bytes = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
    if Digest::of(&bytes) != *digest {
        return Err(ImageError::DamagedStore { path, reason: "its content does not have its digest".to_owned() });
    }
    oci::parse(&bytes, &digest.to_string(), limits)
}

pub(crate) fn blob_path(dir: &Path, digest: &Digest) -> std::path::PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

pub(crate) fn layer_path(dir: &Path, chain: &Digest) -> std::path::PathBuf {
    dir.join("layers").join(chain.hex())
}
