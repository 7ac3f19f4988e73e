//! `shoal service logs`: takes the engine's frames apart and says which task each line is from.

use std::collections::HashMap;

use serde_json::Value;

use super::args::LogsArgs;
use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::streams::{Frames, copy, moment, print};
use crate::docker_api::wire::{Node, Service, Task};

/// Longest line of a task that is put together before it is printed.
const MAX_LINE: usize = 1 << 20;

pub(super) async fn run(client: &Client, args: LogsArgs) -> Result<(), CliError> {
    let since = args.since.as_deref().map(|text| moment("--since", text)).transpose()?;
    let (noun, id, tty) = target(client, &args.name).await?;
    let mut query = vec![("stdout", "1"), ("stderr", "1"), ("tail", args.tail.as_str())];
    let details = !args.raw;
    for (key, set) in [("follow", args.follow), ("timestamps", args.timestamps), ("details", details)] {
        if set {
            query.push((key, "1"));
        }
    }
    query.extend(since.iter().map(|s| ("since", s.as_str())));
    let stream = client.stream(&route(&[noun, &id, "logs"], &query)).await?;
    if tty {
        return copy(stream).await;
    }
    let mut names = Names { client, whole: args.no_trunc, known: HashMap::new() };
    let mut frames = Frames::new(stream);
    while let Some((kind, payload)) = frames.next().await? {
        match kind {
            // In the middle of it the engine has something to say itself.
            3 => output::note(format_args!("shoal: {}", output::printable(&String::from_utf8_lossy(&payload)))),
            kind if details => {
                let line = names.line(&payload, args.timestamps).await;
                print(kind, &line)?;
            }
            kind => print(kind, &payload)?,
        }
    }
    Ok(())
}

/// A service by any name, else a task by its id: the noun, the id, and whether its output is a terminal's.
async fn target(client: &Client, name: &str) -> Result<(&'static str, String, bool), CliError> {
    let tty = |task: Option<crate::docker_api::wire::TaskSpec>| {
        task.and_then(|t| t.container_spec).and_then(|c| c.tty).unwrap_or_default()
    };
    match client.get::<Service>(&route(&["services", name], &[])).await {
        Ok(service) => {
            let task = service.spec.and_then(|s| s.task_template);
            return Ok(("services", service.id.unwrap_or_default(), tty(task)));
        }
        Err(CliError::Refused { status: 404, .. }) => {}
        Err(e) => return Err(e),
    }
    match client.get::<Task>(&route(&["tasks", name], &[])).await {
        Ok(task) => Ok(("tasks", task.id.unwrap_or_default(), tty(task.spec))),
        Err(CliError::Refused { status: 404, .. }) => {
            Err(CliError::Refused { status: 404, message: format!("no such service or task: {name}") })
        }
        Err(e) => Err(e),
    }
}

/// Names of tasks: `web.1.abc@host-1`.
struct Names<'a> {
    client: &'a Client,
    whole: bool,
    known: HashMap<String, String>,
}

impl Names<'_> {
    /// The line with its task's name in front instead of the details.
    async fn line(&mut self, payload: &[u8], timestamps: bool) -> Vec<u8> {
        let (time, details, text) = split(payload, timestamps);
        let task = detail(details, "com.docker.swarm.task.id");
        let node = detail(details, "com.docker.swarm.node.id");
        let name = match self.known.get(task) {
            Some(name) => name.clone(),
            None => {
                let name = self.look_up(task, node).await;
                self.known.insert(task.to_owned(), name.clone());
                name
            }
        };
        let mut line = Vec::with_capacity(payload.len().min(MAX_LINE) + name.len() + 8);
        if !time.is_empty() {
            line.extend_from_slice(time);
            line.push(b' ');
        }
        line.extend_from_slice(format!("{name:<24} | ").as_bytes());
        line.extend_from_slice(text);
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        line
    }

    /// What cannot be looked up any more is called by its id.
    async fn look_up(&self, task: &str, node: &str) -> String {
        let id = if self.whole { task.to_owned() } else { task.chars().take(12).collect() };
        let place = match self.client.get::<Task>(&route(&["tasks", task], &[])).await {
            Ok(found) => {
                let service = found.service_id.unwrap_or_default();
                let name = match self.client.get::<Value>(&route(&["services", &service], &[])).await {
                    Ok(service) => service["Spec"]["Name"].as_str().unwrap_or_default().to_owned(),
                    Err(_) => service,
                };
                match found.slot.unwrap_or_default() {
                    0 => format!("{name}.{id}"),
                    slot => format!("{name}.{slot}.{id}"),
                }
            }
            Err(_) => id,
        };
        let host = match self.client.get::<Node>(&route(&["nodes", node], &[])).await {
            Ok(found) => found.description.unwrap_or_default().hostname.unwrap_or_default(),
            Err(_) => node.to_owned(),
        };
        output::printable(&format!("{place}@{host}"))
    }
}

/// Time (if there is one), details, and the line itself.
fn split(payload: &[u8], timestamps: bool) -> (&[u8], &str, &[u8]) {
    let word = |bytes: &[u8]| bytes.iter().position(|b| *b == b' ');
    let (time, rest) = match word(payload).filter(|_| timestamps) {
        Some(end) => (&payload[..end], &payload[end + 1..]),
        None => (&payload[..0], payload),
    };
    match word(rest).and_then(|end| Some((std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))) {
        Some((details, text)) => (time, details, text),
        None => (time, "", rest),
    }
}

fn detail<'a>(details: &'a str, key: &str) -> &'a str {
    details.split(',').filter_map(|d| d.split_once('=')).find(|(k, _)| *k == key).map_or("", |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let details = "com.docker.swarm.node.id=n,com.docker.swarm.task.id=t";
        let payload = format!("2026-01-01T00:00:00Z {details} hello world\n");
        let (time, found, text) = split(payload.as_bytes(), true);
        assert_eq!((time, text), (&b"2026-01-01T00:00:00Z"[..], &b"hello world\n"[..]));
        assert_eq!((detail(found, "com.docker.swarm.task.id"), detail(found, "x")), ("t", ""));
        assert_eq!(split(b"a=b line", false), (&b""[..], "a=b", &b"line"[..]));
    }
}
