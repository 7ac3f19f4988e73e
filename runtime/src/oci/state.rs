//! Where the runtime's word on a container is kept: a directory for each below `--root`, with a state file, and until
//! the start a socket at which the container's first process waits.
//!
//! The state file is replaced whole, so a reader needs no lock. What changes a container holds its directory's lock.
//! A command that was killed half-way leaves a directory that `delete` can remove, whatever is in it: the file is
//! there, with the place of the cgroups, before anything else is.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::Failure;
use super::group::Group;
use super::plan::valid_id;
use crate::procfs;
use crate::remove::remove_tree;
use crate::stored::{self, Durability, StoredBundle};

/// The state file's name.
const STATE: &str = "state";
/// The socket's name.
pub(super) const GATE: &str = "start";
/// How long a command waits for another one that works on the same container.
const PATIENCE: Duration = Duration::from_secs(10);

/// One container's directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dir: PathBuf,
    pub(super) stored: StoredBundle,
    /// This very process holds its lock.
    pub(super) held: bool,
}

/// A directory that nobody else changes as long as this lives.
#[derive(Debug)]
pub(super) struct Lock {
    handle: File,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    /// Not of the specification: its processes are frozen.
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::Storage { operation, path, source }
}

/// Makes the directory of a new container and locks it.
pub(super) fn reserve(root: &Path, id: &str) -> Result<(PathBuf, Lock), Failure> {
    valid_id(id)?;
    let dir = root.join(id);
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    match builder.create(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            builder.recursive(true).create(root).map_err(failed("create", root))?;
            builder.recursive(false).create(&dir)
        }
        other => other,
    }
    .map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::Exists(id.to_owned()),
        _ => failed("create", &dir)(error),
    })?;
    let lock = lock(&dir, id)?;
    Ok((dir, lock))
}

/// Waits for a container's lock.
fn lock(dir: &Path, id: &str) -> Result<Lock, Failure> {
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::NotFound(id.to_owned()),
        _ => failed("open", dir)(error),
    };
    let handle = File::open(dir).map_err(absent)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                // The kernel tells nobody of a lock that was let go, but those who wait in it without an end.
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(rustix::io::Errno::AGAIN) => return Err(Failure::Busy(id.to_owned())),
            Err(errno) => return Err(failed("lock", dir)(errno.into())),
        }
    }
    // Another one may have removed it, and yet another made it anew, while this one waited.
    let (held, there) = (handle.metadata().map_err(failed("stat", dir))?, fs::metadata(dir).map_err(absent)?);
    if (held.dev(), held.ino()) == (there.dev(), there.ino()) {
        Ok(Lock { handle })
    } else {
        Err(Failure::NotFound(id.to_owned()))
    }
}

impl Lock {
    /// A path of a file in the directory that is short enough for a socket's address.
    pub(super) fn short_path(&self, name: &str) -> PathBuf {
        short_path(&self.handle, name)
    }
}

fn short_path(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Reads a container's state without a lock.
pub(super) fn find(root: &Path, id: &str) -> Result<Entry, Failure> {
    valid_id(id)?;
    let dir = root.join(id);
    match stored::read::<StoredBundle>(&dir, STATE)? {
        Some(stored) => Ok(Entry { dir, stored, held: false }),
        None => Err(Failure::NotFound(id.to_owned())),
    }
}

/// Finds a container for a change.
pub(super) fn take(root: &Path, id: &str) -> Result<(Entry, Lock), Failure> {
    valid_id(id)?;
    let lock = lock(&root.join(id), id)?;
    Ok((Entry { held: true, ..find(root, id)? }, lock))
}

/// Locks a directory in which nothing readable may be: what a creation leaves that was killed right at its beginning,
/// or a removal right at its end.
pub(super) fn take_remains(root: &Path, id: &str) -> Result<(PathBuf, Lock), Failure> {
    valid_id(id)?;
    let dir = root.join(id);
    let lock = lock(&dir, id)?;
    Ok((dir, lock))
}

/// The ids of all containers.
pub(super) fn all(root: &Path) -> Result<Vec<String>, Failure> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("read", root))?,
    };
    let mut ids: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    ids.sort();
    Ok(ids)
}

/// Removes a container's directory. The state goes last.
pub(super) fn remove(dir: &Path) -> Result<(), Failure> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(dir.join(GATE))).map_err(failed("remove", dir))?;
    gone(fs::remove_file(dir.join(STATE))).map_err(failed("remove", dir))?;
    match gone(fs::remove_dir(dir)) {
        // A write that was cut.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => remove_tree(dir),
        other => other,
    }
    .map_err(failed("remove", dir))
}

impl Entry {
    /// Replaces the state file.
    pub(super) fn write(&self) -> Result<(), Failure> {
        Ok(stored::write(&self.dir, STATE, &self.stored, Durability::ThisBoot)?)
    }

    /// Its first process, when that is still the one that was meant and has not ended.
    pub(super) fn process(&self) -> Option<OwnedFd> {
        let pidfd = procfs::open_verified(self.stored.pid, self.stored.start_ticks).ok()??;
        (!procfs::is_zombie(self.stored.pid)).then_some(pidfd)
    }

    /// Where it stands.
    pub(super) fn status(&self) -> Status {
        if self.stored.pid == 0 {
            // Whoever makes it holds the lock.
            let lock = |dir: File| rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
            let free = self.held || File::open(&self.dir).is_ok_and(lock);
            return if free { Status::Stopped } else { Status::Creating };
        }
        match self.process() {
            None => Status::Stopped,
            Some(_) if self.knock().is_ok() => Status::Created,
            Some(_) => Status::Running,
        }
    }

    /// Connects to the container's first process, which listens until its exec.
    pub(super) fn knock(&self) -> io::Result<UnixStream> {
        let dir = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&self.dir)?;
        UnixStream::connect(short_path(&dir, GATE))
    }

    /// Its cgroups.
    pub(super) fn group(&self) -> Result<Group, Failure> {
        Group::find(&self.stored.cgroups_path, &self.stored.id)
    }

    /// The state as the specification has it, as one JSON object without its end and without the pid: what comes
    /// before the pid's number, and what comes after it.
    pub(super) fn json(&self, status: &str) -> (String, String) {
        let text = |value: &str| serde_json::Value::from(value).to_string();
        let stored = &self.stored;
        let head = format!(
            "{{\"ociVersion\":{},\"id\":{},\"status\":{},\"pid\":",
            text(super::VERSION_MAX),
            text(&stored.id),
            text(status)
        );
        let annotations = serde_json::json!(stored.annotations);
        let rootfs = text(&stored.rootfs);
        let created = text(&super::rfc3339(stored.created_at_nanos));
        let tail = format!(
            ",\"bundle\":{},\"annotations\":{annotations},\"rootfs\":{rootfs},\"created\":{created}}}",
            text(&stored.bundle)
        );
        (head, tail)
    }

    /// The whole object.
    pub(super) fn whole_json(&self, status: Status) -> String {
        let (head, tail) = self.json(status.name());
        let pid = if status == Status::Stopped { 0 } else { self.stored.pid };
        format!("{head}{pid}{tail}")
    }
}

/// A file of a bundle, at most so many bytes of it.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    // NONBLOCK: somebody may have put a fifo here.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed("open", path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Failure::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}
