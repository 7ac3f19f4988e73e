//! One query, one decision. Pure: the zone, the task's view and the packet decide, nothing else.

use std::net::IpAddr;

use super::wire::{A, AAAA, ANY, Bad, Code, PTR, Query, SRV};
use super::zone::{Known, Reverse, Upstream, View, Zone};

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
        let found = match reverse_address(&query.name) {
            Some(address) => reversed(zone, view, address, &query, limit),
            None => named(zone, view, &query, turn, limit),
        };
        if let Some(reply) = found {
            return Decision::Reply(reply);
        }
    }
    if view.upstream == Upstream::Nowhere {
        return Decision::Reply(query.empty(Code::NoSuchName));
    }
    Decision::Forward
}

/// What we say of an address; nothing if it is not ours.
fn reversed(zone: &Zone, view: &View, address: IpAddr, query: &Query<'_>, limit: usize) -> Option<Vec<u8>> {
    match zone.reverse(view, address) {
        Reverse::Name(name) if matches!(query.kind, PTR | ANY) => Some(query.pointer(name, limit)),
        Reverse::Name(_) => Some(query.empty(Code::NoError)),
        Reverse::Unused => Some(query.empty(Code::NoSuchName)),
        Reverse::Foreign => None,
    }
}

/// What we say of a name; nothing if it is not ours. A name that exists without the asked kind of record has none, which
/// is not the same as that there is no such name.
fn named(zone: &Zone, view: &View, query: &Query<'_>, turn: usize, limit: usize) -> Option<Vec<u8>> {
    match zone.look_up(view, &query.name) {
        Known::Name(addresses) if matches!(query.kind, A | AAAA | ANY) => Some(query.addresses(addresses, turn, limit)),
        Known::Places(port, places) if matches!(query.kind, SRV | ANY) => Some(query.places(port, places, turn, limit)),
        Known::Name(_) | Known::Places(..) => Some(query.empty(Code::NoError)),
        Known::Missing => Some(query.empty(Code::NoSuchName)),
        Known::Foreign => None,
    }
}

/// The address in a name of `in-addr.arpa` or `ip6.arpa`.
pub(super) fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let mut address = [0; 4];
        fill(&mut address, octets, 10)?;
        return Some(IpAddr::from(address));
    }
    let mut nibbles = [0; 32];
    fill(&mut nibbles, name.strip_suffix(".ip6.arpa")?, 16)?;
    let mut address = [0; 16];
    for (octet, pair) in address.iter_mut().zip(nibbles.chunks_exact(2)) {
        // A digit each; more would not be an address.
        *octet = if pair.iter().all(|nibble| *nibble < 16) { pair[0] << 4 | pair[1] } else { return None };
    }
    Some(IpAddr::from(address))
}

/// Fills places from the last to the first with the numbers of a name's labels, one for each.
fn fill(places: &mut [u8], labels: &str, radix: u32) -> Option<()> {
    let mut labels = labels.split('.');
    for place in places.iter_mut().rev() {
        let label = labels.next().filter(|label| label.bytes().all(|byte| byte.is_ascii_alphanumeric()))?;
        *place = u8::from_str_radix(label, radix).ok()?;
    }
    labels.next().is_none().then_some(())
}

/// What a client is told when no upstream answered.
#[must_use]
pub(crate) fn failure(packet: &[u8]) -> Option<Vec<u8>> {
    Query::parse(packet).ok().map(|query| query.empty(Code::ServerFailure))
}
