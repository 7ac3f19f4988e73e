//! Systems that benchmarks measure beside Shoal, on hosts made the same way, and what all of them have in common: a Docker
//! API on each host, and hosts that can be lost and booted again.

mod swarm;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};

use crate::hosts::{Api, Freshness, IMAGE, image};

pub use swarm::{Swarm, missing};

/// Between two looks.
pub const LOOK: Duration = Duration::from_millis(20);
/// One look takes so long at the most; without a leader, an answer may never come.
const ANSWER: Duration = Duration::from_secs(2);
/// Anything is over after this time, or will never be.
const LIMIT: Duration = Duration::from_secs(180);

/// What happens to the cable of a host whose processes are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// It is pulled first: to the others the host is silent.
    Pulled,
    /// It stays: the kernel of the host breaks the connections.
    Stays,
}

/// Hosts on one machine. Indexes are from 0.
pub trait Rig {
    /// For people.
    fn name(&self) -> &'static str;

    /// How many hosts there are.
    fn count(&self) -> usize;

    /// A host's API.
    fn api(&self, index: usize) -> Api;

    /// A host's address.
    fn address(&self, index: usize) -> Ipv4Addr;

    /// Kills every process of a host.
    ///
    /// # Errors
    /// What the machine says.
    fn lose(&self, index: usize, cable: Cable) -> Result<()>;

    /// Boots a lost host; its daemon answers afterwards.
    ///
    /// # Errors
    /// What the machine says.
    fn boot(&self, index: usize) -> impl Future<Output = Result<()>>;

    /// Called when something was measured that began at this time, before anything else happens.
    fn measured(&self, _what: &str, _since: std::time::SystemTime) {}
}

/// Looks every 20 ms until `look` finds something.
///
/// # Errors
/// When it has found nothing for three minutes.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Ok(Some(found)) = tokio::time::timeout(ANSWER, look()).await {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what} did not come within {} s", LIMIT.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes a cluster, one host after another; each is ready before the next one joins. Answers how long it took.
///
/// # Errors
/// As the API says, or a host that is not ready within three minutes.
pub async fn form(rig: &impl Rig, managers: usize) -> Result<Duration> {
    let (began, at) = (Instant::now(), SystemTime::now());
    let first = rig.api(0);
    first.init(&rig.address(0).to_string()).await.context("init")?;
    until("the first host", async || ready(&first, 1, 1).await).await?;
    let (worker, manager) = first.tokens().await?;
    let remote = format!("{}:2377", rig.address(0));
    for index in 1..rig.count() {
        let token = if index < managers { &manager } else { &worker };
        rig.api(index).join(&rig.address(index).to_string(), &remote, token).await.context("join")?;
        until("a host that joined", async || ready(&first, index + 1, managers.min(index + 1)).await).await?;
    }
    let took = began.elapsed();
    rig.measured("forming", at);
    Ok(took)
}

/// Whether so many hosts are ready, and so many managers are reachable, as a manager sees it.
pub async fn ready(api: &Api, hosts: usize, managers: usize) -> Option<()> {
    let nodes = api.nodes(Freshness::Local).await.ok()?;
    let ready = nodes.iter().filter(|node| node["Status"]["State"] == "ready").count();
    let reachable = nodes.iter().filter(|node| node["ManagerStatus"]["Reachability"] == "reachable").count();
    let led = nodes.iter().any(|node| node["ManagerStatus"]["Leader"] == true);
    (ready == hosts && reachable == managers && led).then_some(())
}

/// Puts [`IMAGE`], the executable of the service, on every host.
///
/// # Errors
/// As the API says.
pub async fn load_images(rig: &impl Rig, whoami: &Path) -> Result<()> {
    for index in 0..rig.count() {
        image::import(&rig.api(index), whoami, IMAGE, &["/shoal"]).await.context("loading the image")?;
    }
    Ok(())
}
