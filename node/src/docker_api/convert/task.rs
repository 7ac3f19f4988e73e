//! `Task`.

use deploy::model::{DesiredState, ServiceMode, Task, TaskState};
use deploy::store::Store;

use super::{attached_network, non_default, non_empty, port_to_wire, task_spec_to_wire, time_to_wire, version};
use crate::docker_api::wire;

/// Docker's word for a task's observed state.
pub fn task_state_name(state: TaskState) -> &'static str {
    match state {
        TaskState::New => "new",
        TaskState::Pending => "pending",
        TaskState::Assigned => "assigned",
        TaskState::Accepted => "accepted",
        TaskState::Preparing => "preparing",
        TaskState::Ready => "ready",
        TaskState::Starting => "starting",
        TaskState::Running => "running",
        TaskState::Complete => "complete",
        TaskState::Shutdown => "shutdown",
        TaskState::Failed => "failed",
        TaskState::Rejected => "rejected",
        TaskState::Remove => "remove",
        TaskState::Orphaned => "orphaned",
    }
}

/// Docker's word for what is wanted of a task.
pub(crate) fn desired_state_name(state: DesiredState) -> &'static str {
    match state {
        DesiredState::Ready => "ready",
        DesiredState::Running => "running",
        DesiredState::Completed => "complete",
        DesiredState::Shutdown => "shutdown",
        DesiredState::Remove => "remove",
    }
}

/// A task as Docker's clients read it. The store gives the networks that it is attached to.
pub fn task_to_wire(m: &Task, store: &Store) -> wire::Task {
    let job = store
        .service(&m.service_id)
        .is_some_and(|s| matches!(s.spec.mode, Some(ServiceMode::ReplicatedJob(_) | ServiceMode::GlobalJob(_))));
    let host_ports = if m.status.state() >= TaskState::Starting {
        m.host_ports().map(|port| port_to_wire(&port)).collect()
    } else {
        Vec::new()
    };
    wire::Task {
        id: Some(m.id.to_string()),
        version: version(&m.meta),
        created_at: Some(time_to_wire(m.meta.created_at)),
        updated_at: Some(time_to_wire(m.meta.updated_at)),
        labels: Some(wire::Map::new()),
        spec: Some(task_spec_to_wire(&m.spec)),
        service_id: Some(m.service_id.to_string()),
        slot: non_default(&m.slot),
        node_id: non_empty(m.node_id.as_str()),
        status: Some(wire::TaskStatus {
            timestamp: Some(time_to_wire(m.status.at)),
            state: Some(task_state_name(m.status.state()).to_owned()),
            message: non_empty(&m.status.message),
            err: non_empty(&m.status.err),
            container_status: m.status.container.as_ref().map(|c| wire::ContainerStatus {
                container_id: Some(c.id.clone()),
                pid: Some(c.pid),
                exit_code: Some(c.exit_code.unwrap_or_default()),
            }),
            port_status: Some(wire::PortStatus { ports: non_default(&host_ports) }),
        }),
        desired_state: Some(desired_state_name(m.desired()).to_owned()),
        networks_attachments: non_default(
            &m.attachments
                .iter()
                .filter(|a| !a.address.is_empty())
                .map(|a| wire::TaskAttachment {
                    network: Some(attached_network(&a.network, store)),
                    addresses: Some([&a.address, &a.address6].into_iter().filter_map(|a| non_empty(a)).collect()),
                })
                .collect(),
        ),
        job_iteration: job.then_some(wire::ObjectVersion { index: Some(m.job_iteration) }),
    }
}
