//! TLS between nodes: the credentials of this node (swapped whole when they are renewed), the server's and the
//! client's side made of them, and who is at the other end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::validity::Validity;

/// A TCP connection and a handshake together may take this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a certificate says that a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs tasks.
    Worker,
    /// Runs tasks and takes part in Raft.
    Manager,
}

impl Role {
    /// The role's `OU`, as Docker writes it.
    pub fn unit(self) -> &'static str {
        match self {
            Role::Worker => "swarm-worker",
            Role::Manager => "swarm-manager",
        }
    }
}

/// Who is at the other end of a connection, as its certificate says. The certificate was verified against the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// `CN`.
    pub node_id: String,
    /// `OU`.
    pub role: Role,
    /// `O`.
    pub cluster_id: String,
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or a key is not what it should be.
    #[error("{what} cannot be used: {reason}")]
    Credentials {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// No connection, or the handshake failed.
    #[error("cannot reach {addr}: {source}")]
    Connect {
        /// The address.
        addr: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn credentials(what: &'static str) -> impl Fn(String) -> TlsError {
    move |reason| TlsError::Credentials { what, reason }
}

struct Configs {
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    identity: PeerIdentity,
    validity: Validity,
}

/// This node's credentials. A clone is the same credentials; replacing them reaches every later handshake.
#[derive(Clone)]
pub struct TlsContext {
    configs: Arc<ArcSwap<Configs>>,
}

impl TlsContext {
    /// Credentials from PEM: root, own certificate, own key.
    pub fn new(root_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        Ok(Self { configs: Arc::new(ArcSwap::from_pointee(Configs::new(root_pem, cert_pem, key_pem)?)) })
    }

    /// Uses these from the next handshake on.
    pub fn replace(&self, root_pem: &str, cert_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        self.configs.store(Arc::new(Configs::new(root_pem, cert_pem, key_pem)?));
        Ok(())
    }

    /// Who this node is.
    pub fn identity(&self) -> PeerIdentity {
        self.configs.load().identity.clone()
    }

    /// For how long this node's certificate holds.
    pub fn validity(&self) -> Validity {
        self.configs.load().validity
    }

    /// Does the server's side of a handshake. The peer is `None` when it showed no certificate.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(server::TlsStream<TcpStream>, Option<PeerIdentity>)> {
        let acceptor = TlsAcceptor::from(self.configs.load().server.clone());
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
        let peer = match stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()) {
            Some(cert) => Some(parse_identity(cert).map_err(io::Error::other)?),
            None => None,
        };
        Ok((stream, peer))
    }

    /// Connects to `addr` (`host:port`), where a node whose certificate carries `name` must answer: a node id, or a
    /// role's `OU`.
    pub async fn connect(&self, addr: &str, name: &str) -> Result<client::TlsStream<TcpStream>, TlsError> {
        connect(self.configs.load().client.clone(), addr, name).await
    }

    /// A context of one who has no certificate yet: it verifies servers against this root and shows nothing.
    pub async fn connect_without_certificate(
        root_pem: &str,
        addr: &str,
        name: &str,
    ) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let config = rustls::ClientConfig::builder().with_root_certificates(roots(root_pem)?).with_no_client_auth();
        connect(with_h2(config), addr, name).await
    }
}

/// Connects without verifying who answers. Only to fetch the root certificate, which is then compared with a digest
/// that came another way.
pub async fn fetch_identity(addr: &str) -> Result<client::TlsStream<TcpStream>, TlsError> {
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    connect(with_h2(config), addr, Role::Manager.unit()).await
}

fn with_h2(mut config: rustls::ClientConfig) -> Arc<rustls::ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn connect(
    config: Arc<rustls::ClientConfig>,
    addr: &str,
    name: &str,
) -> Result<client::TlsStream<TcpStream>, TlsError> {
    let failed = |source| TlsError::Connect { addr: addr.to_owned(), source };
    let server_name = ServerName::try_from(name.to_owned()).map_err(|e| failed(io::Error::other(e)))?;
    let handshake = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(server_name, stream).await
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))),
    }
}

impl Configs {
    fn new(root_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let roots = Arc::new(roots(root_pem)?);
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| credentials("the node's certificate")(e.to_string()))?;
        let identity = parse_identity(&cert).map_err(credentials("the node's certificate"))?;
        let validity = parse_validity(&cert).map_err(credentials("the node's certificate"))?;
        let key = || {
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| credentials("the node's key")(e.to_string()))
        };
        // Not required: a node that joins has none. What it may call without one is decided call by call.
        let verifier = WebPkiClientVerifier::builder(roots.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| credentials("the root certificate")(e.to_string()))?;
        let mut server = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![cert.clone()], key()?)
            .map_err(|e| credentials("the node's certificate")(e.to_string()))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let client = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![cert], key()?)
            .map_err(|e| credentials("the node's certificate")(e.to_string()))?;
        Ok(Self { server: Arc::new(server), client: with_h2(client), identity, validity })
    }
}

fn roots(root_pem: &str) -> Result<RootCertStore, TlsError> {
    let root = CertificateDer::from_pem_slice(root_pem.as_bytes())
        .map_err(|e| credentials("the root certificate")(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add(root).map_err(|e| credentials("the root certificate")(e.to_string()))?;
    Ok(roots)
}

fn parse_validity(cert: &CertificateDer<'_>) -> Result<Validity, String> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).map_err(|e| format!("not a certificate: {e}"))?;
    let validity = cert.validity();
    Ok(Validity { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
}

fn parse_identity(cert: &CertificateDer<'_>) -> Result<PeerIdentity, String> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).map_err(|e| format!("not a certificate: {e}"))?;
    let subject = cert.subject();
    let one = |mut values: Box<dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>> + '_>, what: &str| {
        values.next().and_then(|v| v.as_str().ok()).map(str::to_owned).ok_or(format!("its subject has no {what}"))
    };
    let unit = one(Box::new(subject.iter_organizational_unit()), "OU")?;
    let role = match unit.as_str() {
        "swarm-manager" => Role::Manager,
        "swarm-worker" => Role::Worker,
        other => return Err(format!("its OU is {other:?}, which is no role")),
    };
    Ok(PeerIdentity {
        node_id: one(Box::new(subject.iter_common_name()), "CN")?,
        role,
        cluster_id: one(Box::new(subject.iter_organization()), "O")?,
    })
}

/// Accepts any server; see [`fetch_identity`].
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Issuer, KeyAndCsr, new_root};
    use tokio::net::TcpListener;

    fn context(root: &(String, String), node: &str, role: Role) -> TlsContext {
        let own = KeyAndCsr::generate().unwrap();
        let issuer = Issuer::new(&root.0, &root.1).unwrap();
        let cert = issuer.issue(&own.csr_pem, node, "cluster1", role, Duration::from_secs(3600)).unwrap();
        TlsContext::new(&root.0, &cert, &own.key_pem).unwrap()
    }

    #[test]
    fn a_certificate_says_how_long_it_holds() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let validity = context(&new_root().unwrap(), "worker1", Role::Worker).validity();
        assert!((now - 10..=now + 10).contains(&(validity.not_before + 3600)), "{validity:?} at {now}");
        assert!((now - 10..=now + 10).contains(&(validity.not_after - 3600)), "{validity:?} at {now}");
    }

    #[tokio::test]
    async fn both_ends_learn_who_the_other_is_and_a_foreign_root_is_refused() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = new_root().unwrap();
        let manager = context(&root, "manager1", Role::Manager);
        let worker = context(&root, "worker1", Role::Worker);
        let stranger = context(&new_root().unwrap(), "worker1", Role::Worker);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..5 {
                let (stream, _) = listener.accept().await.unwrap();
                seen.push(manager.accept(stream).await.map(|(_, peer)| peer).ok());
            }
            seen
        });
        worker.connect(&addr, "swarm-manager").await.unwrap();
        TlsContext::connect_without_certificate(&root.0, &addr, "manager1").await.unwrap();
        fetch_identity(&addr).await.unwrap();
        assert!(worker.connect(&addr, "manager2").await.is_err(), "another node's name was accepted");
        assert!(stranger.connect(&addr, "manager1").await.is_err(), "a server of another root was accepted");
        let seen = server.await.unwrap();
        assert_eq!(seen[0].as_ref().unwrap().as_ref().unwrap().node_id, "worker1");
        assert_eq!(seen[1], Some(None));
        assert_eq!(seen[2], Some(None));
        assert_eq!(seen[3..], [None, None]);
    }
}
