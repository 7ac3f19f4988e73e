//! What is on managers' disks: locked, damaged.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Cluster, IMAGE, SOON, ServiceDraft, refused};
use serde_json::{Value, json};

use crate::members::wait_managers;
use crate::{binaries, with};

async fn update(api: &Api, autolock: bool, query: &str) -> Result<()> {
    api.wait_for("an update of the cluster", SOON, || async {
        let swarm = api.get("/swarm").await.map_err(|e| e.to_string())?;
        let mut spec = swarm["Spec"].clone();
        spec["EncryptionConfig"] = json!({"AutoLockManagers": autolock});
        let path = format!("/swarm/update?version={}{query}", swarm["Version"]["Index"]);
        api.post(&path, &spec).await.map(drop).map_err(|e| e.to_string())
    })
    .await?;
    Ok(())
}

async fn unlock_key(api: &Api) -> Result<String> {
    Ok(api.get("/swarm/unlockkey").await?["UnlockKey"].as_str().context("a key")?.to_owned())
}

async fn state_is(api: &Api, state: &str) -> Result<Value> {
    let info = api
        .wait_for(&format!("the state {state}"), SOON, || async {
            let info = api.get("/info").await.map_err(|e| e.to_string())?;
            if info["Swarm"]["LocalNodeState"] == state { Ok(info) } else { Err(info["Swarm"].to_string()) }
        })
        .await?;
    Ok(info)
}

fn wrapped_keys(data: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(data.join("identity/keys"))?)
}

fn files_contain(dir: &Path, needle: &[u8]) -> Result<Option<String>> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() && std::fs::read(&path)?.windows(needle.len()).any(|part| part == needle) {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_lock_with_the_unlock_key_and_follow_its_rotation() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).build()).await?;
        let before = api.wait_running("web", 3, &[], SOON).await?;
        api.post("/configs/create", &json!({"Name": "c", "Data": "bm9ib2R5IHJlYWRzIHRoaXM="})).await?;
        // Nothing secret is in the clear, autolock or not.
        let data = cluster.host(1).data_dir();
        for (dir, needle) in
            [("identity", "PRIVATE KEY"), ("raft", "nobody reads this"), ("raft", "PRIVATE KEY"), ("agent", "web:")]
        {
            let found = files_contain(&data.join(dir), needle.as_bytes())?;
            ensure!(found.is_none(), "{needle:?} is in {found:?}");
        }

        ensure!(unlock_key(&api).await?.is_empty());
        let open = wrapped_keys(&data)?;
        update(&api, true, "").await?;
        let first = unlock_key(&api).await?;
        ensure!(first.starts_with("SWMKEY-1-") && first.len() == 52, "the key has another form");
        ensure!(!api.get("/swarm").await?.to_string().contains(&first[9..]), "the key is told where it must not be");
        let rewrapped = |from: Vec<u8>| {
            let (api, data) = (cluster.api(1), data.clone());
            async move {
                api.wait_for("the keys to be wrapped anew", SOON, || async {
                    let now = wrapped_keys(&data).map_err(|e| e.to_string())?;
                    if now == from { Err("as before".to_owned()) } else { Ok(()) }
                })
                .await
            }
        };
        rewrapped(open).await?;

        // One is down while the key is rotated: it needs the old one once, and follows then.
        cluster.host(1).kill_daemon()?;
        update(&api, true, "&rotateManagerUnlockKey=true").await?;
        let second = unlock_key(&api).await?;
        ensure!(first != second, "the key was not rotated");
        let kept = wrapped_keys(&data)?;
        cluster.host(1).start_daemon()?;
        let locked = cluster.api(1);
        state_is(&locked, "locked").await?;
        let text = "Swarm is encrypted and needs to be unlocked before it can be used.";
        refused(locked.get("/nodes").await, 503, text)?;
        refused(locked.get("/services").await, 503, text)?;
        ensure!(std::fs::read_to_string(cluster.host(1).log_path())?.contains("this manager is locked"));
        for wrong in ["", "SWMKEY-1-x", second.as_str()] {
            refused(locked.post("/swarm/unlock", &json!({"UnlockKey": wrong})).await, 400, "invalid key")?;
        }
        locked.post("/swarm/unlock", &json!({"UnlockKey": first})).await?;
        state_is(&locked, "active").await?;
        refused(locked.post("/swarm/unlock", &json!({"UnlockKey": first})).await, 409, "swarm is not locked")?;
        wait_managers(&locked, 3).await?;
        rewrapped(kept).await?;

        cluster.host(1).kill_daemon()?;
        cluster.host(1).start_daemon()?;
        state_is(&locked, "locked").await?;
        refused(locked.post("/swarm/unlock", &json!({"UnlockKey": first})).await, 400, "invalid key")?;
        locked.post("/swarm/unlock", &json!({"UnlockKey": second})).await?;
        wait_managers(&locked, 3).await?;

        // Without the lock it starts as before, and no task has noticed anything.
        let kept = wrapped_keys(&data)?;
        update(&api, false, "").await?;
        rewrapped(kept).await?;
        cluster.host(1).kill_daemon()?;
        cluster.host(1).start_daemon()?;
        cluster.host(1).wait_ready().await?;
        wait_managers(&locked, 3).await?;
        let after = api.wait_running("web", 3, &[], SOON).await?;
        ensure!(before.iter().map(|t| (&t.id, t.pid)).eq(after.iter().map(|t| (&t.id, t.pid))), "{before:?} {after:?}");
        Ok(())
    })
    .await;
}

/// Flips a bit in the middle of what the newest segment holds.
fn damage(raft: &Path) -> Result<()> {
    let names = std::fs::read_dir(raft)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let log = |path: &&std::path::PathBuf| {
        path.extension().is_none() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-"))
    };
    let newest = names.iter().filter(log).max().context("a segment")?;
    let mut bytes = std::fs::read(newest)?;
    let used = bytes.iter().rposition(|byte| *byte != 0).context("records")?;
    bytes[used / 2] ^= 1;
    std::fs::write(newest, bytes)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manager_begins_anew_through_a_quorum_and_not_without_one() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(0);
        for n in 0..10 {
            api.create_overlay(&format!("before-{n}")).await?;
        }
        for index in [1, 2] {
            cluster.host(index).kill_daemon()?;
        }
        damage(&cluster.host(2).data_dir().join("raft"))?;
        // Of three, one runs, one is damaged, one is away: no majority, so nobody may decide what the damaged one had.
        cluster.host(2).start_daemon()?;
        let damaged = cluster.api(2);
        let info = state_is(&damaged, "error").await?;
        let text = info["Swarm"]["Error"].as_str().unwrap_or_default().to_owned();
        ensure!(text.contains("is damaged at byte") && text.contains("log-0"), "{text}");
        refused(damaged.get("/nodes").await, 503, "is damaged at byte")?;
        ensure!(cluster.host(2).data_dir().join("raft").is_dir(), "the evidence is gone");

        // With the third, it gets another raft id and everything that was acknowledged.
        cluster.host(1).start_daemon()?;
        wait_managers(&damaged, 3).await?;
        for n in 0..10 {
            damaged.get(&format!("/networks/before-{n}")).await.context("an acknowledged write is lost")?;
        }
        let kept = std::fs::read_dir(cluster.host(2).data_dir())?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .any(|name| name.starts_with("raft.damaged-"));
        ensure!(kept, "the damaged log was thrown away");
        // And it counts: the cluster can lose another one.
        cluster.host(0).kill_daemon()?;
        cluster.leader(2).await?;
        damaged.create_overlay("with-the-new-one").await?;

        // A log that has vanished is no reason to begin as if nothing had been promised.
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        wait_managers(&cluster.api(1), 3).await?;
        cluster.host(0).kill_daemon()?;
        std::fs::remove_dir_all(cluster.host(0).data_dir().join("raft"))?;
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        wait_managers(&api, 3).await?;
        ensure!(std::fs::read_to_string(cluster.host(0).log_path())?.contains("is missing"), "nobody said so");
        Ok(())
    })
    .await;
}

/// A small file system of its own; gone when this is.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(dir: &Path, options: &str) -> Result<()> {
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "shoal-storage-test"]).arg(dir).status()?;
        ensure!(done.success(), "mount -o {options}: {done}");
        Ok(())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the daemon has files open there until the hosts are removed.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_changes_with_its_path_and_recovers_without_a_restart() {
    with(Cluster::hosts_only(&binaries(), 1), async |cluster| {
        cluster.init().await?;
        cluster.host(0).stop_daemon().await?;
        // The manager's log goes on on a disk with room for the segment in use and the one to come, but for no third.
        let dir = cluster.host(0).data_dir().join("raft");
        let before = cluster.host(0).data_dir().join("before");
        std::fs::rename(&dir, &before)?;
        std::fs::create_dir(&dir)?;
        Tmpfs::mount(&dir, "size=22m")?;
        let _disk = Tmpfs(dir.clone());
        for file in std::fs::read_dir(&before)? {
            let file = file?;
            if !file.file_name().to_string_lossy().ends_with(".new") {
                std::fs::copy(file.path(), dir.join(file.file_name()))?;
            }
        }
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        cluster.leader(0).await?;
        let api = cluster.api(0);
        let data = "A".repeat(600_000);
        let mut made = 0;
        let refusal = loop {
            ensure!(made < 200, "the disk is never full");
            match api.post("/configs/create", &json!({"Name": format!("c{made}"), "Data": data})).await {
                Ok(_) => made += 1,
                refusal => break refusal,
            }
        };
        let text =
            format!("the disk of the leader is full: no change is accepted until there is room in {}", dir.display());
        refused(refusal, 500, &text)?;
        let kept = api.get("/configs").await?.as_array().map_or(0, Vec::len);
        ensure!(kept == made, "{kept} of {made} configs are read on the full disk");
        let pid = cluster.host(0).daemon_pid();
        Tmpfs::mount(&dir, "remount,size=100m")?;
        api.wait_for("a change when there is room again", SOON, || async {
            let body = json!({"Name": "again", "Data": "YQ=="});
            api.post("/configs/create", &body).await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        ensure!(pid == cluster.host(0).daemon_pid(), "the daemon was restarted");
        Ok(())
    })
    .await;
}
