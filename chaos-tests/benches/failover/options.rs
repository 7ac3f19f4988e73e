//! What the command line asks for.

use std::time::Duration;

/// Times that a cluster is formed, at the most.
pub(crate) const FORMING_RUNS: u32 = 10;

pub(crate) const HELP: &str = "\
Measures how fast a cluster of 3 managers and 2 workers gets over a loss.

cargo bench -p chaos-tests --bench failover -- [OPTIONS]

  --runs N       runs of each scenario (default 20; forming at most 10)
  --peer-runs N  runs of each scenario on Docker Swarm (default 3; 0 leaves it out; each takes about a minute)
  --only LIST    scenarios, separated by commas (default all):
                   forming      init and four joins, one after another, until all are ready
                   host         power-off of a worker with 10 tasks
                   leader-kill  SIGKILL of everything on the leader's host, 10 tasks on it
                   leader-link  the same after its cable was pulled
                   reattach     power-off of a manager that a worker's agent is attached to (Shoal alone)
                   headless     one run without any manager (Shoal alone; not among all)
  --headless S   seconds without managers (default 600)
  --timeline     prints what the hosts logged from the loss on
  --help         this text

Needs root. The exit code is 1 when a target was missed.";

/// Something that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Forming,
    Host,
    LeaderKill,
    LeaderLink,
    Reattach,
    Headless,
}

impl Scenario {
    const ALL: [(&str, Scenario); 6] = [
        ("forming", Scenario::Forming),
        ("host", Scenario::Host),
        ("leader-kill", Scenario::LeaderKill),
        ("leader-link", Scenario::LeaderLink),
        ("reattach", Scenario::Reattach),
        ("headless", Scenario::Headless),
    ];
    /// Those that begin with a cluster.
    pub(crate) const NEED_A_CLUSTER: [Scenario; 4] =
        [Scenario::Host, Scenario::LeaderKill, Scenario::LeaderLink, Scenario::Reattach];
}

/// The command line.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) runs: u32,
    pub(crate) peer_runs: u32,
    pub(crate) timeline: bool,
    /// How long there is no manager.
    pub(crate) headless: Duration,
    only: Vec<Scenario>,
}

impl Options {
    /// Reads the command line; nothing when it asks for help.
    ///
    /// # Errors
    /// Says what cannot be understood.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
        let mut options =
            Options { runs: 20, peer_runs: 3, timeline: false, headless: Duration::from_secs(600), only: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--runs" => options.runs = number(&value()?)?,
                "--peer-runs" => options.peer_runs = number(&value()?)?,
                "--headless" => options.headless = Duration::from_secs(number(&value()?)?.into()),
                "--timeline" => options.timeline = true,
                "--only" => options.only = scenarios(&value()?)?,
                "--help" | "-h" => return Ok(None),
                // Cargo adds it.
                "--bench" => {}
                other => return Err(format!("unknown option {other}")),
            }
        }
        Ok(Some(options))
    }

    /// Whether a scenario is to be measured.
    pub(crate) fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_empty() && scenario != Scenario::Headless || self.only.contains(&scenario)
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn scenarios(list: &str) -> Result<Vec<Scenario>, String> {
    let find = |name: &str| {
        let found = Scenario::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, scenario)| *scenario).ok_or_else(|| format!("unknown scenario {name:?}"))
    };
    list.split(',').map(find).collect()
}
