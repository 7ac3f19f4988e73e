//! Further processes in a container that runs.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tracing::debug;

use super::monitor::broken_off;
use super::runtime::blocking;
use super::{Container, Inner, Runtime, Status, StdStream, client};
use crate::init::{self, Step};
use crate::plan::PlanError;
use crate::protocol::{self, Answer, Ask, ExecEnded, Failed, MAX_FRAME, Reply, SignalExec};
use crate::signal::Signal;
use crate::{RuntimeError, plan};

/// A process to run in a container, beside the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecConfig {
    /// The command; the first one is looked up in the container's `PATH` when it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`, over the container's own variables.
    pub env: Vec<String>,
    /// The container's own when absent; must exist.
    pub cwd: Option<String>,
    /// As [`crate::ContainerConfig::user`]; the container's own when absent.
    pub user: Option<String>,
    /// Its standard streams are a terminal of its own.
    pub tty: bool,
    /// Rows and columns of that terminal, when they are known already.
    pub window: Option<(u16, u16)>,
    /// Its standard input is a pipe; otherwise, and without a terminal, it is empty.
    pub stdin: bool,
    /// Its standard output is a pipe; otherwise it goes nowhere.
    pub stdout: bool,
    /// Its standard error is a pipe; otherwise it goes nowhere.
    pub stderr: bool,
}

/// How such a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecExit {
    /// The exit code, or 128 + the signal that killed it.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The container's shim died first, so the truth is not known; the code is 137.
    pub shim_lost: bool,
}

/// Our ends of its standard streams.
#[derive(Debug, Default)]
pub struct ExecIo {
    /// Where it reads from. It ends when this is dropped.
    pub stdin: Option<StdStream>,
    /// What it writes. With a terminal this is the terminal, and so is `stdin`.
    pub stdout: Option<StdStream>,
    /// What it writes as errors; never with a terminal.
    pub stderr: Option<StdStream>,
}

/// A process that was started. Dropping this does not end it; a terminal that is closed hangs up on it.
#[derive(Debug)]
pub struct Exec {
    /// As the host numbers it.
    pub pid: u32,
    /// Taken by whoever moves its bytes.
    pub io: ExecIo,
    handle: ExecHandle,
}

/// Waits for a process and sends it signals. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ExecHandle {
    runtime: Runtime,
    container: Arc<Container>,
    number: u64,
    exit: watch::Receiver<Option<ExecExit>>,
}

/// What came of [`Runtime::exec_output`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub exit: ExecExit,
    /// What it wrote first, both streams in the order of arrival, at most as much as was asked for.
    pub output: Bytes,
    /// It was killed because it took too long.
    pub timed_out: bool,
}

/// How long a killed process may take to die.
const KILLED: Duration = Duration::from_secs(10);
/// Beside the arguments a request has little else in it.
const MAX_REQUEST: usize = MAX_FRAME - 1024;

impl Exec {
    /// Its handle.
    pub fn handle(&self) -> ExecHandle {
        self.handle.clone()
    }
}

impl ExecHandle {
    /// Waits for its end.
    pub async fn wait(&self) -> ExecExit {
        let mut exit = self.exit.clone();
        let lost = ExecExit { code: 137, signal: None, shim_lost: true };
        exit.wait_for(Option::is_some).await.map_or(lost, |exit| exit.unwrap_or(lost))
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExecExit> {
        *self.exit.borrow()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// [`RuntimeError::ShimRefused`] when it has ended.
    pub async fn signal(&self, signal: Signal) -> Result<(), RuntimeError> {
        self.send(signal, false).await
    }

    /// Kills it and what it has started, as far as that is still in its process group.
    ///
    /// # Errors
    /// As [`ExecHandle::signal`].
    pub async fn kill(&self) -> Result<(), RuntimeError> {
        self.send(Signal::KILL, true).await
    }

    async fn send(&self, signal: Signal, group: bool) -> Result<(), RuntimeError> {
        let (inner, container) = (Arc::clone(&self.runtime.inner), Arc::clone(&self.container));
        let ask = Ask::SignalExec(SignalExec { number: self.number, signal: signal.number(), group });
        blocking(move || inner.ask(&container, "to signal a process", ask, &[]).map(drop)).await
    }
}

impl Runtime {
    /// Starts one more process in a container that runs: in its namespaces and cgroup, with its limits and
    /// capabilities. Answered when the command was executed.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] unless the container runs (and is not paused), [`RuntimeError::Exec`] when the
    /// command cannot be executed, [`RuntimeError::InvalidConfig`].
    pub async fn exec(&self, id: &str, config: ExecConfig) -> Result<Exec, RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        let streams = streams(&config).map_err(|source| exec_io(id, source))?;
        self.start_exec(inner, container, config, streams).await
    }

    /// Runs a process to its end, or kills it (and its process group) when that takes longer than `timeout`, and keeps
    /// the first `limit` bytes of what it writes. Nothing waits for output of processes that it leaves behind.
    ///
    /// # Errors
    /// As [`Runtime::exec`].
    pub async fn exec_output(
        &self,
        id: &str,
        config: ExecConfig,
        timeout: Duration,
        limit: usize,
    ) -> Result<ExecOutput, RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        let config = ExecConfig { tty: false, stdin: false, ..config };
        let streams = merged().map_err(|source| exec_io(id, source))?;
        let deadline = tokio::time::Instant::now() + timeout;
        let exec = self.start_exec(inner, container, config, streams).await?;
        let (handle, stdout) = (exec.handle(), exec.io.stdout);
        let (mut output, mut chunk) = (BytesMut::new(), vec![0; 4096]);
        let mut open = stdout.is_some();
        let mut timed_out = false;
        let exit = loop {
            // Reading comes last: one that writes without end is always ready to be read.
            tokio::select! {
                biased;
                exit = handle.wait() => break exit,
                () = tokio::time::sleep_until(deadline), if !timed_out => {
                    timed_out = true;
                    match handle.kill().await {
                        Ok(()) => {}
                        // It has ended in this moment.
                        Err(error) => debug!(container.id = id, %error, "killing a process that took too long"),
                    }
                }
                () = tokio::time::sleep_until(deadline + KILLED) => {
                    return Err(RuntimeError::Unkillable(id.to_owned()));
                }
                count = read(stdout.as_ref(), &mut chunk), if open => match count {
                    Ok(0) | Err(_) => open = false,
                    Ok(count) => keep(&mut output, chunk.get(..count).unwrap_or_default(), limit),
                },
            }
        };
        // It has ended, so all that it wrote is there; others may hold the pipe open, and are not waited for.
        while open && let Some(count) = ready(stdout.as_ref(), &mut chunk) {
            keep(&mut output, chunk.get(..count).unwrap_or_default(), limit);
            open = count > 0 && output.len() < limit;
        }
        Ok(ExecOutput { exit, output: output.freeze(), timed_out })
    }

    async fn start_exec(
        &self,
        inner: Arc<Inner>,
        container: Arc<Container>,
        config: ExecConfig,
        streams: Streams,
    ) -> Result<Exec, RuntimeError> {
        let (asked, of) = (Arc::clone(&inner), Arc::clone(&container));
        let id = container.id.clone();
        let Streams { theirs, mut io } = streams;
        let begun = blocking(move || asked.begin_exec(&of, &config, theirs)).await?;
        let Begun { stream, buffer, number, pid, console } = begun;
        if let Some(master) = console {
            let terminal = StdStream::new(master).map_err(|source| exec_io(&id, source))?;
            io.stdin = Some(terminal.clone());
            io.stdout = Some(terminal);
        }
        let stream = tokio::net::UnixStream::from_std(stream).map_err(|source| exec_io(&id, source))?;
        let (tell, exit) = watch::channel(None);
        let mut monitors = inner.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        while monitors.try_join_next().is_some() {}
        monitors.spawn(async move {
            let exit = end_of(stream, buffer).await;
            debug!(container.id = id, exec.pid = pid, code = exit.code, "a further process ended");
            tell.send_replace(Some(exit));
        });
        drop(monitors);
        Ok(Exec { pid, io, handle: ExecHandle { runtime: self.clone(), container, number, exit } })
    }
}

fn exec_io(id: &str, source: io::Error) -> RuntimeError {
    RuntimeError::Shim { id: id.to_owned(), operation: "to make the streams of a process", source }
}

async fn read(stream: Option<&StdStream>, chunk: &mut [u8]) -> io::Result<usize> {
    match stream {
        Some(stream) => stream.read(chunk).await,
        None => Ok(0),
    }
}

/// What can be read without waiting.
fn ready(stream: Option<&StdStream>, chunk: &mut [u8]) -> Option<usize> {
    stream.and_then(|stream| stream.read_now(chunk))
}

fn keep(output: &mut BytesMut, data: &[u8], limit: usize) {
    let room = limit.saturating_sub(output.len());
    output.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
}

/// Their ends, in the order of the protocol, and ours.
struct Streams {
    theirs: Vec<OwnedFd>,
    io: ExecIo,
}

fn streams(config: &ExecConfig) -> io::Result<Streams> {
    if config.tty {
        return Ok(Streams { theirs: Vec::new(), io: ExecIo::default() });
    }
    let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let output = |wanted: bool| -> io::Result<(OwnedFd, Option<StdStream>)> {
        if !wanted {
            return Ok((null()?, None));
        }
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((theirs, Some(StdStream::new(ours)?)))
    };
    let (stdin_theirs, stdin) = if config.stdin {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        (theirs, Some(StdStream::new(ours)?))
    } else {
        (null()?, None)
    };
    let (stdout_theirs, stdout) = output(config.stdout)?;
    let (stderr_theirs, stderr) = output(config.stderr)?;
    Ok(Streams { theirs: vec![stdin_theirs, stdout_theirs, stderr_theirs], io: ExecIo { stdin, stdout, stderr } })
}

/// Both outputs in one pipe.
fn merged() -> io::Result<Streams> {
    let null = std::fs::File::open("/dev/null")?;
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let again = theirs.try_clone()?;
    let io = ExecIo { stdout: Some(StdStream::new(ours)?), ..ExecIo::default() };
    Ok(Streams { theirs: vec![null.into(), theirs, again], io })
}

/// A process that has executed its command.
struct Begun {
    /// Where its end is told.
    stream: UnixStream,
    /// What was read of it already.
    buffer: Vec<u8>,
    number: u64,
    pid: u32,
    /// Its terminal's master.
    console: Option<OwnedFd>,
}

impl Inner {
    fn begin_exec(
        &self,
        container: &Container,
        config: &ExecConfig,
        mut streams: Vec<OwnedFd>,
    ) -> Result<Begun, RuntimeError> {
        if container.status() != Status::Running || container.view.borrow().paused {
            return Err(container.wrong_state());
        }
        let request = request(config)?;
        let lost = |source| broken_off(container, "to run a process", source);
        let console = if config.tty {
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|e| lost(e.into()))?;
            streams = vec![theirs];
            Some(ours)
        } else {
            None
        };
        let stream = client::connect(&self.socket(&container.id)).map_err(lost)?;
        client::send(&stream, Ask::Exec(request), &streams).map_err(lost)?;
        // The process has its own copies, and only when these are closed does the last of them end the stream.
        drop(streams);
        let mut buffer = Vec::new();
        match client::receive_more(&stream, &mut buffer).map_err(lost)?.0 {
            Answer::ExecStarted(started) => {
                let console = console.map(|socket| client::receive_terminal(&socket)).transpose().map_err(lost)?;
                stream.set_nonblocking(true).map_err(lost)?;
                Ok(Begun { stream, buffer, number: started.number, pid: started.pid, console })
            }
            Answer::NotStarted(failure) => Err(exec_error(container, config, &failure)),
            Answer::Refused(_) if container.exit().is_some() => Err(container.wrong_state()),
            Answer::Refused(refused) => Err(RuntimeError::ShimRefused {
                id: container.id.clone(),
                operation: "to run a process",
                reason: refused.reason,
            }),
            _ => Err(lost(io::ErrorKind::InvalidData.into())),
        }
    }
}

fn request(config: &ExecConfig) -> Result<protocol::Exec, RuntimeError> {
    if config.args.first().is_none_or(String::is_empty) {
        return Err(PlanError::invalid("exec.args", "no command specified").into());
    }
    if let Some(cwd) = &config.cwd {
        plan::Target::new("exec.cwd", if cwd.is_empty() { "/" } else { cwd.as_str() })?;
    }
    let (rows, columns) = config.window.unwrap_or_default();
    let request = protocol::Exec {
        args: config.args.clone(),
        env: config.env.clone(),
        cwd: config.cwd.clone(),
        user: config.user.clone(),
        tty: config.tty,
        rows: rows.into(),
        columns: columns.into(),
    };
    if request.encoded_len() > MAX_REQUEST {
        let reason = format!("arguments and environment are longer than {MAX_REQUEST} bytes");
        return Err(PlanError::invalid("exec.args", reason).into());
    }
    Ok(request)
}

fn exec_error(container: &Container, config: &ExecConfig, failure: &Failed) -> RuntimeError {
    let step = u8::try_from(failure.step).ok().and_then(Step::from_number).unwrap_or(Step::Prepare);
    let command = config.args.first().map(String::as_str).unwrap_or_default();
    let (reason, exit_code) = match step {
        Step::Exec if failure.errno == libc::ENOENT && !command.contains('/') => {
            (format!("exec: {command:?}: executable file not found in $PATH"), 127)
        }
        Step::Exec => (format!("exec: {command:?}: {}", failure.reason), init::exit_code_of(failure.errno)),
        Step::UnknownUser | Step::UnknownGroup => {
            (format!("unable to find user {}: {}", failure.subject, failure.reason), 126)
        }
        Step::WorkingDirectory => (format!("chdir to cwd ({:?}) failed: {}", failure.subject, failure.reason), 126),
        Step::Prepare => (failure.reason.clone(), 126),
        step if failure.subject.is_empty() => (format!("{step}: {}", failure.reason), 126),
        step => (format!("{step} {}: {}", failure.subject, failure.reason), 126),
    };
    RuntimeError::Exec { id: container.id.clone(), reason, exit_code }
}

/// Reads the second answer.
async fn end_of(mut stream: tokio::net::UnixStream, mut buffer: Vec<u8>) -> ExecExit {
    let lost = ExecExit { code: 137, signal: None, shim_lost: true };
    loop {
        match protocol::take::<Reply>(&mut buffer) {
            Ok(Some(Reply { answer: Some(Answer::ExecEnded(ExecEnded { code, signal })) })) => {
                return ExecExit { code, signal, shim_lost: false };
            }
            Ok(Some(_)) | Err(_) => return lost,
            Ok(None) => {}
        }
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return lost,
            Ok(_) => {}
        }
    }
}
