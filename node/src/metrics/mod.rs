//! What this node tells of its own work, in Prometheus' text form at `--metrics-addr`.
//!
//! `instrument` is what owners count with · `readings` is what a scrape takes from each of them · `page` names it ·
//! `text` writes it · `server` serves it. There is no registry: an owner holds its own counters, and a scrape reads
//! them. It takes no lock that an owner could wait for, and what nobody scrapes costs an addition.
//!
//! The text is written here and not by a client library: the numbers live with their owners, so a library's registry
//! would be a second place for each of them, and what is left is a page of formatting.

mod instrument;
mod page;
mod readings;
mod server;
mod text;

pub use instrument::{Counter, Distribution, Gauge, Held, Histogram};
pub(crate) use readings::{AgentReadings, ManagerReadings, Readings};
pub(crate) use server::{bind, serve};
