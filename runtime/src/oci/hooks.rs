//! The hooks that run on the host's side: before the container's root is switched, after its start, after its end.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Failure;
use super::spec::Hook;
use crate::sys;

/// Runs one hook with the container's state on its standard input, and waits for its end.
pub(super) fn run(kind: &'static str, hook: &Hook, state: &str) -> Result<(), Failure> {
    let failed = |reason: String| Failure::Hook { kind, path: hook.path.clone(), reason };
    match attempt(hook, state) {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(failed(reason)),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// `Some`: it ran, and failed.
fn attempt(hook: &Hook, state: &str) -> io::Result<Option<String>> {
    // A file takes a state of any size without anyone reading it.
    let mut input = File::from(rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC)?);
    input.write_all(state.as_bytes())?;
    input.rewind()?;
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    let pairs = hook.env.iter().filter_map(|pair| pair.split_once('='));
    // Nobody else would end it at its time.
    sys::end_with_us(&mut command);
    let mut child = command.env_clear().envs(pairs).stdin(Stdio::from(input)).spawn()?;
    if let Some(seconds) = hook.timeout {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&pidfd.as_fd(), PollFlags::IN)], Some(&limit))? == 0 {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("killed after {seconds} s")));
        }
    }
    let status = child.wait()?;
    Ok(match (status.success(), status.code()) {
        (true, _) => None,
        (false, Some(code)) => Some(format!("exited with code {code}")),
        (false, None) => Some(format!("killed by signal {}", status.signal().unwrap_or(0))),
    })
}
