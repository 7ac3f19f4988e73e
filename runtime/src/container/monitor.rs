//! Follows one shim until its container has ended, and finds out how.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{Container, Inner, client, status_from};
use crate::RuntimeError;
use crate::cgroup::Cgroups;
use crate::events::Events;
use crate::procfs;
use crate::protocol::{self, Answer, Ask, Empty, Reply};
use crate::stored::{self, Durability, StoredExit, StoredProcess, names, nanos, time_from};

/// How long the remains of a lost container may take to die.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// A shim that lives but has hung up is asked again after this.
const RECONNECT: Duration = Duration::from_millis(100);

impl Inner {
    /// Starts the task that follows a container's shim. Must be called within the async runtime.
    pub(super) fn monitor(self: &Arc<Self>, container: Arc<Container>, child: Option<Child>) {
        let (socket, cgroups, inner) = (self.socket(&container.id), self.cgroups.clone(), Arc::downgrade(self));
        let (volumes, events) = (self.volumes.clone(), self.events.clone());
        let mut monitors = self.monitors.lock().unwrap_or_else(PoisonError::into_inner);
        while monitors.try_join_next().is_some() {}
        monitors.spawn(async move {
            let mut reaped = JoinSet::new();
            // Ours, so it is for us to reap, and at once: where it is not the shim itself, it has ended already.
            if let Some(mut child) = child {
                reaped.spawn(async move { child.wait().await });
            }
            follow(&container, socket, cgroups, &events).await;
            let inner = inner.upgrade();
            if let Some(inner) = &inner {
                inner.make_durable(&container.id);
            }
            // What it had mounted for it goes with its last user. Whoever deletes it does the same.
            let rest = move || {
                let lock = inner.as_ref().map(|inner| inner.lock_of(&container.id));
                let _alone = lock.as_ref().map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
                // Renewed meanwhile, it has them again.
                if inner.as_ref().is_none_or(|inner| !inner.is_renewed(&container)) {
                    volumes.rest(&container.id);
                }
            };
            let _ = tokio::task::spawn_blocking(rest).await;
            while reaped.join_next().await.is_some() {}
        });
    }
}

async fn follow(container: &Arc<Container>, socket: PathBuf, cgroups: Cgroups, events: &Events) {
    loop {
        let path = socket.clone();
        let asked = tokio::task::spawn_blocking(move || ask_to_wait(&path)).await;
        if let Ok(Ok(stream)) = asked
            && let Ok(mut stream) = tokio::net::UnixStream::from_std(stream)
        {
            hear_the_end(container, &mut stream).await;
        }
        let (found, groups) = (Arc::clone(container), cgroups.clone());
        let exit = tokio::task::spawn_blocking(move || find_exit(&found, &groups)).await;
        match exit {
            Ok(Some(exit)) => {
                info!(container.id = container.id, code = exit.code, oom = exit.oom_killed, "exited");
                if exit.dropped_log_records > 0 {
                    warn!(container.id = container.id, records = exit.dropped_log_records, "its log found no room");
                }
                end(container, &exit, events);
                return;
            }
            Ok(None) => tokio::time::sleep(RECONNECT).await,
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                warn!(container.id = container.id, %error, "monitor");
                tokio::time::sleep(RECONNECT).await;
            }
        }
    }
}

/// Notes the end and tells of it, both before anybody can see either of them.
fn end(container: &Container, exit: &StoredExit, events: &Events) {
    container.view.send_modify(|view| {
        view.exit.get_or_insert_with(|| status_from(exit));
        if view.started_at.is_none() && exit.started_at_nanos.is_some() {
            // It was faster than whoever has started it.
            view.started_at = exit.started_at_nanos.map(time_from);
            container.tell(events, "start", Vec::new());
        }
        // One that never ran and was only taken away has not died.
        if view.started_at.is_none() && (exit.signal.is_some() || exit.shim_lost) {
            return;
        }
        if exit.oom_killed {
            container.tell(events, "oom", Vec::new());
        }
        let started = view.started_at.and_then(|at| time_from(exit.finished_at_nanos).duration_since(at).ok());
        let seconds = started.unwrap_or_default().as_secs();
        let attributes = vec![("exitCode", exit.code.to_string()), ("execDuration", seconds.to_string())];
        container.tell(events, "die", attributes);
    });
}

/// Returns at an answer or at the end of the connection: either way the file says what happened.
async fn hear_the_end(container: &Container, stream: &mut tokio::net::UnixStream) {
    let (mut buffer, mut chunk) = (Vec::new(), [0u8; 256]);
    loop {
        match protocol::take::<Reply>(&mut buffer) {
            Ok(Some(Reply { answer: Some(Answer::State(state)) })) if !state.exited => {
                let records = state.dropped_log_records;
                warn!(container.id = container.id, records, "its log finds no room, so far it has lost");
            }
            // Of a later release.
            Ok(Some(Reply { answer: None })) => {}
            Ok(None) => match stream.read(&mut chunk).await {
                Ok(count) if count > 0 => buffer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                _ => return,
            },
            Ok(Some(_)) | Err(_) => return,
        }
    }
}

fn ask_to_wait(socket: &std::path::Path) -> io::Result<UnixStream> {
    let stream = client::connect(socket)?;
    client::send(&stream, Ask::Wait(Empty {}), &[])?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The recorded exit; or, when the shim is gone without leaving one, the end of what it left. `None`: the shim lives.
pub(super) fn find_exit(container: &Container, cgroups: &Cgroups) -> Option<StoredExit> {
    match stored::read::<StoredExit>(&container.dir, names::EXIT) {
        Ok(Some(exit)) => return Some(exit),
        Ok(None) => {}
        // There may be a record, and there may be none: later.
        Err(RuntimeError::Storage { source, .. }) if procfs::out_of_resources(&source) => return None,
        Err(error) if shim_lives(container) => {
            warn!(container.id = container.id, %error, "the exit record is unreadable");
            return None;
        }
        Err(error) => {
            warn!(container.id = container.id, %error, "the exit record is unreadable");
            let lost = lost_exit(container, cgroups);
            return Some(lost);
        }
    }
    if shim_lives(container) {
        return None;
    }
    // It may have written the record between our look and its end.
    if let Ok(Some(exit)) = stored::read::<StoredExit>(&container.dir, names::EXIT) {
        return Some(exit);
    }
    let lost = lost_exit(container, cgroups);
    warn!(container.id = container.id, "the shim is lost, the container was killed");
    if let Err(error) = stored::write(&container.dir, names::EXIT, &lost, Durability::Synced) {
        warn!(container.id = container.id, %error, "the exit could not be recorded");
    }
    Some(lost)
}

/// Kills what a lost shim has left, and says what is known.
fn lost_exit(container: &Container, cgroups: &Cgroups) -> StoredExit {
    let oom_killed = cgroups.oom_killed(&container.id);
    if !cgroups.kill_all(&container.id, Instant::now() + KILL_DEADLINE) {
        warn!(container.id = container.id, "processes of a lost container do not die");
    }
    StoredExit {
        code: 137,
        signal: None,
        oom_killed,
        finished_at_nanos: nanos(SystemTime::now()),
        shim_lost: true,
        started_at_nanos: container.view.borrow().started_at.map(nanos),
        dropped_log_records: 0,
    }
}

/// Whether the shim that recorded itself is the process that has its number now.
pub(super) fn shim_lives(container: &Container) -> bool {
    !shim_ends(container, Duration::ZERO)
}

/// A shim that breaks a conversation off is at its end, or somebody has killed it: what a request becomes that met this.
pub(super) fn broken_off(container: &Container, operation: &'static str, source: io::Error) -> RuntimeError {
    /// Between the end of its connections and its own.
    const MOMENT: Duration = Duration::from_millis(500);
    match shim_ends(container, MOMENT) {
        true => RuntimeError::WrongState { id: container.id.clone(), status: "exited" },
        false => RuntimeError::Shim { id: container.id.clone(), operation, source },
    }
}

/// Only what is known counts as an end: a daemon that is out of descriptors must not take its containers for lost.
fn shim_ends(container: &Container, within: Duration) -> bool {
    let process = match stored::read::<StoredProcess>(&container.dir, names::PROCESS) {
        Ok(Some(process)) => process,
        Err(RuntimeError::Storage { source, .. }) if procfs::out_of_resources(&source) => return false,
        Ok(None) | Err(_) => return true,
    };
    if process.boot_id != procfs::boot_id() {
        return true;
    }
    match procfs::open_verified(process.shim_pid, process.shim_start_ticks) {
        Ok(Some(pidfd)) => super::delete::has_ended(&pidfd, within),
        Ok(None) => true,
        Err(_) => false,
    }
}
