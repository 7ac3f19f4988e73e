//! What of a container's mounts the daemon does: it checks sources, gives out volumes, writes private files, and says
//! afterwards what is mounted where. The mounting itself is the child's.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::runtime::blocking;
use super::{Inner, Runtime};
use crate::RuntimeError;
use crate::config::{ContainerConfig, Mount, MountKind, Propagation};
use crate::plan::Ids;
use crate::stored::{self, StoredContainer, config_from, names};
use crate::volume::{Taker, VolumeMount, anonymous_name, check_source};

/// A mount of a container as it is, with Docker's names for its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: &'static str,
    /// The volume's name; empty for others.
    pub name: String,
    /// On the host; empty for a tmpfs.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Whether it can be written.
    pub writable: bool,
    /// `rprivate`, ...; empty for a tmpfs.
    pub propagation: &'static str,
}

impl Runtime {
    /// What is mounted in a container: what its configuration asked for, without Shoal's own files.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or its record cannot be read.
    pub async fn mounts(&self, id: &str) -> Result<Vec<MountPoint>, RuntimeError> {
        let (container, private) = (self.inner.get(id)?, self.inner.private.dir().to_owned());
        blocking(move || {
            let stored = stored::read::<StoredContainer>(&container.dir, names::CONTAINER)?;
            let config = stored.and_then(|stored| stored.config).map(config_from).transpose();
            let config = config.map_err(|reason| RuntimeError::Stored {
                path: container.dir.join(names::CONTAINER),
                reason,
                foreign: false,
            })?;
            let mounts = config.unwrap_or_default().mounts;
            // A secret's place on the host is nobody's business.
            let shown =
                |mount: &Mount| !matches!(&mount.kind, MountKind::Bind { source, .. } if source.starts_with(&private));
            Ok(mounts.into_iter().filter(shown).map(point).collect())
        })
        .await
    }
}

fn point(mount: Mount) -> MountPoint {
    let (kind, name, source, propagation) = match mount.kind {
        MountKind::Bind { source, propagation, .. } => ("bind", String::new(), source, propagation_name(propagation)),
        MountKind::Volume(volume) => ("volume", volume.name, volume.source.join(volume.subpath), "rprivate"),
        MountKind::Tmpfs { .. } => ("tmpfs", String::new(), PathBuf::new(), ""),
    };
    MountPoint { kind, name, source, target: mount.target, writable: !mount.readonly, propagation }
}

fn propagation_name(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::RPrivate => "rprivate",
        Propagation::Private => "private",
        Propagation::RSlave => "rslave",
        Propagation::Slave => "slave",
        Propagation::RShared => "rshared",
        Propagation::Shared => "shared",
    }
}

/// Names of the volumes in a configuration whose anonymous ones have names.
pub(super) fn volumes(config: &ContainerConfig) -> impl Iterator<Item = &str> {
    let mounts = config.mounts.iter();
    mounts
        .filter_map(|mount| if let MountKind::Volume(volume) = &mount.kind { Some(volume.name.as_str()) } else { None })
}

/// Says what is wrong with a path of the host before anything is made for the container.
pub(super) fn check_sources(config: &ContainerConfig) -> Result<(), RuntimeError> {
    config.mounts.iter().try_for_each(|mount| match &mount.kind {
        MountKind::Bind { source, propagation, .. } => check_source(source, *propagation),
        MountKind::Volume(_) | MountKind::Tmpfs { .. } => Ok(()),
    })
}

impl Inner {
    /// Gives anonymous volumes their names, and all of them their places.
    pub(super) fn with_volumes<'a>(&self, config: &'a ContainerConfig) -> Cow<'a, ContainerConfig> {
        if volumes(config).next().is_none() {
            return Cow::Borrowed(config);
        }
        let mut config = config.clone();
        for mount in &mut config.mounts {
            if let MountKind::Volume(volume) = &mut mount.kind {
                if volume.name.is_empty() {
                    volume.name = anonymous_name(&config.id, mount.target.as_os_str().as_encoded_bytes());
                }
                volume.source = self.volumes.data_path(&volume.name);
            }
        }
        Cow::Owned(config)
    }

    /// Makes, mounts and fills what the container has of volumes.
    pub(super) fn take_volumes(&self, config: &ContainerConfig, dir: &Path) -> Result<(), RuntimeError> {
        let taker = Taker { container: &config.id, dir, layers: config.layers.len(), exe: &self.shim_exe };
        let mounts = config.mounts.iter();
        let wanted = mounts.filter_map(|mount| match &mount.kind {
            MountKind::Volume(volume) => Some((volume, mount.target.as_path())),
            _ => None,
        });
        for (volume, target) in wanted {
            let volume: &VolumeMount = volume;
            self.volumes.take(&taker, volume, target)?;
        }
        Ok(())
    }

    /// Writes the private files where only memory is, and mounts them from there: what is stored of the container has
    /// their places, and nothing of what is in them.
    pub(super) fn with_private_files<'a>(
        &self,
        config: &'a ContainerConfig,
        ids: Option<&Ids>,
    ) -> Result<Cow<'a, ContainerConfig>, RuntimeError> {
        if config.private_files.is_empty() {
            return Ok(Cow::Borrowed(config));
        }
        let written = self.private.write(&config.id, &config.private_files, ids)?;
        let mut config = config.clone();
        config.private_files.clear();
        config.mounts.extend(written);
        Ok(Cow::Owned(config))
    }
}
