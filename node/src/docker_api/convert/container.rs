//! `ContainerSpec`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use deploy::model::{ContainerSpec, DnsConfig, Healthcheck, Mount, MountKind, PayloadReference, Privileges, Ulimit};

use super::{nanos_i64, non_default, non_empty, refuse_set, unsigned, unsigned_opt};
use crate::docker_api::error::ApiError;
use crate::docker_api::wire;

const AT: &str = "TaskTemplate.ContainerSpec";

/// What a client sent, as the model has it.
///
/// # Errors
/// Names the field that the model cannot carry or that is out of range.
pub fn container_from_wire(w: wire::ContainerSpec) -> Result<ContainerSpec, ApiError> {
    Ok(ContainerSpec {
        image: w.image.unwrap_or_default(),
        labels: w.labels.unwrap_or_default(),
        command: w.command.unwrap_or_default(),
        args: w.args.unwrap_or_default(),
        hostname: w.hostname.unwrap_or_default(),
        env: w.env.unwrap_or_default(),
        dir: w.dir.unwrap_or_default(),
        user: w.user.unwrap_or_default(),
        groups: w.groups.unwrap_or_default(),
        privileges: w.privileges.map(privileges_from_wire).transpose()?,
        tty: w.tty.unwrap_or_default(),
        open_stdin: w.open_stdin.unwrap_or_default(),
        read_only: w.read_only.unwrap_or_default(),
        init: w.init,
        mounts: w.mounts.unwrap_or_default().into_iter().map(mount_from_wire).collect::<Result<_, _>>()?,
        stop_signal: w.stop_signal.unwrap_or_default(),
        stop_grace_ns: unsigned_opt("TaskTemplate.ContainerSpec.StopGracePeriod", w.stop_grace_period)?,
        healthcheck: w.healthcheck.map(healthcheck_from_wire).transpose()?,
        hosts: w.hosts.unwrap_or_default(),
        dns: w.dns_config.map(|d| DnsConfig {
            nameservers: d.nameservers.unwrap_or_default(),
            search: d.search.unwrap_or_default(),
            options: d.options.unwrap_or_default(),
        }),
        secrets: w.secrets.unwrap_or_default().into_iter().map(secret_from_wire).collect::<Result<_, _>>()?,
        configs: w.configs.unwrap_or_default().into_iter().map(config_from_wire).collect::<Result<_, _>>()?,
        isolation: w.isolation.unwrap_or_default(),
        sysctls: w.sysctls.unwrap_or_default(),
        cap_add: w.capability_add.unwrap_or_default(),
        cap_drop: w.capability_drop.unwrap_or_default(),
        ulimits: w.ulimits.unwrap_or_default().into_iter().map(ulimit_from_wire).collect(),
        // It comes in a header.
        registry_auth: None,
        oom_score_adj: oom_score_from_wire(&format!("{AT}.OomScoreAdj"), w.oom_score_adj.unwrap_or_default())?,
    })
}

/// A limit of a process.
pub(super) fn ulimit_from_wire(w: wire::Ulimit) -> Ulimit {
    Ulimit { name: w.name.unwrap_or_default(), soft: w.soft.unwrap_or_default(), hard: w.hard.unwrap_or_default() }
}

/// How much sooner or later than others a container is killed when memory runs out.
pub(super) fn oom_score_from_wire(field: &str, score: i64) -> Result<i32, ApiError> {
    let fits = i32::try_from(score).ok().filter(|score| (-1000..=1000).contains(score));
    fits.ok_or_else(|| ApiError::invalid(format!("{field} must be between -1000 and 1000: {score}")))
}

/// A container spec as Docker's clients read it.
pub fn container_to_wire(m: &ContainerSpec) -> wire::ContainerSpec {
    wire::ContainerSpec {
        image: Some(m.image.clone()),
        labels: non_default(&m.labels),
        command: non_default(&m.command),
        args: non_default(&m.args),
        hostname: non_empty(&m.hostname),
        env: non_default(&m.env),
        dir: non_empty(&m.dir),
        user: non_empty(&m.user),
        groups: non_default(&m.groups),
        privileges: m.privileges.as_ref().map(privileges_to_wire),
        init: m.init,
        tty: non_default(&m.tty),
        open_stdin: non_default(&m.open_stdin),
        read_only: non_default(&m.read_only),
        mounts: non_default(&m.mounts.iter().map(mount_to_wire).collect()),
        stop_signal: non_empty(&m.stop_signal),
        stop_grace_period: m.stop_grace_ns.map(nanos_i64),
        healthcheck: m.healthcheck.as_ref().map(healthcheck_to_wire),
        hosts: non_default(&m.hosts),
        dns_config: m.dns.as_ref().map(|d| wire::DnsConfig {
            nameservers: non_default(&d.nameservers),
            search: non_default(&d.search),
            options: non_default(&d.options),
        }),
        secrets: non_default(&m.secrets.iter().map(secret_to_wire).collect()),
        configs: non_default(&m.configs.iter().map(config_to_wire).collect()),
        isolation: non_empty(&m.isolation),
        sysctls: non_default(&m.sysctls),
        capability_add: non_default(&m.cap_add),
        capability_drop: non_default(&m.cap_drop),
        ulimits: non_default(
            &m.ulimits
                .iter()
                .map(|u| wire::Ulimit { name: Some(u.name.clone()), hard: Some(u.hard), soft: Some(u.soft) })
                .collect(),
        ),
        oom_score_adj: non_default(&i64::from(m.oom_score_adj)),
    }
}

fn privileges_from_wire(w: wire::Privileges) -> Result<Privileges, ApiError> {
    refuse_set("TaskTemplate.ContainerSpec.Privileges.CredentialSpec", &w.credential_spec)?;
    let selinux = w.selinux_context.unwrap_or_default();
    let label = [selinux.user, selinux.role, selinux.kind, selinux.level].map(Option::unwrap_or_default);
    let seccomp = w.seccomp.unwrap_or_default();
    let seccomp_profile = BASE64
        .decode(seccomp.profile.unwrap_or_default())
        .map_err(|e| ApiError::invalid(format!("{AT}.Privileges.Seccomp.Profile is not base64: {e}")))?;
    if !seccomp_profile.is_empty() {
        // The host that runs the task would refuse it; whoever sends it should hear so first.
        runtime::check_seccomp_profile(&seccomp_profile)
            .map_err(|e| ApiError::invalid(format!("{AT}.Privileges.Seccomp.Profile: {e}")))?;
    }
    Ok(Privileges {
        no_new_privileges: w.no_new_privileges.unwrap_or_default(),
        selinux_disabled: selinux.disable.unwrap_or_default(),
        selinux_label: if label.iter().all(String::is_empty) { Vec::new() } else { label.to_vec() },
        seccomp_mode: seccomp.mode.unwrap_or_default(),
        seccomp_profile,
        apparmor_mode: w.apparmor.unwrap_or_default().mode.unwrap_or_default(),
    })
}

fn privileges_to_wire(m: &Privileges) -> wire::Privileges {
    let part = |i: usize| m.selinux_label.get(i).and_then(|s| non_empty(s));
    wire::Privileges {
        credential_spec: None,
        selinux_context: (m.selinux_disabled || !m.selinux_label.is_empty()).then(|| wire::SelinuxContext {
            disable: Some(m.selinux_disabled),
            user: part(0),
            role: part(1),
            kind: part(2),
            level: part(3),
        }),
        seccomp: (!m.seccomp_mode.is_empty() || !m.seccomp_profile.is_empty()).then(|| wire::Seccomp {
            mode: non_empty(&m.seccomp_mode),
            profile: (!m.seccomp_profile.is_empty()).then(|| BASE64.encode(&m.seccomp_profile)),
        }),
        apparmor: non_empty(&m.apparmor_mode).map(|mode| wire::AppArmor { mode: Some(mode) }),
        no_new_privileges: non_default(&m.no_new_privileges),
    }
}

const MOUNT_KINDS: [(&str, MountKind); 6] = [
    ("bind", MountKind::Bind),
    ("volume", MountKind::Volume),
    ("tmpfs", MountKind::Tmpfs),
    ("npipe", MountKind::NamedPipe),
    ("cluster", MountKind::Cluster),
    ("image", MountKind::Image),
];

pub(super) fn mount_from_wire(w: wire::Mount) -> Result<Mount, ApiError> {
    let name = w.kind.unwrap_or_default();
    let kind = MOUNT_KINDS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, kind)| *kind)
        .ok_or_else(|| ApiError::invalid(format!("invalid MountType: {name:?}")))?;
    refuse_set("TaskTemplate.ContainerSpec.Mounts.ClusterOptions", &w.cluster_options)?;
    let bind = w.bind_options.unwrap_or_default();
    let volume = w.volume_options.unwrap_or_default();
    let driver = volume.driver_config.unwrap_or_default();
    let tmpfs = w.tmpfs_options.unwrap_or_default();
    refuse_set("TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.Options", &tmpfs.options)?;
    let image_subpath = w.image_options.unwrap_or_default().subpath;
    Ok(Mount {
        kind: kind.into(),
        source: w.source.unwrap_or_default(),
        target: w.target.unwrap_or_default(),
        read_only: w.read_only.unwrap_or_default(),
        propagation: bind.propagation.unwrap_or_default(),
        non_recursive: bind.non_recursive.unwrap_or_default(),
        create_mountpoint: bind.create_mountpoint.unwrap_or_default(),
        no_copy: volume.no_copy.unwrap_or_default(),
        volume_labels: volume.labels.unwrap_or_default(),
        volume_driver: driver.name.unwrap_or_default(),
        volume_options: driver.options.unwrap_or_default(),
        subpath: volume.subpath.filter(|s| !s.is_empty()).or(image_subpath).unwrap_or_default(),
        tmpfs_size: unsigned(
            "TaskTemplate.ContainerSpec.Mounts.TmpfsOptions.SizeBytes",
            tmpfs.size_bytes.unwrap_or_default(),
        )?,
        tmpfs_mode: tmpfs.mode.unwrap_or_default(),
        consistency: w.consistency.unwrap_or_default(),
        read_only_force_recursive: bind.read_only_force_recursive.unwrap_or_default(),
        read_only_non_recursive: bind.read_only_non_recursive.unwrap_or_default(),
    })
}

fn mount_to_wire(m: &Mount) -> wire::Mount {
    let kind = m.kind();
    let bind = wire::BindOptions {
        propagation: non_empty(&m.propagation),
        non_recursive: non_default(&m.non_recursive),
        create_mountpoint: non_default(&m.create_mountpoint),
        read_only_non_recursive: non_default(&m.read_only_non_recursive),
        read_only_force_recursive: non_default(&m.read_only_force_recursive),
    };
    let volume = wire::VolumeOptions {
        no_copy: non_default(&m.no_copy),
        labels: non_default(&m.volume_labels),
        subpath: non_empty(&m.subpath).filter(|_| kind != MountKind::Image),
        driver_config: non_default(&wire::Driver {
            name: non_empty(&m.volume_driver),
            options: non_default(&m.volume_options),
        }),
    };
    let tmpfs = wire::TmpfsOptions {
        size_bytes: (m.tmpfs_size > 0).then(|| nanos_i64(m.tmpfs_size)),
        mode: non_default(&m.tmpfs_mode),
        options: None,
    };
    wire::Mount {
        kind: MOUNT_KINDS.iter().find(|(_, k)| *k == kind).map(|(name, _)| (*name).to_owned()),
        source: non_empty(&m.source),
        target: non_empty(&m.target),
        read_only: non_default(&m.read_only),
        consistency: non_empty(&m.consistency),
        bind_options: non_default(&bind),
        volume_options: non_default(&volume),
        image_options: non_empty(&m.subpath)
            .filter(|_| kind == MountKind::Image)
            .map(|subpath| wire::ImageOptions { subpath: Some(subpath) }),
        tmpfs_options: non_default(&tmpfs),
        cluster_options: None,
    }
}

pub(super) fn healthcheck_from_wire(w: wire::Healthcheck) -> Result<Healthcheck, ApiError> {
    let nanos = |field: &str, value: Option<i64>| unsigned(&format!("{AT}.Healthcheck.{field}"), value.unwrap_or(0));
    let retries = nanos("Retries", w.retries)?;
    Ok(Healthcheck {
        test: w.test.unwrap_or_default(),
        interval_ns: nanos("Interval", w.interval)?,
        timeout_ns: nanos("Timeout", w.timeout)?,
        start_period_ns: nanos("StartPeriod", w.start_period)?,
        start_interval_ns: nanos("StartInterval", w.start_interval)?,
        retries: u32::try_from(retries)
            .map_err(|_| ApiError::invalid(format!("{AT}.Healthcheck.Retries is too large: {retries}")))?,
    })
}

fn healthcheck_to_wire(m: &Healthcheck) -> wire::Healthcheck {
    let nanos = |value: u64| (value > 0).then(|| nanos_i64(value));
    wire::Healthcheck {
        test: non_default(&m.test),
        interval: nanos(m.interval_ns),
        timeout: nanos(m.timeout_ns),
        start_period: nanos(m.start_period_ns),
        start_interval: nanos(m.start_interval_ns),
        retries: nanos(m.retries.into()),
    }
}

/// A file target without a mode gets Docker's, which the command line always sends.
const DEFAULT_FILE_MODE: u32 = 0o444;

fn payload_reference(
    id: Option<String>,
    name: Option<String>,
    file: Option<wire::FileTarget>,
    runtime_target: bool,
) -> PayloadReference {
    let file = file.unwrap_or_default();
    PayloadReference {
        id: id.unwrap_or_default(),
        name: name.unwrap_or_default(),
        file: file.name.unwrap_or_default(),
        uid: file.uid.unwrap_or_default(),
        gid: file.gid.unwrap_or_default(),
        mode: file.mode.unwrap_or(if runtime_target { 0 } else { DEFAULT_FILE_MODE }),
        runtime_target,
    }
}

fn secret_from_wire(w: wire::SecretReference) -> Result<PayloadReference, ApiError> {
    if w.file.is_none() {
        return Err(ApiError::invalid("invalid secret reference: no target provided"));
    }
    Ok(payload_reference(w.id, w.name, w.file, false))
}

fn config_from_wire(w: wire::ConfigReference) -> Result<PayloadReference, ApiError> {
    match (w.file, w.runtime) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("invalid config reference: cannot specify both File and Runtime targets"))
        }
        (None, None) => Err(ApiError::invalid("invalid config reference: no target provided")),
        (file, runtime) => Ok(payload_reference(w.id, w.name, file, runtime.is_some())),
    }
}

fn file_to_wire(m: &PayloadReference) -> wire::FileTarget {
    wire::FileTarget {
        name: Some(m.file.clone()),
        uid: Some(m.uid.clone()),
        gid: Some(m.gid.clone()),
        mode: Some(m.mode),
    }
}

fn secret_to_wire(m: &PayloadReference) -> wire::SecretReference {
    wire::SecretReference { file: Some(file_to_wire(m)), id: Some(m.id.clone()), name: Some(m.name.clone()) }
}

fn config_to_wire(m: &PayloadReference) -> wire::ConfigReference {
    wire::ConfigReference {
        file: (!m.runtime_target).then(|| file_to_wire(m)),
        runtime: m.runtime_target.then(wire::Empty::default),
        id: Some(m.id.clone()),
        name: Some(m.name.clone()),
    }
}
