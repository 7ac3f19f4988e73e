//! Who a member is: the public [`Identity`], and the form of it that travels on the wire.

use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
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
    /// First, so that comparisons end here most of the time.
    key: NodeKey,
    pub(crate) identity: Arc<Identity>,
    /// Raised when the cluster declared a living node dead, so that it is back at once.
    pub(crate) bump: u32,
    /// The last form of a node that goes by its own will: it tells "left" from "declared dead".
    pub(crate) left: bool,
}

impl PeerId {
    pub(crate) fn new(identity: Identity) -> Self {
        Self::with(identity, 0, false)
    }

    pub(crate) fn with(identity: Identity, bump: u32, left: bool) -> Self {
        Self { key: NodeKey::of(&identity.node_id), identity: Arc::new(identity), bump, left }
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
        Some(Self { bump: self.bump.checked_add(1)?, left: true, ..self.clone() })
    }

    /// A well-mixed hash of the node id, the same on all hosts and in all releases.
    pub(crate) fn node_hash(&self) -> u64 {
        self.key.0[0]
    }

    /// The same of this life: node id, address, generation and bump.
    pub(crate) fn life_hash(&self) -> u64 {
        let addr = self.identity.addr;
        let (family, ip) = match addr.ip() {
            IpAddr::V4(ip) => (4, u128::from(ip.to_bits())),
            IpAddr::V6(ip) => (6, ip.to_bits()),
        };
        let rest = [(ip >> 64) as u64, ip as u64, family << 16 | u64::from(addr.port()), self.identity.generation];
        let hash = rest.into_iter().fold(self.node_hash(), |hash, part| mix(hash ^ part));
        mix(hash ^ u64::from(self.bump))
    }

    fn rank(&self) -> (u64, u32, bool, SocketAddr) {
        (self.identity.generation, self.bump, self.left, self.identity.addr)
    }
}

/// What makes two [`PeerId`]s lives of the same node: 128 bits that are made from the node id. foca compares them with
/// those of every member for each update that it reads, so they must lie in the member table itself: with the ids,
/// which are somewhere else in memory, a thousand nodes spent four fifths of their time there. Two ids that are not
/// made to collide do not; who could make some has a key of the cluster, and may call himself whatever he likes.
///
/// The empty id of an announcement equals every other one: a seed answers on whichever of its addresses it was
/// found. Such an id is never accepted as a sender or in an update, so no member list ever holds one.
#[derive(Clone, Copy, Debug, Eq)]
pub(crate) struct NodeKey([u64; 2]);

impl NodeKey {
    const ANYONE: NodeKey = NodeKey([0; 2]);

    fn of(node_id: &str) -> NodeKey {
        if node_id.is_empty() {
            return NodeKey::ANYONE;
        }
        // The first half is compared between hosts: FNV-1a, which stays what it is. The second one is a better hash,
        // and any.
        let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let stable = mix(node_id.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv));
        let mut hasher = DefaultHasher::new();
        hasher.write(node_id.as_bytes());
        NodeKey([stable, hasher.finish()])
    }
}

/// SplitMix64's step: each bit of the input changes each of the output in half of all cases.
fn mix(hash: u64) -> u64 {
    let hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

impl PartialEq for NodeKey {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || self.0 == Self::ANYONE.0 || other.0 == Self::ANYONE.0
    }
}

impl foca::Identity for PeerId {
    type Addr = NodeKey;

    fn renew(&self) -> Option<Self> {
        if self.left {
            return None;
        }
        Some(Self { bump: self.bump.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> NodeKey {
        self.key
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
    fn the_node_id_makes_the_node() {
        let peer = |id: &str, addr: &str| PeerId::new(identity(id, addr, 1));
        assert_eq!(peer("n1", "10.0.0.1:2377").addr(), peer("n1", "10.0.0.2:2377").addr());
        assert_ne!(peer("n1", "10.0.0.1:2377").addr(), peer("n2", "10.0.0.1:2377").addr());
        assert_eq!(PeerId::anyone_at("10.0.0.1:2377".parse().unwrap()).addr(), peer("n2", "10.0.0.9:2377").addr());
    }

    #[test]
    fn hashes_are_the_same_everywhere_and_differ_by_each_part() {
        let of = |id: &str, addr: &str, generation, bump| PeerId::with(identity(id, addr, generation), bump, false);
        let first = of("n1", "10.0.0.1:2377", 1, 0);
        // What releases say to each other: these numbers may never change.
        assert_eq!(first.node_hash(), 0x5bad_d04f_0495_99a9);
        assert_eq!(first.life_hash(), 0x5db6_18cc_9437_2334);
        let others = [
            of("n2", "10.0.0.1:2377", 1, 0),
            of("n1", "10.0.0.2:2377", 1, 0),
            of("n1", "10.0.0.1:2378", 1, 0),
            of("n1", "[::ffff:10.0.0.1]:2377", 1, 0),
            of("n1", "10.0.0.1:2377", 2, 0),
            of("n1", "10.0.0.1:2377", 1, 1),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_eq!(other.node_hash() == first.node_hash(), at > 0);
            assert_ne!(other.life_hash(), first.life_hash(), "{other:?}");
        }
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
