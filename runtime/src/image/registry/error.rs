//! What can go wrong between this host and a registry. The store is as it was before the call.

use std::io;
use std::time::Duration;

use super::super::error::{ImageError, ImageErrorKind};

/// Why a registry could not be used. Nothing of a pull that failed stays.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or no TLS that this host trusts.
    #[error("cannot connect to registry {registry}")]
    Connect {
        /// `host:port`.
        registry: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The registry keeps silent. A retry may help; some were made.
    #[error("registry {registry} did not {what} within {} s", after.as_secs_f32())]
    Timeout {
        /// `host:port`.
        registry: String,
        /// What was waited for, as a verb.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection broke in the middle of something. A retry may help; some were made.
    #[error("the connection to registry {registry} broke")]
    Broken {
        /// `host:port`.
        registry: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The registry failed (5xx) or said something that has no meaning here.
    #[error("registry {registry} answered {status}{}", behind(message))]
    Status {
        /// `host:port`.
        registry: String,
        /// HTTP status.
        status: u16,
        /// What it said, or nothing.
        message: String,
        /// For how long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// There is no such image, or layer.
    #[error("{what} not found{}", behind(message))]
    NotFound {
        /// What was asked for.
        what: String,
        /// What the registry said.
        message: String,
    },
    /// The registry wants other credentials, or some.
    #[error("registry {registry} refuses the credentials (unauthorized){}", behind(message))]
    Unauthorized {
        /// `host:port`.
        registry: String,
        /// What it said.
        message: String,
    },
    /// The credentials are good and do not suffice.
    #[error("{what}: access denied{}", behind(message))]
    Denied {
        /// What was asked for.
        what: String,
        /// What the registry said.
        message: String,
    },
    /// The registry sends one somewhere where one does not go.
    #[error("registry {registry}: redirect refused: {reason}")]
    Redirect {
        /// `host:port`.
        registry: String,
        /// Why.
        reason: String,
    },
    /// An answer that is not in the protocol.
    #[error("registry {registry}: {reason}")]
    Protocol {
        /// `host:port`.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// A manifest, configuration or layer of a kind that is not understood.
    #[error("{what} has the media type {media_type:?}: {reason}")]
    MediaType {
        /// Which document or layer.
        what: String,
        /// What it says to be.
        media_type: String,
        /// Why that is no good.
        reason: &'static str,
    },
    /// No image of the index runs here.
    #[error("no matching manifest for {wanted} in the manifest list entries; there is {found}")]
    NoPlatform {
        /// What was looked for.
        wanted: String,
        /// What there is, separated by commas.
        found: String,
    },
    /// Not a registry's name.
    #[error("invalid registry {name:?}: it must look like host:port")]
    BadName {
        /// As it was given.
        name: String,
    },
    /// The image, or this host's store.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A thread of this host failed.
    #[error("a thread of the image store failed")]
    Thread(#[source] tokio::task::JoinError),
}

/// What sort of answer a [`RegistryError`] deserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryErrorKind {
    /// There is no such image (HTTP 404).
    NotFound,
    /// Credentials are missing or wrong (HTTP 401).
    Unauthorized,
    /// They do not suffice (HTTP 403).
    Denied,
    /// The name or parameter is bad (HTTP 400).
    InvalidInput,
    /// The registry, or this host (HTTP 500).
    Internal,
}

impl RegistryError {
    /// Groups the variants by who has to act.
    #[must_use]
    pub fn kind(&self) -> RegistryErrorKind {
        match self {
            RegistryError::NotFound { .. } | RegistryError::NoPlatform { .. } => RegistryErrorKind::NotFound,
            RegistryError::Unauthorized { .. } => RegistryErrorKind::Unauthorized,
            RegistryError::Denied { .. } => RegistryErrorKind::Denied,
            RegistryError::BadName { .. } => RegistryErrorKind::InvalidInput,
            RegistryError::Image(error) => match error.kind() {
                ImageErrorKind::NotFound => RegistryErrorKind::NotFound,
                ImageErrorKind::InvalidInput if matches!(error, ImageError::Reference(_)) => {
                    RegistryErrorKind::InvalidInput
                }
                _ => RegistryErrorKind::Internal,
            },
            _ => RegistryErrorKind::Internal,
        }
    }

    /// Whether the same may go well a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            RegistryError::Connect { .. } | RegistryError::Timeout { .. } | RegistryError::Broken { .. } => true,
            RegistryError::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// For how long the registry asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(super) fn protocol(registry: impl Into<String>, reason: impl Into<String>) -> RegistryError {
        RegistryError::Protocol { registry: registry.into(), reason: reason.into() }
    }
}

/// A message behind what it explains.
fn behind(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
