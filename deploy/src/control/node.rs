//! Hosts: joined, there, gone, changed by a user, forgotten.

use std::time::Duration;

use super::{
    AllocateRaftId, ClearManager, ControlError, NodeCertified, NodeDown, NodeLeft, NodeSession, NoteNode, RegisterNode,
    RemoveNode, Reply, UpdateNode, cluster, invalid, named, not_found, out_of_sequence, precondition, validate,
};
use crate::allocator;
use crate::model::{
    Cluster, DesiredState, ENCRYPTION_LEVEL, ManagerStatus, Node, NodeAvailability, NodeCertificate, NodeDescription,
    NodeId, NodeRole, NodeSpec, NodeState, NodeStatus, RemovedNode, Subnet, TaskState, Timestamp, is_id, parse_ipv4,
};
use crate::store::Txn;

/// Certificates are renewed late at times; a removed node stays on the list for this long beyond their life.
const CERT_GRACE: Duration = Duration::from_secs(24 * 3600);
/// SHA-256.
const KEY_DIGEST_BYTES: usize = 32;

pub(super) fn register(txn: &mut Txn, op: &RegisterNode) -> Result<Reply, ControlError> {
    let role = NodeRole::try_from(op.role).map_err(|_| invalid(format!("unknown node role {}", op.role)))?;
    if !is_id(op.node_id.as_str()) {
        return Err(invalid("a node id has 25 characters of 0-9 and a-z"));
    }
    let cluster = cluster::current(txn)?;
    let token = match role {
        NodeRole::Manager => &cluster.status.manager_token,
        NodeRole::Worker => &cluster.status.worker_token,
    };
    if !op.secret.is_empty() && !same(&op.secret, token) {
        return Err(precondition("a valid join token is necessary to join this cluster: this one was replaced"));
    }
    if cluster.status.removed_nodes.iter().any(|removed| removed.id == op.node_id) {
        return Err(precondition(format!("node {} was removed from the cluster", op.node_id)));
    }
    validate::node_description(&op.description)?;
    validate::text("Addr", &op.addr, 256)?;
    refuse_published_ports(txn, op)?;
    refuse_ingress_address(txn, &op.description)?;
    if role == NodeRole::Manager {
        refuse_old_release(&cluster, op.description.feature_level)?;
    }
    if let Some(node) = txn.node(&op.node_id) {
        // The answer to the first request was lost. A certificate of another role is another join.
        if node.spec.role() != role {
            return Err(ControlError::new(super::ErrorKind::AlreadyExists, format!("node {} exists", op.node_id)));
        }
        return Ok(named(&op.node_id));
    }
    let spec = NodeSpec { role: op.role, availability: op.availability, ..NodeSpec::default() };
    validate::node_spec(&spec)?;
    txn.put_node(Node {
        id: op.node_id.clone(),
        spec,
        description: op.description.clone(),
        status: NodeStatus {
            state: NodeState::Unknown as i32,
            addr: op.addr.clone(),
            since: txn.now(),
            ..NodeStatus::default()
        },
        next_certificate: op.certificate.clone(),
        ..Node::default()
    });
    Ok(named(&op.node_id))
}

/// A host with an address of the ingress network's would be lost to the others, or the network to all of them: what there
/// is of such clusters goes without the network (see `allocator::trouble`).
fn refuse_ingress_address(txn: &Txn, description: &NodeDescription) -> Result<(), ControlError> {
    let Some(ingress) = txn.ingress_network() else { return Ok(()) };
    let Some(subnet) = ingress.allocation.as_ref().and_then(|it| Subnet::parse(&it.subnet)) else { return Ok(()) };
    match parse_ipv4(&description.data_path_addr).filter(|address| subnet.contains(*address)) {
        None => Ok(()),
        Some(_) => Err(precondition(format!(
            "this host's address {} is one of network {} ({subnet}), which carries published ports: give the host another \
             --data-path-addr, or replace that network by one with another subnet first",
            description.data_path_addr, ingress.spec.name
        ))),
    }
}

/// A host that listens at a port of the mesh would not be reached there. It can join with another port; one that comes
/// back with such a port leaves the mesh's out (see `allocator::troubles`).
fn refuse_published_ports(txn: &Txn, op: &RegisterNode) -> Result<(), ControlError> {
    let node = Node { description: op.description.clone(), ..Node::default() };
    let taken = allocator::own_ports(&node).find_map(|(protocol, port, purpose)| {
        txn.published_port_owner(protocol, port).map(|owner| (port, purpose, owner))
    });
    match taken {
        Some((port, purpose, owner)) => Err(precondition(format!(
            "port '{port}', this host's {purpose}, is already in use by service '{}' ({}) as an ingress port",
            owner.spec.name, owner.id
        ))),
        None => Ok(()),
    }
}

/// Compares secrets in a time that depends on their lengths only.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

pub(super) fn session(txn: &mut Txn, op: &NodeSession) -> Result<Reply, ControlError> {
    let mut node = current(txn, &op.node_id)?;
    refuse_left(txn, &op.node_id)?;
    if op.generation < node.status.generation {
        return Err(precondition(format!(
            "session of node {} has boot generation {}, but generation {} was seen: another host uses its identity",
            op.node_id, op.generation, node.status.generation
        )));
    }
    // One that is down, or whose daemon started anew, is followed by the next; one that lives is not.
    let lives = node.status.state() == NodeState::Ready && op.generation == node.status.generation;
    if lives && op.boot != node.status.boot && op.boot != 0 && node.status.boot != 0 {
        return Err(precondition(format!(
            "node {} has a session already, of another daemon with boot generation {} at {}: two hosts use one identity, \
             most likely because a disk was cloned",
            op.node_id, op.generation, node.status.addr
        )));
    }
    validate::node_description(&op.description)?;
    validate::text("Addr", &op.addr, 256)?;
    if op.description.data_path_addr != node.description.data_path_addr {
        refuse_ingress_address(txn, &op.description)?;
    }
    node.description.clone_from(&op.description);
    if let Some(ingress) = txn.ingress_network()
        && allocator::ingress_obstacle(&node, ingress).is_some()
    {
        // It has come to a network that has the same addresses: its place there would cut it off.
        node.attachments.retain(|attachment| attachment.network != ingress.id);
    }
    node.status.addr.clone_from(&op.addr);
    node.status.generation = op.generation;
    node.status.boot = op.boot;
    if let Some(certificate) = &op.certificate {
        use_certificate(&mut node, certificate)?;
    }
    set_state(txn, &mut node, NodeState::Ready, "");
    if let Some(manager) = &mut node.manager
        && !op.description.control_addr.is_empty()
    {
        manager.addr.clone_from(&op.description.control_addr);
    }
    // What it said of encrypted networks with a release that knows of them.
    if op.description.feature_level < ENCRYPTION_LEVEL {
        node.sealing = None;
    }
    let manager = node.manager.is_some();
    txn.put_node(node);
    if manager {
        raise_feature_level(txn)?;
    }
    Ok(named(&op.node_id))
}

/// The cluster's level is the lowest among its managers. It only grows: what was written at a level stays.
fn raise_feature_level(txn: &mut Txn) -> Result<(), ControlError> {
    let levels = txn.nodes().filter(|node| node.manager.is_some()).map(|node| node.description.feature_level.max(1));
    let Some(lowest) = levels.min() else { return Ok(()) };
    let mut cluster = cluster::current(txn)?;
    if lowest > cluster.status.feature_level {
        cluster.status.feature_level = lowest;
        txn.put_cluster(cluster);
    }
    Ok(())
}

/// A manager must understand all that is written.
fn refuse_old_release(cluster: &Cluster, level: u32) -> Result<(), ControlError> {
    let needed = cluster.status.feature_level;
    if level.max(1) < needed {
        return Err(precondition(format!(
            "the release on this host has feature level {}, but the managers of this cluster are at level {needed}: \
             install a newer release before it becomes a manager",
            level.max(1)
        )));
    }
    Ok(())
}

pub(super) fn down(txn: &mut Txn, op: &NodeDown) -> Result<Reply, ControlError> {
    validate::text("Reason", &op.reason, validate::MAX_TEXT)?;
    lose(txn, &op.node_id, op.generation, NodeState::Down, &op.reason)
}

pub(super) fn note(txn: &mut Txn, op: &NoteNode) -> Result<Reply, ControlError> {
    let mut node = current(txn, &op.node_id)?;
    validate::text("Message", &op.message, validate::MAX_TEXT)?;
    if op.generation >= node.status.generation && node.status.state() == NodeState::Ready {
        node.status.message.clone_from(&op.message);
        txn.put_node(node);
    }
    Ok(named(&op.node_id))
}

pub(super) fn certified(txn: &mut Txn, op: &NodeCertified) -> Result<Reply, ControlError> {
    let mut node = current(txn, &op.node_id)?;
    refuse_left(txn, &op.node_id)?;
    match op.in_use {
        true => use_certificate(&mut node, &op.certificate)?,
        false => {
            check_certificate(&op.certificate)?;
            node.next_certificate = Some(op.certificate.clone());
        }
    }
    txn.put_node(node);
    Ok(named(&op.node_id))
}

/// The certificate that a node shows is the one that it uses; what was issued before it is of no use any more.
fn use_certificate(node: &mut Node, certificate: &NodeCertificate) -> Result<(), ControlError> {
    check_certificate(certificate)?;
    if node.next_certificate.as_ref().is_some_and(|next| next.key == certificate.key) {
        node.next_certificate = None;
    }
    node.certificate = Some(certificate.clone());
    Ok(())
}

fn check_certificate(certificate: &NodeCertificate) -> Result<(), ControlError> {
    if certificate.key.len() != KEY_DIGEST_BYTES {
        return Err(invalid(format!("the digest of a key has {KEY_DIGEST_BYTES} bytes")));
    }
    validate::text("Root", &certificate.root, 128)
}

pub(super) fn left(txn: &mut Txn, op: &NodeLeft) -> Result<Reply, ControlError> {
    let mut node = current(txn, &op.node_id)?;
    if node.manager.is_some() {
        return Err(still_in_raft(&op.node_id));
    }
    let mut cluster = cluster::current(txn)?;
    revoke(txn, &mut cluster, &node);
    txn.put_cluster(cluster);
    // No late renewal for who is gone, however long the list above remembers it.
    (node.certificate, node.next_certificate, node.sealing) = (None, None, None);
    orphan_tasks(txn, &op.node_id, "the node left the cluster");
    set_state(txn, &mut node, NodeState::Down, "the node left the cluster");
    txn.put_node(node);
    Ok(named(&op.node_id))
}

pub(super) fn update(txn: &mut Txn, op: &UpdateNode) -> Result<Reply, ControlError> {
    let mut node = current(txn, &op.id)?;
    if node.meta.version != op.version {
        return Err(out_of_sequence());
    }
    validate::node_spec(&op.spec)?;
    let demoted = node.spec.role() == NodeRole::Manager && op.spec.role() == NodeRole::Worker;
    if demoted && !txn.nodes().any(|other| other.id != op.id && stays_manager(txn, other)) {
        return Err(precondition("attempting to demote the last manager of the swarm"));
    }
    if op.spec.role() == NodeRole::Manager && node.spec.role() == NodeRole::Worker {
        refuse_left(txn, &op.id)?;
        refuse_old_release(&cluster::current(txn)?, node.description.feature_level)?;
    }
    node.spec.clone_from(&op.spec);
    txn.put_node(node);
    Ok(named(&op.id))
}

/// Whether a node is a manager and is to be one: one that has left keeps its role, one that was only promoted may never
/// come.
fn stays_manager(txn: &Txn, node: &Node) -> bool {
    node.manager.is_some() && node.spec.role() == NodeRole::Manager && refuse_left(txn, &node.id).is_ok()
}

pub(super) fn remove(txn: &mut Txn, op: &RemoveNode) -> Result<Reply, ControlError> {
    let node = current(txn, &op.id)?;
    // A manager that has left keeps its role in the specification, as in Docker, and is gone for good all the same.
    let may_vote = node.spec.role() == NodeRole::Manager && refuse_left(txn, &op.id).is_ok();
    if node.manager.is_some() || may_vote {
        return Err(still_in_raft(&op.id));
    }
    if node.status.state() == NodeState::Ready && !op.force {
        return Err(precondition(format!("node {} is not down and can't be removed", op.id)));
    }
    let mut cluster = cluster::current(txn)?;
    revoke(txn, &mut cluster, &node);
    txn.put_cluster(cluster);
    orphan_tasks(txn, &op.id, "the node was removed from the cluster");
    txn.remove_node(&op.id);
    Ok(named(&op.id))
}

pub(super) fn allocate_raft_id(txn: &mut Txn, op: &AllocateRaftId) -> Result<Reply, ControlError> {
    let mut node = current(txn, &op.node_id)?;
    refuse_left(txn, &op.node_id)?;
    if node.spec.role() != NodeRole::Manager {
        return Err(precondition(format!("node {} is not to be a manager", op.node_id)));
    }
    if op.addr.is_empty() {
        return Err(invalid("a manager needs an address"));
    }
    validate::text("Addr", &op.addr, 256)?;
    let mut cluster = cluster::current(txn)?;
    // It may have another release by now than when it was promoted, and so may the others.
    refuse_old_release(&cluster, node.description.feature_level)?;
    let raft_id = cluster.status.next_raft_id.max(1);
    cluster.status.next_raft_id = raft_id + 1;
    node.manager = Some(ManagerStatus { raft_id, addr: op.addr.clone() });
    txn.put_cluster(cluster);
    txn.put_node(node);
    Ok(Reply { id: op.node_id.to_string(), number: raft_id, ..Reply::default() })
}

pub(super) fn clear_manager(txn: &mut Txn, op: &ClearManager) -> Result<Reply, ControlError> {
    let mut node = current(txn, &op.node_id)?;
    node.manager = None;
    txn.put_node(node);
    // It may have been the one that held the others back.
    raise_feature_level(txn)?;
    Ok(named(&op.node_id))
}

fn current(txn: &Txn, id: &NodeId) -> Result<Node, ControlError> {
    txn.node(id).map(|node| (**node).clone()).ok_or_else(|| not_found("node", id))
}

fn still_in_raft(id: &NodeId) -> ControlError {
    precondition(format!(
        "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
    ))
}

fn lose(txn: &mut Txn, id: &NodeId, generation: u64, state: NodeState, why: &str) -> Result<Reply, ControlError> {
    let mut node = current(txn, id)?;
    if generation >= node.status.generation {
        set_state(txn, &mut node, state, why);
        txn.put_node(node);
    }
    Ok(named(id))
}

fn set_state(txn: &Txn, node: &mut Node, state: NodeState, message: &str) {
    if node.status.state() != state {
        node.status.set_state(state);
        node.status.since = txn.now();
    }
    message.clone_into(&mut node.status.message);
}

pub(super) fn refuse_left(txn: &Txn, id: &NodeId) -> Result<(), ControlError> {
    let removed = |cluster: &Cluster| cluster.status.removed_nodes.iter().any(|removed| removed.id == *id);
    if txn.cluster().is_some_and(|cluster| removed(cluster)) {
        return Err(precondition(format!("node {id} left the cluster or was removed from it")));
    }
    Ok(())
}

/// Puts a node on the list of those whose certificates open nothing, for as long as any of them may hold, and takes off
/// those whose certificates ran out. The settings alone do not say when that is: the first manager's certificate is older
/// than any of them.
fn revoke(txn: &Txn, cluster: &mut Cluster, node: &Node) {
    let now = txn.now();
    let earlier = Duration::from_nanos(cluster.status.longest_cert_life_ns);
    let by_setting = now.plus(cluster.spec.node_cert_life().max(earlier));
    let known = node.certificate.iter().chain(&node.next_certificate).map(|certificate| certificate.expires);
    let until = known.fold(by_setting, Timestamp::max).plus(CERT_GRACE);
    let list = &mut cluster.status.removed_nodes;
    // One that left and is removed later has no certificates in the store any more.
    let before = list.iter().filter(|removed| removed.id == node.id).map(|removed| removed.until);
    let until = before.fold(until, Timestamp::max);
    list.retain(|removed| removed.until > now && removed.id != node.id);
    list.push(RemovedNode { id: node.id.clone(), until, at: now });
}

/// The tasks of a host that never comes back. What they held is free again.
fn orphan_tasks(txn: &mut Txn, id: &NodeId, why: &str) {
    let tasks: Vec<_> = txn.tasks_on_node(id).filter(|task| task.holds_addresses()).cloned().collect();
    for task in tasks {
        // What does not fit is the enforcer's: it gives up the tasks of hosts that are gone.
        if txn.is_full() {
            break;
        }
        let mut task = (*task).clone();
        task.status.set_state(TaskState::Orphaned);
        task.status.at = txn.now();
        why.clone_into(&mut task.status.err);
        if task.desired() < DesiredState::Shutdown {
            task.set_desired(DesiredState::Shutdown);
        }
        txn.put_task(task);
    }
}

/// Reads an availability; used by validation.
pub(super) fn known_availability(spec: &NodeSpec) -> bool {
    NodeAvailability::try_from(spec.availability).is_ok() && NodeRole::try_from(spec.role).is_ok()
}
