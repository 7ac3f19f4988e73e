//! Brings an image archive onto the disk and finds the images in it.
//!
//! An archive's index may be its last entry, so its files are first written aside, hashed as they
//! stream by; only then is it known what they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::compression::Decoder;
use super::config::StoredConfig;
use super::digest::{Digest, HashWriter};
use super::error::ImageError;
use super::limits::Limits;
use super::oci::{self, Descriptor, Index, Manifest, SavedImage};
use super::platform::{ImagePlatform, rank};
use super::reference::Reference;
use super::tarball::{EndMarker, TarKind, TarReader, shown};

const WHAT: &str = "the archive";
/// Links from one name in the archive to another that are followed.
const MAX_ALIASES: usize = 8;
/// An index in an index in an index is all that is ever seen.
const MAX_INDEX_DEPTH: usize = 4;
/// Descriptors of all indexes that are looked at.
const MAX_DESCRIPTORS: usize = 10_000;
/// Bytes of a file's name in the archive. Those of images have at most some seventy.
const MAX_NAME_BYTES: usize = 512;
/// Platforms that an error names.
const MAX_SHOWN_PLATFORMS: usize = 50;

/// A file of the archive, written aside.
#[derive(Debug, Clone)]
pub(crate) struct SpooledFile {
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An image that the archive holds.
#[derive(Debug)]
pub(crate) struct FoundImage {
    pub(crate) references: Vec<Reference>,
    pub(crate) config: SpooledFile,
    pub(crate) stored: StoredConfig,
    /// The manifest as it came; `docker save`'s older form has none.
    pub(crate) manifest: Option<SpooledFile>,
    /// Lowest first, each with its name for messages.
    pub(crate) layers: Vec<(String, SpooledFile)>,
}

/// A search for the images that run here, through indexes that may list each other many times over.
#[derive(Debug)]
struct Search<'a> {
    here: ImagePlatform,
    descriptors: usize,
    /// Indexes that were searched, each with what was found in it; they are not searched again.
    searched: BTreeMap<Digest, Option<&'a SpooledFile>>,
    /// Platforms that were passed over.
    passed: BTreeSet<String>,
}

/// An archive's files, by their names in it.
#[derive(Debug)]
pub(crate) struct Archive<'a> {
    limits: &'a Limits,
    files: BTreeMap<String, SpooledFile>,
    aliases: BTreeMap<String, String>,
}

impl<'a> Archive<'a> {
    /// Writes all files of the archive into `dir`, which is the caller's to remove.
    pub(crate) fn spool(reader: impl Read, dir: &Path, limits: &'a Limits) -> Result<Archive<'a>, ImageError> {
        let mut archive = Archive { limits, files: BTreeMap::new(), aliases: BTreeMap::new() };
        let decoder = Decoder::new(Capped::new(reader, WHAT, limits.max_archive_bytes), WHAT)?;
        let content = Capped::new(decoder, "the uncompressed archive", limits.max_archive_bytes);
        let mut tar = TarReader::new(content, WHAT, limits, EndMarker::Required);
        let mut entries = 0;
        while let Some(entry) = tar.next_entry()? {
            entries += 1;
            if entries > limits.max_archive_files {
                return Err(ImageError::LimitExceeded {
                    what: format!("the number of files in {WHAT}"),
                    limit: format!("{} files", limits.max_archive_files),
                });
            }
            let name = plain_name(&entry.name, &entry.name)?;
            match &entry.kind {
                TarKind::Dir => continue,
                TarKind::File if entry.is_sparse() => {
                    return Err(ImageError::BadEntry {
                        what: WHAT.to_owned(),
                        entry: name,
                        reason: "an image archive holds no sparse files; layers may".to_owned(),
                    });
                }
                TarKind::File => {
                    let file = spool_file(&mut tar, &dir.join(format!("file-{entries}")), &name)?;
                    if let Some(hex) = name.strip_prefix("blobs/sha256/")
                        && hex != file.digest.hex()
                    {
                        return Err(ImageError::DigestMismatch {
                            expected: format!("sha256:{hex}"),
                            what: name,
                            actual: file.digest.to_string(),
                        });
                    }
                    archive.claim(&name)?;
                    archive.files.insert(name, file);
                }
                // Docker 1.10 to 24 write a layer that several images share once, and links to it.
                TarKind::Symlink(target) => {
                    let directory = name.rfind('/').map_or("", |slash| &name[..slash]);
                    let target = [directory.as_bytes(), target].join(&b'/');
                    let target = plain_name(&fold_parents(&target), &entry.name)?;
                    archive.claim(&name)?;
                    archive.aliases.insert(name, target);
                }
                TarKind::Hardlink(target) => {
                    let target = plain_name(target, &entry.name)?;
                    archive.claim(&name)?;
                    archive.aliases.insert(name, target);
                }
                TarKind::Char { .. } | TarKind::Block { .. } | TarKind::Fifo => {
                    return Err(ImageError::BadEntry {
                        what: WHAT.to_owned(),
                        entry: name,
                        reason: "an image archive holds no devices and pipes".to_owned(),
                    });
                }
            }
        }
        drain(tar.into_source(), WHAT)?;
        Ok(archive)
    }

    /// The images, in the archive's order.
    pub(crate) fn images(&self) -> Result<Vec<FoundImage>, ImageError> {
        let saved: Option<Vec<SavedImage>> = match self.file("manifest.json") {
            Some(file) => Some(self.read_json(file, "manifest.json")?),
            None => None,
        };
        self.check_image_count(saved.as_ref().map_or(0, Vec::len))?;
        let images = match (self.file("index.json"), saved) {
            (Some(file), saved) => {
                let index: Index = self.read_json(file, "index.json")?;
                self.indexed_images(&index, &saved.unwrap_or_default())?
            }
            (None, Some(saved)) => saved.iter().map(|image| self.saved_image(image)).collect::<Result<_, _>>()?,
            (None, None) => return Err(ImageError::NotAnImageArchive),
        };
        if images.is_empty() {
            return Err(ImageError::malformed(WHAT, "it lists no image"));
        }
        let names: usize = images.iter().map(|image| image.references.len()).sum();
        if names > self.limits.max_names {
            return Err(ImageError::LimitExceeded {
                what: format!("the number of names in {WHAT}"),
                limit: format!("{} names", self.limits.max_names),
            });
        }
        for image in &images {
            self.check_layer_count(image)?;
        }
        Ok(images)
    }

    fn check_image_count(&self, count: usize) -> Result<(), ImageError> {
        if count > self.limits.max_images {
            return Err(ImageError::LimitExceeded {
                what: format!("the number of images in {WHAT}"),
                limit: format!("{} images", self.limits.max_images),
            });
        }
        Ok(())
    }

    fn check_layer_count(&self, image: &FoundImage) -> Result<(), ImageError> {
        if image.layers.len() > self.limits.max_layers {
            return Err(ImageError::LimitExceeded {
                what: format!("the number of layers of image {}", image.config.digest),
                limit: format!("{} layers", self.limits.max_layers),
            });
        }
        image.stored.check(&format!("configuration {}", image.config.digest))?;
        let stated = image.stored.rootfs.diff_ids.len();
        if image.layers.len() != stated {
            let reason = format!("it states {stated} layers, the manifest {}", image.layers.len());
            return Err(ImageError::malformed(format!("configuration {}", image.config.digest), reason));
        }
        Ok(())
    }

    /// An image of `docker save`'s older form.
    fn saved_image(&self, saved: &SavedImage) -> Result<FoundImage, ImageError> {
        const MANIFEST: &str = "manifest.json";
        let config = self.named(&saved.config, MANIFEST)?;
        // The file is called by its digest, `<hex>.json`; that is the image's id.
        let stem = saved.config.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        if let Some(stated) = Digest::from_hex(stem)
            && stated != config.digest
        {
            return Err(ImageError::DigestMismatch {
                what: format!("configuration {}", saved.config),
                expected: stated.to_string(),
                actual: config.digest.to_string(),
            });
        }
        let layers = saved
            .layers
            .iter()
            .flatten()
            .map(|name| Ok((format!("layer {name}"), self.named(name, MANIFEST)?.clone())))
            .collect::<Result<_, ImageError>>()?;
        Ok(FoundImage {
            references: saved_references(saved)?,
            stored: self.read_json(config, &saved.config)?,
            config: config.clone(),
            manifest: None,
            layers,
        })
    }

    fn indexed_images(&self, index: &Index, saved: &[SavedImage]) -> Result<Vec<FoundImage>, ImageError> {
        let mut images: Vec<FoundImage> = Vec::new();
        let mut search =
            Search { here: ImagePlatform::host(), descriptors: 0, searched: BTreeMap::new(), passed: BTreeSet::new() };
        for descriptor in &index.manifests {
            let references = index_references(descriptor)?;
            let Some(manifest) = self.choose(descriptor, "index.json", 0, &mut search)? else {
                continue;
            };
            // One image under several names has a descriptor for each.
            let known = images
                .iter_mut()
                .find(|image| image.manifest.as_ref().map(|file| file.digest) == Some(manifest.digest));
            if let Some(image) = known {
                image.references.extend(references);
                continue;
            }
            self.check_image_count(images.len() + 1)?;
            images.push(self.indexed_image(manifest, references)?);
        }
        if images.is_empty() && !search.passed.is_empty() {
            let found: Vec<String> = search.passed.into_iter().take(MAX_SHOWN_PLATFORMS).collect();
            return Err(ImageError::NoPlatform { wanted: search.here.to_string(), found: found.join(", ") });
        }
        // `docker save` of today writes both forms, and all names only in the older one.
        for image in &mut images {
            for saved in saved {
                if self.file(&saved.config).map(|file| file.digest) == Some(image.config.digest) {
                    image.references.extend(saved_references(saved)?);
                }
            }
            image.references.sort();
            image.references.dedup();
        }
        Ok(images)
    }

    fn indexed_image(&self, file: &SpooledFile, references: Vec<Reference>) -> Result<FoundImage, ImageError> {
        let what = format!("manifest {}", file.digest);
        let manifest: Manifest = self.read_json(file, &what)?;
        check_types(&manifest, &what)?;
        let config = self.described(&manifest.config, &what)?;
        let layers = manifest
            .layers
            .iter()
            .map(|layer| {
                let blob = self.described(layer, &what)?;
                Ok((format!("layer {}", blob.digest), blob.clone()))
            })
            .collect::<Result<_, ImageError>>()?;
        Ok(FoundImage {
            references,
            stored: self.read_json(config, &format!("configuration {}", config.digest))?,
            config: config.clone(),
            manifest: Some(file.clone()),
            layers,
        })
    }

    /// The manifest that a descriptor leads to on this host.
    fn choose<'s>(
        &'s self,
        descriptor: &Descriptor,
        needed_by: &str,
        depth: usize,
        search: &mut Search<'s>,
    ) -> Result<Option<&'s SpooledFile>, ImageError> {
        search.descriptors += 1;
        if search.descriptors > MAX_DESCRIPTORS {
            return Err(ImageError::LimitExceeded {
                what: format!("the number of entries of all indexes in {WHAT}"),
                limit: format!("{MAX_DESCRIPTORS} entries"),
            });
        }
        if let Some(platform) = &descriptor.platform
            && rank(platform, &search.here).is_none()
        {
            // Build attestations call themselves unknown/unknown.
            if platform.os != "unknown" {
                let short = |text: &str| text.chars().take(50).collect::<String>();
                search.passed.insert(format!("{}/{}", short(&platform.os), short(&platform.architecture)));
            }
            return Ok(None);
        }
        match descriptor.media_type.as_str() {
            oci::MANIFEST | oci::DOCKER_MANIFEST => self.described(descriptor, needed_by).map(Some),
            oci::INDEX | oci::DOCKER_LIST => {
                if depth >= MAX_INDEX_DEPTH {
                    return Err(ImageError::malformed(needed_by, "indexes are nested too deeply"));
                }
                let file = self.described(descriptor, needed_by)?;
                if let Some(found) = search.searched.get(&file.digest) {
                    return Ok(*found);
                }
                let what = format!("index {}", file.digest);
                let mut index: Index = self.read_json(file, &what)?;
                // What fits best first, then what does not say; what does not fit at all is noted and passed over.
                index.manifests.sort_by_key(|inner| match &inner.platform {
                    Some(platform) => rank(platform, &search.here).unwrap_or(u32::MAX),
                    None => u32::MAX - 1,
                });
                let mut found = None;
                for inner in &index.manifests {
                    found = self.choose(inner, &what, depth + 1, search)?;
                    if found.is_some() {
                        break;
                    }
                }
                search.searched.insert(file.digest, found);
                Ok(found)
            }
            other => Err(ImageError::malformed(
                needed_by,
                format!("{} has the media type {other:?}, which is no image", descriptor.digest),
            )),
        }
    }

    fn described(&self, descriptor: &Descriptor, needed_by: &str) -> Result<&SpooledFile, ImageError> {
        let digest = descriptor.parse_digest(needed_by)?;
        let name = format!("blobs/sha256/{}", digest.hex());
        let file = self.named(&name, needed_by)?;
        // A link in the archive may lead to another file.
        if file.digest != digest {
            return Err(ImageError::DigestMismatch {
                what: name,
                expected: digest.to_string(),
                actual: file.digest.to_string(),
            });
        }
        if file.size != descriptor.size {
            return Err(ImageError::SizeMismatch { what: name, expected: descriptor.size, actual: file.size });
        }
        Ok(file)
    }

    fn named(&self, name: &str, needed_by: &str) -> Result<&SpooledFile, ImageError> {
        self.file(name).ok_or_else(|| ImageError::Missing {
            what: name.chars().take(256).collect(),
            needed_by: needed_by.to_owned(),
        })
    }

    fn file(&self, name: &str) -> Option<&SpooledFile> {
        let mut name = name;
        for _ in 0..MAX_ALIASES {
            if let Some(file) = self.files.get(name) {
                return Some(file);
            }
            name = self.aliases.get(name)?;
        }
        None
    }

    fn claim(&self, name: &str) -> Result<(), ImageError> {
        if self.files.contains_key(name) || self.aliases.contains_key(name) {
            return Err(ImageError::BadEntry {
                what: WHAT.to_owned(),
                entry: name.to_owned(),
                reason: "it appears twice".to_owned(),
            });
        }
        Ok(())
    }

    fn read_json<T: DeserializeOwned>(&self, file: &SpooledFile, what: &str) -> Result<T, ImageError> {
        let most = self.limits.max_metadata_bytes;
        if file.size > most {
            return Err(ImageError::LimitExceeded {
                what: format!("{what}, a metadata file of {} bytes,", file.size),
                limit: format!("{most} bytes"),
            });
        }
        let bytes = std::fs::read(&file.path).map_err(ImageError::io("read", &file.path))?;
        oci::parse(&bytes, what, self.limits)
    }
}

fn saved_references(saved: &SavedImage) -> Result<Vec<Reference>, ImageError> {
    let tags = saved.repo_tags.iter().flatten();
    Ok(tags.map(|tag| Reference::parse(tag)).collect::<Result<_, _>>()?)
}

/// Refuses a manifest of something else than an image. Types that are not stated are found out from what is there.
pub(crate) fn check_types(manifest: &Manifest, what: &str) -> Result<(), ImageError> {
    if manifest.manifests.is_some() {
        return Err(ImageError::malformed(what, "it is a manifest and an index at the same time"));
    }
    let stated =
        |descriptor: &Descriptor, check: fn(&str) -> Result<(), &'static str>| match check(&descriptor.media_type) {
            Err(reason) if !descriptor.media_type.is_empty() => {
                let media_type: String = descriptor.media_type.chars().take(200).collect();
                Err(ImageError::malformed(what, format!("it names a {media_type:?}: {reason}")))
            }
            _ => Ok(()),
        };
    stated(&manifest.config, oci::check_config_type)?;
    manifest.layers.iter().try_for_each(|layer| stated(layer, oci::check_layer_type))
}

/// The name that an index gives to an image. A bare tag names nothing.
fn index_references(descriptor: &Descriptor) -> Result<Vec<Reference>, ImageError> {
    let name = match descriptor.annotation(oci::CONTAINERD_NAME) {
        Some(name) => Some(name),
        None => descriptor.annotation(oci::REF_NAME).filter(|name| name.contains(['/', ':'])),
    };
    match name {
        Some(name) => Ok(vec![Reference::parse(name)?]),
        None => Ok(Vec::new()),
    }
}

fn spool_file(content: &mut impl Read, path: &Path, name: &str) -> Result<SpooledFile, ImageError> {
    let file = File::create_new(path).map_err(ImageError::io("create", path))?;
    let mut writer = HashWriter::new(file);
    copy(content, &mut writer, path, &format!("{WHAT} (in {name})"))?;
    let (_, digest, size) = writer.finish();
    Ok(SpooledFile { path: path.to_owned(), digest, size })
}

/// Like `io::copy`, but tells the source's errors from the target's.
pub(crate) fn copy(
    from: &mut impl Read,
    to: &mut impl io::Write,
    to_path: &Path,
    what: &str,
) -> Result<u64, ImageError> {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ImageError::reading(what, error)),
        };
        to.write_all(&buffer[..read]).map_err(ImageError::io("write", to_path))?;
        total += read as u64;
    }
}

/// Reads to the end, which is where compressions keep their checksums.
pub(crate) fn drain(mut reader: impl Read, what: &str) -> Result<(), ImageError> {
    io::copy(&mut reader, &mut io::sink()).map(|_| ()).map_err(|error| ImageError::reading(what, error))
}

/// A name in the archive without `./` and leading slashes.
fn plain_name(name: &[u8], entry: &[u8]) -> Result<String, ImageError> {
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(ImageError::Traversal { what: WHAT.to_owned(), entry: shown(entry) });
            }
            part => parts.push(part),
        }
    }
    let bad =
        |reason: &str| ImageError::BadEntry { what: WHAT.to_owned(), entry: shown(entry), reason: reason.to_owned() };
    let name = parts.join(&b'/');
    if name.len() > MAX_NAME_BYTES {
        return Err(bad(&format!("no file of an image has a name of more than {MAX_NAME_BYTES} bytes")));
    }
    String::from_utf8(name).map_err(|_| bad("its name is not UTF-8"))
}

/// Takes `x/..` out of a link's target; what leaves the archive keeps its `..`.
fn fold_parents(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Fails when more than `left` bytes are read.
pub(crate) struct Capped<R> {
    inner: R,
    what: &'static str,
    limit: u64,
    left: u64,
}

impl<R> Capped<R> {
    pub(crate) fn new(inner: R, what: &'static str, limit: u64) -> Capped<R> {
        Capped { inner, what, limit, left: limit }
    }
}

/// Travels through decompressors as an I/O error.
#[derive(Debug, thiserror::Error)]
#[error("{what} exceeds the limit of {limit} bytes")]
pub(crate) struct CapReached {
    pub(crate) what: &'static str,
    pub(crate) limit: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => Err(io::Error::other(CapReached { what: self.what, limit: self.limit })),
        }
    }
}
