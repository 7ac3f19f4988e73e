//! Port 2377: the messages between nodes, the TLS server that carries them, and channels to other nodes.

mod channel;
mod connections;
mod handshakes;
mod server;
mod tcp;
#[cfg(test)]
mod tests;

/// What `proto/node.proto` says.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod pb {
    tonic::include_proto!("shoal.node.v1");
}

pub use channel::{Channels, Lane, Refused, channel_without_certificate, unverified_channel};
pub use connections::Connections;
pub use server::{Peer, caller, known, serve, shown};
pub(crate) use tcp::tune;

/// Largest message that is read, in bytes. A full assignment set or a batch of the log stays far below.
pub const MAX_MESSAGE: usize = 16 << 20;
