//! A node while it is in a cluster: everything that runs because of the membership, started and stopped together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use deploy::control::{InitCluster, Op, Request};
use deploy::model::{Cluster, Node, NodeDescription, NodeId};
use gossip::{Event, Gossip, Key, Keyring};
use overlay_net::{Overlay, OverlayError};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::knock;
use super::local::LocalEngine;
use super::ports::Ports;
use super::raft_entry;
use super::reflex::Reflex;
use crate::agent::{Agent, AgentConfig, AgentError, LogReaders};
use crate::ca::TlsContext;
use crate::datadir::{ManagerRecord, MembershipRecord};
use crate::engine::{EngineError, Member};
use crate::manager::{self, Manager, ManagerError};
use crate::rpc::{Channels, Connections, serve};

/// A new cluster's first manager leads within this time.
const BOOTSTRAP: Duration = Duration::from_secs(15);
/// How often a node that joins looks whether it may vote.
const VOTER_POLL: Duration = Duration::from_millis(20);

/// Seeds that gossip keeps.
const MAX_SEEDS: usize = 64;

/// The objects that a new cluster begins with.
pub(super) struct Birth {
    pub(super) cluster: Cluster,
    pub(super) node: Node,
}

/// Everything that runs because of a membership.
pub(super) struct Active {
    pub(super) engine: LocalEngine,
    record: Mutex<MembershipRecord>,
    /// What is wrong with Raft's files, until this node begins anew as a manager.
    damage: Mutex<Option<String>>,
    pub(super) tls: TlsContext,
    /// What the server of port 2377 holds.
    pub(super) connections: Connections,
    pub(super) channels: Channels,
    listener: std::net::TcpListener,
    pub(super) gossip: Gossip,
    overlay: Overlay,
    pub(super) agent: Agent,
    pub(super) manager: ArcSwapOption<Manager>,
    /// Ends the server, so that it begins again with other services.
    server: Mutex<CancellationToken>,
    stop: CancellationToken,
    /// Ends with `stop`, or before it when the node leaves.
    pub(super) following: CancellationToken,
    /// Who the managers were at the last look.
    pub(super) managers_before: Mutex<BTreeSet<String>>,
    /// Held while roots, certificate or key change, never across an `await`.
    pub(super) credentials: Mutex<()>,
    /// Held while the node's role changes.
    pub(super) turn: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
}

pub(super) fn internal(what: &'static str) -> impl Fn(&dyn std::error::Error) -> EngineError {
    move |error| EngineError::Internal(format!("{what}: {}", crate::chain(error)))
}

impl Active {
    /// Starts what the record says, on ports that were taken before. `birth` is given once, when the cluster is made.
    pub(super) async fn start(
        engine: LocalEngine,
        record: MembershipRecord,
        ports: Ports,
        description: NodeDescription,
        birth: Option<Birth>,
    ) -> Result<Arc<Self>, EngineError> {
        let tls = TlsContext::new(&record.root_pem, &record.cert_pem, &record.key_pem)
            .map_err(|e| internal("this node's certificate")(&e))?;
        let channels = Channels::new(tls.clone());
        let (gossip, events) = start_gossip(&engine, &record, ports.udp).await?;
        let overlay = Overlay::start(overlay_config(&engine, Some(&record)))
            .await
            .map_err(|e| internal("the overlay network could not be set up")(&e))?;
        let agent = Agent::start(AgentConfig {
            node_id: NodeId::new(record.node_id.clone()),
            generation: engine.identity().generation,
            description,
            channels: channels.clone(),
            runtime: engine.runtime().clone(),
            registries: engine.image_registries().clone(),
            image_rate: engine.config().image_serve_rate,
            users: engine.config().users.clone(),
            overlay: overlay.clone(),
            managers: record.managers.clone(),
            members: gossip.watch(),
            cache: engine.data().assignments(),
            plain_containers: engine.data().plain_containers(),
            local_networks: engine.data().local_networks(),
            vault: engine.data().vault().clone(),
            timing: engine.config().timing,
        })
        .await
        .map_err(|e| internal("the agent could not start")(&e))?;
        let stop = CancellationToken::new();
        let active = Arc::new(Self {
            engine,
            record: Mutex::new(record),
            damage: Mutex::default(),
            tls,
            connections: Connections::default(),
            channels,
            listener: ports.tcp,
            gossip,
            overlay,
            agent,
            manager: ArcSwapOption::empty(),
            server: Mutex::new(CancellationToken::new()),
            following: stop.child_token(),
            stop,
            managers_before: Mutex::default(),
            credentials: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            tasks: TaskTracker::new(),
        });
        active.tasks.spawn(Arc::clone(&active).reflex(events));
        match active.enter(birth).await {
            Ok(()) => Ok(active),
            Err(error) => {
                active.shutdown().await;
                Err(error)
            }
        }
    }

    async fn enter(self: &Arc<Self>, birth: Option<Birth>) -> Result<(), EngineError> {
        let record = self.record();
        if record.manager && record.raft_id != 0 {
            match self.superseded(&record).await {
                Some(by) => self.step_aside(&by)?,
                None => {
                    let had_log = birth.is_none() && record.raft_opened == record.raft_id;
                    match self.start_manager(record.raft_id, had_log).await {
                        // The others have all that it had: the supervisor begins anew through them.
                        Err(_) if self.damage().is_some() && record.managers.len() > 1 => {}
                        Err(error) => return Err(error),
                        Ok(_) if birth.is_none() => {
                            // Before anybody counts on it.
                            self.update_record(|record| record.raft_opened = record.raft_id)?;
                        }
                        // The record is written when the cluster is made.
                        Ok(_) => {}
                    }
                }
            }
        }
        self.restart_server()?;
        if let Some(birth) = birth {
            self.give_birth(birth).await?;
        }
        self.gossip.join(gossip_seeds(&record, &self.agent.view().borrow().hosts));
        let trust = Arc::clone(self).keep_trust();
        self.tasks.spawn(trust);
        let supervisor = Arc::clone(self).supervise();
        self.tasks.spawn(supervisor);
        let keeper = Arc::clone(self).keep_keys();
        self.tasks.spawn(keeper);
        Ok(())
    }

    async fn give_birth(&self, birth: Birth) -> Result<(), EngineError> {
        let manager = self.manager().ok_or_else(|| EngineError::Internal("the manager did not start".into()))?;
        manager.bootstrap().await.map_err(|e| internal("the cluster could not be made")(&e))?;
        let op = Op::InitCluster(Box::new(InitCluster { cluster: birth.cluster, node: birth.node }));
        tokio::time::timeout(BOOTSTRAP, manager.control(Request::from(op)))
            .await
            .map_err(|_| EngineError::Internal("the first manager did not begin to lead within 15 s".into()))??;
        Ok(())
    }

    /// The record as it is now.
    pub(super) fn record(&self) -> MembershipRecord {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The manager, while this node is one.
    pub(super) fn manager(&self) -> Option<Arc<Manager>> {
        self.manager.load_full()
    }

    /// Waits until the cluster has heard of this node: its session is open, and a manager votes.
    pub(super) async fn wait_until_in(&self) -> Result<(), EngineError> {
        let mut view = self.agent.view();
        loop {
            {
                let view = view.borrow_and_update();
                if view.removed {
                    return Err(EngineError::Internal("the cluster turned this node away".into()));
                }
                match view.manager {
                    Some(false) if view.connected => return Ok(()),
                    Some(true) if view.connected && self.manager().is_some_and(|m| m.is_voter()) => return Ok(()),
                    _ => {}
                }
            }
            // Whether it votes is Raft's to say, which the view does not follow.
            if let Ok(Err(_)) = tokio::time::timeout(VOTER_POLL, view.changed()).await {
                return Err(EngineError::Internal("the agent has ended".into()));
            }
        }
    }

    /// The overlay of this host.
    pub(super) fn overlay(&self) -> Overlay {
        self.overlay.clone()
    }

    /// Channels to other nodes.
    pub(super) fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Who owns the reading of logs from other hosts.
    pub(super) fn log_readers(&self) -> LogReaders {
        LogReaders { tasks: self.tasks.clone(), stop: self.stop.clone() }
    }

    /// What the API says of the membership.
    pub(super) fn member(&self) -> Member {
        let record = self.record();
        let known = self.agent.view().borrow().managers.clone();
        let managers = if known.is_empty() { record.managers } else { known };
        Member {
            node_id: NodeId::new(record.node_id),
            cluster_id: deploy::model::ClusterId::new(record.cluster_id),
            manager: self.manager().is_some(),
            addr: record.advertise_addr.rsplit_once(':').map(|(ip, _)| ip.to_owned()).unwrap_or_default(),
            managers: managers.into_iter().map(|m| (NodeId::new(m.node_id), m.addr)).collect(),
        }
    }

    /// Changes the record, on disk first.
    pub(super) fn update_record(&self, change: impl FnOnce(&mut MembershipRecord)) -> Result<(), EngineError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = record.clone();
        change(&mut changed);
        if changed != *record {
            self.engine
                .data()
                .save_membership(&changed)
                .map_err(|e| internal("the membership could not be saved")(&e))?;
            *record = changed;
        }
        Ok(())
    }

    /// What is wrong with Raft's files here, if they cannot be used.
    pub(super) fn damage(&self) -> Option<String> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A worker needs no log.
    pub(super) fn forget_damage(&self) {
        *self.damage.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Keeps the files of a manager that begins anew, for people to look into.
    pub(super) fn set_damaged_aside(&self, raft_id: u64) -> Result<(), EngineError> {
        let kept = self.engine.data().set_damaged_raft_aside(raft_id);
        let kept = kept.map_err(|e| internal("the damaged log could not be set aside")(&e))?;
        tracing::warn!(kept = %kept.display(), "the damaged log is kept");
        self.forget_damage();
        Ok(())
    }

    /// Writes the record again, under the newest key.
    pub(super) fn save_record(&self) -> Result<(), EngineError> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        self.engine.data().save_membership(&record).map_err(|e| internal("the membership could not be saved")(&e))
    }

    /// `had_log`: this raft id has had a log here before.
    pub(super) async fn start_manager(&self, raft_id: u64, had_log: bool) -> Result<Manager, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::Internal("the node stops".into()));
        }
        let record = self.record();
        let config = || manager::Config {
            node_id: NodeId::new(record.node_id.clone()),
            cluster_id: record.cluster_id.clone(),
            raft_id,
            addr: record.advertise_addr.clone(),
            raft_dir: self.engine.data().raft(),
            keys: self.engine.data().vault().ring(),
            had_log,
            timing: self.engine.config().timing,
        };
        let start = || Manager::start(config(), self.channels.clone(), self.gossip.clone());
        let mut started = start().await;
        if let Err(ManagerError::Start(error)) = &started
            && let Some(earlier) = error.belongs_to().filter(|earlier| *earlier < raft_id && !had_log)
        {
            // Beginning anew was cut before the damaged files were set aside.
            self.set_damaged_aside(earlier)?;
            started = start().await;
        }
        let manager = started.map_err(|error| {
            let text = crate::chain(&error);
            if let ManagerError::Start(error) = &error
                && error.is_damage()
            {
                let dir = self.engine.data().raft();
                tracing::error!(dir = %dir.display(), error = text, "this manager's log is damaged: it must not take part with it");
                *self.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!(
                    "This manager's log in {} cannot be used, and it does not take part: {text}. It begins anew when a \
                     majority of the other managers answers; without other managers, restore a backup.",
                    dir.display()
                ));
            }
            EngineError::Internal(self.damage().unwrap_or(format!("the manager could not start: {text}")))
        })?;
        self.manager.store(Some(Arc::new(manager.clone())));
        Ok(manager)
    }

    /// Serves port 2377 with the services that this node offers now.
    pub(super) fn restart_server(&self) -> Result<(), EngineError> {
        let listener = self
            .listener
            .try_clone()
            .and_then(TcpListener::from_std)
            .map_err(|e| internal("port 2377 could not be served")(&e))?;
        let logs = self.agent.logs_service();
        let routes = match self.manager() {
            Some(manager) => manager.routes().add_service(logs),
            None => Routes::new(logs),
        };
        let routes = routes.add_service(self.agent.content_service());
        let stop = self.stop.child_token();
        let before = std::mem::replace(&mut *self.server.lock().unwrap_or_else(PoisonError::into_inner), stop.clone());
        before.cancel();
        let (tls, connections) = (self.tls.clone(), self.connections.clone());
        self.tasks.spawn(async move {
            if let Err(error) = serve(listener, tls, connections, routes, stop.cancelled_owned()).await {
                tracing::error!(%error, "the server of port 2377 ended");
            }
        });
        Ok(())
    }

    /// What gossip does at once, before any manager has decided: hosts that are called dead, and that do not answer this
    /// node itself, leave its load balancing and its names. [`Reflex`] decides.
    async fn reflex(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        let (mut view, mut members) = (self.agent.view(), self.gossip.watch());
        let patience = self.engine.config().timing.gossip().probe_rtt;
        let mut reflex = Reflex::new(self.gossip.identity().node_id.clone());
        let (mut knocks, mut left_out) = (JoinSet::new(), BTreeSet::new());
        reflex.look(&members.borrow_and_update(), &view.borrow_and_update().hosts, Instant::now().into_std());
        loop {
            for knock in reflex.knocks(Instant::now().into_std()) {
                knocks.spawn(async move {
                    let answer = knock::knock(knock.addr, patience).await;
                    (knock, answer)
                });
            }
            let silent = {
                let view = view.borrow();
                // Without a manager it is an old word.
                let heard = if view.connected { &view.gossip_blocked } else { &BTreeSet::new() };
                reflex.left_out(&view.data_paths, heard)
            };
            if silent != left_out {
                tracing::info!(hosts = ?silent, "hosts that are left out of load balancing and names");
                if let Err(error) = self.overlay.leave_out(silent.clone()).await {
                    tracing::warn!(error = crate::chain(&error), "load balancing could not follow the gossip");
                }
                left_out = silent;
            }
            let due = reflex.next_due().map(Instant::from_std);
            let mut changed = false;
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { break };
                    tracing::info!(?event, "gossip");
                }
                Ok(()) = members.changed() => changed = true,
                Ok(()) = view.changed() => changed = true,
                Some(Ok((knock, answer))) = knocks.join_next() => {
                    tracing::debug!(node.id = knock.node_id, addr = %knock.addr, ?answer, "asked a doubtful host");
                    reflex.answered(&knock, answer, Instant::now().into_std());
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            if changed {
                reflex.look(&members.borrow_and_update(), &view.borrow_and_update().hosts, Instant::now().into_std());
            }
        }
        if !self.stop.is_cancelled() {
            tracing::error!("gossip has ended; the daemon ends");
            std::process::exit(70);
        }
    }

    /// Whether the cluster has removed this node.
    pub(super) fn was_removed(&self) -> bool {
        self.agent.view().borrow().removed
    }

    /// Why managers refuse this node, if they do, most likely because another host has its identity: what it says of
    /// that identity would hit the other.
    pub(super) fn refused(&self) -> Option<String> {
        self.agent.view().borrow().refused.clone()
    }

    /// Stops everything but the tasks, which go on under their shims. A second time there is nothing to do.
    pub(super) async fn shutdown(&self) {
        self.agent.shutdown().await;
        self.stop.cancel();
        self.tasks.close();
        self.stop_manager().await;
        self.gossip.clone().leave().await;
        self.tasks.wait().await;
        // A turn that was under way may have started another one.
        self.stop_manager().await;
    }

    async fn stop_manager(&self) {
        if let Some(manager) = self.manager.swap(None) {
            manager.shutdown().await;
        }
    }

    /// Tells the cluster that this node goes. A manager first stops voting; the last manager takes the cluster along.
    pub(super) async fn say_goodbye(&self) -> Result<(), EngineError> {
        // Or the node would ask for the vote back that it gives up.
        self.stop_following().await;
        let mut record = self.record();
        record.managers = self
            .member()
            .managers
            .into_iter()
            .map(|(id, addr)| ManagerRecord { node_id: id.to_string(), addr })
            .collect();
        goodbye(&self.channels, &record).await
    }

    /// Stops everything, the tasks and their networks included. What is gone already is no error.
    pub(super) async fn dismantle(&self) -> Result<(), EngineError> {
        match self.agent.remove_all_tasks().await {
            Ok(()) | Err(AgentError::Ended) => {}
            // Who leaves destroys what the runtime still has.
            Err(error) => tracing::warn!(%error, "the runtime removes the rest"),
        }
        self.shutdown().await;
        match self.overlay.clone().destroy().await {
            // An earlier try to leave ended it, and may not have removed everything.
            Err(OverlayError::Ended) => remove_overlay(&self.engine, Some(&self.record())).await,
            done => done.map_err(|e| internal("the overlay network could not be removed")(&e)),
        }
    }
}

/// Tells the managers of the record that its node goes; without another manager there is nobody to tell.
async fn goodbye(channels: &Channels, record: &MembershipRecord) -> Result<(), EngineError> {
    let others: Vec<ManagerRecord> =
        record.managers.iter().filter(|manager| manager.node_id != record.node_id).cloned().collect();
    if others.is_empty() {
        return Ok(());
    }
    Ok(raft_entry::goodbye(channels, &others, record.raft_id).await?)
}

/// Says goodbye for a membership that could not be taken up.
pub(super) async fn renounce(record: &MembershipRecord) -> Result<(), EngineError> {
    let tls = TlsContext::new(&record.root_pem, &record.cert_pem, &record.key_pem)
        .map_err(|e| internal("this node's certificate")(&e))?;
    goodbye(&Channels::new(tls), record).await
}

/// Removes the overlay network when nothing of this node runs.
pub(super) async fn remove_overlay(engine: &LocalEngine, record: Option<&MembershipRecord>) -> Result<(), EngineError> {
    let failed = |e: OverlayError| internal("the overlay network could not be removed")(&e);
    let overlay = Overlay::start(overlay_config(engine, record)).await.map_err(failed)?;
    overlay.destroy().await.map_err(failed)
}

/// Whether an overlay network is there without a membership.
pub(super) fn overlay_is_left(engine: &LocalEngine) -> bool {
    Overlay::is_left(&overlay_config(engine, None))
}

fn overlay_config(engine: &LocalEngine, record: Option<&MembershipRecord>) -> overlay_net::Config {
    overlay_net::Config {
        run_dir: engine.config().run_dir.clone(),
        node: engine.identity().engine_id.chars().take(8).collect(),
        data_path_addr: record.and_then(|r| r.data_path_addr.parse().ok()).unwrap_or(Ipv4Addr::UNSPECIFIED),
        data_path_port: record.and_then(|r| u16::try_from(r.data_path_port).ok()).unwrap_or(4789),
        resolvers: overlay_net::Resolvers::File("/etc/resolv.conf".into()),
    }
}

async fn start_gossip(
    engine: &LocalEngine,
    record: &MembershipRecord,
    socket: UdpSocket,
) -> Result<(Gossip, mpsc::Receiver<Event>), EngineError> {
    let addr = record
        .advertise_addr
        .parse()
        .map_err(|_| EngineError::Internal(format!("the advertised address {:?} is none", record.advertise_addr)))?;
    let identity = gossip::Identity { node_id: record.node_id.clone(), addr, generation: engine.identity().generation };
    let (gossip, events) = Gossip::start(gossip::Config {
        identity,
        socket,
        keys: keyring(&record.gossip_keys)?,
        timing: engine.config().timing.gossip(),
        cluster_id: record.cluster_id.clone(),
    })
    .await
    .map_err(|e| internal("the gossip could not start")(&e))?;
    Ok((gossip, events))
}

pub(super) fn keyring(keys: &[deploy::model::GossipKey]) -> Result<Keyring, EngineError> {
    let mut keys = keys
        .iter()
        .map(|key| Some(Key::new(key.id, <[u8; 32]>::try_from(key.bytes.as_slice()).ok()?)))
        .collect::<Option<std::collections::VecDeque<Key>>>()
        .ok_or_else(|| EngineError::Internal("a gossip key does not have 32 bytes".into()))?;
    let primary = keys.pop_front().ok_or_else(|| EngineError::Internal("there is no gossip key".into()))?;
    Keyring::new(primary, keys.into()).map_err(|e| EngineError::Internal(e.to_string()))
}

/// The managers, and then every other host: after a recovery, or when this node has moved, it is for them to be found.
pub(super) fn gossip_seeds(record: &MembershipRecord, hosts: &BTreeMap<String, String>) -> Vec<SocketAddr> {
    let managers = record.managers.iter().map(|m| (&m.node_id, &m.addr));
    let all = managers.chain(hosts).filter(|(id, _)| **id != record.node_id);
    let mut seeds: Vec<SocketAddr> = Vec::new();
    for addr in all.filter_map(|(_, addr)| addr.parse().ok()) {
        if seeds.len() < MAX_SEEDS && !seeds.contains(&addr) {
            seeds.push(addr);
        }
    }
    seeds
}
