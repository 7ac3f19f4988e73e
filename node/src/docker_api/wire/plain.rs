//! `POST /containers/create`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Healthcheck, Map, Mount, Ulimit, wire};

wire! {
    /// A container that belongs to no service.
    PlainContainer {
        "Image" image: String,
        "Cmd" cmd: Vec<String>,
        "Entrypoint" entrypoint: Vec<String>,
        "Env" env: Vec<String>,
        "Hostname" hostname: String,
        "User" user: String,
        "WorkingDir" working_dir: String,
        "Labels" labels: Map,
        "Tty" tty: bool,
        "OpenStdin" open_stdin: bool,
        "StdinOnce" stdin_once: bool,
        "StopSignal" stop_signal: String,
        "StopTimeout" stop_timeout: i64,
        "Healthcheck" healthcheck: Healthcheck,
        "Volumes" volumes: BTreeMap<String, Value>,
    }

    /// What of it concerns its host.
    HostConfig {
        "Binds" binds: Vec<String>,
        "NetworkMode" network_mode: String,
        "PortBindings" port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
        "RestartPolicy" restart_policy: ContainerRestartPolicy,
        "AutoRemove" auto_remove: bool,
        "LogConfig" log_config: ContainerLogConfig,
        "CapAdd" cap_add: Vec<String>,
        "CapDrop" cap_drop: Vec<String>,
        "Dns" dns: Vec<String>,
        "DnsOptions" dns_options: Vec<String>,
        "DnsSearch" dns_search: Vec<String>,
        "ExtraHosts" extra_hosts: Vec<String>,
        "GroupAdd" group_add: Vec<String>,
        "OomScoreAdj" oom_score_adj: i64,
        "ReadonlyRootfs" readonly_rootfs: bool,
        "SecurityOpt" security_opt: Vec<String>,
        "Tmpfs" tmpfs: Map,
        "Ulimits" ulimits: Vec<Ulimit>,
        "Mounts" mounts: Vec<Mount>,
        "Init" init: bool,
        "Sysctls" sysctls: Map,
        "Memory" memory: i64,
        "MemoryReservation" memory_reservation: i64,
        "MemorySwap" memory_swap: i64,
        "MemorySwappiness" memory_swappiness: i64,
        "NanoCpus" nano_cpus: i64,
        "PidsLimit" pids_limit: i64,
        "ShmSize" shm_size: i64,
        "CgroupnsMode" cgroupns_mode: String,
        "IpcMode" ipc_mode: String,
        "Isolation" isolation: String,
    }

    /// Where a port of a container is published.
    PortBinding { "HostIp" host_ip: String, "HostPort" host_port: String }

    /// When a container that has ended is started again.
    ContainerRestartPolicy { "Name" name: String, "MaximumRetryCount" maximum_retry_count: i64 }

    /// Where the output of a container goes.
    ContainerLogConfig { "Type" kind: String, "Config" config: Map }
}
