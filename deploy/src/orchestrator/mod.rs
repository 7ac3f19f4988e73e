//! Keeps each service's slots filled: makes them, replaces tasks that ended or were lost, lets successors start.
//!
//! Called by the brain for each service that something may have changed for. It decides *that* a task should exist and
//! of what version it is (with `rollout` and `restart`), never where it runs.

mod global;
mod replicated;
mod slot;

use std::sync::Arc;

use crate::cx::Cx;
use crate::model::{DesiredState, Service, ServiceId, ServiceMode, Task, TaskState, UpdateState};
use crate::restart::{self, Verdict};
use crate::rollout;
use crate::store::Txn;

pub(crate) use slot::{Slot, SlotKey, Slots, host_is_lost, is_outdated, may_run, slot_is_outdated};

/// Brings one service's tasks to what its spec says, as far as that can be decided now.
pub(crate) fn reconcile(cx: &mut Cx<'_>, txn: &mut Txn, id: &ServiceId) {
    // A second round follows only a rollback, which changes the spec and never begins another one.
    for _ in 0..2 {
        let Some(service) = txn.service(id).cloned() else { return };
        let mut service = Arc::unwrap_or_clone(service);
        let before = service.clone();
        let progress = round(cx, txn, &mut service);
        if service != before {
            txn.put_service(service);
        }
        if progress != rollout::Progress::RolledBack {
            return;
        }
    }
}

fn round(cx: &mut Cx<'_>, txn: &mut Txn, service: &mut Service) -> rollout::Progress {
    let mut slots = Slot::all(txn, &service.id);
    match &service.spec.mode {
        None | Some(ServiceMode::Replicated(_)) => {
            let replicas = service.spec.replicas().unwrap_or(1);
            replicated::scale(cx, txn, service, replicas, &mut slots);
        }
        Some(ServiceMode::Global(_)) => global::cover(cx, txn, service, &mut slots),
        // Control refuses job services; there is nothing to keep alive.
        Some(ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob(_)) => return rollout::Progress::Steady,
    }
    slots.retain(|_, slot| slot.is_live());
    for slot in slots.values_mut() {
        if txn.is_full() {
            return rollout::Progress::Steady;
        }
        settle(txn, slot);
        replace_lost(cx, txn, service, slot);
    }
    let progress = rollout::step(cx, txn, service, &mut slots);
    if progress == rollout::Progress::RolledBack {
        return progress;
    }
    for slot in slots.values_mut() {
        if txn.is_full() {
            break;
        }
        restart_ended(cx, txn, service, slot);
        release(cx, txn, slot);
    }
    progress
}

/// Takes back the wish for tasks that ended, and for older ones once a newer one runs (start-first).
fn settle(txn: &mut Txn, slot: &mut Slot) {
    let now = txn.now();
    slot.amend(txn, |t| t.is_wanted() && t.has_ended(), |t| t.stop(DesiredState::Shutdown, now));
    let running = slot
        .wanted()
        .filter(|t| t.state() == TaskState::Running && t.desired() == DesiredState::Running)
        .map(|t| t.ordinal)
        .next_back();
    if let Some(newest) = running {
        slot.amend(txn, |t| t.is_wanted() && t.ordinal < newest, |t| t.stop(DesiredState::Shutdown, now));
    }
}

/// Gives the slot a successor at once if the cluster took its task away. Before the rollout's step, which then knows
/// what it has to wait for.
fn replace_lost(cx: &mut Cx<'_>, txn: &mut Txn, service: &mut Service, slot: &mut Slot) {
    let Some(task) = predecessor(service, slot) else { return };
    if restart::verdict(&task) == Verdict::Replace {
        let successor = slot.add_successor(cx, txn, &task);
        rollout::follow(service, &task.id, &successor.id);
    }
}

/// Gives the slot a successor, after the policy's delay, if its task ended by itself and the rollout left it at that.
fn restart_ended(cx: &mut Cx<'_>, txn: &mut Txn, service: &Service, slot: &mut Slot) {
    let Some(task) = predecessor(service, slot) else { return };
    if let Verdict::Restart(delay) = restart::verdict(&task) {
        let successor = slot.add_successor(cx, txn, &task);
        let (not_before, history) = (cx.now.plus(delay), restart::history_after(&task, cx.now));
        slot.amend(
            txn,
            |t| t.id == successor.id,
            |t| {
                t.not_before = not_before;
                t.placed_late = task.state() == TaskState::Rejected;
                t.restarts.clone_from(&history);
            },
        );
    }
}

/// The task of the slot that a successor is due for, if nothing takes its place yet.
fn predecessor(service: &Service, slot: &Slot) -> Option<Arc<Task>> {
    let newest = slot.newest()?;
    if newest.is_wanted() {
        return None;
    }
    if slot.newest_wanted().is_none() {
        return Some(last_ended(slot, newest).clone());
    }
    // An older task holds the slot: the newest one was the first half of a start-first update. It is tried again only
    // while that update goes on.
    (rollout::is_active(service) && !is_outdated(service, newest)).then(|| newest.clone())
}

/// The newest task, unless an older one ended by itself after it: then that one held the slot (start-first update
/// that failed), and its version is what the slot goes on with.
fn last_ended<'a>(slot: &'a Slot, newest: &'a Arc<Task>) -> &'a Arc<Task> {
    let by_itself = |t: &&Arc<Task>| matches!(t.state(), TaskState::Complete | TaskState::Failed | TaskState::Rejected);
    let older = slot.tasks().iter().filter(|t| t.desired() < DesiredState::Remove && t.ordinal < newest.ordinal);
    match older.filter(by_itself).max_by_key(|t| (t.status.at, t.ordinal)) {
        Some(older) if newest.has_ended() && older.status.at > newest.status.at => older,
        _ => newest,
    }
}

/// Lets tasks that wait as Ready start: their delay is over, and no other task of the slot may still run on a host that
/// can be waited for. An older task that is still wanted holds nothing up: it is the other half of a start-first update.
fn release(cx: &Cx<'_>, txn: &mut Txn, slot: &mut Slot) {
    let waiting: Vec<Arc<Task>> = slot.wanted().filter(|t| t.desired() == DesiredState::Ready).cloned().collect();
    for task in waiting {
        if cx.now < task.not_before {
            txn.wake_at(task.not_before);
            continue;
        }
        if slot.tasks().iter().any(|other| other.id != task.id && !other.is_wanted() && may_run(txn, other)) {
            continue;
        }
        slot.amend(txn, |t| t.id == task.id, |t| t.set_desired(DesiredState::Running));
    }
}

/// Whether an update or a rollback of the service goes on.
pub(crate) fn update_is_running(service: &Service) -> bool {
    service
        .update_status
        .as_ref()
        .is_some_and(|s| matches!(s.state(), UpdateState::Updating | UpdateState::RollbackStarted))
}
