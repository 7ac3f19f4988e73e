//! A backup's wishes in a cluster that lives: what users made is as in the backup, who is in the cluster is as now.

use std::sync::Arc;

use super::{Held, Store};
use crate::model::{NodeId, NodeSpec};

impl Store {
    /// The store that a restore begins with: services, tasks, networks, secrets, configs and settings of the backup
    /// (`self`); hosts, certificates, tokens, keys, autolock and removed nodes of `present`, because a restore must not let
    /// in who was removed, nor lock out who joined. A host of both keeps the labels and addresses that the backup has.
    ///
    /// `None` when one of them has no cluster, or they are different clusters.
    pub fn restored_into(&self, present: &Store) -> Option<Store> {
        let (old, now) = (self.cluster()?, present.cluster()?);
        if old.id != now.id {
            return None;
        }
        let mut next = self.clone();
        let mut cluster = (**old).clone();
        cluster.status = now.status.clone();
        // Whether there is a lock goes with its key, which is among what stays.
        cluster.spec.autolock = now.spec.autolock;
        next.put(Held::Cluster(Arc::new(cluster)));
        let gone: Vec<_> = self.nodes().filter(|node| present.node(&node.id).is_none()).cloned().collect();
        for node in gone {
            next.remove(&Held::Node(node).key());
        }
        for node in present.nodes() {
            let mut node = (**node).clone();
            match self.node(&node.id) {
                Some(old) => {
                    node.attachments.clone_from(&old.attachments);
                    node.spec = NodeSpec { role: node.spec.role, ..old.spec.clone() };
                }
                // Addresses that it has now may be somebody else's there.
                None => node.attachments.clear(),
            }
            next.put(Held::Node(Arc::new(node)));
        }
        next.now = self.now.max(present.now);
        Some(next)
    }

    /// The store in which another host takes the place of this node: sessions of the host that is gone fence it no more.
    /// `None` when there is no such node.
    pub fn taken_over(&self, node: &NodeId) -> Option<Store> {
        let mut node = (**self.node(node)?).clone();
        node.status.generation = 0;
        let mut next = self.clone();
        next.put(Held::Node(Arc::new(node)));
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cluster, ClusterId, Node, NodeRole, Service, ServiceId, UnlockKey};

    fn store(cluster: u128, nodes: &[&str], services: &[&str]) -> Store {
        let mut store = Store::default();
        store.put(Held::Cluster(Arc::new(Cluster { id: ClusterId::from(cluster), ..Cluster::default() })));
        for id in nodes {
            store.put(Held::Node(Arc::new(Node { id: NodeId::new(*id), ..Node::default() })));
        }
        for id in services {
            let mut service = Service { id: ServiceId::new(*id), ..Service::default() };
            service.spec.name = (*id).to_owned();
            store.put(Held::Service(Arc::new(service)));
        }
        store
    }

    #[test]
    fn wishes_are_the_backups_and_hosts_are_those_of_now() {
        let backup = store(1, &["a", "left"], &["web"]);
        let mut present = store(1, &["a", "joined"], &["db"]);
        let mut cluster = (**present.cluster().unwrap()).clone();
        cluster.status.worker_token = "new".into();
        cluster.spec.autolock = true;
        cluster.status.unlock_key = Some(UnlockKey { version: 1, bytes: vec![7; 32] });
        present.put(Held::Cluster(Arc::new(cluster)));
        let mut node = (**present.node(&NodeId::new("a")).unwrap()).clone();
        node.spec.role = NodeRole::Manager as i32;
        present.put(Held::Node(Arc::new(node)));

        let restored = backup.restored_into(&present).unwrap();
        let names: Vec<&str> = restored.nodes().map(|node| node.id.as_str()).collect();
        assert_eq!(names, ["a", "joined"]);
        assert!(restored.service_by_name("web").is_some() && restored.service_by_name("db").is_none());
        assert_eq!(restored.cluster().unwrap().status.worker_token, "new");
        // An autolock of then with the key of now would be one without a key, or a key without a lock.
        let cluster = restored.cluster().unwrap();
        assert!(cluster.spec.autolock && cluster.status.unlock_key.is_some());
        assert_eq!(restored.node(&NodeId::new("a")).unwrap().spec.role(), NodeRole::Manager);
        assert!(store(2, &[], &[]).restored_into(&present).is_none());
    }
}
