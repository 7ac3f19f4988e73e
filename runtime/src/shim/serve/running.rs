//! Further processes in the container, from the request to the end.

use std::os::fd::OwnedFd;

use rustix::process::WaitStatus;

use super::{Phase, Shim, Waiting};
use crate::protocol::{self, Answer, done, refused};
use crate::shim::execs::{self, MAX_EXECS};

impl Shim {
    /// Clones one. Its number, or the answer why not.
    pub(super) fn begin_exec(&mut self, request: protocol::Exec, fds: Vec<OwnedFd>) -> Result<u64, Answer> {
        match self.phase {
            Phase::Running => {}
            Phase::Created | Phase::Starting => return Err(refused("the container is not running yet")),
            Phase::Exited => return Err(refused("already exited")),
        }
        if self.execs.len() >= MAX_EXECS {
            return Err(refused(format!("it runs {MAX_EXECS} further processes already")));
        }
        self.last_exec += 1;
        let begun = execs::begin(&self.made, self.last_exec, request, fds);
        // What it took to plan it.
        self.settling.again();
        self.execs.push(begun.map_err(|failure| Answer::NotStarted(*failure))?);
        Ok(self.last_exec)
    }

    /// What one has to say of its start.
    pub(super) fn hear_exec(&mut self, number: u64) {
        let Some(exec) = self.execs.iter_mut().find(|exec| exec.number == number) else { return };
        match exec.hear() {
            None => {}
            Some(Ok(started)) => {
                // The same connection then waits for its end.
                for connection in self.connections.iter_mut().filter(|one| one.waiting == Waiting::Exec(number)) {
                    connection.answer(Answer::ExecStarted(started.clone()), Vec::new());
                }
            }
            Some(Err(failure)) => self.answer_all(Waiting::Exec(number), &Answer::NotStarted(failure)),
        }
    }

    /// A child that is not the container's first process has ended; it may be one of these.
    pub(super) fn exec_ended(&mut self, pid: u32, status: WaitStatus) {
        let Some(number) = self.execs.iter().find(|exec| exec.pid == pid).map(|exec| exec.number) else { return };
        // Its last word, if it had one, is in the pipe.
        self.hear_exec(number);
        self.execs.retain(|exec| exec.number != number);
        self.answer_all(Waiting::Exec(number), &Answer::ExecEnded(execs::ended(status)));
    }

    pub(super) fn signal_exec(&self, wanted: &protocol::SignalExec) -> Answer {
        match self.execs.iter().find(|exec| exec.number == wanted.number) {
            Some(exec) => exec.signal(wanted.signal, wanted.group).map_or_else(refused, |()| done()),
            None => refused("already exited"),
        }
    }
}
