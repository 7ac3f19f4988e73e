//! A cluster whose hosts have no processor time to spare and whose network loses packets: what it believes of itself.
//! The benchmark `false_alarms` and a short test share this.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Cluster, Freshness, IMAGE, SOON, ServiceDraft};

/// The service whose tasks burn.
const SERVICE: &str = "burn";
/// How often the hosts' states are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// What happened in that time.
#[derive(Debug, Default, Clone)]
pub struct Alarms {
    /// Hosts that were declared Down, and those that were seen to be anything else than ready.
    pub downs: u64,
    /// Changes of the leader, as the manager that saw the most of them counts.
    pub leader_changes: u64,
    /// By how much the term grew.
    pub terms: u64,
    /// Times that a manager stood for election, all together.
    pub elections: u64,
    /// Times that a manager asked for votes in vain, because the others hear their leader.
    pub pre_votes_refused: u64,
    /// Suspicions of the gossip, summed over all hosts; each is one event seen by several.
    pub suspicions: u64,
    /// Deaths that the gossip believed in.
    pub deaths: u64,
    /// Own probes that failed.
    pub probes_failed: u64,
    /// Remarks "gossip blocked".
    pub blocked: u64,
    /// Sessions that were opened again.
    pub reattached: u64,
    /// Times that a daemon was late for its own timers.
    pub late: u64,
    /// The longest session silence was not longer than this (a bound of a histogram's bucket), in seconds.
    pub silence: f64,
}

/// Processes that take all the time that they get; they end with this.
#[derive(Debug, Default)]
pub struct Burners(Vec<Child>);

impl Burners {
    /// So many, outside of all hosts' cgroups.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn start(count: usize) -> Result<Burners> {
        let mut burners = Burners::default();
        for _ in 0..count {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            burners.0.push(command.spawn().context("cannot start a burner")?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The counters of all hosts at one moment.
struct Counts(Vec<String>);

impl Counts {
    fn read(cluster: &Cluster) -> Result<Counts> {
        Ok(Counts(cluster.hosts().iter().map(|host| Ok(host.metrics()?)).collect::<Result<_>>()?))
    }

    fn each(&self, name: &str) -> Vec<u64> {
        let value = |page: &String| page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        self.0.iter().map(|page| value(page).unwrap_or(0.0) as u64).collect()
    }

    fn sum(&self, name: &str) -> u64 {
        self.each(name).iter().sum()
    }

    fn max(&self, name: &str) -> u64 {
        self.each(name).into_iter().max().unwrap_or(0)
    }

    /// The bound of the highest bucket that grew since, over all hosts.
    fn highest(&self, before: &Counts, name: &str) -> f64 {
        let prefix = format!("{name}_bucket{{le=\"");
        let mut highest = 0.0_f64;
        for (page, old) in self.0.iter().zip(&before.0) {
            let buckets = |page: &str| -> Vec<(f64, u64)> {
                let lines = page.lines().filter_map(|line| line.strip_prefix(&prefix));
                lines
                    .filter_map(|rest| {
                        let (bound, count) = rest.split_once("\"} ")?;
                        Some((bound.replace("+Inf", "inf").parse().ok()?, count.trim().parse().ok()?))
                    })
                    .collect()
            };
            let (now, then) = (buckets(page), buckets(old));
            let mut below = 0;
            for (bound, count) in now {
                let before = then.iter().find(|(b, _)| *b == bound).map_or(0, |(_, count)| *count);
                let grown = count.saturating_sub(before);
                if grown > below {
                    highest = highest.max(bound);
                }
                below = grown;
            }
        }
        highest
    }
}

impl Cluster {
    /// Starves the hosts: `tasks` tasks burn, `burners` processes burn beside them, and `loss` of 100 packets are lost,
    /// for so long. `progress` hears of each look.
    ///
    /// # Errors
    /// When the cluster cannot be made so, or a host does not tell its counters any more.
    pub async fn starve(
        &self,
        length: Duration,
        tasks: u64,
        burners: usize,
        loss: u8,
        mut progress: impl FnMut(Duration, &Alarms),
    ) -> Result<Alarms> {
        let api = self.api(0);
        let mut spec = ServiceDraft::new(SERVICE, IMAGE, tasks).build();
        spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["WHOAMI_BURN=1"]);
        api.create_service(&spec).await?;
        let count = usize::try_from(tasks)?;
        let running = api.wait_running(SERVICE, count, &[], SOON).await?;
        self.lose_packets(loss)?;
        let burning = Burners::start(burners)?;
        let before = Counts::read(self)?;
        let begin = Instant::now();
        let mut not_ready = 0;
        let alarms = loop {
            tokio::time::sleep(LOOK.min(length.saturating_sub(begin.elapsed()))).await;
            // A read that fails is no alarm; the counters tell what happened.
            if let Ok(nodes) = api.nodes(Freshness::Local).await {
                not_ready += nodes.iter().filter(|node| node["Status"]["State"] != "ready").count() as u64;
            }
            let mut alarms = Alarms::between(&before, &Counts::read(self)?);
            alarms.downs += not_ready;
            alarms.blocked = self.blocked_remarks()?;
            progress(begin.elapsed(), &alarms);
            if begin.elapsed() >= length {
                break alarms;
            }
        };
        drop(burning);
        self.unblock()?;
        let after = api.wait_running(SERVICE, count, &[], SOON).await?;
        ensure!(running == after, "tasks were replaced: {running:?} by {after:?}");
        Ok(alarms)
    }

    /// How often a leader remarked that a host's gossip does not get through, since the daemons started.
    fn blocked_remarks(&self) -> Result<u64> {
        let mut count = 0;
        for host in self.hosts() {
            let log = std::fs::read_to_string(host.log_path())?;
            count += log.lines().filter(|line| line.contains("gossip with the host") && line.contains("true")).count();
        }
        Ok(count as u64)
    }
}

impl Alarms {
    fn between(before: &Counts, now: &Counts) -> Alarms {
        let grown = |name: &str| now.sum(name).saturating_sub(before.sum(name));
        let changes = now.each("shoal_raft_leader_changes_total ");
        let old = before.each("shoal_raft_leader_changes_total ");
        Alarms {
            downs: grown("shoal_leader_nodes_down_total "),
            leader_changes: changes.iter().zip(&old).map(|(now, old)| now.saturating_sub(*old)).max().unwrap_or(0),
            terms: now.max("shoal_raft_term ").saturating_sub(before.max("shoal_raft_term ")),
            elections: grown("shoal_raft_elections_total "),
            pre_votes_refused: grown("shoal_raft_pre_votes_refused_total "),
            suspicions: grown("shoal_gossip_suspicions_total "),
            deaths: grown("shoal_gossip_deaths_total "),
            probes_failed: grown("shoal_gossip_probes_failed_total "),
            blocked: 0,
            reattached: grown("shoal_agent_sessions_total "),
            late: grown("shoal_gossip_late_total "),
            silence: now.highest(before, "shoal_leader_silence_seconds"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_compared() {
        let page = |late: u64, buckets: [u64; 3]| {
            let [a, b, c] = buckets;
            Counts(vec![format!(
                "# HELP\nshoal_gossip_late_total {late}\nshoal_raft_term 3\n\
                 shoal_leader_silence_seconds_bucket{{le=\"0.25\"}} {a}\n\
                 shoal_leader_silence_seconds_bucket{{le=\"0.5\"}} {b}\n\
                 shoal_leader_silence_seconds_bucket{{le=\"+Inf\"}} {c}\n"
            )])
        };
        let alarms = Alarms::between(&page(2, [5, 6, 7]), &page(9, [8, 10, 11]));
        assert_eq!((alarms.late, alarms.terms, alarms.silence), (7, 0, 0.5));
        assert_eq!(Alarms::between(&page(2, [5, 6, 7]), &page(2, [5, 6, 8])).silence, f64::INFINITY);
    }
}
