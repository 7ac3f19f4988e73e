//! The shim's half of a log: bytes from the container's streams in, records out, into files, to a log daemon, or nowhere.
//!
//! It never fails and never waits. The shim's loop asks what to wait for ([`Output::watched`], [`Output::patience`]) and
//! calls [`Output::go_on`] then.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::event::PollFlags;

use super::LogStream;
use super::forward::Forward;
use super::split::Splitter;
use super::writer::Writer;
use crate::config::LogConfig;

/// Where one container's output goes.
pub(crate) struct Output {
    splitter: Splitter,
    files: Option<Writer>,
    forward: Option<Forward>,
}

impl Output {
    /// `dir` holds the files, and exists; `pid` is the container's first process.
    pub(crate) fn new(dir: PathBuf, config: &LogConfig, container_id: &str, pid: u32) -> Output {
        Output {
            splitter: Splitter::new(),
            files: config.files.then(|| Writer::new(dir, config.max_size, config.max_files)),
            forward: config.forward.clone().map(|config| Forward::new(config, container_id, pid)),
        }
    }

    /// Records that were lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.files.as_ref().map_or(0, Writer::dropped) + self.forward.as_ref().map_or(0, Forward::dropped)
    }

    /// Takes what was read from a stream.
    pub(crate) fn write(&mut self, stream: LogStream, data: &[u8], now: SystemTime) {
        let (files, forward) = (&mut self.files, &mut self.forward);
        self.splitter.split(stream, data, now, &mut |piece| {
            if let Some(files) = files {
                files.push(piece);
            }
            if let Some(forward) = forward {
                forward.push(piece);
            }
        });
        self.flush();
    }

    /// The stream has ended.
    pub(crate) fn finish(&mut self, stream: LogStream, now: SystemTime) {
        let (files, forward) = (&mut self.files, &mut self.forward);
        self.splitter.finish(stream, now, &mut |piece| {
            if let Some(files) = files {
                files.push(piece);
            }
            if let Some(forward) = forward {
                forward.push(piece);
            }
        });
        self.flush();
    }

    fn flush(&mut self) {
        if let Some(files) = &mut self.files {
            files.flush();
        }
        self.go_on();
    }

    /// What to wait for.
    pub(crate) fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.forward.as_ref().and_then(Forward::watched)
    }

    /// How long to wait at the most.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.forward.as_ref().and_then(Forward::patience)
    }

    /// Sends what can be sent now.
    pub(crate) fn go_on(&mut self) {
        if let Some(forward) = &mut self.forward {
            forward.go_on();
        }
    }

    /// Whether closing it may have to wait for somebody.
    pub(crate) fn is_forwarded(&self) -> bool {
        self.forward.is_some()
    }

    /// Nothing more will be written. Takes half a second at the most.
    pub(crate) fn close(&mut self) {
        if let Some(forward) = &mut self.forward {
            forward.close();
        }
    }
}
