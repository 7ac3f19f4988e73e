//! The leader's turns ([`deploy::turn`]): one task that runs every transaction, in order, on a speculative store.
//!
//! The speculative store is what was applied plus what is in flight, so entries are pipelined without write skew. It
//! exists only while this manager leads; when it stops leading, or an entry was refused after all, it is thrown away
//! and begins again from what was applied. Followers run this task too; it then only says that it does not lead.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use deploy::control::{ControlError, ErrorKind, Op, Reply, Request};
use deploy::model::Timestamp;
use deploy::store::Store;
use deploy::turn::{self, Passes, Scope};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use prost::Message;
use raft::{ProposeError, Proposed, Raft, Role};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::confirm::{self, Answer, Confirmations};
use super::counters::Counters;
use super::machine::{Published, conflict_of};

/// Requests that wait for their turn.
const QUEUE: usize = 1024;
/// Places of the queue that are kept for what the cluster itself asks for (sessions, statuses, hosts that are Down):
/// users who ask for more than can be done must not make hosts look silent.
const KEPT: usize = 256;
/// Entries in flight; the next transaction waits until there is room.
const IN_FLIGHT: usize = 64;
/// Pause before another try to begin leading.
const BEGIN_RETRY: Duration = Duration::from_millis(20);
/// Pause after an entry that the log had no room for.
const REFUSED_RETRY: Duration = Duration::from_secs(1);

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
    counters: Arc<Counters>,
}

/// Whether a user asked, and not the cluster itself.
fn is_users(request: &Request) -> bool {
    !matches!(
        request.op,
        Some(
            Op::NodeSession(_)
                | Op::ReportStatuses(_)
                | Op::NodeDown(_)
                | Op::NodeCertified(_)
                | Op::NodeSealed(_)
                | Op::NoteNode(_)
                | Op::NodeLeft(_)
                | Op::ClearManager(_)
                | Op::AllocateRaftId(_)
                | Op::RegisterNode(_)
        )
    )
}

fn busy() -> ControlError {
    let waiting = QUEUE - KEPT;
    ControlError::new(
        ErrorKind::Busy,
        format!("the cluster is busy: {waiting} requests wait for the leader already, nothing was changed; try again"),
    )
}

impl Handle {
    /// Carries out a request if this manager leads. One of a user is refused when too many wait already; one of the
    /// cluster itself waits with its sender, of whom there is one a host.
    pub(super) async fn execute(&self, request: Request) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        if is_users(&request) && self.commands.capacity() <= KEPT {
            self.counters.busy.add_one();
            return Err(NotDone::Refused(busy()));
        }
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
    let handle = Handle { commands, counters: counters.clone() };
    let in_flight = FuturesOrdered::new();
    let (unsure, confirming) = confirm::new({
        let raft = raft.clone();
        move || {
            let raft = raft.clone();
            async move { raft.leads_in().await.ok() }
        }
    });
    let task = Leader { raft, published, counters, commands: receiver, in_flight, unsure, leading: None };
    // The second ends with the first, which has its handle.
    (handle, async {
        tokio::join!(task.run(), confirming);
    })
}

/// What lands when an entry is committed, or is not. An answer that needed no entry lands behind those it rests on.
struct Landing {
    entry: Option<Result<Proposed, ProposeError>>,
    answer: Option<Answer>,
}

type InFlight = Pin<Box<dyn Future<Output = Landing> + Send>>;

struct Leader {
    raft: Raft,
    published: watch::Receiver<Published>,
    counters: Arc<Counters>,
    commands: mpsc::Receiver<Command>,
    /// In the order of the log, so that an answer which rests on what is in flight comes after it.
    in_flight: FuturesOrdered<InFlight>,
    /// Answers that no commit confirms.
    unsure: Confirmations,
    leading: Option<Leading>,
}

/// What exists only while this manager leads.
struct Leading {
    term: u64,
    /// Applied and in flight.
    speculative: Store,
    /// How far the cluster's clock was ahead of this host's when it began to lead: the clock goes on from there.
    ahead: Duration,
    /// When the task wakes up by itself.
    wake: Instant,
    passes: Passes,
    /// An entry was refused: the speculative store is wrong, and what is in flight will be refused as well.
    stale: bool,
    /// The rotation of keys whose late hosts were named.
    late_told: u64,
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
                    passes: Passes::default(),
                    stale: false,
                    late_told: 0,
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
        let clock = now().plus(leading.ahead).max(leading.speculative.now());
        let scope = leading.passes.scope(clock, request.is_some());
        let mut ids = rand::random::<u128>;
        let mut decide = || turn::decide(&leading.speculative, clock, &mut ids, request.as_ref(), scope);
        let (txn, decided) = match scope {
            // Some hundred milliseconds for 100 000 objects: what else this thread has to do goes on elsewhere.
            Scope::Full => tokio::task::block_in_place(decide),
            Scope::Touched => decide(),
        };
        self.counters.passes(scope).add_one();
        if scope == Scope::Full {
            leading.tell_late(clock);
        }
        self.counters.turn.observe(began.elapsed());
        let answer = to.map(|to| Answer { decided, to });
        let passed = leading.passes.after(clock, scope, txn.next_wake());
        let Some(entry) = txn.finish(leading.term) else {
            leading.passed(passed, clock);
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
                leading.passed(passed, clock);
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

    /// An entry was committed, or was not; or everything that an answer rests on has landed. Without an
    /// entry nothing says yet that this manager still leads.
    fn landed(&mut self, landing: Landing) {
        let has_entry = landing.entry.is_some();
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
        let Some(answer) = landing.answer else { return };
        match (index, &self.leading) {
            (Ok(index), Some(leading)) if !has_entry => self.unsure.confirm(leading.term, index, answer),
            (index, _) => answer.send(index),
        }
    }
}

impl Leading {
    /// Names the hosts that a rotation of keys waits for, once each.
    fn tell_late(&mut self, clock: Timestamp) {
        let epoch = self.speculative.cluster().map_or(0, |cluster| cluster.status.sealing_epoch);
        if epoch == self.late_told {
            return;
        }
        let late = deploy::sealing::late(&self.speculative, clock);
        if !late.is_empty() {
            self.late_told = epoch;
            let late: Vec<&str> = late.iter().map(deploy::model::NodeId::as_str).collect();
            tracing::warn!(
                epoch,
                ?late,
                "hosts have not made their keys for encrypted networks: the next ones wait for them"
            );
        }
    }

    /// What a pass found to be done later counts once its entry is on its way, or there was nothing to change.
    fn passed(&mut self, passes: Passes, clock: Timestamp) {
        self.wake = Instant::now() + passes.due().since(clock);
        self.passes = passes;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// This host's clock.
fn now() -> Timestamp {
    Timestamp::from_nanos(crate::clock::unix_nanos())
}

#[cfg(test)]
mod tests {
    use deploy::control::CreateConfig;

    use super::*;

    #[tokio::test]
    async fn users_are_refused_when_too_many_wait_and_the_cluster_is_not() {
        let (commands, mut waiting) = mpsc::channel(QUEUE);
        let handle = Handle { commands, counters: Arc::default() };
        let user = || Request::from(Op::CreateConfig(CreateConfig::default()));
        let host = || Request::from(Op::NodeSession(Box::default()));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..QUEUE - KEPT {
            let handle = handle.clone();
            asking.spawn(async move { handle.execute(user()).await });
        }
        while handle.commands.capacity() > KEPT {
            tokio::task::yield_now().await;
        }
        let refused = handle.execute(user()).await;
        let Err(NotDone::Refused(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.message.starts_with("the cluster is busy"), "{error}");
        assert_eq!(handle.counters.busy.get(), 1);
        asking.spawn({
            let handle = handle.clone();
            async move { handle.execute(host()).await }
        });
        while handle.queued() < (QUEUE - KEPT + 1) as u64 {
            tokio::task::yield_now().await;
        }
        // With one that is done there is a place again.
        for _ in 0..2 {
            let command = waiting.recv().await.expect("a command");
            command.answer.send(Ok((Reply::default(), 1))).expect("somebody waits");
        }
        asking.spawn({
            let handle = handle.clone();
            async move { handle.execute(user()).await }
        });
        while handle.queued() < (QUEUE - KEPT) as u64 {
            tokio::task::yield_now().await;
        }
        assert_eq!(handle.counters.busy.get(), 1);
    }
}
