//! What the engine sends as it comes: frames of two streams, bytes as they are, and times that users ask for.

use std::io::Write;

use bytes::{Buf, BytesMut};

use super::client::Streamed;
use super::error::CliError;
use super::{age, output, values};

/// Longest frame; the engine's are lines, or what a process wrote at once.
const MAX_FRAME: usize = 16 << 20;

/// Unix time for a flag such as `--since`: a time, seconds since 1970, or how long ago.
pub(super) fn moment(flag: &str, text: &str) -> Result<String, CliError> {
    let now = time::OffsetDateTime::now_utc();
    if let Ok(nanos) = values::duration(text) {
        let at = (now.unix_timestamp_nanos() - i128::from(nanos)).max(0);
        return Ok(format!("{}.{:09}", at / 1_000_000_000, at % 1_000_000_000));
    }
    let number = text.split_once('.').unwrap_or((text, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if digits(number.0) && digits(number.1) {
        return Ok(text.to_owned());
    }
    // A day alone is its beginning; without a zone it is UTC.
    let candidates = [text.to_owned(), format!("{text}Z"), format!("{text}T00:00:00Z")];
    let at = candidates.iter().find_map(|t| age::parse(t)).filter(|at| at.unix_timestamp() >= 0);
    let at = at.ok_or_else(|| {
        CliError::usage(format!("{flag} {text:?} must be like 10m, 2026-01-31, 2026-01-31T12:00:00Z or a Unix time"))
    })?;
    Ok(format!("{}.{:09}", at.unix_timestamp(), at.nanosecond()))
}

/// Prints all of it as it is.
pub(super) async fn copy(mut stream: Streamed) -> Result<(), CliError> {
    while let Some(piece) = stream.next().await? {
        output::raw(&piece)?;
    }
    Ok(())
}

/// Prints a frame where it belongs; 2 is standard error.
pub(super) fn print(kind: u8, line: &[u8]) -> Result<(), CliError> {
    if kind == 2 {
        return std::io::stderr().lock().write_all(line).map_err(CliError::Output);
    }
    output::raw(line)
}

/// Takes frames off a stream.
pub(super) struct Frames {
    stream: Streamed,
    buffer: BytesMut,
}

impl Frames {
    pub(super) fn new(stream: Streamed) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next one: which stream it is of, and its bytes. `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(u8, BytesMut)>, CliError> {
        loop {
            if let Some(frame) = take(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            match self.stream.next().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(CliError::Unavailable("the engine's answer was cut off".to_owned())),
            }
        }
    }
}

/// The first frame of the buffer, once all of it is there.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<(u8, BytesMut)>, CliError> {
    let Some(header) = buffer.first_chunk::<8>() else { return Ok(None) };
    let [kind, _, _, _, length @ ..] = *header;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(1..=3).contains(&kind) || length > MAX_FRAME {
        return Err(CliError::Failed("the engine's answer is no stream of log lines".to_owned()));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    Ok(Some((kind, buffer.split_to(length))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_may_come_in_pieces() {
        let bytes = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x00";
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in bytes {
            buffer.extend_from_slice(&[*byte]);
            found.extend(take(&mut buffer).unwrap().map(|(kind, payload)| (kind, payload.to_vec())));
        }
        assert_eq!(found, [(1, b"abc".to_vec()), (2, Vec::new())]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bad in [&b"HTTP/1.1 200"[..], b"\x01\0\0\0\xff\xff\xff\xff"] {
            assert!(take(&mut BytesMut::from(bad)).is_err());
        }
    }

    #[test]
    fn since_takes_times_and_durations() {
        assert_eq!(moment("--since", "1700000000").unwrap(), "1700000000");
        assert_eq!(moment("--since", "1700000000.5").unwrap(), "1700000000.5");
        assert_eq!(moment("--since", "2026-01-31").unwrap(), "1769817600.000000000");
        assert_eq!(moment("--since", "2026-01-31T00:00:01").unwrap(), "1769817601.000000000");
        assert!(moment("--since", "10m").is_ok());
        assert_eq!(moment("--since", "yesterday").unwrap_err().code(), 2);
    }
}
