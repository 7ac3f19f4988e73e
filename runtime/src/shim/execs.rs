//! Further processes in the container: cloned here, reaped by the shim's loop. Their bytes never pass through the shim.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::WaitStatus;

use super::create::{Made, NAMES_SIZE, c_path, open_entrance, read_config};
use super::{failed, mapped};
use crate::init::{self, Hooks, Joining, Prepared, Report, Step};
use crate::plan;
use crate::protocol::{Exec as Request, ExecEnded, ExecStarted, Failed};
use crate::sys::{self, ExecArgs};

/// Processes at a time.
pub(super) const MAX_EXECS: usize = 256;
/// How long one may take to come into the container. Only who comes into a frozen cgroup takes longer than milliseconds,
/// and the shim must not wait for that.
const PATIENCE: Duration = Duration::from_secs(2);

/// One such process.
pub(super) struct Exec {
    pub(super) number: u64,
    pub(super) pid: u32,
    pidfd: OwnedFd,
    /// Until it has executed its command: where it would say that it cannot.
    pub(super) report: Option<OwnedFd>,
    /// For messages.
    user: String,
    cwd: String,
}

/// Clones one. `fds` are its standard streams, or the socket for its terminal's master.
pub(super) fn begin(made: &Made, number: u64, request: Request, fds: Vec<OwnedFd>) -> Result<Exec, Box<Failed>> {
    let prepare = |error: io::Error| failed(Step::Prepare, "", &error);
    let mut config = read_config(&made.dir)?;
    config.args = request.args;
    for variable in request.env {
        set_variable(&mut config.env, variable);
    }
    config.cwd = request.cwd.filter(|cwd| !cwd.is_empty()).unwrap_or(config.cwd);
    if let Some(user) = request.user.filter(|user| !user.is_empty()) {
        config.user = user;
        // They were the container's own user's.
        config.groups = Vec::new();
    }
    config.tty = request.tty;
    // Whatever the container has as its process 1.
    config.init = false;
    let mut plan = plan::plan(&config, &made.dir, &made.cgroups.view_of(&made.id))
        .map_err(|error| failed(Step::Prepare, "", &io::Error::other(error.to_string())))?;
    let (files, unified) = made.cgroups.entrances_beside(&made.id, made.pid);
    let entrance = unified.map(|dir| open_entrance(&dir)).transpose().map_err(prepare)?;
    let (report, report_child) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| prepare(errno.into()))?;
    rustix::io::ioctl_fionbio(&report, true).map_err(|errno| prepare(errno.into()))?;
    let (console, [stdin, stdout, stderr]) = streams(request.tty, fds).map_err(prepare)?;
    if let Some(ids) = &plan.ids {
        mapped::give_pipes([&stdin, &stdout, &stderr], ids).map_err(prepare)?;
    }
    let window = match (u16::try_from(request.rows), u16::try_from(request.columns)) {
        (Ok(0), _) | (_, Ok(0)) => None,
        (Ok(rows), Ok(columns)) => Some((rows, columns)),
        _ => return Err(failed(Step::Terminal, "", &io::ErrorKind::InvalidInput.into())),
    };
    let (args, env) = (std::mem::take(&mut plan.process.args), std::mem::take(&mut plan.process.env));
    let prepared = Prepared {
        plan,
        dir: c_path(&made.dir).map_err(prepare)?,
        joins: Vec::new(),
        preserved_fds: 0,
        gate: None,
        dies_with_parent: true,
        root: None,
        own_proc: None,
        trees: Vec::new(),
        reaper: None,
        hooks: Hooks::default(),
        cgroup_files: files.iter().map(|file| c_path(file)).collect::<Result<_, _>>().map_err(prepare)?,
        stdin,
        stdout,
        stderr,
        console,
        window,
        has_terminal: false,
        report: report_child,
        // Nobody waits for anything.
        go: made.go.try_clone().map_err(prepare)?,
        exec: ExecArgs::new(args, env),
        passwd: Vec::with_capacity(NAMES_SIZE),
        group: Vec::with_capacity(NAMES_SIZE),
    };
    let pidfd = made.pidfd.try_clone().map_err(prepare)?;
    let joining = Joining::of(made.pid, pidfd).map_err(prepare)?;
    let cloned = init::clone_exec(prepared, &joining, entrance.as_ref().map(AsFd::as_fd), Some(PATIENCE));
    let (pid, pidfd) = cloned.map_err(|(step, errno)| failure(step, errno, &config.user, &config.cwd))?;
    Ok(Exec { number, pid, pidfd, report: Some(report), user: config.user, cwd: config.cwd })
}

/// `NAME=value` in the place of what was set under this name, else at the end.
fn set_variable(env: &mut Vec<String>, variable: String) {
    let name = |entry: &str| entry.split_once('=').map_or_else(|| entry.to_owned(), |(name, _)| name.to_owned());
    let wanted = name(&variable);
    match env.iter_mut().find(|entry| name(entry) == wanted) {
        Some(entry) => *entry = variable,
        None => env.push(variable),
    }
}

/// The console socket of a process with a terminal, and standard streams.
fn streams(tty: bool, fds: Vec<OwnedFd>) -> io::Result<(Option<OwnedFd>, [OwnedFd; 3])> {
    let mut fds = fds;
    let console = if tty { fds.pop() } else { None };
    if tty {
        let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        // Until the child has made its terminal.
        fds = vec![null()?, null()?, null()?];
    }
    match <[OwnedFd; 3]>::try_from(fds) {
        Ok(fds) if !tty || console.is_some() => Ok((console, fds)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "its standard streams did not come along")),
    }
}

/// What failed, in words.
fn failure(step: Step, errno: i32, user: &str, cwd: &str) -> Box<Failed> {
    let subject = match step {
        Step::UnknownUser | Step::UnknownGroup | Step::ReadUsers => user,
        Step::WorkingDirectory => cwd,
        _ => "",
    };
    let error = match step {
        Step::UnknownUser => io::Error::other("no matching entries in passwd file"),
        Step::UnknownGroup => io::Error::other("no matching entries in group file"),
        _ => io::Error::from_raw_os_error(errno),
    };
    failed(step, subject, &error)
}

impl Exec {
    /// Reads its report. `None`: nothing yet. `Some(Ok)`: it runs (or was killed before it could say anything, which
    /// its end tells).
    pub(super) fn hear(&mut self) -> Option<Result<ExecStarted, Failed>> {
        let report = self.report.as_ref()?;
        let mut bytes = [0u8; init::REPORT_SIZE];
        let heard = match rustix::io::read(report, &mut bytes) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return None,
            Ok(0) => Ok(ExecStarted { number: self.number, pid: self.pid }),
            Ok(count) => Err(self.failure(bytes.get(..count).unwrap_or_default())),
            Err(errno) => Err(*failed(Step::Exec, "", &errno.into())),
        };
        self.report = None;
        Some(heard)
    }

    fn failure(&self, bytes: &[u8]) -> Failed {
        let Some(Report::Failed { step, errno, .. }) = Report::decode(bytes) else {
            return *failed(Step::Exec, "", &io::ErrorKind::InvalidData.into());
        };
        *failure(step, errno, &self.user, &self.cwd)
    }

    /// Sends it a signal; with `group` also to what it has started. It is not reaped yet, so its number is its own.
    pub(super) fn signal(&self, signal: i32, group: bool) -> Result<(), String> {
        let sent = sys::send_signal(self.pidfd.as_fd(), signal);
        if group {
            // It may have left its group, or have none yet.
            let _ = sys::send_signal_to_group(self.pid, signal);
        }
        sent.map_err(crate::error::errno_text)
    }
}

/// How a process ended, in the words of shells.
pub(super) fn ended(status: WaitStatus) -> ExecEnded {
    let signal = status.terminating_signal();
    let code = match (status.exit_status(), signal) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    ExecEnded { code, signal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_take_the_place_of_their_namesakes() {
        let mut env = vec!["A=1".to_owned(), "AB=2".to_owned()];
        for variable in ["AB=3", "C=4", "A=", "A=5"] {
            set_variable(&mut env, variable.to_owned());
        }
        assert_eq!(env, ["A=5", "AB=3", "C=4"]);
    }

    #[test]
    fn streams_must_be_complete() {
        let fd = || std::fs::File::open("/dev/null").map(OwnedFd::from).unwrap();
        assert!(streams(false, vec![fd(), fd(), fd()]).unwrap().0.is_none());
        assert!(streams(true, vec![fd()]).unwrap().0.is_some());
        for (tty, count) in [(false, 0), (false, 2), (false, 4), (true, 0)] {
            assert!(streams(tty, (0..count).map(|_| fd()).collect()).is_err(), "{tty} {count}");
        }
    }
}
