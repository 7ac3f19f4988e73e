//! Gives this host's blobs to the other hosts, slowly enough that nothing else of the node has to wait for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use runtime::image::ImageStore;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{MAX_ASKED, blocking, digest};
use crate::rpc::pb;

/// Transfers at a time. Few, so that each is soon done and its receiver gives it on; the others are told to ask again,
/// and find more hosts to ask then.
const TRANSFERS: usize = 4;
/// Blobs of up to so many bytes, like manifests, do not count among those.
const SMALL: u64 = 1 << 20;
/// Transfers of small blobs at a time.
const SMALL_TRANSFERS: usize = 64;
/// Bytes of a piece.
const PIECE: u64 = 256 << 10;
/// What was not used of the rate in this time is lost.
const BURST: Duration = Duration::from_millis(100);

/// Bytes per second that all transfers share.
#[derive(Debug)]
pub(crate) struct Rate {
    bytes_per_second: Option<u64>,
    /// When what was given out so far is used up.
    until: Mutex<Option<Instant>>,
}

impl Rate {
    /// `0` means without a limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: (bytes_per_second > 0).then_some(bytes_per_second), until: Mutex::default() }
    }

    /// From when on so many bytes may be sent; they count from now on.
    fn reserve(&self, bytes: u64, now: Instant) -> Instant {
        let Some(rate) = self.bytes_per_second else { return now };
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let at = until.map_or(earliest, |until| until.max(earliest));
        *until = Some(at + takes);
        at.max(now)
    }
}

/// The service.
#[derive(Clone)]
pub(crate) struct Serving {
    store: ImageStore,
    rate: Arc<Rate>,
    transfers: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

impl Serving {
    pub(crate) fn new(store: ImageStore, rate: Rate) -> Self {
        Self {
            store,
            rate: Arc::new(rate),
            transfers: Arc::new(Semaphore::new(TRANSFERS)),
            small: Arc::new(Semaphore::new(SMALL_TRANSFERS)),
        }
    }
}

/// A blob that is being given. Its file can be read to the end, whatever becomes of its name meanwhile.
struct Transfer {
    file: Arc<File>,
    rate: Arc<Rate>,
    offset: u64,
    size: u64,
    /// The first piece says how long all is.
    first: bool,
    _permit: OwnedSemaphorePermit,
}

impl Transfer {
    async fn next(mut self) -> Option<(Result<pb::BlobPiece, Status>, Option<Self>)> {
        let size = if std::mem::take(&mut self.first) { self.size } else { 0 };
        let length = PIECE.min(self.size - self.offset);
        if length == 0 && size == 0 {
            return None;
        }
        tokio::time::sleep_until(self.rate.reserve(length, Instant::now())).await;
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        let read = blocking(move || {
            let mut piece = vec![0; usize::try_from(length).unwrap_or_default()];
            file.read_exact_at(&mut piece, offset).map(|()| piece)
        });
        match read.await {
            Ok(data) => {
                self.offset += length;
                Some((Ok(pb::BlobPiece { data: Bytes::from(data), size }), Some(self)))
            }
            Err(error) => Some((Err(Status::data_loss(format!("the blob could not be read: {error}"))), None)),
        }
    }
}

#[tonic::async_trait]
impl pb::content_server::Content for Serving {
    type FetchStream = Pin<Box<dyn Stream<Item = Result<pb::BlobPiece, Status>> + Send>>;

    async fn has(&self, request: Request<pb::HasRequest>) -> Result<Response<pb::HasReply>, Status> {
        let request = request.into_inner();
        if request.digests.len() > MAX_ASKED {
            return Err(Status::invalid_argument(format!("more than {MAX_ASKED} digests")));
        }
        let has = self.store.blobs();
        let mut digests = request.digests;
        digests.retain(|bytes| digest(bytes).is_ok_and(|blob| has.contains(&blob)));
        Ok(Response::new(pb::HasReply { digests }))
    }

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let request = request.into_inner();
        let blob = digest(&request.digest)?;
        let store = self.store.clone();
        let found = blocking(move || store.open_blob(&blob)).await;
        let found = found.map_err(|e| Status::internal(crate::chain(&e)))?;
        let (file, size) = found.ok_or_else(|| Status::not_found(format!("this host does not have {blob}")))?;
        if request.offset > size {
            return Err(Status::out_of_range(format!("{blob} has {size} bytes")));
        }
        let slots = if size <= SMALL { &self.small } else { &self.transfers };
        let permit = Arc::clone(slots).try_acquire_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted("this host gives to enough others already"))?;
        tracing::debug!(%blob, offset = request.offset, size, "a blob is given to another host");
        let transfer = Transfer {
            file: Arc::new(file),
            rate: Arc::clone(&self.rate),
            offset: request.offset,
            size,
            first: true,
            _permit: permit,
        };
        let pieces = stream::unfold(Some(transfer), |transfer| async { transfer?.next().await });
        Ok(Response::new(Box::pin(pieces)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_shared_and_does_not_pile_up() {
        let rate = Rate::new(1000);
        let now = Instant::now();
        let after = |ms: u64| now + Duration::from_millis(ms);
        // What was not used counts for a tenth of a second at the most.
        assert_eq!(rate.reserve(100, now), now);
        assert_eq!(rate.reserve(500, now), now);
        assert_eq!(rate.reserve(100, now), after(500));
        assert_eq!(rate.reserve(100, after(10_000)), after(10_000));
        assert_eq!(rate.reserve(100, after(10_000)), after(10_000));
        assert_eq!(rate.reserve(100, after(10_000)), after(10_100));
        assert_eq!(Rate::new(0).reserve(u64::MAX, now), now);
    }
}
