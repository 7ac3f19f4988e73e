//! What happens inside of a container's first process, from the clone to the exec.
//!
//! A shim, or `shoal runtime`, prepares everything ([`Prepared`]) and clones; the child calls [`run`] and never
//! returns. In between nothing allocates, locks or logs: the strings are ready, the buffers are there, and a failure
//! goes back to the parent as eight bytes, a [`Report`]. The child stops before the exec until it is let go on.

mod confine;
mod exec;
mod hooks;
mod identity;
mod mounts;
mod places;
mod reaper;
mod report;
mod terminal;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::net::SocketFlags;
use rustix::process::{Gid, Uid, umask};

pub(crate) use exec::{Joining, clone_exec};
pub(crate) use hooks::{Hook, HookState, Hooks};
pub(crate) use identity::{Names, parse_identity};
pub(crate) use mounts::take_source;
pub(crate) use reaper::reaper;
pub use report::Step;
pub(crate) use report::{REPORT_SIZE, Report, exit_code_of};

use crate::plan::{Plan, namespace};
use crate::sys::{self, Errno, ExecArgs};

/// Everything that the child needs, made before it exists.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    /// The container's directory on the host, where an overlay is mounted.
    pub(crate) dir: CString,
    /// Files of the hierarchies that clone cannot enter; writing `0` to them does.
    pub(crate) cgroup_files: Vec<CString>,
    /// Namespaces to join, in this order, each with its `CLONE_NEW*` bit.
    pub(crate) joins: Vec<(OwnedFd, u64)>,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// A process with a terminal: where the terminal's master goes. The standard streams are then its slave.
    pub(crate) console: Option<OwnedFd>,
    /// Rows and columns of the terminal, when they are known already.
    pub(crate) window: Option<(u16, u16)>,
    /// The standard streams are a terminal's; set by the child.
    pub(crate) has_terminal: bool,
    /// So many descriptors after the standard streams stay open.
    pub(crate) preserved_fds: u32,
    /// Where reports go; closed by a successful exec.
    pub(crate) report: OwnedFd,
    /// One byte here lets the child go on wherever it waits; its end means that the parent is gone.
    pub(crate) go: OwnedFd,
    /// When the parent does not stay until the start: a listening socket. Who connects and writes one byte starts the
    /// container, and reads a failure, or the end that a successful exec makes.
    pub(crate) gate: Option<OwnedFd>,
    pub(crate) hooks: Hooks,
    pub(crate) exec: ExecArgs,
    /// The command is killed when its parent dies. A program that wants to can undo it.
    pub(crate) dies_with_parent: bool,
    /// The overlay that others have mounted for a child in a user namespace. Filled in by the child.
    pub(crate) root: Option<OwnedFd>,
    /// What the mounts of the plan's setup show, by their place there, where that was taken before. As long as the setup.
    pub(crate) trees: Vec<Option<OwnedFd>>,
    /// The host's `/proc` of this process; filled in by the child when it has labels to set.
    pub(crate) own_proc: Option<OwnedFd>,
    /// The program that becomes process 1 and starts the command, when there is one.
    pub(crate) reaper: Option<OwnedFd>,
    /// Room for the container's passwd and group files.
    pub(crate) passwd: Vec<u8>,
    pub(crate) group: Vec<u8>,
}

impl Prepared {
    /// The filter is loaded only right before the exec, because until then there is more to do than to read one byte,
    /// and a policy need not allow it.
    fn locks_late(&self) -> bool {
        self.gate.is_some() || !self.hooks.start_container.is_empty()
    }
}

/// A failed step: which, at which index of its list, and why.
struct Failure {
    step: Step,
    index: u16,
    errno: Errno,
}

type Outcome<T> = Result<T, Failure>;

/// Attaches a step to an error number.
trait AtStep<T> {
    fn at(self, step: Step) -> Outcome<T>;
}

impl<T> AtStep<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Outcome<T> {
        self.map_err(|errno| Failure { step, index: 0, errno })
    }
}

impl<T> AtStep<T> for Result<T, rustix::io::Errno> {
    fn at(self, step: Step) -> Outcome<T> {
        self.map_err(|errno| Failure { step, index: 0, errno: errno.raw_os_error() })
    }
}

/// The child's life until the exec. Never returns.
pub(crate) fn run(mut prepared: Prepared) -> ! {
    let done = set_up(&mut prepared).and_then(|()| close_the_hosts(&prepared).at(Step::Stdio));
    let done = done.and_then(|()| find_command(&prepared));
    let done = done.and_then(|()| match prepared.locks_late() {
        true => Ok(()),
        false => confine::lock(&prepared.plan.process),
    });
    let code = match done {
        Ok(()) => {
            send(&prepared, Report::Ready);
            await_go_and_exec(&mut prepared)
        }
        Err(failure) => {
            send(&prepared, Report::Failed { step: failure.step, index: failure.index, errno: failure.errno });
            1
        }
    };
    sys::exit_now(code)
}

fn send(prepared: &Prepared, report: Report) {
    // Shorter than PIPE_BUF, so it is written whole or not at all; without a reader there is nobody to tell.
    let _ = rustix::io::write(&prepared.report, &report.encode());
}

fn set_up(prepared: &mut Prepared) -> Outcome<()> {
    let made = prepared.plan.namespaces;
    sys::reset_signals();
    die_with_parent(prepared)?;
    umask(Mode::empty());
    if made & namespace::USER != 0 {
        // The parent writes the mappings, the OOM score and the limits: here nothing of the host's may be changed.
        await_byte(prepared).at(Step::UserNamespace)?;
    }
    rustix::process::setsid().at(Step::Session)?;
    for file in &prepared.cgroup_files {
        write_file(file, b"0").at(Step::EnterCgroup)?;
    }
    let oom_score = prepared.plan.process.oom_score_adj.to_bytes();
    if !oom_score.is_empty() && made & namespace::USER == 0 {
        write_file(c"/proc/self/oom_score_adj", oom_score).at(Step::OomScore)?;
    }
    confine::open_own_proc(prepared)?;
    join(prepared)?;
    if made & namespace::CGROUP != 0 {
        // Only now, in the right cgroups: the namespace's root is where the process is.
        sys::unshare_cgroups().at(Step::CgroupNamespace)?;
    }
    if prepared.plan.ids.is_some() {
        mounts::open_mapped(prepared)?;
    }
    if made & namespace::USER != 0 || prepared.joins.iter().any(|(_, kind)| *kind == namespace::USER) {
        become_its_root()?;
    }
    let process = &prepared.plan.process;
    if !process.hostname.is_empty() {
        sys::set_hostname(&process.hostname).at(Step::Hostname)?;
    }
    if !process.domainname.is_empty() {
        sys::set_domainname(&process.domainname).at(Step::Hostname)?;
    }
    if made & namespace::NETWORK != 0 {
        sys::loopback_up().at(Step::Loopback)?;
    }
    let root = mounts::build_root(prepared)?;
    terminal::open(prepared, root.as_fd(), terminal::Console::Make)?;
    if prepared.hooks.before_switch {
        send(prepared, Report::Built);
        await_byte(prepared).at(Step::Hook)?;
    }
    hooks::run(&prepared.hooks.create_container, &prepared.hooks.state, Step::CreateContainerHook)?;
    identity::look_up(prepared, root.as_fd())?;
    mounts::make_directory(root.as_fd(), &prepared.plan.process.cwd).at(Step::WorkingDirectory)?;
    if prepared.plan.readonly_root {
        mounts::seal(root.as_fd()).at(Step::ReadOnlyRoot)?;
    }
    mounts::switch_root(root.as_fd(), &prepared.plan)?;
    let cwd = mounts::resolve(root.as_fd(), prepared.plan.process.cwd.path(), OFlags::PATH | OFlags::DIRECTORY);
    rustix::process::fchdir(cwd.at(Step::WorkingDirectory)?).at(Step::WorkingDirectory)?;
    if made & namespace::USER == 0 {
        limits(prepared)?;
    }
    stdio(prepared)?;
    terminal::take_control(prepared)?;
    identity::assume(prepared)?;
    // The change of identity has undone both.
    sys::set_traceable(false);
    die_with_parent(prepared)?;
    umask(Mode::from_raw_mode(prepared.plan.process.umask));
    Ok(())
}

/// Keeps what the rest of the way needs, and what was passed on purpose. Nothing of `prepared` is dropped after this.
fn close_the_hosts(prepared: &Prepared) -> Result<(), Errno> {
    let report = prepared.report.as_raw_fd();
    let number = |fd: &Option<OwnedFd>| fd.as_ref().map_or(report, AsRawFd::as_raw_fd);
    let keep = [report, prepared.go.as_raw_fd(), number(&prepared.gate), number(&prepared.reaper)];
    sys::close_all_but(prepared.preserved_fds.saturating_add(3), keep)
}

/// In a user namespace that was entered the ids of the host mean nothing, and what has no id can own no file.
fn become_its_root() -> Outcome<()> {
    rustix::thread::set_thread_groups(&[]).or_else(denied_is_fine).at(Step::UserNamespace)?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).at(Step::UserNamespace)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).at(Step::UserNamespace)
}

/// Enters the namespaces that others have made.
fn join(prepared: &Prepared) -> Outcome<()> {
    for (index, (fd, kind)) in prepared.joins.iter().enumerate() {
        sys::join_namespace(fd.as_fd(), *kind).map_err(|errno| Failure {
            step: Step::JoinNamespace,
            index: u16::try_from(index).unwrap_or(u16::MAX),
            errno,
        })?;
    }
    Ok(())
}

/// A user namespace may forbid to change the supplementary groups.
fn denied_is_fine(errno: rustix::io::Errno) -> Result<(), rustix::io::Errno> {
    if errno == rustix::io::Errno::PERM { Ok(()) } else { Err(errno) }
}

/// Waits until the parent lets the child go on.
fn await_byte(prepared: &Prepared) -> Result<(), rustix::io::Errno> {
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(&prepared.go, &mut byte) {
            Ok(1) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            // The parent is gone, or has given up.
            _ => return Err(rustix::io::Errno::PIPE),
        }
    }
}

/// Without its shim nobody would see the container's output or its end. A parent that is dead already has let go of the
/// other end of `go`, where the child notices it.
fn die_with_parent(prepared: &Prepared) -> Outcome<()> {
    let signal = prepared.dies_with_parent.then_some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(signal).at(Step::ParentDeath)
}

/// Writes a small file of the kernel's in one go.
fn write_file(path: &std::ffi::CStr, bytes: &[u8]) -> Result<(), rustix::io::Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

fn limits(prepared: &Prepared) -> Outcome<()> {
    for limit in &prepared.plan.process.rlimits {
        let (mut soft, mut hard) = (limit.soft, limit.hard);
        if limit.clamp {
            hard = hard.min(sys::hard_limit(limit.resource).at(Step::ResourceLimit)?);
            soft = soft.min(hard);
        }
        sys::set_limit(limit.resource, soft, hard).at(Step::ResourceLimit)?;
    }
    Ok(())
}

fn stdio(prepared: &Prepared) -> Outcome<()> {
    for (number, fd) in [&prepared.stdin, &prepared.stdout, &prepared.stderr].into_iter().enumerate() {
        sys::duplicate_onto(fd.as_fd(), i32::try_from(number).unwrap_or(0)).at(Step::Stdio)?;
    }
    Ok(())
}

/// Where another command will start the container, one whose program is not there fails its creation already: callers of
/// OCI runtimes expect that, and clean up behind a failed start less well. The exec has the last word all the same.
fn find_command(prepared: &Prepared) -> Outcome<()> {
    let candidates = &prepared.plan.process.candidates;
    if prepared.gate.is_none() || candidates.is_empty() {
        return Ok(());
    }
    let mut worst = rustix::io::Errno::NOENT;
    for candidate in candidates {
        match executable(candidate) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::NOENT) => {}
            Err(rustix::io::Errno::NOTDIR) if candidates.len() > 1 => {}
            Err(errno) => worst = errno,
        }
    }
    Err(worst).at(Step::Exec)
}

fn executable(path: &std::ffi::CStr) -> Result<(), rustix::io::Errno> {
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    let stat = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(rustix::io::Errno::ACCESS),
    }
}

fn await_go_and_exec(prepared: &mut Prepared) -> i32 {
    // The parent is gone, or gave up before the start.
    const ABANDONED: i32 = 137;
    if await_byte(prepared).is_err() || await_start(prepared).is_err() {
        return ABANDONED;
    }
    let hooks = &prepared.hooks;
    if let Err(failure) = hooks::run(&hooks.start_container, &hooks.state, Step::StartContainerHook) {
        send(prepared, Report::Failed { step: failure.step, index: failure.index, errno: failure.errno });
        return 1;
    }
    if prepared.locks_late()
        && let Err(failure) = confine::lock(&prepared.plan.process)
    {
        send(prepared, Report::Failed { step: failure.step, index: failure.index, errno: failure.errno });
        return 1;
    }
    if let Some(reaper) = &prepared.reaper {
        let errno = prepared.exec.exec_reaper(reaper.as_fd(), prepared.report.as_fd());
        // To where the report was moved, or still is.
        send(prepared, Report::Failed { step: Step::Exec, index: 0, errno });
        return exit_code_of(errno);
    }
    exec_first(prepared)
}

/// Executes the first candidate that exists. Returns the exit code of a process that could not.
fn exec_first(prepared: &mut Prepared) -> i32 {
    let mut worst = libc::ENOENT;
    for candidate in &prepared.plan.process.candidates {
        match prepared.exec.exec(candidate) {
            // Not there: the next directory of PATH may have it.
            libc::ENOENT => {}
            libc::ENOTDIR if prepared.plan.process.candidates.len() > 1 => {}
            libc::EACCES => worst = libc::EACCES,
            errno => {
                worst = errno;
                break;
            }
        }
    }
    send(prepared, Report::Failed { step: Step::Exec, index: 0, errno: worst });
    exit_code_of(worst)
}

/// Waits at the gate, when there is one. What connects without a word only looked whether somebody waits.
fn await_start(prepared: &mut Prepared) -> Result<(), rustix::io::Errno> {
    let Some(gate) = &prepared.gate else { return Ok(()) };
    loop {
        let caller = match rustix::net::accept_with(gate, SocketFlags::CLOEXEC) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
            other => other?,
        };
        let mut byte = [0u8; 1];
        if matches!(rustix::io::read(&caller, &mut byte), Ok(1)) {
            prepared.report = caller;
            return Ok(());
        }
    }
}
