//! A service spec: mode, resources, placement, ports, update.

use prost::Message;

use super::super::{ControlError, invalid, unimplemented};
use super::{count, labels, service_name, shorten, text, unsupported};
use crate::logging::{Logging, LoggingError};
use crate::model::{
    EndpointMode, EndpointSpec, FailureAction, LogDriver, PUBLISH_LABEL, Placement, PortProtocol, PublishMode,
    ResourceRequirements, Resources, RestartCondition, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};
use crate::scheduler::Constraint;

/// Docker's least amount of memory.
const MIN_MEMORY: u64 = 4 << 20;
/// Bytes of a whole spec. Each task carries it, and an entry must have room for a slot's two tasks and a service with
/// its previous spec (see `Txn::is_full`).
const MAX_SPEC_BYTES: usize = 96 << 10;
/// A thousandth of a CPU, Docker's least.
const MIN_NANO_CPUS: u64 = 1_000_000;
/// Tasks of one service. Far beyond what one cluster runs; it bounds what one request can ask for.
const MAX_REPLICAS: u64 = 1_000_000;
/// A year, in nanoseconds: no delay of a spec is longer.
const MAX_DURATION_NS: u64 = 365 * 24 * 3600 * 1_000_000_000;

/// Checks all of a service spec but what depends on other objects (names, networks, ports).
pub(in crate::control) fn service_spec(spec: &ServiceSpec) -> Result<(), ControlError> {
    service_name(&spec.name)?;
    let bytes = spec.encoded_len();
    if bytes > MAX_SPEC_BYTES {
        return Err(invalid(format!("the service spec has {bytes} bytes, more than {MAX_SPEC_BYTES}")));
    }
    labels("Labels", &spec.labels)?;
    if let Some(how) = spec.labels.get(PUBLISH_LABEL).filter(|how| !["local", "cluster"].contains(&how.as_str())) {
        return Err(invalid(format!("label {PUBLISH_LABEL}={}: it is local or cluster", shorten(how))));
    }
    mode(spec)?;
    task_spec(&spec.task)?;
    for (field, config) in [("UpdateConfig", &spec.update), ("RollbackConfig", &spec.rollback)] {
        if let Some(config) = config {
            update_config(field, config)?;
        }
    }
    let rolls_back = spec.rollback.as_ref().is_some_and(|c| c.failure_action == FailureAction::Rollback as i32);
    if rolls_back {
        return Err(invalid("RollbackConfig.FailureAction: a rollback cannot be rolled back"));
    }
    spec.endpoint.as_ref().map_or(Ok(()), endpoint)
}

fn mode(spec: &ServiceSpec) -> Result<(), ControlError> {
    match &spec.mode {
        None | Some(ServiceMode::Replicated(_)) => {
            let replicas = spec.replicas().unwrap_or(1);
            if replicas > MAX_REPLICAS {
                return Err(invalid(format!("Mode.Replicated.Replicas: {replicas} is more than {MAX_REPLICAS}")));
            }
            Ok(())
        }
        Some(ServiceMode::Global(_)) => Ok(()),
        Some(ServiceMode::ReplicatedJob(_)) => unsupported("Mode.ReplicatedJob", true),
        Some(ServiceMode::GlobalJob(_)) => unsupported("Mode.GlobalJob", true),
    }
}

fn task_spec(task: &TaskSpec) -> Result<(), ControlError> {
    super::container::container_spec(&task.container)?;
    check_resources(&task.resources)?;
    if let Some(restart) = &task.restart {
        if restart.condition.is_some_and(|c| RestartCondition::try_from(c).is_err()) {
            return Err(invalid("TaskTemplate.RestartPolicy.Condition: unknown"));
        }
        duration("TaskTemplate.RestartPolicy.Delay", restart.delay_ns)?;
        duration("TaskTemplate.RestartPolicy.Window", restart.window_ns)?;
    }
    placement(&task.placement)?;
    count("TaskTemplate.Networks", task.networks.len())?;
    for network in &task.networks {
        text("TaskTemplate.Networks.Target", &network.target, 255)?;
        if network.target.is_empty() {
            return Err(invalid("TaskTemplate.Networks.Target must be provided"));
        }
        count("TaskTemplate.Networks.Aliases", network.aliases.len())?;
        for alias in &network.aliases {
            let dns = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if alias.is_empty() || alias.len() > 253 || !alias.chars().all(dns) {
                return Err(invalid(format!("TaskTemplate.Networks.Aliases: {:?} is not a name", shorten(alias))));
            }
        }
        if let Some(option) = network.driver_options.keys().next() {
            unsupported(&format!("TaskTemplate.Networks.DriverOpts[{:?}]", shorten(option)), true)?;
        }
    }
    task.log_driver.as_ref().map_or(Ok(()), log_driver)
}

/// Judges what a container gets of its host, and what is kept for it.
///
/// # Errors
/// Too little, more than any host has, or more kept than it may use.
pub fn check_resources(required: &ResourceRequirements) -> Result<(), ControlError> {
    let (limits, reserved) = (&required.limits, &required.reservations);
    resources("Limits", limits)?;
    resources("Reservations", reserved)?;
    unsupported("TaskTemplate.Resources.Reservations.Pids", reserved.pids != 0)?;
    if limits.memory_bytes != 0 && reserved.memory_bytes > limits.memory_bytes {
        return Err(invalid("TaskTemplate.Resources: more memory is reserved than the limit allows"));
    }
    if limits.nano_cpus != 0 && reserved.nano_cpus > limits.nano_cpus {
        return Err(invalid("TaskTemplate.Resources: more CPU is reserved than the limit allows"));
    }
    Ok(())
}

fn resources(which: &str, resources: &Resources) -> Result<(), ControlError> {
    if resources.memory_bytes != 0 && resources.memory_bytes < MIN_MEMORY {
        return Err(invalid(format!("invalid memory value {}: Must be at least 4MiB", resources.memory_bytes)));
    }
    if resources.nano_cpus != 0 && resources.nano_cpus < MIN_NANO_CPUS {
        let cpus = resources.nano_cpus as f64 / 1e9;
        return Err(invalid(format!("invalid cpu value {cpus}: Must be at least 0.001")));
    }
    // Beyond these, sums over a host's tasks could overflow.
    if resources.memory_bytes > 1 << 50 || resources.nano_cpus > 1 << 50 || resources.pids > 1 << 22 {
        return Err(invalid(format!("TaskTemplate.Resources.{which}: more than any host has")));
    }
    Ok(())
}

fn duration(field: &str, nanos: Option<u64>) -> Result<(), ControlError> {
    if nanos.is_some_and(|nanos| nanos > MAX_DURATION_NS) {
        return Err(invalid(format!("{field}: cannot be negative, or longer than a year")));
    }
    Ok(())
}

fn placement(placement: &Placement) -> Result<(), ControlError> {
    count("TaskTemplate.Placement.Constraints", placement.constraints.len())?;
    placement.constraints.iter().try_for_each(|text| constraint(text))?;
    count("TaskTemplate.Placement.Preferences", placement.spread_over.len())?;
    for descriptor in &placement.spread_over {
        let label = ["node.labels.", "engine.labels."].iter().find_map(|prefix| {
            let lower = descriptor.get(..prefix.len())?;
            lower.eq_ignore_ascii_case(prefix).then(|| &descriptor[prefix.len()..])
        });
        if descriptor.len() > 255 || label.is_none_or(str::is_empty) {
            let text = shorten(descriptor);
            return Err(invalid(format!("placement preference {text:?}: node.labels.X or engine.labels.X is needed")));
        }
    }
    count("TaskTemplate.Placement.Platforms", placement.platforms.len())?;
    for platform in &placement.platforms {
        text("TaskTemplate.Placement.Platforms.Architecture", &platform.architecture, 64)?;
        text("TaskTemplate.Placement.Platforms.OS", &platform.os, 64)?;
    }
    Ok(())
}

fn constraint(expression: &str) -> Result<(), ControlError> {
    match Constraint::parse(expression) {
        Ok(_) => Ok(()),
        Err(why) => Err(invalid(format!("invalid constraint {:?}: {why}", shorten(expression)))),
    }
}

fn log_driver(driver: &LogDriver) -> Result<(), ControlError> {
    match Logging::of(Some(driver)) {
        Ok(_) => Ok(()),
        Err(error @ LoggingError::Unsupported(_)) => Err(unimplemented(error.to_string())),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn update_config(field: &str, config: &UpdateConfig) -> Result<(), ControlError> {
    if FailureAction::try_from(config.failure_action).is_err() || UpdateOrder::try_from(config.order).is_err() {
        return Err(invalid(format!("{field}: unknown failure action or order")));
    }
    duration(&format!("{field}.Delay"), config.delay_ns)?;
    duration(&format!("{field}.Monitor"), config.monitor_ns)?;
    if config.max_failure_ppm > 1_000_000 {
        return Err(invalid(format!("{field}.MaxFailureRatio: cannot be less than 0 or bigger than 1")));
    }
    Ok(())
}

fn endpoint(endpoint: &EndpointSpec) -> Result<(), ControlError> {
    let Ok(mode) = EndpointMode::try_from(endpoint.mode) else {
        return Err(invalid("EndpointSpec.Mode: unknown"));
    };
    count("EndpointSpec.Ports", endpoint.ports.len())?;
    let mut published = std::collections::BTreeSet::new();
    for port in &endpoint.ports {
        let known = PortProtocol::try_from(port.protocol).is_ok() && PublishMode::try_from(port.mode).is_ok();
        if !known {
            return Err(invalid("EndpointSpec.Ports: unknown protocol or publish mode"));
        }
        text("EndpointSpec.Ports.Name", &port.name, 255)?;
        if port.published > 65535 || !(1..=65535).contains(&port.target) {
            let text = format!("EndpointSpec: port {}:{} is out of range", port.published, port.target);
            return Err(invalid(text));
        }
        unsupported("EndpointSpec.Ports.Protocol sctp", port.protocol() == PortProtocol::Sctp)?;
        if mode == EndpointMode::Dnsrr && port.is_ingress() {
            return Err(invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode"));
        }
        if port.published != 0 && !published.insert((port.published, port.protocol)) {
            return Err(invalid("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}
