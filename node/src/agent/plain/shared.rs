//! What all of this host's plain containers share: names, ports, networks, places on networks, and what is shown of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploy::agent::Place;
use deploy::model::{LOCAL_DRIVER, NetworkSpec, Subnet};
use overlay_net::{Overlay, PublishedPort};
use runtime::{ContainerState, EventKind, RuntimeError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::keeper::{Command, Keeper};
use super::local::{LocalError, LocalNetworks, NUMBERS_END, NetworkRecord};
use super::record::{NetworkOf, Record, Records};
use super::{PlainConfig, PlainError, QUEUE, View, Wants, Wish, names, ports};
use crate::agent::{container, executor, network};

/// Plain containers of one host.
pub(super) const MAX: usize = 4096;

pub(super) struct Shared {
    pub(super) config: PlainConfig,
    pub(super) records: Records<Record>,
    pub(super) network_records: Records<NetworkRecord>,
    pub(super) state: Mutex<State>,
    /// Held while a network is made or removed.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) wants: watch::Sender<Wants>,
    /// Somebody does not use a place any more.
    pub(super) unused: Notify,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

pub(super) struct State {
    pub(super) known: BTreeMap<String, Known>,
    /// The networks of this host alone.
    pub(super) local: LocalNetworks,
    /// Found at the start, and not begun yet.
    pub(super) found: Vec<(Record, Option<ContainerState>, mpsc::Receiver<Command>)>,
}

pub(super) struct Known {
    pub(super) view: View,
    /// The name that it is being given: its own already, beside the one that it has until then.
    pub(super) renamed: Option<String>,
    /// It has its ports.
    pub(super) holds_ports: bool,
    pub(super) place: Place,
    pub(super) commands: mpsc::Sender<Command>,
    /// Changes whenever a run of it is prepared.
    pub(super) runs: watch::Sender<()>,
}

impl State {
    /// What the overlay is to have for them.
    pub(super) fn wants(&self) -> Wants {
        Wants { ports: self.ports(), networks: self.local.networks(), subnets: self.local.subnets() }
    }

    fn ports(&self) -> Vec<PublishedPort> {
        let holding = self.known.values().filter(|known| known.holds_ports);
        holding.flat_map(|known| network::ports_of(&known.view.record.task()).collect::<Vec<_>>()).collect()
    }

    fn holder_of(&self, name: &str) -> Option<&str> {
        let has = |known: &&Known| known.view.record.name == name || known.renamed.as_deref() == Some(name);
        self.known.values().find(has).map(|known| known.view.record.id.as_str())
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and each change of it is one insertion, removal or assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it until the daemon lets go.
    pub(super) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    pub(super) async fn create(self: &Arc<Self>, wish: Wish) -> Result<String, PlainError> {
        let id: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        let mut record = Record {
            id: id.clone(),
            created: crate::agent::now(),
            spec: wish.spec,
            ports: wish.ports,
            max_restarts: wish.max_restarts,
            auto_remove: wish.auto_remove,
            host_config: wish.host_config,
            addresses: wish.addresses.into_iter().map(|(network, address)| (network, address.to_string())).collect(),
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
            let wished = record.spec.cluster_networks().next().cloned();
            if let Some(wish) = wished {
                match state.local.check(&wish, &record) {
                    Some(fits) => {
                        fits?;
                        record.set_network_of(NetworkOf::Host);
                    }
                    // It may be one of the cluster, or be made later.
                    None if record.asked_address(&wish.target).is_none() => {}
                    None => return Err(PlainError::AddressElsewhere(wish.target)),
                }
            }
            record.name = match wish.name {
                Some(name) => match state.holder_of(&name) {
                    Some(holder) => return Err(PlainError::NameTaken { id: holder.to_owned(), name }),
                    None => name,
                },
                None => names::choose(rand::random(), |name| state.holder_of(name).is_some()),
            };
            let view = View::new(record.clone());
            let (runs, _) = watch::channel(());
            let (renamed, place) = (None, Place::Unused);
            state.known.insert(id.clone(), Known { view, renamed, holds_ports: false, place, commands, runs });
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

    /// A container is given another name, unless somebody has it: until [`Shared::renamed`] both are its own.
    pub(super) fn take_name(&self, id: &str, name: &str) -> Result<(), PlainError> {
        let mut state = self.state();
        if let Some(holder) = state.holder_of(name) {
            return Err(match holder == id {
                true => PlainError::SameName,
                false => PlainError::NameTaken { id: holder.to_owned(), name: name.to_owned() },
            });
        }
        if let Some(known) = state.known.get_mut(id) {
            known.renamed = Some(name.to_owned());
        }
        Ok(())
    }

    /// It has this name alone.
    pub(super) fn renamed(&self, id: &str, name: &str) {
        if let Some(known) = self.state().known.get_mut(id) {
            known.renamed = None;
            name.clone_into(&mut known.view.record.name);
        }
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
        executor::make_mountpoints(&record.task()).await.map_err(PlainError::Mount)?;
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
    pub(super) async fn write(&self, record: &Record) -> Result<(), PlainError> {
        let (records, written) = (self.records.clone(), record.clone());
        let done = tokio::task::spawn_blocking(move || records.write(&written)).await;
        done.map_err(|_| PlainError::Ended)??;
        if let Some(known) = self.state().known.get_mut(&record.id) {
            known.view.record = record.clone();
        }
        Ok(())
    }

    /// Gives a container its ports: it has them from now on.
    pub(super) fn take_ports(&self, record: &mut Record) -> Result<(), PlainError> {
        record.chosen_ports.clear();
        if record.ports.is_empty() {
            return Ok(());
        }
        let key = record.key();
        let mut state = self.state();
        let others: Vec<PublishedPort> =
            state.ports().into_iter().filter(|port| port.task.as_deref() != Some(key.as_str())).collect();
        let desired = self.config.desired.borrow();
        let of_services = desired.iter().flat_map(|desired| &desired.ports);
        let of_services: Vec<&PublishedPort> =
            of_services.filter(|port| port.task.as_deref() != Some(key.as_str())).collect();
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
        self.tell(&state);
        Ok(())
    }

    /// Gives a container an address on the network of its spec, if that is one of this host alone; `false` if it is not.
    pub(super) fn join_local(&self, record: &mut Record) -> Result<bool, PlainError> {
        let Some(wish) = record.local_wish() else { return Ok(false) };
        let mut guard = self.state();
        let state = &mut *guard;
        let others = state.known.values().map(|known| &known.view.record);
        let Some(joined) = state.local.join(wish, record, others) else {
            return match record.network_of() {
                NetworkOf::Host => Err(LocalError::NotFound(wish.target.clone()).into()),
                _ => Ok(false),
            };
        };
        let joined = joined?;
        if let Some(network) = state.local.find(joined.network.as_str()) {
            self.tell_of(network, "connect", Some(&record.id));
        }
        record.attachments = vec![joined];
        record.set_network_of(NetworkOf::Host);
        self.tell(state);
        Ok(true)
    }

    /// Whether a container is on a network of this host of which what was remembered is lost.
    pub(super) fn has_lost_network(&self, record: &Record) -> bool {
        self.state().local.has_lost_one_of(record)
    }

    /// Tells those who listen to events, in Docker's words.
    fn tell_of(&self, network: &NetworkRecord, action: &str, container: Option<&str>) {
        let mut attributes = vec![("name", network.spec.name.clone()), ("type", LOCAL_DRIVER.to_owned())];
        attributes.extend(container.map(|container| ("container", container.to_owned())));
        self.config.runtime.events().tell(EventKind::Network, action, network.id.as_str(), &Arc::default(), attributes);
    }

    /// A container has another name, by which it is found from now on.
    pub(super) fn rename_local(&self, record: &Record) {
        let mut state = self.state();
        state.local.rejoin(record);
        self.tell(&state);
    }

    fn leave_local(&self, state: &mut State, container: &str) {
        for network in state.local.leave(container) {
            self.tell_of(&network, "disconnect", Some(container));
        }
    }

    /// Makes a network of this host; its id, and what its user should know. `cluster`: subnets that it need not have.
    pub(super) async fn create_network(
        &self,
        spec: NetworkSpec,
        mut cluster: Vec<Subnet>,
    ) -> Result<(String, Option<String>), PlainError> {
        let _changing = self.changing.lock().await;
        if self.stop.is_cancelled() {
            return Err(PlainError::Ended);
        }
        if let Some(desired) = &*self.config.desired.borrow() {
            let carried = || desired.networks.iter().filter(|network| network.vni >= NUMBERS_END);
            if carried().any(|network| network.name == spec.name) {
                return Err(LocalError::NameTaken(spec.name).into());
            }
            cluster.extend(carried().filter_map(|network| Subnet::parse(&network.subnet.trunc().to_string())));
        }
        let (link, others) = (self.config.way_out_link.clone(), self.state().local.subnets());
        // As they are now: the host may have got networks since its daemon began.
        let around = tokio::task::spawn_blocking(move || super::around(link.as_deref(), &others, cluster)).await;
        let around = around.map_err(|_| PlainError::Ended)?;
        let id: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        let (record, warning) = self.state().local.plan(spec, &around, id.clone(), crate::agent::now())?;
        let (records, written) = (self.network_records.clone(), record.clone());
        let done = tokio::task::spawn_blocking(move || records.write_first(&written)).await;
        done.map_err(|_| PlainError::Ended)??;
        // It was planned beside the others, and nobody has added another one since.
        {
            let mut state = self.state();
            state.local.add(record.clone()).map_err(|reason| LocalError::Invalid(reason.to_owned()))?;
            self.tell(&state);
        }
        self.tell_of(&record, "create", None);
        Ok((id, warning))
    }

    /// Removes a network of this host that nobody is on.
    pub(super) async fn remove_network(&self, id: &str) -> Result<(), PlainError> {
        let _changing = self.changing.lock().await;
        // From here on nobody gets an address on it.
        let removed = {
            let mut guard = self.state();
            let state = &mut *guard;
            let others = state.known.values().map(|known| &known.view.record);
            let removed = state.local.remove(id, others)?;
            self.tell(state);
            removed
        };
        let (records, id) = (self.network_records.clone(), removed.record().id.clone());
        let done = tokio::task::spawn_blocking(move || records.remove(&id)).await;
        let done = done.map_err(|_| PlainError::Ended).and_then(|done| Ok(done?));
        match done {
            Ok(()) => self.tell_of(removed.record(), "destroy", None),
            Err(_) => {
                let mut state = self.state();
                state.local.put_back(removed);
                self.tell(&state);
            }
        }
        done
    }

    /// It is not connected any more.
    pub(super) fn release(&self, record: &Record) {
        let mut state = self.state();
        if let Some(known) = state.known.get_mut(&record.id) {
            known.holds_ports = false;
            known.place = if record.place.is_none() { Place::Unused } else { Place::Kept(record.place.clone()) };
            (known.view.address, known.view.connected) = (None, false);
        }
        self.leave_local(&mut state, &record.id);
        self.tell(&state);
        self.unused.notify_one();
    }

    fn tell(&self, state: &State) {
        let wants = state.wants();
        self.wants.send_if_modified(|known| {
            let changed = *known != wants;
            *known = wants;
            changed
        });
    }

    pub(super) fn show(&self, id: &str, change: impl FnOnce(&mut View)) {
        if let Some(known) = self.state().known.get_mut(id) {
            change(&mut known.view);
        }
    }

    /// A run of it is prepared.
    pub(super) fn renewed(&self, id: &str) {
        if let Some(known) = self.state().known.get(id) {
            known.runs.send_replace(());
        }
    }

    /// Removes one whose record could not be read.
    pub(super) async fn remove_unknown(&self, id: &str, force: bool, volumes: bool) -> Result<(), PlainError> {
        let here = self.config.runtime.list().await.into_iter().find(|state| state.id == id);
        if !here.is_some_and(|state| container::is_plain(&state.labels)) {
            return Err(PlainError::NotFound(id.to_owned()));
        }
        if !force {
            return Err(PlainError::Unreadable(id.to_owned()));
        }
        if !volumes {
            self.config.runtime.keep_volumes(id).await?;
        }
        self.config.runtime.delete(id).await?;
        let (records, id) = (self.records.clone(), id.to_owned());
        let removed = tokio::task::spawn_blocking(move || records.remove(&id)).await;
        Ok(removed.map_err(|_| PlainError::Ended)??)
    }

    /// Nothing is left of it.
    pub(super) fn forget(&self, id: &str) {
        let mut state = self.state();
        state.known.remove(id);
        self.leave_local(&mut state, id);
        self.tell(&state);
        self.unused.notify_one();
    }

    /// Its use of a place.
    pub(super) fn use_place(&self, id: &str, place: Place) {
        if let Some(known) = self.state().known.get_mut(id) {
            known.place = place;
        }
        self.unused.notify_one();
    }

    /// Gives back what the cluster has given and nobody uses, and stops who uses what it has not given. Never ends.
    pub(super) async fn settle_places(self: &Arc<Self>) {
        /// Pause before what failed is tried again.
        const RETRY: Duration = Duration::from_secs(1);
        let Some(places) = &self.config.places else { return };
        let mut given = places.given.clone();
        let (mut settling, began) = (deploy::agent::Places::default(), Instant::now());
        loop {
            let now = given.borrow_and_update().clone();
            let mut failed = false;
            let settled = {
                let state = self.state();
                let used = state.known.iter().map(|(container, known)| (container.clone(), &known.place));
                settling.settle(&now, used, began.elapsed())
            };
            for id in &settled.unused {
                if let Err(error) = places.give_back(id).await {
                    tracing::warn!(
                        place = %id, error = crate::chain(&error),
                        "a place on a network could not be given back; trying again"
                    );
                    failed = true;
                }
            }
            for container in &settled.displaced {
                self.displaced(container).await;
            }
            tokio::select! {
                biased;
                changed = given.changed() => if changed.is_err() { return },
                () = self.unused.notified() => {}
                () = tokio::time::sleep(RETRY), if failed || settled.again => {}
            }
        }
    }

    /// Its address may be another's by now: the host was away for too long, or the cluster began anew from a backup. It
    /// loses it at once, and ends in its own time; its restart policy says whether it is to ask for another place.
    async fn displaced(self: &Arc<Self>, container: &str) {
        tracing::error!(
            container.id = container,
            "the cluster does not know a container's place on its network any more: it is stopped"
        );
        let found = self.state().known.get(container).map(|known| known.view.record.clone());
        let Some(record) = found else { return };
        if let Some(overlay) = &self.config.overlay
            && let Err(error) = overlay.detach(record.key().as_str()).await
        {
            tracing::warn!(container.id = container, error = crate::chain(&error), "it could not be disconnected");
        }
        let this = Arc::clone(self);
        self.spawn(async move {
            /// Pause before a stop that failed is tried again.
            const RETRY: Duration = Duration::from_secs(1);
            while let Err(error) = this.config.runtime.stop(&record.id, None, record.spec.container.stop_grace()).await
            {
                if matches!(error, RuntimeError::NotFound(_)) {
                    return;
                }
                tracing::warn!(container.id = record.id, error = crate::chain(&error), "it could not be stopped");
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    /// Waits until its ports are in force, as far as no service has them by now, and others on a network of this host
    /// find it.
    pub(super) async fn published(&self, overlay: &Overlay, record: &Record) -> Result<(), PlainError> {
        /// How often it is looked.
        const EVERY: Duration = Duration::from_millis(10);
        /// How long.
        const PATIENCE: Duration = Duration::from_secs(10);
        let wanted: Vec<PublishedPort> = network::ports_of(&record.task()).collect();
        // Of its place on a network of the cluster, managers tell others.
        let places = record.attachments.iter().filter(|_| record.network_of() == NetworkOf::Host);
        let local: Vec<(&str, Ipv4Addr)> = places
            .filter_map(|place| Some((place.network.as_str(), place.address.split('/').next()?.parse().ok()?)))
            .collect();
        let looking = async {
            loop {
                let observed = overlay.observe().await.map_err(|error| PlainError::Network(crate::chain(&error)))?;
                let found = local.iter().all(|(id, address)| {
                    let network = observed.desired.network(id);
                    network.is_some_and(|network| network.stations.iter().any(|one| one.address == *address))
                });
                if found && wanted.iter().all(|port| observed.desired.ports.contains(port)) {
                    return Ok(());
                }
                tokio::time::sleep(EVERY).await;
            }
        };
        let late = || PlainError::Network("its ports and names could not be published within 10 s".to_owned());
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| Err(late()))
    }
}
