//! The last steps before an exec: what confines a process beside its identity.
//!
//! [`enter`] gives it a keyring of its own and the labels for its exec; [`lock`] loads the seccomp filter. Both are
//! for the container's first process and for every one that comes into it later.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::{AtStep, Outcome, Prepared, Step};
use crate::plan::Process;
use crate::sys;

/// `PROC_SUPER_MAGIC`
pub(super) const PROCFS: u64 = 0x9fa0;

/// Opens the directory of `/proc` that is about this process, while `/proc` is still the host's. In a container's own
/// something else may lie over any file, which then swallows the label, or takes it for a command of the kernel's
/// (CVE-2025-52881).
pub(super) fn open_own_proc(prepared: &mut Prepared) -> Outcome<()> {
    if prepared.plan.process.confinement.labels.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = rustix::fs::openat(CWD, c"/proc/thread-self", flags, Mode::empty()).at(Step::Label)?;
    if rustix::fs::fstatfs(&own).at(Step::Label)?.f_type as u64 != PROCFS {
        return Err(rustix::io::Errno::XDEV).at(Step::Label);
    }
    prepared.own_proc = Some(own);
    Ok(())
}

/// A new session keyring, so that nothing is shared with whoever started us, and the labels.
pub(super) fn enter(prepared: &Prepared) -> Outcome<()> {
    match sys::new_session_keyring() {
        // A kernel without keys has none to share.
        Err(libc::ENOSYS) => {}
        other => other.at(Step::Keyring)?,
    }
    write_labels(prepared)
}

/// The labels alone, while `/proc` is the host's: a process passes them on to those that it clones. Then there are none
/// to be set any more, and nothing of the host's is open for them.
pub(super) fn label(prepared: &mut Prepared) -> Outcome<()> {
    open_own_proc(prepared)?;
    write_labels(prepared)?;
    prepared.plan.process.confinement.labels.clear();
    prepared.own_proc = None;
    Ok(())
}

fn write_labels(prepared: &Prepared) -> Outcome<()> {
    for (file, label) in &prepared.plan.process.confinement.labels {
        let own = prepared.own_proc.as_ref().ok_or(rustix::io::Errno::BADF).at(Step::Label)?;
        write_label(own, file, label).at(Step::Label)?;
    }
    Ok(())
}

/// Only to the kernel's own file. It is opened here, for the kernel wants the same credentials for both.
fn write_label(own: &OwnedFd, path: &CStr, label: &CStr) -> Result<(), rustix::io::Errno> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(own, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), how)?;
    rustix::io::write(&file, label.to_bytes()).map(drop)
}

/// Loads the filter. What is done afterwards the container's policy must allow, so nothing but waiting and the exec is.
pub(super) fn lock(process: &Process) -> Outcome<()> {
    match &process.confinement.seccomp {
        Some(filter) => sys::load_filter(filter).at(Step::Seccomp),
        None => Ok(()),
    }
}
