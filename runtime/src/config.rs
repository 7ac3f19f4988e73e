//! What callers ask of the container half: the runtime's own settings and one container's configuration.
//!
//! `node` converts its tasks into [`ContainerConfig`]; nothing here knows of services or clusters. The values are
//! checked by `plan`, never here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::plan::limits::oci::LinuxResources;
use crate::volume::{PrivateFile, VolumeMount};

/// Where the runtime keeps its things and which binary becomes the shims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Durable state: `containers/<id>/` lives below it. Must be on a filesystem that overlayfs accepts as upper.
    pub data_dir: PathBuf,
    /// Volatile state: the control sockets, `shims/<id>.sock`.
    pub run_dir: PathBuf,
    /// Names this engine's cgroups, `/shoal-<engine id>`; 1 to 64 of `[a-zA-Z0-9_.-]`.
    pub engine_id: String,
    /// The binary whose `main` calls [`crate::dispatch`] first. It is executed as `<shim_exe> __shim ...`.
    pub shim_exe: PathBuf,
}

/// Everything that one container needs. It is stored beside the container, readable by root alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerConfig {
    /// Chosen by the caller; 1 to 64 of `[a-zA-Z0-9_.-]`, starting with a letter or a digit.
    pub id: String,
    /// The caller's own marks, returned by [`crate::Runtime::list`].
    pub labels: BTreeMap<String, String>,
    /// At most 64 bytes; empty means the first 12 characters of the id.
    pub hostname: String,
    /// Unpacked image layers, the lowest first; 1 to 120 absolute paths.
    pub layers: Vec<PathBuf>,
    /// The command; the first one is looked up in the container's `PATH` when it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`. `PATH`, `HOSTNAME` and `HOME` are added when they are missing.
    pub env: Vec<String>,
    /// Made when it is missing; empty means `/`.
    pub cwd: String,
    /// `""`, `user`, `uid`, `user:group`, `uid:gid`; names are looked up inside of the container's root.
    pub user: String,
    /// Further groups, by name or number; at most 32.
    pub groups: Vec<String>,
    /// Mounts the root read-only after its mount points are made.
    pub readonly_root: bool,
    /// Mounted in this order.
    pub mounts: Vec<Mount>,
    /// Contents of the generated files in `/etc`.
    pub files: EtcFiles,
    /// Limits, enforced by cgroups.
    pub resources: Resources,
    /// Changes to Docker's default capabilities.
    pub capabilities: Capabilities,
    /// Sets the kernel's `no_new_privs` before the command runs.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// The AppArmor profile that confines it.
    pub apparmor: AppArmor,
    /// The SELinux label of its processes and files; absent: none is set. Refused where SELinux is not enabled.
    pub selinux: Option<SelinuxLabel>,
    /// Gives it a user namespace: its ids are these of the host. Absent: its users are the host's.
    pub id_mappings: Option<IdMappings>,
    /// Resource limits beside the defaults.
    pub ulimits: Vec<Ulimit>,
    /// Namespaced kernel settings (`net.*`, `kernel.shm*`, `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`).
    pub sysctls: BTreeMap<String, String>,
    /// −1000 to 1000.
    pub oom_score_adj: i32,
    /// What [`crate::Runtime::stop`] sends when it is not told otherwise; SIGTERM when absent.
    pub stop_signal: Option<String>,
    /// Where its output goes.
    pub log: LogConfig,
    /// A process 1 of Shoal's own, which starts the command, forwards signals to it and reaps what is left behind.
    pub init: bool,
    /// The standard streams are a terminal of the container's own, whose output is logged as standard output.
    pub tty: bool,
    /// Files that are kept in memory alone, never on a disk, and appear read-only in the container; at most 1000.
    pub private_files: Vec<PrivateFile>,
    /// The standard input is a pipe that whoever attaches writes to. Otherwise, and without a terminal, it is empty.
    pub open_stdin: bool,
    /// The standard input ends with the first attached client that ends its own.
    pub stdin_once: bool,
    /// It has no network of its own but the host's. Not together with `id_mappings`, since its users would not own that
    /// network, nor with `net.*` in `sysctls`, which would be the host's.
    pub host_network: bool,
    /// What it writes outlives its end and the host's: it may be made to wait for a start again
    /// ([`crate::Runtime::renew`]).
    pub lasting: bool,
}

/// One mount that the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Where, inside of the container: absolute, not `/`. It is resolved inside of the root, whatever links it meets.
    pub target: PathBuf,
    /// Refuses writes through this mount.
    pub readonly: bool,
}

/// What a [`Mount`] mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file of the host.
    Bind {
        /// Absolute; must exist.
        source: PathBuf,
        /// Whether the mounts below it come along.
        recursive: bool,
        /// Whether those are read-only when it is, as Docker has it by default.
        readonly_below: bool,
        /// How later mounts travel.
        propagation: Propagation,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; half of the memory when absent.
        size: Option<u64>,
        /// Permission bits of its root; 0o1777 when absent.
        mode: Option<u32>,
    },
    /// A volume of this host; see [`crate::Volumes`].
    Volume(VolumeMount),
}

/// Mount propagation of a bind mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// Nothing travels, for the whole tree.
    #[default]
    RPrivate,
    /// Nothing travels, for the top mount.
    Private,
    /// The host's later mounts appear, for the whole tree.
    RSlave,
    /// The host's later mounts appear, for the top mount.
    Slave,
    /// Mounts travel both ways, for the whole tree. The source must be on a shared mount of the host.
    RShared,
    /// Mounts travel both ways, for the top mount.
    Shared,
}

/// Contents of the files that the runtime writes and mounts over the image's; at most 1 MiB each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EtcFiles {
    /// `/etc/hosts`
    pub hosts: String,
    /// `/etc/resolv.conf`
    pub resolv_conf: String,
}

/// Limits and reservations; `None` means none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// Billionths of a CPU, at least 1 000 000 (a thousandth; finer ones round up to the kernel's 1 ms in 100 ms).
    pub cpu_limit_nanos: Option<i64>,
    /// Billionths of a CPU, turned into shares or weight.
    pub cpu_reservation_nanos: Option<i64>,
    /// Bytes, at least 6 MiB as with Docker; swap gives nothing beyond it.
    pub memory_limit: Option<i64>,
    /// Bytes that reclaim spares while it can.
    pub memory_reservation: Option<i64>,
    /// Processes and threads, at least 1.
    pub pids_limit: Option<i64>,
    /// Whatever else cgroups can limit; the fields above win.
    pub oci: LinuxResources,
}

/// Changes to the default capabilities: names with or without `CAP_`, or `ALL`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Added to the default set.
    pub add: Vec<String>,
    /// Taken from it.
    pub drop: Vec<String>,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// Docker's default policy.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// A profile in Docker's or OCI's JSON, at most 1 MiB.
    Custom(String),
}

/// The AppArmor profile of a container. Shoal loads none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AppArmor {
    /// `docker-default` where the host has loaded it, else none.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// This one; refused where it is not loaded.
    Named(String),
}

/// An SELinux label; empty parts are those of the host's default for containers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelinuxLabel {
    /// `system_u`
    pub user: String,
    /// `system_r`
    pub role: String,
    /// The type: `container_t`
    pub kind: String,
    /// `s0:c1,c2`
    pub level: String,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMappings {
    /// Users; must map 0. At most 340 ranges.
    pub uids: Vec<IdRange>,
    /// Groups; must map 0. At most 340 ranges.
    pub gids: Vec<IdRange>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first one in the container.
    pub inside: u32,
    /// The first one on the host.
    pub outside: u32,
    /// How many; at least 1.
    pub count: u32,
}

/// One resource limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Docker's names: `nofile`, `nproc`, `core`, ...
    pub name: String,
    /// −1 is unlimited.
    pub soft: i64,
    /// −1 is unlimited.
    pub hard: i64,
}

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Keep it in files beside the container, where [`crate::Runtime::logs`] reads it.
    pub files: bool,
    /// Bytes of one file, at least 4096.
    pub max_size: u64,
    /// Files kept, the one being written included; 1 to 1000.
    pub max_files: u32,
    /// Send it to a log daemon as well.
    pub forward: Option<LogForward>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { files: true, max_size: 10 << 20, max_files: 3, forward: None }
    }
}

/// Records on their way to a log daemon. The container never waits for it: what finds no room in the buffer is dropped
/// and counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogForward {
    /// To whom.
    pub target: LogTarget,
    /// What the records are called there: 1 to 255 bytes without control characters.
    pub tag: String,
    /// The container's name, for targets that have a field for it.
    pub container_name: String,
    /// The image's name, for targets that have a field for it.
    pub image_name: String,
    /// Further fields, for targets that have fields; 16 KiB at the most.
    pub fields: BTreeMap<String, String>,
    /// Bytes that may wait while the target does not take them: 4 KiB to 64 MiB.
    pub buffer: u64,
}

impl LogForward {
    /// Docker's `max-buffer-size` where none is given.
    pub const BUFFER: u64 = 1 << 20;
}

/// A log daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// systemd's journal, in its native protocol, at this socket.
    Journal(PathBuf),
    /// A syslog receiver; messages are as RFC 5424 has them, one a datagram, or each ended by a newline.
    Syslog {
        /// Where it listens.
        address: SyslogAddress,
        /// 0 (`kern`) to 23 (`local7`).
        facility: u8,
    },
}

/// Where a syslog receiver listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogAddress {
    /// A socket in the file system, taking datagrams or else connections.
    Unix(PathBuf),
    /// Datagrams.
    Udp(SocketAddr),
    /// A connection.
    Tcp(SocketAddr),
}
