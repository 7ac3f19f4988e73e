//! Whom a node trusts: one root, or two while a new one takes the place of the old; and whether a certificate is of one
//! of them.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as RustlsError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::peer::{Caller, Shown};
use super::tls::{TlsError, credentials};
use super::token::root_digest;
use crate::clock;

/// Certificates in a bundle or a chain; a rotation needs two roots, and a chain one more for each rotation that nodes
/// may have slept through.
const MAX_CERTIFICATES: usize = 16;

/// The certificates in a PEM text, at least one.
pub(super) fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|e| credentials(what)(e.to_string()))?;
    match certs.len() {
        0 => Err(credentials(what)("no certificate is in it".into())),
        1..=MAX_CERTIFICATES => Ok(certs),
        _ => Err(credentials(what)(format!("more than {MAX_CERTIFICATES} certificates are in it"))),
    }
}

/// Digest of the first certificate in a PEM text, as join tokens have it.
pub fn digest_of_root(pem: &str) -> Result<String, TlsError> {
    Ok(root_digest(&certificates(pem, ROOT)?[0]))
}

const ROOT: &str = "the root certificate";

/// The roots that a node trusts.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) store: Arc<RootCertStore>,
    /// Follows chains to any of the roots.
    any: Arc<dyn ClientCertVerifier>,
    /// Digest of each root, and who follows chains to it alone.
    each: Vec<(String, Arc<dyn ClientCertVerifier>)>,
}

impl Trust {
    /// From PEM, one or several certificates.
    pub(super) fn new(pem: &str) -> Result<Self, TlsError> {
        let roots = certificates(pem, ROOT)?;
        let verifier = |roots: &[CertificateDer<'static>]| {
            let mut store = RootCertStore::empty();
            for root in roots {
                store.add(root.clone()).map_err(|e| credentials(ROOT)(e.to_string()))?;
            }
            let store = Arc::new(store);
            let verifier =
                WebPkiClientVerifier::builder(store.clone()).build().map_err(|e| credentials(ROOT)(e.to_string()))?;
            Ok::<_, TlsError>((store, verifier))
        };
        let (store, any) = verifier(&roots)?;
        let each = roots
            .iter()
            .map(|root| Ok((root_digest(root), verifier(std::slice::from_ref(root))?.1)))
            .collect::<Result<_, TlsError>>()?;
        Ok(Self { store, any, each })
    }

    /// Digest of the root that issued this certificate itself, whether or not it holds now.
    pub(super) fn issuer_of(&self, shown: &Shown) -> Option<&str> {
        let at = Duration::from_secs(u64::try_from(shown.validity.not_after.saturating_sub(1)).unwrap_or_default());
        let when = UnixTime::since_unix_epoch(at);
        let issued =
            |(_, root): &&(String, Arc<dyn ClientCertVerifier>)| root.verify_client_cert(&shown.der, &[], when).is_ok();
        self.each.iter().find(issued).map(|(digest, _)| digest.as_str())
    }

    /// What a chain of certificates is worth, whose first one's key was proved.
    pub(super) fn judge(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Caller, String> {
        let Some((leaf, between)) = chain.and_then(<[_]>::split_first) else { return Ok(Caller::Nobody) };
        let shown = Shown::read(leaf)?;
        let when = UnixTime::since_unix_epoch(clock::since_epoch());
        if between.len() > MAX_CERTIFICATES {
            return Err("its chain is too long".into());
        }
        match self.any.verify_client_cert(leaf, between, when) {
            Ok(_) => Ok(Caller::Known(shown)),
            Err(error) => {
                let reason = explain(&error, &shown);
                Ok(Caller::Stale(shown, reason))
            }
        }
    }
}

/// Whether a certificate was issued by this root itself.
pub fn was_issued_by(shown: &Shown, root_pem: &str) -> bool {
    Trust::new(root_pem).is_ok_and(|trust| trust.issuer_of(shown).is_some())
}

/// Why a certificate is worth nothing, so that whoever reads it knows where to look.
fn explain(error: &RustlsError, shown: &Shown) -> String {
    let node = &shown.identity.node_id;
    let now = clock::printed(clock::unix_seconds());
    match error {
        RustlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            let end = clock::printed(shown.validity.not_after);
            format!("the certificate of node {node} ran out at {end}; the clock of who checked it says {now}")
        }
        RustlsError::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => {
            let begin = clock::printed(shown.validity.not_before);
            format!(
                "the certificate of node {node} holds only from {begin} on; the clock of who checked it says {now}, one \
                 of the two clocks is wrong"
            )
        }
        // All roots have the same name: what another one signed looks like a bad signature.
        RustlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!("the certificate of node {node} is of a root that is not trusted (any more)")
        }
        other => format!("the certificate of node {node} is refused: {other}"),
    }
}

/// What TLS says when it refuses the certificate of who answers; `None` if that is not what went wrong.
pub(super) fn explain_refusal(error: &std::io::Error) -> Option<String> {
    let now = clock::printed(clock::unix_seconds());
    match error.get_ref()?.downcast_ref::<RustlsError>()? {
        RustlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some(format!(
                "its certificate has run out, by this host's clock ({now}); one of the two clocks may be ahead or behind"
            ))
        }
        RustlsError::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Some(format!(
            "its certificate does not hold yet, by this host's clock ({now}): one of the two clocks is wrong"
        )),
        // All roots have the same name: what another one signed looks like a bad signature.
        RustlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Some("its certificate is of a root that this node does not trust".to_owned())
        }
        _ => None,
    }
}

/// Lets every certificate through the handshake whose key is proved: what it is worth is judged behind it, call by
/// call, because a node whose certificate ran out must be able to ask for another one.
#[derive(Debug)]
pub(super) struct AnyClient(pub(super) Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, RustlsError> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
