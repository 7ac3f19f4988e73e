//! Which slots a global service has: one on each host that takes new tasks and matches the placement.
//!
//! The slot of such a task is its host, so it is made with `node_id` set and the scheduler only checks that it fits.

use super::slot::{SlotKey, Slots};
use crate::cx::Cx;
use crate::model::{DesiredState, NodeAvailability, Service};
use crate::scheduler;
use crate::store::Txn;

/// Makes the slots that are missing and stops the tasks on hosts that no longer match.
///
/// Slots of hosts that take no new tasks are taken out of `slots`: what runs there stays, what ended stays ended.
/// (Hosts that are drained or lost are the enforcer's business.)
pub(crate) fn cover(cx: &mut Cx<'_>, txn: &mut Txn, service: &Service, slots: &mut Slots) {
    let mut idle = Vec::new();
    for node in txn.nodes() {
        let key = SlotKey::Node(node.id.clone());
        let matches = scheduler::matches_placement(&service.spec.task.placement, node);
        if matches && scheduler::takes_new_tasks(node) {
            slots.entry(key).or_default();
        } else if slots.contains_key(&key) {
            idle.push((key, !matches && node.spec.availability() != NodeAvailability::Drain));
        }
    }
    for (key, mismatched) in idle {
        let Some(mut slot) = slots.remove(&key) else { continue };
        if txn.is_full() {
            continue;
        }
        if mismatched {
            let now = txn.now();
            slot.amend(txn, |t| t.is_wanted(), |t| t.stop(DesiredState::Shutdown, now));
        } else {
            super::release(cx, txn, &mut slot);
        }
    }
    slots.retain(|key, _| matches!(key, SlotKey::Node(id) if txn.node(id).is_some()));
    for (key, slot) in slots.iter_mut().filter(|(_, slot)| !slot.is_live()) {
        if txn.is_full() {
            break;
        }
        slot.add_new(cx, txn, service, key);
    }
}
