//! The bytes inside a sealed packet: Shoal's own form of foca's messages, fixed by hand so that a newer library
//! cannot change what two releases say to each other.
//!
//! ```text
//! packet  = header [ count u16, count x member ]
//!         | header of kind 10 to 13, exchange
//! header  = kind u8, sender's incarnation u16, sender peer, receiver peer, body of the kind
//! peer    = len u8, node id, flags u8 (6: IPv6, 4: IPv4, +128: left), address, port u16, generation, bump
//! member  = peer, incarnation u16, state u8
//! exchange = 10: sum u64, count u16 | 11: 256 x u32 | 12: 256 bits | 13: count u16, count x member
//! ```
//! Kinds 0 to 9 are foca's, the exchanges are those of `swim::sync`. A release that does not know a kind refuses the
//! packet as malformed and counts it, nothing else: hosts that do not know exchanges live beside those that do.
//! Integers are big-endian, `generation` and `bump` LEB128. Everything read here was authenticated already, and is
//! nevertheless checked: ids and addresses keep [`Identity::validate`]'s bounds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};

use crate::identity::{Identity, MAX_NODE_ID_LEN, PeerId};
use crate::seal::MAX_PACKET;

const LEFT: u8 = 0x80;
/// The kinds of a ping, of gossip, and of the exchanges, which are gossip with another body.
const PING: u8 = 0;
const GOSSIP: u8 = 8;
const ROOT: u8 = 10;
const BUCKETS: u8 = 11;
const WANT: u8 = 12;
const ENTRIES: u8 = 13;

/// Parts of the member table that exchanges tell apart: as many as have their hashes in one packet.
pub(crate) const BUCKET_COUNT: usize = 256;

/// A packet that this format cannot express or that breaks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside of a field.
    #[error("the packet ends too early")]
    Truncated,
    /// There are bytes behind the last field.
    #[error("the packet has bytes that belong to nothing")]
    Trailing,
    /// A field has a value that the format does not know.
    #[error("field `{0}` is out of bounds")]
    Field(&'static str),
    /// There is no room left for this item in the packet that is being built.
    #[error("the packet is full")]
    Full,
}

/// foca's codec; it keeps no state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WireCodec;

/// A packet, read whole.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// Of an exchange: that of gossip.
    pub(crate) header: Header<PeerId>,
    pub(crate) members: Vec<Member<PeerId>>,
    pub(crate) exchange: Option<Exchange>,
}

/// What two hosts say to each other to compare their tables; see `swim::sync`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// The sum of all members' hashes, and their number.
    Root { sum: u64, count: u16 },
    /// The upper halves of the sums of each bucket.
    Buckets(Box<[u32; BUCKET_COUNT]>),
    /// Buckets that the receiver is asked for.
    Want(Wanted),
    /// The members of some buckets.
    Entries,
}

/// A set of buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted(pub(crate) [u8; BUCKET_COUNT / 8]);

impl Wanted {
    pub(crate) fn insert(&mut self, bucket: u8) {
        self.0[usize::from(bucket / 8)] |= 1 << (bucket % 8);
    }

    pub(crate) fn contains(&self, bucket: u8) -> bool {
        self.0[usize::from(bucket / 8)] & (1 << (bucket % 8)) != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == Self::default().0
    }
}

impl Exchange {
    fn kind(&self) -> u8 {
        match self {
            Exchange::Root { .. } => ROOT,
            Exchange::Buckets(_) => BUCKETS,
            Exchange::Want(_) => WANT,
            Exchange::Entries => ENTRIES,
        }
    }
}

impl Packet {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader(bytes);
        let kind = reader.u8()?;
        let header = reader.header(if (ROOT..=ENTRIES).contains(&kind) { GOSSIP } else { kind })?;
        let exchange = match kind {
            ROOT => Some(Exchange::Root { sum: u64::from_be_bytes(reader.bytes()?), count: reader.u16()? }),
            BUCKETS => {
                let mut sums = Box::new([0; BUCKET_COUNT]);
                for sum in sums.iter_mut() {
                    *sum = u32::from_be_bytes(reader.bytes()?);
                }
                Some(Exchange::Buckets(sums))
            }
            WANT => Some(Exchange::Want(Wanted(reader.bytes()?))),
            ENTRIES => Some(Exchange::Entries),
            _ => None,
        };
        let mut members = Vec::new();
        if matches!(exchange, None | Some(Exchange::Entries)) && !reader.0.is_empty() {
            for _ in 0..reader.u16()? {
                members.push(reader.member()?);
            }
        }
        if reader.0.is_empty() { Ok(Self { header, members, exchange }) } else { Err(WireError::Trailing) }
    }

    pub(crate) fn write(&self) -> Result<Vec<u8>, WireError> {
        let mut out = Vec::with_capacity(128);
        put_header(&mut out, &self.header)?;
        if let Some((kind, exchange)) = out.first_mut().zip(self.exchange.as_ref()) {
            *kind = exchange.kind();
        }
        match &self.exchange {
            Some(Exchange::Root { sum, count }) => {
                out.put_u64(*sum);
                out.put_u16(*count);
            }
            Some(Exchange::Buckets(sums)) => sums.iter().for_each(|sum| out.put_u32(*sum)),
            Some(Exchange::Want(wanted)) => out.put_slice(&wanted.0),
            None | Some(Exchange::Entries) => {
                let count = u16::try_from(self.members.len()).map_err(|_| WireError::Full)?;
                out.put_u16(count);
                for member in &self.members {
                    put_member(&mut out, member)?;
                }
            }
        }
        Ok(out)
    }
}

/// Packets of [`Exchange::Entries`] with these members, as large as packets may be, and at most `most` of them: the
/// last members are left out then.
pub(crate) fn write_entries<'a>(
    header: &Header<PeerId>,
    members: impl Iterator<Item = &'a Member<PeerId>>,
    most: usize,
) -> Result<Vec<Vec<u8>>, WireError> {
    let mut head = Packet { header: header.clone(), members: Vec::new(), exchange: Some(Exchange::Entries) }.write()?;
    let count_at = head.len() - 2;
    head.truncate(count_at);
    let mut packets: Vec<(u16, Vec<u8>)> = Vec::new();
    let mut item = Vec::with_capacity(64);
    for member in members {
        item.clear();
        put_member(&mut item, member)?;
        if packets.last().is_none_or(|(_, packet)| packet.len() + item.len() > MAX_PACKET) {
            if packets.len() == most {
                break;
            }
            let mut packet = Vec::with_capacity(MAX_PACKET);
            packet.put_slice(&head);
            packet.put_u16(0);
            packets.push((0, packet));
        }
        let Some((count, packet)) = packets.last_mut() else { break };
        packet.put_slice(&item);
        *count += 1;
        packet[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
    }
    Ok(packets.into_iter().map(|(_, packet)| packet).collect())
}

/// A packet that this process built, without the deaths of these lives ([`PeerId::life_hash`]). `None` if it tells of none.
pub(crate) fn without_deaths(packet: &[u8], lives: &BTreeSet<u64>) -> Option<Vec<u8>> {
    if lives.is_empty() {
        return None;
    }
    let mut read = Packet::read(packet).ok()?;
    let count = read.members.len();
    read.members.retain(|member| member.state() != State::Down || !lives.contains(&member.id().life_hash()));
    if read.members.len() == count { None } else { read.write().ok() }
}

/// The node and its boot generation that a packet says it comes from, without reading the rest.
pub(crate) fn read_sender(bytes: &[u8]) -> Result<PeerId, WireError> {
    let mut reader = Reader(bytes);
    reader.u8()?;
    reader.u16()?;
    reader.known_peer()
}

/// The sender's incarnation in a packet that this process built.
pub(crate) fn sender_incarnation(packet: &[u8]) -> u16 {
    match packet {
        [_, high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

/// The number of the probe that a packet of this process begins; `None` for other packets.
pub(crate) fn ping_number(packet: &[u8]) -> Option<u8> {
    if *packet.first()? != PING {
        return None;
    }
    match Reader(&packet[1..]).header(PING).ok()?.message {
        Message::Ping(number) => Some(number),
        _ => None,
    }
}

impl foca::Codec<PeerId> for WireCodec {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<PeerId>, buf: impl BufMut) -> Result<(), WireError> {
        let mut item = Vec::with_capacity(96);
        put_header(&mut item, header)?;
        put_whole(&item, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<PeerId>, WireError> {
        take_whole(buf, |reader| {
            let kind = reader.u8()?;
            reader.header(kind)
        })
    }

    fn encode_member(&mut self, member: &Member<PeerId>, buf: impl BufMut) -> Result<(), WireError> {
        let mut item = Vec::with_capacity(64);
        put_member(&mut item, member)?;
        put_whole(&item, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<PeerId>, WireError> {
        take_whole(buf, |reader| reader.member())
    }
}

/// All of `item` or nothing: foca goes on with a packet into which one more item did not fit.
fn put_whole(item: &[u8], mut buf: impl BufMut) -> Result<(), WireError> {
    if buf.remaining_mut() < item.len() {
        return Err(WireError::Full);
    }
    buf.put_slice(item);
    Ok(())
}

/// foca hands over contiguous buffers, so the first chunk is all there is.
fn take_whole<T>(
    mut buf: impl Buf,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, WireError>,
) -> Result<T, WireError> {
    let mut reader = Reader(buf.chunk());
    let before = reader.0.len();
    let item = read(&mut reader)?;
    let used = before - reader.0.len();
    buf.advance(used);
    Ok(item)
}

fn put_header(out: &mut Vec<u8>, header: &Header<PeerId>) -> Result<(), WireError> {
    let (kind, peer, number) = match &header.message {
        Message::Ping(number) => (PING, None, Some(*number)),
        Message::Ack(number) => (1, None, Some(*number)),
        Message::PingReq { target, probe_number } => (2, Some(target), Some(*probe_number)),
        Message::IndirectPing { origin, probe_number } => (3, Some(origin), Some(*probe_number)),
        Message::IndirectAck { target, probe_number } => (4, Some(target), Some(*probe_number)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(origin), Some(*probe_number)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (GOSSIP, None, None),
        Message::TurnUndead => (9, None, None),
        // Custom broadcasts are not used: versions and bodies travel with the store.
        Message::Broadcast => return Err(WireError::Field("kind")),
    };
    out.put_u8(kind);
    out.put_u16(header.src_incarnation);
    put_peer(out, &header.src)?;
    put_peer(out, &header.dst)?;
    if let Some(peer) = peer {
        put_peer(out, peer)?;
    }
    if let Some(number) = number {
        out.put_u8(number);
    }
    Ok(())
}

fn put_member(out: &mut Vec<u8>, member: &Member<PeerId>) -> Result<(), WireError> {
    put_peer(out, member.id())?;
    out.put_u16(member.incarnation());
    out.put_u8(match member.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    });
    Ok(())
}

fn put_peer(out: &mut Vec<u8>, peer: &PeerId) -> Result<(), WireError> {
    let id = peer.node_id().as_bytes();
    let len = u8::try_from(id.len()).ok().filter(|len| usize::from(*len) <= MAX_NODE_ID_LEN);
    out.put_u8(len.ok_or(WireError::Field("node id"))?);
    out.put_slice(id);
    let left = if peer.left { LEFT } else { 0 };
    match peer.identity.addr.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(4 | left);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(6 | left);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(peer.identity.addr.port());
    put_varint(out, peer.identity.generation);
    put_varint(out, u64::from(peer.bump));
    Ok(())
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.bytes()?))
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.bytes()?))
    }

    fn varint(&mut self, name: &'static str) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit only.
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Field(name))
    }

    fn peer(&mut self) -> Result<PeerId, WireError> {
        let len = usize::from(self.u8()?);
        if len > MAX_NODE_ID_LEN {
            return Err(WireError::Field("node id"));
        }
        let (id, rest) = self.0.split_at_checked(len).ok_or(WireError::Truncated)?;
        let node_id = std::str::from_utf8(id).map_err(|_| WireError::Field("node id"))?.to_owned();
        self.0 = rest;
        let flags = self.u8()?;
        let ip = match flags & !LEFT {
            4 => IpAddr::V4(Ipv4Addr::from(self.bytes::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.bytes::<16>()?)),
            _ => return Err(WireError::Field("flags")),
        };
        let addr = SocketAddr::new(ip, self.u16()?);
        let generation = self.varint("generation")?;
        let bump = u32::try_from(self.varint("bump")?).map_err(|_| WireError::Field("bump"))?;
        Ok(PeerId::with(Identity { node_id, addr, generation }, bump, flags & LEFT != 0))
    }

    /// A peer that is somebody: everything but the receiver of an announcement.
    fn known_peer(&mut self) -> Result<PeerId, WireError> {
        let peer = self.peer()?;
        peer.identity.validate().map_err(|_| WireError::Field("identity"))?;
        Ok(peer)
    }

    /// What is behind the kind.
    fn header(&mut self, kind: u8) -> Result<Header<PeerId>, WireError> {
        let src_incarnation = self.u16()?;
        let src = self.known_peer()?;
        let dst = self.peer()?;
        if !(dst.is_anyone() && kind == 6) {
            dst.identity.validate().map_err(|_| WireError::Field("receiver"))?;
        }
        let message = match kind {
            PING => Message::Ping(self.u8()?),
            1 => Message::Ack(self.u8()?),
            2 => Message::PingReq { target: self.known_peer()?, probe_number: self.u8()? },
            3 => Message::IndirectPing { origin: self.known_peer()?, probe_number: self.u8()? },
            4 => Message::IndirectAck { target: self.known_peer()?, probe_number: self.u8()? },
            5 => Message::ForwardedAck { origin: self.known_peer()?, probe_number: self.u8()? },
            6 => Message::Announce,
            7 => Message::Feed,
            GOSSIP => Message::Gossip,
            9 => Message::TurnUndead,
            _ => return Err(WireError::Field("kind")),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn member(&mut self) -> Result<Member<PeerId>, WireError> {
        let id = self.known_peer()?;
        let incarnation = self.u16()?;
        let state = match self.u8()? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(WireError::Field("state")),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(id: &str, addr: &str, generation: u64, bump: u32, left: bool) -> PeerId {
        let identity = Identity { node_id: id.to_owned(), addr: addr.parse().unwrap(), generation };
        PeerId::with(identity, bump, left)
    }

    fn sample() -> Packet {
        let a = peer("a", "10.0.0.1:2377", 7, 0, false);
        let b = peer(&"b".repeat(64), "[2001:db8::1]:1", u64::MAX, u32::MAX, true);
        Packet {
            header: Header {
                src: a.clone(),
                src_incarnation: 513,
                dst: b.clone(),
                message: Message::PingReq { target: a.clone(), probe_number: 9 },
            },
            members: vec![Member::new(b, 3, State::Suspect), Member::new(a, 0, State::Down)],
            exchange: None,
        }
    }

    fn exchanges() -> Vec<Packet> {
        let header = Header { message: Message::Gossip, ..sample().header };
        let mut wanted = Wanted::default();
        wanted.insert(0);
        wanted.insert(255);
        let kinds = [
            Exchange::Root { sum: u64::MAX - 1, count: 7 },
            Exchange::Buckets(Box::new(std::array::from_fn(|at| at as u32 * 77))),
            Exchange::Want(wanted),
        ];
        let packet = |exchange, members| Packet { header: header.clone(), members, exchange: Some(exchange) };
        let mut packets: Vec<Packet> = kinds.into_iter().map(|kind| packet(kind, Vec::new())).collect();
        packets.push(packet(Exchange::Entries, sample().members));
        packets
    }

    #[test]
    fn a_packet_comes_back_as_it_went() {
        let packet = sample();
        let bytes = packet.write().unwrap();
        let read = Packet::read(&bytes).unwrap();
        assert_eq!(read.header, packet.header);
        assert_eq!(read.members, packet.members);
        assert_eq!(sender_incarnation(&bytes), 513);
        assert_eq!(ping_number(&bytes), None);
        let header = Header { message: Message::Ping(9), ..packet.header.clone() };
        let ping = Packet { header, members: vec![], exchange: None };
        assert_eq!(ping_number(&ping.write().unwrap()), Some(9));
        assert_eq!(read_sender(&bytes).unwrap(), packet.header.src);
    }

    #[test]
    fn exchanges_come_back_as_they_went_and_are_no_business_of_focas() {
        for packet in exchanges() {
            let bytes = packet.write().unwrap();
            assert!(bytes.len() <= MAX_PACKET);
            let read = Packet::read(&bytes).unwrap();
            assert_eq!((&read.header, &read.members), (&packet.header, &packet.members));
            assert_eq!(read.exchange, packet.exchange);
            assert_eq!(read_sender(&bytes).unwrap(), packet.header.src);
            assert!(foca::Codec::decode_header(&mut WireCodec, &bytes[..]).is_err());
            let members = usize::from(packet.exchange == Some(Exchange::Entries));
            for len in 0..bytes.len() {
                let cut = Packet::read(&bytes[..len]);
                // Entries without any are a header alone.
                assert!(cut.is_err() || (members == 1 && cut.is_ok_and(|cut| cut.members.is_empty())), "cut at {len}");
            }
            assert!(matches!(Packet::read(&[bytes, vec![0]].concat()), Err(WireError::Trailing)));
        }
        let wanted = Wanted([0x80; 32]);
        assert!(wanted.contains(7) && !wanted.contains(8) && wanted.contains(255));
    }

    #[test]
    fn deaths_can_be_left_out() {
        let packet = sample();
        let bytes = packet.write().unwrap();
        let dead = packet.members[1].id().life_hash();
        let suspect = packet.members[0].id().life_hash();
        assert_eq!(without_deaths(&bytes, &BTreeSet::new()), None);
        assert_eq!(without_deaths(&bytes, &BTreeSet::from([suspect])), None);
        let muted = without_deaths(&bytes, &BTreeSet::from([dead])).unwrap();
        assert_eq!(Packet::read(&muted).unwrap().members, packet.members[..1]);
    }

    #[test]
    fn entries_fill_packets_and_no_more_than_asked() {
        let header = Header { message: Message::Gossip, ..sample().header };
        let ids = (0..100).map(|at| peer(&format!("{at:064}"), "[2001:db8::1]:1", 1, 0, false));
        let members: Vec<_> = ids.map(|id| Member::new(id, 0, State::Alive)).collect();
        assert_eq!(write_entries(&header, [].iter(), 8).unwrap(), Vec::<Vec<u8>>::new());
        let most = write_entries(&header, members.iter(), 3).unwrap();
        let all = write_entries(&header, members.iter(), 100).unwrap();
        assert_eq!(most, all[..3]);
        assert!(all.iter().all(|packet| packet.len() <= MAX_PACKET), "within bounds");
        assert!(all[..all.len() - 1].iter().all(|packet| packet.len() > MAX_PACKET - 100), "and full");
        let read: Vec<_> = all.iter().flat_map(|packet| Packet::read(packet).unwrap().members).collect();
        assert_eq!(read, members);
    }

    #[test]
    fn every_cut_is_an_error() {
        let bytes = sample().write().unwrap();
        let head = {
            let mut out = Vec::new();
            put_header(&mut out, &sample().header).unwrap();
            out.len()
        };
        for len in 0..bytes.len() {
            // A header alone is a packet without updates.
            assert_eq!(Packet::read(&bytes[..len]).is_ok(), len == head, "cut at {len}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(matches!(Packet::read(&longer), Err(WireError::Trailing)));
    }

    #[test]
    fn only_an_announcement_goes_to_anyone() {
        let mut packet = sample();
        packet.members.clear();
        packet.header.dst = PeerId::anyone_at("10.0.0.2:2377".parse().unwrap());
        assert!(Packet::read(&packet.write().unwrap()).is_err());
        packet.header.message = Message::Announce;
        assert!(Packet::read(&packet.write().unwrap()).is_ok());
        packet.header.src = packet.header.dst.clone();
        assert!(Packet::read(&packet.write().unwrap()).is_err(), "a sender has a name");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Packet::read(&bytes);
            let _ = read_sender(&bytes);
        }

        #[test]
        fn no_damage_panics(at in 0_usize..2000, value in any::<u8>()) {
            for packet in [vec![sample()], exchanges()].concat() {
                let mut bytes = packet.write().unwrap();
                let at = at % bytes.len();
                bytes[at] = value;
                let _ = Packet::read(&bytes);
            }
        }
    }
}
