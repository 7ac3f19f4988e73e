//! `GET /containers/{id}/json`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, State};
use deploy::model::{HOST_NETWORK, NONE_NETWORK, NetworkAttachment, NetworkId, NetworkMode, Task};
use deploy::store::Store;
use runtime::{
    ContainerConfig, ContainerDetail, ContainerState, LogConfig, LogForward, LogTarget, MountKind, Propagation, Status,
};
use serde_json::{Map, Value, json};

use super::super::App;
use super::super::convert::nanos_to_wire;
use super::super::error::ApiError;
use super::super::extract::Params;
use super::super::predefined;
use super::list::Sizes;
use super::{find, health, list, plain};
use crate::agent::health::shown;
use crate::agent::{IMAGE_LABEL, IMAGE_NAME_LABEL, is_plain};
use crate::engine::{Consistency, Engine};

/// What ids mean: images of this host, and networks where there is a manager here.
pub(super) struct Names {
    images: BTreeMap<String, String>,
    store: Option<Store>,
}

impl Names {
    pub(super) async fn read<E: Engine>(app: &App<E>) -> Self {
        let images = app.engine.images();
        let listed = tokio::task::spawn_blocking(move || images.list()).await.unwrap_or_default();
        let names =
            listed.into_iter().filter_map(|image| Some((image.id.to_string(), image.references.first()?.to_string())));
        // On a worker the networks are called by their ids.
        Self { images: names.collect(), store: app.engine.store(Consistency::Local).await.ok() }
    }

    /// The name of a container's image, as the task has it or as this host calls it, and its id.
    pub(super) fn of(&self, state: &ContainerState, task: Option<&Task>) -> (String, String) {
        let id = state.labels.get(IMAGE_LABEL).cloned().unwrap_or_default();
        let name = match (task, self.images.get(&id)) {
            (Some(task), _) => task.spec.container.image.clone(),
            (None, _) if is_plain(&state.labels) => {
                state.labels.get(IMAGE_NAME_LABEL).cloned().unwrap_or_else(|| id.clone())
            }
            (None, Some(name)) => name.clone(),
            (None, None) => id.clone(),
        };
        (name, id)
    }

    fn network<'a>(&'a self, id: &'a deploy::model::NetworkId) -> &'a str {
        self.store.as_ref().and_then(|store| store.network(id)).map_or(id.as_str(), |network| &network.spec.name)
    }
}

pub(in super::super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let (containers, detail) = find::detail(&app, &id).await?;
    let (names, task) = (Names::read(&app).await, find::task(&app, &detail.state).await);
    let execs = containers.execs_of(&detail.state.id);
    let mut object = object(&detail, &names, task.as_ref(), &execs);
    let view = plain::view(&app, &detail.state);
    if let Some(view) = &view {
        plain::put(view, &mut object);
    }
    if let Some(health) = health::of(&containers.runtime, &detail.state).await {
        object["State"]["Health"] = health::object(&health);
    }
    let (images, image) = (app.engine.images(), names.of(&detail.state, None).1);
    let resolved = tokio::task::spawn_blocking(move || images.resolve(&image)).await.ok().and_then(Result::ok);
    let of_image = resolved.and_then(|image| image.config.healthcheck);
    let spec = task.as_ref().map(|task| &task.spec).or(view.as_ref().map(|view| &view.record.spec));
    let of_service = spec.and_then(|spec| spec.container.healthcheck.as_ref());
    if let Some(check) = shown(of_service, of_image.as_ref()) {
        object["Config"]["Healthcheck"] = check;
    }
    if params.flag("size") {
        Sizes::read(&app).await.put(&containers.runtime, &detail.state, &mut object).await;
    }
    Ok(Json(object))
}

fn object(detail: &ContainerDetail, names: &Names, task: Option<&Task>, execs: &[String]) -> Value {
    let (state, config) = (&detail.state, &detail.config);
    let (image, image_id) = names.of(state, task);
    let (path, args) = config.args.split_first().map_or(("", &[][..]), |(path, args)| (path.as_str(), args));
    json!({
        "Id": state.id,
        "Created": time(Some(state.created_at)),
        "Path": path,
        "Args": args,
        "State": state_object(state),
        "Image": image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        // A directory: the log is in numbered files.
        "LogPath": detail.log_dir.display().to_string(),
        "Name": format!("/{}", find::name(state)),
        "RestartCount": 0,
        "Driver": "overlayfs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": host_config(config, task),
        "GraphDriver": {"Name": "overlayfs", "Data": null},
        "Mounts": mounts(config),
        "Config": {
            "Hostname": config.hostname,
            "Domainname": "",
            "User": config.user,
            "AttachStdin": false,
            "AttachStdout": false,
            "AttachStderr": false,
            "Tty": config.tty,
            "OpenStdin": config.open_stdin,
            "StdinOnce": config.stdin_once,
            "Env": config.env,
            "Cmd": args,
            "Image": image,
            "Volumes": null,
            "WorkingDir": config.cwd,
            "Entrypoint": [path],
            "Labels": config.labels,
            "StopSignal": config.stop_signal,
        },
        "NetworkSettings": {
            "SandboxID": "",
            "SandboxKey": "",
            "Ports": {},
            "Networks": networks(names, task),
        },
    })
}

fn state_object(state: &ContainerState) -> Value {
    let (code, oom, finished, error) = match &state.status {
        Status::Exited(exit) => {
            let error =
                if exit.shim_lost { "the container's shim was lost, and how it ended is not known" } else { "" };
            (exit.code, exit.oom_killed, Some(exit.finished_at), error)
        }
        _ => (0, false, None, ""),
    };
    json!({
        "Status": list::word(state),
        "Running": find::is_running(state),
        "Paused": state.paused,
        "Restarting": false,
        "OOMKilled": oom,
        "Dead": false,
        "Pid": if find::is_running(state) { state.pid.unwrap_or(0) } else { 0 },
        "ExitCode": code,
        "Error": error,
        "StartedAt": time(state.started_at),
        "FinishedAt": time(finished),
    })
}

/// Docker's form of a time, and of none.
pub(super) fn time(at: Option<SystemTime>) -> String {
    match at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        Some(since) => nanos_to_wire(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
        None => "0001-01-01T00:00:00Z".to_owned(),
    }
}

/// Docker's name of where a container's output goes. Files are all of one kind here.
fn log_driver(log: &LogConfig) -> &'static str {
    match &log.forward {
        Some(LogForward { target: LogTarget::Journal(_), .. }) => "journald",
        Some(LogForward { target: LogTarget::Syslog { .. }, .. }) => "syslog",
        None if log.files => "json-file",
        None => "none",
    }
}

/// Docker's word for what a container is connected to. What only its task says is known while the task is this host's.
pub(super) fn network_mode(config: &ContainerConfig, task: Option<&Task>) -> &'static str {
    match task.map(|task| task.spec.network_mode()) {
        _ if config.host_network => HOST_NETWORK,
        Some(NetworkMode::None) => NONE_NETWORK,
        _ => "default",
    }
}

fn host_config(config: &ContainerConfig, task: Option<&Task>) -> Value {
    let ulimits: Vec<Value> = config
        .ulimits
        .iter()
        .map(|limit| json!({"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}))
        .collect();
    json!({
        "NetworkMode": network_mode(config, task),
        "LogConfig": {
            "Type": log_driver(&config.log),
            "Config": {"max-size": config.log.max_size.to_string(), "max-file": config.log.max_files.to_string()},
        },
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": false,
        "CapAdd": config.capabilities.add,
        "CapDrop": config.capabilities.drop,
        "GroupAdd": config.groups,
        "Privileged": false,
        "ReadonlyRootfs": config.readonly_root,
        "OomScoreAdj": config.oom_score_adj,
        "Init": config.init,
        "Sysctls": config.sysctls,
        "Ulimits": ulimits,
        "NanoCpus": config.resources.cpu_limit_nanos.unwrap_or(0),
        "Memory": config.resources.memory_limit.unwrap_or(0),
        "MemoryReservation": config.resources.memory_reservation.unwrap_or(0),
        "PidsLimit": config.resources.pids_limit,
        "SecurityOpt": if config.no_new_privileges { json!(["no-new-privileges"]) } else { Value::Null },
    })
}

/// Docker's list of mounts.
pub(super) fn mounts(config: &ContainerConfig) -> Vec<Value> {
    let one = |mount: &runtime::Mount| {
        let (kind, source, propagation) = match &mount.kind {
            MountKind::Bind { source, propagation, .. } => {
                let propagation = match propagation {
                    Propagation::RPrivate => "rprivate",
                    Propagation::Private => "private",
                    Propagation::RSlave => "rslave",
                    Propagation::Slave => "slave",
                    Propagation::RShared => "rshared",
                    Propagation::Shared => "shared",
                };
                ("bind", source.display().to_string(), propagation)
            }
            MountKind::Tmpfs { .. } => ("tmpfs", String::new(), ""),
            MountKind::Volume(volume) => {
                ("volume", volume.source.join(&volume.subpath).display().to_string(), "rprivate")
            }
        };
        let mut object = json!({
            "Type": kind,
            "Source": source,
            "Destination": mount.target.display().to_string(),
            "Mode": "",
            "RW": !mount.readonly,
            "Propagation": propagation,
        });
        if let MountKind::Volume(volume) = &mount.kind {
            object["Name"] = volume.name.as_str().into();
            object["Driver"] = "local".into();
        }
        object
    };
    config.mounts.iter().map(one).collect()
}

/// The networks of a task by name, with its addresses.
pub(super) fn networks(names: &Names, task: Option<&Task>) -> Map<String, Value> {
    let own = task.and_then(|task| match task.spec.network_mode() {
        NetworkMode::Cluster => None,
        NetworkMode::Host => Some(HOST_NETWORK),
        NetworkMode::None => Some(NONE_NETWORK),
    });
    let own = own.map(|name| NetworkAttachment { network: NetworkId::new(predefined::id(name)), ..Default::default() });
    let attachments = task.into_iter().flat_map(|task| &task.attachments).chain(&own);
    let one = |attachment: &NetworkAttachment| {
        let (address, prefix) = attachment.address.split_once('/').unwrap_or((&attachment.address, "0"));
        let (address6, prefix6) = attachment.address6.split_once('/').unwrap_or((&attachment.address6, "0"));
        let network = json!({
            "NetworkID": attachment.network.as_str(),
            "EndpointID": "",
            "Gateway": "",
            "IPAddress": address,
            "IPPrefixLen": prefix.parse::<u8>().unwrap_or(0),
            "IPv6Gateway": "",
            "GlobalIPv6Address": address6,
            "GlobalIPv6PrefixLen": prefix6.parse::<u8>().unwrap_or(0),
            "MacAddress": "",
            "Aliases": attachment.aliases,
            "Links": null,
            "DriverOpts": null,
            "IPAMConfig": null,
            "DNSNames": null,
        });
        let id = attachment.network.as_str();
        (predefined::find(id).unwrap_or_else(|| names.network(&attachment.network)).to_owned(), network)
    };
    attachments.map(one).collect()
}

#[cfg(test)]
mod tests {
    use deploy::model::NetworkAttachmentConfig;
    use runtime::SyslogAddress;

    use super::*;

    #[test]
    fn networks_by_their_modes() {
        let mut task = Task::default();
        let mut config = ContainerConfig::default();
        assert_eq!([network_mode(&config, None), network_mode(&config, Some(&task))], ["default"; 2]);
        task.spec.networks = vec![NetworkAttachmentConfig { target: NONE_NETWORK.into(), ..Default::default() }];
        assert_eq!(network_mode(&config, Some(&task)), "none");
        task.spec.networks[0].target = "back".into();
        assert_eq!(network_mode(&config, Some(&task)), "default");
        config.host_network = true;
        assert_eq!(network_mode(&config, None), "host");
    }

    #[test]
    fn log_drivers_by_their_names() {
        let forward = |target| LogForward {
            target,
            tag: "web".into(),
            container_name: String::new(),
            image_name: String::new(),
            fields: BTreeMap::new(),
            buffer: LogForward::BUFFER,
        };
        let to = |files, target: Option<LogTarget>| LogConfig {
            files,
            forward: target.map(forward),
            ..LogConfig::default()
        };
        let journal = LogTarget::Journal("/run/systemd/journal/socket".into());
        let syslog = LogTarget::Syslog { address: SyslogAddress::Unix("/dev/log".into()), facility: 3 };
        assert_eq!(log_driver(&LogConfig::default()), "json-file");
        assert_eq!(log_driver(&to(false, None)), "none");
        assert_eq!(log_driver(&to(true, Some(journal))), "journald");
        assert_eq!(log_driver(&to(false, Some(syslog))), "syslog");
    }
}
