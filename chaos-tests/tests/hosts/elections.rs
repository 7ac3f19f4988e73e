//! Who leads: managers that come back must not disturb it, and patient managers replace it later.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Cluster, Fault, HostsConfig, IMAGE, SOON, ServiceDraft};

use crate::{binaries, with};

/// The term of the last entry that a manager has applied.
async fn term(cluster: &Cluster, index: usize) -> Result<u64> {
    cluster.api(index).get("/shoal/v1/store?consistency=local").await?["Term"].as_u64().context("a term")
}

/// A manager that was away, longer than some elections take, in three ways: without its cable, frozen as a whole, with
/// its daemon killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_returns_disturbs_no_leader() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let leader = cluster.leader(0).await?;
        let away = (leader + 1) % 3;
        let api = cluster.api(leader);
        api.create_overlay("before").await?;
        let before = term(cluster, leader).await?;
        for fault in [Fault::Cut(away), Fault::Freeze(away), Fault::KillDaemon(away)] {
            cluster.begin(&fault)?;
            // Down after a second; five of the longest election timeouts after that.
            api.wait_for("the host to be away for long", SOON, || async {
                let node = api.get(&format!("/nodes/{}", cluster.id(away))).await.map_err(|e| e.to_string())?;
                if node["Status"]["State"] == "down" { Ok(()) } else { Err(node["Status"].to_string()) }
            })
            .await?;
            let since = Instant::now();
            let mut number = 0;
            while since.elapsed() < Duration::from_secs(4) {
                let name = format!("net-{number}");
                api.create_overlay(&name).await.with_context(|| format!("{fault}: a write meanwhile"))?;
                api.delete(&format!("/networks/{name}")).await?;
                number += 1;
            }
            cluster.end(&fault).await?;
            cluster.wait_ready_at(leader, 3).await?;
            api.create_overlay("after").await.with_context(|| format!("{fault}: a write at its return"))?;
            let back = cluster.api(away);
            back.wait_for("the news at the one that is back", SOON, || async {
                back.get("/networks/after").await.map(drop).map_err(|e| e.to_string())
            })
            .await?;
            api.delete("/networks/after").await?;
            ensure!(cluster.leader(leader).await? == leader, "{fault}: the leader was replaced");
            let now = term(cluster, leader).await?;
            ensure!(now == before, "{fault}: the term went from {before} to {now}");
        }
        Ok(())
    })
    .await;
}

/// A cluster with `--timing wan`: all the patience in it fits together.
#[tokio::test(flavor = "multi_thread")]
async fn a_patient_cluster_replaces_its_leader_later() {
    let made = async {
        let binaries = binaries();
        let args = vec!["--timing".to_owned(), "wan".to_owned()];
        let config = HostsConfig { args, ..HostsConfig::new(binaries.shoal.clone(), 3) };
        let mut cluster = Cluster::hosts_of(&binaries, &config).await?;
        cluster.init().await?;
        for index in [1, 2] {
            cluster.join(index, true).await?;
        }
        cluster.load_images().await?;
        cluster.wait_ready(3).await?;
        Ok(cluster)
    };
    with(made, async |cluster| {
        ensure!(cluster.api(0).get("/info").await?["Timing"] == "wan");
        let leader = cluster.leader(0).await?;
        let (witness, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let api = cluster.api(witness);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).build()).await?;
        let tasks = api.wait_running("web", 3, &[], SOON).await?;
        let lost = Instant::now();
        cluster.host(leader).kill_daemon()?;
        // A request waits for the next leader, through an election that takes longer than on a LAN. One that was
        // handed to the old leader in the moment of its death says that it does not know what became of it.
        if let Err(error) = api.create_overlay("after").await {
            ensure!(format!("{error:#}").contains("the outcome of the write is unknown"), "{error:#}");
            api.create_overlay("after-the-unknown").await?;
        }
        let took = lost.elapsed();
        ensure!(took > Duration::from_secs(3), "{took:?}: the timing had no effect");
        cluster.host(leader).start_daemon()?;
        cluster.host(leader).wait_ready().await?;
        cluster.wait_ready_at(witness, 3).await?;
        // Agents of the others never lost their manager for long enough to matter.
        let after = api.wait_running("web", 3, &[], SOON).await?;
        for host in [witness, other] {
            let of = |tasks: &[chaos_tests::hosts::TaskView]| {
                let own = tasks.iter().filter(|task| task.node == cluster.id(host));
                own.map(|task| (task.id.clone(), task.pid)).collect::<Vec<_>>()
            };
            ensure!(of(&tasks).iter().all(|task| of(&after).contains(task)), "{tasks:?} {after:?}");
        }
        Ok(())
    })
    .await;
}
