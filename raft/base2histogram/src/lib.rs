//! Stands in for the crate of the same name, which openraft counts the sizes of its batches with.
//!
//! That one computes tables for scales of every width when the first histogram is made: 25 MiB of private memory in
//! each manager, of which openraft uses some hundred bytes, and no feature leaves it out (version 0.2.3, of openraft
//! 0.10.0-alpha.37). This one has the part of its interface that openraft uses, with one bucket for each power of two;
//! nobody reads what is counted (Shoal's own numbers are `raft::Counters`). It goes when a later version of openraft
//! has no need of it: then the `[patch]` in the workspace's manifest goes too, and nothing else.

use std::fmt;
use std::marker::PhantomData;

/// One for zero, and one for each length in bits.
const BUCKETS: usize = 65;

/// How often which value was seen, to the nearest power of two below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    buckets: [u64; BUCKETS],
    data: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { buckets: [0; BUCKETS], data: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value so often.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bits = u64::BITS - value.leading_zeros();
        if let Some(bucket) = self.buckets.get_mut(bits as usize) {
            *bucket = bucket.saturating_add(count);
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The value that this part of all (0 to 1) does not exceed, to the power of two below it; 0 when there is none.
    #[must_use]
    pub fn percentile(&self, part: f64) -> u64 {
        let wanted = (self.total() as f64 * part).ceil().max(1.0);
        let mut seen = 0;
        for (bits, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen as f64 >= wanted {
                return if bits == 0 { 0 } else { 1 << (bits - 1) };
            }
        }
        0
    }

    /// The usual ones.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many were counted.
    pub samples: u64,
    /// A thousandth is not above this.
    pub p0_1: u64,
    /// A hundredth is not.
    pub p1: u64,
    /// A twentieth is not.
    pub p5: u64,
    /// A tenth is not.
    pub p10: u64,
    /// Half are not.
    pub p50: u64,
    /// Nine tenths are not.
    pub p90: u64,
    /// 99 hundredths are not.
    pub p99: u64,
    /// 999 thousandths are not.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples, p50 {}, p90 {}, p99 {}", self.samples, self.p50, self.p90, self.p99)
    }
}

/// Histograms under each other, as text.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// Without any.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    #[must_use]
    pub fn add<T>(mut self, name: impl Into<String>, histogram: Histogram<T>) -> Self {
        self.lines.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_powers_of_two_below() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        histogram.record_n(0, 5);
        histogram.record_n(9, 4);
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p50, stats.p90, stats.p99), (10, 0, 8, 1 << 63));
        let chart = AsciiChart::new().add("a", histogram).to_string();
        assert_eq!(chart, "a: 10 samples, p50 0, p90 8, p99 9223372036854775808\n");
    }
}
