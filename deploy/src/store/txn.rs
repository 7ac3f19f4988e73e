//! A transaction: a copy of the store that decisions are written to, and the entry that comes out of it.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use super::{Change, Entry, Held, Key, Object, Store};
use crate::model::{
    Cluster, Config, ConfigId, Network, NetworkId, Node, NodeId, Registry, RegistryId, Secret, SecretId, Service,
    ServiceId, Task, TaskId, Timestamp,
};

/// Bytes from which a transaction takes nothing more that can wait. The rest up to what Raft takes is for the decision
/// that is being written when this is reached: a slot's old and new task, and its service with the previous spec.
const FULL: usize = 1 << 20;

/// Bytes of a change beside its object: kind, id, version, and the lengths around them.
const KEY_BYTES: usize = 64;

/// Reads its own writes (it dereferences to the store with them in place). Dropping it forgets them.
#[derive(Clone, Debug)]
pub struct Txn {
    base: Store,
    work: Store,
    touched: BTreeSet<Key>,
    weight: usize,
    wake_at: Option<Timestamp>,
}

impl Deref for Txn {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.work
    }
}

impl Txn {
    /// Starts on `base`. The transaction's time is `now`, or the store's if that is later: the cluster's clock never
    /// goes back.
    pub fn new(base: &Store, now: Timestamp) -> Self {
        let mut work = base.clone();
        work.now = work.now.max(now);
        Self { base: base.clone(), work, touched: BTreeSet::new(), weight: 0, wake_at: None }
    }

    /// The store that the transaction started on.
    pub fn base(&self) -> &Store {
        &self.base
    }

    /// Objects that differ from the store that the transaction started on.
    pub fn touched(&self) -> &BTreeSet<Key> {
        &self.touched
    }

    /// Bytes that the entry would take, at the most.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Whether the entry is as large as it should get. Whoever makes many changes then leaves the rest to the next
    /// pass, and asks for it at once (`wake_at` with the present).
    pub fn is_full(&self) -> bool {
        self.weight >= FULL
    }

    /// Asks for another pass at `at`; the earliest that was asked for counts.
    pub fn wake_at(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// The earliest time that another pass was asked for.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.wake_at
    }

    /// Puts the cluster.
    pub fn put_cluster(&mut self, cluster: Cluster) {
        self.write(Held::Cluster(Arc::new(cluster)));
    }

    /// Puts a host.
    pub fn put_node(&mut self, node: Node) {
        self.write(Held::Node(Arc::new(node)));
    }

    /// Puts a service.
    pub fn put_service(&mut self, service: Service) {
        self.write(Held::Service(Arc::new(service)));
    }

    /// Puts a task.
    pub fn put_task(&mut self, task: Task) {
        self.write(Held::Task(Arc::new(task)));
    }

    /// Puts a network.
    pub fn put_network(&mut self, network: Network) {
        self.write(Held::Network(Arc::new(network)));
    }

    /// Puts a secret.
    pub fn put_secret(&mut self, secret: Secret) {
        self.write(Held::Secret(Arc::new(secret)));
    }

    /// Puts a config.
    pub fn put_config(&mut self, config: Config) {
        self.write(Held::Config(Arc::new(config)));
    }

    /// Puts credentials for a registry.
    pub fn put_registry(&mut self, registry: Registry) {
        self.write(Held::Registry(Arc::new(registry)));
    }

    /// Removes a host; nothing happens if there is none.
    pub fn remove_node(&mut self, id: &NodeId) {
        self.erase(Key::Node(id.clone()));
    }

    /// Removes a service; nothing happens if there is none.
    pub fn remove_service(&mut self, id: &ServiceId) {
        self.erase(Key::Service(id.clone()));
    }

    /// Removes a task; nothing happens if there is none.
    pub fn remove_task(&mut self, id: &TaskId) {
        self.erase(Key::Task(id.clone()));
    }

    /// Removes a network; nothing happens if there is none.
    pub fn remove_network(&mut self, id: &NetworkId) {
        self.erase(Key::Network(id.clone()));
    }

    /// Removes a secret; nothing happens if there is none.
    pub fn remove_secret(&mut self, id: &SecretId) {
        self.erase(Key::Secret(id.clone()));
    }

    /// Removes a config; nothing happens if there is none.
    pub fn remove_config(&mut self, id: &ConfigId) {
        self.erase(Key::Config(id.clone()));
    }

    /// Removes credentials for a registry; nothing happens if there are none.
    pub fn remove_registry(&mut self, id: &RegistryId) {
        self.erase(Key::Registry(id.clone()));
    }

    /// The entry that makes these changes; `None` when nothing changed.
    pub fn finish(&self, term: u64) -> Option<Entry> {
        if self.touched.is_empty() {
            return None;
        }
        let changes = self.touched.iter().map(|key| Change {
            kind: key.kind() as i32,
            id: key.id().to_owned(),
            read_version: self.base.version_of(key),
            object: self.work.held(key).as_ref().map(Object::from),
        });
        Some(Entry { now: self.work.now, term, revision: self.next_revision(), changes: changes.collect() })
    }

    /// The store as it is after the entry: what the leader computes the next transaction on before this one is applied.
    pub fn into_store(self) -> Store {
        if self.touched.is_empty() {
            return self.base;
        }
        let mut next = Store { revision: self.next_revision(), ..self.work };
        next.note_released(&self.base, &self.touched);
        next
    }

    fn next_revision(&self) -> u64 {
        self.base.revision + 1
    }

    fn write(&mut self, mut object: Held) {
        let key = object.key();
        let current = self.work.held(&key);
        if let Some(current) = &current {
            object.set_meta(current.meta());
            if object == *current {
                return;
            }
        }
        if let Some(base) = self.base.held(&key) {
            object.set_meta(base.meta());
            if object == base {
                // Back to what it was: as if nothing had happened.
                self.forget(&key);
                self.work.put(base);
                return;
            }
        }
        let mut meta = object.meta();
        meta.version = self.next_revision();
        meta.updated_at = self.work.now;
        if current.is_none() {
            meta.created_at = self.work.now;
        }
        object.set_meta(meta);
        self.forget(&key);
        self.weight += object.weight() + KEY_BYTES;
        self.work.put(object);
        self.touched.insert(key);
    }

    fn erase(&mut self, key: Key) {
        self.forget(&key);
        self.work.remove(&key);
        if self.base.held(&key).is_some() {
            self.weight += KEY_BYTES;
            self.touched.insert(key);
        }
    }

    /// Takes what was written to an object out of the account; the object itself is about to be replaced.
    fn forget(&mut self, key: &Key) {
        if self.touched.remove(key) {
            self.weight -= KEY_BYTES + self.work.held(key).map_or(0, |object| object.weight());
        }
    }
}
