//! How far the clocks of the hosts differ from the leader's, measured over the round trips of messages that are
//! exchanged anyway.
//!
//! An agent gives back the mark of its manager's last heartbeat, how long it kept it, and what its clock says; a follower
//! compares its own clock with the leader's when it reports whom it heard, and adds that to what it measured of its
//! agents. So the leader hears how far everybody is from itself. Only monotonic time goes into the length of a round trip.

use std::collections::BTreeMap;
use std::time::Duration;

use deploy::model::NodeId;

/// Clocks further apart are reported.
const TOLERATED_MS: u64 = 5_000;
/// A report is taken back below this, so that a clock at the border does not come and go.
const FORGIVEN_MS: u64 = 4_000;
/// A round trip that took longer says too little: it could be off by half of it.
const SLOW: Duration = Duration::from_secs(2);
/// What every remark on a clock begins and ends with.
const BEGIN: &str = "clock ";
const END: &str = " the leader's";
/// Between two remarks in the message of a host.
pub(super) const BETWEEN: &str = "; ";

/// How far the other clock is ahead of this one (behind, where negative), in milliseconds: it said `other_ns` half a
/// round trip before this one says `own_ns`. `None` after a round trip that was too long to tell.
pub(super) fn ahead_ms(other_ns: u64, own_ns: u64, round_trip: Duration) -> Option<i64> {
    if other_ns == 0 || round_trip > SLOW {
        return None;
    }
    let then = i128::from(own_ns) - i128::try_from(round_trip.as_nanos() / 2).ok()?;
    i64::try_from((i128::from(other_ns) - then) / 1_000_000).ok()
}

/// What was last said of the clocks, while this manager leads.
#[derive(Debug, Default)]
pub(super) struct Said {
    ms: BTreeMap<NodeId, i64>,
}

impl Said {
    /// What is to be said of a host's clock; empty while there is nothing to complain about, `None` while nothing was
    /// measured lately, as on a slow network: what was said stands. The same text comes again until the difference has
    /// changed by a tenth: each change of it is a write.
    pub(super) fn remark(&mut self, node: &NodeId, ahead_ms: Option<i64>) -> Option<String> {
        let now = ahead_ms?;
        let limit = if self.ms.contains_key(node) { FORGIVEN_MS } else { TOLERATED_MS };
        if now.unsigned_abs() <= limit {
            self.ms.remove(node);
            return Some(String::new());
        }
        let said = self.ms.entry(node.clone()).or_insert(now);
        if now.abs_diff(*said) > (said.unsigned_abs() / 10).max(1_000) {
            *said = now;
        }
        Some(describe(*said))
    }
}

/// The part of a host's message that speaks of its clock; empty if none does.
pub(super) fn remark_in(message: &str) -> &str {
    let parts = &mut message.split(BETWEEN);
    parts.find(|part| part.starts_with(BEGIN) && part.ends_with(END)).unwrap_or_default()
}

fn describe(ahead_ms: i64) -> String {
    let (size, side) = (ahead_ms.unsigned_abs(), if ahead_ms > 0 { "ahead of" } else { "behind" });
    let whole = humantime::format_duration(Duration::from_secs(size / 1000));
    format!("{BEGIN}{whole} {side}{END}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn half_a_round_trip_is_taken_off() {
        let trip = Duration::from_millis(400);
        assert_eq!(ahead_ms(1_000 * S, 1_000 * S, trip), Some(200));
        assert_eq!(ahead_ms(1_007 * S, 1_000 * S + S / 5, trip), Some(7_000));
        assert_eq!(ahead_ms(993 * S, 1_000 * S + S / 5, trip), Some(-7_000));
        assert_eq!(ahead_ms(993 * S, 1_000 * S, SLOW + trip), None, "a round trip that says nothing was believed");
        assert_eq!(ahead_ms(0, 1_000 * S, trip), None, "an older release says no time");
        assert_eq!(ahead_ms(u64::MAX, 0, trip), Some(18_446_744_073_909));
    }

    #[test]
    fn more_than_five_seconds_are_reported_until_less_than_four() {
        let node = NodeId::new("n");
        let mut said = Said::default();
        let mut check = |ahead: i64, expected: &str| {
            assert_eq!(said.remark(&node, Some(ahead)).as_deref(), Some(expected), "{ahead}");
        };
        check(5_000, "");
        check(5_001, "clock 5s ahead of the leader's");
        check(5_900, "clock 5s ahead of the leader's");
        check(7_200, "clock 7s ahead of the leader's");
        check(4_500, "clock 4s ahead of the leader's");
        check(4_000, "");
        check(4_500, "");
        check(-3_725_000, "clock 1h 2m 5s behind the leader's");
        check(-3_700_000, "clock 1h 2m 5s behind the leader's");
        for absurd in [i64::MAX, i64::MIN] {
            assert!(said.remark(&node, Some(absurd)).is_some_and(|text| text.starts_with("clock 292271023years")));
        }
        assert_eq!(said.remark(&node, None), None, "without a measurement something was said");
    }

    #[test]
    fn a_remark_is_found_among_others() {
        assert_eq!(remark_in("gossip blocked; clock 7s behind the leader's"), "clock 7s behind the leader's");
        assert_eq!(remark_in("clock 7s behind the leader's"), "clock 7s behind the leader's");
        assert_eq!(remark_in("gossip blocked"), "");
        assert_eq!(remark_in(""), "");
    }
}
