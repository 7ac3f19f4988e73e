//! The streams of a container's next run, for those who ask for them while it does not run.

use runtime::{OutputPiece, Runtime, RuntimeError, StdStream};
use tokio::sync::{mpsc, oneshot};

/// A container's streams.
pub(crate) struct Streams {
    /// What it writes.
    pub(crate) output: mpsc::Receiver<OutputPiece>,
    /// What it reads, if that is wanted.
    pub(crate) stdin: Option<StdStream>,
}

/// What is wanted of a container's streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Its standard output.
    pub(crate) stdout: bool,
    /// Its standard error.
    pub(crate) stderr: bool,
    /// Its standard input.
    pub(crate) stdin: bool,
}

/// Somebody who wants streams.
pub(super) struct Listener {
    wanted: Wanted,
    opened: oneshot::Sender<Result<Streams, RuntimeError>>,
}

impl Listener {
    pub(super) fn new(wanted: Wanted) -> (Self, oneshot::Receiver<Result<Streams, RuntimeError>>) {
        let (opened, streams) = oneshot::channel();
        (Self { wanted, opened }, streams)
    }

    pub(super) fn has_gone(&self) -> bool {
        self.opened.is_closed()
    }

    /// Of a container that waits for its start, or runs.
    pub(super) async fn open(self, runtime: &Runtime, id: &str) {
        let Wanted { stdout, stderr, stdin } = self.wanted;
        let opening = async {
            let output = runtime.attach(id, stdout, stderr).await?;
            let stdin = if stdin { Some(runtime.stdin(id).await?) } else { None };
            Ok(Streams { output, stdin })
        };
        // Who has gone meanwhile does not hear it.
        let _ = self.opened.send(opening.await);
    }
}
