//! The hierarchies of this host, and what it takes to make a directory in one of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout::{self, CgroupLayout, Hierarchy};
use super::{CgroupError, failed};
use crate::plan::limits::{Shape, Version};
use crate::plan::{CgroupView, HostView};

/// What was found mounted. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    found: Arc<Found>,
}

#[derive(Debug)]
struct Found {
    layout: CgroupLayout,
    hierarchies: Vec<Hierarchy>,
    shape: Shape,
}

/// The v2 controllers that every container is given, for its statistics and its usual limits. The others are handed
/// down when a limit asks for them.
const USUAL: [&str; 4] = ["cpu", "io", "memory", "pids"];

impl Host {
    /// Finds the host's hierarchies. Makes nothing.
    pub(crate) fn detect() -> Result<Host, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read_to_string(path).map_err(failed("read", path))?;
        let offered = |mount: &PathBuf| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let (layout, hierarchies) = layout::parse(&mountinfo, offered)?;
        let of = |version| hierarchies.iter().filter(move |hierarchy: &&Hierarchy| hierarchy.version == version);
        let shape = Shape {
            v1: of(Version::V1).flat_map(|hierarchy| hierarchy.controllers.iter().cloned()).collect(),
            v2: of(Version::V2).next().is_some(),
        };
        Ok(Host { found: Arc::new(Found { layout, hierarchies, shape }) })
    }

    pub(crate) fn layout(&self) -> CgroupLayout {
        self.found.layout
    }

    /// What the writes depend on.
    pub(crate) fn shape(&self) -> &Shape {
        &self.found.shape
    }

    pub(super) fn hierarchies(&self) -> &[Hierarchy] {
        &self.found.hierarchies
    }

    /// The hierarchies that every container has a place in. A container is put into the others when a limit asks for
    /// them: each one costs it a directory and a move.
    pub(super) fn homes(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies().iter().filter(|hierarchy| self.is_home(hierarchy))
    }

    pub(super) fn is_home(&self, hierarchy: &Hierarchy) -> bool {
        hierarchy.version == Version::V2
            || hierarchy.controllers.iter().any(|controller| match controller.as_str() {
                // v2 freezes as well, and better: what is frozen there can still be killed.
                "freezer" => !self.found.shape.v2,
                // systemd decides by its own what belongs to a unit and dies with it. Without the first four, programs
                // that look for their limits (Java's) do not believe that they have any.
                "cpu" | "cpuacct" | "cpuset" | "memory" | "pids" | "devices" | "blkio" | "name=systemd" => true,
                _ => false,
            })
    }

    pub(super) fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        let has = |h: &&Hierarchy| h.version == Version::V1 && h.controllers.iter().any(|c| c == controller);
        self.hierarchies().iter().find(has)
    }

    pub(super) fn v2(&self) -> Option<&Hierarchy> {
        self.hierarchies().iter().find(|hierarchy| hierarchy.version == Version::V2)
    }

    /// Where this controller is: v1 first, since a controller is in one of the two only.
    pub(super) fn holding(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1(controller)
            .or_else(|| self.v2().filter(|hierarchy| hierarchy.controllers.iter().any(|c| c == controller)))
    }

    /// What the planner needs to know; whether devices are guarded is another question.
    pub(super) fn view(&self, device_control: bool) -> HostView {
        let cgroups = match self.found.layout {
            CgroupLayout::V2 => CgroupView::Unified,
            CgroupLayout::V1 | CgroupLayout::Hybrid => {
                let named = self.homes().filter_map(|hierarchy| {
                    let name = hierarchy.mount.file_name()?.to_str()?.to_owned();
                    Some(match hierarchy.version {
                        Version::V1 => (name, "cgroup", hierarchy.controllers.clone()),
                        Version::V2 => (name, "cgroup2", Vec::new()),
                    })
                });
                CgroupView::Split(named.collect())
            }
        };
        HostView { device_control, cgroups, machine: crate::machine::detect() }
    }

    /// The v2 controllers of [`USUAL`] that are offered here.
    pub(super) fn usual(&self) -> impl Iterator<Item = &'static str> {
        let offered = self.v2().map_or(&[][..], |hierarchy| hierarchy.controllers.as_slice());
        USUAL.into_iter().filter(|usual| offered.iter().any(|offered| offered == usual))
    }
}

/// Makes one directory. `false`: it was there.
pub(super) fn make(hierarchy: &Hierarchy, dir: &Path) -> Result<bool, CgroupError> {
    let fresh = match fs::create_dir(dir) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => false,
        Err(error) => return Err(failed("create", dir)(error)),
    };
    if hierarchy.version == Version::V1 && hierarchy.controllers.iter().any(|name| name == "cpuset") {
        inherit_cpuset(dir)?;
    }
    Ok(fresh)
}

/// Makes a directory with all that are missing above it. `false`: it was there.
pub(super) fn make_all(hierarchy: &Hierarchy, place: &Path) -> Result<bool, CgroupError> {
    let dir = hierarchy.mount.join(place);
    match make(hierarchy, &dir) {
        Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut walked = hierarchy.mount.clone();
    for name in place.parent().into_iter().flat_map(Path::components) {
        walked.push(name);
        make(hierarchy, &walked)?;
        bequeath_cpuset(hierarchy, &walked);
    }
    make(hierarchy, &dir)
}

/// Lets the kernel copy a v1 cpuset into those that are made in it. [`make`] copies what it did not.
pub(super) fn bequeath_cpuset(hierarchy: &Hierarchy, dir: &Path) {
    if hierarchy.version == Version::V1 && hierarchy.controllers.iter().any(|name| name == "cpuset") {
        let _ = put(&dir.join("cgroup.clone_children"), "1");
    }
}

/// A fresh v1 cpuset has no CPU and no memory, and takes no process until it has.
fn inherit_cpuset(dir: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (dir.join(file), dir.parent().unwrap_or(dir).join(file));
        if fs::read_to_string(&own).map_err(failed("read", &own))?.trim().is_empty() {
            let value = fs::read_to_string(&parent).map_err(failed("read", &parent))?;
            put(&own, value.trim()).map_err(failed("write", &own))?;
        }
    }
    Ok(())
}

/// Writes a value to a file of the kernel's, which takes it in one piece. A file that is missing stays missing.
pub(super) fn put(path: &Path, value: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    rustix::io::write(&file, value.as_bytes()).map(drop).map_err(io::Error::from)
}

/// Lets the cgroup at `place` have these v2 controllers: each cgroup above it must hand them down. Returns those that
/// it does not have then, with the reason.
pub(super) fn hand_down(mount: &Path, place: &Path, wanted: &[&str]) -> Vec<(String, String)> {
    let has = |dir: &Path, file: &str, name: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.split_whitespace().any(|word| word == name)
    };
    let own = fs::read_to_string(mount.join(place).join("cgroup.controllers")).unwrap_or_default();
    let mut missing: Vec<(String, String)> = Vec::new();
    for name in wanted.iter().filter(|name| own.split_whitespace().all(|own| own != **name)) {
        let mut walked = mount.to_owned();
        let mut steps = place.components();
        let reason = loop {
            let Some(step) = steps.next() else { break None };
            if !has(&walked, "cgroup.controllers", name) {
                break Some(format!("{} does not have", walked.display()));
            }
            if !has(&walked, "cgroup.subtree_control", name) {
                match put(&walked.join("cgroup.subtree_control"), &format!("+{name}")) {
                    Ok(()) => {}
                    // The rule of v2: who has processes of its own divides nothing among children.
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        break Some(format!("{} cannot hand down: it has processes of its own", walked.display()));
                    }
                    Err(error) => break Some(format!("{} cannot hand down: {error}", walked.display())),
                }
            }
            walked.push(step);
        };
        missing.extend(reason.map(|reason| ((*name).to_owned(), reason)));
    }
    missing
}
