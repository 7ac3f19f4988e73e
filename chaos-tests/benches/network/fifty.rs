//! A service of 50 on an overlay network, from the request on until all of its tasks run; in turns with Docker Swarm.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chaos_tests::bench::{self, Report, Samples};
use chaos_tests::hosts::{Api, Binaries, Cluster, Freshness};
use chaos_tests::peers::{self, Rig, Swarm, until};

use crate::service::{NETWORK, on_network};
use crate::{MANAGERS, Options};

const TASKS: usize = 50;
/// Runs of each system.
const RUNS: usize = 3;
/// After what was there before has gone.
const CALM: Duration = Duration::from_secs(1);

pub(crate) async fn measure(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, MANAGERS, options.hosts - MANAGERS).await?;
    let swarm = docker(binaries, options.hosts).await;
    let ours: Vec<Api> = (0..options.hosts).map(|index| cluster.api(index)).collect();
    ours[0].create_overlay(NETWORK).await?;
    let (mut shoal, mut peer) = (Samples::default(), Samples::default());
    let mut gave_up = None;
    for run in 0..RUNS {
        let took = fifty(&ours).await.context("Shoal")?;
        bench::say(format_args!("service of {TASKS}, run {run}: shoal {:.2} s", took.as_secs_f64()));
        shoal.push(took);
        if let (Ok(swarm), None) = (&swarm, &gave_up) {
            let apis: Vec<Api> = (0..options.hosts).map(|index| swarm.api(index)).collect();
            match fifty(&apis).await {
                Ok(took) => {
                    bench::say(format_args!("service of {TASKS}, run {run}: swarm {:.2} s", took.as_secs_f64()));
                    peer.push(took);
                }
                // That the peer fails is a result.
                Err(error) => gave_up = Some(format!("failed in run {run}: {error:#}")),
            }
        }
    }
    let told = match (&swarm, gave_up) {
        (Ok(_), None) => peer.to_string(),
        (Ok(_), Some(failure)) if peer.is_empty() => failure,
        (Ok(_), Some(failure)) => format!("{peer}; {failure}"),
        (Err(error), _) => format!("{error:#}"),
    };
    let met = shoal.percentile(50) <= Duration::from_millis(1500);
    let what = format!("a service of 50 on an overlay network → all Running, {} hosts", options.hosts);
    report.target(&what, "≤ 1.5 s", &shoal, told, met);
    if let Ok(swarm) = swarm {
        swarm.clean_up()?;
    }
    cluster.clean_up()
}

async fn docker(binaries: &Binaries, hosts: usize) -> Result<Swarm> {
    if let Some(missing) = peers::missing() {
        anyhow::bail!("Docker is not installed ({missing})");
    }
    let swarm = Swarm::unformed(hosts).await?;
    peers::form(&swarm, MANAGERS).await?;
    peers::load_images(&swarm, &binaries.whoami).await?;
    swarm.api(0).create_overlay(NETWORK).await?;
    Ok(swarm)
}

/// Makes the service, waits until all of it runs, and removes it. Answers how long the first two took.
async fn fifty(hosts: &[Api]) -> Result<Duration> {
    let api = hosts.first().context("a host")?;
    let began = Instant::now();
    api.create_service(&on_network("fifty", TASKS as u64).build()).await?;
    let took = until("fifty running tasks", async || {
        let tasks = api.tasks("fifty", Freshness::Local).await.ok()?;
        (tasks.iter().filter(|task| task.serves()).count() == TASKS).then(|| began.elapsed())
    })
    .await?;
    api.delete("/services/fifty").await?;
    until("the end of fifty tasks", async || {
        for host in hosts {
            let containers = host.get("/containers/json?all=1").await.ok()?;
            containers.as_array()?.is_empty().then_some(())?;
        }
        Some(())
    })
    .await?;
    tokio::time::sleep(CALM).await;
    Ok(took)
}
