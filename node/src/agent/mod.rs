//! The agent: runs this host's tasks as the managers say, and goes on without them.
//!
//! One loop owns the pure core (`deploy::agent`); `session` talks to a manager, `executor` to the runtime and the overlay network.
//! Everything that happens comes to the loop as a message, everything that is to be done leaves it as one. The loop's own
//! heartbeats are this agent's sign of life: from a loop that stands still, the managers hear nothing.

mod container;
mod counters;
mod executor;
pub(crate) mod health;
mod linger;
mod log_driver;
mod logs;
mod memory;
mod network;
mod payloads;
pub(crate) mod plain;
mod session;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deploy::agent::{Core, Given, Step};
use deploy::dispatcher::{Stamp, Update};
use deploy::lifecycle::{Action, Event, Found};
use deploy::model::{GossipKey, NodeDescription, NodeId, TaskId, Timestamp};
use overlay_net::plan::names::egress_link;
use overlay_net::{Desired, Overlay};
use prost::Message;
use runtime::image::registry::Registries;
use runtime::{IdMappings, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;

pub(crate) use self::container::{IMAGE_NAME_LABEL, PLAIN_LABEL, TASK_LABEL, is_plain};
use self::executor::{Basis, Executor, NetworkAttempt};
use self::payloads::Payloads;
use self::session::{Line, SessionEvent};
use crate::datadir::ManagerRecord;
use crate::engine::AgentState;
use crate::images::{ClusterPeers, Images, Nearby, Rate, Serving};
use crate::metrics::AgentReadings;
use crate::rpc::{Lane, known, pb};
use crate::stored;
use crate::timing::Timing;

pub use container::IMAGE_LABEL;
pub(crate) use counters::Counters;
pub(crate) use logs::{Readers as LogReaders, gather as gather_logs};
pub use network::Networks;
pub use plain::{Plain, PlainConfig};

/// Messages to the loop that wait for their turn.
const QUEUE: usize = 256;
/// Reports in one batch; more wait for the next.
const BATCH: usize = 256;
/// Leaving waits so long for tasks to stop, on top of their own grace.
const REMOVE_ALL: Duration = Duration::from_secs(60);
/// How often the manager hears from this agent.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Pause before networks that could not be set up are tried again.
const NETWORK_RETRY: Duration = Duration::from_secs(1);

/// Whether the loops of this process stand still.
static HELD: AtomicBool = AtomicBool::new(false);

/// Lets the agents of this process stand still, or go on. Only the daemon that tests run calls this.
pub fn hold(held: bool) {
    HELD.store(held, Ordering::Relaxed);
}

/// What the agent is made of.
pub struct AgentConfig {
    /// This node.
    pub node_id: NodeId,
    /// Boot generation.
    pub generation: u64,
    /// What the host says of itself.
    pub description: NodeDescription,
    /// Channels to managers and other hosts.
    pub channels: crate::rpc::Channels,
    /// Runs containers.
    pub runtime: Runtime,
    /// Has images, and brings from registries those that are missing.
    pub registries: Registries,
    /// Bytes of image content per second that other hosts are given; 0 for as many as they take.
    pub image_rate: u64,
    /// What the users of containers are on this host; absent: the same.
    pub users: Option<IdMappings>,
    /// Connects them.
    pub overlay: Overlay,
    /// Managers known from before.
    pub managers: Vec<ManagerRecord>,
    /// What gossip knows of the other hosts.
    pub members: watch::Receiver<Arc<gossip::Members>>,
    /// Where the assignments are remembered.
    pub cache: PathBuf,
    /// Where the plain containers are remembered.
    pub plain_containers: PathBuf,
    /// Where this host's own networks are remembered.
    pub local_networks: PathBuf,
    /// The keys that it is sealed with.
    pub vault: crate::vault::Vault,
    /// How patient it is with managers.
    pub timing: Timing,
}

/// What the agent knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentView {
    /// Whether a session is open.
    pub connected: bool,
    /// Whether the cluster wants this node to be a manager; unknown before the first session.
    pub manager: Option<bool>,
    /// The managers; empty before the first session ever.
    pub managers: Vec<ManagerRecord>,
    /// `managers` is the cluster's own word, of now or as remembered, and not only what this node joined with.
    pub told: bool,
    /// Incarnation of the cluster that the word is of; 0 before the first session ever.
    pub incarnation: u64,
    /// Where each host is reached (`ip:port`), by node id.
    pub hosts: BTreeMap<String, String>,
    /// Keys of the gossip, primary first; empty before the first session.
    pub gossip_keys: Vec<GossipKey>,
    /// Where VXLAN packets to each host go, by node id.
    pub data_paths: BTreeMap<String, Ipv4Addr>,
    /// Hosts that managers hear from though gossip calls them dead.
    pub gossip_blocked: BTreeSet<String>,
    /// Hosts that were removed from the cluster lately.
    pub removed_nodes: Vec<String>,
    /// The roots that nodes trust now, PEM; empty before the first session.
    pub trust_pem: String,
    /// Digest of the root that this node's certificate should be of; empty if that does not matter.
    pub root_digest: String,
    /// Managers do not take this node's certificate: why the last one did not.
    pub uncertified: Option<String>,
    /// A manager refuses this node, most likely because another host has its identity; the manager's words.
    pub refused: Option<String>,
    /// The cluster has removed this node.
    pub removed: bool,
}

/// Why the agent could not start or end.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// What it remembered cannot be read.
    #[error(transparent)]
    Memory(#[from] stored::StoredError),
    /// Not every task was removed in time; those that are left are removed at the next start.
    #[error("tasks did not stop in time")]
    TasksRemain,
    /// The agent has ended already.
    #[error("the agent has ended")]
    Ended,
}

/// What the loop is asked from within the daemon.
enum Command {
    /// Stop every task; answered when nothing is left of them.
    RemoveAll(oneshot::Sender<()>),
    /// Say what the agent acts on.
    Tell(oneshot::Sender<AgentState>),
}

/// A running agent. A clone is a handle to the same one.
#[derive(Clone)]
pub struct Agent {
    view: watch::Receiver<AgentView>,
    remembered: Stamp,
    commands: mpsc::Sender<Command>,
    plain: Plain,
    runtime: Runtime,
    registries: Registries,
    serving: Serving,
    counters: Arc<Counters>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What the executor does.
    actions: TaskTracker,
}

impl Agent {
    /// Takes up what this host ran before, then looks for a manager.
    pub async fn start(config: AgentConfig) -> Result<Self, AgentError> {
        let mut remembered = memory::read(&config.cache, &config.vault)?;
        remembered.items.extend(payloads::kept(&config.runtime).await);
        let (events, events_in) = mpsc::channel(QUEUE);
        let (session, session_in) = mpsc::channel(QUEUE);
        let (commands, commands_in) = mpsc::channel(1);
        let found = find(&config.runtime).await;
        let (core, steps) = Core::start(remembered, found.clone(), now());
        let mut known = told::managers(core.set());
        let told = !known.is_empty();
        if !told {
            known = config.managers;
        }
        let remembered = core.stamp();
        let (view, view_out) = watch::channel(AgentView {
            managers: known.clone(),
            told,
            incarnation: remembered.incarnation,
            hosts: told::hosts(core.set()),
            data_paths: told::data_paths(core.set()),
            removed_nodes: told::removed_nodes(core.set()),
            ..AgentView::default()
        });
        let (managers, managers_out) = watch::channel(known);
        let (desired, desired_out) = watch::channel(None);
        let (places, places_out) = watch::channel(core.places());
        let (memory, memory_out) = watch::channel((1, core.snapshot()));
        let (written, written_out) = watch::channel(0);
        let (payloads, payloads_out) = watch::channel(Payloads::of(core.set()));
        let (unwanted, unwanted_out) = watch::channel(0);
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();

        let boot = rand::random_range(1..=u64::MAX);
        let node: String = config.description.engine_id.chars().take(8).collect();
        let plain = Plain::open(PlainConfig {
            runtime: config.runtime.clone(),
            images: config.registries.store().clone(),
            overlay: Some(config.overlay.clone()),
            hostname: config.description.hostname.clone(),
            users: config.users.clone(),
            records: config.plain_containers,
            networks: config.local_networks,
            data_path: config.description.data_path_addr.parse().unwrap_or(Ipv4Addr::UNSPECIFIED),
            way_out_link: Some(egress_link(&node)),
            places: Some(plain::Places {
                channels: config.channels.lane(Lane::Calls),
                managers: managers_out.clone(),
                given: places_out,
                generation: config.generation,
                boot,
            }),
            desired: desired_out.clone(),
        });
        let plain = plain.await?;
        let plain_wants = plain.wants();
        let mut networks = Networks::default();
        let mut first_networks = networks.desired(core.set(), core.stamp().revision, &core.serving());
        plain_wants.borrow().add_to(&mut first_networks);
        let first = config.overlay.set_desired(first_networks).await;
        let (attempts, attempts_out) = watch::channel(NetworkAttempt {
            revision: core.stamp().revision,
            whole: !first.as_ref().is_err_and(overlay_net::OverlayError::retry_helps),
        });
        if let Err(error) = first {
            tracing::warn!(error = crate::chain(&error), "the networks from before could not all be set up again");
        }
        // What ended meanwhile needs no links any more, and what was only prepared is prepared again.
        let running = found.iter().filter(|(_, found)| matches!(found, Found::Running { .. }));
        let mut running: Vec<String> = running.map(|(task, _)| task.to_string()).collect();
        running.extend(plain.running());
        if let Err(error) = config.overlay.retain(&running).await {
            tracing::warn!(error = crate::chain(&error), "links of tasks that are gone could not all be removed");
        }
        let counters = Arc::new(Counters::default());
        let peers = ClusterPeers::new(config.node_id.to_string(), config.channels.lane(Lane::Images), view_out.clone());
        let peers = Arc::new(peers);
        config.registries.set_sources(vec![Arc::new(Nearby::new(peers.clone()))]);
        let executor = Executor::new(executor::Parts {
            runtime: config.runtime.clone(),
            images: Images::new(config.registries.store().clone(), peers),
            registries: config.registries.clone(),
            overlay: config.overlay.clone(),
            hostname: config.description.hostname.clone(),
            users: config.users.clone(),
            events,
            desired: desired_out.clone(),
            attempts: attempts_out,
            written: written_out,
            payloads: payloads_out.clone(),
            counters: counters.clone(),
            stop: stop.clone(),
        });
        for (task, found) in found {
            if let (Some(task), Found::Running { container, .. }) = (core.task(&task), found) {
                executor.adopt(task.clone(), container, core.is_healthy(&task.id));
            }
        }
        let (node_id, generation) = (config.node_id.clone(), config.generation);
        let line = Line {
            node_id: config.node_id.to_string(),
            generation: config.generation,
            boot,
            description: config.description,
            sealing: config.overlay.sealing(),
            channels: config.channels.lane(Lane::Session),
            managers: managers_out,
            members: config.members,
            unwanted: unwanted_out,
            events: session,
            timing: config.timing,
            images: config.registries.store().clone(),
        };
        let actions = executor.tasks();
        let agent_loop = Loop {
            node_id,
            generation,
            core,
            networks,
            executor,
            outbox: None,
            marked: None,
            applied: config.overlay.applied_revision(),
            leaving: false,
            removing: None,
            view,
            managers,
            desired,
            plain_wants,
            places,
            memory,
            payloads,
            session: 0,
            unwanted,
            counters: counters.clone(),
        };
        plain.begin();
        let cancelled = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cancelled.cancelled() => {}
                () = agent_loop.run(steps, session_in, events_in, commands_in) => {}
            }
        });
        tasks.spawn(line.run());
        tasks.spawn(apply_networks(config.overlay, desired_out, attempts, stop.clone()));
        tasks.spawn(payloads::keep(config.runtime.clone(), payloads_out));
        tasks.spawn(memory::keep(config.cache, config.vault, memory_out, written));
        let serving = Serving::new(config.registries.store().clone(), Rate::new(config.image_rate));
        let (runtime, registries) = (config.runtime, config.registries);
        Ok(Self {
            view: view_out,
            remembered,
            commands,
            plain,
            runtime,
            registries,
            serving,
            counters,
            stop,
            tasks,
            actions,
        })
    }

    /// The containers of this host that belong to no service.
    pub fn plain(&self) -> Plain {
        self.plain.clone()
    }

    /// What the agent knows of the cluster, as it changes.
    pub fn view(&self) -> watch::Receiver<AgentView> {
        self.view.clone()
    }

    /// What the agent tells whoever watches it.
    pub(crate) fn readings(&self) -> AgentReadings {
        AgentReadings { counters: self.counters.clone() }
    }

    /// Of when the assignments are that were remembered at the start.
    pub fn remembered(&self) -> Stamp {
        self.remembered
    }

    /// The service that reads this host's logs.
    pub fn logs_service(
        &self,
    ) -> InterceptedService<pb::logs_server::LogsServer<impl pb::logs_server::Logs>, impl Interceptor + Clone + 'static>
    {
        let logs = logs::LogsService { runtime: self.runtime.clone(), view: self.view.clone() };
        InterceptedService::new(pb::logs_server::LogsServer::new(logs), known)
    }

    /// The service that gives this host's image content to other hosts.
    pub fn content_service(
        &self,
    ) -> InterceptedService<
        pb::content_server::ContentServer<impl pb::content_server::Content>,
        impl Interceptor + Clone + 'static,
    > {
        InterceptedService::new(pb::content_server::ContentServer::new(self.serving.clone()), known)
    }

    /// What the agent acts on at this moment; nothing once it has ended.
    pub async fn state(&self) -> Option<AgentState> {
        let (to, answer) = oneshot::channel();
        self.commands.send(Command::Tell(to)).await.ok()?;
        answer.await.ok()
    }

    /// Ends the agent: nothing of it acts on tasks or networks any more. Tasks go on under their shims.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.plain.shutdown().await;
        self.registries.set_sources(Vec::new());
        self.tasks.close();
        self.tasks.wait().await;
        self.actions.close();
        self.actions.wait().await;
    }

    /// Stops every task and removes what it left on the host, and removes the plain containers.
    pub async fn remove_all_tasks(&self) -> Result<(), AgentError> {
        self.plain.remove_all().await;
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::RemoveAll(done)).await.map_err(|_| AgentError::Ended)?;
        match tokio::time::timeout(REMOVE_ALL, answer).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(AgentError::Ended),
            Err(_) => Err(AgentError::TasksRemain),
        }
    }
}

/// The containers of tasks that are on this host.
async fn find(runtime: &Runtime) -> BTreeMap<TaskId, Found> {
    let mut found = BTreeMap::new();
    for container in runtime.list().await {
        let Some(task) = container.labels.get(TASK_LABEL).map(TaskId::new) else { continue };
        let what = match container.status {
            runtime::Status::Created => Found::Nothing,
            runtime::Status::Running => {
                Found::Running { container: container.id, pid: container.pid.unwrap_or_default() }
            }
            runtime::Status::Exited(exit) => {
                Found::Exited { exit_code: (!exit.shim_lost).then_some(exit.code), oom_killed: exit.oom_killed }
            }
        };
        // Of several attempts, the one that runs is the one that counts.
        let slot = found.entry(task).or_insert(Found::Nothing);
        if !matches!(slot, Found::Running { .. }) {
            *slot = what;
        }
    }
    found
}

struct Loop {
    node_id: NodeId,
    generation: u64,
    core: Core,
    networks: Networks,
    executor: Executor,
    outbox: Option<mpsc::Sender<pb::AgentMessage>>,
    /// The last mark of the manager at the other end, if it was not given back yet.
    marked: Option<session::Mark>,
    /// The revision that the host's networks are of.
    applied: watch::Receiver<u64>,
    /// The node leaves, or was removed: whatever it is given now, it does not take.
    leaving: bool,
    removing: Option<oneshot::Sender<()>>,
    view: watch::Sender<AgentView>,
    managers: watch::Sender<Vec<ManagerRecord>>,
    desired: watch::Sender<Option<Desired>>,
    /// Ports and networks of plain containers, which the overlay is to have as well.
    plain_wants: watch::Receiver<plain::Wants>,
    /// Places of plain containers on networks.
    places: watch::Sender<Given>,
    memory: watch::Sender<memory::Numbered>,
    payloads: watch::Sender<Payloads>,
    /// The number of the session that was opened last.
    session: u64,
    /// The last one that is to end.
    unwanted: watch::Sender<u64>,
    counters: Arc<Counters>,
}

impl Loop {
    async fn run(
        mut self,
        steps: Vec<Step>,
        mut session: mpsc::Receiver<SessionEvent>,
        mut events: mpsc::Receiver<(TaskId, Event)>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        self.carry_out(steps);
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while HELD.load(Ordering::Relaxed) {
                tokio::time::sleep(HEARTBEAT).await;
            }
            let timer = self.core.next_timer();
            let steps = tokio::select! {
                biased;
                _ = beat.tick() => {
                    self.say_alive();
                    continue;
                }
                Some(event) = session.recv() => self.session_event(event),
                Some((task, event)) = events.recv() => self.core.event(&task, event, now()),
                Some(command) = commands.recv() => match command {
                    Command::RemoveAll(done) => {
                        self.leaving = true;
                        self.removing = Some(done);
                        self.core.withdraw_all(now())
                    }
                    Command::Tell(to) => {
                        // Who asked may have gone meanwhile.
                        let _ = to.send(self.state());
                        continue;
                    }
                },
                // What this host has let go of, others wait for.
                Ok(()) = self.applied.changed() => {
                    self.say_alive();
                    continue;
                }
                Ok(()) = self.plain_wants.changed() => Vec::new(),
                () = until(timer) => self.core.fire_timers(now()),
            };
            self.carry_out(steps);
        }
    }

    fn say_alive(&mut self) {
        let applied_revision = *self.applied.borrow_and_update();
        let beat = pb::agent_message::Kind::Heartbeat(session::heartbeat(applied_revision, self.marked.take()));
        if let Some(outbox) = &self.outbox {
            // A full queue is no reason to wait: what is in it is a sign of life as well.
            let _ = outbox.try_send(session::message(beat));
        }
    }

    fn state(&self) -> AgentState {
        AgentState {
            node_id: self.node_id.clone(),
            generation: self.generation,
            connected: self.outbox.is_some(),
            stamp: self.core.stamp(),
            set: self.core.set().clone(),
            tasks: self.core.states(),
        }
    }

    fn session_event(&mut self, event: SessionEvent) -> Vec<Step> {
        match event {
            SessionEvent::Opened(number, outbox) => {
                self.session = number;
                self.outbox = Some(outbox);
                // One of another session means nothing here.
                self.marked = None;
                self.counters.sessions.add_one();
                self.counters.connected.set(1);
                self.view.send_modify(|view| {
                    view.connected = true;
                    view.uncertified = None;
                    view.refused = None;
                });
                self.core.connected(true, now())
            }
            SessionEvent::Closed => {
                self.outbox = None;
                self.counters.connected.set(0);
                self.view.send_modify(|view| view.connected = false);
                self.core.connected(false, now())
            }
            SessionEvent::Uncertified(reason) => {
                if self.view.borrow().uncertified.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "managers do not take this node's certificate");
                    self.view.send_modify(|view| view.uncertified = Some(reason));
                }
                Vec::new()
            }
            SessionEvent::Refused(reason) => {
                if self.view.borrow().refused.as_ref() != Some(&reason) {
                    tracing::error!(reason, "a manager refuses this node");
                    self.view.send_modify(|view| view.refused = Some(reason));
                }
                Vec::new()
            }
            SessionEvent::Marked(mark) => {
                self.marked = Some(mark);
                Vec::new()
            }
            SessionEvent::Removed => {
                self.leaving = true;
                self.outbox = None;
                self.counters.connected.set(0);
                self.view.send_modify(|view| {
                    view.connected = false;
                    view.removed = true;
                });
                self.core.withdraw_all(now())
            }
            SessionEvent::Committed(sequence) => {
                self.core.reports_committed(sequence);
                Vec::new()
            }
            SessionEvent::Drained(drained) => {
                let tasks = drained.task_ids.into_iter().map(TaskId::new).collect();
                self.core.drained(tasks, &drained.late, now())
            }
            SessionEvent::Assignments(assignments) => self.assignments(assignments),
        }
    }

    fn assignments(&mut self, message: pb::Assignments) -> Vec<Step> {
        if self.leaving {
            return Vec::new();
        }
        let update = match Update::from_bytes(&message.update) {
            Ok(update) => update,
            Err(error) => {
                tracing::warn!(error = crate::chain(&error), "assignments could not be read");
                self.unwanted.send_replace(self.session);
                return Vec::new();
            }
        };
        let mut taken = match self.core.update(update, now()) {
            Ok(taken) => taken,
            Err(error) => {
                tracing::info!(%error, "asking another manager");
                self.unwanted.send_replace(self.session);
                return Vec::new();
            }
        };
        if !message.drains {
            taken.steps.extend(self.core.nobody_drains(now()));
        }
        for (task, container) in taken.adopted {
            self.executor.adopt(task, container, false);
        }
        let managers = told::managers(self.core.set());
        if !managers.is_empty() {
            self.managers.send_if_modified(|known| replace(known, managers.clone()));
        }
        let gossip_keys = message.gossip_keys.into_iter().map(|key| GossipKey { id: key.id, bytes: key.key }).collect();
        let view = AgentView {
            connected: true,
            manager: Some(message.manager),
            managers,
            told: true,
            incarnation: self.core.stamp().incarnation,
            hosts: told::hosts(self.core.set()),
            gossip_keys,
            data_paths: told::data_paths(self.core.set()),
            gossip_blocked: told::gossip_blocked(self.core.set()),
            removed_nodes: told::removed_nodes(self.core.set()),
            trust_pem: message.trust_pem,
            root_digest: message.root_digest,
            uncertified: None,
            refused: None,
            removed: false,
        };
        self.view.send_if_modified(|known| replace(known, view));
        taken.steps
    }

    /// Sends on what a change led to: work, reports, networks, memory.
    fn carry_out(&mut self, steps: Vec<Step>) {
        self.counters.set_tasks(self.core.task_states());
        let (set, revision, serving) = (self.core.set(), self.core.stamp().revision, self.core.serving());
        let mut desired = self.networks.desired(set, revision, &serving);
        self.plain_wants.borrow_and_update().add_to(&mut desired);
        self.desired.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&desired);
            *known = Some(desired);
            changed
        });
        self.places.send_if_modified(|known| replace(known, self.core.places()));
        self.payloads.send_if_modified(|known| {
            let changed = !known.are_of(self.core.set());
            if changed {
                *known = Payloads::of(self.core.set());
            }
            changed
        });
        let memory = self.core.snapshot();
        self.memory.send_if_modified(|(number, known)| {
            let changed = !known.is(&memory);
            if changed {
                *number += 1;
                *known = memory;
            }
            changed
        });
        let basis = Basis { revision: self.core.stamp().revision, memory: self.memory.borrow().0 };
        for (id, action) in steps {
            let task = match (self.core.task(&id), &action) {
                (Some(task), _) => task.clone(),
                (None, Action::Remove) => deploy::model::Task { id, ..Default::default() },
                (None, _) => continue,
            };
            tracing::debug!(task.id = %task.id, ?action, "task");
            self.executor.begin(task, action, basis);
        }
        if let Some(outbox) = &self.outbox
            && let Some((sequence, reports)) = self.core.next_reports(BATCH)
        {
            let reports = reports.iter().map(Message::encode_to_vec).collect();
            let statuses = pb::Statuses { sequence, reports };
            if outbox.try_send(session::message(pb::agent_message::Kind::Statuses(statuses))).is_err() {
                // A manager that does not even take a batch is left for another; the batch is sent again there.
                self.unwanted.send_replace(self.session);
            }
        }
        if self.core.is_empty()
            && let Some(done) = self.removing.take()
        {
            let _ = done.send(());
        }
    }
}

/// Whether a new value is another one.
fn replace<T: PartialEq>(known: &mut T, new: T) -> bool {
    let changed = *known != new;
    *known = new;
    changed
}

/// Puts the newest desired state of the networks in force, again and again where it could not be, and says how far it
/// came.
async fn apply_networks(
    overlay: Overlay,
    mut desired: watch::Receiver<Option<Desired>>,
    attempts: watch::Sender<NetworkAttempt>,
    stop: CancellationToken,
) {
    let mut told = String::new();
    loop {
        let current = desired.borrow_and_update().clone();
        let mut failed = false;
        if let Some(current) = current {
            let revision = current.revision;
            let applied = overlay.set_desired(current).await;
            // What was refused for good is told, and tried again only with the next state.
            failed = applied.as_ref().is_err_and(overlay_net::OverlayError::retry_helps);
            attempts.send_replace(NetworkAttempt { revision, whole: !failed });
            let error = applied.err().map(|error| crate::chain(&error));
            if let Some(text) = &error {
                // Once for each reason: it is tried again every second, and some reasons last until somebody acts.
                if *text == told {
                    tracing::debug!(error = text, "networks could not all be set up");
                } else {
                    tracing::warn!(error = text, "networks could not all be set up");
                }
            }
            told = error.unwrap_or_default();
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = desired.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(NETWORK_RETRY), if failed => {}
        }
    }
}

async fn until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(now())).await,
        None => std::future::pending().await,
    }
}

/// This host's clock; only the agent's own delays are measured with it.
fn now() -> Timestamp {
    Timestamp::from_nanos(crate::clock::unix_nanos())
}
