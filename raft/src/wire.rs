//! The protobuf messages, and the way between them and openraft's types.
//!
//! Everything that comes in is checked here: a missing field, a voter without an address or a log id
//! out of order is a [`Malformed`], never a panic further down.

use std::collections::{BTreeMap, BTreeSet};

use openraft::entry::RaftEntry;
use openraft::raft::{AppendEntriesResponse, StreamAppendError, StreamAppendResult};

use crate::types::{
    self, Entry, EntryPayload, LogId, Member, Membership, Payload, SnapshotMeta, StoredMembership, Types, Vote,
};
use crate::{MAX_PAYLOAD, RaftId};

/// The generated messages and stubs.
#[allow(missing_docs, unreachable_pub, clippy::unwrap_used)]
pub(crate) mod pb {
    tonic::include_proto!("shoal.raft.v1");
}

/// The most members that a membership may have, learners included.
const MAX_MEMBERS: usize = 256;

/// A message that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Malformed {
    #[error("field {0} is missing")]
    Missing(&'static str),
    #[error("a membership of {0} members is too large")]
    TooManyMembers(usize),
    #[error("the membership has {0} voter sets")]
    VoterSets(usize),
    #[error("the membership is inconsistent: {0}")]
    Membership(String),
    #[error("entry {found} stands where {expected} belongs")]
    Gap { expected: u64, found: u64 },
    #[error("an entry of term {found} follows one of term {previous}")]
    TermOrder { previous: u64, found: u64 },
    #[error("an append must come from an elected leader")]
    NotElected,
    #[error("an index, a term or a payload is too large")]
    TooLarge,
}

impl From<Malformed> for tonic::Status {
    fn from(error: Malformed) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

/// Indexes and terms above this are a forgery: 2^62 entries do not happen, and arithmetic stays safe.
const LARGEST: u64 = 1 << 62;

pub(crate) fn log_id_out(id: &LogId) -> pb::LogId {
    pb::LogId { term: types::term_of(id), index: id.index }
}

pub(crate) fn log_id_in(id: pb::LogId) -> Result<LogId, Malformed> {
    if id.term > LARGEST || id.index > LARGEST {
        return Err(Malformed::TooLarge);
    }
    Ok(types::log_id(id.term, id.index))
}

pub(crate) fn some_log_id_in(id: Option<pb::LogId>) -> Result<Option<LogId>, Malformed> {
    id.map(log_id_in).transpose()
}

pub(crate) fn vote_out(vote: &Vote) -> pb::Ballot {
    pb::Ballot { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_in(vote: Option<pb::Ballot>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed::Missing("vote"))?;
    if vote.term > LARGEST {
        return Err(Malformed::TooLarge);
    }
    Ok(match vote.committed {
        true => Vote::new_committed(vote.term, vote.node),
        false => Vote::new(vote.term, vote.node),
    })
}

pub(crate) fn membership_out(membership: &Membership) -> pb::Membership {
    let voters = membership.get_joint_config().iter();
    pb::Membership {
        voters: voters.map(|set| pb::VoterSet { ids: set.iter().copied().collect() }).collect(),
        members: membership
            .nodes()
            .map(|(id, member)| pb::Member { id: *id, node_id: member.node_id.clone(), addr: member.addr.clone() })
            .collect(),
    }
}

pub(crate) fn membership_in(membership: pb::Membership) -> Result<Membership, Malformed> {
    if membership.members.len() > MAX_MEMBERS {
        return Err(Malformed::TooManyMembers(membership.members.len()));
    }
    if membership.voters.len() > 2 {
        return Err(Malformed::VoterSets(membership.voters.len()));
    }
    let voters: Vec<BTreeSet<RaftId>> =
        membership.voters.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    let members: BTreeMap<RaftId, Member> = membership
        .members
        .into_iter()
        .map(|member| (member.id, Member { node_id: member.node_id, addr: member.addr }))
        .collect();
    Membership::new(voters, members).map_err(|error| Malformed::Membership(error.to_string()))
}

pub(crate) fn stored_membership_out(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_out),
        membership: Some(membership_out(stored.membership())),
    }
}

pub(crate) fn stored_membership_in(stored: pb::StoredMembership) -> Result<StoredMembership, Malformed> {
    let membership = stored.membership.ok_or(Malformed::Missing("membership"))?;
    Ok(StoredMembership::new(some_log_id_in(stored.log_id)?, membership_in(membership)?))
}

pub(crate) fn snapshot_meta_out(meta: &SnapshotMeta) -> pb::SnapshotMeta {
    pb::SnapshotMeta {
        last_log: meta.last_log_id.as_ref().map(log_id_out),
        membership: Some(stored_membership_out(&meta.last_membership)),
    }
}

pub(crate) fn snapshot_meta_in(meta: pb::SnapshotMeta) -> Result<SnapshotMeta, Malformed> {
    Ok(SnapshotMeta {
        last_log_id: some_log_id_in(meta.last_log)?,
        last_membership: stored_membership_in(meta.membership.ok_or(Malformed::Missing("membership"))?)?,
    })
}

pub(crate) fn entry_out(entry: &Entry) -> pb::Entry {
    use pb::entry::Payload as Out;
    let payload = match &entry.payload {
        EntryPayload::Blank => Out::Blank(pb::Blank {}),
        EntryPayload::Normal(payload) => Out::Data(payload.0.clone()),
        EntryPayload::Membership(membership) => Out::Membership(membership_out(membership)),
    };
    pb::Entry { log_id: Some(log_id_out(&entry.log_id)), payload: Some(payload) }
}

fn entry_in(entry: pb::Entry) -> Result<Entry, Malformed> {
    use pb::entry::Payload as In;
    let id = log_id_in(entry.log_id.ok_or(Malformed::Missing("log_id"))?)?;
    let payload = match entry.payload.ok_or(Malformed::Missing("payload"))? {
        In::Blank(_) => EntryPayload::Blank,
        In::Data(data) if data.len() > MAX_PAYLOAD => return Err(Malformed::TooLarge),
        In::Data(data) => EntryPayload::Normal(Payload(data)),
        In::Membership(membership) => EntryPayload::Membership(membership_in(membership)?),
    };
    Ok(Entry::new(id, payload))
}

/// Decodes the answer to an append after `previous`.
pub(crate) fn append_response_in(
    response: pb::AppendResponse,
    previous: Option<LogId>,
) -> Result<AppendEntriesResponse<Types>, Malformed> {
    use pb::append_response::Outcome;
    match response.outcome.ok_or(Malformed::Missing("outcome"))? {
        Outcome::Success(_) => Ok(AppendEntriesResponse::Success),
        Outcome::Conflict(_) if previous.is_some() => Ok(AppendEntriesResponse::Conflict),
        // Nothing can conflict with the beginning; openraft would panic.
        Outcome::Conflict(_) => Err(Malformed::Missing("previous")),
        Outcome::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(vote_in(Some(vote))?)),
    }
}

/// Encodes the answer to an append: the receiving side stores all or nothing.
pub(crate) fn append_response_out(result: &StreamAppendResult<Types>) -> pb::AppendResponse {
    use pb::append_response::Outcome;
    let outcome = match result {
        Ok(_) => Outcome::Success(pb::Blank {}),
        Err(StreamAppendError::Conflict(_)) => Outcome::Conflict(pb::Blank {}),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote_out(vote)),
    };
    pb::AppendResponse { outcome: Some(outcome) }
}

/// Decodes entries that follow `previous`, which must be consecutive and of non-decreasing terms not
/// above the leader's.
pub(crate) fn entries_in(
    entries: Vec<pb::Entry>,
    previous: Option<LogId>,
    leader_term: u64,
) -> Result<Vec<Entry>, Malformed> {
    let mut expected = previous.map_or(0, |id| id.index + 1);
    let mut term = previous.map_or(0, |id| types::term_of(&id));
    let mut out = Vec::with_capacity(entries.len());
    for entry in entries {
        let entry = entry_in(entry)?;
        let (found, its_term) = (entry.log_id.index, types::term_of(&entry.log_id));
        if found != expected {
            return Err(Malformed::Gap { expected, found });
        }
        if its_term < term || its_term > leader_term {
            return Err(Malformed::TermOrder { previous: term, found: its_term });
        }
        (expected, term) = (expected + 1, its_term);
        out.push(entry);
    }
    Ok(out)
}

/// The size that an entry takes in an append request, within a few bytes and never less than it is.
pub(crate) fn entry_size(entry: &Entry) -> usize {
    const FRAME: usize = 48;
    FRAME
        + match &entry.payload {
            EntryPayload::Blank => 0,
            EntryPayload::Normal(payload) => payload.0.len(),
            EntryPayload::Membership(membership) => {
                membership.nodes().map(|(_, m)| m.node_id.len() + m.addr.len() + 32).sum::<usize>()
                    + membership.get_joint_config().iter().map(|set| set.len() * 10 + 4).sum::<usize>()
            }
        }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;

    fn sample() -> Membership {
        let member = |id: u64| (id, Member { node_id: format!("n{id}"), addr: format!("h{id}:2377") });
        Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], BTreeMap::from_iter((1..=4).map(member)))
            .unwrap()
    }

    fn data(term: u64, index: u64) -> pb::Entry {
        let entry = Entry::new(types::log_id(term, index), EntryPayload::Normal(Payload(Bytes::from_static(b"x"))));
        entry_out(&entry)
    }

    #[test]
    fn everything_comes_back() {
        let vote = Vote::new_committed(7, 3);
        assert_eq!(vote_in(Some(vote_out(&vote))), Ok(vote));
        let stored = StoredMembership::new(Some(types::log_id(2, 5)), sample());
        assert_eq!(stored_membership_in(stored_membership_out(&stored)).unwrap(), stored);
        let meta = SnapshotMeta { last_log_id: Some(types::log_id(3, 9)), last_membership: stored };
        assert_eq!(snapshot_meta_in(snapshot_meta_out(&meta)).unwrap(), meta);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload(Bytes::from_static(b"payload"))),
            EntryPayload::Membership(sample()),
        ] {
            let entry = Entry::new(types::log_id(3, 6), payload);
            let out = entry_out(&entry);
            assert!(out.encoded_len() <= entry_size(&entry), "{entry:?}");
            assert_eq!(entries_in(vec![out], Some(types::log_id(2, 5)), 3).unwrap(), [entry]);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let previous = Some(types::log_id(2, 5));
        let refused = |entries, leader_term| entries_in(entries, previous, leader_term).unwrap_err();
        assert_eq!(refused(vec![data(2, 7)], 9), Malformed::Gap { expected: 6, found: 7 });
        assert_eq!(refused(vec![data(2, 6), data(2, 6)], 9), Malformed::Gap { expected: 7, found: 6 });
        assert_eq!(refused(vec![data(1, 6)], 9), Malformed::TermOrder { previous: 2, found: 1 });
        assert_eq!(refused(vec![data(4, 6)], 3), Malformed::TermOrder { previous: 2, found: 4 });
        assert_eq!(refused(vec![pb::Entry::default()], 9), Malformed::Missing("log_id"));
        assert_eq!(log_id_in(pb::LogId { term: 1, index: u64::MAX }), Err(Malformed::TooLarge));
        assert_eq!(vote_in(None), Err(Malformed::Missing("vote")));

        let mut stranger = membership_out(&sample());
        stranger.voters[0].ids.push(99);
        assert!(matches!(membership_in(stranger), Err(Malformed::Membership(_))));
        let mut empty = membership_out(&sample());
        empty.voters[0].ids.clear();
        assert!(matches!(membership_in(empty), Err(Malformed::Membership(_))));
        let mut three = membership_out(&sample());
        three.voters.push(pb::VoterSet { ids: vec![1] });
        assert_eq!(membership_in(three), Err(Malformed::VoterSets(3)));
    }
}
