//! What handlers take out of a request: JSON bodies, query parameters, the API version.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::filters::Filters;

/// Bytes of a JSON body. The largest object, a config of 1000 KiB in base64, fits with room.
pub(crate) const MAX_JSON_BODY: usize = 4 << 20;

/// The version that the client speaks, `(major, minor)`; the newest one when its path names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion(pub(crate) u32, pub(crate) u32);

impl ApiVersion {
    /// The newest version that is spoken, and the one that is announced.
    pub(crate) const MAX: Self = Self(1, 50);
    /// The oldest version that is accepted.
    pub(crate) const MIN: Self = Self(1, 24);

    /// Reads `1.43`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let number = |s: &str| {
            (!s.is_empty() && s.len() <= 4 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok()).flatten()
        };
        Some(Self(number(major)?, number(minor)?))
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().copied().unwrap_or(Self::MAX))
    }
}

/// Bytes of a body that is too large that are still read and thrown away: a client looks at the answer only when it
/// has sent its request.
const MAX_DISCARDED: usize = 64 << 20;

async fn read_bounded(body: Body) -> Result<Bytes, ApiError> {
    let mut body = body.into_data_stream();
    let mut bytes = BytesMut::new();
    let mut discarded = 0;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|e| ApiError::invalid(format!("reading the request body failed: {e}")))?;
        if discarded == 0 && bytes.len() + piece.len() <= MAX_JSON_BODY {
            bytes.extend_from_slice(&piece);
        } else {
            discarded += piece.len();
            bytes.clear();
        }
        if discarded > MAX_DISCARDED {
            break;
        }
    }
    if discarded > 0 {
        return Err(ApiError::too_large(format!("request body is larger than {MAX_JSON_BODY} bytes")));
    }
    Ok(bytes.freeze())
}

/// A JSON body.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Self::Rejection> {
        let content_type = request.headers().get(CONTENT_TYPE).map(|v| v.to_str().unwrap_or("").to_owned());
        let bytes = read_bounded(request.into_body()).await?;
        if bytes.is_empty() {
            return Err(ApiError::invalid("got EOF while reading request body"));
        }
        // A page in a browser can send a form anywhere without asking, but not JSON; Docker checks the same.
        if let Some(given) = content_type {
            let media_type = given.split(';').next().unwrap_or_default().trim();
            if !media_type.eq_ignore_ascii_case("application/json") {
                return Err(ApiError::invalid(format!(
                    "unsupported Content-Type header ({media_type}): must be 'application/json'"
                )));
            }
        }
        // An array would be taken for an object's fields in their order.
        match bytes.trim_ascii_start().first() {
            Some(b'{') => {}
            _ => return Err(ApiError::invalid("invalid JSON: a JSON object is needed")),
        }
        let body = serde_json::from_slice(&bytes).map_err(|e| ApiError::invalid(format!("invalid JSON: {e}")))?;
        Ok(Self(body))
    }
}

/// The query of a request; a parameter that is given twice counts once, by its last value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// The value of a parameter.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Every value of a parameter that may be repeated.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A parameter that is a switch: anything but empty, `0`, `no`, `false` and `none` is on.
    pub(crate) fn flag(&self, key: &str) -> bool {
        !matches!(
            self.get(key).unwrap_or_default().trim().to_ascii_lowercase().as_str(),
            "" | "0" | "no" | "false" | "none"
        )
    }

    /// The filters, which may only have the accepted keys.
    pub(crate) fn filters(&self, accepted: &[&str]) -> Result<Filters, ApiError> {
        Filters::parse(self.get("filters").unwrap_or_default(), accepted)
    }

    /// The `version` of an update; `kind` names the object in the refusal.
    pub(crate) fn version(&self, kind: &str) -> Result<u64, ApiError> {
        let given = self.get("version").unwrap_or_default();
        given.parse().map_err(|_| ApiError::invalid(format!("invalid {kind} version '{given}'")))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(e) => Err(ApiError::invalid(format!("invalid query: {e}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(ApiVersion::parse("1.43"), Some(ApiVersion(1, 43)));
        assert!(ApiVersion::parse("1.9") < ApiVersion::parse("1.24"));
        for text in ["", "1", "1.", ".1", "1.x", "+1.2", "1.-2", "1.2.3", "99999.1", "1.00001"] {
            assert_eq!(ApiVersion::parse(text), None, "{text}");
        }
    }

    #[test]
    fn switches() {
        let params = Params(vec![("a".into(), "1".into()), ("b".into(), "False".into()), ("c".into(), String::new())]);
        assert!(params.flag("a"));
        assert!(!params.flag("b"));
        assert!(!params.flag("c"));
        assert!(!params.flag("d"));
    }
}
