//! WireGuard devices over generic netlink: keys, ports and peers. Links, addresses and routes are `links`' business.
//!
//! A private key is made here, goes to the kernel, and is nowhere else: not on a disk, and not in this process afterwards.
//! The kernel works the public key out.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use nix::sys::socket::SockProtocol;
use rand::TryRng;
use zeroize::{Zeroize, Zeroizing};

use super::links::Links;
use super::netlink::{DUMP, Message, Reply, Socket, attributes, ipv4_of, str_of};
use super::netns::NetNs;
use crate::plan::seal::{Key, Peer};

// linux/genetlink.h: the family of families.
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;
// linux/wireguard.h.
const NAME: &str = "wireguard";
const VERSION: u8 = 1;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_LINK: u16 = 1;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_HANDSHAKE: u16 = 6;
const PEER_ALLOWED: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const UPDATE_ONLY: u32 = 4;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;
/// Seconds between packets to a peer that is spoken to although there is nothing to send.
const KEEPALIVE: u16 = 5;
const FAMILY_4: u16 = libc::AF_INET as u16;

/// A handle on the WireGuard devices of one namespace.
#[derive(Debug)]
pub(crate) struct Wireguard {
    socket: Socket,
    family: u16,
}

/// What a device has of its own.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Public key; zeros for none.
    pub(crate) key: Key,
    /// UDP port.
    pub(crate) port: u16,
    /// The peers.
    pub(crate) peers: Vec<(Key, Peer)>,
}

/// Finds out whether this kernel can make WireGuard devices, by making one in a namespace of its own.
pub(crate) fn possible() -> io::Result<()> {
    let probe = NetNs::anonymous()?;
    let mut links = Links::open(&probe)?;
    links.create_wireguard_into(&probe, "probe", 1420).map_err(explain)?;
    Wireguard::open(&probe)?;
    links.delete("probe")
}

/// Says what it means that the kernel does not know such a device.
pub(crate) fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOENT) => {
            io::Error::new(io::ErrorKind::Unsupported, "the kernel of this host has no WireGuard")
        }
        _ => error,
    }
}

fn message(family: u16, command: u8, version: u8, flags: u16) -> Message {
    Message::new(family, flags, &[command, version, 0, 0])
}

fn key_message(family: u16, link: u32, private: Option<&Key>, port: u16) -> Message {
    let mut message = message(family, SET_DEVICE, VERSION, 0);
    message.put_u32(DEVICE_LINK, link);
    if let Some(private) = private {
        message.put(DEVICE_PRIVATE_KEY, private);
    }
    message.put(DEVICE_PORT, &port.to_ne_bytes());
    message
}

/// What is to become of a peer.
enum Fate<'a> {
    Remove,
    Set(&'a Peer),
    /// The same without its address. While the kernel replaces that, the peer has none, and what it sends is dropped.
    Change(&'a Peer),
}

fn peer_message(family: u16, link: u32, key: &Key, fate: &Fate<'_>) -> Message {
    let mut message = message(family, SET_DEVICE, VERSION, 0);
    message.put_u32(DEVICE_LINK, link).nest(DEVICE_PEERS, |m| {
        m.nest(0, |m| {
            m.put(PEER_PUBLIC_KEY, key);
            let (peer, flags) = match fate {
                Fate::Remove => {
                    m.put_u32(PEER_FLAGS, REMOVE);
                    return;
                }
                Fate::Set(peer) => (peer, REPLACE_ALLOWED),
                Fate::Change(peer) => (peer, UPDATE_ONLY),
            };
            m.put_u32(PEER_FLAGS, flags);
            if let Some(endpoint) = peer.endpoint {
                m.put(PEER_ENDPOINT, &socket_address(endpoint));
            }
            m.put(PEER_KEEPALIVE, &(if peer.eager { KEEPALIVE } else { 0 }).to_ne_bytes());
            if let (Fate::Set(_), Some(address)) = (fate, peer.address) {
                m.nest(PEER_ALLOWED, |m| {
                    m.nest(0, |m| {
                        m.put(ALLOWED_FAMILY, &FAMILY_4.to_ne_bytes());
                        m.put(ALLOWED_ADDRESS, &address.octets()).put(ALLOWED_PREFIX, &[32]);
                    });
                });
            }
        });
    });
    message
}

/// `struct sockaddr_in`.
fn socket_address(address: SocketAddrV4) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&FAMILY_4.to_ne_bytes());
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&address.ip().octets());
    bytes
}

fn parse_socket_address(bytes: &[u8]) -> Option<SocketAddrV4> {
    let family = u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    (family == FAMILY_4).then_some(SocketAddrV4::new(ipv4_of(bytes.get(4..8)?)?, port))
}

fn key_of(value: &[u8]) -> Option<Key> {
    value.try_into().ok()
}

/// The address of an entry that is for nothing else.
fn whole_address(entry: &[u8]) -> Option<Ipv4Addr> {
    let value = |wanted| attributes(entry).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let whole = value(ALLOWED_PREFIX)? == [32] && value(ALLOWED_FAMILY)? == FAMILY_4.to_ne_bytes();
    ipv4_of(value(ALLOWED_ADDRESS)?).filter(|_| whole)
}

/// A peer, and how many addresses it has there.
fn parse_peer(value: &[u8]) -> Option<(Key, Peer, usize)> {
    let (mut key, mut peer, mut addresses) = (None, Peer::default(), 0);
    for (kind, value) in attributes(value) {
        match kind {
            PEER_PUBLIC_KEY => key = key_of(value),
            PEER_ENDPOINT => peer.endpoint = parse_socket_address(value),
            PEER_KEEPALIVE => peer.eager = value.iter().any(|byte| *byte != 0),
            PEER_HANDSHAKE => {
                let seconds = value.get(0..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, i64::from_ne_bytes);
                peer.met = u64::try_from(seconds).unwrap_or(0);
            }
            PEER_ALLOWED => {
                for (_, entry) in attributes(value) {
                    peer.address = whole_address(entry);
                    addresses += 1;
                }
            }
            _ => {}
        }
    }
    Some((key?, peer, addresses))
}

/// What the parts of a listing say together. One peer may be in two of them: where a part is full, the first says all but
/// its addresses, and the next one the addresses alone.
fn parse_device(parts: &[Reply]) -> Found {
    let mut found = Found::default();
    let mut peers: Vec<(Key, Peer, usize)> = Vec::new();
    for part in parts {
        for (kind, value) in attributes(part.body.get(4..).unwrap_or_default()) {
            match kind {
                DEVICE_PUBLIC_KEY => found.key = key_of(value).unwrap_or_default(),
                DEVICE_PORT => found.port = value.try_into().map_or(0, u16::from_ne_bytes),
                DEVICE_PEERS => {
                    for (key, peer, addresses) in attributes(value).filter_map(|(_, value)| parse_peer(value)) {
                        match peers.last_mut().filter(|(known, ..)| *known == key) {
                            Some((_, known, count)) => {
                                known.address = known.address.or(peer.address);
                                *count += addresses;
                            }
                            None => peers.push((key, peer, addresses)),
                        }
                    }
                }
                _ => {}
            }
        }
    }
    // None of ours has more than one.
    let only =
        |(key, peer, count): (Key, Peer, usize)| (key, Peer { address: peer.address.filter(|_| count == 1), ..peer });
    found.peers = peers.into_iter().map(only).collect();
    found
}

impl Wireguard {
    /// Opens a handle on a namespace.
    ///
    /// # Errors
    /// `Unsupported` when the kernel has no WireGuard.
    pub(crate) fn open(namespace: &NetNs) -> io::Result<Wireguard> {
        let mut socket = namespace.visit(|| Socket::open(SockProtocol::NetlinkGeneric))?.secret();
        let mut question = message(CONTROL, CONTROL_GET_FAMILY, 1, 0);
        question.put_str(CONTROL_FAMILY_NAME, NAME);
        let replies = socket.request(question).map_err(explain)?;
        let family = replies.iter().find_map(|reply| {
            let all = || attributes(reply.body.get(4..).unwrap_or_default());
            all().find(|(kind, value)| *kind == CONTROL_FAMILY_NAME && str_of(value) == NAME)?;
            let (_, id) = all().find(|(kind, _)| *kind == CONTROL_FAMILY_ID)?;
            id.try_into().ok().map(u16::from_ne_bytes)
        });
        match family {
            Some(family) => Ok(Wireguard { socket, family }),
            None => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel does not say what WireGuard's number is"))
            }
        }
    }

    /// What the device with this number has.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn device(&mut self, link: u32) -> io::Result<Found> {
        let mut question = message(self.family, GET_DEVICE, VERSION, DUMP);
        question.put_u32(DEVICE_LINK, link);
        let mut parts = self.socket.request(question)?;
        let found = parse_device(&parts);
        // The private key is in there.
        parts.iter_mut().for_each(|part| part.body.zeroize());
        Ok(found)
    }

    /// Gives a device a new key pair, and its port.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn set_new_key(&mut self, link: u32, port: u16) -> io::Result<()> {
        let mut private = Zeroizing::new([0u8; 32]);
        rand::rngs::SysRng.try_fill_bytes(&mut private[..]).map_err(io::Error::other)?;
        self.socket.request(key_message(self.family, link, Some(&private), port)).map(drop)
    }

    /// Sets a device's port.
    ///
    /// # Errors
    /// `AddrInUse` when somebody else has it, or what the kernel says.
    pub(crate) fn set_port(&mut self, link: u32, port: u16) -> io::Result<()> {
        self.socket.request(key_message(self.family, link, None, port)).map(drop)
    }

    /// Lets a device know a peer.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn set_peer(&mut self, link: u32, key: &Key, peer: &Peer) -> io::Result<()> {
        self.socket.request(peer_message(self.family, link, key, &Fate::Set(peer))).map(drop)
    }

    /// Tells a device something else of a peer than before; its address stays.
    ///
    /// # Errors
    /// What the kernel says. A peer that the device does not know stays unknown.
    pub(crate) fn change_peer(&mut self, link: u32, key: &Key, peer: &Peer) -> io::Result<()> {
        self.socket.request(peer_message(self.family, link, key, &Fate::Change(peer))).map(drop)
    }

    /// Lets a device forget a peer; one that it does not know is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn delete_peer(&mut self, link: u32, key: &Key) -> io::Result<()> {
        self.socket.request(peer_message(self.family, link, key, &Fate::Remove)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [7; 32];

    fn peer() -> Peer {
        let address = Ipv4Addr::new(10, 77, 0, 2);
        Peer { address: Some(address), endpoint: Some(SocketAddrV4::new(address, 4790)), eager: true, met: 0 }
    }

    /// Bytes as `wg set wg0 peer … allowed-ips 10.77.0.2/32 endpoint 10.77.0.2:4790 persistent-keepalive 5` sends them,
    /// but that the device is named by its number here.
    #[test]
    fn a_peer_is_said_as_the_kernel_reads_it() {
        let message = peer_message(29, 3, &KEY, &Fate::Set(&peer()));
        let mut wanted: Vec<u8> = vec![1, 1, 0, 0];
        wanted.extend([8, 0, 1, 0, 3, 0, 0, 0]);
        wanted.extend([112, 0, 8, 0x80, 108, 0, 0, 0x80, 36, 0, 1, 0]);
        wanted.extend(KEY);
        wanted.extend([8, 0, 3, 0, 2, 0, 0, 0]);
        wanted.extend([20, 0, 4, 0, 2, 0, 0x12, 0xb6, 10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        wanted.extend([6, 0, 5, 0, 5, 0, 0, 0]);
        wanted.extend([32, 0, 9, 0x80, 28, 0, 0, 0x80]);
        wanted.extend([6, 0, 1, 0, 2, 0, 0, 0, 8, 0, 2, 0, 10, 77, 0, 2, 5, 0, 3, 0, 32, 0, 0, 0]);
        assert_eq!(message.body(), wanted);
        let message = peer_message(29, 3, &KEY, &Fate::Change(&peer()));
        assert!(message.body().ends_with(&[6, 0, 5, 0, 5, 0, 0, 0]), "its address is not touched");
        let message = peer_message(29, 3, &KEY, &Fate::Remove);
        assert!(message.body().ends_with(&[8, 0, 3, 0, 1, 0, 0, 0]));
        let message = key_message(29, 3, Some(&KEY), 4790);
        assert!(message.body().ends_with(&[6, 0, 6, 0, 0xb6, 0x12, 0, 0]));
    }

    fn listing(fill: impl FnOnce(&mut Message)) -> Reply {
        let mut reply = message(29, GET_DEVICE, VERSION, 0);
        fill(&mut reply);
        Reply::of(29, reply.body())
    }

    #[test]
    fn a_listing_says_what_was_set_and_who_was_met() {
        let said = peer_message(29, 3, &KEY, &Fate::Set(&peer()));
        let reply = Reply::of(29, said.body());
        assert_eq!(parse_device(std::slice::from_ref(&reply)).peers, [(KEY, peer())]);
        let mut handshake = 1_700_000_000i64.to_ne_bytes().to_vec();
        handshake.extend([0; 8]);
        let found = parse_device(&[listing(|m| {
            m.put(DEVICE_PUBLIC_KEY, &[9; 32]).put(DEVICE_PORT, &4790u16.to_ne_bytes()).nest(DEVICE_PEERS, |m| {
                m.nest(0, |m| {
                    m.put(PEER_PUBLIC_KEY, &KEY).put(PEER_HANDSHAKE, &handshake);
                });
            });
        })]);
        assert_eq!((found.key, found.port, found.peers[0].1.met), ([9; 32], 4790, 1_700_000_000));
        // The rest of a long list comes in another part: that of a peer, too.
        assert_eq!(parse_device(&[reply.clone(), reply.clone()]).peers, [(KEY, Peer { address: None, ..peer() })]);
        let part = |addresses: &[Ipv4Addr]| {
            listing(|m| {
                m.nest(DEVICE_PEERS, |m| {
                    m.nest(0, |m| {
                        m.put(PEER_PUBLIC_KEY, &KEY).nest(PEER_ALLOWED, |m| {
                            for address in addresses {
                                m.nest(0, |m| {
                                    m.put(ALLOWED_FAMILY, &FAMILY_4.to_ne_bytes());
                                    m.put(ALLOWED_ADDRESS, &address.octets()).put(ALLOWED_PREFIX, &[32]);
                                });
                            }
                        });
                    });
                });
            })
        };
        let [one, other] = [2, 3].map(|last| Ipv4Addr::new(10, 77, 0, last));
        let address = |parts: &[&[Ipv4Addr]]| {
            let parts: Vec<Reply> = parts.iter().map(|addresses| part(addresses)).collect();
            parse_device(&parts).peers[0].1.address
        };
        assert_eq!(address(&[&[], &[one]]), Some(one));
        assert_eq!(address(&[&[one], &[]]), Some(one));
        assert_eq!((address(&[&[one], &[other]]), address(&[&[one, other]]), address(&[&[]])), (None, None, None));
    }

    #[test]
    fn what_is_malformed_is_nothing() {
        for bytes in [&[][..], &[0; 3], &[0, 0, 0, 0, 9, 0], &[0, 0, 0, 0, 40, 0, 4, 0, 1]] {
            assert_eq!(parse_device(&[Reply::of(29, bytes)]), Found::default());
        }
        for bytes in [&[][..], &[2, 0], &[2, 0, 1], &[2, 0, 1, 2, 3], &[10, 0, 1, 2, 3, 4, 5, 6]] {
            assert_eq!(parse_socket_address(bytes), None);
            assert_eq!(whole_address(bytes), None);
            assert_eq!(parse_peer(bytes), None);
        }
    }

    #[test]
    fn a_kernel_without_it_says_so() {
        match possible() {
            Ok(()) => println!("this kernel has WireGuard"),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => println!("skipped: root is needed"),
            Err(error) => assert_eq!(error.to_string(), "the kernel of this host has no WireGuard"),
        }
    }
}
