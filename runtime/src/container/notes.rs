//! Small things that callers want to find again: beside a container, and gone with it; or in memory, and gone with the
//! host.

use std::sync::Arc;

use super::Runtime;
use super::runtime::blocking;
use crate::stored::{self, Durability, StoredNote};
use crate::{PlanError, RuntimeError};

/// Bytes of one note.
const MAX_NOTE: usize = 1 << 20;
/// Bytes kept under one name.
const MAX_KEPT: usize = 64 << 20;

/// Notes have names like files.
fn file_name(name: &str) -> Result<String, RuntimeError> {
    let ok = (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    if ok { Ok(format!("note-{name}")) } else { Err(PlanError::invalid("note", "must be 1 to 32 of [a-z-]").into()) }
}

impl Runtime {
    /// Keeps a note of at most 1 MiB beside a container, in place of the one of that name. It outlives the daemon, and
    /// perhaps not a loss of power.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], a name that is none, or the disk.
    pub async fn put_note(&self, id: &str, name: &str, bytes: Vec<u8>) -> Result<(), RuntimeError> {
        let (inner, container, file) = (Arc::clone(&self.inner), self.inner.get(id)?, file_name(name)?);
        if bytes.len() > MAX_NOTE {
            return Err(PlanError::invalid("note", format!("is longer than {MAX_NOTE} bytes")).into());
        }
        blocking(move || {
            let lock = inner.lock_of(&container.id);
            // A container that is being removed gets no note into its directory any more.
            let _alone = lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            inner.get(&container.id)?;
            stored::write(&container.dir, &file, &StoredNote { bytes }, Durability::ThisBoot)
        })
        .await
    }

    /// Keeps bytes (at most 64 MiB) in memory that outlives the daemon and not the host, in place of those of that name;
    /// none clears the name. They never touch a disk.
    ///
    /// # Errors
    /// A name that is none, or no room.
    pub async fn keep(&self, name: &str, bytes: Vec<u8>) -> Result<(), RuntimeError> {
        let (inner, file) = (Arc::clone(&self.inner), file_name(name)?);
        if bytes.len() > MAX_KEPT {
            return Err(PlanError::invalid("keep", format!("is longer than {MAX_KEPT} bytes")).into());
        }
        blocking(move || inner.private.keep(&file, &bytes)).await
    }

    /// What was kept under that name.
    ///
    /// # Errors
    /// A name that is none, or it cannot be read.
    pub async fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
        let (inner, file) = (Arc::clone(&self.inner), file_name(name)?);
        blocking(move || inner.private.kept(&file)).await
    }

    /// The note of that name; `None` where there is none that can be read.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or a name that is none.
    pub async fn note(&self, id: &str, name: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
        let (container, file) = (self.inner.get(id)?, file_name(name)?);
        blocking(move || Ok(stored::read::<StoredNote>(&container.dir, &file).ok().flatten().map(|note| note.bytes)))
            .await
    }
}
