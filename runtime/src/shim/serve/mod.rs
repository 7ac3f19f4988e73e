//! The shim's loop, from the creation to the recorded exit: what it owns, what it waits for, and whose turn it is.
//!
//! The work itself is done next door: [`life`] (start, end, exit record), [`output`] (the container's streams),
//! [`running`] (further processes), [`requests`] (what the daemon asks) and [`settle`] (what can wait). To wait for
//! another descriptor, give it a [`Source`].

mod life;
mod output;
mod requests;
mod running;
mod settle;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};

use settle::Settling;

use super::connection::{Connection, Waiting};
use super::create::Made;
use super::execs::Exec;
use super::timespec;
use crate::logs::{LogStream, Output};
use crate::protocol::{Answer, done};
use crate::stored::{StoredExit, names};

/// How often a full disk is asked again for room for the exit record.
const RETRY: Duration = Duration::from_secs(1);
/// How long the last answers may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Starting,
    Running,
    Exited,
}

struct Shim {
    made: Made,
    phase: Phase,
    log: Output,
    /// Lost log records that the daemon knows of, and since when.
    told: (u64, Option<Instant>),
    /// Whether the stream may still bring something.
    open: [bool; 2],
    connections: Vec<Connection>,
    parked: BTreeMap<String, Vec<OwnedFd>>,
    /// Further processes in the container, with and without somebody who waits for them.
    execs: Vec<Exec>,
    last_exec: u64,
    started_at: Option<SystemTime>,
    exit: Option<StoredExit>,
    recorded: bool,
    /// A record is there already, though its log had not been closed.
    on_record: bool,
    shutdown: bool,
    settling: Settling,
    chunk: Vec<u8>,
}

/// What a watched descriptor stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A stream of the container's has something to read, or has ended.
    Output(LogStream),
    /// A log daemon takes more, or has gone.
    Log,
    /// The first process says how its exec went.
    Report,
    /// A further process says how its exec went: the one with this number.
    Exec(u64),
    /// A child has ended.
    Children,
    /// The connection at this place has a request, takes more of an answer, or has ended.
    Connection(usize),
    /// Somebody connects.
    Listener,
}

/// Serves until the container has ended and its exit is recorded.
pub(super) fn serve(made: Made) {
    let log = Output::new(made.dir.join(names::LOG), &made.log, &made.id, made.pid);
    let open = [true, made.stderr.is_some()];
    let mut shim = Shim {
        made,
        phase: Phase::Created,
        log,
        told: (0, None),
        open,
        connections: Vec::new(),
        parked: BTreeMap::new(),
        execs: Vec::new(),
        last_exec: 0,
        started_at: None,
        exit: None,
        recorded: false,
        on_record: false,
        shutdown: false,
        settling: Settling::new(),
        chunk: vec![0; output::CHUNK],
    };
    while !shim.finished() {
        let ready = shim.wait();
        shim.turn(&ready);
        shim.settle(ready.is_empty());
    }
    shim.say_farewell();
}

impl Shim {
    fn finished(&self) -> bool {
        self.exit.is_some() && (self.recorded || self.shutdown)
    }

    /// What there is to wait for, in the order in which it is served: output first, so that what a process wrote before
    /// its end is seen before its end; new connections last, so that places of connections hold for the turn.
    fn watched(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut watched = Vec::with_capacity(6 + self.connections.len());
        for stream in LogStream::ALL {
            // A closed pipe would be ready for ever, so it is not asked.
            if self.open[stream.index()]
                && let Some(fd) = self.stream(stream)
            {
                watched.push((Source::Output(stream), fd, PollFlags::IN));
            }
        }
        watched.extend(self.log.watched().map(|(fd, flags)| (Source::Log, fd, flags)));
        if self.phase == Phase::Starting {
            watched.push((Source::Report, self.made.report.as_fd(), PollFlags::IN));
        }
        for exec in &self.execs {
            if let Some(report) = &exec.report {
                watched.push((Source::Exec(exec.number), report.as_fd(), PollFlags::IN));
            }
        }
        watched.push((Source::Children, self.made.children.as_fd(), PollFlags::IN));
        for (number, connection) in self.connections.iter().enumerate() {
            let flags = if connection.has_output() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            watched.push((Source::Connection(number), connection.fd(), flags));
        }
        watched.push((Source::Listener, self.made.listener.as_fd(), PollFlags::IN));
        watched
    }

    /// After which time something must be tried again; `None`: only events matter.
    fn patience(&self) -> Option<Duration> {
        let record = (self.exit.is_some() && !self.recorded).then_some(RETRY);
        [record, self.settling.patience(), self.log.patience()].into_iter().flatten().min()
    }

    /// Sleeps until something happens, and says what did.
    fn wait(&self) -> Vec<Source> {
        let watched = self.watched();
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let timeout = self.patience().map(timespec);
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        ready.map(|((source, ..), _)| *source).collect()
    }

    fn turn(&mut self, ready: &[Source]) {
        for source in ready {
            match *source {
                Source::Output(stream) => {
                    self.drain(stream);
                }
                Source::Log => self.log.go_on(),
                Source::Report => self.hear_start(),
                Source::Exec(number) => self.hear_exec(number),
                Source::Children => self.reap(),
                Source::Connection(number) => self.converse(number),
                Source::Listener => {
                    self.let_go_of_closed();
                    self.accept();
                }
            }
        }
        if self.log.patience().is_some() {
            self.log.go_on();
        }
        self.let_go_of_closed();
        self.tell_of_lost_records();
        if self.exit.is_some() && !self.recorded {
            self.record_exit();
        }
    }

    /// A process that has not executed its command when nobody waits for it any more must not do so later.
    fn let_go_of_closed(&mut self) {
        for connection in self.connections.iter().filter(|connection| connection.closed()) {
            if let Waiting::Exec(number) = connection.waiting
                && let Some(exec) = self.execs.iter().find(|exec| exec.number == number && exec.report.is_some())
            {
                let _ = exec.signal(libc::SIGKILL, false);
            }
        }
        self.connections.retain(|connection| !connection.closed());
    }

    fn answer_all(&mut self, waiting: Waiting, answer: &Answer) {
        for connection in self.connections.iter_mut().filter(|connection| connection.waiting == waiting) {
            connection.waiting = Waiting::Nothing;
            connection.answer(answer.clone(), Vec::new());
        }
    }

    /// The socket goes first, so that nobody comes any more; those who are here get their answers.
    fn say_farewell(mut self) {
        let _ = std::fs::remove_file(&self.made.socket);
        self.answer_all(Waiting::Exit, &done());
        let deadline = Instant::now() + FAREWELL;
        while self.connections.iter().any(Connection::has_output) && Instant::now() < deadline {
            let mut fds: Vec<PollFd<'_>> = self
                .connections
                .iter()
                .filter(|connection| connection.has_output())
                .map(|connection| PollFd::from_borrowed_fd(connection.fd(), PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Some(&timespec(Duration::from_millis(100))));
            self.connections.iter_mut().for_each(Connection::flush);
        }
    }
}
