//! Makes the root and signs certificates of nodes.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;

use super::tls::Role;

/// Life of the root; Docker's 20 years.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Certificates begin this much before they are issued, so that clocks may differ.
pub(super) const BACKDATE: Duration = Duration::from_secs(3600);

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request of the node is not a certificate request.
    #[error("the certificate request cannot be read")]
    Request(#[source] rcgen::Error),
    /// The stored root cannot be read.
    #[error("the root certificate or its key cannot be read")]
    Root(#[source] rcgen::Error),
    /// Making or signing failed.
    #[error("signing failed")]
    Sign(#[source] rcgen::Error),
}

/// Makes a new root: certificate and key, PEM.
pub fn new_root() -> Result<(String, String), CaError> {
    let key = KeyPair::generate().map_err(CaError::Sign)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "swarm-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() - BACKDATE;
    params.not_after = OffsetDateTime::now_utc() + ROOT_LIFE;
    let cert = params.self_signed(&key).map_err(CaError::Sign)?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// A node's fresh key and its request for a certificate.
pub struct KeyAndCsr {
    /// PKCS#8 PEM; never leaves the node.
    pub key_pem: String,
    /// PKCS#10 PEM.
    pub csr_pem: String,
}

impl KeyAndCsr {
    /// Makes a key and a request that says nothing but the key: who the node is, the issuer decides.
    pub fn generate() -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(CaError::Sign)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(CaError::Sign)?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem: csr.pem().map_err(CaError::Sign)? })
    }
}

/// Signs with a root.
pub struct Issuer {
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Issuer {
    /// The issuer with this root.
    pub fn new(root_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(key_pem).map_err(CaError::Root)?;
        Ok(Self { issuer: rcgen::Issuer::from_ca_cert_pem(root_pem, key).map_err(CaError::Root)? })
    }

    /// Signs the key in `csr_pem` as the certificate of this node. Nothing else of the request is used.
    pub fn issue(
        &self,
        csr_pem: &str,
        node_id: &str,
        cluster_id: &str,
        role: Role,
        life: Duration,
    ) -> Result<String, CaError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::Request)?;
        // The names that callers ask for: a certain node, or any node of a role.
        let mut params =
            CertificateParams::new(vec![node_id.to_owned(), role.unit().to_owned()]).map_err(CaError::Sign)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, cluster_id);
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.unit());
        params.distinguished_name.push(DnType::CommonName, node_id);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = OffsetDateTime::now_utc() - BACKDATE;
        params.not_after = OffsetDateTime::now_utc() + life;
        let cert = params.signed_by(&request.public_key, &self.issuer).map_err(CaError::Sign)?;
        Ok(cert.pem())
    }
}
