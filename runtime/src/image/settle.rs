//! What of an unpacked layer can only be done once the layers below it are there.
//!
//! [`super::unpack`] writes it down while it unpacks; whoever stacks the layers settles them, lowest
//! first.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::io::Errno;

use super::error::ImageError;
use super::root::Root;
use super::unpack::{IMPLIED_XATTR, failed, is_dir, is_whiteout, join, lstat, timestamps};

/// What of an unpacked layer waits for the layers below it, and for nothing being added any more.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    /// Whiteouts, by the real paths of their directories; with nothing below to hide, overlayfs would list the device itself.
    pub(super) whiteouts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Directories that were made without being named, by their real paths. They look like the same
    /// directories of the layers below, which they cover.
    pub(super) implied: Vec<Vec<u8>>,
    /// Times of directories, by their real paths.
    pub(super) times: Vec<(Vec<u8>, (i64, u32))>,
}

impl Unsettled {
    /// Finishes the layer in `path`, to lie on `lowers` (lowest first), which are finished themselves.
    pub(crate) fn settle(self, path: &Path, what: &str, lowers: &[PathBuf]) -> Result<(), ImageError> {
        let failed = |operation, entry: &[u8], errno| failed(what, path, operation, entry, errno);
        let root = Root::open(path).map_err(|errno| failed("open", b"", errno))?;
        for (dir, name) in &self.whiteouts {
            // A later entry may have taken its place.
            let Some(parent) = root.open_found(dir) else { continue };
            let there = lstat(&parent, name).map_err(|errno| failed("look up", name, errno))?;
            if there.as_ref().is_some_and(is_whiteout) && !is_below(lowers, &join(dir, name)) {
                rustix::fs::unlinkat(&parent, name.as_slice(), AtFlags::empty())
                    .map_err(|errno| failed("remove the whiteout of", name, errno))?;
            }
        }
        let mut implied_times = Vec::new();
        for path in &self.implied {
            let Some(dir) = root.open_found(path) else { continue };
            if rustix::fs::fremovexattr(&dir, IMPLIED_XATTR).is_err() {
                // An entry has named it after all.
                continue;
            }
            let (mode, uid, gid, mtime) = lower_dir(lowers, path).unwrap_or((0o755, 0, 0, (0, 0)));
            rustix::fs::fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .and_then(|()| rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)))
                .map_err(|errno| failed("set the owner and mode of", path, errno))?;
            implied_times.push((path, mtime));
        }
        let named = self.times.iter().map(|(path, mtime)| (path, *mtime));
        for (path, mtime) in implied_times.into_iter().chain(named) {
            // A later entry may have replaced the directory.
            if let Some(dir) = root.open_found(path) {
                rustix::fs::futimens(&dir, &timestamps(mtime))
                    .map_err(|errno| failed("set the times of", path, errno))?;
            }
        }
        Ok(())
    }
}

/// Whether the layers below show something at `path`. When in doubt, they do.
fn is_below(lowers: &[PathBuf], path: &[u8]) -> bool {
    for lower in lowers.iter().rev() {
        match Root::open(lower).and_then(|root| root.stat(path)) {
            Ok(stat) => return !is_whiteout(&stat),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => return false,
            Err(_) => return true,
        }
    }
    false
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
