//! This host's wall clock: what certificates, the cluster's own clock and the measure of clock differences go by.
//!
//! Timeouts go by monotonic time and are no business of this file. Tests shift the clock instead of waiting for weeks;
//! `shoal` itself never does. Lengths of time in words are here as well.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

/// Milliseconds that are added to what the kernel says.
static SHIFT_MS: AtomicI64 = AtomicI64::new(0);

/// Lets the clock be so many milliseconds ahead of (or, negative, behind) the kernel's, for the whole process. Only the
/// daemon that tests run calls this.
pub fn shift(ms: i64) {
    SHIFT_MS.store(ms, Ordering::Relaxed);
}

/// The time of now.
pub fn now() -> SystemTime {
    let shift = SHIFT_MS.load(Ordering::Relaxed);
    let by = Duration::from_millis(shift.unsigned_abs());
    let now = SystemTime::now();
    let shifted = if shift < 0 { now.checked_sub(by) } else { now.checked_add(by) };
    shifted.unwrap_or(now)
}

/// Since 1970. Before that, it is 1970.
pub fn since_epoch() -> Duration {
    now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
pub fn unix_seconds() -> i64 {
    i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970.
pub fn unix_nanos() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

/// For messages: `2026-01-31T12:00:00Z`.
pub fn printed(unix_seconds: i64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(unix_seconds);
    let text = at.ok().and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_else(|| unix_seconds.to_string())
}

/// A length of time as Docker says it to people.
pub fn in_words(length: Duration) -> String {
    let seconds = length.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// The same clock, for TLS.
#[derive(Debug)]
pub struct TlsClock;

impl rustls::time_provider::TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(since_epoch()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, expected: &str) {
        assert_eq!(in_words(Duration::from_secs(seconds)), expected);
    }

    #[test]
    fn durations_as_docker_says_them() {
        check(0, "Less than a second");
        check(1, "1 second");
        check(59, "59 seconds");
        check(60, "About a minute");
        check(150, "2 minutes");
        check(3600, "About an hour");
        check(3 * 3600, "3 hours");
        check(49 * 3600, "2 days");
        check(20 * 86400, "2 weeks");
        check(90 * 86400, "3 months");
        check(800 * 86400, "2 years");
    }
}
