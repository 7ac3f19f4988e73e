//! What can go wrong with the overlay as a whole.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::config::ConfigError;

/// One object that could not be brought into its desired state.
#[derive(Debug)]
pub struct ObjectError {
    /// What was to be done to what.
    pub object: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.source)
    }
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Why the overlay could not do what it was asked.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// The request itself is wrong. Nothing was changed; a retry does not help.
    #[error("refused")]
    Config(#[from] ConfigError),
    /// Parts of a desired state cannot be put in force by anybody; all the rest is. A retry does not help.
    #[error("left out {}, first {}", count(.0.len(), "bad object"), .0.first().map(ToString::to_string).unwrap_or_default())]
    Refused(Vec<ConfigError>),
    /// The overlay could not be started: missing rights or kernel features. A retry helps once they are there.
    #[error("cannot {step}")]
    Start {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Some objects are not as desired; the others are. The overlay tries again by itself, and with the next call.
    #[error("{} not as desired, first {}", count(.0.len(), "object"), .0.first().map(ToString::to_string).unwrap_or_default())]
    Partial(Vec<ObjectError>),
    /// No interface of this host has the data path address. A retry helps once one has.
    #[error("no interface of this host has the data path address {0}")]
    NoUnderlay(Ipv4Addr),
    /// The desired state has no such network. A retry helps after the next `set_desired`.
    #[error("task {task:?}: network {network:?} is not known on this host")]
    UnknownNetwork {
        /// The task.
        task: String,
        /// The network's id.
        network: String,
    },
    /// The network is encrypted, and this host cannot do that. A retry helps unless it lasts; another host may.
    #[error("task {task:?}: network {network:?} is encrypted, and {reason}")]
    NoSeal {
        /// The task.
        task: String,
        /// The network's id.
        network: String,
        /// Why it cannot.
        reason: String,
        /// It lacks what cannot come by itself.
        lasting: bool,
    },
    /// The address is not in the network. A retry does not help.
    #[error("task {task:?}: address {address} is not in network {network:?} ({subnet})")]
    Outside {
        /// The task.
        task: String,
        /// The network's id.
        network: String,
        /// The address.
        address: Ipv4Addr,
        /// The network's addresses.
        subnet: Ipv4Net,
    },
    /// A task could not be connected. What had been made for a task that was not connected before is removed again.
    #[error("task {task:?}: cannot {step}")]
    Attach {
        /// The task.
        task: String,
        /// What was tried.
        step: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The overlay was destroyed, or its thread has died; a new one must be started.
    #[error("the overlay has ended")]
    Ended,
}

impl OverlayError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn retry_helps(&self) -> bool {
        !matches!(
            self,
            OverlayError::Config(_)
                | OverlayError::Refused(_)
                | OverlayError::Outside { .. }
                | OverlayError::NoSeal { lasting: true, .. }
                | OverlayError::Ended
        )
    }
}
