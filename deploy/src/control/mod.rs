//! A user's, or the cluster's own, request becomes changes in a transaction.
//!
//! The leader runs each request on its speculative store and answers the caller when the entry is committed. A request
//! that is refused leaves the transaction as it was. Nothing here places, allocates or restarts: the brain's pass,
//! which follows in the same turn, does.

mod attachment;
mod cluster;
#[cfg(test)]
pub(crate) mod fixture;
mod network;
mod node;
mod payload;
mod registry;
mod request;
mod sealing;
mod service;
mod status;
#[cfg(test)]
mod tests;
mod validate;

pub use request::*;
pub use validate::{check_container, check_network, check_resources};

use crate::cx::Cx;
use crate::store::Txn;

/// Carries out one request.
///
/// # Errors
/// The refusal, in Docker's words; `txn` is as it was.
pub fn execute(cx: &mut Cx<'_>, txn: &mut Txn, request: &Request) -> Result<Reply, ControlError> {
    let Some(op) = &request.op else {
        return Err(unimplemented("the request is of a kind that this manager's release does not know"));
    };
    if txn.cluster().is_none() && !matches!(op, Op::InitCluster(_)) {
        return Err(precondition("the cluster is not initialised yet"));
    }
    match op {
        Op::InitCluster(op) => cluster::init(cx, txn, op),
        Op::UpdateCluster(op) => cluster::update(cx, txn, op),
        Op::CreateService(op) => service::create(cx, txn, op),
        Op::UpdateService(op) => service::update(txn, op),
        Op::RemoveService(op) => service::remove(txn, op),
        Op::CreateNetwork(op) => network::create(cx, txn, op),
        Op::RemoveNetwork(op) => network::remove(cx, txn, op),
        Op::CreateSecret(op) => payload::create_secret(cx, txn, op),
        Op::UpdateSecret(op) => payload::update_secret(txn, op),
        Op::RemoveSecret(op) => payload::remove_secret(txn, op),
        Op::CreateConfig(op) => payload::create_config(cx, txn, op),
        Op::UpdateConfig(op) => payload::update_config(txn, op),
        Op::RemoveConfig(op) => payload::remove_config(txn, op),
        Op::SetRegistry(op) => registry::set(txn, op),
        Op::RemoveRegistry(op) => registry::remove(txn, op),
        Op::UpdateNode(op) => node::update(txn, op),
        Op::RemoveNode(op) => node::remove(txn, op),
        Op::RegisterNode(op) => node::register(txn, op),
        Op::NodeSession(op) => node::session(txn, op),
        Op::NodeDown(op) => node::down(txn, op),
        Op::NodeLeft(op) => node::left(txn, op),
        Op::NoteNode(op) => node::note(txn, op),
        Op::NodeCertified(op) => node::certified(txn, op),
        Op::AllocateRaftId(op) => node::allocate_raft_id(txn, op),
        Op::ClearManager(op) => node::clear_manager(txn, op),
        Op::ReportStatuses(op) => status::report(txn, op),
        Op::AttachContainer(op) => attachment::attach(cx, txn, op),
        Op::DetachContainer(op) => attachment::detach(txn, op),
        Op::NodeSealed(op) => sealing::announce(txn, op),
    }
}

/// The reply that names an object.
fn named(id: impl std::fmt::Display) -> Reply {
    Reply { id: id.to_string(), ..Reply::default() }
}
