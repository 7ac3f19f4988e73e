//! Carries a fault out, waits, and mends it again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use node::datadir::MembershipRecord;
use serde_json::{Value, json};

use super::certificates;
use super::schedule::{Direction, Fault, Kind, Victim};
use super::site::{Site, lock};
use crate::hosts::{Api, HostError};

/// What is mended is whole again within this time, on a busy machine.
const MENDED: Duration = Duration::from_secs(120);
/// One request of those that change memberships.
const REQUEST: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(100);

/// Plays a fault to its end.
pub(super) async fn play(site: &Site, fault: Fault) {
    site.fault_begins(fault);
    if let Err(error) = carry_out(site, fault).await {
        site.violated(&format!("{fault} could not be carried out or mended: {error:#}"));
    }
    site.fault_ends(fault);
}

async fn carry_out(site: &Site, fault: Fault) -> Result<()> {
    let leads = |victim| host_of(site, victim);
    let number = fault.number;
    let hold = || tokio::time::sleep(fault.length);
    let begins = |hosts: &[usize]| site.say(&format!("{fault} on {}", names(site, hosts)));
    match fault.kind {
        Kind::Kill(victim) => {
            let host = leads(victim).await;
            begins(&[host]);
            kill(site, &[host])?;
            hold().await;
            start(site, &[host]).await
        }
        Kind::KillMajority(a, b) => {
            begins(&[a, b]);
            kill(site, &[a, b])?;
            hold().await;
            start(site, &[a, b]).await
        }
        Kind::KillAll => {
            let all: Vec<usize> = (0..site.hosts()).collect();
            begins(&all);
            kill(site, &all)?;
            hold().await;
            start(site, &all).await
        }
        Kind::PowerOff(victim) => {
            let host = leads(victim).await;
            begins(&[host]);
            site.set_down(host, true);
            let off = tokio::task::block_in_place(|| site.cluster.host(host).power_off());
            site.reborn(host);
            off?;
            hold().await;
            tokio::task::block_in_place(|| site.cluster.host(host).power_on())?;
            let ready = site.cluster.host(host).wait_ready().await;
            site.set_down(host, false);
            Ok(ready?)
        }
        Kind::Pause(victim) => {
            let host = leads(victim).await;
            begins(&[host]);
            site.cluster.host(host).pause()?;
            hold().await;
            Ok(site.cluster.host(host).resume()?)
        }
        Kind::Freeze(victim) => {
            let host = leads(victim).await;
            begins(&[host]);
            site.cluster.host(host).freeze()?;
            hold().await;
            Ok(site.cluster.host(host).thaw()?)
        }
        Kind::PauseMajority(a, b) => {
            begins(&[a, b]);
            for host in [a, b] {
                site.cluster.host(host).pause()?;
            }
            hold().await;
            for host in [a, b] {
                site.cluster.host(host).resume()?;
            }
            Ok(())
        }
        Kind::LinkDown(victim) => {
            let host = leads(victim).await;
            begins(&[host]);
            site.cluster.host(host).link_down()?;
            hold().await;
            Ok(site.cluster.host(host).link_up()?)
        }
        Kind::CutOff(victim, direction) => {
            let host = leads(victim).await;
            begins(&[host]);
            let others: Vec<usize> = (0..site.hosts()).filter(|other| *other != host).collect();
            part(site, number, host, &others, direction)?;
            hold().await;
            heal(site, number)
        }
        Kind::ManagersApart(victim) => {
            let host = leads(victim).await;
            begins(&[host]);
            let others: Vec<usize> = (0..site.shape.managers).filter(|other| *other != host).collect();
            part(site, number, host, &others, Direction::Both)?;
            hold().await;
            heal(site, number)
        }
        Kind::Loss(percent) => {
            begins(&[]);
            for host in 0..site.hosts() {
                let lost = format!("ip saddr {} numgen random mod 100 < {percent} drop", addresses(site, None));
                rules(site, number, host, &lost)?;
            }
            hold().await;
            heal(site, number)
        }
        Kind::Drain(host) => {
            begins(&[host]);
            set_spec(site, host, "Availability", "drain").await?;
            hold().await;
            set_spec(site, host, "Availability", "active").await
        }
        Kind::Demote(victim) => {
            let host = leads(victim).await;
            begins(&[host]);
            let before = certificates::read(site, host);
            set_spec(site, host, "Role", "worker").await?;
            wait_role(site, host, false).await?;
            opens_nothing(site, host, before, false).await;
            hold().await;
            // It begins with an empty store.
            site.reborn(host);
            set_spec(site, host, "Role", "manager").await?;
            wait_role(site, host, true).await
        }
        Kind::Promote(host) => {
            begins(&[host]);
            site.reborn(host);
            set_spec(site, host, "Role", "manager").await?;
            wait_role(site, host, true).await?;
            hold().await;
            let before = certificates::read(site, host);
            set_spec(site, host, "Role", "worker").await?;
            wait_role(site, host, false).await?;
            opens_nothing(site, host, before, false).await;
            Ok(())
        }
        Kind::Leave(host) => {
            begins(&[host]);
            leave_and_join(site, host, fault.length).await
        }
    }
}

fn names(site: &Site, hosts: &[usize]) -> String {
    hosts.iter().map(|host| site.cluster.host(*host).name()).collect::<Vec<_>>().join(" and ")
}

async fn host_of(site: &Site, victim: Victim) -> usize {
    let host = match victim {
        Victim::Host(host) => return host,
        Victim::Leader => leader(site).await,
    };
    host.unwrap_or(0)
}

/// Who leads, as most managers say.
pub(super) async fn leader(site: &Site) -> Option<usize> {
    let mut votes = vec![0; site.hosts()];
    for host in 0..site.hosts() {
        let api = site.cluster.api(host);
        if let Ok(Ok(Some(name))) = tokio::time::timeout(Duration::from_millis(500), api.leader()).await
            && let Some(index) = site.cluster.hosts().iter().position(|host| host.name() == name)
        {
            votes[index] += 1;
        }
    }
    (0..votes.len()).filter(|host| votes[*host] > 0).max_by_key(|host| votes[*host])
}

fn kill(site: &Site, hosts: &[usize]) -> Result<()> {
    for host in hosts {
        site.set_down(*host, true);
    }
    tokio::task::block_in_place(|| {
        for host in hosts {
            site.cluster.host(*host).kill_daemon()?;
            site.reborn(*host);
        }
        Ok(())
    })
}

async fn start(site: &Site, hosts: &[usize]) -> Result<()> {
    for host in hosts {
        site.cluster.host(*host).start_daemon()?;
    }
    for host in hosts {
        site.cluster.host(*host).wait_ready().await?;
        site.set_down(*host, false);
    }
    Ok(())
}

/// The addresses of hosts, or of all, as a set of nftables.
fn addresses(site: &Site, hosts: Option<&[usize]>) -> String {
    let all: Vec<usize> = (0..site.hosts()).collect();
    let hosts = hosts.unwrap_or(&all);
    let each: Vec<String> = hosts.iter().map(|host| site.cluster.host(*host).address().to_string()).collect();
    format!("{{ {} }}", each.join(", "))
}

/// Parts a host from others. What is dropped is dropped where it arrives: a drop at the sender would be told to it.
fn part(site: &Site, number: usize, host: usize, others: &[usize], direction: Direction) -> Result<()> {
    if direction != Direction::Out {
        rules(site, number, host, &format!("ip saddr {} drop", addresses(site, Some(others))))?;
    }
    if direction != Direction::In {
        for other in others {
            rules(site, number, *other, &format!("ip saddr {} drop", addresses(site, Some(&[host]))))?;
        }
    }
    Ok(())
}

/// Puts a rule in front of all others of a host.
fn rules(site: &Site, number: usize, host: usize, rule: &str) -> Result<()> {
    let hook = "type filter hook prerouting priority -400";
    let table = format!("table inet soak{number} {{\nchain lost {{\n{hook};\niifname \"eth0\" {rule}\n}}\n}}\n");
    nft(site, host, &table)
}

/// Removes the rules of a fault on every host. A host that was booted meanwhile has none.
fn heal(site: &Site, number: usize) -> Result<()> {
    for host in 0..site.hosts() {
        // Adding first makes the removal succeed in any case.
        nft(site, host, &format!("add table inet soak{number}\ndelete table inet soak{number}"))?;
    }
    Ok(())
}

fn nft(site: &Site, host: usize, script: &str) -> Result<()> {
    tokio::task::block_in_place(|| crate::hosts::nft(site.cluster.host(host), script))
}

/// Tries at one manager after the other, until one does it or time is up.
async fn insist<T, F>(site: &Site, what: &str, not_at: Option<usize>, mut attempt: impl FnMut(Api) -> F) -> Result<T>
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + MENDED;
    let mut seen = String::from("nothing");
    loop {
        for host in (0..site.hosts()).filter(|host| Some(*host) != not_at) {
            match tokio::time::timeout(REQUEST, attempt(site.cluster.api(host))).await {
                Ok(Ok(done)) => return Ok(done),
                // Workers cannot help; what they say is no news.
                Ok(Err(other)) if other.contains("not a swarm manager") => {}
                Ok(Err(other)) => seen = other,
                Err(_) => seen = "no answer".into(),
            }
        }
        if Instant::now() > deadline || site.stopped() {
            bail!("{what} did not happen within {} s: {seen}", MENDED.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn set_spec(site: &Site, host: usize, key: &str, value: &str) -> Result<()> {
    let id = site.id(host);
    insist(site, &format!("{key} of {} being {value}", names(site, &[host])), None, |api| {
        let id = id.clone();
        async move {
            let text = |error: HostError| error.to_string();
            let mut found = api.get(&format!("/nodes/{id}")).await.map_err(text)?;
            if found["Spec"][key] == value {
                return Ok(());
            }
            let version = found["Version"]["Index"].as_u64().unwrap_or(0);
            found["Spec"][key] = json!(value);
            api.post(&format!("/nodes/{id}/update?version={version}"), &found["Spec"]).await.map(drop).map_err(text)
        }
    })
    .await
}

/// Waits until a host knows that it is, or is not, a manager, and the others see it the same way.
async fn wait_role(site: &Site, host: usize, manager: bool) -> Result<()> {
    let api = site.cluster.api(host);
    let what = format!("{} {} a manager", names(site, &[host]), if manager { "being" } else { "not being" });
    api.wait_for(&what, MENDED, || async {
        let info = api.get("/info").await.map_err(|e| e.to_string())?;
        if info["Swarm"]["ControlAvailable"] == manager { Ok(()) } else { Err(info["Swarm"].to_string()) }
    })
    .await?;
    let id = site.id(host);
    insist(site, &what, Some(host), |api| {
        let id = id.clone();
        async move {
            let node = api.get(&format!("/nodes/{id}")).await.map_err(|e| e.to_string())?;
            let seen = node["ManagerStatus"]["Reachability"] == "reachable";
            if seen == manager { Ok(()) } else { Err(node.to_string()) }
        }
    })
    .await
}

async fn opens_nothing(site: &Site, host: usize, before: Result<MembershipRecord, String>, removed: bool) {
    let record = match before {
        Ok(record) => record,
        Err(why) => return site.violated(&format!("the certificate of host {host} could not be tried: {why}")),
    };
    let others: Vec<usize> = (0..site.hosts()).filter(|other| *other != host).collect();
    match certificates::try_to_open(site, host, &others, &record, removed).await {
        Ok(refused) => lock(&site.tally).refused += refused,
        Err(what) => site.violated(&what),
    }
}

async fn leave_and_join(site: &Site, host: usize, away: Duration) -> Result<()> {
    let api = site.cluster.api(host);
    let (id, manager) = (site.id(host), host < site.shape.managers);
    let before = certificates::read(site, host);
    let path = if manager { "/swarm/leave?force=1" } else { "/swarm/leave" };
    api.wait_for("leaving", MENDED, || async {
        match api.post(path, &Value::Null).await {
            Err(HostError::Refused { message, .. }) if message.contains("not part of a swarm") => Ok(()),
            done => done.map(drop).map_err(|e| e.to_string()),
        }
    })
    .await?;
    site.reborn(host);
    insist(site, "the removal of a node that left", Some(host), |api| {
        let id = id.clone();
        async move {
            match api.delete(&format!("/nodes/{id}")).await {
                Err(HostError::Refused { status: 404, message, .. }) if message.contains(&id) => Ok(()),
                done => done.map(drop).map_err(|e| e.to_string()),
            }
        }
    })
    .await?;
    opens_nothing(site, host, before, true).await;
    tokio::time::sleep(away).await;

    let (worker, managers) = insist(site, "the tokens", Some(host), |api| async move {
        api.tokens().await.map_err(|e| e.to_string()).and_then(|tokens| match tokens.0.is_empty() {
            true => Err("no token".into()),
            false => Ok(tokens),
        })
    })
    .await?;
    let token = if manager { managers } else { worker };
    let remotes: Vec<String> = (0..site.shape.managers)
        .filter(|other| *other != host)
        .map(|other| site.cluster.host(other).node_address())
        .collect();
    let (address, place) = (site.cluster.host(host).address().to_string(), AtomicUsize::new(0));
    let joined = api
        .wait_for("joining again", MENDED, || async {
            if let Some(id) = api.node_id().await.ok().filter(|id| !id.is_empty()) {
                return Ok(id);
            }
            let remote = &remotes[place.fetch_add(1, Ordering::Relaxed) % remotes.len()];
            api.join(&address, remote, &token).await.map_err(|e| e.to_string())?;
            Err("joined, but who it is is not known yet".into())
        })
        .await?;
    ensure!(joined != id, "{} came back with its old identity", names(site, &[host]));
    site.set_id(host, joined);
    wait_role(site, host, manager).await
}
