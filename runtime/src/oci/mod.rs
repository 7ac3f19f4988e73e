//! `shoal runtime`: the command line of OCI runtimes, as runc, crun and youki share it, on bundles of runtime-spec 1.2.
//!
//! Nothing of Shoal's daemon takes part: no shim, no image, no async runtime; a command does its work in one thread and
//! ends. `create` leaves the container's first process waiting at a socket in the state directory, `start` knocks there.
//! [`spec`], [`plan`], [`mounts`], [`options`] and [`args`] are pure; the plan that they make is carried out by the same
//! `init` as that of Shoal's own containers.

mod args;
mod command;
mod create;
mod exec;
mod features;
mod foreground;
#[cfg(test)]
mod fuzz;
mod group;
mod hooks;
mod mounts;
mod options;
mod plan;
mod seal;
mod settings;
mod spec;
mod state;
mod update;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::init::Step;
use crate::plan::PlanError;
use crate::{CgroupError, RuntimeError};

/// The versions of the specification that are served.
const VERSION_MIN: &str = "1.0.0";
/// See [`VERSION_MIN`].
const VERSION_MAX: &str = "1.2.1";

/// Why a command failed. Unless a variant says otherwise nothing has changed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Retrying does not help.
    #[error("{0}; see shoal runtime --help")]
    Usage(String),
    /// The bundle asks for what cannot be. Retrying does not help.
    #[error("config.json")]
    Config(#[from] PlanError),
    /// It is no JSON, or not of the specification's shape. Retrying does not help.
    #[error("{path}")]
    Syntax {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("container {0:?} already exists")]
    Exists(String),
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// Retrying helps.
    #[error("another command works on container {0:?}")]
    Busy(String),
    /// In words from which callers of runc tell that there is nobody left to signal.
    #[error("container not running: {0:?} has ended")]
    NotRunning(String),
    #[error("container {id:?} is {status}, not {wanted}")]
    WrongState { id: String, status: &'static str, wanted: &'static str },
    /// A step inside of the new container failed; it was removed again.
    #[error("{step}{subject}: {reason}")]
    Step { step: Step, subject: String, reason: String },
    #[error("{kind} hook {path}: {reason}")]
    Hook { kind: &'static str, path: String, reason: String },
    #[error("{operation} {path}")]
    Storage {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{operation}")]
    System {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Failure {
        move |source| Failure::System { operation, source }
    }

    /// The whole chain of causes.
    fn text(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    }
}

/// What a command leaves to say.
enum Done {
    Nothing,
    /// For the standard output.
    Text(String),
    /// The exit code of what it ran.
    Code(u8),
}

/// `shoal runtime ...`. Must be called before any thread exists.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let (global, command) = match args::parse(args) {
        Ok(parsed) => parsed,
        Err(wrong) => {
            say(&mut io::stderr(), &format!("shoal runtime: {}", Failure::Usage(wrong)));
            return ExitCode::FAILURE;
        }
    };
    // A command of the container's own may well end with a 1.
    let failed = if matches!(command, args::Command::Exec(_)) { ExitCode::from(255) } else { ExitCode::FAILURE };
    match command::run(&global, command) {
        Ok(Done::Nothing) => ExitCode::SUCCESS,
        Ok(Done::Code(code)) => ExitCode::from(code),
        Ok(Done::Text(text)) => say(&mut io::stdout(), &text),
        Err(failure) => {
            let text = failure.text();
            log(&global, "error", &text);
            say(&mut io::stderr(), &format!("shoal runtime: {text}"));
            failed
        }
    }
}

fn say(to: &mut dyn Write, text: &str) -> ExitCode {
    if writeln!(to, "{text}").is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Something that does not stop the command.
fn warn(global: &args::Global, text: &str) {
    log(global, "warning", text);
    say(&mut io::stderr(), &format!("shoal runtime: warning: {text}"));
}

/// One line in the log file, in the form that callers of runc read.
fn log(global: &args::Global, level: &str, text: &str) {
    let Some(path) = &global.log else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = rfc3339(u64::try_from(now.as_nanos()).unwrap_or(0));
    let line = if global.log_json {
        serde_json::json!({ "level": level, "msg": text, "time": time }).to_string()
    } else {
        format!("time={time:?} level={level} msg={text:?}")
    };
    // Whoever cannot be told in the file is told on the standard error stream.
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        say(&mut file, &line);
    }
}

/// A time as text, of which the year 1970 is the least bad one for those that are none.
fn rfc3339(nanos: u64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos))
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}
