//! Which slots a replicated service has: numbers from 1, as many as the spec says.

use std::collections::{BTreeMap, BTreeSet};

use super::slot::{Slot, SlotKey, Slots};
use crate::cx::Cx;
use crate::model::{DesiredState, NodeId, Service};
use crate::store::Txn;

/// Makes the slots that are missing and gives up those that are too many.
pub(crate) fn scale(cx: &mut Cx<'_>, txn: &mut Txn, service: &Service, replicas: u64, slots: &mut Slots) {
    let live = slots.values().filter(|s| s.is_live()).count() as u64;
    if live < replicas {
        let mut missing = replicas - live;
        let mut number = 1;
        while missing > 0 && !txn.is_full() {
            let key = SlotKey::Number(number);
            let slot = slots.entry(key.clone()).or_default();
            if !slot.is_live() {
                slot.add_new(cx, txn, service, &key);
                missing -= 1;
            }
            number += 1;
        }
    } else if live > replicas {
        for key in surplus(slots, (live - replicas) as usize) {
            if txn.is_full() {
                break;
            }
            if let Some(slot) = slots.get_mut(&key) {
                give_up(txn, slot);
            }
        }
    }
}

/// Orders every task of the slot to be stopped and forgotten.
pub(crate) fn give_up(txn: &mut Txn, slot: &mut Slot) {
    let now = txn.now();
    slot.amend(txn, |t| t.desired() < DesiredState::Remove, |t| t.stop(DesiredState::Remove, now));
}

/// The `count` slots to give up: those that do not run first, then from the hosts that have most of the service;
/// among equals the highest number.
fn surplus(slots: &Slots, count: usize) -> Vec<SlotKey> {
    let live = || slots.iter().filter(|(_, s)| s.is_live());
    let mut chosen: Vec<SlotKey> = live().filter(|(_, s)| !s.is_running()).map(|(k, _)| k.clone()).collect();
    chosen.reverse();
    chosen.truncate(count);

    let mut by_host: BTreeMap<NodeId, Vec<SlotKey>> = BTreeMap::new();
    for (key, slot) in live().filter(|(_, s)| s.is_running()) {
        let host = slot.newest_wanted().map(|t| t.node_id.clone()).unwrap_or_default();
        by_host.entry(host).or_default().push(key.clone());
    }
    let rank = |host: &NodeId, keys: &[SlotKey]| Some((keys.len(), keys.last()?.clone(), host.clone()));
    let mut heaviest: BTreeSet<_> = by_host.iter().filter_map(|(host, keys)| rank(host, keys)).collect();
    while chosen.len() < count {
        let Some((_, key, host)) = heaviest.pop_last() else { break };
        chosen.push(key);
        if let Some(keys) = by_host.get_mut(&host) {
            keys.pop();
            heaviest.extend(rank(&host, keys));
        }
    }
    chosen
}
