//! Records into rotated files.
//!
//! It never fails and never waits: a container must not stand still because a disk is full. What finds no room is
//! dropped and counted.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use super::format::{Kind, TimeText, push};
use super::split::Piece;
use super::{name_of, numbers};

/// One write a batch; a batch stays well below the size of a file.
const BATCH: usize = 32 << 10;

/// Writes the files of one container's log.
pub(super) struct Writer {
    dir: PathBuf,
    max_size: u64,
    max_files: u32,
    file: Option<File>,
    number: u64,
    /// Bytes of the file that are whole records.
    size: u64,
    time: TimeText,
    out: Vec<u8>,
    /// Records in `out`.
    records: u64,
    dropped: u64,
}

impl Writer {
    /// A writer in this directory, which exists. It goes on after the files that are there.
    pub(super) fn new(dir: PathBuf, max_size: u64, max_files: u32) -> Writer {
        let number = numbers(&dir).ok().and_then(|numbers| numbers.last().copied()).unwrap_or(0);
        let (time, out) = (TimeText::default(), Vec::new());
        let mut writer =
            Writer { dir, max_size, max_files, file: None, number, size: 0, time, out, records: 0, dropped: 0 };
        writer.open_next();
        writer
    }

    /// Records that were lost because they could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes a record. It is in the file after the next [`Writer::flush`].
    pub(super) fn push(&mut self, piece: &Piece<'_>) {
        let kind = if piece.full { Kind::Full } else { Kind::Piece };
        push(&mut self.out, self.time.of(piece.at), piece.stream, kind, piece.data);
        self.records += 1;
        if self.out.len() >= BATCH || self.size + self.out.len() as u64 >= self.max_size {
            self.flush();
        }
    }

    /// Writes what has been taken.
    pub(super) fn flush(&mut self) {
        if self.records == 0 {
            return;
        }
        let too_long = self.size > 0 && self.size + self.out.len() as u64 > self.max_size;
        if too_long || self.file.is_none() {
            self.open_next();
        }
        let written = self.append();
        // A disk that became full in the middle: whole records stay, for a reader may have seen them; the rest is cut.
        let whole = &self.out[..written];
        let kept = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        self.size += kept as u64;
        if kept < self.out.len() {
            let lines = whole[..kept].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.dropped += self.records - lines;
            if let Some(file) = &self.file {
                let _ = file.set_len(self.size);
            }
        }
        self.out.clear();
        self.out.shrink_to(BATCH / 4);
        self.records = 0;
    }

    /// Writes at a fixed offset, so that what was cut is overwritten by the next batch. Returns how many bytes went.
    fn append(&mut self) -> usize {
        let Some(file) = &self.file else { return 0 };
        let mut written = 0;
        while written < self.out.len() {
            match file.write_at(&self.out[written..], self.size + written as u64) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        written
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
        let keep_from = next.saturating_sub(u64::from(self.max_files) - 1);
        for old in numbers(&self.dir).unwrap_or_default().into_iter().filter(|number| *number < keep_from) {
            let _ = std::fs::remove_file(self.dir.join(name_of(old)));
        }
    }
}
