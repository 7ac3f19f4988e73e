//! The containers of this host as the API drives them: the runtime, and the processes that were asked for in them.
//!
//! Docker makes an exec in two steps, so what was asked for is kept between them, and how it ended for a while
//! afterwards. All of it is in memory: a daemon that begins anew has forgotten it, as Docker's has. What moves bytes
//! between clients and containers is spawned here and ends with the daemon.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runtime::{ExecConfig, ExecExit, ExecHandle, Runtime, StdStream};
use tokio_util::task::TaskTracker;

/// Processes that are remembered; more cannot be asked for until containers or processes are gone.
const MAX_EXECS: usize = 4096;
/// A process that nobody has started for so long is forgotten: clients ask and start in one breath.
const ASKED_FOR: Duration = Duration::from_secs(300);
/// Processes that have ended and are remembered; the oldest are forgotten first.
const MAX_ENDED: usize = 1024;

/// A clone is a handle to the same containers.
#[derive(Clone, Debug)]
pub struct Containers {
    /// Runs them.
    pub runtime: Runtime,
    execs: Arc<Mutex<Execs>>,
    /// Whatever moves bytes.
    pub(crate) tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Execs {
    last: u64,
    by_id: BTreeMap<String, Exec>,
}

/// A process that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Exec {
    /// The container.
    pub(crate) container: String,
    /// What to run.
    pub(crate) config: ExecConfig,
    /// As sent; the streams are decided when it is started.
    pub(crate) wanted: Wanted,
    /// How far it is.
    pub(crate) state: ExecState,
    /// Its place in the order of asking.
    number: u64,
    /// When it was asked for.
    asked: Instant,
}

/// Which streams a process should have, and how its client leaves it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) detach_keys: String,
}

/// How far a process is.
#[derive(Clone, Debug)]
pub(crate) enum ExecState {
    /// Nobody has started it.
    Asked,
    /// Somebody is starting it.
    Starting,
    /// It could not be started; the code that Docker says.
    Failed(i32),
    /// It runs, or has ended.
    Started {
        /// As the host numbers it.
        pid: u32,
        /// Tells how it ended.
        handle: ExecHandle,
        /// Its terminal, while a client has it.
        terminal: Option<StdStream>,
    },
}

impl Exec {
    /// How it ended, if it has; also when it never began.
    pub(crate) fn ended(&self) -> Option<ExecExit> {
        match &self.state {
            ExecState::Asked | ExecState::Starting => None,
            ExecState::Failed(code) => Some(ExecExit { code: *code, signal: None, shim_lost: false }),
            ExecState::Started { handle, .. } => handle.ended(),
        }
    }
}

impl Execs {
    /// Forgets what nobody has started: all of it after a while, the oldest when there is no room. Whether there is
    /// room.
    fn make_room(&mut self, now: Instant) -> bool {
        let waits = |exec: &Exec| matches!(exec.state, ExecState::Asked);
        self.by_id.retain(|_, exec| !waits(exec) || now.duration_since(exec.asked) < ASKED_FOR);
        if self.by_id.len() < MAX_EXECS {
            return true;
        }
        let oldest = self.by_id.iter().filter(|(_, exec)| waits(exec)).min_by_key(|(_, exec)| exec.number);
        let oldest = oldest.map(|(id, _)| id.clone());
        oldest.is_some_and(|id| self.by_id.remove(&id).is_some())
    }
}

impl Containers {
    /// Over a runtime.
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime, execs: Arc::default(), tasks: TaskTracker::new() }
    }

    fn execs(&self) -> MutexGuard<'_, Execs> {
        // Nothing panics while it is held, and a map is whole in any case.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a process under a new id. `None`: too many are remembered.
    pub(crate) fn ask_for(&self, container: String, config: ExecConfig, wanted: Wanted) -> Option<String> {
        let mut execs = self.execs();
        let mut ended: Vec<(u64, String)> = execs
            .by_id
            .iter()
            .filter(|(_, exec)| exec.ended().is_some())
            .map(|(id, exec)| (exec.number, id.clone()))
            .collect();
        ended.sort_unstable();
        let surplus = ended.len().saturating_sub(MAX_ENDED);
        for (_, id) in ended.into_iter().take(surplus) {
            execs.by_id.remove(&id);
        }
        let now = Instant::now();
        if !execs.make_room(now) {
            return None;
        }
        execs.last += 1;
        let number = execs.last;
        let id: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        execs.by_id.insert(id.clone(), Exec { container, config, wanted, state: ExecState::Asked, number, asked: now });
        Some(id)
    }

    /// What is known of a process, by its id.
    pub(crate) fn exec(&self, id: &str) -> Option<Exec> {
        self.execs().by_id.get(id).cloned()
    }

    /// Changes what is known of a process; what that answers.
    pub(crate) fn change_exec<T>(&self, id: &str, change: impl FnOnce(&mut Exec) -> T) -> Option<T> {
        self.execs().by_id.get_mut(id).map(change)
    }

    /// Ids of the processes of a container that have not ended.
    pub(crate) fn execs_of(&self, container: &str) -> Vec<String> {
        let execs = self.execs();
        let of = execs.by_id.iter().filter(|(_, exec)| exec.container == container && exec.ended().is_none());
        of.map(|(id, _)| id.clone()).collect()
    }

    /// Forgets what was asked for in a container that is gone.
    pub(crate) fn forget_execs_but_of(&self, here: &[String]) {
        self.execs().by_id.retain(|_, exec| here.contains(&exec.container));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_starts_is_forgotten() {
        let now = Instant::now();
        let exec = |number: u64, state| Exec {
            container: "c".into(),
            config: ExecConfig::default(),
            wanted: Wanted::default(),
            state,
            number,
            asked: now,
        };
        let of = |state: ExecState| {
            let by_id =
                (0..MAX_EXECS as u64).map(|number| (format!("{:x}", u64::MAX - number), exec(number, state.clone())));
            Execs { last: MAX_EXECS as u64, by_id: by_id.collect() }
        };
        let mut asked = of(ExecState::Asked);
        assert!(asked.make_room(now));
        assert_eq!(asked.by_id.len(), MAX_EXECS - 1);
        assert!(asked.by_id.values().all(|exec| exec.number > 0), "the oldest went");
        assert!(asked.make_room(now + ASKED_FOR) && asked.by_id.is_empty());
        let mut starting = of(ExecState::Starting);
        assert!(!starting.make_room(now + ASKED_FOR));
        assert_eq!(starting.by_id.len(), MAX_EXECS);
    }
}
