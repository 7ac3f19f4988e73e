//! The shim's half of a log: bytes from two pipes in, records in rotated files out.
//!
//! It never fails and never waits: a container must not stand still because a disk is full. What finds no room is
//! dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::SystemTime;

use super::format::{Kind, MAX_DATA, format_time, push};
use super::{LogStream, name_of, numbers};
use crate::config::LogConfig;

/// Writes one container's log.
pub(crate) struct Writer {
    dir: PathBuf,
    config: LogConfig,
    file: Option<File>,
    number: u64,
    /// Bytes of the file that are whole records.
    size: u64,
    /// The beginning of a line whose end has not come yet, for each stream.
    pending: [Vec<u8>; 2],
    out: Vec<u8>,
    /// Records in `out`.
    records: u64,
    dropped: u64,
}

impl Writer {
    /// A writer in this directory, which exists. It goes on after the files that are there.
    pub(crate) fn new(dir: PathBuf, config: LogConfig) -> Writer {
        let number = numbers(&dir).ok().and_then(|numbers| numbers.last().copied()).unwrap_or(0);
        let (pending, out) = ([Vec::new(), Vec::new()], Vec::new());
        let mut writer = Writer { dir, config, file: None, number, size: 0, pending, out, records: 0, dropped: 0 };
        writer.open_next();
        writer
    }

    /// Records that were lost because they could not be written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes what was read from a stream.
    pub(crate) fn write(&mut self, stream: LogStream, mut data: &[u8], at: SystemTime) {
        let time = format_time(at);
        while !data.is_empty() {
            let pending = &mut self.pending[index(stream)];
            let room = MAX_DATA - pending.len();
            let newline = data.iter().take(room + 1).position(|byte| *byte == b'\n');
            let (take, kind) = match newline {
                Some(at) => (at, Some(Kind::Full)),
                None if data.len() >= room => (room, Some(Kind::Piece)),
                None => (data.len(), None),
            };
            let (line, rest) = data.split_at(take);
            data = if newline.is_some() { rest.get(1..).unwrap_or_default() } else { rest };
            let Some(kind) = kind else {
                pending.extend_from_slice(line);
                continue;
            };
            if pending.is_empty() {
                push(&mut self.out, &time, stream, kind, line);
            } else {
                pending.extend_from_slice(line);
                push(&mut self.out, &time, stream, kind, pending);
                pending.clear();
            }
            self.records += 1;
            // One write a batch; a batch stays well below the size of a file.
            if self.out.len() >= 64 << 10 || self.size + self.out.len() as u64 >= self.config.max_size {
                self.flush();
            }
        }
        self.flush();
    }

    /// The stream has ended: what has no newline is written as it is.
    pub(crate) fn finish(&mut self, stream: LogStream, at: SystemTime) {
        let pending = std::mem::take(&mut self.pending[index(stream)]);
        if !pending.is_empty() {
            push(&mut self.out, &format_time(at), stream, Kind::Piece, &pending);
            self.records += 1;
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.records == 0 {
            return;
        }
        if self.size > 0 && self.size + self.out.len() as u64 > self.config.max_size {
            self.open_next();
        }
        if self.file.is_none() {
            self.open_next();
        }
        match self.append() {
            Ok(()) => self.size += self.out.len() as u64,
            Err(_) => self.dropped += self.records,
        }
        self.out.clear();
        self.out.shrink_to(64 << 10);
        self.records = 0;
    }

    fn append(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::StorageFull.into()) };
        // At a fixed offset, so that a batch that was cut by a full disk is overwritten by the next one.
        file.write_all_at(&self.out, self.size).inspect_err(|_| {
            let _ = file.set_len(self.size);
        })?;
        file.flush()
    }

    /// Begins the next file and removes the oldest. On failure the present one goes on: too long beats lost.
    fn open_next(&mut self) {
        let next = self.number + 1;
        let opened =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(self.dir.join(name_of(next)));
        let Ok(file) = opened else { return };
        self.file = Some(file);
        self.number = next;
        self.size = 0;
        let keep_from = next.saturating_sub(u64::from(self.config.max_files) - 1);
        for old in numbers(&self.dir).unwrap_or_default().into_iter().filter(|number| *number < keep_from) {
            let _ = std::fs::remove_file(self.dir.join(name_of(old)));
        }
    }
}

fn index(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
    }
}
