//! The scenarios. Both systems go through the same steps, asked through the same API by the same code.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use chaos_tests::hosts::{Api, Freshness, IMAGE, ServiceDraft};
use chaos_tests::peers::{Cable, LOOK, Rig, ready, until};
use serde_json::{Value, json};

/// One try of a write takes so long at the most.
const WRITE: Duration = Duration::from_secs(1);
/// Tasks on the host that is lost.
const TASKS: usize = 10;
/// Anything is over after this time, or will never be.
const LIMIT: Duration = Duration::from_secs(180);
/// Between two losses the cluster has this long to come to rest.
pub(crate) const CALM: Duration = Duration::from_millis(1500);

/// What a lost host led to, from the loss on.
pub(crate) struct Loss {
    /// The host was called down.
    pub(crate) down: Duration,
    /// Every task that it had runs elsewhere.
    pub(crate) replaced: Duration,
}

/// What a lost leader led to, from the loss on.
pub(crate) struct LeaderLoss {
    /// The first write was acknowledged through a survivor.
    pub(crate) write: Duration,
    /// As in [`Loss`].
    pub(crate) down: Duration,
    /// As in [`Loss`].
    pub(crate) replaced: Duration,
}

/// Powers a worker off.
pub(crate) async fn lose_worker(rig: &impl Rig, victim: usize) -> Result<Loss> {
    let witness = rig.api(0);
    let lost = prepare(rig, &witness, victim).await?;
    let (began, at) = (Instant::now(), SystemTime::now());
    tokio::task::block_in_place(|| rig.lose(victim, Cable::Pulled))?;
    let loss = watch(&witness, &lost, began).await?;
    rig.measured("host loss", at);
    recover(rig, &witness, victim).await?;
    Ok(loss)
}

/// Loses the leader's host.
pub(crate) async fn lose_leader(rig: &impl Rig, managers: usize, cable: Cable) -> Result<LeaderLoss> {
    let victim = leader(rig, managers).await?;
    let survivors: Vec<Api> = (0..managers).filter(|index| *index != victim).map(|index| rig.api(index)).collect();
    let lost = prepare(rig, &survivors[0], victim).await?;
    let (began, at) = (Instant::now(), SystemTime::now());
    tokio::task::block_in_place(|| rig.lose(victim, cable))?;
    let done = AtomicBool::new(false);
    let writes = async {
        let (one, other) = tokio::join!(write(&survivors[0], began, &done), write(&survivors[1], began, &done));
        [one, other].into_iter().flatten().min().context("no write was acknowledged")
    };
    let (written, loss) = tokio::join!(writes, watch(&survivors[0], &lost, began));
    let (write, Loss { down, replaced }) = (written?, loss?);
    rig.measured("leader loss", at);
    recover(rig, &survivors[0], victim).await?;
    Ok(LeaderLoss { write, down, replaced })
}

/// Writes again and again until one of all writers was told that it is done.
async fn write(api: &Api, began: Instant, done: &AtomicBool) -> Option<Duration> {
    while !done.load(Ordering::SeqCst) && began.elapsed() < LIMIT {
        let config = json!({"Name": format!("c{:032x}", rand::random::<u128>()), "Data": "eA=="});
        if let Ok(Ok(_)) = tokio::time::timeout(WRITE, api.post("/configs/create", &config)).await {
            done.store(true, Ordering::SeqCst);
            return Some(began.elapsed());
        }
        tokio::time::sleep(LOOK).await;
    }
    None
}

/// The leading host, as the managers see it.
pub(crate) async fn leader(rig: &impl Rig, managers: usize) -> Result<usize> {
    let witness = rig.api(0);
    let address = until("a leader", async || {
        let nodes = witness.nodes(Freshness::Linearizable).await.ok()?;
        let leads = nodes.into_iter().find(|node| node["ManagerStatus"]["Leader"] == true)?;
        Some(leads["ManagerStatus"]["Addr"].as_str()?.split(':').next()?.to_owned())
    })
    .await?;
    let index = (0..managers).find(|index| rig.address(*index).to_string() == address);
    index.with_context(|| format!("the leader {address} is none of the managers"))
}

/// Lets a host have all tasks of a new service, and the others take them over when it is lost. Answers its node id.
async fn prepare(rig: &impl Rig, witness: &Api, victim: usize) -> Result<String> {
    let id = rig.api(victim).node_id().await?;
    let others: Vec<String> = {
        let nodes = witness.nodes(Freshness::Linearizable).await?;
        nodes.iter().filter_map(|node| node["ID"].as_str()).filter(|node| *node != id).map(str::to_owned).collect()
    };
    for other in &others {
        set_availability(witness, other, "pause").await?;
    }
    let mut spec = ServiceDraft::new("web", IMAGE, TASKS as u64).build();
    spec["TaskTemplate"]["RestartPolicy"]["Delay"] = json!(0);
    witness.create_service(&spec).await?;
    until("the tasks of the victim", async || {
        (running(witness).await?.iter().filter(|node| **node == id).count() == TASKS).then_some(())
    })
    .await?;
    for other in &others {
        set_availability(witness, other, "active").await?;
    }
    tokio::time::sleep(CALM).await;
    Ok(id)
}

async fn set_availability(api: &Api, node: &str, availability: &str) -> Result<()> {
    for _ in 0..20 {
        let mut found = api.get(&format!("/nodes/{node}")).await?;
        found["Spec"]["Availability"] = availability.into();
        let version = found["Version"]["Index"].as_u64().unwrap_or(0);
        match api.post(&format!("/nodes/{node}/update?version={version}"), &found["Spec"]).await {
            // Somebody wrote in between.
            Err(error) if error.to_string().contains("out of sequence") => tokio::time::sleep(LOOK).await,
            done => return done.map(drop).map_err(Into::into),
        }
    }
    bail!("node {node} changes all the time")
}

/// The hosts of the service's running tasks.
async fn running(api: &Api) -> Option<Vec<String>> {
    let tasks = api.tasks("web", Freshness::Local).await.ok()?;
    Some(tasks.into_iter().filter(|task| task.serves()).map(|task| task.node).collect())
}

/// Looks at a cluster that has lost a host.
async fn watch(witness: &Api, lost: &str, began: Instant) -> Result<Loss> {
    let mut down = None;
    let replaced = until("the replacement of all tasks", async || {
        if down.is_none() {
            let nodes = witness.nodes(Freshness::Local).await.ok()?;
            let state = nodes.iter().find(|node| node["ID"] == lost).map(|node| node["Status"]["State"].clone());
            down = (state == Some(Value::from("down"))).then(|| began.elapsed());
            down?;
        }
        let elsewhere = running(witness).await?.iter().filter(|node| *node != lost).count();
        (elsewhere == TASKS).then(|| began.elapsed())
    })
    .await?;
    Ok(Loss { down: down.unwrap_or(replaced), replaced })
}

/// Makes the cluster whole again, without the service.
async fn recover(rig: &impl Rig, witness: &Api, victim: usize) -> Result<()> {
    until("the removal of the service", async || witness.delete("/services/web").await.ok()).await?;
    rig.boot(victim).await?;
    until("a whole cluster", async || ready(witness, rig.count(), crate::MANAGERS).await).await?;
    tokio::time::sleep(CALM).await;
    Ok(())
}
