//! The container's life: how its exec went, its end, and the record of it.

use std::time::SystemTime;

use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus};

use super::{Phase, Shim, Waiting};
use crate::init::{self, Report, Step};
use crate::protocol::{Answer, Failed, State, done, refused};
use crate::stored::{self, Durability, StoredExit, names, nanos};

impl Shim {
    /// The report pipe after "go": its end means that the exec has happened, a report that it could not.
    pub(super) fn hear_start(&mut self) {
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
        self.settling.again();
    }

    /// Reaps all that has ended: the container's first process and, as a subreaper, whatever was left to us.
    pub(super) fn reap(&mut self) {
        let mut discarded = [0u8; 128];
        while rustix::io::read(&self.made.children, &mut discarded).is_ok() {}
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
                    if pid == self.made.pid {
                        self.ended(status);
                    } else {
                        self.exec_ended(pid, status);
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
        let exit = StoredExit {
            code,
            signal,
            oom_killed: self.made.cgroups.oom_killed(&self.made.id),
            finished_at_nanos: nanos(SystemTime::now()),
            shim_lost: false,
            started_at_nanos: self.started_at.map(nanos),
            dropped_log_records: self.log.dropped(),
        };
        // A log daemon may take half a second for the rest, in which nobody but us would know the code.
        self.on_record =
            self.log.is_forwarded() && stored::write(&self.made.dir, names::EXIT, &exit, Durability::ThisBoot).is_ok();
        self.drain_the_rest();
        self.exit = Some(StoredExit { dropped_log_records: self.log.dropped(), ..exit });
    }

    /// Puts the exit into its file, and only then tells those who wait. The daemon that is told syncs it.
    pub(super) fn record_exit(&mut self) {
        let Some(exit) = &self.exit else { return };
        match stored::write(&self.made.dir, names::EXIT, exit, Durability::ThisBoot) {
            // No room for a second one: what it lacks is how many records the log lost at its very end.
            outcome if outcome.is_ok() || self.on_record => {
                self.recorded = true;
                self.answer_all(Waiting::Exit, &done());
            }
            // The directory is gone: the container is being deleted, there is nobody to tell.
            Err(_) if !self.made.dir.exists() => self.recorded = true,
            // No room. We stay, so that the record is not lost, and try again.
            _ => {}
        }
    }

    pub(super) fn state(&self) -> State {
        State {
            pid: self.made.pid,
            started_at_nanos: self.started_at.map(nanos),
            exited: self.exit.is_some(),
            dropped_log_records: self.log.dropped(),
        }
    }
}

fn start_failure(bytes: &[u8]) -> Failed {
    let (step, errno) = match Report::decode(bytes) {
        Some(Report::Failed { step, errno, .. }) => (step, errno),
        _ => (Step::Exec, libc::EIO),
    };
    Failed { step: step.code(), subject: String::new(), errno, reason: crate::error::errno_text(errno) }
}
