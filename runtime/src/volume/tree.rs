//! Copies a directory with all that is in it: owners, modes, times, extended attributes, hard links, holes.
//!
//! Every name is looked up in its open parent and no link is followed, so neither side leads anywhere else. Device
//! nodes are left out: in a volume they would be alive, whatever the container may make itself.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags, statat,
};
use rustix::io::Errno;

/// Attributes of one file are read up to here; the kernel has no larger ones (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const XATTR_MAX: usize = 64 << 10;
/// Bytes of a file that are copied at once.
const PIECE: u64 = 64 << 20;

/// Why it stopped: at which name, and the kernel's answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) name: CString,
    pub(super) errno: Errno,
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> io::Error {
        io::Error::other(format!("{}: {}", failed.name.to_string_lossy(), io::Error::from(failed.errno)))
    }
}

/// A directory that is being copied.
struct Level {
    from: OwnedFd,
    to: OwnedFd,
    entries: Dir,
    stat: Stat,
    name: CString,
}

/// The first copy of each file that has several names, as a path below the root of the copy. All directories on it were
/// made here, so there is no link on the way.
type Links = BTreeMap<(u64, u64), Vec<u8>>;

/// Copies what is in `from`, and its own owner, mode and attributes, to `to`. Both must be open for reading.
pub(super) fn copy(from: OwnedFd, to: OwnedFd) -> Result<(), Failed> {
    let mut links = Links::new();
    let root = to.try_clone().map_err(|_| Failed { name: c".".into(), errno: Errno::MFILE })?;
    let mut levels = vec![level(from, to, c".".into())?];
    while let Some(top) = levels.last_mut() {
        let next = top.entries.read().transpose();
        let failed = |name: &CStr| {
            let name = name.to_owned();
            move |errno| Failed { name, errno }
        };
        let Some(entry) = next.map_err(failed(&top.name))? else {
            finish_directory(top).map_err(failed(&top.name))?;
            levels.pop();
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let linked = copy_linked(&root, top, name, &links).map_err(failed(name))?;
        if let Linked::No { again } = linked {
            let copied = copy_entry(top, name).map_err(failed(name))?;
            if let Some(file) = again {
                let parts = levels.iter().map(|level| level.name.to_bytes()).chain([name.to_bytes()]);
                links.insert(file, parts.collect::<Vec<_>>().join(&b'/'));
            }
            if let Some((from, to)) = copied {
                levels.push(level(from, to, name.to_owned())?);
            }
        }
    }
    Ok(())
}

fn level(from: OwnedFd, to: OwnedFd, name: CString) -> Result<Level, Failed> {
    let open = || Ok((rustix::fs::fstat(&from)?, Dir::read_from(&from)?));
    match open() {
        Ok((stat, entries)) => Ok(Level { from, to, entries, stat, name }),
        Err(errno) => Err(Failed { name, errno }),
    }
}

/// When nothing is added to it any more: a directory's times change with its entries.
fn finish_directory(level: &Level) -> Result<(), Errno> {
    set_owner_and_mode(level.to.as_fd(), &level.stat)?;
    copy_attributes(level.from.as_fd(), level.to.as_fd())?;
    rustix::fs::futimens(&level.to, &times(&level.stat))
}

/// Whether an entry is one more name of a file that was copied.
enum Linked {
    Yes,
    /// No; and if it has more names, which file it is.
    No {
        again: Option<(u64, u64)>,
    },
}

fn copy_linked(root: &OwnedFd, level: &Level, name: &CStr, links: &Links) -> Result<Linked, Errno> {
    let stat = statat(&level.from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if stat.st_nlink < 2 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(Linked::No { again: None });
    }
    let file = (stat.st_dev, stat.st_ino);
    let Some(first) = links.get(&file) else { return Ok(Linked::No { again: Some(file) }) };
    match rustix::fs::linkat(root, first.as_slice(), &level.to, name, AtFlags::empty()) {
        Ok(()) => Ok(Linked::Yes),
        // A path that no call takes, or a file system without links: a copy then.
        Err(Errno::NAMETOOLONG | Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => Ok(Linked::No { again: None }),
        // The first name was a device's, which is not there.
        Err(Errno::NOENT) => Ok(Linked::No { again: None }),
        Err(errno) => Err(errno),
    }
}

/// Copies one entry. A directory is made, and returned with its copy.
fn copy_entry(level: &Level, name: &CStr) -> Result<Option<(OwnedFd, OwnedFd)>, Errno> {
    let stat = statat(&level.from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        rustix::fs::mkdirat(&level.to, name, Mode::from_raw_mode(0o700))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |dir: &OwnedFd| rustix::fs::openat(dir, name, flags, Mode::empty());
        return Ok(Some((open(&level.from)?, open(&level.to)?)));
    }
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        return Ok(None);
    }
    match kind {
        FileType::RegularFile => copy_file(level, name, &stat)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&level.from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, &level.to, name)?;
            finish_special(level, name, &stat, false)?;
        }
        // Pipes and sockets.
        _ => {
            rustix::fs::mknodat(&level.to, name, kind, Mode::from_raw_mode(0o600), 0)?;
            finish_special(level, name, &stat, true)?;
        }
    }
    Ok(None)
}

fn finish_special(level: &Level, name: &CStr, stat: &Stat, has_mode: bool) -> Result<(), Errno> {
    rustix::fs::chownat(&level.to, name, Some(uid(stat)), Some(gid(stat)), AtFlags::SYMLINK_NOFOLLOW)?;
    if has_mode {
        // It was made here a moment ago, in a directory that nobody else has open.
        rustix::fs::chmodat(&level.to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    rustix::fs::utimensat(&level.to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn copy_file(level: &Level, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = rustix::fs::openat(&level.from, name, read, Mode::empty())?;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::openat(&level.to, name, write, Mode::from_raw_mode(0o600))?;
    copy_data(&from, &to, u64::try_from(stat.st_size).unwrap_or(0))?;
    set_owner_and_mode(to.as_fd(), stat)?;
    copy_attributes(from.as_fd(), to.as_fd())?;
    rustix::fs::futimens(&to, &times(stat))
}

/// Data where there is data, nothing where there are holes.
fn copy_data(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<(), Errno> {
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // A hole up to the end.
            Err(Errno::NXIO) => break,
            // A file system that does not know of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(size).min(size).max(data + 1);
        copy_range(from, to, data, hole)?;
        at = hole;
    }
    rustix::fs::ftruncate(to, size)
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> Result<(), Errno> {
    while at < end {
        let (mut read, mut written) = (at, at);
        let length = usize::try_from((end - at).min(PIECE)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
            // Shorter than it was said to be.
            Ok(0) => return Ok(()),
            Ok(copied) => at += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_by_hand(from, to, at, end);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64) -> Result<(), Errno> {
    let mut buffer = vec![0u8; 256 << 10];
    while at < end {
        let length = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let read = match rustix::io::pread(from, &mut buffer[..length], at) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut done = 0;
        while done < read {
            match rustix::io::pwrite(to, &buffer[done..read], at + done as u64) {
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        at += read as u64;
    }
    Ok(())
}

/// The owner first: a change of it takes away the set-user bits and the capabilities.
fn set_owner_and_mode(to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(to, Some(uid(stat)), Some(gid(stat)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut names = vec![0u8; XATTR_MAX];
    let length = match rustix::fs::flistxattr(from, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // The host's label for the place, not the file's own.
        if name == b"security.selinux" || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        value.resize(XATTR_MAX, 0u8);
        let length = rustix::fs::fgetxattr(from, name, value.as_mut_slice())?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // The volume's file system has no such attributes.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn uid(stat: &Stat) -> Uid {
    Uid::from_raw(stat.st_uid)
}

fn gid(stat: &Stat) -> Gid {
    Gid::from_raw(stat.st_gid)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanos| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Removes everything in a directory, and leaves the directory.
pub(super) fn clear(dir: BorrowedFd<'_>) -> io::Result<()> {
    let path = std::path::PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    for entry in std::fs::read_dir(&path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether there is nothing in a directory.
pub(super) fn is_empty(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read().transpose()? {
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_copy_is_like_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a"), "first").unwrap();
        fs::hard_link(from.join("a"), from.join("sub/b")).unwrap();
        symlink("/nowhere/at/all", from.join("sub/link")).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o1703)).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, from.join("pipe"), Mode::from_raw_mode(0o640)).unwrap();
        let sparse = fs::File::create(from.join("sparse")).unwrap();
        sparse.write_all_at(b"end", 8 << 20).unwrap();
        sparse.set_len(16 << 20).unwrap();
        let with_xattrs = rustix::fs::setxattr(from.join("a"), c"user.mark", b"value", XattrFlags::empty()).is_ok();
        let old = Timespec { tv_sec: 1000, tv_nsec: 5 };
        let stamps = Timestamps { last_access: old, last_modification: old };
        rustix::fs::utimensat(rustix::fs::CWD, from.join("sub"), &stamps, AtFlags::empty()).unwrap();

        copy(open(&from), open(&to)).unwrap();

        let meta = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/b")).unwrap(), "first");
        assert_eq!((meta("a").ino(), meta("a").nlink()), (meta("sub/b").ino(), 2), "one file with two names");
        assert_eq!(meta("a").mode() & 0o7777, 0o4751);
        assert_eq!((meta("sub").mode() & 0o7777, meta("sub").mtime(), meta("sub").mtime_nsec()), (0o1703, 1000, 5));
        assert_eq!(fs::read_link(to.join("sub/link")).unwrap(), Path::new("/nowhere/at/all"));
        assert_eq!(FileType::from_raw_mode(meta("pipe").mode()), FileType::Fifo);
        assert_eq!(meta("sparse").len(), 16 << 20);
        assert!(meta("sparse").blocks() * 512 < 1 << 20, "holes stay holes");
        let mut end = [0u8; 3];
        fs::File::open(to.join("sparse")).unwrap().read_exact_at(&mut end, 8 << 20).unwrap();
        assert_eq!(&end, b"end");
        if with_xattrs {
            let mut value = [0u8; 16];
            assert_eq!(rustix::fs::getxattr(to.join("a"), c"user.mark", &mut value[..]), Ok(5));
        }
        assert!(!is_empty(open(&to).as_fd()).unwrap());
        clear(open(&to).as_fd()).unwrap();
        assert!(is_empty(open(&to).as_fd()).unwrap());
    }

    #[test]
    fn what_is_in_the_way_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a"), "new").unwrap();
        symlink(dir.path().join("outside"), to.join("a")).unwrap();
        let failed = copy(open(&from), open(&to)).unwrap_err();
        assert_eq!((failed.errno, failed.name.as_c_str()), (Errno::EXIST, c"a"));
        assert!(!dir.path().join("outside").exists());
    }
}
