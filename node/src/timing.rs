//! How patient a node is with the others: `shoal daemon --timing`. Everything that follows from how long an election or a
//! message may take is derived here, so that one setting moves all of it.
//!
//! It is a setting of each host and takes effect when its daemon starts; Raft cannot change its clockwork while it runs.
//! Hosts of one cluster may differ: who is less patient asks, doubts and stands for election earlier, and is refused by
//! the others while they hear the leader. A cluster is as patient as its least patient managers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What the network between the hosts is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// Round trips far below 100 ms.
    #[default]
    Lan,
    /// Hosts in several places: round trips up to 300 ms, messages that have to be sent again.
    Wan,
}

/// A timing that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("timing {0:?} must be lan or wan")]
pub struct UnknownTiming(String);

impl FromStr for Timing {
    type Err = UnknownTiming;

    fn from_str(text: &str) -> Result<Self, UnknownTiming> {
        match text {
            "lan" => Ok(Timing::Lan),
            "wan" => Ok(Timing::Wan),
            other => Err(UnknownTiming(other.to_owned())),
        }
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Timing::Lan => "lan",
            Timing::Wan => "wan",
        })
    }
}

impl Timing {
    /// Heartbeats and elections.
    pub fn raft(self) -> raft::Timing {
        match self {
            Timing::Lan => raft::Timing::lan(),
            Timing::Wan => raft::Timing::wan(),
        }
    }

    /// Probes and suspicion.
    pub fn gossip(self) -> gossip::Timing {
        match self {
            Timing::Lan => gossip::Timing::lan(),
            Timing::Wan => gossip::Timing::wan(),
        }
    }

    /// So long a request or a read looks for a leader before it gives up: several elections, as one may end with nobody
    /// elected.
    pub(crate) fn find_leader(self) -> Duration {
        (self.raft().election_max * 6).max(Duration::from_secs(10))
    }

    /// A manager that was heard this lately counts as there: six heartbeats.
    pub(crate) fn answers(self) -> Duration {
        self.raft().heartbeat * 6
    }

    /// A leader whose heartbeats have not come for so long is not sent requests: what is sent to a leader that is gone
    /// has an outcome that nobody knows, and what waits is carried out by the next one. Less than any election takes.
    pub(crate) fn quiet(self) -> Duration {
        self.raft().heartbeat * 8 / 3
    }

    /// A leader that was replaced has so long to answer what it was asked before.
    pub(crate) fn last_word(self) -> Duration {
        self.raft().heartbeat / 3
    }

    /// A leader has its majority while it heard from it this lately.
    pub(crate) fn majority(self) -> Duration {
        (self.raft().election_max * 2).max(Duration::from_secs(2))
    }

    /// A manager that was out of touch with a leading majority for so long knows nothing worth telling. Longer than an
    /// election, or agents would leave all managers in each of them.
    pub(crate) fn out_of_touch(self) -> Duration {
        self.majority() * 2
    }

    /// How much later than on a LAN a sign of life of a host may reach the leader.
    pub(crate) fn late(self) -> Duration {
        match self {
            Timing::Lan => Duration::ZERO,
            Timing::Wan => Duration::from_secs(2),
        }
    }

    /// A manager that says nothing for so long (it sends something every 250 ms) is doubted: its agent asks another one
    /// for a session meanwhile. Doubt costs the cluster nothing, so a busy manager may well be doubted.
    pub(crate) fn doubt(self) -> Duration {
        match self {
            Timing::Lan => Duration::from_millis(600),
            Timing::Wan => Duration::from_millis(2000),
        }
    }

    /// A manager that says nothing for so long is left by its agent, whether there is another or not.
    pub(crate) fn silence(self) -> Duration {
        match self {
            Timing::Lan => Duration::from_millis(2000),
            Timing::Wan => Duration::from_millis(6000),
        }
    }

    /// A manager that starts asks the others so long, all together, whether the cluster began anew without it. A first
    /// call needs four round trips.
    pub(crate) fn ask_before_start(self) -> Duration {
        match self {
            Timing::Lan => Duration::from_millis(400),
            Timing::Wan => Duration::from_millis(3000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_printed() {
        for timing in [Timing::Lan, Timing::Wan] {
            assert_eq!(timing.to_string().parse(), Ok(timing));
        }
        assert_eq!(Timing::default(), Timing::Lan);
        assert_eq!("WAN".parse::<Timing>().unwrap_err().to_string(), "timing \"WAN\" must be lan or wan");
    }

    /// What one part of the node waits for, another one must have had the time to do.
    #[test]
    fn patience_fits_together() {
        for timing in [Timing::Lan, Timing::Wan] {
            let raft = timing.raft();
            // From the last heartbeat to an elected leader: the lease, a random part, and two rounds of votes.
            let election = raft.election_max * 2 + raft.election_min;
            assert!(timing.quiet() > raft.heartbeat * 2 && timing.quiet() < raft.election_max, "{timing}");
            assert!(timing.find_leader() > election * 2, "{timing}");
            assert!(timing.majority() > raft.heartbeat * 4, "{timing}");
            assert!(timing.out_of_touch() > election, "{timing}");
            assert!(timing.silence() > timing.doubt() * 2, "{timing}");
            assert_eq!(timing.gossip().validate(), Ok(()), "{timing}");
        }
        let lan = Timing::Lan;
        let millis = |duration: Duration| duration.as_millis();
        assert_eq!((millis(lan.quiet()), millis(lan.answers()), millis(lan.last_word())), (400, 900, 50));
        assert_eq!(
            (millis(lan.majority()), millis(lan.out_of_touch()), millis(lan.find_leader())),
            (2000, 4000, 10_000)
        );
    }
}
