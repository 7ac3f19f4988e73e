//! Requests over the ways that Shoal makes, and over straight ones: a new connection each.
//!
//! Each way leads to a task of its own, and these are alike: two ways to one task could make the same connection twice in a
//! minute, as the task sees it, and its refusal of the second one's first packet would be a second's wait. Two servers
//! are asked: the service itself, as its clients do, and a thread of this benchmark in the task's namespace that costs next to
//! nothing, so that what the way costs is not hidden behind what a service does.
//!
//! The ways take turns, and each turn begins with another one.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use chaos_tests::bench::load::{self, Round, Server};
use chaos_tests::bench::{self, Report, median};
use chaos_tests::hosts::{Binaries, Client, Cluster, SOON};
use chaos_tests::peers::LOOK;

use crate::Options;
use crate::service::{address, on_network, one_task, virtual_address};

/// Where the service listens, and the server of this benchmark.
const PORTS: [u16; 2] = [80, 8000];
/// What to ask each of them for; both answer who asked.
const PATHS: [&str; 2] = ["/json", "/"];
/// Clients at once, and the requests of all of them in a turn: one for latency, several for connections a second.
const LOADS: [(usize, usize); 2] = [(1, 100), (8, 250)];
/// Turns in a round, each some hundredths of a second: whatever else the machine does for longer hits all ways alike.
const TURNS: usize = 10;
/// The percentile of a round that counts as its latency. Whether both ends are on one processor or not makes a difference
/// as large as what is measured, and the scheduler decides it anew each time; the fast tenth is of one kind.
const UNDISTURBED: u32 = 10;
/// Requests before the first round.
const WARM: usize = 200;

/// A server that is asked.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Service,
    Bare,
}

/// A way to the servers, and what came of it in each round, by server and load.
struct Way {
    name: &'static str,
    doors: [SocketAddr; PORTS.len()],
    rounds: [[Vec<Round>; LOADS.len()]; PORTS.len()],
}

impl Way {
    fn new(name: &'static str, doors: [SocketAddr; PORTS.len()]) -> Way {
        Way { name, doors, rounds: Default::default() }
    }

    /// Connections a second of several clients.
    fn rates(&self, asked: Asked) -> Vec<f64> {
        self.rounds[asked as usize][1].iter().map(Round::rate).collect()
    }

    /// That of one client, in microseconds.
    fn latencies(&self, asked: Asked) -> Vec<f64> {
        self.rounds[asked as usize][0]
            .iter()
            .map(|round| round.each.percentile(UNDISTURBED).as_secs_f64() * 1e6)
            .collect()
    }

    /// Both, as medians of all rounds.
    fn tell(&self, asked: Asked) -> String {
        let of = |numbers: Vec<f64>| median(&numbers).unwrap_or_default();
        format!("{:.0}/s and {:.0} µs {}", of(self.rates(asked)), of(self.latencies(asked)), self.name)
    }
}

/// Asks over all ways, again and again.
fn take_turns(place: &Client, ways: &mut [Way], rounds: usize) -> Result<()> {
    let deadline = Instant::now() + SOON;
    for way in ways.iter() {
        for (door, path) in way.doors.into_iter().zip(PATHS) {
            // Hosts lead to what runs a moment later.
            while let Err(error) = load::ask(place, door, path, 1, WARM) {
                ensure!(Instant::now() < deadline, "{}: {error}", way.name);
                std::thread::sleep(LOOK);
            }
        }
    }
    for round in 0..rounds {
        for (server, path) in PATHS.into_iter().enumerate() {
            for (kind, (clients, requests)) in LOADS.into_iter().enumerate() {
                ways.iter_mut().for_each(|way| way.rounds[server][kind].push(Round::default()));
                for turn in 0..TURNS * ways.len() {
                    // Each begins with the next of them.
                    let at = (turn + turn / ways.len()) % ways.len();
                    let way = &mut ways[at];
                    let asked = load::ask(place, way.doors[server], path, clients, requests);
                    way.rounds[server][kind][round].add(asked.with_context(|| way.name)?);
                }
            }
        }
        let told = |way: &Way| {
            let of = |server: usize| {
                let (one, all) =
                    (way.rounds[server][0][round].each.percentile(UNDISTURBED), way.rounds[server][1][round].rate());
                format!("{all:.0}/s {} µs", one.as_micros())
            };
            format!("{} {} (bare {})", way.name, of(0), of(1))
        };
        let told: Vec<String> = ways.iter().map(told).collect();
        bench::say(format_args!("round {round}: {}", told.join(", ")));
    }
    Ok(())
}

/// What the first of two ways reaches of the second: connections a second, and latency, as the medians of what it reached in
/// each round.
fn shares(asked: Asked, way: &Way, straight: &Way) -> [f64; 2] {
    let share = |one: Vec<f64>, other: Vec<f64>| {
        let shares: Vec<f64> = one.iter().zip(&other).map(|(one, other)| one / other).collect();
        median(&shares).unwrap_or_default()
    };
    [share(way.rates(asked), straight.rates(asked)), share(straight.latencies(asked), way.latencies(asked))]
}

fn line(report: &mut Report, what: &str, target: f64, way: &Way, straight: &Way) {
    let [rate, latency] = shares(Asked::Service, way, straight);
    let measured = format!("{rate:.2} of connections/s, {latency:.2} in latency: {}", way.tell(Asked::Service));
    let met = rate >= target && latency >= target;
    report.target(what, &format!("≥ {target:.2} of each"), measured, straight.tell(Asked::Service), met);
    note(report, &format!("{what}, of a server that costs nothing"), way, straight);
}

fn note(report: &mut Report, what: &str, way: &Way, other: &Way) {
    let [rate, latency] = shares(Asked::Bare, way, other);
    let measured = format!("{rate:.2} of connections/s, {latency:.2} in latency: {}", way.tell(Asked::Bare));
    report.note(what, measured, other.tell(Asked::Bare));
}

/// A virtual address, and a task's own, on another host.
pub(crate) async fn vip(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, 1, 1).await?;
    let api = cluster.api(0);
    let network = api.create_overlay("net").await?;
    let client = one_task(&api, on_network("client", 1), cluster.host(0).name()).await?;
    let one = one_task(&api, on_network("one", 1), cluster.host(1).name()).await?;
    let other = one_task(&api, on_network("other", 1), cluster.host(1).name()).await?;
    let door = virtual_address(&api, "one", &network).await?;
    let straight = address(&api, &other, &network).await?;
    let bare =
        [Server::start(&Client::beside(one.pid)?, PORTS[1])?, Server::start(&Client::beside(other.pid)?, PORTS[1])?];
    let place = Client::beside(client.pid)?;
    let doors = |ip: IpAddr| PORTS.map(|port| SocketAddr::new(ip, port));
    let mut ways = [Way::new("VIP", doors(door)), Way::new("task's address", doors(straight))];
    tokio::task::block_in_place(|| take_turns(&place, &mut ways, options.rounds))?;
    let [virtually, straight] = &ways;
    line(report, "requests through a VIP, beside the task's address", 0.95, virtually, straight);
    drop(bare);
    cluster.clean_up()
}

/// A published port of a host without a task, and that of the task's host.
pub(crate) async fn mesh(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, 1, 1).await?;
    let api = cluster.api(0);
    api.create_overlay("net").await?;
    let (mut bare, mut ways) = (Vec::new(), Vec::new());
    for (name, host, published) in [("mesh", 0, [8080, 9080]), ("task's host", 1, [8081, 9081])] {
        let draft = on_network(&format!("host-{host}"), 1);
        let draft = published.into_iter().zip(PORTS).fold(draft, |draft, (from, to)| draft.publish(from, to));
        let task = one_task(&api, draft, cluster.host(1).name()).await?;
        bare.push(Server::start(&Client::beside(task.pid)?, PORTS[1])?);
        ways.push(Way::new(name, published.map(|port| cluster.host(host).at(port))));
    }
    let place = cluster.client()?;
    let itself = place.visit(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(ways[0].doors[0])?;
        Ok(socket.local_addr()?.ip())
    })?;
    tokio::task::block_in_place(|| take_turns(&place, &mut ways, options.rounds))?;
    let rounds = ways.iter().flat_map(|way| way.rounds.iter().flatten().flatten());
    let seen: BTreeSet<IpAddr> = rounds.flat_map(|round| round.seen.clone()).collect();
    ensure!(!seen.is_empty(), "nobody was asked");
    let [mesh, straight] = ways.as_slice() else { unreachable!("two ways") };
    line(report, "requests through the mesh, beside the task's host", 0.80, mesh, straight);
    let other = seen.iter().find(|ip| **ip != itself);
    let told = other.map_or_else(|| format!("always ({itself})"), |ip| format!("{ip} instead of {itself}"));
    report.target("the task sees the client's own address", "always", told, "-", other.is_none());
    drop(bare);
    cluster.clean_up()
}
