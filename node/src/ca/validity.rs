//! For how long a certificate holds, and when it is time for the next one.

use super::issue::BACKDATE;

/// From when and until when a certificate holds, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before; certificates begin an hour before they are issued.
    pub not_before: i64,
    /// Not after.
    pub not_after: i64,
}

impl Validity {
    /// When to renew, in Unix seconds: after this share (0 to 1) of the life that was left when it was issued. Docker
    /// draws it between a half and four fifths, so that nodes that joined together do not renew together.
    pub fn renewal(&self, share: f64) -> i64 {
        let backdate = i64::try_from(BACKDATE.as_secs()).unwrap_or_default();
        let issued = self.not_before.saturating_add(backdate).min(self.not_after);
        let life = self.not_after.saturating_sub(issued);
        // The life of a certificate in seconds is far below what a double holds exactly.
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
        let spent = (life as f64 * share.clamp(0.0, 1.0)) as i64;
        issued.saturating_add(spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_falls_into_the_life_that_was_left_when_it_was_issued() {
        let day = 24 * 3600;
        let validity = Validity { not_before: 1_000_000 - 3600, not_after: 1_000_000 + 90 * day };
        assert_eq!(validity.renewal(0.5), 1_000_000 + 45 * day);
        assert_eq!(validity.renewal(0.8), 1_000_000 + 72 * day);
        // One of the shortest life, and one that makes no sense.
        assert_eq!(Validity { not_before: 0, not_after: 7200 }.renewal(0.5), 5400);
        assert_eq!(Validity { not_before: 100, not_after: 50 }.renewal(0.8), 50);
    }
}
