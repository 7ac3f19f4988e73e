//! How fast a cluster of five hosts (three managers, two workers) gets over the loss of one of them, and how fast it
//! is formed; beside it Docker Swarm on hosts made the same way, in the same run, where Docker is installed.
//!
//! `cargo bench -p chaos-tests --bench failover -- [options]`; `--help` lists them. Both systems are asked through the
//! same API by the same code, every 20 ms. Needs root.

mod measure;
mod options;
mod rig;
mod timeline;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use chaos_tests::bench::{Report, Samples};
use chaos_tests::hosts::headless::{self, Seen};
use chaos_tests::hosts::{Binaries, Cluster};
use chaos_tests::peers::{self, Cable, Rig, Swarm};

use measure::{LeaderLoss, Loss};
use options::{Options, Scenario};
use rig::Shoal;

/// Managers of the cluster.
const MANAGERS: usize = 3;
/// All hosts of the cluster.
const HOSTS: usize = 5;

/// Workers of a cluster that loses its managers; one of them dies as well.
const WORKERS_HEADLESS: usize = 3;

/// What was measured of one system.
#[derive(Default)]
struct Results {
    forming: Samples,
    host: Samples,
    host_down: Samples,
    kill: LeaderSamples,
    link: LeaderSamples,
    reattach: Samples,
    reattach_leader: Samples,
    headless: Option<Seen>,
}

/// What was measured when leaders were lost in one way.
#[derive(Default)]
struct LeaderSamples {
    write: Samples,
    down: Samples,
    replaced: Samples,
}

impl LeaderSamples {
    fn push(&mut self, loss: &LeaderLoss) {
        self.write.push(loss.write);
        self.down.push(loss.down);
        self.replaced.push(loss.replaced);
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            say(options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            say(&format!("{error}\n\n{}", options::HELP));
            return ExitCode::from(2);
        }
    };
    if let Some(reason) = chaos_tests::hosts::unusable() {
        say(&format!("not measured: {reason}"));
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("no threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&options)) {
        Ok(report) => report.finish(),
        Err(error) => {
            say(&format!("not measured: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "progress of a benchmark goes beside its result")]
fn say(text: &str) {
    eprintln!("{text}");
}

async fn run(options: &Options) -> Result<Report> {
    let binaries =
        Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() };
    say(&format!("load before: {}", load()));
    let ours = measure_shoal(options, &binaries).await?;
    let (peer, why_not) = match peers::missing() {
        _ if options.peer_runs == 0 => (None, "not asked for".to_owned()),
        Some(missing) => (None, format!("Docker Swarm is not installed ({missing})")),
        None => match measure_swarm(options, &binaries).await {
            Ok(results) => (Some(results), String::new()),
            Err(error) => (None, format!("Docker Swarm could not be measured: {error:#}")),
        },
    };
    say(&format!("load after: {}", load()));
    Ok(report(options, &ours, peer.as_ref(), &why_not))
}

/// The machine's load averages; what else it does shows in every figure.
fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

async fn measure_shoal(options: &Options, binaries: &Binaries) -> Result<Results> {
    let mut results = Results::default();
    if options.wants(Scenario::Forming) {
        for run in 0..options.runs.min(options::FORMING_RUNS) {
            let shoal = Shoal::unformed(binaries, HOSTS, options.timeline).await?;
            results.forming.push(measured("shoal", "forming", run, peers::form(&shoal, MANAGERS).await?));
            shoal.clean_up()?;
        }
    }
    if options.wants(Scenario::Headless) {
        say(&format!("shoal: {} s without managers", options.headless.as_secs()));
        let cluster = Cluster::start(binaries, MANAGERS, WORKERS_HEADLESS).await?;
        match headless::survive(&cluster, MANAGERS, options.headless).await {
            Ok(seen) => results.headless = Some(seen),
            Err(error) => {
                say(&cluster.logs());
                return Err(error);
            }
        }
        cluster.clean_up()?;
    }
    if !Scenario::NEED_A_CLUSTER.iter().any(|scenario| options.wants(*scenario)) {
        return Ok(results);
    }
    let shoal = Shoal::unformed(binaries, HOSTS, options.timeline).await?;
    peers::form(&shoal, MANAGERS).await?;
    peers::load_images(&shoal, &binaries.whoami).await?;
    let measured = losses(&shoal, options, options.runs, &mut results).await;
    if let Err(error) = measured {
        say(&shoal.logs());
        return Err(error);
    }
    if options.wants(Scenario::Reattach) {
        for run in 0..options.runs {
            let attached = timeline::reattach(&shoal).await?;
            say(&format!("shoal: attached again, run {run}: {:.3} s", attached.took.as_secs_f64()));
            if attached.was_leader { &mut results.reattach_leader } else { &mut results.reattach }.push(attached.took);
        }
    }
    shoal.clean_up()?;
    Ok(results)
}

async fn measure_swarm(options: &Options, binaries: &Binaries) -> Result<Results> {
    let mut results = Results::default();
    if options.wants(Scenario::Forming) {
        for run in 0..options.peer_runs {
            let swarm = Swarm::unformed(HOSTS).await?;
            results.forming.push(measured("swarm", "forming", run, peers::form(&swarm, MANAGERS).await?));
            swarm.clean_up()?;
        }
    }
    if !Scenario::NEED_A_CLUSTER.iter().any(|scenario| options.wants(*scenario)) {
        return Ok(results);
    }
    let swarm = Swarm::unformed(HOSTS).await?;
    peers::form(&swarm, MANAGERS).await?;
    peers::load_images(&swarm, &binaries.whoami).await?;
    losses(&swarm, options, options.peer_runs, &mut results).await?;
    swarm.clean_up()?;
    Ok(results)
}

/// Loses hosts and leaders, again and again.
async fn losses(rig: &impl Rig, options: &Options, runs: u32, results: &mut Results) -> Result<()> {
    for run in 0..runs {
        if options.wants(Scenario::Host) {
            let Loss { down, replaced } = measure::lose_worker(rig, HOSTS - 1).await?;
            measured(rig.name(), "host lost, replaced", run, replaced);
            results.host.push(replaced);
            results.host_down.push(down);
        }
        for (scenario, cable, samples) in [
            (Scenario::LeaderKill, Cable::Stays, &mut results.kill),
            (Scenario::LeaderLink, Cable::Pulled, &mut results.link),
        ] {
            if options.wants(scenario) {
                let loss = measure::lose_leader(rig, MANAGERS, cable).await?;
                let what = format!("leader lost ({cable:?}), write {:.3} s, replaced", loss.write.as_secs_f64());
                measured(rig.name(), &what, run, loss.replaced);
                samples.push(&loss);
            }
        }
    }
    Ok(())
}

fn measured(system: &str, what: &str, run: u32, took: Duration) -> Duration {
    say(&format!("{system}: {what}, run {run}: {:.3} s", took.as_secs_f64()));
    took
}

fn report(options: &Options, ours: &Results, peer: Option<&Results>, why_not: &str) -> Report {
    let mut report = Report::new("loss of hosts and leaders, five hosts, 10 tasks on the lost one, restart delay 0");
    let seconds = Duration::from_secs_f64;
    let mut line = |what: &str, of: fn(&Results) -> &Samples, p50: f64, p99: f64| {
        let samples = of(ours);
        if samples.is_empty() {
            return;
        }
        let met = samples.percentile(50) <= seconds(p50) && samples.percentile(99) <= seconds(p99);
        let target = format!("p50 ≤ {p50:.1} s, p99 ≤ {p99:.1} s");
        report.target(what, &target, samples, of_peer(peer, of, why_not), met);
    };
    line("host loss → every replacement Running", |r| &r.host, 1.5, 2.5);
    line("leader loss (SIGKILL) → next write", |r| &r.kill.write, 1.0, 2.0);
    line("leader loss (link down) → next write", |r| &r.link.write, 1.0, 2.0);
    line("leader loss (SIGKILL) → all its tasks Running", |r| &r.kill.replaced, 2.5, 4.0);
    line("leader loss (link down) → all its tasks Running", |r| &r.link.replaced, 2.5, 4.0);
    line("forming 3 managers + 2 workers", |r| &r.forming, 1.0, 1.0);
    line("manager lost → its agents attached elsewhere", |r| &r.reattach, 1.0, 1.0);
    line("leader lost → its agents attached elsewhere", |r| &r.reattach_leader, 1.0, 1.0);
    if let Some(seen) = &ours.headless {
        for (what, took) in [
            ("without managers: a host's death → last request that goes astray", seen.dropped),
            ("with managers: the same", seen.dropped_led),
        ] {
            report.target(what, "≤ 1.5 s", format!("{:.2} s", took.as_secs_f64()), "-", took <= seconds(1.5));
        }
    }
    let mut note = |what: &str, of: fn(&Results) -> &Samples| {
        if !of(ours).is_empty() {
            report.note(what, of(ours), of_peer(peer, of, why_not));
        }
    };
    note("host loss → Down", |r| &r.host_down);
    note("leader loss (SIGKILL) → Down", |r| &r.kill.down);
    note("leader loss (link down) → Down", |r| &r.link.down);
    if let Some(seen) = &ours.headless {
        let what = format!("{} s without managers → requests by name, none failed", seen.headless.as_secs());
        report.note(&what, seen.requests, "-");
        for (what, took) in [
            ("without managers: a task's end → its next attempt", seen.restarted),
            ("managers back → what the dead host had runs elsewhere", seen.whole_again),
        ] {
            report.note(what, format!("{:.2} s", took.as_secs_f64()), "-");
        }
    }
    say(&format!("{} runs, {} of the peer; load {}", options.runs, options.peer_runs, load()));
    report
}

fn of_peer(peer: Option<&Results>, of: fn(&Results) -> &Samples, why_not: &str) -> String {
    match peer.map(of) {
        Some(samples) if samples.is_empty() => "-".into(),
        Some(samples) => samples.to_string(),
        None => why_not.to_owned(),
    }
}
