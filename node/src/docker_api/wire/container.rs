//! The container of a task: Docker's `ContainerSpec` and what is inside of it.

use serde_json::Value;

use super::{Empty, Map, wire};

wire! {
    /// What a container of a task looks like.
    ContainerSpec {
        "Image" image: String,
        "Labels" labels: Map,
        "Command" command: Vec<String>,
        "Args" args: Vec<String>,
        "Hostname" hostname: String,
        "Env" env: Vec<String>,
        "Dir" dir: String,
        "User" user: String,
        "Groups" groups: Vec<String>,
        "Privileges" privileges: Privileges,
        "Init" init: bool,
        "TTY" tty: bool,
        "OpenStdin" open_stdin: bool,
        "ReadOnly" read_only: bool,
        "Mounts" mounts: Vec<Mount>,
        "StopSignal" stop_signal: String,
        "StopGracePeriod" stop_grace_period: i64,
        // Docker's own document spells it `HealthCheck`, its clients and its engine `Healthcheck`.
        #[serde(alias = "HealthCheck")]
        "Healthcheck" healthcheck: Healthcheck,
        "Hosts" hosts: Vec<String>,
        "DNSConfig" dns_config: DnsConfig,
        "Secrets" secrets: Vec<SecretReference>,
        "Configs" configs: Vec<ConfigReference>,
        "Isolation" isolation: String,
        "Sysctls" sysctls: Map,
        "CapabilityAdd" capability_add: Vec<String>,
        "CapabilityDrop" capability_drop: Vec<String>,
        "Ulimits" ulimits: Vec<Ulimit>,
        "OomScoreAdj" oom_score_adj: i64,
    }

    /// Security settings.
    Privileges {
        "CredentialSpec" credential_spec: Value,
        "SELinuxContext" selinux_context: SelinuxContext,
        "Seccomp" seccomp: Seccomp,
        "AppArmor" apparmor: AppArmor,
        "NoNewPrivileges" no_new_privileges: bool,
    }

    /// SELinux.
    SelinuxContext {
        "Disable" disable: bool,
        "User" user: String,
        "Role" role: String,
        "Type" kind: String,
        "Level" level: String,
    }

    /// Seccomp; the profile is base64.
    Seccomp { "Mode" mode: String, "Profile" profile: String }

    /// AppArmor.
    AppArmor { "Mode" mode: String }

    /// A mount.
    Mount {
        "Type" kind: String,
        "Source" source: String,
        "Target" target: String,
        "ReadOnly" read_only: bool,
        "Consistency" consistency: String,
        "BindOptions" bind_options: BindOptions,
        "VolumeOptions" volume_options: VolumeOptions,
        "ImageOptions" image_options: ImageOptions,
        "TmpfsOptions" tmpfs_options: TmpfsOptions,
        "ClusterOptions" cluster_options: Value,
    }

    /// Options of a bind.
    BindOptions {
        "Propagation" propagation: String,
        "NonRecursive" non_recursive: bool,
        "CreateMountpoint" create_mountpoint: bool,
        "ReadOnlyNonRecursive" read_only_non_recursive: bool,
        "ReadOnlyForceRecursive" read_only_force_recursive: bool,
    }

    /// Options of a volume.
    VolumeOptions {
        "NoCopy" no_copy: bool,
        "Labels" labels: Map,
        "Subpath" subpath: String,
        "DriverConfig" driver_config: Driver,
    }

    /// Options of an image mount.
    ImageOptions { "Subpath" subpath: String }

    /// Options of a tmpfs.
    TmpfsOptions { "SizeBytes" size_bytes: i64, "Mode" mode: u32, "Options" options: Value }

    /// A driver and its options.
    Driver { "Name" name: String, "Options" options: Map }

    /// A health check; times are nanoseconds.
    Healthcheck {
        "Test" test: Vec<String>,
        "Interval" interval: i64,
        "Timeout" timeout: i64,
        "StartPeriod" start_period: i64,
        "StartInterval" start_interval: i64,
        "Retries" retries: i64,
    }

    /// Name resolution.
    DnsConfig { "Nameservers" nameservers: Vec<String>, "Search" search: Vec<String>, "Options" options: Vec<String> }

    /// A file that a secret or config becomes.
    FileTarget { "Name" name: String, "UID" uid: String, "GID" gid: String, "Mode" mode: u32 }

    /// A secret in a container.
    SecretReference { "File" file: FileTarget, "SecretID" id: String, "SecretName" name: String }

    /// A config in a container.
    ConfigReference {
        "File" file: FileTarget,
        "Runtime" runtime: Empty,
        "ConfigID" id: String,
        "ConfigName" name: String,
    }

    /// A resource limit.
    Ulimit { "Name" name: String, "Hard" hard: i64, "Soft" soft: i64 }
}

wire! {
    /// `POST /containers/{id}/exec`.
    ExecCreate {
        "AttachStdin" attach_stdin: bool,
        "AttachStdout" attach_stdout: bool,
        "AttachStderr" attach_stderr: bool,
        "ConsoleSize" console_size: Vec<u64>,
        "DetachKeys" detach_keys: String,
        "Tty" tty: bool,
        "Env" env: Vec<String>,
        "Cmd" cmd: Vec<String>,
        "Privileged" privileged: bool,
        "User" user: String,
        "WorkingDir" working_dir: String,
    }

    /// `POST /exec/{id}/start`. `Tty` is as the process was asked for, whatever is said here.
    ExecStart { "Detach" detach: bool, "ConsoleSize" console_size: Vec<u64> }
}
