//! Updates and changes of scale under load, throughout: nobody may notice.
//!
//! Half of the clients ask through the virtual address, from tasks on two hosts, the others through the published port of
//! each host, from outside. A request that was not answered with 200, a connection that was refused or that ended
//! without a word is a failure.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use chaos_tests::bench::clients::{Clients, Kind};
use chaos_tests::bench::{self, Report};
use chaos_tests::hosts::{Api, Binaries, Client, Cluster, SOON, graceful, update};

use crate::service::{on_network, one_task, virtual_address};
use crate::{MANAGERS, Options};

const REPLICAS: u64 = 10;
/// Where the service is published.
const DOOR: u16 = 8080;
/// Kept connections in all, and how often each of them is asked something.
const KEPT: (u32, Duration) = (200, Duration::from_millis(250));
/// Clients with new connections in all, and how often each of them makes one at the most: together 200 a second, also where
/// some answers are late.
const NEW: (u32, Duration) = (40, Duration::from_millis(180));
/// Failures that are shown.
const SHOWN: usize = 20;

pub(crate) async fn measure(binaries: &Binaries, options: &Options, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(binaries, MANAGERS, options.hosts - MANAGERS).await?;
    let api = cluster.api(0);
    let network = api.create_overlay("net").await?;
    api.create_service(&graceful(on_network("web", REPLICAS).publish(DOOR, 80))).await?;
    api.wait_running("web", REPLICAS as usize, &[], SOON).await?;
    cluster.wait_port(DOOR).await?;
    // Where clients stand, and whom they ask.
    let vip = SocketAddr::new(virtual_address(&api, "web", &network).await?, 80);
    let mut places = Vec::new();
    for index in [1, options.hosts - 1] {
        let probe = one_task(&api, on_network(&format!("probe-{index}"), 1), cluster.host(index).name()).await?;
        places.push((Client::beside(probe.pid)?, vip));
    }
    let inside = u32::try_from(places.len())?;
    for host in cluster.hosts() {
        places.push((cluster.client()?, host.at(DOOR)));
    }
    let outside = u32::try_from(places.len())? - inside;

    let clients = Clients::none();
    let mut threads = Vec::new();
    for (number, (place, door)) in (0..).zip(&places) {
        let sharing = 2 * if number < inside { inside } else { outside };
        for (kind, (count, pace)) in [(Kind::Kept, KEPT), (Kind::New, NEW)] {
            threads.extend(clients.start(place, *door, kind, (count / sharing).max(1), pace)?);
        }
    }
    let changed = changes(&api, &clients, Duration::from_secs(60 * options.minutes)).await;
    clients.stop();
    tokio::task::block_in_place(|| threads.into_iter().for_each(|thread| drop(thread.join())));
    let (cycles, took) = (changed?, clients.elapsed());
    let ((kept, new), failures) = (clients.answered(), clients.failures(&[]));
    failures.iter().take(SHOWN).for_each(bench::say);
    let per_second = |count: u64| count as f64 / took.as_secs_f64();
    report.target(
        "rolling updates and changes of scale under load",
        "0 failed requests",
        format_args!(
            "{} failed of {} over kept connections ({:.0}/s) and {} over new ones ({:.0}/s), in {:.1} minutes and {cycles} \
             times two updates and 10 → 5 → 10 tasks",
            failures.len(),
            kept,
            per_second(kept),
            new,
            per_second(new),
            took.as_secs_f64() / 60.0
        ),
        "-",
        failures.is_empty() && kept > 0 && new > 0,
    );
    cluster.clean_up()
}

/// Updates the service and scales it, again and again; answers how often.
async fn changes(api: &Api, clients: &Clients, length: Duration) -> Result<u64> {
    let mut cycles = 0;
    while clients.elapsed() < length {
        cycles += 1;
        for (number, order) in [(0, "start-first"), (1, "stop-first")] {
            update(api, "web", |spec| {
                spec["TaskTemplate"]["ForceUpdate"] = (2 * cycles + number).into();
                spec["UpdateConfig"]["Order"] = order.into();
                spec["UpdateConfig"]["Parallelism"] = 2.into();
            })
            .await?;
        }
        for replicas in [REPLICAS / 2, REPLICAS] {
            api.scale("web", replicas).await?;
            api.wait_running("web", usize::try_from(replicas)?, &[], SOON).await?;
        }
        let ((kept, new), failed) = (clients.answered(), clients.failures(&[]).len());
        let at = clients.elapsed().as_secs();
        bench::say(format_args!("rolling, after {at} s: {kept} and {new} requests answered, {failed} failed"));
    }
    Ok(cycles)
}
