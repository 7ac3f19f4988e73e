//! Committed writes a second: opaque 256-byte proposals through the raft crate's own gRPC, three members in three
//! processes, next to three members of etcd, in turns in the same run, without TLS on either side.
//!
//! `cargo bench -p chaos-tests --bench writes -- --help`

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
  --counters       print what the members counted
";

struct Options {
    clients: Vec<usize>,
    measured: Duration,
    runs: usize,
    dir: PathBuf,
    peer: bool,
    counters: bool,
}

fn options(mut args: impl Iterator<Item = String>) -> anyhow::Result<Option<Options>> {
    let (clients, measured) = (vec![1, 16, 64, 256], Duration::from_secs(4));
    let mut options = Options { clients, measured, runs: 3, dir: std::env::temp_dir(), peer: true, counters: false };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--clients" => options.clients = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--seconds" => options.measured = Duration::from_secs_f64(value()?.parse()?),
            "--runs" => options.runs = value()?.parse::<usize>()?.max(1),
            "--dir" => options.dir = value()?.into(),
            "--no-peer" => options.peer = false,
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

#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
async fn measure(options: &Options) -> anyhow::Result<ExitCode> {
    let dir = tempfile::Builder::new().prefix("shoal-writes-").tempdir_in(&options.dir)?;
    let etcd = if options.peer { etcd::Etcd::start(dir.path()).await? } else { None };
    let mut members = members::Members::start(dir.path())?;
    let mut acknowledged = 0;
    let mut report = Report::new("Committed writes, 256 bytes, 3 managers, no TLS");
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
        let (what, ours) = (format!("{clients} clients"), median(ours));
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
    Ok(report.finish())
}

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
