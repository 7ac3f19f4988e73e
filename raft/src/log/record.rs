//! The bytes of a log segment.
//!
//! A segment is a preallocated file of zeros. A 64-byte header says what it is:
//!
//! | at | size | |
//! |---|---|---|
//! | 0 | 8 | `SHOALLOG` |
//! | 8 | 4 | format, 1 |
//! | 12 | 4 | key id; 0 is clear text |
//! | 16 | 8 | sequence number of the segment |
//! | 24 | 8 | raft id of the owner |
//! | 32 | 4 | CRC32 of the cluster id |
//! | 60 | 4 | CRC32 of bytes 0 to 59 |
//!
//! Records follow, each at a multiple of 8 and with zeros up to the next multiple:
//!
//! | at | size | |
//! |---|---|---|
//! | 0 | 4 | CRC32 of the segment's sequence number, bytes 4 to 31 and the payload |
//! | 4 | 4 | length of the payload |
//! | 8 | 1 | kind; the three bytes after it are 0 |
//! | 12 | 4 | offset up to which the segment was durable when this was written |
//! | 16 | 8 | index |
//! | 24 | 8 | term |
//! | 32 | | payload |
//!
//! All integers are little-endian. The durable offset is what tells a torn write from damage: a bad
//! record with a later valid one behind it may be torn only if the later one does not claim that the
//! bad one's place was durable.

use crate::RaftId;

pub(super) const SEGMENT_HEADER: usize = 64;
pub(super) const RECORD_HEADER: usize = 32;
/// The largest payload of a record. A little above what a proposal may have.
pub(super) const MAX_RECORD: usize = 4 << 20;
const MAGIC: &[u8; 8] = b"SHOALLOG";
const FORMAT: u32 = 1;
const CLEAR: u32 = 0;

/// What a record says. The numbers are on disk and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// An entry without payload.
    Blank = 1,
    /// An entry with a caller's bytes.
    Data = 2,
    /// An entry with a membership.
    Membership = 3,
    /// The vote given; the payload is a `Ballot`.
    Vote = 4,
    /// Everything up to here was known as committed.
    Committed = 5,
    /// Entries after the index are void.
    Truncate = 6,
    /// All entries are void.
    Clear = 7,
    /// Entries up to the index are in a snapshot and gone.
    Purge = 8,
    /// The segment ends here and the next one goes on.
    Seal = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Kind::Blank,
            2 => Kind::Data,
            3 => Kind::Membership,
            4 => Kind::Vote,
            5 => Kind::Committed,
            6 => Kind::Truncate,
            7 => Kind::Clear,
            8 => Kind::Purge,
            9 => Kind::Seal,
            _ => return None,
        })
    }
}

/// Who a log belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) id: RaftId,
    pub(crate) cluster_crc: u32,
}

impl Owner {
    pub(crate) fn new(id: RaftId, cluster_id: &str) -> Self {
        Self { id, cluster_crc: crc32fast::hash(cluster_id.as_bytes()) }
    }
}

/// A decoded record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) durable: usize,
    pub(super) payload: &'a [u8],
}

/// What stands at an offset of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// A record, and the offset of the next.
    Record(Record<'a>, usize),
    /// Nothing: zeros or the end of the file.
    Nothing,
    /// Something that is not a whole record.
    Bad,
}

pub(super) fn segment_header(seq: u64, owner: Owner) -> [u8; SEGMENT_HEADER] {
    let mut out = [0; SEGMENT_HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    out[12..16].copy_from_slice(&CLEAR.to_le_bytes());
    out[16..24].copy_from_slice(&seq.to_le_bytes());
    out[24..32].copy_from_slice(&owner.id.to_le_bytes());
    out[32..36].copy_from_slice(&owner.cluster_crc.to_le_bytes());
    let crc = crc32fast::hash(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Why a segment header was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Damaged(&'static str),
    Format(u32),
    Key(u32),
    Owner(Owner),
}

pub(super) fn check_segment_header(file: &[u8], seq: u64, owner: Owner) -> Result<(), BadHeader> {
    let Some(header) = file.get(..SEGMENT_HEADER) else {
        return Err(BadHeader::Damaged("the file is shorter than its header"));
    };
    if &header[..8] != MAGIC {
        return Err(BadHeader::Damaged("the magic number is wrong"));
    }
    if crc32fast::hash(&header[..60]) != u32_at(header, 60) {
        return Err(BadHeader::Damaged("the checksum of the header is wrong"));
    }
    match (u32_at(header, 8), u32_at(header, 12)) {
        (FORMAT, CLEAR) => {}
        (FORMAT, key) => return Err(BadHeader::Key(key)),
        (format, _) => return Err(BadHeader::Format(format)),
    }
    if u64_at(header, 16) != seq {
        return Err(BadHeader::Damaged("the sequence number is not that of the file's name"));
    }
    let found = Owner { id: u64_at(header, 24), cluster_crc: u32_at(header, 32) };
    if found != owner {
        return Err(BadHeader::Owner(found));
    }
    Ok(())
}

/// The bytes that a record takes.
pub(super) fn record_size(payload: usize) -> usize {
    (RECORD_HEADER + payload).next_multiple_of(8)
}

/// Appends a record to `out`.
pub(super) fn put(out: &mut Vec<u8>, seq: u64, durable: u64, kind: Kind, index: u64, term: u64, payload: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&[kind as u8, 0, 0, 0]);
    out.extend_from_slice(&(durable as u32).to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&term.to_le_bytes());
    out.extend_from_slice(payload);
    let crc = checksum(seq, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_size(payload.len()), 0);
}

/// Reads what stands at `at`, which must be a multiple of 8.
pub(super) fn find(file: &[u8], at: usize, seq: u64) -> Found<'_> {
    let Some(header) = file.get(at..at + RECORD_HEADER) else {
        let rest = file.get(at..).unwrap_or_default();
        return if rest.iter().all(|byte| *byte == 0) { Found::Nothing } else { Found::Bad };
    };
    if header.iter().all(|byte| *byte == 0) {
        return Found::Nothing;
    }
    let len = u32_at(header, 4) as usize;
    let Some(kind) = Kind::from_byte(header[8]) else { return Found::Bad };
    let durable = u32_at(header, 12) as usize;
    if len > MAX_RECORD || header[9..12] != [0; 3] || durable > at {
        return Found::Bad;
    }
    let end = at + RECORD_HEADER + len;
    let Some(body) = file.get(at + 4..end) else { return Found::Bad };
    if checksum(seq, body) != u32_at(header, 0) {
        return Found::Bad;
    }
    let record = Record {
        kind,
        index: u64_at(header, 16),
        term: u64_at(header, 24),
        durable,
        payload: &file[at + RECORD_HEADER..end],
    };
    Found::Record(record, at + record_size(len))
}

fn checksum(seq: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { id: 7, cluster_crc: 9 };

    #[test]
    fn a_record_comes_back() {
        let mut file = segment_header(3, OWNER).to_vec();
        put(&mut file, 3, 64, Kind::Data, 5, 2, b"hello");
        let Found::Record(record, next) = find(&file, 64, 3) else { panic!("no record") };
        assert_eq!(record, Record { kind: Kind::Data, index: 5, term: 2, durable: 64, payload: b"hello" });
        assert_eq!(next, file.len());
        assert_eq!(find(&file, next, 3), Found::Nothing);
        assert_eq!(find(&file, 64, 4), Found::Bad, "a record of another segment is none");
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_seen() {
        let mut file = Vec::new();
        put(&mut file, 1, 0, Kind::Data, 5, 2, b"hello");
        for bit in 0..(RECORD_HEADER + 5) * 8 {
            let mut broken = file.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(find(&broken, 0, 1), Found::Bad, "bit {bit}");
        }
    }

    #[test]
    fn a_header_of_someone_else_is_refused() {
        let header = segment_header(3, OWNER);
        assert_eq!(check_segment_header(&header, 3, OWNER), Ok(()));
        assert_eq!(check_segment_header(&header, 3, Owner { id: 8, ..OWNER }), Err(BadHeader::Owner(OWNER)),);
        assert!(matches!(check_segment_header(&header, 4, OWNER), Err(BadHeader::Damaged(_))));
        assert!(matches!(check_segment_header(&header[..10], 3, OWNER), Err(BadHeader::Damaged(_))));
    }
}
