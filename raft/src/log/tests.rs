//! The log against a model, on a disk that forgets, tears, fills up and breaks.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use proptest::prelude::*;

use super::replay::segment_name;
use super::{Log, LogError, Owner};
use crate::disk::Disk;
use crate::disk::fault::FaultDisk;
use crate::keys::Keyring;
use crate::types::{self, Entry, EntryPayload, LogId, Payload, Types, Vote, log_id};

const SEGMENT: u64 = 4096;

pub(super) fn owner() -> Owner {
    Owner::new(1, "c")
}

/// Most of the tests run on sealed segments, which do all that clear ones do.
fn keys() -> Keyring {
    Keyring::new(&[(1, [7; 32])])
}

fn open(disk: &FaultDisk) -> Result<Log, LogError> {
    open_with(disk, keys())
}

fn open_with(disk: &FaultDisk, keys: Keyring) -> Result<Log, LogError> {
    Log::open(Arc::new(disk.clone()), owner(), keys, false, SEGMENT, Arc::default())
}

pub(super) fn entry(index: u64, term: u64, payload: &[u8]) -> Entry {
    Entry::new(log_id(term, index), EntryPayload::Normal(Payload(Bytes::copy_from_slice(payload))))
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Queues entries; the answer comes after the sync.
pub(super) async fn append(log: &mut Log, entries: Vec<Entry>) -> impl Future<Output = io::Result<()>> + use<> {
    let (done, durable) = Types::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    async move { durable.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed"))) }
}

/// What a log must look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) entries: VecDeque<(u64, u64, Vec<u8>)>,
    pub(super) purged: Option<LogId>,
    pub(super) vote: Option<Vote>,
}

impl Model {
    pub(super) async fn of(log: &mut Log) -> Self {
        let state = log.get_log_state().await.unwrap();
        let entries = log.try_get_log_entries(..).await.unwrap();
        let entries: VecDeque<_> = entries
            .into_iter()
            .map(|entry| {
                let EntryPayload::Normal(payload) = entry.payload else { panic!("only data was written") };
                (entry.log_id.index, types::term_of(&entry.log_id), payload.0.to_vec())
            })
            .collect();
        let last = entries.back().map(|(index, term, _)| log_id(*term, *index)).or(state.last_purged_log_id);
        assert_eq!(state.last_log_id, last);
        Self { entries, purged: state.last_purged_log_id, vote: log.read_vote().await.unwrap() }
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.back().map(|(index, term, _)| log_id(*term, *index)).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |id| id.index + 1)
    }
}

/// A log, what it must look like, and what it may look like after a crash.
struct World {
    disk: FaultDisk,
    log: Log,
    model: Model,
    /// The states after each record since everything was last known as durable.
    possible: Vec<Model>,
    term: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    NewTerm,
    Truncate(u64),
    Purge(u64),
    InstallBeyond(u64),
    Vote,
    Commit,
    Reopen,
    /// Appends of these sizes are on their way when the power goes; the bits say what survives.
    Crash(Vec<Vec<usize>>, Vec<bool>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = || prop::collection::vec(0usize..700, 1..6);
    let step = prop_oneof![
        8 => sizes().prop_map(Step::Append),
        1 => Just(Step::NewTerm),
        2 => (1u64..6).prop_map(Step::Truncate),
        2 => (1u64..20).prop_map(Step::Purge),
        1 => (1u64..20).prop_map(Step::InstallBeyond),
        2 => Just(Step::Vote),
        2 => Just(Step::Commit),
        1 => Just(Step::Reopen),
        2 => (prop::collection::vec(sizes(), 0..4), prop::collection::vec(any::<bool>(), 64))
            .prop_map(|(appends, keep)| Step::Crash(appends, keep)),
    ];
    prop::collection::vec(step, 1..40)
}

impl World {
    /// Appends until the disk has no room for one more segment. Between two entries the thread that prepares segments
    /// has its turn: an entry that comes before it knows of the shortage waits for room.
    async fn append_until_short(&mut self) {
        loop {
            wait_for("a reserve, or none", || self.log.shared.spares.settled());
            if self.log.disk_short() {
                return;
            }
            self.append(&[300]).await.await.unwrap();
        }
    }

    fn new() -> Self {
        let disk = FaultDisk::default();
        let log = open(&disk).unwrap();
        Self { disk, log, model: Model::default(), possible: vec![Model::default()], term: 1 }
    }

    fn changed(&mut self) {
        self.possible.push(self.model.clone());
    }

    fn durable(&mut self) {
        self.possible = vec![self.model.clone()];
    }

    async fn append(&mut self, sizes: &[usize]) -> impl Future<Output = io::Result<()>> + use<> {
        let mut entries = Vec::new();
        for size in sizes {
            let index = self.model.next();
            let payload = vec![index as u8 + 1; *size];
            entries.push(entry(index, self.term, &payload));
            self.model.entries.push_back((index, self.term, payload));
            self.changed();
        }
        append(&mut self.log, entries).await
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Append(sizes) => {
                self.append(&sizes).await.await.unwrap();
                self.durable();
            }
            Step::NewTerm => self.term += 1,
            Step::Truncate(count) => {
                // Purged entries are never truncated.
                for _ in 0..count.min(self.model.entries.len() as u64) {
                    self.model.entries.pop_back();
                }
                self.log.truncate_after(self.model.last()).await.unwrap();
                self.changed();
            }
            Step::Purge(count) => {
                let mut up_to = None;
                for _ in 0..count {
                    up_to = self.model.entries.pop_front().map(|(index, term, _)| log_id(term, index)).or(up_to);
                }
                if let Some(up_to) = up_to {
                    self.model.purged = Some(up_to);
                    self.log.purge(up_to).await.unwrap();
                    self.changed();
                }
            }
            Step::InstallBeyond(distance) => {
                let up_to = log_id(self.term, self.model.next() + distance);
                self.model.entries.clear();
                self.model.purged = Some(up_to);
                self.log.purge(up_to).await.unwrap();
                self.changed();
            }
            Step::Vote => {
                self.term += 1;
                let vote = Vote::new(self.term, 1);
                self.log.save_vote(&vote).await.unwrap();
                self.model.vote = Some(vote);
                self.durable();
            }
            Step::Commit => {
                let last = self.model.last();
                self.log.save_committed(last).await.unwrap();
                assert_eq!(
                    self.log.read_committed().await.unwrap().max(last),
                    self.log.read_committed().await.unwrap()
                );
            }
            Step::Reopen => {
                self.log.close();
                self.log = open(&self.disk).unwrap();
                assert_eq!(Model::of(&mut self.log).await, self.model);
                self.durable();
            }
            Step::Crash(appends, keep) => self.crash(&appends, &keep).await,
        }
        assert_eq!(Model::of(&mut self.log).await, self.model);
    }

    async fn crash(&mut self, appends: &[Vec<usize>], keep: &[bool]) {
        self.disk.hold_syncs();
        for sizes in appends {
            // The answer never comes.
            drop(self.append(sizes).await);
        }
        if !appends.is_empty() {
            self.disk.wait_for_held_sync();
        }
        let mut keep = keep.iter().cycle();
        let after = self.disk.crash(|| *keep.next().unwrap());
        self.disk.release_syncs();
        self.log.close();
        self.disk = after;
        self.log = open(&self.disk).unwrap();
        let found = Model::of(&mut self.log).await;
        assert!(self.possible.contains(&found), "found {found:?}\npossible {:?}", self.possible);
        let committed = self.log.read_committed().await.unwrap();
        assert!(committed <= found.last(), "{committed:?} is committed, but {:?} is the last", found.last());
        self.model = found;
        self.durable();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_what_it_was_told(steps in steps()) {
        block_on(async {
            let mut world = World::new();
            for step in steps {
                world.step(step).await;
            }
        });
    }
}

#[test]
fn any_cut_of_the_unsynced_tail_leaves_what_was_acknowledged() {
    block_on(async {
        let mut world = World::new();
        world.append(&[10, 20, 30]).await.await.unwrap();
        world.durable();
        world.disk.hold_syncs();
        let never = world.append(&[100, 0, 7, 300]).await;
        world.disk.wait_for_held_sync();
        let unsynced = world.disk.unsynced();
        assert!(unsynced > 400);
        for cut in 0..=unsynced {
            let disk = world.disk.crash_after(cut);
            let mut log = open(&disk).unwrap();
            let found = Model::of(&mut log).await;
            assert!(world.possible.contains(&found), "cut at {cut}: {found:?}");
            // It goes on, and the torn rest does not come back.
            let index = found.next();
            append(&mut log, vec![entry(index, 9, b"on")]).await.await.unwrap();
            log.close();
            let found = Model::of(&mut open(&disk).unwrap()).await;
            assert_eq!(found.entries.back(), Some(&(index, 9, b"on".to_vec())), "cut at {cut}");
        }
        world.disk.release_syncs();
        never.await.unwrap();
    });
}

/// Each opening asks for a mark, however little room the last record has left.
#[test]
fn a_log_may_be_opened_often_without_anything_new() {
    block_on(async {
        for last in (0..700).step_by(8) {
            let mut world = World::new();
            world.append(&[600, 600, 600, 600, 600]).await.await.unwrap();
            world.append(&[last]).await.await.unwrap();
            world.durable();
            for _ in 0..4 {
                world.step(Step::Reopen).await;
            }
            world.step(Step::Append(vec![700])).await;
            world.step(Step::Reopen).await;
        }
    });
}

#[test]
fn damage_before_the_tail_is_named() {
    block_on(async {
        let mut world = World::new();
        // Each append is durable before the next, and they fill some segments.
        for _ in 0..40 {
            world.append(&[200]).await.await.unwrap();
        }
        world.log.close();
        let first = segment_name(1);
        let whole = world.disk.read(&first).unwrap();
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for at in (0..used).step_by(7) {
            let disk = world.disk.crash(|| true);
            disk.corrupt(&first, |bytes| bytes[at] ^= 0x10);
            match open(&disk) {
                Err(LogError::Damaged { file, offset, .. }) => {
                    assert_eq!(file, first);
                    assert!(offset as usize <= at, "byte {at} was reported at {offset}");
                }
                Err(other) => panic!("byte {at}: {other}"),
                // Padding is not covered, and does not matter.
                Ok(mut log) => assert_eq!(Model::of(&mut log).await, world.model, "byte {at}"),
            }
        }

        // In the last segment too, when something durable stands behind it.
        let names = world.disk.list().unwrap();
        let last = names.iter().rfind(|name| !name.ends_with(".new")).unwrap();
        let disk = world.disk.crash(|| true);
        disk.corrupt(last, |bytes| bytes[100] ^= 1);
        assert!(matches!(open(&disk), Err(LogError::Damaged { file, .. }) if file == *last));

        let disk = world.disk.crash(|| true);
        disk.remove(&segment_name(2)).unwrap();
        assert!(matches!(open(&disk), Err(LogError::Missing { file }) if file == segment_name(2)));
        // The newest one too, if the one to come was prepared already.
        let newest = last.clone();
        let disk = world.disk.crash(|| true);
        disk.remove(&newest).unwrap();
        assert!(matches!(open(&disk), Err(LogError::Missing { file }) if file == newest));
        let disk = world.disk.crash(|| true);
        disk.remove(&first).unwrap();
        assert!(matches!(open(&disk), Err(LogError::Missing { .. })));
        let other = Owner::new(2, "c");
        let opened = Log::open(Arc::new(world.disk.clone()), other, keys(), false, SEGMENT, Arc::default());
        assert!(matches!(opened, Err(LogError::Foreign { found: 1, expected: 2, .. })));
    });
}

#[test]
fn purged_segments_are_removed() {
    block_on(async {
        let mut world = World::new();
        for _ in 0..200 {
            world.append(&[200]).await.await.unwrap();
        }
        let before = world.disk.list().unwrap().len();
        world.step(Step::Purge(195)).await;
        world.append(&[1]).await.await.unwrap();
        world.step(Step::Reopen).await;
        let after = world.disk.list().unwrap().len();
        assert!(before > 10 && after <= 4, "{before} files before, {after} after");
    });
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_full_disk_is_short_and_breaks_nothing() {
    block_on(async {
        let mut world = World::new();
        world.append(&[100]).await.await.unwrap();
        world.disk.limit(Some(3 * SEGMENT as usize));
        world.append_until_short().await;
        // What was accepted before the shortage was seen still has its place.
        world.append(&[300, 300, 300]).await.await.unwrap();
        world.durable();
        // And what exceeds the reserve waits for room instead of failing.
        let waiting = world.append(&[3000, 3000]).await;
        world.disk.limit(None);
        waiting.await.unwrap();
        wait_for("room to be seen", || !world.log.disk_short());
        world.step(Step::Reopen).await;

        // A log on a full disk can be closed.
        world.disk.limit(Some(0));
        world.append_until_short().await;
        drop(world.append(&[3000, 3000]).await);
        world.log.close();
        world.disk.limit(None);
        let found = Model::of(&mut open(&world.disk).unwrap()).await;
        assert!(found.entries.len() >= world.model.entries.len() - 2);
    });
}

#[test]
fn a_broken_disk_acknowledges_nothing_more() {
    block_on(async {
        let mut world = World::new();
        world.append(&[100]).await.await.unwrap();
        world.disk.break_syncs();
        assert!(world.append(&[100]).await.await.is_err());
        assert!(world.append(&[100]).await.await.is_err());
        assert!(world.log.save_vote(&Vote::new(7, 1)).await.is_err());
        assert_eq!(world.log.read_vote().await.unwrap(), None);
    });
}

#[test]
fn keys_change_with_the_segments_and_old_segments_stay_readable() {
    block_on(async {
        let disk = FaultDisk::default();
        let keys = Keyring::clear();
        let mut log = open_with(&disk, keys.clone()).unwrap();
        append(&mut log, vec![entry(0, 1, b"in the clear")]).await.await.unwrap();
        for id in 1..=2u32 {
            keys.set(&[(2, [2; 32]), (1, [1; 32])][2 - id as usize..]);
            log.rekey().await.unwrap();
            log.rekey().await.unwrap();
            append(&mut log, vec![entry(id.into(), 1, b"not in the clear")]).await.await.unwrap();
        }
        log.close();
        let key_of = |seq| disk.read(&segment_name(seq)).unwrap()[12];
        assert_eq!([key_of(1), key_of(2), key_of(3)], [0, 1, 2], "a second call has nothing to do");
        for seq in 2..=3 {
            assert!(!disk.read(&segment_name(seq)).unwrap().windows(9).any(|part| part == b"the clear"));
        }
        assert_eq!(Model::of(&mut open_with(&disk, keys.clone()).unwrap()).await.entries.len(), 3);
        let without = open_with(&disk, Keyring::new(&[(2, [2; 32])]));
        assert!(matches!(without, Err(LogError::Encrypted { key: 1, .. })));
        let wrong = open_with(&disk, Keyring::new(&[(2, [9; 32]), (1, [1; 32])]));
        assert!(matches!(wrong, Err(LogError::Damaged { file, .. }) if file == segment_name(3)));
    });
}

#[test]
fn a_log_that_is_gone_is_missed() {
    let opened = Log::open(Arc::new(FaultDisk::default()), owner(), keys(), true, SEGMENT, Arc::default());
    assert!(matches!(opened, Err(LogError::Missing { .. })));
}
