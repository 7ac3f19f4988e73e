//! Makes one container, up to the moment before its exec.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use super::mapped::{self, Mapped};
use super::{Arguments, failed};
use crate::cgroup::Cgroups;
use crate::config::{ContainerConfig, LogConfig};
use crate::init::{self, Hooks, Prepared, Report, Step};
use crate::plan::{self, Plan};
use crate::procfs;
use crate::protocol::{Failed, State};
use crate::stored::{self, Durability, StoredContainer, StoredProcess, names};
use crate::sys::{self, Cloned, ExecArgs};

/// A container that waits for its start, and what belongs to it.
pub(super) struct Made {
    pub(super) id: String,
    pub(super) dir: PathBuf,
    pub(super) cgroups: Cgroups,
    pub(super) socket: PathBuf,
    pub(super) listener: UnixListener,
    pub(super) children: OwnedFd,
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    /// What it writes; the terminal's master, when it has one.
    pub(super) stdout: OwnedFd,
    /// Nothing, when it has a terminal.
    pub(super) stderr: Option<OwnedFd>,
    /// The write end of its standard input, when that is open; the master, when it has a terminal.
    pub(super) stdin: Option<OwnedFd>,
    /// A terminal's slave, so that its master stays whole while nobody inside has it open.
    pub(super) _slave: Option<OwnedFd>,
    pub(super) report: OwnedFd,
    pub(super) go: OwnedFd,
    pub(super) log: LogConfig,
    /// See [`Cgroups::go_on_among_shims`].
    leave: Option<OwnedFd>,
}

/// Room for a container's passwd and group file each. Only what is read of it is ever touched.
pub(super) const NAMES_SIZE: usize = 1 << 20;
/// A creation that takes longer is stuck (a bind source on a dead network filesystem) and given up.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn create(arguments: Arguments) -> Result<Made, Box<Failed>> {
    let prepare = |error: io::Error| failed(Step::Prepare, "", &error);
    let cgroups = Cgroups::detect(&arguments.engine_id).map_err(|error| told(Step::EnterCgroup, &error))?;
    // First of all: it changes the pid.
    let leave = cgroups.go_on_among_shims().map_err(|error| told(Step::EnterCgroup, &error))?;
    let children = sys::child_events().map_err(|errno| prepare(io::Error::from_raw_os_error(errno)))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|e| prepare(e.into()))?;
    let config = read_config(&arguments.dir)?;
    let plan = plan::plan(&config, &arguments.dir, &cgroups.view_of(&config.id))
        .map_err(|error| failed(Step::Prepare, "", &io::Error::other(error.to_string())))?;
    let listener = listen(&arguments.socket).map_err(prepare)?;
    let (mapped, trees) = Mapped::of(&plan, config.layers.len())?;
    let prepared = prepare_child(&arguments.dir, &config, &cgroups, plan, trees).map_err(prepare);
    let cloned = prepared.and_then(|(prepared, ends)| clone(prepared, ends));
    let (pid, pidfd, subjects, ends) = match cloned {
        Ok(parent) => parent,
        Err(failure) => {
            // Nobody else does, if the daemon has died.
            let _ = std::fs::remove_file(&arguments.socket);
            return Err(failure);
        }
    };
    let Ends { stdout, stderr, stdin, console, report, go, cgroup: _ } = ends;
    let mut made = Made {
        id: config.id.clone(),
        dir: arguments.dir,
        cgroups,
        socket: arguments.socket,
        listener,
        children,
        pid,
        pidfd,
        stdout,
        stderr,
        stdin,
        _slave: None,
        report,
        go,
        log: config.log.clone(),
        leave,
    };
    let mapped = mapped.map_or(Ok(()), |mapped| mapped.prepare(pid, &made.dir, &made.go));
    let ready = mapped.and_then(|()| made.await_ready(&config, &subjects)).and_then(|()| made.take_terminal(console));
    match ready.and_then(|()| made.record()) {
        Ok(()) => Ok(made),
        Err(failure) => {
            made.abort();
            Err(failure)
        }
    }
}

fn told(step: Step, error: &dyn std::error::Error) -> Box<Failed> {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    failed(step, "", &io::Error::other(reason))
}

pub(super) fn read_config(dir: &Path) -> Result<ContainerConfig, Box<Failed>> {
    let broken = |reason: String| failed(Step::Prepare, "", &io::Error::other(reason));
    let stored = stored::read::<StoredContainer>(dir, names::CONTAINER).map_err(|error| told(Step::Prepare, &error))?;
    let config = stored.and_then(|stored| stored.config).ok_or_else(|| broken("no configuration".to_owned()))?;
    stored::config_from(config).map_err(broken)
}

/// Binds the control socket by way of its directory's descriptor: a socket's path must be shorter than 108 bytes.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or(OsStr::new("")));
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    let short = crate::container::through_fd(&dir, name);
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(short);
    rustix::process::umask(mask);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The shim's ends of the child's pipes.
struct Ends {
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    /// Where the terminal's master comes out.
    console: Option<OwnedFd>,
    report: OwnedFd,
    go: OwnedFd,
    /// The container's v2 cgroup, into which the child is cloned.
    cgroup: Option<File>,
}

/// The child's standard streams, and the ends that stay with the shim.
struct Streams {
    child: [OwnedFd; 3],
    console_of_child: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    console: Option<OwnedFd>,
}

fn streams(config: &ContainerConfig) -> io::Result<Streams> {
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    if config.tty {
        let flags = SocketFlags::CLOEXEC;
        let (console, of_child) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        return Ok(Streams {
            // Until the child has made its terminal.
            child: [null()?, null()?, null()?],
            console_of_child: Some(of_child),
            stdin: None,
            stdout: null()?,
            stderr: None,
            console: Some(console),
        });
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (stdout, stdout_child) = pipe()?;
    let (stderr, stderr_child) = pipe()?;
    for fd in [&stdout, &stderr] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    let (stdin_child, stdin) = if config.open_stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (OpenOptions::new().read(true).open("/dev/null")?.into(), None)
    };
    Ok(Streams {
        child: [stdin_child, stdout_child, stderr_child],
        console_of_child: None,
        stdin,
        stdout,
        stderr: Some(stderr),
        console: None,
    })
}

/// A cgroup that a child can be cloned into.
pub(super) fn open_entrance(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn prepare_child(
    dir: &Path,
    config: &ContainerConfig,
    cgroups: &Cgroups,
    mut plan: Plan,
    trees: Vec<Option<OwnedFd>>,
) -> io::Result<(Prepared, Ends)> {
    let Streams { child: [stdin_child, stdout_child, stderr_child], console_of_child, stdin, stdout, stderr, console } =
        streams(config)?;
    if let Some(ids) = &plan.ids {
        mapped::give_pipes([&stdin_child, &stdout_child, &stderr_child], ids)?;
    }
    let (report, report_child) = pipe_with(PipeFlags::CLOEXEC)?;
    let (go_child, go) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&report, true)?;
    let (files, unified) = cgroups.entrances(&config.id);
    let unified = unified.map(|dir| open_entrance(&dir)).transpose()?;
    let reaper = if plan.process.reaper { Some(init::reaper()?) } else { None };
    let (args, env) = (std::mem::take(&mut plan.process.args), std::mem::take(&mut plan.process.env));
    let prepared = Prepared {
        plan,
        dir: c_path(dir)?,
        cgroup_files: files.iter().map(|file| c_path(file)).collect::<Result<_, _>>()?,
        joins: Vec::new(),
        stdin: stdin_child,
        stdout: stdout_child,
        stderr: stderr_child,
        console: console_of_child,
        window: None,
        has_terminal: false,
        preserved_fds: 0,
        report: report_child,
        go: go_child,
        gate: None,
        hooks: Hooks::default(),
        exec: ExecArgs::new(args, env),
        dies_with_parent: true,
        root: None,
        own_proc: None,
        trees,
        reaper,
        passwd: Vec::with_capacity(NAMES_SIZE),
        group: Vec::with_capacity(NAMES_SIZE),
    };
    Ok((prepared, Ends { stdout, stderr, stdin, console, report, go, cgroup: unified }))
}

/// What the steps of the setup work on, for the message when one fails.
type Subjects = Vec<String>;

fn clone(prepared: Prepared, ends: Ends) -> Result<(u32, OwnedFd, Subjects, Ends), Box<Failed>> {
    let subjects =
        prepared.plan.setup.iter().map(|action| format!("/{}", action.subject().to_string_lossy())).collect();
    match sys::clone_process(prepared.plan.namespaces, ends.cgroup.as_ref().map(AsFd::as_fd), false) {
        Ok(Cloned::Child) => {
            // The child's copies of our ends: while it has them, it would wait for itself after our death.
            drop(ends);
            init::run(prepared)
        }
        Ok(Cloned::Parent { pid, pidfd }) => Ok((pid, pidfd, subjects, ends)),
        Err(errno) => Err(failed(Step::Clone, "", &io::Error::from_raw_os_error(errno))),
    }
}

impl Made {
    /// Waits for the child's word.
    fn await_ready(&self, config: &ContainerConfig, subjects: &[String]) -> Result<(), Box<Failed>> {
        let mut bytes = [0u8; init::REPORT_SIZE];
        let deadline = Instant::now() + DEADLINE;
        loop {
            match rustix::io::read(&self.report, &mut bytes) {
                Ok(0) => {
                    // The child died without a word: killed, most likely by its own memory limit.
                    let reason = if self.cgroups.oom_killed(&self.id) {
                        "killed by the kernel: the memory limit is too small"
                    } else {
                        "the first process died"
                    };
                    return Err(failed(Step::Prepare, "", &io::Error::other(reason)));
                }
                Ok(count) => return self.judge(bytes.get(..count).unwrap_or_default(), config, subjects),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(failed(Step::Prepare, "", &io::ErrorKind::TimedOut.into()));
                    }
                    let timeout = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(1) + 1, tv_nsec: 0 };
                    let _ = poll(&mut [PollFd::new(&self.report, PollFlags::IN)], Some(&timeout));
                }
                Err(errno) => return Err(failed(Step::Prepare, "", &errno.into())),
            }
        }
    }

    fn judge(&self, bytes: &[u8], config: &ContainerConfig, subjects: &[String]) -> Result<(), Box<Failed>> {
        match Report::decode(bytes) {
            Some(Report::Ready) => Ok(()),
            Some(Report::Failed { step, index, errno }) => {
                let subject = match step {
                    Step::Mount
                    | Step::BindSource
                    | Step::Device
                    | Step::Link
                    | Step::Sysctl
                    | Step::Mask
                    | Step::ReadOnlyPath => subjects.get(usize::from(index)).cloned().unwrap_or_default(),
                    Step::UnknownUser | Step::UnknownGroup | Step::ReadUsers => config.user.clone(),
                    Step::WorkingDirectory => config.cwd.clone(),
                    _ => String::new(),
                };
                let error = match step {
                    Step::UnknownUser => io::Error::other("no matching entries in passwd file"),
                    Step::UnknownGroup => io::Error::other("no matching entries in group file"),
                    _ => io::Error::from_raw_os_error(errno),
                };
                Err(failed(step, subject, &error))
            }
            Some(Report::Built | Report::Born { .. }) | None => {
                Err(failed(Step::Prepare, "", &io::ErrorKind::InvalidData.into()))
            }
        }
    }

    /// Takes the master of the terminal that the child has made before it said that it is ready.
    fn take_terminal(&mut self, console: Option<OwnedFd>) -> Result<(), Box<Failed>> {
        let Some(console) = console else { return Ok(()) };
        let failed = |error: io::Error| failed(Step::Terminal, "", &error);
        let master = crate::container::receive_terminal(&console).map_err(failed)?;
        let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, open).map_err(|errno| failed(errno.into()))?;
        rustix::io::ioctl_fionbio(&master, true).map_err(|errno| failed(errno.into()))?;
        self.stdin = Some(master.try_clone().map_err(failed)?);
        self.stdout = master;
        self._slave = Some(slave);
        Ok(())
    }

    /// Leaves word of the two processes for the next daemon.
    fn record(&self) -> Result<(), Box<Failed>> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let shim_pid = u32::try_from(own).unwrap_or(0);
        let process = StoredProcess {
            boot_id: procfs::boot_id(),
            shim_pid,
            shim_start_ticks: procfs::start_ticks(shim_pid).unwrap_or(0),
            pid: self.pid,
            start_ticks: procfs::start_ticks(self.pid).unwrap_or(0),
        };
        stored::write(&self.dir, names::PROCESS, &process, Durability::ThisBoot)
            .map_err(|error| told(Step::Prepare, &error))
    }

    /// Parts from the process that the daemon has started: the container is made, so there is no failed creation whose
    /// end the daemon would have to see.
    pub(super) fn let_go(&mut self) {
        if let Some(leave) = self.leave.take() {
            let _ = rustix::io::write(&leave, b".");
        }
    }

    /// The answer to the creation.
    pub(super) fn state(&self) -> State {
        State { pid: self.pid, started_at_nanos: None, exited: false, dropped_log_records: 0 }
    }

    /// Kills the child and removes the socket. The daemon removes the rest.
    pub(super) fn abort(self) {
        let _ = sys::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        let _ = std::fs::remove_file(self.dir.join(names::PROCESS));
        let _ = std::fs::remove_file(&self.socket);
    }
}
