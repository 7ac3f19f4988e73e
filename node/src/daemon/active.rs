//! A node while it is in a cluster: everything that runs because of the membership, started and stopped together.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use deploy::control::{AllocateRaftId, InitCluster, Op, Request};
use deploy::model::{Cluster, Node, NodeDescription, NodeId};
use gossip::{Event, Gossip, Key, Keyring};
use overlay_net::Overlay;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::local::LocalEngine;
use super::raft_entry;
use crate::agent::{Agent, AgentConfig, AgentView};
use crate::ca::{KeyAndCsr, TlsContext};
use crate::datadir::{ManagerRecord, MembershipRecord};
use crate::engine::{EngineError, Member};
use crate::manager::{self, Manager};
use crate::rpc::{Channels, pb, serve};

/// A new cluster's first manager leads within this time.
const BOOTSTRAP: Duration = Duration::from_secs(15);
/// How often a node that joins looks whether it may vote.
const VOTER_POLL: Duration = Duration::from_millis(20);
/// Pause after a change of role that failed.
const RETRY: Duration = Duration::from_secs(1);

/// The objects that a new cluster begins with.
pub(super) struct Birth {
    pub(super) cluster: Cluster,
    pub(super) node: Node,
}

/// Everything that runs because of a membership.
pub(super) struct Active {
    engine: LocalEngine,
    record: Mutex<MembershipRecord>,
    tls: TlsContext,
    channels: Channels,
    listener: std::net::TcpListener,
    gossip: Gossip,
    overlay: Overlay,
    agent: Agent,
    manager: ArcSwapOption<Manager>,
    /// Ends the server, so that it begins again with other services.
    server: Mutex<CancellationToken>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn internal(what: &'static str) -> impl Fn(&dyn std::error::Error) -> EngineError {
    move |error| EngineError::Internal(format!("{what}: {}", crate::chain(error)))
}

impl Active {
    /// Starts what the record says. `birth` is given once, when the cluster is made.
    pub(super) async fn start(
        engine: LocalEngine,
        record: MembershipRecord,
        description: NodeDescription,
        birth: Option<Birth>,
    ) -> Result<Arc<Self>, EngineError> {
        let (listener, socket) = bind(&record.listen_addr)?;
        let tls = TlsContext::new(&record.root_pem, &record.cert_pem, &record.key_pem)
            .map_err(|e| internal("this node's certificate")(&e))?;
        let channels = Channels::new(tls.clone());
        let (gossip, events) = start_gossip(&engine, &record, socket).await?;
        let overlay = Overlay::start(overlay_net::Config {
            run_dir: engine.config().run_dir.clone(),
            node: engine.identity().engine_id.chars().take(8).collect(),
            data_path_addr: record.data_path_addr.parse().unwrap_or(Ipv4Addr::UNSPECIFIED),
            data_path_port: u16::try_from(record.data_path_port).unwrap_or(4789),
            upstream_dns: super::upstream_dns(),
        })
        .await
        .map_err(|e| internal("the overlay network could not be set up")(&e))?;
        let agent = Agent::start(AgentConfig {
            node_id: NodeId::new(record.node_id.clone()),
            generation: engine.identity().generation,
            description,
            channels: channels.clone(),
            runtime: engine.runtime().clone(),
            images: engine.images_store().clone(),
            overlay: overlay.clone(),
            managers: record.managers.clone(),
            cache: engine.data().assignments(),
        })
        .await
        .map_err(|e| internal("the agent could not start")(&e))?;
        let active = Arc::new(Self {
            engine,
            record: Mutex::new(record),
            tls,
            channels,
            listener,
            gossip,
            overlay,
            agent,
            manager: ArcSwapOption::empty(),
            server: Mutex::new(CancellationToken::new()),
            stop: CancellationToken::new(),
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
            self.start_manager(record.raft_id).await?;
        }
        self.restart_server()?;
        if let Some(birth) = birth {
            self.give_birth(birth).await?;
        }
        self.gossip.join(gossip_seeds(&record));
        let supervisor = Arc::clone(self).supervise();
        self.tasks.spawn(supervisor);
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
    pub(super) async fn wait_until_in(&self, manager: bool) -> Result<(), EngineError> {
        let mut view = self.agent.view();
        let opened = view.wait_for(|view| view.removed || view.connected && view.manager.is_some()).await;
        match opened.map(|view| view.removed) {
            Ok(false) => {}
            Ok(true) => return Err(EngineError::Internal("the cluster turned this node away".into())),
            Err(_) => return Err(EngineError::Internal("the agent has ended".into())),
        }
        while manager && !self.manager().is_some_and(|m| m.is_voter()) {
            tokio::time::sleep(VOTER_POLL).await;
        }
        Ok(())
    }

    /// Channels to other nodes.
    pub(super) fn channels(&self) -> &Channels {
        &self.channels
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
    fn update_record(&self, change: impl FnOnce(&mut MembershipRecord)) -> Result<(), EngineError> {
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

    async fn start_manager(&self, raft_id: u64) -> Result<Manager, EngineError> {
        let record = self.record();
        let manager = Manager::start(
            manager::Config {
                node_id: NodeId::new(record.node_id),
                cluster_id: record.cluster_id,
                raft_id,
                addr: record.advertise_addr,
                raft_dir: self.engine.data().raft(),
            },
            self.channels.clone(),
            self.gossip.clone(),
        )
        .await
        .map_err(|e| internal("the manager could not start")(&e))?;
        self.manager.store(Some(Arc::new(manager.clone())));
        Ok(manager)
    }

    /// Serves port 2377 with the services that this node offers now.
    fn restart_server(&self) -> Result<(), EngineError> {
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
        let stop = self.stop.child_token();
        let before = std::mem::replace(
            &mut *self.server.lock().unwrap_or_else(PoisonError::into_inner),
            stop.clone(),
        );
        before.cancel();
        let tls = self.tls.clone();
        self.tasks.spawn(async move {
            if let Err(error) = serve(listener, tls, routes, stop.cancelled_owned()).await {
                tracing::error!(%error, "the server of port 2377 ended");
            }
        });
        Ok(())
    }

    /// What gossip does at once, before any manager has decided: the endpoints of a host that is called dead, and that
    /// this node could not reach itself, leave its load balancing; any sign of life brings them back.
    async fn reflex(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        let mut unreached = BTreeSet::new();
        while let Some(event) = events.recv().await {
            tracing::info!(?event, "gossip");
            let (host, dead) = match event {
                Event::ProbeFailed(host) => {
                    unreached.insert(host.node_id);
                    continue;
                }
                Event::Down(host) if unreached.contains(&host.node_id) => (host.node_id, true),
                Event::Up(host) | Event::Alive(host) | Event::Renewed(host) => {
                    unreached.remove(&host.node_id);
                    (host.node_id, false)
                }
                _ => continue,
            };
            let Some(data_path) = self.agent.view().borrow().data_paths.get(&host).copied() else { continue };
            let done = match dead {
                true => self.overlay.drop_host(data_path).await,
                false => self.overlay.restore_host(data_path).await,
            };
            if let Err(error) = done {
                tracing::warn!(host, dead, error = crate::chain(&error), "load balancing could not follow the gossip");
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

    /// Follows what the cluster says of this node: its role, the managers, the gossip keys.
    async fn supervise(self: Arc<Self>) {
        let mut views = self.agent.view();
        loop {
            let view = views.borrow_and_update().clone();
            let settled = match self.follow(&view).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%error, "the node's role could not be changed yet");
                    false
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                changed = views.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !settled => {}
            }
        }
    }

    async fn follow(&self, view: &AgentView) -> Result<(), EngineError> {
        if view.removed {
            return Ok(());
        }
        if !view.gossip_keys.is_empty() {
            self.update_record(|record| record.gossip_keys = view.gossip_keys.clone())?;
            self.gossip.set_keys(keyring(&view.gossip_keys)?);
        }
        if !view.managers.is_empty() {
            self.update_record(|record| record.managers = view.managers.clone())?;
            self.gossip.set_seeds(gossip_seeds(&self.record()));
        }
        let wanted = view.manager.unwrap_or_else(|| self.record().manager);
        match (wanted, self.manager()) {
            (true, Some(manager)) if manager.is_voter() => Ok(()),
            (true, Some(_)) => self.become_voter().await,
            (true, None) => self.become_manager().await,
            // The leader takes the vote away first; then the store no longer lists this node among the managers.
            (false, Some(_)) if view.managers.iter().any(|m| m.node_id == self.record().node_id) => Ok(()),
            (false, Some(manager)) => self.become_worker(&manager).await,
            (false, None) => Ok(()),
        }
    }

    /// Worker to manager: a certificate for the role, a raft id, the log, a vote.
    pub(super) async fn become_manager(&self) -> Result<(), EngineError> {
        if self.tls.identity().role != crate::ca::Role::Manager {
            self.renew_certificate().await?;
        }
        let mut record = self.record();
        if record.raft_id == 0 {
            // What an earlier time as a manager left behind belongs to another raft id.
            self.engine.data().remove_raft().map_err(|e| internal("the old log could not be removed")(&e))?;
            let node_id = NodeId::new(record.node_id.clone());
            let op = Op::AllocateRaftId(AllocateRaftId { node_id, addr: record.advertise_addr.clone() });
            let reply = raft_entry::execute(&self.channels, &record.managers, Request::from(op)).await?;
            self.update_record(|r| {
                r.manager = true;
                r.raft_id = reply.number;
            })?;
            record = self.record();
        }
        self.start_manager(record.raft_id).await?;
        self.restart_server()?;
        self.become_voter().await
    }

    async fn become_voter(&self) -> Result<(), EngineError> {
        let record = self.record();
        let request = pb::JoinRaftRequest {
            node_id: record.node_id.clone(),
            raft_id: record.raft_id,
            addr: record.advertise_addr.clone(),
        };
        raft_entry::join(&self.channels, &record.managers, request).await?;
        tracing::info!(raft.id = record.raft_id, "this node is a manager");
        Ok(())
    }

    /// Manager to worker, after the leader took its vote away.
    async fn become_worker(&self, manager: &Manager) -> Result<(), EngineError> {
        self.manager.store(None);
        self.restart_server()?;
        manager.shutdown().await;
        self.update_record(|record| {
            record.manager = false;
            record.raft_id = 0;
        })?;
        self.engine.data().remove_raft().map_err(|e| internal("the log could not be removed")(&e))?;
        self.renew_certificate().await?;
        tracing::info!("this node is a worker");
        Ok(())
    }

    /// A new certificate for the role that the cluster has for this node.
    async fn renew_certificate(&self) -> Result<(), EngineError> {
        let own = KeyAndCsr::generate().map_err(|e| internal("no key could be made")(&e))?;
        let managers = self.record().managers;
        let reply = raft_entry::renew(&self.channels, &managers, own.csr_pem).await?;
        self.update_record(|record| {
            record.cert_pem = reply.cert_pem;
            record.key_pem = own.key_pem;
        })?;
        let record = self.record();
        self.tls
            .replace(&record.root_pem, &record.cert_pem, &record.key_pem)
            .map_err(|e| internal("the new certificate")(&e))?;
        self.channels.reset();
        Ok(())
    }

    /// Stops everything but the tasks, which go on under their shims.
    pub(super) async fn shutdown(&self) {
        self.agent.shutdown().await;
        self.stop.cancel();
        self.tasks.close();
        if let Some(manager) = self.manager.swap(None) {
            manager.shutdown().await;
        }
        self.gossip.clone().leave().await;
        self.tasks.wait().await;
    }

    /// Stops everything, the tasks and their networks included.
    pub(super) async fn dismantle(&self) -> Result<(), EngineError> {
        self.agent.remove_all_tasks().await.map_err(|e| internal("not every task could be removed")(&e))?;
        self.shutdown().await;
        self.overlay.clone().destroy().await.map_err(|e| internal("the overlay network could not be removed")(&e))
    }
}

fn bind(listen: &str) -> Result<(std::net::TcpListener, UdpSocket), EngineError> {
    let taken = |protocol: &str, error: std::io::Error| {
        EngineError::Invalid(format!(
            "cannot listen at {listen} ({protocol}): {error}; if a Docker Swarm runs on this host, give another port \
             with --listen-addr"
        ))
    };
    let addr: SocketAddr =
        listen.parse().map_err(|_| EngineError::Invalid(format!("{listen:?} is not an address to listen at")))?;
    let listener = std::net::TcpListener::bind(addr).map_err(|e| taken("TCP", e))?;
    listener.set_nonblocking(true).map_err(|e| taken("TCP", e))?;
    let socket = UdpSocket::bind(addr).map_err(|e| taken("UDP", e))?;
    socket.set_nonblocking(true).map_err(|e| taken("UDP", e))?;
    Ok((listener, socket))
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
    let identity =
        gossip::Identity { node_id: record.node_id.clone(), addr, generation: engine.identity().generation };
    let (gossip, events) = Gossip::start(gossip::Config {
        identity,
        socket,
        keys: keyring(&record.gossip_keys)?,
        timing: gossip::Timing::lan(),
        cluster_id: record.cluster_id.clone(),
    })
    .await
    .map_err(|e| internal("the gossip could not start")(&e))?;
    Ok((gossip, events))
}

fn keyring(keys: &[deploy::model::GossipKey]) -> Result<Keyring, EngineError> {
    let mut keys = keys
        .iter()
        .map(|key| Some(Key::new(key.id, <[u8; 32]>::try_from(key.bytes.as_slice()).ok()?)))
        .collect::<Option<std::collections::VecDeque<Key>>>()
        .ok_or_else(|| EngineError::Internal("a gossip key does not have 32 bytes".into()))?;
    let primary = keys.pop_front().ok_or_else(|| EngineError::Internal("there is no gossip key".into()))?;
    Keyring::new(primary, keys.into()).map_err(|e| EngineError::Internal(e.to_string()))
}

fn gossip_seeds(record: &MembershipRecord) -> Vec<SocketAddr> {
    let others = |m: &&ManagerRecord| m.node_id != record.node_id;
    record.managers.iter().filter(others).filter_map(|m| m.addr.parse().ok()).collect()
}
