//! What daemons leave on a machine, found from the outside and removed by force.
//!
//! Everything of a set of hosts is below one directory or carries an engine's id in its cgroup's name; nothing else is
//! ever touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;

use crate::datadir::EngineIdentity;
use crate::stored::{self, Kind};

/// The kernel takes killed processes and their cgroups away within this time.
const LIMIT: Duration = Duration::from_secs(10);
/// The file whose lock says that a directory has an owner.
pub(super) const LOCK: &str = "lock";
const LOOK: Duration = Duration::from_millis(5);

/// The id of the engine that owns a data directory; nothing before its first start.
pub(super) fn engine_id(data_dir: &Path) -> Option<String> {
    let bytes = stored::read(&data_dir.join("identity/engine"), Kind::Engine).ok()??;
    EngineIdentity::decode(bytes.as_slice()).ok().map(|identity| identity.engine_id)
}

/// Mount points below a directory, innermost first.
pub(super) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|path| path.starts_with(dir))
        .collect();
    // Later mounts may lie over earlier ones.
    found.reverse();
    found
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// The roots of an engine's cgroups that exist, one a hierarchy.
pub(super) fn cgroups(engine_id: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut roots: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            matches!(right.split(' ').next()?, "cgroup" | "cgroup2").then_some(())?;
            Some(Path::new(&unescape(left.split(' ').nth(4)?)).join(format!("shoal-{engine_id}")))
        })
        .filter(|path| path.is_dir())
        .collect();
    roots.sort();
    roots.dedup();
    roots
}

/// A cgroup and all below it, innermost first.
pub(super) fn tree(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        open.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        all.push(dir);
    }
    all.reverse();
    all
}

/// All processes in an engine's cgroups.
pub(super) fn processes(engine_id: &str) -> Vec<i32> {
    processes_in(engine_id, None)
}

/// All processes below one of an engine's cgroups: `task` holds containers, `shims` their shims.
pub(super) fn processes_in(engine_id: &str, part: Option<&str>) -> Vec<i32> {
    let mut pids: Vec<i32> = cgroups(engine_id)
        .iter()
        .map(|root| part.map_or_else(|| root.clone(), |part| root.join(part)))
        .filter(|root| root.is_dir())
        .flat_map(|root| tree(&root))
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
        // A process of another pid namespace reads as 0.
        .filter(|pid| *pid > 1)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn kill_all(pids: &[i32]) {
    for pid in pids {
        // Gone already: that is what was wanted.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// Kills every process in an engine's cgroups.
///
/// # Errors
/// Names those that do not die.
pub(super) fn kill_engine(engine_id: &str) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let pids = processes(engine_id);
        if pids.is_empty() {
            return Ok(());
        }
        kill_all(&pids);
        if Instant::now() > deadline {
            return Err(format!("processes {pids:?} of engine {engine_id} survive SIGKILL"));
        }
        std::thread::sleep(LOOK);
    }
}

/// Removes an engine's cgroups, which hold no process any more.
///
/// # Errors
/// Names the first that stays.
pub(super) fn remove_cgroups(engine_id: &str) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    for dir in cgroups(engine_id).iter().flat_map(|root| tree(root)) {
        loop {
            match fs::remove_dir(&dir) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                // Its last process is still being taken apart.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(format!("cgroup {}: {error}", dir.display())),
            }
        }
    }
    Ok(())
}

/// Daemons, shims and processes on their way to be one that were started with a path below this directory.
pub(super) fn strays(dir: &Path) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && is_stray(*pid, dir))
        .collect()
}

fn is_stray(pid: i32, dir: &Path) -> bool {
    let Ok(bytes) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let words: Vec<String> = bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    let ours = words.get(1).is_some_and(|verb| matches!(verb.as_str(), "daemon" | "__shim" | "__enter"));
    ours && words.iter().skip(2).any(|word| Path::new(word).starts_with(dir))
}

/// Whether nothing of a process runs any more; it may still have to be waited for by its parent.
fn has_ended(pid: i32) -> bool {
    // The command line of a process goes before its last thread does, and that may be about to make something.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    threads == 0 || threads == 1 && stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Kills daemons and shims that belong to a directory.
///
/// # Errors
/// Names those that do not die.
pub(super) fn kill_strays(dir: &Path) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    let mut killed: Vec<i32> = Vec::new();
    loop {
        let pids = strays(dir);
        kill_all(&pids);
        killed.extend(&pids);
        killed.retain(|pid| !has_ended(*pid));
        if pids.is_empty() && killed.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("processes {killed:?} survive SIGKILL"));
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes every mount below a directory off.
///
/// # Errors
/// Names the first that stays.
pub(super) fn unmount_below(dir: &Path) -> Result<(), String> {
    // Several mounts may lie over each other, and a daemon's last thread may add one.
    for _ in 0..16 {
        let mounts = mounts_below(dir);
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts {
            match umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(error) => return Err(format!("mount {}: {error}", mount.display())),
            }
        }
    }
    Err(format!("mounts below {} come again and again", dir.display()))
}

/// Removes a directory with all that is in it; the lock goes last, so that what stays is found again by the next sweep.
///
/// # Errors
/// Names the last thing that stays.
fn remove_files(base: &Path) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT;
    let lock = base.join(LOCK);
    loop {
        let entries = fs::read_dir(base).into_iter().flatten().flatten().map(|e| e.path());
        let removed: io::Result<()> = entries.filter(|path| *path != lock).try_for_each(|path| match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        });
        match removed.and_then(|()| fs::remove_dir_all(base)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !base.exists() => return Ok(()),
            // The last process that held a root is still being taken apart, and the root writes into its directories
            // until then.
            Err(error) if Instant::now() > deadline => return Err(format!("directory {}: {error}", base.display())),
            Err(_) => std::thread::sleep(LOOK),
            Ok(()) => return Ok(()),
        }
    }
}

/// Removes all that a set of hosts below `base` may have left: processes, cgroups, mounts, files. Collects what could
/// not be removed, and goes on.
pub(super) fn remove_all(base: &Path) -> Vec<String> {
    let mut errors = Vec::new();
    let mut note = |result: Result<(), String>| errors.extend(result.err());
    let hosts: Vec<PathBuf> = fs::read_dir(base).into_iter().flatten().flatten().map(|e| e.path()).collect();
    // The daemons first: they would start again what is killed below.
    note(kill_strays(base));
    for engine in hosts.iter().filter_map(|host| engine_id(&host.join("data"))) {
        note(kill_engine(&engine));
        note(remove_cgroups(&engine));
    }
    note(unmount_below(base));
    note(remove_files(base));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\9"), r"/a\9");
    }
}
