//! Lists of tasks, as `service ps` and `node ps` print them.

use std::collections::HashMap;

use super::age;
use super::client::{Client, route};
use super::error::CliError;
use super::output::{List, ListFormat};
use crate::docker_api::wire::{Node, PortConfig, Service, Task};

/// Reads the tasks that fit the filters (JSON) and prints them, newest first within each slot.
pub(super) async fn print(client: &Client, filters: &str, format: &ListFormat) -> Result<(), CliError> {
    let mut tasks: Vec<Task> = client.get(&route(&["tasks"], &[("filters", filters)])).await?;
    let nodes: Vec<Node> = client.get("/nodes").await?;
    let services: Vec<Service> = client.get("/services").await?;
    let nodes = nodes.into_iter().map(|n| (n.id.unwrap_or_default(), host_name(n.description))).collect();
    let services = services
        .into_iter()
        .map(|s| (s.id.unwrap_or_default(), s.spec.unwrap_or_default().name.unwrap_or_default()))
        .collect();
    let names = Names { nodes, services };
    names.sort(&mut tasks);
    names.list(&tasks, format).print(format)
}

fn host_name(description: Option<crate::docker_api::wire::NodeDescription>) -> String {
    description.unwrap_or_default().hostname.unwrap_or_default()
}

/// What ids stand for.
struct Names {
    nodes: HashMap<String, String>,
    services: HashMap<String, String>,
}

impl Names {
    fn node<'a>(&'a self, task: &'a Task) -> &'a str {
        let id = task.node_id.as_deref().unwrap_or_default();
        // A host that was removed has no name any more.
        self.nodes.get(id).map(String::as_str).filter(|name| !name.is_empty()).unwrap_or(id)
    }

    /// `web.1`, or `web.NODE` of a global service.
    fn task(&self, task: &Task) -> String {
        let id = task.service_id.as_deref().unwrap_or_default();
        let service = self.services.get(id).map_or(id, String::as_str);
        match task.slot.unwrap_or_default() {
            0 => format!("{service}.{}", task.node_id.as_deref().unwrap_or_default()),
            slot => format!("{service}.{slot}"),
        }
    }

    fn sort(&self, tasks: &mut [Task]) {
        let key = |t: &Task| {
            let service = t.service_id.as_ref().and_then(|id| self.services.get(id)).cloned();
            let place = if t.slot.unwrap_or_default() == 0 { t.node_id.clone() } else { None };
            (service, t.slot, place)
        };
        tasks.sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| created(b).cmp(&created(a))));
    }

    fn list(&self, tasks: &[Task], format: &ListFormat) -> List {
        let mut list = List::new(&[
            ("ID", "ID"),
            ("NAME", "Name"),
            ("IMAGE", "Image"),
            ("NODE", "Node"),
            ("DESIRED STATE", "DesiredState"),
            ("CURRENT STATE", "CurrentState"),
            ("ERROR", "Error"),
            ("PORTS", "Ports"),
        ]);
        let mut previous = String::new();
        for task in tasks {
            let name = self.task(task);
            // Docker draws what came before in a slot as branches of its newest task.
            let shown = if name == previous { format!(" \\_ {name}") } else { name.clone() };
            previous = name;
            let status = task.status.clone().unwrap_or_default();
            let spec = task.spec.clone().unwrap_or_default().container_spec.unwrap_or_default();
            let image = spec.image.unwrap_or_default();
            let image = if format.no_trunc { image } else { without_digest(&image).to_owned() };
            list.row([
                format.id(task.id.as_deref().unwrap_or_default()),
                shown,
                image,
                self.node(task).to_owned(),
                capital(task.desired_state.as_deref().unwrap_or_default()),
                format!(
                    "{} {}",
                    capital(status.state.as_deref().unwrap_or_default()),
                    age::ago(status.timestamp.as_deref().unwrap_or_default())
                ),
                error_text(status.err.as_deref().unwrap_or_default(), format.no_trunc),
                host_ports(&status.port_status.unwrap_or_default().ports.unwrap_or_default()),
            ]);
        }
        list
    }
}

fn created(task: &Task) -> (Option<String>, Option<String>) {
    (task.created_at.clone(), task.id.clone())
}

fn error_text(err: &str, whole: bool) -> String {
    /// Docker's width for it.
    const WIDTH: usize = 30;
    match err {
        "" => String::new(),
        err if whole || err.chars().count() + 2 <= WIDTH => format!("\"{err}\""),
        err => format!("\"{}…\"", err.chars().take(WIDTH - 3).collect::<String>()),
    }
}

/// `Running` for `running`.
pub(super) fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `name:tag` of `name:tag@sha256:…`.
pub(super) fn without_digest(image: &str) -> &str {
    match image.split_once('@') {
        Some((name, _)) if !name.is_empty() => name,
        _ => image,
    }
}

/// `*:8080->80/tcp`, as lists print published ports.
pub(super) fn ports(ports: &[PortConfig], before: &str) -> String {
    let mut shown: Vec<String> = ports
        .iter()
        .filter_map(|port| {
            let published = port.published_port.filter(|p| *p != 0)?;
            let protocol = port.protocol.as_deref().unwrap_or("tcp");
            Some(format!("{before}{published}->{}/{protocol}", port.target_port.unwrap_or_default()))
        })
        .collect();
    shown.dedup();
    shown.join(", ")
}

fn host_ports(given: &[PortConfig]) -> String {
    ports(given, "*:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, slot: u64, node: &str, created: &str) -> Task {
        serde_json::from_value(serde_json::json!({
            "ID": id, "ServiceID": "s", "Slot": slot, "NodeID": node, "CreatedAt": created, "DesiredState": "running",
            "Status": {"State": "running"}, "Spec": {"ContainerSpec": {"Image": "web:1@sha256:ab"}},
        }))
        .unwrap()
    }

    #[test]
    fn the_newest_task_of_a_slot_is_first() {
        let names = Names {
            nodes: HashMap::from([("n".to_owned(), "host-1".to_owned())]),
            services: HashMap::from([("s".to_owned(), "web".to_owned())]),
        };
        let mut tasks =
            [task("a", 2, "n", "1"), task("b", 1, "gone", "1"), task("c", 1, "n", "2"), task("d", 0, "n", "1")];
        names.sort(&mut tasks);
        let order: Vec<_> = tasks.iter().map(|t| (names.task(t), names.node(t).to_owned())).collect();
        let expected = [("web.n", "host-1"), ("web.1", "host-1"), ("web.1", "gone"), ("web.2", "host-1")];
        assert_eq!(order, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn cells() {
        assert_eq!(error_text("", false), "");
        assert_eq!(error_text("short", false), "\"short\"");
        assert_eq!(error_text("no suitable node (insufficient resources on 1 node)", false).chars().count(), 30);
        assert_eq!(capital("running"), "Running");
        assert_eq!(without_digest("a:1@sha256:x"), "a:1");
        let port = PortConfig {
            target_port: Some(80),
            published_port: Some(8080),
            protocol: Some("udp".to_owned()),
            ..PortConfig::default()
        };
        assert_eq!(ports(&[port.clone(), port, PortConfig::default()], "*:"), "*:8080->80/udp");
    }
}
