//! Limits as the files of cgroup v1 and v2.

use super::PlanError;
use crate::config::Resources;

/// One value for one controller's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// The field that asks for it, for messages; empty for what the runtime itself wants.
    pub(crate) field: &'static str,
    pub(crate) controller: &'static str,
    pub(crate) file: &'static str,
    pub(crate) value: String,
    /// Passed over when the kernel does not have the file (swap accounting may be off).
    pub(crate) optional: bool,
}

/// Which generation of files a controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
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
    match (resources.memory_reservation, resources.memory_limit) {
        (Some(reservation), Some(limit)) if reservation > limit => {
            Err(PlanError::invalid("resources.memory_reservation", "is above the limit"))
        }
        _ => Ok(()),
    }
}

/// The writes for these limits, each in the form of its controller's version. `version` says which one a controller
/// has here; a controller that is nowhere gets V2's form, and the writer reports that it is missing.
pub(crate) fn writes(resources: &Resources, version: impl Fn(&str) -> Version) -> Vec<Write> {
    let mut list = Vec::new();
    let mut put = |field, controller, file, value: String, optional| {
        list.push(Write { field, controller, file, value, optional });
    };
    if let Some(nanos) = resources.cpu_limit_nanos {
        let quota = (nanos.saturating_mul(PERIOD_US / 1000) / 1_000_000).max(MIN_QUOTA_US);
        let field = "resources.cpu_limit_nanos";
        match version("cpu") {
            Version::V1 => {
                put(field, "cpu", "cpu.cfs_period_us", PERIOD_US.to_string(), false);
                put(field, "cpu", "cpu.cfs_quota_us", quota.to_string(), false);
            }
            Version::V2 => put(field, "cpu", "cpu.max", format!("{quota} {PERIOD_US}"), false),
        }
    }
    if let Some(nanos) = resources.cpu_reservation_nanos.filter(|nanos| *nanos > 0) {
        let field = "resources.cpu_reservation_nanos";
        // One CPU is 1024 shares, or a weight of 100.
        match version("cpu") {
            Version::V1 => {
                let shares = (i128::from(nanos) * 1024 / 1_000_000_000).clamp(2, 262_144);
                put(field, "cpu", "cpu.shares", shares.to_string(), false);
            }
            Version::V2 => {
                let weight = (i128::from(nanos) * 100 / 1_000_000_000).clamp(1, 10_000);
                put(field, "cpu", "cpu.weight", weight.to_string(), false);
            }
        }
    }
    if let Some(bytes) = resources.memory_limit {
        let field = "resources.memory_limit";
        match version("memory") {
            Version::V1 => {
                put(field, "memory", "memory.limit_in_bytes", bytes.to_string(), false);
                put(field, "memory", "memory.memsw.limit_in_bytes", bytes.to_string(), true);
            }
            Version::V2 => {
                put(field, "memory", "memory.max", bytes.to_string(), false);
                put(field, "memory", "memory.swap.max", "0".to_owned(), true);
            }
        }
    }
    if let Some(bytes) = resources.memory_reservation.filter(|bytes| *bytes > 0) {
        let field = "resources.memory_reservation";
        match version("memory") {
            Version::V1 => put(field, "memory", "memory.soft_limit_in_bytes", bytes.to_string(), false),
            Version::V2 => put(field, "memory", "memory.low", bytes.to_string(), false),
        }
    }
    if let Some(count) = resources.pids_limit {
        put("resources.pids_limit", "pids", "pids.max", count.to_string(), false);
    }
    list
}

/// What a v1 device controller allows, in order: nothing; then making any node (using it is another matter), and
/// Docker's list. v2 has no files for this.
pub(crate) fn device_writes() -> Vec<Write> {
    const ALLOW: [&str; 10] = [
        "c *:* m",
        "b *:* m",
        "c 1:3 rwm",
        "c 1:5 rwm",
        "c 1:7 rwm",
        "c 1:8 rwm",
        "c 1:9 rwm",
        "c 5:0 rwm",
        "c 5:2 rwm",
        "c 136:* rwm",
    ];
    let write =
        |file, value: &str| Write { field: "", controller: "devices", file, value: value.to_owned(), optional: false };
    std::iter::once(write("devices.deny", "a")).chain(ALLOW.iter().map(|value| write("devices.allow", value))).collect()
}
