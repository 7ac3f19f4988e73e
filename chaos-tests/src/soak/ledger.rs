//! What was asked for, what came back, and what must therefore be in every linearizable read.
//!
//! Two kinds of things are written: names (configs, networks, services that come and go; each name is made once in a
//! run) and registers (a number in a service's labels, written with the version that was read, so that a late write
//! cannot overtake). A write is acknowledged, or failed, or its outcome is unknown; that is all that a caller knows, and
//! all that is judged by.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use node::demo::hosts::HostError;
use node::docker_api::ErrorWord;

/// No read takes longer.
const LONGEST_READ: Duration = Duration::from_secs(60);

/// What a caller was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is done.
    Acknowledged,
    /// It was not done, and never will be.
    Failed,
    /// It may have been done, or may yet be.
    Unknown,
}

impl Outcome {
    /// What an answer says.
    pub(super) fn of<T>(answer: &Result<T, HostError>) -> Outcome {
        match answer {
            Ok(_) => Outcome::Acknowledged,
            Err(HostError::Refused { word: Some(ErrorWord::OutcomeUnknown), .. }) => Outcome::Unknown,
            Err(HostError::Refused { .. }) => Outcome::Failed,
            // Nobody listened: it was never sent.
            Err(HostError::Unreachable { reason, .. })
                if reason.contains("Connection refused") || reason.contains("No such file") =>
            {
                Outcome::Failed
            }
            Err(_) => Outcome::Unknown,
        }
    }
}

/// One write of a name.
#[derive(Debug, Clone, Copy)]
struct Write {
    begun: Instant,
    /// When and how it ended; nothing while it is under way.
    ended: Option<(Instant, Outcome)>,
}

impl Write {
    fn acknowledged_before(&self, at: Instant) -> bool {
        self.ended.is_some_and(|(ended, outcome)| outcome == Outcome::Acknowledged && ended < at)
    }

    fn acknowledged(&self) -> bool {
        self.ended.is_some_and(|(_, outcome)| outcome == Outcome::Acknowledged)
    }

    fn failed(&self) -> bool {
        self.ended.is_some_and(|(_, outcome)| outcome == Outcome::Failed)
    }
}

#[derive(Debug, Clone)]
struct Name {
    made: Write,
    removals: Vec<Write>,
}

/// A register's writes, by the value written; values grow.
#[derive(Debug, Clone, Default)]
struct Register {
    writes: BTreeMap<u64, Write>,
}

/// Answers of one register or object: what was seen, by whoever saw it last.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    value: u64,
    version: u64,
}

/// All writes of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    names: BTreeMap<String, Name>,
    registers: BTreeMap<String, Register>,
    /// The largest that was read of each register, by the time at which that read had ended.
    reads: BTreeMap<String, Vec<(Instant, Seen)>>,
    /// Names that were seen in some store and then not any more.
    gone: BTreeSet<String>,
    present: BTreeSet<String>,
    counts: BTreeMap<&'static str, [u64; 3]>,
}

impl Ledger {
    /// Somebody begins to make a name, which must be new.
    pub(super) fn making(&mut self, name: &str, now: Instant) {
        let fresh = Name { made: Write { begun: now, ended: None }, removals: Vec::new() };
        assert!(self.names.insert(name.to_owned(), fresh).is_none(), "{name} is made twice");
    }

    /// That ended.
    ///
    /// # Errors
    /// It cannot have ended like that.
    pub(super) fn made(&mut self, name: &str, now: Instant, outcome: Outcome) {
        self.count("make", outcome);
        if let Some(known) = self.names.get_mut(name) {
            known.made.ended = Some((now, outcome));
        }
    }

    /// Somebody begins to remove a name.
    pub(super) fn removing(&mut self, name: &str, now: Instant) {
        if let Some(known) = self.names.get_mut(name) {
            known.removals.push(Write { begun: now, ended: None });
        }
    }

    /// That ended; `missing` when the answer was that there is no such thing.
    ///
    /// # Errors
    /// Something that was acknowledged is missing, and nobody has removed it.
    pub(super) fn removed(&mut self, name: &str, now: Instant, outcome: Outcome, missing: bool) -> Result<(), String> {
        self.count("remove", outcome);
        let Some(known) = self.names.get_mut(name) else { return Ok(()) };
        let Some((last, before)) = known.removals.split_last_mut() else { return Ok(()) };
        last.ended = Some((now, outcome));
        if missing && known.made.acknowledged_before(last.begun) && before.iter().all(Write::failed) {
            return Err(format!("{name} was acknowledged and never removed, but there is no such thing"));
        }
        Ok(())
    }

    /// Somebody begins to write a register, with a value larger than all before.
    pub(super) fn writing(&mut self, register: &str, value: u64, now: Instant) {
        let writes = &mut self.registers.entry(register.to_owned()).or_default().writes;
        assert!(writes.last_key_value().is_none_or(|(last, _)| *last < value), "values grow");
        writes.insert(value, Write { begun: now, ended: None });
    }

    /// That ended.
    pub(super) fn written(&mut self, register: &str, value: u64, now: Instant, outcome: Outcome) {
        self.count("update", outcome);
        let write = self.registers.get_mut(register).and_then(|r| r.writes.get_mut(&value));
        if let Some(write) = write {
            write.ended = Some((now, outcome));
        }
    }

    /// A linearizable read of a register, from when to when, what it said, and the object's version.
    ///
    /// # Errors
    /// It is older than what was acknowledged or read before it began; or nobody wrote that.
    pub(super) fn read(
        &mut self,
        register: &str,
        from: Instant,
        to: Instant,
        value: u64,
        version: u64,
    ) -> Result<(), String> {
        let writes = &self.registers.entry(register.to_owned()).or_default().writes;
        let acknowledged = writes.iter().rev().find(|(_, w)| w.acknowledged_before(from)).map(|(value, _)| *value);
        if let Some(newest) = acknowledged.filter(|newest| *newest > value) {
            return Err(format!("{register} was read as {value} after {newest} was acknowledged"));
        }
        match writes.get(&value) {
            None if value > 0 => return Err(format!("{register} was read as {value}, which nobody wrote")),
            Some(write) if write.failed() => {
                return Err(format!("{register} was read as {value}, which was said to have failed"));
            }
            _ => {}
        }
        self.monotonic(register, from, to, value, version)
    }

    /// A linearizable read of anything that only grows.
    ///
    /// # Errors
    /// It is smaller than what was read before this read began.
    pub(super) fn monotonic(
        &mut self,
        what: &str,
        from: Instant,
        to: Instant,
        value: u64,
        version: u64,
    ) -> Result<(), String> {
        let reads = self.reads.entry(what.to_owned()).or_default();
        // Reads that no later one can overlap with are kept as one.
        let (old, young): (Vec<_>, Vec<_>) = reads.drain(..).partition(|(ended, _)| *ended + LONGEST_READ < from);
        let merged = old.into_iter().reduce(|(ended, a), (other, b)| {
            (ended.max(other), Seen { value: a.value.max(b.value), version: a.version.max(b.version) })
        });
        reads.extend(merged.into_iter().chain(young));
        for (_, seen) in reads.iter().filter(|(ended, _)| *ended < from) {
            if seen.value > value || seen.version > version {
                return Err(format!("{what} was read as {value} (version {version}) after {seen:?} was read"));
            }
        }
        reads.push((to, Seen { value, version }));
        Ok(())
    }

    /// What is wrong with the names that a linearizable read from `from` to `to` found.
    pub(super) fn check_names(&self, from: Instant, to: Instant, found: &BTreeSet<String>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, known) in &self.names {
            // One that has come and gone is looked at from the other side, below.
            let removal = known.removals.iter().any(|w| w.begun <= to && !w.failed());
            if known.made.acknowledged_before(from) && !removal && !found.contains(name) {
                wrong.push(format!("{name} was acknowledged and is lost"));
            }
        }
        for name in found {
            let Some(known) = self.names.get(name) else { continue };
            // An unknown make may happen after the removal that found nothing; an acknowledged removal found something.
            if known.removals.iter().any(|w| w.acknowledged_before(from)) {
                wrong.push(format!("the removal of {name} was acknowledged, and it is there"));
            }
        }
        wrong.extend(self.impossible(found));
        wrong
    }

    /// What is wrong with names that some manager has, however old its store is.
    pub(super) fn impossible(&self, found: &BTreeSet<String>) -> Vec<String> {
        let failed = |name: &&String| self.names.get(*name).is_some_and(|known| known.made.failed());
        found.iter().filter(failed).map(|name| format!("{name} is there, but was said to have failed")).collect()
    }

    /// Names in the newest store, each time that it was looked at; the stores come in their order.
    ///
    /// # Errors
    /// One that was gone is there again.
    pub(super) fn newest(&mut self, found: &BTreeSet<String>) -> Result<(), String> {
        if let Some(again) = found.iter().find(|name| self.gone.contains(*name)) {
            return Err(format!("{again} was gone and is there again, and nobody made it twice"));
        }
        let left: Vec<String> = self.present.difference(found).cloned().collect();
        self.gone.extend(left);
        self.present.clone_from(found);
        Ok(())
    }

    /// Names that may be there and that nobody is removing.
    pub(super) fn removable(&self) -> Vec<String> {
        let there = |known: &Name| {
            known.made.ended.is_some()
                && !known.made.failed()
                && known.removals.len() < 4
                && known.removals.iter().all(|w| !w.acknowledged())
        };
        self.names.iter().filter(|(_, known)| there(known)).map(|(name, _)| name.clone()).collect()
    }

    fn count(&mut self, what: &'static str, outcome: Outcome) {
        self.counts.entry(what).or_default()[outcome as usize] += 1;
    }

    /// Writes by kind: acknowledged, failed, unknown.
    pub(super) fn counts(&self) -> &BTreeMap<&'static str, [u64; 3]> {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn tick(&mut self) -> Instant {
            self.0 += Duration::from_millis(1);
            self.0
        }
    }

    fn made(outcome: Outcome) -> (Ledger, Clock) {
        let (mut ledger, mut clock) = (Ledger::default(), Clock(Instant::now()));
        ledger.making("a", clock.tick());
        ledger.made("a", clock.tick(), outcome);
        (ledger, clock)
    }

    fn seen(ledger: &Ledger, clock: &mut Clock, names: &[&str]) -> Vec<String> {
        let found = names.iter().map(|n| (*n).to_owned()).collect();
        let from = clock.tick();
        ledger.check_names(from, clock.tick(), &found)
    }

    #[test]
    fn an_acknowledged_name_must_be_there() {
        let (ledger, mut clock) = made(Outcome::Acknowledged);
        assert_eq!(seen(&ledger, &mut clock, &["a"]), Vec::<String>::new());
        assert_eq!(seen(&ledger, &mut clock, &[]).len(), 1);
    }

    #[test]
    fn a_failed_name_must_never_be_there() {
        let (ledger, mut clock) = made(Outcome::Failed);
        assert_eq!(seen(&ledger, &mut clock, &[]), Vec::<String>::new());
        assert_eq!(seen(&ledger, &mut clock, &["a"]).len(), 1);
        let (ledger, mut clock) = made(Outcome::Unknown);
        assert!(seen(&ledger, &mut clock, &["a"]).is_empty() && seen(&ledger, &mut clock, &[]).is_empty());
    }

    #[test]
    fn a_removed_name_must_be_gone_for_good() {
        let (mut ledger, mut clock) = made(Outcome::Acknowledged);
        ledger.removing("a", clock.tick());
        assert!(seen(&ledger, &mut clock, &["a"]).is_empty(), "under way");
        assert!(seen(&ledger, &mut clock, &[]).is_empty(), "under way");
        ledger.removed("a", clock.tick(), Outcome::Acknowledged, false).unwrap();
        assert_eq!(seen(&ledger, &mut clock, &["a"]).len(), 1);
        let there = BTreeSet::from(["a".to_owned()]);
        ledger.newest(&there).unwrap();
        ledger.newest(&BTreeSet::new()).unwrap();
        assert!(ledger.newest(&there).is_err());
    }

    #[test]
    fn a_missing_name_is_a_loss_unless_its_removal_is_unknown() {
        let (mut ledger, mut clock) = made(Outcome::Acknowledged);
        let mut again = ledger.clone();
        ledger.removing("a", clock.tick());
        assert!(ledger.removed("a", clock.tick(), Outcome::Failed, true).is_err());
        again.removing("a", clock.tick());
        again.removed("a", clock.tick(), Outcome::Unknown, false).unwrap();
        again.removing("a", clock.tick());
        again.removed("a", clock.tick(), Outcome::Failed, true).unwrap();
        assert!(seen(&again, &mut clock, &[]).is_empty());
    }

    fn read(ledger: &mut Ledger, clock: &mut Clock, value: u64, version: u64) -> Result<(), String> {
        let from = clock.tick();
        ledger.read("r", from, clock.tick(), value, version)
    }

    #[test]
    fn reads_never_go_back() {
        let (mut ledger, mut clock) = (Ledger::default(), Clock(Instant::now()));
        for (value, outcome) in [(1, Outcome::Acknowledged), (2, Outcome::Unknown), (3, Outcome::Failed)] {
            ledger.writing("r", value, clock.tick());
            ledger.written("r", value, clock.tick(), outcome);
        }
        assert!(read(&mut ledger, &mut clock, 0, 1).is_err(), "1 was acknowledged");
        assert!(read(&mut ledger, &mut clock, 3, 1).is_err(), "3 failed");
        assert!(read(&mut ledger, &mut clock, 4, 1).is_err(), "nobody wrote 4");
        read(&mut ledger, &mut clock, 1, 5).unwrap();
        assert!(read(&mut ledger, &mut clock, 1, 4).is_err(), "an older version");
        read(&mut ledger, &mut clock, 2, 6).unwrap();
        assert!(read(&mut ledger, &mut clock, 1, 7).is_err(), "2 was read");
    }

    #[test]
    fn reads_at_the_same_time_may_differ() {
        let (mut ledger, mut clock) = (Ledger::default(), Clock(Instant::now()));
        ledger.writing("r", 1, clock.tick());
        let from = clock.tick();
        read(&mut ledger, &mut clock, 1, 2).unwrap();
        let to = clock.tick();
        ledger.read("r", from, to, 0, 1).unwrap();
    }
}
