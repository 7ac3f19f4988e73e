//! `ServiceSpec`, `TaskSpec` and `Service`.

use deploy::model::{
    EndpointMode, EndpointSpec, FailureAction, Global, HOST_NETWORK, LogDriver, NONE_NETWORK, NetworkAttachmentConfig,
    Placement, Platform, PortConfig, PortProtocol, PublishMode, Replicated, ReplicatedJob, ResourceRequirements,
    Resources, RestartCondition, RestartPolicy, Service, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
    UpdateState, UpdateStatus,
};

use super::{
    container_from_wire, container_to_wire, duration_to_wire, nanos_i64, non_default, non_empty, refuse_set,
    time_to_wire, unsigned, unsigned_opt, version,
};
use crate::docker_api::error::ApiError;
use crate::docker_api::predefined;
use crate::docker_api::wire;

/// Looks a word of Docker's up; `what` begins the refusal.
fn word<T: Copy>(table: &[(&str, T)], what: &str, given: &str) -> Result<T, ApiError> {
    table
        .iter()
        .find(|(name, _)| *name == given)
        .map(|(_, value)| *value)
        .ok_or_else(|| ApiError::invalid(format!("{what} {given:?}")))
}

/// The word for a value.
fn name<T: Copy + PartialEq>(table: &[(&str, T)], value: T) -> Option<String> {
    table.iter().find(|(_, v)| *v == value).map(|(name, _)| (*name).to_owned())
}

const CONDITIONS: [(&str, RestartCondition); 3] =
    [("none", RestartCondition::None), ("on-failure", RestartCondition::OnFailure), ("any", RestartCondition::Any)];
const ACTIONS: [(&str, FailureAction); 3] =
    [("pause", FailureAction::Pause), ("continue", FailureAction::Continue), ("rollback", FailureAction::Rollback)];
const ORDERS: [(&str, UpdateOrder); 2] =
    [("stop-first", UpdateOrder::StopFirst), ("start-first", UpdateOrder::StartFirst)];
const ENDPOINT_MODES: [(&str, EndpointMode); 2] = [("vip", EndpointMode::Vip), ("dnsrr", EndpointMode::Dnsrr)];
const PROTOCOLS: [(&str, PortProtocol); 3] =
    [("tcp", PortProtocol::Tcp), ("udp", PortProtocol::Udp), ("sctp", PortProtocol::Sctp)];
const PUBLISH_MODES: [(&str, PublishMode); 2] = [("ingress", PublishMode::Ingress), ("host", PublishMode::Host)];
const UPDATE_STATES: [(&str, UpdateState); 6] = [
    ("updating", UpdateState::Updating),
    ("paused", UpdateState::Paused),
    ("completed", UpdateState::Completed),
    ("rollback_started", UpdateState::RollbackStarted),
    ("rollback_paused", UpdateState::RollbackPaused),
    ("rollback_completed", UpdateState::RollbackCompleted),
];

/// What a client sent, as the model has it. Networks and payloads are still named as they were sent.
///
/// # Errors
/// Names the field that the model cannot carry or that is out of range.
pub fn service_spec_from_wire(w: wire::ServiceSpec) -> Result<ServiceSpec, ApiError> {
    let mut task = task_spec_from_wire(w.task_template.unwrap_or_default())?;
    if task.networks.is_empty() {
        // The place where old clients send them.
        task.networks = w.networks.unwrap_or_default().into_iter().map(network_from_wire).collect();
    }
    Ok(ServiceSpec {
        name: w.name.unwrap_or_default(),
        labels: w.labels.unwrap_or_default(),
        task,
        mode: Some(mode_from_wire(w.mode.unwrap_or_default())?),
        update: w.update_config.map(|u| update_from_wire("UpdateConfig", u)).transpose()?,
        rollback: w.rollback_config.map(|u| update_from_wire("RollbackConfig", u)).transpose()?,
        endpoint: w.endpoint_spec.map(endpoint_from_wire).transpose()?,
    })
}

/// A service spec as Docker's clients read it.
pub fn service_spec_to_wire(m: &ServiceSpec) -> wire::ServiceSpec {
    wire::ServiceSpec {
        name: Some(m.name.clone()),
        labels: Some(m.labels.clone()),
        task_template: Some(wire::TaskSpec { runtime: Some("container".to_owned()), ..task_spec_to_wire(&m.task) }),
        mode: Some(mode_to_wire(m.mode.as_ref())),
        update_config: m.update.as_ref().map(update_to_wire),
        rollback_config: m.rollback.as_ref().map(update_to_wire),
        networks: None,
        endpoint_spec: m.endpoint.as_ref().map(endpoint_to_wire),
    }
}

fn task_spec_from_wire(w: wire::TaskSpec) -> Result<TaskSpec, ApiError> {
    refuse_set("TaskTemplate.PluginSpec", &w.plugin_spec)?;
    refuse_set("TaskTemplate.NetworkAttachmentSpec", &w.network_attachment_spec)?;
    match w.runtime.as_deref() {
        None | Some("" | "container") => {}
        Some(other) => {
            return Err(ApiError::not_supported(format!("TaskTemplate.Runtime {other:?} is not supported yet")));
        }
    }
    let placement = w.placement.unwrap_or_default();
    Ok(TaskSpec {
        container: container_from_wire(w.container_spec.unwrap_or_default())?,
        resources: resources_from_wire(w.resources.unwrap_or_default())?,
        restart: w.restart_policy.map(restart_from_wire).transpose()?,
        placement: Placement {
            constraints: placement.constraints.unwrap_or_default(),
            spread_over: placement
                .preferences
                .unwrap_or_default()
                .into_iter()
                .filter_map(|p| p.spread.map(|s| s.descriptor.unwrap_or_default()))
                .collect(),
            max_replicas: placement.max_replicas.unwrap_or_default(),
            platforms: placement
                .platforms
                .unwrap_or_default()
                .into_iter()
                .map(|p| Platform { architecture: p.architecture.unwrap_or_default(), os: p.os.unwrap_or_default() })
                .collect(),
        },
        networks: w.networks.unwrap_or_default().into_iter().map(network_from_wire).collect(),
        log_driver: w
            .log_driver
            .map(|d| LogDriver { name: d.name.unwrap_or_default(), options: d.options.unwrap_or_default() }),
        force_update: w.force_update.unwrap_or_default(),
    })
}

/// A task spec as Docker's clients read it.
pub fn task_spec_to_wire(m: &TaskSpec) -> wire::TaskSpec {
    let (limits, reservations) = (&m.resources.limits, &m.resources.reservations);
    let amount = |v: u64| (v > 0).then(|| nanos_i64(v));
    wire::TaskSpec {
        container_spec: Some(container_to_wire(&m.container)),
        plugin_spec: None,
        network_attachment_spec: None,
        resources: Some(wire::Resources {
            limits: Some(wire::Limits {
                nano_cpus: amount(limits.nano_cpus),
                memory_bytes: amount(limits.memory_bytes),
                pids: amount(limits.pids),
            }),
            reservations: Some(wire::Reservations {
                nano_cpus: amount(reservations.nano_cpus),
                memory_bytes: amount(reservations.memory_bytes),
                generic_resources: None,
            }),
            swap_bytes: None,
            memory_swappiness: None,
        }),
        restart_policy: m.restart.as_ref().map(|r| wire::RestartPolicy {
            condition: r.condition.and_then(|_| name(&CONDITIONS, r.when())),
            delay: r.delay_ns.map(nanos_i64),
            max_attempts: r.max_attempts,
            window: r.window_ns.map(nanos_i64),
        }),
        placement: Some(wire::Placement {
            constraints: non_default(&m.placement.constraints),
            preferences: non_default(
                &m.placement
                    .spread_over
                    .iter()
                    .map(|d| wire::Preference { spread: Some(wire::Spread { descriptor: Some(d.clone()) }) })
                    .collect(),
            ),
            max_replicas: non_default(&m.placement.max_replicas),
            platforms: non_default(
                &m.placement
                    .platforms
                    .iter()
                    .map(|p| wire::Platform { architecture: non_empty(&p.architecture), os: non_empty(&p.os) })
                    .collect(),
            ),
        }),
        networks: non_default(
            &m.networks
                .iter()
                .map(|n| wire::NetworkAttachmentConfig {
                    // What is kept by name has an id for clients.
                    target: Some(match n.target.as_str() {
                        name @ (HOST_NETWORK | NONE_NETWORK) => predefined::id(name),
                        id => id.to_owned(),
                    }),
                    aliases: non_default(&n.aliases),
                    driver_opts: non_default(&n.driver_options),
                })
                .collect(),
        ),
        log_driver: m
            .log_driver
            .as_ref()
            .map(|d| wire::Driver { name: non_empty(&d.name), options: non_default(&d.options) }),
        force_update: Some(m.force_update),
        runtime: None,
    }
}

fn network_from_wire(w: wire::NetworkAttachmentConfig) -> NetworkAttachmentConfig {
    NetworkAttachmentConfig {
        target: w.target.unwrap_or_default(),
        aliases: w.aliases.unwrap_or_default(),
        driver_options: w.driver_opts.unwrap_or_default(),
    }
}

fn resources_from_wire(w: wire::Resources) -> Result<ResourceRequirements, ApiError> {
    let at = |field: &str, value: Option<i64>| unsigned(&format!("TaskTemplate.Resources.{field}"), value.unwrap_or(0));
    refuse_set("TaskTemplate.Resources.SwapBytes", &w.swap_bytes)?;
    refuse_set("TaskTemplate.Resources.MemorySwappiness", &w.memory_swappiness)?;
    let limits = w.limits.unwrap_or_default();
    let reservations = w.reservations.unwrap_or_default();
    refuse_set("TaskTemplate.Resources.Reservations.GenericResources", &reservations.generic_resources)?;
    Ok(ResourceRequirements {
        limits: Resources {
            nano_cpus: at("Limits.NanoCPUs", limits.nano_cpus)?,
            memory_bytes: at("Limits.MemoryBytes", limits.memory_bytes)?,
            pids: at("Limits.Pids", limits.pids)?,
        },
        reservations: Resources {
            nano_cpus: at("Reservations.NanoCPUs", reservations.nano_cpus)?,
            memory_bytes: at("Reservations.MemoryBytes", reservations.memory_bytes)?,
            pids: 0,
        },
    })
}

fn restart_from_wire(w: wire::RestartPolicy) -> Result<RestartPolicy, ApiError> {
    let condition = match w.condition.as_deref() {
        None | Some("") => None,
        Some(given) => Some(word(&CONDITIONS, "invalid RestartCondition:", given)?.into()),
    };
    Ok(RestartPolicy {
        condition,
        delay_ns: unsigned_opt("TaskTemplate.RestartPolicy.Delay", w.delay)?,
        max_attempts: w.max_attempts,
        window_ns: unsigned_opt("TaskTemplate.RestartPolicy.Window", w.window)?,
    })
}

fn mode_from_wire(w: wire::ServiceMode) -> Result<ServiceMode, ApiError> {
    let given = [w.replicated.is_some(), w.global.is_some(), w.replicated_job.is_some(), w.global_job.is_some()];
    if given.iter().filter(|g| **g).count() > 1 {
        return Err(ApiError::invalid("must specify only one service mode"));
    }
    Ok(if w.global.is_some() {
        ServiceMode::Global(Global {})
    } else if w.global_job.is_some() {
        ServiceMode::GlobalJob(Global {})
    } else if let Some(job) = w.replicated_job {
        ServiceMode::ReplicatedJob(ReplicatedJob {
            max_concurrent: job.max_concurrent,
            total_completions: job.total_completions,
        })
    } else {
        // No mode means one replica.
        ServiceMode::Replicated(Replicated { replicas: w.replicated.unwrap_or_default().replicas })
    })
}

fn mode_to_wire(m: Option<&ServiceMode>) -> wire::ServiceMode {
    let mut w = wire::ServiceMode::default();
    match m {
        // Clients read the number without a look whether it is there.
        None => w.replicated = Some(wire::Replicated { replicas: Some(1) }),
        Some(ServiceMode::Replicated(r)) => {
            w.replicated = Some(wire::Replicated { replicas: Some(r.replicas.unwrap_or(1)) });
        }
        Some(ServiceMode::Global(_)) => w.global = Some(wire::Empty {}),
        Some(ServiceMode::GlobalJob(_)) => w.global_job = Some(wire::Empty {}),
        Some(ServiceMode::ReplicatedJob(j)) => {
            // Docker: no limit on how many at once means all of them, no number of completions means one.
            let total = j.total_completions.unwrap_or(1);
            w.replicated_job = Some(wire::ReplicatedJob {
                max_concurrent: Some(j.max_concurrent.filter(|n| *n > 0).unwrap_or(total)),
                total_completions: Some(total),
            });
        }
    }
    w
}

fn update_from_wire(at: &str, w: wire::UpdateConfig) -> Result<UpdateConfig, ApiError> {
    let ratio = w.max_failure_ratio.unwrap_or_default();
    if !(0.0..=1.0).contains(&ratio) {
        return Err(ApiError::invalid(format!("{at}.MaxFailureRatio cannot be less than 0 or bigger than 1")));
    }
    let action = w.failure_action.unwrap_or_default();
    let order = w.order.unwrap_or_default();
    Ok(UpdateConfig {
        // In Docker an update config without the field says 0, which is "all at once"; only a spec without an
        // update config has the default of 1.
        parallelism: Some(w.parallelism.unwrap_or(0)),
        delay_ns: unsigned_opt(&format!("{at}.Delay"), w.delay)?,
        failure_action: match action.as_str() {
            "" => FailureAction::Pause,
            given => word(&ACTIONS, "unrecognized update failure action", given)?,
        }
        .into(),
        monitor_ns: unsigned_opt(&format!("{at}.Monitor"), w.monitor)?.filter(|ns| *ns > 0),
        max_failure_ppm: (ratio * 1e6).round() as u32,
        order: match order.as_str() {
            "" => UpdateOrder::StopFirst,
            given => word(&ORDERS, "unrecognized update order", given)?,
        }
        .into(),
    })
}

fn update_to_wire(m: &UpdateConfig) -> wire::UpdateConfig {
    wire::UpdateConfig {
        parallelism: Some(m.slots_at_a_time()),
        delay: m.delay_ns.map(nanos_i64),
        failure_action: name(&ACTIONS, m.failure_action()),
        monitor: m.monitor_ns.map(nanos_i64),
        max_failure_ratio: Some(f64::from(m.max_failure_ppm) / 1e6),
        order: name(&ORDERS, m.order()),
    }
}

fn endpoint_from_wire(w: wire::EndpointSpec) -> Result<EndpointSpec, ApiError> {
    let mode = w.mode.unwrap_or_default();
    Ok(EndpointSpec {
        mode: match mode.as_str() {
            "" => EndpointMode::Vip,
            given => word(&ENDPOINT_MODES, "invalid EndpointSpec.Mode:", given)?,
        }
        .into(),
        ports: w.ports.unwrap_or_default().into_iter().map(port_from_wire).collect::<Result<_, _>>()?,
    })
}

fn endpoint_to_wire(m: &EndpointSpec) -> wire::EndpointSpec {
    wire::EndpointSpec {
        mode: name(&ENDPOINT_MODES, m.mode()),
        ports: non_default(&m.ports.iter().map(port_to_wire).collect()),
    }
}

fn port_from_wire(w: wire::PortConfig) -> Result<PortConfig, ApiError> {
    let protocol = w.protocol.unwrap_or_default();
    let mode = w.publish_mode.unwrap_or_default();
    Ok(PortConfig {
        name: w.name.unwrap_or_default(),
        protocol: match protocol.as_str() {
            "" => PortProtocol::Tcp,
            given => word(&PROTOCOLS, "invalid port protocol:", given)?,
        }
        .into(),
        target: w.target_port.unwrap_or_default(),
        published: w.published_port.unwrap_or_default(),
        mode: match mode.as_str() {
            "" => PublishMode::Ingress,
            given => word(&PUBLISH_MODES, "invalid port publish mode:", given)?,
        }
        .into(),
    })
}

/// A port as Docker's clients read it.
pub(crate) fn port_to_wire(m: &PortConfig) -> wire::PortConfig {
    wire::PortConfig {
        name: non_empty(&m.name),
        protocol: name(&PROTOCOLS, m.protocol()),
        target_port: Some(m.target),
        published_port: non_default(&m.published),
        publish_mode: name(&PUBLISH_MODES, m.mode()),
    }
}

fn update_status_to_wire(m: &UpdateStatus) -> wire::UpdateStatus {
    wire::UpdateStatus {
        state: name(&UPDATE_STATES, m.state()),
        started_at: (!m.started_at.is_never()).then(|| time_to_wire(m.started_at)),
        completed_at: (!m.completed_at.is_never()).then(|| time_to_wire(m.completed_at)),
        message: non_empty(&m.message),
    }
}

/// A service as Docker's clients read it, without its `ServiceStatus`.
pub fn service_to_wire(m: &Service) -> wire::Service {
    let job = matches!(m.spec.mode, Some(ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob(_)));
    wire::Service {
        id: Some(m.id.to_string()),
        version: version(&m.meta),
        created_at: Some(time_to_wire(m.meta.created_at)),
        updated_at: Some(time_to_wire(m.meta.updated_at)),
        spec: Some(service_spec_to_wire(&m.spec)),
        previous_spec: m.previous_spec.as_ref().map(service_spec_to_wire),
        endpoint: Some(wire::Endpoint {
            spec: Some(m.spec.endpoint.as_ref().map(endpoint_to_wire).unwrap_or_default()),
            ports: non_default(&m.endpoint.ports.iter().map(port_to_wire).collect()),
            virtual_ips: non_default(
                &m.endpoint
                    .virtual_ips
                    .iter()
                    .flat_map(|v| [&v.address, &v.address6].map(|address| (&v.network, address)))
                    .filter(|(_, address)| !address.is_empty())
                    .map(|(network, address)| wire::VirtualIp {
                        network_id: Some(network.to_string()),
                        addr: non_empty(address),
                    })
                    .collect(),
            ),
        }),
        update_status: m.update_status.as_ref().map(update_status_to_wire),
        service_status: None,
        job_status: job.then(|| wire::JobStatus {
            job_iteration: Some(wire::ObjectVersion { index: Some(m.job_iteration) }),
            last_execution: Some(time_to_wire(m.meta.updated_at)),
        }),
    }
}

/// Fills in what Docker fills in for `insertDefaults=true`, with the values that are in force.
pub fn insert_defaults(w: &mut wire::ServiceSpec, m: &ServiceSpec) {
    let task = w.task_template.get_or_insert_default();
    let container = task.container_spec.get_or_insert_default();
    container.stop_grace_period.get_or_insert(duration_to_wire(m.task.container.stop_grace()));
    container.dns_config.get_or_insert_default();
    let policy = m.task.restart_policy();
    let restart = task.restart_policy.get_or_insert_default();
    restart.condition.get_or_insert(name(&CONDITIONS, policy.when()).unwrap_or_default());
    restart.delay.get_or_insert(duration_to_wire(policy.delay()));
    restart.max_attempts.get_or_insert(0);
    for (slot, config) in [
        (&mut w.update_config, m.update.clone().unwrap_or_default()),
        (&mut w.rollback_config, m.rollback.clone().unwrap_or_default()),
    ] {
        let filled = slot.get_or_insert_with(|| update_to_wire(&config));
        filled.monitor.get_or_insert(duration_to_wire(config.monitor()));
    }
    let endpoint = w.endpoint_spec.get_or_insert_default();
    endpoint.mode.get_or_insert_with(|| "vip".to_owned());
}
