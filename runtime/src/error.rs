//! What can go wrong with a container, named by operation.

use std::io;
use std::path::PathBuf;

use crate::init::Step;
use crate::plan::PlanError;

/// A failed operation of [`crate::Runtime`].
///
/// Unless a variant says otherwise nothing has changed, and what was half made has been removed or is removed by the
/// next `delete` or `open`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The runtime's own settings are unusable. Retrying does not help.
    #[error("invalid runtime configuration: {0}")]
    InvalidRuntime(String),
    /// The container's configuration cannot be carried out. Retrying does not help.
    #[error(transparent)]
    InvalidConfig(#[from] PlanError),
    /// A container with this id is there already.
    #[error("container {0} already exists")]
    Exists(String),
    /// No container with this id.
    #[error("no such container: {0}")]
    NotFound(String),
    /// The operation needs a running (or just created) container.
    #[error("container {id} is {status}")]
    WrongState {
        /// Which container.
        id: String,
        /// `created`, `running`, `paused` or `exited`.
        status: &'static str,
    },
    /// A step inside of the new container failed; the container was removed.
    #[error("creating container {id} failed: {step}{subject}: {reason}", subject = subject_text(.subject))]
    Create {
        /// Which container.
        id: String,
        /// What the child was doing.
        step: Step,
        /// What it was doing that to; may be empty.
        subject: String,
        /// Why, in words.
        reason: String,
        /// The kernel's error number; 0 when the reason is not the kernel's.
        errno: i32,
    },
    /// The command could not be executed. The container has exited with `exit_code`, as with Docker.
    #[error("starting container failed: exec {command:?}: {reason}")]
    Start {
        /// Which container.
        id: String,
        /// `argv[0]` as it was asked for.
        command: String,
        /// `no such file or directory`, `permission denied`, ...
        reason: String,
        /// The kernel's error number.
        errno: i32,
        /// 127 when the command was not found, 126 when it could not run.
        exit_code: i32,
    },
    /// A further process could not be started. The container goes on as before.
    #[error("exec failed: {reason}")]
    Exec {
        /// Which container.
        id: String,
        /// Which step failed and why.
        reason: String,
        /// What Docker says was its exit code: 127 when the command was not found, 126 otherwise.
        exit_code: i32,
    },
    /// A file or directory of the runtime's own could not be read or written. Retrying may help.
    #[error("{operation} {path}")]
    Storage {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A stored state file is damaged or of another release.
    #[error("stored state {path}: {reason}")]
    Stored {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// It is whole, but written by a release (or under a key) that this one does not know.
        foreign: bool,
    },
    /// A cgroup could not be made, set or removed. Retrying may help.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// The shim could not be spawned or did not come up.
    #[error("starting the shim of container {id}: {reason}")]
    Spawn {
        /// Which container.
        id: String,
        /// What happened.
        reason: String,
    },
    /// The shim does not answer; its container may still run. Retrying may help.
    #[error("shim of container {id}: {operation}")]
    Shim {
        /// Which container.
        id: String,
        /// What was asked.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The shim refused a request.
    #[error("shim of container {id} refused {operation}: {reason}")]
    ShimRefused {
        /// Which container.
        id: String,
        /// What was asked.
        operation: &'static str,
        /// Its answer.
        reason: String,
    },
    /// Processes of the container were still there after they had been killed, until the deadline. Retrying may help.
    #[error("container {0} still has processes after it was killed")]
    Unkillable(String),
    /// The container has ended, and its shim could not put that on record until the deadline: it goes on trying.
    #[error("the end of container {0} cannot be recorded: is the disk full?")]
    Unrecorded(String),
    /// The log goes elsewhere, or nowhere. Docker's words. Retrying does not help.
    #[error("configured logging driver does not support reading")]
    LogUnreadable,
    /// Containers cannot have users of their own here. Retrying does not help.
    #[error("ids of users cannot be mapped for what is in {path}: {reason}")]
    NoIdMappings {
        /// The data directory.
        path: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// A volume, or a path that is to be mounted.
    #[error(transparent)]
    Volume(#[from] crate::volume::VolumeError),
    /// The process's namespace could not be opened.
    #[error("network namespace of container {id}")]
    Namespace {
        /// Which container.
        id: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Several things could not be removed; each is named. Retrying may help.
    #[error("removing left something behind: {0}")]
    Leftovers(String),
    /// The runtime is shutting down.
    #[error("the runtime is closing")]
    Closing,
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn subject_text(subject: &str) -> String {
    if subject.is_empty() { String::new() } else { format!(" {subject}") }
}

/// An error number in the words that Go's and Docker's messages use: lowercase, no number.
pub(crate) fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

#[cfg(test)]
mod tests {
    #[test]
    fn errno_reads_like_docker() {
        assert_eq!(super::errno_text(libc::ENOENT), "no such file or directory");
        assert_eq!(super::errno_text(libc::EACCES), "permission denied");
        assert_eq!(super::errno_text(libc::ENOEXEC), "exec format error");
    }
}
