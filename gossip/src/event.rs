//! What membership tells: events, the member table and the counters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::identity::Identity;

/// A change in what this node thinks of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A member is there: new, or back after it was down.
    Up(Identity),
    /// This node's own probe of a member failed, direct and by way of others. Evidence of our own, beside the
    /// cluster's opinion; a [`Event::Suspect`] follows unless the member is suspected already.
    ProbeFailed(Identity),
    /// Somebody's probe failed; the member has `Timing::suspect` to say that it lives.
    Suspect(Identity),
    /// A suspect said that it lives.
    Alive(Identity),
    /// The cluster declared a member dead.
    Down(Identity),
    /// A member said goodbye; it is no longer in the table.
    Left(Identity),
    /// A member started again, or moved to another address, before anybody missed it.
    Renewed(Identity),
    /// This node itself was declared dead and has come back. What it knew of its place may be outdated.
    Rejoined(Identity),
    /// Somebody else lives under this node's id: a copied disk, or a later boot of the same one. Reported once a
    /// minute at the most.
    Conflict(Identity),
}

/// What is known of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its latest identity; the protocol's own table has the same one, which saves a quarter of the memory.
    pub identity: Arc<Identity>,
    /// Not declared dead.
    pub alive: bool,
    /// Alive, but somebody's probe of it failed and it has not answered to that yet.
    pub suspect: bool,
    /// When it became alive or dead, on this host's monotonic clock.
    pub since: Instant,
}

/// The other nodes by node id. This node itself is not among them. The dead stay until they are forgotten.
pub type Members = BTreeMap<String, Member>;

/// Packets that were refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejected {
    /// Not a sealed packet in a known format.
    pub unsealed: u64,
    /// Sealed with a key that is not in the ring.
    pub unknown_key: u64,
    /// Failed authentication: forged, damaged, or of another cluster.
    pub forged: u64,
    /// Seen before, or of an earlier boot of its sender.
    pub replayed: u64,
    /// Sealed properly, but not a valid packet.
    pub malformed: u64,
    /// Larger than any packet may be.
    pub too_large: u64,
    /// From a node that was removed from the cluster.
    pub forgotten: u64,
    /// From or about an unknown node while the table is full.
    pub table_full: u64,
}

impl Rejected {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.unsealed
            + self.unknown_key
            + self.forged
            + self.replayed
            + self.malformed
            + self.too_large
            + self.forgotten
            + self.table_full
    }
}

/// Round trips of own probes, the direct ones that were answered.
///
/// A histogram as Prometheus wants it: [`RoundTrips::buckets`] with [`RoundTrips::BOUNDS`], a count and a sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// How many there were.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
    /// The longest one.
    pub max: Duration,
    /// How many were not longer than the bound of the same place in `BOUNDS`; each includes those before it.
    pub buckets: [u64; RoundTrips::BOUNDS.len()],
}

impl RoundTrips {
    /// Upper bounds of the buckets.
    pub const BOUNDS: [Duration; 8] = [
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_millis(2),
        Duration::from_millis(5),
        Duration::from_millis(20),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(500),
    ];

    pub(crate) fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
        self.max = self.max.max(took);
        for (bucket, bound) in self.buckets.iter_mut().zip(Self::BOUNDS) {
            *bucket += u64::from(took <= bound);
        }
    }
}

/// Counters since the start. They only grow, but for `health`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams sent.
    pub sent: u64,
    /// Bytes in them, without the headers of UDP and IP.
    pub sent_bytes: u64,
    /// Datagrams that could not be sent: no route, no room in the socket's buffer.
    pub send_failed: u64,
    /// Datagrams received, the refused ones included.
    pub received: u64,
    /// Bytes in them, without the headers of UDP and IP.
    pub received_bytes: u64,
    /// Datagrams refused.
    pub rejected: Rejected,
    /// Own probes that nobody answered.
    pub probes_failed: u64,
    /// Times that a member became suspect in this node's eyes, whoever's probe had failed.
    pub suspicions: u64,
    /// Suspects that said that they live.
    pub refutations: u64,
    /// Members that this node saw declared dead. Goodbyes are not counted.
    pub deaths: u64,
    /// Round trips of own probes.
    pub round_trips: RoundTrips,
    /// Times that this node was declared dead and came back.
    pub rejoins: u64,
    /// Comparisons of this node's table with another's that brought something new.
    pub syncs: u64,
    /// Times that this process was late by more than a few tens of milliseconds; its clock stood still meanwhile.
    pub late: u64,
    /// How much this node distrusts itself, 0 to 4; suspicions that it raises last longer by half for each.
    pub health: u8,
    /// Events that nobody fetched in time. The member table is complete nevertheless.
    pub events_lost: u64,
}
