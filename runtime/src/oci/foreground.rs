//! Staying with a process until its end: signals are passed on to it, and when its terminal is ours to show, what is
//! typed here goes there and what it writes comes here.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::Failure;
use crate::sys;

/// Bytes that are read at a time, and that wait at most for a terminal whose process does not read.
const CHUNK: usize = 4096;

/// This process, as the one that a user looks at.
pub(super) struct Foreground {
    signals: OwnedFd,
    /// Where the master of the process's terminal comes.
    console: Option<OwnedFd>,
}

impl Foreground {
    /// From now on signals wait until there is somebody to pass them on to. Before anything is cloned.
    pub(super) fn begin() -> Result<Foreground, Failure> {
        let signals = sys::all_signals();
        let failed = |errno| Failure::system("block signals")(io::Error::from_raw_os_error(errno));
        Ok(Foreground { signals: signals.map_err(failed)?, console: None })
    }

    /// Takes over the terminal of the process that is about to be made. Returns where its master is to be sent.
    pub(super) fn take_console(&mut self) -> Result<OwnedFd, Failure> {
        let made = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = made.map_err(|errno| Failure::system("make a socket")(errno.into()))?;
        self.console = Some(ours);
        Ok(theirs)
    }

    /// Rows and columns of the user's own terminal, when there is one.
    pub(super) fn window() -> Option<(u16, u16)> {
        let size = tcgetwinsize(io::stdin()).ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    }

    /// Returns when the process has ended. It must have executed its program, or have failed to.
    pub(super) fn stay(mut self, pidfd: BorrowedFd<'_>) -> Result<(), Failure> {
        let mut relay = self.console.take().map(|console| Relay::begin(&console)).transpose()?;
        loop {
            let mut sources = vec![Source::End, Source::Signals];
            let mut fds = vec![
                PollFd::from_borrowed_fd(pidfd, PollFlags::IN),
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            ];
            if let Some(relay) = &relay {
                relay.add(&mut sources, &mut fds);
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Failure::system("wait for the process")(errno.into())),
            }
            let ready = |(_, fd): &(&Source, &PollFd<'_>)| !fd.revents().is_empty();
            let ready: Vec<Source> = sources.iter().zip(&fds).filter(ready).map(|(source, _)| *source).collect();
            for source in &ready {
                match (source, &mut relay) {
                    (Source::Signals, relay) => self.pass_on(pidfd, relay.as_ref()),
                    (Source::Input, Some(relay)) => relay.read_input(),
                    (Source::Master, Some(relay)) => relay.serve_master(),
                    _ => {}
                }
            }
            if ready.contains(&Source::End) {
                // What it wrote last is in the terminal still.
                while relay.as_mut().is_some_and(Relay::show) {}
                return Ok(());
            }
        }
    }

    fn pass_on(&self, pidfd: BorrowedFd<'_>, relay: Option<&Relay>) {
        for signal in sys::pending_signals(self.signals.as_fd()) {
            match relay {
                Some(relay) if signal == libc::SIGWINCH => relay.resize(),
                // It may have ended meanwhile.
                _ => _ = sys::send_signal(pidfd, signal),
            }
        }
    }
}

/// Waits for the end of a child.
pub(super) fn wait(pid: Pid) -> Result<WaitStatus, Failure> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::system("wait for the process")(errno.into())),
        }
    }
}

/// An end in the words of shells.
pub(super) fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// What there is to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Of the process.
    End,
    Signals,
    /// The user's standard input.
    Input,
    Master,
}

/// The bytes between the user's standard streams and the master of a terminal.
struct Relay {
    master: OwnedFd,
    /// Puts the user's terminal back when this goes.
    _raw: Option<Raw>,
    /// What was read here and not yet taken there.
    typed: VecDeque<u8>,
    input_open: bool,
    /// Somebody has the terminal.
    master_open: bool,
    /// Somebody reads what is shown; without them it is thrown away, so that nobody is held up.
    output_open: bool,
}

impl Relay {
    fn begin(console: &OwnedFd) -> Result<Relay, Failure> {
        let failed = |errno: Errno| Failure::system("take the terminal")(errno.into());
        let master = receive(console).map_err(failed)?;
        rustix::io::ioctl_fionbio(&master, true).map_err(failed)?;
        let (typed, raw) = (VecDeque::new(), Raw::begin());
        Ok(Relay { master, _raw: raw, typed, input_open: true, master_open: true, output_open: true })
    }

    fn add<'a>(&'a self, sources: &mut Vec<Source>, fds: &mut Vec<PollFd<'a>>) {
        if self.input_open && self.typed.is_empty() {
            sources.push(Source::Input);
            fds.push(PollFd::from_borrowed_fd(stdin(), PollFlags::IN));
        }
        if self.master_open {
            let more = if self.typed.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            sources.push(Source::Master);
            fds.push(PollFd::new(&self.master, PollFlags::IN | more));
        }
    }

    fn read_input(&mut self) {
        let mut chunk = [0u8; CHUNK];
        match rustix::io::read(stdin(), &mut chunk) {
            Ok(count @ 1..) => self.typed.extend(chunk.get(..count).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Its end is not the process's.
            Ok(_) | Err(_) => self.input_open = false,
        }
    }

    fn serve_master(&mut self) {
        self.show();
        while !self.typed.is_empty() {
            match rustix::io::write(&self.master, self.typed.as_slices().0) {
                Ok(count) => _ = self.typed.drain(..count),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    /// Shows what is there. `false`: nothing more.
    fn show(&mut self) -> bool {
        let mut chunk = [0u8; CHUNK];
        match rustix::io::read(&self.master, &mut chunk) {
            Ok(count @ 1..) => {
                let bytes = chunk.get(..count).unwrap_or_default();
                self.output_open = self.output_open && write_all(bytes).is_ok();
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // That of the last slave that was open.
            Ok(_) | Err(_) => {
                self.master_open = false;
                false
            }
        }
    }

    /// As large as the user's terminal.
    fn resize(&self) {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            // Without its size it is a terminal all the same.
            let _ = tcsetwinsize(&self.master, size);
        }
    }
}

fn stdin() -> BorrowedFd<'static> {
    static STDIN: std::sync::LazyLock<io::Stdin> = std::sync::LazyLock::new(io::stdin);
    STDIN.as_fd()
}

/// To the standard output, also when that does not block.
fn write_all(mut bytes: &[u8]) -> Result<(), Errno> {
    let stdout = io::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(&stdout, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => _ = poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], None)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The master that the process has sent before its exec.
fn receive(console: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0u8; 64];
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(console, &mut [IoSliceMut::new(&mut name)], &mut ancillary, flags)?;
    let mut fds = ancillary.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    // It died before it had one.
    fds.next().and_then(|mut fds| fds.next()).ok_or(Errno::PIPE)
}

/// The user's terminal in raw mode: what is typed, ^C among it, is for the terminal at the other end.
struct Raw {
    before: Termios,
}

impl Raw {
    /// `None`: the standard input is no terminal.
    fn begin() -> Option<Raw> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Whoever has hung up has no terminal to put back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
