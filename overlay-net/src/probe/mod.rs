//! Harmless questions, asked from inside a network namespace, to see whether what is set up works: a name at the
//! resolver, an echo at an address.
//!
//! Everything here blocks, for as long as the caller says at the most, and sends a handful of packets.

mod echo;
mod names;

pub use echo::{Echo, Reached, echo};
pub use names::{Answer, Families, resolve};
