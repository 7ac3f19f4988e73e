//! `shoal node ls` and `shoal node inspect --pretty`.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::output::{self, List, ListFormat};
use crate::cli::{filters, tasks, values};
use crate::docker_api::wire::Node;

pub(super) async fn list(client: &Client, filter: &[String], format: &ListFormat) -> Result<(), CliError> {
    let filters = filters(filter)?;
    let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
    let mut nodes: Vec<Node> = client.get(&route(&["nodes"], &query)).await?;
    let info: Value = client.get("/info").await?;
    nodes.sort_by_key(|n| (n.description.clone().unwrap_or_default().hostname, n.id.clone()));
    table(&nodes, info["Swarm"]["NodeID"].as_str().unwrap_or_default()).print(format)?;
    for remark in remarks(&nodes) {
        output::note(remark);
    }
    Ok(())
}

/// What is not as it should be with hosts that are there: a clock that is wrong, gossip that does not get through.
pub(super) fn remarks(nodes: &[Node]) -> Vec<String> {
    let remark = |node: &Node| {
        let status = node.status.clone().unwrap_or_default();
        let message = status.message.filter(|text| !text.is_empty() && status.state.as_deref() == Some("ready"))?;
        let hostname = node.description.clone().unwrap_or_default().hostname.unwrap_or_default();
        Some(output::printable(&format!("WARNING: host {hostname}: {message}")))
    };
    nodes.iter().filter_map(remark).collect()
}

fn table(nodes: &[Node], own: &str) -> List {
    let mut list = List::new(&[
        ("ID", "ID"),
        ("HOSTNAME", "Hostname"),
        ("STATUS", "Status"),
        ("AVAILABILITY", "Availability"),
        ("MANAGER STATUS", "ManagerStatus"),
        ("ENGINE VERSION", "EngineVersion"),
    ]);
    for node in nodes {
        let node = node.clone();
        let (id, description) = (node.id.unwrap_or_default(), node.description.unwrap_or_default());
        let manager = node.manager_status.map(|m| match m.leader {
            Some(true) => "Leader".to_owned(),
            _ => tasks::capital(&m.reachability.unwrap_or_default()),
        });
        list.row([
            if id == own { format!("{id} *") } else { id },
            description.hostname.unwrap_or_default(),
            tasks::capital(&node.status.unwrap_or_default().state.unwrap_or_default()),
            tasks::capital(&node.spec.unwrap_or_default().availability.unwrap_or_default()),
            manager.unwrap_or_default(),
            description.engine.unwrap_or_default().version.unwrap_or_default(),
        ]);
    }
    list
}

pub(super) fn describe(node: &Value) -> String {
    let mut out = String::new();
    let mut say = |key: &str, value: &Value| {
        let text = match value {
            Value::Null => return,
            Value::String(text) => output::printable(text),
            other => other.to_string(),
        };
        if !text.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{key:<20}{text}");
        }
    };
    let (description, status) = (&node["Description"], &node["Status"]);
    say("ID:", &node["ID"]);
    for (key, value) in node["Spec"]["Labels"].as_object().into_iter().flatten() {
        say("Label:", &format!("{key}={}", value.as_str().unwrap_or_default()).into());
    }
    say("Hostname:", &description["Hostname"]);
    say("Joined at:", &node["CreatedAt"]);
    say("State:", &status["State"]);
    say("Message:", &status["Message"]);
    say("Availability:", &node["Spec"]["Availability"]);
    say("Role:", &node["Spec"]["Role"]);
    say("Address:", &status["Addr"]);
    say("Manager address:", &node["ManagerStatus"]["Addr"]);
    say("Raft status:", &node["ManagerStatus"]["Reachability"]);
    say("Leader:", &node["ManagerStatus"]["Leader"]);
    say("Architecture:", &description["Platform"]["Architecture"]);
    let resources = &description["Resources"];
    say("CPUs:", &resources["NanoCPUs"].as_u64().map_or(Value::Null, |n| (n / 1_000_000_000).into()));
    say("Memory:", &resources["MemoryBytes"].as_u64().map_or(Value::Null, |n| values::bytes(n).into()));
    say("Engine:", &description["Engine"]["EngineVersion"]);
    for (key, value) in description["Engine"]["Labels"].as_object().into_iter().flatten() {
        say("Engine label:", &format!("{key}={}", value.as_str().unwrap_or_default()).into());
    }
    out + "\n"
}
