//! Removing a container, and whatever an interrupted removal or creation has left.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::{Inner, storage};
use crate::RuntimeError;
use crate::procfs;
use crate::remove::remove_tree;
use crate::stored::{self, StoredProcess, names};
use crate::sys;

/// How long processes may take to die and cgroups to become free.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// How long a shim may take to end by itself once its container has.
pub(super) const SHIM_GRACE: Duration = Duration::from_secs(2);
/// A directory that is being removed bears this before its name.
pub(super) const REMOVING: &str = ".removing-";

impl Inner {
    /// Removes all that a container has on this host. Blocking and idempotent: it needs no more than the id.
    pub(super) fn remove_leftovers(&self, id: &str) -> Result<(), RuntimeError> {
        let dir = self.container_dir(id);
        self.end_processes(id)?;
        // Renamed first: a directory under its own name is always whole.
        let doomed = self.containers_dir().join(format!("{REMOVING}{id}"));
        remove_dir(&doomed)?;
        absent_is_fine(fs::rename(&dir, &doomed)).map_err(storage("rename", &dir))?;
        remove_dir(&doomed)?;
        self.private.remove(id)?;
        self.volumes.release(id)
    }

    /// Ends whatever of a container still runs, its shim included, and removes its cgroups and its socket.
    pub(super) fn end_processes(&self, id: &str) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + DEADLINE;
        // The usual case: everything in it has ended. To ask for each process would take longer.
        if !self.cgroups.remove_if_empty(id) && !self.cgroups.kill_all(id, deadline) {
            return Err(RuntimeError::Unkillable(id.to_owned()));
        }
        end_shim(&self.container_dir(id));
        self.cgroups.remove(id, deadline)?;
        let socket = self.socket(id);
        absent_is_fine(fs::remove_file(&socket)).map_err(storage("remove", &socket))
    }
}

/// Removes a directory with all that is in it; one that is not there is fine.
pub(super) fn remove_dir(path: &Path) -> Result<(), RuntimeError> {
    absent_is_fine(remove_tree(path)).map_err(storage("remove", path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits for the shim to end, and makes it when it does not.
fn end_shim(dir: &Path) {
    let Ok(Some(process)) = stored::read::<StoredProcess>(dir, names::PROCESS) else { return };
    if process.boot_id != procfs::boot_id() {
        return;
    }
    if let Ok(Some(pidfd)) = procfs::open_verified(process.shim_pid, process.shim_start_ticks)
        && !has_ended(&pidfd, SHIM_GRACE)
    {
        let _ = sys::send_signal(pidfd.as_fd(), libc::SIGKILL);
        has_ended(&pidfd, SHIM_GRACE);
    }
}

/// Whether the process ends within this time.
pub(super) fn has_ended(pidfd: &OwnedFd, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&crate::shim::timespec(left))) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return outcome.is_ok_and(|ready| ready > 0),
        }
    }
}
