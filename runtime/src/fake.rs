//! A runtime without containers, for the tests of those who use one: every call is recorded, every answer scripted.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::{
    ContainerConfig, ContainerState, Created, ExitStatus, LogOptions, LogRecord, LogStream, PlanError, Runtime,
    RuntimeError, Signal, Status, plan,
};

/// An answer on its way.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, RuntimeError>> + Send + 'a>>;

/// What can be asked of containers, real ([`Runtime`]) or played ([`FakeRuntime`]). See [`Runtime`] for each.
pub trait ContainerRuntime: Send + Sync + 'static {
    /// See [`Runtime::create`].
    fn create(&self, config: ContainerConfig) -> Pending<'_, Created>;
    /// See [`Runtime::start`].
    fn start<'a>(&'a self, id: &'a str) -> Pending<'a, ()>;
    /// See [`Runtime::signal`].
    fn signal<'a>(&'a self, id: &'a str, signal: Signal) -> Pending<'a, ()>;
    /// See [`Runtime::stop`].
    fn stop<'a>(&'a self, id: &'a str, signal: Option<Signal>, grace: Duration) -> Pending<'a, ExitStatus>;
    /// See [`Runtime::wait`].
    fn wait<'a>(&'a self, id: &'a str) -> Pending<'a, ExitStatus>;
    /// See [`Runtime::delete`].
    fn delete<'a>(&'a self, id: &'a str) -> Pending<'a, ()>;
    /// See [`Runtime::list`].
    fn list(&self) -> Pin<Box<dyn Future<Output = Vec<ContainerState>> + Send + '_>>;
    /// See [`Runtime::netns`].
    fn netns<'a>(&'a self, id: &'a str) -> Pending<'a, OwnedFd>;
    /// See [`Runtime::park_fds`].
    fn park_fds<'a>(&'a self, id: &'a str, name: &'a str, fds: Vec<OwnedFd>) -> Pending<'a, ()>;
    /// See [`Runtime::fetch_fds`].
    fn fetch_fds<'a>(&'a self, id: &'a str, name: &'a str) -> Pending<'a, Vec<OwnedFd>>;
    /// See [`Runtime::logs`].
    fn logs<'a>(&'a self, id: &'a str, options: LogOptions) -> Pending<'a, mpsc::Receiver<LogRecord>>;
    /// See [`Runtime::destroy`].
    fn destroy(&self) -> Pending<'_, ()>;
}

impl ContainerRuntime for Runtime {
    fn create(&self, config: ContainerConfig) -> Pending<'_, Created> {
        Box::pin(Runtime::create(self, config))
    }

    fn start<'a>(&'a self, id: &'a str) -> Pending<'a, ()> {
        Box::pin(Runtime::start(self, id))
    }

    fn signal<'a>(&'a self, id: &'a str, signal: Signal) -> Pending<'a, ()> {
        Box::pin(Runtime::signal(self, id, signal))
    }

    fn stop<'a>(&'a self, id: &'a str, signal: Option<Signal>, grace: Duration) -> Pending<'a, ExitStatus> {
        Box::pin(Runtime::stop(self, id, signal, grace))
    }

    fn wait<'a>(&'a self, id: &'a str) -> Pending<'a, ExitStatus> {
        Box::pin(Runtime::wait(self, id))
    }

    fn delete<'a>(&'a self, id: &'a str) -> Pending<'a, ()> {
        Box::pin(Runtime::delete(self, id))
    }

    fn list(&self) -> Pin<Box<dyn Future<Output = Vec<ContainerState>> + Send + '_>> {
        Box::pin(Runtime::list(self))
    }

    fn netns<'a>(&'a self, id: &'a str) -> Pending<'a, OwnedFd> {
        Box::pin(Runtime::netns(self, id))
    }

    fn park_fds<'a>(&'a self, id: &'a str, name: &'a str, fds: Vec<OwnedFd>) -> Pending<'a, ()> {
        Box::pin(Runtime::park_fds(self, id, name, fds))
    }

    fn fetch_fds<'a>(&'a self, id: &'a str, name: &'a str) -> Pending<'a, Vec<OwnedFd>> {
        Box::pin(Runtime::fetch_fds(self, id, name))
    }

    fn logs<'a>(&'a self, id: &'a str, options: LogOptions) -> Pending<'a, mpsc::Receiver<LogRecord>> {
        Box::pin(Runtime::logs(self, id, options))
    }

    fn destroy(&self) -> Pending<'_, ()> {
        Box::pin(Runtime::destroy(self))
    }
}

/// What a played container does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FakeOutcome {
    /// Runs until it is stopped; ends at the stop signal with 128 + signal.
    #[default]
    Runs,
    /// Runs, and ends only when it is killed.
    IgnoresStop,
    /// Cannot be created.
    CreateFails(String),
    /// Is created and cannot be started: (error number, exit code).
    StartFails(i32, i32),
    /// Ends by itself as soon as it was started.
    Exits(i32),
    /// Is killed for want of memory as soon as it was started.
    OutOfMemory,
}

struct Played {
    labels: BTreeMap<String, String>,
    command: String,
    outcome: FakeOutcome,
    created_at: SystemTime,
    started_at: Option<SystemTime>,
    exit: watch::Sender<Option<ExitStatus>>,
    parked: BTreeMap<String, Vec<OwnedFd>>,
    log: Vec<LogRecord>,
    pid: u32,
}

type Script = Box<dyn Fn(&ContainerConfig) -> FakeOutcome + Send>;

struct Stage {
    script: Script,
    containers: BTreeMap<String, Played>,
    calls: Vec<String>,
    next_pid: u32,
}

/// The player. Cheap to clone; all clones are one. Its namespaces are the test's own.
#[derive(Clone)]
pub struct FakeRuntime {
    stage: Arc<Mutex<Stage>>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new(|_| FakeOutcome::Runs)
    }
}

impl FakeRuntime {
    /// A runtime in which `script` says what becomes of each container.
    pub fn new(script: impl Fn(&ContainerConfig) -> FakeOutcome + Send + 'static) -> FakeRuntime {
        let stage = Stage { script: Box::new(script), containers: BTreeMap::new(), calls: Vec::new(), next_pid: 1000 };
        FakeRuntime { stage: Arc::new(Mutex::new(stage)) }
    }

    /// Replaces the script, for the containers to come.
    pub fn set_script(&self, script: impl Fn(&ContainerConfig) -> FakeOutcome + Send + 'static) {
        self.stage().script = Box::new(script);
    }

    /// Every call so far: `create web`, `start web`, `signal web SIGTERM`, ...
    pub fn calls(&self) -> Vec<String> {
        self.stage().calls.clone()
    }

    /// Ends a running container.
    pub fn exit(&self, id: &str, code: i32) {
        if let Some(played) = self.stage().containers.get(id) {
            played.end(code, None, false);
        }
    }

    /// Puts a record into a container's log.
    pub fn print(&self, id: &str, stream: LogStream, text: &str) {
        if let Some(played) = self.stage().containers.get_mut(id) {
            let data = Bytes::copy_from_slice(text.as_bytes());
            played.log.push(LogRecord { at: SystemTime::now(), stream, data });
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(
        &self,
        verb: &str,
        id: &str,
        act: impl FnOnce(&mut Played) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let mut stage = self.stage();
        stage.calls.push(format!("{verb} {id}"));
        match stage.containers.get_mut(id) {
            Some(played) => act(played),
            None => Err(RuntimeError::NotFound(id.to_owned())),
        }
    }

    async fn end_of(&self, id: &str) -> Result<ExitStatus, RuntimeError> {
        let mut exit = self.call("wait", id, |played| Ok(played.exit.subscribe()))?;
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().ok_or(RuntimeError::Closing),
            Err(_) => Err(RuntimeError::Closing),
        }
    }
}

impl Played {
    fn end(&self, code: i32, signal: Option<i32>, oom_killed: bool) {
        let status = ExitStatus { code, signal, oom_killed, finished_at: SystemTime::now(), shim_lost: false };
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(status);
            first
        });
    }

    fn status(&self) -> Status {
        match (self.exit.borrow().clone(), self.started_at) {
            (Some(exit), _) => Status::Exited(exit),
            (None, Some(_)) => Status::Running,
            (None, None) => Status::Created,
        }
    }

    fn wrong_state(&self, id: &str) -> RuntimeError {
        let status = match self.status() {
            Status::Created => "created",
            Status::Running => "running",
            Status::Exited(_) => "exited",
        };
        RuntimeError::WrongState { id: id.to_owned(), status }
    }

    fn signal(&self, signal: Signal) {
        let deadly = [Signal::KILL, Signal::TERM, Signal::INT].contains(&signal);
        if signal == Signal::KILL || (deadly && self.outcome != FakeOutcome::IgnoresStop) {
            self.end(128 + signal.number(), Some(signal.number()), false);
        }
    }

    fn start(&mut self, id: &str) -> Result<(), RuntimeError> {
        if self.status() != Status::Created {
            return Err(self.wrong_state(id));
        }
        if let FakeOutcome::StartFails(errno, exit_code) = self.outcome {
            self.end(exit_code, None, false);
            let (command, reason) = (self.command.clone(), crate::error::errno_text(errno));
            return Err(RuntimeError::Start { id: id.to_owned(), command, reason, errno, exit_code });
        }
        self.started_at = Some(SystemTime::now());
        match self.outcome {
            FakeOutcome::Exits(code) => self.end(code, None, false),
            FakeOutcome::OutOfMemory => self.end(137, Some(9), true),
            _ => {}
        }
        Ok(())
    }
}

fn own_netns(id: &str) -> Result<OwnedFd, RuntimeError> {
    let opened = File::open("/proc/self/ns/net").map(OwnedFd::from);
    opened.map_err(|source| RuntimeError::Namespace { id: id.to_owned(), source })
}

impl ContainerRuntime for FakeRuntime {
    fn create(&self, config: ContainerConfig) -> Pending<'_, Created> {
        Box::pin(async move {
            let mut stage = self.stage();
            stage.calls.push(format!("create {}", config.id));
            plan::validate(&config)?;
            if stage.containers.contains_key(&config.id) {
                return Err(RuntimeError::Exists(config.id));
            }
            let outcome = (stage.script)(&config);
            if let FakeOutcome::CreateFails(reason) = outcome {
                return Err(PlanError::Invalid { field: "config", reason }.into());
            }
            stage.next_pid += 1;
            let pid = stage.next_pid;
            let played = Played {
                labels: config.labels,
                command: config.args.into_iter().next().unwrap_or_default(),
                outcome,
                created_at: SystemTime::now(),
                started_at: None,
                exit: watch::Sender::new(None),
                parked: BTreeMap::new(),
                log: Vec::new(),
                pid,
            };
            let netns = own_netns(&config.id)?;
            stage.containers.insert(config.id, played);
            Ok(Created { pid, netns })
        })
    }

    fn start<'a>(&'a self, id: &'a str) -> Pending<'a, ()> {
        Box::pin(async move { self.call("start", id, |played| played.start(id)) })
    }

    fn signal<'a>(&'a self, id: &'a str, signal: Signal) -> Pending<'a, ()> {
        Box::pin(async move {
            self.call("signal", &format!("{id} {signal}"), |_| Ok(())).ok();
            let mut stage = self.stage();
            match stage.containers.get_mut(id) {
                Some(played) if played.status() == Status::Running => {
                    played.signal(signal);
                    Ok(())
                }
                Some(played) => Err(played.wrong_state(id)),
                None => Err(RuntimeError::NotFound(id.to_owned())),
            }
        })
    }

    fn stop<'a>(&'a self, id: &'a str, signal: Option<Signal>, grace: Duration) -> Pending<'a, ExitStatus> {
        Box::pin(async move {
            self.call("stop", id, |played| {
                played.signal(signal.unwrap_or(Signal::TERM));
                Ok(())
            })?;
            match tokio::time::timeout(grace, self.end_of(id)).await {
                Ok(ended) => ended,
                Err(_) => {
                    self.call("kill", id, |played| {
                        played.end(137, Some(9), false);
                        Ok(())
                    })?;
                    self.end_of(id).await
                }
            }
        })
    }

    fn wait<'a>(&'a self, id: &'a str) -> Pending<'a, ExitStatus> {
        Box::pin(self.end_of(id))
    }

    fn delete<'a>(&'a self, id: &'a str) -> Pending<'a, ()> {
        Box::pin(async move {
            let mut stage = self.stage();
            stage.calls.push(format!("delete {id}"));
            if let Some(played) = stage.containers.remove(id) {
                played.end(137, Some(9), false);
            }
            Ok(())
        })
    }

    fn list(&self) -> Pin<Box<dyn Future<Output = Vec<ContainerState>> + Send + '_>> {
        Box::pin(async move {
            let stage = self.stage();
            let states = stage.containers.iter().map(|(id, played)| ContainerState {
                id: id.clone(),
                labels: played.labels.clone(),
                pid: played.exit.borrow().is_none().then_some(played.pid),
                status: played.status(),
                paused: false,
                created_at: played.created_at,
                started_at: played.started_at,
            });
            states.collect()
        })
    }

    fn netns<'a>(&'a self, id: &'a str) -> Pending<'a, OwnedFd> {
        Box::pin(async move { self.call("netns", id, |_| own_netns(id)) })
    }

    fn park_fds<'a>(&'a self, id: &'a str, name: &'a str, fds: Vec<OwnedFd>) -> Pending<'a, ()> {
        Box::pin(async move {
            self.call("park_fds", id, |played| {
                played.parked.insert(name.to_owned(), fds);
                Ok(())
            })
        })
    }

    fn fetch_fds<'a>(&'a self, id: &'a str, name: &'a str) -> Pending<'a, Vec<OwnedFd>> {
        Box::pin(async move {
            self.call("fetch_fds", id, |played| {
                let parked = played.parked.get(name).map(Vec::as_slice).unwrap_or_default();
                let copies: Result<Vec<_>, _> = parked.iter().map(OwnedFd::try_clone).collect();
                copies.map_err(|source| RuntimeError::Shim { id: id.to_owned(), operation: "for descriptors", source })
            })
        })
    }

    fn logs<'a>(&'a self, id: &'a str, options: LogOptions) -> Pending<'a, mpsc::Receiver<LogRecord>> {
        Box::pin(async move {
            let records = self.call("logs", id, |played| {
                let wanted: Vec<LogRecord> =
                    played.log.iter().filter(|record| options.wants(record)).cloned().collect();
                let skip = options.tail.map_or(0, |tail| wanted.len().saturating_sub(tail));
                Ok(wanted.into_iter().skip(skip).collect::<Vec<_>>())
            })?;
            let (sender, receiver) = mpsc::channel(records.len().max(1));
            for record in records {
                let _ = sender.try_send(record);
            }
            Ok(receiver)
        })
    }

    fn destroy(&self) -> Pending<'_, ()> {
        Box::pin(async move {
            let mut stage = self.stage();
            stage.calls.push("destroy".to_owned());
            for played in std::mem::take(&mut stage.containers).into_values() {
                played.end(137, Some(9), false);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(id: &str) -> ContainerConfig {
        ContainerConfig { id: id.into(), layers: vec!["/l".into()], args: vec!["x".into()], ..Default::default() }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn plays_its_script() {
        let fake = FakeRuntime::new(|config| match config.id.as_str() {
            "broken" => FakeOutcome::StartFails(libc::ENOENT, 127),
            "quick" => FakeOutcome::Exits(3),
            "stubborn" => FakeOutcome::IgnoresStop,
            _ => FakeOutcome::Runs,
        });
        for id in ["broken", "quick", "stubborn"] {
            fake.create(config(id)).await.unwrap();
        }
        assert!(matches!(fake.start("broken").await, Err(RuntimeError::Start { exit_code: 127, .. })));
        fake.start("quick").await.unwrap();
        assert_eq!(fake.wait("quick").await.unwrap().code, 3);
        fake.start("stubborn").await.unwrap();
        assert_eq!(fake.stop("stubborn", None, Duration::from_millis(1)).await.unwrap().code, 137);
        fake.delete("quick").await.unwrap();
        assert_eq!(fake.list().await.len(), 2);
        assert_eq!(fake.calls()[0], "create broken");
    }
}
