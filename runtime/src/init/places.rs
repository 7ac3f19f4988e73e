//! Makes what is missing on the way to a place in the root, also where links on the way lead to nothing.
//!
//! An image may have `/etc/resolv.conf` as a link to a file that is only there when its own services run: then that
//! file is made, where the link leads inside of the root. Every step is looked up by the kernel inside of the root, so
//! whatever changes meanwhile, nothing is made elsewhere.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno as Error;

use super::mounts::resolve;

/// The kernel's bounds for a path and for the links on it.
const MAX: usize = 4096;
const MAX_LINKS: u32 = 40;

/// What is to be at the end of the way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Directory,
    File,
}

/// Makes a place and the directories above it, as far as they are missing, and opens it.
pub(super) fn make(root: BorrowedFd<'_>, path: &CStr, wanted: Wanted) -> Result<OwnedFd, Error> {
    let (mut walked, mut ahead) = (Walked::new(), Ahead::new(path.to_bytes())?);
    let (mut name, mut link) = ([0u8; MAX], [0u8; MAX]);
    let mut links = 0;
    while let Some(length) = ahead.next(&mut name) {
        let name = name.get(..length).unwrap_or_default();
        match name {
            b"" | b"." => continue,
            b".." => {
                walked.pop();
                continue;
            }
            _ => {}
        }
        let parent = resolve(root, walked.path(), OFlags::PATH | OFlags::DIRECTORY)?;
        walked.push(name)?;
        match rustix::fs::statat(&parent, walked.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Error::NOENT) if wanted == Wanted::File && ahead.is_over() => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, walked.name(), flags, Mode::from_raw_mode(0o644)).map(drop)?;
            }
            Err(Error::NOENT) => rustix::fs::mkdirat(&parent, walked.name(), Mode::from_raw_mode(0o755))?,
            Err(errno) => return Err(errno),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::LOOP);
                }
                let length = rustix::fs::readlinkat_raw(&parent, walked.name(), &mut link[..])?;
                let to = link.get(..length).unwrap_or_default();
                walked.pop();
                if to.starts_with(b"/") {
                    walked.clear();
                }
                ahead.prepend(to)?;
            }
            Ok(_) => {}
        }
    }
    let kind = if wanted == Wanted::Directory { OFlags::DIRECTORY } else { OFlags::empty() };
    resolve(root, walked.path(), OFlags::PATH | kind)
}

/// The way so far, relative to the root; no part of it is a link, so `..` is the part before it.
struct Walked {
    /// A zero follows the path.
    bytes: [u8; MAX],
    length: usize,
}

impl Walked {
    fn new() -> Walked {
        Walked { bytes: [0; MAX], length: 0 }
    }

    fn path(&self) -> &CStr {
        if self.length == 0 { c"." } else { CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c".") }
    }

    fn slash(&self) -> Option<usize> {
        self.bytes.get(..self.length)?.iter().rposition(|byte| *byte == b'/')
    }

    fn name(&self) -> &CStr {
        let from = self.slash().map_or(0, |slash| slash + 1);
        self.bytes.get(from..).and_then(|name| CStr::from_bytes_until_nul(name).ok()).unwrap_or(c".")
    }

    fn push(&mut self, name: &[u8]) -> Result<(), Error> {
        let from = if self.length == 0 { 0 } else { self.length + 1 };
        let end = from + name.len();
        let (Some(place), true) = (self.bytes.get_mut(from..end), end < MAX) else { return Err(Error::NAMETOOLONG) };
        place.copy_from_slice(name);
        if from > 0 {
            self.bytes[from - 1] = b'/';
        }
        self.cut(end);
        Ok(())
    }

    fn pop(&mut self) {
        self.cut(self.slash().unwrap_or(0));
    }

    fn clear(&mut self) {
        self.cut(0);
    }

    fn cut(&mut self, length: usize) {
        self.length = length;
        if let Some(end) = self.bytes.get_mut(length) {
            *end = 0;
        }
    }
}

/// What is still to be walked, at the end of its room: so a link goes before it.
struct Ahead {
    bytes: [u8; 2 * MAX],
    start: usize,
}

impl Ahead {
    fn new(path: &[u8]) -> Result<Ahead, Error> {
        let mut ahead = Ahead { bytes: [0; 2 * MAX], start: 2 * MAX };
        ahead.prepend(path)?;
        Ok(ahead)
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn prepend(&mut self, path: &[u8]) -> Result<(), Error> {
        let start = self.start.checked_sub(path.len() + 1).ok_or(Error::NAMETOOLONG)?;
        let Some((slash, place)) = self.bytes.get_mut(start..self.start).and_then(<[u8]>::split_last_mut) else {
            return Err(Error::NAMETOOLONG);
        };
        place.copy_from_slice(path);
        *slash = b'/';
        self.start = start;
        Ok(())
    }

    /// Takes the next part. Its length; `None` at the end.
    fn next(&mut self, name: &mut [u8; MAX]) -> Option<usize> {
        let length = self.rest().iter().position(|byte| *byte == b'/')?;
        name.get_mut(..length)?.copy_from_slice(self.rest().get(..length)?);
        self.start += length + 1;
        Some(length)
    }

    /// Whether no name follows.
    fn is_over(&self) -> bool {
        self.rest().iter().all(|byte| *byte == b'/')
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What there is below a directory, after a place in it was made.
    fn made(links: &[(&str, &str)], path: &CStr, wanted: Wanted) -> Result<Vec<String>, Error> {
        let dir = tempfile::tempdir().unwrap();
        for (link, to) in links {
            let link = dir.path().join(link);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(to, link).unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        let place = make(root.as_fd(), path, wanted)?;
        let own = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place))).unwrap();
        assert_eq!(own.is_dir(), wanted == Wanted::Directory);
        Ok(vec![own.strip_prefix(dir.path()).unwrap().display().to_string()])
    }

    #[test]
    fn links_to_nothing_are_followed_inside_of_the_root() {
        let check = |links: &[(&str, &str)], path: &CStr, wanted: Wanted, expected: &str| {
            assert_eq!(made(links, path, wanted), Ok(vec![expected.to_owned()]), "{path:?}");
        };
        check(&[], c"a/b/c", Wanted::Directory, "a/b/c");
        check(&[], c"a/b/c", Wanted::File, "a/b/c");
        let resolv = ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
        check(&[resolv], c"etc/resolv.conf", Wanted::File, "run/systemd/resolve/stub-resolv.conf");
        check(&[("x", "/run/y")], c"x/z", Wanted::File, "run/y/z");
        check(&[("x", "../../../out/"), ("out", "in")], c"x/./z", Wanted::Directory, "in/z");
        check(&[("d/x", "..//y")], c"d/x", Wanted::Directory, "y");
    }

    #[test]
    fn bounds() {
        assert_eq!(made(&[("a", "b"), ("b", "a")], c"a", Wanted::File), Err(Error::LOOP));
        assert_eq!(made(&[("a", "a/a")], c"a", Wanted::Directory), Err(Error::LOOP));
        let long = "x/".repeat(2000);
        let links = [("a", long.as_str())];
        let path = std::ffi::CString::new(format!("a/{}", "y/".repeat(100))).unwrap();
        assert_eq!(made(&links, &path, Wanted::Directory), Err(Error::NAMETOOLONG));
    }
}
