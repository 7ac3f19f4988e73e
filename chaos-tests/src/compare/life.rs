//! Carries out rounds: what goes wrong, what users do meanwhile, and that all is mended again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::plan::{Act, Round, Trouble};
use super::{MANAGERS, NETWORKS, PROBE, Stage, lock};
use crate::hosts::{Fault, HostError, IMAGE, SOON, ServiceDraft};

/// A user waits so long for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// What is mended is whole again within this time.
const MENDED: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);
/// Services that come and go and are there at once, at the most.
const SERVICES: usize = 6;
/// What they are called.
const PREFIX: &str = "x-";
/// The first of the ports that they publish.
const PORT: u64 = 8100;

/// Makes what is there all the time.
pub(super) async fn prepare(stage: &Stage) -> Result<()> {
    let api = stage.api(0);
    for network in NETWORKS {
        api.create_overlay(network).await?;
    }
    let mut probe = draft(PROBE, 1, &[NETWORKS[0]]);
    probe["Mode"] = json!({"Global": {}});
    api.create_service(&probe).await?;
    let mut web = draft("web", 4, &NETWORKS);
    web["EndpointSpec"]["Ports"] = json!([port(8080)]);
    api.create_service(&web).await?;
    api.wait_running("web", 4, &[], SOON).await?;
    Ok(())
}

fn port(published: u64) -> Value {
    json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": published, "PublishMode": "ingress"})
}

fn draft(name: &str, replicas: u64, networks: &[&str]) -> Value {
    let mut spec = ServiceDraft::new(name, IMAGE, replicas).build();
    let targets = networks.iter().map(|network| json!({"Target": network}));
    spec["TaskTemplate"]["Networks"] = targets.collect();
    spec["UpdateConfig"] = json!({"Parallelism": 2, "FailureAction": "continue", "Order": "stop-first"});
    spec["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] = json!(1_000_000_000_u64);
    spec
}

/// Plays a round to its end; whatever was wrong is mended then, but may not be whole yet.
pub(super) async fn play(stage: &Stage, number: u64, round: &Round) -> Result<()> {
    let begun = Instant::now();
    match &round.trouble {
        Trouble::None => users(stage, number, round).await,
        Trouble::Fault(fault) => {
            let death = fault.victims().into_iter().filter(|_| fault.is_death());
            let dead: Vec<usize> = death.collect();
            dead.iter().for_each(|host| stage.set_dead(*host, true));
            tokio::task::block_in_place(|| stage.cluster.begin(fault))?;
            users(stage, number, round).await;
            tokio::time::sleep(round.length.saturating_sub(begun.elapsed())).await;
            stage.say(&format!("{fault}: over"));
            end(stage, fault).await?;
            dead.iter().for_each(|host| stage.set_dead(*host, false));
        }
        Trouble::Leave(host) => {
            let (left, ()) = tokio::join!(leave_and_join(stage, *host, round.length), users(stage, number, round));
            left?;
        }
    }
    Ok(())
}

async fn end(stage: &Stage, fault: &Fault) -> Result<()> {
    // Booting a host unmounts and makes namespaces, which blocks.
    stage.cluster.end(fault).await.with_context(|| format!("{fault} could not be mended"))
}

async fn users(stage: &Stage, number: u64, round: &Round) {
    for (place, (pause, act)) in round.acts.iter().enumerate() {
        tokio::time::sleep(*pause).await;
        let name = format!("{PREFIX}{number}-{place}");
        match tokio::time::timeout(PATIENCE, carry_out(stage, &name, *act)).await {
            Ok(Ok(done)) => stage.say(&format!("  {done}")),
            Ok(Err(error)) => stage.say(&format!("  {act:?}: {error:#}")),
            Err(_) => stage.say(&format!("  {act:?}: no answer")),
        }
    }
}

async fn carry_out(stage: &Stage, name: &str, act: Act) -> Result<String> {
    let mut last = anyhow::anyhow!("no manager");
    for host in 0..MANAGERS {
        match tokio::time::timeout(PATIENCE / 3, attempt(stage, host, name, act)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => last = error,
            Err(_) => last = anyhow::anyhow!("no answer"),
        }
    }
    Err(last)
}

async fn attempt(stage: &Stage, host: usize, name: &str, act: Act) -> Result<String> {
    let api = stage.api(host);
    let services = api.get("/services").await?;
    let names: Vec<&str> =
        services.as_array().into_iter().flatten().filter_map(|s| s["Spec"]["Name"].as_str()).collect();
    let own: Vec<&str> = names.iter().copied().filter(|name| name.starts_with(PREFIX)).collect();
    let all: Vec<&str> = names.iter().copied().filter(|name| *name != PROBE).collect();
    let of = |from: &[&str], pick: u64| -> Result<String> {
        let place = usize::try_from(pick % (from.len() as u64).max(1))?;
        from.get(place).map(|name| (*name).to_owned()).context("there is none")
    };
    match act {
        Act::Create { .. } if own.len() >= SERVICES => bail!("there are enough services"),
        Act::Create { replicas, networks, by_tasks, publishes } => {
            let chosen = NETWORKS.iter().enumerate().filter(|(bit, _)| networks >> bit & 1 == 1).map(|(_, name)| *name);
            let mut spec = draft(name, replicas, &chosen.collect::<Vec<_>>());
            if by_tasks {
                // A port of the mesh needs a virtual address.
                spec["EndpointSpec"]["Mode"] = json!("dnsrr");
            } else if publishes {
                let taken = services.as_array().into_iter().flatten().flat_map(|service| {
                    let ports = service["Endpoint"]["Ports"].as_array().cloned().unwrap_or_default();
                    ports.into_iter().filter_map(|port| port["PublishedPort"].as_u64())
                });
                let taken: Vec<u64> = taken.collect();
                let free = (PORT..).find(|port| !taken.contains(port)).context("no port")?;
                spec["EndpointSpec"]["Ports"] = json!([port(free)]);
            }
            api.create_service(&spec).await?;
            Ok(format!("create {name} of {replicas} on {networks:b}"))
        }
        Act::Scale { pick, replicas } => {
            let name = of(&all, pick)?;
            api.scale(&name, replicas).await?;
            Ok(format!("scale {name} to {replicas}"))
        }
        Act::Update { pick, start_first } => {
            let name = of(&names, pick)?;
            let mut found = api.get(&format!("/services/{name}")).await?;
            let version = found["Version"]["Index"].as_u64().unwrap_or(0);
            found["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] = json!([format!("V={version}")]);
            found["Spec"]["UpdateConfig"]["Order"] = json!(if start_first { "start-first" } else { "stop-first" });
            api.post(&format!("/services/{name}/update?version={version}"), &found["Spec"]).await?;
            Ok(format!("update {name}"))
        }
        Act::Remove { pick } => {
            let name = of(&own, pick)?;
            api.delete(&format!("/services/{name}")).await?;
            lock(&stage.gone).insert(name.clone());
            Ok(format!("remove {name}"))
        }
    }
}

/// Asks one manager after the other until one does it.
async fn insist<T, F>(what: &str, mut attempt: impl FnMut(usize) -> F) -> Result<T>
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + MENDED;
    loop {
        let mut seen = String::new();
        for host in 0..MANAGERS {
            match tokio::time::timeout(Duration::from_secs(15), attempt(host)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => seen = error,
                Err(_) => seen = "no answer".into(),
            }
        }
        if Instant::now() > deadline {
            bail!("{what} did not happen: {seen}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A worker leaves, its node is removed, and it joins again as another one.
async fn leave_and_join(stage: &Stage, host: usize, away: Duration) -> Result<()> {
    let api = stage.api(host);
    let id = api.node_id().await?;
    api.wait_for("leaving", MENDED, || async {
        match api.post("/swarm/leave", &Value::Null).await {
            Err(HostError::Refused { message, .. }) if message.contains("not part of a swarm") => Ok(()),
            done => done.map(drop).map_err(|e| e.to_string()),
        }
    })
    .await?;
    insist("the removal of a node that left", |manager| {
        let (api, id) = (stage.api(manager), id.clone());
        async move {
            match api.delete(&format!("/nodes/{id}")).await {
                Err(HostError::Refused { status: 404, message, .. }) if message.contains(&id) => Ok(()),
                done => done.map(drop).map_err(|e| e.to_string()),
            }
        }
    })
    .await?;
    stage.say(&format!("host-{} has left", host + 1));
    tokio::time::sleep(away).await;
    let token = insist("the tokens", |manager| {
        let api = stage.api(manager);
        async move {
            let tokens = api.tokens().await.map_err(|e| e.to_string())?;
            if tokens.0.is_empty() { Err("no token".into()) } else { Ok(tokens.0) }
        }
    })
    .await?;
    let address = stage.cluster.host(host).address().to_string();
    insist("joining again", |manager| {
        let (api, address, token) = (api.clone(), address.clone(), token.clone());
        let remote = stage.cluster.host(manager).node_address();
        async move {
            if api.node_id().await.is_ok_and(|id| !id.is_empty()) {
                return Ok(());
            }
            api.join(&address, &remote, &token).await.map_err(|e| e.to_string())
        }
    })
    .await?;
    stage.say(&format!("host-{} has joined again", host + 1));
    Ok(())
}
