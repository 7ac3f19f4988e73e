//! Networks of one host alone: names, ports and isolation of the containers on them, without managers and with another
//! daemon, and what is left when the host leaves its cluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Client, Cluster, IMAGE, SOON, encode, refused};
use serde_json::{Value, json};

use crate::{binaries, with};

/// Longer than a container waits for an answer from another.
const LIMIT: Duration = Duration::from_secs(8);
const ITSELF: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 80);

async fn network(api: &Api, name: &str, more: Value) -> Result<String> {
    let mut body = json!({"Name": name, "Driver": "bridge"});
    body.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
    let made = api.post("/networks/create", &body).await?;
    Ok(made["Id"].as_str().unwrap_or_default().to_owned())
}

async fn run(api: &Api, name: &str, network: &str, alias: &str, port: Option<&str>) -> Result<()> {
    let ports = port.map_or(json!({}), |port| json!({"80/tcp": [{"HostPort": port}]}));
    let body = json!({
        "Image": IMAGE,
        "HostConfig": {"NetworkMode": network, "PortBindings": ports},
        "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [alias]}}},
    });
    api.post(&format!("/containers/create?name={name}"), &body).await?;
    api.post(&format!("/containers/{name}/start"), &Value::Null).await?;
    Ok(())
}

async fn inspect(api: &Api, name: &str) -> Result<Value> {
    Ok(api.get(&format!("/containers/{name}/json")).await?)
}

/// What a container gets from a URL.
async fn asks(api: &Api, name: &str, url: &str) -> Result<(u16, String)> {
    let object = inspect(api, name).await?;
    let pid = object["State"]["Pid"].as_u64().context("it runs")?;
    let answer = Client::beside(pid)?.get(ITSELF, &format!("/fetch?url={}", encode(url)), LIMIT).await?;
    Ok((answer.status, answer.body))
}

/// Until a container reaches what is at a URL; a program needs a moment before it listens.
async fn reaches(api: &Api, name: &str, url: &str) -> Result<()> {
    let asked = || async {
        match asks(api, name, url).await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    Ok(api.wait_for(&format!("{name} to reach {url}"), SOON, asked).await?)
}

async fn does_not_reach(api: &Api, name: &str, url: &str) -> Result<()> {
    let answer = asks(api, name, url).await;
    ensure!(answer.as_ref().is_ok_and(|(status, _)| *status != 200), "{name} at {url}: {answer:?}");
    Ok(())
}

async fn address(api: &Api, name: &str, network: &str) -> Result<String> {
    let object = inspect(api, name).await?;
    let address = object["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap_or_default();
    ensure!(!address.is_empty(), "{object}");
    Ok(address.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_one_host() {
    with(Cluster::start(&binaries(), 1, 1), async |cluster| {
        // All of it on a host that is no manager.
        let (manager, api, host, outside) = (cluster.api(0), cluster.api(1), cluster.host(1), cluster.client()?);
        let of_manager = network(&manager, "net", json!({})).await?;
        let net = network(&api, "net", json!({"Labels": {"of": "test"}})).await?;
        ensure!(net.len() == 64 && net != of_manager, "two hosts have their own each: {net} {of_manager}");
        network(&api, "other", json!({})).await?;
        network(&api, "inner", json!({"Internal": true})).await?;
        run(&api, "db", "net", "database", None).await?;
        run(&api, "web", "net", "front", Some("8088")).await?;
        run(&api, "far", "other", "database", None).await?;
        for name in ["one", "two"] {
            run(&api, name, "inner", "both", None).await?;
        }
        let shown = api.get("/networks/net").await?;
        let short = inspect(&api, "db").await?["Id"].as_str().unwrap_or_default()[..12].to_owned();
        let on_it: Vec<&str> =
            shown["Containers"].as_object().into_iter().flatten().filter_map(|(_, c)| c["Name"].as_str()).collect();
        ensure!(on_it.len() == 2 && on_it.contains(&"db") && on_it.contains(&"web"), "{shown}");

        let db = address(&api, "db", "net").await?;
        for name in ["db", "database", short.as_str(), "db.net", db.as_str()] {
            reaches(&api, "web", &format!("http://{name}/json")).await?;
        }
        reaches(&api, "db", "http://front/json").await?;
        // Its own name, and what is outside; nobody of another network.
        let published = format!("http://{}/json", host.at(8088));
        for url in ["http://far/json", "http://database/json", published.as_str()] {
            reaches(&api, "far", url).await?;
        }
        for name in ["db", "web", db.as_str()] {
            does_not_reach(&api, "far", &format!("http://{name}/json")).await?;
        }
        let open = || async {
            let answer = outside.get(host.at(8088), "/json", LIMIT).await.map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
        };
        api.wait_for("the published port to answer", SOON, open).await?;
        // Nothing leads out of an internal network.
        reaches(&api, "one", "http://two/json").await?;
        for url in [published.as_str(), "http://db/json"] {
            does_not_reach(&api, "one", url).await?;
        }

        // Neither its managers nor its own daemon are needed by what runs.
        refused(api.delete("/networks/net").await, 403, "has active endpoints")?;
        cluster.host(0).kill_daemon()?;
        let before = inspect(&api, "db").await?;
        host.kill_daemon()?;
        let web = inspect_pid(&before)?;
        let direct = Client::beside(web)?.get(ITSELF, "/json", LIMIT).await?;
        ensure!(direct.status == 200, "{direct:?}");
        ensure!(outside.get(host.at(8088), "/json", LIMIT).await?.status == 200);
        host.start_daemon()?;
        host.wait_ready().await?;
        let is_in = || async {
            let info = api.get("/info").await.map_err(|error| error.to_string())?;
            if info["Swarm"]["LocalNodeState"] == "active" { Ok(()) } else { Err(info["Swarm"].to_string()) }
        };
        api.wait_for("the host to have its place in the cluster", SOON, is_in).await?;
        let after = inspect(&api, "db").await?;
        ensure!(inspect_pid(&after)? == inspect_pid(&before)? && address(&api, "db", "net").await? == db, "{after}");
        reaches(&api, "web", "http://database/json").await?;
        refused(api.delete("/networks/net").await, 403, "has active endpoints")?;
        // Still without a manager: a network, a container on it, and one that is started again and has another address.
        network(&api, "late", json!({})).await?;
        run(&api, "later", "late", "late", None).await?;
        reaches(&api, "later", "http://late/json").await?;
        api.post("/containers/db/restart?t=0", &Value::Null).await?;
        let again = address(&api, "db", "net").await?;
        ensure!(again != db, "another address would show that names follow it: {again}");
        reaches(&api, "web", "http://db/json").await?;
        api.delete("/containers/later?force=1").await?;
        api.delete("/networks/late").await?;
        // Between two runs of a container its network stays.
        network(&api, "waited", json!({})).await?;
        let body = json!({
            "Image": IMAGE,
            "Entrypoint": ["/shoal", "__whoami", "no port"],
            "HostConfig": {"NetworkMode": "waited", "RestartPolicy": {"Name": "always"}},
        });
        api.post("/containers/create?name=fails", &body).await?;
        api.post("/containers/fails/start", &Value::Null).await?;
        let waits = || async {
            let object = inspect(&api, "fails").await.map_err(|error| error.to_string())?;
            let pauses = object["RestartCount"].as_u64() > Some(3) && object["State"]["Restarting"] == true;
            if pauses { Ok(()) } else { Err(object["State"].to_string()) }
        };
        api.wait_for("a container to wait for its start", SOON, waits).await?;
        refused(api.delete("/networks/waited").await, 403, "has active endpoints")?;
        api.post("/containers/fails/stop", &Value::Null).await?;
        api.delete("/networks/waited").await?;
        api.post("/containers/fails/start", &Value::Null).await.err().context("its network is gone")?;
        api.delete("/containers/fails").await?;
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;

        // With the host's membership, all of it goes.
        refused(api.post("/swarm/leave", &Value::Null).await, 503, "containers of its own")?;
        api.post("/swarm/leave?force=1", &Value::Null).await?;
        ensure!(host.container_processes().is_empty(), "{:?}", host.container_processes());
        ensure!(!host.data_dir().join("agent/networks").exists() && !host.run_dir().join("netns/overlay").exists());
        ensure!(outside.get(host.at(8088), "/json", LIMIT).await.is_err(), "its port is closed");
        Ok(())
    })
    .await;
}

fn inspect_pid(object: &Value) -> Result<u64> {
    object["State"]["Pid"].as_u64().filter(|pid| *pid > 0).context("it runs")
}
