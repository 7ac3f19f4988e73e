//! `/_ping`, `/version`, `/info`: who is here, and where it stands.

use std::fs;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use deploy::model::{Node, NodeState};
use deploy::store::Store;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, PRAGMA};
use runtime::{ContainerState, Status};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::App;
use super::convert::{cluster_to_wire, nanos_to_wire};
use super::extract::ApiVersion;
use crate::engine::{Consistency, Engine, Membership};

/// What `/version` says of the platform; the `shoal` client drives nothing that says something else.
pub(crate) const PLATFORM: &str = "Shoal";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Docker's `LocalNodeState`.
fn local_state(membership: &Membership) -> &'static str {
    match membership {
        Membership::Inactive => "inactive",
        Membership::Pending => "pending",
        Membership::Locked => "locked",
        Membership::Active(_) => "active",
        Membership::Error(_) => "error",
    }
}

pub(super) async fn ping<E: Engine>(State(app): State<App<E>>) -> Response {
    let membership = app.engine.membership();
    let swarm = match &membership {
        Membership::Active(member) if member.manager => "active/manager",
        Membership::Active(_) => "active/worker",
        other => local_state(other),
    };
    let headers = [
        (CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
        (CACHE_CONTROL.as_str(), "no-cache, no-store, must-revalidate"),
        (PRAGMA.as_str(), "no-cache"),
        ("Swarm", swarm),
    ];
    (headers, "OK").into_response()
}

/// CPU architecture as Go names it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A small file of the kernel's, without its newline; empty where it cannot be read.
fn kernel_file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

pub(super) async fn version<E: Engine>(State(_): State<App<E>>) -> Json<Value> {
    let (max, min) = (ApiVersion::MAX.to_string(), ApiVersion::MIN.to_string());
    let kernel = kernel_file("/proc/sys/kernel/osrelease");
    let commit = option_env!("SHOAL_GIT_COMMIT").unwrap_or_default();
    Json(json!({
        "Platform": {"Name": PLATFORM},
        "Components": [{
            "Name": "Engine",
            "Version": VERSION,
            "Details": {
                "ApiVersion": max,
                "MinAPIVersion": min,
                "GitCommit": commit,
                // Docker's clients print a line for it; Shoal is not written in Go.
                "GoVersion": "none",
                "Os": "linux",
                "Arch": go_arch(),
                "KernelVersion": kernel,
                "Experimental": "false",
                "BuildTime": "",
            },
        }],
        "Version": VERSION,
        "ApiVersion": max,
        "MinAPIVersion": min,
        "GitCommit": commit,
        "GoVersion": "none",
        "Os": "linux",
        "Arch": go_arch(),
        "KernelVersion": kernel,
        "BuildTime": "",
    }))
}

pub(super) async fn info<E: Engine>(State(app): State<App<E>>) -> Json<Value> {
    let membership = app.engine.membership();
    // Also without a leader: what this manager has is good enough here.
    let store = match &membership {
        Membership::Active(member) if member.manager => app.engine.store(Consistency::Local).await.ok(),
        _ => None,
    };
    let images = app.engine.images();
    let images = tokio::task::spawn_blocking(move || images.list().len()).await.unwrap_or_default();
    let containers = match app.engine.containers() {
        Some(containers) => containers.runtime.list().await,
        None => Vec::new(),
    };
    let count = |is: fn(&ContainerState) -> bool| containers.iter().filter(|state| is(state)).count();
    Json(json!({
        "ID": app.engine.engine_id(),
        "Name": kernel_file("/proc/sys/kernel/hostname"),
        "ServerVersion": VERSION,
        "Containers": containers.len(),
        "ContainersRunning": count(|state| state.status == Status::Running && !state.paused),
        "ContainersPaused": count(|state| state.paused),
        "ContainersStopped": count(|state| state.status != Status::Running),
        "Images": images,
        "Driver": "overlayfs",
        "DriverStatus": [],
        "DockerRootDir": app.engine.data_dir(),
        // Not Docker's; clients ignore what they do not know.
        "Timing": app.engine.timing().to_string(),
        "Plugins": {
            "Volume": ["local"],
            "Network": ["overlay"],
            "Authorization": null,
            "Log": ["journald", "json-file", "local", "none", "syslog"],
        },
        "MemoryLimit": true,
        "PidsLimit": true,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": cgroup_version(),
        "KernelVersion": kernel_file("/proc/sys/kernel/osrelease"),
        "OperatingSystem": os_release("PRETTY_NAME"),
        "OSVersion": os_release("VERSION_ID"),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": memory_total(),
        "Labels": app.engine.labels(),
        "ExperimentalBuild": false,
        "Debug": false,
        "LiveRestoreEnabled": true,
        "SystemTime": u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).map(nanos_to_wire).ok(),
        "Runtimes": {"shoal": {"path": "shoal"}},
        "DefaultRuntime": "shoal",
        "SecurityOptions": security_options(app.engine.remaps_users()),
        "Warnings": store.as_ref().map(warnings).unwrap_or_default(),
        "Swarm": swarm_info(&app.engine.manager_view(), &membership, store.as_ref()),
    }))
}

/// What confines every container that does not ask otherwise, in Docker's words.
fn security_options(remaps_users: bool) -> Vec<&'static str> {
    let own_users = remaps_users.then_some("name=userns");
    ["name=seccomp,profile=builtin", "name=cgroupns"].into_iter().chain(own_users).collect()
}

/// What is not as it should be with hosts that are there.
fn warnings(store: &Store) -> Vec<String> {
    let remarked =
        |node: &&std::sync::Arc<Node>| node.status.state() == NodeState::Ready && !node.status.message.is_empty();
    let warning =
        |node: &std::sync::Arc<Node>| format!("WARNING: host {}: {}", node.description.hostname, node.status.message);
    store.nodes().filter(remarked).map(warning).collect()
}

fn swarm_info(view: &crate::engine::ManagerView, membership: &Membership, store: Option<&Store>) -> Value {
    let mut info = json!({
        "NodeID": "",
        "NodeAddr": "",
        "LocalNodeState": local_state(membership),
        "ControlAvailable": false,
        "Error": "",
        "RemoteManagers": null,
    });
    match membership {
        Membership::Inactive | Membership::Pending | Membership::Locked => {}
        Membership::Error(text) => info["Error"] = text.as_str().into(),
        Membership::Active(member) => {
            info["NodeID"] = member.node_id.as_str().into();
            info["NodeAddr"] = member.addr.as_str().into();
            info["ControlAvailable"] = member.manager.into();
            info["RemoteManagers"] = member
                .managers
                .iter()
                .map(|(id, addr)| json!({"NodeID": id.as_str(), "Addr": addr}))
                .collect::<Vec<_>>()
                .into();
            if member.manager && view.leader.is_none() {
                info["Error"] = crate::engine::EngineError::NoLeader.to_string().into();
            }
        }
    }
    if let Some(store) = store {
        info["Nodes"] = store.nodes().count().into();
        info["Managers"] = store.nodes().filter(|n| n.manager.is_some()).count().into();
        if let Some(cluster) = store.cluster() {
            info["Cluster"] = json!(cluster_to_wire(cluster, false));
        }
    }
    info
}

fn cgroup_version() -> &'static str {
    // The unified hierarchy has this file at its root; in hybrid mode it is mounted elsewhere.
    if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { "2" } else { "1" }
}

fn os_release(key: &str) -> String {
    let text = kernel_file("/etc/os-release");
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
        .unwrap_or_default()
}

/// Bytes of memory of the host.
fn memory_total() -> u64 {
    let text = kernel_file("/proc/meminfo");
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    kib.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or_default().saturating_mul(1024)
}
