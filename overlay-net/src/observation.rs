//! What one host's overlay believes, and what it found when it looked after the kernel last, for whoever asks.
//!
//! A snapshot: nothing here is computed, and the kernel is not asked. [`Place`] names what can be read back on demand.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::config::{ConfigError, Desired, EndpointConfig};
use crate::kernel::NetNs;
use crate::overlay::AttachedInterface;

/// What the overlay believes.
#[derive(Debug)]
pub struct Observation {
    /// The address that VXLAN packets leave from.
    pub data_path_addr: Ipv4Addr,
    /// The UDP port of VXLAN.
    pub data_path_port: u16,
    /// The MTU of what carries the tunnels, in bytes; 0 while nobody needed to know it.
    pub underlay_mtu: u32,
    /// The state that it keeps in force, without what nobody can put in force.
    pub desired: Desired,
    /// The newest revision that was wholly put in force; the desired one's unless something failed.
    pub applied_revision: u64,
    /// What was left out of the desired state.
    pub refused: Vec<ConfigError>,
    /// Why this host cannot carry encrypted networks; nothing if it can, as far as was tried.
    pub sealing_obstacle: Option<String>,
    /// Data path addresses of the hosts that are left out of balancing and names.
    pub left_out: BTreeSet<Ipv4Addr>,
    /// The tasks that are connected.
    pub tasks: Vec<Connected>,
    /// The host's network namespace.
    pub host: NetNs,
    /// The link of the host's own place on the ingress network, and that network's addresses.
    pub ingress: Option<(String, Ipv4Net)>,
    /// The link of the way out, and its addresses.
    pub way_out: Option<(String, Ipv4Net)>,
    /// What the last whole round of looking after everything found; nothing before the first.
    pub audit: Option<AuditRecord>,
}

/// A connected task.
#[derive(Debug)]
pub struct Connected {
    /// How it was to be connected.
    pub config: EndpointConfig,
    /// Its network namespace.
    pub namespace: NetNs,
    /// Its interfaces in order.
    pub interfaces: Vec<AttachedInterface>,
}

/// What a round of looking after everything found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditRecord {
    /// How long ago it ended.
    pub ago: Duration,
    /// What others had changed, and was changed back since the round before.
    pub repaired: Vec<String>,
    /// What is not as desired and could not be repaired.
    pub wrong: Vec<String>,
}

impl AuditRecord {
    /// Whether the kernel had everything as it should be.
    #[must_use]
    pub fn agreed(&self) -> bool {
        self.repaired.is_empty() && self.wrong.is_empty()
    }
}

/// What is read back in one go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Links, forwarding entries and neighbours in the node's own namespace, and the host's place on the ingress network.
    Links,
    /// Our rules, and values, in the host's namespace.
    Host,
    /// A task's namespace.
    Task(String),
}
