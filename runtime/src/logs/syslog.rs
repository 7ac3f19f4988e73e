//! Messages as RFC 5424 has them.

use super::LogStream;
use super::format::format_time;
use super::split::Piece;

/// Severities of the two streams, as Docker gives them: informational and error.
const SEVERITIES: [u8; 2] = [6, 3];

/// Makes one container's messages: `<priority>1 time host tag pid - - text`.
pub(super) struct Syslog {
    facility: u8,
    /// ` host tag pid - - `
    middle: String,
    /// Each message ends with a newline: on a connection, where nothing else ends it.
    lines: bool,
}

impl Syslog {
    pub(super) fn new(facility: u8, host: &str, tag: &str, pid: u32, lines: bool) -> Syslog {
        let middle = format!(" {} {} {pid} - - ", name(host, 255), name(tag, 48));
        Syslog { facility, middle, lines }
    }

    pub(super) fn message(&self, piece: &Piece<'_>) -> Vec<u8> {
        let severity = match piece.stream {
            LogStream::Stdout => SEVERITIES[0],
            LogStream::Stderr => SEVERITIES[1],
        };
        let mut message = format!("<{}>1 ", u32::from(self.facility) * 8 + u32::from(severity)).into_bytes();
        // At most six digits of a second are allowed.
        message.extend_from_slice(&format_time(piece.at)[..26]);
        message.push(b'Z');
        message.extend_from_slice(self.middle.as_bytes());
        message.extend_from_slice(piece.data);
        if self.lines {
            message.push(b'\n');
        }
        message
    }
}

/// A name as the header may hold it: printable ASCII without blanks, so long at the most, never empty.
fn name(text: &str, most: usize) -> String {
    let name: String = text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(most).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[track_caller]
    fn check(syslog: &Syslog, stream: LogStream, data: &[u8], expected: &[u8]) {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        let message = syslog.message(&Piece { at, stream, data, full: true, part: None });
        assert_eq!(String::from_utf8_lossy(&message), String::from_utf8_lossy(expected));
    }

    #[test]
    fn messages() {
        let local = Syslog::new(3, "host", "web/1 é", 42, false);
        check(&local, LogStream::Stdout, b"hi", b"<30>1 2001-09-09T01:46:40.123456Z host web/1__ 42 - - hi");
        check(&local, LogStream::Stderr, b"\xff\0", b"<27>1 2001-09-09T01:46:40.123456Z host web/1__ 42 - - \xff\0");
        let remote = Syslog::new(23, "", &"t".repeat(60), 1, true);
        let expected = format!("<190>1 2001-09-09T01:46:40.123456Z - {} 1 - - \n", "t".repeat(48));
        check(&remote, LogStream::Stdout, b"", expected.as_bytes());
    }
}
