//! A whole cluster in one thread, on a virtual clock: managers, leader, agents, containers, lines, faults, a user. The
//! same seed gives the same run, event for event.
//!
//! What decides is the real thing: `deploy`'s control, leader's turn with its brain, store, dispatcher, and the agent's core
//! with its lifecycles. What is fake is what they are driven by: the log (commits in order after a while; a change of leader drops what was not committed), the
//! lines between agents and managers, and the executor. Every fact is shown to the properties in `check`; when the storm
//! is over, the cluster must come to rest as its specs say, in some runs first without one of its hosts.

mod drain;
mod faults;
mod host;
mod log;
mod manager;
mod plain;
mod queue;
mod rng;
mod session;
mod user;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use deploy::model::NodeId;

use crate::check::at_rest::{HostState, at_rest};
pub(crate) use rng::Rng;
use world::World;

/// So long after the faults have stopped the cluster must be at rest, in virtual time.
const REST: Duration = Duration::from_secs(600);
/// Between two looks whether it is.
const LOOK: Duration = Duration::from_secs(3);

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Events of the storm.
    pub steps: u64,
    /// Hosts at the start.
    pub hosts: u64,
    /// How the run ends.
    pub ends: Ends,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Services run as their specs say.
    Running,
    /// All services are removed, and nothing is left of them.
    Empty,
}

impl Scenario {
    /// A storm of that many events on four hosts.
    pub fn new(seed: u64, steps: u64) -> Self {
        let ends = if seed.is_multiple_of(4) { Ends::Empty } else { Ends::Running };
        Self { seed, steps, hosts: 4, ends }
    }
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events.
    pub steps: u64,
    /// Entries that were applied.
    pub entries: u64,
    /// Entries that a store refused.
    pub refused: u64,
    /// Leaders.
    pub elections: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Hosts that ever joined.
    pub hosts: u64,
    /// Containers that began to run.
    pub containers: u64,
    /// Requests of the user that were acknowledged.
    pub acknowledged: u64,
    /// Requests of the user whose outcome is unknown.
    pub unknown: u64,
    /// Times that all hosts had let go of tasks that were to stop.
    pub drained: u64,
    /// Times that some had not in time.
    pub late: u64,
    /// Starts of plain containers on networks.
    pub plain: u64,
    /// Plain containers that had lost their places.
    pub displaced: u64,
    /// Assignment sets that an agent refused.
    pub refused_sets: u64,
    /// Tells the end of one run from that of another.
    pub digest: u64,
}

/// A run in which something was wrong.
#[derive(Debug)]
pub struct Failure {
    /// What to play to see it again.
    pub scenario: Scenario,
    /// What was wrong.
    pub problems: Vec<String>,
    /// The last events, with their virtual time in seconds.
    pub events: Vec<String>,
    /// What had happened until then.
    pub summary: Summary,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?} after {:?}", self.scenario, self.summary)?;
        self.events.iter().try_for_each(|event| writeln!(f, "  {event}"))?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "{problem}"))?;
        write!(f, "play it again with SHOAL_SEED={}", self.scenario.seed)
    }
}

impl std::error::Error for Failure {}

/// Plays a scenario.
///
/// # Errors
/// A property did not hold, or the cluster did not come to rest.
pub fn run(scenario: Scenario) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(scenario);
    while world.summary.steps < scenario.steps && world.step() {}
    if world.violation.is_none() {
        world.calm_down();
        let away = world.keep_one_away();
        come_to_rest(&mut world)?;
        if away && world.violation.is_none() {
            world.let_all_return();
            come_to_rest(&mut world)?;
        }
    }
    if world.violation.is_none() {
        world.check_book();
    }
    match &world.violation {
        Some(violation) => Err(failure(&world, vec![violation.to_string()])),
        None => Ok(summary(&world)),
    }
}

fn come_to_rest(world: &mut World) -> Result<(), Box<Failure>> {
    let deadline = world.now.plus(REST);
    loop {
        let until = world.now.plus(LOOK);
        while world.now < until {
            if !world.step() {
                return Ok(());
            }
        }
        let problems = restless(world);
        if problems.is_empty() {
            return Ok(());
        }
        if world.now >= deadline {
            return Err(failure(world, problems));
        }
    }
}

fn restless(world: &World) -> Vec<String> {
    let mut problems = Vec::new();
    if !world.is_calm() {
        problems.push("the user's requests are not carried out".to_owned());
    }
    if world.managers.iter().any(|manager| manager.applied != world.log.committed.len()) {
        problems.push("a manager has not applied everything".to_owned());
    }
    for id in world.hosts.iter().filter(|(_, host)| !host.cut).map(|(id, _)| id).filter(|id| !world.is_attached(id)) {
        problems.push(format!("host {id} has no session"));
    }
    if problems.is_empty() {
        let state = |host: &host::Host| HostState {
            set: host.agent.set().clone(),
            tasks: host.agent.states().into_iter().map(|(id, _)| id).collect(),
            running: host.containers.iter().filter(|(_, c)| c.running).map(|(id, _)| id.clone()).collect(),
            containers: host.containers.keys().cloned().collect(),
            plain: host.plain.values().filter_map(|plain| Some((plain.runs.clone()?, plain.name.clone()))).collect(),
        };
        let hosts: BTreeMap<NodeId, HostState> =
            world.hosts.iter().filter(|(_, host)| !host.cut).map(|(id, host)| (id.clone(), state(host))).collect();
        problems = at_rest(&world.newest_store(), &hosts);
    }
    problems
}

fn summary(world: &World) -> Summary {
    let mut hasher = DefaultHasher::new();
    world.newest_store().encode_snapshot().hash(&mut hasher);
    Summary { digest: hasher.finish(), ..world.summary }
}

fn failure(world: &World, problems: Vec<String>) -> Box<Failure> {
    let events = world.trace.iter().cloned().collect();
    Box::new(Failure { scenario: world.scenario, problems, events, summary: world.summary })
}
