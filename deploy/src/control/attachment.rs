//! Places of plain containers on the cluster's networks. A host asks for its own.
//!
//! Such a place is a task that no service has and no host starts: it has addresses and names like others, from the moment
//! that it is there until its host gives it back, or is gone for good.

use super::{
    AttachContainer, ControlError, DetachContainer, ErrorKind, Reply, invalid, named, not_found, precondition,
};
use super::{unimplemented, validate};
use crate::allocator;
use crate::cx::Cx;
use crate::model::{
    ATTACH_LEVEL, ContainerStatus, DesiredState, Network, NetworkAttachmentConfig, NetworkId, Task, TaskSpec, TaskState,
};
use crate::store::Txn;

/// Places that the containers of one host may have.
const MAX_ON_HOST: usize = 4096;
/// Names beside its own.
const MAX_ALIASES: usize = 64;
/// Bytes of a name.
const MAX_NAME: usize = 255;

pub(super) fn attach(cx: &mut Cx<'_>, txn: &mut Txn, op: &AttachContainer) -> Result<Reply, ControlError> {
    refuse_old_managers(txn)?;
    if txn.node(&op.node_id).is_none() {
        return Err(not_found("node", &op.node_id));
    }
    if op.container.len() != 64 || !op.container.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(invalid("a container's id has 64 hexadecimal characters"));
    }
    if op.aliases.len() > MAX_ALIASES {
        return Err(invalid(format!("at most {MAX_ALIASES} aliases")));
    }
    for name in op.aliases.iter().chain([&op.name]) {
        validate::text("name", name, MAX_NAME)?;
    }
    let network = find(txn, &op.network)?;
    let wish = NetworkAttachmentConfig {
        target: network.id.to_string(),
        aliases: op.aliases.clone(),
        ..NetworkAttachmentConfig::default()
    };
    let spec = TaskSpec { networks: vec![wish], ..TaskSpec::default() };
    let before = txn.tasks_on_node(&op.node_id).find(|task| task.container == op.container).cloned();
    if let Some(task) = before.as_ref().filter(|task| task.spec_version == op.start && task.spec == spec) {
        // Asked for again, since the answer was lost.
        return Ok(named(&task.id));
    }
    if txn.tasks_on_node(&op.node_id).filter(|task| task.is_attachment()).count() >= MAX_ON_HOST {
        return Err(ControlError::new(ErrorKind::Exhausted, format!("at most {MAX_ON_HOST} containers of a host")));
    }
    // The brain's pass gives the address; that there is none should be said at once.
    let id = network.id.clone();
    allocator::has_address(txn, &id).map_err(|dry| ControlError::new(ErrorKind::Exhausted, dry))?;
    if let Some(task) = before {
        txn.remove_task(&task.id);
    }
    let mut task = Task {
        id: cx.id(),
        spec,
        spec_version: op.start,
        service_name: op.name.clone(),
        node_id: op.node_id.clone(),
        container: op.container.clone(),
        ..Task::default()
    };
    task.set_desired(DesiredState::Running);
    task.status.set_state(TaskState::Running);
    task.status.at = cx.now;
    "attached".clone_into(&mut task.status.message);
    task.status.container = Some(ContainerStatus { id: op.container.clone(), ..ContainerStatus::default() });
    let id = task.id.clone();
    txn.put_task(task);
    Ok(named(id))
}

/// Docker's rules for what a container may be put on by hand.
fn find(txn: &Txn, wanted: &str) -> Result<Network, ControlError> {
    let network = txn.network(&NetworkId::new(wanted)).or_else(|| txn.network_by_name(wanted));
    let network = network.ok_or_else(|| not_found("network", wanted))?;
    if network.spec.ingress || !network.spec.attachable {
        return Err(precondition(format!("network {wanted} not manually attachable")));
    }
    if network.allocation.is_none() {
        return Err(precondition(format!("network {wanted} has no subnet yet: {}", network.message)));
    }
    Ok(Network::clone(network))
}

/// Gives a place back. That it is not there is fine: it was asked for again.
pub(super) fn detach(txn: &mut Txn, op: &DetachContainer) -> Result<Reply, ControlError> {
    if txn.task(&op.id).is_some_and(|task| task.is_attachment() && task.node_id == op.node_id) {
        txn.remove_task(&op.id);
    }
    Ok(named(&op.id))
}

/// An older manager would take such a place for a task without a service.
pub(super) fn refuse_old_managers(txn: &Txn) -> Result<(), ControlError> {
    let level = txn.cluster().map_or(0, |cluster| cluster.status.feature_level);
    if level >= ATTACH_LEVEL {
        return Ok(());
    }
    Err(unimplemented(format!(
        "Attachable: the managers of this cluster are at feature level {level}, and attachable networks need level \
         {ATTACH_LEVEL}: install the newer release on all managers first"
    )))
}
