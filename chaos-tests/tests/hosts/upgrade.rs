//! A rolling upgrade from a release with an older feature level, under load. See docs/upgrades.md.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Client, Cluster, HostError, IMAGE, SOON, ServiceDraft, TaskView, refused, release};
use serde_json::json;

use crate::members::wait_managers;
use crate::{binaries, with};

fn identities(tasks: &[TaskView]) -> BTreeSet<(String, String, u64)> {
    tasks.iter().map(|t| (t.id.clone(), t.container.clone(), t.pid)).collect()
}

async fn level(api: &Api) -> Result<u64> {
    api.get("/shoal/v1/store").await?["FeatureLevel"].as_u64().context("a level")
}

/// Writes configs through one manager after the other until told to stop; answers the names of those acknowledged.
async fn write_on(apis: Vec<Api>, stop: Arc<AtomicBool>) -> Result<Vec<String>> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("upgrade-{n}");
        let body = json!({"Name": name, "Labels": {}, "Data": "eA=="});
        let deadline = Instant::now() + SOON;
        for turn in n.. {
            match apis[turn % apis.len()].post("/configs/create", &body).await {
                Ok(_) => break,
                // An earlier try, whose outcome was not known, had been carried out.
                Err(HostError::Refused { status: 409, .. }) => break,
                Err(error) => ensure!(Instant::now() < deadline, "nobody takes {name}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        acknowledged.push(name);
        // A user's pace: the machine has other work to do.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(acknowledged)
}

/// Asks the service at one host after the other until told to stop; the first failure is the end. Answers how often.
async fn ask_on(client: Client, places: Vec<std::net::SocketAddr>, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        let place = places[asked % places.len()];
        let answer = client.get(place, "/json", Duration::from_secs(5)).await;
        let answer = answer.with_context(|| format!("request {asked}, at {place}"))?;
        ensure!(answer.status == 200, "request {asked}, at {place}: {answer:?}");
        asked += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_upgraded_one_after_another_under_load() {
    let made = async {
        let mut cluster = Cluster::hosts_of_release(&binaries(), 4, 1).await?;
        cluster.init().await?;
        for index in 1..4 {
            cluster.join(index, index < 3).await?;
        }
        cluster.load_images().await?;
        cluster.wait_ready(4).await?;
        Ok(cluster)
    };
    with(made, async |cluster| {
        let api = cluster.api(0);
        api.create_service(&ServiceDraft::new("web", IMAGE, 4).publish(8080, 80).build()).await?;
        let before = api.wait_running("web", 4, &[], SOON).await?;
        cluster.wait_port(8080).await?;
        ensure!(level(&api).await? == 1, "the cluster is not of the old level");

        let stop = Arc::new(AtomicBool::new(false));
        let apis = (0..3).map(|index| cluster.api(index)).collect();
        let places = cluster.hosts().iter().map(|host| host.at(8080)).collect();
        let writer = tokio::spawn(write_on(apis, stop.clone()));
        let asker = tokio::spawn(ask_on(cluster.client()?, places, stop.clone()));

        for index in 0..4 {
            let witness = (index + 1) % 3;
            ensure!(level(&cluster.api(witness)).await? == 1, "the level rose before the last manager was upgraded");
            let host = cluster.host(index);
            host.stop_daemon().await?.context("no daemon ran")?;
            host.set_env(release(2));
            host.start_daemon()?;
            host.wait_ready().await?;
            cluster.wait_ready_at(witness, 4).await?;
            for manager in 0..3 {
                wait_managers(&cluster.api(manager), 3).await?;
            }
            if index == 2 {
                break;
            }
        }
        api.wait_for("the new level", SOON, || async {
            match level(&api).await {
                Ok(2) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        // The worker is last, and its release does not count.
        cluster.host(3).stop_daemon().await?;
        cluster.host(3).set_env(release(2));
        cluster.host(3).start_daemon()?;
        cluster.host(3).wait_ready().await?;
        cluster.wait_ready(4).await?;

        stop.store(true, Ordering::Relaxed);
        let (acknowledged, asked) = (writer.await??, asker.await??);
        ensure!(
            acknowledged.len() > 20 && asked > 20,
            "{} writes and {asked} requests are no load",
            acknowledged.len()
        );
        let found = api.get("/configs").await?;
        let names: BTreeSet<&str> =
            found.as_array().into_iter().flatten().filter_map(|config| config["Spec"]["Name"].as_str()).collect();
        let lost: Vec<&String> = acknowledged.iter().filter(|name| !names.contains(name.as_str())).collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let after = api.wait_running("web", 4, &[], SOON).await?;
        ensure!(identities(&before) == identities(&after), "{before:?} became {after:?}");

        // No way back: a manager of the old release does not start, says why, and its tasks go on.
        cluster.host(1).stop_daemon().await?;
        cluster.host(1).set_env(release(1));
        cluster.host(1).start_daemon()?;
        cluster.host(1).wait_ready().await?;
        let old = cluster.api(1);
        old.wait_for("the refusal to start", SOON, || async {
            let info = old.get("/info").await.map_err(|e| e.to_string())?;
            let swarm = &info["Swarm"];
            let said = swarm["Error"].as_str().unwrap_or_default();
            if swarm["LocalNodeState"] == "error" && said.contains("feature level 2") {
                return Ok(());
            }
            Err(swarm.to_string())
        })
        .await?;
        cluster.wait_processes(&[0, 1, 2, 3], &after).await?;
        cluster.host(1).stop_daemon().await?;
        cluster.host(1).set_env(release(2));
        cluster.host(1).start_daemon()?;
        cluster.host(1).wait_ready().await?;
        wait_managers(&api, 3).await?;

        // Nor is one let in.
        let worker = cluster.host(3);
        worker.api().post("/swarm/leave", &json!(null)).await?;
        worker.stop_daemon().await?;
        worker.set_env(release(1));
        worker.start_daemon()?;
        worker.wait_ready().await?;
        let (_, token) = api.tokens().await?;
        let join = worker.api().join(&worker.address().to_string(), &cluster.host(0).node_address(), &token).await;
        refused(join, 400, "install a newer release")
    })
    .await;
}
