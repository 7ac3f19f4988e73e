//! The soak in a short form: `benches/soak.rs` does the same for as long as one likes.

use std::time::Duration;

use chaos_tests::soak::Soak;

use crate::binaries;

/// Eight kinds of faults in a minute: kills, all daemons at once, a pause, partitions, loss, a host that leaves.
const SEED: u64 = 32;
const LENGTH: Duration = Duration::from_secs(66);

/// `SHOAL_SOAK_SEED` and `SHOAL_SOAK_SECONDS` choose another run.
#[tokio::test(flavor = "multi_thread")]
async fn a_minute_of_faults_breaks_nothing() {
    if let Some(reason) = chaos_tests::hosts::unusable().or_else(chaos_tests::hosts::rules_unusable) {
        eprintln!("skipped: {reason}");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("SHOAL_SOAK_SEED").unwrap_or(SEED);
    let length = number("SHOAL_SOAK_SECONDS").map_or(LENGTH, Duration::from_secs);
    let outcome = Soak::new(binaries(), seed, length).run().await.unwrap();
    assert!(outcome.violations.is_empty(), "{outcome}");
    // Each time at four hosts, of which two or more are managers: three calls or more there, one at a worker.
    let (times, refused) = outcome.certificates_tried();
    assert!(refused >= 8 * times, "{times} nodes lost rights, {refused} calls were refused: {outcome}");
}
