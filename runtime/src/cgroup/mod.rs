//! One engine's cgroups, on v1, v2 and hybrid hosts: made, limited, emptied and removed through their files.
//!
//! The tree is `/shoal-<engine id>/{task/<container>,shims}` (not `tasks`: v1 has a file of that name) below the root of every hierarchy in use, never below
//! the daemon's own cgroup, so that restarting its unit kills nothing. Inner cgroups hold no process, as v2 demands.
//! The daemon makes and removes; the shim and the container's first process only move themselves in.

mod layout;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use layout::CgroupLayout;
use layout::Hierarchy;

use crate::config::Resources;
use crate::plan::limits::{self, Version, Write};
use crate::plan::{CgroupView, HostView};

/// A failed operation on cgroups.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The host has no cgroup filesystem mounted.
    #[error("no cgroup hierarchy is mounted")]
    None,
    /// A limit needs a controller that this host does not offer (or has not delegated).
    #[error("{field} needs the cgroup controller {controller:?}, which this host does not offer")]
    Controller {
        /// The field of the container's configuration.
        field: &'static str,
        /// What is missing.
        controller: &'static str,
    },
    /// A file or directory operation failed. Retrying may help.
    #[error("{operation} cgroup {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The cgroup was still in use at the deadline. Retrying may help.
    #[error("cgroup {0} is still in use")]
    Busy(PathBuf),
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { operation, path, source }
}

/// The cgroups of one engine.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    layout: CgroupLayout,
    hierarchies: Vec<Hierarchy>,
    /// `shoal-<engine id>`
    name: String,
}

/// The parent of the containers' cgroups.
const TASKS: &str = "task";

/// What v2 must delegate downwards for the limits that containers may have.
const DELEGATED: [&str; 4] = ["cpu", "memory", "pids", "cpuset"];

impl Cgroups {
    /// Finds the host's hierarchies. Makes nothing.
    pub(crate) fn detect(engine_id: &str) -> Result<Cgroups, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read_to_string(path).map_err(failed("read", path))?;
        let offered = |mount: &PathBuf| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let (layout, hierarchies) = layout::parse(&mountinfo, offered)?;
        Ok(Cgroups { layout, hierarchies, name: format!("shoal-{engine_id}") })
    }

    pub(crate) fn layout(&self) -> CgroupLayout {
        self.layout
    }

    /// What the planner needs to know.
    pub(crate) fn host_view(&self) -> HostView {
        let cgroups = match self.layout {
            CgroupLayout::V2 => CgroupView::Unified,
            CgroupLayout::V1 | CgroupLayout::Hybrid => CgroupView::Split(
                self.hierarchies
                    .iter()
                    .filter_map(|hierarchy| {
                        let name = hierarchy.mount.file_name()?.to_str()?.to_owned();
                        Some(match hierarchy.version {
                            Version::V1 => (name, "cgroup", hierarchy.controllers.clone()),
                            Version::V2 => (name, "cgroup2", Vec::new()),
                        })
                    })
                    .collect(),
            ),
        };
        HostView { device_control: self.v1("devices").is_some(), cgroups }
    }

    fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        let has = |h: &&Hierarchy| h.version == Version::V1 && h.controllers.iter().any(|c| c == controller);
        self.hierarchies.iter().find(has)
    }

    fn v2(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2)
    }

    /// Where this controller is: v1 first, since a controller is in one of the two only.
    fn holding(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1(controller)
            .or_else(|| self.v2().filter(|hierarchy| hierarchy.controllers.iter().any(|c| c == controller)))
    }

    fn version(&self, controller: &str) -> Version {
        self.holding(controller).map_or(Version::V2, |hierarchy| hierarchy.version)
    }

    fn task_dir(&self, hierarchy: &Hierarchy, id: &str) -> PathBuf {
        hierarchy.mount.join(&self.name).join(TASKS).join(id)
    }

    fn shims_dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(&self.name).join("shims")
    }

    /// Makes the engine's own cgroups. Idempotent.
    pub(crate) fn ensure(&self) -> Result<(), CgroupError> {
        for hierarchy in &self.hierarchies {
            let engine = hierarchy.mount.join(&self.name);
            let tasks = engine.join(TASKS);
            if hierarchy.version == Version::V2 {
                delegate(&hierarchy.mount, &hierarchy.controllers);
            }
            make(hierarchy, &engine)?;
            if hierarchy.version == Version::V2 {
                delegate(&engine, &hierarchy.controllers);
            }
            yield_to_others(&engine);
            make(hierarchy, &tasks)?;
            if hierarchy.version == Version::V2 {
                delegate(&tasks, &hierarchy.controllers);
            }
            make(hierarchy, &engine.join("shims"))?;
        }
        Ok(())
    }

    /// Makes a container's cgroups and sets its limits. On failure [`Cgroups::remove`] takes back what was made.
    pub(crate) fn create(&self, id: &str, resources: &Resources) -> Result<(), CgroupError> {
        // The engine's own are there since the start, unless somebody cleaned up (a node that left, an administrator).
        if self.hierarchies.iter().any(|hierarchy| !hierarchy.mount.join(&self.name).join(TASKS).is_dir()) {
            self.ensure()?;
        }
        for hierarchy in &self.hierarchies {
            make(hierarchy, &self.task_dir(hierarchy, id))?;
        }
        let mut writes = limits::writes(resources, |controller| self.version(controller));
        if self.v1("devices").is_some() {
            writes.extend(limits::device_writes());
        }
        for write in &writes {
            self.write(id, write)?;
        }
        Ok(())
    }

    fn write(&self, id: &str, write: &Write) -> Result<(), CgroupError> {
        let missing = CgroupError::Controller { field: write.field, controller: write.controller };
        let Some(hierarchy) = self.holding(write.controller) else { return Err(missing) };
        let path = self.task_dir(hierarchy, id).join(write.file);
        match fs::write(&path, &write.value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && write.optional => Ok(()),
            // v2: the controller is there, but was not handed down to us.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !path.exists() => Err(missing),
            other => other.map_err(failed("write", &path)),
        }
    }

    /// The `cgroup.procs` files of a container, and the directory of its v2 cgroup: a process that is cloned into that
    /// one need not be moved there.
    pub(crate) fn entrances(&self, id: &str) -> (Vec<PathBuf>, Option<PathBuf>) {
        let v1 = self.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1);
        let files = v1.map(|hierarchy| self.task_dir(hierarchy, id).join("cgroup.procs")).collect();
        (files, self.v2().map(|hierarchy| self.task_dir(hierarchy, id)))
    }

    /// Moves the calling process among the shims.
    pub(crate) fn enter_shims(&self) -> Result<(), CgroupError> {
        for hierarchy in &self.hierarchies {
            let path = self.shims_dir(hierarchy).join("cgroup.procs");
            fs::write(&path, "0").map_err(failed("enter", &path))?;
        }
        Ok(())
    }

    /// Whether the kernel's OOM killer has killed inside of this container's cgroup.
    pub(crate) fn oom_killed(&self, id: &str) -> bool {
        let Some(hierarchy) = self.holding("memory") else { return false };
        let file = match hierarchy.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.task_dir(hierarchy, id).join(file)).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }

    /// Every process of the container, as the reader's pid namespace numbers them.
    pub(crate) fn processes(&self, id: &str) -> Vec<u32> {
        let mut pids: Vec<u32> = Vec::new();
        for hierarchy in &self.hierarchies {
            collect_processes(&self.task_dir(hierarchy, id), 0, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to every process of the container, also to those that it is just forking.
    pub(crate) fn kill(&self, id: &str) {
        if let Some(hierarchy) = self.v2()
            && fs::write(self.task_dir(hierarchy, id).join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        // Frozen, nothing forks while the list is read. SIGKILL takes effect at the thaw.
        let freezer = self.v1("freezer").map(|h| self.task_dir(h, id).join("freezer.state"));
        if let Some(state) = &freezer {
            let _ = fs::write(state, "FROZEN");
        }
        for pid in self.processes(id) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if let Some(state) = &freezer {
            let _ = fs::write(state, "THAWED");
        }
    }

    /// Kills until nothing is left, at the latest until the deadline. `true` when the cgroup is empty.
    pub(crate) fn kill_all(&self, id: &str, deadline: Instant) -> bool {
        let mut pause = Duration::from_micros(500);
        loop {
            if self.processes(id).is_empty() {
                return true;
            }
            self.kill(id);
            if Instant::now() >= deadline {
                return self.processes(id).is_empty();
            }
            // Exits are asynchronous and cgroup v1 has no event for them.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes a container's cgroups, with those that it made itself. Idempotent; waits while they are in use.
    pub(crate) fn remove(&self, id: &str, deadline: Instant) -> Result<(), CgroupError> {
        for hierarchy in &self.hierarchies {
            remove_tree(&self.task_dir(hierarchy, id), deadline)?;
        }
        Ok(())
    }

    /// Removes the engine's cgroups, when no container and no shim is left.
    pub(crate) fn remove_engine(&self, deadline: Instant) -> Result<(), CgroupError> {
        for hierarchy in &self.hierarchies {
            remove_tree(&hierarchy.mount.join(&self.name), deadline)?;
        }
        Ok(())
    }

    /// The containers that have cgroups.
    pub(crate) fn containers(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for hierarchy in &self.hierarchies {
            let Ok(entries) = fs::read_dir(hierarchy.mount.join(&self.name).join(TASKS)) else { continue };
            let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            ids.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Hands down what can be handed down. What cannot shows when a limit needs it.
fn delegate(dir: &Path, offered: &[String]) {
    for controller in DELEGATED.iter().filter(|name| offered.iter().any(|offered| offered == *name)) {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// All tasks together get half of what a service of this host gets when both want the processor, so that the daemon, and
/// whatever else keeps the host alive, is never late because of them. Among themselves, tasks share by their reservations.
/// What an administrator has set stays.
fn yield_to_others(dir: &Path) {
    for (file, usual, ours) in [("cpu.shares", "1024", "512"), ("cpu.weight", "100", "50")] {
        let path = dir.join(file);
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == usual) {
            // Without it tasks only weigh more.
            let _ = fs::write(&path, ours);
        }
    }
}

fn make(hierarchy: &Hierarchy, dir: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(failed("create", dir))?,
    }
    if hierarchy.version == Version::V1 && hierarchy.controllers.iter().any(|name| name == "cpuset") {
        inherit_cpuset(dir)?;
    }
    Ok(())
}

/// A fresh v1 cpuset has no CPU and no memory, and takes no process until it has.
fn inherit_cpuset(dir: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (dir.join(file), dir.parent().unwrap_or(dir).join(file));
        if fs::read_to_string(&own).map_err(failed("read", &own))?.trim().is_empty() {
            let value = fs::read_to_string(&parent).map_err(failed("read", &parent))?;
            fs::write(&own, value.trim()).map_err(failed("write", &own))?;
        }
    }
    Ok(())
}

/// A container with its own cgroup mount could make deeper ones; nobody nests hundreds.
const MAX_DEPTH: usize = 64;

fn collect_processes(dir: &Path, depth: usize, pids: &mut Vec<u32>) {
    let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else { return };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for child in children(dir).into_iter().filter(|_| depth < MAX_DEPTH) {
        collect_processes(&child, depth + 1, pids);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

fn remove_tree(dir: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let mut pause = Duration::from_micros(500);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(failed("remove", dir)(error)),
        }
        for child in children(dir) {
            remove_tree(&child, deadline)?;
        }
        if Instant::now() >= deadline {
            return Err(CgroupError::Busy(dir.to_owned()));
        }
        // A cgroup stays busy for a moment after its last process has gone.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
