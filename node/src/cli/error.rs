//! Why a command failed, and the exit code that says so.

use std::process::ExitCode;

use crate::docker_api::ErrorWord;

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
    /// The object has changed since it was read; nothing was written.
    #[error("{0}")]
    OutOfSequence(String),
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

    /// What a status and message of the engine's mean, with the word that it says beside them.
    pub(crate) fn from_answer(status: u16, message: &str, word: Option<ErrorWord>) -> Self {
        let message = in_shoals_words(message);
        match (word, status) {
            (Some(ErrorWord::NoLeader), _) => Self::Unavailable(message),
            (Some(ErrorWord::OutcomeUnknown), _) => Self::OutcomeUnknown(message),
            (Some(ErrorWord::OutOfSequence), _) => Self::OutOfSequence(message),
            // Docker's status for it is 503 too, but asking again will not help.
            (Some(ErrorWord::WrongMembership), _) | (None, 400..=499 | 501) => Self::Refused { status, message },
            (None, 503) => Self::Unavailable(message),
            (None, _) => Self::Failed(message),
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
            Self::Failed(_) | Self::OutOfSequence(_) | Self::Output(_) => 1,
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
    fn check(status: u16, word: Option<ErrorWord>, code: u8) {
        // The text is for people.
        assert_eq!(CliError::from_answer(status, "no", word).code(), code, "{status} {word:?}");
    }

    #[test]
    fn exit_codes_tell_kinds_apart() {
        check(400, None, 2);
        check(404, None, 2);
        check(409, None, 2);
        check(501, None, 2);
        check(500, None, 1);
        check(500, Some(ErrorWord::NoLeader), 3);
        check(500, Some(ErrorWord::OutcomeUnknown), 4);
        check(500, Some(ErrorWord::OutOfSequence), 1);
        check(503, None, 3);
        check(503, Some(ErrorWord::WrongMembership), 2);
        let text = "the outcome of the write is unknown: update out of sequence, it does not have a leader";
        assert_eq!(CliError::from_answer(500, text, None).code(), 1);
    }

    #[test]
    fn commands_in_messages_are_shoals() {
        let error = CliError::from_answer(503, "Use \"docker swarm init\" or \"docker swarm join\" to connect", None);
        assert_eq!(error.to_string(), "Use \"shoal node init\" or \"shoal node join\" to connect");
        let error = CliError::from_answer(503, "Use \"docker swarm leave\" (shoal node leave) to leave", None);
        assert_eq!(error.to_string(), "Use \"shoal node leave\" to leave");
    }

    #[test]
    fn several_errors_have_the_worst_code() {
        let refused = || CliError::from_answer(404, "a", None);
        assert_eq!(CliError::Several(vec![refused(), refused()]).code(), 2);
        assert_eq!(CliError::Several(vec![refused(), CliError::Failed("b".into())]).code(), 1);
        assert_eq!(CliError::Several(vec![refused(), CliError::Unavailable("b".into())]).code(), 3);
        assert!(CliError::all(Vec::new()).is_ok());
        assert_eq!(CliError::all(vec![refused(), refused()]).unwrap_err().to_string(), "a\na");
    }
}
