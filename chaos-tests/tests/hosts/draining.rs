//! Tasks that stop while they are asked: nobody may notice, it may take no longer than a few words between hosts do, and
//! who does not let go in time is named.

use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::bench::clients::{Clients, Kind};
use chaos_tests::hosts::{Api, Client, Cluster, Freshness, IMAGE, SOON, ServiceDraft, graceful, update};
use serde_json::{Value, json};

use crate::{binaries, with};

/// Between the beginnings of two requests of one client, if the first one is answered by then.
const PAUSE: Duration = Duration::from_millis(100);
/// Failures that are shown.
const SHOWN: usize = 20;

/// Starts clients at these doors, as seen from where `client` stands: one of each kind at each.
fn start(load: &Arc<Clients>, client: &Client, doors: &[SocketAddr]) -> Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    for door in doors {
        for kind in [Kind::Kept, Kind::New] {
            threads.extend(load.start(client, *door, kind, 1, PAUSE)?);
        }
    }
    Ok(threads)
}

/// A service on a network and in the mesh, and clients who ask it all the time: at every host, and from a task.
struct Asked {
    load: Arc<Clients>,
    threads: Vec<JoinHandle<()>>,
}

impl Asked {
    /// `web` with so many tasks, and a task on the last host that asks its virtual address.
    async fn start(cluster: &Cluster, replicas: u64) -> Result<Asked> {
        let api = cluster.api(0);
        let network = api.create_overlay("net").await?;
        api.create_service(&graceful(on_network("web", replicas).publish(8080, 80))).await?;
        let last = format!("node.hostname==host-{}", cluster.hosts().len());
        api.create_service(&on_network("probe", 1).constraint(&last).build()).await?;
        let probe = api.wait_running("probe", 1, &[], SOON).await?;
        api.wait_running("web", usize::try_from(replicas)?, &[], SOON).await?;
        cluster.wait_port(8080).await?;
        let load = Clients::none();
        let mesh: Vec<SocketAddr> = cluster.hosts().iter().map(|host| host.at(8080)).collect();
        let mut threads = start(&load, &cluster.client()?, &mesh)?;
        let address = virtual_ip(&api, "web", &network).await?;
        threads.extend(start(&load, &Client::beside(probe[0].pid)?, &[address, address])?);
        Ok(Asked { load, threads })
    }

    /// Nobody asks any more; what they had asked is answered.
    fn end(&mut self) {
        self.load.stop();
        for thread in self.threads.drain(..) {
            thread.join().expect("no client panics");
        }
    }
}

fn on_network(name: &str, replicas: u64) -> ServiceDraft {
    ServiceDraft::new(name, IMAGE, replicas).network("net")
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
pub(crate) async fn virtual_ip(api: &Api, service: &str, network: &str) -> Result<SocketAddr> {
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
        let mut asked = Asked::start(cluster, 4).await?;
        let load = Arc::clone(&asked.load);
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

        asked.end();
        told("it all").await?;
        let (kept, new) = load.answered();
        let took = load.elapsed();
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

/// Nobody can wait for a task that is killed. Who asks it is told so at once, and does not ask into the void until all
/// hosts know.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_a_task_that_died_is_told_at_once() {
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        let mut asked = Asked::start(cluster, 3).await?;
        for _ in 0..6 {
            let tasks = api.wait_running("web", 3, &[], SOON).await?;
            let victim = tasks.first().context("a task")?;
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
        asked.end();
        let load = &asked.load;
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
