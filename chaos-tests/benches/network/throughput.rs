//! One TCP stream between tasks on two hosts: Shoal's overlay, Docker's, one made by hand, and the wire below all of them.
//!
//! They take turns, a short stream each, and each round begins with another one. `iperf3` is this machine's own and runs
//! in the namespaces of the tasks, for all of them alike: what the tasks' containers are made of does not show.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::bench::{self, Report, median};
use chaos_tests::hosts::{Api, Binaries, Cluster, SOON};
use chaos_tests::peers::{self, Rig, Swarm};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::Options;
use crate::hand::HandMade;
use crate::service::{address, namespace_of, on_network, one_task};

/// Where iperf3 listens.
const PORT: u16 = 5201;

/// From a client to a server.
struct Way {
    name: &'static str,
    client: PathBuf,
    address: IpAddr,
    /// Gbit/s, one a round.
    rates: Vec<f64>,
    /// Ends when it is dropped.
    _server: Child,
}

impl Way {
    async fn new(name: &'static str, client: PathBuf, server: &Path, address: IpAddr) -> Result<Way> {
        let mut command = iperf(server);
        command.args(["--server", "--port", &PORT.to_string()]).stdout(Stdio::null());
        let way = Way { name, client, address, rates: Vec::new(), _server: command.spawn().context("iperf3")? };
        let deadline = Instant::now() + SOON;
        // The first of all may come before the server listens, or before both hosts know of each other.
        while let Err(error) = way.stream(Duration::from_secs(1)).await {
            ensure!(Instant::now() < deadline, "{name}: {error:#}");
            tokio::time::sleep(peers::LOOK).await;
        }
        Ok(way)
    }

    /// Gbit/s of one stream, as the server received it.
    async fn stream(&self, length: Duration) -> Result<f64> {
        let mut command = iperf(&self.client);
        command.args(["--client", &self.address.to_string(), "--port", &PORT.to_string(), "--json"]);
        command.args(["--connect-timeout", "2000", "--time", &length.as_secs().to_string()]);
        let limit = length + Duration::from_secs(10);
        let output = tokio::time::timeout(limit, command.output()).await.context("iperf3 does not end")??;
        let told: Value = serde_json::from_slice(&output.stdout).context("what iperf3 tells")?;
        let rate = told["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.map(|rate| rate / 1e9).with_context(|| format!("iperf3: {}", told["error"]))
    }

    fn median(&self) -> f64 {
        median(&self.rates).unwrap_or_default()
    }
}

fn iperf(namespace: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("iperf3").kill_on_drop(true).stdin(Stdio::null());
    command
}

/// A task on each of the first two hosts; answers their namespaces' process ids and the second one's address.
async fn two_tasks(api: &Api, hosts: [&str; 2]) -> Result<(u64, u64, IpAddr)> {
    let network = api.create_overlay("net").await?;
    let client = one_task(api, on_network("client", 1), hosts[0]).await?;
    let server = one_task(api, on_network("server", 1), hosts[1]).await?;
    Ok((client.pid, server.pid, address(api, &server, &network).await?))
}

pub(crate) async fn measure(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    const WHAT: [&str; 2] = ["one TCP stream, two hosts, beside Docker's overlay", "the same, beside one made by hand"];
    const TARGET: [&str; 2] = ["≥ Docker's", "≥ 0.95 of it"];
    if let Some(missing) = ["iperf3", "nsenter", "ip"].into_iter().find(|name| bench::installed(name).is_none()) {
        WHAT.iter().zip(TARGET).for_each(|(what, target)| {
            report.target(what, target, format_args!("not measured: {missing} is not installed"), "-", false);
        });
        return Ok(());
    }
    let hand = HandMade::create()?;
    let cluster = Cluster::start(binaries, 1, 1).await?;
    let docker = Docker::start(binaries).await;

    let (client, server, at) = two_tasks(&cluster.api(0), [cluster.host(0).name(), cluster.host(1).name()]).await?;
    let mut ways = vec![
        Way::new("underlay", hand.underlay(0), &hand.underlay(1), hand.underlay_address(1).into()).await?,
        Way::new("by hand", hand.task(0), &hand.task(1), hand.address(1).into()).await?,
        Way::new("shoal", namespace_of(client), &namespace_of(server), at).await?,
    ];
    let why_not = match &docker {
        Ok(docker) => {
            ways.push(Way::new("docker", docker.client.clone(), &docker.server, docker.address).await?);
            String::new()
        }
        Err(error) => format!("{error:#}"),
    };
    for round in 0..options.rounds {
        for turn in 0..ways.len() {
            let at = (round + turn) % ways.len();
            let rate = ways[at].stream(options.stream).await.with_context(|| ways[at].name)?;
            ways[at].rates.push(rate);
        }
        let told: Vec<String> = ways.iter().map(|w| format!("{} {:.2}", w.name, w.rates[round])).collect();
        bench::say(format_args!("throughput, round {round}, Gbit/s: {}", told.join(", ")));
    }
    tell(&ways, &why_not, WHAT, TARGET, report);
    drop(ways);
    if let Ok(docker) = docker {
        docker.swarm.clean_up()?;
    }
    cluster.clean_up()?;
    hand.clean_up()
}

fn tell(ways: &[Way], why_not: &str, what: [&str; 2], target: [&str; 2], report: &mut Report) {
    let of = |name: &str| ways.iter().find(|way| way.name == name).map(Way::median);
    let (under, ours) = (of("underlay").unwrap_or_default(), of("shoal").unwrap_or_default());
    let share = |rate: f64| format!("{rate:.2} Gbit/s, {:.2} of the underlay", rate / under);
    match of("docker") {
        Some(docker) => report.target(what[0], target[0], share(ours), share(docker), ours >= docker),
        None => report.target(what[0], target[0], share(ours), why_not, false),
    }
    let hand = of("by hand").unwrap_or_default();
    let measured = format!("{:.2} of it: {}", ours / hand, share(ours));
    report.target(what[1], target[1], measured, format_args!("by hand: {}", share(hand)), ours >= 0.95 * hand);
}

/// Docker's two hosts with a task on each.
struct Docker {
    client: PathBuf,
    server: PathBuf,
    address: IpAddr,
    swarm: Swarm,
}

impl Docker {
    async fn start(binaries: &Binaries) -> Result<Docker> {
        if let Some(missing) = peers::missing() {
            anyhow::bail!("Docker is not installed ({missing})");
        }
        let swarm = Swarm::unformed(2).await?;
        peers::form(&swarm, 1).await?;
        peers::load_images(&swarm, &binaries.whoami).await?;
        let (client, server, address) = two_tasks(&swarm.api(0), ["host-1", "host-2"]).await?;
        let namespace = |index, pid| swarm.namespace_of(index, pid).context("a host of Docker's has ended");
        Ok(Docker { client: namespace(0, client)?, server: namespace(1, server)?, address, swarm })
    }
}
