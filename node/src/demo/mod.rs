//! A cluster on one machine, and the story that is told on it.
//!
//! `hosts` makes machines out of network namespaces and runs real daemons in them; tests and benchmarks build on it.
//! `whoami` is the service that the demo runs, `image` makes an image of an executable, `story` is `shoal demo`.
//! Nothing here reaches into a daemon: everything goes through the public API, as users do it.

pub mod enter;
pub mod hosts;
pub mod http;
pub mod image;
mod story;
pub mod whoami;

pub use story::{DemoOptions, run};
