//! The verdict on a host: which evidence of its death is enough. Pure; `liveness` gathers the evidence and acts.
//!
//! | gossip | session | verdict |
//! |---|---|---|
//! | dead | silent for [`SILENT`] | Down |
//! | dead | heard | Ready, and a warning |
//! | alive | silent for [`AGENT_SILENT`] | Down, "agent silent" |

use std::time::Duration;

/// How often the leader looks.
pub const LOOK: Duration = Duration::from_millis(50);
/// Session silence that confirms what gossip says. Agents send a heartbeat every 250 ms and followers report every
/// 250 ms, so a living host's age stays below 0.6 s.
pub const SILENT: Duration = Duration::from_millis(1000);
/// Session silence that is enough by itself.
pub const AGENT_SILENT: Duration = Duration::from_secs(15);

/// What is known of a host's life at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// Gossip declared it dead (and has not heard from it since).
    pub gossip_dead: bool,
    /// Since when its session is silent.
    pub silent: Duration,
}

/// The verdict: why the host is Down, or `None`.
#[must_use]
pub fn verdict(evidence: Evidence) -> Option<&'static str> {
    match evidence {
        Evidence { gossip_dead: true, silent } if silent >= SILENT => Some("host is not reachable"),
        Evidence { gossip_dead: false, silent } if silent >= AGENT_SILENT => Some("agent silent"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(gossip_dead: bool, silent_ms: u64, expected: Option<&str>) {
        let evidence = Evidence { gossip_dead, silent: Duration::from_millis(silent_ms) };
        assert_eq!(verdict(evidence), expected, "{evidence:?}");
    }

    #[test]
    fn one_kind_of_evidence_is_not_enough() {
        check(true, 100, None);
        check(true, 1000, Some("host is not reachable"));
        check(false, 1000, None);
        check(false, 14_999, None);
        check(false, 15_000, Some("agent silent"));
    }
}
