//! Changing a label of a container.

use std::sync::{Arc, PoisonError};

use super::runtime::blocking;
use super::{Inner, Runtime};
use crate::RuntimeError;
use crate::stored::{self, Durability, StoredContainer, config_into, names};

impl Runtime {
    /// Gives a container this label, durably, in place of the one of that key. It need not run; what it runs with, and
    /// what was made of its labels when it was created, stays.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or the disk: it is as it was then.
    pub async fn set_label(&self, id: &str, key: &str, value: &str) -> Result<(), RuntimeError> {
        let (inner, id, label) = (Arc::clone(&self.inner), id.to_owned(), (key.to_owned(), value.to_owned()));
        blocking(move || inner.set_label(&id, label)).await
    }
}

impl Inner {
    fn set_label(&self, id: &str, (key, value): (String, String)) -> Result<(), RuntimeError> {
        let lock = self.lock_of(id);
        // Neither a renewal, which reads what is written here, nor a removal comes in between.
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let container = self.get(id)?;
        let mut config = container.config()?;
        config.labels.insert(key, value);
        let labels = config.labels.clone();
        let created_at_nanos = stored::nanos(container.created_at);
        let stored = StoredContainer { created_at_nanos, config: Some(config_into(&config)) };
        stored::write(&container.dir, names::CONTAINER, &stored, Durability::Synced)?;
        *container.labels.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(labels);
        Ok(())
    }
}
