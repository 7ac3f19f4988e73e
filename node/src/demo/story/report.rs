//! How the story looks: spinners on a terminal, plain lines elsewhere, one JSON object for programs.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::steps::{MANAGERS, WEB_PORT};
use crate::demo::hosts::Hosts;

/// Characters of a log line that are shown.
const LOG_WIDTH: usize = 300;

/// A step that held.
#[derive(Debug)]
struct Step {
    name: &'static str,
    detail: String,
    took: Duration,
}

/// Where the story goes.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    /// Escapes for colour are for terminals.
    colour: bool,
    spinner: Option<ProgressBar>,
    began: Instant,
    step_began: Instant,
    steps: Vec<Step>,
    facts: serde_json::Map<String, Value>,
    failure: Option<String>,
    timings: Vec<(String, String)>,
    told: bool,
}

/// Seconds for people.
pub(super) fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}

fn number(duration: Duration) -> Value {
    // Microseconds are more than any of this is worth.
    json!((duration.as_secs_f64() * 1e6).round() / 1e6)
}

impl Report {
    pub(super) fn new(json: bool) -> Report {
        Report {
            json,
            colour: !json && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            spinner: None,
            began: Instant::now(),
            step_began: Instant::now(),
            steps: Vec::new(),
            facts: serde_json::Map::new(),
            failure: None,
            timings: Vec::new(),
            told: false,
        }
    }

    /// For people: on standard output, or on standard error where that one is for a program.
    fn line(&self, text: &str) {
        // A reader that went away does not end the story; it must clean up.
        let _ = if self.json {
            writeln!(std::io::stderr(), "{text}")
        } else {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{text}").and_then(|()| out.flush())
        };
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Says what is going on now.
    pub(super) fn begin(&mut self, what: &str) {
        self.clear();
        self.step_began = Instant::now();
        if std::io::stderr().is_terminal() {
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
                spinner.set_style(style);
            }
            spinner.set_message(what.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            self.spinner = Some(spinner);
        }
    }

    fn clear(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// The step that began last holds. Its name is for programs.
    pub(super) fn done(&mut self, name: &'static str, detail: &str) {
        self.clear();
        let took = self.step_began.elapsed();
        let mark = self.paint("32", "ok");
        self.line(&format!("  {mark}  {detail}  {}", self.paint("2", &format!("({})", seconds(took)))));
        self.steps.push(Step { name, detail: detail.to_owned(), took });
        self.step_began = Instant::now();
    }

    /// Something that belongs to the step before.
    pub(super) fn note(&self, text: &str) {
        self.line(&format!("      {}", self.paint("2", text)));
    }

    /// A value for programs.
    pub(super) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// A measured time, for the table and for programs (in seconds).
    pub(super) fn timing(&mut self, name: &str, text: &str, duration: Duration) {
        self.facts.insert(format!("{name}_s"), number(duration));
        self.timings.push((text.to_owned(), seconds(duration)));
    }

    /// What went wrong.
    pub(super) fn failure(&mut self, text: &str) {
        self.clear();
        let mark = self.paint("31", "failed:");
        self.line(&format!("  {mark} {text}"));
        // The first one is the reason; what follows (a clean-up) is not.
        self.failure.get_or_insert_with(|| text.to_owned());
    }

    /// What a daemon said before.
    pub(super) fn log(&self, host: &str, tail: &str) {
        self.line(&format!("\n  last of the daemon's log on {host}:"));
        for line in tail.lines() {
            self.line(&format!("    {}", line.chars().take(LOG_WIDTH).collect::<String>()));
        }
    }

    /// All steps hold.
    pub(super) fn end(&mut self) {
        self.told = true;
        let width = self.timings.iter().map(|(text, _)| text.chars().count()).max().unwrap_or(0);
        self.line("");
        for (text, value) in &self.timings {
            self.line(&format!("  {text}{}  {value:>9}", " ".repeat(width - text.chars().count())));
        }
        self.line("");
    }

    /// Whether all steps held.
    pub(super) fn told(&self) -> bool {
        self.told
    }

    /// How to reach a cluster that stays.
    pub(super) fn keep(&mut self, hosts: &Hosts) {
        self.clear();
        let exe = std::env::current_exe().map_or_else(|_| "shoal".into(), |exe| exe.display().to_string());
        self.line("  The cluster stays up until Ctrl-C. From another terminal:");
        // The lost host has no daemon, and workers answer no questions about the cluster.
        for host in hosts.all().iter().take(MANAGERS).filter(|host| host.daemon_pid().is_some()) {
            self.line(&format!("    {exe} -H unix://{} node ls", host.api().socket().display()));
        }
        if let Some(host) = hosts.all().iter().find(|host| host.daemon_pid().is_some()) {
            let switch = hosts.switch_path();
            self.line(&format!("    nsenter --net={} curl http://{}/", switch.display(), host.at(WEB_PORT)));
        }
        self.line("");
    }

    /// The last word.
    pub(super) fn finish(&mut self, good: bool) {
        self.clear();
        if !self.json {
            return;
        }
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| json!({"name": step.name, "detail": step.detail, "seconds": number(step.took)}))
            .collect();
        let object = json!({
            "ok": good,
            "failure": self.failure,
            "seconds": number(self.began.elapsed()),
            "steps": steps,
            "facts": self.facts,
        });
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{object}").and_then(|()| out.flush());
    }
}
