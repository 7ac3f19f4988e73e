//! The few facts about processes that identify them beyond their number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys;

/// When a process started, in clock ticks since boot. With the pid it names one process of this boot for ever.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    ticks_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn ticks_of(stat: &str) -> Option<u64> {
    // The command's name is in parentheses and may hold anything; field 3 follows the last one. Field 22 is wanted.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether a process has ended and only waits for its parent to ask. One that is not there has ended too.
pub(crate) fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().next());
    matches!(state, None | Some("Z" | "X"))
}

/// The process that was meant, or nothing when it has gone. What is done through the descriptor is done to it and to no
/// other; its number is given to another one as soon as it is reaped, so what is read by number needs a look afterwards
/// ([`still_there`]).
///
/// # Errors
/// When this process is at its limits and cannot know.
pub(crate) fn open_verified(pid: u32, expected_start: u64) -> io::Result<Option<OwnedFd>> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let known = |error: io::Error| if out_of_resources(&error) { Err(error) } else { Ok(None) };
    let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(errno) => return known(errno.into()),
    };
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok((ticks_of(&stat) == Some(expected_start)).then_some(pidfd)),
        Err(error) => known(error),
    }
}

/// Whether the process behind a descriptor has not been reaped: its number was its own until now.
pub(crate) fn still_there(pidfd: &OwnedFd) -> bool {
    sys::send_signal(pidfd.as_fd(), 0) != Err(libc::ESRCH)
}

/// Whether an error says that this process, or the host, has no more of something, and nothing of what was asked for.
pub(crate) fn out_of_resources(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR))
}

/// Names this boot of this machine; empty when the kernel does not tell.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
