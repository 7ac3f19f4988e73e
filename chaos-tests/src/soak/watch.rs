//! Eyes on the cluster while it is broken: each looks at one thing again and again until the run ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::containers::Running;
use super::evidence::Sample;
use super::site::{Site, lock, names};
use crate::sim::Rng;

/// Between two looks at a manager's store, at an agent, at the processes.
const LOOK: Duration = Duration::from_millis(200);
/// A manager that stands still answers nothing.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest linearizable read that is waited for.
const READ: Duration = Duration::from_secs(12);
/// A request to a published port.
const REQUEST: Duration = Duration::from_secs(2);

/// The store of one host, whenever it is a manager.
pub(super) async fn store(site: Arc<Site>, host: usize) {
    let api = site.cluster.api(host);
    let mut last = (0, 0);
    while !site.stopped() {
        let life = site.life(host);
        if let Ok(read) = site.read(&api, "local", PATIENCE).await
            && site.life(host) == life
            && (life, read.index) != last
        {
            last = (life, read.index);
            let impossible = lock(&site.ledger).impossible(&names(&read.store));
            let sample = Sample { manager: host, life, index: read.index, digest: read.digest, store: read.store };
            for what in judge(&site, &sample).into_iter().chain(impossible) {
                site.violated(&what);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is wrong with what a manager has.
fn judge(site: &Site, sample: &Sample) -> Vec<String> {
    let mut evidence = lock(&site.evidence);
    let newer = sample.index > evidence.index();
    let mut wrong = evidence.take(sample);
    if newer {
        wrong.extend(lock(&site.ledger).newest(&names(&sample.store)).err());
        wrong.extend(lock(&site.containers).newer_store(&sample.store, Instant::now()));
    }
    wrong
}

/// Linearizable reads of everything, through any manager.
pub(super) async fn everything(site: Arc<Site>, mut rng: Rng) {
    while !site.stopped() {
        let api = site.any_manager(&mut rng);
        let from = Instant::now();
        if let Ok(read) = site.read(&api, "linearizable", READ).await {
            let to = Instant::now();
            lock(&site.tally).reads += 1;
            let wrong = {
                let mut ledger = lock(&site.ledger);
                let mut wrong = ledger.check_names(from, to, &names(&read.store));
                wrong.extend(ledger.monotonic("the store", from, to, read.index, read.store.revision()).err());
                wrong
            };
            for what in wrong {
                site.violated(&what);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Linearizable reads of one register, through any manager, until it is removed at the end.
pub(super) async fn register(site: Arc<Site>, service: &'static str, mut rng: Rng) {
    while site.writing() {
        let api = site.any_manager(&mut rng);
        let _ = read_register(&site, &api, service).await;
        tokio::time::sleep(Duration::from_millis(rng.range(20, 250))).await;
    }
}

/// Reads a register and judges what was read; answers the object.
pub(super) async fn read_register(site: &Site, api: &crate::hosts::Api, service: &str) -> Option<serde_json::Value> {
    let from = Instant::now();
    let found = tokio::time::timeout(READ, api.get(&format!("/services/{service}"))).await.ok()?;
    let to = Instant::now();
    if let Err(crate::hosts::HostError::Refused { status: 404, message, .. }) = &found {
        site.violated(&format!("service {service} is lost: {message}"));
    }
    let found = found.ok()?;
    let value = found["Spec"]["Labels"]["n"].as_str().and_then(|n| n.parse().ok()).unwrap_or(0);
    let version = found["Version"]["Index"].as_u64().unwrap_or(0);
    lock(&site.tally).reads += 1;
    let judged = lock(&site.ledger).read(service, from, to, value, version);
    site.note(judged);
    Some(found)
}

/// What one agent acts on.
pub(super) async fn agent(site: Arc<Site>, host: usize) {
    let api = site.cluster.api(host);
    while !site.stopped() {
        let life = site.life(host);
        if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, api.get("/shoal/v1/agent")).await
            && site.life(host) == life
        {
            let number = |key: &str| answer[key].as_u64().unwrap_or(0);
            let node = answer["NodeID"].as_str().unwrap_or_default();
            let judged = lock(&site.agents).take(node, number("Generation"), number("Incarnation"), number("Revision"));
            lock(&site.tally).agents += 1;
            site.note(judged);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What runs in containers, on all hosts.
pub(super) async fn processes(site: Arc<Site>) {
    while !site.stopped() {
        let look = site.clone();
        let seen = tokio::task::spawn_blocking(move || {
            let first = running(&look);
            // What is in both ran all the time between them.
            &first & &running(&look)
        });
        if let Ok(seen) = seen.await {
            let wrong = {
                let evidence = lock(&site.evidence);
                let removed = |task: &_| evidence.was_removed(task);
                lock(&site.containers).look(&seen, evidence.latest(), removed, Instant::now())
            };
            for what in wrong {
                site.violated(&what);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The processes of containers that have been started, on all hosts. (What is only prepared waits in the container, as
/// a process of Shoal's own.)
pub(super) fn running(site: &Site) -> BTreeSet<Running> {
    let mut all = BTreeSet::new();
    for (host, it) in site.cluster.hosts().iter().enumerate() {
        for pid in it.container_processes() {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            if read("cmdline").split('\0').next() != Some(super::COMMAND) {
                continue;
            }
            let cgroups = read("cgroup");
            let container = cgroups.lines().find_map(|line| line.split_once("/task/")).map(|(_, id)| id.to_owned());
            let stat = read("stat");
            let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
            if let (Some(container), Some(started)) = (container, started) {
                all.insert(Running { host, container, started, pid });
            }
        }
    }
    all
}

/// Requests to the published port from outside, at any host.
pub(super) async fn requests(site: Arc<Site>, mut rng: Rng) {
    let Ok(client) = site.cluster.client() else { return };
    while site.writing() {
        let host = rng.range(0, site.hosts() as u64) as usize;
        let answer = client.get(site.cluster.host(host).at(super::WEB_PORT), "/json", REQUEST).await;
        match answer {
            Ok(answer) if answer.status == 200 => lock(&site.tally).requests.0 += 1,
            _ => lock(&site.tally).requests.1 += 1,
        }
        tokio::time::sleep(Duration::from_millis(rng.range(50, 150))).await;
    }
}

/// Daemons that end although nobody killed them.
pub(super) async fn daemons(site: Arc<Site>) {
    let mut told = vec![0; site.hosts()];
    while !site.stopped() {
        for (index, host) in site.cluster.hosts().iter().enumerate() {
            let Some(pid) = host.daemon_pid().filter(|_| !site.is_down(index)) else { continue };
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let ended = stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'));
            if ended && told[index] != pid && !site.is_down(index) && host.daemon_pid() == Some(pid) {
                told[index] = pid;
                site.violated(&format!("the daemon of {} ended by itself:\n{}", host.name(), host.log_tail(5)));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
