//! The durable log: segments of checksummed records, one writing thread, everything not yet purged in
//! memory.
//!
//! `append` returns when the entries can be read; whoever appended is told after the sync. Votes are
//! records of the same log, so their order with entries is the order of the calls. The log never looks
//! at a payload.

#[cfg(test)]
mod cuts;
mod memory;
mod record;
mod replay;
mod spare;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, entry::RaftEntry};
use tokio::sync::oneshot;

use self::memory::Memory;
pub(crate) use self::record::Owner;
use self::record::{SEGMENT_HEADER, Seal};
pub use self::replay::LogError;
use self::replay::{Recovered, replay, segment_name};
use self::spare::Spares;
use self::writer::{Active, Op, Queue, Writer, open_segment};
use crate::counters::Meter;
use crate::disk::Disk;
use crate::keys::Keyring;
use crate::types::{Entry, LogId, Types, Vote};

/// The length of a segment. Two exist at least: the open one and the reserve.
pub(crate) const SEGMENT_SIZE: u64 = 8 << 20;

/// The most bytes of entries that are read for one append request.
pub(crate) const READ_LIMIT: usize = 3 << 20;

/// A handle to the log. Clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Mutex<Memory>,
    queue: Arc<Queue>,
    spares: Arc<Spares>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Log {
    /// Opens the log in `disk`, or makes one; an owner that has had one before finds it missing when there is none.
    /// Blocks on the disk.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        owner: Owner,
        keys: Keyring,
        had_one: bool,
        segment_size: u64,
        meter: Arc<Meter>,
    ) -> Result<Self, LogError> {
        let recovered = replay(&*disk, owner, &keys)?;
        if had_one && recovered.tail.is_none() && recovered.sealed.is_empty() {
            return Err(LogError::Missing { file: segment_name(1) });
        }
        let io_error = |action, file: &str| {
            let file = file.to_owned();
            move |source| LogError::Io { action, file, source }
        };
        for name in disk.list().map_err(io_error("list", "."))? {
            if name.starts_with("log-") && name.ends_with(".new") {
                disk.remove(&name).map_err(io_error("remove", &name))?;
            }
        }

        let spares = Arc::new(Spares::new(disk.clone(), owner, keys.clone(), segment_size));
        let preparing = spares.clone();
        let mut threads = vec![spawn("raft-log-spare", move || preparing.run())?];
        let active = match open_active(&*disk, &spares, &keys, &recovered) {
            Ok(active) => active,
            Err(error) => {
                spares.close();
                return Err(error);
            }
        };

        let Recovered { hard, entries, sealed, .. } = recovered;
        let mut writer = Writer {
            disk,
            queue: Arc::default(),
            spares: spares.clone(),
            keys,
            active,
            sealed,
            hard: hard.clone(),
            segment_size,
            buffer: Vec::new(),
            unmarked: true,
            failed: None,
            meter,
        };
        // A crash may have come between the making of this segment and the record of the hard state in it.
        if writer.active.pos == SEGMENT_HEADER as u64 {
            writer.repeat_hard_state().map_err(io_error("write", &segment_name(writer.active.seq)))?;
        }
        let memory = Memory::new(entries, hard);
        let queue = writer.queue.clone();
        // A segment of an older format or key takes no more; there is nobody to be told.
        queue.push(Op::Rekey(oneshot::channel().0)).map_err(io_error("write", "."))?;
        threads.push(spawn("raft-log", move || writer.run())?);
        let shared = Shared { memory: Mutex::new(memory), queue, spares, threads: Mutex::new(threads) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Goes on under the key for new files, if the open segment has another one.
    pub(crate) async fn rekey(&self) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        self.shared.queue.push(Op::Rekey(done))?;
        durable.await.map_err(|_| io::Error::other("the raft log is closed"))?
    }

    /// Whether the reserve of disk space is gone, so that nothing new may be accepted.
    pub(crate) fn disk_short(&self) -> bool {
        self.shared.spares.short()
    }

    /// The last entry that is in a snapshot and not in the log any more.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.memory().purged()
    }

    /// The bytes of payloads in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.memory().bytes()
    }

    /// Writes what is queued and ends the threads. Blocks.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn close(&self) {
        self.queue.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads.into_iter().rev() {
            // The writer is drained first. It may be waiting for a segment that a full disk does not give;
            // then its last entries, which nobody was told are durable, are given up.
            while !thread.is_finished() && !self.spares.short() {
                thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                self.spares.close();
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the raft log has panicked");
            }
            self.spares.close();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LogError> {
    thread::Builder::new().name(name.into()).spawn(run).map_err(|source| LogError::Io {
        action: "start a thread for",
        file: ".".into(),
        source,
    })
}

/// Opens the segment to go on with: the last one, cleaned of a torn write and made durable, or a new one.
fn open_active(disk: &dyn Disk, spares: &Spares, keys: &Keyring, recovered: &Recovered) -> Result<Active, LogError> {
    let Some(tail) = recovered.tail else {
        let seq = recovered.sealed.back().map_or(1, |last| last.seq + 1);
        spares.want(seq);
        return open_segment(disk, spares, keys, seq).map_err(|source| LogError::Io {
            action: "create",
            file: segment_name(seq),
            source,
        });
    };
    let name = segment_name(tail.seq);
    let cipher =
        keys.get(record::key_of(&tail.header)).map_err(|key| LogError::Encrypted { file: name.clone(), key })?;
    let open = || {
        let mut file = disk.open(&name)?;
        if tail.torn > 0 {
            tracing::warn!(file = name, offset = tail.end, bytes = tail.torn, "cutting off a torn write");
            file.write_at(&vec![0; tail.torn], tail.end as u64)?;
        }
        // What was read may have come from memory that a killed process left to the kernel.
        file.sync()?;
        Ok(file)
    };
    let file = open().map_err(|source| LogError::Io { action: "recover", file: name.clone(), source })?;
    spares.want(tail.seq + 1);
    let end = tail.end as u64;
    let seal = Seal { header: tail.header, cipher };
    Ok(Active { file, seq: tail.seq, seal, pos: end, durable: end, top: tail.top })
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.memory().read(from, to, usize::MAX))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.memory().read(start, end, READ_LIMIT))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory().vote())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged(), last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        self.shared.queue.push(Op::Vote(*vote, done))?;
        durable.await.map_err(|_| io::Error::other("the raft log is closed"))??;
        self.memory().set_vote(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.memory().set_committed(committed);
        self.shared.queue.push(Op::Committed(committed))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory().committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        // Readable before it is queued: when the callback runs, everyone sees the entries.
        self.memory().append(&entries)?;
        self.shared.queue.push(Op::Append(entries, callback))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.memory().truncate_after(last.map(|id| id.index));
        self.shared.queue.push(Op::Truncate(last))
    }

    async fn purge(&mut self, up_to: LogId) -> Result<(), io::Error> {
        self.memory().purge(up_to);
        self.shared.queue.push(Op::Purge(up_to))
    }
}

/// The log id of an entry.
fn id_of(entry: &Entry) -> LogId {
    entry.log_id()
}
