//! `shoal network check`: whether the networks of one host work, and what to do where they do not.
//!
//! `collect` asks: the agent, the overlay, the kernel, the resolver, the other hosts. What it asks is harmless (echoes,
//! connections that are hung up, questions for names), and it comes to an end within [`LIMIT`]. `evaluate` judges what was
//! found out, and is pure. Neither changes anything.

mod collect;
mod evaluate;
mod observed;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use collect::check;

/// A check takes no longer than this; what was not found out by then is not judged.
pub const LIMIT: Duration = Duration::from_secs(9);

/// What came of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is as it should be.
    Ok,
    /// It is not.
    Wrong,
    /// It could not be tried, and says nothing.
    Skipped,
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Line {
    /// What was checked: `revision`, `kernel`, `firewall`, `way out`, `network`, `peer`, `addresses`, `names`,
    /// `vip`, `mtu`, `path`.
    pub check: String,
    /// The network, the host, or nothing.
    pub subject: String,
    /// What came of it.
    pub result: Verdict,
    /// What was found, or what is wrong.
    pub detail: String,
    /// What to do; empty unless something is wrong.
    pub advice: String,
}

/// A whole report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// The host's node id.
    #[serde(rename = "NodeID")]
    pub node_id: String,
    /// The lines, in a fixed order.
    pub checks: Vec<Line>,
}
