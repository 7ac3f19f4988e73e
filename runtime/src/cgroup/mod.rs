//! Cgroups on v1, v2 and hybrid hosts: made, limited, frozen, counted, emptied and removed through their files.
//!
//! [`Host`] is what this host has mounted, never assumed. [`Group`] is one container's directories, one a hierarchy;
//! what limits mean in which generation is decided by `plan::limits`. [`Cgroups`] is one engine's tree:
//! `/shoal-<engine id>/{task/<container>,shims}` (not `tasks`: v1 has a file of that name) below the root of every
//! hierarchy in use, never below the daemon's own cgroup, so that restarting its unit kills nothing. Inner cgroups hold
//! no process, as v2 demands. The daemon makes and removes; the shim and the container's first process only move
//! themselves in. For the OCI command line it is any place that a bundle names ([`Cgroups::at`]).
//!
//! The tree stands beside systemd's slices, also where systemd has the root (docs/cgroups.md says why that holds).

mod devices;
mod freeze;
mod group;
mod host;
mod layout;
mod update;
mod usage;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tracing::warn;

pub(crate) use group::Group;
pub(crate) use host::Host;
pub use layout::CgroupLayout;
pub use usage::{BlockUsage, CpuUsage, MemoryUsage, PidsUsage, Usage};

use crate::config::Resources;
use crate::plan::limits::oci::LinuxResources;
use crate::plan::limits::{Version, common, writes};
use crate::plan::{HostView, PlanError, limits};
use group::Above;
use host::put;

/// A failed operation on cgroups.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The host has no cgroup filesystem mounted.
    #[error("no cgroup hierarchy is mounted (`ip netns exec` hides the host's: `nsenter --net=` does not)")]
    None,
    /// A limit needs a controller that this host does not offer, or has not handed down.
    #[error("{field} needs the cgroup controller {controller:?}, which {reason}")]
    Controller {
        /// The property that asks for it.
        field: &'static str,
        /// What is missing.
        controller: String,
        /// Who does not have it, and why.
        reason: String,
    },
    /// A limit needs a file that this kernel's controller does not have.
    #[error("{field} needs {path}, which this kernel does not have")]
    File {
        /// The property that asks for it.
        field: &'static str,
        /// What is missing.
        path: PathBuf,
    },
    /// The kernel refuses a limit.
    #[error("{field} is refused by {path}")]
    Limit {
        /// The property that asks for it.
        field: &'static str,
        /// Where it was written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The limits cannot be, here or anywhere. Retrying does not help.
    #[error(transparent)]
    Refused(#[from] PlanError),
    /// The kernel does not take the program that guards devices on cgroup v2.
    #[error("guard devices by eBPF")]
    Devices(#[source] io::Error),
    /// A memory limit that was to be checked first.
    #[error("{used} bytes of memory are in use, more than the new limit of {limit}")]
    InUse {
        /// Bytes.
        used: u64,
        /// Bytes.
        limit: u64,
    },
    /// The place is somebody else's: processes are there, or it is frozen.
    #[error("cgroup {0} is in use already")]
    Taken(PathBuf),
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

/// The cgroups of one engine, or any place below which containers have theirs.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    host: Host,
    /// `shoal-<engine id>`; nothing below it but what is an engine's.
    engine: PathBuf,
    /// The parent of the containers' cgroups.
    tasks: PathBuf,
    /// The usual device program: one for all containers. `None`: the kernel does not take it.
    program: Arc<OnceLock<Option<OwnedFd>>>,
}

/// The parent of the containers' cgroups.
const TASKS: &str = "task";
/// The cgroup of the shims.
const SHIMS: &str = "shims";

impl Cgroups {
    /// Finds the host's hierarchies. Makes nothing.
    pub(crate) fn detect(engine_id: &str) -> Result<Cgroups, CgroupError> {
        let engine = PathBuf::from(format!("shoal-{engine_id}"));
        Ok(Cgroups { host: Host::detect()?, tasks: engine.join(TASKS), engine, program: Arc::default() })
    }

    /// The same for containers whose cgroups are directly below `parent`, a relative path from the root of each
    /// hierarchy. What is missing of it is made with the first container, and stays.
    pub(crate) fn at(parent: &Path) -> Result<Cgroups, CgroupError> {
        let (engine, tasks) = (parent.to_owned(), parent.to_owned());
        Ok(Cgroups { host: Host::detect()?, engine, tasks, program: Arc::default() })
    }

    pub(crate) fn layout(&self) -> CgroupLayout {
        self.host.layout()
    }

    /// What the planner needs to know.
    pub(crate) fn host_view(&self) -> HostView {
        self.host.view(self.host.v1("devices").is_some() || self.program().is_some())
    }

    /// The same for a container that has been created: whether its devices are guarded is looked up, not believed.
    pub(crate) fn view_of(&self, id: &str) -> HostView {
        self.host.view(devices::are_guarded(&self.host, &self.group(id)))
    }

    fn program(&self) -> Option<&OwnedFd> {
        let load =
            || match limits::devices::rules(&[]).map_err(io::Error::other).and_then(|rules| devices::load(&rules)) {
                Ok(program) => Some(program),
                Err(error) => {
                    warn!(%error, "no eBPF program can guard devices: containers get no CAP_MKNOD and no device nodes");
                    None
                }
            };
        self.program.get_or_init(load).as_ref()
    }

    fn group(&self, id: &str) -> Group {
        Group::new(self.host.clone(), self.tasks.join(id))
    }

    /// A container's directories, each with the name of its hierarchy; no name for the only one of a v2 host.
    pub(crate) fn named_dirs(&self, id: &str) -> Vec<(String, PathBuf)> {
        let group = self.group(id);
        let named = self.host.homes().filter_map(|hierarchy| {
            let name = match self.layout() {
                CgroupLayout::V2 => String::new(),
                _ => hierarchy.mount.file_name()?.to_str()?.to_owned(),
            };
            Some((name, group.dir(hierarchy)))
        });
        named.collect()
    }

    /// Makes the engine's own cgroups. Idempotent.
    pub(crate) fn ensure(&self) -> Result<(), CgroupError> {
        for hierarchy in self.host.homes() {
            host::make_all(hierarchy, &self.engine)?;
            yield_to_others(&hierarchy.mount.join(&self.engine));
            host::make_all(hierarchy, &self.tasks)?;
            host::bequeath_cpuset(hierarchy, &hierarchy.mount.join(&self.tasks));
            host::make_all(hierarchy, &self.engine.join(SHIMS))?;
            if hierarchy.version == Version::V2 {
                let usual: Vec<&str> = self.host.usual().collect();
                // What cannot be handed down shows when a limit needs it.
                host::hand_down(&hierarchy.mount, &self.tasks.join("any"), &usual);
            }
        }
        Ok(())
    }

    /// Makes a container's cgroups and sets its limits. On failure [`Cgroups::remove`] takes back what was made.
    pub(crate) fn create(&self, id: &str, resources: &Resources) -> Result<(), CgroupError> {
        let (group, common) = (self.group(id), common(resources));
        let list = writes(&common, self.host.shape())?;
        // The engine's own are there since the start, unless somebody cleaned up (a node that left, an administrator).
        let made = match group.make(&list, Above::Demand) {
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.ensure()?;
                // What the first try has made is as good as what this one makes.
                group.make(&list, Above::Make).map(|_| true)
            }
            other => other,
        };
        if !made? {
            // Nobody else has names below ours: it is what is left of a container that is no more.
            let deadline = Instant::now() + group::LEFTOVER;
            if !group.kill_all(deadline) {
                return Err(CgroupError::Taken(self.tasks.join(id)));
            }
            group.remove(deadline)?;
            group.make(&list, Above::Make)?;
        }
        group.write(&list)?;
        let is_v2 = self.host.v1("devices").is_none();
        match (common.devices.is_empty() && is_v2, self.program()) {
            (true, Some(program)) => devices::attach(&self.host, &group, program.as_fd()),
            // Then the planner withholds what would need a guard.
            (true, None) => Ok(()),
            (false, _) => devices::guard(&self.host, &group, &limits::devices::rules(&common.devices)?),
        }
    }

    /// Makes the cgroups of a container that is not an engine's: see [`Group::create`].
    pub(crate) fn create_for_bundle(&self, name: &str, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.group(name).create(resources)
    }

    /// See [`Group::update`].
    pub(crate) fn update(&self, id: &str, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.group(id).update(resources)
    }

    /// See [`Group::entrances`].
    pub(crate) fn entrances(&self, id: &str) -> (Vec<PathBuf>, Option<PathBuf>) {
        self.group(id).entrances()
    }

    /// See [`Group::entrances_beside`].
    pub(crate) fn entrances_beside(&self, id: &str, pid: u32) -> (Vec<PathBuf>, Option<PathBuf>) {
        self.group(id).entrances_beside(pid)
    }

    /// The calling process, which must have one thread, goes on among the shims, as far as cgroup v2 is concerned: as a
    /// new process, with another pid. To be called before anything hangs on the pid, children above all.
    ///
    /// The old process ends with the new one, or when a byte is written to what is returned: then the new one is an
    /// orphan, whom the first process of the machine reaps.
    pub(crate) fn go_on_among_shims(&self) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(dir) = self.shims().entrances().1 else { return Ok(None) };
        let cgroup = fs::File::open(&dir).map_err(failed("enter", &dir))?;
        // A daemon that is the first process itself knows only of children of its own, and would leave a zombie.
        let has_heir = rustix::process::getppid().is_some_and(|parent| !parent.is_init());
        if has_heir && let Ok(leave) = crate::sys::continue_in_cgroup(cgroup.as_fd()) {
            return Ok(Some(leave));
        }
        let path = dir.join("cgroup.procs");
        put(&path, "0").map_err(failed("enter", &path))?;
        Ok(None)
    }

    /// Moves the calling process, which must have one thread, among the shims of cgroup v1.
    pub(crate) fn move_among_shims(&self) -> Result<(), CgroupError> {
        for path in self.shims().entrances().0 {
            put(&path, "0").map_err(failed("enter", &path))?;
        }
        Ok(())
    }

    fn shims(&self) -> Group {
        Group::new(self.host.clone(), self.engine.join(SHIMS))
    }

    /// Whether the kernel's OOM killer has killed inside of this container's cgroup.
    pub(crate) fn oom_killed(&self, id: &str) -> bool {
        self.group(id).oom_kills() > 0
    }

    /// What a container has used.
    pub(crate) fn usage(&self, id: &str) -> Usage {
        self.group(id).usage()
    }

    /// See [`Group::freeze`].
    pub(crate) fn freeze(&self, id: &str) -> Result<(), CgroupError> {
        self.group(id).freeze()
    }

    /// See [`Group::thaw`].
    pub(crate) fn thaw(&self, id: &str) -> Result<(), CgroupError> {
        self.group(id).thaw()
    }

    /// See [`Group::is_frozen`].
    pub(crate) fn is_frozen(&self, id: &str) -> bool {
        self.group(id).is_frozen()
    }

    /// See [`Group::processes`].
    pub(crate) fn processes(&self, id: &str) -> Vec<u32> {
        self.group(id).processes()
    }

    /// See [`Group::kill`].
    pub(crate) fn kill(&self, id: &str) {
        self.group(id).kill();
    }

    /// See [`Group::kill_all`].
    pub(crate) fn kill_all(&self, id: &str, deadline: Instant) -> bool {
        self.group(id).kill_all(deadline)
    }

    /// See [`Group::remove_if_empty`].
    pub(crate) fn remove_if_empty(&self, id: &str) -> bool {
        self.group(id).remove_if_empty()
    }

    /// See [`Group::remove`].
    pub(crate) fn remove(&self, id: &str, deadline: Instant) -> Result<(), CgroupError> {
        self.group(id).remove(deadline)
    }

    /// Removes the engine's cgroups, when no container and no shim is left.
    pub(crate) fn remove_engine(&self, deadline: Instant) -> Result<(), CgroupError> {
        for hierarchy in self.host.hierarchies() {
            group::remove_tree(&hierarchy.mount.join(&self.engine), deadline, 0)?;
        }
        Ok(())
    }

    /// The containers that have cgroups.
    pub(crate) fn containers(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for hierarchy in self.host.hierarchies() {
            let Ok(entries) = fs::read_dir(hierarchy.mount.join(&self.tasks)) else { continue };
            let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            ids.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
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
            let _ = put(&path, ours);
        }
    }
}

#[cfg(test)]
mod tests;
