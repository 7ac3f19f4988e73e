//! What went wrong, as Docker says it: a status and `{"message": "..."}`; and for our own clients, where statuses do not
//! tell things apart, a word in `kind`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use deploy::control::{ControlError, ErrorKind};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::engine::EngineError;

/// A refusal or a failure. The request changed nothing unless the message says that the outcome is unknown.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status; clients decide by it what kind of error it is.
    pub status: StatusCode,
    /// For people, and for tools that look for parts of Docker's texts.
    pub message: String,
    /// What the status does not say.
    pub kind: Option<ErrorWord>,
}

/// What a client has to know of an error beside Docker's status. Docker's clients look for parts of the text instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorWord {
    /// There is no leader; a retry may help.
    NoLeader,
    /// A change was sent, and may or may not have been carried out.
    OutcomeUnknown,
    /// The object has changed since it was read: read it again.
    OutOfSequence,
    /// The node is already, or not, in a cluster: to ask again does not help.
    WrongMembership,
}

impl ErrorWord {
    const ALL: [Self; 4] = [Self::NoLeader, Self::OutcomeUnknown, Self::OutOfSequence, Self::WrongMembership];

    /// The word itself.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoLeader => "no-leader",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::OutOfSequence => "out-of-sequence",
            Self::WrongMembership => "wrong-membership",
        }
    }

    /// The word in the body of an answer; a later release may have others.
    pub fn of(answer: &Value) -> Option<Self> {
        let said = answer["kind"].as_str()?;
        Self::ALL.into_iter().find(|kind| kind.word() == said)
    }
}

impl ApiError {
    /// An error without a word.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind: None }
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
            // Docker answers both with 500; its clients look for "update out of sequence" in the text.
            ErrorKind::OutOfSequence | ErrorKind::Exhausted => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let kind = (error.kind() == ErrorKind::OutOfSequence).then_some(ErrorWord::OutOfSequence);
        Self { kind, ..Self::new(status, error.message) }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let (status, kind) = match error {
            EngineError::Refused(refusal) => return refusal.into(),
            EngineError::WrongMembership(_) => (StatusCode::SERVICE_UNAVAILABLE, Some(ErrorWord::WrongMembership)),
            EngineError::NotManager(_) | EngineError::JoinGoesOn | EngineError::Locked | EngineError::Behind => {
                (StatusCode::SERVICE_UNAVAILABLE, None)
            }
            EngineError::Invalid(_) => (StatusCode::BAD_REQUEST, None),
            EngineError::NoSuchImage(_) => (StatusCode::NOT_FOUND, None),
            EngineError::NoLeader => (StatusCode::INTERNAL_SERVER_ERROR, Some(ErrorWord::NoLeader)),
            EngineError::OutcomeUnknown(_) => (StatusCode::INTERNAL_SERVER_ERROR, Some(ErrorWord::OutcomeUnknown)),
            EngineError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        Self { kind, ..Self::new(status, error.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::debug!(message = %self.message, "answered with an internal error");
        }
        let body = match self.kind {
            Some(kind) => json!({"message": self.message, "kind": kind.word()}),
            None => json!({"message": self.message}),
        };
        (self.status, Json(body)).into_response()
    }
}
