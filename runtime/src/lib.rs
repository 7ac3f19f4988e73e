//! Runs one task.
