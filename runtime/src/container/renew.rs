//! Making a container that has ended wait for a start again, with all that it has written.

use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError, TryLockError};

use tracing::warn;

use super::runtime::blocking;
use super::{Created, Inner, Runtime, create, mounts, storage};
use crate::plan::{self, PlanError};
use crate::stored::{self, Durability, StoredExit, names};
use crate::{ContainerConfig, RuntimeError};

impl Runtime {
    /// Makes a lasting container that has ended wait for its start again: with its id, root, volumes and log (which begins
    /// a new file), but none of its notes. How it ended is forgotten. Whoever waits for that end, or has asked for its state before, is not
    /// concerned.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it has not ended, or something is being copied into it; otherwise as
    /// [`Runtime::create`]. It is as it was then.
    pub async fn renew(&self, id: &str) -> Result<Created, RuntimeError> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        blocking(move || inner.renew(&id)).await
    }
}

impl Inner {
    fn renew(self: &Arc<Self>, id: &str) -> Result<Created, RuntimeError> {
        let lock = self.lock_of(id);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.get(id)?;
        if before.exit().is_none() {
            return Err(before.wrong_state());
        }
        let config = before.config()?;
        if !config.lasting {
            return Err(PlanError::invalid("lasting", "this container runs once").into());
        }
        plan::plan(&config, &before.dir, &self.cgroups.host_view())?;
        mounts::check_sources(&config)?;
        let copying = match before.copying.try_lock() {
            Ok(copying) => copying,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(RuntimeError::WrongState { id: id.to_owned(), status: "being copied into" });
            }
        };
        let exit = stored::read::<StoredExit>(&before.dir, names::EXIT)?;
        match self.remake(&config, &before.dir, before.created_at) {
            Ok(created) => {
                // Whoever has found it ended, and comes only now, is not to write below the new one.
                std::mem::forget(copying);
                Ok(created)
            }
            Err(error) => {
                if let Err(error) = self.end_processes(id) {
                    warn!(container.id = id, %error, "a container that was not renewed left something behind");
                }
                if let Some(exit) = exit
                    && let Err(error) = stored::write(&before.dir, names::EXIT, &exit, Durability::Synced)
                {
                    warn!(container.id = id, %error, "how a container ended could not be recorded again");
                }
                self.volumes.rest(id);
                Err(error)
            }
        }
    }

    /// The record of its processes stays until there is a new one: a container without either, and without an end, would
    /// be one that was never finished.
    fn remake(
        self: &Arc<Self>,
        config: &ContainerConfig,
        dir: &Path,
        created_at: std::time::SystemTime,
    ) -> Result<Created, RuntimeError> {
        self.end_processes(&config.id)?;
        for entry in fs::read_dir(dir).map_err(storage("read", dir))?.flatten() {
            let name = entry.file_name();
            if name == names::EXIT || name.as_encoded_bytes().starts_with(b"note-") {
                let path = entry.path();
                fs::remove_file(&path).map_err(storage("remove", &path))?;
            }
        }
        self.begin(config, dir, created_at, create::stop_signal(config))
    }
}
