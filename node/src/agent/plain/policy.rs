//! What happens to a plain container that has ended, pure: it stays, is started again after a pause, or is removed.

use std::time::Duration;

use tonic::Code;

use super::PlainError;
use super::local::LocalError;
use super::places::PlaceError;
use super::record::{Record, Restart};

/// The first pause before a restart; Docker's.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest; each is twice the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who has run for so long begins with the first pause again.
const STEADY: Duration = Duration::from_secs(10);

/// Between two attempts to start one that needs a manager for that, each of which asks them for up to 10 s.
const RETRY: Duration = Duration::from_secs(1);
/// The same where the network has no address left: those that were given back rest for a moment.
const DRY: Duration = Duration::from_secs(5);

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Stay,
    /// It is started after this pause.
    Again(Duration),
    /// The same, and that is no restart: the attempt before was none.
    Retry(Duration),
    /// It goes.
    Remove,
}

/// How a container ended, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Its exit code.
    pub(super) code: i32,
    /// How long it ran.
    pub(super) ran: Duration,
}

/// After the end of one that was to run. `pause` is the one before its last restart; zero if its user started it.
pub(super) fn after(record: &Record, end: End, pause: Duration) -> Next {
    if record.auto_remove {
        return Next::Remove;
    }
    let again = match record.restart() {
        Restart::No => false,
        Restart::OnFailure => end.code != 0 && (record.max_restarts == 0 || record.restarts < record.max_restarts),
        Restart::Always | Restart::UnlessStopped => true,
    };
    if !again || record.stopped {
        return Next::Stay;
    }
    let doubled = if end.ran >= STEADY { Duration::ZERO } else { pause * 2 };
    Next::Again(doubled.clamp(FIRST_PAUSE, LONGEST_PAUSE))
}

/// After a start that failed. That no manager can be asked for a place, or has none left, is no fault of the container's.
pub(super) fn not_started(record: &Record, error: &PlainError, pause: Duration) -> Next {
    match error {
        PlainError::Place { reason: PlaceError::Unavailable(_) | PlaceError::Late, .. } => Next::Retry(RETRY),
        PlainError::Place { reason: PlaceError::Refused { code: Code::ResourceExhausted, .. }, .. } => Next::Retry(DRY),
        PlainError::Local(LocalError::Dry { .. } | LocalError::AddressTaken { .. }) => Next::Retry(DRY),
        _ => after(record, End { code: 127, ran: Duration::ZERO }, pause),
    }
}

/// After a start by its user that failed, and was told. `waited`: it was about to be started anyway, and still is if only a
/// manager or an address is missing.
pub(super) fn not_started_by_user(record: &Record, error: &PlainError, waited: bool) -> Next {
    match not_started(record, error, Duration::ZERO) {
        Next::Retry(pause) if waited => Next::Retry(pause),
        _ if record.auto_remove => Next::Remove,
        _ => Next::Stay,
    }
}

/// When the daemon begins, and finds one that does not run. `end` is how it ended, if it was to run until then; otherwise
/// `has_run` says whether it has ended at all.
pub(super) fn at_start(record: &Record, end: Option<End>, has_run: bool) -> Next {
    match (end, record.restart()) {
        (Some(end), _) => match after(record, end, Duration::ZERO) {
            // Whoever was to run, and did not for as long as the daemon was away, has waited for long enough.
            Next::Again(_) => Next::Again(Duration::ZERO),
            other => other,
        },
        // Docker's difference to unless-stopped.
        (None, Restart::Always) if record.stopped => Next::Again(Duration::ZERO),
        // It has had another policy until it ended.
        (None, Restart::Always | Restart::UnlessStopped) if has_run && !record.stopped => Next::Again(Duration::ZERO),
        (None, _) => Next::Stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(restart: Restart, max_restarts: u32, restarts: u32) -> Record {
        let mut record = Record { max_restarts, restarts, ..Record::default() };
        record.set_restart(restart);
        record
    }

    const MOMENT: Duration = Duration::from_millis(10);

    #[track_caller]
    fn check(record: &Record, code: i32, expected: Next) {
        assert_eq!(after(record, End { code, ran: MOMENT }, Duration::ZERO), expected, "{record:?} {code}");
    }

    #[test]
    fn policies_as_dockers() {
        let again = Next::Again(FIRST_PAUSE);
        check(&record(Restart::No, 0, 0), 1, Next::Stay);
        check(&record(Restart::OnFailure, 0, 1000), 1, again);
        check(&record(Restart::OnFailure, 0, 0), 0, Next::Stay);
        check(&record(Restart::OnFailure, 2, 1), 1, again);
        check(&record(Restart::OnFailure, 2, 2), 1, Next::Stay);
        for policy in [Restart::Always, Restart::UnlessStopped] {
            check(&record(policy, 0, 0), 0, again);
            check(&Record { stopped: true, ..record(policy, 0, 0) }, 137, Next::Stay);
        }
        check(&Record { auto_remove: true, ..Record::default() }, 0, Next::Remove);
        check(&Record { auto_remove: true, stopped: true, ..Record::default() }, 137, Next::Remove);
    }

    #[test]
    fn pauses_double_and_begin_anew() {
        let record = record(Restart::Always, 0, 0);
        let mut pause = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let Next::Again(next) = after(&record, End { code: 1, ran: MOMENT }, pause) else { panic!("it stays") };
            pause = next;
            pauses.push(next.as_millis());
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(after(&record, End { code: 1, ran: STEADY }, pause), Next::Again(FIRST_PAUSE));
    }

    #[test]
    fn a_start_without_managers_is_not_counted() {
        let no_place = |reason| PlainError::Place { network: "back".into(), reason };
        let tired = record(Restart::OnFailure, 2, 2);
        for reason in [PlaceError::Late, PlaceError::Unavailable("none is known".into())] {
            assert_eq!(not_started(&tired, &no_place(reason), LONGEST_PAUSE), Next::Retry(RETRY));
        }
        let refused = |code| no_place(PlaceError::Refused { code, reason: "no".into() });
        assert_eq!(not_started(&tired, &refused(Code::ResourceExhausted), FIRST_PAUSE), Next::Retry(DRY));
        assert_eq!(not_started(&tired, &refused(Code::NotFound), FIRST_PAUSE), Next::Stay);
        let steady = record(Restart::Always, 0, 9);
        assert_eq!(not_started(&steady, &refused(Code::NotFound), FIRST_PAUSE), Next::Again(2 * FIRST_PAUSE));
    }

    #[test]
    fn a_start_by_its_user_that_fails_ends_no_wait_for_a_manager() {
        let late = PlainError::Place { network: "back".into(), reason: PlaceError::Late };
        let always = record(Restart::Always, 0, 0);
        assert_eq!(not_started_by_user(&always, &late, true), Next::Retry(RETRY));
        assert_eq!(not_started_by_user(&always, &late, false), Next::Stay);
        assert_eq!(not_started_by_user(&always, &PlainError::Paused, true), Next::Stay);
        let removed = Record { auto_remove: true, ..Record::default() };
        assert_eq!(not_started_by_user(&removed, &late, false), Next::Remove);
        assert_eq!(not_started_by_user(&removed, &late, true), Next::Retry(RETRY));
    }

    #[test]
    fn a_daemon_that_begins_starts_those_that_are_to_run() {
        let end = Some(End { code: 137, ran: MOMENT });
        let now = Next::Again(Duration::ZERO);
        assert_eq!(at_start(&record(Restart::UnlessStopped, 0, 0), end, true), now);
        assert_eq!(at_start(&record(Restart::No, 0, 0), end, true), Next::Stay);
        assert_eq!(at_start(&record(Restart::OnFailure, 0, 0), end, true), now);
        assert_eq!(at_start(&Record { auto_remove: true, ..Record::default() }, end, true), Next::Remove);
        let stopped = |policy| Record { stopped: true, ..record(policy, 0, 0) };
        assert_eq!(at_start(&stopped(Restart::Always), None, true), now);
        assert_eq!(at_start(&stopped(Restart::UnlessStopped), None, true), Next::Stay);
        for policy in [Restart::Always, Restart::UnlessStopped] {
            assert_eq!(at_start(&record(policy, 0, 0), None, false), Next::Stay, "it was never started");
            assert_eq!(at_start(&record(policy, 0, 0), None, true), now, "it ended under another policy");
        }
        for policy in [Restart::No, Restart::OnFailure] {
            assert_eq!(at_start(&record(policy, 0, 0), None, true), Next::Stay);
        }
    }
}
