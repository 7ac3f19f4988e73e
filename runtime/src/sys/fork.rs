//! A process that goes on elsewhere.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::{Errno, checked, exit_now};

/// The calling process goes on as a new one in this v2 cgroup, with its memory and descriptors and a pid of its own. On
/// failure nothing has happened.
///
/// The old process ends, with exit code 0, when a byte is written to the pipe that is returned, or else when the new one
/// has ended: so whoever waits for the old one waits for the new one until it is let go.
///
/// A process that is made in a cgroup is there without a wait, where one that moves waits until no process of the
/// whole machine is just forking or ending: many milliseconds. The caller must have one thread, as the shim has.
pub(crate) fn continue_in_cgroup(cgroup: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let (word, leave) = pipe_with(PipeFlags::CLOEXEC).map_err(rustix::io::Errno::raw_os_error)?;
    // SAFETY: clone_args is plain integers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: args lives through the call and its size is given. Without CLONE_VM and with no new stack this is a
    // fork: the child continues on its own copy of this stack. With one thread, no lock is held by anyone.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    let child = checked(result)?;
    if child == 0 {
        return Ok(leave);
    }
    drop(leave);
    let mut byte = [0u8; 1];
    let said = loop {
        match rustix::io::read(&word, &mut byte) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    if said != Ok(1) {
        let child = i32::try_from(child).ok().and_then(rustix::process::Pid::from_raw);
        let nothing = rustix::process::WaitOptions::empty();
        while rustix::process::waitpid(child, nothing).is_err_and(|errno| errno == rustix::io::Errno::INTR) {}
    }
    exit_now(0)
}
