//! Carries out what the core decided for one task: image, container, network. Answers with events, decides nothing.

use std::sync::Arc;
use std::time::Duration;

use deploy::lifecycle::{Action, Event};
use deploy::model::{Task, TaskId};
use overlay_net::{DnsSockets, Overlay};
use runtime::image::ImageStore;
use runtime::{Runtime, Signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::container::{self, TASK_LABEL};
use super::network;

/// Tasks that are made ready at once; more only take the cores from each other.
const PREPARING: usize = 8;
/// A network that a task needs is set up within this time.
const NETWORK: Duration = Duration::from_secs(10);
/// Name under which a shim keeps a task's DNS sockets.
const DNS_FDS: &str = "dns";
/// Pause before a container that could not be removed is tried again.
const REMOVE_RETRY: Duration = Duration::from_secs(1);

/// Carries out actions. A clone is the same executor.
#[derive(Clone)]
pub(super) struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Runtime,
    images: ImageStore,
    overlay: Overlay,
    hostname: String,
    preparing: Semaphore,
    events: mpsc::Sender<(TaskId, Event)>,
    running: TaskTracker,
}

impl Executor {
    /// Answers go to `events`.
    pub(super) fn new(
        runtime: Runtime,
        images: ImageStore,
        overlay: Overlay,
        hostname: String,
        events: mpsc::Sender<(TaskId, Event)>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                runtime,
                images,
                overlay,
                hostname,
                preparing: Semaphore::new(PREPARING),
                events,
                running: TaskTracker::new(),
            }),
        }
    }

    /// Begins an action. `revision` is that of the assignments which it follows from.
    pub(super) fn begin(&self, task: Task, action: Action, revision: u64) {
        let this = self.clone();
        self.inner.running.spawn(async move {
            match action {
                Action::Prepare => {
                    let event = match this.prepare(&task, 0, revision).await {
                        Ok(()) => Event::Prepared,
                        Err(error) => Event::PrepareFailed { error },
                    };
                    this.tell(&task.id, event).await;
                }
                Action::Start { attempt } => this.start(&task, attempt, revision).await,
                Action::Stop { signal, grace } => this.stop(&task, &signal, grace).await,
                Action::Remove => {
                    this.remove(&task.id).await;
                    this.tell(&task.id, Event::Removed).await;
                }
                // What is being prepared ends soon by itself. The others are the core's.
                Action::CancelPrepare | Action::Report(_) | Action::WakeAt(_) => {}
            }
        });
    }

    /// Looks after a container that an earlier daemon started: its network's sockets, and its end.
    pub(super) fn adopt(&self, task: Task, container: String) {
        let this = self.clone();
        self.inner.running.spawn(async move {
            if let Err(error) = this.reattach(&task, &container).await {
                tracing::warn!(task.id = %task.id, error, "an adopted task's network could not be taken over");
            }
            this.watch(&task.id, &container).await;
        });
    }

    async fn tell(&self, task: &TaskId, event: Event) {
        // Nobody listens once the agent stops; what is missed is seen again when the container is adopted.
        let _ = self.inner.events.send((task.clone(), event)).await;
    }

    async fn prepare(&self, task: &Task, attempt: u32, revision: u64) -> Result<(), String> {
        let Ok(_permit) = self.inner.preparing.acquire().await else { return Err("the agent stops".into()) };
        let image = {
            let (images, name) = (self.inner.images.clone(), task.spec.container.image.clone());
            let resolved = tokio::task::spawn_blocking(move || images.resolve(&name)).await;
            resolved.map_err(|e| e.to_string())?.map_err(|e| crate::chain(&e))?
        };
        let config = container::config(task, &self.inner.hostname, &image, attempt).map_err(|e| e.to_string())?;
        let (id, hostname) = (config.id.clone(), config.hostname.clone());
        let prepared = async {
            let created = self.inner.runtime.create(config).await.map_err(|e| crate::chain(&e))?;
            let mut applied = self.inner.overlay.applied_revision();
            tokio::time::timeout(NETWORK, applied.wait_for(|known| *known >= revision))
                .await
                .map_err(|_| "the networks of the task were not set up within 10 s".to_owned())?
                .map_err(|_| "the overlay network has stopped".to_owned())?;
            let endpoint = network::endpoint_config(task, &hostname);
            let attached =
                self.inner.overlay.attach(created.netns, endpoint, None).await.map_err(|e| crate::chain(&e))?;
            let DnsSockets { udp, tcp } = attached.sockets;
            self.inner.runtime.park_fds(&id, DNS_FDS, vec![udp, tcp]).await.map_err(|e| crate::chain(&e))
        };
        let result = prepared.await;
        if result.is_err() {
            self.clear(&task.id, &id).await;
        }
        result
    }

    async fn start(&self, task: &Task, attempt: u32, revision: u64) {
        let id = container::container_id(task, attempt);
        let started = async {
            if attempt > 0 {
                self.clear(&task.id, &container::container_id(task, attempt - 1)).await;
                self.prepare(task, attempt, revision).await?;
            }
            self.inner.runtime.start(&id).await.map_err(|e| crate::chain(&e))
        };
        match started.await {
            Ok(()) => {
                let containers = self.inner.runtime.list().await;
                let pid = containers.iter().find(|c| c.id == id).and_then(|c| c.pid).unwrap_or_default();
                self.tell(&task.id, Event::Started { container: id.clone(), pid }).await;
                self.watch(&task.id, &id).await;
            }
            Err(error) => {
                self.clear(&task.id, &id).await;
                self.tell(&task.id, Event::StartFailed { error }).await;
            }
        }
    }

    async fn watch(&self, task: &TaskId, container: &str) {
        let event = match self.inner.runtime.wait(container).await {
            Ok(exit) => Event::Exited {
                exit_code: (!exit.shim_lost).then_some(exit.code),
                oom_killed: exit.oom_killed,
            },
            Err(error) => {
                tracing::warn!(task.id = %task, error = crate::chain(&error), "a container's end was not seen");
                Event::Exited { exit_code: None, oom_killed: false }
            }
        };
        // The namespace is gone with its last process; nothing may lead there when the address is given again.
        if let Err(error) = self.inner.overlay.detach(task.as_str()).await {
            tracing::warn!(task.id = %task, error = crate::chain(&error), "a task's network could not be taken down");
        }
        self.tell(task, event).await;
    }

    async fn stop(&self, task: &Task, signal: &str, grace: Duration) {
        let containers = self.inner.runtime.list().await;
        let own = containers.into_iter().filter(|c| c.labels.get(TASK_LABEL).map(String::as_str) == Some(task.id.as_str()));
        for container in own {
            let signal = signal.parse::<Signal>().ok();
            // The end is reported by whoever watches the container.
            if let Err(error) = self.inner.runtime.stop(&container.id, signal, grace).await {
                tracing::warn!(task.id = %task.id, error = crate::chain(&error), "a container could not be stopped");
            }
        }
    }

    /// Removes everything that a task left, until nothing is left.
    pub(super) async fn remove(&self, task: &TaskId) {
        loop {
            let containers = self.inner.runtime.list().await;
            let own: Vec<String> = containers
                .into_iter()
                .filter(|c| c.labels.get(TASK_LABEL).map(String::as_str) == Some(task.as_str()))
                .map(|c| c.id)
                .collect();
            let mut clean = self.inner.overlay.detach(task.as_str()).await.is_ok();
            for id in own {
                if let Err(error) = self.inner.runtime.delete(&id).await {
                    tracing::warn!(task.id = %task, error = crate::chain(&error), "a container could not be removed; trying again");
                    clean = false;
                }
            }
            if clean {
                return;
            }
            tokio::time::sleep(REMOVE_RETRY).await;
        }
    }

    /// Takes back one attempt.
    async fn clear(&self, task: &TaskId, container: &str) {
        if let Err(error) = self.inner.overlay.detach(task.as_str()).await {
            tracing::warn!(task.id = %task, error = crate::chain(&error), "a task's network could not be taken down");
        }
        if let Err(error) = self.inner.runtime.delete(container).await {
            tracing::debug!(task.id = %task, error = crate::chain(&error), "nothing to remove");
        }
    }

    async fn reattach(&self, task: &Task, container: &str) -> Result<(), String> {
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
