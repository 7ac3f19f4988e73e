//! The cluster's objects: what a user wants (`spec`), what was observed (`status`), what the leader ordered (`desired`).
//!
//! Every type here is its own stored form: the protobuf tag stands next to the field (`prost`'s derive), so there is
//! no second set of types and no conversion that could forget a field. The price is a rule: **a tag is never reused
//! and never changes its type**, and a removed field leaves its number behind in a comment.
//!
//! Specs keep what the user sent. Docker gives an absent field and a zero different meanings in places (a restart
//! delay, for one); such fields are `Option`, and a method beside them says which value is in force (the getters that `prost` derives
//! for optional fields know only the zero).
//! Nothing here reads a clock, makes an id or decides anything.

mod address;
mod cluster;
mod container;
mod id;
mod network;
mod node;
mod payload;
mod registry;
mod service;
mod task;
mod time;

pub use address::*;
pub use cluster::*;
pub use container::*;
pub use id::*;
pub use network::*;
pub use node::*;
pub use payload::*;
pub use registry::*;
pub use service::*;
pub use task::*;
pub use time::*;

use std::collections::BTreeMap;

/// Labels, and other string maps of a spec. Ordered, so that two managers encode the same bytes.
pub type Labels = BTreeMap<String, String>;

/// What every object carries besides its spec and its status.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Meta {
    /// Index of the log entry that last changed the object; Docker's `Version.Index`.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// When the object was made, on the cluster's clock.
    #[prost(message, required, tag = "2")]
    pub created_at: Timestamp,
    /// When the object last changed, on the cluster's clock.
    #[prost(message, required, tag = "3")]
    pub updated_at: Timestamp,
}
