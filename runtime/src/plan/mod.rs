//! The pure half of a container's making: configuration in, ordered steps out.
//!
//! Two front ends make a [`Plan`]: [`plan`], here, out of a [`ContainerConfig`], and `oci::plan` out of an OCI bundle's
//! `config.json`. One `init` carries out either. [`plan`] checks everything that a caller (or, behind it, a user) may get wrong and answers with a [`Plan`] whose
//! strings are already the C strings that the kernel wants, so that the child between clone and exec has nothing left
//! to compute. It reads no file and makes no system call.

pub(crate) mod capabilities;
pub(crate) mod confinement;
mod error;
mod ids;
pub(crate) mod limits;
mod log;
pub(crate) mod mounts;
pub(crate) mod process;
pub(crate) mod seccomp;
mod target;

use std::ffi::CString;
use std::path::Path;

pub(crate) use capabilities::CapabilitySets;
pub use confinement::check_seccomp_profile;
pub(crate) use confinement::{AppArmorHost, Confinement, Machine, SelinuxHost};
pub use error::PlanError;
pub(crate) use error::c_string;
pub(crate) use ids::{Ids, check_ranges};
pub(crate) use mounts::{
    Action, Attributes, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, NodeKind, mount_attr,
};
pub(crate) use process::{Process, Rlimit, UserSpec, Who};
pub(crate) use seccomp::{SeccompFilter, SeccompHost, SockFilter};
pub(crate) use target::Target;

use crate::config::ContainerConfig;
use crate::volume::PrivateFile;

/// What the plan needs to know of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HostView {
    /// Device nodes are guarded, by v1's controller or a program on the v2 cgroup. Without a guard, CAP_MKNOD is
    /// withheld and nodes in the image are dead.
    pub(crate) device_control: bool,
    /// What appears below `/sys/fs/cgroup`.
    pub(crate) cgroups: CgroupView,
    /// What confines processes here.
    pub(crate) machine: Machine,
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

/// Everything that the child does, in order: the root, `setup`, the switch of the root, then `process`.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Namespaces that are made for the container, as `CLONE_NEW*` bits.
    pub(crate) namespaces: u64,
    /// The mount namespace is one that others have made.
    pub(crate) joins_mounts: bool,
    /// What its users and groups are on the host, when it has a user namespace whose maps the shim writes.
    pub(crate) ids: Option<Ids>,
    /// What its root is made of.
    pub(crate) root: Root,
    /// The propagation of all mounts before the first one is made, as `MS_*` bits; 0 leaves them as they are.
    pub(crate) propagation: u64,
    /// The propagation of the finished root, as `MS_*` bits; 0 leaves it as it is.
    pub(crate) root_propagation: u64,
    /// Mounts, devices, links, masks, in this order.
    pub(crate) setup: Vec<Action>,
    /// Seal the root when all mount points are made.
    pub(crate) readonly_root: bool,
    /// The rest: identity, limits, command.
    pub(crate) process: Process,
}

/// What a container's root is made of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// Layers below a writable directory.
    Overlay {
        /// Options of the overlay mount, relative to the container's directory.
        options: CString,
        /// Device nodes in it are dead.
        nodev: bool,
    },
    /// A directory of the host, with the mounts below it. Without a mount namespace of its own the process is only
    /// confined to it by `chroot`.
    Directory(CString),
}

/// What Shoal's own containers do not share with the host, but for the network if they are told to.
pub(crate) const ALL_NAMESPACES: u64 =
    namespace::PID | namespace::MOUNT | namespace::UTS | namespace::IPC | namespace::NETWORK | namespace::CGROUP;

/// The kernel's bits of namespaces.
pub(crate) mod namespace {
    pub(crate) const MOUNT: u64 = 0x0002_0000;
    pub(crate) const CGROUP: u64 = 0x0200_0000;
    pub(crate) const UTS: u64 = 0x0400_0000;
    pub(crate) const IPC: u64 = 0x0800_0000;
    pub(crate) const USER: u64 = 0x1000_0000;
    pub(crate) const PID: u64 = 0x2000_0000;
    pub(crate) const NETWORK: u64 = 0x4000_0000;
    pub(crate) const TIME: u64 = 0x80;
}

/// Layers of an image, as [`crate::image::Limits`] and Docker have it: their links take a sixth of the page that
/// `mount(2)` takes as options.
const MAX_LAYERS: usize = 127;

/// Plans one container. `dir` is the container's own directory, which holds `etc/`.
pub(crate) fn plan(config: &ContainerConfig, dir: &Path, host: &HostView) -> Result<Plan, PlanError> {
    validate(config)?;
    let capabilities = capabilities::mask(&config.capabilities, host.device_control)?;
    let confinement = confinement::confinement(config, capabilities, &host.machine)?;
    let label = confinement::selinux_labels(config, &host.machine)?.map(|(_, files)| files);
    let ids = config.id_mappings.as_ref().map(Ids::new).transpose()?;
    if let (Some(ids), true) = (&ids, !config.private_files.is_empty()) {
        check_owners(&config.private_files, ids)?;
    }
    Ok(Plan {
        namespaces: namespaces(config),
        joins_mounts: false,
        root: Root::Overlay {
            options: overlay_options(config.layers.len(), config.lasting, label.as_deref())?,
            nodev: !host.device_control,
        },
        // The host's later mounts may come in (rslave binds need it), ours never go out.
        propagation: MS_SLAVE | MS_REC,
        root_propagation: 0,
        setup: mounts::actions(config, dir, host, ids.as_ref())?,
        ids,
        readonly_root: config.readonly_root,
        process: process::process(config, CapabilitySets::of_docker(capabilities), confinement)?,
    })
}

fn namespaces(config: &ContainerConfig) -> u64 {
    let own = if config.host_network { ALL_NAMESPACES & !namespace::NETWORK } else { ALL_NAMESPACES };
    own | if config.id_mappings.is_some() { namespace::USER } else { 0 }
}

/// A file that nobody in the container could own would be unreadable there.
fn check_owners(files: &[PrivateFile], ids: &Ids) -> Result<(), PlanError> {
    match files.iter().find(|file| ids.outside(file.uid, file.gid).is_none()) {
        None => Ok(()),
        Some(file) => Err(PlanError::invalid(
            "private_files",
            format!("the container has no user {} or no group {}", file.uid, file.gid),
        )),
    }
}

/// The checks that need no host: what `create` answers before it makes anything.
pub(crate) fn validate(config: &ContainerConfig) -> Result<(), PlanError> {
    valid_id(&config.id)?;
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
    if config.host_network && config.id_mappings.is_some() {
        // Docker's words.
        let reason = "cannot share the host's network namespace when user namespaces are enabled";
        return Err(PlanError::invalid("host_network", reason));
    }
    log::validate(&config.log)?;
    for file in &config.private_files {
        if Target::new("private_files.target", &file.target)?.is_root() || file.mode > 0o7777 {
            return Err(PlanError::invalid("private_files", "a file is not the root, and has a mode of at most 7777"));
        }
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
/// page. `volatile`: an upper directory that never outlives the boot as a root need not be synced at unmount. (Such a one
/// is mounted once.)
fn overlay_options(layers: usize, lasting: bool, label: Option<&str>) -> Result<CString, PlanError> {
    let lower: Vec<String> = (0..layers).rev().map(|n| format!("l/{n}")).collect();
    // In quotes, for a label may hold a comma.
    let label = label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
    let volatile = if lasting { "" } else { ",volatile" };
    c_string("layers", format!("lowerdir={},upperdir=upper,workdir=work{volatile}{label}", lower.join(":")))
}

#[cfg(test)]
mod tests;
