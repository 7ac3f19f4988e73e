//! Moves bytes between a client and a process: the connection of an attach or an exec, after HTTP is done with it.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use runtime::{LogStream, OutputPiece, StdStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::super::streams::{self, Stream};
use super::detach::DetachKeys;

/// Bytes that are moved at once.
const CHUNK: usize = 32 << 10;
/// A process that has ended may have left others with its pipes open; what they write is not waited for longer.
const LEFT_OPEN: Duration = Duration::from_millis(100);
/// What a client reads is sent within this time, or it has gone.
const FAREWELL: Duration = Duration::from_secs(10);

/// A client's connection, whole again after the upgrade.
pub(super) struct Client {
    reader: ReadHalf<TokioIo<Upgraded>>,
    writer: WriteHalf<TokioIo<Upgraded>>,
}

/// Why the client's side of the input is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// It has closed its half.
    Closed,
    /// It typed the keys that detach.
    Detached,
    /// The process does not read any more.
    Deaf,
}

impl Client {
    pub(super) fn new(upgraded: Upgraded) -> Client {
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        Client { reader, writer }
    }

    pub(super) fn split(self) -> (Input, Output) {
        (Input { reader: self.reader }, Output { writer: self.writer })
    }
}

/// What the client sends.
pub(super) struct Input {
    reader: ReadHalf<TokioIo<Upgraded>>,
}

impl Input {
    /// Moves what the client sends to the process until either ends, and lets go of the stream. Without a process, what comes is thrown away.
    pub(super) async fn feed(mut self, stdin: Option<StdStream>, mut keys: DetachKeys) -> InputEnd {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = match self.reader.read(&mut chunk).await {
                Ok(0) | Err(_) => return InputEnd::Closed,
                Ok(count) => count,
            };
            let (data, detached) = keys.filter(chunk.get(..count).unwrap_or_default());
            if let Some(stdin) = &stdin
                && stdin.write_all(&data).await.is_err()
            {
                return InputEnd::Deaf;
            }
            if detached {
                return InputEnd::Detached;
            }
        }
    }
}

/// What the client is sent.
pub(super) struct Output {
    writer: WriteHalf<TokioIo<Upgraded>>,
}

impl Output {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Closes the connection after what was sent.
    pub(super) async fn close(mut self) {
        // It may have gone already.
        let _ = tokio::time::timeout(FAREWELL, self.writer.shutdown()).await;
    }
}

/// A piece of output as the client wants it: framed, or as it is for a terminal.
pub(super) fn framed(raw: bool, stream: LogStream, data: &[u8]) -> Bytes {
    match (raw, stream) {
        (true, _) => Bytes::copy_from_slice(data),
        (false, LogStream::Stdout) => streams::frame(Stream::Stdout, &[data]),
        (false, LogStream::Stderr) => streams::frame(Stream::Stderr, &[data]),
    }
}

/// A remark of the engine's own inside of the output.
pub(super) fn remark(raw: bool, text: &str) -> Bytes {
    if raw { Bytes::from(format!("\r\n[{text}]\r\n")) } else { streams::frame(Stream::Error, &[text.as_bytes()]) }
}

/// The next piece of an attached container's output, as the client wants it. `None` at the end.
pub(super) async fn next_piece(pieces: &mut mpsc::Receiver<OutputPiece>, raw: bool) -> Option<Bytes> {
    Some(match pieces.recv().await? {
        OutputPiece::Output(stream, data) => framed(raw, stream, &data),
        OutputPiece::Remark(text) => remark(raw, &text),
    })
}

/// The outputs of a process.
pub(super) struct Outputs {
    pub(super) stdout: Option<StdStream>,
    pub(super) stderr: Option<StdStream>,
    /// A terminal's.
    pub(super) raw: bool,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Outputs {
    pub(super) fn new(stdout: Option<StdStream>, stderr: Option<StdStream>, raw: bool) -> Outputs {
        Outputs { stdout, stderr, raw, out: vec![0; CHUNK], err: vec![0; CHUNK] }
    }

    /// The next piece. `None` when all of them are at their end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let (stream, count) = tokio::select! {
                biased;
                count = read(self.stdout.as_ref(), &mut self.out), if self.stdout.is_some() => (LogStream::Stdout, count),
                count = read(self.stderr.as_ref(), &mut self.err), if self.stderr.is_some() => (LogStream::Stderr, count),
                else => return None,
            };
            match (stream, count) {
                (LogStream::Stdout, 0) => self.stdout = None,
                (LogStream::Stderr, 0) => self.stderr = None,
                (LogStream::Stdout, count) => return Some(framed(self.raw, stream, self.out.get(..count)?)),
                (LogStream::Stderr, count) => return Some(framed(self.raw, stream, self.err.get(..count)?)),
            }
        }
    }

    /// The next piece of a process that has ended.
    pub(super) async fn next_left(&mut self) -> Option<Bytes> {
        tokio::time::timeout(LEFT_OPEN, self.next()).await.ok().flatten()
    }
}

/// A stream that fails is at its end.
async fn read(stream: Option<&StdStream>, buffer: &mut [u8]) -> usize {
    match stream {
        Some(stream) => stream.read(buffer).await.unwrap_or(0),
        None => 0,
    }
}
