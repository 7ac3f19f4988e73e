//! Agents' lines to this manager: assignments go down them, statuses come up.
//!
//! Any manager serves any agent. What an agent is sent comes from this manager's applied store and is stamped, so that
//! the agent can refuse what is older than what it has seen.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use deploy::control::{
    AttachContainer, DetachContainer, ErrorKind, NodeCertified, NodeSealed, NodeSession, Op, ReportStatuses,
    Request as ControlRequest, TaskReport,
};
use deploy::dispatcher::{self, HostSet, Parts, Stamp, Update};
use deploy::model::{
    ENCRYPTION_LEVEL, NodeCertificate, NodeDescription, NodeId, NodeRole, NodeSealing, NodeState, TaskId,
};
use deploy::store::{Key, Store};
use futures_util::Stream;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::drain::Covering;
use super::holdings::Telling;
use super::services::{gossip_keys, to_status};
use super::{Manager, Published, certificates, skew};
use crate::ca::{Caller, Shown, read_certificate};
use crate::clock;
use crate::engine::EngineError;
use crate::rpc::{MAX_MESSAGE, caller, pb, shown};

/// Agents that one manager serves at a time; further ones are sent to another.
const MAX_SESSIONS: u64 = 10_000;
/// An agent that opens a session must introduce itself within this time.
const HELLO: Duration = Duration::from_secs(5);
/// Messages to an agent that is slow to read; past that its session waits, not the manager.
const BACKLOG: usize = 16;
/// An agent hears from its manager at least this often.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// The least between two times that a host's keys change.
const BETWEEN_KEYS: Duration = Duration::from_secs(1);
/// Changes are gathered for this long before a difference is computed.
const GATHER: Duration = Duration::from_millis(5);

pub(super) fn service(manager: Manager) -> pb::sessions_server::SessionsServer<Service> {
    pb::sessions_server::SessionsServer::new(Service { manager }).max_decoding_message_size(MAX_MESSAGE)
}

pub(super) struct Service {
    manager: Manager,
}

#[tonic::async_trait]
impl pb::sessions_server::Sessions for Service {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<pb::ManagerMessage, Status>> + Send>>;

    async fn open(&self, request: Request<Streaming<pb::AgentMessage>>) -> Result<Response<Self::OpenStream>, Status> {
        let (node_id, certificate) = match shown(&request)? {
            Caller::Known(shown) => {
                let node_id = self.manager.authorize_node(&shown.identity)?;
                (node_id, self.manager.record_of(&shown))
            }
            Caller::Stale(shown, reason) => {
                // Whether it was removed, it should know; that it is out of date, it can mend.
                self.manager.authorize_node(&shown.identity)?;
                return Err(Status::unauthenticated(reason));
            }
            Caller::Nobody => return Err(Status::unauthenticated("a certificate of this cluster is needed")),
        };
        if !self.manager.inner.contact.holds() {
            return Err(out_of_touch());
        }
        let counters = &self.manager.inner.counters;
        let open = counters.sessions.hold();
        if counters.sessions.get() > MAX_SESSIONS {
            counters.sessions_refused.add_one();
            return Err(Status::resource_exhausted(format!("this manager serves {MAX_SESSIONS} hosts already")));
        }
        let mut messages = request.into_inner();
        let hello = match tokio::time::timeout(HELLO, messages.message()).await {
            Ok(Ok(Some(pb::AgentMessage { kind: Some(pb::agent_message::Kind::Hello(hello)) }))) => hello,
            _ => return Err(Status::invalid_argument("a session begins with a hello")),
        };
        let description = NodeDescription::decode(hello.description.as_slice())
            .map_err(|_| Status::invalid_argument("the node's description cannot be read"))?;
        let addr = description.control_addr.rsplit_once(':').map(|(ip, _)| ip.to_owned()).unwrap_or_default();
        let registration = NodeSession {
            node_id: node_id.clone(),
            generation: hello.generation,
            description,
            addr,
            certificate,
            boot: hello.boot,
        };
        // The hello is a sign of life; without it, the leader would judge by a silence from before the session. That of a
        // clone says nothing of the host that the cluster knows, whose death it would hide.
        if !self.is_usurper(&registration) {
            self.manager.inner.heard.note(node_id.clone(), Duration::ZERO);
        }
        if !self.knows(&registration) {
            self.manager
                .control(ControlRequest::from(Op::NodeSession(Box::new(registration.clone()))))
                .await
                .map_err(|error| refused_session(&node_id, &error))?;
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let covering = self.manager.inner.drains.session(node_id.clone());
        let content = self.manager.inner.holdings.session(node_id);
        let manager = self.manager.clone();
        let session = Session { manager, registration, opened: Instant::now(), sender, content, covering };
        self.manager.spawn(async move {
            session.run(messages).await;
            drop(open);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn leave(&self, request: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveReply>, Status> {
        let node_id = self.manager.authorize_node(&caller(&request)?)?;
        self.manager.forget(&node_id).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(pb::LeaveReply {}))
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Result<Response<pb::AttachReply>, Status> {
        let node_id = self.manager.authorize_node(&caller(&request)?)?;
        let pb::AttachRequest { container, name, network, aliases, start, generation, boot } = request.into_inner();
        let op = AttachContainer { node_id, container, name, network, aliases, start, generation, boot };
        let request = ControlRequest::from(Op::AttachContainer(op));
        let reply = self.manager.control(request).await.map_err(|e| refused_place(&e))?;
        Ok(Response::new(pb::AttachReply { id: reply.id }))
    }

    async fn detach(&self, request: Request<pb::DetachRequest>) -> Result<Response<pb::DetachReply>, Status> {
        let node_id = self.manager.authorize_node(&caller(&request)?)?;
        let pb::DetachRequest { id, generation, boot } = request.into_inner();
        let op = DetachContainer { node_id, id: TaskId::new(id), generation, boot };
        let request = ControlRequest::from(Op::DetachContainer(op));
        self.manager.control(request).await.map_err(|e| refused_place(&e))?;
        Ok(Response::new(pb::DetachReply {}))
    }
}

/// Says what kind of refusal it is: the host makes an HTTP status of that. Who gets `Unavailable` asks again.
fn refused_place(error: &EngineError) -> Status {
    let EngineError::Refused(refused) = error else { return to_status(error) };
    let code = match refused.kind() {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Forbidden => Code::PermissionDenied,
        // The code of that name is a manager's that does not know the call.
        ErrorKind::FailedPrecondition | ErrorKind::Unimplemented => Code::FailedPrecondition,
        ErrorKind::OutOfSequence => Code::Aborted,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        // Among others a daemon whose session is not there yet.
        ErrorKind::Busy => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

impl Service {
    /// Whether the store says of the node what its agent says. An agent that only changes its manager is then served at
    /// once, also while there is no leader; should the leader know better by now, the next heartbeat tells it.
    fn knows(&self, said: &NodeSession) -> bool {
        let published = self.manager.inner.published.borrow();
        published.store.node(&said.node_id).is_some_and(|node| {
            node.status.state() == NodeState::Ready
                && node.status.generation == said.generation
                && node.status.boot == said.boot
                && node.status.addr == said.addr
                && said.certificate.as_ref().is_none_or(|shown| node.certificate.as_ref() == Some(shown))
                && node.description == said.description
        })
    }

    /// Whether the identity that a daemon shows is in use by another one, which lives.
    fn is_usurper(&self, said: &NodeSession) -> bool {
        let published = self.manager.inner.published.borrow();
        let lives = published.store.node(&said.node_id).is_some_and(|node| node.status.state() == NodeState::Ready);
        lives && superseded(&published, said)
    }
}

impl Manager {
    /// What the store is to keep of a certificate that a node showed; nothing before there is a cluster.
    fn record_of(&self, shown: &Shown) -> Option<NodeCertificate> {
        let cluster = self.inner.published.borrow().store.cluster().cloned()?;
        Some(certificates::record_of(&cluster, shown))
    }
}

/// One agent's session.
struct Session {
    manager: Manager,
    registration: NodeSession,
    opened: Instant,
    sender: mpsc::Sender<Result<pb::ManagerMessage, Status>>,
    /// What the host has of images, until the session ends.
    content: Telling,
    /// How far the host is with what it was told.
    covering: Covering,
}

impl Session {
    fn node_id(&self) -> &NodeId {
        &self.registration.node_id
    }

    async fn run(self, messages: Streaming<pb::AgentMessage>) {
        tracing::info!(node.id = %self.node_id(), generation = self.registration.generation, "session opened");
        self.manager.inner.counters.sessions_opened.add_one();
        let reason = tokio::select! {
            reason = self.receive(messages) => reason,
            reason = self.send() => reason,
        };
        tracing::info!(node.id = %self.node_id(), reason, "session closed");
    }

    /// Takes what the agent says until it says no more.
    async fn receive(&self, mut messages: Streaming<pb::AgentMessage>) -> &'static str {
        // Statuses are committed beside the reading: a slow disk must not make a living agent look silent.
        let mut committing: Option<Pin<Box<dyn Future<Output = bool> + Send + '_>>> = None;
        // The same for the certificate that the node uses, one at a time: what is said meanwhile is said again.
        let mut noting: Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = None;
        // And for its keys: of what is said meanwhile, the last counts.
        let mut sealing: Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = None;
        let mut said_since: Option<pb::SealingSaid> = None;
        loop {
            if let Some(said) = said_since.take_if(|_| sealing.is_none()) {
                match self.sealing_said(&said) {
                    Ok(news) => sealing = news.map(|news| Box::pin(self.note_sealing(news)) as _),
                    Err(_) => return "the agent said what cannot be read",
                }
            }
            let received = tokio::select! {
                biased;
                received = messages.message() => received,
                committed = finished(&mut committing) => {
                    committing = None;
                    if !committed {
                        return "its statuses could not be committed";
                    }
                    continue;
                }
                () = finished(&mut noting) => {
                    noting = None;
                    continue;
                }
                () = finished(&mut sealing) => {
                    sealing = None;
                    continue;
                }
            };
            let kind = match received {
                Ok(Some(message)) => message.kind,
                Ok(None) => return "the agent closed it",
                Err(_) => return "the connection broke",
            };
            self.manager.inner.heard.note(self.node_id().clone(), Duration::ZERO);
            match kind {
                Some(pb::agent_message::Kind::Statuses(statuses)) if committing.is_none() => {
                    committing = Some(Box::pin(self.commit(statuses)));
                }
                Some(pb::agent_message::Kind::Statuses(_)) => return "the agent did not wait for an acknowledgement",
                Some(pb::agent_message::Kind::Heartbeat(beat)) => {
                    self.covering.acknowledged(beat.applied_revision);
                    self.compare_clocks(&beat);
                    self.return_to_ready().await;
                }
                Some(pb::agent_message::Kind::Certificate(used)) if noting.is_none() => {
                    noting =
                        self.certificate_in_use(&used.cert_pem).map(|news| Box::pin(self.note_certificate(news)) as _);
                }
                Some(pb::agent_message::Kind::Certificate(_)) => {}
                Some(pb::agent_message::Kind::Sealing(said)) => said_since = Some(said),
                Some(pb::agent_message::Kind::Content(held)) => self.content.tell(&held),
                Some(pb::agent_message::Kind::Hello(_)) | None => return "the agent said what it should not",
            }
        }
    }

    /// Commits a batch of statuses, then says so; an agent sends again what was not acknowledged.
    async fn commit(&self, statuses: pb::Statuses) -> bool {
        let mut reports = Vec::with_capacity(statuses.reports.len());
        for bytes in &statuses.reports {
            match TaskReport::decode(bytes.as_slice()) {
                Ok(report) => reports.push(report),
                Err(_) => return false,
            }
        }
        // The leader takes as many as fit into one entry, from the first on; the rest goes into the next.
        while !reports.is_empty() {
            let op = Op::ReportStatuses(ReportStatuses {
                node_id: self.node_id().clone(),
                generation: self.registration.generation,
                reports: reports.clone(),
            });
            match self.manager.control(ControlRequest::from(op)).await {
                Ok(reply) => {
                    let taken = usize::try_from(reply.number).unwrap_or(usize::MAX).clamp(1, reports.len());
                    self.manager.inner.counters.statuses.add(taken as u64);
                    reports.drain(..taken);
                }
                Err(error) => {
                    tracing::warn!(node.id = %self.node_id(), %error, "statuses were not committed");
                    return false;
                }
            }
        }
        self.manager.inner.counters.status_batches.add_one();
        let kind = pb::manager_message::Kind::StatusesCommitted(pb::StatusesCommitted { sequence: statuses.sequence });
        self.sender.send(Ok(pb::ManagerMessage { kind: Some(kind) })).await.is_ok()
    }

    /// The certificate that the node says it uses now, if that is news. It can say so only of its own.
    fn certificate_in_use(&self, cert_pem: &str) -> Option<NodeCertificate> {
        let shown = read_certificate(cert_pem).ok()?;
        let certificate = self.manager.record_of(&shown)?;
        let own = shown.identity.node_id == self.node_id().as_str() && !certificate.root.is_empty();
        let published = self.manager.inner.published.borrow();
        (own && is_news(&published.store, self.node_id(), &certificate)).then_some(certificate)
    }

    /// Commits that. The node says it again if this is lost.
    async fn note_certificate(&self, certificate: NodeCertificate) {
        let certified = NodeCertified { node_id: self.node_id().clone(), certificate, in_use: true };
        if let Err(error) = self.manager.control(ControlRequest::from(Op::NodeCertified(certified))).await {
            tracing::debug!(%error, "a certificate could not be written down");
        }
    }

    /// What the host says of its part in encrypted networks, if that is news.
    fn sealing_said(&self, said: &pb::SealingSaid) -> Result<Option<NodeSealing>, prost::DecodeError> {
        let sealing = NodeSealing::decode(said.sealing.as_slice())?;
        let published = self.manager.inner.published.borrow();
        let known = published.store.node(self.node_id()).and_then(|node| node.sealing.as_ref());
        Ok(Some(sealing).filter(|sealing| known != Some(sealing)))
    }

    /// Commits that. The host says it again if this is lost. Every host is told of the keys of all others, so there is a
    /// pause before what this one says next.
    async fn note_sealing(&self, sealing: NodeSealing) {
        let said = NodeSealed {
            node_id: self.node_id().clone(),
            generation: self.registration.generation,
            boot: self.registration.boot,
            sealing,
        };
        match self.manager.control(ControlRequest::from(Op::NodeSealed(said))).await {
            Ok(reply) => {
                for reason in reply.warnings {
                    tracing::warn!(node.id = %self.node_id(), reason, "a key of a host was left out");
                }
            }
            Err(EngineError::Refused(reason)) if reason.kind() != ErrorKind::Busy => {
                tracing::warn!(node.id = %self.node_id(), %reason, "the keys of a host were refused");
            }
            Err(error) => {
                tracing::debug!(node.id = %self.node_id(), %error, "the keys of a host were not written down")
            }
        }
        tokio::time::sleep(BETWEEN_KEYS).await;
    }

    fn heartbeat(&self) -> pb::ManagerHeartbeat {
        pb::ManagerHeartbeat { mark: self.since_opening().max(1) }
    }

    /// Nanoseconds of monotonic time.
    fn since_opening(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// What the host's clock says, beside this one's.
    fn compare_clocks(&self, beat: &pb::Heartbeat) {
        if beat.mark == 0 {
            return;
        }
        // A mark that was never given makes no round trip.
        let Some(away) = self.since_opening().checked_sub(beat.mark).and_then(|ns| ns.checked_sub(beat.kept_ns)) else {
            return;
        };
        if let Some(ahead) = skew::ahead_ms(beat.clock_ns, clock::unix_nanos(), Duration::from_nanos(away)) {
            self.manager.inner.heard.note_clock(self.node_id(), ahead);
        }
    }

    /// A host that was declared Down and still talks is Ready again.
    async fn return_to_ready(&self) {
        let down = {
            let published = self.manager.inner.published.borrow();
            published.store.node(self.node_id()).is_some_and(|node| node.status.state() != NodeState::Ready)
        };
        if down {
            self.manager.inner.heard.note(self.node_id().clone(), Duration::ZERO);
            // The certificate that it uses may be a newer one by now.
            let op = Op::NodeSession(Box::new(NodeSession { certificate: None, ..self.registration.clone() }));
            if let Err(error) = self.manager.control(ControlRequest::from(op)).await {
                tracing::debug!(node.id = %self.node_id(), %error, "the host could not be made Ready again");
            }
        }
    }

    /// Sends the assignment set, then differences as the store changes, and heartbeats between them.
    async fn send(&self) -> &'static str {
        let mut published = self.manager.watch();
        let mut sent: Option<Told> = None;
        let mut draining = BTreeSet::new();
        let mut last_sent = Instant::now();
        loop {
            let current = published.borrow_and_update().clone();
            if removed(&current, self.node_id()) {
                let _ =
                    self.sender.send(Err(Status::permission_denied("this node was removed from the cluster"))).await;
                return "the node was removed";
            }
            if superseded(&current, &self.registration) {
                let reason = "another daemon has taken over this node's identity";
                tracing::error!(node.id = %self.node_id(), generation = self.registration.generation, reason);
                let _ = self.sender.send(Err(Status::failed_precondition(reason))).await;
                return reason;
            }
            // Demoted, or cut off: this manager does not hear what is decided, the next one may.
            if !self.manager.inner.contact.holds() {
                let _ = self.sender.send(Err(out_of_touch())).await;
                return "this manager is out of touch";
            }
            let heartbeat =
                || pb::ManagerMessage { kind: Some(pb::manager_message::Kind::Heartbeat(self.heartbeat())) };
            let due = last_sent.elapsed() >= HEARTBEAT;
            let revision = current.store.revision();
            let news = self.difference(&current, &mut sent);
            match &news {
                Some(_) => self.covering.told(revision),
                None => self.covering.nothing_until(revision),
            }
            let changed = news.is_some();
            if let Some(message) = news.or_else(|| due.then(heartbeat)) {
                if self.sender.send(Ok(message)).await.is_err() {
                    return "the agent is gone";
                }
                last_sent = Instant::now();
            }
            if changed {
                self.ask_for_drains(&current, &mut draining);
            }
            match tokio::time::timeout_at(last_sent + HEARTBEAT, published.changed()).await {
                Ok(Ok(())) => tokio::time::sleep(GATHER).await,
                Ok(Err(_)) => return "the manager stopped",
                Err(_) => {}
            }
        }
    }

    /// Asks who has let go of the host's tasks that began to drain. A new session asks for all that drain.
    fn ask_for_drains(&self, current: &Published, draining: &mut BTreeSet<TaskId>) {
        for drain in dispatcher::drain::drains(&current.store, self.node_id(), draining) {
            self.manager.inner.drains.ask(drain, current.store.revision(), self.sender.clone());
        }
    }

    /// What the host is to know.
    fn set(&self, current: &Published, sent: Option<&Told>) -> HostSet {
        let shared = self.manager.parts().shared(&current.store, self.node_id());
        match shared {
            Some(shared) => {
                let before = sent.map(|told| (&told.store, &told.set));
                HostSet::new(&current.store, self.node_id(), shared, before)
            }
            // Another session has seen a newer state already; this one will see it right away.
            None => HostSet::alone(&current.store, self.node_id()),
        }
    }

    /// What the agent must be told so that it knows what `current` says; `None` if it knows.
    fn difference(&self, current: &Published, sent: &mut Option<Told>) -> Option<pb::ManagerMessage> {
        let cluster = current.store.cluster()?;
        let node = current.store.node(self.node_id())?;
        if let Some(told) = sent {
            // Most of what happens in a cluster concerns few of its hosts, and a set is worth some work to compute.
            let changed = told.store.changed(&current.store);
            let ours = changed.contains(&Key::Cluster)
                || changed.contains(&Key::Node(self.node_id().clone()))
                || dispatcher::affects(&told.store, &current.store, &changed, self.node_id());
            if !ours {
                told.store = current.store.clone();
                return None;
            }
        }
        let set = self.set(current, sent.as_ref());
        let told = Told {
            stamp: Stamp {
                incarnation: cluster.status.incarnation,
                term: current.term,
                revision: current.store.revision(),
            },
            set,
            keys: gossip_keys(cluster),
            manager: node.spec.role() == NodeRole::Manager,
            store: current.store.clone(),
            trust: certificates::trust(cluster),
            root: certificates::wanted_root(cluster).to_owned(),
            certificate: node.certificate.as_ref().map(|certificate| certificate.key.clone()).unwrap_or_default(),
            wants_sealing: cluster.status.feature_level >= ENCRYPTION_LEVEL,
            sealing: node.sealing.as_ref().map(Message::encode_to_vec),
        };
        let update = match &*sent {
            Some(old) => {
                let delta = self.manager.parts().difference(&old.set, &told.set);
                if delta.is_empty() && old.same_beside_the_set(&told) {
                    // What it was told, as of that time, is what is so now.
                    *sent = Some(Told { stamp: old.stamp, ..told });
                    return None;
                }
                Update { stamp: told.stamp, base: Some(old.stamp), delta }
            }
            None => told.set.to_update(told.stamp),
        };
        let message = pb::Assignments {
            update: update.to_bytes(),
            gossip_keys: told.keys.clone(),
            manager: told.manager,
            trust_pem: told.trust.clone(),
            root_digest: told.root.clone(),
            certificate_key: told.certificate.clone(),
            wants_content: true,
            drains: true,
            wants_sealing: told.wants_sealing,
            sealing: told.sealing.clone(),
        };
        self.manager.inner.counters.updates.add_one();
        self.manager.inner.counters.update_bytes.add(message.update.len() as u64);
        *sent = Some(told);
        Some(pb::ManagerMessage { kind: Some(pb::manager_message::Kind::Assignments(message)) })
    }
}

impl Manager {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.inner.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn out_of_touch() -> Status {
    Status::unavailable("this manager is not in touch with a leader")
}

/// What an agent knows.
struct Told {
    stamp: Stamp,
    set: HostSet,
    keys: Vec<pb::GossipKey>,
    manager: bool,
    /// The store that says so; nothing of it that this agent must know is newer than what it was told.
    store: Store,
    /// Trusted roots, PEM.
    trust: String,
    /// Digest of the root that its certificate should be of.
    root: String,
    /// Key of the certificate that it is known to use.
    certificate: Vec<u8>,
    /// It is to say what its part in encrypted networks is.
    wants_sealing: bool,
    /// What it has said of that, encoded.
    sealing: Option<Vec<u8>>,
}

impl Told {
    /// Whether they say the same beside the set, as of whatever time.
    fn same_beside_the_set(&self, other: &Told) -> bool {
        self.keys == other.keys
            && self.manager == other.manager
            && self.trust == other.trust
            && self.root == other.root
            && self.certificate == other.certificate
            && (self.wants_sealing, &self.sealing) == (other.wants_sealing, &other.sealing)
    }
}

/// Loudly: two hosts with one identity, or one that came back from a backup, need a person.
fn refused_session(node: &NodeId, error: &EngineError) -> Status {
    if let EngineError::Refused(reason) = error {
        tracing::error!(node.id = %node, %reason, "a session was refused");
        // A leader without room or time says nothing of who the node is; the agent goes on asking.
        if matches!(reason.kind(), ErrorKind::Busy | ErrorKind::Exhausted) {
            return Status::unavailable(error.to_string());
        }
    }
    to_status(error)
}

/// Whether a later daemon of this node has a session by now, or another one that has the same boot generation.
fn superseded(current: &Published, session: &NodeSession) -> bool {
    current.store.node(&session.node_id).is_some_and(|node| {
        let status = &node.status;
        status.generation > session.generation
            || status.generation == session.generation && status.boot != session.boot && status.boot != 0
    })
}

/// Whether the cluster has removed the node. One that this manager has not heard of yet is none of those: it joined
/// through another manager, and this one lags.
fn removed(current: &Published, node: &NodeId) -> bool {
    current.store.cluster().is_some_and(|cluster| cluster.status.removed_nodes.iter().any(|r| r.id == *node))
}

/// Whether the store says something else of the certificate that a node uses. What it knows costs no entry of the log.
fn is_news(store: &Store, node: &NodeId, certificate: &NodeCertificate) -> bool {
    store.node(node).is_some_and(|node| node.certificate.as_ref() != Some(certificate))
}

/// The outcome of what is under way; never, if nothing is.
async fn finished<T>(under_way: &mut Option<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    match under_way {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use deploy::control::ControlError;
    use deploy::model::{Node, Timestamp};
    use deploy::store::Txn;

    use super::*;

    #[test]
    fn a_host_is_told_what_kind_of_refusal_it_is() {
        for (kind, code) in [
            (ErrorKind::Forbidden, Code::PermissionDenied),
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::Exhausted, Code::ResourceExhausted),
            (ErrorKind::Unimplemented, Code::FailedPrecondition),
            (ErrorKind::Busy, Code::Unavailable),
        ] {
            let status = refused_place(&EngineError::Refused(ControlError::new(kind, "no")));
            assert_eq!((status.code(), status.message()), (code, "no"));
        }
        assert_eq!(refused_place(&EngineError::NoLeader).code(), Code::Unavailable);
    }

    #[test]
    fn a_certificate_that_the_store_knows_is_no_news() {
        let certificate = |key: u8, root: &str| NodeCertificate {
            key: vec![key; 32],
            root: root.to_owned(),
            expires: Timestamp::from_millis(1000),
        };
        let mut txn = Txn::new(&Store::default(), Timestamp::from_millis(1000));
        let node = NodeId::new("node");
        txn.put_node(Node { id: node.clone(), certificate: Some(certificate(1, "a")), ..Node::default() });
        let store = txn.into_store();
        let news = |node: &NodeId, certificate| is_news(&store, node, &certificate);
        assert!(!news(&node, certificate(1, "a")));
        assert!(news(&node, certificate(2, "a")) && news(&node, certificate(1, "b")));
        assert!(!news(&NodeId::new("gone"), certificate(1, "a")));
    }
}
