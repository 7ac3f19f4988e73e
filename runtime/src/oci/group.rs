//! The cgroups of one bundle's container, found again by what its state says.

use std::path::PathBuf;
use std::time::Instant;

use super::Failure;
use super::plan::cgroup_place;
use crate::CgroupError;
use crate::cgroup::Cgroups;
use crate::plan::HostView;
use crate::plan::limits::oci::LinuxResources;

/// See the module.
pub(super) struct Group {
    cgroups: Cgroups,
    name: String,
}

impl Group {
    /// Finds the place. Makes nothing.
    pub(super) fn find(cgroups_path: &str, id: &str) -> Result<Group, Failure> {
        let place = cgroup_place(cgroups_path, id)?;
        Ok(Group { cgroups: Cgroups::at(&place.parent)?, name: place.name })
    }

    pub(super) fn host_view(&self) -> HostView {
        self.cgroups.host_view()
    }

    pub(super) fn named_dirs(&self) -> Vec<(String, PathBuf)> {
        self.cgroups.named_dirs(&self.name)
    }

    /// Whether anybody has made it.
    pub(super) fn exists(&self) -> bool {
        self.named_dirs().iter().any(|(_, dir)| dir.exists())
    }

    pub(super) fn create(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.cgroups.create_for_bundle(&self.name, resources)
    }

    pub(super) fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.cgroups.update(&self.name, resources)
    }

    pub(super) fn entrances(&self) -> (Vec<PathBuf>, Option<PathBuf>) {
        self.cgroups.entrances(&self.name)
    }

    pub(super) fn entrances_beside(&self, pid: u32) -> (Vec<PathBuf>, Option<PathBuf>) {
        self.cgroups.entrances_beside(&self.name, pid)
    }

    pub(super) fn oom_killed(&self) -> bool {
        self.cgroups.oom_killed(&self.name)
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        self.cgroups.processes(&self.name)
    }

    pub(super) fn kill_all(&self, deadline: Instant) -> bool {
        self.cgroups.kill_all(&self.name, deadline)
    }

    pub(super) fn freeze(&self) -> Result<(), CgroupError> {
        self.cgroups.freeze(&self.name)
    }

    pub(super) fn thaw(&self) -> Result<(), CgroupError> {
        self.cgroups.thaw(&self.name)
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.cgroups.is_frozen(&self.name)
    }

    pub(super) fn remove(&self, deadline: Instant) -> Result<(), CgroupError> {
        self.cgroups.remove(&self.name, deadline)
    }
}
