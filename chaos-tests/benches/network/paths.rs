//! Requests over the ways that Shoal makes, and over straight ones: a new connection each.
//!
//! The server is a thread of this benchmark in the task's namespace that costs next to nothing, so that what the way costs
//! is not hidden behind what a service does. The ways take turns, and each round begins with another one.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use chaos_tests::bench::load::{self, Round, Server};
use chaos_tests::bench::{self, Report, median};
use chaos_tests::hosts::{Binaries, Client, Cluster};

use crate::Options;
use crate::service::{address, on_network, one_task, virtual_address};

/// Where the servers listen, one for each way: two ways to one port could make the same connection twice in a minute, as the
/// server sees it, and a second packet of each that it refuses at first would be a second's wait.
const PORTS: [u16; 3] = [8000, 8001, 8002];
/// Where they are published.
const PUBLISHED: [u16; 2] = [8080, 8081];
/// Clients at once, and the requests of all of them in a round: one for latency, several for connections a second.
const LOADS: [(usize, usize); 2] = [(1, 1000), (8, 2000)];
/// Requests before the first round.
const WARM: usize = 200;

/// A way to the server, and what came of it in each round: of one client and of several.
struct Way {
    name: &'static str,
    door: SocketAddr,
    rounds: [Vec<Round>; LOADS.len()],
}

impl Way {
    fn new(name: &'static str, door: SocketAddr) -> Way {
        Way { name, door, rounds: Default::default() }
    }

    /// Connections a second of several clients.
    fn rates(&self) -> Vec<f64> {
        self.rounds[1].iter().map(Round::rate).collect()
    }

    /// The p50 of one client, in microseconds.
    fn latencies(&self) -> Vec<f64> {
        self.rounds[0].iter().map(|round| round.each.percentile(50).as_secs_f64() * 1e6).collect()
    }

    /// Both, as medians of all rounds.
    fn tell(&self) -> String {
        let of = |numbers: Vec<f64>| median(&numbers).unwrap_or_default();
        format!("{:.0}/s and {:.0} µs {}", of(self.rates()), of(self.latencies()), self.name)
    }
}

/// Asks over all ways, again and again. Who asked must be the same in all answers: it is answered.
fn take_turns(place: &Client, ways: &mut [Way], rounds: usize) -> Result<()> {
    for way in ways.iter() {
        load::ask(place, way.door, 1, WARM).with_context(|| way.name)?;
    }
    for round in 0..rounds {
        for (kind, (clients, requests)) in LOADS.into_iter().enumerate() {
            for turn in 0..ways.len() {
                let at = (round + turn) % ways.len();
                let way = &mut ways[at];
                way.rounds[kind].push(load::ask(place, way.door, clients, requests).with_context(|| way.name)?);
            }
        }
        let told = |way: &Way| {
            let (one, all) = (way.rounds[0][round].each.percentile(50), way.rounds[1][round].rate());
            format!("{} {all:.0}/s {} µs", way.name, one.as_micros())
        };
        let told: Vec<String> = ways.iter().map(told).collect();
        bench::say(format_args!("round {round}: {}", told.join(", ")));
    }
    Ok(())
}

/// What the first of two ways reaches of the second: connections a second, and latency, as the medians of what it reached in
/// each round.
fn shares(way: &Way, straight: &Way) -> [f64; 2] {
    let share = |one: Vec<f64>, other: Vec<f64>| {
        let shares: Vec<f64> = one.iter().zip(&other).map(|(one, other)| one / other).collect();
        median(&shares).unwrap_or_default()
    };
    [share(way.rates(), straight.rates()), share(straight.latencies(), way.latencies())]
}

fn line(report: &mut Report, what: &str, target: f64, way: &Way, straight: &Way) {
    let [rate, latency] = shares(way, straight);
    let measured = format!("{rate:.2} of connections/s, {latency:.2} in latency: {}", way.tell());
    let met = rate >= target && latency >= target;
    report.target(what, &format!("≥ {target:.2} of each"), measured, straight.tell(), met);
}

fn note(report: &mut Report, what: &str, way: &Way, other: &Way) {
    let [rate, latency] = shares(way, other);
    let measured = format!("{rate:.2} of connections/s, {latency:.2} in latency: {}", way.tell());
    report.note(what, measured, other.tell());
}

/// A virtual address, and the task behind it, on another host.
pub(crate) async fn vip(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, 1, 1).await?;
    let api = cluster.api(0);
    let network = api.create_overlay("net").await?;
    let server = one_task(&api, on_network("server", 1), cluster.host(1).name()).await?;
    let client = one_task(&api, on_network("client", 1), cluster.host(0).name()).await?;
    let straight = SocketAddr::new(address(&api, &server, &network).await?, PORTS[1]);
    let door = virtual_address(&api, "server", &network, PORTS[0]).await?;
    let (place, task) = (Client::beside(client.pid)?, Client::beside(server.pid)?);
    let listening = [Server::start(&task, PORTS[0])?, Server::start(&task, PORTS[1])?];
    let mut ways = [Way::new("VIP", door), Way::new("task's address", straight)];
    tokio::task::block_in_place(|| take_turns(&place, &mut ways, options.rounds))?;
    let [virtually, straight] = &ways;
    line(report, "requests through a VIP, beside the task's address", 0.95, virtually, straight);
    drop(listening);
    cluster.clean_up()
}

/// A published port of a host without a task, that of the task's host, and a port of that host itself.
pub(crate) async fn mesh(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, 1, 1).await?;
    let api = cluster.api(0);
    api.create_overlay("net").await?;
    let draft = on_network("server", 1).publish(PUBLISHED[0], PORTS[0]).publish(PUBLISHED[1], PORTS[1]);
    let task = one_task(&api, draft, cluster.host(1).name()).await?;
    let task = Client::beside(task.pid)?;
    let listening = [
        Server::start(&task, PORTS[0])?,
        Server::start(&task, PORTS[1])?,
        // Without Shoal.
        Server::start(&cluster.host(1).client()?, PORTS[2])?,
    ];
    let mut ways = [
        Way::new("mesh", cluster.host(0).at(PUBLISHED[0])),
        Way::new("task's host", cluster.host(1).at(PUBLISHED[1])),
        Way::new("host's own port", cluster.host(1).at(PORTS[2])),
    ];
    let place = cluster.client()?;
    let itself = place.visit(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(ways[0].door)?;
        socket.local_addr()
    })?;
    tokio::task::block_in_place(|| take_turns(&place, &mut ways, options.rounds))?;
    let seen: Vec<IpAddr> = ways.iter().flat_map(|way| way.rounds.iter().flatten()).filter_map(|r| r.seen_as).collect();
    ensure!(!seen.is_empty(), "nobody was asked");
    let [mesh, straight, own] = &ways;
    line(report, "requests through the mesh, beside the task's host", 0.80, mesh, straight);
    note(report, "the same, beside a port of that host without any container", mesh, own);
    let other = seen.iter().find(|ip| **ip != itself.ip());
    let told =
        other.map_or_else(|| format!("always ({})", itself.ip()), |ip| format!("{ip} instead of {}", itself.ip()));
    report.target("the task sees the client's own address", "always", told, "-", other.is_none());
    drop(listening);
    cluster.clean_up()
}
