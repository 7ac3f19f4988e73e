//! What confines a process beside its capabilities: the seccomp filter, and the labels of AppArmor and SELinux.

use std::ffi::CString;

use super::seccomp::{self, SeccompFilter, SeccompHost, SeccompProfile};
use super::{PlanError, c_string};
use crate::config::{AppArmor, ContainerConfig, Seccomp, SelinuxLabel};

/// What the kernel of the host offers for confinement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Machine {
    pub(crate) seccomp: SeccompHost,
    pub(crate) apparmor: AppArmorHost,
    /// Absent: SELinux is not enabled.
    pub(crate) selinux: Option<SelinuxHost>,
    /// CPUs that tell in `/sys` how often they were too hot, which tells what others do.
    pub(crate) throttled_cpus: u32,
}

/// AppArmor, as it is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum AppArmorHost {
    /// Not in the kernel, or off.
    #[default]
    Off,
    /// With these profiles loaded.
    On { profiles: Vec<String> },
}

impl AppArmorHost {
    /// The names in `apparmor/profiles`, whose lines are `name (mode)`.
    pub(crate) fn parse(profiles: &str) -> Vec<String> {
        profiles.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned())).collect()
    }
}

/// SELinux's labels for containers on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SelinuxHost {
    process: String,
    file: String,
}

impl SelinuxHost {
    /// Reads `lxc_contexts`; what it does not say is as in the reference policy.
    pub(crate) fn parse(contexts: &str) -> SelinuxHost {
        let value = |key: &str, default: &str| {
            let found = contexts.lines().filter_map(|line| line.split_once('=')).find(|(name, _)| name.trim() == key);
            found.map_or(default, |(_, value)| value.trim().trim_matches('"')).to_owned()
        };
        SelinuxHost {
            process: value("process", "system_u:system_r:container_t:s0"),
            file: value("file", "system_u:object_r:container_file_t:s0"),
        }
    }
}

/// Applied to a process as the last thing before its exec, and to every process that comes into the container later.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Confinement {
    /// Loaded at the very end. Absent: all calls are allowed.
    pub(crate) seccomp: Option<SeccompFilter>,
    /// Files of the process's own directory in `/proc` and what is written to them, for the label that the next exec takes.
    pub(crate) labels: Vec<(CString, CString)>,
}

/// Decides both. `capabilities` is the bounding set.
pub(crate) fn confinement(
    config: &ContainerConfig,
    capabilities: u64,
    machine: &Machine,
) -> Result<Confinement, PlanError> {
    let seccomp = match &config.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(seccomp::compile_default(&machine.seccomp, capabilities)?),
        Seccomp::Custom(json) => Some(seccomp::compile(&SeccompProfile::parse(json)?, &machine.seccomp, capabilities)?),
    };
    let mut labels = Vec::new();
    labels.extend(apparmor_label(&config.apparmor, &machine.apparmor)?);
    if let Some((process, _)) = selinux_labels(config, machine)? {
        labels.push(selinux_exec(&process)?);
    }
    Ok(Confinement { seccomp, labels })
}

/// What makes the next exec enter the AppArmor profile.
pub(crate) fn apparmor_label(wish: &AppArmor, host: &AppArmorHost) -> Result<Option<(CString, CString)>, PlanError> {
    const DEFAULT: &str = "docker-default";
    let has = |name: &str| matches!(host, AppArmorHost::On { profiles } if profiles.iter().any(|known| known == name));
    let name = match (wish, host) {
        (AppArmor::Unconfined, _) => return Ok(None),
        (AppArmor::Default, _) if has(DEFAULT) => DEFAULT,
        (AppArmor::Default, _) => return Ok(None),
        (AppArmor::Named(_), AppArmorHost::Off) => {
            return Err(PlanError::Unsupported { field: "apparmor (not enabled on this host)" });
        }
        (AppArmor::Named(name), AppArmorHost::On { .. }) if has(name) => name,
        (AppArmor::Named(name), AppArmorHost::On { .. }) => {
            return Err(PlanError::invalid("apparmor", format!("the profile {name:?} is not loaded")));
        }
    };
    let file = c_string("apparmor", "attr/apparmor/exec")?;
    Ok(Some((file, c_string("apparmor", format!("exec {name}"))?)))
}

/// What makes the next exec take the SELinux label.
pub(crate) fn selinux_exec(label: &str) -> Result<(CString, CString), PlanError> {
    Ok((c_string("selinux", "attr/exec")?, c_string("selinux", label)?))
}

/// The labels of the container's processes and of its files, when it has any.
pub(crate) fn selinux_labels(
    config: &ContainerConfig,
    machine: &Machine,
) -> Result<Option<(String, String)>, PlanError> {
    let Some(wish) = &config.selinux else { return Ok(None) };
    let Some(host) = &machine.selinux else {
        return Err(PlanError::Unsupported { field: "selinux (not enabled on this host)" });
    };
    let SelinuxLabel { user, role, kind, level } = wish;
    let part_ok = |part: &String| {
        part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b':' | b','))
    };
    if ![user, role, kind, level].into_iter().all(part_ok) || [user, role, kind].iter().any(|part| part.contains(':')) {
        return Err(PlanError::invalid("selinux", "not a user, role, type and level"));
    }
    Ok(Some((
        over(&host.process, [user, role, kind, level]),
        over(&host.file, [&"".into(), &"".into(), &"".into(), level]),
    )))
}

/// A label with other parts; empty ones stay. The level may hold colons itself.
fn over(label: &str, parts: [&String; 4]) -> String {
    let mut known = label.splitn(4, ':');
    let merged = parts.map(|part| {
        let known = known.next().unwrap_or_default();
        if part.is_empty() { known.to_owned() } else { part.clone() }
    });
    merged.join(":")
}

/// Whether this is a seccomp profile that can be compiled, on this architecture.
///
/// # Errors
/// Says what is wrong, or not supported.
pub fn check_seccomp_profile(json: &[u8]) -> Result<(), PlanError> {
    let text = std::str::from_utf8(json).map_err(|_| PlanError::invalid("seccomp", "the profile is not UTF-8"))?;
    seccomp::compile(&SeccompProfile::parse(text)?, &SeccompHost::default(), 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_of_apparmor() {
        let profiles =
            AppArmorHost::parse("docker-default (enforce)\n/usr/bin/man (complain)\nodd name (x) (enforce)\n");
        assert_eq!(profiles, ["docker-default", "/usr/bin/man", "odd name (x)"]);
        let on = |names: &[&str]| AppArmorHost::On { profiles: names.iter().map(|n| (*n).to_owned()).collect() };
        let label = |wish: AppArmor, host: &AppArmorHost| {
            let label = apparmor_label(&wish, host).map_err(|error| error.to_string())?;
            Ok::<_, String>(label.map(|(_, text)| text.into_string().unwrap_or_default()))
        };
        let named = |name: &str| AppArmor::Named(name.into());
        assert_eq!(label(AppArmor::Default, &AppArmorHost::Off), Ok(None));
        assert_eq!(label(AppArmor::Default, &on(&["x"])), Ok(None));
        assert_eq!(label(AppArmor::Default, &on(&["docker-default"])), Ok(Some("exec docker-default".into())));
        assert_eq!(label(AppArmor::Unconfined, &on(&["docker-default"])), Ok(None));
        assert_eq!(label(named("x"), &on(&["x"])), Ok(Some("exec x".into())));
        assert_eq!(label(named("y"), &on(&["x"])), Err("invalid apparmor: the profile \"y\" is not loaded".into()));
        assert!(label(named("x"), &AppArmorHost::Off).unwrap_err().contains("not enabled on this host"));
    }

    #[test]
    fn labels_of_selinux() {
        let labelled = |label: SelinuxLabel| ContainerConfig { selinux: Some(label), ..ContainerConfig::default() };
        let asked = SelinuxLabel { kind: "web_t".into(), level: "s0:c1,c2".into(), ..SelinuxLabel::default() };
        let none = Machine::default();
        assert!(selinux_labels(&labelled(asked.clone()), &none).unwrap_err().to_string().contains("not enabled"));
        assert_eq!(selinux_labels(&ContainerConfig::default(), &none), Ok(None));
        let contexts = "process = \"sys_u:sys_r:box_t:s0\"\nfile=\"sys_u:object_r:box_file_t:s0\"\n";
        let host = Machine { selinux: Some(SelinuxHost::parse(contexts)), ..Machine::default() };
        let expected = ("sys_u:sys_r:web_t:s0:c1,c2".to_owned(), "sys_u:object_r:box_file_t:s0:c1,c2".to_owned());
        assert_eq!(selinux_labels(&labelled(asked), &host), Ok(Some(expected)));
        let bare = SelinuxHost::parse("");
        assert_eq!(over(&bare.file, [&"u".into(), &"r".into(), &"t".into(), &"s1".into()]), "u:r:t:s1");
        let bad = SelinuxLabel { kind: "a:b".into(), ..SelinuxLabel::default() };
        assert!(selinux_labels(&labelled(bad), &host).is_err());
    }

    #[test]
    fn the_default_is_filtered() {
        let plain = confinement(&ContainerConfig::default(), 0xa804_25fb, &Machine::default()).unwrap();
        assert!(plain.seccomp.is_some_and(|filter| filter.program.len() > 100) && plain.labels.is_empty());
        let open = ContainerConfig { seccomp: Seccomp::Unconfined, ..ContainerConfig::default() };
        assert_eq!(confinement(&open, 0, &Machine::default()), Ok(Confinement::default()));
        let wrong = ContainerConfig { seccomp: Seccomp::Custom("[]".into()), ..ContainerConfig::default() };
        assert!(confinement(&wrong, 0, &Machine::default()).is_err());
        assert!(check_seccomp_profile(br#"{"defaultAction":"SCMP_ACT_ERRNO"}"#).is_ok());
        assert!(check_seccomp_profile(&[0xff]).is_err());
    }
}
