//! Local health: whether this node's own lateness may be what it is about to blame on others.
//!
//! Two measures. While the process did not run (stopped, starved, swapped out) its clock stands still: all timers
//! move by that much, so that answers which wait in the socket's buffer are read before a probe is called failed.
//! And a node that was late or was suspected by others gives its own suspects more time, for a while.

use std::time::Duration;

const MAX_SCORE: u8 = 4;

#[derive(Debug)]
pub(super) struct Health {
    score: u8,
    /// When the score last changed.
    changed: Duration,
    /// How long without trouble takes one off the score.
    calm: Duration,
    /// Timers later than this are a pause.
    slack: Duration,
    /// What is added after a pause for the packets that came in meanwhile.
    grace: Duration,
    /// A pause is forgiven only if a timer ran since the last one: a host that is late every time still ticks.
    may_forgive: bool,
}

impl Health {
    pub(super) fn new(probe_period: Duration, probe_rtt: Duration) -> Self {
        Self {
            score: 0,
            changed: Duration::ZERO,
            calm: probe_period * 10,
            slack: (probe_rtt / 2).max(Duration::from_millis(20)),
            grace: probe_rtt,
            may_forgive: true,
        }
    }

    pub(super) fn score(&self) -> u8 {
        self.score
    }

    /// How far all timers have to move when the first of them is late by `late`; nothing if that is no pause.
    pub(super) fn pause(&mut self, late: Duration, now: Duration) -> Option<Duration> {
        if late <= self.slack || !self.may_forgive {
            self.may_forgive = true;
            return None;
        }
        self.may_forgive = false;
        self.trouble(now);
        Some(late + self.grace)
    }

    /// This node was late, or somebody could not reach it.
    pub(super) fn trouble(&mut self, now: Duration) {
        self.score = (self.score + 1).min(MAX_SCORE);
        self.changed = now;
    }

    /// To be called now and then: trust comes back with time.
    pub(super) fn recover(&mut self, now: Duration) {
        if self.score > 0 && now.saturating_sub(self.changed) >= self.calm {
            self.score -= 1;
            self.changed = now;
        }
    }

    /// The time that a suspect of this node has, given the one in the configuration.
    pub(super) fn suspicion(&self, configured: Duration) -> Duration {
        configured + configured / 2 * u32::from(self.score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_pause_is_forgiven_but_not_twice_in_a_row() {
        let mut health = Health::new(MS * 300, MS * 100);
        assert_eq!(health.pause(MS * 50, MS), None, "a little late is nothing");
        assert_eq!(health.pause(MS * 400, MS), Some(MS * 500));
        assert_eq!(health.pause(MS * 400, MS), None);
        assert_eq!(health.pause(MS * 400, MS), Some(MS * 500));
        assert_eq!(health.score(), 2);
        assert_eq!(health.suspicion(MS * 500), MS * 1000);
    }

    #[test]
    fn trust_comes_back_step_by_step() {
        let mut health = Health::new(MS * 300, MS * 100);
        for _ in 0..10 {
            health.trouble(MS);
        }
        assert_eq!(health.score(), MAX_SCORE);
        health.recover(MS * 2000);
        assert_eq!(health.score(), MAX_SCORE, "not before ten periods");
        health.recover(MS * 3100);
        health.recover(MS * 3200);
        assert_eq!(health.score(), MAX_SCORE - 1);
        assert_eq!(Health::new(MS * 300, MS * 100).suspicion(MS * 500), MS * 500);
    }
}
