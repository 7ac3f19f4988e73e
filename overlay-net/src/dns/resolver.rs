//! One query, one decision. Pure: the zone, the task's view and the packet decide, nothing else.

use std::net::Ipv4Addr;

use super::wire::{A, ANY, Bad, Code, PTR, Query};
use super::zone::{Known, Reverse, View, Zone};

/// What to do with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask the upstreams, with the packet as it is.
    Forward,
    /// Say nothing.
    Ignore,
}

/// How the packet came, and so how long the answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// In a stream.
    Tcp,
}

/// Decides about a packet. `turn` rotates the order of addresses.
#[must_use]
pub fn resolve(zone: &Zone, view: &View, packet: &[u8], transport: Transport, turn: usize) -> Decision {
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Bad::Ignore) => return Decision::Ignore,
        Err(Bad::Answer(reply)) => return Decision::Reply(reply),
    };
    let limit = match transport {
        Transport::Udp => query.udp_limit,
        Transport::Tcp => usize::from(u16::MAX),
    };
    if query.internet {
        if let Some(address) = reverse_address(&query.name) {
            match zone.reverse(view, address) {
                Reverse::Name(name) if query.kind == PTR || query.kind == ANY => {
                    return Decision::Reply(query.pointer(name));
                }
                Reverse::Name(_) => return Decision::Reply(query.empty(Code::NoError)),
                Reverse::Unused => return Decision::Reply(query.empty(Code::NoSuchName)),
                Reverse::Foreign => {}
            }
        } else if let Known::Name(addresses) = zone.look_up(view, &query.name) {
            // AAAA and the rest of a name that exists: no such records, which is not the same as no such name.
            return Decision::Reply(match query.kind {
                A | ANY => query.addresses(addresses, turn, limit),
                _ => query.empty(Code::NoError),
            });
        } else if !query.name.is_empty() && !query.name.contains('.') {
            return Decision::Reply(query.empty(Code::NoSuchName));
        }
    }
    if view.upstreams.is_empty() {
        return Decision::Reply(query.empty(Code::NoSuchName));
    }
    Decision::Forward
}

/// The address in a name of `in-addr.arpa`.
fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut labels = name.strip_suffix(".in-addr.arpa")?.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = labels.next()?.parse().ok()?;
    }
    labels.next().is_none().then(|| octets.into())
}

/// What a client is told when no upstream answered.
#[must_use]
pub(crate) fn failure(packet: &[u8]) -> Option<Vec<u8>> {
    Query::parse(packet).ok().map(|query| query.empty(Code::ServerFailure))
}
