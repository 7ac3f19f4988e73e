//! A process that goes on elsewhere.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Errno, checked, exit_now};

/// The calling process goes on as a new one in this v2 cgroup, with its memory and descriptors and a pid of its own;
/// the old one ends at once with exit code 0. On failure nothing has happened.
///
/// A process that is made in a cgroup is there without a wait, where one that moves waits until no process of the
/// whole machine is just forking or ending: many milliseconds. The caller must have one thread, as the shim has.
pub(crate) fn continue_in_cgroup(cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: clone_args is plain integers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: args lives through the call and its size is given. Without CLONE_VM and with no new stack this is a
    // fork: the child continues on its own copy of this stack. With one thread, no lock is held by anyone.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match checked(result)? {
        0 => Ok(()),
        _ => exit_now(0),
    }
}
