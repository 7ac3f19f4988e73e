//! One end of a process's standard stream, as something to await: a pipe, or the master of its terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A standard stream of a process in a container. A clone is the same stream; it is closed with its last clone.
#[derive(Debug, Clone)]
pub struct StdStream {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl StdStream {
    /// Must be called within the async runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<StdStream> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(StdStream { fd: Arc::new(sys::async_fd(fd)?) })
    }

    /// Reads what is there, waiting until something is. 0: its end.
    ///
    /// # Errors
    /// Whatever the kernel says of the pipe or terminal.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // Readiness alone never yields to others, and some write without end.
        tokio::task::consume_budget().await;
        loop {
            let mut guard = self.fd.readable().await?;
            match rustix::io::read(guard.get_inner(), &mut *buffer) {
                Ok(count) => return Ok(count),
                // The last process with this terminal has gone.
                Err(Errno::IO) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads what is there. `None`: nothing now.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> Option<usize> {
        rustix::io::read(self.fd.get_ref(), buffer).ok()
    }

    /// Writes everything, waiting for room.
    ///
    /// # Errors
    /// `BrokenPipe` when nobody reads any more.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            tokio::task::consume_budget().await;
            let mut guard = self.fd.writable().await?;
            match rustix::io::write(guard.get_inner(), data) {
                Ok(count) => data = data.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::IO) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Tells a terminal how large its window is.
    ///
    /// # Errors
    /// When it is none.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.fd.as_fd(), size)?)
    }
}
