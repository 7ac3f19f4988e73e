//! `shoal service inspect --pretty`.

use std::fmt::{Display, Write as _};

use super::list::mode;
use crate::cli::output::printable;
use crate::cli::tasks::ports;
use crate::cli::values::{bytes, human_duration};
use crate::docker_api::wire::{Map, Resources, Service, TaskSpec, UpdateConfig};

struct Page(String);

impl Page {
    fn say(&mut self, key: &str, value: impl Display) {
        let value = printable(&value.to_string());
        if !value.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(self.0, "{:<20}{value}", format!("{key}:"));
        }
    }

    fn title(&mut self, title: &str) {
        let _ = writeln!(self.0, "{title}:");
    }

    fn labels(&mut self, key: &str, labels: Option<&Map>) {
        for (label, value) in labels.into_iter().flatten() {
            self.say(key, format_args!("{label}={value}"));
        }
    }

    fn list(&mut self, key: &str, values: Option<&Vec<String>>) {
        for value in values.into_iter().flatten() {
            self.say(key, value);
        }
    }
}

/// All about a service, for people.
pub(super) fn describe(service: &Service) -> String {
    let mut page = Page(String::new());
    let spec = service.spec.clone().unwrap_or_default();
    page.say("ID", service.id.as_deref().unwrap_or_default());
    page.say("Name", spec.name.as_deref().unwrap_or_default());
    page.labels("Label", spec.labels.as_ref());
    let service_mode = spec.mode.clone().unwrap_or_default();
    page.say("Mode", mode(&service_mode));
    if let Some(replicas) = service_mode.replicated.and_then(|r| r.replicas) {
        page.say("Replicas", replicas);
    }
    if let Some(update) = &service.update_status {
        page.title("Last update");
        page.say(" State", update.state.as_deref().unwrap_or_default());
        page.say(" Started", crate::cli::age::ago(update.started_at.as_deref().unwrap_or_default()));
        page.say(" Completed", crate::cli::age::ago(update.completed_at.as_deref().unwrap_or_default()));
        page.say(" Message", update.message.as_deref().unwrap_or_default());
    }
    let task = spec.task_template.unwrap_or_default();
    describe_task(&mut page, &task);
    for (title, config) in [("Updates", &spec.update_config), ("Rollbacks", &spec.rollback_config)] {
        if let Some(config) = config {
            page.title(title);
            describe_update(&mut page, config);
        }
    }
    page.title("Endpoint");
    let endpoint = service.endpoint.clone().unwrap_or_default();
    page.say(" Mode", spec.endpoint_spec.and_then(|e| e.mode).unwrap_or_default());
    page.say(" Ports", ports(&endpoint.ports.unwrap_or_default(), "*:"));
    for vip in endpoint.virtual_ips.into_iter().flatten() {
        page.say(" Virtual address", vip.addr.unwrap_or_default());
    }
    page.0 + "\n"
}

fn describe_task(page: &mut Page, task: &TaskSpec) {
    page.title("Container");
    let container = task.container_spec.clone().unwrap_or_default();
    page.say(" Image", container.image.unwrap_or_default());
    page.say(" Entry point", container.command.unwrap_or_default().join(" "));
    page.say(" Arguments", container.args.unwrap_or_default().join(" "));
    page.list(" Environment", container.env.as_ref());
    page.labels(" Label", container.labels.as_ref());
    page.say(" User", container.user.unwrap_or_default());
    page.say(" Directory", container.dir.unwrap_or_default());
    for mount in container.mounts.into_iter().flatten() {
        let source = mount.source.unwrap_or_default();
        let mode = if mount.read_only == Some(true) { " (read-only)" } else { "" };
        let (kind, target) = (mount.kind.unwrap_or_default(), mount.target.unwrap_or_default());
        page.say(" Mount", format_args!("{kind} {source} at {target}{mode}"));
    }
    if let Some(grace) = container.stop_grace_period {
        page.say(" Stop grace period", human_duration(grace));
    }
    let resources = task.resources.clone().unwrap_or_default();
    describe_resources(page, &resources);
    let placement = task.placement.clone().unwrap_or_default();
    page.list("Constraint", placement.constraints.as_ref());
    if let Some(max) = placement.max_replicas.filter(|n| *n > 0) {
        page.say("Max tasks per host", max);
    }
    for network in task.networks.iter().flatten() {
        page.say("Network", network.target.as_deref().unwrap_or_default());
    }
    if let Some(policy) = &task.restart_policy {
        page.title("Restarts");
        page.say(" Condition", policy.condition.as_deref().unwrap_or("any"));
        page.say(" Delay", policy.delay.map(human_duration).unwrap_or_default());
        page.say(" Max attempts", policy.max_attempts.unwrap_or_default());
    }
}

fn describe_resources(page: &mut Page, resources: &Resources) {
    let cpus = |nanos: i64| nanos as f64 / 1e9;
    let memory = |n: i64| bytes(u64::try_from(n).unwrap_or_default());
    let limits = resources.limits.clone().unwrap_or_default();
    let reserved = resources.reservations.clone().unwrap_or_default();
    for (title, nano_cpus, memory_bytes, pids) in [
        ("Limits", limits.nano_cpus, limits.memory_bytes, limits.pids),
        ("Reservations", reserved.nano_cpus, reserved.memory_bytes, None),
    ] {
        let set = |n: Option<i64>| n.filter(|n| *n > 0);
        if set(nano_cpus).or(set(memory_bytes)).or(set(pids)).is_none() {
            continue;
        }
        page.title(title);
        if let Some(nanos) = set(nano_cpus) {
            page.say(" CPUs", cpus(nanos));
        }
        page.say(" Memory", set(memory_bytes).map(memory).unwrap_or_default());
        page.say(" Processes", set(pids).map(|n| n.to_string()).unwrap_or_default());
    }
}

fn describe_update(page: &mut Page, config: &UpdateConfig) {
    page.say(" Parallelism", config.parallelism.unwrap_or(1));
    page.say(" Delay", config.delay.filter(|d| *d > 0).map(human_duration).unwrap_or_default());
    page.say(" On failure", config.failure_action.as_deref().unwrap_or("pause"));
    page.say(" Monitor", config.monitor.map(human_duration).unwrap_or_default());
    page.say(" Max failure ratio", config.max_failure_ratio.unwrap_or_default());
    page.say(" Order", config.order.as_deref().unwrap_or("stop-first"));
}
