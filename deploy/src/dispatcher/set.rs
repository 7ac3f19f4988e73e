//! A host's assignment set, the difference between two of them, and the stamp that orders them.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use prost::Message;

use super::item::{
    Assignment, Body, EndpointInfo, Item, ItemKey, ItemKind, NetworkInfo, PayloadInfo, Peer, PublishedPort,
};
use super::item::{RegistryInfo, RemovedPeer, SealingInfo, ServiceInfo, Station};

/// Longest encoded update that is accepted, in bytes. A host in a cluster of some thousand tasks is told about 1 MiB.
pub const MAX_UPDATE_BYTES: usize = 64 << 20;

/// Orders what an agent is told: it refuses anything older than what it has seen.
///
/// A recovered cluster has a new incarnation. Incarnations are random and say nothing of their order; but each begins
/// with a revision above all of those before (by what is known of them, and by the clock), so revisions order them. A session proves by its
/// certificates that it is with the same cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Stamp {
    /// The cluster's incarnation.
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// Raft term of the entry below.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Revision of the store (index of the last entry that was applied to it).
    #[prost(uint64, tag = "3")]
    pub revision: u64,
}

impl Stamp {
    /// Whether an agent that has seen `seen` must refuse what carries this stamp.
    pub fn is_older_than(&self, seen: &Stamp) -> bool {
        match self.incarnation == seen.incarnation {
            true => (self.revision, self.term) < (seen.revision, seen.term),
            // A node that has seen nothing takes whatever comes.
            false => self.revision < seen.revision,
        }
    }
}

/// Everything that one host is told. A clone is O(1), and shares with the other one what does not change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AssignmentSet {
    items: OrdMap<ItemKey, Arc<Item>>,
}

/// An item as it was and as it is; at least one of them is there.
pub type ItemChange<'a> = (Option<&'a Arc<Item>>, Option<&'a Arc<Item>>);

/// What turns one set into another.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Delta {
    /// Items that are new or changed.
    #[prost(message, repeated, tag = "1")]
    pub put: Vec<Item>,
    /// Items that are gone.
    #[prost(message, repeated, tag = "2")]
    pub remove: Vec<ItemKey>,
}

/// A message to an agent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Update {
    /// State of the cluster that it brings the host to.
    #[prost(message, required, tag = "1")]
    pub stamp: Stamp,
    /// State that it starts from; absent when it is the whole set.
    #[prost(message, optional, tag = "2")]
    pub base: Option<Stamp>,
    /// The change; from an empty set when `base` is absent.
    #[prost(message, required, tag = "3")]
    pub delta: Delta,
}

/// Why a message is not an update.
#[derive(Debug, thiserror::Error)]
pub enum DecodeUpdateError {
    /// It is longer than any update.
    #[error("assignment update of {0} bytes is longer than {MAX_UPDATE_BYTES}")]
    TooLong(usize),
    /// It is damaged.
    #[error("assignment update is not readable")]
    Damaged(#[source] prost::DecodeError),
}

impl Delta {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

impl Update {
    /// Its form on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads what came from the wire. Nothing is changed by a refusal; asking again for the whole set helps.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeUpdateError> {
        if bytes.len() > MAX_UPDATE_BYTES {
            return Err(DecodeUpdateError::TooLong(bytes.len()));
        }
        Update::decode(bytes).map_err(DecodeUpdateError::Damaged)
    }
}

macro_rules! of_kind {
    ($($(#[$doc:meta])* $name:ident: $variant:ident($type:ty)),+ $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> impl Iterator<Item = &$type> {
            let key = |kind: i32| ItemKey { kind, ..ItemKey::default() };
            let kind = ItemKind::$variant as i32;
            self.items.range(key(kind)..key(kind + 1)).filter_map(|(_, item)| match &item.body {
                Some(Body::$variant(it)) => Some::<&$type>(it),
                _ => None,
            })
        }
    )+};
}

impl AssignmentSet {
    /// A set of these items; ones that this release does not know are left out.
    pub fn new(items: impl IntoIterator<Item = Item>) -> Self {
        let mut set = Self::default();
        for item in items {
            set.put(item);
        }
        set
    }

    /// All items, in the order of their keys.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values().map(|item| &**item)
    }

    /// The item of that name.
    pub fn get(&self, key: &ItemKey) -> Option<&Item> {
        self.items.get(key).map(|item| &**item)
    }

    /// Whether they are one value in memory, and so the same.
    pub fn is(&self, other: &AssignmentSet) -> bool {
        self.items.ptr_eq(&other.items)
    }

    /// What is not in `new` as it is here. What the two share is not looked at, so that it costs what has changed.
    pub fn changes<'a>(&'a self, new: &'a AssignmentSet) -> impl Iterator<Item = ItemChange<'a>> {
        self.items.diff(&new.items).map(|difference| match difference {
            DiffItem::Add(_, item) => (None, Some(item)),
            DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            DiffItem::Remove(_, item) => (Some(item), None),
        })
    }

    of_kind! {
        /// Tasks of the host.
        tasks: Task(Assignment),
        /// Networks that it takes part in.
        networks: Network(NetworkInfo),
        /// Addresses on them.
        stations: Station(Station),
        /// Services on them.
        services: Service(ServiceInfo),
        /// Tasks, of all hosts, on them.
        endpoints: Endpoint(EndpointInfo),
        /// Ports that every host listens on.
        ports: Port(PublishedPort),
        /// Hosts of the cluster.
        peers: Peer(Peer),
        /// Hosts that are not trusted any more.
        removed: Removed(RemovedPeer),
        /// Secrets of the host's tasks.
        secrets: Secret(PayloadInfo),
        /// Configs of the host's tasks.
        configs: Config(PayloadInfo),
        /// Credentials for the registries of the host's tasks.
        registries: Registry(RegistryInfo),
        /// What encrypted networks are encrypted with.
        sealing: Sealing(SealingInfo),
    }

    /// What turns this set into `new`.
    pub fn diff(&self, new: &AssignmentSet) -> Delta {
        let mut delta = Delta::default();
        for (old, new) in self.changes(new) {
            match new {
                Some(item) => delta.put.push(Item::clone(item)),
                None => delta.remove.extend(old.and_then(|item| item.key())),
            }
        }
        delta
    }

    /// Makes the change. Total: removing what is not there does nothing.
    pub fn apply(&mut self, delta: Delta) {
        for key in &delta.remove {
            self.items.remove(key);
        }
        for item in delta.put {
            self.put(item);
        }
    }

    /// The whole set as a message.
    pub fn to_update(&self, stamp: Stamp) -> Update {
        Update { stamp, base: None, delta: AssignmentSet::default().diff(self) }
    }

    /// What is there already stays the same value in memory.
    pub(super) fn put(&mut self, item: Item) {
        if let Some(key) = item.key()
            && self.items.get(&key).is_none_or(|known| **known != item)
        {
            self.items.insert(key, Arc::new(item));
        }
    }

    pub(super) fn remove(&mut self, key: &ItemKey) {
        self.items.remove(key);
    }
}
