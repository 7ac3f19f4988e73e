//! [`Runtime`]: the operations that callers have.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::delete::{DEADLINE, SHIM_GRACE};
use super::{Container, ContainerState, ExitStatus, Inner, Slot, Status, check_id, client, create, storage};
use crate::RuntimeError;
use crate::cgroup::CgroupLayout;
use crate::config::{ContainerConfig, RuntimeConfig};
use crate::error::errno_text;
use crate::events::Events;
use crate::init;
use crate::logs::{self, LogOptions, LogRecord};
use crate::procfs;
use crate::protocol::{Answer, Ask, Empty, Failed};
use crate::signal::Signal;
use crate::stored::{self, StoredExit, names, time_from};
use crate::volume::Volumes;

/// Runs containers. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub(super) inner: Arc<Inner>,
}

/// A container that waits for its start.
#[derive(Debug)]
pub struct Created {
    /// Its first process, as the host numbers it.
    pub pid: u32,
    /// Its network namespace; only loopback is up in it.
    pub netns: OwnedFd,
}

/// Records on their way to a reader of logs.
const LOG_BUFFER: usize = 256;

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(RuntimeError::Closing),
    }
}

impl Runtime {
    /// Opens the state in these directories, which belong to this engine alone, and adopts the containers that run.
    ///
    /// # Errors
    /// Unusable settings, no cgroups, or a stored container of a later release (which is left as it is).
    pub async fn open(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        blocking(move || Inner::open(config)).await.map(|inner| Runtime { inner })
    }

    /// The generation of cgroups that was found.
    pub fn cgroup_layout(&self) -> CgroupLayout {
        self.inner.cgroups.layout()
    }

    /// Whether containers can have users of their own here: a kernel, and a filesystem below the data directory, that
    /// can map ids in mounts. What other filesystems hold (layers, volumes) is found out with each container.
    ///
    /// # Errors
    /// [`RuntimeError::NoIdMappings`].
    pub async fn check_id_mappings(&self) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let path = &inner.config.data_dir;
            crate::shim::maps_ids(&inner.shim_exe, path)
                .map_err(|reason| RuntimeError::NoIdMappings { path: path.clone(), reason })
        })
        .await
    }

    /// Makes a container with everything up to the exec of its command, and lets it wait there.
    ///
    /// # Errors
    /// [`RuntimeError::Exists`], [`RuntimeError::InvalidConfig`], [`RuntimeError::Create`] and failures of the host;
    /// nothing of the container is left after any of them.
    pub async fn create(&self, config: ContainerConfig) -> Result<Created, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.create(&config)).await
    }

    /// Lets the command run.
    ///
    /// # Errors
    /// [`RuntimeError::Start`] when it cannot be executed; the container has then exited with 126 or 127.
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        let failure = blocking(move || inner.start(&container)).await?;
        let Some(failure) = failure else { return Ok(()) };
        // Told only when the exit is on record, so that who sees the error finds the container exited.
        self.wait_at_most(id, DEADLINE).await?;
        Err(failure)
    }

    /// Sends a signal to the first process.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it has exited, or (for all but SIGKILL) was not started.
    pub async fn signal(&self, id: &str, signal: Signal) -> Result<(), RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        blocking(move || inner.signal(&container, signal)).await
    }

    /// Sends `signal` (else the container's own stop signal), waits for `grace`, then kills everything in it.
    /// A container that has exited is left as it is.
    ///
    /// # Errors
    /// [`RuntimeError::Unkillable`] when processes survive SIGKILL for ten seconds, [`RuntimeError::Unrecorded`] when
    /// the end cannot be put on record within as many.
    pub async fn stop(&self, id: &str, signal: Option<Signal>, grace: Duration) -> Result<ExitStatus, RuntimeError> {
        let container = self.inner.get(id)?;
        let ran = container.status() == Status::Running;
        if ran && !grace.is_zero() {
            let (inner, asked) = (Arc::clone(&self.inner), Arc::clone(&container));
            let signal = signal.unwrap_or(container.stop_signal);
            let asking = blocking(move || {
                inner.signal(&asked, signal)?;
                // What is paused hears nothing.
                inner.resume_if_paused(&asked)
            });
            match asking.await {
                Ok(()) => {
                    // Of this run: there may be another one by then.
                    if let Some(status) = exited(&container, grace).await {
                        container.tell(&self.inner.events, "stop", Vec::new());
                        return Ok(status);
                    }
                }
                // It has just exited, or its shim does not answer; both are settled below.
                Err(error) => debug!(container.id = id, %error, "stop signal"),
            }
        }
        if ran && container.exit().is_none() {
            self.inner.tell_signal(&container, Signal::KILL);
        }
        let exit = self.kill(&container).await?;
        if ran {
            container.tell(&self.inner.events, "stop", Vec::new());
        }
        Ok(exit)
    }

    /// What happens to the containers and volumes of this host, and to what else is told there.
    pub fn events(&self) -> Events {
        self.inner.events.clone()
    }

    /// Tells of something that happened to a container and that only its caller sees, in Docker's words: its health, a
    /// process that a client has asked for. An unknown id is fine.
    pub fn tell(&self, id: &str, action: &str, attributes: Vec<(&'static str, String)>) {
        if let Ok(container) = self.inner.get(id) {
            container.tell(&self.inner.events, action, attributes);
        }
    }

    async fn kill(&self, container: &Arc<Container>) -> Result<ExitStatus, RuntimeError> {
        if let Some(exit) = container.exit() {
            return Ok(exit);
        }
        self.kill_processes(container).await?;
        exited(container, DEADLINE).await.ok_or_else(|| RuntimeError::Unrecorded(container.id.clone()))
    }

    async fn kill_processes(&self, container: &Arc<Container>) -> Result<(), RuntimeError> {
        let (inner, killed) = (Arc::clone(&self.inner), Arc::clone(container));
        let empty = blocking(move || {
            if inner.cgroups.processes(&killed.id).is_empty() {
                // It lives, but somebody took it out of its cgroups. All others of its pid namespace die with the first.
                if let Err(error) = inner.ask(&killed, "to signal", Ask::Signal(Signal::KILL.number()), &[]) {
                    debug!(container.id = killed.id, %error, "kill");
                }
            }
            Ok(inner.cgroups.kill_all(&killed.id, Instant::now() + DEADLINE))
        })
        .await?;
        if empty { Ok(()) } else { Err(RuntimeError::Unkillable(container.id.clone())) }
    }

    /// Waits for the end.
    pub async fn wait(&self, id: &str) -> Result<ExitStatus, RuntimeError> {
        let container = self.inner.get(id)?;
        let mut view = container.view.subscribe();
        match view.wait_for(|view| view.exit.is_some()).await {
            Ok(view) => view.exit.clone().ok_or(RuntimeError::Closing),
            Err(_) => Err(RuntimeError::Closing),
        }
    }

    async fn wait_at_most(&self, id: &str, limit: Duration) -> Result<ExitStatus, RuntimeError> {
        let container = self.inner.get(id)?;
        exited(&container, limit).await.ok_or_else(|| RuntimeError::Unkillable(id.to_owned()))
    }

    /// Kills it if it runs, and removes everything of it. Idempotent: an unknown id is fine.
    pub async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        check_id(id)?;
        if let Ok(container) = self.inner.get(id)
            && container.exit().is_none()
        {
            self.kill_processes(&container).await?;
            // For those who wait for its end. That it cannot be recorded must not keep it: deleting makes room.
            let _ = exited(&container, SHIM_GRACE).await;
        }
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        blocking(move || inner.delete(&id)).await
    }

    /// Lets the volumes that a container has to itself stay when it is deleted; nobody has them then.
    ///
    /// # Errors
    /// The disk. Some of them may stay by then.
    pub async fn keep_volumes(&self, id: &str) -> Result<(), RuntimeError> {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        blocking(move || inner.volumes.keep(&id)).await
    }

    /// All containers, by id.
    pub async fn list(&self) -> Vec<ContainerState> {
        self.inner.all().iter().map(|container| container.state()).collect()
    }

    /// The network namespace of a container that lives.
    pub async fn netns(&self, id: &str) -> Result<OwnedFd, RuntimeError> {
        let container = self.inner.get(id)?;
        blocking(move || netns(&container)).await
    }

    /// Gives descriptors to the container's shim to keep, in place of those that it kept under this name. They live
    /// as long as the container. At most 16 each under at most 16 names of at most 64 bytes; none clears the name.
    pub async fn park_fds(&self, id: &str, name: &str, fds: Vec<OwnedFd>) -> Result<(), RuntimeError> {
        let (inner, container, name) = (Arc::clone(&self.inner), self.inner.get(id)?, name.to_owned());
        blocking(move || inner.ask(&container, "to keep descriptors", Ask::PutFds(name), &fds).map(drop)).await
    }

    /// Copies of the descriptors parked under this name; none when there are none.
    pub async fn fetch_fds(&self, id: &str, name: &str) -> Result<Vec<OwnedFd>, RuntimeError> {
        let (inner, container, name) = (Arc::clone(&self.inner), self.inner.get(id)?, name.to_owned());
        let asked = move || inner.ask(&container, "for descriptors", Ask::GetFds(name), &[]);
        blocking(asked).await.map(|(_, fds)| fds)
    }

    /// The log, across rotations, both streams in the order of arrival. The channel ends with the log; a follower's
    /// when the container has ended.
    ///
    /// # Errors
    /// [`RuntimeError::LogUnreadable`] when the configuration keeps no files.
    pub async fn logs(&self, id: &str, options: LogOptions) -> Result<mpsc::Receiver<LogRecord>, RuntimeError> {
        let container = self.inner.get(id)?;
        if !container.keeps_log {
            return Err(RuntimeError::LogUnreadable);
        }
        let (sender, receiver) = mpsc::channel(LOG_BUFFER);
        let (dir, following) = (container.dir.join(names::LOG), options.follow);
        let path = dir.clone();
        let reader = blocking(move || logs::Reader::new(path.clone(), options).map_err(storage("read", &path))).await?;
        let mut view = container.view.subscribe();
        let ended_now = view.borrow_and_update().exit.is_some();
        let mut monitors = self.inner.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        while monitors.try_join_next().is_some() {}
        monitors.spawn(async move {
            let (tell, ended) = watch::channel(ended_now);
            let watcher = async move {
                let _ = view.wait_for(|view| view.exit.is_some()).await;
                tell.send_replace(true);
                // Alive until the follower has ended.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                () = logs::follow(reader, dir, following, ended, sender) => {}
                () = watcher => {}
            }
        });
        drop(monitors);
        Ok(receiver)
    }

    /// Records of its log that were lost: no room on the disk, or in the buffer of its log daemon.
    pub async fn dropped_log_records(&self, id: &str) -> Result<u64, RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        blocking(move || inner.dropped_log_records(&container)).await
    }

    /// The volumes of this host.
    pub fn volumes(&self) -> Volumes {
        self.inner.volumes.clone()
    }

    /// Kills and removes all containers and the engine's cgroups, for a host that leaves its cluster for good.
    ///
    /// # Errors
    /// [`RuntimeError::Leftovers`] names all that could not be removed.
    pub async fn destroy(&self) -> Result<(), RuntimeError> {
        let mut left = Vec::new();
        for container in self.inner.all() {
            if let Err(error) = self.delete(&container.id).await {
                warn!(container.id = container.id, %error, "destroy");
                left.push(error.to_string());
            }
        }
        let inner = Arc::clone(&self.inner);
        let removed = blocking(move || Ok(inner.cgroups.remove_engine(Instant::now() + DEADLINE)?)).await;
        left.extend(removed.err().map(|error| error.to_string()));
        if left.is_empty() { Ok(()) } else { Err(RuntimeError::Leftovers(left.join("; "))) }
    }
}

async fn exited(container: &Container, limit: Duration) -> Option<ExitStatus> {
    let mut view = container.view.subscribe();
    let waited = tokio::time::timeout(limit, view.wait_for(|view| view.exit.is_some())).await;
    waited.ok()?.ok()?.exit.clone()
}

fn netns(container: &Container) -> Result<OwnedFd, RuntimeError> {
    let view = container.view.borrow().clone();
    if view.exit.is_some() {
        return Err(container.wrong_state());
    }
    let failed = |source| RuntimeError::Namespace { id: container.id.clone(), source };
    let held = procfs::open_verified(view.pid, view.pid_start).map_err(failed)?;
    let held = held.ok_or_else(|| container.wrong_state())?;
    let fd = create::open_netns(view.pid);
    if !procfs::still_there(&held) {
        return Err(container.wrong_state());
    }
    fd.map_err(failed)
}

impl Inner {
    pub(super) fn ask(
        &self,
        container: &Container,
        operation: &'static str,
        ask: Ask,
        fds: &[OwnedFd],
    ) -> Result<(Answer, Vec<OwnedFd>), RuntimeError> {
        if container.exit().is_some() {
            return Err(container.wrong_state());
        }
        match client::ask(&self.socket(&container.id), ask, fds) {
            Ok((Answer::Refused(refused), _)) => {
                Err(RuntimeError::ShimRefused { id: container.id.clone(), operation, reason: refused.reason })
            }
            Ok(answer) => Ok(answer),
            Err(source) => Err(RuntimeError::Shim { id: container.id.clone(), operation, source }),
        }
    }

    /// `Ok(Some(error))`: the shim has tried, and the command could not be executed.
    fn start(&self, container: &Container) -> Result<Option<RuntimeError>, RuntimeError> {
        let lock = self.lock_of(&container.id);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if container.status() != Status::Created {
            return Err(container.wrong_state());
        }
        match self.ask(container, "to start", Ask::Start(Empty {}), &[])?.0 {
            Answer::NotStarted(failure) => Ok(Some(start_error(container, &failure))),
            Answer::State(state) => {
                let at = state.started_at_nanos.map_or_else(SystemTime::now, time_from);
                container.view.send_modify(|view| {
                    // Otherwise it has ended already, and that it began was told with that.
                    if view.started_at.is_none() {
                        view.started_at = Some(at);
                        container.tell(&self.events, "start", Vec::new());
                    }
                });
                debug!(container.id = container.id, "started");
                Ok(None)
            }
            _ => Err(RuntimeError::Shim {
                id: container.id.clone(),
                operation: "to start",
                source: std::io::ErrorKind::InvalidData.into(),
            }),
        }
    }

    fn tell_signal(&self, container: &Container, signal: Signal) {
        container.tell(&self.events, "kill", vec![("signal", signal.number().to_string())]);
    }

    fn signal(&self, container: &Container, signal: Signal) -> Result<(), RuntimeError> {
        match container.status() {
            Status::Running => {}
            Status::Created if signal == Signal::KILL => {}
            Status::Created | Status::Exited(_) => return Err(container.wrong_state()),
        }
        // First, for its end may follow at once.
        self.tell_signal(container, signal);
        match self.ask(container, "to signal", Ask::Signal(signal.number()), &[]) {
            // The shim ended in this moment; the exit is on its way.
            Err(RuntimeError::Shim { .. }) if !super::monitor::shim_lives(container) => Err(container.wrong_state()),
            Ok(_) if signal == Signal::KILL => self.resume_if_paused(container),
            other => other.map(drop),
        }
    }

    fn dropped_log_records(&self, container: &Container) -> Result<u64, RuntimeError> {
        if container.exit().is_some() {
            let exit = stored::read::<StoredExit>(&container.dir, names::EXIT)?;
            return Ok(exit.map_or(0, |exit| exit.dropped_log_records));
        }
        match self.ask(container, "for its state", Ask::State(Empty {}), &[])?.0 {
            Answer::State(state) => Ok(state.dropped_log_records),
            _ => Ok(0),
        }
    }

    fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        let lock = self.lock_of(id);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove_leftovers(id)?;
        if let Some(Slot::Here(container)) = self.slots().remove(id) {
            container.tell(&self.events, "destroy", Vec::new());
        }
        debug!(container.id = id, "deleted");
        Ok(())
    }
}

fn start_error(container: &Container, failure: &Failed) -> RuntimeError {
    let command = container.command();
    let not_found = failure.errno == libc::ENOENT && !command.contains('/');
    let reason = match (failure.errno, not_found) {
        (errno, true) => format!("executable file not found in $PATH: {}", errno_text(errno)),
        (errno, false) => errno_text(errno),
    };
    RuntimeError::Start {
        id: container.id.clone(),
        command,
        reason,
        errno: failure.errno,
        exit_code: init::exit_code_of(failure.errno),
    }
}

impl Container {
    /// `argv[0]`, for messages.
    fn command(&self) -> String {
        let config = self.config().ok();
        config.and_then(|config| config.args.into_iter().next()).unwrap_or_default()
    }
}
