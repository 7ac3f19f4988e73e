//! Plain containers: those of `docker run`, which belong to this host and not to a service.
//!
//! What a user wants of one is a [`Record`] on this host's disk; the cluster knows nothing of them. One task a container
//! (`keeper`) owns it: it starts it, sees its end, and does what its restart policy says (`policy`, pure). [`Plain`] is
//! the handle that the API has; what it shows is the view that keepers publish. Containers go on without the daemon, and
//! the next one takes them over. They go with the host's membership: without it there is no network for them.
//! Networks of this host alone (`local`, pure) are made for them, and remembered and gone in the same way.

mod keeper;
mod local;
mod names;
mod places;
mod policy;
mod ports;
mod record;
mod shared;
mod streams;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deploy::agent::Place;
use deploy::model::{NetworkMode, NetworkSpec, PortConfig, Subnet, TaskSpec};
use ipnet::Ipv4Net;
use overlay_net::{Desired, Network, Overlay, PublishedPort};
use runtime::image::{ImageError, ImageStore};
use runtime::{ContainerState, IdMappings, Runtime, RuntimeError, Signal, Status};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::keeper::{Command, Keeper};
use self::local::{Around, LocalNetworks, NetworkRecord};
pub(crate) use self::places::PlaceError;
pub(super) use self::places::Places;
use self::ports::PortError;
use self::record::{Found, NetworkOf, Records};
use self::shared::{Known, MAX, Shared, State};
use self::streams::Listener;
use super::container::{self, ContainerError, PLAIN_LABEL};
use crate::own_networks;
use crate::stored::StoredError;

pub(crate) use self::local::{LocalError, LocalView, SubnetError};
pub(crate) use self::names::is_name;
pub(crate) use self::record::{Record, Restart};
pub(crate) use self::streams::{Streams, Wanted};

/// Commands to one container that wait for their turn.
const QUEUE: usize = 16;

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
    /// Docker's text.
    #[error("Renaming a container with the same name as its current name")]
    SameName,
    /// Others find it by its name, which the managers have.
    #[error("container \"/{name}\" cannot be renamed while it runs on network {network}: stop it first")]
    KnownByName {
        /// Its name.
        name: String,
        /// The network.
        network: String,
    },
    /// Docker's text.
    #[error("Restart policy cannot be updated because AutoRemove is enabled for the container")]
    RemovedAtEnd,
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
    /// Docker's text. It is about to be started again, which counts as running.
    #[error(
        "cannot remove container \"/{0}\": container is restarting: stop the container before removing or force remove"
    )]
    Restarting(String),
    /// Docker's text.
    #[error("cannot start a paused container, try unpause instead")]
    Paused,
    /// What its user wants of it is not known: only what is there can be removed.
    #[error("the record of container {0} cannot be read: it can only be removed, by force")]
    Unreadable(String),
    /// It is removed as soon as that can be done.
    #[error("container \"/{name}\" is being removed, and cannot be yet: {left}")]
    Leaving {
        /// The container.
        name: String,
        /// What keeps it.
        left: String,
    },
    /// It was stopped while it was to be restarted.
    #[error("container \"/{0}\" was stopped by somebody else before it was started again")]
    Stopped(String),
    /// Too many clients wait for its next run.
    #[error("too many clients wait for this container's start")]
    TooManyListeners,
    /// It has ended, and could not be started again.
    #[error("{0}")]
    Restart(String),
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
    #[error("driver failed programming external connectivity on endpoint {name}")]
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
    /// It got no place on its network; in Docker's words.
    #[error("Could not attach to network {network}: rpc error: code = {:?} desc = {reason}", reason.code())]
    Place {
        /// The network.
        network: String,
        /// Why.
        reason: PlaceError,
    },
    /// A network of this host.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// An address of its own was asked for on a network that is none of this host's.
    #[error("an address of one's own is supported on networks of one host alone, and {0} is none of this host's")]
    AddressElsewhere(String),
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
    /// Where this host's own networks are remembered.
    pub networks: PathBuf,
    /// This host's address that the overlay knows it by.
    pub(super) data_path: Ipv4Addr,
    /// The link of the containers' way out on this host; absent: they have none.
    pub(super) way_out_link: Option<String>,
    /// Gets them places on the cluster's networks.
    pub(super) places: Option<Places>,
    /// What the networks are to be: whose ports are taken.
    pub(super) desired: watch::Receiver<Option<Desired>>,
}

impl PlainConfig {
    /// For a host without networks.
    pub fn unconnected(runtime: Runtime, images: ImageStore, records: PathBuf) -> Self {
        let (_, desired) = watch::channel(None);
        Self {
            runtime,
            images,
            overlay: None,
            hostname: "host".to_owned(),
            users: None,
            networks: records.with_file_name("networks"),
            records,
            data_path: Ipv4Addr::UNSPECIFIED,
            way_out_link: None,
            places: None,
            desired,
        }
    }
}

/// What this host's own networks are not to have addresses of; `others` are the subnets of those that there are. Reads
/// what the host has at this moment.
fn around(way_out_link: Option<&str>, others: &[Ipv4Net], cluster: Vec<Subnet>) -> Around {
    let Some(link) = way_out_link else { return Around { cluster, ..Around::default() } };
    let host = own_networks::read(link, others);
    let own = host.subnets.iter().chain(&host.routes).filter_map(|text| Subnet::parse(text));
    Around { host: own.collect(), way_out: Subnet::parse(&host.way_out), cluster }
}

/// Subnets of the networks of a host alone that are remembered in a directory. What cannot be read is left out: whoever
/// opens it in earnest says so.
pub(crate) fn remembered_subnets(dir: &Path) -> Vec<Ipv4Net> {
    let found = Records::<NetworkRecord>::at(dir).read();
    let records = found.map(|found| found.records).unwrap_or_default();
    records.iter().filter_map(|record| record.subnet.parse().ok()).collect()
}

/// What the overlay is to have for plain containers, beside what the managers want of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wants {
    /// Their ports on this host.
    ports: Vec<PublishedPort>,
    /// The networks of this host alone that they are on.
    networks: Vec<Arc<Network>>,
    /// The subnets of all networks of this host alone.
    subnets: Vec<Ipv4Net>,
}

impl Wants {
    /// Adds them to what the managers want.
    pub(super) fn add_to(&self, desired: &mut Desired) {
        ports::add(&mut desired.ports, &self.ports);
        desired.networks.extend(self.networks.iter().cloned());
        desired.taken.extend_from_slice(&self.subnets);
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
    /// The addresses that it is to have on its networks, where not any.
    pub(crate) addresses: BTreeMap<String, Ipv4Addr>,
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
    /// Id and name of the network of this host alone that it is on, or would be if it ran.
    pub(crate) local: Option<(String, String)>,
}

impl View {
    fn new(record: Record) -> Self {
        Self { record, address: None, connected: false, waits: false, local: None }
    }
}

/// The plain containers of this host. A clone is a handle to the same ones.
#[derive(Clone)]
pub struct Plain {
    shared: Arc<Shared>,
}

impl Plain {
    /// Reads what is remembered. Nothing happens to containers before [`Plain::begin`], but that those which were never
    /// finished are removed.
    ///
    /// # Errors
    /// [`StoredError`] when it cannot be read.
    pub async fn open(config: PlainConfig) -> Result<Self, StoredError> {
        let records = Records::<Record>::open(&config.records)?;
        let network_records = Records::<NetworkRecord>::open(&config.networks)?;
        let mut here: BTreeMap<String, ContainerState> =
            config.runtime.list().await.into_iter().map(|state| (state.id.clone(), state)).collect();
        let (known, found) = (BTreeMap::new(), Vec::new());
        let mut state = State { known, local: LocalNetworks::new(config.data_path), found };
        let mut networks = network_records.read()?;
        // Where two cannot be side by side, the older one stays.
        networks.records.sort_by(|a, b| (a.created.nanos, &a.id).cmp(&(b.created.nanos, &b.id)));
        networks.unreadable.into_iter().for_each(|id| state.local.lose(id));
        for network in networks.records {
            let (id, name) = (network.id.clone(), network.spec.name.clone());
            if let Err(reason) = state.local.add(network) {
                tracing::error!(network.id = id, network.name = name, reason, "a network of this host is left out");
                state.local.lose(id);
            }
        }
        let Found { records: all, unreadable } = records.read()?;
        for mut record in all {
            let (commands, inbox) = mpsc::channel(QUEUE);
            let found = here.remove(&record.id);
            if found.as_ref().is_some_and(|found| finish_rename(&mut record, &found.labels))
                && let Err(error) = records.write(&record)
            {
                let error = crate::chain(&error);
                tracing::warn!(container.id = record.id, error, "a container's name could not be remembered");
            }
            let holds_ports = found.as_ref().is_some_and(|found| found.status == Status::Running);
            // Who was made before that was remembered.
            if !record.place.is_none() {
                record.set_network_of(NetworkOf::Cluster);
            }
            let place = found_place(&mut record, holds_ports);
            state.local.rejoin(&record);
            let view = View::new(record.clone());
            let (runs, _) = watch::channel(());
            let renamed = None;
            state.known.insert(record.id.clone(), Known { view, renamed, holds_ports, place, commands, runs });
            state.found.push((record, found, inbox));
        }
        for unfinished in here.into_values().filter(|found| container::is_plain(&found.labels)) {
            if unreadable.contains(&unfinished.id) {
                tracing::error!(
                    container.id = unfinished.id,
                    "what was wanted of a container cannot be read: it is left as it is, and can be removed by force"
                );
                continue;
            }
            tracing::warn!(container.id = unfinished.id, "removing a container whose creation did not end");
            if let Err(error) = config.runtime.delete(&unfinished.id).await {
                tracing::warn!(container.id = unfinished.id, error = crate::chain(&error), "it could not be removed");
            }
        }
        let (wants, _) = watch::channel(state.wants());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                records,
                network_records,
                state: Mutex::new(state),
                changing: tokio::sync::Mutex::default(),
                wants,
                unused: Notify::new(),
                tasks,
                stop,
            }),
        })
    }

    /// What the overlay is to have for them.
    pub(super) fn wants(&self) -> watch::Receiver<Wants> {
        self.shared.wants.subscribe()
    }

    /// What the overlay knows those by that run.
    pub(super) fn running(&self) -> Vec<String> {
        let state = self.shared.state();
        let running = state.known.values().filter(|known| known.holds_ports);
        running.map(|known| known.view.record.key().to_string()).collect()
    }

    /// Takes over what runs, and starts what is to run.
    pub fn begin(&self) {
        let all = std::mem::take(&mut self.shared.state().found);
        for (record, found, inbox) in all {
            let keeper = Keeper::new(Arc::clone(&self.shared), record);
            self.shared.spawn(keeper.begin(found, inbox));
        }
        let shared = Arc::clone(&self.shared);
        self.shared.spawn(async move { shared.settle_places().await });
    }

    /// What there is to show of a container; `None`: it is none of these.
    pub(crate) fn view(&self, id: &str) -> Option<View> {
        let state = self.shared.state();
        let mut view = state.known.get(id).map(|known| known.view.clone())?;
        let joined = view.record.attachments.first().map(|attachment| attachment.network.to_string());
        let wanted = joined.or_else(|| Some(view.record.local_wish()?.target.clone()));
        let network = wanted.and_then(|wanted| state.local.find(&wanted));
        view.local = network.map(|network| (network.id.clone(), network.spec.name.clone()));
        Some(view)
    }

    /// The networks of this host alone.
    pub(crate) fn networks(&self) -> Vec<LocalView> {
        self.shared.state().local.views()
    }

    /// Makes a network of this host. Its id, and what its user should know. `cluster`: subnets that it had better not have.
    ///
    /// # Errors
    /// See [`PlainError`]; nothing of the network is left.
    pub(crate) async fn create_network(
        &self,
        spec: NetworkSpec,
        cluster: Vec<Subnet>,
    ) -> Result<(String, Option<String>), PlainError> {
        let shared = Arc::clone(&self.shared);
        // To its end, also when who asked has gone.
        let made = self.shared.tasks.spawn(async move { shared.create_network(spec, cluster).await });
        made.await.unwrap_or(Err(PlainError::Ended))
    }

    /// Removes a network of this host that no container is on.
    ///
    /// # Errors
    /// See [`PlainError`]; the network stays.
    pub(crate) async fn remove_network(&self, id: &str) -> Result<(), PlainError> {
        let (shared, id) = (Arc::clone(&self.shared), id.to_owned());
        let removed = self.shared.tasks.spawn(async move { shared.remove_network(&id).await });
        removed.await.unwrap_or(Err(PlainError::Ended))
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

    /// Stops a container, by force after `grace`; its restart policy does nothing about that. Whether it ran, or was
    /// about to.
    pub(crate) async fn stop(&self, id: &str, signal: Option<Signal>, grace: Duration) -> Result<bool, PlainError> {
        self.ask(id, |reply| Command::Stop(signal, grace, reply)).await
    }

    /// Stops a container, as above, and starts it.
    pub(crate) async fn restart(&self, id: &str, signal: Option<Signal>, grace: Duration) -> Result<(), PlainError> {
        self.ask(id, |reply| Command::Restart(signal, grace, reply)).await
    }

    /// Its user ends it by a signal, which is the caller's to send: its restart policy does nothing about that.
    pub(crate) async fn will_end(&self, id: &str) -> Result<(), PlainError> {
        self.ask(id, Command::WillEnd).await
    }

    /// The streams of a container: if it has ended, those of its next run, as soon as that is prepared. They are dropped
    /// when it is removed instead.
    pub(crate) async fn attach(
        &self,
        id: &str,
        wanted: Wanted,
    ) -> Result<oneshot::Receiver<Result<Streams, RuntimeError>>, PlainError> {
        let (listener, streams) = Listener::new(wanted);
        self.ask(id, |reply| Command::Attach(listener, reply)).await?;
        Ok(streams)
    }

    /// Gives a container another name.
    pub(crate) async fn rename(&self, id: &str, name: String) -> Result<(), PlainError> {
        self.ask(id, |reply| Command::Rename(name, reply)).await
    }

    /// Gives a container another restart policy, with a bound for restarts in a row; 0 for none.
    pub(crate) async fn update(&self, id: &str, restart: Restart, max_restarts: u32) -> Result<(), PlainError> {
        self.ask(id, |reply| Command::Update(restart, max_restarts, reply)).await
    }

    /// Changes whenever a run of the container is prepared; closed when it is removed.
    pub(crate) fn runs(&self, id: &str) -> Option<watch::Receiver<()>> {
        self.shared.state().known.get(id).map(|known| known.runs.subscribe())
    }

    /// Removes a container, one that runs only by force; with the volumes that nobody gave a name, or without.
    pub(crate) async fn remove(&self, id: &str, force: bool, volumes: bool) -> Result<(), PlainError> {
        if !self.shared.state().known.contains_key(id) {
            return self.shared.remove_unknown(id, force, volumes).await;
        }
        self.ask(id, |reply| Command::Remove { force, volumes, reply }).await
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
        let removed = futures_util::future::join_all(ids.iter().map(|id| self.remove(id, true, false))).await;
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

/// Gives a container the name of its label, which is what a rename writes first: one that was cut in two is done so.
/// Whether there was one.
fn finish_rename(record: &mut Record, labels: &BTreeMap<String, String>) -> bool {
    let Some(name) = labels.get(PLAIN_LABEL).filter(|name| **name != record.name) else { return false };
    record.name.clone_from(name);
    true
}

/// The place that is still a container's when the daemon begins. What one had that has ended meanwhile may be another's by
/// now.
fn found_place(record: &mut Record, runs: bool) -> Place {
    if !runs {
        record.chosen_ports.clear();
        record.lose_place();
    }
    if record.place.is_none() { Place::Unused } else { Place::Used(record.place.clone()) }
}

/// Whether it is connected by the overlay.
fn needs_overlay(record: &Record) -> bool {
    record.spec.network_mode() == NetworkMode::Cluster
}

#[cfg(test)]
mod tests {
    use deploy::model::{NetworkAttachment, TaskId};

    use super::*;

    #[test]
    fn a_rename_that_was_cut_in_two_is_done() {
        let mut record = Record { name: "old".into(), ..Record::default() };
        let labels = BTreeMap::from([(PLAIN_LABEL.to_owned(), "new".to_owned())]);
        assert!(finish_rename(&mut record, &labels) && record.name == "new");
        assert!(!finish_rename(&mut record, &labels) && !finish_rename(&mut record, &BTreeMap::new()));
        assert_eq!(record.name, "new");
    }

    #[test]
    fn one_that_has_ended_without_its_daemon_has_no_address() {
        let had = Record {
            place: TaskId::new("place"),
            attachments: vec![NetworkAttachment { address: "10.0.1.2/24".into(), ..NetworkAttachment::default() }],
            chosen_ports: vec![28_000],
            ..Record::default()
        };
        let mut record = had.clone();
        assert_eq!(found_place(&mut record, true), Place::Used(TaskId::new("place")));
        assert_eq!(record, had);
        assert_eq!(found_place(&mut record, false), Place::Unused);
        assert_eq!(record, Record::default());
        assert_eq!(found_place(&mut record, true), Place::Unused);
    }
}
