//! Pausing and resuming containers.

use std::sync::{Arc, PoisonError};

use tracing::debug;

use super::runtime::blocking;
use super::{Container, Inner, Runtime, Status};
use crate::RuntimeError;

impl Runtime {
    /// Stops every process of the container where it is, until [`Runtime::resume`]. They notice nothing.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it does not run or is paused already.
    pub async fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        blocking(move || inner.pause(&container)).await
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it is not paused.
    pub async fn resume(&self, id: &str) -> Result<(), RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        blocking(move || inner.resume(&container)).await
    }
}

impl Inner {
    fn pause(&self, container: &Container) -> Result<(), RuntimeError> {
        let lock = self.lock_of(&container.id);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if container.status() != Status::Running || container.view.borrow().paused {
            return Err(container.wrong_state());
        }
        self.cgroups.freeze(&container.id)?;
        container.view.send_modify(|view| view.paused = true);
        container.tell(&self.events, "pause", Vec::new());
        debug!(container.id = container.id, "paused");
        Ok(())
    }

    fn resume(&self, container: &Container) -> Result<(), RuntimeError> {
        let lock = self.lock_of(&container.id);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if container.exit().is_some() || !container.view.borrow().paused {
            return Err(container.wrong_state());
        }
        self.cgroups.thaw(&container.id)?;
        container.view.send_modify(|view| view.paused = false);
        container.tell(&self.events, "unpause", Vec::new());
        debug!(container.id = container.id, "resumed");
        Ok(())
    }

    /// For those who want it to hear a signal.
    pub(super) fn resume_if_paused(&self, container: &Container) -> Result<(), RuntimeError> {
        match self.resume(container) {
            Err(RuntimeError::WrongState { .. }) => Ok(()),
            other => other,
        }
    }
}
