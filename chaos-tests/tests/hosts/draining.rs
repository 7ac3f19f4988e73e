//! Tasks that stop while they are asked: nobody may notice, it may take no longer than a few words between hosts do, and
//! who does not let go in time is named.

use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Api, Client, Cluster, Freshness, IMAGE, SOON, ServiceDraft, TaskView};
use serde_json::{Value, json};

use crate::{binaries, with};

/// One request takes so long at the most, on a machine that is busy with debug builds.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(30);
/// Failures that are shown.
const SHOWN: usize = 20;

/// Clients that ask for as long as they are wanted, and what they came to.
struct Load {
    began: Instant,
    stop: AtomicBool,
    kept: AtomicU64,
    new: AtomicU64,
    failures: Mutex<Vec<(io::ErrorKind, String)>>,
}

impl Load {
    fn new() -> Arc<Load> {
        Arc::new(Load {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            kept: AtomicU64::new(0),
            new: AtomicU64::new(0),
            failures: Mutex::default(),
        })
    }

    /// What failed, but for what failed in one of these ways.
    fn failures(&self, allowed: &[io::ErrorKind]) -> Vec<String> {
        let failures = self.failures.lock().unwrap();
        failures.iter().filter(|(kind, _)| !allowed.contains(kind)).map(|(_, text)| text.clone()).collect()
    }

    fn fails(&self, what: &str, door: SocketAddr, error: &io::Error) {
        let at = self.began.elapsed().as_secs_f64();
        let text = format!("{at:.3} s: {what} at {door}: {error}");
        self.failures.lock().unwrap().push((error.kind(), text));
    }

    /// Asks over one connection until the server says that it closes it, then over the next. An end that was not
    /// announced is a failure.
    fn keep_alive(&self, door: SocketAddr) {
        let mut connection: Option<BufReader<TcpStream>> = None;
        let mut number = 0_u64;
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            let asked = (|| {
                let mut open = match connection.take() {
                    Some(open) => open,
                    None => connect(door)?,
                };
                // From quick ones to some that are under way when their server is told to stop.
                let closes = ask(&mut open, number * 37 % 150)?;
                Ok(Some(open).filter(|_| !closes))
            })();
            match asked {
                Ok(open) => {
                    connection = open;
                    self.kept.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => self.fails("a kept connection", door, &error),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Asks over a new connection each time.
    fn new_connections(&self, door: SocketAddr) {
        let mut number = 0_u64;
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            match connect(door).and_then(|mut open| ask(&mut open, number * 11 % 40)) {
                Ok(_) => {
                    self.new.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => self.fails("a new connection", door, &error),
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn connect(door: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&door, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// One request, and its whole answer. Whether the server closes the connection behind it.
fn ask(open: &mut BufReader<TcpStream>, ms: u64) -> io::Result<bool> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    write!(open.get_mut(), "GET /slow?ms={ms} HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let (mut status, mut length, mut closes) = (String::new(), 0, false);
    if open.read_line(&mut status)? == 0 {
        return Err(io::Error::new(UnexpectedEof, "no answer"));
    }
    loop {
        let mut line = String::new();
        if open.read_line(&mut line)? == 0 {
            return Err(io::Error::new(UnexpectedEof, "half an answer"));
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            _ if line.is_empty() => break,
            Some(("content-length", value)) => length = value.parse().map_err(|_| bad(line.clone()))?,
            Some(("connection", value)) => closes = value == "close",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    open.read_exact(&mut body)?;
    if !status.starts_with("HTTP/1.1 200") {
        return Err(bad(status));
    }
    Ok(closes)
}

/// Starts clients at these doors, as seen from where `client` stands: one of each kind at each.
fn start(load: &Arc<Load>, client: &Client, doors: &[SocketAddr]) -> Result<Vec<JoinHandle<io::Result<()>>>> {
    let mut threads = Vec::new();
    for door in doors.iter().copied() {
        for kept in [true, false] {
            let (load, client) = (load.clone(), client.try_clone()?);
            threads.push(std::thread::spawn(move || {
                client.visit(|| {
                    if kept {
                        load.keep_alive(door)
                    } else {
                        load.new_connections(door)
                    }
                    Ok(())
                })
            }));
        }
    }
    Ok(threads)
}

fn on_network(name: &str, replicas: u64) -> ServiceDraft {
    ServiceDraft::new(name, IMAGE, replicas).network("net")
}

/// A service whose tasks finish what they were asked before they end, and take nothing new meanwhile; and of which nobody
/// is led to one that does not listen yet.
fn graceful(name: &str, replicas: u64) -> Value {
    let mut spec = on_network(name, replicas).publish(8080, 80).build();
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Env"] = json!(["WHOAMI_GRACE=4", "WHOAMI_READY=/ready"]);
    container["Healthcheck"] = json!({
        "Test": ["CMD", "/shoal", "__whoami", "check", "/ready"],
        "Interval": 300_000_000, "Timeout": 10_000_000_000_u64, "Retries": 10,
    });
    spec["UpdateConfig"] = json!({"Parallelism": 1, "Order": "stop-first", "Monitor": 500_000_000});
    spec
}

/// Changes a service's spec as a client does, and waits until its update is over.
async fn update(api: &Api, service: &str, change: impl Fn(&mut Value)) -> Result<()> {
    let found = api.get(&format!("/services/{service}")).await?;
    let version = found["Version"]["Index"].as_u64().context("a version")?;
    let mut spec = found["Spec"].clone();
    change(&mut spec);
    api.post(&format!("/services/{service}/update?version={version}"), &spec).await?;
    api.wait_for("the end of the update", SOON, || async {
        let now = api.get(&format!("/services/{service}")).await.map_err(|e| e.to_string())?;
        let state = now["UpdateStatus"]["State"].as_str().unwrap_or("none").to_owned();
        let later = now["Version"]["Index"].as_u64() > Some(version);
        if later && state == "completed" { Ok(()) } else { Err(state) }
    })
    .await?;
    Ok(())
}

async fn set_availability(api: &Api, id: &str, availability: &str) -> Result<()> {
    let found = api.get(&format!("/nodes/{id}")).await?;
    let version = found["Version"]["Index"].as_u64().context("a version")?;
    let mut spec = found["Spec"].clone();
    spec["Availability"] = availability.into();
    api.post(&format!("/nodes/{id}/update?version={version}"), &spec).await?;
    Ok(())
}

/// The virtual address of a service on a network.
async fn virtual_ip(api: &Api, service: &str, network: &str) -> Result<SocketAddr> {
    let found = api.get(&format!("/services/{service}")).await?;
    let all = found["Endpoint"]["VirtualIPs"].as_array().context("virtual addresses")?;
    let one = all.iter().find(|one| one["NetworkID"] == network).context("one on the network")?;
    let address = one["Addr"].as_str().and_then(|addr| addr.split('/').next()).context("an address")?;
    Ok(SocketAddr::new(address.parse()?, 80))
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_that_tasks_are_stopped() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        let network = api.create_overlay("net").await?;
        api.create_service(&graceful("web", 4)).await?;
        api.create_service(&on_network("probe", 1).constraint("node.hostname==host-4").build()).await?;
        let probe = api.wait_running("probe", 1, &[], SOON).await?;
        api.wait_running("web", 4, &[], SOON).await?;
        cluster.wait_port(8080).await?;

        let load = Load::new();
        let mesh: Vec<SocketAddr> = cluster.hosts().iter().map(|host| host.at(8080)).collect();
        let mut threads = start(&load, &cluster.client()?, &mesh)?;
        let address = virtual_ip(&api, "web", &network).await?;
        threads.extend(start(&load, &Client::beside(probe[0].pid)?, &[address, address])?);

        let told = async |what: &str| {
            let failures = load.failures(&[]);
            let shown = failures.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
            ensure!(failures.is_empty(), "{} requests failed by the end of {what}:\n{shown}", failures.len());
            Ok(())
        };
        for replicas in [2, 5, 1, 4] {
            api.scale("web", replicas).await?;
            api.wait_running("web", usize::try_from(replicas)?, &[], SOON).await?;
            told(&format!("scaling to {replicas}")).await?;
        }
        update(&api, "web", |spec| spec["TaskTemplate"]["ForceUpdate"] = 1.into()).await?;
        told("an update").await?;
        update(&api, "web", |spec| {
            spec["TaskTemplate"]["ForceUpdate"] = 2.into();
            spec["UpdateConfig"]["Order"] = "start-first".into();
        })
        .await?;
        told("an update that starts first").await?;
        set_availability(&api, cluster.id(1), "drain").await?;
        let not_there = [cluster.id(1).to_owned()];
        api.wait_running("web", 4, &not_there, SOON).await?;
        // The last of them may still be finishing what it was asked.
        cluster_is_empty(cluster, 1, &api).await?;
        told("draining a host").await?;

        load.stop.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("no client panics")?;
        }
        told("it all").await?;
        let (kept, new) = (load.kept.load(Ordering::SeqCst), load.new.load(Ordering::SeqCst));
        let took = load.began.elapsed();
        println!("{kept} requests over kept connections and {new} over new ones in {took:?}, none of which failed");
        ensure!(kept > 200 && new > 200, "{kept} and {new} requests in {took:?} say nothing");
        Ok(())
    })
    .await;
}

/// Waits until no container runs on a host.
async fn cluster_is_empty(cluster: &Cluster, index: usize, api: &Api) -> Result<()> {
    api.wait_for("the end of a host's tasks", SOON, || async {
        let left = cluster.host(index).container_processes();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await?;
    Ok(())
}

/// How long each of a service's tasks takes to stop, one after the other, from the answer to the request on.
async fn stop_times(api: &Api, service: &str, from: u64) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for replicas in (0..from).rev() {
        api.scale(service, replicas).await?;
        let began = Instant::now();
        api.wait_for("the end of a task", SOON, || async {
            let tasks = api.tasks(service, Freshness::Local).await.map_err(|e| e.to_string())?;
            if tasks.len() as u64 == replicas { Ok(()) } else { Err(format!("{tasks:?}")) }
        })
        .await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// What all tasks are doing.
async fn messages(api: &Api) -> Result<Vec<String>> {
    let tasks = api.get("/tasks").await?;
    let message = |task: &Value| task["Status"]["Message"].as_str().unwrap_or_default().to_owned();
    Ok(tasks.as_array().into_iter().flatten().map(message).collect())
}

/// The middle one.
fn p50(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_cluster_lets_go_at_once_and_a_late_host_is_named() {
    with(Cluster::start(&binaries(), 3, 1), async |cluster| {
        let api = cluster.api(0);
        api.create_overlay("net").await?;
        // On a network that all hosts have, and the mesh; beside it one that nobody can be led to.
        api.create_service(&on_network("web", 9).publish(8080, 80).build()).await?;
        api.create_service(&ServiceDraft::new("alone", IMAGE, 9).build()).await?;
        for service in ["web", "alone"] {
            api.wait_running(service, 9, &[], SOON).await?;
        }
        let alone = stop_times(&api, "alone", 9).await?;
        let web = stop_times(&api, "web", 9).await?;
        println!(
            "a task stops within {:?} (p50; at the most {:?}) on a network, within {:?} ({:?}) on none",
            p50(&web),
            web[web.len() - 1],
            p50(&alone),
            alone[alone.len() - 1]
        );
        // Were a word missing, it would be 2 s.
        ensure!(p50(&web) < p50(&alone) + Duration::from_millis(700), "{web:?} against {alone:?}");

        // A host whose session lives and which does not say that it has let go: at first, nobody calls it Down.
        let late = 3;
        let mut spec = on_network("late", 1).constraint("node.hostname==host-2").build();
        spec["UpdateConfig"] = json!({"Parallelism": 1, "Monitor": 1_000_000});
        api.create_service(&spec).await?;
        api.create_service(&on_network("other", 1).constraint("node.hostname==host-4").build()).await?;
        for service in ["late", "other"] {
            api.wait_running(service, 1, &[], SOON).await?;
        }
        cluster.host(late).hold_agent(true)?;
        // It is a moment before it stands still; a task that is stopped until then is let go of at once.
        let (mut named, mut force) = (false, 0);
        let began = Instant::now();
        while !named && began.elapsed() < Duration::from_secs(12) {
            force += 1;
            let stopped = Instant::now();
            update(&api, "late", |spec| spec["TaskTemplate"]["ForceUpdate"] = force.into()).await?;
            named = messages(&api).await?.iter().any(|m| m == "shutdown; late to let go of it: host-4");
            ensure!(!named || stopped.elapsed() > Duration::from_millis(1500), "after {:?}", stopped.elapsed());
        }
        cluster.host(late).hold_agent(false)?;
        ensure!(named, "nobody names host-4: {:?}", messages(&api).await?);
        Ok(())
    })
    .await;
}

/// The task with the lowest address on a network. (The highest would be given again at once, and only its next holder could
/// answer for the one before.)
async fn lowest<'a>(api: &Api, tasks: &'a [TaskView], network: &str) -> Result<&'a TaskView> {
    let mut lowest: Option<(Ipv4Addr, &TaskView)> = None;
    for task in tasks {
        let found = api.get(&format!("/tasks/{}", task.id)).await?;
        let all = found["NetworksAttachments"].as_array().context("networks")?;
        let one = all.iter().find(|one| one["Network"]["ID"] == network).context("the network")?;
        let address = one["Addresses"][0].as_str().and_then(|address| address.split('/').next());
        let address = address.context("an address")?.parse()?;
        if lowest.is_none_or(|(other, _)| address < other) {
            lowest = Some((address, task));
        }
    }
    Ok(lowest.context("a task")?.1)
}

/// Nobody can wait for a task that is killed. Who asks it is told so at once, and does not ask into the void until all
/// hosts know.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_a_task_that_died_is_told_at_once() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        let network = api.create_overlay("net").await?;
        api.create_service(&graceful("web", 3)).await?;
        api.create_service(&on_network("probe", 1).constraint("node.hostname==host-3").build()).await?;
        let probe = api.wait_running("probe", 1, &[], SOON).await?;
        api.wait_running("web", 3, &[], SOON).await?;
        cluster.wait_port(8080).await?;

        let load = Load::new();
        let mesh: Vec<SocketAddr> = cluster.hosts().iter().map(|host| host.at(8080)).collect();
        let mut threads = start(&load, &cluster.client()?, &mesh)?;
        let address = virtual_ip(&api, "web", &network).await?;
        threads.extend(start(&load, &Client::beside(probe[0].pid)?, &[address, address])?);
        for _ in 0..6 {
            let tasks = api.wait_running("web", 3, &[], SOON).await?;
            let victim = lowest(&api, &tasks, &network).await?;
            let host = (0..3).find(|index| cluster.id(*index) == victim.node).context("its host")?;
            cluster.host(host).kill_in_container(i32::try_from(victim.pid)?)?;
            api.wait_for("the next task", SOON, || async {
                let tasks = api.tasks("web", Freshness::Local).await.map_err(|e| e.to_string())?;
                let gone = tasks.iter().any(|task| task.id == victim.id && !task.serves());
                if gone { Ok(()) } else { Err(format!("{tasks:?}")) }
            })
            .await?;
        }
        api.wait_running("web", 3, &[], SOON).await?;
        load.stop.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("no client panics")?;
        }
        let hung = load.failures(&[BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof]);
        ensure!(
            hung.is_empty(),
            "{} requests were not told that their task had died:\n{}",
            hung.len(),
            hung.join("\n")
        );
        ensure!(!load.failures(&[]).is_empty(), "nobody asked a task that died, which says nothing");
        Ok(())
    })
    .await;
}
