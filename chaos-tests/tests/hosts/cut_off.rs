//! Hosts that live and cannot be reached.

use std::time::Duration;

use anyhow::ensure;
use chaos_tests::hosts::{Cluster, Freshness, HostError, IMAGE, SOON, ServiceDraft};

use crate::{binaries, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_decides_nothing() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).publish(8080, 80).build()).await?;
        api.wait_running("web", 3, &[], SOON).await?;
        let leader = cluster.leader(0).await?;
        let witness = (leader + 1) % 3;
        let (alone, others) = (cluster.api(leader), cluster.api(witness));
        let lost = cluster.id(leader).to_owned();

        cluster.host(leader).link_down()?;
        // What the old leader is asked now, it cannot promise.
        let asked = tokio::time::timeout(Duration::from_secs(10), alone.create_overlay("alone")).await;
        ensure!(!matches!(asked, Ok(Ok(_))), "a leader without followers acknowledged a write");
        let replaced = others.wait_running("web", 3, std::slice::from_ref(&lost), SOON).await?;
        others.create_overlay("others").await?;
        // Nor can it know what is true.
        let read = tokio::time::timeout(Duration::from_secs(10), alone.get("/services")).await;
        ensure!(!matches!(read, Ok(Ok(_))), "a manager that is cut off answered as if it knew");
        // Its own task goes on, as nobody there knows better.
        ensure!(!cluster.host(leader).container_processes().is_empty(), "a task ended because its host was cut off");

        cluster.host(leader).link_up()?;
        cluster.wait_ready_at(witness, 3).await?;
        // Back again, it stops what was replaced, and has what the others decided.
        cluster.wait_processes(&[0, 1, 2], &replaced).await?;
        alone
            .wait_for("the others' write at the old leader", SOON, || async {
                alone.get("/networks/others").await.map(drop).map_err(|e| e.to_string())
            })
            .await?;
        let at = async |index: usize| cluster.api(index).nodes(Freshness::Linearizable).await;
        let names = |nodes: &[serde_json::Value]| nodes.iter().map(|n| n["ID"].to_string()).collect::<Vec<_>>();
        ensure!(names(&at(0).await?) == names(&at(1).await?), "managers know different nodes");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_runs_nothing_twice_when_it_is_back() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        let spec = ServiceDraft::new("web", IMAGE, 4).constraint("node.role==worker").build();
        api.create_service(&spec).await?;
        let before = api.wait_running("web", 4, &[], SOON).await?;
        ensure!(before.iter().any(|t| t.node == cluster.id(2)), "{before:?}");
        cluster.host(2).link_down()?;
        let lost = cluster.id(2).to_owned();
        let replaced = api.wait_running("web", 4, std::slice::from_ref(&lost), SOON).await?;
        // Scaled while it cannot hear of it.
        api.scale("web", 2).await?;
        api.wait_running("web", 2, &[], SOON).await?;
        ensure!(cluster.host(2).container_processes().len() == 2, "tasks ended because their host was cut off");
        cluster.host(2).link_up()?;
        cluster.wait_ready(3).await?;
        let now = api.wait_running("web", 2, &[], SOON).await?;
        ensure!(now.iter().all(|t| replaced.iter().any(|r| r.id == t.id)), "tasks moved: {now:?}");
        cluster.wait_processes(&[0, 1, 2], &now).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stands_still_is_replaced_and_goes_on() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).build()).await?;
        api.wait_running("web", 3, &[], SOON).await?;
        let leader = cluster.leader(0).await?;
        let witness = (leader + 1) % 3;
        cluster.host(leader).pause()?;
        let lost = cluster.id(leader).to_owned();
        let others = cluster.api(witness);
        let replaced = others.wait_running("web", 3, std::slice::from_ref(&lost), SOON).await?;
        match others.create_overlay("meanwhile").await {
            Ok(_) | Err(HostError::Refused { status: 409, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        cluster.host(leader).resume()?;
        cluster.wait_ready_at(witness, 3).await?;
        cluster.wait_processes(&[0, 1, 2], &replaced).await?;
        let back = cluster.api(leader);
        back.wait_for("the news at the old leader", SOON, || async {
            back.get("/networks/meanwhile").await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        Ok(())
    })
    .await;
}

/// Two of three managers gone: no writes, no claims; and everything again when one is back.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_promised_and_tasks_run_on() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).publish(8080, 80).build()).await?;
        let tasks = api.wait_running("web", 3, &[], SOON).await?;
        cluster.wait_port(8080).await?;
        cluster.host(1).kill_daemon()?;
        cluster.host(2).kill_daemon()?;
        let asked = tokio::time::timeout(Duration::from_secs(15), api.create_overlay("alone")).await;
        ensure!(!matches!(asked, Ok(Ok(_))), "one manager of three acknowledged a write");
        let info = api.get("/info").await?;
        ensure!(info["Swarm"]["LocalNodeState"] == "active", "{}", info["Swarm"]);
        let client = cluster.client()?;
        for host in cluster.hosts() {
            client.get(host.at(8080), "/json", Duration::from_secs(3)).await?;
        }
        for index in [1, 2] {
            cluster.host(index).start_daemon()?;
            cluster.host(index).wait_ready().await?;
        }
        cluster.wait_ready(3).await?;
        api.wait_for("a write again", SOON, || async {
            match api.create_overlay("again").await {
                Ok(_) | Err(HostError::Refused { status: 409, .. }) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        let after = api.wait_running("web", 3, &[], SOON).await?;
        // A manager that lost its followers also lost the leadership, and nobody could call anybody down meanwhile.
        ensure!(tasks == after || after.len() == 3, "{after:?}");
        cluster.wait_processes(&[0, 1, 2], &after).await
    })
    .await;
}
