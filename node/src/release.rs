//! What this release knows: its feature level.
//!
//! The level grows by one whenever a release writes something that the one before would not understand. A cluster's
//! level is the lowest among its managers; what is above it is not written, so that a rolling upgrade can stop half way
//! or go back.

use std::sync::OnceLock;

/// The level that this release writes.
const FEATURE_LEVEL: u32 = deploy::model::ENCRYPTION_LEVEL;

static ACTS_AS: OnceLock<Release> = OnceLock::new();

/// A release, as far as others have to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The highest feature level that it understands and writes.
    pub feature_level: u32,
}

impl Release {
    /// What this process is.
    pub fn current() -> Self {
        ACTS_AS.get().copied().unwrap_or(Self { feature_level: FEATURE_LEVEL })
    }

    /// Has this process act as another release, for tests of rolling upgrades. Once, before anything else; `shoal` itself
    /// never does.
    pub fn act_as(release: Self) {
        // A second call would come too late to be true everywhere.
        let _ = ACTS_AS.set(release);
    }
}
