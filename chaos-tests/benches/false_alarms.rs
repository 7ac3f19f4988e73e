//! Who is called dead when nobody is: five hosts whose processors burn and whose network loses one packet in ten.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use chaos_tests::bench::{self, Argument, Report};
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
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--minutes" => options.minutes = argument.number::<u64>()?.clamp(1, 24 * 60),
            "--loss" => options.loss = argument.number::<u8>()?.min(50),
            "--burners" => options.burners = argument.number::<usize>()?.min(1000),
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run_async(HELP, Options { minutes: 30, loss: 10, burners: 2 * cpus }, take, run)
}

async fn run(options: &Options) -> Result<Report> {
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
                bench::say(format_args!("{:5} s: {alarms:?}", elapsed.as_secs()));
            }
        })
        .await;
    if let Err(error) = &outcome {
        bench::say(format_args!("{error:#}\n{}", cluster.logs()));
    }
    cluster.clean_up()?;
    Ok(report(options, &outcome?))
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
