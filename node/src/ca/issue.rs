//! Makes the root and signs certificates of nodes.

use std::time::{Duration, SystemTime};

use rcgen::string::{Ia5String, PrintableString};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;

use super::peer::{Role, Shown};
use super::trust::was_issued_by;
use crate::clock;

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
    /// A root that a user gave is none.
    #[error("this cannot be the root of a cluster: {0}")]
    Unusable(String),
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from(clock::now())
}

/// Makes a new root: certificate and key, PEM.
pub fn new_root() -> Result<(String, String), CaError> {
    let key = KeyPair::generate().map_err(CaError::Sign)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "swarm-ca");
    // No bound on the length of chains: a later root is signed by this one for those who know only this one.
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now() - BACKDATE;
    params.not_after = now() + ROOT_LIFE;
    let cert = params.self_signed(&key).map_err(CaError::Sign)?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// Checks a root that a user gave, by issuing a certificate with it and following that back.
pub fn check_root(cert_pem: &str, key_pem: &str) -> Result<(), CaError> {
    let unusable = |reason: &str| CaError::Unusable(reason.to_owned());
    if CertificateDer::pem_slice_iter(cert_pem.as_bytes()).count() != 1 {
        return Err(unusable("exactly one certificate is needed"));
    }
    let (_, block) =
        x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(|_| unusable("the certificate is not PEM"))?;
    let root = block.parse_x509().map_err(|_| unusable("the certificate cannot be read"))?;
    if !root.is_ca() {
        return Err(unusable("its certificate is not one of a certificate authority"));
    }
    let (now, validity) = (clock::unix_seconds(), root.validity());
    if !(validity.not_before.timestamp()..validity.not_after.timestamp()).contains(&now) {
        return Err(unusable("its certificate does not hold now"));
    }
    let trial = KeyAndCsr::generate()?;
    let issued = Issuer::new(cert_pem, key_pem)?.issue(
        &trial.csr_pem,
        "trial",
        "trial",
        Role::Worker,
        clock::now(),
        BACKDATE,
    )?;
    let issued = CertificateDer::from_pem_slice(issued.as_bytes()).map_err(|e| CaError::Unusable(e.to_string()))?;
    let issued = Shown::read(&issued).map_err(CaError::Unusable)?;
    match was_issued_by(&issued, cert_pem) {
        true => Ok(()),
        false => Err(unusable("the key is not that of the certificate")),
    }
}

/// The name and key of the root `new`, signed by the root `old`: whoever trusts only `old` can follow it to `new`.
pub fn cross_sign(old_pem: &str, old_key_pem: &str, new_pem: &str, new_key_pem: &str) -> Result<String, CaError> {
    let old = Issuer::new(old_pem, old_key_pem)?;
    let new_key = KeyPair::from_pem(new_key_pem).map_err(CaError::Root)?;
    let unusable = |reason: &str| CaError::Unusable(reason.to_owned());
    let (_, block) = x509_parser::pem::parse_x509_pem(new_pem.as_bytes()).map_err(|_| unusable("it is not PEM"))?;
    let new = block.parse_x509().map_err(|_| unusable("its certificate cannot be read"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = copied(new.subject());
    params.not_after = new.validity().not_after.to_datetime();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now() - BACKDATE;
    let cert = params.signed_by(&new_key, &old.issuer).map_err(CaError::Sign)?;
    let crossed = x509_parser::parse_x509_certificate(cert.der()).map_err(|_| unusable("it cannot be signed"))?.1;
    // Chains are followed by the bytes of names.
    if crossed.subject().as_raw() != new.subject().as_raw() {
        return Err(unusable("its subject has parts or an encoding that cannot be signed"));
    }
    Ok(cert.pem())
}

/// A name, part by part; what has no equal in the other form is left out, and whoever needs all of it compares.
fn copied(name: &x509_parser::x509::X509Name<'_>) -> DistinguishedName {
    let mut copy = DistinguishedName::new();
    for part in name.iter_attributes() {
        let (Some(oid), Ok(text)) = (part.attr_type().iter(), part.as_str()) else { continue };
        let value = match part.attr_value().tag() {
            x509_parser::der_parser::asn1_rs::Tag::PrintableString => match PrintableString::try_from(text) {
                Ok(text) => DnValue::PrintableString(text),
                Err(_) => continue,
            },
            x509_parser::der_parser::asn1_rs::Tag::Ia5String => match Ia5String::try_from(text) {
                Ok(text) => DnValue::Ia5String(text),
                Err(_) => continue,
            },
            _ => DnValue::Utf8String(text.to_owned()),
        };
        copy.push(DnType::from_oid(&oid.collect::<Vec<u64>>()), value);
    }
    copy
}

/// A node's key and its request for a certificate.
pub struct KeyAndCsr {
    /// PKCS#8 PEM; never leaves the node.
    pub key_pem: String,
    /// PKCS#10 PEM.
    pub csr_pem: String,
}

impl KeyAndCsr {
    /// Makes a key and a request that says nothing but the key: who the node is, the issuer decides.
    pub fn generate() -> Result<Self, CaError> {
        Self::of(&KeyPair::generate().map_err(CaError::Sign)?)
    }

    /// The same for a key that the node has, PKCS#8 PEM.
    pub fn again(key_pem: &str) -> Result<Self, CaError> {
        Self::of(&KeyPair::from_pem(key_pem).map_err(CaError::Sign)?)
    }

    fn of(key: &KeyPair) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key).map_err(CaError::Sign)?;
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

    /// Signs the key in `csr_pem` as the certificate of this node, for so long from `now` on. Nothing else of the
    /// request is used.
    pub fn issue(
        &self,
        csr_pem: &str,
        node_id: &str,
        cluster_id: &str,
        role: Role,
        now: SystemTime,
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
        let now = OffsetDateTime::from(now);
        params.not_before = now - BACKDATE;
        params.not_after = now + life;
        let cert = params.signed_by(&request.public_key, &self.issuer).map_err(CaError::Sign)?;
        Ok(cert.pem())
    }
}
