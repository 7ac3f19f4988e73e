//! Times as people say them, and the engine's as they are written.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock;

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
    format!("{} ago", clock::in_words(passed))
}

#[cfg(test)]
mod tests {
    use super::*;

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
