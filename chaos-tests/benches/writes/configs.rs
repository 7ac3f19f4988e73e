//! The same through the Docker API: `configs/create` with 256 bytes, three managers that are hosts of their own, with
//! all that a manager has besides Raft: names that must be free, objects, mutual TLS, gossip. Each request has a
//! connection of its own, as those of the `docker` command have.

use std::time::Duration;

use chaos_tests::hosts::{Api, Binaries, Cluster, encode};
use serde_json::{Value, json};

use crate::load::{self, Client, Outcome};

/// A cluster of three managers; it ends with this.
pub(crate) struct Managers {
    cluster: Cluster,
    leader: usize,
    runs: usize,
}

impl Managers {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let binaries = Binaries {
            shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(),
            whoami: env!("CARGO_BIN_EXE_chaos-whoami").into(),
        };
        let mut cluster = Cluster::hosts_only(&binaries, 3).await?;
        cluster.init().await?;
        cluster.join(1, true).await?;
        cluster.join(2, true).await?;
        cluster.wait_ready(3).await?;
        let leader = cluster.leader(0).await?;
        Ok(Self { cluster, leader, runs: 0 })
    }

    /// Creates configs for `measured` with `clients`, all through the leader or all through one follower, and makes
    /// sure that every manager lists what was acknowledged.
    pub(crate) async fn run(
        &mut self,
        through_leader: bool,
        clients: usize,
        measured: Duration,
    ) -> anyhow::Result<Outcome> {
        self.runs += 1;
        let asked = if through_leader { self.leader } else { (self.leader + 1) % 3 };
        let creators = (0..clients).map(|client| Creator {
            api: self.cluster.api(asked),
            prefix: format!("run{}-client{client}", self.runs),
            // 256 bytes, in base64.
            data: "eHh4".repeat(85) + "eA==",
        });
        let outcome = load::closed_loop(creators, measured).await?;
        let leader = self.cluster.leader(asked).await?;
        anyhow::ensure!(leader == self.leader, "the leader has changed meanwhile:\n{}", self.cluster.logs());
        for manager in 0..3 {
            let filters = encode(&json!({"name": [format!("run{}-", self.runs)]}).to_string());
            let listed = self.cluster.api(manager).get(&format!("/configs?filters={filters}")).await?;
            let (found, acknowledged) = (listed.as_array().map_or(0, Vec::len) as u64, outcome.committed);
            anyhow::ensure!(found >= acknowledged, "manager {manager} has {found} of {acknowledged} configs");
        }
        Ok(outcome)
    }

    /// Removes the hosts.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        self.cluster.clean_up()
    }
}

struct Creator {
    api: Api,
    prefix: String,
    data: String,
}

impl Client for Creator {
    async fn write(&mut self, round: u64) -> bool {
        let body = json!({"Name": format!("{}-{round}", self.prefix), "Data": self.data});
        self.api.post("/configs/create", &body).await.is_ok_and(|answer| answer.get("ID").is_some_and(Value::is_string))
    }
}
