//! What a container has used, as its cgroups count it: read from its files, parsed here. What a host does not count is
//! zero or absent, and so is everything after the cgroup has been removed.

use std::collections::BTreeMap;

/// What a container has used of its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processors.
    pub cpu: CpuUsage,
    /// Memory.
    pub memory: MemoryUsage,
    /// Processes and threads.
    pub pids: PidsUsage,
    /// Block devices.
    pub block: Vec<BlockUsage>,
}

/// Time on processors, in nanoseconds since the container was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuUsage {
    /// All of it.
    pub total: u64,
    /// In programs.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// By processor; cgroup v1 only.
    pub per_cpu: Vec<u64>,
    /// Periods in which a limit was in force.
    pub periods: u64,
    /// Of these, in which it was reached.
    pub throttled_periods: u64,
    /// Time that was lost by it.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryUsage {
    /// Now, with the page cache.
    pub usage: u64,
    /// The most that it ever was, where the kernel remembers it.
    pub max_usage: Option<u64>,
    /// `None`: as much as there is.
    pub limit: Option<u64>,
    /// How often the limit was met (v1), or met in vain (v2): Docker's `failcnt`.
    pub failures: Option<u64>,
    /// The kernel's `memory.stat`, with the names of its generation.
    pub stat: BTreeMap<String, u64>,
}

impl MemoryUsage {
    /// What is in use, as `docker stats` shows it: without the part of the page cache that nobody has touched lately.
    pub fn used(&self) -> u64 {
        let cache = self.stat.get("total_inactive_file").or_else(|| self.stat.get("inactive_file"));
        match cache {
            Some(cache) if *cache < self.usage => self.usage - cache,
            _ => self.usage,
        }
    }
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PidsUsage {
    /// Now.
    pub current: u64,
    /// `None`: no limit.
    pub limit: Option<u64>,
}

/// Bytes to or from one block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockUsage {
    /// Number of the device.
    pub major: u64,
    /// Number of the device.
    pub minor: u64,
    /// `read` or `write`.
    pub operation: &'static str,
    /// How many.
    pub bytes: u64,
}

/// v1 counts these in ticks; the kernel tells user space about 100 of them in a second, on every machine.
const TICK_NANOS: u64 = 10_000_000;
/// v1 writes the largest number of whole pages for "no limit".
const NO_LIMIT: u64 = i64::MAX as u64 & !0xffff;

/// A reader of a controller's file; `None`: the file is not there.
pub(super) trait Files: Fn(&str, &str) -> Option<String> {}

impl<T: Fn(&str, &str) -> Option<String>> Files for T {}

fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

fn number(text: Option<String>) -> Option<u64> {
    text?.trim().parse().ok()
}

fn limit(text: Option<String>) -> Option<u64> {
    number(text).filter(|limit| *limit < NO_LIMIT)
}

/// Everything, of v1 where its files are there, else of v2.
pub(super) fn read(v1: impl Files, v2: impl Files) -> Usage {
    Usage { cpu: cpu(&v1, &v2), memory: memory(&v1, &v2), pids: pids(&v1, &v2), block: block(&v1, &v2) }
}

fn cpu(v1: &impl Files, v2: &impl Files) -> CpuUsage {
    let mut usage = CpuUsage::default();
    // Every v2 cgroup counts this, also on hybrid hosts.
    let unified = v2("", "cpu.stat");
    for (key, value) in pairs(unified.as_deref().unwrap_or_default()) {
        match key {
            "usage_usec" => usage.total = value.saturating_mul(1000),
            "user_usec" => usage.user = value.saturating_mul(1000),
            "system_usec" => usage.system = value.saturating_mul(1000),
            "nr_periods" => usage.periods = value,
            "nr_throttled" => usage.throttled_periods = value,
            "throttled_usec" => usage.throttled = value.saturating_mul(1000),
            _ => {}
        }
    }
    if let Some(total) = number(v1("cpuacct", "cpuacct.usage")) {
        usage.total = total;
        // In ticks, where v2 tells microseconds.
        for (key, ticks) in pairs(&v1("cpuacct", "cpuacct.stat").unwrap_or_default()) {
            match key {
                "user" if unified.is_none() => usage.user = ticks.saturating_mul(TICK_NANOS),
                "system" if unified.is_none() => usage.system = ticks.saturating_mul(TICK_NANOS),
                _ => {}
            }
        }
        let each = v1("cpuacct", "cpuacct.usage_percpu").unwrap_or_default();
        usage.per_cpu = each.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    }
    for (key, value) in pairs(&v1("cpu", "cpu.stat").unwrap_or_default()) {
        match key {
            "nr_periods" => usage.periods = value,
            "nr_throttled" => usage.throttled_periods = value,
            "throttled_time" => usage.throttled = value,
            _ => {}
        }
    }
    usage
}

fn memory(v1: &impl Files, v2: &impl Files) -> MemoryUsage {
    let table = |text: Option<String>| {
        pairs(&text.unwrap_or_default()).map(|(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>()
    };
    if let Some(usage) = number(v1("memory", "memory.usage_in_bytes")) {
        return MemoryUsage {
            usage,
            max_usage: number(v1("memory", "memory.max_usage_in_bytes")),
            limit: limit(v1("memory", "memory.limit_in_bytes")),
            failures: number(v1("memory", "memory.failcnt")),
            stat: table(v1("memory", "memory.stat")),
        };
    }
    MemoryUsage {
        usage: number(v2("memory", "memory.current")).unwrap_or(0),
        max_usage: number(v2("memory", "memory.peak")),
        limit: limit(v2("memory", "memory.max")),
        failures: table(v2("memory", "memory.events")).get("oom").copied(),
        stat: table(v2("memory", "memory.stat")),
    }
}

fn pids(v1: &impl Files, v2: &impl Files) -> PidsUsage {
    let of = |files: &dyn Fn(&str, &str) -> Option<String>| {
        let current = number(files("pids", "pids.current"))?;
        Some(PidsUsage { current, limit: limit(files("pids", "pids.max")) })
    };
    of(v1).or_else(|| of(v2)).unwrap_or_default()
}

fn block(v1: &impl Files, v2: &impl Files) -> Vec<BlockUsage> {
    // `8:0 Read 4096`
    let of_v1 = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let operation = match words.next()? {
            "Read" => "read",
            "Write" => "write",
            _ => return None,
        };
        let bytes = words.next()?.parse().ok()?;
        Some(BlockUsage { major: major.parse().ok()?, minor: minor.parse().ok()?, operation, bytes })
    };
    if let Some(text) = v1("blkio", "blkio.throttle.io_service_bytes_recursive") {
        return text.lines().filter_map(of_v1).collect();
    }
    // `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`
    let mut list = Vec::new();
    for line in v2("io", "io.stat").unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for word in words {
            let (operation, bytes) = match word.split_once('=') {
                Some(("rbytes", bytes)) => ("read", bytes),
                Some(("wbytes", bytes)) => ("write", bytes),
                _ => continue,
            };
            if let Ok(bytes) = bytes.parse() {
                list.push(BlockUsage { major, minor, operation, bytes });
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &'static [(&'static str, &'static str)]) -> impl Files {
        move |_: &str, file: &str| list.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned())
    }

    fn bytes(operation: &'static str, bytes: u64) -> BlockUsage {
        BlockUsage { major: 8, minor: 0, operation, bytes }
    }

    #[test]
    fn version_1() {
        let usage = read(
            files(&[
                ("cpuacct.usage", "5000000123\n"),
                ("cpuacct.stat", "user 300\nsystem 200\n"),
                ("cpuacct.usage_percpu", "3000000000 2000000123 \n"),
                ("cpu.stat", "nr_periods 7\nnr_throttled 3\nthrottled_time 42\n"),
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.max_usage_in_bytes", "2000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.failcnt", "4\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 400\n"),
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
                (
                    "blkio.throttle.io_service_bytes_recursive",
                    "8:0 Read 10\n8:0 Write 20\n8:0 Sync 5\n8:0 Total 30\nTotal 30\n",
                ),
            ]),
            files(&[]),
        );
        let cpu = usage.cpu;
        assert_eq!((cpu.total, cpu.user, cpu.system), (5_000_000_123, 3_000_000_000, 2_000_000_000));
        assert_eq!((cpu.per_cpu.len(), cpu.periods, cpu.throttled_periods, cpu.throttled), (2, 7, 3, 42));
        let memory = usage.memory;
        assert_eq!((memory.usage, memory.used(), memory.max_usage, memory.limit), (1000, 600, Some(2000), None));
        assert_eq!(memory.failures, Some(4));
        assert_eq!(usage.pids, PidsUsage { current: 3, limit: None });
        assert_eq!(usage.block, [bytes("read", 10), bytes("write", 20)]);
    }

    #[test]
    fn version_2() {
        let usage = read(
            files(&[]),
            files(&[
                (
                    "cpu.stat",
                    "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 3\nthrottled_usec 9\n",
                ),
                ("memory.current", "1000\n"),
                ("memory.max", "4096\n"),
                ("memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 1\n"),
                ("memory.stat", "anon 500\ninactive_file 2000\n"),
                ("pids.current", "3\n"),
                ("pids.max", "20\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:16 \nnonsense\n1:x rbytes=1\n"),
            ]),
        );
        let cpu = usage.cpu;
        assert_eq!((cpu.total, cpu.user, cpu.system, cpu.throttled), (5000, 3000, 2000, 9000));
        let memory = usage.memory;
        // More cache than use cannot be: the two numbers are read one after the other.
        assert_eq!((memory.used(), memory.limit, memory.max_usage), (1000, Some(4096), None));
        assert_eq!(memory.failures, Some(3));
        assert_eq!(usage.pids, PidsUsage { current: 3, limit: Some(20) });
        assert_eq!(usage.block, [bytes("read", 10), bytes("write", 20)]);
    }

    #[test]
    fn nothing_is_there() {
        assert_eq!(read(files(&[]), files(&[])), Usage::default());
    }
}
