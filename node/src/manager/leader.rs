//! The leader's turn: one task that runs every transaction, in order, on a speculative store.
//!
//! The speculative store is what was applied plus what is in flight, so entries are pipelined without write skew. It
//! exists only while this manager leads; when it stops leading, or an entry was refused after all, it is thrown away
//! and begins again from what was applied. Followers run this task too; it then only says that it does not lead.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use deploy::control::{self, ControlError, ErrorKind, Reply, Request};
use deploy::cx::{Cx, Limits};
use deploy::model::Timestamp;
use deploy::store::{Store, Txn};
use deploy::brain;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prost::Message;
use raft::{ProposeError, Proposed, Raft, Role};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::machine::{Published, conflict_of};

/// An entry stays below what Raft takes (1.5 MiB): 256 tasks of 4 KiB are 1 MiB.
const LIMITS: Limits = Limits { tasks_per_pass: 256 };
/// Requests that wait for their turn; a further one waits with its sender.
const QUEUE: usize = 1024;
/// Entries in flight; the next transaction waits until there is room.
const IN_FLIGHT: usize = 64;
/// Pause before another try to begin leading.
const BEGIN_RETRY: Duration = Duration::from_millis(20);
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
}

/// The task's handle, and the task, which ends when every handle is gone or Raft has stopped.
pub(super) fn new(raft: Raft, published: watch::Receiver<Published>) -> (Handle, impl Future<Output = ()>) {
    let (commands, receiver) = mpsc::channel(QUEUE);
    let task = Leader { raft, published, commands: receiver, in_flight: FuturesUnordered::new(), leading: None };
    (Handle { commands }, task.run())
}

type InFlight = Pin<Box<dyn Future<Output = (Result<Proposed, ProposeError>, Option<(Reply, oneshot::Sender<Outcome>)>)> + Send>>;

struct Leader {
    raft: Raft,
    published: watch::Receiver<Published>,
    commands: mpsc::Receiver<Command>,
    in_flight: FuturesUnordered<InFlight>,
    leading: Option<Leading>,
}

/// What exists only while this manager leads.
struct Leading {
    term: u64,
    /// Applied and in flight.
    speculative: Store,
    wake: Instant,
    /// An entry was refused: the speculative store is wrong, and what is in flight will be refused as well.
    stale: bool,
}

/// Why the task woke up.
enum Branch {
    Status,
    Landed(Result<Proposed, ProposeError>, Option<(Reply, oneshot::Sender<Outcome>)>),
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
            let wake = match &self.leading {
                Some(leading) => Some(leading.wake),
                // It leads but could not begin: try again soon.
                None if current.role == Role::Leader => Some(Instant::now() + BEGIN_RETRY),
                None => None,
            };
            let branch = tokio::select! {
                biased;
                changed = status.changed() => if changed.is_ok() { Branch::Status } else { Branch::Stop },
                Some((result, waiter)) = self.in_flight.next() => Branch::Landed(result, waiter),
                command = self.commands.recv(), if ready => command.map_or(Branch::Stop, Branch::Command),
                () = sleep_until(wake), if ready => Branch::Wake,
            };
            match branch {
                Branch::Status => {}
                Branch::Landed(result, waiter) => self.landed(result, waiter),
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
        let (request, waiter) = match command {
            Some(Command { request, answer }) => (Some(request), Some(answer)),
            None => (None, None),
        };
        let turn = match decide(&leading.speculative, request.as_ref()) {
            Ok(turn) => turn,
            Err(error) => {
                if let Some(answer) = waiter {
                    let _ = answer.send(Err(NotDone::Refused(error)));
                }
                return;
            }
        };
        leading.wake = Instant::now() + turn.sleep;
        let waiter = waiter.map(|answer| (turn.reply, answer));
        let Some(entry) = turn.txn.finish(leading.term) else {
            // Nothing to write: what the request asked for is already so.
            if let Some((reply, answer)) = waiter {
                let index = self.published.borrow().index;
                let _ = answer.send(Ok((reply, index)));
            }
            return;
        };
        match self.raft.submit(entry.encode_to_vec()).await {
            Ok(pending) => {
                leading.speculative = turn.txn.into_store();
                self.in_flight.push(Box::pin(async move { (pending.wait().await, waiter) }));
            }
            Err(error) => {
                leading.stale = true;
                if let Some((_, answer)) = waiter {
                    let _ = answer.send(Err(match error {
                        ProposeError::NotLeader { .. } | ProposeError::Stopped => NotDone::NotLeader,
                        refused => NotDone::Refused(ControlError::new(ErrorKind::Exhausted, refused.to_string())),
                    }));
                }
            }
        }
    }

    /// An entry was committed, or was not.
    fn landed(
        &mut self,
        result: Result<Proposed, ProposeError>,
        waiter: Option<(Reply, oneshot::Sender<Outcome>)>,
    ) {
        let outcome = match result {
            Ok(proposed) => match conflict_of(&proposed.response) {
                None => Ok(proposed.index),
                // It is in the log and changed nothing: as good as never sent.
                Some(_) => Err(NotDone::NotLeader),
            },
            Err(ProposeError::NotLeader { .. } | ProposeError::Stopped) => Err(NotDone::NotLeader),
            Err(error) => Err(NotDone::Unknown(error.to_string())),
        };
        if outcome.is_err() && let Some(leading) = &mut self.leading {
            leading.stale = true;
        }
        if let Some((reply, answer)) = waiter {
            let _ = answer.send(outcome.map(|index| (reply, index)));
        }
    }
}

/// What came out of one transaction.
struct Turn {
    txn: Txn,
    reply: Reply,
    /// Until the brain wants to look again.
    sleep: Duration,
}

fn decide(store: &Store, request: Option<&Request>) -> Result<Turn, ControlError> {
    let now = now().max(store.now());
    let mut ids = rand::random::<u128>;
    let mut cx = Cx { now, ids: &mut ids, limits: LIMITS };
    let mut txn = Txn::new(store, now);
    let reply = match request {
        Some(request) => control::execute(&mut cx, &mut txn, request)?,
        None => Reply::default(),
    };
    brain::pass(&mut cx, &mut txn);
    let sleep = txn.next_wake().map_or(LONGEST_SLEEP, |at| at.since(now).min(LONGEST_SLEEP));
    Ok(Turn { txn, reply, sleep })
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
