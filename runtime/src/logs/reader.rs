//! The daemon's half of a log: records in order, across rotations, from any point.
//!
//! A place in a log is always the beginning of a line: what is not whole yet is read again when there is more, so it may
//! be cut and replaced meanwhile, as the writer does when a disk becomes full.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::backwards::Backwards;
use super::format::{MAX_RECORD, parse, parse_head};
use super::{LogOptions, LogRecord, name_of, numbers};

/// Reads one container's log. Blocking; each step is short.
#[derive(Debug)]
pub(crate) struct Reader {
    dir: PathBuf,
    options: LogOptions,
    /// What is being read, and from where on.
    file: Option<(u64, File)>,
    offset: u64,
    /// Later files, held so that a reader who is behind does not lose them to the rotation.
    ahead: VecDeque<(u64, File)>,
    /// A record later than `until` was seen.
    past_end: bool,
    chunk: Vec<u8>,
}

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Files held for one reader at the most. A slower one has gaps, for a container never waits for its readers.
const MAX_AHEAD: usize = 8;

impl Reader {
    /// A reader that stands where `options` begin.
    pub(crate) fn new(dir: PathBuf, options: LogOptions) -> io::Result<Reader> {
        let (ahead, chunk) = (VecDeque::new(), Vec::new());
        let mut reader = Reader { dir, options, file: None, offset: 0, ahead, past_end: false, chunk };
        if let Some(tail) = reader.options.tail {
            reader.seek_tail(tail)?;
        } else if let Some(since) = reader.options.since {
            reader.seek_time(since)?;
        }
        Ok(reader)
    }

    /// The next records, some at a time. Empty: there are none now.
    pub(crate) fn next_batch(&mut self) -> io::Result<Vec<LogRecord>> {
        let mut records = Vec::new();
        self.look_ahead()?;
        while records.is_empty() && !self.past_end {
            let mut lines = Vec::new();
            if !self.step(&mut lines)? {
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

    /// Reads a chunk. `false`: nothing new anywhere.
    fn step(&mut self, lines: &mut Vec<LogRecord>) -> io::Result<bool> {
        if self.file.is_none() && !self.advance() {
            return Ok(false);
        }
        if self.take(lines)? {
            return Ok(true);
        }
        self.look_ahead()?;
        if self.ahead.is_empty() {
            return Ok(false);
        }
        // The writer opens the next file only after its last write to this one, so one more look is enough.
        Ok(self.take(lines)? || self.advance())
    }

    /// Takes the whole lines from here on. `false`: there is none.
    fn take(&mut self, lines: &mut Vec<LogRecord>) -> io::Result<bool> {
        let Some((_, file)) = &self.file else { return Ok(false) };
        self.chunk.resize(CHUNK, 0);
        let count = file.read_at(&mut self.chunk, self.offset)?;
        let bytes = &self.chunk[..count];
        let Some(last) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            // Longer than any record, and no line: damage, which is passed over.
            if count > MAX_RECORD {
                self.offset += count as u64;
            }
            return Ok(count > MAX_RECORD);
        };
        self.offset += last as u64 + 1;
        // A damaged line (a power cut) is passed over.
        lines.extend(bytes[..last].split(|byte| *byte == b'\n').filter_map(parse));
        Ok(true)
    }

    /// Opens the files after those that are open.
    pub(super) fn look_ahead(&mut self) -> io::Result<()> {
        if self.ahead.len() >= MAX_AHEAD {
            return Ok(());
        }
        let known = self.ahead.back().or(self.file.as_ref()).map_or(0, |(number, _)| *number);
        let newer = self.files()?.into_iter().filter(|number| *number > known);
        for number in newer.take(MAX_AHEAD - self.ahead.len()) {
            // One that has vanished meanwhile was rotated away.
            if let Some(file) = self.open(number)? {
                self.ahead.push_back((number, file));
            }
        }
        Ok(())
    }

    /// The files that there are. A container may have been deleted meanwhile: then there are none.
    fn files(&self) -> io::Result<Vec<u64>> {
        match numbers(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        }
    }

    fn open(&self, number: u64) -> io::Result<Option<File>> {
        match File::open(self.dir.join(name_of(number))) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Goes to the beginning of the next file.
    fn advance(&mut self) -> bool {
        let next = self.ahead.pop_front();
        let found = next.is_some();
        if found {
            (self.file, self.offset) = (next, 0);
        }
        found
    }

    /// Walks from the end towards the beginning and stands before the last `tail` wanted records.
    fn seek_tail(&mut self, tail: usize) -> io::Result<()> {
        let mut found = 0;
        for number in self.files()?.into_iter().rev() {
            let Some(file) = self.open(number)? else { break };
            let mut lines = Backwards::new(&file)?;
            let mut place = lines.position();
            let mut done = found >= tail;
            while !done {
                let Some(line) = lines.previous()? else { break };
                let Some((head, _)) = parse_head(line) else { continue };
                // Times only grow: before this one nothing is wanted.
                if self.options.since.is_some_and(|since| head.at < since) {
                    done = true;
                } else if self.options.wants_at(head.stream, head.at) {
                    found += 1;
                    place = lines.position();
                    done = found >= tail;
                }
            }
            if let Some(later) = self.file.replace((number, file)) {
                self.ahead.push_front(later);
                // What is given up here is opened again when its turn has come.
                self.ahead.truncate(MAX_AHEAD);
            }
            self.offset = place;
            if done {
                break;
            }
        }
        Ok(())
    }

    /// Stands a little before the first record of this time or later.
    fn seek_time(&mut self, since: SystemTime) -> io::Result<()> {
        for number in self.files()?.into_iter().rev() {
            let Some(file) = self.open(number)? else { break };
            let begins_before = self.time_after(&file, 0)?.is_some_and(|(_, first)| first < since);
            if let Some(later) = self.file.replace((number, file)) {
                self.ahead.push_front(later);
                self.ahead.truncate(MAX_AHEAD);
            }
            if begins_before {
                break;
            }
        }
        let Some((number, file)) = self.file.take() else { return Ok(()) };
        let (mut low, mut high) = (0, file.metadata()?.len());
        while high.saturating_sub(low) > CHUNK as u64 {
            let middle = low + (high - low) / 2;
            match self.time_after(&file, middle)? {
                Some((start, at)) if at < since => low = start.max(middle),
                _ => high = middle,
            }
        }
        self.file = Some((number, file));
        self.offset = low;
        Ok(())
    }

    /// Place and time of the first good record that begins at `offset` or, in the middle of a file, after it.
    fn time_after(&mut self, file: &File, offset: u64) -> io::Result<Option<(u64, SystemTime)>> {
        self.chunk.resize(CHUNK, 0);
        let count = file.read_at(&mut self.chunk, offset)?;
        let bytes = &self.chunk[..count];
        let mut start = match offset {
            0 => 0,
            _ => bytes.iter().position(|byte| *byte == b'\n').map_or(count, |newline| newline + 1),
        };
        while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
            if let Some((head, _)) = parse_head(&bytes[start..start + length]) {
                return Ok(Some((offset + start as u64, head.at)));
            }
            start += length + 1;
        }
        Ok(None)
    }
}
