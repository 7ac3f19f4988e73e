//! The node's two namespaces, as the planner sees them: observe a `Picture`, apply an `Operation`.
//!
//! Bridges and VXLAN devices are in the node's own namespace; only this host's place on the ingress network and its
//! end of the way out are in the host's, which `host` sees to. The node's namespace has no address and routes nothing: it
//! is a switch. A third one, for encrypted networks alone, is `seal`'s.

mod host;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use self::host::HostAddresses;
use super::forwarding::Forwarding;
use super::links::{BridgePort, Link, Links, Peer, Vxlan};
use super::netlink::{LINKS, NEIGHBOURS, Watch};
use super::netns::NetNs;
use super::seal::{Seal, pin_beside};
use crate::plan::attachment::Interface;
use crate::plan::names;
use crate::plan::picture::{Operation, Picture, Port, Switch, Tunnel};
use crate::plan::seal::{Seals, Step};

/// How long a new link may take until it carries packets; a millisecond is usual.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room for some hundred notices, in bytes: those of our own changes, too, wait there until somebody looks.
const ROOM: usize = 1 << 18;
/// What a port of ours towards a task or the host does; addresses are learned there, from those that own them.
const LOCAL_PORT: BridgePort = BridgePort { flood: true, learning: true, neigh_suppress: false, isolated: false };
/// The port towards other hosts: nothing unknown goes out there, and ARP is answered on this side.
const TUNNEL_PORT: BridgePort = BridgePort { flood: false, learning: false, neigh_suppress: true, isolated: false };
/// A task's port on the way out: it reaches the host and no other task.
const EGRESS_PORT: BridgePort = BridgePort { flood: true, learning: true, neigh_suppress: false, isolated: true };

/// Handles on both namespaces.
#[derive(Debug)]
pub(crate) struct Stage {
    node: String,
    host: NetNs,
    inner: NetNs,
    host_links: Links,
    inner_links: Links,
    /// Notices of what happens in the node's own namespace, and in the host's.
    watches: [Watch; 2],
    forwarding: Forwarding,
    forwarding6: Forwarding,
    /// Where packets of encrypted networks are sealed, once that was needed.
    seal: Option<Seal>,
    seal_pin: PathBuf,
}

/// Gives a task's interface its IPv6 address, or sees to it that it has none, not even one of its own making.
fn family6(namespace: &NetNs, links: &mut Links, interface: &Interface) -> io::Result<()> {
    let value = |value: &str| format!("ipv6/conf/{}/{value}", interface.name);
    let Some(address) = interface.address6 else {
        // A task that may change its values may have changed this one; a kernel without IPv6 has none.
        namespace.set_sysctl(&value("disable_ipv6"), "1").ok();
        return Ok(());
    };
    // Nobody else can have the address: it need not be asked for, and there is no router who could tell of others.
    for (value, wanted) in [(value("accept_ra"), "0"), (value("accept_dad"), "0"), (value("disable_ipv6"), "0")] {
        namespace.set_sysctl(&value, wanted)?;
    }
    links.add_address6(&interface.name, address)
}

/// How a bridge treats a task's port on a network.
fn treatment(network: &str) -> BridgePort {
    if network == names::EGRESS { EGRESS_PORT } else { LOCAL_PORT }
}

fn link_names(links: &[Link]) -> BTreeMap<u32, &str> {
    links.iter().map(|link| (link.index, link.name.as_str())).collect()
}

/// The number of the network whose bridge this is.
fn switch_of(link: &Link) -> Option<u32> {
    names::vni_of(&link.name).filter(|_| link.kind == "bridge")
}

/// The host's side of the tasks' links, by name. What a crash left half made is there too: it belongs to no task and no
/// network, and so is never wanted.
fn ports(links: &[Link]) -> BTreeMap<String, Port> {
    let names = link_names(links);
    let switches: BTreeSet<u32> = links.iter().filter_map(switch_of).collect();
    let stray = |link: &&Link| match (link.kind.as_str(), names::vni_of(&link.name)) {
        ("veth", _) => ![names::HOST_PORT, names::EGRESS_UPLINK].contains(&link.name.as_str()),
        ("vxlan", Some(vni)) => !switches.contains(&vni),
        _ => false,
    };
    let port = |link: &Link| {
        if switch_of(link).is_some() {
            return None;
        }
        if let Some((task, network, address)) = names::port_of(&link.alias) {
            let bridge = names.get(&link.controller).map_or(String::new(), |name| (*name).to_owned());
            let treated = link.port.is_none_or(|port| port == treatment(network));
            let (task, network, up) = (task.to_owned(), network.to_owned(), link.up && treated);
            return Some(Port { task, network, address, bridge, up });
        }
        let nobody = String::new;
        let nothing =
            Port { task: nobody(), network: nobody(), address: Ipv4Addr::UNSPECIFIED, bridge: nobody(), up: false };
        stray(&link).then_some(nothing)
    };
    links.iter().filter_map(|link| Some((link.name.clone(), port(link)?))).collect()
}

impl Stage {
    /// Opens the host's namespace (the calling thread's) and the node's own, which is made if it is not there.
    pub(crate) fn open(node: &str, pin: &Path) -> io::Result<Stage> {
        let host = NetNs::current()?;
        let inner = match NetNs::open(pin) {
            Ok(inner) => inner,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                NetNs::delete(pin)?;
                if let Some(directory) = pin.parent() {
                    std::fs::create_dir_all(directory)?;
                }
                NetNs::create(pin)?
            }
            Err(error) => return Err(error),
        };
        // A switch has no addresses, so that it speaks no IPv6 itself; but where IPv6 is off, the kernel lets nobody
        // say which neighbours there are. A kernel without IPv6 is as good until a network has it.
        for (value, wanted) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
            for scope in ["all", "default"] {
                inner.set_sysctl(&format!("ipv6/conf/{scope}/{value}"), wanted).ok();
            }
        }
        // Frames between tasks are not for the rules of routers, which the kernel takes bridged ones through wherever it
        // can, and which there are none of here. Without that ability there is nothing to turn off.
        for rules in ["iptables", "ip6tables", "arptables"] {
            inner.set_sysctl(&format!("bridge/bridge-nf-call-{rules}"), "0").ok();
        }
        let (host_links, inner_links) = (Links::open(&host)?, Links::open(&inner)?);
        let watches = [inner.visit(|| Watch::with_room(LINKS | NEIGHBOURS, ROOM))?, host.visit(|| Watch::open(LINKS))?];
        let (forwarding, forwarding6) = (Forwarding::open(pin, "apart")?, Forwarding::open(pin, "apart6")?);
        let seal_pin = pin_beside(pin);
        let seal = match Seal::find(node, &seal_pin) {
            // The kernel has lost what it was made with: nothing can leave through it, and other networks go on.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
            found => found?,
        };
        Ok(Stage {
            node: node.to_owned(),
            host,
            inner,
            host_links,
            inner_links,
            watches,
            forwarding,
            forwarding6,
            seal,
            seal_pin,
        })
    }

    /// Whether anything happened in either namespace since the last call, but for our own changes of entries. (Those of
    /// links have effects that come late.)
    pub(crate) fn stirred(&mut self) -> bool {
        let [inner, host] = &self.watches;
        let expected = &mut self.inner_links.expected;
        // Both are emptied.
        let stirred = inner.told(|notice| !expected.explains(notice)) | host.stirred();
        expected.clear();
        stirred
    }

    /// The host's namespace.
    pub(crate) fn host(&self) -> &NetNs {
        &self.host
    }

    /// The MTU of the link that has an address, or nothing when no link has it.
    pub(crate) fn underlay_mtu(&mut self, address: Ipv4Addr) -> io::Result<Option<u32>> {
        let Some((index, _)) = self.host_links.addresses()?.into_iter().find(|(_, net)| net.addr() == address) else {
            return Ok(None);
        };
        Ok(self.host_links.list()?.into_iter().find(|link| link.index == index).map(|link| link.mtu))
    }

    /// What is there.
    pub(crate) fn observe(&mut self) -> io::Result<Picture> {
        let links = self.inner_links.list()?;
        let names = link_names(&links);
        let mut picture = Picture { ports: ports(&links), ..Picture::default() };
        for link in &links {
            if let Some(vni) = switch_of(link) {
                let network = names::network_of(&link.alias).unwrap_or_default().to_owned();
                picture.switches.insert(vni, Switch { network, up: link.up, ..Switch::default() });
            }
        }
        let sealing = match &self.seal {
            Some(seal) => self.inner_links.number_of(&seal.namespace)?,
            None => None,
        };
        let mut tunnels = BTreeMap::new();
        let mut bridges = BTreeMap::new();
        for link in &links {
            let Some(vni) = names::vni_of(&link.name) else { continue };
            let Some(switch) = picture.switches.get_mut(&vni) else { continue };
            if let Some((_, local, port)) = link.vxlan {
                let on_bridge = names.get(&link.controller) == Some(&names::bridge(vni).as_str());
                // One that is half made is of no use: an MTU of 0 is never wanted, so it is made anew.
                let whole = on_bridge && link.up && link.port == Some(TUNNEL_PORT);
                let mtu = if whole { link.mtu } else { 0 };
                let sealed = sealing.is_some() && link.birthplace == sealing;
                switch.tunnel = Some(Tunnel { local, port, mtu, sealed });
                tunnels.insert(link.index, vni);
            } else {
                bridges.insert(link.index, vni);
            }
        }
        for entry in self.inner_links.forwards()?.into_iter().filter(|entry| entry.fixed) {
            let Some(switch) = tunnels.get(&entry.link).and_then(|vni| picture.switches.get_mut(vni)) else { continue };
            if let (false, Some(host)) = (entry.bridge, entry.host) {
                switch.hosts.insert(entry.mac, host);
            } else {
                switch.forwards.insert(entry.mac);
            }
        }
        for (link, address, mac) in self.inner_links.neighbours()? {
            if let Some(switch) = bridges.get(&link).and_then(|vni| picture.switches.get_mut(vni)) {
                switch.neighbours.insert(address, mac);
            }
        }
        picture.host = self.observe_host_port(&links)?;
        Ok(picture)
    }

    /// The tasks' links on the host's side, by name: of what is there, what costs no list of a network's stations.
    pub(crate) fn ports(&mut self) -> io::Result<BTreeMap<String, Port>> {
        Ok(ports(&self.inner_links.list()?))
    }

    fn index(&mut self, name: &str) -> io::Result<u32> {
        self.inner_links.index(name)
    }

    /// Does one step.
    pub(crate) fn apply(&mut self, operation: &Operation) -> io::Result<()> {
        match operation {
            Operation::DeletePort(name) => self.inner_links.delete(name),
            Operation::DeleteHostPort => self.host_links.delete(&names::ingress_link(&self.node)),
            Operation::DeleteTunnel(vni) => self.inner_links.delete(&names::tunnel(*vni)),
            Operation::DeleteSwitch(vni) => self.inner_links.delete(&names::bridge(*vni)),
            Operation::CreateSwitch { vni, network } => {
                let bridge = names::bridge(*vni);
                self.inner_links.create_bridge(&bridge)?;
                // A bridge follows the lowest address of its ports until it is given one, and with each change of
                // its address the kernel forgets its neighbours, permanent ones as well.
                let [_, high, middle, low] = vni.to_be_bytes();
                self.inner_links.set_mac(&bridge, [0x02, 0x5a, 0, high, middle, low])?;
                self.inner_links.set_alias(&bridge, &names::bridge_alias(network))?;
                self.inner_links.set_up(&bridge)
            }
            Operation::RaiseSwitch(vni) => self.inner_links.set_up(&names::bridge(*vni)),
            Operation::CreateTunnel { vni, tunnel } => {
                let (name, bridge) = (names::tunnel(*vni), names::bridge(*vni));
                let vxlan = Vxlan { vni: *vni, local: tunnel.local, port: tunnel.port, mtu: tunnel.mtu };
                let links = match (tunnel.sealed, &mut self.seal) {
                    (false, _) => &mut self.host_links,
                    (true, Some(seal)) => &mut seal.links,
                    (true, None) => return Err(io::ErrorKind::NotConnected.into()),
                };
                links.create_vxlan_into(&self.inner, &name, &vxlan)?;
                self.inner_links.set_controller(&name, Some(&bridge))?;
                self.inner_links.set_bridge_port(&name, TUNNEL_PORT)?;
                self.inner_links.set_up(&name)
            }
            Operation::CreateHostPort(host) => self.create_host_port(host),
            Operation::Connect { port, bridge } => {
                self.inner_links.set_controller(port, Some(bridge))?;
                let kind = if bridge == names::EGRESS_BRIDGE { EGRESS_PORT } else { LOCAL_PORT };
                self.inner_links.set_bridge_port(port, kind)?;
                self.inner_links.set_up(port)
            }
            Operation::SetHost { vni, mac, host } => {
                let index = self.index(&names::tunnel(*vni))?;
                self.inner_links.set_tunnel(index, *mac, *host)
            }
            Operation::DeleteHost { vni, mac } => {
                let index = self.index(&names::tunnel(*vni))?;
                self.inner_links.delete_tunnel(index, *mac)
            }
            Operation::SetForward { vni, mac } => {
                let index = self.index(&names::tunnel(*vni))?;
                self.inner_links.set_forward(index, *mac)
            }
            Operation::DeleteForward { vni, mac } => {
                let index = self.index(&names::tunnel(*vni))?;
                self.inner_links.delete_forward(index, *mac)
            }
            Operation::SetNeighbour { vni, address, mac } => {
                let index = self.index(&names::bridge(*vni))?;
                self.inner_links.set_neighbour(index, *address, *mac)
            }
            Operation::DeleteNeighbour { vni, address } => {
                let index = self.index(&names::bridge(*vni))?;
                self.inner_links.delete_neighbour(index, *address)
            }
        }
    }

    /// Whether there is a namespace to seal packets in. What leaves a tunnel of there is sealed, or does not leave.
    pub(crate) fn has_seal(&self) -> bool {
        self.seal.is_some()
    }

    /// Whether nobody has any of these UDP ports in the host's namespace.
    ///
    /// # Errors
    /// `AddrInUse`, or what the kernel says.
    pub(crate) fn try_ports(&self, ports: [u16; 2]) -> io::Result<()> {
        let bind = |address: IpAddr, port| UdpSocket::bind((address, port)).map(drop);
        self.host.visit(|| {
            ports.into_iter().try_for_each(|port| {
                bind(Ipv4Addr::UNSPECIFIED.into(), port)?;
                match bind(Ipv6Addr::UNSPECIFIED.into(), port) {
                    // A host without IPv6 has nobody at that port there.
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => Ok(()),
                    outcome => outcome,
                }
            })
        })
    }

    /// What packets of encrypted networks are sealed with.
    pub(crate) fn seals(&mut self) -> io::Result<Seals> {
        self.seal.as_mut().map_or_else(|| Ok(Seals::default()), Seal::observe)
    }

    /// Does one step of those. The first one makes their namespace.
    pub(crate) fn seal(&mut self, step: &Step) -> io::Result<()> {
        let seal = match &mut self.seal {
            Some(seal) => seal,
            none => none.insert(Seal::create(&self.node, &self.seal_pin)?),
        };
        seal.apply(&mut self.host_links, step)
    }

    /// Gives a task's namespace an interface; one that is there already as it should be is kept. It takes a moment until
    /// it carries packets: see [`Stage::carries`].
    pub(crate) fn connect(
        &mut self,
        task: &str,
        namespace: &NetNs,
        links: &mut Links,
        interface: &Interface,
        mtu: u32,
    ) -> io::Result<()> {
        let alias = names::port_alias(task, &interface.network, interface.address.addr());
        let outer = self.inner_links.find(&interface.port)?;
        let inner = links.find(&interface.name)?;
        let kept = outer.as_ref().is_some_and(|link| link.alias == alias)
            && inner.is_some_and(|link| link.kind == "veth" && link.address == interface.mac);
        if !kept {
            self.inner_links.delete(&interface.port)?;
            let peer = Peer { namespace, name: &interface.name, mac: Some(interface.mac) };
            self.inner_links.create_veth_into(&interface.port, None, mtu, &peer)?;
            self.inner_links.set_alias(&interface.port, &alias)?;
        }
        links.set_mtu(&interface.name, mtu)?;
        links.add_address(&interface.name, interface.address)?;
        family6(namespace, links, interface)?;
        links.set_up(&interface.name)?;
        self.inner_links.set_mtu(&interface.port, mtu)?;
        let (port, bridge) = (interface.port.clone(), interface.bridge.clone());
        self.apply(&Operation::Connect { port, bridge })
    }

    /// Whether both ends of a task's interface carry packets by now.
    pub(crate) fn carries(&mut self, links: &mut Links, interface: &Interface) -> io::Result<bool> {
        Ok(links.carries(&interface.name)? && self.inner_links.carries(&interface.port)?)
    }

    /// Removes links of tasks.
    pub(crate) fn disconnect<'a>(&mut self, ports: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        self.inner_links.delete_all(ports)
    }

    /// Removes everything in both namespaces, and the pin; gives what could not be removed.
    pub(crate) fn tear_down(mut self, pin: &Path) -> Vec<(String, io::Error)> {
        let mut errors = Vec::new();
        for link in [names::egress_link(&self.node), names::ingress_link(&self.node)] {
            if let Err(error) = self.host_links.delete(&link) {
                errors.push((link, error));
            }
        }
        // Links that go with their namespace go at the kernel's leisure; a VXLAN's UDP port must be free right away.
        match self.inner_links.list() {
            Ok(links) => {
                let ours = links.iter().filter(|link| !link.kind.is_empty()).map(|link| link.name.as_str());
                if let Err(error) = self.inner_links.delete_all(ours) {
                    errors.push(("the node's links".into(), error));
                }
            }
            Err(error) => errors.push(("the node's links".into(), error)),
        }
        // The same goes for the ports of these.
        if let Some(mut seal) = self.seal.take() {
            for device in [0, 1].map(names::seal) {
                if let Err(error) = seal.links.delete(&device) {
                    errors.push((device, error));
                }
            }
        }
        if let Err(error) = NetNs::delete(&self.seal_pin) {
            errors.push((self.seal_pin.display().to_string(), error));
        }
        for forwarding in [&self.forwarding, &self.forwarding6] {
            if let Err(error) = forwarding.forget() {
                errors.push((forwarding.path.display().to_string(), error));
            }
        }
        if let Err(error) = NetNs::delete(pin) {
            errors.push((pin.display().to_string(), error));
        }
        if let Some(directory) = pin.parent() {
            // Not ours alone: it stays while somebody else has something in it.
            std::fs::remove_dir(directory).ok();
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::super::mac_of;
    use super::*;

    #[test]
    fn our_own_changes_of_entries_are_told_from_those_of_others() {
        let host = match NetNs::anonymous() {
            Ok(host) => host,
            Err(error) => return println!("skipped: cannot make a network namespace ({error}); root is needed"),
        };
        let directory = tempfile::tempdir().unwrap();
        let pin = directory.path().join("netns").join("overlay");
        let (mut stage, mut other) = host
            .visit(|| {
                let mut links = Links::current()?;
                links.set_up("lo")?;
                let stage = Stage::open("n1", &pin)?;
                let other = Links::open(&stage.inner)?;
                Ok((stage, other))
            })
            .unwrap();
        let vni = 5;
        let tunnel = Tunnel { local: Ipv4Addr::LOCALHOST, port: 4789, mtu: 1450, sealed: false };
        stage.apply(&Operation::CreateSwitch { vni, network: "net".into() }).unwrap();
        stage.apply(&Operation::CreateTunnel { vni, tunnel }).unwrap();
        // The kernel tells of new links until they carry packets.
        stage.inner_links.wait_running("br-5", PATIENCE).unwrap();
        assert!(stage.stirred());
        let address = Ipv4Addr::new(10, 0, 9, 2);
        let mac = mac_of(address);
        let host = |last| Ipv4Addr::new(192, 168, 0, last);
        let ours = [
            Operation::SetHost { vni, mac, host: host(1) },
            Operation::SetForward { vni, mac },
            Operation::SetNeighbour { vni, address: address.into(), mac },
            Operation::SetHost { vni, mac, host: host(2) },
            Operation::DeleteHost { vni, mac },
            Operation::DeleteForward { vni, mac },
            Operation::DeleteNeighbour { vni, address: address.into() },
        ];
        let (set, gone) = ours.split_at(4);
        for operations in [&set[..3], &set[3..], gone, &set[..3]] {
            operations.iter().for_each(|operation| stage.apply(operation).unwrap());
            assert!(!stage.stirred(), "{operations:?}");
        }
        let (bridge, device) = (other.index("br-5").unwrap(), other.index("vx-5").unwrap());
        let theirs: [&mut dyn FnMut() -> io::Result<()>; 3] = [
            &mut || other.delete_neighbour(bridge, address.into()),
            &mut || Links::open(&stage_inner(&pin))?.delete_forward(device, mac),
            &mut || Links::open(&stage_inner(&pin))?.set_tunnel(device, mac, host(9)),
        ];
        for change in theirs {
            change().unwrap();
            assert!(stage.stirred());
            assert!(!stage.stirred());
        }
        // Also right after ours, and about the same entry.
        stage.apply(&Operation::SetHost { vni, mac, host: host(3) }).unwrap();
        other.set_tunnel(device, mac, host(4)).unwrap();
        assert!(stage.stirred());
        assert!(stage.tear_down(&pin).is_empty());
    }

    fn stage_inner(pin: &Path) -> NetNs {
        NetNs::open(pin).unwrap()
    }
}
