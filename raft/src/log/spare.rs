//! Prepares the next segment ahead of time, and with it keeps the reserve of disk space.
//!
//! While the next segment cannot be made because the disk is full, the disk counts as short: new proposals are
//! refused, and what was accepted before still fits into the open segment. Any other failure is tried again as well; it
//! counts only when the writer needs the segment at that moment.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::record::{self, Header, Owner};
use super::replay::segment_name;
use crate::disk::{self, Disk};
use crate::keys::Keyring;

/// How long to wait before another try to make a segment: a full disk may have room again, the process descriptors.
const RETRY: Duration = Duration::from_millis(500);

/// The slot between the writer, who takes prepared segments, and the thread that prepares them.
pub(super) struct Spares {
    disk: Arc<dyn Disk>,
    owner: Owner,
    keys: Keyring,
    segment_size: u64,
    slot: Mutex<Slot>,
    changed: Condvar,
    short: AtomicBool,
}

#[derive(Default)]
struct Slot {
    wanted: Option<u64>,
    /// Whether the writer waits for it.
    awaited: bool,
    ready: Option<(u64, Header)>,
    failed: Option<io::Error>,
    closed: bool,
}

impl Spares {
    pub(super) fn new(disk: Arc<dyn Disk>, owner: Owner, keys: Keyring, segment_size: u64) -> Self {
        let (slot, changed) = Default::default();
        Self { disk, owner, keys, segment_size, slot, changed, short: AtomicBool::new(false) }
    }

    /// Whether the reserve could not be made.
    pub(super) fn short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether it is known that there is a reserve, or that there is none.
    #[cfg(test)]
    pub(super) fn settled(&self) -> bool {
        self.short() || self.lock().ready.is_some()
    }

    /// Orders a segment.
    pub(super) fn want(&self, seq: u64) {
        self.lock().wanted = Some(seq);
        self.changed.notify_all();
    }

    /// Waits for an ordered segment and gives its header and the name of its file. While the disk is full this
    /// waits, so that a full disk stops progress but breaks nothing; any other failure from now on is returned. What was
    /// prepared for an older key is made again.
    pub(super) fn take(&self, seq: u64) -> io::Result<(Header, String)> {
        self.lock().awaited = true;
        let taken = self.wait_for(seq);
        self.lock().awaited = false;
        taken
    }

    fn wait_for(&self, seq: u64) -> io::Result<(Header, String)> {
        let mut slot = self.lock();
        loop {
            if let Some((_, header)) = slot.ready.take_if(|(ready, _)| *ready == seq) {
                if record::is_current(&header, self.keys.current_id()) {
                    return Ok((header, prepared_name(seq)));
                }
                slot.wanted = Some(seq);
                self.changed.notify_all();
            }
            if let Some(error) = slot.failed.take() {
                return Err(error);
            }
            if slot.closed {
                return Err(io::Error::other("the raft log is closed"));
            }
            slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Prepares segments as they are ordered, until closed.
    pub(super) fn run(&self) {
        while let Some(seq) = self.next_order() {
            let header = record::segment_header(seq, self.owner, self.keys.current_id());
            let made = self.disk.create(&prepared_name(seq), &[&header], self.segment_size);
            match made {
                Ok(()) => {
                    self.short.store(false, Ordering::Relaxed);
                    self.lock().ready = Some((seq, header));
                }
                Err(error) if disk::is_full(&error) => {
                    if !self.short.swap(true, Ordering::Relaxed) {
                        tracing::error!(%error, "the disk is full: no new changes are accepted until there is room");
                    }
                    self.again(self.lock(), seq);
                }
                Err(error) => {
                    let mut slot = self.lock();
                    if slot.awaited {
                        slot.failed = Some(error);
                    } else {
                        tracing::warn!(%error, "the next segment of the raft log could not be made; will try again");
                        self.again(slot, seq);
                    }
                }
            }
            self.changed.notify_all();
        }
    }

    /// Orders a segment once more, after a pause.
    fn again(&self, mut slot: MutexGuard<'_, Slot>, seq: u64) {
        slot.wanted = Some(seq);
        drop(self.changed.wait_timeout_while(slot, RETRY, |slot| !slot.closed));
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn next_order(&self) -> Option<u64> {
        let mut slot = self.lock();
        loop {
            if slot.closed {
                return None;
            }
            if let Some(seq) = slot.wanted.take() {
                return Some(seq);
            }
            slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name under which a segment waits to be used.
pub(super) fn prepared_name(seq: u64) -> String {
    format!("{}.new", segment_name(seq))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fault::FaultDisk;

    struct Closing<'a>(&'a Spares);

    impl Drop for Closing<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }

    /// Has a thread prepare segments on this disk while `test` goes on.
    fn with_spares(disk: &FaultDisk, test: impl FnOnce(&Spares)) {
        let spares = Spares::new(Arc::new(disk.clone()), Owner::new(1, "c"), Keyring::clear(), 4096);
        std::thread::scope(|scope| {
            scope.spawn(|| spares.run());
            // Also when the test fails, or the thread would never end.
            let _closing = Closing(&spares);
            test(&spares);
        });
    }

    #[test]
    fn a_failure_that_has_passed_when_the_segment_is_needed_harms_nobody() {
        let disk = FaultDisk::default();
        disk.fail_creates(1);
        with_spares(&disk, |spares| {
            spares.want(7);
            disk.wait_for_failed_creates();
            let dealt_with = |slot: &Slot| slot.wanted.is_some() || slot.ready.is_some() || slot.failed.is_some();
            while !dealt_with(&spares.lock()) {
                std::thread::yield_now();
            }
            let (_, name) = spares.take(7).expect("a segment");
            assert_eq!((name, spares.short()), (prepared_name(7), false));
        });
    }

    #[test]
    fn a_failure_that_lasts_is_told_to_who_needs_the_segment() {
        let disk = FaultDisk::default();
        disk.fail_creates(usize::MAX);
        with_spares(&disk, |spares| {
            spares.want(7);
            assert!(spares.take(7).is_err());
        });
    }
}
