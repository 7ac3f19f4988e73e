//! What agents observed of their tasks.

use super::{ControlError, Reply, ReportStatuses, TaskReport, not_found, precondition};
use crate::model::{ContainerStatus, NodeId, Task, TaskState, TaskStatus};
use crate::store::Txn;

/// Bytes that a message or an error of a status may have; the rest is cut.
const MAX_MESSAGE: usize = 1024;

pub(super) fn report(txn: &mut Txn, op: &ReportStatuses) -> Result<Reply, ControlError> {
    let Some(node) = txn.node(&op.node_id) else { return Err(not_found("node", &op.node_id)) };
    if op.generation < node.status.generation {
        return Err(precondition(format!(
            "reports of node {} have boot generation {}, but its session has {}",
            op.node_id, op.generation, node.status.generation
        )));
    }
    let mut taken = 0;
    for report in &op.reports {
        if txn.is_full() {
            break;
        }
        taken += 1;
        if let Some(task) = observed(txn, &op.node_id, report) {
            txn.put_task(task);
        }
    }
    Ok(Reply { id: op.node_id.to_string(), number: taken, ..Reply::default() })
}

/// The task with the report in it; `None` if the report is not news or not this host's to make.
fn observed(txn: &Txn, node: &NodeId, report: &TaskReport) -> Option<Task> {
    let task = txn.task(&report.task_id)?;
    let state = TaskState::try_from(report.status.state).ok()?;
    // Before Accepted and after Rejected is the leader's word alone. Observed state only grows.
    let reportable = (TaskState::Accepted..=TaskState::Rejected).contains(&state);
    if task.node_id != *node || !reportable || state < task.status.state() {
        return None;
    }
    if task.status.state().is_terminal() && state != task.status.state() {
        // It ended once, and the first word on how is what restarts were decided on.
        return None;
    }
    let mut next = (**task).clone();
    let at = if state == task.status.state() { task.status.at } else { txn.now() };
    next.status = TaskStatus {
        state: state as i32,
        at,
        message: cut(&report.status.message),
        err: cut(&report.status.err),
        container: report.status.container.as_ref().map(bounded).or_else(|| task.status.container.clone()),
        unhealthy: report.status.unhealthy,
    };
    (next != **task).then_some(next)
}

fn bounded(container: &ContainerStatus) -> ContainerStatus {
    let mut container = container.clone();
    if container.id.len() > 64 || !container.id.bytes().all(|b| b.is_ascii_hexdigit()) {
        container.id.clear();
    }
    container
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
