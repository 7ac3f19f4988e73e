//! Why something with hosts did not work.

use std::io;
use std::time::Duration;

use crate::docker_api::ErrorWord;

/// A failure with hosts. What was made before it stays until the hosts are cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// This machine or this user cannot have hosts at all.
    #[error("{0}")]
    Unusable(String),
    /// The machine refused something.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A host's API could not be asked; whether the request was carried out is not known.
    #[error("{host}: {request}: {reason}")]
    Unreachable {
        /// The host's name.
        host: String,
        /// Method and path.
        request: String,
        /// What happened.
        reason: String,
    },
    /// A host's API refused.
    #[error("{host}: {request}: {message} (status {status})")]
    Refused {
        /// The host's name.
        host: String,
        /// Method and path.
        request: String,
        /// HTTP status.
        status: u16,
        /// The API's message.
        message: String,
        /// What it says beside the status.
        word: Option<ErrorWord>,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} s; last seen: {seen}", limit.as_secs_f64())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The last state that was seen.
        seen: String,
    },
    /// A daemon ended by itself.
    #[error("the daemon of {host} ended ({status}); its last words:\n{words}")]
    Ended {
        /// The host's name.
        host: String,
        /// Its exit status.
        status: String,
        /// The end of its log.
        words: String,
    },
    /// Not everything could be removed.
    #[error("clean-up left something behind: {}", .0.join("; "))]
    CleanUp(Vec<String>),
}

impl HostError {
    /// Wraps what the machine said; `what` names the operation and its object.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
        let what = what.into();
        move |source| HostError::Io { what, source }
    }

    /// The HTTP status, where the API refused.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            HostError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}
