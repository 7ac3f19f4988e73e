//! Containers outside of services: what of them outlives a daemon, their ports, and their places on networks.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Client, Cluster, Host, IMAGE, SOON, refused};
use serde_json::{Value, json};

use crate::{binaries, with};

const LIMIT: Duration = Duration::from_secs(3);

async fn make(api: &Api, name: &str, host_config: Value) -> Result<()> {
    let body = json!({"Image": IMAGE, "HostConfig": host_config});
    api.post(&format!("/containers/create?name={name}"), &body).await?;
    Ok(())
}

async fn inspect(api: &Api, name: &str) -> Result<Value> {
    Ok(api.get(&format!("/containers/{name}/json")).await?)
}

async fn answers(client: &Client, door: SocketAddr) -> Result<()> {
    let answer = client.get(door, "/json", LIMIT).await.with_context(|| format!("{door}"))?;
    ensure!(answer.status == 200, "{door}: {} {}", answer.status, answer.body);
    Ok(())
}

async fn wait_closed(api: &Api, client: &Client, door: SocketAddr) -> Result<()> {
    let closed = || async {
        match client.get(door, "/json", LIMIT).await {
            Ok(answer) => Err(format!("{answer:?}")),
            Err(_) => Ok(()),
        }
    };
    Ok(api.wait_for(&format!("{door} to be closed"), SOON, closed).await?)
}

/// The daemon dies, and another one takes its place; what the containers of the host do meanwhile.
async fn restart(host: &Host, meanwhile: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    host.kill_daemon()?;
    meanwhile().await?;
    host.start_daemon()?;
    Ok(host.wait_ready().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_containers_and_their_ports() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| {
        let (api, host, outside) = (cluster.api(0), cluster.host(0), cluster.client()?);
        let ports = |number: &str| json!({"PortBindings": {"80/tcp": [{"HostPort": number}, {"HostPort": ""}]}});
        make(&api, "box", ports("8088")).await?;
        wait_closed(&api, &outside, host.at(8088)).await?;
        api.post("/containers/box/start", &Value::Null).await?;
        // At once: whoever has started it may rely on its ports.
        answers(&outside, host.at(8088)).await?;
        let before = inspect(&api, "box").await?;
        let bound = before["NetworkSettings"]["Ports"]["80/tcp"].as_array().cloned().unwrap_or_default();
        let numbers: Vec<u16> = bound.iter().filter_map(|binding| binding["HostPort"].as_str()?.parse().ok()).collect();
        ensure!(numbers.len() == 2 && numbers.iter().any(|number| (28_000..30_000).contains(number)), "{before}");
        for number in &numbers {
            answers(&outside, host.at(*number)).await?;
        }
        // Nobody gets a port twice.
        make(&api, "second", json!({"PortBindings": {"80/tcp": [{"HostPort": "8088"}]}})).await?;
        let taken = api.post("/containers/second/start", &Value::Null).await;
        refused(taken, 500, "Bind for 0.0.0.0:8088 failed: port is already allocated")?;
        make(&api, "alone", json!({"NetworkMode": "none", "RestartPolicy": {"Name": "always"}})).await?;
        api.post("/containers/alone/start", &Value::Null).await?;
        // It does not notice that the daemon is another one.
        restart(host, async || {
            for number in &numbers {
                answers(&outside, host.at(*number)).await?;
            }
            Ok(())
        })
        .await?;
        let after = inspect(&api, "box").await?;
        ensure!(after["State"]["Pid"] == before["State"]["Pid"], "{before} {after}");
        for number in &numbers {
            answers(&outside, host.at(*number)).await?;
        }
        // A host that was off starts what is to run, and only that.
        host.power_off()?;
        host.power_on()?;
        host.wait_ready().await?;
        let is_up = || async {
            let alone = inspect(&api, "alone").await.map_err(|error| error.to_string())?;
            if alone["State"]["Running"] == true { Ok(()) } else { Err(alone["State"].to_string()) }
        };
        api.wait_for("a container to be started again", SOON, is_up).await?;
        ensure!(inspect(&api, "box").await?["State"]["Status"] == "exited");
        api.post("/containers/second/start", &Value::Null).await?;
        answers(&outside, host.at(8088)).await?;
        api.post("/containers/second/stop?t=0", &Value::Null).await?;
        wait_closed(&api, &outside, host.at(8088)).await?;
        for name in ["box", "second", "alone"] {
            api.delete(&format!("/containers/{name}?force=1")).await?;
        }
        ensure!(host.container_processes().is_empty(), "{:?}", host.container_processes());
        Ok(())
    })
    .await;
}
