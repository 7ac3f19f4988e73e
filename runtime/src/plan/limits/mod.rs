//! Limits, from what is asked for to what is written: pure.
//!
//! [`oci`] is the common form, `linux.resources`; a Shoal container's [`Resources`] become one ([`common`]). [`writes`]
//! turns it into values for the files of cgroup v1 and v2, [`devices`] into rules on devices, which v1 takes as lines
//! and v2 as a program ([`ebpf`]).

pub(crate) mod devices;
pub(crate) mod ebpf;
pub(crate) mod oci;
mod writes;

pub(crate) use writes::{Absent, Write, writes};

use super::PlanError;
use crate::config::Resources;
use oci::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

/// Which generation of files a controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// What the writes depend on of the host: which controllers are in v1 hierarchies, and whether there is a v2 one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Shape {
    pub(crate) v1: Vec<String>,
    pub(crate) v2: bool,
}

impl Shape {
    /// A controller is in one of the two only. One that is nowhere gets v2's form, and the writer reports that it is
    /// missing.
    pub(crate) fn version(&self, controller: &str) -> Version {
        if self.v1.iter().any(|name| name == controller) || !self.v2 { Version::V1 } else { Version::V2 }
    }

    /// All in v2.
    pub(crate) fn unified() -> Shape {
        Shape { v1: Vec::new(), v2: true }
    }

    /// All in v1.
    pub(crate) fn split() -> Shape {
        Shape { v1: Vec::new(), v2: false }
    }
}

/// Docker's smallest memory limit.
const MIN_MEMORY: i64 = 6 << 20;
/// The kernel's smallest quota is 1 ms in a period of 100 ms.
const PERIOD_US: i64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;

pub(super) fn validate(resources: &Resources) -> Result<(), PlanError> {
    let at_least = |field, value: Option<i64>, least: i64| match value {
        Some(value) if value < least => {
            Err(PlanError::invalid(field, format!("must be at least {least}, not {value}")))
        }
        _ => Ok(()),
    };
    at_least("resources.cpu_limit_nanos", resources.cpu_limit_nanos, 1_000_000)?;
    at_least("resources.cpu_reservation_nanos", resources.cpu_reservation_nanos, 0)?;
    at_least("resources.memory_limit", resources.memory_limit, MIN_MEMORY)?;
    at_least("resources.memory_reservation", resources.memory_reservation, 0)?;
    at_least("resources.pids_limit", resources.pids_limit, 1)?;
    if let (Some(reservation), Some(limit)) = (resources.memory_reservation, resources.memory_limit)
        && reservation > limit
    {
        return Err(PlanError::invalid("resources.memory_reservation", "is above the limit"));
    }
    if resources.oci != LinuxResources::default() {
        let common = common(resources);
        // What only one generation has is refused by the host that has the other.
        writes(&common, &Shape::unified()).or_else(|_| writes(&common, &Shape::split()))?;
        devices::rules(&common.devices)?;
    }
    Ok(())
}

/// A Shoal container's limits in the common form. Its own fields win over what `oci` says of the same.
pub(crate) fn common(resources: &Resources) -> LinuxResources {
    let mut all = resources.oci.clone();
    if let Some(nanos) = resources.cpu_limit_nanos {
        let quota = (nanos.saturating_mul(PERIOD_US / 1000) / 1_000_000).max(MIN_QUOTA_US);
        let cpu = all.cpu.get_or_insert_default();
        (cpu.quota, cpu.period) = (Some(quota), Some(PERIOD_US.unsigned_abs()));
    }
    if let Some(nanos) = resources.cpu_reservation_nanos.filter(|nanos| *nanos > 0) {
        // One CPU is 1024 shares, or a weight of 100: tasks get processor time in proportion to their reservations in
        // both, which the field's conversion of shares, made for single values, would not keep.
        let part = |of_one: i128, least, most| {
            u64::try_from((i128::from(nanos) * of_one / 1_000_000_000).clamp(least, most)).unwrap_or(u64::MAX)
        };
        let cpu: &mut LinuxCpu = all.cpu.get_or_insert_default();
        (cpu.shares, cpu.weight) = (Some(part(1024, 2, 262_144)), Some(part(100, 1, 10_000)));
    }
    if let Some(bytes) = resources.memory_limit {
        let memory: &mut LinuxMemory = all.memory.get_or_insert_default();
        // Swap gives nothing beyond it, unless somebody asks.
        (memory.limit, memory.swap) = (Some(bytes), memory.swap.or(Some(bytes)));
    }
    if let Some(bytes) = resources.memory_reservation.filter(|bytes| *bytes > 0) {
        all.memory.get_or_insert_default().reservation = Some(bytes);
    }
    if let Some(count) = resources.pids_limit {
        all.pids = Some(LinuxPids { limit: Some(count) });
    }
    all
}

#[cfg(test)]
mod tests;
