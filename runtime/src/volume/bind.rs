//! Whether a path of the host can be mounted into a container, said in Docker's words before anything is made.

use std::fs;
use std::path::Path;

use super::{VolumeError, mounted};
use crate::RuntimeError;
use crate::config::Propagation;

/// Checks the source of a bind mount. Follows links as the mount itself will.
///
/// # Errors
/// [`VolumeError::NoSource`], [`VolumeError::Propagation`], or the path cannot be looked at.
pub(crate) fn check_source(source: &Path, propagation: Propagation) -> Result<(), RuntimeError> {
    let real = match fs::canonicalize(source) {
        Ok(real) => real,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Err(VolumeError::NoSource(source.to_owned()).into());
        }
        Err(error) => return Err(crate::container::storage("look at", source)(error)),
    };
    let wanted = match propagation {
        Propagation::Private | Propagation::RPrivate => return Ok(()),
        Propagation::Shared | Propagation::RShared => "shared",
        Propagation::Slave | Propagation::RSlave => "shared or slave",
    };
    let mounts = mounted::all().map_err(crate::container::storage("read", Path::new("/proc/self/mountinfo")))?;
    match mounted::holding(&mounts, &real) {
        Some(mount) if mount.shared || (mount.slave && wanted != "shared") => Ok(()),
        mount => Err(VolumeError::Propagation {
            path: source.to_owned(),
            mount: mount.map_or_else(|| Path::new("/").to_owned(), |mount| mount.point.clone()),
            wanted,
        }
        .into()),
    }
}
