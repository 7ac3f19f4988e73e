//! What the node's namespace holds, as a value; and the operations that lead from one such value to another.
//!
//! The same type says what was observed and what is wanted. Links of tasks are made by `attach`, which has the task's
//! namespace in hand; here they are only kept, moved or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use super::names;
use crate::config::{Desired, Network, Station};
use crate::kernel::mac_of;

/// Stations that may differ between two states for their difference to be enough to know.
const STEPS_MAX: usize = 256;

/// A hardware address.
pub type Mac = [u8; 6];

/// The node's namespace, and this host's place on the ingress network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Networks by VNI.
    pub switches: BTreeMap<u32, Switch>,
    /// The tasks' links by their name.
    pub ports: BTreeMap<String, Port>,
    /// This host's own place on the ingress network.
    pub host: Option<HostPort>,
}

/// One network: its bridge and what is known on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Switch {
    /// The network's id.
    pub network: String,
    /// Its bridge is set up.
    pub up: bool,
    /// Its VXLAN device.
    pub tunnel: Option<Tunnel>,
    /// The VXLAN device's table: which host has a hardware address.
    pub hosts: BTreeMap<Mac, Ipv4Addr>,
    /// The bridge's table: what is behind the VXLAN device.
    pub forwards: BTreeSet<Mac>,
    /// Which hardware address an address has; the bridge answers ARP and neighbour solicitations from it.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

/// A VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The address that packets leave from.
    pub local: Ipv4Addr,
    /// The UDP port.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its socket is where there is no way out but through WireGuard.
    pub sealed: bool,
}

/// The node's end of a task's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The task.
    pub task: String,
    /// The network's id, or [`names::EGRESS`].
    pub network: String,
    /// The task's address there.
    pub address: Ipv4Addr,
    /// The bridge that it is a port of; empty for none.
    pub bridge: String,
    /// It is set up, and its bridge treats it as it must.
    pub up: bool,
}

/// This host's own place on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The network.
    pub vni: u32,
    /// The address, with the network's prefix.
    pub address: Ipv4Net,
    /// The IPv6 address beside it.
    pub address6: Option<Ipv6Net>,
    /// MTU in bytes.
    pub mtu: u32,
}

/// This host, for [`Picture::wanted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The address that VXLAN packets leave from.
    pub data_path_addr: Ipv4Addr,
    /// The UDP port of VXLAN.
    pub data_path_port: u16,
    /// The MTU of the underlay, in bytes.
    pub underlay: u32,
    /// It has a namespace to seal packets in.
    pub seals: bool,
}

/// One step. Each is idempotent or comes only where the observed picture says that it will succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Removes a task's link.
    DeletePort(String),
    /// Removes this host's place.
    DeleteHostPort,
    /// Removes a VXLAN device and both tables about it.
    DeleteTunnel(u32),
    /// Removes a bridge and its neighbours; its ports stay, unconnected.
    DeleteSwitch(u32),
    /// Makes a bridge.
    CreateSwitch {
        /// VNI.
        vni: u32,
        /// The network's id.
        network: String,
    },
    /// Sets a bridge up.
    RaiseSwitch(u32),
    /// Makes a VXLAN device as a port of the bridge.
    CreateTunnel {
        /// VNI.
        vni: u32,
        /// The device.
        tunnel: Tunnel,
    },
    /// Makes this host's place.
    CreateHostPort(HostPort),
    /// Connects a task's link to its network's bridge.
    Connect {
        /// The link.
        port: String,
        /// The bridge.
        bridge: String,
    },
    /// Sets an entry of the VXLAN device's table.
    SetHost {
        /// VNI.
        vni: u32,
        /// The station.
        mac: Mac,
        /// Where it is.
        host: Ipv4Addr,
    },
    /// Removes an entry of the VXLAN device's table.
    DeleteHost {
        /// VNI.
        vni: u32,
        /// The station.
        mac: Mac,
    },
    /// Sets an entry of the bridge's table.
    SetForward {
        /// VNI.
        vni: u32,
        /// The station.
        mac: Mac,
    },
    /// Removes an entry of the bridge's table.
    DeleteForward {
        /// VNI.
        vni: u32,
        /// The station.
        mac: Mac,
    },
    /// Sets a neighbour of the bridge.
    SetNeighbour {
        /// VNI.
        vni: u32,
        /// The station.
        address: IpAddr,
        /// Its hardware address.
        mac: Mac,
    },
    /// Removes a neighbour of the bridge.
    DeleteNeighbour {
        /// VNI.
        vni: u32,
        /// The station.
        address: IpAddr,
    },
}

impl Picture {
    /// What the desired state asks for on this host, given what is there.
    ///
    /// Links of tasks are kept as long as their network is not given to another one; a network that is no longer
    /// desired stays while tasks are linked to it, since their removal is the task's, not the network's.
    #[must_use]
    pub fn wanted(desired: &Desired, facts: &Facts, observed: &Picture) -> Picture {
        let mut wanted = Picture::default();
        for network in &desired.networks {
            let mtu = network.room().mtu(facts.underlay);
            let (local, port, sealed) = (facts.data_path_addr, facts.data_path_port, network.encrypted);
            let tunnel = (!network.local).then_some(Tunnel { local, port, mtu, sealed });
            let mut switch = Switch { network: network.id.clone(), up: true, ..Switch::default() };
            // What cannot be sealed does not leave.
            if sealed && !facts.seals {
                wanted.switches.insert(network.vni, switch);
                continue;
            }
            switch.tunnel = tunnel;
            for station in &network.stations {
                if station.host == facts.data_path_addr || Some(station.address) == network.host_address {
                    continue;
                }
                let mac = mac_of(station.address);
                switch.hosts.insert(mac, station.host);
                switch.forwards.insert(mac);
                switch.neighbours.extend(addresses(network, station.address).map(|address| (address, mac)));
            }
            if let (true, Some(address), None) = (network.ingress, network.host_address, network.swallows()) {
                let address6 = network.beside().and_then(|beside| beside.interface(address));
                let address = Ipv4Net::new(address, network.subnet.prefix_len()).expect("a subnet's own prefix");
                wanted.host = Some(HostPort { vni: network.vni, address, address6, mtu });
            }
            wanted.switches.insert(network.vni, switch);
        }
        for (name, port) in &observed.ports {
            let mut kept = Port { up: true, ..port.clone() };
            if port.network == names::EGRESS {
                names::EGRESS_BRIDGE.clone_into(&mut kept.bridge);
            } else {
                if let Some(network) = desired.network(&port.network) {
                    kept.bridge = names::bridge(network.vni);
                } else {
                    let Some(vni) = names::vni_of(&port.bridge) else { continue };
                    match (observed.switches.get(&vni), wanted.switches.get(&vni)) {
                        (Some(old), None) => {
                            wanted.switches.insert(vni, Switch { up: true, ..old.clone() });
                        }
                        (_, Some(other)) if other.network == port.network => {}
                        _ => continue,
                    }
                }
            }
            wanted.ports.insert(name.clone(), kept);
        }
        wanted
    }

    /// The operations that turn this observed picture into the wanted one, in an order that always works.
    #[must_use]
    pub fn operations_to(&self, wanted: &Picture) -> Vec<Operation> {
        let mut operations = Vec::new();
        for name in self.ports.keys().filter(|name| !wanted.ports.contains_key(*name)) {
            operations.push(Operation::DeletePort(name.clone()));
        }
        // What hangs on a bridge that is made anew is made anew as well.
        let renewed = |vni: &u32| match (self.switches.get(vni), wanted.switches.get(vni)) {
            (Some(old), Some(new)) => old.network != new.network,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let keeps_host = self.host == wanted.host && self.host.is_none_or(|host| !renewed(&host.vni));
        if self.host.is_some() && !keeps_host {
            operations.push(Operation::DeleteHostPort);
        }
        for (vni, old) in &self.switches {
            let replaced = wanted.switches.get(vni).is_none_or(|new| new.tunnel != old.tunnel) || renewed(vni);
            if old.tunnel.is_some() && replaced {
                operations.push(Operation::DeleteTunnel(*vni));
            }
            if renewed(vni) {
                operations.push(Operation::DeleteSwitch(*vni));
            }
        }
        let nothing = Switch::default();
        for (vni, new) in &wanted.switches {
            let old = match self.switches.get(vni) {
                Some(old) if !renewed(vni) => {
                    if !old.up && new.up {
                        operations.push(Operation::RaiseSwitch(*vni));
                    }
                    old
                }
                _ => {
                    operations.push(Operation::CreateSwitch { vni: *vni, network: new.network.clone() });
                    &nothing
                }
            };
            entries(*vni, old, new, &mut operations);
        }
        if let Some(host) = wanted.host.filter(|_| !keeps_host) {
            operations.push(Operation::CreateHostPort(host));
        }
        for (name, port) in &wanted.ports {
            let Some(old) = self.ports.get(name) else { continue };
            let lost = names::vni_of(&port.bridge).is_some_and(|vni| renewed(&vni));
            if old.bridge != port.bridge || lost || !old.up {
                operations.push(Operation::Connect { port: name.clone(), bridge: port.bridge.clone() });
            }
        }
        operations
    }

    /// The operations that lead from one desired state to another where it is in force and nobody else has changed
    /// anything: all that differs are stations. `seals` as in [`Facts`]. Nothing where more than that differs, or so much that it is better to look.
    #[must_use]
    pub fn steps(before: &Desired, after: &Desired, data_path_addr: Ipv4Addr, seals: bool) -> Option<Vec<Operation>> {
        if before.networks.len() != after.networks.len() {
            return None;
        }
        let mut operations = Vec::new();
        for (old, new) in before.networks.iter().zip(&after.networks) {
            if Arc::ptr_eq(old, new) {
                continue;
            }
            let frame = |n: &Network| {
                let swallows = if n.ingress { n.swallows() } else { None };
                let kind = (n.ingress, n.local, n.encrypted);
                (n.id.clone(), n.vni, kind, n.subnet, n.subnet6, n.room(), n.host_address, swallows)
            };
            if frame(old) != frame(new) {
                return None;
            }
            // Nothing is known there of stations.
            if new.encrypted && !seals {
                continue;
            }
            let (gone, come) = difference(&old.stations, &new.stations)?;
            let elsewhere =
                |station: &Station| station.host != data_path_addr && Some(station.address) != new.host_address;
            let vni = new.vni;
            for station in gone.iter().filter(|station| elsewhere(station)) {
                // One that has moved is set anew.
                let stays = |other: &Station| other.address == station.address && elsewhere(other);
                if !come.iter().any(stays) {
                    let (address, mac) = (station.address, mac_of(station.address));
                    operations.push(Operation::DeleteHost { vni, mac });
                    operations.push(Operation::DeleteForward { vni, mac });
                    let addresses = addresses(new, address);
                    operations.extend(addresses.map(|address| Operation::DeleteNeighbour { vni, address }));
                }
            }
            for station in come.iter().filter(|station| elsewhere(station)) {
                let (address, mac) = (station.address, mac_of(station.address));
                operations.push(Operation::SetHost { vni, mac, host: station.host });
                operations.push(Operation::SetForward { vni, mac });
                let addresses = addresses(new, address);
                operations.extend(addresses.map(|address| Operation::SetNeighbour { vni, address, mac }));
            }
        }
        Some(operations)
    }

    /// Applies an operation to the picture: what the kernel does, as far as it shows here.
    pub fn apply(&mut self, operation: &Operation) {
        fn switch(picture: &mut Picture, vni: u32) -> &mut Switch {
            picture.switches.get_mut(&vni).expect("operations come after the bridge that they need")
        }
        match operation {
            Operation::DeletePort(name) => {
                self.ports.remove(name);
            }
            Operation::DeleteHostPort => self.host = None,
            Operation::DeleteTunnel(vni) => {
                let switch = switch(self, *vni);
                (switch.tunnel, switch.hosts, switch.forwards) = (None, BTreeMap::new(), BTreeSet::new());
            }
            Operation::DeleteSwitch(vni) => {
                self.switches.remove(vni);
                let bridge = names::bridge(*vni);
                for port in self.ports.values_mut().filter(|port| port.bridge == bridge) {
                    port.bridge.clear();
                }
            }
            Operation::CreateSwitch { vni, network } => {
                self.switches.insert(*vni, Switch { network: network.clone(), up: true, ..Switch::default() });
            }
            Operation::RaiseSwitch(vni) => switch(self, *vni).up = true,
            Operation::CreateTunnel { vni, tunnel } => switch(self, *vni).tunnel = Some(*tunnel),
            Operation::CreateHostPort(host) => self.host = Some(*host),
            Operation::Connect { port, bridge } => {
                let port = self.ports.get_mut(port).expect("only what is there is connected");
                port.bridge.clone_from(bridge);
                port.up = true;
            }
            Operation::SetHost { vni, mac, host } => {
                switch(self, *vni).hosts.insert(*mac, *host);
            }
            Operation::DeleteHost { vni, mac } => {
                switch(self, *vni).hosts.remove(mac);
            }
            Operation::SetForward { vni, mac } => {
                switch(self, *vni).forwards.insert(*mac);
            }
            Operation::DeleteForward { vni, mac } => {
                switch(self, *vni).forwards.remove(mac);
            }
            Operation::SetNeighbour { vni, address, mac } => {
                switch(self, *vni).neighbours.insert(*address, *mac);
            }
            Operation::DeleteNeighbour { vni, address } => {
                switch(self, *vni).neighbours.remove(address);
            }
        }
    }
}

/// What is in one list of stations and not in the other, and the other way round; nothing where that is much, or where an
/// address is there twice.
fn difference(old: &[Station], new: &[Station]) -> Option<(Vec<Station>, Vec<Station>)> {
    let same = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old[same..], &new[same..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old_rest[..old_rest.len() - tail], &new_rest[..new_rest.len() - tail]);
    let (before, after): (BTreeSet<_>, BTreeSet<_>) = (old_rest.iter().collect(), new_rest.iter().collect());
    let gone: Vec<Station> = before.difference(&after).map(|station| **station).collect();
    let come: Vec<Station> = after.difference(&before).map(|station| **station).collect();
    if gone.len() + come.len() > STEPS_MAX {
        return None;
    }
    // Who has an address is the last one that says so; that is for others to find out.
    let twice = |list: &[Station], one: &Station| list.iter().filter(|other| other.address == one.address).count() > 1;
    let unclear = gone.iter().chain(&come).any(|one| twice(old, one) || twice(new, one));
    (!unclear).then_some((gone, come))
}

/// The addresses that a station has on a network: this one, and the IPv6 address beside it.
fn addresses(network: &Network, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
    let six = network.beside().and_then(|beside| beside.address(address)).map(IpAddr::V6);
    std::iter::once(IpAddr::V4(address)).chain(six)
}

fn entries(vni: u32, old: &Switch, new: &Switch, operations: &mut Vec<Operation>) {
    let nothing = Switch::default();
    let mut tables = old;
    if old.tunnel != new.tunnel {
        if let Some(tunnel) = new.tunnel {
            operations.push(Operation::CreateTunnel { vni, tunnel });
        }
        // The device's own table and the bridge's entries about it went with the old device.
        tables = &nothing;
    }
    for mac in tables.hosts.keys().filter(|mac| !new.hosts.contains_key(*mac)) {
        operations.push(Operation::DeleteHost { vni, mac: *mac });
    }
    for mac in tables.forwards.difference(&new.forwards) {
        operations.push(Operation::DeleteForward { vni, mac: *mac });
    }
    for address in old.neighbours.keys().filter(|address| !new.neighbours.contains_key(*address)) {
        operations.push(Operation::DeleteNeighbour { vni, address: *address });
    }
    for (mac, host) in new.hosts.iter().filter(|(mac, host)| tables.hosts.get(*mac) != Some(*host)) {
        operations.push(Operation::SetHost { vni, mac: *mac, host: *host });
    }
    for mac in new.forwards.difference(&tables.forwards) {
        operations.push(Operation::SetForward { vni, mac: *mac });
    }
    for (address, mac) in new.neighbours.iter().filter(|(address, mac)| old.neighbours.get(*address) != Some(*mac)) {
        operations.push(Operation::SetNeighbour { vni, address: *address, mac: *mac });
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Operation::DeletePort(port) => write!(f, "remove link {port}"),
            Operation::DeleteHostPort => write!(f, "remove the host's place on the ingress network"),
            Operation::DeleteTunnel(vni) => write!(f, "remove tunnel {vni:x}"),
            Operation::DeleteSwitch(vni) => write!(f, "remove bridge {vni:x}"),
            Operation::CreateSwitch { vni, network } => write!(f, "make bridge {vni:x} of network {network}"),
            Operation::RaiseSwitch(vni) => write!(f, "set bridge {vni:x} up"),
            Operation::CreateTunnel { vni, .. } => write!(f, "make tunnel {vni:x}"),
            Operation::CreateHostPort(host) => write!(f, "make the host's place {}", host.address),
            Operation::Connect { port, bridge } => write!(f, "connect link {port} to {bridge}"),
            Operation::SetHost { vni, mac, host } => write!(f, "tunnel {vni:x}: {} is at {host}", Hex(mac)),
            Operation::DeleteHost { vni, mac } => write!(f, "tunnel {vni:x}: forget {}", Hex(mac)),
            Operation::SetForward { vni, mac } => write!(f, "bridge {vni:x}: {} is behind the tunnel", Hex(mac)),
            Operation::DeleteForward { vni, mac } => write!(f, "bridge {vni:x}: forget {}", Hex(mac)),
            Operation::SetNeighbour { vni, address, .. } => write!(f, "bridge {vni:x}: know {address}"),
            Operation::DeleteNeighbour { vni, address } => write!(f, "bridge {vni:x}: forget {address}"),
        }
    }
}

struct Hex<'a>(&'a Mac);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
