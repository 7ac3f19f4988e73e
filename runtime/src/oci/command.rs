//! The commands, each in its own function: short, and over when the process ends.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitStatus, pidfd_open};

use super::args::{Command, Create, Global, HELP};
use super::create::{self, Made, Stay, destroy, hook_from, run_poststop};
use super::foreground::{self, Foreground};
use super::spec::Spec;
use super::state::{self, Entry, Status};
use super::{Done, Failure, VERSION_MAX, exec, features, hooks, seal, update, warn};
use crate::RuntimeError;
use crate::init::{REPORT_SIZE, Report, Step};
use crate::signal::Signal;
use crate::sys;

/// How long a process may take to end that was killed.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn run(global: &Global, command: Command) -> Result<Done, Failure> {
    let anybodys = matches!(command, Command::Spec { .. } | Command::Features | Command::Version | Command::Help);
    if !anybodys && !rustix::process::geteuid().is_root() {
        return Err(Failure::Refused("this runtime needs root: rootless containers are not supported".to_owned()));
    }
    match command {
        Command::Create(wanted) => {
            seal::ensure()?;
            create::preserved_are_open(wanted.preserve_fds)?;
            create::create(global, &wanted, Stay::Leave, None).map(|_| Done::Nothing)
        }
        Command::Run { create, detach } => run_whole(global, &create, detach),
        Command::Start { id } => start(global, &id),
        Command::State { id } => {
            let entry = state::find(&global.root, &id)?;
            Ok(Done::Text(entry.whole_json(shown(&entry)?)))
        }
        Command::Kill { id, signal, all } => kill(global, &id, &signal, all),
        Command::Delete { id, force } => delete(global, &id, force),
        Command::Exec(wanted) => exec::exec(global, &wanted),
        Command::Update(wanted) => update::update(global, &wanted),
        Command::List { json, quiet } => list(global, json, quiet),
        Command::Ps { id, json } => processes(global, &id, json),
        Command::Pause { id } => {
            let (entry, _lock) = state::take(&global.root, &id)?;
            alive(&entry)?;
            entry.group()?.freeze()?;
            Ok(Done::Nothing)
        }
        Command::Resume { id } => {
            let (entry, _lock) = state::take(&global.root, &id)?;
            entry.group()?.thaw()?;
            Ok(Done::Nothing)
        }
        Command::Spec { bundle } => write_spec(&bundle),
        Command::Features => Ok(Done::Text(features::json())),
        Command::Version => Ok(Done::Text(format!("shoal runtime {}\nspec: {VERSION_MAX}", env!("CARGO_PKG_VERSION")))),
        Command::Help => Ok(Done::Text(HELP.to_owned())),
    }
}

/// The status for users, who also want to know when a container is frozen.
fn shown(entry: &Entry) -> Result<Status, Failure> {
    let status = entry.status();
    let frozen = matches!(status, Status::Created | Status::Running) && entry.group()?.is_frozen();
    Ok(if frozen { Status::Paused } else { status })
}

fn wrong_state(entry: &Entry, status: Status, wanted: &'static str) -> Failure {
    Failure::WrongState { id: entry.stored.id.clone(), status: status.name(), wanted }
}

/// The first process of a container that is created or runs.
fn alive(entry: &Entry) -> Result<OwnedFd, Failure> {
    entry.process().ok_or_else(|| wrong_state(entry, Status::Stopped, "created or running"))
}

fn start(global: &Global, id: &str) -> Result<Done, Failure> {
    let (entry, _lock) = state::take(&global.root, id)?;
    let status = entry.status();
    if status != Status::Created {
        return Err(wrong_state(&entry, status, "created"));
    }
    if !entry.stored.has_process {
        return Err(crate::PlanError::invalid("process", "was not set").into());
    }
    let failed = |source| Failure::System { operation: "reach the first process", source };
    let mut gate = entry.knock().map_err(failed)?;
    gate.write_all(b"s").map_err(failed)?;
    // Its end is the exec's; a failure is told before.
    let mut bytes = Vec::with_capacity(REPORT_SIZE);
    gate.take(REPORT_SIZE as u64).read_to_end(&mut bytes).map_err(failed)?;
    if let Some(Report::Failed { step, index, errno }) = Report::decode(&bytes) {
        if step == Step::StartContainerHook {
            // The container is over, as the specification wants it.
            await_end(&entry)?;
            remove(global, &entry)?;
        }
        return Err(start_failure(&entry, step, index, errno));
    }
    let _ = std::fs::remove_file(entry.dir.join(state::GATE));
    poststart(global, &entry);
    Ok(Done::Nothing)
}

fn start_failure(entry: &Entry, step: Step, index: u16, errno: i32) -> Failure {
    if step == Step::Exec {
        let spec = serde_json::from_slice::<Spec>(&entry.stored.config).ok();
        let command = spec.and_then(|spec| spec.process?.args.into_iter().next()).unwrap_or_default();
        return create::exec_failure(&command, errno);
    }
    let number = format!(" number {}", u32::from(index) + 1);
    let subject = if step == Step::StartContainerHook { number } else { String::new() };
    Failure::Step { step, subject, reason: create::reason(step, errno) }
}

/// The hooks after the start. Up to 1.2 the specification has their failure logged, and nothing else.
fn poststart(global: &Global, entry: &Entry) {
    if entry.stored.poststart.is_empty() {
        return;
    }
    let state = entry.whole_json(Status::Running);
    for hook in &entry.stored.poststart {
        if let Err(failure) = hooks::run("poststart", &hook_from(hook), &state) {
            warn(global, &failure.text());
        }
    }
}

/// Create, start, wait, delete.
fn run_whole(global: &Global, wanted: &Create, detach: bool) -> Result<Done, Failure> {
    seal::ensure()?;
    create::preserved_are_open(wanted.preserve_fds)?;
    let mut here = if detach { None } else { Some(Foreground::begin()?) };
    let made = create::create(global, wanted, Stay::Here, here.as_mut())?;
    let outcome = run_made(global, &made, here);
    if detach && outcome.is_ok() {
        return Ok(Done::Nothing);
    }
    if outcome.is_err() {
        made.end();
    }
    let removed = remove(global, &made.entry);
    let status = outcome?;
    removed?;
    Ok(Done::Code(status.map_or(0, foreground::exit_code)))
}

fn system(operation: &'static str) -> impl FnOnce(i32) -> Failure {
    move |errno| Failure::System { operation, source: io::Error::from_raw_os_error(errno) }
}

/// Starts what was made, and stays until its end when somebody is there to.
fn run_made(global: &Global, made: &Made, here: Option<Foreground>) -> Result<Option<WaitStatus>, Failure> {
    if !made.has_process {
        return Err(crate::PlanError::invalid("process", "was not set").into());
    }
    made.go_on()?;
    if let Some(Report::Failed { step, index, errno }) = made.next_report()? {
        return Err(start_failure(&made.entry, step, index, errno));
    }
    poststart(global, &made.entry);
    let Some(here) = here else { return Ok(None) };
    here.stay(made.pidfd.as_fd())?;
    made.wait().map(Some)
}

fn kill(global: &Global, id: &str, signal: &str, all: bool) -> Result<Done, Failure> {
    let signal: Signal = signal.parse().map_err(|error: crate::InvalidSignal| Failure::Refused(error.to_string()))?;
    let entry = state::find(&global.root, id)?;
    let group = entry.group()?;
    if all {
        for pid in group.processes() {
            let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            // It may have ended meanwhile.
            if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
                let _ = sys::send_signal(process.as_fd(), signal.number());
            }
        }
    } else {
        let first = entry.process().ok_or_else(|| Failure::NotRunning(id.to_owned()))?;
        sys::send_signal(first.as_fd(), signal.number()).map_err(system("send the signal"))?;
    }
    if signal == Signal::KILL && group.is_frozen() {
        // Nothing dies while it is frozen.
        group.thaw()?;
    }
    Ok(Done::Nothing)
}

fn delete(global: &Global, id: &str, force: bool) -> Result<Done, Failure> {
    let (entry, _lock) = match state::take(&global.root, id) {
        Ok(taken) => taken,
        // A damaged state says no more than none.
        Err(Failure::NotFound(_) | Failure::Runtime(RuntimeError::Stored { foreign: false, .. })) => {
            return match state::take_remains(&global.root, id) {
                Ok((dir, _lock)) => state::remove(&dir).map(|()| Done::Nothing),
                // To force is to want it gone.
                Err(Failure::NotFound(_)) if force => Ok(Done::Nothing),
                Err(failure) => Err(failure),
            };
        }
        Err(failure) => return Err(failure),
    };
    if let Some(first) = entry.process() {
        if !force {
            return Err(wrong_state(&entry, entry.status(), "stopped"));
        }
        sys::send_signal(first.as_fd(), libc::SIGKILL).map_err(system("kill the first process"))?;
        let group = entry.group()?;
        if group.is_frozen() {
            group.thaw()?;
        }
        await_end(&entry)?;
    }
    remove(global, &entry)?;
    Ok(Done::Nothing)
}

/// Waits until the first process has ended.
fn await_end(entry: &Entry) -> Result<(), Failure> {
    let Some(first) = entry.process() else { return Ok(()) };
    let limit = Timespec { tv_sec: i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    match poll(&mut [PollFd::new(&first, PollFlags::IN)], Some(&limit)) {
        Ok(1..) => Ok(()),
        _ => Err(Failure::Refused(format!("the first process of {:?} does not end", entry.stored.id))),
    }
}

/// Removes a container whose first process has ended, and runs what is to run then.
fn remove(global: &Global, entry: &Entry) -> Result<(), Failure> {
    destroy(entry, &entry.group()?)?;
    run_poststop(global, entry);
    Ok(())
}

fn list(global: &Global, json: bool, quiet: bool) -> Result<Done, Failure> {
    let mut entries = Vec::new();
    for id in state::all(&global.root)? {
        match state::find(&global.root, &id) {
            Ok(entry) => entries.push(entry),
            // It went meanwhile, or was never finished.
            Err(Failure::NotFound(_)) => {}
            Err(failure) => warn(global, &failure.text()),
        }
    }
    let mut lines = Vec::new();
    if json {
        for entry in &entries {
            lines.push(entry.whole_json(shown(entry)?));
        }
        return Ok(Done::Text(format!("[{}]", lines.join(","))));
    }
    if !quiet {
        lines.push(format!("{:<32} {:>8} {:<9} BUNDLE", "ID", "PID", "STATUS"));
    }
    for entry in &entries {
        let (stored, status) = (&entry.stored, shown(entry)?);
        let pid = if status == Status::Stopped { 0 } else { stored.pid };
        lines.push(match quiet {
            true => stored.id.clone(),
            false => format!("{:<32} {pid:>8} {:<9} {}", stored.id, status.name(), stored.bundle),
        });
    }
    Ok(if lines.is_empty() { Done::Nothing } else { Done::Text(lines.join("\n")) })
}

fn processes(global: &Global, id: &str, json: bool) -> Result<Done, Failure> {
    let entry = state::find(&global.root, id)?;
    let pids = entry.group()?.processes();
    if json {
        return Ok(Done::Text(serde_json::json!(pids).to_string()));
    }
    let mut lines = vec![format!("{:>8} COMMAND", "PID")];
    for pid in pids {
        // It may end while it is looked at.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        lines.push(format!("{pid:>8} {}", name.trim_end()));
    }
    Ok(Done::Text(lines.join("\n")))
}

fn write_spec(bundle: &Path) -> Result<Done, Failure> {
    let path = bundle.join("config.json");
    let failed = |source| Failure::Storage { operation: "write", path: path.clone(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    file.write_all(include_bytes!("example.json")).map_err(failed)?;
    Ok(Done::Nothing)
}
