//! `/services`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use deploy::control::{CreateService, Op, RemoveService, UpdateService};
use deploy::model::{DesiredState, Service, ServiceMode, ServiceSpec, TaskState};
use deploy::store::Store;
use hyper::StatusCode;
use runtime::image::Reference;
use serde_json::{Value, json};

use super::App;
use super::convert::{insert_defaults, service_spec_from_wire, service_to_wire};
use super::error::ApiError;
use super::extract::{ApiVersion, JsonBody, Params};
use super::local_networks;
use super::names::free_name;
use super::networks;
use super::predefined;
use super::registries;
use super::registry::RegistryAuth;
use super::resolve::resolve;
use super::wire;
use crate::engine::Engine;

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
    auth: RegistryAuth,
    JsonBody(w): JsonBody<wire::ServiceSpec>,
) -> Result<(StatusCode, Json<wire::IdResponse>), ApiError> {
    let mut spec = service_spec_from_wire(w)?;
    let store = app.store(&params).await?;
    if spec.name.is_empty() {
        spec.name = free_name(&store, rand::random);
    }
    resolve_networks(&app, &store, &mut spec)?;
    spec.task.container.registry_auth = auth.to_model();
    pin_image(&app, &mut spec, None).await?;
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
    auth: RegistryAuth,
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
        resolve_networks(&app, &store, &mut spec)?;
        spec.task.container.registry_auth = kept_auth(&params, &auth, service)?;
        pin_image(&app, &mut spec, Some(&service.spec)).await?;
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

/// Credentials that a service goes on with: those that are sent along, else its own, or its former ones.
fn kept_auth(
    params: &Params,
    sent: &RegistryAuth,
    service: &Service,
) -> Result<Option<deploy::model::RegistryAuth>, ApiError> {
    let kept = match params.get("registryAuthFrom") {
        None | Some("" | "spec") => Some(&service.spec),
        Some("previous-spec") => service.previous_spec.as_ref(),
        Some(other) => return Err(ApiError::invalid(format!("unsupported registryAuthFrom value {other:?}"))),
    };
    Ok(sent.to_model().or_else(|| kept.and_then(|spec| spec.task.container.registry_auth.clone())))
}

/// Networks are stored by id, whatever the client called them.
fn resolve_networks<E: Engine>(app: &App<E>, store: &Store, spec: &mut ServiceSpec) -> Result<(), ApiError> {
    for network in &mut spec.task.networks {
        let wanted = &network.target;
        network.target = match (predefined::find(wanted), networks::find(store, wanted)) {
            (Some(name), _) => name.to_owned(),
            (None, Ok(found)) => found.id.to_string(),
            (None, Err(error)) => {
                return Err(match local_networks::find(&local_networks::all(app), std::iter::empty(), wanted) {
                    // Docker's words.
                    Ok(Some(_)) => ApiError::forbidden(format!(
                        "The network {wanted} cannot be used with services. Only networks scoped to the swarm can be used, \
                         such as those created with the overlay driver."
                    )),
                    _ => error,
                });
            }
        };
    }
    Ok(())
}

/// Has all tasks run the same image, whatever becomes of its name meanwhile: adds to the name the digest that it stands
/// for now, on this host or another. What an empty name means is said by `deploy::control`.
///
/// # Errors
/// 400 for a name that is none, 404 for an image that nobody has.
async fn pin_image<E: Engine>(
    app: &App<E>,
    spec: &mut ServiceSpec,
    before: Option<&ServiceSpec>,
) -> Result<(), ApiError> {
    let own = RegistryAuth::from_model(spec.task.container.registry_auth.as_ref())?;
    let image = &mut spec.task.container.image;
    let before = before.map(|before| before.task.container.image.as_str());
    // A service goes on with its image even where nobody has it any more.
    if image.is_empty() || before == Some(image) {
        return Ok(());
    }
    let name = Reference::parse(image).map_err(|e| ApiError::invalid(e.to_string()))?;
    if name.digest().is_some() {
        return Ok(());
    }
    // As its tasks will ask: with its own credentials, and with the cluster's where there are none or they are refused.
    let credentials = own.into_iter().chain(registries::of_cluster(app, &name).await).collect();
    let digest = match app.engine.resolve_image(name.clone(), credentials).await {
        Ok(digest) => digest,
        Err(error) => {
            let Some(before) = before.filter(|before| is_pinned_form_of(before, &name)) else {
                return Err(error.into());
            };
            before.clone_into(image);
            return Ok(());
        }
    };
    let pinned = name.with_digest(&digest).map_err(|e| ApiError::internal(e.to_string()))?;
    *image = pinned.to_string();
    Ok(())
}

fn is_pinned_form_of(pinned: &str, name: &Reference) -> bool {
    Reference::parse(pinned)
        .is_ok_and(|pinned| pinned.digest().is_some() && pinned.same_repository(name) && pinned.tag() == name.tag())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_digest_makes_the_pinned_form_another_one() {
        let digest = format!("@sha256:{}", "a".repeat(64));
        let check = |pinned: String, name: &str, expected: bool| {
            assert_eq!(is_pinned_form_of(&pinned, &Reference::parse(name).unwrap()), expected, "{pinned} {name}");
        };
        check(format!("web:latest{digest}"), "web", true);
        check(format!("docker.io/library/web:1{digest}"), "web:1", true);
        check(format!("web:1{digest}"), "web:2", false);
        check(format!("web:1{digest}"), "x.example/web:1", false);
        check("web:1".to_owned(), "web:1", false);
    }
}
