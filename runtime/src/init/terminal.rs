//! The terminal of a process: a pair made in the container's own devpts, whose master goes to whoever shows it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::mounts::{resolve, show_at};
use super::{AtStep, Outcome, Prepared, Step};

/// What becomes of `/dev/console`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Console {
    /// The terminal is the container's own, and shown there.
    Make,
    /// It is one more.
    Leave,
}

/// Makes the terminal, when one is wanted, sends its master away and puts its slave in place of the standard streams.
pub(super) fn open(prepared: &mut Prepared, root: BorrowedFd<'_>, console: Console) -> Outcome<()> {
    let Some(socket) = prepared.console.take() else { return Ok(()) };
    let slave = pair(&socket, root, prepared.window, console).at(Step::Terminal)?;
    let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).at(Step::Terminal);
    prepared.stdout = copy(&slave)?;
    prepared.stderr = copy(&slave)?;
    prepared.stdin = slave;
    prepared.has_terminal = true;
    Ok(())
}

/// Makes the terminal the session's, after the standard streams were put in place.
pub(super) fn take_control(prepared: &Prepared) -> Outcome<()> {
    if prepared.has_terminal {
        rustix::process::ioctl_tiocsctty(&prepared.stdin).at(Step::Terminal)?;
    }
    Ok(())
}

fn pair(
    socket: &OwnedFd,
    root: BorrowedFd<'_>,
    window: Option<(u16, u16)>,
    console: Console,
) -> Result<OwnedFd, Errno> {
    let master = resolve(root, c"dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK)?;
    check(&master)?;
    // The daemon and the shim set what they need; a blocking master is what everyone else expects.
    rustix::io::ioctl_fionbio(&master, false)?;
    unlockpt(&master)?;
    // By way of the master, not by a name that could have been put over the slave.
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    if let Some((rows, columns)) = window {
        tcsetwinsize(&slave, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    if console == Console::Make {
        show_at(root, slave.as_fd(), c"dev/console")?;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    // The form of `--console-socket`: the name of the terminal, and its master with it.
    sendmsg(socket, &[IoSlice::new(b"/dev/pts/ptmx")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(slave)
}

/// A container that runs may have put anything in this place.
fn check(master: &OwnedFd) -> Result<(), Errno> {
    const DEVPTS: u64 = 0x1cd1;
    let stat = rustix::fs::fstat(master)?;
    let is_ptmx = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(5, 2)
        && u64::try_from(rustix::fs::fstatfs(master)?.f_type) == Ok(DEVPTS);
    if is_ptmx { Ok(()) } else { Err(Errno::NOTTY) }
}
