//! TLS between nodes: the credentials of this node (swapped whole when they are renewed), the server's and the
//! client's side made of them, and who is at the other end.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::peer::{Caller, PeerIdentity, Role, Shown};
use super::trust::{AnyClient, Trust, certificates, explain_refusal};
use super::validity::Validity;
use crate::clock::TlsClock;

/// A TCP connection and a handshake together may take this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// For messages.
const OWN: &str = "the node's certificate";

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

pub(super) fn credentials(what: &'static str) -> impl Fn(String) -> TlsError {
    move |reason| TlsError::Credentials { what, reason }
}

struct Configs {
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    trust: Trust,
    own: Shown,
}

/// This node's credentials, and whom it does not talk to. A clone is the same credentials; replacing them reaches every
/// later handshake.
#[derive(Clone)]
pub struct TlsContext {
    configs: Arc<ArcSwap<Configs>>,
    /// Nodes that were removed from the cluster and whose certificates have not run out.
    revoked: Arc<ArcSwap<BTreeSet<String>>>,
}

impl TlsContext {
    /// Credentials from PEM: the trusted roots (one or more), own certificate (with what leads from it to an older root
    /// behind it), own key.
    pub fn new(roots_pem: &str, chain_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let configs = Configs::new(roots_pem, chain_pem, key_pem)?;
        Ok(Self { configs: Arc::new(ArcSwap::from_pointee(configs)), revoked: Arc::default() })
    }

    /// Uses these from the next handshake on.
    pub fn replace(&self, roots_pem: &str, chain_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        self.configs.store(Arc::new(Configs::new(roots_pem, chain_pem, key_pem)?));
        Ok(())
    }

    /// From here on the certificates of these nodes open nothing, and of no others.
    pub fn revoke(&self, nodes: BTreeSet<String>) {
        self.revoked.store(Arc::new(nodes));
    }

    /// Whether the certificate of this node opens nothing.
    pub fn is_revoked(&self, node_id: &str) -> bool {
        self.revoked.load().contains(node_id)
    }

    /// Who this node is.
    pub fn identity(&self) -> PeerIdentity {
        self.configs.load().own.identity.clone()
    }

    /// This node's certificate.
    pub fn own(&self) -> Shown {
        self.configs.load().own.clone()
    }

    /// For how long this node's certificate holds.
    pub fn validity(&self) -> Validity {
        self.configs.load().own.validity
    }

    /// Digest of the trusted root that issued this node's certificate; `None` if none of them did.
    pub fn issuer(&self) -> Option<String> {
        let configs = self.configs.load();
        configs.trust.issuer_of(&configs.own).map(str::to_owned)
    }

    /// Does the server's side of a handshake. Who is there is judged by the certificate alone.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(server::TlsStream<TcpStream>, Caller)> {
        let configs = self.configs.load_full();
        let acceptor = TlsAcceptor::from(configs.server.clone());
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
        let caller = configs.trust.judge(stream.get_ref().1.peer_certificates()).map_err(io::Error::other)?;
        Ok((stream, caller))
    }

    /// Connects to `addr` (`host:port`), where a node whose certificate carries `name` must answer: a node id, or a
    /// role's `OU`. One that was removed from the cluster is not talked to.
    pub async fn connect(&self, addr: &str, name: &str) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let stream = connect(self.configs.load().client.clone(), addr, name).await?;
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let refused = |reason: String| TlsError::Connect { addr: addr.to_owned(), source: io::Error::other(reason) };
        let peer = peer.ok_or_else(|| "it showed no certificate".to_owned()).and_then(Shown::read).map_err(refused)?;
        if self.is_revoked(&peer.identity.node_id) {
            return Err(refused("the node that answers there was removed from the cluster".to_owned()));
        }
        Ok(stream)
    }

    /// A context of one who has no certificate yet: it verifies servers against these roots and shows nothing.
    pub async fn connect_without_certificate(
        roots_pem: &str,
        addr: &str,
        name: &str,
    ) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let config = client_config()?.with_root_certificates(Trust::new(roots_pem)?.store).with_no_client_auth();
        connect(with_h2(config), addr, name).await
    }
}

/// Connects without verifying who answers. Only to fetch the root certificate, which is then compared with a digest
/// that came another way.
pub async fn fetch_identity(addr: &str) -> Result<client::TlsStream<TcpStream>, TlsError> {
    let config =
        client_config()?.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer)).with_no_client_auth();
    connect(with_h2(config), addr, Role::Manager.unit()).await
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_config() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, TlsError> {
    rustls::ClientConfig::builder_with_details(provider(), Arc::new(TlsClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| credentials("TLS 1.3")(e.to_string()))
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
        crate::rpc::tune(&stream);
        TlsConnector::from(config).connect(server_name, stream).await
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Err(error)) => Err(failed(explain_refusal(&error).map_or(error, io::Error::other))),
        Ok(Ok(stream)) => Ok(stream),
        Err(_) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))),
    }
}

impl Configs {
    fn new(roots_pem: &str, chain_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let trust = Trust::new(roots_pem)?;
        let chain = certificates(chain_pem, OWN)?;
        let own = Shown::read(&chain[0]).map_err(credentials(OWN))?;
        let key = || {
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| credentials("the node's key")(e.to_string()))
        };
        let unusable = |e: rustls::Error| credentials(OWN)(e.to_string());
        let provider = provider();
        // Not required: a node that joins has none. What it may call without one is decided call by call.
        let mut server = rustls::ServerConfig::builder_with_details(provider.clone(), Arc::new(TlsClock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(AnyClient(provider)))
            .with_single_cert(chain.clone(), key()?)
            .map_err(unusable)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let client = client_config()?
            .with_root_certificates(trust.store.clone())
            .with_client_auth_cert(chain, key()?)
            .map_err(unusable)?;
        Ok(Self { server: Arc::new(server), client: with_h2(client), trust, own })
    }
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
