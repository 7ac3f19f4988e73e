//! Mounts of a container: binds, volumes, memory.

use super::super::{ControlError, invalid};
use super::container::no_template;
use super::{argument, labels, shorten, unsupported};
use crate::model::{Mount, MountKind};

const FIELD: &str = "TaskTemplate.ContainerSpec.Mounts";

pub(super) fn mounts(mounts: &[Mount]) -> Result<(), ControlError> {
    let mut targets = std::collections::BTreeSet::new();
    for mount in mounts {
        let target = mount.target.trim_end_matches('/');
        if mount.target.is_empty() {
            return Err(invalid("ContainerSpec: mount target must not be empty"));
        }
        argument("TaskTemplate.ContainerSpec.Mounts.Target", &mount.target)?;
        argument("TaskTemplate.ContainerSpec.Mounts.Source", &mount.source)?;
        let wrong = |why: &str| Err(invalid(format!("invalid mount target {:?}: {why}", shorten(&mount.target))));
        if !mount.target.starts_with('/') {
            return wrong("must be an absolute path");
        }
        if target.is_empty() {
            return wrong("destination can't be '/'");
        }
        if target.split('/').any(|part| part == "..") {
            return wrong("must not contain ..");
        }
        if !targets.insert(target.to_owned()) {
            return Err(invalid(format!("ContainerSpec: duplicate mount point: {}", shorten(&mount.target))));
        }
        one(mount)?;
    }
    Ok(())
}

/// Refuses templates, which services may have one day.
pub(super) fn no_templates(mounts: &[Mount]) -> Result<(), ControlError> {
    for mount in mounts {
        no_template(FIELD, &mount.target)?;
        no_template(FIELD, &mount.source)?;
        let mut values = mount.volume_options.values().chain(mount.volume_labels.values());
        values.try_for_each(|value| no_template(&format!("{FIELD}.VolumeOptions"), value))?;
    }
    Ok(())
}

/// Options that belong to one kind of mount alone.
struct Options {
    volume: bool,
    bind: bool,
    tmpfs: bool,
}

impl Options {
    fn of(mount: &Mount) -> Self {
        Self {
            volume: mount.no_copy
                || !mount.volume_labels.is_empty()
                || !mount.volume_driver.is_empty()
                || !mount.volume_options.is_empty()
                || !mount.subpath.is_empty(),
            bind: !mount.propagation.is_empty()
                || mount.non_recursive
                || mount.create_mountpoint
                || mount.read_only_force_recursive
                || mount.read_only_non_recursive,
            tmpfs: mount.tmpfs_size != 0 || mount.tmpfs_mode != 0,
        }
    }
}

fn one(mount: &Mount) -> Result<(), ControlError> {
    let kind = |name: &str| unsupported(&format!("{FIELD} of type {name}"), true);
    let options = Options::of(mount);
    if !["", "default", "consistent", "cached", "delegated"].contains(&mount.consistency.as_str()) {
        return Err(invalid(format!("{FIELD}.Consistency: unknown")));
    }
    match MountKind::try_from(mount.kind) {
        Ok(MountKind::Bind) if options.volume || options.tmpfs => {
            Err(invalid("a bind mount takes neither volume nor tmpfs options"))
        }
        Ok(MountKind::Bind) => bind(mount),
        Ok(MountKind::Volume) if options.bind || options.tmpfs => {
            Err(invalid("a volume takes neither bind nor tmpfs options"))
        }
        Ok(MountKind::Volume) => volume(mount),
        Ok(MountKind::Tmpfs) if options.volume || options.bind => {
            Err(invalid("a tmpfs mount takes neither volume nor bind options"))
        }
        Ok(MountKind::Tmpfs) => tmpfs(mount),
        Ok(MountKind::NamedPipe) => kind("npipe"),
        Ok(MountKind::Cluster) => kind("cluster"),
        Ok(MountKind::Image) => kind("image"),
        Err(_) => Err(invalid(format!("{FIELD}.Type: unknown"))),
    }
}

fn bind(mount: &Mount) -> Result<(), ControlError> {
    if !mount.source.starts_with('/') {
        let source = shorten(&mount.source);
        return Err(invalid(format!("invalid bind mount source, must be an absolute path: {source}")));
    }
    let known = ["", "rprivate", "private", "rslave", "slave", "rshared", "shared"];
    if !known.contains(&mount.propagation.as_str()) {
        return Err(invalid(format!("invalid propagation mode: {}", shorten(&mount.propagation))));
    }
    read_only(mount)
}

/// Docker's rules: a read-only bind is so with all mounts below it, unless they are excepted or left out.
fn read_only(mount: &Mount) -> Result<(), ControlError> {
    let (force, except) = (mount.read_only_force_recursive, mount.read_only_non_recursive);
    if (force || except) && !mount.read_only {
        return Err(invalid("BindOptions: ReadOnlyForceRecursive and ReadOnlyNonRecursive need ReadOnly"));
    }
    if force && (except || mount.non_recursive) {
        return Err(invalid(
            "BindOptions: ReadOnlyForceRecursive goes with neither NonRecursive nor ReadOnlyNonRecursive",
        ));
    }
    if force && !["", "rprivate"].contains(&mount.propagation.as_str()) {
        return Err(invalid("BindOptions: ReadOnlyForceRecursive needs Propagation rprivate"));
    }
    Ok(())
}

fn tmpfs(mount: &Mount) -> Result<(), ControlError> {
    if !mount.source.is_empty() {
        return Err(invalid("invalid tmpfs source, source must be empty"));
    }
    if mount.tmpfs_mode > 0o7777 || mount.tmpfs_size > 1 << 50 {
        return Err(invalid("invalid tmpfs size or mode"));
    }
    Ok(())
}

/// What each host's volumes will say too, when the task is there: better now.
fn volume(mount: &Mount) -> Result<(), ControlError> {
    let name = mount.source.as_str();
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = (2..=200).contains(&name.len())
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(inside);
    if !name.is_empty() && !good {
        return Err(invalid(format!(
            "\"{}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
             allowed. If you intended to pass a host directory, use absolute path",
            shorten(name)
        )));
    }
    if !["", "local"].contains(&mount.volume_driver.as_str()) {
        unsupported(&format!("{FIELD}.VolumeOptions.DriverConfig.Name {:?}", shorten(&mount.volume_driver)), true)?;
    }
    let field = format!("{FIELD}.VolumeOptions");
    labels(&format!("{field}.Labels"), &mount.volume_labels)?;
    labels(&format!("{field}.DriverConfig.Options"), &mount.volume_options)?;
    for (key, value) in &mount.volume_options {
        if !["type", "o", "device"].contains(&key.as_str()) {
            return Err(invalid(format!("invalid option: {:?}", shorten(key))));
        }
        argument(&field, value)?;
    }
    if mount.subpath.is_empty() {
        return Ok(());
    }
    argument(&field, &mount.subpath)?;
    if name.is_empty() {
        return Err(invalid("must not set Subpath when using anonymous volumes"));
    }
    if mount.subpath.starts_with('/') || mount.subpath.split('/').any(|part| part == "..") {
        return Err(invalid("subpath must be a relative path within the volume"));
    }
    Ok(())
}
