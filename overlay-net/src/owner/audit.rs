//! Looking after what is in force although nobody asks: what others have changed is repaired, and logged.
//!
//! A round begins every two seconds, however busy the owner is. It goes namespace by namespace, a step each, and requests
//! are served between steps. A step that finds no notice of a change, and the kernel's count of changed rules where it
//! was, costs a few system calls; once in a while everything is listed all the same.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use super::{Owner, apply_task_tables};
use crate::error::ObjectError;
use crate::kernel::{Opened, Transitions, is_too_much, raise_neighbour_limits};
use crate::observation::AuditRecord;
use crate::plan::inside::DefaultRoute;

/// How often everything is looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// In one of so many rounds, everything is listed although nothing says that it changed.
const THOROUGH: u32 = 15;

/// What is remembered of one round, of each kind.
const NOTED_MAX: usize = 32;

/// What is looked at in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// What packets of encrypted networks are sealed with.
    Seals,
    /// The links and entries of the node's own namespace and the host's.
    Links,
    /// The host's values and rules.
    Host,
    /// A task's namespace.
    Task(String),
}

/// The clock of the rounds.
pub(super) struct Audit {
    /// There is a desired state to compare with.
    begun: bool,
    round: u32,
    started: Instant,
    due: Instant,
    steps: VecDeque<Step>,
    /// What could not be repaired in the last round, and in this one so far; each is logged once.
    complaints: [BTreeSet<String>; 2],
    /// What others had changed and was repaired since the last round ended.
    repaired: Vec<String>,
    /// The last round that came to its end.
    ended: Option<(Instant, AuditRecord)>,
}

impl Audit {
    pub(super) fn new(now: Instant) -> Audit {
        Audit {
            begun: false,
            round: 0,
            started: now,
            due: now + PERIOD,
            steps: VecDeque::new(),
            complaints: Default::default(),
            repaired: Vec::new(),
            ended: None,
        }
    }

    /// What the last whole round found; nothing before the first.
    pub(super) fn record(&self, now: Instant) -> Option<AuditRecord> {
        let (ended, record) = self.ended.as_ref()?;
        Some(AuditRecord { ago: now.saturating_duration_since(*ended), ..record.clone() })
    }

    /// A round is over once nothing of it is left to do.
    fn end_round(&mut self, now: Instant) {
        if self.steps.is_empty() {
            let wrong = self.complaints[1].iter().take(NOTED_MAX).cloned().collect();
            let record = AuditRecord { ago: Duration::ZERO, repaired: std::mem::take(&mut self.repaired), wrong };
            self.ended = Some((now, record));
        }
    }

    /// Says what others had changed, and that it is changed back.
    pub(super) fn report_repairs(&mut self, what: &str, changes: impl IntoIterator<Item = String>) {
        let mut changes: Vec<String> = changes.into_iter().collect();
        if changes.is_empty() {
            return;
        }
        let more = changes.len().saturating_sub(8);
        changes.truncate(8);
        if more > 0 {
            changes.push(format!("and {more} more"));
        }
        let changes = changes.join("; ");
        tracing::warn!(what, changes, "somebody else changed what belongs to the overlay; repairing it");
        if self.repaired.len() < NOTED_MAX {
            self.repaired.push(format!("{what}: {changes}"));
        }
    }

    /// When the next step is to be done.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// There is a desired state from now on.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// The next step at this time, if there is one to do.
    fn next(&mut self, now: Instant, tasks: impl Iterator<Item = String>) -> Option<Step> {
        if now < self.due {
            return None;
        }
        if self.steps.is_empty() {
            self.started = now;
            self.round = self.round.wrapping_add(1);
            self.complaints.rotate_left(1);
            self.complaints[1].clear();
            if self.begun {
                self.steps.extend([Step::Seals, Step::Links, Step::Host]);
                self.steps.extend(tasks.map(Step::Task));
            }
        }
        let step = self.steps.pop_front();
        self.due = if self.steps.is_empty() { self.started + PERIOD } else { now };
        step
    }

    fn is_thorough(&self) -> bool {
        self.round.is_multiple_of(THOROUGH)
    }

    fn complain(&mut self, error: &ObjectError) {
        let text = error.to_string();
        if !self.complaints.iter().any(|known| known.contains(&text)) {
            tracing::warn!(error = %text, "the overlay is not as desired and cannot be repaired for now");
        }
        self.complaints[1].insert(text);
    }
}

impl Owner {
    /// Does the next step of a round, if it is time.
    pub(super) fn audit_when_due(&mut self, now: Instant) {
        let Some(step) = self.audit.next(now, self.tasks.keys().cloned()) else { return };
        let errors = match step {
            Step::Seals => self.audit_seals(),
            Step::Links => self.audit_links(),
            Step::Host => self.audit_host(),
            Step::Task(id) => self.audit_task(&id),
        };
        for error in &errors {
            self.audit.complain(error);
        }
        self.audit.end_round(now);
    }

    fn audit_seals(&mut self) -> Vec<ObjectError> {
        let had_seal = self.stage.has_seal();
        let mut errors = self.reconcile_seals();
        self.try_seals_again();
        if self.stage.has_seal() != had_seal {
            // Tunnels come and go with it, which nobody else has done.
            self.settled = false;
            match self.reconcile(None) {
                Ok(more) => errors.extend(more),
                Err(error) => {
                    errors.push(ObjectError { object: "links".into(), source: io::Error::other(error) });
                }
            }
        }
        errors
    }

    fn audit_links(&mut self) -> Vec<ObjectError> {
        if self.settled && !self.stage.stirred() && !self.audit.is_thorough() {
            return Vec::new();
        }
        match self.reconcile(None) {
            Ok(errors) => errors,
            Err(error) => vec![ObjectError { object: "links".into(), source: io::Error::other(error) }],
        }
    }

    fn audit_host(&mut self) -> Vec<ObjectError> {
        let mut errors = Vec::new();
        match self.stage.host_values() {
            Ok(changed) => self.audit.report_repairs("the host's values", changed),
            Err(source) => errors.push(ObjectError { object: "values of the host".into(), source }),
        }
        match raise_neighbour_limits() {
            Ok(changed) => self.audit.report_repairs("the limits of neighbours", changed),
            Err(source) => errors.push(ObjectError { object: "limits of neighbours".into(), source }),
        }
        let sides = self.host_addresses();
        match self.stage.restore_routes(&sides) {
            Ok(changed) => self.audit.report_repairs("the host's routes", changed),
            Err(source) => errors.push(ObjectError { object: "routes of the host".into(), source }),
        }
        if self.former.is_due(self.began.elapsed()) {
            self.rebalance();
            errors.extend(self.apply_tables().errors);
        } else {
            errors.extend(self.apply_host_rules());
        }
        errors
    }

    fn audit_task(&mut self, id: &str) -> Vec<ObjectError> {
        let Some(mut task) = self.tasks.remove(id) else { return Vec::new() };
        let mut errors = Vec::new();
        let suspicious = task.watch.stirred() | self.audit.is_thorough() | (task.underlay != self.underlay);
        if suspicious {
            let outcome = match task.links.inside(&task.namespace) {
                Ok(found) => {
                    task.overfull = false;
                    task.route = task.route.after(found.default_route, task.inside.holds_route(&found));
                    let lacks = task.inside.lacks(&found, task.route, self.underlay);
                    let before = std::mem::replace(&mut task.lacking, lacks);
                    match &task.lacking {
                        lacks if lacks.is_empty() => Ok(()),
                        lacks => {
                            // A repair that does not succeed is tried again each time, and told once.
                            if *lacks != before {
                                self.audit.report_repairs(&format!("the links of task {id}"), lacks.iter().cloned());
                            }
                            // Chains that are bound to a link go with it.
                            task.rules.doubt();
                            let routed = task.route == DefaultRoute::Lost;
                            let wired = self.wire(id, &task.namespace, &mut task.links, &task.inside, routed);
                            if wired.is_ok() && routed {
                                task.route = DefaultRoute::Held;
                            }
                            wired
                        }
                    }
                }
                // Its links are its own to spoil, and nobody else waits until all of that is read.
                Err(error) if is_too_much(&error) => {
                    if !std::mem::replace(&mut task.overfull, true) {
                        tracing::warn!(task.id = id, %error, "the links of a task are left alone");
                    }
                    Ok(())
                }
                Err(source) => Err(("read its links".to_owned(), source)),
            };
            match outcome {
                Ok(()) => task.underlay = self.underlay,
                Err((step, source)) => errors.push(ObjectError { object: format!("task {id}: {step}"), source }),
            }
        }
        let wanted = self.tables.of(&self.balance, &task);
        if let Err(source) = apply_task_tables(wanted, id, &mut task, &mut Transitions::default(), &mut self.audit) {
            errors.push(ObjectError { object: format!("table of task {id}"), source });
        }
        self.tasks.insert(id.to_owned(), task);
        errors
    }
}

/// Says that a foreign firewall lets our packets pass.
pub(super) fn report_opened(opened: &Opened) {
    let chain = &opened.chain;
    if opened.again {
        tracing::warn!(chain, "somebody removed the rules that let forwarded packets pass a firewall; added again");
    } else {
        tracing::info!(chain, "a firewall drops what is forwarded; added rules that let the overlay's packets pass");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_keep_their_clock_and_go_step_by_step() {
        let start = Instant::now();
        let mut audit = Audit::new(start);
        let tasks = || ["a".to_owned(), "b".to_owned()].into_iter();
        assert_eq!(audit.next(start, tasks()), None);
        // Nothing is compared with a desired state that nobody has given yet.
        assert_eq!(audit.next(start + PERIOD, tasks()), None);
        assert_eq!(audit.due(), start + 2 * PERIOD);
        audit.begin();
        let late = start + 2 * PERIOD + Duration::from_millis(700);
        let steps: Vec<Step> = std::iter::from_fn(|| audit.next(late, tasks())).collect();
        assert_eq!(steps, [Step::Seals, Step::Links, Step::Host, Step::Task("a".into()), Step::Task("b".into())]);
        // The next round begins a period after this one began, not after it ended.
        assert_eq!(audit.due(), late + PERIOD);
        let much_later = late + 10 * PERIOD;
        assert_eq!(audit.next(much_later, tasks()), Some(Step::Seals));
        assert_eq!(audit.due(), much_later, "the rest of a round does not wait");
    }

    #[test]
    fn a_round_is_on_record_once_it_has_ended() {
        let start = Instant::now();
        let mut audit = Audit::new(start);
        audit.begin();
        let tasks = || ["a".to_owned()].into_iter();
        let at = start + PERIOD;
        let mut steps = 0;
        while audit.next(at, tasks()).is_some() {
            assert_eq!(audit.record(at), None, "not before its last step");
            steps += 1;
            if steps == 2 {
                audit.report_repairs("the host's rules", ["table shoal is missing".to_owned()]);
                audit.complain(&ObjectError { object: "links".into(), source: io::ErrorKind::NotFound.into() });
            }
            audit.end_round(at);
        }
        let record = audit.record(at + Duration::from_millis(300)).unwrap();
        assert_eq!(record.repaired, ["the host's rules: table shoal is missing"]);
        assert_eq!(record.wrong, ["links: entity not found"]);
        assert_eq!((record.ago, record.agreed()), (Duration::from_millis(300), false));
        // The next one has nothing to say.
        let later = at + PERIOD;
        while audit.next(later, tasks()).is_some() {
            audit.end_round(later);
        }
        assert!(audit.record(later).unwrap().agreed());
    }
}
