//! The few parts of the DNS wire format that a local resolver needs: one question in, records of our own out.
//!
//! Queries come from whatever runs in a task, so reading is bounded and never fails loudly. What upstreams say is
//! read in `answer`.

use std::net::IpAddr;

/// Length of a DNS header.
pub(crate) const HEADER: usize = 12;
/// Longest name on the wire, with its closing zero.
const NAME_MAX: usize = 255;
/// Longest datagram of a client that said nothing about its own limit.
const UDP_DEFAULT: usize = 512;
/// What we send at the most over UDP of our own, whatever the client can take, and ask of upstreams: one packet on any
/// network.
pub(crate) const UDP_MAX: u16 = 1232;
/// What we send at the most over UDP of what upstreams say: what nearly all programs can take.
const CLIENT_MAX: usize = 4096;
/// Seconds that an answer of ours may be kept; endpoints change when tasks do.
const TTL_S: u32 = 5;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
/// Not a record but what a packet can say beside its records.
pub(crate) const OPT: u16 = 41;
/// Bytes of an OPT record without options.
const OPT_LENGTH: usize = 11;

/// IPv4 address record.
pub(crate) const A: u16 = 1;
/// Name of an address.
pub(crate) const PTR: u16 = 12;
/// IPv6 address record.
pub(crate) const AAAA: u16 = 28;
/// Place of a service: a port and a name.
pub(crate) const SRV: u16 = 33;
/// A part of a zone, and the whole: for other servers, not for clients.
const IXFR: u16 = 251;
const AXFR: u16 = 252;
/// Any record.
pub(crate) const ANY: u16 = 255;

/// A response code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The answer, possibly without records.
    NoError = 0,
    /// The query could not be read.
    FormatError = 1,
    /// No upstream answered.
    ServerFailure = 2,
    /// There is no such name.
    NoSuchName = 3,
    /// Not a standard query.
    NotImplemented = 4,
    /// Not for the likes of you.
    Refused = 5,
}

/// A query that could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query<'a> {
    packet: &'a [u8],
    /// The asked name in lower case, without the last dot; empty for the root.
    pub(crate) name: String,
    /// The asked record type.
    pub(crate) kind: u16,
    /// The asked class is the internet's.
    pub(crate) internet: bool,
    question_end: usize,
    /// How long an answer of ours by UDP may be.
    pub(crate) udp_limit: usize,
    /// How long any answer by UDP may be, as the client says.
    pub(crate) client_limit: usize,
    /// It has an OPT record, and so may the answer.
    pub(crate) extended: bool,
    /// Signatures are wanted.
    pub(crate) dnssec: bool,
}

/// Why a packet is no query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Not even worth an answer: too short, or a response itself.
    Ignore,
    /// To be answered with this.
    Answer(Vec<u8>),
}

pub(crate) fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a name without compression (a question, being first, has nothing to point at).
fn name_at(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let start = at;
    let mut name = String::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return (at - start <= NAME_MAX).then_some((name, at));
        }
        if length > 63 || at - start + length > NAME_MAX {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        for byte in packet.get(at..at + length)? {
            // A dot or a strange byte inside a label matches none of our names; upstream gets the raw bytes anyway.
            name.push(match byte {
                b'.' => '\u{1}',
                byte if byte.is_ascii() => byte.to_ascii_lowercase().into(),
                _ => '\u{2}',
            });
        }
        at += length;
    }
}

impl<'a> Query<'a> {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Bad`] says whether and what to answer.
    pub(crate) fn parse(packet: &'a [u8]) -> Result<Query<'a>, Bad> {
        let (Some(flags), Some(questions)) = (u16_at(packet, 2), u16_at(packet, 4)) else { return Err(Bad::Ignore) };
        if packet.len() < HEADER || flags & 0x8000 != 0 {
            return Err(Bad::Ignore);
        }
        if flags & 0x7800 != 0 {
            return Err(Bad::Answer(bare(packet, Code::NotImplemented)));
        }
        let read = || {
            let (name, end) = name_at(packet, HEADER)?;
            Some((name, u16_at(packet, end)?, u16_at(packet, end + 2)?, end + 4))
        };
        let Some((name, kind, class, question_end)) = read().filter(|_| questions == 1) else {
            return Err(Bad::Answer(bare(packet, Code::FormatError)));
        };
        // An OPT record directly after the question, as every client sends it, tells how much the client can take.
        let extended = packet.get(question_end) == Some(&0)
            && u16_at(packet, question_end + 1) == Some(OPT)
            && u16_at(packet, 6) == Some(0)
            && u16_at(packet, 8) == Some(0);
        let asked = if extended { u16_at(packet, question_end + 3).map_or(0, usize::from) } else { 0 };
        Ok(Query {
            packet,
            name,
            kind,
            internet: class == CLASS_IN || class == CLASS_ANY,
            question_end,
            udp_limit: asked.clamp(UDP_DEFAULT, usize::from(UDP_MAX)),
            client_limit: asked.clamp(UDP_DEFAULT, CLIENT_MAX),
            extended,
            dnssec: extended && packet.get(question_end + 7).is_some_and(|flags| flags & 0x80 != 0),
        })
    }

    /// Whether it asks for a zone, which nobody gets from a resolver.
    pub(crate) fn is_transfer(&self) -> bool {
        matches!(self.kind, AXFR | IXFR)
    }

    /// The question as it was sent: name, type, class.
    pub(crate) fn question(&self) -> &'a [u8] {
        &self.packet[HEADER..self.question_end]
    }

    /// The two bytes of flags, as they were sent.
    pub(crate) fn flags(&self) -> [u8; 2] {
        [self.packet[2], self.packet[3]]
    }

    /// The id, as it was sent.
    pub(crate) fn id(&self) -> [u8; 2] {
        [self.packet[0], self.packet[1]]
    }

    /// An answer of at most `limit` bytes.
    pub(crate) fn reply(&self, code: Code, limit: usize) -> Reply {
        let mut bytes = self.packet[..self.question_end].to_vec();
        // Response, authoritative for what we know, recursion as it was asked, recursion available.
        bytes[2] = 0x84 | (self.packet[2] & 0x01);
        bytes[3] = 0x80 | code as u8;
        bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        let tail = if self.extended { OPT_LENGTH } else { 0 };
        let room = limit.min(usize::from(u16::MAX)).saturating_sub(tail);
        Reply { bytes, room, answers: 0, additional: 0, extended: self.extended }
    }

    /// An answer without records.
    #[must_use]
    pub(crate) fn empty(&self, code: Code) -> Vec<u8> {
        self.reply(code, usize::from(u16::MAX)).finish()
    }

    /// An answer with addresses of the asked kind, beginning at `turn`; what does not fit into `limit` bytes is left out
    /// and said to be.
    #[must_use]
    pub(crate) fn addresses(&self, addresses: &[IpAddr], turn: usize, limit: usize) -> Vec<u8> {
        let mut reply = self.reply(Code::NoError, limit);
        let start = if addresses.is_empty() { 0 } else { turn % addresses.len() };
        let (late, early) = addresses.split_at(start);
        for address in early.iter().chain(late) {
            if (self.kind == ANY || self.kind == kind_of(address)) && !reply.address(None, address) {
                reply.cut_short();
                break;
            }
        }
        reply.finish()
    }

    /// An answer with a name; a name that cannot be written is left out.
    #[must_use]
    pub(crate) fn pointer(&self, name: &str, limit: usize) -> Vec<u8> {
        let mut reply = self.reply(Code::NoError, limit);
        if let Some(name) = encode(name) {
            reply.record(None, PTR, &name);
        }
        reply.finish()
    }

    /// An answer with places: a port, and for each a name with its address. Addresses that do not fit are left out.
    #[must_use]
    pub(crate) fn places(&self, port: u16, places: &[(String, IpAddr)], turn: usize, limit: usize) -> Vec<u8> {
        let mut reply = self.reply(Code::NoError, limit);
        let start = if places.is_empty() { 0 } else { turn % places.len() };
        let (late, early) = places.split_at(start);
        let mut written = Vec::new();
        for (name, address) in early.iter().chain(late) {
            let Some(name) = encode(name) else { continue };
            // Priority and weight: the same for all.
            let mut data = vec![0, 0, 0, 0];
            data.extend_from_slice(&port.to_be_bytes());
            data.extend_from_slice(&name);
            if !reply.record(None, SRV, &data) {
                reply.cut_short();
                return reply.finish();
            }
            written.push((name, address));
        }
        for (name, address) in written {
            if !reply.address(Some(&name), address) {
                break;
            }
        }
        reply.finish()
    }
}

fn kind_of(address: &IpAddr) -> u16 {
    if address.is_ipv4() { A } else { AAAA }
}

/// A name as it is written; nothing for one that cannot be.
fn encode(name: &str) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        data.push(length);
        data.extend_from_slice(label.as_bytes());
    }
    data.push(0);
    (data.len() <= NAME_MAX).then_some(data)
}

/// An answer that is being written.
#[derive(Debug)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    room: usize,
    answers: u16,
    additional: u16,
    extended: bool,
}

impl Reply {
    /// Adds a record, of the question's name or as an addition with a name of its own; false, and nothing was added, if
    /// there is no room for it. Answers come before additions.
    fn record(&mut self, owner: Option<&[u8]>, kind: u16, data: &[u8]) -> bool {
        // A pointer to the question's name.
        let name = owner.unwrap_or(&[0xc0, HEADER as u8]);
        let Ok(length) = u16::try_from(data.len()) else { return false };
        if self.bytes.len() + name.len() + 10 + data.len() > self.room {
            return false;
        }
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.bytes.extend_from_slice(&TTL_S.to_be_bytes());
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(data);
        let count = if owner.is_none() { &mut self.answers } else { &mut self.additional };
        *count += 1;
        true
    }

    fn address(&mut self, owner: Option<&[u8]>, address: &IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.record(owner, A, &address.octets()),
            IpAddr::V6(address) => self.record(owner, AAAA, &address.octets()),
        }
    }

    /// Says that not everything is there.
    pub(crate) fn cut_short(&mut self) {
        self.bytes[2] |= 0x02;
    }

    /// The packet.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.extended {
            self.bytes.extend_from_slice(&opt(false));
            self.additional += 1;
        }
        self.bytes[6..8].copy_from_slice(&self.answers.to_be_bytes());
        self.bytes[10..12].copy_from_slice(&self.additional.to_be_bytes());
        self.bytes
    }
}

/// An OPT record with our own limit.
pub(crate) fn opt(dnssec: bool) -> [u8; OPT_LENGTH] {
    let size = UDP_MAX.to_be_bytes();
    [0, 0, OPT as u8, size[0], size[1], 0, 0, if dnssec { 0x80 } else { 0 }, 0, 0, 0]
}

/// An answer to something that could not be read: the header alone.
fn bare(packet: &[u8], code: Code) -> Vec<u8> {
    let mut reply = packet[..HEADER].to_vec();
    reply[2] = 0x80 | (packet[2] & 0x79);
    reply[3] = 0x80 | code as u8;
    reply[4..].fill(0);
    reply
}
