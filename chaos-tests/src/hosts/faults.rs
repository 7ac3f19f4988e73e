//! Ways to break a cluster and to mend it again. Tests use the verbs of [`Host`](super::Host) where one will do; what
//! breaks things at random, or one after another, takes a [`Fault`].

use std::fmt;

use anyhow::{Result, ensure};

use super::Cluster;

/// Something that is wrong with a cluster for a while. Hosts are named by their number, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The host is gone: cable, daemon, tasks. Ends with a boot.
    PowerOff(usize),
    /// Every process of the host is killed and its cable stays, so that its peers see connections break at once. Ends
    /// with a boot.
    KillAll(usize),
    /// The daemon is killed; its tasks go on. Ends with a start of the daemon.
    KillDaemon(usize),
    /// The daemon stands still and its tasks go on.
    Pause(usize),
    /// Every process of the host stands still.
    Freeze(usize),
    /// The cable is pulled; all on the host goes on.
    Cut(usize),
    /// Hosts reach only those in the same group; a host that is in none belongs to the first.
    Partition(Vec<Vec<usize>>),
}

impl Fault {
    /// Whether what was on the host in memory is lost.
    #[must_use]
    pub fn is_death(&self) -> bool {
        matches!(self, Fault::PowerOff(_) | Fault::KillAll(_))
    }

    /// The hosts that are not what they should be; for a partition, those outside of the first group.
    #[must_use]
    pub fn victims(&self) -> Vec<usize> {
        match self {
            Fault::PowerOff(host)
            | Fault::KillAll(host)
            | Fault::KillDaemon(host)
            | Fault::Pause(host)
            | Fault::Freeze(host)
            | Fault::Cut(host) => vec![*host],
            Fault::Partition(groups) => groups.iter().skip(1).flatten().copied().collect(),
        }
    }
}

/// `power off host-2`
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self {
            Fault::PowerOff(_) => "power off",
            Fault::KillAll(_) => "kill everything of",
            Fault::KillDaemon(_) => "kill the daemon of",
            Fault::Pause(_) => "pause the daemon of",
            Fault::Freeze(_) => "freeze",
            Fault::Cut(_) => "cut off",
            Fault::Partition(_) => "part from the others",
        };
        let hosts: Vec<String> = self.victims().iter().map(|host| format!("host-{}", host + 1)).collect();
        write!(f, "{verb} {}", hosts.join(" and "))
    }
}

impl Cluster {
    /// Begins a fault.
    ///
    /// # Errors
    /// What the machine says.
    pub fn begin(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::PowerOff(host) => self.host(*host).power_off()?,
            Fault::KillAll(host) => self.host(*host).kill_all()?,
            Fault::KillDaemon(host) => self.host(*host).kill_daemon()?,
            Fault::Pause(host) => self.host(*host).pause()?,
            Fault::Freeze(host) => self.host(*host).freeze()?,
            Fault::Cut(host) => self.host(*host).link_down()?,
            Fault::Partition(groups) => self.partition(groups)?,
        }
        Ok(())
    }

    /// Ends a fault; a daemon that had to be started is ready then, its node perhaps not yet.
    ///
    /// # Errors
    /// What the machine says, or a daemon that does not start.
    pub async fn end(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::PowerOff(host) | Fault::KillAll(host) => {
                self.host(*host).power_on()?;
                self.host(*host).wait_ready().await?;
            }
            Fault::KillDaemon(host) => {
                self.host(*host).start_daemon()?;
                self.host(*host).wait_ready().await?;
            }
            Fault::Pause(host) => self.host(*host).resume()?,
            Fault::Freeze(host) => self.host(*host).thaw()?,
            Fault::Cut(host) => self.host(*host).link_up()?,
            Fault::Partition(_) => self.heal()?,
        }
        Ok(())
    }

    /// Lets hosts reach only those in the same group; hosts that are in none belong to the first, which is also where
    /// clients outside of all hosts stand.
    ///
    /// # Errors
    /// What the kernel says; a host in two groups.
    pub fn partition(&self, groups: &[Vec<usize>]) -> Result<()> {
        let mut sides = vec![0; self.hosts().len()];
        let mut seen = vec![false; sides.len()];
        for (side, host) in groups.iter().enumerate().flat_map(|(side, group)| group.iter().map(move |h| (side, *h))) {
            ensure!(host < sides.len() && !seen[host], "host {host} does not exist or is in two groups: {groups:?}");
            (sides[host], seen[host]) = (side, true);
        }
        for (host, side) in self.hosts().iter().zip(sides) {
            host.connect_to_side(side)?;
        }
        Ok(())
    }

    /// Ends a partition.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn heal(&self) -> Result<()> {
        self.partition(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_say_what_they_are() {
        assert_eq!(Fault::Cut(1).to_string(), "cut off host-2");
        let split = Fault::Partition(vec![vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(split.to_string(), "part from the others host-3 and host-4 and host-5");
        assert!(Fault::PowerOff(0).is_death() && !split.is_death());
    }
}
