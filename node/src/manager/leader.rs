//! The leader's turn: one task that runs every transaction, in order, on a speculative store.
//!
//! The speculative store is what was applied plus what is in flight, so entries are pipelined without write skew. It
//! exists only while this manager leads; when it stops leading, or an entry was refused after all, it is thrown away
//! and begins again from what was applied. Followers run this task too; it then only says that it does not lead.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use deploy::brain;
use deploy::control::{self, ControlError, ErrorKind, Reply, Request};
use deploy::cx::{Cx, Limits};
use deploy::model::Timestamp;
use deploy::store::{Store, Txn};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use prost::Message;
use raft::{ProposeError, Proposed, Raft, Role};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::counters::Counters;
use super::machine::{Published, conflict_of};

/// An entry stays below what Raft takes (1.5 MiB): 256 tasks of 4 KiB are 1 MiB.
const LIMITS: Limits = Limits { tasks_per_pass: 256 };
/// Requests that wait for their turn; a further one waits with its sender.
const QUEUE: usize = 1024;
/// Entries in flight; the next transaction waits until there is room.
const IN_FLIGHT: usize = 64;
/// Pause before another try to begin leading.
const BEGIN_RETRY: Duration = Duration::from_millis(20);
/// Pause after an entry that the log had no room for.
const REFUSED_RETRY: Duration = Duration::from_secs(1);
/// The brain looks at least this often while it leads, should a wake-up ever be lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum NotDone {
    /// By the cluster's rules; nothing changed.
    Refused(ControlError),
    /// This manager does not lead; nothing changed, another one may do it.
    NotLeader,
    /// It may have been carried out, or may yet be.
    Unknown(String),
}

/// What a request came to, and the index of the entry that holds it.
pub(super) type Outcome = Result<(Reply, u64), NotDone>;

struct Command {
    request: Request,
    answer: oneshot::Sender<Outcome>,
}

/// Sends requests to the task.
#[derive(Clone)]
pub(super) struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Carries out a request if this manager leads.
    pub(super) async fn execute(&self, request: Request) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        if self.commands.send(Command { request, answer }).await.is_err() {
            return Err(NotDone::NotLeader);
        }
        outcome.await.unwrap_or_else(|_| Err(NotDone::Unknown("the manager stopped".into())))
    }

    /// Requests that wait for their turn.
    pub(super) fn queued(&self) -> u64 {
        (QUEUE - self.commands.capacity()) as u64
    }
}

/// The task's handle, and the task, which ends when every handle is gone or Raft has stopped.
pub(super) fn new(
    raft: Raft,
    published: watch::Receiver<Published>,
    counters: Arc<Counters>,
) -> (Handle, impl Future<Output = ()>) {
    let (commands, receiver) = mpsc::channel(QUEUE);
    let in_flight = FuturesOrdered::new();
    let task = Leader { raft, published, counters, commands: receiver, in_flight, leading: None };
    (Handle { commands }, task.run())
}

/// What lands when an entry is committed, or is not. An answer that needed no entry lands behind those it rests on.
struct Landing {
    entry: Option<Result<Proposed, ProposeError>>,
    answer: Option<Answer>,
}

/// What a request came to on the speculative store, and who wants to know.
struct Answer {
    decided: Result<Reply, ControlError>,
    to: oneshot::Sender<Outcome>,
}

type InFlight = Pin<Box<dyn Future<Output = Landing> + Send>>;

struct Leader {
    raft: Raft,
    published: watch::Receiver<Published>,
    counters: Arc<Counters>,
    commands: mpsc::Receiver<Command>,
    /// In the order of the log, so that an answer which rests on what is in flight comes after it.
    in_flight: FuturesOrdered<InFlight>,
    leading: Option<Leading>,
}

/// What exists only while this manager leads.
struct Leading {
    term: u64,
    /// Applied and in flight.
    speculative: Store,
    /// How far the cluster's clock was ahead of this host's when it began to lead: the clock goes on from there.
    ahead: Duration,
    wake: Instant,
    /// An entry was refused: the speculative store is wrong, and what is in flight will be refused as well.
    stale: bool,
}

/// Why the task woke up.
enum Branch {
    Status,
    Landed(Landing),
    Command(Command),
    Wake,
    Stop,
}

impl Leader {
    async fn run(mut self) {
        let mut status = self.raft.watch();
        loop {
            let current = status.borrow_and_update().clone();
            self.follow(&current).await;
            let stale = self.leading.as_ref().is_some_and(|l| l.stale);
            let ready = !stale && self.in_flight.len() < IN_FLIGHT;
            self.counters.in_flight.set(self.in_flight.len() as u64);
            let wake = match &self.leading {
                Some(leading) => Some(leading.wake),
                // It leads but could not begin: try again soon.
                None if current.role == Role::Leader => Some(Instant::now() + BEGIN_RETRY),
                None => None,
            };
            let branch = tokio::select! {
                biased;
                changed = status.changed() => if changed.is_ok() { Branch::Status } else { Branch::Stop },
                Some(landing) = self.in_flight.next() => Branch::Landed(landing),
                command = self.commands.recv(), if ready => command.map_or(Branch::Stop, Branch::Command),
                () = sleep_until(wake), if ready => Branch::Wake,
            };
            match branch {
                Branch::Status => {}
                Branch::Landed(landing) => self.landed(landing),
                Branch::Command(command) => self.turn(Some(command)).await,
                Branch::Wake => self.turn(None).await,
                Branch::Stop => return,
            }
        }
    }

    /// Begins or ends leading as Raft says, and begins anew when the speculative store went stale.
    async fn follow(&mut self, status: &raft::Status) {
        let leads = status.role == Role::Leader;
        let drained = self.in_flight.is_empty();
        if let Some(leading) = &self.leading
            && (!leads || leading.term != status.term || leading.stale && drained)
        {
            tracing::info!(raft.term = leading.term, stale = leading.stale, "no longer leading");
            self.leading = None;
        }
        if !leads || self.leading.is_some() || !drained {
            return;
        }
        // Everything of earlier terms must be applied before the first decision.
        match self.raft.linearizable().await {
            Ok(index) => {
                let Ok(published) = self.published.wait_for(|p| p.index >= index).await.map(|p| p.clone()) else {
                    return;
                };
                tracing::info!(raft.term = status.term, store.revision = published.store.revision(), "leading");
                self.leading = Some(Leading {
                    term: status.term,
                    ahead: published.store.now().since(now()),
                    speculative: published.store,
                    wake: Instant::now(),
                    stale: false,
                });
            }
            Err(error) => tracing::debug!(%error, "not sure to lead yet"),
        }
    }

    /// One transaction: the request, if there is one, and the brain's pass, as one entry.
    async fn turn(&mut self, command: Option<Command>) {
        let Some(leading) = self.leading.as_mut().filter(|l| !l.stale) else {
            if let Some(command) = command {
                let _ = command.answer.send(Err(NotDone::NotLeader));
            }
            return;
        };
        let (request, to) = match command {
            Some(Command { request, answer }) => (Some(request), Some(answer)),
            None => (None, None),
        };
        let began = Instant::now();
        let Turn { txn, decided, sleep } = decide(&leading.speculative, now().plus(leading.ahead), request.as_ref());
        leading.wake = Instant::now() + sleep;
        self.counters.turn.observe(began.elapsed());
        let answer = to.map(|to| Answer { decided, to });
        let Some(entry) = txn.finish(leading.term) else {
            let landing = Landing { entry: None, answer };
            if self.in_flight.is_empty() {
                self.landed(landing);
            } else {
                self.in_flight.push_back(Box::pin(std::future::ready(landing)));
            }
            return;
        };
        match self.raft.submit(entry.encode_to_vec()).await {
            Ok(pending) => {
                leading.speculative = txn.into_store();
                self.in_flight
                    .push_back(Box::pin(async move { Landing { entry: Some(pending.wait().await), answer } }));
            }
            Err(error) => {
                let not_done = match error {
                    ProposeError::NotLeader { .. } | ProposeError::Stopped => {
                        leading.stale = true;
                        NotDone::NotLeader
                    }
                    // The store stays as it was; the brain tries again when there may be room.
                    refused => {
                        tracing::warn!(error = %refused, "an entry was not accepted");
                        leading.wake = Instant::now() + REFUSED_RETRY;
                        NotDone::Refused(ControlError::new(ErrorKind::Exhausted, refused.to_string()))
                    }
                };
                if let Some(answer) = answer {
                    let _ = answer.to.send(Err(not_done));
                }
            }
        }
    }

    /// An entry was committed, or was not; or everything that an answer rests on has landed.
    fn landed(&mut self, landing: Landing) {
        let index = match landing.entry {
            Some(Ok(proposed)) => match conflict_of(&proposed.response) {
                None => Ok(proposed.index),
                // It is in the log and changed nothing: as good as never sent.
                Some(_) => Err(NotDone::NotLeader),
            },
            Some(Err(ProposeError::NotLeader { .. } | ProposeError::Stopped)) => Err(NotDone::NotLeader),
            Some(Err(error)) => Err(NotDone::Unknown(error.to_string())),
            None if self.leading.as_ref().is_some_and(|leading| !leading.stale) => Ok(self.published.borrow().index),
            None => Err(NotDone::NotLeader),
        };
        if index.is_err()
            && let Some(leading) = &mut self.leading
        {
            leading.stale = true;
        }
        if let Some(Answer { decided, to }) = landing.answer {
            let _ = to.send(match (index, decided) {
                (Ok(index), Ok(reply)) => Ok((reply, index)),
                (Ok(_), Err(refused)) => Err(NotDone::Refused(refused)),
                (Err(not_done), _) => Err(not_done),
            });
        }
    }
}

/// What came out of one transaction.
struct Turn {
    txn: Txn,
    /// What the request came to; refused, it left no trace in the transaction.
    decided: Result<Reply, ControlError>,
    /// Until the brain wants to look again.
    sleep: Duration,
}

fn decide(store: &Store, clock: Timestamp, request: Option<&Request>) -> Turn {
    let now = clock.max(store.now());
    let mut ids = rand::random::<u128>;
    let mut cx = Cx { now, ids: &mut ids, limits: LIMITS };
    let mut txn = Txn::new(store, now);
    let decided = match request {
        Some(request) => control::execute(&mut cx, &mut txn, request),
        None => Ok(Reply::default()),
    };
    brain::pass(&mut cx, &mut txn);
    let sleep = txn.next_wake().map_or(LONGEST_SLEEP, |at| at.since(now).min(LONGEST_SLEEP));
    Turn { txn, decided, sleep }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// This host's clock.
fn now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
}
