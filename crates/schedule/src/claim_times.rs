//! How long connections wait in a worker's channel before it claims them, as a histogram. Pure.

/// The upper bounds of the buckets; one more bucket has longer times.
pub const CLAIM_BOUNDS_NS: [u64; 9] = [
    50_000,
    100_000,
    250_000,
    1_000_000,
    2_500_000,
    10_000_000,
    50_000_000,
    250_000_000,
    1_000_000_000,
];

/// Histogram of the waits from handoff to claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimTimes {
    /// Connections by bucket; the last one has those above every bound.
    pub counts: [u64; CLAIM_BOUNDS_NS.len() + 1],
    /// The sum of all times.
    pub sum_ns: u64,
}

impl ClaimTimes {
    /// Adds this many connections with the same time.
    pub fn record(&mut self, took_ns: u64, count: u32) {
        let bucket = CLAIM_BOUNDS_NS.partition_point(|bound_ns| *bound_ns < took_ns);
        self.counts[bucket] += u64::from(count);
        self.sum_ns = self.sum_ns.saturating_add(took_ns.saturating_mul(u64::from(count)));
    }

    /// Adds the times of another worker.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// The number of connections.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_it_does_not_exceed() {
        let mut times = ClaimTimes::default();
        times.record(0, 2);
        times.record(50_000, 1);
        times.record(50_001, 1);
        times.record(u64::MAX, 1);
        assert_eq!((times.counts[0], times.counts[1], times.counts[9]), (3, 1, 1));
        assert_eq!((times.count(), times.sum_ns), (5, u64::MAX));
        let mut sum = times;
        sum.add(&times);
        assert_eq!((sum.count(), sum.sum_ns), (10, u64::MAX));
    }
}
