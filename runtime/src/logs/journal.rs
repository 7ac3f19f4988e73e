//! Entries of systemd's journal in its native protocol, with the fields that Docker gives them.

use super::LogStream;
use super::format::format_time;
use super::split::Piece;
use crate::config::LogForward;

/// Makes one container's entries.
pub(super) struct Journal {
    /// The fields that are the same in all of them.
    common: Vec<u8>,
}

impl Journal {
    pub(super) fn new(config: &LogForward, container_id: &str) -> Journal {
        let mut common = Vec::new();
        let short: String = container_id.chars().take(12).collect();
        for (name, value) in [
            ("CONTAINER_ID", short.as_str()),
            ("CONTAINER_ID_FULL", container_id),
            ("CONTAINER_NAME", &config.container_name),
            ("CONTAINER_TAG", &config.tag),
            ("IMAGE_NAME", &config.image_name),
            ("SYSLOG_IDENTIFIER", &config.tag),
        ] {
            field(&mut common, name, value.as_bytes());
        }
        for (name, value) in &config.fields {
            let name = sanitized(name);
            if !name.is_empty() {
                field(&mut common, &name, value.as_bytes());
            }
        }
        Journal { common }
    }

    pub(super) fn message(&self, piece: &Piece<'_>) -> Vec<u8> {
        let mut entry = Vec::with_capacity(self.common.len() + piece.data.len() + 256);
        field(&mut entry, "MESSAGE", piece.data);
        let priority = match piece.stream {
            LogStream::Stdout => b"6",
            LogStream::Stderr => b"3",
        };
        field(&mut entry, "PRIORITY", priority);
        field(&mut entry, "SYSLOG_TIMESTAMP", &format_time(piece.at));
        if let Some(part) = piece.part {
            let since = part.line.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
            field(&mut entry, "CONTAINER_PARTIAL_ID", format!("{:032x}", since.as_nanos()).as_bytes());
            field(&mut entry, "CONTAINER_PARTIAL_ORDINAL", part.ordinal.to_string().as_bytes());
            field(&mut entry, "CONTAINER_PARTIAL_LAST", if part.last { b"true" } else { b"false" });
            if !part.last {
                field(&mut entry, "CONTAINER_PARTIAL_MESSAGE", b"true");
            }
        }
        entry.extend_from_slice(&self.common);
        entry
    }
}

/// `NAME=value`, or, when the value has a newline, the name, the value's length and the value.
fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// A name as the journal takes it: capitals, digits and underscores, with none of the latter at the beginning, where the
/// journal has its own. Docker's rule.
fn sanitized(name: &str) -> String {
    let upper = name.to_uppercase();
    let allowed = |c: char| if c.is_ascii_uppercase() || c.is_ascii_digit() { c } else { '_' };
    let replaced: String = upper.chars().map(allowed).collect();
    replaced.trim_start_matches('_').chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::split::Part;
    use super::*;
    use crate::config::LogTarget;

    #[test]
    fn entries() {
        let config = LogForward {
            target: LogTarget::Journal("/x".into()),
            tag: "tag".into(),
            container_name: "web.1".into(),
            image_name: "web:1".into(),
            fields: [("_com.example-é".to_owned(), "a\nb".to_owned()), ("__".to_owned(), "none".to_owned())].into(),
            buffer: 1 << 20,
        };
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
        let part = Some(Part { line: SystemTime::UNIX_EPOCH + Duration::from_nanos(255), ordinal: 2, last: false });
        let piece = Piece { at, stream: LogStream::Stderr, data: b"\xff=x", full: false, part };
        let entry = Journal::new(&config, "0123456789abcdef").message(&piece);
        let expected = b"MESSAGE=\xff=x\nPRIORITY=3\nSYSLOG_TIMESTAMP=2001-09-09T01:46:40.000000005Z\n\
            CONTAINER_PARTIAL_ID=000000000000000000000000000000ff\nCONTAINER_PARTIAL_ORDINAL=2\n\
            CONTAINER_PARTIAL_LAST=false\nCONTAINER_PARTIAL_MESSAGE=true\n\
            CONTAINER_ID=0123456789ab\nCONTAINER_ID_FULL=0123456789abcdef\nCONTAINER_NAME=web.1\nCONTAINER_TAG=tag\n\
            IMAGE_NAME=web:1\nSYSLOG_IDENTIFIER=tag\nCOM_EXAMPLE__\n\x03\0\0\0\0\0\0\0a\nb\n";
        assert_eq!(String::from_utf8_lossy(&entry), String::from_utf8_lossy(expected));
    }
}
