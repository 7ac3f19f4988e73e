//! `shoal service`: what should run.
//!
//! `args` is what clap reads; `spec` turns flags into the API's service spec, purely; `progress` waits until the
//! cluster is as it was asked to be; `list`, `logs` and `why` show things.

mod args;
mod list;
mod logs;
mod pretty;
mod progress;
mod scale;
mod spec;
#[cfg(test)]
mod tests;
mod why;

use runtime::image::Reference;
use serde_json::Value;

pub(super) use self::args::ServiceArgs;
use self::args::{CreateArgs, ServiceCommand, UpdateArgs};
use self::progress::After;
use self::scale::Pair;
use super::client::{Client, route};
use super::error::CliError;
use super::node::{index, retried};
use super::output;
use super::registry::CredentialFiles;
use super::{filters, tasks};
use crate::docker_api::wire::{IdResponse, Network, Payload, Service, ServiceSpec, UpdateStatus};

/// A command whose arguments were checked as far as that goes without asking the engine.
#[derive(Debug)]
pub(super) enum Checked {
    /// The spec to create.
    Create { spec: Box<ServiceSpec>, auth: bool, detach: bool, quiet: bool },
    /// What to change.
    Update(Box<UpdateArgs>),
    /// Services and their new numbers of tasks.
    Scale { pairs: Vec<Pair>, detach: bool },
    /// Everything else.
    Other(ServiceCommand),
}

impl ServiceArgs {
    /// Checks what can be checked before anything is sent.
    ///
    /// # Errors
    /// What is wrong with the command line.
    pub(super) fn check(self) -> Result<Checked, CliError> {
        Ok(match self.command {
            ServiceCommand::Create(args) => {
                let CreateArgs { with_registry_auth: auth, detach, quiet, .. } = *args;
                let spec = spec::create(*args, |name| std::env::var(name).ok())?;
                Checked::Create { spec: Box::new(spec), auth, detach, quiet }
            }
            ServiceCommand::Update(args) => {
                spec::check_update(&args)?;
                Checked::Update(args)
            }
            ServiceCommand::Scale { services, detach } => Checked::Scale { pairs: scale::pairs(&services)?, detach },
            other => Checked::Other(other),
        })
    }
}

pub(super) async fn run(client: Client, command: Checked) -> Result<(), CliError> {
    let client = &client;
    match command {
        Checked::Create { mut spec, auth, detach, quiet } => {
            find_payloads(client, &mut spec).await?;
            create(client, &spec, auth, detach, quiet).await
        }
        Checked::Update(args) => update(client, *args).await,
        Checked::Scale { pairs, detach } => scale::run(client, &pairs, detach).await,
        Checked::Other(command) => other(client, command).await,
    }
}

async fn other(client: &Client, command: ServiceCommand) -> Result<(), CliError> {
    match command {
        ServiceCommand::Create(_) | ServiceCommand::Update(_) | ServiceCommand::Scale { .. } => {
            unreachable!("check() has taken these out")
        }
        ServiceCommand::Ls { filter, format } => list::run(client, &filter, &format).await,
        ServiceCommand::Ps { services, filter, format } => {
            let mut filter = filter;
            for service in &services {
                // A filter by a name that does not exist is an empty list; the user made a typing error.
                filter.push(format!("service={}", id(&find(client, service).await?)));
            }
            tasks::print(client, &filters(&filter)?.unwrap_or_default(), &format).await
        }
        ServiceCommand::Inspect { services, pretty: false } => super::inspect(client, "services", &services, &[]).await,
        ServiceCommand::Inspect { services, pretty: true } => {
            for service in &services {
                let found: Service = client.get(&route(&["services", service], &[("insertDefaults", "true")])).await?;
                output::text(&pretty::describe(&found))?;
            }
            Ok(())
        }
        ServiceCommand::Logs(args) => logs::run(client, args).await,
        ServiceCommand::Rm { services } => super::remove(client, "services", &services, &[]).await,
        ServiceCommand::Rollback { service, detach, quiet } => rollback(client, &service, detach, quiet).await,
        ServiceCommand::Why { service, json } => why::run(client, &service, json).await,
    }
}

async fn find(client: &Client, service: &str) -> Result<Service, CliError> {
    client.get(&route(&["services", service], &[])).await
}

fn id(service: &Service) -> &str {
    service.id.as_deref().unwrap_or_default()
}

fn warn(answer: &Value) {
    for warning in answer["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output::note(format_args!("warning: {}", output::printable(warning)));
    }
}

/// What is sent along so that hosts can pull the image of this spec; nothing where it was not asked for.
fn registry_auth(spec: &ServiceSpec, wanted: bool) -> Result<Option<String>, CliError> {
    let container = spec.task_template.as_ref().and_then(|task| task.container_spec.as_ref());
    let image = container.and_then(|container| container.image.as_deref()).unwrap_or_default();
    if !wanted {
        return Ok(None);
    }
    let reference = Reference::parse(image).map_err(|e| CliError::usage(e.to_string()))?;
    Ok(Some(CredentialFiles::of_user().read(reference.domain())?.to_header()))
}

async fn create(client: &Client, spec: &ServiceSpec, auth: bool, detach: bool, quiet: bool) -> Result<(), CliError> {
    let auth = registry_auth(spec, auth)?;
    let created: IdResponse = client.create_as("/services/create", spec, auth.as_deref()).await?;
    for warning in created.warnings.into_iter().flatten() {
        output::note(format_args!("warning: {}", output::printable(&warning)));
    }
    let id = created.id.unwrap_or_default();
    output::line(&id)?;
    if detach { Ok(()) } else { progress::wait(client, &id, After::Create, None, quiet).await }
}

/// Sends a service's spec as `change` leaves it, with the version that it was read at. Answers the update status
/// that the service had before.
async fn change(
    client: &Client,
    service: &str,
    auth: bool,
    change: impl Fn(&mut ServiceSpec) -> Result<(), CliError>,
) -> Result<Option<UpdateStatus>, CliError> {
    retried(async || {
        let found = find(client, service).await?;
        let version = index(&found.version);
        let id = id(&found).to_owned();
        let mut spec = found.spec.unwrap_or_default();
        change(&mut spec)?;
        find_payloads(client, &mut spec).await?;
        let auth = registry_auth(&spec, auth)?;
        let path = route(&["services", &id, "update"], &[("version", &version)]);
        let answer: Value = client.create_as(&path, &spec, auth.as_deref()).await?;
        warn(&answer);
        Ok(found.update_status)
    })
    .await
}

async fn update(client: &Client, args: UpdateArgs) -> Result<(), CliError> {
    if args.rollback {
        return rollback(client, &args.service, args.detach, args.quiet).await;
    }
    let args = &with_network_ids(client, args).await?;
    let lookup = |name: &str| std::env::var(name).ok();
    let before =
        change(client, &args.service, args.with_registry_auth, |spec| spec::update(args, spec, lookup)).await?;
    output::line(&args.service)?;
    if args.detach {
        return Ok(());
    }
    progress::wait(client, &args.service, After::Update, before, args.quiet).await
}

/// Services keep networks by id, and users name them.
async fn with_network_ids(client: &Client, mut args: UpdateArgs) -> Result<UpdateArgs, CliError> {
    let names = args.network_add.iter_mut().filter_map(|n| n.target.as_mut()).chain(&mut args.network_rm);
    for name in names {
        let network: Network = client.get(&route(&["networks", name], &[])).await?;
        if let Some(id) = network.id {
            *name = id;
        }
    }
    Ok(args)
}

/// Services keep secrets and configs by id and name, and users give either.
async fn find_payloads(client: &Client, spec: &mut ServiceSpec) -> Result<(), CliError> {
    let Some(container) = spec.task_template.as_mut().and_then(|task| task.container_spec.as_mut()) else {
        return Ok(());
    };
    let secrets = container.secrets.iter_mut().flatten().map(|s| ("secrets", &mut s.id, &mut s.name));
    let configs = container.configs.iter_mut().flatten().map(|c| ("configs", &mut c.id, &mut c.name));
    for (noun, id, name) in secrets.chain(configs).filter(|(_, id, _)| id.is_none()) {
        let found: Payload = client.get(&route(&[noun, name.as_deref().unwrap_or_default()], &[])).await?;
        *id = found.id;
        *name = found.spec.and_then(|spec| spec.name);
    }
    Ok(())
}

async fn rollback(client: &Client, service: &str, detach: bool, quiet: bool) -> Result<(), CliError> {
    retried(async || {
        let found = find(client, service).await?;
        let query = [("version", &*index(&found.version)), ("rollback", "previous")];
        // The body is not looked at, but there has to be one.
        let spec = found.spec.clone().unwrap_or_default();
        let answer: Value = client.create(&route(&["services", id(&found), "update"], &query), &spec).await?;
        warn(&answer);
        Ok(())
    })
    .await?;
    output::line(service)?;
    if detach { Ok(()) } else { progress::wait(client, service, After::Rollback, None, quiet).await }
}
