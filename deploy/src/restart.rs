//! Whether, and when, a task that is no longer there gets a successor in its slot.
//!
//! Pure functions of the task alone: a leader that comes later decides the same. The orchestrator calls them for the
//! newest task of a slot that nothing wanted is in.

use std::time::Duration;

use crate::model::{RestartCondition, RestartPolicy, Task, TaskState, Timestamp};

/// More attempts than this count as this many: each one is a stored timestamp in the task.
pub const MAX_COUNTED_ATTEMPTS: usize = 1000;

/// Restarts remembered when the policy has no limit; the newest are kept, for people.
const REMEMBERED: usize = 8;

/// What follows a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The cluster took the task away (host lost or drained): the successor comes at once and does not count.
    Replace,
    /// The task ended by itself: the successor starts after a delay and counts.
    Restart(Duration),
    /// The slot is finished.
    Leave,
}

/// What follows `task`.
///
/// A task counts as having ended by itself when its state says so; one that the leader took away is either still
/// unfinished, or ended as Shutdown or Orphaned.
pub(crate) fn verdict(task: &Task) -> Verdict {
    let policy = task.spec.restart_policy();
    let failed = match task.state() {
        TaskState::Complete => false,
        TaskState::Failed | TaskState::Rejected => true,
        _ => return Verdict::Replace,
    };
    match policy.when() {
        RestartCondition::None => return Verdict::Leave,
        RestartCondition::OnFailure if !failed => return Verdict::Leave,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    match attempt_limit(&policy) {
        Some(limit) if attempts(task, &policy) >= limit => Verdict::Leave,
        _ => Verdict::Restart(policy.delay()),
    }
}

/// The restart history of a successor of `task`, which ended by itself and is restarted at `now`.
pub(crate) fn history_after(task: &Task, now: Timestamp) -> Vec<Timestamp> {
    let keep = attempt_limit(&task.spec.restart_policy()).unwrap_or(REMEMBERED);
    let mut history = task.restarts.clone();
    // Attempts that the agent made on its own while it had no manager count like any others.
    history.extend(std::iter::repeat_n(task.status.at, local_restarts(task).min(keep)));
    history.push(now);
    let surplus = history.len().saturating_sub(keep);
    history.drain(..surplus);
    history
}

/// Attempts that the policy allows within its window; `None` means any number.
fn attempt_limit(policy: &RestartPolicy) -> Option<usize> {
    match policy.max_attempts.unwrap_or(0) {
        0 => None,
        n => Some(usize::try_from(n).unwrap_or(MAX_COUNTED_ATTEMPTS).min(MAX_COUNTED_ATTEMPTS)),
    }
}

/// Attempts within the window that ends when the task ended. Counting back from there, not from now, keeps a slot that
/// was given up from coming to life when the window has passed.
fn attempts(task: &Task, policy: &RestartPolicy) -> usize {
    let window = policy.window_ns.unwrap_or(0);
    let counted = task
        .restarts
        .iter()
        .filter(|at| window == 0 || task.status.at.since(**at) <= Duration::from_nanos(window))
        .count();
    counted.saturating_add(local_restarts(task))
}

fn local_restarts(task: &Task) -> usize {
    task.status.container.as_ref().map_or(0, |c| c.local_restarts as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: TaskState, policy: RestartPolicy, restarts_s: &[u64], at_s: u64) -> Task {
        let mut task = Task::default();
        task.status.set_state(state);
        task.status.at = Timestamp::from_millis(at_s * 1000);
        task.restarts = restarts_s.iter().map(|s| Timestamp::from_millis(s * 1000)).collect();
        task.spec.restart = Some(policy);
        task
    }

    fn policy(condition: RestartCondition, max: u64, window_s: u64) -> RestartPolicy {
        RestartPolicy {
            condition: Some(condition as i32),
            delay_ns: None,
            max_attempts: Some(max),
            window_ns: Some(window_s * 1_000_000_000),
        }
    }

    #[test]
    fn conditions_are_dockers() {
        let restart = Verdict::Restart(Duration::from_secs(5));
        for (state, condition, expected) in [
            (TaskState::Complete, RestartCondition::Any, restart),
            (TaskState::Complete, RestartCondition::OnFailure, Verdict::Leave),
            (TaskState::Failed, RestartCondition::OnFailure, restart),
            (TaskState::Rejected, RestartCondition::OnFailure, restart),
            (TaskState::Failed, RestartCondition::None, Verdict::Leave),
            (TaskState::Running, RestartCondition::None, Verdict::Replace),
            (TaskState::Shutdown, RestartCondition::None, Verdict::Replace),
            (TaskState::Orphaned, RestartCondition::OnFailure, Verdict::Replace),
        ] {
            assert_eq!(verdict(&ended(state, policy(condition, 0, 0), &[], 9)), expected, "{state:?} {condition:?}");
        }
    }

    #[test]
    fn attempts_count_within_the_window_before_the_end() {
        let on = |max, window, restarts: &[u64]| {
            verdict(&ended(TaskState::Failed, policy(RestartCondition::Any, max, window), restarts, 100))
        };
        assert_eq!(on(2, 0, &[1, 2]), Verdict::Leave);
        assert_eq!(on(3, 0, &[1, 2]), Verdict::Restart(Duration::from_secs(5)));
        assert_eq!(on(2, 10, &[1, 95]), Verdict::Restart(Duration::from_secs(5)));
        assert_eq!(on(2, 10, &[92, 95]), Verdict::Leave);
    }

    #[test]
    fn history_stays_bounded() {
        let mut task = ended(TaskState::Failed, policy(RestartCondition::Any, 0, 0), &[], 1);
        for second in 0..100 {
            task.restarts = history_after(&task, Timestamp::from_millis(second * 1000));
        }
        assert_eq!(task.restarts.len(), REMEMBERED);
        assert_eq!(task.restarts.last().copied(), Some(Timestamp::from_millis(99_000)));
    }
}
