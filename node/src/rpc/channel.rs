//! Channels to other nodes: one a peer and lane, connected when first used and again after a failure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::ca::{TlsContext, TlsError, fetch_identity};

/// The head of an answer may take this long, unless its caller says less; see [`Lane::limit`].
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A failed call in words that a user can use.
#[derive(Debug, thiserror::Error)]
#[error("{addr}: {}", reason(status))]
pub struct Refused {
    /// Who was asked.
    pub addr: String,
    /// What came back.
    #[source]
    pub status: Box<tonic::Status>,
}

/// The innermost cause of a transport error is what helps; gRPC hides it behind "transport error".
fn reason(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// What a connection is for. What one lane carries never waits for another's: a lost packet stops all that is on its
/// connection until it was sent again, and a log or a large answer fills the connection's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Requests that somebody waits for.
    Calls,
    /// Raft: heartbeats, votes, entries.
    Raft,
    /// The agent's session.
    Session,
    /// Logs.
    Bulk,
    /// Image content.
    Images,
}

/// Bytes of image content that may be on their way before the receiver has taken any. Over a round trip of 50 ms, 80 MB
/// a second.
const IMAGES_WINDOW: u32 = 4 << 20;

impl Lane {
    /// What a channel allows each call at the most; the shorter of this and the caller's own limit counts. `None` where
    /// every caller has its own, which may be longer: a snapshot takes as long as its size and the link ask for.
    fn limit(self) -> Option<Duration> {
        match self {
            Lane::Calls | Lane::Bulk | Lane::Images => Some(CALL_TIMEOUT),
            Lane::Raft | Lane::Session => None,
        }
    }
}

/// Lane, address, name.
type Key = (Lane, String, String);

/// Channels to the nodes of the cluster, authenticated by this node's certificate.
#[derive(Clone)]
pub struct Channels {
    tls: TlsContext,
    lane: Lane,
    open: Arc<Mutex<BTreeMap<Key, Channel>>>,
}

impl Channels {
    /// Channels that use these credentials.
    pub fn new(tls: TlsContext) -> Self {
        Self { tls, lane: Lane::Calls, open: Arc::default() }
    }

    /// The same channels, on connections of their own.
    #[must_use]
    pub fn lane(&self, lane: Lane) -> Self {
        Self { lane, ..self.clone() }
    }

    /// The credentials that they use.
    pub fn tls(&self) -> &TlsContext {
        &self.tls
    }

    /// The channel to the node `name` (a node id, or a role's `OU`) at `addr` (`ip:port`).
    pub fn to(&self, addr: &str, name: &str) -> Channel {
        let key = (self.lane, addr.to_owned(), name.to_owned());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(key).or_insert_with(|| self.once(addr, name)).clone()
    }

    /// As [`Channels::to`], on a connection that ends with the channel: for hosts that are asked for something once in a
    /// while, of which there may be a thousand.
    pub fn once(&self, addr: &str, name: &str) -> Channel {
        let (tls, addr, name) = (self.tls.clone(), addr.to_owned(), name.to_owned());
        let window = (self.lane == Lane::Images).then_some(IMAGES_WINDOW);
        lazy(self.lane.limit(), window, move || {
            let (tls, addr, name) = (tls.clone(), addr.clone(), name.clone());
            async move { Ok::<_, TlsError>(TokioIo::new(tls.connect(&addr, &name).await?)) }
        })
    }

    /// Forgets the open connections, so that the next calls show a renewed certificate.
    pub fn reset(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A channel of one who has no certificate yet, to a manager whose certificate comes from this root.
pub fn channel_without_certificate(root_pem: &str, addr: &str) -> Channel {
    let (root, addr) = (root_pem.to_owned(), addr.to_owned());
    lazy(Some(CALL_TIMEOUT), None, move || {
        let (root, addr) = (root.clone(), addr.clone());
        async move {
            let stream = TlsContext::connect_without_certificate(&root, &addr, "swarm-manager").await?;
            Ok::<_, TlsError>(TokioIo::new(stream))
        }
    })
}

/// A channel to whoever answers at `addr`; see [`fetch_identity`].
pub fn unverified_channel(addr: &str) -> Channel {
    let addr = addr.to_owned();
    lazy(Some(CALL_TIMEOUT), None, move || {
        let addr = addr.clone();
        async move { Ok::<_, TlsError>(TokioIo::new(fetch_identity(&addr).await?)) }
    })
}

fn lazy<F, S>(limit: Option<Duration>, window: Option<u32>, connect: impl Fn() -> F + Send + Sync + 'static) -> Channel
where
    F: Future<Output = Result<S, TlsError>> + Send + 'static,
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    // The address is in the connector; the URI only names the scheme and authority that HTTP/2 asks for.
    let endpoint = Endpoint::from_static("http://shoal")
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .initial_stream_window_size(window)
        .initial_connection_window_size(window);
    let endpoint = match limit {
        Some(limit) => endpoint.timeout(limit),
        None => endpoint,
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| connect()))
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Request, Response, Status};

    use super::*;
    use crate::rpc::pb;
    use crate::rpc::pb::logs_client::LogsClient;
    use crate::rpc::pb::logs_server::{Logs, LogsServer};

    const THOUGHT: Duration = Duration::from_millis(300);

    /// Thinks before it answers.
    struct Slow;

    #[tonic::async_trait]
    impl Logs for Slow {
        type ReadStream = tokio_stream::Empty<Result<pb::LogChunk, Status>>;

        async fn read(&self, _: Request<pb::LogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
            tokio::time::sleep(THOUGHT).await;
            Ok(Response::new(tokio_stream::empty()))
        }
    }

    async fn ask(limit: Option<Duration>) -> Result<(), Code> {
        let channel = lazy(limit, None, || async {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
            let server = tonic::transport::Server::builder().add_service(LogsServer::new(Slow));
            tokio::spawn(server.serve_with_incoming(incoming));
            Ok(TokioIo::new(ours))
        });
        LogsClient::new(channel).read(pb::LogsRequest::default()).await.map(drop).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn what_raft_and_sessions_ask_takes_as_long_as_they_say() {
        assert!(ask(Some(THOUGHT / 6)).await.is_err(), "the channel's limit is the shorter one");
        for lane in [Lane::Raft, Lane::Session] {
            assert_eq!((lane.limit(), ask(lane.limit()).await), (None, Ok(())), "{lane:?}");
        }
        assert_eq!([Lane::Calls, Lane::Bulk, Lane::Images].map(Lane::limit), [Some(CALL_TIMEOUT); 3]);
    }
}
