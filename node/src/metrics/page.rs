//! The names of everything that is told. `docs/metrics.md` lists them; a test compares the two.

use deploy::store::KeyKind;
use deploy::turn::Scope;
use raft::Role;

use super::readings::{AgentReadings, ManagerReadings, Readings};
use super::text::Kind::{Counter, Gauge, Histogram};
use super::text::Page;
use crate::docker_api;
use crate::docker_api::convert::task_state_name;

/// The page of this moment.
pub(super) fn render(readings: &Readings) -> String {
    let mut page = Page::default();
    page.family("shoal_build_info", Gauge, "Always 1; the label is the release.")
        .with(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    api(&mut page, &readings.api);
    if let Some(expiry) = readings.certificate_expiry {
        let name = "shoal_certificate_expiry_timestamp_seconds";
        page.family(name, Gauge, "When this node's certificate runs out, Unix time.")
            .value(u64::try_from(expiry).unwrap_or(0));
    }
    if let Some((stats, members)) = &readings.gossip {
        gossip(&mut page, stats, members);
    }
    if let Some(readings) = &readings.agent {
        agent(&mut page, readings);
    }
    if let Some(readings) = &readings.manager {
        raft(&mut page, readings);
        leader(&mut page, readings);
        sessions(&mut page, readings);
        store(&mut page, readings);
    }
    page.finish()
}

fn api(page: &mut Page, api: &docker_api::Counters) {
    let mut requests = page.family("shoal_api_requests_total", Counter, "Answers of the API, by class of status.");
    for (class, answers) in api.answers() {
        requests = requests.with(&[("class", class)], answers);
    }
    page.family("shoal_api_connections", Gauge, "Open connections of the API.").value(api.connections());
    let name = "shoal_api_connections_refused_total";
    page.family(name, Counter, "Connections of the API that were turned away because too many are open.")
        .value(api.refused());
}

fn gossip(page: &mut Page, stats: &gossip::Stats, members: &gossip::Members) {
    let suspect = members.values().filter(|member| member.alive && member.suspect).count() as u64;
    let dead = members.values().filter(|member| !member.alive).count() as u64;
    page.family("shoal_gossip_members", Gauge, "Other hosts, by what the gossip thinks of them.")
        .with(&[("state", "alive")], members.len() as u64 - suspect - dead)
        .with(&[("state", "suspect")], suspect)
        .with(&[("state", "dead")], dead);
    page.family("shoal_gossip_health", Gauge, "How much this host distrusts itself, 0 (not at all) to 4.")
        .value(stats.health.into());
    let mut counter = |name, help, value| page.family(name, Counter, help).value(value);
    counter("shoal_gossip_probes_failed_total", "Own probes that nobody answered.", stats.probes_failed);
    counter("shoal_gossip_suspicions_total", "Times that a host became suspect.", stats.suspicions);
    counter("shoal_gossip_refutations_total", "Suspects that said that they live.", stats.refutations);
    counter("shoal_gossip_deaths_total", "Hosts that were declared dead.", stats.deaths);
    counter("shoal_gossip_rejoins_total", "Times that this host was declared dead and came back.", stats.rejoins);
    counter(
        "shoal_gossip_syncs_total",
        "Comparisons with another host's table that brought something new.",
        stats.syncs,
    );
    counter("shoal_gossip_late_total", "Times that this process was late for its own timers.", stats.late);
    counter("shoal_gossip_packets_sent_total", "Packets sent.", stats.sent);
    counter("shoal_gossip_bytes_sent_total", "Bytes in them.", stats.sent_bytes);
    counter("shoal_gossip_packets_unsent_total", "Packets that could not be sent.", stats.send_failed);
    counter("shoal_gossip_packets_received_total", "Packets received, the refused ones included.", stats.received);
    counter("shoal_gossip_bytes_received_total", "Bytes in them.", stats.received_bytes);
    counter("shoal_gossip_events_lost_total", "Events that nobody fetched in time.", stats.events_lost);
    page.family("shoal_gossip_round_trip_seconds", Histogram, "Round trips of own probes.")
        .distribution(&[], &(&stats.round_trips).into());
    let rejected = &stats.rejected;
    page.family("shoal_gossip_packets_rejected_total", Counter, "Packets that were refused, by reason.")
        .with(&[("reason", "unsealed")], rejected.unsealed)
        .with(&[("reason", "unknown_key")], rejected.unknown_key)
        .with(&[("reason", "forged")], rejected.forged)
        .with(&[("reason", "replayed")], rejected.replayed)
        .with(&[("reason", "malformed")], rejected.malformed)
        .with(&[("reason", "too_large")], rejected.too_large)
        .with(&[("reason", "forgotten")], rejected.forgotten)
        .with(&[("reason", "table_full")], rejected.table_full);
}

fn agent(page: &mut Page, readings: &AgentReadings) {
    let counters = &readings.counters;
    page.family("shoal_agent_connected", Gauge, "1 while this host has a session with a manager.")
        .value(counters.connected.get());
    let name = "shoal_agent_sessions_total";
    page.family(name, Counter, "Sessions that opened; all but the first are re-attachments.")
        .value(counters.sessions.get());
    let mut tasks = page.family("shoal_agent_tasks", Gauge, "Tasks of this host, by state.");
    for (state, number) in counters.tasks() {
        tasks = tasks.with(&[("state", task_state_name(state))], number);
    }
    page.family("shoal_agent_starts_total", Counter, "Containers of tasks that started.").value(counters.starts.get());
    let name = "shoal_agent_restarts_total";
    page.family(name, Counter, "Containers that were started again on this host without a manager.")
        .value(counters.restarts.get());
    let name = "shoal_agent_start_failures_total";
    page.family(name, Counter, "Tasks that could not be made ready or not be started.")
        .value(counters.start_failures.get());
    page.family("shoal_agent_prepare_seconds", Histogram, "Making a task ready: image, container, networks.")
        .distribution(&[], &counters.prepare.read());
    page.family("shoal_agent_start_seconds", Histogram, "Starting a task that is ready.")
        .distribution(&[], &counters.start.read());
}

fn raft(page: &mut Page, readings: &ManagerReadings) {
    let status = &readings.status;
    let mut gauge = |name, help, value: u64| page.family(name, Gauge, help).value(value);
    gauge("shoal_raft_is_leader", "1 on the leader.", u64::from(status.role == Role::Leader));
    gauge("shoal_raft_has_leader", "1 while this manager knows a leader.", u64::from(status.leader.is_some()));
    gauge("shoal_raft_term", "Raft's term.", status.term);
    gauge("shoal_raft_voters", "Managers with a vote.", status.voters.len() as u64);
    gauge("shoal_raft_learners", "Managers without a vote.", status.learners.len() as u64);
    gauge("shoal_raft_last_log_index", "Index of the last entry of the log.", status.last_log);
    gauge("shoal_raft_committed_index", "Index up to which this manager knows entries as committed.", status.committed);
    gauge("shoal_raft_applied_index", "Index up to which this manager has applied entries.", status.applied);
    let lag = status.committed.saturating_sub(status.applied);
    gauge("shoal_raft_apply_lag_entries", "Committed entries that are not applied here yet.", lag);
    let counted = &readings.raft;
    let mut counter = |name, help, value| page.family(name, Counter, help).value(value);
    counter("shoal_raft_leader_changes_total", "Changes of the leader that this manager saw.", counted.leader_changes);
    counter("shoal_raft_elections_total", "Times that this manager stood for election.", counted.elections);
    let help = "Questions for a vote that were refused before any term changed.";
    counter("shoal_raft_pre_votes_refused_total", help, counted.pre_votes_refused);
    counter("shoal_raft_votes_refused_total", "Votes that were refused.", counted.votes_refused);
    counter("shoal_raft_entries_applied_total", "Entries that were applied.", counted.applied);
    let help = "Own proposals that were refused or whose outcome is unknown.";
    counter("shoal_raft_not_committed_total", help, counted.not_committed);
    counter("shoal_raft_log_written_bytes_total", "Bytes written to the log.", counted.log_bytes);
    let help = "Requests with entries that were sent to other managers.";
    counter("shoal_raft_appends_sent_total", help, counted.appends_sent);
    counter("shoal_raft_entries_sent_total", "Entries in them.", counted.entries_sent);
    counter("shoal_raft_bytes_sent_total", "Bytes of payload in them.", counted.bytes_sent);
    let help = "Requests with entries that came from leaders.";
    counter("shoal_raft_appends_received_total", help, counted.appends_received);
    counter("shoal_raft_entries_received_total", "Entries in them.", counted.entries_received);
    counter("shoal_raft_bytes_received_total", "Bytes of payload in them.", counted.bytes_received);
    let help = "Calls to other managers that failed or were not answered in time.";
    counter("shoal_raft_calls_failed_total", help, counted.calls_failed);
    let help = "Snapshots of other managers that were put in place here.";
    counter("shoal_raft_snapshots_received_total", help, counted.snapshots_received);
    let help = "Snapshots that other managers took from here.";
    counter("shoal_raft_snapshots_sent_total", help, counted.snapshots_sent);
    page.family("shoal_raft_commit_seconds", Histogram, "From an own proposal until it was applied; on the leader.")
        .distribution(&[], &(&counted.commit).into());
    page.family("shoal_raft_sync_seconds", Histogram, "Syncs of the log to disk.")
        .distribution(&[], &(&counted.sync).into());
}

fn leader(page: &mut Page, readings: &ManagerReadings) {
    let counters = &readings.counters;
    page.family("shoal_leader_turn_seconds", Histogram, "The decision on a request, the brain's pass included.")
        .distribution(&[], &counters.turn.read());
    page.family("shoal_leader_passes_total", Counter, "Turns of the leader, by how much the brain looked at.")
        .with(&[("scope", "full")], counters.passes(Scope::Full).get())
        .with(&[("scope", "touched")], counters.passes(Scope::Touched).get());
    page.family("shoal_leader_queue_depth", Gauge, "Requests that wait for the leader's turn.").value(readings.queued);
    page.family("shoal_leader_entries_in_flight", Gauge, "Entries that are proposed and not committed yet.")
        .value(counters.in_flight.get());
    page.family("shoal_leader_busy_total", Counter, "Requests that were refused because the queue was full.")
        .value(counters.busy.get());
    page.family("shoal_leader_nodes_down_total", Counter, "Hosts that this manager declared Down.")
        .value(counters.downs.get());
    page.family("shoal_leader_detection_seconds", Histogram, "From a host's last sign of life until it was Down.")
        .distribution(&[], &counters.detection.read());
    page.family("shoal_leader_silence_seconds", Histogram, "How long hosts were silent before they were heard again.")
        .distribution(&[], &counters.silence.read());
    let name = "shoal_leader_clock_difference_seconds";
    page.family(
        name,
        Gauge,
        "Largest difference between a host's clock and the leader's, whole seconds; on the leader.",
    )
    .value(counters.clock_difference.get());
}

fn sessions(page: &mut Page, readings: &ManagerReadings) {
    let counters = &readings.counters;
    page.family("shoal_sessions", Gauge, "Agents that are attached to this manager.").value(counters.sessions.get());
    let mut counter = |name, help, value| page.family(name, Counter, help).value(value);
    counter("shoal_sessions_opened_total", "Sessions that agents opened here.", counters.sessions_opened.get());
    let help = "Sessions that were turned away because too many are open.";
    counter("shoal_sessions_refused_total", help, counters.sessions_refused.get());
    let help = "Assignment sets and differences that were sent.";
    counter("shoal_session_updates_total", help, counters.updates.get());
    counter("shoal_session_update_bytes_total", "Bytes of them.", counters.update_bytes.get());
    let help = "Batches of task statuses that were committed.";
    counter("shoal_session_status_batches_total", help, counters.status_batches.get());
    counter("shoal_session_statuses_total", "Task statuses in them.", counters.statuses.get());
}

fn store(page: &mut Page, readings: &ManagerReadings) {
    let store = &readings.store;
    page.family("shoal_store_revision", Gauge, "Revision of the replicated store.").value(store.revision());
    let mut objects = page.family("shoal_store_objects", Gauge, "Objects of the replicated store, by kind.");
    for (kind, name) in [
        (KeyKind::Node, "node"),
        (KeyKind::Service, "service"),
        (KeyKind::Task, "task"),
        (KeyKind::Network, "network"),
        (KeyKind::Secret, "secret"),
        (KeyKind::Config, "config"),
        (KeyKind::Registry, "registry"),
    ] {
        objects = objects.with(&[("kind", name)], store.count(kind) as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;

    /// What a manager tells, with nothing counted yet.
    fn everything() -> Readings {
        let status = raft::Status {
            id: 1,
            term: 7,
            role: Role::Leader,
            leader: None,
            last_log: 12,
            applied: 9,
            committed: 11,
            voters: Vec::new(),
            unsettled: Vec::new(),
            learners: Vec::new(),
            heard: Default::default(),
            stopped: false,
        };
        Readings {
            api: Arc::default(),
            certificate_expiry: Some(1_800_000_000),
            gossip: Some(Default::default()),
            agent: Some(AgentReadings { counters: Arc::default() }),
            manager: Some(ManagerReadings {
                status,
                raft: raft::Counters { leader_changes: 2, ..Default::default() },
                counters: Arc::default(),
                queued: 3,
                store: Default::default(),
            }),
        }
    }

    /// Names with their kinds, as the page says them.
    fn told(page: &str) -> BTreeSet<(String, String)> {
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
    }

    #[test]
    fn the_values_are_on_the_page() {
        let page = render(&everything());
        for line in [
            "shoal_raft_is_leader 1",
            "shoal_raft_term 7",
            "shoal_raft_apply_lag_entries 2",
            "shoal_leader_queue_depth 3",
            "shoal_raft_leader_changes_total 2",
            "shoal_certificate_expiry_timestamp_seconds 1800000000",
            "shoal_agent_tasks{state=\"running\"} 0",
            "shoal_store_objects{kind=\"task\"} 0",
        ] {
            assert!(page.lines().any(|told| told == line), "{line} in {page}");
        }
    }

    #[test]
    fn a_node_outside_of_clusters_tells_of_its_api() {
        let page = render(&Readings::default());
        assert!(page.contains("shoal_api_requests_total{class=\"2xx\"} 0"), "{page}");
        assert!(!page.contains("shoal_raft"), "{page}");
    }

    #[test]
    fn names_follow_the_conventions() {
        let page = render(&everything());
        let told = told(&page);
        assert_eq!(told.len(), page.matches("# TYPE").count(), "a name is told twice");
        for (name, kind) in told {
            assert!(name.starts_with("shoal_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        }
    }

    #[test]
    fn the_page_and_its_document_say_the_same() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let document = std::fs::read_to_string(path).unwrap();
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `shoal_"));
        let documented: BTreeSet<(String, String)> = rows
            .map(|row| {
                let mut cells = row.split('|').map(str::trim);
                let name = cells.next().unwrap().trim_end_matches('`');
                let name = name.split('{').next().unwrap();
                (format!("shoal_{name}"), cells.next().unwrap().to_owned())
            })
            .collect();
        assert_eq!(told(&render(&everything())), documented);
    }
}
