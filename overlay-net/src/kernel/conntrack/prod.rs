//! What clients are prodded by: a TCP segment without data, with numbers that are not their connection's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6};

use super::Prod;
use crate::config::Protocol;
use crate::kernel::NetNs;

/// A namespace's raw sockets, opened when they are needed.
pub(super) struct Prodder<'a> {
    namespace: &'a NetNs,
    prod: Prod,
    four: Option<OwnedFd>,
    six: Option<OwnedFd>,
}

impl<'a> Prodder<'a> {
    pub(super) fn new(namespace: &'a NetNs, prod: Prod) -> Prodder<'a> {
        Prodder { namespace, prod, four: None, six: None }
    }

    /// Prods one client, as if by the one whom it asked for. One that has no way any more is told by nobody.
    pub(super) fn prod(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        let Some(packet) = packet(from, to, self.prod) else { return Ok(()) };
        let (family, known) = match to {
            SocketAddr::V4(_) => (AddressFamily::Inet, &mut self.four),
            SocketAddr::V6(_) => (AddressFamily::Inet6, &mut self.six),
        };
        let raw = match known {
            Some(raw) => raw,
            None => {
                let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
                let open = || Ok(nix::sys::socket::socket(family, kind, flags, SockProtocol::Raw)?);
                known.insert(self.namespace.visit(open)?)
            }
        };
        let (raw, flags) = (raw.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let sent = match to {
            SocketAddr::V4(to) => {
                let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
                nix::sys::socket::sendto(raw, &packet, &to, flags)
            }
            SocketAddr::V6(to) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, 0));
                nix::sys::socket::sendto(raw, &packet, &to, flags)
            }
        };
        sent.ok();
        Ok(())
    }
}

/// The whole packet; nothing between addresses of different families.
fn packet(from: SocketAddr, to: SocketAddr, prod: Prod) -> Option<Vec<u8>> {
    let (mut packet, pseudo) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => header(from, to),
        (IpAddr::V6(from), IpAddr::V6(to)) => header6(from, to),
        _ => return None,
    };
    packet.extend(segment((from.port(), to.port()), prod, pseudo));
    Some(packet)
}

/// An IPv4 header, and what of it the segment's checksum is of.
fn header(from: Ipv4Addr, to: Ipv4Addr) -> (Vec<u8>, Vec<u8>) {
    let addresses = [from.octets(), to.octets()].concat();
    // Version 4 and 5 words; the kernel fills in length, identification and checksum; it lives for 64 hops.
    let first = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, Protocol::Tcp.number(), 0, 0];
    let last = [0, Protocol::Tcp.number(), 0, 20];
    ([&first[..], &addresses].concat(), [&addresses[..], &last].concat())
}

/// The same for IPv6.
fn header6(from: Ipv6Addr, to: Ipv6Addr) -> (Vec<u8>, Vec<u8>) {
    let addresses = [from.octets(), to.octets()].concat();
    // Version 6, 20 bytes of TCP, 64 hops.
    let first = [0x60, 0, 0, 0, 0, 20, Protocol::Tcp.number(), 64];
    let last = [0, 0, 0, 20, 0, 0, 0, Protocol::Tcp.number()];
    ([&first[..], &addresses].concat(), [&addresses[..], &last].concat())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes before the segment, and what of it its checksum is of, at the end of which the kernel's numbers stand.
    #[track_caller]
    fn check(from: &str, to: &str, header: usize, addresses: std::ops::Range<usize>, last: &[u8]) {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        for (prod, flags) in [(Prod::Inside, 3), (Prod::Outside, 16)] {
            let packet = packet(from, to, prod).unwrap();
            assert_eq!((packet.len(), packet[header + 13]), (header + 20, flags));
            let summed = [&packet[addresses.clone()], last, &packet[header..]].concat();
            assert_eq!(checksum(&summed), 0, "a right checksum makes the sum 0");
        }
    }

    #[test]
    fn what_prods_is_a_whole_packet() {
        check("10.0.0.2:80", "10.0.0.3:40000", 20, 12..20, &[0, 6, 0, 20]);
        check("[fd00::2]:80", "[fd00::3]:40000", 40, 8..40, &[0, 0, 0, 20, 0, 0, 0, 6]);
        assert_eq!(packet("10.0.0.2:80".parse().unwrap(), "[fd00::3]:1".parse().unwrap(), Prod::Inside), None);
        assert_eq!(checksum(&[0xff; 40]), 0);
    }
}
