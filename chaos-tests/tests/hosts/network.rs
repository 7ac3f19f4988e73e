//! Ports and names, asked for from everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Client, Cluster, IMAGE, SOON, ServiceDraft, encode};
use serde_json::Value;

use crate::{binaries, with};

const LIMIT: Duration = Duration::from_secs(3);

async fn json(client: &Client, door: SocketAddr, path: &str) -> Result<Value> {
    let answer = client.get(door, path, LIMIT).await.with_context(|| format!("{path} at {door}"))?;
    ensure!(answer.status == 200, "{path} at {door}: {} {}", answer.status, answer.body);
    serde_json::from_str(&answer.body).with_context(|| answer.body.clone())
}

/// What a task of probe sees when it asks a URL.
async fn fetch(client: &Client, door: SocketAddr, url: &str) -> Result<Value> {
    json(client, door, &format!("/fetch?url={}", encode(url))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_names_from_everywhere() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        api.create_overlay("net").await?;
        api.create_overlay("other").await?;
        let mut tasks = BTreeMap::new();
        for (name, network, port, replicas) in
            [("web", "net", 8080, 2), ("probe", "net", 8081, 3), ("far", "other", 8082, 1)]
        {
            let spec = ServiceDraft::new(name, IMAGE, replicas).network(network).publish(port, 80).build();
            api.create_service(&spec).await?;
            tasks.insert(name, api.wait_running(name, usize::try_from(replicas)?, &[], SOON).await?);
        }
        let outside = cluster.client()?;
        for port in [8080, 8081, 8082] {
            cluster.wait_port(port).await?;
        }
        for host in cluster.hosts() {
            // From outside; who serves sees who asked.
            let who = json(&outside, host.at(8080), "/json").await?;
            let seen = who["client"].as_str().unwrap_or_default().to_owned();
            ensure!(seen.starts_with("10.99.0.1:"), "{} hides the client: {who}", host.name());
            // From each host, to itself and to others.
            for from in cluster.hosts() {
                json(&from.client()?, host.at(8080), "/json").await.with_context(|| format!("from {}", from.name()))?;
            }
            let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
            json(&host.client()?, loopback, "/json").await.with_context(|| format!("on {}", host.name()))?;
        }
        // From tasks, by name: through the virtual address, and to each task itself.
        let door = cluster.host(1).at(8081);
        let mut served = BTreeSet::new();
        for _ in 0..40 {
            let seen = fetch(&outside, door, "http://web/json").await?;
            let who: Value = serde_json::from_str(seen["body"].as_str().unwrap_or_default())?;
            served.insert(who["hostname"].to_string());
        }
        ensure!(served.len() == 2, "a virtual address leads to {served:?}, of two tasks");
        fetch(&outside, door, "http://tasks.web/json").await?;
        // And to one task by what its container is called.
        for task in &tasks["web"] {
            let name = &task.container[..12];
            let asked =
                || async { fetch(&outside, door, &format!("http://{name}/json")).await.map_err(|e| e.to_string()) };
            let seen = api.wait_for("a container's short id to be a name", SOON, asked).await?;
            let who: Value = serde_json::from_str(seen["body"].as_str().unwrap_or_default())?;
            ensure!(who["hostname"] == name, "{name} leads to {who}");
        }
        // From tasks, through published ports, on every host: also its own.
        for host in cluster.hosts() {
            for _ in 0..6 {
                fetch(&outside, door, &format!("http://{}:8080/json", host.address())).await?;
            }
        }
        // Names of other networks and of nobody are nobody's.
        for name in ["far", "nosuch"] {
            let answer = outside.get(door, &format!("/fetch?url=http://{name}/"), LIMIT).await?;
            ensure!(answer.status == 502 && answer.body.contains("resolve"), "{name}: {answer:?}");
        }
        // A service that is gone is gone for clients too.
        api.delete("/services/web").await?;
        for host in cluster.hosts() {
            api.wait_for(&format!("port 8080 of {} to be closed", host.name()), SOON, || async {
                match outside.get(host.at(8080), "/json", LIMIT).await {
                    Ok(answer) => Err(format!("{answer:?}")),
                    Err(_) => Ok(()),
                }
            })
            .await?;
        }
        api.wait_for("the name to be gone", SOON, || async {
            let answer = outside.get(door, "/fetch?url=http://web/", LIMIT).await.map_err(|e| e.to_string())?;
            if answer.status == 502 && answer.body.contains("resolve") { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await?;
        Ok(())
    })
    .await;
}
