//! Names of the objects in the store.

use std::fmt;

use crate::model::{ConfigId, NetworkId, NodeId, RegistryId, SecretId, ServiceId, TaskId};

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The cluster itself.
    Cluster,
    /// A host.
    Node(NodeId),
    /// A service.
    Service(ServiceId),
    /// A task.
    Task(TaskId),
    /// A network.
    Network(NetworkId),
    /// A secret.
    Secret(SecretId),
    /// A config.
    Config(ConfigId),
    /// Credentials for a registry.
    Registry(RegistryId),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Key::Cluster => return f.write_str("cluster"),
            Key::Node(_) => "node",
            Key::Service(_) => "service",
            Key::Task(_) => "task",
            Key::Network(_) => "network",
            Key::Secret(_) => "secret",
            Key::Config(_) => "config",
            Key::Registry(_) => "registry",
        };
        write!(f, "{kind} {}", self.id())
    }
}

impl Key {
    /// The object's id as text; empty for the cluster, of which there is one.
    pub fn id(&self) -> &str {
        match self {
            Key::Cluster => "",
            Key::Node(id) => id.as_str(),
            Key::Service(id) => id.as_str(),
            Key::Task(id) => id.as_str(),
            Key::Network(id) => id.as_str(),
            Key::Secret(id) => id.as_str(),
            Key::Config(id) => id.as_str(),
            Key::Registry(id) => id.as_str(),
        }
    }

    /// The stored form of the kind.
    pub(crate) fn kind(&self) -> KeyKind {
        match self {
            Key::Cluster => KeyKind::Cluster,
            Key::Node(_) => KeyKind::Node,
            Key::Service(_) => KeyKind::Service,
            Key::Task(_) => KeyKind::Task,
            Key::Network(_) => KeyKind::Network,
            Key::Secret(_) => KeyKind::Secret,
            Key::Config(_) => KeyKind::Config,
            Key::Registry(_) => KeyKind::Registry,
        }
    }

    /// Reads the stored form.
    pub(crate) fn from_parts(kind: KeyKind, id: &str) -> Option<Self> {
        Some(match kind {
            KeyKind::None => return None,
            KeyKind::Cluster => Key::Cluster,
            KeyKind::Node => Key::Node(NodeId::new(id)),
            KeyKind::Service => Key::Service(ServiceId::new(id)),
            KeyKind::Task => Key::Task(TaskId::new(id)),
            KeyKind::Network => Key::Network(NetworkId::new(id)),
            KeyKind::Secret => Key::Secret(SecretId::new(id)),
            KeyKind::Config => Key::Config(ConfigId::new(id)),
            KeyKind::Registry => Key::Registry(RegistryId::new(id)),
        })
    }
}

/// Stored form of a key's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum KeyKind {
    /// Never written; what an absent field reads as.
    None = 0,
    /// The cluster itself.
    Cluster = 1,
    /// A host.
    Node = 2,
    /// A service.
    Service = 3,
    /// A task.
    Task = 4,
    /// A network.
    Network = 5,
    /// A secret.
    Secret = 6,
    /// A config.
    Config = 7,
    /// Credentials for a registry.
    Registry = 8,
}
