//! The same for IPv6. Whom a connection leads to is said by the IPv4 address that the IPv6 address is beside, so that
//! one decision serves both.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6};

use super::super::netlink::{DUMP, Message, Reply, attributes, be32_of};
use super::super::readback::attribute;
use super::{
    Connections, Flow, GET, ID, PORT_DESTINATION, PORT_SOURCE, PRODS_MAX, PROTOCOL_NUMBER, PROTOCOL_STATE, Prod,
    STATE_TCP, STATUS, STATUS_MASK, SUBSYSTEM, TIMEOUT, TRANSLATED, TUPLE_ADDRESSES, TUPLE_ORIGINAL, TUPLE_PROTOCOL,
    TUPLE_REPLY, segment,
};
use crate::config::{Beside, Protocol};

/// `AF_INET6`, as netfilter's messages have it.
const IPV6: u8 = 10;
/// `CTA_IP_V6_SRC`, `CTA_IP_V6_DST`.
const ADDRESS_SOURCE: u16 = 3;
const ADDRESS_DESTINATION: u16 = 4;

/// A translated connection, with the addresses that its packets have.
struct Flow6 {
    /// What is decided by: `answers` is the address beside, and `asked` too if there is one.
    flow: Flow,
    client: SocketAddrV6,
    asked: SocketAddrV6,
}

impl Connections {
    /// Forgets the translated connections that `lost` holds for, and prods the clients that may wait; gives how many there
    /// were. Those to others than the addresses beside ours are none of these.
    pub(crate) fn end6(&mut self, beside: &[Beside], lost: impl Fn(&Flow) -> bool, prod: Prod) -> io::Result<usize> {
        let mut message = Message::new(GET, DUMP, &[IPV6, 0, 0, 0]);
        message.put_be32(STATUS, TRANSLATED).put_be32(STATUS_MASK, TRANSLATED);
        let mut found = Vec::new();
        self.socket.walk(message, |reply| found.extend(flow6(&reply, beside).filter(|found| lost(&found.flow))))?;
        found.iter().try_for_each(|found| self.forget(IPV6, &found.flow))?;
        let mut waiting = found.iter().filter(|found| found.flow.client_waits()).take(PRODS_MAX).peekable();
        if waiting.peek().is_some() {
            let raw = self.namespace.visit(|| {
                let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
                Ok(nix::sys::socket::socket(AddressFamily::Inet6, kind.0, kind.1, kind.2)?)
            })?;
            for Flow6 { client, asked, .. } in waiting {
                let packet = prodding(*asked, *client, prod);
                let to = SockaddrIn6::from(SocketAddrV6::new(*client.ip(), 0, 0, 0));
                // A client that has no way any more is told by nobody.
                nix::sys::socket::sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::MSG_DONTWAIT).ok();
            }
        }
        Ok(found.len())
    }
}

/// A TCP segment without data, in an IPv6 packet, with numbers that are not the connection's.
fn prodding(from: SocketAddrV6, to: SocketAddrV6, prod: Prod) -> Vec<u8> {
    let mut pseudo = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend([0, 0, 0, 20, 0, 0, 0, Protocol::Tcp.number()]);
    let segment = segment((from.port(), to.port()), prod, pseudo);
    // Version 6, 20 bytes of TCP, 64 hops.
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, Protocol::Tcp.number(), 64];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(segment);
    packet
}

fn flow6(reply: &Reply, beside: &[Beside]) -> Option<Flow6> {
    let body = reply.body.get(4..)?;
    if reply.kind & 0xff00 != SUBSYSTEM || reply.body[0] != IPV6 {
        return None;
    }
    let address = |tuple: &[u8], kind| {
        let bytes: [u8; 16] = attribute(attribute(tuple, TUPLE_ADDRESSES)?, kind)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes))
    };
    let opposite = |address| beside.iter().find_map(|beside| beside.opposite(address));
    let tuple = attribute(body, TUPLE_ORIGINAL)?;
    let ends = attribute(tuple, TUPLE_PROTOCOL)?;
    let port = |kind| {
        let bytes = attribute(ends, kind).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
        bytes.map_or(0, u16::from_be_bytes)
    };
    let tcp = attribute(body, PROTOCOL_STATE).and_then(|state| attribute(state, STATE_TCP));
    let (client, asked) = (address(tuple, ADDRESS_SOURCE)?, address(tuple, ADDRESS_DESTINATION)?);
    let (client, asked) = ((client, port(PORT_SOURCE)), (asked, port(PORT_DESTINATION)));
    let end = |(address, port)| SocketAddrV6::new(address, port, 0, 0);
    let four = |(address, port)| SocketAddrV4::new(opposite(address).unwrap_or(Ipv4Addr::UNSPECIFIED), port);
    let flow = Flow {
        protocol: *attribute(ends, PROTOCOL_NUMBER)?.first()?,
        client: four(client),
        asked: four(asked),
        answers: opposite(address(attribute(body, TUPLE_REPLY)?, ADDRESS_SOURCE)?)?,
        idle_s: attribute(body, TIMEOUT).map_or(0, be32_of),
        state: tcp.and_then(|tcp| attributes(tcp).find(|(kind, _)| *kind == 1)?.1.first().copied()),
        tuple: tuple.to_vec(),
        id: attribute(body, ID)?.to_vec(),
    };
    Some(Flow6 { flow, client: end(client), asked: end(asked) })
}

#[cfg(test)]
mod tests {
    use super::super::checksum;
    use super::*;

    #[test]
    fn what_prods_is_a_whole_packet() {
        let (from, to) = ("[fd00::2]:80".parse().unwrap(), "[fd00::3]:40000".parse().unwrap());
        for (prod, flags) in [(Prod::Inside, 3), (Prod::Outside, 16)] {
            let packet = prodding(from, to, prod);
            assert_eq!((packet.len(), packet[40 + 13]), (60, flags));
            let summed = [&packet[8..40], &[0, 0, 0, 20, 0, 0, 0, 6], &packet[40..]].concat();
            assert_eq!(checksum(&summed), 0, "a right checksum makes the sum 0");
        }
    }
}
