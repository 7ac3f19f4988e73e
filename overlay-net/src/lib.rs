//! How tasks reach each other.
//!
//! Owns the data plane of one host: VXLAN networks, virtual addresses, names, published ports and the way out. The
//! node hands it a whole desired state ([`Desired`]) and connects tasks by their network namespace; this crate brings
//! the kernel there over netlink, and never starts a program. It knows nothing of clusters, stores or containers.
//!
//! * `config`: what callers ask.
//! * `plan`: pure; desired and observed in, operations and nf_tables tables out.
//! * `kernel`: namespaces, links, nf_tables. Also for others that wire hosts together (demo, tests).
//! * `observation`, `probe`: what this host believes and what its kernel has, and harmless questions to see whether it works.
//! * `dns`: names at 127.0.0.11 in each task.
//! * `trial`: whether a kernel has what the rules ask of it.
//! * `owner`, `overlay`: the thread that owns the state, and the handle on it.

#![forbid(unsafe_code)]

pub mod config;
pub mod dns;
mod error;
pub mod kernel;
mod observation;
mod overlay;
mod owner;
pub mod plan;
pub mod probe;
mod trial;

pub use config::{
    Attachment, Beside, Config, ConfigError, Desired, Endpoint, EndpointConfig, Network, PortMode, Protocol,
    PublishedPort, Resolvers, Sealing, SealingKey, SealingReport, Service, ServicePort, Station, resolv_conf,
};
pub use dns::DnsSockets;
pub use error::{ObjectError, OverlayError};
pub use kernel::FirewallObstacle;
pub use observation::{AuditRecord, Connected, Observation, Place};
pub use overlay::{Attached, AttachedInterface, Overlay};
pub use plan::names::is_own_link;
