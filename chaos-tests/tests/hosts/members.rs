//! Hosts that change their role, are drained, removed, or leave.

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Cluster, Freshness, IMAGE, SOON, ServiceDraft, refused};
use serde_json::{Value, json};

use crate::{binaries, with};

/// Changes a node's spec, as `docker node update` does.
pub(crate) async fn change(api: &Api, node: &str, key: &str, value: &str) -> Result<()> {
    api.wait_for(&format!("{key} of a node being {value}"), SOON, || async {
        let mut found = api.get(&format!("/nodes/{node}")).await.map_err(|e| e.to_string())?;
        let version = found["Version"]["Index"].as_u64().unwrap_or(0);
        found["Spec"][key] = json!(value);
        let path = format!("/nodes/{node}/update?version={version}");
        api.post(&path, &found["Spec"]).await.map(drop).map_err(|e| e.to_string())
    })
    .await?;
    Ok(())
}

pub(crate) async fn wait_managers(api: &Api, count: usize) -> Result<()> {
    api.wait_for(&format!("{count} reachable managers"), SOON, || async {
        let nodes = api.nodes(Freshness::Local).await.map_err(|e| e.to_string())?;
        let seen = nodes.iter().filter(|n| n["ManagerStatus"]["Reachability"] == "reachable").count();
        let all = nodes.iter().filter(|n| !n["ManagerStatus"].is_null()).count();
        if seen == count && all == count { Ok(()) } else { Err(format!("{seen} of {all}")) }
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_become_managers_and_managers_workers() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).build()).await?;
        let before = api.wait_running("web", 3, &[], SOON).await?;
        for index in [1, 2] {
            change(&api, cluster.id(index), "Role", "manager").await?;
        }
        wait_managers(&api, 3).await?;
        // A promoted manager takes writes, and the cluster can lose the first one.
        cluster.api(2).create_overlay("by-the-third").await?;
        cluster.host(0).kill_daemon()?;
        cluster.leader(1).await?;
        cluster.api(1).create_overlay("without-the-first").await?;
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        cluster.wait_ready_at(1, 3).await?;
        wait_managers(&cluster.api(1), 3).await?;

        let leader = cluster.leader(1).await?;
        let other = (leader + 1) % 3;
        // Also the leader may be demoted: it hands over.
        change(&cluster.api(other), cluster.id(leader), "Role", "worker").await?;
        wait_managers(&cluster.api(other), 2).await?;
        cluster.api(other).create_overlay("without-the-leader").await?;
        cluster
            .api(leader)
            .wait_for("the demoted manager to know it", SOON, || async {
                let info = cluster.api(leader).get("/info").await.map_err(|e| e.to_string())?;
                if info["Swarm"]["ControlAvailable"] == false { Ok(()) } else { Err("a manager".into()) }
            })
            .await?;
        // Tasks do not care. (Those of the host whose daemon was killed for about a second may have been replaced: that is
        // how long a silent host is waited for.)
        let after = cluster.api(other).wait_running("web", 3, &[], SOON).await?;
        let kept = before.iter().filter(|t| t.node != cluster.id(0));
        let gone: Vec<_> = kept.filter(|t| !after.iter().any(|now| (&now.id, now.pid) == (&t.id, t.pid))).collect();
        ensure!(gone.is_empty(), "{gone:?} are not among {after:?}");
        Ok(())
    })
    .await;
}

/// A node that becomes a manager again begins with an empty store. Nobody is told what is in that: no reader, and no
/// agent, whose tasks would end.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_begins_anew_says_nothing_before_it_knows() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 4).build()).await?;
        let before = api.wait_running("web", 4, &[], SOON).await?;
        let again = cluster.api(2);
        for _ in 0..3 {
            change(&api, cluster.id(2), "Role", "worker").await?;
            wait_managers(&api, 2).await?;
            again
                .wait_for("the demoted manager to be none", SOON, || async {
                    let info = again.get("/info").await.map_err(|e| e.to_string())?;
                    if info["Swarm"]["ControlAvailable"] == false { Ok(()) } else { Err("a manager".into()) }
                })
                .await?;
            change(&api, cluster.id(2), "Role", "manager").await?;
            // Asked without a pause, while it catches up.
            let deadline = std::time::Instant::now() + SOON;
            loop {
                match again.nodes(Freshness::Local).await {
                    Ok(nodes) => {
                        ensure!(nodes.len() == 4, "it answered from a store of before: {nodes:?}");
                        break;
                    }
                    Err(error) => ensure!(std::time::Instant::now() < deadline, "it never answered: {error}"),
                }
            }
            wait_managers(&again, 3).await?;
        }
        let after = again.wait_running("web", 4, &[], SOON).await?;
        let known = |tasks: &[chaos_tests::hosts::TaskView]| {
            tasks.iter().map(|task| (task.id.clone(), task.pid)).collect::<std::collections::BTreeSet<_>>()
        };
        ensure!(known(&before) == known(&after), "{before:?} {after:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drained_and_removed_hosts_have_nothing() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).publish(8080, 80).build()).await?;
        api.wait_running("web", 3, &[], SOON).await?;
        let drained = cluster.id(1).to_owned();
        change(&api, &drained, "Availability", "drain").await?;
        let tasks = api.wait_running("web", 3, std::slice::from_ref(&drained), SOON).await?;
        cluster.wait_processes(&[0, 1, 2], &tasks).await?;
        refused(api.delete(&format!("/nodes/{drained}")).await, 400, "is not down")?;

        // A host that leaves takes its tasks' end with it, and can be removed then.
        cluster.api(2).post("/swarm/leave", &Value::Null).await.context("a worker leaves")?;
        let left = cluster.id(2).to_owned();
        cluster.wait_clean(&[2]).await?;
        api.wait_running("web", 3, &[drained.clone(), left.clone()], SOON).await?;
        api.wait_for("the node that left to be down", SOON, || async {
            match api.get(&format!("/nodes/{left}")).await {
                Ok(node) if node["Status"]["State"] == "down" => Ok(()),
                Ok(node) => Err(node["Status"].to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        api.delete(&format!("/nodes/{left}")).await?;
        let nodes = api.nodes(Freshness::Linearizable).await?;
        ensure!(nodes.len() == 2, "{nodes:?}");

        // It may come back, as somebody new.
        let (worker, _) = api.tokens().await?;
        let host = cluster.host(2);
        host.api().join(&host.address().to_string(), &cluster.host(0).node_address(), &worker).await?;
        let again = host.api().node_id().await?;
        ensure!(again != left, "a host that left came back with its old identity");
        cluster.wait_ready(3).await?;
        api.scale("web", 5).await?;
        let tasks = api.wait_running("web", 5, &[drained], SOON).await?;
        ensure!(tasks.iter().any(|t| t.node == again), "{tasks:?}");
        // A manager that is the last one may not go without being told that it may.
        refused(api.post("/swarm/leave", &Value::Null).await, 503, "participating as a manager")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_lose_the_quorum_is_refused() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(0);
        cluster.host(2).kill_daemon()?;
        api.wait_for("the lost manager to be down", SOON, || async {
            match api.get(&format!("/nodes/{}", cluster.id(2))).await {
                Ok(node) if node["Status"]["State"] == "down" => Ok(()),
                Ok(node) => Err(node["Status"].to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        // Of the two that would be left one does not answer. Said alike by the leader and by a follower.
        for index in [0, 1] {
            let mut node = cluster.api(index).get(&format!("/nodes/{}", cluster.id(1))).await?;
            node["Spec"]["Role"] = json!("worker");
            let path = format!("/nodes/{}/update?version={}", cluster.id(1), node["Version"]["Index"]);
            refused(cluster.api(index).post(&path, &node["Spec"]).await, 400, "would result in a loss of quorum")?;
        }
        refused(api.delete(&format!("/nodes/{}?force=true", cluster.id(1))).await, 400, "must be demoted")?;
        refused(cluster.api(1).post("/swarm/leave", &Value::Null).await, 503, "leaves 2 managers out of 3")?;
        // The one that is away may go: the two others are a majority of two.
        change(&api, cluster.id(2), "Role", "worker").await?;
        wait_managers(&api, 2).await?;
        // Back, it learns that it is none any more.
        cluster.host(2).start_daemon()?;
        cluster.host(2).wait_ready().await?;
        cluster.wait_ready(3).await?;
        cluster.api(1).create_overlay("after").await?;
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_change_are_learned_again() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 4).publish(8080, 80).build()).await?;
        let before = api.wait_running("web", 4, &[], SOON).await?;
        for (index, last) in [(2, 78), (3, 79)] {
            cluster.host(index).stop_daemon().await?;
            cluster.host(index).move_to(last)?;
            cluster.host(index).start_daemon()?;
            cluster.host(index).wait_ready().await?;
            api.wait_for("the new address", SOON, || async {
                let node = api.get(&format!("/nodes/{}", cluster.id(index))).await.map_err(|e| e.to_string())?;
                let (ip, addr) = (format!("10.99.0.{last}"), format!("10.99.0.{last}:2377"));
                let manager = &node["ManagerStatus"];
                let seen = node["Status"]["Addr"] == ip && node["Status"]["State"] == "ready";
                if seen && (manager.is_null() || manager["Addr"] == addr) { Ok(()) } else { Err(node.to_string()) }
            })
            .await?;
        }
        for index in 0..3 {
            wait_managers(&cluster.api(index), 3).await?;
        }
        let after = api.wait_running("web", 4, &[], SOON).await?;
        ensure!(before.iter().map(|t| (&t.id, t.pid)).eq(after.iter().map(|t| (&t.id, t.pid))), "{before:?} {after:?}");
        cluster.wait_port(8080).await?;
        // The one that has moved counts: with it, another may go.
        cluster.host(1).power_off()?;
        let moved = cluster.api(2);
        moved
            .wait_for("a write after the loss", SOON, || async {
                moved.create_overlay("after").await.map(drop).map_err(|e| e.to_string())
            })
            .await?;
        Ok(())
    })
    .await;
}
