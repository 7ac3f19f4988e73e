//! A file or a tree of a container as a tar archive, with constant memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;
use rustix::fs::{Dir, FileType, Stat};
use rustix::io::Errno;
use tar::{EntryType, Header};
use tokio::sync::mpsc;

use super::ids::{CAPABILITY, Ids};
use super::place::{Place, Root, entry, kernels, kind, link_target, open_directory, open_regular};
use super::writer::{Attributes, Pieces, content, head};

/// A tree that is deeper is a trick; each level holds two descriptors.
pub(super) const MAX_DEPTH: usize = 256;
/// Bytes of names kept of files that have several; what comes later is copied once for each of its names.
const MAX_LINKS: usize = 16 << 20;
/// The kernel has no longer attributes, and no longer lists of them (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_ATTRIBUTE: usize = 64 << 10;

type Sender = mpsc::Sender<io::Result<Bytes>>;

/// Sends the archive of a place, and at last why it ends too early, if it does.
pub(super) fn place(place: &Place, ids: &Ids, pieces: Sender) {
    let mut packer = Packer::new(ids, pieces);
    let outcome = rustix::fs::fstat(&place.fd)
        .map_err(io::Error::from)
        .and_then(|stat| packer.thing(&place.fd, &stat, place.top().as_bytes(), 0));
    packer.out.finish(outcome);
}

/// As [`place`], of what is in the root, under names without a slash in front.
pub(super) fn whole(root: &Root, ids: &Ids, pieces: Sender) {
    let mut packer = Packer::new(ids, pieces);
    let outcome = open_directory(root.fd()).map_err(io::Error::from).and_then(|dir| packer.children(&dir, b"", 0));
    packer.out.finish(outcome);
}

struct Packer<'a> {
    ids: &'a Ids,
    out: Pieces,
    /// Names of files that have several.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    kept: usize,
    /// Room for the names of a file's attributes.
    names: Vec<u8>,
}

impl<'a> Packer<'a> {
    fn new(ids: &'a Ids, pieces: Sender) -> Packer<'a> {
        Packer { ids, out: Pieces::new(pieces), links: BTreeMap::new(), kept: 0, names: vec![0; MAX_ATTRIBUTE] }
    }

    /// `found` is open as a path only.
    fn thing(&mut self, found: &OwnedFd, stat: &Stat, name: &[u8], depth: usize) -> io::Result<()> {
        let none = Attributes::new();
        match kind(stat) {
            FileType::Directory => self.directory(found, stat, name, depth),
            FileType::RegularFile => self.file(found, stat, name),
            FileType::Symlink => {
                let (mut header, target) = (self.header(stat, EntryType::Symlink), link_target(found)?);
                head(&mut self.out, &mut header, name, &target, &none)
            }
            FileType::Fifo => {
                let mut header = self.header(stat, EntryType::Fifo);
                head(&mut self.out, &mut header, name, b"", &none)
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => Ok(()),
            FileType::CharacterDevice => self.device(stat, EntryType::Char, name),
            FileType::BlockDevice => self.device(stat, EntryType::Block, name),
            // A socket is nothing without its process.
            _ => Ok(()),
        }
    }

    fn header(&self, stat: &Stat, kind: EntryType) -> Header {
        let (uid, gid) = self.ids.inside(stat.st_uid, stat.st_gid);
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    fn device(&mut self, stat: &Stat, kind: EntryType, name: &[u8]) -> io::Result<()> {
        let mut header = self.header(stat, kind);
        header.set_device_major(rustix::fs::major(stat.st_rdev))?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        head(&mut self.out, &mut header, name, b"", &Attributes::new())
    }

    fn file(&mut self, found: &OwnedFd, stat: &Stat, name: &[u8]) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let file = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&file) {
                let mut header = self.header(stat, EntryType::Link);
                return head(&mut self.out, &mut header, name, first, &Attributes::new());
            }
            if self.kept + name.len() <= MAX_LINKS {
                self.kept += name.len();
                self.links.insert(file, name.to_vec());
            }
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = self.header(stat, EntryType::Regular);
        header.set_size(size);
        let attributes = self.attributes(found)?;
        let mut file = File::from(open_regular(found)?);
        head(&mut self.out, &mut header, name, b"", &attributes)?;
        // Exactly as long as was said, whatever becomes of the file meanwhile.
        content(&mut self.out, &mut file, size)
    }

    fn directory(&mut self, found: &OwnedFd, stat: &Stat, name: &[u8], depth: usize) -> io::Result<()> {
        let inside = [name, b"/"].concat();
        let attributes = self.attributes(found)?;
        let mut header = self.header(stat, EntryType::Directory);
        head(&mut self.out, &mut header, &inside, b"", &attributes)?;
        // What the kernel shows there is no data of the container's.
        if kernels(found)?.is_some() {
            return Ok(());
        }
        self.children(&open_directory(found)?, &inside, depth)
    }

    /// What is in a directory, each name with `prefix` before it.
    fn children(&mut self, dir: &OwnedFd, prefix: &[u8], depth: usize) -> io::Result<()> {
        if depth >= MAX_DEPTH {
            return Err(io::Error::other(format!("more than {MAX_DEPTH} directories, one in another")));
        }
        for listed in Dir::read_from(dir)? {
            let listed = listed?;
            let child = listed.file_name().to_bytes();
            if child == b"." || child == b".." {
                continue;
            }
            match entry(dir, child) {
                Ok((fd, stat)) => self.thing(&fd, &stat, &[prefix, child].concat(), depth + 1)?,
                // Removed since it was listed.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The file's capabilities, and what users have noted at it. Labels are the host's.
    fn attributes(&mut self, found: &OwnedFd) -> io::Result<Attributes> {
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        let length = match rustix::fs::listxattr(&path, self.names.as_mut_slice()) {
            Err(Errno::OPNOTSUPP) => 0,
            other => other?,
        };
        let mut attributes = Attributes::new();
        for name in self.names[..length].split(|byte| *byte == 0) {
            if name != CAPABILITY && (!name.starts_with(b"user.") || name.starts_with(b"user.overlay.")) {
                continue;
            }
            let mut value = vec![0u8; MAX_ATTRIBUTE];
            match rustix::fs::getxattr(&path, name, value.as_mut_slice()) {
                Ok(length) => value.truncate(length),
                // Removed since it was listed.
                Err(Errno::NODATA) => continue,
                Err(errno) => return Err(errno.into()),
            }
            if name == CAPABILITY {
                value = self.ids.capability_inside(value);
            }
            attributes.push((name.to_vec(), value));
        }
        Ok(attributes)
    }
}
