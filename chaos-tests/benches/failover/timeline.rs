//! What the hosts' logs say of a loss: all of them together, and the moments at which agents were attached.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use chaos_tests::bench;
use chaos_tests::hosts::{Cluster, Fault, Host};
use chaos_tests::peers::{LOOK, Rig};

use crate::rig::Shoal;

/// An agent is attached again within this time, or never.
const LIMIT: Duration = Duration::from_secs(60);
/// Log lines that are looked at.
const LINES: usize = 400;

/// What an agent without its manager came to.
pub(crate) struct Reattached {
    /// From the loss to its next session.
    pub(crate) took: Duration,
    /// The manager led.
    pub(crate) was_leader: bool,
}

/// When a line was written, since the epoch.
fn time_of(line: &str) -> Option<Duration> {
    bench::since_epoch(line.split_whitespace().next()?)
}

/// The lines of a host since a moment, with the time since then.
fn lines_since(host: &Host, since: SystemTime) -> Vec<(Duration, String)> {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = plain(&host.log_tail(LINES));
    let lines = text.lines().filter_map(|line| Some((time_of(line)?.checked_sub(since)?, line.to_owned())));
    lines.collect()
}

/// A text without the terminal's colours.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        out.push_str(&rest[..at]);
        rest = rest[at..].split_once('m').map_or("", |(_, after)| after);
    }
    out + rest
}

/// All that was logged since a moment, in order.
pub(crate) fn tell(cluster: &Cluster, what: &str, since: SystemTime) -> String {
    let mut all: Vec<(Duration, String)> = Vec::new();
    for host in cluster.hosts() {
        let lines = lines_since(host, since).into_iter();
        all.extend(lines.map(|(at, line)| {
            let said = line.split_once(char::is_whitespace).map_or("", |(_, said)| said);
            (at, format!("{:8.3} {} {}", at.as_secs_f64(), host.name(), said.trim_start()))
        }));
    }
    all.sort();
    let lines: Vec<String> = all.into_iter().map(|(_, line)| line).collect();
    format!("--- {what}\n{}", lines.join("\n"))
}

/// The node that a host's agent is attached to.
fn attached_to(host: &Host) -> Option<String> {
    let text = plain(&host.log_tail(LINES));
    let line = text.lines().rfind(|line| line.contains("agent::session: session opened"))?;
    let id = line.split("manager.id=").nth(1)?.split_whitespace().next()?;
    Some(id.trim_matches('"').to_owned())
}

/// Powers off a manager that a worker is attached to, and waits for the worker's next session.
pub(crate) async fn reattach(shoal: &Shoal) -> Result<Reattached> {
    // A manager that has only begun tells agents nothing before it has heard from a leader.
    tokio::time::sleep(crate::measure::CALM).await;
    let cluster = &shoal.cluster;
    let mut ids = Vec::new();
    for index in 0..crate::MANAGERS {
        ids.push(cluster.api(index).node_id().await?);
    }
    let worker = cluster.host(crate::MANAGERS);
    let attached = attached_to(worker).context("the worker is attached to nobody")?;
    let victim = ids.iter().position(|id| *id == attached).context("the worker is attached to no manager")?;
    let was_leader = crate::measure::leader(shoal, crate::MANAGERS).await? == victim;
    let (began, at) = (Instant::now(), SystemTime::now());
    cluster.begin(&Fault::PowerOff(victim))?;
    let took = loop {
        let opened = |(_, line): &&(Duration, String)| line.contains("agent::session: session opened");
        if let Some((after, _)) = lines_since(worker, at).iter().find(opened) {
            break *after;
        }
        ensure!(began.elapsed() < LIMIT, "the worker was not attached again");
        tokio::time::sleep(LOOK).await;
    };
    shoal.measured("agent without its manager", at);
    shoal.boot(victim).await?;
    cluster.wait_ready_at(victim, shoal.count()).await?;
    Ok(Reattached { took, was_leader })
}
