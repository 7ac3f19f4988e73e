//! Why a command failed, and the exit code that says so.

use std::process::ExitCode;

/// A failed command. The text is all that the user gets to see, so it says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line makes no sense; nothing was sent.
    #[error("{0}")]
    Usage(String),
    /// The engine refused the request; nothing changed.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The engine's reason.
        message: String,
    },
    /// The engine, or this machine, could not do it.
    #[error("{0}")]
    Failed(String),
    /// No engine answers, or its cluster has no leader. A retry may help.
    #[error("{0}")]
    Unavailable(String),
    /// A change was sent, and nobody knows whether it was carried out.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// Several commands in one: each that failed, one a line.
    #[error("{}", lines(.0))]
    Several(Vec<CliError>),
    /// What the command ran has ended with this code, and there is nothing more to say.
    #[error("")]
    Exit(u8),
    /// The output went nowhere.
    #[error("cannot write the output: {0}")]
    Output(#[source] std::io::Error),
}

fn lines(errors: &[CliError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl CliError {
    /// What is wrong with the command line.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }

    /// What a status and message of the engine's mean.
    pub(crate) fn from_answer(status: u16, message: &str) -> Self {
        let message = in_shoals_words(message);
        match status {
            // Docker answers these two with 503, but asking again will not help.
            503 if message.contains("already part of a swarm") || message.contains("attempting to leave") => {
                Self::Refused { status, message }
            }
            503 => Self::Unavailable(message),
            400..=499 | 501 => Self::Refused { status, message },
            _ if message.contains("does not have a leader") => Self::Unavailable(message),
            _ if message.contains("outcome of the write is unknown") => Self::OutcomeUnknown(message),
            _ => Self::Failed(message),
        }
    }

    /// All that failed as one error, or none.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// 1 general, 2 bad request, 3 cluster unavailable, 4 outcome unknown.
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::Output(_) => 1,
            Self::Usage(_) | Self::Refused { .. } => 2,
            Self::Unavailable(_) => 3,
            Self::OutcomeUnknown(_) => 4,
            Self::Exit(code) => *code,
            // The worst news decides.
            Self::Several(errors) => match errors.iter().map(Self::code).max() {
                Some(code @ 3..) => code,
                // A mixture of bad requests and failures is a failure.
                Some(_) if errors.iter().any(|e| e.code() == 1) => 1,
                Some(code) => code,
                None => 1,
            },
        }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// The engine speaks to Docker's clients in Docker's words; here the commands are Shoal's.
fn in_shoals_words(message: &str) -> String {
    message
        // Some texts have both already.
        .replace(" (shoal node leave)", "")
        .replace("docker swarm join-token", "shoal node token")
        .replace("docker swarm ", "shoal node ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, message: &str, code: u8) {
        assert_eq!(CliError::from_answer(status, message).code(), code, "{status} {message}");
    }

    #[test]
    fn exit_codes_tell_kinds_apart() {
        check(400, "invalid", 2);
        check(404, "service web not found", 2);
        check(409, "taken", 2);
        check(501, "not supported yet", 2);
        check(500, "disk full", 1);
        check(500, "The swarm does not have a leader. It's possible that too few managers are online.", 3);
        check(500, "the outcome of the write is unknown: leader lost", 4);
        check(503, "This node is not a swarm manager.", 3);
        check(503, "This node is already part of a swarm.", 2);
    }

    #[test]
    fn commands_in_messages_are_shoals() {
        let error = CliError::from_answer(503, "Use \"docker swarm init\" or \"docker swarm join\" to connect");
        assert_eq!(error.to_string(), "Use \"shoal node init\" or \"shoal node join\" to connect");
        let error = CliError::from_answer(503, "Use \"docker swarm leave\" (shoal node leave) to leave");
        assert_eq!(error.to_string(), "Use \"shoal node leave\" to leave");
    }

    #[test]
    fn several_errors_have_the_worst_code() {
        let refused = || CliError::from_answer(404, "a");
        assert_eq!(CliError::Several(vec![refused(), refused()]).code(), 2);
        assert_eq!(CliError::Several(vec![refused(), CliError::Failed("b".into())]).code(), 1);
        assert_eq!(CliError::Several(vec![refused(), CliError::Unavailable("b".into())]).code(), 3);
        assert!(CliError::all(Vec::new()).is_ok());
        assert_eq!(CliError::all(vec![refused(), refused()]).unwrap_err().to_string(), "a\na");
    }
}
