//! How this node gets into a cluster: it makes one, or a manager takes it into theirs.
//!
//! The ports are taken before anybody hears of the node, and what fails after that is taken back.

use std::sync::Arc;
use std::time::Duration;

use deploy::model::{
    Cluster, ClusterId, ClusterStatus, GossipKey, ManagerStatus, Meta, Node, NodeDescription, NodeId, NodeRole,
    NodeSpec, NodeStatus, RootCa, format_id,
};
use prost::Message;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::active::{Active, Birth, remove_overlay, renounce};
use super::address;
use super::describe;
use super::local::LocalEngine;
use super::ports::Ports;
use crate::ca::{Issuer, JoinToken, KeyAndCsr, Role, new_root, root_digest};
use crate::datadir::{ManagerRecord, MembershipRecord};
use crate::engine::{EngineError, InitRequest, JoinRequest};
use crate::release::Release;
use crate::rpc::{channel_without_certificate, pb, unverified_channel};

/// First raft id of a cluster.
const FIRST_RAFT_ID: u64 = 1;
/// Life of the first manager's certificate; later ones follow the cluster's setting.
const FIRST_CERT_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// How often a host asks to be let in when the answer is lost, and the pause in between.
const JOIN_TRIES: u32 = 3;
const JOIN_PAUSE: Duration = Duration::from_millis(500);

impl LocalEngine {
    /// Makes a cluster of this one node.
    pub(super) async fn make_cluster(&self, request: InitRequest) -> Result<(Arc<Active>, NodeId), EngineError> {
        let invalid = |e: address::AddressError| EngineError::Invalid(e.to_string());
        let host = address::host_addresses();
        let listen = address::listen(&request.listen_addr, &host).map_err(invalid)?;
        let advertise = address::advertise(&request.advertise_addr, listen, &host).map_err(invalid)?;
        let data_path = address::data_path(&request.data_path_addr, advertise, &host).map_err(invalid)?;
        let data_path_port = if request.data_path_port == 0 { 4789 } else { request.data_path_port };
        let availability = crate::manager::availability(&request.availability)
            .map_err(|status| EngineError::Invalid(status.message().to_owned()))?;
        let ports = Ports::bind(&listen.to_string())?;

        let internal = |e: crate::ca::CaError| EngineError::Internal(crate::chain(&e));
        let node_id = NodeId::from(rand::random::<u128>());
        let cluster_id = ClusterId::from(rand::random::<u128>());
        let (cert_pem, key_pem) = new_root().map_err(internal)?;
        let own = KeyAndCsr::generate().map_err(internal)?;
        let certificate = Issuer::new(&cert_pem, &key_pem)
            .and_then(|issuer| {
                let (node, cluster) = (node_id.as_str(), cluster_id.as_str());
                issuer.issue(&own.csr_pem, node, cluster, Role::Manager, crate::clock::now(), FIRST_CERT_LIFE)
            })
            .map_err(internal)?;
        let gossip_keys = vec![GossipKey { id: 1, bytes: rand::random::<[u8; 32]>().to_vec() }];
        let record = MembershipRecord {
            node_id: node_id.to_string(),
            cluster_id: cluster_id.to_string(),
            manager: true,
            raft_id: FIRST_RAFT_ID,
            listen_addr: listen.to_string(),
            advertise_addr: advertise.to_string(),
            data_path_addr: data_path.to_string(),
            data_path_port,
            root_pem: cert_pem.clone(),
            cert_pem: certificate,
            key_pem: own.key_pem,
            gossip_keys: gossip_keys.clone(),
            managers: vec![ManagerRecord { node_id: node_id.to_string(), addr: advertise.to_string() }],
            raft_opened: FIRST_RAFT_ID,
        };
        let mut spec = request.spec;
        if spec.name.is_empty() {
            spec.name = "default".into();
        }
        spec.default_addr_pool =
            if request.default_addr_pool.is_empty() { vec!["10.0.0.0/8".into()] } else { request.default_addr_pool };
        spec.subnet_size = if request.subnet_size == 0 { 24 } else { request.subnet_size };
        spec.data_path_port = data_path_port;
        let description = describe(self, &record.listen_addr, &record.advertise_addr, &record.data_path_addr);
        let birth = Birth {
            cluster: Cluster {
                id: cluster_id,
                meta: Meta::default(),
                spec,
                status: ClusterStatus {
                    root_ca: RootCa { cert_pem, key_pem },
                    worker_token: format_id(rand::random()),
                    manager_token: format_id(rand::random()),
                    gossip_keys,
                    next_raft_id: FIRST_RAFT_ID + 1,
                    incarnation: rand::random(),
                    feature_level: Release::current().feature_level,
                    ..ClusterStatus::default()
                },
            },
            node: first_node(&node_id, &advertise.to_string(), availability as i32, description.clone()),
        };
        let active = match Active::start(self.clone(), record.clone(), ports, description, Some(birth)).await {
            Ok(active) => active,
            Err(error) => {
                self.roll_back(&record).await;
                return Err(error);
            }
        };
        // A cluster whose making is cut before this is none: the next start removes what is there of it.
        if let Err(error) = self.data().save_membership(&record) {
            active.shutdown().await;
            self.roll_back(&record).await;
            return Err(EngineError::Internal(crate::chain(&error)));
        }
        Ok((active, node_id))
    }

    /// Has a manager register this node, and starts what a member runs. The cluster may not have heard of it when this
    /// returns: see [`Active::wait_until_in`].
    pub(super) async fn enter_cluster(&self, request: JoinRequest) -> Result<Arc<Active>, EngineError> {
        let invalid = |e: address::AddressError| EngineError::Invalid(e.to_string());
        let token = JoinToken::parse(&request.token).map_err(|e| EngineError::Invalid(e.to_string()))?;
        let remote = request
            .remote_addrs
            .first()
            .filter(|addr| !addr.is_empty())
            .ok_or_else(|| EngineError::Invalid("the address of a manager is needed (HOST:2377)".into()))?;
        let remote = with_default_port(remote);
        let host = address::host_addresses();
        let listen = address::listen(&request.listen_addr, &host).map_err(invalid)?;
        let advertise = match address::advertise(&request.advertise_addr, listen, &host) {
            // Of several addresses, the one that reaches the manager.
            Err(address::AddressError::Ambiguous(_)) => address_towards(&remote, listen.port()).await?,
            other => other.map_err(invalid)?,
        };
        let data_path = address::data_path(&request.data_path_addr, advertise, &host).map_err(invalid)?;
        let description = describe(self, &listen.to_string(), &advertise.to_string(), &data_path.to_string());
        let ports = Ports::bind(&listen.to_string())?;

        let root_pem = fetch_root(&remote, &token).await?;
        let own = KeyAndCsr::generate().map_err(|e| EngineError::Internal(crate::chain(&e)))?;
        let asked = pb::JoinRequest {
            secret: token.secret.clone(),
            csr_pem: own.csr_pem,
            description: description.encode_to_vec(),
            availability: request.availability.clone(),
        };
        let reply = register(&root_pem, &remote, asked).await?;
        let mut managers: Vec<ManagerRecord> =
            reply.managers.into_iter().map(|m| ManagerRecord { node_id: m.node_id, addr: m.addr }).collect();
        managers.sort();
        let record = MembershipRecord {
            node_id: reply.node_id,
            cluster_id: reply.cluster_id,
            manager: reply.manager,
            raft_id: 0,
            listen_addr: listen.to_string(),
            advertise_addr: advertise.to_string(),
            data_path_addr: data_path.to_string(),
            data_path_port: reply.data_path_port,
            // Came from a manager that this very root vouches for.
            root_pem: if reply.trust_pem.is_empty() { root_pem } else { reply.trust_pem },
            cert_pem: reply.cert_pem,
            key_pem: own.key_pem,
            gossip_keys: reply.gossip_keys.into_iter().map(|k| GossipKey { id: k.id, bytes: k.key }).collect(),
            managers,
            raft_opened: 0,
        };
        // From here on the cluster knows this node: a join that is cut is finished at the next start, one that fails
        // takes it back.
        let started = match self.data().save_membership(&record) {
            Ok(()) => Active::start(self.clone(), record.clone(), ports, description, None).await,
            Err(error) => Err(EngineError::Internal(crate::chain(&error))),
        };
        if started.is_err() {
            if let Err(error) = renounce(&record).await {
                tracing::warn!(%error, node.id = record.node_id, "the cluster keeps a node that never came");
            }
            self.roll_back(&record).await;
        }
        started
    }

    /// Removes what an init or a join that failed has left on this host. What cannot be removed now is at the next
    /// start; the failure that led here is what the user hears of.
    pub(super) async fn roll_back(&self, record: &MembershipRecord) {
        if let Err(error) = remove_overlay(self, Some(record)).await {
            tracing::warn!(%error, "cleaning up");
        }
        if let Err(error) = self.data().forget_membership() {
            tracing::warn!(error = crate::chain(&error), "cleaning up");
        }
    }
}

/// The node that a new cluster begins with.
fn first_node(id: &NodeId, addr: &str, availability: i32, description: NodeDescription) -> Node {
    Node {
        id: id.clone(),
        spec: NodeSpec { role: NodeRole::Manager as i32, availability, ..NodeSpec::default() },
        status: NodeStatus {
            addr: addr.rsplit_once(':').map(|(ip, _)| ip.to_owned()).unwrap_or_default(),
            ..NodeStatus::default()
        },
        description,
        manager: Some(ManagerStatus { raft_id: FIRST_RAFT_ID, addr: addr.to_owned() }),
        ..Node::default()
    }
}

fn with_default_port(addr: &str) -> String {
    match addr.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => addr.to_owned(),
        _ => format!("{addr}:{}", address::DEFAULT_PORT),
    }
}

/// This host's address on the way to `remote`. Nothing is sent.
pub(super) async fn address_towards(remote: &str, port: u16) -> Result<std::net::SocketAddr, EngineError> {
    let unreachable = |e: std::io::Error| EngineError::Invalid(format!("cannot reach {remote}: {e}"));
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.map_err(unreachable)?;
    socket.connect(remote).await.map_err(unreachable)?;
    let ip = socket.local_addr().map_err(unreachable)?.ip();
    Ok(std::net::SocketAddr::new(ip, port))
}

/// Fetches the root certificate and checks it against the token.
async fn fetch_root(remote: &str, token: &JoinToken) -> Result<String, EngineError> {
    let reply = pb::ca_client::CaClient::new(unverified_channel(remote))
        .get_root(pb::GetRootRequest {})
        .await
        .map_err(|status| refused(remote, &status))?
        .into_inner();
    let der = CertificateDer::from_pem_slice(reply.root_pem.as_bytes())
        .map_err(|_| EngineError::Invalid(format!("{remote} did not answer with a certificate")))?;
    if root_digest(&der) != token.root_digest {
        return Err(EngineError::Invalid(format!(
            "remote CA does not match fingerprint: {remote} belongs to another cluster than the join token, or its \
             root was replaced since the token was printed (\"shoal node token\" prints the new one), or somebody answers \
             in its place"
        )));
    }
    Ok(reply.root_pem)
}

/// Asks to be let in. When the answer is lost the node may be registered: asking again with the same request makes it the
/// same node, so that none is left behind that nobody is.
async fn register(root_pem: &str, remote: &str, request: pb::JoinRequest) -> Result<pb::JoinReply, EngineError> {
    use tonic::Code;
    let mut tries = JOIN_TRIES;
    loop {
        let channel = channel_without_certificate(root_pem, remote);
        match pb::ca_client::CaClient::new(channel).join(request.clone()).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) => {
                tries -= 1;
                let lost = matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled
                );
                if !lost || tries == 0 {
                    return Err(refused(remote, &status));
                }
                tracing::warn!(remote, error = status.message(), "no answer to the request to join; asking again");
                tokio::time::sleep(JOIN_PAUSE).await;
            }
        }
    }
}

fn refused(remote: &str, status: &tonic::Status) -> EngineError {
    let error = crate::rpc::Refused { addr: remote.to_owned(), status: Box::new(status.clone()) };
    match status.code() {
        tonic::Code::PermissionDenied | tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => {
            EngineError::Invalid(status.message().to_owned())
        }
        _ => EngineError::Internal(error.to_string()),
    }
}
