//! Bytes of two streams become records: a line each, or a piece of one that is too long, as Docker cuts them.

use std::time::{Duration, SystemTime};

use super::LogStream;
use super::format::MAX_DATA;

/// One record on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) at: SystemTime,
    pub(super) stream: LogStream,
    /// Without its newline.
    pub(super) data: &'a [u8],
    /// A newline followed.
    pub(super) full: bool,
    /// Present when it is one of several pieces of a line.
    pub(super) part: Option<Part>,
}

/// Which piece of a line that was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The same for all pieces of the line, and for no other line of the container: when its first piece was made.
    pub(super) line: SystemTime,
    /// From 1.
    pub(super) ordinal: u64,
    /// No more will follow.
    pub(super) last: bool,
}

/// Cuts streams into records.
#[derive(Debug)]
pub(super) struct Splitter {
    lines: [Line; 2],
    /// Of the last record. Times only grow, whatever the clock does, so that they name a place in the log.
    last: SystemTime,
}

/// A line whose end has not come yet.
#[derive(Debug, Default)]
struct Line {
    pending: Vec<u8>,
    /// Of its pieces that are out: the first one's time, and how many.
    cut: Option<(SystemTime, u64)>,
}

impl Splitter {
    pub(super) fn new() -> Splitter {
        Splitter { lines: Default::default(), last: SystemTime::UNIX_EPOCH }
    }

    /// Takes what was read from a stream, and gives each record that is complete by it.
    pub(super) fn split(
        &mut self,
        stream: LogStream,
        mut data: &[u8],
        now: SystemTime,
        each: &mut dyn FnMut(&Piece<'_>),
    ) {
        let line = &mut self.lines[stream.index()];
        while !data.is_empty() {
            let room = MAX_DATA - line.pending.len();
            let newline = data.iter().take(room + 1).position(|byte| *byte == b'\n');
            if newline.is_none() && data.len() < room {
                line.pending.extend_from_slice(data);
                return;
            }
            let (taken, rest) = data.split_at(newline.unwrap_or(room));
            data = if newline.is_some() { rest.get(1..).unwrap_or_default() } else { rest };
            line.give(&mut self.last, stream, taken, newline.is_some(), now, each);
        }
    }

    /// The stream has ended: what has no newline is given as it is.
    pub(super) fn finish(&mut self, stream: LogStream, now: SystemTime, each: &mut dyn FnMut(&Piece<'_>)) {
        let line = &mut self.lines[stream.index()];
        if line.pending.is_empty() {
            return;
        }
        let cut = line.cut.take();
        let at = stamp(&mut self.last, now);
        let part = cut.map(|(first, pieces)| Part { line: first, ordinal: pieces + 1, last: true });
        each(&Piece { at, stream, data: &line.pending, full: false, part });
        line.pending = Vec::new();
    }
}

impl Line {
    /// Gives what is pending and this as one record.
    fn give(
        &mut self,
        last: &mut SystemTime,
        stream: LogStream,
        taken: &[u8],
        full: bool,
        now: SystemTime,
        each: &mut dyn FnMut(&Piece<'_>),
    ) {
        let at = stamp(last, now);
        let part = match (self.cut, full) {
            (None, true) => None,
            (cut, full) => {
                let (line, pieces) = cut.unwrap_or((at, 0));
                self.cut = (!full).then_some((line, pieces + 1));
                Some(Part { line, ordinal: pieces + 1, last: full })
            }
        };
        if self.pending.is_empty() {
            each(&Piece { at, stream, data: taken, full, part });
        } else {
            self.pending.extend_from_slice(taken);
            each(&Piece { at, stream, data: &self.pending, full, part });
            // Long lines are rare; their memory is not kept for the next one.
            self.pending.clear();
            self.pending.shrink_to(1024);
        }
    }
}

/// The time of a record: the clock's, or the next one after the last record's.
fn stamp(last: &mut SystemTime, now: SystemTime) -> SystemTime {
    *last = now.max(*last + Duration::from_nanos(1));
    *last
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = (String, bool, Option<(u64, bool)>);

    #[track_caller]
    fn check(reads: &[&[u8]], expected: &[Seen]) {
        let (mut splitter, mut seen, mut times) = (Splitter::new(), Vec::new(), Vec::new());
        let mut each = |piece: &Piece<'_>| {
            let data = String::from_utf8_lossy(piece.data);
            let shown = if data.len() > 20 { format!("{} bytes", data.len()) } else { data.into_owned() };
            seen.push((shown, piece.full, piece.part.map(|part| (part.ordinal, part.last))));
            times.push(piece.at);
        };
        // A clock that goes backwards.
        for (number, read) in reads.iter().enumerate() {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - number as u64);
            splitter.split(LogStream::Stdout, read, now, &mut each);
        }
        splitter.finish(LogStream::Stdout, SystemTime::UNIX_EPOCH, &mut each);
        assert_eq!(seen, expected);
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    }

    #[test]
    fn lines_and_pieces() {
        let full = |text: &str| (text.to_owned(), true, None);
        check(&[b"a\n\nb\n"], &[full("a"), full(""), full("b")]);
        check(&[b"a", b"b\nc"], &[full("ab"), ("c".to_owned(), false, None)]);
        let long = [b'x'; MAX_DATA];
        check(
            &[&long, b"\n"],
            &[("16384 bytes".to_owned(), false, Some((1, false))), (String::new(), true, Some((2, true)))],
        );
        check(&[&[&long[..], b"\n"].concat()], &[full("16384 bytes")]);
        let three = [&long[..], &long[..], b"end\nnext\n"].concat();
        let pieces = [
            ("16384 bytes".to_owned(), false, Some((1, false))),
            ("16384 bytes".to_owned(), false, Some((2, false))),
            ("end".to_owned(), true, Some((3, true))),
            full("next"),
        ];
        check(&[&three], &pieces);
        check(&[&three[..20_000], &three[20_000..]], &pieces);
        check(
            &[&long, b"cut off"],
            &[("16384 bytes".to_owned(), false, Some((1, false))), ("cut off".to_owned(), false, Some((2, true)))],
        );
    }
}
