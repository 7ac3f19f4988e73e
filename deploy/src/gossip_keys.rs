//! Fresh gossip keys after a node went: what it knew must seal nothing any more.
//!
//! A rotation has three steps, so that at no moment two hosts cannot read each other: all learn the new key, then all
//! seal with it, then all forget the old one. Between two steps every host has time to hear of the last one; a host that
//! was away gets the keys with its session, which needs none of them.

use std::time::Duration;

use crate::cx::Cx;
use crate::model::{Cluster, GossipKey};
use crate::store::Txn;

/// Time between two steps. Hosts with a session hear of a step within milliseconds.
const STEP: Duration = Duration::from_secs(10);

/// Begins a rotation, or takes its next step.
pub(crate) fn reconcile(cx: &mut Cx<'_>, txn: &mut Txn) {
    let Some(cluster) = txn.cluster().cloned() else { return };
    let status = &cluster.status;
    let newest_removal = status.removed_nodes.iter().map(|node| node.at).max().unwrap_or_default();
    let due = status.gossip_step_at.plus(STEP);
    let mut next = Cluster::clone(&cluster);
    match status.gossip_keys.as_slice() {
        [only] if newest_removal > status.gossip_keys_cover => {
            let fresh = fresh_key(cx, only.id);
            next.status.gossip_keys.push(fresh);
            next.status.gossip_keys_cover = newest_removal;
        }
        [_, _] if cx.now < due => return txn.wake_at(due),
        [first, second] if first.id < second.id => next.status.gossip_keys.reverse(),
        [_, _] => next.status.gossip_keys.truncate(1),
        _ => return,
    }
    if next.status.gossip_keys.len() > 1 {
        txn.wake_at(cx.now.plus(STEP));
    }
    next.status.gossip_step_at = cx.now;
    txn.put_cluster(next);
}

fn fresh_key(cx: &mut Cx<'_>, before: u32) -> GossipKey {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend_from_slice(&(cx.ids)().to_be_bytes());
    bytes.extend_from_slice(&(cx.ids)().to_be_bytes());
    GossipKey { id: before.wrapping_add(1), bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cx::Limits;
    use crate::model::{NodeId, RemovedNode, Timestamp};
    use crate::store::Store;

    /// Passes at that second; the keys afterwards, as their ids.
    fn pass(store: &mut Store, second: u64) -> Vec<u32> {
        let mut next = 1000;
        let mut ids = || {
            next += 1;
            next
        };
        let now = Timestamp::from_millis(second * 1000);
        let mut txn = Txn::new(store, now);
        reconcile(&mut Cx { now, ids: &mut ids, limits: Limits::default() }, &mut txn);
        *store = txn.into_store();
        store.cluster().unwrap().status.gossip_keys.iter().map(|key| key.id).collect()
    }

    #[test]
    fn a_removal_leads_to_one_rotation_in_three_steps() {
        let mut cluster = Cluster::default();
        cluster.status.gossip_keys = vec![GossipKey { id: 1, bytes: vec![0; 32] }];
        let mut txn = Txn::new(&Store::default(), Timestamp::from_millis(1000));
        txn.put_cluster(cluster.clone());
        let mut store = txn.into_store();
        assert_eq!(pass(&mut store, 2), [1]);

        let mut removed = Cluster::clone(store.cluster().unwrap());
        let at = Timestamp::from_millis(3000);
        removed.status.removed_nodes = vec![RemovedNode { id: NodeId::new("gone"), until: at, at }];
        let mut txn = Txn::new(&store, at);
        txn.put_cluster(removed);
        store = txn.into_store();
        assert_eq!(pass(&mut store, 3), [1, 2]);
        assert_eq!(pass(&mut store, 12), [1, 2], "a step came too early");
        assert_eq!(pass(&mut store, 13), [2, 1]);
        assert_eq!(pass(&mut store, 23), [2]);
        assert_eq!(pass(&mut store, 99), [2], "one removal led to two rotations");
    }
}
