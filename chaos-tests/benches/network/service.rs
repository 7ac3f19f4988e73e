//! Services of one system or the other, through the API that both have.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use chaos_tests::hosts::{Api, IMAGE, SOON, ServiceDraft, TaskView};
use serde_json::Value;

/// The network of all these services.
pub(crate) const NETWORK: &str = "net";

/// A service on the network.
pub(crate) fn on_network(name: &str, replicas: u64) -> ServiceDraft {
    ServiceDraft::new(name, IMAGE, replicas).network(NETWORK)
}

/// Starts one task on a host, and waits until it runs.
pub(crate) async fn one_task(api: &Api, draft: ServiceDraft, host: &str) -> Result<TaskView> {
    let spec = draft.constraint(&format!("node.hostname=={host}")).build();
    let name = spec["Name"].as_str().context("a name")?.to_owned();
    api.create_service(&spec).await?;
    let tasks = api.wait_running(&name, 1, &[], SOON).await?;
    tasks.into_iter().next().context("a task")
}

/// A task's address on a network.
pub(crate) async fn address(api: &Api, task: &TaskView, network: &str) -> Result<IpAddr> {
    let found = api.get(&format!("/tasks/{}", task.id)).await?;
    let all = found["NetworksAttachments"].as_array().context("networks of a task")?;
    let one = all.iter().find(|one| one["Network"]["ID"] == network).context("the task is not on the network")?;
    first_address(&one["Addresses"][0])
}

/// A service's virtual address on a network.
pub(crate) async fn virtual_address(api: &Api, service: &str, network: &str) -> Result<IpAddr> {
    let found = api.get(&format!("/services/{service}")).await?;
    let all = found["Endpoint"]["VirtualIPs"].as_array().context("virtual addresses")?;
    let one = all.iter().find(|one| one["NetworkID"] == network).context("none on the network")?;
    first_address(&one["Addr"])
}

/// `10.0.1.2/24`
fn first_address(text: &Value) -> Result<IpAddr> {
    let address = text.as_str().and_then(|text| text.split('/').next()).context("an address")?;
    Ok(address.parse()?)
}

/// The network namespace of a process on this machine.
pub(crate) fn namespace_of(pid: u64) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}
