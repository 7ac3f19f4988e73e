//! What a container wrote over its image: a walk through its upper directory, which holds nothing else.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::ids::Ids;
use super::pack::MAX_DEPTH;
use super::place::{Root, entry, kind, open_directory};
use super::{Change, ChangeKind};

/// Places that the runtime makes in every root, to mount over them.
const OURS: [&[u8]; 6] = [b"proc", b"sys", b"dev", b"etc/hosts", b"etc/hostname", b"etc/resolv.conf"];

type Sender = mpsc::Sender<io::Result<Change>>;

/// Sends all changes, and at last why there are no more, if it failed. `image` is what was there before.
pub(super) fn find(upper: &Path, image: &Root, ids: &Ids, found: &Sender) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let walked = rustix::fs::openat(CWD, upper, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|upper| Walk { image, ids, found, waiting: Vec::new() }.directory(&upper, b"", false, 0));
    if let Err(error) = walked
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // Who has gone needs no reason.
        let _ = found.blocking_send(Err(error));
    }
}

struct Walk<'a> {
    image: &'a Root,
    ids: &'a Ids,
    found: &'a Sender,
    /// Directories that differ only if something in them does.
    waiting: Vec<Vec<u8>>,
}

impl Walk<'_> {
    /// `new`: nothing of the image can be below it.
    fn directory(&mut self, dir: &OwnedFd, path: &[u8], new: bool, depth: usize) -> io::Result<()> {
        if depth >= MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} directories, one in another")));
        }
        for listed in Dir::read_from(dir)? {
            let listed = listed?;
            let name = listed.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            match entry(dir, name) {
                Ok((fd, stat)) => {
                    let path = if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') };
                    self.thing(&fd, &stat, path, new, depth)?;
                }
                // Removed since it was listed.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn thing(&mut self, fd: &OwnedFd, stat: &Stat, path: Vec<u8>, new: bool, depth: usize) -> io::Result<()> {
        let before = if new { None } else { self.before(&path)? };
        if is_whiteout(stat) {
            return match before {
                Some(_) => self.tell(&path, ChangeKind::Deleted),
                // It hides what is not there.
                None => Ok(()),
            };
        }
        let is_dir = kind(stat) == FileType::Directory;
        if OURS.contains(&path.as_slice()) && (is_dir || stat.st_size == 0) {
            return Ok(());
        }
        let Some(before) = before else {
            self.tell(&path, ChangeKind::Added)?;
            return if is_dir { self.directory(&open_directory(fd)?, &path, true, depth + 1) } else { Ok(()) };
        };
        if !is_dir {
            return self.tell(&path, ChangeKind::Modified);
        }
        let dir = open_directory(fd)?;
        if kind(&before) != FileType::Directory {
            self.tell(&path, ChangeKind::Modified)?;
            return self.directory(&dir, &path, true, depth + 1);
        }
        let opaque = is_opaque(&dir);
        // Overlayfs copies a directory when something is written below it, and its time says no more than that.
        let owner = self.ids.inside(stat.st_uid, stat.st_gid);
        let same = (stat.st_mode, owner) == (before.st_mode, (before.st_uid, before.st_gid));
        if !same || opaque {
            self.tell(&path, ChangeKind::Modified)?;
            if opaque {
                self.gone(&dir, &path)?;
            }
            return self.directory(&dir, &path, opaque, depth + 1);
        }
        let waiting = self.waiting.len();
        self.waiting.push(path.clone());
        self.directory(&dir, &path, false, depth + 1)?;
        self.waiting.truncate(waiting);
        Ok(())
    }

    /// What the image has in a directory that shows nothing of it any more.
    fn gone(&mut self, upper: &OwnedFd, path: &[u8]) -> io::Result<()> {
        let before = match self.image.open_plain(path).and_then(open_directory) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            other => other?,
        };
        for listed in Dir::read_from(&before)? {
            let listed = listed?;
            let name = listed.file_name().to_bytes();
            let still = || entry(upper, name).is_ok_and(|(_, stat)| !is_whiteout(&stat));
            if name != b"." && name != b".." && !still() {
                self.tell(&[path, name].join(&b'/'), ChangeKind::Deleted)?;
            }
        }
        Ok(())
    }

    fn before(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        match self.image.open_plain(path) {
            Ok(fd) => Ok(Some(rustix::fs::fstat(&fd)?).filter(|stat| !is_whiteout(stat))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn tell(&mut self, path: &[u8], kind: ChangeKind) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        for dir in waiting {
            self.send(&dir, ChangeKind::Modified)?;
        }
        self.send(path, kind)
    }

    fn send(&self, path: &[u8], kind: ChangeKind) -> io::Result<()> {
        let change = Change { path: format!("/{}", String::from_utf8_lossy(path)), kind };
        self.found.blocking_send(Ok(change)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What overlayfs takes for "nothing is here".
fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    matches!(rustix::fs::fgetxattr(dir, c"trusted.overlay.opaque", &mut value[..]), Ok(1)) && value[0] == b'y'
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn differences_are_told_with_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, image) = (dir.path().join("upper"), dir.path().join("image"));
        for (root, dirs, files) in [
            (&image, &["etc", "var/log", "old", "kept"][..], &["etc/conf", "var/log/a", "old/x", "kept/f"][..]),
            (&upper, &["etc", "var/log", "new/deep", "proc", "kept", "old"], &["etc/conf", "etc/hosts", "new/deep/f"]),
        ] {
            dirs.iter().for_each(|dir| fs::create_dir_all(root.join(dir)).unwrap());
            files.iter().for_each(|file| fs::write(root.join(file), "").unwrap());
        }
        symlink("etc", image.join("link")).unwrap();
        fs::write(upper.join("link"), "a file now").unwrap();
        fs::set_permissions(upper.join("old"), fs::Permissions::from_mode(0o700)).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = Root::new(rustix::fs::open(&image, flags, Mode::empty()).unwrap(), None);
        let (sender, mut receiver) = mpsc::channel(100);
        find(&upper, &root, &Ids::hosts(), &sender);
        drop(sender);
        let mut all = Vec::new();
        while let Some(change) = receiver.blocking_recv() {
            let Change { path, kind } = change.unwrap();
            all.push((path, kind));
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            ("/etc", ChangeKind::Modified),
            ("/etc/conf", ChangeKind::Modified),
            ("/link", ChangeKind::Modified),
            ("/new", ChangeKind::Added),
            ("/new/deep", ChangeKind::Added),
            ("/new/deep/f", ChangeKind::Added),
            ("/old", ChangeKind::Modified),
        ];
        assert_eq!(all, expected.map(|(path, kind)| (path.to_owned(), kind)));
    }
}
