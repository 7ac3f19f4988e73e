//! Plain containers: those of `docker run`, which belong to this host and not to a service.
//!
//! What a user wants of one is a [`Record`] on this host's disk; the cluster knows nothing of them. One task a container
//! (`keeper`) owns it: it starts it, sees its end, and does what its restart policy says (`policy`, pure). [`Plain`] is
//! the handle that the API has; what it shows is the view that keepers publish. Containers go on without the daemon, and
//! the next one takes them over. They go with the host's membership: without it there is no network for them.

mod keeper;
mod names;
mod policy;
mod ports;
mod record;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploy::model::{NetworkMode, PortConfig, TaskSpec};
use overlay_net::{Desired, Overlay, PublishedPort};
use runtime::image::{ImageError, ImageStore};
use runtime::{ContainerState, IdMappings, Runtime, RuntimeError, Status};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::keeper::{Command, Keeper};
use self::ports::PortError;
use self::record::Records;
use super::container::{self, ContainerError};
use super::network;
use crate::stored::StoredError;

pub(crate) use self::names::is_name;
pub(super) use self::ports::add as add_ports;
pub(crate) use self::record::{Record, Restart};

/// Commands to one container that wait for their turn.
const QUEUE: usize = 16;
/// Plain containers of one host.
const MAX: usize = 4096;

/// Whether a label is one that only Shoal gives.
pub(crate) fn is_reserved(label: &str) -> bool {
    label.starts_with("io.shoal.") || label.starts_with("com.docker.swarm.")
}

/// Why something could not be done with a plain container. Nothing has changed unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlainError {
    /// Docker's text.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) \
         that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// There are as many as there may be.
    #[error("this host has {MAX} containers of its own: remove some first")]
    TooMany,
    /// It is not there, or not any more.
    #[error("No such container: {0}")]
    NotFound(String),
    /// Docker's text.
    #[error(
        "cannot remove container \"/{0}\": container is running: stop the container before removing or force remove"
    )]
    Running(String),
    /// No container can be made of what is asked for.
    #[error(transparent)]
    Config(#[from] ContainerError),
    /// The image store.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A directory of the host that a mount needs.
    #[error("{0}")]
    Mount(String),
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// What is remembered could not be written.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// A port is somebody else's; in Docker's words.
    #[error("driver failed programming external connectivity on endpoint {name}: {source}")]
    Port {
        /// The container.
        name: String,
        /// Which one.
        #[source]
        source: PortError,
    },
    /// It could not be connected.
    #[error("failed to set up container networking: {0}")]
    Network(String),
    /// The daemon stops, or the host leaves its cluster.
    #[error("this host's containers are not at hand at this moment")]
    Ended,
}

/// What the plain containers of a host need.
pub struct PlainConfig {
    /// Runs them.
    pub runtime: Runtime,
    /// Has their images.
    pub images: ImageStore,
    /// Connects them; without it, those that need it do not start.
    pub overlay: Option<Overlay>,
    /// This host's name.
    pub hostname: String,
    /// What the users of containers are on this host; absent: the same.
    pub users: Option<IdMappings>,
    /// Where they are remembered.
    pub records: PathBuf,
    /// What the networks are to be: whose ports are taken.
    pub(super) desired: watch::Receiver<Option<Desired>>,
}

impl PlainConfig {
    /// For a host without networks.
    pub fn unconnected(runtime: Runtime, images: ImageStore, records: PathBuf) -> Self {
        let (_, desired) = watch::channel(None);
        Self { runtime, images, overlay: None, hostname: "host".to_owned(), users: None, records, desired }
    }
}

/// What is asked for.
pub(crate) struct Wish {
    /// `None`: one is chosen.
    pub(crate) name: Option<String>,
    /// What it runs.
    pub(crate) spec: TaskSpec,
    /// Its ports on the host.
    pub(crate) ports: Vec<PortConfig>,
    /// When it is started again.
    pub(crate) restart: Restart,
    /// How often; 0 for no bound.
    pub(crate) max_restarts: u32,
    /// It is removed when it has ended.
    pub(crate) auto_remove: bool,
    /// Its standard input ends with the first client's.
    pub(crate) stdin_once: bool,
    /// The image's entrypoint does not count.
    pub(crate) no_entrypoint: bool,
    /// Docker's `HostConfig`, as sent.
    pub(crate) host_config: String,
}

/// What there is to show of a container, beside what the runtime says.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// What is remembered.
    pub(crate) record: Record,
    /// Its address on the way out, while it has one.
    pub(crate) address: Option<Ipv4Addr>,
    /// It is connected, so that its ports are in force.
    pub(crate) connected: bool,
    /// It has ended, and is started again after a pause.
    pub(crate) waits: bool,
}

/// The plain containers of this host. A clone is a handle to the same ones.
#[derive(Clone)]
pub struct Plain {
    shared: Arc<Shared>,
}

struct Shared {
    config: PlainConfig,
    records: Records,
    state: Mutex<State>,
    ports: watch::Sender<Vec<PublishedPort>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    known: BTreeMap<String, Known>,
    /// Found at the start, and not begun yet.
    found: Vec<(Record, Option<ContainerState>, mpsc::Receiver<Command>)>,
}

struct Known {
    view: View,
    /// It has its ports.
    holds_ports: bool,
    commands: mpsc::Sender<Command>,
}

impl Plain {
    /// Reads what is remembered. Nothing happens to containers before [`Plain::begin`], but that those which were never
    /// finished are removed.
    ///
    /// # Errors
    /// [`StoredError`] when it cannot be read.
    pub async fn open(config: PlainConfig) -> Result<Self, StoredError> {
        let records = Records::open(&config.records)?;
        let mut here: BTreeMap<String, ContainerState> =
            config.runtime.list().await.into_iter().map(|state| (state.id.clone(), state)).collect();
        let mut state = State::default();
        for record in records.read()? {
            let (commands, inbox) = mpsc::channel(QUEUE);
            let found = here.remove(&record.id);
            let holds_ports = found.as_ref().is_some_and(|found| found.status == Status::Running);
            let view = View { record: record.clone(), address: None, connected: false, waits: false };
            state.known.insert(record.id.clone(), Known { view, holds_ports, commands });
            state.found.push((record, found, inbox));
        }
        for unfinished in here.into_values().filter(|found| container::is_plain(&found.labels)) {
            tracing::warn!(container.id = unfinished.id, "removing a container whose creation did not end");
            if let Err(error) = config.runtime.delete(&unfinished.id).await {
                tracing::warn!(container.id = unfinished.id, error = crate::chain(&error), "it could not be removed");
            }
        }
        let (ports, _) = watch::channel(state.ports());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Ok(Self { shared: Arc::new(Shared { config, records, state: Mutex::new(state), ports, tasks, stop }) })
    }

    /// The ports that they have on this host.
    pub(super) fn ports(&self) -> watch::Receiver<Vec<PublishedPort>> {
        self.shared.ports.subscribe()
    }

    /// Takes over what runs, and starts what is to run.
    pub fn begin(&self) {
        for (record, found, inbox) in std::mem::take(&mut self.shared.state().found) {
            let keeper = Keeper::new(Arc::clone(&self.shared), record);
            self.shared.spawn(keeper.begin(found, inbox));
        }
    }

    /// What there is to show of a container; `None`: it is none of these.
    pub(crate) fn view(&self, id: &str) -> Option<View> {
        self.shared.state().known.get(id).map(|known| known.view.clone())
    }

    /// Makes a container, which waits for its start. Its id.
    ///
    /// # Errors
    /// See [`PlainError`]; nothing of the container is left.
    pub(crate) async fn create(&self, wish: Wish) -> Result<String, PlainError> {
        let shared = Arc::clone(&self.shared);
        // To its end, also when who asked has gone.
        let made = self.shared.tasks.spawn(async move { shared.create(wish).await });
        made.await.unwrap_or(Err(PlainError::Ended))
    }

    /// Starts a container; whether it did not run yet.
    pub(crate) async fn start(&self, id: &str) -> Result<bool, PlainError> {
        self.ask(id, Command::Start).await
    }

    /// Makes one that has ended wait for its start, so that nothing is lost to who attaches before it.
    pub(crate) async fn ready(&self, id: &str) -> Result<(), PlainError> {
        self.ask(id, Command::Ready).await
    }

    /// Its user stops it: its restart policy does nothing about that. Stopping it is the caller's.
    pub(crate) async fn will_stop(&self, id: &str) -> Result<(), PlainError> {
        self.ask(id, Command::WillStop).await
    }

    /// Its user stops it to start it again: when it has ended, it stays as it is.
    pub(crate) async fn will_restart(&self, id: &str) -> Result<(), PlainError> {
        self.ask(id, Command::WillRestart).await
    }

    /// Removes a container, one that runs only by force.
    pub(crate) async fn remove(&self, id: &str, force: bool) -> Result<(), PlainError> {
        self.ask(id, |reply| Command::Remove { force, reply }).await
    }

    async fn ask<T>(
        &self,
        id: &str,
        command: impl FnOnce(oneshot::Sender<Result<T, PlainError>>) -> Command,
    ) -> Result<T, PlainError> {
        let commands = self.shared.state().known.get(id).map(|known| known.commands.clone());
        let commands = commands.ok_or_else(|| PlainError::NotFound(id.to_owned()))?;
        let (reply, answer) = oneshot::channel();
        let gone = || match self.shared.stop.is_cancelled() {
            true => PlainError::Ended,
            false => PlainError::NotFound(id.to_owned()),
        };
        commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.shared.state().known.len()
    }

    /// Removes all of them, whatever they do. What resists is left to the runtime.
    pub(super) async fn remove_all(&self) {
        let ids: Vec<String> = self.shared.state().known.keys().cloned().collect();
        let removed = futures_util::future::join_all(ids.iter().map(|id| self.remove(id, true))).await;
        for error in removed.into_iter().filter_map(Result::err) {
            tracing::warn!(error = crate::chain(&error), "a container could not be removed");
        }
    }

    /// Lets go of them; they go on.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl State {
    fn ports(&self) -> Vec<PublishedPort> {
        let holding = self.known.values().filter(|known| known.holds_ports);
        holding.flat_map(|known| network::ports_of(&known.view.record.task()).collect::<Vec<_>>()).collect()
    }

    fn holder_of(&self, name: &str) -> Option<&str> {
        self.known.values().map(|known| &known.view.record).find(|record| record.name == name).map(|r| r.id.as_str())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and each change of it is one insertion, removal or assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it until the daemon lets go.
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn create(self: &Arc<Self>, wish: Wish) -> Result<String, PlainError> {
        let id: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        let mut record = Record {
            id: id.clone(),
            created: super::now(),
            spec: wish.spec,
            ports: wish.ports,
            max_restarts: wish.max_restarts,
            auto_remove: wish.auto_remove,
            host_config: wish.host_config,
            ..Record::default()
        };
        record.set_restart(wish.restart);
        let (commands, inbox) = mpsc::channel(QUEUE);
        // From here on the name is its own.
        {
            let mut state = self.state();
            if self.stop.is_cancelled() {
                return Err(PlainError::Ended);
            }
            if state.known.len() >= MAX {
                return Err(PlainError::TooMany);
            }
            record.name = match wish.name {
                Some(name) => match state.holder_of(&name) {
                    Some(holder) => return Err(PlainError::NameTaken { id: holder.to_owned(), name }),
                    None => name,
                },
                None => names::choose(rand::random(), |name| state.holder_of(name).is_some()),
            };
            let view = View { record: record.clone(), address: None, connected: false, waits: false };
            state.known.insert(id.clone(), Known { view, holds_ports: false, commands });
        }
        let made = self.make(&record, wish.stdin_once, wish.no_entrypoint).await;
        if let Err(error) = made {
            self.state().known.remove(&id);
            return Err(error);
        }
        let keeper = Keeper::new(Arc::clone(self), record);
        self.spawn(keeper.rest(inbox));
        Ok(id)
    }

    async fn make(&self, record: &Record, stdin_once: bool, no_entrypoint: bool) -> Result<(), PlainError> {
        // Held until the container is made: from then on the container keeps it.
        let (lease, wanted) = (Arc::new(self.config.images.lease()), record.spec.container.image.clone());
        let image = {
            let lease = Arc::clone(&lease);
            tokio::task::spawn_blocking(move || lease.image(&wanted)).await
        };
        let mut image = image.map_err(|_| PlainError::Ended)??;
        if no_entrypoint {
            image.config.entrypoint.clear();
            image.config.cmd.clear();
        }
        super::executor::make_mountpoints(&record.task()).await.map_err(PlainError::Mount)?;
        let users = self.config.users.as_ref();
        let mut config = container::plain_config(record, &self.config.hostname, &image, users)?;
        config.stdin_once = stdin_once;
        let created = self.config.runtime.create(config).await;
        // Ending it may block.
        tokio::task::spawn_blocking(move || drop(lease));
        created?;
        if let Err(error) = self.write(record).await {
            if let Err(error) = self.config.runtime.delete(&record.id).await {
                tracing::warn!(container.id = record.id, error = crate::chain(&error), "it could not be taken back");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Remembers, durably, and shows.
    async fn write(&self, record: &Record) -> Result<(), PlainError> {
        let (records, written) = (self.records.clone(), record.clone());
        let done = tokio::task::spawn_blocking(move || records.write(&written)).await;
        done.map_err(|_| PlainError::Ended)??;
        if let Some(known) = self.state().known.get_mut(&record.id) {
            known.view.record = record.clone();
        }
        Ok(())
    }

    /// Gives a container its ports: it has them from now on.
    fn take_ports(&self, record: &mut Record) -> Result<(), PlainError> {
        record.chosen_ports.clear();
        if record.ports.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        let others: Vec<PublishedPort> =
            state.ports().into_iter().filter(|port| port.task.as_deref() != Some(&record.id)).collect();
        let desired = self.config.desired.borrow();
        let of_services = desired.iter().flat_map(|desired| &desired.ports);
        let of_services: Vec<&PublishedPort> =
            of_services.filter(|port| port.task.as_deref() != Some(&record.id)).collect();
        let is_taken = |protocol, number| {
            others.iter().chain(of_services.iter().copied()).any(|port| ports::same(protocol, number, port))
                || ports::is_listened_at(protocol, number)
        };
        let chosen = ports::choose(&record.ports, rand::random(), is_taken);
        record.chosen_ports = chosen.map_err(|source| PlainError::Port { name: record.name.clone(), source })?;
        if let Some(known) = state.known.get_mut(&record.id) {
            known.view.record = record.clone();
            known.holds_ports = true;
        }
        self.tell_ports(&state);
        Ok(())
    }

    /// It is not connected any more.
    fn release(&self, id: &str) {
        let mut state = self.state();
        if let Some(known) = state.known.get_mut(id) {
            known.holds_ports = false;
            (known.view.address, known.view.connected) = (None, false);
        }
        self.tell_ports(&state);
    }

    fn tell_ports(&self, state: &State) {
        let ports = state.ports();
        self.ports.send_if_modified(|known| {
            let changed = *known != ports;
            *known = ports;
            changed
        });
    }

    fn show(&self, id: &str, change: impl FnOnce(&mut View)) {
        if let Some(known) = self.state().known.get_mut(id) {
            change(&mut known.view);
        }
    }

    /// Nothing is left of it.
    fn forget(&self, id: &str) {
        let mut state = self.state();
        state.known.remove(id);
        self.tell_ports(&state);
    }

    /// Waits until its ports are in force, as far as no service has them by now.
    async fn published(&self, overlay: &Overlay, record: &Record) -> Result<(), PlainError> {
        /// How often it is looked.
        const EVERY: Duration = Duration::from_millis(10);
        /// How long.
        const PATIENCE: Duration = Duration::from_secs(10);
        let wanted: Vec<PublishedPort> = network::ports_of(&record.task()).collect();
        let looking = async {
            loop {
                let observed = overlay.observe().await.map_err(|error| PlainError::Network(crate::chain(&error)))?;
                if wanted.iter().all(|port| observed.desired.ports.contains(port)) {
                    return Ok(());
                }
                tokio::time::sleep(EVERY).await;
            }
        };
        let late = || PlainError::Network("its ports could not be published within 10 s".to_owned());
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Whether it is connected by the overlay.
fn needs_overlay(record: &Record) -> bool {
    record.spec.network_mode() == NetworkMode::Cluster
}
