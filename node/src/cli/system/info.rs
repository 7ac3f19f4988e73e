//! `shoal system info`.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::cli::{output, values};

pub(super) async fn run(client: Client, json: bool) -> Result<(), CliError> {
    let info: Value = client.get("/info").await?;
    if json { output::json(&info) } else { output::text(&describe(&info)) }
}

fn describe(info: &Value) -> String {
    let mut out = String::new();
    let mut say = |key: &str, value: &Value| {
        let text = match value {
            Value::Null => return,
            Value::String(text) => output::printable(text),
            other => other.to_string(),
        };
        if !text.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{:<20}{text}", format!("{key}:"));
        }
    };
    say("Name", &info["Name"]);
    say("Engine ID", &info["ID"]);
    say("Engine version", &info["ServerVersion"]);
    let swarm = &info["Swarm"];
    say("Cluster", &swarm["LocalNodeState"]);
    say("  Node ID", &swarm["NodeID"]);
    say("  Address", &swarm["NodeAddr"]);
    if swarm["LocalNodeState"] == "active" {
        say("  Manager", &swarm["ControlAvailable"]);
    }
    say("  Nodes", &swarm["Nodes"]);
    say("  Managers", &swarm["Managers"]);
    say("  Trouble", &swarm["Error"]);
    say("Timing", &info["Timing"]);
    say("Images", &info["Images"]);
    say("Containers", &info["Containers"]);
    say("  Running", &info["ContainersRunning"]);
    say("Data directory", &info["DockerRootDir"]);
    say("Operating system", &info["OperatingSystem"]);
    say("Kernel", &info["KernelVersion"]);
    say("Architecture", &info["Architecture"]);
    say("CPUs", &info["NCPU"]);
    say("Memory", &info["MemTotal"].as_u64().map_or(Value::Null, |n| values::bytes(n).into()));
    say("cgroup version", &info["CgroupVersion"]);
    for label in info["Labels"].as_array().into_iter().flatten() {
        say("Label", label);
    }
    for warning in info["Warnings"].as_array().into_iter().flatten() {
        say("Warning", warning);
    }
    out
}
