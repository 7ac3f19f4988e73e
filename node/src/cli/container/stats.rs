//! `shoal container stats`: Docker's table of what containers use.

use std::io::IsTerminal;

use clap::Args;
use serde_json::Value;

use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::output::{self, List, ListFormat};
use crate::cli::values;

/// Begins a terminal's screen anew.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Flags of `shoal container stats`.
#[derive(Args, Debug)]
pub(super) struct StatsArgs {
    /// Look once
    #[arg(long)]
    no_stream: bool,
    #[command(flatten)]
    format: ListFormat,
    /// [default: all that run]
    #[arg(value_name = "CONTAINER", value_parser = values::name)]
    containers: Vec<String>,
}

pub(super) async fn run(client: &Client, args: StatsArgs) -> Result<(), CliError> {
    let table = args.format.format.is_none() && !args.format.quiet;
    loop {
        let names = match args.containers.is_empty() {
            true => running(client).await?,
            false => args.containers.clone(),
        };
        // Each answer takes a second: the engine looks twice.
        let looks = names.iter().map(|name| look(client, name));
        let (mut list, mut errors) = (new_list(), Vec::new());
        for found in futures_util::future::join_all(looks).await {
            match found {
                Ok(stats) => list.row(row(&stats, &args.format)),
                Err(error) => errors.push(error),
            }
        }
        if table && !args.no_stream && std::io::stdout().is_terminal() {
            output::text(CLEAR)?;
        }
        list.print(&args.format)?;
        if args.no_stream || !args.containers.is_empty() && errors.len() == names.len() {
            return CliError::all(errors);
        }
        if names.is_empty() {
            // With nothing to ask the engine for, this would not wait at all.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}

async fn running(client: &Client) -> Result<Vec<String>, CliError> {
    let all: Vec<Value> = client.get("/containers/json").await?;
    Ok(all.iter().filter_map(|one| one["Id"].as_str().map(str::to_owned)).collect())
}

async fn look(client: &Client, name: &str) -> Result<Value, CliError> {
    client.get(&route(&["containers", name, "stats"], &[("stream", "0")])).await
}

fn new_list() -> List {
    List::new(&[
        ("CONTAINER ID", "ID"),
        ("NAME", "Name"),
        ("CPU %", "CPUPerc"),
        ("MEM USAGE / LIMIT", "MemUsage"),
        ("MEM %", "MemPerc"),
        ("NET I/O", "NetIO"),
        ("BLOCK I/O", "BlockIO"),
        ("PIDS", "PIDs"),
    ])
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Hundredths of a percent of `whole`; 0 of nothing.
fn percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

fn row(stats: &Value, format: &ListFormat) -> [String; 8] {
    let (memory, limit) = (memory(&stats["memory_stats"]), number(&stats["memory_stats"]["limit"]));
    let networks = stats["networks"].as_object().into_iter().flatten();
    let (mut received, mut sent) = (0, 0);
    for (_, network) in networks {
        received += number(&network["rx_bytes"]);
        sent += number(&network["tx_bytes"]);
    }
    let (mut read, mut written) = (0, 0);
    for entry in stats["blkio_stats"]["io_service_bytes_recursive"].as_array().into_iter().flatten() {
        match entry["op"].as_str().unwrap_or_default().to_ascii_lowercase().as_str() {
            "read" => read += number(&entry["value"]),
            "write" => written += number(&entry["value"]),
            _ => {}
        }
    }
    [
        format.id(stats["id"].as_str().unwrap_or_default()),
        stats["name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned(),
        cpu(stats),
        format!("{} / {}", values::bytes(memory), values::bytes(limit)),
        percent(memory, limit),
        format!("{} / {}", values::bytes(received), values::bytes(sent)),
        format!("{} / {}", values::bytes(read), values::bytes(written)),
        number(&stats["pids_stats"]["current"]).to_string(),
    ]
}

/// Without what the kernel keeps of files and would give up at once, as Docker counts it.
fn memory(memory: &Value) -> u64 {
    let idle = memory["stats"]["total_inactive_file"].as_u64().or_else(|| memory["stats"]["inactive_file"].as_u64());
    let usage = number(&memory["usage"]);
    usage.saturating_sub(idle.filter(|idle| *idle < usage).unwrap_or_default())
}

/// 100 % is one processor.
fn cpu(stats: &Value) -> String {
    let (now, before) = (&stats["cpu_stats"], &stats["precpu_stats"]);
    let used = |cpu: &Value| number(&cpu["cpu_usage"]["total_usage"]);
    let part = used(now).saturating_sub(used(before));
    let whole = number(&now["system_cpu_usage"]).saturating_sub(number(&before["system_cpu_usage"]));
    percent(part.saturating_mul(number(&now["online_cpus"])), whole)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_of_counters() {
        let stats = json!({
            "id": "0123456789abcdef", "name": "/web.1", "pids_stats": {"current": 3},
            "cpu_stats": {"cpu_usage": {"total_usage": 1500}, "system_cpu_usage": 20_000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 500}, "system_cpu_usage": 10_000},
            "memory_stats": {"usage": 3 << 20, "limit": 8 << 20, "stats": {"inactive_file": 1 << 20}},
            "networks": {"eth0": {"rx_bytes": 1024, "tx_bytes": 0}, "eth1": {"rx_bytes": 1024, "tx_bytes": 5}},
            "blkio_stats": {"io_service_bytes_recursive": [
                {"op": "Read", "value": 2048}, {"op": "write", "value": 1}, {"op": "Total", "value": 9}]},
        });
        let row = row(&stats, &ListFormat::default());
        let expected =
            ["0123456789ab", "web.1", "20.00%", "2.0MiB / 8.0MiB", "25.00%", "2.0KiB / 5B", "2.0KiB / 1B", "3"];
        assert_eq!(row, expected.map(str::to_owned));
    }

    #[test]
    fn one_that_does_not_run() {
        let row = row(&json!({"id": "a", "name": "/x", "memory_stats": {}}), &ListFormat::default());
        assert_eq!((row[2].as_str(), row[4].as_str(), row[7].as_str()), ("0.00%", "0.00%", "0"));
    }
}
