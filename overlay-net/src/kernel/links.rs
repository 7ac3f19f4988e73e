//! Links of one network namespace: made, removed, listed and changed.
//!
//! `Links` is a handle on one namespace; it is used from any thread, and blocks. Links are named by their name, since
//! that is what is stable across a restart of ours. Their addresses, and the namespace's routes, are in `routes`; entries
//! about those behind them are in `neighbours`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use libc::{
    IFLA_ADDRESS, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER,
    IFLA_MTU, IFLA_NET_NS_FD, IFLA_OPERSTATE, IFLA_PROTINFO, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK,
};
use nix::sys::socket::SockProtocol;

use super::neighbours::Expected;
use super::netlink::{
    CREATE, DUMP, EXCL, Message, Reply, Socket, attributes, gone_is_not_found, ipv4_of, str_of, u32_of,
};
use super::netns::NetNs;

/// Longest interface name, without the closing zero.
const NAME_MAX: usize = 15;
/// The interface group of links that are about to be removed; a number that nobody else uses.
const CONDEMNED_GROUP: u32 = 0x5348_4f41;
/// `IFLA_LINK_NETNSID`.
const LINK_NETNSID: u16 = 37;
// `NETNSA_*` of linux/net_namespace.h.
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// `VETH_INFO_PEER`.
const VETH_INFO_PEER: u16 = 1;
// `IFLA_VXLAN_*` of linux/if_link.h.
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
// `IFLA_BRPORT_*` of linux/if_link.h.
const BRPORT_LEARNING: u16 = 8;
const BRPORT_UNICAST_FLOOD: u16 = 9;
const BRPORT_MCAST_FLOOD: u16 = 27;
const BRPORT_BCAST_FLOOD: u16 = 30;
const BRPORT_NEIGH_SUPPRESS: u16 = 32;
const BRPORT_ISOLATED: u16 = 33;
// `IFLA_INFO_SLAVE_*` of linux/if_link.h: how its bridge treats a link.
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
/// `IFLA_BR_MCAST_SNOOPING`.
const BR_MCAST_SNOOPING: u16 = 23;
const IFF_UP: u32 = 1;
/// `IF_OPER_UP`.
const OPERATIONAL: u8 = 6;

/// What the kernel says about a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `vxlan`, `veth`, `wireguard`; empty for `lo` and hardware.
    pub kind: String,
    /// Whether it was set up.
    pub up: bool,
    /// Whether it carries packets: it is up, its peer is up, and the kernel has taken notice of both.
    pub running: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its hardware address; empty where it has none.
    pub address: Vec<u8>,
    /// The number of the bridge that it is a port of, or 0.
    pub controller: u32,
    /// The free text that its maker gave it.
    pub alias: String,
    /// The namespace that it was made in and still has its sockets in, as its own namespace numbers it; nothing if that is
    /// the same one.
    pub birthplace: Option<u32>,
    /// VXLAN only: network identifier, local address, UDP port.
    pub vxlan: Option<(u32, Ipv4Addr, u16)>,
    /// Ports of a bridge only: how it treats them.
    pub port: Option<BridgePort>,
}

/// A VXLAN device to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier, below 2^24.
    pub vni: u32,
    /// The address that its packets leave from.
    pub local: Ipv4Addr,
    /// The UDP port on both sides.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
}

/// The far end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// The namespace that it appears in.
    pub namespace: &'a NetNs,
    /// Its name there.
    pub name: &'a str,
    /// Its hardware address; the kernel's choice when absent.
    pub mac: Option<[u8; 6]>,
}

/// How a bridge treats one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePort {
    /// Unknown destinations, broadcast and multicast are sent here.
    pub flood: bool,
    /// The bridge learns addresses from what arrives here.
    pub learning: bool,
    /// The bridge answers ARP for what is known behind this port, and sends no ARP here.
    pub neigh_suppress: bool,
    /// No traffic to other isolated ports.
    pub isolated: bool,
}

/// A handle on the links of one network namespace.
#[derive(Debug)]
pub struct Links {
    pub(super) socket: Socket,
    /// What our changes of entries lead to.
    pub(super) expected: Expected,
}

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', ' ', '\0']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("bad interface name {name:?}")));
    }
    Ok(())
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no interface {name:?}"))
}

impl Links {
    /// Opens a handle on a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn open(namespace: &NetNs) -> io::Result<Links> {
        let socket = namespace.visit(|| Socket::open(SockProtocol::NetlinkRoute))?;
        Ok(Links { socket, expected: Expected::default() })
    }

    /// A handle on the namespace of the calling thread.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn current() -> io::Result<Links> {
        Ok(Links { socket: Socket::open(SockProtocol::NetlinkRoute)?, expected: Expected::default() })
    }

    /// All links.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn list(&mut self) -> io::Result<Vec<Link>> {
        let replies = self.socket.request(Message::new(RTM_GETLINK, DUMP, &ifinfo(0, 0, 0)))?;
        Ok(replies.iter().filter_map(parse_link).collect())
    }

    /// One link by its name, or nothing.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that there is none.
    pub fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        check_name(name)?;
        let mut message = Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        match self.socket.request(message) {
            Ok(replies) => Ok(replies.iter().find_map(parse_link)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number of a link.
    ///
    /// # Errors
    /// `NotFound` when there is no such link.
    pub fn index(&mut self, name: &str) -> io::Result<u32> {
        self.find(name)?.map(|link| link.index).ok_or_else(|| not_found(name))
    }

    /// Makes a bridge.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the kernel says.
    pub fn create_bridge(&mut self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |m| {
            m.put_str(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, |m| {
                // Without a querier on the wire, snooping would swallow multicast between local tasks.
                m.put(BR_MCAST_SNOOPING, &[0]);
            });
        });
        self.socket.request(message).map(drop)
    }

    /// Makes a VXLAN device that appears in `other`, while its UDP socket stays in this handle's namespace.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the kernel says.
    pub fn create_vxlan_into(&mut self, other: &NetNs, name: &str, vxlan: &Vxlan) -> io::Result<()> {
        check_name(name)?;
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0));
        message
            .put_str(IFLA_IFNAME, name)
            .put_u32(IFLA_MTU, vxlan.mtu)
            .put_u32(IFLA_NET_NS_FD, other.fd().as_raw_fd().cast_unsigned())
            .nest(IFLA_LINKINFO, |m| {
                m.put_str(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |m| {
                    m.put_u32(VXLAN_ID, vxlan.vni)
                        .put(VXLAN_LOCAL, &vxlan.local.octets())
                        .put(VXLAN_PORT, &vxlan.port.to_be_bytes())
                        .put(VXLAN_LEARNING, &[0]);
                });
            });
        self.socket.request(message).map(drop)
    }

    /// Makes a WireGuard device that appears in `other`, while its UDP socket stays in this handle's namespace.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the kernel says: `Unsupported` when it has no WireGuard.
    pub fn create_wireguard_into(&mut self, other: &NetNs, name: &str, mtu: u32) -> io::Result<()> {
        check_name(name)?;
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0));
        message
            .put_str(IFLA_IFNAME, name)
            .put_u32(IFLA_MTU, mtu)
            .put_u32(IFLA_NET_NS_FD, other.fd().as_raw_fd().cast_unsigned())
            .nest(IFLA_LINKINFO, |m| {
                m.put_str(IFLA_INFO_KIND, "wireguard");
            });
        self.socket.request(message).map(drop)
    }

    /// The number that this handle's namespace has for another one; nothing where it has none, so that no link of it can
    /// have been made there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn number_of(&mut self, other: &NetNs) -> io::Result<Option<u32>> {
        let mut message = Message::new(libc::RTM_GETNSID, 0, &[0; 4]);
        message.put_u32(NETNSA_FD, other.fd().as_raw_fd().cast_unsigned());
        let replies = self.socket.request(message)?;
        let values = replies.iter().flat_map(|reply| attributes(reply.body.get(4..).unwrap_or_default()));
        // Minus one stands for none.
        Ok(values.filter(|(kind, _)| *kind == NETNSA_NSID).map(|(_, value)| u32_of(value)).find(|id| *id != u32::MAX))
    }

    /// Makes a veth pair: `name` here, the peer in its own namespace; both with this MTU, both down.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the kernel says; neither end exists then.
    pub fn create_veth_into(&mut self, name: &str, mac: Option<[u8; 6]>, mtu: u32, peer: &Peer<'_>) -> io::Result<()> {
        check_name(name)?;
        check_name(peer.name)?;
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name).put_u32(IFLA_MTU, mtu);
        if let Some(mac) = mac {
            message.put(IFLA_ADDRESS, &mac);
        }
        message.nest(IFLA_LINKINFO, |m| {
            m.put_str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&ifinfo(0, 0, 0)).put_str(IFLA_IFNAME, peer.name).put_u32(IFLA_MTU, mtu);
                    m.put_u32(IFLA_NET_NS_FD, peer.namespace.fd().as_raw_fd().cast_unsigned());
                    if let Some(mac) = peer.mac {
                        m.put(IFLA_ADDRESS, &mac);
                    }
                });
            });
        });
        self.socket.request(message).map(drop)
    }

    /// Removes a link; a missing one is fine. A veth takes its peer with it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let mut message = Message::new(RTM_DELLINK, 0, &ifinfo(0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        match self.socket.request(message) {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes several links at once; missing ones are fine.
    ///
    /// The kernel waits for all packets in flight once for each request to remove, some 20 ms, so these are put into
    /// an interface group and removed with it.
    ///
    /// # Errors
    /// What the kernel says; some may be gone then.
    pub fn delete_all<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        let mut any = false;
        for name in names {
            let condemned = self.change(name, 0, 0, |m| {
                m.put_u32(IFLA_GROUP, CONDEMNED_GROUP);
            });
            match condemned {
                Ok(()) => any = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if !any {
            return Ok(());
        }
        let mut message = Message::new(RTM_DELLINK, 0, &ifinfo(0, 0, 0));
        message.put_u32(IFLA_GROUP, CONDEMNED_GROUP);
        match self.socket.request(message) {
            // One that vanished by itself may have been the last.
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    fn change(&mut self, name: &str, flags: u32, mask: u32, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        check_name(name)?;
        let mut message = Message::new(RTM_NEWLINK, 0, &ifinfo(0, flags, mask));
        message.put_str(IFLA_IFNAME, name);
        fill(&mut message);
        self.socket.request(message).map(drop).map_err(gone_is_not_found)
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn set_up(&mut self, name: &str) -> io::Result<()> {
        self.change(name, IFF_UP, IFF_UP, |_| {})
    }

    /// Whether a link carries packets by now. A veth that has just been set up drops all of them until a worker of the
    /// kernel has taken notice of its peer, and the first packet of a connection would be repeated a second later.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn carries(&mut self, name: &str) -> io::Result<bool> {
        if !self.find(name)?.ok_or_else(|| not_found(name))?.running {
            return Ok(false);
        }
        // The state shows before the worker is done with the link; a change, even an empty one, waits for the worker.
        self.set_up(name).map(|()| true)
    }

    /// Waits until a link carries packets.
    ///
    /// # Errors
    /// `NotFound`; `TimedOut` when the peer is down, or the kernel is that busy.
    pub fn wait_running(&mut self, name: &str, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        while !self.carries(name)? {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name:?} does not come up")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sets a link down.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn set_down(&mut self, name: &str) -> io::Result<()> {
        self.change(name, 0, IFF_UP, |_| {})
    }

    /// Sets a link's MTU in bytes.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> io::Result<()> {
        self.change(name, 0, 0, |m| {
            m.put_u32(IFLA_MTU, mtu);
        })
    }

    /// Sets a link's hardware address.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn set_mac(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        self.change(name, 0, 0, |m| {
            m.put(IFLA_ADDRESS, &mac);
        })
    }

    /// Sets a link's free text, 255 bytes at the most.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn set_alias(&mut self, name: &str, alias: &str) -> io::Result<()> {
        self.change(name, 0, 0, |m| {
            m.put(IFLA_IFALIAS, alias.as_bytes());
        })
    }

    /// Makes a link a port of a bridge, or of none.
    ///
    /// # Errors
    /// `NotFound` when one of the two is missing, or what the kernel says.
    pub fn set_controller(&mut self, name: &str, bridge: Option<&str>) -> io::Result<()> {
        let controller = match bridge {
            Some(bridge) => self.index(bridge)?,
            None => 0,
        };
        self.change(name, 0, 0, |m| {
            m.put_u32(IFLA_MASTER, controller);
        })
    }

    /// Says how the bridge treats a port of it.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn set_bridge_port(&mut self, name: &str, port: BridgePort) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = ifinfo(index, 0, 0);
        fixed[0] = u8::try_from(libc::AF_BRIDGE).expect("AF_BRIDGE is 7");
        let mut message = Message::new(libc::RTM_SETLINK, 0, &fixed);
        message.nest(IFLA_PROTINFO, |m| {
            m.put(BRPORT_LEARNING, &[port.learning.into()])
                .put(BRPORT_UNICAST_FLOOD, &[port.flood.into()])
                .put(BRPORT_MCAST_FLOOD, &[port.flood.into()])
                .put(BRPORT_BCAST_FLOOD, &[port.flood.into()])
                .put(BRPORT_NEIGH_SUPPRESS, &[port.neigh_suppress.into()])
                .put(BRPORT_ISOLATED, &[port.isolated.into()]);
        });
        self.socket.request(message).map(drop)
    }
}

fn parse_link(reply: &Reply) -> Option<Link> {
    let fixed = reply.body.get(..16)?;
    if reply.kind != RTM_NEWLINK {
        return None;
    }
    let mut link = Link { index: u32_of(&fixed[4..8]), up: u32_of(&fixed[8..12]) & IFF_UP != 0, ..Link::default() };
    for (kind, value) in attributes(&reply.body[16..]) {
        match kind {
            IFLA_IFNAME => link.name = str_of(value),
            IFLA_MTU => link.mtu = u32_of(value),
            IFLA_OPERSTATE => link.running = value.first() == Some(&OPERATIONAL),
            IFLA_ADDRESS => link.address = value.to_vec(),
            IFLA_MASTER => link.controller = u32_of(value),
            IFLA_IFALIAS => link.alias = str_of(value),
            LINK_NETNSID => link.birthplace = Some(u32_of(value)),
            IFLA_LINKINFO => parse_info(value, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn parse_info(value: &[u8], link: &mut Link) {
    let (mut data, mut treatment): (&[u8], &[u8]) = (&[], &[]);
    let mut bridged = false;
    for (kind, value) in attributes(value) {
        match kind {
            IFLA_INFO_KIND => link.kind = str_of(value),
            IFLA_INFO_DATA => data = value,
            INFO_SLAVE_KIND => bridged = str_of(value) == "bridge",
            INFO_SLAVE_DATA => treatment = value,
            _ => {}
        }
    }
    if bridged {
        let on = |wanted| attributes(treatment).any(|(kind, value)| kind == wanted && value.first() == Some(&1));
        link.port = Some(BridgePort {
            flood: on(BRPORT_UNICAST_FLOOD) && on(BRPORT_MCAST_FLOOD) && on(BRPORT_BCAST_FLOOD),
            learning: on(BRPORT_LEARNING),
            neigh_suppress: on(BRPORT_NEIGH_SUPPRESS),
            isolated: on(BRPORT_ISOLATED),
        });
    }
    if link.kind == "vxlan" {
        let (mut vni, mut local, mut port) = (0, Ipv4Addr::UNSPECIFIED, 0);
        for (kind, value) in attributes(data) {
            match kind {
                VXLAN_ID => vni = u32_of(value),
                VXLAN_LOCAL => local = ipv4_of(value).unwrap_or(local),
                VXLAN_PORT => port = value.get(0..2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]])),
                _ => {}
            }
        }
        link.vxlan = Some((vni, local, port));
    }
}
