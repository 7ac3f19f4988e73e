//! Times as people say them, and the engine's as they are written.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Reads the engine's RFC 3339; `None` for one that was never set.
pub(super) fn parse(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().filter(|at| at.year() > 1)
}

/// How long ago that was, as Docker says it: "2 minutes ago"; empty for a time that was never set.
pub(super) fn ago(text: &str) -> String {
    parse(text).map(|at| ago_at(at, OffsetDateTime::now_utc())).unwrap_or_default()
}

/// As [`ago`], of seconds since 1970.
pub(super) fn ago_unix(seconds: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) if seconds > 0 => ago_at(at, OffsetDateTime::now_utc()),
        _ => String::new(),
    }
}

fn ago_at(at: OffsetDateTime, now: OffsetDateTime) -> String {
    // Another host's clock may be ahead.
    let passed = Duration::try_from(now - at).unwrap_or_default();
    format!("{} ago", human(passed))
}

/// A duration as Docker says it.
fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, expected: &str) {
        assert_eq!(human(Duration::from_secs(seconds)), expected);
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

    #[test]
    fn a_time_that_was_never_set_is_empty() {
        assert_eq!(ago("0001-01-01T00:00:00Z"), "");
        assert_eq!(ago(""), "");
        assert_eq!(ago_unix(0), "");
        assert_eq!(ago(&OffsetDateTime::now_utc().format(&Rfc3339).unwrap()), "Less than a second ago");
    }

    #[test]
    fn a_clock_ahead_is_no_trouble() {
        let now = OffsetDateTime::from_unix_timestamp(1000).unwrap();
        assert_eq!(ago_at(now + Duration::from_secs(5), now), "Less than a second ago");
    }
}
