//! Names at 127.0.0.11 in each task's namespace.
//!
//! `zone` is an immutable value that is swapped whole, `resolver` decides about one packet, `wire` reads and writes
//! it, `server` moves bytes. The sockets are on ports of their own (53 is the user's); nftables sends 53 there.
//! What is not ours goes through `forward` to the servers of the host (`resolvers`) or the task; `answer` reads what
//! they say, and `cache` keeps it.

mod answer;
mod cache;
mod forward;
mod names;
mod resolver;
mod resolvers;
mod server;
mod tlds;
mod wire;
mod zone;

pub use resolver::{Decision, Transport, resolve};
pub use server::DnsSockets;
pub(crate) use server::Server;
pub use zone::{Known, Reverse, Upstream, View, Zone};

/// Where a task finds its resolver, as Docker's tasks do.
pub const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 11);

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
