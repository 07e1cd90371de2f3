//! How long sockets were on their way from the primary's accept to the worker's claim.

use hdrhistogram::Histogram;

use crate::control::LatencySummary;

/// Latencies are recorded up to this, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 60_000_000;

/// A distribution.
#[derive(Debug)]
pub(crate) struct HandoffLatency {
    histogram: Histogram<u64>,
}

impl HandoffLatency {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
            .expect("the bounds and the precision are constants that the histogram accepts");
        Self { histogram }
    }

    pub(crate) fn record(&mut self, accepted_ns: u64, now_ns: u64) {
        self.histogram.saturating_record(now_ns.saturating_sub(accepted_ns) / 1_000);
    }

    pub(crate) fn summary(&self) -> Option<LatencySummary> {
        (!self.histogram.is_empty()).then(|| LatencySummary {
            count: self.histogram.len(),
            p50_us: self.histogram.value_at_quantile(0.5),
            p90_us: self.histogram.value_at_quantile(0.9),
            p99_us: self.histogram.value_at_quantile(0.99),
            max_us: self.histogram.max(),
        })
    }
}
