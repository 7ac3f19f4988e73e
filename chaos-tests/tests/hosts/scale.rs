//! Many tasks, an API that answers throughout, and nothing left in the end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Cluster, IMAGE, SOON, ServiceDraft};

use crate::{binaries, with};

/// An answer that takes longer is none, for a user who waits for it. Debug builds share two cores with all tasks.
const PATIENCE: Duration = Duration::from_secs(5);
/// Fifty tasks start within this time.
const MANY: Duration = Duration::from_secs(180);

/// Asks one manager for its services again and again; notes what was not answered, and the slowest answer.
async fn watch(api: Api, stop: &AtomicBool, trouble: &Mutex<Vec<String>>) -> Duration {
    let mut slowest = Duration::ZERO;
    while !stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        let asked = tokio::time::timeout(PATIENCE, api.get("/services?status=true")).await;
        slowest = slowest.max(began.elapsed());
        let seen = match asked {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("{}: no answer within {PATIENCE:?}", api.socket().display())),
        };
        if let Some(seen) = seen {
            trouble.lock().expect("nobody panics with it").push(seen);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    slowest
}

#[tokio::test(flavor = "multi_thread")]
async fn one_to_fifty_to_five_and_nothing_left() {
    with(Cluster::start(&binaries(), 3, 2), async |cluster| {
        let api = cluster.api(0);
        let network = api.create_overlay("net").await?;
        api.create_service(&ServiceDraft::new("web", IMAGE, 1).network("net").publish(8080, 80).build()).await?;
        api.wait_running("web", 1, &[], SOON).await?;

        let (stop, trouble) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let scaling = async {
            let scaled = scale(&api).await;
            stop.store(true, Ordering::SeqCst);
            scaled
        };
        let (scaled, ..) = tokio::join!(
            scaling,
            watch(cluster.api(0), &stop, &trouble),
            watch(cluster.api(1), &stop, &trouble),
            watch(cluster.api(2), &stop, &trouble),
        );
        scaled?;
        let trouble = trouble.into_inner().unwrap();
        ensure!(trouble.is_empty(), "the API did not answer throughout: {trouble:?}");

        cluster.wait_port(8080).await?;
        leave_nothing(cluster, &network).await
    })
    .await;
}

async fn scale(api: &Api) -> Result<()> {
    api.scale("web", 50).await?;
    let tasks = api.wait_running("web", 50, &[], MANY).await?;
    let mut places: Vec<&str> = tasks.iter().map(|t| t.node.as_str()).collect();
    places.sort_unstable();
    places.dedup();
    ensure!(places.len() == 5, "50 tasks are not spread over 5 hosts: {places:?}");
    api.scale("web", 5).await?;
    api.wait_running("web", 5, &[], SOON).await?;
    Ok(())
}

/// `service rm`, `network rm`, `node leave` on every host, and then a look at the machine.
async fn leave_nothing(cluster: &Cluster, network: &str) -> Result<()> {
    let api = cluster.api(0);
    api.delete("/services/web").await?;
    api.wait_for("the containers' removal", SOON, || async {
        let count = |host: &chaos_tests::hosts::Host| {
            std::fs::read_dir(host.data_dir().join("containers")).map_or(0, Iterator::count)
        };
        let left: usize = cluster.hosts().iter().map(count).sum();
        if left == 0 { Ok(()) } else { Err(format!("{left} containers")) }
    })
    .await?;
    api.wait_for("the network's removal", SOON, || async {
        api.delete(&format!("/networks/{network}")).await.map(drop).map_err(|e| e.to_string())
    })
    .await?;
    // Workers first, then the managers; the last of them takes the cluster along, and must be told to.
    for index in [4, 3, 2, 1, 0] {
        let path = if index < 3 { "/swarm/leave?force=true" } else { "/swarm/leave" };
        let left = cluster.api(index).post(path, &serde_json::Value::Null).await;
        left.with_context(|| format!("{} leaves", cluster.host(index).name()))?;
        let info = cluster.api(index).get("/info").await?;
        ensure!(info["Swarm"]["LocalNodeState"] == "inactive", "after leaving: {}", info["Swarm"]);
        ensure!(!cluster.host(index).data_dir().join("identity/membership").exists(), "the membership is left");
        cluster.wait_clean(&[index]).await?;
    }
    Ok(())
}
