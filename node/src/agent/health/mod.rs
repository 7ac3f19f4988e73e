//! Health checks of this host's containers: `check` says what is asked, `machine` what the answers mean, and [`watch`],
//! one for each container that has a check, asks.
//!
//! What is known of a container's health is kept beside it, and outlives the daemon.

mod check;
mod machine;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use deploy::model::Timestamp;
use prost::Message;
use runtime::{ExecConfig, Runtime, RuntimeError};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub(super) use self::check::check;
pub(crate) use self::check::shown;
pub(crate) use self::machine::{Check, Health, ProbeResult};
use self::machine::{Machine, Outcome, Record};

/// Name of the note beside a container.
const NOTE: &str = "health";
/// How often it is asked whether a paused container goes on.
const PAUSED: Duration = Duration::from_secs(1);
/// A variable that the processes of probes have, by which those that were left behind are found.
const MARK: &str = "SHOAL_HEALTH_PROBE=1";

/// What is known of a container's health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HealthView {
    /// The verdict.
    pub(crate) health: Health,
    /// Failures in a row.
    pub(crate) failing_streak: u32,
    /// The last results, oldest first.
    pub(crate) log: Vec<ProbeResult>,
}

/// What the containers of this host are asked with.
trait Prober: Sync {
    /// Runs a command in a container, and ends it after `limit` with all that it has started. Answered when that is done.
    fn probe(&self, container: &str, command: &[String], limit: Duration) -> impl Future<Output = Outcome> + Send;
    /// Whether the container is paused.
    fn paused(&self, container: &str) -> impl Future<Output = bool> + Send;
    /// Keeps what is known.
    fn note(&self, container: &str, record: Vec<u8>) -> impl Future<Output = ()> + Send;
}

impl Prober for Runtime {
    async fn probe(&self, container: &str, command: &[String], limit: Duration) -> Outcome {
        let config = ExecConfig { args: command.to_vec(), env: vec![MARK.to_owned()], ..ExecConfig::default() };
        let outcome = self.exec_output(container, config, limit, machine::OUTPUT + 1).await;
        match outcome {
            Ok(done) if done.timed_out => {
                forsake(self, container).await;
                Outcome::TimedOut(done.output.to_vec())
            }
            Ok(done) => Outcome::Exited(done.exit.code, done.output.to_vec()),
            Err(RuntimeError::Unkillable(_)) => {
                forsake(self, container).await;
                Outcome::TimedOut(Vec::new())
            }
            Err(error) => Outcome::Failed(crate::chain(&error)),
        }
    }

    async fn paused(&self, container: &str) -> bool {
        self.list().await.iter().any(|state| state.id == container && state.paused)
    }

    async fn note(&self, container: &str, record: Vec<u8>) {
        if let Err(error) = self.put_note(container, NOTE, record).await {
            tracing::debug!(container.id = container, error = crate::chain(&error), "health is not kept");
        }
    }
}

/// Kills what probes have left behind in a container: what has outlived its time, or the daemon that waited for it.
async fn forsake(runtime: &Runtime, container: &str) {
    if let Err(error) = runtime.kill_marked(container, MARK).await {
        tracing::debug!(container.id = container, error = crate::chain(&error), "probes were not cleared away");
    }
}

/// What is known of a container's health; `None` where it has no check.
pub(crate) async fn known(runtime: &Runtime, container: &str) -> Option<HealthView> {
    let bytes = runtime.note(container, NOTE).await.ok().flatten()?;
    let record = Record::decode(bytes.as_slice()).ok()?;
    Some(HealthView { health: record.health(), failing_streak: record.failing_streak, log: record.log })
}

/// Asks a running container until this is dropped, and tells what it thinks of it: once at first, then when that
/// changes. An `adopted` one goes on where the last daemon was, and `healthy` says that it was healthy for the cluster.
pub(super) async fn watch(runtime: &Runtime, container: &str, check: Check, healthy: bool, tell: mpsc::Sender<Health>) {
    let found = runtime.list().await.into_iter().find(|state| state.id == container);
    let started = found.and_then(|state| state.started_at).unwrap_or_else(std::time::SystemTime::now);
    let nanos = started.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let started = Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    let note = runtime.note(container, NOTE).await.ok().flatten();
    let known = note.and_then(|bytes| Record::decode(bytes.as_slice()).ok());
    if known.is_some() || healthy {
        forsake(runtime, container).await;
    }
    let mut known = known.unwrap_or_default();
    if healthy && known.health() == Health::Starting {
        // It was written down there first.
        known.set_health(Health::Healthy);
    }
    drive(runtime, container, check, started, known, tell).await;
}

/// See [`watch`].
async fn drive(
    prober: &impl Prober,
    container: &str,
    check: Check,
    started: Timestamp,
    known: Record,
    tell: mpsc::Sender<Health>,
) {
    let clock = Clock::new();
    let mut machine = Machine::new(check.clone(), started, known, clock.now());
    prober.note(container, machine.record().encode_to_vec()).await;
    let mut told = machine.health();
    // Who does not listen any more drops this as well.
    let _ = tell.send(told).await;
    let mut probe: Option<Pin<Box<dyn Future<Output = Outcome> + Send + '_>>> = None;
    loop {
        // A paused container has no next time, and nobody says when it goes on.
        let next = machine.next();
        let wake = next.map_or_else(|| Instant::now() + PAUSED, |next| clock.at(next));
        tokio::select! {
            biased;
            outcome = async { match probe.as_mut() { Some(probe) => probe.await, None => std::future::pending().await } } => {
                probe = None;
                // Under a pause everything takes too long.
                if prober.paused(container).await {
                    machine.pause(clock.now(), true);
                }
                machine.ended(clock.now(), outcome);
                prober.note(container, machine.record().encode_to_vec()).await;
            }
            () = tokio::time::sleep_until(wake) => {
                if probe.is_none() {
                    machine.pause(clock.now(), prober.paused(container).await);
                }
                if machine.tick(clock.now()).is_some() {
                    probe = Some(Box::pin(prober.probe(container, &check.command, check.timeout)));
                }
            }
        }
        if machine.health() != told {
            told = machine.health();
            let _ = tell.send(told).await;
        }
    }
}

/// Time of day that never jumps: where it stood once, and how long ago that was.
struct Clock {
    wall: Timestamp,
    since: Instant,
}

impl Clock {
    fn new() -> Self {
        Self { wall: super::now(), since: Instant::now() }
    }

    fn now(&self) -> Timestamp {
        self.wall.plus(self.since.elapsed())
    }

    fn at(&self, time: Timestamp) -> Instant {
        let now = self.now();
        // Far enough for anything, near enough for the timer.
        Instant::now() + time.since(now).min(Duration::from_secs(365 * 24 * 3600))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Plays a container: each probe takes so long and ends like this; `None` hangs until its limit.
    struct Played {
        script: Mutex<Vec<Option<i32>>>,
        /// It is paused, and will be asked so many times more until it goes on.
        paused: Mutex<Option<u32>>,
        notes: Mutex<Vec<Record>>,
        probes: Mutex<u32>,
    }

    impl Played {
        fn new(script: &[Option<i32>]) -> Self {
            Self {
                script: Mutex::new(script.to_vec()),
                paused: Mutex::default(),
                notes: Mutex::default(),
                probes: Mutex::default(),
            }
        }
    }

    impl Prober for Played {
        async fn probe(&self, _: &str, _: &[String], limit: Duration) -> Outcome {
            assert_eq!(*self.paused.lock().unwrap(), None, "asked while it was paused");
            *self.probes.lock().unwrap() += 1;
            let next = {
                let mut script = self.script.lock().unwrap();
                if script.len() > 1 { script.remove(0) } else { script[0] }
            };
            match next {
                Some(code) => Outcome::Exited(code, Vec::new()),
                None => {
                    tokio::time::sleep(limit).await;
                    Outcome::TimedOut(b"slow".to_vec())
                }
            }
        }

        async fn paused(&self, _: &str) -> bool {
            let mut paused = self.paused.lock().unwrap();
            let was = paused.is_some();
            *paused = paused.and_then(|times| times.checked_sub(1));
            was
        }

        async fn note(&self, _: &str, record: Vec<u8>) {
            self.notes.lock().unwrap().push(Record::decode(record.as_slice()).unwrap());
        }
    }

    /// Every 10 ms, 30 ms at the most.
    fn often() -> Check {
        Check {
            command: vec!["probe".into()],
            interval: Duration::from_millis(10),
            timeout: Duration::from_millis(30),
            start_period: Duration::ZERO,
            start_interval: Duration::from_millis(10),
            retries: 2,
        }
    }

    /// What is told until `done`.
    async fn story(played: &Played, known: Record, done: impl Fn(&[Health]) -> bool) -> Vec<Health> {
        let (tell, mut heard) = mpsc::channel(1);
        let mut told = Vec::new();
        let driven = drive(played, "c", often(), super::super::now(), known, tell);
        let finished = async {
            while !done(&told) {
                told.extend(heard.recv().await);
            }
        };
        let either = async {
            tokio::select! {
                () = driven => {}
                () = finished => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(20), either).await.expect("it is told");
        told
    }

    #[tokio::test]
    async fn it_tells_what_changes() {
        let played = Played::new(&[Some(1), Some(0), Some(1), None, Some(0)]);
        let told = story(&played, Record::default(), |told| told.len() == 4).await;
        assert_eq!(told, [Health::Starting, Health::Healthy, Health::Unhealthy, Health::Healthy]);
        let last = played.notes.lock().unwrap().last().cloned().unwrap();
        assert_eq!((last.health(), last.log.len()), (Health::Healthy, 5));
        assert_eq!(last.log[3].output, "Health check exceeded timeout (30ms): slow");
        let gaps = last.log.windows(2).map(|pair| pair[1].start.since(pair[0].end));
        assert!(gaps.min().unwrap() >= Duration::from_millis(10), "from the end of each: {:?}", last.log);
    }

    #[tokio::test]
    async fn what_was_known_is_not_asked_anew() {
        let played = Played::new(&[Some(1)]);
        let known = Record { health: Health::Healthy as i32, failing_streak: 1, log: Vec::new() };
        let told = story(&played, known, |told| told.len() == 2).await;
        assert_eq!(told, [Health::Healthy, Health::Unhealthy]);
        assert_eq!(*played.probes.lock().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_paused_container_is_left_alone() {
        let played = Played::new(&[Some(0)]);
        *played.paused.lock().unwrap() = Some(3);
        let told = story(&played, Record::default(), |told| told.len() == 2).await;
        assert_eq!(told, [Health::Starting, Health::Healthy]);
        assert_eq!(*played.paused.lock().unwrap(), None, "asked again and again until it went on");
    }
}
