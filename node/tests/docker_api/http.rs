//! A small HTTP client over a unix socket.

use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends a request and returns as soon as the headers are there.
pub(crate) async fn open(
    socket: &Path,
    method: &str,
    path: &str,
    content_type: Option<&str>,
    body: Vec<u8>,
) -> Response<Incoming> {
    open_as(socket, method, path, content_type, None, body).await
}

async fn open_as(
    socket: &Path,
    method: &str,
    path: &str,
    content_type: Option<&str>,
    registry_auth: Option<&str>,
    body: Vec<u8>,
) -> Response<Incoming> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("Host", "api.moby.localhost");
    if let Some(given) = content_type {
        request = request.header("Content-Type", given);
    }
    if let Some(given) = registry_auth {
        request = request.header("X-Registry-Auth", given);
    }
    sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(socket: &Path, method: &str, path: &str, content_type: Option<&str>, body: Vec<u8>) -> Answer {
    answer(open(socket, method, path, content_type, body).await).await
}

async fn answer(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

pub(crate) async fn get(socket: &Path, path: &str) -> Answer {
    send(socket, "GET", path, None, Vec::new()).await
}

pub(crate) async fn delete(socket: &Path, path: &str) -> Answer {
    send(socket, "DELETE", path, None, Vec::new()).await
}

pub(crate) async fn post(socket: &Path, path: &str, body: Value) -> Answer {
    send(socket, "POST", path, Some("application/json"), body.to_string().into_bytes()).await
}

/// Asks in the name of a registry's user.
pub(crate) async fn send_with(socket: &Path, method: &str, path: &str, registry_auth: &str) -> Answer {
    answer(open_as(socket, method, path, None, Some(registry_auth), Vec::new()).await).await
}

/// Sends an object, and credentials for a registry if there are some.
pub(crate) async fn post_with(socket: &Path, path: &str, body: &Value, registry_auth: Option<&str>) -> Answer {
    let body = body.to_string().into_bytes();
    answer(open_as(socket, "POST", path, Some("application/json"), registry_auth, body).await).await
}

/// As clients write credentials into a header.
pub(crate) fn base64url(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE.encode(text)
}

/// The filters of a query, escaped.
pub(crate) fn filters(value: Value) -> String {
    let escaped: String = value
        .to_string()
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    format!("filters={escaped}")
}
