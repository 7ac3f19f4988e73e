//! The client's side of the API: HTTP/1.1 over a unix socket or TCP, a connection for each request.
//!
//! It drives nothing but Shoal: the first thing it asks is `/version`.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE, USER_AGENT};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::AbortOnDropHandle;

use super::error::CliError;
use super::host::Host;
use crate::docker_api::ErrorWord;

/// What `/version` must say of the platform.
const PLATFORM: &str = "Shoal";
/// An engine that does not take a connection for so long is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// The engine itself gives up on a cluster without a leader long before.
const READ: Duration = Duration::from_secs(60);
const WRITE: Duration = Duration::from_secs(120);
/// Most bytes of one answer; a list of a hundred thousand tasks fits.
const MAX_ANSWER: usize = 256 << 20;
/// Most bytes of an error's text.
const MAX_ERROR: usize = 64 << 10;

type Body = BoxBody<Bytes, std::io::Error>;

/// A client of one engine.
#[derive(Clone, Debug)]
pub struct Client {
    host: Host,
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct Streamed {
    response: Response<Incoming>,
    /// Moves the bytes; ends with the answer.
    _connection: AbortOnDropHandle<()>,
}

/// A connection that has ended being HTTP.
#[derive(Debug)]
pub struct Hijacked {
    /// What is left of it.
    pub stream: TokioIo<Upgraded>,
    /// As of [`Streamed`].
    _connection: AbortOnDropHandle<()>,
}

/// A path of the API: each segment is escaped, then the query.
pub fn route(segments: &[&str], query: &[(&str, &str)]) -> String {
    let mut path = String::new();
    for segment in segments {
        path.push('/');
        escape(&mut path, segment);
    }
    for (i, (key, value)) in query.iter().enumerate() {
        path.push(if i == 0 { '?' } else { '&' });
        escape(&mut path, key);
        path.push('=');
        escape(&mut path, value);
    }
    path
}

fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

impl Client {
    /// A client for this engine, once it is known to be Shoal.
    ///
    /// # Errors
    /// When nothing answers there, or something else than Shoal does.
    pub async fn connect(host: Host) -> Result<Self, CliError> {
        let client = Self { host };
        let version: Value = client.get("/version").await?;
        let platform = version["Platform"]["Name"].as_str().unwrap_or_default();
        if platform != PLATFORM {
            let who = if platform.is_empty() { "something else" } else { platform };
            return Err(CliError::usage(format!(
                "the engine at {} is {who}, not Shoal: name Shoal's socket with -H or SHOAL_HOST \
                 (unix:///run/shoal/shoal.sock unless the daemon was told otherwise)",
                client.host
            )));
        }
        Ok(client)
    }

    /// Reads something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let answer = self.send(Method::GET, path, None, Some(READ)).await?;
        let bytes = answer.collect(READ).await.map_err(|why| self.lost(&Method::GET, path, &why))?;
        self.parse(path, &bytes)
    }

    /// Changes something; answers the body as it came.
    pub async fn post<B: Serialize>(&self, path: &str, body: &B) -> Result<Bytes, CliError> {
        self.post_within(path, body, Some(WRITE)).await
    }

    /// Changes something that takes as long as it takes.
    pub async fn post_patiently<B: Serialize>(&self, path: &str, body: &B) -> Result<Bytes, CliError> {
        self.post_within(path, body, None).await
    }

    async fn post_within<B: Serialize>(
        &self,
        path: &str,
        body: &B,
        limit: Option<Duration>,
    ) -> Result<Bytes, CliError> {
        let json = serde_json::to_vec(body).map_err(|e| CliError::Failed(format!("cannot write the request: {e}")))?;
        let body = (Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed(), "application/json");
        let answer = self.send(Method::POST, path, Some(body), limit).await?;
        answer.collect(WRITE).await.map_err(|why| self.lost(&Method::POST, path, &why))
    }

    /// Creates something; answers what the engine says of it.
    pub async fn create<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, CliError> {
        let bytes = self.post(path, body).await?;
        self.parse(path, &bytes)
    }

    /// Creates something, with credentials for a registry if there are some; answers what the engine says of it.
    pub async fn create_as<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        registry_auth: Option<&str>,
    ) -> Result<T, CliError> {
        let json = serde_json::to_vec(body).map_err(|e| CliError::Failed(format!("cannot write the request: {e}")))?;
        let body = (Full::new(Bytes::from(json)).map_err(|never| match never {}).boxed(), "application/json");
        let header = registry_auth.map(|auth| ("x-registry-auth", auth));
        let answer = self.send_with(Method::POST, path, Some(body), header, Some(WRITE)).await?;
        let bytes = answer.collect(WRITE).await.map_err(|why| self.lost(&Method::POST, path, &why))?;
        self.parse(path, &bytes)
    }

    /// Changes something that needs no body.
    pub async fn post_empty(&self, path: &str) -> Result<Bytes, CliError> {
        let answer = self.send(Method::POST, path, None, Some(WRITE)).await?;
        answer.collect(WRITE).await.map_err(|why| self.lost(&Method::POST, path, &why))
    }

    /// Has something done that takes as long as it takes, in the name of a registry's user; the answer tells of it
    /// as it goes on.
    pub async fn work(&self, path: &str, registry_auth: &str) -> Result<Streamed, CliError> {
        self.send_with(Method::POST, path, None, Some(("x-registry-auth", registry_auth)), None).await
    }

    /// Removes something.
    pub async fn delete(&self, path: &str) -> Result<Bytes, CliError> {
        let answer = self.send(Method::DELETE, path, None, Some(WRITE)).await?;
        answer.collect(WRITE).await.map_err(|why| self.lost(&Method::DELETE, path, &why))
    }

    /// Reads something that may go on for ever.
    pub async fn stream(&self, path: &str) -> Result<Streamed, CliError> {
        self.send(Method::GET, path, None, Some(READ)).await
    }

    /// Asks for what comes with the answer's head alone.
    pub async fn head(&self, path: &str) -> Result<Streamed, CliError> {
        self.send(Method::HEAD, path, None, Some(READ)).await
    }

    /// Sends an archive of any size.
    pub async fn upload<S>(&self, path: &str, archive: S) -> Result<Streamed, CliError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    {
        self.send_archive(Method::POST, path, archive).await
    }

    /// Puts an archive of any size somewhere.
    pub async fn put<S>(&self, path: &str, archive: S) -> Result<Streamed, CliError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    {
        self.send_archive(Method::PUT, path, archive).await
    }

    async fn send_archive<S>(&self, method: Method, path: &str, archive: S) -> Result<Streamed, CliError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
    {
        use futures_util::TryStreamExt;
        let body = BodyExt::boxed(StreamBody::new(archive.map_ok(Frame::data)));
        self.send(method, path, Some((body, "application/x-tar")), None).await
    }

    /// Asks for a connection that ends being HTTP: what is sent and received afterwards are the streams of a process.
    ///
    /// # Errors
    /// When the engine refuses, or goes on with HTTP.
    pub async fn hijack(&self, path: &str, body: Option<&Value>) -> Result<Hijacked, CliError> {
        let body = body.map(|body| {
            let json = Full::new(Bytes::from(body.to_string()));
            (json.map_err(|never| match never {}).boxed(), "application/json")
        });
        let headers = [(CONNECTION.as_str(), "Upgrade"), (UPGRADE.as_str(), "tcp")];
        let answer = self.ask(Method::POST, path, body, &headers, Some(WRITE)).await?;
        let Streamed { response, _connection } = answer;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(CliError::Failed(format!("the engine at {} keeps its streams to itself", self.host)));
        }
        let upgraded = hyper::upgrade::on(response).await;
        let stream = upgraded.map_err(|e| self.lost(&Method::POST, path, &crate::chain(&e)))?;
        Ok(Hijacked { stream: TokioIo::new(stream), _connection })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(Body, &str)>,
        limit: Option<Duration>,
    ) -> Result<Streamed, CliError> {
        self.send_with(method, path, body, None, limit).await
    }

    async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Option<(Body, &str)>,
        header: Option<(&str, &str)>,
        limit: Option<Duration>,
    ) -> Result<Streamed, CliError> {
        self.ask(method, path, body, header.as_slice(), limit).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(Body, &str)>,
        headers: &[(&str, &str)],
        limit: Option<Duration>,
    ) -> Result<Streamed, CliError> {
        let (mut sender, connection) = self.open().await?;
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(HOST, "shoal")
            .header(USER_AGENT, concat!("shoal/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some((body, kind)) => {
                request = request.header(CONTENT_TYPE, kind);
                body
            }
            None => Empty::new().map_err(|never| match never {}).boxed(),
        };
        let request = request.body(body).map_err(|e| CliError::usage(format!("cannot ask for {path}: {e}")))?;
        let sent = sender.send_request(request);
        let response = match limit {
            Some(limit) => match tokio::time::timeout(limit, sent).await {
                Ok(response) => response,
                Err(_) => return Err(self.lost(&method, path, &format!("no answer within {} s", limit.as_secs()))),
            },
            None => sent.await,
        };
        let response = match response {
            Ok(response) => response,
            // The request never left.
            Err(e) if e.is_canceled() => return Err(self.unavailable(&e.to_string())),
            Err(e) => return Err(self.lost(&method, path, &crate::chain(&e))),
        };
        let streamed = Streamed { response, _connection: connection };
        let status = streamed.response.status();
        match status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            true => Ok(streamed),
            false => Err(streamed.into_error().await),
        }
    }

    async fn open(&self) -> Result<(http1::SendRequest<Body>, AbortOnDropHandle<()>), CliError> {
        let opened = tokio::time::timeout(CONNECT, async {
            match &self.host {
                Host::Unix(path) => handshake(UnixStream::connect(path).await?).await,
                Host::Tcp(addr) => {
                    let stream = TcpStream::connect(addr).await?;
                    stream.set_nodelay(true)?;
                    handshake(stream).await
                }
            }
        });
        match opened.await {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(e)) => Err(self.unavailable(&e.to_string())),
            Err(_) => Err(self.unavailable(&format!("no connection within {} s", CONNECT.as_secs()))),
        }
    }

    fn unavailable(&self, why: &str) -> CliError {
        CliError::Unavailable(format!(
            "cannot reach the engine at {}: {why}. Is `shoal daemon` running there, and may you use its socket?",
            self.host
        ))
    }

    /// A request that was on its way when the connection failed.
    fn lost(&self, method: &Method, path: &str, why: &str) -> CliError {
        let what = path.split('?').next().unwrap_or_default();
        if method == Method::GET {
            return CliError::Unavailable(format!("the engine at {} did not answer {what}: {why}", self.host));
        }
        CliError::OutcomeUnknown(format!(
            "the connection to {} failed while {method} {what} was under way, and it may or may not have been \
             carried out ({why}): look before you try again",
            self.host
        ))
    }

    fn parse<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, CliError> {
        let what = path.split('?').next().unwrap_or_default();
        serde_json::from_slice(bytes)
            .map_err(|e| CliError::Failed(format!("the engine at {} answered {what} with bad JSON: {e}", self.host)))
    }
}

async fn handshake<S>(stream: S) -> std::io::Result<(http1::SendRequest<Body>, AbortOnDropHandle<()>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // Its errors reach the request that waits for it.
    let connection = tokio::spawn(async move { drop(connection.with_upgrades().await) });
    Ok((sender, AbortOnDropHandle::new(connection)))
}

impl Streamed {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CliError> {
        loop {
            match self.response.body_mut().frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_) => continue,
                },
                Some(Err(e)) => {
                    return Err(CliError::Unavailable(format!(
                        "the engine's answer was cut off: {}",
                        crate::chain(&e)
                    )));
                }
            }
        }
    }

    /// A header of the answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// What kind of bytes they are.
    pub fn content_type(&self) -> &str {
        self.response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub(super) async fn collect(self, limit: Duration) -> Result<Bytes, String> {
        let Self { response, _connection } = self;
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
        match tokio::time::timeout(limit, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(e)) => Err(format!("its answer was cut off: {e}")),
            Err(_) => Err(format!("its answer did not end within {} s", limit.as_secs())),
        }
    }

    async fn into_error(self) -> CliError {
        let Self { response, _connection } = self;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ERROR).collect();
        let bytes = match tokio::time::timeout(READ, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => Bytes::new(),
        };
        let json = serde_json::from_slice::<Value>(&bytes).ok();
        let message = match json.as_ref().and_then(|j| j["message"].as_str()) {
            Some(message) => message.to_owned(),
            None => String::from_utf8_lossy(&bytes).trim().to_owned(),
        };
        let message = if message.is_empty() { format!("the engine answered {status}") } else { message };
        CliError::from_answer(status.as_u16(), &message, json.as_ref().and_then(ErrorWord::of))
    }
}

#[cfg(test)]
mod tests;
