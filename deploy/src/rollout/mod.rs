//! One step of an update or a rollback: which slots get the new version now, and whether it failed.
//!
//! All that it knows is in the store: the service's `update_status` and the tasks. So a leader that takes over in the
//! middle goes on where the last one stopped, delays and watch windows included. The orchestrator calls it once a round,
//! after it has settled which tasks ended.

use crate::cx::Cx;
use crate::model::{
    DesiredState, FailureAction, Service, Task, TaskId, TaskState, Timestamp, UpdateConfig, UpdateOrder, UpdateState,
    UpdateStatus, WatchedTask,
};
use crate::orchestrator::{Slot, SlotKey, Slots, is_outdated, slot_is_outdated, update_is_running};
use crate::store::{Store, Txn};

/// What a step did to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The spec is what it was.
    Steady,
    /// The previous spec is in force again; the round must be done again.
    RolledBack,
}

/// Whether an update or a rollback goes on.
pub(crate) fn is_active(service: &Service) -> bool {
    update_is_running(service)
}

/// The update watches `successor` in place of `lost`, which its host took with it.
pub(crate) fn follow(service: &mut Service, lost: &TaskId, successor: &TaskId) {
    let watched = service.update_status.iter_mut().flat_map(|s| s.watched.iter_mut());
    for watch in watched.filter(|w| w.task == *lost) {
        *watch = WatchedTask { task: successor.clone(), running_since: Timestamp::default() };
    }
}

/// Takes the step. Changes `service` (which the caller stores) and the tasks of `slots`.
pub(crate) fn step(cx: &mut Cx<'_>, txn: &mut Txn, service: &mut Service, slots: &mut Slots) -> Progress {
    drop_superfluous(txn, service, slots);
    let outdated: Vec<SlotKey> =
        slots.iter().filter(|(_, slot)| slot_is_outdated(service, slot)).map(|(key, _)| key.clone()).collect();
    let Some(mut status) = begin(cx, service, slots, outdated.len() as u64) else { return Progress::Steady };
    let config = config(service, &status);

    let watch = watch(cx, txn, &config, &mut status);
    if let Some(failed) = watch.failed.filter(|_| exceeds(&status, &config)) {
        match failure_action(&status, &config) {
            FailureAction::Continue => {}
            FailureAction::Pause => {
                pause(&mut status, &failed);
                service.update_status = Some(status);
                return Progress::Steady;
            }
            FailureAction::Rollback => {
                let why = format!("update rolled back due to failure or early termination of task {failed}");
                if service.roll_back(cx.now, &why) {
                    return Progress::RolledBack;
                }
                pause(&mut status, &failed);
                service.update_status = Some(status);
                return Progress::Steady;
            }
        }
    }
    if watch.arrived {
        status.not_before = cx.now.plus(config.delay());
    }

    let starting = status.watched.iter().filter(|w| w.running_since.is_never()).count();
    let free = match usize::try_from(config.slots_at_a_time()).unwrap_or(usize::MAX) {
        0 => outdated.len(),
        limit => limit.saturating_sub(starting),
    };
    if outdated.is_empty() {
        if status.watched.is_empty() {
            complete(cx, &mut status);
        }
    } else if cx.now < status.not_before {
        txn.wake_at(status.not_before);
    } else {
        for key in in_order(slots, outdated).into_iter().take(free) {
            if txn.is_full() {
                break;
            }
            let Some(slot) = slots.get_mut(&key) else { continue };
            let task = renew(cx, txn, service, &config, &key, slot);
            status.watched.push(WatchedTask { task, running_since: Timestamp::default() });
        }
    }
    service.update_status = Some(status);
    Progress::Steady
}

/// The status of the update that goes on, or of one that begins because slots are outdated; `None` when there is
/// nothing to do.
fn begin(cx: &Cx<'_>, service: &Service, slots: &Slots, outdated: u64) -> Option<UpdateStatus> {
    let mut status = match &service.update_status {
        Some(status) if update_is_running(service) => status.clone(),
        Some(status) if matches!(status.state(), UpdateState::Paused | UpdateState::RollbackPaused) => return None,
        _ if outdated == 0 => return None,
        _ => UpdateStatus {
            state: UpdateState::Updating as i32,
            started_at: cx.now,
            message: "update in progress".to_owned(),
            ..UpdateStatus::default()
        },
    };
    if status.total_slots == 0 {
        status.watched = on_the_way(service, slots);
        status.total_slots = outdated + status.watched.len() as u64;
    }
    Some(status)
}

/// What an update that was overtaken left on its way to a version that counts as up to date now (a rollback that is
/// itself rolled back, say): it belongs to the new update, for the parallelism and for failures.
fn on_the_way(service: &Service, slots: &Slots) -> Vec<WatchedTask> {
    let left = |slot: &Slot| {
        let tasks: Vec<&Task> =
            slot.tasks().iter().map(AsRef::as_ref).filter(|t: &&Task| t.desired() < DesiredState::Remove).collect();
        let changes = |old: &Task, new: &Task| {
            new.is_wanted()
                && new.state() < TaskState::Running
                && !is_outdated(service, new)
                && old.spec_version != new.spec_version
        };
        tasks.windows(2).find(|pair| changes(pair[0], pair[1])).map(|pair| pair[1].id.clone())
    };
    let left = slots.values().filter_map(left);
    left.map(|task| WatchedTask { task, running_since: Timestamp::default() }).collect()
}

/// A rollback follows the rollback settings of the spec that it returns to.
fn config(service: &Service, status: &UpdateStatus) -> UpdateConfig {
    match status.state() {
        UpdateState::RollbackStarted => service.spec.rollback.clone().unwrap_or_default(),
        _ => service.spec.update_config(),
    }
}

struct Watch {
    /// A task reached Running, or failed to, in this step.
    arrived: bool,
    /// A task that failed while it was watched, found in this step.
    failed: Option<TaskId>,
}

/// Looks at the tasks that the update made: notes failures, starts watch windows, ends those that are over.
fn watch(cx: &Cx<'_>, txn: &mut Txn, config: &UpdateConfig, status: &mut UpdateStatus) -> Watch {
    let mut found = Watch { arrived: false, failed: None };
    for mut watch in std::mem::take(&mut status.watched) {
        let Some(task) = task_of(txn, &watch) else {
            found.arrived |= watch.running_since.is_never();
            continue;
        };
        let ended = ended_by_itself(&task);
        if watch.running_since.is_never() && (task.state() == TaskState::Running || ended) {
            found.arrived = true;
            watch.running_since = cx.now;
        }
        let until = watch.running_since.plus(config.monitor());
        if ended {
            if cx.now <= until {
                status.failed_slots.push(task.slot);
                found.failed = Some(watch.task);
            }
        } else if watch.running_since.is_never() {
            status.watched.push(watch);
        } else if cx.now < until {
            txn.wake_at(until);
            status.watched.push(watch);
        }
    }
    found
}

/// The watched task, while the service has use for it: it is wanted, or ended by itself. (One that was lost with its
/// host has a successor by now, which is watched in its place.)
fn task_of(store: &Store, watch: &WatchedTask) -> Option<Task> {
    let task = store.task(&watch.task).filter(|t| t.desired() < DesiredState::Remove)?;
    (task.is_wanted() || ended_by_itself(task)).then(|| Task::clone(task))
}

fn ended_by_itself(task: &Task) -> bool {
    matches!(task.state(), TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// Whether more slots failed than the settings allow.
fn exceeds(status: &UpdateStatus, config: &UpdateConfig) -> bool {
    let failed = status.failed_slots.len() as u128;
    failed * 1_000_000 > u128::from(config.max_failure_ppm) * u128::from(status.total_slots.max(1))
}

/// A rollback that fails does not roll back once more.
fn failure_action(status: &UpdateStatus, config: &UpdateConfig) -> FailureAction {
    match config.failure_action() {
        FailureAction::Rollback if status.state() == UpdateState::RollbackStarted => FailureAction::Pause,
        action => action,
    }
}

fn pause(status: &mut UpdateStatus, failed: &TaskId) {
    let (state, what) = match status.state() {
        UpdateState::RollbackStarted => (UpdateState::RollbackPaused, "rollback"),
        _ => (UpdateState::Paused, "update"),
    };
    status.set_state(state);
    status.message = format!("{what} paused due to failure or early termination of task {failed}");
    status.watched.clear();
}

fn complete(cx: &Cx<'_>, status: &mut UpdateStatus) {
    let (state, message) = match status.state() {
        UpdateState::RollbackStarted => (UpdateState::RollbackCompleted, "rollback completed"),
        _ => (UpdateState::Completed, "update completed"),
    };
    status.set_state(state);
    status.message = message.to_owned();
    status.completed_at = cx.now;
    status.not_before = Timestamp::default();
}

/// Slots in the order in which they change: what does not run has nothing to lose and goes first.
fn in_order(slots: &Slots, mut keys: Vec<SlotKey>) -> Vec<SlotKey> {
    keys.sort_by_key(|key| slots.get(key).is_some_and(Slot::is_running));
    keys
}

/// Stops what is outdated in slots that hold an up-to-date task already: after a rollback in the middle of a
/// start-first update that is the old task, which never stopped.
fn drop_superfluous(txn: &mut Txn, service: &Service, slots: &mut Slots) {
    if !is_active(service) {
        return;
    }
    let now = txn.now();
    for slot in slots.values_mut() {
        let current = slot.wanted().rfind(|t| !is_outdated(service, t)).map(|t| t.ordinal);
        if let Some(current) = current {
            let goes = |t: &Task| t.is_wanted() && t.ordinal > current && is_outdated(service, t);
            slot.amend(txn, goes, |t| t.stop(DesiredState::Shutdown, now));
        }
    }
}

/// Gives one slot the new version. Returns the task that was made for it.
fn renew(
    cx: &mut Cx<'_>,
    txn: &mut Txn,
    service: &Service,
    config: &UpdateConfig,
    key: &SlotKey,
    slot: &mut Slot,
) -> TaskId {
    // With start-first, what runs goes on until its successor runs; the orchestrator then stops it.
    let keeps_running = config.order() == UpdateOrder::StartFirst;
    let goes = |t: &Task| t.is_wanted() && !(keeps_running && t.state() == TaskState::Running);
    slot.amend(txn, goes, |t| t.stop(DesiredState::Shutdown, cx.now));
    slot.add_new(cx, txn, service, key).id.clone()
}
