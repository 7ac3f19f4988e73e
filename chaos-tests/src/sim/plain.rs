//! Plain containers on attachable networks: what users run on a host by hand. As `node::agent::plain` does it, around the real
//! `deploy::agent::Places`: each start asks the leader for a place of its own, runs once its host was told of the place, and
//! leaves the place to be given back when it has ended. Containers go on without the daemon, which then finds them.

use std::time::Duration;

use deploy::agent::{LOST, Place};
use deploy::control::{AttachContainer, DetachContainer, ErrorKind, Op};
use deploy::model::{NetworkAttachment, NetworkId, NodeId, TaskId, Timestamp};
use deploy::store::Store;

use super::world::{Event, Outcome, Waiter, World, short};
use crate::check::{Fact, Violation};

/// Containers of one host.
const MOST: usize = 3;
/// So long a place is asked for, and then waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before somebody is asked again.
const PAUSE_MS: u64 = 100;
/// Pause before what failed is tried again.
const RETRY_MS: u64 = 1000;
/// A container whose place is lost has lost its address after this time, and the one that the managers are given.
const SLACK: Duration = Duration::from_millis(1500);

/// A container.
pub(super) struct Plain {
    pub(super) name: String,
    network: NetworkId,
    /// It is started again when it has ended.
    pub(super) again: bool,
    pub(super) place: Place,
    /// The start that is under way, or was the last one.
    start: u64,
    /// For the one under way.
    until: Timestamp,
    /// Its process runs, with that place.
    pub(super) runs: Option<TaskId>,
    /// Its place there leads to it.
    pub(super) connected: bool,
    /// Since when it is connected without a place, as its host was told.
    lost: Option<Timestamp>,
}

/// One start of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) host: NodeId,
    pub(super) boot: u64,
    pub(super) container: String,
    pub(super) start: u64,
}

impl World {
    /// Somebody does something on some host.
    pub(super) fn somebody_runs(&mut self, store: &Store) {
        let hosts: Vec<NodeId> =
            self.hosts.iter().filter(|(_, h)| h.daemon && !h.removed).map(|(id, _)| id.clone()).collect();
        let networks: Vec<NetworkId> = store.networks().filter(|n| n.spec.attachable).map(|n| n.id.clone()).collect();
        let (host, network) = (self.rng.pick(&hosts).cloned(), self.rng.pick(&networks).cloned());
        let (Some(id), Some(network)) = (host, network) else { return };
        let (number, again) = (self.rng.range(0, MOST as u64), self.rng.percent(50));
        let name = format!("box{number}");
        let Some(host) = self.hosts.get(&id) else { return };
        let known = host.plain.iter().find(|(_, plain)| plain.name == name).map(|(container, _)| container.clone());
        let Some(container) = known else {
            let container = format!("{:032x}{:032x}", self.rng.id(), self.rng.id());
            let plain = Plain {
                name,
                network,
                again,
                place: Place::Unused,
                start: 0,
                until: self.now,
                runs: None,
                connected: false,
                lost: None,
            };
            if let Some(host) = self.hosts.get_mut(&id) {
                host.plain.insert(container.clone(), plain);
            }
            return self.start_plain(&id, &container);
        };
        match self.rng.range(0, 3) {
            0 => self.start_plain(&id, &container),
            1 => self.stop_plain(&id, &container),
            _ => self.remove_plain(&id, &container),
        }
    }

    /// Nobody runs anything by hand any more.
    pub(super) fn remove_all_plain(&mut self) {
        for id in self.hosts.keys().cloned().collect::<Vec<_>>() {
            let containers: Vec<String> = self.hosts[&id].plain.keys().cloned().collect();
            containers.iter().for_each(|container| self.remove_plain(&id, container));
        }
    }

    fn remove_plain(&mut self, id: &NodeId, container: &str) {
        self.stop_plain(id, container);
        if let Some(host) = self.hosts.get_mut(id) {
            host.plain.retain(|other, plain| other != container || plain.runs.is_some());
        }
    }

    fn stop_plain(&mut self, id: &NodeId, container: &str) {
        let Some(host) = self.hosts.get_mut(id) else { return };
        let slow = host.slow;
        let Some(plain) = host.plain.get_mut(container) else { return };
        plain.again = false;
        if matches!(plain.place, Place::Kept(_)) {
            plain.place = Place::Unused;
        }
        let delay = slow * self.rng.range(1, 500);
        self.plain_ends_after(id, container, delay);
        self.settle_plain(id);
    }

    fn plain_ends_after(&mut self, id: &NodeId, container: &str, ms: u64) {
        let Some(plain) = self.hosts.get(id).and_then(|host| host.plain.get(container)) else { return };
        if plain.runs.is_some() {
            let start = plain.start;
            self.after_ms(ms, Event::PlainEnds { host: id.clone(), container: container.to_owned(), start });
        }
    }

    pub(super) fn start_plain(&mut self, id: &NodeId, container: &str) {
        let (now, start) = (self.now, self.rng.range(1, u64::MAX));
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.daemon && !host.removed) else { return };
        let boot = host.boot;
        let Some(plain) = host.plain.get_mut(container) else { return };
        if plain.runs.is_some() || matches!(plain.place, Place::Asked | Place::Used(_)) {
            return;
        }
        (plain.start, plain.until) = (start, now.plus(PATIENCE));
        // What was kept needs nobody, as long as it is still its own.
        let kept = match &plain.place {
            Place::Kept(place) => host.agent.places().places.contains_key(place).then(|| place.clone()),
            _ => None,
        };
        if let Some(place) = kept {
            plain.place = Place::Used(place);
            return self.settle_plain(id);
        }
        plain.place = Place::Asked;
        self.ask_for_place(Start { host: id.clone(), boot, container: container.to_owned(), start });
    }

    /// The start that is under way, if it still is.
    fn starting(&mut self, start: &Start) -> Option<&mut Plain> {
        let host = self.hosts.get_mut(&start.host).filter(|host| host.daemon && host.boot == start.boot)?;
        host.plain.get_mut(&start.container).filter(|plain| plain.start == start.start)
    }

    pub(super) fn ask_for_place(&mut self, start: Start) {
        let (now, cut) = (self.now, self.hosts.get(&start.host).is_none_or(|host| host.cut));
        let Some(plain) = self.starting(&start).filter(|plain| plain.place == Place::Asked) else { return };
        if now >= plain.until {
            return self.start_failed(&start);
        }
        if cut {
            return self.after_ms(PAUSE_MS, Event::AskForPlace(start));
        }
        let op = AttachContainer {
            node_id: start.host.clone(),
            container: start.container.clone(),
            name: plain.name.clone(),
            network: plain.network.to_string(),
            aliases: vec!["any".to_owned()],
            start: start.start,
            generation: start.boot,
            boot: 0,
        };
        self.request(Op::AttachContainer(op), Waiter::Place(start));
    }

    pub(super) fn place_answered(&mut self, start: Start, outcome: Outcome) {
        let (now, cut) = (self.now, self.hosts.get(&start.host).is_none_or(|host| host.cut));
        let Some(plain) = self.starting(&start).filter(|plain| plain.place == Place::Asked) else { return };
        match outcome {
            _ if cut => {}
            Outcome::Done(reply, _) => {
                let place = TaskId::new(reply.id);
                (plain.place, plain.until) = (Place::Used(place), now.plus(PATIENCE));
                let until = plain.until;
                self.at(until, Event::PlaceLate(start.clone()));
                return self.settle_plain(&start.host);
            }
            Outcome::Refused(error) if error.kind() != ErrorKind::Busy => {
                return self.start_failed(&start);
            }
            Outcome::Refused(_) | Outcome::NoLeader | Outcome::Unknown => {}
        }
        self.after_ms(PAUSE_MS, Event::AskForPlace(start));
    }

    pub(super) fn place_late(&mut self, start: &Start) {
        if self.starting(start).is_some_and(|plain| plain.runs.is_none() && matches!(plain.place, Place::Used(_))) {
            self.start_failed(start);
        }
    }

    fn start_failed(&mut self, start: &Start) {
        if let Some(plain) = self.starting(start) {
            plain.place = Place::Unused;
        }
        self.settle_plain(&start.host);
    }

    /// What was given has changed, or what is used: starts those whose places are there, gives back what nobody uses, and
    /// takes the network from those whose places are lost.
    pub(super) fn settle_plain(&mut self, id: &NodeId) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.daemon && !host.removed) else { return };
        if host.plain.is_empty() && host.agent.places().places.is_empty() {
            return;
        }
        let given = host.agent.places();
        let mut started: Vec<(String, TaskId, Vec<NetworkAttachment>)> = Vec::new();
        for (container, plain) in host.plain.iter_mut().filter(|(_, plain)| plain.runs.is_none()) {
            if let Place::Used(place) = &plain.place
                && let Some(given) = given.places.get(place)
            {
                (plain.runs, plain.connected, plain.lost) = (Some(place.clone()), true, None);
                started.push((container.clone(), place.clone(), given.attachments.clone()));
            }
        }
        for plain in host.plain.values_mut() {
            let lost =
                given.told && plain.connected && plain.runs.as_ref().is_some_and(|id| !given.places.contains_key(id));
            plain.lost = if lost { plain.lost.or(Some(now)) } else { None };
        }
        let used = host.plain.iter().map(|(container, plain)| (container.clone(), &plain.place));
        let settled = host.places.settle(&given, used, now.since(Timestamp::default()));
        let boot = host.boot;
        let again = settled.again && !std::mem::replace(&mut host.settles, settled.again);
        let unused: Vec<TaskId> =
            settled.unused.into_iter().filter(|place| host.giving.insert(place.clone())).collect();
        if again {
            self.after_ms(RETRY_MS, Event::SettlePlain { host: id.clone(), boot });
        }
        for (container, place, attachments) in started {
            self.summary.plain += 1;
            self.note(|| format!("{} of {} runs by hand", short(&place), short(id)));
            self.fact(&Fact::Joined { host: id, place: &place, attachments: &attachments });
            if self.stormy && self.rng.percent(15) {
                let delay = self.rng.range(10, 20_000);
                self.plain_ends_after(id, &container, delay);
            }
        }
        for place in unused {
            self.give_back(id, boot, place);
        }
        for container in settled.displaced {
            self.summary.displaced += 1;
            self.disconnect_plain(id, &container);
            let delay = self.rng.range(1, 1500);
            self.plain_ends_after(id, &container, delay);
        }
    }

    pub(super) fn settle_again(&mut self, id: &NodeId, boot: u64) {
        if let Some(host) = self.hosts.get_mut(id).filter(|host| host.boot == boot) {
            host.settles = false;
            self.settle_plain(id);
        }
    }

    fn give_back(&mut self, id: &NodeId, boot: u64, place: TaskId) {
        let waiter = Waiter::GivenBack { host: id.clone(), boot, place: place.clone() };
        if self.hosts.get(id).is_none_or(|host| host.cut) {
            return self.after_ms(RETRY_MS, Event::Answered { waiter, outcome: Outcome::NoLeader });
        }
        let op = DetachContainer { node_id: id.clone(), id: place, generation: boot, boot: 0 };
        self.request(Op::DetachContainer(op), waiter);
    }

    pub(super) fn given_back(&mut self, id: &NodeId, boot: u64, place: &TaskId, outcome: &Outcome) {
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.boot == boot && host.daemon) else { return };
        host.giving.remove(place);
        if !matches!(outcome, Outcome::Done(..)) && !std::mem::replace(&mut host.settles, true) {
            self.after_ms(RETRY_MS, Event::SettlePlain { host: id.clone(), boot });
        }
    }

    fn disconnect_plain(&mut self, id: &NodeId, container: &str) {
        let Some(plain) = self.hosts.get_mut(id).and_then(|host| host.plain.get_mut(container)) else { return };
        plain.lost = None;
        if std::mem::take(&mut plain.connected)
            && let Some(place) = plain.runs.clone()
        {
            self.fact(&Fact::Left { place: &place });
        }
    }

    pub(super) fn plain_ends(&mut self, id: &NodeId, container: &str, start: u64) {
        let is_it = |plain: &&mut Plain| plain.start == start && plain.runs.is_some();
        let Some(host) = self.hosts.get_mut(id) else { return };
        let (daemon, boot) = (host.daemon, host.boot);
        if host.plain.get_mut(container).filter(is_it).is_none() {
            return;
        }
        // Its network is taken down before anybody says so.
        self.disconnect_plain(id, container);
        let stormy = self.stormy;
        let Some(plain) = self.hosts.get_mut(id).and_then(|host| host.plain.get_mut(container)) else { return };
        let place = plain.runs.take();
        if daemon {
            let again = plain.again && stormy;
            plain.place = place.filter(|_| again).map_or(Place::Unused, Place::Kept);
            if again {
                self.after_ms(RETRY_MS, Event::PlainStarts { host: id.clone(), boot, container: container.to_owned() });
            }
            self.settle_plain(id);
        }
    }

    /// The daemon is there again, and finds what runs.
    pub(super) fn find_plain(&mut self, id: &NodeId) {
        let Some(host) = self.hosts.get_mut(id) else { return };
        (host.places, host.settles) = (deploy::agent::Places::default(), false);
        host.giving.clear();
        let mut starts = Vec::new();
        for (container, plain) in &mut host.plain {
            plain.lost = None;
            plain.place = plain.runs.clone().map_or(Place::Unused, Place::Used);
            if plain.again && plain.runs.is_none() {
                starts.push(container.clone());
            }
        }
        let boot = host.boot;
        for container in starts {
            self.after_ms(5, Event::PlainStarts { host: id.clone(), boot, container });
        }
        self.settle_plain(id);
    }

    /// All of them end at once: the host loses power, or leaves the cluster.
    pub(super) fn end_all_plain(&mut self, id: &NodeId) {
        let Some(host) = self.hosts.get(id) else { return };
        let running: Vec<String> = host
            .plain
            .iter()
            .filter(|(_, plain)| plain.runs.is_some())
            .map(|(container, _)| container.clone())
            .collect();
        for container in running {
            self.disconnect_plain(id, &container);
            if let Some(plain) = self.hosts.get_mut(id).and_then(|host| host.plain.get_mut(&container)) {
                plain.runs = None;
            }
        }
    }

    /// Whether those whose places are lost have lost their addresses in time.
    pub(super) fn check_displaced(&mut self) {
        for (id, host) in self.hosts.iter().filter(|(_, host)| host.daemon && !host.removed) {
            let late = |plain: &&Plain| plain.lost.is_some_and(|since| self.now.since(since) > LOST + SLACK);
            if let Some(plain) = host.plain.values().find(late) {
                let what =
                    format!("{} on {} has an address without a place since {:?}", plain.name, short(id), plain.lost);
                self.violation = Some(Violation { property: "who loses its place is disconnected in time", what });
                return;
            }
        }
    }
}
