//! `shoal demo`: a cluster on this machine that loses a host, told step by step, with what was measured.
//!
//! Every line claims only what was seen: a step holds, or the demo ends there with exit code 1 and what the daemons
//! said. Everything is removed at the end, also after a failure, a panic or Ctrl-C.

mod recovery;
mod report;
mod steps;

use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use self::report::Report;
use self::steps::Story;
use super::hosts::{Hosts, HostsConfig};

/// What `shoal demo` was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DemoOptions {
    /// How many hosts, 3 to 20; the first three are managers.
    pub hosts: usize,
    /// Leave the cluster up until Ctrl-C.
    pub keep: bool,
    /// One JSON object on standard output, and nothing else there.
    pub json: bool,
}

/// A cluster that survives the loss of a host has three managers.
const MIN_HOSTS: usize = 3;
/// More do not fit an ordinary machine.
const MAX_HOSTS: usize = 20;
/// Lines of a daemon's log that a failure shows.
const LOG_LINES: usize = 15;
/// As shells say it of a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// How the story ended.
enum End {
    Told,
    Failed(anyhow::Error),
    Interrupted,
}

/// Tells the story. The exit code is 0 only if every step held, 130 after Ctrl-C, else 1.
pub async fn run(options: DemoOptions) -> ExitCode {
    let mut report = Report::new(options.json);
    if !(MIN_HOSTS..=MAX_HOSTS).contains(&options.hosts) {
        report.failure(&format!("--hosts {}: must be {MIN_HOSTS} to {MAX_HOSTS}", options.hosts));
        return ExitCode::from(2);
    }
    // Installed before anything is made, and never taken back: a second Ctrl-C does not cut the clean-up short.
    let (mut interrupt, mut terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => {
            report.failure(&format!("cannot handle signals: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut hosts = match make_hosts(&mut report, options.hosts) {
        Ok(hosts) => hosts,
        Err(error) => {
            report.failure(&format!("{error:#}"));
            report.finish(false);
            return ExitCode::FAILURE;
        }
    };
    let end = {
        let story = async {
            Story::new(&hosts, &mut report)?.tell().await?;
            if options.keep {
                report.keep(&hosts);
                std::future::pending::<()>().await;
            }
            Ok::<(), anyhow::Error>(())
        };
        tokio::select! {
            biased;
            _ = interrupt.recv() => End::Interrupted,
            _ = terminate.recv() => End::Interrupted,
            told = story => match told {
                Ok(()) => End::Told,
                Err(error) => End::Failed(error),
            },
        }
    };
    if let End::Failed(error) = &end {
        report.failure(&format!("{error:#}"));
        for host in hosts.all() {
            report.log(host.name(), &host.log_tail(LOG_LINES));
        }
    }
    let cleaned = clean_up(&mut report, &mut hosts);
    let good = cleaned && !matches!(end, End::Failed(_)) && report.told();
    report.finish(good);
    match end {
        End::Told if good => ExitCode::SUCCESS,
        // Ctrl-C is how a kept cluster ends.
        End::Interrupted if good && options.keep => ExitCode::SUCCESS,
        End::Interrupted => ExitCode::from(INTERRUPTED),
        _ => ExitCode::FAILURE,
    }
}

fn make_hosts(report: &mut Report, count: usize) -> Result<Hosts> {
    report.begin(&format!("making {count} hosts in network namespaces"));
    let exe = std::env::current_exe().context("cannot find the own executable")?;
    let hosts = Hosts::create(&HostsConfig::new(exe, count))?;
    let names: Vec<String> = hosts.all().iter().map(|host| format!("{} {}", host.name(), host.address())).collect();
    report.done("hosts", &format!("{count} hosts in network namespaces on a private bridge: {}", names.join(", ")));
    Ok(hosts)
}

fn clean_up(report: &mut Report, hosts: &mut Hosts) -> bool {
    report.begin("cleaning up");
    match hosts.clean_up() {
        Ok(()) => {
            report.done("cleanup", "everything is removed: processes, namespaces, mounts, cgroups, files");
            true
        }
        Err(error) => {
            report.failure(&crate::chain(&error));
            false
        }
    }
}
