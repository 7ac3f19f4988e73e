//! What is on disk: older formats, changed bytes, new keys, no room.

use std::path::Path;
use std::process::Command;

use super::harness::{Cluster, until};
use super::items;
use raft::{ProposeError, StartError, keys_in_use};

/// The directory of a member of the first release, cut behind its last record.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_first_format_is_read_and_goes_on_sealed() {
    let mut cluster = Cluster::new();
    cluster.snapshot_every = 20;
    let (dir, fixture) = (cluster.place(1), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/format-1"));
    std::fs::create_dir_all(&dir).unwrap();
    for file in std::fs::read_dir(fixture).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
    cluster.try_start(1, true).await.unwrap();
    let mut written = items(0..60);
    cluster.has(1, &written).await;
    cluster.keys(1).set(&[(3, [3; 32])]);
    cluster.raft(1).rekey().await.unwrap();
    for item in items(60..130) {
        cluster.write(&item).await;
        written.push(item);
    }
    // What was clear goes with the compaction.
    until("sealed files only", || (keys_in_use(&dir).unwrap() == [3].into()).then_some(())).await;
    cluster.kill(1).await;
    cluster.try_start(1, true).await.unwrap();
    cluster.has(1, &written).await;
}

/// A member whose log is damaged is refused, and nothing is cut off. Under a new id it gets everything from the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_member_is_replaced_through_the_leader() {
    let mut cluster = Cluster::with_voters(3).await;
    let mut written = items(0..50);
    for item in &written {
        cluster.write(item).await;
    }
    let victim = 3;
    cluster.has(victim, &written).await;
    cluster.raft(victim).shutdown().await;
    cluster.kill(victim).await;
    // Before the last entry, whose records show that all this was durable; the word of what is committed, of which some
    // may stand behind it, proves nothing. More bytes than the padding of a record has.
    let segment = cluster.dir(victim).join("log-0000000000000001");
    let whole = std::fs::read(&segment).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut bent = whole.clone();
    bent[used - 400..used - 392].iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&segment, &bent).unwrap();
    let refused = cluster.try_start(victim, true).await.unwrap_err();
    assert!(refused.is_damage(), "{refused}");
    assert!(refused.to_string().starts_with("raft log log-0000000000000001 is damaged at byte "), "{refused}");
    assert_eq!(std::fs::read(&segment).unwrap(), bent, "the evidence has changed");

    for item in items(50..60) {
        cluster.write(&item).await;
        written.push(item);
    }
    cluster.start(4).await;
    cluster.join(4).await;
    cluster.raft(cluster.leader().await).remove(victim).await.unwrap();
    cluster.has(4, &written).await;
    // The new one counts: with it and one of the others there is a quorum.
    let other = (1..=2).find(|id| *id != 1).unwrap();
    cluster.kill(other).await;
    cluster.write("with the new member").await;
    cluster.kill(4).await;
    // Its directory is gone: no reason to begin as if it had never voted.
    std::fs::remove_dir_all(cluster.dir(4)).unwrap();
    let refused = cluster.try_start(4, true).await.unwrap_err();
    assert!(refused.is_damage(), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_lost_snapshot_is_named() {
    let mut cluster = Cluster::new();
    cluster.snapshot_every = 20;
    cluster.start(1).await;
    cluster.raft(1).bootstrap(cluster.peer(1)).await.unwrap();
    for item in items(0..50) {
        cluster.write(&item).await;
    }
    let dir = cluster.dir(1);
    let snapshots = || {
        let names = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("snapshot-") && name.len() == 29).collect();
        names.sort();
        names
    };
    until("two snapshots", || (snapshots().len() == 2).then_some(())).await;
    cluster.raft(1).shutdown().await;
    cluster.kill(1).await;
    let newest = dir.join(&snapshots()[1]);
    let whole = std::fs::read(&newest).unwrap();
    let mut bent = whole.clone();
    *bent.last_mut().unwrap() ^= 0x80;
    std::fs::write(&newest, bent).unwrap();
    let refused = cluster.try_start(1, true).await.unwrap_err();
    assert!(refused.is_damage() && refused.to_string().contains("is damaged at byte"), "{refused}");
    for name in snapshots() {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    let refused = cluster.try_start(1, true).await.unwrap_err();
    assert!(refused.is_damage() && refused.to_string().contains("is missing"), "{refused}");
    assert!(matches!(refused, StartError::Snapshot(_)));
}

/// A small file system of its own; `None` where this process may not make one.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(dir: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir_all(dir).unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "shoal-storage-test"]).arg(dir).output();
        mounted.is_ok_and(|done| done.status.success()).then(|| Self(dir.to_owned()))
    }

    fn resize(&self, megabytes: u32) {
        let size = format!("remount,size={megabytes}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the member may still have its files open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_answers_reads_and_recovers_without_a_restart() {
    let mut cluster = Cluster::new();
    let dir = cluster.place(1);
    // Room for the open segment and the one to come, but for no third.
    let Some(disk) = Tmpfs::mount(&dir, 22) else {
        println!("skipped: this needs the right to mount a tmpfs");
        return;
    };
    cluster.start(1).await;
    let raft = cluster.raft(1);
    raft.bootstrap(cluster.peer(1)).await.unwrap();
    let mut accepted = 0;
    let refused = loop {
        assert!(accepted < 100, "the disk is never full");
        match raft.propose(vec![accepted as u8; 500_000]).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, ProposeError::StorageFull { dir: dir.display().to_string() });
    let text =
        format!("the disk of the leader is full: no change is accepted until there is room in {}", dir.display());
    assert_eq!(refused.to_string(), text);
    raft.linearizable().await.unwrap();
    assert_eq!(cluster.applied(1).len(), accepted);
    assert!(!raft.status().stopped);
    disk.resize(64);
    let mut tries = 0;
    while raft.propose(b"room again".to_vec()).await.is_err() {
        tries += 1;
        assert!(tries < 1000, "the room is never seen");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    cluster.kill(1).await;
    cluster.try_start(1, true).await.unwrap();
    until("all that was accepted", || (cluster.applied(1).len() == accepted + 1).then_some(())).await;
    cluster.kill(1).await;
}
