//! A request's body as something to read from where reading may block.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;

/// Pieces of the body that may wait for the reader.
const PIECES_AHEAD: usize = 16;
/// How long a client may go on sending what nobody reads any more. It looks at the answer only afterwards: cut off
/// before, it would see a broken connection instead of the reason.
const DRAIN: Duration = Duration::from_secs(60);

/// The blocking end.
pub(super) struct BodyReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// What travels to the reader.
enum Piece {
    Bytes(io::Result<Bytes>),
    /// The body is complete. Its absence at the end means that the client, and with it the request, is gone: what was
    /// read so far must not pass for the whole.
    End,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(piece)) => self.current = piece?,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client went away")),
            }
        }
        let len = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// Lets the client send what nobody reads, or goes on reading.
async fn drain(mut body: BodyDataStream) {
    let drained = async { while matches!(body.next().await, Some(Ok(_))) {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::debug!("client goes on sending a body that nobody reads");
    }
}

/// The body with what is found before it is read; if that is an error, the client has sent the body by then.
pub(super) async fn after<T, E>(body: Body, found: impl Future<Output = Result<T, E>>) -> Result<(Body, T), E> {
    match found.await {
        Ok(found) => Ok((body, found)),
        Err(error) => {
            drain(body.into_data_stream()).await;
            Err(error)
        }
    }
}

/// Runs `work` on the blocking pool with the body to read from, and waits until the body was sent or the time for
/// that is up. A body that breaks off is an error of the read, not the end.
pub(super) async fn with_reader<T: Send + 'static>(
    body: Body,
    work: impl FnOnce(&mut BodyReader) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    let worker =
        tokio::task::spawn_blocking(move || work(&mut BodyReader { pieces, current: Bytes::new(), ended: false }));
    let mut body = body.into_data_stream();
    loop {
        let (piece, last) = match body.next().await {
            Some(Ok(bytes)) => (Piece::Bytes(Ok(bytes)), false),
            Some(Err(e)) => (Piece::Bytes(Err(io::Error::other(e))), true),
            None => (Piece::End, true),
        };
        if sender.send(piece).await.is_err() {
            drain(body).await;
            break;
        }
        if last {
            break;
        }
    }
    drop(sender);
    worker.await
}
