//! All that is known of one container.

use std::path::PathBuf;
use std::sync::Arc;

use super::runtime::blocking;
use super::{Container, ContainerState, Runtime};
use crate::config::{ContainerConfig, MountKind};
use crate::stored::{self, StoredContainer, config_from, names};
use crate::{RuntimeError, disk};

/// See [`Runtime::inspect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDetail {
    /// Where it stands.
    pub state: ContainerState,
    /// What it was created with.
    pub config: ContainerConfig,
    /// Where its log files are.
    pub log_dir: PathBuf,
}

impl Runtime {
    /// The container with its configuration, which is read from its files.
    pub async fn inspect(&self, id: &str) -> Result<ContainerDetail, RuntimeError> {
        let container = self.inner.get(id)?;
        let of = Arc::clone(&container);
        let mut config = blocking(move || of.config()).await?;
        // Where a secret lies on the host is nobody's business.
        let private = self.inner.private.dir();
        let is_private =
            |kind: &MountKind| matches!(kind, MountKind::Bind { source, .. } if source.starts_with(private));
        config.mounts.retain(|mount| !is_private(&mount.kind));
        Ok(ContainerDetail { state: container.state(), config, log_dir: container.dir.join(names::LOG) })
    }

    /// Bytes of the files that a container has written beside its image, each counted once. Volumes are not in it.
    /// Takes as long as looking at each of them does.
    pub async fn written(&self, id: &str) -> Result<u64, RuntimeError> {
        let upper = self.inner.get(id)?.dir.join(names::UPPER);
        blocking(move || Ok(disk::size(&upper))).await
    }
}

impl Container {
    /// What it was created with.
    pub(super) fn config(&self) -> Result<ContainerConfig, RuntimeError> {
        let stored = stored::read::<StoredContainer>(&self.dir, names::CONTAINER)?;
        let missing = || RuntimeError::NotFound(self.id.clone());
        let config = stored.and_then(|stored| stored.config).ok_or_else(missing)?;
        let unreadable = |reason| {
            let path = self.dir.join(names::CONTAINER);
            RuntimeError::Stored { path, reason, foreign: false }
        };
        config_from(config).map_err(unreadable)
    }
}
