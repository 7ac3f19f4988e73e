//! What this host's kernel can do that plans depend on. Only reads.

use std::fs;
use std::path::Path;

use crate::plan::{AppArmorHost, Machine, SeccompHost, SelinuxHost};

/// Looks around. A few microseconds: it is done for each container, because profiles come and go.
pub(crate) fn detect() -> Machine {
    let release = rustix::system::uname();
    Machine {
        seccomp: SeccompHost::of_release(&release.release().to_string_lossy()),
        apparmor: apparmor(),
        selinux: selinux(),
        throttled_cpus: throttled_cpus(),
    }
}

fn apparmor() -> AppArmorHost {
    let enabled = fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    if !enabled {
        return AppArmorHost::Off;
    }
    let profiles = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    AppArmorHost::On { profiles: AppArmorHost::parse(&profiles) }
}

fn selinux() -> Option<SelinuxHost> {
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        return None;
    }
    let config = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let policy = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted").trim();
    let contexts = format!("/etc/selinux/{policy}/contexts/lxc_contexts");
    Some(SelinuxHost::parse(&fs::read_to_string(contexts).unwrap_or_default()))
}

/// CPUs whose heat shows in `/sys`: all possible ones, or none.
fn throttled_cpus() -> u32 {
    if !Path::new("/sys/devices/system/cpu/cpu0/thermal_throttle").exists() {
        return 0;
    }
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = possible.trim().rsplit([',', '-']).next().and_then(|number| number.parse::<u32>().ok());
    last.map_or(1, |last| last.saturating_add(1).min(8192))
}
