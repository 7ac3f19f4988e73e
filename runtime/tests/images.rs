//! The image store at its boundary: archives in, images and layer directories out.
//!
//! Everything needs root (owners, devices, overlayfs's attributes); without it the tests say so and
//! pass.

// The lints' own exemptions do not reach functions that tests share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "images/archives.rs"]
mod archives;
#[path = "images/formats.rs"]
mod formats;
#[path = "images/hostile.rs"]
mod hostile;
#[path = "images/keeping.rs"]
mod keeping;
#[path = "images/store.rs"]
mod store;
#[path = "images/tree.rs"]
mod tree;
#[path = "images/unpacking.rs"]
mod unpacking;
