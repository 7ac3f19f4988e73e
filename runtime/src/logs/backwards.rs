//! The lines of a file from its end, a block at a time: the last records of a long log must not cost a read of it all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::MAX_RECORD;

/// Bytes read at a time.
const BLOCK: usize = 64 << 10;

/// Stands before the last line that was given.
#[derive(Debug)]
pub(super) struct Backwards<'a> {
    file: &'a File,
    /// Where in the file `bytes` begins.
    base: u64,
    bytes: Vec<u8>,
    /// How much of `bytes` lies before us. Ends with a newline, or is nothing.
    end: usize,
}

impl<'a> Backwards<'a> {
    /// Begins after the file's last newline.
    pub(super) fn new(file: &'a File) -> io::Result<Backwards<'a>> {
        let base = file.metadata()?.len();
        let mut lines = Backwards { file, base, bytes: Vec::new(), end: 0 };
        // What is behind the last newline is not whole yet.
        loop {
            lines.end = lines.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
            if lines.end > 0 || lines.base == 0 || lines.bytes.len() > 2 * MAX_RECORD {
                return Ok(lines);
            }
            lines.extend()?;
        }
    }

    /// Where in the file we stand: the beginning of the line that was given last.
    pub(super) fn position(&self) -> u64 {
        self.base + self.end as u64
    }

    /// The line before, without its newline. `None` at the beginning of the file, and where it has no newline for longer
    /// than any record is: that is damage, and before it lies nothing of ours that could be found.
    pub(super) fn previous(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let whole = self.end.checked_sub(1);
            let newline = whole.and_then(|whole| self.bytes[..whole].iter().rposition(|byte| *byte == b'\n'));
            let start = match (whole, newline) {
                (Some(_), Some(newline)) => newline + 1,
                (Some(_), None) if self.base == 0 => 0,
                (None, _) if self.base == 0 => return Ok(None),
                _ if self.end > 2 * MAX_RECORD => return Ok(None),
                _ => {
                    self.extend()?;
                    continue;
                }
            };
            let line = start..self.end - 1;
            self.end = start;
            return Ok(Some(&self.bytes[line]));
        }
    }

    /// Reads the block before.
    fn extend(&mut self) -> io::Result<()> {
        let length = usize::try_from(self.base).unwrap_or(BLOCK).min(BLOCK);
        let from = self.base - length as u64;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, from)?;
        bytes.extend_from_slice(&self.bytes[..self.end]);
        (self.base, self.bytes, self.end) = (from, bytes, length + self.end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8]) {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        let whole = &bytes[..bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)];
        let mut lines = Backwards::new(&file).unwrap();
        let mut position = whole.len();
        assert_eq!(lines.position(), position as u64);
        for expected in whole.split_inclusive(|byte| *byte == b'\n').rev() {
            assert_eq!(lines.previous().unwrap(), Some(&expected[..expected.len() - 1]));
            position -= expected.len();
            assert_eq!(lines.position(), position as u64);
        }
        assert_eq!(lines.previous().unwrap(), None);
    }

    #[test]
    fn all_lines_come_in_reverse() {
        for bytes in [&b""[..], b"\n", b"a\n", b"a\nb", b"no newline", b"\n\n\n", b"one\n\ntwo\nthree\nrest"] {
            check(bytes);
        }
        let mut long = Vec::new();
        for number in 0..2000usize {
            long.extend(std::iter::repeat_n(b'x', number * 7919 % 16_000 / (1 + number % 50)));
            long.push(b'\n');
        }
        for cut in [0, 1, 17, BLOCK, 3 * BLOCK + 1] {
            check(&long[..long.len() - cut]);
        }
        check(&[vec![b'y'; BLOCK - 1], vec![b'\n'], vec![b'z'; 10_000], vec![b'\n'; 3]].concat()[BLOCK - 16_000..]);
    }

    #[test]
    fn a_file_without_newlines_is_left_alone() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &vec![0; 10 * BLOCK]).unwrap();
        let mut lines = Backwards::new(&file).unwrap();
        assert_eq!(lines.previous().unwrap(), None);
        assert!(lines.bytes.len() <= 2 * BLOCK);
        io::Write::write_all(&mut file, b"\nlast\n").unwrap();
        let mut lines = Backwards::new(&file).unwrap();
        assert_eq!(lines.previous().unwrap(), Some(&b"last"[..]));
        assert_eq!(lines.previous().unwrap(), None);
    }
}
