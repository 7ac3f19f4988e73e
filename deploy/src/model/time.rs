//! Points in time on the cluster's clock, and durations as Docker counts them.

use std::time::Duration;

/// Nanoseconds since the Unix epoch on the cluster's clock: the `now` of a log entry, never a host's own clock.
/// Zero means never.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Timestamp {
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    #[prost(uint64, tag = "1")]
    pub nanos: u64,
}

impl Timestamp {
    /// The time that many nanoseconds after the epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self { nanos }
    }

    /// Whole milliseconds after the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self { nanos: millis * 1_000_000 }
    }

    /// Whether this was never set.
    pub const fn is_never(self) -> bool {
        self.nanos == 0
    }

    /// The time `after` later; stops at the end of representable time (year 2554).
    pub fn plus(self, after: Duration) -> Self {
        Self { nanos: self.nanos.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)) }
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }
}
