//! Runs one task.

pub mod image;
