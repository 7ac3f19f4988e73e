//! Whose certificate is believed.

use std::sync::Arc;

use runtime::image::Limits;
use runtime::image::registry::{RegistryError, RegistrySettings};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::archives::{Pack, TestImage};
use crate::pulling::layer;
use crate::server::{Server, TestHost, impatient, settings};

/// A server with a certificate of its own making for 127.0.0.1, and that certificate as PEM.
fn server(client: Option<CertificateDer<'static>>) -> (Server, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client {
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let server = Server::with_tls(Some(Arc::new(config)));
    server.serve_image("web", "1", &TestImage::new("x", vec![layer("a")]), Pack::Gzip);
    (server, made.cert.pem())
}

#[test]
fn an_unknown_authority_is_not_believed() {
    let (server, _) = server(None);
    let none = RegistrySettings { timeouts: impatient(), ..RegistrySettings::default() };
    let Some(host) = TestHost::with(none, Limits::default()) else { return };
    let error = host.pull(&server.reference("web:1")).unwrap_err();
    assert!(matches!(error, RegistryError::Connect { .. }), "{error:?}");
    assert!(server.requests().is_empty());
}

#[test]
fn an_authority_of_certs_d_is_believed_for_its_registry() {
    let (mine, pem) = server(None);
    let (other, _) = server(None);
    let certs = tempfile::tempdir().unwrap();
    let dir = certs.path().join(mine.host());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ca.crt"), &pem).unwrap();
    let settings = RegistrySettings {
        certs_dirs: vec![certs.path().to_owned()],
        timeouts: impatient(),
        ..RegistrySettings::default()
    };
    let Some(host) = TestHost::with(settings.clone(), Limits::default()) else { return };
    host.pull(&mine.reference("web:1")).unwrap();
    assert!(host.pull(&other.reference("web:1")).is_err());

    // A file that cannot be read is said so, and not passed over.
    let dir = certs.path().join(other.host());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ca.crt"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let error = host.pull(&other.reference("web:1")).unwrap_err();
    let RegistryError::Connect { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("ca.crt"), "{source}");
}

#[test]
fn a_client_shows_its_own_certificate() {
    let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let (server, pem) = server(Some(made.cert.der().clone()));
    let certs = tempfile::tempdir().unwrap();
    let dir = certs.path().join(server.host());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ca.crt"), &pem).unwrap();
    let settings = RegistrySettings {
        certs_dirs: vec![certs.path().to_owned()],
        timeouts: impatient(),
        ..RegistrySettings::default()
    };
    let Some(host) = TestHost::with(settings, Limits::default()) else { return };
    assert!(host.pull(&server.reference("web:1")).is_err());
    std::fs::write(dir.join("client.cert"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("client.key"), made.signing_key.serialize_pem()).unwrap();
    host.pull(&server.reference("web:1")).unwrap();
}

#[test]
fn a_registry_that_is_named_as_insecure_may_show_anything() {
    let (server, _) = server(None);
    let Some(host) = TestHost::with(settings(&[&server]), Limits::default()) else { return };
    host.pull(&server.reference("web:1")).unwrap();
}

/// Loopback is no exception: plain HTTP must be asked for.
#[test]
fn plain_http_is_for_registries_that_are_named() {
    let server = Server::start();
    server.serve_image("web", "1", &TestImage::new("x", vec![layer("a")]), Pack::Gzip);
    let none = RegistrySettings { timeouts: impatient(), ..RegistrySettings::default() };
    let Some(host) = TestHost::with(none, Limits::default()) else { return };
    let error = host.pull(&server.reference("web:1")).unwrap_err();
    assert!(matches!(error, RegistryError::Connect { .. }), "{error:?}");
    assert!(server.requests().is_empty());
}
