//! A process somewhere else and the terminal here: bytes both ways, raw mode, sizes, signals.

use std::io::{IsTerminal, Read};

use bytes::{Bytes, BytesMut};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::client::{Client, Hijacked, route};
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::streams::{print, take};

/// Bytes that are read at once.
const PIECE: usize = 32 << 10;

/// What of this side a process is given.
pub(super) struct Session<'a> {
    pub(super) client: &'a Client,
    /// Its streams are a terminal's.
    pub(super) tty: bool,
    /// It is sent what is typed here.
    pub(super) stdin: bool,
    /// Where it is told how large the terminal is: `["exec", id]`.
    pub(super) resize: [&'a str; 2],
    /// A container that gets the signals that come here.
    pub(super) signals_to: Option<&'a str>,
}

/// Rows and columns of the terminal here, if there is one.
pub(super) fn window() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Refuses to play a terminal where none is.
pub(super) fn check_input(tty: bool, stdin: bool) -> Result<(), CliError> {
    if tty && stdin && !std::io::stdin().is_terminal() {
        return Err(CliError::usage(
            "standard input is no terminal: leave out -t, or -i if the command needs no input",
        ));
    }
    Ok(())
}

/// A terminal that hands over every key as it is typed; itself again when this is dropped.
struct RawMode {
    before: Termios,
}

impl RawMode {
    fn begin() -> Option<RawMode> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(RawMode { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Standard input in pieces. A thread reads it that nobody waits for: it may hang in its last read for ever.
fn input() -> Result<mpsc::Receiver<Bytes>, CliError> {
    let (sender, receiver) = mpsc::channel(4);
    let read = move || {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                break;
            }
        }
    };
    let started = std::thread::Builder::new().name("stdin".to_owned()).spawn(read);
    started.map_err(|e| CliError::Failed(format!("cannot read standard input: {e}")))?;
    Ok(receiver)
}

impl Session<'_> {
    /// Moves bytes until the process, or its engine, ends the connection.
    pub(super) async fn run(&self, hijacked: Hijacked) -> Result<(), CliError> {
        let handler = |kind| signal(kind).map_err(|e| CliError::Failed(format!("cannot handle signals: {e}")));
        let (mut resized, mut ends) = (handler(SignalKind::window_change())?, handler(SignalKind::terminate())?);
        let (mut hung_up, mut interrupted) = (handler(SignalKind::hangup())?, None);
        if self.signals_to.is_some() && !self.tty {
            interrupted = Some(handler(SignalKind::interrupt())?);
        }
        let _raw = if self.tty && self.stdin { RawMode::begin() } else { None };
        self.tell_size().await;
        let mut typed = if self.stdin { Some(input()?) } else { None };
        let (mut from, mut to) = tokio::io::split(hijacked.stream);
        if !self.stdin {
            // The process has nothing to wait for. One that has ended takes it no more.
            let _ = to.shutdown().await;
        }
        let mut buffer = BytesMut::with_capacity(PIECE);
        loop {
            tokio::select! {
                read = from.read_buf(&mut buffer) => match read {
                    Ok(0) => return self.ended(&buffer),
                    Ok(_) => self.show(&mut buffer)?,
                    Err(e) => return Err(CliError::Unavailable(format!("the connection to the engine broke: {e}"))),
                },
                piece = next(&mut typed) => match piece {
                    // What does not go through any more shows at the other end of the connection.
                    Some(piece) => drop(to.write_all(&piece).await),
                    None => {
                        typed = None;
                        let _ = to.shutdown().await;
                    }
                },
                _ = resized.recv() => self.tell_size().await,
                _ = ends.recv() => self.pass_on("TERM", 143).await?,
                _ = hung_up.recv() => self.pass_on("HUP", 129).await?,
                () = received(&mut interrupted) => self.pass_on("INT", 130).await?,
            }
        }
    }

    fn show(&self, buffer: &mut BytesMut) -> Result<(), CliError> {
        if self.tty {
            return output::raw(&buffer.split());
        }
        while let Some((kind, payload)) = take(buffer)? {
            match kind {
                3 => output::note(format_args!("shoal: {}", output::printable(&String::from_utf8_lossy(&payload)))),
                kind => print(kind, &payload)?,
            }
        }
        Ok(())
    }

    fn ended(&self, rest: &BytesMut) -> Result<(), CliError> {
        match rest.is_empty() {
            true => Ok(()),
            false => Err(CliError::Unavailable("the connection to the engine broke".to_owned())),
        }
    }

    /// A signal that came here goes to the container, or ends this.
    async fn pass_on(&self, signal: &str, code: u8) -> Result<(), CliError> {
        let Some(container) = self.signals_to.filter(|_| !self.tty) else { return Err(CliError::Exit(code)) };
        let path = route(&["containers", container, "kill"], &[("signal", signal)]);
        self.client.post_empty(&path).await.map(drop)
    }

    /// A process that has not begun, or has ended, needs not to know.
    async fn tell_size(&self) {
        let Some((rows, columns)) = window().filter(|_| self.tty) else { return };
        let (rows, columns) = (rows.to_string(), columns.to_string());
        let path = route(&[self.resize[0], self.resize[1], "resize"], &[("h", &rows), ("w", &columns)]);
        let _ = self.client.post_empty(&path).await;
    }
}

/// The next piece; never, when nothing is read.
async fn next(typed: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
