//! A service as it should be, whose updates nobody notices, and updates of it.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Api, SOON, ServiceDraft};

/// A service whose tasks finish what they were asked before they end, and take nothing new meanwhile; and of which nobody
/// is led to one that does not listen yet.
#[must_use]
pub fn graceful(draft: ServiceDraft) -> Value {
    let mut spec = draft.build();
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Env"] = json!(["WHOAMI_GRACE=4", "WHOAMI_READY=/ready"]);
    container["Healthcheck"] = json!({
        "Test": ["CMD", "/shoal", "__whoami", "check", "/ready"],
        "Interval": 300_000_000, "Timeout": 10_000_000_000_u64, "Retries": 10,
    });
    spec["UpdateConfig"] = json!({"Parallelism": 1, "Order": "stop-first", "Monitor": 500_000_000});
    spec
}

/// Changes a service's spec as a client does, and waits until its update is over.
///
/// # Errors
/// As the API says, or an update that is not completed within a minute.
pub async fn update(api: &Api, service: &str, change: impl Fn(&mut Value)) -> Result<()> {
    let found = api.get(&format!("/services/{service}")).await?;
    let version = found["Version"]["Index"].as_u64().context("a version")?;
    let mut spec = found["Spec"].clone();
    change(&mut spec);
    api.post(&format!("/services/{service}/update?version={version}"), &spec).await?;
    api.wait_for("the end of the update", SOON, || async {
        let now = api.get(&format!("/services/{service}")).await.map_err(|e| e.to_string())?;
        let state = now["UpdateStatus"]["State"].as_str().unwrap_or("none").to_owned();
        let later = now["Version"]["Index"].as_u64() > Some(version);
        if later && state == "completed" { Ok(()) } else { Err(state) }
    })
    .await?;
    Ok(())
}
