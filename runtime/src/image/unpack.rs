//! Unpacks one layer's tar stream into a directory that overlayfs can use as a lower layer.
//!
//! Whiteouts become overlayfs's own: a character device 0/0, and `trusted.overlay.opaque` on a
//! directory. Nothing is ever opened outside of the directory (see [`super::root`]).

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::ImageError;
use super::limits::Budget;
use super::root::{Root, RootError};
use super::tarball::{TarEntry, TarKind, TarReader, shown};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// AUFS's own bookkeeping, which old archives hold.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// All directories' paths are kept until the end. A hundred thousand directories take some 6 MB.
const MAX_DIR_BYTES: usize = 64 << 20;
/// An archive must not speak to overlayfs directly: `redirect` would show other directories.
const RESERVED_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Unpacks one layer.
pub(crate) struct LayerWriter<'a> {
    root: Root,
    path: &'a Path,
    what: &'a str,
    /// The layers below, lowest first.
    lowers: &'a [PathBuf],
    budget: &'a mut Budget,
    /// The directory that was written to last; archives come in directory order.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories are set at the end, when nothing is added to them any more.
    dir_times: Vec<(Vec<u8>, (i64, u32))>,
    /// Length of the paths in `dir_times`.
    dir_bytes: usize,
    bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> LayerWriter<'a> {
    /// `path` must be an empty directory; `what` names the layer in errors.
    pub(crate) fn new(
        path: &'a Path,
        what: &'a str,
        lowers: &'a [PathBuf],
        budget: &'a mut Budget,
    ) -> Result<LayerWriter<'a>, ImageError> {
        let root = Root::open(path).map_err(|errno| ImageError::io("open the layer directory", path)(errno.into()))?;
        Ok(LayerWriter {
            root,
            path,
            what,
            lowers,
            budget,
            parent: None,
            dir_times: Vec::new(),
            dir_bytes: 0,
            bytes: 0,
            buffer: vec![0; 64 << 10],
        })
    }

    /// Unpacks all entries, up to the end marker. Returns the sum of the files' sizes.
    pub(crate) fn unpack<R: Read>(mut self, tar: &mut TarReader<R>) -> Result<u64, ImageError> {
        while let Some(entry) = tar.next_entry()? {
            self.budget.take_entry(self.what)?;
            self.apply(&entry, tar)?;
        }
        self.parent = None;
        for (path, mtime) in std::mem::take(&mut self.dir_times) {
            // A later entry may have replaced the directory.
            if let Ok(Some(dir)) = self.root.open_dir(&path) {
                rustix::fs::futimens(&dir, &timestamps(mtime))
                    .map_err(|errno| self.failed("set the times of", &path, errno))?;
            }
        }
        Ok(self.bytes)
    }

    fn apply(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), ImageError> {
        let (dir, name) = self.split(&entry.name, entry)?;
        if name.is_empty() {
            return self.apply_to_root(entry);
        }
        if name == OPAQUE_MARKER {
            let dir = self.parent_dir(&dir, entry)?;
            return self.set_opaque(&dir, &entry.name);
        }
        if name.starts_with(WHITEOUT_META_PREFIX)
            || dir.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT_META_PREFIX))
        {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(&dir, hidden, entry);
        }
        self.create(&dir, &name, entry, content)
    }

    /// The directory and the last component of a name; both empty for the root.
    fn split(&self, name: &[u8], entry: &TarEntry) -> Result<(Vec<u8>, Vec<u8>), ImageError> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    return Err(ImageError::Traversal { what: self.what.to_owned(), entry: entry.shown() });
                }
                part => parts.push(part),
            }
        }
        let last = parts.pop().unwrap_or_default().to_vec();
        Ok((parts.join(&b'/'), last))
    }

    fn apply_to_root(&mut self, entry: &TarEntry) -> Result<(), ImageError> {
        if entry.kind != TarKind::Dir {
            return Err(self.bad(&entry.name, "it would replace the layer's root"));
        }
        let root = self.parent_dir(b"", entry)?;
        self.set_attributes(&root, b".", entry)?;
        self.set_times_at_end(Vec::new(), entry.mtime)
    }

    fn create(&mut self, dir: &[u8], name: &[u8], entry: &TarEntry, content: &mut impl Read) -> Result<(), ImageError> {
        let parent = self.parent_dir(dir, entry)?;
        let link_source = match &entry.kind {
            TarKind::Hardlink(target) => Some(self.hard_link_source(target, entry)?),
            _ => None,
        };
        let there = lstat(&parent, name).map_err(|errno| self.failed("look up", &entry.name, errno))?;
        if let (Some((_, _, source)), Some(there)) = (&link_source, &there)
            && (source.st_dev, source.st_ino) == (there.st_dev, there.st_ino)
        {
            return Ok(());
        }
        let keep = entry.kind == TarKind::Dir && there.as_ref().is_some_and(is_dir);
        // A directory that takes the place of one that this layer removes hides what is in that.
        let opaque = entry.kind == TarKind::Dir && there.as_ref().is_some_and(is_whiteout);
        if let Some(there) = there
            && !keep
        {
            self.remove(&parent, name, &there, &entry.name)?;
        }
        let os = |operation| {
            let (what, path, shown_name) = (self.what, self.path, &entry.name);
            move |errno| failed(what, path, operation, shown_name, errno)
        };
        match &entry.kind {
            TarKind::Dir if keep => {}
            TarKind::Dir => rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(os("create"))?,
            TarKind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(os("create"))?;
                self.write_content(file, entry, content)?;
            }
            TarKind::Symlink(target) if target.is_empty() => {
                return Err(self.bad(&entry.name, "the link's target is empty"));
            }
            TarKind::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), &parent, name).map_err(os("create"))?;
            }
            TarKind::Hardlink(_) => {
                if let Some((source_dir, source_name, source)) = &link_source {
                    if is_dir(source) {
                        return Err(self.bad(&entry.name, "a hard link to a directory"));
                    }
                    let source_name = source_name.as_slice();
                    rustix::fs::linkat(source_dir, source_name, &parent, name, AtFlags::empty()).map_err(os("link"))?;
                }
                // The link shares its target's attributes.
                return Ok(());
            }
            TarKind::Char { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                mknod(&parent, name, FileType::CharacterDevice, device).map_err(os("create"))?;
            }
            TarKind::Block { major, minor } => {
                let device = rustix::fs::makedev(*major, *minor);
                mknod(&parent, name, FileType::BlockDevice, device).map_err(os("create"))?;
            }
            TarKind::Fifo => mknod(&parent, name, FileType::Fifo, 0).map_err(os("create"))?,
        }
        self.set_attributes(&parent, name, entry)?;
        if entry.kind == TarKind::Dir {
            let path = join(dir, name);
            if opaque && let Ok(Some(dir)) = self.root.open_dir(&path) {
                self.set_opaque(&dir, &entry.name)?;
            }
            self.set_times_at_end(path, entry.mtime)?;
        }
        self.parent = Some((dir.to_vec(), parent));
        Ok(())
    }

    fn write_content(&mut self, file: OwnedFd, entry: &TarEntry, content: &mut impl Read) -> Result<(), ImageError> {
        self.budget.take_bytes(self.what, entry.size)?;
        self.bytes += entry.size;
        let mut file = std::fs::File::from(file);
        let mut left = entry.size;
        while left > 0 {
            let read = content.read(&mut self.buffer).map_err(|error| ImageError::reading(self.what, error))?;
            if read == 0 {
                return Err(ImageError::Truncated { what: self.what.to_owned() });
            }
            file.write_all(&self.buffer[..read]).map_err(ImageError::io("write", &self.path.join(entry.shown())))?;
            left -= read as u64;
        }
        Ok(())
    }

    /// Where a hard link's target is, and what. It must be in this layer.
    fn hard_link_source(&self, target: &[u8], entry: &TarEntry) -> Result<(OwnedFd, Vec<u8>, Stat), ImageError> {
        let (dir, name) = self.split(target, entry)?;
        let missing = || {
            let target = shown(target);
            self.bad(&entry.name, &format!("its hard link's target {target:?} is not in the layer"))
        };
        if name.is_empty() {
            return Err(self.bad(&entry.name, "a hard link to the layer's root"));
        }
        let dir = self
            .root
            .open_dir(&dir)
            .map_err(|error| self.refused(error, "look up", &entry.name))?
            .ok_or_else(missing)?;
        let source =
            lstat(&dir, &name).map_err(|errno| self.failed("look up", &entry.name, errno))?.ok_or_else(missing)?;
        Ok((dir, name, source))
    }

    fn remove(&mut self, parent: &OwnedFd, name: &[u8], there: &Stat, entry: &[u8]) -> Result<(), ImageError> {
        self.parent = None;
        if is_dir(there) {
            use std::os::unix::ffi::OsStrExt;
            let path = proc_path(parent).join(std::ffi::OsStr::from_bytes(name));
            return std::fs::remove_dir_all(&path).map_err(ImageError::io("replace", &path));
        }
        rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|errno| self.failed("replace", entry, errno))
    }

    /// Hides `name` of the layers below.
    fn whiteout(&mut self, dir: &[u8], name: &[u8], entry: &TarEntry) -> Result<(), ImageError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(ImageError::Traversal { what: self.what.to_owned(), entry: entry.shown() });
        }
        let parent = self.parent_dir(dir, entry)?;
        let there = lstat(&parent, name).map_err(|errno| self.failed("look up", &entry.name, errno))?;
        match there {
            // This layer's own directory stays; only what is below it goes.
            Some(there) if is_dir(&there) => {
                if let Ok(Some(own)) = self.root.open_dir(&join(dir, name)) {
                    self.set_opaque(&own, &entry.name)?;
                }
            }
            // Anything else of this layer hides what is below by being there.
            Some(_) => {}
            // With nothing below to hide, overlayfs would list the device itself.
            None if !self.is_below(&join(dir, name)) => {}
            None => mknod(&parent, name, FileType::CharacterDevice, 0)
                .map_err(|errno| self.failed("create the whiteout of", &entry.name, errno))?,
        }
        self.parent = Some((dir.to_vec(), parent));
        Ok(())
    }

    /// Whether the layers below show something at `path`. When in doubt, they do.
    fn is_below(&self, path: &[u8]) -> bool {
        for lower in self.lowers.iter().rev() {
            match Root::open(lower).and_then(|root| root.stat(path)) {
                Ok(stat) => return !is_whiteout(&stat),
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR) => return false,
                Err(_) => return true,
            }
        }
        false
    }

    fn set_times_at_end(&mut self, path: Vec<u8>, mtime: (i64, u32)) -> Result<(), ImageError> {
        self.dir_bytes += path.len();
        self.dir_times.push((path, mtime));
        if self.dir_bytes > MAX_DIR_BYTES {
            return Err(ImageError::LimitExceeded {
                what: format!("{}: the paths of its directories", self.what),
                limit: format!("{MAX_DIR_BYTES} bytes"),
            });
        }
        Ok(())
    }

    fn set_opaque(&self, dir: &impl AsFd, entry: &[u8]) -> Result<(), ImageError> {
        rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(|errno| self.failed("mark as opaque", entry, errno))
    }

    /// Opens an entry's directory. What is missing of it is made; it looks like the same directory
    /// of the layers below, which it will cover.
    fn parent_dir(&mut self, dir: &[u8], entry: &TarEntry) -> Result<OwnedFd, ImageError> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == dir
        {
            return Ok(fd);
        }
        let lowers = self.lowers;
        let mut made = Vec::new();
        let outcome = self.root.make_dir(dir, |path, fd| {
            let like = lower_dir(lowers, path);
            let (mode, uid, gid, mtime) = like.unwrap_or((0o755, 0, 0, (0, 0)));
            rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
            made.push((path.to_vec(), mtime));
            Ok(())
        });
        let fd = outcome.map_err(|error| self.refused(error, "open the directory of", &entry.name))?;
        for (path, mtime) in made {
            self.set_times_at_end(path, mtime)?;
        }
        Ok(fd)
    }

    fn set_attributes(&self, parent: &OwnedFd, name: &[u8], entry: &TarEntry) -> Result<(), ImageError> {
        let os = |operation| move |errno| self.failed(operation, &entry.name, errno);
        // The owner first: changing it clears the set-user-id bits and file capabilities.
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(os("set the owner of"))?;
        let is_link = matches!(entry.kind, TarKind::Symlink(_));
        if !is_link {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(os("set the mode of"))?;
        }
        if !entry.xattrs.is_empty() {
            self.set_xattrs(parent, name, entry)?;
        }
        if entry.kind != TarKind::Dir {
            let times = timestamps(entry.mtime);
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(os("set the times of"))?;
        }
        Ok(())
    }

    fn set_xattrs(&self, parent: &OwnedFd, name: &[u8], entry: &TarEntry) -> Result<(), ImageError> {
        use std::os::unix::ffi::OsStrExt;
        let path = proc_path(parent).join(std::ffi::OsStr::from_bytes(name));
        for (key, value) in &entry.xattrs {
            if RESERVED_XATTRS.iter().any(|reserved| key.starts_with(reserved)) {
                tracing::debug!(layer = self.what, entry = %entry.shown(), key = %shown(key), "attribute of overlayfs left out");
                continue;
            }
            match rustix::fs::lsetxattr(&path, key.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // A host without SELinux or ACLs has no use for their attributes.
                Err(Errno::NOTSUP) => {
                    tracing::debug!(layer = self.what, entry = %entry.shown(), key = %shown(key), "attribute not supported here");
                }
                Err(errno) => {
                    let reason = format!("cannot set its attribute {:?}: {errno}", shown(key));
                    return Err(self.bad(&entry.name, &reason));
                }
            }
        }
        Ok(())
    }

    fn bad(&self, entry: &[u8], reason: &str) -> ImageError {
        ImageError::BadEntry { what: self.what.to_owned(), entry: shown(entry), reason: reason.to_owned() }
    }

    fn refused(&self, error: RootError, operation: &'static str, entry: &[u8]) -> ImageError {
        match error {
            RootError::Escape { link } => ImageError::Escape { what: self.what.to_owned(), entry: shown(entry), link },
            RootError::Os(errno) => self.failed(operation, entry, errno),
        }
    }

    fn failed(&self, operation: &'static str, entry: &[u8], errno: Errno) -> ImageError {
        failed(self.what, self.path, operation, entry, errno)
    }
}

/// Tells an archive's fault from the host's.
fn failed(what: &str, root: &Path, operation: &'static str, entry: &[u8], errno: Errno) -> ImageError {
    match errno {
        Errno::NAMETOOLONG
        | Errno::LOOP
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::INVAL
        | Errno::ILSEQ
        | Errno::MLINK => ImageError::BadEntry {
            what: what.to_owned(),
            entry: shown(entry),
            reason: format!("cannot {operation} it: {errno}"),
        },
        _ => ImageError::io(operation, &root.join(shown(entry)))(errno.into()),
    }
}

fn lstat(dir: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn mknod(dir: &OwnedFd, name: &[u8], kind: FileType, device: u64) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, kind, Mode::empty(), device)
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What overlayfs takes for "nothing is here".
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether nothing below this layer is seen at all. Overlayfs itself does not look for the mark on
/// a layer's root.
pub(crate) fn is_opaque_root(layer: &Path) -> bool {
    let mut value = [0_u8; 4];
    matches!(rustix::fs::lgetxattr(layer, OPAQUE_XATTR, &mut value[..]), Ok(1)) && value[0] == b'y'
}

/// Mode, owner, group and time of the topmost directory at `path` below.
fn lower_dir(lowers: &[PathBuf], path: &[u8]) -> Option<(u32, u32, u32, (i64, u32))> {
    for lower in lowers.iter().rev() {
        match Root::open(lower).and_then(|root| root.stat(path)) {
            Ok(stat) if is_dir(&stat) => {
                let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
                let mtime = (stat.st_mtime, nanoseconds);
                return Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, mtime));
            }
            Err(Errno::NOENT) => {}
            _ => return None,
        }
    }
    None
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A path to an open directory, for the calls that have no `*at` form.
fn proc_path(fd: &OwnedFd) -> PathBuf {
    let fd: BorrowedFd<'_> = fd.as_fd();
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, name].join(&b'/')
}
