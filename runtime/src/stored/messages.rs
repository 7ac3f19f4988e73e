//! The stored messages and how they become the runtime's own types. Tags are never used again.

use std::collections::BTreeMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::log::{StoredForward, forward_from, forward_into};
use crate::config::{
    AppArmor, Capabilities, ContainerConfig, EtcFiles, IdMappings, IdRange, LogConfig, Mount, MountKind, Propagation,
    Resources, Seccomp, SelinuxLabel, Ulimit,
};
use crate::plan::limits::oci::LinuxResources;
use crate::volume::VolumeMount;

/// Written by the daemon before anything else of a container exists.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredContainer {
    #[prost(uint64, tag = "1")]
    pub(crate) created_at_nanos: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) config: Option<StoredConfig>,
}

/// Written by the shim when its container waits for its start: which processes are ours in this boot.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredProcess {
    #[prost(string, tag = "1")]
    pub(crate) boot_id: String,
    #[prost(uint32, tag = "2")]
    pub(crate) shim_pid: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) shim_start_ticks: u64,
    #[prost(uint32, tag = "4")]
    pub(crate) pid: u32,
    #[prost(uint64, tag = "5")]
    pub(crate) start_ticks: u64,
}

/// Written once, by the shim when its container has ended, or by the daemon when the shim is lost.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredExit {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(int32, optional, tag = "2")]
    pub(crate) signal: Option<i32>,
    #[prost(bool, tag = "3")]
    pub(crate) oom_killed: bool,
    #[prost(uint64, tag = "4")]
    pub(crate) finished_at_nanos: u64,
    #[prost(bool, tag = "5")]
    pub(crate) shim_lost: bool,
    #[prost(uint64, optional, tag = "6")]
    pub(crate) started_at_nanos: Option<u64>,
    #[prost(uint64, tag = "7")]
    pub(crate) dropped_log_records: u64,
}

/// What `shoal runtime` knows of a container that was made from an OCI bundle. Worth nothing after this boot.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredBundle {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// Absolute.
    #[prost(string, tag = "2")]
    pub(crate) bundle: String,
    #[prost(string, tag = "3")]
    pub(crate) rootfs: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// As the bundle has it.
    #[prost(string, tag = "5")]
    pub(crate) cgroups_path: String,
    #[prost(uint64, tag = "6")]
    pub(crate) created_at_nanos: u64,
    /// 0 until there is a process.
    #[prost(uint32, tag = "7")]
    pub(crate) pid: u32,
    #[prost(uint64, tag = "8")]
    pub(crate) start_ticks: u64,
    #[prost(bool, tag = "9")]
    pub(crate) has_process: bool,
    /// Its mounts are in the mount namespace of the runtime, at its root.
    #[prost(bool, tag = "10")]
    pub(crate) mounted_here: bool,
    #[prost(message, repeated, tag = "11")]
    pub(crate) poststart: Vec<StoredHook>,
    #[prost(message, repeated, tag = "12")]
    pub(crate) poststop: Vec<StoredHook>,
    /// The `config.json` of its creation.
    #[prost(bytes = "vec", tag = "13")]
    pub(crate) config: Vec<u8>,
    /// The mount that its root was on before it was made; 0 when that is not known.
    #[prost(uint64, tag = "60")]
    pub(crate) mount_before: u64,
}

/// One hook of a [`StoredBundle`].
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredHook {
    #[prost(string, tag = "1")]
    pub(crate) path: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) args: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) env: Vec<String>,
    #[prost(int64, optional, tag = "4")]
    pub(crate) timeout_secs: Option<i64>,
}

/// What a volume was made with, beside its data.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredVolume {
    #[prost(uint64, tag = "1")]
    pub(crate) created_at_nanos: u64,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) options: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: BTreeMap<String, String>,
    /// The container that it is removed with; empty for one that has a name.
    #[prost(string, tag = "4")]
    pub(crate) owner: String,
    /// It is being filled from an image: what is in it is of no use until this is false again.
    #[prost(bool, tag = "5")]
    pub(crate) filling: bool,
}

/// What somebody wants to find again beside a container.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredNote {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) bytes: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StoredConfig {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "string, string", tag = "2")]
    labels: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    hostname: String,
    #[prost(bytes = "vec", repeated, tag = "4")]
    layers: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "5")]
    args: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    env: Vec<String>,
    #[prost(string, tag = "7")]
    cwd: String,
    #[prost(string, tag = "8")]
    user: String,
    #[prost(string, repeated, tag = "9")]
    groups: Vec<String>,
    #[prost(bool, tag = "10")]
    readonly_root: bool,
    #[prost(message, repeated, tag = "11")]
    mounts: Vec<StoredMount>,
    #[prost(string, tag = "12")]
    hosts: String,
    #[prost(string, tag = "13")]
    resolv_conf: String,
    #[prost(int64, optional, tag = "14")]
    cpu_limit_nanos: Option<i64>,
    #[prost(int64, optional, tag = "15")]
    cpu_reservation_nanos: Option<i64>,
    #[prost(int64, optional, tag = "16")]
    memory_limit: Option<i64>,
    #[prost(int64, optional, tag = "17")]
    memory_reservation: Option<i64>,
    #[prost(int64, optional, tag = "18")]
    pids_limit: Option<i64>,
    #[prost(string, repeated, tag = "19")]
    capabilities_add: Vec<String>,
    #[prost(string, repeated, tag = "20")]
    capabilities_drop: Vec<String>,
    #[prost(bool, tag = "21")]
    no_new_privileges: bool,
    #[prost(message, repeated, tag = "22")]
    ulimits: Vec<StoredUlimit>,
    #[prost(btree_map = "string, string", tag = "23")]
    sysctls: BTreeMap<String, String>,
    #[prost(sint32, tag = "24")]
    oom_score_adj: i32,
    #[prost(string, optional, tag = "25")]
    stop_signal: Option<String>,
    #[prost(uint64, tag = "26")]
    log_max_size: u64,
    #[prost(uint32, tag = "27")]
    log_max_files: u32,
    #[prost(bool, tag = "28")]
    init: bool,
    #[prost(bool, tag = "29")]
    tty: bool,
    #[prost(bool, tag = "140")]
    open_stdin: bool,
    #[prost(bool, tag = "141")]
    stdin_once: bool,
    /// Absent before there was a choice: it has a network of its own.
    #[prost(bool, tag = "300")]
    host_network: bool,
    /// Absent before there was a choice: it runs once.
    #[prost(bool, tag = "310")]
    lasting: bool,
    /// `linux.resources` in the JSON of the OCI runtime specification; empty when it says nothing.
    #[prost(string, tag = "240")]
    oci_resources: String,
    /// The opposite of `LogConfig::files`, so that what earlier releases stored means what it meant.
    #[prost(bool, tag = "220")]
    log_without_files: bool,
    #[prost(message, optional, tag = "221")]
    log_forward: Option<StoredForward>,
    #[prost(oneof = "StoredSeccomp", tags = "120, 121")]
    seccomp: Option<StoredSeccomp>,
    #[prost(oneof = "StoredAppArmor", tags = "122, 123")]
    apparmor: Option<StoredAppArmor>,
    #[prost(message, optional, tag = "124")]
    selinux: Option<StoredSelinux>,
    #[prost(message, optional, tag = "125")]
    id_mappings: Option<StoredIdMappings>,
}

/// Absent: the default policy.
#[derive(Clone, PartialEq, prost::Oneof)]
enum StoredSeccomp {
    #[prost(bool, tag = "120")]
    Unconfined(bool),
    #[prost(string, tag = "121")]
    Custom(String),
}

/// Absent: the default profile.
#[derive(Clone, PartialEq, prost::Oneof)]
enum StoredAppArmor {
    #[prost(bool, tag = "122")]
    Unconfined(bool),
    #[prost(string, tag = "123")]
    Named(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredSelinux {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    role: String,
    #[prost(string, tag = "3")]
    kind: String,
    #[prost(string, tag = "4")]
    level: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredIdMappings {
    #[prost(message, repeated, tag = "1")]
    uids: Vec<StoredIdRange>,
    #[prost(message, repeated, tag = "2")]
    gids: Vec<StoredIdRange>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct StoredIdRange {
    #[prost(uint32, tag = "1")]
    inside: u32,
    #[prost(uint32, tag = "2")]
    outside: u32,
    #[prost(uint32, tag = "3")]
    count: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredMount {
    #[prost(bytes = "vec", tag = "1")]
    target: Vec<u8>,
    #[prost(bool, tag = "2")]
    readonly: bool,
    #[prost(oneof = "StoredMountKind", tags = "3, 4, 200")]
    kind: Option<StoredMountKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum StoredMountKind {
    #[prost(message, tag = "3")]
    Bind(StoredBind),
    #[prost(message, tag = "4")]
    Tmpfs(StoredTmpfs),
    #[prost(message, tag = "200")]
    Volume(StoredVolumeMount),
}

/// Options and labels are the volume's, and not kept here.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredVolumeMount {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    subpath: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    source: Vec<u8>,
    #[prost(bool, tag = "4")]
    copy: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredBind {
    #[prost(bytes = "vec", tag = "1")]
    source: Vec<u8>,
    #[prost(bool, tag = "2")]
    recursive: bool,
    #[prost(uint32, tag = "3")]
    propagation: u32,
    /// The other way round than in the configuration: what was stored before it existed was read-only all the way down.
    #[prost(bool, tag = "130")]
    writable_below: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredTmpfs {
    #[prost(uint64, optional, tag = "1")]
    size: Option<u64>,
    #[prost(uint32, optional, tag = "2")]
    mode: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredUlimit {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(sint64, tag = "2")]
    soft: i64,
    #[prost(sint64, tag = "3")]
    hard: i64,
}

/// Nanoseconds since 1970; times before it become 0.
pub(crate) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The inverse of [`nanos`].
pub(crate) fn time_from(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

pub(super) fn path_into(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

pub(super) fn path_from(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The stored form of a configuration.
pub(crate) fn config_into(config: &ContainerConfig) -> StoredConfig {
    StoredConfig {
        id: config.id.clone(),
        labels: config.labels.clone(),
        hostname: config.hostname.clone(),
        layers: config.layers.iter().map(|path| path_into(path)).collect(),
        args: config.args.clone(),
        env: config.env.clone(),
        cwd: config.cwd.clone(),
        user: config.user.clone(),
        groups: config.groups.clone(),
        readonly_root: config.readonly_root,
        mounts: config.mounts.iter().map(mount_into).collect(),
        hosts: config.files.hosts.clone(),
        resolv_conf: config.files.resolv_conf.clone(),
        cpu_limit_nanos: config.resources.cpu_limit_nanos,
        cpu_reservation_nanos: config.resources.cpu_reservation_nanos,
        memory_limit: config.resources.memory_limit,
        memory_reservation: config.resources.memory_reservation,
        pids_limit: config.resources.pids_limit,
        capabilities_add: config.capabilities.add.clone(),
        capabilities_drop: config.capabilities.drop.clone(),
        no_new_privileges: config.no_new_privileges,
        ulimits: config
            .ulimits
            .iter()
            .map(|limit| StoredUlimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
            .collect(),
        sysctls: config.sysctls.clone(),
        oom_score_adj: config.oom_score_adj,
        stop_signal: config.stop_signal.clone(),
        log_max_size: config.log.max_size,
        log_max_files: config.log.max_files,
        init: config.init,
        tty: config.tty,
        open_stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        oci_resources: oci_into(&config.resources.oci),
        log_without_files: !config.log.files,
        log_forward: config.log.forward.as_ref().map(forward_into),
        seccomp: match &config.seccomp {
            Seccomp::Default => None,
            Seccomp::Unconfined => Some(StoredSeccomp::Unconfined(true)),
            Seccomp::Custom(profile) => Some(StoredSeccomp::Custom(profile.clone())),
        },
        apparmor: match &config.apparmor {
            AppArmor::Default => None,
            AppArmor::Unconfined => Some(StoredAppArmor::Unconfined(true)),
            AppArmor::Named(name) => Some(StoredAppArmor::Named(name.clone())),
        },
        selinux: config.selinux.clone().map(|SelinuxLabel { user, role, kind, level }| StoredSelinux {
            user,
            role,
            kind,
            level,
        }),
        host_network: config.host_network,
        lasting: config.lasting,
        id_mappings: config.id_mappings.as_ref().map(|maps| {
            let ranges = |list: &[IdRange]| {
                list.iter()
                    .map(|&IdRange { inside, outside, count }| StoredIdRange { inside, outside, count })
                    .collect()
            };
            StoredIdMappings { uids: ranges(&maps.uids), gids: ranges(&maps.gids) }
        }),
    }
}

fn oci_into(resources: &LinuxResources) -> String {
    if *resources == LinuxResources::default() {
        return String::new();
    }
    // Plain data: there is nothing in it that could not be written.
    serde_json::to_string(resources).unwrap_or_default()
}

fn oci_from(text: &str) -> Result<LinuxResources, String> {
    if text.is_empty() {
        return Ok(LinuxResources::default());
    }
    serde_json::from_str(text).map_err(|error| format!("resources: {error}"))
}

/// The configuration that was stored.
pub(crate) fn config_from(stored: StoredConfig) -> Result<ContainerConfig, String> {
    Ok(ContainerConfig {
        id: stored.id,
        labels: stored.labels,
        hostname: stored.hostname,
        layers: stored.layers.into_iter().map(path_from).collect(),
        args: stored.args,
        env: stored.env,
        cwd: stored.cwd,
        user: stored.user,
        groups: stored.groups,
        readonly_root: stored.readonly_root,
        mounts: stored.mounts.into_iter().map(mount_from).collect::<Result<_, _>>()?,
        files: EtcFiles { hosts: stored.hosts, resolv_conf: stored.resolv_conf },
        resources: Resources {
            cpu_limit_nanos: stored.cpu_limit_nanos,
            cpu_reservation_nanos: stored.cpu_reservation_nanos,
            memory_limit: stored.memory_limit,
            memory_reservation: stored.memory_reservation,
            pids_limit: stored.pids_limit,
            oci: oci_from(&stored.oci_resources)?,
        },
        capabilities: Capabilities { add: stored.capabilities_add, drop: stored.capabilities_drop },
        no_new_privileges: stored.no_new_privileges,
        ulimits: stored
            .ulimits
            .into_iter()
            .map(|limit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard })
            .collect(),
        sysctls: stored.sysctls,
        oom_score_adj: stored.oom_score_adj,
        stop_signal: stored.stop_signal,
        log: LogConfig {
            files: !stored.log_without_files,
            max_size: stored.log_max_size,
            max_files: stored.log_max_files,
            forward: stored.log_forward.map(forward_from).transpose()?,
        },
        init: stored.init,
        tty: stored.tty,
        seccomp: match stored.seccomp {
            None => Seccomp::Default,
            Some(StoredSeccomp::Unconfined(_)) => Seccomp::Unconfined,
            Some(StoredSeccomp::Custom(profile)) => Seccomp::Custom(profile),
        },
        apparmor: match stored.apparmor {
            None => AppArmor::Default,
            Some(StoredAppArmor::Unconfined(_)) => AppArmor::Unconfined,
            Some(StoredAppArmor::Named(name)) => AppArmor::Named(name),
        },
        selinux: stored.selinux.map(|StoredSelinux { user, role, kind, level }| SelinuxLabel {
            user,
            role,
            kind,
            level,
        }),
        id_mappings: stored.id_mappings.map(|maps| {
            let ranges = |list: Vec<StoredIdRange>| {
                list.into_iter()
                    .map(|StoredIdRange { inside, outside, count }| IdRange { inside, outside, count })
                    .collect()
            };
            IdMappings { uids: ranges(maps.uids), gids: ranges(maps.gids) }
        }),
        private_files: Vec::new(),
        open_stdin: stored.open_stdin,
        stdin_once: stored.stdin_once,
        host_network: stored.host_network,
        lasting: stored.lasting,
    })
}

fn mount_into(mount: &Mount) -> StoredMount {
    let kind = match &mount.kind {
        MountKind::Bind { source, recursive, readonly_below, propagation } => StoredMountKind::Bind(StoredBind {
            source: path_into(source),
            recursive: *recursive,
            writable_below: !readonly_below,
            propagation: match propagation {
                Propagation::RPrivate => 0,
                Propagation::Private => 1,
                Propagation::RSlave => 2,
                Propagation::Slave => 3,
                Propagation::RShared => 200,
                Propagation::Shared => 201,
            },
        }),
        MountKind::Tmpfs { size, mode } => StoredMountKind::Tmpfs(StoredTmpfs { size: *size, mode: *mode }),
        MountKind::Volume(volume) => StoredMountKind::Volume(StoredVolumeMount {
            name: volume.name.clone(),
            subpath: path_into(&volume.subpath),
            source: path_into(&volume.source),
            copy: volume.copy,
        }),
    };
    StoredMount { target: path_into(&mount.target), readonly: mount.readonly, kind: Some(kind) }
}

fn mount_from(stored: StoredMount) -> Result<Mount, String> {
    let kind = match stored.kind {
        Some(StoredMountKind::Bind(bind)) => MountKind::Bind {
            source: path_from(bind.source),
            recursive: bind.recursive,
            readonly_below: !bind.writable_below,
            propagation: match bind.propagation {
                0 => Propagation::RPrivate,
                1 => Propagation::Private,
                2 => Propagation::RSlave,
                3 => Propagation::Slave,
                200 => Propagation::RShared,
                201 => Propagation::Shared,
                other => return Err(format!("unknown propagation {other}")),
            },
        },
        Some(StoredMountKind::Tmpfs(tmpfs)) => MountKind::Tmpfs { size: tmpfs.size, mode: tmpfs.mode },
        Some(StoredMountKind::Volume(volume)) => MountKind::Volume(VolumeMount {
            name: volume.name,
            subpath: path_from(volume.subpath),
            source: path_from(volume.source),
            copy: volume.copy,
            ..VolumeMount::default()
        }),
        None => return Err("a mount without a kind".to_owned()),
    };
    Ok(Mount { kind, target: path_from(stored.target), readonly: stored.readonly })
}
