//! Carries out what the core decided for one task: image, container, network. Answers with events, decides nothing.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deploy::lifecycle::{Action, Event};
use deploy::model::{NetworkMode, RegistryId, Task, TaskId};
use overlay_net::{Attachment, Desired, DnsSockets, EndpointConfig, Overlay};
use runtime::image::Reference;
use runtime::image::registry::{Credentials, Registries};
use runtime::{IdMappings, PrivateFile, Runtime, RuntimeError, Signal, Status};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::container::{self, IMAGE_LABEL, TASK_LABEL};
use super::counters::Counters;
use super::health::{self, Check, Health};
use super::payloads::{Payloads, TaskCredentials};
use super::{linger, network};
use crate::images::{ClusterPeers, FromRegistry, HeldImage, Images, Upstream};

/// Tasks that are made ready at once; more only take the cores from each other.
const PREPARING: usize = 8;
/// A network that a task needs is set up within this time.
const NETWORK: Duration = Duration::from_secs(10);
/// Name under which a shim keeps a task's DNS sockets.
pub(super) const DNS_FDS: &str = "dns";
/// A task does not start when it could not be remembered within this time that it does.
const REMEMBER: Duration = Duration::from_secs(10);
/// The network of a container that ended by itself stays for so long: then other hosts lead nobody there any more.
const WIRED: Duration = Duration::from_secs(2);
/// Pause before what failed on a container is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What an action follows from.
#[derive(Clone, Copy)]
pub(super) struct Basis {
    /// Revision of the assignments.
    pub(super) revision: u64,
    /// Number of the agent's memory.
    pub(super) memory: u64,
}

/// The last time that networks were set up.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetworkAttempt {
    /// Revision that they were set up to.
    pub(super) revision: u64,
    /// Nothing failed. (Otherwise all but the objects that failed are in force, and it is tried again.)
    pub(super) whole: bool,
}

/// Carries out actions. A clone is the same executor.
#[derive(Clone)]
pub(super) struct Executor {
    inner: Arc<Parts>,
    shared: Arc<Shared>,
}

/// What an executor works with.
pub(super) struct Parts {
    pub(super) runtime: Runtime,
    pub(super) images: Images<ClusterPeers>,
    pub(super) registries: Registries,
    pub(super) overlay: Overlay,
    /// This node's.
    pub(super) hostname: String,
    /// What the users of containers are on this host; absent: the same.
    pub(super) users: Option<IdMappings>,
    /// Where answers go.
    pub(super) events: mpsc::Sender<(TaskId, Event)>,
    /// What the networks are to be.
    pub(super) desired: watch::Receiver<Option<Desired>>,
    /// How far the networks are.
    pub(super) attempts: watch::Receiver<NetworkAttempt>,
    /// Number of the memory that is on disk.
    pub(super) written: watch::Receiver<u64>,
    /// Secrets and configs of this host's tasks, and credentials for their images.
    pub(super) payloads: watch::Receiver<Payloads>,
    /// What is counted.
    pub(super) counters: Arc<Counters>,
    /// Ends everything that is under way.
    pub(super) stop: CancellationToken,
}

struct Shared {
    running: TaskTracker,
    slots: Semaphore,
    /// Tasks that are being prepared, until their answer is settled. Whoever cancels one leaves the answer to it.
    preparing: Mutex<BTreeMap<TaskId, CancellationToken>>,
    /// The network namespaces of tasks that are being stopped, until their last bytes are through.
    stopping: Mutex<BTreeMap<TaskId, OwnedFd>>,
    /// Tasks that ended by themselves and whose networks are still up, with their addresses.
    wired: Mutex<BTreeMap<TaskId, Vec<Attachment>>>,
}

impl Executor {
    /// An executor that has nothing to do yet.
    pub(super) fn new(parts: Parts) -> Self {
        let shared = Shared {
            running: TaskTracker::new(),
            slots: Semaphore::new(PREPARING),
            preparing: Mutex::new(BTreeMap::new()),
            stopping: Mutex::new(BTreeMap::new()),
            wired: Mutex::new(BTreeMap::new()),
        };
        Self { inner: Arc::new(parts), shared: Arc::new(shared) }
    }

    /// What is under way. It holds none of the executor's handles.
    pub(super) fn tasks(&self) -> TaskTracker {
        self.shared.running.clone()
    }

    /// Begins an action.
    pub(super) fn begin(&self, task: Task, action: Action, basis: Basis) {
        let this = self.clone();
        match action {
            Action::Prepare => {
                let cancel = CancellationToken::new();
                self.preparing(|preparing| preparing.insert(task.id.clone(), cancel.clone()));
                self.spawn(async move { this.prepare_first(&task, basis.revision, &cancel).await });
            }
            Action::CancelPrepare => {
                let under_way = self.preparing(|preparing| match preparing.get(&task.id) {
                    Some(cancel) => {
                        cancel.cancel();
                        true
                    }
                    None => false,
                });
                if !under_way {
                    self.spawn(async move { this.take_back(&task.id).await });
                }
            }
            Action::Start { attempt } => self.spawn(async move { this.start(&task, attempt, basis).await }),
            Action::Stop { signal, grace } => self.spawn(async move { this.stop(&task, &signal, grace).await }),
            Action::Remove => self.spawn(async move {
                this.remove(&task.id).await;
                this.tell(&task.id, Event::Removed).await;
            }),
            // The core's.
            Action::Drain | Action::Report(_) | Action::WakeAt(_) => {}
        }
    }

    /// Looks after a container that an earlier daemon started: its network's sockets, its health (`healthy`: it was so
    /// for the cluster) and its end.
    pub(super) fn adopt(&self, task: Task, container: String, healthy: bool) {
        let this = self.clone();
        self.spawn(async move {
            let reattached = async {
                while let Err(error) = this.reattach(&task, &container).await {
                    tracing::warn!(
                        task.id = %task.id, error, "an adopted task's network could not be taken over; trying again"
                    );
                    tokio::time::sleep(RETRY).await;
                }
                std::future::pending::<()>().await;
            };
            let watched = async {
                let check = this.check_of(&task, &container).await;
                this.watch(&task.id, &container, check, healthy).await;
            };
            let end = tokio::select! {
                biased;
                end = this.end_of(&task.id, &container) => end,
                () = reattached => None,
                () = watched => None,
            };
            if let Some(event) = end {
                this.ended(&task, event).await;
            }
        });
    }

    /// The health check that a container was started with.
    async fn check_of(&self, task: &Task, container: &str) -> Option<Check> {
        let containers = self.inner.runtime.list().await;
        let labels = containers.into_iter().find(|state| state.id == container).map(|state| state.labels);
        let image = labels.and_then(|labels| labels.get(IMAGE_LABEL).cloned()).unwrap_or_default();
        let images = self.inner.registries.store().clone();
        let resolved = tokio::task::spawn_blocking(move || images.resolve(&image)).await;
        // An image that is gone has told its check to nobody; the service's own is still known.
        let image = resolved.ok().and_then(Result::ok).map(|image| image.config).unwrap_or_default();
        health::check(task.spec.container.healthcheck.as_ref(), image.healthcheck.as_ref(), &image.shell)
    }

    /// Tells that a container runs, once it is healthy, and when it is not. Never ends.
    async fn watch(&self, task: &TaskId, container: &str, check: Option<Check>, healthy: bool) {
        let Some(check) = check else {
            let pid = self.pid_of(container).await;
            self.tell(task, Event::Started { container: container.to_owned(), pid }).await;
            return std::future::pending().await;
        };
        let (tell, mut told) = mpsc::channel(1);
        let asking = health::watch(&self.inner.runtime, container, check, healthy, tell);
        let telling = async {
            let mut known = true;
            while let Some(health) = told.recv().await {
                // What is told first was so before.
                if !std::mem::take(&mut known) {
                    let status = format!("health_status: {}", health.word());
                    self.inner.runtime.tell(container, &status, Vec::new());
                }
                match health {
                    Health::Starting => {}
                    Health::Healthy => {
                        let pid = self.pid_of(container).await;
                        self.tell(task, Event::Started { container: container.to_owned(), pid }).await;
                    }
                    Health::Unhealthy => {
                        tracing::info!(task.id = %task, container.id = container, "unhealthy");
                        self.tell(task, Event::Unhealthy).await;
                    }
                }
            }
        };
        tokio::join!(asking, telling);
    }

    async fn pid_of(&self, container: &str) -> u32 {
        let containers = self.inner.runtime.list().await;
        containers.iter().find(|state| state.id == container).and_then(|state| state.pid).unwrap_or_default()
    }

    /// Does it until the agent stops. Nothing of it may go on then: the next agent of this process, or the next daemon,
    /// takes over what is there.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.shared.running.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    fn preparing<T>(&self, with: impl FnOnce(&mut BTreeMap<TaskId, CancellationToken>) -> T) -> T {
        with(&mut self.shared.preparing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stopping<T>(&self, with: impl FnOnce(&mut BTreeMap<TaskId, OwnedFd>) -> T) -> T {
        with(&mut self.shared.stopping.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn tell(&self, task: &TaskId, event: Event) {
        // Nobody listens once the agent stops; what is missed is seen again when the container is adopted.
        let _ = self.inner.events.send((task.clone(), event)).await;
    }

    async fn prepare_first(&self, task: &Task, revision: u64, cancel: &CancellationToken) {
        let began = Instant::now();
        let prepared = self.prepare(task, 0, revision, cancel).await;
        // From here on a cancellation is answered by itself.
        let cancelled = self.preparing(|preparing| {
            preparing.remove(&task.id);
            cancel.is_cancelled()
        });
        match prepared {
            _ if cancelled => self.take_back(&task.id).await,
            Ok(()) => {
                self.inner.counters.prepare.observe(began.elapsed());
                self.tell(&task.id, Event::Prepared).await;
            }
            Err(error) => {
                self.inner.counters.start_failures.add_one();
                self.tell(&task.id, Event::PrepareFailed { error }).await;
            }
        }
    }

    /// Removes what was prepared.
    async fn take_back(&self, task: &TaskId) {
        self.remove(task).await;
        self.tell(task, Event::PrepareFailed { error: "cancelled".into() }).await;
    }

    async fn prepare(
        &self,
        task: &Task,
        attempt: u32,
        revision: u64,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        // Before the permit: it may take until a manager is there.
        let private_files = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err("cancelled".into()),
            files = self.private_files(task) => files?,
        };
        // Before its turn: others have what they need, and need not wait for a network. Held until the container is made.
        let held = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err("cancelled".into()),
            held = self.image(task) => held?,
        };
        let permit = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err("cancelled".into()),
            permit = self.shared.slots.acquire() => permit,
        };
        let Ok(_permit) = permit else { return Err("the agent stops".into()) };
        let mut config = container::config(task, &self.inner.hostname, &held.image, attempt, self.inner.users.as_ref())
            .map_err(|e| e.to_string())?;
        config.private_files = private_files;
        make_mountpoints(task).await?;
        let (id, hostname) = (config.id.clone(), config.hostname.clone());
        if self.containers(&task.id).await.iter().any(|container| container.id == id) {
            // A daemon was killed between making it and starting it.
            self.clear(&task.id, &id).await;
        }
        let prepared = async {
            let created = self.inner.runtime.create(config).await.map_err(|e| crate::chain(&e))?;
            match task.spec.network_mode() {
                NetworkMode::Cluster => {}
                NetworkMode::Host => return Ok(()),
                NetworkMode::None => return network::loopback_alone(created.netns).await,
            }
            let endpoint = network::endpoint_config(task, &hostname);
            let DnsSockets { udp, tcp } = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err("cancelled".into()),
                attached = self.attach(created.netns, endpoint, revision) => attached?,
            };
            self.inner.runtime.park_fds(&id, DNS_FDS, vec![udp, tcp]).await.map_err(|e| crate::chain(&e))
        };
        let result = prepared.await;
        if result.is_err() {
            self.clear(&task.id, &id).await;
        }
        result
    }

    /// The task's image: from this host, from others, or from its registry.
    async fn image(&self, task: &Task) -> Result<HeldImage, String> {
        let name = &task.spec.container.image;
        // The beginning of an id is no name that a registry would know.
        let own = task.spec.container.registry_auth.as_ref().map(|auth| Credentials::from_header(&auth.header));
        let credentials = TaskCredentials {
            own: own.transpose().map_err(|e| e.to_string())?,
            registry: RegistryId::of_image(name),
            payloads: self.inner.payloads.clone(),
        };
        let upstream: Option<Arc<dyn Upstream>> = Reference::parse(name).ok().map(|reference| {
            let registries = self.inner.registries.clone();
            Arc::new(FromRegistry { registries, reference, credentials: Arc::new(credentials) }) as _
        });
        self.inner.images.provide(name, upstream).await.map_err(|e| crate::chain(&e))
    }

    /// The task's secrets and configs. They come with the task, and are kept while this host is up: who restarts without
    /// them (and without a manager) waits.
    async fn private_files(&self, task: &Task) -> Result<Vec<PrivateFile>, String> {
        let files = |payloads: &Payloads| {
            let (secrets, configs) = (&payloads.secrets, &payloads.configs);
            let spec = &task.spec.container;
            container::private_files(spec, |id| secrets.get(id).cloned(), |id| configs.get(id).cloned())
        };
        let mut payloads = self.inner.payloads.clone();
        let mut told = false;
        loop {
            let found = files(&payloads.borrow_and_update());
            if let Some(found) = found {
                return Ok(found);
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(task.id = %task.id, "a task waits for its secrets and configs");
                let reason = "waiting for a manager, which has the secrets and configs".to_owned();
                self.tell(&task.id, Event::Delayed { reason }).await;
            }
            payloads.changed().await.map_err(|_| "the agent stops".to_owned())?;
        }
    }

    /// Connects a task, once its networks are there. What else of the networks could not be set up is no concern of it:
    /// only the networks of this task count.
    async fn attach(&self, netns: OwnedFd, endpoint: EndpointConfig, revision: u64) -> Result<DnsSockets, String> {
        self.free(&endpoint.attachments).await;
        let deadline = Instant::now() + NETWORK;
        let mut attempts = self.inner.attempts.clone();
        if !endpoint.attachments.is_empty() {
            let tried = timeout_at(deadline, attempts.wait_for(|attempt| attempt.revision >= revision)).await;
            if tried.is_err() {
                tracing::warn!(task.id = endpoint.task, revision, "the networks are not that far yet");
            }
        }
        loop {
            let whole = attempts.borrow_and_update().whole;
            let netns = netns.try_clone().map_err(|e| e.to_string())?;
            let error = match self.inner.overlay.attach(netns, endpoint.clone(), None).await {
                Ok(attached) => return Ok(attached.sockets),
                Err(error) => error,
            };
            // What failed may have been a network of this task, which is tried again.
            let again = !whole && timeout_at(deadline, attempts.changed()).await.is_ok_and(|changed| changed.is_ok());
            if !again {
                return Err(crate::chain(&error));
            }
        }
    }

    async fn start(&self, task: &Task, attempt: u32, basis: Basis) {
        let id = container::container_id(task, attempt);
        let began = Instant::now();
        let started = async {
            // A host that loses power may not start the task a second time.
            self.remembered(basis.memory).await?;
            if attempt > 0 {
                self.clear(&task.id, &container::container_id(task, attempt - 1)).await;
                self.prepare(task, attempt, basis.revision, &CancellationToken::new()).await?;
            }
            self.inner.runtime.start(&id).await.map_err(|e| crate::chain(&e))
        };
        match started.await {
            Ok(()) => {
                let counters = &self.inner.counters;
                counters.starts.add_one();
                if attempt == 0 {
                    counters.start.observe(began.elapsed());
                } else {
                    counters.restarts.add_one();
                }
                let check = self.check_of(task, &id).await;
                if check.is_some() {
                    let pid = self.pid_of(&id).await;
                    self.tell(&task.id, Event::Launched { container: id.clone(), pid }).await;
                }
                let end = tokio::select! {
                    biased;
                    () = self.watch(&task.id, &id, check, false) => None,
                    end = self.end_of(&task.id, &id) => end,
                };
                if let Some(event) = end {
                    self.ended(task, event).await;
                }
            }
            Err(error) => {
                self.inner.counters.start_failures.add_one();
                self.clear(&task.id, &id).await;
                self.tell(&task.id, Event::StartFailed { error }).await;
            }
        }
    }

    /// Waits until that memory, or a later one, is on disk.
    async fn remembered(&self, memory: u64) -> Result<(), String> {
        let mut written = self.inner.written.clone();
        match tokio::time::timeout(REMEMBER, written.wait_for(|number| *number >= memory)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err("the agent stops".into()),
            Err(_) => Err("the host could not write to disk within 10 s that the task starts".into()),
        }
    }

    /// Waits until a container has ended. `None` when the runtime ends first: the container goes on then.
    async fn end_of(&self, task: &TaskId, container: &str) -> Option<Event> {
        match self.inner.runtime.wait(container).await {
            Ok(exit) => Some(exited(&exit)),
            Err(RuntimeError::Closing) => None,
            Err(error) => {
                tracing::warn!(task.id = %task, error = crate::chain(&error), "a container's end was not seen");
                Some(UNSEEN)
            }
        }
    }

    /// A task's container has ended.
    async fn ended(&self, task: &Task, event: Event) {
        let id = &task.id;
        match self.stopping(|stopping| stopping.remove(id)) {
            Some(netns) => {
                // What a task said to its clients last is part of what it was stopped for.
                match tokio::task::spawn_blocking(move || linger::last_bytes(netns)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(task.id = %id, %error, "its last bytes were not waited for"),
                    Err(error) => tracing::warn!(task.id = %id, %error, "its last bytes were not waited for"),
                }
                self.taken_down(id, event).await;
            }
            None if !task.can_be_reached() => self.taken_down(id, event).await,
            None => self.ended_by_itself(task, event).await,
        }
    }

    /// Nobody knew that it would end, and clients are led there until all hosts know. Its namespace, which nobody is in
    /// any more, tells them at once that nobody listens; without it they would ask into the void, for as long as they
    /// care to. It goes earlier if its address is given again, which this host is told of before the new holder starts.
    async fn ended_by_itself(&self, task: &Task, event: Event) {
        let attachments = network::endpoint_config(task, "").attachments;
        self.wired(|wired| wired.insert(task.id.clone(), attachments.clone()));
        self.tell(&task.id, event).await;
        let mut desired = self.inner.desired.clone();
        let given = |desired: &Option<Desired>| network::is_given(desired.as_ref(), task.id.as_str(), &attachments);
        // The time is over, then, or the agent stops.
        let _ = tokio::time::timeout(WIRED, desired.wait_for(given)).await;
        // Perhaps somebody else has taken it down meanwhile, and there is a new attempt.
        if self.wired(|wired| wired.remove(&task.id)).is_some() {
            self.detach(&task.id).await;
        }
    }

    fn wired<T>(&self, with: impl FnOnce(&mut BTreeMap<TaskId, Vec<Attachment>>) -> T) -> T {
        with(&mut self.shared.wired.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes down what is left of earlier holders of these addresses. They are given again once the cluster knows that a
    /// task has ended.
    async fn free(&self, attachments: &[Attachment]) {
        let same = |held: &Vec<Attachment>| {
            held.iter().any(|h| attachments.iter().any(|a| (&a.network, a.address) == (&h.network, h.address)))
        };
        let holders: Vec<TaskId> = self.wired(|wired| {
            let holders: Vec<TaskId> = wired.iter().filter(|(_, held)| same(held)).map(|(id, _)| id.clone()).collect();
            holders.iter().for_each(|id| drop(wired.remove(id)));
            holders
        });
        for holder in holders {
            self.detach(&holder).await;
        }
    }

    async fn detach(&self, task: &TaskId) {
        if let Err(error) = self.inner.overlay.detach(task.as_str()).await {
            tracing::warn!(task.id = %task, error = crate::chain(&error), "a task's network could not be taken down");
        }
    }

    /// A container has ended, and nobody is led to it.
    async fn taken_down(&self, task: &TaskId, event: Event) {
        // The namespace is gone with its last process; nothing may lead there when the address is given again.
        self.detach(task).await;
        self.tell(task, event).await;
    }

    async fn stop(&self, task: &Task, signal: &str, grace: Duration) {
        let signal = signal.parse::<Signal>().ok();
        let mut end = Some(UNSEEN);
        for container in self.containers(&task.id).await {
            match container.status {
                // The end is reported by whoever watches the container.
                Status::Running => {
                    end = None;
                    if task.can_be_reached()
                        && let Ok(netns) = self.inner.runtime.netns(&container.id).await
                    {
                        self.stopping(|stopping| stopping.insert(task.id.clone(), netns));
                    }
                    while let Err(error) = self.inner.runtime.stop(&container.id, signal, grace).await {
                        if matches!(error, RuntimeError::NotFound(_)) {
                            break;
                        }
                        tracing::warn!(
                            task.id = %task.id, error = crate::chain(&error),
                            "a container could not be stopped; trying again"
                        );
                        tokio::time::sleep(RETRY).await;
                    }
                }
                Status::Created => self.clear(&task.id, &container.id).await,
                Status::Exited(exit) => end = end.map(|_| exited(&exit)),
            }
        }
        if let Some(event) = end {
            // Nothing of it runs, and so nobody else will say that it has ended.
            self.taken_down(&task.id, event).await;
        }
    }

    async fn containers(&self, task: &TaskId) -> Vec<runtime::ContainerState> {
        let mut containers = self.inner.runtime.list().await;
        containers.retain(|c| c.labels.get(TASK_LABEL).map(String::as_str) == Some(task.as_str()));
        containers
    }

    /// Removes everything that a task left, until nothing is left.
    async fn remove(&self, task: &TaskId) {
        // It may have ended before it was stopped.
        drop(self.stopping(|stopping| stopping.remove(task)));
        self.wired(|wired| drop(wired.remove(task)));
        loop {
            let mut clean = self.inner.overlay.detach(task.as_str()).await.is_ok();
            for container in self.containers(task).await {
                if let Err(error) = self.inner.runtime.delete(&container.id).await {
                    tracing::warn!(task.id = %task, error = crate::chain(&error), "a container could not be removed; trying again");
                    clean = false;
                }
            }
            if clean {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Takes back one attempt.
    async fn clear(&self, task: &TaskId, container: &str) {
        self.wired(|wired| drop(wired.remove(task)));
        self.detach(task).await;
        if let Err(error) = self.inner.runtime.delete(container).await {
            tracing::debug!(task.id = %task, error = crate::chain(&error), "nothing to remove");
        }
    }

    async fn reattach(&self, task: &Task, container: &str) -> Result<(), String> {
        if task.spec.network_mode() != NetworkMode::Cluster {
            return Ok(());
        }
        let netns = self.inner.runtime.netns(container).await.map_err(|e| crate::chain(&e))?;
        let fds = self.inner.runtime.fetch_fds(container, DNS_FDS).await.map_err(|e| crate::chain(&e))?;
        let sockets = match <[_; 2]>::try_from(fds) {
            Ok([udp, tcp]) => Some(DnsSockets { udp, tcp }),
            // Never parked: the daemon was killed in between. New ones are opened.
            Err(_) => None,
        };
        let hostname = if task.spec.container.hostname.is_empty() {
            container[..12.min(container.len())].to_owned()
        } else {
            task.spec.container.hostname.clone()
        };
        let endpoint = network::endpoint_config(task, &hostname);
        self.inner.overlay.attach(netns, endpoint, sockets).await.map(drop).map_err(|e| crate::chain(&e))
    }
}

/// Makes the host's directories that a task's binds ask to be made. With Docker's mode, and only what is missing.
pub(super) async fn make_mountpoints(task: &Task) -> Result<(), String> {
    let binds = task.spec.container.mounts.iter().filter(|mount| mount.create_mountpoint);
    let paths: Vec<String> = binds.map(|mount| mount.source.clone()).collect();
    let made = tokio::task::spawn_blocking(move || {
        paths.iter().try_for_each(|path| {
            // A file may be there as well.
            let missing = !std::path::Path::new(path).exists();
            let made = if missing { std::fs::create_dir_all(path) } else { Ok(()) };
            made.map_err(|error| format!("error while creating mount source path '{path}': {error}"))
        })
    });
    made.await.map_err(|e| e.to_string())?
}

/// The end of a container that nobody saw.
const UNSEEN: Event = Event::Exited { exit_code: None, oom_killed: false };

fn exited(exit: &runtime::ExitStatus) -> Event {
    Event::Exited { exit_code: (!exit.shim_lost).then_some(exit.code), oom_killed: exit.oom_killed }
}
