//! Lines that are measured elsewhere: dead hosts, by what the failover benchmark runs; and thousands of endpoints, by a
//! benchmark of its own.

use std::time::Duration;

use anyhow::Result;
use chaos_tests::bench::{Report, nested};
use chaos_tests::hosts::{Binaries, Cluster, headless};

use crate::Options;

/// Hosts of each kind, when all managers die, and a worker.
const MANAGERS: usize = 3;
const WORKERS: usize = 3;
/// Without managers, beside what the deaths take.
const HEADLESS: Duration = Duration::from_secs(10);
/// The benchmark of many endpoints.
const ENDPOINTS: &str = "endpoints";

pub(crate) async fn dead_host(binaries: &Binaries, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, MANAGERS, WORKERS).await?;
    let seen = headless::survive(&cluster, MANAGERS, HEADLESS).await?;
    for (what, took) in [
        ("dead host out of every VIP, with a quorum: until the last request that goes astray", seen.dropped_led),
        ("the same without a quorum", seen.dropped),
    ] {
        let met = took <= Duration::from_millis(1500);
        report.target(what, "≤ 1.5 s", format_args!("{:.2} s", took.as_secs_f64()), "-", met);
    }
    cluster.clean_up()
}

pub(crate) fn endpoints(options: &Options, report: &mut Report) -> Result<()> {
    let profile = options.profile.as_deref();
    for (what, arguments) in [
        ("1 000 services, 5 000 endpoints, a host with 20 tasks", &[][..]),
        ("1 000 hosts, simulated", &["--simulate"][..]),
    ] {
        let mut rows = tokio::task::block_in_place(|| nested::run(ENDPOINTS, arguments, profile))?;
        if rows.is_empty() {
            let word = format!("no figures: see `cargo bench -p chaos-tests --bench {ENDPOINTS}`");
            report.target(what, "-", word, "-", false);
        }
        for row in &mut rows {
            row[0] = format!("{what}: {}", row[0]);
            nested::repeat(report, row);
        }
    }
    Ok(())
}
