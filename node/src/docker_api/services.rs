//! `/services`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use deploy::control::{CreateService, Op, RemoveService, UpdateService};
use deploy::model::{DesiredState, NodeAvailability, Service, ServiceMode, ServiceSpec, TaskState};
use deploy::store::Store;
use hyper::StatusCode;
use runtime::image::{ImageErrorKind, Reference};
use serde_json::{Value, json};

use super::App;
use super::convert::{insert_defaults, service_spec_from_wire, service_to_wire};
use super::error::ApiError;
use super::extract::{ApiVersion, JsonBody, Params};
use super::names::free_name;
use super::networks;
use super::resolve::resolve;
use super::wire;
use crate::engine::{Engine, Membership};

/// The service that a user means by an id, a name or the beginning of an id.
pub(super) fn find<'a>(store: &'a Store, wanted: &str) -> Result<&'a Arc<Service>, ApiError> {
    let services: Vec<&Arc<Service>> = store.services().collect();
    resolve("service", wanted, services.iter().copied(), |s| s.id.as_str(), |s| &s.spec.name)
}

fn mode_name(spec: &ServiceSpec) -> &'static str {
    match spec.mode {
        None | Some(ServiceMode::Replicated(_)) => "replicated",
        Some(ServiceMode::Global(_)) => "global",
        Some(ServiceMode::ReplicatedJob(_)) => "replicated-job",
        Some(ServiceMode::GlobalJob(_)) => "global-job",
    }
}

/// How many tasks a service has; `docker service ls` prints it.
fn status(store: &Store, service: &Service) -> wire::ServiceStatus {
    let (mut running, mut wanted, mut completed) = (0u64, 0u64, 0u64);
    for task in store.tasks_of_service(&service.id) {
        let state = task.status.state();
        if task.desired() <= DesiredState::Running {
            wanted += 1;
            running += u64::from(state == TaskState::Running);
        } else if task.desired() == DesiredState::Completed && task.job_iteration == service.job_iteration {
            wanted += u64::from(state != TaskState::Complete);
            running += u64::from(state == TaskState::Running);
            completed += u64::from(state == TaskState::Complete);
        }
    }
    let desired = match &service.spec.mode {
        None | Some(ServiceMode::Replicated(_)) => service.spec.replicas().unwrap_or(1),
        Some(ServiceMode::ReplicatedJob(job)) => job.total_completions.unwrap_or(1),
        Some(ServiceMode::Global(_) | ServiceMode::GlobalJob(_)) => wanted,
    };
    wire::ServiceStatus { running_tasks: Some(running), desired_tasks: Some(desired), completed_tasks: Some(completed) }
}

pub(super) async fn list<E: Engine>(
    State(app): State<App<E>>,
    params: Params,
) -> Result<Json<Vec<wire::Service>>, ApiError> {
    let filters = params.filters(&["id", "name", "label", "mode", "runtime"])?;
    let store = app.store(&params).await?;
    let with_status = params.flag("status");
    let wanted = |s: &&Arc<Service>| {
        filters.prefix("id", s.id.as_str())
            && filters.prefix("name", &s.spec.name)
            && filters.labels("label", &s.spec.labels)
            && filters.exact("mode", mode_name(&s.spec))
            && filters.exact("runtime", "container")
    };
    let services = store.services().filter(wanted).map(|s| {
        let mut w = service_to_wire(s);
        w.service_status = with_status.then(|| status(&store, s));
        w
    });
    Ok(Json(services.collect()))
}

pub(super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<wire::Service>, ApiError> {
    let store = app.store(&params).await?;
    let service = find(&store, &id)?;
    let mut w = service_to_wire(service);
    if params.flag("insertDefaults") {
        insert_defaults(w.spec.get_or_insert_default(), &service.spec);
        if let (Some(spec), Some(previous)) = (&mut w.previous_spec, &service.previous_spec) {
            insert_defaults(spec, previous);
        }
    }
    Ok(Json(w))
}

pub(super) async fn create<E: Engine>(
    State(app): State<App<E>>,
    version: ApiVersion,
    params: Params,
    JsonBody(w): JsonBody<wire::ServiceSpec>,
) -> Result<(StatusCode, Json<wire::IdResponse>), ApiError> {
    let mut spec = service_spec_from_wire(w)?;
    let store = app.store(&params).await?;
    if spec.name.is_empty() {
        spec.name = free_name(&store, rand::random);
    }
    resolve_networks(&store, &mut spec)?;
    require_image(&app, &store, &spec.task.container.image).await?;
    let reply = app.control(Op::CreateService(Box::new(CreateService { spec }))).await?;
    // One string before version 1.44, a list since.
    let (warning, warnings) = match reply.warnings {
        none if none.is_empty() => (None, None),
        some if version < ApiVersion(1, 44) => (Some(some.join("\n")), None),
        some => (None, Some(some)),
    };
    Ok((StatusCode::CREATED, Json(wire::IdResponse { id: Some(reply.id), warnings, warning })))
}

pub(super) async fn update<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(w): JsonBody<wire::ServiceSpec>,
) -> Result<Json<Value>, ApiError> {
    let version = params.version("service")?;
    let rollback = match params.get("rollback") {
        None | Some("") => false,
        Some("previous") => true,
        Some(other) => return Err(ApiError::invalid(format!("unrecognized rollback option {other}"))),
    };
    let store = app.store(&params).await?;
    let service = find(&store, &id)?;
    let spec = if rollback {
        // The body is not looked at; the spec that is restored stands in the service.
        ServiceSpec::default()
    } else {
        let mut spec = service_spec_from_wire(w)?;
        resolve_networks(&store, &mut spec)?;
        // A service goes on with its image even where this host has lost it.
        if spec.task.container.image != service.spec.task.container.image {
            require_image(&app, &store, &spec.task.container.image).await?;
        }
        spec
    };
    let id = service.id.clone();
    let reply = app.control(Op::UpdateService(Box::new(UpdateService { id, version, spec, rollback }))).await?;
    let warnings = if reply.warnings.is_empty() { Value::Null } else { json!(reply.warnings) };
    Ok(Json(json!({ "Warnings": warnings })))
}

pub(super) async fn remove<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<(), ApiError> {
    let store = app.store(&params).await?;
    let id = find(&store, &id)?.id.clone();
    app.control(Op::RemoveService(RemoveService { id })).await?;
    Ok(())
}

/// Networks are stored by id, whatever the client called them.
fn resolve_networks(store: &Store, spec: &mut ServiceSpec) -> Result<(), ApiError> {
    for network in &mut spec.task.networks {
        network.target = networks::find(store, &network.target)?.id.to_string();
    }
    Ok(())
}

/// Refuses an image that tasks could not be made of.
///
/// Each host has its own images, and this one can only look at its own; so a host that gets no tasks (drained)
/// cannot judge, and what an empty name means is said by `deploy::control`.
async fn require_image<E: Engine>(app: &App<E>, store: &Store, image: &str) -> Result<(), ApiError> {
    if image.is_empty() {
        return Ok(());
    }
    if let Membership::Active(member) = app.engine.membership()
        && store.node(&member.node_id).is_some_and(|n| n.spec.availability() == NodeAvailability::Drain)
    {
        Reference::parse(image).map_err(|e| ApiError::invalid(e.to_string()))?;
        return Ok(());
    }
    let (images, name) = (app.engine.images(), image.to_owned());
    let found = tokio::task::spawn_blocking(move || images.resolve(&name)).await;
    match found.map_err(|e| ApiError::internal(format!("looking for image {image} failed: {e}")))? {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ImageErrorKind::NotFound => {
            // A malformed name is told apart from a missing image.
            let reference = Reference::parse(image).map_err(|e| ApiError::invalid(e.to_string()))?;
            Err(ApiError::not_found(format!(
                "No such image: {reference}. Images are not pulled from registries yet: load it on each host with \
                 `shoal image load -i FILE`"
            )))
        }
        Err(e) => Err(super::images::error(&e)),
    }
}
