//! How membership behaves as the cluster grows: 10, 100 and 1 000 hosts in one deterministic simulation each, with
//! 5 % of all packets lost and 0.2 to 2 ms between any two hosts.
//!
//! For each size: all hosts join at once; then nothing happens for a while; then hosts die one after another. Times
//! are virtual, so that they do not depend on the machine, and the same seed gives the same run.
//!
//! "Down" is the managers' verdict, `node::manager::verdict`, on the gossip of the manager that leads and on the
//! sessions' silence; the session is a heartbeat every 250 ms that arrives.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where it cannot go on")]

#[path = "../../gossip/tests/sim/net.rs"]
#[allow(dead_code, reason = "the tests of gossip use all of it")]
mod net;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use chaos_tests::bench::{Report, Samples};
use gossip::Event;
use net::{Net, identity};
use node::manager::verdict::{Evidence, LOOK, verdict};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const HELP: &str = "\
cargo bench -p chaos-tests --bench membership -- [--hosts N[,N...]] [--seeds N] [--deaths N] [--starts S]

  --hosts 10,100,1000   cluster sizes; the first is what the others are compared with
  --seeds 3             runs of each size
  --deaths 7            hosts that die in each run, one after another
  --starts 1            seconds over which the hosts of a cluster start";

const S: Duration = Duration::from_secs(1);
/// Out of 1 000 packets.
const LOSS: u32 = 50;
/// Hosts that the others know when they join. The first one leads.
const MANAGERS: usize = 3;
/// Everybody knows everybody within this time after the last start, or the run has failed.
const JOIN: Duration = Duration::from_secs(300);
/// How long nothing happens.
const STEADY: Duration = Duration::from_secs(60);
/// From one death to the next one.
const BETWEEN_DEATHS: Duration = Duration::from_secs(5);
/// How often an agent says that it lives (`node::agent`).
const HEARTBEAT: Duration = Duration::from_millis(250);

/// What was asked for.
struct Options {
    hosts: Vec<usize>,
    seeds: u64,
    deaths: usize,
    /// How long it takes until all hosts have started.
    starts: Duration,
}

/// What came out for one size, over all seeds.
#[derive(Default)]
struct Outcome {
    hosts: usize,
    /// Hosts that some manager did not know, or that knew no manager, when the time was over.
    not_joined: usize,
    joined: Samples,
    whole: Samples,
    gossip: Samples,
    down: Samples,
    /// Bytes and packets a second of one host, sent and received.
    joining: Rate,
    steady: Rate,
    steady_manager: Rate,
    dying: Rate,
    false_alarms: usize,
    suspicions: u64,
    wall: Duration,
}

/// Means over hosts and runs.
#[derive(Clone, Copy, Default)]
struct Rate {
    bytes: f64,
    packets: f64,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} kB/s, {:.1} packets/s", self.bytes / 1000.0, self.packets)
    }
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return say(HELP, ExitCode::SUCCESS),
        Err(wrong) => return say(&format!("{wrong}\n\n{HELP}"), ExitCode::FAILURE),
    };
    let outcomes: Vec<Outcome> = options.hosts.iter().map(|hosts| measure(*hosts, &options)).collect();
    report(&options, &outcomes).finish()
}

#[expect(clippy::print_stdout, reason = "a command talks to its user")]
fn say(text: &str, code: ExitCode) -> ExitCode {
    println!("{text}");
    code
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options { hosts: vec![10, 100, 1000], seeds: 3, deaths: 7, starts: S };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match arg.as_str() {
            "--hosts" => {
                options.hosts = value()?
                    .split(',')
                    .map(|n| n.parse().ok().filter(|n| (5..=10_000).contains(n)).ok_or(format!("{n:?} hosts")))
                    .collect::<Result<_, _>>()?;
            }
            "--seeds" => options.seeds = number(value()?)?.clamp(1, 100),
            "--starts" => options.starts = S * u32::try_from(number(value()?)?.clamp(1, 600)).unwrap_or(1),
            "--deaths" => options.deaths = usize::try_from(number(value()?)?.clamp(1, 100)).unwrap_or(1),
            "--help" | "-h" => return Ok(None),
            // What cargo adds by itself.
            "--bench" => {}
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    Ok(Some(options))
}

fn measure(hosts: usize, options: &Options) -> Outcome {
    let mut outcome = Outcome { hosts, ..Outcome::default() };
    let begin = Instant::now();
    for seed in 0..options.seeds {
        let mut run = Run::new(hosts, seed);
        run.join(options.starts, &mut outcome);
        run.rest(&mut outcome);
        run.die(options.deaths.min(hosts / 2), &mut outcome);
        outcome.false_alarms += run.false_alarms();
        outcome.suspicions += (0..hosts).map(|at| run.net.swim(at).counters().suspicions).sum::<u64>();
        say(&format!("{hosts} hosts, seed {seed}: {:.1} s of work", begin.elapsed().as_secs_f64()), ExitCode::SUCCESS);
    }
    for rate in [&mut outcome.joining, &mut outcome.steady, &mut outcome.steady_manager, &mut outcome.dying] {
        rate.bytes /= options.seeds as f64;
        rate.packets /= options.seeds as f64;
    }
    outcome.wall = begin.elapsed();
    outcome
}

struct Run {
    net: Net,
    rng: StdRng,
    dead: Vec<usize>,
}

impl Run {
    fn new(hosts: usize, seed: u64) -> Run {
        let mut net = Net::new(hosts, seed);
        net.loss = LOSS;
        net.keeps = |event| matches!(event, Event::Down(_) | Event::Left(_));
        Run { net, rng: StdRng::seed_from_u64(seed), dead: Vec::new() }
    }

    fn hosts(&self) -> usize {
        self.net.len()
    }

    /// Bytes and packets a second of these hosts since `before`, added to `rate`.
    fn rate(&self, hosts: impl Iterator<Item = usize>, before: &[(u64, u64)], since: Duration, rate: &mut Rate) {
        let hosts: Vec<usize> = hosts.collect();
        let per = (self.net.now - since).as_secs_f64() * hosts.len() as f64;
        for at in hosts {
            let traffic = self.net.traffic(at);
            rate.bytes += (traffic.bytes - before[at].0) as f64 / per;
            rate.packets += (traffic.packets - before[at].1) as f64 / per;
        }
    }

    fn traffic(&self) -> Vec<(u64, u64)> {
        (0..self.hosts()).map(|at| (self.net.traffic(at).bytes, self.net.traffic(at).packets)).collect()
    }

    /// A host has joined when every manager knows it and it knows a manager.
    fn join(&mut self, starts: Duration, outcome: &mut Outcome) {
        let hosts = self.hosts();
        let managers: Vec<usize> = (0..MANAGERS).collect();
        let mut order: Vec<(Duration, usize)> =
            (0..hosts).map(|at| (starts.mul_f64(self.rng.random_range(0.0..1.0)), at)).collect();
        order.sort();
        for (start, at) in order {
            self.net.run(start, |_| false);
            self.net.join(at, &managers);
        }
        let missing = |net: &Net| {
            let known = |at: usize| managers.iter().filter(|m| **m != at).all(|m| net.sees(*m, at));
            let knows = |at: usize| managers.iter().any(|m| net.sees(at, *m));
            (0..hosts).filter(|at| !known(*at) || !knows(*at)).count()
        };
        self.net.run_asking(starts + JOIN, S / 20, |net| missing(net) == 0);
        outcome.not_joined += missing(&self.net);
        outcome.joined.push(self.net.now);
        let before = vec![(0, 0); hosts];
        self.rate(0..hosts, &before, Duration::ZERO, &mut outcome.joining);
        self.net.run_asking(starts + JOIN, S / 4, Net::is_whole);
        outcome.whole.push(self.net.now);
    }

    fn rest(&mut self, outcome: &mut Outcome) {
        // What the joins set off ends first.
        self.net.run(self.net.now + 30 * S, |_| false);
        let (before, since) = (self.traffic(), self.net.now);
        self.net.run(since + STEADY, |_| false);
        self.rate(0..self.hosts(), &before, since, &mut outcome.steady);
        self.rate(0..MANAGERS, &before, since, &mut outcome.steady_manager);
    }

    /// Hosts die, one after another; no managers, whose deaths are Raft's to notice as well.
    fn die(&mut self, deaths: usize, outcome: &mut Outcome) {
        let (before, since) = (self.traffic(), self.net.now);
        for _ in 0..deaths {
            let victim = loop {
                let victim = self.rng.random_range(MANAGERS..self.hosts());
                if !self.dead.contains(&victim) {
                    break victim;
                }
            };
            let death = self.net.now + BETWEEN_DEATHS.mul_f64(self.rng.random_range(0.5..1.0));
            self.net.run(death, |_| false);
            self.net.crash(victim);
            self.dead.push(victim);
            let last_heartbeat = death - HEARTBEAT.mul_f64(self.rng.random_range(0.0..1.0));
            let mut look = death + LOOK.mul_f64(self.rng.random_range(0.0..1.0));
            let mut by_gossip = None;
            loop {
                self.net.run(look, |_| false);
                let gossip_dead = !self.net.sees(0, victim);
                if gossip_dead && by_gossip.is_none() {
                    by_gossip = Some(look);
                }
                if verdict(Evidence { gossip_dead, silent: look - last_heartbeat }).is_some() {
                    break;
                }
                look += LOOK;
            }
            outcome.down.push(look - death);
            outcome.gossip.push(by_gossip.map_or(look, |at| at) - death);
        }
        let living: Vec<usize> = (0..self.hosts()).filter(|at| !self.dead.contains(at)).collect();
        self.rate(living.into_iter(), &before, since, &mut outcome.dying);
    }

    /// Hosts that were called dead by somebody and were not.
    fn false_alarms(&self) -> usize {
        let dead: Vec<String> = self.dead.iter().map(|at| identity(*at, 1).node_id).collect();
        let downs = self.net.events.iter().filter_map(|(_, _, event)| match event {
            Event::Down(host) | Event::Left(host) => Some(&host.node_id),
            _ => None,
        });
        downs.filter(|host| !dead.contains(host)).count()
    }
}

fn report(options: &Options, outcomes: &[Outcome]) -> Report {
    let mut report = Report::new(format!(
        "Membership in simulation: {} seeds each, {} % loss, {MANAGERS} managers",
        options.seeds,
        f64::from(LOSS) / 10.0
    ));
    const PEER: &str = "- (no peer runs in a simulation)";
    let Some(base) = outcomes.first() else { return report };
    for outcome in outcomes {
        let n = outcome.hosts;
        let first = n == base.hosts;
        let line = |what: &str| format!("{n} hosts: {what}");
        report.target(&line("hosts that did not join"), "0", outcome.not_joined, PEER, outcome.not_joined == 0);
        let joined = format!("all hosts known to the managers, all starting within {} s", options.starts.as_secs());
        report.note(&line(&joined), &outcome.joined, PEER);
        report.note(&line("every host knows every other"), &outcome.whole, PEER);
        report.note(&line("death to the gossip's verdict at the leader"), &outcome.gossip, PEER);
        let (p50, base_p50) = (outcome.down.percentile(50), base.down.percentile(50));
        let (p99, base_p99) = (outcome.down.percentile(99), base.down.percentile(99));
        let met = p50 <= base_p50 * 2 && p99 <= base_p99 * 2;
        let target = if first { "(the base)".to_owned() } else { format!("≤ 2 x that of {}", base.hosts) };
        report.target(&line("death to the managers' Down"), &target, &outcome.down, PEER, met);
        let target = if first { "(the base)".to_owned() } else { format!("≤ 1.5 x that of {}", base.hosts) };
        let flat = |rate: Rate, base: Rate| rate.bytes <= base.bytes * 1.5;
        report.target(
            &line("a host's traffic, steady"),
            &target,
            outcome.steady,
            PEER,
            flat(outcome.steady, base.steady),
        );
        report.target(
            &line("a manager's traffic, steady"),
            &target,
            outcome.steady_manager,
            PEER,
            flat(outcome.steady_manager, base.steady_manager),
        );
        report.note(&line("a host's traffic while all join"), outcome.joining, PEER);
        report.note(&line("a host's traffic while hosts die"), outcome.dying, PEER);
        report.target(&line("living hosts called dead"), "0", outcome.false_alarms, PEER, outcome.false_alarms == 0);
        report.note(&line("suspicions, at all hosts"), outcome.suspicions, PEER);
        report.note(&line("time of this machine"), format!("{:.1} s", outcome.wall.as_secs_f64()), PEER);
    }
    report
}
