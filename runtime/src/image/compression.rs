//! Takes gzip, zstd or nothing off a stream, told apart by its first bytes.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::error::ImageError;

/// A zstd window that a decoder must be able to take is 8 MiB; `--long=27` asks for 128 MiB. More
/// would let a few bytes of input claim any amount of memory.
const MAX_ZSTD_WINDOW_BYTES: u64 = 128 << 20;
const BUFFER_BYTES: usize = 64 << 10;

type Source<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

/// A stream with its compression taken off.
pub(crate) enum Decoder<R: Read> {
    Plain(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(Box<ZstdReader<Source<R>>>),
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `reader`. Damage further on shows when it is read.
    pub(crate) fn new(mut reader: R, what: &str) -> Result<Decoder<R>, ImageError> {
        let mut magic = Vec::with_capacity(6);
        (&mut reader).take(6).read_to_end(&mut magic).map_err(|error| ImageError::reading(what, error))?;
        let compression =
            detect(&magic).map_err(|format| ImageError::UnsupportedCompression { what: what.to_owned(), format })?;
        let source = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(reader));
        Ok(match compression {
            Compression::None => Decoder::Plain(source),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => Decoder::Zstd(Box::new(ZstdReader::new(source))),
        })
    }

    pub(crate) fn compression(&self) -> Compression {
        match self {
            Decoder::Plain(_) => Compression::None,
            Decoder::Gzip(_) => Compression::Gzip,
            Decoder::Zstd(_) => Compression::Zstd,
        }
    }

    /// The compressed stream, behind whatever was buffered of it.
    pub(crate) fn into_source(self) -> Source<R> {
        match self {
            Decoder::Plain(source) => source,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.source,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(reader) => reader.read(buffer),
            Decoder::Gzip(reader) => reader.read(buffer),
            Decoder::Zstd(reader) => reader.read(buffer),
        }
    }
}

fn detect(magic: &[u8]) -> Result<Compression, &'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        // A frame, or a skippable frame in front of one.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0x00] => Err("xz"),
        [b'B', b'Z', b'h', ..] => Err("bzip2"),
        _ => Ok(Compression::None),
    }
}

/// Reads zstd frames one after the other, stepping over skippable ones, and checks their checksums.
pub(crate) struct ZstdReader<R> {
    source: R,
    decoder: FrameDecoder,
    inside_frame: bool,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(source: R) -> ZstdReader<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW_BYTES);
        ZstdReader { source, decoder, inside_frame: false }
    }

    /// Goes to the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => {
                    self.inside_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(self.failure(error)),
            }
        }
        Ok(false)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.inside_frame = false;
        let stated = self.decoder.get_checksum_from_data();
        if stated.is_some() && stated != self.decoder.get_calculated_checksum() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a zstd frame does not have its checksum"));
        }
        Ok(())
    }

    /// The decoder's errors hide an early end; an empty source shows it.
    fn failure(&mut self, error: FrameDecoderError) -> io::Error {
        match self.source.fill_buf() {
            Ok([]) => io::ErrorKind::UnexpectedEof.into(),
            _ => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.inside_frame && !self.next_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let step = BlockDecodingStrategy::UptoBlocks(1);
                if let Err(error) = self.decoder.decode_blocks(&mut self.source, step) {
                    return Err(self.failure(error));
                }
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            self.end_frame()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_members_follow_each_other() {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let mut zstd = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        zstd.extend(compress_to_vec(&b"one"[..], CompressionLevel::Fastest));
        zstd.extend([0x5f, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
        zstd.extend(compress_to_vec(&b"two"[..], CompressionLevel::Uncompressed));
        let mut text = String::new();
        Decoder::new(&zstd[..], "x").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");

        // Cut anywhere but between two frames, it is an error.
        let first_end = 11 + compress_to_vec(&b"one"[..], CompressionLevel::Fastest).len();
        for cut in 1..zstd.len() {
            let mut sink = Vec::new();
            let outcome = Decoder::new(&zstd[..cut], "x").unwrap().read_to_end(&mut sink);
            let whole = [11, first_end, first_end + 8].contains(&cut) || cut < 4;
            assert_eq!(outcome.is_ok(), whole, "cut at {cut}: {outcome:?}");
        }
    }

    #[test]
    fn other_compressions_are_named() {
        let error = Decoder::new(&b"\xfd7zXZ\0rest"[..], "it").err().unwrap();
        assert!(error.to_string().contains("xz"), "{error}");
    }
}
