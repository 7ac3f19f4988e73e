//! Connections as the kernel's connection tracking knows them: listed, forgotten, and their clients prodded.
//!
//! Only connections whose destination was translated are of interest: those through virtual addresses and published
//! ports. A forgotten one has no translation any more, and what its client sends next is looked at like the beginning
//! of something new: it goes to somebody who serves. For a datagram that is all that is needed. A segment from the
//! middle of a TCP connection is answered there by a reset, with the right numbers, since nobody knows the connection.
//! A client that only waits sends nothing, and so nobody would tell it: it is prodded into saying where it stands.

mod six;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn};

use super::netlink::{DUMP, Message, Reply, Socket, attributes, be32_of};
use super::netns::NetNs;
use super::readback::attribute;
use crate::config::Protocol;

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
// Attribute numbers of linux/netfilter/nfnetlink_conntrack.h.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_STATE: u16 = 4;
const TIMEOUT: u16 = 7;
const ID: u16 = 12;
const STATUS_MASK: u16 = 26;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const ADDRESS_SOURCE: u16 = 1;
const ADDRESS_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;
const STATE_TCP: u16 = 1;
/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 32;
/// `AF_INET`, as netfilter's messages have it.
const IPV4: u8 = 2;
/// `TCP_CONNTRACK_ESTABLISHED` to `TCP_CONNTRACK_LAST_ACK`: before, a client asks again by itself; after, nobody waits.
const WAITING: std::ops::RangeInclusive<u8> = 3..=6;
/// Clients that are prodded in one go. The others are told when they say something.
const PRODS_MAX: usize = 4096;

/// How a client is prodded: by a segment that cannot belong to its connection, which it answers by saying where it
/// stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prod {
    /// By one that begins and ends a connection at once. Connection tracking takes no notice of such a thing, and so
    /// the client's answer is the first that it sees and goes where new ones go. For clients in the same namespace:
    /// what leads to a virtual address is translated there and nowhere else.
    Inside,
    /// By a plain acknowledgement, from an address of this host's own. The client's answer ends here, where nobody
    /// listens. For clients elsewhere: firewalls on the way take this for what it is.
    Outside,
}

/// A connection whose destination was translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The protocol's number.
    pub protocol: u8,
    /// Who began it. The ports are 0 for a protocol that has none.
    pub client: SocketAddrV4,
    /// Whom it asked for.
    pub asked: SocketAddrV4,
    /// Who answers.
    pub answers: Ipv4Addr,
    /// Seconds for which it is remembered while nothing is sent.
    pub idle_s: u32,
    state: Option<u8>,
    tuple: Vec<u8>,
    id: Vec<u8>,
}

/// A handle on one namespace's connections.
#[derive(Debug)]
pub struct Connections {
    socket: Socket,
    namespace: NetNs,
}

impl Connections {
    /// Opens a handle on a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel does not tell of connections.
    pub fn open(namespace: &NetNs) -> io::Result<Connections> {
        let socket = namespace.visit(|| Socket::open(SockProtocol::NetlinkNetFilter))?;
        Ok(Connections { socket, namespace: namespace.try_clone()? })
    }

    /// The translated connections that `wanted` holds for. The kernel walks the connections of all namespaces for this:
    /// some milliseconds.
    ///
    /// # Errors
    /// When the kernel refuses the list.
    pub fn list(&mut self, wanted: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        let mut message = Message::new(GET, DUMP, &[IPV4, 0, 0, 0]);
        message.put_be32(STATUS, TRANSLATED).put_be32(STATUS_MASK, TRANSLATED);
        let mut found = Vec::new();
        self.socket.walk(message, |reply| found.extend(flow(&reply).filter(&wanted)))?;
        Ok(found)
    }

    /// Forgets connections, and prods the clients that may wait for an answer.
    pub(crate) fn reset(&mut self, flows: &[Flow], prod: Prod) -> io::Result<()> {
        flows.iter().try_for_each(|flow| self.forget(IPV4, flow))?;
        let mut waiting = flows.iter().filter(|flow| flow.client_waits()).take(PRODS_MAX).peekable();
        if waiting.peek().is_none() {
            return Ok(());
        }
        let raw = self.namespace.visit(|| {
            let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
            Ok(nix::sys::socket::socket(AddressFamily::Inet, kind.0, kind.1, kind.2)?)
        })?;
        for flow in waiting {
            // A client that has no way any more is told by nobody.
            send(&raw, flow, prod).ok();
        }
        Ok(())
    }

    fn forget(&mut self, family: u8, flow: &Flow) -> io::Result<()> {
        let mut message = Message::new(DELETE, 0, &[family, 0, 0, 0]);
        message.nest(TUPLE_ORIGINAL, |m| {
            m.raw(&flow.tuple);
        });
        // Not another one that has taken its place meanwhile.
        message.put(ID, &flow.id);
        match self.socket.request(message) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Flow {
    /// Whether its client may wait for an answer.
    fn client_waits(&self) -> bool {
        self.protocol == Protocol::Tcp.number() && self.state.is_some_and(|state| WAITING.contains(&state))
    }
}

fn send(raw: &OwnedFd, flow: &Flow, prod: Prod) -> nix::Result<usize> {
    let packet = prodding(flow.asked, flow.client, prod);
    let to = SockaddrIn::from(SocketAddrV4::new(*flow.client.ip(), 0));
    nix::sys::socket::sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::MSG_DONTWAIT)
}

/// A TCP segment without data, in an IPv4 packet, with numbers that are not the connection's.
fn prodding(from: SocketAddrV4, to: SocketAddrV4, prod: Prod) -> Vec<u8> {
    let mut pseudo = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend([0, Protocol::Tcp.number(), 0, 20]);
    let segment = segment((from.port(), to.port()), prod, pseudo);
    // Version 4 and 5 words; the kernel fills in length, identification and checksum; it lives for 64 hops.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, Protocol::Tcp.number(), 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(segment);
    packet
}

/// The segment itself; its checksum is of a pseudo header as well, in which the two families differ.
fn segment(ports: (u16, u16), prod: Prod, pseudo: Vec<u8>) -> Vec<u8> {
    // The flags FIN and SYN; ACK.
    let flags = match prod {
        Prod::Inside => 0x03,
        Prod::Outside => 0x10,
    };
    let mut segment = Vec::with_capacity(20);
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    // Sequence and acknowledgement numbers, a header of 5 words, no window, the checksum, no urgent data.
    segment.extend([0, 0, 0, 0, 0, 0, 0, 0, 5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    let mut summed = pseudo;
    summed.extend(&segment);
    segment[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());
    segment
}

/// The checksum of IP's protocols, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

fn flow(reply: &Reply) -> Option<Flow> {
    let body = reply.body.get(4..)?;
    if reply.kind & 0xff00 != SUBSYSTEM || reply.body[0] != IPV4 {
        return None;
    }
    let address = |tuple: &[u8], kind| {
        let bytes: [u8; 4] = attribute(attribute(tuple, TUPLE_ADDRESSES)?, kind)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let tuple = attribute(body, TUPLE_ORIGINAL)?;
    let ends = attribute(tuple, TUPLE_PROTOCOL)?;
    let port = |kind| {
        let bytes = attribute(ends, kind).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
        bytes.map_or(0, u16::from_be_bytes)
    };
    let tcp = attribute(body, PROTOCOL_STATE).and_then(|state| attribute(state, STATE_TCP));
    Some(Flow {
        protocol: *attribute(ends, PROTOCOL_NUMBER)?.first()?,
        client: SocketAddrV4::new(address(tuple, ADDRESS_SOURCE)?, port(PORT_SOURCE)),
        asked: SocketAddrV4::new(address(tuple, ADDRESS_DESTINATION)?, port(PORT_DESTINATION)),
        answers: address(attribute(body, TUPLE_REPLY)?, ADDRESS_SOURCE)?,
        idle_s: attribute(body, TIMEOUT).map_or(0, be32_of),
        state: tcp.and_then(|tcp| attributes(tcp).find(|(kind, _)| *kind == 1)?.1.first().copied()),
        tuple: tuple.to_vec(),
        id: attribute(body, ID)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prods_is_a_whole_packet() {
        let (from, to) = ("10.0.0.2:80".parse().unwrap(), "10.0.0.3:40000".parse().unwrap());
        for (prod, flags) in [(Prod::Inside, 3), (Prod::Outside, 16)] {
            let packet = prodding(from, to, prod);
            assert_eq!((packet.len(), packet[20 + 13]), (40, flags));
            let summed = [&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat();
            assert_eq!(checksum(&summed), 0, "a right checksum makes the sum 0");
        }
        assert_eq!(checksum(&[0xff; 40]), 0);
    }

    #[test]
    fn what_is_cut_short_is_no_flow() {
        let Ok(namespace) = NetNs::anonymous() else {
            return println!("skipped: cannot make a network namespace; root is needed");
        };
        // The kernel's own words about nothing, and pieces of words.
        let mut connections = Connections::open(&namespace).unwrap();
        assert_eq!(connections.list(|_| true).unwrap(), []);
        let mut message = Message::new(GET, 0, &[IPV4, 0, 0, 0]);
        message.nest(TUPLE_ORIGINAL, |m| {
            m.nest(TUPLE_ADDRESSES, |m| {
                m.put(ADDRESS_SOURCE, &[10, 0, 0, 1]).put(ADDRESS_DESTINATION, &[10, 0, 0]);
            });
            m.nest(TUPLE_PROTOCOL, |m| {
                m.put(PROTOCOL_NUMBER, &[6]);
            });
        });
        for length in 0..=message.body().len() {
            assert_eq!(flow(&Reply::of(GET, &message.body()[..length])), None);
        }
    }
}
