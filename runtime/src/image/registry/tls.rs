//! Whom this host believes: the system's authorities, and those of `certs.d` for their registries.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Where distributions keep the authorities that they trust; the first that exists is read.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Bytes of a file with certificates that are read.
const MAX_PEM_BYTES: u64 = 16 << 20;

/// Makes the TLS settings for each registry.
#[derive(Debug)]
pub(super) struct Trust {
    certs_dirs: Vec<PathBuf>,
    system: OnceLock<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    pub(super) fn new(certs_dirs: Vec<PathBuf>) -> Trust {
        Trust { certs_dirs, system: OnceLock::new(), provider: Arc::new(ring::default_provider()) }
    }

    /// The settings for one registry, `host[:port]`. Its files are read anew each time, so that a
    /// renewed certificate needs no restart.
    pub(super) fn config(&self, authority: &str, verify: bool) -> io::Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let builder = if verify {
            let mut roots = self.system.get_or_init(system_roots).clone();
            let mut own = 0;
            for dir in self.dirs(authority) {
                own += add_authorities(&mut roots, &dir)?;
            }
            tracing::debug!(registry = authority, own, all = roots.len(), "certificate authorities");
            builder.with_root_certificates(roots)
        } else {
            let verifier = Unverified { provider: Arc::clone(&self.provider) };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        };
        let mut identity = None;
        for dir in self.dirs(authority) {
            identity = identity.or(client_identity(&dir)?);
        }
        let mut config = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn dirs(&self, authority: &str) -> impl Iterator<Item = PathBuf> {
        // An authority has no slash and is not `..`: it is a host name with an optional port.
        self.certs_dirs.iter().map(move |dir| dir.join(authority)).filter(|dir| dir.is_dir())
    }
}

/// The system's authorities; none where it has no file of them.
fn system_roots() -> RootCertStore {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundles = BUNDLES.iter().map(PathBuf::from);
    let mut roots = RootCertStore::empty();
    let Some(bundle) = named.into_iter().chain(bundles).find(|path| path.is_file()) else {
        tracing::warn!("this system has no file of certificate authorities: no registry will be trusted");
        return roots;
    };
    match certificates(&bundle) {
        // An authority that cannot be read is one less, as with every other program.
        Ok(certificates) => {
            roots.add_parsable_certificates(certificates);
        }
        Err(error) => tracing::warn!(path = %bundle.display(), %error, "certificate authorities cannot be read"),
    }
    roots
}

fn add_authorities(roots: &mut RootCertStore, dir: &Path) -> io::Result<usize> {
    let mut added = 0;
    for path in files(dir, "crt")? {
        for certificate in certificates(&path)? {
            roots.add(certificate).map_err(|error| named(&path, io::Error::other(error)))?;
            added += 1;
        }
    }
    Ok(added)
}

/// The first `<name>.cert` with its `<name>.key`.
fn client_identity(dir: &Path) -> io::Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>> {
    let Some(path) = files(dir, "cert")?.into_iter().next() else { return Ok(None) };
    let key_path = path.with_extension("key");
    let key =
        PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|error| named(&key_path, io::Error::other(error)))?;
    Ok(Some((certificates(&path)?, key)))
}

fn files(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| named(dir, error))? {
        let path = entry.map_err(|error| named(dir, error))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| named(path, io::Error::other(error)))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(|error| named(path, error))?.len();
    if length > MAX_PEM_BYTES {
        return Err(named(path, io::Error::other("the file is too large to hold certificates")));
    }
    fs::read(path).map_err(|error| named(path, error))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Takes any certificate: for registries that the operator named as insecure.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
