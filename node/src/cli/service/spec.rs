//! From flags to the API's service spec. Nothing here asks anyone.

use std::path::Path;

use deploy::model::PUBLISH_LABEL;

use super::args::{CreateArgs, EndpointMode, Mode, Settings, UpdateArgs, word};
use crate::cli::error::CliError;
use crate::cli::values::{KeyValue, PayloadFlag, env_key, fill_env, words};
use crate::docker_api::wire::{
    ContainerSpec, Driver, Empty, EndpointSpec, FileTarget, Healthcheck, Limits, Map, Placement, PortConfig,
    Preference, Replicated, Reservations, RestartPolicy, ServiceMode, ServiceSpec, Spread, TaskSpec, UpdateConfig,
};

/// Largest `--env-file`.
const MAX_ENV_FILE: u64 = 1 << 20;

fn map(pairs: Vec<KeyValue>) -> Option<Map> {
    (!pairs.is_empty()).then(|| pairs.into_iter().map(|p| (p.key, p.value)).collect())
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// The spec of a new service; `lookup` reads the client's environment.
///
/// # Errors
/// On flags that contradict each other, and on unreadable `--env-file`s.
pub(super) fn create(args: CreateArgs, lookup: impl Fn(&str) -> Option<String>) -> Result<ServiceSpec, CliError> {
    let mut words = args.image_and_args.into_iter();
    let image = words.next().filter(|image| !image.trim().is_empty());
    let image = image.ok_or_else(|| CliError::usage("the image must not be empty"))?;
    if image.starts_with('-') {
        return Err(CliError::usage(format!("unknown flag {image:?}: see `shoal service create --help`")));
    }
    if args.mode == Some(Mode::Global) && args.settings.replicas.is_some() {
        return Err(CliError::usage("--replicas does not go with --mode global: each host gets one task"));
    }
    check_publish_to(&args.settings, args.label.iter().map(|label| &label.key))?;
    let ports: Vec<PortConfig> = args.publish.into_iter().flat_map(|p| p.0).collect();
    check_ports(&ports)?;
    let mut env = Vec::new();
    for file in &args.env_file {
        env.extend(env_file(file)?);
    }
    env.extend(args.env);
    let dns: Vec<String> = args.dns.iter().map(ToString::to_string).collect();
    let container = ContainerSpec {
        image: Some(image),
        args: some(words.collect()),
        labels: map(args.container_label),
        env: some(fill_env(&env, lookup)),
        mounts: some(args.mount),
        secrets: some(args.secret.iter().map(PayloadFlag::secret).collect()),
        configs: some(args.config.iter().map(PayloadFlag::config).collect()),
        hosts: some(args.hosts),
        dns_config: (!dns.is_empty() || !args.dns_search.is_empty() || !args.dns_option.is_empty()).then(|| {
            crate::docker_api::wire::DnsConfig {
                nameservers: some(dns),
                search: some(args.dns_search),
                options: some(args.dns_option),
            }
        }),
        capability_add: some(args.cap_add),
        capability_drop: some(args.cap_drop),
        sysctls: map(args.sysctl),
        ulimits: some(args.ulimit),
        ..ContainerSpec::default()
    };
    let preferences = args.placement_pref.into_iter().map(preference).collect();
    let mut spec = ServiceSpec {
        name: Some(args.name.unwrap_or_else(|| format!("service-{:06x}", rand::random::<u32>() & 0x00ff_ffff))),
        labels: map(args.label),
        task_template: Some(TaskSpec {
            container_spec: Some(container),
            networks: some(args.network),
            placement: Some(Placement {
                constraints: some(args.constraint),
                preferences: some(preferences),
                ..Placement::default()
            }),
            ..TaskSpec::default()
        }),
        mode: Some(match args.mode {
            None | Some(Mode::Replicated) => ServiceMode {
                replicated: Some(Replicated { replicas: Some(args.settings.replicas.unwrap_or(1)) }),
                ..ServiceMode::default()
            },
            Some(Mode::Global) => ServiceMode { global: Some(Empty::default()), ..ServiceMode::default() },
        }),
        endpoint_spec: Some(EndpointSpec { mode: None, ports: some(ports) }),
        ..ServiceSpec::default()
    };
    apply(&args.settings, &mut spec)?;
    Ok(spec)
}

fn preference(label: String) -> Preference {
    Preference { spread: Some(Spread { descriptor: Some(label) }) }
}

/// Lines of `KEY=VALUE` or `KEY`; empty ones and those that begin with `#` do not count.
fn env_file(path: &Path) -> Result<Vec<String>, CliError> {
    let failed = |why: String| CliError::usage(format!("--env-file {}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_ENV_FILE {
        return Err(failed(format!("it is larger than {MAX_ENV_FILE} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let lines = text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.map(|line| crate::cli::values::env(line).map_err(|why| failed(format!("{line:?}: {why}")))).collect()
}

/// Two ports that are published alike cannot both be had.
fn check_ports(ports: &[PortConfig]) -> Result<(), CliError> {
    for (i, port) in ports.iter().enumerate() {
        let same = |other: &&PortConfig| {
            port.published_port.is_some()
                && (other.published_port, &other.protocol) == (port.published_port, &port.protocol)
        };
        if let Some(other) = ports[..i].iter().find(same) {
            return Err(CliError::usage(format!(
                "port {}/{} is published twice",
                other.published_port.unwrap_or_default(),
                other.protocol.as_deref().unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// One of two ways to say one thing.
fn check_publish_to<'a>(settings: &Settings, mut labels: impl Iterator<Item = &'a String>) -> Result<(), CliError> {
    if settings.publish_to.is_some() && labels.any(|key| key == PUBLISH_LABEL) {
        return Err(CliError::usage(format!("--publish-to is the label {PUBLISH_LABEL}: leave one of them out")));
    }
    Ok(())
}

/// Sets what the flags say, and nothing else.
fn apply(settings: &Settings, spec: &mut ServiceSpec) -> Result<(), CliError> {
    let task = spec.task_template.get_or_insert_default();
    apply_container(settings, task.container_spec.get_or_insert_default())?;
    apply_task(settings, task);
    let s = settings;
    let failure = |action: String| action;
    apply_update(
        &mut spec.update_config,
        s.update_parallelism,
        s.update_delay,
        s.update_order.map(word),
        s.update_failure_action.map(word).map(failure),
        s.update_monitor,
        s.update_max_failure_ratio,
    );
    apply_update(
        &mut spec.rollback_config,
        s.rollback_parallelism,
        s.rollback_delay,
        s.rollback_order.map(word),
        s.rollback_failure_action.map(word).map(failure),
        s.rollback_monitor,
        s.rollback_max_failure_ratio,
    );
    if let Some(to) = s.publish_to {
        let (label, to) = (PUBLISH_LABEL.to_owned(), word(to));
        spec.labels.get_or_insert_default().insert(label, to);
    }
    if let Some(mode) = s.endpoint_mode {
        spec.endpoint_spec.get_or_insert_default().mode = Some(word(mode));
    }
    check_endpoint(spec)
}

/// A service without a virtual address cannot be reached through the mesh.
fn check_endpoint(spec: &ServiceSpec) -> Result<(), CliError> {
    let Some(endpoint) = &spec.endpoint_spec else { return Ok(()) };
    let meshed = endpoint.ports.iter().flatten().any(|p| p.publish_mode.as_deref() != Some("host"));
    if endpoint.mode.as_deref() == Some(&word(EndpointMode::Dnsrr)) && meshed {
        return Err(CliError::usage("--endpoint-mode dnsrr has no virtual address: publish ports with mode=host"));
    }
    Ok(())
}

fn set<T: Clone>(slot: &mut Option<T>, given: &Option<T>) {
    if given.is_some() {
        slot.clone_from(given);
    }
}

fn apply_container(s: &Settings, container: &mut ContainerSpec) -> Result<(), CliError> {
    set(&mut container.stop_grace_period, &s.stop_grace_period);
    set(&mut container.stop_signal, &s.stop_signal);
    set(&mut container.user, &s.user);
    set(&mut container.dir, &s.workdir);
    set(&mut container.hostname, &s.hostname);
    set(&mut container.read_only, &s.read_only);
    apply_health(s, &mut container.healthcheck)?;
    if let Some(entrypoint) = &s.entrypoint {
        let words = words(entrypoint).map_err(|why| CliError::usage(format!("--entrypoint {entrypoint:?}: {why}")))?;
        container.command = Some(words);
    }
    Ok(())
}

fn apply_health(s: &Settings, slot: &mut Option<Healthcheck>) -> Result<(), CliError> {
    let given = Healthcheck {
        test: s.health_cmd.as_ref().map(|command| vec!["CMD-SHELL".to_owned(), command.clone()]),
        interval: s.health_interval,
        timeout: s.health_timeout,
        start_period: s.health_start_period,
        start_interval: s.health_start_interval,
        retries: s.health_retries,
    };
    if s.no_healthcheck {
        if given != Healthcheck::default() {
            return Err(CliError::usage("--no-healthcheck conflicts with --health-* options"));
        }
        *slot = Some(Healthcheck { test: Some(vec!["NONE".to_owned()]), ..Healthcheck::default() });
        return Ok(());
    }
    if given == Healthcheck::default() {
        return Ok(());
    }
    let check = slot.get_or_insert_default();
    if check.test.as_ref().is_some_and(|test| test.first().is_some_and(|first| first == "NONE")) {
        // Checked again: whatever follows is meant.
        check.test = None;
    }
    set(&mut check.test, &given.test);
    set(&mut check.interval, &given.interval);
    set(&mut check.timeout, &given.timeout);
    set(&mut check.start_period, &given.start_period);
    set(&mut check.start_interval, &given.start_interval);
    set(&mut check.retries, &given.retries);
    Ok(())
}

fn apply_task(s: &Settings, task: &mut TaskSpec) {
    if s.limit_cpu.is_some() || s.limit_memory.is_some() || s.limit_pids.is_some() {
        let limits: &mut Limits = task.resources.get_or_insert_default().limits.get_or_insert_default();
        set(&mut limits.nano_cpus, &s.limit_cpu);
        set(&mut limits.memory_bytes, &s.limit_memory);
        set(&mut limits.pids, &s.limit_pids);
    }
    if s.reserve_cpu.is_some() || s.reserve_memory.is_some() {
        let reserved: &mut Reservations = task.resources.get_or_insert_default().reservations.get_or_insert_default();
        set(&mut reserved.nano_cpus, &s.reserve_cpu);
        set(&mut reserved.memory_bytes, &s.reserve_memory);
    }
    let condition = s.restart_condition.map(word);
    if condition.is_some()
        || s.restart_delay.is_some()
        || s.restart_max_attempts.is_some()
        || s.restart_window.is_some()
    {
        let policy: &mut RestartPolicy = task.restart_policy.get_or_insert_default();
        set(&mut policy.condition, &condition);
        set(&mut policy.delay, &s.restart_delay);
        set(&mut policy.max_attempts, &s.restart_max_attempts);
        set(&mut policy.window, &s.restart_window);
    }
    if s.replicas_max_per_node.is_some() {
        set(&mut task.placement.get_or_insert_default().max_replicas, &s.replicas_max_per_node);
    }
    if s.log_driver.is_some() || !s.log_opt.is_empty() {
        let driver: &mut Driver = task.log_driver.get_or_insert_default();
        if s.log_driver.is_some() && s.log_driver != driver.name {
            // Options of another driver mean nothing to this one.
            *driver = Driver { name: s.log_driver.clone(), options: None };
        }
        let options = s.log_opt.iter().map(|o| (o.key.clone(), o.value.clone()));
        driver.options.get_or_insert_default().extend(options);
    }
}

fn apply_update(
    slot: &mut Option<UpdateConfig>,
    parallelism: Option<u64>,
    delay: Option<i64>,
    order: Option<String>,
    failure_action: Option<String>,
    monitor: Option<i64>,
    max_failure_ratio: Option<f64>,
) {
    let given = UpdateConfig { parallelism, delay, failure_action, monitor, max_failure_ratio, order };
    if given == UpdateConfig::default() {
        return;
    }
    // Docker's engine takes an absent parallelism for 0, which means "all at once"; its client sends 1.
    let config = slot.get_or_insert_with(|| UpdateConfig { parallelism: Some(1), ..UpdateConfig::default() });
    set(&mut config.parallelism, &given.parallelism);
    set(&mut config.delay, &given.delay);
    set(&mut config.failure_action, &given.failure_action);
    set(&mut config.monitor, &given.monitor);
    set(&mut config.max_failure_ratio, &given.max_failure_ratio);
    set(&mut config.order, &given.order);
}

/// What is wrong with an update whatever the service is.
pub(super) fn check_update(args: &UpdateArgs) -> Result<(), CliError> {
    if let Some(text) = &args.args {
        words(text).map_err(|why| CliError::usage(format!("--args {text:?}: {why}")))?;
    }
    if args.image.as_deref().is_some_and(|image| image.trim().is_empty()) {
        return Err(CliError::usage("--image must not be empty"));
    }
    let changed = |args: &UpdateArgs| {
        let mut spec = ServiceSpec::default();
        update(args, &mut spec, |_| None).map(|()| spec).ok()
    };
    if args.rollback && changed(args) != changed(&UpdateArgs::default()) {
        return Err(CliError::usage("--rollback restores the previous spec as a whole: leave the other changes out"));
    }
    let labels = args.label_add.iter().map(|label| &label.key).chain(&args.label_rm);
    check_publish_to(&args.settings, labels)?;
    // On an empty spec, so that only the flags count.
    apply(&args.settings, &mut ServiceSpec::default())
}

/// Changes a spec as the flags say.
///
/// # Errors
/// When the service has not what the flags would take away, or has another mode.
pub(super) fn update(
    args: &UpdateArgs,
    spec: &mut ServiceSpec,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<(), CliError> {
    if let Some(replicas) = args.settings.replicas {
        set_replicas(spec, replicas, &args.service)?;
    }
    change_labels("--label-rm", spec.labels.get_or_insert_default(), &args.label_rm, &args.label_add)?;
    update_ports(args, spec)?;
    update_task(args, spec.task_template.get_or_insert_default())?;
    let container = spec.task_template.get_or_insert_default().container_spec.get_or_insert_default();
    update_container(args, container, lookup)?;
    apply(&args.settings, spec)
}

/// Sets the number of tasks.
///
/// # Errors
/// On a service that is not replicated.
pub(super) fn set_replicas(spec: &mut ServiceSpec, replicas: u64, service: &str) -> Result<(), CliError> {
    let mode = spec.mode.get_or_insert_default();
    let other = mode.global.is_some() || mode.replicated_job.is_some() || mode.global_job.is_some();
    if other {
        return Err(CliError::usage(format!("service {service} is not replicated: it cannot be scaled")));
    }
    mode.replicated = Some(Replicated { replicas: Some(replicas) });
    Ok(())
}

fn change_labels(flag: &str, labels: &mut Map, gone: &[String], new: &[KeyValue]) -> Result<(), CliError> {
    for key in gone {
        if labels.remove(key).is_none() {
            return Err(CliError::usage(format!("{flag} {key}: the service has no such entry")));
        }
    }
    labels.extend(new.iter().map(|l| (l.key.clone(), l.value.clone())));
    Ok(())
}

/// Takes entries out of a list and puts others in, each once.
fn change_list<T: Clone + PartialEq>(
    flag: &str,
    slot: &mut Option<Vec<T>>,
    gone: &[String],
    new: &[T],
    is: impl Fn(&T, &str) -> bool,
    same: impl Fn(&T, &T) -> bool,
) -> Result<(), CliError> {
    if gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    let list = slot.get_or_insert_default();
    for name in gone {
        let before = list.len();
        list.retain(|entry| !is(entry, name));
        if list.len() == before {
            return Err(CliError::usage(format!("{flag} {name}: the service has no such entry")));
        }
    }
    for entry in new {
        list.retain(|old| !same(old, entry));
        list.push(entry.clone());
    }
    Ok(())
}

fn update_ports(args: &UpdateArgs, spec: &mut ServiceSpec) -> Result<(), CliError> {
    if args.publish_add.is_empty() && args.publish_rm.is_empty() {
        return Ok(());
    }
    let ports = spec.endpoint_spec.get_or_insert_default().ports.get_or_insert_default();
    let key = |p: &PortConfig| (p.target_port, p.protocol.clone().unwrap_or_else(|| "tcp".to_owned()));
    for gone in args.publish_rm.iter().flat_map(|p| &p.0) {
        let before = ports.len();
        ports.retain(|p| key(p) != key(gone));
        if ports.len() == before {
            let (target, protocol) = key(gone);
            let target = target.unwrap_or_default();
            return Err(CliError::usage(format!(
                "--publish-rm {target}/{protocol}: the service publishes no such target port"
            )));
        }
    }
    for new in args.publish_add.iter().flat_map(|p| &p.0) {
        // As in Docker, one target may be published at several ports; the same published port is replaced.
        ports.retain(|p| (p.published_port, key(p).1) != (new.published_port, key(new).1));
        ports.push(new.clone());
    }
    check_ports(ports)
}

fn update_task(args: &UpdateArgs, task: &mut TaskSpec) -> Result<(), CliError> {
    if args.force {
        task.force_update = Some(task.force_update.unwrap_or_default() + 1);
    }
    change_list(
        "--network-rm",
        &mut task.networks,
        &args.network_rm,
        &args.network_add,
        |n, name| n.target.as_deref() == Some(name),
        |a, b| a.target == b.target,
    )?;
    let placement = task.placement.get_or_insert_default();
    // `a == b` and `a==b` are the same constraint.
    let squeezed = |text: &str| text.split_whitespace().collect::<String>();
    change_list(
        "--constraint-rm",
        &mut placement.constraints,
        &args.constraint_rm,
        &args.constraint_add,
        |c, given| squeezed(c) == squeezed(given),
        |a, b| squeezed(a) == squeezed(b),
    )?;
    let preferences: Vec<Preference> = args.placement_pref_add.iter().cloned().map(preference).collect();
    change_list(
        "--placement-pref-rm",
        &mut placement.preferences,
        &args.placement_pref_rm,
        &preferences,
        |p, label| p.spread.as_ref().and_then(|s| s.descriptor.as_deref()) == Some(label),
        |a, b| a == b,
    )
}

fn update_container(
    args: &UpdateArgs,
    container: &mut ContainerSpec,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<(), CliError> {
    set(&mut container.image, &args.image);
    if let Some(text) = &args.args {
        container.args = Some(words(text).map_err(CliError::Usage)?);
    }
    let (labels, new) = (&mut container.labels, &args.container_label_add);
    if !args.container_label_rm.is_empty() || !new.is_empty() {
        change_labels("--container-label-rm", labels.get_or_insert_default(), &args.container_label_rm, new)?;
    }
    if !args.sysctl_rm.is_empty() || !args.sysctl_add.is_empty() {
        let sysctls = container.sysctls.get_or_insert_default();
        change_labels("--sysctl-rm", sysctls, &args.sysctl_rm, &args.sysctl_add)?;
    }
    update_env(args, container, lookup)?;
    let target = |m: &crate::docker_api::wire::Mount| m.target.clone();
    change_list(
        "--mount-rm",
        &mut container.mounts,
        &args.mount_rm,
        &args.mount_add,
        |m, path| m.target.as_deref() == Some(path),
        |a, b| target(a) == target(b),
    )?;
    let file = |file: &Option<FileTarget>| file.as_ref().and_then(|file| file.name.clone());
    change_list(
        "--secret-rm",
        &mut container.secrets,
        &args.secret_rm,
        &args.secret_add.iter().map(PayloadFlag::secret).collect::<Vec<_>>(),
        |s, name| s.name.as_deref() == Some(name),
        |a, b| file(&a.file) == file(&b.file),
    )?;
    change_list(
        "--config-rm",
        &mut container.configs,
        &args.config_rm,
        &args.config_add.iter().map(PayloadFlag::config).collect::<Vec<_>>(),
        |c, name| c.name.as_deref() == Some(name),
        |a, b| file(&a.file) == file(&b.file),
    )?;
    let text = |a: &String, b: &str| a == b;
    let same = |a: &String, b: &String| a == b;
    change_list("--host-rm", &mut container.hosts, &args.host_rm, &args.host_add, text, same)?;
    update_dns(args, container)?;
    change_list(
        "--ulimit-rm",
        &mut container.ulimits,
        &args.ulimit_rm,
        &args.ulimit_add,
        |u, name| u.name.as_deref() == Some(name),
        |a, b| a.name == b.name,
    )?;
    swap(&mut container.capability_add, &mut container.capability_drop, &args.cap_add);
    swap(&mut container.capability_drop, &mut container.capability_add, &args.cap_drop);
    Ok(())
}

/// Puts capabilities into one list and takes them out of the other.
fn swap(into: &mut Option<Vec<String>>, out_of: &mut Option<Vec<String>>, given: &[String]) {
    for capability in given {
        if let Some(list) = out_of {
            list.retain(|c| c != capability);
        }
        let list = into.get_or_insert_default();
        if !list.contains(capability) {
            list.push(capability.clone());
        }
    }
}

fn update_env(
    args: &UpdateArgs,
    container: &mut ContainerSpec,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<(), CliError> {
    if args.env_rm.is_empty() && args.env_add.is_empty() {
        return Ok(());
    }
    let env = container.env.get_or_insert_default();
    for key in &args.env_rm {
        let before = env.len();
        env.retain(|entry| env_key(entry) != key);
        if env.len() == before {
            return Err(CliError::usage(format!("--env-rm {key}: the service has no such variable")));
        }
    }
    env.extend(fill_env(&args.env_add, lookup));
    // The last one of a name wins.
    *env = fill_env(env, |_| None);
    Ok(())
}

fn update_dns(args: &UpdateArgs, container: &mut ContainerSpec) -> Result<(), CliError> {
    let strings = |list: &[std::net::IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<String>>();
    let (gone, new) = (strings(&args.dns_rm), strings(&args.dns_add));
    let lists = [&gone, &new, &args.dns_search_rm, &args.dns_search_add, &args.dns_option_rm, &args.dns_option_add];
    if lists.iter().all(|list| list.is_empty()) {
        return Ok(());
    }
    let dns = container.dns_config.get_or_insert_default();
    let text = |a: &String, b: &str| a == b;
    let same = |a: &String, b: &String| a == b;
    change_list("--dns-rm", &mut dns.nameservers, &gone, &new, text, same)?;
    change_list("--dns-search-rm", &mut dns.search, &args.dns_search_rm, &args.dns_search_add, text, same)?;
    change_list("--dns-option-rm", &mut dns.options, &args.dns_option_rm, &args.dns_option_add, text, same)
}
