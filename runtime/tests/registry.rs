//! Registries at their boundary: a scripted one inside of the test, which may be as hostile as it
//! likes, and Debian's `docker-registry` where it is installed.
//!
//! Everything needs root (owners, devices, overlayfs's attributes); without it the tests say so and
//! pass.

// The lints' own exemptions do not reach functions that tests share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[allow(dead_code)]
#[path = "images/archives.rs"]
mod archives;
#[path = "registry/auth.rs"]
mod auth;
#[path = "registry/fuzz.rs"]
mod fuzz;
#[path = "registry/hostile.rs"]
mod hostile;
#[path = "registry/killed.rs"]
mod killed;
#[path = "registry/pulling.rs"]
mod pulling;
#[path = "registry/pushing.rs"]
mod pushing;
#[path = "registry/real.rs"]
mod real;
#[path = "registry/server.rs"]
mod server;
#[path = "registry/sources.rs"]
mod sources;
#[path = "registry/trust.rs"]
mod trust;
