//! The cluster under test, and all that is known of the run: what everybody in it shares.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use deploy::store::Store;
use serde_json::Value;

use super::containers::Containers;
use super::evidence::{Agents, Evidence};
use super::ledger::{Ledger, Outcome};
use super::schedule::{Fault, Shape};
use crate::hosts::{Api, Cluster, HostError};
use crate::sim::Rng;

/// Names of what the workload makes and removes again begin with this.
pub(super) const PREFIX: &str = "x-";
/// A fault that ended so long ago may still be the cause of what goes wrong.
const AFTERMATH: Duration = Duration::from_secs(20);
/// Acknowledgements that are further apart than this are worth a line.
const GAP: Duration = Duration::from_secs(4);

/// What is shared by everybody in a run.
pub(super) struct Site {
    pub(super) cluster: Cluster,
    pub(super) shape: Shape,
    begun: Instant,
    /// Node ids, by host; a host that left and joined again has a new one.
    ids: Mutex<Vec<String>>,
    /// Lives of the daemons, by host; counted here, because all daemons are started here.
    lives: Vec<AtomicU32>,
    /// Hosts whose daemon is not there on purpose.
    down: Vec<AtomicBool>,
    pub(super) evidence: Mutex<Evidence>,
    pub(super) containers: Mutex<Containers>,
    pub(super) agents: Mutex<Agents>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) tally: Mutex<Tally>,
    faults: Mutex<Vec<(Fault, Option<Duration>)>>,
    violations: Mutex<Vec<String>>,
    stop: AtomicBool,
    writing: AtomicBool,
}

/// What is counted for the report.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Faults that were carried out, by kind.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Linearizable reads.
    pub(super) reads: u64,
    /// Requests to the published port from outside: answered, not answered.
    pub(super) requests: (u64, u64),
    /// Looks at agents.
    pub(super) agents: u64,
    /// Calls with certificates of nodes that had been removed or demoted, all refused.
    pub(super) refused: u64,
    last_acknowledged: Option<Instant>,
    /// The longest time between two acknowledged writes, with a quorum and without.
    pub(super) longest_gap: (Duration, Duration),
}

/// The state stays usable after a panic elsewhere: the run is over then anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store with what it is the result of.
pub(super) struct Read {
    pub(super) index: u64,
    pub(super) digest: String,
    pub(super) store: Store,
}

impl Site {
    pub(super) fn new(cluster: Cluster, shape: Shape) -> Site {
        let hosts = cluster.hosts().len();
        let ids = (0..hosts).map(|index| cluster.id(index).to_owned()).collect();
        Site {
            cluster,
            shape,
            begun: Instant::now(),
            ids: Mutex::new(ids),
            lives: (0..hosts).map(|_| AtomicU32::new(0)).collect(),
            down: (0..hosts).map(|_| AtomicBool::new(false)).collect(),
            evidence: Mutex::default(),
            containers: Mutex::default(),
            agents: Mutex::default(),
            ledger: Mutex::default(),
            tally: Mutex::default(),
            faults: Mutex::default(),
            violations: Mutex::default(),
            stop: AtomicBool::new(false),
            writing: AtomicBool::new(true),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Tells whoever watches the run.
    #[expect(clippy::print_stdout, reason = "the history of a run is its output")]
    pub(super) fn say(&self, text: &str) {
        println!("[{:8.2}] {text}", self.elapsed().as_secs_f64());
    }

    /// Something that must hold did not.
    pub(super) fn violated(&self, what: &str) {
        let now = self.elapsed();
        let around: Vec<String> = lock(&self.faults)
            .iter()
            .filter(|(_, ended)| ended.is_none_or(|ended| ended + AFTERMATH > now))
            .map(|(fault, ended)| match ended {
                Some(ended) => format!("{fault} (over at {:.1})", ended.as_secs_f64()),
                None => format!("{fault} (under way)"),
            })
            .collect();
        let text = format!("at {:.2} s: {what}\n    faults: {}", now.as_secs_f64(), around.join("; "));
        self.say(&format!("VIOLATED {text}"));
        let mut all = lock(&self.violations);
        // The same thing is seen at each look; a few are enough.
        if all.len() < 50 {
            all.push(text);
        }
    }

    pub(super) fn note(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violated(&what);
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    pub(super) fn fault_begins(&self, fault: Fault) {
        *lock(&self.tally).faults.entry(fault.kind.name()).or_default() += 1;
        lock(&self.faults).push((fault, None));
    }

    pub(super) fn fault_ends(&self, fault: Fault) {
        let now = self.elapsed();
        lock(&self.faults).iter_mut().filter(|(f, _)| f.number == fault.number).for_each(|(_, end)| *end = Some(now));
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Whether writers go on.
    pub(super) fn writing(&self) -> bool {
        self.writing.load(Ordering::SeqCst) && !self.stopped()
    }

    pub(super) fn stop_writing(&self) {
        self.writing.store(false, Ordering::SeqCst);
    }

    pub(super) fn hosts(&self) -> usize {
        self.cluster.hosts().len()
    }

    pub(super) fn id(&self, host: usize) -> String {
        lock(&self.ids)[host].clone()
    }

    pub(super) fn set_id(&self, host: usize, id: String) {
        lock(&self.ids)[host] = id;
    }

    /// Which life of its daemon a host is in.
    pub(super) fn life(&self, host: usize) -> u32 {
        self.lives[host].load(Ordering::SeqCst)
    }

    /// Another life begins.
    pub(super) fn reborn(&self, host: usize) {
        self.lives[host].fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn set_down(&self, host: usize, down: bool) {
        self.down[host].store(down, Ordering::SeqCst);
    }

    pub(super) fn is_down(&self, host: usize) -> bool {
        self.down[host].load(Ordering::SeqCst)
    }

    /// The API of some host that is mostly a manager.
    pub(super) fn any_manager(&self, rng: &mut Rng) -> Api {
        self.cluster.api(rng.range(0, self.shape.managers as u64) as usize)
    }

    /// The store that a manager has.
    ///
    /// # Errors
    /// As the API says, and what cannot be decoded.
    pub(super) async fn read(&self, api: &Api, consistency: &str, limit: Duration) -> Result<Read> {
        let path = format!("/shoal/v1/store?objects=1&consistency={consistency}");
        let answer = tokio::time::timeout(limit, api.get(&path)).await.context("no answer in time")??;
        let objects = STANDARD.decode(answer["Objects"].as_str().unwrap_or_default())?;
        Ok(Read {
            index: answer["Index"].as_u64().context("no index")?,
            digest: answer["Digest"].as_str().context("no digest")?.to_owned(),
            store: Store::decode_snapshot(&objects)?,
        })
    }

    /// A write was acknowledged: writes are possible. Counts as long as writers go on.
    pub(super) fn acknowledged(&self) {
        if !self.writing() {
            return;
        }
        let now = Instant::now();
        let mut tally = lock(&self.tally);
        let Some(last) = tally.last_acknowledged.replace(now) else { return };
        let gap = now - last;
        let begun = self.elapsed().saturating_sub(gap);
        // A quorum that was lost comes back only some time after the daemons do.
        let without_quorum = lock(&self.faults).iter().any(|(fault, ended)| {
            fault.kind.ends_quorum() && ended.is_none_or(|ended| ended + Duration::from_secs(2) > begun)
        });
        let longest = if without_quorum { &mut tally.longest_gap.1 } else { &mut tally.longest_gap.0 };
        *longest = gap.max(*longest);
        drop(tally);
        if gap > GAP {
            self.say(&format!("no write was acknowledged for {:.1} s", gap.as_secs_f64()));
        }
    }

    /// Sends a write and tells how it came out.
    pub(super) async fn outcome(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<Value, HostError>>,
    ) -> (Outcome, Option<HostError>) {
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => {
                let outcome = Outcome::of(&answer);
                if outcome == Outcome::Acknowledged {
                    self.acknowledged();
                }
                (outcome, answer.err())
            }
            Err(_) => (Outcome::Unknown, None),
        }
    }
}

/// Names of the workload's objects in a store.
pub(super) fn names(store: &Store) -> BTreeSet<String> {
    let configs = store.configs().map(|o| &o.spec.name);
    let networks = store.networks().map(|o| &o.spec.name);
    let services = store.services().map(|o| &o.spec.name);
    configs.chain(networks).chain(services).filter(|name| name.starts_with(PREFIX)).cloned().collect()
}
