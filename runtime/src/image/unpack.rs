//! Unpacks one layer's tar stream into a directory that overlayfs can use as a lower layer.
//!
//! Whiteouts become overlayfs's own: a character device 0/0, and `trusted.overlay.opaque` on a
//! directory. Nothing is ever opened outside of the directory (see [`super::root`]).
//!
//! Layers are unpacked without a look at those below, so that several go on at the same time.
//! What depends on them is left to [`Unsettled::settle`].

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::ImageError;
use super::limits::Budget;
use super::root::{Root, RootError};
use super::settle::Unsettled;
use super::tarball::{TarEntry, TarKind, TarReader, shown};
use crate::remove::remove_tree;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// AUFS's own bookkeeping, which old archives hold.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Paths of directories and whiteouts are kept until the end; they and what keeping them takes add up to at most this.
/// It is enough for half a million.
const MAX_KEPT_BYTES: usize = 64 << 20;
/// Bytes of the real path of a layer's directory, from the host's root. Links in an archive lead further and further
/// down, and the kernel takes no paths of more than 4096 bytes; some are left for the names of files.
const MAX_REAL_PATH_BYTES: usize = 4096 - 256;
/// What keeping one path takes beside its bytes.
const KEPT_OVERHEAD: usize = 64;
const BUFFER_BYTES: usize = 128 << 10;
/// Marks a directory that no entry has named, until the layer is settled. A later entry for it takes
/// the mark away, whichever way its path led there.
pub(super) const IMPLIED_XATTR: &str = "trusted.shoal.implied";
/// An archive must not speak to overlayfs directly: `redirect` would show other directories.
const RESERVED_XATTRS: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"trusted.shoal."];

/// Unpacks one layer.
pub(crate) struct LayerWriter<'a> {
    root: Root,
    path: &'a Path,
    what: &'a str,
    budget: &'a Budget,
    /// The directory that was written to last; archives come in directory order.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// The root's own path, from the host's root.
    root_path: Vec<u8>,
    /// Whether the layer has symbolic links by now, so that a directory's path may not be its real one.
    has_links: bool,
    unsettled: Unsettled,
    /// What `unsettled` takes in memory.
    kept_bytes: usize,
    bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> LayerWriter<'a> {
    /// `path` must be an empty directory; `what` names the layer in errors.
    pub(crate) fn new(path: &'a Path, what: &'a str, budget: &'a Budget) -> Result<LayerWriter<'a>, ImageError> {
        let root = Root::open(path).map_err(|errno| ImageError::io("open the layer directory", path)(errno.into()))?;
        let root_path = root.path().map_err(|errno| ImageError::io("find", path)(errno.into()))?;
        Ok(LayerWriter {
            root,
            root_path,
            has_links: false,
            path,
            what,
            budget,
            parent: None,
            unsettled: Unsettled::default(),
            kept_bytes: 0,
            bytes: 0,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Unpacks all entries, up to the end marker. Returns the sum of the files' sizes and what is left
    /// to do.
    pub(crate) fn unpack<R: Read>(mut self, tar: &mut TarReader<R>) -> Result<(u64, Unsettled), ImageError> {
        while let Some(entry) = tar.next_entry()? {
            self.budget.take_entry(self.what)?;
            self.apply(&entry, tar)?;
        }
        Ok((self.bytes, self.unsettled))
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
        if entry.kind == TarKind::File {
            // Nearly always nothing is there yet; asking first would cost a call for each file.
            match open_new(&parent, name) {
                Ok(file) => {
                    self.fill(file, entry, content)?;
                    self.parent = Some((dir.to_vec(), parent));
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.failed("create", &entry.name, errno)),
            }
        }
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
            TarKind::Dir if keep => self.name_directory(&parent, name),
            TarKind::Dir => {
                self.check_real_path(&parent, name.len(), &entry.name)?;
                rustix::fs::mkdirat(&parent, name, Mode::RWXU).map_err(os("create"))?;
            }
            TarKind::File => {
                let file = open_new(&parent, name).map_err(os("create"))?;
                self.fill(file, entry, content)?;
                self.parent = Some((dir.to_vec(), parent));
                return Ok(());
            }
            TarKind::Symlink(target) if target.is_empty() => {
                return Err(self.bad(&entry.name, "the link's target is empty"));
            }
            TarKind::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), &parent, name).map_err(os("create"))?;
                self.has_links = true;
            }
            TarKind::Hardlink(_) => {
                if let Some((source_dir, source_name, source)) = &link_source {
                    if is_dir(source) {
                        return Err(self.bad(&entry.name, "a hard link to a directory"));
                    }
                    let source_name = source_name.as_slice();
                    match rustix::fs::linkat(source_dir, source_name, &parent, name, AtFlags::empty()) {
                        // It was in the directory whose place the link takes.
                        Err(Errno::NOENT) => {
                            return Err(self.bad(&entry.name, "its hard link's target is inside of it"));
                        }
                        other => other.map_err(os("link"))?,
                    }
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
            let path = join(&self.real_path(&parent, dir), name);
            if opaque && let Ok(Some(dir)) = self.root.open_dir(&path) {
                self.set_opaque(&dir, &entry.name)?;
            }
            self.set_times_at_end(path, entry.mtime)?;
        }
        self.parent = Some((dir.to_vec(), parent));
        Ok(())
    }

    /// Gives a new file its content and attributes.
    fn fill(&mut self, file: OwnedFd, entry: &TarEntry, content: &mut impl Read) -> Result<(), ImageError> {
        let file = std::fs::File::from(file);
        self.write_content(&file, entry, content)?;
        let this = &*self;
        let os = |operation| move |errno| this.failed(operation, &entry.name, errno);
        // The owner first: changing it clears the set-user-id bits and file capabilities.
        rustix::fs::fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(os("set the owner of"))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(os("set the mode of"))?;
        self.set_xattrs(entry, |key, value| rustix::fs::fsetxattr(&file, key, value, XattrFlags::empty()))?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime)).map_err(os("set the times of"))
    }

    /// An entry names a directory that may have been made before without one.
    fn name_directory(&self, parent: &OwnedFd, name: &[u8]) {
        use std::os::unix::ffi::OsStrExt;
        if !self.unsettled.implied.is_empty() {
            let path = proc_path(parent).join(std::ffi::OsStr::from_bytes(name));
            // Mostly it has no mark.
            let _ = rustix::fs::lremovexattr(&path, IMPLIED_XATTR);
        }
    }

    fn write_content(
        &mut self,
        file: &std::fs::File,
        entry: &TarEntry,
        content: &mut impl Read,
    ) -> Result<(), ImageError> {
        self.budget.take_bytes(self.what, entry.size)?;
        self.bytes += entry.size;
        let written = |error| ImageError::io("write", &self.path.join(entry.shown()))(error);
        for extent in entry.extents() {
            let mut filled = extent.offset;
            while filled < extent.end() {
                let most = usize::try_from(extent.end() - filled).unwrap_or(usize::MAX).min(self.buffer.len());
                let read =
                    content.read(&mut self.buffer[..most]).map_err(|error| ImageError::reading(self.what, error))?;
                if read == 0 {
                    return Err(ImageError::Truncated { what: self.what.to_owned() });
                }
                file.write_all_at(&self.buffer[..read], filled).map_err(written)?;
                filled += read as u64;
            }
        }
        // A hole at the end.
        if entry.is_sparse() {
            file.set_len(entry.size).map_err(written)?;
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
        if is_whiteout(&source) {
            return Err(missing());
        }
        Ok((dir, name, source))
    }

    fn remove(&mut self, parent: &OwnedFd, name: &[u8], there: &Stat, entry: &[u8]) -> Result<(), ImageError> {
        self.parent = None;
        if is_dir(there) {
            use std::os::unix::ffi::OsStrExt;
            let path = proc_path(parent).join(std::ffi::OsStr::from_bytes(name));
            return remove_tree(&path).map_err(ImageError::io("replace", &path));
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
            None => {
                mknod(&parent, name, FileType::CharacterDevice, 0)
                    .map_err(|errno| self.failed("create the whiteout of", &entry.name, errno))?;
                let dir = self.real_path(&parent, dir);
                self.keep(dir.len() + name.len())?;
                self.unsettled.whiteouts.push((dir, name.to_vec()));
            }
        }
        self.parent = Some((dir.to_vec(), parent));
        Ok(())
    }

    fn set_times_at_end(&mut self, path: Vec<u8>, mtime: (i64, u32)) -> Result<(), ImageError> {
        self.keep(path.len())?;
        self.unsettled.times.push((path, mtime));
        Ok(())
    }

    /// Counts a path that is kept in memory.
    fn keep(&mut self, bytes: usize) -> Result<(), ImageError> {
        self.kept_bytes += bytes + KEPT_OVERHEAD;
        if self.kept_bytes > MAX_KEPT_BYTES {
            return Err(ImageError::LimitExceeded {
                what: format!("{}: the paths of its directories and whiteouts", self.what),
                limit: format!("{MAX_KEPT_BYTES} bytes"),
            });
        }
        Ok(())
    }

    fn set_opaque(&self, dir: &impl AsFd, entry: &[u8]) -> Result<(), ImageError> {
        rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(|errno| self.failed("mark as opaque", entry, errno))
    }

    /// Opens an entry's directory. What is missing of it is made, and settled later.
    fn parent_dir(&mut self, dir: &[u8], entry: &TarEntry) -> Result<OwnedFd, ImageError> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == dir
        {
            return Ok(fd);
        }
        let mut made = Vec::new();
        let outcome = self.root.make_dir(dir, |path, fd| {
            rustix::fs::fsetxattr(fd, IMPLIED_XATTR, b"y", XattrFlags::empty())?;
            made.push(path.to_vec());
            Ok(())
        });
        let fd = outcome.map_err(|error| self.refused(error, "open the directory of", &entry.name))?;
        let new = !made.is_empty();
        for path in made {
            // One entry can make two thousand of them.
            self.budget.take_entry(self.what)?;
            self.keep(path.len())?;
            self.unsettled.implied.push(path);
        }
        if new {
            self.check_real_path(&fd, 0, &entry.name)?;
        }
        Ok(fd)
    }

    /// Where an open directory is, below the root, whatever links `written` leads through: a later entry may put
    /// something else in their place.
    fn real_path(&self, dir: &OwnedFd, written: &[u8]) -> Vec<u8> {
        if !self.has_links {
            return written.to_vec();
        }
        let real = rustix::fs::readlink(proc_path(dir), Vec::new()).ok();
        let below = real.as_ref().and_then(|path| path.as_bytes().strip_prefix(self.root_path.as_slice()));
        below.map_or_else(|| written.to_vec(), |path| path.strip_prefix(b"/").unwrap_or(path).to_vec())
    }

    /// Refuses a directory that no path leads to, to be made with a name of so many bytes.
    fn check_real_path(&self, parent: &OwnedFd, name: usize, entry: &[u8]) -> Result<(), ImageError> {
        let length = match rustix::fs::readlink(proc_path(parent), Vec::new()) {
            Ok(path) => path.as_bytes().len() + 1 + name,
            Err(Errno::NAMETOOLONG) => MAX_REAL_PATH_BYTES,
            Err(errno) => return Err(self.failed("find the path of", entry, errno)),
        };
        if length < MAX_REAL_PATH_BYTES { Ok(()) } else { Err(self.bad(entry, "it is nested too deeply")) }
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
            use std::os::unix::ffi::OsStrExt;
            let path = proc_path(parent).join(std::ffi::OsStr::from_bytes(name));
            self.set_xattrs(entry, |key, value| rustix::fs::lsetxattr(&path, key, value, XattrFlags::empty()))?;
        }
        if entry.kind != TarKind::Dir {
            let times = timestamps(entry.mtime);
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(os("set the times of"))?;
        }
        Ok(())
    }

    fn set_xattrs(&self, entry: &TarEntry, set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>) -> Result<(), ImageError> {
        for (key, value) in &entry.xattrs {
            if RESERVED_XATTRS.iter().any(|reserved| key.starts_with(reserved)) {
                tracing::debug!(layer = self.what, entry = %entry.shown(), key = %shown(key), "attribute of overlayfs left out");
                continue;
            }
            match set(key, value) {
                Ok(()) => {}
                Err(errno) if may_be_left_out(key, errno) => {
                    tracing::debug!(layer = self.what, entry = %entry.shown(), key = %shown(key), %errno, "attribute left out");
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

fn open_new(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Tells an archive's fault from the host's.
pub(super) fn failed(what: &str, root: &Path, operation: &'static str, entry: &[u8], errno: Errno) -> ImageError {
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

pub(super) fn lstat(dir: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn mknod(dir: &OwnedFd, name: &[u8], kind: FileType, device: u64) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, kind, Mode::empty(), device)
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What overlayfs takes for "nothing is here".
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether nothing below this layer is seen at all. Overlayfs itself does not look for the mark on
/// a layer's root.
pub(crate) fn is_opaque_root(layer: &Path) -> bool {
    let mut value = [0_u8; 4];
    matches!(rustix::fs::lgetxattr(layer, OPAQUE_XATTR, &mut value[..]), Ok(1)) && value[0] == b'y'
}

pub(super) fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A path to an open directory, for the calls that have no `*at` form.
fn proc_path(fd: &OwnedFd) -> PathBuf {
    let fd: BorrowedFd<'_> = fd.as_fd();
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, name].join(&b'/')
}

/// Whether a file is good without an attribute that cannot be set, as Docker has it: a host without SELinux or ACLs has
/// no use for theirs, links and pipes cannot have users', and a host may keep some to itself. A program without its
/// capabilities is another one.
fn may_be_left_out(key: &[u8], errno: Errno) -> bool {
    match errno {
        Errno::NOTSUP => true,
        Errno::PERM => key != b"security.capability",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_may_be_left_out() {
        for (key, errno, expected) in [
            ("security.selinux", Errno::NOTSUP, true),
            ("security.ima", Errno::PERM, true),
            ("trusted.x", Errno::PERM, true),
            ("user.x", Errno::PERM, true),
            ("security.capability", Errno::PERM, false),
            ("user.x", Errno::NOSPC, false),
        ] {
            assert_eq!(may_be_left_out(key.as_bytes(), errno), expected, "{key}: {errno}");
        }
    }
}
