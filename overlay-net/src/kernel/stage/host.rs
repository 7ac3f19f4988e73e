//! The host's side of the stage: our two links in the host's namespace with their addresses and routes, the values that
//! published ports and the way out need there, and forwarding.
//!
//! The host is its administrator's: what is set is read first, networks that the host has keep their addresses, and
//! forwarding goes back to what it was. Rules are not set here; `rules` does that, and the owner says in which order.

use std::io;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::super::forwarding::Forwarding;
use super::super::links::{Link, Peer};
use super::super::mac_of;
use super::{PATIENCE, Stage};
use crate::plan::attachment::{choose_egress, gateway};
use crate::plan::names;
use crate::plan::picture::HostPort;

/// Below `/proc/sys/net`.
const FORWARDING: &str = "ipv4/ip_forward";
/// Whether the host forwards IPv6 packets.
const FORWARDING_6: &str = "ipv6/conf/all/forwarding";
/// The main routing table.
const MAIN_TABLE: u32 = 254;

/// A link of ours in the host's namespace, and its addresses there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostAddresses {
    pub(crate) link: String,
    pub(crate) address: Ipv4Net,
    pub(crate) address6: Option<Ipv6Net>,
}

/// Notes these links if the host's switch for forwarding is off; says whether it is. The thread that asks is in the host's
/// namespace, and so sees its values.
fn note(forwarding: &mut Forwarding, switch: &str, links: Vec<String>) -> io::Result<bool> {
    match std::fs::read_to_string(format!("/proc/sys/net/{switch}")) {
        Ok(value) if value.trim() == "0" => {}
        Ok(_) => {
            forwarding.begun = true;
            return Ok(false);
        }
        // A kernel without IPv6 has nothing to turn on.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    forwarding.note(links)?;
    Ok(true)
}

impl Stage {
    /// Makes this host's place on the ingress network.
    pub(super) fn create_host_port(&mut self, host: &HostPort) -> io::Result<()> {
        let link = names::ingress_link(&self.node);
        self.refuse_taken(host.address)?;
        host.address6.map_or(Ok(()), |address| self.refuse_taken6(address))?;
        let peer = Peer { namespace: &self.inner, name: names::HOST_PORT, mac: None };
        self.host_links.create_veth_into(&link, Some(mac_of(host.address.addr())), host.mtu, &peer)?;
        self.inner_links.set_controller(names::HOST_PORT, Some(&names::bridge(host.vni)))?;
        self.inner_links.set_up(names::HOST_PORT)?;
        self.host_side(&link, host.address, host.address6)?;
        self.inner_links.wait_running(names::HOST_PORT, PATIENCE)
    }

    /// This host's place on the ingress network, if there is one; `links` are those of the node's own namespace.
    pub(super) fn observe_host_port(&mut self, links: &[Link]) -> io::Result<Option<HostPort>> {
        let Some(link) = self.host_links.find(&names::ingress_link(&self.node))? else { return Ok(None) };
        let address = self.host_links.addresses()?.into_iter().find(|(index, _)| *index == link.index);
        let port = links.iter().find(|link| link.name == names::HOST_PORT && link.up);
        let vni = port
            .and_then(|port| links.iter().find(|link| link.index == port.controller))
            .and_then(|bridge| names::vni_of(&bridge.name));
        let address6 = self.host_links.addresses6()?.into_iter().find(|(index, _)| *index == link.index);
        let nowhere = Ipv4Net::from(Ipv4Addr::UNSPECIFIED);
        Ok(Some(HostPort {
            vni: vni.unwrap_or(0),
            address: address.map_or(nowhere, |(_, net)| net),
            address6: address6.map(|(_, net)| net),
            mtu: if link.up { link.mtu } else { 0 },
        }))
    }

    /// The host's own networks come first: an ingress network with the same addresses would cut the host off from them.
    /// A route that merely leads to a wider network is no obstacle; ours is the more exact one.
    fn refuse_taken(&mut self, ours: Ipv4Net) -> io::Result<()> {
        let subnet = ours.trunc();
        let connected = self.host_links.addresses()?.into_iter().map(|(_, net)| net.trunc());
        let connected: Vec<Ipv4Net> = connected.collect();
        let routed = self.host_links.routes()?.into_iter().map(|(net, _)| net);
        let taken = connected
            .into_iter()
            .filter(|net| net.contains(&subnet) || subnet.contains(net))
            .chain(routed.filter(|net| subnet.contains(net)))
            .next();
        match taken {
            Some(net) => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("the ingress network {subnet} has addresses of this host's own network {net}"),
            )),
            None => Ok(()),
        }
    }

    /// The same for IPv6.
    fn refuse_taken6(&mut self, ours: Ipv6Net) -> io::Result<()> {
        let subnet = ours.trunc();
        let connected = self.host_links.addresses6()?.into_iter().map(|(_, net)| net.trunc());
        let connected = connected.filter(|net| net.contains(&subnet) || subnet.contains(net));
        let routed = self.host_links.routes6()?.into_iter().filter(|(table, ..)| *table == MAIN_TABLE);
        let routed = routed.map(|(_, net, _)| net).filter(|net| subnet.contains(net));
        match connected.chain(routed).next() {
            Some(net) => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("the ingress network {subnet} has addresses of this host's own network {net}"),
            )),
            None => Ok(()),
        }
    }

    /// A link of ours in the host's namespace: addresses, and published ports on localhost.
    fn host_side(&mut self, link: &str, address: Ipv4Net, address6: Option<Ipv6Net>) -> io::Result<()> {
        let six = |value: &str| format!("ipv6/conf/{link}/{value}");
        match address6 {
            // The kernel's own IPv6 chatter has nobody to talk to there.
            None => self.host.set_sysctl(&six("disable_ipv6"), "1").unwrap_or_default(),
            Some(_) => {
                for (value, wanted) in [("accept_ra", "0"), ("disable_ipv6", "0"), ("accept_dad", "0")] {
                    self.host.set_sysctl(&six(value), wanted)?;
                }
            }
        }
        self.host.set_sysctl(&format!("ipv4/conf/{link}/route_localnet"), "1")?;
        self.host_links.add_address(link, address)?;
        if let Some(address) = address6 {
            self.host_links.add_address6(link, address)?;
        }
        self.host_links.set_up(link)?;
        self.host_links.wait_running(link, PATIENCE)
    }

    /// The values that published ports and the way out need in the host's namespace, for the links that are there, and
    /// that are not set.
    pub(crate) fn host_lacks(&mut self) -> io::Result<Vec<String>> {
        let mut lacks = Vec::new();
        let forwards = std::fs::read_to_string(format!("/proc/sys/net/{FORWARDING_6}")).unwrap_or_default();
        if forwards.trim() != "1" && self.observe_host_port(&[])?.is_some_and(|port| port.address6.is_some()) {
            lacks.push(FORWARDING_6.to_owned());
        }
        for link in [names::egress_link(&self.node), names::ingress_link(&self.node)] {
            if self.host_links.find(&link)?.is_some() {
                for name in [format!("ipv4/conf/{link}/route_localnet"), FORWARDING.into()] {
                    // The thread that asks is in the host's namespace, and so sees its values.
                    if std::fs::read_to_string(format!("/proc/sys/net/{name}"))?.trim() != "1" {
                        lacks.push(name);
                    }
                }
            }
        }
        Ok(lacks)
    }

    /// Sets these values, but for forwarding, which begins after the rules about it; gives those that had another one, for
    /// people.
    pub(crate) fn host_values(&mut self) -> io::Result<Vec<String>> {
        let mut lacks = self.host_lacks()?;
        lacks.retain(|name| name != FORWARDING && name != FORWARDING_6);
        for name in &lacks {
            self.host.set_sysctl(name, "1")?;
        }
        Ok(lacks.into_iter().map(|name| format!("net/{name} was off")).collect())
    }

    /// The links of ours in the host's namespace that are up, with these addresses of theirs.
    fn addressed(&mut self, sides: &[HostAddresses]) -> io::Result<Vec<(u32, HostAddresses)>> {
        let mut found = Vec::new();
        for side in sides {
            found.extend(
                self.host_links.find(&side.link)?.filter(|link| link.up).map(|link| (link.index, side.clone())),
            );
        }
        Ok(found)
    }

    /// Puts back the routes that came with these addresses, where somebody has taken one away; gives which, for people.
    pub(crate) fn restore_routes(&mut self, sides: &[HostAddresses]) -> io::Result<Vec<String>> {
        let mut changed = Vec::new();
        for (index, HostAddresses { link, address, address6 }) in self.addressed(sides)? {
            if self.host_links.restore_connected(index, address)? {
                changed.push(format!("the route to {} by {link} was removed", address.trunc()));
            }
            if let Some(address) = address6
                && self.host_links.restore_connected6(index, address)?
            {
                changed.push(format!("the route to {} by {link} was removed", address.trunc()));
            }
        }
        Ok(changed)
    }

    /// The routes that came with these addresses and are not there. Reads all routes, where the other changes.
    pub(crate) fn routes_lacking(&mut self, sides: &[HostAddresses]) -> io::Result<Vec<String>> {
        let (routes, routes6) = (self.host_links.routes()?, self.host_links.routes6()?);
        let mut lacks = Vec::new();
        for (index, HostAddresses { link, address, address6 }) in self.addressed(sides)? {
            let net = address.trunc();
            if !routes.contains(&(net, index)) {
                lacks.push(format!("there is no route to {net} by {link}"));
            }
            if let Some(net) = address6.map(|address| address.trunc())
                && !routes6.contains(&(MAIN_TABLE, net, index))
            {
                lacks.push(format!("there is no route to {net} by {link}"));
            }
        }
        Ok(lacks)
    }

    /// The links between which this host did not forward before it had to for us.
    pub(crate) fn apart(&self) -> &[String] {
        &self.forwarding.apart
    }

    /// The same for IPv6.
    pub(crate) fn apart6(&self) -> &[String] {
        &self.forwarding6.apart
    }

    /// Notes those links if the host does not forward; says whether it does not.
    pub(crate) fn note_forwarding(&mut self) -> io::Result<bool> {
        let links = self.links_of_others()?;
        note(&mut self.forwarding, FORWARDING, links)
    }

    /// The same for IPv6.
    pub(crate) fn note_forwarding6(&mut self) -> io::Result<bool> {
        let links = self.links_of_others()?;
        note(&mut self.forwarding6, FORWARDING_6, links)
    }

    fn links_of_others(&mut self) -> io::Result<Vec<String>> {
        let ours = [names::egress_link(&self.node), names::ingress_link(&self.node), "lo".to_owned()];
        let links = self.host_links.list()?.into_iter().map(|link| link.name);
        Ok(links.filter(|name| !ours.contains(name)).collect())
    }

    /// Lets the host forward; says whether it had done so before, and somebody has stopped it.
    pub(crate) fn forward(&mut self) -> io::Result<bool> {
        self.host.set_sysctl(FORWARDING, "1")?;
        Ok(std::mem::replace(&mut self.forwarding.begun, true))
    }

    /// Lets the host forward IPv6 packets; says whether it had done so before, and somebody has stopped it. A router heeds
    /// no other router's announcements, so that a host that has its own way out from those is told to heed them all the
    /// same.
    pub(crate) fn forward6(&mut self) -> io::Result<bool> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/{name}"));
        for link in self.host_links.list()? {
            if read(&format!("ipv6/conf/{}/accept_ra", link.name)).is_ok_and(|value| value.trim() == "1") {
                self.host.set_sysctl(&format!("ipv6/conf/{}/accept_ra", link.name), "2")?;
            }
        }
        self.host.set_sysctl(FORWARDING_6, "1")?;
        Ok(std::mem::replace(&mut self.forwarding6.begun, true))
    }

    /// Ends the host's forwarding if it began with ours.
    pub(crate) fn stop_forwarding(&mut self) -> io::Result<()> {
        let stop = |note: &Forwarding, name| if note.noted { self.host.set_sysctl(name, "0") } else { Ok(()) };
        stop(&self.forwarding, FORWARDING).and(stop(&self.forwarding6, FORWARDING_6))
    }

    /// The way out that is there already: the host's address on it, which is the tasks' gateway.
    pub(crate) fn egress(&mut self) -> io::Result<Option<Ipv4Net>> {
        let Some(link) = self.host_links.find(&names::egress_link(&self.node))?.filter(|link| link.up) else {
            return Ok(None);
        };
        Ok(self.host_links.addresses()?.into_iter().find(|(index, _)| *index == link.index).map(|(_, net)| net))
    }

    /// Makes the way out, with addresses that neither this host nor the given networks have.
    pub(crate) fn create_egress(&mut self, mtu: u32, networks: &[Ipv4Net]) -> io::Result<Ipv4Net> {
        self.host_links.delete(&names::egress_link(&self.node))?;
        let mut taken = networks.to_vec();
        taken.extend(self.host_links.routes()?.into_iter().map(|(net, _)| net).filter(|net| net.prefix_len() > 0));
        taken.extend(self.host_links.addresses()?.into_iter().map(|(_, net)| net));
        let subnet = choose_egress(&taken).ok_or_else(|| {
            io::Error::new(io::ErrorKind::AddrNotAvailable, "no free network for the way out of tasks")
        })?;
        let address = Ipv4Net::new(gateway(subnet), subnet.prefix_len()).expect("a subnet's own prefix");
        self.repair_egress(address, mtu)?;
        Ok(address)
    }

    /// Makes the way out with this address of the host's, or what of it is missing. The tasks' links to it are
    /// connected afterwards, where they have lost their bridge.
    pub(crate) fn repair_egress(&mut self, address: Ipv4Net, mtu: u32) -> io::Result<()> {
        let link = names::egress_link(&self.node);
        if self.inner_links.find(names::EGRESS_BRIDGE)?.is_none() {
            self.inner_links.create_bridge(names::EGRESS_BRIDGE)?;
        }
        self.inner_links.set_up(names::EGRESS_BRIDGE)?;
        let mac = mac_of(address.addr());
        let outer = self.host_links.find(&link)?;
        if outer.is_none_or(|link| link.address != mac) || self.inner_links.find(names::EGRESS_UPLINK)?.is_none() {
            self.host_links.delete(&link)?;
            let peer = Peer { namespace: &self.inner, name: names::EGRESS_UPLINK, mac: None };
            self.host_links.create_veth_into(&link, Some(mac), mtu, &peer)?;
        }
        self.host_links.set_mtu(&link, mtu)?;
        self.inner_links.set_mtu(names::EGRESS_UPLINK, mtu)?;
        self.inner_links.set_controller(names::EGRESS_UPLINK, Some(names::EGRESS_BRIDGE))?;
        self.inner_links.set_up(names::EGRESS_UPLINK)?;
        self.host_side(&link, address, None)?;
        self.inner_links.wait_running(names::EGRESS_UPLINK, PATIENCE)
    }

    /// What of the way out with this address of the host's is not as it should be.
    pub(crate) fn egress_lacks(&mut self, address: Ipv4Net, mtu: u32) -> io::Result<Vec<String>> {
        let mut lacks = Vec::new();
        let name = names::egress_link(&self.node);
        match self.host_links.find(&name)? {
            None => lacks.push(format!("{name} is missing")),
            Some(link) => {
                let has = self.host_links.addresses()?.contains(&(link.index, address));
                for (wrong, what) in [
                    (!link.up, "is down"),
                    (link.mtu != mtu, "has another MTU"),
                    (link.address != mac_of(address.addr()), "has another hardware address"),
                    (!has, "has lost its address"),
                ] {
                    if wrong {
                        lacks.push(format!("{name} {what}"));
                    }
                }
            }
        }
        let bridge = self.inner_links.find(names::EGRESS_BRIDGE)?.filter(|bridge| bridge.up);
        let uplink = self.inner_links.find(names::EGRESS_UPLINK)?.filter(|uplink| uplink.up);
        match (bridge, uplink) {
            (None, _) => lacks.push("the bridge of the way out is missing or down".to_owned()),
            (Some(bridge), uplink) if uplink.as_ref().map(|uplink| uplink.controller) != Some(bridge.index) => {
                lacks.push("the way out is not connected to its bridge".to_owned());
            }
            _ => {}
        }
        Ok(lacks)
    }
}
