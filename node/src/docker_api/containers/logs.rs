//! `GET /containers/{id}/logs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use runtime::{LogOptions, LogRecord, LogStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::App;
use super::super::convert::nanos_to_log;
use super::super::error::ApiError;
use super::super::extract::{ApiVersion, Params};
use super::super::logs::log_request;
use super::super::streams::{self, Stream};
use super::find::{self, failed};
use crate::engine::Engine;

pub(in super::super) async fn logs<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response, ApiError> {
    let request = log_request(&params)?;
    let (containers, detail) = find::detail(&app, &id).await?;
    let at = |nanos: u64| (nanos > 0).then(|| UNIX_EPOCH + Duration::from_nanos(nanos));
    let options = LogOptions {
        stdout: request.stdout,
        stderr: request.stderr,
        follow: request.follow,
        since: at(request.since_ns),
        until: at(request.until_ns),
        tail: request.tail.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX)),
    };
    let raw = detail.config.tty;
    let records = containers.runtime.logs(&detail.state.id, options).await.map_err(|error| failed(&error))?;
    let printer = Printer { timestamps: params.flag("timestamps"), details: params.flag("details"), raw, whole: true };
    let pump = Pump { records, printer, until: at(request.until_ns), shutdown: app.shutdown.clone() };
    let frames = futures_util::stream::unfold(pump, |mut pump| async {
        let frame = pump.next().await?;
        Some((Ok::<Bytes, std::io::Error>(frame), pump))
    });
    Ok(([(CONTENT_TYPE, content_type(raw, version))], Body::from_stream(frames)).into_response())
}

/// How a stream of output announces itself.
pub(super) fn content_type(raw: bool, version: ApiVersion) -> &'static str {
    if raw || version < ApiVersion(1, 42) {
        "application/vnd.docker.raw-stream"
    } else {
        "application/vnd.docker.multiplexed-stream"
    }
}

/// Lives in the answer's body: when the client goes away, all of it is dropped.
struct Pump {
    records: mpsc::Receiver<LogRecord>,
    printer: Printer,
    until: Option<SystemTime>,
    shutdown: CancellationToken,
}

impl Pump {
    async fn next(&mut self) -> Option<Bytes> {
        // A follower ends at its time also when nothing is written then.
        let left = self.until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
        let over = async {
            match left {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                // What was asked of the past ends by itself.
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            record = self.records.recv() => record.map(|record| self.printer.print(&record)),
            () = over => None,
        }
    }
}

/// How records are printed.
pub(super) struct Printer {
    pub(super) timestamps: bool,
    pub(super) details: bool,
    /// The output of a terminal.
    pub(super) raw: bool,
    /// The next record begins a line: only there is a time put.
    pub(super) whole: bool,
}

impl Printer {
    pub(super) fn print(&mut self, record: &LogRecord) -> Bytes {
        let mut prefix = String::new();
        if self.whole && self.timestamps {
            let at = record.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            prefix.push_str(&nanos_to_log(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)));
            prefix.push(' ');
        }
        if self.whole && self.details {
            // Docker's drivers put labels and variables here when they are told to; there are none.
            prefix.push(' ');
        }
        if self.raw {
            self.whole = record.data.ends_with(b"\n");
            return [prefix.as_bytes(), &record.data].concat().into();
        }
        let stream = match record.stream {
            LogStream::Stdout => Stream::Stdout,
            LogStream::Stderr => Stream::Stderr,
        };
        streams::frame(stream, &[prefix.as_bytes(), &record.data])
    }
}
