//! What users do to the cluster meanwhile: they make and remove things, change services, and note what they were told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::ledger::Outcome;
use super::site::{PREFIX, Site, lock};
use super::{PROBE_PORT, WEB_PORT, watch};
use crate::hosts::{Cluster, HostError, IMAGE, SOON, ServiceDraft};
use crate::sim::Rng;

/// Services with a register in their labels.
pub(super) const REGISTERS: [&str; 2] = ["web", "side"];
/// The network of all services.
pub(super) const NETWORK: &str = "mesh";
/// The service with a task on every host, for looking at the network from within.
pub(super) const PROBE: &str = "probe";
/// So long a writer waits for an answer; then the outcome is unknown to it.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// Services that come and go and are there at once.
const MOST_SERVICES: usize = 3;
/// Networks that come and go and are there at once.
const MOST_NETWORKS: usize = 3;
/// Configs that are there at once.
const MOST_CONFIGS: usize = 60;

/// Makes what is there all the time.
pub(super) async fn prepare(cluster: &Cluster) -> Result<()> {
    let api = cluster.api(0);
    api.create_overlay(NETWORK).await?;
    let mut web = draft("web", 4);
    web["EndpointSpec"]["Ports"] =
        json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": WEB_PORT, "PublishMode": "ingress"}]);
    let mut side = draft("side", 3);
    side["UpdateConfig"]["Order"] = json!("start-first");
    side["TaskTemplate"]["Resources"] = json!({"Reservations": {"MemoryBytes": 8 << 20, "NanoCPUs": 10_000_000}});
    let mut probe = draft(PROBE, 1);
    probe["Mode"] = json!({"Global": {}});
    probe["EndpointSpec"]["Ports"] =
        json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": PROBE_PORT, "PublishMode": "host"}]);
    for spec in [&web, &side, &probe] {
        api.create_service(spec).await?;
    }
    api.wait_running("web", 4, &[], SOON).await?;
    api.wait_running("side", 3, &[], SOON).await?;
    api.wait_running(PROBE, cluster.hosts().len(), &[], SOON).await?;
    cluster.wait_port(WEB_PORT).await
}

fn draft(name: &str, replicas: u64) -> Value {
    let mut spec = ServiceDraft::new(name, IMAGE, replicas).network(NETWORK).build();
    spec["Labels"] = json!({"n": "0"});
    spec["UpdateConfig"] = json!({"Parallelism": 2, "FailureAction": "continue", "Order": "stop-first"});
    spec["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] = json!(2_000_000_000_u64);
    spec
}

/// Writes a register again and again, and sometimes more of the service along with it.
pub(super) async fn register(site: Arc<Site>, service: &'static str, mut rng: Rng) {
    let mut value = 0;
    while site.writing() {
        tokio::time::sleep(Duration::from_millis(rng.range(50, 1_200))).await;
        let api = site.any_manager(&mut rng);
        let Some(mut found) = watch::read_register(&site, &api, service).await else { continue };
        value += 1;
        let spec = &mut found["Spec"];
        spec["Labels"]["n"] = json!(value.to_string());
        if rng.percent(25) {
            spec["Mode"]["Replicated"]["Replicas"] = json!(rng.range(2, 8));
        }
        if rng.percent(15) {
            spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!([format!("N={value}")]);
        }
        let version = found["Version"]["Index"].as_u64().unwrap_or(0);
        lock(&site.ledger).writing(service, value, Instant::now());
        let path = format!("/services/{service}/update?version={version}");
        let api = site.any_manager(&mut rng);
        let (outcome, _) = site.outcome(PATIENCE, api.post(&path, &found["Spec"])).await;
        lock(&site.ledger).written(service, value, Instant::now(), outcome);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Config,
    Network,
    Service,
}

impl Sort {
    fn of(name: &str) -> Sort {
        match name.as_bytes().get(PREFIX.len()) {
            Some(b'n') => Sort::Network,
            Some(b's') => Sort::Service,
            _ => Sort::Config,
        }
    }

    fn path(self, name: &str) -> String {
        match self {
            Sort::Config => format!("/configs/{name}"),
            Sort::Network => format!("/networks/{name}"),
            Sort::Service => format!("/services/{name}"),
        }
    }
}

/// Makes and removes things.
pub(super) async fn names(site: Arc<Site>, writer: usize, mut rng: Rng) {
    let mut count = 0;
    while site.writing() {
        tokio::time::sleep(Duration::from_millis(rng.range(10, 150))).await;
        // Every writer minds its own, so that nobody removes what another one is removing.
        let mine = format!("-{writer}-");
        let mut there: Vec<String> = lock(&site.ledger).removable();
        there.retain(|name| name.contains(&mine));
        let count_of = |sort| there.iter().filter(|name| Sort::of(name) == sort).count();
        let sort = match rng.range(0, 100) {
            0..8 if writer == 0 => Sort::Service,
            8..16 if writer == 1 => Sort::Network,
            _ => Sort::Config,
        };
        let most = match sort {
            Sort::Config => MOST_CONFIGS,
            Sort::Network => MOST_NETWORKS,
            Sort::Service => MOST_SERVICES,
        };
        if count_of(sort) < most && rng.percent(60) {
            count += 1;
            make(&site, sort, &format!("{}-{writer}-{count}", letter(sort)), &mut rng).await;
        } else {
            there.retain(|name| Sort::of(name) == sort);
            if let Some(name) = rng.pick(&there).cloned() {
                remove(&site, &name, &mut rng).await;
            }
        }
    }
}

fn letter(sort: Sort) -> String {
    let letter = match sort {
        Sort::Config => "c",
        Sort::Network => "n",
        Sort::Service => "s",
    };
    format!("{PREFIX}{letter}")
}

async fn make(site: &Site, sort: Sort, name: &str, rng: &mut Rng) {
    let (path, body) = match sort {
        Sort::Config => ("/configs/create", json!({"Name": name, "Data": "eA=="})),
        Sort::Network => ("/networks/create", json!({"Name": name, "Driver": "overlay"})),
        Sort::Service => ("/services/create", draft(name, rng.range(1, 3))),
    };
    lock(&site.ledger).making(name, Instant::now());
    let api = site.any_manager(rng);
    let (outcome, _) = site.outcome(PATIENCE, api.post(path, &body)).await;
    lock(&site.ledger).made(name, Instant::now(), outcome);
}

/// Removes a name; true when it is certainly gone.
async fn remove(site: &Site, name: &str, rng: &mut Rng) -> bool {
    lock(&site.ledger).removing(name, Instant::now());
    let api = site.any_manager(rng);
    let (outcome, error) = site.outcome(PATIENCE, api.delete(&Sort::of(name).path(name))).await;
    let missing = matches!(error, Some(HostError::Refused { status: 404, .. }));
    let judged = lock(&site.ledger).removed(name, Instant::now(), outcome, missing);
    site.note(judged);
    outcome == Outcome::Acknowledged || missing
}

/// Removes everything that the workload made, until a linearizable read shows nothing of it.
pub(super) async fn remove_all(site: &Site, rng: &mut Rng, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        let api = site.any_manager(rng);
        let seen = match site.read(&api, "linearizable", 4 * PATIENCE).await {
            Ok(read) => {
                let mut left = super::site::names(&read.store);
                let fixed: BTreeSet<&str> = REGISTERS.into_iter().chain([PROBE]).collect();
                let services: Vec<String> = read
                    .store
                    .services()
                    .map(|s| s.spec.name.clone())
                    .filter(|name| fixed.contains(name.as_str()))
                    .collect();
                for name in &services {
                    let _ = api.delete(&format!("/services/{name}")).await;
                }
                if services.is_empty() && read.store.networks().any(|n| n.spec.name == NETWORK) {
                    let _ = api.delete(&format!("/networks/{NETWORK}")).await;
                    left.insert(NETWORK.into());
                }
                if left.is_empty() && services.is_empty() {
                    return Ok(());
                }
                for name in left.iter().filter(|name| name.starts_with(PREFIX)) {
                    remove(site, name, rng).await;
                }
                format!("{left:?} {services:?}")
            }
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            return Err(format!("what was made could not be removed: {seen}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
