//! How members reach each other: gRPC over channels that the caller makes and a service that it mounts.

mod client;
mod contact;
mod hold;
mod lane;
mod pipeline;
mod proposals;
mod server;
mod window;

pub use self::client::Dial;
pub(crate) use self::client::{AddressBook, Dialer};
pub(crate) use self::contact::Contact;
pub(crate) use self::proposals::Desk;
pub use self::proposals::Proposals;
pub use self::server::Service;
pub(crate) use self::server::{Gate, Transport};

/// Snapshots above this are refused by the receiver.
const MAX_SNAPSHOT: u64 = 1 << 30;

/// The most bytes of one message. Append requests stay below [`READ_LIMIT`](crate::log::READ_LIMIT); the rest is
/// room for later releases.
const MAX_MESSAGE: usize = 8 << 20;

/// The bytes of a snapshot that one message carries.
const CHUNK: usize = 1 << 20;

/// A refusal, with a reason for programs.
fn refusal(reason: &'static str, message: String) -> tonic::Status {
    let mut status = tonic::Status::failed_precondition(message);
    status.metadata_mut().insert(REFUSAL, tonic::metadata::MetadataValue::from_static(reason));
    status
}

/// The metadata key under which a refusal says why, for programs.
const REFUSAL: &str = "shoal-raft-refusal";
