//! A real cluster, broken at random for as long as one likes, while users work with it and everything that must hold is
//! looked at from the outside.
//!
//! `schedule` decides from a seed what is broken when · `faults` does it · `workload` writes and notes what it was told ·
//! `ledger` knows what must therefore be read · `watch` looks: at the managers' stores, at agents, at processes ·
//! `evidence` and `containers` judge what was seen, with the properties of [`check`](crate::check) · `certificates` tries
//! what must not open · `ending` checks that the cluster comes to rest, and that nothing is left.
//!
//! The same seed gives the same faults at the same times. What the cluster makes of them is not the same each time: its
//! clocks and this machine's scheduler are real.

mod certificates;
mod containers;
mod ending;
mod evidence;
mod faults;
mod ledger;
mod schedule;
mod site;
mod watch;
mod workload;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

pub use schedule::{Direction, Fault, Kind, Shape, Victim, schedule};

use crate::hosts::{Binaries, Cluster};
use crate::sim::Rng;
use site::{Site, Tally, lock};

/// Port of the service that is asked from outside.
const WEB_PORT: u16 = 8080;
/// Port, on each host, of the task that looks at the network from within.
const PROBE_PORT: u16 = 8081;
/// What runs in the containers, by its first argument.
const COMMAND: &str = "/shoal";
/// Writers of names.
const WRITERS: usize = 3;

/// What is played.
#[derive(Debug, Clone)]
pub struct Soak {
    /// Decides which faults come when.
    pub seed: u64,
    /// How long faults go on; the end is checked after that, which takes some minutes at the most.
    pub length: Duration,
    /// How large the cluster is.
    pub shape: Shape,
    /// What it runs.
    pub binaries: Binaries,
    /// Go on after a violation instead of ending the run.
    pub keep_going: bool,
}

/// What came out of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    seed: u64,
    length: Duration,
    tally: Tally,
    writes: Vec<(&'static str, [u64; 3])>,
    stores: (u64, u64),
    starts: u64,
    rest: Option<Duration>,
    /// What did not hold, each with the faults around it; empty when all is well.
    pub violations: Vec<String>,
    /// The daemons' logs were kept below this directory; nothing when all is well.
    pub logs: Option<std::path::PathBuf>,
}

impl Outcome {
    /// Times that a node was removed or demoted, and calls with the certificates of those nodes, all of them refused.
    pub fn certificates_tried(&self) -> (u64, u64) {
        let played = |kind: Kind| self.tally.faults.get(kind.name()).copied().unwrap_or(0);
        let times = played(Kind::Demote(Victim::Leader)) + played(Kind::Promote(0)) + played(Kind::Leave(0));
        (times, self.tally.refused)
    }
}

impl Soak {
    /// Three managers and two workers.
    pub fn new(binaries: Binaries, seed: u64, length: Duration) -> Soak {
        Soak { seed, length, shape: Shape { managers: 3, workers: 2 }, binaries, keep_going: false }
    }

    /// Plays it to its end and removes the cluster.
    ///
    /// # Errors
    /// The cluster could not be made, or not be removed. What does not hold is in the outcome.
    pub async fn run(&self) -> Result<Outcome> {
        let cluster = Cluster::start(&self.binaries, self.shape.managers, self.shape.workers).await?;
        workload::prepare(&cluster).await?;
        let site = Arc::new(Site::new(cluster, self.shape));
        site.say(&format!("seed {}: faults for {} s", self.seed, self.length.as_secs()));
        let rest = self.play(&site).await;
        let outcome = self.outcome(&site, rest);
        let site = Arc::into_inner(site).ok_or_else(|| anyhow::anyhow!("somebody still looks at the cluster"))?;
        site.cluster.clean_up()?;
        Ok(outcome)
    }

    async fn play(&self, site: &Arc<Site>) -> Option<Duration> {
        let mut rng = Rng::new(self.seed ^ 0x0050_a4c0_ffee);
        let mut fork = || Rng::new(rng.next());
        let mut writers = JoinSet::new();
        for service in workload::REGISTERS {
            writers.spawn(workload::register(site.clone(), service, fork()));
        }
        for writer in 0..WRITERS {
            writers.spawn(workload::names(site.clone(), writer, fork()));
        }
        let mut eyes = JoinSet::new();
        for host in 0..site.hosts() {
            eyes.spawn(watch::store(site.clone(), host));
            eyes.spawn(watch::agent(site.clone(), host));
        }
        eyes.spawn(watch::everything(site.clone(), fork()));
        for service in workload::REGISTERS {
            eyes.spawn(watch::register(site.clone(), service, fork()));
        }
        eyes.spawn(watch::processes(site.clone()));
        eyes.spawn(watch::requests(site.clone(), fork()));
        eyes.spawn(watch::daemons(site.clone()));
        let mut rng = fork();

        let mut playing = JoinSet::new();
        // A fault that takes long to mend moves all later ones: their order is the seed's, and so is who is whole.
        let mut late = Duration::ZERO;
        for fault in schedule(self.seed, self.length, self.shape) {
            while self.goes_on(site) && site.elapsed() < fault.at + late {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if fault.kind.stands_alone() {
                while playing.join_next().await.is_some() {}
            }
            if !self.goes_on(site) || site.elapsed() > self.length + late.min(self.length) {
                break;
            }
            let site = site.clone();
            if fault.kind.stands_alone() {
                let begun = site.elapsed();
                faults::play(&site, fault).await;
                late += (site.elapsed() - begun).saturating_sub(fault.length);
            } else {
                playing.spawn(async move { faults::play(&site, fault).await });
            }
        }
        while playing.join_next().await.is_some() {}
        let rest = self.end(site, &mut writers, &mut rng).await;
        site.stop();
        while writers.join_next().await.is_some() {}
        while let Some(ended) = eyes.join_next().await {
            if let Err(error) = ended {
                site.violated(&format!("a look at the cluster failed: {error}"));
            }
        }
        rest
    }

    fn goes_on(&self, site: &Site) -> bool {
        self.keep_going || site.violations().is_empty()
    }

    async fn end(&self, site: &Site, writers: &mut JoinSet<()>, rng: &mut Rng) -> Option<Duration> {
        site.stop_writing();
        while writers.join_next().await.is_some() {}
        if !self.goes_on(site) {
            return None;
        }
        site.say("no more faults, no more writes");
        let rest = match ending::wait_rest(site, rng).await {
            Ok(rest) => {
                site.say(&format!("at rest after {:.1} s", rest.as_secs_f64()));
                Some(rest)
            }
            Err(wrong) => {
                wrong.iter().for_each(|what| site.violated(&format!("not at rest: {what}")));
                None
            }
        };
        if !self.goes_on(site) {
            return rest;
        }
        ending::check_network(site, rng).await.iter().for_each(|what| site.violated(what));
        if !self.goes_on(site) {
            return rest;
        }
        let begun = Instant::now();
        ending::check_nothing_is_left(site, rng).await.iter().for_each(|what| site.violated(&format!("left: {what}")));
        site.say(&format!("everything removed after {:.1} s", begun.elapsed().as_secs_f64()));
        rest
    }

    fn outcome(&self, site: &Site, rest: Option<Duration>) -> Outcome {
        let violations = site.violations();
        let evidence = lock(&site.evidence);
        Outcome {
            seed: self.seed,
            length: self.length,
            tally: lock(&site.tally).clone(),
            writes: lock(&site.ledger).counts().iter().map(|(what, counts)| (*what, *counts)).collect(),
            stores: (evidence.stores, evidence.compared),
            starts: lock(&site.containers).starts,
            rest,
            logs: if violations.is_empty() { None } else { keep_logs(site, self.seed) },
            violations,
        }
    }
}

/// Copies the daemons' logs to where the clean-up does not find them.
fn keep_logs(site: &Site, seed: u64) -> Option<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("shoal-soak-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).ok()?;
    for host in site.cluster.hosts() {
        std::fs::copy(host.log_path(), dir.join(format!("{}.log", host.name()))).ok()?;
    }
    Some(dir)
}

/// A Markdown report.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |d: Duration| format!("{:.1} s", d.as_secs_f64());
        writeln!(f, "\n## Soak: {} min, seed {}\n", self.length.as_secs() / 60, self.seed)?;
        writeln!(f, "| what | |\n|---|---|")?;
        let faults: u64 = self.tally.faults.values().sum();
        writeln!(f, "| faults | {faults} |")?;
        for (kind, count) in &self.tally.faults {
            writeln!(f, "| · {kind} | {count} |")?;
        }
        for (what, [acknowledged, failed, unknown]) in &self.writes {
            writeln!(f, "| writes: {what} | {acknowledged} acknowledged, {failed} failed, {unknown} unknown |")?;
        }
        let (with, without) = self.tally.longest_gap;
        writeln!(f, "| longest time between acknowledged writes, with a majority of managers | {} |", seconds(with))?;
        writeln!(f, "| the same, when a majority was gone | {} |", seconds(without))?;
        writeln!(f, "| linearizable reads | {} |", self.tally.reads)?;
        let (stores, compared) = self.stores;
        writeln!(f, "| stores looked at; pairs of managers compared at one index | {stores}; {compared} |")?;
        writeln!(f, "| starts of containers seen | {} |", self.starts)?;
        writeln!(f, "| looks at agents | {} |", self.tally.agents)?;
        writeln!(f, "| calls with certificates of removed or demoted nodes, refused | {} |", self.tally.refused)?;
        let (answered, not) = self.tally.requests;
        writeln!(f, "| requests to a published port, any host: answered, not answered | {answered}, {not} |")?;
        let rest = self.rest.map_or_else(|| "never".to_owned(), seconds);
        writeln!(f, "| at rest after the last fault | {rest} |")?;
        writeln!(f, "| violations | {} |", self.violations.len())?;
        for violation in &self.violations {
            writeln!(f, "\n* {violation}")?;
        }
        if let Some(logs) = &self.logs {
            writeln!(f, "\nThe daemons' logs are in {}.", logs.display())?;
        }
        Ok(())
    }
}
