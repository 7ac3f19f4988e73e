//! From a lost quorum back to a cluster that takes writes, with tasks that never notice. See docs/recovery.md.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Cluster, Freshness, IMAGE, SOON, ServiceDraft, TaskView, refused};
use serde_json::{Value, json};

use crate::members::{change, wait_managers};
use crate::{binaries, with};

/// Ids of tasks, their containers and their processes, on these hosts.
fn identities(tasks: &[TaskView], nodes: &[&str]) -> BTreeSet<(String, String, u64)> {
    let there = tasks.iter().filter(|task| nodes.contains(&task.node.as_str()));
    there.map(|t| (t.id.clone(), t.container.clone(), t.pid)).collect()
}

/// Recovers through the daemon, once that is allowed: as long as a leader was heard lately, it is refused.
async fn recover(api: &Api) -> Result<Value> {
    Ok(api
        .wait_for("a recovery", SOON, || async {
            api.post("/shoal/v1/recover", &json!({})).await.map_err(|e| e.to_string())
        })
        .await?)
}

async fn wait_worker(api: &Api) -> Result<()> {
    api.wait_for("a former manager to be a worker", SOON, || async {
        let info = api.get("/info").await.map_err(|e| e.to_string())?;
        let swarm = &info["Swarm"];
        if swarm["LocalNodeState"] == "active" && swarm["ControlAvailable"] == false {
            return Ok(());
        }
        Err(swarm.to_string())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_survivor_of_three_managers_is_enough() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 8).publish(8080, 80).build()).await?;
        let before = api.wait_running("web", 8, &[], SOON).await?;
        for n in 0..10 {
            api.create_overlay(&format!("before-{n}")).await?;
        }
        let version = api.get("/swarm").await?["Version"]["Index"].as_u64().context("a version")?;
        refused(api.post("/shoal/v1/recover", &json!({})).await, 503, "has a leader")?;
        refused(cluster.api(3).post("/shoal/v1/recover", &json!({"Force": true})).await, 503, "not a swarm manager")?;

        for lost in [1, 2] {
            cluster.host(lost).power_off()?;
        }
        let recovered = recover(&api).await?;
        ensure!(recovered["NodeId"] == cluster.id(0), "{recovered}");
        ensure!(recovered["Index"].as_u64() > Some(10) && recovered["Term"].as_u64() > Some(0), "{recovered}");
        let former: BTreeSet<&str> =
            recovered["FormerManagers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(former == BTreeSet::from([cluster.id(1), cluster.id(2)]), "{recovered}");

        // It takes writes, and has all that it had.
        api.wait_for("a write after the recovery", SOON, || async {
            api.create_overlay("after").await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        for n in 0..10 {
            api.get(&format!("/networks/before-{n}")).await.context("an acknowledged write is lost")?;
        }
        let jumped = api.get("/swarm").await?["Version"]["Index"].as_u64().context("a version")?;
        ensure!(jumped >= version + (1 << 20), "the revision went from {version} to {jumped}");

        // The tasks of the hosts that are left are the same processes; those of the lost ones are replaced.
        let left = [cluster.id(0), cluster.id(3)];
        let lost = [cluster.id(1).to_owned(), cluster.id(2).to_owned()];
        let after = api.wait_running("web", 8, &lost, SOON).await?;
        let (old, new) = (identities(&before, &left), identities(&after, &left));
        ensure!(!old.is_empty() && old.is_subset(&new), "{old:?} are not among {new:?}");

        // Both others come back at once: they would be a majority of the life that is over.
        for index in [1, 2] {
            cluster.host(index).power_on()?;
        }
        for index in [1, 2] {
            cluster.host(index).wait_ready().await?;
            wait_worker(&cluster.api(index)).await?;
        }
        cluster.wait_ready(4).await?;
        wait_managers(&api, 1).await?;
        for index in [1, 2] {
            ensure!(cluster.host(index).data_dir().join("raft.before-recovery").is_dir(), "a log was thrown away");
        }
        refused(cluster.api(1).get("/nodes").await, 503, "Worker nodes can't")?;

        // They are managers again when somebody says so, and the first one may go.
        for index in [1, 2] {
            change(&api, cluster.id(index), "Role", "manager").await?;
        }
        // As each of them knows: a change that only the leader has in its log dies with it.
        for index in 0..3 {
            wait_managers(&cluster.api(index), 3).await?;
        }
        cluster.host(0).kill_daemon()?;
        cluster.leader(1).await?;
        cluster.api(1).create_overlay("without-the-survivor").await?;
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        wait_managers(&cluster.api(2), 3).await?;
        cluster.wait_ready_at(2, 4).await?;
        // The survivor's daemon was away for about as long as a host may be silent, so its tasks may have been replaced,
        // and the managers may decide so only now.
        let last = cluster.wait_settled(2, "web", 8).await?;
        let stayed = [cluster.id(3)];
        let (old, last_there) = (identities(&before, &stayed), identities(&last, &stayed));
        ensure!(last_there.is_superset(&old), "{last:?} instead of {old:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_that_has_moved_recovers_offline_and_is_found() {
    with(Cluster::start(&binaries(), 2, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 6).publish(8080, 80).build()).await?;
        let before = api.wait_running("web", 6, &[], SOON).await?;
        cluster.host(1).power_off()?;
        cluster.host(0).stop_daemon().await?;
        cluster.host(0).move_to(77)?;

        let data = cluster.host(0).data_dir().display().to_string();
        let run = |args: &[&str]| cluster.host(0).run(args);
        let said = run(&["node", "recover", "--data-dir", &data])?;
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(
            said.status.code() == Some(2) && error.contains("10.99.0.77"),
            "it says nothing of the new address: {error}"
        );
        let said = run(&["node", "recover", "--data-dir", &data, "--advertise-addr", "10.99.0.77"])?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(said.status.success() && text.contains("every log entry up to index"), "{said:?}");
        ensure!(text.contains(cluster.id(1)), "it does not name the former manager: {text}");

        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        let said = run(&["node", "recover", "--data-dir", &data])?;
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        ensure!(said.status.code() == Some(1) && error.contains("in use by another shoal daemon"), "{error}");
        api.wait_for("a write after the recovery", SOON, || async {
            api.create_overlay("after").await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        // The worker knew only the old address. It hears of the new one by gossip.
        api.wait_for("the worker at the moved manager", SOON, || async {
            let nodes = api.nodes(Freshness::Local).await.map_err(|e| e.to_string())?;
            let found = |index: usize, addr: &str| {
                nodes.iter().any(|n| {
                    n["ID"] == cluster.id(index) && n["Status"]["State"] == "ready" && n["Status"]["Addr"] == addr
                })
            };
            if found(0, "10.99.0.77") && found(2, "10.99.0.13") { Ok(()) } else { Err(json!(nodes).to_string()) }
        })
        .await?;
        let after = api.wait_running("web", 6, &[cluster.id(1).to_owned()], SOON).await?;
        let left = [cluster.id(0), cluster.id(2)];
        let (old, new) = (identities(&before, &left), identities(&after, &left));
        ensure!(old.len() >= 2 && old.is_subset(&new), "{old:?} are not among {new:?}");
        cluster.wait_processes(&[0, 2], &after).await?;
        // Also what goes between the hosts finds its way.
        let client = cluster.client()?;
        for index in [0, 2] {
            let host = cluster.host(index);
            api.wait_for("an answer of the service", SOON, || async {
                match client.get(host.at(8080), "/json", std::time::Duration::from_secs(2)).await {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_way_of_recovery_works_too() {
    with(Cluster::start(&binaries(), 3, 0), async |cluster| {
        let api = cluster.api(1);
        api.create_service(&ServiceDraft::new("web", IMAGE, 3).build()).await?;
        let before = api.wait_running("web", 3, &[], SOON).await?;
        for lost in [0, 2] {
            cluster.host(lost).kill_daemon()?;
        }
        let body = json!({"ListenAddr": "0.0.0.0:2377", "ForceNewCluster": true, "Spec": {}});
        let id = api.post("/swarm/init", &body).await?;
        ensure!(id == cluster.id(1), "{id} is not the node that was recovered");
        api.wait_for("a write after the recovery", SOON, || async {
            api.create_overlay("after").await.map(drop).map_err(|e| e.to_string())
        })
        .await?;
        // Their tasks go on all the while; back, they are workers and still have them.
        for index in [0, 2] {
            cluster.host(index).start_daemon()?;
            cluster.host(index).wait_ready().await?;
            wait_worker(&cluster.api(index)).await?;
        }
        cluster.wait_ready_at(1, 3).await?;
        let own = [cluster.id(1)];
        let after = api.wait_running("web", 3, &[], SOON).await?;
        let (old, new) = (identities(&before, &own), identities(&after, &own));
        ensure!(old.is_subset(&new), "{old:?} are not among {new:?}");
        Ok(())
    })
    .await;
}
