//! A container spec: image, health check, secrets, capabilities, and the fields that have no effect yet.

use super::super::{ControlError, invalid};
use super::{argument, arguments, count, labels, mount, shorten, text, unsupported};
use crate::model::{ContainerSpec, DnsConfig, Healthcheck, PayloadReference, Privileges, RegistryAuth, parse_ipv4};

/// Longest wait between the stop signal and SIGKILL: a day, in nanoseconds.
const MAX_STOP_GRACE_NS: u64 = 24 * 3600 * 1_000_000_000;
/// Bytes of credentials for a registry.
const MAX_REGISTRY_AUTH: usize = 64 << 10;
/// Groups beside the user's own.
const MAX_GROUPS: usize = 32;

/// Kernel parameters that belong to a container's namespaces; all others are the host's.
const SYSCTL_PREFIXES: [&str; 4] = ["net.", "kernel.shm", "kernel.msg", "fs.mqueue."];

/// Names of the signals that a task may be asked to stop with, without `SIG`.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// Judges what a container that belongs to no service is to be.
///
/// # Errors
/// What may not be in a spec, by the name of its field.
pub fn check_container(container: &ContainerSpec) -> Result<(), ControlError> {
    image(&container.image)?;
    labels("TaskTemplate.ContainerSpec.Labels", &container.labels)?;
    arguments("TaskTemplate.ContainerSpec.Command", &container.command)?;
    arguments("TaskTemplate.ContainerSpec.Args", &container.args)?;
    hostname(&container.hostname)?;
    environment(&container.env)?;
    if !container.dir.is_empty() && !container.dir.starts_with('/') {
        let text = format!("TaskTemplate.ContainerSpec.Dir: {:?} is not an absolute path", shorten(&container.dir));
        return Err(invalid(text));
    }
    argument("TaskTemplate.ContainerSpec.Dir", &container.dir)?;
    text("TaskTemplate.ContainerSpec.User", &container.user, 255)?;
    if container.groups.len() > MAX_GROUPS {
        return Err(invalid(format!("TaskTemplate.ContainerSpec.Groups: at most {MAX_GROUPS}")));
    }
    container.groups.iter().try_for_each(|group| text("TaskTemplate.ContainerSpec.Groups", group, 255))?;
    container.privileges.as_ref().map_or(Ok(()), privileges)?;
    count("TaskTemplate.ContainerSpec.Mounts", container.mounts.len())?;
    mount::mounts(&container.mounts)?;
    container.healthcheck.as_ref().map_or(Ok(()), healthcheck)?;
    payloads("secret", &container.secrets, "/run/secrets/")?;
    payloads("config", &container.configs, "/")?;
    stop(container)?;
    container.registry_auth.as_ref().map_or(Ok(()), registry_auth)?;
    hosts(&container.hosts)?;
    container.dns.as_ref().map_or(Ok(()), dns)?;
    kernel(container)?;
    no_effect_yet(container)
}

/// A service's: as above, and without templates.
pub(super) fn container_spec(container: &ContainerSpec) -> Result<(), ControlError> {
    no_template("TaskTemplate.ContainerSpec.Hostname", &container.hostname)?;
    let mut variables = container.env.iter();
    variables.try_for_each(|variable| no_template("TaskTemplate.ContainerSpec.Env", variable))?;
    mount::no_templates(&container.mounts)?;
    check_container(container)
}

pub(in super::super) fn registry_auth(auth: &RegistryAuth) -> Result<(), ControlError> {
    text("X-Registry-Auth", &auth.header, MAX_REGISTRY_AUTH)
}

fn no_effect_yet(container: &ContainerSpec) -> Result<(), ControlError> {
    if !["", "default"].contains(&container.isolation.as_str()) {
        let text = format!("TaskTemplate.ContainerSpec.Isolation: {:?} is for Windows", shorten(&container.isolation));
        return Err(invalid(text));
    }
    Ok(())
}

/// An image reference: `[host[:port]/]path[:tag][@algorithm:hex]`.
fn image(reference: &str) -> Result<(), ControlError> {
    if reference.is_empty() {
        return Err(invalid("ContainerSpec: image reference must be provided"));
    }
    if is_reference(reference) {
        return Ok(());
    }
    Err(invalid(format!("ContainerSpec: {:?} is not a valid repository/tag", shorten(reference))))
}

fn is_reference(reference: &str) -> bool {
    if reference.len() > 1024 {
        return false;
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    let digest_ok = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, hex)| {
            algorithm.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '.' | '-' | '_'))
                && !algorithm.is_empty()
                && hex.len() >= 32
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    });
    // A colon after the last slash begins a tag; one before it is a registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let tag_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let tag_ok = tag
        .is_none_or(|tag| (1..=128).contains(&tag.len()) && tag.chars().all(tag_char) && !tag.starts_with(['.', '-']));
    let parts: Vec<&str> = name.split('/').collect();
    let host = parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost");
    let path_ok = |part: &&str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-');
        part.chars().all(inside) && edge(part.chars().next()) && edge(part.chars().next_back())
    };
    let host_ok = |part: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
        !part.is_empty() && part.chars().all(inside)
    };
    digest_ok && tag_ok && (!host || host_ok(parts[0])) && parts[usize::from(host)..].iter().all(path_ok)
}

/// Templates are expanded on the host, later; until then one is refused instead of being taken literally.
pub(super) fn no_template(field: &str, value: &str) -> Result<(), ControlError> {
    unsupported(&format!("{field} with a template ({{{{)"), value.contains("{{"))
}

fn hostname(hostname: &str) -> Result<(), ControlError> {
    let inside = hostname.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if hostname.len() > 63 || !inside || hostname.starts_with(['-', '.']) {
        let text = format!("TaskTemplate.ContainerSpec.Hostname: {:?} is not a hostname", shorten(hostname));
        return Err(invalid(text));
    }
    Ok(())
}

fn environment(env: &[String]) -> Result<(), ControlError> {
    arguments("TaskTemplate.ContainerSpec.Env", env)?;
    for variable in env {
        if variable.is_empty() || variable.starts_with('=') {
            return Err(invalid(format!("invalid environment variable: {}", shorten(variable))));
        }
    }
    Ok(())
}

/// Bytes of a custom seccomp profile; Docker's own has 20 000.
const MAX_SECCOMP_PROFILE: usize = 64 << 10;

/// Whether a host can do it (AppArmor, SELinux) is for the host to say: its task is rejected with the reason.
fn privileges(privileges: &Privileges) -> Result<(), ControlError> {
    let wrong = |text: &str| Err(invalid(format!("TaskTemplate.ContainerSpec.Privileges.{text}")));
    let custom = privileges.seccomp_mode == "custom";
    if !["", "default", "unconfined", "custom"].contains(&privileges.seccomp_mode.as_str()) {
        return wrong(&format!("Seccomp.Mode: unknown mode {:?}", shorten(&privileges.seccomp_mode)));
    }
    if custom == privileges.seccomp_profile.is_empty() {
        return wrong("Seccomp: a profile goes with mode \"custom\", and with no other");
    }
    if privileges.seccomp_profile.len() > MAX_SECCOMP_PROFILE {
        return wrong(&format!("Seccomp.Profile: longer than {MAX_SECCOMP_PROFILE} bytes"));
    }
    if !["", "default", "disabled"].contains(&privileges.apparmor_mode.as_str()) {
        return wrong(&format!("AppArmor.Mode: unknown mode {:?}", shorten(&privileges.apparmor_mode)));
    }
    if privileges.selinux_disabled && !privileges.selinux_label.is_empty() {
        return wrong("SELinuxContext: disabled, and with a label");
    }
    let in_label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ':' | ',');
    let part_ok = |part: &String| part.len() <= 255 && part.chars().all(in_label);
    if ![0, 4].contains(&privileges.selinux_label.len()) || !privileges.selinux_label.iter().all(part_ok) {
        return wrong("SELinuxContext: not a user, role, type and level");
    }
    Ok(())
}

/// Docker's bounds and words. Zero means the default everywhere.
fn healthcheck(check: &Healthcheck) -> Result<(), ControlError> {
    const MILLISECOND: u64 = 1_000_000;
    for (name, nanos) in [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
    ] {
        if nanos != 0 && nanos < MILLISECOND {
            return Err(invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    arguments("TaskTemplate.ContainerSpec.Healthcheck.Test", &check.test)?;
    match check.test.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["NONE"] | ["CMD", _, ..] | ["CMD-SHELL", _] => Ok(()),
        ["CMD" | "CMD-SHELL"] => Err(invalid("Healthcheck.Test has no command")),
        ["NONE" | "CMD-SHELL", ..] => Err(invalid("Healthcheck.Test has too many arguments")),
        [kind, ..] => Err(invalid(format!("Unknown healthcheck type '{}' (expected 'CMD')", shorten(kind)))),
    }
}

/// References to secrets or configs: complete, with targets that do not meet.
fn payloads(kind: &str, references: &[PayloadReference], below: &str) -> Result<(), ControlError> {
    count(&format!("TaskTemplate.ContainerSpec: {kind}s"), references.len())?;
    let mut targets: std::collections::BTreeMap<String, &str> = std::collections::BTreeMap::new();
    for reference in references {
        if reference.id.is_empty() || reference.name.is_empty() {
            return Err(invalid(format!("malformed {kind} reference")));
        }
        text("TaskTemplate.ContainerSpec", &reference.id, 64)?;
        text("TaskTemplate.ContainerSpec", &reference.name, 255)?;
        unsupported("TaskTemplate.ContainerSpec.Configs.Runtime", reference.runtime_target)?;
        let target = PayloadReference::path(below, &reference.file);
        let odd = reference.file.len() > 4000 || reference.file.contains('\0');
        let Some(target) = target.filter(|_| !odd) else {
            let file = shorten(&reference.file);
            return Err(invalid(format!("malformed file {kind} reference, invalid target file \"{file}\" provided")));
        };
        if let Some(other) = targets.insert(target, &reference.name) {
            let (name, file) = (shorten(&reference.name), shorten(&reference.file));
            return Err(invalid(format!(
                "{kind} references '{}' and '{name}' have a conflicting target: '{file}'",
                shorten(other)
            )));
        }
        for (what, id) in [("uid", &reference.uid), ("gid", &reference.gid)] {
            if !id.is_empty() && id.parse::<u32>().is_err() {
                return Err(invalid(format!("{kind} {what} {:?} is not a number", shorten(id))));
            }
        }
        if reference.mode > 0o7777 {
            return Err(invalid(format!("{kind} mode {:o} is more than 7777", reference.mode)));
        }
    }
    Ok(())
}

fn stop(container: &ContainerSpec) -> Result<(), ControlError> {
    if container.stop_grace_ns.is_some_and(|grace| grace > MAX_STOP_GRACE_NS) {
        return Err(invalid("TaskTemplate.ContainerSpec.StopGracePeriod: cannot be negative, or longer than a day"));
    }
    let signal = container.stop_signal.as_str();
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // Real-time signals are RTMIN, RTMIN+n, RTMAX-n, RTMAX.
    let real_time = name.strip_prefix("RTMIN").map(|rest| rest.strip_prefix('+').unwrap_or(rest));
    let real_time = real_time.or_else(|| name.strip_prefix("RTMAX").map(|rest| rest.strip_prefix('-').unwrap_or(rest)));
    let known = SIGNALS.contains(&name)
        || signal.parse::<u32>().is_ok_and(|number| (1..=64).contains(&number))
        || real_time.is_some_and(|n| n.is_empty() || n.parse::<u32>().is_ok_and(|n| n <= 30));
    if !signal.is_empty() && !known {
        return Err(invalid(format!("invalid stop signal: {}", shorten(signal))));
    }
    Ok(())
}

fn hosts(hosts: &[String]) -> Result<(), ControlError> {
    count("TaskTemplate.ContainerSpec.Hosts", hosts.len())?;
    for line in hosts {
        text("TaskTemplate.ContainerSpec.Hosts", line, 1024)?;
        let mut words = line.split_whitespace();
        let address = words.next().is_some_and(|word| word.parse::<core::net::IpAddr>().is_ok());
        if !address || words.next().is_none() || line.contains('\n') {
            let text = format!("TaskTemplate.ContainerSpec.Hosts: {:?} is not \"IP name\"", shorten(line));
            return Err(invalid(text));
        }
    }
    Ok(())
}

fn dns(dns: &DnsConfig) -> Result<(), ControlError> {
    let field = "TaskTemplate.ContainerSpec.DNSConfig";
    count(field, dns.nameservers.len() + dns.search.len() + dns.options.len())?;
    if let Some(wrong) = dns.nameservers.iter().find(|server| parse_ipv4(server).is_none()) {
        return Err(invalid(format!("{field}.Nameservers: {:?} is not an IPv4 address", shorten(wrong))));
    }
    for word in dns.search.iter().chain(&dns.options) {
        if word.is_empty() || word.len() > 255 || word.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(invalid(format!("{field}: {:?} is not one word", shorten(word))));
        }
    }
    Ok(())
}

fn kernel(container: &ContainerSpec) -> Result<(), ControlError> {
    labels("TaskTemplate.ContainerSpec.Sysctls", &container.sysctls)?;
    for (name, value) in &container.sysctls {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
        let own = name == "kernel.sem" || SYSCTL_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if !own || !name.chars().all(word) || name.contains("..") || value.contains(['\n', '\0']) {
            let text = format!("sysctl '{}' is not in a separate kernel namespace", shorten(name));
            return Err(invalid(text));
        }
    }
    for (field, list) in [("CapabilityAdd", &container.cap_add), ("CapabilityDrop", &container.cap_drop)] {
        count(field, list.len())?;
        for capability in list {
            let word = capability.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
            if capability.is_empty() || capability.len() > 64 || !word {
                let text = format!("TaskTemplate.ContainerSpec.{field}: invalid capability {:?}", shorten(capability));
                return Err(invalid(text));
            }
        }
    }
    count("TaskTemplate.ContainerSpec.Ulimits", container.ulimits.len())?;
    for limit in &container.ulimits {
        let order = limit.hard == -1 || (limit.soft != -1 && limit.soft <= limit.hard);
        let named = !limit.name.is_empty() && limit.name.bytes().all(|b| b.is_ascii_lowercase());
        if limit.soft < -1 || limit.hard < -1 || !order || !named || limit.name.len() > 16 {
            let name = shorten(&limit.name);
            return Err(invalid(format!("TaskTemplate.ContainerSpec.Ulimits: {name:?} is unknown, or soft > hard")));
        }
    }
    if !(-1000..=1000).contains(&container.oom_score_adj) {
        return Err(invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            container.oom_score_adj
        )));
    }
    Ok(())
}
