//! Docker's JSON objects as they travel: what clients send and what they read back.
//!
//! Own types rather than a generated client's: that one spells a key differently from what Docker's clients send
//! (`HealthCheck`), so a health check would vanish without a word, and it lacks fields that are read
//! (`PreviousSpec`). Here every field may be absent or null, unknown keys are ignored, maps keep a stable order, and
//! fields that Shoal cannot carry are kept as raw JSON so that `convert` can refuse them by name.

mod container;
mod object;
mod plain;
mod service;
mod swarm;

pub use container::*;
pub use object::*;
pub use plain::*;
pub use service::*;
pub use swarm::*;

use std::collections::BTreeMap;

/// A string map of a JSON object.
pub type Map = BTreeMap<String, String>;

/// Declares a JSON object whose fields may all be absent or null.
macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $key:literal $field:ident : $type:ty),* $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {$(
            #[doc = concat!("Docker's `", $key, "`.")]
            $(#[$field_meta])*
            #[serde(rename = $key, default, skip_serializing_if = "Option::is_none")]
            pub $field: Option<$type>,
        )*}
    )+};
}
use wire;

wire! {
    /// `{}`: an object whose presence is all that it says.
    Empty {}

    /// The version of an object, for optimistic concurrency.
    ObjectVersion { "Index" index: u64 }

    /// Answer to most `create` requests.
    IdResponse { "ID" id: String, "Warnings" warnings: Vec<String>, "Warning" warning: String }
}
