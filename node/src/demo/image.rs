//! An image out of one executable in an otherwise empty root, handed to a host through the public API.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::hosts::{Api, HostError};

/// Bytes of the executable that are read at once.
const PIECE: usize = 256 << 10;
/// A host has so long to take an image in.
const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: u64 = 512;

/// Imports the executable as `NAME:latest`, with it as `/shoal` and this entry point; answers the image's id.
///
/// # Errors
/// When the executable cannot be read, or the host does not take the image.
pub async fn import(api: &Api, executable: &Path, name: &str, entrypoint: &[&str]) -> Result<String, HostError> {
    let cannot_read = || format!("cannot read {}", executable.display());
    let file = tokio::fs::File::open(executable).await.map_err(HostError::io(cannot_read()))?;
    let length = file.metadata().await.map_err(HostError::io(cannot_read()))?.len();
    let padding = usize::try_from(length.next_multiple_of(BLOCK) - length).unwrap_or_default();
    // Two empty blocks end the archive.
    let end = vec![0; padding + 1024];
    let content = ReaderStream::with_capacity(file, PIECE);
    let pieces = stream::iter([Ok(Bytes::from(header("shoal", length)))])
        .chain(content)
        .chain(stream::iter([Ok(Bytes::from(end))]))
        .map(|piece: std::io::Result<Bytes>| piece.map(Frame::data));
    let entrypoint = serde_json::json!(entrypoint).to_string();
    let path = format!(
        "/images/create?fromSrc=-&repo={name}&tag=latest&changes={}",
        super::hosts::encode(&format!("ENTRYPOINT {entrypoint}"))
    );
    let answer = api.upload(&path, BodyExt::boxed_unsync(StreamBody::new(pieces)), LIMIT).await?;
    Ok(answer["status"].as_str().unwrap_or_default().to_owned())
}

/// The header of one executable file in a tar archive (ustar; POSIX.1-1988).
fn header(name: &str, length: u64) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, "00000000000\0");
    // The checksum is computed with blanks in its place.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_fields() {
        let header = header("shoal", 100 << 20);
        assert_eq!(header.len(), 512);
        assert_eq!(&header[..6], b"shoal\0");
        assert_eq!(&header[124..136], b"00620000000\0");
        let stored = std::str::from_utf8(&header[148..154]).unwrap();
        let sum: u32 = header.iter().copied().map(u32::from).sum::<u32>()
            - header[148..156].iter().copied().map(u32::from).sum::<u32>()
            + 8 * 32;
        assert_eq!(u32::from_str_radix(stored, 8).unwrap(), sum);
    }
}
