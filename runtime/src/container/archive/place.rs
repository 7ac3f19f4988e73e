//! Paths in the root of a container.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{CopyError, PathStat};

/// The longest path that is looked up, as the kernel has it.
const MAX_PATH: usize = 4095;
/// Links followed for one path, as many as Docker follows.
const MAX_LINKS: usize = 255;
/// Look-ups that a container may disturb by renaming before they are given up.
const MAX_TRIES: usize = 1000;

/// The root of a container.
pub(super) struct Root {
    fd: OwnedFd,
    /// Keeps its mounts together.
    mounts: Option<OwnedFd>,
}

impl Root {
    /// `fd` may be open as a path only; `mounts` is the mount namespace that it belongs to.
    pub(super) fn new(fd: OwnedFd, mounts: Option<OwnedFd>) -> Root {
        Root { fd, mounts }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn mounts(&self) -> Option<&OwnedFd> {
        self.mounts.as_ref()
    }

    /// Opens a path inside. No magic link of /proc is followed, and nothing leads out.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    /// As [`Root::open`], as a path only, and no link is followed at all.
    pub(super) fn open_plain(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
    }

    fn resolve(&self, path: &[u8], flags: OFlags, more: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        for _ in 0..MAX_TRIES {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// A small regular file, whole; empty when it is not there.
    pub(super) fn read(&self, path: &[u8], limit: u64) -> Result<Vec<u8>, Errno> {
        let found = match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            other => other?,
        };
        let file = std::fs::File::from(open_regular(&found)?);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, limit), &mut bytes)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(bytes)
    }

    /// Where a path leads with all its links followed, absolute; what is behind something that is not there is taken as
    /// it is written.
    fn follow(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut todo: VecDeque<Vec<u8>> = parts(path).map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == b".." {
                done.pop();
                continue;
            }
            done.push(part);
            let target = match self.open_plain(&done.join(&b'/')) {
                Ok(found) if kind(&rustix::fs::fstat(&found)?) == FileType::Symlink => link_target(&found)?,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(errno),
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            done.pop();
            if target.starts_with(b"/") {
                done.clear();
            }
            for part in parts(&target).map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter().rev() {
                todo.push_front(part);
            }
        }
        Ok([b"/".as_slice(), &done.join(&b'/')].concat())
    }
}

/// The names of a path, without empty ones and `.`.
pub(super) fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// Opens for reading what was found, if it is a regular file: a device or a pipe is never opened.
pub(super) fn open_regular(found: &OwnedFd) -> Result<OwnedFd, Errno> {
    if kind(&rustix::fs::fstat(found)?) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    // The same file, whatever its name leads to by now.
    rustix::fs::open(format!("/proc/self/fd/{}", found.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens for reading what was found as a path only, and is a directory.
pub(super) fn open_directory(found: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(found, c".", flags, Mode::empty())
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The kernel filesystem that this is on, if it is on one: its files are no data, and writing to them is an order.
pub(super) fn kernels(fd: impl AsFd) -> Result<Option<&'static str>, Errno> {
    Ok(match rustix::fs::fstatfs(fd)?.f_type {
        0x9fa0 => Some("proc"),
        0x6265_6572 => Some("sysfs"),
        0x0027_e0eb | 0x6367_7270 => Some("cgroup"),
        0x1cd1 => Some("devpts"),
        0x1980_0202 => Some("mqueue"),
        0x6462_6720 => Some("debugfs"),
        0x7472_6163 => Some("tracefs"),
        0x7363_6673 => Some("securityfs"),
        0xcafe_4a11 => Some("bpf"),
        0x6265_6570 => Some("configfs"),
        0x4249_4e4d => Some("binfmt_misc"),
        _ => None,
    })
}

/// Where a path leads: the thing, and the names that it is called by.
pub(super) struct Place {
    /// Opened as a path only.
    pub(super) fd: OwnedFd,
    /// The path as it was asked for.
    asked: String,
    /// Its last name; `/` for the root, `.` where the path ends so.
    name: String,
    /// The path without `.`, `..` and a slash at its end.
    plain: Vec<u8>,
}

impl Place {
    pub(super) fn find(root: &Root, asked: &str) -> Result<Place, CopyError> {
        let (plain, end) = clean(asked)?;
        let path = plain.join("/").into_bytes();
        // `dir/` and `dir/.` mean what is in it, also when `dir` is a link to it.
        let flags = match end {
            End::Name => OFlags::PATH | OFlags::NOFOLLOW,
            End::Slash | End::Dot => OFlags::PATH | OFlags::DIRECTORY,
        };
        let fd = root.open(&path, flags).map_err(|errno| failed("open", asked, errno))?;
        if let Some(name) = kernels(&fd).map_err(|errno| failed("look at", asked, errno))? {
            return Err(kernels_own(asked, name));
        }
        let name = match (end, plain.last()) {
            (End::Dot, _) => ".",
            (_, Some(last)) => last,
            (_, None) => "/",
        };
        Ok(Place { fd, asked: asked.to_owned(), name: name.to_owned(), plain: path })
    }

    /// What it is called in an archive, without a slash at its end; the root is called nothing.
    pub(super) fn top(&self) -> &str {
        if self.name == "/" { "" } else { &self.name }
    }

    pub(super) fn stat(&self, root: &Root) -> Result<PathStat, CopyError> {
        let failed = |errno| failed("look at", &self.asked, errno);
        let stat = rustix::fs::fstat(&self.fd).map_err(failed)?;
        let link_target = match kind(&stat) {
            FileType::Symlink => root.follow(&self.plain).map_err(failed)?,
            _ => Vec::new(),
        };
        let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        Ok(PathStat {
            name: self.name.clone(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            modified: SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(stat.st_mtime_nsec),
            link_target: String::from_utf8_lossy(&link_target).into_owned(),
        })
    }
}

/// How a path ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Name,
    Slash,
    Dot,
}

/// A path's names, with `..` taken back as it is written, as Docker does; and how it ended.
pub(super) fn clean(path: &str) -> Result<(Vec<&str>, End), CopyError> {
    let bad = |reason: &str| CopyError::Path { path: path.chars().take(256).collect(), reason: reason.to_owned() };
    if path.is_empty() {
        return Err(bad("a path is needed"));
    }
    if path.len() > MAX_PATH || path.contains('\0') {
        return Err(bad("it is too long, or holds a NUL byte"));
    }
    let mut names = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let end = match path.trim_end_matches('/').rsplit('/').next() {
        Some(".") => End::Dot,
        _ if path.ends_with('/') && !names.is_empty() => End::Slash,
        _ => End::Name,
    };
    Ok((names, end))
}

/// Where a link that was opened as a path points.
pub(super) fn link_target(link: &impl AsFd) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(link, c"", Vec::new())?.into_bytes())
}

/// What lies in an open directory under a name, as a path only; a link is not followed.
pub(super) fn entry(dir: impl AsFd, name: &[u8]) -> Result<(OwnedFd, Stat), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let stat = rustix::fs::statat(&fd, c"", AtFlags::EMPTY_PATH)?;
    Ok((fd, stat))
}

pub(super) fn kernels_own(path: &str, name: &str) -> CopyError {
    let reason = format!("it is on a {name} filesystem of the kernel's, which is neither copied nor written to");
    CopyError::Path { path: path.to_owned(), reason }
}

/// The kernel's answer about a path.
pub(super) fn failed(operation: &'static str, path: &str, errno: Errno) -> CopyError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT => CopyError::NotFound(path),
        Errno::NOTDIR => CopyError::NotADirectory(path),
        Errno::LOOP => CopyError::Path { path, reason: "too many links, or a link of the kernel's own".to_owned() },
        Errno::NAMETOOLONG => CopyError::Path { path, reason: "a name is too long".to_owned() },
        errno => CopyError::Io { operation, path, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[track_caller]
    fn check(path: &str, names: &[&str], end: End) {
        assert_eq!(clean(path).unwrap(), (names.to_vec(), end), "{path}");
    }

    #[test]
    fn paths_as_docker_reads_them() {
        check("/", &[], End::Name);
        check("/.", &[], End::Dot);
        check(".", &[], End::Dot);
        check("a/b", &["a", "b"], End::Name);
        check("/a//b/", &["a", "b"], End::Slash);
        check("/a/b/.", &["a", "b"], End::Dot);
        check("/a/./", &["a"], End::Dot);
        check("/a/../../b", &["b"], End::Name);
        check("..", &[], End::Name);
        for bad in ["", "a\0b", &"a/".repeat(3000)] {
            assert!(clean(bad).is_err());
        }
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/deep")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "of the container").unwrap();
        for (target, link) in [
            ("/etc/passwd", "abs"),
            ("../../../../etc", "up"),
            ("etc/deep/../passwd", "dots"),
            ("missing/x", "dangling"),
            ("loop", "loop"),
            ("up/passwd", "chain"),
        ] {
            symlink(target, dir.path().join(link)).unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = Root::new(rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap(), None);
        for link in ["abs", "up/passwd", "dots", "chain"] {
            assert_eq!(root.read(link.as_bytes(), 100).unwrap(), b"of the container", "{link}");
        }
        let target = |path: &str| Place::find(&root, path).and_then(|place| place.stat(&root)).map(|s| s.link_target);
        for (link, leads) in [
            ("abs", "/etc/passwd"),
            ("up", "/etc"),
            ("dots", "/etc/passwd"),
            ("dangling", "/missing/x"),
            ("chain", "/etc/passwd"),
        ] {
            assert_eq!(target(link).unwrap(), leads, "{link}");
        }
        assert!(matches!(target("loop"), Err(CopyError::Path { .. })));
        assert!(matches!(target("nothing"), Err(CopyError::NotFound(_))));
        assert!(matches!(target("abs/"), Err(CopyError::NotADirectory(_))));
        let stat = Place::find(&root, "up/.").unwrap().stat(&root).unwrap();
        assert_eq!((stat.name.as_str(), stat.link_target.as_str()), (".", ""));
        assert_eq!(kind(&rustix::fs::fstat(Place::find(&root, "up/").unwrap().fd).unwrap()), FileType::Directory);
        assert_eq!(root.read(b"nothing", 100).unwrap(), b"");
    }
}
