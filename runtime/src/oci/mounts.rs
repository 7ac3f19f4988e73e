//! The mounts, devices, links, settings and hidden places of a bundle, as steps of the setup. Pure.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::options::{self, Parsed};
use super::plan::Context;
use super::spec::{Device, Mount, Spec};
use crate::plan::mount_attr::RDONLY;
use crate::plan::mounts::{default_devices, default_links, may_be_covered, sysctl_target};
use crate::plan::{Action, Attributes, CgroupView, NodeKind, PlanError, Target, c_string, namespace};

const MAX_MOUNTS: usize = 1024;
const MAX_DEVICES: usize = 1024;
const MAX_PATHS: usize = 1024;

fn invalid<T>(field: &'static str, reason: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError::invalid(field, reason))
}

/// A place in the container as an absolute path without `.` and `..`. It is resolved inside of the root all the same.
pub(super) fn clean(path: &str) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// Mounts in their order, then devices and links.
pub(super) fn actions(spec: &Spec, context: &Context<'_>, cgroup_namespace: bool) -> Result<Vec<Action>, PlanError> {
    if spec.mounts.len() > MAX_MOUNTS {
        return invalid("mounts", format!("more than {MAX_MOUNTS}"));
    }
    if !spec.linux.mount_label.is_empty() {
        return Err(PlanError::Unsupported { field: "linux.mountLabel" });
    }
    let mut actions = Vec::with_capacity(64);
    let mut hosts_dev = false;
    for mount in &spec.mounts {
        let target = Target::new("mounts.destination", clean(&mount.destination))?;
        if mount.destination.is_empty() || target.is_root() {
            return invalid("mounts.destination", "is missing, or the root itself");
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return Err(PlanError::Unsupported { field: "mounts.uidMappings" });
        }
        let mut parsed = options::parse(&mount.options)?;
        if !parsed.remount {
            check_proc(mount, &target)?;
        }
        if mount.kind == "bind" && parsed.bind.is_none() {
            parsed.bind = Some(false);
        }
        hosts_dev |= parsed.bind.is_some() && target.path() == c"dev";
        match mount.kind.as_str() {
            "cgroup" | "cgroup2" if parsed.bind.is_none() => {
                cgroups(&mut actions, &target, &parsed, context, cgroup_namespace)?;
            }
            _ => actions.push(one(mount, target, parsed, context.bundle)?),
        }
    }
    // A /dev that is the host's has its devices, and is not ours to add to.
    if !hosts_dev {
        default_devices(&mut actions)?;
    }
    if spec.linux.devices.len() > MAX_DEVICES {
        return invalid("linux.devices", format!("more than {MAX_DEVICES}"));
    }
    for device in &spec.linux.devices {
        actions.push(node(device)?);
    }
    if !hosts_dev {
        default_links(&mut actions)?;
    }
    Ok(actions)
}

/// What lies over `/proc` must be a `/proc`, and in it only what tools for containers are known to cover: as runc has it.
fn check_proc(mount: &Mount, target: &Target) -> Result<(), PlanError> {
    let is_proc = mount.kind == "proc" || mount.source == "/proc";
    if may_be_covered(target) || (is_proc && target.path() == c"proc") {
        return Ok(());
    }
    invalid("mounts.destination", format!("{:?} is in /proc, where only a proc may be mounted", mount.destination))
}

fn one(mount: &Mount, target: Target, parsed: Parsed, bundle: &Path) -> Result<Action, PlanError> {
    let Parsed { attributes, propagation, bind, remount, data } = parsed;
    if remount {
        return Ok(Action::Remount { target, attributes });
    }
    if let Some(recursive) = bind {
        if mount.source.is_empty() {
            return invalid("mounts.source", format!("the bind mount at {:?} has none", mount.destination));
        }
        let source = bundle.join(&mount.source);
        let source = c_string("mounts.source", source.into_os_string().into_encoded_bytes())?;
        return Ok(Action::Bind { source, target, recursive, attributes, propagation });
    }
    if mount.kind.is_empty() {
        return invalid("mounts.type", format!("the mount at {:?} has none", mount.destination));
    }
    // These exist once, or once a namespace, whoever mounts them: only the mount becomes read-only.
    const SHARED: [&str; 6] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2"];
    let sealed = attributes.set & RDONLY != 0 && !SHARED.contains(&mount.kind.as_str());
    let mut options = Vec::with_capacity(data.len() + 1);
    if sealed {
        options.push((c_string("mounts.options", "ro")?, None));
    }
    options.extend(pairs(data)?);
    let source = if mount.source.is_empty() { mount.kind.as_str() } else { mount.source.as_str() };
    Ok(Action::Filesystem {
        fs: c_string("mounts.type", mount.kind.as_str())?,
        source: c_string("mounts.source", source)?,
        options,
        attributes: attributes.set | attributes.deep_set,
        propagation,
        target,
        optional: false,
    })
}

type Pairs = Vec<(CString, Option<CString>)>;

fn pairs(data: Vec<(String, Option<String>)>) -> Result<Pairs, PlanError> {
    let field = "mounts.options";
    data.into_iter()
        .map(|(key, value)| Ok((c_string(field, key)?, value.map(|value| c_string(field, value)).transpose()?)))
        .collect()
}

/// The container's view of its cgroups: the hierarchies themselves where a namespace hides what is above it, else its
/// own part of each.
fn cgroups(
    actions: &mut Vec<Action>,
    target: &Target,
    parsed: &Parsed,
    context: &Context<'_>,
    cgroup_namespace: bool,
) -> Result<(), PlanError> {
    let Parsed { attributes, propagation, .. } = *parsed;
    let place = Path::new("/").join(std::ffi::OsStr::from_bytes(target.path().to_bytes()));
    let hierarchy = |fs: &str, options: Pairs, target: Target| {
        let name = c_string("mounts.type", fs)?;
        let (fs, source, attributes) = (name.clone(), name, attributes.set);
        Ok::<Action, PlanError>(Action::Filesystem {
            fs,
            source,
            options,
            attributes,
            propagation,
            target,
            optional: false,
        })
    };
    let split = match &context.host.cgroups {
        CgroupView::Unified => None,
        CgroupView::Split(hierarchies) => Some(hierarchies),
    };
    if split.is_some() {
        let own = Action::Filesystem {
            fs: c_string("mounts.type", "tmpfs")?,
            source: c_string("mounts.type", "tmpfs")?,
            options: vec![(c_string("mounts.options", "mode")?, Some(c_string("mounts.options", "755")?))],
            attributes: attributes.set & !RDONLY,
            propagation,
            target: target.clone(),
            optional: false,
        };
        actions.push(own);
    }
    match split {
        _ if !cgroup_namespace => {
            for (name, dir) in context.cgroup_dirs {
                let source = c_string("linux.cgroupsPath", dir.as_os_str().as_bytes())?;
                let target = Target::new("mounts.destination", place.join(name))?;
                actions.push(Action::Bind { source, target, recursive: false, attributes, propagation });
            }
        }
        None => actions.push(hierarchy("cgroup2", Vec::new(), target.clone())?),
        Some(hierarchies) => {
            for (name, fs, options) in hierarchies {
                let split = |option: &String| match option.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.clone(), None),
                };
                let options = pairs(options.iter().map(split).collect())?;
                actions.push(hierarchy(fs, options, Target::new("mounts.destination", place.join(name))?)?);
            }
        }
    }
    if split.is_some() && attributes.set & RDONLY != 0 {
        let attributes = Attributes { set: RDONLY, ..Attributes::default() };
        actions.push(Action::Remount { target: target.clone(), attributes });
    }
    Ok(())
}

fn node(device: &Device) -> Result<Action, PlanError> {
    let field = "linux.devices";
    let kind = match device.kind.as_str() {
        "c" | "u" => NodeKind::Character,
        "b" => NodeKind::Block,
        "p" => NodeKind::Fifo,
        other => return invalid(field, format!("unknown type {other:?}")),
    };
    if !device.path.starts_with('/') {
        return invalid(field, format!("{:?} is not absolute", device.path));
    }
    // What the kernel has room for: 12 and 20 bits.
    let (Ok(major @ ..=0xfff), Ok(minor @ ..=0xf_ffff)) = (u32::try_from(device.major), u32::try_from(device.minor))
    else {
        return invalid(field, format!("{}: no such number {}:{}", device.path, device.major, device.minor));
    };
    let target = Target::new(field, clean(&device.path))?;
    if target.is_root() {
        return invalid(field, "the root is no device");
    }
    if device.uid == Some(u32::MAX) || device.gid == Some(u32::MAX) {
        return invalid(field, format!("{}: {} is nobody's id", device.path, u32::MAX));
    }
    // The file type may be in it as well.
    let mode = device.file_mode.unwrap_or(0o666) & 0o7777;
    Ok(Action::Device { target, kind, major, minor, mode, uid: device.uid.unwrap_or(0), gid: device.gid.unwrap_or(0) })
}

/// Kernel settings; only those of namespaces that the container has for itself, or that were named for it.
pub(super) fn sysctls(spec: &Spec, namespaces: u64, actions: &mut Vec<Action>) -> Result<(), PlanError> {
    let field = "linux.sysctl";
    if spec.linux.sysctl.len() > 256 {
        return invalid(field, "more than 256");
    }
    for (name, value) in &spec.linux.sysctl {
        let name = dotted(name);
        let (kind, what) = sysctl_kind(&name);
        let target = if name == "kernel.domainname" {
            Target::new(field, "/proc/sys/kernel/domainname")?
        } else {
            sysctl_target(&name)?
        };
        if namespaces & kind == 0 {
            return invalid(field, format!("{name} needs a namespace of type {what}"));
        }
        if value.len() > 4096 {
            return invalid(field, format!("{name}: value is too long"));
        }
        actions.push(Action::Sysctl { target, value: c_string(field, value.as_str())?, optional: false });
    }
    Ok(())
}

/// A sysctl's name with dots between its parts, and slashes for the dots in them: so with sysctl(8), where the first
/// separator says which of the two it is.
pub(super) fn dotted(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|first| name[first..].starts_with('.')) {
        return name.to_owned();
    }
    let swapped = |letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    name.chars().map(swapped).collect()
}

/// The namespace that a sysctl belongs to, and its name.
pub(super) fn sysctl_kind(name: &str) -> (u64, &'static str) {
    if name.starts_with("net.") {
        (namespace::NETWORK, "network")
    } else if name == "kernel.domainname" {
        (namespace::UTS, "uts")
    } else {
        (namespace::IPC, "ipc")
    }
}

/// Masked and read-only paths.
pub(super) fn hidden(spec: &Spec, actions: &mut Vec<Action>) -> Result<(), PlanError> {
    let place = |field, path: &String| {
        if !path.starts_with('/') {
            return invalid(field, format!("{path:?} is not absolute"));
        }
        Target::new(field, clean(path))
    };
    if spec.linux.masked_paths.len() > MAX_PATHS || spec.linux.readonly_paths.len() > MAX_PATHS {
        return invalid("linux.maskedPaths", format!("more than {MAX_PATHS}"));
    }
    for path in &spec.linux.masked_paths {
        actions.push(Action::Mask { target: place("linux.maskedPaths", path)? });
    }
    for path in &spec.linux.readonly_paths {
        actions.push(Action::ReadOnly { target: place("linux.readonlyPaths", path)? });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_settings() {
        let check = |name: &str, path: &str| {
            let target = sysctl_target(&dotted(name)).unwrap();
            assert_eq!(target.path().to_str(), Ok(path.strip_prefix('/').unwrap()), "{name}");
        };
        check("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward");
        check("net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward");
        check("net/ipv4/conf/eth0.100/forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding");
        check("net.ipv4.conf.eth0/100.forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding");
        for bad in
            ["net/../kernel/core_pattern", "net.//.x", "net./.x", "net//x", "net/", "kernel/core_pattern", "/net/x"]
        {
            assert!(sysctl_target(&dotted(bad)).is_err(), "{bad}");
        }
    }
}
