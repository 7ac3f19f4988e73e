//! The bytes of a log segment.
//!
//! A segment is a preallocated file of zeros. A 64-byte header says what it is:
//!
//! | at | size | |
//! |---|---|---|
//! | 0 | 8 | `SHOALLOG` |
//! | 8 | 4 | format, 2; 1 is read too, it has no file id and no `Mark` |
//! | 12 | 4 | key id; 0 is clear text |
//! | 16 | 8 | sequence number of the segment |
//! | 24 | 8 | raft id of the owner |
//! | 32 | 4 | CRC32 of the cluster id |
//! | 36 | 16 | file id, random |
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
//! bad one's place was durable. The last record has none behind it, so the writer leaves a `Mark` there when it has
//! nothing else to do.
//!
//! In a segment with a key, each payload (empty ones too) is sealed as [`keys`](crate::keys) says, bound to the
//! segment's header, the record's offset and bytes 4 to 31 of the record. The checksum is over what is on disk, so that
//! damage is told apart from a wrong key, and what is torn is found without any key.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use crate::RaftId;
use crate::keys::{Cipher, OVERHEAD};

pub(super) const SEGMENT_HEADER: usize = 64;
pub(super) const RECORD_HEADER: usize = 32;
/// The largest payload of a record. A little above what a proposal may have.
pub(super) const MAX_RECORD: usize = 4 << 20;
const MAGIC: &[u8; 8] = b"SHOALLOG";
const FORMAT: u32 = 2;
/// Written by the first releases; still read.
const FORMAT_1: u32 = 1;
/// The bytes of a segment's header.
pub(super) type Header = [u8; SEGMENT_HEADER];

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
    /// Says nothing but, as each record does, up to where the segment was durable.
    Mark = 10,
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
            10 => Kind::Mark,
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

/// The header of a new segment, sealed with that key.
pub(super) fn segment_header(seq: u64, owner: Owner, key: u32) -> Header {
    let mut out = [0; SEGMENT_HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    out[12..16].copy_from_slice(&key.to_le_bytes());
    out[16..24].copy_from_slice(&seq.to_le_bytes());
    out[24..32].copy_from_slice(&owner.id.to_le_bytes());
    out[32..36].copy_from_slice(&owner.cluster_crc.to_le_bytes());
    out[36..52].copy_from_slice(&rand::random::<[u8; 16]>());
    let crc = crc32fast::hash(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Why a segment header was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Damaged(&'static str),
    Format(u32),
    Owner(Owner),
}

pub(super) fn check_segment_header(file: &[u8], seq: u64, owner: Owner) -> Result<Header, BadHeader> {
    let Some(header) = file.first_chunk::<SEGMENT_HEADER>() else {
        return Err(BadHeader::Damaged("the file is shorter than its header"));
    };
    if &header[..8] != MAGIC {
        return Err(BadHeader::Damaged("the magic number is wrong"));
    }
    if crc32fast::hash(&header[..60]) != u32_at(header, 60) {
        return Err(BadHeader::Damaged("the checksum of the header is wrong"));
    }
    match u32_at(header, 8) {
        FORMAT | FORMAT_1 => {}
        format => return Err(BadHeader::Format(format)),
    }
    if u64_at(header, 16) != seq {
        return Err(BadHeader::Damaged("the sequence number is not that of the file's name"));
    }
    let found = Owner { id: u64_at(header, 24), cluster_crc: u32_at(header, 32) };
    if found != owner {
        return Err(BadHeader::Owner(found));
    }
    Ok(*header)
}

/// The key of a segment.
pub(super) fn key_of(header: &Header) -> u32 {
    u32_at(header, 12)
}

/// Whether this release goes on writing to a segment with such a header, when `key` is the key for new files.
pub(super) fn is_current(header: &Header, key: u32) -> bool {
    u32_at(header, 8) == FORMAT && key_of(header) == key
}

/// What seals the records of one segment.
#[derive(Clone)]
pub(super) struct Seal {
    pub(super) header: Header,
    /// `None` is clear text.
    pub(super) cipher: Option<Arc<Cipher>>,
}

impl Seal {
    fn overhead(&self) -> usize {
        if self.cipher.is_some() { OVERHEAD } else { 0 }
    }

    /// The bytes that a record takes in this segment.
    pub(super) fn record_size(&self, payload: usize) -> usize {
        record_size(payload + self.overhead())
    }

    /// Where a record stands, for the associated data.
    fn place(&self, at: u64, head: &[u8]) -> [u8; SEGMENT_HEADER + 8 + RECORD_HEADER - 4] {
        let mut place = [0; SEGMENT_HEADER + 8 + RECORD_HEADER - 4];
        place[..SEGMENT_HEADER].copy_from_slice(&self.header);
        place[SEGMENT_HEADER..SEGMENT_HEADER + 8].copy_from_slice(&at.to_le_bytes());
        place[SEGMENT_HEADER + 8..].copy_from_slice(head);
        place
    }

    /// The payload of the record that was found at `at`; `None` when it was not sealed there with this key.
    pub(super) fn open<'a>(&self, file: &'a [u8], at: usize, record: &Record<'a>) -> Option<Cow<'a, [u8]>> {
        let Some(cipher) = &self.cipher else { return Some(Cow::Borrowed(record.payload)) };
        let place = self.place(at as u64, &file[at + 4..at + RECORD_HEADER]);
        cipher.open(&place, record.payload).map(Cow::Owned)
    }
}

/// The bytes that a record takes.
pub(super) fn record_size(payload: usize) -> usize {
    (RECORD_HEADER + payload).next_multiple_of(8)
}

/// A record to be written.
#[derive(Clone, Copy)]
pub(super) struct NewRecord<'a> {
    pub(super) kind: Kind,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) payload: &'a [u8],
}

/// Appends a record to `out`, which will be written so that it stands at `at` in the segment.
pub(super) fn put(
    out: &mut Vec<u8>,
    seq: u64,
    seal: &Seal,
    durable: u64,
    at: u64,
    record: NewRecord<'_>,
) -> io::Result<()> {
    let start = out.len();
    let stored = record.payload.len() + seal.overhead();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(stored as u32).to_le_bytes());
    out.extend_from_slice(&[record.kind as u8, 0, 0, 0]);
    out.extend_from_slice(&(durable as u32).to_le_bytes());
    out.extend_from_slice(&record.index.to_le_bytes());
    out.extend_from_slice(&record.term.to_le_bytes());
    match &seal.cipher {
        None => out.extend_from_slice(record.payload),
        Some(cipher) => {
            let place = seal.place(at, &out[start + 4..]);
            cipher.seal(out, &place, record.payload)?;
        }
    }
    let crc = checksum(seq, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_size(stored), 0);
    Ok(())
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
    if len > MAX_RECORD + OVERHEAD || header[9..12] != [0; 3] || durable > at {
        return Found::Bad;
    }
    let end = at + RECORD_HEADER + len;
    let Some(body) = file.get(at + 4..end) else { return Found::Bad };
    if checksum(seq, body) != u32_at(header, 0) {
        return Found::Bad;
    }
    // The padding is covered too: every byte that was written is checked.
    let next = at + record_size(len);
    if file[end..next.min(file.len())].iter().any(|byte| *byte != 0) {
        return Found::Bad;
    }
    let record = Record {
        kind,
        index: u64_at(header, 16),
        term: u64_at(header, 24),
        durable,
        payload: &file[at + RECORD_HEADER..end],
    };
    Found::Record(record, next)
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

    use crate::keys::{CLEAR, Keyring};

    const OWNER: Owner = Owner { id: 7, cluster_crc: 9 };

    fn seal(seq: u64, key: Option<[u8; 32]>) -> Seal {
        let cipher = key.and_then(|key| Keyring::new(&[(1, key)]).current());
        Seal { header: segment_header(seq, OWNER, cipher.as_ref().map_or(CLEAR, |key| key.id)), cipher }
    }

    fn with_record(seal: &Seal, seq: u64) -> Vec<u8> {
        let mut file = seal.header.to_vec();
        let record = NewRecord { kind: Kind::Data, index: 5, term: 2, payload: b"hello" };
        put(&mut file, seq, seal, 64, 64, record).unwrap();
        file
    }

    #[test]
    fn a_record_comes_back() {
        for key in [None, Some([8; 32])] {
            let seal = seal(3, key);
            let file = with_record(&seal, 3);
            assert_eq!(file.len(), 64 + seal.record_size(5));
            let Found::Record(record, next) = find(&file, 64, 3) else { panic!("no record") };
            assert_eq!((record.kind, record.index, record.term, record.durable), (Kind::Data, 5, 2, 64));
            assert_eq!(*seal.open(&file, 64, &record).unwrap(), *b"hello");
            assert_eq!(next, file.len());
            assert_eq!(find(&file, next, 3), Found::Nothing);
            assert_eq!(find(&file, 64, 4), Found::Bad, "a record of another segment is none");
        }
    }

    #[test]
    fn a_sealed_record_opens_only_where_it_was_put() {
        let ours = seal(3, Some([8; 32]));
        let mut file = with_record(&ours, 3);
        assert!(!file.windows(5).any(|part| part == b"hello"));
        let copy = file[64..].to_vec();
        file.extend_from_slice(&copy);
        let at = 64 + copy.len();
        let Found::Record(moved, _) = find(&file, at, 3) else { panic!("no record") };
        assert!(ours.open(&file, at, &moved).is_none(), "a record was moved");
        let Found::Record(record, _) = find(&file, 64, 3) else { panic!("no record") };
        // Another file of the same number has another id in its header.
        assert!(seal(3, Some([8; 32])).open(&file, 64, &record).is_none(), "a record came from another file");
        let other_key = Seal { cipher: Keyring::new(&[(1, [9; 32])]).current(), ..ours.clone() };
        assert!(other_key.open(&file, 64, &record).is_none(), "another key has opened it");
        // Who changes the clear part and mends the checksum is found out too.
        file[64 + 16] ^= 1;
        let crc = checksum(3, &file[68..64 + RECORD_HEADER + 5 + OVERHEAD]);
        file[64..68].copy_from_slice(&crc.to_le_bytes());
        let Found::Record(forged, _) = find(&file, 64, 3) else { panic!("no record") };
        assert!(forged.index != 5 && ours.open(&file, 64, &forged).is_none());
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_seen() {
        for key in [None, Some([8; 32])] {
            let file = with_record(&seal(1, key), 1);
            for bit in 64 * 8..file.len() * 8 {
                let mut broken = file.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(find(&broken, 64, 1), Found::Bad, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_header_of_someone_else_is_refused() {
        let header = segment_header(3, OWNER, 0);
        assert_eq!(check_segment_header(&header, 3, OWNER), Ok(header));
        assert_eq!(check_segment_header(&header, 3, Owner { id: 8, ..OWNER }), Err(BadHeader::Owner(OWNER)));
        assert!(matches!(check_segment_header(&header, 4, OWNER), Err(BadHeader::Damaged(_))));
        assert!(matches!(check_segment_header(&header[..10], 3, OWNER), Err(BadHeader::Damaged(_))));
    }
}
