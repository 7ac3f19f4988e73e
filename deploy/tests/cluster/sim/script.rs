//! The language of the text scenarios: one command a line, `show` and refusals answer.

use std::fmt::Write as _;
use std::time::Duration;

use deploy::control::{
    ControlError, CreateNetwork, CreateService, Op, RemoveNode, RemoveService, UpdateCluster, UpdateNode, UpdateService,
};
use deploy::model::{
    EndpointSpec, FailureAction, Global, NetworkAttachmentConfig, NetworkSpec, NodeAvailability, NodeRole, PortConfig,
    PublishMode, Replicated, RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, Task, UpdateConfig,
    UpdateOrder,
};
use deploy::{dispatcher, scheduler};

use super::{Sim, node_id};

/// Runs a scenario: returns it with every answer written below its command, on lines that begin with `| `.
pub(crate) fn run_script(text: &str) -> String {
    let mut sim = Sim::new(1);
    let mut out = String::new();
    for line in text.lines().filter(|l| !l.starts_with("| ")) {
        out.push_str(line);
        out.push('\n');
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.starts_with('#') {
            continue;
        }
        let answer = match sim.command(&words) {
            Ok(answer) => answer,
            Err(error) => format!("error: {error}\n"),
        };
        let log = std::mem::take(&mut sim.log);
        for line in log.iter().map(String::as_str).chain(answer.lines()) {
            let _ = writeln!(out, "| {}", line.trim_end());
        }
    }
    out
}

/// `10s`, `200ms`, `2m`, `24h`.
pub(crate) fn duration(text: &str) -> Duration {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().unwrap_or_else(|_| panic!("not a duration: {text}"));
    match &text[digits.len()..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number * 60),
        "h" => Duration::from_secs(number * 3600),
        unit => panic!("unknown unit {unit}"),
    }
}

fn bytes(text: &str) -> u64 {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().unwrap_or_else(|_| panic!("not a size: {text}"));
    number << if text.ends_with('g') { 30 } else { 20 }
}

fn nanos(text: &str) -> Option<u64> {
    Some(duration(text).as_nanos() as u64)
}

/// `cpus=0.5` in billionths.
fn cpus(text: &str) -> u64 {
    (text.parse::<f64>().expect("a number of CPUs") * 1e9) as u64
}

fn split(word: &str) -> (&str, &str) {
    word.split_once('=').unwrap_or((word, ""))
}

impl Sim {
    pub(crate) fn command(&mut self, words: &[&str]) -> Result<String, ControlError> {
        let nothing = Ok(String::new());
        match words {
            ["node", "add", name, options @ ..] => {
                let role = if options.contains(&"manager") { NodeRole::Manager } else { NodeRole::Worker };
                self.add_host(name, role, |d| {
                    for (key, value) in options.iter().map(|o| split(o)) {
                        match key {
                            "mem" => d.resources.memory_bytes = bytes(value),
                            "cpus" => d.resources.nano_cpus = cpus(value),
                            "arch" => d.architecture = value.into(),
                            key => drop(d.engine_labels.insert(key.into(), value.into())),
                        }
                    }
                });
                nothing
            }
            ["node", "cut", name] => {
                self.cut(name);
                nothing
            }
            ["node", deaf @ ("deaf" | "hears"), name] => {
                self.deafen(name, *deaf == "deaf");
                nothing
            }
            ["node", "kill", name] => {
                self.kill(name);
                nothing
            }
            ["node", "restart", name] => {
                self.restart_daemon(name);
                nothing
            }
            ["node", "up", name] => {
                self.connect(name);
                nothing
            }
            ["node", "rm", name, options @ ..] => {
                let force = options.contains(&"--force");
                self.request(Op::RemoveNode(RemoveNode { id: node_id(name), force })).map(|_| String::new())
            }
            ["node", verb @ ("drain" | "pause" | "activate"), name] => self.update_node(name, |spec| {
                spec.set_availability(match *verb {
                    "drain" => NodeAvailability::Drain,
                    "pause" => NodeAvailability::Pause,
                    _ => NodeAvailability::Active,
                });
            }),
            ["node", "label", name, label] => {
                let (key, value) = split(label);
                self.update_node(name, |spec| drop(spec.labels.insert(key.into(), value.into())))
            }
            ["network", "create", name] => {
                let spec = NetworkSpec { name: (*name).into(), driver: "overlay".into(), ..NetworkSpec::default() };
                self.request(Op::CreateNetwork(Box::new(CreateNetwork { spec }))).map(|_| String::new())
            }
            ["service", "create", name, options @ ..] => {
                let mut spec = ServiceSpec { name: (*name).into(), ..ServiceSpec::default() };
                spec.task.container.image = "shoal/test:1".into();
                configure(&mut spec, options);
                self.request(Op::CreateService(Box::new(CreateService { spec }))).map(|_| String::new())
            }
            ["service", "update", name, options @ ..] => self.update_service(name, |spec| configure(spec, options)),
            ["service", "scale", name, count] => {
                let count = [format!("replicas={count}")];
                self.update_service(name, |spec| configure(spec, &[count[0].as_str()]))
            }
            ["service", "rollback", name] => {
                let service = self.service(name);
                let op = UpdateService {
                    id: service.id,
                    version: service.meta.version,
                    spec: ServiceSpec::default(),
                    rollback: true,
                };
                self.request(Op::UpdateService(Box::new(op))).map(|_| String::new())
            }
            ["service", "rm", name] => {
                let id = self.service(name).id;
                self.request(Op::RemoveService(RemoveService { id })).map(|_| String::new())
            }
            ["history", limit] => {
                let cluster = self.store.cluster().expect("cluster").clone();
                let mut spec = cluster.spec.clone();
                spec.task_history_limit = limit.parse().ok();
                let op = UpdateCluster { version: cluster.meta.version, spec, ..UpdateCluster::default() };
                self.request(Op::UpdateCluster(Box::new(op))).map(|_| String::new())
            }
            ["leader", "change"] => {
                self.change_leader();
                nothing
            }
            ["advance", time] => {
                self.advance(duration(time));
                nothing
            }
            ["settle"] => {
                self.settle(Duration::from_secs(3600));
                nothing
            }
            ["show", "tasks", options @ ..] => Ok(self.show_tasks(options.contains(&"all"))),
            ["show", "messages"] => Ok(self.show_messages()),
            ["show", "service", name] => Ok(self.show_service(name)),
            ["show", "running"] => Ok(self.show_running()),
            ["show", "set", name] => Ok(self.show_set(name)),
            ["why", name] => Ok(self.show_why(name)),
            other => panic!("unknown command {other:?}"),
        }
    }

    fn update_node(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut deploy::model::NodeSpec),
    ) -> Result<String, ControlError> {
        let node = self.store.node(&node_id(name)).unwrap_or_else(|| panic!("no node {name}")).clone();
        let mut spec = node.spec.clone();
        change(&mut spec);
        let op = UpdateNode { id: node.id.clone(), version: node.meta.version, spec };
        self.request(Op::UpdateNode(op)).map(|_| String::new())
    }

    pub(crate) fn update_service(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut ServiceSpec),
    ) -> Result<String, ControlError> {
        let service = self.service(name);
        let mut spec = service.spec.clone();
        change(&mut spec);
        let op = UpdateService { id: service.id, version: service.meta.version, spec, rollback: false };
        self.request(Op::UpdateService(Box::new(op))).map(|_| String::new())
    }

    /// The wanted tasks, or all: `web.1#2`, where `#2` says that it is the second task of the slot.
    fn show_tasks(&self, all: bool) -> String {
        let mut tasks: Vec<&Task> = self.store.tasks().filter(|t| all || t.is_wanted()).map(|t| &**t).collect();
        let place = |t: &Task| if t.slot == 0 { self.hostname(&t.node_id) } else { format!("{:08}", t.slot) };
        tasks.sort_by_cached_key(|t| (t.service_name.clone(), place(t), std::cmp::Reverse(t.ordinal)));
        let mut out = String::new();
        for task in tasks {
            let slot = if task.slot == 0 { self.hostname(&task.node_id) } else { task.slot.to_string() };
            let name = format!("{}.{slot}#{}", task.service_name, task.ordinal);
            let host = if task.is_placed() { self.hostname(&task.node_id) } else { "-".into() };
            let (state, desired) = (format!("{:?}", task.state()), format!("{:?}", task.desired()));
            let args = task.spec.container.args.join(" ");
            let _ = writeln!(out, "{name:<10} {host:<4} {state:<9} {desired:<8} {args} {}", task.status.err);
        }
        out
    }

    /// What tasks that are not wanted any more are doing.
    fn show_messages(&self) -> String {
        let mut tasks: Vec<&Task> = self.store.tasks().filter(|t| !t.is_wanted()).map(|t| &**t).collect();
        tasks.sort_by(|a, b| (&a.service_name, a.slot, a.ordinal).cmp(&(&b.service_name, b.slot, b.ordinal)));
        let mut out = String::new();
        for t in tasks {
            let (state, message) = (t.state(), &t.status.message);
            let _ = writeln!(out, "{}.{}#{} {state:?}: {message}", t.service_name, t.slot, t.ordinal);
        }
        out
    }

    fn show_service(&self, name: &str) -> String {
        let service = self.service(name);
        let running = self.tasks_of(&service.id);
        let running =
            running.iter().filter(|t| t.is_wanted() && t.state() == deploy::model::TaskState::Running).count();
        let mut out = format!("{name}: {running} running, args [{}]\n", service.spec.task.container.args.join(" "));
        if let Some(status) = &service.update_status {
            let mut message = status.message.clone();
            // Ids are random; which slot a task is of says more.
            for task in self.store.tasks() {
                message =
                    message.replace(task.id.as_str(), &format!("{}.{}#{}", task.service_name, task.slot, task.ordinal));
            }
            let _ = writeln!(out, "{:?}: {message}", status.state());
        }
        out
    }

    /// What really runs, host by host.
    fn show_running(&self) -> String {
        let mut out = String::new();
        for (name, host) in &self.hosts {
            let mut running: Vec<String> = host
                .running
                .iter()
                .map(|id| host.tasks[id].task())
                .map(|t| format!("{}.{}#{}", t.service_name, t.slot, t.ordinal))
                .collect();
            running.sort();
            let _ = writeln!(out, "{name}: {}", running.join(" "));
        }
        out
    }

    fn show_why(&self, name: &str) -> String {
        let mut out = String::new();
        for verdict in scheduler::explain(&self.store, &self.service(name).id) {
            let reasons: Vec<String> = verdict.reasons.into_iter().map(|(_, text)| text).collect();
            let answer = if reasons.is_empty() { "could take one more".to_owned() } else { reasons.join("; ") };
            let _ = writeln!(out, "{} ({} tasks): {answer}", verdict.hostname, verdict.tasks);
        }
        out
    }

    fn show_set(&self, name: &str) -> String {
        let set = dispatcher::assignment(&self.store, &node_id(name));
        let mut out = String::new();
        let network =
            |id: &deploy::model::NetworkId| self.store.network(id).map_or_else(String::new, |n| n.spec.name.clone());
        let service =
            |id: &deploy::model::ServiceId| self.store.service(id).map_or_else(String::new, |s| s.spec.name.clone());
        let slot = |id: &deploy::model::TaskId| self.store.task(id).map_or(0, |t| t.slot);
        let mut lines: Vec<String> = Vec::new();
        lines.extend(set.tasks().map(|a| {
            format!("task {}.{} {:?} {:?}", a.task.service_name, a.task.slot, a.task.desired(), a.progress())
        }));
        lines.extend(
            set.networks()
                .map(|n| format!("network {} {} {} own {}", n.name, n.vni - 0x10_0000, n.subnet, n.own_address)),
        );
        lines.extend(
            set.services().map(|s| {
                format!("service {} on {} vip {} aliases {:?}", s.name, network(&s.network), s.vip, s.aliases)
            }),
        );
        lines.extend(set.endpoints().map(|e| {
            let serving = if e.serving { "serving" } else { "not serving" };
            format!(
                "endpoint {}.{} on {} {} {serving}",
                service(&e.service),
                slot(&e.task),
                network(&e.network),
                e.address
            )
        }));
        lines.extend(
            set.stations().map(|s| format!("station {} {} at {}", network(&s.network), s.address, s.data_path_addr)),
        );
        lines.extend(set.ports().map(|p| format!("port {}:{} of {}", p.published, p.target, service(&p.service))));
        lines.extend(set.peers().map(|p| format!("peer {} {} {:?}", p.hostname, p.control_addr, p.state())));
        lines.extend(set.removed().map(|r| format!("removed {}", r.id.as_str().trim_start_matches('0'))));
        lines.sort();
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
        out
    }
}

/// Puts `key=value` options into a spec.
pub(crate) fn configure(spec: &mut ServiceSpec, options: &[&str]) {
    for (key, value) in options.iter().map(|o| split(o)) {
        let placement = &mut spec.task.placement;
        let restart = spec.task.restart.get_or_insert_with(RestartPolicy::default);
        match key {
            "replicas" => spec.mode = Some(ServiceMode::Replicated(Replicated { replicas: value.parse().ok() })),
            "global" => spec.mode = Some(ServiceMode::Global(Global {})),
            "image" => spec.task.container.image = value.into(),
            // `args=crash=2s,pull=1s`
            "args" => {
                spec.task.container.args = value.split(',').filter(|a| !a.is_empty()).map(Into::into).collect();
            }
            "force" => spec.task.force_update += 1,
            "mem" => spec.task.resources.reservations.memory_bytes = bytes(value),
            "cpus" => spec.task.resources.reservations.nano_cpus = cpus(value),
            "constraint" => placement.constraints.push(value.into()),
            "no-constraints" => placement.constraints.clear(),
            "spread" => placement.spread_over.push(value.into()),
            "max" => placement.max_replicas = value.parse().expect("number"),
            "restart" => {
                restart.condition = Some(match value {
                    "none" => RestartCondition::None as i32,
                    "on-failure" => RestartCondition::OnFailure as i32,
                    _ => RestartCondition::Any as i32,
                });
            }
            "delay" => restart.delay_ns = nanos(value),
            "attempts" => restart.max_attempts = value.parse().ok(),
            "window" => restart.window_ns = nanos(value),
            "network" => {
                spec.task.networks.push(NetworkAttachmentConfig { target: value.into(), ..Default::default() })
            }
            "port" | "hostport" => {
                let (published, target) = value.split_once(':').expect("published:target");
                let mut port = PortConfig {
                    published: published.parse().expect("port"),
                    target: target.parse().expect("port"),
                    ..PortConfig::default()
                };
                if key == "hostport" {
                    port.set_mode(PublishMode::Host);
                }
                spec.endpoint.get_or_insert_with(EndpointSpec::default).ports.push(port);
            }
            _ => {
                let (which, key) = match key.strip_prefix("rollback-") {
                    Some(key) => (&mut spec.rollback, key),
                    None => (&mut spec.update, key.strip_prefix("update-").unwrap_or(key)),
                };
                configure_update(which.get_or_insert_with(UpdateConfig::default), key, value);
            }
        }
    }
}

fn configure_update(config: &mut UpdateConfig, key: &str, value: &str) {
    match key {
        "parallelism" => config.parallelism = value.parse().ok(),
        "delay" => config.delay_ns = nanos(value),
        "monitor" => config.monitor_ns = nanos(value),
        "ratio" => config.max_failure_ppm = (value.parse::<f64>().expect("ratio") * 1e6) as u32,
        "order" => config.set_order(match value {
            "start-first" => UpdateOrder::StartFirst,
            _ => UpdateOrder::StopFirst,
        }),
        "failure" => config.set_failure_action(match value {
            "rollback" => FailureAction::Rollback,
            "continue" => FailureAction::Continue,
            _ => FailureAction::Pause,
        }),
        other => panic!("unknown option {other}"),
    }
}
