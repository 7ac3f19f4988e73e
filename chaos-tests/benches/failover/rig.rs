//! What both systems have in common: hosts with a Docker API that can be lost and booted again.

use std::net::Ipv4Addr;

use anyhow::Result;
use chaos_tests::hosts::{Api, Binaries, Cluster, Fault, HostsConfig};

/// What happens to the cable of a host whose processes are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cable {
    /// It is pulled first: to the others the host is silent.
    Pulled,
    /// It stays: the kernel of the host breaks the connections.
    Stays,
}

/// Hosts on one machine. Indexes are from 0.
pub(crate) trait Rig {
    /// For people.
    fn name(&self) -> &'static str;

    /// How many hosts there are.
    fn count(&self) -> usize;

    /// A host's API.
    fn api(&self, index: usize) -> Api;

    /// A host's address.
    fn address(&self, index: usize) -> Ipv4Addr;

    /// Kills every process of a host.
    ///
    /// # Errors
    /// What the machine says.
    fn lose(&self, index: usize, cable: Cable) -> Result<()>;

    /// Boots a lost host; its daemon answers afterwards.
    ///
    /// # Errors
    /// What the machine says.
    async fn boot(&self, index: usize) -> Result<()>;

    /// Called when something was measured that began at this time, before anything else happens.
    fn measured(&self, _what: &str, _since: std::time::SystemTime) {}
}

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
