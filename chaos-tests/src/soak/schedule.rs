//! What is broken, when and for how long: made of a seed, before anything runs.
//!
//! Most of the time at most one manager is touched at once, so that writes must go on. Now and then a majority goes, or
//! every daemon dies at the same moment; those phases, and changes of membership, stand alone.

use std::fmt;
use std::time::Duration;

use crate::sim::Rng;

/// Who is meant; the leader is found when the time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// A host, from 0.
    Host(usize),
    /// Whoever leads.
    Leader,
}

/// Which packets of a host are lost, where the others receive them or where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// None come and none arrive.
    Both,
    /// It hears nobody.
    In,
    /// Nobody hears it.
    Out,
}

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL of a daemon; started again at the end.
    Kill(Victim),
    /// SIGKILL of a daemon and all tasks of the host, cable out; booted again at the end.
    PowerOff(Victim),
    /// SIGSTOP of a daemon; SIGCONT at the end.
    Pause(Victim),
    /// SIGSTOP of a daemon and of all tasks of the host, as on a machine that hangs; SIGCONT at the end.
    Freeze(Victim),
    /// The cable out.
    LinkDown(Victim),
    /// A manager and the others of all hosts do not hear each other, by nftables.
    CutOff(Victim, Direction),
    /// This manager and the other managers do not hear each other; workers hear all.
    ManagersApart(Victim),
    /// So many of a hundred packets between hosts are lost.
    Loss(u64),
    /// The tasks of a host are moved away; it is of use again at the end.
    Drain(usize),
    /// A manager becomes a worker; a manager again at the end.
    Demote(Victim),
    /// A worker becomes a manager; a worker again at the end.
    Promote(usize),
    /// A host leaves, is removed, and joins again at the end.
    Leave(usize),
    /// Two daemons of managers are killed at once.
    KillMajority(usize, usize),
    /// Two daemons of managers stand still at once.
    PauseMajority(usize, usize),
    /// All daemons are killed at once.
    KillAll,
}

impl Kind {
    /// Its name in the report.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Kill(_) => "kill",
            Kind::PowerOff(_) => "power off",
            Kind::Pause(_) => "pause",
            Kind::Freeze(_) => "freeze",
            Kind::LinkDown(_) => "link down",
            Kind::CutOff(_, Direction::Both) => "cut off",
            Kind::CutOff(_, _) => "cut off, one way",
            Kind::ManagersApart(_) => "managers apart",
            Kind::Loss(_) => "packet loss",
            Kind::Drain(_) => "drain",
            Kind::Demote(_) => "demote",
            Kind::Promote(_) => "promote",
            Kind::Leave(_) => "leave and join",
            Kind::KillMajority(..) => "kill a majority",
            Kind::PauseMajority(..) => "pause a majority",
            Kind::KillAll => "kill all",
        }
    }

    /// Whether nothing else may be wrong meanwhile.
    pub fn stands_alone(&self) -> bool {
        matches!(
            self,
            Kind::Demote(_)
                | Kind::Promote(_)
                | Kind::Leave(_)
                | Kind::KillMajority(..)
                | Kind::PauseMajority(..)
                | Kind::KillAll
        )
    }

    /// Whether a quorum is lost while it goes on.
    pub fn ends_quorum(&self) -> bool {
        matches!(self, Kind::KillMajority(..) | Kind::PauseMajority(..) | Kind::KillAll)
    }
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Its place in the schedule, from 1.
    pub number: usize,
    /// When it begins, from the start of the run.
    pub at: Duration,
    /// How long it lasts.
    pub length: Duration,
    /// What is done.
    pub kind: Kind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, length) = (self.at.as_secs_f64(), self.length.as_secs_f64());
        write!(f, "#{} at {at:.1} s for {length:.1} s: {:?}", self.number, self.kind)
    }
}

/// How large the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Managers; the first hosts.
    pub managers: usize,
    /// Workers; the others.
    pub workers: usize,
}

/// So long after the faults that were under way the next one comes that stands alone, and the other way round.
const CALM: Duration = Duration::from_secs(5);
/// A manager that was touched has come back so long after; then another may be touched.
const BACK: Duration = Duration::from_secs(4);

/// The faults of a run of this length. All have ended when it has.
pub fn schedule(seed: u64, length: Duration, shape: Shape) -> Vec<Fault> {
    let mut rng = Rng::new(seed);
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = Duration::from_secs(3);
    // When everything, and when every manager, is whole again.
    let (mut all_end, mut managers_end) = (Duration::ZERO, Duration::ZERO);
    let mut hosts_end = vec![Duration::ZERO; shape.managers + shape.workers];
    loop {
        let (kind, lasts) = draw(&mut rng, shape);
        let touched = touched(kind, shape);
        if kind.stands_alone() {
            at = at.max(all_end + CALM);
        } else if touched.manager {
            at = at.max(managers_end + BACK);
        }
        if let Some(host) = touched.host {
            at = at.max(hosts_end[host] + BACK);
        }
        let end = at + lasts;
        if end > length {
            return faults;
        }
        faults.push(Fault { number: faults.len() + 1, at, length: lasts, kind });
        all_end = all_end.max(end);
        if touched.manager || kind.stands_alone() {
            managers_end = managers_end.max(end);
        }
        match touched.host {
            Some(host) => hosts_end[host] = end,
            // Whoever it is.
            None if touched.manager => hosts_end[..shape.managers].iter_mut().for_each(|e| *e = end.max(*e)),
            None => {}
        }
        let gap = Duration::from_millis(rng.range(300, 4_000));
        at = if kind.stands_alone() { end + CALM } else { at + gap };
    }
}

struct Touched {
    manager: bool,
    host: Option<usize>,
}

fn touched(kind: Kind, shape: Shape) -> Touched {
    let host = match kind {
        Kind::Kill(v)
        | Kind::PowerOff(v)
        | Kind::Pause(v)
        | Kind::Freeze(v)
        | Kind::LinkDown(v)
        | Kind::CutOff(v, _)
        | Kind::ManagersApart(v)
        | Kind::Demote(v) => match v {
            Victim::Host(host) => Some(host),
            Victim::Leader => return Touched { manager: true, host: None },
        },
        Kind::Drain(host) | Kind::Promote(host) | Kind::Leave(host) => Some(host),
        Kind::Loss(_) => None,
        Kind::KillMajority(..) | Kind::PauseMajority(..) | Kind::KillAll => {
            return Touched { manager: true, host: None };
        }
    };
    let manager = !matches!(kind, Kind::Drain(_)) && host.is_some_and(|host| host < shape.managers);
    Touched { manager, host }
}

fn draw(rng: &mut Rng, shape: Shape) -> (Kind, Duration) {
    let hosts = shape.managers + shape.workers;
    let index = |rng: &mut Rng, low: usize, high: usize| low + rng.range(0, (high - low) as u64) as usize;
    let manager = index(rng, 0, shape.managers);
    let worker = if shape.workers > 0 { index(rng, shape.managers, hosts) } else { manager };
    let any = Victim::Host(index(rng, 0, hosts));
    let one_manager = if rng.percent(60) { Victim::Leader } else { Victim::Host(manager) };
    let victim = if rng.percent(50) { one_manager } else { any };
    let seconds = |rng: &mut Rng, low: u64, high: u64| Duration::from_millis(rng.range(low * 1_000, high * 1_000));
    match rng.range(0, 100) {
        0..14 => (Kind::Kill(victim), Duration::from_millis(rng.range(10, 4_000))),
        14..26 => (Kind::PowerOff(victim), seconds(rng, 2, 15)),
        26..42 => {
            let millis = if rng.percent(50) { rng.range(100, 2_000) } else { rng.range(2_000, 15_000) };
            (Kind::Pause(victim), Duration::from_millis(millis))
        }
        42..46 => (Kind::Freeze(victim), seconds(rng, 1, 12)),
        46..52 => (Kind::LinkDown(victim), seconds(rng, 1, 15)),
        52..58 => (Kind::CutOff(one_manager, Direction::Both), seconds(rng, 1, 12)),
        58..62 => (Kind::CutOff(victim, Direction::In), seconds(rng, 1, 12)),
        62..66 => (Kind::CutOff(victim, Direction::Out), seconds(rng, 1, 12)),
        66..72 => (Kind::ManagersApart(one_manager), seconds(rng, 1, 12)),
        72..78 => (Kind::Loss(rng.range(10, 31)), seconds(rng, 3, 12)),
        78..84 => (Kind::Drain(index(rng, 0, hosts)), seconds(rng, 4, 12)),
        84..87 => (Kind::Demote(one_manager), seconds(rng, 3, 8)),
        87..89 => (Kind::Promote(worker), seconds(rng, 3, 8)),
        89..92 => {
            let host = if rng.percent(70) { worker } else { manager };
            (Kind::Leave(host), seconds(rng, 1, 4))
        }
        92..94 => (Kind::KillMajority(manager, (manager + 1) % shape.managers), seconds(rng, 2, 8)),
        94..96 => (Kind::PauseMajority(manager, (manager + 1) % shape.managers), seconds(rng, 2, 10)),
        _ => (Kind::KillAll, Duration::from_millis(rng.range(10, 6_000))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { managers: 3, workers: 2 };
    const LENGTH: Duration = Duration::from_secs(1800);

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        assert_eq!(schedule(7, LENGTH, SHAPE), schedule(7, LENGTH, SHAPE));
        assert_ne!(schedule(7, LENGTH, SHAPE), schedule(8, LENGTH, SHAPE));
    }

    #[test]
    fn half_an_hour_has_every_kind_of_fault() {
        let names: std::collections::BTreeSet<&str> =
            (1..4).flat_map(|seed| schedule(seed, LENGTH, SHAPE)).map(|fault| fault.kind.name()).collect();
        assert_eq!(names.len(), 16, "{names:?}");
    }

    #[test]
    fn a_majority_is_whole_but_where_the_fault_says_so() {
        for seed in 0..50 {
            let faults = schedule(seed, LENGTH, SHAPE);
            assert!(faults.len() > 100, "{}", faults.len());
            for (place, fault) in faults.iter().enumerate() {
                assert!(fault.at + fault.length <= LENGTH, "{fault}");
                for later in &faults[place + 1..] {
                    let together = later.at < fault.at + fault.length;
                    let managers = touched(fault.kind, SHAPE).manager && touched(later.kind, SHAPE).manager;
                    let alone = fault.kind.stands_alone() || later.kind.stands_alone();
                    assert!(!(together && (managers || alone)), "{fault}; {later}");
                }
            }
        }
    }
}
