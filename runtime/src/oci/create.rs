//! Makes a container out of a bundle, up to the moment in which its first process waits for its start.

use std::cell::Cell;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, StatxFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};

use super::args::{Create, Global};
use super::foreground::{self, Foreground};
use super::group::Group;
use super::plan::{self, Bundle, Context};
use super::spec::{Hook, IdMapping, Spec};
use super::state::{self, Entry, GATE, Lock};
use super::{Failure, hooks, settings, warn};
use crate::CgroupError;
use crate::init::{self, HookState, Hooks, Prepared, Report, Step};
use crate::plan::process::strings;
use crate::plan::{Action, Plan, Rlimit, c_string, namespace};
use crate::procfs;
use crate::stored::{StoredBundle, StoredHook, nanos};
use crate::sys::{self, Cloned, ExecArgs};

/// Nobody's `config.json` is larger.
const MAX_CONFIG: u64 = 4 << 20;
/// Room for a container's passwd and group file each. Only what is read of it is ever touched.
pub(super) const NAMES_SIZE: usize = 1 << 20;
/// What hooks up to the start are told: the environment is made (step 2 of the specification's lifecycle, behind which
/// they come), the program does not run. runc says `creating` to the earlier ones, crun and the validation suite this.
const CREATED: &str = "created";
/// How long what is left of a container may take to die.
const GRACE: Duration = Duration::from_secs(10);

/// Whether the caller stays until the container has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// It starts it itself, at once.
    Here,
    /// Another command will start it.
    Leave,
}

/// A container that waits for its start.
pub(super) struct Made {
    pub(super) entry: Entry,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// Where the first process says what has failed.
    pub(super) report: OwnedFd,
    /// One byte here lets it go on.
    pub(super) go: OwnedFd,
    pub(super) has_process: bool,
}

/// Reads a bundle's configuration.
pub(super) fn read_spec(bundle: &Path) -> Result<(Spec, Vec<u8>), Failure> {
    let path = bundle.join("config.json");
    let bytes = state::read_bounded(&path, MAX_CONFIG)?;
    match serde_json::from_slice(&bytes) {
        Ok(spec) => Ok((spec, bytes)),
        Err(source) => Err(Failure::Syntax { path, source }),
    }
}

/// Makes the container. What fails leaves nothing behind. `here` takes its terminal, when nobody else does.
pub(super) fn create(
    global: &Global,
    wanted: &Create,
    stay: Stay,
    here: Option<&mut Foreground>,
) -> Result<Made, Failure> {
    plan::valid_id(&wanted.id)?;
    let missing = |source| Failure::Storage { operation: "find bundle", path: wanted.bundle.clone(), source };
    let bundle = fs::canonicalize(&wanted.bundle).map_err(missing)?;
    let (spec, config) = read_spec(&bundle)?;
    let group = Group::find(&spec.linux.cgroups_path, &wanted.id)?;
    let context = Context { bundle: &bundle, host: &group.host_view(), cgroup_dirs: &group.named_dirs() };
    let mut planned = plan::plan(&spec, &context)?;
    if planned.terminal && here.is_some() {
        planned.window = planned.window.or_else(Foreground::window);
    }
    let rootfs = spec.root.as_ref().map(|root| bundle.join(&root.path)).unwrap_or_default();
    if !rootfs.is_dir() {
        return Err(crate::PlanError::invalid("root", format!("{} is no directory", rootfs.display())).into());
    }
    let console = console(wanted.console_socket.as_deref(), planned.terminal, here)?;
    let (dir, lock) = state::reserve(&global.root, &wanted.id)?;
    let entry = Entry { dir, stored: stored(&spec, wanted, &bundle, &rootfs, config, &planned), held: true };
    let job = Job { spec: &spec, wanted, stay, entry: &entry, group: &group, owns_cgroup: Cell::new(false) };
    match job.make(planned, console, lock) {
        Ok(made) => Ok(made),
        Err(failure) => {
            // What failed first is what the user has to know of, and what is removed is removed as `delete` does it.
            let undone = if job.owns_cgroup.get() { destroy(&entry, &group) } else { remove_files(&entry) };
            if let Err(also) = undone {
                warn(global, &also.text());
            }
            run_poststop(global, &entry);
            Err(failure)
        }
    }
}

/// The state file's content before there is a process.
fn stored(
    spec: &Spec,
    wanted: &Create,
    bundle: &Path,
    rootfs: &Path,
    config: Vec<u8>,
    planned: &Bundle,
) -> StoredBundle {
    let hooks = |list: &[Hook]| list.iter().map(stored_hook).collect();
    // Without a mount namespace of its own its mounts are in ours, all of them below its root.
    let own_mounts = planned.plan.namespaces & namespace::MOUNT != 0 || planned.plan.joins_mounts;
    StoredBundle {
        id: wanted.id.clone(),
        bundle: bundle.display().to_string(),
        rootfs: rootfs.display().to_string(),
        annotations: spec.annotations.clone(),
        cgroups_path: spec.linux.cgroups_path.clone(),
        created_at_nanos: nanos(SystemTime::now()),
        has_process: planned.has_process,
        mounted_here: !own_mounts,
        mount_before: mount_id(rootfs),
        poststart: hooks(&spec.hooks.poststart),
        poststop: hooks(&spec.hooks.poststop),
        config,
        ..StoredBundle::default()
    }
}

fn stored_hook(hook: &Hook) -> StoredHook {
    let Hook { path, args, env, timeout } = hook.clone();
    StoredHook { path, args, env, timeout_secs: timeout }
}

/// A hook out of the state file.
pub(super) fn hook_from(stored: &StoredHook) -> Hook {
    let StoredHook { path, args, env, timeout_secs } = stored.clone();
    Hook { path, args, env, timeout: timeout_secs }
}

/// Descriptors that are to be passed on must be there. If they were not, others that are opened here got their numbers.
pub(super) fn preserved_are_open(count: u32) -> Result<(), Failure> {
    let absent = (3..count.saturating_add(3)).find(|number| !sys::is_open(*number));
    match absent {
        None => Ok(()),
        Some(number) => Err(Failure::Usage(format!("--preserve-fds {count}: descriptor {number} is not open"))),
    }
}

/// Whoever takes the terminal: a socket's owner, or this process itself when it stays.
pub(super) fn console(
    socket: Option<&Path>,
    terminal: bool,
    here: Option<&mut Foreground>,
) -> Result<Option<OwnedFd>, Failure> {
    match (socket, terminal) {
        (Some(path), true) => {
            let failed = |source| Failure::Storage { operation: "connect to", path: path.to_owned(), source };
            Ok(Some(UnixStream::connect(path).map_err(failed)?.into()))
        }
        (None, true) => match here {
            Some(here) => here.take_console().map(Some),
            None => {
                let reason = "a process with a terminal needs --console-socket, or somebody who stays with it";
                Err(Failure::Refused(reason.to_owned()))
            }
        },
        (Some(_), false) => {
            Err(Failure::Refused("--console-socket is for a process with a terminal, which this is not".to_owned()))
        }
        (None, false) => Ok(None),
    }
}

/// What all steps of a creation need.
struct Job<'a> {
    spec: &'a Spec,
    wanted: &'a Create,
    stay: Stay,
    entry: &'a Entry,
    group: &'a Group,
    /// What is in the cgroup is the container's. Until then others may live there.
    owns_cgroup: Cell<bool>,
}

/// What is the parent's alone: the child closes its copies at once. It would never see the end of its own pipe, and
/// would hold the lock as long as it lives.
struct Ends {
    lock: Lock,
    report: OwnedFd,
    go: OwnedFd,
    cgroup: Option<File>,
}

impl Job<'_> {
    fn make(&self, planned: Bundle, console: Option<OwnedFd>, lock: Lock) -> Result<Made, Failure> {
        // First of all the state: whatever is made after it can be found and removed.
        self.entry.write()?;
        self.take_cgroup()?;
        let Bundle { mut plan, joins, uid_mappings, gid_mappings, time_offsets, window, has_process, .. } = planned;
        let subjects = plan.setup.iter().map(|action| format!("/{}", action.subject().to_string_lossy())).collect();
        let cwd = format!("/{}", plan.process.cwd.path().to_string_lossy());
        let command = self.spec.process.as_ref().and_then(|process| process.args.first()).cloned().unwrap_or_default();
        let joined = open_namespaces(&joins)?;
        settings::check_sysctls(self.spec, &joined)?;
        let user_namespace = plan.namespaces & namespace::USER != 0;
        let limits = if user_namespace { plan.process.rlimits.clone() } else { Vec::new() };
        let oom_score = plan.process.oom_score_adj.clone();
        if !time_offsets.is_empty() {
            // Made here, where its offsets can be set; the child is born in it.
            plan.namespaces &= !namespace::TIME;
        }
        let own_users = user_namespace || joins.iter().any(|(kind, _)| *kind == namespace::USER);
        let trees = sources(&plan, own_users)?;
        let (prepared, ends, pid_namespaces, user) = self.prepare(plan, trees, joined, console, window, lock)?;
        let own = own_namespaces(&pid_namespaces, &time_offsets)?;
        enter_for_children(&pid_namespaces, &time_offsets)?;
        let cloned = clone(prepared, ends, user);
        // What is started from here on, the hooks, is the host's again.
        let back = own.iter().try_for_each(|(fd, kind)| sys::join_namespace(fd.as_fd(), *kind));
        let (pid, pidfd, ends) = cloned?;
        // Held until all is done.
        let Ends { lock: _lock, report, go, cgroup: _ } = ends;
        let mut made = Made {
            entry: Entry { dir: self.entry.dir.clone(), stored: self.entry.stored.clone(), held: true },
            pid,
            pidfd,
            report,
            go,
            has_process,
        };
        let told = Told { subjects, command, cwd, joins };
        let outcome = (|| {
            let failed = |errno| Failure::system("leave the joined namespaces")(io::Error::from_raw_os_error(errno));
            back.map_err(failed)?;
            if user_namespace {
                map_ids(pid, &uid_mappings, &gid_mappings)?;
                set_from_outside(pid, &limits, oom_score.to_bytes())?;
                made.go_on()?;
            }
            if self.runs_hooks_before() {
                made.await_report(Report::Built, &told)?;
                self.run_hooks(&made)?;
                made.go_on()?;
            }
            made.await_report(Report::Ready, &told)?;
            made.entry.stored.pid = raw(pid);
            made.entry.stored.start_ticks = procfs::start_ticks(raw(pid)).unwrap_or(0);
            made.entry.write()?;
            write_pid_file(self.wanted.pid_file.as_deref(), pid)?;
            if self.stay == Stay::Leave { made.go_on() } else { Ok(()) }
        })();
        match outcome {
            Ok(()) => Ok(made),
            Err(failure) => {
                let failure = made.explain(failure, self.group);
                made.end();
                Err(failure)
            }
        }
    }

    fn take_cgroup(&self) -> Result<(), Failure> {
        let is_new = !self.group.exists();
        let made = self.group.create(&self.spec.linux.resources);
        // What somebody else has made is left alone, unless it is empty and was taken over.
        self.owns_cgroup.set(made.is_ok() || (is_new && !matches!(made, Err(CgroupError::Taken(_)))));
        Ok(made?)
    }

    fn runs_hooks_before(&self) -> bool {
        !self.spec.hooks.prestart.is_empty() || !self.spec.hooks.create_runtime.is_empty()
    }

    fn run_hooks(&self, made: &Made) -> Result<(), Failure> {
        let (head, tail) = made.entry.json(CREATED);
        let state = format!("{head}{}{tail}", raw(made.pid));
        let prestart = self.spec.hooks.prestart.iter().map(|hook| ("prestart", hook));
        let create_runtime = self.spec.hooks.create_runtime.iter().map(|hook| ("createRuntime", hook));
        prestart.chain(create_runtime).try_for_each(|(kind, hook)| hooks::run(kind, hook, &state))
    }

    /// Everything that the child needs; the namespaces that are for children alone, and the user namespace to join.
    #[allow(clippy::type_complexity, reason = "two of one kind, of which each goes another way")]
    fn prepare(
        &self,
        mut plan: Plan,
        trees: Vec<Option<OwnedFd>>,
        joined: Vec<(OwnedFd, u64)>,
        console: Option<OwnedFd>,
        window: Option<(u16, u16)>,
        lock: Lock,
    ) -> Result<(Prepared, Ends, Vec<(OwnedFd, u64)>, Option<OwnedFd>), Failure> {
        let system = |errno: rustix::io::Errno| Failure::system("make a pipe")(errno.into());
        let (report, report_child) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let (go_child, go) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let gate = match self.stay {
            Stay::Here => None,
            Stay::Leave => Some(listen(&lock)?),
        };
        let (files, unified) = self.group.entrances();
        let cgroup = unified.map(|dir| open_directory(&dir)).transpose()?;
        let (mut joins, mut for_children, mut user) = (Vec::new(), Vec::new(), None);
        for (fd, kind) in joined {
            match kind {
                namespace::PID | namespace::TIME => for_children.push((fd, kind)),
                namespace::USER => user = Some(fd),
                _ => joins.push((fd, kind)),
            }
        }
        let [stdin, stdout, stderr] = standard_streams()?;
        let (args, env) = (std::mem::take(&mut plan.process.args), std::mem::take(&mut plan.process.env));
        let paths: Result<Vec<CString>, _> =
            files.iter().map(|file| c_string("linux.cgroupsPath", file.as_os_str().as_bytes())).collect();
        let prepared = Prepared {
            plan,
            dir: CString::default(),
            cgroup_files: paths?,
            joins,
            stdin,
            stdout,
            stderr,
            console,
            window,
            has_terminal: false,
            preserved_fds: self.wanted.preserve_fds,
            // The parent of a created container ends before it.
            dies_with_parent: false,
            root: None,
            own_proc: None,
            trees,
            reaper: None,
            report: report_child,
            go: go_child,
            gate,
            hooks: self.hooks()?,
            exec: ExecArgs::new(args, env),
            passwd: Vec::with_capacity(NAMES_SIZE),
            group: Vec::with_capacity(NAMES_SIZE),
        };
        Ok((prepared, Ends { lock, report, go, cgroup }, for_children, user))
    }

    /// The hooks that the child itself runs.
    fn hooks(&self) -> Result<Hooks, Failure> {
        let hooks = &self.spec.hooks;
        let prepared = |field: &'static str, list: &[Hook]| -> Result<Vec<init::Hook>, Failure> {
            list.iter()
                .map(|hook| {
                    let args = if hook.args.is_empty() { std::slice::from_ref(&hook.path) } else { &hook.args };
                    Ok(init::Hook {
                        path: c_string(field, hook.path.as_str())?,
                        exec: ExecArgs::new(strings(field, args)?, strings(field, &hook.env)?),
                        timeout_secs: hook.timeout.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(0),
                    })
                })
                .collect()
        };
        let wanted = !hooks.create_container.is_empty() || !hooks.start_container.is_empty();
        let (head, tail) = if wanted { self.entry.json(CREATED) } else { Default::default() };
        Ok(Hooks {
            before_switch: self.runs_hooks_before(),
            create_container: prepared("hooks.createContainer", &hooks.create_container)?,
            start_container: prepared("hooks.startContainer", &hooks.start_container)?,
            state: HookState { head: head.into_bytes(), tail: tail.into_bytes() },
        })
    }
}

/// What the mounts show, where the child has a copy of the host's mounts in a user namespace: of that nothing may be
/// taken apart, and parts of it are closed to it.
fn sources(plan: &Plan, own_users: bool) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let here = own_users && plan.namespaces & namespace::MOUNT != 0;
    let take = |action: &Action| match here {
        false => Ok(None),
        true => init::take_source(action).map_err(|errno| Failure::Step {
            step: Step::BindSource,
            subject: format!(" /{}", action.subject().to_string_lossy()),
            reason: crate::error::errno_text(errno.raw_os_error()),
        }),
    };
    plan.setup.iter().map(take).collect()
}

/// Where the first process waits.
fn listen(lock: &Lock) -> Result<OwnedFd, Failure> {
    let listener = UnixListener::bind(lock.short_path(GATE)).map_err(Failure::system("listen for the start"))?;
    Ok(listener.into())
}

/// A pid as the state file has it.
pub(super) fn raw(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

pub(super) fn open_directory(dir: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir);
    opened.map_err(|source| Failure::Storage { operation: "open", path: dir.to_owned(), source })
}

/// Copies of this process's own, which the child puts back in their places.
pub(super) fn standard_streams() -> Result<[OwnedFd; 3], Failure> {
    let copy = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|e| Failure::system("copy a standard stream")(e.into()))
    };
    Ok([copy(io::stdin().as_fd())?, copy(io::stdout().as_fd())?, copy(io::stderr().as_fd())?])
}

/// Opens what is to be joined while the host's files are in sight.
fn open_namespaces(joins: &[(u64, PathBuf)]) -> Result<Vec<(OwnedFd, u64)>, Failure> {
    joins
        .iter()
        .map(|(kind, path)| {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
            let failed = |source| Failure::Storage { operation: "open namespace", path: path.clone(), source };
            Ok((file.map_err(failed)?.into(), *kind))
        })
        .collect()
}

/// This process's own namespaces of the kinds that it enters for the child.
fn own_namespaces(joined: &[(OwnedFd, u64)], time_offsets: &[String]) -> Result<Vec<(OwnedFd, u64)>, Failure> {
    let entered = |kind| joined.iter().any(|(_, joined)| *joined == kind);
    let mut own = Vec::new();
    if entered(namespace::PID) {
        own.push((namespace::PID, PathBuf::from("/proc/self/ns/pid")));
    }
    if entered(namespace::TIME) || !time_offsets.is_empty() {
        own.push((namespace::TIME, PathBuf::from("/proc/self/ns/time")));
    }
    open_namespaces(&own)
}

/// Namespaces that only children come into: those of pids and of time, joined or with clocks of their own.
fn enter_for_children(joined: &[(OwnedFd, u64)], time_offsets: &[String]) -> Result<(), Failure> {
    let failed = |errno| Failure::system("join the namespace of pids or time")(io::Error::from_raw_os_error(errno));
    for (fd, kind) in joined {
        sys::join_namespace(fd.as_fd(), *kind).map_err(failed)?;
    }
    if !time_offsets.is_empty() {
        let failed = |errno| Failure::system("make the time namespace")(io::Error::from_raw_os_error(errno));
        sys::unshare(namespace::TIME).map_err(failed)?;
        let path = Path::new("/proc/self/timens_offsets");
        fs::write(path, time_offsets.join("\n")).map_err(|source| Failure::Storage {
            operation: "write",
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Clones the child; in a user namespace of others by way of a process that has entered it, so that the new
/// namespaces belong to that one.
fn clone(prepared: Prepared, ends: Ends, user: Option<OwnedFd>) -> Result<(Pid, OwnedFd, Ends), Failure> {
    let failed =
        |errno| Failure::Step { step: Step::Clone, subject: String::new(), reason: crate::error::errno_text(errno) };
    // Before the child exists: in a pid namespace of others it can be seen from its first moment, and it still has the
    // host's privileges.
    sys::set_traceable(false);
    let cgroup = ends.cgroup.as_ref().map(AsFd::as_fd);
    let namespaces = prepared.plan.namespaces;
    let Some(user) = user else {
        return match sys::clone_process(namespaces, cgroup, false).map_err(failed)? {
            Cloned::Child => {
                drop(ends);
                init::run(prepared)
            }
            Cloned::Parent { pid, pidfd } => Ok((known(pid)?, pidfd, ends)),
        };
    };
    let pipe_failed = |errno: rustix::io::Errno| Failure::system("make a pipe")(errno.into());
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).map_err(pipe_failed)?;
    match sys::clone_process(0, None, false).map_err(failed)? {
        Cloned::Child => {
            let cloned = sys::join_namespace(user.as_fd(), namespace::USER)
                .and_then(|()| sys::clone_process(namespaces, cgroup, true));
            let word: [i32; 2] = match cloned {
                Ok(Cloned::Child) => {
                    drop(ends);
                    init::run(prepared)
                }
                Ok(Cloned::Parent { pid, .. }) => [i32::try_from(pid).unwrap_or(0), 0],
                Err(errno) => [0, errno],
            };
            let mut bytes = [0u8; 8];
            bytes[..4].copy_from_slice(&word[0].to_le_bytes());
            bytes[4..].copy_from_slice(&word[1].to_le_bytes());
            let _ = rustix::io::write(&to, &bytes);
            sys::exit_now(0)
        }
        Cloned::Parent { pid: helper, pidfd: _ } => {
            drop(to);
            let mut bytes = [0u8; 8];
            let count = rustix::io::read(&from, &mut bytes).unwrap_or(0);
            let _ = waitpid(Some(known(helper)?), WaitOptions::empty());
            let [a, b, c, d, e, f, g, h] = bytes;
            match (count, i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h])) {
                (8, pid @ 1.., 0) => {
                    let pid = known(pid.unsigned_abs())?;
                    let pidfd = pidfd_open(pid, PidfdFlags::empty());
                    let pidfd = pidfd.map_err(|errno| Failure::system("find the first process")(errno.into()))?;
                    Ok((pid, pidfd, ends))
                }
                (8, _, errno) => Err(Failure::Step {
                    step: Step::JoinNamespace,
                    subject: " of type user".to_owned(),
                    reason: crate::error::errno_text(errno),
                }),
                _ => Err(failed(libc::ECHILD)),
            }
        }
    }
}

pub(super) fn known(pid: u32) -> Result<Pid, Failure> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Failure::Refused("the kernel gave no pid".to_owned()))
}

/// Gives the child's new user namespace its ids.
fn map_ids(pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), Failure> {
    for (file, list) in [("uid_map", uids), ("gid_map", gids)] {
        let line = |one: &IdMapping| format!("{} {} {}\n", one.container_id, one.host_id, one.size);
        let path = PathBuf::from(format!("/proc/{}/{file}", raw(pid)));
        // The kernel takes a map in one write.
        fs::write(&path, list.iter().map(line).collect::<String>()).map_err(|source| Failure::Storage {
            operation: "write",
            path,
            source,
        })?;
    }
    Ok(())
}

/// What a process in a user namespace may not do for itself.
fn set_from_outside(pid: Pid, limits: &[Rlimit], oom_score: &[u8]) -> Result<(), Failure> {
    for limit in limits {
        sys::set_limit_of(pid.as_raw_nonzero().get(), limit.resource, limit.soft, limit.hard)
            .map_err(|errno| Failure::system("set resource limits")(io::Error::from_raw_os_error(errno)))?;
    }
    if oom_score.is_empty() {
        return Ok(());
    }
    let path = PathBuf::from(format!("/proc/{}/oom_score_adj", raw(pid)));
    fs::write(&path, oom_score).map_err(|source| Failure::Storage { operation: "write", path, source })
}

/// The pid as text, nothing else; put in its place whole, because somebody may wait for it.
pub(super) fn write_pid_file(path: Option<&Path>, pid: Pid) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let failed = |source| Failure::Storage { operation: "write", path: path.to_owned(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| write!(file, "{}", raw(pid)));
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}

/// What the child's reports are about.
struct Told {
    subjects: Vec<String>,
    command: String,
    cwd: String,
    joins: Vec<(u64, PathBuf)>,
}

impl Made {
    /// Lets the child go on to where it waits next.
    pub(super) fn go_on(&self) -> Result<(), Failure> {
        let written = rustix::io::write(&self.go, b"g");
        written.map(drop).map_err(|errno| Failure::system("reach the first process")(errno.into()))
    }

    /// Reads what the child has to say; `None` at the end.
    pub(super) fn next_report(&self) -> Result<Option<Report>, Failure> {
        let mut bytes = [0u8; init::REPORT_SIZE];
        loop {
            return match rustix::io::read(&self.report, &mut bytes) {
                Ok(0) => Ok(None),
                Ok(count) => Ok(Report::decode(bytes.get(..count).unwrap_or_default())),
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => Err(Failure::system("hear from the first process")(errno.into())),
            };
        }
    }

    fn await_report(&self, wanted: Report, told: &Told) -> Result<(), Failure> {
        match self.next_report()? {
            Some(report) if report == wanted => Ok(()),
            Some(Report::Failed { step, index, errno }) => Err(told.failure(step, index, errno)),
            _ => Err(Failure::Refused(DIED.to_owned())),
        }
    }

    /// A death without a word is most likely the memory limit's work.
    fn explain(&self, failure: Failure, group: &Group) -> Failure {
        match failure {
            Failure::Refused(text) if text == DIED && group.oom_killed() => {
                Failure::Refused("killed by the kernel: the memory limit is too small".to_owned())
            }
            other => other,
        }
    }

    /// Kills the first process, and reaps it.
    pub(super) fn end(&self) {
        let _ = sys::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = self.wait();
    }

    /// Waits for its end.
    pub(super) fn wait(&self) -> Result<WaitStatus, Failure> {
        foreground::wait(self.pid)
    }
}

const DIED: &str = "the first process died";

impl Told {
    fn failure(&self, step: Step, index: u16, errno: i32) -> Failure {
        let subject = match step {
            Step::Exec => return exec_failure(&self.command, errno),
            Step::Mount
            | Step::BindSource
            | Step::Remount
            | Step::Device
            | Step::Link
            | Step::Sysctl
            | Step::Mask
            | Step::ReadOnlyPath => self.subjects.get(usize::from(index)).cloned().unwrap_or_default(),
            Step::WorkingDirectory => self.cwd.clone(),
            Step::JoinNamespace => {
                // Pids, time and users are joined elsewhere.
                let here = |kind: &u64| !matches!(*kind, namespace::PID | namespace::TIME | namespace::USER);
                let mut joins = self.joins.iter().filter(|(kind, _)| here(kind));
                joins.nth(usize::from(index)).map(|(_, path)| path.display().to_string()).unwrap_or_default()
            }
            Step::CreateContainerHook | Step::StartContainerHook => format!("number {}", u32::from(index) + 1),
            _ => String::new(),
        };
        let subject = if subject.is_empty() { subject } else { format!(" {subject}") };
        Failure::Step { step, subject, reason: reason(step, errno) }
    }
}

/// Why a step failed, in words.
pub(super) fn reason(step: Step, errno: i32) -> String {
    match (step, errno) {
        (Step::CreateContainerHook | Step::StartContainerHook, ..0) => match -errno {
            code @ ..128 => format!("exited with code {code}"),
            code => format!("killed by signal {}", code - 128),
        },
        (Step::CreateContainerHook | Step::StartContainerHook, libc::ETIMEDOUT) => "killed at its timeout".to_owned(),
        _ => crate::error::errno_text(errno),
    }
}

/// A program that cannot be executed, in words from which callers of runc tell a command that is not found.
pub(super) fn exec_failure(command: &str, errno: i32) -> Failure {
    let reason = match errno {
        libc::ENOENT if !command.contains('/') => "executable file not found in $PATH".to_owned(),
        _ => crate::error::errno_text(errno),
    };
    Failure::Step { step: Step::Exec, subject: format!(" {command:?}"), reason }
}

/// Removes what a container has on this host. Its first process has ended, or never was.
pub(super) fn destroy(entry: &Entry, group: &Group) -> Result<(), Failure> {
    // Usually nothing is left in it, and this is all that there is to do.
    if group.remove(Instant::now()).is_err() {
        let deadline = Instant::now() + GRACE;
        if !group.kill_all(deadline) {
            return Err(Failure::Refused(format!("processes of {:?} cannot be killed", entry.stored.id)));
        }
        group.remove(deadline)?;
    }
    remove_files(entry)
}

/// The same for one that has no cgroup.
fn remove_files(entry: &Entry) -> Result<(), Failure> {
    let StoredBundle { rootfs, mounted_here, mount_before, .. } = &entry.stored;
    // What was there before is the caller's.
    if *mounted_here && (*mount_before == 0 || mount_id(Path::new(rootfs)) != *mount_before) {
        unmount(Path::new(rootfs))?;
    }
    state::remove(&entry.dir)
}

/// The mount that a directory is on; 0 when that cannot be told.
fn mount_id(path: &Path) -> u64 {
    let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::MNT_ID);
    stat.map_or(0, |stat| stat.stx_mnt_id)
}

/// Takes the root away, with all that was mounted below it.
fn unmount(rootfs: &Path) -> Result<(), Failure> {
    match rustix::mount::unmount(rootfs, rustix::mount::UnmountFlags::DETACH) {
        // Not a mount (any more).
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(Failure::Storage { operation: "unmount", path: rootfs.to_owned(), source: errno.into() }),
    }
}

/// Runs the hooks that come after the end. What fails is told, and stops nothing.
pub(super) fn run_poststop(global: &Global, entry: &Entry) {
    if entry.stored.poststop.is_empty() {
        return;
    }
    let state = entry.whole_json(state::Status::Stopped);
    for hook in &entry.stored.poststop {
        if let Err(failure) = hooks::run("poststop", &hook_from(hook), &state) {
            warn(global, &failure.text());
        }
    }
}
