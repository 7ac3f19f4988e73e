//! Agreement: the replicated, durable log under the manager set.
//!
//! [`Raft`] replicates opaque bytes and applies them, in one order everywhere, to a [`StateMachine`]. It
//! owns the log and the snapshots on disk, elections, membership changes and linearizable reads. `node`
//! calls it; it never looks into a payload, opens no socket and checks no certificate: the caller dials
//! ([`Dial`]) and mounts the service ([`Raft::service`]).

mod config;
mod counters;
mod disk;
mod error;
mod handle;
mod keys;
mod log;
mod machine;
mod members;
mod net;
mod recover;
mod snapshot;
mod status;
mod types;
mod wire;

pub use self::config::{Config, Peer, RaftId, Timing};
pub use self::counters::{BOUNDS_US, Counters, Histogram};
pub use self::error::{
    BootstrapError, MembershipError, ProposeError, ReadError, RestoreError, StartError, TransferError,
};
pub use self::handle::{Committed, Pending, Proposed, Raft};
pub use self::keys::{Keyring, keys_in_use};
pub use self::log::LogError;
pub use self::machine::StateMachine;
pub use self::net::{Dial, Proposals, Service};
pub use self::recover::{Found, JUMP, RecoverError, begin_anew, survey};
pub use self::snapshot::SnapshotError;
pub use self::status::{Role, Status};

/// The largest payload of a proposal in bytes. Two of them fit into one append request.
pub const MAX_PAYLOAD: usize = 1 << 20 | 1 << 19;
