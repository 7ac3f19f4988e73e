//! Certificates as a manager issues them, and what the store keeps of them.

use deploy::model::{Cluster, NodeCertificate, NodeId, RootCa, RootRotation, Timestamp};

use crate::ca::{self, CaError, Issuer, Role, Shown};
use crate::clock;

/// A certificate that was issued.
pub(crate) struct Issued {
    /// The certificate; behind it, what leads from it to the roots that only nodes that were away still trust. PEM.
    pub(crate) chain_pem: String,
    /// What the store keeps of it.
    pub(crate) record: NodeCertificate,
}

/// The root that certificates are issued by now, and its digest.
pub(crate) fn issuing_root(cluster: &Cluster) -> (&RootCa, String) {
    match &cluster.status.root_rotation {
        Some(rotation) => (&rotation.next, rotation.next_digest.clone()),
        None => (&cluster.status.root_ca, root_digest(cluster)),
    }
}

/// Digest of the root that join tokens are of.
pub(crate) fn root_digest(cluster: &Cluster) -> String {
    match cluster.status.root_digest.as_str() {
        // Nobody has written it down before the first rotation.
        "" => ca::digest_of_root(&cluster.status.root_ca.cert_pem).unwrap_or_default(),
        known => known.to_owned(),
    }
}

/// Digest of the root that every node's certificate should be of; empty while there has been only one.
pub(crate) fn wanted_root(cluster: &Cluster) -> &str {
    let next = cluster.status.root_rotation.as_ref().map(|rotation| &rotation.next_digest);
    next.unwrap_or(&cluster.status.root_digest)
}

/// The roots that nodes trust now, PEM.
pub(crate) fn trust(cluster: &Cluster) -> String {
    let next = cluster.status.root_rotation.as_ref().map(|rotation| rotation.next.cert_pem.as_str());
    joined(std::iter::once(cluster.status.root_ca.cert_pem.as_str()).chain(next))
}

/// What a rotation to the given root, or to a fresh one, begins with.
pub(crate) fn rotation(cluster: &Cluster, given: Option<RootCa>) -> Result<RootRotation, CaError> {
    let next = match given {
        Some(root) => {
            ca::check_root(&root.cert_pem, &root.key_pem)?;
            root
        }
        None => {
            let (cert_pem, key_pem) = ca::new_root()?;
            RootCa { cert_pem, key_pem }
        }
    };
    let old = &cluster.status.root_ca;
    let digest = ca::digest_of_root(&next.cert_pem).map_err(|e| CaError::Unusable(e.to_string()))?;
    Ok(RootRotation {
        cross_signed_pem: ca::cross_sign(&old.cert_pem, &old.key_pem, &next.cert_pem, &next.key_pem)?,
        next,
        next_digest: digest,
        digest: root_digest(cluster),
        ..RootRotation::default()
    })
}

/// Signs the key in `csr_pem` for a node.
pub(crate) fn issue(cluster: &Cluster, csr_pem: &str, node: &NodeId, role: Role) -> Result<Issued, CaError> {
    let (root, digest) = issuing_root(cluster);
    let issuer = Issuer::new(&root.cert_pem, &root.key_pem)?;
    let life = cluster.spec.node_cert_life();
    let leaf = issuer.issue(csr_pem, node.as_str(), cluster.id.as_str(), role, clock::now(), life)?;
    let shown = ca::read_certificate(&leaf).map_err(CaError::Unusable)?;
    let under_way = cluster.status.root_rotation.iter().map(|rotation| rotation.cross_signed_pem.as_str());
    let earlier = cluster.status.retired_roots.iter().map(|retired| retired.successor_pem.as_str());
    let chain_pem = joined(std::iter::once(leaf.as_str()).chain(under_way).chain(earlier));
    Ok(Issued { chain_pem, record: record(&shown, digest) })
}

/// What the store keeps of a certificate that a node showed; the root stays empty if it is none that is trusted now.
pub(crate) fn record_of(cluster: &Cluster, shown: &Shown) -> NodeCertificate {
    let status = &cluster.status;
    let next = status.root_rotation.as_ref().filter(|next| ca::was_issued_by(shown, &next.next.cert_pem));
    let root = match next {
        Some(rotation) => rotation.next_digest.clone(),
        None if ca::was_issued_by(shown, &status.root_ca.cert_pem) => root_digest(cluster),
        None => String::new(),
    };
    record(shown, root)
}

fn record(shown: &Shown, root: String) -> NodeCertificate {
    let expires = u64::try_from(shown.validity.not_after).unwrap_or_default();
    NodeCertificate {
        key: shown.key.to_vec(),
        root,
        expires: Timestamp::from_nanos(expires.saturating_mul(1_000_000_000)),
    }
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for part in parts {
        text.push_str(part);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}
