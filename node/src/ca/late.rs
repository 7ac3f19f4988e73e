//! Whether a node whose certificate is good for nothing any more may have another one.
//!
//! Its connection has proved that it holds a key; that this is the key of a node, the store says, which remembers what
//! was issued. So neither a certificate that somebody else signed nor one that was replaced long ago helps anybody.

use deploy::model::{NodeCertificate, Timestamp};
use deploy::root_rotation::LATE_RENEWAL;

/// Why it may not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LateError {
    /// The key is not one that was certified last.
    #[error("this is not the key that the cluster certified last for this node; it must leave and join anew")]
    OtherKey,
    /// It comes too late.
    #[error(
        "this node's certificate ran out at {expired}, more than {} days before this manager's clock ({now}); it must \
         leave and join anew, unless one of the two clocks is wrong",
        LATE_RENEWAL.as_secs() / 86_400
    )]
    TooLate {
        /// When it ran out.
        expired: String,
        /// By the manager's clock.
        now: String,
    },
}

/// Decides by what was certified for the node, the digest of the key that was proved, and the time.
pub fn may_renew_late<'a>(
    certified: impl IntoIterator<Item = &'a NodeCertificate>,
    key: &[u8; 32],
    now: Timestamp,
) -> Result<(), LateError> {
    let same_key = certified.into_iter().filter(|certificate| certificate.key == key);
    let known = same_key.max_by_key(|certificate| certificate.expires).ok_or(LateError::OtherKey)?;
    if now > known.expires.plus(LATE_RENEWAL) {
        let printed = |at: Timestamp| crate::clock::printed(i64::try_from(at.nanos / 1_000_000_000).unwrap_or(0));
        return Err(LateError::TooLate { expired: printed(known.expires), now: printed(now) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_keys_are_good_for_ninety_days_after_their_end() {
        let day = |days: u64| Timestamp::from_millis(days * 86_400_000);
        let certificate =
            |key: u8, expires| NodeCertificate { key: vec![key; 32], root: String::new(), expires: day(expires) };
        let (used, next) = (certificate(1, 100), certificate(2, 150));
        let both = || [&used, &next];
        assert_eq!(may_renew_late(both(), &[1; 32], day(0)), Ok(()));
        assert_eq!(may_renew_late(both(), &[1; 32], day(190)), Ok(()));
        assert_eq!(may_renew_late(both(), &[2; 32], day(240)), Ok(()));
        // Two certificates of one key: a manager that helps itself keeps the one that it has.
        let later = certificate(1, 150);
        assert_eq!(may_renew_late([&used, &later], &[1; 32], day(240)), Ok(()));
        assert_eq!(may_renew_late(both(), &[3; 32], day(100)), Err(LateError::OtherKey));
        assert_eq!(may_renew_late([], &[1; 32], day(100)), Err(LateError::OtherKey));
        let Err(late) = may_renew_late(both(), &[1; 32], day(191)) else { panic!("too late was in time") };
        assert!(late.to_string().contains("ran out at 1970-04-11") && late.to_string().contains("90 days"), "{late}");
    }
}
