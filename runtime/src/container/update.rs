//! New limits for a container that lives.

use std::sync::Arc;

use super::runtime::{Runtime, blocking};
use crate::RuntimeError;
use crate::plan::limits::oci::LinuxResources;

impl Runtime {
    /// Changes the limits of a container that lives, for as long as it does; what is not named stays. Device rules
    /// stay as they are.
    ///
    /// # Errors
    /// [`RuntimeError::Cgroup`] names the limit that cannot be had; the others are as they were.
    pub async fn update(&self, id: &str, resources: LinuxResources) -> Result<(), RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        blocking(move || {
            let outcome = inner.cgroups.update(&container.id, &resources);
            // Its cgroups stay until it is removed, so this is the better word for whatever has happened to them.
            if container.exit().is_some() { Err(container.wrong_state()) } else { Ok(outcome?) }
        })
        .await
    }
}
