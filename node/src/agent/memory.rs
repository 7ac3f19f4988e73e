//! What the agent remembers across restarts of the daemon: written behind its steps, except that no task starts before
//! it is on disk that it does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use deploy::agent::{Memory, Snapshot};
use prost::Message;
use tokio::sync::watch;

use crate::stored::{self, Kind, StoredError};
use crate::vault::Vault;

/// Pause before a memory that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A memory and its number; a later one has a higher number.
pub(super) type Numbered = (u64, Snapshot);

/// Reads what was remembered. A memory that is damaged is no memory: the managers have all of it, and whose the
/// containers are is told by their labels.
pub(super) fn read(path: &Path, vault: &Vault) -> Result<Memory, StoredError> {
    let bytes = match stored::read_sealed(path, Kind::Assignments, vault) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(Memory::default()),
        Err(error @ (StoredError::Damaged { .. } | StoredError::Encrypted { .. })) => {
            tracing::warn!(error = crate::chain(&error), "the remembered assignments are lost");
            return Ok(Memory::default());
        }
        Err(error) => return Err(error),
    };
    Ok(Memory::decode(bytes.as_slice()).unwrap_or_else(|error| {
        tracing::warn!(%error, "the remembered assignments are lost");
        Memory::default()
    }))
}

/// Keeps the newest memory on disk, and says in `written` the number of the one that is there. Ends, with the last one
/// written, when no more can come.
pub(super) async fn keep(
    path: PathBuf,
    vault: Vault,
    mut memory: watch::Receiver<Numbered>,
    written: watch::Sender<u64>,
) {
    let mut key = vault.current();
    loop {
        key.mark_unchanged();
        let (number, snapshot) = memory.borrow_and_update().clone();
        let (to, vault) = (path.clone(), vault.clone());
        let write = move || stored::write_sealed(&to, Kind::Assignments, &snapshot.to_bytes(), &vault);
        let result = tokio::task::spawn_blocking(write).await;
        let failed = !matches!(result, Ok(Ok(())));
        match result {
            Ok(Ok(())) => {
                written.send_replace(number);
            }
            Ok(Err(error)) => {
                tracing::warn!(error = crate::chain(&error), "the assignments could not be remembered; trying again");
            }
            Err(error) => tracing::warn!(%error, "the assignments could not be remembered; trying again"),
        }
        tokio::select! {
            biased;
            changed = memory.changed() => if changed.is_err() { return },
            // The vault lives as long as this does. It is written again, with the new key.
            Ok(()) = key.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deploy::dispatcher::Stamp;

    fn memory(number: u64) -> Memory {
        let stamp = Stamp { incarnation: 1, term: 1, revision: number };
        Memory { stamp, ..Memory::default() }
    }

    fn numbered(number: u64) -> Numbered {
        (number, memory(number).into())
    }

    #[test]
    fn a_damaged_memory_is_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(&dir.path().join("keys")).unwrap();
        let path = dir.path().join("assignments");
        assert_eq!(read(&path, &vault).unwrap(), Memory::default());
        std::fs::write(&path, b"SHOL, but cut").unwrap();
        assert_eq!(read(&path, &vault).unwrap(), Memory::default());
        stored::write(&path, Kind::Assignments, b"no message").unwrap();
        assert_eq!(read(&path, &vault).unwrap(), Memory::default());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(read(&path, &vault), Err(StoredError::Io { .. })), "a disk that fails is told");
    }

    #[tokio::test]
    async fn a_number_is_told_only_once_its_memory_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(&dir.path().join("keys")).unwrap();
        let path = dir.path().join("agent").join("assignments");
        let (newest, memory_out) = watch::channel(numbered(1));
        let (written, mut known) = watch::channel(0);
        let keeper = tokio::spawn(keep(path.clone(), vault.clone(), memory_out, written));
        // There is no directory: nothing can be written, and nothing may be told.
        newest.send_replace(numbered(2));
        tokio::time::timeout(Duration::from_millis(50), known.changed()).await.unwrap_err();
        std::fs::create_dir(dir.path().join("agent")).unwrap();
        let told = tokio::time::timeout(Duration::from_secs(10), known.wait_for(|number| *number >= 2)).await;
        assert_eq!(*told.unwrap().unwrap(), 2);
        assert_eq!(read(&path, &vault).unwrap(), memory(2));
        // Under a new key it is written anew.
        let unlock = crate::vault::UnlockKey::from_bytes(&[1; 32]);
        vault.follow(&crate::vault::Wanted { lock: unlock, version: 1 }).unwrap();
        let key = *vault.current().borrow();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while stored::key_of(&path, Kind::Assignments).unwrap() != Some(key) {
            assert!(std::time::Instant::now() < deadline, "the cache keeps the old key");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        newest.send_replace(numbered(3));
        drop(newest);
        keeper.await.unwrap();
        assert_eq!(read(&path, &vault).unwrap(), memory(3));
    }
}
