//! Sparse files in tar archives: which parts of a file an entry's content fills, in the four ways in which GNU tar has
//! written it ("Storing Sparse Files" in its manual).

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader};

/// Of a 64-bit number.
const MAX_DIGITS: usize = 20;

/// A part of a file that is not a hole, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Extent {
    /// The first byte behind it.
    pub(crate) fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// A sparse file: its extents in order, and the size that it has with its holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseFile {
    pub(crate) extents: Vec<Extent>,
    pub(crate) size: u64,
}

impl SparseFile {
    /// Whether the extents are in order, within the file, and hold as much as the archive does of it.
    pub(crate) fn is_sound(&self, stored: u64) -> bool {
        let mut filled = 0;
        let mut total: u64 = 0;
        for extent in &self.extents {
            match extent.offset.checked_add(extent.length) {
                Some(end) if extent.offset >= filled && end <= self.size => filled = end,
                _ => return false,
            }
            total += extent.length;
        }
        total == stored
    }
}

/// What the `GNU.sparse.*` records of a PAX header say. Readers differ in what they make of records that contradict each
/// other or themselves, so nobody is to be told by them that a file is another than it is elsewhere: they are refused.
#[derive(Default)]
pub(super) struct Records {
    version: (Option<u64>, Option<u64>),
    size: Option<u64>,
    extents: Option<u64>,
    /// The file's name; the header's own is made up, for readers that do not know the format.
    pub(super) name: Option<Vec<u8>>,
    /// Offsets and lengths in turn (format 0.0 and 0.1).
    map: Vec<u64>,
    /// Whether they came in one record (0.1).
    mapped: bool,
}

impl Records {
    /// Takes one record, its key without `GNU.sparse.`; false for one that makes no sense.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> bool {
        fn once<T>(place: &mut Option<T>, value: Option<T>) -> Option<()> {
            if place.is_some() {
                return None;
            }
            *place = Some(value?);
            Some(())
        }
        let number = decimal(value);
        let taken = match key {
            b"major" => once(&mut self.version.0, number),
            b"minor" => once(&mut self.version.1, number),
            b"size" | b"realsize" => once(&mut self.size, number),
            b"numblocks" => once(&mut self.extents, number),
            b"name" if !value.is_empty() => once(&mut self.name, Some(value.to_vec())),
            // Format 0.0: a record each, an offset before its length.
            b"offset" | b"numbytes" if self.mapped => None,
            b"offset" if self.map.len().is_multiple_of(2) => number.map(|number| self.map.push(number)),
            b"numbytes" if !self.map.len().is_multiple_of(2) => number.map(|number| self.map.push(number)),
            b"map" if !self.mapped && self.map.is_empty() => {
                self.mapped = true;
                let mut numbers = value.split(|byte| *byte == b',').filter(|_| !value.is_empty());
                numbers.try_for_each(|number| {
                    self.map.push(decimal(number)?);
                    Some(())
                })
            }
            _ => None,
        };
        taken.is_some()
    }

    /// What the file is like, where the records hold its map; whether the map is in front of the content otherwise
    /// (format 1.0). None for a format that nobody writes.
    pub(super) fn finish(self) -> Option<Finished> {
        let size = self.size?;
        match self.version {
            (Some(1), Some(0)) if self.map.is_empty() => Some(Finished::MapInContent { size }),
            (None, None) | (Some(0), Some(0 | 1)) => {
                let extents = pairs(&self.map)?;
                let said = self.extents.is_none_or(|said| said == extents.len() as u64);
                said.then_some(Finished::Whole(SparseFile { extents, size }))
            }
            _ => None,
        }
    }
}

/// What [`Records`] come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finished {
    Whole(SparseFile),
    MapInContent { size: u64 },
}

/// What [`read_map`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Map {
    Extents(Vec<Extent>),
    Malformed,
    /// More than it may be.
    TooLong,
}

/// The map in front of the content in format 1.0: decimal numbers, a line each, the first of them says how many
/// extents follow. It fills whole blocks of 512 bytes.
pub(super) fn read_map(content: &mut impl Read, limit: u64) -> io::Result<Map> {
    let mut numbers = Vec::new();
    let (mut digits, mut wanted) = (Vec::new(), 1);
    let mut block = [0; 512];
    let mut taken = 0;
    while numbers.len() < wanted {
        taken += block.len() as u64;
        if taken > limit {
            return Ok(Map::TooLong);
        }
        content.read_exact(&mut block)?;
        for byte in block {
            if byte.is_ascii_digit() && digits.len() < MAX_DIGITS {
                digits.push(byte);
                continue;
            }
            let Some(number) = decimal(&digits).filter(|_| byte == b'\n') else { return Ok(Map::Malformed) };
            digits.clear();
            if numbers.is_empty() {
                let Some(all) = usize::try_from(number).ok().and_then(|extents| extents.checked_mul(2)?.checked_add(1))
                else {
                    return Ok(Map::Malformed);
                };
                wanted = all;
            }
            numbers.push(number);
            if numbers.len() == wanted {
                break;
            }
        }
    }
    Ok(pairs(&numbers[1..]).map_or(Map::Malformed, Map::Extents))
}

/// The extents of GNU's own header (type `S`), and of the blocks that continue it, from where `next` gets those.
///
/// Readers differ in where they take a map to end that has gaps; then the next header would be somewhere else for them. So
/// only the one form is taken that all agree on: an unused slot ends the map, and nothing follows.
pub(super) fn gnu_extents<E>(
    first: &[GnuSparseHeader],
    extended: bool,
    mut next: impl FnMut(&mut GnuExtSparseHeader) -> Result<(), E>,
    bad: impl Fn(&str) -> E,
) -> Result<Vec<Extent>, E> {
    let mut extents = Vec::new();
    let mut add = |headers: &[GnuSparseHeader], extended: bool| {
        let used = |header: &GnuSparseHeader| (header.offset[0] != 0, header.numbytes[0] != 0);
        let full = headers.iter().take_while(|header| used(header) == (true, true)).count();
        let (full, rest) = headers.split_at(full);
        if rest.iter().any(|header| used(header) != (false, false)) || (extended && !rest.is_empty()) {
            return Err(bad("the map of a sparse file has a gap"));
        }
        for header in full {
            let number = |number: io::Result<u64>| number.map_err(|error| bad(&error.to_string()));
            extents.push(Extent { offset: number(header.offset())?, length: number(header.length())? });
        }
        Ok(())
    };
    add(first, extended)?;
    let mut more = extended;
    let mut block = GnuExtSparseHeader::new();
    while more {
        next(&mut block)?;
        more = block.isextended[0] != 0;
        add(block.sparse(), more)?;
    }
    Ok(extents)
}

fn pairs(numbers: &[u64]) -> Option<Vec<Extent>> {
    let (pairs, rest) = numbers.as_chunks();
    rest.is_empty().then(|| pairs.iter().map(|[offset, length]| Extent { offset: *offset, length: *length }).collect())
}

/// Digits alone: `parse` would take a sign.
fn decimal(digits: &[u8]) -> Option<u64> {
    let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { offset, length }
    }

    #[test]
    fn extents_that_lie() {
        let sound = |extents: &[(u64, u64)], size, stored| {
            let extents = extents.iter().map(|(offset, length)| extent(*offset, *length)).collect();
            SparseFile { extents, size }.is_sound(stored)
        };
        assert!(sound(&[], 1 << 40, 0));
        assert!(sound(&[(0, 512), (4096, 100), (8192, 0)], 8192, 612));
        for (extents, size, stored) in [
            (&[(0, 512)][..], 512, 511),
            (&[(0, 512)], 511, 512),
            (&[(512, 512), (0, 512)], 4096, 1024),
            (&[(0, 512), (511, 1)], 4096, 513),
            (&[(u64::MAX, 2)], u64::MAX, 2),
            (&[(0, u64::MAX), (u64::MAX, u64::MAX)], u64::MAX, u64::MAX - 1),
        ] {
            assert!(!sound(extents, size, stored), "{extents:?} of {size}, {stored} stored");
        }
    }

    #[test]
    fn records_of_all_formats() {
        let finish = |records: &[(&str, &str)]| {
            let mut all = Records::default();
            let taken = records.iter().all(|(key, value)| all.take(key.as_bytes(), value.as_bytes()));
            taken.then(|| all.finish()).flatten()
        };
        let whole = |extents| Some(Finished::Whole(SparseFile { extents, size: 9 }));
        let two = vec![extent(0, 1), extent(4, 2)];
        let in_turn = [("offset", "0"), ("numbytes", "1"), ("offset", "4"), ("numbytes", "2")];
        assert_eq!(finish(&[&[("size", "9"), ("numblocks", "2")][..], &in_turn].concat()), whole(two.clone()));
        assert_eq!(
            finish(&[("major", "0"), ("minor", "1"), ("size", "9"), ("numblocks", "2"), ("map", "0,1,4,2")]),
            whole(two)
        );
        assert_eq!(finish(&[("size", "9"), ("map", "")]), whole(vec![]));
        let content = finish(&[("major", "1"), ("minor", "0"), ("name", "f"), ("realsize", "9")]);
        assert_eq!(content, Some(Finished::MapInContent { size: 9 }));
        for bad in [
            &[("map", "0,1")][..],
            &[("size", "9"), ("map", "0,1,2")],
            &[("size", "9"), ("map", "0,+1")],
            &[("size", "9"), ("map", "0,,1")],
            &[("size", "9"), ("numbytes", "1")],
            &[("size", "9"), ("offset", "1")],
            &[("size", "9"), ("offset", "1"), ("offset", "2")],
            &[("size", "-9")],
            &[("size", "9"), ("major", "2"), ("minor", "0")],
            &[("size", "9"), ("unheard-of", "0")],
            &[("size", "9"), ("realsize", "8")],
            &[("size", "9"), ("map", "0,1"), ("offset", "2"), ("numbytes", "1")],
            &[("size", "9"), ("offset", "2"), ("numbytes", "1"), ("map", "0,1")],
            &[("size", "9"), ("numblocks", "2"), ("map", "0,1")],
            &[("size", "9"), ("major", "0"), ("map", "0,1")],
            &[("size", "9"), ("minor", "1"), ("map", "0,1")],
            &[("size", "9"), ("name", "")],
        ] {
            assert_eq!(finish(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_map_in_the_content_is_bounded() {
        let block = |text: &[u8]| {
            let mut bytes = text.to_vec();
            bytes.resize(text.len().next_multiple_of(512), 0);
            bytes.extend(b"the content");
            bytes
        };
        let read = |bytes: &[u8], limit| {
            let mut rest = bytes;
            read_map(&mut rest, limit).map(|map| (map, rest.to_vec()))
        };
        let (map, rest) = read(&block(b"2\n0\n1\n4\n2\n"), 512).unwrap();
        assert_eq!((map, &*rest), (Map::Extents(vec![extent(0, 1), extent(4, 2)]), &b"the content"[..]));
        // A number that goes on in the next block.
        let long = [b"100\n".to_vec(), b"11\n".repeat(200)].concat();
        assert_eq!(long.len().div_ceil(512), 2);
        let (map, rest) = read(&block(&long), 1024).unwrap();
        assert_eq!((map, &*rest), (Map::Extents(vec![extent(11, 11); 100]), &b"the content"[..]));
        assert_eq!(read(&block(&long), 512).unwrap().0, Map::TooLong);
        for bad in [&b"x\n"[..], b"\n", b"1\n0\n-1\n", b"18446744073709551615\n", b"99999999999999999999\n"] {
            assert!(!matches!(read(&block(bad), 1 << 20), Ok((Map::Extents(_), _))), "{bad:?}");
        }
        assert!(read(b"1\n", 512).is_err(), "cut off");
    }
}
