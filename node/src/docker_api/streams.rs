//! The framing of output that is not a terminal's: an 8-byte header in front of each piece.

use bytes::{BufMut, Bytes, BytesMut};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// A message of the engine, after the answer's 200 was already sent.
    Error = 3,
}

/// One frame: the stream, three zeros, the length in big endian, then the parts one after another.
pub(crate) fn frame(stream: Stream, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = BytesMut::with_capacity(8 + len);
    out.put_slice(&[stream as u8, 0, 0, 0]);
    // Records are lines of a log, bounded far below 4 GiB where they are read.
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    for part in parts {
        out.put_slice(part);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_header() {
        assert_eq!(&frame(Stream::Stderr, &[b"a b ", b"line\n"])[..], b"\x02\0\0\0\0\0\0\x09a b line\n");
        assert_eq!(&frame(Stream::Error, &[])[..], b"\x03\0\0\0\0\0\0\0");
    }
}
