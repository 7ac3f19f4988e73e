//! Looks all the time, also while things are broken: no address of a network is ever held twice, neither in a store nor
//! by tasks that live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deploy::model::TaskId;
use deploy::store::Store;
use overlay_net::kernel::NetNs;

use super::{MANAGERS, Stage, WORKERS, expect, kernel};
use crate::sim::Rng;

/// Between two looks at stores, and at kernels.
const STORES: Duration = Duration::from_millis(120);
const KERNELS: Duration = Duration::from_millis(300);

/// Counts the holders of addresses in each store that is seen.
pub(super) async fn stores(stage: Arc<Stage>, mut rng: Rng) {
    let mut seen = BTreeMap::new();
    while !stage.stopped() {
        tokio::time::sleep(STORES).await;
        let host = usize::try_from(rng.range(0, MANAGERS as u64)).unwrap_or(0);
        let Ok(store) = stage.store(host, "local").await else { continue };
        if seen.insert(host, store.revision()) == Some(store.revision()) {
            continue;
        }
        stage.looks[0].fetch_add(1, Ordering::Relaxed);
        let twice = expect::held_twice(&store);
        if !twice.is_empty() {
            stage.violated(&format!("revision {}: {}", store.revision(), twice.join("; ")));
        }
    }
}

type Holders = BTreeMap<(String, Ipv4Addr), BTreeSet<(usize, String)>>;

/// Counts the holders of addresses in the kernels of all hosts that are not dead. They cannot be read at one moment, so
/// an address that seems to be held twice is only so if its first holder still has it when the others are found to.
pub(super) async fn kernels(stage: Arc<Stage>) {
    while !stage.stopped() {
        tokio::time::sleep(KERNELS).await;
        let look = || tokio::task::block_in_place(|| holders(&stage));
        let twice: Holders = look().into_iter().filter(|(_, holders)| holders.len() > 1).collect();
        stage.looks[1].fetch_add(1, Ordering::Relaxed);
        if twice.is_empty() {
            continue;
        }
        let again = look();
        let Ok(store) = stage.current().await else { continue };
        for (key, first) in twice {
            let both = again.get(&key).map(|second| first.intersection(second).cloned().collect::<BTreeSet<_>>());
            let both: Vec<_> = both.into_iter().flatten().filter(|(_, task)| lives(&store, task)).collect();
            if both.len() > 1 {
                stage.violated(&format!("{} of network {} is on links of {both:?}", key.1, key.0));
            }
        }
    }
}

/// The network of a task that died stays for a moment, to tell those who ask. What is not known to be dead lives.
fn lives(store: &Store, task: &str) -> bool {
    let pid = store.task(&TaskId::new(task)).and_then(|task| task.status.container.as_ref().map(|c| c.pid));
    pid.is_none_or(|pid| pid == 0 || Path::new(&format!("/proc/{pid}")).exists())
}

fn holders(stage: &Stage) -> Holders {
    let mut holders = Holders::new();
    for host in (0..MANAGERS + WORKERS).filter(|host| !stage.is_dead(*host)) {
        // A host that is in no cluster for now has none.
        let Ok(own) = NetNs::open(&stage.cluster.host(host).run_dir().join("netns/overlay")) else { continue };
        for (task, network, address) in kernel::ports(&own).unwrap_or_default() {
            holders.entry((network, address)).or_default().insert((host, task));
        }
    }
    holders
}
