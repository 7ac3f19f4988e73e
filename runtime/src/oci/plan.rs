//! A bundle's `config.json` as a [`Plan`], and as what the parent of the container has to do: pure.
//!
//! Everything that the specification calls an error is one here, before anything is made: a version that is not
//! known, no root, names of capabilities, limits and namespaces that do not exist, values that contradict each other,
//! and whatever this runtime does not do, by its name.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::mounts;
use super::spec::{Capabilities, Hook, IdMapping, Process as OciProcess, Spec, TimeOffset};
use crate::config::{AppArmor, IdRange};
use crate::plan::capabilities::bits;
use crate::plan::confinement::{apparmor_label, selinux_exec};
use crate::plan::process::{candidates, resource, strings, variable};
use crate::plan::{
    CapabilitySets, Confinement, HostView, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, Machine, Plan,
    PlanError, Process, Rlimit, Root, Target, Who, c_string, check_ranges, namespace, seccomp,
};

/// What the plan needs to know beside the specification.
pub(super) struct Context<'a> {
    /// Absolute.
    pub(super) bundle: &'a Path,
    pub(super) host: &'a HostView,
    /// The container's cgroups on the host, each with the name of its hierarchy (empty for the only one).
    pub(super) cgroup_dirs: &'a [(String, PathBuf)],
}

/// A bundle, ready to be carried out.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) plan: Plan,
    /// Namespaces to join, in this order: their `CLONE_NEW*` bit and file.
    pub(super) joins: Vec<(u64, PathBuf)>,
    pub(super) uid_mappings: Vec<IdMapping>,
    pub(super) gid_mappings: Vec<IdMapping>,
    /// Lines of `timens_offsets`.
    pub(super) time_offsets: Vec<String>,
    pub(super) terminal: bool,
    /// Rows and columns.
    pub(super) window: Option<(u16, u16)>,
    /// Without a process a container can be created, but not started.
    pub(super) has_process: bool,
}

/// Where the container's cgroups are, below the root of each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CgroupPlace {
    /// Relative; empty for the root itself.
    pub(super) parent: PathBuf,
    pub(super) name: String,
}

/// One more process of a container, ready to be carried out.
#[derive(Debug)]
pub(super) struct Further {
    /// Of which only the process counts: the rest is there already.
    pub(super) plan: Plan,
    pub(super) terminal: bool,
    /// Rows and columns.
    pub(super) window: Option<(u16, u16)>,
}

const MAX_HOOKS: usize = 256;
const MAX_GROUPS: usize = 64;

fn invalid<T>(field: &'static str, reason: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError::invalid(field, reason))
}

/// Container ids become directory names: runc's rule.
pub(super) fn valid_id(id: &str) -> Result<(), PlanError> {
    let ok = (1..=1024).contains(&id.len())
        && id.len() <= 255
        && id != "."
        && id != ".."
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.' | b'@'));
    if ok { Ok(()) } else { invalid("container id", "must be 1 to 255 of [a-zA-Z0-9_+.@-]") }
}

/// 1.x.y, with whatever comes behind: minor versions only add.
fn check_version(version: &str) -> Result<(), PlanError> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u32>> = core.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_slice() {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => invalid("ociVersion", format!("{version:?} is not 1.x.y, which is supported")),
        _ => invalid("ociVersion", format!("{version:?} is not a version")),
    }
}

/// Where its cgroups go: the path that the bundle says, from the root whether it begins with a slash or not (below this
/// process's own it would depend on who called), or a place of its own beside those of engines, `shoal-...`.
pub(super) fn cgroup_place(path: &str, id: &str) -> Result<CgroupPlace, PlanError> {
    const FIELD: &str = "linux.cgroupsPath";
    const MAX_DEPTH: usize = 32;
    if path.is_empty() {
        return Ok(CgroupPlace { parent: PathBuf::new(), name: format!("shoal.{id}") });
    }
    c_string(FIELD, path)?;
    if !path.contains('/') && path.split(':').count() == 3 {
        return Err(PlanError::Unsupported { field: "linux.cgroupsPath in systemd's form (slice:prefix:name)" });
    }
    let mut names: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.extend(name.to_str()),
            Component::ParentDir => return invalid(FIELD, "contains \"..\""),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if names.len() > MAX_DEPTH || names.iter().any(|name| name.len() > 255 || name.chars().any(char::is_control)) {
        return invalid(FIELD, "is too deep, or has a name that is none");
    }
    let Some(name) = names.pop() else { return invalid(FIELD, "is the root, which is nobody's own") };
    Ok(CgroupPlace { parent: names.iter().collect(), name: name.to_owned() })
}

/// Plans one bundle.
pub(super) fn plan(spec: &Spec, context: &Context<'_>) -> Result<Bundle, PlanError> {
    check(spec)?;
    let (namespaces, joins) = namespaces(spec)?;
    let all = joins.iter().fold(namespaces, |all, (kind, _)| all | kind);
    let has = |kind: u64| all & kind != 0;
    for (field, name) in [("hostname", &spec.hostname), ("domainname", &spec.domainname)] {
        if !name.is_empty() && !has(namespace::UTS) {
            return invalid(field, "needs a uts namespace");
        }
        if name.len() > 64 {
            return invalid(field, "is longer than 64 bytes");
        }
    }
    let mut root = mounts::actions(spec, context, has(namespace::CGROUP))?;
    mounts::sysctls(spec, all, &mut root)?;
    mounts::hidden(spec, &mut root)?;
    let propagation = propagation(&spec.linux.rootfs_propagation)?;
    let own_mounts = has(namespace::MOUNT);
    let joins_mounts = own_mounts && namespaces & namespace::MOUNT == 0;
    let plan = Plan {
        namespaces,
        joins_mounts,
        ids: None,
        root: Root::Directory(root_path(spec, context.bundle)?),
        // Only what is to be shared with the host must not be cut off from it; and in the host's own namespace
        // nothing is changed.
        propagation: if own_mounts && propagation & MS_SHARED == 0 { MS_SLAVE | MS_REC } else { 0 },
        root_propagation: propagation,
        setup: root,
        readonly_root: spec.root.as_ref().is_some_and(|root| root.readonly),
        process: process(spec, &context.host.machine)?,
    };
    Ok(Bundle {
        plan,
        joins,
        uid_mappings: mappings("linux.uidMappings", &spec.linux.uid_mappings, namespaces)?,
        gid_mappings: mappings("linux.gidMappings", &spec.linux.gid_mappings, namespaces)?,
        time_offsets: time_offsets(spec, namespaces)?,
        terminal: has_terminal(spec),
        window: window(spec),
        has_process: spec.process.is_some(),
    })
}

/// Plans one more process of a container: `spec` is the container's, with this process in the place of the first.
pub(super) fn further(spec: &Spec, machine: &Machine) -> Result<Further, PlanError> {
    check(spec)?;
    let plan = Plan {
        namespaces: 0,
        joins_mounts: false,
        ids: None,
        root: Root::Directory(CString::default()),
        propagation: 0,
        root_propagation: 0,
        setup: Vec::new(),
        readonly_root: false,
        process: process(spec, machine)?,
    };
    Ok(Further { plan, terminal: has_terminal(spec), window: window(spec) })
}

fn has_terminal(spec: &Spec) -> bool {
    spec.process.as_ref().is_some_and(|process| process.terminal)
}

/// Rows and columns of its terminal, where they are given.
fn window(spec: &Spec) -> Option<(u16, u16)> {
    let size = spec.process.as_ref().filter(|process| process.terminal)?.console_size?;
    let cut = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    Some((cut(size.height), cut(size.width)))
}

/// What stands on its own, and what is not supported.
fn check(spec: &Spec) -> Result<(), PlanError> {
    check_version(&spec.oci_version)?;
    let process = spec.process.as_ref();
    let unsupported = [
        ("vm", spec.vm.is_some()),
        ("linux.intelRdt", spec.linux.intel_rdt.is_some()),
        ("linux.memoryPolicy", spec.linux.memory_policy.is_some()),
        ("linux.personality", spec.linux.personality.is_some()),
        ("linux.netDevices", !spec.linux.net_devices.is_empty()),
        ("process.scheduler", process.is_some_and(|process| process.scheduler.is_some())),
        ("process.ioPriority", process.is_some_and(|process| process.io_priority.is_some())),
        ("process.execCPUAffinity", process.is_some_and(|process| process.exec_cpu_affinity.is_some())),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, asked)| *asked) {
        return Err(PlanError::Unsupported { field });
    }
    if spec.annotations.keys().any(String::is_empty) {
        return invalid("annotations", "a key is empty");
    }
    check_hooks(spec)
}

fn check_hooks(spec: &Spec) -> Result<(), PlanError> {
    let hooks = &spec.hooks;
    let lists: [(&'static str, &Vec<Hook>); 6] = [
        ("hooks.prestart", &hooks.prestart),
        ("hooks.createRuntime", &hooks.create_runtime),
        ("hooks.createContainer", &hooks.create_container),
        ("hooks.startContainer", &hooks.start_container),
        ("hooks.poststart", &hooks.poststart),
        ("hooks.poststop", &hooks.poststop),
    ];
    for (field, list) in lists {
        if list.len() > MAX_HOOKS {
            return invalid(field, format!("more than {MAX_HOOKS}"));
        }
        for hook in list {
            if !hook.path.starts_with('/') {
                return invalid(field, format!("path {:?} is not absolute", hook.path));
            }
            c_string(field, hook.path.as_str())?;
            strings(field, &hook.args)?;
            strings(field, &hook.env)?;
            if hook.timeout.is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
                return invalid(field, "timeout must be greater than zero");
            }
        }
    }
    Ok(())
}

/// The namespaces to make and those to join, the latter in the order in which that works: the user namespace first,
/// because it gives the right to the others, and the mounts last, because the files of the others are found in ours.
fn namespaces(spec: &Spec) -> Result<(u64, Vec<(u64, PathBuf)>), PlanError> {
    const ORDER: [(&str, u64); 8] = [
        ("user", namespace::USER),
        ("cgroup", namespace::CGROUP),
        ("ipc", namespace::IPC),
        ("uts", namespace::UTS),
        ("network", namespace::NETWORK),
        ("pid", namespace::PID),
        ("time", namespace::TIME),
        ("mount", namespace::MOUNT),
    ];
    let field = "linux.namespaces";
    for (index, wanted) in spec.linux.namespaces.iter().enumerate() {
        if !ORDER.iter().any(|(name, _)| *name == wanted.kind) {
            return invalid(field, format!("unknown type {:?}", wanted.kind));
        }
        if spec.linux.namespaces.iter().take(index).any(|earlier| earlier.kind == wanted.kind) {
            return invalid(field, format!("{:?} is there twice", wanted.kind));
        }
        if !wanted.path.is_empty() && !wanted.path.starts_with('/') {
            return invalid(field, format!("path {:?} is not absolute", wanted.path));
        }
    }
    let (mut new, mut joins) = (0, Vec::new());
    for (name, kind) in ORDER {
        match spec.linux.namespaces.iter().find(|wanted| wanted.kind == name) {
            None => {}
            Some(wanted) if wanted.path.is_empty() => new |= kind,
            Some(wanted) => joins.push((kind, PathBuf::from(&wanted.path))),
        }
    }
    if new & namespace::USER != 0 && (spec.linux.uid_mappings.is_empty() || spec.linux.gid_mappings.is_empty()) {
        return invalid(field, "a user namespace needs uidMappings and gidMappings");
    }
    Ok((new, joins))
}

fn mappings(field: &'static str, list: &[IdMapping], namespaces: u64) -> Result<Vec<IdMapping>, PlanError> {
    if !list.is_empty() && namespaces & namespace::USER == 0 {
        return invalid(field, "needs a new user namespace");
    }
    if !list.is_empty() {
        let range = |one: &IdMapping| IdRange { inside: one.container_id, outside: one.host_id, count: one.size };
        check_ranges(field, &list.iter().map(range).collect::<Vec<_>>())?;
    }
    Ok(list.to_vec())
}

fn time_offsets(spec: &Spec, namespaces: u64) -> Result<Vec<String>, PlanError> {
    let field = "linux.timeOffsets";
    if !spec.linux.time_offsets.is_empty() && namespaces & namespace::TIME == 0 {
        return invalid(field, "needs a new time namespace");
    }
    let line = |(clock, TimeOffset { secs, nanosecs }): (&String, &TimeOffset)| {
        if !matches!(clock.as_str(), "monotonic" | "boottime") || *nanosecs >= 1_000_000_000 {
            return invalid(field, format!("{clock:?}: unknown clock, or a second or more of nanoseconds"));
        }
        Ok(format!("{clock} {secs} {nanosecs}"))
    };
    spec.linux.time_offsets.iter().map(line).collect()
}

fn root_path(spec: &Spec, bundle: &Path) -> Result<CString, PlanError> {
    let field = "root";
    let Some(root) = &spec.root else { return invalid(field, "is missing") };
    if root.path.is_empty() {
        return invalid(field, "has no path");
    }
    c_string(field, bundle.join(&root.path).as_os_str().as_bytes())
}

fn propagation(name: &str) -> Result<u64, PlanError> {
    Ok(match name {
        "" => 0,
        "private" => MS_PRIVATE,
        "rprivate" => MS_PRIVATE | MS_REC,
        "slave" => MS_SLAVE,
        "rslave" => MS_SLAVE | MS_REC,
        "shared" => MS_SHARED,
        "rshared" => MS_SHARED | MS_REC,
        "unbindable" => MS_UNBINDABLE,
        "runbindable" => MS_UNBINDABLE | MS_REC,
        other => return invalid("linux.rootfsPropagation", format!("unknown {other:?}")),
    })
}

/// The process half. Without one there is nothing to execute, and `start` will say so.
fn process(spec: &Spec, machine: &Machine) -> Result<Process, PlanError> {
    let nothing = OciProcess::default();
    let process = spec.process.as_ref().unwrap_or(&nothing);
    let cwd = match process.cwd.as_str() {
        "" if spec.process.is_none() => "/",
        cwd if cwd.starts_with('/') => cwd,
        cwd => return invalid("process.cwd", format!("{cwd:?} is not absolute")),
    };
    let args = strings("process.args", &process.args)?;
    let candidates = match process.args.first() {
        Some(command) if !command.is_empty() => candidates(command, &process.env)?,
        _ if spec.process.is_none() => Vec::new(),
        _ => return invalid("process.args", "no command specified"),
    };
    if process.user.additional_gids.len() > MAX_GROUPS {
        return invalid("process.user.additionalGids", format!("more than {MAX_GROUPS}"));
    }
    // To the kernel the last number means "leave as it is", and what it is here is root.
    let user = &process.user;
    if [user.uid, user.gid].iter().chain(&user.additional_gids).any(|id| *id == u32::MAX) {
        return invalid("process.user", format!("{} is nobody's id", u32::MAX));
    }
    if process.user.umask.is_some_and(|umask| umask > 0o777) {
        return invalid("process.user.umask", "is above 0777");
    }
    if process.oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
        return invalid("process.oomScoreAdj", "must be -1000 to 1000");
    }
    Ok(Process {
        hostname: c_string("hostname", spec.hostname.as_str())?,
        domainname: c_string("domainname", spec.domainname.as_str())?,
        args,
        env: environment(&process.env)?,
        home_from_passwd: variable(&process.env, "HOME").is_none(),
        candidates,
        cwd: Target::new("process.cwd", mounts::clean(cwd))?,
        who: Who::Numbers {
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids.clone(),
        },
        umask: process.user.umask.unwrap_or(0o022),
        rlimits: rlimits(process)?,
        capabilities: capabilities(process.capabilities.as_ref())?,
        reaper: false,
        confinement: confinement(spec, process, machine)?,
        no_new_privileges: process.no_new_privileges,
        oom_score_adj: c_string(
            "process.oomScoreAdj",
            process.oom_score_adj.map(|n| n.to_string()).unwrap_or_default(),
        )?,
    })
}

/// Of variables that are there twice the last one counts, as with other runtimes; programs differ in which they take.
fn environment(list: &[String]) -> Result<Vec<CString>, PlanError> {
    let all = strings("process.env", list)?;
    let name = |pair: &str| pair.split_once('=').map_or_else(|| pair.to_owned(), |(name, _)| name.to_owned());
    let last: BTreeMap<String, usize> = list.iter().enumerate().map(|(index, pair)| (name(pair), index)).collect();
    let kept = list.iter().zip(all).enumerate().filter(|(index, (pair, _))| last.get(&name(pair)) == Some(index));
    Ok(kept.map(|(_, (_, pair))| pair).collect())
}

/// The seccomp filter, and the labels that the exec takes.
fn confinement(spec: &Spec, process: &OciProcess, machine: &Machine) -> Result<Confinement, PlanError> {
    let bounding = capabilities(process.capabilities.as_ref())?.bounding;
    let compile = |profile| seccomp::compile(profile, &machine.seccomp, bounding);
    let mut labels = Vec::new();
    if !process.apparmor_profile.is_empty() && process.apparmor_profile != "unconfined" {
        labels.extend(apparmor_label(&AppArmor::Named(process.apparmor_profile.clone()), &machine.apparmor)?);
    }
    if !process.selinux_label.is_empty() {
        if machine.selinux.is_none() {
            return Err(PlanError::Unsupported { field: "process.selinuxLabel (SELinux is not enabled on this host)" });
        }
        labels.push(selinux_exec(&process.selinux_label)?);
    }
    Ok(Confinement { seccomp: spec.linux.seccomp.as_ref().map(compile).transpose()?, labels })
}

fn rlimits(process: &OciProcess) -> Result<Vec<Rlimit>, PlanError> {
    let field = "process.rlimits";
    let mut limits: Vec<Rlimit> = Vec::with_capacity(process.rlimits.len());
    for limit in &process.rlimits {
        let name = limit.kind.strip_prefix("RLIMIT_").map(str::to_ascii_lowercase);
        let known = |name: &str| if name == "as" { Some(libc::RLIMIT_AS) } else { resource(name) };
        let Some(resource) = name.as_deref().and_then(known) else {
            return invalid(field, format!("unknown type {:?}", limit.kind));
        };
        if limits.iter().any(|known| known.resource == resource) {
            return invalid(field, format!("{:?} is there twice", limit.kind));
        }
        if limit.soft > limit.hard {
            return invalid(field, format!("{}: soft is above hard", limit.kind));
        }
        limits.push(Rlimit { resource, soft: limit.soft, hard: limit.hard, clamp: false });
    }
    Ok(limits)
}

pub(super) fn capabilities(wanted: Option<&Capabilities>) -> Result<CapabilitySets, PlanError> {
    let Some(wanted) = wanted else { return Ok(CapabilitySets::default()) };
    Ok(CapabilitySets {
        bounding: bits("process.capabilities.bounding", &wanted.bounding)?,
        effective: bits("process.capabilities.effective", &wanted.effective)?,
        permitted: bits("process.capabilities.permitted", &wanted.permitted)?,
        inheritable: bits("process.capabilities.inheritable", &wanted.inheritable)?,
        ambient: bits("process.capabilities.ambient", &wanted.ambient)?,
        only_root: false,
    })
}
