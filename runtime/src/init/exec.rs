//! One more process in a container that runs: what it does between the clone and its exec.
//!
//! It was cloned into the container's pid namespace and v2 cgroup, untraceable, and becomes a part of the container
//! step by step: v1 cgroups, limits, then all other namespaces at once by the first process's pidfd, then identity and capabilities as the
//! container's own. The container may be hostile and is running: places are opened in its root with
//! the same care as at its creation, and no descriptor of the host's is open any more when a path of the caller's is
//! looked up.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::umask;

use super::mounts::resolve;
use super::terminal::Console;
use super::{
    AtStep, Outcome, Prepared, Report, Step, become_its_root, confine, die_with_parent, exec_first, identity, limits,
    send, stdio, terminal, write_file,
};
use crate::plan::namespace;
use crate::sys;

/// How a process comes into a container, beside what [`Prepared`] says of it.
pub(crate) struct Joining {
    /// The container's first process.
    pub(crate) pidfd: OwnedFd,
    /// Those of its namespaces that are not the shim's own, but for the pid namespace.
    pub(crate) namespaces: u64,
}

/// The child's life until the exec. Never returns. Its report is one of failure, or none.
pub(crate) fn run(mut prepared: Prepared, joining: &Joining) -> ! {
    let code = match set_up(&mut prepared, joining) {
        Ok(()) => exec_first(&mut prepared),
        Err(failure) => {
            send(&prepared, Report::Failed { step: failure.step, index: failure.index, errno: failure.errno });
            126
        }
    };
    sys::exit_now(code)
}

fn set_up(prepared: &mut Prepared, joining: &Joining) -> Outcome<()> {
    sys::reset_signals();
    die_with_parent(prepared)?;
    umask(Mode::empty());
    rustix::process::setsid().at(Step::Session)?;
    for file in &prepared.cgroup_files {
        write_file(file, b"0").at(Step::EnterCgroup)?;
    }
    let oom_score = prepared.plan.process.oom_score_adj.to_bytes();
    if !oom_score.is_empty() {
        write_file(c"/proc/self/oom_score_adj", oom_score).at(Step::OomScore)?;
    }
    // While the host's privileges are still there to raise them.
    limits(prepared)?;
    sys::join_namespace(joining.pidfd.as_fd(), joining.namespaces).at(Step::JoinNamespaces)?;
    if joining.namespaces & namespace::USER != 0 {
        become_its_root()?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(c"/", flags, Mode::empty()).at(Step::JoinNamespaces)?;
    terminal::open(prepared, root.as_fd(), Console::Leave)?;
    identity::look_up(prepared, root.as_fd())?;
    enter_directory(prepared, root.as_fd()).at(Step::WorkingDirectory)?;
    stdio(prepared)?;
    identity::assume(prepared)?;
    // The change of identity has undone it.
    die_with_parent(prepared)?;
    umask(Mode::from_raw_mode(prepared.plan.process.umask));
    let report = prepared.report.as_raw_fd();
    sys::close_all_but(3, [report; 4]).at(Step::Stdio)?;
    // Closed above; its number is nobody's now, and nothing may close it again.
    std::mem::forget(root);
    confine::lock(&prepared.plan.process)
}

/// Never by name alone: `/proc/self/fd/<n>` would lead out of the container.
fn enter_directory(prepared: &Prepared, root: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    let directory = resolve(root, prepared.plan.process.cwd.path(), OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::process::fchdir(&directory)
}
