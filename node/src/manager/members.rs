//! Keeps Raft's members as the store wants them: who was demoted or removed stops voting.
//!
//! The other direction (a promoted node becomes a voter) begins at that node: it sees its new role, starts Raft and
//! asks to be let in.

use std::time::Duration;

use deploy::control::{ClearManager, NodeLeft, Op, Request};
use deploy::model::{NodeId, NodeRole};
use deploy::store::Store;
use raft::{RaftId, Role, Status};

use super::Manager;
use crate::engine::EngineError;

/// How often the leader looks when nothing changes.
const LOOK: Duration = Duration::from_secs(1);

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// This manager must stop voting, so another one has to lead first.
    HandOver,
    /// Remove from Raft.
    Remove(RaftId),
    /// Tell the other managers where this one is now.
    Move(raft::Peer),
    /// Note in the store that the node no longer takes part.
    Clear(NodeId),
}

/// What is to be done next, if anything; one step at a time, because each changes what is known.
fn next_step(store: &Store, status: &Status) -> Option<Step> {
    let members = || status.voters.iter().chain(&status.learners);
    for node in store.nodes().filter(|node| node.spec.role() == NodeRole::Worker) {
        let Some(manager) = &node.manager else { continue };
        return Some(match members().find(|peer| peer.id == manager.raft_id) {
            Some(peer) if peer.id == status.id => Step::HandOver,
            Some(peer) => Step::Remove(peer.id),
            None => Step::Clear(node.id.clone()),
        });
    }
    // A member that has moved: its node said so when its session began.
    let moved = members().find_map(|peer| {
        let node = store.node(&NodeId::new(peer.node_id.clone()))?;
        let manager = node.manager.as_ref().filter(|m| m.raft_id == peer.id && !m.addr.is_empty())?;
        (manager.addr != peer.addr).then(|| raft::Peer { addr: manager.addr.clone(), ..peer.clone() })
    });
    if let Some(peer) = moved {
        return Some(Step::Move(peer));
    }
    // A member that no node of the store has: its node was removed, or got another raft id.
    members()
        .find(|peer| {
            let node = store.node(&NodeId::new(peer.node_id.clone()));
            peer.id != status.id && node.is_none_or(|n| n.manager.as_ref().is_none_or(|m| m.raft_id != peer.id))
        })
        .map(|peer| Step::Remove(peer.id))
}

impl Manager {
    /// A node leaves for good. One that was a manager has stopped voting before it asks for this.
    pub(super) async fn forget(&self, node_id: &NodeId) -> Result<(), EngineError> {
        let manager = {
            let published = self.watch();
            let published = published.borrow();
            published.store.node(node_id).is_some_and(|node| node.manager.is_some())
        };
        if manager {
            let op = Op::ClearManager(ClearManager { node_id: node_id.clone() });
            self.control(Request::from(op)).await?;
        }
        self.control(Request::from(Op::NodeLeft(NodeLeft { node_id: node_id.clone() }))).await.map(drop)
    }
}

/// The leader's work, for as long as the manager lives.
pub(super) async fn run(manager: Manager) {
    let mut published = manager.watch();
    loop {
        let _ = tokio::time::timeout(LOOK, published.changed()).await;
        let status = manager.status();
        if status.role != Role::Leader {
            continue;
        }
        let store = published.borrow_and_update().store.clone();
        if store.cluster().is_none() {
            continue;
        }
        let Some(step) = next_step(&store, &status) else { continue };
        tracing::info!(?step, "changing the manager set");
        let result = match &step {
            Step::HandOver => manager.hand_over().await,
            Step::Remove(id) => manager.remove_voter(*id).await,
            Step::Move(peer) => manager.move_voter(peer.clone()).await,
            Step::Clear(node) => {
                manager.control(Request::from(Op::ClearManager(ClearManager { node_id: node.clone() }))).await.map(drop)
            }
        };
        if let Err(error) = result {
            tracing::warn!(?step, %error, "the manager set could not be changed; trying again");
            tokio::time::sleep(LOOK).await;
        }
    }
}
