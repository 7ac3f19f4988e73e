//! Capability names, and Docker's default set.

use super::PlanError;
use crate::config::Capabilities;

/// Every capability of Linux 6.1, by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker gives a container that asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const MKNOD: u64 = 1 << 27;

/// The five sets of a process, as bit masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
    /// Permitted and effective are for root alone, as with Docker; else they are set for any user, and the kernel
    /// takes from other users at the exec what is not ambient.
    pub(crate) only_root: bool,
}

impl CapabilitySets {
    /// What a container of Docker's has: the mask for root, and nothing inheritable.
    pub(super) fn of_docker(mask: u64) -> CapabilitySets {
        CapabilitySets { bounding: mask, effective: mask, permitted: mask, only_root: true, ..Default::default() }
    }
}

/// The names, with their prefix, by number.
pub(crate) fn names() -> impl Iterator<Item = String> {
    NAMES.iter().map(|name| format!("CAP_{name}"))
}

/// The bits of a list of names.
pub(crate) fn bits(field: &'static str, list: &[String]) -> Result<u64, PlanError> {
    list.iter().try_fold(0, |mask, name| Ok(mask | bit(field, name)?))
}

/// The bounding set as a bit mask.
///
/// Where nothing guards devices (cgroup v1 without its controller, v2 on a kernel that takes no eBPF program) a process
/// that could make device nodes could open the host's disks, so CAP_MKNOD is withheld there and refused by name.
pub(super) fn mask(wish: &Capabilities, device_control: bool) -> Result<u64, PlanError> {
    let all = (1u64 << NAMES.len()) - 1;
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut mask = 0u64;
    if wish.add.iter().any(is_all) {
        mask = all;
    } else if !wish.drop.iter().any(is_all) {
        for name in DEFAULT {
            mask |= bit("capabilities.add", name)?;
        }
    }
    if !device_control {
        mask &= !MKNOD;
    }
    for name in wish.add.iter().filter(|name| !is_all(name)) {
        let bit = bit("capabilities.add", name)?;
        if bit == MKNOD && !device_control {
            return Err(PlanError::Unsupported { field: "capabilities.add MKNOD without a device controller" });
        }
        mask |= bit;
    }
    for name in wish.drop.iter().filter(|name| !is_all(name)) {
        mask &= !bit("capabilities.drop", name)?;
    }
    Ok(mask)
}

/// Whether the mask has the capability of this name, with or without `CAP_`. A name that nobody knows is in no mask.
pub(super) fn holds(mask: u64, name: &str) -> bool {
    bit("capabilities", name).is_ok_and(|bit| mask & bit != 0)
}

fn bit(field: &'static str, name: &str) -> Result<u64, PlanError> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match NAMES.iter().position(|known| *known == short) {
        Some(number) => Ok(1 << number),
        None => Err(PlanError::invalid(field, format!("unknown capability {name:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(add: &[&str], drop: &[&str], device_control: bool, expected: u64) {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let wish = Capabilities { add: list(add), drop: list(drop) };
        assert_eq!(mask(&wish, device_control), Ok(expected), "{wish:?}");
    }

    #[test]
    fn masks() {
        // The number that every Docker container shows in /proc/self/status.
        check(&[], &[], true, 0xa804_25fb);
        check(&[], &[], false, 0xa004_25fb);
        check(&[], &["ALL"], true, 0);
        check(&["net_admin"], &["all"], true, 1 << 12);
        check(&["ALL"], &["CAP_SYS_ADMIN"], true, 0x1ff_ffff_ffff & !(1 << 21));
        check(&["CAP_SYS_TIME"], &["MKNOD"], true, (0xa804_25fb | 1 << 25) & !(1 << 27));
        let wish = Capabilities { add: vec!["FLY".into()], drop: vec![] };
        assert!(mask(&wish, true).is_err());
        let wish = Capabilities { add: vec!["MKNOD".into()], drop: vec![] };
        assert!(mask(&wish, false).is_err());
    }
}
