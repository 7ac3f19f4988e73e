//! Kernels and names of all hosts against the managers' store, after every quiet period of a random life: hosts join,
//! leave, die, are parted and return, services come, go, scale and change.
//!
//! `plan` decides from a seed what happens · `life` does it · `expect` says what the store means · `kernel` reads what is
//! there, by tools that the daemons do not use · `look` holds one against the other, and asks the hosts what they think
//! of themselves (`network check`, `network inspect --verbose`) · `watch` looks all the time for addresses that are held
//! twice.
//!
//! The same seed gives the same rounds; what the cluster makes of them is not the same each time.

mod expect;
mod kernel;
mod life;
mod look;
mod plan;
mod watch;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use deploy::store::Store;
use tokio::task::JoinSet;

pub use kernel::unusable;

use crate::hosts::{Api, Binaries, Cluster};
use crate::sim::Rng;

/// Hosts that are managers, and others.
const MANAGERS: usize = 3;
const WORKERS: usize = 2;
/// The networks of services that come and go.
const NETWORKS: [&str; 2] = ["left", "right"];
/// The service with a task on every host.
const PROBE: &str = "probe";
/// A read of a store takes so long at the most.
const READ: Duration = Duration::from_secs(5);

/// What is played.
#[derive(Debug, Clone)]
pub struct Compare {
    /// Decides what happens.
    pub seed: u64,
    /// No round begins after this time.
    pub length: Duration,
    /// What hosts run.
    pub binaries: Binaries,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    seed: u64,
    /// Rounds that were compared.
    pub rounds: u64,
    /// Of all comparisons: tasks whose namespaces were read, names that were asked for, entries that were read.
    pub counts: [u64; 3],
    /// Stores in which addresses were counted, and looks at all kernels for the same.
    pub looks: [u64; 2],
    /// The longest time from the last change until there was no difference.
    pub slowest: Duration,
    /// What did not hold; empty when all is well.
    pub violations: Vec<String>,
    /// The daemons' logs were kept below this directory; nothing when all is well.
    pub logs: Option<std::path::PathBuf>,
}

/// What everybody in a run shares.
struct Stage {
    cluster: Cluster,
    begun: Instant,
    /// Hosts whose tasks are dead.
    dead: Vec<AtomicBool>,
    /// Names of services that were removed.
    gone: Mutex<std::collections::BTreeSet<String>>,
    violations: Mutex<Vec<String>>,
    history: Mutex<Vec<String>>,
    counts: [AtomicU64; 3],
    looks: [AtomicU64; 2],
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Stage {
    /// Tells whoever watches the run.
    #[expect(clippy::print_stdout, reason = "the history of a run is its output")]
    fn say(&self, text: &str) {
        let line = format!("[{:8.2}] {text}", self.begun.elapsed().as_secs_f64());
        println!("{line}");
        lock(&self.history).push(line);
    }

    fn violated(&self, what: &str) {
        self.say(&format!("VIOLATED {what}"));
        let history = lock(&self.history);
        let before = history[history.len().saturating_sub(16)..].join("\n    ");
        drop(history);
        let mut all = lock(&self.violations);
        if all.len() < 20 {
            all.push(format!("{what}\n    {before}"));
        }
    }

    fn api(&self, host: usize) -> Api {
        self.cluster.api(host)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn is_dead(&self, host: usize) -> bool {
        self.dead[host].load(Ordering::SeqCst)
    }

    fn set_dead(&self, host: usize, dead: bool) {
        self.dead[host].store(dead, Ordering::SeqCst);
    }

    /// The store that a manager has.
    async fn store(&self, host: usize, consistency: &str) -> Result<Store> {
        let path = format!("/shoal/v1/store?objects=1&consistency={consistency}");
        let answer = tokio::time::timeout(READ, self.api(host).get(&path)).await.context("no answer in time")??;
        Ok(Store::decode_snapshot(&STANDARD.decode(answer["Objects"].as_str().unwrap_or_default())?)?)
    }

    /// The store as of now, from whichever manager answers.
    async fn current(&self) -> Result<Store> {
        let mut last = anyhow::anyhow!("no manager");
        for host in 0..MANAGERS {
            match self.store(host, "linearizable").await {
                Ok(store) => return Ok(store),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Compare {
    /// Plays it to its end and removes the cluster.
    ///
    /// # Errors
    /// The cluster could not be made or not be removed. What does not hold is in the outcome.
    pub async fn run(&self) -> Result<Outcome> {
        let cluster = Cluster::start(&self.binaries, MANAGERS, WORKERS).await?;
        let stage = Arc::new(Stage {
            cluster,
            begun: Instant::now(),
            dead: (0..MANAGERS + WORKERS).map(|_| AtomicBool::new(false)).collect(),
            gone: Mutex::default(),
            violations: Mutex::default(),
            history: Mutex::default(),
            counts: Default::default(),
            looks: Default::default(),
            stop: AtomicBool::new(false),
        });
        stage.say(&format!("seed {}: rounds for {} s", self.seed, self.length.as_secs()));
        let mut outcome = Outcome { seed: self.seed, ..Outcome::default() };
        let mut eyes = JoinSet::new();
        eyes.spawn(watch::stores(stage.clone(), Rng::new(self.seed ^ 0x5eed)));
        eyes.spawn(watch::kernels(stage.clone()));
        if let Err(error) = self.play(&stage, &mut outcome).await {
            stage.violated(&format!("the run could not go on: {error:#}"));
        }
        stage.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = eyes.join_next().await {
            if let Err(error) = ended {
                stage.violated(&format!("a look at the cluster failed: {error}"));
            }
        }
        outcome.counts = [0, 1, 2].map(|at| stage.counts[at].load(Ordering::Relaxed));
        outcome.looks = [0, 1].map(|at| stage.looks[at].load(Ordering::Relaxed));
        outcome.violations = lock(&stage.violations).clone();
        if !outcome.violations.is_empty() {
            outcome.logs = keep_logs(&stage, self.seed);
        }
        let stage = Arc::into_inner(stage).context("somebody still looks at the cluster")?;
        stage.cluster.clean_up()?;
        Ok(outcome)
    }

    async fn play(&self, stage: &Arc<Stage>, outcome: &mut Outcome) -> Result<()> {
        life::prepare(stage).await?;
        look::compare(stage).await?;
        let unseen = look::what_is_not_seen(stage, MANAGERS).await?;
        if !unseen.is_empty() {
            stage.violated(&format!("spoilt on purpose, and not seen to differ: {}", unseen.join(", ")));
        }
        let mut rng = Rng::new(self.seed);
        let mut number = 0;
        loop {
            let quiet = look::compare(stage).await?;
            outcome.slowest = outcome.slowest.max(quiet);
            outcome.rounds = number;
            let wrong = !lock(&stage.violations).is_empty();
            if wrong || stage.begun.elapsed() > self.length {
                return Ok(());
            }
            number += 1;
            let round = plan::round(&mut rng, MANAGERS, WORKERS);
            stage.say(&format!("round {number}: {:?} for {:.1} s", round.trouble, round.length.as_secs_f64()));
            life::play(stage, number, &round).await?;
        }
    }
}

/// Copies the daemons' logs to where the clean-up does not find them.
fn keep_logs(stage: &Stage, seed: u64) -> Option<std::path::PathBuf> {
    let dir = std::env::temp_dir().join(format!("shoal-compare-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).ok()?;
    for host in stage.cluster.hosts() {
        std::fs::copy(host.log_path(), dir.join(format!("{}.log", host.name()))).ok()?;
    }
    Some(dir)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [tasks, names, entries] = self.counts;
        let [stores, kernels] = self.looks;
        writeln!(
            f,
            "seed {}: {} rounds; compared {tasks} tasks, {names} names, {entries} entries",
            self.seed, self.rounds
        )?;
        writeln!(f, "addresses counted in {stores} stores and {kernels} times in all kernels")?;
        writeln!(f, "longest way from the last change to no difference: {:.1} s", self.slowest.as_secs_f64())?;
        for violation in &self.violations {
            writeln!(f, "* {violation}")?;
        }
        match &self.logs {
            Some(logs) => writeln!(f, "The daemons' logs are in {}.", logs.display()),
            None => Ok(()),
        }
    }
}
