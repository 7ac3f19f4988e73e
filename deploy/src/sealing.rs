//! Fresh keys for encrypted networks, once a day.
//!
//! The store only counts: with each number, every host makes itself a new pair of keys and says what the public one is.
//! Two hosts use the new keys as soon as they have shaken hands with them, and the old ones until then; nobody needs to be
//! asked for that, so a rotation has one step. (The keys that packets are sealed with are others, and change every two
//! minutes; these are what hosts know each other by.)

use std::time::Duration;

use crate::cx::Cx;
use crate::model::{NetworkId, Node, NodeId, NodeState, Task, Timestamp};
use crate::store::{Store, Txn};

/// How long keys are used.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Pause before a rotation that hosts are not ready for is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// There are encrypted networks from now on.
pub(crate) fn begin(txn: &mut Txn) {
    let Some(cluster) = txn.cluster().filter(|cluster| cluster.status.sealing_epoch == 0) else { return };
    let mut cluster = (**cluster).clone();
    (cluster.status.sealing_epoch, cluster.status.sealing_epoch_at) = (1, txn.now());
    txn.put_cluster(cluster);
}

/// Begins a rotation when it is time.
pub(crate) fn reconcile(cx: &Cx<'_>, txn: &mut Txn) {
    if txn.networks().any(|network| network.spec.is_encrypted()) {
        // What was restored may have such a network and know nothing of that.
        begin(txn);
    }
    let Some(cluster) = txn.cluster().filter(|cluster| cluster.status.sealing_epoch != 0).cloned() else { return };
    let status = &cluster.status;
    let due = status.sealing_epoch_at.plus(LIFE);
    if cx.now < due {
        return txn.wake_at(due);
    }
    if !txn.networks().any(|network| network.spec.is_encrypted()) {
        return;
    }
    if cx.now < due.plus(LIFE) && !late(txn, cx.now).is_empty() {
        return txn.wake_at(cx.now.plus(AGAIN));
    }
    let mut next = (*cluster).clone();
    next.status.sealing_epoch += 1;
    next.status.sealing_epoch_at = cx.now;
    txn.put_cluster(next);
    txn.wake_at(cx.now.plus(LIFE));
}

/// The hosts that a rotation which is due by now waits for. A host keeps the keys of two rotations: one that has not even
/// begun the last would lose both. For those that do not come to it within a day, the others do not go on with theirs.
pub fn late(store: &Store, now: Timestamp) -> Vec<NodeId> {
    let Some(cluster) = store.cluster() else { return Vec::new() };
    let epoch = cluster.status.sealing_epoch;
    if epoch == 0 || now < cluster.status.sealing_epoch_at.plus(LIFE) {
        return Vec::new();
    }
    let encrypted = |id: &NetworkId| store.network(id).is_some_and(|network| network.spec.is_encrypted());
    let carries = |task: &Task| {
        task.is_placed()
            && !task.has_ended()
            && task.attachments.iter().any(|attachment| encrypted(&attachment.network))
    };
    let is_late = |node: &Node| {
        node.status.state() == NodeState::Ready
            && node.sealing_keys().iter().all(|key| key.epoch != epoch)
            && store.tasks_on_node(&node.id).any(|task| carries(task))
    };
    store.nodes().filter(|node| is_late(node)).map(|node| node.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cx::Limits;
    use crate::model::{
        Cluster, ENCRYPTED_OPTION, Network, NetworkAttachment, NodeSealing, SealingKey, TaskId, TaskState,
    };

    const DAY: u64 = 24 * 3600;

    fn change(store: &mut Store, what: impl FnOnce(&mut Txn)) {
        let mut txn = Txn::new(store, Timestamp::from_millis(1000));
        what(&mut txn);
        *store = txn.into_store();
    }

    /// Passes at that second; the number of the keys afterwards.
    fn pass(store: &mut Store, second: u64) -> u64 {
        let now = Timestamp::from_millis(second * 1000);
        let mut txn = Txn::new(store, now);
        reconcile(&Cx { now, ids: &mut || 1, limits: Limits::default() }, &mut txn);
        let again = txn.next_wake();
        *store = txn.into_store();
        assert!(again.is_none_or(|again| again > now));
        store.cluster().unwrap().status.sealing_epoch
    }

    #[test]
    fn keys_grow_older_by_a_day_and_hosts_are_waited_for() {
        let mut store = Store::default();
        change(&mut store, |txn| txn.put_cluster(Cluster::default()));
        assert_eq!(pass(&mut store, DAY), 0, "nothing is encrypted");
        let mut network = Network { id: NetworkId::new("net"), ..Network::default() };
        network.spec.driver_options.insert(ENCRYPTED_OPTION.into(), String::new());
        change(&mut store, |txn| {
            begin(txn);
            begin(txn);
            txn.put_network(network.clone());
        });
        assert_eq!(pass(&mut store, DAY), 1);
        assert_eq!(pass(&mut store, DAY + 1), 2);
        assert_eq!(pass(&mut store, DAY + 2), 2);
        let mut node = Node { id: NodeId::new("n1"), ..Node::default() };
        node.status.set_state(NodeState::Ready);
        let keys = |epochs: &[u64]| {
            let key = |epoch: &u64| SealingKey { epoch: *epoch, key: vec![u8::try_from(*epoch).unwrap(); 32] };
            Some(NodeSealing { keys: epochs.iter().map(key).collect(), ..NodeSealing::default() })
        };
        node.sealing = keys(&[1]);
        let mut task = Task { id: TaskId::new("t1"), node_id: node.id.clone(), ..Task::default() };
        task.status.set_state(TaskState::Running);
        change(&mut store, |txn| {
            txn.put_node(node.clone());
            txn.put_task(task.clone());
        });
        assert_eq!(pass(&mut store, 2 * DAY + 1), 3, "the host has nobody on an encrypted network");
        let (network_id, address) = (network.id.clone(), "10.0.1.5/24".to_owned());
        task.attachments = vec![NetworkAttachment { network: network_id, address, ..NetworkAttachment::default() }];
        change(&mut store, |txn| txn.put_task(task));
        let who = |store: &Store, second: u64| late(store, Timestamp::from_millis(second * 1000));
        assert!(who(&store, 3 * DAY).is_empty(), "nothing is due");
        assert_eq!(pass(&mut store, 3 * DAY + 1), 3, "a host has not made its keys yet");
        assert_eq!(who(&store, 3 * DAY + 1), [node.id.clone()]);
        node.sealing = keys(&[1, 3]);
        change(&mut store, |txn| txn.put_node(node));
        assert!(who(&store, 3 * DAY + 61).is_empty());
        assert_eq!(pass(&mut store, 3 * DAY + 61), 4);
        assert_eq!(pass(&mut store, 4 * DAY + 61), 4, "it is late again");
        assert_eq!(pass(&mut store, 5 * DAY + 61), 5, "and is waited for no longer than a day");
        change(&mut store, |txn| txn.remove_network(&network.id));
        assert_eq!(pass(&mut store, 9 * DAY), 5, "nothing is encrypted any more");
    }
}
