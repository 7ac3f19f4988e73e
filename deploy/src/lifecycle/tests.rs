//! Tasks' lives, event by event, and what is done after each.

use super::*;
use crate::model::{RestartCondition, RestartPolicy};

const NOW: Timestamp = Timestamp::from_millis(1000);

fn task(desired: DesiredState) -> Task {
    let mut task = Task::default();
    task.set_desired(desired);
    task
}

fn new_task(desired: DesiredState) -> (Lifecycle, Vec<Action>) {
    Lifecycle::assigned(Assignment { task: task(desired), progress: 0 }, true, NOW)
}

/// Actions in short: reports as their state, everything else by name.
fn short(actions: &[Action]) -> String {
    let one = |action: &Action| match action {
        Action::Report(status) => format!("{:?}", status.state()),
        Action::Stop { .. } => "stop".to_owned(),
        Action::Start { attempt } => format!("start#{attempt}"),
        Action::WakeAt(at) => format!("wake@{}", at.nanos / 1_000_000),
        other => format!("{other:?}").to_lowercase(),
    };
    actions.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(life: &mut Lifecycle, event: Event, expected: &str) {
    assert_eq!(short(&life.handle(NOW, event.clone())), expected, "after {event:?}");
}

fn want(desired: DesiredState) -> Event {
    Event::Updated(Box::new(task(desired)))
}

fn started() -> Event {
    Event::Started { container: "c1".into(), pid: 7 }
}

fn exited(code: i32) -> Event {
    Event::Exited { exit_code: Some(code), oom_killed: false }
}

#[test]
fn runs_stops_and_is_removed() {
    let (mut life, first) = new_task(DesiredState::Running);
    assert_eq!(short(&first), "Accepted Preparing prepare");
    check(&mut life, Event::Prepared, "Ready Starting start#0");
    check(&mut life, started(), "Running");
    check(&mut life, want(DesiredState::Shutdown), "stop");
    check(&mut life, want(DesiredState::Remove), "");
    check(&mut life, exited(143), "Shutdown");
    check(&mut life, Event::Withdrawn, "remove");
    check(&mut life, Event::Removed, "");
    assert!(life.is_gone());
}

#[test]
fn waits_as_ready_until_it_is_wanted_running() {
    let (mut life, _) = new_task(DesiredState::Ready);
    check(&mut life, Event::Prepared, "Ready");
    check(&mut life, want(DesiredState::Running), "Starting start#0");
}

#[test]
fn an_error_is_rejected_before_the_start_and_failed_after_it() {
    let (mut life, _) = new_task(DesiredState::Running);
    check(&mut life, Event::PrepareFailed { error: "no such image".into() }, "Rejected");
    let (mut life, _) = new_task(DesiredState::Running);
    check(&mut life, Event::Prepared, "Ready Starting start#0");
    check(&mut life, Event::StartFailed { error: "no such file".into() }, "Failed");
    let (mut life, _) = new_task(DesiredState::Running);
    check(&mut life, Event::Prepared, "Ready Starting start#0");
    check(&mut life, started(), "Running");
    check(&mut life, exited(3), "Failed");
    assert_eq!(life.status().err, "task: non-zero exit (3)");
    check(&mut life, Event::Prepared, "");
}

#[test]
fn a_stop_is_obeyed_in_every_phase() {
    let (mut life, _) = new_task(DesiredState::Running);
    check(&mut life, want(DesiredState::Shutdown), "cancelprepare");
    check(&mut life, Event::Prepared, "");
    check(&mut life, Event::PrepareFailed { error: "cancelled".into() }, "Shutdown");
    let (mut life, _) = new_task(DesiredState::Running);
    check(&mut life, Event::Withdrawn, "cancelprepare");
    check(&mut life, Event::PrepareFailed { error: "cancelled".into() }, "Shutdown remove");
    let (mut life, _) = new_task(DesiredState::Running);
    check(&mut life, Event::Prepared, "Ready Starting start#0");
    check(&mut life, want(DesiredState::Shutdown), "");
    check(&mut life, started(), "Running stop");
    let (mut life, first) = new_task(DesiredState::Shutdown);
    assert_eq!(short(&first), "Accepted Shutdown");
    check(&mut life, want(DesiredState::Running), "");
}

#[test]
fn what_was_prepared_is_taken_back_before_the_task_has_ended() {
    let cancelled = || Event::PrepareFailed { error: "cancelled".into() };
    let (mut life, _) = new_task(DesiredState::Ready);
    check(&mut life, Event::Prepared, "Ready");
    check(&mut life, want(DesiredState::Shutdown), "cancelprepare");
    check(&mut life, Event::Withdrawn, "");
    check(&mut life, cancelled(), "Shutdown remove");

    // An agent that starts again does not know how far it had come.
    let mut status = TaskStatus::default();
    status.set_state(TaskState::Ready);
    let (mut life, first) = Lifecycle::resumed(task(DesiredState::Shutdown), status, Found::Nothing, true, NOW);
    assert_eq!(short(&first), "Ready cancelprepare");
    check(&mut life, cancelled(), "Shutdown");
}

#[test]
fn a_task_that_ended_without_a_manager_is_the_leaders_again_once_there_is_one() {
    let (mut life, _) = new_task(DesiredState::Running);
    life.handle(NOW, Event::Prepared);
    life.handle(NOW, started());
    check(&mut life, Event::Connected(false), "");
    check(&mut life, exited(3), "Running wake@6000");
    check(&mut life, Event::Connected(true), "wake@2000");
    let mut taken_away = life.clone();
    check(&mut taken_away, Event::Withdrawn, "Shutdown remove");
    let second_later = Timestamp::from_millis(2000);
    assert_eq!(short(&life.handle(second_later, Event::Timer)), "Failed");
    assert_eq!(life.status().err, "task: non-zero exit (3)");
    assert_eq!(life.status().container.as_ref().map(|c| c.local_restarts), Some(0), "counted without an attempt");
    check(&mut life, Event::Timer, "");
}

#[test]
fn without_a_manager_the_host_follows_the_policy() {
    let policy = RestartPolicy {
        condition: Some(RestartCondition::OnFailure as i32),
        delay_ns: Some(2_000_000_000),
        max_attempts: Some(1),
        window_ns: None,
    };
    let mut task = task(DesiredState::Running);
    task.spec.restart = Some(policy);
    let (mut life, _) = Lifecycle::assigned(Assignment { task, progress: 0 }, true, NOW);
    life.handle(NOW, Event::Prepared);
    life.handle(NOW, started());
    check(&mut life, Event::Connected(false), "");
    check(&mut life, exited(1), "Running wake@3000");
    check(&mut life, Event::Timer, "wake@3000");
    assert_eq!(short(&life.handle(Timestamp::from_millis(3000), Event::Timer)), "start#1");
    check(&mut life, started(), "Running");
    check(&mut life, Event::Connected(true), "Running");
    assert_eq!(life.status().container.as_ref().map(|c| c.local_restarts), Some(1));
    check(&mut life, Event::Connected(false), "");
    check(&mut life, exited(1), "Failed");
}

#[test]
fn an_end_that_no_manager_heard_of_is_followed_by_an_attempt() {
    let ended = || {
        let (mut life, _) = new_task(DesiredState::Running);
        life.handle(NOW, Event::Prepared);
        life.handle(NOW, started());
        check(&mut life, exited(3), "Failed");
        check(&mut life, Event::Unheard, "");
        life
    };
    let mut life = ended();
    check(&mut life, Event::Connected(false), "");
    check(&mut life, Event::Unheard, "");
    assert_eq!(life.status().state(), TaskState::Failed, "the word was taken back although a manager was there");

    let (mut life, _) = new_task(DesiredState::Running);
    life.handle(NOW, Event::Prepared);
    life.handle(NOW, started());
    check(&mut life, exited(3), "Failed");
    check(&mut life, Event::Connected(false), "");
    check(&mut life, Event::Unheard, "Running wake@6000");
    // What the leader decided when it had heard of it after all.
    let mut replaced = life.clone();
    check(&mut replaced, Event::Connected(true), "wake@2000");
    check(&mut replaced, want(DesiredState::Shutdown), "Shutdown");
    assert_eq!(short(&life.handle(Timestamp::from_millis(6000), Event::Timer)), "start#1");
    check(&mut life, started(), "Running");
    check(&mut life, Event::Unheard, "");
}

fn launched() -> Event {
    Event::Launched { container: "c1".into(), pid: 7 }
}

#[test]
fn a_task_with_a_health_check_is_starting_until_it_is_healthy() {
    let (mut life, _) = new_task(DesiredState::Running);
    life.handle(NOW, Event::Prepared);
    check(&mut life, launched(), "Starting");
    assert_eq!(life.status().container.as_ref().map(|c| c.pid), Some(7));
    let mut stopped = life.clone();
    check(&mut stopped, want(DesiredState::Shutdown), "stop");
    check(&mut stopped, started(), "");
    check(&mut stopped, exited(143), "Shutdown");
    let mut died = life.clone();
    check(&mut died, exited(3), "Failed");
    let mut failed = life.clone();
    check(&mut failed, Event::Unhealthy, "Starting stop");
    check(&mut failed, started(), "");
    check(&mut failed, exited(137), "Failed");
    assert_eq!(failed.status().err, "task: non-zero exit (137): unhealthy container");
    check(&mut life, started(), "Running");
    assert!(!life.status().unhealthy);
}

#[test]
fn an_unhealthy_task_is_stopped_and_has_failed() {
    let (mut life, _) = new_task(DesiredState::Running);
    life.handle(NOW, Event::Prepared);
    life.handle(NOW, launched());
    life.handle(NOW, started());
    let mut unwanted = life.clone();
    check(&mut life, Event::Unhealthy, "Running stop");
    assert!(life.status().unhealthy, "nobody is led there while it stops");
    check(&mut life, Event::Unhealthy, "");
    let mut taken_away = life.clone();
    check(&mut taken_away, want(DesiredState::Shutdown), "");
    check(&mut taken_away, exited(0), "Shutdown");
    check(&mut life, exited(0), "Failed");
    assert_eq!(life.status().err, "unhealthy container");
    check(&mut unwanted, want(DesiredState::Shutdown), "stop");
    check(&mut unwanted, Event::Unhealthy, "");
}

#[test]
fn a_new_attempt_serves_nobody_before_it_is_healthy() {
    let (mut life, _) = new_task(DesiredState::Running);
    life.handle(NOW, Event::Prepared);
    life.handle(NOW, launched());
    life.handle(NOW, started());
    check(&mut life, Event::Connected(false), "");
    check(&mut life, Event::Unhealthy, "Running stop");
    check(&mut life, exited(137), "Running wake@6000");
    assert_eq!(short(&life.handle(Timestamp::from_millis(6000), Event::Timer)), "start#1");
    check(&mut life, launched(), "Running");
    assert!(life.status().unhealthy);
    check(&mut life, started(), "Running");
    assert!(!life.status().unhealthy);
}

#[test]
fn a_restarted_agent_asks_again_what_was_not_healthy_yet() {
    let found = || Found::Running { container: "c1".into(), pid: 7 };
    for state in [TaskState::New, TaskState::Starting] {
        let mut status = TaskStatus::default();
        status.set_state(state);
        let (mut life, first) = Lifecycle::resumed(task(DesiredState::Running), status, found(), true, NOW);
        assert_eq!(short(&first), "Starting");
        let mut stopped = life.clone();
        check(&mut stopped, want(DesiredState::Shutdown), "stop");
        check(&mut life, started(), "Running");
    }
}

fn running() -> Lifecycle {
    let (mut life, _) = new_task(DesiredState::Running);
    life.handle(NOW, Event::Prepared);
    life.handle(NOW, started());
    life
}

fn drain(desired: DesiredState) -> Event {
    let mut task = task(desired);
    task.draining_since = Timestamp::from_millis(77);
    Event::Updated(Box::new(task))
}

fn drained(late: &[&str]) -> Event {
    Event::Drained { late: late.iter().map(|name| (*name).to_owned()).collect() }
}

#[test]
fn a_task_that_served_stops_when_all_have_let_go_of_it() {
    let mut life = running();
    check(&mut life, drained(&[]), "");
    check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
    // That it is to be forgotten as well, that the manager was lost or its health check fails changes nothing.
    check(&mut life, drain(DesiredState::Remove), "");
    check(&mut life, Event::Connected(false), "");
    check(&mut life, Event::Unhealthy, "");
    check(&mut life, Event::Timer, "");
    check(&mut life, Event::Connected(true), "Running");
    check(&mut life, drained(&[]), "stop");
    check(&mut life, drained(&["late"]), "");
    check(&mut life, exited(143), "Shutdown");
    assert_eq!(life.status().message, "shutdown");
}

/// A task that served, ended without a manager, and was about to run again when it was told to stop.
fn starting_again() -> Lifecycle {
    let mut life = running();
    check(&mut life, Event::Connected(false), "");
    check(&mut life, exited(3), "Running wake@6000");
    assert_eq!(short(&life.handle(Timestamp::from_millis(6000), Event::Timer)), "start#1");
    // What was said before it was to stop is about something else.
    check(&mut life, drained(&[]), "");
    check(&mut life, Event::Connected(true), "Running");
    check(&mut life, drain(DesiredState::Shutdown), "");
    life
}

#[test]
fn that_all_have_let_go_is_not_forgotten_while_it_starts() {
    let mut life = starting_again();
    let mut unheard = life.clone();
    check(&mut unheard, started(), "Running wake@3000 drain");
    check(&mut life, drained(&[]), "");
    let mut checking = life.clone();
    check(&mut life, started(), "Running stop");
    check(&mut life, exited(143), "Shutdown");
    assert_eq!(life.status().message, "shutdown");
    check(&mut checking, launched(), "Running stop");

    let mut life = starting_again();
    check(&mut life, drained(&["h3"]), "");
    check(&mut life, started(), "Running Running stop");
    check(&mut life, exited(143), "Shutdown");
    assert_eq!(life.status().message, "shutdown; late to let go of it: h3");
}

#[test]
fn hosts_that_are_late_are_named() {
    let ended = |late: &[&str]| {
        let mut life = running();
        check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
        check(&mut life, drained(late), "Running stop");
        assert!(life.status().message.starts_with("stopping; late to"), "{}", life.status().message);
        check(&mut life, exited(0), "Shutdown");
        life.status().message.clone()
    };
    assert_eq!(ended(&["h3", "h4"]), "shutdown; late to let go of it: h3, h4");
    assert_eq!(ended(&["a", "b", "c", "d", "e", "f", "g"]), "shutdown; late to let go of it: a, b, c, d, e and 2 more");
}

#[test]
fn draining_ends_after_its_time_without_a_word() {
    let mut life = running();
    check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
    assert_eq!(short(&life.handle(Timestamp::from_millis(2999), Event::Timer)), "");
    assert_eq!(short(&life.handle(Timestamp::from_millis(3000), Event::Timer)), "Running stop");
    check(&mut life, drained(&[]), "");
    check(&mut life, exited(0), "Shutdown");
    assert_eq!(life.status().message, "shutdown; no manager said in time that all hosts had let go of it");
}

#[test]
fn only_what_runs_and_has_a_place_in_the_cluster_drains() {
    // It ended meanwhile.
    let mut life = running();
    check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
    check(&mut life, exited(1), "Shutdown");
    check(&mut life, drained(&[]), "");
    // The host leaves, or the task was given up: at once.
    let mut life = running();
    check(&mut life, drain(DesiredState::Shutdown), "wake@3000 drain");
    check(&mut life, Event::Withdrawn, "stop");
    let mut life = running();
    check(&mut life, Event::Withdrawn, "stop");
    // Not healthy yet, or any more: nobody is led there.
    let (mut life, _) = new_task(DesiredState::Running);
    life.handle(NOW, Event::Prepared);
    life.handle(NOW, launched());
    check(&mut life, drain(DesiredState::Shutdown), "stop");
    // Already failing.
    let mut life = running();
    check(&mut life, Event::Unhealthy, "Running stop");
    check(&mut life, drain(DesiredState::Shutdown), "");
    // An order of a leader that knows nothing of draining.
    let mut life = running();
    check(&mut life, want(DesiredState::Shutdown), "stop");
}

#[test]
fn a_restarted_agent_waits_again() {
    let mut status = TaskStatus::default();
    status.set_state(TaskState::Running);
    let mut known = task(DesiredState::Shutdown);
    known.draining_since = Timestamp::from_millis(77);
    let found = Found::Running { container: "c1".into(), pid: 7 };
    let (mut life, first) = Lifecycle::resumed(known, status, found, false, NOW);
    assert_eq!(short(&first), "Running wake@3000 drain");
    check(&mut life, drained(&[]), "stop");
}

#[test]
fn what_waits_says_so() {
    let (mut life, _) = new_task(DesiredState::Running);
    check(&mut life, Event::Delayed { reason: "waiting for secrets".into() }, "Preparing");
    assert_eq!(life.status().message, "waiting for secrets");
    check(&mut life, Event::Prepared, "Ready Starting start#0");
    check(&mut life, Event::Delayed { reason: "late".into() }, "");
}

#[test]
fn a_task_that_may_have_started_does_not_start_again() {
    let lost = Assignment { task: task(DesiredState::Running), progress: Progress::MayHaveStarted as i32 };
    let (life, first) = Lifecycle::assigned(lost, true, NOW);
    assert_eq!(short(&first), "Failed");
    assert_eq!(life.status().err, "the container is gone, and nobody saw it end");
}

#[test]
fn a_restarted_agent_adopts_what_runs() {
    let mut status = TaskStatus::default();
    status.set_state(TaskState::Running);
    let found = Found::Running { container: "c1".into(), pid: 7 };
    let (mut life, first) = Lifecycle::resumed(task(DesiredState::Running), status.clone(), found, true, NOW);
    assert_eq!(short(&first), "Running");
    check(&mut life, want(DesiredState::Shutdown), "stop");
    let (_, first) = Lifecycle::resumed(task(DesiredState::Running), status, Found::Nothing, true, NOW);
    assert_eq!(short(&first), "Failed");
}
