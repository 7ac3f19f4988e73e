//! Ending the connections that lead nowhere any more, so that their clients do not wait for nobody.
//!
//! When somebody has gone, connections there are looked for in the namespaces that might have led there, after what the
//! change asked of the rules: those lead nobody else there by then. Who go within a moment are looked for together. The
//! looks themselves are another thread's (`sweep`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Owner;
use super::sweep::{Connections, Everybody, Job, Place, Sweeper};
use crate::plan::flows::{Census, Present};
use crate::plan::names;

/// Those who go within so short a time are looked for together.
const TOGETHER: Duration = Duration::from_millis(10);

/// Who was there, and where connections to those that have gone are still to be looked for.
pub(super) struct Flows {
    sweeper: Sweeper,
    /// Those of the host's namespace.
    host: Connections,
    /// Who was there when it was looked at last: by network, and [`names::EGRESS`] for the way out.
    before: Everybody,
    /// Who is there; nothing when that may have changed.
    now: Option<Everybody>,
    /// Somebody may have gone since then; when it is to be found out.
    stirred: Option<Instant>,
    /// A host may have: that happens seldom enough to be found out at once.
    urgent: bool,
    places: Vec<Place>,
}

impl Flows {
    pub(super) fn new(now: Instant) -> std::io::Result<Flows> {
        // What the host led to before this daemon began is looked at once.
        let (sweeper, host, before) = (Sweeper::start()?, Connections::default(), Arc::default());
        Ok(Flows { sweeper, host, before, now: None, stirred: Some(now), urgent: false, places: vec![Place::Host] })
    }

    /// Somebody may have gone, or come.
    pub(super) fn stir(&mut self) {
        self.stirred.get_or_insert_with(|| Instant::now() + TOGETHER);
        self.now = None;
    }

    /// Hosts may have gone.
    pub(super) fn stir_at_once(&mut self, now: Instant) {
        self.stirred = Some(now);
        self.urgent = true;
        self.now = None;
    }

    /// A task that was connected before this daemon began is known again.
    pub(super) fn adopted(&mut self, task: &str) {
        self.look_at(Place::Task(task.to_owned()));
    }

    fn look_at(&mut self, place: Place) {
        if !self.places.contains(&place) {
            self.places.push(place);
        }
    }
}

impl Owner {
    /// When it is to be found out who has gone.
    pub(super) fn flows_due(&self) -> Option<Instant> {
        // Without a desired state this host does not know who is there.
        self.flows.stirred.filter(|_| self.desired.revision > 0)
    }

    /// Finds out who has gone, if the time has come, and has the connections there ended.
    pub(super) fn end_lost_flows(&mut self, now: Instant) {
        if self.flows_due().is_none_or(|due| due > now) {
            return;
        }
        self.flows.stirred = None;
        let everybody = self.present();
        self.find_gone(&everybody);
        let places = std::mem::take(&mut self.flows.places);
        let mut jobs = Vec::with_capacity(places.len());
        for place in places {
            match self.job(&place) {
                Ok(job) => jobs.extend(job),
                Err(error) => tracing::warn!(?place, %error, "connections to those that are gone may hang"),
            }
        }
        self.flows.sweeper.look(everybody, jobs, std::mem::take(&mut self.flows.urgent));
    }

    /// Notes where connections to those may be that have gone since the last time.
    fn find_gone(&mut self, now: &Everybody) {
        let before = std::mem::replace(&mut self.flows.before, Arc::clone(now));
        let networks = self.desired.networks.iter().map(|network| network.id.as_str()).chain([names::EGRESS]);
        let lost = |id: &&str| before.get(id).zip(now.get(id)).is_some_and(|(before, now)| before.lost_any(now));
        let lost: BTreeSet<&str> = networks.filter(lost).collect();
        let ingress = self.desired.networks.iter().find(|network| network.ingress);
        if ingress.is_some_and(|network| lost.contains(network.id.as_str())) || lost.contains(names::EGRESS) {
            self.flows.look_at(Place::Host);
        }
        for (id, task) in &self.tasks {
            if task.config.attachments.iter().any(|attachment| lost.contains(attachment.network.as_str())) {
                self.flows.look_at(Place::Task(id.clone()));
            }
        }
    }

    /// Somebody may have come, or gone: who has come is known before anybody is led there.
    pub(super) fn presence_changes(&mut self) {
        self.flows.stir();
        let everybody = self.present();
        self.flows.sweeper.know(everybody);
    }

    /// Who is there, as far as this host knows.
    fn present(&mut self) -> Everybody {
        if let Some(now) = &self.flows.now {
            return Arc::clone(now);
        }
        let attachments = self.tasks.values().flat_map(|task| &task.config.attachments);
        let own = attachments.map(|attachment| (attachment.network.clone(), attachment.address)).collect();
        let way_out = self.egress.map(|way_out| {
            let addresses = self.way_out.values().copied().chain([way_out.addr()]).collect();
            Present { subnet: way_out.trunc(), addresses }
        });
        let (networks, balance) = (self.desired.networks.clone(), Arc::clone(&self.balance));
        let census = Census::new(networks, balance, self.suspects.clone(), own, way_out);
        Arc::clone(self.flows.now.insert(Arc::new(census)))
    }

    /// What to look for at a place; nothing where a task is not any more.
    fn job(&self, place: &Place) -> std::io::Result<Option<Job>> {
        let (namespace, connections, networks): (_, _, Vec<String>) = match place {
            Place::Host => {
                let ingress = self.desired.networks.iter().find(|network| network.ingress);
                let networks = ingress.map(|network| network.id.clone()).into_iter();
                (self.stage.host(), &self.flows.host, networks.chain([names::EGRESS.to_owned()]).collect())
            }
            Place::Task(id) => {
                let Some(task) = self.tasks.get(id) else { return Ok(None) };
                let networks = task.config.attachments.iter().map(|a| a.network.clone()).collect();
                (&task.namespace, &task.connections, networks)
            }
        };
        let beside = networks.iter().filter_map(|network| self.balance.beside.get(network)).copied().collect();
        let (namespace, connections) = (namespace.try_clone()?, connections.clone());
        Ok(Some(Job { place: place.clone(), namespace, connections, networks, beside }))
    }
}
