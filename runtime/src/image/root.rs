//! Opens and makes things below one directory, whatever names and links an archive holds.
//!
//! The kernel keeps every look-up inside (`openat2` with `RESOLVE_BENEATH`); what it refuses is
//! resolved here link by link, so that an absolute link means the layer's root, as it will inside of
//! the container, and a link that climbs out of the root is told apart and refused.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links followed for one path, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// A directory that nothing leaves.
pub(crate) struct Root {
    fd: OwnedFd,
}

/// Why a path below a [`Root`] cannot be used.
#[derive(Debug)]
pub(crate) enum RootError {
    /// A symbolic link leads out of the root.
    Escape { link: String },
    /// The kernel's answer.
    Os(Errno),
}

impl From<Errno> for RootError {
    fn from(errno: Errno) -> RootError {
        RootError::Os(errno)
    }
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Root, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root { fd: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Opens the directory at `path` (components joined with `/`, empty for the root itself).
    /// Links are followed as inside of a container. `None` if something on the way does not exist.
    pub(crate) fn open_dir(&self, path: &[u8]) -> Result<Option<OwnedFd>, RootError> {
        match self.open_beneath(path, ResolveFlags::BENEATH) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::XDEV) => match self.real_path(path)? {
                (real, true) => Ok(Some(self.open_real(&real)?)),
                (_, false) => Ok(None),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens the directory at `path` and makes what is missing of it. `made` is called for each new
    /// directory with its real path, to give it its owner and mode.
    pub(crate) fn make_dir(
        &self,
        path: &[u8],
        mut made: impl FnMut(&[u8], BorrowedFd<'_>) -> Result<(), RootError>,
    ) -> Result<OwnedFd, RootError> {
        match self.open_beneath(path, ResolveFlags::BENEATH) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT | Errno::XDEV) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (real, _) = self.real_path(path)?;
        let mut fd = self.open_real(b"")?;
        let mut at = Vec::new();
        for component in real.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(component);
            let new = match rustix::fs::mkdirat(&fd, component, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(errno.into()),
            };
            fd = rustix::fs::openat2(
                &fd,
                component,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            )?;
            if new {
                made(&at, fd.as_fd())?;
            }
        }
        Ok(fd)
    }

    /// Opens the directory at `path`, which holds no links; `None` if there is none (any more).
    pub(crate) fn open_found(&self, path: &[u8]) -> Option<OwnedFd> {
        self.open_real(path).ok()
    }

    /// Where it is, from the host's root.
    pub(crate) fn path(&self) -> Result<Vec<u8>, Errno> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.fd));
        Ok(rustix::fs::readlink(path, Vec::new())?.into_bytes())
    }

    /// What is at `path`, without following a link there; links on the way stay inside of the root.
    pub(crate) fn stat(&self, path: &[u8]) -> Result<rustix::fs::Stat, Errno> {
        let fd = rustix::fs::openat2(
            &self.fd,
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?;
        rustix::fs::fstat(&fd)
    }

    fn open_beneath(&self, path: &[u8], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        // The kernel gives up on `..` when anything on the host is renamed meanwhile.
        for _ in 0..8 {
            let fd = rustix::fs::openat2(
                &self.fd,
                path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                resolve | ResolveFlags::NO_MAGICLINKS,
            );
            if !matches!(fd, Err(Errno::AGAIN)) {
                return fd;
            }
        }
        // The way of resolving that follows this answer needs no `..`.
        Err(Errno::XDEV)
    }

    fn open_real(&self, path: &[u8]) -> Result<OwnedFd, RootError> {
        Ok(self.open_beneath(path, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
    }

    /// `path` with all links replaced by what they point to, and whether all of it exists. What
    /// comes behind the first missing component is taken as it is written.
    fn real_path(&self, path: &[u8]) -> Result<(Vec<u8>, bool), RootError> {
        let mut todo: VecDeque<Vec<u8>> = components(path).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut last_link = Vec::new();
        let mut exists = true;
        while let Some(component) = todo.pop_front() {
            if component == b".." {
                if done.pop().is_none() {
                    let link = super::tarball::shown(&last_link);
                    return Err(RootError::Escape { link });
                }
                continue;
            }
            done.push(component);
            if !exists {
                continue;
            }
            let here = done.join(&b'/');
            match self.read_link(&here) {
                Ok(None) => {}
                Ok(Some(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                    } else {
                        done.pop();
                    }
                    for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(component);
                    }
                    last_link = here;
                }
                Err(Errno::NOENT) => exists = false,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok((done.join(&b'/'), exists))
    }

    /// The target of the link at `path`, which holds no link before its last component; `None`
    /// where something else is there.
    fn read_link(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let fd = rustix::fs::openat2(
            &self.fd,
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        );
        match fd {
            Ok(fd) => {
                let kind = rustix::fs::fstat(&fd)?.st_mode;
                if rustix::fs::FileType::from_raw_mode(kind) != rustix::fs::FileType::Symlink {
                    return Ok(None);
                }
                Ok(Some(rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes()))
            }
            Err(errno) => Err(errno),
        }
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}
