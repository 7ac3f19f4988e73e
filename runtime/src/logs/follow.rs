//! Streams a log to whoever asked for it, on a bounded channel.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::{LogRecord, Reader};
use crate::sys;

/// Sends records until there are no more (or, for a follower, until the container has ended), the receiver is dropped
/// or `until` is reached. `ended` becomes true when everything of the container's is in the files.
pub(crate) async fn follow(
    mut reader: Reader,
    dir: std::path::PathBuf,
    following: bool,
    mut ended: watch::Receiver<bool>,
    sender: mpsc::Sender<LogRecord>,
) {
    let watcher = if following { Watcher::new(&dir).ok() } else { None };
    loop {
        // Asked before the read: what was written before the end is then surely seen.
        let last_round = !following || *ended.borrow();
        loop {
            let step = tokio::task::spawn_blocking(move || {
                let batch = reader.next_batch();
                (reader, batch)
            });
            let Ok((returned, batch)) = step.await else { return };
            reader = returned;
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    debug!(%error, dir = %dir.display(), "reading a log ended");
                    return;
                }
            };
            if batch.is_empty() {
                break;
            }
            for record in batch {
                if sender.send(record).await.is_err() {
                    return;
                }
            }
        }
        if last_round || reader.past_end() {
            return;
        }
        tokio::select! {
            biased;
            () = sender.closed() => return,
            changed = ended.changed() => if changed.is_err() { return },
            changed = changed(watcher.as_ref()) => if changed.is_err() { return },
        }
    }
}

/// The host may have no inotify instance left for us; then a look now and then must do.
async fn changed(watcher: Option<&Watcher>) -> io::Result<()> {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => {
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
            Ok(())
        }
    }
}

/// Tells of changes in the directory of a log.
struct Watcher(AsyncFd<OwnedFd>);

impl Watcher {
    fn new(dir: &Path) -> io::Result<Watcher> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&fd, dir, events)?;
        Ok(Watcher(sys::async_fd(fd)?))
    }

    async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        // What exactly happened does not matter: the events are read away and the reader looks.
        let mut events = [0u8; 4096];
        while rustix::io::read(guard.get_inner(), &mut events).is_ok_and(|count| count > 0) {}
        guard.clear_ready();
        Ok(())
    }
}
