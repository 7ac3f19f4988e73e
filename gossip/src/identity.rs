//! Who a member is: the public [`Identity`], and the form of it that travels on the wire.

use std::net::SocketAddr;
use std::sync::Arc;

/// The longest node id that is accepted, in bytes.
pub const MAX_NODE_ID_LEN: usize = 64;

/// A member of the cluster, in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The node's id: 1 to 64 visible ASCII characters, unique in the cluster.
    pub node_id: String,
    /// Where other members send this one's packets: a unicast address, the port not 0.
    pub addr: SocketAddr,
    /// Boot generation, one higher at each start of the node. For one `node_id` the highest wins, whatever the
    /// cluster thought of the lower ones.
    pub generation: u64,
}

/// Why an identity cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The node id is empty, too long, or has other bytes than visible ASCII.
    #[error("node id {0:?} is not 1 to {MAX_NODE_ID_LEN} visible ASCII characters")]
    NodeId(String),
    /// Nobody could send a packet to this address.
    #[error("{0} is not an address that packets can be sent to")]
    Address(SocketAddr),
}

impl Identity {
    /// Checks the bounds that the wire format and the other members rely on.
    pub fn validate(&self) -> Result<(), IdentityError> {
        let len = self.node_id.len();
        if len == 0 || len > MAX_NODE_ID_LEN || !self.node_id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(IdentityError::NodeId(self.node_id.clone()));
        }
        let ip = self.addr.ip();
        if self.addr.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return Err(IdentityError::Address(self.addr));
        }
        Ok(())
    }
}

/// An [`Identity`] with what SWIM needs beneath its generation. Cheap to clone: foca does so for every packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerId {
    pub(crate) identity: Arc<Identity>,
    /// Raised when the cluster declared a living node dead, so that it is back at once.
    pub(crate) bump: u32,
    /// The last form of a node that goes by its own will: it tells "left" from "declared dead".
    pub(crate) left: bool,
}

impl PeerId {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity: Arc::new(identity), bump: 0, left: false }
    }

    /// Whoever listens at `addr`: the receiver of an announcement, of whom nothing else is known yet.
    pub(crate) fn anyone_at(addr: SocketAddr) -> Self {
        Self::new(Identity { node_id: String::new(), addr, generation: 0 })
    }

    pub(crate) fn is_anyone(&self) -> bool {
        self.identity.node_id.is_empty()
    }

    pub(crate) fn node_id(&self) -> &str {
        &self.identity.node_id
    }

    /// The form under which this node tells the others that it goes. `None` when no bump is left.
    pub(crate) fn leaving(&self) -> Option<Self> {
        Some(Self { identity: Arc::clone(&self.identity), bump: self.bump.checked_add(1)?, left: true })
    }

    fn rank(&self) -> (u64, u32, bool, SocketAddr) {
        (self.identity.generation, self.bump, self.left, self.identity.addr)
    }
}

/// What makes two [`PeerId`]s lives of the same node: the node id.
///
/// The empty id of an announcement equals every other one: a seed answers on whichever of its addresses it was
/// found. Such an id is never accepted as a sender or in an update, so no member list ever holds one.
#[derive(Clone, Debug)]
pub(crate) struct NodeKey(Arc<Identity>);

impl PartialEq for NodeKey {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.0.node_id, &other.0.node_id);
        a == b || a.is_empty() || b.is_empty()
    }
}

impl foca::Identity for PeerId {
    type Addr = NodeKey;

    fn renew(&self) -> Option<Self> {
        if self.left {
            return None;
        }
        Some(Self { identity: Arc::clone(&self.identity), bump: self.bump.checked_add(1)?, left: false })
    }

    fn addr(&self) -> NodeKey {
        NodeKey(Arc::clone(&self.identity))
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.rank() > adversary.rank()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foca::Identity as _;

    fn identity(node_id: &str, addr: &str, generation: u64) -> Identity {
        Identity { node_id: node_id.to_owned(), addr: addr.parse().unwrap(), generation }
    }

    #[test]
    fn bounds_are_checked() {
        assert!(identity("n1", "10.0.0.1:2377", 1).validate().is_ok());
        assert!(identity(&"x".repeat(64), "10.0.0.1:2377", 1).validate().is_ok());
        assert!(identity(&"x".repeat(65), "10.0.0.1:2377", 1).validate().is_err());
        assert!(identity("", "10.0.0.1:2377", 1).validate().is_err());
        assert!(identity("a b", "10.0.0.1:2377", 1).validate().is_err());
        assert!(identity("n1", "10.0.0.1:0", 1).validate().is_err());
        assert!(identity("n1", "0.0.0.0:2377", 1).validate().is_err());
        assert!(identity("n1", "[ff02::1]:2377", 1).validate().is_err());
    }

    #[test]
    fn the_later_life_wins() {
        let first = PeerId::new(identity("n1", "10.0.0.1:2377", 1));
        let renewed = first.renew().unwrap();
        let restarted = PeerId::new(identity("n1", "10.0.0.9:2377", 2));
        let left = renewed.leaving().unwrap();
        for (winner, loser) in [(&renewed, &first), (&restarted, &renewed), (&left, &renewed), (&restarted, &left)] {
            assert!(winner.win_addr_conflict(loser), "{winner:?} over {loser:?}");
            assert!(!loser.win_addr_conflict(winner), "{loser:?} over {winner:?}");
        }
        assert_eq!(left.renew(), None, "who left does not come back by itself");
    }
}
