//! Images that are made here: from a plain root file system, or from a few of the host's files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::archive::{Capped, SpooledFile, drain};
use super::changes::ImportChanges;
use super::compression::{Compression, Decoder};
use super::config::{HOST_OS, History, ImageConfig, StoredConfig, host_architecture};
use super::digest::{Digest, HashReader, HashWriter};
use super::error::ImageError;
use super::ingest::{Ingest, Layer, to_json};
use super::pins::Pins;
use super::reference::Reference;
use super::store::{ImageId, ImageStore, names};
use super::tarball::EndMarker;

const ROOT: &str = "the root file system";

impl ImageStore {
    /// Makes an image of one layer from a root file system's tar, which may be compressed with gzip
    /// or zstd. It was made when its newest file was changed, so that the same tar with the same
    /// changes and message gives the same image on each host, whenever it is imported there.
    pub fn import(
        &self,
        reader: impl Read,
        reference: Option<Reference>,
        changes: ImportChanges,
        message: &str,
    ) -> Result<ImageId, ImageError> {
        if let Some(reference) = &reference {
            reference.require_no_digest()?;
        }
        let pins = Pins::new(&self.inner);
        let limits = self.inner.limits.clone();
        let mut ingest = Ingest::new(&self.inner.tmp(), limits.clone(), &pins)?;
        let blob_path = ingest.fresh_path("blob");
        let blob = File::create_new(&blob_path).map_err(ImageError::io("create", &blob_path))?;
        let mut tee = Tee { from: Capped::new(reader, ROOT, limits.max_archive_bytes), to: HashWriter::new(blob) };
        let decoder = Decoder::new(&mut tee, ROOT)?;
        let compression = decoder.compression();
        let mut content = HashReader::new(decoder);
        let (path, bytes) = ingest.unpack(&mut content, ROOT, EndMarker::Required, &[])?;
        let (decoder, diff) = content.finish();
        drain(decoder.into_source(), ROOT)?;
        let made = newest_file(&path)?.and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        let made = made.and_then(|at| at.format(&Rfc3339).ok());
        ingest.layers.insert(diff, (path, bytes));
        let (_, digest, size) = tee.to.finish();

        let config = ImageConfig { created: made.clone(), ..for_this_host(changes.into_config()) };
        let history =
            History { created: made, comment: (!message.is_empty()).then(|| message.to_owned()), ..History::default() };
        let stored = StoredConfig::new(&config, &[diff], vec![history]);
        let layer = Layer { chain: diff, bytes };
        let blob = SpooledFile { path: blob_path, digest, size };
        let mut image = ingest.single_layer_image(stored, layer, &blob, compression)?;
        image.references = reference.into_iter().collect();
        self.inner.commit(&ingest, std::slice::from_ref(&image))?;
        tracing::info!(image.id = %image.id, names = %names(&image.references), "image imported");
        let name = image.references.first().map_or_else(|| image.id.to_string(), Reference::to_string);
        self.inner.tell("import", image.id.to_string(), name, &config.labels);
        Ok(ImageId(image.id))
    }

    /// Makes an image of the given files, `(path in the image, mode, file on this host)`, in an
    /// otherwise empty root, and gives it a name. The files belong to root; directories on the way
    /// to them are made.
    ///
    /// The same content gives the same id on each host. When the named image was made of files that
    /// have not changed since (size, times and inode), nothing is read.
    pub fn install_root(
        &self,
        reference: &Reference,
        files: Vec<(PathBuf, u32, PathBuf)>,
        config: ImageConfig,
    ) -> Result<ImageId, ImageError> {
        let config = for_this_host(config);
        reference.require_no_digest()?;
        let mut tree = BTreeMap::new();
        for (path, mode, source) in files {
            tree.insert(plain_path(&path)?, (mode & 0o7777, source));
        }
        let stamp = source_stamp(&tree, &config)?;
        let known = self.inner.catalog();
        let installed = known
            .images
            .values()
            .find(|image| image.references.contains(reference) && image.source_stamp.as_deref() == Some(&stamp));
        if let Some(image) = installed {
            return Ok(ImageId(image.id));
        }

        let pins = Pins::new(&self.inner);
        let mut ingest = Ingest::new(&self.inner.tmp(), self.inner.limits.clone(), &pins)?;
        let blob = write_tar(&mut ingest, &tree)?;
        let name = format!("the files of {reference}");
        // The tar is not compressed: its digest is the layer's too.
        let (layers, _) = ingest.add_layers(&[(name, blob.clone())], &[blob.digest])?;
        let stored = StoredConfig::new(&config, &[blob.digest], Vec::new());
        let layer = Layer { chain: blob.digest, bytes: layers.iter().map(|layer| layer.bytes).sum() };
        let mut image = ingest.single_layer_image(stored, layer, &blob, Compression::None)?;
        image.references = vec![reference.clone()];
        image.source_stamp = Some(stamp);
        self.inner.commit(&ingest, std::slice::from_ref(&image))?;
        tracing::info!(image.id = %image.id, names = %names(&image.references), "image installed");
        Ok(ImageId(image.id))
    }
}

/// When the newest file below a directory was changed, in Unix seconds; nothing where none says. Directories do not
/// count: those that an archive does not name are made while it is unpacked.
fn newest_file(root: &Path) -> Result<Option<i64>, ImageError> {
    let mut newest = None;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(ImageError::io("list", &directory))? {
            let entry = entry.map_err(ImageError::io("list", &directory))?;
            let found = entry.metadata().map_err(ImageError::io("read", &entry.path()))?;
            if found.is_dir() {
                directories.push(entry.path());
            } else if found.is_file() && found.mtime() > 0 {
                newest = newest.max(Some(found.mtime()));
            }
        }
    }
    Ok(newest)
}

fn for_this_host(mut config: ImageConfig) -> ImageConfig {
    if config.os.is_empty() {
        HOST_OS.clone_into(&mut config.os);
    }
    if config.architecture.is_empty() {
        host_architecture().clone_into(&mut config.architecture);
    }
    config
}

/// A path in an image without its leading slash.
fn plain_path(path: &Path) -> Result<PathBuf, ImageError> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => plain.push(part),
            Component::ParentDir | Component::Prefix(_) => plain.clear(),
        }
    }
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if climbs || plain.as_os_str().is_empty() {
        return Err(ImageError::BadEntry {
            what: "the files of an image".to_owned(),
            entry: path.display().to_string(),
            reason: "it is not a path below the root".to_owned(),
        });
    }
    Ok(plain)
}

/// Changes when any of the files does, as Git's index tells it.
fn source_stamp(tree: &BTreeMap<PathBuf, (u32, PathBuf)>, config: &ImageConfig) -> Result<String, ImageError> {
    let mut text = String::new();
    for (path, (mode, source)) in tree {
        let stat = fs::metadata(source).map_err(ImageError::io("read", source))?;
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{path:?} {mode:o} {} {} {} {}.{} {}.{}",
            stat.dev(),
            stat.ino(),
            stat.size(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime(),
            stat.ctime_nsec(),
        );
    }
    let config = to_json(&StoredConfig::new(config, &[], Vec::new()))?;
    text.push_str(&String::from_utf8_lossy(&config));
    Ok(Digest::of(text.as_bytes()).to_string())
}

/// Writes a tar that depends on nothing but names, modes and content.
fn write_tar(ingest: &mut Ingest<'_>, tree: &BTreeMap<PathBuf, (u32, PathBuf)>) -> Result<SpooledFile, ImageError> {
    let path = ingest.fresh_path("blob");
    let file = File::create_new(&path).map_err(ImageError::io("create", &path))?;
    let mut tar = tar::Builder::new(HashWriter::new(file));
    let failed = || ImageError::io("write", &path);
    let mut made: Option<PathBuf> = None;
    for (name, (mode, source)) in tree {
        // Sorted paths bring each directory's files together.
        let parents: Vec<&Path> = name.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
        for dir in parents.into_iter().rev() {
            if !made.as_ref().is_some_and(|made| made.starts_with(dir)) {
                let mut header = header(tar::EntryType::Directory, 0o755, 0);
                tar.append_data(&mut header, dir, io::empty()).map_err(failed())?;
                made = Some(dir.to_owned());
            }
        }
        let content = File::open(source).map_err(ImageError::io("open", source))?;
        let size = content.metadata().map_err(ImageError::io("read", source))?.len();
        let mut header = header(tar::EntryType::Regular, *mode, size);
        // A file that grows or shrinks meanwhile must not shift what follows.
        let content = Exactly { inner: content, left: size };
        tar.append_data(&mut header, name, content).map_err(ImageError::io("copy", source))?;
    }
    let writer = tar.into_inner().map_err(failed())?;
    let (_, digest, size) = writer.finish();
    Ok(SpooledFile { path, digest, size })
}

pub(crate) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Reads exactly so many bytes, or fails.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(io::Error::other("the file shrank while it was read"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Writes down what is read through it.
pub(crate) struct Tee<R, W> {
    pub(crate) from: R,
    pub(crate) to: W,
}

impl<R: Read, W: io::Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.to.write_all(&buffer[..read])?;
        Ok(read)
    }
}
