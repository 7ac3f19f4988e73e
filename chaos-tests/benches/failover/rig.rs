//! Hosts of Shoal, as one of the systems that are measured.

use std::net::Ipv4Addr;

use anyhow::Result;
use chaos_tests::hosts::{Api, Binaries, Cluster, Fault, HostsConfig};
use chaos_tests::peers::{Cable, Rig};

/// Hosts of Shoal.
pub(crate) struct Shoal {
    pub(crate) cluster: Cluster,
    timeline: bool,
}

impl Shoal {
    /// Hosts whose daemons are in no cluster.
    ///
    /// # Errors
    /// What the machine says.
    pub(crate) async fn unformed(binaries: &Binaries, count: usize, timeline: bool) -> Result<Shoal> {
        let mut config = HostsConfig::new(binaries.shoal.clone(), count);
        if timeline {
            config.log_level = "info,openraft=warn,node=debug,gossip=debug".into();
        }
        Ok(Shoal { cluster: Cluster::hosts_of(binaries, &config).await?, timeline })
    }

    /// The ends of the daemons' logs.
    pub(crate) fn logs(&self) -> String {
        self.cluster.logs()
    }

    /// Removes everything.
    ///
    /// # Errors
    /// What could not be removed.
    pub(crate) fn clean_up(self) -> Result<()> {
        self.cluster.clean_up()
    }
}

impl Rig for Shoal {
    fn name(&self) -> &'static str {
        "shoal"
    }

    fn count(&self) -> usize {
        self.cluster.hosts().len()
    }

    fn api(&self, index: usize) -> Api {
        self.cluster.api(index)
    }

    fn address(&self, index: usize) -> Ipv4Addr {
        self.cluster.host(index).address()
    }

    fn lose(&self, index: usize, cable: Cable) -> Result<()> {
        self.cluster.begin(&match cable {
            Cable::Pulled => Fault::PowerOff(index),
            Cable::Stays => Fault::KillAll(index),
        })
    }

    async fn boot(&self, index: usize) -> Result<()> {
        self.cluster.end(&Fault::PowerOff(index)).await
    }

    fn measured(&self, what: &str, since: std::time::SystemTime) {
        if self.timeline {
            crate::say(&crate::timeline::tell(&self.cluster, what, since));
        }
    }
}
