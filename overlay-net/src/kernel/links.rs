//! Links, addresses and routes of one network namespace.
//!
//! `Links` is a handle on one namespace; it is used from any thread, and blocks. Links are named by their name, since
//! that is what is stable across a restart of ours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use libc::{
    IFLA_ADDRESS, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER,
    IFLA_MTU, IFLA_NET_NS_FD, IFLA_OPERSTATE, IFLA_PROTINFO, RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_GETADDR,
    RTM_GETLINK, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE,
};
use nix::sys::socket::SockProtocol;

use super::neighbours::Expected;
use super::netlink::{CREATE, DUMP, EXCL, Message, REPLACE, Reply, Socket, attributes, str_of, u32_of};
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
/// `NETCONFA_*` of linux/netconf.h, and its number for what holds for all links.
const NETCONF_LINK: u16 = 1;
const NETCONF_RP_FILTER: u16 = 3;
const NETCONF_ALL: i32 = -1;
/// `IFLA_BR_MCAST_SNOOPING`.
const BR_MCAST_SNOOPING: u16 = 23;
// `IFA_*` of linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `IFA_F_NODAD`: an address is used at once, without asking whether somebody else has it.
const IFA_F_NODAD: u8 = 2;
const IFF_UP: u32 = 1;
/// `IF_OPER_UP`.
const OPERATIONAL: u8 = 6;
/// `RTPROT_UNSPEC`: from anybody.
const RTPROT_UNSPEC: u8 = 0;
/// `RTPROT_STATIC`: what an administrator's tool would say.
const RTPROT_STATIC: u8 = 4;
/// `RTPROT_KERNEL`: what comes with an address, and goes with it.
const RTPROT_KERNEL: u8 = 2;
/// `IP6_RT_PRIO_ADDRCONF`: the metric of IPv6 routes that come with an address.
const CONNECTED_METRIC_6: u32 = 256;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
/// `RTNH_F_ONLINK`: the gateway is on the link, whatever the link's addresses say.
const ONLINK: u32 = 4;
// `FRA_*` and `FR_ACT_TO_TBL` of linux/fib_rules.h.
pub(super) const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
pub(super) const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const TO_TABLE: u8 = 1;
/// Behind the main table (32766) and the default one.
const AFTER_ALL: u32 = 32_800;

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

/// ENODEV has no kind of its own in the standard library; callers ask for `NotFound`.
fn gone_is_not_found(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ESRCH) => io::Error::new(io::ErrorKind::NotFound, error),
        _ => error,
    }
}

/// What leads packets to a table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoutingRule {
    pub(super) table: u32,
    /// Those with a mark.
    pub(super) by_mark: bool,
    /// All that no other table leads anywhere.
    pub(super) for_all: bool,
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

    /// Gives a link an IPv4 address with its prefix; an address that is there already is fine.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says.
    pub fn add_address(&mut self, name: &str, address: Ipv4Net) -> io::Result<()> {
        let message = self.address_message(RTM_NEWADDR, CREATE | REPLACE, name, address)?;
        self.socket.request(message).map(drop)
    }

    /// Takes an IPv4 address from a link.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn delete_address(&mut self, name: &str, address: Ipv4Net) -> io::Result<()> {
        let message = self.address_message(RTM_DELADDR, 0, name, address)?;
        self.socket.request(message).map(drop)
    }

    fn address_message(&mut self, kind: u16, flags: u16, name: &str, address: Ipv4Net) -> io::Result<Message> {
        let index = self.index(name)?;
        let mut fixed = [libc::AF_INET as u8, address.prefix_len(), 0, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(kind, flags, &fixed);
        message.put(IFA_LOCAL, &address.addr().octets()).put(IFA_ADDRESS, &address.addr().octets());
        Ok(message)
    }

    /// All IPv4 addresses with the number of their link.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Net)>> {
        let fixed = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
        let replies = self.socket.request(Message::new(RTM_GETADDR, DUMP, &fixed))?;
        Ok(replies.iter().filter_map(parse_address).collect())
    }

    /// Gives a link an IPv6 address with its prefix, for use at once; an address that is there already is fine.
    ///
    /// # Errors
    /// `NotFound`, or what the kernel says: a link without IPv6 takes none.
    pub fn add_address6(&mut self, name: &str, address: Ipv6Net) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = [libc::AF_INET6 as u8, address.prefix_len(), IFA_F_NODAD, 0, 0, 0, 0, 0];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, CREATE | REPLACE, &fixed);
        message.put(IFA_LOCAL, &address.addr().octets()).put(IFA_ADDRESS, &address.addr().octets());
        self.socket.request(message).map(drop)
    }

    /// All IPv6 addresses with the number of their link, but for those that each link makes for itself (`fe80::`).
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn addresses6(&mut self) -> io::Result<Vec<(u32, Ipv6Net)>> {
        let fixed = [libc::AF_INET6 as u8, 0, 0, 0, 0, 0, 0, 0];
        let replies = self.socket.request(Message::new(RTM_GETADDR, DUMP, &fixed))?;
        let address = |reply: &Reply| {
            let fixed = reply.body.get(..8)?;
            let address = attributes(&reply.body[8..]).find(|(kind, _)| *kind == IFA_ADDRESS)?.1;
            let net = Ipv6Net::new(ipv6_of(address)?, fixed[1]).ok()?;
            let counts = i32::from(fixed[0]) == libc::AF_INET6 && !net.addr().is_unicast_link_local();
            counts.then_some((u32_of(&fixed[4..8]), net))
        };
        Ok(replies.iter().filter_map(address).collect())
    }

    /// Adds a route in the main table, or replaces the one to the same destination.
    ///
    /// # Errors
    /// `NotFound` when the link is missing; `NetworkUnreachable` when the gateway is not on a link.
    pub fn add_route(&mut self, destination: Ipv4Net, via: Option<Ipv4Addr>, name: &str) -> io::Result<()> {
        let message = self.route_message(RTM_NEWROUTE, CREATE | REPLACE, destination, via, name)?;
        self.socket.request(message).map(drop)
    }

    /// Removes a route of the main table.
    ///
    /// # Errors
    /// `NotFound` when the link or the route is missing.
    pub fn delete_route(&mut self, destination: Ipv4Net, via: Option<Ipv4Addr>, name: &str) -> io::Result<()> {
        let message = self.route_message(RTM_DELROUTE, 0, destination, via, name)?;
        self.socket.request(message).map(drop).map_err(gone_is_not_found)
    }

    fn route_message(
        &mut self,
        kind: u16,
        flags: u16,
        destination: Ipv4Net,
        via: Option<Ipv4Addr>,
        name: &str,
    ) -> io::Result<Message> {
        let index = self.index(name)?;
        let scope = if via.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        // Whoever set it, it is removed.
        let protocol = if kind == RTM_NEWROUTE { RTPROT_STATIC } else { RTPROT_UNSPEC };
        let fixed = [
            libc::AF_INET as u8,
            destination.prefix_len(),
            0,
            0,
            RT_TABLE_MAIN,
            protocol,
            scope,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(kind, flags, &fixed);
        if destination.prefix_len() > 0 {
            message.put(libc::RTA_DST, &destination.network().octets());
        }
        if let Some(via) = via {
            message.put(libc::RTA_GATEWAY, &via.octets());
        }
        message.put_u32(libc::RTA_OIF, index);
        Ok(message)
    }

    /// Sends packets whose mark is an address in `marks` (as it stands in a packet) out of a link, to a gateway that
    /// need not exist there: a rule and a default route in a table of their own. What is there already is fine.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn route_marked(&mut self, marks: Ipv4Net, table: u32, via: Ipv4Addr, name: &str) -> io::Result<()> {
        self.route_through(table, via, name)?;
        self.rule_of_marks(libc::AF_INET, marks, table)
    }

    fn rule_of_marks(&mut self, family: i32, marks: Ipv4Net, table: u32) -> io::Result<()> {
        let mut fixed = [0; 12];
        (fixed[0], fixed[7]) = (u8::try_from(family).expect("address families are small"), TO_TABLE);
        let mut rule = Message::new(libc::RTM_NEWRULE, CREATE | EXCL, &fixed);
        rule.put_u32(FRA_PRIORITY, table).put_u32(FRA_TABLE, table);
        rule.put(FRA_FWMARK, &marks.network().octets()).put(FRA_FWMASK, &marks.netmask().octets());
        self.add_rule(rule)
    }

    /// The same for IPv6 packets. `marks` are IPv4 addresses here too: those of hosts. Packets that no other route leads
    /// anywhere take this one: the kernel asks for the way of a reply, and for the address to send it from, before anybody
    /// could mark it, and where there is no default route it would not be sent. What is no reply is to be refused by rules.
    ///
    /// # Errors
    /// `NotFound` when the link is missing, or what the kernel says.
    pub fn route_marked6(&mut self, marks: Ipv4Net, table: u32, via: Ipv6Addr, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = [0; 12];
        (fixed[0], fixed[5], fixed[7]) = (libc::AF_INET6 as u8, RTPROT_STATIC, RTN_UNICAST);
        fixed[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
        let mut route = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &fixed);
        route.put(libc::RTA_GATEWAY, &via.octets()).put_u32(libc::RTA_OIF, index).put_u32(libc::RTA_TABLE, table);
        self.socket.request(route)?;
        self.rule_of_marks(libc::AF_INET6, marks, table)?;
        let mut fixed = [0; 12];
        (fixed[0], fixed[7]) = (libc::AF_INET6 as u8, TO_TABLE);
        let mut rule = Message::new(libc::RTM_NEWRULE, CREATE | EXCL, &fixed);
        rule.put_u32(FRA_PRIORITY, AFTER_ALL).put_u32(FRA_TABLE, table);
        self.add_rule(rule)
    }

    /// Adds a rule; one that is there already is fine.
    fn add_rule(&mut self, rule: Message) -> io::Result<()> {
        match self.socket.request(rule) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// The default route of a table, through a gateway that is on the link although no address of the link says so.
    pub(super) fn route_through(&mut self, table: u32, via: Ipv4Addr, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        let mut fixed = [0; 12];
        (fixed[0], fixed[5], fixed[7]) = (libc::AF_INET as u8, RTPROT_STATIC, RTN_UNICAST);
        fixed[8..12].copy_from_slice(&ONLINK.to_ne_bytes());
        let mut route = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &fixed);
        route.put(libc::RTA_GATEWAY, &via.octets()).put_u32(libc::RTA_OIF, index).put_u32(libc::RTA_TABLE, table);
        self.socket.request(route).map(drop)
    }

    /// Puts back the route that the kernel made when a link got this address, if somebody has taken it away; says whether
    /// it was. A link that has not got the address, or is down, gets no route.
    pub(super) fn restore_connected(&mut self, link: u32, address: Ipv4Net) -> io::Result<bool> {
        let net = address.trunc();
        let mut fixed = [0; 12];
        (fixed[0], fixed[1], fixed[4]) = (libc::AF_INET as u8, net.prefix_len(), RT_TABLE_MAIN);
        (fixed[5], fixed[6], fixed[7]) = (RTPROT_KERNEL, RT_SCOPE_LINK, RTN_UNICAST);
        let mut route = Message::new(RTM_NEWROUTE, CREATE | EXCL, &fixed);
        route.put(libc::RTA_DST, &net.addr().octets()).put(libc::RTA_PREFSRC, &address.addr().octets());
        route.put_u32(libc::RTA_OIF, link);
        self.restore_route(route)
    }

    /// The same for IPv6.
    pub(super) fn restore_connected6(&mut self, link: u32, address: Ipv6Net) -> io::Result<bool> {
        let net = address.trunc();
        let mut fixed = [0; 12];
        (fixed[0], fixed[1], fixed[4]) = (libc::AF_INET6 as u8, net.prefix_len(), RT_TABLE_MAIN);
        (fixed[5], fixed[7]) = (RTPROT_KERNEL, RTN_UNICAST);
        let mut route = Message::new(RTM_NEWROUTE, CREATE | EXCL, &fixed);
        route.put(libc::RTA_DST, &net.addr().octets()).put_u32(libc::RTA_OIF, link);
        route.put_u32(libc::RTA_PRIORITY, CONNECTED_METRIC_6);
        self.restore_route(route)
    }

    fn restore_route(&mut self, route: Message) -> io::Result<bool> {
        match self.socket.request(route) {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                // It is there; or the link is not as it should be, and gets the route with its repair.
                Some(libc::EEXIST | libc::EINVAL | libc::ENETDOWN | libc::ENODEV) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// All IPv4 destinations in the main table, with the number of their link; the default route is `0.0.0.0/0`.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn routes(&mut self) -> io::Result<Vec<(Ipv4Net, u32)>> {
        let all = self.all_routes()?.into_iter();
        Ok(all.filter(|route| route.table == u32::from(RT_TABLE_MAIN)).map(|r| (r.destination, r.link)).collect())
    }

    /// The IPv4 routes of all tables.
    pub(super) fn all_routes(&mut self) -> io::Result<Vec<Route>> {
        let mut fixed = [0; 12];
        fixed[0] = libc::AF_INET as u8;
        let replies = self.socket.request(Message::new(RTM_GETROUTE, DUMP, &fixed))?;
        Ok(replies.iter().filter_map(parse_route).collect())
    }

    /// The IPv6 destinations of all tables, with the table and the number of the link.
    ///
    /// # Errors
    /// When the kernel refuses the dump.
    pub fn routes6(&mut self) -> io::Result<Vec<(u32, Ipv6Net, u32)>> {
        let mut fixed = [0; 12];
        fixed[0] = libc::AF_INET6 as u8;
        let replies = self.socket.request(Message::new(RTM_GETROUTE, DUMP, &fixed))?;
        let route = |reply: &Reply| {
            let fixed = reply.body.get(..12)?;
            let (mut to, mut link, mut table) = (Ipv6Addr::UNSPECIFIED, 0, u32::from(fixed[4]));
            for (kind, value) in attributes(&reply.body[12..]) {
                match kind {
                    libc::RTA_DST => to = ipv6_of(value)?,
                    libc::RTA_OIF => link = u32_of(value),
                    libc::RTA_TABLE => table = u32_of(value),
                    _ => {}
                }
            }
            let net = Ipv6Net::new(to, fixed[1]).ok()?;
            (i32::from(fixed[0]) == libc::AF_INET6).then_some((table, net, link))
        };
        Ok(replies.iter().filter_map(route).collect())
    }

    /// The rules of a family that lead to a table.
    pub(super) fn routing_rules(&mut self, family: i32) -> io::Result<Vec<RoutingRule>> {
        let mut fixed = [0; 12];
        fixed[0] = u8::try_from(family).expect("address families are small");
        let replies = self.socket.request(Message::new(libc::RTM_GETRULE, DUMP, &fixed))?;
        let rule = |reply: &Reply| {
            if i32::from(*reply.body.first()?) != family {
                return None;
            }
            let value = |of: u16| {
                attributes(reply.body.get(12..).unwrap_or_default())
                    .find(|(kind, _)| *kind == of)
                    .map(|(_, value)| value)
            };
            let by_mark = value(FRA_FWMARK).is_some();
            let last = value(FRA_PRIORITY).is_some_and(|priority| u32_of(priority) == AFTER_ALL);
            let for_all = last && !by_mark && value(FRA_SRC).is_none();
            Some(RoutingRule { table: u32_of(value(FRA_TABLE)?), by_mark, for_all })
        };
        Ok(replies.iter().filter_map(rule).collect())
    }

    /// Which links, by number, check where packets come from (`rp_filter`); 0 stands for the value for all links.
    pub(super) fn checking_sources(&mut self) -> io::Result<Vec<u32>> {
        let mut fixed = [0; 4];
        fixed[0] = libc::AF_INET as u8;
        let replies = self.socket.request(Message::new(libc::RTM_GETNETCONF, DUMP, &fixed))?;
        let link = |reply: &Reply| {
            let (mut link, mut checks) = (None, false);
            for (kind, value) in attributes(reply.body.get(4..)?) {
                match kind {
                    NETCONF_LINK => link = Some(u32_of(value).cast_signed()),
                    NETCONF_RP_FILTER => checks = u32_of(value) != 0,
                    _ => {}
                }
            }
            let number = match link? {
                NETCONF_ALL => 0,
                number => u32::try_from(number).ok()?,
            };
            checks.then_some(number)
        };
        Ok(replies.iter().filter_map(link).collect())
    }
}

/// One IPv4 route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// The table that it is in.
    pub(super) table: u32,
    /// Where it leads.
    pub(super) destination: Ipv4Net,
    /// The number of its link.
    pub(super) link: u32,
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

pub(super) fn ipv4_of(value: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = value.get(0..4)?.try_into().ok()?;
    Some(octets.into())
}

fn ipv6_of(value: &[u8]) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = value.get(0..16)?.try_into().ok()?;
    Some(octets.into())
}

/// An address of the family that its length says.
pub(super) fn ip_of(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        16 => ipv6_of(value).map(IpAddr::V6),
        _ => ipv4_of(value).map(IpAddr::V4),
    }
}

fn parse_address(reply: &Reply) -> Option<(u32, Ipv4Net)> {
    let fixed = reply.body.get(..8)?;
    let local = attributes(&reply.body[8..]).find(|(kind, _)| *kind == IFA_LOCAL)?.1;
    Some((u32_of(&fixed[4..8]), Ipv4Net::new(ipv4_of(local)?, fixed[1]).ok()?))
}

fn parse_route(reply: &Reply) -> Option<Route> {
    let fixed = reply.body.get(..12)?;
    let (mut destination, mut link, mut table) = (Ipv4Addr::UNSPECIFIED, 0, u32::from(fixed[4]));
    for (kind, value) in attributes(&reply.body[12..]) {
        match kind {
            libc::RTA_DST => destination = ipv4_of(value)?,
            libc::RTA_OIF => link = u32_of(value),
            libc::RTA_TABLE => table = u32_of(value),
            _ => {}
        }
    }
    Some(Route { table, destination: Ipv4Net::new(destination, fixed[1]).ok()?, link })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_came_with_an_address_is_put_back_as_it_was() {
        let namespace = match NetNs::anonymous() {
            Ok(namespace) => namespace,
            Err(error) => return println!("skipped: cannot make a network namespace ({error}); root is needed"),
        };
        let mut links = Links::open(&namespace).unwrap();
        links.create_bridge("b").unwrap();
        let (address, address6) = ("10.7.0.1/24".parse().unwrap(), "fd00:7::1/64".parse().unwrap());
        let index = links.index("b").unwrap();
        assert!(!links.restore_connected(index, address).unwrap(), "a link that is down gets none");
        links.add_address("b", address).unwrap();
        links.set_up("b").unwrap();
        assert!(!links.restore_connected(index, address).unwrap(), "it is there");
        let listed = |links: &mut Links| {
            let mut fixed = [0; 12];
            fixed[0] = libc::AF_INET as u8;
            let all = links.socket.request(Message::new(RTM_GETROUTE, DUMP, &fixed)).unwrap();
            all.into_iter().map(|reply| reply.body).collect::<Vec<_>>()
        };
        let before = listed(&mut links);
        links.delete_route(address.trunc(), None, "b").unwrap();
        assert_ne!(listed(&mut links), before);
        assert!(links.restore_connected(index, address).unwrap());
        assert_eq!(listed(&mut links), before, "the kernel's own, in every respect");

        if links.add_address6("b", address6).is_err() {
            return println!("not checked with IPv6: this kernel has none");
        }
        assert!(!links.restore_connected6(index, address6).unwrap(), "it is there");
        let net = address6.trunc();
        let mut fixed = [0; 12];
        (fixed[0], fixed[1], fixed[4]) = (libc::AF_INET6 as u8, 64, RT_TABLE_MAIN);
        let mut gone = Message::new(RTM_DELROUTE, 0, &fixed);
        gone.put(libc::RTA_DST, &net.addr().octets()).put_u32(libc::RTA_OIF, index);
        links.socket.request(gone).unwrap();
        let main = (u32::from(RT_TABLE_MAIN), net, index);
        assert!(!links.routes6().unwrap().contains(&main));
        assert!(links.restore_connected6(index, address6).unwrap());
        assert!(links.routes6().unwrap().contains(&main));
    }
}
