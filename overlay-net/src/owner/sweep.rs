//! The thread that looks for connections to those that are gone, and ends them.
//!
//! The kernel keeps the connections of all namespaces together, so that each look at a namespace with any connections
//! costs milliseconds, however few they are. Nobody waits for that: the owner says where to look, and goes on. What it says
//! about the same namespace before that one's turn has come is one look. And after having looked everywhere the thread
//! rests, so that it takes a quarter of a processor at the most while tasks come and go without a pause.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::Beside;
use crate::kernel::{self, Flow, NetNs, Prod};
use crate::plan::flows::{Census, Present};

/// A rest after a round of looks is so many times as long as the round was, and no longer than that.
const REST: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(500);

/// A namespace with connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Host,
    Task(String),
}

/// A handle on the connections of one namespace, opened by the first look. It is kept as long as the place is: closing
/// one makes the kernel free all rules that were replaced there, and whoever changes rules waits meanwhile.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Option<kernel::Connections>>>);

/// Where to look, and for what.
pub(super) struct Job {
    pub(super) place: Place,
    pub(super) namespace: NetNs,
    pub(super) connections: Connections,
    /// The networks that are led to from there, as [`Present`] has them.
    pub(super) networks: Vec<String>,
    /// The IPv6 addresses of those that have such.
    pub(super) beside: Vec<Beside>,
}

/// Who is there.
pub(super) type Everybody = Arc<Census>;

#[derive(Default)]
struct State {
    everybody: Everybody,
    jobs: VecDeque<Job>,
    /// Somebody waits who cannot wait: there is no rest now.
    urgent: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The thread's owner: it ends with this value.
pub(super) struct Sweeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    pub(super) fn start() -> io::Result<Sweeper> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("overlay-sweep".into()).spawn(move || theirs.run())?;
        Ok(Sweeper { shared, thread: Some(thread) })
    }

    /// Says who is there, before anybody is led to those who are new: a look that is under way spares them.
    pub(super) fn know(&self, everybody: Everybody) {
        self.shared.state().everybody = everybody;
    }

    /// Has these places looked at, by who is there now.
    pub(super) fn look(&self, everybody: Everybody, jobs: Vec<Job>, urgent: bool) {
        let mut state = self.shared.state();
        state.everybody = everybody;
        state.urgent |= urgent && !jobs.is_empty();
        for job in jobs {
            match state.jobs.iter_mut().find(|known| known.place == job.place) {
                Some(known) => *known = job,
                None => state.jobs.push_back(job),
            }
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that ends connections had panicked");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut busy = Duration::ZERO;
        while let Some((job, everybody)) = self.next(&mut busy) {
            let begun = Instant::now();
            match job.sweep(&everybody, || Arc::clone(&self.state().everybody)) {
                Ok(0) => {}
                Ok(count) => tracing::info!(place = ?job.place, count, "ended connections to those that are gone"),
                Err(error) => {
                    tracing::warn!(place = ?job.place, %error, "connections to those that are gone may hang");
                }
            }
            busy += begun.elapsed();
        }
    }

    /// The next place to look at; nothing at the end. Rests first when there was none left after having been `busy`.
    fn next(&self, busy: &mut Duration) -> Option<(Job, Everybody)> {
        let mut state = self.state();
        if state.jobs.is_empty() {
            state.urgent = false;
            let rest = (std::mem::take(busy) * REST).min(REST_MAX);
            let rested = self.changed.wait_timeout_while(state, rest, |state| !state.urgent && !state.ended);
            state = rested.unwrap_or_else(PoisonError::into_inner).0;
        }
        let waited = self.changed.wait_while(state, |state| state.jobs.is_empty() && !state.ended);
        state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return None;
        }
        let everybody = Arc::clone(&state.everybody);
        state.jobs.pop_front().map(|job| (job, everybody))
    }
}

impl Connections {
    /// Does something with the handle. After an error the next one is another.
    fn with<T>(
        &self,
        namespace: &NetNs,
        body: impl FnOnce(&mut kernel::Connections) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connections = match kept.take() {
            Some(connections) => connections,
            None => kernel::Connections::open(namespace)?,
        };
        let done = body(&mut connections)?;
        *kept = Some(connections);
        Ok(done)
    }
}

impl Job {
    /// Ends the connections that lead nowhere; gives how many there were. Who has come while they were listed (`later`) has
    /// connections already that lead somewhere.
    fn sweep(&self, everybody: &Everybody, later: impl Fn() -> Everybody) -> io::Result<usize> {
        self.connections.with(&self.namespace, |connections| {
            let mut flows = connections.list(|flow| self.is_lost(flow, everybody))?;
            let now = later();
            flows.retain(|flow| self.is_lost(flow, &now));
            let inside = self.place != Place::Host;
            connections.reset(&flows, if inside { Prod::Inside } else { Prod::Outside })?;
            Ok(flows.len())
        })
    }

    fn is_lost(&self, flow: &Flow, everybody: &Everybody) -> bool {
        let inside = self.place != Place::Host;
        let Some(answers) = self.four(flow.answers) else { return false };
        // A task's own published ports may lead anywhere; what it asked for by a virtual address is on the same network.
        let asked = self.four(flow.asked.ip());
        let through = |network: &Present| !inside || asked.is_some_and(|asked| network.subnet.contains(&asked));
        let mut led_to = self.networks.iter().filter_map(|network| everybody.get(network));
        led_to.any(|network| network.lacks(answers) && through(network))
    }

    /// The IPv4 address that decides for both: itself, or the one that an IPv6 address is beside.
    fn four(&self, address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(four) => Some(four),
            IpAddr::V6(six) => self.beside.iter().find_map(|beside| beside.opposite(six)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(place: Place) -> Option<Job> {
        match NetNs::anonymous() {
            Ok(namespace) => {
                let connections = Connections::default();
                Some(Job { place, namespace, connections, networks: vec![], beside: vec![] })
            }
            Err(error) => {
                println!("skipped: cannot make a network namespace ({error}); root is needed");
                None
            }
        }
    }

    #[test]
    fn what_is_said_of_a_place_before_its_turn_is_one_look() {
        let shared = Shared::default();
        let places = [Place::Host, Place::Task("a".into()), Place::Host, Place::Task("a".into())];
        let Some(jobs) = places.into_iter().map(job).collect::<Option<Vec<Job>>>() else { return };
        let sweeper = Sweeper { shared: Arc::new(shared), thread: None };
        for job in jobs {
            sweeper.look(Everybody::default(), vec![job], false);
        }
        let mut busy = Duration::ZERO;
        let mut next = || sweeper.shared.next(&mut busy).map(|(job, _)| job.place);
        assert_eq!((next(), next()), (Some(Place::Host), Some(Place::Task("a".into()))));
        sweeper.shared.state().ended = true;
        assert_eq!(next(), None);
    }

    #[test]
    fn a_rest_ends_for_those_who_cannot_wait() {
        let Some(job) = job(Place::Host) else { return };
        let sweeper = Sweeper { shared: Arc::default(), thread: None };
        let shared = Arc::clone(&sweeper.shared);
        let rested = std::thread::spawn(move || {
            let begun = Instant::now();
            shared.next(&mut Duration::from_secs(60)).map(|_| begun.elapsed())
        });
        sweeper.look(Everybody::default(), vec![job], true);
        assert!(rested.join().unwrap().is_some());
        // A rest of a second would have been shortened to half of one.
        let begun = Instant::now();
        sweeper.shared.state().ended = true;
        assert!(sweeper.shared.next(&mut Duration::from_secs(1)).is_none());
        assert!(begun.elapsed() < REST_MAX);
    }
}
