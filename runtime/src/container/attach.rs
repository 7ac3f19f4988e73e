//! A container's own standard streams, live: what it writes from now on, and where it reads from.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::monitor::broken_off;
use super::runtime::blocking;
use super::{Container, Inner, Runtime, StdStream, client};
use crate::RuntimeError;
use crate::logs::LogStream;
use crate::protocol::{self, Answer, Ask, Attach, Empty};

/// A piece of a container's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputPiece {
    /// What it wrote, at most 32 KiB.
    Output(LogStream, Bytes),
    /// Why nothing more follows, though the container goes on.
    Remark(String),
}

/// Pieces on their way to a reader: 4 MiB at the most, beside what the shim holds for it.
const PIECES: usize = 128;
/// Room for reading, grown as needed.
const CHUNK: usize = 32 << 10;

impl Runtime {
    /// What the container writes from now on, also from before its start. The channel ends with the container, or after
    /// a remark when it was read too slowly: the container never waits for a reader.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it has exited.
    pub async fn attach(
        &self,
        id: &str,
        stdout: bool,
        stderr: bool,
    ) -> Result<mpsc::Receiver<OutputPiece>, RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        let opened = blocking(move || inner.open_output(&container, Attach { stdout, stderr })).await?;
        let (stream, buffer) = opened;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(|source| RuntimeError::Shim {
            id: id.to_owned(),
            operation: "to attach",
            source,
        })?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let mut monitors = self.inner.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        while monitors.try_join_next().is_some() {}
        monitors.spawn(forward(stream, buffer, sender));
        drop(monitors);
        Ok(receiver)
    }

    /// The container's standard input or, when it has a terminal, that. Everyone who asks has the same one.
    ///
    /// # Errors
    /// [`RuntimeError::WrongState`] when it has exited, [`RuntimeError::ShimRefused`] when it has none.
    pub async fn stdin(&self, id: &str) -> Result<StdStream, RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        let fd = blocking(move || inner.stdin(&container)).await?;
        StdStream::new(fd).map_err(|source| RuntimeError::Shim {
            id: id.to_owned(),
            operation: "for the standard input",
            source,
        })
    }

    /// Has the standard input end when the copies of [`Runtime::stdin`] are dropped too. A terminal's does not end.
    ///
    /// # Errors
    /// As [`Runtime::stdin`].
    pub async fn close_stdin(&self, id: &str) -> Result<(), RuntimeError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.get(id)?);
        let ask = Ask::CloseStdin(Empty {});
        blocking(move || inner.ask(&container, "to close the standard input", ask, &[]).map(drop)).await
    }

    /// Tells the container's terminal how large its window is.
    ///
    /// # Errors
    /// As [`Runtime::stdin`]; [`RuntimeError::ShimRefused`] or [`RuntimeError::Shim`] when it has no terminal.
    pub async fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<(), RuntimeError> {
        let terminal = self.stdin(id).await?;
        terminal.resize(rows, columns).map_err(|source| RuntimeError::Shim {
            id: id.to_owned(),
            operation: "to resize the terminal",
            source,
        })
    }
}

impl Inner {
    fn open_output(&self, container: &Container, wanted: Attach) -> Result<(UnixStream, Vec<u8>), RuntimeError> {
        if container.exit().is_some() {
            return Err(container.wrong_state());
        }
        let lost = |source| broken_off(container, "to attach", source);
        let stream = client::connect(&self.socket(&container.id)).map_err(lost)?;
        client::send(&stream, Ask::Attach(wanted), &[]).map_err(lost)?;
        let mut buffer = Vec::new();
        match client::receive_more(&stream, &mut buffer).map_err(lost)?.0 {
            Answer::Done(_) => {}
            Answer::Refused(_) if container.exit().is_some() => return Err(container.wrong_state()),
            Answer::Refused(refused) => {
                let (id, reason) = (container.id.clone(), refused.reason);
                return Err(RuntimeError::ShimRefused { id, operation: "to attach", reason });
            }
            _ => return Err(lost(io::ErrorKind::InvalidData.into())),
        }
        stream.set_nonblocking(true).map_err(lost)?;
        Ok((stream, buffer))
    }

    fn stdin(&self, container: &Container) -> Result<OwnedFd, RuntimeError> {
        const OPERATION: &str = "for the standard input";
        let (_, fds) = self.ask(container, OPERATION, Ask::Stdin(Empty {}), &[])?;
        fds.into_iter().next().ok_or_else(|| RuntimeError::Shim {
            id: container.id.clone(),
            operation: OPERATION,
            source: io::ErrorKind::InvalidData.into(),
        })
    }
}

/// Moves pieces from the shim to the reader, at the reader's pace.
async fn forward(mut stream: tokio::net::UnixStream, mut buffer: Vec<u8>, sender: mpsc::Sender<OutputPiece>) {
    loop {
        loop {
            let piece = match protocol::take_output(&mut buffer) {
                Ok(None) => break,
                Ok(Some((protocol::OUTPUT_STDOUT, data))) => OutputPiece::Output(LogStream::Stdout, data.into()),
                Ok(Some((protocol::OUTPUT_STDERR, data))) => OutputPiece::Output(LogStream::Stderr, data.into()),
                Ok(Some((_, text))) => OutputPiece::Remark(String::from_utf8_lossy(&text).into_owned()),
                Err(_) => return,
            };
            if sender.send(piece).await.is_err() {
                return;
            }
        }
        buffer.reserve(CHUNK);
        let count = tokio::select! {
            biased;
            () = sender.closed() => return,
            count = stream.read_buf(&mut buffer) => count,
        };
        if !count.is_ok_and(|count| count > 0) {
            return;
        }
    }
}
