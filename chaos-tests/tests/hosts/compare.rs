//! Kernels and names of all hosts against the store, after every quiet period of a random life, in a short form.

use std::time::Duration;

use chaos_tests::compare::{Compare, unusable};

use crate::binaries;

/// A host dies, one is parted from the others, a daemon is killed, one leaves and joins again.
const SEED: u64 = 5;
const LENGTH: Duration = Duration::from_secs(60);

/// `SHOAL_COMPARE_SEED` and `SHOAL_COMPARE_SECONDS` choose another run.
#[tokio::test(flavor = "multi_thread")]
async fn kernels_and_names_equal_the_store_after_every_quiet_period() {
    if let Some(reason) = chaos_tests::hosts::unusable().or_else(unusable) {
        eprintln!("skipped: {reason}");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("SHOAL_COMPARE_SEED").unwrap_or(SEED);
    let length = number("SHOAL_COMPARE_SECONDS").map_or(LENGTH, Duration::from_secs);
    let outcome = Compare { seed, length, binaries: binaries() }.run().await.unwrap();
    println!("{outcome}");
    assert!(outcome.violations.is_empty(), "{outcome}");
    // It has looked, and not only waited.
    let [tasks, names, entries] = outcome.counts;
    let [stores, kernels] = outcome.looks;
    assert!(outcome.rounds >= 2 && tasks >= 40 && names >= 400 && entries >= 100, "{outcome}");
    assert!(stores >= 20 && kernels >= 20, "{outcome}");
}
