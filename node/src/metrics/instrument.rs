//! What the owners of things count with: plain atomic numbers, written by one task and read when somebody asks.
//!
//! Nothing here knows names or formats, and nothing waits: an owner that counts costs one atomic addition.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows, from 0 at the start of its owner.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, many: u64) {
        self.0.fetch_add(many, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, for as long as the answer lives.
    pub fn hold(self: &std::sync::Arc<Self>) -> Held {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(self.clone())
    }
}

/// One of the things that a [`Gauge`] counts; dropping it takes it off again.
#[derive(Debug)]
pub struct Held(std::sync::Arc<Gauge>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Upper bounds of the buckets, in microseconds: from a decision to a task that takes long. One row for all, so that
/// latencies of different things can be compared.
const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// Durations, counted by how long they were.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what is longer than all of them.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Distribution {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        Distribution { bounds_us: BOUNDS_US.to_vec(), buckets, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

/// A histogram as it was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Upper bounds in microseconds, upwards.
    pub bounds_us: Vec<u64>,
    /// How many fell between a bound and the one before; the last ones are longer than every bound.
    pub buckets: Vec<u64>,
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl From<&raft::Histogram> for Distribution {
    fn from(of: &raft::Histogram) -> Self {
        let sum_us = u64::try_from(of.sum.as_micros()).unwrap_or(u64::MAX);
        Self { bounds_us: raft::BOUNDS_US.to_vec(), buckets: of.buckets.to_vec(), sum_us }
    }
}

impl From<&gossip::RoundTrips> for Distribution {
    fn from(of: &gossip::RoundTrips) -> Self {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        // They come with everything below included.
        let upto = of.buckets.iter().copied().chain([of.count]);
        let below = [0].into_iter().chain(of.buckets);
        Self {
            bounds_us: gossip::RoundTrips::BOUNDS.into_iter().map(us).collect(),
            buckets: upto.zip(below).map(|(upto, below)| upto.saturating_sub(below)).collect(),
            sum_us: us(of.sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        for us in [0, 500, 501, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let read = histogram.read();
        assert_eq!((read.buckets[0], read.buckets[1]), (2, 1));
        assert_eq!((read.buckets[13], read.buckets[14]), (1, 1));
        assert_eq!(read.sum_us, 20_001_002);
    }

    #[test]
    fn cumulative_buckets_are_taken_apart() {
        let mut round_trips = gossip::RoundTrips { count: 5, sum: Duration::from_millis(3), ..Default::default() };
        round_trips.buckets = [1, 1, 3, 4, 4, 4, 4, 4];
        let read = Distribution::from(&round_trips);
        assert_eq!(read.buckets, [1, 0, 2, 1, 0, 0, 0, 0, 1]);
        assert_eq!((read.bounds_us[2], read.sum_us), (2000, 3000));
    }

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        let gauge = Arc::new(Gauge::default());
        let held = (gauge.hold(), gauge.hold());
        assert_eq!(gauge.get(), 2);
        drop(held);
        assert_eq!(gauge.get(), 0);
    }
}
