//! Who is called dead when nobody is: five hosts whose processors burn and whose network loses one packet in ten.

#![allow(clippy::print_stdout, reason = "a command talks to its user")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chaos_tests::bench::Report;
use chaos_tests::hosts::{Alarms, Binaries, Cluster, rules_unusable, unusable};

const HELP: &str = "\
cargo bench -p chaos-tests --bench false_alarms -- [--minutes N] [--loss PERCENT] [--burners N]

  --minutes 30   how long it burns
  --loss 10      packets of 100 that are lost between hosts, TCP and UDP
  --burners      processes that burn beside the ten tasks that do; twice the number of processors

Three managers and two workers on this machine. Needs root and nft.";

/// Tasks that burn, one thread each.
const TASKS: u64 = 10;

struct Options {
    minutes: u64,
    loss: u8,
    burners: usize,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut options = Options { minutes: 30, loss: 10, burners: 2 * cpus };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--minutes" => options.minutes = value()?.parse::<u64>().context("--minutes")?.clamp(1, 24 * 60),
            "--loss" => options.loss = value()?.parse::<u8>().context("--loss")?.min(50),
            "--burners" => options.burners = value()?.parse::<usize>().context("--burners")?.min(1000),
            "--help" | "-h" => return Ok(None),
            // What cargo adds by itself.
            "--bench" => {}
            _ => bail!("unknown option {arg}\n\n{HELP}"),
        }
    }
    Ok(Some(options))
}

#[tokio::main]
async fn run() -> Result<ExitCode> {
    let Some(options) = parse(std::env::args().skip(1))? else {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(reason) = unusable().or_else(rules_unusable) {
        bail!("{reason}");
    }
    let binaries =
        Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() };
    let cluster = Cluster::start(&binaries, 3, 2).await?;
    let length = Duration::from_secs(options.minutes * 60);
    let mut told = Duration::ZERO;
    let outcome = cluster
        .starve(length, TASKS, options.burners, options.loss, |elapsed, alarms| {
            if elapsed >= told {
                told = elapsed + Duration::from_secs(60);
                println!("{:5} s: {alarms:?}", elapsed.as_secs());
            }
        })
        .await;
    if let Err(error) = &outcome {
        println!("{error:#}\n{}", cluster.logs());
    }
    cluster.clean_up()?;
    Ok(report(&options, &outcome?).finish())
}

fn report(options: &Options, alarms: &Alarms) -> Report {
    let mut report = Report::new(format!(
        "False alarms: {} min, {TASKS} burning tasks and {} burners beside them, {} % of all packets lost",
        options.minutes, options.burners, options.loss
    ));
    const PEER: &str = "- (not measured)";
    report.target("hosts declared Down", "0", alarms.downs, PEER, alarms.downs == 0);
    let changes = format!("{} (the term grew by {})", alarms.leader_changes, alarms.terms);
    report.target("leader changes", "0", changes, PEER, alarms.leader_changes == 0 && alarms.terms == 0);
    report.note("elections that were begun", alarms.elections, PEER);
    report.note("pre-votes refused", alarms.pre_votes_refused, PEER);
    report.note("failed probes of the gossip", alarms.probes_failed, PEER);
    report.note("suspicions, at all hosts", alarms.suspicions, PEER);
    report.note("deaths that the gossip believed in", alarms.deaths, PEER);
    report.note("remarks \"gossip blocked\"", alarms.blocked, PEER);
    report.note("sessions opened again", alarms.reattached, PEER);
    report.note("longest session silence, at most", format!("{} s", alarms.silence), PEER);
    report.note("daemons late for their own timers", alarms.late, PEER);
    report
}
