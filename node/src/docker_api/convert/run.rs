//! `POST /containers/create`: a plain container, in the words that tasks have.
//!
//! Docker's command line sends every field, most of them with a zero. What says nothing is fine; what says something
//! that Shoal does not do is refused by its name.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use deploy::model::{
    ContainerSpec, DnsConfig, HOST_NETWORK, LogDriver, Mount, MountKind, NONE_NETWORK, NetworkAttachmentConfig,
    PortConfig, PortProtocol, Privileges, PublishMode, ResourceRequirements, Resources, TaskSpec,
};
use serde_json::{Map, Value};

use super::container::{healthcheck_from_wire, mount_from_wire, oom_score_from_wire, ulimit_from_wire};
use super::{refuse_set, unsigned};
use crate::agent::plain::{Restart, Wish, is_name, is_reserved};
use crate::docker_api::error::ApiError;
use crate::docker_api::wire;

/// Docker's size of `/dev/shm`, which is ours.
const SHM_SIZE: i64 = 64 << 20;
/// Fields of `HostConfig` that are understood, or that mean nothing to the engine (the last ones).
const HOST_FIELDS: [&str; 33] = [
    "Binds",
    "NetworkMode",
    "PortBindings",
    "RestartPolicy",
    "AutoRemove",
    "LogConfig",
    "CapAdd",
    "CapDrop",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "GroupAdd",
    "OomScoreAdj",
    "ReadonlyRootfs",
    "SecurityOpt",
    "Tmpfs",
    "Ulimits",
    "Mounts",
    "Init",
    "Sysctls",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "MemorySwappiness",
    "NanoCpus",
    "PidsLimit",
    "ShmSize",
    "CgroupnsMode",
    "IpcMode",
    "Isolation",
    "ConsoleSize",
    "ContainerIDFile",
];
/// Fields beside it; the last ones are what the client does, and what it may know of an image.
const FIELDS: [&str; 24] = [
    "Image",
    "Cmd",
    "Entrypoint",
    "Env",
    "Hostname",
    "User",
    "WorkingDir",
    "Labels",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "StopSignal",
    "StopTimeout",
    "Healthcheck",
    "Volumes",
    "HostConfig",
    "NetworkingConfig",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "ExposedPorts",
    "ArgsEscaped",
    "OnBuild",
    "Shell",
];

/// What a client asks for.
///
/// # Errors
/// Names what Shoal does not do, or what makes no sense.
pub(crate) fn plain_from_wire(body: Map<String, Value>, name: Option<&str>) -> Result<Wish, ApiError> {
    let host = match body.get("HostConfig") {
        Some(Value::Object(host)) => host.clone(),
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err(ApiError::invalid("HostConfig must be an object")),
    };
    for (key, value) in body.iter().filter(|(key, _)| !FIELDS.contains(&key.as_str())) {
        refuse_set(key, &Some(value.clone()))?;
    }
    for (key, value) in host.iter().filter(|(key, _)| !HOST_FIELDS.contains(&key.as_str())) {
        refuse_set(&format!("HostConfig.{key}"), &Some(value.clone()))?;
    }
    // An empty list is not nothing here: it is how clients say that nothing of the host shall be hidden.
    for key in ["MaskedPaths", "ReadonlyPaths"] {
        if host.get(key).is_some_and(|value| !value.is_null()) {
            return Err(ApiError::not_supported(format!("HostConfig.{key} (systempaths) is not supported yet")));
        }
    }
    let host_config = Value::Object(host.clone()).to_string();
    let networking = body.get("NetworkingConfig").cloned();
    let c: wire::PlainContainer = parse(Value::Object(body))?;
    let h: wire::HostConfig = parse(Value::Object(host))?;
    let name = name_from_wire(name.unwrap_or_default())?;
    let (restart, max_restarts) = restart(h.restart_policy.clone().unwrap_or_default())?;
    let auto_remove = h.auto_remove.unwrap_or_default();
    if auto_remove && restart != Restart::No {
        return Err(ApiError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    let (network, addresses) = network(h.network_mode.as_deref().unwrap_or_default(), networking.as_ref())?;
    let ports = ports(h.port_bindings.clone().unwrap_or_default())?;
    if let Some(network) = network.as_ref().filter(|network| is_own(&network.target))
        && !ports.is_empty()
    {
        return Err(ApiError::invalid(format!("ports cannot be published with network {:?}", network.target)));
    }
    namespaces(&h)?;
    let no_entrypoint = c.entrypoint.as_ref().is_some_and(|entrypoint| *entrypoint == [""]);
    let resources = resources(&h)?;
    let spec = TaskSpec {
        container: container(c.clone(), &h, no_entrypoint)?,
        resources,
        networks: network.into_iter().collect(),
        log_driver: log_driver(h.log_config),
        ..TaskSpec::default()
    };
    deploy::control::check_container(&spec.container)
        .and_then(|()| deploy::control::check_resources(&spec.resources))
        .map_err(|error| {
            let text = error.to_string().replace("TaskTemplate.ContainerSpec.", "");
            ApiError::invalid(text.replace("TaskTemplate.", ""))
        })?;
    Ok(Wish {
        name: name.map(str::to_owned),
        spec,
        ports,
        restart,
        max_restarts,
        auto_remove,
        stdin_once: c.stdin_once.unwrap_or_default(),
        no_entrypoint,
        host_config,
        addresses,
    })
}

/// The name that a container is to have, with or without Docker's slash in front; none if it is empty.
pub(crate) fn name_from_wire(name: &str) -> Result<Option<&str>, ApiError> {
    match name.trim_start_matches('/') {
        "" => Ok(None),
        name if is_name(name) => Ok(Some(name)),
        name => Err(ApiError::invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        ))),
    }
}

/// `POST /containers/{id}/update`: the restart policy, and how often in a row; all else is refused by its name.
///
/// # Errors
/// Names what Shoal does not do, or what makes no sense.
pub(crate) fn update_from_wire(body: Map<String, Value>) -> Result<(Restart, u32), ApiError> {
    for (key, value) in body.iter().filter(|(key, _)| key.as_str() != "RestartPolicy") {
        refuse_set(key, &Some(value.clone()))?;
    }
    let policy = body.get("RestartPolicy").filter(|policy| !policy.is_null());
    let policy: Option<wire::ContainerRestartPolicy> = policy.cloned().map(parse).transpose()?;
    // Docker's clients send an empty name where no policy is named.
    match policy.filter(|policy| policy.name.as_deref().is_some_and(|name| !name.is_empty())) {
        Some(policy) => restart(policy),
        None => Err(ApiError::invalid("RestartPolicy must be given: it is all that can be updated")),
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, ApiError> {
    serde_json::from_value(value).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
}

fn container(c: wire::PlainContainer, h: &wire::HostConfig, no_entrypoint: bool) -> Result<ContainerSpec, ApiError> {
    let labels = c.labels.unwrap_or_default();
    if let Some(reserved) = labels.keys().find(|label| is_reserved(label)) {
        return Err(ApiError::invalid(format!("label {reserved:?} is one that only Shoal gives")));
    }
    let cmd = c.cmd.unwrap_or_default();
    let (command, args) = match no_entrypoint {
        true => (cmd, Vec::new()),
        false => (c.entrypoint.unwrap_or_default(), cmd),
    };
    let dns = DnsConfig {
        nameservers: h.dns.clone().unwrap_or_default(),
        search: h.dns_search.clone().unwrap_or_default(),
        options: h.dns_options.clone().unwrap_or_default(),
    };
    let grace = c.stop_timeout.map(|seconds| unsigned("StopTimeout", seconds)).transpose()?;
    Ok(ContainerSpec {
        image: c.image.unwrap_or_default(),
        labels,
        command,
        args,
        hostname: c.hostname.unwrap_or_default(),
        env: c.env.unwrap_or_default(),
        dir: c.working_dir.unwrap_or_default(),
        user: c.user.unwrap_or_default(),
        groups: h.group_add.clone().unwrap_or_default(),
        privileges: security(h.security_opt.as_deref().unwrap_or_default())?,
        tty: c.tty.unwrap_or_default(),
        open_stdin: c.open_stdin.unwrap_or_default(),
        read_only: h.readonly_rootfs.unwrap_or_default(),
        init: h.init,
        mounts: mounts(h, c.volumes.unwrap_or_default())?,
        stop_signal: c.stop_signal.unwrap_or_default(),
        stop_grace_ns: grace.map(|seconds| seconds.saturating_mul(1_000_000_000)),
        healthcheck: c.healthcheck.map(healthcheck_from_wire).transpose()?,
        hosts: h
            .extra_hosts
            .clone()
            .unwrap_or_default()
            .iter()
            .map(|host| extra_host(host))
            .collect::<Result<_, _>>()?,
        dns: (dns != DnsConfig::default()).then_some(dns),
        sysctls: h.sysctls.clone().unwrap_or_default(),
        cap_add: h.cap_add.clone().unwrap_or_default(),
        cap_drop: h.cap_drop.clone().unwrap_or_default(),
        ulimits: h.ulimits.clone().unwrap_or_default().into_iter().map(ulimit_from_wire).collect(),
        oom_score_adj: oom_score_from_wire("OomScoreAdj", h.oom_score_adj.unwrap_or_default())?,
        ..ContainerSpec::default()
    })
}

/// Refuses to share what containers have of their own.
fn namespaces(h: &wire::HostConfig) -> Result<(), ApiError> {
    for (field, value, fine) in [
        ("CgroupnsMode", &h.cgroupns_mode, &["", "private"][..]),
        // Nobody can join it, so this is as good.
        ("IpcMode", &h.ipc_mode, &["", "private", "shareable"]),
        ("Isolation", &h.isolation, &["", "default"]),
    ] {
        let value = value.as_deref().unwrap_or_default();
        if !fine.contains(&value) {
            return Err(ApiError::not_supported(format!("HostConfig.{field} {value:?} is not supported yet")));
        }
    }
    Ok(())
}

fn restart(w: wire::ContainerRestartPolicy) -> Result<(Restart, u32), ApiError> {
    let count = w.maximum_retry_count.unwrap_or_default();
    let name = w.name.unwrap_or_default();
    let policy = match name.as_str() {
        "" | "no" => Restart::No,
        "on-failure" => Restart::OnFailure,
        "always" => Restart::Always,
        "unless-stopped" => Restart::UnlessStopped,
        _ => return Err(ApiError::invalid(format!("invalid restart policy: unknown policy '{name}'"))),
    };
    if count != 0 && policy != Restart::OnFailure {
        return Err(ApiError::invalid(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    let count = u32::try_from(count)
        .map_err(|_| ApiError::invalid("invalid restart policy: maximum retry count cannot be negative"))?;
    Ok((policy, count))
}

/// The network that it is on, if that is not the way out that every container has, and the address that it is to have there.
fn network(
    mode: &str,
    networking: Option<&Value>,
) -> Result<(Option<NetworkAttachmentConfig>, BTreeMap<String, Ipv4Addr>), ApiError> {
    let (mut aliases, mut addresses) = (Vec::new(), BTreeMap::new());
    let endpoints = networking.and_then(|networking| networking.get("EndpointsConfig")).and_then(Value::as_object);
    for (name, endpoint) in endpoints.into_iter().flatten() {
        let same =
            name == mode || ["", "default", "bridge"].contains(&mode) && ["default", "bridge"].contains(&name.as_str());
        if !same {
            return Err(ApiError::not_supported(format!(
                "NetworkingConfig.EndpointsConfig {name:?} beside network {mode:?} is not supported yet: a container has one network"
            )));
        }
        for (key, value) in endpoint.as_object().into_iter().flatten() {
            if key == "Aliases" && !is_own(mode) {
                aliases = names(parse::<Option<Vec<String>>>(value.clone())?.unwrap_or_default())?;
                continue;
            }
            if key == "IPAMConfig" && !is_own(mode) {
                addresses.extend(own_address(name, value)?.map(|address| (name.clone(), address)));
                continue;
            }
            refuse_set(&format!("NetworkingConfig.EndpointsConfig.{name}.{key}"), &Some(value.clone()))?;
        }
    }
    let wish = match mode {
        "" | "default" | "bridge" => None,
        HOST_NETWORK | NONE_NETWORK => {
            Some(NetworkAttachmentConfig { target: mode.to_owned(), ..NetworkAttachmentConfig::default() })
        }
        other if other.contains(':') => {
            return Err(ApiError::not_supported(format!("HostConfig.NetworkMode {other:?} is not supported yet")));
        }
        // Whether there is such a network, and it is for containers, is for this host or the managers to say.
        other => {
            Some(NetworkAttachmentConfig { target: other.to_owned(), aliases, ..NetworkAttachmentConfig::default() })
        }
    };
    Ok((wish, addresses))
}

/// Aliases of one container.
const MAX_ALIASES: usize = 256;

/// Aliases, which are asked for by name and so are no longer than names may be.
fn names(aliases: Vec<String>) -> Result<Vec<String>, ApiError> {
    let fits = |alias: &String| (1..=253).contains(&alias.len()) && alias.bytes().all(|byte| byte.is_ascii_graphic());
    match aliases.iter().find(|alias| !fits(alias)) {
        _ if aliases.len() > MAX_ALIASES => Err(ApiError::invalid(format!("more than {MAX_ALIASES} aliases"))),
        Some(wrong) => {
            Err(ApiError::invalid(format!("invalid alias {:?}", wrong.chars().take(100).collect::<String>())))
        }
        None => Ok(aliases),
    }
}

/// `{"IPv4Address": "172.18.0.7"}`
fn own_address(network: &str, config: &Value) -> Result<Option<Ipv4Addr>, ApiError> {
    let mut address = None;
    for (key, value) in config.as_object().into_iter().flatten() {
        match (key.as_str(), value.as_str()) {
            ("IPv4Address", None | Some("")) if !value.is_number() => {}
            ("IPv4Address", Some(text)) => {
                let parsed = text.parse().map_err(|_| ApiError::invalid(format!("invalid IPv4 address: {text:?}")))?;
                address = Some(parsed);
            }
            _ => {
                let field = format!("NetworkingConfig.EndpointsConfig.{network}.IPAMConfig.{key}");
                refuse_set(&field, &Some(value.clone()))?;
            }
        }
    }
    Ok(address)
}

/// Whether each host has this network of its own.
fn is_own(mode: &str) -> bool {
    ["", "default", "bridge", HOST_NETWORK, NONE_NETWORK].contains(&mode)
}

fn ports(bindings: BTreeMap<String, Option<Vec<wire::PortBinding>>>) -> Result<Vec<PortConfig>, ApiError> {
    let mut ports: Vec<PortConfig> = Vec::new();
    for (target, bindings) in bindings {
        let (number, protocol) = target.split_once('/').unwrap_or((&target, "tcp"));
        let invalid = || ApiError::invalid(format!("invalid port specification: {target:?}"));
        let number: u16 = number.parse().ok().filter(|number| *number > 0).ok_or_else(invalid)?;
        let protocol = match protocol {
            "tcp" => PortProtocol::Tcp,
            "udp" => PortProtocol::Udp,
            "sctp" => PortProtocol::Sctp,
            _ => return Err(invalid()),
        };
        // Docker's rule: a port that is bound to nothing in particular is bound to whatever is free.
        let bindings = bindings.unwrap_or_default();
        let bindings = if bindings.is_empty() { vec![wire::PortBinding::default()] } else { bindings };
        for binding in bindings {
            let address = binding.host_ip.unwrap_or_default();
            if !["", "0.0.0.0"].contains(&address.as_str()) {
                return Err(ApiError::not_supported(format!(
                    "HostConfig.PortBindings.HostIp {address:?} is not supported yet: ports are published at all \
                     addresses of the host"
                )));
            }
            let text = binding.host_port.unwrap_or_default();
            let published = match text.as_str() {
                "" | "0" => 0,
                text if text.contains('-') => {
                    return Err(ApiError::not_supported(format!(
                        "HostConfig.PortBindings.HostPort {text:?} is not supported yet: a range for one port"
                    )));
                }
                text => text
                    .parse::<u16>()
                    .map_err(|_| ApiError::invalid(format!("invalid port specification: {text:?}")))?,
            };
            let mut port = PortConfig { target: number.into(), published: published.into(), ..PortConfig::default() };
            port.set_protocol(protocol);
            port.set_mode(PublishMode::Host);
            if port.published != 0 && ports.iter().any(|p| (p.protocol, p.published) == (port.protocol, port.published))
            {
                return Err(ApiError::invalid(format!("port {text} is published twice")));
            }
            ports.push(port);
        }
    }
    if ports.len() > MAX_PORTS {
        return Err(ApiError::invalid(format!("at most {MAX_PORTS} ports can be published")));
    }
    Ok(ports)
}

/// Published ports of one container.
const MAX_PORTS: usize = 1000;

/// `name:ip` or `name=ip`, as `ip name`.
fn extra_host(text: &str) -> Result<String, ApiError> {
    let split = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = split.ok_or_else(|| ApiError::invalid(format!("bad format for add-host: {text:?}")))?;
    if address == "host-gateway" {
        return Err(ApiError::not_supported("HostConfig.ExtraHosts: host-gateway is not supported yet"));
    }
    Ok(format!("{address} {name}"))
}

fn log_driver(w: Option<wire::ContainerLogConfig>) -> Option<LogDriver> {
    let w = w.unwrap_or_default();
    let driver = LogDriver { name: w.kind.unwrap_or_default(), options: w.config.unwrap_or_default() };
    (driver != LogDriver::default()).then_some(driver)
}

fn resources(h: &wire::HostConfig) -> Result<ResourceRequirements, ApiError> {
    let memory = h.memory.unwrap_or_default();
    // Swap gives nothing beyond the memory; who asks for that gets it.
    if ![0, memory].contains(&h.memory_swap.unwrap_or_default()) {
        return Err(ApiError::not_supported("HostConfig.MemorySwap is not supported yet, but for the same as Memory"));
    }
    if ![-1, 0].contains(&h.memory_swappiness.unwrap_or(-1)) {
        return Err(ApiError::not_supported("HostConfig.MemorySwappiness is not supported yet"));
    }
    if ![0, SHM_SIZE].contains(&h.shm_size.unwrap_or_default()) {
        return Err(ApiError::not_supported("HostConfig.ShmSize is not supported yet, but for 64 MiB"));
    }
    let pids = h.pids_limit.unwrap_or_default();
    let limits = Resources {
        nano_cpus: unsigned("HostConfig.NanoCpus", h.nano_cpus.unwrap_or_default())?,
        memory_bytes: unsigned("HostConfig.Memory", memory)?,
        // Docker's word for none.
        pids: if pids == -1 { 0 } else { unsigned("HostConfig.PidsLimit", pids)? },
    };
    let reserved = unsigned("HostConfig.MemoryReservation", h.memory_reservation.unwrap_or_default())?;
    let reservations = Resources { memory_bytes: reserved, ..Resources::default() };
    Ok(ResourceRequirements { limits, reservations })
}

fn security(options: &[String]) -> Result<Option<Privileges>, ApiError> {
    if options.is_empty() {
        return Ok(None);
    }
    let mut privileges = Privileges::default();
    let mut label = [const { String::new() }; 4];
    for option in options {
        // The older of Docker's two spellings has a colon.
        let (key, value) = option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => privileges.no_new_privileges = true,
            ("no-new-privileges", "false") => {}
            ("seccomp", "unconfined") => privileges.seccomp_mode = "unconfined".into(),
            ("seccomp", profile) if profile.trim_start().starts_with('{') => {
                runtime::check_seccomp_profile(profile.as_bytes())
                    .map_err(|error| ApiError::invalid(format!("HostConfig.SecurityOpt seccomp: {error}")))?;
                privileges.seccomp_mode = "custom".into();
                privileges.seccomp_profile = profile.as_bytes().to_vec();
            }
            ("apparmor", "unconfined") => privileges.apparmor_mode = "disabled".into(),
            ("label", "disable") => privileges.selinux_disabled = true,
            ("label", part) => {
                let part = part.split_once(':').and_then(|(name, value)| {
                    let place = ["user", "role", "type", "level"].iter().position(|known| *known == name)?;
                    Some((place, value))
                });
                let (place, value) = part.ok_or_else(|| not_an_option(option))?;
                value.clone_into(&mut label[place]);
            }
            _ => return Err(not_an_option(option)),
        }
    }
    if label.iter().any(|part| !part.is_empty()) {
        privileges.selinux_label = label.to_vec();
    }
    Ok(Some(privileges))
}

fn not_an_option(option: &str) -> ApiError {
    let shown: String = option.chars().take(100).collect();
    ApiError::not_supported(format!("HostConfig.SecurityOpt {shown:?} is not supported yet"))
}

fn mounts(h: &wire::HostConfig, volumes: BTreeMap<String, Value>) -> Result<Vec<Mount>, ApiError> {
    let mut mounts = Vec::new();
    for bind in h.binds.iter().flatten() {
        mounts.push(bind_mount(bind)?);
    }
    for mount in h.mounts.clone().unwrap_or_default() {
        mounts.push(mount_from_wire(mount)?);
    }
    for (target, options) in h.tmpfs.clone().unwrap_or_default() {
        mounts.push(tmpfs(target, &options)?);
    }
    for target in volumes.into_keys() {
        // One that is bound there is meant by both.
        if !mounts.iter().any(|mount: &Mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/')) {
            mounts.push(of_kind(MountKind::Volume, String::new(), target));
        }
    }
    Ok(mounts)
}

fn of_kind(kind: MountKind, source: String, target: String) -> Mount {
    Mount { kind: kind.into(), source, target, ..Mount::default() }
}

/// `source:target[:options]`, or a target alone.
fn bind_mount(text: &str) -> Result<Mount, ApiError> {
    let invalid = || ApiError::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(invalid()),
    };
    if target.is_empty() || (parts.len() > 1 && source.is_empty()) {
        return Err(invalid());
    }
    let is_path = source.starts_with('/');
    let kind = if is_path { MountKind::Bind } else { MountKind::Volume };
    let mut mount = Mount { create_mountpoint: is_path, ..of_kind(kind, source.to_owned(), target.to_owned()) };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" | "consistent" | "cached" | "delegated" => {}
            "ro" => mount.read_only = true,
            "nocopy" if !is_path => mount.no_copy = true,
            "rprivate" | "private" | "rslave" | "slave" | "rshared" | "shared" if is_path => {
                option.clone_into(&mut mount.propagation);
            }
            "z" | "Z" => {
                return Err(ApiError::not_supported(format!(
                    "HostConfig.Binds {text:?}: relabelling ({option}) is not supported yet"
                )));
            }
            _ => return Err(invalid()),
        }
    }
    Ok(mount)
}

/// `size=64m,mode=1777`
fn tmpfs(target: String, options: &str) -> Result<Mount, ApiError> {
    let mut mount = of_kind(MountKind::Tmpfs, String::new(), target);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let invalid = || ApiError::invalid(format!("invalid tmpfs option {option:?}"));
        match option.split_once('=') {
            Some(("size", size)) => mount.tmpfs_size = bytes(size).ok_or_else(invalid)?,
            Some(("mode", mode)) => mount.tmpfs_mode = u32::from_str_radix(mode, 8).map_err(|_| invalid())?,
            None if option == "ro" => mount.read_only = true,
            // As they are anyway.
            None if ["rw", "noexec", "nosuid", "nodev"].contains(&option) => {}
            _ => {
                return Err(ApiError::not_supported(format!(
                    "HostConfig.Tmpfs option {option:?} is not supported yet"
                )));
            }
        }
    }
    Ok(mount)
}

/// `65536`, `64k`, `64m`, `1g`.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wish(body: Value) -> Result<Wish, ApiError> {
        let Value::Object(body) = body else { unreachable!("an object") };
        plain_from_wire(body, None)
    }

    /// What Docker's command line sends where it is told nothing.
    fn usual() -> Value {
        let text = r#"{
            "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": true,
            "AttachStderr": true, "Tty": false, "OpenStdin": false, "StdinOnce": false, "Env": null, "Cmd": ["true"],
            "Image": "web:1", "Volumes": {}, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": {},
            "HostConfig": {
                "Binds": null, "ContainerIDFile": "/tmp/cid", "LogConfig": {"Type": "", "Config": {}},
                "NetworkMode": "default", "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
                "AutoRemove": false, "VolumeDriver": "", "VolumesFrom": null, "ConsoleSize": [24, 80], "CapAdd": null,
                "CapDrop": null, "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": null,
                "GroupAdd": null, "IpcMode": "", "Cgroup": "", "Links": null, "OomScoreAdj": 0, "PidMode": "",
                "Privileged": false, "PublishAllPorts": false, "ReadonlyRootfs": false, "SecurityOpt": null,
                "UTSMode": "", "UsernsMode": "", "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0,
                "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": [], "CpuPeriod": 0,
                "CpusetCpus": "", "Devices": [], "DeviceCgroupRules": null, "DeviceRequests": null,
                "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1, "OomKillDisable": false,
                "PidsLimit": 0, "Ulimits": [], "MaskedPaths": null, "ReadonlyPaths": null
            },
            "NetworkingConfig": {"EndpointsConfig": {"default": {"IPAMConfig": null, "Aliases": null, "MacAddress": ""}}}
        }"#;
        serde_json::from_str(text).unwrap()
    }

    /// The usual request with something else in it.
    fn with(path: &[&str], value: Value) -> Result<Wish, ApiError> {
        let mut body = usual();
        let mut place = &mut body;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        wish(body)
    }

    fn host(key: &str, value: Value) -> Result<Wish, ApiError> {
        with(&["HostConfig", key], value)
    }

    #[test]
    fn what_says_nothing_is_fine() {
        let usual = wish(usual()).unwrap();
        assert_eq!((usual.restart, usual.auto_remove, usual.ports.len()), (Restart::No, false, 0));
        assert_eq!(usual.spec.container.args, ["true"]);
        assert_eq!(usual.spec.networks, []);
        assert_eq!(wish(json!({"Image": "web:1"})).unwrap().spec.container.image, "web:1");
    }

    #[track_caller]
    fn refused(got: Result<Wish, ApiError>, status: u16, text: &str) {
        let error = got.map(|_| ()).unwrap_err();
        assert!(error.status.as_u16() == status && error.message.contains(text), "{error:?}");
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        refused(host("Privileged", json!(true)), 501, "HostConfig.Privileged");
        refused(host("Devices", json!([{"PathOnHost": "/dev/kvm"}])), 501, "HostConfig.Devices");
        refused(host("PidMode", json!("host")), 501, "HostConfig.PidMode");
        refused(host("IpcMode", json!("host")), 501, "HostConfig.IpcMode");
        refused(host("NoSuchThing", json!(1)), 501, "HostConfig.NoSuchThing");
        refused(with(&["Domainname"], json!("x")), 501, "Domainname");
        refused(host("NetworkMode", json!("container:x")), 501, "container:x");
        refused(host("SecurityOpt", json!(["systempaths=unconfined"])), 501, "systempaths");
        refused(host("MaskedPaths", json!([])), 501, "HostConfig.MaskedPaths");
        refused(host("ReadonlyPaths", json!([])), 501, "HostConfig.ReadonlyPaths");
        refused(host("Memory", json!(1 << 20)), 400, "Must be at least 4MiB");
        let mut more = usual();
        more["HostConfig"]["Memory"] = json!(64 << 20);
        more["HostConfig"]["MemoryReservation"] = json!(65 << 20);
        refused(wish(more), 400, "more memory is reserved");
        refused(host("MemorySwap", json!(-1)), 501, "MemorySwap");
        refused(host("Binds", json!(["/a:/b:Z"])), 501, "relabelling");
        refused(host("PortBindings", json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}]})), 501, "HostIp");
        refused(host("PortBindings", json!({"80/tcp": [{"HostPort": "1-2"}]})), 501, "HostPort");
        refused(host("PortBindings", json!({"x/tcp": []})), 400, "invalid port specification");
        refused(with(&["Labels"], json!({"com.docker.swarm.task.id": "t"})), 400, "only Shoal gives");
        refused(with(&["Image"], json!("")), 400, "image reference must be provided");
        refused(host("RestartPolicy", json!({"Name": "sometimes"})), 400, "unknown policy");
        refused(host("RestartPolicy", json!({"Name": "always", "MaximumRetryCount": 1})), 400, "on-failure");
        let Value::Object(body) = usual() else { unreachable!("an object") };
        refused(plain_from_wire(body, Some("/a b")), 400, "Invalid container name");
        let mut both = usual();
        both["HostConfig"]["AutoRemove"] = json!(true);
        both["HostConfig"]["RestartPolicy"] = json!({"Name": "always"});
        refused(wish(both), 400, "AutoRemove");
    }

    #[test]
    fn only_the_restart_policy_is_updated() {
        // What docker's command line sends with `--restart` alone.
        let usual = json!({
            "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "", "BlkioWeight": 0, "BlkioWeightDevice": null,
            "BlkioDeviceReadBps": null, "CpuPeriod": 0, "CpuQuota": 0, "CpusetCpus": "", "Devices": null,
            "DeviceCgroupRules": null, "DeviceRequests": null, "MemoryReservation": 0, "MemorySwap": 0,
            "MemorySwappiness": null, "OomKillDisable": null, "PidsLimit": 0, "Ulimits": null, "CpuCount": 0,
            "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 4},
        });
        let with = |key: &str, value: Value| {
            let mut body = usual.as_object().unwrap().clone();
            body.insert(key.to_owned(), value);
            update_from_wire(body).map_err(|error| (error.status.as_u16(), error.message))
        };
        assert_eq!(with("Memory", json!(0)), Ok((Restart::OnFailure, 4)));
        assert_eq!(with("RestartPolicy", json!({"Name": "no"})), Ok((Restart::No, 0)));
        let (status, text) = with("Memory", json!(64 << 20)).unwrap_err();
        assert!(status == 501 && text.contains("Memory"), "{text}");
        for none in [json!(null), json!({}), json!({"Name": "", "MaximumRetryCount": 0})] {
            let (status, text) = with("RestartPolicy", none).unwrap_err();
            assert!(status == 400 && text.contains("RestartPolicy"), "{text}");
        }
        let (status, text) = with("RestartPolicy", json!({"Name": "sometimes"})).unwrap_err();
        assert!(status == 400 && text.contains("unknown policy"), "{text}");
    }

    #[test]
    fn what_is_done_becomes_a_spec() {
        let none = host("NetworkMode", json!("none"));
        refused(none, 501, "NetworkingConfig");
        let mut body = usual();
        body["NetworkingConfig"] = json!({"EndpointsConfig": {"host": {}}});
        body["HostConfig"]["NetworkMode"] = json!("host");
        assert_eq!(wish(body).unwrap().spec.networks[0].target, "host");
        let mut body = usual();
        body["NetworkingConfig"] = json!({"EndpointsConfig": {"back": {"Aliases": ["db"]}}});
        body["HostConfig"]["NetworkMode"] = json!("back");
        let network = &wish(body.clone()).unwrap().spec.networks[0];
        assert_eq!((network.target.as_str(), network.aliases.as_slice()), ("back", &["db".to_owned()][..]));
        let mut endpoint = |config: Value| {
            body["NetworkingConfig"]["EndpointsConfig"]["back"] = config;
            wish(body.clone())
        };
        let own = endpoint(json!({"IPAMConfig": {"IPv4Address": "172.20.0.7", "IPv6Address": ""}, "Aliases": null}));
        assert_eq!(own.unwrap().addresses, [("back".to_owned(), Ipv4Addr::new(172, 20, 0, 7))].into());
        assert_eq!(endpoint(json!({"IPAMConfig": {"IPv4Address": ""}})).unwrap().addresses, [].into());
        refused(endpoint(json!({"IPAMConfig": {"IPv4Address": "172.20"}})), 400, "invalid IPv4 address");
        refused(endpoint(json!({"IPAMConfig": {"IPv6Address": "fd00::7"}})), 501, "IPAMConfig.IPv6Address");
        refused(endpoint(json!({"MacAddress": "02:00:00:00:00:07"})), 501, "back.MacAddress");
        refused(endpoint(json!({"Aliases": ["a b"]})), 400, "invalid alias");
        let address = json!({"EndpointsConfig": {"default": {"IPAMConfig": {"IPv4Address": "172.20.0.7"}}}});
        refused(with(&["NetworkingConfig"], address), 501, "IPAMConfig");
        let ports = json!({"80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostPort": ""}], "53/udp": []});
        let ports = host("PortBindings", ports).unwrap().ports;
        let shown: Vec<_> = ports.iter().map(|p| (p.protocol() as i32, p.target, p.published)).collect();
        assert_eq!(shown, [(1, 53, 0), (0, 80, 8080), (0, 80, 0)]);
        let restart = host("RestartPolicy", json!({"Name": "on-failure", "MaximumRetryCount": 3})).unwrap();
        assert_eq!((restart.restart, restart.max_restarts), (Restart::OnFailure, 3));
        let binds = json!(["/srv:/data:ro,rslave", "named:/vol", "named:/other:nocopy"]);
        let mounts = host("Binds", binds).unwrap().spec.container.mounts;
        let shown: Vec<_> =
            mounts.iter().map(|m| (m.kind(), m.source.as_str(), m.target.as_str(), m.read_only)).collect();
        let volume = MountKind::Volume;
        let expected = [
            (MountKind::Bind, "/srv", "/data", true),
            (volume, "named", "/vol", false),
            (volume, "named", "/other", false),
        ];
        assert_eq!(shown, expected);
        assert!(mounts[0].create_mountpoint && mounts[2].no_copy && mounts[0].propagation == "rslave");
        let tmpfs = host("Tmpfs", json!({"/run": "rw,noexec,size=64m,mode=0755"})).unwrap().spec.container.mounts;
        assert_eq!((tmpfs[0].tmpfs_size, tmpfs[0].tmpfs_mode), (64 << 20, 0o755));
        let hosts = host("ExtraHosts", json!(["db:10.0.0.1", "six=fd00::1"])).unwrap().spec.container.hosts;
        assert_eq!(hosts, ["10.0.0.1 db", "fd00::1 six"]);
        // Services have templates; here braces are what they are.
        let braces = with(&["Env"], json!(["FORMAT={{.Name}}"])).unwrap();
        assert_eq!(braces.spec.container.env, ["FORMAT={{.Name}}"]);
        assert_eq!(host("Binds", json!(["/{{a}}:/b"])).unwrap().spec.container.mounts[0].source, "/{{a}}");
        let limits = json!([{"Name": "nofile", "Soft": 64, "Hard": 128}]);
        let limits = host("Ulimits", limits).unwrap().spec.container.ulimits;
        assert_eq!((limits[0].name.as_str(), limits[0].soft, limits[0].hard), ("nofile", 64, 128));
        assert_eq!(host("OomScoreAdj", json!(-500)).unwrap().spec.container.oom_score_adj, -500);
        refused(host("OomScoreAdj", json!(1001)), 400, "OomScoreAdj must be between -1000 and 1000: 1001");
        let limits = host("Memory", json!(64 << 20)).unwrap().spec.resources.limits;
        assert_eq!(limits.memory_bytes, 64 << 20);
        let security =
            host("SecurityOpt", json!(["no-new-privileges", "seccomp=unconfined", "label=type:web_t"])).unwrap();
        let privileges = security.spec.container.privileges.unwrap();
        assert!(privileges.no_new_privileges && privileges.seccomp_mode == "unconfined");
        assert_eq!(privileges.selinux_label, ["", "", "web_t", ""]);
        let cleared = with(&["Entrypoint"], json!([""])).unwrap();
        assert!(cleared.no_entrypoint && cleared.spec.container.command == ["true"]);
    }
}
