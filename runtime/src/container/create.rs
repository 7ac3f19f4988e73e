//! Making a container: its directory, its cgroups, its shim. What fails half-way is taken back.

use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::process::Child;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{Container, Created, Inner, Slot, View, client, mounts, storage};
use crate::RuntimeError;
use crate::config::ContainerConfig;
use crate::init::Step;
use crate::plan;
use crate::procfs;
use crate::protocol::{Answer, Failed, State};
use crate::signal::Signal;
use crate::stored::{self, Durability, StoredContainer, config_into, names, nanos, time_from};

/// How long a shim that could not make its container may take to end.
const GRACE: Duration = Duration::from_secs(2);
/// The shim's own deadline is shorter; this one is for a shim that hangs.
const DEADLINE: Duration = Duration::from_secs(90);

impl Inner {
    /// Makes a container up to the moment before its exec. Blocking.
    pub(super) fn create(self: &Arc<Self>, config: &ContainerConfig) -> Result<Created, RuntimeError> {
        let config = &self.with_volumes(config);
        let host = self.cgroups.host_view();
        plan::plan(config, &self.container_dir(&config.id), &host)?;
        let label = plan::confinement::selinux_labels(config, &host.machine)?.map(|(_, files)| files);
        mounts::check_sources(config)?;
        let stop_signal = stop_signal(config);
        let lock = self.lock_of(&config.id);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut slots = self.slots();
            if slots.contains_key(&config.id) {
                return Err(RuntimeError::Exists(config.id.clone()));
            }
            slots.insert(config.id.clone(), Slot::Reserved);
        }
        let outcome = self.make(config, stop_signal, label.as_deref());
        if outcome.is_err() {
            if let Err(error) = self.remove_leftovers(&config.id) {
                warn!(container.id = config.id, %error, "a failed creation left something behind");
            }
            self.slots().remove(&config.id);
        }
        outcome
    }

    fn make(
        self: &Arc<Self>,
        config: &ContainerConfig,
        stop_signal: Signal,
        label: Option<&str>,
    ) -> Result<Created, RuntimeError> {
        let created_at = time_from(nanos(SystemTime::now()));
        let dir = self.container_dir(&config.id);
        let ids = config.id_mappings.as_ref().map(plan::Ids::new).transpose()?;
        let config = &self.with_private_files(config, ids.as_ref())?;
        write_directory(&dir, config, created_at)?;
        if let Some(ids) = &ids {
            give_to_root(&dir, ids)?;
        }
        if let Some(label) = label {
            label_etc(&dir.join("etc"), label)?;
        }
        let created = self.begin(config, &dir, created_at, stop_signal)?;
        if let Ok(container) = self.get(&config.id) {
            container.tell(&self.events, "create", Vec::new());
        }
        debug!(container.id = config.id, pid = created.pid, "created");
        Ok(created)
    }

    /// What a container's directory is there for: its volumes, its cgroup, its shim.
    pub(super) fn begin(
        self: &Arc<Self>,
        config: &ContainerConfig,
        dir: &Path,
        created_at: SystemTime,
        stop_signal: Signal,
    ) -> Result<Created, RuntimeError> {
        self.take_volumes(config, dir)?;
        self.cgroups.create(&config.id, &config.resources)?;
        let (state, child) = self.spawn_shim(config, dir)?;
        let pid_start = procfs::start_ticks(state.pid);
        let netns =
            open_netns(state.pid).map_err(|source| RuntimeError::Namespace { id: config.id.clone(), source })?;
        let view =
            View { pid: state.pid, pid_start: pid_start.unwrap_or(0), started_at: None, paused: false, exit: None };
        let container = Arc::new(Container {
            id: config.id.clone(),
            dir: dir.to_owned(),
            labels: Mutex::new(Arc::new(config.labels.clone())),
            created_at,
            stop_signal,
            keeps_log: config.log.files,
            copying: Mutex::new(()),
            view: watch::Sender::new(view),
        });
        self.slots().insert(config.id.clone(), Slot::Here(Arc::clone(&container)));
        self.monitor(container, Some(child));
        self.make_durable(&config.id);
        Ok(Created { pid: state.pid, netns })
    }

    fn spawn_shim(&self, config: &ContainerConfig, dir: &Path) -> Result<(State, Child), RuntimeError> {
        let spawn_failed = |reason: String| RuntimeError::Spawn { id: config.id.clone(), reason };
        let (ours, theirs) = UnixStream::pair().map_err(|error| spawn_failed(error.to_string()))?;
        ours.set_read_timeout(Some(DEADLINE)).map_err(|error| spawn_failed(error.to_string()))?;
        let exe = format!("/proc/self/fd/{}", self.shim_exe.as_raw_fd());
        let mut child = tokio::process::Command::new(exe)
            .arg0("shoal-shim")
            .arg("__shim")
            .args([dir, &self.socket(&config.id)])
            .arg(&self.config.engine_id)
            // No working directory either: with one the library forks this process instead of `vfork`ing it, and the
            // shim goes to `/` by itself.
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| spawn_failed(error.to_string()))?;
        let outcome = match client::receive_created(&ours) {
            Ok(Answer::Created(state)) => Ok(state),
            Ok(Answer::NotCreated(failure)) => Err(create_error(&config.id, failure)),
            Ok(_) => Err(spawn_failed("an answer that was not asked for".to_owned())),
            Err(error) => Err(spawn_failed(format!("no answer: {error}"))),
        };
        match outcome {
            Ok(state) => Ok((state, child)),
            Err(error) => {
                reap(&mut child);
                Err(error)
            }
        }
    }
}

/// Waits for a shim that has no container to end, and makes it when it does not.
fn reap(child: &mut Child) {
    let runtime = tokio::runtime::Handle::current();
    let waited = runtime.block_on(async { tokio::time::timeout(GRACE, child.wait()).await.is_ok() });
    if !waited && child.start_kill().is_ok() {
        let _ = runtime.block_on(child.wait());
    }
}

/// Checked by the plan; SIGTERM when there is none.
pub(super) fn stop_signal(config: &ContainerConfig) -> Signal {
    config.stop_signal.as_deref().and_then(|name| name.parse().ok()).unwrap_or(Signal::TERM)
}

fn create_error(id: &str, failure: Failed) -> RuntimeError {
    let step = u8::try_from(failure.step).ok().and_then(Step::from_number).unwrap_or(Step::Prepare);
    RuntimeError::Create {
        id: id.to_owned(),
        step,
        subject: failure.subject,
        reason: failure.reason,
        errno: failure.errno,
    }
}

/// The network namespace of a process that is known to live.
pub(super) fn open_netns(pid: u32) -> std::io::Result<OwnedFd> {
    fs::File::open(format!("/proc/{pid}/ns/net")).map(OwnedFd::from)
}

/// Gives the container's root what is its own: its `/`, and the files that are mounted over those of the image.
fn give_to_root(dir: &Path, ids: &plan::Ids) -> Result<(), RuntimeError> {
    let (uid, gid) = ids.root;
    for name in ["upper", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        let path = dir.join(name);
        let given = std::os::unix::fs::chown(&path, Some(uid), Some(gid));
        given.map_err(storage("change the owner of", &path))?;
    }
    Ok(())
}

/// Lets a container with an SELinux label read the files that are mounted over its own.
fn label_etc(dir: &Path, label: &str) -> Result<(), RuntimeError> {
    for name in ["hosts", "hostname", "resolv.conf"] {
        let path = dir.join(name);
        let value = [label.as_bytes(), b"\0"].concat();
        rustix::fs::setxattr(&path, "security.selinux", &value, rustix::fs::XattrFlags::empty())
            .map_err(|errno| storage("label", &path)(errno.into()))?;
    }
    Ok(())
}

/// `<dir>/`: `container` (the configuration), `l/` (links to the layers), `upper/`, `work/`, `rootfs/`, `etc/`, `log/`.
fn write_directory(dir: &Path, config: &ContainerConfig, created_at: SystemTime) -> Result<(), RuntimeError> {
    // Set again after the making, for the daemon's umask must not reach into containers: `upper` becomes their `/`.
    let allow = |path: &Path, mode: u32| {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(storage("set the permissions of", path))
    };
    let make = |path: &Path, mode: u32| {
        DirBuilder::new().mode(mode).create(path).map_err(storage("create", path))?;
        allow(path, mode)
    };
    make(dir, 0o700)?;
    for (name, mode) in [("l", 0o700), (names::UPPER, 0o755), ("work", 0o700), ("rootfs", 0o755), ("etc", 0o755)] {
        make(&dir.join(name), mode)?;
    }
    make(&dir.join(names::LOG), 0o750)?;
    for (number, layer) in config.layers.iter().enumerate() {
        let link = dir.join("l").join(number.to_string());
        // The overlay would only say that something is wrong; this says what.
        let is_dir = fs::metadata(layer).map_err(storage("open the layer", layer))?.is_dir();
        if !is_dir {
            return Err(storage("open the layer", layer)(std::io::ErrorKind::NotADirectory.into()));
        }
        symlink(layer, &link).map_err(storage("create", &link))?;
    }
    let hostname = if config.hostname.is_empty() {
        config.id.chars().take(12).collect::<String>()
    } else {
        config.hostname.clone()
    };
    for (name, text) in [
        ("hosts", config.files.hosts.as_str()),
        ("resolv.conf", config.files.resolv_conf.as_str()),
        ("hostname", &format!("{hostname}\n")),
    ] {
        let path = dir.join("etc").join(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(storage("write", &path))?;
        allow(&path, 0o644)?;
    }
    let stored = StoredContainer { created_at_nanos: nanos(created_at), config: Some(config_into(config)) };
    stored::write(dir, names::CONTAINER, &stored, Durability::ThisBoot)
}
