//! New limits for what runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::CgroupError;
use super::group::{Above, Group};
use super::host::put;
use super::layout::Hierarchy;
use crate::plan::limits::oci::LinuxResources;
use crate::plan::limits::{Version, Write, writes};

/// How long it may take to move all processes of a container into one more hierarchy.
const GATHER: Duration = Duration::from_secs(5);

impl Group {
    /// Changes limits; what `resources` does not name stays as it is. Device rules are not changed, as with runc.
    ///
    /// When one limit is refused, those before it get back the values that they had, except those that are kept by
    /// device or by interface.
    ///
    /// # Errors
    /// As for the creation, and [`CgroupError::InUse`] for a memory limit that is to be checked first.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let mut resources = resources.clone();
        self.complete(&mut resources);
        let list = writes(&resources, self.host().shape())?;
        self.check_use(&resources)?;
        let homes: Vec<PathBuf> = self.host().homes().map(|hierarchy| self.dir(hierarchy)).collect();
        if let Some(dir) = homes.iter().find(|dir| !dir.is_dir()) {
            return Err(super::failed("update", dir)(std::io::ErrorKind::NotFound.into()));
        }
        let is_new = |hierarchy: &&Hierarchy| {
            hierarchy.version == Version::V1
                && list.iter().any(|w| w.on == Version::V1 && hierarchy.controllers.iter().any(|c| *c == w.controller))
                && !self.dir(hierarchy).is_dir()
        };
        let new: Vec<&Hierarchy> = self.host().hierarchies().iter().filter(is_new).collect();
        self.make(&list, Above::Make)?;
        let old: Vec<(PathBuf, String)> = list.iter().filter_map(|write| self.value_of(write)).collect();
        let outcome = self.write(&list);
        if outcome.is_err() {
            for (path, value) in old.iter().rev() {
                // The order matters for pairs; what one turn refuses, the next takes.
                let _ = put(path, value);
            }
            for (path, value) in &old {
                let _ = put(path, value);
            }
        }
        outcome?;
        let deadline = Instant::now() + GATHER;
        new.into_iter().try_for_each(|hierarchy| self.gather(hierarchy, deadline))
    }

    /// Values that go together with what is there already.
    fn complete(&self, resources: &mut LinuxResources) {
        let number = |controller: &str, v1: &str, v2: &str| -> Option<i64> {
            let (version, file) = match self.host().shape().version(controller) {
                Version::V1 => (Version::V1, v1),
                Version::V2 => (Version::V2, v2),
            };
            let hierarchy = self.host().holding(controller).filter(|hierarchy| hierarchy.version == version)?;
            let text = fs::read_to_string(self.dir(hierarchy).join(file)).ok()?;
            // The first word of `cpu.max`, the only one of the others; `max` is no number.
            text.split_whitespace().next()?.parse().ok()
        };
        if let Some(cpu) = &mut resources.cpu
            && self.host().shape().version("cpu") == Version::V2
            && cpu.period.is_some()
            && cpu.quota.is_none()
        {
            cpu.quota = number("cpu", "cpu.cfs_quota_us", "cpu.max");
        }
        let Some(memory) = &mut resources.memory else { return };
        let set = |value: Option<i64>| value.filter(|value| *value != 0);
        match (set(memory.limit), set(memory.swap)) {
            (None, Some(swap)) if swap > 0 => {
                memory.limit = number("memory", "memory.limit_in_bytes", "memory.max");
            }
            (Some(limit), None) if limit > 0 && self.host().shape().version("memory") == Version::V1 => {
                // v1 bounds memory and swap together, so the swap that was allowed stays when the sum follows.
                let before = number("memory", "memory.limit_in_bytes", "");
                let both = number("memory", "memory.memsw.limit_in_bytes", "");
                if let (Some(before), Some(both)) = (before, both)
                    && both < i64::MAX & !0xffff
                {
                    memory.swap = Some(limit.saturating_add(both.saturating_sub(before).max(0)));
                }
            }
            _ => {}
        }
    }

    fn check_use(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let Some(memory) = resources.memory.as_ref().filter(|memory| memory.check_before_update == Some(true)) else {
            return Ok(());
        };
        let Some(limit) = memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0) else {
            return Ok(());
        };
        let used = self.usage().memory.usage;
        if used > limit { Err(CgroupError::InUse { used, limit }) } else { Ok(()) }
    }

    /// What a file says now, in the form in which it can be written back.
    fn value_of(&self, write: &Write) -> Option<(PathBuf, String)> {
        let path = self.file_of(write)?;
        let text = fs::read_to_string(&path).ok()?;
        let line = text.lines().next()?.trim();
        let by_key = write.value.contains(':') || ["net_prio.ifpriomap", "rdma.max"].contains(&&*write.file);
        let value = if is_named(&path, "memory.oom_control") { line.rsplit(' ').next()? } else { line };
        (!by_key && !value.is_empty()).then(|| (path, value.to_owned()))
    }
}

fn is_named(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|found| found == name)
}
