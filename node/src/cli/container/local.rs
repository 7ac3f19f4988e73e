//! The side of a copy that is here: files into an archive, and an archive into files.
//!
//! The archive comes from a container, which may be hostile: each name is looked up beneath the directory that the user
//! named (`openat2` with `RESOLVE_BENEATH`), and no link is followed on the way. Nothing but files, directories and
//! links is made.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{EntryType, Header};
use tokio::sync::mpsc;

use crate::cli::error::CliError;

/// A tree that is deeper is a mistake.
const MAX_DEPTH: usize = 256;
/// Names of things that were left out and are told of.
const MAX_TOLD: usize = 10;

/// Whose the files are afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Root's in a container, the user's own here.
    Mine,
    /// Whose they were.
    Kept,
}

/// Where something goes.
#[derive(Debug)]
pub(super) struct Place {
    /// A directory that is there.
    pub(super) dir: PathBuf,
    /// Its new name in it; empty for what is in a directory.
    pub(super) name: String,
}

/// An archive in pieces.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Unpacks an archive whose names begin with `top`. Answers what was left out.
pub(super) fn unpack(
    receiver: mpsc::Receiver<Bytes>,
    top: &str,
    place: &Place,
    owner: Owner,
) -> Result<Vec<String>, CliError> {
    let failed = |what: &str, e: io::Error| CliError::Failed(format!("cannot write {what}: {e}"));
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, &place.dir, open, Mode::empty())
        .map_err(|errno| failed(&place.dir.display().to_string(), errno.into()))?;
    let mut target = Target { root, owner, times: Vec::new() };
    let mut left_out = VecDeque::new();
    let mut archive = tar::Archive::new(Pieces { receiver, current: Bytes::new() });
    let damaged = |e: io::Error| CliError::Failed(format!("the engine's archive is damaged: {e}"));
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = rename(&entry.path_bytes(), top, &place.name).map_err(|e| failed(&shown, e))?;
        let link = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let made = match entry.header().entry_type() {
            EntryType::Directory => target.directory(&name, entry.header()),
            EntryType::Regular => {
                let header = entry.header().clone();
                target.file(&name, &header, &mut entry)
            }
            EntryType::Symlink => target.symlink(&name, &link, entry.header()),
            EntryType::Link => rename(&link, top, &place.name).and_then(|from| target.hard_link(&name, &from)),
            _ => {
                if left_out.len() < MAX_TOLD {
                    left_out.push_back(shown.clone());
                }
                Ok(())
            }
        };
        made.map_err(|e| failed(&shown, e))?;
    }
    target.set_times();
    Ok(left_out.into())
}

/// A name in the archive as one below the directory that it goes to, as its parts.
fn rename(name: &[u8], top: &str, new: &str) -> io::Result<Vec<Vec<u8>>> {
    let parts = |name: &[u8]| -> Vec<Vec<u8>> {
        name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
    };
    let (mut name, top) = (parts(name), parts(top.as_bytes()));
    if !name.starts_with(&top) || name.iter().any(|part| part == b"..") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not below what was asked for"));
    }
    name.splice(..top.len(), parts(new.as_bytes()));
    Ok(name)
}

struct Target {
    root: OwnedFd,
    owner: Owner,
    /// Of directories, set when nothing is added to them any more.
    times: Vec<(Vec<Vec<u8>>, u64, u32)>,
}

impl Target {
    /// Opens a directory below the root, and makes what is missing of it.
    fn open(&self, parts: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let open = |dir: &OwnedFd, part: &[u8]| rustix::fs::openat2(dir, part, flags, Mode::empty(), how);
        let mut dir = open(&self.root, b".")?;
        for part in parts {
            dir = match open(&dir, part) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&dir, part.as_slice(), Mode::from_raw_mode(0o777))?;
                    open(&dir, part)?
                }
                other => other?,
            };
        }
        Ok(dir)
    }

    /// The directory of something, and its name, which nothing has any more but a directory.
    fn room<'a>(&self, parts: &'a [Vec<u8>]) -> Result<(OwnedFd, &'a [u8]), Errno> {
        let (name, dir) = parts.split_last().ok_or(Errno::EXIST)?;
        let dir = self.open(dir)?;
        match rustix::fs::unlinkat(&dir, name.as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((dir, name)),
            Err(errno) => Err(errno),
        }
    }

    fn directory(&mut self, parts: &[Vec<u8>], header: &Header) -> io::Result<()> {
        let dir = self.open(parts)?;
        // The one that was there stays as it is.
        if !parts.is_empty() {
            self.own(header, |uid, gid| rustix::fs::fchown(&dir, uid, gid))?;
            // Whoever copies must get into it.
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(self.mode(header)? | 0o700))?;
            self.times.push((parts.to_vec(), header.mtime()?, self.mode(header)?));
        }
        Ok(())
    }

    fn file(&self, parts: &[Vec<u8>], header: &Header, content: &mut impl Read) -> io::Result<()> {
        let (dir, name) = self.room(parts)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600))?);
        let size = header.entry_size()?;
        let copied = io::copy(content, &mut file).and_then(|copied| match copied == size {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        });
        let done = copied.and_then(|()| {
            self.own(header, |uid, gid| rustix::fs::fchown(&file, uid, gid))?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(self.mode(header)?))?;
            Ok(rustix::fs::futimens(&file, &timestamps(header.mtime()?))?)
        });
        if done.is_err() {
            // Half a file must not look like one.
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        }
        done
    }

    fn symlink(&self, parts: &[Vec<u8>], link: &[u8], header: &Header) -> io::Result<()> {
        let (dir, name) = self.room(parts)?;
        rustix::fs::symlinkat(link, &dir, name)?;
        self.own(header, |uid, gid| rustix::fs::chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))?;
        Ok(())
    }

    fn hard_link(&self, parts: &[Vec<u8>], from: &[Vec<u8>]) -> io::Result<()> {
        let (source, from) = from.split_last().ok_or(Errno::NOENT)?;
        let (dir, name) = self.room(parts)?;
        Ok(rustix::fs::linkat(self.open(from)?, source.as_slice(), &dir, name, AtFlags::empty())?)
    }

    /// Set-user-id bits make sense only with the owner that they mean.
    fn mode(&self, header: &Header) -> io::Result<u32> {
        let mode = header.mode()?;
        Ok(if self.owner == Owner::Kept { mode & 0o7777 } else { mode & 0o777 })
    }

    fn own(&self, header: &Header, set: impl FnOnce(Option<Uid>, Option<Gid>) -> Result<(), Errno>) -> io::Result<()> {
        if self.owner == Owner::Mine {
            return Ok(());
        }
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(io::ErrorKind::InvalidData);
        Ok(set(Some(Uid::from_raw(id(header.uid()?)?)), Some(Gid::from_raw(id(header.gid()?)?)))?)
    }

    fn set_times(&self) {
        for (parts, mtime, mode) in self.times.iter().rev() {
            // What was replaced meanwhile has another time.
            if let Ok(dir) = self.open(parts) {
                let _ = rustix::fs::futimens(&dir, &timestamps(*mtime));
                let _ = rustix::fs::fchmod(&dir, Mode::from_raw_mode(*mode));
            }
        }
    }
}

fn timestamps(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Packs `from` under the name `top`; empty for what is in it. `follow`: a link at `from` itself is followed.
pub(super) fn pack(
    from: &Path,
    top: &str,
    follow: bool,
    owner: Owner,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let packed = pack_all(from, top, follow, owner, sender);
    if let Err(error) = &packed {
        // The engine must not take it for the whole. It may have hung up.
        let _ = sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
    }
    packed
}

fn pack_all(
    from: &Path,
    top: &str,
    follow: bool,
    owner: Owner,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut packer = Packer { tar: tar::Builder::new(Sink { sender: sender.clone(), buffer: Vec::new() }), owner };
    let meta = if follow || top.is_empty() { std::fs::metadata(from)? } else { std::fs::symlink_metadata(from)? };
    packer.thing(from, Path::new(top), &meta, 0)?;
    packer.tar.into_inner()?.flush()
}

/// Hands bytes over in pieces; fails when nobody reads any more.
struct Sink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

/// Bytes of a piece.
const PIECE: usize = 64 << 10;

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.buffer);
        if piece.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct Packer {
    tar: tar::Builder<Sink>,
    owner: Owner,
}

impl Packer {
    fn thing(&mut self, from: &Path, name: &Path, meta: &Metadata, depth: usize) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        if self.owner == Owner::Mine {
            header.set_uid(0);
            header.set_gid(0);
        }
        header.set_size(0);
        match FileType::from_raw_mode(meta.mode()) {
            FileType::Directory => self.directory(from, name, header, depth),
            FileType::Symlink => {
                let link = std::fs::read_link(from)?;
                self.tar.append_link(&mut header, name, link)
            }
            FileType::RegularFile => {
                header.set_size(meta.len());
                // Exactly as long as is said, whatever becomes of the file meanwhile.
                let content = File::open(from)?.chain(io::repeat(0)).take(meta.len());
                self.tar.append_data(&mut header, name, content)
            }
            // What is only a door to something here means nothing there.
            _ => Ok(()),
        }
    }

    fn directory(&mut self, from: &Path, name: &Path, mut header: Header, depth: usize) -> io::Result<()> {
        if depth >= MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} directories, one in another")));
        }
        if !name.as_os_str().is_empty() {
            self.tar.append_data(&mut header, name, io::empty())?;
        }
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            self.thing(&entry.path(), &name.join(entry.file_name()), &entry.metadata()?, depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Packs and unpacks.
    fn round(from: &Path, top: &str, dir: &Path, name: &str) -> Result<Vec<String>, CliError> {
        let (sender, mut receiver) = mpsc::channel(PIECE);
        pack(from, top, false, Owner::Mine, &sender).unwrap();
        drop(sender);
        let (forward, forwarded) = mpsc::channel(PIECE);
        while let Some(piece) = receiver.blocking_recv() {
            forward.blocking_send(piece.unwrap()).unwrap();
        }
        drop(forward);
        unpack(forwarded, top, &Place { dir: dir.to_owned(), name: name.to_owned() }, Owner::Mine)
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::create_dir(&to).unwrap();
        let long = "x".repeat(150);
        std::fs::write(from.join("sub").join(&long), "long").unwrap();
        std::fs::write(from.join("f"), "run").unwrap();
        std::fs::set_permissions(from.join("f"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        assert!(round(&from, "top", &to, "new").unwrap().is_empty());
        assert_eq!(std::fs::read_to_string(to.join("new/sub").join(&long)).unwrap(), "long");
        assert_eq!(std::fs::metadata(to.join("new/f")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(std::fs::read_link(to.join("new/link")).unwrap(), Path::new("/etc/passwd"));
        // Once more over it, and what is in it without its own name.
        round(&from, "top", &to, "new").unwrap();
        round(&from, "", &to, "").unwrap();
        assert_eq!(std::fs::read_to_string(to.join("f")).unwrap(), "run");
    }

    fn unpacked(entries: &[(EntryType, &str, &str)]) -> (tempfile::TempDir, Result<Vec<String>, CliError>) {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        std::fs::create_dir(&to).unwrap();
        symlink(dir.path(), to.join("mine")).unwrap();
        let mut bytes = Vec::new();
        for (kind, name, link) in entries {
            let mut header = Header::new_ustar();
            header.set_entry_type(*kind);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            header.set_mtime(1);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
        }
        bytes.resize(bytes.len() + 1024, 0);
        let (sender, receiver) = mpsc::channel(1);
        sender.blocking_send(bytes.into()).unwrap();
        drop(sender);
        let done = unpack(receiver, "t", &Place { dir: to, name: "t".to_owned() }, Owner::Mine);
        let around: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(around, ["to"], "nothing outside");
        (dir, done)
    }

    #[test]
    fn a_hostile_archive_stays_where_it_belongs() {
        use EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
        for entries in [
            &[(Regular, "t/../../out", "")][..],
            &[(Regular, "/etc/out", "")],
            &[(Symlink, "t", ".."), (Regular, "t/out", "")],
            &[(Directory, "t/", ""), (Symlink, "t/up", "../.."), (Regular, "t/up/out", "")],
            &[(Directory, "t/", ""), (Link, "t/l", "../mine")],
            &[(Directory, "t/", ""), (Link, "t/l", "t/missing")],
        ] {
            assert!(unpacked(entries).1.is_err(), "{entries:?}");
        }
        let (_dir, left_out) = unpacked(&[(Char, "t", ""), (Fifo, "t", "")]);
        assert_eq!(left_out.unwrap(), ["t", "t"]);
    }
}
