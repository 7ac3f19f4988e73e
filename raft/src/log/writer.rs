//! The one thread that writes the log: it takes whatever has queued up, writes it in one go, syncs once
//! and then tells everyone who waits.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use prost::Message;
use tokio::sync::oneshot;

use super::record::{self, Kind, NewRecord, SEGMENT_HEADER, Seal};
use super::replay::{HardState, Sealed, segment_name};
use super::spare::Spares;
use crate::counters::Meter;
use crate::disk::{Disk, DiskFile};
use crate::keys::Keyring;
use crate::types::{self, Entry, EntryPayload, LogId, Types, Vote};
use crate::wire;

/// With nothing to do for so long, the writer leaves a mark behind the last record: a flipped bit in a record that has
/// nothing behind it would pass for a torn write. It is not synced on its own; the kernel writes it within half a minute.
const MARK_AFTER: Duration = Duration::from_millis(100);

/// Something to write.
pub(super) enum Op {
    Append(Vec<Entry>, IOFlushed<Types>),
    Vote(Vote, oneshot::Sender<io::Result<()>>),
    /// Worth neither a sync of its own nor waking the writer: it is written with whatever comes next, or within
    /// [`MARK_AFTER`], and becomes durable with the next sync. A member that ends before learns it again.
    Committed(LogId),
    /// Entries after this are void; all of them when `None`.
    Truncate(Option<LogId>),
    Purge(LogId),
    /// Go on in a new segment unless this one has the key for new files.
    Rekey(oneshot::Sender<io::Result<()>>),
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
    /// The writer waits, and looks again within [`MARK_AFTER`] even if nobody wakes it.
    looks_soon: bool,
}

impl Queue {
    /// Leaves an operation. It is dropped, and whoever waits for it told by that, once the log is closed.
    pub(super) fn push(&self, op: Op) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(io::Error::other("the raft log is closed"));
        }
        let wakes = !(state.looks_soon && matches!(op, Op::Committed(_)));
        match (&op, state.ops.last_mut()) {
            // The later one says it all.
            (Op::Committed(id), Some(Op::Committed(before))) => *before = *id,
            _ => state.ops.push(op),
        }
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
        Ok(())
    }

    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.wake.notify_all();
    }

    /// Waits for work, when `patience` is given no longer than that.
    fn take(&self, patience: Option<Duration>) -> Work {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !state.ops.is_empty() {
                return Work::Ops(std::mem::take(&mut state.ops));
            }
            if state.closed {
                return Work::Closed;
            }
            state = match patience {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    state.looks_soon = true;
                    let (mut state, waited) =
                        self.wake.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
                    state.looks_soon = false;
                    if waited.timed_out() && state.ops.is_empty() && !state.closed {
                        return Work::Idle;
                    }
                    state
                }
            };
        }
    }
}

/// What the writer finds in its queue.
enum Work {
    Ops(Vec<Op>),
    /// Nothing for some time.
    Idle,
    /// Closed, and everything is taken.
    Closed,
}

/// The open segment.
pub(super) struct Active {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) seq: u64,
    pub(super) seal: Seal,
    /// Where the buffer goes.
    pub(super) pos: u64,
    /// Up to where the segment is durable.
    pub(super) durable: u64,
    pub(super) top: Option<u64>,
}

/// Who waits for a sync.
enum Waiter {
    Flushed(IOFlushed<Types>),
    Done(oneshot::Sender<io::Result<()>>),
}

/// The state of the thread.
pub(super) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) queue: Arc<Queue>,
    pub(super) spares: Arc<Spares>,
    pub(super) keys: Keyring,
    pub(super) active: Active,
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) hard: HardState,
    pub(super) segment_size: u64,
    pub(super) buffer: Vec<u8>,
    /// Whether something that counts was written behind the last mark.
    pub(super) unmarked: bool,
    /// Why nothing is written any more. After a failed sync nobody knows what is on disk, so it is final.
    pub(super) failed: Option<(io::ErrorKind, String)>,
    pub(super) meter: Arc<Meter>,
}

impl Writer {
    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        loop {
            let ops = match self.queue.take(self.unmarked.then_some(MARK_AFTER)) {
                Work::Ops(ops) => ops,
                Work::Idle => {
                    self.mark(false);
                    continue;
                }
                Work::Closed => {
                    self.mark(true);
                    return;
                }
            };
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
                    Op::Vote(_, done) | Op::Rekey(done) => waiters.push(Waiter::Done(done)),
                    Op::Committed(_) | Op::Truncate(_) | Op::Purge(_) => {}
                }
            }
            self.unmarked |= must_sync;
            let result = result.and_then(|()| self.write(must_sync));
            self.note(result);
            for waiter in waiters {
                let result = self.health();
                match waiter {
                    Waiter::Flushed(flushed) => flushed.io_completed(result),
                    // The receiver is gone only when the whole member is stopping.
                    Waiter::Done(done) => drop(done.send(result)),
                }
            }
            if purge && self.failed.is_none() {
                self.remove_purged();
            }
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && self.failed.is_none()
        {
            tracing::error!(%error, "the raft log cannot be written; this manager stops taking part");
            self.failed = Some((error.kind(), error.to_string()));
        }
    }

    /// Says behind the last record that it was durable.
    fn mark(&mut self, sync: bool) {
        if !std::mem::take(&mut self.unmarked) || self.failed.is_some() {
            return;
        }
        // Each record leaves room for one mark and for the end of the segment. Where there is none for both, a mark
        // stands already, from before the log was opened.
        let room = 2 * self.active.seal.record_size(0);
        if self.active.pos + (self.buffer.len() + room) as u64 > self.segment_size {
            return;
        }
        let marked = self.encode_record(Kind::Mark, 0, 0, &[]).and_then(|()| self.write(sync));
        self.note(marked);
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
            Op::Rekey(_) if record::is_current(&self.active.seal.header, self.keys.current_id()) => Ok(()),
            Op::Rekey(_) => self.rotate(),
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
        // Behind each record there is room for a mark and for the end of the segment.
        let seal = &self.active.seal;
        let need = seal.record_size(payload.len()) + 2 * seal.record_size(0);
        if self.active.pos + (self.buffer.len() + need) as u64 > self.segment_size {
            self.rotate()?;
        }
        self.encode_record(kind, index, term, payload)
    }

    fn encode_record(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) -> io::Result<()> {
        let Active { seq, durable, pos, seal, .. } = &self.active;
        let at = pos + self.buffer.len() as u64;
        record::put(&mut self.buffer, *seq, seal, *durable, at, NewRecord { kind, index, term, payload })
    }

    /// Seals the segment and opens the next, which repeats the hard state so that the old one may go.
    fn rotate(&mut self) -> io::Result<()> {
        let seq = self.active.seq;
        self.encode_record(Kind::Seal, 0, 0, &[])?;
        self.write(true)?;
        self.sealed.push_back(Sealed { seq, top: self.active.top });
        self.active = open_segment(&*self.disk, &self.spares, &self.keys, seq + 1)?;
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
pub(super) fn open_segment(disk: &dyn Disk, spares: &Spares, keys: &Keyring, seq: u64) -> io::Result<Active> {
    let (header, prepared) = spares.take(seq)?;
    let missing = |key| io::Error::other(format!("key {key} of the raft log was withdrawn while it was in use"));
    let seal = Seal { header, cipher: keys.get(record::key_of(&header)).map_err(missing)? };
    let name = segment_name(seq);
    disk.rename(&prepared, &name)?;
    disk.sync_dir()?;
    spares.want(seq + 1);
    let start = SEGMENT_HEADER as u64;
    Ok(Active { file: disk.open(&name)?, seq, seal, pos: start, durable: start, top: None })
}
