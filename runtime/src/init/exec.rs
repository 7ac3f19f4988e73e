//! One more process in a container that runs: what it does between the clone and its exec.
//!
//! A shim, or `shoal runtime exec`, clones it into the container's pid namespace and v2 cgroup, untraceable
//! ([`clone_exec`]). It becomes a part of the container step by step: v1 cgroups, limits, then all other namespaces at
//! once by the first process's pidfd, then identity and capabilities as the container's own. The container may be
//! hostile and is running: places are opened in its root with the same care as at its creation, and no descriptor of the
//! host's, but those passed on purpose, is open any more when a path of the caller's is looked up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags};
use rustix::process::umask;

use super::mounts::resolve;
use super::terminal::Console;
use super::{
    AtStep, Outcome, Prepared, Report, Step, become_its_root, confine, die_with_parent, exec_first, identity, limits,
    send, stdio, terminal, write_file,
};
use crate::plan::namespace;
use crate::sys::{self, Cloned, Errno};

/// How a process comes into a container, beside what [`Prepared`] says of it.
pub(crate) struct Joining {
    /// The container's first process.
    pidfd: OwnedFd,
    /// Those of its namespaces that are not the caller's own, but for the pid namespace.
    namespaces: u64,
}

/// The namespaces that a container may share with the host or have of its own.
const NAMESPACES: [(&str, u64); 7] = [
    ("user", namespace::USER),
    ("mnt", namespace::MOUNT),
    ("uts", namespace::UTS),
    ("ipc", namespace::IPC),
    ("net", namespace::NETWORK),
    ("cgroup", namespace::CGROUP),
    ("time", namespace::TIME),
];

impl Joining {
    /// Looks up what must be joined to be beside the process behind `pidfd`, whose number is `pid`.
    pub(crate) fn of(pid: u32, pidfd: OwnedFd) -> io::Result<Joining> {
        let mut namespaces = 0;
        for (name, kind) in NAMESPACES {
            let inode = |process: &str| std::fs::metadata(format!("/proc/{process}/ns/{name}")).map(|at| at.ino());
            match (inode("self"), inode(&pid.to_string())) {
                (Ok(own), Ok(other)) if own == other => {}
                (Ok(_), Ok(_)) => namespaces |= kind,
                // A kernel without this kind has nothing to join.
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
                (Err(error), _) | (_, Err(error)) => return Err(error),
            }
        }
        Ok(Joining { pidfd, namespaces })
    }
}

/// Clones the process into the container's pid namespace, and into its v2 cgroup when there is one. The caller's own
/// later children are not for there.
pub(crate) fn clone_exec(
    prepared: Prepared,
    joining: &Joining,
    entrance: Option<BorrowedFd<'_>>,
) -> Result<(u32, OwnedFd), (Step, Errno)> {
    let at = |step: Step| move |errno: Errno| (step, errno);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::open(c"/proc/self/ns/pid", flags, Mode::empty())
        .map_err(|errno| (Step::JoinNamespaces, errno.raw_os_error()))?;
    sys::join_namespace(joining.pidfd.as_fd(), namespace::PID).map_err(at(Step::JoinNamespaces))?;
    // Before it exists: in the container's pid namespace, it can be seen from its first moment, and it still has the
    // host's privileges.
    sys::set_traceable(false);
    let cloned = sys::clone_process(0, entrance, false);
    if matches!(cloned, Ok(Cloned::Child)) {
        run(prepared, joining);
    }
    sys::set_traceable(true);
    // Its own namespace is always open to it.
    let _ = sys::join_namespace(own.as_fd(), namespace::PID);
    match cloned {
        Ok(Cloned::Parent { pid, pidfd }) => Ok((pid, pidfd)),
        Ok(Cloned::Child) => sys::exit_now(126),
        Err(errno) => Err((Step::Clone, errno)),
    }
}

/// The child's life until the exec. Never returns. Its report is one of failure, or none.
fn run(mut prepared: Prepared, joining: &Joining) -> ! {
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
    confine::open_own_proc(prepared)?;
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
    sys::close_all_but(prepared.preserved_fds.saturating_add(3), [report; 4]).at(Step::Stdio)?;
    // Closed above; its number is nobody's now, and nothing may close it again.
    std::mem::forget(root);
    confine::lock(&prepared.plan.process)
}

/// Never by name alone: `/proc/self/fd/<n>` would lead out of the container.
fn enter_directory(prepared: &Prepared, root: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    let directory = resolve(root, prepared.plan.process.cwd.path(), OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::process::fchdir(&directory)
}
