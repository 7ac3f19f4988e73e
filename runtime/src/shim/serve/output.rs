//! What the container writes: from its pipes, or its terminal, to its log and to those who are attached.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;

use super::{Connection, Shim, Waiting};
use crate::logs::LogStream;
use crate::protocol::Answer;

/// Bytes taken from a stream in one turn.
pub(super) const CHUNK: usize = 32 << 10;
/// Turns of one stream at its end: more than a pipe can hold. Whoever still writes then is not the container.
const LAST_TURNS: usize = 1024;

/// How often the daemon is told that records are being lost.
const TELL_EVERY: Duration = Duration::from_secs(10);

impl Shim {
    /// Our end of a stream; with a terminal there is one only.
    pub(super) fn stream(&self, stream: LogStream) -> Option<BorrowedFd<'_>> {
        match stream {
            LogStream::Stdout => Some(self.made.stdout.as_fd()),
            LogStream::Stderr => self.made.stderr.as_ref().map(AsFd::as_fd),
        }
    }

    /// Reads once. `false` when there is no more for now.
    pub(super) fn drain(&mut self, stream: LogStream) -> bool {
        let fd: BorrowedFd<'_> = match (stream, &self.made.stderr) {
            (LogStream::Stdout, _) => self.made.stdout.as_fd(),
            (LogStream::Stderr, Some(stderr)) => stderr.as_fd(),
            (LogStream::Stderr, None) => return false,
        };
        match rustix::io::read(fd, self.chunk.as_mut_slice()) {
            Ok(0) => {
                self.open[stream.index()] = false;
                self.log.finish(stream, SystemTime::now());
                false
            }
            Ok(count) => {
                let data = self.chunk.get(..count).unwrap_or_default();
                self.log.write(stream, data, SystemTime::now());
                self.connections.iter_mut().for_each(|connection| connection.show(stream, data));
                true
            }
            Err(Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// The container has ended. The namespace's other processes were killed with its first, so all that they wrote is in
    /// the pipes. One that was handed out of the container could keep a pipe open for ever: it is not waited for.
    pub(super) fn drain_the_rest(&mut self) {
        for stream in LogStream::ALL {
            let mut turns = 0;
            while self.open[stream.index()] && turns < LAST_TURNS && self.drain(stream) {
                turns += 1;
            }
            self.log.finish(stream, SystemTime::now());
            self.open[stream.index()] = false;
        }
        self.log.close();
        self.connections.iter_mut().for_each(Connection::end_output);
    }

    /// Whoever waits for the end hears meanwhile that records find no room, at the first one and now and then.
    pub(super) fn tell_of_lost_records(&mut self) {
        let (told, at) = self.told;
        let dropped = self.log.dropped();
        if dropped == told || at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = (dropped, Some(Instant::now()));
        let answer = Answer::State(self.state());
        for connection in self.connections.iter_mut().filter(|connection| connection.waiting == Waiting::Exit) {
            connection.answer(answer.clone(), Vec::new());
        }
    }
}
