//! What other nodes ask of a manager: certificates, requests for the leader, changes of the manager set.

use std::time::Duration;

use deploy::control::{NodeCertified, Op, RegisterNode, Request as ControlRequest};
use deploy::model::{Cluster, NodeAvailability, NodeDescription, NodeId, NodeRole, Timestamp};
use deploy::store::Store;
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Response, Status};

use super::certificates::Issued;
use super::leader::NotDone;
use super::{Manager, certificates, drain, sessions, whereabouts};
use crate::ca::{Caller, PeerIdentity, Role, Shown, may_renew_late};
use crate::clock;
use crate::engine::{Consistency, EngineError};
use crate::rpc::{Lane, MAX_MESSAGE, caller, known, pb, shown};

/// Largest message of one who has shown no certificate, in bytes.
const MAX_UNAUTHENTICATED: usize = 256 << 10;
/// A new manager waits so long to be a voter.
const JOIN_RAFT: Duration = Duration::from_secs(15);
/// Who passes a joining manager on gives the leader a little more: it looks first whether it leads.
const PASS_ON: Duration = Duration::from_secs(18);
/// So long a manager asks for the newest store before it says that it can issue no certificate now.
const FRESH_STORE: Duration = Duration::from_secs(2);
/// So long a manager waits until a certificate that it issues is written down.
const NOTE_ISSUED: Duration = Duration::from_secs(3);
/// Marks a request that a follower has passed on, so that two that take each other for the leader do not play ball.
const PASSED_ON: &str = "shoal-passed-on";

pub(super) fn routes(manager: Manager) -> Routes {
    let raft = InterceptedService::new(manager.inner.raft.service().max_decoding_message_size(MAX_MESSAGE), {
        let manager = manager.clone();
        move |request: Request<()>| {
            manager.authorize_raft(&caller(&request)?)?;
            Ok(request)
        }
    });
    let service = Service { manager: manager.clone() };
    Routes::new(raft)
        .add_service(pb::ca_server::CaServer::new(service.clone()).max_decoding_message_size(MAX_UNAUTHENTICATED))
        .add_service(InterceptedService::new(
            pb::managers_server::ManagersServer::new(service).max_decoding_message_size(MAX_MESSAGE),
            known,
        ))
        .add_service(InterceptedService::new(whereabouts::service(manager.clone()), known))
        .add_service(InterceptedService::new(sessions::service(manager.clone()), move |request: Request<()>| {
            // Who was removed must hear that, also with a certificate that has run out.
            if let Caller::Known(shown) | Caller::Stale(shown, _) = shown(&request)? {
                manager.authorize_node(&shown.identity)?;
            }
            known(request)
        }))
}

/// What the store says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It was removed, or has left.
    Removed,
    Manager,
    Worker,
    /// It joined meanwhile and this store lags, or it was removed so long ago that no certificate of it can hold.
    Unknown,
}

impl Standing {
    fn of(store: &Store, node: &NodeId) -> Self {
        if store.cluster().is_some_and(|c| c.status.removed_nodes.iter().any(|removed| removed.id == *node)) {
            return Self::Removed;
        }
        match store.node(node) {
            Some(node) if node.spec.role() == NodeRole::Manager || node.manager.is_some() => Self::Manager,
            Some(_) => Self::Worker,
            None => Self::Unknown,
        }
    }

    /// Whether it may ask what only managers may. Who is not known yet asks again, or somebody else.
    fn as_manager(self) -> Result<(), Status> {
        match self {
            Self::Manager => Ok(()),
            Self::Removed => Err(removed()),
            Self::Worker => Err(Status::permission_denied("only managers may ask this")),
            Self::Unknown => Err(Status::unavailable("this manager does not know this node yet")),
        }
    }

    /// Whether it may speak Raft. A log that is still empty, or lags, gets the entries that say who is who by this very
    /// way; until it has them, the certificate has to do.
    fn in_raft(self, certified: Role) -> Result<(), Status> {
        match self {
            Self::Unknown if certified == Role::Manager => Ok(()),
            Self::Unknown => Err(Status::permission_denied("only managers may ask this")),
            known => known.as_manager(),
        }
    }
}

fn removed() -> Status {
    Status::permission_denied("this node was removed from the cluster")
}

impl Manager {
    fn standing(&self, peer: &PeerIdentity) -> (NodeId, Standing) {
        let node_id = NodeId::new(peer.node_id.clone());
        let standing = Standing::of(&self.inner.published.borrow().store, &node_id);
        (node_id, standing)
    }

    /// Whether a caller was not removed. The store decides, not the certificate; of one that it does not know, the
    /// leader has to say whether it is in the cluster.
    pub(super) fn authorize_node(&self, peer: &PeerIdentity) -> Result<NodeId, Status> {
        match self.standing(peer) {
            (_, Standing::Removed) => Err(removed()),
            (node_id, _) => Ok(node_id),
        }
    }

    /// Whether a caller is a manager, as the store says.
    pub(super) fn authorize_manager(&self, peer: &PeerIdentity) -> Result<NodeId, Status> {
        let (node_id, standing) = self.standing(peer);
        standing.as_manager().map(|()| node_id)
    }

    fn authorize_raft(&self, peer: &PeerIdentity) -> Result<(), Status> {
        self.standing(peer).1.in_raft(peer.role)
    }
}

#[derive(Clone)]
struct Service {
    manager: Manager,
}

impl Service {
    fn cluster(&self) -> Result<std::sync::Arc<Cluster>, Status> {
        let published = self.manager.inner.published.borrow();
        published.store.cluster().cloned().ok_or_else(|| Status::unavailable("this manager is not ready yet"))
    }

    /// Who asks for another certificate: any node that is good now, or one that proves the key that it had last.
    fn renewing(&self, caller: Caller) -> Result<Renewing, Status> {
        let (shown, stale) = match caller {
            Caller::Known(shown) => (shown, false),
            Caller::Stale(shown, _) => (shown, true),
            Caller::Nobody => return Err(Status::unauthenticated("the certificate of before is needed")),
        };
        let node_id = self.manager.authorize_node(&shown.identity)?;
        Ok(Renewing { node_id, shown, stale })
    }

    /// Writes down what is about to be sent, so that its key is known when it has run out. What cannot be written down is
    /// not issued: the node would throw away the key that the cluster knows for one that it may never hear of.
    async fn note_issued(&self, renewing: &Renewing, issued: &Issued) -> Result<(), Status> {
        let certified =
            NodeCertified { node_id: renewing.node_id.clone(), certificate: issued.record.clone(), in_use: false };
        let noted = self.manager.control(ControlRequest::from(Op::NodeCertified(certified)));
        may_issue(tokio::time::timeout(NOTE_ISSUED, noted).await.unwrap_or(Err(EngineError::NoLeader)))
    }

    fn managers(&self) -> Vec<pb::ManagerAddress> {
        let published = self.manager.inner.published.borrow();
        published
            .store
            .nodes()
            .filter_map(|node| {
                let manager = node.manager.as_ref()?;
                Some(pb::ManagerAddress { node_id: node.id.to_string(), addr: manager.addr.clone() })
            })
            .collect()
    }
}

#[tonic::async_trait]
impl pb::ca_server::Ca for Service {
    async fn get_root(&self, _: Request<pb::GetRootRequest>) -> Result<Response<pb::GetRootReply>, Status> {
        Ok(Response::new(pb::GetRootReply { root_pem: self.cluster()?.status.root_ca.cert_pem.clone() }))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        let request = request.into_inner();
        let cluster = self.cluster()?;
        let equal = |a: &str, b: &str| {
            // Digests are compared, so that the time it takes says nothing about the token. Without a token nothing
            // is equal.
            !b.is_empty() && Sha256::digest(a.as_bytes()) == Sha256::digest(b.as_bytes())
        };
        let role = if equal(&request.secret, &cluster.status.manager_token) {
            Role::Manager
        } else if equal(&request.secret, &cluster.status.worker_token) {
            Role::Worker
        } else {
            return Err(Status::permission_denied("a valid join token is necessary to join this cluster"));
        };
        let availability = availability(&request.availability)?;
        let description = NodeDescription::decode(request.description.as_slice())
            .map_err(|_| Status::invalid_argument("the node's description cannot be read"))?;
        let node_id = node_id_of(&cluster, &request.csr_pem);
        // Signed before it is registered: a request that cannot be signed leaves no node behind.
        let issued = issue(&cluster, &request.csr_pem, &node_id, role)?;
        let addr = description.control_addr.rsplit_once(':').map(|(ip, _)| ip.to_owned()).unwrap_or_default();
        let registration = RegisterNode {
            node_id: node_id.clone(),
            role: role_of(role) as i32,
            availability: availability as i32,
            description,
            addr,
            certificate: Some(issued.record),
            secret: request.secret,
        };
        self.manager
            .control(ControlRequest::from(Op::RegisterNode(Box::new(registration))))
            .await
            .map_err(|e| to_status(&e))?;
        tracing::info!(node.id = %node_id, ?role, "a node joined");
        Ok(Response::new(pb::JoinReply {
            node_id: node_id.to_string(),
            cluster_id: cluster.id.to_string(),
            cert_pem: issued.chain_pem,
            manager: role == Role::Manager,
            trust_pem: certificates::trust(&cluster),
            gossip_keys: gossip_keys(&cluster),
            managers: self.managers(),
            data_path_port: cluster.spec.data_path_port,
        }))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::RenewReply>, Status> {
        let renewing = self.renewing(shown(&request)?)?;
        // A manager that lags would give the role of yesterday, or a certificate of a root that is gone. In a cluster that
        // is headless for so long that certificates run out, managers help themselves, and the others come late.
        let newest = tokio::time::timeout(FRESH_STORE, self.manager.store(Consistency::Linearizable)).await;
        let Ok(Ok(store)) = newest else {
            return Err(Status::unavailable("this manager is not in touch with a leader"));
        };
        let node_id = self.manager.authorize_node(&renewing.shown.identity)?;
        let node = store.node(&node_id).ok_or_else(|| Status::permission_denied("this node is not in the cluster"))?;
        if renewing.stale {
            let certified = node.certificate.iter().chain(&node.next_certificate);
            may_renew_late(certified, &renewing.shown.key, Timestamp::from_nanos(clock::unix_nanos()))
                .map_err(|e| Status::failed_precondition(e.to_string()))?;
        }
        let role = match node.spec.role() {
            NodeRole::Manager => Role::Manager,
            NodeRole::Worker => Role::Worker,
        };
        let cluster = store.cluster().ok_or_else(|| Status::unavailable("this manager is not ready yet"))?;
        let issued = issue(cluster, &request.into_inner().csr_pem, &node_id, role)?;
        self.note_issued(&renewing, &issued).await?;
        tracing::info!(node.id = %node_id, late = renewing.stale, "a certificate was issued");
        Ok(Response::new(pb::RenewReply {
            cert_pem: issued.chain_pem,
            manager: role == Role::Manager,
            trust_pem: certificates::trust(cluster),
        }))
    }
}

/// A node that asks for another certificate.
struct Renewing {
    node_id: NodeId,
    shown: Shown,
    /// Its certificate is good for nothing else any more.
    stale: bool,
}

/// Whether a certificate may be sent, by what became of writing it down.
fn may_issue<T>(noted: Result<T, EngineError>) -> Result<(), Status> {
    match noted {
        Ok(_) => Ok(()),
        Err(EngineError::Refused(error)) => Err(to_status(&EngineError::Refused(error))),
        Err(_) => Err(Status::unavailable("the cluster cannot write down the certificate now")),
    }
}

fn issue(cluster: &Cluster, csr_pem: &str, node: &NodeId, role: Role) -> Result<Issued, Status> {
    certificates::issue(cluster, csr_pem, node, role).map_err(|e| Status::invalid_argument(crate::chain(&e)))
}

#[tonic::async_trait]
impl pb::managers_server::Managers for Service {
    async fn execute(&self, request: Request<pb::ExecuteRequest>) -> Result<Response<pb::ExecuteReply>, Status> {
        use pb::execute_reply::Outcome;
        match self.manager.authorize_manager(&caller(&request)?) {
            Ok(_) => {}
            // Nothing was done, and the caller has to know that: it looks for a leader again.
            Err(status) if status.code() == Code::Unavailable => {
                let outcome = Some(Outcome::NotLeader(pb::NotLeader::default()));
                return Ok(Response::new(pb::ExecuteReply { outcome, index: 0 }));
            }
            Err(status) => return Err(status),
        }
        let decoded = ControlRequest::decode(request.into_inner().request.as_slice())
            .map_err(|_| Status::invalid_argument("the request cannot be read"))?;
        // What an agent says through another manager is a sign of life here as well.
        match &decoded.op {
            Some(Op::NodeSession(session)) => {
                self.manager.inner.heard.note(session.node_id.clone(), Duration::ZERO);
            }
            Some(Op::ReportStatuses(report)) => {
                self.manager.inner.heard.note(report.node_id.clone(), Duration::ZERO);
            }
            _ => {}
        }
        let (outcome, index) = match self.manager.execute_here(decoded).await {
            Ok((reply, index)) => {
                // The manager that asked answers when it has applied the entry too.
                self.manager.inner.raft.hurry(index);
                (Outcome::Reply(reply.encode_to_vec()), index)
            }
            Err(NotDone::Refused(error)) => (Outcome::Refused(error.encode_to_vec()), 0),
            Err(NotDone::Unknown(reason)) => (Outcome::Unknown(reason), 0),
            Err(NotDone::NotLeader) => {
                let leader = self.manager.status().leader;
                let known = leader.map(|peer| pb::NotLeader { node_id: peer.node_id, addr: peer.addr });
                (Outcome::NotLeader(known.unwrap_or_default()), 0)
            }
        };
        Ok(Response::new(pb::ExecuteReply { outcome: Some(outcome), index }))
    }

    async fn read_index(&self, request: Request<pb::ReadIndexRequest>) -> Result<Response<pb::ReadIndexReply>, Status> {
        self.manager.authorize_manager(&caller(&request)?)?;
        let index = self.manager.inner.raft.linearizable().await.map_err(|e| Status::unavailable(e.to_string()))?;
        self.manager.inner.raft.hurry(index);
        Ok(Response::new(pb::ReadIndexReply { index }))
    }

    async fn heard(&self, request: Request<pb::HeardRequest>) -> Result<Response<pb::HeardReply>, Status> {
        let reporter = self.manager.authorize_manager(&caller(&request)?)?;
        self.manager.inner.heard.note_report(reporter);
        for agent in request.into_inner().agents {
            let node = NodeId::new(agent.node_id);
            if let Some(ahead) = agent.ahead_ms {
                self.manager.inner.heard.note_clock(&node, ahead);
            }
            self.manager.inner.heard.note(node, Duration::from_millis(agent.age_ms));
        }
        // A leader without a majority is not worth being in touch with.
        let leads = self.manager.status().role == raft::Role::Leader && self.manager.inner.contact.holds();
        let index = self.manager.inner.published.borrow().index;
        Ok(Response::new(pb::HeardReply { leads, index, clock_ns: clock::unix_nanos() }))
    }

    type CoveredStream = drain::CoveredStream;

    async fn covered(&self, request: Request<pb::CoveredRequest>) -> Result<Response<Self::CoveredStream>, Status> {
        self.manager.authorize_manager(&caller(&request)?)?;
        Ok(Response::new(drain::answer(&self.manager, request.into_inner())?))
    }

    async fn join_raft(&self, request: Request<pb::JoinRaftRequest>) -> Result<Response<pb::JoinRaftReply>, Status> {
        self.manager.authorize_manager(&caller(&request)?)?;
        let passed_on = request.metadata().contains_key(PASSED_ON);
        let request = request.into_inner();
        let leader = self.manager.status().leader.ok_or_else(|| to_status(&EngineError::NoLeader))?;
        if leader.node_id != self.manager.inner.node_id.as_str() {
            if passed_on {
                return Err(to_status(&EngineError::NoLeader));
            }
            let channel = self.manager.inner.channels.lane(Lane::Raft).to(&leader.addr, &leader.node_id);
            let mut request = Request::new(request);
            request.metadata_mut().insert(PASSED_ON, tonic::metadata::MetadataValue::from_static("1"));
            let mut client = pb::managers_client::ManagersClient::new(channel);
            let passed_on = tokio::time::timeout(PASS_ON, client.join_raft(request)).await;
            return passed_on.unwrap_or_else(|_| Err(Status::unavailable("the leader does not answer")));
        }
        if self.manager.inner.closed.load(std::sync::atomic::Ordering::Acquire) {
            return Err(Status::unavailable("a backup is being restored"));
        }
        // The store says which raft id a node was given; another one is not let in. Only a leader that has applied
        // everything may say so: on that word a node throws its log away.
        let index = self.manager.inner.raft.linearizable().await.map_err(|e| Status::unavailable(e.to_string()))?;
        self.manager.applied(index).await.map_err(|e| to_status(&e))?;
        let node = {
            let published = self.manager.inner.published.borrow();
            published.store.node(&NodeId::new(request.node_id.clone())).cloned()
        };
        if node.as_ref().is_none_or(|node| node.spec.role() != NodeRole::Manager) {
            return Err(Status::permission_denied("this node is not to be a manager"));
        }
        let given = node.and_then(|node| node.manager.as_ref().map(|manager| manager.raft_id));
        if given != Some(request.raft_id) {
            return Err(Status::failed_precondition("this raft id is not the one that this node was given"));
        }
        tokio::time::timeout(JOIN_RAFT, self.manager.add_voter(request))
            .await
            .map_err(|_| Status::unavailable("the new manager could not be reached, or did not catch up in time"))??;
        Ok(Response::new(pb::JoinRaftReply {}))
    }

    async fn life(&self, request: Request<pb::LifeRequest>) -> Result<Response<pb::LifeReply>, Status> {
        self.manager.authorize_node(&caller(&request)?)?;
        let incarnation = self.cluster()?.status.incarnation;
        let revision = self.manager.inner.published.borrow().store.revision();
        Ok(Response::new(pb::LifeReply { incarnation, revision }))
    }

    async fn leave_raft(&self, request: Request<pb::LeaveRaftRequest>) -> Result<Response<pb::LeaveRaftReply>, Status> {
        self.manager.authorize_manager(&caller(&request)?)?;
        self.manager.remove_voter(request.into_inner().raft_id).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(pb::LeaveRaftReply {}))
    }
}

/// The id follows from the request: a host that asks again, because the answer to its first request was lost, is the
/// same node, and not a second one that nobody is.
fn node_id_of(cluster: &Cluster, csr_pem: &str) -> NodeId {
    let digest = Sha256::new_with_prefix(b"shoal node id\0")
        .chain_update(cluster.id.as_str())
        .chain_update(b"\0")
        .chain_update(csr_pem)
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    NodeId::from(u128::from_be_bytes(bytes))
}

pub(super) fn gossip_keys(cluster: &Cluster) -> Vec<pb::GossipKey> {
    cluster.status.gossip_keys.iter().map(|k| pb::GossipKey { id: k.id, key: k.bytes.clone() }).collect()
}

fn role_of(role: Role) -> NodeRole {
    match role {
        Role::Manager => NodeRole::Manager,
        Role::Worker => NodeRole::Worker,
    }
}

/// Docker's words for availability; empty means active.
pub(crate) fn availability(text: &str) -> Result<NodeAvailability, Status> {
    match text {
        "" | "active" => Ok(NodeAvailability::Active),
        "pause" => Ok(NodeAvailability::Pause),
        "drain" => Ok(NodeAvailability::Drain),
        other => {
            Err(Status::invalid_argument(format!("invalid availability {other:?}: it must be active, pause or drain")))
        }
    }
}

pub(super) fn to_status(error: &EngineError) -> Status {
    match error {
        EngineError::Refused(_) | EngineError::WrongMembership(_) | EngineError::JoinGoesOn => {
            Status::failed_precondition(error.to_string())
        }
        EngineError::Invalid(_) => Status::invalid_argument(error.to_string()),
        EngineError::NoLeader | EngineError::Behind | EngineError::NotManager(_) | EngineError::Locked => {
            Status::unavailable(error.to_string())
        }
        EngineError::NoSuchImage(_) => Status::not_found(error.to_string()),
        EngineError::OutcomeUnknown(_) => Status::unknown(error.to_string()),
        EngineError::Internal(_) => Status::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use deploy::control::{ControlError, ErrorKind};
    use deploy::model::{Node, NodeSpec, RemovedNode};
    use deploy::store::Txn;

    use super::*;

    #[test]
    fn a_certificate_that_is_not_written_down_is_not_issued() {
        assert!(may_issue(Ok(())).is_ok());
        for error in [EngineError::NoLeader, EngineError::OutcomeUnknown("late".into())] {
            assert_eq!(may_issue::<()>(Err(error)).unwrap_err().code(), Code::Unavailable);
        }
        let refused = EngineError::Refused(ControlError::new(ErrorKind::FailedPrecondition, "it left"));
        assert_eq!(may_issue::<()>(Err(refused)).unwrap_err().code(), Code::FailedPrecondition);
    }

    #[test]
    fn rights_are_the_stores_to_give_and_only_raft_goes_by_the_certificate_of_who_is_unknown() {
        let mut txn = Txn::new(&Store::default(), Timestamp::from_millis(1000));
        let mut cluster = Cluster::default();
        let gone = RemovedNode { id: NodeId::new("gone"), until: Timestamp::default(), at: Timestamp::default() };
        cluster.status.removed_nodes.push(gone);
        txn.put_cluster(cluster);
        for (id, role) in [("manager", NodeRole::Manager), ("worker", NodeRole::Worker), ("gone", NodeRole::Manager)] {
            let spec = NodeSpec { role: role as i32, ..NodeSpec::default() };
            txn.put_node(Node { id: NodeId::new(id), spec, ..Node::default() });
        }
        let store = txn.into_store();
        let check = |store: &Store, id: &str, asks: Result<(), Code>, raft: [Result<(), Code>; 2]| {
            let standing = Standing::of(store, &NodeId::new(id));
            assert_eq!(standing.as_manager().map_err(|e| e.code()), asks, "{id}");
            let spoken = [Role::Manager, Role::Worker].map(|role| standing.in_raft(role).map_err(|e| e.code()));
            assert_eq!(spoken, raft, "{id}");
        };
        let denied = Err(Code::PermissionDenied);
        check(&store, "manager", Ok(()), [Ok(()); 2]);
        check(&store, "worker", denied, [denied; 2]);
        check(&store, "gone", denied, [denied; 2]);
        check(&store, "unknown", Err(Code::Unavailable), [Ok(()), denied]);
        // A new manager has nothing yet.
        check(&Store::default(), "manager", Err(Code::Unavailable), [Ok(()), denied]);
    }
}
