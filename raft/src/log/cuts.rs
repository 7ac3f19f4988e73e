//! The power goes at every single operation of a life with appends, votes, truncations, snapshots, purges, new segments
//! and new keys; and again at every operation of the recovery from that.

use std::sync::Arc;

use openraft::storage::RaftLogStorage;

use super::tests::{Model, append, block_on, entry, owner};
use super::{Log, LogError};
use crate::disk::Disk;
use crate::disk::fault::FaultDisk;
use crate::keys::Keyring;
use crate::snapshot::SnapshotStore;
use crate::types::{LogId, SnapshotMeta, StoredMembership, Vote, log_id};

const SEGMENT: u64 = 2048;

/// A log and snapshots on a disk whose power goes, and all that they may be afterwards.
struct Life {
    disk: FaultDisk,
    keys: Keyring,
    model: Model,
    /// What the log may be after a crash: as it was when everything was last durable, and after each step since.
    possible: Vec<Model>,
    snapshot: Option<u64>,
    possible_snapshots: Vec<Option<u64>>,
}

impl Life {
    fn new() -> Self {
        Self {
            disk: FaultDisk::default(),
            keys: Keyring::new(&[(1, [1; 32])]),
            model: Model::default(),
            possible: vec![Model::default()],
            snapshot: None,
            possible_snapshots: vec![None],
        }
    }

    fn durable(&mut self) {
        self.possible = vec![self.model.clone()];
    }

    async fn append(&mut self, log: &mut Log, term: u64, sizes: &[usize]) -> std::io::Result<()> {
        let mut entries = Vec::new();
        for size in sizes {
            let index = self.model.last().map_or(0, |id| id.index + 1);
            let payload = vec![index as u8 + 1; *size];
            entries.push(entry(index, term, &payload));
            self.model.entries.push_back((index, term, payload));
            self.possible.push(self.model.clone());
        }
        append(log, entries).await.await?;
        self.durable();
        Ok(())
    }

    async fn vote(&mut self, log: &mut Log, term: u64) -> std::io::Result<()> {
        self.model.vote = Some(Vote::new(term, 1));
        self.possible.push(self.model.clone());
        log.save_vote(&Vote::new(term, 1)).await?;
        self.durable();
        Ok(())
    }

    async fn truncate(&mut self, log: &mut Log, count: usize) -> std::io::Result<()> {
        let left = self.model.entries.len() - count;
        self.model.entries.truncate(left);
        self.possible.push(self.model.clone());
        log.truncate_after(self.model.last()).await
    }

    /// A snapshot, and then the log without what is in it.
    async fn compact(&mut self, log: &mut Log, keep: usize) -> Result<(), Box<dyn std::error::Error>> {
        let last = self.model.last();
        self.possible_snapshots.push(last.map(|id| id.index));
        self.snapshots(&self.disk).save(&meta(last), &[last.map_or(0, |id| id.index) as u8; 700])?;
        self.snapshot = last.map(|id| id.index);
        self.possible_snapshots = vec![self.snapshot];
        let count = self.model.entries.len() - keep;
        let up_to = self.model.entries.drain(..count).next_back().map(|(index, term, _)| log_id(term, index));
        if let Some(up_to) = up_to {
            self.model.purged = Some(up_to);
            self.possible.push(self.model.clone());
            log.purge(up_to).await?;
        }
        Ok(())
    }

    fn snapshots(&self, disk: &FaultDisk) -> SnapshotStore {
        SnapshotStore::new(Arc::new(disk.clone()), 1, "c".into(), self.keys.clone())
    }

    /// Lives until the end or until the power goes.
    async fn live(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let log = &mut open(&self.disk, &self.keys, false)?;
        self.vote(log, 1).await?;
        self.append(log, 1, &[10, 300, 40]).await?;
        self.append(log, 1, &[500, 500]).await?;
        self.truncate(log, 2).await?;
        self.vote(log, 2).await?;
        self.append(log, 2, &[600]).await?;
        log.save_committed(self.model.last()).await?;
        self.append(log, 2, &[600, 7]).await?;
        self.compact(log, 2).await?;
        self.append(log, 2, &[900]).await?;
        self.keys.set(&[(2, [2; 32]), (1, [1; 32])]);
        log.rekey().await?;
        self.durable();
        self.append(log, 2, &[100, 800]).await?;
        self.compact(log, 1).await?;
        self.vote(log, 5).await?;
        self.append(log, 5, &[1000]).await?;
        self.truncate(log, 1).await?;
        self.append(log, 5, &[20]).await?;
        log.close();
        Ok(())
    }

    /// What came back is something that could be, nothing that was acknowledged is missing, and it goes on from there.
    async fn check(&self, disk: &FaultDisk, what: &str) {
        let snapshot = self.snapshots(disk);
        snapshot.tidy().unwrap_or_else(|e| panic!("{what}: {e}"));
        let found = snapshot.load().unwrap_or_else(|e| panic!("{what}: {e}"));
        let found = found.map(|(meta, _)| meta.last_log_id.unwrap().index);
        assert!(self.possible_snapshots.contains(&found), "{what}: the snapshot is {found:?}");
        let mut log = open(disk, &self.keys, self.model.vote.is_some() && self.possible.len() == 1)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let model = Model::of(&mut log).await;
        assert!(self.possible.contains(&model), "{what}: found {model:?}\nof {:?}", self.possible);
        assert!(model.purged.map(|id| id.index) <= found, "{what}: purged without a snapshot");
        assert!(log.read_committed().await.unwrap() <= model.last(), "{what}");
        let index = model.last().map_or(0, |id| id.index + 1);
        append(&mut log, vec![entry(index, 9, b"on")]).await.await.unwrap();
        log.close();
        let again = Model::of(&mut open(disk, &self.keys, true).unwrap()).await;
        assert_eq!(again.entries.back(), Some(&(index, 9, b"on".to_vec())), "{what}: it did not go on");
    }
}

fn open(disk: &FaultDisk, keys: &Keyring, had_log: bool) -> Result<Log, LogError> {
    Log::open(Arc::new(disk.clone()), owner(), keys.clone(), had_log, SEGMENT, Arc::default())
}

fn meta(last_log_id: Option<LogId>) -> SnapshotMeta {
    SnapshotMeta { last_log_id, last_membership: StoredMembership::default() }
}

/// Which of the things that were not synced survive.
type Keep = Box<dyn FnMut() -> bool>;

/// What survives of what was not synced: nothing, everything, every second thing, or the first things.
fn survivals() -> Vec<(&'static str, Keep)> {
    let (mut odd, mut count) = (false, 0);
    vec![
        ("nothing", Box::new(|| false)),
        ("all", Box::new(|| true)),
        (
            "every second",
            Box::new(move || {
                odd = !odd;
                odd
            }),
        ),
        (
            "the first two",
            Box::new(move || {
                count += 1;
                count <= 2
            }),
        ),
    ]
}

#[test]
fn the_power_may_go_at_every_operation() {
    block_on(async {
        let mut whole = Life::new();
        whole.live().await.unwrap();
        let operations = whole.disk.operations();
        assert!(operations > 50, "{operations} operations are no life");
        for cut in 1..=operations {
            let mut life = Life::new();
            life.disk.cut_power_in(cut);
            // Two threads write, so that one may be a little ahead of where it was the last time, even at the end.
            let ended = life.live().await;
            assert!(ended.is_err() || cut + 8 > operations, "the cut at {cut} of {operations} was not noticed");
            for (kept, keep) in survivals() {
                let disk = life.disk.crash(keep);
                life.check(&disk, &format!("cut at {cut}, {kept} of the rest survived")).await;
            }
        }
    });
}

#[test]
fn the_power_may_go_at_every_operation_of_a_recovery() {
    block_on(async {
        let mut whole = Life::new();
        whole.live().await.unwrap();
        let operations = whole.disk.operations();
        for cut in (1..=operations).step_by(3) {
            let mut life = Life::new();
            life.disk.cut_power_in(cut);
            let _ = life.live().await;
            for second in 1..=6 {
                let disk = life.disk.crash(|| true);
                disk.cut_power_in(second);
                if let Ok(log) = open(&disk, &life.keys, false) {
                    log.close();
                }
                for (kept, keep) in survivals() {
                    let disk = disk.crash(keep);
                    life.check(&disk, &format!("cut at {cut} and at {second}, {kept} of the rest survived")).await;
                }
            }
        }
    });
}

/// The rule for bits that flip at rest: any one of them is told with its place, or nothing comes of it.
#[test]
fn every_flipped_byte_is_told_or_harmless() {
    block_on(async {
        let mut life = Life::new();
        life.live().await.unwrap();
        let names: Vec<String> = life.disk.list().unwrap().into_iter().filter(|name| !name.ends_with(".new")).collect();
        assert!(names.iter().any(|name| name.starts_with("snapshot-")));
        let newest = names.iter().rfind(|name| name.starts_with("snapshot-")).unwrap();
        for name in names.iter().filter(|name| name.starts_with("log-") || *name == newest) {
            let whole = life.disk.read(name).unwrap();
            let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let last = names.iter().rfind(|name| name.starts_with("log-")) == Some(name);
            for at in 0..used {
                let disk = life.disk.crash(|| true);
                disk.corrupt(name, |bytes| bytes[at] ^= 0x04);
                let told = match name == newest {
                    true => life.snapshots(&disk).load().err().map(|e| e.to_string()),
                    false => match open(&disk, &life.keys, true) {
                        Err(error) => Some(error.to_string()),
                        Ok(mut log) => {
                            let found = Model::of(&mut log).await;
                            assert_eq!(found, life.model, "byte {at} of {name} was lost silently");
                            None
                        }
                    },
                };
                match told {
                    Some(text) => assert!(text.contains(name.as_str()) && text.contains("byte"), "{at}: {text}"),
                    // Only the mark at the very end may be lost, which says nothing.
                    None => assert!(last && at + 80 > used, "byte {at} of {used} of {name} was not told"),
                }
            }
        }
    });
}
