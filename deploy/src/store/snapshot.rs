//! The whole store as bytes: what a new manager gets, and what a restarted one reads.

use std::sync::Arc;

use prost::Message;

use super::{Held, Store};
use crate::model::{
    Cluster, ClusterStatus, Config, Network, NetworkId, Node, Registry, Secret, Service, Task, Timestamp,
};

/// Format of the snapshots that this release writes. A release reads its own and the one before it.
pub const SNAPSHOT_FORMAT: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(message, required, tag = "3")]
    now: Timestamp,
    #[prost(message, optional, tag = "4")]
    cluster: Option<Cluster>,
    #[prost(message, repeated, tag = "5")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
    #[prost(message, repeated, tag = "7")]
    tasks: Vec<Task>,
    #[prost(message, repeated, tag = "8")]
    networks: Vec<Network>,
    #[prost(message, repeated, tag = "9")]
    secrets: Vec<Secret>,
    #[prost(message, repeated, tag = "10")]
    configs: Vec<Config>,
    #[prost(message, repeated, tag = "11")]
    registries: Vec<Registry>,
    #[prost(message, repeated, tag = "12")]
    released: Vec<Released>,
}

/// An address that was given back.
#[derive(Clone, PartialEq, prost::Message)]
struct Released {
    #[prost(string, tag = "1")]
    network: String,
    #[prost(fixed32, tag = "2")]
    address: u32,
    #[prost(message, required, tag = "3")]
    at: Timestamp,
}

/// Why bytes are not a snapshot of a store. Reading them again does not help; another manager's may.
#[derive(Debug, thiserror::Error)]
pub enum DecodeSnapshotError {
    /// Not protobuf, or not of this message.
    #[error("decode snapshot")]
    Malformed(#[from] prost::DecodeError),
    /// Written by a newer release, or not a snapshot at all.
    #[error("decode snapshot: format {found} is not {SNAPSHOT_FORMAT}, which this release reads")]
    Format {
        /// The format in it.
        found: u32,
    },
}

impl Store {
    /// The store as bytes. The same store gives the same bytes on every manager.
    pub fn encode_snapshot(&self) -> Vec<u8> {
        fn all<'a, T: Clone + 'a>(objects: impl Iterator<Item = &'a Arc<T>>) -> Vec<T> {
            objects.map(|object| (**object).clone()).collect()
        }
        let snapshot = Snapshot {
            format: SNAPSHOT_FORMAT,
            revision: self.revision,
            now: self.now,
            cluster: self.cluster.as_deref().cloned(),
            nodes: all(self.nodes()),
            services: all(self.services()),
            tasks: all(self.tasks()),
            networks: all(self.networks()),
            secrets: all(self.secrets()),
            configs: all(self.configs()),
            registries: all(self.registries()),
            released: self
                .released
                .iter()
                .map(|((network, address), at)| Released { network: network.to_string(), address: *address, at: *at })
                .collect(),
        };
        snapshot.encode_to_vec()
    }

    /// The store without what must stay secret: of the cluster only what names it, its settings and its incarnation
    /// are left, and neither secrets nor credentials have any bytes. Tasks, services and their placement are the same, so that what is computed
    /// from them is, too.
    pub fn without_secrets(&self) -> Self {
        let cluster = self.cluster.as_deref().map(|cluster| {
            // By naming what is kept, a secret that is added one day is left out by itself.
            let status = ClusterStatus {
                incarnation: cluster.status.incarnation,
                feature_level: cluster.status.feature_level,
                next_raft_id: cluster.status.next_raft_id,
                removed_nodes: cluster.status.removed_nodes.clone(),
                ..ClusterStatus::default()
            };
            Arc::new(Cluster { id: cluster.id.clone(), meta: cluster.meta, spec: cluster.spec.clone(), status })
        });
        let bare = |secret: &Arc<Secret>| {
            let mut secret = (**secret).clone();
            secret.spec.data.clear();
            (secret.id.clone(), Arc::new(secret))
        };
        let registry = |registry: &Arc<Registry>| {
            let mut registry = (**registry).clone();
            registry.auth.header.clear();
            (registry.id.clone(), Arc::new(registry))
        };
        let service = |service: &Arc<Service>| {
            let mut service = (**service).clone();
            service.spec.task.container.registry_auth = None;
            if let Some(previous) = &mut service.previous_spec {
                previous.task.container.registry_auth = None;
            }
            (service.id.clone(), Arc::new(service))
        };
        let task = |task: &Arc<Task>| {
            let mut task = (**task).clone();
            task.spec.container.registry_auth = None;
            (task.id.clone(), Arc::new(task))
        };
        Store {
            cluster,
            secrets: self.secrets().map(bare).collect(),
            registries: self.registries().map(registry).collect(),
            services: self.services().map(service).collect(),
            tasks: self.tasks().map(task).collect(),
            ..self.clone()
        }
    }

    /// Reads what `encode_snapshot` wrote.
    ///
    /// # Errors
    /// Bytes that are not a snapshot, or of a format that this release does not read.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, DecodeSnapshotError> {
        let snapshot = Snapshot::decode(bytes)?;
        if snapshot.format != SNAPSHOT_FORMAT {
            return Err(DecodeSnapshotError::Format { found: snapshot.format });
        }
        let mut store = Store { revision: snapshot.revision, now: snapshot.now, ..Store::default() };
        let objects = (snapshot.cluster.into_iter().map(|o| Held::Cluster(Arc::new(o))))
            .chain(snapshot.nodes.into_iter().map(|o| Held::Node(Arc::new(o))))
            .chain(snapshot.services.into_iter().map(|o| Held::Service(Arc::new(o))))
            .chain(snapshot.tasks.into_iter().map(|o| Held::Task(Arc::new(o))))
            .chain(snapshot.networks.into_iter().map(|o| Held::Network(Arc::new(o))))
            .chain(snapshot.secrets.into_iter().map(|o| Held::Secret(Arc::new(o))))
            .chain(snapshot.configs.into_iter().map(|o| Held::Config(Arc::new(o))))
            .chain(snapshot.registries.into_iter().map(|o| Held::Registry(Arc::new(o))));
        for object in objects {
            store.put(object);
        }
        let released = snapshot.released.into_iter();
        store.released = released.map(|gone| ((NetworkId::new(gone.network), gone.address), gone.at)).collect();
        Ok(store)
    }
}
