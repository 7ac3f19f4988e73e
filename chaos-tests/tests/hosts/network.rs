//! Ports and names, asked for from everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Client, Cluster, IMAGE, SOON, ServiceDraft, encode};
use overlay_net::kernel::Links;
use serde_json::{Value, json as value};

use crate::draining::virtual_ip;
use crate::{binaries, with};

const LIMIT: Duration = Duration::from_secs(3);
/// How long a client of a dead host waits at the most, on a machine that is busy with debug builds. About 1 s is usual.
const RESET: Duration = Duration::from_millis(2_500);

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

/// The IPv6 addresses of a service's tasks on a network, with their prefix.
async fn addresses6(cluster: &Cluster, service: &str, network: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (task, _) in tasks_with_hosts(cluster, service).await? {
        let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
        let on = |attachment: &&Value| attachment["Network"]["Spec"]["Name"] == network;
        let own = attachments.iter().find(on).with_context(|| format!("{task} is not on {network}"))?;
        let six = own["Addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).find(|a| a.contains(':'));
        let six = six.with_context(|| format!("no IPv6 address: {own}"))?;
        found.push(six.split('/').next().unwrap_or_default().to_owned());
    }
    Ok(found)
}

/// Gives a link of a namespace an IPv6 address.
fn give(place: &Client, link: &str, address: Ipv6Addr) -> Result<()> {
    let net = format!("{address}/64").parse()?;
    Ok(place.visit(|| Links::current()?.add_address6(link, net))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_and_published_ports_with_ipv6() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        // A wire with IPv6, and an ingress network with IPv6.
        let outside = cluster.client()?;
        let address = |last: u8| Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last.into());
        for host in cluster.hosts() {
            give(&host.client()?, "eth0", address(host.address().octets()[3]))?;
        }
        give(&outside, "wire", address(1))?;
        api.delete("/networks/ingress").await?;
        for (name, ingress, subnets) in
            [("mesh", true, ["10.11.0.0/24", "fd00:11::/64"]), ("net", false, ["10.12.0.0/24", "fd00:12::/64"])]
        {
            let config: Vec<Value> = subnets.iter().map(|subnet| value!({"Subnet": subnet})).collect();
            let create = value!({"Name": name, "Driver": "overlay", "Ingress": ingress, "EnableIPv6": true,
                                 "IPAM": {"Config": config}});
            api.post("/networks/create", &create).await?;
        }
        for (name, port, replicas) in [("web", 8080, 2), ("probe", 8081, 3)] {
            let spec = ServiceDraft::new(name, IMAGE, replicas).network("net").publish(port, 80).build();
            api.create_service(&spec).await?;
        }
        for (name, count) in [("web", 2), ("probe", 3)] {
            api.wait_running(name, count, &[], SOON).await?;
            cluster.wait_port(if name == "web" { 8080 } else { 8081 }).await?;
        }

        // Between tasks: each by its address, all by the virtual one, which names lead to as well.
        let tasks = addresses6(cluster, "web", "net").await?;
        ensure!(tasks.len() == 2 && tasks.iter().all(|a| a.starts_with("fd00:12::")), "{tasks:?}");
        let service = api.get("/services/web").await?;
        let vips = service["Endpoint"]["VirtualIPs"].as_array().cloned().unwrap_or_default();
        let vip = vips.iter().filter_map(|vip| vip["Addr"].as_str()).find(|addr| addr.starts_with("fd00:12::"));
        let vip = vip.and_then(|addr| addr.split('/').next()).with_context(|| format!("{service}"))?.to_owned();
        for host in cluster.hosts() {
            let door = host.at(8081);
            for to in tasks.iter().chain([&vip]) {
                let seen = fetch(&outside, door, &format!("http://[{to}]/json")).await?;
                let who: Value = serde_json::from_str(seen["body"].as_str().unwrap_or_default())?;
                let client = who["client"].as_str().unwrap_or_default();
                ensure!(client.starts_with("[fd00:12::"), "{to} was asked by {who}");
            }
            let seen = fetch(&outside, door, "http://web/json").await?;
            let resolved = seen["resolved"].as_str().unwrap_or_default();
            ensure!(resolved == vip || resolved.starts_with("10.12.0."), "{seen}");
        }

        // From outside, and from each host, by IPv6: who serves sees who asked.
        for host in cluster.hosts() {
            let door = SocketAddr::from((address(host.address().octets()[3]), 8080));
            let who = json(&outside, door, "/json").await?;
            let client = who["client"].as_str().unwrap_or_default();
            ensure!(client.starts_with("[fd99::1]:"), "{} hides the client: {who}", host.name());
            for from in cluster.hosts() {
                json(&from.client()?, door, "/json").await.with_context(|| format!("from {}", from.name()))?;
            }
        }

        // A host whose daemon is started anew goes on where it was.
        let host = cluster.host(2);
        host.stop_daemon().await?;
        host.start_daemon()?;
        host.wait_ready().await?;
        let door = SocketAddr::from((address(host.address().octets()[3]), 8080));
        for _ in 0..10 {
            json(&outside, door, "/json").await?;
        }
        Ok(())
    })
    .await;
}

/// The tasks of a service, each with the address of its host.
async fn tasks_with_hosts(cluster: &Cluster, service: &str) -> Result<Vec<(Value, Ipv4Addr)>> {
    let api = cluster.api(0);
    let nodes = api.get("/nodes").await?;
    let filters = encode(&value!({"service": [service], "desired-state": ["running"]}).to_string());
    let tasks = api.get(&format!("/tasks?filters={filters}")).await?;
    let host_of = |task: &Value| {
        let node = nodes.as_array()?.iter().find(|node| node["ID"] == task["NodeID"])?;
        let name = node["Description"]["Hostname"].as_str()?;
        cluster.hosts().iter().find(|host| host.name() == name).map(|host| host.address())
    };
    let tasks = tasks.as_array().context("a list of tasks")?.iter();
    tasks.map(|task| Ok((task.clone(), host_of(task).context("a task without a host")?))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_on_hosts_networks_of_hosts_and_another_ingress_network() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        let outside = cluster.client()?;

        // An open host-mode port has a number of its own on each host, and other published ports go on working.
        let mut spec = ServiceDraft::new("open", IMAGE, 4).build();
        spec["EndpointSpec"]["Ports"] = value!([{"Protocol": "tcp", "TargetPort": 80, "PublishMode": "host"}]);
        api.create_service(&spec).await?;
        api.create_service(&ServiceDraft::new("first", IMAGE, 1).publish(8080, 80).build()).await?;
        for (name, tasks) in [("open", 4), ("first", 1)] {
            api.wait_running(name, tasks, &[], SOON).await?;
        }
        cluster.wait_port(8080).await?;
        let mut seen = BTreeSet::new();
        for (task, host) in tasks_with_hosts(cluster, "open").await? {
            let port = task["Status"]["PortStatus"]["Ports"][0]["PublishedPort"].as_u64().context("no number")?;
            ensure!((30000..=32767).contains(&port), "{port}");
            let door = SocketAddr::from((host, u16::try_from(port)?));
            ensure!(seen.insert(door), "{door} twice");
            let who = api
                .wait_for(&format!("{door} to answer"), SOON, || async {
                    json(&outside, door, "/json").await.map_err(|error| format!("{error:#}"))
                })
                .await?;
            let id = task["Status"]["ContainerStatus"]["ContainerID"].as_str().unwrap_or_default();
            ensure!(id.starts_with(who["hostname"].as_str().unwrap_or("none")), "{door} leads to {who}, not to {id}");
        }
        ensure!(seen.len() == 4, "{seen:?}");

        // A service that is served locally is served where its tasks are, and nowhere else.
        let mut spec =
            ServiceDraft::new("near", IMAGE, 1).publish(8090, 80).constraint("node.hostname==host-2").build();
        spec["Labels"] = value!({"shoal.publish": "local"});
        api.create_service(&spec).await?;
        api.wait_running("near", 1, &[], SOON).await?;
        let door = cluster.host(1).at(8090);
        let answers = || async { json(&outside, door, "/json").await.map_err(|error| format!("{error:#}")) };
        api.wait_for("the local port", SOON, answers).await?;
        for elsewhere in [0, 2] {
            let door = cluster.host(elsewhere).at(8090);
            let refused = outside.get(door, "/json", LIMIT).await.err().context("a task elsewhere answers")?;
            ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{refused}");
        }
        api.delete("/services/near").await?;

        // What the hosts listen at is theirs.
        for (port, protocol) in [(2377, "tcp"), (4789, "udp")] {
            let mut spec = ServiceDraft::new("greedy", IMAGE, 1).publish(port, 80).build();
            spec["EndpointSpec"]["Ports"][0]["Protocol"] = protocol.into();
            let refused = api.create_service(&spec).await.err().context("a port of the hosts was given away")?;
            ensure!(format!("{refused:#}").contains("is already in use by"), "{refused:#}");
        }

        // On the host's own network a task is seen as its host; on none it runs and has no address.
        let mut spec = ServiceDraft::new("agent", IMAGE, 1).network("host").build();
        spec["Mode"] = value!({"Global": {}});
        api.create_service(&spec).await?;
        api.create_service(&ServiceDraft::new("alone", IMAGE, 1).network("none").build()).await?;
        for (name, tasks) in [("agent", 3), ("alone", 1)] {
            api.wait_running(name, tasks, &[], SOON).await?;
        }
        for host in cluster.hosts() {
            let who = json(&outside, host.at(80), "/json").await?;
            let address = value!(host.address().to_string());
            let has = who["addresses"].as_array().is_some_and(|all| all.contains(&address));
            ensure!(who["hostname"] == value!(host.name()) && has, "{} is {who}", host.name());
        }

        // Another ingress network, once nobody needs the first.
        let kept = api.delete("/networks/ingress").await.err().context("a network in use was removed")?;
        ensure!(format!("{kept:#}").contains("depends on it"), "{kept:#}");
        api.delete("/services/first").await?;
        api.wait_for("the ingress network to be removed", SOON, || async {
            api.delete("/networks/ingress").await.map_err(|error| format!("{error:#}"))
        })
        .await?;
        let create = value!({"Name": "mesh", "Driver": "overlay", "Ingress": true,
                             "IPAM": {"Config": [{"Subnet": "10.11.0.0/24"}]}});
        api.post("/networks/create", &create).await?;
        api.create_service(&ServiceDraft::new("second", IMAGE, 2).publish(8080, 80).build()).await?;
        api.wait_running("second", 2, &[], SOON).await?;
        cluster.wait_port(8080).await?;
        for host in cluster.hosts() {
            let who = json(&outside, host.at(8080), "/json").await?;
            let client = who["client"].as_str().unwrap_or_default();
            ensure!(client.starts_with("10.99.0.1:"), "{} hides the client: {who}", host.name());
            let on_new = |all: &Vec<Value>| all.iter().any(|a| a.as_str().is_some_and(|a| a.starts_with("10.11.0.")));
            ensure!(who["addresses"].as_array().is_some_and(on_new), "{who}");
        }
        Ok(())
    })
    .await;
}

/// One request over a connection that stays open; what the task says of itself.
fn ask(stream: &mut TcpStream) -> io::Result<Value> {
    stream.write_all(b"GET /json HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer)?;
        said.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&said);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(who) = serde_json::from_str(body)
        {
            return Ok(who);
        }
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Waits for what comes next, and says what and how long after `since`.
fn wait(mut stream: TcpStream, since: Instant) -> (Duration, io::Result<usize>) {
    let outcome = stream.read(&mut [0; 64]);
    (since.elapsed(), outcome)
}

/// On a kernel without WireGuard, nobody carries such a network, and everybody says why; on one that has it, tasks on
/// different hosts meet there. (What is on the wire then, `.ci/machine sealed` looks at.)
#[tokio::test(flavor = "multi_thread")]
async fn encrypted_networks_are_for_hosts_that_can() {
    with(Cluster::start(&binaries(), 1, 1), async |cluster| {
        let api = cluster.api(0);
        let network = value!({"Name": "quiet", "Driver": "overlay", "Options": {"encrypted": ""}});
        api.post("/networks/create", &network).await?;
        let seen = api.get("/networks/quiet").await?;
        ensure!(seen["Options"]["encrypted"] == "", "{seen}");
        let mut ingress = network.clone();
        (ingress["Name"], ingress["Ingress"]) = ("mesh".into(), true.into());
        let refused = api.post("/networks/create", &ingress).await.err().context("the ingress network is encrypted")?;
        ensure!(refused.to_string().contains("cannot be encrypted"), "{refused}");
        let spec = ServiceDraft::new("web", IMAGE, 2).network("quiet").publish(8080, 80).build();
        api.create_service(&spec).await?;
        if let Err(error) = overlay_net::Overlay::try_sealing() {
            ensure!(std::env::var_os("SHOAL_TEST_MACHINE").is_none(), "{error}, in the machine that has it");
            let why = "encrypted networks not possible on 2 nodes";
            api.wait_for("the reason", SOON, || async {
                let tasks = api.get("/tasks").await.map_err(|e| e.to_string())?;
                let told = tasks.as_array().into_iter().flatten().map(|task| task["Status"]["Err"].to_string());
                let told: Vec<String> = told.collect();
                if told.len() == 2 && told.iter().all(|text| text.contains(why)) {
                    Ok(())
                } else {
                    Err(format!("{told:?}"))
                }
            })
            .await?;
            let why = api.get("/shoal/v1/services/web/why").await?.to_string();
            ensure!(
                why.matches("encrypted networks not possible: the kernel of this host has no WireGuard").count() == 2,
                "{why}"
            );
            println!("{error}: that is what was tested");
            // Others are not concerned.
            api.create_overlay("plain").await?;
            api.create_service(&ServiceDraft::new("plain", IMAGE, 2).network("plain").build()).await?;
            api.wait_running("plain", 2, &[], SOON).await?;
            return Ok(());
        }
        api.wait_running("web", 2, &[], SOON).await?;
        cluster.wait_port(8080).await?;
        let outside = cluster.client()?;
        let mut served = BTreeSet::new();
        for _ in 0..20 {
            let seen = fetch(&outside, cluster.host(1).at(8080), "http://web/json").await?;
            let who: Value = serde_json::from_str(seen["body"].as_str().unwrap_or_default())?;
            served.insert(who["hostname"].to_string());
        }
        ensure!(served.len() == 2, "a virtual address leads to {served:?}, of two tasks");
        Ok(())
    })
    .await;
}

/// The death of a host ends what its tasks were being asked, for those too who only wait for an answer; and nobody else's
/// connections.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_connected_to_a_host_that_dies_is_reset() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        let network = api.create_overlay("net").await?;
        let mut spec = ServiceDraft::new("web", IMAGE, 1).network("net").publish(8080, 80).build();
        spec["Mode"] = value!({"Global": {}});
        api.create_service(&spec).await?;
        let probe = ServiceDraft::new("probe", IMAGE, 1).network("net").constraint("node.hostname==host-1");
        api.create_service(&probe.build()).await?;
        let probe = api.wait_running("probe", 1, &[], SOON).await?;
        let webs = api.wait_running("web", 3, &[], SOON).await?;
        cluster.wait_port(8080).await?;
        let vip = virtual_ip(&api, "web", &network).await?;
        let victim = webs.iter().find(|task| task.node == cluster.id(2)).context("a task on host-3")?;

        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        let doors = [
            ("a task", Client::beside(probe[0].pid)?, vip),
            ("outside", cluster.client()?, cluster.host(0).at(8080)),
            ("a host", cluster.host(0).client()?, loopback),
        ];
        let (mut waiting, mut others) = (Vec::new(), Vec::new());
        for (name, client, door) in &doors {
            let (mut led_there, mut tries) = (0, 0);
            while led_there < 4 {
                tries += 1;
                ensure!(tries < 200, "{name} is never led to host-3");
                let mut stream = client.visit(|| TcpStream::connect_timeout(door, LIMIT))?;
                stream.set_read_timeout(Some(4 * LIMIT))?;
                let who = ask(&mut stream).with_context(|| format!("{name} at {door}"))?;
                if !victim.container.starts_with(who["hostname"].as_str().context("a name")?) {
                    others.push((name, stream));
                    continue;
                }
                led_there += 1;
                // One half waits for an answer, the other half for nothing in particular.
                if led_there % 2 == 0 {
                    stream.write_all(b"GET /slow?ms=10000 HTTP/1.1\r\nHost: web\r\n\r\n")?;
                }
                waiting.push((name, stream));
            }
        }
        others.truncate(20);

        let since = Instant::now();
        let threads: Vec<_> =
            waiting.into_iter().map(|(name, stream)| (name, std::thread::spawn(move || wait(stream, since)))).collect();
        cluster.host(2).power_off()?;
        let mut longest = Duration::ZERO;
        for (name, thread) in threads {
            let (took, outcome) = thread.join().expect("no client panics");
            let reset = matches!(&outcome, Err(error) if error.kind() == ErrorKind::ConnectionReset);
            ensure!(reset, "{name}, after {took:?}: {outcome:?}");
            longest = longest.max(took);
        }
        println!("all clients of the dead host were reset within {longest:?}");
        ensure!(longest < RESET, "{longest:?}");
        // By now nobody is led there, and nobody else has noticed.
        for (name, client, door) in &doors {
            for _ in 0..10 {
                client.get(*door, "/json", LIMIT).await.with_context(|| format!("{name} at {door}"))?;
            }
        }
        for (name, stream) in &mut others {
            ask(stream).with_context(|| format!("{name}: a connection to a living host"))?;
        }
        Ok(())
    })
    .await;
}
