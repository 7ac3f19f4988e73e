//! How objects in the kernel are called, so that a restarted daemon knows them again.
//!
//! In the node's own namespace names need not be unique beyond it; in the host's they carry the node's short name.
//! Whose a link is stands in its alias, where there is room.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The bridge of the way out, in the node's namespace.
pub const EGRESS_BRIDGE: &str = "egress";
/// The bridge's end of the way out, in the node's namespace.
pub const EGRESS_UPLINK: &str = "uplink";
/// The bridge's end of this host's own place on the ingress network, in the node's namespace.
pub const HOST_PORT: &str = "host";
/// What stands for the network of the way out in a port's alias; no network's id, since those have no slash.
pub const EGRESS: &str = "/egress";
/// The gateway of marked replies in a task's namespace: a link-local address that nobody has. Its hardware address is
/// overwritten with the right host's in each frame.
pub const RETURN_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 83, 72);
/// The same for IPv6.
pub const RETURN_GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x5348, 1);
/// The routing table of marked replies in a task's namespace, and the priority of the rule that leads there.
pub const RETURN_TABLE: u32 = 21_320;
/// Our nf_tables table, in the host's namespace and in each task's.
pub const TABLE: &str = "shoal";
/// The one that leads to the resolver, and datagrams to where they are answered, in each task's namespace: it is the
/// task's own, while the other one is the same for all tasks that are on the same networks.
pub const OWN_TABLE: &str = "shoal-own";
/// All tables that are ours.
pub const TABLES: [&str; 2] = [TABLE, OWN_TABLE];

/// The host's end of the way out, in the host's namespace.
#[must_use]
pub fn egress_link(node: &str) -> String {
    format!("she-{node}")
}

/// This host's own place on the ingress network, in the host's namespace.
#[must_use]
pub fn ingress_link(node: &str) -> String {
    format!("shi-{node}")
}

/// Whether a link in a host's namespace is one of the above, of this node or of another one on the machine.
#[must_use]
pub fn is_own_link(name: &str) -> bool {
    name.starts_with("she-") || name.starts_with("shi-")
}

/// The bridge of a network.
#[must_use]
pub fn bridge(vni: u32) -> String {
    format!("br-{vni:x}")
}

/// The VXLAN device of a network.
#[must_use]
pub fn tunnel(vni: u32) -> String {
    format!("vx-{vni:x}")
}

/// A WireGuard device, in the namespace of these. Older kernels look for another link of that name where it is made from,
/// which is the host's namespace.
#[must_use]
pub fn seal(slot: u8) -> String {
    format!("shw-{slot}")
}

/// The alias of a WireGuard device.
#[must_use]
pub fn seal_alias(node: &str, epoch: u64) -> String {
    format!("shoal epoch {epoch} of {node}")
}

/// The epoch in such an alias of this node's: no node uses the keys of another one, also where it was that one before.
#[must_use]
pub fn epoch_of(alias: &str, node: &str) -> Option<u64> {
    let (epoch, of) = alias.strip_prefix("shoal epoch ")?.split_once(" of ")?;
    epoch.parse().ok().filter(|_| of == node)
}

/// The VNI in a bridge's or VXLAN device's name.
#[must_use]
pub fn vni_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("br-").or_else(|| name.strip_prefix("vx-"))?;
    u32::from_str_radix(digits, 16).ok().filter(|vni| (1..1 << 24).contains(vni))
}

/// The node's end of a task's link: a hash, since the ids are too long for a name.
#[must_use]
pub fn port(task: &str, network: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in task.bytes().chain([0]).chain(network.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // 13 hexadecimal digits: 52 bits are plenty for the links of one host, and the name fits into 15 bytes.
    format!("p{:013x}", hash >> 12)
}

/// The alias of a network's bridge.
#[must_use]
pub fn bridge_alias(network: &str) -> String {
    format!("shoal network {network}")
}

/// The network in a bridge's alias.
#[must_use]
pub fn network_of(alias: &str) -> Option<&str> {
    alias.strip_prefix("shoal network ")
}

/// The alias of a task's link.
#[must_use]
pub fn port_alias(task: &str, network: &str, address: Ipv4Addr) -> String {
    format!("shoal task {task} {network} {address}")
}

/// Task, network and address in a link's alias.
#[must_use]
pub fn port_of(alias: &str) -> Option<(&str, &str, Ipv4Addr)> {
    let mut words = alias.strip_prefix("shoal task ")?.split(' ');
    let found = (words.next()?, words.next()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(found)
}
