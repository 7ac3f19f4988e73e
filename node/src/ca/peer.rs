//! What a certificate says of who is at the other end of a connection, and what it is worth.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::validity::Validity;

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

/// What the subject of a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// `CN`.
    pub node_id: String,
    /// `OU`.
    pub role: Role,
    /// `O`.
    pub cluster_id: String,
}

/// A node's certificate whose key the other end of a connection has proved to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What the certificate says; whether that is true depends on where this stands in [`Caller`].
    pub identity: PeerIdentity,
    /// When it holds.
    pub validity: Validity,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
    /// The certificate.
    pub der: CertificateDer<'static>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// No certificate was shown.
    Nobody,
    /// The certificate is of a root that is trusted, and of now.
    Known(Shown),
    /// The certificate is not, or no longer, good for anything but to ask for a new one; the reason is for people. Its
    /// key was proved, its text is a claim.
    Stale(Shown, String),
}

/// Reads the first certificate of a PEM text. Whose it is and what it is worth is not looked at.
pub fn read_certificate(pem: &str) -> Result<Shown, String> {
    Shown::read(&CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())?)
}

impl Shown {
    /// The certificate as PEM.
    pub fn pem(&self) -> String {
        let body = STANDARD.encode(&self.der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// Reads a certificate.
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|e| format!("not a certificate: {e}"))?;
        let validity = cert.validity();
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, cert.public_key().raw).as_ref());
        Ok(Self {
            identity: parse_identity(&cert)?,
            validity: Validity {
                not_before: validity.not_before.timestamp(),
                not_after: validity.not_after.timestamp(),
            },
            key,
            der: der.clone().into_owned(),
        })
    }
}

fn parse_identity(cert: &x509_parser::certificate::X509Certificate<'_>) -> Result<PeerIdentity, String> {
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
