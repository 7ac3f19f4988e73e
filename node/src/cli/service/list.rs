//! `shoal service ls`.

use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::filters;
use crate::cli::output::{List, ListFormat};
use crate::cli::tasks::{ports, without_digest};
use crate::docker_api::wire::{Service, ServiceMode};

pub(super) async fn run(client: &Client, filter: &[String], format: &ListFormat) -> Result<(), CliError> {
    let filters = filters(filter)?;
    let mut query = vec![("status", "true")];
    query.extend(filters.iter().map(|f| ("filters", f.as_str())));
    let mut services: Vec<Service> = client.get(&route(&["services"], &query)).await?;
    services.sort_by_key(|s| s.spec.as_ref().and_then(|s| s.name.clone()));
    table(services, format).print(format)
}

/// The mode's name.
pub(super) fn mode(mode: &ServiceMode) -> &'static str {
    match mode {
        ServiceMode { global: Some(_), .. } => "global",
        ServiceMode { replicated_job: Some(_), .. } => "replicated-job",
        ServiceMode { global_job: Some(_), .. } => "global-job",
        _ => "replicated",
    }
}

fn table(services: Vec<Service>, format: &ListFormat) -> List {
    let mut list = List::new(&[
        ("ID", "ID"),
        ("NAME", "Name"),
        ("MODE", "Mode"),
        ("REPLICAS", "Replicas"),
        ("IMAGE", "Image"),
        ("PORTS", "Ports"),
    ]);
    for service in services {
        let spec = service.spec.unwrap_or_default();
        let status = service.service_status.unwrap_or_default();
        let image = spec.task_template.unwrap_or_default().container_spec.unwrap_or_default().image.unwrap_or_default();
        list.row([
            format.id(&service.id.unwrap_or_default()),
            spec.name.unwrap_or_default(),
            mode(&spec.mode.unwrap_or_default()).to_owned(),
            format!("{}/{}", status.running_tasks.unwrap_or_default(), status.desired_tasks.unwrap_or_default()),
            if format.no_trunc { image } else { without_digest(&image).to_owned() },
            ports(&service.endpoint.unwrap_or_default().ports.unwrap_or_default(), "*:"),
        ]);
    }
    list
}
