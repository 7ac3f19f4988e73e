//! Connections: accepts them, reads requests, takes the version off their paths, ends them at shutdown.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
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
/// Connections at a time on one listener; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
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

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
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
    let router = super::router(engine, shutdown.clone());
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
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
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
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

async fn accept(
    listener: &Listener,
    slots: &Arc<Semaphore>,
) -> io::Result<(Connection, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?, slot))
}

async fn serve_connection(stream: Connection, router: Router, counters: Arc<Counters>, shutdown: CancellationToken) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, counters) = (router.clone(), counters.clone());
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
    let result = tokio::select! {
        biased;
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        result = connection.as_mut() => result,
    };
    if let Err(e) = result {
        // Clients that go away in the middle are everyday life.
        tracing::debug!(error = %e, "API connection ended");
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
