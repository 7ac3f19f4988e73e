//! `GET /images/get`: images of this host as an archive, made as it is read.

use std::io::{self, Write};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use hyper::header::CONTENT_TYPE;
use runtime::image::ImageStore;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use super::images::blocking;

/// Bytes of a piece of the archive.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the client.
const AHEAD: usize = 4;

pub(super) async fn save(images: ImageStore, names: Vec<String>) -> Result<Response, ApiError> {
    if names.is_empty() {
        return Err(ApiError::invalid("at least one image must be named"));
    }
    let saving = blocking(images, move |images| images.save(&names)).await?;
    let (sender, pieces) = mpsc::channel(AHEAD);
    // Ends with the archive, or with the client that reads it.
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces { sender, piece: BytesMut::with_capacity(PIECE) };
        if let Err(error) = saving.write(&mut out) {
            tracing::warn!(error = crate::chain(&error), "an archive of images was not finished");
            // The client must not take what it has for the whole.
            let _ = out.sender.blocking_send(Err(io::Error::other(crate::chain(&error))));
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(ReceiverStream::new(pieces))).into_response())
}

/// What is written, in pieces on their way to the client.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE)).freeze();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client went away");
        self.sender.blocking_send(Ok(piece)).map_err(gone)
    }
}
