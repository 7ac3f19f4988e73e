//! A manager that was away while its cluster was recovered without it must not go on where it stopped: with others like
//! it, it would make a majority of the life that is over. Before it takes part it asks the managers that it knows.
//!
//! This is a courtesy, not a lock: one that can reach none of them is not stopped by it. Agents, which have seen the
//! newer life, do not follow the older one in any case.

use deploy::dispatcher::Stamp;
use tokio::task::JoinSet;

use super::active::{Active, internal};
use crate::datadir::MembershipRecord;
use crate::engine::EngineError;
use crate::rpc::pb;

impl Active {
    /// The manager (`ip:port`) that speaks for a newer life of the cluster than what this node remembers.
    pub(super) async fn superseded(&self, record: &MembershipRecord) -> Option<String> {
        let seen = self.agent.remembered();
        if seen.incarnation == 0 {
            return None;
        }
        let mut asked = JoinSet::new();
        for manager in record.managers.iter().filter(|m| m.node_id != record.node_id).cloned() {
            let channel = self.channels.to(&manager.addr, &manager.node_id);
            asked.spawn(async move {
                let reply = pb::managers_client::ManagersClient::new(channel).life(pb::LifeRequest {}).await;
                (manager.addr, reply.ok().map(tonic::Response::into_inner))
            });
        }
        let newer = async {
            while let Some(answer) = asked.join_next().await {
                if let Ok((addr, Some(life))) = answer
                    && is_newer(&life, &seen)
                {
                    return Some(addr);
                }
            }
            None
        };
        tokio::time::timeout(self.engine.config().timing.ask_before_start(), newer).await.ok().flatten()
    }

    /// Goes on as a worker; the new life says what becomes of this node.
    pub(super) fn step_aside(&self, by: &str) -> Result<(), EngineError> {
        tracing::warn!(
            manager = by,
            "the cluster was recovered without this manager: it goes on as a worker, and its log is kept as \
             raft.before-recovery. To make it a manager again, run `shoal node promote` on a manager"
        );
        self.keep_log_aside()?;
        self.record_worker()
    }

    /// The same for a manager that ran when it learned of the new life.
    pub(super) fn keep_log(&self, incarnation: u64) -> Result<(), EngineError> {
        tracing::warn!(
            incarnation,
            "the cluster was recovered or restored without this manager: its log is kept as raft.before-recovery. \
             Unless it becomes a manager again by itself, run `shoal node promote` on a manager"
        );
        self.keep_log_aside()
    }

    fn keep_log_aside(&self) -> Result<(), EngineError> {
        self.engine.data().set_raft_aside().map_err(|e| internal("the old log could not be set aside")(&e))
    }
}

fn is_newer(life: &pb::LifeReply, seen: &Stamp) -> bool {
    life.incarnation != seen.incarnation && life.revision > seen.revision
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_life_that_began_later_supersedes() {
        let seen = Stamp { incarnation: 1, term: 3, revision: 70 };
        let newer = |incarnation, revision| is_newer(&pb::LifeReply { incarnation, revision }, &seen);
        assert!(newer(2, 70 + (1 << 20)));
        assert!(!newer(1, 1 << 30) && !newer(2, 70) && !newer(2, 5));
    }
}
