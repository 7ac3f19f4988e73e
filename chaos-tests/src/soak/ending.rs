//! What must be so once faults have stopped: every agent runs exactly its set, every host's names and load balancing
//! are those of the store, nothing waits; and when everything was removed, nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use deploy::dispatcher::{Stamp, assignment};
use deploy::model::{NodeId, TaskId, TaskState};
use deploy::store::Store;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::site::{Site, lock};
use super::workload::{self, REGISTERS};
use super::{PROBE_PORT, WEB_PORT, watch};
use crate::check::at_rest::{HostState, at_rest};
use crate::sim::Rng;

/// The cluster is at rest so long after the last fault, at the latest.
const REST: Duration = Duration::from_secs(120);
/// So long a host takes to leave, with its tasks.
const LEAVE: Duration = Duration::from_secs(100);
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(500);
/// Requests until every task of a service has answered one, at the most.
const ASKS: usize = 300;

/// Waits for rest and tells what is not at rest when time is up. Answers how long it took.
pub(super) async fn wait_rest(site: &Site, rng: &mut Rng) -> Result<Duration, Vec<String>> {
    let begun = Instant::now();
    loop {
        let wrong = match look(site, rng).await {
            Ok(wrong) => wrong,
            Err(error) => vec![format!("{error:#}")],
        };
        if wrong.is_empty() {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > REST || site.stopped() {
            return Err(wrong);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(site: &Site, rng: &mut Rng) -> anyhow::Result<Vec<String>> {
    let api = site.any_manager(rng);
    let read = site.read(&api, "linearizable", PATIENCE).await?;
    let store = &read.store;
    let mut wrong = check_nodes(site, store);
    if !wrong.is_empty() {
        return Ok(wrong);
    }
    // Managers are compared at the same index; where one lags there is another look.
    for manager in 0..site.shape.managers {
        let other = site.read(&site.cluster.api(manager), "local", PATIENCE).await?;
        if other.index != read.index || other.digest != read.digest {
            wrong.push(format!("manager {manager} is at index {}, another one at {}", other.index, read.index));
        }
    }
    let processes = watch::running(site);
    let mut hosts = BTreeMap::new();
    for index in 0..site.hosts() {
        let id = NodeId::new(site.id(index));
        let agent = site.cluster.api(index).get("/shoal/v1/agent").await?;
        let set = assignment(store, &id);
        let digest = Sha256::digest(set.to_update(Stamp::default()).to_bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if agent["Digest"] != digest.as_str() {
            wrong.push(format!("the agent of host {index} acts on another set than the store gives it"));
        }
        let containers = lock(&site.containers);
        let task = |container: &str| containers.task_of(container).cloned().unwrap_or_else(|| TaskId::new(container));
        let state = HostState {
            set,
            tasks: tasks(&agent),
            running: processes.iter().filter(|p| p.host == index).map(|p| task(&p.container)).collect(),
            containers: container_dirs(site, index).iter().map(|id| task(id)).collect(),
            ..HostState::default()
        };
        hosts.insert(id, state);
    }
    wrong.extend(at_rest(store, &hosts));
    Ok(wrong)
}

fn check_nodes(site: &Site, store: &Store) -> Vec<String> {
    let mut wrong = Vec::new();
    for index in 0..site.hosts() {
        let id = site.id(index);
        match store.node(&NodeId::new(&*id)) {
            None => wrong.push(format!("host {index} ({id}) is no node")),
            Some(node) => {
                let (state, manager) = (node.status.state(), node.manager.is_some());
                if state != deploy::model::NodeState::Ready || manager != (index < site.shape.managers) {
                    wrong.push(format!("host {index} is {state:?}, manager: {manager} ({})", node.status.message));
                }
            }
        }
    }
    if store.nodes().count() != site.hosts() {
        wrong.push(format!("{} nodes, of {} hosts", store.nodes().count(), site.hosts()));
    }
    wrong
}

fn tasks(agent: &Value) -> BTreeSet<TaskId> {
    let all = agent["Tasks"].as_array().into_iter().flatten();
    all.filter_map(|task| task["ID"].as_str().map(TaskId::new)).collect()
}

fn container_dirs(site: &Site, host: usize) -> Vec<String> {
    let dir = site.cluster.host(host).data_dir().join("containers");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The hosts' names and load balancing, compared with the store: from outside at every host's published port, and from
/// within a task on every host by the service's name.
pub(super) async fn check_network(site: &Site, rng: &mut Rng) -> Vec<String> {
    let api = site.any_manager(rng);
    let store = match site.read(&api, "linearizable", PATIENCE).await {
        Ok(read) => read.store,
        Err(error) => return vec![format!("{error:#}")],
    };
    let mut wrong = Vec::new();
    for host in 0..site.hosts() {
        let published = (site.cluster.host(host).at(WEB_PORT), "/json".to_owned());
        wrong.extend(ask(site, &store, "web", &format!("the published port of host {host}"), published).await);
        for service in REGISTERS {
            let within = (site.cluster.host(host).at(PROBE_PORT), format!("/fetch?url=http://{service}/json"));
            wrong.extend(ask(site, &store, service, &format!("a task on host {host}"), within).await);
        }
        // A name that was a service's is nobody's.
        let gone = (site.cluster.host(host).at(PROBE_PORT), "/fetch?url=http://x-s-0-1/json".to_owned());
        if store.services().all(|s| s.spec.name != "x-s-0-1")
            && let Ok(client) = site.cluster.client()
            && let Ok(answer) = client.get(gone.0, &gone.1, PATIENCE).await
            && !answer.body.contains("resolve")
        {
            wrong.push(format!("on host {host} the name of a removed service leads to {}", answer.body));
        }
    }
    wrong
}

/// Asks until each task of the service has answered, and nobody else.
async fn ask(
    site: &Site,
    store: &Store,
    service: &str,
    place: &str,
    (address, path): (std::net::SocketAddr, String),
) -> Option<String> {
    let wanted: BTreeSet<String> = store
        .tasks()
        .filter(|t| t.service_name == service && t.is_wanted() && t.state() == TaskState::Running)
        .filter_map(|t| Some(t.status.container.as_ref()?.id.get(..12)?.to_owned()))
        .collect();
    let client = site.cluster.client().ok()?;
    let (mut seen, mut failures) = (BTreeSet::new(), Vec::new());
    for _ in 0..ASKS {
        match client.get(address, &path, Duration::from_secs(3)).await {
            Ok(answer) => match hostname(&answer.body) {
                Some(name) => {
                    seen.insert(name);
                }
                None => failures.push(answer.body),
            },
            Err(error) => failures.push(error.to_string()),
        }
        if seen == wanted || failures.len() > 5 {
            break;
        }
    }
    if seen == wanted && failures.is_empty() {
        return None;
    }
    Some(format!("from {place}, {service} is answered by {seen:?} instead of {wanted:?}; failures: {failures:?}"))
}

/// Who answered: directly, or to the task that asked on behalf of us.
fn hostname(body: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(body).ok()?;
    let inner = match answer["body"].as_str() {
        Some(inner) => serde_json::from_str(inner).ok()?,
        None => answer,
    };
    inner["hostname"].as_str().map(str::to_owned)
}

/// Removes everything; then lets every host leave, and tells what is left anywhere.
pub(super) async fn check_nothing_is_left(site: &Site, rng: &mut Rng) -> Vec<String> {
    if let Err(error) = workload::remove_all(site, rng, REST).await {
        return vec![error];
    }
    let deadline = Instant::now() + REST;
    loop {
        let mut left: Vec<String> = Vec::new();
        for host in 0..site.hosts() {
            left.extend(container_dirs(site, host).iter().map(|id| format!("container {id} on host {host}")));
            let pids = site.cluster.host(host).container_processes();
            left.extend(pids.iter().map(|pid| format!("process {pid} on host {host}")));
        }
        if left.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            return left;
        }
        tokio::time::sleep(LOOK).await;
    }
    // Workers first: they say goodbye to a manager.
    for host in (0..site.hosts()).rev() {
        let path = if host < site.shape.managers { "/swarm/leave?force=1" } else { "/swarm/leave" };
        let api = site.cluster.api(host);
        let left = api
            .wait_for("leaving", LEAVE, || async {
                match api.post(path, &Value::Null).await {
                    Err(crate::hosts::HostError::Refused { message, .. })
                        if message.contains("not part of a swarm") =>
                    {
                        Ok(())
                    }
                    done => done.map(drop).map_err(|e| e.to_string()),
                }
            })
            .await;
        if let Err(error) = left {
            return vec![format!("host {host} could not leave: {error}")];
        }
    }
    let all: Vec<usize> = (0..site.hosts()).collect();
    site.cluster.wait_clean(&all).await.err().map(|error| error.to_string()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_tell_who_gave_them() {
        assert_eq!(hostname(r#"{"hostname":"a"}"#).as_deref(), Some("a"));
        assert_eq!(hostname(r#"{"status":200,"body":"{\"hostname\":\"b\"}"}"#).as_deref(), Some("b"));
        assert_eq!(hostname("no answer"), None);
    }
}
