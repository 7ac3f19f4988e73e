//! `exec`: one more process in a container that lives, as its specification confines it or as a file says.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::args::{Exec, Global};
use super::create::{self, NAMES_SIZE, open_directory, standard_streams, write_pid_file};
use super::foreground::{self, Foreground};
use super::plan::{self, Further};
use super::spec::{Capabilities, Process, Spec};
use super::state::{self, Entry, Lock, Status};
use super::{Done, Failure, seal};
use crate::init::{self, Hooks, Joining, Prepared, REPORT_SIZE, Report, Step};
use crate::plan::c_string;
use crate::sys::{self, ExecArgs};
use crate::{PlanError, machine};

/// Nobody's process is described by more.
const MAX_PROCESS: u64 = 4 << 20;

pub(super) fn exec(global: &Global, wanted: &Exec) -> Result<Done, Failure> {
    seal::ensure()?;
    create::preserved_are_open(wanted.preserve_fds)?;
    let mut here = if wanted.detach { None } else { Some(Foreground::begin()?) };
    let started = start(global, wanted, here.as_mut())?;
    if let Err(failure) = write_pid_file(wanted.pid_file.as_deref(), started.pid) {
        // Nobody would know of it.
        let _ = sys::send_signal(started.pidfd.as_fd(), libc::SIGKILL);
        let _ = foreground::wait(started.pid);
        return Err(failure);
    }
    let Some(here) = here else { return Ok(Done::Nothing) };
    here.stay(started.pidfd.as_fd())?;
    foreground::wait(started.pid).map(|status| Done::Code(foreground::exit_code(status)))
}

/// A process that has executed its program.
struct Started {
    pid: Pid,
    pidfd: OwnedFd,
}

fn start(global: &Global, wanted: &Exec, here: Option<&mut Foreground>) -> Result<Started, Failure> {
    let (entry, lock) = find(global, wanted)?;
    let first = alive(&entry, wanted)?;
    let mut spec: Spec = serde_json::from_slice(&entry.stored.config)
        .map_err(|source| Failure::Syntax { path: PathBuf::from(&entry.stored.bundle).join("config.json"), source })?;
    spec.process = Some(process(spec.process.take(), wanted)?);
    let mut planned = plan::further(&spec, &machine::detect())?;
    if planned.terminal && here.is_some() {
        planned.window = planned.window.or_else(Foreground::window);
    }
    let console = create::console(wanted.console_socket.as_deref(), planned.terminal, here)?;
    let subjects = Subjects::of(&spec);
    let group = entry.group()?;
    let (files, unified) = group.entrances_beside(entry.stored.pid);
    let entrance = unified.map(|dir| open_directory(&dir)).transpose()?;
    let paths: Result<Vec<CString>, PlanError> =
        files.iter().map(|file| c_string("linux.cgroupsPath", file.as_os_str().as_bytes())).collect();
    let failed = Failure::system("look at the container's namespaces");
    let joining = Joining::of(entry.stored.pid, first).map_err(failed)?;
    let (prepared, report) = prepare(planned, paths?, console, wanted)?;
    let cloned = init::clone_exec(prepared, &joining, entrance.as_ref().map(AsFd::as_fd), None);
    let (pid, pidfd) = cloned.map_err(|(step, errno)| subjects.failure(step, errno))?;
    // What it does from here on depends on nobody. Its own copy goes before its exec.
    drop((lock, entrance));
    let pid = create::known(pid)?;
    match hear(&report)? {
        None => Ok(Started { pid, pidfd }),
        Some(failed) => {
            foreground::wait(pid)?;
            match failed {
                Report::Failed { step, errno, .. } => Err(subjects.failure(step, errno)),
                _ => Err(Failure::Refused("the process said something strange".to_owned())),
            }
        }
    }
}

/// The container. Nobody changes it until the process is in it, unless that can take as long as a pause does.
fn find(global: &Global, wanted: &Exec) -> Result<(Entry, Option<Lock>), Failure> {
    if wanted.ignore_paused {
        return state::find(&global.root, &wanted.id).map(|entry| (entry, None));
    }
    state::take(&global.root, &wanted.id).map(|(entry, lock)| (entry, Some(lock)))
}

/// The first process of a container that takes others.
fn alive(entry: &Entry, wanted: &Exec) -> Result<OwnedFd, Failure> {
    let refused = |status: Status, wanted| {
        Err(Failure::WrongState { id: entry.stored.id.clone(), status: status.name(), wanted })
    };
    let Some(first) = entry.process() else { return refused(entry.status(), "created or running") };
    if !wanted.ignore_paused && entry.group()?.is_frozen() {
        return refused(Status::Paused, "running; --ignore-paused waits until it is");
    }
    Ok(first)
}

/// The process that is asked for: a file's, or the container's own with another command; in either, what the options say.
fn process(own: Option<Process>, wanted: &Exec) -> Result<Process, Failure> {
    let mut process = match &wanted.process {
        Some(path) => {
            let bytes = state::read_bounded(path, MAX_PROCESS)?;
            serde_json::from_slice(&bytes).map_err(|source| Failure::Syntax { path: path.clone(), source })?
        }
        None => {
            let own = own.unwrap_or_else(|| Process { cwd: "/".to_owned(), ..Process::default() });
            Process { args: wanted.args.clone(), terminal: false, console_size: None, ..own }
        }
    };
    change(&mut process, wanted)?;
    Ok(process)
}

fn change(process: &mut Process, wanted: &Exec) -> Result<(), Failure> {
    process.terminal |= wanted.terminal;
    process.env.extend(wanted.env.iter().cloned());
    if let Some(cwd) = &wanted.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &wanted.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        let number = |text: &str| {
            // The highest is nobody's.
            let id = text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| Failure::Usage(format!("--user {user}: must be UID[:GID], in numbers")))
        };
        process.user.uid = number(uid)?;
        process.user.gid = gid.map(number).transpose()?.unwrap_or(process.user.gid);
    }
    process.user.additional_gids.extend(&wanted.additional_gids);
    if !wanted.capabilities.is_empty() {
        let sets = process.capabilities.get_or_insert_with(Capabilities::default);
        // Never inheritable: what any program of the container gains by its file's capabilities is not the caller's to give.
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(wanted.capabilities.iter().cloned());
        }
    }
    process.no_new_privileges |= wanted.no_new_privileges;
    if let Some(label) = &wanted.process_label {
        process.selinux_label.clone_from(label);
    }
    if let Some(profile) = &wanted.apparmor {
        process.apparmor_profile.clone_from(profile);
    }
    Ok(())
}

/// Everything that the child needs, and where it reports.
fn prepare(
    planned: Further,
    cgroup_files: Vec<CString>,
    console: Option<OwnedFd>,
    wanted: &Exec,
) -> Result<(Prepared, OwnedFd), Failure> {
    let Further { mut plan, window, terminal: _ } = planned;
    let (report, report_child) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Failure::system("make a pipe")(errno.into()))?;
    let nothing = OpenOptions::new().read(true).open("/dev/null").map_err(Failure::system("open /dev/null"))?;
    let [stdin, stdout, stderr] = standard_streams()?;
    let (args, env) = (std::mem::take(&mut plan.process.args), std::mem::take(&mut plan.process.env));
    let prepared = Prepared {
        plan,
        dir: CString::default(),
        cgroup_files,
        joins: Vec::new(),
        stdin,
        stdout,
        stderr,
        console,
        window,
        has_terminal: false,
        preserved_fds: wanted.preserve_fds,
        // Who detached it has ended before it.
        dies_with_parent: false,
        root: None,
        own_proc: None,
        trees: Vec::new(),
        reaper: None,
        report: report_child,
        // Nobody waits for anything.
        go: nothing.into(),
        gate: None,
        hooks: Hooks::default(),
        exec: ExecArgs::new(args, env),
        passwd: Vec::with_capacity(NAMES_SIZE),
        group: Vec::with_capacity(NAMES_SIZE),
    };
    Ok((prepared, report))
}

/// What the child has to say before its exec; `None` when that has come.
fn hear(report: &OwnedFd) -> Result<Option<Report>, Failure> {
    let mut bytes = [0u8; REPORT_SIZE];
    loop {
        return match rustix::io::read(report, &mut bytes) {
            Ok(0) => Ok(None),
            Ok(count) => Report::decode(bytes.get(..count).unwrap_or_default())
                .map(Some)
                .ok_or_else(|| Failure::Refused("the process said something strange".to_owned())),
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => Err(Failure::system("hear from the process")(errno.into())),
        };
    }
}

/// What failures are about.
struct Subjects {
    command: String,
    cwd: String,
}

impl Subjects {
    fn of(spec: &Spec) -> Subjects {
        let process = spec.process.as_ref();
        let command = process.and_then(|process| process.args.first()).cloned().unwrap_or_default();
        Subjects { command, cwd: process.map(|process| process.cwd.clone()).unwrap_or_default() }
    }

    fn failure(&self, step: Step, errno: i32) -> Failure {
        match step {
            Step::Exec => create::exec_failure(&self.command, errno),
            Step::WorkingDirectory => {
                Failure::Step { step, subject: format!(" {}", self.cwd), reason: create::reason(step, errno) }
            }
            _ => Failure::Step { step, subject: String::new(), reason: create::reason(step, errno) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Process {
        serde_json::from_str(
            r#"{"terminal":true,"cwd":"/w","args":["init"],"env":["A=1"],"user":{"uid":5,"gid":6},
                "capabilities":{"bounding":["CAP_KILL"]},"oomScoreAdj":7}"#,
        )
        .unwrap()
    }

    fn wanted() -> Exec {
        Exec { id: "c".into(), args: vec!["sh".into()], ..Exec::default() }
    }

    #[test]
    fn it_is_the_containers_own_but_for_the_command() {
        let process = process(Some(own()), &wanted()).unwrap();
        assert_eq!((process.args, process.cwd.as_str(), process.terminal), (vec!["sh".to_owned()], "/w", false));
        assert_eq!((process.user.uid, process.user.gid, process.oom_score_adj), (5, 6, Some(7)));
    }

    #[test]
    fn options_win() {
        let wanted = Exec {
            env: vec!["A=2".into()],
            cwd: Some("/x".into()),
            user: Some("8".into()),
            additional_gids: vec![9],
            capabilities: vec!["CAP_CHOWN".into()],
            no_new_privileges: true,
            terminal: true,
            ..wanted()
        };
        let process = process(Some(own()), &wanted).unwrap();
        assert_eq!(process.env, ["A=1", "A=2"]);
        assert_eq!((process.cwd.as_str(), process.user.uid, process.user.gid), ("/x", 8, 6));
        assert_eq!(process.user.additional_gids, [9]);
        let sets = process.capabilities.unwrap();
        assert_eq!((sets.bounding.len(), sets.permitted, sets.inheritable.len()), (2, vec!["CAP_CHOWN".into()], 0));
        assert!(process.no_new_privileges && process.terminal);
    }

    #[test]
    fn users_are_numbers() {
        for bad in ["web", "1:web", "", "1:", ":1", "4294967295", "-1", "1:2:3"] {
            let wanted = Exec { user: Some(bad.into()), ..wanted() };
            assert!(process(Some(own()), &wanted).is_err(), "{bad}");
        }
        let both = process(Some(own()), &Exec { user: Some("1:2".into()), ..wanted() }).unwrap();
        assert_eq!((both.user.uid, both.user.gid), (1, 2));
    }

    #[test]
    fn a_container_without_a_process_has_a_root_to_be_in() {
        assert_eq!(process(None, &wanted()).unwrap().cwd, "/");
    }
}
