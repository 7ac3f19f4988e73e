//! Clusters of real daemons on this machine, made of the same hosts as the demo's, and ways to break them.

mod faults;
mod graceful;
pub mod headless;
mod rules;
mod starved;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::{Mutex, MutexGuard};

pub use node::demo::hosts::{
    Api, Body, Client, Freshness, Host, HostError, Hosts, HostsConfig, ServiceDraft, TaskView, encode, unusable,
};
pub use node::demo::image;

pub use faults::Fault;
pub use graceful::{graceful, update};
pub(crate) use rules::nft;
pub use rules::{Transport, rules_unusable};
pub use starved::{Alarms, Burners};

/// The image that clusters have on each host.
pub const IMAGE: &str = "shoal/whoami";
/// Anything that a healthy cluster does, it does within this time on a busy machine with two cores.
pub const SOON: Duration = Duration::from_secs(60);

/// One request to a service takes so long at the most.
const ANSWER: Duration = Duration::from_secs(2);

/// One cluster at a time: two would only slow each other down, and a slow host is a dead one.
static TURN: Mutex<()> = Mutex::const_new(());

/// What clusters run. Tests know their paths: `env!("CARGO_BIN_EXE_...")` exists only for them.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `shoal`.
    pub shoal: PathBuf,
    /// The service.
    pub whoami: PathBuf,
}

/// Hosts that are one cluster; the first ones are managers. Dropping it removes everything.
#[derive(Debug)]
pub struct Cluster {
    hosts: Hosts,
    whoami: PathBuf,
    ids: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

/// The environment that makes `chaos-shoal` the release with this feature level.
#[must_use]
pub fn release(level: u32) -> Vec<(String, String)> {
    vec![(LEVEL.to_owned(), level.to_string())]
}

/// See [`release`].
pub const LEVEL: &str = "CHAOS_SHOAL_FEATURE_LEVEL";

impl Cluster {
    /// Hosts with daemons that are in no cluster yet.
    ///
    /// # Errors
    /// When the hosts cannot be made or a daemon does not start.
    pub async fn hosts_only(binaries: &Binaries, count: usize) -> Result<Cluster> {
        Cluster::hosts_of(binaries, &HostsConfig::new(binaries.shoal.clone(), count)).await
    }

    /// The same, with daemons of the release that has this feature level.
    ///
    /// # Errors
    /// As [`Cluster::hosts_only`].
    pub async fn hosts_of_release(binaries: &Binaries, count: usize, level: u32) -> Result<Cluster> {
        let env = release(level);
        Cluster::hosts_of(binaries, &HostsConfig { env, ..HostsConfig::new(binaries.shoal.clone(), count) }).await
    }

    /// The same, made as the caller says.
    ///
    /// # Errors
    /// When the hosts cannot be made or a daemon does not start.
    pub async fn hosts_of(binaries: &Binaries, config: &HostsConfig) -> Result<Cluster> {
        let turn = TURN.lock().await;
        // All hosts share this machine's table of neighbours, whose limits their daemons do not see from their namespaces.
        // As after a daemon of this machine's own, they stay.
        overlay_net::kernel::raise_neighbour_limits()?;
        let hosts = Hosts::create(config)?;
        let cluster = Cluster { hosts, whoami: binaries.whoami.clone(), ids: Vec::new(), _turn: turn };
        cluster.hosts.start_daemons().await?;
        Ok(cluster)
    }

    /// A cluster of so many managers and workers, with [`IMAGE`] on each host.
    ///
    /// # Errors
    /// When a step of making it fails.
    pub async fn start(binaries: &Binaries, managers: usize, workers: usize) -> Result<Cluster> {
        let mut cluster = Cluster::hosts_only(binaries, managers + workers).await?;
        cluster.init().await?;
        for index in 1..managers + workers {
            cluster.join(index, index < managers).await?;
        }
        cluster.load_images().await?;
        cluster.wait_ready(managers + workers).await?;
        Ok(cluster)
    }

    /// Makes a cluster of the first host.
    ///
    /// # Errors
    /// As the API says.
    pub async fn init(&mut self) -> Result<()> {
        let first = self.host(0);
        let id = first.api().init(&first.address().to_string()).await?;
        self.ids = vec![id];
        Ok(())
    }

    /// Lets the next host join.
    ///
    /// # Errors
    /// As the API says.
    pub async fn join(&mut self, index: usize, manager: bool) -> Result<()> {
        assert_eq!(index, self.ids.len(), "hosts join in their order");
        let (host, first) = (self.host(index), self.host(0));
        let (worker_token, manager_token) = first.api().tokens().await?;
        let token = if manager { manager_token } else { worker_token };
        host.api().join(&host.address().to_string(), &first.node_address(), &token).await?;
        let id = host.api().node_id().await?;
        self.ids.push(id);
        Ok(())
    }

    /// Puts [`IMAGE`] on every host.
    ///
    /// # Errors
    /// As the API says.
    pub async fn load_images(&self) -> Result<()> {
        for host in self.hosts.all() {
            image::import(&host.api(), &self.whoami, IMAGE, &["/shoal"]).await?;
        }
        Ok(())
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        self.hosts.all()
    }

    /// One host, from 0.
    #[must_use]
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts.all()[index]
    }

    /// The API of one host.
    #[must_use]
    pub fn api(&self, index: usize) -> Api {
        self.host(index).api()
    }

    /// The node id of one host.
    #[must_use]
    pub fn id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    /// The executable of the service.
    #[must_use]
    pub fn whoami(&self) -> &Path {
        &self.whoami
    }

    /// A client outside of all hosts.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn client(&self) -> Result<Client> {
        Ok(self.hosts.client()?)
    }

    /// The namespace outside of all hosts, with a cable to each; for `nsenter --net=`.
    #[must_use]
    pub fn switch_path(&self) -> PathBuf {
        self.hosts.switch_path()
    }

    /// The host that leads, as a host sees it.
    ///
    /// # Errors
    /// When there is no leader within a minute.
    pub async fn leader(&self, witness: usize) -> Result<usize> {
        let api = self.api(witness);
        let name = api
            .wait_for("a leader", SOON, || async {
                api.leader().await.map_err(|e| e.to_string())?.ok_or_else(|| "none".to_owned())
            })
            .await?;
        let index = self.hosts().iter().position(|host| host.name() == name);
        index.with_context(|| format!("the leader {name} is no host"))
    }

    /// Waits until so many nodes are ready, as the first host sees it.
    ///
    /// # Errors
    /// [`HostError::Late`].
    pub async fn wait_ready(&self, count: usize) -> Result<()> {
        self.wait_ready_at(0, count).await
    }

    /// Waits until so many nodes are ready, as a host sees it.
    ///
    /// # Errors
    /// [`HostError::Late`].
    pub async fn wait_ready_at(&self, witness: usize, count: usize) -> Result<()> {
        let api = self.api(witness);
        api.wait_for(&format!("{count} ready nodes"), SOON, || async {
            let nodes = api.nodes(Freshness::Local).await.map_err(|e| e.to_string())?;
            let ready = nodes.iter().filter(|node| node["Status"]["State"] == "ready").count();
            if ready == count { Ok(()) } else { Err(format!("{ready} of {} are ready", nodes.len())) }
        })
        .await?;
        Ok(())
    }

    /// Waits until a published port is answered by every host. What managers call running, hosts lead to a moment later.
    ///
    /// # Errors
    /// [`HostError::Late`] with the last failure.
    pub async fn wait_port(&self, port: u16) -> Result<()> {
        let client = self.client()?;
        for host in self.hosts() {
            let what = format!("an answer at port {port} of {}", host.name());
            host.api()
                .wait_for(&what, SOON, || async {
                    match client.get(host.at(port), "/json", ANSWER).await {
                        Ok(answer) if answer.status == 200 => Ok(()),
                        Ok(answer) => Err(format!("{answer:?}")),
                        Err(error) => Err(error.to_string()),
                    }
                })
                .await?;
        }
        Ok(())
    }

    /// Waits until the processes in containers of these hosts, whatever their daemons say, are those of exactly these
    /// tasks. (The service that tests run has one process a task.)
    ///
    /// # Errors
    /// What runs instead, after a minute.
    pub async fn wait_processes(&self, indexes: &[usize], tasks: &[TaskView]) -> Result<()> {
        let deadline = Instant::now() + SOON;
        let wanted = processes_of(tasks);
        loop {
            let seen = self.processes(indexes);
            if seen == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes {seen:?} run instead of {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until so many tasks of a service run as a host sees it, and their processes, and no others, run in
    /// containers of all hosts. For after a fault that managers may learn of only after they were asked: what they say
    /// then is replaced a moment later.
    ///
    /// # Errors
    /// [`HostError::Late`] with what is seen instead.
    pub async fn wait_settled(&self, witness: usize, service: &str, count: usize) -> Result<Vec<TaskView>> {
        let settled = self
            .api(witness)
            .wait_for(&format!("{count} tasks of {service} and no other processes"), SOON, || async {
                let tasks =
                    self.api(witness).wait_running(service, count, &[], SOON).await.map_err(|e| e.to_string())?;
                let wanted = processes_of(&tasks);
                let seen = self.processes(&(0..self.hosts().len()).collect::<Vec<_>>());
                if seen == wanted { Ok(tasks) } else { Err(format!("{seen:?} instead of {wanted:?}")) }
            })
            .await?;
        Ok(settled)
    }

    /// The processes in containers of these hosts, in order.
    fn processes(&self, indexes: &[usize]) -> Vec<i32> {
        let mut seen: Vec<i32> = indexes.iter().flat_map(|index| self.host(*index).container_processes()).collect();
        seen.sort_unstable();
        seen
    }

    /// Waits until nothing of tasks and networks is left on these hosts.
    ///
    /// # Errors
    /// What is left after a minute.
    pub async fn wait_clean(&self, indexes: &[usize]) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let mut left = Vec::new();
            for index in indexes {
                left.extend(self.host(*index).leftovers()?);
            }
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} things are left: {}", left.len(), left.join("; "));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The ends of the daemons' logs, for messages.
    #[must_use]
    pub fn logs(&self) -> String {
        let log = |host: &Host| format!("--- {}\n{}\n", host.name(), host.log_tail(40));
        self.hosts().iter().map(log).collect()
    }

    /// Removes everything and says what could not be removed.
    ///
    /// # Errors
    /// [`HostError::CleanUp`].
    pub fn clean_up(mut self) -> Result<()> {
        Ok(self.hosts.clean_up()?)
    }
}

/// A request that must be refused: with this status and a text that contains `part`.
///
/// # Errors
/// When it was carried out, or refused otherwise.
pub fn refused<T: std::fmt::Debug>(done: Result<T, HostError>, status: u16, part: &str) -> Result<()> {
    match done {
        Err(HostError::Refused { status: seen, message, .. }) => {
            ensure!(seen == status, "status {seen} instead of {status}: {message}");
            ensure!(message.contains(part), "{message:?} does not say {part:?}");
            Ok(())
        }
        other => bail!("not refused: {other:?}"),
    }
}

/// The processes of these tasks, in order.
fn processes_of(tasks: &[TaskView]) -> Vec<i32> {
    let mut processes: Vec<i32> = tasks.iter().filter_map(|task| i32::try_from(task.pid).ok()).collect();
    processes.sort_unstable();
    processes
}
