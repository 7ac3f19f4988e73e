//! The wire between hosts, and clients that stand somewhere on it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use overlay_net::kernel::{Links, NetNs};

use crate::demo::http::{self, Answer};

/// The bridge in the switch's namespace.
pub(super) const BRIDGE: &str = "wire";
/// Bridges of groups of hosts that are parted from the first group.
fn side_name(side: usize) -> String {
    if side == 0 { BRIDGE.to_owned() } else { format!("{BRIDGE}{side}") }
}

/// Plugs a host's cable into the bridge of a group, which is made if there is none yet. The first group's is the one
/// that every host begins at.
pub(super) fn plug_into(switch: &NetNs, index: usize, side: usize) -> io::Result<()> {
    let (mut links, bridge) = (Links::open(switch)?, side_name(side));
    if links.find(&bridge)?.is_none() {
        links.create_bridge(&bridge)?;
        links.set_up(&bridge)?;
    }
    links.set_controller(&port_name(index), Some(&bridge))
}

/// A host's only cable, by its name on the host.
pub(super) const UPLINK: &str = "eth0";

/// A host's port on the switch.
pub(super) fn port_name(index: usize) -> String {
    format!("port{index}")
}

/// The address of a host, or of the switch itself.
///
/// All sets of hosts use the same addresses: each has a switch of its own, and nothing leads out of it.
pub(super) fn address(last: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 99, 0, last), 24)
}

/// Makes the switch: a namespace with a bridge, which has an address so that clients can stand outside of all hosts.
pub(super) fn create_switch(path: &Path) -> io::Result<NetNs> {
    let switch = NetNs::create(path)?;
    // A switch has no firewall. Where the kernel has no such ability there is nothing to turn off.
    for rules in ["iptables", "ip6tables", "arptables"] {
        switch.set_sysctl(&format!("bridge/bridge-nf-call-{rules}"), "0").ok();
    }
    let mut links = Links::open(&switch)?;
    links.set_up("lo")?;
    links.create_bridge(BRIDGE)?;
    links.add_address(BRIDGE, address(1))?;
    links.set_up(BRIDGE)?;
    Ok(switch)
}

/// Somebody who asks services for something, from a place on the wire.
#[derive(Debug)]
pub struct Client {
    namespace: NetNs,
}

impl Client {
    pub(super) fn new(namespace: NetNs) -> Client {
        Client { namespace }
    }

    /// A client that stands where a process does: in a task, for example.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn beside(pid: u64) -> io::Result<Client> {
        NetNs::open(Path::new(&format!("/proc/{pid}/ns/net"))).map(Client::new)
    }

    /// HTTP GET over a new connection; the whole exchange takes `limit` at the most. Blocks.
    ///
    /// # Errors
    /// As [`http::get`].
    pub fn get_blocking(&self, address: SocketAddr, path: &str, limit: Duration) -> io::Result<Answer> {
        self.namespace.visit(|| http::get(address, &address.to_string(), path, limit))
    }

    /// HTTP GET over a new connection; the whole exchange takes `limit` at the most.
    ///
    /// # Errors
    /// As [`http::get`].
    pub async fn get(&self, address: SocketAddr, path: &str, limit: Duration) -> io::Result<Answer> {
        let (client, path) = (self.try_clone()?, path.to_owned());
        let asked = tokio::task::spawn_blocking(move || client.get_blocking(address, &path, limit)).await;
        asked.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Runs a closure on a thread that stands there; blocks until it ends.
    ///
    /// # Errors
    /// When the place cannot be entered, and what the closure returns.
    pub fn visit<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.namespace.visit(body)
    }

    /// A second client at the same place.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn try_clone(&self) -> io::Result<Client> {
        Ok(Client { namespace: self.namespace.try_clone()? })
    }
}
