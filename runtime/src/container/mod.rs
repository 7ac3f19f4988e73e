//! The daemon's side of containers: [`Runtime`] and what it knows of each one.
//!
//! The truth is in the shims and in the files beside them; what is kept here is a view of it, rebuilt by
//! [`Runtime::open`]. A monitor task a container follows its shim. All blocking work runs in `spawn_blocking`, and each
//! operation finishes there even when its caller has gone.

mod adopt;
mod archive;
mod attach;
mod client;
mod create;
mod delete;
mod durable;
mod exec;
mod inspect;
mod label;
mod monitor;
mod mounts;
mod notes;
mod pause;
mod processes;
mod renew;
mod runtime;
mod stream;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub use archive::{ArchivePieces, Change, ChangeKind, CopyError, PathStat, PutOptions};
pub use attach::OutputPiece;
pub(crate) use client::receive_terminal;
pub use exec::{Exec, ExecConfig, ExecExit, ExecHandle, ExecIo, ExecOutput};
pub use inspect::ContainerDetail;
pub use mounts::MountPoint;
pub use processes::{NetworkUsage, Process, Stats};
pub use runtime::{Created, Runtime};
pub use stream::StdStream;

use crate::cgroup::Cgroups;
use crate::config::RuntimeConfig;
use crate::events::{EventKind, Events};
use crate::signal::Signal;
use crate::stored::{StoredExit, time_from};
use crate::volume::{PrivateFiles, Volumes};
use crate::{RuntimeError, plan};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus {
    /// The exit code, or 128 + the signal that killed it.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The kernel's OOM killer killed in the container's cgroup.
    pub oom_killed: bool,
    /// When its shim reaped it.
    pub finished_at: SystemTime,
    /// The shim died first, so the truth is not known; the code is 137.
    pub shim_lost: bool,
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Everything is made; the command waits for the start.
    Created,
    /// The command was executed.
    Running,
    /// It has ended.
    Exited(ExitStatus),
}

/// One entry of [`Runtime::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// As chosen by the caller.
    pub id: String,
    /// As given by the caller.
    pub labels: BTreeMap<String, String>,
    /// Its first process, as the host numbers it, while it lives.
    pub pid: Option<u32>,
    /// Where it stands.
    pub status: Status,
    /// It runs, and is not given the processor.
    pub paused: bool,
    /// When `create` was called.
    pub created_at: SystemTime,
    /// When its command was executed.
    pub started_at: Option<SystemTime>,
}

/// What this daemon knows of one container.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    dir: PathBuf,
    /// Not in the view: what happens is told while that is changed.
    labels: Mutex<Arc<BTreeMap<String, String>>>,
    created_at: SystemTime,
    stop_signal: Signal,
    /// Whether its log is kept where it can be read.
    keeps_log: bool,
    /// Held by a copy into it when it has ended.
    copying: Mutex<()>,
    view: watch::Sender<View>,
}

/// The changing part.
#[derive(Debug, Clone)]
struct View {
    pid: u32,
    pid_start: u64,
    started_at: Option<SystemTime>,
    paused: bool,
    exit: Option<ExitStatus>,
}

impl Container {
    fn status(&self) -> Status {
        let view = self.view.borrow();
        match (&view.exit, view.started_at) {
            (Some(exit), _) => Status::Exited(exit.clone()),
            (None, Some(_)) => Status::Running,
            (None, None) => Status::Created,
        }
    }

    fn exit(&self) -> Option<ExitStatus> {
        self.view.borrow().exit.clone()
    }

    fn state(&self) -> ContainerState {
        let view = self.view.borrow().clone();
        ContainerState {
            id: self.id.clone(),
            labels: (*self.labels()).clone(),
            pid: view.exit.is_none().then_some(view.pid),
            paused: view.paused && view.exit.is_none(),
            status: self.status(),
            created_at: self.created_at,
            started_at: view.started_at,
        }
    }

    fn wrong_state(&self) -> RuntimeError {
        let status = match self.status() {
            Status::Created => "created",
            Status::Running if self.view.borrow().paused => "paused",
            Status::Running => "running",
            Status::Exited(_) => "exited",
        };
        RuntimeError::WrongState { id: self.id.clone(), status }
    }

    /// Tells of it.
    fn tell(&self, events: &Events, action: &str, attributes: Vec<(&'static str, String)>) {
        events.tell(EventKind::Container, action, self.id.as_str(), &self.labels(), attributes);
    }

    fn labels(&self) -> Arc<BTreeMap<String, String>> {
        // A pointer, which is whole in any case.
        Arc::clone(&self.labels.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_exit(&self, exit: &StoredExit) {
        self.view.send_modify(|view| {
            view.exit.get_or_insert_with(|| status_from(exit));
            view.started_at = view.started_at.or_else(|| exit.started_at_nanos.map(time_from));
        });
    }
}

fn status_from(exit: &StoredExit) -> ExitStatus {
    ExitStatus {
        code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        finished_at: time_from(exit.finished_at_nanos),
        shim_lost: exit.shim_lost,
    }
}

/// What all clones of a [`Runtime`] share.
#[derive(Debug)]
pub(crate) struct Inner {
    config: RuntimeConfig,
    cgroups: Cgroups,
    /// The shim's binary on a read-only mount of its own: whatever runs in a container can reach it through
    /// `/proc/<pid>/exe` for a moment, and must not be able to write to it.
    shim_exe: OwnedFd,
    containers: Mutex<BTreeMap<String, Slot>>,
    /// See [`Inner::lock_of`].
    locks: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    monitors: Mutex<JoinSet<()>>,
    /// See [`Inner::make_durable`].
    unsynced: Mutex<BTreeSet<String>>,
    /// See [`archive::MAX_COPIES`].
    copies: Arc<Semaphore>,
    volumes: Volumes,
    private: PrivateFiles,
    events: Events,
}

/// An id that is taken.
#[derive(Debug, Clone)]
enum Slot {
    /// `create` is at work.
    Reserved,
    Here(Arc<Container>),
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        // Nothing panics while it is held, and a map of pointers is whole in any case.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held (in blocking code only) by operations on one id that must not meet: create, start, delete.
    fn lock_of(&self, id: &str) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds or waits for.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(id.to_owned()).or_default())
    }

    fn get(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        match self.slots().get(id) {
            Some(Slot::Here(container)) => Ok(Arc::clone(container)),
            _ => Err(RuntimeError::NotFound(id.to_owned())),
        }
    }

    /// Whether there is a later one of its id.
    fn is_renewed(&self, container: &Arc<Container>) -> bool {
        self.get(&container.id).is_ok_and(|now| !Arc::ptr_eq(&now, container))
    }

    fn all(&self) -> Vec<Arc<Container>> {
        let slots = self.slots();
        let here = slots.values().filter_map(|slot| match slot {
            Slot::Here(container) => Some(Arc::clone(container)),
            Slot::Reserved => None,
        });
        here.collect()
    }

    fn containers_dir(&self) -> PathBuf {
        self.config.data_dir.join("containers")
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.containers_dir().join(id)
    }

    fn shims_dir(&self) -> PathBuf {
        self.config.run_dir.join("shims")
    }

    fn socket(&self, id: &str) -> PathBuf {
        self.shims_dir().join(format!("{id}.sock"))
    }
}

/// The name of something in an open directory, short whatever the directory's own path is.
pub(crate) fn through_fd(dir: &File, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

pub(crate) fn storage(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |source| RuntimeError::Storage { operation, path, source }
}

fn check_id(id: &str) -> Result<(), RuntimeError> {
    plan::valid_id(id).map_err(RuntimeError::InvalidConfig)
}
