//! A blob as a stream of pieces: from the sources, from mirrors, from the registry, whoever has it,
//! and from the next of them where one breaks off.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use hyper::{Method, StatusCode};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::digest::Digest;
use super::super::error::ImageError;
use super::super::stall::StallDetector;
use super::document::check_size;
use super::error::RegistryError;
use super::progress::LayerTeller;
use super::session::{Ask, Session, pull_scope};
use super::source::BlobSource;

/// A source that says nothing for so long does not have it.
const SOURCE_PATIENCE: Duration = Duration::from_secs(10);
/// Whoever sends as much as this before breaking off is asked again as if nothing had happened.
const PROGRESS_BYTES: u64 = 1 << 20;
/// A source that breaks off in between is asked again so often.
const REOPENINGS: usize = 3;
/// Pieces of one layer that wait for its unpacking. A piece has at most 256 KiB.
pub(super) const PIECES_AHEAD: usize = 8;

/// Who may have the content of one image.
#[derive(Debug)]
pub(super) struct Origins<'a> {
    /// Asked first, by digest.
    pub(super) sources: Vec<Arc<dyn BlobSource>>,
    /// Mirrors, then the registry.
    pub(super) sessions: Vec<Session<'a>>,
}

/// A blob that is fetched.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    pub(super) repository: &'a str,
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Its name for messages.
    pub(super) what: String,
}

/// What travels to whoever reads the blob.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    /// That was all. Without it, the pull was given up.
    End,
}

/// Where the pieces go.
struct Sink<'s> {
    to: mpsc::Sender<Piece>,
    tell: &'s mut LayerTeller,
    offset: u64,
}

/// Whether whoever reads wants more.
#[derive(Debug, PartialEq, Eq)]
enum Reader {
    Listens,
    /// It failed, and tells why itself.
    Gone,
}

impl Sink<'_> {
    async fn put(&mut self, wanted: &Wanted<'_>, bytes: Bytes) -> Result<Reader, ImageError> {
        let after = self.offset + bytes.len() as u64;
        if after > wanted.size {
            return Err(ImageError::SizeMismatch { what: wanted.what.clone(), expected: wanted.size, actual: after });
        }
        self.offset = after;
        self.tell.moved(after);
        let sent = self.to.send(Piece::Bytes(bytes)).await;
        Ok(if sent.is_ok() { Reader::Listens } else { Reader::Gone })
    }
}

impl Origins<'_> {
    /// Sends a blob to whoever reads it. Lengths are verified here, digests where it is read. Answers
    /// whether any of it came from a source.
    pub(super) async fn stream(
        &self,
        wanted: &Wanted<'_>,
        with_sources: bool,
        to: mpsc::Sender<Piece>,
        tell: &mut LayerTeller,
    ) -> Result<bool, RegistryError> {
        let mut sink = Sink { to, tell, offset: 0 };
        if with_sources {
            for source in &self.sources {
                for _ in 0..=REOPENINGS {
                    let before = sink.offset;
                    if before == wanted.size {
                        break;
                    }
                    if from_source(source.as_ref(), wanted, &mut sink).await == Reader::Gone {
                        return Ok(true);
                    }
                    // Behind a source there may be several, any of which can break off.
                    if sink.offset == before {
                        break;
                    }
                }
            }
        }
        let from_sources = sink.offset > 0;
        let mut sessions = self.sessions.iter().peekable();
        while sink.offset < wanted.size {
            let Some(session) = sessions.next() else { break };
            if from_session(session, sessions.peek().is_none(), wanted, &mut sink).await? == Reader::Gone {
                return Ok(from_sources);
            }
        }
        if sink.offset < wanted.size {
            return Err(RegistryError::NotFound { what: wanted.what.clone(), message: String::new() });
        }
        // Whoever is gone tells why itself.
        let _ = sink.to.send(Piece::End).await;
        Ok(from_sources)
    }

    /// Content that is read as a whole, from the sources only.
    pub(super) async fn small_from_sources(&self, digest: &Digest, size: Option<u64>, most: u64) -> Option<Bytes> {
        for source in &self.sources {
            let found = timeout(SOURCE_PATIENCE, async {
                let mut stream = source.open(digest, size, 0).await?;
                let mut all = Vec::new();
                while let Some(piece) = stream.next().await {
                    all.extend_from_slice(&piece.ok()?);
                    if all.len() as u64 > most {
                        return None;
                    }
                }
                Some(all)
            });
            match found.await {
                Ok(Some(all)) if Digest::of(&all) == *digest => return Some(all.into()),
                Ok(None) => {}
                _ => tracing::debug!(?source, %digest, "a source broke off or had something else"),
            }
        }
        None
    }
}

/// Takes what one source has; its failures only mean that the next one is asked.
async fn from_source(source: &dyn BlobSource, wanted: &Wanted<'_>, sink: &mut Sink<'_>) -> Reader {
    let opened = timeout(SOURCE_PATIENCE, source.open(&wanted.digest, Some(wanted.size), sink.offset)).await;
    let Ok(Some(mut stream)) = opened else { return Reader::Listens };
    let mut stall = StallDetector::new(SOURCE_PATIENCE);
    loop {
        let length = |piece: &Option<io::Result<Bytes>>| Some(piece.as_ref()?.as_ref().ok()?.len());
        let failure = match stall.wait(stream.next(), length).await {
            Ok(Some(Ok(bytes))) => match sink.put(wanted, bytes).await {
                Ok(Reader::Listens) => continue,
                Ok(Reader::Gone) => return Reader::Gone,
                Err(error) => error.to_string(),
            },
            Ok(None) => return Reader::Listens,
            Ok(Some(Err(error))) => error.to_string(),
            Err(stalled) => stalled.to_string(),
        };
        tracing::debug!(?source, digest = %wanted.digest, offset = sink.offset, failure, "a source broke off");
        return Reader::Listens;
    }
}

/// Takes the rest from a registry, which is asked again where it breaks off, unless there is another.
async fn from_session(
    session: &Session<'_>,
    last: bool,
    wanted: &Wanted<'_>,
    sink: &mut Sink<'_>,
) -> Result<Reader, RegistryError> {
    let mut backoff = session.backoff();
    loop {
        let before = sink.offset;
        let error = match rest(session, wanted, sink).await {
            Ok(reader) => return Ok(reader),
            Err(error) => error,
        };
        if sink.offset - before >= PROGRESS_BYTES {
            backoff.progressed();
        }
        if !last {
            tracing::info!(registry = session.host(), blob = %wanted.digest, error = %error, "asking the next registry");
            return Ok(Reader::Listens);
        }
        backoff.again(error).await?;
    }
}

/// Asks for what is missing and takes it.
async fn rest(session: &Session<'_>, wanted: &Wanted<'_>, sink: &mut Sink<'_>) -> Result<Reader, RegistryError> {
    let scope = pull_scope(wanted.repository);
    let mut ask = Ask::new(Method::GET, &wanted.what, &scope);
    if sink.offset > 0 {
        ask = ask.header(RANGE, &format!("bytes={}-", sink.offset));
    }
    let mut answer = session.once(&format!("/v2/{}/blobs/{}", wanted.repository, wanted.digest), &ask).await?;
    let stated = answer.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
    let mut skip = sink.offset;
    if answer.status == StatusCode::PARTIAL_CONTENT {
        let begins = answer.header(CONTENT_RANGE).and_then(range_start);
        if begins != Some(sink.offset) {
            let reason =
                format!("it was asked for {} from byte {} on and sends something else", wanted.what, sink.offset);
            return Err(RegistryError::protocol(session.host(), reason));
        }
        skip = 0;
    }
    if let Some(stated) = stated {
        check_size(&wanted.what, wanted.size, stated.saturating_add(sink.offset - skip))?;
    }
    while let Some(mut bytes) = answer.piece().await? {
        // A registry that knows no ranges begins from the start.
        let skipped = skip.min(bytes.len() as u64);
        skip -= skipped;
        bytes.advance(usize::try_from(skipped).unwrap_or(bytes.len()));
        if !bytes.is_empty() && sink.put(wanted, bytes).await? == Reader::Gone {
            return Ok(Reader::Gone);
        }
    }
    if sink.offset < wanted.size {
        // Without a stated length, the end of the connection is the end of the answer.
        let source = Box::new(io::Error::from(io::ErrorKind::UnexpectedEof));
        return Err(RegistryError::Broken { registry: session.host().to_owned(), source });
    }
    Ok(Reader::Listens)
}

/// The first byte of `bytes 5-9/10`.
pub(super) fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// The reading end, where reading may block.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl PieceReader {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> PieceReader {
        PieceReader { pieces, current: Bytes::new(), ended: false }
    }
}

impl io::Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the pull was given up")),
            }
        }
        let length = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::range_start;

    #[test]
    fn ranges() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("5-9/10"), None);
    }
}
