//! The mounts, devices, links and masks of a container, in the order in which they are made.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::confinement::selinux_labels;
use super::{CgroupView, HostView, Ids, PlanError, Target, c_string};
use crate::config::{ContainerConfig, Mount, MountKind, Propagation};

/// Bits of `mount_setattr(2)` and `fsmount(2)`.
pub(crate) mod mount_attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    /// All bits that say when access times are written; to change one means to clear them all first.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const NOSYMFOLLOW: u64 = 0x0020_0000;
}
use mount_attr::{NODEV, NOEXEC, NOSUID, RDONLY, STRICTATIME};

/// Kinds of propagation, as `mount(2)` and `mount_setattr(2)` have them.
pub(crate) const MS_UNBINDABLE: u64 = 1 << 17;
pub(crate) const MS_PRIVATE: u64 = 1 << 18;
pub(crate) const MS_SLAVE: u64 = 1 << 19;
pub(crate) const MS_SHARED: u64 = 1 << 20;
/// The whole tree, not its top alone.
pub(crate) const MS_REC: u64 = 1 << 14;

/// Changes of a mount's attributes, as bits of [`mount_attr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// For the mounts below it as well.
    pub(crate) deep_set: u64,
    pub(crate) deep_clear: u64,
    /// The ids of its files are those of the container's user namespace, not the host's.
    pub(crate) maps_ids: bool,
}

/// What a device node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Character,
    Block,
    Fifo,
}

/// One step of the setup. Targets are resolved inside of the container's root and made where they are missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A new instance of a kernel filesystem. An optional one that the kernel lacks is passed over.
    Filesystem {
        fs: CString,
        source: CString,
        options: Vec<(CString, Option<CString>)>,
        attributes: u64,
        /// `MS_*`; 0 leaves it as it comes.
        propagation: u64,
        target: Target,
        optional: bool,
    },
    /// A file or directory of the host. `propagation` as for filesystems.
    Bind { source: CString, target: Target, recursive: bool, attributes: Attributes, propagation: u64 },
    /// What is at `path` inside of a directory of the host, which no link may lead out of; with all that is mounted
    /// there, and private.
    Beneath { source: CString, path: CString, target: Target, attributes: Attributes },
    /// As `Bind`, and what is mounted there later appears on the host as well.
    Shared { source: CString, target: Target, recursive: bool, attributes: Attributes, propagation: u64 },
    /// What is mounted there gets other attributes.
    Remount { target: Target, attributes: Attributes },
    /// A device node, or a fifo; what is there already stays. Where nodes cannot be made (in a user namespace) the
    /// host's node of that path is mounted.
    Device { target: Target, kind: NodeKind, major: u32, minor: u32, mode: u32, uid: u32, gid: u32 },
    /// A symbolic link, where nothing is yet.
    Link { target: Target, to: CString },
    /// A value written below the container's `/proc/sys`. An optional one that the kernel lacks is passed over.
    Sysctl { target: Target, value: CString, optional: bool },
    /// Hidden behind an empty directory or `/dev/null`, where it exists.
    Mask { target: Target },
    /// Mounted over itself, read-only, where it exists.
    ReadOnly { target: Target },
    /// The mount at this place becomes read-only.
    Seal { target: Target },
}

impl Action {
    /// What the step works on, for messages.
    pub(crate) fn subject(&self) -> &CStr {
        match self {
            Action::Filesystem { target, .. }
            | Action::Bind { target, .. }
            | Action::Beneath { target, .. }
            | Action::Shared { target, .. }
            | Action::Remount { target, .. }
            | Action::Device { target, .. }
            | Action::Link { target, .. }
            | Action::Sysctl { target, .. }
            | Action::Mask { target }
            | Action::ReadOnly { target }
            | Action::Seal { target } => target.path(),
        }
    }

    /// Whether its source must be taken before the container's view of the host stops passing anything on.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Action::Shared { .. })
    }
}

/// Docker's.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// Kernel settings that Docker gives each container of its own: any port and ping without privileges.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The group `tty`, everywhere.
const TTY: u32 = 5;

/// At most this many mounts of the user's.
const MAX_MOUNTS: usize = 256;
/// At most this many of them pass mounts on to the host.
const MAX_SHARED: usize = 32;

pub(super) fn actions(
    config: &ContainerConfig,
    dir: &Path,
    host: &HostView,
    ids: Option<&Ids>,
) -> Result<Vec<Action>, PlanError> {
    let mut actions = Vec::with_capacity(64);
    actions.push(filesystem("proc", "/proc", NOSUID | NODEV | NOEXEC, &[])?);
    devices(&mut actions, ids)?;
    actions.push(filesystem("sysfs", "/sys", NOSUID | NODEV | NOEXEC | RDONLY, &[])?);
    cgroups(&mut actions, &host.cgroups)?;
    sysctls(&mut actions, config, ids)?;
    for path in MASKED {
        actions.push(Action::Mask { target: Target::fixed(path)? });
    }
    for cpu in 0..host.machine.throttled_cpus {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
        actions.push(Action::Mask { target: Target::new("path", path)? });
    }
    for path in READONLY {
        actions.push(Action::ReadOnly { target: Target::fixed(path)? });
    }
    if config.mounts.len() > MAX_MOUNTS {
        return Err(PlanError::invalid("mounts", format!("more than {MAX_MOUNTS}")));
    }
    // A mount over /etc must not hide the files without which no name resolves; one over such a file is meant.
    let (above, others): (Vec<_>, Vec<_>) = config.mounts.iter().partition(|mount| mount.target == Path::new("/etc"));
    for mount in above {
        actions.push(user_mount(mount, ids.is_some())?);
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        actions.push(Action::Bind {
            source: c_string("data_dir", dir.join("etc").join(name).as_os_str().as_bytes())?,
            target: Target::new("path", Path::new("/etc").join(name))?,
            recursive: false,
            attributes: readonly(config.readonly_root, false),
            propagation: MS_PRIVATE | MS_REC,
        });
    }
    for mount in others {
        actions.push(user_mount(mount, ids.is_some())?);
    }
    if actions.iter().filter(|action| action.is_shared()).count() > MAX_SHARED {
        return Err(PlanError::invalid("mounts", format!("more than {MAX_SHARED} with shared propagation")));
    }
    if let Some((_, label)) = selinux_labels(config, &host.machine)? {
        label_files(&mut actions, &label)?;
    }
    Ok(actions)
}

/// Of one mount, or of its whole tree.
fn readonly(wanted: bool, recursive: bool) -> Attributes {
    match (wanted, recursive) {
        (false, _) => Attributes::default(),
        (true, false) => Attributes { set: RDONLY, ..Attributes::default() },
        (true, true) => Attributes { deep_set: RDONLY, ..Attributes::default() },
    }
}

/// Gives the container's SELinux label to all files of the filesystems that take one.
fn label_files(actions: &mut [Action], label: &str) -> Result<(), PlanError> {
    for action in actions {
        if let Action::Filesystem { fs, options, .. } = action
            && [&b"tmpfs"[..], b"devpts", b"mqueue"].contains(&fs.to_bytes())
        {
            options.push((c_string("selinux", "context")?, Some(c_string("selinux", label)?)));
        }
    }
    Ok(())
}

pub(crate) fn filesystem(
    fs: &'static str,
    path: &'static str,
    attributes: u64,
    options: &[(&'static str, Option<&'static str>)],
) -> Result<Action, PlanError> {
    let mut owned = Vec::with_capacity(options.len());
    for (key, value) in options {
        owned.push((c_string("path", *key)?, value.map(|value| c_string("path", value)).transpose()?));
    }
    Ok(Action::Filesystem {
        fs: c_string("path", fs)?,
        source: c_string("path", fs)?,
        options: owned,
        attributes,
        propagation: 0,
        target: Target::fixed(path)?,
        optional: false,
    })
}

fn devices(actions: &mut Vec<Action>, ids: Option<&Ids>) -> Result<(), PlanError> {
    actions.push(filesystem("tmpfs", "/dev", NOSUID | STRICTATIME, &[("mode", Some("755")), ("size", Some("64k"))])?);
    default_devices(actions)?;
    let mut pts = vec![("ptmxmode", Some("0666")), ("mode", Some("0620"))];
    if ids.is_none_or(|ids| ids.has_group(TTY)) {
        pts.push(("gid", Some("5")));
    }
    actions.push(filesystem("devpts", "/dev/pts", NOSUID | NOEXEC, &pts)?);
    let shm = [("mode", Some("1777")), ("size", Some("64m"))];
    actions.push(filesystem("tmpfs", "/dev/shm", NOSUID | NODEV | NOEXEC, &shm)?);
    let mut mqueue = filesystem("mqueue", "/dev/mqueue", NOSUID | NODEV | NOEXEC, &[])?;
    if let Action::Filesystem { optional, .. } = &mut mqueue {
        // A kernel without POSIX message queues is fine for nearly everyone.
        *optional = true;
    }
    actions.push(mqueue);
    default_links(actions)
}

/// The nodes that every container has.
pub(crate) fn default_devices(actions: &mut Vec<Action>) -> Result<(), PlanError> {
    for (path, major, minor) in DEVICES {
        let (target, kind) = (Target::fixed(path)?, NodeKind::Character);
        actions.push(Action::Device { target, kind, major, minor, mode: 0o666, uid: 0, gid: 0 });
    }
    Ok(())
}

/// The links that every container has in `/dev`.
pub(crate) fn default_links(actions: &mut Vec<Action>) -> Result<(), PlanError> {
    for (path, to) in LINKS {
        actions.push(Action::Link { target: Target::fixed(path)?, to: c_string("path", to)? });
    }
    Ok(())
}

fn cgroups(actions: &mut Vec<Action>, view: &CgroupView) -> Result<(), PlanError> {
    const FLAGS: u64 = NOSUID | NODEV | NOEXEC;
    match view {
        CgroupView::Unified => actions.push(filesystem("cgroup2", "/sys/fs/cgroup", FLAGS | RDONLY, &[])?),
        CgroupView::Split(hierarchies) => {
            actions.push(filesystem("tmpfs", "/sys/fs/cgroup", FLAGS, &[("mode", Some("755"))])?);
            for (name, fs, options) in hierarchies {
                let mut parsed = Vec::with_capacity(options.len());
                for option in options {
                    parsed.push(match option.split_once('=') {
                        Some((key, value)) => (c_string("path", key)?, Some(c_string("path", value)?)),
                        None => (c_string("path", option.as_str())?, None),
                    });
                }
                actions.push(Action::Filesystem {
                    fs: c_string("path", *fs)?,
                    source: c_string("path", *fs)?,
                    options: parsed,
                    attributes: FLAGS | RDONLY,
                    propagation: 0,
                    target: Target::new("path", Path::new("/sys/fs/cgroup").join(name))?,
                    optional: false,
                });
            }
            actions.push(Action::Seal { target: Target::fixed("/sys/fs/cgroup")? });
        }
    }
    Ok(())
}

fn sysctls(actions: &mut Vec<Action>, config: &ContainerConfig, ids: Option<&Ids>) -> Result<(), PlanError> {
    for (name, value) in SYSCTLS {
        // The range would have to end at the last group that the container has, and Docker sets none then either.
        let unfit = ids.is_some() && name == "net.ipv4.ping_group_range";
        // They are all of a network, and the host's is not ours to change.
        if !config.host_network && !unfit && !config.sysctls.contains_key(name) {
            actions.push(Action::Sysctl {
                target: sysctl_target(name)?,
                value: c_string("sysctls", value)?,
                optional: true,
            });
        }
    }
    if config.sysctls.len() > 256 {
        return Err(PlanError::invalid("sysctls", "more than 256"));
    }
    for (name, value) in &config.sysctls {
        if value.len() > 4096 {
            return Err(PlanError::invalid("sysctls", format!("{name}: value is too long")));
        }
        if config.host_network && name.starts_with("net") {
            return Err(PlanError::invalid("sysctls", format!("{name} is not allowed with the host's network")));
        }
        let value = c_string("sysctls", value.as_str())?;
        actions.push(Action::Sysctl { target: sysctl_target(name)?, value, optional: false });
    }
    Ok(())
}

/// Only what belongs to a namespace of the container may be set; anything else would reach the host. Dots are between
/// the parts of a name; a slash is a dot in one of them (`net.ipv4.conf.eth0/100.forwarding`).
pub(crate) fn sysctl_target(name: &str) -> Result<Target, PlanError> {
    const EXACT: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let namespaced = EXACT.contains(&name) || name.starts_with("net.") || name.starts_with("fs.mqueue.");
    let is_known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/');
    let parts_ok = name.split('.').all(|part| !part.is_empty() && !part.starts_with('/') && part.bytes().all(is_known));
    if !namespaced || !parts_ok || name.len() > 256 {
        return Err(PlanError::invalid("sysctls", format!("{name:?} is not a namespaced kernel setting")));
    }
    let swapped = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    Target::new("sysctls", format!("/proc/sys/{}", name.chars().map(swapped).collect::<String>()))
}

/// Programs and this runtime itself trust what /proc says, so only the files that tools for containers are known to
/// cover may be; the same as runc's.
pub(crate) fn may_be_covered(target: &Target) -> bool {
    const FILES: [&[u8]; 11] = [
        b"proc/cpuinfo",
        b"proc/diskstats",
        b"proc/loadavg",
        b"proc/meminfo",
        b"proc/net/dev",
        b"proc/slabinfo",
        b"proc/stat",
        b"proc/swaps",
        b"proc/sys/crypto/fips_enabled",
        b"proc/sys/kernel/ns_last_pid",
        b"proc/uptime",
    ];
    let path = target.path().to_bytes();
    path != b"proc" && (!path.starts_with(b"proc/") || FILES.contains(&path))
}

/// Docker's words for a subpath that cannot be one.
fn subpath(path: &Path) -> Result<Option<CString>, PlanError> {
    let inside = |part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir);
    if !path.components().all(inside) || path.as_os_str().len() > 4000 {
        return Err(PlanError::invalid("mounts.subpath", "must be a relative path within the volume"));
    }
    (!path.as_os_str().is_empty()).then(|| c_string("mounts.subpath", path.as_os_str().as_bytes())).transpose()
}

fn user_mount(mount: &Mount, own_users: bool) -> Result<Action, PlanError> {
    let target = Target::new("mounts.target", &mount.target)?;
    if target.is_root() {
        return Err(PlanError::invalid("mounts.target", "cannot be the root itself"));
    }
    if !may_be_covered(&target) {
        return Err(PlanError::invalid("mounts.target", format!("{} is in /proc", mount.target.display())));
    }
    match &mount.kind {
        MountKind::Bind { source, recursive, readonly_below, propagation } => {
            if !source.is_absolute() {
                return Err(PlanError::invalid("mounts.source", format!("{} is not absolute", source.display())));
            }
            let propagation = match propagation {
                Propagation::RPrivate => MS_PRIVATE | MS_REC,
                Propagation::Private => MS_PRIVATE,
                Propagation::RSlave => MS_SLAVE | MS_REC,
                Propagation::Slave => MS_SLAVE,
                Propagation::RShared => MS_SHARED | MS_REC,
                Propagation::Shared => MS_SHARED,
            };
            if propagation & MS_SHARED != 0 {
                return Ok(Action::Shared {
                    source: c_string("mounts.source", source.as_os_str().as_bytes())?,
                    target,
                    recursive: *recursive,
                    attributes: readonly(mount.readonly, *recursive && *readonly_below),
                    propagation,
                });
            }
            Ok(Action::Bind {
                source: c_string("mounts.source", source.as_os_str().as_bytes())?,
                target,
                recursive: *recursive,
                attributes: readonly(mount.readonly, *recursive && *readonly_below),
                propagation,
            })
        }
        MountKind::Volume(volume) => {
            let source = c_string("mounts.source", volume.source.as_os_str().as_bytes())?;
            // As with the image, what is on the disk is what the container sees, whatever its users are on the host.
            let attributes = Attributes { maps_ids: own_users, ..readonly(mount.readonly, true) };
            Ok(match subpath(&volume.subpath)? {
                None => Action::Bind { source, target, recursive: true, attributes, propagation: MS_PRIVATE | MS_REC },
                Some(path) => Action::Beneath { source, path, target, attributes },
            })
        }
        MountKind::Tmpfs { size, mode } => {
            let mode = mode.unwrap_or(0o1777);
            if mode > 0o7777 {
                return Err(PlanError::invalid("mounts.tmpfs.mode", "must be at most 7777"));
            }
            let mut options = vec![(c_string("path", "mode")?, Some(c_string("path", format!("{mode:o}"))?))];
            if let Some(size) = size {
                options.push((c_string("path", "size")?, Some(c_string("path", size.to_string())?)));
            }
            Ok(Action::Filesystem {
                fs: c_string("path", "tmpfs")?,
                source: c_string("path", "tmpfs")?,
                options,
                attributes: NOSUID | NODEV | NOEXEC | if mount.readonly { RDONLY } else { 0 },
                propagation: 0,
                target,
                optional: false,
            })
        }
    }
}
