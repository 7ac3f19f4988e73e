//! What a task's namespace gets: its interfaces in order, and its way out.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::names;
use crate::config::{Desired, EndpointConfig, Room};
use crate::kernel::mac_of;

/// One interface of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `eth0`, `eth1`, … in the task's namespace.
    pub name: String,
    /// The node's end.
    pub port: String,
    /// What the node's end is a port of.
    pub bridge: String,
    /// The network's id, or [`names::EGRESS`].
    pub network: String,
    /// The address, with the network's prefix.
    pub address: Ipv4Net,
    /// The IPv6 address beside it, on a network that has such.
    pub address6: Option<Ipv6Net>,
    /// The hardware address.
    pub mac: [u8; 6],
    /// How long its packets may be.
    pub room: Room,
}

/// Why a task cannot be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The desired state has no such network.
    Unknown(String),
    /// The address is not in the network.
    Outside(String, Ipv4Addr, Ipv4Net),
}

/// Whether a task gets a way out: unless all its networks are internal ones. The ingress network does not count, it
/// is there for what comes in.
#[must_use]
pub fn has_way_out(desired: &Desired, config: &EndpointConfig) -> bool {
    let mut own =
        config.attachments.iter().filter_map(|a| desired.network(&a.network)).filter(|n| !n.ingress).peekable();
    own.peek().is_none() || own.any(|network| !network.internal)
}

/// The interfaces of a task: its networks in the order that was asked for, and last the way out, if it has one.
///
/// # Errors
/// [`Unfit`].
pub fn interfaces(
    desired: &Desired,
    config: &EndpointConfig,
    egress: Option<Ipv4Net>,
) -> Result<Vec<Interface>, Unfit> {
    let mut all = Vec::new();
    for (number, attachment) in config.attachments.iter().enumerate() {
        let id = &attachment.network;
        let network = desired.network(id).ok_or_else(|| Unfit::Unknown(id.clone()))?;
        let outside = || Unfit::Outside(id.clone(), attachment.address, network.subnet);
        if !network.subnet.contains(&attachment.address) {
            return Err(outside());
        }
        all.push(Interface {
            name: format!("eth{number}"),
            port: names::port(&config.task, id),
            bridge: names::bridge(network.vni),
            network: id.clone(),
            address: Ipv4Net::new(attachment.address, network.subnet.prefix_len()).map_err(|_| outside())?,
            address6: network.beside().and_then(|beside| beside.interface(attachment.address)),
            mac: mac_of(attachment.address),
            room: network.room(),
        });
    }
    if let Some(address) = egress {
        all.push(Interface {
            name: format!("eth{}", all.len()),
            port: names::port(&config.task, names::EGRESS),
            bridge: names::EGRESS_BRIDGE.into(),
            network: names::EGRESS.into(),
            address,
            // The way out is of IPv4 alone, as Docker's is.
            address6: None,
            mac: mac_of(address.addr()),
            room: Room::WHOLE,
        });
    }
    Ok(all)
}

/// The prefix length of the way out's addresses.
pub const WAY_OUT_PREFIX: u8 = 16;

/// The addresses of the way out, if nothing on this host or in the cluster has them: `172.30.0.0/16`, then others.
#[must_use]
pub fn choose_egress(taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let usual = [30u8, 29, 28, 31, 27, 26, 25, 24].map(|second| Ipv4Addr::new(172, second, 0, 0));
    let rare = (200u8..=250).map(|second| Ipv4Addr::new(10, second, 0, 0));
    usual.into_iter().chain(rare).map(|network| Ipv4Net::new(network, WAY_OUT_PREFIX).expect("a prefix below 32")).find(
        |candidate| !taken.iter().any(|net| net.contains(&candidate.network()) || candidate.contains(&net.network())),
    )
}

/// The next address of the way out that no task has, counted from the one that was given last, so that one is given
/// again as late as can be; the first one is the gateway's.
#[must_use]
pub fn choose_address(
    subnet: Ipv4Net,
    taken: impl Iterator<Item = Ipv4Addr>,
    last: Option<Ipv4Addr>,
) -> Option<Ipv4Net> {
    let taken: std::collections::BTreeSet<Ipv4Addr> = taken.collect();
    let free = || subnet.hosts().skip(1).filter(|address| !taken.contains(address));
    let address = free().find(|address| Some(*address) > last).or_else(|| free().next())?;
    Ipv4Net::new(address, subnet.prefix_len()).ok()
}

/// The gateway of the way out: its first address.
#[must_use]
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    let first = u32::from(subnet.network()).saturating_add(1);
    first.into()
}
