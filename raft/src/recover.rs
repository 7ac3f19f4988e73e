//! Recovery from a lost quorum: what one survivor has becomes the beginning of a cluster of one.
//!
//! [`survey`] reads a stopped member's directory into a machine; [`begin_anew`] writes a directory in which one new
//! member, the only voter, has a snapshot of a given state. The caller keeps the two apart, changes the state in
//! between, and puts the second in the place of the first.
//!
//! **What is kept.** Everything that the survivor has: snapshot and log, also the entries at the end that it does not
//! know as committed. It cannot tell those that a majority had (and that were acknowledged) from those that only it
//! had; dropping one of the first kind would break a promise, keeping one of the second is what "outcome unknown"
//! allows. Entries that never reached the survivor are lost, acknowledged or not.
//!
//! **Terms.** The new member begins 2^20 terms and indexes above all that the survivor has seen, so that nothing of the
//! members that are given up, which may have gone on for a while, is ever taken for newer.

use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage};

use crate::handle;
use crate::status;
use crate::types::{self, EntryPayload, LogId, Membership, SnapshotMeta, StoredMembership, Vote};
use crate::{Committed, Config, Peer, StartError, StateMachine};

/// How far terms and indexes jump.
pub const JUMP: u64 = 1 << 20;

/// What a survivor has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The highest term that it has seen.
    pub term: u64,
    /// Index of its last entry; everything after it is lost. 0 when it has none.
    pub last_index: u64,
    /// Term of that entry.
    pub last_term: u64,
    /// Up to which index it knew entries as committed. Those after it are kept all the same.
    pub committed: u64,
    /// The members of the manager set as it knew them last, itself included.
    pub members: Vec<Peer>,
}

/// Why a recovery was not possible. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The log or the snapshot cannot be opened.
    #[error(transparent)]
    Open(#[from] StartError),
    /// There is nothing to recover from.
    #[error("there is no replicated log in {0}")]
    Nothing(String),
    /// The machine does not take the snapshot.
    #[error("cannot restore the state of the survivor")]
    Restore(#[from] crate::RestoreError),
    /// Reading or writing failed.
    #[error("cannot {action} the replicated log")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Reads all that a stopped member has into `machine`. What the directory says does not change. Its files do as at a
/// start: a torn write at the end of the log is cut off, and a segment is begun when the last one has an older key or
/// format.
///
/// # Errors
/// When there is no log, or it is damaged: then another survivor, or a backup, has to do.
pub async fn survey(config: &Config, machine: &mut dyn StateMachine) -> Result<Found, RecoverError> {
    if !has_files(&config.dir) {
        return Err(RecoverError::Nothing(config.dir.display().to_string()));
    }
    let (mut log, snapshots) = handle::open_for(config).await?;
    let read = async {
        let loaded = tokio::task::spawn_blocking(move || snapshots.load()).await;
        let snapshot = loaded.map_err(std::io::Error::other)?.map_err(std::io::Error::from)?;
        let entries = log.try_get_log_entries(..).await?;
        Ok((snapshot, entries, log.read_vote().await?, log.read_committed().await?))
    };
    let read = read.await.map_err(|source| RecoverError::Io { action: "read", source });
    let closed = tokio::task::spawn_blocking(move || log.close()).await;
    let (snapshot, entries, vote, committed) = read?;
    closed.map_err(|error| RecoverError::Io { action: "close", source: std::io::Error::other(error) })?;

    let mut last: Option<LogId> = None;
    let mut membership = StoredMembership::default();
    if let Some((meta, state)) = snapshot {
        machine.restore(&state)?;
        last = meta.last_log_id;
        membership = meta.last_membership;
    }
    for entry in entries {
        let id = entry.log_id;
        if last.is_some_and(|last| id.index <= last.index) {
            continue;
        }
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(changed) => membership = StoredMembership::new(Some(id), changed),
            EntryPayload::Normal(payload) => {
                let term = types::term_of(&id);
                drop(machine.apply(Committed { index: id.index, term, payload: &payload.0 }));
            }
        }
        last = Some(id);
    }
    let Some(last) = last else { return Err(RecoverError::Nothing(config.dir.display().to_string())) };
    let last_term = types::term_of(&last);
    machine.applied(last.index, last_term);
    Ok(Found {
        term: last_term.max(vote.map_or(0, |vote| vote.leader_id.term)),
        last_index: last.index,
        last_term,
        committed: committed.map_or(0, |id| id.index),
        members: membership.membership().nodes().map(|(id, member)| status::peer(*id, member)).collect(),
    })
}

/// Writes the directory of `config`, which must not exist: a member that has `state`, votes alone, and takes its first
/// term [`JUMP`] above `found`. Durable on return.
///
/// # Errors
/// When the disk does not take it; what was written may be removed then.
pub async fn begin_anew(config: &Config, me: &Peer, found: &Found, state: Vec<u8>) -> Result<(), RecoverError> {
    let io = |action| move |source| RecoverError::Io { action, source };
    if has_files(&config.dir) {
        return Err(io("make")(std::io::ErrorKind::AlreadyExists.into()));
    }
    let config = Config { had_log: false, ..config.clone() };
    let (mut log, snapshots) = handle::open_for(&config).await?;
    let origin = types::log_id(found.term.saturating_add(JUMP), found.last_index.saturating_add(JUMP));
    let membership = Membership::new(
        vec![std::collections::BTreeSet::from([me.id])],
        std::collections::BTreeMap::from([(me.id, status::member(me))]),
    );
    let membership = membership.map_err(|error| io("make")(std::io::Error::other(error.to_string())))?;
    let meta =
        SnapshotMeta { last_log_id: Some(origin), last_membership: StoredMembership::new(Some(origin), membership) };
    let write = async {
        let saved = tokio::task::spawn_blocking(move || snapshots.save(&meta, &state)).await;
        saved.map_err(std::io::Error::other)?.map_err(std::io::Error::from)?;
        // Without it, the first election would be of a term below that of the snapshot.
        log.save_vote(&Vote::new(types::term_of(&origin), me.id)).await
    };
    let written = write.await;
    let closed = tokio::task::spawn_blocking(move || log.close()).await;
    written.map_err(io("write"))?;
    closed.map_err(|error| io("close")(std::io::Error::other(error)))
}

fn has_files(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}
