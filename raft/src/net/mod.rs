//! How members reach each other: gRPC over channels that the caller makes and a service that it mounts.

mod client;
mod contact;
mod server;

pub use self::client::Dial;
pub(crate) use self::client::{AddressBook, Dialer};
pub(crate) use self::contact::Contact;
pub use self::server::Service;
pub(crate) use self::server::Transport;

/// Snapshots above this are refused by the receiver.
const MAX_SNAPSHOT: u64 = 1 << 30;

/// The most bytes of one message. Append requests stay below [`READ_LIMIT`](crate::log::READ_LIMIT); the rest is
/// room for later releases.
const MAX_MESSAGE: usize = 8 << 20;

/// The bytes of a snapshot that one message carries.
const CHUNK: usize = 1 << 20;

/// The metadata key under which a refusal says why, for programs.
const REFUSAL: &str = "shoal-raft-refusal";
