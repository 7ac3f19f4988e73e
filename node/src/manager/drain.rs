//! Who has let go of tasks that drain: what this manager's sessions know, asked for by all managers.
//!
//! Each session notes in [`Drains`] up to which revision of the store its host is ([`Covering`]). A session whose host
//! has tasks that drain asks this manager's collector; the collector asks every manager, this one included, for the hosts
//! that somebody may be led there from, and tells the agent when none of them is missing, or who is late. All of that is
//! in memory: an agent that loses its manager in the middle gets a session with another one, which sees the same tasks in
//! its store and asks anew. What is decided from it is in `deploy::dispatcher::drain`.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deploy::dispatcher::drain::{self, COLLECT, Collection, Cover, Drain};
use deploy::model::{NodeId, TaskId};
use deploy::store::Store;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::Manager;
use crate::rpc::pb;

/// Sessions that ask within this time ask together.
const GATHER: Duration = Duration::from_millis(2);
/// Questions under way at once; those that come meanwhile wait, and are asked together.
const ROUNDS: usize = 128;
/// Sessions that wait for the collector. One that finds no room is not answered, and its agent waits for its own time.
const QUEUE: usize = 4096;
/// Hosts in one question.
const MAX_HOSTS: usize = 100_000;
/// A question is not answered for longer than this, whatever the caller wishes.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Answers that a caller has not read yet.
const BACKLOG: usize = 16;
/// Pause before a manager that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// Late hosts that are named; the agent shows fewer.
const NAMED: usize = 20;

/// How far the hosts are that are attached to this manager, and the way to its collector.
#[derive(Clone)]
pub(super) struct Drains {
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
}

struct Shared {
    covered: Mutex<Covered>,
    /// Something in it is new.
    news: watch::Sender<()>,
}

#[derive(Default)]
struct Covered {
    /// Number of the session that speaks for the host, and the revision.
    hosts: BTreeMap<NodeId, (u64, u64)>,
    sessions: u64,
}

/// A session's question.
pub(super) struct Ask {
    drain: Drain,
    /// Of the store in which the tasks drain.
    revision: u64,
    asked: Instant,
    /// Where the answer goes.
    to: mpsc::Sender<Result<pb::ManagerMessage, Status>>,
}

impl Drains {
    /// And the questions, for [`collect`].
    pub(super) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(QUEUE);
        let shared = Shared { covered: Mutex::default(), news: watch::channel(()).0 };
        (Self { shared: Arc::new(shared), asks }, asked)
    }

    /// What a new session of a host knows: nothing yet. It takes the place of the one before.
    pub(super) fn session(&self, node: NodeId) -> Covering {
        let mut covered = self.shared.covered();
        covered.sessions += 1;
        let number = covered.sessions;
        covered.hosts.insert(node.clone(), (number, 0));
        drop(covered);
        Covering { shared: self.shared.clone(), node, number, cover: Mutex::default() }
    }

    /// Asks for the hosts that have to let go of these tasks. The answer goes to the agent.
    pub(super) fn ask(&self, drain: Drain, revision: u64, to: mpsc::Sender<Result<pb::ManagerMessage, Status>>) {
        if self.asks.try_send(Ask { drain, revision, asked: Instant::now(), to }).is_err() {
            tracing::warn!("too many hosts have tasks that drain; some stop without a word of the others");
        }
    }

    /// Which of the hosts have carried out everything up to a revision, as places in the list, each told once. Ends with
    /// the last of them, with the time, or when nobody listens.
    fn watch(
        &self,
        revision: u64,
        hosts: Vec<NodeId>,
        wait: Duration,
    ) -> (mpsc::Receiver<Vec<u32>>, impl Future<Output = ()> + Send + use<>) {
        let (out, answers) = mpsc::channel(BACKLOG);
        let shared = self.shared.clone();
        let until = Instant::now() + wait;
        let watching = async move {
            let mut news = shared.news.subscribe();
            let mut missing: Vec<(u32, NodeId)> = (0..).zip(hosts).collect();
            loop {
                news.borrow_and_update();
                let mut places = Vec::new();
                {
                    let covered = shared.covered();
                    missing.retain(|(place, host)| {
                        let there = covered.hosts.get(host).is_some_and(|(_, covered)| *covered >= revision);
                        if there {
                            places.push(*place);
                        }
                        !there
                    });
                }
                if !places.is_empty() && out.send(places).await.is_err() || missing.is_empty() {
                    return;
                }
                tokio::select! {
                    biased;
                    () = out.closed() => return,
                    () = tokio::time::sleep_until(until) => return,
                    changed = news.changed() => if changed.is_err() { return },
                }
                // What comes at the same time is told together.
                tokio::time::sleep(GATHER / 2).await;
            }
        };
        (answers, watching)
    }
}

impl Shared {
    fn covered(&self) -> MutexGuard<'_, Covered> {
        self.covered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session knows of its host, for as long as it lasts.
pub(super) struct Covering {
    shared: Arc<Shared>,
    node: NodeId,
    number: u64,
    cover: Mutex<Cover>,
}

impl Covering {
    /// The host was sent what it must know of that revision.
    pub(super) fn told(&self, revision: u64) {
        self.note(|cover| cover.told(revision));
    }

    /// Nothing up to that revision concerns it beyond what it was told.
    pub(super) fn nothing_until(&self, revision: u64) {
        self.note(|cover| cover.nothing_until(revision));
    }

    /// It says that it has carried out all that it was told up to that revision.
    pub(super) fn acknowledged(&self, revision: u64) {
        self.note(|cover| cover.acknowledged(revision));
    }

    fn note(&self, change: impl FnOnce(&mut Cover)) {
        let (before, after) = {
            let mut cover = self.cover.lock().unwrap_or_else(PoisonError::into_inner);
            let before = cover.revision();
            change(&mut cover);
            (before, cover.revision())
        };
        if before == after {
            return;
        }
        if let Some((number, covered)) = self.shared.covered().hosts.get_mut(&self.node)
            && *number == self.number
        {
            *covered = after.max(*covered);
        }
        self.shared.news.send_replace(());
    }
}

impl Drop for Covering {
    fn drop(&mut self) {
        let mut covered = self.shared.covered();
        if covered.hosts.get(&self.node).is_some_and(|(number, _)| *number == self.number) {
            covered.hosts.remove(&self.node);
        }
    }
}

/// Answers, as they come.
pub(super) type CoveredStream = Pin<Box<dyn Stream<Item = Result<pb::CoveredReply, Status>> + Send>>;

/// Answers another manager's question.
pub(super) fn answer(manager: &Manager, request: pb::CoveredRequest) -> Result<CoveredStream, Status> {
    if request.node_ids.len() > MAX_HOSTS {
        return Err(Status::invalid_argument(format!("{} hosts are more than {MAX_HOSTS}", request.node_ids.len())));
    }
    let hosts = request.node_ids.into_iter().map(NodeId::new).collect();
    let wait = Duration::from_millis(request.wait_ms.into()).min(MAX_WAIT);
    let (answers, watching) = manager.inner.drains.watch(request.revision, hosts, wait);
    manager.spawn(watching);
    Ok(Box::pin(ReceiverStream::new(answers).map(|places| Ok(pb::CoveredReply { places }))))
}

/// The collector, for as long as the manager lives.
pub(super) async fn collect(manager: Manager, mut asked: mpsc::Receiver<Ask>) {
    let mut rounds = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = rounds.next() => {}
            ask = asked.recv(), if rounds.len() < ROUNDS => {
                let Some(ask) = ask else { return };
                let mut asks = vec![ask];
                tokio::time::sleep(GATHER).await;
                while let Ok(ask) = asked.try_recv() {
                    asks.push(ask);
                }
                rounds.push(round(&manager, asks));
            }
        }
    }
}

/// Asks all managers for those that several sessions wait for.
async fn round(manager: &Manager, asks: Vec<Ask>) {
    // Who asked first goes by its own time, should it be over before.
    let Some(last) = asks.iter().map(|ask| ask.asked).max() else { return };
    let until = last + COLLECT;
    let revision = asks.iter().map(|ask| ask.revision).max().unwrap_or_default();
    let mut published = manager.watch();
    let waiting = asks.into_iter().map(|ask| {
        let hosts = ask.drain.hosts.clone();
        (ask, hosts)
    });
    let mut collection = Collection::new(waiting);
    for ask in collection.complete() {
        say(&ask, Vec::new());
    }
    let hosts: Vec<NodeId> = collection.missing().into_iter().collect();
    let (heard, mut hears) = mpsc::channel(BACKLOG);
    let mut asking = FuturesUnordered::new();
    for peer in managers(manager) {
        asking.push(ask_one(manager, peer, revision, hosts.clone(), until, heard.clone()));
    }
    while !collection.is_empty() {
        let done: Vec<Ask> = tokio::select! {
            biased;
            Some(places) = hears.recv() => {
                let hosts = places.into_iter().filter_map(|place: u32| hosts.get(usize::try_from(place).ok()?));
                hosts.flat_map(|host| collection.covered(host)).collect()
            }
            // Never the last: they go on until the time is over.
            Some(()) = asking.next() => continue,
            () = tokio::time::sleep_until(until) => {
                for (ask, late) in collection.give_up() {
                    let store = manager.inner.published.borrow().store.clone();
                    say(&ask, names(&store, &late));
                }
                return;
            }
            changed = published.changed() => match changed {
                Ok(()) => {
                    let store = published.borrow_and_update().store.clone();
                    collection.look(&store)
                }
                Err(_) => return,
            },
        };
        for ask in done {
            say(&ask, Vec::new());
        }
    }
}

/// This manager (nothing), and where the others are.
fn managers(manager: &Manager) -> Vec<Option<raft::Peer>> {
    let status = manager.status();
    let others = status.voters.iter().chain(&status.learners).filter(|peer| peer.id != status.id);
    let others: BTreeMap<u64, raft::Peer> = others.map(|peer| (peer.id, peer.clone())).collect();
    std::iter::once(None).chain(others.into_values().map(Some)).collect()
}

/// Asks one manager until the time is over, again where it breaks off: its hosts may be the last that are missing.
async fn ask_one(
    manager: &Manager,
    peer: Option<raft::Peer>,
    revision: u64,
    hosts: Vec<NodeId>,
    until: Instant,
    heard: mpsc::Sender<Vec<u32>>,
) {
    let left = || until.saturating_duration_since(Instant::now());
    let Some(peer) = peer else {
        let (mut answers, watching) = manager.inner.drains.watch(revision, hosts, left());
        let telling = async {
            while let Some(places) = answers.recv().await {
                // Who asked has got all that it needs.
                let _ = heard.send(places).await;
            }
        };
        tokio::join!(watching, telling);
        return;
    };
    let node_ids: Vec<String> = hosts.iter().map(NodeId::to_string).collect();
    while !left().is_zero() {
        let wait_ms = u32::try_from(left().as_millis()).unwrap_or(u32::MAX);
        let question = pb::CoveredRequest { revision, node_ids: node_ids.clone(), wait_ms };
        match manager.client(&peer).covered(Request::new(question)).await.map(tonic::Response::into_inner) {
            Ok(mut answers) => {
                while let Ok(Some(reply)) = answers.message().await {
                    let _ = heard.send(reply.places).await;
                }
            }
            // Also one of an older release, and one that is just beginning anew and does not know the question yet: its
            // hosts may lead somebody there, and are waited for.
            Err(status) => tracing::debug!(addr = peer.addr, reason = status.message(), "a manager did not answer"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn names(store: &Store, hosts: &BTreeSet<NodeId>) -> Vec<String> {
    hosts.iter().take(NAMED).map(|host| drain::name_of(store, host)).collect()
}

/// Tells the agent. One that is slow to read, or gone, goes by its own time.
fn say(ask: &Ask, late: Vec<String>) {
    let task_ids = ask.drain.tasks.iter().map(TaskId::to_string).collect();
    if !late.is_empty() {
        tracing::warn!(tasks = ?ask.drain.tasks, ?late, "hosts were late to let go of tasks that stop");
    }
    let drained = pb::manager_message::Kind::Drained(pb::Drained { task_ids, late });
    let _ = ask.to.try_send(Ok(pb::ManagerMessage { kind: Some(drained) }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> NodeId {
        NodeId::new(id)
    }

    #[tokio::test]
    async fn hosts_are_told_of_as_their_sessions_hear_from_them() {
        let (drains, _asked) = Drains::new();
        let (a, b) = (drains.session(node("a")), drains.session(node("b")));
        a.told(7);
        a.acknowledged(7);
        let (mut answers, watching) = drains.watch(7, vec![node("b"), node("a")], Duration::from_secs(60));
        let watching = tokio::spawn(watching);
        assert_eq!(answers.recv().await, Some(vec![1]));
        // It was told of 5, and nothing up to 8 concerns it.
        b.told(5);
        b.nothing_until(8);
        b.acknowledged(5);
        assert_eq!(answers.recv().await, Some(vec![0]));
        assert_eq!(answers.recv().await, None, "nobody is missing");
        watching.await.unwrap();
    }

    #[tokio::test]
    async fn a_host_is_where_its_last_session_is() {
        let (drains, _asked) = Drains::new();
        let first = drains.session(node("a"));
        first.told(7);
        first.acknowledged(7);
        let second = drains.session(node("a"));
        // The one before hears something late, and ends.
        first.told(9);
        first.acknowledged(9);
        drop(first);
        let (mut answers, watching) = drains.watch(7, vec![node("a")], Duration::from_secs(60));
        let watching = tokio::spawn(watching);
        second.told(7);
        assert!(answers.try_recv().is_err(), "the new session has heard nothing yet");
        second.acknowledged(8);
        assert_eq!(answers.recv().await, Some(vec![0]));
        watching.await.unwrap();
        drop(second);
        let (mut answers, watching) = drains.watch(1, vec![node("a")], Duration::ZERO);
        watching.await;
        assert_eq!(answers.recv().await, None, "it is attached to another manager now");
    }

    #[tokio::test]
    async fn nobody_watches_for_those_who_hung_up() {
        let (drains, _asked) = Drains::new();
        let (answers, watching) = drains.watch(7, vec![node("a")], Duration::from_secs(3600));
        drop(answers);
        tokio::time::timeout(Duration::from_secs(30), watching).await.unwrap();
    }
}
