//! Latency of sockets from the primary's accept to the worker's claim.

use hdrhistogram::Histogram;

use crate::control::LatencySummary;

/// Maximum recorded latency in microseconds; larger values are clamped.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Distribution of the time from accept to claim, up to one minute, with three significant digits.
#[derive(Debug)]
pub struct HandoffLatency {
    histogram: Histogram<u64>,
}

impl Default for HandoffLatency {
    fn default() -> Self {
        Self::new()
    }
}

impl HandoffLatency {
    /// An empty distribution.
    #[must_use]
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
            .expect("the bounds and the precision are constants that the histogram accepts");
        Self { histogram }
    }

    /// Records a socket by the times of its accept and its claim.
    pub fn record(&mut self, accepted_ns: u64, now_ns: u64) {
        self.histogram.saturating_record(now_ns.saturating_sub(accepted_ns) / 1_000);
    }

    /// A summary; `None` while it is empty.
    #[must_use]
    pub fn summary(&self) -> Option<LatencySummary> {
        (!self.histogram.is_empty()).then(|| LatencySummary {
            count: self.histogram.len(),
            p50_us: self.histogram.value_at_quantile(0.5),
            p90_us: self.histogram.value_at_quantile(0.9),
            p99_us: self.histogram.value_at_quantile(0.99),
            max_us: self.histogram.max(),
        })
    }
}
