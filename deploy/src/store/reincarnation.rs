//! A store that begins a new life: after a lost quorum, or out of a backup.
//!
//! The new incarnation's revision is 2^20 above all that is known of the old ones, so that agents, who compare revisions
//! across incarnations, never take the old for the newer; and so is the next raft id, because ids that the lost part of
//! the log gave away must not be given again. What this store cannot know of (a life that began after it was backed up)
//! the caller keeps below `revision_seen` and `raft_ids_seen`.

use std::sync::Arc;

use super::{Held, Store};
use crate::model::{ManagerStatus, NodeId, NodeRole};

/// How far the revision and the raft ids jump.
const JUMP: u64 = 1 << 20;

/// What the new life begins with.
#[derive(Clone, Debug, PartialEq)]
pub struct Reincarnation {
    /// Random, never used before.
    pub incarnation: u64,
    /// The only manager.
    pub node: NodeId,
    /// `ip:port` that it is reached at.
    pub addr: String,
    /// Raft ids up to here may be in use somewhere; the manager gets one above.
    pub raft_ids_seen: u64,
    /// No revision of the cluster was above this one or the store's own.
    pub revision_seen: u64,
    /// What becomes of the other managers.
    pub others: Others,
}

/// What becomes of the managers that are not part of the new life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Workers, until somebody promotes them: they may hold what this store has lost.
    Demoted,
    /// Managers again, as soon as they come: each begins anew, with another raft id and this store.
    Return,
}

impl Store {
    /// The store as it begins anew, and the raft id of its manager. `None` when it does not have a cluster, or not that
    /// node.
    pub fn reincarnated(&self, begin: &Reincarnation) -> Option<(Store, u64)> {
        let mut cluster = (**self.cluster()?).clone();
        let mut next = self.clone();
        next.revision = self.revision.max(begin.revision_seen).saturating_add(JUMP);
        let raft_id = cluster.status.next_raft_id.max(begin.raft_ids_seen).saturating_add(JUMP);
        cluster.status.next_raft_id = raft_id + 1;
        cluster.status.incarnation = begin.incarnation;
        let mut changed = vec![Held::Cluster(Arc::new(cluster))];
        self.node(&begin.node)?;
        for node in self.nodes() {
            let mut node = (**node).clone();
            if node.id == begin.node {
                node.spec.role = NodeRole::Manager as i32;
                node.manager = Some(ManagerStatus { raft_id, addr: begin.addr.clone() });
            } else if node.manager.is_some() || node.spec.role() == NodeRole::Manager {
                node.manager = None;
                if begin.others == Others::Demoted {
                    node.spec.role = NodeRole::Worker as i32;
                }
            } else {
                continue;
            }
            changed.push(Held::Node(Arc::new(node)));
        }
        for mut object in changed {
            let mut meta = object.meta();
            meta.version = next.revision;
            meta.updated_at = self.now;
            object.set_meta(meta);
            next.put(object);
        }
        Some((next, raft_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::Stamp;
    use crate::model::{Cluster, Node};

    fn store() -> Store {
        let mut store = Store { revision: 70, ..Store::default() };
        let mut cluster = Cluster::default();
        cluster.status.incarnation = 5;
        cluster.status.next_raft_id = 4;
        store.put(Held::Cluster(Arc::new(cluster)));
        for (id, raft_id) in [("a", 1), ("b", 2), ("w", 0)] {
            let mut node = Node { id: NodeId::new(id), ..Node::default() };
            if raft_id > 0 {
                node.spec.role = NodeRole::Manager as i32;
                node.manager = Some(ManagerStatus { raft_id, addr: format!("{id}:2377") });
            }
            store.put(Held::Node(Arc::new(node)));
        }
        store
    }

    fn begin(others: Others) -> Reincarnation {
        Reincarnation {
            incarnation: 6,
            node: NodeId::new("b"),
            addr: "new:2377".into(),
            raft_ids_seen: 9,
            revision_seen: 100,
            others,
        }
    }

    #[test]
    fn one_manager_is_left_and_everything_jumps() {
        let old = store();
        let (new, raft_id) = old.reincarnated(&begin(Others::Demoted)).unwrap();
        assert_eq!((new.revision(), raft_id), (100 + JUMP, 9 + JUMP));
        let status = &new.cluster().unwrap().status;
        assert_eq!((status.incarnation, status.next_raft_id), (6, raft_id + 1));
        let node = |id: &str| (**new.node(&NodeId::new(id)).unwrap()).clone();
        assert_eq!(node("b").manager, Some(ManagerStatus { raft_id, addr: "new:2377".into() }));
        assert_eq!((node("a").manager, node("a").spec.role()), (None, NodeRole::Worker));
        // What did not change keeps its version: nobody's update of it is out of sequence.
        assert_eq!(node("w"), **old.node(&NodeId::new("w")).unwrap());
        assert_eq!(node("b").meta.version, new.revision());

        // An agent takes the new one for newer, and never the old one after it.
        let stamp = |store: &Store| Stamp {
            incarnation: store.cluster().unwrap().status.incarnation,
            term: 1,
            revision: store.revision(),
        };
        assert!(!stamp(&new).is_older_than(&stamp(&old)));
        assert!(stamp(&old).is_older_than(&stamp(&new)));
    }

    #[test]
    fn managers_may_return() {
        let (new, _) = store().reincarnated(&begin(Others::Return)).unwrap();
        let a = new.node(&NodeId::new("a")).unwrap();
        assert_eq!((&a.manager, a.spec.role()), (&None, NodeRole::Manager));
        assert!(store().reincarnated(&Reincarnation { node: NodeId::new("x"), ..begin(Others::Return) }).is_none());
        assert!(Store::default().reincarnated(&begin(Others::Return)).is_none());
    }
}
