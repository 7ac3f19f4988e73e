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

/// What the `GNU.sparse.*` records of a PAX header say.
#[derive(Default)]
pub(super) struct Records {
    version: (Option<u64>, Option<u64>),
    size: Option<u64>,
    /// The file's name; the header's own is made up, for readers that do not know the format.
    pub(super) name: Option<Vec<u8>>,
    /// Offsets and lengths in turn (format 0.0 and 0.1).
    map: Vec<u64>,
}

impl Records {
    /// Takes one record, its key without `GNU.sparse.`; false for one that makes no sense.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> bool {
        let one = || decimal(value);
        let taken = match key {
            b"major" => one().map(|number| self.version.0 = Some(number)),
            b"minor" => one().map(|number| self.version.1 = Some(number)),
            b"size" | b"realsize" => one().map(|size| self.size = Some(size)),
            b"name" => {
                self.name = Some(value.to_vec());
                Some(())
            }
            // Format 0.0: a record each, an offset before its length.
            b"offset" if self.map.len().is_multiple_of(2) => one().map(|number| self.map.push(number)),
            b"numbytes" if !self.map.len().is_multiple_of(2) => one().map(|number| self.map.push(number)),
            b"map" if value.is_empty() => Some(()),
            b"map" => value.split(|byte| *byte == b',').try_for_each(|number| {
                self.map.push(decimal(number)?);
                Some(())
            }),
            // The map's own length is known without it.
            b"numblocks" => one().map(drop),
            _ => None,
        };
        taken.is_some()
    }

    /// What the file is like, where the records hold its map; whether the map is in front of the content otherwise
    /// (format 1.0). None for a format that nobody writes.
    pub(super) fn finish(self) -> Option<Finished> {
        let size = self.size?;
        match self.version {
            (Some(1), Some(0)) => Some(Finished::MapInContent { size }),
            (None | Some(0), None | Some(0 | 1)) => {
                Some(Finished::Whole(SparseFile { extents: pairs(&self.map)?, size }))
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

/// The map in front of the content in format 1.0: decimal numbers, a line each, the first of them says how many
/// extents follow. It fills whole blocks of 512 bytes, and is at most `limit` bytes long.
pub(super) fn read_map(content: &mut impl Read, limit: u64) -> io::Result<Option<Vec<Extent>>> {
    let mut numbers = Vec::new();
    let (mut digits, mut wanted) = (Vec::new(), 1);
    let mut block = [0; 512];
    let mut taken = 0;
    while numbers.len() < wanted {
        taken += block.len() as u64;
        if taken > limit {
            return Ok(None);
        }
        content.read_exact(&mut block)?;
        for byte in block {
            if byte.is_ascii_digit() && digits.len() < MAX_DIGITS {
                digits.push(byte);
                continue;
            }
            if byte != b'\n' {
                return Ok(None);
            }
            let Some(number) = decimal(&digits) else { return Ok(None) };
            digits.clear();
            if numbers.is_empty() {
                let Some(all) = usize::try_from(number).ok().and_then(|extents| extents.checked_mul(2)?.checked_add(1))
                else {
                    return Ok(None);
                };
                wanted = all;
            }
            numbers.push(number);
            if numbers.len() == wanted {
                break;
            }
        }
    }
    Ok(pairs(&numbers[1..]))
}

/// The extents of GNU's own header (type `S`), and of the blocks that continue it, from where `next` gets those.
pub(super) fn gnu_extents<E>(
    first: &[GnuSparseHeader],
    extended: bool,
    mut next: impl FnMut(&mut GnuExtSparseHeader) -> Result<(), E>,
    bad: impl Fn(io::Error) -> E,
) -> Result<Vec<Extent>, E> {
    let mut extents = Vec::new();
    let mut add = |headers: &[GnuSparseHeader]| {
        for header in headers.iter().filter(|header| !header.is_empty()) {
            extents.push(Extent { offset: header.offset()?, length: header.length()? });
        }
        Ok(())
    };
    add(first).map_err(&bad)?;
    let mut more = extended;
    let mut block = GnuExtSparseHeader::new();
    while more {
        next(&mut block)?;
        add(block.sparse()).map_err(&bad)?;
        more = block.is_extended();
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
        assert_eq!(finish(&[("major", "0"), ("minor", "1"), ("size", "9"), ("map", "0,1,4,2")]), whole(two));
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
        assert_eq!((map, &*rest), (Some(vec![extent(0, 1), extent(4, 2)]), &b"the content"[..]));
        // A number that goes on in the next block.
        let long = [b"100\n".to_vec(), b"11\n".repeat(200)].concat();
        assert_eq!(long.len().div_ceil(512), 2);
        let (map, rest) = read(&block(&long), 1024).unwrap();
        assert_eq!((map, &*rest), (Some(vec![extent(11, 11); 100]), &b"the content"[..]));
        assert_eq!(read(&block(&long), 512).unwrap().0, None, "longer than the limit");
        for bad in [&b"x\n"[..], b"\n", b"1\n0\n-1\n", b"18446744073709551615\n", b"99999999999999999999\n"] {
            assert!(!matches!(read(&block(bad), 1 << 20), Ok((Some(_), _))), "{bad:?}");
        }
        assert!(read(b"1\n", 512).is_err(), "cut off");
    }
}
