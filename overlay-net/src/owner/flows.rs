//! Ending the connections that lead nowhere any more, so that their clients do not wait for nobody.
//!
//! Each look at a namespace's connections costs milliseconds, since the kernel keeps those of all namespaces together.
//! So it is done when somebody has gone, in the namespaces that might have led there, one namespace between two
//! requests, and after what the change asked of the rules: those lead nobody else there by then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Owner;
use crate::config::Beside;
use crate::kernel::{Connections, Flow, NetNs, Prod};
use crate::plan::flows::{Present, present};
use crate::plan::names;

/// While tasks come and go without a pause, those that have gone are looked for this often.
const PAUSE: Duration = Duration::from_millis(500);

/// A namespace with connections.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Host,
    Task(String),
}

/// Who was there, and where connections to those that have gone are still to be looked for.
pub(super) struct Flows {
    /// Who was there when it was looked at last: by network, and [`names::EGRESS`] for the way out.
    before: Arc<BTreeMap<String, Present>>,
    /// Who is there; nothing when that may have changed.
    now: Option<Arc<BTreeMap<String, Present>>>,
    /// Somebody may have gone since then.
    stirred: bool,
    /// Not to be looked at before.
    earliest: Instant,
    places: VecDeque<Place>,
}

impl Flows {
    pub(super) fn new(now: Instant) -> Flows {
        // What the host led to before this daemon began is looked at once.
        let before = Arc::default();
        Flows { before, now: None, stirred: false, earliest: now, places: VecDeque::from([Place::Host]) }
    }

    /// Somebody may have gone, or come.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
        self.now = None;
    }

    /// Hosts may have gone, and that happens seldom enough.
    pub(super) fn stir_at_once(&mut self, now: Instant) {
        self.stir();
        self.earliest = now;
    }

    /// A task that was connected before this daemon began is known again.
    pub(super) fn adopted(&mut self, task: &str) {
        self.look_at(Place::Task(task.to_owned()));
    }

    fn look_at(&mut self, place: Place) {
        if !self.places.contains(&place) {
            self.places.push_back(place);
        }
    }

    /// When there is something to do.
    fn due(&self, now: Instant) -> Option<Instant> {
        if self.places.is_empty() { self.stirred.then_some(self.earliest) } else { Some(now) }
    }
}

impl Owner {
    /// When connections are to be looked at.
    pub(super) fn flows_due(&self, now: Instant) -> Option<Instant> {
        // Without a desired state this host does not know who is there.
        if self.desired.revision == 0 { None } else { self.flows.due(now) }
    }

    /// Looks at one namespace, if there is one to look at and the time has come.
    pub(super) fn end_lost_flows(&mut self, now: Instant) {
        if self.flows_due(now).is_none() {
            return;
        }
        if self.flows.stirred && now >= self.flows.earliest {
            self.flows.stirred = false;
            self.flows.earliest = now + PAUSE;
            self.find_gone();
        }
        let Some(place) = self.flows.places.pop_front() else { return };
        let done = match &place {
            Place::Host => self.end_in_host(),
            Place::Task(id) => self.end_in_task(id),
        };
        match done {
            Ok(0) => {}
            Ok(count) => tracing::info!(?place, count, "ended connections to those that are gone"),
            Err(error) => tracing::warn!(?place, %error, "connections to those that are gone may hang"),
        }
    }

    /// Notes where connections to those may be that have gone since the last time.
    fn find_gone(&mut self) {
        let now = self.present();
        let before = std::mem::replace(&mut self.flows.before, Arc::clone(&now));
        let lost = |id: &str| before.get(id).zip(now.get(id)).is_some_and(|(before, now)| before.lost_any(now));
        let ingress = self.desired.networks.iter().find(|network| network.ingress);
        if ingress.is_some_and(|network| lost(&network.id)) || lost(names::EGRESS) {
            self.flows.look_at(Place::Host);
        }
        for (id, task) in &self.tasks {
            if task.config.attachments.iter().any(|attachment| lost(&attachment.network)) {
                self.flows.look_at(Place::Task(id.clone()));
            }
        }
    }

    /// Who is there, as far as this host knows: its own tasks are, whether it was told of them or not.
    fn present(&mut self) -> Arc<BTreeMap<String, Present>> {
        if let Some(now) = &self.flows.now {
            return Arc::clone(now);
        }
        let mut all = present(&self.desired, &self.balance, &self.suspects);
        for attachment in self.tasks.values().flat_map(|task| &task.config.attachments) {
            if let Some(network) = all.get_mut(&attachment.network) {
                network.addresses.insert(attachment.address);
            }
        }
        if let Some(way_out) = self.egress {
            let addresses = self.way_out.values().copied().chain([way_out.addr()]).collect();
            all.insert(names::EGRESS.to_owned(), Present { subnet: way_out.trunc(), addresses });
        }
        Arc::clone(self.flows.now.insert(Arc::new(all)))
    }

    fn end_in_task(&mut self, id: &str) -> std::io::Result<usize> {
        let all = self.present();
        let Some(task) = self.tasks.get(id) else { return Ok(0) };
        let own: Vec<&Present> = task.config.attachments.iter().filter_map(|a| all.get(&a.network)).collect();
        let lost = |flow: &Flow| {
            let on = |network: &&Present| network.lacks(flow.answers) && network.subnet.contains(flow.asked.ip());
            own.iter().any(on)
        };
        let six = task.config.attachments.iter().filter_map(|a| self.balance.beside.get(&a.network)).copied();
        end(&task.namespace, &six.collect::<Vec<_>>(), lost, Prod::Inside)
    }

    fn end_in_host(&mut self) -> std::io::Result<usize> {
        let all = self.present();
        let ingress = self.desired.networks.iter().find(|network| network.ingress).map(|network| network.id.as_str());
        let led_to: Vec<&Present> =
            ingress.into_iter().chain([names::EGRESS]).filter_map(|network| all.get(network)).collect();
        let lost = |flow: &Flow| led_to.iter().any(|network| network.lacks(flow.answers));
        let six = ingress.and_then(|network| self.balance.beside.get(network)).copied();
        end(self.stage.host(), six.as_slice(), lost, Prod::Outside)
    }
}

/// Ends those connections of a namespace; gives how many there were.
fn end(namespace: &NetNs, beside: &[Beside], lost: impl Fn(&Flow) -> bool, prod: Prod) -> std::io::Result<usize> {
    let mut connections = Connections::open(namespace)?;
    let flows = connections.list(&lost)?;
    connections.reset(&flows, prod)?;
    let six = if beside.is_empty() { 0 } else { connections.end6(beside, lost, prod)? };
    Ok(flows.len() + six)
}
