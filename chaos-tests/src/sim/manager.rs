//! Managers: each applies the log to its store; the leader takes its turns (`deploy::turn`) on a speculative one, as
//! `node`'s leader task does.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use deploy::control::{self, Op};
use deploy::dispatcher::Parts;
use deploy::model::{NodeState, Timestamp};
use deploy::store::{Entry, Store};
use deploy::turn::{self, Passes};

use super::rng::Rng;
use super::world::{Command, Decided, Event, Outcome, Waiter, World, short};
use crate::check::{Applied, Fact};

/// Fewer than the real one, so that the limit is met.
const IN_FLIGHT: usize = 16;
/// Pause before a request looks for the leader again.
const RETRY_MS: u64 = 25;
/// Session silence that confirms what gossip says, and what is enough by itself.
const SILENT: Duration = Duration::from_millis(1000);
const AGENT_SILENT: Duration = Duration::from_secs(15);
const LOOK_MS: u64 = 250;

pub(super) struct Manager {
    pub(super) up: bool,
    /// Entries of the log that it applied.
    pub(super) applied: usize,
    /// Term of the last one.
    pub(super) term: u64,
    pub(super) store: Store,
    /// What its sessions share.
    pub(super) parts: Parts,
    pub(super) leading: Option<Leading>,
    /// Requests that wait until there is room for another entry.
    backlog: VecDeque<Command>,
    /// Answered when the entry at that place is applied.
    waiting: BTreeMap<usize, Vec<(Waiter, Decided)>>,
    /// Nobody will ever say what became of them.
    lost: Vec<(Waiter, Decided)>,
    in_flight: usize,
    wake: u64,
    apply_scheduled: bool,
    /// Its clock goes this much before the true one.
    fast_by: Duration,
    /// How far it is behind the log, usually.
    lag_ms: u64,
}

/// What exists only while it leads, or believes so.
pub(super) struct Leading {
    term: u64,
    speculative: Store,
    passes: Passes,
    stale: bool,
    since: Timestamp,
}

impl Manager {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self {
            up: true,
            applied: 0,
            term: 0,
            store: Store::default(),
            parts: Parts::default(),
            leading: None,
            backlog: VecDeque::new(),
            waiting: BTreeMap::new(),
            lost: Vec::new(),
            in_flight: 0,
            wake: 0,
            apply_scheduled: false,
            fast_by: Duration::from_millis(rng.range(0, 3000)),
            lag_ms: rng.range(1, 60),
        }
    }

    /// Its clock goes forward.
    pub(super) fn leap(&mut self, time: Duration) {
        self.fast_by += time;
    }

    /// What it had in memory is gone; returns those who will not hear from it.
    fn forget(&mut self) -> Vec<Waiter> {
        self.leading = None;
        self.in_flight = 0;
        self.wake += 1;
        let backlog = self.backlog.drain(..).map(|command| command.waiter);
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten().map(|(waiter, _)| waiter);
        backlog.chain(waiting).chain(self.lost.drain(..).map(|(waiter, _)| waiter)).collect()
    }
}

impl World {
    /// A manager becomes the leader: it has everything that is committed, and the first of what was on its way.
    pub(super) fn elect(&mut self, manager: usize) {
        self.depose();
        let survivors = self.rng.range(0, self.log.pending.len() as u64 + 1);
        self.log.change_leader(manager, usize::try_from(survivors).unwrap_or(0));
        self.log.round += 1;
        self.summary.elections += 1;
        let term = self.log.term;
        self.note(|| format!("manager {manager} leads in term {term}; {survivors} entries survive"));
        // What it did in an earlier term it does not do any more.
        let waiters = self.managers[manager].forget();
        self.answer_all(waiters, &Outcome::Unknown);
        self.propose(manager, None, Vec::new());
        for manager in 0..self.managers.len() {
            self.schedule_apply(manager);
        }
    }

    /// The leader leads no more, whether it knows or not.
    fn depose(&mut self) {
        let Some(old) = self.log.leader.take() else { return };
        let term = self.log.term;
        for proposal in &mut self.log.pending {
            self.managers[old].lost.append(&mut proposal.waiters);
        }
        let unaware = self.rng.range(0, 800);
        self.after_ms(unaware, Event::StepDown { manager: old, term });
    }

    /// The leader is lost, and another one is found after a while.
    pub(super) fn change_leader(&mut self) {
        self.depose();
        self.log.round += 1;
        let (round, delay) = (self.log.round, self.rng.range(50, 1500));
        self.after_ms(delay, Event::Elect { round });
    }

    pub(super) fn step_down(&mut self, manager: usize, term: u64) {
        if self.log.leader == Some(manager) && self.log.term > term {
            return;
        }
        let waiters = self.managers[manager].forget();
        self.answer_all(waiters, &Outcome::Unknown);
    }

    pub(super) fn crash_manager(&mut self, manager: usize) {
        self.note(|| format!("manager {manager} crashes"));
        self.managers[manager].up = false;
        if self.log.leader == Some(manager) {
            self.change_leader();
        }
        let waiters = self.managers[manager].forget();
        self.answer_all(waiters, &Outcome::Unknown);
        let sessions: Vec<u64> =
            self.sessions.iter().filter(|(_, s)| s.manager == manager).map(|(id, _)| *id).collect();
        for session in sessions {
            let delay = self.rng.range(0, 2000);
            self.sever(session, delay);
        }
    }

    /// It comes back with its store as it was, or with a snapshot of one that is further.
    pub(super) fn manager_returns(&mut self, manager: usize) {
        if self.managers[manager].up {
            return;
        }
        let furthest = (0..self.managers.len()).max_by_key(|m| self.managers[*m].applied).unwrap_or(manager);
        let source = if self.rng.percent(50) { furthest } else { manager };
        let (bytes, applied, term) = {
            let from = &self.managers[source];
            (from.store.encode_snapshot(), from.applied, from.term)
        };
        self.note(|| format!("manager {manager} returns with index {applied}"));
        let store = Store::decode_snapshot(&bytes).expect("a snapshot is readable");
        self.fact(&Fact::Restored { manager, index: applied as u64, store: &store });
        let this = &mut self.managers[manager];
        (this.up, this.store, this.applied, this.term, this.apply_scheduled) = (true, store, applied, term, false);
        this.parts = Parts::default();
        self.schedule_apply(manager);
        if self.log.leader.is_none() {
            self.change_leader();
        }
    }

    fn propose(&mut self, manager: usize, bytes: Option<Vec<u8>>, waiters: Vec<(Waiter, Decided)>) {
        let proposal = self.log.propose(self.log.term, bytes.map(Into::into), waiters);
        self.managers[manager].in_flight += 1;
        let delay =
            Duration::from_millis(if self.rng.percent(5) { self.rng.range(30, 400) } else { self.rng.range(1, 15) });
        self.log.last_due = self.log.last_due.max(self.now.plus(delay));
        self.at(self.log.last_due, Event::Commit { proposal });
    }

    pub(super) fn commit(&mut self, proposal: u64) {
        // While nobody leads, nothing is committed; the next leader decides what becomes of it.
        let Some(leader) = self.log.leader else { return };
        let Some(proposal) = self.log.commit(proposal) else { return };
        self.managers[leader].waiting.insert(self.log.committed.len(), proposal.waiters);
        for manager in 0..self.managers.len() {
            self.schedule_apply(manager);
        }
    }

    fn schedule_apply(&mut self, manager: usize) {
        let this = &mut self.managers[manager];
        if !this.up || this.apply_scheduled || this.applied >= self.log.committed.len() {
            return;
        }
        this.apply_scheduled = true;
        let most = if self.log.leader == Some(manager) { 3 } else { self.managers[manager].lag_ms };
        let lag = if self.rng.percent(2) { self.rng.range(0, 1000) } else { self.rng.range(0, most) };
        self.after_ms(lag, Event::Apply { manager });
    }

    pub(super) fn apply(&mut self, manager: usize) {
        let this = &mut self.managers[manager];
        if !this.up || !this.apply_scheduled {
            return;
        }
        this.apply_scheduled = false;
        let Some(logged) = self.log.committed.get(this.applied).cloned() else { return };
        let before = this.store.clone();
        let mut accepted = true;
        let mut keys = Vec::new();
        if let Some(bytes) = &logged.bytes {
            let entry = Entry::from_bytes(bytes).expect("an entry is readable");
            match this.store.apply(logged.term, &entry) {
                Ok(applied) => keys = applied.keys,
                Err(_) => accepted = false,
            }
        }
        this.applied += 1;
        this.term = logged.term;
        let (index, after) = (this.applied as u64, this.store.clone());
        let first = index > self.applied;
        self.applied = self.applied.max(index);
        if first && logged.bytes.is_some() {
            self.summary.entries += 1;
        }
        if !accepted {
            self.summary.refused += 1;
            self.note(|| format!("manager {manager} refuses entry {index}"));
        }
        let fact = Applied {
            manager,
            index,
            entry: logged.fingerprint,
            accepted,
            first,
            merged: false,
            before: &before,
            after: &after,
            keys: &keys,
        };
        self.fact(&Fact::Applied(fact));
        self.landed(manager, index, logged.fingerprint, accepted);
        self.published(manager);
        self.schedule_apply(manager);
        self.pump(manager);
    }

    /// Those who wait for the entry are answered.
    fn landed(&mut self, manager: usize, index: u64, entry: u64, accepted: bool) {
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(waiters) = self.managers[manager].waiting.remove(&place) else { return };
        let this = &mut self.managers[manager];
        this.in_flight = this.in_flight.saturating_sub(1);
        if !accepted {
            this.leading.iter_mut().for_each(|leading| leading.stale = true);
        }
        for (waiter, decided) in waiters {
            if accepted && decided.is_ok() && waiter != Waiter::Nobody {
                self.fact(&Fact::Acknowledged { index, entry });
            }
            // (A refused entry changed nothing: as good as never sent. The caller tries again.)
            let outcome = if accepted { outcome(decided, index) } else { Outcome::NoLeader };
            self.answer(waiter, outcome);
        }
    }

    /// Begins to lead when everything of earlier terms is applied, and carries out what waits.
    fn pump(&mut self, manager: usize) {
        let this = &mut self.managers[manager];
        if !this.up {
            return;
        }
        if this.leading.as_ref().is_some_and(|leading| leading.stale && this.in_flight == 0) {
            this.leading = None;
        }
        let leads = self.log.leader == Some(manager);
        let drained = this.in_flight == 0;
        if leads
            && this.leading.is_none()
            && drained
            && this.applied == self.log.committed.len()
            && this.term == self.log.term
        {
            let (term, speculative) = (self.log.term, this.store.clone());
            this.leading =
                Some(Leading { term, speculative, passes: Passes::default(), stale: false, since: self.now });
            self.turn(manager, None);
        }
        while let Some(command) = self.next_command(manager) {
            self.turn(manager, Some(command));
        }
    }

    fn next_command(&mut self, manager: usize) -> Option<Command> {
        let this = &mut self.managers[manager];
        let ready = this.leading.as_ref().is_some_and(|leading| !leading.stale) && this.in_flight < IN_FLIGHT;
        if ready { this.backlog.pop_front() } else { None }
    }

    pub(super) fn wake(&mut self, manager: usize, token: u64) {
        let this = &self.managers[manager];
        if this.wake != token || this.leading.as_ref().is_none_or(|leading| leading.stale) {
            return;
        }
        if this.in_flight >= IN_FLIGHT {
            self.after_ms(5, Event::Wake { manager, token });
            return;
        }
        self.turn(manager, None);
    }

    /// A request looks for the leader, and finds one who is, who was, or none.
    pub(super) fn arrive(&mut self, command: Command) {
        let unaware = (0..self.managers.len())
            .find(|m| self.managers[*m].leading.is_some() && self.log.leader != Some(*m))
            .filter(|_| self.rng.percent(30));
        let target =
            unaware.or(self.log.leader).filter(|m| self.managers[*m].up && self.managers[*m].leading.is_some());
        match target {
            Some(manager) => {
                self.managers[manager].backlog.push_back(command);
                self.pump(manager);
            }
            None if self.now < command.deadline => self.after_ms(RETRY_MS, Event::Arrive(Box::new(command))),
            None => self.answer(command.waiter, Outcome::NoLeader),
        }
    }

    /// One transaction: the request, if there is one, and the brain's pass, as one entry.
    fn turn(&mut self, manager: usize, command: Option<Command>) {
        let this = &self.managers[manager];
        let Some(leading) = this.leading.as_ref() else { return };
        let now = self.now.plus(this.fast_by).max(leading.speculative.now());
        let term = leading.term;
        let (request, waiter) = match command {
            Some(command) => (Some(command.request), command.waiter),
            None => (None, Waiter::Nobody),
        };
        let scope = leading.passes.scope(now, request.is_some());
        let rng = &mut self.rng;
        let (txn, decided) = turn::decide(&leading.speculative, now, &mut || rng.id(), request.as_ref(), scope);
        let passes = leading.passes.after(now, scope, txn.next_wake());
        let entry = txn.finish(term);
        let this = &mut self.managers[manager];
        this.wake += 1;
        let token = this.wake;
        if let Some(leading) = this.leading.as_mut() {
            leading.passes = passes;
            if entry.is_some() {
                leading.speculative = txn.into_store();
            }
        }
        self.at(self.now.plus(passes.due().since(now)), Event::Wake { manager, token });
        let Some(entry) = entry else {
            return self.nothing_to_write(manager, waiter, decided);
        };
        if self.log.leader == Some(manager) && self.log.term == term {
            self.propose(manager, Some(entry.to_bytes()), vec![(waiter, decided)]);
        } else {
            // It was deposed and does not know yet: nobody will store this.
            let this = &mut self.managers[manager];
            this.in_flight += 1;
            this.lost.push((waiter, decided));
        }
    }

    /// What was asked for is already so, on the speculative store, or is refused by what that says: which is true when what
    /// is in flight is committed.
    fn nothing_to_write(&mut self, manager: usize, waiter: Waiter, decided: Decided) {
        let index = self.managers[manager].applied as u64;
        let own = self.log.leader == Some(manager);
        if waiter == Waiter::Nobody {
            return;
        }
        let this = &mut self.managers[manager];
        if !this.lost.is_empty() {
            this.lost.push((waiter, decided));
        } else if own && let Some(last) = self.log.pending.back_mut() {
            last.waiters.push((waiter, decided));
        } else if let Some(mut last) = this.waiting.last_entry() {
            last.get_mut().push((waiter, decided));
        } else {
            self.answer(waiter, outcome(decided, index));
        }
    }

    fn answer_all(&mut self, waiters: Vec<Waiter>, outcome: &Outcome) {
        for waiter in waiters {
            self.answer(waiter, outcome.clone());
        }
    }

    pub(super) fn answer(&mut self, waiter: Waiter, outcome: Outcome) {
        if waiter == Waiter::Nobody {
            return;
        }
        // An answer may be lost on its way.
        let outcome = if self.stormy && self.rng.percent(2) { Outcome::Unknown } else { outcome };
        let delay = self.rng.range(1, 20);
        self.after_ms(delay, Event::Answered { waiter, outcome });
    }

    /// The leader's look at who is silent; and every manager's at who was called Down and still talks.
    pub(super) fn look(&mut self) {
        self.after_ms(LOOK_MS, Event::Look);
        for session in self.sessions.values().filter(|s| s.open && !s.severed && !s.left) {
            self.heard.insert(session.host.clone(), self.now);
        }
        self.return_to_ready();
        self.check_displaced();
        let Some(manager) = self.log.leader else { return };
        let Some(leading) = &self.managers[manager].leading else { return };
        let since = leading.since;
        let mut down = Vec::new();
        for node in self.managers[manager].store.nodes().filter(|n| n.status.state() == NodeState::Ready) {
            let heard = self.heard.get(&node.id).map_or(since, |at| since.max(*at));
            let dead = self.hosts.get(&node.id).is_none_or(|host| !host.daemon || host.cut && host.gossip_cut);
            let silent = self.now.since(heard);
            if dead && silent >= SILENT || silent >= AGENT_SILENT {
                down.push((node.id.clone(), node.status.generation));
            }
        }
        for (node_id, generation) in down {
            self.note(|| format!("host {} is silent", short(&node_id)));
            let reason = "host is not reachable".to_owned();
            self.request(Op::NodeDown(control::NodeDown { node_id, generation, reason }), Waiter::Nobody);
        }
    }

    fn return_to_ready(&mut self) {
        let mut back = Vec::new();
        for session in self.sessions.values().filter(|s| s.open && !s.severed && !s.left) {
            let store = &self.managers[session.manager].store;
            if store.node(&session.host).is_some_and(|n| n.status.state() != NodeState::Ready) {
                back.push((session.host.clone(), session.generation));
            }
        }
        for (host, generation) in back {
            let Some(op) = self.hosts.get(&host).map(|h| h.session_op(generation)) else { continue };
            self.request(op, Waiter::Nobody);
        }
    }

    /// The store of any manager that is up, which may lag.
    pub(super) fn some_store(&mut self) -> Store {
        let up: Vec<usize> = (0..self.managers.len()).filter(|m| self.managers[*m].up).collect();
        let manager = self.rng.pick(&up).copied().unwrap_or(0);
        self.managers[manager].store.clone()
    }

    /// The store of the manager that is furthest.
    pub(super) fn newest_store(&self) -> Store {
        self.managers.iter().max_by_key(|m| m.applied).map(|m| m.store.clone()).unwrap_or_default()
    }
}

fn outcome(decided: Decided, index: u64) -> Outcome {
    match decided {
        Ok(reply) => Outcome::Done(reply, index),
        Err(error) => Outcome::Refused(error),
    }
}
