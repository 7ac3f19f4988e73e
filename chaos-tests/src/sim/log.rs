//! The replicated log as seen from outside: entries are committed in order, after a while; when the leader changes,
//! some of those that were on their way survive and the rest are gone.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use deploy::model::Timestamp;

use super::world::{Decided, Waiter};

/// A place in the log.
#[derive(Clone)]
pub(super) struct Logged {
    pub(super) term: u64,
    /// The entry's bytes; none for a leader's blank entry.
    pub(super) bytes: Option<Rc<[u8]>>,
    pub(super) fingerprint: u64,
}

/// An entry that the leader has sent out.
pub(super) struct Proposal {
    pub(super) id: u64,
    pub(super) logged: Logged,
    /// Who is answered when it has been applied.
    pub(super) waiters: Vec<(Waiter, Decided)>,
}

/// The log, and who leads.
pub(super) struct Log {
    pub(super) committed: Vec<Logged>,
    pub(super) pending: VecDeque<Proposal>,
    pub(super) term: u64,
    pub(super) leader: Option<usize>,
    /// Counts elections; an older one's outcome does not count.
    pub(super) round: u64,
    /// When the last entry of those on their way is committed.
    pub(super) last_due: Timestamp,
    proposals: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            committed: Vec::new(),
            pending: VecDeque::new(),
            term: 0,
            leader: None,
            round: 0,
            last_due: Timestamp::default(),
            proposals: 0,
        }
    }

    /// Sends an entry out; the number names it.
    pub(super) fn propose(&mut self, term: u64, bytes: Option<Rc<[u8]>>, waiters: Vec<(Waiter, Decided)>) -> u64 {
        self.proposals += 1;
        let mut hasher = DefaultHasher::new();
        (term, &bytes).hash(&mut hasher);
        let logged = Logged { term, bytes, fingerprint: hasher.finish() };
        self.pending.push_back(Proposal { id: self.proposals, logged, waiters });
        self.proposals
    }

    /// The oldest proposal is on a quorum.
    pub(super) fn commit(&mut self, id: u64) -> Option<Proposal> {
        if self.pending.front().is_none_or(|proposal| proposal.id != id) {
            return None;
        }
        let proposal = self.pending.pop_front()?;
        self.committed.push(proposal.logged.clone());
        Some(proposal)
    }

    /// A new leader has the first `survivors` of the entries that were on their way, and commits them with its own
    /// blank entry; nobody has the others.
    pub(super) fn change_leader(&mut self, leader: usize, survivors: usize) {
        self.term += 1;
        self.leader = Some(leader);
        self.committed.extend(self.pending.drain(..).take(survivors).map(|proposal| proposal.logged));
    }
}
