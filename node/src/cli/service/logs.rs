//! `shoal service logs`: takes the engine's frames apart and says which task each line is from.

use std::collections::HashMap;
use std::io::Write;

use bytes::{Buf, BytesMut};
use serde_json::Value;

use super::args::LogsArgs;
use crate::cli::client::{Client, Streamed, route};
use crate::cli::error::CliError;
use crate::cli::{age, output, values};
use crate::docker_api::wire::{Node, Service, Task};

/// Longest frame; the engine's are lines.
const MAX_FRAME: usize = 16 << 20;
/// Longest line of a task that is put together before it is printed.
const MAX_LINE: usize = 1 << 20;

pub(super) async fn run(client: &Client, args: LogsArgs) -> Result<(), CliError> {
    let since = args.since.as_deref().map(since).transpose()?;
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
    let mut frames = Frames { stream, buffer: BytesMut::new() };
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

/// Unix time for `--since`: a time, seconds since 1970, or how long ago.
fn since(text: &str) -> Result<String, CliError> {
    let now = time::OffsetDateTime::now_utc();
    if let Ok(nanos) = values::duration(text) {
        let at = (now.unix_timestamp_nanos() - i128::from(nanos)).max(0);
        return Ok(format!("{}.{:09}", at / 1_000_000_000, at % 1_000_000_000));
    }
    let number = text.split_once('.').unwrap_or((text, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if digits(number.0) && digits(number.1) {
        return Ok(text.to_owned());
    }
    // A day alone is its beginning; without a zone it is UTC.
    let candidates = [text.to_owned(), format!("{text}Z"), format!("{text}T00:00:00Z")];
    let at = candidates.iter().find_map(|t| age::parse(t)).filter(|at| at.unix_timestamp() >= 0);
    let at = at.ok_or_else(|| {
        CliError::usage(format!("--since {text:?} must be like 10m, 2026-01-31, 2026-01-31T12:00:00Z or a Unix time"))
    })?;
    Ok(format!("{}.{:09}", at.unix_timestamp(), at.nanosecond()))
}

async fn copy(mut stream: Streamed) -> Result<(), CliError> {
    while let Some(piece) = stream.next().await? {
        output::raw(&piece)?;
    }
    Ok(())
}

fn print(kind: u8, line: &[u8]) -> Result<(), CliError> {
    if kind == 2 {
        return std::io::stderr().lock().write_all(line).map_err(CliError::Output);
    }
    output::raw(line)
}

/// Takes frames off a stream.
struct Frames {
    stream: Streamed,
    buffer: BytesMut,
}

impl Frames {
    async fn next(&mut self) -> Result<Option<(u8, BytesMut)>, CliError> {
        loop {
            if let Some(frame) = take(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            match self.stream.next().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(CliError::Unavailable("the engine's answer was cut off".to_owned())),
            }
        }
    }
}

/// The first frame of the buffer, once all of it is there.
fn take(buffer: &mut BytesMut) -> Result<Option<(u8, BytesMut)>, CliError> {
    let Some(header) = buffer.first_chunk::<8>() else { return Ok(None) };
    let [kind, _, _, _, length @ ..] = *header;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(1..=3).contains(&kind) || length > MAX_FRAME {
        return Err(CliError::Failed("the engine's answer is no stream of log lines".to_owned()));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    Ok(Some((kind, buffer.split_to(length))))
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
    fn frames_may_come_in_pieces() {
        let bytes = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x00";
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in bytes {
            buffer.extend_from_slice(&[*byte]);
            found.extend(take(&mut buffer).unwrap().map(|(kind, payload)| (kind, payload.to_vec())));
        }
        assert_eq!(found, [(1, b"abc".to_vec()), (2, Vec::new())]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bad in [&b"HTTP/1.1 200"[..], b"\x01\0\0\0\xff\xff\xff\xff"] {
            assert!(take(&mut BytesMut::from(bad)).is_err());
        }
    }

    #[test]
    fn lines_are_taken_apart() {
        let details = "com.docker.swarm.node.id=n,com.docker.swarm.task.id=t";
        let payload = format!("2026-01-01T00:00:00Z {details} hello world\n");
        let (time, found, text) = split(payload.as_bytes(), true);
        assert_eq!((time, text), (&b"2026-01-01T00:00:00Z"[..], &b"hello world\n"[..]));
        assert_eq!((detail(found, "com.docker.swarm.task.id"), detail(found, "x")), ("t", ""));
        assert_eq!(split(b"a=b line", false), (&b""[..], "a=b", &b"line"[..]));
    }

    #[test]
    fn since_takes_times_and_durations() {
        assert_eq!(since("1700000000").unwrap(), "1700000000");
        assert_eq!(since("1700000000.5").unwrap(), "1700000000.5");
        assert_eq!(since("2026-01-31").unwrap(), "1769817600.000000000");
        assert_eq!(since("2026-01-31T00:00:01").unwrap(), "1769817601.000000000");
        assert!(since("10m").is_ok());
        assert_eq!(since("yesterday").unwrap_err().code(), 2);
    }
}
