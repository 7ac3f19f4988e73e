//! The pure half: what should be, what is, and the operations between the two.
//!
//! No I/O, no clock, no randomness. `picture` describes what the node's namespace holds and computes the difference,
//! `balance` turns services and ports into nf_tables tables, `attachment` says what a task's namespace gets and `inside`
//! what of it is missing, `flows` which connections lead nowhere any more, `former` which virtual addresses were some
//! service's until a moment ago, `seal` what encrypted networks need, `names` how objects in the kernel are called and
//! recognised again after a restart.

pub mod attachment;
pub mod balance;
pub mod flows;
pub mod former;
pub mod inside;
pub mod names;
pub mod picture;
pub mod ruleset;
pub mod seal;

#[cfg(test)]
mod tests;
