//! The cluster's own certificate authority: root of trust, join tokens, certificates of nodes, TLS on both sides.
//!
//! Any manager may issue, because the root's key is part of the replicated store. A certificate says who a node is
//! (`CN` node id, `OU` role, `O` cluster id); what it may do is read from the store at each call.

mod issue;
mod late;
mod peer;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod trust;
mod validity;

pub use issue::{CaError, Issuer, KeyAndCsr, check_root, cross_sign, new_root};
pub use late::{LateError, may_renew_late};
pub use peer::{Caller, PeerIdentity, Role, Shown, read_certificate};
pub use tls::{TlsContext, TlsError, fetch_identity};
pub use token::{JoinToken, TokenError, root_digest};
pub use trust::{digest_of_root, was_issued_by};
pub use validity::Validity;
