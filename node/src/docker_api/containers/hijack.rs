//! Taking a connection over from HTTP.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;

use super::pump::Client;

/// The end of HTTP on a connection, when its client asked for that.
pub(super) struct Hijack(OnUpgrade);

impl Hijack {
    /// `None`: the client wants an ordinary answer.
    pub(super) fn take(parts: &mut Parts) -> Option<Hijack> {
        let wanted = parts.headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"tcp"));
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        upgrade.filter(|_| wanted).map(Hijack)
    }

    /// Waits until the answer of [`upgraded`] was sent. `None`: the client went away before.
    pub(super) async fn client(self) -> Option<Client> {
        self.0.await.ok().map(Client::new)
    }
}

/// The answer that ends HTTP.
pub(super) fn upgraded(content_type: &'static str) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    response
}

/// The same bytes for a client that did not ask for an upgrade; it can only listen.
pub(super) fn plain(content_type: &'static str, body: Body) -> Response {
    ([(CONTENT_TYPE, content_type)], body).into_response()
}
