//! The node process: opens what the host has, takes up its membership, serves the API until it is told to stop.

mod active;
mod address;
mod config;
mod enter;
mod keeper;
mod knock;
mod local;
mod moved;
mod ports;
mod priority;
mod raft_entry;
mod recover;
mod reflex;
pub mod remap;
mod restore;
mod role;
mod sole;
mod superseded;

use std::path::Path;
use std::time::Duration;

use deploy::model::{MAX_OWN_PORTS, NodeDescription, NodeResources, OwnPort, PortProtocol};
use runtime::image::registry::Registries;
use runtime::image::{ImageStore, Limits};
use runtime::{Runtime, RuntimeConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use config::{Config, ConfigError, ConfigFile, IMAGE_ROOM, IMAGE_SERVE_RATE, parse_labels};
pub use local::LocalEngine;
pub(crate) use priority::raise as raise_priority;
pub use recover::recover;

use crate::agent::plain;
use crate::datadir::{DataDir, DataDirError};
use crate::{docker_api, metrics, own_networks};

/// What is still under way when the daemon is told to stop gets this long.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Why the daemon could not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Another daemon has this network namespace.
    #[error("another shoal daemon runs in this network namespace: pid {pid}, data directory {data_dir}")]
    NotSole {
        /// Its process id.
        pid: String,
        /// Its data directory.
        data_dir: String,
    },
    /// A directory, a socket or a signal.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Nobody can talk to this engine any more; its supervisor starts it again.
    #[error("the API server ended")]
    ApiEnded,
    /// The settings of registries.
    #[error(transparent)]
    Registries(#[from] runtime::image::registry::SettingError),
    /// The image store.
    #[error("the image store could not be opened")]
    Images(#[source] Box<runtime::image::ImageError>),
    /// The runtime.
    #[error("the container runtime could not be opened")]
    Runtime(#[source] Box<runtime::RuntimeError>),
    /// The users of containers.
    #[error("--userns-remap cannot be followed")]
    Users(#[source] Box<runtime::RuntimeError>),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> DaemonError {
    let what = what.into();
    move |source| DaemonError::Io { what, source }
}

/// Runs a daemon until SIGTERM or SIGINT. Tasks go on without it.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("cannot handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("cannot handle SIGINT"))?;
    let _sole = sole::claim(&config.data_dir)?;
    let data = DataDir::open(&config.data_dir)?;
    let identity = data.start_engine(|| deploy::model::format_id(rand::random()))?;
    std::fs::create_dir_all(&config.run_dir)
        .map_err(io_error(format!("cannot create {}", config.run_dir.display())))?;
    let images = {
        let dir = config.data_dir.join("images");
        blocking(move || ImageStore::open(dir, Limits::default()))
            .await
            .map_err(|e| DaemonError::Images(Box::new(e)))?
    };
    let registries = Registries::new(images, config.registries.clone())?;
    let runtime = Runtime::open(RuntimeConfig {
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        engine_id: identity.engine_id.clone(),
        shim_exe: std::env::current_exe().map_err(io_error("cannot find the own executable"))?,
    })
    .await
    .map_err(|e| DaemonError::Runtime(Box::new(e)))?;
    if config.users.is_some() {
        runtime.check_id_mappings().await.map_err(|e| DaemonError::Users(Box::new(e)))?;
    }
    registries.store().tell_to(runtime.events());
    tracing::info!(
        engine.id = identity.engine_id,
        generation = identity.generation,
        data_dir = %config.data_dir.display(),
        version = env!("CARGO_PKG_VERSION"),
        "shoal daemon"
    );
    let stop = CancellationToken::new();
    // Ends with the daemon.
    let mut chores = tokio::task::JoinSet::new();
    let images = registries.store().clone();
    chores.spawn(crate::images::gc::run(images, runtime.clone(), config.image_room, stop.clone()));
    let engine = LocalEngine::new(config.clone(), data, identity, runtime, registries);
    let mut servers = tokio::task::JoinSet::new();
    if let Some(addr) = config.metrics_addr {
        let listener = metrics::bind(addr).await.map_err(io_error(format!("cannot serve metrics at {addr}")))?;
        let scraped = engine.clone();
        let server = metrics::serve(listener, move || scraped.readings(), stop.clone());
        servers.spawn(async move {
            server.await;
            Ok(())
        });
        tracing::info!(%addr, "serving metrics");
    }
    for host in &config.hosts {
        let listener = listen(host).await.map_err(io_error(format!("cannot serve the API at {host}")))?;
        servers.spawn(docker_api::serve(listener, engine.clone(), engine.api_counters(), stop.clone()));
        tracing::info!(host, "serving the API");
    }
    // The API answers while the membership is taken up, which may take until a disk or a port is free again: `node ls`
    // then says that it is pending, or what stands in the way.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let resuming = engine.clone();
    let resume = tokio::spawn(async move { resuming.resume().await });
    let (reason, ended) = tokio::select! {
        biased;
        _ = terminate.recv() => ("SIGTERM", Ok(())),
        _ = interrupt.recv() => ("SIGINT", Ok(())),
        _ = servers.join_next() => ("the API server ended", Err(DaemonError::ApiEnded)),
    };
    tracing::info!(reason, "stopping; tasks go on");
    stop.cancel();
    resume.abort();
    if tokio::time::timeout(SHUTDOWN, engine.shutdown()).await.is_err() {
        tracing::warn!("not everything stopped in time");
    }
    ended
}

/// `unix:///path` or `tcp://ip:port`, as `-H` takes them.
async fn listen(host: &str) -> std::io::Result<docker_api::Listener> {
    if let Some(path) = host.strip_prefix("unix://") {
        return docker_api::Listener::unix(Path::new(path)).await;
    }
    match host.strip_prefix("tcp://") {
        Some(addr) => docker_api::Listener::tcp(addr).await,
        None => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "it must look like unix:///path or tcp://ip:port",
        )),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// What this host says of itself.
fn describe(engine: &LocalEngine, listen: &str, advertise: &str, data_path: &str) -> NodeDescription {
    let uname = rustix::system::uname();
    let node: String = engine.identity().engine_id.chars().take(8).collect();
    let local = plain::remembered_subnets(&engine.data().local_networks());
    let networks = own_networks::read(&overlay_net::plan::names::egress_link(&node), &local);
    NodeDescription {
        hostname: uname.nodename().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        os: "linux".into(),
        resources: resources(),
        engine_version: env!("CARGO_PKG_VERSION").into(),
        engine_labels: engine.config().labels.clone(),
        data_path_addr: data_path.to_owned(),
        control_addr: advertise.to_owned(),
        engine_id: engine.identity().engine_id.clone(),
        feature_level: crate::release::Release::current().feature_level,
        own_ports: own_ports(engine.config(), listen),
        own_subnets: networks.subnets,
        routes: networks.routes,
        way_out: networks.way_out,
        own_subnets6: networks.subnets6,
        routes6: networks.routes6,
    }
}

/// Every port that this daemon listens at, but for the one of VXLAN, which is the whole cluster's.
fn own_ports(config: &Config, listen: &str) -> Vec<OwnPort> {
    let port = |addr: &str| addr.rsplit_once(':')?.1.parse::<u16>().ok().map(u32::from);
    let own = |protocol: PortProtocol, port: u32, purpose: &str| OwnPort {
        protocol: protocol as i32,
        port,
        purpose: purpose.to_owned(),
    };
    let control = port(listen).into_iter();
    let control = control.flat_map(|port| [PortProtocol::Tcp, PortProtocol::Udp].map(|p| own(p, port, "control port")));
    let api = config.hosts.iter().filter_map(|host| port(host.strip_prefix("tcp://")?));
    let metrics = config.metrics_addr.map(|addr| u32::from(addr.port()));
    control
        .chain(api.map(|port| own(PortProtocol::Tcp, port, "API port")))
        .chain(metrics.map(|port| own(PortProtocol::Tcp, port, "metrics port")))
        .filter(|own| own.port != 0)
        .take(MAX_OWN_PORTS)
        .collect()
}

fn resources() -> NodeResources {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    NodeResources { nano_cpus: cpus as u64 * 1_000_000_000, memory_bytes: total_memory().unwrap_or_default() }
}

/// Bytes of memory of the host.
pub(crate) fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
