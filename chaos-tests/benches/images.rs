//! A service whose image one host of five has: how long until all five run it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use chaos_tests::bench::{self, Argument, Report, Samples};
use chaos_tests::hosts::{Binaries, Cluster, SOON, ServiceDraft, image, unusable};
use chaos_tests::noise::write_noise;

const HELP: &str = "\
cargo bench -p chaos-tests --bench images -- [--runs N] [--hosts N] [--size MB]

  --runs 5     how often
  --hosts 5    hosts, three of them managers, which run a task each
  --size 50    MB of the image's one layer, which does not compress

From the request for the service to all tasks running, when one host has the image; beside it the same service when all
have it. Hosts are on this machine. Needs root.";

struct Options {
    runs: usize,
    hosts: usize,
    size: u64,
}

fn main() -> ExitCode {
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--runs" => options.runs = argument.count()?.min(100),
            "--hosts" => options.hosts = argument.count()?.clamp(3, 50),
            "--size" => options.size = argument.number::<u64>()?.clamp(1, 10_000),
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run_async(HELP, Options { runs: 5, hosts: 5, size: 50 }, take, run)
}

async fn run(options: &Options) -> Result<Report> {
    if let Some(reason) = unusable() {
        bail!("{reason}");
    }
    let binaries =
        Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() };
    let mut cluster = Cluster::hosts_only(&binaries, options.hosts).await?;
    let outcome = measure(&mut cluster, &binaries, options).await;
    if let Err(error) = &outcome {
        bench::say(format_args!("{error:#}\n{}", cluster.logs()));
    }
    cluster.clean_up()?;
    let (fetched, there) = outcome?;
    let mut report = Report::new(format!("An image of {} MB on {} hosts", options.size, options.hosts));
    report.note("create → all running, one host has the image", fetched, "- (none does this)");
    report.note("create → all running, every host has it", there, "-");
    Ok(report)
}

async fn measure(cluster: &mut Cluster, binaries: &Binaries, options: &Options) -> Result<(Samples, Samples)> {
    cluster.init().await?;
    for index in 1..options.hosts {
        cluster.join(index, index < 3).await?;
    }
    cluster.wait_ready(options.hosts).await?;
    let executable = std::fs::metadata(&binaries.whoami)?.len();
    // Without noise behind it, each run would have the same image, which is there after the first.
    ensure!(options.size * 1_000_000 > executable, "--size must be more than the {executable} bytes of the executable");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("app");
    let (mut fetched, mut there) = (Samples::default(), Samples::default());
    for run in 0..options.runs {
        // Another image each time: a little longer.
        write_noise(&file, &binaries.whoami, options.size * 1_000_000 + run as u64 * 512)?;
        let name = format!("big-{run}");
        let id = image::import(&cluster.api(options.hosts - 1), &file, &name, &["/shoal"]).await?;
        fetched.push(start(cluster, &name, options.hosts).await?);
        let here = cluster.api(0).get(&format!("/images/{id}/json")).await?;
        ensure!(here["Id"] == id.as_str(), "host 1 has something else");
        there.push(start(cluster, &name, options.hosts).await?);
        bench::say(format_args!("run {}: done", run + 1));
    }
    Ok((fetched, there))
}

/// Runs a service on every host and removes it.
async fn start(cluster: &Cluster, image: &str, hosts: usize) -> Result<Duration> {
    let api = cluster.api(0);
    let mut draft = ServiceDraft::new("big", image, 1).build();
    draft["Mode"] = serde_json::json!({"Global": {}});
    let began = Instant::now();
    api.create_service(&draft).await?;
    api.wait_running("big", hosts, &[], 4 * SOON).await?;
    let took = began.elapsed();
    api.delete("/services/big").await?;
    let all: Vec<usize> = (0..hosts).collect();
    cluster.wait_processes(&all, &[]).await?;
    Ok(took)
}
