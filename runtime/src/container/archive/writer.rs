//! Writes a tar archive into pieces for a reader elsewhere.
//!
//! Names, links and attributes that the old header has no room for go into PAX records, as with Docker.

use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};
use tar::{EntryType, Header};
use tokio::sync::mpsc;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;
const BLOCK: u64 = 512;
/// Of a name, or a link's target, in the old header.
const SHORT: usize = 100;

/// Hands bytes over in pieces; fails when nobody reads any more.
pub(super) struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Pieces {
    pub(super) fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Pieces {
        Pieces { sender, buffer: BytesMut::with_capacity(PIECE) }
    }

    /// Ends the archive, or says why it ends too early.
    pub(super) fn finish(mut self, outcome: io::Result<()>) {
        let outcome = outcome.and_then(|()| self.write_all(&[0; 2 * BLOCK as usize])).and_then(|()| self.flush());
        if let Err(error) = outcome
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            // A reader that has gone needs no reason.
            let _ = self.sender.blocking_send(Err(error));
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PIECE)).freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Extended attributes: names and values.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes what comes before an entry's content. `header` needs no name, link or checksum yet.
pub(super) fn head(
    out: &mut impl Write,
    header: &mut Header,
    name: &[u8],
    link: &[u8],
    attributes: &Attributes,
) -> io::Result<()> {
    let mut records = Vec::new();
    if name.len() > SHORT {
        record(&mut records, b"path", name);
    }
    if link.len() > SHORT {
        record(&mut records, b"linkpath", link);
    }
    for (key, value) in attributes {
        record(&mut records, &[b"SCHILY.xattr.", key.as_slice()].concat(), value);
    }
    if !records.is_empty() {
        let mut extension = Header::new_ustar();
        extension.set_entry_type(EntryType::XHeader);
        extension.set_size(records.len() as u64);
        extension.set_mode(0o644);
        plain(out, &mut extension, b"PaxHeaders", b"")?;
        content(out, &mut records.as_slice(), records.len() as u64)?;
    }
    plain(out, header, name, link)
}

/// `<length> <key>=<value>\n`, the length counting itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn plain(out: &mut impl Write, header: &mut Header, name: &[u8], link: &[u8]) -> io::Result<()> {
    let old = header.as_old_mut();
    for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
        for (to, from) in field.iter_mut().zip(text) {
            *to = *from;
        }
    }
    header.set_cksum();
    out.write_all(header.as_bytes())
}

/// Writes exactly `size` bytes of content and what fills the last block. What is missing is zeros.
pub(super) fn content(out: &mut impl Write, from: &mut impl Read, size: u64) -> io::Result<()> {
    let padding = size.wrapping_neg() % BLOCK;
    let mut buffer = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut left = size;
    let mut ended = false;
    while left > 0 {
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut count = 0;
        if !ended {
            count = match from.read(&mut buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
        }
        if count == 0 {
            ended = true;
            buffer.fill(0);
            count = wanted;
        }
        out.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    out.write_all(&[0; BLOCK as usize][..usize::try_from(padding).unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        for length in [1, 80, 88, 89, 90, 980, 985, 990] {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'x'; length]);
            let text = String::from_utf8(records.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), records.len(), "{text}");
        }
    }

    #[test]
    fn others_can_read_it() {
        let (sender, mut receiver) = mpsc::channel(16);
        let mut pieces = Pieces::new(sender);
        let long = "deep/".repeat(60) + "file";
        let mut header = Header::new_ustar();
        header.set_size(700);
        header.set_mode(0o640);
        header.set_uid(70_000_000);
        // No line feed, which PAX allows and this reader does not.
        let attributes = vec![(b"user.a".to_vec(), b"b=c d".to_vec())];
        let outcome = head(&mut pieces, &mut header, long.as_bytes(), b"", &attributes)
            .and_then(|()| content(&mut pieces, &mut &[7u8; 600][..], 700));
        pieces.finish(outcome);
        let mut bytes = Vec::new();
        while let Some(piece) = receiver.blocking_recv() {
            bytes.extend_from_slice(&piece.unwrap());
        }
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path_bytes(), long.as_bytes());
        assert_eq!(entry.header().uid().unwrap(), 70_000_000);
        let records: Vec<_> =
            entry.pax_extensions().unwrap().unwrap().map(|r| r.unwrap().value_bytes().to_vec()).collect();
        assert!(records.contains(&b"b=c d".to_vec()));
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert_eq!(content, [[7u8; 600].as_slice(), &[0; 100]].concat());
    }
}
