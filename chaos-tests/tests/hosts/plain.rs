//! Containers outside of services: what of them outlives a daemon, their ports, and their places on networks.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Client, Cluster, IMAGE, SOON, ServiceDraft, encode, refused};
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

/// The program needs a moment before it listens.
async fn wait_open(api: &Api, client: &Client, door: SocketAddr) -> Result<()> {
    let open = || async { answers(client, door).await.map_err(|error| format!("{error:#}")) };
    Ok(api.wait_for(&format!("{door} to answer"), SOON, open).await?)
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
async fn restart(cluster: &Cluster, index: usize, meanwhile: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let host = cluster.host(index);
    host.kill_daemon()?;
    meanwhile().await?;
    host.start_daemon()?;
    host.wait_ready().await?;
    has_its_place(&cluster.api(index)).await
}

/// A daemon that has just begun is not in its cluster yet.
async fn has_its_place(api: &Api) -> Result<()> {
    let is_in = || async {
        let info = api.get("/info").await.map_err(|error| error.to_string())?;
        if info["Swarm"]["LocalNodeState"] == "active" { Ok(()) } else { Err(info["Swarm"].to_string()) }
    };
    Ok(api.wait_for("the host to have its place in the cluster", SOON, is_in).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_containers_and_their_ports() {
    with(Cluster::start(&binaries(), 1, 0), async |cluster| {
        let (api, host, outside) = (cluster.api(0), cluster.host(0), cluster.client()?);
        let ports = |number: &str| json!({"PortBindings": {"80/tcp": [{"HostPort": number}, {"HostPort": ""}]}});
        make(&api, "box", ports("8088")).await?;
        wait_closed(&api, &outside, host.at(8088)).await?;
        api.post("/containers/box/start", &Value::Null).await?;
        wait_open(&api, &outside, host.at(8088)).await?;
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
        restart(cluster, 0, async || {
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
        has_its_place(&api).await?;
        let is_up = || async {
            let alone = inspect(&api, "alone").await.map_err(|error| error.to_string())?;
            if alone["State"]["Running"] == true { Ok(()) } else { Err(alone["State"].to_string()) }
        };
        api.wait_for("a container to be started again", SOON, is_up).await?;
        ensure!(inspect(&api, "box").await?["State"]["Status"] == "exited");
        api.post("/containers/second/start", &Value::Null).await?;
        wait_open(&api, &outside, host.at(8088)).await?;
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

#[tokio::test(flavor = "multi_thread")]
async fn plain_containers_on_attachable_networks() {
    with(Cluster::start(&binaries(), 1, 1), async |cluster| {
        let (manager, worker, outside) = (cluster.api(0), cluster.api(1), cluster.client()?);
        for (name, attachable) in [("net", true), ("closed", false)] {
            let spec = json!({"Name": name, "Driver": "overlay", "Attachable": attachable});
            manager.post("/networks/create", &spec).await?;
        }
        let constraint = format!("node.id=={}", cluster.id(0));
        let web = ServiceDraft::new("web", IMAGE, 1).network("net").publish(8080, 80).constraint(&constraint).build();
        manager.create_service(&web).await?;
        manager.wait_running("web", 1, &[], SOON).await?;
        cluster.wait_port(8080).await?;
        make(&worker, "refused", json!({"NetworkMode": "closed"})).await?;
        let no = worker.post("/containers/refused/start", &Value::Null).await;
        refused(no, 403, "network closed not manually attachable")?;
        let body = json!({
            "Image": IMAGE,
            "HostConfig": {"NetworkMode": "net", "PortBindings": {"80/tcp": [{"HostPort": "8090"}]}},
            "NetworkingConfig": {"EndpointsConfig": {"net": {"Aliases": ["alias"]}}},
        });
        worker.post("/containers/create?name=box", &body).await?;
        worker.post("/containers/box/start", &Value::Null).await?;
        let before = inspect(&worker, "box").await?;
        let address = before["NetworkSettings"]["Networks"]["net"]["IPAddress"].as_str().unwrap_or_default().to_owned();
        ensure!(address.starts_with("10."), "{before}");
        let (to_box, to_web) = (cluster.host(1).at(8090), cluster.host(0).at(8080));
        let short = before["Id"].as_str().unwrap_or_default()[..12].to_owned();
        let reach = async |door: SocketAddr, name: &str| {
            let path = format!("/fetch?url={}", encode(&format!("http://{name}/json")));
            let asked = || async {
                let answer = outside.get(door, &path, LIMIT).await.map_err(|error| error.to_string())?;
                if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
            };
            manager.wait_for(&format!("{name} to be reached from {door}"), SOON, asked).await
        };
        reach(to_box, "web").await?;
        for name in ["box", "alias", short.as_str(), address.as_str()] {
            reach(to_web, name).await?;
        }
        restart(cluster, 1, async || Ok(reach(to_web, "box").await?)).await?;
        let after = inspect(&worker, "box").await?;
        ensure!(after["State"]["Pid"] == before["State"]["Pid"], "{before} {after}");
        reach(to_box, "web").await?;
        reach(to_web, "box").await?;
        // What it has is given back, once: the network can go.
        refused(manager.delete("/networks/net").await, 400, "is in use by")?;
        worker.post("/containers/box/stop?t=0", &Value::Null).await?;
        manager.delete("/services/web").await?;
        let removed = || async { manager.delete("/networks/net").await.map(drop).map_err(|error| error.to_string()) };
        manager.wait_for("the network to be unused", SOON, removed).await?;
        let gone = worker.post("/containers/box/start", &Value::Null).await;
        refused(gone, 404, "network net not found")?;
        for name in ["box", "refused"] {
            worker.delete(&format!("/containers/{name}?force=1")).await?;
        }
        ensure!(cluster.host(1).container_processes().is_empty());
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_container_keeps_its_address_while_it_is_restarted() {
    with(Cluster::start(&binaries(), 1, 1), async |cluster| {
        let (manager, worker, host) = (cluster.api(0), cluster.api(1), cluster.host(1));
        let ipam = json!({"Config": [{"Subnet": "10.77.0.0/29"}]});
        let spec = json!({"Name": "small", "Driver": "overlay", "Attachable": true, "IPAM": ipam});
        manager.post("/networks/create", &spec).await?;
        let wanted = json!({"NetworkMode": "small", "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1}});
        // As many as there are addresses beside the gateway's.
        for number in 1..=6 {
            make(&worker, &format!("box{number}"), wanted.clone()).await?;
            let started = worker.post(&format!("/containers/box{number}/start"), &Value::Null).await;
            if number == 6 {
                refused(started, 500, "could not find an available IP address on network")?;
            } else {
                started?;
            }
        }
        let address = async |name: &str| -> Result<String> {
            let object = inspect(&worker, name).await?;
            Ok(object["NetworkSettings"]["Networks"]["small"]["IPAddress"].as_str().unwrap_or_default().to_owned())
        };
        let (first, second) = (address("box1").await?, address("box2").await?);
        ensure!(first.starts_with("10.77.0.") && second.starts_with("10.77.0."), "{first:?} {second:?}");
        ensure!(address("box6").await?.is_empty());
        worker.post("/containers/box1/restart?t=0", &Value::Null).await?;
        ensure!(address("box1").await? == first);
        // Its policy does the same.
        let pid = inspect(&worker, "box2").await?["State"]["Pid"].as_i64().unwrap_or_default();
        host.kill_in_container(i32::try_from(pid)?)?;
        let is_up = async |name: &str| {
            let object = inspect(&worker, name).await.map_err(|error| error.to_string())?;
            let up = object["State"]["Status"] == "running" && object["RestartCount"] == 1;
            if up { Ok(()) } else { Err(format!("{} {}", object["State"], object["RestartCount"])) }
        };
        worker.wait_for("box2 to be started again", SOON, || is_up("box2")).await?;
        ensure!(address("box2").await? == second);
        // Nobody has to be asked for that.
        cluster.host(0).power_off()?;
        worker.post("/containers/box1/restart?t=0", &Value::Null).await?;
        ensure!(address("box1").await? == first);

        // A host that begins without managers waits for them, and its containers have not failed for that.
        host.power_off()?;
        host.power_on()?;
        host.wait_ready().await?;
        has_its_place(&worker).await?;
        let waiting = || async {
            let state = inspect(&worker, "box3").await.map_err(|error| error.to_string())?["State"].take();
            if state["Status"] == "restarting" { Ok(()) } else { Err(state.to_string()) }
        };
        worker.wait_for("box3 to wait for its start", Duration::from_secs(5), waiting).await?;
        let has_asked = || async {
            let log = host.log_tail(400);
            if log.contains("a container could not be started again") { Ok(()) } else { Err(log) }
        };
        worker.wait_for("a start without managers", SOON, has_asked).await?;
        let waits = inspect(&worker, "box3").await?;
        ensure!(waits["State"]["Status"] == "restarting" && waits["RestartCount"] == 1, "{waits}");
        // What has ended for good has no address any more, which may be another's.
        ensure!(inspect(&worker, "box2").await?["State"]["Status"] == "exited");
        ensure!(address("box2").await?.is_empty());
        cluster.host(0).power_on()?;
        cluster.host(0).wait_ready().await?;
        worker.wait_for("box3 to be started again", SOON, || is_up("box3")).await?;
        ensure!(!address("box3").await?.is_empty());
        for number in 1..=6 {
            worker.delete(&format!("/containers/box{number}?force=1")).await?;
        }
        ensure!(host.container_processes().is_empty(), "{:?}", host.container_processes());
        Ok(())
    })
    .await;
}
