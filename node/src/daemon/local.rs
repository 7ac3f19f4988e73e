//! The engine of this host, in a cluster or not: what the API server talks to.
//!
//! Joining and leaving go one at a time. The membership is on disk before its success is reported, and gone from disk
//! before a departure is: what was cut in between is finished or rolled back at the next start.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deploy::control::{Reply, Request};
use deploy::model::{NodeId, TaskId};
use deploy::store::Store;
use overlay_net::Overlay;
use runtime::Runtime;
use runtime::image::registry::{Credentials, Registries};
use runtime::image::{Image, ImageErrorKind, ImageStore, Reference};
use tokio::sync::mpsc;

use super::active::{Active, internal, overlay_is_left, remove_overlay, renounce};
use super::config::Config;
use super::describe;
use super::ports::Ports;
use crate::agent::Plain;
use crate::containers::Containers;
use crate::datadir::{DataDir, EngineIdentity};
use crate::docker_api;
use crate::engine::{
    AgentState, AppliedStore, Consistency, Engine, EngineError, InitRequest, JoinRequest, LogRecord, LogRequest,
    ManagerView, Membership, RecoverRequest, Recovered, RestoreRequest,
};
use crate::manager::{self, Manager};
use crate::metrics::Readings;
use crate::timing::Timing;
use crate::vault::UnlockKey;

/// After this time the user is told that the join goes on without being waited for. Docker says so after 20 s; a
/// manager that has to fetch a long log may take longer.
const JOIN: Duration = Duration::from_secs(60);
/// After this time whoever unlocks is answered, and the node goes on taking its place.
const UNLOCK: Duration = Duration::from_secs(20);
/// Pause before another try to take up a membership.
const RESUME_RETRY: Duration = Duration::from_secs(2);

/// How often an image's name is looked for before nobody has it.
const RESOLVE_TRIES: u32 = 3;
/// After this time a registry has not answered what a name stands for.
const ASK_REGISTRY: Duration = Duration::from_secs(15);
/// Pause between two of these looks. An agent tells its manager of a new image within milliseconds.
const RESOLVE_PAUSE: Duration = Duration::from_millis(200);

// Docker's texts, which its users and tools know; Shoal's own command line says "shoal node" where they say "docker swarm".
const ALREADY: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join \
                       another one.";
const NOT_IN_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to \
                            connect this node to swarm and try again.";
pub(super) const WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. \
                      Please run this command on a manager node or promote the current node to a manager.";
const ALONE: &str = "This node is in no cluster, and Shoal runs containers only where there is one, for the networks are \
                     the cluster's. \"shoal node init\" or \"docker swarm init\" makes one of this host alone.";
const PENDING: &str = "This node is taking its place in the cluster; try again in a moment.";
const REMOVED: &str =
    "This node was removed from its cluster; \"docker swarm leave --force\" frees it for another one.";
const HAS_LEADER: &str = "The swarm has a leader: there is nothing to recover from. A recovery would part this node from \
                          the other managers; force it if that is what you want.";
const MANAGER_LEAVES: &str = "You are attempting to leave the swarm on a node that is participating as a manager.";

/// The engine of this host. A clone is a handle to the same one.
#[derive(Clone)]
pub struct LocalEngine {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    data: DataDir,
    /// Its generation grows when the node begins anew without the daemon ending.
    identity: Mutex<EngineIdentity>,
    runtime: Runtime,
    containers: Containers,
    registries: Registries,
    state: Mutex<State>,
    api_counters: Arc<docker_api::Counters>,
    /// Held through an init, a join or a leave.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
enum State {
    Inactive,
    Pending,
    Locked,
    Active(Arc<Active>),
    Error(String),
}

impl LocalEngine {
    /// The engine over an open data directory, not yet in any cluster.
    pub fn new(
        config: Config,
        data: DataDir,
        identity: EngineIdentity,
        runtime: Runtime,
        registries: Registries,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                data,
                identity: Mutex::new(identity),
                containers: Containers::new(runtime.clone()),
                runtime,
                registries,
                state: Mutex::new(State::Inactive),
                api_counters: Arc::default(),
                changing: tokio::sync::Mutex::new(()),
            }),
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(super) fn data(&self) -> &DataDir {
        &self.inner.data
    }

    pub(super) fn identity(&self) -> EngineIdentity {
        self.inner.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A new boot generation, as if the daemon had been started again.
    pub(super) fn renew_identity(&self) -> Result<(), EngineError> {
        let id = self.identity().engine_id;
        let renewed = self.data().start_engine(|| id).map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        *self.inner.identity.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    pub(super) fn image_registries(&self) -> &Registries {
        &self.inner.registries
    }

    /// What the API server counts.
    pub(super) fn api_counters(&self) -> Arc<docker_api::Counters> {
        self.inner.api_counters.clone()
    }

    /// What this node tells whoever watches it.
    pub(super) fn readings(&self) -> Readings {
        let mut readings = Readings { api: self.api_counters(), ..Readings::default() };
        if let State::Active(active) = self.state() {
            readings.certificate_expiry = Some(active.tls.validity().not_after);
            readings.gossip = Some((active.gossip.stats(), active.gossip.members()));
            readings.agent = Some(active.agent.readings());
            readings.manager = active.manager().map(|manager| manager.readings());
        }
        readings
    }

    fn state(&self) -> State {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_state(&self, state: State) {
        *self.inner.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn active(&self) -> Result<Arc<Active>, EngineError> {
        match self.state() {
            State::Active(active) => Ok(active),
            State::Inactive => Err(EngineError::NotManager(NOT_IN_SWARM.into())),
            State::Pending => Err(EngineError::NotManager(PENDING.into())),
            State::Locked => Err(EngineError::Locked),
            State::Error(reason) => Err(EngineError::NotManager(reason)),
        }
    }

    fn manager(&self) -> Result<Arc<Manager>, EngineError> {
        let active = self.active()?;
        let without = || EngineError::NotManager(active.damage().unwrap_or_else(|| WORKER.into()));
        active.manager().ok_or_else(without)
    }

    /// Takes up the membership that the data directory holds, or cleans up after one that was not finished. What stands
    /// in the way (a port that is still taken, a disk that is full) may pass: it is tried again until it works, or the
    /// node has left.
    pub async fn resume(&self) {
        let mut first = true;
        loop {
            let changing = self.inner.changing.lock().await;
            // Who left meanwhile may be in another cluster by now.
            if !std::mem::take(&mut first) && !matches!(self.state(), State::Error(_)) {
                return;
            }
            match self.try_resume().await {
                Ok(state) => return self.set_state(state),
                Err(error) => {
                    tracing::error!(%error, "the node cannot take its place in the cluster; trying again");
                    self.set_state(State::Error(error.to_string()));
                }
            }
            drop(changing);
            tokio::time::sleep(RESUME_RETRY).await;
        }
    }

    async fn try_resume(&self) -> Result<State, EngineError> {
        if self.data().is_locked() {
            tracing::error!(
                "this manager is locked: it takes part only after \"shoal node unlock\" (or \"docker swarm unlock\") with the \
                 cluster's unlock key; tasks that run here go on"
            );
            return Ok(State::Locked);
        }
        let Some(record) = self.data().membership().map_err(|e| EngineError::Internal(crate::chain(&e)))? else {
            // A join or a leave that was cut left no membership: nothing of it may stay.
            self.data().forget_membership().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
            if overlay_is_left(self) {
                remove_overlay(self, None).await?;
            }
            self.inner.runtime.destroy().await.map_err(|e| EngineError::Internal(crate::chain(&e)))?;
            return Ok(State::Inactive);
        };
        self.set_state(State::Pending);
        self.data().finish_recovery(record.raft_id).map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        let record = super::moved::follow(record).await;
        let description = describe(self, &record.listen_addr, &record.advertise_addr, &record.data_path_addr);
        let ports = Ports::bind(&record.listen_addr)?;
        Active::start(self.clone(), record, ports, description, None).await.map(State::Active)
    }

    /// Stops everything but the tasks. A leader hands over first.
    pub async fn shutdown(&self) {
        if let State::Active(active) = self.state() {
            if let Some(manager) = active.manager() {
                manager.step_down().await;
            }
            active.shutdown().await;
        }
    }

    async fn make(self, request: InitRequest) -> Result<NodeId, EngineError> {
        let _changing = self.inner.changing.lock().await;
        match self.state() {
            State::Inactive => {}
            State::Locked => return Err(EngineError::Locked),
            _ => return Err(EngineError::WrongMembership(ALREADY.into())),
        }
        self.set_state(State::Pending);
        match self.make_cluster(request).await {
            Ok((active, node_id)) => {
                self.set_state(State::Active(active));
                Ok(node_id)
            }
            Err(error) => {
                self.set_state(State::Inactive);
                Err(error)
            }
        }
    }

    async fn enter(self, request: JoinRequest) -> Result<(), EngineError> {
        let changing = self.inner.changing.lock().await;
        match self.state() {
            State::Inactive => {}
            State::Locked => return Err(EngineError::Locked),
            _ => return Err(EngineError::WrongMembership(ALREADY.into())),
        }
        self.set_state(State::Pending);
        let active = match self.enter_cluster(request).await {
            Ok(active) => active,
            Err(error) => {
                self.set_state(State::Inactive);
                return Err(error);
            }
        };
        // It is a member now, whatever comes; while it waits for the cluster to see it so, it may also leave.
        self.set_state(State::Active(active.clone()));
        drop(changing);
        match tokio::time::timeout(JOIN, active.wait_until_in()).await {
            Ok(Ok(())) => Ok(()),
            Err(_) => Err(EngineError::JoinGoesOn),
            Ok(Err(error)) => {
                let _changing = self.inner.changing.lock().await;
                if matches!(self.state(), State::Active(now) if Arc::ptr_eq(&now, &active)) {
                    self.take_down(&active).await?;
                }
                Err(error)
            }
        }
    }

    async fn open(self, key: String) -> Result<(), EngineError> {
        let invalid = || EngineError::Invalid("swarm could not be unlocked: invalid key provided".into());
        {
            let _changing = self.inner.changing.lock().await;
            if !matches!(self.state(), State::Locked) {
                return Err(EngineError::WrongMembership("swarm is not locked".into()));
            }
            let key = UnlockKey::parse(&key).ok_or_else(invalid)?;
            self.data().vault().unlock(&key).map_err(|_| invalid())?;
            self.set_state(State::Pending);
        }
        tracing::info!("this manager is unlocked");
        self.resume().await;
        Ok(())
    }

    async fn depart(self, force: bool) -> Result<(), EngineError> {
        let _changing = self.inner.changing.lock().await;
        let active = match self.state() {
            State::Active(active) => active,
            State::Error(_) | State::Locked if force => return self.drop_membership().await,
            State::Error(reason) => return Err(EngineError::WrongMembership(reason)),
            State::Locked => return Err(EngineError::Locked),
            State::Inactive | State::Pending => {
                return Err(EngineError::WrongMembership("This node is not part of a swarm".into()));
            }
        };
        let own = active.agent.plain().count();
        if own > 0 && !force {
            return Err(EngineError::WrongMembership(format!(
                "This node has {own} containers of its own, which go with its networks and all that they have written. \
                 Remove them first, or leave with --force."
            )));
        }
        if !active.was_removed() && active.refused().is_none() {
            if active.manager().is_some() && !force {
                return Err(EngineError::WrongMembership(manager_leaves(&active)));
            }
            // A worker may go whenever it wants, and who forces it knows why: the cluster finds out by itself that the
            // node is Down.
            if let Err(error) = active.say_goodbye().await {
                tracing::warn!(
                    node.id = active.record().node_id,
                    %error,
                    "leaving without the cluster's knowledge; run `shoal node demote` (if this is a manager) and \
                     `shoal node rm` with its id on another manager"
                );
            }
        }
        self.take_down(&active).await
    }

    async fn begin_from(self, request: RestoreRequest) -> Result<Recovered, EngineError> {
        // Before anything is stopped for it.
        let mut request = request;
        let bytes = std::mem::take(&mut request.backup);
        // Some hundred MiB to hash and to read are too much for a thread that others wait for.
        let read = tokio::task::spawn_blocking(move || crate::backup::decode(&bytes)).await;
        let backup = read
            .map_err(|e| internal("the backup could not be read")(&e))?
            .map_err(|e| EngineError::Invalid(e.to_string()))?;
        let _changing = self.inner.changing.lock().await;
        match self.state() {
            State::Active(active) => self.restore_into(active, backup).await,
            State::Inactive => self.restore_here(backup, request).await,
            State::Pending => Err(EngineError::NotManager(PENDING.into())),
            State::Locked => Err(EngineError::Locked),
            State::Error(reason) => Err(EngineError::WrongMembership(reason)),
        }
    }

    /// The node is neither in nor out for a while.
    pub(super) fn set_pending(&self) {
        self.set_state(State::Pending);
    }

    /// The node is in no cluster after all.
    pub(super) fn set_inactive(&self) {
        self.set_state(State::Inactive);
    }

    async fn begin_again(self, request: RecoverRequest) -> Result<Recovered, EngineError> {
        let _changing = self.inner.changing.lock().await;
        self.stop_for_recovery(&request).await?;
        let recovered = super::recover(self.data(), &request).await;
        self.take_up_again().await;
        recovered
    }

    /// Stops the node, but not its tasks.
    async fn stop_for_recovery(&self, request: &RecoverRequest) -> Result<(), EngineError> {
        match self.state() {
            State::Active(active) => {
                let manager = active.manager().ok_or_else(|| EngineError::NotManager(WORKER.into()))?;
                if !request.force && manager.in_touch() {
                    return Err(EngineError::WrongMembership(HAS_LEADER.into()));
                }
                drop(manager);
                self.set_state(State::Pending);
                active.shutdown().await;
                Ok(())
            }
            State::Error(reason) => recover_unasked(request.force, &reason),
            State::Locked => Err(EngineError::Locked),
            State::Inactive => Err(EngineError::NotManager(NOT_IN_SWARM.into())),
            State::Pending => Err(EngineError::NotManager(PENDING.into())),
        }
    }

    /// Takes up the membership as at a start of the daemon; what stands in the way is tried again in the background.
    pub(super) async fn take_up_again(&self) {
        let again = match self.renew_identity() {
            Ok(()) => self.try_resume().await,
            Err(error) => Err(error),
        };
        match again {
            Ok(state) => self.set_state(state),
            Err(error) => {
                self.set_state(State::Error(error.to_string()));
                let engine = self.clone();
                tokio::spawn(async move { engine.resume().await });
            }
        }
    }

    /// Stops everything that the membership brought, removes it from the host and from the disk.
    async fn take_down(&self, active: &Active) -> Result<(), EngineError> {
        active.dismantle().await?;
        self.clear().await
    }

    /// Leaves a cluster whose membership could not be taken up: nothing runs but containers.
    async fn drop_membership(&self) -> Result<(), EngineError> {
        // A record that cannot be read is no reason to stay.
        let record = self.data().membership().ok().flatten();
        if let Some(record) = &record
            && let Err(error) = renounce(record).await
        {
            tracing::warn!(%error, "leaving without the cluster's knowledge");
        }
        remove_overlay(self, record.as_ref()).await?;
        self.clear().await
    }

    async fn clear(&self) -> Result<(), EngineError> {
        self.inner.runtime.destroy().await.map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        self.data().forget_membership().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        self.set_state(State::Inactive);
        Ok(())
    }
}

/// A node that has not taken its place, for this reason, knows nothing of the other managers: they may be well.
fn recover_unasked(force: bool, reason: &str) -> Result<(), EngineError> {
    if force {
        return Ok(());
    }
    Err(EngineError::WrongMembership(format!(
        "This node has not taken its place in the cluster, so the other managers could not be asked whether they have a \
         leader: {reason}. Mend that first; or, if they are gone for good, recover with --force. If they are not, that \
         parts this node from them"
    )))
}

/// Docker's words for a manager that may not just go.
fn manager_leaves(active: &Active) -> String {
    let Some(status) = active.manager().map(|manager| manager.status()) else { return MANAGER_LEAVES.into() };
    let voters = status.voters.len();
    let rest = match voters {
        0 | 1 => "Removing the last manager erases all current state of the swarm.".to_owned(),
        _ => format!(
            "Removing this node leaves {} managers out of {voters}. Without a Raft quorum your swarm will be \
             inaccessible. The only way to restore a swarm that has lost consensus is to reinitialize it with \
             `--force-new-cluster`.",
            voters - 1
        ),
    };
    format!("{MANAGER_LEAVES} {rest} Use `--force` to suppress this message.")
}

/// Does it to the end, also when who asked for it (a client that hangs up) no longer waits: a join that is dropped half
/// way would leave a node that is neither in nor out.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(EngineError::Internal("the daemon stops".into())),
        },
    }
}

impl Engine for LocalEngine {
    fn membership(&self) -> Membership {
        match self.state() {
            State::Inactive => Membership::Inactive,
            State::Pending => Membership::Pending,
            State::Locked => Membership::Locked,
            State::Active(active) if active.was_removed() => Membership::Error(REMOVED.into()),
            State::Active(active) => match active.damage().or_else(|| active.refused()) {
                Some(reason) => Membership::Error(reason),
                None => Membership::Active(active.member()),
            },
            State::Error(reason) => Membership::Error(reason),
        }
    }

    fn engine_id(&self) -> String {
        self.identity().engine_id.clone()
    }

    fn data_dir(&self) -> PathBuf {
        self.config().data_dir.clone()
    }

    fn timing(&self) -> Timing {
        self.config().timing
    }

    fn remaps_users(&self) -> bool {
        self.config().users.is_some()
    }

    fn labels(&self) -> Vec<String> {
        self.config().labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    fn manager_view(&self) -> ManagerView {
        self.manager().map(|manager| manager.view()).unwrap_or_default()
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, EngineError> {
        to_the_end(self.clone().make(request)).await
    }

    async fn join(&self, request: JoinRequest) -> Result<(), EngineError> {
        to_the_end(self.clone().enter(request)).await
    }

    async fn unlock(&self, key: String) -> Result<(), EngineError> {
        // What stands in the way of taking part, once it is open, is told by the membership.
        let opening = to_the_end(self.clone().open(key));
        tokio::time::timeout(UNLOCK, opening).await.unwrap_or(Ok(()))
    }

    async fn leave(&self, force: bool) -> Result<(), EngineError> {
        to_the_end(self.clone().depart(force)).await
    }

    async fn recover(&self, request: RecoverRequest) -> Result<Recovered, EngineError> {
        to_the_end(self.clone().begin_again(request)).await
    }

    async fn restore(&self, request: RestoreRequest) -> Result<Recovered, EngineError> {
        to_the_end(self.clone().begin_from(request)).await
    }

    async fn store(&self, consistency: Consistency) -> Result<Store, EngineError> {
        self.manager()?.store(consistency).await
    }

    async fn applied(&self, consistency: Consistency) -> Result<AppliedStore, EngineError> {
        let manager::Published { store, index, term } = self.manager()?.published(consistency).await?;
        Ok(AppliedStore { store, index, term })
    }

    async fn agent(&self) -> Result<AgentState, EngineError> {
        let active = self.active()?;
        active.agent.state().await.ok_or_else(|| EngineError::Internal("the agent has ended".into()))
    }

    fn overlay(&self) -> Result<Overlay, EngineError> {
        Ok(self.active()?.overlay())
    }

    async fn control(&self, request: Request) -> Result<Reply, EngineError> {
        self.manager()?.control(request).await
    }

    fn containers(&self) -> Option<Containers> {
        Some(self.inner.containers.clone())
    }

    fn plain(&self) -> Result<Plain, EngineError> {
        match self.state() {
            State::Inactive => Err(EngineError::WrongMembership(ALONE.into())),
            _ => Ok(self.active()?.agent.plain()),
        }
    }

    fn volumes(&self) -> runtime::Volumes {
        self.inner.runtime.volumes()
    }

    fn images(&self) -> ImageStore {
        self.inner.registries.store().clone()
    }

    fn registries(&self) -> Registries {
        self.inner.registries.clone()
    }

    async fn resolve_image(&self, name: Reference, credentials: Vec<Credentials>) -> Result<String, EngineError> {
        let manager = self.manager()?;
        for attempt in 0..RESOLVE_TRIES {
            let (images, wanted) = (self.images(), name.to_string());
            let found = tokio::task::spawn_blocking(move || images.resolve(&wanted)).await;
            match found.map_err(|e| internal("the image store's thread failed")(&e))? {
                Ok(Image { manifest_digest: Some(digest), .. }) => return Ok(digest),
                Ok(_) => {}
                Err(error) if error.kind() == ImageErrorKind::NotFound => {}
                Err(error) => return Err(internal("the image store")(&error)),
            }
            if let Some(digest) = manager.resolve_image(&name).await {
                return Ok(digest.to_string());
            }
            // What was loaded a moment ago is on its way to the managers.
            if attempt + 1 < RESOLVE_TRIES {
                tokio::time::sleep(RESOLVE_PAUSE).await;
            }
        }
        let asked = tokio::time::timeout(ASK_REGISTRY, self.inner.registries.inspect(&name, &credentials)).await;
        let reason = match asked {
            Ok(Ok(found)) => return Ok(found.digest.to_string()),
            Ok(Err(error)) => crate::chain(&error),
            Err(_) => "it does not answer".to_owned(),
        };
        Err(EngineError::NoSuchImage(format!(
            "{name}. No host of the cluster has it: load it on any of them with `shoal image load -i FILE`. Nor does its \
             registry give it: {reason}"
        )))
    }

    async fn images_in_use(&self) -> Vec<String> {
        crate::images::gc::in_use(&self.inner.runtime).await
    }

    async fn logs(
        &self,
        tasks: Vec<TaskId>,
        request: LogRequest,
    ) -> Result<mpsc::Receiver<Result<LogRecord, EngineError>>, EngineError> {
        let active = self.active()?;
        let store = self.manager()?.store(Consistency::Local).await?;
        crate::agent::gather_logs(active.channels(), &store, tasks, request, &active.log_readers()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_could_ask_nobody_is_recovered_by_force_only() {
        let Err(EngineError::WrongMembership(text)) = recover_unasked(false, "port 2377 is taken") else {
            panic!("it was parted from managers that may be well");
        };
        assert!(text.contains("port 2377 is taken") && text.contains("--force"), "{text}");
        recover_unasked(true, "port 2377 is taken").unwrap();
    }
}
