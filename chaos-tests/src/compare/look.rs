//! Waits until the cluster is quiet, and holds what every host has against what the store means.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deploy::model::{NetworkId, Node};
use deploy::store::Store;
use overlay_net::kernel::NetNs;
use overlay_net::probe::{Answer, Families, resolve};
use serde_json::Value;

use super::{MANAGERS, Stage, WORKERS, expect, kernel, lock};

/// The cluster comes to rest within this time of the last thing that happened.
const QUIET: Duration = Duration::from_secs(120);
/// Once it has, hosts follow within this time: two rounds of looking after everything, and the network of a task that
/// died, which stays for 2 s.
const FOLLOW: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(150);
/// All names that one task is asked from.
const NAMES: Duration = Duration::from_secs(10);
/// Differences that are told of one comparison.
const TOLD: usize = 12;

/// Compares once the cluster is at rest, and tells the stage what differs. Answers how long it took until nothing did.
///
/// # Errors
/// When the cluster does not come to rest.
pub(super) async fn compare(stage: &Arc<Stage>) -> Result<Duration> {
    let begun = Instant::now();
    let mut rest: Option<Instant> = None;
    loop {
        let unrest = match stage.current().await {
            Err(error) => format!("{error:#}"),
            Ok(store) => match expect::unrest(&store, MANAGERS + WORKERS) {
                Some(unrest) => unrest,
                None => {
                    let rested = *rest.get_or_insert_with(Instant::now);
                    let differences = differences(stage, &store).await?;
                    // What changes meanwhile is compared again.
                    let same = stage.current().await.is_ok_and(|after| after.revision() == store.revision());
                    match (same, differences.is_empty()) {
                        (true, true) => {
                            let took = begun.elapsed().as_secs_f64();
                            stage.say(&format!("no difference at revision {} after {took:.1} s", store.revision()));
                            return Ok(begun.elapsed());
                        }
                        (true, false) if rested.elapsed() > FOLLOW => {
                            let more = differences.len().saturating_sub(TOLD);
                            let told = differences[..differences.len().min(TOLD)].join("\n  ");
                            stage.violated(&format!("revision {}: {told} (and {more} more)", store.revision()));
                            return Ok(begun.elapsed());
                        }
                        (true, false) => {}
                        (false, _) => {
                            rest = None;
                            continue;
                        }
                    }
                    String::new()
                }
            },
        };
        if !unrest.is_empty() {
            rest = None;
            if begun.elapsed() > QUIET {
                stage.violated(&format!("not at rest after {} s: {unrest}", QUIET.as_secs()));
                return Ok(begun.elapsed());
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn differences(stage: &Arc<Stage>, store: &Store) -> Result<Vec<String>> {
    let store = Arc::new(store.clone());
    let mut looks = tokio::task::JoinSet::new();
    for host in 0..MANAGERS + WORKERS {
        let (stage, store) = (Arc::clone(stage), Arc::clone(&store));
        looks.spawn(async move {
            let name = stage.cluster.host(host).name().to_owned();
            let node = store.nodes().find(|node| node.description.hostname == name).context("it is no node")?;
            let node = Node::clone(node);
            let mut wrong = own_words(&stage, host, &store, &node).await;
            let expected = expect::host(&store, &node);
            let read = tokio::task::spawn_blocking(move || read_host(&stage, host, &store, &expected)).await?;
            wrong.extend(read.unwrap_or_else(|error| vec![format!("cannot be read: {error:#}")]));
            Ok::<_, anyhow::Error>(wrong.into_iter().map(|what| format!("{name}: {what}")).collect::<Vec<_>>())
        });
    }
    let mut all = Vec::new();
    while let Some(done) = looks.join_next().await {
        match done? {
            Ok(wrong) => all.extend(wrong),
            Err(error) => all.push(format!("{error:#}")),
        }
    }
    all.sort();
    Ok(all)
}

fn differ<T: PartialEq + Debug>(wrong: &mut Vec<String>, what: &str, found: &T, expected: &T) {
    if found != expected {
        wrong.push(format!("{what} is {found:?} and should be {expected:?}"));
    }
}

/// The entries of one map that another has not, both ways.
fn differ_in<K: Ord + Debug, V: PartialEq + Debug>(
    wrong: &mut Vec<String>,
    what: &str,
    found: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) {
    for (key, value) in expected.iter().filter(|(key, value)| found.get(*key) != Some(*value)) {
        wrong.push(format!("{what}: {key:?} is {:?} and should be {value:?}", found.get(key)));
    }
    for (key, value) in found.iter().filter(|(key, _)| !expected.contains_key(*key)) {
        wrong.push(format!("{what}: {key:?} is {value:?} and should not be there"));
    }
}

/// Reads what one host's kernel has and its resolver says. Blocks.
fn read_host(stage: &Stage, host: usize, store: &Store, expected: &expect::Host) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let machine = stage.cluster.host(host);
    let own = NetNs::open(&machine.run_dir().join("netns/overlay")).context("the overlay's namespace")?;
    let found = kernel::switches(&own)?;
    let count = |at: usize, more: usize| stage.counts[at].fetch_add(more as u64, Ordering::Relaxed);
    for (vni, carried) in &expected.networks {
        let Some(switch) = found.networks.get(vni) else {
            wrong.push(format!("network {vni:x} is missing"));
            continue;
        };
        count(2, switch.hosts.len() + switch.forwards.len() + switch.neighbours.len());
        let macs = || carried.remote.iter().map(|(address, host)| (kernel::mac_of(*address), *host));
        let neighbours = carried.remote.keys().map(|address| (*address, kernel::mac_of(*address))).collect();
        differ(&mut wrong, &format!("that network {vni:x} is whole"), &switch.whole, &true);
        differ_in(&mut wrong, &format!("tunnel {vni:x}"), &switch.hosts, &macs().collect());
        differ(&mut wrong, &format!("forwarding of {vni:x}"), &switch.forwards, &macs().map(|(mac, _)| mac).collect());
        differ_in(&mut wrong, &format!("neighbours of {vni:x}"), &switch.neighbours, &neighbours);
    }
    let extra = found.networks.keys().filter(|vni| !expected.networks.contains_key(*vni));
    wrong.extend(extra.map(|vni| format!("network {vni:x} should not be there")));
    differ(&mut wrong, "links of tasks", &found.ports, &links(store, expected));

    let pid = machine.daemon_pid().context("no daemon runs")?;
    let outer = kernel::of_process(u64::from(pid))?;
    let rules = kernel::Rules::read(&outer)?;
    differ_in(&mut wrong, "published ports", &rules.ports(), &expected.ports);
    let places = kernel::addresses(&outer)?;
    let place: BTreeSet<Ipv4Addr> =
        places.into_iter().filter(|(link, _)| link.starts_with("shi-")).flat_map(|(_, all)| all).collect();
    let own_places = expected.networks.values().filter_map(|carried| carried.own).collect();
    differ(&mut wrong, "the host's place on the ingress network", &place, &own_places);

    let gone: Vec<String> = lock(&stage.gone).iter().cloned().collect();
    for (task, inside) in &expected.tasks {
        if let Err(error) = read_task(task, inside, &gone, &mut wrong) {
            wrong.push(format!("task {task} cannot be read: {error:#}"));
        }
        count(0, 1);
        count(1, inside.names.len() + gone.len());
    }
    Ok(wrong)
}

/// Spoils a host's kernel behind its daemon's back, and tells what of that was not seen to differ: a comparison that cannot
/// find anything is worth nothing. The daemon repairs it, so there are some tries.
///
/// # Errors
/// When the cluster cannot be read, or has nothing to spoil.
pub(super) async fn what_is_not_seen(stage: &Arc<Stage>, host: usize) -> Result<Vec<&'static str>> {
    const TRIES: usize = 12;
    let mut unseen = vec!["neighbours of", "tunnel", "virtual addresses in task", "published ports"];
    for _ in 0..TRIES {
        let store = stage.current().await?;
        let name = stage.cluster.host(host).name().to_owned();
        let node = store.nodes().find(|node| node.description.hostname == name).context("it is no node")?;
        let expected = expect::host(&store, node);
        let stage = Arc::clone(stage);
        let wrong = tokio::task::spawn_blocking(move || {
            spoil(&stage, host, &expected)?;
            read_host(&stage, host, &store, &expected)
        });
        let wrong = wrong.await??;
        unseen.retain(|what| !wrong.iter().any(|wrong| wrong.starts_with(what)));
        if unseen.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(unseen)
}

fn spoil(stage: &Stage, host: usize, expected: &expect::Host) -> Result<()> {
    let machine = stage.cluster.host(host);
    let own = NetNs::open(&machine.run_dir().join("netns/overlay"))?;
    let full = |(_, carried): &(&u32, &expect::Carried)| !carried.remote.is_empty();
    let (vni, carried) = expected.networks.iter().find(full).context("a network with other hosts on it")?;
    let (address, _) = carried.remote.first_key_value().context("an address")?;
    let (bridge, tunnel, mac) = (format!("br-{vni:x}"), format!("vx-{vni:x}"), kernel::mac_of(*address));
    // What a repair was faster than is gone already.
    kernel::run(&own, &["ip", "neigh", "del", &address.to_string(), "dev", &bridge]).ok();
    kernel::run(&own, &["bridge", "fdb", "del", &mac, "dev", &tunnel, "self"]).ok();
    let inside = expected.tasks.values().find(|inside| !inside.vips.is_empty()).context("a task with services")?;
    kernel::run(&kernel::of_process(inside.pid)?, &["nft", "delete", "table", "ip", "shoal"]).ok();
    let outer = kernel::of_process(u64::from(machine.daemon_pid().context("no daemon runs")?))?;
    kernel::run(&outer, &["nft", "delete", "table", "ip", "shoal"]).ok();
    Ok(())
}

/// The links of tasks that a host must have, from the store.
fn links(store: &Store, expected: &expect::Host) -> BTreeSet<(String, String, Ipv4Addr)> {
    let own = store.tasks().filter(|task| expected.tasks.contains_key(task.id.as_str()));
    let attachments = own.flat_map(|task| task.attachments.iter().map(move |attachment| (task, attachment)));
    let link = |(task, attachment): (&Arc<deploy::model::Task>, &deploy::model::NetworkAttachment)| {
        let address = attachment.address.split('/').next()?.parse().ok()?;
        Some((task.id.to_string(), attachment.network.to_string(), address))
    };
    attachments.filter_map(link).collect()
}

fn read_task(task: &str, inside: &expect::Inside, gone: &[String], wrong: &mut Vec<String>) -> Result<()> {
    let namespace = kernel::of_process(inside.pid)?;
    let addresses = kernel::addresses(&namespace)?;
    let found: BTreeSet<Ipv4Addr> = addresses.values().flatten().copied().collect();
    let missing: Vec<&Ipv4Addr> = inside.addresses.difference(&found).collect();
    if !missing.is_empty() {
        wrong.push(format!("task {task} has {found:?} and lacks {missing:?}"));
    }
    let rules = kernel::Rules::read(&namespace)?;
    differ_in(wrong, &format!("virtual addresses in task {task}"), &rules.vips(), &inside.vips);
    let known = |name: &String| inside.names.keys().any(|other| other.split('.').next() == Some(name));
    let gone: Vec<String> = gone.iter().filter(|name| !known(name)).cloned().collect();
    let names: Vec<String> = inside.names.keys().chain(&gone).cloned().collect();
    for (name, answer) in names.iter().zip(resolve(&namespace, &names, Families::Four, NAMES)?) {
        let right = match inside.names.get(name) {
            Some(addresses) => answer == Answer::Addresses(addresses.clone()),
            None => answer == Answer::NoSuchName,
        };
        if !right {
            wrong.push(format!("in task {task}, {name} is {answer:?} and should be {:?}", inside.names.get(name)));
        }
    }
    Ok(())
}

/// What the host says of itself must be the same: its check finds nothing, and what it shows is what the store has.
async fn own_words(stage: &Stage, host: usize, store: &Store, node: &Node) -> Vec<String> {
    let api = stage.api(host);
    let mut wrong = Vec::new();
    match api.get("/shoal/v1/network/check").await {
        Ok(report) => {
            let lines = report["Checks"].as_array().into_iter().flatten();
            wrong.extend(lines.filter(|line| line["Result"] == "wrong").map(|line| format!("its check says {line}")));
        }
        Err(error) => wrong.push(format!("it does not check: {error}")),
    }
    let own: Vec<_> = store.tasks_on_node(&node.id).filter(|task| !task.has_ended()).collect();
    for network in store.networks() {
        let carries = network.spec.ingress || own.iter().any(|task| attached(task, &network.id));
        let seen = match api.get(&format!("/networks/{}?verbose=true", network.id)).await {
            Ok(seen) => seen,
            Err(error) if !carries && error.to_string().contains("does not carry") => continue,
            Err(error) => {
                wrong.push(format!("it does not show {}: {error}", network.spec.name));
                continue;
            }
        };
        differ(
            &mut wrong,
            &format!("that it carries {}", network.spec.name),
            &seen["Host"]["Carried"],
            &carries.into(),
        );
        if carries {
            let wanted = shown(store, &network.id);
            differ_in(&mut wrong, &format!("what it shows of {}", network.spec.name), &services(&seen), &wanted);
        }
    }
    wrong
}

fn attached(task: &deploy::model::Task, network: &NetworkId) -> bool {
    task.attachments.iter().any(|attachment| attachment.network == *network)
}

/// Services of an answer, each with its tasks that serve.
fn services(seen: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let services = seen["Services"].as_object().into_iter().flatten();
    let serving = |service: &Value| {
        let tasks = service["Tasks"].as_array().into_iter().flatten();
        let serving = tasks.filter(|task| task["Info"]["Serving"] == "true");
        serving.filter_map(|task| Some(task["EndpointID"].as_str()?.to_owned())).collect()
    };
    services.map(|(name, service)| (name.clone(), serving(service))).collect()
}

/// The same, of the store at rest: all tasks that have not ended serve.
fn shown(store: &Store, network: &NetworkId) -> BTreeMap<String, BTreeSet<String>> {
    let mut services: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in store.services_on_network(network) {
        let tasks = store.tasks_of_service(&service.id).filter(|task| !task.has_ended() && attached(task, network));
        services.insert(service.spec.name.clone(), tasks.map(|task| task.id.to_string()).collect());
    }
    services
}
