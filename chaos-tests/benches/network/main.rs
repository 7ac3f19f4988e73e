//! What the overlay network is promised to do, measured: throughput, virtual addresses and the ingress mesh beside straight
//! ways, how fast services start and changes reach all hosts, and updates that nobody notices. Docker Swarm, on hosts made the
//! same way and in the same run, stands beside it where Docker is installed.
//!
//! `cargo bench -p chaos-tests --bench network -- [options]`; `--help` lists them. Each line is a module and makes the
//! hosts that it needs.

mod convergence;
mod fifty;
mod hand;
mod others;
mod paths;
mod rolling;
mod service;
mod throughput;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_tests::bench::{self, Argument, Report};
use chaos_tests::hosts::Binaries;

const HELP: &str = "\
cargo bench -p chaos-tests --bench network -- [OPTIONS]

  --only LINE[,LINE]  of: throughput   one TCP stream between tasks on two hosts, by iperf3
                          vip          requests through a virtual address, and straight to the task
                          mesh         requests through another host's published port, and straight to the task's host
                          fifty        a service of 50 on 5 hosts, created → all Running
                          convergence  a task Running → it answers everywhere
                          dead-host    a host dies → nobody is led to it, with and without managers
                          rolling      updates and changes of scale under load
                          endpoints    1 000 services, 5 000 endpoints (runs the benchmark of that name, by cargo)
                      all of them when none is named
  --hosts N           of fifty, convergence and rolling, three of them managers (default 5; 4 at least)
  --rounds N          of lines whose ways take turns (default 10)
  --seconds S         of one stream of iperf3 (default 2)
  --samples N         of convergence (default 100)
  --minutes N         of rolling (default 10, as the target says; 1 shows that it works)
  --profile NAME      cargo's profile for endpoints
  --help              this text

All of it takes about half an hour; each line by itself, rolling apart, one to five minutes.

Needs root; iperf3, iproute2 and nsenter for throughput; dockerd, containerd and runc for the peer.
The exit code is 1 when a target was missed or could not be measured.";

/// Managers of clusters of [`Options::hosts`].
const MANAGERS: usize = 3;

/// Something that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Throughput,
    Vip,
    Mesh,
    Fifty,
    Convergence,
    DeadHost,
    Rolling,
    Endpoints,
}

impl Line {
    const ALL: [(&str, Line); 8] = [
        ("throughput", Line::Throughput),
        ("vip", Line::Vip),
        ("mesh", Line::Mesh),
        ("fifty", Line::Fifty),
        ("convergence", Line::Convergence),
        ("dead-host", Line::DeadHost),
        ("rolling", Line::Rolling),
        ("endpoints", Line::Endpoints),
    ];

    fn named(name: &str) -> Result<Line, String> {
        let found = Line::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, line)| *line).ok_or_else(|| format!("--only {name}: no such line"))
    }
}

/// The command line.
#[derive(Debug, Clone)]
struct Options {
    only: Vec<Line>,
    hosts: usize,
    rounds: usize,
    /// One stream of iperf3 takes so long.
    stream: Duration,
    /// Of convergence.
    samples: usize,
    /// Of updates under load.
    minutes: u64,
    profile: Option<String>,
}

fn main() -> ExitCode {
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--only" => {
                for name in argument.value()?.split(',') {
                    options.only.push(Line::named(name)?);
                }
            }
            "--hosts" => {
                options.hosts = argument.count()?;
                if options.hosts <= MANAGERS {
                    return Err(format!("--hosts {}: too few", options.hosts));
                }
            }
            "--rounds" => options.rounds = argument.count()?,
            "--seconds" => options.stream = Duration::from_secs(argument.count()? as u64),
            "--samples" => options.samples = argument.count()?,
            "--minutes" => options.minutes = argument.count()? as u64,
            "--profile" => options.profile = Some(argument.value()?),
            _ => return argument.unknown(),
        }
        Ok(())
    };
    let defaults = Options {
        only: Vec::new(),
        hosts: 5,
        rounds: 10,
        stream: Duration::from_secs(2),
        samples: 100,
        minutes: 10,
        profile: None,
    };
    bench::run_async(HELP, defaults, take, measure)
}

async fn measure(options: &Options) -> Result<Report> {
    if let Some(reason) = chaos_tests::hosts::unusable() {
        anyhow::bail!("not measured: {reason}");
    }
    let binaries =
        Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() };
    let mut report = Report::new("overlay networks, hosts in namespaces of one machine");
    bench::say(format_args!("load before: {}", load()));
    for (name, line) in Line::ALL {
        if !options.only.is_empty() && !options.only.contains(&line) {
            continue;
        }
        let measured = match line {
            Line::Throughput => throughput::measure(&binaries, options, &mut report).await,
            Line::Vip => paths::vip(&binaries, options, &mut report).await,
            Line::Mesh => paths::mesh(&binaries, options, &mut report).await,
            Line::Fifty => fifty::measure(&binaries, options, &mut report).await,
            Line::Convergence => convergence::measure(&binaries, options, &mut report).await,
            Line::DeadHost => others::dead_host(&binaries, &mut report).await,
            Line::Rolling => rolling::measure(&binaries, options, &mut report).await,
            Line::Endpoints => others::endpoints(options, &mut report),
        };
        // What one line came to says nothing of the others.
        if let Err(error) = measured.with_context(|| format!("{name}, load {}", load())) {
            bench::say(format_args!("{error:#}"));
            report.target(name, "-", format_args!("failed: {error:#}"), "-", false);
        }
    }
    bench::say(format_args!("load after: {}", load()));
    Ok(report)
}

/// The machine's load averages; what else it does shows in every figure.
fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}
