use super::*;
use crate::dispatcher::{Assignment, Body, Delta};
use crate::model::DesiredState;

const NOW: Timestamp = Timestamp::from_millis(1000);

/// What is read of what was written.
fn memory(core: &Core) -> Memory {
    prost::Message::decode(core.snapshot().to_bytes().as_slice()).unwrap()
}

fn stamp(revision: u64) -> Stamp {
    Stamp { incarnation: 1, term: 1, revision }
}

fn task(id: &str) -> Item {
    let mut task = Task { id: TaskId::new(id), ..Task::default() };
    task.set_desired(DesiredState::Running);
    Body::Task(Box::new(Assignment { task, progress: 0 })).into()
}

fn full(revision: u64, tasks: &[&str]) -> Update {
    let put = tasks.iter().map(|id| task(id)).collect();
    Update { stamp: stamp(revision), base: None, delta: Delta { put, remove: Vec::new() } }
}

fn core() -> Core {
    Core::start(Memory::default(), BTreeMap::new(), NOW).0
}

#[test]
fn an_older_set_is_refused() {
    let mut core = core();
    core.update(full(5, &["a"]), NOW).unwrap();
    assert_eq!(core.update(full(4, &[]), NOW).unwrap_err(), UpdateRefused::Older);
    assert!(core.task(&TaskId::new("a")).is_some());
}

#[test]
fn a_new_incarnation_is_followed_and_nothing_starts_anew() {
    let mut core = core();
    core.update(full(5, &["a"]), NOW).unwrap();
    core.event(&TaskId::new("a"), Event::Prepared, NOW);
    core.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
    let anew = |revision| Update { stamp: Stamp { incarnation: 2, term: 1, revision }, ..full(revision, &["a"]) };
    assert_eq!(core.update(anew(4), NOW).unwrap_err(), UpdateRefused::Older, "a life that began before");
    assert_eq!(core.update(anew(1 << 20), NOW).unwrap().steps, []);
    assert_eq!(core.update(full(9, &[]), NOW).unwrap_err(), UpdateRefused::Older, "the life that is over");
    assert_eq!(core.serving(), BTreeSet::from([TaskId::new("a")]));
}

#[test]
fn the_place_of_a_plain_container_is_nothing_to_run() {
    let mut core = core();
    assert_eq!(core.places(), Given::default());
    let mut place = Task { id: TaskId::new("p"), container: "c".repeat(64), ..Task::default() };
    place.set_desired(DesiredState::Running);
    let put = vec![Body::Task(Box::new(Assignment { task: place, progress: 0 })).into()];
    let update = Update { stamp: stamp(1), base: None, delta: Delta { put, remove: Vec::new() } };
    assert_eq!(core.update(update, NOW).unwrap(), Taken::default());
    assert!(core.is_empty() && core.places().told);
    let of_container = GivenPlace { container: "c".repeat(64), attachments: Vec::new() };
    assert_eq!(core.places().places, BTreeMap::from([(TaskId::new("p"), of_container)]));
    let again = Core::start(memory(&core), BTreeMap::new(), NOW).0;
    assert_eq!(again.places(), Given { told: false, ..core.places() });
}

#[test]
fn a_difference_to_something_else_is_refused() {
    let mut core = core();
    core.update(full(5, &["a"]), NOW).unwrap();
    let update = Update { stamp: stamp(7), base: Some(stamp(6)), delta: Delta::default() };
    assert_eq!(core.update(update, NOW).unwrap_err(), UpdateRefused::Gap);
}

#[test]
fn a_batch_that_was_not_acknowledged_is_sent_again() {
    let mut core = core();
    core.update(full(1, &["a"]), NOW).unwrap();
    assert!(core.next_reports(256).is_none(), "reported without a manager");
    core.connected(true, NOW);
    let (first, reports) = core.next_reports(256).unwrap();
    assert_eq!(reports.len(), 1);
    assert!(core.next_reports(256).is_none(), "two batches at once");
    core.connected(false, NOW);
    core.connected(true, NOW);
    let (second, reports) = core.next_reports(256).unwrap();
    assert!(second > first && reports.len() == 1);
    core.reports_committed(second);
    assert!(core.next_reports(256).is_none());
}

#[test]
fn an_end_that_was_not_acknowledged_is_followed_by_an_attempt() {
    let after_the_loss = |acknowledged: bool| {
        let (mut core, a) = (core(), TaskId::new("a"));
        core.connected(true, NOW);
        core.update(full(1, &["a"]), NOW).unwrap();
        core.event(&a, Event::Prepared, NOW);
        core.event(&a, Event::Started { container: "c".into(), pid: 1 }, NOW);
        core.event(&a, Event::Exited { exit_code: Some(1), oom_killed: false }, NOW);
        let (sequence, reports) = core.next_reports(256).unwrap();
        assert_eq!(reports[0].status.state(), TaskState::Failed);
        if acknowledged {
            core.reports_committed(sequence);
        }
        core.connected(false, NOW);
        core.fire_timers(Timestamp::from_millis(100_000))
    };
    assert_eq!(after_the_loss(true), [], "the leader knows, and decides");
    assert_eq!(after_the_loss(false), [(TaskId::new("a"), Action::Start { attempt: 1 })]);
}

/// A task of slot 1, as the leader wants it.
fn in_slot(id: &str, desired: DesiredState) -> Item {
    let service_id = crate::model::ServiceId::new("web");
    let mut task = Task { id: TaskId::new(id), service_id, slot: 1, ..Task::default() };
    task.set_desired(desired);
    Body::Task(Box::new(Assignment { task, progress: 0 })).into()
}

/// `old` ends, and nobody hears that the leader knows; the host runs it again by itself, and is then told of `new`, which was
/// `before` until then, or is new to it.
fn replaced(old: &str, new: &str, before: Option<DesiredState>) -> (Core, Vec<Step>) {
    let (mut core, id) = (core(), TaskId::new(old));
    let mut put = vec![in_slot(old, DesiredState::Running)];
    put.extend(before.map(|before| in_slot(new, before)));
    core.connected(true, NOW);
    core.update(Update { stamp: stamp(1), base: None, delta: Delta { put, remove: Vec::new() } }, NOW).unwrap();
    core.event(&TaskId::new(new), Event::Prepared, NOW);
    let started = || Event::Started { container: "c".into(), pid: 1 };
    core.event(&id, Event::Prepared, NOW);
    core.event(&id, started(), NOW);
    core.event(&id, Event::Exited { exit_code: Some(1), oom_killed: false }, NOW);
    core.next_reports(256).unwrap();
    core.connected(false, NOW);
    let again = core.fire_timers(Timestamp::from_millis(100_000));
    assert_eq!(again, [(id.clone(), Action::Start { attempt: 1 })]);
    core.event(&id, started(), NOW);
    core.connected(true, NOW);
    let put = vec![in_slot(old, DesiredState::Shutdown), in_slot(new, DesiredState::Running)];
    let update = Update { stamp: stamp(2), base: None, delta: Delta { put, remove: Vec::new() } };
    let steps = core.update(update, NOW).unwrap().steps;
    (core, steps)
}

#[test]
fn what_a_host_ran_by_itself_ends_before_its_successor_starts() {
    let exited = || Event::Exited { exit_code: Some(143), oom_killed: false };
    for (old, new) in [("a", "b"), ("b", "a")] {
        let (one, other) = (TaskId::new(old), TaskId::new(new));
        let (mut core, steps) = replaced(old, new, None);
        assert!(matches!(&steps[..], [(x, Action::Stop { .. }), (y, Action::Prepare)] if *x == one && *y == other));
        assert_eq!(core.event(&other, Event::Prepared, NOW), []);
        let waits = core.next_reports(256).unwrap().1;
        let waits = waits.iter().find(|report| report.task_id == other).unwrap();
        assert!(waits.status.message.contains("waits until the task before it"), "{waits:?}");
        assert_eq!(core.event(&one, exited(), NOW), [(other.clone(), Action::Start { attempt: 0 })]);

        // It was ready before.
        let (mut core, steps) = replaced(old, new, Some(DesiredState::Ready));
        assert!(matches!(&steps[..], [(x, Action::Stop { .. })] if *x == one), "{steps:?}");
        assert_eq!(core.event(&one, exited(), NOW), [(other.clone(), Action::Start { attempt: 0 })]);

        // Its turn does not come.
        let (mut core, _) = replaced(old, new, Some(DesiredState::Ready));
        let put = vec![in_slot(old, DesiredState::Shutdown), in_slot(new, DesiredState::Shutdown)];
        let update = Update { stamp: stamp(3), base: None, delta: Delta { put, remove: Vec::new() } };
        assert_eq!(core.update(update, NOW).unwrap().steps, [(other.clone(), Action::CancelPrepare)]);
        assert_eq!(core.event(&one, exited(), NOW), []);

        // The one before is not even told of any more.
        let (mut core, _) = replaced(old, new, Some(DesiredState::Ready));
        let put = vec![in_slot(new, DesiredState::Running)];
        let update = Update { stamp: stamp(3), base: None, delta: Delta { put, remove: Vec::new() } };
        assert_eq!(core.update(update, NOW).unwrap().steps, []);
        let steps = core.event(&one, exited(), NOW);
        assert_eq!(steps, [(one, Action::Remove), (other, Action::Start { attempt: 0 })]);
    }
}

#[test]
fn a_wanted_task_holds_up_nobody_of_its_slot() {
    let mut core = core();
    core.connected(true, NOW);
    let put = ["a", "b"].map(|id| in_slot(id, DesiredState::Running)).to_vec();
    core.update(Update { stamp: stamp(1), base: None, delta: Delta { put, remove: Vec::new() } }, NOW).unwrap();
    for id in ["a", "b"].map(TaskId::new) {
        assert_eq!(core.event(&id, Event::Prepared, NOW), [(id.clone(), Action::Start { attempt: 0 })], "start-first");
        core.event(&id, Event::Started { container: "c".into(), pid: 1 }, NOW);
    }
}

#[test]
fn what_was_prepared_in_vain_is_taken_back() {
    let mut core = core();
    core.update(full(1, &["a"]), NOW).unwrap();
    let mut ready = Task { id: TaskId::new("a"), ..Task::default() };
    ready.set_desired(DesiredState::Shutdown);
    let put = vec![Body::Task(Box::new(Assignment { task: ready, progress: 0 })).into()];
    let update = Update { stamp: stamp(2), base: Some(stamp(1)), delta: Delta { put, remove: Vec::new() } };
    let taken = core.update(update, NOW).unwrap();
    assert_eq!(taken.steps, [(TaskId::new("a"), Action::CancelPrepare)]);
    assert_eq!(core.event(&TaskId::new("a"), Event::Prepared, NOW), []);
    assert_eq!(memory(&core).tasks[0].status.state(), TaskState::Preparing, "its address is still on the wire");
    core.event(&TaskId::new("a"), Event::PrepareFailed { error: "cancelled".into() }, NOW);
    assert_eq!(memory(&core).tasks[0].status.state(), TaskState::Shutdown);
    assert!(core.task(&TaskId::new("a")).is_some(), "the cluster has not withdrawn it yet");
}

#[test]
fn a_container_that_nobody_remembers_is_its_tasks_or_nobodys() {
    let found = |pid| Found::Running { container: "c".into(), pid };
    let containers = BTreeMap::from([(TaskId::new("a"), found(1)), (TaskId::new("b"), found(2))]);
    let (mut core, _) = Core::start(Memory::default(), containers, NOW);
    let taken = core.update(full(1, &["a"]), NOW).unwrap();
    let adopted: Vec<(&str, &str)> = taken.adopted.iter().map(|(task, c)| (task.id.as_str(), c.as_str())).collect();
    assert_eq!(adopted, [("a", "c")], "nobody would see it end");
    assert_eq!(taken.steps, [(TaskId::new("b"), Action::Remove)]);
    assert_eq!(core.serving(), BTreeSet::new(), "who looks after it says whether it is healthy");
    core.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
    assert_eq!(core.serving(), BTreeSet::from([TaskId::new("a")]));
}

/// A task that runs, and then the order to stop it, which others have to follow as well.
fn draining() -> (Core, Taken) {
    let (mut core, a) = (core(), TaskId::new("a"));
    core.connected(true, NOW);
    core.update(full(1, &["a", "b"]), NOW).unwrap();
    for id in ["a", "b"] {
        core.event(&TaskId::new(id), Event::Prepared, NOW);
        core.event(&TaskId::new(id), Event::Started { container: "c".into(), pid: 1 }, NOW);
    }
    let mut stopping = Task { id: a, draining_since: NOW, ..Task::default() };
    stopping.set_desired(DesiredState::Shutdown);
    let put = vec![Body::Task(Box::new(Assignment { task: stopping, progress: 0 })).into()];
    let update = Update { stamp: stamp(2), base: Some(stamp(1)), delta: Delta { put, remove: Vec::new() } };
    let taken = core.update(update, NOW).unwrap();
    (core, taken)
}

#[test]
fn a_task_that_drains_is_let_go_of_by_its_own_host_too() {
    let (mut core, taken) = draining();
    assert_eq!(taken.steps, []);
    assert_eq!(core.serving(), BTreeSet::from([TaskId::new("b")]), "a port of the host leads to it");
    let (a, b) = (TaskId::new("a"), TaskId::new("b"));
    let steps = core.drained(vec![b, TaskId::new("nobody"), a.clone()], &["h".to_owned()], NOW);
    assert!(matches!(&steps[..], [(id, Action::Stop { .. })] if *id == a), "{steps:?}");
    assert_eq!(core.drained(vec![a], &[], NOW), []);
}

#[test]
fn draining_has_an_end_and_an_older_manager_none_to_wait_for() {
    let (mut core, _) = draining();
    assert_eq!(core.next_timer(), Some(Timestamp::from_millis(3000)));
    core.connected(false, NOW);
    let steps = core.fire_timers(Timestamp::from_millis(3000));
    assert!(matches!(&steps[..], [(_, Action::Stop { .. })]), "{steps:?}");
    let (mut core, _) = draining();
    let steps = core.nobody_drains(NOW);
    assert!(matches!(&steps[..], [(_, Action::Stop { .. })]), "{steps:?}");
}

#[test]
fn secrets_and_configs_are_not_remembered() {
    let mut core = core();
    let payload = crate::dispatcher::PayloadInfo { id: "s".into(), data: b"secret".to_vec() };
    let put = vec![task("a"), Body::Secret(payload.clone()).into(), Body::Config(payload).into()];
    core.update(Update { stamp: stamp(1), base: None, delta: Delta { put, remove: Vec::new() } }, NOW).unwrap();
    assert_eq!((core.set().secrets().count(), core.set().configs().count()), (1, 1));
    let bytes = core.snapshot().to_bytes();
    assert!(!bytes.windows(6).any(|window| window == b"secret"));
    assert_eq!(memory(&core).items.len(), 1);
}

#[test]
fn a_node_that_leaves_leaves_nothing_that_it_found() {
    let found = BTreeMap::from([(TaskId::new("b"), Found::Running { container: "c".into(), pid: 1 })]);
    let (mut core, _) = Core::start(Memory::default(), found, NOW);
    assert_eq!(core.withdraw_all(NOW), [(TaskId::new("b"), Action::Remove)]);
    assert!(!core.is_empty());
    assert_eq!(core.event(&TaskId::new("b"), Event::Removed, NOW), []);
    assert!(core.is_empty());
}

#[test]
fn what_was_being_removed_is_removed_by_the_next_daemon() {
    let mut before = core();
    before.update(full(3, &["a", "b"]), NOW).unwrap();
    before.event(&TaskId::new("a"), Event::Prepared, NOW);
    before.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
    before.withdraw_all(NOW);
    let found = BTreeMap::from([(TaskId::new("a"), Found::Running { container: "c".into(), pid: 1 })]);
    let (mut after, steps) = Core::start(memory(&before), found, NOW);
    let (a, b) = (TaskId::new("a"), TaskId::new("b"));
    assert!(matches!(&steps[..], [(x, Action::Stop { .. }), (y, Action::CancelPrepare)] if *x == a && *y == b));
    let ended = after.event(&a, Event::Exited { exit_code: Some(143), oom_killed: false }, NOW);
    assert_eq!(ended, [(a.clone(), Action::Remove)]);
    let ended = after.event(&b, Event::PrepareFailed { error: "cancelled".into() }, NOW);
    assert_eq!(ended, [(b.clone(), Action::Remove)]);
    after.event(&a, Event::Removed, NOW);
    after.event(&b, Event::Removed, NOW);
    assert!(after.is_empty());
}

#[test]
fn what_was_remembered_goes_on() {
    let mut before = core();
    before.update(full(3, &["a"]), NOW).unwrap();
    before.event(&TaskId::new("a"), Event::Prepared, NOW);
    before.event(&TaskId::new("a"), Event::Started { container: "c".into(), pid: 1 }, NOW);
    let found = BTreeMap::from([(TaskId::new("a"), Found::Running { container: "c".into(), pid: 1 })]);
    let (mut after, steps) = Core::start(memory(&before), found, NOW);
    assert_eq!(steps, []);
    assert_eq!(after.serving(), BTreeSet::from([TaskId::new("a")]));
    assert_eq!(after.update(full(2, &[]), NOW).unwrap_err(), UpdateRefused::Older);
}
