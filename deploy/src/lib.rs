//! What should run where: the cluster brain.
//!
//! Pure: no async runtime, no files, no network, no clock, no randomness. Time, ids and order are inputs, so a leader,
//! a follower and a simulation compute the same thing from the same input. `node` drives it; nothing here knows how.

pub mod agent;
pub mod allocator;
pub mod brain;
pub mod control;
pub mod cx;
pub mod dispatcher;
mod enforcer;
mod gossip_keys;
pub mod lifecycle;
pub mod logging;
pub mod model;
mod orchestrator;
mod reaper;
pub mod restart;
mod rollout;
pub mod root_rotation;
pub mod scheduler;
pub mod sealing;
pub mod store;
pub mod turn;
