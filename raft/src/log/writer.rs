//! The one thread that writes the log: it takes whatever has queued up, writes it in one go, syncs once
//! and then tells everyone who waits.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use openraft::storage::IOFlushed;
use prost::Message;
use tokio::sync::oneshot;

use super::record::{self, Kind, SEGMENT_HEADER};
use super::replay::{HardState, Sealed, segment_name};
use super::spare::Spares;
use crate::counters::Meter;
use crate::disk::{Disk, DiskFile};
use crate::types::{self, Entry, EntryPayload, LogId, Types, Vote};
use crate::wire;

/// Something to write.
pub(super) enum Op {
    Append(Vec<Entry>, IOFlushed<Types>),
    Vote(Vote, oneshot::Sender<io::Result<()>>),
    /// Not worth a sync of its own: it is written at once, which survives the process, and becomes durable
    /// with the next sync.
    Committed(LogId),
    /// Entries after this are void; all of them when `None`.
    Truncate(Option<LogId>),
    Purge(LogId),
}

/// Where the handles of the log leave work for the writer.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    wake: Condvar,
}

#[derive(Default)]
struct QueueState {
    ops: Vec<Op>,
    closed: bool,
}

impl Queue {
    /// Leaves an operation. It is dropped, and whoever waits for it told by that, once the log is closed.
    pub(super) fn push(&self, op: Op) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(io::Error::other("the raft log is closed"));
        }
        state.ops.push(op);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.wake.notify_all();
    }

    /// Waits for work; `None` when closed and drained.
    fn take(&self) -> Option<Vec<Op>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !state.ops.is_empty() {
                return Some(std::mem::take(&mut state.ops));
            }
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The open segment.
pub(super) struct Active {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) seq: u64,
    /// Where the buffer goes.
    pub(super) pos: u64,
    /// Up to where the segment is durable.
    pub(super) durable: u64,
    pub(super) top: Option<u64>,
}

/// Who waits for a sync.
enum Waiter {
    Flushed(IOFlushed<Types>),
    Vote(oneshot::Sender<io::Result<()>>),
}

/// The state of the thread.
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) queue: Arc<Queue>,
    pub(super) spares: Arc<Spares>,
    pub(super) active: Active,
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) hard: HardState,
    pub(super) segment_size: u64,
    pub(super) buffer: Vec<u8>,
    /// Why nothing is written any more. After a failed sync nobody knows what is on disk, so it is final.
    pub(super) failed: Option<(io::ErrorKind, String)>,
    pub(super) meter: Arc<Meter>,
}

impl Writer {
    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        while let Some(ops) = self.queue.take() {
            let mut waiters = Vec::with_capacity(ops.len());
            let mut purge = false;
            let mut must_sync = false;
            let mut result = self.health();
            for op in ops {
                purge |= matches!(op, Op::Purge(_));
                must_sync |= !matches!(op, Op::Committed(_));
                if result.is_ok() {
                    result = self.encode(&op);
                }
                match op {
                    Op::Append(_, flushed) => waiters.push(Waiter::Flushed(flushed)),
                    Op::Vote(_, done) => waiters.push(Waiter::Vote(done)),
                    Op::Committed(_) | Op::Truncate(_) | Op::Purge(_) => {}
                }
            }
            let result = result.and_then(|()| self.write(must_sync));
            if let Err(error) = &result
                && self.failed.is_none()
            {
                tracing::error!(%error, "the raft log cannot be written; this manager stops taking part");
                self.failed = Some((error.kind(), error.to_string()));
            }
            for waiter in waiters {
                let result = self.health();
                match waiter {
                    Waiter::Flushed(flushed) => flushed.io_completed(result),
                    // The receiver is gone only when the whole member is stopping.
                    Waiter::Vote(done) => drop(done.send(result)),
                }
            }
            if purge && self.failed.is_none() {
                self.remove_purged();
            }
        }
    }

    fn health(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
        }
    }

    fn encode(&mut self, op: &Op) -> io::Result<()> {
        match op {
            Op::Append(entries, _) => entries.iter().try_for_each(|entry| self.encode_entry(entry)),
            Op::Vote(vote, _) => {
                self.hard.vote = Some(*vote);
                self.encode_vote(vote)
            }
            Op::Committed(id) => {
                self.hard.committed = Some(*id);
                self.put_id(Kind::Committed, id)
            }
            Op::Truncate(Some(id)) => self.put_id(Kind::Truncate, id),
            Op::Truncate(None) => self.put(Kind::Clear, 0, 0, &[]),
            Op::Purge(id) => {
                self.hard.purged = Some(*id);
                self.put_id(Kind::Purge, id)
            }
        }
    }

    fn encode_entry(&mut self, entry: &Entry) -> io::Result<()> {
        let (index, term) = (entry.log_id.index, types::term_of(&entry.log_id));
        match &entry.payload {
            EntryPayload::Blank => self.put(Kind::Blank, index, term, &[])?,
            EntryPayload::Normal(payload) => self.put(Kind::Data, index, term, &payload.0)?,
            EntryPayload::Membership(membership) => {
                let bytes = wire::membership_out(membership).encode_to_vec();
                self.put(Kind::Membership, index, term, &bytes)?;
            }
        }
        // After `put`, which may have gone on to the next segment.
        self.active.top = self.active.top.max(Some(index));
        Ok(())
    }

    fn encode_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = wire::vote_out(vote).encode_to_vec();
        self.put(Kind::Vote, 0, 0, &bytes)
    }

    fn put_id(&mut self, kind: Kind, id: &LogId) -> io::Result<()> {
        self.put(kind, id.index, types::term_of(id), &[])
    }

    /// Puts a record into the buffer, after going on to the next segment when it does not fit.
    fn put(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) -> io::Result<()> {
        if payload.len() > record::MAX_RECORD {
            return Err(io::Error::other(format!("a record of {} bytes is too large", payload.len())));
        }
        let need = record::record_size(payload.len()) + record::record_size(0);
        if self.active.pos + (self.buffer.len() + need) as u64 > self.segment_size {
            self.rotate()?;
        }
        let Active { seq, durable, .. } = self.active;
        record::put(&mut self.buffer, seq, durable, kind, index, term, payload);
        Ok(())
    }

    /// Seals the segment and opens the next, which repeats the hard state so that the old one may go.
    fn rotate(&mut self) -> io::Result<()> {
        let Active { seq, durable, .. } = self.active;
        record::put(&mut self.buffer, seq, durable, Kind::Seal, 0, 0, &[]);
        self.write(true)?;
        self.sealed.push_back(Sealed { seq, top: self.active.top });
        self.active = open_segment(&*self.disk, &self.spares, seq + 1)?;
        self.repeat_hard_state()
    }

    /// Puts the hard state at the start of a segment.
    pub(super) fn repeat_hard_state(&mut self) -> io::Result<()> {
        let HardState { vote, committed, purged } = self.hard.clone();
        if let Some(vote) = vote {
            self.encode_vote(&vote)?;
        }
        if let Some(committed) = committed {
            self.put_id(Kind::Committed, &committed)?;
        }
        if let Some(purged) = purged {
            self.put_id(Kind::Purge, &purged)?;
        }
        Ok(())
    }

    fn write(&mut self, sync: bool) -> io::Result<()> {
        let active = &mut self.active;
        if !self.buffer.is_empty() {
            active.file.write_at(&self.buffer, active.pos)?;
            active.pos += self.buffer.len() as u64;
            self.meter.log_bytes.add(self.buffer.len() as u64);
            self.buffer.clear();
            // One large batch must not hold its memory for ever.
            self.buffer.shrink_to(1 << 20);
        }
        if sync && active.durable < active.pos {
            let before = Instant::now();
            active.file.sync()?;
            self.meter.sync.record(before.elapsed());
            active.durable = active.pos;
        }
        Ok(())
    }

    /// Removes the segments at the front whose entries are all in the snapshot. The purge record is
    /// durable by now, so they are not missed.
    fn remove_purged(&mut self) {
        let Some(purged) = self.hard.purged else { return };
        let mut removed = false;
        while let Some(first) = self.sealed.front()
            && first.top.is_none_or(|top| top <= purged.index)
        {
            if let Err(error) = self.disk.remove(&segment_name(first.seq)) {
                tracing::warn!(%error, segment = first.seq, "cannot remove a purged segment; will try again");
                break;
            }
            self.sealed.pop_front();
            removed = true;
        }
        if removed && let Err(error) = self.disk.sync_dir() {
            tracing::warn!(%error, "cannot sync the raft directory after a purge");
        }
    }
}

/// Takes the prepared segment into use.
pub(super) fn open_segment(disk: &dyn Disk, spares: &Spares, seq: u64) -> io::Result<Active> {
    let prepared = spares.take(seq)?;
    let name = segment_name(seq);
    disk.rename(&prepared, &name)?;
    disk.sync_dir()?;
    spares.want(seq + 1);
    let start = SEGMENT_HEADER as u64;
    Ok(Active { file: disk.open(&name)?, seq, pos: start, durable: start, top: None })
}
