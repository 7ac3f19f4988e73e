//! Records as bytes and back.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::{LogRecord, LogStream};

/// A longer line is cut into pieces of this size, as Docker does.
pub(super) const MAX_DATA: usize = 16 << 10;
/// `2026-11-20T23:52:07.123456789Z`
const TIME_LENGTH: usize = 30;
/// Time, stream, kind, and the blanks between.
pub(super) const MAX_RECORD: usize = TIME_LENGTH + 1 + 6 + 1 + 1 + 1 + MAX_DATA + 1;

/// Whether a record ends a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Full,
    Piece,
}

/// Appends one record.
pub(super) fn push(out: &mut Vec<u8>, time: &[u8; TIME_LENGTH], stream: LogStream, kind: Kind, data: &[u8]) {
    out.extend_from_slice(time);
    out.extend_from_slice(match stream {
        LogStream::Stdout => b" stdout ",
        LogStream::Stderr => b" stderr ",
    });
    out.extend_from_slice(match kind {
        Kind::Full => b"F ",
        Kind::Piece => b"P ",
    });
    out.extend_from_slice(data);
    out.push(b'\n');
}

/// What stands before the data of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) at: SystemTime,
    pub(super) stream: LogStream,
    kind: Kind,
}

/// Reads the beginning of one line without its newline, and gives the data behind it; `None` when it is damaged.
pub(super) fn parse_head(line: &[u8]) -> Option<(Head, &[u8])> {
    let (time, rest) = line.split_at_checked(TIME_LENGTH)?;
    let at = parse_time(time)?;
    let (stream, rest) = match rest.split_at_checked(8)? {
        (b" stdout ", rest) => (LogStream::Stdout, rest),
        (b" stderr ", rest) => (LogStream::Stderr, rest),
        _ => return None,
    };
    let (kind, data) = match rest.split_at_checked(2)? {
        (b"F ", data) => (Kind::Full, data),
        (b"P ", data) => (Kind::Piece, data),
        _ => return None,
    };
    Some((Head { at, stream, kind }, data))
}

/// Reads one line without its newline; `None` when it is damaged.
pub(super) fn parse(line: &[u8]) -> Option<LogRecord> {
    let (head, data) = parse_head(line)?;
    let data = match head.kind {
        Kind::Full => [data, b"\n"].concat().into(),
        Kind::Piece => Bytes::copy_from_slice(data),
    };
    Some(LogRecord { at: head.at, stream: head.stream, data })
}

/// The text of times that mostly lie in the same second.
#[derive(Debug)]
pub(super) struct TimeText {
    second: u64,
    text: [u8; TIME_LENGTH],
}

impl Default for TimeText {
    fn default() -> TimeText {
        TimeText { second: 0, text: format_time(SystemTime::UNIX_EPOCH) }
    }
}

impl TimeText {
    /// As [`format_time`].
    pub(super) fn of(&mut self, at: SystemTime) -> &[u8; TIME_LENGTH] {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() == self.second {
            put(&mut self.text[20..29], u64::from(since.subsec_nanos()));
        } else {
            (self.second, self.text) = (since.as_secs(), format_time(at));
        }
        &self.text
    }
}

/// RFC 3339 in UTC with nine digits.
pub(super) fn format_time(at: SystemTime) -> [u8; TIME_LENGTH] {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], second / 3600);
    put(&mut text[14..16], second / 60 % 60);
    put(&mut text[17..19], second % 60);
    put(&mut text[20..29], u64::from(since.subsec_nanos()));
    text
}

fn put(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

fn parse_time(text: &[u8]) -> Option<SystemTime> {
    let shape_ok = text.iter().zip(b"0000-00-00T00:00:00.000000000Z").all(|(byte, shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    });
    if !shape_ok || text.len() != TIME_LENGTH {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].iter().fold(0u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = days(year, month, day) * 86_400 + number(11, 13) * 3600 + number(14, 16) * 60 + number(17, 19);
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(number(20, 29)).ok()?))
}

/// Days since 1970 to year, month, day: counted from the first of March of the year 0, when leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil`], from 1970 on.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, nanos: u32, expected: &str) {
        let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        assert_eq!(String::from_utf8_lossy(&format_time(at)), expected);
        assert_eq!(parse_time(expected.as_bytes()), Some(at));
    }

    #[test]
    fn times() {
        check(0, 0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400, 1, "2000-02-29T00:00:00.000000001Z");
        check(1_735_689_599, 999_999_999, "2024-12-31T23:59:59.999999999Z");
        check(4_107_542_399, 5, "2100-02-28T23:59:59.000000005Z");
        assert_eq!(parse_time(b"1969-12-31T23:59:59.000000000Z"), None);
        assert_eq!(parse_time(b"2024-13-31T23:59:59.000000000Z"), None);
    }

    #[test]
    fn times_of_one_second() {
        let mut text = TimeText::default();
        for nanos in [0, 7, 999_999_999, 1_000_000_000, 1_000_000_001, 5_000_000_000, 4_000_000_000] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
            assert_eq!(*text.of(at), format_time(at));
        }
    }

    #[test]
    fn records() {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 42);
        let mut out = Vec::new();
        push(&mut out, &format_time(at), LogStream::Stderr, Kind::Piece, b"\xff\x00 x");
        let record = parse(&out[..out.len() - 1]).unwrap();
        assert_eq!((record.at, record.stream, &record.data[..]), (at, LogStream::Stderr, &b"\xff\x00 x"[..]));
        for at in 0..40 {
            assert_eq!(parse(&out[..at]), None);
        }
    }
}
