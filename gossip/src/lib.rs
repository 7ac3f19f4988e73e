//! Who is alive: sealed SWIM membership.
//!
//! Every node runs one [`Gossip`]: it probes the others over UDP, hears of them from each other, and reports who came
//! up, is suspected, was declared dead, or left. The packets are sealed with cluster keys ([`Keyring`]); whoever has
//! none can neither read nor join.
//!
//! * [`swim`] is the protocol, without sockets, clocks or randomness of its own; simulations drive it directly.
//! * [`Sealer`] is the envelope: encryption, and the refusal of what was seen before.
//! * the driver moves bytes between the two and the socket.
//!
//! This crate knows nothing of services, tasks or Raft. What a death means is decided elsewhere, with more evidence.

mod driver;
mod event;
mod handle;
mod identity;
mod keyring;
mod replay;
mod seal;
pub mod swim;
mod timing;
mod wire;

pub use event::{Event, Member, Members, Rejected, RoundTrips, Stats};
pub use handle::{Config, Gossip, MAX_CLUSTER_ID_LEN, StartError};
pub use identity::{Identity, IdentityError, MAX_NODE_ID_LEN};
pub use keyring::{Key, Keyring, KeyringError, MAX_KEYS};
pub use seal::{MAX_DATAGRAM, MAX_PACKET, OVERHEAD, OpenError, SealError, Sealer};
pub use timing::{Timing, TimingError};
pub use wire::WireError;
