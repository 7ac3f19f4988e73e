//! The cluster's own certificate authority: root of trust, join tokens, certificates of nodes, TLS on both sides.
//!
//! Any manager may issue, because the root's key is part of the replicated store. A certificate says who a node is
//! (`CN` node id, `OU` role, `O` cluster id); what it may do is read from the store at each call.

mod issue;
mod tls;
mod token;
mod validity;

pub use issue::{CaError, Issuer, KeyAndCsr, new_root};
pub use tls::{PeerIdentity, Role, TlsContext, TlsError, fetch_identity};
pub use token::{JoinToken, TokenError, root_digest};
pub use validity::Validity;
