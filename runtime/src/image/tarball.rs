//! Reads a tar stream entry by entry, with bounded memory and errors that say where.
//!
//! The framing is our own, over the `tar` crate's header fields: that crate reads extended headers
//! of any length into memory, takes a missing end for the end, and unpacks on its own terms.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::error::ImageError;
use super::limits::Limits;
use super::sparse::{self, Extent, Map, SparseFile};

const BLOCK: usize = 512;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// One entry's header, with long names and extended attributes already applied.
#[derive(Debug, Clone)]
pub(crate) struct TarEntry {
    /// The name as it is in the archive.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: TarKind,
    /// Bytes of the file, with its holes; 0 for everything but files.
    pub(crate) size: u64,
    /// Of a sparse file, what the content fills; sound ([`SparseFile::is_sound`]).
    sparse: Option<Vec<Extent>>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TarKind {
    File,
    Dir,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

impl TarEntry {
    /// The name for messages.
    pub(crate) fn shown(&self) -> String {
        shown(&self.name)
    }

    /// What the content fills of the file, in order. Between these are holes, and maybe behind the last of them.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> {
        let whole = self.sparse.is_none().then_some(Extent { offset: 0, length: self.size });
        whole.into_iter().chain(self.sparse.iter().flatten().copied())
    }

    /// Whether the archive holds less than the file.
    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }
}

pub(crate) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(256).collect()
}

/// What the extended headers before an entry say about it.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<sparse::Records>,
    /// Whether there was a PAX header.
    pax: bool,
    /// Length of all of these headers, however many there are before one entry.
    bytes: u64,
}

/// Whether an archive may end without the block of zeros that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndMarker {
    /// Nothing else would tell a truncated archive from a whole one.
    Required,
    /// A digest over all of the archive is checked afterwards.
    Optional,
}

/// A tar stream. After [`TarReader::next_entry`] the entry's content is read from the reader
/// itself; what is left of it is skipped by the next call.
pub(crate) struct TarReader<R> {
    source: R,
    what: String,
    max_header_bytes: u64,
    max_path_bytes: usize,
    end_marker: EndMarker,
    offset: u64,
    /// Content of the current entry that was not read yet.
    content_left: u64,
    /// Zeros that fill the current entry's last block.
    padding: u64,
}

impl<R: Read> TarReader<R> {
    /// `what` names the archive in errors.
    pub(crate) fn new(source: R, what: &str, limits: &Limits, end_marker: EndMarker) -> TarReader<R> {
        TarReader {
            source,
            what: what.to_owned(),
            max_header_bytes: limits.max_header_bytes,
            max_path_bytes: limits.max_path_bytes,
            end_marker,
            offset: 0,
            content_left: 0,
            padding: 0,
        }
    }

    /// The next entry, or `None` at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<TarEntry>, ImageError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_content()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.read_extension(&header, &mut extensions)?;
                    // For some readers the second replaces the first, for some it adds to it.
                    if std::mem::replace(&mut extensions.pax, true) {
                        return Err(self.bad_tar("two PAX headers for one entry".to_owned()));
                    }
                    self.parse_pax(&records, &mut extensions)?;
                }
                EntryType::GNULongName => {
                    extensions.name = Some(until_nul(self.read_extension(&header, &mut extensions)?));
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(until_nul(self.read_extension(&header, &mut extensions)?));
                }
                // Says something about the archive as a whole (git's commit id). Docker ignores it.
                EntryType::XGlobalHeader => {
                    self.read_extension(&header, &mut extensions)?;
                }
                _ => return self.finish_entry(&header, extensions).map(Some),
            }
        }
    }

    /// Gives the stream back, behind the end marker.
    pub(crate) fn into_source(self) -> R {
        self.source
    }

    fn finish_entry(&mut self, header: &Header, mut extensions: Extensions) -> Result<TarEntry, ImageError> {
        let records = extensions.sparse.take();
        let sparse_name = records.as_ref().and_then(|records| records.name.clone());
        let name = sparse_name.or(extensions.name.take()).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions
            .link
            .take()
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
            .unwrap_or_default();
        if name.len() > self.max_path_bytes || link.len() > self.max_path_bytes {
            return Err(ImageError::LimitExceeded {
                what: format!("{}: the path {:?}", self.what, shown(&name)),
                limit: format!("{} bytes", self.max_path_bytes),
            });
        }
        if name.contains(&0) || link.contains(&0) {
            return Err(self.bad_entry(&name, "its name holds a zero byte"));
        }
        let kind = self.kind(header, &name, link)?;
        let stated_size = match extensions.size {
            Some(size) => size,
            None => header.entry_size().map_err(|error| self.bad_tar(error.to_string()))?,
        };
        // Readers differ in whether content follows this header.
        if kind == TarKind::Dir && header.entry_type() == EntryType::Regular && stated_size > 0 {
            return Err(self.bad_entry(&name, "a directory by its name, with the content of a file"));
        }
        // Some writers state the target's size in a link's header; no content follows it.
        let stored = if kind == TarKind::File { stated_size } else { 0 };
        let sparse = match (header.entry_type(), records) {
            (EntryType::GNUSparse, None) => Some(self.gnu_sparse(header, &mut extensions, stored)?),
            (EntryType::GNUSparse, Some(_)) => return Err(self.bad_entry(&name, "it is sparse in two ways")),
            (_, Some(_)) if kind != TarKind::File => return Err(self.bad_entry(&name, "it is sparse and no file")),
            (_, Some(records)) => Some(self.pax_sparse(records, &extensions, stored)?),
            (_, None) => {
                self.expect_content(stored)?;
                None
            }
        };
        if sparse.as_ref().is_some_and(|file| !file.is_sound(self.content_left)) {
            return Err(self.bad_entry(&name, "the map of its holes does not fit its content"));
        }
        let (size, sparse) = sparse.map_or((stored, None), |file| (file.size, Some(file.extents)));
        let id = |extended: Option<u64>, plain: io::Result<u64>, which: &str| {
            let id = match extended {
                Some(id) => id,
                None => plain.map_err(|error| self.bad_tar(error.to_string()))?,
            };
            // u32::MAX means "leave it" to chown.
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.bad_entry(&name, &format!("{which} {id} is out of range")))
        };
        let uid = id(extensions.uid, header.uid(), "owner")?;
        let gid = id(extensions.gid, header.gid(), "group")?;
        let mode = header.mode().map_err(|error| self.bad_tar(error.to_string()))? & 0o7777;
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            // Times before 1970 are negative numbers in GNU's binary form, of which this is the two's complement.
            None => (header.mtime().ok().map_or(0, u64::cast_signed), 0),
        };
        Ok(TarEntry { kind, size, sparse, mode, uid, gid, mtime, xattrs: extensions.xattrs, name })
    }

    /// A sparse file whose map is in the header, and in blocks between it and the content.
    fn gnu_sparse(
        &mut self,
        header: &Header,
        extensions: &mut Extensions,
        stored: u64,
    ) -> Result<SparseFile, ImageError> {
        // Star's sparse files have the same type and another layout.
        let gnu =
            header.as_gnu().ok_or_else(|| self.bad_tar("a sparse file in a format other than GNU's".to_owned()))?;
        let (what, offset) = (self.what.clone(), self.offset);
        let bad = |reason: &str| ImageError::BadTar { what: what.clone(), offset, reason: reason.to_owned() };
        let size = gnu.real_size().map_err(|error| bad(&error.to_string()))?;
        let next = |block: &mut GnuExtSparseHeader| {
            self.take_header_bytes(extensions, BLOCK as u64)?;
            self.source.read_exact(block.as_mut_bytes()).map_err(|error| ImageError::reading(&self.what, error))?;
            self.offset += BLOCK as u64;
            Ok(())
        };
        let extents = sparse::gnu_extents(&gnu.sparse, gnu.isextended[0] != 0, next, bad)?;
        self.expect_content(stored)?;
        Ok(SparseFile { extents, size })
    }

    /// A sparse file whose map is in PAX records, or in front of the content.
    fn pax_sparse(
        &mut self,
        records: sparse::Records,
        extensions: &Extensions,
        stored: u64,
    ) -> Result<SparseFile, ImageError> {
        let finished = records.finish().ok_or_else(|| self.bad_tar("a sparse file of no known format".to_owned()))?;
        self.expect_content(stored)?;
        let malformed = |this: &Self| this.bad_tar("the map of a sparse file is malformed".to_owned());
        match finished {
            sparse::Finished::Whole(file) => Ok(file),
            sparse::Finished::MapInContent { size } => {
                let limit = self.max_header_bytes.saturating_sub(extensions.bytes);
                let map = sparse::read_map(self, limit).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof if self.content_left == 0 => malformed(self),
                    _ => ImageError::reading(&self.what, error),
                })?;
                let extents = match map {
                    Map::Extents(extents) => extents,
                    Map::Malformed => return Err(malformed(self)),
                    Map::TooLong => {
                        return Err(ImageError::LimitExceeded {
                            what: format!("{}: the map of a sparse file", self.what),
                            limit: format!("{} bytes", self.max_header_bytes),
                        });
                    }
                };
                Ok(SparseFile { extents, size })
            }
        }
    }

    fn kind(&self, header: &Header, name: &[u8], link: Vec<u8>) -> Result<TarKind, ImageError> {
        let device = || {
            let number = |number: io::Result<Option<u32>>| {
                number.map(Option::unwrap_or_default).map_err(|error| self.bad_tar(error.to_string()))
            };
            Ok::<_, ImageError>((number(header.device_major())?, number(header.device_minor())?))
        };
        Ok(match header.entry_type() {
            // Before there was a type for directories, a slash at the end was it.
            EntryType::Regular if name.ends_with(b"/") => TarKind::Dir,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => TarKind::File,
            EntryType::Directory => TarKind::Dir,
            EntryType::Symlink => TarKind::Symlink(link),
            EntryType::Link => TarKind::Hardlink(link),
            EntryType::Char => {
                let (major, minor) = device()?;
                TarKind::Char { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device()?;
                TarKind::Block { major, minor }
            }
            EntryType::Fifo => TarKind::Fifo,
            other => {
                return Err(ImageError::UnknownEntryType {
                    what: self.what.clone(),
                    entry: shown(name),
                    kind: char::from(other.as_byte()),
                });
            }
        })
    }

    /// Reads one header block; `None` at a block of zeros.
    fn read_header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut header = Header::new_old();
        if !self.fill_header(&mut header)? {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => u32::from(b' '),
                _ => u32::from(*byte),
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.bad_tar("the header's checksum is wrong".to_owned()));
        }
        self.offset += BLOCK as u64;
        Ok(Some(header))
    }

    /// False where the stream ends, and may.
    fn fill_header(&mut self, header: &mut Header) -> Result<bool, ImageError> {
        let mut block = (&mut self.source).take(BLOCK as u64);
        let mut filled = 0;
        while filled < BLOCK {
            match block.read(&mut header.as_mut_bytes()[filled..]) {
                Ok(0) if filled == 0 && self.end_marker == EndMarker::Optional => return Ok(false),
                Ok(0) => {
                    return Err(ImageError::Truncated { what: self.what.clone() });
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::reading(&self.what, error)),
            }
        }
        Ok(true)
    }

    /// Reads the content of an extended header into memory, within its bound.
    fn read_extension(&mut self, header: &Header, extensions: &mut Extensions) -> Result<Vec<u8>, ImageError> {
        let size = header.entry_size().map_err(|error| self.bad_tar(error.to_string()))?;
        self.take_header_bytes(extensions, size)?;
        self.expect_content(size)?;
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(|error| ImageError::reading(&self.what, error))?;
        Ok(content)
    }

    /// Counts what an entry's headers take beside the first.
    fn take_header_bytes(&self, extensions: &mut Extensions, bytes: u64) -> Result<(), ImageError> {
        extensions.bytes = extensions.bytes.saturating_add(bytes);
        if extensions.bytes > self.max_header_bytes {
            return Err(ImageError::LimitExceeded {
                what: format!("{}: extended headers of {} bytes for one entry", self.what, extensions.bytes),
                limit: format!("{} bytes", self.max_header_bytes),
            });
        }
        Ok(())
    }

    fn expect_content(&mut self, size: u64) -> Result<(), ImageError> {
        self.content_left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        self.offset = size
            .checked_add(self.padding)
            .and_then(|size| self.offset.checked_add(size))
            .ok_or_else(|| self.bad_tar("a size is out of range".to_owned()))?;
        Ok(())
    }

    fn skip_content(&mut self) -> Result<(), ImageError> {
        let left = self.content_left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(left), &mut io::sink())
            .map_err(|error| ImageError::reading(&self.what, error))?;
        if skipped < left {
            return Err(ImageError::Truncated { what: self.what.clone() });
        }
        self.content_left = 0;
        self.padding = 0;
        Ok(())
    }

    /// PAX records are `<length> <key>=<value>\n`, the length counting the whole record.
    fn parse_pax(&self, mut records: &[u8], into: &mut Extensions) -> Result<(), ImageError> {
        let bad = || self.bad_tar("a PAX record is malformed".to_owned());
        while !records.is_empty() && records[0] != 0 {
            let blank = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length: usize = number(&records[..blank]).ok_or_else(bad)?;
            if length <= blank + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &records[blank + 1..length - 1];
            records = &records[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => into.name = Some(value.to_vec()),
                b"linkpath" => into.link = Some(value.to_vec()),
                b"size" => into.size = Some(number(value).ok_or_else(bad)?),
                b"uid" => into.uid = Some(number(value).ok_or_else(bad)?),
                b"gid" => into.gid = Some(number(value).ok_or_else(bad)?),
                b"mtime" => into.mtime = Some(timestamp(value).ok_or_else(bad)?),
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                        into.xattrs.push((name.to_vec(), value.to_vec()));
                    } else if let Some(key) = key.strip_prefix(SPARSE_PREFIX)
                        && !into.sparse.get_or_insert_default().take(key, value)
                    {
                        return Err(bad());
                    }
                }
            }
        }
        Ok(())
    }

    fn bad_tar(&self, reason: String) -> ImageError {
        ImageError::BadTar { what: self.what.clone(), offset: self.offset, reason }
    }

    fn bad_entry(&self, name: &[u8], reason: &str) -> ImageError {
        ImageError::BadEntry { what: self.what.clone(), entry: shown(name), reason: reason.to_owned() }
    }
}

/// Reads the current entry's content; an early end of the stream is an error.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content_left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content_left -= read as u64;
        Ok(read)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds with an optional sign and fraction; digits beyond nanoseconds are dropped.
fn timestamp(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    // -1.25 s is 2 s before, plus 0.75 s.
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_keep_their_fraction() {
        for (text, expected) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.0000000019", Some((12, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("x", None),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(timestamp(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn an_extended_header_is_bounded() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_path("x").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        let mut reader = TarReader::new(&header.as_bytes()[..], "it", &Limits::default(), EndMarker::Required);
        let error = reader.next_entry().unwrap_err();
        assert!(matches!(error, ImageError::LimitExceeded { .. }), "{error}");
    }
}
