//! The symmetric node: the only crate that joins the others.
//!
//! `daemon` is the process; `manager` decides with the others through Raft; `agent` runs this host's tasks;
//! `images` carries image content between hosts; `docker_api` is what users and tools talk to; `metrics` is what Prometheus reads; `network_check` tries out whether networks work; `cli` is one of its clients; `ca` and `rpc` are what nodes say to
//! each other; `demo` makes hosts in network namespaces and tells a story on them.

pub mod agent;
pub mod backup;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod containers;
pub mod daemon;
pub mod datadir;
pub mod demo;
pub mod docker_api;
pub mod engine;
mod images;
pub mod manager;
pub mod metrics;
pub mod network_check;
mod own_networks;
pub mod release;
pub mod rpc;
pub mod stored;
pub mod timing;
pub mod vault;

/// An error and all its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + '_)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = source.source();
    }
    text
}
