//! Real clusters on hosts in network namespaces, and what happens when hosts, daemons and users misbehave.
//!
//! One binary, and one cluster at a time. Needs root; says so where it is not given.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are part of them")]

mod backup;
mod bridges;
mod certificates;
mod compare;
mod cut_off;
mod draining;
mod elections;
mod headless;
mod health;
mod images;
mod joins;
mod kills;
mod members;
mod network;
mod network_check;
mod parted;
mod plain;
mod recovery;
mod registries;
mod requests;
mod scale;
mod silence;
mod soak;
mod storage;
mod storm;
mod surroundings;
mod upgrade;
mod volumes;

use std::future::Future;

use anyhow::Result;
use chaos_tests::hosts::{Binaries, Cluster};

fn binaries() -> Binaries {
    Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() }
}

/// Runs a test on a cluster, shows the daemons' logs when it fails, and removes everything whatever happens.
async fn with(made: impl Future<Output = Result<Cluster>>, test: impl AsyncFnOnce(&mut Cluster) -> Result<()>) {
    if let Some(reason) = chaos_tests::hosts::unusable() {
        eprintln!("skipped: {reason}");
        assert!(std::env::var_os("SHOAL_TEST_MACHINE").is_none(), "the machine is made for this");
        return;
    }
    let mut cluster = made.await.unwrap_or_else(|error| panic!("the cluster could not be made: {error:#}"));
    if let Err(error) = test(&mut cluster).await {
        let logs = cluster.logs();
        drop(cluster);
        panic!("{error:#}\n{logs}");
    }
    if let Err(error) = cluster.clean_up() {
        panic!("{error:#}");
    }
}
