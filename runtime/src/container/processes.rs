//! What runs in a container and what it uses, for `top` and `stats`.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::{PidfdFlags, pidfd_open};

use super::runtime::blocking;
use super::{Container, Inner, Runtime, Status};
use crate::RuntimeError;
use crate::cgroup::Usage;
use crate::procfs;
use crate::sys;

/// A process of a container, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// Its parent's; a further process's and the first one's are the shim's.
    pub parent: u32,
    /// Number of the effective user.
    pub uid: u32,
    /// `R`, `S`, `D`, `Z`, `T`, ...
    pub state: char,
    /// Number of its terminal's device; 0 for none.
    pub tty: i32,
    /// −20 to 19.
    pub nice: i32,
    /// Its threads.
    pub threads: u32,
    /// Time on processors.
    pub cpu: Duration,
    /// When it started.
    pub started_at: SystemTime,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Bytes in memory.
    pub resident_bytes: u64,
    /// Its own name for itself, at most 15 bytes.
    pub name: String,
    /// Its arguments, divided by blanks; its name in brackets when it has none.
    pub command: String,
}

/// What a container uses at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// When this was.
    pub at: SystemTime,
    /// Of processors, memory, processes and disks.
    pub usage: Usage,
    /// Of networks, by the name of the interface inside; not the loopback.
    pub networks: BTreeMap<String, NetworkUsage>,
    /// Time of all the host's processors since its boot, idle or not, in nanoseconds.
    pub host_cpu: u64,
    /// The host's processors.
    pub online_cpus: u32,
    /// Bytes of the host's memory.
    pub host_memory: u64,
}

/// Traffic of one interface since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkUsage {
    /// Bytes that came in.
    pub rx_bytes: u64,
    /// Packets that came in.
    pub rx_packets: u64,
    /// Of these, broken ones.
    pub rx_errors: u64,
    /// Packets that were not taken in.
    pub rx_dropped: u64,
    /// Bytes that went out.
    pub tx_bytes: u64,
    /// Packets that went out.
    pub tx_packets: u64,
    /// Of these, failed ones.
    pub tx_errors: u64,
    /// Packets that were not sent.
    pub tx_dropped: u64,
}

/// The kernel's USER_HZ.
const TICKS_A_SECOND: u64 = 100;
/// How often the processes of a container are looked through for those that are to be killed.
const MAX_LOOKS: usize = 8;
/// More processes than this are not listed.
const MAX_PROCESSES: usize = 10_000;
/// Bytes of a process's arguments that are shown.
const MAX_COMMAND: usize = 4096;

impl Runtime {
    /// The processes of a container that runs, by number.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it does not run.
    pub async fn processes(&self, id: &str) -> Result<Vec<Process>, RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        blocking(move || inner.list_processes(&container)).await
    }

    /// Kills the processes of a container that have this variable (`NAME=value`) in the environment that they were
    /// started with. They are gone, or about to be, when this is answered.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it does not run.
    pub async fn kill_marked(&self, id: &str, variable: &str) -> Result<(), RuntimeError> {
        let (inner, container, variable) = (Arc::clone(&self.inner), self.inner.get(id)?, variable.to_owned());
        blocking(move || inner.kill_marked(&container, variable.as_bytes())).await
    }

    /// What a container uses now.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it has exited.
    pub async fn stats(&self, id: &str) -> Result<Stats, RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        blocking(move || inner.stats(&container)).await
    }
}

/// Whether the process has the variable, and was alive to be killed.
fn kill_if_marked(pid: u32, variable: &[u8]) -> bool {
    // Held first: if the number is another's by the time it is read, the signal reaches nobody.
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let Some(held) = raw.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return false };
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let marked = environment.split(|byte| *byte == 0).any(|entry| entry == variable);
    marked && sys::send_signal(held.as_fd(), libc::SIGKILL).is_ok()
}

impl Inner {
    fn kill_marked(&self, container: &Container, variable: &[u8]) -> Result<(), RuntimeError> {
        if container.status() != Status::Running {
            return Err(container.wrong_state());
        }
        // What one of them starts while we look is found by looking again.
        for _ in 0..MAX_LOOKS {
            let marked = self.cgroups.processes(&container.id).into_iter().filter(|pid| kill_if_marked(*pid, variable));
            if marked.count() == 0 {
                break;
            }
        }
        Ok(())
    }

    fn list_processes(&self, container: &Container) -> Result<Vec<Process>, RuntimeError> {
        if container.status() != Status::Running {
            return Err(container.wrong_state());
        }
        let boot = boot_time();
        let pids = self.cgroups.processes(&container.id).into_iter().take(MAX_PROCESSES);
        // One that ends while we look is not listed.
        Ok(pids.filter_map(|pid| process(pid, boot)).collect())
    }

    fn stats(&self, container: &Container) -> Result<Stats, RuntimeError> {
        let view = container.view.borrow().clone();
        if view.exit.is_some() {
            return Err(container.wrong_state());
        }
        let held = procfs::open_verified(view.pid, view.pid_start);
        let counters = fs::read_to_string(format!("/proc/{}/net/dev", view.pid)).unwrap_or_default();
        let networks = match held {
            Ok(Some(held)) if procfs::still_there(&held) => networks(&counters),
            _ => BTreeMap::new(),
        };
        let (host_cpu, online_cpus) = host_cpu(&fs::read_to_string("/proc/stat").unwrap_or_default());
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(Stats {
            at: SystemTime::now(),
            usage: self.cgroups.usage(&container.id),
            networks,
            host_cpu,
            online_cpus,
            host_memory: total.unwrap_or(0) << 10,
        })
    }
}

fn boot_time() -> SystemTime {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn process(pid: u32, boot: SystemTime) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    parse_process(pid, &String::from_utf8_lossy(&stat), &status, &arguments, boot)
}

fn parse_process(pid: u32, stat: &str, status: &str, arguments: &[u8], boot: SystemTime) -> Option<Process> {
    // The name is in parentheses and may hold anything, also parentheses.
    let (before, rest) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of them is field 3 in proc(5).
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at: usize| field(at).and_then(|text| text.parse::<u64>().ok());
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok());
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let ticks = |count: u64| Duration::from_millis(count.saturating_mul(1000 / TICKS_A_SECOND));
    let shown = arguments.get(..arguments.len().min(MAX_COMMAND)).unwrap_or_default();
    let shown: Vec<u8> = shown.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    let command = String::from_utf8_lossy(shown.trim_ascii_end()).into_owned();
    Some(Process {
        pid,
        parent: u32::try_from(number(4)?).ok()?,
        uid: uid.unwrap_or(0),
        state: field(3)?.chars().next()?,
        tty: field(7)?.parse().ok()?,
        nice: field(19)?.parse().ok()?,
        threads: u32::try_from(number(20)?).ok()?,
        cpu: ticks(number(14)?.saturating_add(number(15)?)),
        started_at: boot + ticks(number(22)?),
        virtual_bytes: number(23)?,
        resident_bytes: resident.unwrap_or(0) << 10,
        command: if command.is_empty() { format!("[{name}]") } else { command },
        name,
    })
}

/// The kernel's table, `eth0: 1 2 3 ...`: eight numbers in, eight out.
fn networks(text: &str) -> BTreeMap<String, NetworkUsage> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let &[rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
            numbers.as_slice()
        else {
            return None;
        };
        let usage =
            NetworkUsage { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped };
        (name != "lo").then(|| (name.to_owned(), usage))
    };
    text.lines().filter_map(line).collect()
}

/// Time of all processors in nanoseconds, as Docker adds it up (guests are in `user` already), and their number.
fn host_cpu(stat: &str) -> (u64, u32) {
    let sum = |line: &str| line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>();
    let total = stat.lines().find(|line| line.starts_with("cpu ")).map_or(0, sum);
    let is_cpu =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let count = stat.lines().filter(is_cpu).count();
    (total.saturating_mul(1_000_000_000 / TICKS_A_SECOND), u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_call_itself_anything() {
        let boot = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let stat = "7 (a) R 1 (b)) S 5 7 7 34816 7 0 0 0 0 0 150 50 0 0 20 -5 3 0 200 4096 2 0";
        let found =
            parse_process(7, stat, "Name:\tx\nUid:\t0\t101\t0\t0\nVmRSS:\t      12 kB\n", b"sleep\0a b\0", boot)
                .unwrap();
        assert_eq!((found.name.as_str(), found.command.as_str()), ("a) R 1 (b)", "sleep a b"));
        assert_eq!((found.parent, found.uid, found.state, found.tty), (5, 101, 'S', 34816));
        assert_eq!((found.nice, found.threads, found.cpu), (-5, 3, Duration::from_secs(2)));
        assert_eq!(found.started_at, boot + Duration::from_secs(2));
        assert_eq!((found.virtual_bytes, found.resident_bytes), (4096, 12 << 10));
        let thread = parse_process(7, stat, "", b"", boot).unwrap();
        assert_eq!(thread.command, "[a) R 1 (b)]");
        assert!(parse_process(7, "7 (x) S", "", b"", boot).is_none());
        assert!(parse_process(7, "", "", b"", boot).is_none());
    }

    #[test]
    fn tables_of_the_kernel() {
        let text = "Inter-|   Receive\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            eth0:10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let found = networks(text);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!((found["eth0"].rx_dropped, found["eth0"].tx_bytes), (4, 50));
        let stat = "cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 1 1\ncpu1 1 1\nctxt 5\n";
        assert_eq!(host_cpu(stat), (360_000_000, 2));
        assert_eq!(host_cpu(""), (0, 0));
    }
}
