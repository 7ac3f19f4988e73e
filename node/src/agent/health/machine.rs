//! Whether one container is healthy: a state machine. Time and what probes said go in, when to probe comes out. The
//! rules and words are Docker's.

use std::collections::VecDeque;
use std::time::Duration;

use deploy::model::Timestamp;

/// Results that are kept.
const LOG: usize = 5;
/// Bytes of a result's output that are kept.
pub(super) const OUTPUT: usize = 4096;
/// A probe that was killed and is still there after this counts as one more failure, again and again.
const STUCK: Duration = Duration::from_secs(10);

/// A health check with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// What is executed; exit code 0 is healthy.
    pub(crate) command: Vec<String>,
    /// From the end of a probe to the next one.
    pub(crate) interval: Duration,
    /// A probe that takes longer has failed.
    pub(crate) timeout: Duration,
    /// For so long after the container's start failures do not count, unless it was healthy before.
    pub(crate) start_period: Duration,
    /// As `interval`, in the start period and before the first success.
    pub(crate) start_interval: Duration,
    /// Failures in a row that make it unhealthy.
    pub(crate) retries: u32,
}

/// What is thought of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Health {
    /// It has not been healthy yet.
    Starting = 0,
    /// Its last probe was good, or not enough were bad since.
    Healthy = 1,
    /// As many probes in a row were bad as make it so.
    Unhealthy = 2,
}

impl Health {
    /// Docker's word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        }
    }
}

/// What one probe said.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ProbeResult {
    /// When it began.
    #[prost(message, required, tag = "1")]
    pub(crate) start: Timestamp,
    /// When it had ended.
    #[prost(message, required, tag = "2")]
    pub(crate) end: Timestamp,
    /// 0 is good; -1 when there is none.
    #[prost(sint32, tag = "3")]
    pub(crate) exit_code: i32,
    /// What it wrote, cut.
    #[prost(string, tag = "4")]
    pub(crate) output: String,
}

/// What is known of a container's health; outlives the daemon.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Record {
    /// The verdict.
    #[prost(enumeration = "Health", tag = "1")]
    pub(crate) health: i32,
    /// Failures in a row.
    #[prost(uint32, tag = "2")]
    pub(crate) failing_streak: u32,
    /// The last results, oldest first.
    #[prost(message, repeated, tag = "3")]
    pub(crate) log: Vec<ProbeResult>,
}

/// How a probe ended. Outputs are longer than what is kept, if more was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By itself.
    Exited(i32, Vec<u8>),
    /// It was killed after its time.
    TimedOut(Vec<u8>),
    /// It could not be run, and why.
    Failed(String),
}

/// What the driver has to do: run the command, at most for the check's `timeout`, and say how it `ended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until the next probe.
    Waiting {
        until: Timestamp,
    },
    Probing {
        since: Timestamp,
    },
    /// It took too long, and should be gone. It counts when it is, or at this time.
    Overdue {
        since: Timestamp,
        until: Timestamp,
    },
    /// The container was paused under a probe, which does not count.
    Dropping,
    /// The container is paused.
    Paused,
}

/// The state of one container's health.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    check: Check,
    started: Timestamp,
    health: Health,
    failing_streak: u32,
    log: VecDeque<ProbeResult>,
    phase: Phase,
    paused: bool,
}

impl Machine {
    /// A container that started at `started`, with what an earlier daemon knew of it.
    pub(super) fn new(check: Check, started: Timestamp, known: Record, now: Timestamp) -> Self {
        let mut this = Self {
            health: known.health(),
            failing_streak: known.failing_streak,
            log: known.log.into(),
            check,
            started,
            phase: Phase::Paused,
            paused: false,
        };
        while this.log.len() > LOG {
            this.log.pop_front();
        }
        // As if the daemon had never been away; what is overdue is done now.
        let last = this.log.back().map_or(started, |result| result.end).min(now);
        this.phase = Phase::Waiting { until: last.plus(this.interval(last)) };
        this
    }

    /// The verdict.
    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// What is to be remembered.
    pub(super) fn record(&self) -> Record {
        Record {
            health: self.health as i32,
            failing_streak: self.failing_streak,
            log: self.log.iter().cloned().collect(),
        }
    }

    /// When `tick` has something to do next.
    pub(super) fn next(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Waiting { until } | Phase::Overdue { until, .. } => Some(until),
            Phase::Probing { since } => Some(since.plus(self.check.timeout)),
            Phase::Dropping | Phase::Paused => None,
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Timestamp) -> Option<Probe> {
        if self.next().is_none_or(|next| now < next) {
            return None;
        }
        match self.phase {
            Phase::Waiting { .. } => {
                self.phase = Phase::Probing { since: now };
                Some(Probe)
            }
            Phase::Probing { since } => {
                self.phase = Phase::Overdue { since, until: now.plus(STUCK) };
                None
            }
            Phase::Overdue { since, .. } => {
                self.exceeded(since, now, &[]);
                self.phase = Phase::Overdue { since: now, until: now.plus(self.check.interval.max(STUCK)) };
                None
            }
            Phase::Dropping | Phase::Paused => None,
        }
    }

    /// The probe has ended, and nothing of it is left.
    pub(super) fn ended(&mut self, now: Timestamp, outcome: Outcome) {
        match self.phase {
            Phase::Probing { since } | Phase::Overdue { since, .. } => {
                let (exit_code, output) = match outcome {
                    Outcome::TimedOut(output) => return self.exceeded_and_rest(since, now, &output),
                    Outcome::Exited(_, output) if matches!(self.phase, Phase::Overdue { .. }) => {
                        return self.exceeded_and_rest(since, now, &output);
                    }
                    Outcome::Exited(code, output) => (code, cut(&output)),
                    Outcome::Failed(reason) => (-1, cut(reason.as_bytes())),
                };
                self.judge(ProbeResult { start: since, end: now, exit_code, output });
            }
            Phase::Dropping => {}
            Phase::Waiting { .. } | Phase::Paused => return,
        }
        self.rest(now);
    }

    /// The container is paused, or goes on: nothing is asked of one that cannot answer, and what was asked does not
    /// count.
    pub(super) fn pause(&mut self, now: Timestamp, paused: bool) {
        if std::mem::replace(&mut self.paused, paused) == paused {
            return;
        }
        match self.phase {
            Phase::Probing { .. } | Phase::Overdue { .. } if paused => self.phase = Phase::Dropping,
            Phase::Waiting { .. } | Phase::Paused => self.rest(now),
            Phase::Probing { .. } | Phase::Overdue { .. } | Phase::Dropping => {}
        }
    }

    fn exceeded_and_rest(&mut self, since: Timestamp, now: Timestamp, output: &[u8]) {
        self.exceeded(since, now, output);
        self.rest(now);
    }

    fn rest(&mut self, now: Timestamp) {
        self.phase = match self.paused {
            true => Phase::Paused,
            false => Phase::Waiting { until: now.plus(self.interval(now)) },
        };
    }

    fn interval(&self, now: Timestamp) -> Duration {
        let beginning = self.health == Health::Starting && now.since(self.started) < self.check.start_period;
        if beginning { self.check.start_interval } else { self.check.interval }
    }

    fn exceeded(&mut self, since: Timestamp, now: Timestamp, output: &[u8]) {
        let text = format!("Health check exceeded timeout ({})", go_duration(self.check.timeout));
        let output = if output.is_empty() { text } else { format!("{text}: {}", cut(output)) };
        self.judge(ProbeResult { start: since, end: now, exit_code: -1, output });
    }

    fn judge(&mut self, result: ProbeResult) {
        let early = result.start.since(self.started) < self.check.start_period;
        if result.exit_code == 0 {
            self.failing_streak = 0;
            self.health = Health::Healthy;
        } else if self.health != Health::Starting || !early {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= self.check.retries {
                self.health = Health::Unhealthy;
            }
        }
        if self.log.len() >= LOG {
            self.log.pop_front();
        }
        self.log.push_back(result);
    }
}

/// The first bytes as text, and three dots where there were more.
fn cut(output: &[u8]) -> String {
    match output.get(..OUTPUT) {
        Some(first) if output.len() > OUTPUT => String::from_utf8_lossy(first).into_owned() + "...",
        _ => String::from_utf8_lossy(output).into_owned(),
    }
}

/// A duration as Go prints it: `1m30s`, `500ms`, `1.5s`.
fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let decimal = |unit: u128| {
        let (whole, rest) = (nanos / unit, nanos % unit);
        let digits = unit.to_string().len() - 1;
        let rest = format!("{rest:0digits$}");
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { whole.to_string() } else { format!("{whole}.{rest}") }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(1_000_000)),
        _ => {
            let minutes = duration.as_secs() / 60;
            let seconds = Duration::new(duration.as_secs() % 60, duration.subsec_nanos());
            let seconds = format!("{}s", seconds.as_secs_f64());
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Check {
        Check {
            command: vec!["true".into()],
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            start_period: Duration::ZERO,
            start_interval: Duration::from_secs(2),
            retries: 3,
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    fn machine(check: Check) -> Machine {
        Machine::new(check, at(0), Record::default(), at(0))
    }

    fn exit(code: i32) -> Outcome {
        Outcome::Exited(code, b"said".to_vec())
    }

    /// The next probe comes at `second`, and ends there with this code.
    #[track_caller]
    fn probe(machine: &mut Machine, second: u64, code: i32, expected: Health) {
        assert_eq!(machine.next(), Some(at(second)), "the time of the next probe");
        assert_eq!(machine.tick(at(second)), Some(Probe));
        machine.ended(at(second), exit(code));
        assert_eq!(machine.health(), expected);
    }

    #[test]
    fn it_is_healthy_with_the_first_success_and_unhealthy_after_so_many_failures() {
        let mut m = machine(check());
        assert_eq!((m.tick(at(29)), m.health()), (None, Health::Starting));
        probe(&mut m, 30, 1, Health::Starting);
        probe(&mut m, 60, 0, Health::Healthy);
        probe(&mut m, 90, 1, Health::Healthy);
        probe(&mut m, 120, 2, Health::Healthy);
        probe(&mut m, 150, 0, Health::Healthy);
        for second in [180, 210] {
            probe(&mut m, second, 1, Health::Healthy);
        }
        probe(&mut m, 240, 1, Health::Unhealthy);
        probe(&mut m, 270, 0, Health::Healthy);
    }

    #[test]
    fn the_interval_begins_with_the_end_of_a_probe() {
        let mut m = machine(check());
        m.tick(at(30));
        m.ended(at(34), exit(0));
        assert_eq!(m.next(), Some(at(64)));
    }

    #[test]
    fn failures_at_the_start_do_not_count_and_are_asked_again_soon() {
        let mut m = machine(Check { start_period: Duration::from_secs(7), retries: 1, ..check() });
        probe(&mut m, 2, 1, Health::Starting);
        probe(&mut m, 4, 1, Health::Starting);
        probe(&mut m, 6, 1, Health::Starting);
        assert_eq!(m.record().failing_streak, 0);
        // Begun after the period.
        probe(&mut m, 8, 1, Health::Unhealthy);

        let mut m = machine(Check { start_period: Duration::from_secs(1000), retries: 1, ..check() });
        probe(&mut m, 2, 0, Health::Healthy);
        // Healthy once: from here on it is like any other.
        probe(&mut m, 32, 1, Health::Unhealthy);
    }

    #[test]
    fn a_probe_that_hangs_is_killed_and_has_failed() {
        let mut m = machine(Check { retries: 1, ..check() });
        m.tick(at(30));
        assert_eq!(m.next(), Some(at(35)));
        assert_eq!(m.tick(at(35)), None);
        assert_eq!(m.health(), Health::Starting, "it may still be there");
        m.ended(at(36), Outcome::TimedOut(b"so far".to_vec()));
        assert_eq!((m.health(), m.next()), (Health::Unhealthy, Some(at(66))));
        let last = m.record().log.pop().unwrap();
        assert_eq!((last.exit_code, last.start, last.end), (-1, at(30), at(36)));
        assert_eq!(last.output, "Health check exceeded timeout (5s): so far");
        // The same when its end is told before anybody has looked at the clock; and what cannot be run has failed too.
        m.tick(at(66));
        m.ended(at(71), Outcome::TimedOut(Vec::new()));
        assert_eq!(m.record().log[1].output, "Health check exceeded timeout (5s)");
        m.tick(at(101));
        m.ended(at(101), Outcome::Failed("no such file".into()));
        assert_eq!((m.record().log[2].exit_code, m.record().failing_streak), (-1, 3));
    }

    #[test]
    fn a_probe_that_cannot_be_killed_counts_again_and_again_and_is_not_joined_by_others() {
        let mut m = machine(Check { retries: 2, ..check() });
        m.tick(at(30));
        m.tick(at(35));
        assert_eq!((m.tick(at(45)), m.health()), (None, Health::Starting));
        assert_eq!((m.tick(at(75)), m.health()), (None, Health::Unhealthy));
        m.ended(at(80), exit(0));
        assert_eq!(m.health(), Health::Unhealthy, "late is not good");
        assert_eq!(m.next(), Some(at(110)));
    }

    #[test]
    fn nothing_is_asked_of_a_paused_container() {
        let mut m = machine(check());
        m.pause(at(10), true);
        assert_eq!((m.next(), m.tick(at(1000))), (None, None));
        m.pause(at(1000), true);
        m.pause(at(2000), false);
        assert_eq!(m.next(), Some(at(2030)));
        // One that is under way is dropped, and does not count.
        m.tick(at(2030));
        m.pause(at(2031), true);
        m.pause(at(2032), false);
        assert_eq!((m.next(), m.tick(at(3000))), (None, None), "the first one is still there");
        m.ended(at(3000), exit(1));
        assert_eq!((m.record().failing_streak, m.record().log.len()), (0, 0));
        assert_eq!(m.next(), Some(at(3030)));
    }

    #[test]
    fn the_last_results_are_kept_and_cut() {
        let mut m = machine(check());
        for (number, second) in (30..270).step_by(30).enumerate() {
            m.tick(at(second));
            let output = vec![b'a' + u8::try_from(number).unwrap(); OUTPUT + number];
            m.ended(at(second), Outcome::Exited(1, output));
        }
        let log = m.record().log;
        assert_eq!(log.len(), 5);
        assert!(log[0].output.starts_with("dddd") && log[4].output.starts_with("hhhh"));
        assert_eq!(log[4].output.len(), OUTPUT + 3);
        assert!(log[4].output.ends_with("h..."));
    }

    #[test]
    fn another_daemon_goes_on_where_the_last_one_was() {
        let mut m = machine(check());
        probe(&mut m, 30, 0, Health::Healthy);
        probe(&mut m, 60, 1, Health::Healthy);
        probe(&mut m, 90, 1, Health::Healthy);
        let known = m.record();
        let mut soon = Machine::new(check(), at(0), known.clone(), at(100));
        probe(&mut soon, 120, 1, Health::Unhealthy);
        // What is overdue is asked at once; a clock that was set back does not put it off.
        let late = Machine::new(check(), at(0), known.clone(), at(500));
        assert_eq!(late.next().map(|next| next <= at(500)), Some(true));
        let back = Machine::new(check(), at(0), known, at(10));
        assert_eq!(back.next(), Some(at(40)));
    }

    #[test]
    fn durations_read_as_in_go() {
        for (nanos, text) in [
            (0, "0s"),
            (1_000_000, "1ms"),
            (1_500_000, "1.5ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
        }
    }
}
