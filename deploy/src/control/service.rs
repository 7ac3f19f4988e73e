//! Services: made, changed, rolled back, removed.

use std::sync::Arc;

use super::{
    ControlError, CreateService, ErrorKind, RemoveService, Reply, UpdateService, invalid, named, not_found,
    out_of_sequence, precondition, unimplemented, validate,
};
use crate::allocator;
use crate::cx::Cx;
use crate::model::{
    BRIDGE_NETWORK, ConfigId, DesiredState, HOST_NETWORK, NONE_NETWORK, NetworkAttachmentConfig, NetworkId,
    PayloadReference, PortConfig, PublishMode, SecretId, Service, ServiceId, ServiceMode, ServiceSpec, UpdateState,
    UpdateStatus,
};
use crate::store::{Key, Store, Txn};

pub(super) fn create(cx: &mut Cx<'_>, txn: &mut Txn, op: &CreateService) -> Result<Reply, ControlError> {
    let mut spec = op.spec.clone();
    validate::service_spec(&spec)?;
    resolve_networks(txn, &mut spec)?;
    check_ingress(txn, &spec)?;
    check_payloads(txn, &spec)?;
    if txn.service_by_name(&spec.name).is_some() {
        let text = format!("name conflicts with an existing object: service {} already exists", spec.name);
        return Err(ControlError::new(ErrorKind::AlreadyExists, text));
    }
    let id: ServiceId = cx.id();
    check_ports(txn, &id, &spec)?;
    check_host_ports(txn, &spec)?;
    txn.put_service(Service { id: id.clone(), spec, spec_version: 1, ..Service::default() });
    Ok(named(id))
}

pub(super) fn update(txn: &mut Txn, op: &UpdateService) -> Result<Reply, ControlError> {
    let Some(current) = txn.service(&op.id) else { return Err(not_found("service", &op.id)) };
    let mut service = (**current).clone();
    if service.meta.version != op.version {
        return Err(out_of_sequence());
    }
    if op.rollback {
        let Some(previous) = &service.previous_spec else {
            return Err(precondition(format!("service {} does not have a previous spec", op.id)));
        };
        check_still_there(txn, previous)?;
        check_ingress(txn, previous)?;
        check_payloads(txn, previous)?;
        check_ports(txn, &op.id, previous)?;
        check_host_ports(txn, previous)?;
        service.roll_back(txn.now(), "manually requested rollback");
        txn.put_service(service);
        return Ok(named(&op.id));
    }
    let mut spec = op.spec.clone();
    if spec.name != service.spec.name {
        return Err(unimplemented("renaming services is not supported"));
    }
    if kind_of_mode(&spec) != kind_of_mode(&service.spec) {
        return Err(unimplemented("service mode change is not allowed"));
    }
    validate::service_spec(&spec)?;
    resolve_networks(txn, &mut spec)?;
    check_ingress(txn, &spec)?;
    check_payloads(txn, &spec)?;
    check_ports(txn, &op.id, &spec)?;
    check_host_ports(txn, &spec)?;
    change(&mut service, spec, txn);
    txn.put_service(service);
    Ok(named(&op.id))
}

/// Puts a new spec into a service, and starts the update if tasks have to be replaced for it.
fn change(service: &mut Service, spec: ServiceSpec, store: &Store) {
    if spec == service.spec {
        return;
    }
    let replaces_tasks = spec.task != service.spec.task || spec.endpoint_spec() != service.spec.endpoint_spec();
    let previous_version = service.spec_version;
    if replaces_tasks {
        // After a rollback the previous version is the higher one; after one and a change of scale, only tasks that were
        // made in between still carry the highest.
        let carried = store.tasks_of_service(&service.id).map(|task| task.spec_version);
        let highest = carried.chain([service.spec_version, service.previous_spec_version]).max();
        service.spec_version = highest.unwrap_or_default() + 1;
    }
    service.previous_spec_version = previous_version;
    service.previous_spec = Some(std::mem::replace(&mut service.spec, spec));
    let running = service.update_status.as_ref().map(UpdateStatus::state);
    service.update_status = match running {
        _ if replaces_tasks => Some(updating(store)),
        // Scaling in the middle of an update goes on with it; after a pause, any update is the user's "go on".
        Some(UpdateState::Updating | UpdateState::RollbackStarted) => service.update_status.take(),
        Some(UpdateState::Paused | UpdateState::RollbackPaused) => Some(updating(store)),
        // Nothing is being replaced. (An old "completed" would end the CLI's progress bar before it began.)
        Some(UpdateState::Completed | UpdateState::RollbackCompleted) | None => None,
    };
}

fn updating(store: &Store) -> UpdateStatus {
    UpdateStatus {
        state: UpdateState::Updating as i32,
        started_at: store.now(),
        message: "update in progress".to_owned(),
        ..UpdateStatus::default()
    }
}

pub(super) fn remove(txn: &mut Txn, op: &RemoveService) -> Result<Reply, ControlError> {
    if txn.service(&op.id).is_none() {
        return Err(not_found("service", &op.id));
    }
    let tasks: Vec<_> = txn.tasks_of_service(&op.id).cloned().collect();
    for task in tasks {
        // What does not fit is the reaper's: a task whose service is gone is to be removed.
        if txn.is_full() {
            break;
        }
        if task.desired() != DesiredState::Remove {
            let mut task = Arc::unwrap_or_clone(task);
            task.stop(DesiredState::Remove, txn.now());
            txn.put_task(task);
        }
    }
    txn.remove_service(&op.id);
    Ok(named(&op.id))
}

fn kind_of_mode(spec: &ServiceSpec) -> u8 {
    match spec.mode {
        None | Some(ServiceMode::Replicated(_)) => 0,
        Some(ServiceMode::Global(_)) => 1,
        Some(ServiceMode::ReplicatedJob(_)) => 2,
        Some(ServiceMode::GlobalJob(_)) => 3,
    }
}

/// Replaces the names of networks by their ids, as they are stored.
fn resolve_networks(store: &Store, spec: &mut ServiceSpec) -> Result<(), ControlError> {
    if let Some(mode) = spec.task.networks.iter().find(|network| is_predefined(&network.target)) {
        let is_bridge = mode.target == BRIDGE_NETWORK;
        check_predefined(spec, mode)?;
        // The way out without names, which is what tasks without networks have.
        if is_bridge {
            spec.task.networks.clear();
        }
        return Ok(());
    }
    let mut seen = std::collections::BTreeSet::new();
    for wanted in &mut spec.task.networks {
        let by_id = store.network(&NetworkId::new(&wanted.target));
        let Some(network) = by_id.or_else(|| store.network_by_name(&wanted.target)) else {
            return Err(not_found("network", &wanted.target));
        };
        if network.spec.ingress {
            let name = &network.spec.name;
            let text = format!("Service cannot be explicitly attached to the ingress network \"{name}\"");
            return Err(invalid(text));
        }
        if !seen.insert(network.id.clone()) {
            return Err(invalid(format!("network {} is named twice", network.spec.name)));
        }
        wanted.target = network.id.to_string();
    }
    Ok(())
}

fn is_predefined(target: &str) -> bool {
    [HOST_NETWORK, NONE_NETWORK, BRIDGE_NETWORK].contains(&target)
}

/// Tasks on the host's own network, or on none, have no address that ports could be led to, and no names.
fn check_predefined(spec: &ServiceSpec, wanted: &NetworkAttachmentConfig) -> Result<(), ControlError> {
    let name = &wanted.target;
    if spec.task.networks.len() > 1 {
        return Err(invalid(format!("network {name} cannot be combined with other networks")));
    }
    if !wanted.aliases.is_empty() {
        return Err(invalid(format!("network {name} has no names, so no aliases either")));
    }
    if !spec.endpoint_spec().ports.is_empty() && name != BRIDGE_NETWORK {
        let why = match name.as_str() {
            HOST_NETWORK => "what its tasks listen at is open on their hosts as it is",
            _ => "nothing reaches its tasks",
        };
        return Err(invalid(format!("ports cannot be published with network {name}: {why}")));
    }
    let of_network = |name: &&String| name.starts_with("net.");
    if name == HOST_NETWORK
        && let Some(setting) = spec.task.container.sysctls.keys().find(of_network)
    {
        return Err(invalid(format!("sysctl '{}' is not allowed with network host", validate::shorten(setting))));
    }
    Ok(())
}

/// A previous spec may name networks that were removed meanwhile.
fn check_still_there(store: &Store, spec: &ServiceSpec) -> Result<(), ControlError> {
    let gone = |target: &str| store.network(&NetworkId::new(target)).is_none();
    match spec.task.cluster_networks().find(|network| gone(&network.target)) {
        Some(network) => Err(not_found("network", &network.target)),
        None => Ok(()),
    }
}

/// Ports that are open on every host need the network that carries them, which users can remove. Docker's words.
fn check_ingress(store: &Store, spec: &ServiceSpec) -> Result<(), ControlError> {
    let publishes = spec.endpoint.as_ref().is_some_and(|endpoint| endpoint.ports.iter().any(PortConfig::is_ingress));
    if publishes && store.ingress_network().is_none() {
        return Err(precondition("service needs ingress network, but no ingress network is present"));
    }
    Ok(())
}

/// Refuses secrets and configs that are not there, or not under that name; Docker's words.
fn check_payloads(store: &Store, spec: &ServiceSpec) -> Result<(), ControlError> {
    let container = &spec.task.container;
    let secret = |used: &PayloadReference| {
        store.secret(&SecretId::new(&used.id)).is_some_and(|secret| secret.spec.name == used.name)
    };
    let config = |used: &PayloadReference| {
        store.config(&ConfigId::new(&used.id)).is_some_and(|config| config.spec.name == used.name)
    };
    let missing = |references: &[PayloadReference], is_there: &dyn Fn(&PayloadReference) -> bool| -> Vec<String> {
        let wrong = references.iter().filter(|used| !is_there(used));
        wrong.map(|used| used.name.chars().take(100).collect()).collect()
    };
    for (kind, missing) in
        [("secret", missing(&container.secrets, &secret)), ("config", missing(&container.configs, &config))]
    {
        match missing.len() {
            0 => {}
            1 => return Err(invalid(format!("{kind} {} not found", missing[0]))),
            _ => return Err(invalid(format!("{kind}s {} not found", missing.join(", ")))),
        }
    }
    Ok(())
}

/// Refuses ports of the hosts of tasks that no host leads to: what is on internal networks alone has no way to its host.
fn check_host_ports(store: &Store, spec: &ServiceSpec) -> Result<(), ControlError> {
    let mut networks =
        spec.task.cluster_networks().filter_map(|n| store.network(&NetworkId::new(&n.target))).peekable();
    let is_host = |port: &&PortConfig| port.mode() == PublishMode::Host;
    if networks.peek().is_some()
        && networks.all(|network| network.spec.internal)
        && let Some(port) = spec.endpoint_spec().ports.iter().find(is_host)
    {
        return Err(invalid(format!(
            "port '{}' in host mode cannot be reached: the service is on internal networks alone; publish it in ingress \
             mode, or add another network",
            port.target
        )));
    }
    Ok(())
}

/// Refuses a published port that a host itself, another service or a task has, or that a service has asked for.
fn check_ports(store: &Store, id: &ServiceId, spec: &ServiceSpec) -> Result<(), ControlError> {
    let wanted = spec.endpoint_spec().ports;
    // What the service has is its own, also when a host came later that listens there (that host leaves it out).
    let current = store.service(id).map(|service| service.spec.endpoint_spec().ports).unwrap_or_default();
    for port in wanted.iter().filter(|port| port.published != 0) {
        if !current.contains(port)
            && let Some(holder) = allocator::reserved_port(store, port.protocol(), port.published)
        {
            let text = format!("port '{}' is already in use by {holder}", port.published);
            return Err(ControlError::new(ErrorKind::Invalid, text));
        }
        let owner = store.published_port_owner(port.protocol(), port.published).filter(|owner| owner.id != *id);
        if let Some(owner) = owner.or_else(|| asked_for(store, id, port, PublishMode::Ingress)) {
            return Err(port_taken(port, owner, "an ingress port"));
        }
        // Host-mode ports of two services may be equal: they only keep their tasks apart.
        if port.is_ingress()
            && let Some(owner) = asked_for(store, id, port, PublishMode::Host)
        {
            return Err(port_taken(port, owner, "a host-published port"));
        }
        if port.is_ingress()
            && !current.contains(port)
            && let Some(task) = store.chosen_port_holder(port.protocol(), port.published)
        {
            let text = format!(
                "port '{}' is already in use by task '{}' ({}) as a host-published port, which was chosen for it",
                port.published,
                task.name(),
                task.id
            );
            return Err(ControlError::new(ErrorKind::Invalid, text));
        }
    }
    Ok(())
}

/// Another service whose spec names the port in that mode.
fn asked_for<'a>(store: &'a Store, id: &ServiceId, port: &PortConfig, mode: PublishMode) -> Option<&'a Arc<Service>> {
    let same = |other: &PortConfig| {
        other.mode() == mode && other.published == port.published && other.protocol() == port.protocol()
    };
    let ports = |service: &Service| service.spec.endpoint.as_ref().is_some_and(|e| e.ports.iter().any(same));
    match mode {
        // The index knows those that were given; the rest waits for the allocator, and is few.
        PublishMode::Ingress => store
            .unallocated()
            .filter_map(|key| if let Key::Service(id) = key { store.service(id) } else { None })
            .find(|service| service.id != *id && ports(service)),
        PublishMode::Host => store.services().find(|service| service.id != *id && ports(service)),
    }
}

fn port_taken(port: &PortConfig, owner: &Service, how: &str) -> ControlError {
    let text =
        format!("port '{}' is already in use by service '{}' ({}) as {how}", port.published, owner.spec.name, owner.id);
    ControlError::new(ErrorKind::Invalid, text)
}
