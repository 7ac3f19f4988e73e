//! Certificates on real daemons: renewed in time and late, by the old root and a new one, and of nodes that are gone.
//!
//! Time is the daemons' own: each follows a file that says how far its clock is ahead, so that weeks pass in a moment.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_tests::hosts::{Api, Cluster, Freshness, IMAGE, SOON, ServiceDraft, TaskView};
use serde_json::{Value, json};

use crate::{binaries, with};

const DAY: Duration = Duration::from_secs(86_400);

/// Lets every host's clock be so far ahead.
fn all_ahead(cluster: &Cluster, by: Duration) -> Result<()> {
    cluster.hosts().iter().try_for_each(|host| Ok(host.set_clock(i64::try_from(by.as_millis())?)?))
}

/// How many lines of the daemon's log say this.
fn logged(cluster: &Cluster, index: usize, words: &str) -> Result<usize> {
    let text = std::fs::read_to_string(cluster.host(index).log_path())?;
    Ok(text.lines().filter(|line| line.contains(words)).count())
}

/// Waits until the daemon's log says this, `times` times.
async fn wait_log(cluster: &Cluster, index: usize, words: &str, times: usize) -> Result<()> {
    let host = cluster.host(index);
    host.api()
        .wait_for(&format!("{words:?} in the log of {}", host.name()), SOON, || async {
            let seen = logged(cluster, index, words).map_err(|e| e.to_string())?;
            if seen >= times { Ok(()) } else { Err(format!("{seen} times")) }
        })
        .await?;
    Ok(())
}

fn pids(tasks: &[TaskView]) -> Vec<(String, u64)> {
    let mut pids: Vec<_> = tasks.iter().map(|task| (task.id.clone(), task.pid)).collect();
    pids.sort();
    pids
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_in_time_and_by_who_was_off_for_weeks() {
    with(Cluster::start(&binaries(), 1, 3), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 4).build()).await?;
        let before = api.wait_running("web", 4, &[], SOON).await?;
        // Four fifths of ninety days are 72: no renewal is drawn later.
        all_ahead(cluster, 73 * DAY)?;
        for index in 0..4 {
            wait_log(cluster, index, "the certificate was renewed", 1).await?;
        }
        cluster.wait_ready(4).await?;
        let after = api.wait_running("web", 4, &[], SOON).await?;
        ensure!(pids(&before) == pids(&after), "a renewal touched tasks: {before:?} {after:?}");

        // Two workers are off while their certificates run out (163 days after the beginning).
        for index in [2, 3] {
            cluster.host(index).stop_daemon().await?;
        }
        let removed = cluster.id(3).to_owned();
        api.wait_for("the worker to be down", SOON, || async {
            api.delete(&format!("/nodes/{removed}")).await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        all_ahead(cluster, 146 * DAY)?;
        for index in 0..2 {
            wait_log(cluster, index, "the certificate was renewed", 2).await?;
        }
        all_ahead(cluster, 200 * DAY)?;
        for index in [2, 3] {
            cluster.host(index).start_daemon()?;
            cluster.host(index).wait_ready().await?;
        }
        cluster.wait_ready(3).await?;
        wait_log(cluster, 2, "the certificate was renewed", 2).await?;
        // The one that was removed meanwhile stays out.
        cluster
            .api(3)
            .wait_for("the removed worker to know it", SOON, || async {
                let info = cluster.api(3).get("/info").await.map_err(|e| e.to_string())?;
                let state = info["Swarm"]["LocalNodeState"].to_string();
                if state.contains("error") { Ok(()) } else { Err(state) }
            })
            .await?;

        // The whole cluster was off until every certificate had run out: the manager begins by itself.
        for host in cluster.hosts() {
            host.stop_daemon().await?;
        }
        all_ahead(cluster, 370 * DAY)?;
        for index in 0..3 {
            cluster.host(index).start_daemon()?;
            cluster.host(index).wait_ready().await?;
        }
        cluster.wait_ready(3).await?;
        api.create_overlay("after-all").await?;
        Ok(())
    })
    .await;
}

async fn swarm(api: &Api) -> Result<Value, String> {
    api.get("/swarm").await.map_err(|e| e.to_string())
}

/// What `docker swarm ca --rotate` sends.
async fn rotate(api: &Api) -> Result<()> {
    api.wait_for("a rotation of the root", SOON, || async {
        let mut found = swarm(api).await?;
        let version = found["Version"]["Index"].as_u64().unwrap_or(0);
        let count = found["Spec"]["CAConfig"]["ForceRotate"].as_u64().unwrap_or(0);
        found["Spec"]["CAConfig"]["ForceRotate"] = json!(count + 1);
        let path = format!("/swarm/update?version={version}");
        api.post(&path, &found["Spec"]).await.map(drop).map_err(|e| e.to_string())
    })
    .await?;
    Ok(())
}

async fn wait_rotated(api: &Api, old_root: &Value) -> Result<Value> {
    Ok(api
        .wait_for("the end of the rotation", SOON, || async {
            let found = swarm(api).await?;
            match found["RootRotationInProgress"] == false && found["TLSInfo"]["TrustRoot"] != *old_root {
                true => Ok(found),
                false => Err(format!("in progress: {}", found["RootRotationInProgress"])),
            }
        })
        .await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_reaches_every_node_also_those_that_were_off() {
    with(Cluster::start(&binaries(), 3, 2), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 5).publish(8080, 80).build()).await?;
        api.wait_running("web", 5, &[], SOON).await?;
        let old = swarm(&api).await.map_err(anyhow::Error::msg)?;
        let (old_worker_token, _) = api.tokens().await?;

        // A worker and a manager are off; a leader dies on the way.
        let leader = cluster.leader(0).await?;
        // Managers are asked in the order of their ids: one that lags should not be the last.
        let away = (0..3).filter(|index| *index != leader).min_by_key(|index| cluster.id(*index)).unwrap_or(1);
        cluster.host(4).stop_daemon().await?;
        cluster.host(away).stop_daemon().await?;
        let witness = (0..3).find(|index| *index != away).unwrap_or(0);
        cluster.wait_ready_at(witness, 3).await?;
        let running =
            cluster.api(witness).wait_running("web", 5, &[cluster.id(4).into(), cluster.id(away).into()], SOON).await?;
        let here = cluster.api(witness);
        rotate(&here).await?;
        // A renewal that is cut leaves a node that starts: the record is the old one or the new one.
        cluster.host(3).kill_daemon()?;
        cluster.host(3).start_daemon()?;
        cluster.host(3).wait_ready().await?;
        let new = wait_rotated(&here, &old["TLSInfo"]["TrustRoot"]).await?;
        cluster.wait_ready_at(witness, 3).await?;
        let after = here.wait_running("web", 5, &[], SOON).await?;
        ensure!(pids(&running) == pids(&after), "the rotation touched tasks: {running:?} {after:?}");
        ensure!(new["JoinTokens"]["Worker"] != old["JoinTokens"]["Worker"], "the tokens did not change");

        // Those that were off know only the old root, and come back.
        for index in [away, 4] {
            cluster.host(index).start_daemon()?;
            cluster.host(index).wait_ready().await?;
        }
        cluster.wait_ready_at(witness, 5).await?;
        let all = here.nodes(Freshness::Linearizable).await?;
        here.wait_for("certificates of the new root", SOON, || async {
            let nodes = here.nodes(Freshness::Local).await.map_err(|e| e.to_string())?;
            let issuer = &new["TLSInfo"]["CertIssuerPublicKey"];
            let right = nodes.iter().filter(|n| n["Description"]["TLSInfo"]["CertIssuerPublicKey"] == *issuer).count();
            if right == all.len() { Ok(()) } else { Err(format!("{right} of {}", all.len())) }
        })
        .await?;
        // The manager that was off votes again: the cluster can lose another one.
        let other = (0..3).find(|index| *index != away && *index != witness).unwrap_or(0);
        cluster.host(other).kill_daemon()?;
        cluster.leader(witness).await?;
        here.wait_for("a write through the manager that was off", SOON, || async {
            match cluster.api(away).create_overlay("by-who-was-off").await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;

        // The old token opens nothing and says why.
        let host = cluster.host(4);
        host.api().post("/swarm/leave?force=true", &Value::Null).await?;
        let remote = cluster.host(witness).node_address();
        let joined = host.api().join(&host.address().to_string(), &remote, &old_worker_token).await;
        let refusal = joined.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(refusal.contains("does not match fingerprint") && refusal.contains("node token"), "{refusal:?}");
        let (worker_token, _) = here.tokens().await?;
        host.api().join(&host.address().to_string(), &remote, &worker_token).await?;
        Ok(())
    })
    .await;
}

async fn wait_message(cluster: &Cluster, index: usize, fits: impl Fn(&str) -> bool) -> Result<()> {
    let (api, id) = (cluster.api(0), cluster.id(index).to_owned());
    Ok(api
        .wait_for(&format!("the right message of {}", cluster.host(index).name()), SOON, || async {
            let node = api.get(&format!("/nodes/{id}")).await.map_err(|e| e.to_string())?;
            let message = node["Status"]["Message"].as_str().unwrap_or_default();
            let right = node["Status"]["State"] == "ready" && fits(message);
            if right { Ok(()) } else { Err(node["Status"].to_string()) }
        })
        .await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_wrong_are_reported_with_the_amount() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let leader = cluster.leader(0).await?;
        let follower = (leader + 1) % 3;
        cluster.host(3).set_clock(90_500)?;
        cluster.host(follower).set_clock(-3_500_500)?;
        // The worker may be attached to that follower: what was measured across the two changes is corrected.
        let right = |message: &str, size: &str, side: &str| message.starts_with(size) && message.ends_with(side);
        wait_message(cluster, 3, |message| right(message, "clock 1m", "ahead of the leader's")).await?;
        wait_message(cluster, follower, |message| right(message, "clock 58m", "behind the leader's")).await?;
        let info = cluster.api(0).get("/info").await?;
        ensure!(info["Warnings"].to_string().contains("ahead of the leader's"), "{}", info["Warnings"]);
        for index in [3, follower] {
            cluster.host(index).set_clock(0)?;
        }
        for index in 0..4 {
            wait_message(cluster, index, str::is_empty).await?;
        }
        Ok(())
    })
    .await;
}

/// Copies a directory as a backup would.
fn copy_dir(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => copy_dir(&entry.path(), &target)?,
            kind if kind.is_file() => drop(std::fs::copy(entry.path(), target)?),
            _ => {}
        }
    }
    Ok(())
}

/// Waits until the host says of its membership that it is in this state, with these words among its error.
async fn wait_membership(cluster: &Cluster, index: usize, state: &str, words: &str) -> Result<()> {
    let host = cluster.host(index);
    host.api()
        .wait_for(&format!("{} to be {state} {words:?}", host.name()), SOON, || async {
            let info = host.api().get("/info").await.map_err(|e| e.to_string())?;
            let swarm = &info["Swarm"];
            let error = swarm["Error"].as_str().unwrap_or_default();
            if swarm["LocalNodeState"] == state && error.contains(words) { Ok(()) } else { Err(swarm.to_string()) }
        })
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloned_disk_is_refused_while_the_original_lives() {
    with(Cluster::hosts_only(&binaries(), 3), async |cluster| {
        cluster.init().await?;
        cluster.join(1, false).await?;
        cluster.wait_ready(2).await?;
        let api = cluster.api(0);
        let (original, clone) = (cluster.host(1), cluster.host(2));
        for host in [original, clone] {
            host.stop_daemon().await?;
        }
        std::fs::remove_dir_all(clone.data_dir())?;
        copy_dir(&original.data_dir(), &clone.data_dir())?;
        let sessions = logged(cluster, 1, "session opened")?;
        original.start_daemon()?;
        wait_log(cluster, 1, "session opened", sessions + 1).await?;
        cluster.wait_ready(2).await?;
        clone.start_daemon()?;
        clone.wait_ready().await?;
        wait_log(cluster, 0, "two hosts use one identity", 1).await?;
        wait_membership(cluster, 2, "error", "cloned").await?;
        wait_message(cluster, 1, str::is_empty).await?;

        // The clone is silent in the gossip: the original's death is seen there, and only then the clone takes over.
        original.kill_daemon()?;
        wait_log(cluster, 0, "host is not reachable", 1).await?;
        wait_membership(cluster, 2, "active", "").await?;
        // The original's next start is newer than anything that the clone has.
        original.start_daemon()?;
        wait_membership(cluster, 2, "error", "another host uses its identity").await?;
        wait_membership(cluster, 1, "active", "").await?;
        wait_message(cluster, 1, str::is_empty).await?;

        // The clone goes without a word in the original's name, and may come in as somebody of its own.
        clone.api().post("/swarm/leave?force=true", &Value::Null).await?;
        let nodes = api.nodes(Freshness::Linearizable).await?;
        ensure!(nodes.len() == 2 && nodes.iter().all(|node| node["Status"]["State"] == "ready"), "{nodes:?}");
        let (worker, _) = api.tokens().await?;
        clone.api().join(&clone.address().to_string(), &cluster.host(0).node_address(), &worker).await?;
        cluster.wait_ready(3).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_nodes_and_old_tokens_open_nothing() {
    with(Cluster::start(&binaries(), 1, 1), async |cluster| {
        let api = cluster.api(0);
        let (before, _) = api.tokens().await?;
        let swarm = swarm(&api).await.map_err(anyhow::Error::msg)?;
        let version = swarm["Version"]["Index"].as_u64().unwrap_or(0);
        api.post(&format!("/swarm/update?version={version}&rotateWorkerToken=true"), &swarm["Spec"]).await?;
        let removed = cluster.id(1).to_owned();
        api.delete(&format!("/nodes/{removed}?force=true")).await?;
        let host = cluster.host(1);
        wait_membership(cluster, 1, "error", "removed").await?;
        // Started anew it is not let in either.
        host.kill_daemon()?;
        host.start_daemon()?;
        host.wait_ready().await?;
        wait_log(cluster, 1, "the cluster turned this node away", 1).await?;
        host.api().post("/swarm/leave?force=true", &Value::Null).await?;
        let remote = cluster.host(0).node_address();
        let address = host.address().to_string();
        let joined = host.api().join(&address, &remote, &before).await.err().map(|error| error.to_string());
        ensure!(joined.as_ref().is_some_and(|text| text.contains("valid join token")), "{joined:?}");
        let (now, _) = api.tokens().await?;
        host.api().join(&address, &remote, &now).await?;
        ensure!(host.api().node_id().await? != removed, "a node that was removed came back as itself");
        Ok(())
    })
    .await;
}
