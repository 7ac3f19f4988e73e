//! `shoal service why`: where tasks are, and what speaks against each host.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::output::{self, List, ListFormat, printable};
use crate::cli::tasks::capital;

pub(super) async fn run(client: &Client, service: &str, json: bool) -> Result<(), CliError> {
    let why: Value = client.get(&route(&["shoal", "v1", "services", service, "why"], &[])).await?;
    if json {
        return output::json(&why);
    }
    output::text(&summary(&why))?;
    output::text("\nHosts, and whether one more task would fit:\n")?;
    hosts(&why).print(&ListFormat::default())?;
    output::text("\nTasks that are wanted:\n")?;
    tasks(&why).print(&ListFormat { no_trunc: true, ..ListFormat::default() })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn summary(why: &Value) -> String {
    let wanted = array(&why["Tasks"]).count();
    let running = array(&why["Tasks"]).filter(|t| t["State"] == "running").count();
    let fit = array(&why["Hosts"]).filter(|h| h["Fits"] == true).count();
    let all = array(&why["Hosts"]).count();
    let name = printable(&text(&why["Service"]));
    let mut out = format!("{name}: {running} of {wanted} tasks run; {fit} of {all} hosts could take one more.\n");
    let message = printable(&text(&why["Message"]));
    if !message.is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{message}");
    }
    out
}

fn hosts(why: &Value) -> List {
    let mut list = List::new(&[("HOST", "Hostname"), ("TASKS", "Tasks"), ("FITS", "Fits"), ("WHY NOT", "Reasons")]);
    for host in array(&why["Hosts"]) {
        let reasons: Vec<&str> = array(&host["Reasons"]).filter_map(Value::as_str).collect();
        let fits = if host["Fits"] == true { "yes" } else { "no" };
        let count = host["Tasks"].as_u64().unwrap_or_default().to_string();
        list.row([text(&host["Hostname"]), count, fits.to_owned(), reasons.join("; ")]);
    }
    list
}

fn tasks(why: &Value) -> List {
    let name = |id: &Value| {
        let host = array(&why["Hosts"]).find(|h| h["NodeID"] == *id || h["NodeId"] == *id);
        host.map_or_else(|| text(id), |h| text(&h["Hostname"]))
    };
    let mut list = List::new(&[("TASK", "Name"), ("HOST", "Node"), ("STATE", "State"), ("MESSAGE", "Message")]);
    for task in array(&why["Tasks"]) {
        let node = if task["NodeID"].is_null() { &task["NodeId"] } else { &task["NodeID"] };
        let host = name(node);
        let slot = task["Slot"].as_u64().unwrap_or_default();
        let place = if slot == 0 { host.clone() } else { slot.to_string() };
        let err = text(&task["Err"]);
        list.row([
            format!("{}.{place}", text(&why["Service"])),
            if host.is_empty() { "none yet".to_owned() } else { host },
            capital(&text(&task["State"])),
            if err.is_empty() { text(&task["Message"]) } else { err },
        ]);
    }
    list
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_speaks_against_a_host_is_told() {
        let why = json!({"Service": "web", "Message": "", "Hosts": [
            {"NodeId": "a", "Hostname": "host-1", "Tasks": 1, "Fits": true, "Reasons": []},
            {"NodeId": "b", "Hostname": "host-2", "Tasks": 0, "Fits": false, "Reasons": ["drained", "no memory"]}],
            "Tasks": [{"Slot": 1, "NodeId": "a", "State": "running", "Message": "started", "Err": ""},
                      {"Slot": 2, "NodeId": "", "State": "pending", "Message": "", "Err": "no suitable node"}]});
        assert_eq!(summary(&why), "web: 1 of 2 tasks run; 1 of 2 hosts could take one more.\n");
        let format = ListFormat { format: Some("{{.Hostname}} {{.Fits}} {{.Reasons}}".into()), ..Default::default() };
        assert_eq!(hosts(&why).render(&format).unwrap(), "host-1 yes \nhost-2 no drained; no memory\n");
        let format = ListFormat { format: Some("{{.Name}} {{.Node}} {{.Message}}".into()), ..Default::default() };
        assert_eq!(tasks(&why).render(&format).unwrap(), "web.1 host-1 started\nweb.2 none yet no suitable node\n");
    }
}
