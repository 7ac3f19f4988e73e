//! Containers that belong to no service: what makes, starts and removes them. Tasks' containers are the cluster's, and
//! say so.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use overlay_net::kernel::mac_of;
use runtime::image::ImageErrorKind;
use runtime::{ContainerState, RuntimeError, Signal};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::{oneshot, watch};
use tonic::Code;

use super::super::App;
use super::super::convert::{name_from_wire, plain_from_wire, update_from_wire};
use super::super::error::ApiError;
use super::super::extract::{JsonBody, Params};
use super::super::host_networks::mac;
use super::super::image_prune::{all_labels, until};
use super::super::local_networks;
use super::actions;
use super::find::{self, failed, is_running};
use crate::agent::Plain;
use crate::agent::plain::{PlainError, Restart, Streams, View, Wanted};
use crate::containers::Containers;
use crate::engine::Engine;

type Done = Result<StatusCode, ApiError>;

/// Whether a container is one of these.
pub(super) fn is_plain(state: &ContainerState) -> bool {
    crate::agent::is_plain(&state.labels)
}

/// A failure as Docker says it.
fn refused(error: PlainError) -> ApiError {
    match &error {
        PlainError::NameTaken { .. }
        | PlainError::Running(_)
        | PlainError::Restarting(_)
        | PlainError::Paused
        | PlainError::Stopped(_)
        | PlainError::KnownByName { .. }
        | PlainError::RemovedAtEnd
        | PlainError::Unreadable(_)
        | PlainError::TooManyListeners => ApiError::conflict(error.to_string()),
        PlainError::NotFound(id) => find::no_such(id),
        PlainError::Local(error) => local_networks::of(error.clone()),
        PlainError::AddressElsewhere(_) => ApiError::not_supported(error.to_string()),
        PlainError::SameName | PlainError::Config(_) | PlainError::Mount(_) => ApiError::invalid(crate::chain(&error)),
        // Docker's clients look for parts of these, and make an exit code of what they find.
        PlainError::Runtime(RuntimeError::Start { command, reason, .. }) => ApiError::invalid(format!(
            "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create \
             failed: unable to start container process: error during container init: exec: {command:?}: {reason}: unknown"
        )),
        PlainError::Runtime(error) => failed(error),
        PlainError::Place { reason, .. } => match reason.code() {
            Code::PermissionDenied => ApiError::forbidden(error.to_string()),
            Code::NotFound => ApiError::not_found(error.to_string()),
            Code::InvalidArgument => ApiError::invalid(error.to_string()),
            _ => ApiError::internal(error.to_string()),
        },
        PlainError::Image(error) if error.kind() == ImageErrorKind::NotFound => ApiError::not_found(error.to_string()),
        _ => ApiError::internal(crate::chain(&error)),
    }
}

pub(in super::super) async fn create<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let plain = app.engine.plain()?;
    if let Some(platform) = params.get("platform").filter(|platform| !platform.is_empty()) {
        own_platform(platform)?;
    }
    let mut wish = plain_from_wire(body, params.get("name"))?;
    let (images, name) = (app.engine.images(), wish.spec.container.image.clone());
    let wanted = name.clone();
    let resolved = tokio::task::spawn_blocking(move || images.resolve(&wanted)).await;
    match resolved.map_err(|error| ApiError::internal(error.to_string()))? {
        Ok(_) => {}
        // This is what makes `docker run` pull.
        Err(error) if error.kind() == ImageErrorKind::NotFound => return Err(no_image(&name)),
        Err(error) => return Err(ApiError::internal(crate::chain(&error))),
    }
    if wish.no_entrypoint && wish.spec.container.command.is_empty() {
        return Err(ApiError::invalid("no command specified"));
    }
    wish.spec.container.image = name;
    let id = plain.create(wish).await.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(json!({"Id": id, "Warnings": []}))))
}

fn no_image(name: &str) -> ApiError {
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = if last.contains([':', '@']) { "" } else { ":latest" };
    ApiError::not_found(format!("No such image: {name}{tag}"))
}

/// Images are of this host's platform.
fn own_platform(platform: &str) -> Result<(), ApiError> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    if [format!("linux/{own}"), own.to_owned(), "linux".to_owned()].iter().any(|fine| fine == platform) {
        return Ok(());
    }
    Err(ApiError::not_supported(format!("platform {platform:?} is not supported: this host runs linux/{own}")))
}

/// The handle, for a container that is one of these.
fn of<E: Engine>(app: &App<E>, state: &ContainerState) -> Result<Option<Plain>, ApiError> {
    match is_plain(state) {
        true => Ok(Some(app.engine.plain()?)),
        false => Ok(None),
    }
}

/// Already running: nothing to do. A task's is started by the cluster.
pub(in super::super) async fn start<E: Engine>(State(app): State<App<E>>, Path(id): Path<String>) -> Done {
    let (_, state) = find::find(&app, &id).await?;
    let started = match of(&app, &state)? {
        Some(plain) => plain.start(&state.id).await.map_err(refused)?,
        None if is_running(&state) => false,
        None => {
            return Err(actions::of_task(
                &state,
                "started",
                "it starts a new one as the service's restart policy says",
            ));
        }
    };
    Ok(if started { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED })
}

pub(in super::super) async fn restart<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Done {
    let (_, state) = find::find(&app, &id).await?;
    let Some(plain) = of(&app, &state)? else {
        return Err(actions::of_task(
            &state,
            "restarted",
            "stop it, and the service's restart policy decides on a new one; or have all of them replaced with \
             `service update --force`",
        ));
    };
    let signal = actions::signal(&params)?;
    let grace = actions::grace(&params)?.unwrap_or_else(|| grace_of(&plain, &state.id));
    plain.restart(&state.id, signal, grace).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in super::super) async fn rename<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Done {
    let name = name_from_wire(params.get("name").unwrap_or_default())?;
    let name = name.ok_or_else(|| ApiError::invalid("Neither old nor new names may be empty"))?.to_owned();
    let (_, state) = find::find(&app, &id).await?;
    let Some(plain) = of(&app, &state)? else {
        return Err(actions::of_task(&state, "renamed", "its name is made of the service's"));
    };
    plain.rename(&state.id, name).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(in super::super) async fn update<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let (restart, max_restarts) = update_from_wire(body)?;
    let (_, state) = find::find(&app, &id).await?;
    let Some(plain) = of(&app, &state)? else {
        return Err(actions::of_task(&state, "updated", "update the service"));
    };
    plain.update(&state.id, restart, max_restarts).await.map_err(refused)?;
    Ok(Json(json!({"Warnings": null})))
}

pub(in super::super) async fn remove<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Done {
    if params.flag("link") {
        return Err(ApiError::not_supported("Shoal has no links between containers"));
    }
    let (containers, state) = find::find(&app, &id).await?;
    let Some(plain) = of(&app, &state)? else {
        return Err(actions::of_task(&state, "removed", "remove or scale the service"));
    };
    let (id, force, volumes) = (state.id, params.flag("force"), params.flag("v"));
    let removed = containers.tasks.spawn(async move { plain.remove(&id, force, volumes).await.map_err(refused) });
    removed.await.map_err(|_| ApiError::internal("the daemon stops"))??;
    Ok(StatusCode::NO_CONTENT)
}

/// What its user said, or Docker's ten seconds.
fn grace_of(plain: &Plain, id: &str) -> Duration {
    let said = plain.view(id).and_then(|view| view.record.spec.container.stop_grace_ns);
    said.map_or(actions::GRACE, Duration::from_nanos)
}

/// Stops it; whether there was anything to stop. `None`: it is a task's.
pub(super) async fn stop<E: Engine>(
    app: &App<E>,
    state: &ContainerState,
    signal: Option<Signal>,
    grace: Option<Duration>,
) -> Result<Option<bool>, ApiError> {
    let Some(plain) = of(app, state)? else { return Ok(None) };
    let grace = grace.unwrap_or_else(|| grace_of(&plain, &state.id));
    plain.stop(&state.id, signal, grace).await.map(Some).map_err(refused)
}

/// Its user sends it a signal: one that is to end it ends its restarts, too.
pub(super) async fn will_signal<E: Engine>(
    app: &App<E>,
    containers: &Containers,
    state: &ContainerState,
    signal: Signal,
) -> Result<(), ApiError> {
    let Some(plain) = of(app, state)? else { return Ok(()) };
    let detail = containers.runtime.inspect(&state.id).await.map_err(|error| failed(&error))?;
    if ends(signal, detail.config.stop_signal.as_deref()) {
        plain.will_end(&state.id).await.map_err(refused)?;
    }
    Ok(())
}

/// Whether a signal is one that ends a container with this stop signal.
fn ends(signal: Signal, own: Option<&str>) -> bool {
    let usual = [Signal::KILL, Signal::TERM, Signal::INT, Signal::QUIT];
    usual.contains(&signal) || own.and_then(|own| own.parse().ok()) == Some(signal)
}

/// The streams of one that has ended: those of its next run.
pub(super) async fn attach<E: Engine>(
    app: &App<E>,
    state: &ContainerState,
    wanted: Wanted,
) -> Result<Option<oneshot::Receiver<Result<Streams, RuntimeError>>>, ApiError> {
    match of(app, state)? {
        Some(plain) => plain.attach(&state.id, wanted).await.map(Some).map_err(refused),
        None => Ok(None),
    }
}

/// Whether it has ended and is about to be started again, which counts as running.
pub(super) fn waits<E: Engine>(app: &App<E>, state: &ContainerState) -> bool {
    view(app, state).is_some_and(|view| view.waits)
}

/// Changes whenever a run of it is prepared; `None` for a task's, which runs once.
pub(super) fn runs<E: Engine>(app: &App<E>, state: &ContainerState) -> Option<watch::Receiver<()>> {
    of(app, state).ok().flatten()?.runs(&state.id)
}

/// What is shown of it; `None` for a task's.
pub(super) fn view<E: Engine>(app: &App<E>, state: &ContainerState) -> Option<View> {
    of(app, state).ok().flatten()?.view(&state.id)
}

/// Its ports, as lists have them.
pub(super) fn ports(view: &View) -> Vec<Value> {
    let task = view.record.task();
    let published = task.host_ports().filter(|_| view.connected);
    published
        .map(|port| {
            json!({
                "IP": "0.0.0.0",
                "PrivatePort": port.target,
                "PublicPort": port.published,
                "Type": protocol(port.protocol()),
            })
        })
        .collect()
}

fn protocol(protocol: deploy::model::PortProtocol) -> &'static str {
    match protocol {
        deploy::model::PortProtocol::Tcp => "tcp",
        deploy::model::PortProtocol::Udp => "udp",
        deploy::model::PortProtocol::Sctp => "sctp",
    }
}

/// Puts what only these have into an inspected object.
pub(super) fn put(view: &View, object: &mut Value) {
    let record = &view.record;
    let policy = match record.restart() {
        Restart::No => "no",
        Restart::OnFailure => "on-failure",
        Restart::Always => "always",
        Restart::UnlessStopped => "unless-stopped",
    };
    object["RestartCount"] = record.restarts.into();
    if view.waits {
        object["State"]["Running"] = true.into();
        object["State"]["Restarting"] = true.into();
        object["State"]["Status"] = "restarting".into();
    }
    // As sent, but for what the engine says itself.
    if let Ok(Value::Object(sent)) = serde_json::from_str::<Value>(&record.host_config) {
        let own = object["HostConfig"].as_object().cloned().unwrap_or_default();
        let mut host: Map<String, Value> = sent;
        host.extend(own);
        host.insert("AutoRemove".into(), record.auto_remove.into());
        host.insert("NetworkMode".into(), mode(view).into());
        host.insert("RestartPolicy".into(), json!({"Name": policy, "MaximumRetryCount": record.max_restarts}));
        object["HostConfig"] = Value::Object(host);
    }
    if let Some(grace) = record.spec.container.stop_grace_ns {
        object["Config"]["StopTimeout"] = (grace / 1_000_000_000).into();
    }
    let mut ports = Map::new();
    for port in ports_by_target(view) {
        let (key, number) = port;
        let list = ports.entry(key).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(json!({"HostIp": "0.0.0.0", "HostPort": number.to_string()}));
        }
    }
    object["NetworkSettings"]["Ports"] = Value::Object(ports);
    let address = view.address.map(|address| address.to_string()).unwrap_or_default();
    object["NetworkSettings"]["IPAddress"] = address.into();
    object["NetworkSettings"]["Networks"] = Value::Object(networks(view));
}

fn ports_by_target(view: &View) -> Vec<(String, u32)> {
    let task = view.record.task();
    let published = task.host_ports().filter(|_| view.connected);
    published.map(|port| (format!("{}/{}", port.target, protocol(port.protocol())), port.published)).collect()
}

/// The network as its user called it.
pub(super) fn mode(view: &View) -> &str {
    view.record.spec.networks.first().map_or("bridge", |network| &network.target)
}

/// The same for a key of Docker's map: one of this host by its name, whatever its user called it.
fn network_name(view: &View) -> &str {
    view.local.as_ref().map_or_else(|| mode(view), |(_, name)| name)
}

/// Whether it is on a network of the cluster.
fn needs_place(view: &View) -> bool {
    view.record.spec.cluster_networks().next().is_some()
}

/// Docker's map of its networks.
pub(super) fn networks(view: &View) -> Map<String, Value> {
    let place = view.record.attachments.first();
    let own = view.address.map(|address| address.to_string()).unwrap_or_default();
    let address = place.map_or(own, |place| place.address.clone());
    let address6 = place.map(|place| place.address6.as_str()).unwrap_or_default();
    let split = |address: &str| -> (String, u8) {
        let (address, prefix) = address.split_once('/').unwrap_or((address, "0"));
        (address.to_owned(), prefix.parse().unwrap_or(0))
    };
    let ((address, prefix), (address6, prefix6)) = (split(&address), split(address6));
    // One of the cluster's has an id, which is told with the place.
    let own = || match needs_place(view) {
        true => String::new(),
        false => super::super::predefined::id(mode(view)),
    };
    let id = place
        .map(|place| place.network.to_string())
        .or_else(|| view.local.as_ref().map(|(id, _)| id.clone()))
        .unwrap_or_else(own);
    let own_mac = address.parse().ok().filter(|_| view.local.is_some()).map(|address| mac(mac_of(address)));
    let asked = view.record.addresses.get(mode(view));
    let network = json!({
        "NetworkID": id,
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": address,
        "IPPrefixLen": prefix,
        "IPv6Gateway": "",
        "GlobalIPv6Address": address6,
        "GlobalIPv6PrefixLen": prefix6,
        "MacAddress": own_mac.unwrap_or_default(),
        "Aliases": view.record.spec.networks.first().map(|network| network.aliases.as_slice()).unwrap_or_default(),
        "Links": null,
        "DriverOpts": null,
        "IPAMConfig": asked.map(|address| json!({"IPv4Address": address})),
        "DNSNames": null,
    });
    Map::from_iter([(network_name(view).to_owned(), network)])
}

/// `POST /containers/prune`: those that do not run, as Docker does.
pub(in super::super) async fn prune<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let filters = params.filters(&["label", "label!", "until"])?;
    let until = until(&filters)?;
    let containers = find::here(&app, "")?;
    let (mut deleted, mut reclaimed) = (Vec::new(), 0);
    for state in containers.runtime.list().await {
        let Some(plain) = of(&app, &state)? else { continue };
        let created = OffsetDateTime::from(state.created_at).unix_timestamp();
        let wanted = all_labels(filters.values("label"), &state.labels, true)
            && all_labels(filters.values("label!"), &state.labels, false)
            && until.is_none_or(|until| created < until);
        if is_running(&state) || waits(&app, &state) || !wanted {
            continue;
        }
        let written = containers.runtime.written(&state.id).await.unwrap_or_default();
        // One that has been started meanwhile stays.
        if plain.remove(&state.id, false, false).await.is_ok() {
            deleted.push(state.id);
            reclaimed += written;
        }
    }
    Ok(Json(json!({"ContainersDeleted": deleted, "SpaceReclaimed": reclaimed})))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::plain::PlaceError;

    #[test]
    fn a_place_that_is_refused_keeps_its_kind() {
        for (code, status) in [
            (Code::PermissionDenied, StatusCode::FORBIDDEN),
            (Code::NotFound, StatusCode::NOT_FOUND),
            (Code::InvalidArgument, StatusCode::BAD_REQUEST),
            (Code::ResourceExhausted, StatusCode::INTERNAL_SERVER_ERROR),
            (Code::FailedPrecondition, StatusCode::INTERNAL_SERVER_ERROR),
        ] {
            // Whatever its words are.
            let reason = PlaceError::Refused { code, reason: "network x not found".to_owned() };
            let error = refused(PlainError::Place { network: "x".to_owned(), reason });
            let text = format!("Could not attach to network x: rpc error: code = {code:?} desc = network x not found");
            assert_eq!((error.status, error.message), (status, text));
        }
    }

    #[test]
    fn signals_that_end_it() {
        for (signal, own, expected) in [
            ("KILL", None, true),
            ("TERM", Some("USR1"), true),
            ("INT", None, true),
            ("QUIT", None, true),
            ("USR1", Some("SIGUSR1"), true),
            ("USR1", Some("nonsense"), false),
            ("USR1", None, false),
            ("HUP", None, false),
            ("WINCH", Some("TERM"), false),
        ] {
            assert_eq!(ends(signal.parse().unwrap(), own), expected, "{signal} {own:?}");
        }
    }
}
