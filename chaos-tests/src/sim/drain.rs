//! Who has let go of tasks that drain, between managers whose words take a while: as `node::manager::drain` does it, around
//! the real `deploy::dispatcher::drain`. And the property that it is for: when an agent is told that all have let go,
//! no host leads anybody there, unless it is named as late or was Down.

use std::collections::BTreeSet;

use deploy::dispatcher::drain::{self, COLLECT, Collection, Drain};
use deploy::model::{NetworkId, NodeId, NodeState, TaskId, Timestamp};
use deploy::store::Store;

use super::world::{Down, Event, World, short};
use crate::check::Violation;

/// Tasks of a session's host, and who has not let go of them.
pub(super) struct Collecting {
    session: u64,
    manager: usize,
    revision: u64,
    until: Timestamp,
    missing: Collection<Vec<TaskId>>,
    /// Hosts that were not there at some time since, as the manager that collects knew.
    excused: BTreeSet<NodeId>,
}

impl World {
    /// A session has sent its agent what there is: it asks for tasks that began to drain.
    pub(super) fn ask_for_drains(&mut self, number: u64, store: &Store) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let (manager, host) = (session.manager, session.host.clone());
        let until = self.now.plus(COLLECT);
        for Drain { tasks, hosts } in drain::drains(store, &host, &mut session.draining) {
            let missing = Collection::new([(tasks, hosts)]);
            let excused = BTreeSet::new();
            let revision = store.revision();
            self.collecting.push(Collecting { session: number, manager, revision, until, missing, excused });
        }
        self.excuse(manager);
        self.at(until, Event::Drains);
        self.ask_managers();
    }

    /// A manager's store has changed; whom it calls Down it does not wait for.
    pub(super) fn excuse(&mut self, manager: usize) {
        let store = self.managers[manager].store.clone();
        let ready = |id: &NodeId| store.node(id).is_some_and(|node| node.status.state() == NodeState::Ready);
        let away: BTreeSet<NodeId> = self.hosts.keys().filter(|id| !ready(id)).cloned().collect();
        for collecting in self.collecting.iter_mut().filter(|collecting| collecting.manager == manager) {
            collecting.excused.extend(away.iter().cloned());
        }
        self.answer_drains(|collecting| match collecting.manager == manager {
            true => collecting.missing.look(&store),
            false => Vec::new(),
        });
    }

    /// What managers know of their hosts reaches the others after a while.
    pub(super) fn ask_managers(&mut self) {
        if !self.collecting.is_empty() && !std::mem::replace(&mut self.drains_due, true) {
            let delay = self.rng.range(1, 10);
            self.after_ms(delay, Event::Drains);
        }
    }

    /// Who has let go, and whose time is over.
    pub(super) fn look_at_drains(&mut self) {
        self.drains_due = false;
        let up: Vec<bool> = self.managers.iter().map(|manager| manager.up).collect();
        let (sessions, now) = (&self.sessions, self.now);
        // A manager that crashed has forgotten what it collected, and a session that is over has nobody to tell.
        self.collecting.retain(|c| up[c.manager] && sessions.get(&c.session).is_some_and(|session| session.open));
        let covers: Vec<(NodeId, u64)> = sessions
            .values()
            .filter(|session| session.open && up[session.manager])
            .map(|session| (session.host.clone(), session.cover.revision()))
            .collect();
        self.answer_drains(|collecting| {
            let let_go = covers.iter().filter(|(_, revision)| *revision >= collecting.revision);
            let_go.flat_map(|(host, _)| collecting.missing.covered(host)).collect()
        });
        let mut late = Vec::new();
        for collecting in self.collecting.iter_mut().filter(|collecting| now >= collecting.until) {
            let session = collecting.session;
            late.extend(collecting.missing.give_up().into_iter().map(|(tasks, hosts)| (session, tasks, hosts)));
        }
        self.collecting.retain(|collecting| !collecting.missing.is_empty());
        for (session, tasks, hosts) in late {
            self.summary.late += 1;
            let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
            self.note(|| format!("{} of {} were late", names.len(), tasks.len()));
            self.send_down(session, Down::Drained { tasks, late: names });
        }
    }

    /// Tells the agents of those that wait for nobody any more.
    fn answer_drains(&mut self, mut done: impl FnMut(&mut Collecting) -> Vec<Vec<TaskId>>) {
        let mut collecting = std::mem::take(&mut self.collecting);
        for one in &mut collecting {
            for tasks in done(one) {
                self.summary.drained += 1;
                tasks.iter().for_each(|task| self.check_let_go(task, &one.excused));
                self.send_down(one.session, Down::Drained { tasks, late: Vec::new() });
            }
        }
        collecting.retain(|one| !one.missing.is_empty());
        self.collecting = collecting;
    }

    /// No host that is there leads anybody to the task: nobody who is on one of its networks, and no client of the mesh.
    fn check_let_go(&mut self, task: &TaskId, excused: &BTreeSet<NodeId>) {
        for (id, host) in self.hosts.iter().filter(|(id, host)| host.daemon && !excused.contains(*id)) {
            let ingress = host.agent.set().networks().find(|network| network.ingress).map(|network| &network.id);
            let on = |network: &NetworkId| {
                let states = host.agent.states();
                let mut tasks = states.iter().filter_map(|(id, _)| host.agent.task(id));
                let runs = |id: &TaskId| host.containers.get(id).is_some_and(|container| container.running);
                tasks.any(|t| runs(&t.id) && t.attachments.iter().any(|attachment| attachment.network == *network))
            };
            let leads = host.agent.set().endpoints().find(|endpoint| {
                endpoint.task == *task
                    && endpoint.serving
                    && (ingress == Some(&endpoint.network) || on(&endpoint.network))
            });
            if let Some(endpoint) = leads {
                let what = format!("{} is told to stop, and {} leads there: {endpoint:?}", short(task), short(id));
                self.violation = Some(Violation { property: "nobody is led to what stops", what });
                return;
            }
        }
    }
}
