//! One more process in a container that runs: what it does between the clone and its exec.
//!
//! A shim, or `shoal runtime exec`, clones a helper into the container's v2 cgroup, outside of its pid namespace
//! ([`clone_exec`]). There the container cannot see it while it still has anything of the host's: it closes all
//! descriptors that are not needed, enters the v1 cgroups, joins the other namespaces at once by the first process's
//! pidfd, and takes the identity and the capabilities. Only then does it clone the process itself into the pid namespace,
//! as a child of its own parent, and ends. The process waits until its parent knows of it, then limits itself and
//! executes its program.
//!
//! The container may be hostile and is running: places are opened in its root with the same care as at its creation, and
//! no descriptor of the host's, but those passed on purpose, is open any more when a path of the caller's is looked up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, pidfd_open, umask, waitid, waitpid};

use super::mounts::resolve;
use super::terminal::Console;
use super::{
    AtStep, Failure, Outcome, Prepared, REPORT_SIZE, Report, Step, await_byte, become_its_root, confine,
    die_with_parent, exec_first, identity, limits, send, stdio, terminal, write_file,
};
use crate::plan::namespace;
use crate::sys::{self, Cloned, Errno};

/// How a process comes into a container, beside what [`Prepared`] says of it.
pub(crate) struct Joining {
    /// The container's first process.
    pidfd: OwnedFd,
    /// Those of its namespaces that are not the caller's own, but for the pid namespace.
    namespaces: u64,
    /// Its root, when that is not the one of a mount namespace that is joined.
    root: Option<OwnedFd>,
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
        // In the caller's own mount namespace a container is kept in its root by nothing but that.
        let root =
            if namespaces & namespace::MOUNT == 0 { Some(open_directory(&format!("/proc/{pid}/root"))?) } else { None };
        // What was looked at by number was it, if it still has that number.
        sys::send_signal(pidfd.as_fd(), 0).map_err(io::Error::from_raw_os_error)?;
        Ok(Joining { pidfd, namespaces, root })
    }
}

fn open_directory(path: &str) -> Result<OwnedFd, rustix::io::Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the process in the container's pid namespace, and in its v2 cgroup when there is one. It is a child of the
/// caller's, and goes on when this has returned. The caller waits no longer than `patience`, if that is bounded: a
/// cgroup that is frozen lets nobody go on who is in it.
pub(crate) fn clone_exec(
    mut prepared: Prepared,
    joining: &Joining,
    entrance: Option<BorrowedFd<'_>>,
    patience: Option<Duration>,
) -> Result<(u32, OwnedFd), (Step, Errno)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| (Step::Prepare, errno.raw_os_error()));
    let ((from, word), (go, let_go)) = (pipe()?, pipe()?);
    prepared.go = go;
    match sys::clone_process(0, entrance, false).map_err(|errno| (Step::Clone, errno))? {
        Cloned::Child => help(prepared, joining, &word),
        Cloned::Parent { pid: helper, pidfd } => {
            drop((prepared, word));
            let heard = hear(&from, patience);
            if heard == Err((Step::EnterCgroup, libc::ETIMEDOUT)) {
                // It dies when it can; what it may have made ends without our word.
                let _ = sys::send_signal(pidfd.as_fd(), libc::SIGKILL);
                return Err((Step::EnterCgroup, libc::ETIMEDOUT));
            }
            reap(helper);
            let (pid, pidfd) = own_child(heard?)?;
            let _ = rustix::io::write(&let_go, b"g");
            Ok((pid, pidfd))
        }
    }
}

/// What the helper has to say: the number of the process that it has made.
fn hear(from: &OwnedFd, patience: Option<Duration>) -> Result<u32, (Step, Errno)> {
    let limit = patience.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    let mut bytes = [0u8; REPORT_SIZE];
    loop {
        match poll(&mut [PollFd::new(from, PollFlags::IN)], limit.as_ref()) {
            Ok(0) => return Err((Step::EnterCgroup, libc::ETIMEDOUT)),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err((Step::Clone, errno.raw_os_error())),
        }
        return match rustix::io::read(from, &mut bytes) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => Err((Step::Clone, errno.raw_os_error())),
            Ok(count) => match Report::decode(bytes.get(..count).unwrap_or_default()) {
                Some(Report::Born { pid }) => Ok(pid),
                Some(Report::Failed { step, errno, .. }) => Err((step, errno)),
                // It was killed.
                _ => Err((Step::Clone, libc::ECHILD)),
            },
        };
    }
}

fn known(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn reap(helper: u32) {
    while waitpid(known(helper), WaitOptions::empty()).is_err_and(|errno| errno == rustix::io::Errno::INTR) {}
}

/// The process by this number, if it is a child of ours: the word's pipe is the child's too for a moment, and who can
/// trace the child could write there.
fn own_child(pid: u32) -> Result<(u32, OwnedFd), (Step, Errno)> {
    let failed = |errno: rustix::io::Errno| (Step::Clone, errno.raw_os_error());
    let pidfd = pidfd_open(known(pid).ok_or((Step::Clone, libc::ESRCH))?, PidfdFlags::empty()).map_err(failed)?;
    let only_look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), only_look).map_err(failed)?;
    Ok((pid, pidfd))
}

/// The helper's life. Never returns: nothing of `prepared` is dropped any more, for most of it gets closed by number.
fn help(mut prepared: Prepared, joining: &Joining, word: &OwnedFd) -> ! {
    sys::set_traceable(false);
    let tell = |report: Report| {
        // Shorter than PIPE_BUF; without a reader there is nobody to tell.
        let _ = rustix::io::write(word, &report.encode());
    };
    let made = set_up(&mut prepared, joining, word).and_then(|()| sys::clone_process(0, None, true).at(Step::Clone));
    match made {
        Ok(Cloned::Child) => run(prepared),
        Ok(Cloned::Parent { pid, .. }) => tell(Report::Born { pid }),
        Err(Failure { step, index, errno }) => tell(Report::Failed { step, index, errno }),
    }
    sys::exit_now(0)
}

/// All that needs something of the host's, or privileges. Afterwards there is nothing in the helper that the container
/// may not see, and the clone has the same.
fn set_up(prepared: &mut Prepared, joining: &Joining, word: &OwnedFd) -> Outcome<()> {
    sys::reset_signals();
    umask(Mode::empty());
    let first = prepared.preserved_fds.saturating_add(3);
    let (report, go) = (prepared.report.as_raw_fd(), prepared.go.as_raw_fd());
    let (word, stdin) = (word.as_raw_fd(), prepared.stdin.as_raw_fd());
    let number = |fd: &Option<OwnedFd>| fd.as_ref().map_or(report, AsRawFd::as_raw_fd);
    let streams = [stdin, prepared.stdout.as_raw_fd(), prepared.stderr.as_raw_fd(), number(&prepared.console)];
    let [input, output, errors, console] = streams;
    let (first_process, its_root) = (joining.pidfd.as_raw_fd(), number(&joining.root));
    let needed = [report, go, word, input, output, errors, console, first_process, its_root];
    sys::close_all_but(first, needed).at(Step::Stdio)?;
    for file in &prepared.cgroup_files {
        write_file(file, b"0").at(Step::EnterCgroup)?;
    }
    let oom_score = prepared.plan.process.oom_score_adj.to_bytes();
    if !oom_score.is_empty() {
        write_file(c"/proc/self/oom_score_adj", oom_score).at(Step::OomScore)?;
    }
    // While the host's privileges are still there for it; they are lowered last of all.
    raise_limits(prepared)?;
    // While /proc is the host's: over files of the container's own anything may be mounted.
    confine::label(prepared)?;
    sys::join_namespace(joining.pidfd.as_fd(), namespace::PID).at(Step::JoinNamespaces)?;
    if joining.namespaces != 0 {
        sys::join_namespace(joining.pidfd.as_fd(), joining.namespaces).at(Step::JoinNamespaces)?;
    }
    if let Some(root) = &joining.root {
        rustix::process::fchdir(root).at(Step::JoinNamespaces)?;
        rustix::process::chroot(c".").at(Step::JoinNamespaces)?;
    }
    if joining.namespaces & namespace::USER != 0 {
        become_its_root()?;
        sys::set_traceable(false);
    }
    let root = open_directory("/").at(Step::JoinNamespaces)?;
    terminal::open(prepared, root.as_fd(), Console::Leave)?;
    identity::look_up(prepared, root.as_fd())?;
    enter_directory(prepared, root.as_fd()).at(Step::WorkingDirectory)?;
    stdio(prepared)?;
    identity::assume(prepared)?;
    // The change of identity has undone it.
    sys::set_traceable(false);
    umask(Mode::from_raw_mode(prepared.plan.process.umask));
    // Closed by number below; nothing may close it again.
    std::mem::forget(root);
    sys::close_all_but(first, [report, go, word, prepared.stdin.as_raw_fd()]).at(Step::Stdio)
}

/// The process's life until the exec. Never returns. Its report is one of failure, or none.
fn run(mut prepared: Prepared) -> ! {
    /// Its parent does not know of it, or is gone.
    const ABANDONED: i32 = 137;
    let done = be_alone(&prepared).and_then(|()| {
        if await_byte(&prepared).is_err() {
            sys::exit_now(ABANDONED);
        }
        limits(&prepared)?;
        confine::lock(&prepared.plan.process)
    });
    let code = match done {
        Ok(()) => exec_first(&mut prepared),
        Err(failure) => {
            send(&prepared, Report::Failed { step: failure.step, index: failure.index, errno: failure.errno });
            126
        }
    };
    sys::exit_now(code)
}

/// What only the process itself can do.
fn be_alone(prepared: &Prepared) -> Outcome<()> {
    rustix::process::setsid().at(Step::Session)?;
    die_with_parent(prepared)?;
    terminal::take_control(prepared)?;
    let keep = [prepared.report.as_raw_fd(), prepared.go.as_raw_fd()];
    sys::close_all_but(prepared.preserved_fds.saturating_add(3), keep).at(Step::Stdio)
}

/// Only as high as they will be: to lower them takes no privilege, but files are still to be opened.
fn raise_limits(prepared: &Prepared) -> Outcome<()> {
    for limit in prepared.plan.process.rlimits.iter().filter(|limit| !limit.clamp) {
        let hard = sys::hard_limit(limit.resource).at(Step::ResourceLimit)?;
        if limit.hard > hard {
            sys::set_hard_limit(limit.resource, limit.hard).at(Step::ResourceLimit)?;
        }
    }
    Ok(())
}

/// Never by name alone: `/proc/self/fd/<n>` would lead out of the container.
fn enter_directory(prepared: &Prepared, root: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    let directory = resolve(root, prepared.plan.process.cwd.path(), OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::process::fchdir(&directory)
}
