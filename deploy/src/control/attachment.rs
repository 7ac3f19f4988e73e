//! Places of plain containers on the cluster's networks. A host asks for its own.
//!
//! Such a place is a task that no service has and no host starts: it has addresses and names like others, from the moment
//! that it is there until its host gives it back, or is gone for good.

use super::node::refuse_left;
use super::{
    AttachContainer, ControlError, DetachContainer, ErrorKind, Reply, forbidden, invalid, named, not_found,
    precondition, unimplemented, validate,
};
use crate::allocator;
use crate::cx::Cx;
use crate::model::{
    ATTACH_LEVEL, ContainerStatus, DesiredState, Network, NetworkAttachmentConfig, NetworkId, NodeId, Task, TaskSpec,
    TaskState,
};
use crate::store::Txn;

/// Places that the containers of one host may have.
const MAX_ON_HOST: usize = 4096;
/// Names beside its own.
const MAX_ALIASES: usize = 64;
/// Bytes of all its names together: what a host may put into the store for one container is bounded.
const MAX_NAMES: usize = 2048;
/// Bytes of a name, and of each of the labels between its dots (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

pub(super) fn attach(cx: &mut Cx<'_>, txn: &mut Txn, op: &AttachContainer) -> Result<Reply, ControlError> {
    refuse_old_managers(txn)?;
    refuse_left(txn, &op.node_id)?;
    refuse_others(txn, &op.node_id, op.generation, op.boot)?;
    if op.container.len() != 64 || !op.container.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(invalid("a container's id has 64 hexadecimal characters"));
    }
    if op.aliases.len() > MAX_ALIASES {
        return Err(invalid(format!("at most {MAX_ALIASES} aliases")));
    }
    if op.aliases.iter().chain([&op.name]).map(String::len).sum::<usize>() > MAX_NAMES {
        return Err(invalid(format!("a container's names have {MAX_NAMES} bytes together at most")));
    }
    op.aliases.iter().chain([&op.name]).try_for_each(|name| check_name(name))?;
    let network = find(txn, &op.network)?;
    refuse_unsealed(txn, &network, &op.node_id)?;
    let wish = NetworkAttachmentConfig {
        target: network.id.to_string(),
        aliases: op.aliases.clone(),
        ..NetworkAttachmentConfig::default()
    };
    let spec = TaskSpec { networks: vec![wish], ..TaskSpec::default() };
    let is_it = |task: &&std::sync::Arc<Task>| {
        task.container == op.container && task.spec_version == op.start && task.spec == spec
    };
    if let Some(task) = txn.tasks_on_node(&op.node_id).find(is_it) {
        // Asked for again, since the answer was lost. An earlier start's place stays until the host gives it back: a request
        // that comes late must not take the place of a later start.
        return Ok(named(&task.id));
    }
    if txn.tasks_on_node(&op.node_id).filter(|task| task.is_attachment()).count() >= MAX_ON_HOST {
        return Err(ControlError::new(ErrorKind::Exhausted, format!("at most {MAX_ON_HOST} containers of a host")));
    }
    // The brain's pass gives the address; that there is none should be said at once.
    let id = network.id.clone();
    allocator::has_address(txn, &id).map_err(|dry| ControlError::new(ErrorKind::Exhausted, dry))?;
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
        return Err(forbidden(format!("network {wanted} not manually attachable")));
    }
    if network.allocation.is_none() {
        return Err(precondition(format!("network {wanted} has no subnet yet: {}", network.message)));
    }
    Ok(Network::clone(network))
}

/// The scheduler puts tasks on encrypted networks only where hosts can carry them; containers are where they are.
fn refuse_unsealed(txn: &Txn, network: &Network, node: &NodeId) -> Result<(), ControlError> {
    let obstacle = || txn.node(node).and_then(|node| node.sealing_obstacle());
    match network.spec.is_encrypted().then(obstacle).flatten() {
        Some(obstacle) => Err(precondition(format!(
            "network {} is encrypted, and node {node} cannot carry such a network: {obstacle}",
            network.spec.name
        ))),
        None => Ok(()),
    }
}

/// Only the daemon that has the node's session speaks for it and its containers: not one whose disk was cloned, nor one that runs
/// on after another has taken its place. One whose session is under way asks again.
pub(super) fn refuse_others(txn: &Txn, node: &NodeId, generation: u64, boot: u64) -> Result<(), ControlError> {
    let found = txn.node(node).ok_or_else(|| not_found("node", node))?;
    if (found.status.generation, found.status.boot) == (generation, boot) {
        return Ok(());
    }
    let message = format!("node {node} has no session with boot generation {generation} of this daemon");
    Err(ControlError::new(ErrorKind::Busy, message))
}

/// Others ask for it by this name.
fn check_name(name: &str) -> Result<(), ControlError> {
    validate::text("name", name, MAX_NAME)?;
    let is_label = |label: &str| (1..=MAX_LABEL).contains(&label.len()) && !label.contains(char::is_control);
    if !name.split('.').all(is_label) {
        return Err(invalid(format!("name {name:?}: between dots there are 1 to {MAX_LABEL} bytes of text")));
    }
    if name.to_ascii_lowercase().starts_with("tasks.") {
        return Err(invalid(format!("name {name:?}: `tasks.` is for the tasks of services")));
    }
    Ok(())
}

/// Gives a place back. That it is not there is fine: it was asked for again.
pub(super) fn detach(txn: &mut Txn, op: &DetachContainer) -> Result<Reply, ControlError> {
    refuse_others(txn, &op.node_id, op.generation, op.boot)?;
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
