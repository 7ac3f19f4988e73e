//! Reads the segments back: what was acknowledged must be there, what was torn is cut off, and anything
//! else is an error that names its place.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use prost::Message;

use super::record::{self, BadHeader, Found, Header, Kind, Owner, Record, SEGMENT_HEADER, Seal};
use crate::RaftId;
use crate::disk::Disk;
use crate::keys::Keyring;
use crate::types::{self, Entry, EntryPayload, LogId, Payload, Vote};
use crate::wire::{self, pb};

/// Why a log could not be opened. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file operation failed.
    #[error("raft log: cannot {action} {file}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file in the raft directory.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Bytes that were durable once are not what was written. The member must be replaced, or its log
    /// restored.
    #[error("raft log {file} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The segment.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A segment between two others, or one that the first of the rest builds on, is gone.
    #[error("raft log: segment {file} is missing")]
    Missing {
        /// The segment.
        file: String,
    },
    /// A newer release wrote this.
    #[error("raft log {file} has format {format}, which this release does not know")]
    Format {
        /// The segment.
        file: String,
        /// The format number found.
        format: u32,
    },
    /// The segment is encrypted with a key that is not at hand.
    #[error("raft log {file} is encrypted with key {key}, which is not at hand")]
    Encrypted {
        /// The segment.
        file: String,
        /// The key id found.
        key: u32,
    },
    /// The data belongs to another member or another cluster.
    #[error("raft log {file} belongs to raft id {found} of its cluster, not to {expected} of this one")]
    Foreign {
        /// The segment.
        file: String,
        /// The id that wrote it.
        found: RaftId,
        /// The id that asks.
        expected: RaftId,
    },
}

/// The small state that each segment repeats at its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct HardState {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
}

/// A segment that takes no more records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) seq: u64,
    /// The highest index of an entry in it.
    pub(super) top: Option<u64>,
}

/// The segment that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) seq: u64,
    pub(super) header: Header,
    /// Where the next record goes.
    pub(super) end: usize,
    pub(super) top: Option<u64>,
    /// How many bytes from `end` on must be made zero, because a torn write left something there.
    pub(super) torn: usize,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) hard: HardState,
    pub(super) entries: VecDeque<Entry>,
    pub(super) sealed: VecDeque<Sealed>,
    /// `None` when the last segment is sealed too, or there is none.
    pub(super) tail: Option<Tail>,
}

pub(super) fn segment_name(seq: u64) -> String {
    format!("log-{seq:016x}")
}

fn segment_seq(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Reads all segments of the directory.
pub(super) fn replay(disk: &dyn Disk, owner: Owner, keys: &Keyring) -> Result<Recovered, LogError> {
    let names = disk.list().map_err(|source| LogError::Io { action: "list", file: ".".into(), source })?;
    let mut seqs: Vec<u64> = names.iter().filter_map(|name| segment_seq(name)).collect();
    seqs.sort_unstable();
    if let Some(gap) = seqs.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        return Err(LogError::Missing { file: segment_name(gap[0] + 1) });
    }
    // The segment after the next is prepared only once the next is in use.
    let prepared = names.iter().filter_map(|name| segment_seq(name.strip_suffix(".new")?)).max();
    if let (Some(prepared), Some(last)) = (prepared, seqs.last())
        && prepared > last + 1
    {
        return Err(LogError::Missing { file: segment_name(last + 1) });
    }
    let mut state = Replay { out: Recovered::default(), next: 0, any_entry: false };
    for (position, seq) in seqs.iter().enumerate() {
        let name = segment_name(*seq);
        let file = disk.read(&name).map_err(|source| LogError::Io { action: "read", file: name.clone(), source })?;
        let header = check_header(&name, *seq, &file, owner)?;
        let cipher =
            keys.get(record::key_of(&header)).map_err(|key| LogError::Encrypted { file: name.clone(), key })?;
        state.segment(&name, *seq, &file, &Seal { header, cipher }, position + 1 == seqs.len())?;
    }
    let out = state.out;
    if let Some(first) = out.entries.front() {
        let expected = out.hard.purged.map_or(0, |id| id.index + 1);
        if first.log_id.index != expected {
            return Err(LogError::Missing { file: segment_name(seqs[0].wrapping_sub(1)) });
        }
    }
    Ok(out)
}

struct Replay {
    out: Recovered,
    /// The index that the next entry must have.
    next: u64,
    /// Until an entry was seen, earlier segments may have been removed, so a higher index may come too.
    any_entry: bool,
}

impl Replay {
    fn segment(&mut self, name: &str, seq: u64, file: &[u8], seal: &Seal, last: bool) -> Result<(), LogError> {
        let (mut at, mut top) = (SEGMENT_HEADER, None);
        loop {
            match record::find(file, at, seq) {
                Found::Record(record, next) => {
                    let Some(payload) = seal.open(file, at, &record) else {
                        return Err(damaged(name, at, "the record was not sealed here with this key"));
                    };
                    let record = Record { payload: &payload, ..record };
                    if record.kind == Kind::Seal {
                        self.out.sealed.push_back(Sealed { seq, top });
                        return Ok(());
                    }
                    if matches!(record.kind, Kind::Blank | Kind::Data | Kind::Membership) {
                        top = top.max(Some(record.index));
                    }
                    self.apply(&record).map_err(|reason| damaged(name, at, reason))?;
                    at = next;
                }
                _ if last => {
                    let torn = torn_bytes(name, file, at, seq)?;
                    self.out.tail = Some(Tail { seq, header: seal.header, end: at, top, torn });
                    return Ok(());
                }
                Found::Nothing => return Err(damaged(name, at, "records end before the segment does")),
                Found::Bad => return Err(damaged(name, at, "a record's checksum or frame is wrong")),
            }
        }
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), String> {
        // The arithmetic below is safe because no real index comes near the end of the numbers.
        if record.index == u64::MAX {
            return Err("the index is impossible".into());
        }
        let id = types::log_id(record.term, record.index);
        let (hard, entries) = (&mut self.out.hard, &mut self.out.entries);
        match record.kind {
            Kind::Blank | Kind::Data | Kind::Membership => {
                let next = self.next;
                if record.index != next && (self.any_entry || record.index < next) {
                    return Err(format!("entry {} stands where {next} belongs", record.index));
                }
                self.next = record.index + 1;
                self.any_entry = true;
                entries.push_back(Entry::new(id, payload(record)?));
            }
            Kind::Vote => {
                let ballot = pb::Ballot::decode(record.payload).map_err(|error| error.to_string())?;
                hard.vote = Some(wire::vote_in(Some(ballot)).map_err(|error| error.to_string())?);
            }
            Kind::Committed => hard.committed = Some(id),
            Kind::Truncate => {
                while entries.back().is_some_and(|entry| entry.log_id.index > record.index) {
                    entries.pop_back();
                }
                self.next = self.next.min(record.index + 1);
            }
            Kind::Clear => {
                entries.clear();
                self.next = 0;
            }
            Kind::Purge => {
                while entries.front().is_some_and(|entry| entry.log_id.index <= record.index) {
                    entries.pop_front();
                }
                hard.purged = Some(id);
                self.next = self.next.max(record.index + 1);
            }
            Kind::Seal | Kind::Mark => {}
        }
        Ok(())
    }
}

fn payload(record: &Record<'_>) -> Result<EntryPayload, String> {
    Ok(match record.kind {
        Kind::Data => EntryPayload::Normal(Payload(Bytes::copy_from_slice(record.payload))),
        Kind::Membership => {
            let membership = pb::Membership::decode(record.payload).map_err(|error| error.to_string())?;
            EntryPayload::Membership(wire::membership_in(membership).map_err(|error| error.to_string())?)
        }
        _ => EntryPayload::Blank,
    })
}

fn check_header(name: &str, seq: u64, bytes: &[u8], owner: Owner) -> Result<Header, LogError> {
    let file = name.to_owned();
    record::check_segment_header(bytes, seq, owner).map_err(|bad| match bad {
        BadHeader::Damaged(reason) => damaged(name, 0, reason),
        BadHeader::Format(format) => LogError::Format { file, format },
        BadHeader::Owner(found) => LogError::Foreign { file, found: found.id, expected: owner.id },
    })
}

/// How many bytes from `at` on a torn write has left, or the damage that it is instead.
///
/// Only what was written after the last sync may be torn. A valid record further on that says "up to
/// beyond `at` everything was durable" proves that the bad place was durable once.
fn torn_bytes(name: &str, file: &[u8], at: usize, seq: u64) -> Result<usize, LogError> {
    let rest = &file[at.min(file.len())..];
    let Some(last) = rest.iter().rposition(|byte| *byte != 0) else { return Ok(0) };
    for later in (at + 8..at + last).step_by(8) {
        if let Found::Record(record, _) = record::find(file, later, seq)
            && record.durable > at
        {
            return Err(damaged(name, at, "a record's checksum or frame is wrong, with durable records behind it"));
        }
    }
    Ok(last + 1)
}

fn damaged(file: &str, offset: usize, reason: impl Into<String>) -> LogError {
    LogError::Damaged { file: file.to_owned(), offset: offset as u64, reason: reason.into() }
}
