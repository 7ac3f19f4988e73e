//! What the daemon asks of a shim, one function a request.

use std::os::fd::{AsFd, OwnedFd};

use super::{Connection, Phase, Shim, Waiting};
use crate::protocol::{self, Answer, Ask, MAX_NAME, MAX_PARKED, Request, done, refused};
use crate::shim::connection::Attached;
use crate::sys;

/// Clients at a time; the daemon needs three or four, and one for each further process and each reader of the output.
const MAX_CONNECTIONS: usize = 512;

impl Shim {
    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.made.listener.accept() {
            if self.connections.len() < MAX_CONNECTIONS && stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection::new(stream));
            }
        }
    }

    /// Sends what is queued, reads what has come, and obeys.
    pub(super) fn converse(&mut self, number: usize) {
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
            Some(Ask::GetFds(name)) => Some(match self.parked(&name) {
                Ok(fds) => {
                    given = fds;
                    done()
                }
                Err(error) => refused(error.to_string()),
            }),
            Some(Ask::Shutdown(_)) => Some(self.shut_down()),
            Some(Ask::Exec(exec)) => match self.begin_exec(exec, fds) {
                Ok(exec) => {
                    self.set_waiting(number, Waiting::Exec(exec));
                    None
                }
                Err(answer) => Some(answer),
            },
            Some(Ask::SignalExec(wanted)) => Some(self.signal_exec(&wanted)),
            Some(Ask::Attach(wanted)) => Some(self.attach(number, &wanted)),
            Some(Ask::Stdin(_)) => Some(match self.made.stdin.as_ref().map(OwnedFd::try_clone) {
                Some(Ok(fd)) => {
                    given.push(fd);
                    done()
                }
                Some(Err(error)) => refused(error.to_string()),
                None => refused("its standard input is not open"),
            }),
            Some(Ask::CloseStdin(_)) => {
                // A terminal has no end of its own.
                if self.made.stderr.is_some() {
                    self.made.stdin = None;
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

    fn attach(&mut self, number: usize, wanted: &protocol::Attach) -> Answer {
        if self.exit.is_some() {
            return refused("already exited");
        }
        if let Some(connection) = self.connections.get_mut(number) {
            connection.attach(Attached { stdout: wanted.stdout, stderr: wanted.stderr });
        }
        done()
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

    fn parked(&self, name: &str) -> std::io::Result<Vec<OwnedFd>> {
        self.parked.get(name).map(Vec::as_slice).unwrap_or_default().iter().map(OwnedFd::try_clone).collect()
    }

    fn shut_down(&mut self) -> Answer {
        self.shutdown = true;
        if self.exit.is_none() {
            let _ = sys::send_signal(self.made.pidfd.as_fd(), libc::SIGKILL);
            self.made.cgroups.kill(&self.made.id);
        }
        done()
    }
}
