//! Takes tasks away from hosts that must not have them: lost, drained, or no longer matching the placement.
//!
//! It only takes back the wish; the orchestrator, which runs next, puts a successor elsewhere in the same pass. A paused
//! host keeps what it has.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::cx::Cx;
use crate::model::{DesiredState, Node, NodeAvailability, NodeId, NodeState, Task, TaskState};
use crate::orchestrator::host_is_lost;
use crate::scheduler;
use crate::store::Txn;

/// Tasks of a host that has been away for this long are Orphaned, and what they held is free again.
const ORPHANED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Looks at the tasks of the given hosts; hosts that are not in the store any more count too.
pub(crate) fn reconcile(cx: &Cx<'_>, txn: &mut Txn, hosts: &BTreeSet<NodeId>) {
    for id in hosts.iter().filter(|id| !id.is_none()) {
        let tasks: Vec<Arc<Task>> = txn.tasks_on_node(id).filter(|t| !t.has_ended()).cloned().collect();
        if tasks.is_empty() {
            continue;
        }
        let node = txn.node(id).cloned();
        let gone = match &node {
            None => true,
            Some(node) => outstayed(cx, txn, node),
        };
        for task in tasks {
            if txn.is_full() {
                return;
            }
            // A plain container is on its host whatever becomes of that.
            let must_go = task.is_wanted() && !task.is_attachment() && !may_stay(txn, node.as_deref(), &task);
            if !must_go && !gone {
                continue;
            }
            let mut task = Arc::unwrap_or_clone(task);
            if must_go {
                task.stop(DesiredState::Shutdown, cx.now);
            }
            if gone {
                task.status.set_state(TaskState::Orphaned);
                task.status.at = cx.now;
                task.status.message = "the host was away for too long, or was removed".to_owned();
            }
            txn.put_task(task);
        }
    }
}

/// Whether a host has been lost for so long that its tasks are given up; asks to be woken when it will have been.
fn outstayed(cx: &Cx<'_>, txn: &mut Txn, node: &Node) -> bool {
    if !matches!(node.status.state(), NodeState::Down | NodeState::Disconnected) {
        return false;
    }
    let until = node.status.since.plus(ORPHANED_AFTER);
    if cx.now < until {
        txn.wake_at(until);
        return false;
    }
    true
}

fn may_stay(txn: &Txn, node: Option<&Node>, task: &Task) -> bool {
    let Some(node) = node else { return false };
    !host_is_lost(txn, &node.id)
        && node.spec.availability() != NodeAvailability::Drain
        && scheduler::satisfies_constraints(&task.spec.placement, node)
        && (!scheduler::is_on_encrypted(txn, task) || node.sealing_obstacle().is_none())
}
