//! A tar archive into a directory of a container.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, StatVfsMountFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::CopyError;
use super::ids::{CAPABILITY, Ids};
use super::place::{Root, clean, failed, kernels, kernels_own, kind, parts};
use crate::image::{Budget, Decoder, EndMarker, ImageError, Limits, TarEntry, TarKind, TarReader};
use crate::init::{Names, parse_identity};
use crate::plan::process::user_spec;
use crate::remove::remove_tree;

const WHAT: &str = "the archive";
/// Bytes of the container's passwd and group file that are read.
const MAX_NAMES: u64 = 1 << 20;
/// Directories whose times are set at the end; beyond that they stay as they come out.
const MAX_TIMES: usize = 100_000;
/// Bytes of content that are read at once; so many zeros become a hole.
const PIECE: usize = 64 << 10;
/// Attributes by which an archive would speak to overlayfs.
const RESERVED: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// The container's own user and group, as the container counts them.
pub(super) fn owner(root: &Root, user: &str) -> Result<(u32, u32), CopyError> {
    let unknown =
        || CopyError::Path { path: user.to_owned(), reason: "the container does not know its own user".to_owned() };
    let read = |path: &str| root.read(path.as_bytes(), MAX_NAMES).map_err(|errno| failed("read", path, errno));
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    let spec = user_spec(user).map_err(|_| unknown())?;
    let identity = parse_identity(&spec, &[], Names { passwd: &passwd, group: &group }).map_err(|_| unknown())?;
    Ok((identity.uid, identity.gid))
}

/// `owner` is that of everything, as the container counts; else the archive says it of each entry.
pub(super) fn unpack(
    root: &Root,
    path: &str,
    archive: &mut dyn Read,
    ids: &Ids,
    keep_kinds: bool,
    owner: Option<(u32, u32)>,
) -> Result<(), CopyError> {
    let (names, _) = clean(path)?;
    let base = names.join("/").into_bytes();
    let target = root.open(&base, OFlags::PATH).map_err(|errno| failed("open", path, errno))?;
    let stat = rustix::fs::fstat(&target).map_err(|errno| failed("look at", path, errno))?;
    if kind(&stat) != FileType::Directory {
        return Err(CopyError::NotADirectory(path.to_owned()));
    }
    let limits = Limits::default();
    let mut writer = Writer {
        root,
        ids,
        base,
        keep_kinds,
        owner,
        budget: Budget::new(limits.clone()),
        parent: None,
        times: Vec::new(),
        buffer: vec![0; PIECE],
    };
    // Before anything is read: Docker refuses also what would have changed nothing.
    writer.writable(&target, path)?;
    let decoder = Decoder::new(archive, WHAT)?;
    let mut tar = TarReader::new(decoder, WHAT, &limits, EndMarker::Required);
    while let Some(entry) = tar.next_entry()? {
        writer.budget.take_entry(WHAT)?;
        writer.put(&entry, &mut tar)?;
    }
    writer.set_times();
    Ok(())
}

struct Writer<'a> {
    root: &'a Root,
    ids: &'a Ids,
    /// The directory that it goes to, without a slash in front.
    base: Vec<u8>,
    keep_kinds: bool,
    owner: Option<(u32, u32)>,
    budget: Budget,
    /// The directory that was written to last; archives come in directory order.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Of directories, set when nothing is added to them any more.
    times: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn put(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), CopyError> {
        let (dir, name) = split(&entry.name, entry)?;
        if name.is_empty() {
            // The directory itself: it is there, and stays as it is.
            return match entry.kind {
                TarKind::Dir => Ok(()),
                _ => Err(bad(entry, "it would replace the directory that it goes to")),
            };
        }
        if let TarKind::Char { .. } | TarKind::Block { .. } = entry.kind {
            return Err(bad(entry, "devices are not copied into containers"));
        }
        let parent = match self.parent.take() {
            Some((cached, fd)) if cached == dir => fd,
            _ => self.directory(&dir, entry)?,
        };
        self.put_in(&parent, &dir, &name, entry, content)?;
        // A link that was made may be on the way of what follows, but never above what is open.
        self.parent = Some((dir, parent));
        Ok(())
    }

    fn put_in(
        &mut self,
        parent: &OwnedFd,
        dir: &[u8],
        name: &[u8],
        entry: &TarEntry,
        content: &mut impl Read,
    ) -> Result<(), CopyError> {
        let os = |operation| move |errno| refused(operation, entry, errno);
        let there = lstat(parent, name).map_err(os("look at"))?;
        let is_dir = entry.kind == TarKind::Dir;
        let there_is_dir = there.as_ref().is_some_and(|stat| kind(stat) == FileType::Directory);
        if there.is_some() && self.keep_kinds && there_is_dir != is_dir {
            return Err(bad(
                entry,
                match is_dir {
                    true => "cannot overwrite non-directory with directory",
                    false => "cannot overwrite directory with non-directory",
                },
            ));
        }
        let link = match &entry.kind {
            TarKind::Hardlink(target) => Some(self.link_source(target, entry)?),
            _ => None,
        };
        if let (Some((_, _, source)), Some(there)) = (&link, &there)
            && (source.st_dev, source.st_ino) == (there.st_dev, there.st_ino)
        {
            return Ok(());
        }
        if there.is_some() && !(is_dir && there_is_dir) {
            remove(parent, name, there_is_dir, entry)?;
        }
        match &entry.kind {
            TarKind::File => return self.file(parent, name, entry, content),
            TarKind::Dir => {
                if !there_is_dir {
                    rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(os("create"))?;
                }
                if self.times.len() < MAX_TIMES {
                    self.times.push((join(dir, name), entry.mtime));
                }
            }
            TarKind::Symlink(target) => rustix::fs::symlinkat(target.as_slice(), parent, name).map_err(os("create"))?,
            TarKind::Hardlink(_) => {
                if let Some((from, target, _)) = link {
                    // Never through a link: it could name another file by now.
                    rustix::fs::linkat(&from, &*target, parent, name, AtFlags::empty()).map_err(os("link"))?;
                }
                // It shares its target's attributes.
                return Ok(());
            }
            // Devices were refused.
            _ => {
                let mode = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0).map_err(os("create"))?;
            }
        }
        self.attributes(parent, name, entry)
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &TarEntry,
        content: &mut impl Read,
    ) -> Result<(), CopyError> {
        self.budget.take_bytes(WHAT, entry.size)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| refused("create", entry, errno))?;
        let file = std::fs::File::from(made);
        let done = self.content(&file, entry, content).and_then(|()| self.file_attributes(&file, entry));
        if done.is_err() {
            // Half a file must not look like one. Who has renamed it meanwhile keeps it.
            let _ = rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
        done
    }

    fn content(&mut self, file: &std::fs::File, entry: &TarEntry, content: &mut impl Read) -> Result<(), CopyError> {
        let written = |source| CopyError::io("write", entry.shown(), source);
        for extent in entry.extents() {
            let mut at = extent.offset;
            while at < extent.end() {
                let mut filled = 0;
                let wanted = PIECE.min(usize::try_from(extent.end() - at).unwrap_or(PIECE));
                while filled < wanted {
                    match content.read(&mut self.buffer[filled..wanted]) {
                        Ok(0) => return Err(ImageError::Truncated { what: WHAT.to_owned() }.into()),
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(ImageError::reading(WHAT, error).into()),
                    }
                }
                let piece = &self.buffer[..filled];
                // Nothing is written where nothing is.
                if piece.iter().any(|byte| *byte != 0) {
                    file.write_all_at(piece, at).map_err(written)?;
                }
                at += filled as u64;
            }
        }
        file.set_len(entry.size).map_err(written)
    }

    fn ids_of(&self, entry: &TarEntry) -> Result<(Uid, Gid), CopyError> {
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let (uid, gid) = self.ids.outside(uid, gid, &entry.shown())?;
        Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    fn file_attributes(&self, file: &std::fs::File, entry: &TarEntry) -> Result<(), CopyError> {
        let os = |operation| move |errno| refused(operation, entry, errno);
        // The owner first: changing it clears the set-user-id bits and capabilities.
        let (uid, gid) = self.ids_of(entry)?;
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(os("set the owner of"))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(os("set the mode of"))?;
        self.xattrs(entry, |key, value| rustix::fs::fsetxattr(file, key, value, XattrFlags::empty()))?;
        rustix::fs::futimens(file, &timestamps(entry.mtime)).map_err(os("set the times of"))
    }

    /// Of everything but files.
    fn attributes(&self, parent: &OwnedFd, name: &[u8], entry: &TarEntry) -> Result<(), CopyError> {
        let os = |operation| move |errno| refused(operation, entry, errno);
        let (uid, gid) = self.ids_of(entry)?;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(os("set the owner of"))?;
        if !matches!(entry.kind, TarKind::Symlink(_)) {
            // By a descriptor: a name could be a link by now, and chmod has no way not to follow it.
            let (fd, stat) = super::place::entry(parent, name).map_err(os("open"))?;
            if kind(&stat) == FileType::Symlink {
                return Err(bad(entry, "something else was put in its place"));
            }
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            rustix::fs::chmod(&path, Mode::from_raw_mode(entry.mode)).map_err(os("set the mode of"))?;
            self.xattrs(entry, |key, value| rustix::fs::setxattr(&path, key, value, XattrFlags::empty()))?;
        }
        if entry.kind != TarKind::Dir {
            let times = timestamps(entry.mtime);
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(os("set the times of"))?;
        }
        Ok(())
    }

    fn xattrs(&self, entry: &TarEntry, set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>) -> Result<(), CopyError> {
        for (key, value) in &entry.xattrs {
            if RESERVED.iter().any(|reserved| key.starts_with(reserved)) {
                continue;
            }
            let value = if key == CAPABILITY { self.ids.capability_outside(value) } else { value.clone() };
            match set(key, &value) {
                // A file system without them has no use for them.
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(errno) => {
                    let name = String::from_utf8_lossy(key).into_owned();
                    return Err(bad(entry, &format!("cannot set its attribute {name:?}: {errno}")));
                }
            }
        }
        Ok(())
    }

    /// Where a hard link's target is, and what.
    fn link_source(&self, target: &[u8], entry: &TarEntry) -> Result<(OwnedFd, Vec<u8>, rustix::fs::Stat), CopyError> {
        let missing = |_| bad(entry, "the file that it is a link to is not there");
        let (dir, name) = split(target, entry)?;
        if name.is_empty() {
            return Err(missing(Errno::NOENT));
        }
        let from = self.open(&dir).map_err(missing)?;
        let stat = lstat(&from, &name).and_then(|stat| stat.ok_or(Errno::NOENT)).map_err(missing)?;
        Ok((from, name, stat))
    }

    /// Opens a directory below the one that it all goes to, as the container sees it.
    fn open(&self, dir: &[u8]) -> Result<OwnedFd, Errno> {
        self.root.open(&join(&self.base, dir), OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// The same, and makes what is missing.
    fn directory(&self, dir: &[u8], entry: &TarEntry) -> Result<OwnedFd, CopyError> {
        let os = |errno| refused("open the directory of", entry, errno);
        match self.open(dir) {
            Err(Errno::NOENT) => {}
            found => {
                let found = found.map_err(os)?;
                self.writable(&found, &entry.shown())?;
                return Ok(found);
            }
        }
        let mut parent = self.open(b"").map_err(os)?;
        let mut path = Vec::new();
        for part in parts(dir) {
            path = join(&path, part);
            parent = match self.open(&path) {
                Err(Errno::NOENT) => {
                    self.writable(&parent, &entry.shown())?;
                    let refused = |errno| refused("create the directory of", entry, errno);
                    rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755)).map_err(refused)?;
                    let made = self.open(&path).map_err(os)?;
                    let (uid, gid) = self.owner.unwrap_or((0, 0));
                    let (uid, gid) = self.ids.outside(uid, gid, &entry.shown())?;
                    rustix::fs::fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(os)?;
                    made
                }
                other => other.map_err(os)?,
            };
        }
        self.writable(&parent, &entry.shown())?;
        Ok(parent)
    }

    /// Whether a directory takes files: it is not mounted read-only, and no filesystem of the kernel's.
    fn writable(&self, dir: &OwnedFd, path: &str) -> Result<(), CopyError> {
        let failed = |errno| failed("look at", path, errno);
        if let Some(name) = kernels(dir).map_err(failed)? {
            return Err(kernels_own(path, name));
        }
        let device = |fd| rustix::fs::fstat(fd).map(|stat| stat.st_dev).map_err(failed);
        let root = rustix::fs::fstat(self.root.fd()).map_err(failed)?.st_dev;
        let mounted = device(dir)? != root;
        if mounted && self.ids.has_lost_its_maps() {
            let reason = "the container had users of its own and has ended, so nobody can tell whose files in its volumes \
                          should be: copy while it runs";
            return Err(CopyError::Path { path: path.to_owned(), reason: reason.to_owned() });
        }
        if !rustix::fs::fstatvfs(dir).map_err(failed)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(());
        }
        match mounted {
            false => Err(CopyError::ReadOnlyRoot),
            true => Err(CopyError::ReadOnlyVolume(path.to_owned())),
        }
    }

    fn set_times(&self) {
        for (path, mtime) in &self.times {
            // What was replaced meanwhile has another time.
            if let Ok(dir) = self.open(path) {
                let _ = rustix::fs::futimens(&dir, &timestamps(*mtime));
            }
        }
    }
}

/// A directory and a name in it.
fn split(name: &[u8], entry: &TarEntry) -> Result<(Vec<u8>, Vec<u8>), CopyError> {
    let mut names: Vec<&[u8]> = parts(name).collect();
    if names.contains(&b"..".as_slice()) {
        return Err(bad(entry, "it leaves the directory that it goes to"));
    }
    let last = names.pop().unwrap_or_default().to_vec();
    Ok((names.join(&b'/'), last))
}

fn remove(parent: &OwnedFd, name: &[u8], is_dir: bool, entry: &TarEntry) -> Result<(), CopyError> {
    if is_dir {
        // It follows no link, whatever is swapped in there, and goes as deep as it must.
        let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
        let removed = remove_tree(&Path::new(&path).join(OsStr::from_bytes(name)));
        return removed.map_err(|source| CopyError::io("replace", entry.shown(), source));
    }
    rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|errno| refused("replace", entry, errno))
}

/// Tells an archive's fault from the host's.
fn refused(operation: &'static str, entry: &TarEntry, errno: Errno) -> CopyError {
    match errno {
        Errno::ROFS => CopyError::ReadOnlyVolume(entry.shown()),
        Errno::LOOP | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::EXIST | Errno::NOENT | Errno::INVAL | Errno::PERM => {
            bad(entry, &format!("cannot {operation} it: {errno}"))
        }
        errno => CopyError::io(operation, entry.shown(), errno),
    }
}

fn bad(entry: &TarEntry, reason: &str) -> CopyError {
    CopyError::Entry { entry: entry.shown(), reason: reason.to_owned() }
}

fn lstat(dir: &OwnedFd, name: &[u8]) -> Result<Option<rustix::fs::Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (false, true) => dir.to_vec(),
        (false, false) => [dir, name].join(&b'/'),
    }
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
