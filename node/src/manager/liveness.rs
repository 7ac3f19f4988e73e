//! Turns silence into Down: two independent kinds of evidence, gossip and sessions, keep a slow host from being a dead
//! one.
//! `verdict` says which evidence is enough.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deploy::control::{NodeDown, NoteNode, Op, Request};
use deploy::model::{GOSSIP_BLOCKED, Node, NodeId, NodeState};
use raft::Role;
use tokio::time::Instant;

use super::Manager;
use super::skew::{self, Said};
use super::verdict::{AGENT_SILENT, Evidence, LOOK, SILENT, verdict};
use crate::rpc::pb;

/// How often a follower tells the leader what it heard.
const REPORT: Duration = Duration::from_millis(250);
/// Managers whose last report is younger than this have left out nothing that matters: an agent that one of them hears
/// is silent for less than [`SILENT`] then.
const COMPLETE: Duration = Duration::from_millis(600);

/// When each agent was last heard from, by this manager or by one that reports to it.
#[derive(Default)]
pub(super) struct Heard {
    last: Mutex<BTreeMap<NodeId, Instant>>,
    /// When each of the other managers reported last.
    reports: Mutex<BTreeMap<NodeId, Instant>>,
    /// How far each host's clock is ahead of this one's, in milliseconds, and when that was measured.
    clocks: Mutex<BTreeMap<NodeId, (i64, Instant)>>,
    /// The leader that this clock was compared with last, by raft id, and how far this one is ahead, in milliseconds.
    leader: Mutex<Option<(u64, i64)>>,
}

impl Heard {
    /// Notes that an agent was heard from so long ago.
    pub(super) fn note(&self, node: NodeId, age: Duration) {
        let at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = last.entry(node).or_insert(at);
        *entry = (*entry).max(at);
    }

    /// Notes that a manager has reported.
    pub(super) fn note_report(&self, manager: NodeId) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).insert(manager, Instant::now());
    }

    /// Whether all of these managers have reported lately.
    fn is_complete<'a>(&self, mut managers: impl Iterator<Item = &'a str>) -> bool {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        managers.all(|manager| reports.get(&NodeId::new(manager)).is_some_and(|at| at.elapsed() < COMPLETE))
    }

    /// Notes how far a host's clock is ahead of this one's.
    pub(super) fn note_clock(&self, node: &NodeId, ahead_ms: i64) {
        let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        clocks.insert(node.clone(), (ahead_ms, Instant::now()));
    }

    /// Notes how far this clock is ahead of a leader's.
    pub(super) fn note_leader(&self, raft_id: u64, ahead_ms: i64) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = Some((raft_id, ahead_ms));
    }

    /// How far a host's clock is ahead of this one's, if that was measured lately.
    fn clock(&self, node: &NodeId) -> Option<i64> {
        let clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        clocks.get(node).filter(|(_, at)| at.elapsed() < AGENT_SILENT).map(|(ahead, _)| *ahead)
    }

    /// The largest difference that was measured lately, in whole seconds.
    fn largest_difference(&self) -> u64 {
        let clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = clocks.values().filter(|(_, at)| at.elapsed() < AGENT_SILENT);
        lately.map(|(ahead, _)| ahead.unsigned_abs() / 1000).max().unwrap_or(0)
    }

    /// Forgets hosts that are no more.
    fn retain(&self, known: impl Fn(&NodeId) -> bool) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| known(node));
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| known(node));
    }

    fn get(&self, node: &NodeId) -> Option<Instant> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied()
    }

    /// Who was heard from within that time, for the leader that has this raft id.
    fn within(&self, age: Duration, leader: u64) -> Vec<pb::HeardAgent> {
        let now = Instant::now();
        let compared = *self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        let own_ahead = compared.filter(|(raft_id, _)| *raft_id == leader).map(|(_, ahead)| ahead);
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter()
            .filter(|(_, at)| now - **at < age)
            .map(|(node, at)| pb::HeardAgent {
                node_id: node.to_string(),
                age_ms: u64::try_from((now - *at).as_millis()).unwrap_or(u64::MAX),
                ahead_ms: own_ahead.and_then(|own| self.clock(node)?.checked_add(own)),
            })
            .collect()
    }
}

/// Until when a manager knows everything that was decided: when it last was in touch with a leader that has a majority
/// (itself included), as soon as it has applied what that leader had applied then. One that has only begun, or that
/// lags, may be in touch for long before it knows anything.
pub(super) struct Contact {
    last: Mutex<Known>,
    /// A manager that was out of touch for so long knows nothing worth telling.
    limit: Duration,
}

#[derive(Default)]
struct Known {
    until: Option<Instant>,
    /// The leader had applied this entry at that time, and this manager may not have it yet.
    awaited: Option<(Instant, u64)>,
}

impl Contact {
    pub(super) fn new(limit: Duration) -> Self {
        Self { last: Mutex::default(), limit }
    }

    /// The leader, which has a majority, said now how far it has applied. Until that is reached, later words of it do
    /// not count: they would be overtaken again and again.
    fn told(&self, index: u64) {
        let mut known = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        known.awaited.get_or_insert((Instant::now(), index));
    }

    /// This manager has applied so far.
    fn reached(&self, applied: u64) {
        let mut known = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, _)) = known.awaited.take_if(|(_, index)| *index <= applied) {
            known.until = known.until.max(Some(at));
        }
    }

    fn note(&self) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).until = Some(Instant::now());
    }

    /// Whether what this manager knows is fresh enough to serve agents.
    pub(super) fn holds(&self) -> bool {
        let known = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        known.until.is_some_and(|at| at.elapsed() < self.limit)
    }
}

/// Whether this member leads and has a majority behind it.
fn leads_a_majority(status: &raft::Status, lately: Duration) -> bool {
    let heard =
        |peer: &&raft::Peer| peer.id == status.id || status.heard.get(&peer.id).is_some_and(|at| at.elapsed() < lately);
    status.role == Role::Leader && status.voters.iter().filter(heard).count() * 2 > status.voters.len()
}

/// A time in which this member leads with a majority, without a gap.
#[derive(Clone, Copy, Debug)]
struct Leading {
    term: u64,
    since: Instant,
    /// It began with the election; else with a majority that was out of touch and is back.
    elected: bool,
}

impl Leading {
    /// From when on a host's silence counts. `last_word` is when this member last heard the host as the leader before.
    ///
    /// A leader that fell silent just before the election (less than `lately`) is why there was one. One that was heard
    /// longer ago tells nothing: while nobody led, everybody may have been out of touch, and it may live like all
    /// others.
    fn silence(self, last_word: Option<Instant>, lately: Duration) -> Instant {
        let replaced = |at: &Instant| self.elected && *at < self.since && self.since - *at < lately;
        last_word.filter(replaced).unwrap_or(self.since)
    }
}

/// The leader's look, for as long as the manager lives.
pub(super) async fn run(manager: Manager) {
    // Silence counts from the start of leading: before that, other managers did the listening. Nor does it count while
    // there is no majority: those who listen cannot report then, and agents wait for a manager that can.
    let mut leads_since: Option<Leading> = None;
    // The last term that it led in.
    let mut led = 0;
    let mut seen: BTreeMap<NodeId, Instant> = BTreeMap::new();
    let mut said = Said::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let status = manager.status();
        let lately = manager.inner.timing.majority();
        if !leads_a_majority(&status, lately) {
            leads_since = None;
            seen.clear();
            manager.inner.counters.clock_difference.set(0);
            continue;
        }
        // The first entry of its own term comes after all that was decided before.
        if manager.inner.published.borrow().term == status.term {
            manager.inner.contact.note();
        }
        let leading = match leads_since {
            Some(leading) if leading.term == status.term => leading,
            _ => {
                leads_since = Some(Leading { term: status.term, since: Instant::now(), elected: led != status.term });
                led = status.term;
                said = Said::default();
                continue;
            }
        };
        let store = manager.inner.published.borrow().store.clone();
        let members = manager.inner.gossip.members();
        manager.inner.heard.retain(|node| store.node(node).is_some());
        // Gossip does not know this node itself, but its agent can fall silent like any other.
        for node in store.nodes().filter(|n| n.status.state() == NodeState::Ready) {
            let since = leading.silence(silent_leader(&manager, &status, node), lately);
            let heard = manager.inner.heard.get(&node.id).map_or(since, |at| at.max(since));
            let evidence = Evidence {
                gossip_dead: members.get(node.id.as_str()).is_some_and(|member| !member.alive),
                silent: heard.elapsed().saturating_sub(manager.inner.timing.late()),
            };
            let before = seen.insert(node.id.clone(), heard).filter(|before| *before < heard);
            if let Some(before) = before {
                manager.inner.counters.silence.observe(before.elapsed());
            }
            match verdict(evidence) {
                Some(reason) => mark_down(&manager, node, reason, heard).await,
                None => {
                    let clock = said.remark(&node.id, manager.inner.heard.clock(&node.id));
                    note_remarks(&manager, node, evidence, clock).await;
                }
            }
        }
        manager.inner.counters.clock_difference.set(manager.inner.heard.largest_difference());
    }
}

/// When this manager took the last word of its predecessor, if the node is the predecessor's. One daemon is a host's
/// manager and its agent, so a manager's silence on Raft is its agent's as well, unless one of the other managers hears
/// that; they must have said so.
fn silent_leader(manager: &Manager, status: &raft::Status, node: &Node) -> Option<Instant> {
    let (leader, at) = manager.inner.raft.last_leader()?;
    if status.member(leader)?.node_id != node.id.as_str() {
        return None;
    }
    let others = status.voters.iter().filter(|voter| voter.id != status.id && voter.id != leader);
    manager.inner.heard.is_complete(others.map(|voter| voter.node_id.as_str())).then(|| at.into())
}

/// Says of a living host what is not as it should be (its gossip does not get through, though its session does; its clock
/// is wrong), and no more once that is over. Nothing new is known of a clock that is `None`.
async fn note_remarks(manager: &Manager, node: &Node, evidence: Evidence, clock: Option<String>) {
    // A leader that has only begun has not heard from anybody yet.
    let heard = || manager.inner.heard.get(&node.id).is_some_and(|at| at.elapsed() < SILENT);
    let blocked = match evidence.gossip_dead {
        true if heard() => GOSSIP_BLOCKED,
        true => return,
        false => "",
    };
    let before = node.status.message.as_str();
    let clock = clock.unwrap_or_else(|| skew::remark_in(before).to_owned());
    let message = match (blocked, clock.as_str()) {
        ("", clock) => clock.to_owned(),
        (blocked, "") => blocked.to_owned(),
        (blocked, clock) => format!("{blocked}{}{clock}", skew::BETWEEN),
    };
    // A remark that is none of these is not taken back here.
    let ours = before.contains(GOSSIP_BLOCKED) || !skew::remark_in(before).is_empty();
    if before == message || (message.is_empty() && !ours) {
        return;
    }
    tracing::warn!(node.id = %node.id, host = node.description.hostname, message, before, "a remark on a living host");
    let op = Op::NoteNode(NoteNode { node_id: node.id.clone(), generation: node.status.generation, message });
    if let Err(error) = manager.control(Request::from(op)).await {
        tracing::debug!(node.id = %node.id, %error, "the remark could not be written");
    }
}

async fn mark_down(manager: &Manager, node: &Node, reason: &str, heard: Instant) {
    tracing::warn!(node.id = %node.id, reason, "host is Down");
    let op = Op::NodeDown(NodeDown {
        node_id: node.id.clone(),
        generation: node.status.generation,
        reason: reason.to_owned(),
    });
    match manager.control(Request::from(op)).await {
        Ok(_) => {
            manager.inner.counters.downs.add_one();
            manager.inner.counters.detection.observe(heard.elapsed());
        }
        Err(error) => tracing::warn!(node.id = %node.id, %error, "the host could not be marked Down"),
    }
}

/// A follower's reports to the leader, for as long as the manager lives.
pub(super) async fn report(manager: Manager) {
    let mut changes = manager.inner.raft.watch();
    loop {
        let status = manager.status();
        let leader = status.leader.clone().map(|leader| leader.id);
        let told = async {
            if let Some(leader) = status.leader.filter(|leader| leader.id != status.id) {
                // A report that is lost is made up for by the next one. An empty one tells at least this manager
                // something.
                let heard = manager.inner.heard.within(AGENT_SILENT, leader.id);
                if let Some(index) = manager.send_heard(&leader, heard).await {
                    manager.inner.contact.told(index);
                }
            }
            manager.inner.contact.reached(manager.inner.published.borrow().index);
            tokio::time::sleep(REPORT).await;
        };
        // A new leader is told at once, whatever the old one does.
        let new_leader = changes.wait_for(|now| now.leader.as_ref().is_some_and(|new| Some(new.id) != leader));
        tokio::select! {
            biased;
            () = told => {}
            Ok(_) = new_leader => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_knows_what_it_has_applied_and_not_what_it_was_told_of() {
        let contact = Contact::new(Duration::from_secs(60));
        contact.reached(100);
        assert!(!contact.holds(), "no leader has said anything");
        contact.told(7);
        contact.reached(6);
        assert!(!contact.holds(), "it lags");
        contact.told(9);
        contact.reached(7);
        assert!(contact.holds(), "the first word counts as soon as it is reached");
        assert!(!Contact::new(Duration::ZERO).holds());
        let late = Contact::new(Duration::ZERO);
        late.told(1);
        late.reached(1);
        assert!(!late.holds(), "what it knows is too old");
    }

    #[test]
    fn what_others_hear_is_known_only_when_all_have_said_it() {
        let heard = Heard::default();
        assert!(heard.is_complete([].into_iter()), "there is nobody to ask");
        assert!(!heard.is_complete(["b", "c"].into_iter()));
        heard.note_report(NodeId::new("b"));
        assert!(!heard.is_complete(["b", "c"].into_iter()));
        heard.note_report(NodeId::new("c"));
        assert!(heard.is_complete(["b", "c"].into_iter()));
    }

    const LATELY: Duration = Duration::from_secs(2);

    fn leading(elected: bool) -> Leading {
        Leading { term: 7, since: Instant::now() + Duration::from_secs(60), elected }
    }

    #[test]
    fn silence_of_the_leader_before_counts_from_its_last_word() {
        let leading = leading(true);
        let word = leading.since - Duration::from_millis(800);
        assert_eq!(leading.silence(Some(word), LATELY), word);
        assert_eq!(leading.silence(None, LATELY), leading.since);
    }

    /// A whole network that stood still for 5 s: who led before it lives as much as all the others.
    #[test]
    fn an_old_word_of_an_earlier_leader_is_no_silence() {
        let leading = leading(true);
        assert_eq!(leading.silence(Some(leading.since - Duration::from_secs(5)), LATELY), leading.since);
        assert_eq!(leading.silence(Some(leading.since + Duration::from_secs(1)), LATELY), leading.since);
    }

    /// The same member leads on when its majority is back: that is no loss of a leader before it.
    #[test]
    fn a_majority_that_is_back_starts_everybodys_silence_anew() {
        let leading = leading(false);
        assert_eq!(leading.silence(Some(leading.since - Duration::from_millis(800)), LATELY), leading.since);
    }
}
