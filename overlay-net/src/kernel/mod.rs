//! The kernel's side: namespaces, links, addresses, routes, forwarding entries and nf_tables over netlink, and
//! a few values of sysctl.
//!
//! Nothing here decides anything; `plan` does. All calls block for as long as the kernel takes (microseconds), and
//! no thread of the caller ever changes its namespace, except through [`enter`].

mod conntrack;
mod expressions;
mod firewall;
mod forwarding;
mod inside;
mod links;
mod neighbour_limits;
mod neighbours;
mod netlink;
mod netns;
mod nftables;
mod readback;
mod routes;
mod rules;
mod seal;
mod stage;
mod wireguard;

pub(crate) use conntrack::Prod;
pub use conntrack::{Connections, Flow};
pub use firewall::FirewallObstacle;
pub(crate) use firewall::{Firewall, Opened, legacy_filter};
pub use links::{BridgePort, Link, Links, Peer, Vxlan};
pub(crate) use neighbour_limits::low_neighbour_limits;
pub use neighbour_limits::raise_neighbour_limits;
pub use neighbours::Forward;
pub(crate) use netlink::{LINKS, NEIGHBOURS, ROUTES, Watch, is_too_much};
pub use netns::{NetNs, enter};
pub use nftables::Tables;
pub(crate) use rules::{Rules, Transitions};
pub(crate) use stage::{HostAddresses, Stage};
pub(crate) use wireguard::possible as wireguard_possible;

/// The hardware address that belongs to an IPv4 address: `02:42` and the four bytes, as Docker derives it.
#[must_use]
pub fn mac_of(address: std::net::Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}
