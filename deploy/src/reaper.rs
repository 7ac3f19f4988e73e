//! Forgets tasks: those that are to be removed and have ended, those that were never placed and are not wanted any
//! more, the oldest of a slot's history, and places that plain containers have lost.

use std::sync::Arc;

use crate::model::{DesiredState, NodeId, ServiceId, Task, TaskId};
use crate::orchestrator::{Slot, SlotKey};
use crate::store::Txn;

/// Cleans up behind one service, which may itself be gone.
pub(crate) fn reconcile(txn: &mut Txn, service: &ServiceId) {
    let limit = txn.cluster().map_or(5, |c| c.spec.history_limit());
    let service_is_gone = txn.service(service).is_none();
    let mut forgotten: Vec<TaskId> = Vec::new();
    let mut condemned: Vec<Task> = Vec::new();
    for (key, slot) in Slot::all(txn, service) {
        let host_is_gone = matches!(&key, SlotKey::Node(node) if txn.node(node).is_none());
        let mut kept: Vec<&Arc<Task>> = Vec::new();
        for task in slot.tasks() {
            let removing = service_is_gone || task.desired() == DesiredState::Remove;
            if finished(txn, task) && (removing || host_is_gone || !task.is_placed() && !task.has_ended()) {
                forgotten.push(task.id.clone());
                continue;
            }
            if removing && task.desired() != DesiredState::Remove {
                let mut task = Task::clone(task);
                task.stop(DesiredState::Remove, txn.now());
                condemned.push(task);
            }
            kept.push(task);
        }
        // The newest task stays whatever the limit: it says whether the slot is finished.
        let surplus = kept.len().saturating_sub(limit.max(1));
        let history = kept.iter().take(kept.len().saturating_sub(1)).filter(|t| finished(txn, t));
        forgotten.extend(history.take(surplus).map(|t| t.id.clone()));
    }
    for task in condemned {
        if txn.is_full() {
            return;
        }
        txn.put_task(task);
    }
    for task in forgotten {
        if txn.is_full() {
            return;
        }
        txn.remove_task(&task);
    }
}

/// Forgets the places of a host's plain containers that the host has lost, or that are left of one that is gone.
pub(crate) fn forget_places(txn: &mut Txn, host: &NodeId) {
    let is_gone = txn.node(host).is_none();
    let places = txn.tasks_on_node(host).filter(|task| task.is_attachment());
    let lost: Vec<TaskId> = places.filter(|task| is_gone || task.has_ended()).map(|task| task.id.clone()).collect();
    for place in lost {
        if txn.is_full() {
            return;
        }
        txn.remove_task(&place);
    }
}

/// Whether nothing runs, and nothing will: the task is not wanted, and it ended, was never placed, or its host is gone.
fn finished(txn: &Txn, task: &Task) -> bool {
    let over = task.has_ended() || !task.is_placed() || txn.node(&task.node_id).is_none();
    over && (!task.is_wanted() || txn.service(&task.service_id).is_none())
}
