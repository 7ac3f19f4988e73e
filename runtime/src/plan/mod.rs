//! The pure half of a container's making: configuration in, ordered steps out.
//!
//! [`plan`] checks everything that a caller (or, behind it, a user) may get wrong and answers with a [`Plan`] whose
//! strings are already the C strings that the kernel wants, so that the child between clone and exec has nothing left
//! to compute. It reads no file and makes no system call.

mod capabilities;
mod error;
pub(crate) mod limits;
mod mounts;
mod process;
mod target;

use std::ffi::CString;
use std::path::Path;

pub use error::PlanError;
pub(crate) use error::c_string;
pub(crate) use mounts::{Action, mount_attr};
pub(crate) use process::{Process, UserSpec};
pub(crate) use target::Target;

use crate::config::ContainerConfig;

/// What the plan needs to know of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostView {
    /// A device controller (cgroup v1) guards device nodes. Without one, CAP_MKNOD is withheld and nodes in the
    /// image are dead.
    pub(crate) device_control: bool,
    /// What appears below `/sys/fs/cgroup`.
    pub(crate) cgroups: CgroupView,
}

/// The shape of `/sys/fs/cgroup` inside of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CgroupView {
    /// One cgroup2 mount.
    Unified,
    /// A tmpfs with one directory a hierarchy: (directory name, filesystem, mount options).
    Split(Vec<(String, &'static str, Vec<String>)>),
}

impl Default for CgroupView {
    fn default() -> Self {
        CgroupView::Split(Vec::new())
    }
}

/// Everything that the child does, in order: the overlay, `setup`, the switch of the root, then `process`.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Options of the overlay mount, relative to the container's directory.
    pub(crate) overlay: CString,
    /// Mount the root with `nodev`.
    pub(crate) root_nodev: bool,
    /// Mounts, devices, links, masks, in this order.
    pub(crate) setup: Vec<Action>,
    /// Seal the root when all mount points are made.
    pub(crate) readonly_root: bool,
    /// The rest: identity, limits, command.
    pub(crate) process: Process,
}

/// The longest option string that `mount(2)` takes is a page; the rest of it is the fixed part.
const MAX_LAYERS: usize = 120;

/// Plans one container. `dir` is the container's own directory, which holds `etc/`.
pub(crate) fn plan(config: &ContainerConfig, dir: &Path, host: &HostView) -> Result<Plan, PlanError> {
    validate(config)?;
    let capabilities = capabilities::mask(&config.capabilities, host.device_control)?;
    Ok(Plan {
        overlay: overlay_options(config.layers.len()),
        root_nodev: !host.device_control,
        setup: mounts::actions(config, dir, host)?,
        readonly_root: config.readonly_root,
        process: process::process(config, capabilities)?,
    })
}

/// The checks that need no host: what `create` answers before it makes anything.
pub(crate) fn validate(config: &ContainerConfig) -> Result<(), PlanError> {
    valid_id(&config.id)?;
    if config.tty {
        return Err(PlanError::Unsupported { field: "tty" });
    }
    if config.init {
        return Err(PlanError::Unsupported { field: "init" });
    }
    let hostname_ok = config.hostname.len() <= 64
        && config.hostname.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if !hostname_ok {
        return Err(PlanError::invalid("hostname", "must be at most 64 letters, digits, dots and dashes"));
    }
    if config.layers.is_empty() || config.layers.len() > MAX_LAYERS {
        return Err(PlanError::invalid("layers", format!("must be 1 to {MAX_LAYERS}, not {}", config.layers.len())));
    }
    if let Some(layer) = config.layers.iter().find(|layer| !layer.is_absolute()) {
        return Err(PlanError::invalid("layers", format!("{} is not absolute", layer.display())));
    }
    if config.labels.len() > 1024 || config.labels.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > 1 << 20 {
        return Err(PlanError::invalid("labels", "too many or too long"));
    }
    for (field, text) in [("files.hosts", &config.files.hosts), ("files.resolv_conf", &config.files.resolv_conf)] {
        if text.len() > 1 << 20 {
            return Err(PlanError::invalid(field, "longer than 1 MiB"));
        }
    }
    if !(-1000..=1000).contains(&config.oom_score_adj) {
        return Err(PlanError::invalid("oom_score_adj", "must be -1000 to 1000"));
    }
    if config.log.max_size < 4096 || config.log.max_files == 0 || config.log.max_files > 1000 {
        return Err(PlanError::invalid("log", "max_size must be at least 4096 bytes and max_files 1 to 1000"));
    }
    if let Some(signal) = &config.stop_signal {
        signal.parse::<crate::Signal>().map_err(|error| PlanError::invalid("stop_signal", error.to_string()))?;
    }
    limits::validate(&config.resources)
}

/// Ids become directory, socket and cgroup names.
pub(crate) fn valid_id(id: &str) -> Result<(), PlanError> {
    let ok = (1..=64).contains(&id.len())
        && id.as_bytes()[0].is_ascii_alphanumeric()
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if ok { Ok(()) } else { Err(PlanError::invalid("id", "must be 1 to 64 of [a-zA-Z0-9_.-]")) }
}

/// The layers are reached by the short links `l/0`, `l/1`, ... (0 is the lowest), because all options must fit in a
/// page. `volatile`: the upper directory never outlives the boot as a root, so syncing it at unmount is lost time.
fn overlay_options(layers: usize) -> CString {
    let lower: Vec<String> = (0..layers).rev().map(|n| format!("l/{n}")).collect();
    let text = format!("lowerdir={},upperdir=upper,workdir=work,volatile", lower.join(":"));
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests;
