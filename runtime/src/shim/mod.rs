//! The small process that stands beside each container and outlives the daemon.
//!
//! It is the container's parent: it makes it, holds its output, writes its log, reaps it, records its exit, and keeps
//! descriptors for it. One thread, no runtime, a poll loop. It knows nothing of other containers, and it ends when the
//! container has ended and that is on record; whoever asks later reads the file.
//!
//! Started by the daemon as `<exe> __shim <container directory> <socket> <engine id>`, with a socket as standard input
//! on which the answer to the creation goes.

mod connection;
mod create;
mod execs;
mod mapped;
mod probe;
mod serve;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::process::{Resource, Rlimit};

use crate::protocol::{Answer, Failed, Reply, frame};
use crate::sys;

pub(crate) use probe::{NAME as PROBE, main as probe_main, maps_ids};

/// What the daemon passed on the command line.
struct Arguments {
    dir: PathBuf,
    socket: PathBuf,
    engine_id: String,
}

fn arguments(mut args: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let (dir, socket, engine_id) = (args.next()?, args.next()?, args.next()?);
    let arguments = Arguments { dir: dir.into(), socket: socket.into(), engine_id: engine_id.into_string().ok()? };
    args.next().is_none().then_some(arguments)
}

/// The shim's whole life. Exit code 2: not called by a daemon; 1: the container could not be made, which was told.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(arguments) = arguments(args) else { return ExitCode::from(2) };
    let Some(mut daemon) = detach() else { return ExitCode::from(2) };
    match create::create(arguments) {
        Ok(mut made) => {
            let told = daemon.write_all(&frame(&Reply { answer: Some(Answer::Created(made.state())) }));
            drop(daemon);
            if told.is_err() {
                // Nobody knows of this container, and nobody ever will.
                made.abort();
                return ExitCode::FAILURE;
            }
            made.let_go();
            serve::serve(made);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let _ = daemon.write_all(&frame(&Reply { answer: Some(Answer::NotCreated(*failure)) }));
            ExitCode::FAILURE
        }
    }
}

/// Leaves the daemon's session and standard streams, keeping the socket that stood in for one of them.
fn detach() -> Option<UnixStream> {
    sys::close_inherited().ok()?;
    let daemon = UnixStream::from(sys::inherited(0).ok()?);
    // Not a socket: somebody runs this by hand.
    daemon.local_addr().ok()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").ok()?;
    for number in 0..3 {
        sys::duplicate_onto(null.as_fd(), number).ok()?;
    }
    sys::ignore_stop_signals();
    raise_descriptor_limit();
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir(c"/");
    let _ = rustix::thread::set_name(c"shoal-shim");
    // The daemon's priority is for the daemon: neither the container nor its shim runs before others.
    let _ = rustix::process::setpriority_process(None, 0);
    // The host's OOM killer should take the container first; without the privilege it stays as it is.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    Some(daemon)
}

/// All connections, parked descriptors and further processes that a shim allows itself, and some more: a listener that
/// finds no room would be ready for ever. What runs in the container has limits of its own.
fn raise_descriptor_limit() {
    const WANTED: u64 = 4096;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let soft = limit.maximum.map_or(WANTED, |hard| hard.min(WANTED));
    if limit.current.is_some_and(|current| current < soft) {
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: limit.maximum });
    }
}

/// A duration as the kernel takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn failed(step: crate::init::Step, subject: impl Into<String>, error: &std::io::Error) -> Box<Failed> {
    let errno = error.raw_os_error().unwrap_or(0);
    let reason = if errno == 0 { error.to_string() } else { crate::error::errno_text(errno) };
    Box::new(Failed { step: step.code(), subject: subject.into(), errno, reason })
}
