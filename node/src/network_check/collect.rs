//! Finds out: asks the agent, the overlay, the resolver and the other hosts, all at the same time, and bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use deploy::dispatcher::assignment;
use deploy::model::NodeState;
use overlay_net::kernel::NetNs;
use overlay_net::probe::{Echo, Families, Reached, echo, resolve};
use overlay_net::{Network, Observation, Overlay, Place};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::evaluate::{evaluate, on_network};
use super::observed::{NetworkSeen, Observed, Paths, PeerSeen, Standing, WayOut, expected_names};
use super::{LIMIT, Report, Verdict};
use crate::engine::{AgentState, Consistency, Engine, EngineError};

/// A host may be so far behind its managers before that is worth a word.
const BEHIND: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);
/// Echoes are waited for so long.
const ECHO: Duration = Duration::from_secs(1);
/// All names of a network are asked for within this time.
const NAMES: Duration = Duration::from_secs(2);
/// A control port opens within this time.
const CONNECT: Duration = Duration::from_secs(2);
/// Networks that are looked at at the same time.
const AT_ONCE: usize = 16;
/// Length of an ordinary small packet.
const SMALL: u16 = 84;
/// Addresses that are asked on each host of a network: a task may have ended a moment ago.
const CANDIDATES: usize = 3;
/// Virtual addresses that are tried on each network.
const VIPS: usize = 3;
/// Lengths that paths are known to carry: of jumbo frames, Ethernet, PPPoE, clouds, tunnels, what every path must.
const USUAL: [u16; 16] =
    [8950, 8000, 4000, 1500, 1492, 1480, 1472, 1460, 1450, 1440, 1430, 1420, 1400, 1380, 1280, 576];

/// Checks the networks of this host, or one of them.
///
/// # Errors
/// Where no overlay runs, and when it ends meanwhile.
pub async fn check<E: Engine>(engine: &E, only: Option<&str>) -> Result<Report, EngineError> {
    let end = Instant::now() + LIMIT;
    let overlay = engine.overlay()?;
    let agent = engine.agent().await?;
    let failed = |error: overlay_net::OverlayError| EngineError::Internal(crate::chain(&error));
    let view = overlay.observe().await.map_err(failed)?;
    let wanted = |network: &&Arc<Network>| only.is_none_or(|only| is_meant(network, only));
    let chosen: Vec<String> = view.desired.networks.iter().filter(wanted).map(|network| network.id.clone()).collect();
    let mut seen = Observed {
        underlay_mtu: view.underlay_mtu,
        data_path_port: view.data_path_port,
        sealing_obstacle: view.sealing_obstacle.clone(),
        data_path_addr: Some(view.data_path_addr),
        refused: view.refused.iter().map(ToString::to_string).collect(),
        peers: peers(&agent, &view),
        standing: Standing::default(),
        kernel: BTreeMap::new(),
        audit: None,
        firewalls: Ok(Vec::new()),
        way_out: None,
        held: Vec::new(),
        networks: Vec::new(),
        not_carried: None,
    };
    if let Some(only) = only.filter(|_| chosen.is_empty()) {
        let names: Vec<&str> = view.desired.networks.iter().map(|network| network.name.as_str()).collect();
        seen.not_carried = Some(format!("this host does not carry {only:?}, but {}", names.join(", ")));
    }
    let (standing, peers, networks) = tokio::join!(
        standing(engine, &overlay, &agent),
        ask_peers(&seen, &view),
        look_at_networks(&overlay, &seen, &chosen, end),
    );
    (seen.standing, seen.peers) = (standing, peers);
    seen.way_out = ask_outside(&seen, &view).await;
    seen.networks = networks;
    // What was carried out meanwhile is in force now.
    read_back(&overlay, &mut seen, end).await.map_err(failed)?;
    Ok(Report { node_id: agent.node_id.to_string(), checks: evaluate(&seen) })
}

fn is_meant(network: &Network, wanted: &str) -> bool {
    network.name == wanted || network.id == wanted || wanted.len() >= 12 && network.id.starts_with(wanted)
}

/// The other hosts of the cluster.
fn peers(agent: &AgentState, view: &Observation) -> Vec<PeerSeen> {
    let others = agent.set.peers().filter(|peer| peer.id != agent.node_id);
    let mut peers: Vec<PeerSeen> = others
        .map(|peer| {
            let data_path: Option<Ipv4Addr> = peer.data_path_addr.parse().ok();
            PeerSeen {
                hostname: if peer.hostname.is_empty() { peer.id.to_string() } else { peer.hostname.clone() },
                down: peer.state() == NodeState::Down,
                left_out: data_path.is_some_and(|address| view.left_out.contains(&address)),
                control: peer.control_addr.clone(),
                data_path,
                ..PeerSeen::default()
            }
        })
        .collect();
    peers.sort_by(|a, b| a.hostname.cmp(&b.hostname));
    peers
}

/// How far this host is, once it had the time to come that far.
async fn standing<E: Engine>(engine: &E, overlay: &Overlay, agent: &AgentState) -> Standing {
    let told = (agent.stamp.revision, agent.stamp.term);
    let mut applied = overlay.applied_revision();
    let carried_out = async {
        drop(timeout(BEHIND, applied.wait_for(|applied| *applied >= told.0)).await);
        *applied.borrow()
    };
    let (applied, as_the_store) = tokio::join!(carried_out, is_told_all(engine, agent));
    Standing { connected: agent.connected, told, applied, as_the_store }
}

/// Whether this host acts on what its own manager's store says, within the time that it may be behind; nothing where
/// there is no manager.
async fn is_told_all<E: Engine>(engine: &E, agent: &AgentState) -> Option<bool> {
    let deadline = Instant::now() + BEHIND;
    loop {
        // A store that nobody leads may be behind its host.
        let store = engine.store(Consistency::Local).await.ok()?;
        let current = engine.agent().await.ok()?;
        if !current.connected || store.revision() < current.stamp.revision {
            return None;
        }
        if assignment(&store, &agent.node_id) == current.set {
            return Some(true);
        }
        if Instant::now() > deadline {
            return Some(false);
        }
        sleep(LOOK).await;
    }
}

/// Asks the other hosts at their control ports, and echoes on the underlay.
async fn ask_peers(seen: &Observed, view: &Observation) -> Vec<PeerSeen> {
    let mut peers = seen.peers.clone();
    let mut knocks = JoinSet::new();
    for (place, peer) in peers.iter().enumerate().filter(|(_, peer)| !peer.down) {
        let control = peer.control.clone();
        knocks.spawn(async move {
            let opened = timeout(CONNECT, TcpStream::connect(control)).await;
            // Hung up without a goodbye, so that nothing of it stays here.
            let opens = opened.is_ok_and(|stream| stream.is_ok_and(|stream| stream.set_zero_linger().is_ok()));
            (place, opens)
        });
    }
    let asked: Vec<(usize, Ipv4Addr)> =
        peers.iter().enumerate().filter(|(_, p)| !p.down).filter_map(|(n, p)| Some((n, p.data_path?))).collect();
    let full = u16::try_from(seen.underlay_mtu).unwrap_or(u16::MAX).max(SMALL);
    let lengths = [SMALL, full].into_iter();
    let echoes =
        asked.iter().flat_map(|(_, to)| lengths.clone().map(|length| Echo { to: (*to).into(), length })).collect();
    if let Some(reached) = echo_from(&view.host, echoes).await {
        for ((place, _), reached) in asked.iter().zip(reached.chunks(2)) {
            peers[*place].underlay = Some((reached[0], reached[1]));
        }
    }
    // Where the full length does not get through, the longest usual one that does is named.
    let narrow: Vec<(usize, Ipv4Addr)> = asked
        .into_iter()
        .filter(|(place, _)| {
            peers[*place].underlay.is_some_and(|(small, f)| small == Reached::Yes && f != Reached::Yes)
        })
        .collect();
    let shorter: Vec<u16> = USUAL.into_iter().filter(|length| *length < full).collect();
    let echoes =
        narrow.iter().flat_map(|(_, to)| shorter.iter().map(|length| Echo { to: (*to).into(), length: *length }));
    let echoes: Vec<Echo> = echoes.collect();
    if !echoes.is_empty()
        && let Some(reached) = echo_from(&view.host, echoes).await
    {
        for ((place, _), reached) in narrow.iter().zip(reached.chunks(shorter.len())) {
            let passed = shorter.iter().zip(reached).filter(|(_, reached)| **reached == Reached::Yes);
            peers[*place].fits = passed.map(|(length, _)| *length).max();
        }
    }
    while let Some(knocked) = knocks.join_next().await {
        if let Ok((place, opens)) = knocked {
            peers[place].opens = Some(opens);
        }
    }
    peers
}

/// Echoes from a namespace; nothing when it cannot be asked from.
async fn echo_from(namespace: &NetNs, echoes: Vec<Echo>) -> Option<Vec<Reached>> {
    let namespace = namespace.try_clone().ok()?;
    tokio::task::spawn_blocking(move || echo(&namespace, &echoes, ECHO).ok()).await.ok()?
}

/// From a task that has a way out, asks a host that this one reaches.
async fn ask_outside(seen: &Observed, view: &Observation) -> Option<WayOut> {
    let reached = |peer: &&PeerSeen| peer.underlay.is_some_and(|(small, _)| small == Reached::Yes);
    let to = seen.peers.iter().find(reached)?.data_path?;
    let way_out = |task: &&overlay_net::Connected| {
        task.interfaces.iter().any(|interface| interface.network == overlay_net::plan::names::EGRESS)
    };
    let task = view.tasks.iter().find(way_out)?;
    let reached = echo_from(&task.namespace, vec![Echo { to: to.into(), length: SMALL }]).await?;
    Some(WayOut { task: task.config.task.clone(), to, reached: *reached.first()? })
}

/// Looks at each network, and once more where something seems wrong: what is asked about may change while one asks.
async fn look_at_networks(overlay: &Overlay, seen: &Observed, chosen: &[String], end: Instant) -> Vec<NetworkSeen> {
    let mut all: BTreeMap<String, NetworkSeen> = BTreeMap::new();
    let mut again: Vec<String> = chosen.to_vec();
    for _ in 0..2 {
        let Ok(view) = overlay.observe().await else { break };
        let view = Arc::new(view);
        let mut looks = JoinSet::new();
        let mut queue = std::mem::take(&mut again).into_iter();
        loop {
            while looks.len() < AT_ONCE
                && let Some(id) = queue.next()
            {
                let view = Arc::clone(&view);
                looks.spawn_blocking(move || look(&view, &id).map(|seen| (id, seen)));
            }
            // Half of the time is for a second look.
            match timeout_at(end - 2 * ECHO, looks.join_next()).await {
                Ok(Some(Ok(Some((id, network))))) => {
                    if on_network(&network, seen).iter().any(|line| line.result == Verdict::Wrong) {
                        again.push(id.clone());
                    }
                    all.insert(id, network);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if Instant::now() + NAMES + 2 * ECHO > end {
            break;
        }
    }
    chosen.iter().filter_map(|id| all.remove(id)).collect()
}

/// Asks all that can be asked on one network. Blocks.
fn look(view: &Observation, id: &str) -> Option<NetworkSeen> {
    let network = Arc::clone(view.desired.networks.iter().find(|network| network.id == id)?);
    let on_it = |task: &&overlay_net::Connected| task.config.attachments.iter().any(|a| a.network == id);
    let task = view.tasks.iter().find(on_it);
    let mtu = u16::try_from(network.room().mtu(view.underlay_mtu)).unwrap_or(u16::MAX).max(SMALL);
    let mut seen = NetworkSeen {
        left_out: view.left_out.clone(),
        without_key: view.desired.without_key(&network),
        from: task.map(|task| task.config.task.clone()),
        names: None,
        vips: None,
        paths: None,
        mtu,
        network,
    };
    if let Some(task) = task {
        let names: Vec<String> = expected_names(&seen.network, &seen.left_out).into_keys().collect();
        let families = if seen.network.beside().is_some() { Families::Both } else { Families::Four };
        let answers = resolve(&task.namespace, &names, families, NAMES).ok();
        seen.names = answers.map(|answers| names.into_iter().zip(answers).collect());
        seen.vips = try_vips(&seen.network, &task.namespace);
    }
    let own_place = seen.network.ingress && seen.network.host_address.is_some();
    let from = if own_place { Some(&view.host) } else { task.map(|task| &task.namespace) };
    seen.paths = from.and_then(|from| try_paths(&seen.network, view.data_path_addr, from, mtu));
    Some(seen)
}

/// An address of a network, and the IPv6 address beside it where there is one.
fn both(network: &Network, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
    let six = network.beside().and_then(|beside| beside.address(address));
    std::iter::once(IpAddr::from(address)).chain(six.map(IpAddr::from))
}

fn try_vips(network: &Network, from: &NetNs) -> Option<Vec<(String, IpAddr, Reached)>> {
    let serves = |service: &&Arc<overlay_net::Service>| service.endpoints.iter().any(|endpoint| endpoint.serving);
    let vips = network.services.iter().filter(serves).filter_map(|service| Some((service.name.clone(), service.vip?)));
    let vips = vips.take(VIPS).flat_map(|(name, vip)| both(network, vip).map(move |vip| (name.clone(), vip)));
    let vips: Vec<(String, IpAddr)> = vips.collect();
    let echoes: Vec<Echo> = vips.iter().map(|(_, vip)| Echo { to: *vip, length: SMALL }).collect();
    let reached = echo(from, &echoes, ECHO).ok()?;
    Some(vips.into_iter().zip(reached).map(|((service, vip), reached)| (service, vip, reached)).collect())
}

/// Asks some addresses behind each other host: first those that stay, then tasks that serve, then what is left.
fn try_paths(network: &Network, own: Ipv4Addr, from: &NetNs, mtu: u16) -> Option<Paths> {
    let endpoints = || network.services.iter().flat_map(|service| &service.endpoints);
    let tasks: BTreeSet<Ipv4Addr> = endpoints().map(|endpoint| endpoint.address).collect();
    let serving: BTreeSet<Ipv4Addr> = endpoints().filter(|e| e.serving).map(|endpoint| endpoint.address).collect();
    let mut behind: BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> = BTreeMap::new();
    for station in network.stations.iter().filter(|station| station.host != own) {
        behind.entry(station.host).or_default().push(station.address);
    }
    for addresses in behind.values_mut() {
        addresses.sort_by_key(|address| (tasks.contains(address), !serving.contains(address), *address));
        addresses.truncate(CANDIDATES);
    }
    let pairs: Vec<(Ipv4Addr, IpAddr)> = behind
        .iter()
        .flat_map(|(host, addresses)| addresses.iter().map(|address| (*host, *address)))
        .flat_map(|(host, address)| both(network, address).map(move |address| (host, address)))
        .collect();
    let echoes = pairs.iter().flat_map(|(_, to)| [SMALL, mtu].map(|length| Echo { to: *to, length }));
    let reached = echo(from, &echoes.collect::<Vec<_>>(), ECHO).ok()?;
    let mut paths = Paths::new();
    for ((host, address), reached) in pairs.into_iter().zip(reached.chunks(2)) {
        paths.entry(host).or_default().push((address, reached[0], reached[1]));
    }
    Some(paths)
}

/// Reads back what the kernel has, place by place, so that the overlay's other work goes on between. What there is no time
/// for is not read.
async fn read_back(overlay: &Overlay, seen: &mut Observed, end: Instant) -> Result<(), overlay_net::OverlayError> {
    let view = overlay.observe().await?;
    let text = |error: overlay_net::OverlayError| crate::chain(&error);
    seen.audit = view.audit;
    for task in &view.tasks {
        for interface in &task.interfaces {
            seen.held.push((interface.network.clone(), interface.address.addr(), task.config.task.clone()));
        }
    }
    let tasks =
        view.tasks.iter().map(|task| (format!("task {}", task.config.task), Place::Task(task.config.task.clone())));
    let places = [("links".to_owned(), Place::Links), ("host".to_owned(), Place::Host)];
    seen.firewalls = overlay.examine_firewalls().await.map_err(text);
    for (name, place) in places.into_iter().chain(tasks) {
        let Ok(read) = timeout_at(end, overlay.examine(place)).await else { break };
        seen.kernel.insert(name, read.map_err(text));
    }
    Ok(())
}
