//! The types that openraft is instantiated with: opaque payloads, `u64` ids, one leader a term.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::RaftId;

/// What a log entry carries: bytes that this crate never looks into.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// openraft demands serde forms of everything. They are used neither on disk nor on the wire.
impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Payload(bytes.into()))
    }
}

/// What the membership knows of a member besides its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Member {
    pub(crate) node_id: String,
    pub(crate) addr: String,
}

// The default runtime is named through an alias that openraft has deprecated.
#[allow(deprecated)]
mod declared {
    use super::{Member, Payload, RaftId, leader_id_std};

    openraft::declare_raft_types!(
        /// The one instantiation of openraft in Shoal.
        pub(crate) Types:
            D = Payload,
            R = Vec<u8>,
            NodeId = RaftId,
            Node = Member,
            Term = u64,
            LeaderId = leader_id_std::LeaderId<u64, RaftId>,
    );
}

pub(crate) use declared::Types;

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, RaftId>;
pub(crate) type CommittedLeaderId = openraft::vote::leader_id_std::CommittedLeaderId<u64>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type EntryPayload = openraft::EntryPayload<Payload, RaftId, Member>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, EntryPayload>;
pub(crate) type Membership = openraft::Membership<RaftId, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, RaftId, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, RaftId, Member>;

/// The bytes of a caller's payload; 0 for entries of raft's own.
pub(crate) fn payload_len(entry: &Entry) -> u64 {
    match &entry.payload {
        openraft::EntryPayload::Normal(payload) => payload.0.len() as u64,
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 0,
    }
}

/// A log id from its parts.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

/// The term that a log id belongs to.
pub(crate) fn term_of(id: &LogId) -> u64 {
    id.leader_id.term
}
