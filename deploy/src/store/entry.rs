//! The payload of a log entry: changed objects, each with the version that it was read at. Never a command.

use std::sync::Arc;

use prost::Message;

use super::{Key, KeyKind};
use crate::model::{Cluster, Config, Meta, Network, Node, Registry, Secret, Service, Task, Timestamp};

/// Most bytes of an encoded entry; what Raft takes. It is kept by `Txn::is_full` together with the bound on a spec.
pub const MAX_ENTRY_BYTES: usize = 3 << 19;

/// What the leader proposes and every manager applies.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// The cluster's clock: the leader's, but never before the last entry's.
    #[prost(message, required, tag = "1")]
    pub now: Timestamp,
    /// Raft term that it was computed in.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Revision of the store after it; one more than before.
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    /// At most one for each object.
    #[prost(message, repeated, tag = "4")]
    pub changes: Vec<Change>,
}

impl Entry {
    /// The stored form.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Bytes that are too many or that no entry encodes to. They may come from the network, so nothing is assumed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeEntryError> {
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(DecodeEntryError::TooLong { bytes: bytes.len() });
        }
        Ok(Self::decode(bytes)?)
    }
}

/// Why bytes are not an entry. Nothing changed; reading them again does not help.
#[derive(Debug, thiserror::Error)]
pub enum DecodeEntryError {
    /// More than `MAX_ENTRY_BYTES`.
    #[error("decode entry: {bytes} bytes are more than {MAX_ENTRY_BYTES}")]
    TooLong {
        /// How many came.
        bytes: usize,
    },
    /// Not protobuf, or not of this message.
    #[error("decode entry")]
    Malformed(#[from] prost::DecodeError),
}

/// One object that is put or removed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Change {
    /// Kind of the object.
    #[prost(enumeration = "KeyKind", tag = "1")]
    pub kind: i32,
    /// Its id; empty for the cluster.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Version that the decision was made on; 0 means that there was no such object.
    #[prost(uint64, tag = "3")]
    pub read_version: u64,
    /// The object as it is from now on; absent means that it is removed.
    #[prost(oneof = "Object", tags = "4, 5, 6, 7, 8, 9, 10, 11")]
    pub object: Option<Object>,
}

impl Change {
    /// Which object; `None` if a newer release knows a kind that this one does not.
    pub fn key(&self) -> Option<Key> {
        Key::from_parts(KeyKind::try_from(self.kind).ok()?, &self.id)
    }
}

/// An object of any kind, as it travels.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Object {
    /// The cluster itself.
    #[prost(message, boxed, tag = "4")]
    Cluster(Box<Cluster>),
    /// A host.
    #[prost(message, boxed, tag = "5")]
    Node(Box<Node>),
    /// A service.
    #[prost(message, boxed, tag = "6")]
    Service(Box<Service>),
    /// A task.
    #[prost(message, boxed, tag = "7")]
    Task(Box<Task>),
    /// A network.
    #[prost(message, boxed, tag = "8")]
    Network(Box<Network>),
    /// A secret.
    #[prost(message, boxed, tag = "9")]
    Secret(Box<Secret>),
    /// A config.
    #[prost(message, boxed, tag = "10")]
    Config(Box<Config>),
    /// Credentials for a registry.
    #[prost(message, boxed, tag = "11")]
    Registry(Box<Registry>),
}

/// An object of any kind, as the store holds it: shared and cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Held {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Task(Arc<Task>),
    Network(Arc<Network>),
    Secret(Arc<Secret>),
    Config(Arc<Config>),
    Registry(Arc<Registry>),
}

macro_rules! each_kind {
    ($value:expr, $object:ident => $body:expr) => {
        match $value {
            Held::Cluster($object) => $body,
            Held::Node($object) => $body,
            Held::Service($object) => $body,
            Held::Task($object) => $body,
            Held::Network($object) => $body,
            Held::Secret($object) => $body,
            Held::Config($object) => $body,
            Held::Registry($object) => $body,
        }
    };
}

impl Held {
    pub(crate) fn key(&self) -> Key {
        match self {
            Held::Cluster(_) => Key::Cluster,
            Held::Node(node) => Key::Node(node.id.clone()),
            Held::Service(service) => Key::Service(service.id.clone()),
            Held::Task(task) => Key::Task(task.id.clone()),
            Held::Network(network) => Key::Network(network.id.clone()),
            Held::Secret(secret) => Key::Secret(secret.id.clone()),
            Held::Config(config) => Key::Config(config.id.clone()),
            Held::Registry(registry) => Key::Registry(registry.id.clone()),
        }
    }

    pub(crate) fn meta(&self) -> Meta {
        each_kind!(self, object => object.meta)
    }

    /// Bytes that it takes in an entry, but for a few.
    pub(crate) fn weight(&self) -> usize {
        each_kind!(self, object => object.encoded_len())
    }

    /// Sets the meta; copies the object only if somebody else holds it too.
    pub(crate) fn set_meta(&mut self, meta: Meta) {
        each_kind!(self, object => {
            if object.meta != meta {
                Arc::make_mut(object).meta = meta;
            }
        });
    }
}

impl From<&Object> for Held {
    fn from(object: &Object) -> Self {
        match object {
            Object::Cluster(object) => Held::Cluster(Arc::new((**object).clone())),
            Object::Node(object) => Held::Node(Arc::new((**object).clone())),
            Object::Service(object) => Held::Service(Arc::new((**object).clone())),
            Object::Task(object) => Held::Task(Arc::new((**object).clone())),
            Object::Network(object) => Held::Network(Arc::new((**object).clone())),
            Object::Secret(object) => Held::Secret(Arc::new((**object).clone())),
            Object::Config(object) => Held::Config(Arc::new((**object).clone())),
            Object::Registry(object) => Held::Registry(Arc::new((**object).clone())),
        }
    }
}

impl From<&Held> for Object {
    fn from(held: &Held) -> Self {
        match held {
            Held::Cluster(object) => Object::Cluster(Box::new((**object).clone())),
            Held::Node(object) => Object::Node(Box::new((**object).clone())),
            Held::Service(object) => Object::Service(Box::new((**object).clone())),
            Held::Task(object) => Object::Task(Box::new((**object).clone())),
            Held::Network(object) => Object::Network(Box::new((**object).clone())),
            Held::Secret(object) => Object::Secret(Box::new((**object).clone())),
            Held::Config(object) => Object::Config(Box::new((**object).clone())),
            Held::Registry(object) => Object::Registry(Box::new((**object).clone())),
        }
    }
}
