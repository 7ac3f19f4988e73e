//! Files that must not touch a disk: secrets and configs of containers, in a tmpfs of the host that outlives the daemon
//! and not the host.
//!
//! `<run>/private/<container>/<n>`, mode 0700 above and the file's own below; beside them what callers keep for the next
//! daemon. The tmpfs is mounted with the first file and goes with the last.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{PrivateFile, mounted};
use crate::RuntimeError;
use crate::config::{Mount, MountKind, Propagation};
use crate::container::storage;
use crate::plan::Ids;
use crate::remove::remove_tree;

/// What is kept for callers begins with this; no container's id does.
const KEPT: &str = ".kept-";
/// Files of one container.
const MAX_FILES: usize = 1000;

/// Owns the directory.
#[derive(Debug)]
pub(crate) struct PrivateFiles {
    dir: PathBuf,
    /// Held while the tmpfs may come or go.
    mounting: Mutex<()>,
}

impl PrivateFiles {
    /// Takes over what an earlier daemon left below the run directory.
    pub(crate) fn open(run_dir: &Path) -> Result<PrivateFiles, RuntimeError> {
        // As the kernel names it.
        let run_dir = fs::canonicalize(run_dir).map_err(storage("look at", run_dir))?;
        let dir = run_dir.join("private");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(storage("create", &dir))?;
        Ok(PrivateFiles { dir, mounting: Mutex::new(()) })
    }

    /// Where they are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a container's files and says how they are mounted. Nothing is left of them after a failure.
    /// Their owners are the container's, which `ids` says what they are on the host.
    pub(crate) fn write(
        &self,
        container: &str,
        files: &[PrivateFile],
        ids: Option<&Ids>,
    ) -> Result<Vec<Mount>, RuntimeError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        if files.len() > MAX_FILES {
            return Err(crate::PlanError::invalid("private_files", format!("more than {MAX_FILES}")).into());
        }
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        self.mount()?;
        let dir = self.dir.join(container);
        let written = write_all(&dir, files, ids);
        if written.is_err() {
            let _ = self.forget(container);
        }
        written
    }

    /// Keeps bytes under a name that is no container's; none removes them.
    pub(crate) fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), RuntimeError> {
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.join(format!("{KEPT}{name}"));
        if bytes.is_empty() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storage("remove", &path)(error)),
                _ => return self.unmount_empty(),
            }
        }
        self.mount()?;
        let new = self.dir.join(format!("{KEPT}new"));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            fs::rename(&new, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&new);
            storage("write", &path)(error)
        })
    }

    /// What was kept under a name.
    pub(crate) fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
        let path = self.dir.join(format!("{KEPT}{name}"));
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(storage("read", &path)(error)),
        }
    }

    /// Removes what a container had.
    pub(crate) fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget(container)
    }

    /// Removes what belongs to containers that are not known.
    pub(crate) fn sweep(&self, known: impl Fn(&str) -> bool) {
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let unknown = name.to_str().filter(|id| !id.starts_with(KEPT) && !known(id));
            if let Some(Err(error)) = unknown.map(|id| self.forget(id)) {
                tracing::warn!(%error, "private files of a container that is no more");
            }
        }
    }

    fn forget(&self, container: &str) -> Result<(), RuntimeError> {
        let dir = self.dir.join(container);
        match remove_tree(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storage("remove", &dir)(error)),
            _ => {}
        }
        self.unmount_empty()
    }

    fn mount(&self) -> Result<(), RuntimeError> {
        if mounted::at(&self.dir).map_err(storage("read the mounts of", &self.dir))? {
            return Ok(());
        }
        mount_tmpfs(&self.dir).map_err(|errno| storage("mount a tmpfs at", &self.dir)(errno.into()))
    }

    fn unmount_empty(&self) -> Result<(), RuntimeError> {
        let last = fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_none());
        if last {
            match unmount(&self.dir, UnmountFlags::NOFOLLOW) {
                // Not mounted; or looked at by somebody, and then it goes next time.
                Ok(()) | Err(Errno::INVAL | Errno::BUSY) => {}
                Err(errno) => return Err(storage("unmount", &self.dir)(errno.into())),
            }
        }
        Ok(())
    }
}

fn mount_tmpfs(dir: &Path) -> Result<(), Errno> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Never to a swap device, where the kernel can promise that (6.4).
    match mount(c"shoal-private", dir, c"tmpfs", flags, c"mode=0700,noswap") {
        Err(Errno::INVAL) => mount(c"shoal-private", dir, c"tmpfs", flags, c"mode=0700"),
        other => other,
    }
}

fn write_all(dir: &Path, files: &[PrivateFile], ids: Option<&Ids>) -> Result<Vec<Mount>, RuntimeError> {
    DirBuilder::new().mode(0o700).create(dir).map_err(storage("create", dir))?;
    let mut mounts = Vec::with_capacity(files.len());
    for (number, file) in files.iter().enumerate() {
        let path = dir.join(number.to_string());
        write_one(&path, file, ids).map_err(storage("write", &path))?;
        let kind = MountKind::Bind {
            source: path,
            recursive: false,
            readonly_below: true,
            propagation: Propagation::RPrivate,
        };
        mounts.push(Mount { kind, target: file.target.clone(), readonly: true });
    }
    Ok(mounts)
}

fn write_one(path: &Path, file: &PrivateFile, ids: Option<&Ids>) -> io::Result<()> {
    let (uid, gid) = match ids {
        None => (file.uid, file.gid),
        Some(ids) => ids.outside(file.uid, file.gid).ok_or(io::ErrorKind::InvalidInput)?,
    };
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    to.write_all(&file.data)?;
    fchown(&to, Some(uid), Some(gid))?;
    to.set_permissions(Permissions::from_mode(file.mode & 0o7777))
}
