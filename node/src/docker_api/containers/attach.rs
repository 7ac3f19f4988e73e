//! `POST /containers/{id}/attach`: a container's own streams.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use hyper::Request;
use runtime::{ContainerDetail, LogOptions, LogRecord, OutputPiece, RuntimeError, Status};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::super::App;
use super::super::error::ApiError;
use super::super::extract::{ApiVersion, Params};
use super::detach::DetachKeys;
use super::find::{self, failed};
use super::hijack::{Hijack, plain, upgraded};
use super::logs::{Printer, content_type};
use super::plain;
use super::pump::{Client, InputEnd, next_piece};
use crate::agent::plain::{Streams, Wanted};
use crate::containers::Containers;
use crate::engine::Engine;

/// Clients attach to what has ended right before they start it. Who does not is not kept for longer.
const START_WITHIN: Duration = Duration::from_secs(60);

/// What a client of an attach is given.
struct Attached {
    containers: Containers,
    detail: ContainerDetail,
    /// What was written before, when it asked for that.
    before: Option<mpsc::Receiver<LogRecord>>,
    printer: Printer,
    /// What is written from now on, when it asked for that.
    output: Option<mpsc::Receiver<OutputPiece>>,
    stdin: Option<runtime::StdStream>,
    /// The two before this, of a container that has yet to be started.
    coming: Option<oneshot::Receiver<Result<Streams, RuntimeError>>>,
    keys: DetachKeys,
    shutdown: CancellationToken,
}

pub(in super::super) async fn attach<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let hijack = Hijack::take(&mut parts);
    let attached = open(&app, &id, &params).await?;
    let content_type = content_type(attached.detail.config.tty, version);
    match hijack {
        Some(hijack) => {
            let tasks = attached.containers.tasks.clone();
            tasks.spawn(async move {
                if let Some(client) = hijack.client().await {
                    attached.serve(client).await;
                }
            });
            Ok(upgraded(content_type))
        }
        None => Ok(plain(content_type, attached.into_body())),
    }
}

async fn open<E: Engine>(app: &App<E>, id: &str, params: &Params) -> Result<Attached, ApiError> {
    let (containers, detail) = find::detail(app, id).await?;
    let (stream, logs) = (params.flag("stream"), params.flag("logs"));
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    let keys = match detail.config.tty {
        true => DetachKeys::parse(params.get("detachKeys").unwrap_or_default())?,
        false => DetachKeys::none(),
    };
    let id = &detail.state.id;
    let wants_stdin = stream && params.flag("stdin") && (detail.config.tty || detail.config.open_stdin);
    let coming = match &detail.state.status {
        Status::Exited(_) if stream && !logs => {
            plain::attach(app, &detail.state, Wanted { stdout, stderr, stdin: wants_stdin }).await?
        }
        _ => None,
    };
    // First, so that nothing is lost in between; what is in both is shown twice, as with Docker.
    let output = match stream {
        true if coming.is_some() => None,
        true if matches!(detail.state.status, Status::Exited(_)) && !logs => {
            return Err(ApiError::conflict("You cannot attach to a stopped container, start it first"));
        }
        true => match containers.runtime.attach(id, stdout, stderr).await {
            Ok(output) => Some(output),
            Err(RuntimeError::WrongState { .. }) if logs => None,
            Err(error) => return Err(failed(&error)),
        },
        false => None,
    };
    let stdin = match wants_stdin && coming.is_none() && !matches!(detail.state.status, Status::Exited(_)) {
        true => Some(containers.runtime.stdin(id).await.map_err(|error| failed(&error))?),
        // Docker takes what such a client sends, too, and gives it to nobody.
        false => None,
    };
    let before = match logs {
        true => {
            let options = LogOptions { stdout, stderr, ..LogOptions::default() };
            Some(containers.runtime.logs(id, options).await.map_err(|error| failed(&error))?)
        }
        false => None,
    };
    containers.runtime.tell(id, "attach", Vec::new());
    let printer = Printer { timestamps: false, details: false, raw: detail.config.tty, whole: true };
    Ok(Attached { containers, detail, before, printer, output, stdin, coming, keys, shutdown: app.shutdown.clone() })
}

impl Attached {
    /// Waits for what is coming. If nothing is, there is nothing to give.
    async fn arrive(&mut self) {
        let Some(coming) = self.coming.take() else { return };
        if let Ok(Ok(Ok(streams))) = tokio::time::timeout(START_WITHIN, coming).await {
            (self.output, self.stdin) = (Some(streams.output), streams.stdin);
        }
    }

    /// The next bytes for the client; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        self.arrive().await;
        if let Some(before) = &mut self.before {
            match before.recv().await {
                Some(record) => return Some(self.printer.print(&record)),
                None => self.before = None,
            }
        }
        match &mut self.output {
            Some(output) => next_piece(output, self.detail.config.tty).await,
            None => None,
        }
    }

    fn into_body(self) -> Body {
        let frames = futures_util::stream::unfold(self, |mut attached| async {
            let shutdown = attached.shutdown.clone();
            let frame = tokio::select! {
                biased;
                () = shutdown.cancelled() => None,
                frame = attached.next() => frame,
            };
            Some((Ok::<_, std::io::Error>(frame?), attached))
        });
        Body::from_stream(frames)
    }

    async fn serve(mut self, client: Client) {
        let (input, mut output) = client.split();
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return output.close().await,
            () = self.arrive() => {}
        }
        let stdin = self.stdin.take();
        let keys = std::mem::replace(&mut self.keys, DetachKeys::none());
        let closes = stdin.is_some() && self.detail.config.stdin_once;
        let mut fed = std::pin::pin!(input.feed(stdin, keys));
        let mut feeding = true;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                frame = self.next() => match frame {
                    Some(frame) => {
                        // A client that takes nothing for long falls behind, and the shim says so.
                        let sent = tokio::select! {
                            biased;
                            () = shutdown.cancelled() => break,
                            sent = output.send(&frame) => sent,
                        };
                        if sent.is_err() {
                            break;
                        }
                    }
                    None => break,
                },
                end = &mut fed, if feeding => {
                    feeding = false;
                    if end == InputEnd::Detached {
                        self.containers.runtime.tell(&self.detail.state.id, "detach", Vec::new());
                        break;
                    }
                    if end == InputEnd::Closed && closes {
                        // A container that has just ended has no input any more.
                        let _ = self.containers.runtime.close_stdin(&self.detail.state.id).await;
                    }
                }
            }
        }
        output.close().await;
    }
}

pub(in super::super) async fn websocket() -> ApiError {
    ApiError::not_supported("Shoal does not attach over WebSockets: use POST /containers/{id}/attach")
}
