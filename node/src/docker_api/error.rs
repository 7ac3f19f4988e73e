//! What went wrong, as Docker says it: a status and `{"message": "..."}`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use deploy::control::{ControlError, ErrorKind};
use hyper::StatusCode;

use crate::engine::EngineError;

/// A refusal or a failure. The request changed nothing unless the message says that the outcome is unknown.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status; clients decide by it what kind of error it is.
    pub status: StatusCode,
    /// For people, and for tools that look for parts of Docker's texts.
    pub message: String,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 403: it is not to be touched.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: the object does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: it is there already, or in use.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 413: more than is taken.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 501: Docker has it and Shoal does not.
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 500: a failure here.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::AlreadyExists => StatusCode::CONFLICT,
            ErrorKind::Forbidden => StatusCode::FORBIDDEN,
            ErrorKind::Invalid | ErrorKind::FailedPrecondition => StatusCode::BAD_REQUEST,
            ErrorKind::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            // Docker answers both with 500; clients look for "update out of sequence" in the text.
            ErrorKind::OutOfSequence | ErrorKind::Exhausted => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.message)
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let status = match error {
            EngineError::Refused(refusal) => return refusal.into(),
            EngineError::NotManager(_)
            | EngineError::WrongMembership(_)
            | EngineError::Locked
            | EngineError::Behind => StatusCode::SERVICE_UNAVAILABLE,
            EngineError::Invalid(_) => StatusCode::BAD_REQUEST,
            EngineError::NoSuchImage(_) => StatusCode::NOT_FOUND,
            EngineError::NoLeader | EngineError::OutcomeUnknown(_) | EngineError::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::debug!(message = %self.message, "answered with an internal error");
        }
        (self.status, Json(serde_json::json!({ "message": self.message }))).into_response()
    }
}
