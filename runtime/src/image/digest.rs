//! SHA-256 digests of what streams by.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use ring::digest::{Context, SHA256};

use super::reference::is_hex;

/// A SHA-256 digest. `Display` is `sha256:<64 hexadecimal digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes that are at hand.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hash = Context::new(&SHA256);
        hash.update(bytes);
        Digest::from_hash(hash)
    }

    /// The digest that these bytes are.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn from_hash(hash: Context) -> Digest {
        let mut digest = Digest([0; 32]);
        // SHA-256 has 32 bytes.
        digest.0.copy_from_slice(hash.finish().as_ref());
        digest
    }

    /// The 64 hexadecimal digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        use std::fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing into a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// Reads 64 lowercase hexadecimal digits.
    pub(crate) fn from_hex(hex: &str) -> Option<Digest> {
        if !is_hex(hex, 64) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        text.strip_prefix("sha256:")
            .and_then(Digest::from_hex)
            .ok_or_else(|| DigestError { text: text.chars().take(200).collect() })
    }
}

/// A text that is not `sha256:` and 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a sha256 digest")]
pub struct DigestError {
    text: String,
}

/// Hashes what is read through it.
pub(crate) struct HashReader<R> {
    inner: R,
    hash: Context,
}

impl<R> HashReader<R> {
    pub(crate) fn new(inner: R) -> HashReader<R> {
        HashReader { inner, hash: Context::new(&SHA256) }
    }

    /// The reader, and the digest of what went through.
    pub(crate) fn finish(self) -> (R, Digest) {
        (self.inner, Digest::from_hash(self.hash))
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Hashes and counts what is written through it.
pub(crate) struct HashWriter<W> {
    inner: W,
    hash: Context,
    bytes: u64,
}

impl<W> HashWriter<W> {
    pub(crate) fn new(inner: W) -> HashWriter<W> {
        HashWriter { inner, hash: Context::new(&SHA256), bytes: 0 }
    }

    /// The writer, the digest and the number of bytes that went through.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_hash(self.hash), self.bytes)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The id of a layer *on top of given others*, as OCI defines the chain id.
///
/// Unpacked layers are kept by chain, not by content alone, because a directory that a layer
/// changes something in without naming it takes its owner and mode from the layers below.
pub(crate) fn chain_id(parent: Option<&Digest>, diff: &Digest) -> Digest {
    match parent {
        None => *diff,
        Some(parent) => Digest::of(format!("{parent} {diff}").as_bytes()),
    }
}
