//! The shim's loop, from the creation to the recorded exit.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};

use super::connection::{Connection, Waiting};
use super::create::Made;
use crate::init::{self, Report, Step};
use crate::logs::{LogStream, Writer};
use crate::protocol::{Answer, Ask, Failed, MAX_NAME, MAX_PARKED, Request, State, done, refused};
use crate::stored::{self, Durability, StoredExit, names, nanos};
use crate::sys;

/// Clients at a time; the daemon needs three or four.
const MAX_CONNECTIONS: usize = 64;
/// Bytes taken from a stream in one turn.
const CHUNK: usize = 32 << 10;
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
    log: Writer,
    open: [bool; 2],
    connections: Vec<Connection>,
    parked: BTreeMap<String, Vec<OwnedFd>>,
    started_at: Option<SystemTime>,
    exit: Option<StoredExit>,
    recorded: bool,
    shutdown: bool,
    chunk: Vec<u8>,
}

/// What became ready in one turn.
#[derive(Default)]
struct Ready {
    children: bool,
    listener: bool,
    report: bool,
    streams: [bool; 2],
    connections: Vec<bool>,
}

/// Serves until the container has ended and its exit is recorded.
pub(super) fn serve(made: Made) {
    let log = Writer::new(made.dir.join(names::LOG), made.log);
    let mut shim = Shim {
        made,
        phase: Phase::Created,
        log,
        open: [true; 2],
        connections: Vec::new(),
        parked: BTreeMap::new(),
        started_at: None,
        exit: None,
        recorded: false,
        shutdown: false,
        chunk: vec![0; CHUNK],
    };
    while !shim.finished() {
        let ready = shim.wait();
        shim.turn(&ready);
    }
    shim.say_farewell();
}

impl Shim {
    fn finished(&self) -> bool {
        self.exit.is_some() && (self.recorded || self.shutdown)
    }

    /// Sleeps until something happens.
    fn wait(&self) -> Ready {
        let flags = |output: bool| if output { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds =
            vec![PollFd::new(&self.made.children, PollFlags::IN), PollFd::new(&self.made.listener, PollFlags::IN)];
        // A closed pipe would be ready for ever, so it is not asked.
        let watched =
            |fd, open: bool| PollFd::from_borrowed_fd(fd, if open { PollFlags::IN } else { PollFlags::empty() });
        let streams = [self.made.stdout.as_fd(), self.made.stderr.as_fd()];
        let place_of_streams = fds.len();
        let mut asked = [false; 2];
        for (number, stream) in streams.iter().enumerate() {
            if self.open[number] {
                asked[number] = true;
                fds.push(watched(*stream, true));
            }
        }
        let place_of_report = fds.len();
        if self.phase == Phase::Starting {
            fds.push(watched(self.made.report.as_fd(), true));
        }
        let place_of_connections = fds.len();
        for connection in &self.connections {
            fds.push(PollFd::from_borrowed_fd(connection.fd(), flags(connection.has_output())));
        }
        let retry = Timespec { tv_sec: i64::try_from(RETRY.as_secs()).unwrap_or(1), tv_nsec: 0 };
        let timeout = (self.exit.is_some() && !self.recorded).then_some(&retry);
        if poll(&mut fds, timeout).is_err() {
            return Ready { connections: vec![false; self.connections.len()], ..Ready::default() };
        }
        let is_ready = |place: usize| fds.get(place).is_some_and(|fd| !fd.revents().is_empty());
        let mut place = place_of_streams;
        let mut streams = [false; 2];
        for (number, asked) in asked.iter().enumerate() {
            if *asked {
                streams[number] = is_ready(place);
                place += 1;
            }
        }
        Ready {
            children: is_ready(0),
            listener: is_ready(1),
            report: self.phase == Phase::Starting && is_ready(place_of_report),
            streams,
            connections: (0..self.connections.len()).map(|n| is_ready(place_of_connections + n)).collect(),
        }
    }

    fn turn(&mut self, ready: &Ready) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            if ready.streams[place(stream)] {
                self.drain(stream);
            }
        }
        if ready.report {
            self.hear_start();
        }
        if ready.children {
            self.reap();
        }
        for (number, ready) in ready.connections.iter().enumerate() {
            if *ready {
                self.converse(number);
            }
        }
        self.connections.retain(|connection| !connection.closed());
        if ready.listener {
            self.accept();
        }
        if self.exit.is_some() && !self.recorded {
            self.record_exit();
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.made.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection::new(stream));
            }
        }
    }

    /// Reads once. `false` when there is no more for now.
    fn drain(&mut self, stream: LogStream) -> bool {
        let fd: BorrowedFd<'_> = match stream {
            LogStream::Stdout => self.made.stdout.as_fd(),
            LogStream::Stderr => self.made.stderr.as_fd(),
        };
        match rustix::io::read(fd, self.chunk.as_mut_slice()) {
            Ok(0) => {
                self.open[place(stream)] = false;
                self.log.finish(stream, SystemTime::now());
                false
            }
            Ok(count) => {
                self.log.write(stream, self.chunk.get(..count).unwrap_or_default(), SystemTime::now());
                true
            }
            Err(Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// The report pipe after "go": its end means that the exec has happened, a report that it could not.
    fn hear_start(&mut self) {
        let mut bytes = [0u8; init::REPORT_SIZE];
        let answer = match rustix::io::read(&self.made.report, &mut bytes) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok(0) => {
                self.started_at = Some(SystemTime::now());
                self.phase = Phase::Running;
                Answer::State(self.state())
            }
            Ok(count) => {
                self.phase = Phase::Running;
                Answer::NotStarted(start_failure(bytes.get(..count).unwrap_or_default()))
            }
            Err(errno) => {
                self.phase = Phase::Running;
                refused(format!("the report of the start: {errno}"))
            }
        };
        self.answer_all(Waiting::Start, &answer);
    }

    fn answer_all(&mut self, waiting: Waiting, answer: &Answer) {
        for connection in self.connections.iter_mut().filter(|connection| connection.waiting == waiting) {
            connection.waiting = Waiting::Nothing;
            connection.answer(answer.clone(), Vec::new());
        }
    }

    /// Reaps all that has ended: the container's first process and, as a subreaper, whatever was left to us.
    fn reap(&mut self) {
        let mut discarded = [0u8; 128];
        while rustix::io::read(&self.made.children, &mut discarded).is_ok() {}
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if u32::try_from(pid.as_raw_nonzero().get()) == Ok(self.made.pid) {
                        self.ended(status);
                    }
                }
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    fn ended(&mut self, status: WaitStatus) {
        if self.phase == Phase::Starting {
            // Its last word, if it had one, is in the pipe.
            self.hear_start();
            self.answer_all(Waiting::Start, &refused("the container was killed before its start"));
        }
        self.phase = Phase::Exited;
        let signal = status.terminating_signal();
        let code = match (status.exit_status(), signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => 255,
        };
        // The namespace's other processes were killed with the first, so all that they wrote is in the pipes. One
        // that was handed out of the container could keep a pipe open for ever: it is not waited for.
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let mut turns = 0;
            while self.open[place(stream)] && turns < 1024 && self.drain(stream) {
                turns += 1;
            }
            self.log.finish(stream, SystemTime::now());
            self.open[place(stream)] = false;
        }
        self.exit = Some(StoredExit {
            code,
            signal,
            oom_killed: self.made.cgroups.oom_killed(&self.made.id),
            finished_at_nanos: nanos(SystemTime::now()),
            shim_lost: false,
            started_at_nanos: self.started_at.map(nanos),
            dropped_log_records: self.log.dropped(),
        });
    }

    /// Puts the exit on disk, and only then tells those who wait.
    fn record_exit(&mut self) {
        let Some(exit) = &self.exit else { return };
        match stored::write(&self.made.dir, names::EXIT, exit, Durability::Synced) {
            Ok(()) => {
                self.recorded = true;
                self.answer_all(Waiting::Exit, &done());
            }
            // The directory is gone: the container is being deleted, there is nobody to tell.
            Err(_) if !self.made.dir.exists() => self.recorded = true,
            // No room. We stay, so that the record is not lost, and try again.
            Err(_) => {}
        }
    }

    fn converse(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(number) else { return };
        connection.flush();
        while let Some((request, fds)) = self.connections.get_mut(number).and_then(Connection::receive) {
            self.obey(number, request, fds);
        }
    }

    fn obey(&mut self, number: usize, request: Request, fds: Vec<OwnedFd>) {
        let mut given = Vec::new();
        let answer = match request.ask {
            Some(Ask::State(_)) => Some(Answer::State(self.state())),
            Some(Ask::Start(_)) => match self.start() {
                Ok(()) => {
                    self.set_waiting(number, Waiting::Start);
                    None
                }
                Err(reason) => Some(refused(reason)),
            },
            Some(Ask::Signal(signal)) => Some(self.signal(signal)),
            Some(Ask::Wait(_)) if self.recorded => Some(done()),
            Some(Ask::Wait(_)) => {
                self.set_waiting(number, Waiting::Exit);
                None
            }
            Some(Ask::PutFds(name)) => Some(self.park(name, fds)),
            Some(Ask::GetFds(name)) => {
                let parked = self.parked.get(&name).map(Vec::as_slice).unwrap_or_default();
                match parked.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>() {
                    Ok(fds) => {
                        given = fds;
                        Some(done())
                    }
                    Err(error) => Some(refused(error.to_string())),
                }
            }
            Some(Ask::Shutdown(_)) => {
                self.shutdown = true;
                if self.exit.is_none() {
                    let _ = sys::send_signal(self.made.pidfd.as_fd(), libc::SIGKILL);
                    self.made.cgroups.kill(&self.made.id);
                }
                Some(done())
            }
            None => Some(refused("this shim does not know the request")),
        };
        if let (Some(answer), Some(connection)) = (answer, self.connections.get_mut(number)) {
            connection.answer(answer, given);
        }
    }

    fn set_waiting(&mut self, number: usize, waiting: Waiting) {
        if let Some(connection) = self.connections.get_mut(number) {
            connection.waiting = waiting;
        }
    }

    fn state(&self) -> State {
        State {
            pid: self.made.pid,
            started_at_nanos: self.started_at.map(nanos),
            exited: self.exit.is_some(),
            dropped_log_records: self.log.dropped(),
        }
    }

    fn start(&mut self) -> Result<(), &'static str> {
        match self.phase {
            Phase::Created => match rustix::io::write(&self.made.go, b"g") {
                Ok(_) => {
                    self.phase = Phase::Starting;
                    Ok(())
                }
                Err(_) => Err("the container is gone"),
            },
            Phase::Starting | Phase::Running => Err("already started"),
            Phase::Exited => Err("already exited"),
        }
    }

    fn signal(&self, signal: i32) -> Answer {
        if self.exit.is_some() {
            return refused("already exited");
        }
        match sys::send_signal(self.made.pidfd.as_fd(), signal) {
            Ok(()) => done(),
            Err(errno) => refused(crate::error::errno_text(errno)),
        }
    }

    fn park(&mut self, name: String, fds: Vec<OwnedFd>) -> Answer {
        if name.len() > MAX_NAME {
            return refused("the name is too long");
        }
        if fds.is_empty() {
            self.parked.remove(&name);
            return done();
        }
        if self.parked.len() >= MAX_PARKED && !self.parked.contains_key(&name) {
            return refused("too many parked descriptors");
        }
        self.parked.insert(name, fds);
        done()
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
            let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            let _ = poll(&mut fds, Some(&tick));
            self.connections.iter_mut().for_each(Connection::flush);
        }
    }
}

fn place(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
    }
}

fn start_failure(bytes: &[u8]) -> Failed {
    let (step, errno) = match Report::decode(bytes) {
        Some(Report::Failed { step, errno, .. }) => (step, errno),
        _ => (Step::Exec, libc::EIO),
    };
    Failed { step: step.code(), subject: String::new(), errno, reason: crate::error::errno_text(errno) }
}
