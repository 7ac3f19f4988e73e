//! A container's log: one line a record, in numbered files.
//!
//! `<time> <stream> <kind> <data>` and a newline: the time is RFC 3339 with nine digits and `Z`, the stream `stdout`
//! or `stderr`, the kind `F` (a full line) or `P` (a piece: the line was too long, or its newline never came). Data is
//! what the container wrote, byte for byte, without the newline. The files are `log/<ten digits>.log`; the highest
//! number is being written, the lowest are removed. Times only grow. The shim writes ([`Output`]), the daemon reads
//! ([`Reader`]).

mod backwards;
mod follow;
mod format;
mod forward;
mod journal;
mod output;
mod reader;
mod split;
mod syslog;
mod writer;

use std::time::SystemTime;

use bytes::Bytes;

pub(crate) use follow::follow;
pub(crate) use output::Output;
pub(crate) use reader::Reader;

/// Which of its two streams a container wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// Both.
    pub(crate) const ALL: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];

    /// A place in a pair.
    pub(crate) fn index(self) -> usize {
        match self {
            LogStream::Stdout => 0,
            LogStream::Stderr => 1,
        }
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// When the shim read it.
    pub at: SystemTime,
    /// Where it was written.
    pub stream: LogStream,
    /// What was written, with its newline. A piece of a longer line (at most 16 KiB), or a last line without a
    /// newline, has none.
    pub data: Bytes,
}

/// Which records of a log are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Go on with what is written later, until the container has ended.
    pub follow: bool,
    /// Not those before.
    pub since: Option<SystemTime>,
    /// Not those after; a follower ends there.
    pub until: Option<SystemTime>,
    /// At most so many of the existing ones, the last.
    pub tail: Option<usize>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { stdout: true, stderr: true, follow: false, since: None, until: None, tail: None }
    }
}

impl LogOptions {
    pub(crate) fn wants(&self, record: &LogRecord) -> bool {
        self.wants_at(record.stream, record.at)
    }

    fn wants_at(&self, stream: LogStream, at: SystemTime) -> bool {
        let wanted = match stream {
            LogStream::Stdout => self.stdout,
            LogStream::Stderr => self.stderr,
        };
        wanted && self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at <= until)
    }
}

/// `0000000012.log` is 12.
fn number_of(name: &std::ffi::OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(".log")?;
    digits.parse().ok().filter(|_| digits.len() == 10)
}

fn name_of(number: u64) -> String {
    format!("{number:010}.log")
}

/// The numbers of a log's files, ascending.
fn numbers(dir: &std::path::Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        numbers.extend(number_of(&entry?.file_name()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests;
