//! What goes wrong: hosts, daemons, managers, lines, the leader; one at a time, at random, while the storm lasts.

use std::time::Duration;

use deploy::model::{NodeId, NodeState};

use super::world::{Event, World, short};

/// More than lost hosts are waited for.
const DAY: Duration = Duration::from_secs(25 * 3600);

impl World {
    pub(super) fn fault_strikes(&mut self) {
        if !self.stormy {
            return;
        }
        let pause = self.rng.range(100, 4000);
        self.after_ms(pause, Event::FaultStrikes);
        let hosts: Vec<NodeId> = self.hosts.keys().cloned().collect();
        let Some(host) = self.rng.pick(&hosts).cloned() else { return };
        self.summary.faults += 1;
        let (short_time, long_time) = (self.rng.range(20, 1500), self.rng.range(500, 25_000));
        let time = if self.rng.percent(50) { short_time } else { long_time };
        match self.rng.range(0, 100) {
            0..10 => self.crash_host(&host, time),
            10..25 => self.kill_daemon(&host, time),
            25..40 => self.cut(&host, time),
            40..50 => self.reset(&host),
            50..60 => self.change_sessions(&host),
            60..80 => {
                self.note(|| "the leader is lost".to_owned());
                self.change_leader();
            }
            80..90 => {
                let manager = usize::try_from(self.rng.range(0, self.managers.len() as u64)).unwrap_or(0);
                // A minority at most: with two of three down, nothing is ever committed.
                if self.managers.iter().all(|m| m.up) {
                    self.crash_manager(manager);
                    self.after_ms(time, Event::ManagerReturns { manager });
                }
            }
            98..100 => self.leap(),
            _ => {
                let slow = self.rng.range(1, 30);
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.slow = slow;
                }
            }
        }
    }

    /// More than a day passes for the cluster while hosts are away, whose tasks it gives up then. Not while somebody has to
    /// learn yet that it was removed: the list of those does not last for ever.
    fn leap(&mut self) {
        let store = self.newest_store();
        let away = store.nodes().any(|node| node.status.state() == NodeState::Down);
        if away && self.hosts.keys().all(|id| store.node(id).is_some()) {
            self.note(|| "a day passes".to_owned());
            self.managers.iter_mut().for_each(|manager| manager.leap(DAY));
        }
    }

    /// No manager can reach the host, nor it them, for a while.
    fn cut(&mut self, id: &NodeId, time_ms: u64) {
        let gossip = self.rng.percent(70);
        let Some(host) = self.hosts.get_mut(id).filter(|host| !host.cut) else { return };
        host.cut = true;
        host.gossip_cut = gossip;
        let session = host.session;
        self.note(|| format!("{} is cut off (gossip: {gossip}) for {time_ms} ms", short(id)));
        if let Some(session) = session {
            self.sever(session, 2000);
        }
        self.after_ms(time_ms, Event::Heal { host: id.clone() });
    }

    pub(super) fn heal(&mut self, id: &NodeId) {
        if let Some(host) = self.hosts.get_mut(id) {
            (host.cut, host.gossip_cut) = (false, false);
        }
    }

    /// The host's line breaks, and it notices at once.
    fn reset(&mut self, id: &NodeId) {
        if let Some(session) = self.hosts.get(id).and_then(|host| host.session) {
            self.note(|| format!("the line of {} breaks", short(id)));
            self.sever(session, 0);
        }
    }

    /// In some runs, one host is out of reach even then: for a while nobody finds what runs there.
    pub(super) fn keep_one_away(&mut self) -> bool {
        let hosts: Vec<NodeId> = self
            .hosts
            .iter()
            .filter(|(_, host)| !host.removed && !host.plain.is_empty())
            .map(|(id, _)| id.clone())
            .collect();
        if self.scenario.ends == super::Ends::Empty || !self.rng.percent(50) {
            return false;
        }
        let Some(id) = self.rng.pick(&hosts).cloned() else { return false };
        if let Some(host) = self.hosts.get_mut(&id) {
            (host.cut, host.gossip_cut) = (true, true);
            let session = host.session;
            self.note(|| format!("{} stays cut off", short(&id)));
            session.into_iter().for_each(|session| self.sever(session, 0));
        }
        true
    }

    /// And then it is back.
    pub(super) fn let_all_return(&mut self) {
        self.hosts.keys().cloned().collect::<Vec<_>>().iter().for_each(|id| self.heal(id));
    }

    /// Faults stop: everything that was lost returns.
    pub(super) fn calm_down(&mut self) {
        self.stormy = false;
        self.note(|| "faults stop".to_owned());
        for manager in 0..self.managers.len() {
            self.manager_returns(manager);
        }
        for id in self.hosts.keys().cloned().collect::<Vec<_>>() {
            self.heal(&id);
            if let Some(host) = self.hosts.get_mut(&id) {
                host.slow = 1;
            }
            self.host_returns(&id);
        }
    }
}
