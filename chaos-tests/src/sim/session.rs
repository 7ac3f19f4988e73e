//! Agents' lines to managers: in order while they last, but they break, and what was under way is then lost or comes
//! late, even after the next line is open.
//!
//! A manager does not notice at once that its agent has gone to another line, which may be one of its own: it serves the
//! old one for a while. And a session that has looked at the store may be overtaken by another one before it has worked out
//! what to tell, as on a machine with more than one core.

use std::collections::BTreeSet;
use std::time::Duration;

use deploy::agent::Place;
use deploy::control::{Op, ReportStatuses};
use deploy::dispatcher::drain::Cover;
use deploy::dispatcher::{self, AssignmentSet, HostSet, Stamp, Update};
use deploy::lifecycle;
use deploy::model::{NodeId, TaskId, Timestamp};
use deploy::store::{Key, Store};

use super::world::{Down, Event, Outcome, Up, Waiter, World, short};
use crate::check::{Fact, Violation};

/// Changes are gathered for so long before a difference is computed.
const GATHER_MS: u64 = 5;
/// An agent that hears nothing for so long looks for another manager.
const SILENCE_MS: u64 = 2000;
/// A session must open within this time.
const OPEN_MS: u64 = 5000;
/// Pause after a manager was tried in vain.
const PAUSE_MS: u64 = 200;
/// A manager serves a line that its agent has left for so long at the most.
const LINGER_MS: u64 = 4000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The agent has asked for it.
    Opens,
    /// The agent knows that it is open.
    Talks,
}

pub(super) struct Session {
    pub(super) host: NodeId,
    pub(super) manager: usize,
    pub(super) generation: u64,
    pub(super) phase: Phase,
    /// The manager has let it in and serves it.
    pub(super) open: bool,
    /// Nothing comes through any more; neither side may know yet.
    pub(super) severed: bool,
    /// The agent has gone to another one.
    pub(super) left: bool,
    /// Index that the manager must have applied before it serves it.
    waits_for: Option<u64>,
    sent: Option<(Stamp, Store, HostSet)>,
    /// What the agent holds if it has taken everything that was sent.
    told: AssignmentSet,
    /// What it looked at, and has not worked out yet: the term, and the store.
    looked_at: Option<(u64, Store)>,
    /// How far the host is, as the manager knows.
    pub(super) cover: Cover,
    /// Tasks of the host that the manager knows to drain.
    pub(super) draining: BTreeSet<TaskId>,
    flushing: bool,
    down_until: Timestamp,
    up_until: Timestamp,
}

impl World {
    /// An agent without a session tries a manager.
    pub(super) fn connect(&mut self, id: &NodeId, boot: u64) {
        let standing: Vec<usize> = (0..self.managers.len()).filter(|m| self.managers[*m].up).collect();
        let manager = self.rng.pick(&standing).copied();
        let Some(host) = self.hosts.get(id) else { return };
        if host.boot != boot || !host.daemon || host.session.is_some() || host.removed {
            return;
        }
        let Some(manager) = manager.filter(|_| !host.cut) else {
            return self.connect_later(id);
        };
        if lists_as_removed(&self.managers[manager].store, id) {
            return self.removed(id);
        }
        let op = host.session_op(boot);
        self.next_session += 1;
        let number = self.next_session;
        let session = Session {
            host: id.clone(),
            manager,
            generation: boot,
            phase: Phase::Opens,
            open: false,
            severed: false,
            left: false,
            waits_for: None,
            sent: None,
            told: AssignmentSet::default(),
            looked_at: None,
            cover: Cover::default(),
            draining: BTreeSet::new(),
            flushing: false,
            down_until: self.now,
            up_until: self.now,
        };
        self.sessions.insert(number, session);
        if let Some(host) = self.hosts.get_mut(id) {
            host.session = Some(number);
        }
        self.request(op, Waiter::Open(number));
        self.after_ms(OPEN_MS, Event::Silence { session: number | OPENING });
    }

    fn connect_later(&mut self, id: &NodeId) {
        let delay = PAUSE_MS + self.rng.range(0, 200);
        self.connect_after(id, delay);
    }

    fn connect_after(&mut self, id: &NodeId, delay_ms: u64) {
        let Some(boot) = self.hosts.get(id).map(|host| host.boot) else { return };
        self.after_ms(delay_ms, Event::Connect { host: id.clone(), boot });
    }

    /// The cluster has taken note of the session, or has not.
    pub(super) fn session_registered(&mut self, number: u64, outcome: Outcome) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        match outcome {
            Outcome::Done(_, index) => {
                session.waits_for = Some(index);
                self.serve(number);
            }
            Outcome::Refused(_) | Outcome::NoLeader | Outcome::Unknown => self.send_down(number, Down::Refused),
        }
    }

    /// The manager serves the session once it has applied the entry that began it.
    fn serve(&mut self, number: u64) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let applied = self.managers[session.manager].applied as u64;
        if session.waits_for.is_some_and(|index| applied >= index) {
            session.waits_for = None;
            session.open = true;
            self.send_down(number, Down::Opened);
            self.flush(number);
        }
    }

    /// A manager's store has changed: its sessions will look.
    pub(super) fn published(&mut self, manager: usize) {
        let mut waiting = Vec::new();
        let mut due = Vec::new();
        for (number, session) in self.sessions.iter_mut().filter(|(_, s)| s.manager == manager) {
            if session.waits_for.is_some() {
                waiting.push(*number);
            } else if session.open && !session.flushing {
                session.flushing = true;
                due.push(*number);
            }
        }
        for session in due {
            self.after_ms(GATHER_MS, Event::Flush { session });
        }
        for session in waiting {
            self.serve(session);
        }
        self.excuse(manager);
    }

    /// Looks what the manager's store says now, and tells the agent: at once, or when others have looked at newer ones.
    pub(super) fn flush(&mut self, number: u64) {
        let overtaken = self.stormy && self.rng.percent(25);
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let manager = &self.managers[session.manager];
        session.looked_at = Some((manager.term, manager.store.clone()));
        match overtaken {
            true => {
                let delay = self.rng.range(1, 30);
                self.after_ms(delay, Event::Tell { session: number });
            }
            false => self.tell(number),
        }
    }

    /// Sends what the agent must be told so that it knows what was looked at, and looks again if there is more by now.
    pub(super) fn tell(&mut self, number: u64) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        session.flushing = false;
        let Some((term, store)) = session.looked_at.take() else { return };
        let manager = &mut self.managers[session.manager];
        if !session.open || session.severed || !manager.up {
            return;
        }
        if manager.store.revision() > store.revision() {
            session.flushing = true;
            self.after_ms(GATHER_MS, Event::Flush { session: number });
        }
        self.send_difference(number, term, &store);
    }

    fn send_difference(&mut self, number: u64, term: u64, store: &Store) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let Some(cluster) = store.cluster() else { return };
        if lists_as_removed(store, &session.host) {
            session.open = false;
            return self.send_down(number, Down::Removed);
        }
        // A node that this manager does not know otherwise may be one that joined through another.
        let Some(node) = store.node(&session.host) else { return };
        if node.status.generation > session.generation {
            return self.close(number);
        }
        let stamp = Stamp { incarnation: cluster.status.incarnation, term, revision: store.revision() };
        let wanted = dispatcher::assignment(store, &session.host);
        if let Some((_, then, _)) = &mut session.sent {
            let changed = then.changed(store);
            let ours = changed.contains(&Key::Cluster)
                || changed.contains(&Key::Node(session.host.clone()))
                || dispatcher::affects(then, store, &changed, &session.host);
            if !ours {
                *then = store.clone();
                session.cover.nothing_until(stamp.revision);
                let right = session.told == wanted;
                return if right { self.ask_managers() } else { self.wrongly_told(number, stamp, &wanted) };
            }
        }
        let before = session.sent.as_ref().map(|(_, store, set)| (store, set));
        let parts = &mut self.managers[session.manager].parts;
        let set = match parts.shared(store, &session.host) {
            Some(shared) => HostSet::new(store, &session.host, shared, before),
            None => HostSet::alone(store, &session.host),
        };
        let right = AssignmentSet::new(set.items().cloned()) == wanted;
        let update = match session.sent.take() {
            Some((base, _, sent)) => {
                let delta = parts.difference(&sent, &set);
                if delta.is_empty() && right && session.told == wanted {
                    session.sent = Some((base, store.clone(), set));
                    session.cover.nothing_until(stamp.revision);
                    return self.ask_managers();
                }
                Update { stamp, base: Some(base), delta }
            }
            None => set.to_update(stamp),
        };
        session.sent = Some((stamp, store.clone(), set));
        session.cover.told(stamp.revision);
        let update = Update::from_bytes(&update.to_bytes()).expect("an update is readable");
        match update.base {
            None => session.told = AssignmentSet::new(update.delta.put.clone()),
            Some(_) => session.told.apply(update.delta.clone()),
        }
        if !right || session.told != wanted {
            return self.wrongly_told(number, stamp, &wanted);
        }
        self.send_down(number, Down::Assignments(update));
        self.ask_for_drains(number, store);
    }

    /// What an agent is told is not what its manager's store says.
    fn wrongly_told(&mut self, number: u64, stamp: Stamp, wanted: &AssignmentSet) {
        let Some(session) = self.sessions.get(&number) else { return };
        let delta = session.told.diff(wanted);
        let what = format!("{} at {stamp:?} lacks {:?} and has {:?}", short(&session.host), delta.put, delta.remove);
        self.violation = Some(Violation { property: "a host is told what the store says", what });
    }

    pub(super) fn send_down(&mut self, number: u64, message: Down) {
        let delay = self.latency();
        let Some(session) = self.sessions.get_mut(&number) else { return };
        session.down_until = session.down_until.max(self.now.plus(delay));
        let (at, host, boot) = (session.down_until, session.host.clone(), session.generation);
        self.at(at, Event::ToAgent { session: number, host, boot, message });
    }

    pub(super) fn send_up(&mut self, number: u64, message: Up) {
        let delay = self.latency();
        let Some(session) = self.sessions.get_mut(&number) else { return };
        session.up_until = session.up_until.max(self.now.plus(delay));
        let at = session.up_until;
        self.at(at, Event::ToManager { session: number, message });
    }

    fn latency(&mut self) -> Duration {
        let slow = self.stormy && self.rng.percent(3);
        Duration::from_millis(if slow { self.rng.range(50, 900) } else { self.rng.range(1, 10) })
    }

    /// A message reaches the agent, or what has become of it.
    pub(super) fn agent_hears(&mut self, number: u64, id: &NodeId, boot: u64, message: Down) {
        let (now, stormy) = (self.now, self.stormy);
        let late = stormy && self.rng.percent(30);
        let Some(host) = self.hosts.get_mut(id).filter(|h| h.boot == boot && h.daemon && !h.removed) else { return };
        let current = host.session == Some(number);
        let severed = self.sessions.get(&number).is_none_or(|session| session.severed);
        match message {
            Down::Assignments(update) if current && !severed || late => {
                let stamp = update.stamp;
                match host.agent.update(update, now) {
                    Ok(taken) => {
                        self.fact(&Fact::TookSet { host: id, stamp });
                        assert_eq!(taken.adopted, [], "every container is remembered");
                        self.carry_out(id, taken.steps);
                        let session = self.hosts.get(id).and_then(|host| host.session);
                        if let Some(session) = session {
                            self.send_up(session, Up::Applied(stamp.revision));
                        }
                    }
                    Err(why) => {
                        self.summary.refused_sets += 1;
                        self.note(|| format!("{} refuses {stamp:?}: {why:?}", short(id)));
                        if current {
                            self.close(number);
                        }
                    }
                }
            }
            _ if !current || severed => {}
            Down::Opened => {
                if let Some(session) = self.sessions.get_mut(&number) {
                    session.phase = Phase::Talks;
                }
                let steps = host.agent.connected(true, now);
                self.carry_out(id, steps);
            }
            Down::Committed(sequence) => {
                host.agent.reports_committed(sequence);
                self.carry_out(id, Vec::new());
            }
            Down::Drained { tasks, late } => {
                for task in tasks {
                    self.task_event(id, boot, &task, lifecycle::Event::Drained { late: late.clone() });
                }
            }
            Down::Refused => self.close(number),
            Down::Removed => {
                self.close(number);
                self.removed(id);
            }
            Down::Assignments(_) => {}
        }
    }

    /// The cluster has removed this host: it stops everything, and no session will open again.
    fn removed(&mut self, id: &NodeId) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id) else { return };
        host.removed = true;
        host.plain.values_mut().for_each(|plain| plain.place = Place::Unused);
        let steps = host.agent.withdraw_all(now);
        self.note(|| format!("{} learns that it was removed", short(id)));
        self.end_all_plain(id);
        self.carry_out(id, steps);
    }

    pub(super) fn manager_hears(&mut self, number: u64, message: Up) {
        let Some(session) = self.sessions.get_mut(&number).filter(|s| s.open && !s.severed) else { return };
        let (sequence, reports) = match message {
            Up::Statuses { sequence, reports } => (sequence, reports),
            Up::Applied(revision) => {
                session.cover.acknowledged(revision);
                return self.ask_managers();
            }
        };
        let (node_id, generation) = (session.host.clone(), session.generation);
        let op = Op::ReportStatuses(ReportStatuses { node_id, generation, reports });
        self.request(op, Waiter::Statuses { session: number, sequence });
    }

    pub(super) fn statuses_answered(&mut self, number: u64, sequence: u64, outcome: Outcome) {
        match outcome {
            Outcome::Done(..) => self.send_down(number, Down::Committed(sequence)),
            // The manager ends the session; the agent begins another one and reports again.
            _ => self.close(number),
        }
    }

    /// Nothing comes through any more; the agent notices after a while.
    pub(super) fn sever(&mut self, number: u64, notice_ms: u64) {
        if let Some(session) = self.sessions.get_mut(&number)
            && !session.severed
        {
            session.severed = true;
            self.after_ms(notice_ms.min(SILENCE_MS), Event::Silence { session: number });
        }
    }

    /// The agent goes to another manager, or to the same one again, while its line is all right.
    pub(super) fn change_sessions(&mut self, id: &NodeId) {
        let Some(host) = self.hosts.get(id) else { return };
        let Some(number) = host.session.filter(|_| self.is_attached(id)) else { return };
        self.note(|| format!("{} leaves its line", short(id)));
        self.leave(number, 1);
    }

    /// The session is over, and the agent knows; the manager may not know yet.
    pub(super) fn close(&mut self, number: u64) {
        let opening = number & OPENING != 0;
        let number = number & !OPENING;
        if opening && self.sessions.get(&number).is_none_or(|session| session.phase == Phase::Talks) {
            return;
        }
        let pause = PAUSE_MS + self.rng.range(0, 200);
        self.leave(number, pause);
    }

    /// The agent has no more to do with the session, and looks for another one after a while.
    fn leave(&mut self, number: u64, pause_ms: u64) {
        let now = self.now;
        let Some((id, talked)) = self.sessions.get(&number).map(|s| (s.host.clone(), s.phase == Phase::Talks)) else {
            return;
        };
        self.abandon(number);
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.session == Some(number)) else { return };
        host.session = None;
        let steps = if talked { host.agent.connected(false, now) } else { Vec::new() };
        self.carry_out(&id, steps);
        self.connect_after(&id, pause_ms);
    }

    /// Nobody is at the agent's end of a session any more; the manager's end goes on until that is noticed there.
    pub(super) fn abandon(&mut self, number: u64) {
        let lingers = self.stormy && self.rng.percent(60);
        let Some(session) = self.sessions.get_mut(&number) else { return };
        if session.left || !lingers {
            self.sessions.remove(&number);
            return;
        }
        session.left = true;
        let delay = self.rng.range(1, LINGER_MS);
        self.after_ms(delay, Event::Silence { session: number });
    }
}

/// As `node::manager::sessions` says it: a node that a store only lacks may be one that it has not heard of yet.
fn lists_as_removed(store: &Store, id: &NodeId) -> bool {
    store.cluster().is_some_and(|cluster| cluster.status.removed_nodes.iter().any(|removed| removed.id == *id))
}

/// Marks the number of a session whose agent stops waiting only if it has not opened.
const OPENING: u64 = 1 << 63;
