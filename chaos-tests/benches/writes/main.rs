//! Committed writes a second: opaque 256-byte proposals through the raft crate's own gRPC, three members in three
//! processes, next to three members of etcd, in turns in the same run, without TLS on either side. After that the same
//! load on the Docker API of three managers, which has no target and no peer.
//!
//! `cargo bench -p chaos-tests --bench writes -- --help`

mod configs;
mod etcd;
mod load;
mod members;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use chaos_tests::bench::Report;

use crate::load::Outcome;

const HELP: &str = "\
Committed writes of 256 bytes, three managers in three processes, beside three members of the machine's etcd.

  --clients LIST   closed-loop clients (1,16,64,256)
  --seconds N      how long each run is measured (4)
  --runs N         runs of each; the median counts (3)
  --dir DIR        where the logs are written; a real disk (the directory for temporary files)
  --no-peer        without etcd
  --only PART      raft or configs, the creating of configs through the Docker API, which needs root
  --counters       print what the members counted
";

struct Options {
    clients: Vec<usize>,
    measured: Duration,
    runs: usize,
    dir: PathBuf,
    peer: bool,
    raft: bool,
    configs: bool,
    counters: bool,
}

fn options(mut args: impl Iterator<Item = String>) -> anyhow::Result<Option<Options>> {
    let (clients, measured) = (vec![1, 16, 64, 256], Duration::from_secs(4));
    let dir = std::env::temp_dir();
    let mut options =
        Options { clients, measured, runs: 3, dir, peer: true, raft: true, configs: true, counters: false };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--clients" => options.clients = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--seconds" => options.measured = Duration::from_secs_f64(value()?.parse()?),
            "--runs" => options.runs = value()?.parse::<usize>()?.max(1),
            "--dir" => options.dir = value()?.into(),
            "--no-peer" => options.peer = false,
            "--only" => match value()?.as_str() {
                "raft" => options.configs = false,
                "configs" => options.raft = false,
                other => anyhow::bail!("there is no part {other:?}"),
            },
            "--counters" => options.counters = true,
            // Cargo adds it.
            "--bench" => {}
            "--help" => return Ok(None),
            _ => anyhow::bail!("no such option: {arg}\n\n{HELP}"),
        }
    }
    Ok(Some(options))
}

#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let [member, id, dir] = args.as_slice()
        && member == "member"
    {
        runtime.block_on(members::member(id.parse()?, dir.as_ref()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(options) = options(args.into_iter())? else {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    runtime.block_on(measure(&options))
}

async fn measure(options: &Options) -> anyhow::Result<ExitCode> {
    let mut report = Report::new("Committed writes, 256 bytes, 3 managers");
    if options.raft {
        measure_raft(options, &mut report).await?;
    }
    if options.configs {
        measure_configs(options, &mut report).await?;
    }
    Ok(report.finish())
}

#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
async fn measure_raft(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("shoal-writes-").tempdir_in(&options.dir)?;
    let etcd = if options.peer { etcd::Etcd::start(dir.path()).await? } else { None };
    let mut members = members::Members::start(dir.path())?;
    let mut acknowledged = 0;
    for clients in &options.clients {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for first in 0..options.runs {
            if let Some(etcd) = &etcd {
                theirs.push(load::run(etcd::Puts, &etcd.endpoints, first, *clients, options.measured).await?);
                println!("{clients} clients, {}: {}, load {}", etcd.version, theirs[first], load_average());
            }
            let outcome = load::run(members::Proposals, &members.endpoints, first, *clients, options.measured).await?;
            println!("{clients} clients, raft: {outcome}, load {}", load_average());
            acknowledged += outcome.committed;
            ours.push(outcome);
        }
        let (what, ours) = (format!("{clients} clients, without TLS"), median(ours));
        match &etcd {
            Some(etcd) => {
                let theirs = median(theirs);
                let met = ours.per_second >= theirs.per_second && ours.failed == 0;
                report.target(&what, "≥ etcd", ours, format!("{}: {theirs}", etcd.version), met);
            }
            None => report.note(&what, ours, if options.peer { "etcd is not installed" } else { "not asked for" }),
        }
    }
    let counted = members.check(acknowledged)?;
    println!("all {acknowledged} acknowledged writes are applied on all members, in the same order");
    if options.counters {
        for line in counted {
            println!("{line}");
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
async fn measure_configs(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if let Some(reason) = chaos_tests::hosts::unusable() {
        report.note("configs/create", reason, "-");
        return Ok(());
    }
    let mut managers = configs::Managers::start().await?;
    let mut acknowledged = 0;
    for clients in &options.clients {
        let mut outcomes = [Vec::new(), Vec::new()];
        for _ in 0..options.runs {
            for (way, outcomes) in WAYS.iter().zip(&mut outcomes) {
                let outcome = managers.run(*way == WAYS[0], *clients, options.measured).await?;
                println!("{clients} clients, configs/create {way}: {outcome}, load {}", load_average());
                acknowledged += outcome.committed;
                outcomes.push(outcome);
            }
        }
        for (way, outcomes) in WAYS.iter().zip(outcomes) {
            report.note(&format!("{clients} clients, configs/create {way}"), median(outcomes), "-");
        }
    }
    managers.end()?;
    println!("all {acknowledged} created configs were listed by all managers");
    Ok(())
}

/// Whom the creators of configs ask.
const WAYS: [&str; 2] = ["through the leader", "through a follower"];

/// The run in the middle, by throughput.
fn median(mut runs: Vec<Outcome>) -> Outcome {
    runs.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
    runs.swap_remove(runs.len() / 2)
}

/// Of the last minute, with our own work in it.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
