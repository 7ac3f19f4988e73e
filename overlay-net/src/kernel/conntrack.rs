//! Connections as the kernel's connection tracking knows them: listed, forgotten, and their clients prodded.
//!
//! Only connections whose destination was translated are of interest: those through virtual addresses and published
//! ports. A forgotten one has no translation any more, and what its client sends next is looked at like the beginning
//! of something new: it goes to somebody who serves. For a datagram that is all that is needed. A segment from the
//! middle of a TCP connection is answered there by a reset, with the right numbers, since nobody knows the connection.
//! A client that only waits sends nothing, and so nobody would tell it: it is prodded into saying where it stands.

mod prod;

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::SockProtocol;

use self::prod::Prodder;
use super::netlink::{DUMP, Message, Reply, Socket, attributes, be32_of, ip_of};
use super::netns::NetNs;
use super::readback::attribute;
use crate::config::Protocol;

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`, `IPCTNL_MSG_CT_GET_STATS`.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const GET_STATS: u16 = SUBSYSTEM | 5;
/// `CTA_STATS_GLOBAL_ENTRIES`.
const STATS_ENTRIES: u16 = 1;
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
/// `CTA_IP_V4_SRC`, `CTA_IP_V4_DST`; those of IPv6 are two more.
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const OF_IPV6: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;
const STATE_TCP: u16 = 1;
/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 32;
/// `AF_UNSPEC`, `AF_INET`, `AF_INET6`, as netfilter's messages have them.
const ANY: u8 = 0;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
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
    pub client: SocketAddr,
    /// Whom it asked for.
    pub asked: SocketAddr,
    /// Who answers.
    pub answers: IpAddr,
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

    /// How many connections the namespace has, translated or not.
    fn count(&mut self) -> io::Result<u32> {
        let replies = self.socket.request(Message::new(GET_STATS, 0, &[ANY, 0, 0, 0]))?;
        let entries = replies.iter().find_map(|reply| attribute(reply.body.get(4..)?, STATS_ENTRIES));
        entries.map(be32_of).ok_or_else(|| io::Error::other("no number of connections"))
    }

    /// The translated connections that `wanted` holds for, IPv4 and IPv6. The kernel walks its whole table, which all
    /// namespaces share: some milliseconds, unless this namespace has no connections.
    ///
    /// # Errors
    /// When the kernel refuses the list.
    pub fn list(&mut self, wanted: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        if self.count()? == 0 {
            return Ok(Vec::new());
        }
        let mut message = Message::new(GET, DUMP, &[ANY, 0, 0, 0]);
        message.put_be32(STATUS, TRANSLATED).put_be32(STATUS_MASK, TRANSLATED);
        let mut found = Vec::new();
        self.socket.walk(message, |reply| found.extend(flow(&reply).filter(&wanted)))?;
        Ok(found)
    }

    /// Forgets connections, and prods the clients that may wait for an answer.
    pub(crate) fn reset(&mut self, flows: &[Flow], prod: Prod) -> io::Result<()> {
        flows.iter().try_for_each(|flow| self.forget(flow))?;
        let mut waiting = flows.iter().filter(|flow| flow.client_waits()).take(PRODS_MAX).peekable();
        if waiting.peek().is_none() {
            return Ok(());
        }
        let mut prodder = Prodder::new(&self.namespace, prod);
        waiting.try_for_each(|flow| prodder.prod(flow.asked, flow.client))
    }

    fn forget(&mut self, flow: &Flow) -> io::Result<()> {
        let family = if flow.client.is_ipv4() { IPV4 } else { IPV6 };
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

fn flow(reply: &Reply) -> Option<Flow> {
    let body = reply.body.get(4..)?;
    if reply.kind & 0xff00 != SUBSYSTEM {
        return None;
    }
    let (shift, length) = match reply.body[0] {
        IPV4 => (0, 4),
        IPV6 => (OF_IPV6, 16),
        _ => return None,
    };
    let address = |tuple: &[u8], kind| {
        let bytes = attribute(attribute(tuple, TUPLE_ADDRESSES)?, kind + shift)?;
        ip_of(bytes).filter(|_| bytes.len() == length)
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
        client: SocketAddr::new(address(tuple, SOURCE)?, port(PORT_SOURCE)),
        asked: SocketAddr::new(address(tuple, DESTINATION)?, port(PORT_DESTINATION)),
        answers: address(attribute(body, TUPLE_REPLY)?, SOURCE)?,
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
    fn what_is_cut_short_is_no_flow() {
        let Ok(namespace) = NetNs::anonymous() else {
            return println!("skipped: cannot make a network namespace; root is needed");
        };
        let mut connections = Connections::open(&namespace).unwrap();
        assert_eq!(connections.count().unwrap(), 0);
        assert_eq!(connections.list(|_| true).unwrap(), []);
        // Pieces of what the kernel says.
        for (family, shift, whole) in [(IPV4, 0, vec![10, 0, 0, 1]), (IPV6, OF_IPV6, vec![0xfd; 16])] {
            let message = |last: &[u8]| {
                let mut message = Message::new(GET, 0, &[family, 0, 0, 0]);
                for tuple in [TUPLE_ORIGINAL, TUPLE_REPLY] {
                    message.nest(tuple, |m| {
                        m.nest(TUPLE_ADDRESSES, |m| {
                            m.put(SOURCE + shift, &whole).put(DESTINATION + shift, last);
                        });
                        m.nest(TUPLE_PROTOCOL, |m| {
                            m.put(PROTOCOL_NUMBER, &[6]);
                        });
                    });
                }
                message.put(ID, &[0, 0, 0, 1]);
                message
            };
            let found = flow(&Reply::of(GET, message(&whole).body())).unwrap();
            assert_eq!((found.client, found.asked), (found.asked, SocketAddr::new(found.answers, 0)));
            let cut = message(&whole[1..]);
            for length in 0..=cut.body().len() {
                assert_eq!(flow(&Reply::of(GET, &cut.body()[..length])), None);
            }
        }
    }
}
