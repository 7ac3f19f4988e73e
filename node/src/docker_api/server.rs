//! Connections: accepts them, reads requests, takes the version off their paths, ends them at shutdown.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, SERVER};
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::counters::Counters;
use super::error::ApiError;
use super::extract::ApiVersion;
use crate::engine::Engine;

/// A client that holds its request header back, or is idle, for longer is cut off; the same as in Docker.
const HEADER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long requests may go on after the shutdown began.
const GRACE: Duration = Duration::from_secs(5);
/// Connections at a time on one listener; further ones are answered that the cluster is busy.
const MAX_CONNECTIONS: usize = 1024;
/// Connections that are being answered so at a time; further ones are closed.
const MAX_TURNED_AWAY: usize = 64;
/// Who is turned away must have asked by then.
const TURN_AWAY: Duration = Duration::from_secs(2);
/// How often it is looked whether a client is still there.
const LOOK: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of descriptors, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the API is served.
#[derive(Debug)]
pub enum Listener {
    /// A socket in the file system.
    Unix(UnixListener),
    /// A TCP port; whoever reaches it owns the host, as with Docker's unprotected port.
    Tcp(TcpListener),
}

impl Listener {
    /// A unix socket at this path with mode 0660. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when somebody listens there; otherwise what the file system says.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another process serves {}", path.display())));
        }
        // Made under another name and renamed, so that the socket is never there with other permissions, and an old
        // one is replaced in one step.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o660))?;
        std::fs::rename(&fresh, path)?;
        Ok(Self::Unix(listener))
    }

    /// A TCP address, `host:port`.
    ///
    /// # Errors
    /// When the address cannot be resolved or bound.
    pub async fn tcp(addr: &str) -> io::Result<Self> {
        TcpListener::bind(addr).await.map(Self::Tcp)
    }

    async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as Connection),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Progress and log lines are small writes that must not wait for each other.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// Lets the answer to a request end the connection, also while the client takes nothing and the answer waits for it.
#[derive(Clone, Debug)]
pub(super) struct Hangup(mpsc::Sender<Overdue>);

type Overdue = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Hangup {
    /// Ends the connection as soon as this has ended; in place of what was said before.
    pub(super) fn when(&self, overdue: impl Future<Output = ()> + Send + 'static) {
        // A connection has one answer at a time, and takes this up before the next one.
        let _ = self.0.try_send(Box::pin(overdue));
    }
}

trait Stream: AsyncRead + AsyncWrite + AsFd + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + AsFd + Send + Unpin> Stream for T {}
type Connection = Box<dyn Stream>;

/// Serves the API until `shutdown`; then lets requests end for a few seconds and cuts the rest.
///
/// # Errors
/// None today: what goes wrong with one connection ends that connection only.
pub async fn serve<E: Engine>(
    listener: Listener,
    engine: E,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_up_to(MAX_CONNECTIONS, listener, super::router(engine, shutdown.clone()), counters, shutdown).await
}

async fn serve_up_to(
    limit: usize,
    listener: Listener,
    router: Router,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(limit));
    let turning_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(e) = ended && e.is_panic() {
                    tracing::error!(error = %e, "a request of the API panicked");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let Ok(slot) = slots.clone().try_acquire_owned() else {
                    counters.refused.add_one();
                    if let Ok(place) = turning_away.clone().try_acquire_owned() {
                        connections.spawn(async move {
                            let _ = tokio::time::timeout(TURN_AWAY, turn_away(stream, limit)).await;
                            drop(place);
                        });
                    }
                    continue;
                };
                let (router, counters, shutdown) = (router.clone(), counters.clone(), shutdown.clone());
                let open = counters.connections.hold();
                connections.spawn(async move {
                    serve_connection(stream, router, counters, shutdown).await;
                    drop((slot, open));
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "accepting an API connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let ended = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::debug!(connections = connections.len(), "cutting API connections");
    }
    connections.shutdown().await;
    Ok(())
}

/// Answers one request with the reason why there is no place for its connection.
async fn turn_away(stream: Connection, limit: usize) {
    let service = service_fn(move |_: Request<Incoming>| async move {
        let text = format!("the cluster is busy: this node serves {limit} connections already; try again");
        let error = ApiError::new(hyper::StatusCode::SERVICE_UNAVAILABLE, text);
        Ok::<_, Infallible>(error.into_response())
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn serve_connection(stream: Connection, router: Router, counters: Arc<Counters>, shutdown: CancellationToken) {
    let (hangup, mut wanted) = mpsc::channel(1);
    let mut gone = std::pin::pin!(gone(stream.as_fd().try_clone_to_owned(), LOOK));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (router, counters) = (router.clone(), counters.clone());
        request.extensions_mut().insert(Hangup(hangup.clone()));
        async move {
            let response = answer(router, request.map(Body::new)).await;
            counters.answered(response.status());
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        // A client that has sent its request may close its half and still read the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let (mut ending, mut overdue) = (false, None::<Overdue>);
    let result = loop {
        let hung_up = async {
            match &mut overdue {
                Some(overdue) => overdue.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            result = connection.as_mut() => break result,
            Some(next) = wanted.recv() => overdue = Some(next),
            () = gone.as_mut() => {
                tracing::debug!("an API client has gone");
                return;
            }
            () = hung_up => {
                tracing::debug!("an API client that takes nothing is cut off");
                return;
            }
        }
    };
    if let Err(e) = result {
        // Clients that go away in the middle are everyday life.
        tracing::debug!(error = %e, "API connection ended");
    }
}

/// Returns when the client has closed both halves of its connection, which an answer that has nothing to say (a follower
/// of a quiet log) would not notice. Over TCP that is seen only when something is written.
async fn gone(socket: io::Result<OwnedFd>, every: Duration) {
    let Ok(socket) = socket else { return std::future::pending().await };
    loop {
        tokio::time::sleep(every).await;
        let mut look = [PollFd::new(&socket, PollFlags::empty())];
        let looked = poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if looked.is_ok() && look[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return;
        }
    }
}

/// Answers one request: version, route, the headers that every answer has.
pub(super) async fn answer(router: Router, mut request: Request<Body>) -> Response {
    let mut response = match take_version(&mut request) {
        Ok(()) => match router.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        Err(e) => e.into_response(),
    };
    let headers = response.headers_mut();
    if let Ok(version) = HeaderValue::try_from(ApiVersion::MAX.to_string()) {
        headers.insert("Api-Version", version);
    }
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert(SERVER, HeaderValue::from_static(concat!("Shoal/", env!("CARGO_PKG_VERSION"), " (linux)")));
    response
}

/// Takes `/v1.43` off the path and keeps it for the handlers; a path without a version stays as it is.
fn take_version(request: &mut Request<Body>) -> Result<(), ApiError> {
    let uri = request.uri();
    let Some((version, rest)) = uri.path().strip_prefix("/v").and_then(|p| p.split_once('/')) else { return Ok(()) };
    let Some(version) = ApiVersion::parse(version) else { return Ok(()) };
    if version > ApiVersion::MAX {
        return Err(ApiError::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {}",
            ApiVersion::MAX
        )));
    }
    if version < ApiVersion::MIN {
        return Err(ApiError::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {}, please upgrade your client to \
             a newer version",
            ApiVersion::MIN
        )));
    }
    let target = match uri.query() {
        Some(query) => format!("/{rest}?{query}"),
        None => format!("/{rest}"),
    };
    let target = Uri::try_from(target).map_err(|e| ApiError::invalid(format!("invalid path: {e}")))?;
    *request.uri_mut() = target;
    request.extensions_mut().insert(version);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn only_who_closed_both_halves_has_gone() {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut gone = std::pin::pin!(gone(Ok(OwnedFd::from(here)), Duration::from_millis(2)));
        there.shutdown(std::net::Shutdown::Write).unwrap();
        let looks = Duration::from_millis(50);
        assert!(tokio::time::timeout(looks, gone.as_mut()).await.is_err(), "it may still read");
        drop(there);
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(end) {
            assert_ne!(stream.read_buf(&mut text).await.unwrap(), 0, "{}", String::from_utf8_lossy(&text));
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn an_answer_may_cut_off_a_client_that_takes_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (shutdown, cut) = (CancellationToken::new(), CancellationToken::new());
        let told = cut.clone();
        let endless = async |hangup: axum::Extension<Hangup>, told: CancellationToken| {
            hangup.0.when(told.cancelled_owned());
            let piece = Ok::<_, Infallible>(bytes::Bytes::from_static(&[b'x'; 4096]));
            Body::from_stream(futures_util::stream::repeat(piece))
        };
        let router = Router::new()
            .route("/", axum::routing::get(move |hangup| endless(hangup, told.clone())))
            .route("/short", axum::routing::get(|| async { "served" }));
        let counters = Arc::<Counters>::default();
        let serving = serve_up_to(9, Listener::Tcp(listener), router, counters.clone(), shutdown.clone());
        let server = tokio::spawn(serving);
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        read_until(&mut client, "xxxx").await;
        assert_eq!(counters.connections(), 1);
        cut.cancel();
        while counters.connections() > 0 {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_flood_of_connections_is_told_that_it_is_one() {
        const LIMIT: usize = 3;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (shutdown, counters) = (CancellationToken::new(), Arc::<Counters>::default());
        let router = Router::new().route("/", axum::routing::get(|| async { "served" }));
        let serving = serve_up_to(LIMIT, Listener::Tcp(listener), router, counters.clone(), shutdown.clone());
        let server = tokio::spawn(serving);
        let mut open = Vec::new();
        for _ in 0..LIMIT {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(REQUEST).await.unwrap();
            read_until(&mut stream, "served").await;
            open.push(stream);
        }
        for _ in 0..LIMIT {
            let mut more = TcpStream::connect(addr).await.unwrap();
            more.write_all(REQUEST).await.unwrap();
            let mut answer = String::new();
            more.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.contains("the cluster is busy: this node serves 3 connections already"), "{answer}");
        }
        assert_eq!((counters.connections(), counters.refused()), (LIMIT as u64, LIMIT as u64));
        // Those that were let in are served as before, and a place that is free again is given again.
        open[0].write_all(REQUEST).await.unwrap();
        read_until(&mut open[0], "served").await;
        open.pop();
        while counters.connections() == LIMIT as u64 {
            tokio::task::yield_now().await;
        }
        let mut next = TcpStream::connect(addr).await.unwrap();
        next.write_all(REQUEST).await.unwrap();
        read_until(&mut next, "served").await;
        shutdown.cancel();
        drop((open, next));
        server.await.unwrap().unwrap();
    }
}
