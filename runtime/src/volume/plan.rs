//! What names, options and filters of volumes mean. Reads nothing, mounts nothing.

use std::collections::BTreeMap;

use rustix::mount::{MountFlags, MountPropagationFlags};

use super::VolumeError;

/// Label of a volume that nobody gave a name; Docker's.
pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";
/// A name becomes a directory's, and while that is removed it has a prefix.
const MAX_NAME: usize = 200;
/// Bytes of all options together; mount(2) takes a page of them.
const MAX_OPTIONS: usize = 4000;
/// Bytes of all labels together.
const MAX_LABELS: usize = 64 << 10;

/// Docker's rule and words for names.
pub(super) fn check_name(name: &str) -> Result<(), VolumeError> {
    if name.len() < 2 {
        return Err(VolumeError::Invalid(
            "volume name is too short, names should be at least two alphanumeric characters".to_owned(),
        ));
    }
    let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if !name.as_bytes()[0].is_ascii_alphanumeric() || !name.bytes().all(inside) {
        return Err(VolumeError::Invalid(format!(
            "\"{}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. \
             If you intended to pass a host directory, use absolute path",
            name.escape_debug()
        )));
    }
    if name.len() > MAX_NAME {
        return Err(VolumeError::Invalid(format!("volume name is longer than {MAX_NAME} characters")));
    }
    Ok(())
}

/// Name of the volume that a container has to itself at a target: 64 hexadecimal digits, as Docker's. The same again
/// for the same container, so that what a crash left behind is found.
pub(crate) fn anonymous_name(container: &str, target: &[u8]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(container.as_bytes());
    context.update(&[0]);
    context.update(target);
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses every driver but the one there is.
pub(super) fn check_driver(driver: &str) -> Result<(), VolumeError> {
    if matches!(driver, "" | "local") { Ok(()) } else { Err(VolumeError::NoDriver(driver.to_owned())) }
}

pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), VolumeError> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_LABELS {
        return Err(VolumeError::Invalid(format!("labels of a volume are longer than {MAX_LABELS} bytes")));
    }
    Ok(())
}

/// What a volume's options ask to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// `nfs`, `tmpfs`, `none`, ...
    pub(super) kind: String,
    /// What mount(2) calls the source.
    pub(super) source: String,
    /// All flags but those of the propagation.
    pub(super) flags: MountFlags,
    /// Set in a call of its own.
    pub(super) propagation: MountPropagationFlags,
    /// The file system's own options.
    pub(super) data: String,
}

/// Docker's flags: name, whether it sets or clears, bits.
const FLAGS: [(&str, bool, MountFlags); 21] = [
    ("defaults", true, MountFlags::empty()),
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("suid", false, MountFlags::NOSUID),
    ("nosuid", true, MountFlags::NOSUID),
    ("dev", false, MountFlags::NODEV),
    ("nodev", true, MountFlags::NODEV),
    ("exec", false, MountFlags::NOEXEC),
    ("noexec", true, MountFlags::NOEXEC),
    ("sync", true, MountFlags::SYNCHRONOUS),
    ("async", false, MountFlags::SYNCHRONOUS),
    ("dirsync", true, MountFlags::DIRSYNC),
    ("atime", false, MountFlags::NOATIME),
    ("noatime", true, MountFlags::NOATIME),
    ("diratime", false, MountFlags::NODIRATIME),
    ("nodiratime", true, MountFlags::NODIRATIME),
    ("bind", true, MountFlags::BIND),
    ("rbind", true, MountFlags::BIND.union(MountFlags::REC)),
    ("relatime", true, MountFlags::RELATIME),
    ("norelatime", false, MountFlags::RELATIME),
    ("strictatime", true, MountFlags::STRICTATIME),
];

const PROPAGATION: [(&str, MountPropagationFlags); 8] = [
    ("private", MountPropagationFlags::PRIVATE),
    ("rprivate", MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC)),
    ("shared", MountPropagationFlags::SHARED),
    ("rshared", MountPropagationFlags::SHARED.union(MountPropagationFlags::REC)),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("rslave", MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC)),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    ("runbindable", MountPropagationFlags::UNBINDABLE.union(MountPropagationFlags::REC)),
];

/// Reads the options of a volume; `None` for a directory of Shoal's own.
///
/// # Errors
/// Docker's refusals: an option that its local driver does not have, or one without those that it needs.
pub(super) fn device(options: &BTreeMap<String, String>) -> Result<Option<Device>, VolumeError> {
    let invalid = |text: String| Err(VolumeError::Invalid(text));
    for (key, value) in options {
        match key.as_str() {
            "type" | "o" | "device" => {}
            "size" => return invalid("quota size requested but no quota support".to_owned()),
            _ => return invalid(format!("invalid option: \"{}\"", key.escape_debug())),
        }
        if value.contains('\0') {
            return invalid(format!("invalid option: {key:?} has a NUL byte"));
        }
    }
    if options.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_OPTIONS {
        return invalid(format!("options of a volume are longer than {MAX_OPTIONS} bytes"));
    }
    for (key, needed) in [("device", "type"), ("o", "device"), ("o", "type"), ("type", "device")] {
        if options.contains_key(key) && !options.contains_key(needed) {
            return invalid(format!("missing required option: {needed:?}"));
        }
    }
    let (Some(kind), Some(source)) = (options.get("type"), options.get("device")) else { return Ok(None) };
    let mut device = Device {
        kind: kind.clone(),
        source: source.clone(),
        flags: MountFlags::empty(),
        propagation: MountPropagationFlags::empty(),
        data: String::new(),
    };
    for option in options.get("o").map(String::as_str).unwrap_or_default().split(',') {
        if let Some((_, sets, bits)) = FLAGS.iter().find(|(name, ..)| *name == option) {
            device.flags.set(*bits, *sets);
        } else if let Some((_, bits)) = PROPAGATION.iter().find(|(name, _)| *name == option) {
            device.propagation = *bits;
        } else if option == "remount" {
            return invalid("invalid option: a volume cannot remount what is mounted".to_owned());
        } else if !option.is_empty() {
            if !device.data.is_empty() {
                device.data.push(',');
            }
            device.data.push_str(option);
        }
    }
    if device.flags.contains(MountFlags::BIND) && !source.starts_with('/') {
        return invalid(format!("invalid option: device {source:?} of a bind is not an absolute path"));
    }
    Ok(Some(device))
}

impl Device {
    /// The server whose address the kernel must be told, where the options name it otherwise.
    pub(super) fn unresolved(&self) -> Option<&str> {
        if self.kind != "nfs" && self.kind != "nfs4" && self.kind != "cifs" {
            return None;
        }
        let name = self.data.split(',').find_map(|option| option.strip_prefix("addr="))?;
        // The kernel takes addresses only. A version 6 address passes too, as nothing else holds a colon.
        (!name.is_empty() && name.parse::<core::net::Ipv4Addr>().is_err() && !name.contains(':')).then_some(name)
    }

    /// The same with that server's address.
    pub(super) fn resolved(mut self, address: core::net::IpAddr) -> Device {
        let options = self.data.split(',').map(|option| match option.starts_with("addr=") {
            true => format!("addr={address}"),
            false => option.to_owned(),
        });
        self.data = options.collect::<Vec<_>>().join(",");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// Kind, source, flags, propagation and data, or the refusal.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let shown = match device(&options(text)) {
            Ok(None) => "directory".to_owned(),
            Ok(Some(d)) => {
                format!("{} {} {:#x} {:#x} {}", d.kind, d.source, d.flags.bits(), d.propagation.bits(), d.data)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(shown.trim_end(), expected, "{text}");
    }

    #[test]
    fn options_mean_what_they_mean_to_docker() {
        check("", "directory");
        check("type=tmpfs device=tmpfs o=size=100m,uid=1000", "tmpfs tmpfs 0x0 0x0 size=100m,uid=1000");
        check("type=none device=/srv o=bind", "none /srv 0x1000 0x0");
        check("type=none device=/srv o=rbind,ro,rshared", "none /srv 0x5001 0x104000");
        check("type=nfs device=:/x o=addr=10.0.0.1,rw,nfsvers=4", "nfs :/x 0x0 0x0 addr=10.0.0.1,nfsvers=4");
        check("type=ext4 device=/dev/sdb1", "ext4 /dev/sdb1 0x0 0x0");
        check("type=ext4 device=/dev/sdb1 o=ro,nosuid,suid,rw,,noatime", "ext4 /dev/sdb1 0x400 0x0");
    }

    #[test]
    fn what_docker_refuses_is_refused_in_its_words() {
        check("bad=1", "invalid option: \"bad\"");
        check("size=10g", "quota size requested but no quota support");
        check("type=nfs", "missing required option: \"device\"");
        check("device=/x", "missing required option: \"type\"");
        check("o=bind", "missing required option: \"device\"");
        check("type=none device=srv o=bind", "invalid option: device \"srv\" of a bind is not an absolute path");
        check("type=ext4 device=/dev/x o=remount", "invalid option: a volume cannot remount what is mounted");
        check(
            &format!("type=nfs device=/{}", "x".repeat(MAX_OPTIONS)),
            "options of a volume are longer than 4000 bytes",
        );
    }

    #[test]
    fn names_of_servers_become_addresses() {
        let nfs = |o: &str| device(&options(&format!("type=nfs device=:/x o={o}"))).unwrap().unwrap();
        assert_eq!(nfs("addr=files.local,rw,soft").unresolved(), Some("files.local"));
        let resolved = nfs("vers=4,addr=files.local,soft").resolved("10.1.2.3".parse().unwrap());
        assert_eq!(resolved.data, "vers=4,addr=10.1.2.3,soft");
        for known in ["addr=10.0.0.1", "addr=fe80::1", "soft", "addr="] {
            assert_eq!(nfs(known).unresolved(), None, "{known}");
        }
        let ext4 = device(&options("type=ext4 device=/dev/x o=addr=name")).unwrap().unwrap();
        assert_eq!(ext4.unresolved(), None);
    }

    #[test]
    fn names_are_directories_of_their_own() {
        for good in ["ab", "a.b", "Data_1-x", &"a".repeat(MAX_NAME), &anonymous_name("c", b"/t")] {
            check_name(good).unwrap();
        }
        for bad in ["", "a", "..", ".a", "-a", "a/b", "a b", "ä1", "a\0", &"a".repeat(MAX_NAME + 1)] {
            check_name(bad).unwrap_err();
        }
        assert_ne!(anonymous_name("c", b"/t"), anonymous_name("c", b"/u"));
        check_driver("local").unwrap();
        let refused = check_driver("rexray").unwrap_err().to_string();
        assert_eq!(refused, "error looking up volume plugin rexray: plugin \"rexray\" not found");
    }
}
