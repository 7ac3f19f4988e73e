//! HTTP/1.1 to any host: connections that are kept and used again, and bounds on waiting.
//!
//! Knows nothing of registries. A connection that is free is used before another one is made; its
//! bytes are moved by a task that ends with it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::super::stall::{StallDetector, Stalled};
use super::error::RegistryError;
use super::settings::{RegistrySettings, SettingError, Timeouts};
use super::tls::Trust;
use super::url::{Origin, Scheme, Url};

/// Connections to one host that are kept.
const MAX_KEPT: usize = 8;
/// A connection that nobody needed for so long is closed.
const KEEP: Duration = Duration::from_secs(30);
/// What one connection buffers of an answer: pieces of a layer are at most this long.
const BUFFER_BYTES: usize = 256 << 10;
const AGENT: &str = concat!("shoal/", env!("CARGO_PKG_VERSION"));

type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// All connections.
#[derive(Debug)]
pub(super) struct Http {
    settings: RegistrySettings,
    trust: Trust,
    kept: Mutex<BTreeMap<Origin, Vec<Connection>>>,
    /// How the registries that are named as insecure turned out to speak.
    schemes: Mutex<BTreeMap<String, Scheme>>,
}

#[derive(Debug)]
struct Connection {
    sender: http1::SendRequest<RequestBody>,
    mover: Arc<AbortOnDropHandle<()>>,
    used: Instant,
}

/// What is sent with a request. It can be sent again.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    Empty,
    Bytes(Bytes),
    /// A whole file, of so many bytes.
    File(Arc<std::fs::File>, u64),
}

/// A request, to be sent as often as it needs.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) payload: Payload,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) registry: String,
    /// Whom it comes from.
    pub(super) origin: Origin,
    body: Incoming,
    idle: Duration,
    stall: StallDetector,
    _mover: Arc<AbortOnDropHandle<()>>,
}

impl Http {
    pub(super) fn new(settings: &RegistrySettings) -> Result<Http, SettingError> {
        Ok(Http {
            trust: Trust::new(settings.certs_dirs.clone()),
            settings: settings.clone(),
            kept: Mutex::default(),
            schemes: Mutex::default(),
        })
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.settings.timeouts
    }

    pub(super) fn is_insecure(&self, authority: &str) -> bool {
        self.settings.is_insecure(authority)
    }

    /// How a registry is spoken to: TLS, unless it is named as insecure and does not speak it.
    pub(super) async fn origin(&self, host: &str) -> Result<Origin, RegistryError> {
        let bad = || RegistryError::BadName { name: host.to_owned() };
        let https = Origin::of(Scheme::Https, host).ok_or_else(bad)?;
        if !self.is_insecure(host) {
            return Ok(https);
        }
        let known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied();
        let scheme = match known {
            Some(scheme) => scheme,
            None => {
                let found = self.scheme_of(&https).await?;
                // That it speaks plain HTTP is known when it has answered so; a handshake may fail for other reasons.
                if found == Scheme::Https {
                    self.schemes.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), found);
                }
                found
            }
        };
        Origin::of(scheme, host).ok_or_else(bad)
    }

    /// Whether an insecure registry speaks TLS: tried, as nothing else tells.
    async fn scheme_of(&self, https: &Origin) -> Result<Scheme, RegistryError> {
        let default_port = https.authority == https.host;
        match self.tcp(https).await {
            Ok(tcp) => match self.tls(https, tcp).await {
                Ok(connection) => {
                    self.keep(https, connection);
                    Ok(Scheme::Https)
                }
                Err(error @ RegistryError::Timeout { .. }) => Err(error),
                Err(_) => Ok(Scheme::Http),
            },
            // Nobody is at port 443; perhaps at port 80.
            Err(RegistryError::Connect { .. }) if default_port => Ok(Scheme::Http),
            Err(error) => Err(error),
        }
    }

    /// Sends a request and waits for the beginning of the answer.
    pub(super) async fn send(&self, request: &Outgoing) -> Result<Answer, RegistryError> {
        let origin = &request.url.origin;
        let mut connection = match self.take(origin) {
            Some(kept) => kept,
            None => self.connect(origin).await?,
        };
        let sent = Arc::new(Mutex::new(Instant::now()));
        let (body, length) = self.body(&request.payload, &sent);
        let mut outgoing = Request::builder()
            .method(request.method.clone())
            .uri(&request.url.path)
            .header(HOST, &origin.authority)
            .header(USER_AGENT, AGENT);
        if let Some(length) = length {
            outgoing = outgoing.header(CONTENT_LENGTH, length);
        }
        for (name, value) in &request.headers {
            outgoing = outgoing.header(name, value);
        }
        let outgoing = outgoing.body(body).map_err(|error| {
            RegistryError::protocol(&origin.authority, format!("a request cannot be written: {error}"))
        })?;
        let answer = self.patiently(origin, connection.sender.send_request(outgoing), &sent).await;
        if origin.scheme == Scheme::Http && self.is_insecure(&origin.authority) {
            let mut schemes = self.schemes.lock().unwrap_or_else(PoisonError::into_inner);
            match &answer {
                Ok(_) => schemes.insert(origin.authority.clone(), Scheme::Http),
                // It may speak TLS when it is back.
                Err(_) => schemes.remove(&origin.authority),
            };
        }
        let answer = answer?;
        let mover = Arc::clone(&connection.mover);
        self.keep(origin, connection);
        let (parts, body) = answer.into_parts();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            registry: origin.authority.clone(),
            origin: origin.clone(),
            body,
            idle: self.settings.timeouts.idle,
            stall: StallDetector::new(self.settings.timeouts.idle),
            _mover: mover,
        })
    }

    /// Waits for an answer as long as the request is still on its way, and then for a while.
    async fn patiently<T>(
        &self,
        origin: &Origin,
        answer: impl Future<Output = hyper::Result<T>>,
        sent: &Mutex<Instant>,
    ) -> Result<T, RegistryError> {
        let patience = self.settings.timeouts.headers;
        let mut answer = std::pin::pin!(answer);
        loop {
            let deadline = *sent.lock().unwrap_or_else(PoisonError::into_inner) + patience;
            match timeout_at(deadline, &mut answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    return Err(RegistryError::Broken { registry: origin.authority.clone(), source: error.into() });
                }
                Err(_) if *sent.lock().unwrap_or_else(PoisonError::into_inner) + patience > deadline => {}
                Err(_) => {
                    let registry = origin.authority.clone();
                    return Err(RegistryError::Timeout { registry, what: "answer", after: patience });
                }
            }
        }
    }

    /// A body, and its length where there is one. `sent` is set to the time of its last piece.
    fn body(&self, payload: &Payload, sent: &Arc<Mutex<Instant>>) -> (RequestBody, Option<u64>) {
        match payload {
            Payload::Empty => (Empty::new().map_err(|never| match never {}).boxed_unsync(), None),
            Payload::Bytes(bytes) => {
                let length = bytes.len() as u64;
                (Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(), Some(length))
            }
            Payload::File(file, length) => {
                let sent = Arc::clone(sent);
                let frames = pieces(Arc::clone(file), *length).map(move |piece| {
                    *sent.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    piece.map(Frame::data)
                });
                (StreamBody::new(frames).boxed_unsync(), Some(*length))
            }
        }
    }

    fn take(&self, origin: &Origin) -> Option<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        kept.retain(|_, connections| {
            // One that is busy counts as used.
            connections.retain(|connection| {
                !connection.sender.is_closed()
                    && (!connection.sender.is_ready() || now.duration_since(connection.used) < KEEP)
            });
            !connections.is_empty()
        });
        let connections = kept.get_mut(origin)?;
        let free = connections.iter().position(|connection| connection.sender.is_ready())?;
        Some(connections.swap_remove(free))
    }

    fn keep(&self, origin: &Origin, mut connection: Connection) {
        connection.used = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = kept.entry(origin.clone()).or_default();
        if connections.len() >= MAX_KEPT {
            connections.remove(0);
        }
        connections.push(connection);
    }

    async fn connect(&self, origin: &Origin) -> Result<Connection, RegistryError> {
        let tcp = self.tcp(origin).await?;
        match origin.scheme {
            Scheme::Http => self.handshake(origin, tcp).await,
            Scheme::Https => self.tls(origin, tcp).await,
        }
    }

    async fn tcp(&self, origin: &Origin) -> Result<TcpStream, RegistryError> {
        let connecting = TcpStream::connect((origin.host.as_str(), origin.port));
        let tcp = self.within_connect(origin, connecting).await?;
        // Small requests must not wait for each other.
        let _ = tcp.set_nodelay(true);
        Ok(tcp)
    }

    async fn tls(&self, origin: &Origin, tcp: TcpStream) -> Result<Connection, RegistryError> {
        let failed = |source| RegistryError::Connect { registry: origin.authority.clone(), source };
        let config = self.trust.config(&origin.authority, !self.is_insecure(&origin.authority)).map_err(failed)?;
        let name = ServerName::try_from(origin.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
        let tls = self.within_connect(origin, TlsConnector::from(config).connect(name, tcp)).await?;
        self.handshake(origin, tls).await
    }

    async fn within_connect<T>(
        &self,
        origin: &Origin,
        connecting: impl Future<Output = io::Result<T>>,
    ) -> Result<T, RegistryError> {
        let patience = self.settings.timeouts.connect;
        let registry = || origin.authority.clone();
        match timeout(patience, connecting).await {
            Ok(Ok(connected)) => Ok(connected),
            Ok(Err(source)) => Err(RegistryError::Connect { registry: registry(), source }),
            Err(_) => Err(RegistryError::Timeout { registry: registry(), what: "take a connection", after: patience }),
        }
    }

    async fn handshake<S>(&self, origin: &Origin, stream: S) -> Result<Connection, RegistryError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| RegistryError::Broken { registry: origin.authority.clone(), source: error.into() })?;
        let mover = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a registry ended");
            }
        });
        Ok(Connection { sender, mover: Arc::new(AbortOnDropHandle::new(mover)), used: Instant::now() })
    }
}

/// A file's bytes, read where reading may block.
fn pieces(file: Arc<std::fs::File>, length: u64) -> BoxStream<'static, io::Result<Bytes>> {
    use std::os::unix::fs::FileExt;
    futures_util::stream::try_unfold((file, 0_u64), move |(file, at)| async move {
        if at >= length {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || {
            let most = usize::try_from(length - at).unwrap_or(usize::MAX).min(BUFFER_BYTES);
            let mut buffer = vec![0; most];
            file.read_exact_at(&mut buffer, at).map(|()| (file, Bytes::from(buffer)))
        });
        let (file, bytes) = read.await.map_err(io::Error::other)??;
        let at = at + bytes.len() as u64;
        Ok(Some((bytes, (file, at))))
    })
    .boxed()
}

impl Answer {
    /// The next piece of the body; `None` at its end. An end before the stated length is an error.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let length = |frame: &Option<hyper::Result<Frame<Bytes>>>| match frame {
                Some(Ok(frame)) => Some(frame.data_ref().map_or(0, Bytes::len)),
                _ => None,
            };
            let frame = match self.stall.wait(self.body.frame(), length).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(RegistryError::Broken { registry: self.registry.clone(), source: error.into() });
                }
                Err(stalled) => {
                    let what = match stalled {
                        Stalled::Silent => "go on with its answer",
                        Stalled::Slow => "go on with its answer at 1 KiB/s",
                    };
                    return Err(RegistryError::Timeout { registry: self.registry.clone(), what, after: self.idle });
                }
            };
            // Trailers say nothing.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    /// The whole body, or `None` where it is longer than `most` bytes.
    pub(super) async fn bytes(&mut self, most: u64) -> Result<Option<Bytes>, RegistryError> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if (all.len() + piece.len()) as u64 > most {
                return Ok(None);
            }
            all.extend_from_slice(&piece);
        }
        Ok(Some(all.freeze()))
    }

    /// A header that is text.
    pub(super) fn header(&self, name: impl hyper::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
