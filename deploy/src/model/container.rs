//! What a container of a task looks like; Docker's `ContainerSpec`.

use std::time::Duration;

use super::Labels;

/// What a container of a task looks like.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerSpec {
    /// Image reference, with its digest once it was pinned.
    #[prost(string, tag = "1")]
    pub image: String,
    /// Labels of the container.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// Overrides the image's entrypoint when not empty.
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// Overrides the image's command when not empty.
    #[prost(string, repeated, tag = "4")]
    pub args: Vec<String>,
    /// Hostname; may hold templates.
    #[prost(string, tag = "5")]
    pub hostname: String,
    /// `KEY=value`, in order; may hold templates.
    #[prost(string, repeated, tag = "6")]
    pub env: Vec<String>,
    /// Working directory.
    #[prost(string, tag = "7")]
    pub dir: String,
    /// `user[:group]`, names or numbers.
    #[prost(string, tag = "8")]
    pub user: String,
    /// More groups.
    #[prost(string, repeated, tag = "9")]
    pub groups: Vec<String>,
    /// Security settings.
    #[prost(message, optional, tag = "10")]
    pub privileges: Option<Privileges>,
    /// A terminal.
    #[prost(bool, tag = "11")]
    pub tty: bool,
    /// Standard input stays open.
    #[prost(bool, tag = "12")]
    pub open_stdin: bool,
    /// The root file system cannot be written.
    #[prost(bool, tag = "13")]
    pub read_only: bool,
    /// An init process that reaps; absent means the host's default.
    #[prost(bool, optional, tag = "14")]
    pub init: Option<bool>,
    /// Mounts.
    #[prost(message, repeated, tag = "15")]
    pub mounts: Vec<Mount>,
    /// Signal that asks it to stop; empty means the image's, else SIGTERM.
    #[prost(string, tag = "16")]
    pub stop_signal: String,
    /// Nanoseconds between that signal and SIGKILL; absent means 10 s.
    #[prost(uint64, optional, tag = "17")]
    pub stop_grace_ns: Option<u64>,
    /// Health check; absent means the image's.
    #[prost(message, optional, tag = "18")]
    pub healthcheck: Option<Healthcheck>,
    /// More lines of /etc/hosts, as Docker sends them: `IP name [name...]`.
    #[prost(string, repeated, tag = "19")]
    pub hosts: Vec<String>,
    /// Name resolution.
    #[prost(message, optional, tag = "20")]
    pub dns: Option<DnsConfig>,
    /// Secrets.
    #[prost(message, repeated, tag = "21")]
    pub secrets: Vec<PayloadReference>,
    /// Configs.
    #[prost(message, repeated, tag = "22")]
    pub configs: Vec<PayloadReference>,
    /// Windows isolation, as sent ("default").
    #[prost(string, tag = "23")]
    pub isolation: String,
    /// Kernel parameters of the container's namespaces.
    #[prost(btree_map = "string, string", tag = "24")]
    pub sysctls: Labels,
    /// Capabilities beyond the default ("CAP_NET_ADMIN").
    #[prost(string, repeated, tag = "25")]
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    #[prost(string, repeated, tag = "26")]
    pub cap_drop: Vec<String>,
    /// Resource limits.
    #[prost(message, repeated, tag = "27")]
    pub ulimits: Vec<Ulimit>,
    /// Preference of the kernel's OOM killer, -1000 to 1000.
    #[prost(int32, tag = "28")]
    pub oom_score_adj: i32,
    /// Whoever the image is pulled as; absent means nobody in particular.
    #[prost(message, optional, tag = "29")]
    pub registry_auth: Option<RegistryAuth>,
}

/// Credentials for the registry of one image. They are never shown.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct RegistryAuth {
    /// Docker's `X-Registry-Auth`: an `AuthConfig` as JSON in base64.
    #[prost(string, tag = "1")]
    pub header: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryAuth { .. }")
    }
}

impl ContainerSpec {
    /// Time between the stop signal and SIGKILL.
    pub fn stop_grace(&self) -> Duration {
        Duration::from_nanos(self.stop_grace_ns.unwrap_or(10_000_000_000))
    }
}

/// Security settings.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Privileges {
    /// No gain of privileges through exec.
    #[prost(bool, tag = "1")]
    pub no_new_privileges: bool,
    /// SELinux does not confine it.
    #[prost(bool, tag = "2")]
    pub selinux_disabled: bool,
    /// SELinux label: user, role, type, level (empty parts are the host's own), or nothing.
    #[prost(string, repeated, tag = "3")]
    pub selinux_label: Vec<String>,
    /// "default" (as is nothing), "unconfined" or "custom".
    #[prost(string, tag = "4")]
    pub seccomp_mode: String,
    /// A custom profile: Docker's JSON.
    #[prost(bytes = "vec", tag = "5")]
    pub seccomp_profile: Vec<u8>,
    /// "default" (as is nothing) or "disabled".
    #[prost(string, tag = "6")]
    pub apparmor_mode: String,
}

/// A mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Kind.
    #[prost(enumeration = "MountKind", tag = "1")]
    pub kind: i32,
    /// Host path or volume name; may hold templates.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Path in the container.
    #[prost(string, tag = "3")]
    pub target: String,
    /// Cannot be written.
    #[prost(bool, tag = "4")]
    pub read_only: bool,
    /// Propagation of a bind ("rprivate", "rslave"); empty means rprivate.
    #[prost(string, tag = "5")]
    pub propagation: String,
    /// A bind without the mounts below it.
    #[prost(bool, tag = "6")]
    pub non_recursive: bool,
    /// A host path that is missing is made, as a directory.
    #[prost(bool, tag = "7")]
    pub create_mountpoint: bool,
    /// A volume is not filled from the image.
    #[prost(bool, tag = "8")]
    pub no_copy: bool,
    /// Labels of a new volume.
    #[prost(btree_map = "string, string", tag = "9")]
    pub volume_labels: Labels,
    /// Driver of a new volume.
    #[prost(string, tag = "10")]
    pub volume_driver: String,
    /// Options of that driver.
    #[prost(btree_map = "string, string", tag = "11")]
    pub volume_options: Labels,
    /// Directory inside of the volume.
    #[prost(string, tag = "12")]
    pub subpath: String,
    /// Bytes of a tmpfs; 0 means no limit.
    #[prost(uint64, tag = "13")]
    pub tmpfs_size: u64,
    /// Mode of a tmpfs; 0 means 01777.
    #[prost(uint32, tag = "14")]
    pub tmpfs_mode: u32,
    /// "default", "consistent", "cached" or "delegated"; without effect on Linux, as in Docker.
    #[prost(string, tag = "15")]
    pub consistency: String,
    /// Read-only binds also make the mounts below them read-only, or fail.
    #[prost(bool, tag = "16")]
    pub read_only_force_recursive: bool,
    /// Read-only binds leave the mounts below them as they are.
    #[prost(bool, tag = "17")]
    pub read_only_non_recursive: bool,
}

/// Kind of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MountKind {
    /// A path of the host.
    Bind = 0,
    /// A volume.
    Volume = 1,
    /// Memory.
    Tmpfs = 2,
    /// A Windows pipe; always refused.
    NamedPipe = 3,
    /// A cluster volume.
    Cluster = 4,
    /// An image.
    Image = 5,
}

/// How a container is found healthy.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` and arguments, or `CMD-SHELL` and a command; empty means the image's.
    #[prost(string, repeated, tag = "1")]
    pub test: Vec<String>,
    /// Nanoseconds between checks; 0 means 30 s.
    #[prost(uint64, tag = "2")]
    pub interval_ns: u64,
    /// Nanoseconds until a check counts as failed; 0 means 30 s.
    #[prost(uint64, tag = "3")]
    pub timeout_ns: u64,
    /// Nanoseconds after the start in which failures do not count.
    #[prost(uint64, tag = "4")]
    pub start_period_ns: u64,
    /// Nanoseconds between checks in the start period; 0 means 5 s.
    #[prost(uint64, tag = "5")]
    pub start_interval_ns: u64,
    /// Failures in a row that make it unhealthy; 0 means 3.
    #[prost(uint32, tag = "6")]
    pub retries: u32,
}

/// Name resolution of a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DnsConfig {
    /// Upstream servers.
    #[prost(string, repeated, tag = "1")]
    pub nameservers: Vec<String>,
    /// Search domains.
    #[prost(string, repeated, tag = "2")]
    pub search: Vec<String>,
    /// Resolver options.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
}

/// A secret or a config in a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PayloadReference {
    /// Id of the secret or config.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// File name or path in the container.
    #[prost(string, tag = "3")]
    pub file: String,
    /// Owner, a number as text.
    #[prost(string, tag = "4")]
    pub uid: String,
    /// Group, a number as text.
    #[prost(string, tag = "5")]
    pub gid: String,
    /// Mode bits.
    #[prost(uint32, tag = "6")]
    pub mode: u32,
    /// A config that the runtime itself reads (a credential spec) and that has no file.
    #[prost(bool, tag = "7")]
    pub runtime_target: bool,
}

impl PayloadReference {
    /// Where a secret's file appears.
    pub fn secret_path(&self) -> Option<String> {
        Self::path("/run/secrets/", &self.file)
    }

    /// Where a config's file appears.
    pub fn config_path(&self) -> Option<String> {
        Self::path("/", &self.file)
    }

    /// A name that is a path of its own, or below a directory; without `.` and empty parts. `None`: it names no file,
    /// or climbs.
    pub(crate) fn path(below: &str, file: &str) -> Option<String> {
        let whole = if file.starts_with('/') { file.to_owned() } else { format!("{below}{file}") };
        let parts: Vec<&str> = whole.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let named = file.split('/').any(|part| !part.is_empty() && part != ".") && !file.ends_with('/');
        (named && !parts.contains(&"..")).then(|| format!("/{}", parts.join("/")))
    }
}

/// A resource limit.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ulimit {
    /// Name ("nofile").
    #[prost(string, tag = "1")]
    pub name: String,
    /// Soft limit; -1 means none.
    #[prost(int64, tag = "2")]
    pub soft: i64,
    /// Hard limit; -1 means none.
    #[prost(int64, tag = "3")]
    pub hard: i64,
}
