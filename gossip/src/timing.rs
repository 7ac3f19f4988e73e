//! How fast membership reacts.

use std::time::Duration;

/// The protocol's clockwork. Every member of a cluster should use the same.
///
/// A dead host is declared dead about `probe_period * 1.6 + suspect` after its death, whatever the size of the
/// cluster: the first of the others to probe it does so within about 0.6 periods, learns the failure at the end of
/// that period, and then the suspicion has to run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// One member is probed in each period. 10 ms to 60 s, and more than twice `probe_rtt`.
    pub probe_period: Duration,
    /// How long a direct answer may take before others are asked to try. Not zero.
    pub probe_rtt: Duration,
    /// How long a suspect has to say that it lives. Not zero, at most 10 min.
    pub suspect: Duration,
    /// How many members are asked to probe somebody who did not answer: 1 to 16.
    pub indirect_probes: usize,
}

/// A [`Timing`] that the protocol cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("timing.{field} is out of bounds: {reason}")]
pub struct TimingError {
    /// The field's name.
    pub field: &'static str,
    /// The bound that was broken.
    pub reason: &'static str,
}

impl Timing {
    /// For hosts on one network with round trips far below 100 ms: a dead host is declared after about 1 s.
    pub const fn lan() -> Self {
        Self {
            probe_period: Duration::from_millis(300),
            probe_rtt: Duration::from_millis(100),
            suspect: Duration::from_millis(500),
            indirect_probes: 3,
        }
    }

    /// For hosts in several places, round trips up to half a second, links that drop out for a moment: a dead host
    /// is declared after about 7 s.
    pub const fn wan() -> Self {
        Self {
            probe_period: Duration::from_secs(2),
            probe_rtt: Duration::from_millis(600),
            suspect: Duration::from_secs(4),
            indirect_probes: 3,
        }
    }

    /// Checks the bounds named at the fields.
    pub fn validate(&self) -> Result<(), TimingError> {
        let bad = |field, reason| Err(TimingError { field, reason });
        if self.probe_period < Duration::from_millis(10) || self.probe_period > Duration::from_secs(60) {
            return bad("probe_period", "10 ms to 60 s");
        }
        if self.probe_rtt.is_zero() || self.probe_rtt * 2 >= self.probe_period {
            return bad("probe_rtt", "not zero, and less than half of probe_period");
        }
        if self.suspect.is_zero() || self.suspect > Duration::from_secs(600) {
            return bad("suspect", "not zero, at most 10 min");
        }
        if self.indirect_probes == 0 || self.indirect_probes > 16 {
            return bad("indirect_probes", "1 to 16");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_are_valid_and_nonsense_is_not() {
        assert_eq!(Timing::lan().validate(), Ok(()));
        assert_eq!(Timing::wan().validate(), Ok(()));
        let rtt = Timing { probe_rtt: Duration::from_millis(150), ..Timing::lan() };
        assert_eq!(rtt.validate().map_err(|e| e.field), Err("probe_rtt"));
        let none = Timing { indirect_probes: 0, ..Timing::lan() };
        assert_eq!(none.validate().map_err(|e| e.field), Err("indirect_probes"));
    }
}
