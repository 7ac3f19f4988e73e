//! The few parts of the DNS wire format that a local resolver needs: one question in, A or PTR records out.
//!
//! Queries come from whatever runs in a task, so reading is bounded and never fails loudly. What is forwarded is
//! forwarded as raw bytes, so no other record type is ever parsed here.

use std::net::Ipv4Addr;

/// Length of a DNS header.
const HEADER: usize = 12;
/// Longest name on the wire, with its closing zero.
const NAME_MAX: usize = 255;
/// Longest datagram of a client that said nothing about its own limit.
const UDP_DEFAULT: usize = 512;
/// What we send at the most over UDP, whatever the client can take: one packet on any overlay.
const UDP_MAX: usize = 1232;
/// Seconds that an answer may be kept; endpoints change when tasks do.
const TTL_S: u32 = 5;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
const TYPE_OPT: u16 = 41;

/// IPv4 address record.
pub(crate) const A: u16 = 1;
/// Name of an address.
pub(crate) const PTR: u16 = 12;
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
    /// How long an answer by UDP may be.
    pub(crate) udp_limit: usize,
    extended: bool,
}

/// Why a packet is no query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Not even worth an answer: too short, or a response itself.
    Ignore,
    /// To be answered with this.
    Answer(Vec<u8>),
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
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
            && u16_at(packet, question_end + 1) == Some(TYPE_OPT)
            && u16_at(packet, 6) == Some(0)
            && u16_at(packet, 8) == Some(0);
        let asked = if extended { u16_at(packet, question_end + 3).map_or(0, usize::from) } else { 0 };
        Ok(Query {
            packet,
            name,
            kind,
            internet: class == CLASS_IN || class == CLASS_ANY,
            question_end,
            udp_limit: asked.clamp(UDP_DEFAULT, UDP_MAX),
            extended,
        })
    }

    fn start(&self, code: Code) -> Vec<u8> {
        let mut reply = self.packet[..self.question_end].to_vec();
        // Response, authoritative for what we know, recursion as it was asked, recursion available.
        reply[2] = 0x84 | (self.packet[2] & 0x01);
        reply[3] = 0x80 | code as u8;
        reply[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        reply
    }

    fn finish(&self, mut reply: Vec<u8>, answers: u16) -> Vec<u8> {
        reply[6..8].copy_from_slice(&answers.to_be_bytes());
        if self.extended {
            let size = u16::try_from(UDP_MAX).expect("a small constant").to_be_bytes();
            reply.extend_from_slice(&[0, 0, 41, size[0], size[1], 0, 0, 0, 0, 0, 0]);
            reply[11] = 1;
        }
        reply
    }

    fn record(reply: &mut Vec<u8>, kind: u16, data: &[u8]) {
        // The name is a pointer to the question's.
        reply.extend_from_slice(&[0xc0, 0x0c]);
        reply.extend_from_slice(&kind.to_be_bytes());
        reply.extend_from_slice(&CLASS_IN.to_be_bytes());
        reply.extend_from_slice(&TTL_S.to_be_bytes());
        reply.extend_from_slice(&u16::try_from(data.len()).expect("a name or an address").to_be_bytes());
        reply.extend_from_slice(data);
    }

    /// An answer without records.
    #[must_use]
    pub(crate) fn empty(&self, code: Code) -> Vec<u8> {
        self.finish(self.start(code), 0)
    }

    /// An answer with addresses, beginning at `turn`; what does not fit into `limit` bytes is left out and said to be.
    #[must_use]
    pub(crate) fn addresses(&self, addresses: &[Ipv4Addr], turn: usize, limit: usize) -> Vec<u8> {
        let mut reply = self.start(Code::NoError);
        let room = limit.min(usize::from(u16::MAX)).saturating_sub(reply.len() + 11) / 16;
        let count = addresses.len().min(room);
        let start = if addresses.is_empty() { 0 } else { turn % addresses.len() };
        for address in addresses.iter().cycle().skip(start).take(count) {
            Query::record(&mut reply, A, &address.octets());
        }
        if count < addresses.len() {
            reply[2] |= 0x02;
        }
        self.finish(reply, u16::try_from(count).expect("limited by the packet's length"))
    }

    /// An answer with a name; a name that cannot be written is left out.
    #[must_use]
    pub(crate) fn pointer(&self, name: &str) -> Vec<u8> {
        let mut data = Vec::new();
        for label in name.split('.') {
            match u8::try_from(label.len()) {
                Ok(length @ 1..=63) => {
                    data.push(length);
                    data.extend_from_slice(label.as_bytes());
                }
                _ => return self.empty(Code::NoError),
            }
        }
        data.push(0);
        if data.len() > NAME_MAX {
            return self.empty(Code::NoError);
        }
        let mut reply = self.start(Code::NoError);
        Query::record(&mut reply, PTR, &data);
        self.finish(reply, 1)
    }

    /// Whether a packet from an upstream answers this query: same id, a response, the same question.
    #[must_use]
    pub(crate) fn is_answered_by(&self, packet: &[u8]) -> bool {
        packet.len() >= HEADER
            && packet[..2] == self.packet[..2]
            && packet[2] & 0x80 != 0
            && packet
                .get(HEADER..self.question_end)
                .is_some_and(|question| question.eq_ignore_ascii_case(&self.packet[HEADER..self.question_end]))
    }
}

/// An answer to something that could not be read: the header alone.
fn bare(packet: &[u8], code: Code) -> Vec<u8> {
    let mut reply = packet[..HEADER].to_vec();
    reply[2] = 0x80 | (packet[2] & 0x79);
    reply[3] = 0x80 | code as u8;
    reply[4..].fill(0);
    reply
}
