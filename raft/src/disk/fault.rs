//! A disk in memory that loses what was not synced, tears writes at sectors, fills up and breaks, and whose power can be
//! cut at any operation.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::{Disk, DiskFile};

/// What survives of a write that was not synced is a matter of sectors.
const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct FaultDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names since the last sync of the directory. A file system loses the last of them first.
    pending_names: Vec<NameChange>,
    /// Operations until the power is cut; none is done afterwards.
    power: Option<usize>,
    operations: usize,
    next: u64,
    capacity: Option<usize>,
    held: bool,
    waiting: usize,
    creates_held: bool,
    creates_waiting: usize,
    /// So many of the next files cannot be made.
    creates_failing: usize,
    broken: bool,
}

#[derive(Clone)]
enum NameChange {
    Set(String, u64),
    Remove(String),
    Rename(String, String, u64),
}

fn change_name(names: &mut BTreeMap<String, u64>, change: NameChange) {
    match change {
        NameChange::Set(name, id) => drop(names.insert(name, id)),
        NameChange::Remove(name) => drop(names.remove(&name)),
        NameChange::Rename(from, to, id) => {
            names.remove(&from);
            names.insert(to, id);
        }
    }
}

impl State {
    fn change_name(&mut self, change: NameChange) {
        change_name(&mut self.names, change.clone());
        self.pending_names.push(change);
    }

    /// Counts an operation that changes the disk. On an error the power goes during it: it may still be done in part.
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match &mut self.power {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                if *left == 0 { Err(io::Error::other("the power goes")) } else { Ok(()) }
            }
        }
    }

    fn is_dark(&self) -> bool {
        self.power == Some(0)
    }
}

#[derive(Clone, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
}

impl FaultDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// From now on no sync of a file returns.
    pub(crate) fn hold_syncs(&self) {
        self.state().held = true;
    }

    /// Lets syncs return again.
    pub(crate) fn release_syncs(&self) {
        self.state().held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until a sync is held up.
    pub(crate) fn wait_for_held_sync(&self) {
        let state = self.state();
        drop(self.shared.changed.wait_while(state, |state| state.waiting == 0).unwrap());
    }

    /// From now on no file is made; who makes one waits.
    pub(crate) fn hold_creates(&self) {
        self.state().creates_held = true;
    }

    /// Lets files be made again.
    pub(crate) fn release_creates(&self) {
        self.state().creates_held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until the making of a file is held up.
    pub(crate) fn wait_for_held_create(&self) {
        let state = self.state();
        drop(self.shared.changed.wait_while(state, |state| state.creates_waiting == 0).unwrap());
    }

    /// The next `count` files cannot be made, as when no descriptor is left.
    pub(crate) fn fail_creates(&self, count: usize) {
        self.state().creates_failing = count;
    }

    /// Waits until that many were tried.
    pub(crate) fn wait_for_failed_creates(&self) {
        let state = self.state();
        drop(self.shared.changed.wait_while(state, |state| state.creates_failing > 0).unwrap());
    }

    /// Files together may have this many bytes.
    pub(crate) fn limit(&self, capacity: Option<usize>) {
        self.state().capacity = capacity;
    }

    /// From now on syncs fail.
    pub(crate) fn break_syncs(&self) {
        self.state().broken = true;
    }

    pub(crate) fn used(&self) -> usize {
        let state = self.state();
        state.names.values().map(|id| state.files[id].live.len()).sum()
    }

    /// The disk after a loss of power. Each sector that was not synced is kept or lost as `keep` says, each
    /// file name that was not synced as well.
    pub(crate) fn crash(&self, mut keep: impl FnMut() -> bool) -> FaultDisk {
        let mut state = self.state().clone();
        for change in std::mem::take(&mut state.pending_names) {
            if !keep() {
                break;
            }
            change_name(&mut state.durable_names, change);
        }
        state.names = state.durable_names.clone();
        state.power = None;
        (state.held, state.waiting) = (false, 0);
        for file in state.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                let mut at = offset;
                while at < offset + bytes.len() {
                    let end = (at / SECTOR + 1) * SECTOR;
                    let end = end.min(offset + bytes.len());
                    if keep() {
                        file.durable[at..end].copy_from_slice(&bytes[at - offset..end - offset]);
                    }
                    at = end;
                }
            }
            file.live = file.durable.clone();
        }
        FaultDisk { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// The disk after a loss of power that let exactly the first `cut` bytes since the last sync through.
    pub(crate) fn crash_after(&self, mut cut: usize) -> FaultDisk {
        let mut state = self.state().clone();
        (state.held, state.waiting) = (false, 0);
        for file in state.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                let kept = bytes.len().min(cut);
                cut -= kept;
                file.durable[offset..offset + kept].copy_from_slice(&bytes[..kept]);
            }
            file.live = file.durable.clone();
        }
        FaultDisk { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// The power goes in the `count`th operation from now that changes the disk (1 is the next): it may be done, in part or
    /// not at all, as the [crash](Self::crash) says, and everything after it fails.
    pub(crate) fn cut_power_in(&self, count: usize) {
        assert!(count > 0, "operations are counted from 1");
        self.state().power = Some(count);
    }

    /// The operations so far that change the disk.
    pub(crate) fn operations(&self) -> usize {
        self.state().operations
    }

    /// How many bytes were written since the last sync.
    pub(crate) fn unsynced(&self) -> usize {
        self.state().files.values().flat_map(|file| &file.pending).map(|(_, bytes)| bytes.len()).sum()
    }

    /// Changes bytes behind everyone's back.
    pub(crate) fn corrupt(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = state.names[name];
        let file = state.files.get_mut(&id).unwrap();
        change(&mut file.live);
        file.durable = file.live.clone();
    }
}

impl Disk for FaultDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let id = state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.files[id].live.clone())
    }

    fn create(&self, name: &str, parts: &[&[u8]], len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.creates_waiting += 1;
        self.shared.changed.notify_all();
        state = self.shared.changed.wait_while(state, |state| state.creates_held).unwrap();
        state.creates_waiting -= 1;
        if let Some(left) = state.creates_failing.checked_sub(1) {
            state.creates_failing = left;
            self.shared.changed.notify_all();
            return Err(io::Error::other("too many open files"));
        }
        drop(state);
        let used = self.used();
        let mut state = self.state();
        if state.capacity.is_some_and(|capacity| used + len as usize > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if state.is_dark() {
            return state.operation();
        }
        let mut bytes = parts.concat();
        bytes.resize(bytes.len().max(len as usize), 0);
        state.next += 1;
        let id = state.next;
        let done = state.operation();
        let contents = match &done {
            Ok(()) => Contents { live: bytes.clone(), durable: bytes, pending: Vec::new() },
            Err(_) => Contents { durable: vec![0; bytes.len()], live: bytes.clone(), pending: vec![(0, bytes)] },
        };
        state.files.insert(id, contents);
        state.change_name(NameChange::Set(name.into(), id));
        done
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let id = *self.state().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(FaultFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.is_dark() {
            return state.operation();
        }
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_name(NameChange::Rename(from.into(), to.into(), id));
        state.operation()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.is_dark() {
            return state.operation();
        }
        state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.change_name(NameChange::Remove(name.into()));
        state.operation()
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.durable_names = state.names.clone();
        state.pending_names.clear();
        Ok(())
    }
}

struct FaultFile {
    disk: FaultDisk,
    id: u64,
}

impl DiskFile for FaultFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.is_dark() {
            return state.operation();
        }
        let done = state.operation();
        let file = state.files.get_mut(&self.id).unwrap();
        let offset = offset as usize;
        assert!(offset + bytes.len() <= file.live.len(), "a write beyond what was allocated");
        file.live[offset..offset + bytes.len()].copy_from_slice(bytes);
        file.pending.push((offset, bytes.to_vec()));
        done
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operation()?;
        if state.broken {
            return Err(io::Error::other("the disk is broken"));
        }
        state.waiting += 1;
        self.disk.shared.changed.notify_all();
        state = self.disk.shared.changed.wait_while(state, |state| state.held).unwrap();
        state.waiting -= 1;
        let file = state.files.get_mut(&self.id).unwrap();
        file.durable = file.live.clone();
        file.pending.clear();
        Ok(())
    }
}
