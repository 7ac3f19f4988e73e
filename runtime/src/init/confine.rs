//! The last steps before an exec: what confines a process beside its identity.
//!
//! [`enter`] gives it a keyring of its own and the labels for its exec; [`lock`] loads the seccomp filter. Both are
//! for the container's first process and for every one that comes into it later.

use std::ffi::CStr;

use rustix::fs::{Mode, OFlags};

use super::{AtStep, Outcome, Step};
use crate::plan::Process;
use crate::sys;

/// `PROC_SUPER_MAGIC`
pub(super) const PROCFS: u64 = 0x9fa0;

/// A new session keyring, so that nothing is shared with whoever started us, and the labels.
pub(super) fn enter(process: &Process) -> Outcome<()> {
    match sys::new_session_keyring() {
        // A kernel without keys has none to share.
        Err(libc::ENOSYS) => {}
        other => other.at(Step::Keyring)?,
    }
    for (file, label) in &process.confinement.labels {
        write_label(file, label).at(Step::Label)?;
    }
    Ok(())
}

/// Only to the kernel's own file: a container's volume could lie over it and swallow the label.
fn write_label(path: &CStr, label: &CStr) -> Result<(), rustix::io::Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&file)?.f_type as u64 != PROCFS {
        return Err(rustix::io::Errno::XDEV);
    }
    rustix::io::write(&file, label.to_bytes()).map(drop)
}

/// Loads the filter. What is done afterwards the container's policy must allow, so nothing but waiting and the exec is.
pub(super) fn lock(process: &Process) -> Outcome<()> {
    match &process.confinement.seccomp {
        Some(filter) => sys::load_filter(filter).at(Step::Seccomp),
        None => Ok(()),
    }
}
