//! Breaks Shoal on purpose.
//!
//! `hosts` makes clusters of real daemons on hosts in network namespaces, for tests that kill things. What must hold
//! is checked from the outside: through the public API, through published ports, and on the machine itself. `sim` runs
//! the brain, the store and the agents' side of tasks in one thread, under faults that a seed decides; `check` holds the
//! properties that must hold after every step.

pub mod bench;
pub mod check;
pub mod hosts;
pub mod sim;
