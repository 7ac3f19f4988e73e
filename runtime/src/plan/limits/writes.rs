//! The table: which value goes to which file of which generation.

use std::borrow::Cow;

use super::oci::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources, ThrottleDevice};
use super::{Shape, Version};
use crate::plan::PlanError;

/// One value for one controller's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// The property that asks for it, for messages.
    pub(crate) field: &'static str,
    pub(crate) on: Version,
    /// Empty for the files that every v2 cgroup has.
    pub(crate) controller: Cow<'static, str>,
    pub(crate) file: Cow<'static, str>,
    pub(crate) value: String,
    pub(crate) absent: Absent,
}

/// What becomes of a write when the kernel does not have the file, though it has the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The limit cannot be had: said to whoever asked.
    Refuse,
    /// There is nothing to limit.
    Skip,
    /// Another scheduler's file does it.
    Instead(&'static str, String),
}

/// Values and names that are longer than this are nobody's limits.
const MAX_VALUE: usize = 4096;
/// Devices, page sizes, files: nobody has more.
const MAX_ENTRIES: usize = 1024;

/// The writes for these limits, in their order. Devices are not among them.
pub(crate) fn writes(resources: &LinuxResources, shape: &Shape) -> Result<Vec<Write>, PlanError> {
    let mut table = Table { list: Vec::new() };
    if let Some(cpu) = &resources.cpu {
        table.cpu(cpu, shape)?;
    }
    if let Some(memory) = &resources.memory {
        table.memory(memory, shape.version("memory"))?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        table.put("pids.limit", shape.version("pids"), "pids", "pids.max", value);
    }
    if let Some(io) = &resources.block_io {
        table.block_io(io, shape.version("blkio"))?;
    }
    table.hugepages(resources, shape.version("hugetlb"))?;
    if let Some(network) = &resources.network {
        table.network(network, shape)?;
    }
    table.rdma(resources, shape.version("rdma"))?;
    table.unified(resources, shape.v2)?;
    Ok(table.list)
}

struct Table {
    list: Vec<Write>,
}

impl Table {
    fn put(
        &mut self,
        field: &'static str,
        on: Version,
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) {
        self.list.push(Write {
            field,
            on,
            controller: controller.into(),
            file: file.into(),
            value: value.to_string(),
            absent: Absent::Refuse,
        });
    }

    /// What the last write does where its file is missing.
    fn or(&mut self, absent: Absent) {
        if let Some(last) = self.list.last_mut() {
            last.absent = absent;
        }
    }

    fn cpu(&mut self, cpu: &LinuxCpu, shape: &Shape) -> Result<(), PlanError> {
        let on = shape.version("cpu");
        let positive = |value: Option<u64>| value.filter(|value| *value > 0);
        let (quota, period) = (cpu.quota.filter(|quota| *quota != 0), positive(cpu.period));
        if on == Version::V1 {
            if let Some(period) = period {
                self.put("cpu.period", on, "cpu", "cpu.cfs_period_us", period);
            }
            if let Some(quota) = quota {
                self.put("cpu.quota", on, "cpu", "cpu.cfs_quota_us", quota.max(-1));
            }
            if let Some(burst) = cpu.burst {
                self.put("cpu.burst", on, "cpu", "cpu.cfs_burst_us", burst);
            }
            if let Some(shares) = positive(cpu.shares) {
                self.put("cpu.shares", on, "cpu", "cpu.shares", shares);
            }
            if let Some(period) = positive(cpu.realtime_period) {
                self.put("cpu.realtimePeriod", on, "cpu", "cpu.rt_period_us", period);
            }
            if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
                self.put("cpu.realtimeRuntime", on, "cpu", "cpu.rt_runtime_us", runtime);
            }
        } else {
            match (quota, period) {
                (None, None) => {}
                (quota, period) => {
                    let quota = match quota {
                        Some(quota) if quota > 0 => quota.to_string(),
                        _ => "max".to_owned(),
                    };
                    let value = period.map_or_else(|| quota.clone(), |period| format!("{quota} {period}"));
                    self.put("cpu.quota", on, "cpu", "cpu.max", value);
                }
            }
            if let Some(burst) = cpu.burst {
                self.put("cpu.burst", on, "cpu", "cpu.max.burst", burst);
            }
            if let Some(weight) = cpu.weight.or_else(|| positive(cpu.shares).map(weight_of_shares)) {
                self.put("cpu.shares", on, "cpu", "cpu.weight", weight);
            }
            if positive(cpu.realtime_period).is_some() || cpu.realtime_runtime.is_some_and(|runtime| runtime != 0) {
                return Err(PlanError::Unsupported { field: "cpu.realtimeRuntime on cgroup v2" });
            }
        }
        if let Some(idle) = cpu.idle {
            self.put("cpu.idle", on, "cpu", "cpu.idle", idle);
        }
        let on = shape.version("cpuset");
        for (field, file, list) in [("cpu.cpus", "cpuset.cpus", &cpu.cpus), ("cpu.mems", "cpuset.mems", &cpu.mems)] {
            let Some(list) = list.as_deref().map(str::trim).filter(|list| !list.is_empty()) else { continue };
            if !is_list(list) {
                return Err(PlanError::invalid(field, format!("{:?} is no list of numbers", shorten(list))));
            }
            self.put(field, on, "cpuset", file, list);
        }
        Ok(())
    }

    fn memory(&mut self, memory: &LinuxMemory, on: Version) -> Result<(), PlanError> {
        let set = |value: Option<i64>| value.filter(|value| *value != 0);
        for (field, value) in [("memory.kernel", memory.kernel), ("memory.kernelTCP", memory.kernel_tcp)] {
            if value.is_some_and(|value| value > 0) {
                return Err(PlanError::Unsupported { field });
            }
        }
        if memory.use_hierarchy == Some(false) {
            return Err(PlanError::Unsupported { field: "memory.useHierarchy=false" });
        }
        for (field, value) in
            [("memory.limit", memory.limit), ("memory.swap", memory.swap), ("memory.reservation", memory.reservation)]
        {
            if value.is_some_and(|value| value < -1) {
                return Err(PlanError::invalid(field, "must be a number of bytes, or -1"));
            }
        }
        let (limit, mut swap) = (set(memory.limit), set(memory.swap));
        if limit == Some(-1) && swap.is_none() {
            // Without a bound on memory, an older one on both together would still be one.
            swap = Some(-1);
        }
        if let Some(total) = swap.filter(|total| *total > 0) {
            match limit {
                Some(limit) if limit > 0 && limit <= total => {}
                Some(limit) if limit > 0 => {
                    return Err(PlanError::invalid("memory.swap", "is less than the memory limit that it includes"));
                }
                _ => return Err(PlanError::invalid("memory.swap", "needs a memory limit, which it includes")),
            }
        }
        let bytes = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
        // What asks for no swap at all has it where the kernel does not know of swap.
        let no_swap = swap.is_some() && swap == limit;
        if on == Version::V1 {
            if let Some(limit) = limit {
                self.put("memory.limit", on, "memory", "memory.limit_in_bytes", limit);
            }
            if let Some(total) = swap {
                self.put("memory.swap", on, "memory", "memory.memsw.limit_in_bytes", total);
            }
        } else {
            if let Some(limit) = limit {
                self.put("memory.limit", on, "memory", "memory.max", bytes(limit));
            }
            if let Some(total) = swap {
                let beyond = if total < 0 { total } else { total.saturating_sub(limit.unwrap_or(0)) };
                self.put("memory.swap", on, "memory", "memory.swap.max", bytes(beyond));
            }
        }
        if no_swap {
            self.or(Absent::Skip);
        }
        if let Some(reservation) = set(memory.reservation) {
            match on {
                Version::V1 => {
                    self.put("memory.reservation", on, "memory", "memory.soft_limit_in_bytes", reservation);
                }
                Version::V2 => self.put("memory.reservation", on, "memory", "memory.low", bytes(reservation)),
            }
        }
        match (memory.swappiness, on) {
            (None, _) => {}
            (Some(_), Version::V2) => {
                return Err(PlanError::Unsupported { field: "memory.swappiness on cgroup v2" });
            }
            (Some(value), Version::V1) if value <= 100 => {
                self.put("memory.swappiness", on, "memory", "memory.swappiness", value);
            }
            (Some(_), Version::V1) => return Err(PlanError::invalid("memory.swappiness", "must be 0 to 100")),
        }
        match (memory.disable_oom_killer, on) {
            (Some(true), Version::V2) => {
                return Err(PlanError::Unsupported { field: "memory.disableOOMKiller on cgroup v2" });
            }
            (Some(disable), Version::V1) => {
                self.put("memory.disableOOMKiller", on, "memory", "memory.oom_control", u8::from(disable));
            }
            _ => {}
        }
        Ok(())
    }

    fn block_io(&mut self, io: &LinuxBlockIo, on: Version) -> Result<(), PlanError> {
        let leaf = io.leaf_weight.or_else(|| io.weight_device.iter().find_map(|device| device.leaf_weight));
        if leaf.is_some_and(|weight| weight > 0) {
            return Err(PlanError::Unsupported { field: "blockIO.leafWeight" });
        }
        let controller = if on == Version::V1 { "blkio" } else { "io" };
        let weight = |field, weight: Option<u16>| match weight.filter(|weight| *weight > 0) {
            Some(weight) if (10..=1000).contains(&weight) => Ok(Some(weight)),
            Some(_) => Err(PlanError::invalid(field, "must be 10 to 1000")),
            None => Ok(None),
        };
        if let Some(weight) = weight("blockIO.weight", io.weight)? {
            let (file, other, value) = match on {
                Version::V1 => ("blkio.bfq.weight", "blkio.weight", weight.to_string()),
                Version::V2 => ("io.bfq.weight", "io.weight", io_weight(weight).to_string()),
            };
            self.put("blockIO.weight", on, controller, file, weight);
            self.or(Absent::Instead(other, value));
        }
        bounded("blockIO.weightDevice", io.weight_device.len())?;
        for device in &io.weight_device {
            let place = place("blockIO.weightDevice", device.major, device.minor)?;
            let Some(weight) = weight("blockIO.weightDevice", device.weight)? else { continue };
            let (file, other, value) = match on {
                Version::V1 => ("blkio.bfq.weight_device", "blkio.weight_device", weight),
                Version::V2 => ("io.bfq.weight", "io.weight", io_weight(weight)),
            };
            self.put("blockIO.weightDevice", on, controller, file, format!("{place} {weight}"));
            self.or(Absent::Instead(other, format!("{place} {value}")));
        }
        let lists: [(&'static str, &[ThrottleDevice], &'static str, &str); 4] = [
            ("blockIO.throttleReadBpsDevice", &io.throttle_read_bps_device, "blkio.throttle.read_bps_device", "rbps"),
            (
                "blockIO.throttleWriteBpsDevice",
                &io.throttle_write_bps_device,
                "blkio.throttle.write_bps_device",
                "wbps",
            ),
            (
                "blockIO.throttleReadIOPSDevice",
                &io.throttle_read_iops_device,
                "blkio.throttle.read_iops_device",
                "riops",
            ),
            (
                "blockIO.throttleWriteIOPSDevice",
                &io.throttle_write_iops_device,
                "blkio.throttle.write_iops_device",
                "wiops",
            ),
        ];
        for (field, list, file, key) in lists {
            bounded(field, list.len())?;
            for device in list {
                let place = place(field, device.major, device.minor)?;
                let rate = device.rate;
                match on {
                    Version::V1 => self.put(field, on, controller, file, format!("{place} {rate}")),
                    Version::V2 if rate == 0 => {
                        self.put(field, on, controller, "io.max", format!("{place} {key}=max"));
                    }
                    Version::V2 => self.put(field, on, controller, "io.max", format!("{place} {key}={rate}")),
                }
            }
        }
        Ok(())
    }

    fn hugepages(&mut self, resources: &LinuxResources, on: Version) -> Result<(), PlanError> {
        const FIELD: &str = "hugepageLimits";
        bounded(FIELD, resources.hugepage_limits.len())?;
        let limits = if on == Version::V1 { "limit_in_bytes" } else { "max" };
        for entry in &resources.hugepage_limits {
            let size = &entry.page_size;
            let is_size = size.len() <= 16
                && ["KB", "MB", "GB"].iter().any(|unit| {
                    size.strip_suffix(unit).is_some_and(|number| {
                        !number.is_empty() && !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit())
                    })
                });
            if !is_size {
                return Err(PlanError::invalid(FIELD, format!("{:?} is no page size like 2MB", shorten(size))));
            }
            self.put(FIELD, on, "hugetlb", format!("hugetlb.{size}.{limits}"), entry.limit);
            // Reservations count too, where the kernel counts them apart.
            self.put(FIELD, on, "hugetlb", format!("hugetlb.{size}.rsvd.{limits}"), entry.limit);
            self.or(Absent::Skip);
        }
        Ok(())
    }

    fn network(&mut self, network: &LinuxNetwork, shape: &Shape) -> Result<(), PlanError> {
        if let Some(class) = network.class_id {
            if shape.version("net_cls") == Version::V2 {
                return Err(PlanError::Unsupported { field: "network.classID on cgroup v2" });
            }
            self.put("network.classID", Version::V1, "net_cls", "net_cls.classid", class);
        }
        bounded("network.priorities", network.priorities.len())?;
        for entry in &network.priorities {
            if shape.version("net_prio") == Version::V2 {
                return Err(PlanError::Unsupported { field: "network.priorities on cgroup v2" });
            }
            let name = word("network.priorities", &entry.name)?;
            let value = format!("{name} {}", entry.priority);
            self.put("network.priorities", Version::V1, "net_prio", "net_prio.ifpriomap", value);
        }
        Ok(())
    }

    fn rdma(&mut self, resources: &LinuxResources, on: Version) -> Result<(), PlanError> {
        bounded("rdma", resources.rdma.len())?;
        for (device, limit) in &resources.rdma {
            let mut value = word("rdma", device)?.to_owned();
            for (key, count) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
                if let Some(count) = count {
                    value.push_str(&format!(" {key}={count}"));
                }
            }
            if value.len() > device.len() {
                self.put("rdma", on, "rdma", "rdma.max", value);
            }
        }
        Ok(())
    }

    fn unified(&mut self, resources: &LinuxResources, has_v2: bool) -> Result<(), PlanError> {
        const FIELD: &str = "unified";
        bounded(FIELD, resources.unified.len())?;
        if !resources.unified.is_empty() && !has_v2 {
            return Err(PlanError::Unsupported { field: "unified on cgroup v1" });
        }
        for (file, value) in &resources.unified {
            let is_name = file.len() <= 255
                && file.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
                && !file.contains("..");
            let controller = file.split('.').next().unwrap_or_default();
            if !is_name || controller.is_empty() || controller.len() == file.len() {
                let reason = format!("{:?} is not the name of a controller's file", shorten(file));
                return Err(PlanError::invalid(FIELD, reason));
            }
            // Which processes are in it, and whether they live, is the runtime's to say.
            let core = controller == "cgroup";
            if core && !file.starts_with("cgroup.max.") {
                return Err(PlanError::invalid(FIELD, format!("{file} is not a limit")));
            }
            if value.len() > MAX_VALUE || value.contains('\0') {
                return Err(PlanError::invalid(FIELD, format!("the value of {file} is too long, or has a NUL byte")));
            }
            // The kernel takes one line at a time.
            for line in value.lines().filter(|line| !line.is_empty()) {
                self.list.push(Write {
                    field: FIELD,
                    on: Version::V2,
                    controller: if core { "".into() } else { controller.to_owned().into() },
                    file: file.clone().into(),
                    value: line.to_owned(),
                    absent: Absent::Refuse,
                });
            }
        }
        Ok(())
    }
}

fn bounded(field: &'static str, count: usize) -> Result<(), PlanError> {
    if count > MAX_ENTRIES {
        return Err(PlanError::invalid(field, format!("more than {MAX_ENTRIES} entries")));
    }
    Ok(())
}

/// `major:minor`
fn place(field: &'static str, major: i64, minor: i64) -> Result<String, PlanError> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(PlanError::invalid(field, format!("{major}:{minor} is no device"))),
    }
}

/// A name that cannot be taken for anything else in a line of the kernel's.
fn word<'a>(field: &'static str, name: &'a str) -> Result<&'a str, PlanError> {
    let ok = !name.is_empty() && name.len() <= 255 && name.bytes().all(|b| b.is_ascii_graphic());
    if ok { Ok(name) } else { Err(PlanError::invalid(field, format!("{:?} is no name", shorten(name)))) }
}

fn is_list(list: &str) -> bool {
    list.len() <= MAX_VALUE && list.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
}

/// A user's text, for a message.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// cgroup v1's shares (2 to 262144, usually 1024) as v2's weight (1 to 10000, usually 100).
///
/// A curve through these three points, 10^((l² + 125 l) / 612 − 7/34) with l = log₂(shares): what runc, crun and
/// Kubernetes have agreed on, because the older straight line gave the usual 1024 a weight of 39.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            // Below 2^18, so that the number is exact.
            let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
            let weight = 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0);
            // Rounding errors must not lift a whole number to the next one.
            let weight = (weight - 1e-9).ceil().clamp(1.0, 10_000.0);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let weight = weight as u64;
            weight
        }
    }
}

/// blkio's weight (10 to 1000) as io's (1 to 10000), the line that the field uses.
fn io_weight(weight: u16) -> u16 {
    let weight = u32::from(weight.clamp(10, 1000));
    u16::try_from(1 + (weight - 10) * 9999 / 990).unwrap_or(10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_of_the_field() {
        let weights = [1, 2, 3, 100, 512, 1024, 2048, 10_000, 262_143, 262_144, u64::MAX].map(weight_of_shares);
        assert_eq!(weights, [1, 1, 2, 17, 59, 100, 174, 627, 10_000, 10_000, 10_000]);
        assert!((2..262_144u64).step_by(7).all(|n| weight_of_shares(n) <= weight_of_shares(n + 7)));
        assert_eq!([10, 100, 500, 1000].map(io_weight), [1, 910, 4950, 10_000]);
    }
}
