//! Fuzzing of everything that strangers write: what the targets share. They are beside what they try (`image/fuzz`,
//! `image/registry/fuzz.rs`, `oci/fuzz.rs`, `stored/fuzz.rs`), and `docs/fuzzing.md` tells how to run them for longer.

pub(crate) mod engine;
pub(crate) mod json;

pub(crate) use engine::{Source, fuzz};
