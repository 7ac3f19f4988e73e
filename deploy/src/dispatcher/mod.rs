//! What each host is told: its assignment set, and the difference to what it was told before.
//!
//! Every manager computes the sets of the agents that are attached to it, from its own copy of the store, and sends
//! deltas; an agent that missed something asks for the whole set. Pure: sessions and streams are `node`'s.

mod affected;
mod assignment;
pub mod drain;
mod item;
mod parts;
mod set;

pub use affected::{Affected, affected, affects};
pub use assignment::assignment;
pub use item::{
    Assignment, Body, EndpointInfo, Item, ItemKey, ItemKind, NetworkInfo, PayloadInfo, Peer, Progress, PublishedPort,
    RegistryInfo, RemovedPeer, SealingInfo, ServiceInfo, ServicePort, Station,
};
pub use parts::{HostSet, Parts, Shared};
pub use set::{AssignmentSet, DecodeUpdateError, Delta, ItemChange, MAX_UPDATE_BYTES, Stamp, Update};
