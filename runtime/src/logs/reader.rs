//! The daemon's half of a log: records in order, across rotations, from any point.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::format::{MAX_RECORD, parse};
use super::{LogOptions, LogRecord, name_of, numbers};

/// Reads one container's log. Blocking; each step is short.
#[derive(Debug)]
pub(crate) struct Reader {
    dir: PathBuf,
    options: LogOptions,
    file: Option<(u64, File)>,
    offset: u64,
    /// Read, but not yet a whole line.
    partial: Vec<u8>,
    /// A record later than `until` was seen.
    past_end: bool,
}

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Beyond so many the whole log is read instead: positions must fit in memory.
const MAX_TAIL: usize = 1 << 20;

impl Reader {
    /// A reader that stands where `options` begin.
    pub(crate) fn new(dir: PathBuf, options: LogOptions) -> io::Result<Reader> {
        let mut reader = Reader { dir, options, file: None, offset: 0, partial: Vec::new(), past_end: false };
        if let Some(tail) = reader.options.tail.filter(|tail| *tail <= MAX_TAIL) {
            reader.seek_tail(tail)?;
        }
        Ok(reader)
    }

    /// The next records, some at a time. Empty: there are none now.
    pub(crate) fn next_batch(&mut self) -> io::Result<Vec<LogRecord>> {
        let mut records = Vec::new();
        while records.is_empty() && !self.past_end {
            let mut lines = Vec::new();
            if !self.step(&mut |_, _, record| lines.push(record))? {
                break;
            }
            for record in lines {
                self.past_end |= self.options.until.is_some_and(|until| record.at > until);
                if self.options.wants(&record) {
                    records.push(record);
                }
            }
        }
        Ok(records)
    }

    /// Whether a follower has seen everything that it may see.
    pub(crate) fn past_end(&self) -> bool {
        self.past_end
    }

    /// Reads a chunk and gives each record with the place where it begins. `false`: nothing new anywhere.
    fn step(&mut self, each: &mut dyn FnMut(u64, u64, LogRecord)) -> io::Result<bool> {
        if self.file.is_none() && !self.open_after(0)? {
            return Ok(false);
        }
        let Some((number, file)) = &self.file else { return Ok(false) };
        let (number, mut chunk) = (*number, vec![0; CHUNK]);
        let count = file.read_at(&mut chunk, self.offset)?;
        if count == 0 {
            // The writer opens the next file only after its last write to this one, so one more look is enough.
            if numbers(&self.dir)?.last().is_none_or(|last| *last <= number) {
                return Ok(false);
            }
            let more = file.read_at(&mut chunk, self.offset)?;
            if more == 0 {
                return self.open_after(number);
            }
            return self.take(number, &chunk[..more], each);
        }
        self.take(number, &chunk[..count], each)
    }

    fn take(&mut self, number: u64, chunk: &[u8], each: &mut dyn FnMut(u64, u64, LogRecord)) -> io::Result<bool> {
        let mut start = self.offset - self.partial.len() as u64;
        self.offset += chunk.len() as u64;
        self.partial.extend_from_slice(chunk);
        let mut consumed = 0;
        while let Some(length) = self.partial[consumed..].iter().position(|byte| *byte == b'\n') {
            // A damaged line (a power cut) is passed over.
            if let Some(record) = parse(&self.partial[consumed..consumed + length]) {
                each(number, start, record);
            }
            consumed += length + 1;
            start += length as u64 + 1;
        }
        self.partial.drain(..consumed);
        if self.partial.len() > MAX_RECORD {
            self.partial.clear();
        }
        Ok(true)
    }

    /// Opens the first file after this number. One that has vanished meanwhile was rotated away: the next is tried.
    fn open_after(&mut self, number: u64) -> io::Result<bool> {
        loop {
            let found = match numbers(&self.dir) {
                Ok(numbers) => numbers.into_iter().find(|candidate| *candidate > number),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let Some(next) = found else { return Ok(false) };
            match File::open(self.dir.join(name_of(next))) {
                Ok(file) => {
                    self.file = Some((next, file));
                    self.offset = 0;
                    self.partial.clear();
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Walks over the whole log once and stands before the last `tail` wanted records.
    fn seek_tail(&mut self, tail: usize) -> io::Result<()> {
        let options = self.options.clone();
        let mut places: VecDeque<(u64, u64)> = VecDeque::new();
        let mut each = |number, start, record: LogRecord| {
            if options.wants(&record) {
                if places.len() >= tail {
                    places.pop_front();
                }
                if tail > 0 {
                    places.push_back((number, start));
                }
            }
        };
        while self.step(&mut each)? {}
        if let Some((number, start)) = places.front().copied() {
            let reopened = match &self.file {
                Some((open, _)) if *open == number => true,
                _ => match File::open(self.dir.join(name_of(number))) {
                    Ok(file) => {
                        self.file = Some((number, file));
                        true
                    }
                    // Rotated away while we walked: its successor begins with what is left.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.open_after(number)?;
                        false
                    }
                    Err(error) => return Err(error),
                },
            };
            if reopened {
                self.offset = start;
                self.partial.clear();
            }
        }
        Ok(())
    }
}
