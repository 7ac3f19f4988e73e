//! `/services/{id}/logs` and `/tasks/{id}/logs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use deploy::logging::Logging;
use deploy::model::{ServiceId, TaskId};
use deploy::store::Store;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use hyper::header::CONTENT_TYPE;
use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::App;
use super::convert::nanos_to_log;
use super::error::ApiError;
use super::extract::{ApiVersion, Params};
use super::streams::{Stream, frame};
use super::{services, tasks};
use crate::engine::{Consistency, Engine, EngineError, LogRecord, LogRequest};

/// How soon a followed service's new tasks are noticed.
const NEW_TASKS_EVERY: Duration = Duration::from_secs(1);

type Records = SelectAll<ReceiverStream<Result<LogRecord, EngineError>>>;

/// How lines are printed.
struct Format {
    /// The service whose tasks they are from.
    service: ServiceId,
    timestamps: bool,
    /// Details are wanted, and these are those that the log driver adds to a task's, ready to be printed.
    details: Option<BTreeMap<TaskId, Vec<String>>>,
    /// No frames: the output of a terminal.
    raw: bool,
}

pub(super) async fn service<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response, ApiError> {
    let request = log_request(&params)?;
    let store = app.store(&params).await?;
    let service = services::find(&store, &id)?;
    let tasks = placed_tasks(&store, &service.id);
    let follow = if request.follow { Follow::Service } else { Follow::Tasks };
    let format = format(&params, service.id.clone(), service.spec.task.container.tty, &store, &tasks);
    answer(&app, version, format, tasks, request, follow).await
}

pub(super) async fn task<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response, ApiError> {
    let request = log_request(&params)?;
    let store = app.store(&params).await?;
    let task = tasks::find(&store, &id)?;
    let tasks = vec![task.id.clone()];
    let format = format(&params, task.service_id.clone(), task.spec.container.tty, &store, &tasks);
    answer(&app, version, format, tasks, request, Follow::Tasks).await
}

fn format(params: &Params, service: ServiceId, raw: bool, store: &Store, tasks: &[TaskId]) -> Format {
    let details = params.flag("details").then(BTreeMap::new);
    let mut format = Format { service, timestamps: params.flag("timestamps"), details, raw };
    format.add_tasks(store, tasks);
    format
}

pub(super) fn log_request(params: &Params) -> Result<LogRequest, ApiError> {
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let tail = match params.get("tail") {
        None | Some("" | "all") => None,
        // Docker takes whatever it cannot read, and negative numbers, for "all".
        Some(number) => number.parse().ok(),
    };
    Ok(LogRequest {
        stdout,
        stderr,
        follow: params.flag("follow"),
        tail,
        since_ns: unix_nanos("since", params.get("since"))?,
        until_ns: unix_nanos("until", params.get("until"))?,
    })
}

/// `1136073845` or `1136073845.000000001`; nothing and 0 mean "no bound".
pub(super) fn unix_nanos(name: &str, given: Option<&str>) -> Result<u64, ApiError> {
    let Some(given) = given.filter(|g| !g.is_empty()) else { return Ok(0) };
    let (seconds, fraction) = given.split_once('.').unwrap_or((given, ""));
    let nanos = || {
        if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let fraction: u64 = format!("{fraction:0<9}").parse().ok()?;
        seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(fraction)
    };
    nanos().ok_or_else(|| ApiError::invalid(format!("invalid value for {name:?}: {given:?} is not a Unix time")))
}

/// Tasks that can have written something: those that were given to a host.
fn placed_tasks(store: &Store, service: &ServiceId) -> Vec<TaskId> {
    store.tasks_of_service(service).filter(|t| !t.node_id.is_none()).map(|t| t.id.clone()).collect()
}

async fn answer<E: Engine>(
    app: &App<E>,
    version: ApiVersion,
    format: Format,
    tasks: Vec<TaskId>,
    request: LogRequest,
    follow: Follow,
) -> Result<Response, ApiError> {
    let raw = format.raw;
    let mut records = Records::new();
    let seen = tasks.iter().cloned().collect();
    if !tasks.is_empty() {
        // A failure to begin still has a status of its own; later ones travel inside of the stream.
        records.push(ReceiverStream::new(app.engine.logs(tasks, request.clone()).await?));
    }
    let pump = Pump {
        engine: app.engine.clone(),
        shutdown: app.shutdown.clone(),
        look: tokio::time::interval(NEW_TASKS_EVERY),
        follow,
        seen,
        request,
        format,
        records,
    };
    let frames = futures_util::stream::unfold(pump, |mut pump| async {
        let frame = pump.next().await?;
        Some((Ok::<Bytes, std::io::Error>(frame), pump))
    });
    let content_type = if raw || version < ApiVersion(1, 42) {
        "application/vnd.docker.raw-stream"
    } else {
        "application/vnd.docker.multiplexed-stream"
    };
    Ok(([(CONTENT_TYPE, content_type)], Body::from_stream(frames)).into_response())
}

/// Whether more tasks may come while the client listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// Those that there were at the beginning.
    Tasks,
    /// Those that the service gets as well.
    Service,
}

/// Turns records into frames. It lives in the answer's body: when the client goes away, all of it is dropped.
struct Pump<E> {
    engine: E,
    shutdown: CancellationToken,
    look: Interval,
    follow: Follow,
    seen: BTreeSet<TaskId>,
    request: LogRequest,
    format: Format,
    records: Records,
}

impl<E: Engine> Pump<E> {
    /// The next frame; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.records.is_empty() && self.follow == Follow::Tasks {
                return None;
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                record = self.records.next(), if !self.records.is_empty() => {
                    if let Some(record) = record {
                        return Some(self.format.print(record));
                    }
                }
                _ = self.look.tick(), if self.follow == Follow::Service => self.add_new_tasks().await,
            }
        }
    }

    /// Starts to listen to tasks that the service got since the last look.
    async fn add_new_tasks(&mut self) {
        // A manager that has just lost its leader, or that is one no more, has nothing new to say.
        let Ok(store) = self.engine.store(Consistency::Local).await else { return };
        if store.service(&self.format.service).is_none() {
            self.follow = Follow::Tasks;
        }
        let mut new = placed_tasks(&store, &self.format.service);
        new.retain(|task| self.seen.insert(task.clone()));
        if new.is_empty() {
            return;
        }
        self.format.add_tasks(&store, &new);
        // All that a new task wrote is new to the client, however little it wanted to see of the past.
        let request = LogRequest { tail: None, ..self.request.clone() };
        match self.engine.logs(new, request).await {
            Ok(records) => self.records.push(ReceiverStream::new(records)),
            Err(e) => {
                // The client is told within the stream, and the other tasks go on.
                let (sender, receiver) = mpsc::channel(1);
                let _ = sender.try_send(Err(e));
                self.records.push(ReceiverStream::new(receiver));
            }
        }
    }
}

impl Format {
    /// Labels and variables that these tasks' log drivers name.
    fn add_tasks(&mut self, store: &Store, tasks: &[TaskId]) {
        let Some(details) = &mut self.details else { return };
        for task in tasks.iter().filter_map(|id| store.task(id)) {
            let spec = &task.spec.container;
            let Ok(logging) = Logging::of(task.spec.log_driver.as_ref()) else { continue };
            let fields = logging.fields(&spec.labels, &spec.env);
            let printed = fields.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
            details.insert(task.id.clone(), printed.collect());
        }
    }

    fn print(&self, record: Result<LogRecord, EngineError>) -> Bytes {
        let record = match record {
            Ok(record) => record,
            Err(e) if self.raw => return Bytes::from(format!("{e}\n")),
            Err(e) => return frame(Stream::Error, &[e.to_string().as_bytes()]),
        };
        let mut prefix = String::new();
        if self.timestamps {
            prefix.push_str(&nanos_to_log(record.at_ns));
            prefix.push(' ');
        }
        if let Some(details) = &self.details {
            let of = |key: &str, id: &dyn std::fmt::Display| format!("com.docker.swarm.{key}.id={id}");
            let mut all = vec![of("node", &record.node_id), of("service", &self.service), of("task", &record.task_id)];
            all.extend(details.get(&record.task_id).into_iter().flatten().cloned());
            // As Docker does.
            all.sort_unstable();
            prefix.push_str(&all.join(","));
            prefix.push(' ');
        }
        if self.raw {
            return [prefix.as_bytes(), &record.data].concat().into();
        }
        let stream = if record.stderr { Stream::Stderr } else { Stream::Stdout };
        frame(stream, &[prefix.as_bytes(), &record.data])
    }
}

/// As in the query of a URL, where Docker's clients undo it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_escaped() {
        assert_eq!(escaped("com.example/a b=é,"), "com.example%2Fa+b%3D%C3%A9%2C");
    }

    #[track_caller]
    fn check(given: &str, expected: Option<u64>) {
        assert_eq!(unix_nanos("since", Some(given)).ok(), expected, "{given}");
    }

    #[test]
    fn unix_times_are_read() {
        check("", Some(0));
        check("0", Some(0));
        check("12", Some(12_000_000_000));
        check("12.5", Some(12_500_000_000));
        check("12.000000001", Some(12_000_000_001));
        for bad in ["-1", "x", "1.x", "1.0000000001", "99999999999999999999", "1.2.3"] {
            check(bad, None);
        }
    }
}
