//! Breaks Shoal on purpose.
//!
//! `hosts` makes clusters of real daemons on hosts in network namespaces, for tests that kill things. What must hold
//! is checked from the outside: through the public API, through published ports, and on the machine itself. `sim` runs
//! the brain, the store and the agents' side of tasks in one thread, under faults that a seed decides; `check` holds the
//! properties that must hold after every step. `soak` breaks real clusters at random, for as long as it is told, and
//! holds what it sees of them against the same properties. `compare` does so for networks alone: after every quiet period
//! of a random life, each host's kernel and names are held against the store. `bench` is what benchmarks share, `peers` the systems that they
//! measure beside Shoal.

pub mod bench;
pub mod check;
pub mod compare;
pub mod conformance;
pub mod hosts;
pub mod noise;
pub mod peers;
pub mod sim;
pub mod soak;
