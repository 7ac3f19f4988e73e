//! What a daemon finds when it starts: containers that run, that have ended, and that were never finished.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, Mutex};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::os::fd::{AsFd, OwnedFd};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::archive::MAX_COPIES;
use super::delete::{REMOVING, remove_dir};
use super::{Container, Inner, Slot, View, client, create, monitor, mounts, storage};
use crate::cgroup::Cgroups;
use crate::config::{ContainerConfig, RuntimeConfig};
use crate::events::Events;
use crate::procfs;
use crate::protocol::{Answer, Ask, Empty};
use crate::stored::{self, StoredContainer, StoredExit, StoredProcess, config_from, names, time_from};
use crate::sys;
use crate::volume::{PrivateFiles, Volumes};
use crate::{RuntimeError, plan};

impl Inner {
    /// Opens the engine's state and adopts what runs. Blocking; within the async runtime.
    pub(super) fn open(config: RuntimeConfig) -> Result<Arc<Inner>, RuntimeError> {
        plan::valid_id(&config.engine_id)
            .map_err(|_| RuntimeError::InvalidRuntime("engine_id must be 1 to 64 of [a-zA-Z0-9_.-]".to_owned()))?;
        for path in [&config.data_dir, &config.run_dir, &config.shim_exe] {
            if !path.is_absolute() {
                return Err(RuntimeError::InvalidRuntime(format!("{} is not absolute", path.display())));
            }
        }
        let cgroups = Cgroups::detect(&config.engine_id)?;
        cgroups.ensure()?;
        let shim_exe = read_only_exe(&config)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&config.run_dir)
            .map_err(storage("create", &config.run_dir))?;
        let events = Events::default();
        let volumes = Volumes::open_telling(&config.data_dir.join("volumes"), events.clone())?;
        let private = PrivateFiles::open(&config.run_dir)?;
        let inner = Arc::new(Inner {
            volumes,
            private,
            events,
            config,
            cgroups,
            shim_exe,
            containers: Mutex::new(BTreeMap::new()),
            locks: Mutex::new(BTreeMap::new()),
            monitors: Mutex::new(JoinSet::new()),
            unsynced: Mutex::new(BTreeSet::new()),
            copies: Arc::new(Semaphore::new(MAX_COPIES)),
        });
        for dir in [inner.containers_dir(), inner.shims_dir()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(storage("create", &dir))?;
        }
        inner.adopt_all()?;
        inner.sweep();
        Ok(inner)
    }

    fn adopt_all(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let dir = self.containers_dir();
        for entry in fs::read_dir(&dir).map_err(storage("read", &dir))? {
            let entry = entry.map_err(storage("read", &dir))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let outcome = if let Some(id) = name.strip_prefix(REMOVING) {
                info!(container.id = id, "finishing an interrupted removal");
                remove_dir(&entry.path())
            } else if plan::valid_id(&name).is_ok() {
                self.adopt(&name)
            } else {
                continue;
            };
            match outcome {
                // Of another release: whoever runs this one must know before anything is touched.
                Err(error @ RuntimeError::Stored { foreign: true, .. }) => return Err(error),
                // One container that resists must not keep the others from their daemon; the next start tries again.
                Err(error) => warn!(container.id = name, %error, "adoption"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn adopt(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let dir = self.container_dir(id);
        let unfinished = |why: &str| {
            warn!(container.id = id, why, "removing a container that was never finished");
            self.remove_leftovers(id)
        };
        let stored = match stored::read::<StoredContainer>(&dir, names::CONTAINER) {
            Ok(Some(stored)) => stored,
            Ok(None) => return unfinished("it has no configuration"),
            // Of another release: not ours to throw away.
            Err(error @ RuntimeError::Stored { foreign: true, .. }) => return Err(error),
            Err(RuntimeError::Stored { reason, .. }) => return unfinished(&reason),
            Err(error) => return Err(error),
        };
        let config = match config_from(stored.config.unwrap_or_default()) {
            Ok(config) => config,
            Err(reason) => return unfinished(&reason),
        };
        if config.id != id {
            return unfinished("its configuration is another container's");
        }
        let exit = unless_foreign(stored::read::<StoredExit>(&dir, names::EXIT))?;
        let process = unless_foreign(stored::read::<StoredProcess>(&dir, names::PROCESS))?;
        let process = match (process, &exit) {
            (Some(process), _) => process,
            // Processes are recorded for one boot only, and a power cut may take that record; the exit has outlived it.
            (None, Some(_)) => StoredProcess::default(),
            // What it has written is to outlive that as well.
            (None, None) if config.lasting => StoredProcess::default(),
            (None, None) => return unfinished("its creation did not end"),
        };
        let container = self.container(&config, stored.created_at_nanos, &process);
        if let Some(exit) = exit {
            container.set_exit(&exit);
            // It may have been written while no daemon was there to sync it.
            self.make_durable(id);
        } else {
            self.find_living(&container, &process);
        }
        self.slots().insert(id.to_owned(), Slot::Here(Arc::clone(&container)));
        self.volumes.adopt(id, container.exit().is_none(), mounts::volumes(&config));
        if container.exit().is_none() {
            info!(container.id = id, pid = process.pid, "adopted");
            self.monitor(container, None);
        }
        Ok(())
    }

    fn container(&self, config: &ContainerConfig, created_at: u64, process: &StoredProcess) -> Arc<Container> {
        let (pid, pid_start) = (process.pid, process.start_ticks);
        let paused = self.cgroups.is_frozen(&config.id);
        let view = View { pid, pid_start, started_at: None, paused, exit: None };
        Arc::new(Container {
            id: config.id.clone(),
            dir: self.container_dir(&config.id),
            labels: Mutex::new(Arc::new(config.labels.clone())),
            created_at: time_from(created_at),
            stop_signal: create::stop_signal(config),
            keeps_log: config.log.files,
            copying: Mutex::new(()),
            view: watch::Sender::new(view),
        })
    }

    /// Asks the shim; a container without one is ended.
    fn find_living(&self, container: &Container, process: &StoredProcess) {
        if process.boot_id == procfs::boot_id()
            && monitor::shim_lives(container)
            && let Ok((Answer::State(state), _)) = client::ask(&self.socket(&container.id), Ask::State(Empty {}), &[])
        {
            container.view.send_modify(|view| view.started_at = state.started_at_nanos.map(time_from));
            return;
        }
        // Also when it lives and does not answer now: the monitor keeps asking, this look only catches the dead.
        if let Some(exit) = monitor::find_exit(container, &self.cgroups) {
            container.set_exit(&exit);
        }
    }

    /// Cgroups and sockets of containers that are no more.
    fn sweep(&self) {
        // One that resisted its adoption keeps its directory, and what belongs to it.
        let known = |id: &str| self.slots().contains_key(id) || self.container_dir(id).exists();
        for id in self.cgroups.containers().into_iter().filter(|id| !known(id)) {
            warn!(container.id = id, "removing the cgroup of a container that is no more");
            if let Err(error) = self.remove_leftovers(&id) {
                warn!(container.id = id, %error, "sweep");
            }
        }
        for entry in fs::read_dir(self.shims_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".sock"));
            if id.is_none_or(|id| !known(id)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        self.private.sweep(known);
        self.volumes.settle(known);
    }
}

/// A damaged record is none; one of a later release is an error.
fn unless_foreign<T>(read: Result<Option<T>, RuntimeError>) -> Result<Option<T>, RuntimeError> {
    match read {
        Err(RuntimeError::Stored { foreign: false, .. }) => Ok(None),
        other => other,
    }
}

/// The shim's binary through a mount that cannot be written through.
fn read_only_exe(config: &RuntimeConfig) -> Result<OwnedFd, RuntimeError> {
    const RDONLY: u64 = plan::mount_attr::RDONLY;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let failed = |source: std::io::Error| RuntimeError::Storage {
        operation: "open the shim's binary",
        path: config.shim_exe.clone(),
        source,
    };
    let fd = open_tree(CWD, &config.shim_exe, flags).map_err(|errno| failed(errno.into()))?;
    sys::set_mount_attributes(fd.as_fd(), false, RDONLY, 0, 0)
        .map_err(|errno| failed(std::io::Error::from_raw_os_error(errno)))?;
    Ok(fd)
}
