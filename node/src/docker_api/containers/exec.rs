//! `POST /containers/{id}/exec` and `/exec/{id}/...`: one more process in a container.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::{Request, StatusCode};
use runtime::{Exec as Process, ExecConfig, ExecHandle, LogStream, RuntimeError, Status, StdStream};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::App;
use super::super::error::ApiError;
use super::super::extract::{ApiVersion, JsonBody, Params};
use super::super::wire;
use super::actions::window;
use super::detach::DetachKeys;
use super::find::{self, exec_text, failed};
use super::hijack::{Hijack, plain, upgraded};
use super::logs::content_type;
use super::pump::{Client, InputEnd, Outputs, framed};
use crate::containers::{Containers, Exec, ExecState, Wanted};
use crate::engine::Engine;

/// The character that ends the input of a terminal.
const END_OF_INPUT: &[u8] = &[4];

pub(in super::super) async fn create<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<wire::ExecCreate>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    if body.privileged.unwrap_or_default() {
        return Err(ApiError::not_supported(
            "Shoal does not run privileged processes in containers: what a container may do is in its service's spec",
        ));
    }
    let (containers, state) = find::find(&app, &id).await?;
    if state.status != Status::Running {
        return Err(ApiError::conflict(format!("Container {} is not running", state.id)));
    }
    if state.paused {
        return Err(ApiError::conflict(format!("Container {id} is paused, unpause the container before exec")));
    }
    let args = body.cmd.unwrap_or_default();
    if args.is_empty() {
        return Err(ApiError::invalid("No exec command specified"));
    }
    let wanted = Wanted {
        stdin: body.attach_stdin.unwrap_or_default(),
        stdout: body.attach_stdout.unwrap_or_default(),
        stderr: body.attach_stderr.unwrap_or_default(),
        detach_keys: body.detach_keys.unwrap_or_default(),
    };
    DetachKeys::parse(&wanted.detach_keys)?;
    let config = ExecConfig {
        args,
        env: body.env.unwrap_or_default(),
        cwd: body.working_dir.filter(|dir| !dir.is_empty()),
        user: body.user.filter(|user| !user.is_empty()),
        tty: body.tty.unwrap_or_default(),
        window: body.console_size.as_deref().map(console_size).transpose()?.flatten(),
        ..ExecConfig::default()
    };
    let here: Vec<String> = containers.runtime.list().await.into_iter().map(|one| one.id).collect();
    containers.forget_execs_but_of(&here);
    let action = format!("exec_create: {}", config.args.join(" "));
    let exec = containers.ask_for(state.id.clone(), config, wanted);
    let exec = exec.ok_or_else(|| ApiError::conflict("too many processes were asked for and not ended"))?;
    containers.runtime.tell(&state.id, &action, vec![("execID", exec.clone())]);
    Ok((StatusCode::CREATED, Json(json!({"Id": exec}))))
}

/// Docker's `[rows, columns]`; zeros mean that it is not known.
fn console_size(given: &[u64]) -> Result<Option<(u16, u16)>, ApiError> {
    let invalid = || ApiError::invalid("invalid ConsoleSize: it must be [rows, columns]");
    let &[rows, columns] = given else { return Err(invalid()) };
    match (u16::try_from(rows), u16::try_from(columns)) {
        (Ok(0), _) | (_, Ok(0)) => Ok(None),
        (Ok(rows), Ok(columns)) => Ok(Some((rows, columns))),
        _ => Err(invalid()),
    }
}

/// The process that was asked for under this id.
fn find_exec<E: Engine>(app: &App<E>, id: &str) -> Result<(Containers, Exec), ApiError> {
    let missing = || ApiError::not_found(format!("No such exec instance: {id}"));
    let containers = app.engine.containers().ok_or_else(missing)?;
    let exec = containers.exec(id).ok_or_else(missing)?;
    Ok((containers, exec))
}

pub(in super::super) async fn start<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    version: ApiVersion,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let hijack = Hijack::take(&mut parts);
    let JsonBody(body) = JsonBody::<wire::ExecStart>::from_request(Request::from_parts(parts, body), &()).await?;
    let (containers, exec) = find_exec(&app, &id)?;
    let detach = body.detach.unwrap_or_default();
    let mut config = exec.config.clone();
    let size = body.console_size.as_deref().map(console_size).transpose()?.flatten();
    config.window = size.or(config.window);
    // Whoever asks for it starts it; a second one is told so.
    let taken = containers.change_exec(&id, |exec| {
        let first = matches!(exec.state, ExecState::Asked);
        if first {
            exec.state = ExecState::Starting;
        }
        first
    });
    if taken != Some(true) {
        return Err(ApiError::conflict(format!("Error: Exec command {id} is already running")));
    }
    if detach {
        return match begin(&containers, &id, &exec, config).await {
            Ok(process) => {
                leave(&containers, &id, process);
                Ok(StatusCode::OK.into_response())
            }
            Err(error) => Err(failed(&error)),
        };
    }
    config.stdin = exec.wanted.stdin;
    config.stdout = exec.wanted.stdout;
    config.stderr = exec.wanted.stderr;
    let content_type = content_type(config.tty, version);
    let session = Session { containers: containers.clone(), id, exec, config, shutdown: app.shutdown.clone() };
    match hijack {
        Some(hijack) => {
            containers.tasks.spawn(async move {
                match hijack.client().await {
                    Some(client) => session.serve(client).await,
                    None => session.nobody(),
                }
            });
            Ok(upgraded(content_type))
        }
        None => Ok(plain(content_type, session.into_body().await)),
    }
}

/// Starts the process and notes how far it is.
async fn begin(containers: &Containers, id: &str, exec: &Exec, config: ExecConfig) -> Result<Process, RuntimeError> {
    let begun = containers.runtime.exec(&exec.container, config).await;
    let state = match &begun {
        Ok(process) => {
            let terminal = process.io.stdout.clone().filter(|_| exec.config.tty);
            ExecState::Started { pid: process.pid, handle: process.handle(), terminal }
        }
        Err(RuntimeError::Exec { exit_code, .. }) => ExecState::Failed(*exit_code),
        Err(_) => ExecState::Failed(126),
    };
    containers.change_exec(id, |exec| exec.state = state);
    if let Ok(process) = &begun {
        tell(containers, id, exec, process.handle());
    }
    begun
}

/// Tells that a process runs, and when it has ended.
fn tell(containers: &Containers, id: &str, exec: &Exec, handle: ExecHandle) {
    let (runtime, container, id) = (containers.runtime.clone(), exec.container.clone(), id.to_owned());
    let action = format!("exec_start: {}", exec.config.args.join(" "));
    runtime.tell(&container, &action, vec![("execID", id.clone())]);
    containers.tasks.spawn(async move {
        let code = handle.wait().await.code;
        runtime.tell(&container, "exec_die", vec![("execID", id), ("exitCode", code.to_string())]);
    });
}

/// Lets a process go on without a client. Its terminal is kept, and what it writes there is thrown away.
fn leave(containers: &Containers, id: &str, process: Process) {
    let (handle, stdout) = (process.handle(), process.io.stdout);
    if let Some(terminal) = stdout {
        keep_terminal(containers, id, terminal, handle);
    }
}

fn keep_terminal(containers: &Containers, id: &str, terminal: StdStream, handle: ExecHandle) {
    let (of, id) = (containers.clone(), id.to_owned());
    containers.tasks.spawn(async move {
        let mut thrown_away = vec![0; 4096];
        loop {
            tokio::select! {
                biased;
                _ = handle.wait() => break,
                count = terminal.read(&mut thrown_away) => if !count.is_ok_and(|count| count > 0) { break },
            }
        }
        forget_terminal(&of, &id);
    });
}

/// While it is remembered it stays open.
fn forget_terminal(containers: &Containers, id: &str) {
    containers.change_exec(id, |exec| {
        if let ExecState::Started { terminal, .. } = &mut exec.state {
            *terminal = None;
        }
    });
}

/// A process and its client.
struct Session {
    containers: Containers,
    id: String,
    exec: Exec,
    config: ExecConfig,
    shutdown: CancellationToken,
}

impl Session {
    /// The client was gone before it began.
    fn nobody(&self) {
        self.containers.change_exec(&self.id, |exec| exec.state = ExecState::Failed(126));
    }

    /// What Docker puts into the stream when the process cannot be started.
    fn failure(&self, error: &RuntimeError) -> Bytes {
        framed(self.config.tty, LogStream::Stdout, format!("{}\r\n", exec_text(error)).as_bytes())
    }

    async fn serve(self, client: Client) {
        let (input, mut output) = client.split();
        let process = match begin(&self.containers, &self.id, &self.exec, self.config.clone()).await {
            Ok(process) => process,
            Err(error) => {
                // The client may have gone.
                let _ = output.send(&self.failure(&error)).await;
                return output.close().await;
            }
        };
        let (handle, tty) = (process.handle(), self.config.tty);
        let stdin = process.io.stdin.filter(|_| self.config.stdin);
        let terminal = stdin.clone().filter(|_| tty);
        let kept = process.io.stdout.clone().filter(|_| tty);
        let mut outputs = Outputs::new(process.io.stdout, process.io.stderr, tty);
        let keys = match tty {
            true => DetachKeys::parse(&self.exec.wanted.detach_keys).unwrap_or_else(|_| DetachKeys::none()),
            false => DetachKeys::none(),
        };
        let mut fed = std::pin::pin!(input.feed(stdin, keys));
        let (mut feeding, mut open) = (true, true);
        let mut ended = std::pin::pin!(handle.wait());
        let mut detached = false;
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                frame = outputs.next(), if open => match frame {
                    Some(frame) => {
                        let sent = tokio::select! {
                            biased;
                            () = self.shutdown.cancelled() => break,
                            sent = output.send(&frame) => sent,
                        };
                        if sent.is_err() {
                            break;
                        }
                    }
                    None => open = false,
                },
                end = &mut fed, if feeding => {
                    feeding = false;
                    detached = end == InputEnd::Detached;
                    if detached {
                        break;
                    }
                    if end == InputEnd::Closed && let Some(terminal) = &terminal {
                        // A process that does not read any more does not need to know.
                        let _ = terminal.write_all(END_OF_INPUT).await;
                    }
                }
                _ = &mut ended => {
                    while open && let Some(frame) = outputs.next_left().await {
                        if output.send(&frame).await.is_err() {
                            break;
                        }
                    }
                    break;
                }
            }
        }
        match kept {
            // It goes on without its client.
            Some(terminal) if detached => keep_terminal(&self.containers, &self.id, terminal, handle.clone()),
            // Closing the terminal hangs up on what still has it.
            _ => forget_terminal(&self.containers, &self.id),
        }
        output.close().await;
    }

    async fn into_body(self) -> Body {
        let config = ExecConfig { stdin: false, ..self.config.clone() };
        let process = match begin(&self.containers, &self.id, &self.exec, config).await {
            Ok(process) => process,
            Err(error) => return Body::from(self.failure(&error)),
        };
        let handle = process.handle();
        let outputs = Outputs::new(process.io.stdout, process.io.stderr, self.config.tty);
        let frames =
            futures_util::stream::unfold((self, handle, outputs), |(session, handle, mut outputs)| async move {
                let frame = tokio::select! {
                    biased;
                    () = session.shutdown.cancelled() => None,
                    frame = outputs.next() => frame,
                    _ = handle.wait() => outputs.next_left().await,
                };
                if frame.is_none() {
                    forget_terminal(&session.containers, &session.id);
                    handle.wait().await;
                }
                Some((Ok::<_, std::io::Error>(frame?), (session, handle, outputs)))
            });
        Body::from_stream(frames)
    }
}

pub(in super::super) async fn resize<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<StatusCode, ApiError> {
    let (rows, columns) = window(&params)?;
    let (_, exec) = find_exec(&app, &id)?;
    match &exec.state {
        ExecState::Started { terminal: Some(terminal), .. } => {
            let failed = |error: std::io::Error| ApiError::internal(format!("cannot resize the terminal: {error}"));
            terminal.resize(rows, columns).map_err(failed)?;
            Ok(StatusCode::OK)
        }
        ExecState::Started { .. } if !exec.config.tty => Err(ApiError::invalid(format!("exec {id} has no terminal"))),
        _ => Err(ApiError::conflict(format!("exec {id} is not running"))),
    }
}

pub(in super::super) async fn inspect<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (_, exec) = find_exec(&app, &id)?;
    let (pid, running) = match &exec.state {
        ExecState::Started { pid, .. } => (*pid, exec.ended().is_none()),
        _ => (0, false),
    };
    let (command, arguments) =
        exec.config.args.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    Ok(Json(json!({
        "ID": id,
        "Running": running,
        "ExitCode": exec.ended().map(|exit| exit.code),
        "ProcessConfig": {
            "tty": exec.config.tty,
            "entrypoint": command,
            "arguments": arguments,
            "privileged": false,
            "user": exec.config.user,
        },
        "OpenStdin": exec.wanted.stdin,
        "OpenStderr": exec.wanted.stderr,
        "OpenStdout": exec.wanted.stdout,
        "CanRemove": false,
        "ContainerID": exec.container,
        "DetachKeys": "",
        "Pid": pid,
    })))
}
