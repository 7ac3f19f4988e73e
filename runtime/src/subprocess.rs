//! Parts of this binary that run as a process of their own: for a moment, with nothing of the daemon's, and with a word
//! of why they failed. Each is `<exe> __<name> <argument>...`; see [`crate::dispatch`].

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};

/// What is read of its complaint.
const MAX_MESSAGE: u64 = 4096;

/// Runs one to its end; blocking. The error is what it said, or how it ended.
pub(crate) fn run(exe: &OwnedFd, name: &str, args: &[&OsStr]) -> Result<(), String> {
    let mut child = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
        .arg(name)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut message = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MAX_MESSAGE).read_to_end(&mut message);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match String::from_utf8_lossy(&message).trim() {
        _ if status.success() => Ok(()),
        "" => Err(status.to_string()),
        said => Err(said.to_owned()),
    }
}

/// How such a process ends: 0, or 1 with the reason on its standard error.
pub(crate) fn end(outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
