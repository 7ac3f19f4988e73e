//! The cgroups of one container: one directory in each hierarchy, at the same place in all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::host::{Host, hand_down, make, make_all, put};
use super::layout::Hierarchy;
use super::usage::{self, Usage};
use super::{CgroupError, devices, failed};
use crate::plan::limits::devices::rules;
use crate::plan::limits::oci::LinuxResources;
use crate::plan::limits::{Absent, Version, Write, writes};
use crate::procfs;

/// A container with its own cgroup mount could make deeper ones; nobody nests hundreds.
const MAX_DEPTH: usize = 64;
/// What somebody has left in a container's place must be gone within this time.
pub(super) const LEFTOVER: Duration = Duration::from_secs(5);

/// What becomes of directories that are missing above a group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Above {
    /// They are made.
    Make,
    /// That is an error of kind `NotFound`.
    Demand,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    host: Host,
    /// Below the root of each hierarchy; never empty.
    place: PathBuf,
}

impl Group {
    pub(crate) fn new(host: Host, place: PathBuf) -> Group {
        Group { host, place }
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(&self.place)
    }

    /// Its directories, in whichever hierarchies it may have them.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.host.hierarchies().iter().map(|hierarchy| self.dir(hierarchy))
    }

    /// Makes it for one container, with limits and device rules. On failure [`Group::remove`] takes back what was made.
    ///
    /// # Errors
    /// [`CgroupError::Taken`] when processes are there already, or it is frozen; nothing was changed then.
    pub(crate) fn create(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let (list, rules) = (writes(resources, self.host.shape())?, rules(&resources.devices)?);
        if !self.make(&list, Above::Make)? {
            if !self.processes().is_empty() || self.is_frozen() {
                return Err(CgroupError::Taken(self.place.clone()));
            }
            // What an earlier container made in it would bind this one, and v1 sets no device rules over children.
            let deadline = Instant::now() + LEFTOVER;
            for dir in self.dirs() {
                children(&dir).into_iter().try_for_each(|child| remove_tree(&child, deadline, 1))?;
            }
        }
        self.write(&list)?;
        devices::guard(&self.host, self, &rules)
    }

    /// Makes its directories, and what these writes need. `false`: something was there already.
    pub(super) fn make(&self, writes: &[Write], above: Above) -> Result<bool, CgroupError> {
        let asks = |hierarchy: &Hierarchy| {
            writes.iter().any(|write| {
                write.on == Version::V1
                    && hierarchy.version == Version::V1
                    && hierarchy.controllers.iter().any(|name| *name == write.controller)
            })
        };
        let mut fresh = true;
        for hierarchy in self.host.hierarchies().iter().filter(|h| self.host.is_home(h) || asks(h)) {
            // A hierarchy that is entered on demand has nothing of the engine's yet.
            fresh &= match above {
                Above::Demand if self.host.is_home(hierarchy) => make(hierarchy, &self.dir(hierarchy))?,
                Above::Demand | Above::Make => make_all(hierarchy, &self.place)?,
            };
        }
        if let Some(hierarchy) = self.host.v2() {
            let mut wanted: Vec<&str> = self.host.usual().collect();
            let asked = writes.iter().filter(|write| write.on == Version::V2).map(|write| &*write.controller);
            wanted.extend(asked.filter(|name| hierarchy.controllers.iter().any(|offered| offered == name)));
            wanted.sort_unstable();
            wanted.dedup();
            if !wanted.is_empty() {
                // What is missing shows when a limit needs it.
                for (controller, reason) in hand_down(&hierarchy.mount, &self.place, &wanted) {
                    let asked = writes.iter().find(|write| write.on == Version::V2 && write.controller == controller);
                    if let Some(write) = asked {
                        return Err(CgroupError::Controller { field: write.field, controller, reason });
                    }
                }
            }
        }
        Ok(fresh)
    }

    /// Sets limits, in order. The directories must have been made for these very writes.
    pub(super) fn write(&self, writes: &[Write]) -> Result<(), CgroupError> {
        let mut rest = writes.iter().peekable();
        while let Some(write) = rest.next() {
            match self.write_one(write) {
                // Two values that bound each other: which one must go first depends on what was there.
                Err(CgroupError::Limit { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EBUSY))
                        && rest.peek().is_some_and(|next| is_pair(write, next)) =>
                {
                    if let Some(next) = rest.next() {
                        self.write_one(next)?;
                    }
                    self.write_one(write)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn write_one(&self, write: &Write) -> Result<(), CgroupError> {
        let Some(path) = self.file_of(write) else {
            return Err(CgroupError::Controller {
                field: write.field,
                controller: write.controller.to_string(),
                reason: "this host does not have".to_owned(),
            });
        };
        match (put(&path, &write.value), &write.absent) {
            (Err(error), Absent::Skip) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            (Err(error), Absent::Instead(file, value)) if error.kind() == io::ErrorKind::NotFound => {
                self.put(write.field, &path.with_file_name(file), value)
            }
            (Err(error), _) => Err(refused(write.field, &path, error)),
            (Ok(()), _) => Ok(()),
        }
    }

    fn put(&self, field: &'static str, path: &Path, value: &str) -> Result<(), CgroupError> {
        put(path, value).map_err(|error| refused(field, path, error))
    }

    /// The file that this write goes to, when its controller is there.
    pub(super) fn file_of(&self, write: &Write) -> Option<PathBuf> {
        let hierarchy = match write.on {
            Version::V1 => self.host.v1(&write.controller),
            Version::V2 => self.host.v2().filter(|hierarchy| {
                write.controller.is_empty() || hierarchy.controllers.iter().any(|name| *name == write.controller)
            }),
        };
        hierarchy.map(|hierarchy| self.dir(hierarchy).join(&*write.file))
    }

    /// Where a process enters: the files of v1 hierarchies to which it writes `0` itself while it has one thread, and
    /// the directory of the v2 cgroup into which it is cloned (or whose `cgroup.procs` it writes to).
    ///
    /// The v1 files are `tasks`, not `cgroup.procs`: a thread that moves itself alone needs not wait until no process
    /// of the whole machine forks or ends, which costs milliseconds.
    pub(crate) fn entrances(&self) -> (Vec<PathBuf>, Option<PathBuf>) {
        let v1 = self.host.hierarchies().iter().filter(|hierarchy| hierarchy.version == Version::V1);
        let tasks = v1.map(|hierarchy| (hierarchy, self.dir(hierarchy))).filter(|(hierarchy, dir)| {
            // One of its homes that is not there is an error to whoever enters: its limits would not hold. blkio, in
            // which earlier releases made nothing, can be missing where a container is older than the daemon.
            let counts_only = hierarchy.controllers.iter().all(|name| name == "blkio");
            (self.host.is_home(hierarchy) && !counts_only) || dir.is_dir()
        });
        let tasks = tasks.map(|(_, dir)| dir.join("tasks")).collect();
        (tasks, self.host.v2().map(|hierarchy| self.dir(hierarchy)))
    }

    /// The same for one more process beside the container's first one, `pid`. With v2, a container that hands controllers
    /// down to cgroups of its own, as one with systemd does, takes no process itself any more: then beside means there.
    pub(crate) fn entrances_beside(&self, pid: u32) -> (Vec<PathBuf>, Option<PathBuf>) {
        let (files, unified) = self.entrances();
        let unified = unified.map(|dir| {
            let list = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
            let own = || below(&self.place, &fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?);
            let deeper = if list.trim().is_empty() { None } else { own() };
            deeper.map_or_else(|| dir.clone(), |deeper| dir.join(deeper))
        });
        (files, unified)
    }

    /// Every process in it, as the reader's pid namespace numbers them.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let (mut pids, _) = self.known_processes();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Those that could be seen, in no order, and whether there may be more: this process is at its own limits.
    fn known_processes(&self) -> (Vec<u32>, bool) {
        let (mut pids, mut all) = (Vec::new(), true);
        for dir in self.dirs() {
            all &= collect_processes(&dir, 0, &mut pids);
        }
        (pids, !all)
    }

    fn is_surely_empty(&self) -> bool {
        self.known_processes() == (Vec::new(), false)
    }

    /// Moves the processes that are in this group into a hierarchy that it has had no place in so far.
    pub(super) fn gather(&self, hierarchy: &Hierarchy, deadline: Instant) -> Result<(), CgroupError> {
        let dir = self.dir(hierarchy);
        let path = dir.join("cgroup.procs");
        loop {
            let mut there = Vec::new();
            collect_processes(&dir, 0, &mut there);
            let missing: Vec<u32> = self.processes().into_iter().filter(|pid| !there.contains(pid)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::Busy(dir));
            }
            for pid in missing {
                match put(&path, &pid.to_string()) {
                    // It has ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other.map_err(failed("enter", &path))?,
                }
            }
        }
    }

    /// Sends SIGKILL to every process in it, also to those that it is just forking, and to those that are frozen.
    pub(crate) fn kill(&self) {
        let freezer = self.host.v1("freezer").filter(|hierarchy| self.host.is_home(hierarchy));
        let state = freezer.map(|hierarchy| self.dir(hierarchy).join("freezer.state"));
        let unified = self.host.v2().map(|hierarchy| self.dir(hierarchy).join("cgroup.kill"));
        if unified.is_none_or(|path| put(&path, "1").is_err()) {
            // Frozen, nothing forks while the list is read.
            if let Some(state) = &state {
                let _ = put(state, "FROZEN");
            }
            for pid in self.processes() {
                if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        // SIGKILL takes effect at the thaw.
        if let Some(state) = &state {
            let _ = put(state, "THAWED");
        }
    }

    /// Kills until nothing is left, at the latest until the deadline. `true` when it is empty.
    pub(crate) fn kill_all(&self, deadline: Instant) -> bool {
        let mut pause = Duration::from_micros(500);
        loop {
            if self.is_surely_empty() {
                return true;
            }
            self.kill();
            if Instant::now() >= deadline {
                return self.is_surely_empty();
            }
            // Exits are asynchronous and cgroup v1 has no event for them.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// How many processes the kernel's OOM killer has killed in it.
    pub(crate) fn oom_kills(&self) -> u64 {
        let Some(hierarchy) = self.host.holding("memory") else { return 0 };
        let file = match hierarchy.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.dir(hierarchy).join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// What it has used.
    pub(crate) fn usage(&self) -> Usage {
        let v1 = |controller: &str, file: &str| {
            let hierarchy = self.host.v1(controller)?;
            fs::read_to_string(self.dir(hierarchy).join(file)).ok()
        };
        let v2 = |controller: &str, file: &str| {
            let offered = |h: &&Hierarchy| controller.is_empty() || h.controllers.iter().any(|c| c == controller);
            let hierarchy = self.host.v2().filter(offered)?;
            fs::read_to_string(self.dir(hierarchy).join(file)).ok()
        };
        usage::read(v1, v2)
    }

    /// Removes its directories where nothing is in them. `true`: none is left.
    pub(crate) fn remove_if_empty(&self) -> bool {
        self.dirs().all(|dir| match fs::remove_dir(dir) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
    }

    /// Removes its directories, with those that its processes made in them. Idempotent; waits while they are in use.
    pub(crate) fn remove(&self, deadline: Instant) -> Result<(), CgroupError> {
        let mut first = None;
        // All of them, also when one resists.
        for dir in self.dirs() {
            if let Err(error) = remove_tree(&dir, deadline, 0) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// Pairs of [`Write`]s whose order matters.
fn is_pair(one: &Write, other: &Write) -> bool {
    matches!(
        (&*one.file, &*other.file),
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") | ("cpu.cfs_period_us", "cpu.cfs_quota_us")
    )
}

fn refused(field: &'static str, path: &Path, error: io::Error) -> CgroupError {
    if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) {
        return CgroupError::File { field, path: path.to_owned() };
    }
    CgroupError::Limit { field, path: path.to_owned(), source: error }
}

/// Where below `place` a process is, by what `/proc/<pid>/cgroup` says of it.
fn below(place: &Path, text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let rest = Path::new(path).strip_prefix(place).ok()?;
    let plain = rest.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    plain.then(|| rest.to_owned())
}

/// Whether all were seen.
fn collect_processes(dir: &Path, depth: usize, pids: &mut Vec<u32>) -> bool {
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) => return !procfs::out_of_resources(&error),
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    let mut all = true;
    for child in children(dir).into_iter().filter(|_| depth < MAX_DEPTH) {
        all &= collect_processes(&child, depth + 1, pids);
    }
    all
}

fn children(dir: &Path) -> Vec<PathBuf> {
    // A directory has a link from each one in it, and two of its own: most have none, and need not be read.
    if fs::metadata(dir).is_ok_and(|found| std::os::unix::fs::MetadataExt::nlink(&found) == 2) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

/// Removes a directory of a hierarchy with all below it.
pub(super) fn remove_tree(dir: &Path, deadline: Instant, depth: usize) -> Result<(), CgroupError> {
    let mut pause = Duration::from_micros(500);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(failed("remove", dir)(error)),
        }
        for child in children(dir).into_iter().filter(|_| depth < MAX_DEPTH) {
            remove_tree(&child, deadline, depth + 1)?;
        }
        if Instant::now() >= deadline {
            return Err(CgroupError::Busy(dir.to_owned()));
        }
        // A cgroup stays busy for a moment after its last process has gone.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_below() {
        let below = |text: &str| below(Path::new("shoal-1/task/a"), text);
        assert_eq!(below("5:cpu:/x\n0::/shoal-1/task/a/init.scope\n"), Some("init.scope".into()));
        assert_eq!(below("0::/shoal-1/task/a\n"), Some("".into()));
        for other in ["0::/shoal-1/task/ab/x\n", "0::/\n", "", "0::/shoal-1/task/a/../b\n", "0::/../shoal-1/task/a/x\n"]
        {
            assert_eq!(below(other), None, "{other}");
        }
    }
}
