//! Where daemons are started otherwise than on a plain host.

use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use chaos_tests::hosts::{Cluster, HostsConfig};

use crate::{binaries, with};

/// A cluster of one whose daemon is started by `start`, a shell's words before the daemon's command line.
async fn started_by(start: &str, behind: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (exe, shoal) = (dir.path().join("shoal"), binaries().shoal);
    let shoal = shoal.to_str().context("a path in UTF-8")?;
    let script =
        format!("#!/bin/sh\n[ \"$1\" = daemon ] || exec '{shoal}' \"$@\"\nexec {start} '{shoal}' \"$@\" {behind}\n");
    std::fs::write(&exe, script)?;
    std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o755))?;
    with(Cluster::hosts_of(&binaries(), &HostsConfig::new(exe, 1)), async |cluster| {
        cluster.init().await?;
        cluster.wait_ready(1).await?;
        let info = cluster.api(0).get("/info").await?;
        ensure!(info["Swarm"]["LocalNodeState"] == "active", "{}", info["Swarm"]);
        Ok(())
    })
    .await;
    Ok(())
}

/// As in a container, or below whatever has entered one: its session began where it cannot see.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_runs_in_a_pid_namespace() {
    started_by("unshare --pid --fork --kill-child --mount-proc", "").await.unwrap();
}

/// A disk that is full, a log collector that has died: what is logged is lost, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_no_daemon() {
    started_by("", "2>/dev/full").await.unwrap();
}
