//! Waits until the cluster is as it was asked to be, and shows how far it is; as Docker's client does.
//!
//! `Watch` is pure: it is given what the engine says and the time, and answers what to show and whether it is over.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::docker_api::wire::{Service, Task, UpdateStatus};

/// How often the engine is asked; as in Docker.
const EVERY: Duration = Duration::from_millis(200);
/// How long tasks must go on running where the service does not say; Docker's default.
const MONITOR: Duration = Duration::from_secs(5);
/// A cluster that loses its leader gets so long to find a new one.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Create,
    Update,
    Rollback,
}

/// Waits for a service; `before` is what its update status was before the change. Ctrl-C ends the waiting and nothing else.
pub(super) async fn wait(
    client: &Client,
    service: &str,
    after: After,
    before: Option<UpdateStatus>,
    quiet: bool,
) -> Result<(), CliError> {
    let display = Display::new(quiet);
    let watch = Watch::new(after, before);
    tokio::select! {
        biased;
        pressed = tokio::signal::ctrl_c() => {
            pressed.map_err(|e| CliError::Failed(format!("cannot handle Ctrl-C: {e}")))?;
            display.end();
            output::note(format_args!(
                "It goes on in the background: `shoal service ps {service}` tells how far it is."
            ));
            Ok(())
        }
        done = follow(client, service, watch, &display) => {
            display.end();
            done
        }
    }
}

async fn follow(client: &Client, service: &str, mut watch: Watch, display: &Display) -> Result<(), CliError> {
    let mut last_answer = Instant::now();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let (found, tasks) = match look(client, service).await {
            Ok(seen) => seen,
            // The change was accepted; who leads the cluster meanwhile is another matter.
            Err(CliError::Unavailable(why)) if last_answer.elapsed() < PATIENCE => {
                display.show(&format!("waiting for the cluster: {why}"), None);
                continue;
            }
            Err(CliError::Unavailable(why)) => {
                return Err(CliError::Unavailable(format!("the change was accepted, but how far it is: {why}")));
            }
            Err(e) => return Err(e),
        };
        last_answer = Instant::now();
        match watch.see(&found, &tasks, Instant::now()) {
            Seen::Working { line, running, wanted } => display.show(&line, Some((running, wanted))),
            Seen::Converged(line) => {
                display.finish(&line);
                return Ok(());
            }
            Seen::Failed(why) => return Err(CliError::Failed(why)),
        }
    }
}

async fn look(client: &Client, service: &str) -> Result<(Service, Vec<Task>), CliError> {
    let mut found: Service = client.get(&route(&["services", service], &[])).await?;
    let id = found.id.clone().unwrap_or_default();
    let filters = json!({ "id": [&id] }).to_string();
    let listed: Vec<Service> = client.get(&route(&["services"], &[("status", "true"), ("filters", &filters)])).await?;
    found.service_status = listed.into_iter().find_map(|s| s.service_status);
    let filters = json!({ "service": [&id], "_up-to-date": ["true"] }).to_string();
    let tasks = client.get(&route(&["tasks"], &[("filters", &filters)])).await?;
    Ok((found, tasks))
}

/// What a look at the service says.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Working { line: String, running: u64, wanted: u64 },
    Converged(String),
    Failed(String),
}

/// What was seen so far.
#[derive(Debug)]
struct Watch {
    after: After,
    /// How an earlier update ended, which says nothing of this one.
    before: Option<UpdateStatus>,
    /// Since when all tasks run.
    stable_since: Option<Instant>,
}

impl Watch {
    fn new(after: After, before: Option<UpdateStatus>) -> Self {
        Self { after, before, stable_since: None }
    }

    fn see(&mut self, service: &Service, tasks: &[Task], now: Instant) -> Seen {
        let spec = service.spec.clone().unwrap_or_default();
        let name = spec.name.unwrap_or_default();
        let update = service.update_status.clone().unwrap_or_default();
        let message = output::printable(&update.message.unwrap_or_default());
        let state = update.state.unwrap_or_default();
        match state.as_str() {
            "paused" => return Seen::Failed(format!("service {name}: the update is paused: {message}")),
            "rollback_paused" => return Seen::Failed(format!("service {name}: the rollback is paused: {message}")),
            // What was asked for is what was rolled back.
            // A change that changes nothing leaves the old status where it is.
            "rollback_completed" if self.after != After::Rollback && service.update_status != self.before => {
                return Seen::Failed(format!("service {name}: the update failed and was rolled back: {message}"));
            }
            _ => {}
        }
        let wanted = match spec.mode.unwrap_or_default().replicated {
            Some(replicated) => replicated.replicas.unwrap_or_default(),
            None => service.service_status.as_ref().and_then(|s| s.desired_tasks).unwrap_or_default(),
        };
        let slots = by_slot(tasks);
        let running = slots.values().filter(|task| is_running(task)).count() as u64;
        let rolling = matches!(state.as_str(), "updating" | "rollback_started");
        if rolling || running != wanted {
            self.stable_since = None;
            let what = if state == "rollback_started" { "rolling back" } else { "overall progress" };
            let mut line = format!("{what}: {running} out of {wanted} tasks");
            if let Some(trouble) = trouble(&name, &slots) {
                line.push_str(&format!(" ({trouble})"));
            }
            return Seen::Working { line, running, wanted };
        }
        let monitor = spec.update_config.and_then(|u| u.monitor).and_then(|ns| u64::try_from(ns).ok());
        let monitor = monitor.map_or(MONITOR, Duration::from_nanos);
        let since = *self.stable_since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        // Nothing can fail where nothing runs; and an update that is complete was watched by the cluster.
        let watched = wanted == 0 || matches!(state.as_str(), "completed" | "rollback_completed");
        if watched || passed >= monitor {
            return Seen::Converged(format!("service {name} converged: {running} out of {wanted} tasks run"));
        }
        let left = (monitor - passed).as_millis().div_ceil(1000);
        let line = format!("verify: {running} out of {wanted} tasks run; watching them for {left} s");
        Seen::Working { line, running, wanted }
    }
}

/// The newest wanted task of each slot, or of each host.
fn by_slot(tasks: &[Task]) -> BTreeMap<(u64, String), &Task> {
    let mut slots: BTreeMap<(u64, String), &Task> = BTreeMap::new();
    for task in tasks.iter().filter(|t| matches!(t.desired_state.as_deref(), Some("running" | "ready"))) {
        let slot = task.slot.unwrap_or_default();
        let place = if slot == 0 { task.node_id.clone().unwrap_or_default() } else { String::new() };
        let kept = slots.entry((slot, place)).or_insert(task);
        // While one starts before the other stops, either counts that runs.
        if !is_running(kept) && (is_running(task) || task.created_at > kept.created_at) {
            *kept = task;
        }
    }
    slots
}

fn state(task: &Task) -> &str {
    task.status.as_ref().and_then(|s| s.state.as_deref()).unwrap_or_default()
}

fn is_running(task: &Task) -> bool {
    state(task) == "running" && task.desired_state.as_deref() == Some("running")
}

/// What keeps the first slot that does not run.
fn trouble(service: &str, slots: &BTreeMap<(u64, String), &Task>) -> Option<String> {
    let ((slot, node), task) = slots.iter().find(|(_, task)| !is_running(task))?;
    let place = if *slot == 0 { node.clone() } else { slot.to_string() };
    let err = task.status.as_ref().and_then(|s| s.err.as_deref()).unwrap_or_default();
    let state = state(task);
    let why = if err.is_empty() { state.to_owned() } else { format!("{state}: {err}") };
    Some(output::printable(&format!("{service}.{place} {why}")))
}

/// A bar on a terminal, lines elsewhere, nothing when it is to be quiet.
struct Display {
    bar: Option<ProgressBar>,
    lines: Option<std::cell::RefCell<String>>,
}

impl Display {
    fn new(quiet: bool) -> Self {
        if quiet {
            return Self { bar: None, lines: None };
        }
        if !std::io::stderr().is_terminal() {
            return Self { bar: None, lines: Some(std::cell::RefCell::default()) };
        }
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(EVERY);
        Self { bar: Some(bar), lines: None }
    }

    fn show(&self, line: &str, progress: Option<(u64, u64)>) {
        if let Some(bar) = &self.bar {
            if let Some((running, wanted)) = progress {
                bar.set_length(wanted);
                bar.set_position(running.min(wanted));
            }
            bar.set_message(line.to_owned());
        }
        if let Some(last) = &self.lines {
            // The seconds that are left are nothing to read in a file.
            let line = line.split("; watching").next().unwrap_or_default();
            if *last.borrow() != line {
                output::note(line);
                line.clone_into(&mut last.borrow_mut());
            }
        }
    }

    fn finish(&self, line: &str) {
        self.end();
        if self.bar.is_some() || self.lines.is_some() {
            output::note(line);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(replicas: u64, update: &str) -> Service {
        let mut service = json!({"Spec": {"Name": "web", "Mode": {"Replicated": {"Replicas": replicas}}}});
        if !update.is_empty() {
            service["UpdateStatus"] = json!({"State": update, "Message": "task failed"});
        }
        serde_json::from_value(service).unwrap()
    }

    fn task(slot: u64, state: &str, desired: &str, err: &str) -> Task {
        serde_json::from_value(json!({"Slot": slot, "DesiredState": desired, "Status": {"State": state, "Err": err}}))
            .unwrap()
    }

    fn working(seen: &Seen) -> &str {
        match seen {
            Seen::Working { line, .. } => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_converges_when_its_tasks_go_on_running() {
        let (mut watch, start) = (Watch::new(After::Create, None), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let half = [task(1, "running", "running", ""), task(2, "preparing", "running", "")];
        assert_eq!(
            working(&watch.see(&service(2, ""), &half, at(0))),
            "overall progress: 1 out of 2 tasks (web.2 preparing)"
        );
        let all = [task(1, "running", "running", ""), task(2, "running", "running", "")];
        assert!(working(&watch.see(&service(2, ""), &all, at(1))).starts_with("verify: 2 out of 2"));
        // A task that dies meanwhile starts it over.
        let died = [
            task(1, "running", "running", ""),
            task(2, "failed", "shutdown", "exit 1"),
            task(2, "pending", "running", "no suitable node"),
        ];
        assert!(working(&watch.see(&service(2, ""), &died, at(5))).contains("no suitable node"));
        assert!(working(&watch.see(&service(2, ""), &all, at(7))).starts_with("verify"));
        assert!(matches!(watch.see(&service(2, ""), &all, at(12)), Seen::Converged(_)));
    }

    #[test]
    fn an_update_is_over_when_the_cluster_says_so() {
        let all = [task(1, "running", "running", "")];
        let see = |after, update: &str| Watch::new(after, None).see(&service(1, update), &all, Instant::now());
        assert!(working(&see(After::Update, "updating")).starts_with("overall"));
        assert!(matches!(see(After::Update, "completed"), Seen::Converged(_)));
        assert_eq!(see(After::Update, "paused"), Seen::Failed("service web: the update is paused: task failed".into()));
        assert!(working(&see(After::Update, "rollback_started")).starts_with("rolling back"));
        assert!(matches!(see(After::Update, "rollback_completed"), Seen::Failed(_)));
        assert!(matches!(see(After::Rollback, "rollback_completed"), Seen::Converged(_)));
        // A change that changed nothing is not what was rolled back once.
        let old = service(1, "rollback_completed");
        let mut watch = Watch::new(After::Update, old.update_status.clone());
        assert!(matches!(watch.see(&old, &all, Instant::now()), Seen::Converged(_)));
    }

    #[test]
    fn nothing_is_waited_for_where_nothing_runs() {
        assert!(matches!(
            Watch::new(After::Update, None).see(&service(0, ""), &[], Instant::now()),
            Seen::Converged(_)
        ));
    }
}
